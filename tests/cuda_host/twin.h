/* twin.h: the same op on the CPU and on the CUDA back end (in the host executor), and what differs.
 *
 *     twin t = twin_open(COMPUTE_BF16);
 *     tensor x = tensor_ct(&t, N * C, 1, 1.0f), y = tensor_ct(&t, N * C, 2, 1.0f);
 *     BOTH(t, i) t.d[i].op->add(&t.d[i], y.p[i], x.p[i], N * C);
 *     twin_compare(&t, "add", &y, 1e-5);     // NMSE at most; prints it, and the largest difference
 *     twin_close(&t);                        // frees all tensors
 *
 * The CPU computes in fp32 in any case, from values that the CUDA side's type holds exactly: it is the reference, and
 * no processor's bf16 is needed. */
#ifndef RADAPT_TWIN_H
#define RADAPT_TWIN_H
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#ifndef TWIN_ANY_DEVICE /* who defines it opens the devices: no CUDA headers are needed then */
#include "model/cuda/op_cuda.h"
#endif
#include "model/op_cpu.h"

enum { CPU, CUDA, TWINS, TENSORS_MOST = 512 };

typedef enum { TENSOR_CT, TENSOR_F32, TENSOR_BYTES } tensor_kind;

typedef struct {
    dv *p[TWINS];
    size_t n; /* values; bytes of TENSOR_BYTES */
    tensor_kind kind;
} tensor;

typedef struct {
    device d[TWINS];
    dv *all[TWINS][TENSORS_MOST];
    int n;
} twin;

#define ASSERT_OK(call)                                                                                                \
    do {                                                                                                               \
        e = (err){0};                                                                                                  \
        if (call) fail_msg("%s", e.msg);                                                                               \
    } while (0)
#define BOTH(t, i) for (int i = 0; i < TWINS; i++)

#ifndef TWIN_ANY_DEVICE
static inline twin twin_open(compute_type ct)
{
    twin t = {.n = 0};
    err e;
    ASSERT_OK(device_open_cpu(&t.d[CPU], 1, COMPUTE_F32, &e));
    ASSERT_OK(op_cuda_open(&t.d[CUDA], 0, ct, &e));
    return t;
}
#endif

static inline void twin_reserve(twin *t, size_t cpu, size_t cuda)
{
    err e;
    ASSERT_OK(device_reserve(&t->d[CPU], cpu, &e));
    ASSERT_OK(device_reserve(&t->d[CUDA], cuda, &e));
}

static inline void twin_close(twin *t)
{
    err e;
    BOTH(t, i)
    {
        ASSERT_OK(device_sync(&t->d[i], &e));
        for (int k = 0; k < t->n; k++) t->d[i].op->free(&t->d[i], t->all[i][k]);
        device_close(&t->d[i]);
    }
}

static inline size_t tensor_value_bytes(const device *d, tensor_kind kind)
{
    return kind == TENSOR_BYTES ? 1 : kind == TENSOR_F32 ? 4 : d->ct_bytes;
}

/* Host values (fp32, or bytes) to both sides. */
static inline tensor tensor_of(twin *t, tensor_kind kind, const void *values, size_t n)
{
    tensor x = {.n = n, .kind = kind};
    err e;
    assert_true(t->n < TENSORS_MOST);
    BOTH(t, i)
    {
        device *d = &t->d[i];
        size_t bytes = n * tensor_value_bytes(d, kind);
        ASSERT_OK(d->op->alloc(d, bytes, &x.p[i], &e));
        t->all[i][t->n] = x.p[i];
        if (kind == TENSOR_CT && d->ct == COMPUTE_BF16) {
            uint16_t *half = malloc(bytes + 1);
            assert_non_null(half);
            for (size_t k = 0; k < n; k++) half[k] = op_f32_to_bf16(((const float *)values)[k]);
            d->op->upload(d, x.p[i], half, bytes);
            ASSERT_OK(device_sync(d, &e));
            free(half);
        } else {
            d->op->upload(d, x.p[i], values, bytes);
        }
    }
    t->n++;
    return x;
}

/* n normal values times scale; of ct those that it holds exactly. */
static inline tensor tensor_random(twin *t, tensor_kind kind, size_t n, uint64_t seed, float scale)
{
    float *x = malloc((n + 1) * sizeof *x);
    assert_non_null(x);
    rng g = rng_at(seed, 0, 0, 0);
    for (size_t i = 0; i < n; i++) {
        x[i] = scale * rng_normal(&g);
        if (kind == TENSOR_CT && t->d[CUDA].ct == COMPUTE_BF16) x[i] = op_bf16_to_f32(op_f32_to_bf16(x[i]));
    }
    tensor r = tensor_of(t, kind, x, n);
    free(x);
    return r;
}

static inline tensor tensor_ct(twin *t, size_t n, uint64_t seed, float scale)
{
    return tensor_random(t, TENSOR_CT, n, seed, scale);
}

static inline tensor tensor_f32(twin *t, size_t n, uint64_t seed, float scale)
{
    return tensor_random(t, TENSOR_F32, n, seed, scale);
}

/* The side's values as fp32 (bytes: 0 to 255); the caller frees. */
static inline float *tensor_values(twin *t, const tensor *x, int side)
{
    device *d = &t->d[side];
    size_t each = tensor_value_bytes(d, x->kind), bytes = x->n * each;
    char *raw = malloc(bytes + 1);
    float *v = malloc((x->n + 1) * sizeof *v);
    err e;
    assert_non_null(raw);
    assert_non_null(v);
    d->op->download(d, raw, x->p[side], bytes);
    ASSERT_OK(device_sync(d, &e));
    for (size_t i = 0; i < x->n; i++) {
        if (x->kind == TENSOR_BYTES)
            v[i] = (float)((uint8_t *)raw)[i];
        else if (each == 2)
            v[i] = op_bf16_to_f32(((uint16_t *)raw)[i]);
        else
            memcpy(&v[i], raw + i * each, sizeof *v);
    }
    free(raw);
    return v;
}

/* The mean square difference over the CPU's mean square; fails above `most`, and where one side alone is not finite. */
static inline void twin_compare(twin *t, const char *name, const tensor *x, double most)
{
    float *a = tensor_values(t, x, CPU), *b = tensor_values(t, x, CUDA);
    double off = 0, size = 1e-30, largest = 0;
    for (size_t i = 0; i < x->n; i++) {
        if (isfinite(a[i]) != isfinite(b[i])) fail_msg("%s: value %zu is %g and %g", name, i, a[i], b[i]);
        if (!isfinite(a[i])) continue;
        double difference = (double)b[i] - a[i];
        off += difference * difference;
        size += (double)a[i] * a[i];
        if (fabs(difference) > largest) largest = fabs(difference);
    }
    printf("    %-40s %zu values, NMSE %.2e (at most %.0e), largest difference %.2e\n", name, x->n, off / size, most,
           largest);
    if (!(off / size <= most)) fail_msg("%s: NMSE %g, at most %g", name, off / size, most);
    free(a);
    free(b);
}

/* Of one rounding to the CUDA side's type, squared and with room for sums in another order. */
static inline double twin_rounding(const twin *t)
{
    return t->d[CUDA].ct == COMPUTE_BF16 ? 1e-5 : 1e-11;
}
#endif
