/* Files of torch.save: real ones of PyTorch's (tests/golden/make_pth.py), and hostile ones made here. */
#include "io/pth.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/rng.h"
#include "io/weights.h"
#include "tests/io/zip_make.h"

#define ASSERT_OK(call)                                                                                                \
    do {                                                                                                               \
        err_code code_ = (call);                                                                                       \
        if (code_) fail_msg("%s: %s", err_name(code_), e.msg);                                                         \
    } while (0)

static const char *made(void)
{
    static char path[64];
    snprintf(path, sizeof path, "/tmp/radapt_pth_%ld.pth", (long)getpid());
    return path;
}

static const char *golden(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/golden/%s", TESTS_DIR, name);
    return path;
}

/* Value i is (i - 3) / 4, of whole numbers i - 3. */
static void expect_values(const weights_file *w, const char *name, int dims, size_t rows, size_t count)
{
    err e = {0};
    const tensor *t = weights_find(w, name);
    if (!t) fail_msg("%s is not there", name);
    if (t->dims != dims || t->count != count || (dims && t->shape[0] != rows)) fail_msg("%s has another shape", name);
    float v[64];
    assert_true(count <= 64);
    ASSERT_OK(tensor_to_f32(t, v, &e));
    float scale = t->type == TENSOR_I64 || t->type == TENSOR_I32 ? 1 : 0.25f;
    for (size_t i = 0; i < count; i++)
        if (v[i] != ((float)i - 3) * scale) fail_msg("%s: value %zu is %g", name, i, (double)v[i]);
}

static void flat(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        tensor_type type;
        int dims;
        size_t rows, count;
    } rows[] = {
        {"f32", TENSOR_F32, 2, 2, 6},    {"f64", TENSOR_F64, 1, 5, 5},         {"f16", TENSOR_F16, 2, 3, 6},
        {"bf16", TENSOR_BF16, 1, 7, 7},  {"i64", TENSOR_I64, 1, 4, 4},         {"i32", TENSOR_I32, 1, 4, 4},
        {"scalar", TENSOR_F32, 0, 0, 1}, {"empty", TENSOR_F32, 2, 0, 0},       {"parameter", TENSOR_F32, 2, 2, 4},
        {"view", TENSOR_F32, 2, 4, 12},  {"transposed", TENSOR_F32, 2, 4, 12}, {"conv", TENSOR_F32, 4, 2, 24}};
    weights_file w;
    err e = {0};
    ASSERT_OK(weights_open(&w, golden("torch_flat.pth"), &e));
    assert_int_equal(w.n, sizeof rows / sizeof *rows);
    for (size_t i = 0; i < w.n; i++) {
        expect_values(&w, rows[i].name, rows[i].dims, rows[i].rows, rows[i].count);
        assert_int_equal(weights_find(&w, rows[i].name)->type, rows[i].type);
    }
    weights_close(&w);
}

/* Dicts in dicts, numbers and lists between them. */
static void nested(void **state)
{
    (void)state;
    weights_file w;
    err e = {0};
    ASSERT_OK(weights_open(&w, golden("torch_nested.pth"), &e));
    expect_values(&w, "teacher.backbone.0.weight", 2, 2, 6);
    expect_values(&w, "teacher.backbone.0.bias", 1, 2, 2);
    expect_values(&w, "teacher.backbone.1.weight", 1, 2, 2);
    assert_null(weights_find(&w, "epoch"));
    weights_close(&w);
}

/* argparse.Namespace, numpy's numbers and others beside the tensors, as DINO's and iBOT's checkpoints have them. */
static void training(void **state)
{
    (void)state;
    weights_file w;
    err e = {0};
    ASSERT_OK(weights_open(&w, golden("torch_training.pth"), &e));
    assert_int_equal(w.n, 3);
    expect_values(&w, "model.0.weight", 2, 2, 6);
    expect_values(&w, "model.0.bias", 1, 2, 2);
    expect_values(&w, "last", 1, 4, 4);
    weights_close(&w);
}

static void other_forms(void **state)
{
    (void)state;
    static const struct {
        const char *name, *message;
        err_code code;
    } rows[] = {{"torch_module.pth", "torch.nn.modules", ERR_FORMAT},
                {"torch_legacy.pth", "before 1.6", ERR_UNSUPPORTED}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        weights_file w;
        err e = {0};
        assert_int_equal(weights_open(&w, golden(rows[i].name), &e), rows[i].code);
        if (!strstr(e.msg, rows[i].message)) fail_msg("%s: %s", rows[i].name, e.msg);
    }
}

/* --- made here: a dict with one tensor "t" of two values, in pieces that rows replace */
#define STORE "ctorch\nFloatStorage\n"
#define PERSISTENT(type, key, n)                                                                                       \
    "(U\x07storage" type "U\x01" key "U\x03"                                                                           \
    "cpu"                                                                                                              \
    "K" n "tQ"
#define REBUILD "ctorch._utils\n_rebuild_tensor_v2\n"
#define TENSOR_OF(storage, offset, size, stride) REBUILD "(" storage "K" offset size stride "\x89Ntr\0\0\0\0R"
#define PLAIN TENSOR_OF(PERSISTENT(STORE, "0", "\x02"), "\0", "K\2\x85", "K\1\x85")
#define NAMESPACE "cargparse\nNamespace\n"
/* ... and something beside it */
#define BESIDE(value) "\x80\2}(U\1o" value "U\1t" PLAIN "u."
#define DICT(value) "\x80\2}U\1t" value "s."
#define CODE(s) s, sizeof s - 1

static const struct {
    const char *what;
    const char *code;
    size_t bytes;
    err_code rc;
    const char *message;
} pickles[] = {
    {"plain", CODE(DICT(PLAIN)), ERR_OK, NULL},
    {"reversed shape", CODE(DICT(TENSOR_OF(PERSISTENT(STORE, "0", "\2"), "\0", "K\1K\2\x86", "K\1K\1\x86"))), ERR_OK,
     NULL},
    {"second value", CODE(DICT(TENSOR_OF(PERSISTENT(STORE, "0", "\2"), "\1", "K\1\x85", "K\1\x85"))), ERR_OK, NULL},
    {"reaches beyond", CODE(DICT(TENSOR_OF(PERSISTENT(STORE, "0", "\2"), "\1", "K\2\x85", "K\1\x85"))), ERR_TRUNCATED,
     "reaches"},
    {"stride beyond", CODE(DICT(TENSOR_OF(PERSISTENT(STORE, "0", "\2"), "\0", "K\2\x85", "K\2\x85"))), ERR_TRUNCATED,
     "reaches"},
    {"expanded", CODE(DICT(TENSOR_OF(PERSISTENT(STORE, "0", "\2"), "\0", "M\0\x80\x85", "K\0\x85"))), ERR_UNSUPPORTED,
     "expanded"},
    {"larger than there", CODE(DICT(TENSOR_OF(PERSISTENT(STORE, "0", "\3"), "\0", "K\3\x85", "K\1\x85"))),
     ERR_TRUNCATED, "bytes"},
    {"doubles are wider",
     CODE(DICT(TENSOR_OF(PERSISTENT("ctorch\nDoubleStorage\n", "0", "\2"), "\0", "K\2\x85", "K\1\x85"))), ERR_TRUNCATED,
     "bytes"},
    {"no such storage", CODE(DICT(TENSOR_OF(PERSISTENT(STORE, "9", "\2"), "\0", "K\2\x85", "K\1\x85"))), ERR_FORMAT,
     "not in the archive"},
    {"negative size", CODE(DICT(TENSOR_OF(PERSISTENT(STORE, "0", "\2"), "\0", "J\xff\xff\xff\xff\x85", "K\1\x85"))),
     ERR_FORMAT, "shape"},
    {"size times size",
     CODE(DICT(TENSOR_OF(PERSISTENT(STORE, "0", "\2"), "\0", "\x8a\x08\0\0\0\0\0\0\0\x40\x8a\x08\0\0\0\0\0\0\0\x40\x86",
                         "K\1K\1\x86"))),
     ERR_FORMAT, "large"},
    {"stride times size",
     CODE(DICT(
         TENSOR_OF(PERSISTENT(STORE, "0", "\2"), "\0", "K\2\x85", "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85"))),
     ERR_TRUNCATED, "reaches"},
    {"sizes without strides", CODE(DICT(TENSOR_OF(PERSISTENT(STORE, "0", "\2"), "\0", "K\2\x85", ")"))), ERR_FORMAT,
     "shape"},
    {"nine dimensions",
     CODE(DICT(TENSOR_OF(PERSISTENT(STORE, "0", "\2"), "\0", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t",
                         "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t"))),
     ERR_UNSUPPORTED, "dimensions"},
    {"os.system", CODE("\x80\2cos\nsystem\n(U\x04truetR."), ERR_FORMAT, "os.system"},
    {"os.system by the stack", CODE("\x80\4\x8c\2os\x8c\6system\x93(U\x04truetR."), ERR_FORMAT, "os.system"},
    {"eval in a tensor", CODE(DICT("c__builtin__\neval\n(U\1xtR")), ERR_FORMAT, "__builtin__.eval"},
    {"escapes in a name", CODE("\x80\2c\x1b[2J\nx\n."), ERR_FORMAT, "?[2J.x"},
    {"instances", CODE("\x80\2(ios\nsystem\n."), ERR_FORMAT, "instruction 0x69"},
    {"objects", CODE("\x80\2ctorch\nSize\n)\x81."), ERR_FORMAT, "object"},
    {"an unknown object", CODE(BESIDE(NAMESPACE ")\x81}U\1aK\1sb")), ERR_OK, NULL},
    {"an unknown object by keywords", CODE(BESIDE(NAMESPACE ")}\x92")), ERR_OK, NULL},
    {"an unknown call", CODE(BESIDE("cos\nsystem\n(U\4truetR")), ERR_OK, NULL},
    {"a call of its result", CODE(BESIDE("cos\nsystem\n(U\4truetR)R")), ERR_OK, NULL},
    {"an unknown dict", CODE(BESIDE("ccollections\ndefaultdict\n)R(U\1t" PLAIN "U\1bK\1u")), ERR_OK, NULL},
    {"an unknown list", CODE(BESIDE("ccollections\ndeque\n)R(K\1K\1e")), ERR_OK, NULL},
    {"an unknown key", CODE("\x80\2}(" NAMESPACE "K\1U\1t" PLAIN "u."), ERR_OK, NULL},
    {"unknown in itself", CODE(BESIDE(NAMESPACE ")\x81q\0h\0b")), ERR_OK, NULL},
    {"an unknown object alone", CODE("\x80\2" NAMESPACE ")\x81}b."), ERR_FORMAT, "argparse.Namespace"},
    {"half a key of the unknown", CODE(BESIDE(NAMESPACE "(K\1u")), ERR_FORMAT, "without a value"},
    {"unknown without arguments", CODE("\x80\2" NAMESPACE "\x81."), ERR_FORMAT, NULL},
    {"an unknown tensor", CODE(BESIDE("ctorch._utils\n_rebuild_qtensor\n)R")), ERR_FORMAT, "_rebuild_qtensor"},
    {"a parameter of the unknown", CODE(DICT("ctorch._utils\n_rebuild_parameter\n(" NAMESPACE "\x89NtR")), ERR_FORMAT,
     "argparse.Namespace"},
    {"an unknown storage class",
     CODE(DICT(TENSOR_OF(PERSISTENT("ctorch\nQInt8Storage\n", "0", "\2"), "\0", "K\2\x85", "K\1\x85"))), ERR_FORMAT,
     "torch.QInt8Storage"},
    {"an unknown storage", CODE(DICT(TENSOR_OF(NAMESPACE, "\0", "K\2\x85", "K\1\x85"))), ERR_FORMAT,
     "argparse.Namespace"},
    {"an unknown offset", CODE(DICT(REBUILD "(" PERSISTENT(STORE, "0", "\2") NAMESPACE "K\2\x85K\1\x85\x89NtR")),
     ERR_FORMAT, "begins nowhere"},
    {"an unknown size", CODE(DICT(TENSOR_OF(PERSISTENT(STORE, "0", "\2"), "\0", NAMESPACE, "K\1\x85"))), ERR_FORMAT,
     "shape"},
    {"a storage is called", CODE("\x80\2ctorch\nFloatStorage\n)R."), ERR_FORMAT, "arguments"},
    {"a number is called", CODE("\x80\2K\1)R."), ERR_FORMAT, "call"},
    {"ordered, from a list", CODE("\x80\2ccollections\nOrderedDict\n]\x85R."), ERR_FORMAT, "arguments"},
    {"rebuilt from little", CODE("\x80\2" REBUILD "K\1\x85R."), ERR_FORMAT, "arguments"},
    {"no storage", CODE(DICT(REBUILD "(K\1K\0))tR")), ERR_FORMAT, NULL},
    {"state of no dict", CODE("\x80\2K\1}b."), ERR_FORMAT, NULL},
    {"nothing", CODE(""), ERR_TRUNCATED, NULL},
    {"no stop", CODE("\x80\2}"), ERR_TRUNCATED, NULL},
    {"stops with nothing", CODE("\x80\2."), ERR_FORMAT, NULL},
    {"stops at a mark", CODE("\x80\2(."), ERR_FORMAT, NULL},
    {"takes a mark", CODE("\x80\2}((ss."), ERR_FORMAT, NULL},
    {"tuple of a mark", CODE("\x80\2(\x85."), ERR_FORMAT, NULL},
    {"no mark", CODE("\x80\2}u."), ERR_FORMAT, NULL},
    {"key without value", CODE("\x80\2}(K\1u."), ERR_FORMAT, "without a value"},
    {"items of a number", CODE("\x80\2K\1(K\1K\1u."), ERR_FORMAT, NULL},
    {"memo that is not there", CODE("\x80\2h\x05."), ERR_FORMAT, "memo"},
    {"memo far away", CODE("\x80\2}r\xff\xff\xff\x7f."), ERR_FORMAT, "memo"},
    {"text longer than the file",
     CODE("\x80\2X\xff\xff\xff\xff"
          "a."),
     ERR_TRUNCATED, NULL},
    {"text of 2^63",
     CODE("\x80\4\x8d\xff\xff\xff\xff\xff\xff\xff\x7f"
          "a."),
     ERR_TRUNCATED, NULL},
    {"line without end", CODE("\x80\2ctorch"), ERR_TRUNCATED, NULL},
    {"a list", CODE("\x80\2]."), ERR_FORMAT, "no dict"},
    {"a dict in itself", CODE("\x80\2}q\0U\1ah\0s."), ERR_LIMIT, NULL},
    {"two of one name", CODE("\x80\2}(U\1t" PLAIN "U\1t" PLAIN "u."), ERR_CONFLICT, "two tensors"},
    {"name with a zero", CODE("\x80\2}U\3t\0x" PLAIN "s."), ERR_LIMIT, "name"},
};

/* The pickle with the two values 1 and 2, as archive/. */
static void make(const char *code, size_t bytes)
{
    static zip z;
    const float two[] = {1, 2};
    zip_add(&z, "archive/data.pkl", code, bytes);
    zip_add(&z, "archive/byteorder", "little", 6);
    zip_add(&z, "archive/data/0", two, sizeof two);
    zip_write(&z, made());
}

static void hostile_pickles(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof pickles / sizeof *pickles; i++) {
        pth p;
        err e = {0};
        make(pickles[i].code, pickles[i].bytes);
        err_code rc = pth_open(&p, made(), &e);
        if (rc != pickles[i].rc) fail_msg("%s: %s (%s)", pickles[i].what, err_name(rc), e.msg);
        if (pickles[i].message && !strstr(e.msg, pickles[i].message)) fail_msg("%s: %s", pickles[i].what, e.msg);
        if (!rc) assert_int_equal(p.n, 1);
        if (!rc) assert_string_equal(p.tensors[0].name, "t");
        pth_close(&p);
    }
    unlink(made());
}

/* Dicts of dicts of dicts, each twice: 2^30 tensors if nobody counts. */
static void doubling(void **state)
{
    (void)state;
    char code[4096] = "\x80\2";
    size_t n = 2;
    /* level k: {a: level k-1, b: level k-1}, the level below remembered as k; the tensor's own memo is 0 */
    memcpy(code + n, PLAIN, sizeof PLAIN - 1);
    n += sizeof PLAIN - 1;
    for (int i = 1; i <= 30; i++) {
        const unsigned char level[] = {
            'q', (unsigned char)i, '0', '}', '(', 'U', 1, 'a', 'h', (unsigned char)i, 'U', 1, 'b',
            'h', (unsigned char)i, 'u'};
        memcpy(code + n, level, sizeof level);
        n += sizeof level;
    }
    code[n++] = '.';
    pth p;
    err e = {0};
    make(code, n);
    assert_int_equal(pth_open(&p, made(), &e), ERR_LIMIT);
    unlink(made());
}

static void hostile_archives(void **state)
{
    (void)state;
    static const struct {
        const char *what, *pickle_name, *data_name, *order;
        uint32_t crc, size;
        unsigned method;
        err_code rc;
    } rows[] = {
        {"as it should be", "a/data.pkl", "a/data/0", "little", 0, 0, 0, ERR_OK},
        {"without a folder", "data.pkl", "data/0", "little", 0, 0, 0, ERR_OK},
        {"big-endian", "a/data.pkl", "a/data/0", "big", 0, 0, 0, ERR_UNSUPPORTED},
        {"wrong checksum", "a/data.pkl", "a/data/0", "little", 1, 0, 0, ERR_FORMAT},
        {"larger than the file", "a/data.pkl", "a/data/0", "little", 0, 1 << 30, 0, ERR_TRUNCATED},
        {"compressed", "a/data.pkl", "a/data/0", "little", 0, 0, 8, ERR_UNSUPPORTED},
        {"no pickle", "a/data.pk", "a/data/0", "little", 0, 0, 0, ERR_FORMAT},
        {"another folder", "a/data.pkl", "b/data/0", "little", 0, 0, 0, ERR_FORMAT},
        {"two pickles", "a/data.pkl", "b/data.pkl", "little", 0, 0, 0, ERR_FORMAT},
        {"one name twice", "a/data.pkl", "a/data.pkl", "little", 0, 0, 0, ERR_FORMAT},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        static zip z;
        const float two[] = {1, 2};
        char order[64];
        pth p;
        err e = {0};
        snprintf(order, sizeof order, "%.*sbyteorder", (int)(strrchr(rows[i].pickle_name, 'd') - rows[i].pickle_name),
                 rows[i].pickle_name);
        zip_add(&z, rows[i].pickle_name, CODE(DICT(PLAIN)));
        zip_add(&z, order, rows[i].order, strlen(rows[i].order));
        z.wrong_crc = rows[i].crc;
        z.wrong_size = rows[i].size;
        z.method = rows[i].method;
        zip_add(&z, rows[i].data_name, two, sizeof two);
        zip_write(&z, made());
        err_code rc = pth_open(&p, made(), &e);
        if (rc != rows[i].rc) fail_msg("%s: %s (%s)", rows[i].what, err_name(rc), e.msg);
        pth_close(&p);
    }
    unlink(made());
}

/* Bytes changed, left out and cut off: an error or tensors that can be read, whatever they hold. */
static void look(const char *path)
{
    weights_file w;
    err e = {0};
    if (weights_open(&w, path, &e)) {
        assert_true(e.code != ERR_OK && e.code != ERR_INTERNAL);
        return;
    }
    for (size_t i = 0; i < w.n; i++) {
        float *v = malloc((w.tensors[i].count + 1) * sizeof *v);
        assert_non_null(v);
        (void)tensor_to_f32(&w.tensors[i], v, &e);
        free(v);
    }
    weights_close(&w);
}

static void mutations(void **state)
{
    (void)state;
    enum { EACH = 40 };
    static char code[1 << 16];
    rng r = rng_at(7, RNG_TEST, 0, 0);
    for (size_t i = 0; i < sizeof pickles / sizeof *pickles; i++)
        for (int k = 0; k < EACH && pickles[i].bytes; k++) { /* of pickles, under checksums that hold */
            size_t n = pickles[i].bytes;
            memcpy(code, pickles[i].code, n);
            for (int m = 0; m <= k % 3; m++) code[rng_below(&r, (uint32_t)n)] = (char)rng_below(&r, 256);
            if (k % 5 == 0) n = rng_below(&r, (uint32_t)n);
            make(code, n);
            look(made());
        }
    size_t bytes;
    char *whole;
    err e = {0};
    ASSERT_OK(file_read(golden("torch_nested.pth"), 1 << 20, &whole, &bytes, &e));
    char *copy = malloc(bytes);
    assert_non_null(copy);
    for (int k = 0; k < 400; k++) { /* of archives */
        memcpy(copy, whole, bytes);
        size_t from = k % 2 ? bytes - bytes / 4 : 0; /* the directory is at the end */
        for (int m = 0; m <= k % 4; m++)
            copy[from + rng_below(&r, (uint32_t)(bytes - from))] = (char)rng_below(&r, 256);
        ASSERT_OK(file_write(made(), copy, k % 7 ? bytes : rng_below(&r, (uint32_t)bytes), &e));
        look(made());
    }
    free(copy);
    free(whole);
    unlink(made());
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(flat),
                                       cmocka_unit_test(nested),
                                       cmocka_unit_test(training),
                                       cmocka_unit_test(other_forms),
                                       cmocka_unit_test(doubling),
                                       cmocka_unit_test(hostile_pickles),
                                       cmocka_unit_test(hostile_archives),
                                       cmocka_unit_test(mutations)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
