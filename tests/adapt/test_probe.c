/* The linear classifier: at its optimum the gradient vanishes; standardisation, weights and penalties do what they say.
 */
#include "adapt/probe.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"

enum { N = 200, C = 37, K = 3 };

typedef struct {
    float x[N * C], weight[N];
    int label[N];
} data;

/* Classes shifted along a few axes; features of very different scale, one of them constant. */
static void make(data *d, uint64_t seed)
{
    rng r = rng_at(seed, RNG_TEST, 0, 0);
    for (int i = 0; i < N; i++) {
        d->label[i] = (int)rng_below(&r, K);
        d->weight[i] = 0.5f + rng_uniform(&r);
        for (int j = 0; j < C; j++) {
            float scale = powf(10, (float)(j % 5) - 2);
            float shift = j % K == d->label[i] ? 0.7f : 0;
            d->x[i * C + j] = j == 9 ? 4 : scale * (rng_normal(&r) + shift) + 3 * scale;
        }
    }
}

/* d/dW of the objective in standardised space, in double, the plain way. */
static void test_optimum(void **state)
{
    (void)state;
    static data d;
    static double p[N * K];
    make(&d, 1);
    static const double l2[] = {1e-3, 1, 1e-1};
    probe fit[3];
    err e = {0};
    probe_rows rows = {d.x, d.label, d.weight, N, C, K};
    assert_int_equal(probe_fit(fit, &rows, l2, 3, &e), ERR_OK);
    double norm[3] = {0}, total = 0;
    for (int i = 0; i < N; i++) total += d.weight[i];
    for (int t = 0; t < 3; t++) {
        probe_predict(fit[t].weight, fit[t].bias, d.x, N, C, K, p);
        for (int j = 0; j < C; j++) {
            double mean = 0, variance = 0;
            for (int i = 0; i < N; i++) mean += d.weight[i] * d.x[i * C + j] / total;
            for (int i = 0; i < N; i++) variance += d.weight[i] * pow(d.x[i * C + j] - mean, 2) / total;
            double sd = sqrt(variance);
            for (int k = 0; k < K; k++) {
                double w = fit[t].weight[k * C + j] * sd, g = l2[t] * w;
                norm[t] += w * w;
                if (j == 9) {
                    assert_true(w == 0);
                    continue;
                }
                for (int i = 0; i < N; i++)
                    g += d.weight[i] / total * (p[i * K + k] - (d.label[i] == k)) * (d.x[i * C + j] - mean) / sd;
                if (!(fabs(g) < 2e-4)) fail_msg("l2 %g, feature %d, class %d: gradient %g", l2[t], j, k, g);
            }
        }
        for (int k = 0; k < K; k++) {
            double g = 0;
            for (int i = 0; i < N; i++) g += d.weight[i] / total * (p[i * K + k] - (d.label[i] == k));
            assert_true(fabs(g) < 2e-4);
        }
    }
    assert_true(norm[0] > norm[2] && norm[2] > norm[1]); /* the larger the penalty, the smaller the weights */
    for (int t = 0; t < 3; t++) probe_fini(&fit[t]);
}

static void test_learns(void **state)
{
    (void)state;
    static data d, held_out;
    static double p[N * K];
    make(&d, 2);
    make(&held_out, 3);
    probe fit;
    err e = {0};
    assert_int_equal(probe_fit(&fit, &(probe_rows){d.x, d.label, d.weight, N, C, K}, (double[]){1e-1}, 1, &e), ERR_OK);
    probe_predict(fit.weight, fit.bias, held_out.x, N, C, K, p);
    int right = 0;
    for (int i = 0; i < N; i++) {
        int best = 0;
        double sum = 0;
        for (int k = 0; k < K; k++) {
            sum += p[i * K + k];
            if (p[i * K + k] > p[i * K + best]) best = k;
        }
        assert_true(fabs(sum - 1) < 1e-9);
        right += best == held_out.label[i];
    }
    assert_true(right > N * 8 / 10);
    probe_fini(&fit);
}

static void test_hostile(void **state)
{
    (void)state;
    static data d;
    make(&d, 4);
    probe fit;
    err e = {0};
    d.x[5] = NAN;
    assert_int_equal(probe_fit(&fit, &(probe_rows){d.x, d.label, d.weight, N, C, K}, (double[]){1e-1}, 1, &e),
                     ERR_NUMERIC);
    probe_fini(&fit);
    for (int i = 0; i < N * C; i++) d.x[i] = 7; /* nothing to tell the classes by: their shares */
    for (int i = 0; i < N; i++) {
        d.label[i] = i % 4 == 0;
        d.weight[i] = 1;
    }
    e = (err){0};
    assert_int_equal(probe_fit(&fit, &(probe_rows){d.x, d.label, d.weight, N, C, 2}, (double[]){1e-1}, 1, &e), ERR_OK);
    double p[2];
    probe_predict(fit.weight, fit.bias, d.x, 1, C, 2, p);
    assert_true(fabs(p[1] - 0.25) < 1e-3);
    probe_fini(&fit);
    e = (err){0};
    assert_int_equal(probe_fit(&fit, &(probe_rows){d.x, d.label, d.weight, 0, C, 2}, (double[]){1e-1}, 1, &e),
                     ERR_INTERNAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_optimum), cmocka_unit_test(test_learns),
                                       cmocka_unit_test(test_hostile)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
