/* The head as it is initialised on data: units of zero mean and unit variance over the tokens, prototypes of length 1
 * that lie among the embeddings, student and teacher alike; the teacher's targets are sharp and varied then. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "adapt/dino_head.h"
#include "base/rng.h"

enum { N = 300, IN = 24, HIDDEN = 40, Z = 12, K = 64 };

#define ASSERT_OK(call)                                                                                                \
    do {                                                                                                               \
        err_code code_ = (call);                                                                                       \
        if (code_) fail_msg("%s: %s", err_name(code_), e.msg);                                                         \
    } while (0)

/* Tokens as a foundation model gives them: far from zero, unequal channels, a few directions. */
static void draw_tokens(float *x)
{
    rng r = rng_at(2, RNG_TEST, 0, 0);
    for (int i = 0; i < N; i++) {
        float a = rng_normal(&r), b = rng_normal(&r);
        for (int c = 0; c < IN; c++)
            x[i * IN + c] = 5 + 0.3f * a * (float)c + b * (float)(c % 3) + 0.1f * rng_normal(&r);
    }
}

static void test_units(void **state)
{
    (void)state;
    err e = {0};
    device d;
    param_set ps = {0};
    dino_head h;
    float x[N * IN];
    draw_tokens(x);
    ASSERT_OK(device_open_cpu(&d, 2, COMPUTE_F32, &e));
    ASSERT_OK(dino_head_open(&h, &d, &ps, DINO_HEAD, &(dino_head_config){IN, HIDDEN, Z, K}, 3, &e));
    ASSERT_OK(dino_head_init(&h, x, N, 0.1f, 3, &e));
    assert_int_equal(ps.n, DINO_HEAD_PARAMS);
    const float *w = (const float *)ps.p[0].master, *b = (const float *)ps.p[1].master;
    for (int o = 0; o < HIDDEN; o++) {
        double mean = 0, square = 0;
        for (int i = 0; i < N; i++) {
            double y = b[o];
            for (int c = 0; c < IN; c++) y += (double)w[o * IN + c] * x[i * IN + c];
            mean += y / N;
            square += y * y / N;
        }
        assert_true(fabs(mean) < 1e-3 && fabs(square - mean * mean - 1) < 1e-2);
    }
    for (size_t i = 0; i < ps.n; i++)
        assert_memory_equal(ps.p[i].master, ps.p[i].teacher, ps.p[i].rows * ps.p[i].cols * sizeof(float));
    for (int who = 0; who < 2; who++)
        for (int k = 0; k < K; k++) {
            const float *v = (const float *)h.last[who].w + k * Z;
            double square = 0;
            for (int c = 0; c < Z; c++) square += (double)v[c] * v[c];
            assert_true(fabs(square - 1) < 1e-5);
        }
    dino_head_close(&h);
    param_set_free(&d, &ps);
    device_close(&d);
}

/* Mean entropy of softmax(logits / 0.07) over the tokens, and the entropy of the mean: nats. rows: that the head is
 * initialised on; 0: it is random. Returns the mean cosine of a token and the prototype next to it. */
static double entropies(size_t rows, double *mean, double *marginal)
{
    err e = {0};
    device d;
    param_set ps = {0};
    dino_head h;
    dino_head_acts a = {0};
    float x[N * IN], logits[N * K];
    dv *block, *in, *out;
    arena dry = {0}, real;
    draw_tokens(x);
    ASSERT_OK(device_open_cpu(&d, 2, COMPUTE_F32, &e));
    ASSERT_OK(dino_head_open(&h, &d, &ps, DINO_HEAD, &(dino_head_config){IN, HIDDEN, Z, K}, 3, &e));
    if (rows) ASSERT_OK(dino_head_init(&h, x, rows, 0.1f, 3, &e));
    dino_head_plan(&a, &dry, &h.config, d.ct_bytes, N);
    ASSERT_OK(d.op->alloc(&d, dry.used, &block, &e));
    arena_init(&real, block, dry.used);
    dino_head_plan(&a, &real, &h.config, d.ct_bytes, N);
    ASSERT_OK(d.op->alloc(&d, sizeof x, &in, &e));
    ASSERT_OK(d.op->alloc(&d, sizeof logits, &out, &e));
    d.op->upload(&d, in, x, sizeof x);
    dino_head_embed(&h, VIT_TEACHER, &a, a.unit, in, N);
    dino_head_logits(&h, VIT_TEACHER, a.unit, out, N);
    d.op->download(&d, logits, out, sizeof logits);
    double q[K] = {0}, nearest = 0;
    *mean = *marginal = 0;
    for (int i = 0; i < N; i++) {
        double sum = 0, p[K], most = -1;
        for (int k = 0; k < K; k++) most = fmax(most, logits[i * K + k]);
        nearest += most / N;
        for (int k = 0; k < K; k++) sum += p[k] = exp(logits[i * K + k] / 0.07);
        for (int k = 0; k < K; k++) {
            p[k] /= sum;
            q[k] += p[k] / N;
            if (p[k] > 0) *mean -= p[k] * log(p[k]) / N;
        }
    }
    for (int k = 0; k < K; k++)
        if (q[k] > 0) *marginal -= q[k] * log(q[k]);
    d.op->free(&d, block);
    d.op->free(&d, in);
    d.op->free(&d, out);
    dino_head_close(&h);
    param_set_free(&d, &ps);
    device_close(&d);
    return nearest;
}

static void test_targets(void **state)
{
    (void)state;
    double mean, marginal, random_mean, random_marginal;
    entropies(0, &random_mean, &random_marginal);
    double clusters = entropies(N, &mean, &marginal), a, b, samples = entropies(2 * K - 1, &a, &b);
    print_message("nearest prototype: samples %.4f, clusters %.4f\n", samples, clusters);
    assert_true(1 - clusters < 0.7 * (1 - samples));
    print_message("mean and marginal entropy: random %.2f %.2f, on data %.2f %.2f; ln K %.2f\n", random_mean,
                  random_marginal, mean, marginal, log(K));
    assert_true(marginal > 0.9 * log(K) && mean < 0.6 * log(K)); /* all prototypes are used, each token has a few */
    assert_true(marginal - mean > random_marginal - random_mean + 0.5);
}

static void test_refused(void **state)
{
    (void)state;
    err e = {0};
    device d;
    ASSERT_OK(device_open_cpu(&d, 1, COMPUTE_F32, &e));
    static const dino_head_config table[] = {
        {0, 4, 4, 4}, {4, 0, 4, 4}, {4, 4, 0, 4}, {4, 4, 4, 1}, {4, 4, DINO_HEAD_BOTTLENECK + 1, 4}};
    for (size_t t = 0; t < sizeof table / sizeof *table; t++) {
        dino_head h;
        param_set ps = {0};
        assert_true(dino_head_open(&h, &d, &ps, DINO_HEAD, &table[t], 1, &e));
        dino_head_close(&h);
        param_set_free(&d, &ps);
    }
    device_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_units), cmocka_unit_test(test_targets),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
