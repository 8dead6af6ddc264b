/* Checkpoints: what was written comes back, whatever a tensor's size; and neither way takes memory of the state's size.
 */
#include "adapt/checkpoint.h"
#include "tests/adapt/synthetic.h"

#define FILE_NAME "test_checkpoint.tmp"

/* Resident now, or at most since the last reset: KiB. */
static long resident_kib(const char *field)
{
    long kib = -1;
    char line[128];
    size_t n = strlen(field);
    FILE *f = fopen("/proc/self/status", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, field, n)) kib = strtol(line + n + 1, NULL, 10);
    fclose(f);
    assert_true(kib > 0);
    return kib;
}

static bool reset_peak(void)
{
    FILE *f = fopen("/proc/self/clear_refs", "w");
    return f && fputs("5", f) >= 0 && !fclose(f);
}

static void fill(device *d, dv *to, size_t n, float from)
{
    float *v = malloc(n * sizeof *v);
    for (size_t i = 0; i < n; i++) v[i] = from + (float)(i % 8191);
    d->op->upload(d, to, v, n * sizeof *v);
    free(v);
}

static void check(device *d, const dv *data, size_t n, float from)
{
    float *v = malloc(n * sizeof *v);
    d->op->download(d, v, data, n * sizeof *v);
    for (size_t i = 0; i < n; i++)
        if (v[i] != from + (float)(i % 8191)) fail_msg("value %zu is %g", i, (double)v[i]);
    free(v);
}

static const struct {
    const char *name;
    size_t rows, cols;
    int32_t *index;
    bool teacher;
} shapes[] = {{"large", 4099, 1001, NULL, true}, /* many pieces, the last one short */
              {"rows", 3, 5, (int32_t[]){2, 4, 9}, true},
              {"vector", 7, 1, NULL, false},
              {"piece", 512, 512, NULL, false}}; /* a piece exactly */
enum { SHAPES = sizeof shapes / sizeof *shapes };

static void make(device *d, param_set *ps, float from)
{
    err e = {0};
    for (int i = 0; i < SHAPES; i++) {
        size_t n = shapes[i].rows * shapes[i].cols;
        param *p = param_add(ps, shapes[i].name, shapes[i].rows, shapes[i].cols);
        float *zero = calloc(n, sizeof *zero);
        if (shapes[i].index) {
            p->full_rows = 10;
            p->rows_host = malloc(p->rows * sizeof *p->rows_host);
            memcpy(p->rows_host, shapes[i].index, p->rows * sizeof *p->rows_host);
        }
        ASSERT_OK(param_alloc(d, p, zero, shapes[i].teacher, &e));
        ASSERT_OK(d->op->alloc(d, p->full_rows * p->cols * sizeof(float), &p->live, &e));
        if (p->teacher) ASSERT_OK(d->op->alloc(d, p->full_rows * p->cols * sizeof(float), &p->live_teacher, &e));
        free(zero);
        dv *all[] = {p->master, p->m, p->v, p->teacher};
        for (int k = 0; k < 4 && from > 0; k++)
            if (all[k]) fill(d, all[k], n, from * (float)(k + 1));
    }
}

static void unmake(device *d, param_set *ps)
{
    for (size_t i = 0; i < ps->n; i++) {
        d->op->free(d, ps->p[i].live);
        d->op->free(d, ps->p[i].live_teacher);
    }
    param_set_free(d, ps);
}

static void there_and_back(void **state)
{
    (void)state;
    err e = {0};
    device d;
    param_set ps = {0}, back = {0};
    safetensors s;
    const checkpoint_meta meta[] = {{"format", "test"}};
    enum { EXTRA = 300000, ALLOWED_KIB = 4096 };
    ASSERT_OK(device_open_cpu(&d, 1, COMPUTE_F32, &e));
    make(&d, &ps, 0.5f);
    make(&d, &back, 0);
    checkpoint_extra extra = {"center", NULL, EXTRA}, extra_back = extra;
    ASSERT_OK(d.op->alloc(&d, EXTRA * sizeof(float), &extra.data, &e));
    ASSERT_OK(d.op->alloc(&d, EXTRA * sizeof(float), &extra_back.data, &e));
    fill(&d, extra.data, EXTRA, 77);

    bool measured = reset_peak();
    long before = resident_kib("VmRSS");
    ASSERT_OK(checkpoint_write(FILE_NAME, &d, &ps, true, false, &extra, 1, meta, 1, &e));
    ASSERT_OK(safetensors_open(&s, FILE_NAME, &e));
    ASSERT_OK(checkpoint_load(&s, &d, &back, true, &extra_back, 1, &e));
    long most = resident_kib("VmHWM");
    print_message("a checkpoint of %zu KiB took %ld KiB\n", s.map.bytes >> 10, most - before);
#ifndef __SANITIZE_ADDRESS__
    assert_true(measured && s.map.bytes > 60 << 20 && most - before < ALLOWED_KIB);
#else
    (void)measured;
#endif
    for (size_t i = 0; i < back.n; i++) {
        const param *p = &back.p[i];
        const dv *all[] = {p->master, p->m, p->v, p->teacher};
        for (int k = 0; k < 4; k++)
            if (all[k]) check(&d, all[k], p->rows * p->cols, 0.5f * (float)(k + 1));
        assert_int_equal(!p->teacher, !shapes[i].teacher);
    }
    check(&d, extra_back.data, EXTRA, 77);
    safetensors_close(&s);

    back.p[1].rows_host[2] = 8; /* other rows are another model */
    ASSERT_OK(safetensors_open(&s, FILE_NAME, &e));
    assert_int_equal(checkpoint_load(&s, &d, &back, true, &extra_back, 1, &e), ERR_CONFLICT);
    safetensors_close(&s);

    d.op->free(&d, extra.data);
    d.op->free(&d, extra_back.data);
    unmake(&d, &ps);
    unmake(&d, &back);
    device_close(&d);
    unlink(FILE_NAME);
}

/* The weights alone are the teacher's; and a device that has failed leaves the file that was there. */
static void weights_alone(void **state)
{
    (void)state;
    err e = {0};
    device d;
    param_set ps = {0};
    safetensors s;
    ASSERT_OK(device_open_cpu(&d, 1, COMPUTE_F32, &e));
    make(&d, &ps, 0.5f);
    ASSERT_OK(checkpoint_write(FILE_NAME, &d, &ps, false, true, NULL, 0, NULL, 0, &e));
    err_set(&d.sticky, ERR_NUMERIC, __FILE__, __LINE__, "the device failed");
    assert_int_equal(checkpoint_write(FILE_NAME, &d, &ps, false, false, NULL, 0, NULL, 0, &e), ERR_NUMERIC);
    e = (err){0};
    ASSERT_OK(safetensors_open(&s, FILE_NAME, &e));
    assert_int_equal(s.n, SHAPES + 1);
    for (int i = 0; i < SHAPES; i++) {
        const tensor *t = safetensors_find(&s, shapes[i].name);
        assert_non_null(t);
        assert_int_equal(t->count, shapes[i].rows * shapes[i].cols);
        assert_true(((const float *)t->data)[0] == (shapes[i].teacher ? 2 : 0.5f));
    }
    safetensors_close(&s);
    unmake(&d, &ps);
    device_close(&d);
    unlink(FILE_NAME);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(there_and_back), cmocka_unit_test(weights_alone)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
