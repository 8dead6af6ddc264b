/* The CPU's casts, its exp and erf, and the ops that keep state or use the workspace (linear layers with their packed
 * weights, row slices, attention), against plain double-precision loops, at odd shapes, in both compute types. */
#include "tests/model/op_values.h"

/* The root of the mean square error over that of the expected values. */
static double error_of(device *d, const values *t, const double *expected)
{
    float *x = malloc((t->n + 1) * sizeof *x);
    double off = 0, size = 1e-30;
    assert_non_null(x);
    for (size_t i = 0; i < t->n; i++) {
        if (t->f32)
            x[i] = ((const float *)t->p)[i];
        else
            op_cpu_load(d, &x[i], t->p, i, 1);
        off += (x[i] - expected[i]) * (x[i] - expected[i]);
        size += expected[i] * expected[i];
    }
    free(x);
    return sqrt(off / size);
}

/* One rounding to ct, with room for the accumulation's. */
static double bound(const device *d)
{
    return d->ct == COMPUTE_BF16 ? 4e-3 : 2e-6;
}

/* --- casts and functions */

static void rounds_to_even(void **state)
{
    (void)state;
    static const struct {
        uint32_t from;
        uint16_t to;
    } rows[] = {{0x00000000, 0x0000}, {0x80000000, 0x8000}, {0x3f800000, 0x3f80}, {0x3f808000, 0x3f80},
                {0x3f808001, 0x3f81}, {0x3f818000, 0x3f82}, {0x3f807fff, 0x3f80}, {0xbf818000, 0xbf82},
                {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x7f7fffff, 0x7f80}, {0x00000001, 0x0000},
                {0x7f800001, 0x7fc0}, {0x7fffffff, 0x7fff}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        float f;
        memcpy(&f, &rows[i].from, sizeof f);
        if (op_f32_to_bf16(f) != rows[i].to) fail_msg("%08x gives %04x", rows[i].from, op_f32_to_bf16(f));
    }
    for (uint32_t h = 0; h < 0x10000; h++) { /* back and forth */
        float f = op_bf16_to_f32((uint16_t)h);
        assert_true(isnan(f) ? isnan(op_bf16_to_f32(op_f32_to_bf16(f))) : op_f32_to_bf16(f) == h);
    }
}

static void casts_of_any_length(void **state)
{
    (void)state;
    static const size_t lengths[] = {0, 1, 7, 4095, 4096, 4097, 10000};
    for (size_t c = 0; c < 2; c++) {
        device d = open_device(types[c]);
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            values t = make(&d, lengths[i], i + 1, 3, false), u = make(&d, lengths[i], i + 50, 1, false);
            values back = make(&d, lengths[i], 99, 0, true);
            d.op->to_f32(&d, back.p, t.p, t.n);
            for (size_t k = 0; k < t.n; k++) assert_true(((const float *)back.p)[k] == (float)t.v[k]);
            d.op->add(&d, t.p, u.p, t.n);
            for (size_t k = 0; k < t.n; k++) t.v[k] += u.v[k];
            assert_true(error_of(&d, &t, t.v) < bound(&d));
            d.op->scale(&d, u.p, -0.375f, u.n);
            for (size_t k = 0; k < u.n; k++) u.v[k] *= -0.375;
            assert_true(error_of(&d, &u, u.v) < bound(&d));
            drop(&d, &t);
            drop(&d, &u);
            drop(&d, &back);
        }
        device_close(&d);
    }
}

static void exp_and_erf(void **state)
{
    (void)state;
    double worst_exp = 0, worst_erf = 0;
    for (double x = -86.9; x < 87.9; x += 0.00137) {
        float f = (float)x;
        worst_exp = fmax(worst_exp, fabs(op_exp(f) / exp((double)f) - 1));
    }
    for (double x = -6; x < 6; x += 0.0000713) {
        float f = (float)x;
        worst_erf = fmax(worst_erf, fabs(op_erf(f) - erf((double)f)));
    }
    print_message("exp within %.2g (relative), erf within %.2g (absolute)\n", worst_exp, worst_erf);
    assert_true(worst_exp < 2e-7);
    assert_true(worst_erf < 5e-7);
    assert_true(op_exp(0) == 1 && op_exp(-1000) < 1e-37f && op_exp(-1000) >= 0 && isfinite(op_exp(1000)) &&
                isnan(op_exp(NAN)));
    assert_true(op_erf(0) == 0 && fabsf(op_erf(50) - 1) < 5e-7f && fabsf(op_erf(-50) + 1) < 5e-7f);
}

static void memory(void **state)
{
    (void)state;
    device d = open_device(COMPUTE_F32);
    err e = {0};
    dv *p;
    ASSERT_OK(d.op->alloc(&d, 1000, &p, &e));
    assert_int_equal((uintptr_t)p % 64, 0);
    for (size_t i = 0; i < 1000; i++) assert_int_equal(((const char *)p)[i], 0);
    d.op->free(&d, p);
    assert_int_equal(d.op->alloc(&d, SIZE_MAX - 10, &p, &e), ERR_NOMEM);
    assert_null(p);
    e = (err){0};
    ASSERT_OK(device_reserve(&d, 5000, &e));
    dv *work = d.work;
    ASSERT_OK(device_reserve(&d, 100, &e));
    assert_true(d.work == work && d.work_bytes >= 5000);
    device_close(&d);
}

/* --- linear layers */

typedef struct {
    values w, bias;
    linear_w l;
} layer;

static layer make_layer(device *d, size_t O, size_t I, bool bias, bool frozen)
{
    layer y = {.w = make(d, O * I, O * 1000 + I, 1 / sqrt((double)I), false), .bias = make(d, O, O, 1, true)};
    y.l = (linear_w){.out = O, .in = I, .w = y.w.p, .bias = bias ? y.bias.p : NULL, .frozen = frozen, .version = 1};
    return y;
}

static void drop_layer(device *d, layer *y)
{
    d->op->linear_release(d, &y->l);
    drop(d, &y->w);
    drop(d, &y->bias);
}

static void naive_fwd(double *y, const double *x, const layer *w, size_t N)
{
    size_t O = w->l.out, I = w->l.in;
    for (size_t n = 0; n < N; n++)
        for (size_t o = 0; o < O; o++) {
            double sum = w->l.bias ? w->bias.v[o] : 0;
            for (size_t i = 0; i < I; i++) sum += x[n * I + i] * w->w.v[o * I + i];
            y[n * O + o] = sum;
        }
}

static void naive_dx(double *dx, const double *dy, const layer *w, size_t N)
{
    size_t O = w->l.out, I = w->l.in;
    for (size_t n = 0; n < N; n++)
        for (size_t i = 0; i < I; i++) {
            double sum = 0;
            for (size_t o = 0; o < O; o++) sum += dy[n * O + o] * w->w.v[o * I + i];
            dx[n * I + i] = sum;
        }
}

static double gelu(double x)
{
    return 0.5 * x * (1 + erf(x / sqrt(2.0)));
}

static void linear_layers(void **state)
{
    (void)state;
    static const size_t N[] = {1, 7, 50, 197, 300},
                        shapes[][2] = {{33, 65}, {64, 64}, {3, 192}, {192, 3}, {1, 1}, {130, 48}};
    for (size_t c = 0; c < 2; c++) {
        device d = open_device(types[c]);
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            for (int bias = 0; bias < 2; bias++) {
                size_t O = shapes[s][0], I = shapes[s][1];
                layer w = make_layer(&d, O, I, bias, bias);
                for (size_t k = 0; k < sizeof N / sizeof *N; k++) { /* one packed weight serves them all */
                    size_t n = N[k];
                    values x = make(&d, n * I, 1, 1, false), dy = make(&d, n * O, 2, 1, false);
                    values y = make(&d, n * O, 3, 1, false), pre = make(&d, n * O, 3, 1, false),
                           dx = make(&d, n * I, 3, 1, false);
                    double *expected = malloc(n * (O + I) * sizeof *expected);
                    err e = {0};
                    assert_non_null(expected);
                    naive_fwd(expected, x.v, &w, n);
                    d.op->linear_fwd(&d, y.p, x.p, &w.l, n);
                    assert_true(error_of(&d, &y, expected) < bound(&d));
                    d.op->linear_gelu_fwd(&d, y.p, pre.p, x.p, &w.l, n);
                    assert_true(error_of(&d, &pre, expected) < bound(&d));
                    for (size_t i = 0; i < n * O; i++) expected[i] = gelu(expected[i]);
                    assert_true(error_of(&d, &y, expected) < 2 * bound(&d));
                    d.op->zero(&d, y.p, n * O * d.ct_bytes);
                    d.op->linear_gelu_fwd(&d, y.p, NULL, x.p, &w.l, n);
                    assert_true(error_of(&d, &y, expected) < bound(&d));
                    naive_dx(expected, dy.v, &w, n);
                    d.op->linear_dx(&d, dx.p, dy.p, &w.l, n);
                    assert_true(error_of(&d, &dx, expected) < bound(&d));
                    ASSERT_OK(device_sync(&d, &e));
                    free(expected);
                    values *all[] = {&x, &dy, &y, &pre, &dx};
                    for (int i = 0; i < 5; i++) drop(&d, all[i]);
                }
                drop_layer(&d, &w);
            }
        device_close(&d);
    }
}

/* A packed copy is good while the version stands still; a new version is seen, in both directions and for any N. */
static void packing_follows_versions(void **state)
{
    (void)state;
    enum { O = 48, I = 40 };
    static const size_t N[] = {300, 5, 300, 1, 64};
    for (size_t c = 0; c < 2; c++) {
        device d = open_device(types[c]);
        layer w = make_layer(&d, O, I, true, false);
        values other = make(&d, (size_t)O * I, 77, 0.2, false);
        for (size_t k = 0; k < sizeof N / sizeof *N; k++) {
            size_t n = N[k];
            values x = make(&d, n * I, 1, 1, false), y = make(&d, n * O, 2, 1, false);
            values dx = make(&d, n * I, 3, 1, false), dy = make(&d, n * O, 4, 1, false);
            double *expected = malloc(n * (O + I) * sizeof *expected);
            assert_non_null(expected);
            for (int turn = 0; turn < 2; turn++) { /* as it is, then with other weights */
                if (turn) {
                    size_t shift = k + 1; /* other weights each time */
                    for (size_t i = 0; i < O * I; i++) w.w.v[i] = other.v[(i + shift) % (O * I)];
                    float *f = malloc(O * I * sizeof *f);
                    for (size_t i = 0; i < O * I; i++) f[i] = (float)w.w.v[i];
                    d.op->to_ct(&d, w.l.w, (const dv *)f, O * I);
                    free(f);
                    w.l.version++;
                }
                naive_fwd(expected, x.v, &w, n);
                d.op->linear_fwd(&d, y.p, x.p, &w.l, n);
                assert_true(error_of(&d, &y, expected) < bound(&d));
                naive_dx(expected, dy.v, &w, n);
                d.op->linear_dx(&d, dx.p, dy.p, &w.l, n);
                assert_true(error_of(&d, &dx, expected) < bound(&d));
            }
            free(expected);
            values *all[] = {&x, &y, &dx, &dy};
            for (int i = 0; i < 4; i++) drop(&d, all[i]);
        }
        drop(&d, &other);
        drop_layer(&d, &w);
        device_close(&d);
    }
}

static void weight_gradients(void **state)
{
    (void)state;
    static const int32_t chosen[] = {0, 2, 3, 17, 32};
    static const struct {
        size_t N, O, I, R; /* R 0: all rows */
    } shapes[] = {{1, 33, 7, 0}, {7, 33, 65, 5}, {197, 48, 40, 5}, {300, 130, 33, 0}, {64, 64, 64, 1}};
    for (size_t c = 0; c < 2; c++) {
        device d = open_device(types[c]);
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            size_t N = shapes[s].N, O = shapes[s].O, I = shapes[s].I, R = shapes[s].R ? shapes[s].R : O;
            const dv *rows = shapes[s].R ? (const dv *)chosen : NULL;
            err e = {0};
            ASSERT_OK(device_reserve(&d, N * R * sizeof(float), &e));
            values dy = make(&d, N * O, 1, 1, false), x = make(&d, N * I, 2, 1, false);
            values dw = make(&d, R * I, 3, 1, true), db = make(&d, R, 4, 1, true);
            for (size_t r = 0; r < R; r++) { /* they accumulate: expected starts at what is there */
                size_t o = rows ? (size_t)chosen[r] : r;
                for (size_t n = 0; n < N; n++) {
                    db.v[r] += dy.v[n * O + o];
                    for (size_t i = 0; i < I; i++) dw.v[r * I + i] += dy.v[n * O + o] * x.v[n * I + i];
                }
            }
            d.op->linear_dw(&d, dw.p, db.p, dy.p, x.p, rows, R, N, O, I);
            ASSERT_OK(device_sync(&d, &e));
            assert_true(error_of(&d, &dw, dw.v) < 3e-6); /* sums are fp32 in both types */
            assert_true(error_of(&d, &db, db.v) < 3e-6);
            d.op->linear_dw(&d, dw.p, NULL, dy.p, x.p, rows, R, N, O, I);
            d.op->linear_dw(&d, NULL, db.p, dy.p, x.p, rows, R, N, O, I);
            ASSERT_OK(device_sync(&d, &e));
            values *all[] = {&dy, &x, &dw, &db};
            for (int i = 0; i < 4; i++) drop(&d, all[i]);
        }
        device_close(&d);
    }
}

/* --- attention */

static void naive_attention(double *o, double *lse, double *dqkv, const double *qkv, const double *d_o, size_t B,
                            size_t T, size_t H, size_t D)
{
    size_t C = H * D;
    double *p = malloc(T * sizeof *p), scale = 1 / sqrt((double)D);
    assert_non_null(p);
    memset(dqkv, 0, B * T * 3 * C * sizeof *dqkv);
    for (size_t b = 0; b < B; b++)
        for (size_t h = 0; h < H; h++)
            for (size_t t = 0; t < T; t++) {
                size_t at = (b * T + t) * 3 * C + h * D, to = (b * T + t) * C + h * D;
                double sum = 0, delta = 0;
                for (size_t j = 0; j < T; j++) {
                    size_t k = (b * T + j) * 3 * C + C + h * D;
                    p[j] = 0;
                    for (size_t i = 0; i < D; i++) p[j] += scale * qkv[at + i] * qkv[k + i];
                    sum += exp(p[j]);
                }
                lse[(b * H + h) * T + t] = log(sum);
                for (size_t i = 0; i < D; i++) o[to + i] = 0;
                for (size_t j = 0; j < T; j++) {
                    p[j] = exp(p[j]) / sum;
                    size_t v = (b * T + j) * 3 * C + 2 * C + h * D;
                    for (size_t i = 0; i < D; i++) o[to + i] += p[j] * qkv[v + i];
                }
                for (size_t i = 0; i < D; i++) delta += d_o[to + i] * o[to + i];
                for (size_t j = 0; j < T; j++) {
                    size_t k = (b * T + j) * 3 * C + C + h * D, v = k + C;
                    double dp = 0;
                    for (size_t i = 0; i < D; i++) dp += d_o[to + i] * qkv[v + i];
                    double ds = p[j] * (dp - delta) * scale;
                    for (size_t i = 0; i < D; i++) {
                        dqkv[v + i] += p[j] * d_o[to + i];
                        dqkv[at + i] += ds * qkv[k + i];
                        dqkv[k + i] += ds * qkv[at + i];
                    }
                }
            }
    free(p);
}

static void attention(void **state)
{
    (void)state;
    static const struct {
        size_t B, T, H, D;
        double scale; /* of Q, K, V: large ones make sharp probabilities */
    } rows[] = {{1, 1, 1, 8, 1},    {2, 7, 3, 8, 1},    {3, 17, 2, 16, 1},    {2, 50, 6, 64, 1}, {1, 33, 2, 7, 1},
                {3, 197, 2, 64, 1}, {1, 257, 1, 64, 3}, {20, 50, 3, 32, 0.3}, {2, 37, 2, 80, 1}, {1, 32, 2, 96, 1},
                {1, 65, 1, 128, 1}, {1, 600, 1, 48, 1}, {1, 5, 1, 64, 2}};
    for (size_t c = 0; c < 2; c++) {
        device d = open_device(types[c]);
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
            size_t B = rows[r].B, T = rows[r].T, H = rows[r].H, D = rows[r].D, n = B * T * H * D;
            err e = {0};
            ASSERT_OK(device_reserve(&d, op_cpu_attention_bytes(&d, false, B, T, H, D, true), &e));
            values qkv = make(&d, 3 * n, 1, rows[r].scale, false), d_o = make(&d, n, 2, 1, false);
            values o = make(&d, n, 3, 1, false), lse = make(&d, B * H * T, 4, 1, true),
                   dqkv = make(&d, 3 * n, 5, 1, false);
            naive_attention(o.v, lse.v, dqkv.v, qkv.v, d_o.v, B, T, H, D);
            d.op->attention_fwd(&d, o.p, lse.p, qkv.p, B, T, H, D);
            ASSERT_OK(device_sync(&d, &e));
            double off = error_of(&d, &o, o.v), off_lse = error_of(&d, &lse, lse.v);
            if (!(off <= 2 * bound(&d) && off_lse <= 2e-6)) fail_msg("row %zu: o %.2g lse %.2g", r, off, off_lse);
            d.op->attention_bwd(&d, dqkv.p, d_o.p, qkv.p, o.p, lse.p, B, T, H, D);
            ASSERT_OK(device_sync(&d, &e));
            off = error_of(&d, &dqkv, dqkv.v);
            if (T > 1 && !(off <= 3 * bound(&d))) fail_msg("row %zu: dqkv %.2g", r, off);
            d.op->zero(&d, o.p, n * d.ct_bytes); /* without lse: the same */
            d.op->attention_fwd(&d, o.p, NULL, qkv.p, B, T, H, D);
            assert_true(error_of(&d, &o, o.v) < 2 * bound(&d));
            values *all[] = {&qkv, &d_o, &o, &lse, &dqkv};
            for (int i = 0; i < 5; i++) drop(&d, all[i]);
        }
        device_close(&d);
    }
}

/* A workspace that was not planned is said, once, and nothing is written outside it. */
static void workspace_is_checked(void **state)
{
    (void)state;
    device d = open_device(COMPUTE_F32);
    values qkv = make(&d, 3 * 7 * 16, 1, 1, false), o = make(&d, 7 * 16, 2, 1, false);
    err e = {0};
    d.op->attention_fwd(&d, o.p, NULL, qkv.p, 1, 7, 2, 8);
    assert_int_equal(device_sync(&d, &e), ERR_INTERNAL);
    e = (err){0};
    ASSERT_OK(device_sync(&d, &e));
    for (size_t i = 0; i < o.n; i++) assert_true(((const float *)o.p)[i] == (float)o.v[i]);
    drop(&d, &qkv);
    drop(&d, &o);
    device_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rounds_to_even),       cmocka_unit_test(casts_of_any_length),
        cmocka_unit_test(exp_and_erf),          cmocka_unit_test(memory),
        cmocka_unit_test(linear_layers),        cmocka_unit_test(packing_follows_versions),
        cmocka_unit_test(weight_gradients),     cmocka_unit_test(attention),
        cmocka_unit_test(workspace_is_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
