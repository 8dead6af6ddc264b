/* Linear layers of the CUDA back end (cuBLASLt's stand-in) against the CPU's: all that follows a product, both
 * directions, gradients of weights with and without chosen rows; and that nothing is made anew for a shape that was
 * there. */
#include "tests/cuda_host/emu_fail.h"
#include "tests/cuda_host/twin.h"

typedef struct {
    size_t N, I, O;
} shape;

static const shape shapes[] = {{1, 3, 5}, {7, 33, 10}, {37, 64, 192}, {130, 40, 65}, {257, 24, 96}, {9, 16, 1}};
/* Where GELU and slopes are the end of a product: ragged tiles, less than a step of the inner index and many. */
static const shape ends[] = {{1, 32, 32},    {37, 64, 192},   {130, 160, 40},
                             {130, 40, 160}, {129, 288, 136}, {66, 416, 64}};
static const compute_type types[] = {COMPUTE_F32, COMPUTE_BF16};
enum { SHAPES = sizeof shapes / sizeof *shapes, ENDS = sizeof ends / sizeof *ends, TYPES = 2 };

/* One layer on both sides. */
typedef struct {
    linear_w w[TWINS];
} layer;

static layer layer_of(const shape *s, const tensor *w, const tensor *bias)
{
    layer l;
    for (int i = 0; i < TWINS; i++)
        l.w[i] = (linear_w){.out = s->O, .in = s->I, .w = w->p[i], .bias = bias ? bias->p[i] : NULL, .version = 1};
    return l;
}

static void release(twin *t, layer *l)
{
    BOTH(t, i) t->d[i].op->linear_release(&t->d[i], &l->w[i]);
}

/* Two roundings: of the product and of what follows it. */
static double most_of(const twin *t)
{
    return 2 * twin_rounding(t);
}

static void forward(twin *t, const shape *s, bool with_bias)
{
    size_t N = s->N, I = s->I, O = s->O;
    tensor x = tensor_ct(t, N * I, 1, 1), w = tensor_ct(t, O * I, 2, 0.2f), bias = tensor_f32(t, O, 3, 1);
    tensor y = tensor_ct(t, N * O, 4, 1), pre = tensor_ct(t, N * O, 5, 1), res = tensor_ct(t, N * O, 6, 1);
    tensor ls = tensor_f32(t, O, 7, 0.5f);
    layer l = layer_of(s, &w, with_bias ? &bias : NULL);
    BOTH(t, i) t->d[i].op->linear_fwd(&t->d[i], y.p[i], x.p[i], &l.w[i], N);
    twin_compare(t, "linear_fwd", &y, most_of(t));
    BOTH(t, i) t->d[i].op->linear_gelu_fwd(&t->d[i], y.p[i], pre.p[i], x.p[i], &l.w[i], N);
    twin_compare(t, "linear_gelu_fwd, pre", &pre, most_of(t));
    twin_compare(t, "linear_gelu_fwd", &y, 2 * most_of(t));
    BOTH(t, i) t->d[i].op->linear_gelu_fwd(&t->d[i], y.p[i], NULL, x.p[i], &l.w[i], N);
    twin_compare(t, "linear_gelu_fwd, nothing kept", &y, 2 * most_of(t));
    BOTH(t, i)
    t->d[i].op->linear_residual_fwd(&t->d[i], y.p[i], res.p[i], x.p[i], &l.w[i], ls.p[i], pre.p[i], NULL, NULL, N);
    twin_compare(t, "linear_residual_fwd", &y, most_of(t));
    BOTH(t, i)
    t->d[i].op->linear_residual_fwd(&t->d[i], res.p[i], res.p[i], x.p[i], &l.w[i], NULL, pre.p[i], NULL, NULL, N);
    twin_compare(t, "linear_residual_fwd, in place", &res, most_of(t));
    release(t, &l);
}

static void back(twin *t, const shape *s)
{
    size_t N = s->N, I = s->I, O = s->O;
    shape below = {N, O, I}; /* the layer whose GELU the gradient goes through */
    tensor dy = tensor_ct(t, N * O, 1, 1), w = tensor_ct(t, O * I, 2, 0.2f), dx = tensor_ct(t, N * I, 3, 1);
    tensor wb = tensor_ct(t, O * I, 4, 0.2f), bias = tensor_f32(t, I, 5, 1), hidden = tensor_ct(t, N * I, 6, 1);
    uint8_t *zero = calloc(N, op_slope_bytes(I));
    assert_non_null(zero);
    tensor slope = tensor_of(t, TENSOR_BYTES, zero, N * op_slope_bytes(I));
    free(zero);
    layer l = layer_of(s, &w, NULL), lb = layer_of(&below, &wb, &bias);
    BOTH(t, i) t->d[i].op->linear_dx(&t->d[i], dx.p[i], dy.p[i], &l.w[i], N);
    twin_compare(t, "linear_dx", &dx, most_of(t));
    BOTH(t, i)
    {
        t->d[i].op->linear_gelu_slope_fwd(&t->d[i], hidden.p[i], slope.p[i], dy.p[i], &lb.w[i], N);
        t->d[i].op->linear_dx_slope(&t->d[i], dx.p[i], dy.p[i], &l.w[i], slope.p[i], N);
    }
    twin_compare(t, "linear_gelu_slope_fwd", &hidden, 2 * most_of(t));
    twin_compare(t, "linear_dx_slope", &dx, 2 * most_of(t) + 4e-6); /* a step of 1/811 either way */
    release(t, &l);
    release(t, &lb);
}

/* Each third row, the last among them. */
static tensor rows_of(twin *t, size_t O, size_t *R)
{
    int32_t rows[1024];
    *R = 0;
    for (size_t o = (O - 1) % 3; o < O; o += 3) rows[(*R)++] = (int32_t)o;
    return tensor_of(t, TENSOR_BYTES, rows, *R * sizeof *rows);
}

static void weights(twin *t, const shape *s, bool chosen)
{
    size_t N = s->N, I = s->I, O = s->O, R = O;
    tensor dy = tensor_ct(t, N * O, 1, 1), x = tensor_ct(t, N * I, 2, 1), rows = {0};
    if (chosen) rows = rows_of(t, O, &R);
    tensor dw = tensor_f32(t, R * I, 3, 1), db = tensor_f32(t, R, 4, 1);
    twin_reserve(t, N * R * 4, N * R * t->d[CUDA].ct_bytes);
    BOTH(t, i)
    {
        device *d = &t->d[i];
        d->op->linear_dw(d, dw.p[i], db.p[i], dy.p[i], x.p[i], rows.p[i], R, N, O, I);
        d->op->linear_dw(d, dw.p[i], NULL, dy.p[i], x.p[i], rows.p[i], R, N, O, I);
        d->op->linear_dw(d, NULL, db.p[i], dy.p[i], x.p[i], rows.p[i], R, N, O, I);
    }
    twin_compare(t, chosen ? "linear_dw, dw of chosen rows" : "linear_dw, dw", &dw, 1e-11);
    twin_compare(t, chosen ? "linear_dw, db of chosen rows" : "linear_dw, db", &db, 1e-11);
}

static void all_shapes(void **state)
{
    (void)state;
    for (size_t c = 0; c < TYPES; c++)
        for (size_t k = 0; k < SHAPES; k++) {
            twin t = twin_open(types[c]);
            printf("  %s: N %zu, I %zu, O %zu\n", types[c] == COMPUTE_BF16 ? "bf16" : "f32", shapes[k].N, shapes[k].I,
                   shapes[k].O);
            for (int b = 0; b < 2; b++) forward(&t, &shapes[k], b);
            back(&t, &shapes[k]);
            for (int r = 0; r < 2; r++) weights(&t, &shapes[k], r);
            twin_close(&t);
        }
}

/* On a GPU whose products are of our own, and on one where they are cuBLASLt's. */
static void products_that_end(void **state)
{
    (void)state;
    static const char *const sm[] = {"86", "90", "100"};
    for (size_t c = 0; c < sizeof sm / sizeof *sm; c++) {
        setenv("CUDA_EMU_SM", sm[c], 1);
        for (size_t k = 0; k < ENDS; k++) {
            const shape *s = &ends[k];
            twin t = twin_open(COMPUTE_BF16);
            printf("  sm_%s: N %zu, I %zu, O %zu\n", sm[c], s->N, s->I, s->O);
            for (int b = 0; b < 2; b++) forward(&t, s, b);
            back(&t, s);
            twin_close(&t);
        }
    }
    unsetenv("CUDA_EMU_SM");
}

/* Nothing to do, and a weight that is another layer's. */
static void empty_and_shared(void **state)
{
    (void)state;
    const shape s = {5, 16, 8};
    twin t = twin_open(COMPUTE_BF16);
    tensor x = tensor_ct(&t, s.N * s.I, 1, 1), w = tensor_ct(&t, s.O * s.I, 2, 1), b = tensor_f32(&t, s.O, 3, 1);
    tensor y = tensor_ct(&t, s.N * s.O, 4, 1), dw = tensor_f32(&t, s.O * s.I, 5, 1);
    layer l = layer_of(&s, &w, NULL), own = layer_of(&s, &w, &b);
    BOTH(&t, i)
    {
        device *d = &t.d[i];
        own.w[i].same = &l.w[i];
        d->op->linear_fwd(d, y.p[i], x.p[i], &l.w[i], 0);
        d->op->linear_gelu_fwd(d, y.p[i], NULL, x.p[i], &l.w[i], 0);
        d->op->linear_dx(d, x.p[i], y.p[i], &l.w[i], 0);
        d->op->linear_dw(d, dw.p[i], NULL, y.p[i], x.p[i], NULL, s.O, 0, s.O, s.I);
    }
    twin_compare(&t, "no rows: dw as it was", &dw, 0);
    twin_compare(&t, "no rows: y as it was", &y, 0);
    BOTH(&t, i) t.d[i].op->linear_fwd(&t.d[i], y.p[i], x.p[i], &own.w[i], s.N);
    twin_compare(&t, "a weight that two layers share", &y, most_of(&t));
    release(&t, &l);
    release(&t, &own);
    twin_close(&t);
}

/* More shapes than are kept, and rows of one that begin anywhere: an algorithm may not want more of an address than it
 * has. */
static void many_shapes(void **state)
{
    (void)state;
    enum { MOST = 128, I = 8, O = 100 }; /* more shapes than are kept */
    twin t = twin_open(COMPUTE_BF16);
    tensor x = tensor_ct(&t, MOST * I, 1, 1), w = tensor_ct(&t, O * I, 2, 1), y = tensor_ct(&t, MOST * O, 3, 1);
    layer l = layer_of(&(shape){0, I, O}, &w, NULL);
    device *cuda = &t.d[CUDA];
    for (int turn = 0; turn < 2; turn++) {
        long before = emu_counted().heuristics;
        for (size_t o = 1; o <= (turn ? 10 : O); o++) {
            l.w[CUDA].out = turn ? O + 1 - o : o; /* the last are there, the first were given up */
            for (size_t N = MOST; N; N--) cuda->op->linear_fwd(cuda, y.p[CUDA], x.p[CUDA], &l.w[CUDA], N);
        }
        if (turn)
            assert_int_equal(emu_counted().heuristics - before, 6 * MOST); /* 12,288 fill it, 512 more are known */
        else
            assert_int_equal(emu_counted().heuristics - before, O * MOST);
    }
    l.w[CUDA].out = O;
    cuda->op->linear_fwd(cuda, y.p[CUDA], x.p[CUDA], &l.w[CUDA], MOST);
    t.d[CPU].op->linear_fwd(&t.d[CPU], y.p[CPU], x.p[CPU], &l.w[CPU], MOST);
    twin_compare(&t, "more shapes than are kept", &y, most_of(&t));
    BOTH(&t, i)
    {
        device *d = &t.d[i];
        for (size_t r = 0; r < 7; r++)
            d->op->linear_fwd(d, dv_at(y.p[i], r * O * d->ct_bytes), dv_at(x.p[i], (r + 1) * I * d->ct_bytes), &l.w[i],
                              1);
    }
    twin_compare(&t, "row by row", &y, most_of(&t));
    release(&t, &l);
    twin_close(&t);
}

/* Products since `before`, and those of them by fp16 copies. */
static void made_since(const emu_counts *before, long products, long halves, const char *what)
{
    emu_counts now = emu_counted();
    printf("    %s: %ld products, %ld of them by fp16\n", what, now.products - before->products,
           now.half_products - before->half_products);
    assert_int_equal(now.products - before->products, products);
    assert_int_equal(now.half_products - before->half_products, halves);
}

/* A GPU without bf16. The type left to us: forward products by fp16 copies, gradients, which fp16 could not hold, in
 * fp32; fp32 asked for: all of them. */
static void halves_forward(void **state)
{
    (void)state;
    const shape s = {130, 64, 96};
    const double fp16 = 2.0 / (2048.0 * 2048.0); /* two operands, off by 1/2048 at most */
    setenv("CUDA_EMU_SM", "75", 1);
    for (int left = 0; left < 2; left++) {
        twin t = twin_open(left ? COMPUTE_AUTO : COMPUTE_F32);
        assert_int_equal(t.d[CUDA].ct, COMPUTE_F32);
        size_t N = s.N, I = s.I, O = s.O;
        double most = left ? fp16 : most_of(&t);
        tensor x = tensor_ct(&t, N * I, 1, 1), w = tensor_ct(&t, O * I, 2, 0.2f), bias = tensor_f32(&t, O, 3, 1);
        tensor y = tensor_ct(&t, N * O, 4, 1), pre = tensor_ct(&t, N * O, 5, 1), dx = tensor_ct(&t, N * I, 6, 1);
        tensor dy = tensor_ct(&t, N * O, 7, 1e-9f), dw = tensor_f32(&t, O * I, 8, 0),
               lost = tensor_f32(&t, N * O, 9, 0);
        layer l = layer_of(&s, &w, &bias);
        emu_counts before = emu_counted();
        BOTH(&t, i) t.d[i].op->linear_fwd(&t.d[i], y.p[i], x.p[i], &l.w[i], N);
        twin_compare(&t, "linear_fwd", &y, most);
        BOTH(&t, i) t.d[i].op->linear_gelu_fwd(&t.d[i], y.p[i], pre.p[i], x.p[i], &l.w[i], N);
        twin_compare(&t, "linear_gelu_fwd, pre", &pre, most);
        twin_compare(&t, "linear_gelu_fwd", &y, 2 * most);
        BOTH(&t, i) t.d[i].op->linear_gelu_slope_fwd(&t.d[i], y.p[i], lost.p[i], x.p[i], &l.w[i], N);
        twin_compare(&t, "linear_gelu_slope_fwd", &y, 2 * most);
        BOTH(&t, i)
        t.d[i].op->linear_residual_fwd(&t.d[i], y.p[i], pre.p[i], x.p[i], &l.w[i], NULL, lost.p[i], NULL, NULL, N);
        twin_compare(&t, "linear_residual_fwd", &y, most);
        made_since(&before, 4, left ? 4 : 0, "forward");
        before = emu_counted();
        BOTH(&t, i)
        {
            t.d[i].op->linear_dx(&t.d[i], dx.p[i], dy.p[i], &l.w[i], N);
            t.d[i].op->linear_dw(&t.d[i], dw.p[i], NULL, dy.p[i], x.p[i], NULL, O, N, O, I);
        }
        twin_compare(&t, "linear_dx", &dx, 1e-11);
        twin_compare(&t, "linear_dw", &dw, 1e-11);
        made_since(&before, 2, 0, "gradients");
        release(&t, &l);
        twin_close(&t);
    }
    unsetenv("CUDA_EMU_SM");
}

/* A bias that cuBLASLt does not take (its stand-in: one of one value) is asked for once. */
static void refused_bias(void **state)
{
    (void)state;
    enum { CALLS = 4 };
    const shape s = {9, 16, 1};
    for (size_t c = 0; c < TYPES; c++) {
        twin t = twin_open(types[c]);
        tensor x = tensor_ct(&t, s.N * s.I, 1, 1), w = tensor_ct(&t, s.I, 2, 1), b = tensor_f32(&t, 1, 3, 1);
        tensor y = tensor_ct(&t, s.N, 4, 0);
        layer l = layer_of(&s, &w, &b);
        emu_counts before = emu_counted();
        for (int k = 0; k < CALLS; k++) t.d[CUDA].op->linear_fwd(&t.d[CUDA], y.p[CUDA], x.p[CUDA], &l.w[CUDA], s.N);
        emu_counts now = emu_counted();
        t.d[CPU].op->linear_fwd(&t.d[CPU], y.p[CPU], x.p[CPU], &l.w[CPU], s.N);
        twin_compare(&t, "a bias refused", &y, most_of(&t));
        assert_int_equal(now.products - before.products, CALLS);
        assert_int_equal(now.heuristics - before.heuristics, 2); /* with it, and without */
        release(&t, &l);
        twin_close(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_shapes),       cmocka_unit_test(products_that_end),
                                       cmocka_unit_test(empty_and_shared), cmocka_unit_test(many_shapes),
                                       cmocka_unit_test(halves_forward),   cmocka_unit_test(refused_bias)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
