/* gpu.cuh: what every .cu file includes, and the only place that knows whether nvcc or the tests' host executor
 * (tests/cuda_host) compiles it. Inline PTX is here and nowhere else, each piece beside its emulated twin.
 *
 * Rules for kernels: launched through LAUNCH alone (give template kernels an alias first: commas), dynamic shared
 * memory through DYN_SMEM alone, blocks of a multiple of 32 threads, no return before a barrier, full warps in every
 * shuffle,
 * __syncwarp where lanes of a warp exchange through memory, no float atomics, sizes and offsets in size_t. */
#ifndef RADAPT_GPU_CUH
#define RADAPT_GPU_CUH
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#define DYN_SMEM(T, name)                                                                                              \
    extern __shared__ __align__(1024) unsigned char name##_raw_[];                                                     \
    T *name = reinterpret_cast<T *>(name##_raw_)
#define LAUNCH(kernel, grid, block, smem, stream, ...)                                                                 \
    (kernel<<<(grid), (block), (smem), (stream)>>>(__VA_ARGS__), cudaGetLastError())
#else
#include "tests/cuda_host/cuda_emu.h"
#define DYN_SMEM(T, name) T *name = static_cast<T *>(emu::dyn_smem())
#define LAUNCH(kernel, grid, block, smem, stream, ...)                                                                 \
    emu::launch(#kernel, kernel, grid, block, smem, stream, __VA_ARGS__)
#endif
#include "model/cuda/op_cuda.h"

typedef __nv_bfloat16 bf16;

/* One value of compute type T (float or bf16) as fp32, and back, rounded to nearest even. */
static __device__ __forceinline__ float gpu_load(const float *p, size_t i)
{
    return p[i];
}
static __device__ __forceinline__ float gpu_load(const bf16 *p, size_t i)
{
    return __bfloat162float(p[i]);
}
static __device__ __forceinline__ void gpu_store(float *p, size_t i, float v)
{
    p[i] = v;
}
static __device__ __forceinline__ void gpu_store(bf16 *p, size_t i, float v)
{
    p[i] = __float2bfloat16(v);
}

/* V consecutive values from p on as fp32, and back. V of 4 or 8: p is aligned to their bytes, or to 16. */
template <int V> static __device__ __forceinline__ void gpu_load_n(float (&v)[V], const float *p)
{
    if constexpr (V % 4 == 0) {
        const float4 *from = reinterpret_cast<const float4 *>(p);
#pragma unroll
        for (int j = 0; j < V / 4; j++) {
            float4 f = from[j];
            v[4 * j] = f.x, v[4 * j + 1] = f.y, v[4 * j + 2] = f.z, v[4 * j + 3] = f.w;
        }
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) v[j] = p[j];
    }
}
template <int V> static __device__ __forceinline__ void gpu_load_n(float (&v)[V], const bf16 *p)
{
    if constexpr (V % 4 == 0) {
        unsigned u[V / 2]; /* two values each, the first in the low half */
        if constexpr (V == 8) {
            uint4 f = *reinterpret_cast<const uint4 *>(p);
            u[0] = f.x, u[1] = f.y, u[2] = f.z, u[3] = f.w;
        } else {
            uint2 f = *reinterpret_cast<const uint2 *>(p);
            u[0] = f.x, u[1] = f.y;
        }
#pragma unroll
        for (int j = 0; j < V / 2; j++) {
            v[2 * j] = __uint_as_float(u[j] << 16);
            v[2 * j + 1] = __uint_as_float(u[j] & 0xffff0000u);
        }
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) v[j] = __bfloat162float(p[j]);
    }
}
template <int V> static __device__ __forceinline__ void gpu_store_n(float *p, const float (&v)[V])
{
    if constexpr (V % 4 == 0) {
        float4 *to = reinterpret_cast<float4 *>(p);
#pragma unroll
        for (int j = 0; j < V / 4; j++) to[j] = make_float4(v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3]);
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) p[j] = v[j];
    }
}
template <int V> static __device__ __forceinline__ void gpu_store_n(bf16 *p, const float (&v)[V])
{
    if constexpr (V % 4 == 0) {
        unsigned u[V / 2];
#pragma unroll
        for (int j = 0; j < V / 2; j++)
            u[j] = (unsigned)__bfloat16_as_ushort(__float2bfloat16(v[2 * j])) |
                   (unsigned)__bfloat16_as_ushort(__float2bfloat16(v[2 * j + 1])) << 16;
        if constexpr (V == 8)
            *reinterpret_cast<uint4 *>(p) = make_uint4(u[0], u[1], u[2], u[3]);
        else
            *reinterpret_cast<uint2 *>(p) = make_uint2(u[0], u[1]);
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) p[j] = __float2bfloat16(v[j]);
    }
}
static __device__ __forceinline__ float warp_sum(float v)
{
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}
static __device__ __forceinline__ double warp_sum(double v)
{
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}
static __device__ __forceinline__ float warp_max(float v)
{
    for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
    return v;
}

/* 2^x within 2 ulp; what is smaller than 2^-126 is 0. */
static __device__ __forceinline__ float gpu_exp2(float x)
{
#ifdef CUDA_EMU
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

static inline unsigned gpu_blocks(size_t n, size_t per_block)
{
    return (unsigned)((n + per_block - 1) / per_block);
}

/* Runs launcher<T>(...) for the device's compute type: GPU_CT(d, norm_fwd, d, y, x); in an extern "C" op. */
#define GPU_CT(d, launcher, ...) ((d)->ct == COMPUTE_BF16 ? launcher<bf16>(__VA_ARGS__) : launcher<float>(__VA_ARGS__))

/* --- tensor cores (sm_80 and up), asynchronous copies: PTX ISA 9.7.14, 9.7.9.25 */

static __device__ __forceinline__ void mma_bf16_16816(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                                      const float (&c)[4])
{
#ifdef CUDA_EMU
    emu::mma_m16n8k16_bf16(d, a, b, c);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else
    __trap();
#endif
}
static __device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void *row)
{
#ifdef CUDA_EMU
    emu::ldmatrix(r, row, 4, false);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
#endif
}
static __device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void *row)
{
#ifdef CUDA_EMU
    emu::ldmatrix(r, row, 4, true);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
#endif
}
static __device__ __forceinline__ void cp_async16(void *dst_shared, const void *src, bool valid)
{ // zero-fills when !valid
#ifdef CUDA_EMU
    emu::cp_async(dst_shared, src, 16, valid ? 16 : 0);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(dst_shared)),
                 "l"(src), "r"(valid ? 16 : 0)
                 : "memory");
#else
    *reinterpret_cast<uint4 *>(dst_shared) = valid ? *reinterpret_cast<const uint4 *>(src) : make_uint4(0, 0, 0, 0);
#endif
}
static __device__ __forceinline__ void cp_async_commit()
{
#ifdef CUDA_EMU
    emu::cp_commit();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N> static __device__ __forceinline__ void cp_async_wait()
{
#ifdef CUDA_EMU
    emu::cp_wait(N);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}
#endif
