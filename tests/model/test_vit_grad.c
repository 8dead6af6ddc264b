/* Gradients of a ViT against finite differences in every method, in bf16 against fp32's, and in tiles of a batch. */
#include "tests/model/vit_bench.h"

/* Loss = sum(out * weights); along a random direction of every param against finite differences. */

static double loss_of(vit *m, bench *k, const float *weights, bool masked)
{
    size_t n = k->a.B * k->a.T * (size_t)vit_get_config(m)->dim;
    float *out = forward(m, VIT_STUDENT, k, NULL, masked);
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)out[i] * weights[i];
    free(out);
    return sum;
}

static void set_master(device *d, param_set *ps, param *p, const float *values)
{
    d->op->upload(d, p->master, values, p->rows * p->cols * sizeof *values);
    d->op->refresh(d, ps->p, ps->n);
}

static void check_param(vit *m, param_set *ps, param *p, bench *k, const float *weights, bool masked)
{
    device *d = vit_device(m);
    size_t n = p->rows * p->cols;
    float *at = malloc(n * sizeof *at), *moved = malloc(n * sizeof *moved), *grad = malloc(n * sizeof *grad);
    float *way = malloc(n * sizeof *way);
    assert_true(at && moved && grad && way);
    d->op->download(d, at, p->master, n * sizeof *at);
    d->op->download(d, grad, p->grad, n * sizeof *grad);
    rng r = rng_at(9, RNG_TEST, n, 1);
    double along = 0, size = 0;
    for (size_t i = 0; i < n; i++) size += (double)grad[i] * grad[i];
    /* Half a random direction, half the gradient's own, so that the derivative is not small by chance. */
    for (size_t i = 0; i < n; i++) {
        way[i] = rng_normal(&r) / sqrtf((float)n) + (size > 0 ? grad[i] / (float)sqrt(size) : 0);
        along += (double)grad[i] * way[i];
    }
    double h = 4e-3, sides[2];
    for (int s = 0; s < 2; s++) {
        for (size_t i = 0; i < n; i++) moved[i] = at[i] + (float)(s ? h : -h) * way[i];
        set_master(d, ps, p, moved);
        sides[s] = loss_of(m, k, weights, masked);
    }
    set_master(d, ps, p, at);
    double measured = (sides[1] - sides[0]) / (2 * h), off = fabs(measured - along);
    if (off > 0.01 * fabs(along) + 0.01) fail_msg("%s: gradient %g, finite difference %g", p->name, along, measured);
    free(at);
    free(moved);
    free(grad);
    free(way);
}

static void gradients(void **state)
{
    (void)state;
    dict_spec plain = small, patches_only = small, matching = small, gated = small;
    plain.names = NAMES_TIMM; /* antialiased positions, no LayerScale, no mask token in the file, no registers */
    plain.layer_scale = plain.mask_token = false;
    plain.registers = 0;
    patches_only.class_token = false; /* mean of patches, one register, no bias in qkv */
    patches_only.pos_front = 0;
    patches_only.no_qkv_bias = true;
    matching.grid = 3;
    gated.swiglu = true;
    gated.hidden = 45;
    const struct {
        const char *what;
        const dict_spec *dict;
        peft_spec spec;
        size_t width;
        bool masked;
    } rows[] = {
        {"apla", &small, {.method = METHOD_APLA, .seed = 1}, W, true},
        {"apla, rows", &small, {.method = METHOD_APLA, .rows = 7, .seed = 1}, W, true},
        {"apla, one row", &plain, {.method = METHOD_APLA, .rows = 1, .seed = 1}, W, false},
        {"full", &small, {.method = METHOD_FULL, .seed = 1}, W, true},
        {"full, with a teacher", &small, {.method = METHOD_FULL, .seed = 1, .teacher = true}, W, true},
        {"full, timm", &plain, {.method = METHOD_FULL, .seed = 1}, W, true},
        {"full, patches only", &patches_only, {.method = METHOD_FULL, .seed = 1}, W, false},
        {"full, the grid matches", &matching, {.method = METHOD_FULL, .seed = 1}, 12, false},
        {"lora of everything", &small, LORA(PEFT_QKV | PEFT_PROJ | PEFT_FC1 | PEFT_FC2), W, true},
        {"lora of thirds", &small, LORA(PEFT_Q | PEFT_K | PEFT_V), W, true},
        {"lora as usual, timm", &plain, LORA(PEFT_Q | PEFT_V), W, false},
        {"lora of a projection", &plain, LORA(PEFT_PROJ), W, false},
        {"lora of an MLP", &patches_only, LORA(PEFT_FC1 | PEFT_FC2), W, false},
        {"bitfit", &small, {.method = METHOD_BITFIT, .teacher = true}, W, true},
        {"bitfit, patches only", &patches_only, {.method = METHOD_BITFIT}, W, false},
        {"vpt, shallow", &small, {.method = METHOD_VPT, .prompts = 3, .seed = 2}, W, true},
        {"vpt, deep", &small, {.method = METHOD_VPT, .prompts = 3, .seed = 2, .deep = true}, W, true},
        {"vpt, deep, patches only", &patches_only, {.method = METHOD_VPT, .prompts = 1, .deep = true}, W, false},
        {"apla, swiglu", &gated, {.method = METHOD_APLA, .rows = 7, .seed = 1}, W, true},
        {"full, swiglu", &gated, {.method = METHOD_FULL, .seed = 1, .teacher = true}, W, true},
        {"lora, swiglu", &gated, LORA(PEFT_QKV | PEFT_PROJ | PEFT_FC1 | PEFT_FC2), W, true},
        {"lora of a gated MLP alone", &gated, LORA(PEFT_FC1), W, false},
        {"bitfit, swiglu", &gated, {.method = METHOD_BITFIT}, W, true},
        {"vpt, swiglu", &gated, {.method = METHOD_VPT, .prompts = 3, .deep = true}, W, true}};
    static const float drop[2 * 2 * B] = {0, 2, 1.5f, 1, 1, 0.5f, 3, 0}; /* (depth, 2, B) */
    for (size_t run = 0; run < 2 * (sizeof rows / sizeof *rows); run++) {
        size_t i = run / 2;
        bool dropped = run % 2;
        device d = open_device(COMPUTE_F32);
        vit *m = open_dict(&d, rows[i].dict);
        param_set ps = {0};
        err e = {0};
        ASSERT_OK(vit_train(m, &rows[i].spec, &ps, &e));
        leave_zero(&d, &ps);
        bench k;
        bench_open(&k, m, B, H, rows[i].width, VIT_GRAD);
        bench_fill(&k, m, 5);
        if (dropped) k.a.drop = drop;
        size_t n = B * k.a.T * 32;
        float *weights = malloc(n * sizeof *weights);
        rng r = rng_at(6, RNG_TEST, 0, 0);
        for (size_t w = 0; w < n; w++) weights[w] = rng_normal(&r);
        loss_of(m, &k, weights, rows[i].masked);
        d.op->upload(&d, k.a.dout, weights, n * sizeof *weights);
        vit_bwd(m, &k.a, k.pixels, rows[i].masked ? k.mask : NULL);
        ASSERT_OK(device_sync(&d, &e));
        for (size_t p = 0; p < ps.n; p++) {
            if (!rows[i].masked && !strcmp(ps.p[p].name, "mask_token")) continue;
            check_param(m, &ps, &ps.p[p], &k, weights, rows[i].masked);
        }
        print_message("%s%s: %zu params\n", rows[i].what, dropped ? ", dropped" : "", ps.n);

        /* Gradients of parameters accumulate. */
        param *last = &ps.p[ps.n - 1];
        size_t count = last->rows * last->cols;
        float *once = malloc(count * sizeof *once), *twice = malloc(count * sizeof *twice);
        assert_true(once && twice);
        d.op->download(&d, once, last->grad, count * sizeof *once);
        loss_of(m, &k, weights, rows[i].masked);
        d.op->upload(&d, k.a.dout, weights, n * sizeof *weights);
        vit_bwd(m, &k.a, k.pixels, rows[i].masked ? k.mask : NULL);
        d.op->download(&d, twice, last->grad, count * sizeof *twice);
        for (size_t v = 0; v < count; v++) once[v] *= 2;
        assert_true(worst_ratio(twice, once, count) < 1e-4);
        free(once);
        free(twice);
        free(weights);
        bench_close(&k, m);
        param_set_free(&d, &ps);
        vit_close(m);
        device_close(&d);
    }
}

/* Output and gradients of a batch on so many threads: the tiles, and which thread takes which, are not to be seen. */
static size_t tiled(int threads, size_t images, vit_keep keep, size_t again, bool dropped, float *out, float *grad)
{
    device d;
    err e = {0};
    ASSERT_OK(device_open_cpu(&d, threads, COMPUTE_F32, &e));
    vit *m = open_dict(&d, &small);
    param_set ps = {0};
    ASSERT_OK(vit_train(m, &(peft_spec){.method = METHOD_APLA, .seed = 1}, &ps, &e));
    bench k;
    bench_open_again(&k, m, images, H, W, keep, again);
    bench_fill(&k, m, 5);
    float *drop = malloc(2 * 2 * images * sizeof *drop);
    assert_non_null(drop);
    vit_drop_draw(m, 0.5f, 3, 4, 0, images, drop);
    if (dropped) k.a.drop = drop;
    size_t n = images * k.a.T * 32;
    float *y = forward(m, VIT_STUDENT, &k, NULL, true);
    memcpy(out, y, n * sizeof *y);
    if (keep != VIT_INFER) {
        d.op->upload(&d, k.a.dout, y, n * sizeof *y);
        vit_bwd(m, &k.a, NULL, k.mask);
        for (size_t i = 0; i < ps.n; i++) {
            d.op->download(&d, grad, ps.p[i].grad, ps.p[i].rows * ps.p[i].cols * sizeof *grad);
            grad += ps.p[i].rows * ps.p[i].cols;
        }
    }
    ASSERT_OK(device_sync(&d, &e));
    free(y);
    free(drop);
    bench_close(&k, m);
    param_set_free(&d, &ps);
    vit_close(m);
    device_close(&d);
    return n;
}

static void tiles_are_not_seen(void **state)
{
    (void)state;
    enum { MOST = 53, GRADS = 2 * (32 * 32 + 32) };
    static const struct {
        int threads;
        size_t images;
    } table[] = {{1, 1}, {1, 5}, {2, 3}, {2, MOST}, {3, 7}, {4, MOST}, {4, 5}, {7, MOST}};
    size_t most = MOST * 17 * 32, n;
    float *all = malloc(most * sizeof *all), *out = malloc(most * sizeof *out);
    for (size_t run = 0; run < 2 * (sizeof table / sizeof *table); run++) {
        size_t i = run / 2;
        bool dropped = run % 2;
        float expected[GRADS], grad[GRADS];
        n = tiled(1, table[i].images, VIT_GRAD, 0, dropped, all, expected);
        assert_int_equal(tiled(table[i].threads, table[i].images, VIT_GRAD, 0, dropped, out, grad), n);
        assert_true(worst_ratio(out, all, n) < 1e-5);
        assert_true(worst_ratio(grad, expected, GRADS) < 1e-5);
        tiled(table[i].threads, table[i].images, VIT_INFER, 0, dropped, out, NULL);
        assert_true(worst_ratio(out, all, n) < 1e-5);
        tiled(1, table[i].images, VIT_GRAD, VIT_AGAIN_ALL, dropped, out, grad);
        assert_memory_equal(out, all, n * sizeof *all);
        assert_memory_equal(grad, expected, sizeof expected);
    }
    free(all);
    free(out);
}

/* In bf16 the gradients point where fp32's do. */
static void gradients_bf16(void **state)
{
    (void)state;
    float *grads[2] = {0};
    size_t total = 0;
    for (int i = 0; i < 2; i++) {
        device d = open_device(i ? COMPUTE_AUTO : COMPUTE_F32);
        if (i && d.ct != COMPUTE_BF16) {
            print_message("skipped: this processor has no bf16\n");
            device_close(&d);
            free(grads[0]);
            return;
        }
        vit *m = open_dict(&d, &small);
        param_set ps = {0};
        err e = {0};
        ASSERT_OK(vit_train(m, &(peft_spec){.method = METHOD_FULL, .seed = 1}, &ps, &e));
        bench k;
        bench_open(&k, m, B, H, W, VIT_GRAD);
        bench_fill(&k, m, 5);
        size_t n = B * k.a.T * 32;
        float *weights = malloc(n * sizeof *weights);
        dv *f32;
        rng r = rng_at(6, RNG_TEST, 0, 0);
        for (size_t w = 0; w < n; w++) weights[w] = rng_normal(&r);
        ASSERT_OK(d.op->alloc(&d, n * sizeof *weights, &f32, &e));
        d.op->upload(&d, f32, weights, n * sizeof *weights);
        free(forward(m, VIT_STUDENT, &k, NULL, true));
        d.op->to_ct(&d, k.a.dout, f32, n);
        vit_bwd(m, &k.a, k.pixels, k.mask);
        ASSERT_OK(device_sync(&d, &e));
        total = vit_backbone_params(m);
        grads[i] = malloc(total * sizeof(float));
        size_t at = 0;
        for (size_t p = 0; p < ps.n; at += ps.p[p].rows * ps.p[p].cols, p++)
            d.op->download(&d, grads[i] + at, ps.p[p].grad, ps.p[p].rows * ps.p[p].cols * sizeof(float));
        assert_int_equal(at, total);
        if (i) { /* each param: the error's length against the gradient's */
            at = 0;
            for (size_t p = 0; p < ps.n; at += ps.p[p].rows * ps.p[p].cols, p++) {
                double error = 0, size = 0;
                for (size_t v = at; v < at + ps.p[p].rows * ps.p[p].cols; v++) {
                    error += pow((double)grads[1][v] - grads[0][v], 2);
                    size += pow(grads[0][v], 2);
                }
                if (error > 0.04 * 0.04 * size)
                    fail_msg("%s: bf16 is %.3f of the gradient away", ps.p[p].name, sqrt(error / size));
            }
        }
        d.op->free(&d, f32);
        free(weights);
        bench_close(&k, m);
        param_set_free(&d, &ps);
        vit_close(m);
        device_close(&d);
    }
    free(grads[0]);
    free(grads[1]);
}
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients),
        cmocka_unit_test(gradients_bf16),
        cmocka_unit_test(tiles_are_not_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
