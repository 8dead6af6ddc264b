/* Whole steps of self-supervised adaptation against PyTorch in double precision (tests/golden/make_ssa.py): loss terms,
 * entropies, every gradient, weights, teacher and centres after the first step, and the loss terms of ten steps; every
 * method. Errors are the largest difference over the tensor's largest value. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "adapt/ssl_step.h"
#include "io/safetensors.h"

#define ASSERT_OK(call)                                                                                                \
    do {                                                                                                               \
        err_code code_ = (call);                                                                                       \
        if (code_) fail_msg("%s: %s", err_name(code_), e.msg);                                                         \
    } while (0)

/* The order of "hyper" in the golden files. */
typedef struct {
    float student_temp, teacher_temp, center_momentum, dino, ibot, koleo, clip, beta1, beta2, eps, weight_decay, lr,
        head_lr, momentum;
} hyper;

enum { BATCH = 3, LOCALS = 2, HIDDEN = 28, BOTTLENECK = 12, PROTOTYPES = 33, GLOBAL = 20, LOCAL = 12, STEPS = 10 };

/* Largest errors allowed: of the first step's terms and entropies (absolute), gradients, weights and teacher, centres,
 * and of ten steps' terms (absolute). */
typedef struct {
    compute_type ct;
    double terms, gradients, weights, centers, history;
} bounds;

typedef struct {
    device d;
    vit *m;
    safetensors golden;
    param_set ps;
    ssl_step s;
    hyper h;
    float *globals, *locals;
    const uint8_t *mask;
    double worst;
    char worst_name[128];
} run;

static const tensor *find(const safetensors *s, const char *prefix, const char *name)
{
    char full[160];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    return safetensors_find(s, full);
}

static float *values(const safetensors *s, const char *prefix, const char *name, size_t count)
{
    err e = {0};
    const tensor *t = find(s, prefix, name);
    if (!t) fail_msg("no %s%s in the golden file", prefix, name);
    assert_int_equal(t->count, count);
    float *x = malloc(count * sizeof *x);
    assert_non_null(x);
    ASSERT_OK(tensor_to_f32(t, x, &e));
    return x;
}

/* Compares device memory with a golden tensor and keeps the worst of them. */
static void check(run *r, const dv *got, const char *prefix, const char *name, size_t count)
{
    float *want = values(&r->golden, prefix, name, count), *x = malloc(count * sizeof *x);
    assert_non_null(x);
    r->d.op->download(&r->d, x, got, count * sizeof *x);
    double worst = 0, most = 0;
    for (size_t i = 0; i < count; i++) {
        double diff = fabs((double)x[i] - want[i]);
        worst = isfinite(diff) ? fmax(worst, diff) : INFINITY;
        most = fmax(most, fabs(want[i]));
    }
    if (worst / most > r->worst) {
        r->worst = worst / most;
        snprintf(r->worst_name, sizeof r->worst_name, "%s%s", prefix, name);
    }
    free(want);
    free(x);
}

static void check_params(run *r, const char *prefix, dv *(*what)(const param *))
{
    r->worst = 0;
    for (size_t i = 0; i < r->ps.n; i++) {
        const param *p = &r->ps.p[i];
        check(r, what(p), prefix, p->name, p->rows * p->cols);
    }
}

static dv *grad_of(const param *p)
{
    return p->grad;
}
static dv *master_of(const param *p)
{
    return p->master;
}
static dv *teacher_of(const param *p)
{
    return p->teacher;
}

static void report(const run *r, const char *what, double bound)
{
    print_message("  %-10s %.1e (%s)\n", what, r->worst, r->worst_name);
    assert_true(r->worst <= bound);
}

static void upload(run *r, dv *to, const char *prefix, const char *name, size_t count)
{
    float *x = values(&r->golden, prefix, name, count);
    r->d.op->upload(&r->d, to, x, count * sizeof *x);
    free(x);
}

/* Opens model, golden file and step, with the golden weights, teacher and centres in place. */
static void open_run(run *r, const peft_spec *how, const char *golden, compute_type ct)
{
    err e = {0};
    char path[512];
    *r = (run){0};
    ASSERT_OK(device_open_cpu(&r->d, 2, ct, &e));
    snprintf(path, sizeof path, "%s/golden/ssa.safetensors", TESTS_DIR);
    ASSERT_OK(vit_open(&r->m, &r->d, &(vit_source){.path = path, .heads = 3}, &e));
    snprintf(path, sizeof path, "%s/golden/%s.safetensors", TESTS_DIR, golden);
    ASSERT_OK(safetensors_open(&r->golden, path, &e));
    float *h = values(&r->golden, "", "hyper", sizeof r->h / sizeof *h);
    memcpy(&r->h, h, sizeof r->h);
    free(h);
    r->globals = values(&r->golden, "", "globals", (size_t)2 * BATCH * 3 * GLOBAL * GLOBAL);
    r->locals = values(&r->golden, "", "locals", (size_t)LOCALS * BATCH * 3 * LOCAL * LOCAL);
    const tensor *mask = find(&r->golden, "", "mask");
    assert_non_null(mask);
    r->mask = mask->data;
    size_t masked = 0;
    for (size_t i = 0; i < mask->count; i++) masked += r->mask[i];

    peft_spec spec = *how;
    spec.seed = 1;
    spec.teacher = true;
    ASSERT_OK(vit_train(r->m, &spec, &r->ps, &e));
    ssl_step_config k = {
        .batch = BATCH,
        .locals = LOCALS,
        .global_size = GLOBAL,
        .local_size = LOCAL,
        .masked_most = masked + 5,
        .head = {(size_t)vit_get_config(r->m)->dim, HIDDEN, BOTTLENECK, PROTOTYPES},
        .dino = r->h.dino,
        .ibot = r->h.ibot,
        .koleo = r->h.koleo,
        .student_temp = r->h.student_temp,
        .center_momentum = r->h.center_momentum,
        .clip = r->h.clip,
        .seed = 1,
    };
    ASSERT_OK(ssl_step_open(&r->s, r->m, &r->ps, &k, &e));
    for (size_t i = 0; i < r->ps.n; i++) {
        const param *p = &r->ps.p[i];
        if (find(&r->golden, "student.", p->name)) upload(r, p->master, "student.", p->name, p->rows * p->cols);
        upload(r, p->teacher, "teacher.", p->name, p->rows * p->cols);
    }
    upload(r, r->s.group[0].center, "center.", "class", PROTOTYPES);
    upload(r, r->s.group[1].center, "center.", "patch", PROTOTYPES);
    ssl_step_refresh(&r->s);
}

static void close_run(run *r)
{
    free(r->globals);
    free(r->locals);
    safetensors_close(&r->golden);
    ssl_step_close(&r->s);
    param_set_free(&r->d, &r->ps);
    vit_close(r->m);
    device_close(&r->d);
}

static void gradients(run *r, ssl_step_out *out)
{
    err e = {0};
    ssl_step_in in = {.globals = r->globals, .locals = r->locals, .mask = r->mask, .teacher_temp = r->h.teacher_temp};
    ASSERT_OK(ssl_step_gradients(&r->s, &in, out, &e));
}

static void update(run *r, int64_t t, bool skip_backbone, ssl_step_out *out)
{
    err e = {0};
    ssl_step_update_in u = {.adam = {.beta1 = r->h.beta1,
                                     .beta2 = r->h.beta2,
                                     .eps = r->h.eps,
                                     .weight_decay = r->h.weight_decay,
                                     .lr = r->h.lr,
                                     .head_lr = r->h.head_lr,
                                     .t = {t, t, t},
                                     .skip_backbone = skip_backbone},
                            .momentum = r->h.momentum};
    ASSERT_OK(ssl_step_update(&r->s, &u, out, &e));
}

static double term_error(const ssl_step_out *out, const float *want)
{
    const float got[] = {out->loss, out->dino, out->ibot, out->koleo};
    double worst = 0;
    for (int i = 0; i < 4; i++) worst = fmax(worst, fabs(got[i] - want[i]));
    return worst;
}

static void golden_steps(const peft_spec *how, const char *golden, const bounds *b)
{
    run r;
    ssl_step_out out;
    open_run(&r, how, golden, b->ct);
    float *history = values(&r.golden, "", "history", STEPS * 5), *entropy = values(&r.golden, "", "entropy", 4);
    print_message("%s %s\n", golden, b->ct == COMPUTE_F32 ? "fp32" : "bf16");

    gradients(&r, &out);
    double error = term_error(&out, history);
    const float got[] = {out.target_entropy[0], out.marginal_entropy[0], out.target_entropy[1],
                         out.marginal_entropy[1]};
    for (int i = 0; i < 4; i++) error = fmax(error, fabs(got[i] - entropy[i]));
    print_message("  %-10s %.1e\n", "terms", error);
    assert_true(error <= b->terms);
    check_params(&r, "grad.", grad_of);
    report(&r, "gradients", b->gradients);

    update(&r, 1, false, &out);
    assert_true(fabs(out.grad_norm / history[4] - 1) <= b->gradients);
    check_params(&r, "student1.", master_of);
    report(&r, "weights", b->weights);
    check_params(&r, "teacher1.", teacher_of);
    report(&r, "teacher", b->weights);
    r.worst = 0;
    check(&r, r.s.group[0].center, "center1.", "class", PROTOTYPES);
    check(&r, r.s.group[1].center, "center1.", "patch", PROTOTYPES);
    report(&r, "centres", b->centers);

    double worst = 0;
    for (int t = 2; t <= STEPS; t++) {
        gradients(&r, &out);
        worst = fmax(worst, term_error(&out, history + 5 * (t - 1)));
        update(&r, t, false, &out);
    }
    print_message("  %-10s %.1e\n", "ten steps", worst);
    assert_true(worst <= b->history);
    r.worst = 0;
    for (size_t i = 0; i < r.ps.n; i++) {
        const param *p = &r.ps.p[i];
        if (find(&r.golden, "student10.", p->name)) check(&r, p->master, "student10.", p->name, p->rows * p->cols);
        if (find(&r.golden, "teacher10.", p->name)) check(&r, p->teacher, "teacher10.", p->name, p->rows * p->cols);
    }
    report(&r, "their end", 10 * b->weights);
    free(history);
    free(entropy);
    close_run(&r);
}

static const bounds fp32_bounds = {COMPUTE_F32, 1e-5, 2e-5, 1e-5, 1e-5, 1e-4};
static const bounds bf16_bounds = {COMPUTE_BF16, 5e-2, 0.15, 2e-2, 2e-2, 0.3};

static const struct {
    const char *golden;
    peft_spec spec;
} methods[] = {
    {"ssa_apla", {.method = METHOD_APLA}},
    {"ssa_full", {.method = METHOD_FULL}},
    {"ssa_lora", {.method = METHOD_LORA, .rank = 4, .alpha = 6, .targets = PEFT_Q | PEFT_V}},
    {"ssa_bitfit", {.method = METHOD_BITFIT}},
    {"ssa_vpt", {.method = METHOD_VPT, .prompts = 3}},
    {"ssa_vpt_deep", {.method = METHOD_VPT, .prompts = 3, .deep = true}},
    {"ssa_linear", {.method = METHOD_LINEAR}},
};
enum { METHODS = sizeof methods / sizeof *methods };

static void fp32(void **state)
{
    (void)state;
    for (int i = 0; i < METHODS; i++) golden_steps(&methods[i].spec, methods[i].golden, &fp32_bounds);
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
    for (int i = 0; i < METHODS; i++) golden_steps(&methods[i].spec, methods[i].golden, &bf16_bounds);
}

/* Warm-up of the head: its gradients are the same, the backbone's stay zero, and an update leaves the backbone alone.
 */
static void head_only(void **state)
{
    (void)state;
    run r;
    ssl_step_out out;
    err e = {0};
    open_run(&r, &methods[0].spec, methods[0].golden, COMPUTE_F32);
    ssl_step_in in = {
        .globals = r.globals, .locals = r.locals, .mask = r.mask, .teacher_temp = r.h.teacher_temp, .head_only = true};
    ASSERT_OK(ssl_step_gradients(&r.s, &in, &out, &e));
    size_t heads = 0;
    for (size_t i = 0; i < r.ps.n; i++) {
        const param *p = &r.ps.p[i];
        if (p->head) {
            check(&r, p->grad, "grad.", p->name, p->rows * p->cols);
            heads++;
            continue;
        }
        float *g = malloc(p->rows * p->cols * sizeof *g);
        assert_non_null(g);
        r.d.op->download(&r.d, g, p->grad, p->rows * p->cols * sizeof *g);
        for (size_t k = 0; k < p->rows * p->cols; k++) assert_true(g[k] == 0);
        free(g);
    }
    assert_int_equal(heads, DINO_HEAD_PARAMS);
    const param *proj = param_find(&r.ps, "blocks.1.attn.proj.weight");
    size_t bytes = proj->rows * proj->cols * sizeof(float);
    char *before = malloc(bytes), *after = malloc(bytes);
    assert_true(before && after);
    r.d.op->download(&r.d, before, proj->master, bytes);
    update(&r, 1, true, &out);
    r.d.op->download(&r.d, after, proj->master, bytes);
    assert_memory_equal(before, after, bytes);
    free(before);
    free(after);
    assert_true(r.worst <= fp32_bounds.gradients);
    close_run(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fp32),
        cmocka_unit_test(bf16),
        cmocka_unit_test(head_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
