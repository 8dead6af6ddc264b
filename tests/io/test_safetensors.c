/* test_safetensors.c: hostile headers, a file of the Python library (tests/golden/make_safetensors.py), write then
 * read, and the Python library reading what we write, where it is installed. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/rng.h"
#include "base/stop.h"
#include "io/safetensors.h"

#define FILE_NAME "test_safetensors.tmp"

/* A file of a header, its length said to be `claimed` (-1: true), and `data` zero bytes. */
static void make(const char *json, long long claimed, size_t data)
{
    FILE *f = fopen(FILE_NAME, "wb");
    assert_non_null(f);
    uint64_t n = claimed < 0 ? strlen(json) : (uint64_t)claimed;
    for (int i = 0; i < 8; i++) fputc((int)(n >> (8 * i) & 255), f);
    fputs(json, f);
    for (size_t i = 0; i < data; i++) fputc(0, f);
    assert_int_equal(fclose(f), 0);
}

static err_code open_made(err *e)
{
    safetensors s;
    err_code rc = safetensors_open(&s, FILE_NAME, e);
    if (!rc) safetensors_close(&s);
    return rc;
}

#define T(name, type, shape, begin, end)                                                                               \
    "\"" name "\":{\"dtype\":\"" type "\",\"shape\":[" shape "],\"data_offsets\":[" begin "," end "]}"

static void hostile(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        long long claimed;
        size_t data;
        err_code rc;
    } rows[] = {
        {"{}", -1, 0, ERR_OK},
        {"{}   ", -1, 0, ERR_OK},
        {"{" T("a", "F32", "2", "0", "8") "}", -1, 8, ERR_OK},
        {"{" T("a", "F32", "", "0", "4") "}", -1, 4, ERR_OK},
        {"{" T("b", "F32", "0", "4", "4") "," T("a", "F32", "1", "0", "4") "," T("c", "U8", "0", "0", "0") "}", -1, 4,
         ERR_OK},
        {"{" T("a", "F32", "2", "0", "8") "}", -1, 7, ERR_TRUNCATED},
        {"{" T("a", "F32", "2", "0", "8") "}", -1, 9, ERR_FORMAT}, /* bytes that belong to nothing */
        {"{" T("a", "F32", "2", "4", "12") "}", -1, 12, ERR_FORMAT},
        {"{" T("a", "F32", "2", "0", "8") "," T("b", "F32", "2", "4", "12") "}", -1, 12, ERR_FORMAT}, /* overlap */
        {"{" T("a", "F32", "2", "0", "8") "," T("b", "F32", "2", "0", "8") "}", -1, 8, ERR_FORMAT},
        {"{" T("a", "F32", "1", "0", "4") "," T("b", "F32", "1", "8", "12") "}", -1, 12, ERR_FORMAT}, /* hole */
        {"{" T("a", "F32", "3", "0", "8") "}", -1, 8, ERR_FORMAT},
        {"{" T("a", "F32", "-2", "0", "8") "}", -1, 8, ERR_FORMAT},
        {"{" T("a", "F32", "2.0", "0", "8") "}", -1, 8, ERR_FORMAT},
        {"{" T("a", "F32", "\"2\"", "0", "8") "}", -1, 8, ERR_FORMAT},
        {"{" T("a", "F32", "2", "8", "0") "}", -1, 8, ERR_FORMAT},
        {"{" T("a", "F32", "2", "-8", "0") "}", -1, 8, ERR_FORMAT},
        {"{" T("a", "F32", "4294967296,4294967296", "0", "0") "}", -1, 0, ERR_FORMAT},
        {"{" T("a", "F32", "4611686018427387904", "0", "0") "}", -1, 0, ERR_FORMAT}, /* times 4 wraps to 0 */
        {"{" T("a", "F32", "9223372036854775807,2,4611686018427387904", "0", "8") "}", -1, 8, ERR_FORMAT},
        {"{" T("a", "F32", "2", "0", "99999999999999999999") "}", -1, 8, ERR_FORMAT},
        {"{" T("a", "F32", "2", "9223372036854775800", "9223372036854775807") "}", -1, 8, ERR_FORMAT},
        {"{" T("a", "F32", "1,1,1,1,1,1,1,1,1", "0", "4") "}", -1, 4, ERR_UNSUPPORTED},
        {"{" T("a", "F7", "1", "0", "4") "}", -1, 4, ERR_UNSUPPORTED},
        {"{" T("a", "F32", "1", "0", "4") "," T("a", "F32", "1", "0", "4") "}", -1, 4, ERR_FORMAT}, /* twice */
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", -1, 4, ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", -1, 4, ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", -1, 4, ERR_FORMAT},
        {"{\"a\":[]}", -1, 0, ERR_FORMAT},
        {"{\"a\":null}", -1, 0, ERR_FORMAT},
        {"{\"__metadata__\":[]}", -1, 0, ERR_FORMAT},
        {"{\"__metadata__\":{\"a\":1}}", -1, 0, ERR_FORMAT},
        {"{\"__metadata__\":{\"a\":\"b\"}}", -1, 0, ERR_OK},
        {"[]", -1, 0, ERR_FORMAT},
        {"{", -1, 0, ERR_FORMAT},
        {"{}x", -1, 0, ERR_FORMAT},
        {"{\"\xff\":1}", -1, 0, ERR_FORMAT},
        {"", -1, 0, ERR_FORMAT},
        {"{}", 3, 0, ERR_TRUNCATED},
        {"{}", 100000000, 0, ERR_TRUNCATED},
        {"{}", 100000001, 0, ERR_FORMAT},
        {"{}", 0x7fffffffffffffff, 0, ERR_FORMAT},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        make(rows[i].json, rows[i].claimed, rows[i].data);
        err e = {0};
        err_code rc = open_made(&e);
        print_message("row %zu: %s\n", i, e.msg);
        if (rc != rows[i].rc) fail_msg("row %zu: %s, not %s", i, err_name(rc), err_name(rows[i].rc));
        assert_int_equal(rc, e.code);
    }
    /* depth */
    enum { DEPTH = 200000 };
    char *deep = malloc(2 * DEPTH + 16);
    assert_non_null(deep);
    strcpy(deep, "{\"a\":");
    memset(deep + 5, '[', DEPTH);
    deep[DEPTH + 5] = 0;
    make(deep, -1, 0);
    assert_int_equal(open_made(NULL), ERR_FORMAT);
    free(deep);
    /* too short for a length, and empty */
    for (int n = 0; n < 8; n++) {
        assert_int_equal(file_write(FILE_NAME, "\2\0\0\0\0\0\0\0", (size_t)n, NULL), ERR_OK);
        assert_int_equal(open_made(NULL), ERR_TRUNCATED);
    }
    assert_int_equal(unlink(FILE_NAME), 0);
    assert_int_equal(open_made(NULL), ERR_NOTFOUND);
}

/* Every single-byte change and every cut of a good file is read or refused, never more (run this under ASan). */
static void mutations(void **state)
{
    (void)state;
    char *text;
    size_t n;
    assert_int_equal(file_read(TESTS_DIR "/golden/wild.safetensors", 1 << 20, &text, &n, NULL), ERR_OK);
    rng r = rng_at(1, RNG_TEST, 0, 0);
    unsigned refused = 0;
    for (int i = 0; i < 1500; i++) {
        size_t at = i % 3 ? rng_below(&r, (uint32_t)(n < 1200 ? n : 1200)) : rng_below(&r, 16),
               cut = i % 4 ? n : rng_below(&r, (uint32_t)n);
        char kept = text[at];
        text[at] = (char)rng_u32(&r);
        FILE *f = fopen(FILE_NAME, "wb"); /* no fsync: there are many */
        assert_true(f && fwrite(text, 1, cut, f) == cut && fclose(f) == 0);
        text[at] = kept;
        safetensors s;
        if (safetensors_open(&s, FILE_NAME, NULL)) {
            refused++;
            continue;
        }
        for (size_t k = 0; k < s.n; k++) {
            float *v = malloc(s.tensors[k].count * sizeof *v + 1);
            assert_non_null(v);
            tensor_to_f32(&s.tensors[k], v, NULL);
            free(v);
        }
        safetensors_close(&s);
    }
    print_message("%u refused\n", refused);
    assert_true(refused > 500);
    free(text);
    unlink(FILE_NAME);
}

static void wild(void **state)
{
    (void)state;
    safetensors s;
    err e = {0};
    assert_int_equal(safetensors_open(&s, TESTS_DIR "/golden/wild.safetensors", &e), ERR_OK);
    assert_int_equal(s.n, 13);
    assert_string_equal(safetensors_meta(&s, "format"), "pt");
    assert_string_equal(safetensors_meta(&s, "note"), "quote \" and \xc3\xbc");
    assert_null(safetensors_meta(&s, "nothing"));
    assert_null(safetensors_find(&s, "nothing"));
    static const float want[10] = {0, -0.0f, 1, -1.5f, 65504, 6e-8f, 1e-5f, INFINITY, -INFINITY, NAN};
    static const struct {
        const char *name;
        tensor_type type;
        double error; /* relative; half of the last place */
    } rows[] = {{"f32", TENSOR_F32, 0}, {"f16", TENSOR_F16, 1e-3}, {"bf16", TENSOR_BF16, 4e-3}, {"f64", TENSOR_F64, 0}};
    for (size_t i = 0; i < 4; i++) {
        const tensor *t = safetensors_find(&s, rows[i].name);
        float v[10];
        assert_true(t && t->type == rows[i].type && t->count == 10 && t->dims == 1);
        assert_int_equal(tensor_to_f32(t, v, NULL), ERR_OK);
        for (int k = 0; k < 10; k++) {
            /* 6e-8 and 1e-5 are subnormal in fp16: an absolute step of 2^-24 */
            double error = rows[i].error * fabs((double)want[k]) + (rows[i].type == TENSOR_F16 ? 3e-8 : 0);
            bool same = isnan(want[k])   ? isnan(v[k])
                        : isinf(want[k]) ? v[k] == want[k]
                                         : fabs((double)v[k] - want[k]) <= error;
            if (!same || (!isnan(want[k]) && signbit(v[k]) != signbit(want[k])))
                fail_msg("%s[%d]: %g", rows[i].name, k, (double)v[k]);
        }
    }
    static const struct {
        const char *name;
        float first, last;
    } integers[] = {{"u8", 0, 255},
                    {"i8", -128, 127},
                    {"i16", -32768, 32767},
                    {"i32", -2147483648.0f, 7},
                    {"i64", -3, 1099511627776.0f},
                    {"scalar", 2.5f, 2.5f},
                    {"gr\xc3\xb6\xc3\x9f"
                     "e.\xc3\x9f",
                     0, 5}};
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++) {
        const tensor *t = safetensors_find(&s, integers[i].name);
        float v[8];
        assert_true(t && t->count <= 8);
        assert_int_equal(tensor_to_f32(t, v, NULL), ERR_OK);
        assert_true(v[0] == integers[i].first && v[t->count - 1] == integers[i].last);
    }
    const tensor *t = safetensors_find(&s, "empty");
    assert_true(t && t->dims == 2 && t->shape[0] == 3 && t->shape[1] == 0 && t->count == 0);
    t = safetensors_find(&s, "scalar");
    assert_true(t && t->dims == 0 && t->count == 1);
    float v[3];
    assert_int_equal(tensor_to_f32(safetensors_find(&s, "bool"), v, &e), ERR_UNSUPPORTED);
    safetensors_close(&s);
}

static const float floats[6] = {1, 2, 3, 4, 5, 6};
static const uint8_t bytes[5] = {9, 8, 7, 6, 5};
static const tensor written[] = {
    {.name = "z", .type = TENSOR_F32, .dims = 2, .shape = {2, 3}, .data = floats},
    {.name = "a.b", .type = TENSOR_U8, .dims = 1, .shape = {5}, .data = bytes},
    {.name = "none", .type = TENSOR_I16, .dims = 2, .shape = {0, 4}},
    {.name = "one", .type = TENSOR_F32, .dims = 0, .data = floats + 5},
};
enum { WRITTEN = sizeof written / sizeof *written };
static const char *const keys[] = {"b", "a"}, *const values[] = {"x\ny", "\xc3\xa4"};

static void write_read(void **state)
{
    (void)state;
    err e = {0};
    assert_int_equal(safetensors_write(FILE_NAME, written, WRITTEN, keys, values, 2, &e), ERR_OK);
    char *first, *second;
    size_t n, m;
    assert_int_equal(file_read(FILE_NAME, 1 << 20, &first, &n, NULL), ERR_OK);
    assert_true((8 + (unsigned char)first[0] + 256u * (unsigned char)first[1]) % 64 == 0);
    safetensors s;
    assert_int_equal(safetensors_open(&s, FILE_NAME, &e), ERR_OK);
    assert_int_equal(s.n, WRITTEN);
    for (size_t i = 0; i < WRITTEN; i++) {
        const tensor *w = &written[i], *t = safetensors_find(&s, w->name);
        assert_true(t && t->type == w->type && t->dims == w->dims);
        for (int k = 0; k < w->dims; k++) assert_int_equal(t->shape[k], w->shape[k]);
        if (t->count) assert_memory_equal(t->data, w->data, t->count * tensor_type_bytes(t->type));
    }
    assert_string_equal(safetensors_meta(&s, "b"), "x\ny");
    assert_string_equal(safetensors_meta(&s, "a"), "\xc3\xa4");
    safetensors_close(&s);
    /* the same again is the same bytes */
    assert_int_equal(safetensors_write(FILE_NAME, written, WRITTEN, keys, values, 2, &e), ERR_OK);
    assert_int_equal(file_read(FILE_NAME, 1 << 20, &second, &m, NULL), ERR_OK);
    assert_true(n == m && !memcmp(first, second, n));
    /* what cannot be written leaves what was there */
    tensor twice[2] = {written[0], written[0]};
    e = (err){0};
    assert_int_equal(safetensors_write(FILE_NAME, twice, 2, NULL, NULL, 0, &e), ERR_INTERNAL);
    twice[1].name = "\xff";
    assert_int_equal(safetensors_write(FILE_NAME, twice, 2, NULL, NULL, 0, NULL), ERR_INTERNAL);
    static const char *const bad[] = {"\xff\xfe"};
    assert_int_equal(safetensors_write(FILE_NAME, twice, 1, keys, bad, 1, NULL), ERR_INTERNAL);
    free(second);
    assert_int_equal(file_read(FILE_NAME, 1 << 20, &second, &m, NULL), ERR_OK);
    assert_true(n == m && !memcmp(first, second, n));
    free(first);
    free(second);
}

/* Bytes of a tensor that is nowhere: tensor i's byte k is i + k * 7. `fail_at`: byte of tensor 1 that cannot be had. */
typedef struct {
    size_t fail_at, calls, most;
} pattern;

static err_code get_pattern(void *ctx, size_t i, size_t at, size_t n, void *out, err *e)
{
    pattern *p = ctx;
    p->calls++;
    if (n > p->most) p->most = n;
    if (i == 1 && p->fail_at < at + n) FAIL(e, IO, "cannot be had");
    for (size_t k = 0; k < n; k++) ((unsigned char *)out)[k] = (unsigned char)(i + (at + k) * 7);
    return ERR_OK;
}

static void write_from(void **state)
{
    (void)state;
    err e = {0};
    enum { LONG = 2 * SAFETENSORS_PIECE + 1001 };
    const tensor t[] = {{.name = "b", .type = TENSOR_U8, .dims = 1, .shape = {LONG}},
                        {.name = "a", .type = TENSOR_I16, .dims = 2, .shape = {3, 5}},
                        {.name = "c", .type = TENSOR_F32, .dims = 1, .shape = {0}}};
    pattern p = {.fail_at = SIZE_MAX};
    assert_int_equal(safetensors_write_from(FILE_NAME, t, 3, NULL, NULL, 0, get_pattern, &p, &e), ERR_OK);
    assert_int_equal(p.calls, 4);
    assert_int_equal(p.most, SAFETENSORS_PIECE);
    p.fail_at = 7; /* the file that is there stays */
    assert_int_equal(safetensors_write_from(FILE_NAME, t, 3, NULL, NULL, 0, get_pattern, &p, &e), ERR_IO);
    assert_int_not_equal(system("ls " FILE_NAME ".tmp-* 2>/dev/null | grep -q ."), 0);
    safetensors s;
    assert_int_equal(safetensors_open(&s, FILE_NAME, &e), ERR_OK);
    assert_int_equal(s.n, 3);
    for (size_t i = 0; i < 3; i++) {
        const tensor *r = safetensors_find(&s, t[i].name);
        const unsigned char *data = r->data;
        for (size_t k = 0; k < r->count * tensor_type_bytes(r->type); k++)
            assert_int_equal(data[k], (unsigned char)(i + k * 7));
    }
    safetensors_close(&s);
}

static void full_disk(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    void *zeros = calloc(N, 1);
    assert_non_null(zeros);
    struct rlimit old, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    stop_install(); /* SIGXFSZ is ignored */
    assert_int_equal(safetensors_write(FILE_NAME, written, WRITTEN, NULL, NULL, 0, NULL), ERR_OK);
    static const rlim_t limits[] = {0, 100, 4096, 5000, N};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        small = old;
        small.rlim_cur = limits[i];
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        tensor large = {.name = "large", .type = TENSOR_U8, .dims = 1, .shape = {N}, .data = zeros};
        err e = {0};
        err_code rc = safetensors_write(FILE_NAME, &large, 1, NULL, NULL, 0, &e);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        if (rc != ERR_NOSPACE) fail_msg("limit %lu: %s", (unsigned long)limits[i], e.msg);
    }
    safetensors s;
    assert_int_equal(safetensors_open(&s, FILE_NAME, NULL), ERR_OK);
    assert_int_equal(s.n, WRITTEN);
    safetensors_close(&s);
    free(zeros);
}

static void python_reads(void **state)
{
    (void)state;
    if (system("/usr/bin/python3 -c 'import safetensors.numpy' 2>/dev/null")) {
        print_message("skipped: no safetensors for Python here\n");
        skip();
    }
    assert_int_equal(safetensors_write(FILE_NAME, written, WRITTEN, keys, values, 2, NULL), ERR_OK);
    assert_int_equal(system("/usr/bin/python3 -c '\n"
                            "from safetensors import safe_open\n"
                            "with safe_open(\"" FILE_NAME "\", \"np\") as f:\n"
                            "    assert sorted(f.keys()) == [\"a.b\", \"none\", \"one\", \"z\"]\n"
                            "    assert f.get_tensor(\"z\").tolist() == [[1, 2, 3], [4, 5, 6]]\n"
                            "    assert f.get_tensor(\"a.b\").tolist() == [9, 8, 7, 6, 5]\n"
                            "    assert f.get_tensor(\"none\").shape == (0, 4)\n"
                            "    assert f.get_tensor(\"one\").shape == () and f.get_tensor(\"one\") == 6\n"
                            "    assert f.metadata() == {\"b\": \"x\\ny\", \"a\": \"\\u00e4\"}\n"
                            "'"),
                     0);
}

static int remove_file(void **state)
{
    (void)state;
    unlink(FILE_NAME);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(hostile),     cmocka_unit_test(mutations),
                                       cmocka_unit_test(wild),        cmocka_unit_test(write_read),
                                       cmocka_unit_test(write_from),  cmocka_unit_test(full_disk),
                                       cmocka_unit_test(python_reads)};
    return cmocka_run_group_tests(tests, NULL, remove_file);
}
