/* The optimiser's ops on the CUDA back end against the CPU's, over lists of params of all kinds: matrices whole and by
 * rows, vectors, groups that a step leaves out, hundreds of tiny ones in a call. */
#include "tests/cuda_host/twin.h"

enum { PARAMS_MOST = 130 };

static const compute_type types[] = {COMPUTE_F32, COMPUTE_BF16};

typedef enum { ROWS = 1, LIVE_F32 = 2, NO_LIVE = 4, TEACHER = 8, DECAY = 16, HEAD = 32, PROTOTYPES = 64 } traits;

typedef struct {
    size_t rows, cols;
    int traits;
} kind;

/* One param on both sides; the tensors are kept for comparison. */
typedef struct {
    tensor master, grad, m, v, teacher, live, live_teacher, index;
    linear_w linear[TWINS], linear_teacher[TWINS];
    int32_t *rows_host;
} made;

typedef struct {
    twin t;
    size_t n;
    kind kinds[PARAMS_MOST];
    made made[PARAMS_MOST];
    param p[TWINS][PARAMS_MOST];
} world;

static tensor squares(twin *t, size_t n, uint64_t seed)
{
    float *x = malloc((n + 1) * sizeof *x);
    assert_non_null(x);
    rng g = rng_at(seed, 0, 0, 0);
    for (size_t i = 0; i < n; i++) x[i] = 1e-4f * rng_uniform(&g);
    tensor r = tensor_of(t, TENSOR_F32, x, n);
    free(x);
    return r;
}

/* Rows 1, 3, 4, 6, 7, 9, ... of a tensor of twice as many and one. */
static void index_rows(world *w, size_t i)
{
    made *x = &w->made[i];
    size_t rows = w->kinds[i].rows;
    x->rows_host = malloc(rows * sizeof *x->rows_host);
    assert_non_null(x->rows_host);
    for (size_t r = 0; r < rows; r++) x->rows_host[r] = (int32_t)(r + 1 + r / 2);
    x->index = tensor_of(&w->t, TENSOR_BYTES, x->rows_host, rows * sizeof *x->rows_host);
}

static void add_param(world *w, kind k, bool weights_only)
{
    size_t i = w->n++, n = k.rows * k.cols, full = k.traits & ROWS ? 2 * k.rows + 1 : k.rows;
    uint64_t seed = 100 * i;
    made *x = &w->made[i];
    w->kinds[i] = k;
    x->master = tensor_f32(&w->t, n, seed, 1);
    if (!weights_only) {
        x->grad = tensor_f32(&w->t, n, seed + 1, 0.1f);
        x->m = tensor_f32(&w->t, n, seed + 2, 0.01f);
        x->v = squares(&w->t, n, seed + 3);
    }
    if (k.traits & TEACHER) x->teacher = tensor_f32(&w->t, n, seed + 4, 1);
    tensor_kind live = k.traits & LIVE_F32 ? TENSOR_F32 : TENSOR_CT;
    if (!(k.traits & NO_LIVE)) x->live = tensor_random(&w->t, live, full * k.cols, seed + 5, 1);
    if (!(k.traits & NO_LIVE) && k.traits & TEACHER)
        x->live_teacher = tensor_random(&w->t, live, full * k.cols, seed + 6, 1);
    if (k.traits & ROWS) index_rows(w, i);
    BOTH(t, side)
    {
        bool linear = k.cols > 1;
        x->linear[side].version = x->linear_teacher[side].version = 1;
        w->p[side][i] = (param){.rows = k.rows,
                                .cols = k.cols,
                                .full_rows = full,
                                .rows_host = x->rows_host,
                                .row_index = x->index.p[side],
                                .master = x->master.p[side],
                                .grad = x->grad.p[side],
                                .m = x->m.p[side],
                                .v = x->v.p[side],
                                .teacher = x->teacher.p[side],
                                .live = x->live.p[side],
                                .live_teacher = x->live_teacher.p[side],
                                .live_ct = live == TENSOR_CT,
                                .linear = linear ? &x->linear[side] : NULL,
                                .linear_teacher = linear && k.traits & TEACHER ? &x->linear_teacher[side] : NULL,
                                .lr_scale = i % 2 ? 0.7f : 1,
                                .weights_only = weights_only,
                                .decay = k.traits & DECAY,
                                .head = k.traits & (HEAD | PROTOTYPES),
                                .prototypes = k.traits & PROTOTYPES};
    }
}

static world *open_world(compute_type type)
{
    world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->t = twin_open(type);
    return w;
}

static void close_world(world *w)
{
    for (size_t i = 0; i < w->n; i++) free(w->made[i].rows_host);
    twin_close(&w->t);
    free(w);
}

/* All that the ops may write, and the versions. */
static void same(world *w, bool versions)
{
    for (size_t i = 0; i < w->n; i++) {
        made *x = &w->made[i];
        tensor *all[] = {&x->master, &x->m, &x->v, &x->teacher};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++)
            if (all[k]->n) twin_compare(&w->t, "a param", all[k], 1e-12);
        if (x->live.n) twin_compare(&w->t, "live", &x->live, x->live.kind == TENSOR_CT ? twin_rounding(&w->t) : 1e-12);
        if (x->live_teacher.n)
            twin_compare(&w->t, "live teacher", &x->live_teacher,
                         x->live.kind == TENSOR_CT ? twin_rounding(&w->t) : 1e-12);
        if (!versions) continue;
        assert_int_equal(x->linear[CPU].version, x->linear[CUDA].version);
        assert_int_equal(x->linear_teacher[CPU].version, x->linear_teacher[CUDA].version);
    }
}

/* Four values at a time and one; several chunks of 4096; none at all. */
static const kind kinds[] = {{3, 5, DECAY | TEACHER},
                             {33, 64, DECAY | TEACHER | ROWS},
                             {7, 33, DECAY | TEACHER | ROWS},
                             {130, 96, DECAY},
                             {257, 1, LIVE_F32 | TEACHER},
                             {65, 1, LIVE_F32 | ROWS},
                             {1, 4097, DECAY | HEAD | TEACHER},
                             {41, 100, DECAY | PROTOTYPES | TEACHER},
                             {0, 8, DECAY},
                             {9, 8, DECAY | NO_LIVE | HEAD | TEACHER},
                             {48, 1, HEAD | LIVE_F32},
                             {2, 4100, ROWS | LIVE_F32 | TEACHER}};

static void add_kinds(world *w, bool weights_only)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) add_param(w, kinds[i], weights_only);
}

static const struct {
    const char *name;
    float clip;
    bool skip_prototypes, skip_backbone, average;
} steps[] = {{"all", 0, false, false, true},
             {"clipped", 0.5f, false, false, false},
             {"far from the clip", 1e6f, true, false, true},
             {"head alone", 3, true, true, true}};

static void run_step(world *w, const adamw_step *s, tensor *square)
{
    BOTH(t, i)
    {
        device *d = &w->t.d[i];
        d->op->grad_square(d, square->p[i], w->p[i], w->n, s);
        d->op->adamw(d, w->p[i], w->n, s, square->p[i]);
    }
}

static void training(void **state)
{
    (void)state;
    for (size_t c = 0; c < 2; c++)
        for (size_t k = 0; k < sizeof steps / sizeof *steps; k++) {
            world *w = open_world(types[c]);
            adamw_step s = {.beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.05f, .lr = 1e-2f};
            s.head_lr = 3e-3f, s.t[ADAM_BACKBONE] = 3, s.t[ADAM_HEAD] = 5, s.t[ADAM_PROTOTYPES] = 2,
            s.clip = steps[k].clip;
            s.skip_prototypes = steps[k].skip_prototypes, s.skip_backbone = steps[k].skip_backbone;
            s.average = steps[k].average, s.momentum = 0.9f;
            printf("  %s\n", steps[k].name);
            add_kinds(w, false);
            tensor square = tensor_f32(&w->t, 1, 9, 1);
            run_step(w, &s, &square);
            twin_compare(&w->t, "grad_square", &square, 1e-12);
            same(w, true);
            close_world(w);
        }
}

/* Where the gradients are not finite nothing changes. */
static void not_finite(void **state)
{
    (void)state;
    static const float bad[] = {INFINITY, NAN};
    for (size_t k = 0; k < 2; k++) {
        world *w = open_world(COMPUTE_BF16);
        adamw_step s = {
            .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .lr = 1, .head_lr = 1, .t = {1, 1, 1}, .average = true};
        add_kinds(w, false);
        tensor square = tensor_of(&w->t, TENSOR_F32, &bad[k], 1);
        float *before = tensor_values(&w->t, &w->made[0].master, CUDA);
        BOTH(t, i) w->t.d[i].op->adamw(&w->t.d[i], w->p[i], w->n, &s, square.p[i]);
        float *after = tensor_values(&w->t, &w->made[0].master, CUDA);
        assert_memory_equal(before, after, w->made[0].master.n * sizeof *before);
        same(w, false);
        free(before);
        free(after);
        close_world(w);
    }
}

/* After a load: live copies of what has no gradients; and the teacher's average, where nothing trains. */
static void weights_only(void **state)
{
    (void)state;
    for (size_t c = 0; c < 2; c++) {
        world *w = open_world(types[c]);
        add_kinds(w, true);
        BOTH(t, i) w->t.d[i].op->refresh(&w->t.d[i], w->p[i], w->n);
        same(w, true);
        adamw_step s = {.skip_prototypes = true, .skip_backbone = true, .average = true, .momentum = 0.75f};
        tensor square = tensor_of(&w->t, TENSOR_F32, &(float){0}, 1);
        for (size_t k = 0; k < w->n; k++) BOTH(t, i) w->p[i][k].head = false;
        BOTH(t, i) w->t.d[i].op->adamw(&w->t.d[i], w->p[i], w->n, &s, square.p[i]);
        same(w, true);
        close_world(w);
    }
}

/* More than fit into three launches, and one value each. */
static void tiny(void **state)
{
    (void)state;
    world *w = open_world(COMPUTE_BF16);
    adamw_step s = {.beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .weight_decay = 0.1f, .lr = 0.1f, .t = {1, 1, 1}};
    s.clip = 0.1f, s.average = true, s.momentum = 0.5f;
    tensor grads = tensor_f32(&w->t, 128 * 8, 1, 1), masters = tensor_f32(&w->t, 128 * 8, 2, 1);
    tensor ms = tensor_f32(&w->t, 128 * 8, 3, 0), vs = tensor_f32(&w->t, 128 * 8, 4, 0);
    tensor live = tensor_ct(&w->t, 128 * 8, 5, 1), square = tensor_f32(&w->t, 1, 6, 1);
    tensor live_teacher = tensor_ct(&w->t, 128 * 8, 7, 1), teachers = tensor_f32(&w->t, 128 * 8, 8, 1);
    BOTH(t, i)
    {
        device *d = &w->t.d[i];
        for (size_t k = 0; k < 128; k++) { /* slices that start off 16 bytes too */
            size_t at = 8 * k + k % 5, bytes = at * sizeof(float);
            w->p[i][k] = (param){.rows = 1 + k % 3, .cols = 1, .lr_scale = 1, .live_ct = true, .decay = k % 2};
            w->p[i][k].master = dv_at(masters.p[i], bytes);
            w->p[i][k].grad = dv_at(grads.p[i], bytes);
            w->p[i][k].m = dv_at(ms.p[i], bytes);
            w->p[i][k].v = dv_at(vs.p[i], bytes);
            w->p[i][k].live = dv_at(live.p[i], at * d->ct_bytes);
            w->p[i][k].teacher = dv_at(teachers.p[i], bytes);
            w->p[i][k].live_teacher = dv_at(live_teacher.p[i], at * d->ct_bytes);
        }
        d->op->grad_square(d, square.p[i], w->p[i], 128, &s);
        d->op->adamw(d, w->p[i], 128, &s, square.p[i]);
        d->op->refresh(d, w->p[i], 128);
        w->p[i][0].teacher = NULL; /* a list is full at a student's live copy now */
        d->op->refresh(d, w->p[i], 128);
    }
    twin_compare(&w->t, "grad_square", &square, 1e-12);
    twin_compare(&w->t, "masters", &masters, 1e-12);
    twin_compare(&w->t, "m", &ms, 1e-12);
    twin_compare(&w->t, "teachers", &teachers, 1e-12);
    twin_compare(&w->t, "live teachers", &live_teacher, twin_rounding(&w->t));
    twin_compare(&w->t, "v", &vs, 1e-12);
    twin_compare(&w->t, "live", &live, twin_rounding(&w->t));
    BOTH(t, i) w->t.d[i].op->grad_square(&w->t.d[i], square.p[i], w->p[i], 0, &s);
    twin_compare(&w->t, "of nothing", &square, 0);
    close_world(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(training), cmocka_unit_test(not_finite),
                                       cmocka_unit_test(weights_only), cmocka_unit_test(tiny)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
