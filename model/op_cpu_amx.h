/* op_cpu_amx.h: what the files that multiply tiles of bf16 (Intel AMX) share; none of it exists on other processors. A
 * tile is 16 rows of 64 bytes; the right operand of a product holds pairs of its rows side by side (Intel SDM,
 * TDPBF16PS), so "pairs along x" says which index of a matrix is paired. */
#ifndef RADAPT_OP_CPU_AMX_H
#define RADAPT_OP_CPU_AMX_H
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AMX __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define AMX_INLINE AMX static inline __attribute__((always_inline, unused))

typedef uint16_t bf16;

enum {
    SIDE = 16,             /* rows of a tile, and fp32 columns */
    TILE = 512,            /* bf16 of a tile */
    STEP = 32,             /* rows and columns of a product's block; bf16 columns of a tile */
    FLUSH_TO_ZERO = 0x8040 /* MXCSR: FTZ and DAZ */
};

/* Eight tiles. Not built on the stack: compilers know of the instruction's operand no more than the first bytes. */
typedef struct {
    unsigned char palette, start, reserved[14];
    uint16_t column_bytes[16];
    unsigned char rows[16];
} __attribute__((aligned(64))) amx_tiles;

/* A block of h rows: tiles 0 1 / 2 3 are its sums, 4 / 5 the left operand, 6 7 the right one. h > 16: two tiles high.
 */
#define AMX_TILES(h)                                                                                                   \
    {                                                                                                                  \
        .palette = 1, .column_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {                                      \
            (h) < 16 ? (h) : 16,                                                                                       \
            (h) < 16 ? (h) : 16,                                                                                       \
            (h) > 16 ? (h)-16 : 1,                                                                                     \
            (h) > 16 ? (h)-16 : 1,                                                                                     \
            (h) < 16 ? (h) : 16,                                                                                       \
            (h) > 16 ? (h)-16 : 1,                                                                                     \
            16,                                                                                                        \
            16                                                                                                         \
        }                                                                                                              \
    }

/* The thread's tile configuration is oneDNN's to set: what it was is put back. Numbers too small to be normal become 0
 * meanwhile, as they do in the products anyway: probabilities often are, and cost a hundred times the others. */
typedef struct {
    amx_tiles config;
    unsigned csr;
} amx_state;

AMX_INLINE void amx_begin(amx_state *before, const amx_tiles *now)
{
    before->config = (amx_tiles){0};
    _tile_storeconfig(&before->config);
    _tile_loadconfig(now);
    before->csr = _mm_getcsr();
    _mm_setcsr(before->csr | FLUSH_TO_ZERO);
}

AMX_INLINE void amx_end(const amx_state *before)
{
    if (before->config.palette)
        _tile_loadconfig(&before->config);
    else
        _tile_release();
    _mm_setcsr(before->csr);
}

/* 16 x 16 values of 32 bits: rows become columns. */
AMX_INLINE void amx_transpose(__m512i r[SIDE])
{
    __m512i t[SIDE];
    for (int i = 0; i < SIDE; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < SIDE; i += 4) { /* r[i + k]: columns k, k+4, k+8, k+12 of rows i..i+3 */
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int k = 0; k < 4; k++) {
        t[k] = _mm512_shuffle_i32x4(r[k], r[k + 4], 0x88);
        t[k + 4] = _mm512_shuffle_i32x4(r[k], r[k + 4], 0xdd);
        t[k + 8] = _mm512_shuffle_i32x4(r[k + 8], r[k + 12], 0x88);
        t[k + 12] = _mm512_shuffle_i32x4(r[k + 8], r[k + 12], 0xdd);
    }
    for (int k = 0; k < 4; k++) {
        r[k] = _mm512_shuffle_i32x4(t[k], t[k + 8], 0x88);
        r[k + 8] = _mm512_shuffle_i32x4(t[k], t[k + 8], 0xdd);
        r[k + 4] = _mm512_shuffle_i32x4(t[k + 4], t[k + 12], 0x88);
        r[k + 12] = _mm512_shuffle_i32x4(t[k + 4], t[k + 12], 0xdd);
    }
}

/* A tile of a right operand, pairs across: 32 values of each of 16 rows of x become 16 columns. */
AMX_INLINE void amx_pairs_across(bf16 *out, const bf16 *x, size_t row)
{
    __m512i r[SIDE];
    for (size_t i = 0; i < SIDE; i++) r[i] = _mm512_loadu_si512(x + i * row);
    amx_transpose(r);
    for (size_t i = 0; i < SIDE; i++) _mm512_storeu_si512(out + i * STEP, r[i]);
}

/* A tile of a right operand, pairs along the rows: 16 columns of 32 rows of x. */
AMX_INLINE void amx_pairs_along(bf16 *out, const bf16 *x, size_t row)
{
    for (size_t r = 0; r < SIDE; r++) {
        const bf16 *even = x + 2 * r * row;
        __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)even));
        __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(even + row)));
        _mm512_storeu_si512(out + r * STEP, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
    }
}

AMX_INLINE __m512 amx_load(const bf16 *x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16));
}

AMX_INLINE void amx_store(bf16 *out, __m512 x)
{
    _mm256_storeu_si256((__m256i *)out, (__m256i)_mm512_cvtneps_pbh(x));
}

/* A left operand: rows of `row` elements. A right operand: tiles, `step` elements from one 32 of the inner index to the
 * next, `next` elements from one 16 columns to the next. */
typedef struct {
    const bf16 *at;
    size_t row;
} amx_left;
typedef struct {
    const bf16 *at;
    size_t step, next;
} amx_right;

/* c (STEP,STEP) fp32, rows of `row` elements, = or += a b over 32 * steps of the inner index. */
AMX __attribute__((unused)) static void amx_product(float *c, size_t row, amx_left a, amx_right b, size_t steps,
                                                    bool add)
{
    size_t cs = row * sizeof *c, as = a.row * sizeof(bf16);
    float *low = c + SIDE * row;
    if (add) {
        _tile_loadd(0, c, cs);
        _tile_loadd(1, c + SIDE, cs);
        _tile_loadd(2, low, cs);
        _tile_loadd(3, low + SIDE, cs);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (size_t k = 0; k < steps; k++, a.at += STEP, b.at += b.step) {
        _tile_loadd(6, b.at, 64);
        _tile_loadd(4, a.at, as);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a.at + SIDE * a.row, as);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, b.at + b.next, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, cs);
    _tile_stored(1, c + SIDE, cs);
    _tile_stored(2, low, cs);
    _tile_stored(3, low + SIDE, cs);
}

#endif
#endif
