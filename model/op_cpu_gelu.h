/* op_cpu_gelu.h: GELU' in 10 bits, as rows: what op_cpu_gelu.c and op_cpu_fma_linear.h share, and the table that
 * op_cpu_gelu_avx512.h reads. op_cpu_gelu.c says what the codes are. Inlined where loops have several versions for wide
 * vectors. */
#ifndef RADAPT_OP_CPU_GELU_H
#define RADAPT_OP_CPU_GELU_H
#include "model/op_cpu.h"

/* Phi(x) - 1/2 for x >= 0 (it is odd): around segment s, c0 + c1 f + c2 f^2 + c3 f^3, f = x * GELU_PER_UNIT - s from
 * -1/2 to 1/2; off by 6e-7 at most. From the last segment on, 5.8, it is 1/2, exactly. */
enum { GELU_SEGMENTS = 32 };
#define GELU_PER_UNIT (16 / 3.0f) /* segments of 0.1875 */
extern float op_cpu_gelu_phi[4][GELU_SEGMENTS];

#define GELU_INLINE static inline __attribute__((always_inline))

/* x becomes GELU(x), code its derivative's code as a float. */
GELU_INLINE void op_cpu_gelu_slope(float *x, float *code, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float cdf = 0.5f * (1.0f + op_erf(x[i] * 0.70710678f)), pdf = 0.39894228f * op_exp(-0.5f * x[i] * x[i]);
        float c = (cdf + x[i] * pdf) * OP_SLOPE_STEPS + OP_SLOPE_ZERO + 0.5f;
        c = c < 1023.0f ? c : 1023.0f; /* NaN too: x says what it is */
        code[i] = c > 0.0f ? c : 0.0f;
        x[i] *= cdf;
    }
}

/* n codes: their low 8 bits; their high 2 bits, four in a byte. */
GELU_INLINE void op_cpu_gelu_pack(uint8_t *low, uint8_t *high, const float *code, size_t n)
{
    for (size_t i = 0; i < n; i++) low[i] = (uint8_t)((int)code[i] & 255);
    for (size_t k = 0; k < n / 4; k++) {
        const float *c = code + 4 * k;
        int h = (int)c[0] >> 8 | (int)c[1] >> 8 << 2 | (int)c[2] >> 8 << 4 | (int)c[3] >> 8 << 6;
        high[k] = (uint8_t)h;
    }
    if (n % 4) high[n / 4] = 0;
    for (size_t i = n & ~(size_t)3; i < n; i++) high[i / 4] |= (uint8_t)((int)code[i] >> 8 << 2 * (i % 4));
}

/* dy times the derivatives. */
GELU_INLINE void op_cpu_gelu_times(float *dy, const uint8_t *low, const uint8_t *high, size_t n)
{
    for (size_t k = 0; k < n / 4; k++)
        for (size_t j = 0; j < 4; j++) {
            int code = low[4 * k + j] | (high[k] >> 2 * j & 3) << 8;
            dy[4 * k + j] *= ((float)code - OP_SLOPE_ZERO) * (1.0f / OP_SLOPE_STEPS);
        }
    for (size_t i = n & ~(size_t)3; i < n; i++) {
        int code = low[i] | (high[i / 4] >> 2 * (i % 4) & 3) << 8;
        dy[i] *= ((float)code - OP_SLOPE_ZERO) * (1.0f / OP_SLOPE_STEPS);
    }
}

#endif
