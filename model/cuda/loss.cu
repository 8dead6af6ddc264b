/* loss.cu: the objective's ops but for the teacher's (centering.cu): rows of length one, soft cross-entropy, KoLeo and
 * the classifier's losses. A scalar's parts, one a row or a block, go to scratch and are added in their order. */
#include "model/cuda/softmax.cuh"
#include "model/cuda/total.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32; /* rows of a block where a warp has a row */

/* --- rows of length one */

/* y = x / |x|; norm f32 (N) or NULL. A warp a row, a lane every 32nd vector of V, read twice, the second time from the
 * cache. Limited by bytes: x read, y written. */
template <typename To, typename From, int V>
static __global__ void __launch_bounds__(THREADS) unit_kernel(To *y, float *norm, const From *x, size_t N, size_t C)
{
    size_t i = (size_t)blockIdx.x * WARPS + threadIdx.x / 32, at = threadIdx.x % 32 * V;
    if (i >= N) return;
    float square = 0, v[V];
    for (size_t c = at; c < C; c += 32 * V) {
        gpu_load_n<V>(v, x + i * C + c);
#pragma unroll
        for (int j = 0; j < V; j++) square += v[j] * v[j];
    }
    float n = fmaxf(sqrtf(warp_sum(square)), 1e-12f), inverse = 1 / n;
    if (norm && !at) norm[i] = n;
    for (size_t c = at; c < C; c += 32 * V) {
        gpu_load_n<V>(v, x + i * C + c);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] *= inverse;
        gpu_store_n<V>(y + i * C + c, v);
    }
}

/* dx = (dy - y (y.dy)) / |x|; threads as in unit_kernel. Limited by bytes: dy and y read, dx written. */
template <typename T, int V>
static __global__ void __launch_bounds__(THREADS)
    l2_bwd_kernel(T *dx, const T *dy, const T *y, const float *norm, size_t N, size_t C)
{
    size_t i = (size_t)blockIdx.x * WARPS + threadIdx.x / 32, at = threadIdx.x % 32 * V;
    if (i >= N) return;
    float along = 0, g[V], u[V];
    for (size_t c = at; c < C; c += 32 * V) {
        gpu_load_n<V>(g, dy + i * C + c);
        gpu_load_n<V>(u, y + i * C + c);
#pragma unroll
        for (int j = 0; j < V; j++) along += g[j] * u[j];
    }
    along = warp_sum(along);
    float inverse = 1 / norm[i];
    for (size_t c = at; c < C; c += 32 * V) {
        gpu_load_n<V>(g, dy + i * C + c);
        gpu_load_n<V>(u, y + i * C + c);
#pragma unroll
        for (int j = 0; j < V; j++) g[j] = (g[j] - u[j] * along) * inverse;
        gpu_store_n<V>(dx + i * C + c, g);
    }
}

/* The same from v alone, f32: out = (dw - v (v.dw) / |v|^2) / |v|; out may be dw: a lane has read what it writes. */
template <int V>
static __global__ void __launch_bounds__(THREADS)
    weight_norm_bwd_kernel(float *out, const float *dw, const float *v, size_t K, size_t C)
{
    size_t i = (size_t)blockIdx.x * WARPS + threadIdx.x / 32, at = threadIdx.x % 32 * V;
    if (i >= K) return;
    float along = 0, square = 0, g[V], x[V];
    for (size_t c = at; c < C; c += 32 * V) {
        gpu_load_n<V>(g, dw + i * C + c);
        gpu_load_n<V>(x, v + i * C + c);
#pragma unroll
        for (int j = 0; j < V; j++) along += g[j] * x[j], square += x[j] * x[j];
    }
    float n = fmaxf(sqrtf(warp_sum(square)), 1e-12f), inverse = 1 / n;
    along = warp_sum(along) / (n * n);
    for (size_t c = at; c < C; c += 32 * V) {
        gpu_load_n<V>(g, dw + i * C + c);
        gpu_load_n<V>(x, v + i * C + c);
#pragma unroll
        for (int j = 0; j < V; j++) g[j] = (g[j] - x[j] * along) * inverse;
        gpu_store_n<V>(out + i * C + c, g);
    }
}

/* LayerScale's gradient: a row of the layer's weight and of its gradient a warp. */
template <typename T, int V>
static __global__ void __launch_bounds__(THREADS)
    scale_grad_kernel(float *dls, const float *ls, const T *w, const float *dw, const float *bias, const float *db,
                      size_t R, size_t I)
{
    size_t i = (size_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (i >= R) return;
    float sum = 0, a[V], b[V];
    for (size_t c = threadIdx.x % 32 * V; c < I; c += 32 * V) {
        gpu_load_n<V>(a, w + i * I + c);
        gpu_load_n<V>(b, dw + i * I + c);
#pragma unroll
        for (int j = 0; j < V; j++) sum += a[j] * b[j];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32) return;
    if (bias) sum += bias[i] * db[i];
    dls[i] = ls[i] != 0 ? sum / ls[i] : 0;
}

template <typename To, typename From>
static cudaError_t unit(device *d, dv *y, dv *norm, const dv *x, size_t N, size_t C)
{
    auto kernel = softmax_wide(C, y, x) ? unit_kernel<To, From, 8> : unit_kernel<To, From, 1>;
    return LAUNCH(kernel, gpu_blocks(N, WARPS), THREADS, 0, op_cuda_of(d)->stream, (To *)y, (float *)norm,
                  (const From *)x, N, C);
}

template <typename T> static cudaError_t l2_fwd(device *d, dv *y, dv *norm, const dv *x, size_t N, size_t C)
{
    return unit<T, T>(d, y, norm, x, N, C);
}

template <typename T> static cudaError_t weight_norm_fwd(device *d, dv *w, const dv *v, size_t K, size_t C)
{
    return unit<T, float>(d, w, NULL, v, K, C);
}

template <typename T>
static cudaError_t l2_bwd(device *d, dv *dx, const dv *dy, const dv *y, const dv *norm, size_t N, size_t C)
{
    auto kernel = softmax_wide(C, dx, dy, y) ? l2_bwd_kernel<T, 8> : l2_bwd_kernel<T, 1>;
    return LAUNCH(kernel, gpu_blocks(N, WARPS), THREADS, 0, op_cuda_of(d)->stream, (T *)dx, (const T *)dy, (const T *)y,
                  (const float *)norm, N, C);
}

template <typename T>
static cudaError_t scale_grad(device *d, dv *dls, const dv *ls, const dv *w, const dv *dw, const dv *bias, const dv *db,
                              size_t R, size_t I)
{
    auto kernel = softmax_wide(I, w, dw) ? scale_grad_kernel<T, 8> : scale_grad_kernel<T, 1>;
    return LAUNCH(kernel, gpu_blocks(R, WARPS), THREADS, 0, op_cuda_of(d)->stream, (float *)dls, (const float *)ls,
                  (const T *)w, (const float *)dw, (const float *)bias, (const float *)db, R, I);
}

/* --- soft cross-entropy */

/* A block a row: sums of exponentials from one read of the logits, then the gradient and the targets' part of the loss
 * from a second, by the same threads, each writing where it has read. part f32 (N): the row's loss. Limited by bytes:
 * logits and up to P rows of q read, dlogits written; the second read of logits is from the cache where it holds the
 * rows at work. */
template <typename T, int V>
static __global__ void __launch_bounds__(SOFTMAX_THREADS)
    soft_ce_kernel(float *part, T *dlogits, const T *logits, const T *q, const int32_t *pair, const float *weight,
                   size_t P, float inverse, size_t K)
{
    __shared__ float warps[SOFTMAX_THREADS / 32];
    size_t i = blockIdx.x;
    float all = 0, cross = 0;
    for (size_t p = 0; p < P; p++)
        if (pair[i * P + p] >= 0) all += weight[i * P + p];
    running r = running_row<V>(logits + i * K, NULL, inverse, K);
    float norm = all / r.sum;
    for (size_t k = (size_t)threadIdx.x * V; k < K; k += (size_t)blockDim.x * V) {
        float x[V], target[V] = {0};
        gpu_load_n<V>(x, logits + i * K + k);
        for (size_t p = 0; p < P; p++) {
            if (pair[i * P + p] < 0) continue;
            float t[V], w = weight[i * P + p];
            gpu_load_n<V>(t, q + (size_t)pair[i * P + p] * K + k);
#pragma unroll
            for (int j = 0; j < V; j++) target[j] += w * t[j];
        }
#pragma unroll
        for (int j = 0; j < V; j++) {
            float below = x[j] * inverse - r.most;
            cross += target[j] * below;
            x[j] = (__expf(below) * norm - target[j]) * inverse;
        }
        gpu_store_n<V>(dlogits + i * K + k, x);
    }
    cross = warp_sum(cross);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = cross;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    cross = warp_sum(threadIdx.x < blockDim.x / 32 ? warps[threadIdx.x] : 0.0f);
    /* targets add up to all only as far as ct rounds q; the exact sum goes with log Z */
    if (!threadIdx.x) part[i] = all * logf(r.sum) - cross;
}

template <typename T>
static cudaError_t soft_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *q, const dv *pair,
                           const dv *weight, size_t P, float inverse, size_t N, size_t K)
{
    float *part = (float *)op_cuda_scratch(d, N * sizeof(float));
    if (!part) return cudaSuccess; /* the error is sticky already */
    bool wide = softmax_wide(K, dlogits, logits, q);
    auto kernel = wide ? soft_ce_kernel<T, 8> : soft_ce_kernel<T, 1>;
    cudaError_t rc =
        LAUNCH(kernel, (unsigned)N, softmax_threads(K, wide ? 8 : 1), 0, op_cuda_of(d)->stream, part, (T *)dlogits,
               (const T *)logits, (const T *)q, (const int32_t *)pair, (const float *)weight, P, inverse, K);
    return rc ? rc : total(d, loss, part, N, 1, true);
}

/* --- KoLeo */

/* Of row i: its length, its nearest row by cosine, and d loss / d u_i = push (u_i - u_nearest), its opposite for
 * u_nearest; along: these times u_i and times u_nearest. */
struct neighbour {
    float push, along, along_other;
    int32_t nearest;
};

/* norm f32 (N): a warp a row. */
template <typename T>
static __global__ void __launch_bounds__(THREADS) length_kernel(float *norm, const T *x, size_t N, size_t C)
{
    size_t i = (size_t)blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= N) return;
    float square = 0;
    for (size_t c = lane; c < C; c += 32) {
        float v = gpu_load(x, i * C + c);
        square += v * v;
    }
    square = warp_sum(square);
    if (!lane) norm[i] = fmaxf(sqrtf(square), 1e-8f);
}

/* A block a row i: its warps take the other rows in turn, a lane every 32nd vector of V; the largest cosine wins, of
 * equal ones the first row (shared: the warps' winners). Then all threads compare the two rows. part f32 (N): -log of
 * the distance. Limited by the cache: N^2 C values are read from it, 2 N^2 C FLOPs. */
template <typename T, int V>
static __global__ void __launch_bounds__(THREADS)
    nearest_kernel(neighbour *found, float *part, const T *x, const float *norm, float w, size_t N, size_t C)
{
    __shared__ float cosine[WARPS], sums[3][WARPS];
    __shared__ size_t row[WARPS];
    size_t i = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, nearest = i;
    float best = -FLT_MAX;
    for (size_t j = warp; j < N; j += WARPS) {
        if (j == i) continue;
        float dot = 0, a[V], b[V];
        for (size_t c = lane * V; c < C; c += 32 * V) {
            gpu_load_n<V>(a, x + i * C + c);
            gpu_load_n<V>(b, x + j * C + c);
#pragma unroll
            for (int k = 0; k < V; k++) dot += a[k] * b[k];
        }
        dot = warp_sum(dot) / (norm[i] * norm[j]);
        if (dot > best) best = dot, nearest = j;
    }
    if (!lane) cosine[warp] = best, row[warp] = nearest;
    __syncthreads();
    best = cosine[0], nearest = row[0];
    for (int k = 1; k < WARPS; k++)
        if (cosine[k] > best || (cosine[k] == best && row[k] < nearest)) best = cosine[k], nearest = row[k];
    float square = 0, own = 0, other = 0, inverse = 1 / norm[i], inverse_nearest = 1 / norm[nearest];
    for (size_t c = threadIdx.x; c < C; c += THREADS) {
        float u = gpu_load(x, i * C + c) * inverse, v = gpu_load(x, nearest * C + c) * inverse_nearest;
        square += (u - v) * (u - v);
        own += (u - v) * u;
        other += (v - u) * v;
    }
    square = warp_sum(square), own = warp_sum(own), other = warp_sum(other);
    if (!lane) sums[0][warp] = square, sums[1][warp] = own, sums[2][warp] = other;
    __syncthreads();
    if (threadIdx.x) return;
    for (int k = 1; k < WARPS; k++) square += sums[0][k], own += sums[1][k], other += sums[2][k];
    /* torch's PairwiseDistance adds 1e-8 to each difference: below fp32's resolution here */
    float distance = sqrtf(square);
    float push = distance == 0 ? 0 : -w / (float)N / (distance + 1e-8f) / distance; /* equal: no direction to push in */
    part[i] = -logf(distance + 1e-8f);
    found[i] = neighbour{push, push * own, push * other, (int32_t)nearest};
}

/* dx: block (row, 256 columns), a thread a column: what rows i give to this one, for being i or the nearest of i, in
 * the order of i; warps look for such i 32 at a time. N^2 C / 32 indices are read, from the cache. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    spread_kernel(T *dx, const T *x, const neighbour *found, const float *norm, size_t N, size_t C)
{
    size_t row = blockIdx.x, c = (size_t)blockIdx.y * THREADS + threadIdx.x, lane = threadIdx.x % 32;
    float inverse = 1 / norm[row], u = c < C ? gpu_load(x, row * C + c) * inverse : 0, sum = 0;
    for (size_t first = 0; first < N; first += 32) {
        size_t mine = first + lane;
        unsigned hits = __ballot_sync(0xffffffffu, mine < N && (mine == row || (size_t)found[mine].nearest == row));
        for (; hits; hits &= hits - 1) {
            size_t i = first + (size_t)__ffs((int)hits) - 1;
            neighbour f = found[i];
            if (f.push == 0) continue;
            size_t other = i == row ? (size_t)f.nearest : i;
            float v = c < C ? gpu_load(x, other * C + c) / norm[other] : 0;
            sum += (f.push * (u - v) - u * (i == row ? f.along : f.along_other)) * inverse;
        }
    }
    if (c < C) gpu_store(dx, row * C + c, sum);
}

template <typename T> static cudaError_t koleo(device *d, dv *loss, dv *dx, const dv *x, float w, size_t N, size_t C)
{
    cudaStream_t stream = op_cuda_of(d)->stream;
    if (N < 2) return cudaMemsetAsync(dx, 0, N * C * sizeof(T), stream);
    neighbour *found = (neighbour *)op_cuda_scratch(d, N * (sizeof *found + 2 * sizeof(float)));
    if (!found) return cudaSuccess;
    float *norm = (float *)(found + N), *part = norm + N;
    auto length = length_kernel<T>;
    auto nearest = softmax_wide(C, x) ? nearest_kernel<T, 8> : nearest_kernel<T, 1>;
    auto spread = spread_kernel<T>;
    cudaError_t rc = LAUNCH(length, gpu_blocks(N, WARPS), THREADS, 0, stream, norm, (const T *)x, N, C);
    if (rc) return rc;
    rc = LAUNCH(nearest, (unsigned)N, THREADS, 0, stream, found, part, (const T *)x, norm, w, N, C);
    if (rc) return rc;
    dim3 grid((unsigned)N, gpu_blocks(C, THREADS));
    rc = LAUNCH(spread, grid, THREADS, 0, stream, (T *)dx, (const T *)x, found, norm, N, C);
    return rc ? rc : total(d, loss, part, N, w / (float)N, true);
}

/* --- the classifier's losses */

/* A warp a row, a lane every 32nd class; z and target are read three times, at first from memory. part f32 (N). 12 N K
 * bytes: too few to limit anything. */
static __global__ void __launch_bounds__(THREADS) softmax_ce_kernel(float *part, float *dlogits, const float *logits,
                                                                    const float *target, float w, size_t N, size_t K)
{
    size_t i = (size_t)blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= N) return;
    const float *z = logits + i * K, *t = target + i * K;
    float most = -FLT_MAX, sum = 0, all = 0, below = 0;
    for (size_t k = lane; k < K; k += 32) most = fmaxf(most, z[k]);
    most = warp_max(most);
    for (size_t k = lane; k < K; k += 32) {
        sum += expf(z[k] - most);
        all += t[k];
        below += t[k] * (most - z[k]);
    }
    sum = warp_sum(sum), all = warp_sum(all), below = warp_sum(below);
    for (size_t k = lane; k < K; k += 32) dlogits[i * K + k] = w * (all * expf(z[k] - most) / sum - t[k]);
    if (!lane) part[i] = below + all * logf(sum);
}

/* A thread four values, 256 apart; a block's loss is part[block]. 16 bytes read and written a value. */
static __global__ void __launch_bounds__(THREADS)
    sigmoid_ce_kernel(float *part, float *dlogits, const float *logits, const float *target, const float *weight,
                      float w, size_t n)
{
    __shared__ float warps[WARPS];
    float sum = 0;
    for (int j = 0; j < 4; j++) {
        size_t i = ((size_t)blockIdx.x * 4 + j) * THREADS + threadIdx.x;
        if (i >= n) break;
        float z = logits[i], t = target[i], c = weight[i];
        float tail = expf(-fabsf(z)); /* log(1 + exp z) = max(z, 0) + log(1 + exp -|z|) */
        sum += c * (fmaxf(z, 0) + log1pf(tail) - t * z);
        dlogits[i] = w * c * ((z >= 0 ? 1 : tail) / (1 + tail) - t);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    for (int k = 1; k < WARPS; k++) sum += warps[k];
    part[blockIdx.x] = sum;
}

extern "C" {
void op_cuda_l2_fwd(device *d, dv *y, dv *norm, const dv *x, size_t N, size_t C)
{
    if (N) op_cuda_check(d, GPU_CT(d, l2_fwd, d, y, norm, x, N, C), "l2_fwd");
}

void op_cuda_l2_bwd(device *d, dv *dx, const dv *dy, const dv *y, const dv *norm, size_t N, size_t C)
{
    if (N) op_cuda_check(d, GPU_CT(d, l2_bwd, d, dx, dy, y, norm, N, C), "l2_bwd");
}

void op_cuda_weight_norm_fwd(device *d, dv *w_ct, const dv *v, size_t K, size_t C)
{
    if (K) op_cuda_check(d, GPU_CT(d, weight_norm_fwd, d, w_ct, v, K, C), "weight_norm_fwd");
}

void op_cuda_scale_grad(device *d, dv *dls, const dv *ls, const dv *w, const dv *dw, const dv *bias, const dv *db,
                        size_t R, size_t I)
{
    if (R) op_cuda_check(d, GPU_CT(d, scale_grad, d, dls, ls, w, dw, bias, db, R, I), "scale_grad");
}

void op_cuda_weight_norm_bwd(device *d, dv *dv_f32, const dv *dw, const dv *v, size_t K, size_t C)
{
    if (!K) return;
    auto kernel = softmax_wide(C, dv_f32, dw, v) ? weight_norm_bwd_kernel<8> : weight_norm_bwd_kernel<1>;
    cudaError_t rc = LAUNCH(kernel, gpu_blocks(K, WARPS), THREADS, 0, op_cuda_of(d)->stream, (float *)dv_f32,
                            (const float *)dw, (const float *)v, K, C);
    op_cuda_check(d, rc, "weight_norm_bwd");
}

void op_cuda_soft_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *q, const dv *pair, const dv *weight,
                     size_t P, float tau, size_t N, size_t K)
{
    if (!N || !K) return;
    op_cuda_check(d, GPU_CT(d, soft_ce, d, loss, dlogits, logits, q, pair, weight, P, 1 / tau, N, K), "soft_ce");
}

void op_cuda_koleo(device *d, dv *loss, dv *dx, const dv *x, float w, size_t N, size_t C)
{
    if (N && C) op_cuda_check(d, GPU_CT(d, koleo, d, loss, dx, x, w, N, C), "koleo");
}

void op_cuda_softmax_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *target, float w, size_t N,
                        size_t K)
{
    if (!N || !K) return;
    float *part = (float *)op_cuda_scratch(d, N * sizeof(float));
    if (!part) return;
    cudaError_t rc = LAUNCH(softmax_ce_kernel, gpu_blocks(N, WARPS), THREADS, 0, op_cuda_of(d)->stream, part,
                            (float *)dlogits, (const float *)logits, (const float *)target, w, N, K);
    op_cuda_check(d, rc ? rc : total(d, loss, part, N, w, true), "softmax_ce");
}

void op_cuda_sigmoid_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *target, const dv *weight, float w,
                        size_t N, size_t K)
{
    size_t n = N * K;
    unsigned blocks = gpu_blocks(n, 4 * THREADS);
    float *part = (float *)op_cuda_scratch(d, blocks * sizeof(float));
    if (!n || !part) return;
    cudaError_t rc = LAUNCH(sigmoid_ce_kernel, blocks, THREADS, 0, op_cuda_of(d)->stream, part, (float *)dlogits,
                            (const float *)logits, (const float *)target, (const float *)weight, w, n);
    op_cuda_check(d, rc ? rc : total(d, loss, part, blocks, w, true), "sigmoid_ce");
}
}
