/* op_cpu_linear_amx.c: linear layers for processors that multiply tiles of bf16 (op_cpu_amx.h), with what follows a
 * product done on its sums while they are in the first cache.
 *
 * A product's block is 32 rows by 32 columns. A weight lies packed: for every 32 columns of the result, for every 32 of
 * the inner index, two tiles. Weights that fit the second cache: a panel of 32 rows goes through all of them. Larger
 * ones: 32 columns' worth of them goes over many rows, the next 32 are fetched meanwhile. Either way at most CHUNK of
 * the inner index at a time, so that the operand that stays is in the first cache. The order of an element's sum
 * depends on the inner size alone: results do not change with the rows that are computed together. */
#include "model/op_cpu.h"
#include "model/op_cpu_amx.h"
#include "model/op_cpu_gelu_avx512.h"

#if defined(__x86_64__)
enum {
    CHUNK = 12,             /* tiles of the inner index */
    WHOLE = 16,             /* so many are one chunk */
    RESIDENT = 1300 << 10,  /* bytes of a weight that stays in the second cache */
    ROWS_BYTES = 800 << 10, /* of the left operand, where a larger weight passes by */
    ROWS_MIN = 128,         /* so that a weight does not pass by too often */
    ROWS_MAX = 1024,
    INNER_MAX = 8192, /* beyond, the rows would not stay in cache */
    CODES = 40        /* bytes of 32 codes of GELU': 32 low bytes, 8 with two bits of each */
};

#define FOUR(h) AMX_TILES(h), AMX_TILES((h) + 1), AMX_TILES((h) + 2), AMX_TILES((h) + 3)
static const amx_tiles heights[STEP + 1] = {AMX_TILES(1), FOUR(1),  FOUR(5),  FOUR(9), FOUR(13),
                                            FOUR(17),     FOUR(21), FOUR(25), FOUR(29)};

bool op_cpu_linear_amx_fits(const device *d, size_t in, size_t out)
{
    return d->ct == COMPUTE_BF16 && in % STEP == 0 && out % STEP == 0 && in <= INNER_MAX && out <= INNER_MAX &&
           op_cpu_matmul_has_amx();
}

AMX void op_cpu_linear_amx_pack(dv *packed, const dv *weight, size_t out, size_t in, bool back)
{
    const bf16 *w = (const bf16 *)weight;
    size_t inner = back ? out : in, columns = back ? in : out;
#pragma omp parallel for schedule(static)
    for (size_t c = 0; c < columns; c += SIDE)
        for (size_t k = 0; k < inner; k += STEP) {
            bf16 *to = (bf16 *)packed + (c / STEP * (inner / STEP) + k / STEP) * 2 * TILE + c % STEP / SIDE * TILE;
            if (back)
                amx_pairs_along(to, w + k * in + c, in);
            else
                amx_pairs_across(to, w + c * in + k, in);
        }
}

/* --- what follows a product: rows of 32 sums, as two vectors */

/* A block whose sums are ready: rows n .. n+rows, columns o .. o+31 of the result; c (rows,32) fp32, `row` apart. */
typedef struct {
    const float *c;
    size_t row, n, rows, o;
} ready;

/* What is the same for all rows of a block. */
typedef struct {
    __m512 add[2], scale[2];
    gelu_table gelu;
} columns;

AMX_INLINE columns columns_of(const op_cpu_linear_call *p, size_t o, op_cpu_after after)
{
    const float *bias = (const float *)p->bias, *ls = (const float *)p->ls;
    columns k;
    for (int i = 0; i < 2; i++) {
        k.add[i] = bias ? _mm512_loadu_ps(bias + o + SIDE * i) : _mm512_setzero_ps();
        k.scale[i] = after == AFTER_RESIDUAL && ls ? _mm512_loadu_ps(ls + o + SIDE * i) : _mm512_set1_ps(1);
    }
    if (after == AFTER_GELU || after == AFTER_GELU_SLOPE) k.gelu = gelu_table_load();
    return k;
}

AMX_INLINE __m512i code_of(__m512 slope)
{
    return _mm512_cvtps_epi32(
        _mm512_fmadd_ps(slope, _mm512_set1_ps(OP_SLOPE_STEPS), _mm512_set1_ps(OP_SLOPE_ZERO + 0.5f * OP_SLOPE_STEPS)));
}

/* 32 codes: their low bytes, of the two vectors in turn, then their high bits. A NaN's code is any: GELU says what it
 * is. */
AMX_INLINE void put_codes(uint8_t *to, __m512 first, __m512 second)
{
    __m512i w = _mm512_or_si512(_mm512_and_si512(code_of(first), _mm512_set1_epi32(1023)),
                                _mm512_slli_epi32(code_of(second), 16));
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi16_epi8(w));
    __m512i h = _mm512_and_si512(_mm512_srli_epi32(w, 8), _mm512_set1_epi32(0x30003));
    h = _mm512_and_si512(_mm512_or_si512(h, _mm512_srli_epi32(h, 14)), _mm512_set1_epi32(15));
    h = _mm512_or_si512(h, _mm512_srli_epi64(h, 28));
    _mm_storel_epi64((__m128i *)(to + STEP), _mm512_cvtepi64_epi8(h));
}

AMX_INLINE void get_codes(const uint8_t *from, __m512 *first, __m512 *second)
{
    __m512i h = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)(from + STEP)));
    h = _mm512_and_si512(_mm512_or_si512(h, _mm512_slli_epi64(h, 28)), _mm512_set1_epi32(15));
    h = _mm512_and_si512(_mm512_or_si512(h, _mm512_slli_epi32(h, 14)), _mm512_set1_epi32(0x30003));
    __m512i w = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)from));
    w = _mm512_or_si512(w, _mm512_slli_epi32(h, 8));
    const __m512 by = _mm512_set1_ps(1 / OP_SLOPE_STEPS), from0 = _mm512_set1_ps(-OP_SLOPE_ZERO / OP_SLOPE_STEPS);
    *first = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_and_si512(w, _mm512_set1_epi32(1023))), by, from0);
    *second = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(w, 16)), by, from0);
}

AMX_INLINE void finish_row(const op_cpu_linear_call *p, const columns *k, const ready *b, size_t r, op_cpu_after after)
{
    size_t at = (b->n + r) * p->out + b->o;
    uint8_t *code = (uint8_t *)p->slope + (b->n + r) * op_slope_bytes(p->out) + b->o / STEP * CODES;
    __m512 v[2], slope[2];
    if (after == AFTER_TIMES_SLOPE) get_codes(code, &slope[0], &slope[1]);
    for (int i = 0; i < 2; i++) {
        v[i] = _mm512_add_ps(_mm512_loadu_ps(b->c + r * b->row + SIDE * i), k->add[i]);
        if (after == AFTER_GELU && p->pre) amx_store((bf16 *)p->pre + at + SIDE * i, v[i]);
        if (after == AFTER_GELU) v[i] = gelu_of(&k->gelu, v[i], NULL);
        if (after == AFTER_GELU_SLOPE) v[i] = gelu_of(&k->gelu, v[i], &slope[i]);
        if (after == AFTER_TIMES_SLOPE) v[i] = _mm512_mul_ps(v[i], slope[i]);
        if (after == AFTER_RESIDUAL)
            v[i] = _mm512_fmadd_ps(v[i], k->scale[i], amx_load((const bf16 *)p->x + at + SIDE * i));
        if (after == AFTER_RESIDUAL && p->rest)
            v[i] = _mm512_add_ps(v[i], amx_load((const bf16 *)p->rest + at + SIDE * i));
    }
    if (after == AFTER_GELU_SLOPE) put_codes(code, slope[0], slope[1]);
    _mm512_storeu_si512((bf16 *)p->y + at, (__m512i)_mm512_cvtne2ps_pbh(v[1], v[0]));
    if (after == AFTER_RESIDUAL && p->rest)
        for (int i = 0; i < 2; i++)
            amx_store((bf16 *)p->rest + at + SIDE * i,
                      _mm512_sub_ps(v[i], amx_load((const bf16 *)p->y + at + SIDE * i)));
}

/* --- products */

/* Where a product's block is made: c (h,32), `row` apart, = or += a (h, 32 steps) times packed b. fetch: NULL, or what
 * the second cache will need next, 256 bytes a step. */
typedef struct {
    float *c;
    size_t row, a_row, steps;
    const bf16 *a, *b;
    bool add;
    const char *fetch;
} todo;

/* Two tiles high, with a ready block finished between its steps: the tiles' unit and the vectors' then work at once. */
AMX_INLINE void high_block(const op_cpu_linear_call *p, const todo *t, const ready *b, op_cpu_after after, bool fetch)
{
    size_t cs = t->row * sizeof *t->c, as = t->a_row * sizeof *t->a, r = 0, each = (b->rows + t->steps - 1) / t->steps;
    float *low = t->c + SIDE * t->row;
    const bf16 *a = t->a, *w = t->b;
    const char *next = t->fetch;
    columns k;
    if (b->rows) k = columns_of(p, b->o, after);
    if (t->add) {
        _tile_loadd(0, t->c, cs);
        _tile_loadd(1, t->c + SIDE, cs);
        _tile_loadd(2, low, cs);
        _tile_loadd(3, low + SIDE, cs);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (size_t s = 0; s < t->steps; s++, a += STEP, w += 2 * TILE) {
        _tile_loadd(6, w, 64);
        _tile_loadd(4, a, as);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a + SIDE * t->a_row, as);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, w + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        for (int i = 0; i < 4 && fetch; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
        for (size_t last = r + each < b->rows ? r + each : b->rows; r < last; r++) finish_row(p, &k, b, r, after);
    }
    _tile_stored(0, t->c, cs);
    _tile_stored(1, t->c + SIDE, cs);
    _tile_stored(2, low, cs);
    _tile_stored(3, low + SIDE, cs);
}

/* One tile high. */
AMX static void low_block(const todo *t)
{
    size_t cs = t->row * sizeof *t->c, as = t->a_row * sizeof *t->a;
    const bf16 *a = t->a, *w = t->b;
    if (t->add) {
        _tile_loadd(0, t->c, cs);
        _tile_loadd(1, t->c + SIDE, cs);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
    for (size_t s = 0; s < t->steps; s++, a += STEP, w += 2 * TILE) {
        _tile_loadd(4, a, as);
        _tile_loadd(6, w, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, t->c, cs);
    _tile_stored(1, t->c + SIDE, cs);
}

#define EACH_AFTER(call)                                                                                               \
    switch (p->after) {                                                                                                \
    case AFTER_NOTHING:                                                                                                \
        call(AFTER_NOTHING);                                                                                           \
        break;                                                                                                         \
    case AFTER_GELU:                                                                                                   \
        call(AFTER_GELU);                                                                                              \
        break;                                                                                                         \
    case AFTER_GELU_SLOPE:                                                                                             \
        call(AFTER_GELU_SLOPE);                                                                                        \
        break;                                                                                                         \
    case AFTER_TIMES_SLOPE:                                                                                            \
        call(AFTER_TIMES_SLOPE);                                                                                       \
        break;                                                                                                         \
    case AFTER_RESIDUAL:                                                                                               \
        call(AFTER_RESIDUAL);                                                                                          \
        break;                                                                                                         \
    }

AMX_INLINE void finish_as(const op_cpu_linear_call *p, const ready *b, op_cpu_after after)
{
    columns k = columns_of(p, b->o, after);
    for (size_t r = 0; r < b->rows; r++) finish_row(p, &k, b, r, after);
}

/* What is ready is finished now. */
AMX static void finish(const op_cpu_linear_call *p, ready *b)
{
#define FINISH(after) finish_as(p, b, after)
    if (b->rows) EACH_AFTER(FINISH)
    b->rows = 0;
}

/* A block h high; what was ready before is finished beside it. */
AMX static void block(const op_cpu_linear_call *p, const todo *t, size_t h, ready *b)
{
#define FETCHING(after) high_block(p, t, b, after, true)
#define HIGH(after) high_block(p, t, b, after, false)
    if (h <= SIDE) {
        finish(p, b);
        low_block(t);
    } else if (t->fetch) {
        EACH_AFTER(FETCHING)
    } else {
        EACH_AFTER(HIGH)
    }
    b->rows = 0;
}

AMX_INLINE void set_height(size_t *now, size_t h)
{
    if (*now == h) return;
    _tile_loadconfig(&heights[h]);
    *now = h;
}

/* Rows n .. n+h through the whole weight. sums: two blocks in turn; (32,O) where the inner index comes in chunks. */
AMX static void panel(const op_cpu_linear_call *p, size_t n, size_t h, float *sums)
{
    size_t steps = p->in / STEP, chunk = steps <= WHOLE ? steps : CHUNK;
    const bf16 *a = (const bf16 *)p->in_rows + n * p->in, *b = (const bf16 *)p->packed;
    ready done = {0};
    for (size_t k = 0; k < steps; k += chunk) {
        size_t now = steps - k < chunk ? steps - k : chunk;
        for (size_t o = 0; o < p->out; o += STEP) {
            todo t = {.c = chunk == steps ? sums + o / STEP % 2 * STEP * STEP : sums + o,
                      .row = chunk == steps ? STEP : p->out,
                      .a_row = p->in,
                      .steps = now,
                      .a = a + k * STEP,
                      .b = b + (o / STEP * steps + k) * 2 * TILE,
                      .add = k > 0};
            block(p, &t, h, &done);
            if (k + now == steps) done = (ready){t.c, t.row, n, h, o};
        }
    }
    finish(p, &done);
}

/* 32 columns from o on of rows first .. first+count. sums: (count,32). */
AMX static void stripe(const op_cpu_linear_call *p, size_t first, size_t count, size_t o, float *sums, size_t *height)
{
    size_t steps = p->in / STEP, chunk = steps <= WHOLE ? steps : CHUNK;
    ready done = {0};
    for (size_t k = 0; k < steps; k += chunk) {
        size_t now = steps - k < chunk ? steps - k : chunk;
        const bf16 *b = (const bf16 *)p->packed + (o / STEP * steps + k) * 2 * TILE;
        const char *fetch = (const char *)(b + now * 2 * TILE), *end = fetch + now * 2 * TILE * sizeof *b;
        for (size_t n = 0; n < count; n += STEP, fetch += 256 * now) {
            size_t h = count - n < STEP ? count - n : STEP;
            todo t = {.c = sums + n * STEP,
                      .row = STEP,
                      .a_row = p->in,
                      .steps = now,
                      .a = (const bf16 *)p->in_rows + (first + n) * p->in + k * STEP,
                      .b = b,
                      .add = k > 0,
                      .fetch = fetch < end ? fetch : NULL};
            set_height(height, h);
            block(p, &t, h, &done);
            if (k + now == steps) done = (ready){t.c, STEP, first + n, h, o};
        }
    }
    finish(p, &done);
}

/* Rows at once where the weight passes by. */
static size_t rows_at_once(const op_cpu_linear_call *p)
{
    size_t n = ROWS_BYTES / (p->in * sizeof(bf16)) / STEP * STEP;
    n = n < ROWS_MIN ? ROWS_MIN : n > ROWS_MAX ? ROWS_MAX : n;
    return n < p->N ? n : p->N;
}

AMX static void run(device *d, const op_cpu_linear_call *p, bool resident)
{
    size_t height = STEP, group = resident ? STEP : rows_at_once(p);
    float *sums = op_cpu_row(d, 0); /* the thread's four rows, one after the other */
    amx_state before;
    amx_begin(&before, &heights[STEP]);
    if (resident) {
#pragma omp for schedule(static)
        for (size_t n = 0; n < p->N; n += group) {
            size_t h = p->N - n < STEP ? p->N - n : STEP;
            set_height(&height, h);
            panel(p, n, h, sums);
        }
    } else {
        for (size_t n = 0; n < p->N; n += group)
#pragma omp for schedule(static) nowait
            for (size_t o = 0; o < p->out; o += STEP)
                stripe(p, n, p->N - n < group ? p->N - n : group, o, sums, &height);
    }
    amx_end(&before);
}

void op_cpu_linear_amx_run(device *d, const op_cpu_linear_call *p)
{
    bool panels = p->in / STEP <= WHOLE || p->out * STEP <= 4 * OP_CPU_ROW_MAX;
    bool resident = panels && p->in * p->out * sizeof(bf16) <= RESIDENT;
#pragma omp parallel num_threads(op_cpu_in_tile() ? 1 : d->threads)
    run(d, p, resident);
}

#else

bool op_cpu_linear_amx_fits(const device *d, size_t in, size_t out)
{
    (void)d, (void)in, (void)out;
    return false;
}
void op_cpu_linear_amx_pack(dv *packed, const dv *weight, size_t out, size_t in, bool back)
{
    (void)packed, (void)weight, (void)out, (void)in, (void)back;
}
void op_cpu_linear_amx_run(device *d, const op_cpu_linear_call *p)
{
    (void)p;
    op_cpu_fail(d, ERR_INTERNAL, "no AMX on this processor");
}

#endif
