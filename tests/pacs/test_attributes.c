/* Attributes: what is made legal and how, and that a tree keeps what is put, through a file and back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pacs/attributes.h"
#include "pacs/sr_codes.h"
#include "pacs/sr_tree.h"

#define A64 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define BAD "?"

static void test_legal(void **state)
{
    static const struct {
        const char *vr, *in, *out;
    } cases[] = {
        {"LO", "plain", "plain"},
        {"LO", "a\\b", "a/b"},
        {"UT", "a\\b\r\nc\td", "a\\b\r\nc d"},
        {"LO",
         "a\nb\x7f"
         "c\xC2\x85"
         "d",
         "a b c d"},
        {"LO", A64 "x", A64},
        {"SH", "0123456789abcdefg", "0123456789abcdef"},
        {"SH",
         "\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3"
         "\xA9\xC3\xA9\xC3\xA9",
         "\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9\xC3"
         "\xA9\xC3\xA9\xC3\xA9"},
        {"LO", "\xE5\xB1\xB1", "\xE5\xB1\xB1"},
        {"LO", "cut \xE5\xB1", "cut " BAD BAD},
        {"LO", "\xC0\xAF", BAD BAD},         /* overlong */
        {"LO", "\xED\xA0\x80", BAD BAD BAD}, /* a surrogate */
        {"LO", "\xF4\x90\x80\x80", BAD BAD BAD BAD},
        {"LO", "\xF0\x9F\xAB\x80", "\xF0\x9F\xAB\x80"},
        {"PN", "A^B^C^D^E^F^G", "A^B^C^D^E F G"},
        {"PN", "A=B=C=D", "A=B=C"},
        {"PN", A64 "zz=" A64 "zz=c", A64 "=" A64 "=c"},
        {"PN", "A\\B", "A/B"},
        {"DA", "19640229", "19640229"},
        {"DA", "1964.02.29", ""},
        {"DA", "19641301", ""},
        {"DA", "19640230", ""},
        {"DA", "", ""},
        {"TM", "101112", "101112"},
        {"TM", "10", "10"},
        {"TM", "101112.123456", "101112.123456"},
        {"TM", "101112.1234567", ""},
        {"TM", "101112.", ""},
        {"TM", "1011.5", ""},
        {"TM", "10:11:12", ""},
        {"TM", "1", ""},
        {"TM", "251112", ""},
        {"CS", "ISO_IR 192", "ISO_IR 192"},
        {"CS", "lower", ""},
        {"CS", "A\\B", ""},
        {"IS", "-12", "-12"},
        {"IS", "1.5", ""},
        {"IS", "-", ""},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *out = attributes_legal(cases[i].vr, cases[i].in);
        assert_non_null(out);
        if (strcmp(out, cases[i].out)) {
            print_error("row %zu: '%s' gives '%s', not '%s'\n", i, cases[i].in, out, cases[i].out);
            fail();
        }
        char *again = attributes_legal(cases[i].vr, out);
        assert_string_equal(again, out);
        free(again);
        free(out);
    }
}

/* Random bytes become something that is legal, for it no longer changes. */
static void test_legal_random(void **state)
{
    static const char *const vrs[] = {"LO", "SH", "PN", "UT", "DA", "TM", "CS", "IS"};
    unsigned x = 12345;
    (void)state;
    for (int round = 0; round < 20000; round++) {
        char in[128];
        const size_t n = (x >> 16) % (sizeof in - 1);
        for (size_t i = 0; i < n; i++) {
            x = x * 1664525u + 1013904223u;
            in[i] = (char)(1 + (x >> 16) % 255);
        }
        x = x * 1664525u + 1013904223u;
        in[n] = 0;
        const char *vr = vrs[round % 8];
        char *once = attributes_legal(vr, in), *twice = attributes_legal(vr, once);
        assert_string_equal(once, twice);
        free(once);
        free(twice);
    }
}

static void test_tree(void **state)
{
    (void)state;
    attributes *d = attributes_new();
    for (uint32_t i = 0; i < 40; i++) {
        char text[8];
        snprintf(text, sizeof text, "%u", i);
        attributes_put(d, 0x00100000 + i, "LO", text);
    }
    attributes_put(d, 0x00100007, "LO", "second");
    assert_int_equal(d->n, 40);
    assert_string_equal(attributes_text(d, 0x00100007), "second");
    assert_null(attributes_text(d, 0x00200000));
    for (int i = 0; i < 9; i++)
        attributes_put(attributes_item(d, TAG_ContentSequence), TAG_UID, "UI", (char[]){(char)('0' + i), 0});
    attributes_remove_item(d, TAG_ContentSequence, 0);
    for (int i = 0; i < 3; i++) attributes_remove_item(d, TAG_ContentSequence, 2);
    for (int i = 0; i < 9; i++) assert_non_null(attributes_item(d, TAG_ContentSequence));
    assert_int_equal(attributes_items(d, TAG_ContentSequence), 14);
    static const char *const left[] = {"1", "2", "6", "7", "8"};
    for (size_t i = 0; i < 5; i++)
        assert_string_equal(attributes_text(attributes_at(d, TAG_ContentSequence, i), TAG_UID), left[i]);
    assert_null(attributes_at(d, TAG_ContentSequence, 14));
    attributes_remove(d, TAG_ContentSequence);
    assert_false(attributes_has(d, TAG_ContentSequence));
    assert_int_equal(d->n, 40);
    assert_true(attributes_ascii(d));
    attributes_put(attributes_item(d, TAG_ContentSequence), TAG_TextValue, "UT", "\xC3\xA9");
    assert_false(attributes_ascii(d));
    assert_false(attributes_failed(d));
    attributes_free(d);

    assert_null(attributes_item(NULL, TAG_ContentSequence)); /* a builder that ran out of memory goes on */
    attributes_put(NULL, TAG_UID, "UI", "1");
    assert_true(attributes_failed(NULL));
}

/* Not file_write, whose fsync would make hundreds of them slow. */
static void put_file(const char *name, const void *bytes, size_t n)
{
    FILE *f = fopen(name, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void test_file(void **state)
{
    (void)state;
    char path[] = "attributes-XXXXXX";
    close(mkstemp(path));
    attributes *d = attributes_new(), *back = NULL;
    attributes_put(d, TAG_SOPClassUID, "UI", SR_SOP_CLASS_ENHANCED);
    attributes_put(d, TAG_SOPInstanceUID, "UI", "1.2.3");
    attributes_put(d, TAG_SpecificCharacterSet, "CS", "ISO_IR 192");
    attributes_put(d, TAG_PatientName, "PN", "\xE5\xB1\xB1^\xE5\xA4\xAA");
    attributes_put(d, TAG_PatientID, "LO", "");
    attributes_sequence(d, TAG_PerformedProcedureCodeSequence);
    attributes *item = attributes_item(d, TAG_ContentSequence);
    char *big = malloc(300001); /* more than one buffer of the encoder */
    memset(big, 'x', 300000);
    big[300000] = 0;
    attributes_put(item, TAG_TextValue, "UT", big);
    for (int i = 0; i < 5; i++) item = attributes_item(item, TAG_ContentSequence);
    attributes_put(item, TAG_UID, "UI", "1.2.3.4");

    unsigned char *bytes, *same;
    size_t n, m;
    err e = {0};
    assert_int_equal(sr_tree_encode(d, &bytes, &n, &e), ERR_OK);
    assert_int_equal(sr_tree_encode(d, &same, &m, &e), ERR_OK);
    assert_int_equal(n, m);
    assert_memory_equal(bytes, same, n);
    put_file(path, bytes, n);
    assert_int_equal(sr_tree_read(path, &back, &e), ERR_OK);
    assert_string_equal(attributes_text(back, TAG_PatientName), "\xE5\xB1\xB1^\xE5\xA4\xAA");
    assert_string_equal(attributes_text(back, TAG_PatientID), "");
    assert_true(attributes_has(back, TAG_PerformedProcedureCodeSequence));
    assert_int_equal(attributes_items(back, TAG_PerformedProcedureCodeSequence), 0);
    const attributes *i = attributes_at(back, TAG_ContentSequence, 0);
    assert_string_equal(attributes_text(i, TAG_TextValue), big);
    for (int k = 0; k < 5; k++) i = attributes_at(i, TAG_ContentSequence, 0);
    assert_string_equal(attributes_text(i, TAG_UID), "1.2.3.4");
    attributes_free(back);

    for (size_t cut = 0; cut < n; cut += cut < 700 ? 7 : 29873) { /* cut short anywhere: an error or less, no crash */
        err ce = {0};
        put_file(path, bytes, cut);
        if (sr_tree_read(path, &back, &ce) == ERR_OK) attributes_free(back);
    }
    free(bytes);
    free(same);
    free(big);

    for (int k = 0; k < SR_TREE_DEPTH_MAX + 2; k++) item = attributes_item(item, TAG_ContentSequence);
    assert_int_equal(sr_tree_encode(d, &bytes, &n, &e), ERR_OK);
    put_file(path, bytes, n);
    assert_int_equal(sr_tree_read(path, &back, &e), ERR_LIMIT);
    free(bytes);
    attributes_free(d);
    err none = {0};
    unlink(path);
    assert_int_equal(sr_tree_read(path, &back, &none), ERR_NOTFOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_legal), cmocka_unit_test(test_legal_random),
                                       cmocka_unit_test(test_tree), cmocka_unit_test(test_file)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
