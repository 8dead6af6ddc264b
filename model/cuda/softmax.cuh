/* softmax.cuh: what loss.cu and centering.cu share: the softmax statistics of a row of logits, from one read of it.
 * Exponents are below the largest so far; when a larger one comes, what was summed is scaled down to it. */
#ifndef RADAPT_SOFTMAX_CUH
#define RADAPT_SOFTMAX_CUH
#include <float.h>

#include "model/cuda/gpu.cuh"

constexpr int SOFTMAX_THREADS = 1024; /* of a block, at most */

/* Of values z: the largest; sum exp(z - most); sum exp(z - most) (z - most), by which entropy is log sum - slope / sum.
 */
struct running {
    float most, sum, slope;
};

template <int V> static __device__ __forceinline__ void running_add(running &r, const float (&z)[V])
{
    float most = r.most;
#pragma unroll
    for (int j = 0; j < V; j++) most = fmaxf(most, z[j]);
    float down = r.most - most, by = __expf(down);
    r.slope = (r.slope + r.sum * down) * by;
    r.sum *= by;
    r.most = most;
#pragma unroll
    for (int j = 0; j < V; j++) {
        float below = z[j] - most, e = __expf(below);
        r.sum += e;
        r.slope += e * below;
    }
}

static __device__ __forceinline__ running running_merge(const running &a, const running &b)
{
    float most = fmaxf(a.most, b.most), down_a = a.most - most, down_b = b.most - most;
    float by_a = __expf(down_a), by_b = __expf(down_b);
    return running{most, a.sum * by_a + b.sum * by_b,
                   (a.slope + a.sum * down_a) * by_a + (b.slope + b.sum * down_b) * by_b};
}

static __device__ __forceinline__ running running_warp(running r)
{
    for (int o = 16; o; o >>= 1) {
        running other = {__shfl_xor_sync(0xffffffffu, r.most, o), __shfl_xor_sync(0xffffffffu, r.sum, o),
                         __shfl_xor_sync(0xffffffffu, r.slope, o)};
        r = running_merge(r, other);
    }
    return r;
}

/* All threads get the statistics of z = (row - center) * inverse, row (K), center f32 (K) or NULL. A thread takes every
 * blockDim.x-th vector of V; warps merge by shuffles, the first warp the warps' (shared). Once a kernel. */
template <int V, typename T>
static __device__ __forceinline__ running running_row(const T *row, const float *center, float inverse, size_t K)
{
    __shared__ running warps[SOFTMAX_THREADS / 32], all;
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    running r = {-FLT_MAX, 0, 0};
    for (size_t k = (size_t)threadIdx.x * V; k < K; k += (size_t)blockDim.x * V) {
        float z[V], c[V] = {0};
        gpu_load_n<V>(z, row + k);
        if (center) gpu_load_n<V>(c, center + k);
#pragma unroll
        for (int j = 0; j < V; j++) z[j] = (z[j] - c[j]) * inverse;
        running_add<V>(r, z);
    }
    r = running_warp(r);
    if (!lane) warps[warp] = r;
    __syncthreads();
    if (!warp) {
        r = running{-FLT_MAX, 0, 0};
        if (lane < blockDim.x / 32) r = warps[lane];
        r = running_warp(r);
        if (!lane) all = r;
    }
    __syncthreads();
    return all;
}

/* Threads for a row of K values, V at a time: at least two vectors each, where there are as many. */
static inline unsigned softmax_threads(size_t K, size_t V)
{
    unsigned threads = 32;
    while (threads < SOFTMAX_THREADS && threads * 4 * V <= K) threads *= 2;
    return threads;
}

/* Whether rows of K values at these addresses may be walked 8 values at a time; NULL is no obstacle. */
template <typename... P> static inline bool softmax_wide(size_t K, const P *...p)
{
    return K % 8 == 0 && (0 | ... | (uintptr_t)p) % 16 == 0;
}
#endif
