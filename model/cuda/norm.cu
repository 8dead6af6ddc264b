/* norm.cu: LayerNorm, residual connections with LayerScale, biases, and sums of columns. What has no statistics of rows
 * is a struct for rows.cuh.
 *
 * LayerNorm holds a row in the registers of a team of threads, E values each: it is read once, and the variance is of
 * differences from the mean. A warp is a team for rows of up to 1024 values, a block for longer ones, and where a
 * rest takes registers too; 8192 at most. Rows that are not whole vectors of 16 bytes (no model's are) take the largest
 * team. All is limited by bytes moved. */
#include "model/cuda/rows.cuh"

constexpr size_t NORM_MOST = 8192;

/* Threads of a block, and rows it works on at a time. */
template <int TEAM> constexpr int TEAM_THREADS = TEAM < 128 ? 128 : TEAM;
template <int TEAM> constexpr int TEAM_ROWS = TEAM_THREADS<TEAM> / TEAM;

/* Each of s over the team: by shuffles, and where it is a block through a float a warp of shared memory. All threads of
 * the block call it, or of the warp that is the team. */
template <int TEAM, int n> static __device__ __forceinline__ void team_sum(float (&s)[n])
{
#pragma unroll
    for (int i = 0; i < n; i++) s[i] = warp_sum(s[i]);
    if constexpr (TEAM > 32) {
        __shared__ float warps[n][TEAM / 32];
        __syncthreads(); /* what an earlier call left was read */
        if (threadIdx.x % 32 == 0)
            for (int i = 0; i < n; i++) warps[i][threadIdx.x / 32] = s[i];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < n; i++) {
            s[i] = 0;
            for (int w = 0; w < TEAM / 32; w++) s[i] += warps[i][w];
        }
    }
}

/* run.run<V, E, TEAM>() with the smallest team that holds a row; WIDE: of blocks, for less registers a thread. */
template <typename T, bool WIDE = false, typename R> static cudaError_t team_run(const R &run, size_t C, bool vectors)
{
    constexpr int V = VECTOR<T>;
    if (C > NORM_MOST) return cudaErrorInvalidValue;
    if (!vectors || C % V) return run.template run<1, 32, 256>();
    if constexpr (WIDE) {
        if (C <= 1024) return run.template run<V, 8, 128>();
        if (C <= 2048) return run.template run<V, 8, 256>();
    } else {
        if (C <= 256) return run.template run<V, 8, 32>();
        if (C <= 512) return run.template run<V, 16, 32>();
        if (C <= 768) return run.template run<V, 24, 32>();
        if (C <= 1024) return run.template run<V, 32, 32>();
        if (C <= 2048) return run.template run<V, 16, 128>();
    }
    return run.template run<V, 32, 256>();
}

/* v = x + ls * (branch + bias) at i, in column c; bias and ls may be NULL. */
template <int W, typename T>
static __device__ __forceinline__ void residual_at(float (&v)[W], const T *x, const T *branch, const float *bias,
                                                   const float *ls, size_t i, size_t c)
{
    float b[W], by[W];
    gpu_load_n<W>(v, x + i);
    gpu_load_n<W>(b, branch + i);
    if (bias) {
        gpu_load_n<W>(by, bias + c);
#pragma unroll
        for (int j = 0; j < W; j++) b[j] += by[j];
    }
    if (ls) {
        gpu_load_n<W>(by, ls + c);
#pragma unroll
        for (int j = 0; j < W; j++) b[j] *= by[j];
    }
#pragma unroll
    for (int j = 0; j < W; j++) v[j] += b[j];
}

/* v rounded to T. */
template <typename T, int W> static __device__ __forceinline__ void as_stored(float (&v)[W])
{
#pragma unroll
    for (int j = 0; j < W; j++) {
        T stored;
        gpu_store(&stored, 0, v[j]);
        v[j] = gpu_load(&stored, 0);
    }
}

/* v += rest, rounded to T, and rest what the rounding left. */
template <int W, typename T> static __device__ __forceinline__ void with_rest(float (&v)[W], T *rest)
{
    float left[W];
    gpu_load_n<W>(left, rest);
#pragma unroll
    for (int j = 0; j < W; j++) left[j] = v[j] += left[j];
    as_stored<T>(v);
#pragma unroll
    for (int j = 0; j < W; j++) left[j] -= v[j];
    gpu_store_n<W>(rest, left);
}

template <typename T> struct norm_forward {
    T *out, *y;         /* out: the sum that is normalised, or NULL: x itself is */
    T *rest;            /* of the sum; or NULL */
    float *mean, *rstd; /* or NULL */
    const T *x, *branch;
    const float *bias, *ls, *gamma, *beta;
    float eps;
    size_t N, C;
};

/* A team a row; lane l of it holds columns (k TEAM + l) V + j for all k < E / V, j < V. REST: a.rest is there. */
template <typename T, bool REST, int V, int E, int TEAM>
static __global__ void __launch_bounds__(TEAM_THREADS<TEAM>) norm_kernel(norm_forward<T> a)
{
    size_t row = (size_t)blockIdx.x * TEAM_ROWS<TEAM> + threadIdx.x / TEAM;
    if (row >= a.N) return; /* whole warps, before no barrier: a team of a block has a row */
    size_t lane = threadIdx.x % TEAM, at = row * a.C;
    float v[E / V][V], sum[1] = {0}, square[1] = {0};
#pragma unroll
    for (int k = 0; k < E / V; k++) {
        size_t c = (k * TEAM + lane) * V;
#pragma unroll
        for (int j = 0; j < V; j++) v[k][j] = 0;
        if (c >= a.C) continue;
        if (a.out) {
            residual_at<V>(v[k], a.x, a.branch, a.bias, a.ls, at + c, c);
            if constexpr (REST) with_rest<V>(v[k], a.rest + at + c);
            gpu_store_n<V>(a.out + at + c, v[k]);
            as_stored<T>(v[k]); /* as backward will find it */
        } else {
            gpu_load_n<V>(v[k], a.x + at + c);
        }
#pragma unroll
        for (int j = 0; j < V; j++) sum[0] += v[k][j];
    }
    team_sum<TEAM>(sum);
    float mean = sum[0] / (float)a.C;
#pragma unroll
    for (int k = 0; k < E / V; k++) {
        if ((k * TEAM + lane) * V >= a.C) continue;
#pragma unroll
        for (int j = 0; j < V; j++) v[k][j] -= mean, square[0] += v[k][j] * v[k][j];
    }
    team_sum<TEAM>(square);
    float rstd = 1.0f / sqrtf(square[0] / (float)a.C + a.eps);
#pragma unroll
    for (int k = 0; k < E / V; k++) {
        size_t c = (k * TEAM + lane) * V;
        if (c >= a.C) continue;
        float gamma[V], beta[V];
        gpu_load_n<V>(gamma, a.gamma + c);
        gpu_load_n<V>(beta, a.beta + c);
#pragma unroll
        for (int j = 0; j < V; j++) v[k][j] = v[k][j] * rstd * gamma[j] + beta[j];
        gpu_store_n<V>(a.y + at + c, v[k]);
    }
    if (lane) return;
    if (a.mean) a.mean[row] = mean;
    if (a.rstd) a.rstd[row] = rstd;
}

template <typename T, bool REST> struct norm_forward_run {
    cudaStream_t stream;
    norm_forward<T> a;
    template <int V, int E, int TEAM> cudaError_t run() const
    {
        auto kernel = norm_kernel<T, REST, V, E, TEAM>;
        return LAUNCH(kernel, gpu_blocks(a.N, TEAM_ROWS<TEAM>), TEAM_THREADS<TEAM>, 0, stream, a);
    }
};

template <typename T> static cudaError_t norm_run(device *d, const norm_forward<T> &a)
{
    if (!a.N) return cudaSuccess;
    cudaStream_t stream = op_cuda_of(d)->stream;
    bool vectors = aligned(a.out, a.y, a.x, a.branch, a.rest) && aligned(a.bias, a.ls, a.gamma, a.beta);
    if (!a.rest) return team_run<T>(norm_forward_run<T, false>{stream, a}, a.C, vectors);
    return team_run<T, true>(norm_forward_run<T, true>{stream, a}, a.C, vectors);
}

/* dbranch = ls * dx, in column c */
template <int W, typename T>
static __device__ __forceinline__ void branch_grad(T *dbranch, float (&dx)[W], const float *ls, size_t c)
{
    float by[W];
    if (ls) {
        gpu_load_n<W>(by, ls + c);
#pragma unroll
        for (int j = 0; j < W; j++) dx[j] *= by[j];
    }
    gpu_store_n<W>(dbranch, dx);
}

template <typename T> struct norm_backward {
    T *dx, *dbranch; /* dbranch: or NULL */
    const T *dy, *x;
    const float *mean, *rstd, *gamma, *ls;
    bool accumulate;
    size_t N, C;
};

/* dbranch is made on the way where there are registers left for it; else after. */
template <typename T, bool PARAMS> constexpr bool BRANCHES = !PARAMS && sizeof(T) == 2;

/* dx = rstd (g - mean(g) - xhat mean(g xhat)), g = dy gamma (Ba et al. 2016). A block takes `each` rows, its teams in
 * turn, lanes as in norm_kernel. PARAMS: a thread's registers also hold its columns' sums of dy xhat and of dy; the
 * teams' are added one after the other in shared memory (2 C floats), and leave as partial (2,blocks,C). */
template <typename T, int V, int E, int TEAM, bool PARAMS>
static __global__ void __launch_bounds__(TEAM_THREADS<TEAM>)
    norm_bwd_kernel(norm_backward<T> a, float *partial, size_t each)
{
    constexpr unsigned W = TEAM * V;
    const unsigned C = (unsigned)a.C, mine = threadIdx.x % TEAM * V; /* 32 bits: 64 ran out of registers on sm_120 */
    size_t team = threadIdx.x / TEAM, first = blockIdx.x * each;
    size_t end = first + each < a.N ? first + each : a.N;
    float dgamma[E / V][V] = {}, dbeta[E / V][V] = {};
#pragma unroll 1 /* unrolled it spills */
    for (size_t row = first + team; row < end; row += TEAM_ROWS<TEAM>) {
        const size_t at = row * a.C + mine;
        const T *dy = a.dy + at, *x = a.x + at;
        T *to = a.dx + at;
        float g[E / V][V], xhat[E / V][V], sum[2] = {0}, mean = a.mean[row], rstd = a.rstd[row];
#pragma unroll
        for (int k = 0; k < E / V; k++) {
            if (k * W + mine >= C) continue;
            float gamma[V];
            gpu_load_n<V>(g[k], dy + k * W);
            gpu_load_n<V>(xhat[k], x + k * W);
            gpu_load_n<V>(gamma, a.gamma + mine + k * W);
#pragma unroll
            for (int j = 0; j < V; j++) {
                xhat[k][j] = (xhat[k][j] - mean) * rstd;
                if (PARAMS) dgamma[k][j] += g[k][j] * xhat[k][j], dbeta[k][j] += g[k][j];
                g[k][j] *= gamma[j];
                sum[0] += g[k][j];
                sum[1] += g[k][j] * xhat[k][j];
            }
        }
        team_sum<TEAM>(sum);
        float by = 1.0f / (float)a.C, mean_g = sum[0] * by, mean_gx = sum[1] * by;
#pragma unroll
        for (int k = 0; k < E / V; k++) {
            if (k * W + mine >= C) continue;
            float dx[V];
            if (a.accumulate)
                gpu_load_n<V>(dx, to + k * W);
            else
                for (int j = 0; j < V; j++) dx[j] = 0;
#pragma unroll
            for (int j = 0; j < V; j++) dx[j] += rstd * (g[k][j] - mean_g - xhat[k][j] * mean_gx);
            gpu_store_n<V>(to + k * W, dx);
            if (!BRANCHES<T, PARAMS> || !a.dbranch) continue;
            as_stored<T>(dx);
            branch_grad<V>(a.dbranch + at + k * W, dx, a.ls, mine + k * W);
        }
    }
    if constexpr (PARAMS) {
        DYN_SMEM(float, so_far);
#pragma unroll 1
        for (size_t t = 0; t < TEAM_ROWS<TEAM>; t++) {
            bool last = t + 1 == TEAM_ROWS<TEAM>;
            float *to_gamma = last ? partial + blockIdx.x * a.C : so_far;
            float *to_beta = last ? partial + ((size_t)gridDim.x + blockIdx.x) * a.C : so_far + a.C;
#pragma unroll
            for (int k = 0; k < E / V; k++) {
                unsigned c = k * W + mine;
                if (team != t || c >= C) continue;
                if (t) {
                    float more[V];
                    gpu_load_n<V>(more, so_far + c);
                    for (int j = 0; j < V; j++) dgamma[k][j] += more[j];
                    gpu_load_n<V>(more, so_far + a.C + c);
                    for (int j = 0; j < V; j++) dbeta[k][j] += more[j];
                }
                gpu_store_n<V>(to_gamma + c, dgamma[k]);
                gpu_store_n<V>(to_beta + c, dbeta[k]);
            }
            __syncthreads();
        }
    }
}

template <typename T> struct norm_backward_run {
    device *d;
    norm_backward<T> a;
    float *dgamma, *dbeta;
    template <int V, int E, int TEAM> cudaError_t run() const
    {
        constexpr int at_once = TEAM_ROWS<TEAM>, threads = TEAM_THREADS<TEAM>;
        cudaStream_t stream = op_cuda_of(d)->stream;
        if (!dgamma && !dbeta) {
            auto kernel = norm_bwd_kernel<T, V, E, TEAM, false>;
            return LAUNCH(kernel, gpu_blocks(a.N, at_once), threads, 0, stream, a, nullptr, at_once);
        }
        size_t each = sums_each(a.N, a.C, 2, 8 * at_once), chunks = (a.N + each - 1) / each;
        float *partial = (float *)op_cuda_scratch(d, 2 * chunks * a.C * sizeof *partial);
        if (!partial) return cudaSuccess;
        auto kernel = norm_bwd_kernel<T, V, E, TEAM, true>;
        size_t shared = at_once > 1 ? 2 * a.C * sizeof(float) : 0;
        cudaError_t rc = LAUNCH(kernel, (unsigned)chunks, threads, shared, stream, a, partial, each);
        return rc ? rc : sums_end(d, dgamma, dbeta, partial, chunks, a.C);
    }
};

template <typename T> struct norm_again_row {
    T *y;
    const T *x;
    const float *mean, *rstd, *gamma, *beta;
    size_t C;
    template <int W> __device__ void run(size_t row, size_t c) const
    {
        float v[W], scale[W], shift[W], m = mean[row], r = rstd[row];
        gpu_load_n<W>(v, x + row * C + c);
        gpu_load_n<W>(scale, gamma + c);
        gpu_load_n<W>(shift, beta + c);
#pragma unroll
        for (int j = 0; j < W; j++) v[j] = (v[j] - m) * r * scale[j] + shift[j];
        gpu_store_n<W>(y + row * C + c, v);
    }
};

template <typename T> struct residual_row {
    T *out, *rest;
    const T *x, *branch;
    const float *bias, *ls;
    size_t C;
    template <int W> __device__ void run(size_t row, size_t c) const
    {
        size_t i = row * C + c;
        float v[W];
        residual_at<W>(v, x, branch, bias, ls, i, c);
        if (rest) with_rest<W>(v, rest + i);
        gpu_store_n<W>(out + i, v);
    }
};

/* dbranch = ls * dout */
template <typename T> struct residual_back {
    T *dbranch;
    const T *dout;
    const float *ls;
    size_t C;
    template <int W> __device__ void run(size_t row, size_t c) const
    {
        float v[W];
        gpu_load_n<W>(v, dout + row * C + c);
        branch_grad<W>(dbranch + row * C + c, v, ls, c);
    }
};

template <typename T> struct bias_row {
    T *x;
    const float *bias;
    size_t C;
    template <int W> __device__ void run(size_t row, size_t c) const
    {
        float v[W], b[W];
        gpu_load_n<W>(v, x + row * C + c);
        gpu_load_n<W>(b, bias + c);
#pragma unroll
        for (int j = 0; j < W; j++) v[j] += b[j];
        gpu_store_n<W>(x + row * C + c, v);
    }
};

/* Columns `index` (R) of dy (N,O), or all: gathered to out (N,R) unless NULL, and added up. */
template <typename T> struct column {
    T *out;
    const T *dy;
    const int32_t *index;
    size_t R, O;
    template <int W> __device__ void take(float (&v)[W], size_t row, size_t c) const
    {
        if (index) {
#pragma unroll
            for (int j = 0; j < W; j++) v[j] = gpu_load(dy, row * O + (size_t)index[c + j]);
        } else {
            gpu_load_n<W>(v, dy + row * O + c);
        }
        if (out) gpu_store_n<W>(out + row * R + c, v);
    }
    template <int W> __device__ void run(size_t row, size_t c) const
    {
        float v[W];
        take<W>(v, row, c);
    }
    template <int W> __device__ void run(size_t row, size_t c, float (&sum)[W]) const
    {
        float v[W];
        take<W>(v, row, c);
#pragma unroll
        for (int j = 0; j < W; j++) sum[j] += v[j];
    }
};

/* n of x, or where out is not NULL of out = x + ls * (branch + bias), with its rest. */
template <typename T>
static cudaError_t norm_fwd(device *d, dv *out, const dv *x, const dv *branch, const dv *bias, const dv *ls, dv *rest,
                            const op_norm *n, size_t N, size_t C)
{
    norm_forward<T> a = {};
    a.out = (T *)out;
    a.y = (T *)n->y;
    a.rest = (T *)rest;
    a.mean = (float *)n->mean;
    a.rstd = (float *)n->rstd;
    a.x = (const T *)x;
    a.branch = (const T *)branch;
    a.bias = (const float *)bias;
    a.ls = (const float *)ls;
    a.gamma = (const float *)n->gamma;
    a.beta = (const float *)n->beta;
    a.eps = n->eps;
    a.N = N;
    a.C = C;
    return norm_run(d, a);
}

template <typename T>
static cudaError_t residual_bwd(device *d, dv *dbranch, const dv *dout, const dv *ls, size_t N, size_t C)
{
    residual_back<T> f = {(T *)dbranch, (const T *)dout, (const float *)ls, C};
    return rows<VECTOR<T>>(d, f, N, C, aligned(dbranch, dout, ls));
}

template <typename T>
static cudaError_t norm_bwd(device *d, dv *dx, bool accumulate, dv *dgamma, dv *dbeta, const dv *dy, const dv *x,
                            const dv *mean, const dv *rstd, const dv *gamma, dv *dbranch, const dv *ls, size_t N,
                            size_t C)
{
    if (!N) return cudaSuccess;
    norm_backward<T> a = {};
    a.dx = (T *)dx;
    a.dbranch = (T *)dbranch;
    a.dy = (const T *)dy;
    a.x = (const T *)x;
    a.mean = (const float *)mean;
    a.rstd = (const float *)rstd;
    a.gamma = (const float *)gamma;
    a.ls = (const float *)ls;
    a.accumulate = accumulate;
    a.N = N;
    a.C = C;
    norm_backward_run<T> run = {d, a, (float *)dgamma, (float *)dbeta};
    cudaError_t rc = team_run<T>(run, C, aligned(dx, dbranch, dy, x, gamma, ls));
    bool made = dgamma || dbeta ? BRANCHES<T, true> : BRANCHES<T, false>;
    return rc || !dbranch || made ? rc : residual_bwd<T>(d, dbranch, dx, ls, N, C);
}

template <typename T>
static cudaError_t norm_again(device *d, dv *y, const dv *x, const dv *mean, const dv *rstd, const dv *gamma,
                              const dv *beta, size_t N, size_t C)
{
    norm_again_row<T> f = {
        (T *)y, (const T *)x, (const float *)mean, (const float *)rstd, (const float *)gamma, (const float *)beta, C};
    return rows<VECTOR<T>>(d, f, N, C, aligned(y, x, gamma, beta));
}

template <typename T>
static cudaError_t residual_fwd(device *d, dv *out, const dv *x, const dv *branch, const dv *bias, const dv *ls,
                                dv *rest, size_t N, size_t C)
{
    residual_row<T> f = {(T *)out,          (T *)rest, (const T *)x, (const T *)branch, (const float *)bias,
                         (const float *)ls, C};
    return rows<VECTOR<T>>(d, f, N, C, aligned(out, rest, x, branch, bias, ls));
}

template <typename T> static cudaError_t add_bias(device *d, dv *x, const dv *bias, size_t N, size_t F)
{
    bias_row<T> f = {(T *)x, (const float *)bias, F};
    return rows<VECTOR<T>>(d, f, N, F, aligned(x, bias));
}

template <typename T>
static cudaError_t column_sums(device *d, dv *db, dv *columns, const dv *dy, const dv *index, size_t R, size_t N,
                               size_t O)
{
    column<T> f = {(T *)columns, (const T *)dy, (const int32_t *)index, R, O};
    bool vectors = aligned(columns, index ? NULL : dy);
    if (db) return sums<VECTOR<T>>(d, f, (float *)db, N, R, vectors);
    return columns ? rows<VECTOR<T>>(d, f, N, R, vectors) : cudaSuccess;
}

extern "C" {
void op_cuda_norm_fwd(device *d, dv *y, dv *mean, dv *rstd, const dv *x, const dv *gamma, const dv *beta, float eps,
                      size_t N, size_t C)
{
    op_norm n = {y, mean, rstd, gamma, beta, eps};
    op_cuda_check(d, GPU_CT(d, norm_fwd, d, NULL, x, NULL, NULL, NULL, NULL, &n, N, C), "norm_fwd");
}

void op_cuda_norm_bwd(device *d, dv *dx, bool accumulate, dv *dgamma, dv *dbeta, const dv *dy, const dv *x,
                      const dv *mean, const dv *rstd, const dv *gamma, dv *dbranch, const dv *ls, size_t N, size_t C)
{
    op_cuda_check(d, GPU_CT(d, norm_bwd, d, dx, accumulate, dgamma, dbeta, dy, x, mean, rstd, gamma, dbranch, ls, N, C),
                  "norm_bwd");
}

void op_cuda_norm_again(device *d, dv *y, const dv *x, const dv *mean, const dv *rstd, const dv *gamma, const dv *beta,
                        size_t N, size_t C)
{
    op_cuda_check(d, GPU_CT(d, norm_again, d, y, x, mean, rstd, gamma, beta, N, C), "norm_again");
}

void op_cuda_residual_fwd(device *d, dv *out, const dv *x, const dv *branch, const dv *ls, dv *rest, size_t N, size_t C)
{
    op_cuda_check(d, GPU_CT(d, residual_fwd, d, out, x, branch, NULL, ls, rest, N, C), "residual_fwd");
}

void op_cuda_residual_bias_fwd(device *d, dv *out, const dv *x, const dv *branch, const dv *bias, const dv *ls,
                               dv *rest, const op_norm *then, size_t N, size_t C)
{
    cudaError_t rc = then ? GPU_CT(d, norm_fwd, d, out, x, branch, bias, ls, rest, then, N, C)
                          : GPU_CT(d, residual_fwd, d, out, x, branch, bias, ls, rest, N, C);
    op_cuda_check(d, rc, "residual_fwd");
}

void op_cuda_residual_bwd(device *d, dv *dbranch, const dv *dout, const dv *ls, size_t N, size_t C)
{
    op_cuda_check(d, GPU_CT(d, residual_bwd, d, dbranch, dout, ls, N, C), "residual_bwd");
}

void op_cuda_add_bias(device *d, dv *x, const dv *bias, size_t N, size_t F)
{
    op_cuda_check(d, GPU_CT(d, add_bias, d, x, bias, N, F), "add_bias");
}

void op_cuda_column_sums(device *d, dv *db, dv *columns, const dv *dy, const dv *rows, size_t R, size_t N, size_t O)
{
    op_cuda_check(d, GPU_CT(d, column_sums, d, db, columns, dy, rows, R, N, O), "column_sums");
}
}
