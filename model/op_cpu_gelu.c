/* op_cpu_gelu.c: GELU whose derivative is kept in 10 bits: what a frozen MLP needs of its forward pass to be
 * differentiated, in 5/8 of the bytes of a bf16 input. GELU' lies in [-0.1291, 1.1291]; steps of 1/811 from -105/811 on
 * cover it and hold 0 and 1, which it is nearly everywhere, exactly. 8 bits were tried: they put the gradients of a
 * ViT-Ti 1.0 % off, 10 bits 0.3 %.
 *
 * A row of F codes: F bytes with their low 8 bits, then (F+3)/4 bytes with the high 2 bits of four codes each, the
 * first lowest. */
#include "model/op_cpu_gelu.h"

#include <math.h>

float op_cpu_gelu_phi[4][GELU_SEGMENTS];

/* The cubic through the four Chebyshev nodes of a segment. */
static void fit(int segment)
{
    double t[4], f[4], c[4] = {0};
    for (int i = 0; i < 4; i++) {
        t[i] = 0.5 * cos((2 * i + 1) * M_PI / 8);
        f[i] = 0.5 * erf((segment + t[i]) / GELU_PER_UNIT * M_SQRT1_2);
    }
    for (int level = 1; level < 4; level++) /* Newton's divided differences */
        for (int i = 3; i >= level; i--) f[i] = (f[i] - f[i - 1]) / (t[i] - t[i - level]);
    for (int i = 3; i >= 0; i--) { /* c = c * (f - t_i) + f_i */
        for (int k = 3; k > 0; k--) c[k] = c[k - 1] - c[k] * t[i];
        c[0] = f[i] - c[0] * t[i];
    }
    for (int k = 0; k < 4; k++) op_cpu_gelu_phi[k][segment] = (float)c[k];
}

void op_cpu_gelu_open(void)
{
    for (int s = 0; s + 1 < GELU_SEGMENTS; s++) fit(s);
    op_cpu_gelu_phi[0][GELU_SEGMENTS - 1] = 0.5f;
}

WIDE static void slope_row(float *x, float *code, size_t n)
{
    op_cpu_gelu_slope(x, code, n);
}

WIDE static void pack_row(uint8_t *to, const float *code, size_t n)
{
    op_cpu_gelu_pack(to, to + n, code, n);
}

WIDE static void slope_bwd_row(float *dy, const uint8_t *from, size_t n)
{
    op_cpu_gelu_times(dy, from, from + n, n);
}

void op_cpu_gelu_slope_fwd(device *d, dv *y, dv *slope, size_t N, size_t F)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < N; i++) {
        float *row = op_cpu_row(d, 0), *code = op_cpu_row(d, 1);
        op_cpu_load(d, row, y, i * F, F);
        slope_row(row, code, F);
        pack_row((uint8_t *)slope + i * op_slope_bytes(F), code, F);
        op_cpu_store(d, y, i * F, row, F);
    }
}

void op_cpu_gelu_slope_bwd(device *d, dv *dpre, const dv *dy, const dv *slope, size_t N, size_t F)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < N; i++) {
        float *row = op_cpu_row(d, 0);
        op_cpu_load(d, row, dy, i * F, F);
        slope_bwd_row(row, (const uint8_t *)slope + i * op_slope_bytes(F), F);
        op_cpu_store(d, dpre, i * F, row, F);
    }
}
