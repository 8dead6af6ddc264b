/* op_cpu_rows_bf16.c: ops on rows of bf16 for processors that convert them 16 at a time (AVX-512 BF16): each row is
 * read where it lies, computed in fp32 and stored once. op_cpu_vit.c has the same in portable C. */
#include "model/op_cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#define BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define BF16_INLINE BF16 static inline __attribute__((always_inline))

typedef uint16_t bf16;

enum { LANES = 16 };

bool op_cpu_rows_bf16_fit(const device *d, size_t C)
{
    return d->ct == COMPUTE_BF16 && C % LANES == 0 && op_cpu_matmul_has_bf16();
}

BF16_INLINE __m512 load(const bf16 *x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16));
}

BF16_INLINE void store(bf16 *to, __m512 x)
{
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

BF16_INLINE __m512 f32(const float *x)
{
    return _mm512_loadu_ps(x);
}

/* y = (x - m) * r * gamma + beta */
BF16 static void scaled_row(bf16 *y, const bf16 *x, const float *gamma, const float *beta, float m, float r, size_t C)
{
    __m512 by = _mm512_set1_ps(r), mean = _mm512_set1_ps(m);
    for (size_t i = 0; i < C; i += LANES) {
        __m512 v = _mm512_mul_ps(_mm512_sub_ps(load(x + i), mean), by);
        store(y + i, _mm512_fmadd_ps(v, f32(gamma + i), f32(beta + i)));
    }
}

BF16 static void statistics(const bf16 *x, float eps, size_t C, float *mean, float *rstd)
{
    __m512 sum = _mm512_setzero_ps(), square = sum;
    for (size_t i = 0; i < C; i += LANES) sum = _mm512_add_ps(sum, load(x + i));
    float m = _mm512_reduce_add_ps(sum) / (float)C;
    for (size_t i = 0; i < C; i += LANES) {
        __m512 v = _mm512_sub_ps(load(x + i), _mm512_set1_ps(m));
        square = _mm512_fmadd_ps(v, v, square);
    }
    *mean = m;
    *rstd = 1.0f / sqrtf(_mm512_reduce_add_ps(square) / (float)C + eps);
}

void op_cpu_rows_bf16_norm_fwd(dv *y, dv *mean, dv *rstd, const dv *x, const dv *gamma, const dv *beta, float eps,
                               size_t N, size_t C)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < N; i++) {
        const bf16 *row = (const bf16 *)x + i * C;
        float m, r;
        statistics(row, eps, C, &m, &r);
        if (mean) ((float *)mean)[i] = m;
        if (rstd) ((float *)rstd)[i] = r;
        scaled_row((bf16 *)y + i * C, row, (const float *)gamma, (const float *)beta, m, r, C);
    }
}

void op_cpu_rows_bf16_norm_again(dv *y, const dv *x, const dv *mean, const dv *rstd, const dv *gamma, const dv *beta,
                                 size_t N, size_t C)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < N; i++)
        scaled_row((bf16 *)y + i * C, (const bf16 *)x + i * C, (const float *)gamma, (const float *)beta,
                   ((const float *)mean)[i], ((const float *)rstd)[i], C);
}

/* dx = (dx +) r * (g - mean(g) - xhat * mean(g * xhat)), g = dy * gamma (Ba et al. 2016). */
BF16 static void norm_bwd_row(bf16 *dx, bool accumulate, const bf16 *dy, const bf16 *x, const float *gamma, float m,
                              float r, size_t C)
{
    __m512 a = _mm512_setzero_ps(), b = a, mean = _mm512_set1_ps(m), by = _mm512_set1_ps(r);
    for (size_t i = 0; i < C; i += LANES) {
        __m512 xhat = _mm512_mul_ps(_mm512_sub_ps(load(x + i), mean), by),
               g = _mm512_mul_ps(load(dy + i), f32(gamma + i));
        a = _mm512_add_ps(a, g);
        b = _mm512_fmadd_ps(g, xhat, b);
    }
    __m512 mean_g = _mm512_set1_ps(_mm512_reduce_add_ps(a) / (float)C);
    __m512 mean_gx = _mm512_set1_ps(_mm512_reduce_add_ps(b) / (float)C);
    for (size_t i = 0; i < C; i += LANES) {
        __m512 xhat = _mm512_mul_ps(_mm512_sub_ps(load(x + i), mean), by);
        __m512 g = _mm512_fmsub_ps(load(dy + i), f32(gamma + i), mean_g);
        g = _mm512_mul_ps(by, _mm512_fnmadd_ps(xhat, mean_gx, g));
        store(dx + i, accumulate ? _mm512_add_ps(g, load(dx + i)) : g);
    }
}

void op_cpu_rows_bf16_norm_bwd(dv *dx, bool accumulate, const dv *dy, const dv *x, const dv *mean, const dv *rstd,
                               const dv *gamma, size_t N, size_t C)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < N; i++)
        norm_bwd_row((bf16 *)dx + i * C, accumulate, (const bf16 *)dy + i * C, (const bf16 *)x + i * C,
                     (const float *)gamma, ((const float *)mean)[i], ((const float *)rstd)[i], C);
}

/* y = (x +) ls * z, ls NULL: 1 */
BF16 static void residual_row(bf16 *y, const bf16 *x, const bf16 *z, const float *ls, size_t C)
{
    for (size_t i = 0; i < C; i += LANES) {
        __m512 v = load(z + i);
        if (ls) v = _mm512_mul_ps(v, f32(ls + i));
        store(y + i, x ? _mm512_add_ps(load(x + i), v) : v);
    }
}

void op_cpu_rows_bf16_residual(dv *y, const dv *x, const dv *z, const dv *ls, size_t N, size_t C)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < N; i++)
        residual_row((bf16 *)y + i * C, x ? (const bf16 *)x + i * C : NULL, (const bf16 *)z + i * C, (const float *)ls,
                     C);
}

#else

bool op_cpu_rows_bf16_fit(const device *d, size_t C)
{
    (void)d, (void)C;
    return false;
}
void op_cpu_rows_bf16_norm_fwd(dv *y, dv *mean, dv *rstd, const dv *x, const dv *gamma, const dv *beta, float eps,
                               size_t N, size_t C)
{
    (void)y, (void)mean, (void)rstd, (void)x, (void)gamma, (void)beta, (void)eps, (void)N, (void)C;
}
void op_cpu_rows_bf16_norm_again(dv *y, const dv *x, const dv *mean, const dv *rstd, const dv *gamma, const dv *beta,
                                 size_t N, size_t C)
{
    (void)y, (void)x, (void)mean, (void)rstd, (void)gamma, (void)beta, (void)N, (void)C;
}
void op_cpu_rows_bf16_norm_bwd(dv *dx, bool accumulate, const dv *dy, const dv *x, const dv *mean, const dv *rstd,
                               const dv *gamma, size_t N, size_t C)
{
    (void)dx, (void)accumulate, (void)dy, (void)x, (void)mean, (void)rstd, (void)gamma, (void)N, (void)C;
}
void op_cpu_rows_bf16_residual(dv *y, const dv *x, const dv *z, const dv *ls, size_t N, size_t C)
{
    (void)y, (void)x, (void)z, (void)ls, (void)N, (void)C;
}

#endif
