/* log.c: one buffer per event, one write under one lock; strings are escaped in both formats, so that nothing from
 * outside can forge a line. */
#include "base/log.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

static struct {
    FILE *out;
    log_format format;
    log_level least;
} settings;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void log_open(FILE *out, log_format format, log_level least)
{
    settings.out = out;
    settings.format = format;
    settings.least = least;
}

void log_lock(void)
{
    pthread_mutex_lock(&lock);
}
void log_unlock(void)
{
    pthread_mutex_unlock(&lock);
}

typedef struct {
    char text[2048];
    size_t n;
} line;

static void put(line *l, const char *s)
{
    while (*s && l->n < sizeof l->text - 1) l->text[l->n++] = *s++;
}

/* Bytes of the UTF-8 character at s, 0 if there is none (RFC 3629). */
static size_t utf8_bytes(const unsigned char *s)
{
    size_t n = s[0] < 0x80 ? 1 : s[0] < 0xC2 ? 0 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : s[0] < 0xF5 ? 4 : 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xC0) != 0x80) return 0;
    if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xF0 && s[1] < 0x90)) return 0; /* longer than needed */
    if ((s[0] == 0xED && s[1] > 0x9F) || (s[0] == 0xF4 && s[1] > 0x8F)) return 0; /* surrogates, beyond U+10FFFF */
    return n;
}

/* Inside double quotes; control characters, quotes and backslashes escaped as JSON does, bytes that are no UTF-8
 * replaced by U+FFFD. Room is kept for closing marks. */
static void put_quoted(line *l, const char *s)
{
    put(l, "\"");
    while (*s && l->n < sizeof l->text - 64) {
        unsigned char c = (unsigned char)*s;
        size_t n = utf8_bytes((const unsigned char *)s);
        char esc[8] = {0};
        memcpy(esc, s, n);
        if (c == '"' || c == '\\')
            snprintf(esc, sizeof esc, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            snprintf(esc, sizeof esc, "\\u%04x", c);
        else if (!n)
            snprintf(esc, sizeof esc, "\\ufffd");
        put(l, esc);
        s += n ? n : 1;
    }
    put(l, "\"");
}

static int is_plain(const char *s)
{
    if (!*s) return 0;
    for (; *s; s++)
        if ((unsigned char)*s <= ' ' || *s == '"' || *s == '\\' || *s == '=' || (unsigned char)*s == 0x7f) return 0;
    return 1;
}

/* What is not known is not said. */
static int is_known(const log_value *v)
{
    return v->kind != LOG_VALUE_REAL || !isnan(v->r);
}

static void put_value(line *l, const log_value *v, log_format format)
{
    char number[32];
    switch (v->kind) {
    case LOG_VALUE_INT:
        snprintf(number, sizeof number, "%lld", (long long)v->i);
        put(l, number);
        break;
    case LOG_VALUE_REAL:
        if (isfinite(v->r) || format == LOG_TEXT)
            snprintf(number, sizeof number, "%.6g", v->r);
        else
            snprintf(number, sizeof number, "null");
        put(l, number);
        break;
    case LOG_VALUE_STR:
        if (format == LOG_TEXT && v->s && is_plain(v->s))
            put(l, v->s);
        else
            put_quoted(l, v->s ? v->s : "");
        break;
    }
}

void log_event(log_level level, const char *event, ...)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    if (!settings.out || level < settings.least || level >= LOG_OFF) return;
    line l = {.n = 0};
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm tm;
    char stamp[40];
    int json = settings.format == LOG_JSON;
    if (json) {
        gmtime_r(&now.tv_sec, &tm);
        strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &tm);
        put(&l, "{\"time\":\"");
        put(&l, stamp);
        put(&l, "\",\"level\":\"");
        put(&l, names[level]);
        put(&l, "\",\"event\":");
        put_quoted(&l, event);
    } else {
        localtime_r(&now.tv_sec, &tm);
        strftime(stamp, sizeof stamp, "%H:%M:%S ", &tm);
        put(&l, stamp);
        put(&l, names[level]);
        put(&l, strlen(names[level]) == 4 ? "  " : " ");
        put(&l, event);
    }
    va_list ap;
    va_start(ap, event);
    for (const char *name; (name = va_arg(ap, const char *)) && l.n < sizeof l.text - 128;) {
        log_value v = va_arg(ap, log_value);
        if (!json && !is_known(&v)) continue;
        if (json) {
            put(&l, ",");
            put_quoted(&l, name);
            put(&l, ":");
        } else {
            put(&l, " ");
            put(&l, name);
            put(&l, "=");
        }
        put_value(&l, &v, settings.format);
    }
    va_end(ap);
    put(&l, json ? "}\n" : "\n");
    log_lock();
    fwrite(l.text, 1, l.n, settings.out);
    fflush(settings.out);
    log_unlock();
}
