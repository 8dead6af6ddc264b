/* gelu.cu: GELU (exact: by erf), alone, with the bias of the layer before, or with its derivative kept in 10 bits in
 * op_cpu_gelu.c's layout; and SwiGLU. Structs for rows.cuh, limited by bytes moved: about 30 instructions a value. */
#include "model/cuda/gelu.cuh"
#include "model/cuda/rows.cuh"

template <typename T> struct gelu_forward {
    T *y;
    const T *pre;
    template <int W> __device__ void run(size_t i) const
    {
        float v[W];
        gpu_load_n<W>(v, pre + i);
#pragma unroll
        for (int j = 0; j < W; j++) v[j] *= gelu_cdf(v[j]);
        gpu_store_n<W>(y + i, v);
    }
};

template <typename T> struct gelu_backward {
    T *dpre;
    const T *dy, *pre;
    template <int W> __device__ void run(size_t i) const
    {
        float g[W], v[W];
        gpu_load_n<W>(g, dy + i);
        gpu_load_n<W>(v, pre + i);
#pragma unroll
        for (int j = 0; j < W; j++) g[j] *= gelu_slope(v[j], gelu_cdf(v[j]));
        gpu_store_n<W>(dpre + i, g);
    }
};

template <typename T> struct gelu_bias_row {
    T *y, *x;
    const float *bias; /* or NULL */
    bool keep;
    size_t F;
    template <int W> __device__ void run(size_t row, size_t c) const
    {
        float v[W], b[W];
        gpu_load_n<W>(v, x + row * F + c);
        if (bias) {
            gpu_load_n<W>(b, bias + c);
#pragma unroll
            for (int j = 0; j < W; j++) v[j] += b[j];
        }
        if (keep) gpu_store_n<W>(x + row * F + c, v);
#pragma unroll
        for (int j = 0; j < W; j++) v[j] *= gelu_cdf(v[j]);
        gpu_store_n<W>(y + row * F + c, v);
    }
};

/* --- the derivative in 10 bits. A thread has a group of G columns: 8 where all rows are aligned, else 4, of which
 * `left` are in the row. */

template <int G, typename T> static __device__ __forceinline__ void load_group(float (&v)[G], const T *p, size_t left)
{
    if constexpr (G == 8)
        gpu_load_n<G>(v, p);
    else
        for (int j = 0; j < G; j++) v[j] = (size_t)j < left ? gpu_load(p, j) : 0;
}

template <int G, typename T> static __device__ __forceinline__ void store_group(T *p, const float (&v)[G], size_t left)
{
    if constexpr (G == 8)
        gpu_store_n<G>(p, v);
    else
        for (int j = 0; j < G; j++)
            if ((size_t)j < left) gpu_store(p, j, v[j]);
}

template <int G>
static __device__ __forceinline__ void store_codes(uint8_t *low, uint8_t *high, const unsigned (&code)[G], size_t left)
{
    unsigned bits = 0, word[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < G; j++) {
        bits |= code[j] >> 8 << 2 * j;
        word[j / 4] |= (code[j] & 255) << 8 * (j % 4);
    }
    if constexpr (G == 8) {
        *reinterpret_cast<uint2 *>(low) = make_uint2(word[0], word[1]);
        *reinterpret_cast<uint16_t *>(high) = (uint16_t)bits;
    } else {
        for (int j = 0; j < G; j++)
            if ((size_t)j < left) low[j] = (uint8_t)code[j];
        *high = (uint8_t)bits;
    }
}

template <int G>
static __device__ __forceinline__ void load_codes(unsigned (&code)[G], const uint8_t *low, const uint8_t *high,
                                                  size_t left)
{
    if constexpr (G == 8) {
        uint2 word = *reinterpret_cast<const uint2 *>(low);
        unsigned bits = *reinterpret_cast<const uint16_t *>(high);
#pragma unroll
        for (int j = 0; j < G; j++) {
            unsigned byte = (j < 4 ? word.x : word.y) >> 8 * (j % 4) & 255;
            code[j] = byte | (bits >> 2 * j & 3) << 8;
        }
    } else {
        for (int j = 0; j < G; j++) code[j] = ((size_t)j < left ? low[j] : 0) | (*high >> 2 * j & 3u) << 8;
    }
}

/* Column c of rows.cuh is group c. */
template <typename T, int G> struct slope_forward {
    T *y;
    uint8_t *slope;
    const float *bias; /* or NULL */
    size_t F, stride;
    template <int W> __device__ void run(size_t row, size_t group) const
    {
        size_t c = group * G, left = F - c;
        float v[G], b[G];
        unsigned code[G];
        load_group<G>(v, y + row * F + c, left);
        if (bias) {
            load_group<G>(b, bias + c, left);
#pragma unroll
            for (int j = 0; j < G; j++) v[j] += b[j];
        }
#pragma unroll
        for (int j = 0; j < G; j++) {
            float cdf = gelu_cdf(v[j]);
            code[j] = (size_t)j < left ? slope_code(v[j], cdf) : 0;
            v[j] *= cdf;
        }
        store_codes<G>(slope + row * stride + c, slope + row * stride + F + c / 4, code, left);
        store_group<G>(y + row * F + c, v, left);
    }
};

template <typename T, int G> struct slope_backward {
    T *dpre;
    const T *dy;
    const uint8_t *slope;
    size_t F, stride;
    template <int W> __device__ void run(size_t row, size_t group) const
    {
        size_t c = group * G, left = F - c;
        float g[G];
        unsigned code[G];
        load_group<G>(g, dy + row * F + c, left);
        load_codes<G>(code, slope + row * stride + c, slope + row * stride + F + c / 4, left);
#pragma unroll
        for (int j = 0; j < G; j++) g[j] *= slope_of(code[j]);
        store_group<G>(dpre + row * F + c, g, left);
    }
};

/* --- SwiGLU: silu(x) = x s, s = 1 / (1 + exp -x); silu' = s + x s (1 - s) */

static __device__ __forceinline__ float sigmoid(float x)
{
    return __fdividef(1.0f, 1.0f + __expf(-x));
}

template <typename T> struct swiglu_forward {
    T *y;
    const T *pre;
    size_t F;
    template <int W> __device__ void run(size_t row, size_t c) const
    {
        float x1[W], x2[W];
        gpu_load_n<W>(x1, pre + 2 * row * F + c);
        gpu_load_n<W>(x2, pre + (2 * row + 1) * F + c);
#pragma unroll
        for (int j = 0; j < W; j++) x1[j] *= sigmoid(x1[j]) * x2[j];
        gpu_store_n<W>(y + row * F + c, x1);
    }
};

template <typename T> struct swiglu_backward {
    T *dpre;
    const T *dy, *pre;
    size_t F;
    template <int W> __device__ void run(size_t row, size_t c) const
    {
        float x1[W], x2[W], g[W];
        gpu_load_n<W>(x1, pre + 2 * row * F + c);
        gpu_load_n<W>(x2, pre + (2 * row + 1) * F + c);
        gpu_load_n<W>(g, dy + row * F + c);
#pragma unroll
        for (int j = 0; j < W; j++) {
            float s = sigmoid(x1[j]), silu = x1[j] * s;
            x1[j] = g[j] * x2[j] * (s + silu * (1.0f - s));
            x2[j] = g[j] * silu;
        }
        gpu_store_n<W>(dpre + 2 * row * F + c, x1);
        gpu_store_n<W>(dpre + (2 * row + 1) * F + c, x2);
    }
};

template <typename T> static cudaError_t gelu_fwd(device *d, dv *y, const dv *pre, size_t n)
{
    gelu_forward<T> f = {(T *)y, (const T *)pre};
    return map<VECTOR<T>>(d, f, n, aligned(y, pre));
}

template <typename T> static cudaError_t gelu_bwd(device *d, dv *dpre, const dv *dy, const dv *pre, size_t n)
{
    gelu_backward<T> f = {(T *)dpre, (const T *)dy, (const T *)pre};
    return map<VECTOR<T>>(d, f, n, aligned(dpre, dy, pre));
}

template <typename T>
static cudaError_t gelu_bias_fwd(device *d, dv *y, dv *x, const dv *bias, bool keep, size_t N, size_t F)
{
    gelu_bias_row<T> f = {(T *)y, (T *)x, (const float *)bias, keep, F};
    return rows<VECTOR<T>>(d, f, N, F, aligned(y, x, bias));
}

template <typename T> static cudaError_t gelu_slope_fwd(device *d, dv *y, dv *slope, const dv *bias, size_t N, size_t F)
{
    if (aligned(y, slope, bias) && F % SLOPE_ALIGNED == 0) {
        slope_forward<T, 8> f = {(T *)y, (uint8_t *)slope, (const float *)bias, F, op_slope_bytes(F)};
        return rows<1>(d, f, N, F / 8, false);
    }
    slope_forward<T, 4> f = {(T *)y, (uint8_t *)slope, (const float *)bias, F, op_slope_bytes(F)};
    return rows<1>(d, f, N, (F + 3) / 4, false);
}

template <typename T>
static cudaError_t gelu_slope_bwd(device *d, dv *dpre, const dv *dy, const dv *slope, size_t N, size_t F)
{
    if (aligned(dpre, dy, slope) && F % SLOPE_ALIGNED == 0) {
        slope_backward<T, 8> f = {(T *)dpre, (const T *)dy, (const uint8_t *)slope, F, op_slope_bytes(F)};
        return rows<1>(d, f, N, F / 8, false);
    }
    slope_backward<T, 4> f = {(T *)dpre, (const T *)dy, (const uint8_t *)slope, F, op_slope_bytes(F)};
    return rows<1>(d, f, N, (F + 3) / 4, false);
}

template <typename T> static cudaError_t swiglu_fwd(device *d, dv *y, const dv *pre, size_t N, size_t F)
{
    swiglu_forward<T> f = {(T *)y, (const T *)pre, F};
    return rows<VECTOR<T>>(d, f, N, F, aligned(y, pre));
}

template <typename T>
static cudaError_t swiglu_bwd(device *d, dv *dpre, const dv *dy, const dv *pre, size_t N, size_t F)
{
    swiglu_backward<T> f = {(T *)dpre, (const T *)dy, (const T *)pre, F};
    return rows<VECTOR<T>>(d, f, N, F, aligned(dpre, dy, pre));
}

extern "C" {
void op_cuda_gelu_fwd(device *d, dv *y, const dv *pre, size_t n)
{
    op_cuda_check(d, GPU_CT(d, gelu_fwd, d, y, pre, n), "gelu_fwd");
}

void op_cuda_gelu_bwd(device *d, dv *dpre, const dv *dy, const dv *pre, size_t n)
{
    op_cuda_check(d, GPU_CT(d, gelu_bwd, d, dpre, dy, pre, n), "gelu_bwd");
}

void op_cuda_gelu_bias_fwd(device *d, dv *y, dv *x, const dv *bias, bool keep, size_t N, size_t F)
{
    op_cuda_check(d, GPU_CT(d, gelu_bias_fwd, d, y, x, bias, keep, N, F), "gelu_bias_fwd");
}

void op_cuda_gelu_slope_fwd(device *d, dv *y, dv *slope, const dv *bias, size_t N, size_t F)
{
    op_cuda_check(d, GPU_CT(d, gelu_slope_fwd, d, y, slope, bias, N, F), "gelu_slope_fwd");
}

void op_cuda_gelu_slope_bwd(device *d, dv *dpre, const dv *dy, const dv *slope, size_t N, size_t F)
{
    op_cuda_check(d, GPU_CT(d, gelu_slope_bwd, d, dpre, dy, slope, N, F), "gelu_slope_bwd");
}

void op_cuda_swiglu_fwd(device *d, dv *y, const dv *pre, size_t N, size_t F)
{
    op_cuda_check(d, GPU_CT(d, swiglu_fwd, d, y, pre, N, F), "swiglu_fwd");
}

void op_cuda_swiglu_bwd(device *d, dv *dpre, const dv *dy, const dv *pre, size_t N, size_t F)
{
    op_cuda_check(d, GPU_CT(d, swiglu_bwd, d, dpre, dy, pre, N, F), "swiglu_bwd");
}
}
