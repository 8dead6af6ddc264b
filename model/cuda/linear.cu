/* linear.cu: products that end in GELU or in its derivative, on tensor cores, where cuBLASLt would leave their result
 * in memory for another pass: its GELU is the tanh form, and it knows nothing of slopes in 10 bits. Of a layer's F
 * hidden units that pass moves 4 NF bytes, as long on an H100 as the product itself takes at its floor.
 *
 * A block of four warps makes a tile of 128 rows and 128 columns, each warp 64 by 64 of them in registers. Operands
 * pass through shared memory in steps of 32 of the inner index, three steps in turn, two on their way while one is
 * multiplied. Two blocks share a multiprocessor, so that one's end, some 45 instructions a value, runs beside the
 * other's products. The end goes through shared memory, 16 rows of a warp at a time, for whole sectors of memory.
 *
 * In shared memory 16 bytes are a chunk, and chunks of a row are swapped by its number, so that the 8 rows that
 * ldmatrix reads together lie in different banks. */
#include "model/cuda/gelu.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS, BLOCKS = 2 /* of a multiprocessor */;
constexpr int TILE = 128, STEP = 32, STAGES = 3, MINE = 64; /* MINE: rows and columns of a warp */
constexpr int CHUNK = 8;                                    /* bf16 values of 16 bytes */
constexpr int PANEL = TILE * STEP;                          /* values of an operand in a step */

typedef enum { END_GELU, END_GELU_PRE, END_GELU_SLOPE, END_TIMES_SLOPE } product_end;

/* d (N,F) = end(a (N,K) b), rows one after the other. b is W (F,K) in a forward product, transposed, and W (K,F) in one
 * for dX, which END_TIMES_SLOPE is. */
typedef struct {
    const bf16 *a, *b;
    bf16 *d, *pre;
    uint8_t *slope;    /* N rows of op_slope_bytes(F) */
    const float *bias; /* or NULL */
    size_t N, F, K;
} product_call;

/* What a warp's 16 rows of results pass through. */
struct warp_rows {
    bf16 y[16][MINE + CHUNK];
    uint8_t low[16][MINE + 16], high[16][MINE / 4];
};
static_assert(WARPS * sizeof(warp_rows) <= STAGES * 2 * PANEL * sizeof(bf16), "the end fits where operands were");

static __device__ __forceinline__ int lane()
{
    return threadIdx.x % 32;
}

/* Some smaller values at p as one V, to whose size it is aligned. */
template <typename V> static __device__ __forceinline__ V &as(void *p)
{
    return *static_cast<V *>(p);
}
template <typename V> static __device__ __forceinline__ V &as(const void *p)
{
    return *static_cast<V *>(p);
}

/* --- operands in shared memory */

/* Place of chunk c in row r of a panel (TILE, STEP): two rows are 128 bytes, and swap by pairs. */
static __device__ __forceinline__ int narrow_at(int r, int c)
{
    return r * STEP + (c ^ (r >> 1 & 3)) * CHUNK;
}
/* The same of a panel (STEP, TILE). */
static __device__ __forceinline__ int wide_at(int r, int c)
{
    return r * TILE + (c ^ (r & 7)) * CHUNK;
}

/* Rows first .. first+TILE of x (most, K), columns k .. k+STEP, under way; zeros beyond. */
static __device__ __forceinline__ void load_narrow(bf16 *panel, const bf16 *x, size_t first, size_t most, size_t k,
                                                   size_t K)
{
#pragma unroll
    for (int i = 0; i < PANEL / CHUNK / THREADS; i++) {
        int at = threadIdx.x + i * THREADS, r = at / (STEP / CHUNK), c = at % (STEP / CHUNK);
        bool in = first + r < most && k + c * CHUNK < K;
        cp_async16(panel + narrow_at(r, c), in ? x + (first + r) * K + k + c * CHUNK : x, in);
    }
}
/* Rows k .. k+STEP of x (K, F), columns first .. first+TILE. */
static __device__ __forceinline__ void load_wide(bf16 *panel, const bf16 *x, size_t first, size_t F, size_t k, size_t K)
{
#pragma unroll
    for (int i = 0; i < PANEL / CHUNK / THREADS; i++) {
        int at = threadIdx.x + i * THREADS, r = at / (TILE / CHUNK), c = at % (TILE / CHUNK);
        bool in = k + r < K && first + c * CHUNK < F;
        cp_async16(panel + wide_at(r, c), in ? x + (k + r) * F + first + c * CHUNK : x, in);
    }
}

/* Both operands of the step from k on; beyond K nothing, but a group of copies all the same. */
template <product_end END>
static __device__ __forceinline__ void load_step(bf16 *panels, const product_call &p, size_t row, size_t column,
                                                 size_t k)
{
    if (k < p.K) {
        load_narrow(panels, p.a, row, p.N, k, p.K);
        if (END == END_TIMES_SLOPE)
            load_wide(panels + PANEL, p.b, column, p.F, k, p.K);
        else
            load_narrow(panels + PANEL, p.b, column, p.F, k, p.K);
    }
    cp_async_commit();
}

/* sum[i][j]: rows i*16 and columns j*8 of the warp's, += of one step. Lane l has rows l/4 and l/4 + 8, columns l%4 * 2
 * and the next. */
template <product_end END>
static __device__ __forceinline__ void multiply(float (&sum)[MINE / 16][MINE / 8][4], const bf16 *panels, int row,
                                                int column)
{
#pragma unroll
    for (int k = 0; k < STEP; k += 16) {
        unsigned a[MINE / 16][4], b[MINE / 16][4];
#pragma unroll
        for (int i = 0; i < MINE / 16; i++)
            ldmatrix_x4(a[i], panels + narrow_at(row + i * 16 + lane() % 16, k / CHUNK + lane() / 16));
#pragma unroll
        for (int j = 0; j < MINE / 16; j++)
            if (END == END_TIMES_SLOPE)
                ldmatrix_x4_trans(b[j],
                                  panels + PANEL + wide_at(k + lane() % 16, column / CHUNK + j * 2 + lane() / 16));
            else
                ldmatrix_x4(b[j],
                            panels + PANEL +
                                narrow_at(column + j * 16 + lane() % 8 + lane() / 16 * 8, k / CHUNK + lane() / 8 % 2));
#pragma unroll
        for (int i = 0; i < MINE / 16; i++)
#pragma unroll
            for (int j = 0; j < MINE / 8; j++) {
                unsigned right[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                mma_bf16_16816(sum[i][j], a[i], right, sum[i][j]);
            }
    }
}

/* --- the end */

static __device__ __forceinline__ void put_two(bf16 *to, float a, float b)
{
    unsigned low = __bfloat16_as_ushort(__float2bfloat16(a)), high = __bfloat16_as_ushort(__float2bfloat16(b));
    as<unsigned>(to) = low | high << 16;
}

/* The codes of two columns, of which c is the first, to a row: neighbouring lanes have the four of a byte of high bits.
 */
static __device__ __forceinline__ void put_codes(warp_rows *w, int r, int c, unsigned first, unsigned second)
{
    unsigned bits = first >> 8 | second >> 8 << 2, other = __shfl_down_sync(0xffffffffu, bits, 1);
    as<uint16_t>(&w->low[r][c]) = (uint16_t)((first & 255) | (second & 255) << 8);
    if (lane() % 2 == 0) w->high[r][c / 4] = (uint8_t)(bits | other << 4);
}
static __device__ __forceinline__ void take_codes(unsigned &first, unsigned &second, const warp_rows *w, int r, int c)
{
    unsigned bits = w->high[r][c / 4] >> c % 4 * 2, low = as<const uint16_t>(&w->low[r][c]);
    first = (low & 255) | (bits & 3) << 8;
    second = low >> 8 | (bits >> 2 & 3) << 8;
}

/* f(r, c) for the groups of 8 columns of the warp's 16 rows that exist, some a lane. */
template <typename F>
static __device__ __forceinline__ void each_group(const product_call &p, size_t row, size_t column, F f)
{
#pragma unroll
    for (int i = 0; i < 16 * MINE / CHUNK / 32; i++) {
        int at = lane() + i * 32, r = at / (MINE / CHUNK), c = at % (MINE / CHUNK) * CHUNK;
        if (row + r < p.N && column + c < p.F) f(r, c);
    }
}

static __device__ __forceinline__ void store_rows(const product_call &p, bf16 *to, const warp_rows *w, size_t row,
                                                  size_t column)
{
    __syncwarp();
    each_group(p, row, column,
               [&](int r, int c) { as<uint4>(to + (row + r) * p.F + column + c) = as<const uint4>(&w->y[r][c]); });
}

/* Low and high bits of 8 codes: where they are in memory. */
static __device__ __forceinline__ uint8_t *codes_low(const product_call &p, size_t row, size_t column)
{
    return p.slope + row * (p.F + p.F / 4) + column;
}
static __device__ __forceinline__ uint8_t *codes_high(const product_call &p, size_t row, size_t column)
{
    return p.slope + row * (p.F + p.F / 4) + p.F + column / 4;
}

static __device__ __forceinline__ void load_codes(const product_call &p, warp_rows *w, size_t row, size_t column)
{
    each_group(p, row, column, [&](int r, int c) {
        as<uint2>(&w->low[r][c]) = as<const uint2>(codes_low(p, row + r, column + c));
        as<uint16_t>(&w->high[r][c / 4]) = as<const uint16_t>(codes_high(p, row + r, column + c));
    });
    __syncwarp();
}
static __device__ __forceinline__ void store_codes(const product_call &p, const warp_rows *w, size_t row, size_t column)
{
    each_group(p, row, column, [&](int r, int c) {
        as<uint2>(codes_low(p, row + r, column + c)) = as<const uint2>(&w->low[r][c]);
        as<uint16_t>(codes_high(p, row + r, column + c)) = as<const uint16_t>(&w->high[r][c / 4]);
    });
}

/* Sums of 16 rows, from `row` on, and the warp's columns: to memory. */
template <product_end END>
static __device__ __forceinline__ void finish(const product_call &p, warp_rows *w, float (&sum)[MINE / 8][4],
                                              size_t row, size_t column)
{
    __syncwarp(); /* the rows before have left */
    if (END == END_TIMES_SLOPE) load_codes(p, w, row, column);
#pragma unroll
    for (int j = 0; j < MINE / 8; j++) {
        int c = j * 8 + lane() % 4 * 2;
        float add[2] = {0, 0};
        if (END != END_TIMES_SLOPE && p.bias && column + c < p.F)
            add[0] = p.bias[column + c], add[1] = p.bias[column + c + 1];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = lane() / 4 + h * 8;
            float x = sum[j][2 * h] + add[0], y = sum[j][2 * h + 1] + add[1];
            if (END == END_TIMES_SLOPE) {
                unsigned first, second;
                take_codes(first, second, w, r, c);
                x *= slope_of(first), y *= slope_of(second);
            } else if (END == END_GELU_PRE) { /* and GELU below, of what is kept */
                sum[j][2 * h] = x, sum[j][2 * h + 1] = y;
            } else {
                float cx = gelu_cdf(x), cy = gelu_cdf(y);
                if (END == END_GELU_SLOPE) put_codes(w, r, c, slope_code(x, cx), slope_code(y, cy));
                x *= cx, y *= cy;
            }
            put_two(&w->y[r][c], x, y);
        }
    }
    store_rows(p, END == END_GELU_PRE ? p.pre : p.d, w, row, column);
    if (END == END_GELU_SLOPE) store_codes(p, w, row, column);
    if (END != END_GELU_PRE) return;
    __syncwarp();
#pragma unroll
    for (int j = 0; j < MINE / 8; j++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float x = sum[j][2 * h], y = sum[j][2 * h + 1];
            put_two(&w->y[lane() / 4 + h * 8][j * 8 + lane() % 4 * 2], x * gelu_cdf(x), y * gelu_cdf(y));
        }
    store_rows(p, p.d, w, row, column);
}

/* Grid: tiles, those of the same rows one after the other, so that all of W and few rows of a are in the second cache.
 * Moves 2 (NK + KF + NF) bytes at least, and the slopes; 2 NFK products. */
template <product_end END>
static __global__ void __launch_bounds__(THREADS, BLOCKS) product_kernel(product_call p, unsigned across)
{
    DYN_SMEM(bf16, panels);
    const size_t row = (size_t)(blockIdx.x / across) * TILE, column = (size_t)(blockIdx.x % across) * TILE;
    const int warp = threadIdx.x / 32, down = warp / 2 * MINE, right = warp % 2 * MINE;
    float sum[MINE / 16][MINE / 8][4] = {};
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) load_step<END>(panels + s * 2 * PANEL, p, row, column, (size_t)s * STEP);
    int now = 0, next = STAGES - 1;
    for (size_t k = 0; k < p.K; k += STEP) {
        cp_async_wait<STAGES - 2>();
        __syncthreads(); /* the step has landed, and all are done with the one whose place is next */
        load_step<END>(panels + next * 2 * PANEL, p, row, column, k + (STAGES - 1) * STEP);
        multiply<END>(sum, panels + now * 2 * PANEL, down, right);
        now = now + 1 == STAGES ? 0 : now + 1;
        next = next + 1 == STAGES ? 0 : next + 1;
    }
    cp_async_wait<0>();
    __syncthreads();
    warp_rows *w = reinterpret_cast<warp_rows *>(panels) + warp;
#pragma unroll
    for (int i = 0; i < MINE / 16; i++) finish<END>(p, w, sum[i], row + down + i * 16, column + right);
}

template <product_end END> static void run(device *d, const product_call &p)
{
    unsigned across = gpu_blocks(p.F, TILE), blocks = across * gpu_blocks(p.N, TILE);
    auto kernel = product_kernel<END>;
    size_t shared = STAGES * 2 * PANEL * sizeof(bf16);
    op_cuda_check(d, LAUNCH(kernel, blocks, THREADS, shared, op_cuda_of(d)->stream, p, across), "a product");
}

extern "C" {
/* GPUs of sm_100 have tensor cores that mma.sync does not reach: there cuBLASLt and a pass are faster. */
bool op_cuda_product_fits(const device *d, size_t F, size_t K, const void *const *p, size_t n)
{
    int sm = op_cuda_of(d)->sm;
    uintptr_t all = 0;
    for (size_t i = 0; i < n; i++) all |= (uintptr_t)p[i];
    return d->ct == COMPUTE_BF16 && sm >= 80 && sm / 10 != 10 && F % SLOPE_ALIGNED == 0 && K % CHUNK == 0 &&
           all % 16 == 0;
}

void op_cuda_product_gelu(device *d, dv *y, dv *pre, dv *slope, const dv *x, const dv *w, const dv *bias, size_t N,
                          size_t F, size_t K)
{
    product_call p = {
        (const bf16 *)x, (const bf16 *)w, (bf16 *)y, (bf16 *)pre, (uint8_t *)slope, (const float *)bias, N, F, K};
    if (slope)
        run<END_GELU_SLOPE>(d, p);
    else if (pre)
        run<END_GELU_PRE>(d, p);
    else
        run<END_GELU>(d, p);
}

void op_cuda_product_slope(device *d, dv *dx, const dv *dy, const dv *w, const dv *slope, size_t N, size_t F, size_t K)
{
    product_call p = {(const bf16 *)dy, (const bf16 *)w, (bf16 *)dx, NULL, (uint8_t *)(uintptr_t)slope, NULL, N, F, K};
    run<END_TIMES_SLOPE>(d, p);
}
}
