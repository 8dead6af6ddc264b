/* Whole passes against PyTorch (tests/golden/make_vit.py): output after the final norm, loss, and the gradient of every
 * weight, in every dialect of names, with the positional tables of all interpolations; full training, APLA on all rows
 * and on some, fp32 and, where the processor has it, bf16. Errors are the largest difference over the tensor's largest
 * value. */
#include "tests/model/state_dict.h"

#include "base/arena.h"

typedef struct {
    const char *name;
    float eps;
    pos_interpolation pos;
} golden_model;

static const golden_model models[] = {
    {"dinov2", 1e-6f, POS_DINOV2},
    {"local", 1e-6f, POS_DINOV2},
    {"larger", 1e-6f, POS_SIZE},
    {"registers", 1e-6f, POS_SIZE_ANTIALIAS},
    {"timm", 1e-6f, POS_SIZE_ANTIALIAS},
    {"timm_larger", 1e-6f, POS_SIZE_ANTIALIAS},
    {"patches_only", 1e-6f, POS_SIZE_ANTIALIAS},
    {"swiglu", 1e-6f, POS_DINOV2},
    {"swiglu_timm", 1e-6f, POS_SIZE_ANTIALIAS},
    {"swiglu_hf", 1e-6f, POS_SIZE},
};

typedef struct {
    const char *name;
    peft_method method;
    int rows;
} golden_method;

static const golden_method methods[] = {{"full", METHOD_FULL, 0}, {"apla", METHOD_APLA, 0}, {"apla 7", METHOD_APLA, 7}};

static const struct {
    compute_type ct;
    double out, loss, gradient; /* largest errors allowed */
} types[] = {{COMPUTE_F32, 1e-5, 2e-5, 2e-5}, {COMPUTE_BF16, 2e-2, 5e-2, 5e-2}};

static float *values(const safetensors *s, const char *name, size_t *count)
{
    err e = {0};
    const tensor *t = safetensors_find(s, name);
    if (!t) fail_msg("no %s in the golden file", name);
    float *x = malloc((t->count ? t->count : 1) * sizeof *x);
    assert_non_null(x);
    ASSERT_OK(tensor_to_f32(t, x, &e));
    *count = t->count;
    return x;
}

static double largest(const float *x, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) most = fmax(most, fabs(x[i]));
    return most;
}

/* The error of p's gradient: of all rows or of those that it has. A model without a mask token gets one, which these
 * passes do not use. */
static double compare_gradient(device *d, const param *p, const safetensors *g)
{
    char name[128];
    snprintf(name, sizeof name, "grad.%s", p->name);
    size_t n = 0, count = p->rows * p->cols;
    float *got = malloc(count * sizeof *got), *want = NULL;
    assert_non_null(got);
    d->op->download(d, got, p->grad, count * sizeof *got);
    if (safetensors_find(g, name))
        want = values(g, name, &n);
    else
        assert_string_equal(p->name, "mask_token");
    size_t pad = p->full_rows * p->cols - n; /* a table without a class token's row has one in front */
    assert_true(pad == 0 || !want || (pad == p->cols && !strcmp(p->name, "pos_embed")));
    double scale = want ? largest(want, n) : 1e-30, worst = 0;
    for (size_t r = 0; r < p->rows; r++)
        for (size_t c = 0; c < p->cols; c++) {
            size_t from = (p->rows_host ? (size_t)p->rows_host[r] : r) * p->cols + c;
            double diff = fabs(got[r * p->cols + c] - (from < pad ? 0.0 : (double)want[from - pad]));
            worst = isfinite(diff) ? fmax(worst, diff) : INFINITY;
        }
    free(want);
    free(got);
    return worst / scale;
}

static double compare(const float *got, const float *want, size_t n)
{
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double diff = fabs((double)got[i] - want[i]);
        worst = isfinite(diff) ? fmax(worst, diff) : INFINITY;
    }
    return worst / largest(want, n);
}

static void run_pass(const golden_model *k, const golden_method *how, size_t type)
{
    device d;
    err e = {0};
    char path[512];
    ASSERT_OK(device_open_cpu(&d, k == models ? 2 : 1, types[type].ct, &e));
    vit *m;
    snprintf(path, sizeof path, "%s/golden/vit_%s.safetensors", TESTS_DIR, k->name);
    ASSERT_OK(vit_open(&m, &d, &(vit_source){.path = path, .heads = 3}, &e));
    const vit_config *c = vit_get_config(m);
    assert_true(c->pos == k->pos && c->eps == k->eps && c->heads == 3 && c->depth == 2);
    assert_int_equal(c->swiglu, strstr(k->name, "swiglu") != NULL);
    safetensors g;
    snprintf(path, sizeof path, "%s/golden/vit_%s.golden.safetensors", TESTS_DIR, k->name);
    ASSERT_OK(safetensors_open(&g, path, &e));
    param_set ps = {0};
    ASSERT_OK(vit_train(m, &(peft_spec){.method = how->method, .rows = how->rows, .seed = 5}, &ps, &e));

    const tensor *shape = safetensors_find(&g, "pixels"), *t_mask = safetensors_find(&g, "mask");
    size_t B = shape->shape[0], height = shape->shape[2], width = shape->shape[3], n, count;
    vit_pass a = {0};
    arena dry = {0}, real;
    dv *memory, *dev_pixels, *dev_mask = NULL, *f32;
    ASSERT_OK(vit_pass_plan(&a, &dry, m, B, height, width, VIT_GRAD, &e));
    ASSERT_OK(d.op->alloc(&d, dry.used, &memory, &e));
    arena_init(&real, memory, dry.used);
    ASSERT_OK(vit_pass_plan(&a, &real, m, B, height, width, VIT_GRAD, &e));
    ASSERT_OK(device_reserve(&d, vit_pass_work_bytes(m, B, height, width, VIT_GRAD), &e));
    float *pixels = values(&g, "pixels", &n);
    ASSERT_OK(d.op->alloc(&d, n * sizeof(float), &dev_pixels, &e));
    d.op->upload(&d, dev_pixels, pixels, n * sizeof(float));
    if (t_mask) {
        assert_int_equal(t_mask->count, B * a.P);
        ASSERT_OK(d.op->alloc(&d, B * a.P, &dev_mask, &e));
        d.op->upload(&d, dev_mask, t_mask->data, B * a.P);
    }

    vit_patches(m, VIT_STUDENT, &a, dev_pixels);
    vit_fwd(m, VIT_STUDENT, &a, a.patches, dev_mask);
    float *want = values(&g, "out", &n), *weights = values(&g, "weights", &count), *loss = values(&g, "loss", &count);
    assert_int_equal(n, B * a.T * (size_t)c->dim);
    float *out = malloc(n * sizeof *out);
    assert_non_null(out);
    ASSERT_OK(d.op->alloc(&d, n * sizeof(float), &f32, &e));
    d.op->to_f32(&d, f32, a.out, n);
    d.op->download(&d, out, f32, n * sizeof *out);
    double sum = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)out[i] * weights[i];
        size += fabs((double)out[i] * weights[i]);
    }
    double out_error = compare(out, want, n), loss_error = fabs(sum - loss[0]) / sqrt(size);

    d.op->upload(&d, f32, weights, n * sizeof(float));
    d.op->to_ct(&d, a.dout, f32, n);
    vit_bwd(m, &a, dev_pixels, dev_mask);
    ASSERT_OK(device_sync(&d, &e));

    print_message("%-12s %-6s %s: out %.1e loss %.1e", k->name, how->name, d.ct == COMPUTE_F32 ? "fp32" : "bf16",
                  out_error, loss_error);
    double worst = 0;
    const char *worst_name = "";
    for (size_t i = 0; i < ps.n; i++) {
        double error = compare_gradient(&d, &ps.p[i], &g);
        if (error > worst) {
            worst = error;
            worst_name = ps.p[i].name;
        }
    }
    print_message(" gradients %.1e (worst %s of %zu)\n", worst, worst_name, ps.n);
    assert_true(out_error <= types[type].out);
    assert_true(loss_error <= types[type].loss);
    assert_true(worst <= types[type].gradient);
    if (how->method == METHOD_FULL) { /* every gradient of the golden file was looked at */
        size_t there = 0;
        for (size_t i = 0; i < g.n; i++) there += !strncmp(g.tensors[i].name, "grad.", 5);
        assert_int_equal(ps.n, there + (param_find(&ps, "mask_token") && !safetensors_find(&g, "grad.mask_token")));
    } else {
        assert_int_equal(ps.n, 2 * 2);
        for (size_t i = 0; i < ps.n; i++) {
            assert_non_null(strstr(ps.p[i].name, ".attn.proj."));
            assert_int_equal(ps.p[i].rows, how->rows ? how->rows : c->dim);
        }
    }

    /* A second time accumulates: twice the gradient. */
    const param *proj = param_find(&ps, "blocks.0.attn.proj.weight");
    size_t bytes = proj->rows * proj->cols * sizeof(float);
    float *once = malloc(bytes), *twice = malloc(bytes);
    assert_true(once && twice);
    d.op->download(&d, once, proj->grad, bytes);
    vit_patches(m, VIT_STUDENT, &a, dev_pixels);
    vit_fwd(m, VIT_STUDENT, &a, a.patches, dev_mask);
    d.op->to_ct(&d, a.dout, f32, n);
    vit_bwd(m, &a, dev_pixels, dev_mask);
    d.op->download(&d, twice, proj->grad, bytes);
    for (size_t i = 0; i < bytes / sizeof *once; i++) once[i] *= 2;
    assert_true(compare(twice, once, bytes / sizeof *once) < 1e-5);
    ASSERT_OK(device_sync(&d, &e));

    float *all[] = {pixels, want, weights, loss, out, once, twice};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    dv *device_all[] = {memory, dev_pixels, dev_mask, f32};
    for (size_t i = 0; i < sizeof device_all / sizeof *device_all; i++) d.op->free(&d, device_all[i]);
    vit_pass_fini(&a);
    param_set_free(&d, &ps);
    safetensors_close(&g);
    vit_close(m);
    device_close(&d);
}

static void run_type(size_t type)
{
    device d;
    err e = {0};
    if (device_open_cpu(&d, 2, types[type].ct, &e)) {
        print_message("skipped: %s\n", e.msg);
        return;
    }
    device_close(&d);
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        for (size_t k = 0; k < sizeof methods / sizeof *methods; k++) run_pass(&models[i], &methods[k], type);
}

static void fp32(void **state)
{
    (void)state;
    run_type(0);
}

static void bf16(void **state)
{
    (void)state;
    run_type(1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(fp32), cmocka_unit_test(bf16)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
