/* GELU with its derivative in 10 bits against double precision: every code's error, the ends, 0 and 1 exactly. */
#include "tests/model/op_case.h"

static double cdf(double x)
{
    return 0.5 * (1 + erf(x / sqrt(2)));
}

static double slope(double x)
{
    return cdf(x) + x * exp(-0.5 * x * x) / sqrt(2 * M_PI);
}

/* y = GELU(pre), and dy * GELU' within 1/1600 of dy, for pre-activations of every size: x is one column, W the values
 * wanted, so that pre is what the case says. */
static void against_double(void **state)
{
    (void)state;
    static const struct {
        size_t N, O;
        double scale;
    } rows[] = {{1, 33, 1}, {7, 65, 3}, {197, 48, 1}, {3, 5000, 0.3}, {2, 4096, 6}, {1, 1, 2}};
    device d;
    CASES(d) for (size_t r = 0; r < COUNT(rows); r++)
    {
        size_t N = rows[r].N, O = rows[r].O;
        start_case(&d, "slope %zux%zu by %g", N, O, rows[r].scale);
        values x = ct_full(&d, N, 1), w = ct_noise(&d, O, rows[r].scale), y = ct_full(&d, N * O, 9);
        values dy = ct_noise(&d, N * O, 1), dpre = ct_full(&d, N * O, 9), codes = f32_full(&d, N * (O + 3), 9);
        linear_w weight = {.out = O, .in = 1, .w = w.p, .frozen = true, .version = 1};
        double *want = doubles(N * O), *of_codes = doubles(N * O);
        for (size_t i = 0; i < N * O; i++) want[i] = w.v[i % O] * cdf(w.v[i % O]);
        d.op->linear_fwd(&d, y.p, x.p, &weight, N);
        op_cpu_gelu_slope_fwd(&d, y.p, codes.p, N, O);
        expect(&d, "y", &y, want);
        for (size_t i = 0; i < N * O; i++) {
            const uint8_t *row = (const uint8_t *)codes.p + i / O * op_slope_bytes(O);
            int code = row[i % O] | (row[O + i % O / 4] >> 2 * (i % O % 4) & 3) << 8;
            of_codes[i] = dy.v[i] * (code - 105) / 811;
            double off = fabs((code - 105) / 811.0 - slope(w.v[i % O]));
            if (off > 1 / 1600.0) fail_msg("%s: at %g the slope is %g away", case_name, w.v[i % O], off);
        }
        op_cpu_gelu_slope_bwd(&d, dpre.p, dy.p, codes.p, N, O);
        expect(&d, "dpre", &dpre, of_codes);
        op_cpu_gelu_slope_bwd(&d, dy.p, dy.p, codes.p, N, O); /* in place */
        expect(&d, "dpre in place", &dy, of_codes);
        d.op->linear_release(&d, &weight);
        end_case(&d);
    }
}

/* Far from zero GELU is the identity or nothing, and its derivative exactly 1 or 0: gradients that pass are not
 * changed, in the layers' own codes either (whole panels of columns and a ragged one). */
static void exact_where_flat(void **state)
{
    (void)state;
    static const struct {
        double pre, slope;
    } rows[] = {{8, 1}, {60, 1}, {3e4, 1}, {-8, 0}, {-60, 0}, {-3e4, 0}};
    enum { N = 6 * COUNT(rows) + 2 };
    device d;
    CASES(d)
    {
        start_case(&d, "flat");
        values x = ct_full(&d, 1, 1), w = ct_full(&d, N, 0), y = ct_full(&d, N, 9), dy = ct_noise(&d, N, 1);
        values codes = f32_full(&d, N, 9), dx = ct_full(&d, N, 9);
        double pre[N], want[N], of_dy[N];
        for (size_t i = 0; i < N; i++) {
            pre[i] = rows[i % COUNT(rows)].pre;
            of_dy[i] = dy.v[i] * rows[i % COUNT(rows)].slope;
        }
        put_values(&d, &w, pre);
        for (size_t i = 0; i < N; i++) want[i] = w.v[i] * rows[i % COUNT(rows)].slope;
        linear_w weight = {.out = N, .in = 1, .w = w.p, .frozen = true, .version = 1};
        linear_w next = {.out = 1, .in = N, .w = dy.p, .frozen = true, .version = 1};
        d.op->linear_gelu_slope_fwd(&d, y.p, codes.p, x.p, &weight, 1);
        expect(&d, "y", &y, want);
        d.op->linear_dx_slope(&d, dx.p, x.p, &next, codes.p, 1);
        d.op->linear_fwd(&d, y.p, x.p, &weight, 1);
        op_cpu_gelu_slope_fwd(&d, y.p, codes.p, 1, N);
        expect(&d, "y, alone", &y, want);
        op_cpu_gelu_slope_bwd(&d, dy.p, dy.p, codes.p, 1, N);
        float got[2];
        for (size_t i = 0; i < N; i++) {
            op_cpu_load(&d, got, dx.p, i, 1);
            op_cpu_load(&d, got + 1, dy.p, i, 1);
            assert_true(got[0] == (float)of_dy[i] && got[1] == (float)of_dy[i]);
        }
        d.op->linear_release(&d, &weight);
        d.op->linear_release(&d, &next);
        end_case(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(against_double), cmocka_unit_test(exact_where_flat)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
