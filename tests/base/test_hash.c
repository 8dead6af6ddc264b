/* SHA-256 by the vectors of FIPS 180-4, pseudonyms by values of Python's hmac module. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <unistd.h>

#include "base/file.h"
#include "base/hash.h"

#define FILE_NAME "test_hash.tmp"

static const struct {
    const char *text, *digest;
} vectors[] = {
    {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
    {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
     "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
};

static void fips(void **state)
{
    (void)state;
    char hex[HASH_HEX];
    err e = {0};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        size_t n = strlen(vectors[i].text);
        hash_buffer(vectors[i].text, n, hex);
        assert_string_equal(hex, vectors[i].digest);
        assert_int_equal(file_write(FILE_NAME, vectors[i].text, n, &e), ERR_OK);
        memset(hex, 0, sizeof hex);
        assert_int_equal(hash_file(FILE_NAME, hex, &e), ERR_OK);
        assert_string_equal(hex, vectors[i].digest);
    }
    unlink(FILE_NAME);
    hash *h = hash_new(); /* a million times 'a', in pieces of an odd size */
    char piece[997];
    memset(piece, 'a', sizeof piece);
    for (size_t left = 1000000; left;) {
        size_t n = left < sizeof piece ? left : sizeof piece;
        hash_add(h, piece, n);
        left -= n;
    }
    hash_hex(h, hex);
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    assert_int_equal(hash_file("no-such-file", hex, &e), ERR_NOTFOUND);
}

static void fields_do_not_run_together(void **state)
{
    (void)state;
    char one[HASH_HEX], other[HASH_HEX];
    hash *h = hash_new();
    hash_str(h, "ab");
    hash_str(h, "c");
    hash_hex(h, one);
    h = hash_new();
    hash_str(h, "a");
    hash_str(h, "bc");
    hash_hex(h, other);
    assert_string_not_equal(one, other);
}

static void pseudonyms(void **state)
{
    (void)state;
    unsigned char bytes[200];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)i;
    char text[2001], out[KEY_HEX], other[KEY_HEX];
    memset(text, 'x', 2000);
    text[2000] = 0;
    hash_pseudonym((const unsigned char *)"key", 3, "patient", "PID-1", out);
    assert_string_equal(out, "9b09258bf73841d172742f114c6b6c15");
    hash_pseudonym(bytes, sizeof bytes, "study", "1.2.840.10008", out); /* a key longer than the block */
    assert_string_equal(out, "94f6ddc0391195a2c175e795fcc1988e");
    hash_pseudonym((const unsigned char *)"key", 3, "path", text, out); /* long values are hashed first */
    assert_string_equal(out, "5b69f9cbfe7b2df187f1ad9a7ed95932");
    hash_pseudonym((const unsigned char *)"key", 3, "study", "PID-1", out);
    hash_pseudonym((const unsigned char *)"kez", 3, "study", "PID-1", other);
    assert_string_not_equal(out, other);
    assert_string_not_equal(out, "9b09258bf73841d172742f114c6b6c15");
    for (size_t n = 990; n < 1100; n++) { /* around the limit: all different, none too long for the buffer */
        char a[KEY_HEX], b[KEY_HEX], value[1200];
        memset(value, 'y', sizeof value);
        value[n] = 0;
        hash_pseudonym((const unsigned char *)"key", 3, "path", value, a);
        value[n - 1] = 0;
        hash_pseudonym((const unsigned char *)"key", 3, "path", value, b);
        assert_string_not_equal(a, b);
        assert_int_equal(strlen(a), KEY_HEX - 1);
    }
}

static void random_bytes(void **state)
{
    (void)state;
    unsigned char a[4096], b[4096];
    err e = {0};
    assert_int_equal(hash_random(a, sizeof a, &e), ERR_OK);
    assert_int_equal(hash_random(b, sizeof b, &e), ERR_OK);
    assert_memory_not_equal(a, b, sizeof a);
    size_t ones = 0;
    for (size_t i = 0; i < sizeof a; i++) ones += (size_t)__builtin_popcount(a[i]);
    assert_in_range(ones, 16384 - 600, 16384 + 600); /* six sigma */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(fips), cmocka_unit_test(fields_do_not_run_together),
                                       cmocka_unit_test(pseudonyms), cmocka_unit_test(random_bytes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
