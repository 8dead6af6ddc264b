/* What a pass keeps for backward, and in what: gradients of the projections with GELU' in 10 bits against those with
 * GELU's input kept whole, and what either costs. */
#include "tests/model/state_dict.h"

enum { B = 2 };

static device open_device(compute_type ct)
{
    device d;
    err e = {0};
    ASSERT_OK(device_open_cpu(&d, 2, ct, &e));
    return d;
}

static bool has_bf16(void)
{
    device d;
    err e = {0};
    if (device_open_cpu(&d, 1, COMPUTE_BF16, &e)) return false;
    device_close(&d);
    return true;
}

/* Gradients of all params after one pass, one after the other, and the pass's planned bytes. */
typedef struct {
    float *out, *grad; /* (outs), (n) */
    size_t *size;      /* (params) values of each */
    size_t params, n, outs, planned, depth;
} result;

static void result_free(result *r)
{
    free(r->out);
    free(r->grad);
    free(r->size);
}

/* A pass over smooth images with one bright spot each, loss = sum(out * weights). */
static result run_pass(const vit_source *source, size_t side, compute_type ct, peft_method method, size_t again,
                       bool exact)
{
    device d = open_device(ct);
    err e = {0};
    vit *m;
    param_set ps = {0};
    vit_pass a = {.exact = exact, .again = again};
    arena dry = {0}, real;
    dv *memory, *dev_pixels, *f32;
    ASSERT_OK(vit_open(&m, &d, source, &e));
    ASSERT_OK(vit_train(m,
                        &(peft_spec){.method = method,
                                     .rank = 4,
                                     .alpha = 8,
                                     .targets = PEFT_V | PEFT_FC1 | PEFT_FC2,
                                     .prompts = 3,
                                     .deep = true},
                        &ps, &e));
    ASSERT_OK(vit_pass_plan(&a, &dry, m, B, side, side, VIT_GRAD, &e));
    ASSERT_OK(d.op->alloc(&d, dry.used, &memory, &e));
    arena_init(&real, memory, dry.used);
    ASSERT_OK(vit_pass_plan(&a, &real, m, B, side, side, VIT_GRAD, &e));
    ASSERT_OK(device_reserve(&d, vit_pass_work_bytes(m, B, side, side, VIT_GRAD), &e));
    size_t pixels = B * 3 * side * side, outs = B * a.T * (size_t)vit_get_config(m)->dim;
    size_t most = pixels > outs ? pixels : outs;
    float *host = malloc(most * sizeof *host);
    ASSERT_OK(d.op->alloc(&d, most * sizeof *host, &f32, &e));
    ASSERT_OK(d.op->alloc(&d, pixels * sizeof *host, &dev_pixels, &e));
    for (size_t i = 0; i < pixels; i++) {
        size_t x = i % side, y = i / side % side;
        host[i] = sinf(0.05f * (float)x + (float)(i / (side * side))) + (x / 8 == 3 && y / 8 == 4 ? 2.0f : 0.0f);
    }
    d.op->upload(&d, dev_pixels, host, pixels * sizeof *host);
    vit_patches(m, VIT_STUDENT, &a, dev_pixels);
    vit_fwd(m, VIT_STUDENT, &a, a.patches, NULL);
    result r = {.out = malloc(outs * sizeof(float)),
                .outs = outs,
                .planned = dry.used,
                .depth = (size_t)vit_get_config(m)->depth};
    d.op->to_f32(&d, f32, a.out, outs);
    d.op->download(&d, r.out, f32, outs * sizeof *host);
    rng g = rng_at(6, RNG_TEST, 0, 0);
    for (size_t i = 0; i < outs; i++) host[i] = rng_normal(&g);
    d.op->upload(&d, f32, host, outs * sizeof *host);
    d.op->to_ct(&d, a.dout, f32, outs);
    vit_bwd(m, &a, dev_pixels, NULL);
    ASSERT_OK(device_sync(&d, &e));
    r.params = ps.n;
    r.size = calloc(ps.n, sizeof *r.size);
    for (size_t p = 0; p < ps.n; p++) r.n += r.size[p] = ps.p[p].rows * ps.p[p].cols;
    r.grad = malloc(r.n * sizeof *r.grad);
    for (size_t p = 0, at = 0; p < ps.n; at += r.size[p], p++)
        d.op->download(&d, r.grad + at, ps.p[p].grad, r.size[p] * sizeof *r.grad);
    free(host);
    dv *all[] = {memory, dev_pixels, f32};
    for (size_t i = 0; i < 3; i++) d.op->free(&d, all[i]);
    vit_pass_fini(&a);
    param_set_free(&d, &ps);
    vit_close(m);
    device_close(&d);
    return r;
}

/* Largest over the params of |a - b| / |b|. */
static double worst_distance(const result *a, const result *b)
{
    double worst = 0;
    for (size_t p = 0, at = 0; p < a->params; at += a->size[p], p++) {
        double error = 0, size = 0;
        for (size_t i = at; i < at + a->size[p]; i++) {
            error += pow((double)a->grad[i] - b->grad[i], 2);
            size += pow(b->grad[i], 2);
        }
        worst = fmax(worst, sqrt(error / size));
    }
    return worst;
}

static const struct {
    const char *what, *path, *shape;
    size_t side;
} models[] = {{"random", NULL, "dim=64,depth=4,heads=2,patch=8,grid=8", 64},
              {"ViT-Ti/16", SHARED_DIR "/data/weights/vit_tiny_patch16_224.safetensors", NULL, 224},
              {"SwiGLU", NULL, "dim=64,depth=4,heads=2,patch=8,grid=8,layer_scale=1,swiglu=1", 64}};

static bool make_source(size_t i, vit_source *s)
{
    err e = {0};
    *s = (vit_source){.path = models[i].path, .seed = 3};
    if (!s->path) ASSERT_OK(vit_named_config(models[i].shape, &s->random, &e));
    return !s->path || access(s->path, R_OK) == 0;
}

/* The forward pass is the same to the bit; the gradients are no further from fp32's than rounding to bf16 makes them
 * anyway; and less is kept. */
static void slope_in_10_bits(void **state)
{
    (void)state;
    if (!has_bf16()) skip();
    for (size_t i = 0; i < 2; i++) { /* with GELU */
        vit_source s;
        if (!make_source(i, &s)) continue;
        result f32 = run_pass(&s, models[i].side, COMPUTE_F32, METHOD_APLA, 0, false);
        result whole = run_pass(&s, models[i].side, COMPUTE_BF16, METHOD_APLA, 0, true);
        result bits = run_pass(&s, models[i].side, COMPUTE_BF16, METHOD_APLA, 0, false);
        assert_memory_equal(whole.out, bits.out, bits.outs * sizeof *bits.out);
        double apart = worst_distance(&bits, &whole), of_whole = worst_distance(&whole, &f32),
               of_bits = worst_distance(&bits, &f32);
        print_message("%-10s 10 bits from whole %.2e; from fp32: whole %.2e, 10 bits %.2e; bytes %zu to %zu\n",
                      models[i].what, apart, of_whole, of_bits, whole.planned, bits.planned);
        assert_true(bits.planned < whole.planned);
        assert_true(apart > 0 && (i || apart < 0.005)); /* of 12 blocks, bf16 alone makes far more */
        assert_true(of_bits < 1.1 * of_whole + 1e-3);
        result_free(&f32);
        result_free(&whole);
        result_free(&bits);
    }
}

/* Made again, everything has the bits it had, whatever the number of blocks; each of them takes less memory, and where
 * it is all of them a pass holds little more than its blocks' inputs. */
static void made_again(void **state)
{
    (void)state;
    static const struct {
        peft_method method;
        compute_type ct;
        size_t model;
    } rows[] = {{METHOD_APLA, COMPUTE_F32, 0},    {METHOD_APLA, COMPUTE_AUTO, 0}, {METHOD_LORA, COMPUTE_AUTO, 0},
                {METHOD_BITFIT, COMPUTE_AUTO, 0}, {METHOD_VPT, COMPUTE_AUTO, 0},  {METHOD_VPT, COMPUTE_F32, 0},
                {METHOD_FULL, COMPUTE_F32, 0},    {METHOD_FULL, COMPUTE_AUTO, 0}, {METHOD_APLA, COMPUTE_AUTO, 1},
                {METHOD_APLA, COMPUTE_AUTO, 2},   {METHOD_LORA, COMPUTE_AUTO, 2}, {METHOD_FULL, COMPUTE_AUTO, 2}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        vit_source s;
        if (!make_source(rows[i].model, &s)) continue;
        size_t side = models[rows[i].model].side;
        result kept = run_pass(&s, side, rows[i].ct, rows[i].method, 0, false);
        size_t most = kept.depth - 1, planned = kept.planned;
        const size_t blocks[] = {1, most, VIT_AGAIN_ALL};
        for (size_t k = 0; k < sizeof blocks / sizeof *blocks; k++) {
            if (k && blocks[k] == blocks[k - 1]) continue;
            result again = run_pass(&s, side, rows[i].ct, rows[i].method, blocks[k], false);
            print_message("row %zu, %zu blocks: bytes %zu to %zu\n", i, blocks[k], kept.planned, again.planned);
            assert_memory_equal(kept.out, again.out, kept.outs * sizeof *kept.out);
            assert_memory_equal(kept.grad, again.grad, kept.n * sizeof *kept.grad);
            if (blocks[k] <= most)
                assert_true(again.planned < planned);
            else
                assert_true(again.planned == planned && planned < kept.planned * 3 / 4);
            planned = again.planned;
            result_free(&again);
        }
        result_free(&kept);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(slope_in_10_bits), cmocka_unit_test(made_again)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
