/* op_cpu_fma_linear.h: linear layers (op_cpu_fma.h). A weight lies in panels of WIDTH columns, each (inner,WIDTH) ct.
 * Rows are taken in groups whose fp32 copy fits the second cache; a group goes past every panel: a chunk of the panel,
 * widened, stays in cache while the group's blocks go by, and what follows the product is done on a block's sums. */
#ifndef RADAPT_OP_CPU_FMA_LINEAR_H
#define RADAPT_OP_CPU_FMA_LINEAR_H

/* A panel of columns o.. of the result: back: as they lie, else turned, eight at a time, so that both sides stay
 * in the first cache. at: where in a row of it column j lies. */
#define PACK(cell, at)                                                                                                 \
    static void pack_##cell(cell *to, const cell *weight, size_t o, size_t columns, size_t out, size_t in, bool back)  \
    {                                                                                                                  \
        size_t inner = back ? out : in;                                                                                \
        if (columns < WIDTH) memset(to, 0, inner *WIDTH * sizeof *to);                                                 \
        if (back) {                                                                                                    \
            for (size_t k = 0; k < inner; k++)                                                                         \
                for (size_t j = 0; j < columns; j++) to[k * WIDTH + at] = weight[k * in + o + j];                      \
            return;                                                                                                    \
        }                                                                                                              \
        for (size_t k = 0; k < inner; k += 8)                                                                          \
            for (size_t j = 0; j < columns; j++)                                                                       \
                for (size_t i = k; i < inner && i < k + 8; i++) to[i * WIDTH + at] = weight[(o + j) * in + i];         \
    }
PACK(uint16_t, j % LANES * 2 + j / LANES)
PACK(uint32_t, j)

static void pack(bool half, void *packed, const dv *weight, size_t out, size_t in, bool back)
{
    size_t inner = back ? out : in, all = back ? in : out;
#pragma omp parallel for schedule(static)
    for (size_t o = 0; o < all; o += WIDTH) {
        size_t columns = all - o < WIDTH ? all - o : WIDTH;
        if (half)
            pack_uint16_t((uint16_t *)packed + o * inner, (const uint16_t *)weight, o, columns, out, in, back);
        else
            pack_uint32_t((uint32_t *)packed + o * inner, (const uint32_t *)weight, o, columns, out, in, back);
    }
}

/* GELU of a vector, and its derivative: in fp32, or for 16 values that are to be rounded to bf16 from a table. */
INLINE vec gelu_exact(vec x, vec *slope)
{
    vec cdf = 0.5f + 0.5f * erf_of(x * 0.70710678f);
    if (slope) *slope = cdf + x * (0.39894228f * exp_of(-0.5f * x * x));
    return x * cdf;
}

#if LANES == 16
#include "model/op_cpu_gelu_avx512.h"

INLINE vec gelu(const gelu_table *k, vec x, vec *slope, bool half)
{
    if (!half) return gelu_exact(x, slope);
    __m512 less; /* a vec lies anywhere, this does not */
    vec y = (vec)gelu_of(k, (__m512)x, slope ? &less : NULL);
    if (slope) *slope = (vec)less + 0.5f;
    return y;
}
#else
typedef struct {
    char none;
} gelu_table;

#define gelu_table_load() ((gelu_table){0})
#define gelu(k, x, slope, half) gelu_exact(x, slope)
#endif

/* What of a call is the same for all rows of a panel: columns o .. o+columns. */
typedef struct {
    size_t o, columns;
    float bias[WIDTH], scale[WIDTH];
    gelu_table gelu;
} panel;

INLINE panel panel_at(const op_cpu_linear_call *p, size_t o)
{
    panel q = {.o = o, .columns = p->out - o < WIDTH ? p->out - o : WIDTH};
    const float *bias = (const float *)p->bias, *ls = p->after == AFTER_RESIDUAL ? (const float *)p->ls : NULL;
    for (size_t j = 0; j < WIDTH; j++) {
        q.bias[j] = bias && j < q.columns ? bias[o + j] : 0;
        q.scale[j] = ls && j < q.columns ? ls[o + j] : 1;
    }
    if (p->after == AFTER_GELU || p->after == AFTER_GELU_SLOPE) q.gelu = gelu_table_load();
    return q;
}

/* WIDTH codes of GELU' (op_cpu_gelu.c), two vectors: their low bytes, then for each lane of the lower half a byte with
 * the high bits of it and of its fellow in the upper half, both of the first vector and of the second. */
typedef uint8_t octets __attribute__((vector_size(LANES), aligned(1), may_alias));

INLINE words code_of(vec slope)
{
    vec c = slope * OP_SLOPE_STEPS + (OP_SLOPE_ZERO + 0.5f);
    c = pick(c < 1023.0f, c, (vec){0} + 1023.0f); /* NaN too: the value says what it is */
    return (words) __builtin_convertvector(pick(c > 0.0f, c, (vec){0}), mask);
}

/* The halves of a vector, the other way round; and the lower one twice. */
#if LANES == 16
#define SWAPPED 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7
#define LOWER_TWICE 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7
#else
#define SWAPPED 4, 5, 6, 7, 0, 1, 2, 3
#define LOWER_TWICE 0, 1, 2, 3, 0, 1, 2, 3
#endif

INLINE void put_codes(uint8_t *low, uint8_t *high, vec first, vec second)
{
    words a = code_of(first), b = code_of(second), h = a >> 8 | b >> 8 << 2;
    *(octets *)low = __builtin_convertvector(a & 255, octets);
    *(octets *)(low + LANES) = __builtin_convertvector(b & 255, octets);
    octets packed = __builtin_convertvector(h | __builtin_shufflevector(h, h, SWAPPED) << 4, octets);
    memcpy(high, &packed, LANES / 2);
}

INLINE void get_codes(const uint8_t *low, const uint8_t *high, vec *first, vec *second)
{
    octets packed = {0};
    words shift;
    for (int i = 0; i < LANES; i++) shift[i] = i < LANES / 2 ? 0 : 4;
    memcpy(&packed, high, LANES / 2);
    words h = __builtin_convertvector(packed, words);
    h = __builtin_shufflevector(h, h, LOWER_TWICE) >> shift;
    words a = __builtin_convertvector(*(const octets *)low, words) | (h & 3) << 8;
    words b = __builtin_convertvector(*(const octets *)(low + LANES), words) | (h >> 2 & 3) << 8;
    *first = (__builtin_convertvector((mask)a, vec) - OP_SLOPE_ZERO) * (1.0f / OP_SLOPE_STEPS);
    *second = (__builtin_convertvector((mask)b, vec) - OP_SLOPE_ZERO) * (1.0f / OP_SLOPE_STEPS);
}

/* Row n of the result from its sums, WIDTH columns. */
INLINE void finish_row(const op_cpu_linear_call *p, const panel *q, const float *s, size_t n, bool half,
                       op_cpu_after after)
{
    size_t at = n * p->out + q->o;
    uint8_t *row = (uint8_t *)p->slope + n * op_slope_bytes(p->out), *low = row + q->o, *high = row + p->out + q->o / 4;
    vec v[2], slope[2];
    if (after == AFTER_TIMES_SLOPE) get_codes(low, high, &slope[0], &slope[1]);
    for (int i = 0; i < 2; i++) {
        v[i] = *(const vec *)(s + i * LANES) + *(const vec *)(q->bias + i * LANES);
        if (after == AFTER_GELU && p->pre) put(p->pre, at + i * LANES, v[i], half);
        if (after == AFTER_GELU) v[i] = gelu(&q->gelu, v[i], NULL, half);
        if (after == AFTER_GELU_SLOPE) v[i] = gelu(&q->gelu, v[i], &slope[i], half);
        if (after == AFTER_TIMES_SLOPE) v[i] *= slope[i];
        if (after == AFTER_RESIDUAL)
            v[i] = v[i] * *(const vec *)(q->scale + i * LANES) + get(p->x, at + i * LANES, half);
        if (after == AFTER_RESIDUAL && p->rest) v[i] += get(p->rest, at + i * LANES, half);
        put(p->y, at + i * LANES, v[i], half);
        if (after == AFTER_RESIDUAL && p->rest)
            put(p->rest, at + i * LANES, v[i] - get(p->y, at + i * LANES, half), half);
    }
    if (after == AFTER_GELU_SLOPE) put_codes(low, high, slope[0], slope[1]);
}

/* The same of a last panel with fewer columns. */
static void finish_ragged(const op_cpu_linear_call *p, const panel *q, float *s, size_t n, bool half)
{
    size_t w = q->columns, at = n * p->out + q->o;
    uint8_t *row = (uint8_t *)p->slope + n * op_slope_bytes(p->out), *low = row + q->o, *high = row + p->out + q->o / 4;
    float other[WIDTH];
    for (size_t j = 0; j < w; j++) s[j] += q->bias[j];
    if (p->after == AFTER_GELU && p->pre) put_row(p->pre, at, s, w, 1, half);
    if (p->after == AFTER_GELU || p->after == AFTER_GELU_SLOPE) op_cpu_gelu_slope(s, other, w);
    if (p->after == AFTER_GELU_SLOPE) op_cpu_gelu_pack(low, high, other, w);
    if (p->after == AFTER_TIMES_SLOPE) op_cpu_gelu_times(s, low, high, w);
    if (p->after == AFTER_RESIDUAL) {
        get_row(other, p->x, at, w, 1, half);
        for (size_t j = 0; j < w; j++) s[j] = s[j] * q->scale[j] + other[j];
    }
    if (p->rest) {
        get_row(other, p->rest, at, w, 1, half);
        for (size_t j = 0; j < w; j++) s[j] += other[j];
    }
    put_row(p->y, at, s, w, 1, half);
    if (p->rest) {
        get_row(other, p->y, at, w, 1, half);
        for (size_t j = 0; j < w; j++) s[j] -= other[j];
        put_row(p->rest, at, s, w, 1, half);
    }
}

INLINE void finish_as(const op_cpu_linear_call *p, const panel *q, float *sums, size_t row, size_t n, size_t h,
                      bool half, op_cpu_after after)
{
    for (size_t r = 0; r < h; r++)
        if (q->columns == WIDTH)
            finish_row(p, q, sums + r * row, n + r, half, after);
        else
            finish_ragged(p, q, sums + r * row, n + r, half);
}

/* Rows n .. n+h: bias, and what follows the product. */
static void finish(const op_cpu_linear_call *p, const panel *q, float *sums, size_t row, size_t n, size_t h, bool half)
{
#define FINISH(after)                                                                                                  \
    case after:                                                                                                        \
        if (half)                                                                                                      \
            finish_as(p, q, sums, row, n, h, true, after);                                                             \
        else                                                                                                           \
            finish_as(p, q, sums, row, n, h, false, after);                                                            \
        break;
    switch (p->after) {
        FINISH(AFTER_NOTHING)
        FINISH(AFTER_GELU)
        FINISH(AFTER_GELU_SLOPE)
        FINISH(AFTER_TIMES_SLOPE)
        FINISH(AFTER_RESIDUAL)
    }
}

/* A call on a thread. Where few rows would fit with all of their inner index, chunks of it are taken one after the
 * other instead (`chunked`), and the sums of all columns wait in between: so the weight passes by once. */
typedef struct {
    const op_cpu_linear_call *p;
    bool half, chunked;
    size_t chunks, rows; /* of the inner index; of a group, at most */
    size_t sums_row;     /* floats from a row of sums to the next */
    float *left, *right, *sums;
} worker;

INLINE worker worker_of(const device *d, const op_cpu_linear_call *p)
{
    worker w = {.p = p, .half = d->ct == COMPUTE_BF16, .chunks = (p->in + INNER - 1) / INNER, .sums_row = WIDTH};
    size_t whole = (size_t)OP_CPU_FMA_LEFT / (w.chunks * ROW), columns = (p->out + WIDTH - 1) / WIDTH * WIDTH;
    size_t chunked = OP_CPU_FMA_SUMS / columns, most = OP_CPU_FMA_LEFT / ROW;
    if (chunked > most) chunked = most;
    if (whole > most) whole = most;
    w.chunked = w.chunks > 1 && 2 * whole < p->N && whole < chunked;
    w.rows = w.chunked ? chunked : whole;
    if (w.chunked) w.sums_row = columns;
    w.left = op_cpu_fma_scratch(d);
    w.right = w.left + OP_CPU_FMA_LEFT;
    w.sums = w.right + OP_CPU_FMA_PANEL;
    return w;
}

/* Chunk c of rows first .. first+count of the input as fp32, rows ROW apart. */
static void take_rows(const worker *w, size_t first, size_t count, size_t c)
{
    size_t in = w->p->in, from = block_at(in, w->chunks, c), n = block_at(in, w->chunks, c + 1) - from;
    float *to = w->left + (w->chunked ? 0 : c) * w->rows * ROW;
    for (size_t r = 0; r < count; r++, to += ROW)
        if (w->half)
            get_row(to, w->p->in_rows, (first + r) * in + from, n, 1, true);
        else
            memcpy(to, (const float *)w->p->in_rows + (first + r) * in + from, n * sizeof *to);
}

/* What finish() will read of rows n .. n+h, columns o..: on its way meanwhile. */
INLINE void fetch(const op_cpu_linear_call *p, size_t o, size_t n, size_t h, size_t cell)
{
    for (size_t r = n; r < n + h; r++) {
        size_t at = (r * p->out + o) * cell;
        if (p->after == AFTER_RESIDUAL) __builtin_prefetch((const char *)p->x + at);
        if (p->after == AFTER_RESIDUAL && p->rest) __builtin_prefetch((const char *)p->rest + at);
        if (p->after == AFTER_TIMES_SLOPE) __builtin_prefetch((const char *)p->slope + r * op_slope_bytes(p->out) + o);
    }
}

/* Chunk c of those rows past the panel of columns o.. */
static void pass(const worker *w, size_t first, size_t count, size_t o, size_t c)
{
    size_t in = w->p->in, blocks = blocks_of(count), cell = w->half ? 2 : 4;
    size_t from = block_at(in, w->chunks, c), n = block_at(in, w->chunks, c + 1) - from;
    panel q = panel_at(w->p, o);
    char *packed = (char *)w->p->packed + (o * in + from * WIDTH) * cell;
    const char *next = packed + (w->chunked ? in : n) * WIDTH * cell, *end = next + n * WIDTH * cell;
    const float *left = w->left + (w->chunked ? 0 : c) * w->rows * ROW;
    float *sums = w->sums + (w->chunked ? o : 0);
    tile t = {.c_row = w->sums_row, .b = w->half ? w->right : (float *)packed, .k = n, .add = c > 0};
    for (size_t b = 0; b < blocks; b++, next += n * NEXT) {
        size_t r = block_at(count, blocks, b), h = block_at(count, blocks, b + 1) - r;
        t.c = sums + r * w->sums_row;
        t.a = left + r * ROW;
        t.packed = w->half && b == 0 ? (const uint16_t *)packed : NULL;
        t.next = next < end ? next : NULL;
        if (c + 1 == w->chunks) fetch(w->p, o, first + r, h, cell);
        tile_across(&t, h);
        if (c + 1 == w->chunks) finish(w->p, &q, t.c, w->sums_row, first + r, h, w->half);
    }
}

/* Group g of `groups` past the panels of columns from .. to. */
static void group(const worker *w, size_t groups, size_t g, size_t from, size_t to)
{
    size_t N = w->p->N, first = block_at(N, groups, g), count = block_at(N, groups, g + 1) - first;
    if (!count) return;
    for (size_t c = 0; c < w->chunks; c++) {
        take_rows(w, first, count, c);
        if (!w->chunked) continue;
        for (size_t o = from; o < to; o += WIDTH) pass(w, first, count, o, c);
    }
    if (w->chunked) return;
    for (size_t o = from; o < to; o += WIDTH)
        for (size_t c = 0; c < w->chunks; c++) pass(w, first, count, o, c);
}

/* Threads share the rows where there are enough for a group each, else the panels. */
static void linear(device *d, const op_cpu_linear_call *p)
{
    size_t threads = op_cpu_in_tile() ? 1 : (size_t)d->threads, panels = (p->out + WIDTH - 1) / WIDTH;
#pragma omp parallel num_threads((int)threads)
    {
        worker w = worker_of(d, p);
        size_t groups = (p->N + w.rows - 1) / w.rows, t = threads == 1 ? 0 : (size_t)op_cpu_thread();
        if (groups >= threads) {
            groups = (groups + threads - 1) / threads * threads;
            for (size_t g = groups * t / threads; g < groups * (t + 1) / threads; g++)
                group(&w, groups, g, 0, panels * WIDTH);
        } else {
            size_t from = panels * t / threads * WIDTH, to = panels * (t + 1) / threads * WIDTH;
            for (size_t g = 0; g < groups; g++) group(&w, groups, g, from, to);
        }
    }
}

/* Columns first .. first+count of n rows of dy (N,R) from row `from` on, in blocks of a tile's height, each (n,LANES):
 * what a step of the inner index needs lies in one cache line. db (R) or NULL += their sums. */
static void take_columns(float *to, float *db, const dv *dy, size_t from, size_t n, size_t first, size_t count,
                         size_t N, size_t R, bool half)
{
    size_t blocks = blocks_of(count);
    for (size_t b = 0; b < blocks; b++, to += n * LANES) {
        size_t r = first + block_at(count, blocks, b), h = first + block_at(count, blocks, b + 1) - r;
        vec sum = {0};
        for (size_t i = 0; i < n; i++) {
            size_t at = (from + i) * R + r;
            if (at + LANES <= N * R) /* the next columns come along, and are not used */
                *(vec *)(to + i * LANES) = get(dy, at, half);
            else
                get_row(to + i * LANES, dy, at, h, 1, half);
            sum += *(vec *)(to + i * LANES);
        }
        for (size_t k = 0; k < h && db; k++) db[r + k] += sum[k];
    }
}

/* dw (R,I) += dy^T x, db (R) += dy's sums: rows of dw in groups; for each, a chunk of dy's rows, a panel of x's beside
 * it. */
static void dw(device *d, dv *out, dv *db, const dv *dy, const dv *x, size_t R, size_t N, size_t I)
{
    enum { GROUP = 16 * ROWS };
    bool half = d->ct == COMPUTE_BF16;
    size_t groups = (R + GROUP - 1) / GROUP, chunks = (N + INNER - 1) / INNER;
    groups = (groups + (size_t)d->threads - 1) / (size_t)d->threads * (size_t)d->threads;
#pragma omp parallel for schedule(static) num_threads(op_cpu_in_tile() ? 1 : d->threads)
    for (size_t g = 0; g < groups; g++) {
        size_t first = block_at(R, groups, g), count = block_at(R, groups, g + 1) - first, blocks = blocks_of(count);
        float *left = op_cpu_fma_scratch(d), *right = left + OP_CPU_FMA_LEFT, *sums = right + OP_CPU_FMA_PANEL;
        for (size_t c = 0; c < chunks && count; c++) {
            size_t from = block_at(N, chunks, c), n = block_at(N, chunks, c + 1) - from;
            take_columns(left, (float *)db, dy, from, n, first, count, N, R, half);
            for (size_t o = 0; o < I; o += WIDTH) {
                size_t columns = I - o < WIDTH ? I - o : WIDTH;
                panel_of(right, x, from * I + o, I, columns, n, 1, half);
                for (size_t b = 0; b < blocks; b++) {
                    size_t r = block_at(count, blocks, b), h = block_at(count, blocks, b + 1) - r;
                    float *to = (float *)out + (first + r) * I + o;
                    bool whole = columns == WIDTH;
                    tile t = {.c = whole ? to : sums,
                              .c_row = whole ? I : WIDTH,
                              .a = left + b * n * LANES,
                              .b = right,
                              .k = n,
                              .add = whole};
                    tile_packed(&t, h);
                    for (size_t k = 0; k < h && !whole; k++)
                        for (size_t j = 0; j < columns; j++) to[k * I + j] += sums[k * WIDTH + j];
                }
            }
        }
    }
}

#endif
