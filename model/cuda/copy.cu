/* copy.cu: casts and elementwise ops, each a map over n values (rows.cuh): bytes moved are all that counts. */
#include "model/cuda/rows.cuh"

template <typename To, typename From> struct cast_values {
    To *dst;
    const From *src;
    template <int W> __device__ void run(size_t i) const
    {
        float v[W];
        gpu_load_n<W>(v, src + i);
        gpu_store_n<W>(dst + i, v);
    }
};

template <typename T> struct add_values {
    T *dst;
    const T *src;
    template <int W> __device__ void run(size_t i) const
    {
        float v[W], more[W];
        gpu_load_n<W>(v, dst + i);
        gpu_load_n<W>(more, src + i);
#pragma unroll
        for (int j = 0; j < W; j++) v[j] += more[j];
        gpu_store_n<W>(dst + i, v);
    }
};

template <typename T> struct scale_values {
    T *x;
    float by;
    template <int W> __device__ void run(size_t i) const
    {
        float v[W];
        gpu_load_n<W>(v, x + i);
#pragma unroll
        for (int j = 0; j < W; j++) v[j] *= by;
        gpu_store_n<W>(x + i, v);
    }
};

template <typename T> static cudaError_t to_ct(device *d, dv *dst, const dv *src, size_t n)
{
    cast_values<T, float> f = {(T *)dst, (const float *)src};
    return map<VECTOR<T>>(d, f, n, aligned(dst, src));
}

template <typename T> static cudaError_t to_f32(device *d, dv *dst, const dv *src, size_t n)
{
    cast_values<float, T> f = {(float *)dst, (const T *)src};
    return map<VECTOR<T>>(d, f, n, aligned(dst, src));
}

template <typename T> static cudaError_t add(device *d, dv *dst, const dv *src, size_t n)
{
    add_values<T> f = {(T *)dst, (const T *)src};
    return map<VECTOR<T>>(d, f, n, aligned(dst, src));
}

template <typename T> static cudaError_t scale(device *d, dv *x, float by, size_t n)
{
    scale_values<T> f = {(T *)x, by};
    return map<VECTOR<T>>(d, f, n, aligned(x));
}

extern "C" {
void op_cuda_to_ct(device *d, dv *dst, const dv *src_f32, size_t n)
{
    op_cuda_check(d, GPU_CT(d, to_ct, d, dst, src_f32, n), "to_ct");
}

void op_cuda_to_f32(device *d, dv *dst_f32, const dv *src, size_t n)
{
    op_cuda_check(d, GPU_CT(d, to_f32, d, dst_f32, src, n), "to_f32");
}

void op_cuda_add(device *d, dv *dst, const dv *src, size_t n)
{
    op_cuda_check(d, GPU_CT(d, add, d, dst, src, n), "add");
}

void op_cuda_scale(device *d, dv *x, float by, size_t n)
{
    op_cuda_check(d, GPU_CT(d, scale, d, x, by, n), "scale");
}
}
