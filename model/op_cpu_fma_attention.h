/* op_cpu_fma_attention.h: attention (op_cpu_fma.h). A thread takes a head of an image at a time; nothing of size T*T
 * outlives a block of queries. Keys lie in chunks of INNER (the scores' row length): scores[chunk][query][ROW].
 * Backward makes the probabilities again: P = exp(S - lse), dS = P * (dP - sum(dO*O)) (FlashAttention, Dao et al. 2022,
 * B.2); the scale goes into Q, so that dK = dS^T (scale Q) and dQ = scale (dS K). */
#ifndef RADAPT_OP_CPU_FMA_ATTENTION_H
#define RADAPT_OP_CPU_FMA_ATTENTION_H

enum { QUERIES = 4 * ROWS }; /* of a block, backward */

/* A head's scratch; panels as in tile_of's right operand. */
typedef struct {
    size_t T, D, wide, keys; /* D and T rounded up to WIDTH */
    size_t chunks, queries;  /* of keys; of a block */
    float *kt, *vt;          /* (T/WIDTH panels, D, WIDTH): K and V turned */
    float *k, *v;            /* (D/WIDTH panels, T, WIDTH) */
    float *q, *d_o;          /* (queries, ROW) */
    float *qp, *dop;         /* (D/WIDTH panels, queries, WIDTH): the same as right operands */
    float *s, *ds;           /* (chunks, queries, ROW) */
    float *out;              /* (queries, wide) */
    float *dk, *dv;          /* (T rounded up to ROWS, wide) */
    size_t floats;
} head;

INLINE float *room(head *h, float *base, size_t n)
{
    float *at = base ? base + h->floats : NULL;
    h->floats += (n + 15) & ~(size_t)15;
    return at;
}

static head lay_out(float *base, size_t T, size_t D, bool backward)
{
    head h = {.T = T, .D = D, .chunks = (T + INNER - 1) / INNER, .queries = backward ? QUERIES : ROWS};
    h.wide = (D + WIDTH - 1) / WIDTH * WIDTH;
    h.keys = (T + WIDTH - 1) / WIDTH * WIDTH;
    size_t scores = h.chunks * h.queries * ROW;
    h.kt = room(&h, base, h.keys * D);
    h.q = room(&h, base, h.queries * ROW);
    h.s = room(&h, base, scores);
    h.out = room(&h, base, h.queries * h.wide);
    if (backward) {
        h.vt = room(&h, base, h.keys * D);
        h.k = room(&h, base, T * h.wide);
        h.d_o = room(&h, base, h.queries * ROW);
        h.qp = room(&h, base, h.queries * h.wide);
        h.dop = room(&h, base, h.queries * h.wide);
        h.ds = room(&h, base, scores);
        h.dk = room(&h, base, (T + ROWS) * h.wide);
        h.dv = room(&h, base, (T + ROWS) * h.wide);
    } else {
        h.v = room(&h, base, T * h.wide);
    }
    return h;
}

/* Of chunk k. */
INLINE size_t keys_of(const head *h, size_t k)
{
    return h->T - k * INNER < INNER ? h->T - k * INNER : INNER;
}

static size_t attention_bytes(size_t T, size_t D, bool backward)
{
    return lay_out(NULL, T, D, backward).floats * sizeof(float);
}

/* Rows of a head, `row` values apart from `from` on: turned, in panels of keys. */
static void turn_all(float *out, const head *h, const dv *x, size_t from, size_t row, bool half)
{
    for (size_t t = 0; t < h->T; t += WIDTH) turn(out + t * h->D, x, from + t * row, row, h->T - t, h->D, half);
}

/* n rows as they are, in panels of channels: out (D/WIDTH, n, WIDTH). */
static void panels_of(float *out, const head *h, const void *x, size_t from, size_t row, size_t n, float by, bool half)
{
    for (size_t c = 0; c < h->D; c += WIDTH) panel_of(out + c * n, x, from + c, row, h->D - c, n, by, half);
}

static void rows_of(float *out, const head *h, const dv *x, size_t from, size_t row, size_t n, float by, bool half)
{
    for (size_t r = 0; r < n; r++) get_row(out + r * ROW, x, from + r * row, h->D, by, half);
}

/* s = rows (n,D) times the turned keys. */
static void scores_of(float *s, const head *h, const float *rows, const float *turned, size_t n)
{
    size_t blocks = blocks_of(n);
    for (size_t t = 0; t < h->T; t += WIDTH) {
        float *to = s + t / INNER * h->queries * ROW + t % INNER;
        for (size_t b = 0; b < blocks; b++) {
            size_t r = block_at(n, blocks, b), m = block_at(n, blocks, b + 1) - r;
            tile_across(
                &(tile){.c = to + r * ROW, .c_row = ROW, .a = rows + r * ROW, .b = turned + t * h->D, .k = h->D}, m);
        }
    }
}

/* out (n,wide) = s (n,T) times panels (D/WIDTH, T, WIDTH). */
static void weigh(float *out, const head *h, const float *s, const float *panels, size_t n)
{
    size_t blocks = blocks_of(n);
    for (size_t c = 0; c < h->wide; c += WIDTH)
        for (size_t k = 0; k < h->chunks; k++) {
            size_t keys = keys_of(h, k);
            for (size_t b = 0; b < blocks; b++) {
                size_t r = block_at(n, blocks, b), m = block_at(n, blocks, b + 1) - r;
                tile p = {.c = out + r * h->wide + c,
                          .c_row = h->wide,
                          .a = s + (k * h->queries + r) * ROW,
                          .b = panels + c * h->T + k * INNER * WIDTH,
                          .k = keys,
                          .add = k > 0};
                tile_across(&p, m);
            }
        }
}

/* sums (T,wide) += s^T times panels (D/WIDTH, n, WIDTH); the first block begins them. */
static void gather_keys(float *sums, const head *h, const float *s, const float *panels, size_t n, bool add)
{
    for (size_t k = 0; k < h->chunks; k++) {
        size_t keys = keys_of(h, k), blocks = blocks_of(keys);
        for (size_t c = 0; c < h->wide; c += WIDTH)
            for (size_t b = 0; b < blocks; b++) {
                size_t r = block_at(keys, blocks, b), m = block_at(keys, blocks, b + 1) - r;
                tile p = {.c = sums + (k * INNER + r) * h->wide + c,
                          .c_row = h->wide,
                          .a = s + k * h->queries * ROW + r,
                          .b = panels + c * n,
                          .k = n,
                          .add = add};
                tile_down(&p, m);
            }
    }
}

/* Row r of the scores becomes exp(s - most); returns the sum, *most the largest. */
static float exponentials(const head *h, float *s, size_t r, float *most)
{
    float top = -INFINITY, sum = 0;
    for (size_t k = 0; k < h->chunks; k++) {
        const float *x = s + (k * h->queries + r) * ROW;
        size_t n = keys_of(h, k);
#pragma omp simd reduction(max : top)
        for (size_t j = 0; j < n; j++) top = x[j] > top ? x[j] : top;
    }
    for (size_t k = 0; k < h->chunks; k++) {
        float *x = s + (k * h->queries + r) * ROW;
        size_t n = keys_of(h, k);
#pragma omp simd reduction(+ : sum)
        for (size_t j = 0; j < n; j++) {
            x[j] = op_exp(x[j] - top);
            sum += x[j];
        }
    }
    *most = top;
    return sum;
}

static void forward_head(const head *h, dv *o, float *lse, const dv *qkv, size_t b, size_t i, size_t H, bool half)
{
    size_t C = H * h->D, from = b * h->T * 3 * C + i * h->D;
    float scale = 1.0f / sqrtf((float)h->D);
    turn_all(h->kt, h, qkv, from + C, 3 * C, half);
    panels_of(h->v, h, qkv, from + 2 * C, 3 * C, h->T, 1, half);
    size_t blocks = blocks_of(h->T);
    for (size_t k = 0; k < blocks; k++) {
        size_t t = block_at(h->T, blocks, k), n = block_at(h->T, blocks, k + 1) - t;
        float sum[ROWS];
        rows_of(h->q, h, qkv, from + t * 3 * C, 3 * C, n, scale, half);
        scores_of(h->s, h, h->q, h->kt, n);
        for (size_t r = 0; r < n; r++) {
            float most;
            sum[r] = exponentials(h, h->s, r, &most);
            if (lse) lse[(b * H + i) * h->T + t + r] = most + logf(sum[r]);
        }
        weigh(h->out, h, h->s, h->v, n);
        for (size_t r = 0; r < n; r++)
            put_row(o, (b * h->T + t + r) * C + i * h->D, h->out + r * h->wide, h->D, 1 / sum[r], half);
    }
}

/* Row r: s becomes P, ds (it holds dP) dS. */
static void slopes(const head *h, size_t r, float lse, float delta)
{
    for (size_t k = 0; k < h->chunks; k++) {
        float *s = h->s + (k * h->queries + r) * ROW, *ds = h->ds + (k * h->queries + r) * ROW;
        size_t n = keys_of(h, k);
#pragma omp simd
        for (size_t j = 0; j < n; j++) {
            s[j] = op_exp(s[j] - lse);
            ds[j] = s[j] * (ds[j] - delta);
        }
    }
}

static void backward_head(const head *h, dv *dqkv, const dv *d_o, const dv *qkv, const dv *o, const float *lse,
                          size_t b, size_t i, size_t H, bool half)
{
    size_t C = H * h->D, from = b * h->T * 3 * C + i * h->D, from_o = b * h->T * C + i * h->D;
    float scale = 1.0f / sqrtf((float)h->D);
    turn_all(h->kt, h, qkv, from + C, 3 * C, half);
    turn_all(h->vt, h, qkv, from + 2 * C, 3 * C, half);
    panels_of(h->k, h, qkv, from + C, 3 * C, h->T, 1, half);
    size_t blocks = (h->T + QUERIES - 1) / QUERIES;
    for (size_t k = 0; k < blocks; k++) {
        size_t t = block_at(h->T, blocks, k), n = block_at(h->T, blocks, k + 1) - t;
        rows_of(h->q, h, qkv, from + t * 3 * C, 3 * C, n, scale, half);
        rows_of(h->d_o, h, d_o, from_o + t * C, C, n, 1, half);
        panels_of(h->qp, h, h->q, 0, ROW, n, 1, false);
        panels_of(h->dop, h, h->d_o, 0, ROW, n, 1, false);
        scores_of(h->s, h, h->q, h->kt, n);
        scores_of(h->ds, h, h->d_o, h->vt, n);
        for (size_t r = 0; r < n; r++) {
            float delta = 0;
            get_row(h->out, o, from_o + (t + r) * C, h->D, 1, half);
#pragma omp simd reduction(+ : delta)
            for (size_t j = 0; j < h->D; j++) delta += h->out[j] * h->d_o[r * ROW + j];
            slopes(h, r, lse[(b * H + i) * h->T + t + r], delta);
        }
        weigh(h->out, h, h->ds, h->k, n);
        for (size_t r = 0; r < n; r++) put_row(dqkv, from + (t + r) * 3 * C, h->out + r * h->wide, h->D, scale, half);
        gather_keys(h->dv, h, h->s, h->dop, n, k > 0);
        gather_keys(h->dk, h, h->ds, h->qp, n, k > 0);
    }
    for (size_t t = 0; t < h->T; t++) {
        put_row(dqkv, from + C + t * 3 * C, h->dk + t * h->wide, h->D, 1, half);
        put_row(dqkv, from + 2 * C + t * 3 * C, h->dv + t * h->wide, h->D, 1, half);
    }
}

/* Numbers too small to be normal become 0 (MXCSR: FTZ and DAZ): probabilities often are, and cost a hundred times the
 * others. Returns what to set back. */
static unsigned flush_small(void)
{
    unsigned csr = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(csr | 0x8040);
    return csr;
}

typedef struct {
    device *d;
    dv *o, *lse; /* forward: written */
    const dv *qkv;
    dv *dqkv; /* backward: written */
    const dv *d_o;
    size_t B, T, H, D;
    bool backward;
} call;

/* Head i of all images' heads. */
static void one_head(const call *c, char *work, size_t i)
{
    head h = lay_out((float *)work, c->T, c->D, c->backward);
    bool half = c->d->ct == COMPUTE_BF16;
    size_t b = i / c->H, at = i % c->H;
    unsigned csr = flush_small();
    if (c->backward)
        backward_head(&h, c->dqkv, c->d_o, c->qkv, c->o, (const float *)c->lse, b, at, c->H, half);
    else
        forward_head(&h, c->o, (float *)c->lse, c->qkv, b, at, c->H, half);
    __builtin_ia32_ldmxcsr(csr);
}

static void all_heads(const call *c)
{
    int threads = op_cpu_in_tile() ? 1 : c->d->threads;
    size_t bytes = attention_bytes(c->T, c->D, c->backward), n = c->B * c->H;
    char *work = n ? op_cpu_work(c->d, bytes * (size_t)threads) : NULL;
    if (!work) return;
    if (threads == 1) {
        for (size_t i = 0; i < n; i++) one_head(c, work, i);
        return;
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (size_t i = 0; i < n; i++) one_head(c, work + (size_t)op_cpu_thread() * bytes, i);
}

static void attention_fwd(device *d, dv *o, dv *lse, const dv *qkv, size_t B, size_t T, size_t H, size_t D)
{
    all_heads(&(call){.d = d, .o = o, .lse = lse, .qkv = qkv, .B = B, .T = T, .H = H, .D = D});
}

static void attention_bwd(device *d, dv *dqkv, const dv *d_o, const dv *qkv, const dv *o, const dv *lse, size_t B,
                          size_t T, size_t H, size_t D)
{
    all_heads(&(call){.d = d,
                      .o = (dv *)(uintptr_t)o,
                      .lse = (dv *)(uintptr_t)lse,
                      .qkv = qkv,
                      .dqkv = dqkv,
                      .d_o = d_o,
                      .B = B,
                      .T = T,
                      .H = H,
                      .D = D,
                      .backward = true});
}

#endif
