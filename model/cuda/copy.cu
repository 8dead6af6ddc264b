/* copy.cu: casts and elementwise ops: a thread a value, in a grid as large as they are many. Memory-bound. */
#include "model/cuda/gpu.cuh"

constexpr int THREADS = 256;

template <typename To, typename From> static __global__ void __launch_bounds__(THREADS)
    cast_kernel(To *dst, const From *src, size_t n)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) gpu_store(dst, i, gpu_load(src, i));
}

template <typename T> static __global__ void __launch_bounds__(THREADS) add_kernel(T *dst, const T *src, size_t n)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) gpu_store(dst, i, gpu_load(dst, i) + gpu_load(src, i));
}

template <typename T> static __global__ void __launch_bounds__(THREADS) scale_kernel(T *x, float by, size_t n)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) gpu_store(x, i, gpu_load(x, i) * by);
}

template <typename To, typename From> static cudaError_t cast(device *d, dv *dst, const dv *src, size_t n)
{
    auto kernel = cast_kernel<To, From>;
    return LAUNCH(kernel, gpu_blocks(n, THREADS), THREADS, 0, op_cuda_of(d)->stream, (To *)dst, (const From *)src, n);
}

template <typename T> static cudaError_t to_ct(device *d, dv *dst, const dv *src, size_t n)
{
    return cast<T, float>(d, dst, src, n);
}

template <typename T> static cudaError_t to_f32(device *d, dv *dst, const dv *src, size_t n)
{
    return cast<float, T>(d, dst, src, n);
}

template <typename T> static cudaError_t add(device *d, dv *dst, const dv *src, size_t n)
{
    auto kernel = add_kernel<T>;
    return LAUNCH(kernel, gpu_blocks(n, THREADS), THREADS, 0, op_cuda_of(d)->stream, (T *)dst, (const T *)src, n);
}

template <typename T> static cudaError_t scale(device *d, dv *x, float by, size_t n)
{
    auto kernel = scale_kernel<T>;
    return LAUNCH(kernel, gpu_blocks(n, THREADS), THREADS, 0, op_cuda_of(d)->stream, (T *)x, by, n);
}

extern "C" {
void op_cuda_to_ct(device *d, dv *dst, const dv *src_f32, size_t n)
{
    if (n) op_cuda_check(d, GPU_CT(d, to_ct, d, dst, src_f32, n), "to_ct");
}

void op_cuda_to_f32(device *d, dv *dst_f32, const dv *src, size_t n)
{
    if (n) op_cuda_check(d, GPU_CT(d, to_f32, d, dst_f32, src, n), "to_f32");
}

void op_cuda_add(device *d, dv *dst, const dv *src, size_t n)
{
    if (n) op_cuda_check(d, GPU_CT(d, add, d, dst, src, n), "add");
}

void op_cuda_scale(device *d, dv *x, float by, size_t n)
{
    if (n) op_cuda_check(d, GPU_CT(d, scale, d, x, by, n), "scale");
}
}
