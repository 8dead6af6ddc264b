/* gelu.cuh: GELU (exact: by erf), its derivative, and the derivative's codes of 10 bits in op_cpu_gelu.c's layout, for
 * passes over values (gelu.cu) and for products that end in them (linear.cu). */
#ifndef RADAPT_GELU_CUH
#define RADAPT_GELU_CUH
#include "model/cuda/gpu.cuh"

/* op_cpu.h's rational erf: in 17 instructions, and the CPU's slope codes to one step. */
static __device__ __forceinline__ float erf_near(float x)
{
    x = fminf(fmaxf(x, -4.0f), 4.0f);
    float t = x * x;
    float a = -2.72614225801306e-10f;
    a = a * t + 2.77068142495902e-08f;
    a = a * t - 2.10102402082508e-06f;
    a = a * t - 5.69250639462346e-05f;
    a = a * t - 7.34990630326855e-04f;
    a = a * t - 2.95459980854025e-03f;
    a = a * t - 1.60960333262415e-02f;
    float b = -1.45660718464996e-05f;
    b = b * t - 2.13374055278905e-04f;
    b = b * t - 1.68282697438203e-03f;
    b = b * t - 7.37332916720468e-03f;
    b = b * t - 1.42647390514189e-02f;
    return __fdividef(x * a, b);
}

static __device__ __forceinline__ float gelu_cdf(float x)
{
    return 0.5f * (1.0f + erf_near(x * 0.70710678f));
}

/* GELU' = cdf + x pdf */
static __device__ __forceinline__ float gelu_slope(float x, float cdf)
{
    return cdf + x * 0.39894228f * __expf(-0.5f * x * x);
}

/* Steps of 1/811 from -105/811 on. A row of F codes: F bytes of their low 8 bits, then (F+3)/4 bytes of the high 2 bits
 * of four codes each, the first lowest. */
constexpr float SLOPE_STEPS = 811.0f, SLOPE_ZERO = 105.0f;
constexpr size_t SLOPE_ALIGNED = 32; /* columns whose codes' bytes are a multiple of 8 */

static __device__ __forceinline__ unsigned slope_code(float x, float cdf)
{
    float at = gelu_slope(x, cdf) * SLOPE_STEPS + SLOPE_ZERO + 0.5f;
    return (unsigned)fmaxf(fminf(at, 1023.0f), 0.0f); /* NaN: any; x says what it is */
}

static __device__ __forceinline__ float slope_of(unsigned code)
{
    return ((float)code - SLOPE_ZERO) * (1.0f / SLOPE_STEPS);
}
#endif
