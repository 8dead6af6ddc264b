/* GELU, its derivative in 10 bits, and SwiGLU on the CUDA back end against the CPU's. */
#include "tests/cuda_host/twin.h"

typedef struct {
    size_t N, F, skip; /* skip: values in front, by which 16-byte alignment is lost */
} shape;

static const compute_type types[] = {COMPUTE_F32, COMPUTE_BF16};

/* Where there is one value, its rounding may be the worst. */
static double rounding(const twin *t)
{
    return 2 * twin_rounding(t);
}

static dv *at(const twin *t, const tensor *x, int i, size_t skip)
{
    return dv_at(x->p[i], skip * tensor_value_bytes(&t->d[i], x->kind));
}

static void each_shape(const shape *s, size_t n, void (*run)(twin *t, const shape *s))
{
    for (size_t c = 0; c < 2; c++) {
        twin t = twin_open(types[c]);
        for (size_t k = 0; k < n; k++) {
            printf("%s, N %zu, F %zu, from %zu on\n", types[c] == COMPUTE_F32 ? "fp32" : "bf16", s[k].N, s[k].F,
                   s[k].skip);
            run(&t, &s[k]);
        }
        twin_close(&t);
    }
}

static void gelus(twin *t, const shape *s)
{
    size_t skip = s->skip, values = s->N * s->F, n = skip + values;
    tensor x = tensor_ct(t, n, 1, 3), y = tensor_ct(t, n, 2, 1), dy = tensor_ct(t, n, 3, 1), dx = tensor_ct(t, n, 4, 1);
    BOTH(t, i)
    {
        device *d = &t->d[i];
        d->op->gelu_fwd(d, at(t, &y, i, skip), at(t, &x, i, skip), values);
        d->op->gelu_bwd(d, at(t, &dx, i, skip), at(t, &dy, i, skip), at(t, &x, i, skip), values);
        d->op->gelu_bwd(d, at(t, &dy, i, skip), at(t, &dy, i, skip), at(t, &x, i, skip), values);
    }
    twin_compare(t, "gelu_fwd", &y, rounding(t));
    twin_compare(t, "gelu_bwd", &dx, rounding(t));
    twin_compare(t, "gelu_bwd in place", &dy, rounding(t));
    BOTH(t, i) t->d[i].op->gelu_fwd(&t->d[i], at(t, &x, i, skip), at(t, &x, i, skip), values);
    twin_compare(t, "gelu_fwd in place", &x, rounding(t));
}

static void add_rows(dv *x, const dv *bias, size_t n, size_t F)
{
    for (size_t i = 0; i < n; i++) ((float *)x)[i] += ((const float *)bias)[i % F];
}

static void biased(twin *t, const shape *s)
{
    size_t skip = s->skip, values = s->N * s->F, n = skip + values;
    tensor bias = tensor_f32(t, skip + s->F, 5, 1);
    for (int k = 0; k < 4; k++) {
        bool keep = k & 1, with = k & 2;
        tensor x = tensor_ct(t, n, 1, 2), y = tensor_ct(t, n, 2, 1), before = tensor_ct(t, n, 1, 2);
        printf("  %s%s\n", keep ? "kept " : "", with ? "bias" : "");
        if (with) add_rows(at(t, &x, CPU, skip), at(t, &bias, CPU, skip), values, s->F);
        t->d[CPU].op->gelu_fwd(&t->d[CPU], at(t, &y, CPU, skip), at(t, &x, CPU, skip), values);
        op_cuda_gelu_bias_fwd(&t->d[CUDA], at(t, &y, CUDA, skip), at(t, &x, CUDA, skip),
                              with ? at(t, &bias, CUDA, skip) : NULL, keep, s->N, s->F);
        twin_compare(t, "gelu_bias_fwd y", &y, rounding(t));
        if (!keep) t->d[CPU].op->copy(&t->d[CPU], x.p[CPU], before.p[CPU], n * sizeof(float));
        twin_compare(t, "gelu_bias_fwd x", &x, rounding(t));
    }
}

static void gelu(void **state)
{
    (void)state;
    static const shape shapes[] = {{0, 8, 0}, {1, 1, 0}, {3, 33, 0}, {19, 264, 0}, {5, 40, 1}};
    each_shape(shapes, sizeof shapes / sizeof *shapes, gelus);
    each_shape(shapes, sizeof shapes / sizeof *shapes, biased);
}

/* Columns of op_cpu_gelu.c's layout. */
static int code_of(const float *row, size_t F, size_t c)
{
    return (int)row[c] | ((int)row[F + c / 4] >> 2 * (c % 4) & 3) << 8;
}

static void slopes(twin *t, const shape *s)
{
    size_t N = s->N, F = s->F, n = s->skip + N * F, stride = op_slope_bytes(F);
    uint8_t *poison = malloc(N * stride + 1);
    assert_non_null(poison);
    memset(poison, 255, N * stride);
    tensor x = tensor_ct(t, n, 1, 2), y = tensor_ct(t, n, 1, 2), bias = tensor_f32(t, s->skip + F, 3, 1);
    tensor slope = tensor_of(t, TENSOR_BYTES, poison, N * stride), dy = tensor_ct(t, n, 4, 1),
           dx = tensor_ct(t, n, 5, 1);
    free(poison);
    for (int with = 0; with < 2; with++) {
        BOTH(t, i) t->d[i].op->copy(&t->d[i], y.p[i], x.p[i], n * t->d[i].ct_bytes);
        if (with) add_rows(at(t, &y, CPU, s->skip), at(t, &bias, CPU, s->skip), N * F, F);
        float *pre = tensor_values(t, &y, CPU);
        op_cpu_gelu_slope_fwd(&t->d[CPU], at(t, &y, CPU, s->skip), slope.p[CPU], N, F);
        op_cuda_gelu_slope_fwd(&t->d[CUDA], at(t, &y, CUDA, s->skip), slope.p[CUDA],
                               with ? at(t, &bias, CUDA, s->skip) : NULL, N, F);
        printf("  %s\n", with ? "bias" : "no bias");
        twin_compare(t, "gelu_slope_fwd y", &y, rounding(t));
        float *a = tensor_values(t, &slope, CPU), *b = tensor_values(t, &slope, CUDA);
        for (size_t i = 0; i < N * F; i++) {
            int cpu = code_of(a + i / F * stride, F, i % F), code = code_of(b + i / F * stride, F, i % F);
            double v = pre[s->skip + i],
                   true_slope = 0.5 * erfc(-v * M_SQRT1_2) + v * exp(-0.5 * v * v) * 0.3989422804014327;
            assert_in_range(code + 1 - cpu, 0, 2);
            assert_true(fabs((code - 105) / 811.0 - true_slope) <= 1.0 / 1600);
        }
        if (F % 4)
            for (size_t i = 0; i < N; i++) assert_int_equal((int)b[(i + 1) * stride - 1] >> 2 * (F % 4), 0);
        free(a);
        free(b);
        free(pre);
        BOTH(t, i) t->d[i].op->copy(&t->d[i], dx.p[i], dy.p[i], n * t->d[i].ct_bytes);
        op_cpu_gelu_slope_bwd(&t->d[CPU], at(t, &dx, CPU, s->skip), at(t, &dx, CPU, s->skip), slope.p[CPU], N, F);
        op_cuda_gelu_slope_bwd(&t->d[CUDA], at(t, &dx, CUDA, s->skip), at(t, &dx, CUDA, s->skip), slope.p[CUDA], N, F);
        twin_compare(t, "gelu_slope_bwd in place", &dx, 1e-5); /* of a code */
    }
}

static void slope(void **state)
{
    (void)state;
    static const shape shapes[] = {{0, 8, 0}, {1, 1, 0}, {3, 33, 0}, {2, 7, 0}, {9, 1056, 0}, {25, 96, 0}, {5, 64, 1}};
    each_shape(shapes, sizeof shapes / sizeof *shapes, slopes);
}

static void swiglus(twin *t, const shape *s)
{
    size_t N = s->N, F = s->F, skip = s->skip;
    tensor pre = tensor_ct(t, skip + 2 * N * F, 1, 4), y = tensor_ct(t, skip + N * F, 2, 1);
    tensor dy = tensor_ct(t, skip + N * F, 3, 1), dpre = tensor_ct(t, skip + 2 * N * F, 4, 1);
    BOTH(t, i)
    {
        device *d = &t->d[i];
        d->op->swiglu_fwd(d, at(t, &y, i, skip), at(t, &pre, i, skip), N, F);
        d->op->swiglu_bwd(d, at(t, &dpre, i, skip), at(t, &dy, i, skip), at(t, &pre, i, skip), N, F);
        d->op->swiglu_bwd(d, at(t, &pre, i, skip), at(t, &dy, i, skip), at(t, &pre, i, skip), N, F);
    }
    twin_compare(t, "swiglu_fwd", &y, rounding(t));
    twin_compare(t, "swiglu_bwd", &dpre, rounding(t));
    twin_compare(t, "swiglu_bwd in place", &pre, rounding(t));
}

static void swiglu(void **state)
{
    (void)state;
    static const shape shapes[] = {{0, 8, 0}, {1, 1, 0}, {3, 33, 0}, {25, 264, 0}, {5, 40, 1}};
    each_shape(shapes, sizeof shapes / sizeof *shapes, swiglus);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(gelu), cmocka_unit_test(slope), cmocka_unit_test(swiglu)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
