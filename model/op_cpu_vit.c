/* op_cpu_vit.c: the transformer's row-wise work. One OpenMP loop over rows per op; a row is widened to fp32 in the
 * thread's scratch, computed there and narrowed again. Sums over rows (parameters' gradients) go through blocks of rows
 * in a fixed order, so that the same thread count gives the same bits. */
#include <math.h>

#include "model/op_cpu.h"

void op_cpu_patchify(device *d, dv *out, const dv *pixels, size_t B, size_t height, size_t width, size_t p)
{
    size_t gh = height / p, gw = width / p, row = 3 * p * p;
    const float *in = (const float *)pixels;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < B * gh * gw; i++) {
        size_t b = i / (gh * gw), y = i / gw % gh, x = i % gw;
        float *t = op_cpu_row(d, 0);
        for (size_t c = 0; c < 3; c++)
            for (size_t v = 0; v < p; v++)
                memcpy(t + (c * p + v) * p, in + ((b * 3 + c) * height + y * p + v) * width + x * p, p * sizeof *t);
        op_cpu_store(d, out, i * row, t, row);
    }
}

WIDE static void add_row(float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++) a[i] += b[i];
}

void op_cpu_embed_fwd(device *d, dv *x, const dv *patches, const dv *cls, const dv *reg, const dv *pos,
                      const dv *mask_token, const dv *mask, size_t B, size_t P, size_t R, size_t S, size_t C)
{
    const float *f_pos = (const float *)pos;
    size_t lead = cls ? 1 : 0, T = lead + R + S + P;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < B * T; i++) {
        size_t b = i / T, t = i % T;
        float *row = op_cpu_row(d, 0);
        if (t < lead) {
            memcpy(row, cls, C * sizeof *row);
            add_row(row, f_pos, C);
        } else if (t < lead + R) { /* registers come after the positional addition */
            memcpy(row, (const float *)reg + (t - lead) * C, C * sizeof *row);
        } else if (t < lead + R + S) {
            continue;
        } else {
            size_t k = t - lead - R - S;
            if (mask && ((const uint8_t *)mask)[b * P + k])
                memcpy(row, mask_token, C * sizeof *row);
            else
                op_cpu_load(d, row, patches, (b * P + k) * C, C);
            add_row(row, f_pos + (1 + k) * C, C);
        }
        op_cpu_store(d, x, i * C, row, C);
    }
}

void op_cpu_embed_bwd(device *d, dv *dpatches, dv *dcls, dv *dreg, dv *dpos, dv *dmask_token, const dv *dx,
                      const dv *mask, bool cls, size_t B, size_t P, size_t R, size_t S, size_t C)
{
    size_t lead = cls ? 1 : 0, before = lead + R + S, T = before + P;
    float *f_pos = (float *)dpos, *f_cls = (float *)dcls, *f_reg = (float *)dreg;
#pragma omp parallel for schedule(static)
    for (size_t t = 0; t < T; t++) {
        float *row = op_cpu_row(d, 0);
        if (t >= lead + R && t < before) continue;
        for (size_t b = 0; b < B; b++) {
            op_cpu_load(d, row, dx, (b * T + t) * C, C);
            if (t < lead) {
                if (f_cls) add_row(f_cls, row, C);
                if (f_pos) add_row(f_pos, row, C);
            } else if (t < before) {
                if (f_reg) add_row(f_reg + (t - lead) * C, row, C);
            } else {
                size_t k = t - before;
                if (f_pos) add_row(f_pos + (1 + k) * C, row, C);
                if (mask && ((const uint8_t *)mask)[b * P + k]) memset(row, 0, C * sizeof *row);
                if (dpatches) op_cpu_store(d, dpatches, (b * P + k) * C, row, C);
            }
        }
    }
    if (!dmask_token || !mask) return;
    float *row = op_cpu_row(d, 0); /* few rows: one thread, in order */
    for (size_t i = 0; i < B * P; i++) {
        if (!((const uint8_t *)mask)[i]) continue;
        op_cpu_load(d, row, dx, (i / P * T + before + i % P) * C, C);
        add_row((float *)dmask_token, row, C);
    }
}

void op_cpu_prompt_fwd(device *d, dv *x, const dv *prompts, size_t B, size_t T, size_t first, size_t n, size_t C)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < B * n; i++)
        op_cpu_store(d, x, (i / n * T + first + i % n) * C, (const float *)prompts + i % n * C, C);
}

void op_cpu_prompt_bwd(device *d, dv *dx, dv *dprompts, size_t B, size_t T, size_t first, size_t n, size_t C)
{
#pragma omp parallel for schedule(static)
    for (size_t t = 0; t < n; t++) {
        float *row = op_cpu_row(d, 0);
        for (size_t b = 0; b < B; b++) {
            size_t at = (b * T + first + t) * C;
            op_cpu_load(d, row, dx, at, C);
            if (dprompts) add_row((float *)dprompts + t * C, row, C);
            memset(row, 0, C * sizeof *row);
            op_cpu_store(d, dx, at, row, C);
        }
    }
}

WIDE static void norm_row(float *x, const float *gamma, const float *beta, float eps, size_t C, float *mean,
                          float *rstd)
{
    float sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < C; i++) sum += x[i];
    float m = sum / (float)C;
#pragma omp simd reduction(+ : square)
    for (size_t i = 0; i < C; i++) square += (x[i] - m) * (x[i] - m);
    float r = 1.0f / sqrtf(square / (float)C + eps);
    for (size_t i = 0; i < C; i++) x[i] = (x[i] - m) * r * gamma[i] + beta[i];
    *mean = m;
    *rstd = r;
}

void op_cpu_norm_fwd(device *d, dv *y, dv *mean, dv *rstd, const dv *x, const dv *gamma, const dv *beta, float eps,
                     size_t N, size_t C)
{
    if (op_cpu_rows_bf16_fit(d, C)) {
        op_cpu_rows_bf16_norm_fwd(y, mean, rstd, x, gamma, beta, eps, N, C);
        return;
    }
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < N; i++) {
        float *row = op_cpu_row(d, 0), m, r;
        op_cpu_load(d, row, x, i * C, C);
        norm_row(row, (const float *)gamma, (const float *)beta, eps, C, &m, &r);
        if (mean) ((float *)mean)[i] = m;
        if (rstd) ((float *)rstd)[i] = r;
        op_cpu_store(d, y, i * C, row, C);
    }
}

WIDE static void again_row(float *x, const float *gamma, const float *beta, float m, float r, size_t C)
{
    for (size_t i = 0; i < C; i++) x[i] = (x[i] - m) * r * gamma[i] + beta[i];
}

void op_cpu_norm_again(device *d, dv *y, const dv *x, const dv *mean, const dv *rstd, const dv *gamma, const dv *beta,
                       size_t N, size_t C)
{
    if (op_cpu_rows_bf16_fit(d, C)) {
        op_cpu_rows_bf16_norm_again(y, x, mean, rstd, gamma, beta, N, C);
        return;
    }
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < N; i++) {
        float *row = op_cpu_row(d, 0);
        op_cpu_load(d, row, x, i * C, C);
        again_row(row, (const float *)gamma, (const float *)beta, ((const float *)mean)[i], ((const float *)rstd)[i],
                  C);
        op_cpu_store(d, y, i * C, row, C);
    }
}

/* dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), g = dy * gamma (Ba et al. 2016); x becomes xhat, dy becomes dx. */
WIDE static void norm_bwd_row(float *dy, float *x, const float *gamma, float m, float r, size_t C)
{
    float a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
    for (size_t i = 0; i < C; i++) {
        x[i] = (x[i] - m) * r;
        float g = dy[i] * gamma[i];
        a += g;
        b += g * x[i];
    }
    a /= (float)C;
    b /= (float)C;
    for (size_t i = 0; i < C; i++) dy[i] = r * (dy[i] * gamma[i] - a - x[i] * b);
}

/* dgamma += dy * xhat, dbeta += dy over all rows; 64 columns a task. */
static void norm_params(device *d, float *dgamma, float *dbeta, const dv *dy, const dv *x, const float *mean,
                        const float *rstd, size_t N, size_t C)
{
#pragma omp parallel for schedule(static)
    for (size_t first = 0; first < C; first += 64) {
        size_t n = C - first < 64 ? C - first : 64;
        float g[64], v[64], sg[64] = {0}, sb[64] = {0};
        for (size_t i = 0; i < N; i++) {
            op_cpu_load(d, g, dy, i * C + first, n);
            op_cpu_load(d, v, x, i * C + first, n);
            for (size_t k = 0; k < n; k++) {
                sg[k] += g[k] * (v[k] - mean[i]) * rstd[i];
                sb[k] += g[k];
            }
        }
        for (size_t k = 0; k < n; k++) {
            if (dgamma) dgamma[first + k] += sg[k];
            if (dbeta) dbeta[first + k] += sb[k];
        }
    }
}

static void norm_back(device *d, dv *dx, bool accumulate, dv *dgamma, dv *dbeta, const dv *dy, const dv *x,
                      const dv *mean, const dv *rstd, const dv *gamma, size_t N, size_t C)
{
    const float *f_mean = (const float *)mean, *f_rstd = (const float *)rstd;
    if (dgamma || dbeta) norm_params(d, (float *)dgamma, (float *)dbeta, dy, x, f_mean, f_rstd, N, C);
    if (op_cpu_rows_bf16_fit(d, C)) {
        op_cpu_rows_bf16_norm_bwd(dx, accumulate, dy, x, mean, rstd, gamma, N, C);
        return;
    }
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < N; i++) {
        float *g = op_cpu_row(d, 0), *row = op_cpu_row(d, 1);
        op_cpu_load(d, g, dy, i * C, C);
        op_cpu_load(d, row, x, i * C, C);
        norm_bwd_row(g, row, (const float *)gamma, f_mean[i], f_rstd[i], C);
        if (accumulate) {
            op_cpu_load(d, row, dx, i * C, C);
            add_row(g, row, C);
        }
        op_cpu_store(d, dx, i * C, g, C);
    }
}

WIDE static void axpy_row(float *x, const float *branch, const float *ls, size_t n)
{
    if (ls)
        for (size_t i = 0; i < n; i++) x[i] += ls[i] * branch[i];
    else
        for (size_t i = 0; i < n; i++) x[i] += branch[i];
}

void op_cpu_residual_fwd(device *d, dv *out, const dv *x, const dv *branch, const dv *ls, dv *rest, size_t N, size_t C)
{
    if (!rest && op_cpu_rows_bf16_fit(d, C)) {
        op_cpu_rows_bf16_residual(out, x, branch, ls, N, C);
        return;
    }
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < N; i++) {
        float *a = op_cpu_row(d, 0), *b = op_cpu_row(d, 1);
        op_cpu_load(d, a, x, i * C, C);
        op_cpu_load(d, b, branch, i * C, C);
        axpy_row(a, b, (const float *)ls, C);
        if (rest) {
            op_cpu_load(d, b, rest, i * C, C);
            add_row(a, b, C);
        }
        op_cpu_store(d, out, i * C, a, C);
        if (!rest) continue;
        op_cpu_load(d, b, out, i * C, C);
        for (size_t c = 0; c < C; c++) a[c] -= b[c];
        op_cpu_store(d, rest, i * C, a, C);
    }
}

void op_cpu_residual_bwd(device *d, dv *dbranch, const dv *dout, const dv *ls, size_t N, size_t C)
{
    if (op_cpu_rows_bf16_fit(d, C)) {
        op_cpu_rows_bf16_residual(dbranch, NULL, dout, ls, N, C);
        return;
    }
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < N; i++) {
        float *g = op_cpu_row(d, 0);
        op_cpu_load(d, g, dout, i * C, C);
        if (ls)
            for (size_t k = 0; k < C; k++) g[k] *= ((const float *)ls)[k];
        op_cpu_store(d, dbranch, i * C, g, C);
    }
}

void op_cpu_norm_bwd(device *d, dv *dx, bool accumulate, dv *dgamma, dv *dbeta, const dv *dy, const dv *x,
                     const dv *mean, const dv *rstd, const dv *gamma, dv *dbranch, const dv *ls, size_t N, size_t C)
{
    norm_back(d, dx, accumulate, dgamma, dbeta, dy, x, mean, rstd, gamma, N, C);
    if (dbranch) op_cpu_residual_bwd(d, dbranch, dx, ls, N, C);
}

enum { CHUNK = 4096 };

void op_cpu_scale_grad(device *d, dv *dls, const dv *ls, const dv *w, const dv *dw, const dv *bias, const dv *db,
                       size_t R, size_t I)
{
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < R; r++) {
        float *row = op_cpu_row(d, 0), by = ((const float *)ls)[r];
        float sum = bias ? ((const float *)bias)[r] * ((const float *)db)[r] : 0;
        for (size_t i = 0; i < I; i += CHUNK) {
            size_t n = I - i < CHUNK ? I - i : CHUNK;
            op_cpu_load(d, row, w, r * I + i, n);
            sum += op_cpu_dot(row, (const float *)dw + r * I + i, n);
        }
        ((float *)dls)[r] = by != 0 ? sum / by : 0;
    }
}

WIDE static void gelu_row(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] = 0.5f * x[i] * (1.0f + op_erf(x[i] * 0.70710678f));
}

/* GELU' = Phi(x) + x phi(x) */
WIDE static void gelu_bwd_row(float *dy, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float cdf = 0.5f * (1.0f + op_erf(x[i] * 0.70710678f)), pdf = 0.39894228f * op_exp(-0.5f * x[i] * x[i]);
        dy[i] *= cdf + x[i] * pdf;
    }
}

void op_cpu_gelu_fwd(device *d, dv *y, const dv *pre, size_t n)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i += CHUNK) {
        size_t m = n - i < CHUNK ? n - i : CHUNK;
        float *x = op_cpu_row(d, 0);
        op_cpu_load(d, x, pre, i, m);
        gelu_row(x, m);
        op_cpu_store(d, y, i, x, m);
    }
}

void op_cpu_gelu_bwd(device *d, dv *dpre, const dv *dy, const dv *pre, size_t n)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i += CHUNK) {
        size_t m = n - i < CHUNK ? n - i : CHUNK;
        float *g = op_cpu_row(d, 0), *x = op_cpu_row(d, 1);
        op_cpu_load(d, g, dy, i, m);
        op_cpu_load(d, x, pre, i, m);
        gelu_bwd_row(g, x, m);
        op_cpu_store(d, dpre, i, g, m);
    }
}

WIDE static void swiglu_row(float *x1, const float *x2, size_t n)
{
    for (size_t i = 0; i < n; i++) x1[i] *= x2[i] / (1.0f + op_exp(-x1[i]));
}

/* silu' = s + x s (1-s), s = 1 / (1 + exp -x). x1, x2 become their gradients. */
WIDE static void swiglu_bwd_row(float *x1, float *x2, const float *dy, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float s = 1.0f / (1.0f + op_exp(-x1[i])), silu = x1[i] * s;
        x1[i] = dy[i] * x2[i] * (s + silu * (1.0f - s));
        x2[i] = dy[i] * silu;
    }
}

/* A row in pieces: 2F may be more than a scratch row holds. */
void op_cpu_swiglu_fwd(device *d, dv *y, const dv *pre, size_t N, size_t F)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < N; i++)
        for (size_t k = 0; k < F; k += CHUNK) {
            size_t n = F - k < CHUNK ? F - k : CHUNK;
            float *x1 = op_cpu_row(d, 0), *x2 = op_cpu_row(d, 1);
            op_cpu_load(d, x1, pre, 2 * i * F + k, n);
            op_cpu_load(d, x2, pre, (2 * i + 1) * F + k, n);
            swiglu_row(x1, x2, n);
            op_cpu_store(d, y, i * F + k, x1, n);
        }
}

void op_cpu_swiglu_bwd(device *d, dv *dpre, const dv *dy, const dv *pre, size_t N, size_t F)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < N; i++)
        for (size_t k = 0; k < F; k += CHUNK) {
            size_t n = F - k < CHUNK ? F - k : CHUNK;
            float *x1 = op_cpu_row(d, 0), *x2 = op_cpu_row(d, 1), *g = op_cpu_row(d, 2);
            op_cpu_load(d, x1, pre, 2 * i * F + k, n);
            op_cpu_load(d, x2, pre, (2 * i + 1) * F + k, n);
            op_cpu_load(d, g, dy, i * F + k, n);
            swiglu_bwd_row(x1, x2, g, n);
            op_cpu_store(d, dpre, 2 * i * F + k, x1, n);
            op_cpu_store(d, dpre, (2 * i + 1) * F + k, x2, n);
        }
}

void op_cpu_mean_token_fwd(device *d, dv *out, const dv *x, size_t B, size_t T, size_t first, size_t C)
{
#pragma omp parallel for schedule(static)
    for (size_t b = 0; b < B; b++) {
        float *sum = op_cpu_row(d, 0), *row = op_cpu_row(d, 1);
        memset(sum, 0, C * sizeof *sum);
        for (size_t t = 0; t < T; t++) {
            op_cpu_load(d, row, x, (b * T + t) * C, C);
            op_cpu_store(d, out, (b * (T + 1) + 1 + t) * C, row, C);
            if (t >= first) add_row(sum, row, C);
        }
        for (size_t k = 0; k < C; k++) sum[k] /= (float)(T - first);
        op_cpu_store(d, out, b * (T + 1) * C, sum, C);
    }
}

void op_cpu_mean_token_bwd(device *d, dv *dx, const dv *dout, size_t B, size_t T, size_t first, size_t C)
{
#pragma omp parallel for schedule(static)
    for (size_t b = 0; b < B; b++) {
        float *mean = op_cpu_row(d, 0), *row = op_cpu_row(d, 1);
        op_cpu_load(d, mean, dout, b * (T + 1) * C, C);
        for (size_t k = 0; k < C; k++) mean[k] /= (float)(T - first);
        for (size_t t = 0; t < T; t++) {
            op_cpu_load(d, row, dout, (b * (T + 1) + 1 + t) * C, C);
            if (t >= first) add_row(row, mean, C);
            op_cpu_store(d, dx, (b * T + t) * C, row, C);
        }
    }
}

void op_cpu_gather(device *d, dv *out, const dv *x, const dv *rows, size_t n, size_t C)
{
    const int32_t *r = (const int32_t *)rows;
    size_t bytes = C * d->ct_bytes;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i++) memcpy((char *)out + i * bytes, (const char *)x + (size_t)r[i] * bytes, bytes);
}

void op_cpu_scatter_add(device *d, dv *dx, const dv *dout, const dv *rows, size_t n, size_t C)
{
    const int32_t *r = (const int32_t *)rows;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i++) {
        float *a = op_cpu_row(d, 0), *b = op_cpu_row(d, 1);
        op_cpu_load(d, a, dx, (size_t)r[i] * C, C);
        op_cpu_load(d, b, dout, i * C, C);
        add_row(a, b, C);
        op_cpu_store(d, dx, (size_t)r[i] * C, a, C);
    }
}

void op_cpu_mix_rows(device *d, dv *out, bool add, const dv *in, const dv *first, const dv *index, const dv *weight,
                     size_t n, size_t C)
{
    const int32_t *from = (const int32_t *)first, *which = (const int32_t *)index;
    (void)d;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i++) {
        float *row = (float *)out + i * C;
        if (!add) memset(row, 0, C * sizeof *row);
        for (int32_t k = from[i]; k < from[i + 1]; k++) {
            const float *x = (const float *)in + (size_t)which[k] * C, w = ((const float *)weight)[k];
            for (size_t c = 0; c < C; c++) row[c] += w * x[c];
        }
    }
}
