/* embed.cu: tokens from pixels and back: patches, positions, class, register, mask and prompt tokens, and rows picked
 * by index. Structs for rows.cuh; sums over images run in their order in one thread. All is limited by bytes moved. */
#include "model/cuda/rows.cuh"

/* A lane's W columns of a patch's row are (channel, row, column) of the weight, single loads each: p values lie
 * together and need not be aligned (14 x 14). */
template <typename T> struct patch_row {
    T *out;
    const float *pixels;
    size_t height, width;
    unsigned p, gw, P;
    template <int W> __device__ void run(size_t i, size_t c) const
    {
        size_t b = i / P;
        unsigned k = (unsigned)(i % P), y = k / gw * p, x = k % gw * p;
        float v[W];
#pragma unroll
        for (int j = 0; j < W; j++) {
            unsigned at = (unsigned)c + j, row = at / p;
            v[j] = pixels[((b * 3 + row / p) * height + y + row % p) * width + x + at % p];
        }
        gpu_store_n<W>(out + i * 3 * p * p + c, v);
    }
};

/* The tokens of an image: [cls | R registers | S prompts | P patches]. */
struct tokens {
    size_t cls, R, S, P, C; /* cls: 0 or 1 */
    __host__ __device__ size_t before() const { return cls + R + S; }
    __host__ __device__ size_t T() const { return cls + R + S + P; }
};

template <typename T> struct embed_row {
    T *x;
    const T *patches;
    const float *cls, *reg, *pos, *mask_token;
    const uint8_t *mask;
    tokens n;
    template <int W> __device__ void run(size_t i, size_t c) const
    {
        size_t b = i / n.T(), t = i % n.T(), at = 0;
        float v[W], p[W];
        bool placed = true;
        if (t < n.cls) {
            gpu_load_n<W>(v, cls + c);
        } else if (t < n.cls + n.R) {
            gpu_load_n<W>(v, reg + (t - n.cls) * n.C + c);
            placed = false; /* registers come after the positional addition */
        } else if (t < n.before()) {
            return;
        } else {
            size_t k = t - n.before();
            at = 1 + k;
            if (mask && mask[b * n.P + k])
                gpu_load_n<W>(v, mask_token + c);
            else
                gpu_load_n<W>(v, patches + (b * n.P + k) * n.C + c);
        }
        if (placed) {
            gpu_load_n<W>(p, pos + at * n.C + c);
#pragma unroll
            for (int j = 0; j < W; j++) v[j] += p[j];
        }
        gpu_store_n<W>(x + i * n.C + c, v);
    }
};

template <int W> static __device__ __forceinline__ void add_to(float *p, const float (&v)[W])
{
    float sum[W];
    if (!p) return;
    gpu_load_n<W>(sum, p);
#pragma unroll
    for (int j = 0; j < W; j++) sum[j] += v[j];
    gpu_store_n<W>(p, sum);
}

/* Values i of a token's T x C, of all images, AHEAD of which are under way at once: writes between them would have the
 * loads wait for each other. */
constexpr int AHEAD = 4;

template <typename T> struct embed_back {
    T *dpatches;
    float *dcls, *dreg, *dpos;
    const T *dx;
    const uint8_t *mask;
    size_t B;
    tokens n;
    template <int W> __device__ void run(size_t i) const
    {
        size_t t = i / n.C, c = i % n.C, k = t - n.before();
        bool patch = t >= n.before();
        if (!patch && t >= n.cls + n.R) return;
        float sum[W] = {0}, v[AHEAD][W];
        for (size_t b = 0; b < B; b += AHEAD) {
#pragma unroll
            for (int a = 0; a < AHEAD; a++)
                if (b + a < B) gpu_load_n<W>(v[a], dx + (b + a) * n.T() * n.C + i);
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                if (b + a >= B) break;
#pragma unroll
                for (int j = 0; j < W; j++) sum[j] += v[a][j];
                if (!patch || !dpatches) continue;
                bool masked = mask && mask[(b + a) * n.P + k];
#pragma unroll
                for (int j = 0; j < W; j++) v[a][j] = masked ? 0 : v[a][j];
                gpu_store_n<W>(dpatches + ((b + a) * n.P + k) * n.C + c, v[a]);
            }
        }
        if (patch) {
            if (dpos) add_to<W>(dpos + (1 + k) * n.C + c, sum);
        } else if (t < n.cls) {
            if (dcls) add_to<W>(dcls + c, sum);
            if (dpos) add_to<W>(dpos + c, sum);
        } else if (dreg) {
            add_to<W>(dreg + (t - n.cls) * n.C + c, sum);
        }
    }
};

/* Sums over patches i of all images. */
template <typename T> struct mask_token_back {
    const T *dx;
    const uint8_t *mask;
    tokens n;
    template <int W> __device__ void run(size_t i, size_t c, float (&sum)[W]) const
    {
        float v[W];
        if (!mask[i]) return;
        gpu_load_n<W>(v, dx + (i / n.P * n.T() + n.before() + i % n.P) * n.C + c);
#pragma unroll
        for (int j = 0; j < W; j++) sum[j] += v[j];
    }
};

template <typename T> struct prompt_row {
    T *x;
    const float *prompts;
    size_t T_all, first, n, C;
    template <int W> __device__ void run(size_t i, size_t c) const
    {
        float v[W];
        gpu_load_n<W>(v, prompts + i % n * C + c);
        gpu_store_n<W>(x + (i / n * T_all + first + i % n) * C + c, v);
    }
};

/* Values i of the prompts' n x C. */
template <typename T> struct prompt_back {
    T *dx;
    float *dprompts;
    size_t B, T_all, first, C;
    template <int W> __device__ void run(size_t i) const
    {
        float sum[W] = {0}, v[W], zero[W] = {0};
        for (size_t b = 0; b < B; b++) {
            T *at = dx + (b * T_all + first) * C + i;
            gpu_load_n<W>(v, at);
#pragma unroll
            for (int j = 0; j < W; j++) sum[j] += v[j];
            gpu_store_n<W>(at, zero);
        }
        if (dprompts) add_to<W>(dprompts + i, sum);
    }
};

/* Block (image, tile of 32 * V columns): warps take rows in turn, copy them one further down and add up those from
 * `first` on; the warps' sums go through shared memory. */
template <typename T, int V>
static __global__ void __launch_bounds__(32 * SUMS_GROUPS)
    mean_token_kernel(T *out, const T *x, size_t rows, size_t first, size_t C)
{
    size_t c = ((size_t)blockIdx.y * 32 + threadIdx.x % 32) * V, b = blockIdx.x;
    float sum[V] = {0}, v[V];
    if (c < C)
        for (size_t t = threadIdx.x / 32; t < rows; t += SUMS_GROUPS) {
            gpu_load_n<V>(v, x + (b * rows + t) * C + c);
            gpu_store_n<V>(out + (b * (rows + 1) + 1 + t) * C + c, v);
            if (t < first) continue;
#pragma unroll
            for (int j = 0; j < V; j++) sum[j] += v[j];
        }
    sum_groups<V>(sum);
    if (threadIdx.x >= 32 || c >= C) return;
#pragma unroll
    for (int j = 0; j < V; j++) sum[j] /= (float)(rows - first);
    gpu_store_n<V>(out + b * (rows + 1) * C + c, sum);
}

template <typename T> struct mean_token_back {
    T *dx;
    const T *dout;
    size_t T_all, first, C;
    template <int W> __device__ void run(size_t i, size_t c) const
    {
        size_t b = i / T_all, t = i % T_all;
        float v[W], mean[W];
        gpu_load_n<W>(v, dout + (i + b + 1) * C + c);
        if (t >= first) {
            gpu_load_n<W>(mean, dout + b * (T_all + 1) * C + c);
#pragma unroll
            for (int j = 0; j < W; j++) v[j] += mean[j] / (float)(T_all - first);
        }
        gpu_store_n<W>(dx + i * C + c, v);
    }
};

template <typename T> struct gather_row {
    T *out;
    const T *x;
    const int32_t *from;
    size_t C;
    template <int W> __device__ void run(size_t i, size_t c) const
    {
        float v[W];
        gpu_load_n<W>(v, x + (size_t)from[i] * C + c);
        gpu_store_n<W>(out + i * C + c, v);
    }
};

template <typename T> struct scatter_row {
    T *dx;
    const T *dout;
    const int32_t *to;
    size_t C;
    template <int W> __device__ void run(size_t i, size_t c) const
    {
        T *at = dx + (size_t)to[i] * C + c;
        float v[W], more[W];
        gpu_load_n<W>(v, at);
        gpu_load_n<W>(more, dout + i * C + c);
#pragma unroll
        for (int j = 0; j < W; j++) v[j] += more[j];
        gpu_store_n<W>(at, v);
    }
};

struct mix_row {
    float *out;
    const float *in;
    const int32_t *first, *index;
    const float *weight;
    bool add;
    size_t C;
    template <int W> __device__ void run(size_t i, size_t c) const
    {
        float sum[W] = {}, v[W];
        if (add) gpu_load_n<W>(sum, out + i * C + c);
        for (int32_t k = first[i]; k < first[i + 1]; k++) {
            gpu_load_n<W>(v, in + (size_t)index[k] * C + c);
#pragma unroll
            for (int j = 0; j < W; j++) sum[j] += weight[k] * v[j];
        }
        gpu_store_n<W>(out + i * C + c, sum);
    }
};

template <typename T>
static cudaError_t patchify(device *d, dv *out, const dv *pixels, size_t B, size_t height, size_t width, size_t p)
{
    size_t gw = width / p, P = height / p * gw;
    patch_row<T> f = {(T *)out, (const float *)pixels, height, width, (unsigned)p, (unsigned)gw, (unsigned)P};
    return rows<4>(d, f, B * P, 3 * p * p, aligned(out));
}

template <typename T>
static cudaError_t embed_fwd(device *d, dv *x, const dv *patches, const dv *cls, const dv *reg, const dv *pos,
                             const dv *mask_token, const dv *mask, const tokens &n, size_t B)
{
    embed_row<T> f = {(T *)x,
                      (const T *)patches,
                      (const float *)cls,
                      (const float *)reg,
                      (const float *)pos,
                      (const float *)mask_token,
                      (const uint8_t *)mask,
                      n};
    return rows<VECTOR<T>>(d, f, B * n.T(), n.C, aligned(x, patches, cls, reg, pos, mask_token));
}

template <typename T>
static cudaError_t embed_bwd(device *d, dv *dpatches, dv *dcls, dv *dreg, dv *dpos, dv *dmask_token, const dv *dx,
                             const dv *mask, const tokens &n, size_t B)
{
    if (!B || !n.C) return cudaSuccess;
    embed_back<T> f = {
        (T *)dpatches, (float *)dcls, (float *)dreg, (float *)dpos, (const T *)dx, (const uint8_t *)mask, B, n};
    bool vectors = n.C % VECTOR<T> == 0 && aligned(dpatches, dcls, dreg, dpos, dx);
    cudaError_t rc = map<VECTOR<T>>(d, f, n.T() * n.C, vectors);
    if (rc || !dmask_token || !mask) return rc;
    mask_token_back<T> sum = {(const T *)dx, (const uint8_t *)mask, n};
    return sums<VECTOR<T>>(d, sum, (float *)dmask_token, B * n.P, n.C, aligned(dx));
}

template <typename T>
static cudaError_t prompt_fwd(device *d, dv *x, const dv *prompts, size_t B, size_t rows_all, size_t first, size_t n,
                              size_t C)
{
    prompt_row<T> f = {(T *)x, (const float *)prompts, rows_all, first, n, C};
    return rows<VECTOR<T>>(d, f, B * n, C, aligned(x, prompts));
}

template <typename T>
static cudaError_t prompt_bwd(device *d, dv *dx, dv *dprompts, size_t B, size_t rows_all, size_t first, size_t n,
                              size_t C)
{
    if (!B) return cudaSuccess;
    prompt_back<T> f = {(T *)dx, (float *)dprompts, B, rows_all, first, C};
    return map<VECTOR<T>>(d, f, n * C, C % VECTOR<T> == 0 && aligned(dx, dprompts));
}

template <typename T>
static cudaError_t mean_token_fwd(device *d, dv *out, const dv *x, size_t B, size_t rows_all, size_t first, size_t C)
{
    if (!B || !C) return cudaSuccess;
    constexpr int V = VECTOR<T>;
    bool vectors = C % V == 0 && aligned(out, x);
    auto kernel = vectors ? mean_token_kernel<T, V> : mean_token_kernel<T, 1>;
    dim3 grid((unsigned)B, gpu_blocks(C, vectors ? 32 * V : 32));
    return LAUNCH(kernel, grid, 32 * SUMS_GROUPS, 0, op_cuda_of(d)->stream, (T *)out, (const T *)x, rows_all, first, C);
}

template <typename T>
static cudaError_t mean_token_bwd(device *d, dv *dx, const dv *dout, size_t B, size_t rows_all, size_t first, size_t C)
{
    mean_token_back<T> f = {(T *)dx, (const T *)dout, rows_all, first, C};
    return rows<VECTOR<T>>(d, f, B * rows_all, C, aligned(dx, dout));
}

template <typename T> static cudaError_t gather(device *d, dv *out, const dv *x, const dv *index, size_t n, size_t C)
{
    gather_row<T> f = {(T *)out, (const T *)x, (const int32_t *)index, C};
    return rows<VECTOR<T>>(d, f, n, C, aligned(out, x));
}

template <typename T>
static cudaError_t scatter_add(device *d, dv *dx, const dv *dout, const dv *index, size_t n, size_t C)
{
    scatter_row<T> f = {(T *)dx, (const T *)dout, (const int32_t *)index, C};
    return rows<VECTOR<T>>(d, f, n, C, aligned(dx, dout));
}

extern "C" {
void op_cuda_patchify(device *d, dv *out, const dv *pixels, size_t B, size_t height, size_t width, size_t p)
{
    op_cuda_check(d, GPU_CT(d, patchify, d, out, pixels, B, height, width, p), "patchify");
}

void op_cuda_embed_fwd(device *d, dv *x, const dv *patches, const dv *cls, const dv *reg, const dv *pos,
                       const dv *mask_token, const dv *mask, size_t B, size_t P, size_t R, size_t S, size_t C)
{
    tokens n = {cls ? 1u : 0u, R, S, P, C};
    op_cuda_check(d, GPU_CT(d, embed_fwd, d, x, patches, cls, reg, pos, mask_token, mask, n, B), "embed_fwd");
}

void op_cuda_embed_bwd(device *d, dv *dpatches, dv *dcls, dv *dreg, dv *dpos, dv *dmask_token, const dv *dx,
                       const dv *mask, bool cls, size_t B, size_t P, size_t R, size_t S, size_t C)
{
    tokens n = {cls, R, S, P, C};
    op_cuda_check(d, GPU_CT(d, embed_bwd, d, dpatches, dcls, dreg, dpos, dmask_token, dx, mask, n, B), "embed_bwd");
}

void op_cuda_prompt_fwd(device *d, dv *x, const dv *prompts, size_t B, size_t T, size_t first, size_t n, size_t C)
{
    op_cuda_check(d, GPU_CT(d, prompt_fwd, d, x, prompts, B, T, first, n, C), "prompt_fwd");
}

void op_cuda_prompt_bwd(device *d, dv *dx, dv *dprompts, size_t B, size_t T, size_t first, size_t n, size_t C)
{
    op_cuda_check(d, GPU_CT(d, prompt_bwd, d, dx, dprompts, B, T, first, n, C), "prompt_bwd");
}

void op_cuda_mean_token_fwd(device *d, dv *out, const dv *x, size_t B, size_t T, size_t first, size_t C)
{
    op_cuda_check(d, GPU_CT(d, mean_token_fwd, d, out, x, B, T, first, C), "mean_token_fwd");
}

void op_cuda_mean_token_bwd(device *d, dv *dx, const dv *dout, size_t B, size_t T, size_t first, size_t C)
{
    op_cuda_check(d, GPU_CT(d, mean_token_bwd, d, dx, dout, B, T, first, C), "mean_token_bwd");
}

void op_cuda_gather(device *d, dv *out, const dv *x, const dv *rows, size_t n, size_t C)
{
    op_cuda_check(d, GPU_CT(d, gather, d, out, x, rows, n, C), "gather");
}

void op_cuda_scatter_add(device *d, dv *dx, const dv *dout, const dv *rows, size_t n, size_t C)
{
    op_cuda_check(d, GPU_CT(d, scatter_add, d, dx, dout, rows, n, C), "scatter_add");
}

void op_cuda_mix_rows(device *d, dv *out, bool add, const dv *in, const dv *first, const dv *index, const dv *weight,
                      size_t n, size_t C)
{
    mix_row f = {
        (float *)out, (const float *)in, (const int32_t *)first, (const int32_t *)index, (const float *)weight, add, C};
    op_cuda_check(d, rows<VECTOR<float>>(d, f, n, C, aligned(out, in)), "mix_rows");
}
}
