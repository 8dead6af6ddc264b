/* attention.cuh: what attention's forward and backward share: where a block works, tiles in shared memory, fragments of
 * the tensor cores' products.
 *
 * A pair is one head of one image. A block owns some consecutive rows of a pair, and the pair's other rows pass by.
 * Tensor-core kernels are compiled for the head sizes DP of ATTENTION_SIZES, and take any D <= DP that is a multiple of
 * 8: from column D on their tiles hold zeros. Rows of tiles are DP + 8 values apart: an odd number of 16 bytes, so that
 * the 8 rows that ldmatrix reads together lie in different banks. */
#ifndef RADAPT_ATTENTION_CUH
#define RADAPT_ATTENTION_CUH
#include "model/cuda/gpu.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS;
constexpr int ROWS = 16 * WARPS; /* that a tensor-core block owns: 16 a warp */
constexpr int PAD = 8;
constexpr int SCALAR_ROWS = THREADS / 4; /* that a scalar block owns: four lanes a row */
constexpr int SCALAR_BLOCKS = 3;         /* a multiprocessor, at least: ptxas would spill on sm_120 for a seventh */
constexpr int HEAD_MOST = 128;
constexpr float LOG2E = 1.4426950408889634f;

/* f<DP>(...) for the smallest DP that holds D. */
#define ATTENTION_SIZES(D, f, ...)                                                                                     \
    ((D) <= 32   ? f<32>(__VA_ARGS__)                                                                                  \
     : (D) <= 64 ? f<64>(__VA_ARGS__)                                                                                  \
     : (D) <= 80 ? f<80>(__VA_ARGS__)                                                                                  \
     : (D) <= 96 ? f<96>(__VA_ARGS__)                                                                                  \
                 : f<128>(__VA_ARGS__))

/* A call. */
typedef struct {
    size_t pairs;
    int T, H, D;
    unsigned blocks; /* that a pair's rows take */
    float scale;
} attention_call;

/* What a block works on. */
typedef struct {
    size_t pair, C;
    size_t narrow, wide; /* where the pair's row 0 starts in (B,T,C), and its query 0 in (B,T,3C) */
    int first;           /* row that the block owns */
} attention_block;

static inline attention_call attention_of(size_t B, size_t T, size_t H, size_t D, int rows)
{
    return {B * H, (int)T, (int)H, (int)D, gpu_blocks(T, rows), 1.0f / sqrtf((float)D)};
}

/* Whether the tensor cores' kernels take the call; addresses: of all tensors, or'ed. */
static inline bool attention_tensor(const device *d, size_t D, uintptr_t addresses)
{
    return d->ct == COMPUTE_BF16 && op_cuda_of(d)->sm >= 80 && D % 8 == 0 && D <= HEAD_MOST && addresses % 16 == 0;
}

/* A launch with more dynamic shared memory than any kernel may have unasked. */
template <typename... P, typename... A>
static cudaError_t attention_launch(device *d, void (*kernel)(P...), size_t shared, const attention_call &c, A... a)
{
    cudaError_t rc = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (rc) return rc;
    return LAUNCH(kernel, (unsigned)(c.blocks * c.pairs), THREADS, shared, op_cuda_of(d)->stream, a..., c);
}

static __device__ __forceinline__ attention_block attention_here(const attention_call &c, int rows)
{
    attention_block b;
    b.pair = blockIdx.x / c.blocks;
    b.first = (int)(blockIdx.x % c.blocks) * rows;
    b.C = (size_t)c.H * c.D;
    size_t image = b.pair / c.H, head = b.pair % c.H;
    b.narrow = image * c.T * b.C + head * c.D;
    b.wide = image * c.T * 3 * b.C + head * c.D;
    return b;
}

/* --- tensor cores. Lane l has rows l/4 and l/4 + 8 of a 16-row product, columns l%4 * 2 and the next of every 8. */

static __device__ __forceinline__ int lane()
{
    return threadIdx.x % 32;
}

/* N rows of a tile, from row `first` of a pair's on, under way; zeros beyond T and D. */
template <int N, int W>
static __device__ __forceinline__ void tile_load(bf16 (*tile)[W], const bf16 *from, size_t stride, int first,
                                                 const attention_call &c)
{
    constexpr int CHUNKS = (W - PAD) / 8;
    for (int i = threadIdx.x; i < N * CHUNKS; i += THREADS) {
        int r = i / CHUNKS, column = i % CHUNKS * 8;
        bool in = first + r < c.T && column < c.D;
        cp_async16(&tile[r][column], in ? from + (first + r) * stride + column : from, in);
    }
}

/* What was under way is there for all, and all are done with what they read. */
static __device__ __forceinline__ void tiles_landed()
{
    cp_async_wait<0>();
    __syncthreads();
}

/* 16x16 values of a tile X as an operand: X on the left, its transpose there; X on the right, its transpose there. */
template <int W>
static __device__ __forceinline__ void left(unsigned (&f)[4], const bf16 (*tile)[W], int row, int column)
{
    ldmatrix_x4(f, &tile[row + lane() % 16][column + lane() / 16 * 8]);
}
template <int W>
static __device__ __forceinline__ void left_transposed(unsigned (&f)[4], const bf16 (*tile)[W], int row, int column)
{
    ldmatrix_x4_trans(f, &tile[row + lane() % 8 + lane() / 16 * 8][column + lane() / 8 % 2 * 8]);
}
template <int W>
static __device__ __forceinline__ void right(unsigned (&f)[4], const bf16 (*tile)[W], int row, int column)
{
    ldmatrix_x4_trans(f, &tile[row + lane() % 16][column + lane() / 16 * 8]);
}
template <int W>
static __device__ __forceinline__ void right_transposed(unsigned (&f)[4], const bf16 (*tile)[W], int row, int column)
{
    ldmatrix_x4(f, &tile[row + lane() % 8 + lane() / 16 * 8][column + lane() / 8 % 2 * 8]);
}

/* lo, hi: columns 0-7 and 8-15 of a (16,16) product, += a b. */
static __device__ __forceinline__ void product(float (&lo)[4], float (&hi)[4], const unsigned (&a)[4],
                                               const unsigned (&b)[4])
{
    unsigned first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    mma_bf16_16816(lo, a, first, lo);
    mma_bf16_16816(hi, a, second, hi);
}

/* The warp's 16 rows of a tile as left operands: HELD in registers, or read again for each product where those are for
 * sums. */
template <int DP, bool HELD> struct left_rows {
    const bf16 (*tile)[DP + PAD];
    unsigned held[HELD ? DP / 16 : 1][4];

    __device__ __forceinline__ void take(const bf16 (*from)[DP + PAD])
    {
        tile = from;
        if constexpr (HELD) {
#pragma unroll
            for (int k = 0; k < DP / 16; k++) left(held[k], tile, 0, k * 16);
        }
    }
};

/* s (16,16) = a (16,DP) times the transpose of 16 rows of a tile. */
template <int DP, bool HELD>
static __device__ __forceinline__ void scores(float (&s)[2][4], const left_rows<DP, HELD> &a,
                                              const bf16 (*tile)[DP + PAD], int row)
{
#pragma unroll
    for (int e = 0; e < 4; e++) s[0][e] = s[1][e] = 0;
#pragma unroll
    for (int k = 0; k < DP / 16; k++) {
        unsigned b[4];
        right_transposed(b, tile, row, k * 16);
        if constexpr (HELD) {
            product(s[0], s[1], a.held[k], b);
        } else {
            unsigned again[4];
            left(again, a.tile, 0, k * 16);
            product(s[0], s[1], again, b);
        }
    }
}

/* sum (16,DP) += a (16,16) times 16 rows of a tile. */
template <int DP>
static __device__ __forceinline__ void weighted(float (&sum)[DP / 8][4], const unsigned (&a)[4],
                                                const bf16 (*tile)[DP + PAD], int row)
{
#pragma unroll
    for (int n = 0; n < DP / 16; n++) {
        unsigned b[4];
        right(b, tile, row, n * 16);
        product(sum[2 * n], sum[2 * n + 1], a, b);
    }
}

static __device__ __forceinline__ unsigned two(float lo, float hi)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    unsigned u;
    memcpy(&u, &v, sizeof u);
    return u;
}

static __device__ __forceinline__ void put(bf16 *to, unsigned two_values)
{
    *reinterpret_cast<unsigned *>(to) = two_values;
}

/* A (16,16) product, rounded, as the next one's left operand. */
static __device__ __forceinline__ void as_left(unsigned (&a)[4], const float (&s)[2][4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = two(s[i / 2][i % 2 * 2], s[i / 2][i % 2 * 2 + 1]);
}

/* The warp's 16 rows of sums, times a factor for rows 0-7 and one for 8-15, to rows below `most`, by way of its 16 rows
 * of a tile: 16 bytes a lane. */
template <int DP>
static __device__ __forceinline__ void rows_store(bf16 *to, size_t stride, int most, int D, bf16 (*tile)[DP + PAD],
                                                  const float (&sum)[DP / 8][4], float low, float high)
{
    bf16 *at = &tile[lane() / 4][lane() % 4 * 2];
#pragma unroll
    for (int n = 0; n < DP / 8; n++) {
        put(at + n * 8, two(sum[n][0] * low, sum[n][1] * low));
        put(at + n * 8 + 8 * (DP + PAD), two(sum[n][2] * high, sum[n][3] * high));
    }
    __syncwarp();
    for (int i = lane(); i < 16 * DP / 8; i += 32) {
        int r = i / (DP / 8), column = i % (DP / 8) * 8;
        const bf16 *from = &tile[r][column];
        if (r < most && column < D)
            *reinterpret_cast<uint4 *>(to + r * stride + column) = *reinterpret_cast<const uint4 *>(from);
    }
}

/* Sum and maximum over the four lanes that share a row. */
static __device__ __forceinline__ float row_sum(float v)
{
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
static __device__ __forceinline__ float row_max(float v)
{
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

/* --- scalar kernels. Their tiles are fp32, rows scalar_width apart: as above, an odd number of 16 bytes. */

static __host__ __device__ __forceinline__ int scalar_width(int D)
{
    return 4 * ((D + 3) / 4 | 1);
}

template <int N, typename T>
static __device__ __forceinline__ void scalar_load(float *tile, const T *from, size_t stride, int first,
                                                   const attention_call &c)
{
    int W = scalar_width(c.D);
    for (int r = threadIdx.x / 32; r < N; r += WARPS)
        for (int column = lane(); column < W; column += 32)
            tile[r * W + column] =
                first + r < c.T && column < c.D ? gpu_load(from, (first + r) * stride + column) : 0.0f;
}

static __device__ __forceinline__ float4 four(const float *p)
{
    return *reinterpret_cast<const float4 *>(p);
}
static __device__ __forceinline__ float dot(float4 a, float4 b, float s)
{
    return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, s))));
}

/* A row's sums: lane l has columns l%4 * 4 .. +3 of every 16. sum += p * row. */
typedef float scalar_sums[HEAD_MOST / 16][4];

static __device__ __forceinline__ void scalar_add(scalar_sums &sum, float p, const float *row, int D)
{
#pragma unroll
    for (int i = 0; i < HEAD_MOST / 16; i++)
        if (int column = i * 16 + lane() % 4 * 4; column < D) {
            float4 v = four(row + column);
            sum[i][0] = fmaf(p, v.x, sum[i][0]);
            sum[i][1] = fmaf(p, v.y, sum[i][1]);
            sum[i][2] = fmaf(p, v.z, sum[i][2]);
            sum[i][3] = fmaf(p, v.w, sum[i][3]);
        }
}

template <typename T>
static __device__ __forceinline__ void scalar_store(T *to, const scalar_sums &sum, float factor, int D)
{
#pragma unroll
    for (int i = 0; i < HEAD_MOST / 16; i++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (int column = i * 16 + lane() % 4 * 4 + e; column < D) gpu_store(to, column, sum[i][e] * factor);
}
#endif
