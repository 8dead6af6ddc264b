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

#include "adapt/task.h"
#include "base/rng.h"

enum { N = 200, C = 37, K = 3 };

/* p (n, classes) of the softmax */
static void predict(const probe *fit, const float *x, size_t n, double *p)
{
    double *z = malloc(n * (size_t)fit->outputs * sizeof *z);
    probe_logits(fit->weight, fit->bias, x, n, C, fit->outputs, z);
    task_probabilities(TASK_MULTICLASS, fit->outputs, z, n, p);
    free(z);
}

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
    probe_rows rows = {.x = d.x, .label = d.label, .weight = d.weight, .n = N, .dim = C, .outputs = K};
    assert_int_equal(probe_fit(fit, &rows, l2, 3, &e), ERR_OK);
    double norm[3] = {0}, total = 0;
    for (int i = 0; i < N; i++) total += d.weight[i];
    for (int t = 0; t < 3; t++) {
        predict(&fit[t], d.x, N, p);
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
    assert_int_equal(
        probe_fit(&fit, &(probe_rows){.x = d.x, .label = d.label, .weight = d.weight, .n = N, .dim = C, .outputs = K},
                  (double[]){1e-1}, 1, &e),
        ERR_OK);
    predict(&fit, held_out.x, N, p);
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

/* Sigmoids: each output is a problem of its own, and what is not known does not count: leaving a row's target open is
 * the same as leaving the row out. */
static void test_sigmoids(void **state)
{
    (void)state;
    static data d, less;
    static float target[N * 2], known[N * 2], one_target[N], one_known[N], less_target[N], less_known[N];
    make(&d, 5);
    size_t kept = 0;
    for (size_t i = 0; i < N; i++) {
        bool open = i % 3 == 0;
        target[2 * i] = d.label[i] == 0;
        target[2 * i + 1] = one_target[i] = d.label[i] == 1;
        known[2 * i] = 1;
        known[2 * i + 1] = one_known[i] = open ? 0 : 0.5f + (float)(i % 2);
        if (open) continue;
        memcpy(less.x + kept * C, d.x + i * C, C * sizeof *d.x);
        less.weight[kept] = d.weight[i];
        less_known[kept] = one_known[i];
        less_target[kept++] = one_target[i];
    }
    probe both, one;
    err e = {0};
    static const double l2[] = {0.03};
    const probe_rows two = {
        .x = d.x, .target = target, .known = known, .weight = d.weight, .n = N, .dim = C, .outputs = 2};
    probe_rows alone = two;
    alone.target = one_target, alone.known = one_known, alone.outputs = 1;
    assert_int_equal(probe_fit(&both, &two, l2, 1, &e), ERR_OK);
    assert_int_equal(probe_fit(&one, &alone, l2, 1, &e), ERR_OK);
    double total = 0;
    for (int i = 0; i < N; i++) total += d.weight[i];
    for (int j = 0; j < C; j++) { /* the gradient at the optimum, in standardised space */
        double mean = 0, variance = 0;
        for (int i = 0; i < N; i++) mean += d.weight[i] * d.x[i * C + j] / total;
        for (int i = 0; i < N; i++) variance += d.weight[i] * pow(d.x[i * C + j] - mean, 2) / total;
        double sd = sqrt(variance), g = l2[0] * one.weight[j] * sd;
        assert_true(fabs(one.weight[j] - both.weight[C + j]) * sd < 2e-3);
        for (int i = 0; i < N && j != 9; i++) {
            double z;
            probe_logits(one.weight, one.bias, d.x + i * C, 1, C, 1, &z);
            g +=
                d.weight[i] / total * one_known[i] * (1 / (1 + exp(-z)) - one_target[i]) * (d.x[i * C + j] - mean) / sd;
        }
        if (!(fabs(g) < 2e-4)) fail_msg("feature %d: gradient %g", j, g);
    }
    /* With all the rows' weight on fewer rows the mean is another, so the penalty is scaled likewise; standardisation
     * is over other rows, so only what is said is compared. */
    double kept_weight = 0;
    for (size_t i = 0; i < kept; i++) kept_weight += less.weight[i];
    const probe_rows rest = {.x = less.x,
                             .target = less_target,
                             .known = less_known,
                             .weight = less.weight,
                             .n = kept,
                             .dim = C,
                             .outputs = 1};
    probe fewer;
    assert_int_equal(probe_fit(&fewer, &rest, (double[]){l2[0] * total / kept_weight}, 1, &e), ERR_OK);
    double worst = 0;
    for (int i = 0; i < N; i++) {
        double a, b;
        probe_logits(one.weight, one.bias, d.x + i * C, 1, C, 1, &a);
        probe_logits(fewer.weight, fewer.bias, d.x + i * C, 1, C, 1, &b);
        worst = fmax(worst, fabs(1 / (1 + exp(-a)) - 1 / (1 + exp(-b))));
    }
    print_message("largest difference of probabilities: %g\n", worst);
    assert_true(worst < 0.1);
    probe_fini(&both), probe_fini(&one), probe_fini(&fewer);
}

static void test_hostile(void **state)
{
    (void)state;
    static data d;
    make(&d, 4);
    probe fit;
    err e = {0};
    d.x[5] = NAN;
    assert_int_equal(
        probe_fit(&fit, &(probe_rows){.x = d.x, .label = d.label, .weight = d.weight, .n = N, .dim = C, .outputs = K},
                  (double[]){1e-1}, 1, &e),
        ERR_NUMERIC);
    probe_fini(&fit);
    for (int i = 0; i < N * C; i++) d.x[i] = 7; /* nothing to tell the classes by: their shares */
    for (int i = 0; i < N; i++) {
        d.label[i] = i % 4 == 0;
        d.weight[i] = 1;
    }
    e = (err){0};
    assert_int_equal(
        probe_fit(&fit, &(probe_rows){.x = d.x, .label = d.label, .weight = d.weight, .n = N, .dim = C, .outputs = 2},
                  (double[]){1e-1}, 1, &e),
        ERR_OK);
    double p[2];
    predict(&fit, d.x, 1, p);
    assert_true(fabs(p[1] - 0.25) < 1e-3);
    probe_fini(&fit);
    e = (err){0};
    assert_int_equal(
        probe_fit(&fit, &(probe_rows){.x = d.x, .label = d.label, .weight = d.weight, .n = 0, .dim = C, .outputs = 2},
                  (double[]){1e-1}, 1, &e),
        ERR_INTERNAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_optimum), cmocka_unit_test(test_learns),
                                       cmocka_unit_test(test_sigmoids), cmocka_unit_test(test_hostile)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
