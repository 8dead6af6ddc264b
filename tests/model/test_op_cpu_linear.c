/* Linear layers in both directions, with all that may follow them, and their weights' gradients, against double
 * precision: shapes that go to oneDNN, to AMX tiles with the weight in cache, in chunks of the inner index, and with
 * the weight passing by; every height of the last tiles. And that rows' results do not depend on which rows are
 * computed together. */
#include "model/op_cpu_fma.h"
#include "tests/model/op_case.h"

static double gelu(double x)
{
    return x * 0.5 * (1 + erf(x / sqrt(2)));
}

static double slope(double x)
{
    return 0.5 * (1 + erf(x / sqrt(2))) + x * exp(-0.5 * x * x) / sqrt(2 * M_PI);
}

typedef struct {
    size_t O, I, N;
} shape;

static const shape shapes[] = {{33, 65, 7},    {64, 64, 1},     {64, 64, 16},    {96, 32, 17},    {32, 96, 31},
                               {64, 64, 32},   {64, 128, 33},   {192, 64, 50},   {384, 192, 70},  {64, 512, 40},
                               {64, 544, 40},  {96, 1536, 257}, {2080, 544, 33}, {1024, 736, 70}, {192, 4096, 130},
                               {1312, 512, 2}, {32, 32, 300}};

static linear_w layer_of(const shape *s, const values *w, const values *bias)
{
    return (linear_w){.out = s->O, .in = s->I, .w = w->p, .bias = bias ? bias->p : NULL, .frozen = true, .version = 1};
}

static void products(double *y, const double *x, const double *w, const double *bias, const shape *s)
{
    for (size_t n = 0; n < s->N; n++)
        for (size_t o = 0; o < s->O; o++) {
            double sum = bias ? bias[o] : 0;
            for (size_t i = 0; i < s->I; i++) sum += x[n * s->I + i] * w[o * s->I + i];
            y[n * s->O + o] = sum;
        }
}

/* A layer's sum and its LayerNorm asked for at once are what they are one after the other. */
static void norm_after(device *dev, linear_w *l, const values *x, const values *ls, bool with)
{
    device d = *dev;
    size_t O = l->out, N = x->n / l->in;
    values sum = ct_noise(&d, N * O, 1), branch = ct_full(&d, N * O, 9), gamma = f32_noise(&d, O, 1, 0);
    values mean = f32_noise(&d, N, 1, 0), rstd = f32_noise(&d, N, 1, 0), y = ct_full(&d, N * O, 9);
    values again = ct_full(&d, N * O, 8);
    const op_norm then = {y.p, mean.p, rstd.p, gamma.p, gamma.p, 1e-6f};
    d.op->linear_residual_fwd(&d, sum.p, sum.p, x->p, l, with ? ls->p : NULL, branch.p, NULL, &then, N);
    d.op->norm_fwd(&d, again.p, NULL, NULL, sum.p, gamma.p, gamma.p, 1e-6f, N, O);
    same_bits(&d, &again, &y);
}

static void forward(void **state)
{
    (void)state;
    device d;
    CASES(d) for (size_t k = 0; k < 2 * COUNT(shapes); k++)
    {
        const shape *s = &shapes[k / 2];
        bool with = k % 2; /* bias, scale */
        size_t out = s->N * s->O;
        start_case(&d, "forward %zux%zux%zu%s", s->N, s->I, s->O, with ? " bias" : "");
        values x = ct_noise(&d, s->N * s->I, 1), w = ct_noise(&d, s->O * s->I, 1 / sqrt((double)s->I));
        values bias = f32_noise(&d, s->O, 1, 0), ls = f32_noise(&d, s->O, 1, 0), res = ct_noise(&d, out, 1);
        values y = ct_full(&d, out, 9), pre = ct_full(&d, out, 9), branch = ct_full(&d, out, 9);
        linear_w l = layer_of(s, &w, with ? &bias : NULL);
        double *sum = doubles(out), *want = doubles(out);
        products(sum, x.v, w.v, with ? bias.v : NULL, s);
        d.op->linear_fwd(&d, y.p, x.p, &l, s->N);
        expect(&d, "y", &y, sum);
        d.op->linear_gelu_fwd(&d, y.p, pre.p, x.p, &l, s->N);
        expect(&d, "pre", &pre, sum);
        for (size_t i = 0; i < out; i++) want[i] = gelu(sum[i]);
        expect(&d, "GELU", &y, want);
        d.op->zero(&d, y.p, out * d.ct_bytes);
        d.op->linear_gelu_fwd(&d, y.p, NULL, x.p, &l, s->N);
        expect(&d, "GELU alone", &y, want);
        for (size_t i = 0; i < out; i++) want[i] = res.v[i] + (with ? ls.v[i % s->O] : 1) * sum[i];
        d.op->linear_residual_fwd(&d, y.p, res.p, x.p, &l, with ? ls.p : NULL, branch.p, NULL, NULL, s->N);
        expect(&d, "residual", &y, want);
        d.op->linear_residual_fwd(&d, res.p, res.p, x.p, &l, with ? ls.p : NULL, branch.p, NULL, NULL, s->N);
        expect(&d, "residual in place", &res, want);
        values all = ct_noise(&d, out, 1), rest = ct_noise(&d, out, 2e-3);
        for (size_t i = 0; i < out; i++) want[i] = all.v[i] + rest.v[i] + (with ? ls.v[i % s->O] : 1) * sum[i];
        d.op->linear_residual_fwd(&d, all.p, all.p, x.p, &l, with ? ls.p : NULL, branch.p, rest.p, NULL, s->N);
        expect(&d, "residual with a rest", &all, want);
        norm_after(&d, &l, &x, &ls, with);
        bool on_sums = op_cpu_fma_of(&d) || op_cpu_linear_amx_fits(&d, s->I, s->O); /* else of a rounded branch */
        expect_sum(&d, "and its rest", &all, &rest, want, on_sums ? 1e-10 : 8e-6);
        d.op->linear_release(&d, &l);
        end_case(&d);
    }
}

/* The slopes that a layer's forward leaves multiply the next layer's dX. */
static void backward(void **state)
{
    (void)state;
    device d;
    CASES(d) for (size_t k = 0; k < COUNT(shapes); k++)
    {
        const shape *s = &shapes[k], t = {s->I, s->O, s->N}; /* the layer above takes what this one gives */
        size_t in = s->N * s->I, out = s->N * s->O;
        start_case(&d, "dX %zux%zux%zu", s->N, s->I, s->O);
        values x = ct_noise(&d, in, 1), w = ct_noise(&d, s->O * s->I, 1.5 / sqrt((double)s->I));
        values up = ct_noise(&d, s->O * s->I, 1 / sqrt((double)s->O)), dy = ct_noise(&d, in, 1);
        values y = ct_full(&d, out, 9), dx = ct_full(&d, out, 9), codes = f32_full(&d, s->N * (s->O + 3), 9);
        linear_w l = layer_of(s, &w, NULL), above = layer_of(&t, &up, NULL);
        double *pre = doubles(out), *want = doubles(out);
        products(pre, x.v, w.v, NULL, s);
        for (size_t n = 0; n < s->N; n++)
            for (size_t o = 0; o < s->O; o++) {
                double sum = 0;
                for (size_t i = 0; i < s->I; i++) sum += dy.v[n * s->I + i] * up.v[i * s->O + o];
                want[n * s->O + o] = sum;
            }
        d.op->linear_dx(&d, dx.p, dy.p, &above, s->N);
        expect(&d, "dX", &dx, want);
        d.op->linear_gelu_slope_fwd(&d, y.p, codes.p, x.p, &l, s->N);
        d.op->linear_dx_slope(&d, dx.p, dy.p, &above, codes.p, s->N);
        for (size_t i = 0; i < out; i++) {
            want[i] *= slope(pre[i]);
            pre[i] = gelu(pre[i]);
        }
        expect(&d, "GELU", &y, pre);
        expect_within(&d, "dX by GELU'", &dx, want, d.ct == COMPUTE_F32 ? 1e-6 : 1e-4); /* 10 bits */
        d.op->linear_release(&d, &l);
        d.op->linear_release(&d, &above);
        end_case(&d);
    }
}

/* GELU and its slope from -9 to 9, at every bf16 between: one column, so that a pre-activation is what x says. */
static void whole_line(void **state)
{
    (void)state;
    device d;
    CASES(d)
    {
        if (d.ct != COMPUTE_BF16) continue;
        enum { N = 2 * 0x4110, C = 32 };
        start_case(&d, "line");
        values x = ct_full(&d, N * C, 0), w = ct_full(&d, C * C, 0), y = ct_full(&d, N * C, 9);
        values codes = f32_full(&d, N * C, 9), one = ct_full(&d, N * C, 1), dx = ct_full(&d, N * C, 9);
        double *xs = doubles(N * C), *identity = doubles(C * C);
        for (size_t i = 0; i < N * C; i++) {
            uint16_t bits = (uint16_t)(i / C % 0x4110) | (i / C < 0x4110 ? 0 : 0x8000);
            xs[i] = op_bf16_to_f32(bits);
        }
        for (size_t i = 0; i < C; i++) identity[i * C + i] = 1;
        put_values(&d, &x, xs);
        put_values(&d, &w, identity);
        linear_w l = layer_of(&(shape){C, C, N}, &w, NULL);
        d.op->linear_gelu_slope_fwd(&d, y.p, codes.p, x.p, &l, N);
        d.op->linear_dx_slope(&d, dx.p, one.p, &l, codes.p, N);
        float *got = malloc(N * C * sizeof *got), *got_slope = malloc(N * C * sizeof *got);
        assert_true(got && got_slope);
        op_cpu_load(&d, got, y.p, 0, N * C);
        op_cpu_load(&d, got_slope, dx.p, 0, N * C);
        for (size_t i = 0; i < N * C; i++) {
            double v = x.v[i], off = fabs(got[i] - gelu(v)), off_slope = fabs(got_slope[i] - slope(v));
            if (off > fabs(gelu(v)) / 256 + 4e-6 || off_slope > 1 / 1400.0 + fabs(slope(v)) / 256)
                fail_msg("at %g: GELU %g away, GELU' %g", v, off, off_slope);
        }
        free(got);
        free(got_slope);
        d.op->linear_release(&d, &l);
        end_case(&d);
    }
}

/* Rows alone, and all of them: the same bits. */
static void rows_alone(void **state)
{
    (void)state;
    device d;
    CASES(d) for (size_t k = 0; k < COUNT(shapes); k++)
    {
        const shape *s = &shapes[k];
        if (s->O % 32 || s->I % 32 || d.ct != COMPUTE_BF16 || !op_cpu_linear_amx_fits(&d, s->I, s->O)) continue;
        start_case(&d, "rows alone %zux%zux%zu", s->N, s->I, s->O);
        values x = ct_noise(&d, s->N * s->I, 1), w = ct_noise(&d, s->O * s->I, 1);
        values y = ct_full(&d, s->N * s->O, 9), z = ct_full(&d, s->N * s->O, 9);
        linear_w l = layer_of(s, &w, NULL);
        d.op->linear_fwd(&d, y.p, x.p, &l, s->N);
        for (size_t n = 0; n < s->N; n += 5)
            d.op->linear_fwd(&d, dv_at(z.p, n * s->O * 2), dv_at(x.p, n * s->I * 2), &l, s->N - n < 5 ? s->N - n : 5);
        assert_memory_equal(y.p, z.p, s->N * s->O * 2);
        d.op->linear_release(&d, &l);
        end_case(&d);
    }
}

/* dW += dY^T X, all rows of it and chosen ones: the inner index in one chunk, in several, with a rest. */
static void weight_gradients(void **state)
{
    (void)state;
    static const shape rows[] = {{64, 64, 1},    {32, 96, 31},    {64, 64, 32},    {96, 32, 33},   {33, 65, 40},
                                 {64, 96, 1030}, {32, 1056, 420}, {64, 2080, 530}, {64, 64, 2100}, {192, 64, 257}};
    device d;
    CASES(d) for (size_t k = 0; k < 2 * COUNT(rows); k++)
    {
        const shape *s = &rows[k / 2];
        bool chosen = k % 2;
        size_t R = chosen ? (s->O > 32 ? 32 : s->O / 2) : s->O;
        start_case(&d, "dW %zux%zux%zu of %zu", s->N, s->I, s->O, R);
        values x = ct_noise(&d, s->N * s->I, 1), dy = ct_noise(&d, s->N * s->O, 1), dw = f32_noise(&d, R * s->I, 1, 0);
        double *want = doubles(R * s->I);
        int32_t index[2080];
        err e = {0};
        for (size_t r = 0; r < R; r++) index[r] = (int32_t)(chosen ? r * (s->O / R) + (r + 1) / R : r);
        ASSERT_OK(device_reserve(&d, s->N * R * d.ct_bytes, &e));
        for (size_t r = 0; r < R; r++)
            for (size_t i = 0; i < s->I; i++) {
                double sum = dw.v[r * s->I + i];
                for (size_t n = 0; n < s->N; n++) sum += dy.v[n * s->O + (size_t)index[r]] * x.v[n * s->I + i];
                want[r * s->I + i] = sum;
            }
        d.op->linear_dw(&d, dw.p, NULL, dy.p, x.p, chosen ? int32_of(&d, index, R) : NULL, R, s->N, s->O, s->I);
        expect(&d, "dW", &dw, want);
        end_case(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(forward), cmocka_unit_test(backward),
                                       cmocka_unit_test(whole_line), cmocka_unit_test(rows_alone),
                                       cmocka_unit_test(weight_gradients)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
