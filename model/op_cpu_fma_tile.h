/* op_cpu_fma_tile.h: the block that all products of op_cpu_fma are made of: up to ROWS rows by WIDTH columns of sums in
 * registers. Included with LANES (floats of a vector) and ROWS set, and the target that they need. Limit: two
 * multiply-adds a cycle; a step of the inner index loads two vectors and a broadcast for each row. */
#ifndef RADAPT_OP_CPU_FMA_TILE_H
#define RADAPT_OP_CPU_FMA_TILE_H
#include "model/op_cpu_fma.h"

#define INLINE static inline __attribute__((always_inline, unused))

enum { WIDTH = 2 * LANES, INNER = OP_CPU_FMA_INNER, ROW = OP_CPU_FMA_ROW };

/* In memory: at any address, of anything's type. */
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t mask __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE vec widen(halves h)
{
#if defined(__AVX512F__) /* of the conversion, compilers make halves */
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#else
    return (vec)(__builtin_convertvector(h, words) << 16);
#endif
}

/* To nearest even; NaN stays NaN. */
INLINE halves narrow(vec v)
{
    words u = (words)v, rounded = u + 0x7fff + (u >> 16 & 1);
#if defined(__AVX512F__)
    __mmask16 is_nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    __m512i bits = _mm512_mask_or_epi32((__m512i)rounded, is_nan, (__m512i)u, _mm512_set1_epi32(0x400000));
    return (halves)_mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
#else
    mask is_nan = v != v;
    return __builtin_convertvector((((words)is_nan & (u | 0x400000)) | (~(words)is_nan & rounded)) >> 16, halves);
#endif
}

/* A vector from element `at` of ct values (half: bf16), and back. */
INLINE vec get(const void *x, size_t at, bool half)
{
    return half ? widen(*(const halves *)((const uint16_t *)x + at)) : *(const vec *)((const float *)x + at);
}

INLINE void put(void *y, size_t at, vec v, bool half)
{
    if (half)
        *(halves *)((uint16_t *)y + at) = narrow(v);
    else
        *(vec *)((float *)y + at) = v;
}

INLINE float get_one(const void *x, size_t at, bool half)
{
    return half ? op_bf16_to_f32(((const uint16_t *)x)[at]) : ((const float *)x)[at];
}

INLINE void put_one(void *y, size_t at, float v, bool half)
{
    if (half)
        ((uint16_t *)y)[at] = op_f32_to_bf16(v);
    else
        ((float *)y)[at] = v;
}

/* n values as fp32, times `by`; and back. */
INLINE void get_row(float *out, const void *x, size_t at, size_t n, float by, bool half)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) *(vec *)(out + i) = get(x, at + i, half) * by;
    for (; i < n; i++) out[i] = get_one(x, at + i, half) * by;
}

INLINE void put_row(void *y, size_t at, const float *x, size_t n, float by, bool half)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) put(y, at + i, *(const vec *)(x + i) * by, half);
    for (; i < n; i++) put_one(y, at + i, x[i] * by, half);
}

INLINE vec pick(mask m, vec yes, vec no)
{
    return (vec)((m & (mask)yes) | (~m & (mask)no));
}

/* op_erf and op_exp of op_cpu.h, for vectors: the same polynomials; exp stops at e^-80, so that what it is multiplied
 * by does not leave the normal numbers. NaN stays NaN. */
INLINE vec erf_of(vec x)
{
    x = pick(x < -4.0f, (vec){0} - 4.0f, pick(x > 4.0f, (vec){0} + 4.0f, x));
    vec t = x * x, a = -2.72614225801306e-10f * t + 2.77068142495902e-08f, b = -1.45660718464996e-05f * t;
    a = a * t - 2.10102402082508e-06f;
    a = a * t - 5.69250639462346e-05f;
    a = a * t - 7.34990630326855e-04f;
    a = a * t - 2.95459980854025e-03f;
    a = a * t - 1.60960333262415e-02f;
    b = (b - 2.13374055278905e-04f) * t - 1.68282697438203e-03f;
    b = b * t - 7.37332916720468e-03f;
    b = b * t - 1.42647390514189e-02f;
    return x * a / b;
}

INLINE vec exp_of(vec x)
{
    x = pick(x < -80.0f, (vec){0} - 80.0f, pick(x > 88.0f, (vec){0} + 88.0f, x));
    vec shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f, p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vec)(((words)shifted - 0x4b400000u + 127) << 23);
}

/* The left operand's element (row r, inner i) lies at r * ROW + i: ACROSS; at r + i * ROW: DOWN; or, packed in blocks
 * of a tile's height, at r + i * LANES: PACKED. Known when it is compiled, so that addresses need no arithmetic. */
typedef enum { ACROSS, DOWN, PACKED } side;

/* One step of the inner index. */
INLINE void tile_step(vec s[ROWS][2], const float *a, vec b0, vec b1, side from, const int h)
{
#pragma GCC unroll 16
    for (int r = 0; r < h; r++) {
        float x = a[from == ACROSS ? r * ROW : r];
        s[r][0] += x * b0;
        s[r][1] += x * b1;
    }
}

/* What a block is made of: c (h,WIDTH), c_row apart, = or (add) += a (h,k) times b (k,WIDTH). packed: NULL, or what b
 * is to be, as a packed bf16 weight: a row of it has the values of the two vectors in turn; it is left in b for the
 * blocks that follow. next: NULL, or what the second cache will need soon: NEXT bytes of it for each of k are fetched
 * meanwhile, so that the loads of this product do not wait for them. */
typedef struct {
    float *c;
    size_t c_row;
    const float *a;
    const float *b;
    size_t k;
    bool add;
    const uint16_t *packed;
    const char *next;
} tile;

enum { UNROLL = 4, NEXT = 64 / UNROLL }; /* of the inner index: with fewer, counting takes the slots that loads need */

/* Row i of the right operand. */
INLINE void tile_right(vec b[2], float *right, const uint16_t *packed, bool widening)
{
    if (!widening) {
        b[0] = *(const vec *)right;
        b[1] = *(const vec *)(right + LANES);
        return;
    }
    words both = *(const words *)packed;
    *(vec *)right = b[0] = (vec)(both << 16);
    *(vec *)(right + LANES) = b[1] = (vec)(both & 0xffff0000u);
}

INLINE void tile_of(const tile *t, side from, bool widening, const int h)
{
    vec s[ROWS][2], b[2];
    const float *a = t->a;
    float *right = (float *)t->b; /* written where it is made from packed */
    const uint16_t *packed = widening ? t->packed : (const uint16_t *)t->b;
    const char *next = t->next ? t->next : (const char *)right;
    const size_t apart = from == ACROSS ? 1 : from == DOWN ? ROW : LANES;
    size_t i = 0, k = t->k;
#pragma GCC unroll 16
    for (int r = 0; r < h; r++)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) s[r][j] = t->add ? *(vec *)(t->c + (size_t)r * t->c_row + j * LANES) : (vec){0};
    for (; i + UNROLL <= k; i += UNROLL, a += UNROLL * apart, right += UNROLL * WIDTH, packed += UNROLL * WIDTH) {
        if (from == ACROSS) __builtin_prefetch(next + NEXT * i, 0, 2);
#pragma GCC unroll 4
        for (int u = 0; u < UNROLL; u++) {
            tile_right(b, right + u * WIDTH, packed + u * WIDTH, widening);
            tile_step(s, a + (size_t)u * apart, b[0], b[1], from, h);
        }
    }
    for (; i < k; i++, a += apart, right += WIDTH, packed += WIDTH) {
        tile_right(b, right, packed, widening);
        tile_step(s, a, b[0], b[1], from, h);
    }
#pragma GCC unroll 16
    for (int r = 0; r < h; r++)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) *(vec *)(t->c + (size_t)r * t->c_row + j * LANES) = s[r][j];
}

/* A function for every height: in one, compilers run out of registers. */
typedef void tile_fn(const tile *t);
#define TILE(n)                                                                                                        \
    static void across_##n(const tile *t)                                                                              \
    {                                                                                                                  \
        tile_of(t, ACROSS, false, n);                                                                                  \
    }                                                                                                                  \
    static void widening_##n(const tile *t)                                                                            \
    {                                                                                                                  \
        tile_of(t, ACROSS, true, n);                                                                                   \
    }                                                                                                                  \
    static void down_##n(const tile *t)                                                                                \
    {                                                                                                                  \
        tile_of(t, DOWN, false, n);                                                                                    \
    }                                                                                                                  \
    static void packed_##n(const tile *t)                                                                              \
    {                                                                                                                  \
        tile_of(t, PACKED, false, n);                                                                                  \
    }
TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)
#if LANES == 16
TILE(7)
TILE(8)
TILE(9)
TILE(10)
TILE(11)
TILE(12)
TILE(13)
TILE(14)
#define HEIGHTS(from)                                                                                                  \
    from##_1, from##_2, from##_3, from##_4, from##_5, from##_6, from##_7, from##_8, from##_9, from##_10, from##_11,    \
        from##_12, from##_13, from##_14
#else
#define HEIGHTS(from) from##_1, from##_2, from##_3, from##_4, from##_5, from##_6
#endif

/* h rows. */
static void tile_across(const tile *t, size_t h)
{
    static tile_fn *const of[2][ROWS] = {{HEIGHTS(across)}, {HEIGHTS(widening)}};
    of[t->packed != NULL][h - 1](t);
}

static void tile_down(const tile *t, size_t h)
{
    static tile_fn *const of[ROWS] = {HEIGHTS(down)};
    of[h - 1](t);
}

static void tile_packed(const tile *t, size_t h)
{
    static tile_fn *const of[ROWS] = {HEIGHTS(packed)};
    of[h - 1](t);
}

/* n rows in blocks of at most ROWS, of nearly one height: where block i of `blocks` begins. */
INLINE size_t blocks_of(size_t n)
{
    return (n + ROWS - 1) / ROWS;
}

INLINE size_t block_at(size_t n, size_t blocks, size_t i)
{
    return n * i / blocks;
}

/* A panel (k,WIDTH) of x turned: its columns are rows of x, x_row apart; beyond `columns` zeros. */
INLINE void turn(float *out, const void *x, size_t from, size_t x_row, size_t columns, size_t k, bool half)
{
    for (size_t i = 0; i < k; i += 8) {
        size_t m = k - i < 8 ? k - i : 8;
        for (size_t j = 0; j < WIDTH; j++)
            for (size_t s = 0; s < m; s++)
                out[(i + s) * WIDTH + j] = j < columns ? get_one(x, from + j * x_row + i + s, half) : 0;
    }
}

/* A panel (k,WIDTH) from columns `from`.. of k rows of x, x_row apart; beyond `columns` zeros. */
INLINE void panel_of(float *out, const void *x, size_t from, size_t x_row, size_t columns, size_t k, float by,
                     bool half)
{
    for (size_t i = 0; i < k; i++, out += WIDTH)
        if (columns >= WIDTH)
            for (int j = 0; j < WIDTH; j += LANES) *(vec *)(out + j) = get(x, from + i * x_row + j, half) * by;
        else
            for (size_t j = 0; j < WIDTH; j++) out[j] = j < columns ? get_one(x, from + i * x_row + j, half) * by : 0;
}

#endif
