/* rows.cuh: the three shapes that all row-wise and elementwise kernels have, each for a struct F of pointers that says
 * what is done in one place. W values at a time, W the vector of 16 bytes, or 1 where rows or lengths do not allow it.
 *
 *     map:  f.run<W>(i)             for all i below n: a thread a vector, single values at the end
 *     rows: f.run<W>(row, c)        for all rows and columns: a warp a row, or a stretch of a long one, a lane a vector
 *     sums: f.run<W>(row, c, sum)   sum[W] += what column c .. c+W-1 of the row has; over all rows, out (C) +=
 *
 * All are limited by the bytes that F moves. Pointers that F both reads and writes may be the same: a thread reads its
 * values before it writes them. */
#ifndef RADAPT_ROWS_CUH
#define RADAPT_ROWS_CUH
#include "model/cuda/gpu.cuh"

constexpr int MAP_THREADS = 256;
constexpr int ROWS_WARPS = 8;
constexpr int ROWS_VECTORS = 32;    /* a lane's, at most: 4,096 columns of fp32 in a stretch */
constexpr int SUMS_GROUPS = 8;      /* warps that share a block's columns */
constexpr size_t SUMS_ROWS = 64;    /* a block's, at least */
constexpr size_t SUMS_CHUNKS = 512; /* blocks that share a column, at most */

/* Values in 16 bytes. */
template <typename T> constexpr int VECTOR = 16 / (int)sizeof(T);

/* Whether all pointers are aligned to 16 bytes, NULL being so. */
template <typename... P> static inline bool aligned(const P *...p)
{
    return !((0 | ... | (uintptr_t)p) % 16);
}

template <int V, typename F> static __global__ void __launch_bounds__(MAP_THREADS) map_kernel(F f, size_t n)
{
    size_t i = (size_t)blockIdx.x * MAP_THREADS + threadIdx.x, whole = n / V;
    if (i < whole)
        f.template run<V>(i * V);
    else if (i < whole + n % V)
        f.template run<1>(whole * (V - 1) + i);
}

template <int V, typename F> static cudaError_t map(device *d, const F &f, size_t n, bool vectors)
{
    if (!n) return cudaSuccess;
    auto kernel = vectors ? map_kernel<V, F> : map_kernel<1, F>;
    return LAUNCH(kernel, gpu_blocks(vectors ? n / V + n % V : n, MAP_THREADS), MAP_THREADS, 0, op_cuda_of(d)->stream,
                  f, n);
}

template <int V, typename F>
static __global__ void __launch_bounds__(32 * ROWS_WARPS) rows_kernel(F f, size_t N, size_t C)
{
    size_t row = (size_t)blockIdx.x * ROWS_WARPS + threadIdx.x / 32;
    if (row >= N) return;
    size_t first = (size_t)blockIdx.y * ROWS_VECTORS * 32 * V, end = first + ROWS_VECTORS * 32 * V;
    for (size_t c = first + threadIdx.x % 32 * V; c < C && c < end; c += 32 * V) f.template run<V>(row, c);
}

template <int V, typename F> static cudaError_t rows(device *d, const F &f, size_t N, size_t C, bool vectors)
{
    if (!N || !C) return cudaSuccess;
    bool wide = vectors && C % V == 0;
    auto kernel = wide ? rows_kernel<V, F> : rows_kernel<1, F>;
    dim3 grid(gpu_blocks(N, ROWS_WARPS), gpu_blocks(C, (wide ? V : 1) * 32 * ROWS_VECTORS));
    return LAUNCH(kernel, grid, 32 * ROWS_WARPS, 0, op_cuda_of(d)->stream, f, N, C);
}

/* The block's SUMS_GROUPS warps hold sums of the same 32 * V columns, a lane V of them: added up in the first's. Every
 * thread of the block calls it, once. Shared: all sums, fp32. */
template <int V> static __device__ __forceinline__ void sum_groups(float (&sum)[V])
{
    __shared__ float cell[SUMS_GROUPS][V][32];
    unsigned group = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < V; j++) cell[group][j][lane] = sum[j];
    __syncthreads();
    if (group) return;
    for (int g = 1; g < SUMS_GROUPS; g++)
#pragma unroll
        for (int j = 0; j < V; j++) sum[j] += cell[g][j][lane];
}

/* Block (chunk of `each` rows, tile of 32 * V columns): warps take rows in turn, lanes vectors of columns. partial
 * (chunks,C). */
template <int V, typename F>
static __global__ void __launch_bounds__(32 * SUMS_GROUPS)
    sums_kernel(F f, float *partial, size_t each, size_t N, size_t C)
{
    size_t c = ((size_t)blockIdx.y * 32 + threadIdx.x % 32) * V, first = blockIdx.x * each;
    size_t end = first + each < N ? first + each : N;
    float sum[V] = {0};
    if (c < C)
        for (size_t row = first + threadIdx.x / 32; row < end; row += SUMS_GROUPS) f.template run<V>(row, c, sum);
    sum_groups<V>(sum);
    if (threadIdx.x < 32 && c < C) gpu_store_n<V>(partial + blockIdx.x * C + c, sum);
}

/* a (C) += the sums over chunks of partial (chunks,C), b of the next such; either may be NULL. Block (tile of 32
 * columns, which sum): warps take chunks in turn. */
static __global__ void __launch_bounds__(32 * SUMS_GROUPS)
    sums_end_kernel(float *a, float *b, const float *partial, size_t chunks, size_t C)
{
    float *out = blockIdx.y ? b : a;
    size_t c = (size_t)blockIdx.x * 32 + threadIdx.x % 32;
    float sum[1] = {0};
    if (out && c < C)
        for (size_t k = threadIdx.x / 32; k < chunks; k += SUMS_GROUPS)
            sum[0] += partial[(blockIdx.y * chunks + k) * C + c];
    sum_groups<1>(sum);
    if (out && threadIdx.x < 32 && c < C) out[c] += sum[0];
}

static inline cudaError_t sums_end(device *d, float *a, float *b, const float *partial, size_t chunks, size_t C)
{
    return LAUNCH(sums_end_kernel, dim3(gpu_blocks(C, 32), b ? 2 : 1), 32 * SUMS_GROUPS, 0, op_cuda_of(d)->stream, a, b,
                  partial, chunks, C);
}

/* Rows of a chunk, from shapes alone: at least `least`, and so many that `sums` sums of C columns fit the scratch. */
static inline size_t sums_each(size_t N, size_t C, size_t sums, size_t least)
{
    size_t most = OP_CUDA_SCRATCH_BYTES / (sums * C * sizeof(float));
    if (most > SUMS_CHUNKS) most = SUMS_CHUNKS;
    if (!most) most = 1; /* op_cuda_scratch says no */
    size_t each = (N + most - 1) / most;
    return each < least ? least : each;
}

template <int V, typename F>
static cudaError_t sums(device *d, const F &f, float *out, size_t N, size_t C, bool vectors)
{
    if (!N || !C) return cudaSuccess;
    size_t each = sums_each(N, C, 1, SUMS_ROWS), chunks = (N + each - 1) / each;
    float *partial = (float *)op_cuda_scratch(d, chunks * C * sizeof *partial);
    if (!partial) return cudaSuccess;
    bool wide = vectors && C % V == 0;
    auto kernel = wide ? sums_kernel<V, F> : sums_kernel<1, F>;
    dim3 grid(gpu_blocks(N, each), gpu_blocks(C, wide ? 32 * V : 32));
    cudaError_t rc = LAUNCH(kernel, grid, 32 * SUMS_GROUPS, 0, op_cuda_of(d)->stream, f, partial, each, N, C);
    return rc ? rc : sums_end(d, out, NULL, partial, chunks, C);
}
#endif
