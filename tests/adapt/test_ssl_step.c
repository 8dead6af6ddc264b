/* Whole steps of self-supervised adaptation against PyTorch in double precision (tests/golden/make_ssa.py): loss terms,
 * entropies, every gradient, weights, teacher and centres after the first step, and the loss terms of ten steps; every
 * method, softmax centring and Sinkhorn-Knopp, one head and two. Errors are the largest difference over the tensor's
 * largest value. */
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

enum {
    BATCH = 3,
    LOCALS = 2,
    HIDDEN = 28,
    BOTTLENECK = 12,
    PROTOTYPES = 33,
    GLOBAL = 20,
    LOCAL = 12,
    STEPS = 10,
    KEPT = 24
};

/* inputs: the golden file that has what a run of the method starts from. */
typedef struct {
    const char *name, *inputs;
    peft_spec peft;
    bool whole, softmax; /* whole tensors are there; so is softmax centring among the variants */
} golden_method;

/* One golden run. whole: against the whole tensors of the method's file, else against some values of each. */
typedef struct {
    const golden_method *method;
    bool whole;
    ssl_centering centering;
    bool separate_heads;
} golden_case;

/* Largest errors allowed: of the first step's terms and entropies (absolute), gradients, weights and teacher, centres,
 * and of ten steps' terms (absolute). */
typedef struct {
    compute_type ct;
    double terms, gradients, weights, centers, history;
} bounds;

typedef struct {
    device d;
    vit *m;
    safetensors golden, inputs; /* what is expected; what a run starts from, of every tensor */
    char under[64];             /* before the names of what is expected */
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

static float *values_of(const tensor *t, const char *name)
{
    err e = {0};
    if (!t) fail_msg("no %s in the golden file", name);
    float *x = malloc(t->count * sizeof *x);
    assert_non_null(x);
    ASSERT_OK(tensor_to_f32(t, x, &e));
    return x;
}

/* A tensor that a run starts from. */
static float *values(const safetensors *s, const char *prefix, const char *name, size_t count)
{
    const tensor *t = find(s, prefix, name);
    if (t) assert_int_equal(t->count, count);
    return values_of(t, name);
}

/* What is expected under the run's name. */
static const tensor *expected(const run *r, const char *prefix, const char *name)
{
    char full[224];
    snprintf(full, sizeof full, "%s%s%s", r->under, prefix, name);
    return safetensors_find(&r->golden, full);
}

/* Compares device memory with a golden tensor, or with the values kept of it, and keeps the worst of them. */
static void check(run *r, const dv *got, const char *prefix, const char *name, size_t count)
{
    const tensor *t = expected(r, prefix, name);
    float *want = values_of(t, name), *x = malloc(count * sizeof *x);
    assert_non_null(x);
    if (t->count != count) assert_true(*r->under && t->count == KEPT && count > KEPT);
    r->d.op->download(&r->d, x, got, count * sizeof *x);
    double worst = 0, most = 0;
    for (size_t i = 0; i < t->count; i++) {
        double diff = fabs((double)x[i * count / t->count] - want[i]);
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
    float *x = values(&r->inputs, prefix, name, count);
    r->d.op->upload(&r->d, to, x, count * sizeof *x);
    free(x);
}

static bool has(const run *r, const char *prefix, const char *name)
{
    return find(&r->inputs, prefix, name) || find(&r->golden, prefix, name);
}

/* Golden weights, of the trained rows; the second head's are in the file of all cases. */
static void upload_param(run *r, const param *p, dv *to, const char *prefix)
{
    const safetensors *from = find(&r->inputs, prefix, p->name) ? &r->inputs : &r->golden;
    float *x = values(from, prefix, p->name, p->full_rows * p->cols);
    for (size_t i = 0; p->rows_host && i < p->rows; i++)
        memmove(x + i * p->cols, x + (size_t)p->rows_host[i] * p->cols, p->cols * sizeof *x);
    r->d.op->upload(&r->d, to, x, p->rows * p->cols * sizeof *x);
    free(x);
}

static void open_golden(safetensors *s, const char *name)
{
    err e = {0};
    char path[512];
    snprintf(path, sizeof path, "%s/golden/%s.safetensors", TESTS_DIR, name);
    ASSERT_OK(safetensors_open(s, path, &e));
}

/* Opens model, golden files and step, with the golden weights, teacher and centres in place. */
static void open_batches(run *r, const golden_case *c, compute_type ct, size_t rows_at_once, size_t batch)
{
    err e = {0};
    char path[512];
    *r = (run){0};
    ASSERT_OK(device_open_cpu(&r->d, 2, ct, &e));
    snprintf(path, sizeof path, "%s/golden/ssa.safetensors", TESTS_DIR);
    ASSERT_OK(vit_open(&r->m, &r->d, &(vit_source){.path = path, .heads = 3}, &e));
    open_golden(&r->inputs, c->method->inputs);
    open_golden(&r->golden, c->whole ? c->method->inputs : "ssa_variants");
    if (!c->whole)
        snprintf(r->under, sizeof r->under, "%s-%s-%s/", c->method->name,
                 c->centering == SSL_SINKHORN ? "sinkhorn" : "softmax", c->separate_heads ? "separate" : "shared");
    float *h = values(&r->inputs, "", "hyper", sizeof r->h / sizeof *h);
    memcpy(&r->h, h, sizeof r->h);
    free(h);
    r->globals = values(&r->inputs, "", "globals", (size_t)2 * BATCH * 3 * GLOBAL * GLOBAL);
    r->locals = values(&r->inputs, "", "locals", (size_t)LOCALS * BATCH * 3 * LOCAL * LOCAL);
    const tensor *mask = find(&r->inputs, "", "mask");
    assert_non_null(mask);
    r->mask = mask->data;
    size_t masked = 0;
    for (size_t i = 0; i < mask->count; i++) masked += r->mask[i];

    peft_spec peft = c->method->peft;
    peft.seed = 1;
    peft.teacher = true;
    ASSERT_OK(vit_train(r->m, &peft, &r->ps, &e));
    ssl_step_config k = {
        .batch = batch,
        .accumulate = BATCH / batch,
        .locals = LOCALS,
        .global_size = GLOBAL,
        .local_size = LOCAL,
        .masked_most = masked + 5,
        .rows_at_once = rows_at_once,
        .head = {(size_t)vit_get_config(r->m)->dim, HIDDEN, BOTTLENECK, PROTOTYPES},
        .separate_heads = c->separate_heads,
        .centering = c->centering,
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
        if (has(r, "student.", p->name)) upload_param(r, p, p->master, "student.");
        upload_param(r, p, p->teacher, "teacher.");
    }
    upload(r, r->s.group[0].center, "center.", "class", PROTOTYPES);
    upload(r, r->s.group[1].center, "center.", "patch", PROTOTYPES);
    ssl_step_refresh(&r->s);
}

static void open_run(run *r, const golden_case *c, compute_type ct, size_t rows_at_once)
{
    open_batches(r, c, ct, rows_at_once, BATCH);
}

static void close_run(run *r)
{
    free(r->globals);
    free(r->locals);
    safetensors_close(&r->golden);
    safetensors_close(&r->inputs);
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

static void golden_steps(const golden_case *c, const bounds *b, size_t rows_at_once)
{
    run r;
    ssl_step_out out;
    open_run(&r, c, b->ct, rows_at_once);
    float *history = values_of(expected(&r, "", "history"), "history");
    float *entropy = values_of(expected(&r, "", "entropy"), "entropy");
    print_message("%s %s\n", c->whole ? c->method->inputs : r.under, b->ct == COMPUTE_F32 ? "fp32" : "bf16");

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
    if (c->centering == SSL_SOFTMAX) {
        check(&r, r.s.group[0].center, "center1.", "class", PROTOTYPES);
        check(&r, r.s.group[1].center, "center1.", "patch", PROTOTYPES);
        report(&r, "centres", b->centers);
    }

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
        if (expected(&r, "student10.", p->name)) check(&r, p->master, "student10.", p->name, p->rows * p->cols);
        if (expected(&r, "teacher10.", p->name)) check(&r, p->teacher, "teacher10.", p->name, p->rows * p->cols);
    }
    report(&r, "their end", 10 * b->weights);
    free(history);
    free(entropy);
    close_run(&r);
}

static const bounds fp32_bounds = {COMPUTE_F32, 1e-5, 2e-5, 1e-5, 1e-5, 1e-4};
static const bounds bf16_bounds = {COMPUTE_BF16, 5e-2, 0.15, 2e-2, 2e-2, 0.3};

/* make_ssa.py's METHODS; its CASES are every_case's. */
enum { APLA, APLA5, FULL };
static const golden_method methods[] = {
    {"apla", "ssa_apla", {.method = METHOD_APLA}, true, true},
    {"apla5", "ssa_apla", {.method = METHOD_APLA, .rows = 5}, false, true},
    {"full", "ssa_full", {.method = METHOD_FULL}, true, true},
    {"lora", "ssa_lora", {.method = METHOD_LORA, .rank = 4, .alpha = 6, .targets = PEFT_Q | PEFT_V}, true, false},
    {"bitfit", "ssa_bitfit", {.method = METHOD_BITFIT}, true, false},
    {"vpt", "ssa_vpt", {.method = METHOD_VPT, .prompts = 3}, true, false},
    {"vpt_deep", "ssa_vpt_deep", {.method = METHOD_VPT, .prompts = 3, .deep = true}, true, false},
    {"linear", "ssa_linear", {.method = METHOD_LINEAR}, true, false},
};
static const golden_case apla = {&methods[APLA], true, SSL_SOFTMAX, false},
                         apla_separate = {&methods[APLA], false, SSL_SOFTMAX, true},
                         apla_sinkhorn = {&methods[APLA], false, SSL_SINKHORN, true},
                         apla5 = {&methods[APLA5], false, SSL_SOFTMAX, false},
                         full = {&methods[FULL], true, SSL_SOFTMAX, false};

static void every_case(const bounds *b)
{
    for (const golden_method *m = methods; m < methods + sizeof methods / sizeof *methods; m++) {
        if (m->whole) golden_steps(&(golden_case){m, true, SSL_SOFTMAX, false}, b, 0);
        for (int two = 0; two < 2; two++) {
            if (m->softmax) golden_steps(&(golden_case){m, false, SSL_SOFTMAX, two}, b, 0);
            golden_steps(&(golden_case){m, false, SSL_SINKHORN, two}, b, 0);
        }
    }
}

static void fp32(void **state)
{
    (void)state;
    every_case(&fp32_bounds);
}

/* Logits a few rows at a time: fewer than the class tokens' targets (6), than the rows of a group, and one. */
static void fp32_in_pieces(void **state)
{
    (void)state;
    static const size_t rows[] = {7, 4, 1};
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        print_message("%zu rows at once\n", rows[k]);
        golden_steps(&full, &fp32_bounds, rows[k]);
        golden_steps(&apla_sinkhorn, &fp32_bounds, rows[k]);
    }
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
    every_case(&bf16_bounds);
}

/* The rows that make_ssa.py has are those that are drawn here. */
static void rows_are_the_golden_ones(void **state)
{
    (void)state;
    run r;
    static const int32_t golden_rows[2][5] = {{4, 6, 7, 18, 20}, {2, 7, 13, 19, 23}};
    open_run(&r, &apla5, COMPUTE_F32, 0);
    for (int block = 0; block < 2; block++) {
        char name[64];
        snprintf(name, sizeof name, "blocks.%d.attn.proj.weight", block);
        const param *p = param_find(&r.ps, name);
        assert_non_null(p);
        assert_int_equal(p->rows, 5);
        for (int i = 0; i < 5; i++) print_message("%d ", p->rows_host[i]);
        print_message("\n");
        assert_memory_equal(p->rows_host, golden_rows[block], sizeof golden_rows[block]);
    }
    close_run(&r);
}

/* The i-th picture's crops of (crops, BATCH, n) values, one crop after the other. */
static void *of_image(const void *x, size_t crops, size_t picture, size_t bytes)
{
    char *out = malloc(crops * bytes);
    assert_non_null(out);
    for (size_t c = 0; c < crops; c++) memcpy(out + c * bytes, (const char *)x + (c * BATCH + picture) * bytes, bytes);
    return out;
}

/* Gradients of an update from micro-batches of one picture. */
static void gradients_by_image(run *r, ssl_step_out *out)
{
    err e = {0};
    for (size_t i = 0; i < BATCH; i++) {
        float *globals = of_image(r->globals, 2, i, sizeof(float) * 3 * GLOBAL * GLOBAL);
        float *locals = of_image(r->locals, LOCALS, i, sizeof(float) * 3 * LOCAL * LOCAL);
        uint8_t *mask = of_image(r->mask, 2, i, r->s.P);
        ssl_step_in in = {.globals = globals, .locals = locals, .mask = mask, .teacher_temp = r->h.teacher_temp};
        ASSERT_OK(ssl_step_gradients(&r->s, &in, out, &e));
        free(globals);
        free(locals);
        free(mask);
    }
}

static double difference(run *a, const dv *x, const dv *y, size_t n)
{
    double worst = 0, most = 1e-30;
    float *u = malloc(n * sizeof *u), *v = malloc(n * sizeof *v);
    assert_true(u && v);
    a->d.op->download(&a->d, u, x, n * sizeof *u);
    a->d.op->download(&a->d, v, y, n * sizeof *v);
    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)u[i] - v[i]));
        most = fmax(most, fabs((double)u[i]));
    }
    free(u);
    free(v);
    return worst / most;
}

/* Three micro-batches of an image each give the gradients, losses, entropies and next centres of the batch of three,
 * but for KoLeo, which has no neighbour in a batch of one. Two updates: what adds up begins anew. */
static void accumulation(void **state)
{
    (void)state;
    run a, b;
    ssl_step_out x = {0}, y = {0};
    err e = {0};
    open_batches(&a, &apla_separate, COMPUTE_F32, 0, BATCH);
    open_batches(&b, &apla_separate, COMPUTE_F32, 0, 1);
    a.s.config.koleo = b.s.config.koleo = 0;
    assert_int_equal(ssl_step_update(&b.s, &(ssl_step_update_in){.momentum = 1}, &y, &e), ERR_INTERNAL);
    for (int t = 1; t <= 2; t++) {
        gradients(&a, &x);
        gradients_by_image(&b, &y);
        assert_true(fabs(x.loss - y.loss) < 1e-5 && fabs(x.dino - y.dino) < 1e-5 && fabs(x.ibot - y.ibot) < 1e-5);
        for (int g = 0; g < 2; g++) {
            assert_true(fabs(x.target_entropy[g] - y.target_entropy[g]) < 1e-5);
            assert_true(fabs(x.marginal_entropy[g] - y.marginal_entropy[g]) < 1e-5);
        }
        for (size_t i = 0; i < a.ps.n; i++) {
            const param *p = &a.ps.p[i], *q = &b.ps.p[i];
            double off = difference(&a, p->grad, q->grad, p->rows * p->cols);
            if (off > 1e-4) fail_msg("update %d, %s: %.1e", t, p->name, off);
        }
        update(&a, t, false, &x);
        update(&b, t, false, &y);
        for (int g = 0; g < 2; g++)
            assert_true(difference(&a, a.s.group[g].center, b.s.group[g].center, PROTOTYPES) < 1e-5);
    }
    close_run(&a);
    close_run(&b);
}

/* Warm-up of the head: its gradients are the same, the backbone's stay zero, and an update leaves the backbone alone.
 */
static void head_only(void **state)
{
    (void)state;
    run r;
    ssl_step_out out;
    err e = {0};
    open_run(&r, &apla, COMPUTE_F32, 0);
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
        cmocka_unit_test(rows_are_the_golden_ones),
        cmocka_unit_test(fp32),
        cmocka_unit_test(fp32_in_pieces),
        cmocka_unit_test(bf16),
        cmocka_unit_test(accumulation),
        cmocka_unit_test(head_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
