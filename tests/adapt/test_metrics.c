/* Hand-computed values, naive pair counting, and matrices whose singular values are known. */
#include "adapt/metrics.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"

static void assert_near(double got, double want, double tolerance, const char *what)
{
    if (isnan(want) ? isnan(got) : fabs(got - want) <= tolerance) return;
    print_error("%s: got %.12g, want %.12g\n", what, got, want);
    fail();
}

static double auc_by_pairs(const double *score, const unsigned char *positive, size_t n)
{
    double won = 0, pairs = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++)
            if (positive[i] && !positive[j]) {
                pairs++;
                won += score[i] > score[j] ? 1 : score[i] == score[j] ? 0.5 : 0;
            }
    return pairs > 0 ? won / pairs : NAN;
}

static void test_auc(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double score[6];
        unsigned char positive[6];
        size_t n;
        double want;
    } table[] = {
        {"perfect", {0.1, 0.2, 0.8, 0.9}, {0, 0, 1, 1}, 4, 1},
        {"reversed", {0.1, 0.2, 0.8, 0.9}, {1, 1, 0, 0}, 4, 0},
        {"all tied", {0.5, 0.5, 0.5}, {1, 0, 0}, 3, 0.5},
        {"one pair of four lost", {0.1, 0.4, 0.35, 0.8}, {0, 0, 1, 1}, 4, 0.75}, /* scikit-learn's own example */
        {"one tie", {0.1, 0.4, 0.4, 0.8}, {0, 0, 1, 1}, 4, 0.875},
        {"no positive", {0.1, 0.4}, {0, 0}, 2, NAN},
        {"no negative", {0.1, 0.4}, {1, 1}, 2, NAN},
        {"nothing", {0}, {0}, 0, NAN},
        {"NaN", {0.1, NAN}, {0, 1}, 2, NAN},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        assert_near(metrics_auc(table[i].score, table[i].positive, table[i].n), table[i].want, 1e-12, table[i].name);
    for (uint32_t trial = 0; trial < 50; trial++) {
        rng r = rng_at(7, RNG_TEST, trial, 0);
        double score[64];
        unsigned char positive[64];
        size_t n = 2 + rng_below(&r, 62);
        for (size_t i = 0; i < n; i++) {
            score[i] = rng_below(&r, 12) / 12.0; /* many ties */
            positive[i] = (unsigned char)rng_below(&r, 2);
        }
        assert_near(metrics_auc(score, positive, n), auc_by_pairs(score, positive, n), 1e-12, "pairs");
    }
}

static void test_compute(void **state)
{
    (void)state;
    metrics m;
    /* Truth 0 0 1 1 2, argmax 0 1 1 1 0. Confusion rows: {1,1,0} {0,2,0} {1,0,0}.
     * Observed (i-j)^2: 1 + 4 = 5. Truth 2 2 1, predicted 2 3 0: expected (2*3*1 + 2*2*1 + 1*2*4 + 1*3*1) / 5 = 4.2.
     * Recall (1/2 + 1 + 0) / 3. */
    static const double p[] = {0.7, 0.2, 0.1, 0.3, 0.5, 0.2, 0.1, 0.8, 0.1, 0.2, 0.6, 0.2, 0.5, 0.1, 0.4};
    static const int label[] = {0, 0, 1, 1, 2};
    metrics_compute(&m, TASK_MULTICLASS, p, label, 5, 3);
    assert_int_equal(m.n, 5);
    assert_near(m.accuracy, 0.6, 1e-12, "accuracy");
    assert_near(m.macro_recall, 0.5, 1e-12, "macro recall");
    assert_near(m.kappa_quadratic, 1 - 5 / 4.2, 1e-12, "kappa");
    /* Class 0 scores: .7 .3 | .1 .2 .5: 5 of 6; class 1: .8 .6 | .2 .5 .1: all; class 2: .4 | the rest lower: all. */
    assert_near(m.auc, (5.0 / 6 + 1 + 1) / 3, 1e-12, "auc");
    assert_near(m.loss, -(log(0.7) + log(0.3) + log(0.8) + log(0.6) + log(0.4)) / 5, 1e-12, "loss");

    metrics_compute(&m, TASK_MULTICLASS, p, label, 4, 3); /* class 2 does not occur: left out of recall and AUC */
    assert_near(m.macro_recall, 0.75, 1e-12, "recall over occurring");
    assert_near(m.auc, (1.0 + 1) / 2, 1e-12, "auc over occurring");

    static const double binary[] = {0.9, 0.1, 0.4, 0.6, 0.6, 0.4, 0.2, 0.8};
    static const int binary_label[] = {0, 0, 1, 1};
    metrics_compute(&m, TASK_MULTICLASS, binary, binary_label, 4, 2); /* scores of class 1: .1 .6 | .4 .8 */
    assert_near(m.auc, 0.75, 1e-12, "binary auc");
    assert_near(m.kappa_quadratic, 0, 1e-12, "binary kappa");

    metrics_compute(&m, TASK_MULTICLASS, p, label, 0, 3);
    assert_near(m.accuracy, NAN, 0, "nothing");
    static const int one[] = {0};
    metrics_compute(&m, TASK_MULTICLASS, p, one, 1, 3);
    assert_near(m.accuracy, 1, 0, "one");
    assert_near(m.auc, NAN, 0, "one auc");
    assert_near(m.kappa_quadratic, NAN, 0, "one kappa");
}

static void test_average_precision(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double score[6];
        unsigned char positive[6];
        size_t n;
        double want;
    } table[] = {
        {"perfect", {0.1, 0.2, 0.8, 0.9}, {0, 0, 1, 1}, 4, 1},
        {"scikit-learn's own example", {0.1, 0.4, 0.35, 0.8}, {0, 0, 1, 1}, 4, (1 + 2.0 / 3) / 2},
        {"all tied", {0.5, 0.5, 0.5, 0.5}, {1, 0, 0, 0}, 4, 0.25},
        {"a tie at the top", {0.9, 0.9, 0.1}, {1, 0, 1}, 3, (0.5 + 2.0 / 3) / 2},
        {"no positive", {0.1, 0.4}, {0, 0}, 2, NAN},
        {"no negative", {0.1, 0.4}, {1, 1}, 2, 1},
        {"nothing", {0}, {0}, 0, NAN},
        {"NaN", {0.1, NAN}, {0, 1}, 2, NAN},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        assert_near(metrics_average_precision(table[i].score, table[i].positive, table[i].n), table[i].want, 1e-12,
                    table[i].name);
}

static void test_ordinal(void **state)
{
    (void)state;
    metrics m;
    /* Truth 0 1 2 2; medians 0, 1 (not its most probable, 2), 2, 0. */
    static const double p[] = {0.5, 0.3, 0.2, 0.4, 0.15, 0.45, 0.1, 0.3, 0.6, 0.6, 0.3, 0.1};
    static const int label[] = {0, 1, 2, 2}, said[] = {0, 1, 2, 0};
    for (size_t i = 0; i < 4; i++) assert_int_equal(metrics_decide(TASK_ORDINAL, p + 3 * i, 3), said[i]);
    assert_int_equal(metrics_decide(TASK_MULTICLASS, p + 3, 3), 2);
    metrics_compute(&m, TASK_ORDINAL, p, label, 4, 3);
    assert_near(m.accuracy, 0.75, 1e-12, "accuracy");
    assert_near(m.mae, 0.5, 1e-12, "mean error");
    /* Observed (i-j)^2: 4. Truth 1 1 2, said 2 1 1: expected (1*(1*1 + 4*1) + 1*(1*2 + 1*1) + 2*(4*2 + 1*1)) / 4 */
    assert_near(m.kappa_quadratic, 1 - 4 / (26.0 / 4), 1e-12, "kappa");
    /* Above 0: .5 | .6 .9 .4: 2 of 3. Above 1: .2 .45 | .6 .1: 2 of 4. */
    assert_near(m.auc, (2.0 / 3 + 0.5) / 2, 1e-12, "auc of the cuts");
    assert_near(m.average_precision, NAN, 0, "no average precision");
    assert_near(m.loss, -(log(0.5) + log(0.15) + log(0.6) + log(0.1)) / 4, 1e-12, "loss");
    static const double last[] = {0.2, 0.2, 0.6};
    assert_int_equal(metrics_decide(TASK_ORDINAL, last, 3), 2);
}

static void test_marks(void **state)
{
    (void)state;
    metrics m;
    /* Three labels of four cases; of label 2 nothing is true. */
    static const double p[] = {0.9, 0.2, 0.1, 0.4, 0.6, 0.7, 0.8, 0.5, 0.2, 0.3, 0.1, 0.4};
    static const signed char mark[] = {1, 0, 0, 1, 1, 0, 0, -1, 0, 0, 0, -1};
    metrics_compute_marks(&m, p, mark, 4, 3);
    assert_int_equal(m.n, 4);
    /* label 0: .9 .4 | .8 .3: 3 of 4 pairs; label 1: .6 | .2 .1: all; right: 2 of 4, 3 of 3, 2 of 3 */
    assert_near(m.auc, (0.75 + 1) / 2, 1e-12, "auc");
    assert_near(m.average_precision, ((1 + 2.0 / 3) / 2 + 1) / 2, 1e-12, "average precision");
    assert_near(m.accuracy, 7.0 / 10, 1e-12, "accuracy");
    assert_near(m.macro_recall, (0.5 + 1) / 2, 1e-12, "macro recall");
    assert_near(
        m.loss,
        -(log(0.9) + log(0.4) + log(0.2) + log(0.7) + log(0.8) + log(0.6) + log(0.9) + log(0.9) + log(0.3) + log(0.8)) /
            10,
        1e-12, "loss");
    assert_near(m.kappa_quadratic, NAN, 0, "no kappa");
    metrics_compute_marks(&m, p, mark, 0, 3);
    assert_near(m.auc, NAN, 0, "nothing");
    assert_near(m.loss, NAN, 0, "nothing: loss");
}

/* Which of two is better, by what each task is chosen by. */
static void test_better(void **state)
{
    (void)state;
    static const metrics none = {0}, a = {.n = 1, .auc = 0.8, .kappa_quadratic = 0.5, .loss = 2},
                         b = {.n = 1, .auc = 0.9, .kappa_quadratic = 0.4, .loss = 1},
                         undefined = {.n = 1, .auc = NAN, .kappa_quadratic = NAN, .loss = 0.1},
                         level = {.n = 1, .auc = 0.8, .kappa_quadratic = 0.5, .loss = 1.5};
    for (label_task t = TASK_MULTICLASS; t <= TASK_MULTILABEL; t++) {
        bool kappa = t == TASK_ORDINAL;
        assert_true(metrics_better(t, &undefined, &none));
        assert_int_equal(metrics_better(t, &a, &b), kappa);
        assert_int_equal(metrics_better(t, &b, &a), !kappa);
        assert_true(metrics_better(t, &a, &undefined) && !metrics_better(t, &undefined, &a));
        assert_true(metrics_better(t, &level, &a) && !metrics_better(t, &a, &level));
        assert_false(metrics_better(t, &a, &a));
    }
}

/* The same by sorting everything. */
static void knn_naive(double *p, const float *train, const int *label, size_t n, const float *x, size_t dim,
                      int classes, size_t k, double temperature)
{
    double *c = malloc(n * sizeof *c), sum = 0;
    for (size_t i = 0; i < n; i++) {
        double xy = 0, xx = 0, yy = 0;
        for (size_t j = 0; j < dim; j++) {
            double a = x[j], b = train[i * dim + j];
            xy += a * b;
            xx += a * a;
            yy += b * b;
        }
        c[i] = xy / sqrt(xx * yy);
    }
    for (int j = 0; j < classes; j++) p[j] = 0;
    for (size_t i = 0; i < n; i++) {
        size_t nearer = 0;
        for (size_t j = 0; j < n; j++) nearer += c[j] > c[i];
        if (nearer >= k) continue;
        p[label[i]] += exp(c[i] / temperature);
        sum += exp(c[i] / temperature);
    }
    for (int j = 0; j < classes; j++) p[j] /= sum;
    free(c);
}

static void test_knn(void **state)
{
    (void)state;
    enum { N = 40, Q = 7, D = 19, K = 3 };
    rng r = rng_at(3, RNG_TEST, 0, 0);
    float train[N * D], query[Q * D];
    int label[N];
    for (int i = 0; i < N * D; i++) train[i] = rng_normal(&r);
    for (int i = 0; i < Q * D; i++) query[i] = rng_normal(&r);
    for (int i = 0; i < N; i++) label[i] = (int)rng_below(&r, K);
    static const int neighbours[] = {1, 2, 5, 17, 40, 200};
    for (size_t t = 0; t < sizeof neighbours / sizeof *neighbours; t++) {
        double got[Q * K], want[K];
        knn_predict(got, train, label, N, query, Q, D, K, neighbours[t], 0.07);
        for (size_t q = 0; q < Q; q++) {
            knn_naive(want, train, label, N, query + q * D, D, K, (size_t)neighbours[t], 0.07);
            for (size_t k = 0; k < K; k++) assert_near(got[q * K + k], want[k], 1e-4, "knn");
        }
    }
    double p[K];
    knn_predict(p, train, label, 0, query, 1, D, K, 5, 0.07); /* nothing to compare with: uniform */
    assert_near(p[0], 1.0 / K, 1e-12, "no neighbours");
    memset(query, 0, sizeof query);
    knn_predict(p, train, label, N, query, 1, D, K, 5, 0.07);
    assert_near(p[0] + p[1] + p[2], 1, 1e-9, "zero query");
}

static void test_rank(void **state)
{
    (void)state;
    float *x = calloc(4 * 600 * 40, sizeof *x);
    /* +-s_j e_j: centred already, singular values s_j sqrt 2. Entropy of (3,2,1)/6. */
    static const float s[] = {3, 2, 1};
    for (int j = 0; j < 3; j++) {
        x[(2 * j) * 5 + j] = s[j];
        x[(2 * j + 1) * 5 + j] = -s[j];
    }
    double entropy = -(0.5 * log(0.5) + 1 / 3.0 * log(1 / 3.0) + 1 / 6.0 * log(1 / 6.0));
    assert_near(effective_rank(x, 6, 5), exp(entropy), 1e-5, "known singular values");
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 5; j++) x[i * 5 + j] += 100.0f * (float)(j + 1); /* a shift changes nothing */
    assert_near(effective_rank(x, 6, 5), exp(entropy), 1e-3, "shifted");

    /* The same cloud seen as few long rows and as many short ones: rank of independent directions. */
    memset(x, 0, 4 * 600 * 40 * sizeof *x);
    for (int j = 0; j < 20; j++) {
        x[(2 * j) * 600 + 7 * j] = 2;
        x[(2 * j + 1) * 600 + 7 * j] = -2;
    }
    assert_near(effective_rank(x, 40, 600), 20, 1e-4, "n < dim");
    rng r = rng_at(5, RNG_TEST, 0, 0);
    for (int i = 0; i < 2000; i++) {
        float u = rng_normal(&r);
        for (int j = 0; j < 40; j++) x[i * 40 + j] = u * (float)(j + 1) + 3;
    }
    assert_near(effective_rank(x, 2000, 40), 1, 1e-2, "a line, many rows");
    for (int i = 0; i < 2000 * 40; i++) x[i] = rng_normal(&r);
    double full = effective_rank(x, 2000, 40);
    assert_true(full > 38 && full <= 40 + 1e-9);
    for (int i = 0; i < 2000 * 40; i++) x[i] = 0.25f;
    assert_near(effective_rank(x, 2000, 40), 1, 1e-9, "constant");
    x[3] = NAN;
    assert_near(effective_rank(x, 10, 40), NAN, 0, "NaN");
    assert_near(effective_rank(x, 0, 40), NAN, 0, "nothing");
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_auc),     cmocka_unit_test(test_compute), cmocka_unit_test(test_average_precision),
        cmocka_unit_test(test_ordinal), cmocka_unit_test(test_marks),   cmocka_unit_test(test_better),
        cmocka_unit_test(test_knn),     cmocka_unit_test(test_rank)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
