/* op_cpu_dw_amx.c: gradients of weights on AMX tiles: dW (R,I) += dY^T X. The inner index is the rows, N of them, taken
 * in chunks: X of a chunk is packed once, by all threads, as the right operand; then each thread turns 32 columns of dY
 * at a time into rows and adds their products to dW, where the sums lie. The order of an element's sum depends on N and
 * I alone. */
#include "model/op_cpu.h"
#include "model/op_cpu_amx.h"

#if defined(__x86_64__)

enum {
    CHUNK_MAX = 1024,               /* rows at once: the turned columns take 64 KB */
    PACKED_BYTES = OP_CPU_DW_BYTES, /* of a chunk of X */
    CACHED_BYTES = 800 << 10        /* of that, as long as there are 256 rows */
};

static size_t chunk_of(size_t I)
{
    size_t row = I * sizeof(bf16), n = CACHED_BYTES / row / STEP * STEP;
    if (n < 256) n = PACKED_BYTES / row / STEP * STEP < 256 ? PACKED_BYTES / row / STEP * STEP : 256;
    return n < CHUNK_MAX ? n : CHUNK_MAX;
}

bool op_cpu_dw_amx_fits(const device *d, size_t R, size_t I)
{
    return d->ct == COMPUTE_BF16 && R % STEP == 0 && I % STEP == 0 && chunk_of(I) >= STEP && !op_cpu_in_tile() &&
           op_cpu_matmul_has_amx();
}

/* Rows first .. first+31 of x (N,C), columns c .. c+31; beyond N zeros: whole says that there is no need for that. */
AMX_INLINE const bf16 *square(const bf16 *x, size_t N, size_t C, size_t first, size_t c, bf16 *spare, size_t *row)
{
    *row = C;
    if (first + STEP <= N) return x + first * C + c;
    *row = STEP;
    for (size_t r = 0; r < STEP; r++)
        if (first + r < N)
            memcpy(spare + r * STEP, x + (first + r) * C + c, STEP * sizeof *x);
        else
            memset(spare + r * STEP, 0, STEP * sizeof *x);
    return spare;
}

/* X of the rows from n on, steps * 32 of them: tiles (step, columns/16), pairs along the rows. */
AMX static void pack(bf16 *out, const bf16 *x, size_t N, size_t I, size_t n, size_t step)
{
    bf16 spare[STEP * STEP];
    for (size_t c = 0; c < I; c += STEP) {
        size_t row;
        const bf16 *from = square(x, N, I, n + step * STEP, c, spare, &row);
        amx_pairs_along(out + (step * (I / SIDE) + c / SIDE) * TILE, from, row);
        amx_pairs_along(out + (step * (I / SIDE) + c / SIDE + 1) * TILE, from + SIDE, row);
    }
}

/* out (32, 32 steps) = the transpose of columns r .. r+31 of dy. */
AMX static void turn(bf16 *out, const bf16 *dy, size_t N, size_t R, size_t n, size_t steps, size_t r)
{
    bf16 spare[STEP * STEP];
    size_t width = steps * STEP, row;
    for (size_t s = 0; s < steps; s++) {
        const bf16 *from = square(dy, N, R, n + s * STEP, r, spare, &row);
        for (size_t half = 0; half < STEP; half += SIDE) { /* 16 rows of dy become 16 columns */
            __m512i v[SIDE];
            for (size_t i = 0; i < SIDE; i++) v[i] = _mm512_loadu_si512(from + (half + i) * row);
            amx_transpose(v);
            for (size_t i = 0; i < SIDE; i++) {
                bf16 *even = out + 2 * i * width + s * STEP + half;
                _mm256_storeu_si256((__m256i *)even, _mm512_cvtepi32_epi16(v[i]));
                _mm256_storeu_si256((__m256i *)(even + width), _mm512_cvtepi32_epi16(_mm512_srli_epi32(v[i], 16)));
            }
        }
    }
}

static const amx_tiles tiles_whole = AMX_TILES(STEP);

AMX static void stripe(float *dw, const bf16 *turned, const bf16 *packed, size_t I, size_t steps)
{
    amx_state before;
    amx_begin(&before, &tiles_whole);
    for (size_t c = 0; c < I; c += STEP)
        amx_product(dw + c, I, (amx_left){turned, steps * STEP},
                    (amx_right){packed + c / SIDE * TILE, I / SIDE * TILE, TILE}, steps, true);
    amx_end(&before);
}

void op_cpu_dw_amx_run(device *d, dv *dw, const dv *dy, const dv *x, size_t R, size_t N, size_t I)
{
    bf16 *packed = ((op_cpu *)d->impl)->dw;
    const bf16 *from = (const bf16 *)dy, *in = (const bf16 *)x;
    size_t chunk = chunk_of(I);
#pragma omp parallel num_threads(d->threads)
    for (size_t n = 0; n < N; n += chunk) {
        size_t left = N - n < chunk ? N - n : chunk, steps = (left + STEP - 1) / STEP;
        bf16 *turned = (bf16 *)op_cpu_row(d, 0);
#pragma omp for schedule(static)
        for (size_t s = 0; s < steps; s++) pack(packed, in, N, I, n, s);
#pragma omp for schedule(static)
        for (size_t r = 0; r < R; r += STEP) {
            turn(turned, from, N, R, n, steps, r);
            stripe((float *)dw + r * I, turned, packed, I, steps);
        }
    }
}

#else

bool op_cpu_dw_amx_fits(const device *d, size_t R, size_t I)
{
    (void)d, (void)R, (void)I;
    return false;
}
void op_cpu_dw_amx_run(device *d, dv *dw, const dv *dy, const dv *x, size_t R, size_t N, size_t I)
{
    (void)dw, (void)dy, (void)x, (void)R, (void)N, (void)I;
    op_cpu_fail(d, ERR_INTERNAL, "no AMX on this processor");
}

#endif
