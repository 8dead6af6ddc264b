/* Features of a tiny random model: the same whatever the batch size, order and neighbours; errors are errors. */
#include "adapt/features.h"
#include "adapt/probe.h"
#include "base/stop.h"
#include "tests/adapt/synthetic.h"

enum { FRAMES = 9 };

typedef struct {
    synthetic s;
    cohort c;
    device d;
    vit *m;
    size_t dim;
} world;

static int make(void **state)
{
    err e = {0};
    world *w = calloc(1, sizeof *w);
    vit_source source = {.seed = 3};
    synthetic_open(&w->s);
    for (int p = 0; p < FRAMES - 2; p++) synthetic_image(&w->s, p, 0, 0, 0, 1, 20 + p, 31 - p, p % 2);
    synthetic_image(&w->s, 90, 0, 0, 0, 2, 64, 16, true);
    synthetic_seal(&w->s);
    ASSERT_OK(cohort_open(&w->c, w->s.catalogue, w->s.work, NULL, &(split_options){0.15f, 0.2f, 1}, &e));
    ASSERT_OK(device_open_cpu(&w->d, 2, COMPUTE_F32, &e));
    ASSERT_OK(vit_named_config("dim=32,depth=2,heads=2,patch=8,grid=4", &source.random, &e));
    ASSERT_OK(vit_open(&w->m, &w->d, &source, &e));
    w->dim = 32;
    *state = w;
    return 0;
}

static int unmake(void **state)
{
    world *w = *state;
    vit_close(w->m);
    device_close(&w->d);
    cohort_close(&w->c);
    synthetic_close(&w->s);
    free(w);
    return 0;
}

static void test_same(void **state)
{
    world *w = *state;
    err e = {0};
    float all[FRAMES * 32], other[FRAMES * 32];
    uint32_t index[FRAMES];
    for (uint32_t i = 0; i < FRAMES; i++) index[i] = i;
    view_options v = {.size = 32, .share = 0.875f, .batch = FRAMES};
    assert_int_equal(w->c.n_frames, FRAMES);
    ASSERT_OK(features_extract(w->m, VIT_STUDENT, &w->c, index, FRAMES, &v, NULL, all, &e));
    double norm = 0, apart = 0;
    for (size_t j = 0; j < w->dim; j++) {
        norm += all[j] * all[j];
        apart += pow(all[j] - all[w->dim + j], 2);
    }
    assert_true(norm > 1e-3 && apart > 1e-6);
    static const int batches[] = {1, 2, 4, 5, 0};
    for (size_t t = 0; t < sizeof batches / sizeof *batches; t++) {
        progress p;
        progress_quiet(1);
        progress_start(&p, "test", "images", FRAMES);
        v.batch = batches[t];
        v.shown = &p;
        ASSERT_OK(features_extract(w->m, VIT_STUDENT, &w->c, index, FRAMES, &v, NULL, other, &e));
        assert_int_equal(p.done, FRAMES);
        progress_end(&p);
        for (size_t i = 0; i < FRAMES * w->dim; i++)
            if (!(fabsf(all[i] - other[i]) < 1e-4f)) fail_msg("batch %d: value %zu differs", batches[t], i);
    }
    static const uint32_t some[] = {7, 2, 2};
    v.shown = NULL;
    ASSERT_OK(features_extract(w->m, VIT_STUDENT, &w->c, some, 3, &v, NULL, other, &e));
    for (size_t i = 0; i < 3; i++)
        for (size_t j = 0; j < w->dim; j++)
            assert_true(fabsf(other[i * w->dim + j] - all[some[i] * w->dim + j]) < 1e-4f);
    ASSERT_OK(features_extract(w->m, VIT_STUDENT, &w->c, NULL, 0, &v, NULL, NULL, &e));
}

static void test_errors(void **state)
{
    world *w = *state;
    float out[FRAMES * 32];
    static const uint32_t index[] = {0, 1, 2};
    static const struct {
        int size;
        float share;
        err_code code;
    } table[] = {{33, 1, ERR_SHAPE}, {0, 1, ERR_USAGE},  {100000, 1, ERR_USAGE},
                 {32, 0, ERR_USAGE}, {32, 5, ERR_USAGE}, {32, NAN, ERR_USAGE}};
    for (size_t t = 0; t < sizeof table / sizeof *table; t++) {
        err e = {0};
        view_options v = {.size = table[t].size, .share = table[t].share};
        assert_int_equal(features_extract(w->m, VIT_STUDENT, &w->c, index, 3, &v, NULL, out, &e), table[t].code);
        print_message("%s\n", e.msg);
    }
    err e = {0};
    stop_request();
    err_code rc = features_extract(w->m, VIT_STUDENT, &w->c, index, 3, &(view_options){.size = 32, .share = 0.875f},
                                   NULL, out, &e);
    stop_clear();
    assert_int_equal(rc, ERR_INTERRUPTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same), cmocka_unit_test(test_errors)};
    return cmocka_run_group_tests(tests, make, unmake);
}
