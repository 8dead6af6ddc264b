/* A pass whose last block is finished for wanted rows alone gives what a whole pass gives in those rows, and the same
 * gradients as a whole pass whose other rows have none: for every method, with blocks made again, branches dropped, no
 * class token, one block; forward alone too, and whole passes after it. */
#include "tests/model/state_dict.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

enum { B = 5, SIDE = 32, PATCH = 8, TOKENS = 1 + SIDE / PATCH * (SIDE / PATCH) };

static const char *const shapes[] = {"dim=64,depth=3,heads=2,patch=8,grid=4,layer_scale=1",
                                     "dim=64,depth=1,heads=2,patch=8,grid=4",
                                     "dim=32,depth=2,heads=2,patch=8,grid=4,layer_scale=1,swiglu=1",
                                     "dim=64,depth=3,heads=4,patch=8,grid=4,class_token=0"};
static const peft_method methods[] = {METHOD_APLA, METHOD_FULL, METHOD_LORA, METHOD_BITFIT, METHOD_VPT};

typedef struct {
    const char *shape;
    peft_method method;
    compute_type ct;
    size_t again;
    bool drop;
} row;

typedef struct {
    float *out, *grad; /* (wanted, C), (n) */
    size_t outs, n;
} result;

/* Of an image its class token and up to two patches, in no order; the third image has none. */
static size_t wanted_rows(int32_t *rows, size_t T)
{
    const struct {
        int image, token;
    } tokens[] = {{4, 0}, {0, 0}, {1, 0}, {3, 0}, {0, 5}, {0, 16}, {4, 1}, {1, 7}};
    for (size_t i = 0; i < COUNT(tokens); i++)
        rows[i] = (int32_t)((size_t)tokens[i].image * T + (size_t)tokens[i].token);
    return COUNT(tokens);
}

static void rows_out(device *d, const dv *x, const int32_t *rows, size_t n, size_t C, dv *f32, float *out)
{
    for (size_t i = 0; i < n; i++) {
        d->op->to_f32(d, f32, dv_at(x, (size_t)(rows ? rows[i] : (int32_t)i) * C * d->ct_bytes), C);
        d->op->download(d, out + i * C, f32, C * sizeof *out);
    }
}

static result run(const row *r, bool wanted, vit_keep keep)
{
    device d;
    err e = {0};
    vit *m;
    param_set ps = {0};
    vit_source source = {.seed = 3};
    vit_pass a = {.again = r->again, .wanted_most = wanted ? 11 : 0};
    arena dry = {0}, real;
    dv *memory, *dev_pixels, *f32;
    ASSERT_OK(device_open_cpu(&d, 2, r->ct, &e));
    ASSERT_OK(vit_named_config(r->shape, &source.random, &e));
    ASSERT_OK(vit_open(&m, &d, &source, &e));
    ASSERT_OK(vit_train(m,
                        &(peft_spec){.method = r->method,
                                     .rank = 4,
                                     .alpha = 8,
                                     .targets = PEFT_V | PEFT_PROJ | PEFT_FC1 | PEFT_FC2,
                                     .prompts = 3,
                                     .deep = true},
                        &ps, &e));
    ASSERT_OK(vit_pass_plan(&a, &dry, m, B, SIDE, SIDE, keep, &e));
    ASSERT_OK(d.op->alloc(&d, dry.used, &memory, &e));
    arena_init(&real, memory, dry.used);
    ASSERT_OK(vit_pass_plan(&a, &real, m, B, SIDE, SIDE, keep, &e));
    ASSERT_OK(device_reserve(&d, vit_pass_work_bytes(m, B, SIDE, SIDE, keep), &e));
    size_t C = (size_t)vit_get_config(m)->dim, pixels = (size_t)B * 3 * SIDE * SIDE,
           L = (size_t)vit_get_config(m)->depth;
    float *host = malloc(pixels * sizeof *host), drop[2 * 3 * B];
    ASSERT_OK(d.op->alloc(&d, pixels * sizeof *host, &f32, &e));
    ASSERT_OK(d.op->alloc(&d, pixels * sizeof *host, &dev_pixels, &e));
    for (size_t i = 0; i < pixels; i++) host[i] = sinf(0.7f * (float)i) + 0.001f * (float)(i % 977);
    d.op->upload(&d, dev_pixels, host, pixels * sizeof *host);
    assert_true(2 * L * B <= COUNT(drop));
    if (r->drop) {
        vit_drop_draw(m, 0.6f, 5, 1, 0, B, drop);
        a.drop = drop;
    }
    int32_t rows[16];
    size_t n = wanted_rows(rows, a.T);
    if (wanted) vit_want(m, &a, rows, n);
    vit_patches(m, VIT_STUDENT, &a, dev_pixels);
    vit_fwd(m, VIT_STUDENT, &a, a.patches, NULL);
    result out = {.outs = n * C, .out = malloc(n * C * sizeof(float))};
    rows_out(&d, a.out, wanted ? NULL : rows, n, C, f32, out.out);
    if (keep == VIT_INFER && wanted) { /* the same pass may be whole, and of wanted rows again */
        float *again = malloc(n * C * sizeof *again);
        vit_want(m, &a, NULL, 0);
        vit_fwd(m, VIT_STUDENT, &a, a.patches, NULL);
        rows_out(&d, a.out, rows, n, C, f32, again);
        for (size_t i = 0; i < n * C; i++) assert_true(fabsf(again[i] - out.out[i]) < 1e-2f);
        free(again);
    }
    if (keep == VIT_GRAD) {
        rng g = rng_at(6, RNG_TEST, 0, 0);
        d.op->zero(&d, a.dout, (wanted ? n : B * a.T) * C * d.ct_bytes);
        for (size_t i = 0; i < n; i++) {
            for (size_t c = 0; c < C; c++) host[c] = rng_normal(&g);
            d.op->upload(&d, f32, host, C * sizeof *host);
            d.op->to_ct(&d, dv_at(a.dout, (wanted ? i : (size_t)rows[i]) * C * d.ct_bytes), f32, C);
        }
        vit_bwd(m, &a, dev_pixels, NULL);
        for (size_t p = 0; p < ps.n; p++) out.n += ps.p[p].rows * ps.p[p].cols;
        out.grad = malloc(out.n * sizeof *out.grad);
        for (size_t p = 0, at = 0; p < ps.n; at += ps.p[p].rows * ps.p[p].cols, p++)
            d.op->download(&d, out.grad + at, ps.p[p].grad, ps.p[p].rows * ps.p[p].cols * sizeof *out.grad);
    }
    ASSERT_OK(device_sync(&d, &e));
    free(host);
    dv *all[] = {memory, dev_pixels, f32};
    for (size_t i = 0; i < COUNT(all); i++) d.op->free(&d, all[i]);
    vit_pass_fini(&a);
    param_set_free(&d, &ps);
    vit_close(m);
    device_close(&d);
    return out;
}

static double distance(const float *a, const float *b, size_t n)
{
    double error = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        error += pow((double)a[i] - b[i], 2);
        size += pow(b[i], 2);
    }
    return sqrt(error / fmax(size, 1e-30));
}

static void check(const row *r)
{
    for (int keep = VIT_INFER; keep <= VIT_GRAD; keep++) {
        result some = run(r, true, (vit_keep)keep), all = run(r, false, (vit_keep)keep);
        double out = distance(some.out, all.out, all.outs), grad = distance(some.grad, all.grad, all.n);
        double bound = r->ct == COMPUTE_F32 ? 2e-6 : 8e-3;
        print_message("%s %s %s again %zu%s %s: out %.1e, gradients %.1e\n", r->shape, peft_name(r->method),
                      r->ct == COMPUTE_F32 ? "fp32" : "bf16", r->again, r->drop ? " drop" : "",
                      keep == VIT_GRAD ? "grad" : "infer", out, grad);
        assert_true(all.n == some.n && out < bound && grad < bound);
        free(some.out);
        free(all.out);
        free(some.grad);
        free(all.grad);
    }
}

static void against_whole(void **state)
{
    (void)state;
    for (size_t s = 0; s < COUNT(shapes); s++)
        for (size_t k = 0; k < COUNT(methods); k++)
            for (int variant = 0; variant < 4; variant++) {
                bool slim = s > 0 && variant > 1;
                if (slim) continue;
                check(&(row){shapes[s], methods[k], variant % 2 ? COMPUTE_AUTO : COMPUTE_F32, variant > 1 ? 100 : 0,
                             variant > 1});
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(against_whole)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
