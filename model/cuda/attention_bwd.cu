/* attention_bwd.cu: attention's backward pass. P = exp(S - lse) is made again; dV = P^T dO; dP = dO V^T; dS = P * (dP -
 * delta), delta = sum of dO * O over a row; dQ = dS K, dK = dS^T Q, both times the scale (Dao et al. 2022, B.2).
 *
 * A launch owns queries and sums dQ while keys pass by, and writes delta; a second owns keys and sums dK and dV while
 * queries pass by. So S and dP are made twice, 7 products where 5 would do, but no sum crosses blocks: dQ summed over
 * blocks would move T / 64 fp32 copies of it, and the order of atomics is nobody's. Where all keys fit one block (T <=
 * 64: local crops) the second alone does it all, with 5 products. */
#include "model/cuda/attention.cuh"

typedef enum { QUERIES, KEYS } owned;

/* Rows of two tensors that are used together: queries and dO, or keys and values. */
template <typename T> struct row_pairs {
    const T *x, *y;
    size_t x_stride, y_stride;
};

template <typename T>
static __device__ __forceinline__ row_pairs<T> query_rows(const attention_block &b, const T *qkv, const T *d_o)
{
    return {qkv + b.wide, d_o + b.narrow, 3 * b.C, b.C};
}
template <typename T> static __device__ __forceinline__ row_pairs<T> key_rows(const attention_block &b, const T *qkv)
{
    return {qkv + b.wide + b.C, qkv + b.wide + 2 * b.C, 3 * b.C, 3 * b.C};
}

/* In base 2, so that P = 2^(S scale log2e - this): 0 for rows that do not exist. */
static __device__ __forceinline__ float lse_of(const float *lse, int row, int T)
{
    return row < T ? lse[row] * LOG2E : INFINITY;
}

/* --- tensor cores */

constexpr int STEP = 32; /* rows that pass by at a time */

template <int DP> struct bwd_tiles {
    bf16 own[2][ROWS][DP + PAD];
    bf16 passing[2][2][STEP][DP + PAD]; /* two stages of both tensors */
    bf16 ds[ROWS][STEP + PAD];          /* (keys, queries), where dQ is summed here too */
    float lse[2 * STEP], delta[2 * STEP];
};

template <int N, int W>
static __device__ __forceinline__ void pairs_load(bf16 (*x)[W], bf16 (*y)[W], const row_pairs<bf16> &from, int first,
                                                  const attention_call &c)
{
    tile_load<N>(x, from.x, from.x_stride, first, c);
    tile_load<N>(y, from.y, from.y_stride, first, c);
}

/* The sum of dO * O over a row's D values, for the four lanes that share it. */
static __device__ __forceinline__ float delta_of(const bf16 *o, const bf16 *d_o, int D)
{
    float sum = 0;
    for (int column = lane() % 4 * 8; column < D; column += 32) {
        float x[8], y[8];
        gpu_load_n(x, o + column);
        gpu_load_n(y, d_o + column);
#pragma unroll
        for (int i = 0; i < 8; i++) sum = fmaf(x[i], y[i], sum);
    }
    return sum;
}

/* Thread i < 64 brings, of query first + i % 32, the log-sum-exp (i < 32) or delta. */
static __device__ __forceinline__ float statistic(const float *lse, const float *delta, int first, int T)
{
    int row = first + threadIdx.x % STEP;
    if (threadIdx.x < STEP) return lse_of(lse, row, T);
    return threadIdx.x < 2 * STEP && row < T ? delta[row] : 0;
}

/* ... and where it goes. (A pointer: an index into one of two arrays is lost in g++ 12's -fsanitize=bounds.) */
template <int DP> static __device__ __forceinline__ float *statistic_at(bwd_tiles<DP> *sm, int stage)
{
    float *of = threadIdx.x < STEP ? sm->lse : sm->delta;
    return of + stage * STEP + threadIdx.x % STEP;
}

/* p = P and ds = dS, as left operands, from s = S and dp = dP of 16 x 16: own rows, passing columns, of which `exist`.
 * lse, delta: of the own rows l/4 and l/4 + 8, or of the 16 columns. */
template <owned OWN>
static __device__ __forceinline__ void probabilities(unsigned (&p)[4], unsigned (&ds)[4], float (&s)[2][4],
                                                     float (&dp)[2][4], const float *lse, const float *delta,
                                                     float scale, int exist)
{
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int column = n * 8 + lane() % 4 * 2 + e % 2, at = OWN == KEYS ? column : e / 2;
            float v = gpu_exp2(fmaf(s[n][e], scale, -lse[at]));
            if (OWN == QUERIES && column >= exist) v = 0; /* of a key that does not exist: its S is 0, not -inf */
            s[n][e] = v;
            dp[n][e] = v * (dp[n][e] - delta[at]);
        }
    as_left(p, s);
    as_left(ds, dp);
}

/* The warp's 16 keys' part of dS, (16,16) from column `first` on; 0 for keys that do not exist, whose P may be
 * infinite. */
static __device__ __forceinline__ void ds_store(bf16 (*ds)[STEP + PAD], const unsigned (&v)[4], int first, int keys)
{
    bf16 *to = &ds[lane() / 4][first + lane() % 4 * 2];
#pragma unroll
    for (int i = 0; i < 4; i++)
        put(to + i % 2 * 8 * (STEP + PAD) + i / 2 * 8, lane() / 4 + i % 2 * 8 < keys ? v[i] : 0);
}

/* dQ of a step's queries from dS of all keys: a warp has 16 queries and every second 16 columns. */
template <int DP>
static __device__ __forceinline__ void dq_store(bf16 *dq, size_t stride, const bwd_tiles<DP> *sm, int queries,
                                                const attention_call &c)
{
    int query = threadIdx.x / 32 % 2 * 16, row = query + lane() / 4;
    if (query >= queries) return;
    for (int n = threadIdx.x / 64; n < DP / 16; n += 2) {
        float sum[2][4] = {};
#pragma unroll
        for (int key = 0; key < ROWS; key += 16)
            if (key < c.T) {
                unsigned ds[4], k[4];
                left_transposed(ds, sm->ds, key, query);
                right(k, sm->own[0], key, n * 16);
                product(sum[0], sum[1], ds, k);
            }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int r = row + i % 2 * 8, column = n * 16 + i / 2 * 8 + lane() % 4 * 2;
            const float *v = &sum[i / 2][i % 2 * 2];
            if (r < queries && column < c.D) put(dq + r * stride + column, two(v[0] * c.scale, v[1] * c.scale));
        }
    }
}

/* A block owns 64 rows of a pair, keys or queries, a warp 16 of them: the operands that they make (K and V, or Q and
 * dO) and their sums are in registers. The other rows pass by, 32 at a time, the next under way meanwhile. In shared
 * memory: the own rows (later the outputs), two stages of passing ones, log-sum-exp and delta of passing queries.
 * Groups of 16 rows that begin beyond T are left out. Keys alone (T <= 64) also exchange dS there, for dQ. Moves 8 NC
 * values from and to memory, each launch the passing half again from the second cache for every 64 rows; 6 (queries)
 * and 8 (keys) T D products a row, 10 if alone: limited by the tensor cores. */
template <int DP, owned OWN>
static __global__ void __launch_bounds__(THREADS) bwd_kernel(bf16 *dqkv, float *delta, const bf16 *d_o, const bf16 *qkv,
                                                             const bf16 *o, const float *lse, attention_call c)
{
    DYN_SMEM(bwd_tiles<DP>, sm);
    const attention_block b = attention_here(c, ROWS);
    const bool alone = OWN == KEYS && c.T <= ROWS;
    const int mine = threadIdx.x / 32 * 16, first = b.first + mine, exist = c.T - first;
    const row_pairs<bf16> queries = query_rows(b, qkv, d_o), keys = key_rows(b, qkv);
    const row_pairs<bf16> &passing = OWN == KEYS ? queries : keys;
    left_rows<DP, OWN == QUERIES || DP <= 96> x, y;
    float by_x[DP / 8][4] = {}, by_y[OWN == KEYS ? DP / 8 : 1][4] = {}; /* dQ or dK; dV */
    float own_lse[2], own_delta[2], next = 0;

    pairs_load<ROWS>(sm->own[0], sm->own[1], OWN == KEYS ? keys : queries, b.first, c);
    pairs_load<STEP>(sm->passing[0][0], sm->passing[0][1], passing, 0, c);
    cp_async_commit();
    lse += b.pair * c.T;
    delta += b.pair * c.T;
    if (OWN == QUERIES || alone) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int row = first + lane() / 4 + 8 * h;
            size_t at = b.narrow + row * b.C;
            own_lse[h] = lse_of(lse, row, c.T);
            own_delta[h] = row_sum(row < c.T ? delta_of(o + at, d_o + at, c.D) : 0.0f);
            if (lane() % 4) continue;
            if (alone)
                sm->lse[row] = own_lse[h], sm->delta[row] = own_delta[h];
            else if (row < c.T)
                delta[row] = own_delta[h];
        }
    } else if (threadIdx.x < 2 * STEP) {
        *statistic_at(sm, 0) = statistic(lse, delta, 0, c.T);
    }
    tiles_landed();
    x.take(sm->own[0] + mine);
    y.take(sm->own[1] + mine);

    for (int pass = 0, stage = 0; pass < c.T; pass += STEP, stage ^= 1) {
        if (pass + STEP < c.T) {
            bf16(*into)[STEP][DP + PAD] = sm->passing[stage ^ 1];
            pairs_load<STEP>(into[0], into[1], passing, pass + STEP, c);
            if (OWN == KEYS && !alone) next = statistic(lse, delta, pass + STEP, c.T);
        }
        cp_async_commit();
        for (int n = 0; n < STEP; n += 16)
            if (exist > 0 && pass + n < c.T) {
                float s[2][4], dp[2][4];
                unsigned p[4], ds[4];
                scores(s, x, sm->passing[stage][0], n);
                scores(dp, y, sm->passing[stage][1], n);
                if constexpr (OWN == KEYS) {
                    probabilities<OWN>(p, ds, s, dp, sm->lse + stage * STEP + n, sm->delta + stage * STEP + n,
                                       c.scale * LOG2E, 16);
                    weighted<DP>(by_y, p, sm->passing[stage][1], n);
                } else {
                    probabilities<OWN>(p, ds, s, dp, own_lse, own_delta, c.scale * LOG2E, c.T - pass - n);
                }
                weighted<DP>(by_x, ds, sm->passing[stage][0], n);
                if (alone) ds_store(sm->ds + mine, ds, n, exist);
            }
        if (alone) {
            __syncthreads();
            dq_store<DP>(dqkv + b.wide + pass * 3 * b.C, 3 * b.C, sm, c.T - pass, c);
        }
        if (OWN == KEYS && !alone && threadIdx.x < 2 * STEP) *statistic_at(sm, stage ^ 1) = next;
        tiles_landed();
    }
    if (exist <= 0) return;
    bf16 *to = dqkv + b.wide + first * 3 * b.C + (OWN == KEYS ? b.C : 0);
    rows_store<DP>(to, 3 * b.C, exist, c.D, sm->own[0] + mine, by_x, c.scale, c.scale);
    if constexpr (OWN == KEYS) rows_store<DP>(to + b.C, 3 * b.C, exist, c.D, sm->own[1] + mine, by_y, 1, 1);
}

template <int DP, owned OWN>
static cudaError_t bwd_tensor_half(device *d, dv *dqkv, float *delta, const dv *d_o, const dv *qkv, const dv *o,
                                   const dv *lse, const attention_call &c)
{
    return attention_launch(d, bwd_kernel<DP, OWN>, sizeof(bwd_tiles<DP>), c, (bf16 *)dqkv, delta, (const bf16 *)d_o,
                            (const bf16 *)qkv, (const bf16 *)o, (const float *)lse);
}

template <int DP>
static cudaError_t bwd_tensor(device *d, dv *dqkv, float *delta, const dv *d_o, const dv *qkv, const dv *o,
                              const dv *lse, const attention_call &c)
{
    cudaError_t rc = cudaSuccess;
    if (c.T > ROWS) rc = bwd_tensor_half<DP, QUERIES>(d, dqkv, delta, d_o, qkv, o, lse, c);
    return rc ? rc : bwd_tensor_half<DP, KEYS>(d, dqkv, delta, d_o, qkv, o, lse, c);
}

/* --- scalar */

constexpr int SCALAR_STEP = 16;
constexpr int P_WIDTH = SCALAR_STEP + 4; /* of rows of P and dS, by the rule of scalar_width */

static size_t bwd_scalar_bytes(int D)
{
    return (2 * (SCALAR_ROWS + SCALAR_STEP) * (size_t)scalar_width(D) + 2 * SCALAR_ROWS * P_WIDTH + 2 * SCALAR_STEP) *
           sizeof(float);
}

/* The lane's every fourth column of a row of P and dS: p, ds; x, y: the own row's two tensors, px, py the passing rows'
 * tiles, as above. lse, delta: of the own row, or of the columns. */
template <owned OWN>
static __device__ __forceinline__ void scalar_probabilities(float *p, float *ds, const float *x, const float *y,
                                                            const float *px, const float *py, const float *lse,
                                                            const float *delta, int exist, const attention_call &c)
{
    const int W = scalar_width(c.D), at = lane() % 4;
    float s[SCALAR_STEP / 4] = {}, dp[SCALAR_STEP / 4] = {};
    for (int column = 0; column < c.D; column += 4) {
        float4 u = four(x + column), v = four(y + column);
#pragma unroll
        for (int i = 0; i < SCALAR_STEP / 4; i++) {
            s[i] = dot(u, four(px + (i * 4 + at) * W + column), s[i]);
            dp[i] = dot(v, four(py + (i * 4 + at) * W + column), dp[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < SCALAR_STEP / 4; i++) {
        int j = i * 4 + at, of = OWN == KEYS ? j : 0;
        float v = j < exist ? gpu_exp2(fmaf(s[i], c.scale * LOG2E, -lse[of])) : 0.0f;
        p[j] = v;
        ds[j] = v * (dp[i] - delta[of]);
    }
}

/* A block owns 32 rows of a pair, four lanes one of them; the others pass by, 16 at a time. Lane l computes every
 * fourth column of S and dP, and sums every fourth float4 of its row's gradients. In shared memory, in fp32: both
 * tensors of the own rows and of the passing ones, P and dS, which lanes of a row exchange, statistics of passing
 * queries. Two sums (keys) leave registers for two blocks. Limited by the reads of shared memory. */
template <typename T, owned OWN>
static __global__ void __launch_bounds__(THREADS, OWN == KEYS ? SCALAR_BLOCKS - 1 : SCALAR_BLOCKS)
    bwd_scalar_kernel(T *dqkv, float *delta, const T *d_o, const T *qkv, const T *o, const float *lse, attention_call c)
{
    DYN_SMEM(float, x);
    const int W = scalar_width(c.D), r = threadIdx.x / 4, at = lane() % 4;
    float *y = x + SCALAR_ROWS * W, *px = y + SCALAR_ROWS * W, *py = px + SCALAR_STEP * W, *p = py + SCALAR_STEP * W;
    float *ds = p + SCALAR_ROWS * P_WIDTH, *passing_lse = ds + SCALAR_ROWS * P_WIDTH;
    float *passing_delta = passing_lse + SCALAR_STEP;
    p += r * P_WIDTH, ds += r * P_WIDTH;
    const attention_block b = attention_here(c, SCALAR_ROWS);
    const row_pairs<T> queries = query_rows(b, qkv, d_o), keys = key_rows(b, qkv);
    const row_pairs<T> &own = OWN == KEYS ? keys : queries, &passing = OWN == KEYS ? queries : keys;
    const int row = b.first + r;
    float own_lse = 0, own_delta = 0;
    scalar_sums by_x = {}, by_y = {}; /* dQ or dK; dV */
    lse += b.pair * c.T;
    delta += b.pair * c.T;
    scalar_load<SCALAR_ROWS>(x, own.x, own.x_stride, b.first, c);
    scalar_load<SCALAR_ROWS>(y, own.y, own.y_stride, b.first, c);
    if (OWN == QUERIES) {
        __syncthreads();
        for (int column = at; row < c.T && column < c.D; column += 4)
            own_delta = fmaf(gpu_load(o, b.narrow + row * b.C + column), y[r * W + column], own_delta);
        own_delta = row_sum(own_delta);
        own_lse = lse_of(lse, row, c.T);
        if (row < c.T && at == 0) delta[row] = own_delta;
    }
    for (int pass = 0; pass < c.T; pass += SCALAR_STEP) {
        scalar_load<SCALAR_STEP>(px, passing.x, passing.x_stride, pass, c);
        scalar_load<SCALAR_STEP>(py, passing.y, passing.y_stride, pass, c);
        if (OWN == KEYS && threadIdx.x < SCALAR_STEP) {
            int query = pass + threadIdx.x;
            passing_lse[threadIdx.x] = lse_of(lse, query, c.T);
            passing_delta[threadIdx.x] = query < c.T ? delta[query] : 0.0f;
        }
        __syncthreads();
        scalar_probabilities<OWN>(p, ds, x + r * W, y + r * W, px, py, OWN == KEYS ? passing_lse : &own_lse,
                                  OWN == KEYS ? passing_delta : &own_delta, c.T - pass, c);
        __syncwarp();
        for (int j = 0; j < SCALAR_STEP; j++) {
            scalar_add(by_x, ds[j], px + j * W, c.D);
            if (OWN == KEYS) scalar_add(by_y, p[j], py + j * W, c.D);
        }
        __syncthreads();
    }
    if (row >= c.T) return;
    T *to = dqkv + b.wide + row * 3 * b.C + (OWN == KEYS ? b.C : 0);
    scalar_store(to, by_x, c.scale, c.D);
    if (OWN == KEYS) scalar_store(to + b.C, by_y, 1, c.D);
}

template <typename T, owned OWN>
static cudaError_t bwd_scalar_half(device *d, dv *dqkv, float *delta, const dv *d_o, const dv *qkv, const dv *o,
                                   const dv *lse, const attention_call &c)
{
    return attention_launch(d, bwd_scalar_kernel<T, OWN>, bwd_scalar_bytes(c.D), c, (T *)dqkv, delta, (const T *)d_o,
                            (const T *)qkv, (const T *)o, (const float *)lse);
}

template <typename T>
static cudaError_t bwd_scalar(device *d, dv *dqkv, float *delta, const dv *d_o, const dv *qkv, const dv *o,
                              const dv *lse, const attention_call &c)
{
    cudaError_t rc = bwd_scalar_half<T, QUERIES>(d, dqkv, delta, d_o, qkv, o, lse, c);
    return rc ? rc : bwd_scalar_half<T, KEYS>(d, dqkv, delta, d_o, qkv, o, lse, c);
}

extern "C" {
size_t op_cuda_attention_bytes(const device *d, bool tile, size_t B, size_t T, size_t H, size_t D, bool backward)
{
    (void)d, (void)tile, (void)D;
    return backward ? B * H * T * sizeof(float) : 0; /* delta */
}

void op_cuda_attention_bwd(device *d, dv *dqkv, const dv *d_o, const dv *qkv, const dv *o, const dv *lse, size_t B,
                           size_t T, size_t H, size_t D)
{
    if (!B || !T || !H) return;
    float *delta = (float *)op_cuda_work(d, op_cuda_attention_bytes(d, false, B, T, H, D, true));
    if (!delta) return;
    bool tensor = attention_tensor(d, D, (uintptr_t)dqkv | (uintptr_t)d_o | (uintptr_t)qkv | (uintptr_t)o);
    attention_call c = attention_of(B, T, H, D, tensor ? ROWS : SCALAR_ROWS);
    if (D > HEAD_MOST)
        op_cuda_fail(d, ERR_UNSUPPORTED, "the GPU's attention takes heads of up to 128 values");
    else if (tensor)
        op_cuda_check(d, ATTENTION_SIZES(D, bwd_tensor, d, dqkv, delta, d_o, qkv, o, lse, c), "attention_bwd");
    else
        op_cuda_check(d, GPU_CT(d, bwd_scalar, d, dqkv, delta, d_o, qkv, o, lse, c), "attention_bwd");
}
}
