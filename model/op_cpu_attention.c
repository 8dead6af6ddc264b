/* op_cpu_attention.c: scaled dot-product attention on (B,T,3C). A pair is one head of one image. Pairs are taken a few
 * at a time, so that the scores of a chunk (pairs * T * T fp32) stay in cache; nothing of size T*T outlives the call.
 * Backward makes the probabilities again from the scores and the log-sum-exp: P = exp(S*scale - lse); dS = P * (dP -
 * sum(dO*O)) * scale (FlashAttention, eq. as in Dao et al. 2022, B.2). */
#include <math.h>

#include "model/op_cpu_fma.h"

enum { CHUNK_BYTES = 512 << 10 }; /* of scores, a thread */

/* Pairs in a chunk. */
static size_t chunk_pairs(int threads, size_t pairs, size_t T)
{
    size_t n = CHUNK_BYTES / (T * T * sizeof(float));
    n = (n < 1 ? 1 : n) * (size_t)threads;
    return n > pairs ? pairs : n;
}

/* The workspace's parts for a chunk; every part starts at a multiple of 64 bytes. Heads are packed side by side,
 * (pair, T, D) ct: that is the layout for which oneDNN has its fast kernels, and packing costs far less than they
 * save. */
typedef struct {
    float *s, *dp;     /* (n,T,T) f32: scores, then probabilities; dP, then dS */
    dv *p, *ds;        /* (n,T,T) ct */
    dv *q, *k, *v, *o; /* (n,T,D) ct; o is dO in backward */
    dv *dq, *dk, *dv_; /* (n,T,D) ct */
    float *delta;      /* (n,T) */
    size_t bytes;
} chunk;

static void *part(chunk *c, char *base, size_t bytes)
{
    void *at = base ? base + c->bytes : NULL;
    c->bytes += (bytes + 63) & ~(size_t)63;
    return at;
}

static chunk lay_out(char *base, size_t n, size_t T, size_t D, size_t ct, bool backward)
{
    chunk c = {.bytes = 0};
    size_t square = n * T * T, rows = n * T;
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

/* Who has attention of this head size instead, where there are no tiles for it. */
static const op_cpu_fma *by_vectors(size_t D)
{
    return D <= OP_CPU_FMA_INNER ? op_cpu_fma_find() : NULL;
}

size_t op_cpu_attention_bytes(const device *d, bool tile, size_t B, size_t T, size_t H, size_t D, bool backward)
{
    int threads = tile ? 1 : d->threads;
    const op_cpu_fma *v = by_vectors(D);
    if (op_cpu_attention_amx_fits(d, D)) return (size_t)threads * op_cpu_attention_amx_bytes(T, H, D, backward);
    if (v) return (size_t)threads * v->attention_bytes(T, D, backward);
    return lay_out(NULL, chunk_pairs(threads, B * H, T), T, D, d->ct_bytes, backward).bytes;
}

/* A call: tensors are (B,T,.) with heads side by side in a row. */
typedef struct {
    device *d;
    size_t B, T, H, D;
    size_t step; /* pairs in a chunk */
} call;

static call begin(device *d, size_t B, size_t T, size_t H, size_t D)
{
    int threads = op_cpu_in_tile() ? 1 : d->threads;
    return (call){d, B, T, H, D, chunk_pairs(threads, B * H, T)};
}

typedef enum { PACK, UNPACK } direction;

/* packed (n,T,D) of the pairs from `first` on, from columns at.. of rows of `width` values, or back into them. */
static void repack(const call *c, direction way, dv *packed, dv *rows, size_t width, size_t at, size_t first, size_t n)
{
    size_t ct = c->d->ct_bytes, T = c->T, H = c->H, D = c->D;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i++) {
        size_t b = (first + i) / H, h = (first + i) % H;
        char *head = (char *)packed + i * T * D * ct, *row = (char *)rows + (b * T * width + at + h * D) * ct;
        for (size_t t = 0; t < T; t++, head += D * ct, row += width * ct)
            memcpy(way == PACK ? head : row, way == PACK ? row : head, D * ct);
    }
}

static void pack(const call *c, dv *packed, const dv *rows, size_t width, size_t at, size_t first, size_t n)
{
    repack(c, PACK, packed, (dv *)(uintptr_t)rows, width, at, first, n);
}

static void unpack(const call *c, dv *rows, const dv *packed, size_t width, size_t at, size_t first, size_t n)
{
    repack(c, UNPACK, (dv *)(uintptr_t)packed, rows, width, at, first, n);
}

static void pack_qkv(const call *k, const chunk *c, const dv *qkv, size_t first, size_t n)
{
    size_t C = k->H * k->D;
    pack(k, c->q, qkv, 3 * C, 0, first, n);
    pack(k, c->k, qkv, 3 * C, C, first, n);
    pack(k, c->v, qkv, 3 * C, 2 * C, first, n);
}

/* Strides of the (pair, row, column) view of packed matrices of `rows` x `columns`. */
static void strides(size_t out[3], size_t rows, size_t columns, bool transposed)
{
    out[0] = rows * columns;
    out[1] = transposed ? 1 : columns;
    out[2] = transposed ? columns : 1;
}

/* p = softmax(scale * s) in place; returns log-sum-exp of scale * s. */
WIDE static float softmax_row(float *s, size_t T, float scale)
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

WIDE static void again_row(float *s, size_t T, float scale, float lse)
{
    for (size_t j = 0; j < T; j++) s[j] = op_exp(s[j] * scale - lse);
}

WIDE static void ds_row(float *dp, const float *p, size_t T, float scale, float delta)
{
    for (size_t j = 0; j < T; j++) dp[j] = p[j] * (dp[j] - delta) * scale;
}

enum { SCORES, VALUES, KEYS }; /* a b^T -> (T,T) f32; p b -> (T,D); p^T b -> (T,D) */

static void product(const call *k, void *c, const void *a, const void *b, size_t n, int what)
{
    op_cpu_gemm g;
    size_t T = k->T, D = k->D;
    memset(&g, 0, sizeof g);
    g.batch = n;
    g.m = T;
    g.n = what == SCORES ? T : D;
    g.k = what == SCORES ? D : T;
    g.c_f32 = what == SCORES;
    strides(g.a, T, what == SCORES ? D : T, what == KEYS);
    strides(g.b, T, D, what == SCORES);
    strides(g.c, T, g.n, false);
    op_cpu_gemm_run(k->d, &g, a, b, c);
}

void op_cpu_attention_fwd(device *d, dv *o, dv *lse, const dv *qkv, size_t B, size_t T, size_t H, size_t D)
{
    if (op_cpu_attention_amx_fits(d, D)) {
        op_cpu_attention_amx_fwd(d, o, lse, qkv, B, T, H, D);
        return;
    }
    const op_cpu_fma *v = by_vectors(D);
    if (v) {
        v->attention_fwd(d, o, lse, qkv, B, T, H, D);
        return;
    }
    call k = begin(d, B, T, H, D);
    size_t C = H * D;
    float scale = 1.0f / sqrtf((float)D);
    char *work = B ? op_cpu_work(d, lay_out(NULL, k.step, T, D, d->ct_bytes, false).bytes) : NULL;
    if (!work) return;
    chunk c = lay_out(work, k.step, T, D, d->ct_bytes, false);
    for (size_t first = 0; first < B * H; first += k.step) {
        size_t n = B * H - first < k.step ? B * H - first : k.step;
        pack_qkv(&k, &c, qkv, first, n);
        product(&k, c.s, c.q, c.k, n, SCORES);
#pragma omp parallel for schedule(static)
        for (size_t r = 0; r < n * T; r++) {
            float l = softmax_row(c.s + r * T, T, scale);
            if (lse) ((float *)lse)[first * T + r] = l;
            op_cpu_store(d, c.p, r * T, c.s + r * T, T);
        }
        product(&k, c.o, c.p, c.v, n, VALUES);
        unpack(&k, o, c.o, C, 0, first, n);
    }
}

/* delta (n,T) = sum over D of dO * O. */
static void deltas(const call *k, float *delta, const dv *d_o, const dv *o, size_t first, size_t n)
{
    const device *d = k->d;
    size_t T = k->T, H = k->H, D = k->D, C = H * D;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i++) {
        float *u = op_cpu_row(d, 0), *v = op_cpu_row(d, 1);
        size_t b = (first + i) / H, h = (first + i) % H;
        for (size_t t = 0; t < T; t++) {
            op_cpu_load(d, u, d_o, (b * T + t) * C + h * D, D);
            op_cpu_load(d, v, o, (b * T + t) * C + h * D, D);
            delta[i * T + t] = op_cpu_dot(u, v, D);
        }
    }
}

void op_cpu_attention_bwd(device *d, dv *dqkv, const dv *d_o, const dv *qkv, const dv *o, const dv *lse, size_t B,
                          size_t T, size_t H, size_t D)
{
    if (op_cpu_attention_amx_fits(d, D)) {
        op_cpu_attention_amx_bwd(d, dqkv, d_o, qkv, o, lse, B, T, H, D);
        return;
    }
    const op_cpu_fma *v = by_vectors(D);
    if (v) {
        v->attention_bwd(d, dqkv, d_o, qkv, o, lse, B, T, H, D);
        return;
    }
    call k = begin(d, B, T, H, D);
    size_t C = H * D;
    float scale = 1.0f / sqrtf((float)D);
    char *work = B ? op_cpu_work(d, lay_out(NULL, k.step, T, D, d->ct_bytes, true).bytes) : NULL;
    if (!work) return;
    chunk c = lay_out(work, k.step, T, D, d->ct_bytes, true);
    for (size_t first = 0; first < B * H; first += k.step) {
        size_t n = B * H - first < k.step ? B * H - first : k.step;
        pack_qkv(&k, &c, qkv, first, n);
        pack(&k, c.o, d_o, C, 0, first, n);
        deltas(&k, c.delta, d_o, o, first, n);
        product(&k, c.s, c.q, c.k, n, SCORES);
        product(&k, c.dp, c.o, c.v, n, SCORES); /* dP = dO V^T */
#pragma omp parallel for schedule(static)
        for (size_t r = 0; r < n * T; r++) {
            again_row(c.s + r * T, T, scale, ((const float *)lse)[first * T + r]);
            op_cpu_store(d, c.p, r * T, c.s + r * T, T);
            ds_row(c.dp + r * T, c.s + r * T, T, scale, c.delta[r]);
            op_cpu_store(d, c.ds, r * T, c.dp + r * T, T);
        }
        product(&k, c.dv_, c.p, c.o, n, KEYS);   /* dV = P^T dO */
        product(&k, c.dk, c.ds, c.q, n, KEYS);   /* dK = dS^T Q */
        product(&k, c.dq, c.ds, c.k, n, VALUES); /* dQ = dS K */
        unpack(&k, dqkv, c.dq, 3 * C, 0, first, n);
        unpack(&k, dqkv, c.dk, 3 * C, C, first, n);
        unpack(&k, dqkv, c.dv_, 3 * C, 2 * C, first, n);
    }
}
