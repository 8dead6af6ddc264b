/* Parameter-efficient methods against PyTorch in double precision (tests/golden/make_peft.py): output, loss and the
 * gradient of everything that trains, in fp32 and bf16. And the spec as text. */
#include "tests/model/state_dict.h"

/* --- the spec */

static void targets(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        unsigned bits; /* 0: refused */
        const char *back;
    } rows[] = {{"q,v", PEFT_Q | PEFT_V, "q,v"},
                {"fc2,qkv,proj,fc1", PEFT_QKV | PEFT_PROJ | PEFT_FC1 | PEFT_FC2, "qkv,proj,fc1,fc2"},
                {"k", PEFT_K, "k"},
                {"v,v", PEFT_V, "v"},
                {"q,k,v,proj,fc1,fc2", 126, "q,k,v,proj,fc1,fc2"},
                {"", 0, NULL},
                {"q,", 0, NULL},
                {",q", 0, NULL},
                {"qk", 0, NULL},
                {"q, v", 0, NULL},
                {"qkv,q", 0, NULL}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        err e = {0};
        unsigned bits = 0;
        char back[PEFT_TARGETS_TEXT];
        err_code rc = peft_targets(rows[i].text, &bits, &e);
        if (rc != (rows[i].bits ? ERR_OK : ERR_USAGE) || bits != rows[i].bits) fail_msg("'%s'", rows[i].text);
        if (!rows[i].bits) continue;
        peft_targets_text(bits, back);
        assert_string_equal(back, rows[i].back);
    }
}

static void specs(void **state)
{
    (void)state;
    const peft_spec lora = {.method = METHOD_LORA, .rank = 8, .alpha = 16, .targets = PEFT_Q};
    const struct {
        peft_spec spec;
        bool good, as_lora;
    } rows[] = {{lora, true, true},
                {{.method = METHOD_LORA, .rank = 8, .alpha = 16, .targets = PEFT_Q, .seed = 5}, true, true},
                {{.method = METHOD_LORA, .rank = 4, .alpha = 16, .targets = PEFT_Q}, true, false},
                {{.method = METHOD_LORA, .rank = 8, .alpha = 8, .targets = PEFT_Q}, true, false},
                {{.method = METHOD_LORA, .rank = 8, .alpha = 16, .targets = PEFT_K}, true, false},
                {{.method = METHOD_LORA, .rank = 0, .alpha = 16, .targets = PEFT_Q}, false, false},
                {{.method = METHOD_LORA, .rank = PEFT_RANK_MAX + 1, .alpha = 1, .targets = PEFT_Q}, false, false},
                {{.method = METHOD_LORA, .rank = 8, .alpha = 0, .targets = PEFT_Q}, false, false},
                {{.method = METHOD_LORA, .rank = 8, .alpha = NAN, .targets = PEFT_Q}, false, false},
                {{.method = METHOD_LORA, .rank = 8, .alpha = 16}, false, false},
                {{.method = METHOD_LORA, .rank = 8, .alpha = 16, .targets = PEFT_QKV | PEFT_V}, false, false},
                {{.method = METHOD_VPT, .prompts = 0}, false, false},
                {{.method = METHOD_VPT, .prompts = PEFT_PROMPTS_MAX + 1}, false, false},
                {{.method = METHOD_VPT, .prompts = 10, .deep = true}, true, false},
                {{.method = METHOD_APLA, .rows = -1}, false, false},
                {{.method = METHOD_BITFIT}, true, false},
                {{.method = METHOD_LINEAR}, true, false}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        err e = {0};
        peft_method found;
        if (peft_check(&rows[i].spec, &e) != (rows[i].good ? ERR_OK : ERR_USAGE)) fail_msg("row %zu: %s", i, e.msg);
        assert_int_equal(peft_same(&lora, &rows[i].spec), rows[i].as_lora);
        assert_true(peft_same(&rows[i].spec, &rows[i].spec) || isnan(rows[i].spec.alpha));
        assert_true(peft_find(peft_name(rows[i].spec.method), &found) && found == rows[i].spec.method);
    }
    peft_method none;
    assert_false(peft_find("adapter", &none));
}

/* --- against PyTorch */

typedef struct {
    compute_type ct;
    double out, loss, gradient;
} type;
static const type types[] = {{COMPUTE_F32, 1e-5, 1e-5, 3e-5}, {COMPUTE_BF16, 4e-2, 2e-2, 8e-2}};

static const struct {
    const char *name;
    peft_spec spec;
    size_t trained, extra; /* params; tokens more */
} methods[] = {
    {"lora", {.method = METHOD_LORA, .rank = 4, .alpha = 6, .targets = PEFT_Q | PEFT_V}, 8, 0},
    {"lora_all",
     {.method = METHOD_LORA, .rank = 4, .alpha = 6, .targets = PEFT_QKV | PEFT_PROJ | PEFT_FC1 | PEFT_FC2},
     16,
     0},
    {"bitfit", {.method = METHOD_BITFIT}, 14, 0},
    {"vpt", {.method = METHOD_VPT, .prompts = 3}, 1, 3},
    {"vpt_deep", {.method = METHOD_VPT, .prompts = 3, .deep = true}, 2, 3},
    {"linear", {.method = METHOD_LINEAR}, 0, 0},
    {"swiglu_lora", {.method = METHOD_LORA, .rank = 4, .alpha = 6, .targets = PEFT_V | PEFT_FC1 | PEFT_FC2}, 12, 0},
    {"swiglu_bitfit", {.method = METHOD_BITFIT}, 14, 0},
};

enum { IMAGES = 2, HEIGHT = 12, WIDTH = 20, DIM = 24 };

static float *golden(const safetensors *s, const char *prefix, const char *name, size_t count)
{
    char full[160];
    err e = {0};
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const tensor *t = safetensors_find(s, full);
    if (!t) fail_msg("no %s in the golden file", full);
    assert_int_equal(t->count, count);
    float *x = malloc(count * sizeof *x);
    assert_non_null(x);
    ASSERT_OK(tensor_to_f32(t, x, &e));
    return x;
}

static void check_gradients(device *d, const param_set *ps, const safetensors *g, const type *t)
{
    double worst = 0;
    const char *name = "";
    for (size_t i = 0; i < ps->n; i++) {
        const param *p = &ps->p[i];
        size_t n = p->rows * p->cols;
        float *want = golden(g, "grad.", p->name, n), *got = malloc(n * sizeof *got);
        assert_non_null(got);
        d->op->download(d, got, p->grad, n * sizeof *got);
        double off = worst_ratio(got, want, n);
        if (off > worst) {
            worst = off;
            name = p->name;
        }
        free(want);
        free(got);
    }
    print_message("    gradients %.1e (%s)\n", worst, name);
    assert_true(worst <= t->gradient);
}

/* Memory of a pass, its pixels, and an fp32 tensor like its output. */
typedef struct {
    vit_pass a;
    dv *memory, *pixels, *mask, *f32;
} bench;

static void bench_open(bench *k, vit *m, const safetensors *g)
{
    device *d = vit_device(m);
    arena dry = {0}, real;
    err e = {0};
    *k = (bench){0};
    ASSERT_OK(vit_pass_plan(&k->a, &dry, m, IMAGES, HEIGHT, WIDTH, VIT_GRAD, &e));
    ASSERT_OK(d->op->alloc(d, dry.used, &k->memory, &e));
    arena_init(&real, k->memory, dry.used);
    ASSERT_OK(vit_pass_plan(&k->a, &real, m, IMAGES, HEIGHT, WIDTH, VIT_GRAD, &e));
    ASSERT_OK(device_reserve(d, vit_pass_work_bytes(m, IMAGES, HEIGHT, WIDTH, VIT_GRAD), &e));
    size_t pixels = (size_t)IMAGES * 3 * HEIGHT * WIDTH;
    float *x = golden(g, "", "pixels", pixels);
    ASSERT_OK(d->op->alloc(d, pixels * sizeof *x, &k->pixels, &e));
    ASSERT_OK(d->op->alloc(d, IMAGES * k->a.P, &k->mask, &e));
    ASSERT_OK(d->op->alloc(d, IMAGES * k->a.T * DIM * sizeof *x, &k->f32, &e));
    d->op->upload(d, k->pixels, x, pixels * sizeof *x);
    d->op->upload(d, k->mask, safetensors_find(g, "mask")->data, IMAGES * k->a.P);
    free(x);
}

static void run(size_t method, const type *t)
{
    char path[512];
    device d;
    vit *m;
    safetensors g;
    param_set ps = {0};
    err e = {0};
    ASSERT_OK(device_open_cpu(&d, 2, t->ct, &e));
    snprintf(path, sizeof path, "%s/golden/vit_%s.safetensors", TESTS_DIR,
             strstr(methods[method].name, "swiglu") ? "swiglu_timm" : "registers");
    ASSERT_OK(vit_open(&m, &d, &(vit_source){.path = path, .heads = 3}, &e));
    snprintf(path, sizeof path, "%s/golden/peft_%s.safetensors", TESTS_DIR, methods[method].name);
    ASSERT_OK(safetensors_open(&g, path, &e));
    ASSERT_OK(vit_train(m, &methods[method].spec, &ps, &e));
    assert_int_equal(ps.n, methods[method].trained);
    for (size_t i = 0; i < ps.n; i++) {
        float *x = golden(&g, "value.", ps.p[i].name, ps.p[i].rows * ps.p[i].cols);
        d.op->upload(&d, ps.p[i].master, x, ps.p[i].rows * ps.p[i].cols * sizeof *x);
        free(x);
    }
    d.op->refresh(&d, ps.p, ps.n);
    bench k;
    bench_open(&k, m, &g);
    assert_int_equal(k.a.T, 1 + 4 + 15 + methods[method].extra);
    size_t n = IMAGES * k.a.T * DIM;
    float *want = golden(&g, "", "out", n), *weights = golden(&g, "", "weights", n), *out = malloc(n * sizeof *out);
    float *loss = golden(&g, "", "loss", 1);
    assert_non_null(out);
    vit_patches(m, VIT_STUDENT, &k.a, k.pixels);
    vit_fwd(m, VIT_STUDENT, &k.a, k.a.patches, k.mask);
    d.op->to_f32(&d, k.f32, k.a.out, n);
    d.op->download(&d, out, k.f32, n * sizeof *out);
    double sum = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)out[i] * weights[i];
        size += fabs((double)want[i] * weights[i]);
    }
    print_message("%s %s: output %.1e, loss %.1e\n", methods[method].name, t->ct == COMPUTE_F32 ? "fp32" : "bf16",
                  worst_ratio(out, want, n), fabs(sum - *loss) / size);
    assert_true(worst_ratio(out, want, n) <= t->out);
    assert_true(fabs(sum - *loss) / size <= t->loss);
    d.op->upload(&d, k.f32, weights, n * sizeof *weights);
    d.op->to_ct(&d, k.a.dout, k.f32, n);
    vit_bwd(m, &k.a, k.pixels, k.mask);
    ASSERT_OK(device_sync(&d, &e));
    check_gradients(&d, &ps, &g, t);

    free(want);
    free(weights);
    free(out);
    free(loss);
    vit_pass_fini(&k.a);
    dv *all[] = {k.memory, k.pixels, k.mask, k.f32};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) d.op->free(&d, all[i]);
    param_set_free(&d, &ps);
    safetensors_close(&g);
    vit_close(m);
    device_close(&d);
}

static void fp32(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) run(i, &types[0]);
}

static void bf16(void **state)
{
    (void)state;
    device d;
    err e = {0};
    if (device_open_cpu(&d, 1, COMPUTE_BF16, &e)) {
        print_message("skipped: %s\n", e.msg);
        return;
    }
    device_close(&d);
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) run(i, &types[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(targets), cmocka_unit_test(specs), cmocka_unit_test(fp32),
                                       cmocka_unit_test(bf16)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
