/* UIDs: which are valid, their order, and that deriving is a function of every field and of nothing else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "pacs/uid.h"

static void test_valid(void **state)
{
    static const struct {
        const char *uid;
        bool valid;
    } cases[] = {
        {"1.2.840.10008.1.2", true},
        {"0.0", true},
        {"1", true},
        {"2.25.329800735698586629295641978511506172918", true},
        {"1.2.3456789012345678901234567890123456789012345678901234567890.1", true}, /* 64 */
        {"1.2.3456789012345678901234567890123456789012345678901234567890.12", false},
        {"", false},
        {".", false},
        {"1.", false},
        {".1", false},
        {"1..2", false},
        {"1.02", false},
        {"1.2 ", false},
        {"1.2a", false},
        {"1.-2", false},
        {"1,2", false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (uid_valid(cases[i].uid) == cases[i].valid) continue;
        print_error("row %zu: '%s'\n", i, cases[i].uid);
        fail();
    }
}

static void test_compare(void **state)
{
    static const char *const ascending[] = {"1.2", "1.2.9", "1.2.10", "1.2.10.1", "1.3", "1.20", "2.1"};
    const int n = sizeof ascending / sizeof *ascending;
    (void)state;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < n; k++) {
            const int c = uid_compare(ascending[i], ascending[k]);
            if ((c > 0) - (c < 0) == (i > k) - (i < k)) continue;
            print_error("'%s' '%s' gives %d\n", ascending[i], ascending[k], c);
            fail();
        }
}

/* Decimal to hex by long division, independent of the code under test. */
static void to_hex(const char *decimal, char hex[33])
{
    char rest[65];
    snprintf(rest, sizeof rest, "%s", decimal);
    for (int i = 31; i >= 0; i--) {
        int carry = 0;
        for (char *p = rest; *p; p++) {
            const int v = carry * 10 + *p - '0';
            *p = (char)('0' + v / 16);
            carry = v % 16;
        }
        hex[i] = "0123456789abcdef"[carry];
    }
    hex[32] = 0;
    assert_int_equal(strspn(rest, "0"), strlen(rest));
}

static void test_derive(void **state)
{
    char a[UID_MAX], b[UID_MAX], hex[33];
    err e = {0};
    (void)state;
    assert_int_equal(uid_derive(a, NULL, &e, "series", "1.2.3", "x", NULL), ERR_OK);
    assert_true(uid_valid(a));
    /* Golden: sha256(b"radapt-uid/1\0series\0" b"1.2.3\0x\0") as a version 8 UUID, by Python's hashlib and uuid. */
    assert_string_equal(a, "2.25.276884300410951653117710964064098600969");
    to_hex(a + 5, hex);
    assert_int_equal(hex[12], '8');
    assert_non_null(strchr("89ab", hex[16]));
    assert_int_equal(uid_derive(b, NULL, &e, "series", "1.2.3", "x", NULL), ERR_OK);
    assert_string_equal(a, b);

    assert_int_equal(uid_derive(b, NULL, &e, "serie", "s1.2.3", "x", NULL), ERR_OK); /* fields do not run together */
    assert_string_not_equal(a, b);
    assert_int_equal(uid_derive(b, NULL, &e, "series", "1.2.3", NULL), ERR_OK);
    assert_string_not_equal(a, b);
    assert_int_equal(uid_derive(b, "1.2.826.0.1.3680043.10", &e, "series", "1.2.3", "x", NULL), ERR_OK);
    assert_int_equal(strncmp(b, "1.2.826.0.1.3680043.10.", 23), 0);
    assert_true(uid_valid(b));
}

static void test_roots(void **state)
{
    static const char *const bad[] = {"", "1.", "x", "1.02", "1.2.3456789012345678901.2"};
    char out[UID_MAX] = "untouched";
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err e = {0};
        assert_int_equal(uid_derive(out, bad[i], &e, "x", NULL), ERR_USAGE);
        assert_string_equal(out, "untouched");
    }
    err e = {0};
    for (int i = 0; i < 1000; i++) { /* the longest root still fits */
        char number[12];
        snprintf(number, sizeof number, "%d", i);
        assert_int_equal(uid_derive(out, "1.2.34567890123456789012", &e, number, NULL), ERR_OK);
        assert_true(uid_valid(out));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_valid), cmocka_unit_test(test_compare),
                                       cmocka_unit_test(test_derive), cmocka_unit_test(test_roots)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
