/* total.cuh: a scalar from its parts, which an earlier kernel's blocks or rows left in scratch. The order in which they
 * are added depends on their number alone. */
#ifndef RADAPT_TOTAL_CUH
#define RADAPT_TOTAL_CUH
#include "model/cuda/gpu.cuh"

constexpr int TOTAL_THREADS = 1024;

/* out (1) = (add ? out : 0) + by * sum of part (n). One block: a thread adds every 1024th part in double, warps by
 * shuffles, the first warp the warps' sums (shared). Limited by latency: 4 n bytes are read. */
static __global__ void __launch_bounds__(TOTAL_THREADS)
    total_kernel(float *out, const float *part, size_t n, float by, bool add)
{
    __shared__ double warps[TOTAL_THREADS / 32];
    double sum = 0;
#pragma unroll 4
    for (size_t i = threadIdx.x; i < n; i += TOTAL_THREADS) sum += part[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    sum = warp_sum(warps[threadIdx.x]);
    if (!threadIdx.x) out[0] = (add ? out[0] : 0) + (float)(by * sum);
}

static inline cudaError_t total(device *d, dv *out, const float *part, size_t n, float by, bool add)
{
    return LAUNCH(total_kernel, 1, TOTAL_THREADS, 0, op_cuda_of(d)->stream, (float *)out, part, n, by, add);
}
#endif
