/* op_case.h: cases of ops: device tensors with their values in double, compared by normalised mean square error.
 *
 *     CASES(d, row) { ... }                       // in each compute type
 *     values x = ct_noise(&d, n, scale);          // f32_noise, f32_zeros, ct_zeros, int32_of
 *     d.op->...;
 *     expect(&d, "what", &x, want);               // want[n] double; prints, fails above the type's bound
 *     end_case(&d);                               // frees every tensor made since start_case
 *
 * Inputs are exact in the compute type, so what differs is arithmetic and one rounding of the output. */
#ifndef RADAPT_TESTS_OP_CASE_H
#define RADAPT_TESTS_OP_CASE_H
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "model/op_cpu.h"

#define ASSERT_OK(call)                                                                                                \
    do {                                                                                                               \
        err_code code_ = (call);                                                                                       \
        if (code_) fail_msg("%s: %s", err_name(code_), e.msg);                                                         \
    } while (0)

typedef struct {
    dv *p;
    double *v; /* as made; the device's copy may have changed since */
    size_t n;
    bool f32;
} values;

enum { VALUES_MOST = 64 };
static values made[VALUES_MOST];
static size_t n_made;
static rng noise;
static char case_name[96];

/* Opens a device; false where the processor has not the type. */
static bool start_device(device *d, compute_type ct)
{
    err e = {0};
    n_made = 0;
    noise = rng_at(42, RNG_TEST, 0, 0);
    return device_open_cpu(d, 2, ct, &e) == ERR_OK;
}

static void start_case(const device *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void start_case(const device *d, const char *fmt, ...)
{
    va_list ap;
    int n = snprintf(case_name, sizeof case_name, "%s ", d->ct == COMPUTE_BF16 ? "bf16" : "fp32");
    va_start(ap, fmt);
    vsnprintf(case_name + n, sizeof case_name - (size_t)n, fmt, ap);
    va_end(ap);
}

static void end_case(device *d)
{
    err e = {0};
    ASSERT_OK(device_sync(d, &e));
    for (size_t i = 0; i < n_made; i++) {
        d->op->free(d, made[i].p);
        free(made[i].v);
    }
    n_made = 0;
}

static values keep(device *d, size_t n, bool f32, double scale, double mean)
{
    values t = {NULL, calloc(n + 1, sizeof(double)), n, f32};
    err e = {0};
    assert_non_null(t.v);
    ASSERT_OK(d->op->alloc(d, (n + 1) * sizeof(float), &t.p, &e));
    for (size_t i = 0; i < n; i++) {
        float x = scale == 0 ? (float)mean : (float)(mean + scale * rng_normal(&noise));
        if (!f32 && d->ct == COMPUTE_BF16) x = op_bf16_to_f32(op_f32_to_bf16(x));
        t.v[i] = x;
        if (f32)
            memcpy((char *)t.p + i * sizeof x, &x, sizeof x);
        else
            op_cpu_store(d, t.p, i, &x, 1);
    }
    assert_true(n_made < VALUES_MOST);
    made[n_made++] = t;
    return t;
}

static inline values ct_noise(device *d, size_t n, double scale)
{
    return keep(d, n, false, scale, 0);
}
static inline values f32_noise(device *d, size_t n, double scale, double mean)
{
    return keep(d, n, true, scale, mean);
}
/* Filled with a value that an op which assigns must overwrite. */
static inline values ct_full(device *d, size_t n, double value)
{
    return keep(d, n, false, 0, value);
}
static inline values f32_full(device *d, size_t n, double value)
{
    return keep(d, n, true, 0, value);
}

/* Writes new values into t, rounded to its type. */
static inline void put_values(device *d, values *t, const double *v)
{
    for (size_t i = 0; i < t->n; i++) {
        float x = (float)v[i];
        if (!t->f32 && d->ct == COMPUTE_BF16) x = op_bf16_to_f32(op_f32_to_bf16(x));
        t->v[i] = x;
        if (t->f32)
            memcpy((char *)t->p + i * sizeof x, &x, sizeof x);
        else
            op_cpu_store(d, t->p, i, &x, 1);
    }
}

static inline dv *int32_of(device *d, const int32_t *x, size_t n)
{
    values t = {NULL, NULL, n, true};
    err e = {0};
    ASSERT_OK(d->op->alloc(d, (n + 1) * sizeof *x, &t.p, &e));
    d->op->upload(d, t.p, x, n * sizeof *x);
    assert_true(n_made < VALUES_MOST);
    made[n_made++] = t;
    return t.p;
}

/* Memory of the case, freed with it. */
static inline double *doubles(size_t n)
{
    assert_true(n_made < VALUES_MOST);
    values t = {NULL, calloc(n + 1, sizeof(double)), n, true};
    assert_non_null(t.v);
    made[n_made++] = t;
    return t.v;
}

static inline double at(const device *d, const values *t, size_t i)
{
    float x;
    if (t->f32)
        memcpy(&x, (const char *)t->p + i * sizeof x, sizeof x);
    else
        op_cpu_load(d, &x, t->p, i, 1);
    return x;
}

/* Two that were made in two ways. */
static inline void same_bits(const device *d, const values *a, const values *b)
{
    assert_memory_equal(a->p, b->p, a->n * (a->f32 ? sizeof(float) : d->ct_bytes));
}

/* As expect, with the NMSE allowed. */
static void expect_within(device *d, const char *what, const values *t, const double *want, double bound)
{
    double off = 0, size = 0, worst = 0, most = 0;
    for (size_t i = 0; i < t->n; i++) {
        double x = at(d, t, i), diff = fabs(x - want[i]);
        if (!isfinite(x)) diff = INFINITY;
        off += diff * diff;
        size += want[i] * want[i];
        worst = fmax(worst, diff);
        most = fmax(most, fabs(want[i]));
    }
    double nmse = size > 0 ? off / size : off;
    /* One value far off in a long tensor hides in the mean: the largest error has its own, wider bound. */
    double largest = most > 0 ? worst / most : worst;
    bool good = nmse <= bound && largest <= 8 * sqrt(bound);
    if (!good || getenv("OP_CASES"))
        print_message("%-44s %-10s nmse %.1e largest %.1e of %.1e\n", case_name, what, nmse, worst, most);
    assert_true(good);
}

static inline void expect(device *d, const char *what, const values *t, const double *want)
{
    expect_within(d, what, t, want, !t->f32 && d->ct == COMPUTE_BF16 ? 8e-6 : 1e-11);
}

/* The same of the sum of two tensors: a value and what rounding left of it. */
static inline void expect_sum(device *d, const char *what, const values *t, const values *rest, const double *want,
                              double bound)
{
    values sum = {NULL, NULL, t->n, true};
    err e = {0};
    ASSERT_OK(d->op->alloc(d, (t->n + 1) * sizeof(float), &sum.p, &e));
    for (size_t i = 0; i < t->n; i++) ((float *)sum.p)[i] = (float)(at(d, t, i) + at(d, rest, i));
    expect_within(d, what, &sum, want, bound);
    d->op->free(d, sum.p);
}

#define CASES(d)                                                                                                       \
    for (int type_ = 0; type_ < 2; type_++)                                                                            \
        for (bool open_ = start_device(&(d), type_ ? COMPUTE_BF16 : COMPUTE_F32); open_;                               \
             device_close(&(d)), open_ = false)
#define COUNT(a) (sizeof(a) / sizeof *(a))

#endif
