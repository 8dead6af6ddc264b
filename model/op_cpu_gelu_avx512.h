/* op_cpu_gelu_avx512.h: GELU of 16 bf16 results at a time, and its derivative, from a table of 32 cubics: what the
 * linear layers with AVX-512 share, with tiles and without. The table: op_cpu_gelu.c. */
#ifndef RADAPT_OP_CPU_GELU_AVX512_H
#define RADAPT_OP_CPU_GELU_AVX512_H
#if defined(__x86_64__)
#include <immintrin.h>

#include "model/op_cpu_gelu.h"

#define GELU_AVX512 __attribute__((target("avx512f,avx512dq"))) static inline __attribute__((always_inline, unused))

/* The table in registers: both halves of each coefficient. */
typedef struct {
    __m512 phi[4][2];
} gelu_table;

GELU_AVX512 gelu_table gelu_table_load(void)
{
    gelu_table k;
    for (int c = 0; c < 4; c++)
        for (int i = 0; i < 2; i++) k.phi[c][i] = _mm512_loadu_ps(op_cpu_gelu_phi[c] + 16 * i);
    return k;
}

/* GELU(x); *slope = GELU'(x) - 1/2 = Phi - 1/2 + x Phi', if wanted, Phi' from the same cubic. NaN stays NaN. */
GELU_AVX512 __m512 gelu_of(const gelu_table *k, __m512 x, __m512 *slope)
{
    const __m512i minus = _mm512_set1_epi32(INT32_MIN);
    const __m512 nearest = _mm512_set1_ps(12582912.0f); /* an integer's bits end up last */
    __m512i bits = _mm512_castps_si512(x), sign = _mm512_and_si512(bits, minus);
    __m512 t = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_andnot_si512(minus, bits)), _mm512_set1_ps(GELU_PER_UNIT));
    t = _mm512_min_ps(t, _mm512_set1_ps(GELU_SEGMENTS - 1));
    __m512i i = _mm512_castps_si512(_mm512_add_ps(t, nearest)); /* its last five bits choose */
    __m512 f = _mm512_reduce_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), c[4];
    for (int j = 0; j < 4; j++) c[j] = _mm512_permutex2var_ps(k->phi[j][0], i, k->phi[j][1]);
    __m512 p = _mm512_fmadd_ps(c[3], f, c[2]), q = _mm512_fmadd_ps(c[3], f, p); /* Horner's scheme, and its slope's */
    p = _mm512_fmadd_ps(p, f, c[1]);
    q = _mm512_fmadd_ps(q, f, p);
    p = _mm512_fmadd_ps(p, f, c[0]);
    if (slope) /* x dPhi/dx is t dPhi/dt */
        *slope = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(_mm512_fmadd_ps(t, q, p)), sign));
    p = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(p), sign));
    return _mm512_fmadd_ps(x, p, _mm512_mul_ps(x, _mm512_set1_ps(0.5f)));
}

#endif
#endif
