/* attention_fwd.cu: attention's forward pass: softmax on line over tiles of keys (Dao et al. 2022, algorithm 1), so
 * that nothing of size T*T exists. Exponentials are powers of two, with log2 e in the scale. */
#include "model/cuda/attention.cuh"

/* --- tensor cores */

template <int DP> struct fwd_tiles {
    bf16 q[ROWS][DP + PAD], k[ROWS][DP + PAD], v[ROWS][DP + PAD];
};

/* S (16,64) = Q K^T for the keys that are left, minus infinity for the others. */
template <int DP>
static __device__ __forceinline__ void fwd_scores(float (&s)[ROWS / 16][2][4], const left_rows<DP, true> &q,
                                                  const bf16 (*k)[DP + PAD], int keys)
{
#pragma unroll
    for (int n = 0; n < ROWS / 16; n++)
        if (n * 16 < keys) scores(s[n], q, k, n * 16);
    if (keys >= ROWS) return;
#pragma unroll
    for (int n = 0; n < ROWS / 16; n++)
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (n * 16 + i / 4 * 8 + lane() % 4 * 2 + i % 2 >= keys) s[n][i / 4][i % 4] = -INFINITY;
}

/* s = 2^((s - most) * scale) for row half h (0: l/4, 1: l/4 + 8), with `most` the largest so far; what was summed
 * before shrinks to that. */
template <int DP>
static __device__ __forceinline__ void fwd_softmax(float (&s)[ROWS / 16][2][4], float (&sum)[DP / 8][4], float &most,
                                                   float &total, int h, float scale)
{
    float before = most;
#pragma unroll
    for (int n = 0; n < ROWS / 16; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) most = fmaxf(most, s[n][i / 2][2 * h + i % 2]);
    most = row_max(most);
    float shrink = gpu_exp2((before - most) * scale), shift = -most * scale;
    total *= shrink;
#pragma unroll
    for (int n = 0; n < ROWS / 16; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float &p = s[n][i / 2][2 * h + i % 2];
            p = gpu_exp2(fmaf(p, scale, shift));
            total += p;
        }
#pragma unroll
    for (int n = 0; n < DP / 8; n++) {
        sum[n][2 * h] *= shrink;
        sum[n][2 * h + 1] *= shrink;
    }
}

/* A block owns 64 queries of a pair, a warp 16 of them, held in registers as are the sums; the keys pass by, 64 at a
 * time. In shared memory: the queries (later the outputs), one tile of keys and one of values, loaded by turns: the
 * values while scores are computed, the next keys while values are summed. Groups of 16 keys and of 16 queries that
 * begin beyond T are left out. Moves 4 NC values from and to memory, K and V again from the second cache for every 64
 * queries; 4 T D products a query: limited by the tensor cores, at small T by memory. */
template <int DP>
static __global__ void __launch_bounds__(THREADS) fwd_kernel(bf16 *o, float *lse, const bf16 *qkv, attention_call c)
{
    DYN_SMEM(fwd_tiles<DP>, sm);
    const attention_block b = attention_here(c, ROWS);
    const bf16 *k = qkv + b.wide + b.C, *v = k + b.C;
    const int mine = threadIdx.x / 32 * 16, left_over = c.T - b.first - mine; /* the warp's rows that exist */
    const float scale = c.scale * LOG2E;
    left_rows<DP, true> q;
    float sum[DP / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};

    tile_load<ROWS>(sm->q, qkv + b.wide, 3 * b.C, b.first, c);
    tile_load<ROWS>(sm->k, k, 3 * b.C, 0, c);
    cp_async_commit();
    tiles_landed();
    q.take(sm->q + mine);

    for (int key = 0; key < c.T; key += ROWS) {
        float s[ROWS / 16][2][4];
        tile_load<ROWS>(sm->v, v, 3 * b.C, key, c);
        cp_async_commit();
        if (left_over > 0) {
            fwd_scores<DP>(s, q, sm->k, c.T - key);
#pragma unroll
            for (int h = 0; h < 2; h++) fwd_softmax<DP>(s, sum, most[h], total[h], h, scale);
        }
        tiles_landed();
        if (key + ROWS < c.T) tile_load<ROWS>(sm->k, k, 3 * b.C, key + ROWS, c);
        cp_async_commit();
        if (left_over > 0) {
#pragma unroll
            for (int n = 0; n < ROWS / 16; n++)
                if (n * 16 < c.T - key) {
                    unsigned p[4];
                    as_left(p, s[n]);
                    weighted<DP>(sum, p, sm->v, n * 16);
                }
        }
        tiles_landed();
    }
    for (int h = 0; h < 2; h++) {
        total[h] = row_sum(total[h]);
        int row = lane() / 4 + 8 * h;
        if (lse && lane() % 4 == 0 && row < left_over)
            lse[b.pair * c.T + b.first + mine + row] = most[h] * c.scale + logf(total[h]);
    }
    if (left_over > 0)
        rows_store<DP>(o + b.narrow + (b.first + mine) * b.C, b.C, left_over, c.D, sm->q + mine, sum, 1.0f / total[0],
                       1.0f / total[1]);
}

template <int DP> static cudaError_t fwd_tensor(device *d, dv *o, dv *lse, const dv *qkv, const attention_call &c)
{
    return attention_launch(d, fwd_kernel<DP>, sizeof(fwd_tiles<DP>), c, (bf16 *)o, (float *)lse, (const bf16 *)qkv);
}

/* --- scalar */

constexpr int KEYS = 32;    /* in a tile */
constexpr int P_WIDTH = 36; /* of rows of probabilities, by the rule of scalar_width */

static size_t fwd_scalar_bytes(int D)
{
    return ((SCALAR_ROWS + 2 * KEYS) * (size_t)scalar_width(D) + SCALAR_ROWS * P_WIDTH) * sizeof(float);
}

/* A block owns 32 queries of a pair, four lanes one of them; the keys pass by, 32 at a time. Lane l computes the scores
 * of every fourth key, and sums every fourth float4 of the values. In shared memory, in fp32: the queries, a tile of
 * keys, one of values, and the probabilities, which lanes of a row exchange. Limited by the reads of shared memory:
 * one float4 for some 4 multiplications. */
template <typename T>
static __global__ void __launch_bounds__(THREADS, SCALAR_BLOCKS)
    fwd_scalar_kernel(T *o, float *lse, const T *qkv, attention_call c)
{
    DYN_SMEM(float, q);
    const int W = scalar_width(c.D), r = threadIdx.x / 4, at = lane() % 4;
    float *k = q + SCALAR_ROWS * W, *v = k + KEYS * W, *p = v + KEYS * W + r * P_WIDTH;
    const attention_block b = attention_here(c, SCALAR_ROWS);
    const float scale = c.scale * LOG2E;
    float most = -INFINITY, total = 0;
    scalar_sums sum = {};
    scalar_load<SCALAR_ROWS>(q, qkv + b.wide, 3 * b.C, b.first, c);
    for (int key = 0; key < c.T; key += KEYS) {
        scalar_load<KEYS>(k, qkv + b.wide + b.C, 3 * b.C, key, c);
        scalar_load<KEYS>(v, qkv + b.wide + 2 * b.C, 3 * b.C, key, c);
        __syncthreads();
        float s[KEYS / 4] = {}, before = most;
        for (int column = 0; column < c.D; column += 4) {
            float4 x = four(q + r * W + column);
#pragma unroll
            for (int i = 0; i < KEYS / 4; i++) s[i] = dot(x, four(k + (i * 4 + at) * W + column), s[i]);
        }
#pragma unroll
        for (int i = 0; i < KEYS / 4; i++) {
            if (key + i * 4 + at >= c.T) s[i] = -INFINITY;
            most = fmaxf(most, s[i]);
        }
        most = row_max(most);
        float shrink = gpu_exp2((before - most) * scale);
        total *= shrink;
#pragma unroll
        for (int i = 0; i < HEAD_MOST / 16 * 4; i++) sum[i / 4][i % 4] *= shrink;
#pragma unroll
        for (int i = 0; i < KEYS / 4; i++) {
            s[i] = gpu_exp2((s[i] - most) * scale);
            total += s[i];
            p[i * 4 + at] = s[i];
        }
        __syncwarp();
        for (int j = 0; j < KEYS && key + j < c.T; j++) scalar_add(sum, p[j], v + j * W, c.D);
        __syncthreads();
    }
    total = row_sum(total);
    size_t row = b.first + r;
    if (row >= (size_t)c.T) return;
    scalar_store(o + b.narrow + row * b.C, sum, 1.0f / total, c.D);
    if (lse && at == 0) lse[b.pair * c.T + row] = most * c.scale + logf(total);
}

template <typename T> static cudaError_t fwd_scalar(device *d, dv *o, dv *lse, const dv *qkv, const attention_call &c)
{
    return attention_launch(d, fwd_scalar_kernel<T>, fwd_scalar_bytes(c.D), c, (T *)o, (float *)lse, (const T *)qkv);
}

extern "C" void op_cuda_attention_fwd(device *d, dv *o, dv *lse, const dv *qkv, size_t B, size_t T, size_t H, size_t D)
{
    if (!B || !T || !H) return;
    bool tensor = attention_tensor(d, D, (uintptr_t)o | (uintptr_t)qkv);
    attention_call c = attention_of(B, T, H, D, tensor ? ROWS : SCALAR_ROWS);
    if (D > HEAD_MOST)
        op_cuda_fail(d, ERR_UNSUPPORTED, "the GPU's attention takes heads of up to 128 values");
    else if (tensor)
        op_cuda_check(d, ATTENTION_SIZES(D, fwd_tensor, d, o, lse, qkv, c), "attention_fwd");
    else
        op_cuda_check(d, GPU_CT(d, fwd_scalar, d, o, lse, qkv, c), "attention_fwd");
}
