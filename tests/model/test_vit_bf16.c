/* Inference in bf16 is as far from fp32 as its weights and layers' inputs are, not as the sums of all its blocks: what
 * rounding leaves of the residual stream is carried along. 24 blocks, whole passes and those of wanted rows. */
#include <string.h>

#include "base/arena.h"
#include "model/vit.h"
#include "tests/model/state_dict.h"

enum { SIDE = 32, B = 3, C = 64 };

static float *pixels(size_t n)
{
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    rng r = rng_at(8, RNG_TEST, 0, 0);
    for (size_t i = 0; i < n; i++) x[i] = rng_normal(&r);
    return x;
}

/* Class tokens (B,C). */
static void features(compute_type ct, bool wanted, float *out)
{
    err e = {0};
    device d;
    vit *m;
    vit_source source = {.seed = 4};
    vit_pass a = {.wanted_most = wanted ? B : 0};
    arena dry = {0}, real;
    dv *block, *images, *f32;
    ASSERT_OK(device_open_cpu(&d, 2, ct, &e));
    ASSERT_OK(vit_named_config("dim=64,depth=24,heads=2,patch=8,grid=4", &source.random, &e));
    ASSERT_OK(vit_open(&m, &d, &source, &e));
    ASSERT_OK(vit_pass_plan(&a, &dry, m, B, SIDE, SIDE, VIT_INFER, &e));
    ASSERT_OK(d.op->alloc(&d, dry.used, &block, &e));
    arena_init(&real, block, dry.used);
    ASSERT_OK(vit_pass_plan(&a, &real, m, B, SIDE, SIDE, VIT_INFER, &e));
    ASSERT_OK(device_reserve(&d, vit_pass_work_bytes(m, B, SIDE, SIDE, VIT_INFER), &e));
    size_t n = (size_t)B * 3 * SIDE * SIDE, tokens = B * a.T * C;
    float *x = pixels(n), *all = malloc(tokens * sizeof *all);
    ASSERT_OK(d.op->alloc(&d, n * sizeof *x, &images, &e));
    ASSERT_OK(d.op->alloc(&d, tokens * sizeof *all, &f32, &e));
    d.op->upload(&d, images, x, n * sizeof *x);
    if (wanted) vit_want_classes(m, &a);
    vit_patches(m, VIT_STUDENT, &a, images);
    vit_fwd(m, VIT_STUDENT, &a, a.patches, NULL);
    d.op->to_f32(&d, f32, a.out, wanted ? B * C : tokens);
    d.op->download(&d, all, f32, (wanted ? B * C : tokens) * sizeof *all);
    ASSERT_OK(device_sync(&d, &e));
    for (size_t b = 0; b < B; b++) memcpy(out + b * C, all + b * (wanted ? 1 : a.T) * C, C * sizeof *out);
    dv *held[] = {block, images, f32};
    for (int i = 0; i < 3; i++) d.op->free(&d, held[i]);
    free(x);
    free(all);
    vit_pass_fini(&a);
    vit_close(m);
    device_close(&d);
}

static void stream(void **state)
{
    (void)state;
    float exact[B * C], half[B * C];
    err e = {0};
    device d;
    if (device_open_cpu(&d, 2, COMPUTE_BF16, &e)) {
        print_message("skipped: this processor has no bf16\n");
        skip();
    }
    device_close(&d);
    for (int wanted = 0; wanted < 2; wanted++) {
        double off = 0, size = 0;
        features(COMPUTE_F32, wanted, exact);
        features(COMPUTE_BF16, wanted, half);
        for (size_t i = 0; i < B * C; i++) {
            off += (half[i] - exact[i]) * (half[i] - exact[i]);
            size += exact[i] * exact[i];
        }
        print_message("%s: %.2g of the features away\n", wanted ? "wanted rows" : "all rows", sqrt(off / size));
        if (!(sqrt(off / size) < 9e-3)) /* 1.05e-2 without */
            fail_msg("%g of the features", sqrt(off / size));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(stream)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
