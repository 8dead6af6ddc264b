/* op_cpu_attention.c: scaled dot-product attention on (B,T,3C). Images are taken a few at a time, so that the
 * scores of a chunk (images * H * T * T fp32) stay in cache; nothing of size T*T outlives the call. Backward makes the
 * probabilities again from the scores and the log-sum-exp: P = exp(S*scale - lse); dS = P * (dP - sum(dO*O)) * scale
 * (FlashAttention, eq. as in Dao et al. 2022, B.2). */
#include <math.h>

#include "model/op_cpu.h"

enum { CHUNK_BYTES = 2 << 20 };

/* Images in a chunk. */
static size_t chunk_images(size_t B, size_t T, size_t H)
{
    size_t n = CHUNK_BYTES / (H * T * T * sizeof(float));
    return n < 1 ? 1 : n > B ? B : n;
}

/* The workspace's parts for a chunk; every part starts at a multiple of 64 bytes. Heads are packed side by side,
 * (image, head, T, D) ct: that is the layout for which oneDNN has its fast kernels, and packing costs far less than
 * they save. */
typedef struct {
    float *s, *dp;     /* (n,H,T,T) f32: scores, then probabilities; dP, then dS */
    dv *p, *ds;        /* (n,H,T,T) ct */
    dv *q, *k, *v, *o; /* (n,H,T,D) ct; o is dO in backward */
    dv *dq, *dk, *dv_; /* (n,H,T,D) ct */
    float *delta;      /* (n,H,T) */
    size_t bytes;
} chunk;

static void *part(chunk *c, char *base, size_t bytes)
{
    void *at = base ? base + c->bytes : NULL;
    c->bytes += (bytes + 63) & ~(size_t)63;
    return at;
}

static chunk lay_out(char *base, size_t n, size_t T, size_t H, size_t D, size_t ct, bool backward)
{
    chunk c = {.bytes = 0};
    size_t square = n * H * T * T, rows = n * H * T;
    c.s = part(&c, base, square * sizeof(float));
    c.p = part(&c, base, square * ct);
    dv **packed[] = {&c.q, &c.k, &c.v, &c.o};
    for (int i = 0; i < 4; i++) *packed[i] = part(&c, base, rows * D * ct);
    if (!backward) return c;
    c.dp = part(&c, base, square * sizeof(float));
    c.ds = part(&c, base, square * ct);
    dv **more[] = {&c.dq, &c.dk, &c.dv_};
    for (int i = 0; i < 3; i++) *more[i] = part(&c, base, rows * D * ct);
    c.delta = part(&c, base, rows * sizeof(float));
    return c;
}

size_t op_cpu_attention_bytes(size_t B, size_t T, size_t H, size_t D, bool backward)
{
    return lay_out(NULL, chunk_images(B, T, H), T, H, D, sizeof(float), backward).bytes;
}

typedef enum { PACK, UNPACK } direction;

/* packed (n,H,T,D) from columns at.. of n*T rows of `width` values, or back into them. */
static void repack(const device *d, direction way, dv *packed, dv *rows, size_t width, size_t at, size_t n, size_t T,
                   size_t H, size_t D)
{
    size_t ct = d->ct_bytes;
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < n * T; r++)
        for (size_t h = 0; h < H; h++) {
            char *head = (char *)packed + ((r / T * H + h) * T + r % T) * D * ct;
            char *row = (char *)rows + (r * width + at + h * D) * ct;
            memcpy(way == PACK ? head : row, way == PACK ? row : head, D * ct);
        }
}

static void pack(const device *d, dv *packed, const dv *rows, size_t width, size_t at, size_t n, size_t T, size_t H,
                 size_t D)
{
    repack(d, PACK, packed, (dv *)(uintptr_t)rows, width, at, n, T, H, D);
}

static void unpack(const device *d, dv *rows, const dv *packed, size_t width, size_t at, size_t n, size_t T, size_t H,
                   size_t D)
{
    repack(d, UNPACK, (dv *)(uintptr_t)packed, rows, width, at, n, T, H, D);
}

/* Strides of the (image, head, row, column) view of packed matrices of `rows` x `columns`. */
static void strides(size_t out[4], size_t H, size_t rows, size_t columns, bool transposed)
{
    out[0] = H * rows * columns;
    out[1] = rows * columns;
    out[2] = transposed ? 1 : columns;
    out[3] = transposed ? columns : 1;
}

static const dv *ct_at(const device *d, const dv *p, size_t element)
{
    return dv_at(p, element * d->ct_bytes);
}

/* p = softmax(scale * s) in place; returns log-sum-exp of scale * s. */
OP_WIDE static float softmax_row(float *s, size_t T, float scale)
{
    float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
    for (size_t j = 0; j < T; j++) most = s[j] > most ? s[j] : most;
#pragma omp simd reduction(+ : sum)
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

enum { SCORES, VALUES, KEYS }; /* a b^T -> (T,T) f32; p b -> (T,D); p^T b -> (T,D) */

static void product(device *d, void *c, const void *a, const void *b, size_t n, size_t H, size_t T, size_t D, int what)
{
    op_cpu_gemm g;
    memset(&g, 0, sizeof g);
    g.batch = n;
    g.heads = H;
    g.m = T;
    g.n = what == SCORES ? T : D;
    g.k = what == SCORES ? D : T;
    g.c_f32 = what == SCORES;
    strides(g.a, H, T, what == SCORES ? D : T, what == KEYS);
    strides(g.b, H, T, D, what == SCORES);
    strides(g.c, H, T, g.n, false);
    op_cpu_gemm_run(d, &g, a, b, c);
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
    if (!B || !enough(d, op_cpu_attention_bytes(B, T, H, D, false))) return;
    size_t C = H * D, step = chunk_images(B, T, H);
    float scale = 1.0f / sqrtf((float)D);
    chunk c = lay_out((char *)d->work, step, T, H, D, d->ct_bytes, false);
    for (size_t b = 0; b < B; b += step) {
        size_t n = B - b < step ? B - b : step;
        const dv *rows = ct_at(d, qkv, b * T * 3 * C);
        pack(d, c.q, rows, 3 * C, 0, n, T, H, D);
        pack(d, c.k, rows, 3 * C, C, n, T, H, D);
        pack(d, c.v, rows, 3 * C, 2 * C, n, T, H, D);
        product(d, c.s, c.q, c.k, n, H, T, D, SCORES);
#pragma omp parallel for schedule(static)
        for (size_t r = 0; r < n * H * T; r++) {
            float l = softmax_row(c.s + r * T, T, scale);
            if (lse) ((float *)lse)[b * H * T + r] = l;
            op_cpu_store(d, c.p, r * T, c.s + r * T, T);
        }
        product(d, c.o, c.p, c.v, n, H, T, D, VALUES);
        unpack(d, (dv *)(uintptr_t)ct_at(d, o, b * T * C), c.o, C, 0, n, T, H, D);
    }
}

void op_cpu_attention_bwd(device *d, dv *dqkv, const dv *d_o, const dv *qkv, const dv *o, const dv *lse, size_t B,
                          size_t T, size_t H, size_t D)
{
    if (!B || !enough(d, op_cpu_attention_bytes(B, T, H, D, true))) return;
    size_t C = H * D, step = chunk_images(B, T, H);
    float scale = 1.0f / sqrtf((float)D);
    chunk c = lay_out((char *)d->work, step, T, H, D, d->ct_bytes, true);
    for (size_t b = 0; b < B; b += step) {
        size_t n = B - b < step ? B - b : step;
        const dv *rows = ct_at(d, qkv, b * T * 3 * C), *g_o = ct_at(d, d_o, b * T * C), *y = ct_at(d, o, b * T * C);
        dv *out = (dv *)(uintptr_t)ct_at(d, dqkv, b * T * 3 * C);
        pack(d, c.q, rows, 3 * C, 0, n, T, H, D);
        pack(d, c.k, rows, 3 * C, C, n, T, H, D);
        pack(d, c.v, rows, 3 * C, 2 * C, n, T, H, D);
        pack(d, c.o, g_o, C, 0, n, T, H, D);
#pragma omp parallel for schedule(static)
        for (size_t i = 0; i < n * T; i++) { /* delta = sum over D of dO * O */
            float *u = op_cpu_row(d, 0), *v = op_cpu_row(d, 1);
            op_cpu_load(d, u, g_o, i * C, C);
            op_cpu_load(d, v, y, i * C, C);
            for (size_t h = 0; h < H; h++) c.delta[(i / T * H + h) * T + i % T] = op_cpu_dot(u + h * D, v + h * D, D);
        }
        product(d, c.s, c.q, c.k, n, H, T, D, SCORES);
        product(d, c.dp, c.o, c.v, n, H, T, D, SCORES); /* dP = dO V^T */
#pragma omp parallel for schedule(static)
        for (size_t r = 0; r < n * H * T; r++) {
            again_row(c.s + r * T, T, scale, ((const float *)lse)[b * H * T + r]);
            op_cpu_store(d, c.p, r * T, c.s + r * T, T);
            ds_row(c.dp + r * T, c.s + r * T, T, scale, c.delta[r]);
            op_cpu_store(d, c.ds, r * T, c.dp + r * T, T);
        }
        product(d, c.dv_, c.p, c.o, n, H, T, D, KEYS);   /* dV = P^T dO */
        product(d, c.dk, c.ds, c.q, n, H, T, D, KEYS);   /* dK = dS^T Q */
        product(d, c.dq, c.ds, c.k, n, H, T, D, VALUES); /* dQ = dS K */
        unpack(d, out, c.dq, 3 * C, 0, n, T, H, D);
        unpack(d, out, c.dk, 3 * C, C, n, T, H, D);
        unpack(d, out, c.dv_, 3 * C, 2 * C, n, T, H, D);
    }
}
