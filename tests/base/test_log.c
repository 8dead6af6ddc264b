/* Every line is one line: valid JSON or words, whatever text comes in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>
#include <pthread.h>

#include "base/log.h"

/* --- a strict reader of JSON (RFC 8259): returns the end of the value, NULL if it is none */

static const char *utf8(const char *s)
{
    const unsigned char *c = (const unsigned char *)s;
    if (c[0] < 0x80) return s + 1;
    int n = c[0] >= 0xC2 && c[0] < 0xE0 ? 1 : c[0] >= 0xE0 && c[0] < 0xF0 ? 2 : c[0] >= 0xF0 && c[0] < 0xF5 ? 3 : 0;
    if (!n) return NULL;
    if ((c[0] == 0xE0 && c[1] < 0xA0) || (c[0] == 0xED && c[1] > 0x9F) || (c[0] == 0xF0 && c[1] < 0x90) ||
        (c[0] == 0xF4 && c[1] > 0x8F))
        return NULL;
    for (int i = 1; i <= n; i++)
        if ((c[i] & 0xC0) != 0x80) return NULL;
    return s + 1 + n;
}

static const char *string(const char *s)
{
    if (*s++ != '"') return NULL;
    while (s && *s != '"') {
        if ((unsigned char)*s < 0x20) return NULL;
        if (*s == '\\') {
            if (s[1] == 'u') {
                if (strspn(s + 2, "0123456789abcdefABCDEF") < 4) return NULL;
                s += 6;
            } else {
                if (!s[1] || !strchr("\"\\/bfnrt", s[1])) return NULL;
                s += 2;
            }
        } else {
            s = utf8(s);
        }
    }
    return s ? s + 1 : NULL;
}

static const char *number(const char *s)
{
    if (*s == '-') s++;
    size_t n = strspn(s, "0123456789");
    if (!n || (n > 1 && *s == '0')) return NULL;
    s += n;
    if (*s == '.') {
        n = strspn(++s, "0123456789");
        if (!n) return NULL;
        s += n;
    }
    if (*s == 'e' || *s == 'E') {
        s++;
        if (*s == '+' || *s == '-') s++;
        n = strspn(s, "0123456789");
        if (!n) return NULL;
        s += n;
    }
    return s;
}

/* One flat object on one line. Returns its members, -1 if it is not valid. */
static int object(const char *s)
{
    int members = 0;
    if (*s++ != '{') return -1;
    do {
        if (!(s = string(s)) || *s++ != ':') return -1;
        s = *s == '"' ? string(s) : !strncmp(s, "null", 4) ? s + 4 : number(s);
        if (!s) return -1;
        members++;
    } while (*s++ == ',');
    return s[-1] == '}' && !strcmp(s, "\n") ? members : -1;
}

static FILE *out;

static void start(log_format format, log_level least)
{
    if (out) fclose(out);
    out = tmpfile();
    assert_non_null(out);
    log_open(out, format, least);
}

/* What was written since start. */
static const char *written(void)
{
    static char text[1 << 20];
    fflush(out);
    rewind(out);
    text[fread(text, 1, sizeof text - 1, out)] = 0;
    return text;
}

static const char *const nasty[] = {
    "plain",
    "",
    "two words",
    "quote\"",
    "back\\slash",
    "line\nfeed",
    "cr\r",
    "tab\t",
    "bell\a",
    "\x1b[31mred",
    "\x7f",
    "=",
    "caf\xC3\xA9",
    "\xE2\x82\xAC",
    "\xF0\x9F\xA9\xBB",
    "latin-1 caf\xE9",
    "\xC3",
    "\xE2\x82",
    "\x80",
    "\xC0\xAF",
    "\xED\xA0\x80",
    "\xF5\x80\x80\x80",
    "\xFF\xFE",
    "forged\n12:00:00 info  scan.done files=0",
};

static void valid_json(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof nasty / sizeof *nasty; i++) {
        start(LOG_JSON, LOG_INFO);
        log_event(LOG_INFO, "a.b", "text", LOG_STR(nasty[i]), "n", LOG_INT(-5), "x", LOG_REAL(0.25), NULL);
        if (object(written()) != 6) fail_msg("row %zu is not valid JSON: %s", i, written());
    }
    start(LOG_JSON, LOG_INFO);
    log_event(LOG_INFO, "a.b", "n", LOG_INT(INT64_MIN), "x", LOG_REAL(NAN), "y", LOG_REAL(INFINITY), "z",
              LOG_REAL(1e-300), "s", LOG_STR(NULL), NULL);
    assert_int_equal(object(written()), 8);
    assert_non_null(strstr(written(), "\"level\":\"info\",\"event\":\"a.b\",\"n\":-9223372036854775808,\"x\":null,"
                                      "\"y\":null,\"z\":1e-300,\"s\":\"\"}"));
}

/* Cut, but still valid, at every length around the limit of a line and whatever is cut in two. */
static void long_text(void **state)
{
    (void)state;
    static const char *const units[] = {"x", "\"", "\n", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\xA9\xBB", "\xFF"};
    char text[4000];
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        size_t n = strlen(units[u]);
        for (size_t lead = 0; lead < 8; lead++) {
            memset(text, 'a', lead);
            for (size_t i = lead; i + n < sizeof text; i += n) memcpy(text + i, units[u], n + 1);
            start(LOG_JSON, LOG_INFO);
            log_event(LOG_INFO, "long", "text", LOG_STR(text), "after", LOG_STR(text), "n", LOG_INT(1), NULL);
            if (object(written()) < 4) fail_msg("unit %zu, lead %zu: not valid JSON", u, lead);
        }
    }
}

static void one_line_of_text(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof nasty / sizeof *nasty; i++) {
        start(LOG_TEXT, LOG_INFO);
        log_event(LOG_WARN, "a.b", "text", LOG_STR(nasty[i]), "n", LOG_INT(3), NULL);
        const char *line = written();
        assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
        for (const char *c = line; c[1]; c++) assert_true((unsigned char)*c >= 0x20 && *c != 0x7f);
        assert_memory_equal(line + 9, "warn  a.b text=", 15); /* HH:MM:SS before it */
        assert_string_equal(line + strlen(line) - 5, " n=3\n");
    }
    start(LOG_TEXT, LOG_INFO);
    log_event(LOG_ERROR, "a.b", "s", LOG_STR("x y"), "t", LOG_STR("x=y"), "u", LOG_STR("xy"), "r", LOG_REAL(NAN), NULL);
    assert_string_equal(written() + 9, "error a.b s=\"x y\" t=\"x=y\" u=xy\n");
}

static void levels(void **state)
{
    (void)state;
    start(LOG_TEXT, LOG_WARN);
    log_event(LOG_DEBUG, "no", NULL);
    log_event(LOG_INFO, "no", NULL);
    log_event(LOG_OFF, "no", NULL);
    assert_string_equal(written(), "");
    log_event(LOG_WARN, "yes", NULL);
    assert_non_null(strstr(written(), "yes"));
    log_open(NULL, LOG_TEXT, LOG_INFO);
    log_event(LOG_ERROR, "nowhere", NULL);
}

static void *many(void *ctx)
{
    for (int i = 0; i < 300; i++) log_event(LOG_INFO, ctx, "i", LOG_INT(i), "text", LOG_STR("some text"), NULL);
    return NULL;
}

static void lines_of_threads(void **state)
{
    (void)state;
    start(LOG_JSON, LOG_INFO);
    pthread_t t[4];
    static char names[4][8] = {"one", "two", "three", "four"};
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&t[i], NULL, many, names[i]), 0);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    int lines = 0;
    char line[512];
    fflush(out);
    rewind(out);
    for (; fgets(line, sizeof line, out); lines++) assert_int_equal(object(line), 5);
    assert_int_equal(lines, 1200);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(valid_json), cmocka_unit_test(long_text),
                                       cmocka_unit_test(one_line_of_text), cmocka_unit_test(levels),
                                       cmocka_unit_test(lines_of_threads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
