/* op_values.h: a device, and tensors on it with what they hold, in double. */
#ifndef RADAPT_TESTS_OP_VALUES_H
#define RADAPT_TESTS_OP_VALUES_H
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/rng.h"
#include "model/op_cpu.h"

#define ASSERT_OK(call)                                                                                                \
    do {                                                                                                               \
        err_code code_ = (call);                                                                                       \
        if (code_) fail_msg("%s: %s", err_name(code_), e.msg);                                                         \
    } while (0)

static const compute_type types[] = {COMPUTE_F32, COMPUTE_AUTO}; /* AUTO: bf16 where the processor has it */

static device open_device(compute_type ct)
{
    device d;
    err e = {0};
    ASSERT_OK(device_open_cpu(&d, 2, ct, &e));
    return d;
}

/* A tensor on the device in ct (or f32), and what it holds, in double. */
typedef struct {
    dv *p;
    double *v;
    size_t n;
    bool f32;
} values;

static values make(device *d, size_t n, uint64_t seed, double scale, bool f32)
{
    values t = {NULL, malloc((n + 1) * sizeof(double)), n, f32};
    float *x = malloc((n + 1) * sizeof *x);
    err e = {0};
    dv *f;
    assert_true(t.v && x);
    rng r = rng_at(seed, RNG_TEST, 0, 0);
    for (size_t i = 0; i < n; i++) {
        x[i] = (float)scale * rng_normal(&r);
        if (!f32 && d->ct == COMPUTE_BF16) x[i] = op_bf16_to_f32(op_f32_to_bf16(x[i]));
        t.v[i] = x[i];
    }
    ASSERT_OK(d->op->alloc(d, (n + 1) * sizeof(float), &t.p, &e));
    ASSERT_OK(d->op->alloc(d, n * sizeof(float), &f, &e));
    d->op->upload(d, f, x, n * sizeof *x);
    if (f32)
        d->op->copy(d, t.p, f, n * sizeof *x);
    else
        d->op->to_ct(d, t.p, f, n);
    d->op->free(d, f);
    free(x);
    return t;
}

static void drop(device *d, values *t)
{
    d->op->free(d, t->p);
    free(t->v);
}

#endif
