/* vit_bench.h: a small ViT, a pass of it with its memory, and what comes out: what the tests of whole models share. */
#ifndef RADAPT_TESTS_VIT_BENCH_H
#define RADAPT_TESTS_VIT_BENCH_H
#include "model/vit_impl.h"
#include "tests/model/state_dict.h"

#define HELPER __attribute__((unused)) static

enum { H = 12, W = 20, B = 2 }; /* 3 x 5 patches of 4: an odd count of tokens */

static const dict_spec small = {.names = NAMES_DINOV2,
                                .dim = 32,
                                .depth = 2,
                                .hidden = 72,
                                .patch = 4,
                                .grid = 4,
                                .registers = 1,
                                .class_token = true,
                                .layer_scale = true,
                                .mask_token = true,
                                .pos_front = 1};

HELPER device open_device(compute_type ct)
{
    device d;
    err e = {0};
    ASSERT_OK(device_open_cpu(&d, 2, ct, &e));
    return d;
}

HELPER vit *open_dict(device *d, const dict_spec *s)
{
    vit *m;
    err e = {0};
    dict_write(s, dict_path());
    err_code rc = vit_open(&m, d, &(vit_source){.path = dict_path(), .heads = 2}, &e);
    unlink(dict_path());
    ASSERT_OK(rc);
    return m;
}

#define LORA(layers)                                                                                                   \
    {                                                                                                                  \
        .method = METHOD_LORA, .seed = 1, .rank = 3, .alpha = 5, .targets = layers                                     \
    }

/* A pass with its memory. */
typedef struct {
    vit_pass a;
    dv *memory, *pixels, *mask;
    size_t planned;
} bench;

HELPER void bench_open_again(bench *k, vit *m, size_t images, size_t height, size_t width, vit_keep keep, size_t again)
{
    device *d = vit_device(m);
    arena dry = {0}, real;
    err e = {0};
    *k = (bench){.a.again = again};
    ASSERT_OK(vit_pass_plan(&k->a, &dry, m, images, height, width, keep, &e));
    ASSERT_OK(d->op->alloc(d, dry.used, &k->memory, &e));
    arena_init(&real, k->memory, dry.used);
    ASSERT_OK(vit_pass_plan(&k->a, &real, m, images, height, width, keep, &e));
    assert_int_equal(dry.used, real.used);
    k->planned = dry.used;
    ASSERT_OK(device_reserve(d, vit_pass_work_bytes(m, images, height, width, keep), &e));
    ASSERT_OK(d->op->alloc(d, images * 3 * height * width * sizeof(float), &k->pixels, &e));
    ASSERT_OK(d->op->alloc(d, images * k->a.P, &k->mask, &e));
}

HELPER void bench_open(bench *k, vit *m, size_t images, size_t height, size_t width, vit_keep keep)
{
    bench_open_again(k, m, images, height, width, keep, 0);
}

HELPER void bench_close(bench *k, vit *m)
{
    device *d = vit_device(m);
    d->op->free(d, k->memory);
    d->op->free(d, k->pixels);
    d->op->free(d, k->mask);
    vit_pass_fini(&k->a);
}

/* Noise as pixels, every third patch masked. */
HELPER void bench_fill(bench *k, vit *m, uint64_t seed)
{
    device *d = vit_device(m);
    size_t n = k->a.B * 3 * k->a.height * k->a.width;
    float *x = malloc(n * sizeof *x);
    uint8_t *mask = calloc(k->a.B, k->a.P);
    assert_true(x && mask);
    rng r = rng_at(seed, RNG_TEST, 0, 0);
    for (size_t i = 0; i < n; i++) x[i] = rng_normal(&r);
    for (size_t i = 0; i < k->a.B * k->a.P; i += 3) mask[i] = 1;
    d->op->upload(d, k->pixels, x, n * sizeof *x);
    d->op->upload(d, k->mask, mask, k->a.B * k->a.P);
    free(x);
    free(mask);
}

/* out (B,T,C) as fp32 on the host; the caller frees. */
HELPER float *forward(vit *m, vit_who who, bench *k, const dv *patches, bool masked)
{
    device *d = vit_device(m);
    err e = {0};
    size_t n = k->a.B * k->a.T * (size_t)vit_get_config(m)->dim;
    if (!patches) {
        vit_patches(m, who, &k->a, k->pixels);
        patches = k->a.patches;
    }
    vit_fwd(m, who, &k->a, patches, masked ? k->mask : NULL);
    dv *f32;
    ASSERT_OK(d->op->alloc(d, n * sizeof(float), &f32, &e));
    d->op->to_f32(d, f32, k->a.out, n);
    float *out = malloc(n * sizeof *out);
    assert_non_null(out);
    d->op->download(d, out, f32, n * sizeof *out);
    d->op->free(d, f32);
    ASSERT_OK(device_sync(d, &e));
    return out;
}

/* Low-rank updates begin at zero, where A has no gradient: away from there. */
HELPER void leave_zero(device *d, param_set *ps)
{
    for (size_t i = 0; i < ps->n; i++) {
        param *p = &ps->p[i];
        size_t n = p->rows * p->cols;
        if (!strstr(p->name, "lora_B")) continue;
        float *x = malloc(n * sizeof *x);
        assert_non_null(x);
        rng r = rng_at(12, RNG_TEST, i, 0);
        for (size_t k = 0; k < n; k++) x[k] = 0.2f * rng_normal(&r);
        d->op->upload(d, p->master, x, n * sizeof *x);
        if (p->teacher) d->op->upload(d, p->teacher, x, n * sizeof *x);
        free(x);
    }
    d->op->refresh(d, ps->p, ps->n);
}

#endif
