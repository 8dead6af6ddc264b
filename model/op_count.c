/* op_count.c: see op_count.h. Matrix products count their useful operations: a multiplication and an addition for every
 * term. Attention's backward pass counts its four products of the gradient, not the scores made again. */
#include "model/op_count.h"

#include <stdlib.h>

#include "base/arena.h"
#include "model/cuda/op_cuda_bytes.h"
#include "model/op_cpu.h"

#pragma GCC diagnostic ignored "-Wunused-parameter" /* most ops have nothing to do here */

/* Before what alloc returns, as op_cpu.c has it: a block's size. */
enum { HEADER = ARENA_ALIGN };

/* device.impl, where the CUDA back end is counted; else it is the CPU's. */
typedef struct {
    op_cuda_pinned pinned;
    bool recording;
} counted_cuda;

static counted_cuda *cuda_of(const device *d)
{
    return d->counts == COUNTS_BARE ? d->impl : NULL;
}

static void count_close(device *d)
{
    if (cuda_of(d))
        free(d->impl);
    else
        op_cpu_close(d);
}

static void count_sync(device *d)
{
    if (cuda_of(d)) op_cuda_pinned_free(&cuda_of(d)->pinned);
}

static void count_record(device *d, bool on)
{
    if (cuda_of(d)) cuda_of(d)->recording = on;
}

static err_code count_alloc(device *d, size_t bytes, dv **out, err *e)
{
    size_t *p = malloc(HEADER);
    *out = NULL;
    if (!p) FAIL(e, NOMEM, "no memory for %zu bytes of model data", bytes);
    *p = cuda_of(d) ? op_cuda_alloc_bytes(bytes) : op_cpu_alloc_bytes(bytes);
    op_cpu_account(d, *p, 0);
    *out = dv_at((dv *)p, HEADER);
    return ERR_OK;
}

static void count_free(device *d, dv *p)
{
    if (!p) return;
    size_t *head = (size_t *)((char *)p - HEADER);
    op_cpu_account(d, 0, *head);
    free(head);
}

/* As op_cuda_memory.c does it. */
static void count_upload(device *d, dv *dst, const void *src, size_t bytes)
{
    counted_cuda *c = cuda_of(d);
    while (c && bytes) {
        size_t block, at;
        if (op_cuda_pinned_full(&c->pinned, c->recording)) count_sync(d);
        size_t n = op_cuda_pinned_next(&c->pinned, bytes, &block, &at);
        op_cuda_pinned_pool *now = &c->pinned.pool[c->pinned.now];
        if (block == now->blocks) now->blocks++;
        now->waiting += n;
        bytes -= n;
    }
}
/* Where there is too much pinned, what has gone up is waited for. */
static void count_prefetch(device *d, dv *dst, const void *src, size_t bytes)
{
    count_upload(d, dst, src, bytes);
}
static void count_prefetched(device *d) {}
static void count_consumed(device *d) {}
static void count_download(device *d, void *dst, const dv *src, size_t bytes)
{
    if (!bytes) return;
    memset(dst, 0, bytes);
    count_sync(d);
}
static void count_send(device *d, int place, const dv *src, size_t bytes)
{
    if (cuda_of(d)) op_cuda_pinned_turn(&cuda_of(d)->pinned, place);
}
static void count_take(device *d, int place, void *dst, size_t bytes)
{
    memset(dst, 0, bytes);
    if (cuda_of(d)) op_cuda_pinned_taken(&cuda_of(d)->pinned, place);
}
static void count_zero(device *d, dv *p, size_t bytes) {}
static void count_copy(device *d, dv *dst, const dv *src, size_t bytes) {}
static void count_scale(device *d, dv *x, float by, size_t n) {}
static void count_cast(device *d, dv *dst, const dv *src, size_t n) {}

static void count_tiles(device *d, size_t n, void (*fn)(void *ctx, size_t tile, size_t slot), void *ctx)
{
    for (size_t i = 0; i < n; i++) fn(ctx, i, 0);
}

static size_t count_slots(const device *d)
{
    return cuda_of(d) ? 1 : op_cpu_slots(d);
}

static size_t count_tile_rows(const device *d)
{
    return cuda_of(d) ? 0 : op_cpu_tile_rows(d);
}

static size_t count_attention_bytes(const device *d, bool tile, size_t B, size_t T, size_t H, size_t D, bool backward)
{
    return cuda_of(d) ? op_cuda_attention_work(B, T, H, backward)
                      : op_cpu_attention_bytes(d, tile, B, T, H, D, backward);
}

/* --- matrix work */

/* packed_version says which copies there would be. */
static void count_packed(device *d, linear_w *w, int direction)
{
    if (w->same) w = w->same;
    if (d->counts != COUNTS_PACKED || w->packed_version[direction]) return;
    w->packed_version[direction] = 1;
    size_t bytes =
        direction ? op_cpu_linear_packed_bytes(d, w->out, w->in) : op_cpu_linear_packed_bytes(d, w->in, w->out);
    op_cpu_account(d, bytes, 0);
    d->bytes_packed += bytes;
}

static void count_linear(device *d, dv *y, const dv *x, linear_w *w, size_t N)
{
    if (!N) return;
    count_packed(d, w, 0);
    d->flop[FLOP_FORWARD] += 2.0 * (double)N * (double)w->out * (double)w->in;
}
static void count_linear_gelu(device *d, dv *y, dv *pre, const dv *x, linear_w *w, size_t N)
{
    count_linear(d, y, x, w, N);
}
static void count_linear_residual(device *d, dv *out, const dv *x, const dv *in, linear_w *w, const dv *ls, dv *branch,
                                  dv *rest, const op_norm *then, size_t N)
{
    count_linear(d, out, in, w, N);
}
static void count_dx(device *d, dv *dx, const dv *dy, linear_w *w, size_t N)
{
    if (!N) return;
    count_packed(d, w, 1);
    d->flop[FLOP_DX] += 2.0 * (double)N * (double)w->out * (double)w->in;
}
static void count_dx_slope(device *d, dv *dx, const dv *dy, linear_w *w, const dv *slope, size_t N)
{
    count_dx(d, dx, dy, w, N);
}
static void count_dw(device *d, dv *dw, dv *db, const dv *dy, const dv *x, const dv *rows, size_t R, size_t N, size_t O,
                     size_t I)
{
    if (dw) d->flop[FLOP_DW] += 2.0 * (double)N * (double)R * (double)I;
}
static void count_release(device *d, linear_w *w)
{
    for (int i = 0; i < 2; i++) {
        if (!w->packed_version[i]) continue;
        w->packed_version[i] = 0;
        size_t bytes = i ? op_cpu_linear_packed_bytes(d, w->out, w->in) : op_cpu_linear_packed_bytes(d, w->in, w->out);
        op_cpu_account(d, 0, bytes);
        d->bytes_packed -= bytes;
    }
}

/* --- the transformer */

static void count_patchify(device *d, dv *out, const dv *pixels, size_t B, size_t height, size_t width, size_t p) {}
static void count_embed(device *d, dv *x, const dv *patches, const dv *cls, const dv *reg, const dv *pos,
                        const dv *mask_token, const dv *mask, size_t B, size_t P, size_t R, size_t S, size_t C)
{
}
static void count_embed_bwd(device *d, dv *dpatches, dv *dcls, dv *dreg, dv *dpos, dv *dmask_token, const dv *dx,
                            const dv *mask, bool cls, size_t B, size_t P, size_t R, size_t S, size_t C)
{
}
static void count_prompt(device *d, dv *x, const dv *prompts, size_t B, size_t T, size_t first, size_t n, size_t C) {}
static void count_prompt_bwd(device *d, dv *dx, dv *dprompts, size_t B, size_t T, size_t first, size_t n, size_t C) {}
static void count_norm(device *d, dv *y, dv *mean, dv *rstd, const dv *x, const dv *gamma, const dv *beta, float eps,
                       size_t N, size_t C)
{
}
static void count_norm_bwd(device *d, dv *dx, bool accumulate, dv *dgamma, dv *dbeta, const dv *dy, const dv *x,
                           const dv *mean, const dv *rstd, const dv *gamma, dv *dbranch, const dv *ls, size_t N,
                           size_t C)
{
}
static void count_norm_again(device *d, dv *y, const dv *x, const dv *mean, const dv *rstd, const dv *gamma,
                             const dv *beta, size_t N, size_t C)
{
}
static void count_residual(device *d, dv *out, const dv *x, const dv *branch, const dv *ls, dv *rest, size_t N,
                           size_t C)
{
}
static void count_residual_bwd(device *d, dv *dbranch, const dv *dout, const dv *ls, size_t N, size_t C) {}
static void count_scale_grad(device *d, dv *dls, const dv *ls, const dv *w, const dv *dw, const dv *bias, const dv *db,
                             size_t R, size_t I)
{
}
static void count_gelu(device *d, dv *y, const dv *pre, size_t n) {}
static void count_gelu_bwd(device *d, dv *dpre, const dv *dy, const dv *pre, size_t n) {}
static void count_swiglu(device *d, dv *y, const dv *pre, size_t N, size_t F) {}
static void count_swiglu_bwd(device *d, dv *dpre, const dv *dy, const dv *pre, size_t N, size_t F) {}
static void count_attention(device *d, dv *o, dv *lse, const dv *qkv, size_t B, size_t T, size_t H, size_t D)
{
    d->flop[FLOP_FORWARD] += 4.0 * (double)(B * T) * (double)T * (double)(H * D);
}
static void count_attention_bwd(device *d, dv *dqkv, const dv *d_o, const dv *qkv, const dv *o, const dv *lse, size_t B,
                                size_t T, size_t H, size_t D)
{
    d->flop[FLOP_DX] += 8.0 * (double)(B * T) * (double)T * (double)(H * D);
}
static void count_mean_token(device *d, dv *out, const dv *x, size_t B, size_t T, size_t first, size_t C) {}
static void count_mix_rows(device *d, dv *out, bool add, const dv *in, const dv *first, const dv *index,
                           const dv *weight, size_t n, size_t C)
{
}
static void count_rows(device *d, dv *out, const dv *x, const dv *rows, size_t n, size_t C) {}

/* --- objective and optimiser */

static void count_l2(device *d, dv *y, dv *norm, const dv *x, size_t N, size_t C) {}
static void count_l2_bwd(device *d, dv *dx, const dv *dy, const dv *y, const dv *norm, size_t N, size_t C) {}
static void count_weight_norm(device *d, dv *w_ct, const dv *v, size_t K, size_t C) {}
static void count_weight_norm_bwd(device *d, dv *dv_f32, const dv *dw, const dv *v, size_t K, size_t C) {}
static void count_teacher_softmax(device *d, dv *q, dv *sum, dv *mean, dv *entropy, const dv *logits, const dv *center,
                                  float tau, size_t N, size_t K)
{
}
static void count_mean_entropy(device *d, dv *out, const dv *mean, size_t N, size_t K) {}
static void count_sinkhorn_prototypes(device *d, dv *center, const dv *logits, const dv *scale, bool first, float tau,
                                      size_t N, size_t K)
{
}
static void count_sinkhorn_rows(device *d, dv *scale, const dv *logits, const dv *center, float tau, size_t N, size_t K)
{
}
static void count_center(device *d, dv *center, const dv *sum, float m, size_t N, size_t K, const dv *square) {}
static void count_soft_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *q, const dv *pair,
                          const dv *weight, size_t P, float tau, size_t N, size_t K)
{
}
static void count_koleo(device *d, dv *loss, dv *dx, const dv *x, float w, size_t N, size_t C) {}
static void count_softmax_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *target, float w, size_t N,
                             size_t K)
{
}
static void count_sigmoid_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *target, const dv *weight,
                             float w, size_t N, size_t K)
{
}
static void count_grad_square(device *d, dv *out, const param *p, size_t n, const adamw_step *s) {}
static void count_adamw(device *d, param *p, size_t n, const adamw_step *s, const dv *square) {}
static void count_refresh(device *d, param *p, size_t n) {}
/* Of frames that are there. */
static void count_sample(device *d, dv *out, const struct sampler_norm *norm, const struct sample_job *jobs, size_t n)
{
    count_upload(d, out, jobs, n * OP_CUDA_SHOT_BYTES);
}

static const op_table count_table = {
    "count",
    count_close,
    count_sync,
    count_record,
    count_attention_bytes,
    count_alloc,
    count_free,
    count_upload,
    count_prefetch,
    count_prefetched,
    count_consumed,
    count_download,
    count_send,
    count_take,
    count_zero,
    count_copy,
    count_cast,
    count_cast,
    count_cast,
    count_scale,
    count_tiles,
    count_slots,
    count_tile_rows,
    count_linear,
    count_linear_gelu,
    count_linear_gelu,
    count_linear_residual,
    count_dx,
    count_dx_slope,
    count_dw,
    count_release,
    count_patchify,
    count_embed,
    count_embed_bwd,
    count_prompt,
    count_prompt_bwd,
    count_norm,
    count_norm_bwd,
    count_norm_again,
    count_residual,
    count_residual_bwd,
    count_scale_grad,
    count_gelu,
    count_gelu_bwd,
    count_swiglu,
    count_swiglu_bwd,
    count_attention,
    count_attention_bwd,
    count_mean_token,
    count_mean_token,
    count_rows,
    count_rows,
    count_mix_rows,
    count_l2,
    count_l2_bwd,
    count_weight_norm,
    count_weight_norm_bwd,
    count_teacher_softmax,
    count_mean_entropy,
    count_sinkhorn_prototypes,
    count_sinkhorn_rows,
    count_center,
    count_soft_ce,
    count_koleo,
    count_softmax_ce,
    count_sigmoid_ce,
    count_grad_square,
    count_adamw,
    count_refresh,
    count_sample,
};

static err_code open_cuda(device *d, compute_type ct, err *e)
{
    counted_cuda *c = calloc(1, sizeof *c);
    if (!c) FAIL(e, NOMEM, "no memory for the compute device");
    bool f32 = ct == COMPUTE_F32;
    *d = (device){.op = &count_table,
                  .ct = f32 ? COMPUTE_F32 : COMPUTE_BF16,
                  .ct_bytes = f32 ? 4 : 2,
                  .threads = 1,
                  .counts = COUNTS_BARE,
                  .impl = c};
    op_cpu_account(d, op_count_fixed(d), 0);
    return ERR_OK;
}

err_code op_count_open(device *d, int threads, compute_type ct, op_count_kind kind, err *e)
{
    if (kind == OP_COUNT_CUDA) return open_cuda(d, ct, e);
    TRY(device_open_cpu(d, threads, ct, e));
    d->op = &count_table;
    d->counts = COUNTS_PACKED;
    return ERR_OK;
}

size_t op_count_fixed(const device *d)
{
    return cuda_of(d) ? op_cuda_alloc_bytes(OP_CUDA_SCRATCH_BYTES) + op_cuda_alloc_bytes(OP_CUDA_BLAS_BYTES) : 0;
}

size_t op_count_pinned(const device *d)
{
    return cuda_of(d) ? op_cuda_pinned_bytes(&cuda_of(d)->pinned) : 0;
}
