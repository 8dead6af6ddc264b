/* op_cpu_attention_amx.c: attention for processors that multiply tiles of bf16 (AMX). One head of one image is a task:
 * its Q, K and V are packed once into tiles' layouts (op_cpu_amx.h), padded with zeros to multiples of 32; scores exist
 * 32 rows at a time, in cache.
 *
 * Forward: 32 queries at a time, S = Q K^T, softmax without the division, O = P V divided by the sums.
 * Backward: 32 keys at a time on transposed scores, so that P^T and dS^T are left operands as they are: dV = P^T dO and
 * dK = dS^T Q are whole after one pass over the queries; dQ^T = K^T dS^T once all keys (of a chunk) are done. */
#include "model/op_cpu.h"
#include "model/op_cpu_amx.h"

#if defined(__x86_64__)
#include <math.h>

#define LOG2E 1.44269504f

enum {
    CHUNK_KEYS_BYTES = 512 << 10, /* of dS, paired, that backward keeps */
    SIZE_MAX_HEAD = 256
};

/* A head: T tokens, D channels, both also padded to multiples of STEP. */
typedef struct {
    size_t T, Tp, D, Dp, stride; /* stride: elements from token to token in qkv and dqkv: 3*H*D */
    size_t chunk;                /* keys of which dS is kept at once */
    float scale;
} head;

static head head_of(size_t T, size_t H, size_t D)
{
    head h = {T, (T + STEP - 1) / STEP * STEP, D, (D + STEP - 1) / STEP * STEP, 3 * H * D, 0, 1.0f / sqrtf((float)D)};
    size_t keys = CHUNK_KEYS_BYTES / (h.Tp * sizeof(bf16)) / STEP * STEP;
    h.chunk = keys < STEP ? STEP : keys < h.Tp ? keys : h.Tp;
    return h;
}

/* A thread's workspace. Every part starts at a multiple of 64 bytes. */
typedef struct {
    bf16 *q, *k, *v, *g;       /* (Tp,Dp): Q, K, V, dO */
    bf16 *k_pairs, *v_pairs;   /* forward: right operands K^T (pairs along D) and V (pairs along T) */
    float *s;                  /* (STEP,Tp): scores */
    bf16 *p;                   /* (STEP,Tp) */
    float *out;                /* (STEP,Dp) */
    bf16 *q_across, *g_across; /* backward: right operands Q^T, dO^T (pairs along D) */
    bf16 *q_pairs, *g_pairs;   /* right operands Q, dO (pairs along T) */
    bf16 *k_turned;            /* (Dp,Tp): K^T */
    float *dp;                 /* (STEP,Tp): dP^T */
    bf16 *ds;                  /* (STEP,Tp): dS^T */
    bf16 *ds_pairs;            /* (chunk,Tp): dS^T of a chunk as a right operand (pairs along keys) */
    float *dq;                 /* (Dp,Tp): dQ^T */
    float *lse, *delta;        /* (Tp): log-sum-exp in base 2; sum of dO * O */
    size_t bytes;
} work;

static void *part(work *w, char *base, size_t bytes)
{
    void *at = base ? base + w->bytes : NULL;
    w->bytes += (bytes + 63) & ~(size_t)63;
    return at;
}

static work lay_out(char *base, const head *h, bool backward)
{
    work w = {.bytes = 0};
    size_t matrix = h->Tp * h->Dp * sizeof(bf16), block = STEP * h->Tp;
    w.q = part(&w, base, matrix);
    w.k = part(&w, base, matrix);
    w.v = part(&w, base, matrix);
    w.s = part(&w, base, block * sizeof(float));
    w.p = part(&w, base, block * sizeof(bf16));
    w.out = part(&w, base, STEP * h->Dp * sizeof(float));
    if (!backward) {
        w.k_pairs = part(&w, base, matrix);
        w.v_pairs = part(&w, base, matrix);
        return w;
    }
    bf16 **more[] = {&w.g, &w.q_across, &w.g_across, &w.q_pairs, &w.g_pairs, &w.k_turned};
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) *more[i] = part(&w, base, matrix);
    w.dp = part(&w, base, block * sizeof(float));
    w.ds = part(&w, base, block * sizeof(bf16));
    w.ds_pairs = part(&w, base, h->chunk * h->Tp * sizeof(bf16));
    w.dq = part(&w, base, h->Dp * h->Tp * sizeof(float));
    w.lse = part(&w, base, h->Tp * sizeof(float));
    w.delta = part(&w, base, h->Tp * sizeof(float));
    return w;
}

bool op_cpu_attention_amx_fits(const device *d, size_t D)
{
    return d->ct == COMPUTE_BF16 && D % SIDE == 0 && D <= SIZE_MAX_HEAD && op_cpu_matmul_has_amx();
}

size_t op_cpu_attention_amx_bytes(size_t T, size_t H, size_t D, bool backward)
{
    head h = head_of(T, H, D);
    return lay_out(NULL, &h, backward).bytes;
}

/* --- packing */

/* (Tp,Dp) from rows of D values, the rest zeros. */
AMX static void pack(const head *h, bf16 *out, const bf16 *rows, size_t stride)
{
    for (size_t t = 0; t < h->T; t++, out += h->Dp, rows += stride)
        for (size_t c = 0; c < h->Dp; c += SIDE)
            _mm256_storeu_si256((__m256i *)(out + c),
                                c < h->D ? _mm256_loadu_si256((const __m256i *)(rows + c)) : _mm256_setzero_si256());
    memset(out, 0, (h->Tp - h->T) * h->Dp * sizeof *out);
}

/* The transpose of x (Tp,Dp) as a right operand, pairs along D: tile (t/16, d/32). turned (Dp,Tp), if wanted: the
 * transpose itself. */
AMX static void pack_across(const head *h, bf16 *out, bf16 *turned, const bf16 *x)
{
    for (size_t t = 0; t < h->Tp; t += SIDE)
        for (size_t c = 0; c < h->Dp; c += STEP, out += out ? TILE : 0) {
            __m512i r[SIDE];
            for (size_t i = 0; i < SIDE; i++) r[i] = _mm512_loadu_si512(x + (t + i) * h->Dp + c);
            amx_transpose(r);
            for (size_t i = 0; i < SIDE && out; i++) _mm512_storeu_si512(out + i * STEP, r[i]);
            for (size_t i = 0; i < SIDE && turned; i++) {
                bf16 *even = turned + (c + 2 * i) * h->Tp + t;
                _mm256_storeu_si256((__m256i *)even, _mm512_cvtepi32_epi16(r[i]));
                _mm256_storeu_si256((__m256i *)(even + h->Tp), _mm512_cvtepi32_epi16(_mm512_srli_epi32(r[i], 16)));
            }
        }
}

/* x (Tp,Dp) as a right operand, pairs along T: tile (t/32, d/16). */
AMX static void pack_pairs(const head *h, bf16 *out, const bf16 *x)
{
    for (size_t t = 0; t < h->Tp; t += STEP)
        for (size_t c = 0; c < h->Dp; c += SIDE, out += TILE) amx_pairs_along(out, x + t * h->Dp + c, h->Dp);
}

/* --- products */

static const amx_tiles tiles_whole = AMX_TILES(STEP);

AMX static void begin(amx_state *before)
{
    amx_begin(before, &tiles_whole);
}

AMX static void end(const amx_state *before)
{
    amx_end(before);
}

/* out (STEP,Tp) = rows (STEP,Dp) times the transpose of a matrix packed across. */
static void scores(const head *h, float *out, const bf16 *rows, const bf16 *across)
{
    size_t next = h->Dp / STEP * TILE;
    for (size_t t = 0; t < h->Tp; t += STEP)
        amx_product(out + t, h->Tp, (amx_left){rows, h->Dp}, (amx_right){across + t / SIDE * next, TILE, next},
                    h->Dp / STEP, false);
}

/* out (STEP,Dp) = weights (STEP,Tp) times a matrix packed in pairs. */
static void weighted(const head *h, float *out, const bf16 *weights, const bf16 *pairs)
{
    for (size_t c = 0; c < h->Dp; c += STEP)
        amx_product(out + c, h->Dp, (amx_left){weights, h->Tp},
                    (amx_right){pairs + c / SIDE * TILE, h->Dp / SIDE * TILE, TILE}, h->Tp / STEP, false);
}

/* --- rows */

/* 2^x, relative error below 1e-7; 0 far below. The polynomial is fitted to 2^f on [-1/2, 1/2]. */
AMX static inline __attribute__((always_inline)) __m512 exp2_of(__m512 x)
{
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.3276472454890609e-03f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.675541892647743e-03f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550713092088699e-02f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022120237350464e-01f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931469440460205e-01f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0000001192092896f));
    return _mm512_scalef_ps(p, n);
}

AMX static inline __attribute__((always_inline)) __m512i narrow(__m512 x)
{
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
}

/* Softmax of T scores without the division: p (Tp) = exp(scale * s - top), zeros from T on. Returns the sum; *top is
 * the largest scale * s. */
AMX static float softmax(const head *h, bf16 *p, const float *s, float *largest)
{
    size_t whole = h->T / SIDE * SIDE;
    __mmask16 tail = (__mmask16)((1u << (h->T - whole)) - 1);
    __m512 most = _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), tail, s + whole), sum = _mm512_setzero_ps();
    for (size_t t = 0; t < whole; t += SIDE) most = _mm512_max_ps(most, _mm512_loadu_ps(s + t));
    float top = _mm512_reduce_max_ps(most) * h->scale;
    __m512 factor = _mm512_set1_ps(h->scale * LOG2E), shift = _mm512_set1_ps(top * LOG2E);
    for (size_t t = 0; t < whole; t += SIDE) {
        __m512 e = exp2_of(_mm512_fmsub_ps(_mm512_loadu_ps(s + t), factor, shift));
        sum = _mm512_add_ps(sum, e);
        amx_store(p + t, e);
    }
    for (size_t t = whole; t < h->Tp; t += SIDE, tail = 0) {
        __m512 e = exp2_of(_mm512_fmsub_ps(_mm512_maskz_loadu_ps(tail, s + t), factor, shift));
        e = _mm512_maskz_mov_ps(tail, e);
        sum = _mm512_add_ps(sum, e);
        amx_store(p + t, e);
    }
    *largest = top;
    return _mm512_reduce_add_ps(sum);
}

/* A row of D values times a factor, as bf16. */
AMX static void store_row(const head *h, bf16 *out, const float *x, float factor)
{
    __m512 f = _mm512_set1_ps(factor);
    for (size_t c = 0; c < h->D; c += SIDE) amx_store(out + c, _mm512_mul_ps(_mm512_loadu_ps(x + c), f));
}

/* A key's row r of a block, over all queries: P^T = exp(scale * S^T - lse), dS^T = P^T * (dP^T - delta) * scale (Dao et
 * al. 2022, B.2). Rows come two at a time, since dS^T is also kept in pairs. */
AMX static void probabilities(const head *h, const work *w, size_t r, bf16 *ds_pairs)
{
    __m512 factor = _mm512_set1_ps(h->scale * LOG2E), scale = _mm512_set1_ps(h->scale);
    size_t even = r * h->Tp, odd = even + h->Tp;
    for (size_t t = 0; t < h->Tp; t += SIDE) {
        __m512 lse = _mm512_loadu_ps(w->lse + t), delta = _mm512_loadu_ps(w->delta + t), ds[2];
        size_t at[2] = {even + t, odd + t};
        for (int i = 0; i < 2; i++) {
            __m512 p = exp2_of(_mm512_fmsub_ps(_mm512_loadu_ps(w->s + at[i]), factor, lse));
            ds[i] = _mm512_mul_ps(_mm512_mul_ps(p, scale), _mm512_sub_ps(_mm512_loadu_ps(w->dp + at[i]), delta));
            amx_store(w->p + at[i], p);
        }
        __m512i a = narrow(ds[0]), b = narrow(ds[1]);
        _mm256_storeu_si256((__m256i *)(w->ds + at[0]), _mm512_cvtepi32_epi16(a));
        _mm256_storeu_si256((__m256i *)(w->ds + at[1]), _mm512_cvtepi32_epi16(b));
        _mm512_storeu_si512(ds_pairs + t / SIDE * TILE + r / 2 * STEP, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
    }
}

AMX static float dot(const bf16 *a, const bf16 *b, size_t n)
{
    __m512 sum = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += SIDE) {
        __m512i x = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(a + i))), 16);
        __m512i y = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(b + i))), 16);
        sum = _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(y), sum);
    }
    return _mm512_reduce_add_ps(sum);
}

/* --- a head, forward and backward. qkv, o, g (dO), dqkv point at its first token's Q. */

static void head_fwd(const head *h, const work *w, bf16 *o, float *lse, const bf16 *qkv)
{
    size_t C = h->stride / 3;
    pack(h, w->q, qkv, h->stride);
    pack(h, w->k, qkv + C, h->stride);
    pack(h, w->v, qkv + 2 * C, h->stride);
    pack_across(h, w->k_pairs, NULL, w->k);
    pack_pairs(h, w->v_pairs, w->v);
    memset(w->p, 0, STEP * h->Tp * sizeof *w->p);
    for (size_t first = 0; first < h->T; first += STEP) {
        size_t rows = h->T - first < STEP ? h->T - first : STEP;
        float sum[STEP], top[STEP];
        scores(h, w->s, w->q + first * h->Dp, w->k_pairs);
        for (size_t r = 0; r < rows; r++) sum[r] = softmax(h, w->p + r * h->Tp, w->s + r * h->Tp, &top[r]);
        for (size_t r = 0; r < rows && lse; r++) lse[first + r] = top[r] + logf(sum[r]);
        weighted(h, w->out, w->p, w->v_pairs);
        for (size_t r = 0; r < rows; r++) store_row(h, o + (first + r) * C, w->out + r * h->Dp, 1.0f / sum[r]);
    }
}

/* dQ (T,D) from its transpose in w->dq. */
AMX static void store_dq(const head *h, const work *w, bf16 *dq)
{
    for (size_t t = 0; t < h->T; t += SIDE)
        for (size_t c = 0; c < h->D; c += SIDE) {
            __m512i r[SIDE];
            for (size_t i = 0; i < SIDE; i++) r[i] = _mm512_loadu_si512(w->dq + (c + i) * h->Tp + t);
            amx_transpose(r);
            for (size_t i = 0; i < SIDE && t + i < h->T; i++)
                amx_store(dq + (t + i) * h->stride + c, _mm512_castsi512_ps(r[i]));
        }
}

static void prepare_bwd(const head *h, const work *w, const bf16 *g, const bf16 *qkv, const bf16 *o, const float *lse)
{
    size_t C = h->stride / 3;
    pack(h, w->q, qkv, h->stride);
    pack(h, w->k, qkv + C, h->stride);
    pack(h, w->v, qkv + 2 * C, h->stride);
    pack(h, w->g, g, C);
    pack_across(h, w->q_across, NULL, w->q);
    pack_across(h, w->g_across, NULL, w->g);
    pack_across(h, NULL, w->k_turned, w->k);
    pack_pairs(h, w->q_pairs, w->q);
    pack_pairs(h, w->g_pairs, w->g);
    for (size_t t = 0; t < h->T; t++) {
        w->lse[t] = lse[t] * LOG2E;
        w->delta[t] = dot(g + t * C, o + t * C, h->D);
    }
    for (size_t t = h->T; t < h->Tp; t++) { /* padded queries: probability 0 */
        w->lse[t] = 1e30f;
        w->delta[t] = 0;
    }
}

/* Keys first .. first+31: their dK and dV, and dS^T into ds_pairs. */
static void keys_bwd(const head *h, const work *w, size_t first, bf16 *ds_pairs, bf16 *dk, bf16 *dv_)
{
    size_t rows = h->T - first < STEP ? h->T - first : STEP;
    scores(h, w->s, w->k + first * h->Dp, w->q_across);
    scores(h, w->dp, w->v + first * h->Dp, w->g_across); /* dP^T = V dO^T */
    for (size_t r = 0; r < STEP; r += 2) probabilities(h, w, r, ds_pairs);
    weighted(h, w->out, w->p, w->g_pairs);
    for (size_t r = 0; r < rows; r++) store_row(h, dv_ + (first + r) * h->stride, w->out + r * h->Dp, 1);
    weighted(h, w->out, w->ds, w->q_pairs);
    for (size_t r = 0; r < rows; r++) store_row(h, dk + (first + r) * h->stride, w->out + r * h->Dp, 1);
}

static void head_bwd(const head *h, const work *w, bf16 *dqkv, const bf16 *g, const bf16 *qkv, const bf16 *o,
                     const float *lse)
{
    size_t C = h->stride / 3, tiles_across = h->Tp / SIDE * TILE;
    prepare_bwd(h, w, g, qkv, o, lse);
    for (size_t chunk = 0; chunk < h->Tp; chunk += h->chunk) {
        size_t keys = h->Tp - chunk < h->chunk ? h->Tp - chunk : h->chunk;
        for (size_t k = 0; k < keys; k += STEP)
            keys_bwd(h, w, chunk + k, w->ds_pairs + k / STEP * tiles_across, dqkv + C, dqkv + 2 * C);
        for (size_t c = 0; c < h->Dp; c += STEP)
            for (size_t t = 0; t < h->Tp; t += STEP)
                amx_product(w->dq + c * h->Tp + t, h->Tp, (amx_left){w->k_turned + c * h->Tp + chunk, h->Tp},
                            (amx_right){w->ds_pairs + t / SIDE * TILE, tiles_across, TILE}, keys / STEP, chunk > 0);
    }
    store_dq(h, w, dqkv);
}

/* --- all heads: each thread has its part of the workspace */

void op_cpu_attention_amx_fwd(device *d, dv *o, dv *lse, const dv *qkv, size_t B, size_t T, size_t H, size_t D)
{
    int threads = op_cpu_in_tile() ? 1 : d->threads;
    head h = head_of(T, H, D);
    size_t bytes = lay_out(NULL, &h, false).bytes, C = H * D;
    char *base = B ? op_cpu_work(d, (size_t)threads * bytes) : NULL;
    if (!base) return;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (size_t i = 0; i < B * H; i++) {
        size_t b = i / H, at = i % H * D;
        work w = lay_out(base + (size_t)(threads > 1 ? op_cpu_thread() : 0) * bytes, &h, false);
        amx_state before;
        begin(&before);
        head_fwd(&h, &w, (bf16 *)o + b * T * C + at, lse ? (float *)lse + i * T : NULL,
                 (const bf16 *)qkv + b * T * 3 * C + at);
        end(&before);
    }
}

void op_cpu_attention_amx_bwd(device *d, dv *dqkv, const dv *d_o, const dv *qkv, const dv *o, const dv *lse, size_t B,
                              size_t T, size_t H, size_t D)
{
    int threads = op_cpu_in_tile() ? 1 : d->threads;
    head h = head_of(T, H, D);
    size_t bytes = lay_out(NULL, &h, true).bytes, C = H * D;
    char *base = B ? op_cpu_work(d, (size_t)threads * bytes) : NULL;
    if (!base) return;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (size_t i = 0; i < B * H; i++) {
        size_t b = i / H, at = i % H * D, row = b * T * C + at, wide = b * T * 3 * C + at;
        work w = lay_out(base + (size_t)(threads > 1 ? op_cpu_thread() : 0) * bytes, &h, true);
        amx_state before;
        begin(&before);
        head_bwd(&h, &w, (bf16 *)dqkv + wide, (const bf16 *)d_o + row, (const bf16 *)qkv + wide, (const bf16 *)o + row,
                 (const float *)lse + i * T);
        end(&before);
    }
}

#else

bool op_cpu_attention_amx_fits(const device *d, size_t D)
{
    (void)d, (void)D;
    return false;
}
size_t op_cpu_attention_amx_bytes(size_t T, size_t H, size_t D, bool backward)
{
    (void)T, (void)H, (void)D, (void)backward;
    return 0;
}
void op_cpu_attention_amx_fwd(device *d, dv *o, dv *lse, const dv *qkv, size_t B, size_t T, size_t H, size_t D)
{
    (void)o, (void)lse, (void)qkv, (void)B, (void)T, (void)H, (void)D;
    op_cpu_fail(d, ERR_INTERNAL, "no AMX on this processor");
}
void op_cpu_attention_amx_bwd(device *d, dv *dqkv, const dv *d_o, const dv *qkv, const dv *o, const dv *lse, size_t B,
                              size_t T, size_t H, size_t D)
{
    (void)dqkv, (void)d_o, (void)qkv, (void)o, (void)lse, (void)B, (void)T, (void)H, (void)D;
    op_cpu_fail(d, ERR_INTERNAL, "no AMX on this processor");
}

#endif
