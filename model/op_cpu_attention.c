/* op_cpu_attention.c: scaled dot-product attention straight on (B,T,3C). Images are taken a few at a time, so that the
 * scores of a chunk (images * H * T * T fp32) stay in cache; nothing of size T*T outlives the call. Backward makes the
 * probabilities again from the scores and the log-sum-exp: P = exp(S*scale - lse); dS = P * (dP - sum(dO*O)) * scale
 * (FlashAttention, eq. as in Dao et al. 2022, B.2). */
#include <math.h>

#include "model/op_cpu.h"

enum { CHUNK_BYTES = 2 << 20 };

/* Images in a chunk, and the workspace's parts for it: scores f32, probabilities ct, (backward) dP f32. */
static size_t chunk_images(size_t B, size_t T, size_t H)
{
    size_t n = CHUNK_BYTES / (H * T * T * sizeof(float));
    return n < 1 ? 1 : n > B ? B : n;
}

size_t op_cpu_attention_bytes(size_t B, size_t T, size_t H, bool backward)
{
    size_t cells = chunk_images(B, T, H) * H * T * T;
    return cells * (backward ? 4 * sizeof(float) : 2 * sizeof(float)) + 4096 +
           (backward ? B * H * T * sizeof(float) : 0);
}

/* Strides of the (image, head, row, column) view of a matrix stored in rows of `width` values, T rows an image, head h
 * at offset h*D. */
static void strides(size_t out[4], size_t T, size_t width, size_t D, bool transposed)
{
    out[0] = T * width;
    out[1] = D;
    out[2] = transposed ? 1 : width;
    out[3] = transposed ? width : 1;
}

static void square(size_t out[4], size_t H, size_t T, bool transposed)
{
    out[0] = H * T * T;
    out[1] = T * T;
    out[2] = transposed ? 1 : T;
    out[3] = transposed ? T : 1;
}

static const dv *ct_at(const device *d, const dv *p, size_t element)
{
    return dv_at(p, element * d->ct_bytes);
}

/* p = softmax(scale * s) in place; returns log-sum-exp of scale * s. */
OP_WIDE static float softmax_row(float *s, size_t T, float scale)
{
    float most = -INFINITY, sum = 0;
    for (size_t j = 0; j < T; j++) most = s[j] > most ? s[j] : most;
    for (size_t j = 0; j < T; j++) {
        s[j] = op_exp((s[j] - most) * scale);
        sum += s[j];
    }
    float inverse = 1.0f / sum;
    for (size_t j = 0; j < T; j++) s[j] *= inverse;
    return most * scale + logf(sum);
}

OP_WIDE static void again_row(float *s, size_t T, float scale, float lse)
{
    for (size_t j = 0; j < T; j++) s[j] = op_exp(s[j] * scale - lse);
}

OP_WIDE static void ds_row(float *dp, const float *p, size_t T, float scale, float delta)
{
    for (size_t j = 0; j < T; j++) dp[j] = p[j] * (dp[j] - delta) * scale;
}

OP_WIDE static float dot(const float *a, const float *b, size_t n)
{
    float s = 0;
    for (size_t i = 0; i < n; i++) s += a[i] * b[i];
    return s;
}

/* scores f32 (n,H,T,T) = Q K^T of n images. */
static void scores(device *d, float *s, const dv *qkv, size_t n, size_t T, size_t H, size_t D)
{
    op_cpu_gemm g;
    memset(&g, 0, sizeof g);
    g.batch = n;
    g.heads = H;
    g.m = g.n = T;
    g.k = D;
    g.c_f32 = true;
    strides(g.a, T, 3 * H * D, D, false);
    strides(g.b, T, 3 * H * D, D, true);
    square(g.c, H, T, false);
    op_cpu_gemm_run(d, &g, qkv, ct_at(d, qkv, H * D), s);
}

static bool enough(device *d, size_t bytes)
{
    if (bytes <= d->work_bytes) return true;
    err_set(&d->sticky, ERR_INTERNAL, __FILE__, __LINE__, "workspace of %zu bytes, attention needs %zu", d->work_bytes,
            bytes);
    return false;
}

void op_cpu_attention_fwd(device *d, dv *o, dv *lse, const dv *qkv, size_t B, size_t T, size_t H, size_t D)
{
    if (!B || !enough(d, op_cpu_attention_bytes(B, T, H, false))) return;
    size_t C = H * D, step = chunk_images(B, T, H);
    float scale = 1.0f / sqrtf((float)D), *s = (float *)d->work;
    dv *p = dv_at(d->work, step * H * T * T * sizeof(float));
    for (size_t b = 0; b < B; b += step) {
        size_t n = B - b < step ? B - b : step;
        scores(d, s, ct_at(d, qkv, b * T * 3 * C), n, T, H, D);
#pragma omp parallel for schedule(static)
        for (size_t r = 0; r < n * H * T; r++) {
            float l = softmax_row(s + r * T, T, scale);
            if (lse) ((float *)lse)[b * H * T + r] = l;
            op_cpu_store(d, p, r * T, s + r * T, T);
        }
        op_cpu_gemm g;
        memset(&g, 0, sizeof g);
        g.batch = n;
        g.heads = H;
        g.m = T;
        g.n = D;
        g.k = T;
        square(g.a, H, T, false);
        strides(g.b, T, 3 * C, D, false);
        strides(g.c, T, C, D, false);
        op_cpu_gemm_run(d, &g, p, ct_at(d, qkv, b * T * 3 * C + 2 * C), (void *)(uintptr_t)ct_at(d, o, b * T * C));
    }
}

void op_cpu_attention_bwd(device *d, dv *dqkv, const dv *d_o, const dv *qkv, const dv *o, const dv *lse, size_t B,
                          size_t T, size_t H, size_t D)
{
    if (!B || !enough(d, op_cpu_attention_bytes(B, T, H, true))) return;
    size_t C = H * D, step = chunk_images(B, T, H), cells = step * H * T * T;
    float scale = 1.0f / sqrtf((float)D);
    float *s = (float *)d->work, *dp = s + cells, *delta = s + 4 * cells + 256;
    dv *p = (dv *)(dp + cells), *ds = dv_at(p, cells * d->ct_bytes); /* two ct squares: at most 2 * cells floats */
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < B * T; i++) { /* delta (B,H,T) = sum over D of dO * O */
        float *x = op_cpu_row(d, 0), *y = op_cpu_row(d, 1);
        op_cpu_load(d, x, d_o, i * C, C);
        op_cpu_load(d, y, o, i * C, C);
        for (size_t h = 0; h < H; h++) delta[(i / T * H + h) * T + i % T] = dot(x + h * D, y + h * D, D);
    }
    for (size_t b = 0; b < B; b += step) {
        size_t n = B - b < step ? B - b : step;
        const dv *q = ct_at(d, qkv, b * T * 3 * C), *k = ct_at(d, q, C), *v = ct_at(d, q, 2 * C);
        const dv *g_o = ct_at(d, d_o, b * T * C);
        char *dq = (char *)(uintptr_t)ct_at(d, dqkv, b * T * 3 * C);
        op_cpu_gemm g, base;
        memset(&base, 0, sizeof base);
        base.batch = n;
        base.heads = H;
        scores(d, s, q, n, T, H, D);
        g = base; /* dP = dO V^T */
        g.m = g.n = T;
        g.k = D;
        g.c_f32 = true;
        strides(g.a, T, C, D, false);
        strides(g.b, T, 3 * C, D, true);
        square(g.c, H, T, false);
        op_cpu_gemm_run(d, &g, g_o, v, dp);
#pragma omp parallel for schedule(static)
        for (size_t r = 0; r < n * H * T; r++) {
            again_row(s + r * T, T, scale, ((const float *)lse)[b * H * T + r]);
            op_cpu_store(d, p, r * T, s + r * T, T);
            ds_row(dp + r * T, s + r * T, T, scale, delta[b * H * T + r]);
            op_cpu_store(d, ds, r * T, dp + r * T, T);
        }
        g = base; /* dV = P^T dO */
        g.m = T;
        g.n = D;
        g.k = T;
        strides(g.c, T, 3 * C, D, false);
        square(g.a, H, T, true);
        strides(g.b, T, C, D, false);
        op_cpu_gemm_run(d, &g, p, g_o, dq + 2 * C * d->ct_bytes);
        strides(g.b, T, 3 * C, D, false); /* dK = dS^T Q */
        op_cpu_gemm_run(d, &g, ds, q, dq + C * d->ct_bytes);
        square(g.a, H, T, false); /* dQ = dS K */
        op_cpu_gemm_run(d, &g, ds, k, dq);
    }
}
