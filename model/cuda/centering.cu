/* centering.cu: the teacher's targets: softmax-centring, Sinkhorn-Knopp, and the statistics of both. Logits may be
 * 65,536 wide: statistics of rows come from one read by a block a row; all that is by column, the targets included,
 * from a second read by blocks of columns. What pieces of rows give to a column is added in their order. */
#include "model/cuda/softmax.cuh"
#include "model/cuda/total.cuh"

constexpr int COLUMN_THREADS = 128;
constexpr int AT_ONCE = 4;         /* rows that a thread has in flight */
constexpr size_t PIECE_ROWS = 16;  /* a piece's, at least */
constexpr size_t PIECES_MOST = 16; /* of a column's rows */

/* Rows of (N,K) in n pieces of `each`, so that f32 (n,2,K) fits into what by_row bytes leave of scratch. */
struct pieces {
    size_t each, n;
};

static pieces pieces_of(size_t N, size_t K, size_t by_row)
{
    size_t most = by_row < OP_CUDA_SCRATCH_BYTES ? (OP_CUDA_SCRATCH_BYTES - by_row) / (2 * K * sizeof(float)) : 1;
    most = most > PIECES_MOST ? PIECES_MOST : most ? most : 1;
    size_t each = (N + most - 1) / most;
    if (each < PIECE_ROWS) each = PIECE_ROWS;
    return pieces{each, (N + each - 1) / each};
}

/* Rows' statistics, a block a row: most, 1 / sum, entropy f32 (N) where norm is asked for; else most = -log sum exp
 * (Sinkhorn's scale). Limited by the read of logits: N K values; the centre stays in the cache. */
template <typename T, int V>
static __global__ void __launch_bounds__(SOFTMAX_THREADS)
    row_kernel(float *most, float *norm, float *entropy, const T *logits, const float *center, float inverse, size_t K)
{
    size_t i = blockIdx.x;
    running r = running_row<V>(logits + i * K, center, inverse, K);
    if (threadIdx.x) return;
    if (norm) {
        most[i] = r.most;
        norm[i] = 1 / r.sum;
        entropy[i] = logf(r.sum) - r.slope / r.sum;
    } else {
        most[i] = -r.most - logf(r.sum);
    }
}

template <typename T>
static cudaError_t row_statistics(device *d, float *most, float *norm, float *entropy, const dv *logits,
                                  const dv *center, float inverse, size_t N, size_t K)
{
    bool wide = softmax_wide(K, logits, center);
    auto kernel = wide ? row_kernel<T, 8> : row_kernel<T, 1>;
    return LAUNCH(kernel, (unsigned)N, softmax_threads(K, wide ? 8 : 1), 0, op_cuda_of(d)->stream, most, norm, entropy,
                  (const T *)logits, (const float *)center, inverse, K);
}

/* AT_ONCE rows from i on, of columns k .. k+V-1; none at or after end. */
template <typename T, int V>
static __device__ __forceinline__ void load_rows(float (&x)[AT_ONCE][V], const T *logits, size_t i, size_t end,
                                                 size_t k, size_t K)
{
#pragma unroll
    for (int r = 0; r < AT_ONCE; r++)
        if (i + r < end)
            gpu_load_n<V>(x[r], logits + (i + r) * K + k);
        else
#pragma unroll
            for (int j = 0; j < V; j++) x[r][j] = 0;
}

/* Targets, and a piece's column sums of logits and of targets: partial (pieces,2,K). Block (columns, piece): a thread
 * has V columns and walks the piece's rows in order. In place: a thread writes only what it has read. Limited by bytes:
 * N K values read and written. */
template <typename T, int V>
static __global__ void __launch_bounds__(COLUMN_THREADS)
    target_kernel(T *q, float *partial, const T *logits, const float *center, const float *most, const float *norm,
                  float inverse, size_t each, size_t N, size_t K)
{
    size_t k = ((size_t)blockIdx.x * COLUMN_THREADS + threadIdx.x) * V, first = blockIdx.y * each;
    size_t end = first + each < N ? first + each : N;
    if (k >= K) return;
    float c[V], sum[V] = {0}, mean[V] = {0};
    gpu_load_n<V>(c, center + k);
    for (size_t i = first; i < end; i += AT_ONCE) {
        float x[AT_ONCE][V];
        load_rows<T, V>(x, logits, i, end, k, K);
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++) {
            if (i + r >= end) break;
            float below = most[i + r], by = norm[i + r];
#pragma unroll
            for (int j = 0; j < V; j++) {
                T stored;
                sum[j] += x[r][j];
                x[r][j] = __expf((x[r][j] - c[j]) * inverse - below) * by;
                gpu_store(&stored, 0, x[r][j]);
                mean[j] += gpu_load(&stored, 0);
            }
            gpu_store_n<V>(q + (i + r) * K + k, x[r]);
        }
    }
    float *out = partial + 2 * blockIdx.y * K + k;
    gpu_store_n<V>(out, sum);
    gpu_store_n<V>(out + K, mean);
}

/* sum, mean (K) += the pieces' sums: a thread a column. 8 n K bytes are read. */
static __global__ void __launch_bounds__(COLUMN_THREADS)
    add_pieces_kernel(float *sum, float *mean, const float *partial, size_t n, size_t K)
{
    size_t k = (size_t)blockIdx.x * COLUMN_THREADS + threadIdx.x;
    if (k >= K) return;
    float a = 0, b = 0;
    for (size_t i = 0; i < n; i++) {
        a += partial[2 * i * K + k];
        b += partial[(2 * i + 1) * K + k];
    }
    sum[k] += a;
    mean[k] += b;
}

template <typename T>
static cudaError_t teacher_softmax(device *d, dv *q, dv *sum, dv *mean, dv *entropy, const dv *logits, const dv *center,
                                   float inverse, size_t N, size_t K)
{
    cudaStream_t stream = op_cuda_of(d)->stream;
    size_t rows = (N + 3) / 4 * 4, by_row = 3 * rows * sizeof(float); /* rows: what follows stays aligned */
    pieces p = pieces_of(N, K, by_row);
    float *most = (float *)op_cuda_scratch(d, by_row + 2 * p.n * K * sizeof(float));
    if (!most) return cudaSuccess; /* the error is sticky already */
    float *norm = most + rows, *h = norm + rows, *partial = h + rows;
    cudaError_t rc = row_statistics<T>(d, most, norm, h, logits, center, inverse, N, K);
    if (rc) return rc;
    bool wide = softmax_wide(K, q, logits, center);
    auto kernel = wide ? target_kernel<T, 8> : target_kernel<T, 1>;
    dim3 grid(gpu_blocks(K, COLUMN_THREADS * (wide ? 8 : 1)), (unsigned)p.n);
    rc = LAUNCH(kernel, grid, COLUMN_THREADS, 0, stream, (T *)q, partial, (const T *)logits, (const float *)center,
                most, norm, inverse, p.each, N, K);
    if (rc) return rc;
    rc = LAUNCH(add_pieces_kernel, gpu_blocks(K, COLUMN_THREADS), COLUMN_THREADS, 0, stream, (float *)sum,
                (float *)mean, partial, p.n, K);
    return rc ? rc : total(d, entropy, h, N, 1, true);
}

/* A piece's largest exponent of each column, and the sum of exponentials below it: partial (pieces,2,K). Threads as in
 * target_kernel. Limited by the read of logits. */
template <typename T, int V>
static __global__ void __launch_bounds__(COLUMN_THREADS)
    prototype_kernel(float *partial, const T *logits, const float *scale, float inverse, size_t each, size_t N,
                     size_t K)
{
    size_t k = ((size_t)blockIdx.x * COLUMN_THREADS + threadIdx.x) * V, first = blockIdx.y * each;
    size_t end = first + each < N ? first + each : N;
    if (k >= K) return;
    float most[V], sum[V];
#pragma unroll
    for (int j = 0; j < V; j++) most[j] = -FLT_MAX, sum[j] = 0;
    for (size_t i = first; i < end; i += AT_ONCE) {
        float x[AT_ONCE][V], shift[AT_ONCE];
        load_rows<T, V>(x, logits, i, end, k, K);
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++) shift[r] = scale && i + r < end ? scale[i + r] : 0;
#pragma unroll
        for (int j = 0; j < V; j++) {
            float before = most[j];
#pragma unroll
            for (int r = 0; r < AT_ONCE; r++) {
                x[r][j] = i + r < end ? x[r][j] * inverse + shift[r] : -FLT_MAX;
                most[j] = fmaxf(most[j], x[r][j]);
            }
            sum[j] *= __expf(before - most[j]);
#pragma unroll
            for (int r = 0; r < AT_ONCE; r++) sum[j] += __expf(x[r][j] - most[j]);
        }
    }
    float *out = partial + 2 * blockIdx.y * K + k;
    gpu_store_n<V>(out, most);
    gpu_store_n<V>(out + K, sum);
}

/* The centre from the pieces; what earlier rows gave is one more exponent. A thread a column. */
static __global__ void __launch_bounds__(COLUMN_THREADS)
    merge_pieces_kernel(float *center, const float *partial, bool first, float tau, size_t n, size_t K)
{
    size_t k = (size_t)blockIdx.x * COLUMN_THREADS + threadIdx.x;
    if (k >= K) return;
    float most = first ? -FLT_MAX : center[k] / tau, sum = first ? 0 : 1;
    for (size_t i = 0; i < n; i++) {
        float other = partial[2 * i * K + k], larger = fmaxf(most, other);
        sum = sum * __expf(most - larger) + partial[(2 * i + 1) * K + k] * __expf(other - larger);
        most = larger;
    }
    center[k] = tau * (most + logf(sum));
}

template <typename T>
static cudaError_t sinkhorn_prototypes(device *d, dv *center, const dv *logits, const dv *scale, bool first, float tau,
                                       size_t N, size_t K)
{
    cudaStream_t stream = op_cuda_of(d)->stream;
    pieces p = pieces_of(N, K, 0);
    float *partial = (float *)op_cuda_scratch(d, 2 * p.n * K * sizeof(float));
    if (!partial) return cudaSuccess;
    bool wide = softmax_wide(K, logits);
    auto kernel = wide ? prototype_kernel<T, 8> : prototype_kernel<T, 1>;
    dim3 grid(gpu_blocks(K, COLUMN_THREADS * (wide ? 8 : 1)), (unsigned)p.n);
    cudaError_t rc = LAUNCH(kernel, grid, COLUMN_THREADS, 0, stream, partial, (const T *)logits, (const float *)scale,
                            1 / tau, p.each, N, K);
    if (rc) return rc;
    return LAUNCH(merge_pieces_kernel, gpu_blocks(K, COLUMN_THREADS), COLUMN_THREADS, 0, stream, (float *)center,
                  partial, first, tau, p.n, K);
}

template <typename T>
static cudaError_t sinkhorn_rows(device *d, dv *scale, const dv *logits, const dv *center, float tau, size_t N,
                                 size_t K)
{
    return row_statistics<T>(d, (float *)scale, NULL, NULL, logits, center, 1 / tau, N, K);
}

/* out (1) = entropy of mean (K) * by. One block: a thread has every 1024th value, fp32 within it, double across. */
static __global__ void __launch_bounds__(TOTAL_THREADS)
    mean_entropy_kernel(float *out, const float *mean, float by, size_t K)
{
    __shared__ double warps[TOTAL_THREADS / 32];
    float own = 0;
    for (size_t k = threadIdx.x; k < K; k += TOTAL_THREADS) {
        float p = mean[k] * by;
        if (p > 0) own -= p * logf(p);
    }
    double sum = warp_sum((double)own);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    sum = warp_sum(warps[threadIdx.x]);
    if (!threadIdx.x) out[0] = (float)sum;
}

/* A thread a value; 12 bytes each. square: NULL, or where that is not finite nothing changes. */
static __global__ void __launch_bounds__(COLUMN_THREADS)
    center_kernel(float *center, const float *sum, float keep, float by, size_t K, const float *square)
{
    if (square && !isfinite(*square)) return;
    size_t k = (size_t)blockIdx.x * COLUMN_THREADS + threadIdx.x;
    if (k < K) center[k] = keep * center[k] + by * sum[k];
}

extern "C" {
void op_cuda_teacher_softmax(device *d, dv *q, dv *sum, dv *mean, dv *entropy, const dv *logits, const dv *center,
                             float tau, size_t N, size_t K)
{
    if (!N || !K) return;
    op_cuda_check(d, GPU_CT(d, teacher_softmax, d, q, sum, mean, entropy, logits, center, 1 / tau, N, K),
                  "teacher_softmax");
}

void op_cuda_mean_entropy(device *d, dv *out, const dv *mean, size_t N, size_t K)
{
    cudaError_t rc = LAUNCH(mean_entropy_kernel, 1, TOTAL_THREADS, 0, op_cuda_of(d)->stream, (float *)out,
                            (const float *)mean, N ? 1 / (float)N : 0.0f, N ? K : 0);
    op_cuda_check(d, rc, "mean_entropy");
}

void op_cuda_sinkhorn_prototypes(device *d, dv *center, const dv *logits, const dv *scale, bool first, float tau,
                                 size_t N, size_t K)
{
    if (!N || !K) return;
    op_cuda_check(d, GPU_CT(d, sinkhorn_prototypes, d, center, logits, scale, first, tau, N, K), "sinkhorn_prototypes");
}

void op_cuda_sinkhorn_rows(device *d, dv *scale, const dv *logits, const dv *center, float tau, size_t N, size_t K)
{
    if (!N || !K) return;
    op_cuda_check(d, GPU_CT(d, sinkhorn_rows, d, scale, logits, center, tau, N, K), "sinkhorn_rows");
}

void op_cuda_center_update(device *d, dv *center, const dv *sum, float m, size_t N, size_t K, const dv *square)
{
    if (!N || !K) return;
    cudaError_t rc = LAUNCH(center_kernel, gpu_blocks(K, COLUMN_THREADS), COLUMN_THREADS, 0, op_cuda_of(d)->stream,
                            (float *)center, (const float *)sum, m, (1 - m) / (float)N, K, (const float *)square);
    op_cuda_check(d, rc, "center_update");
}
}
