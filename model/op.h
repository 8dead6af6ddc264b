/* op.h: every computation the engine asks of a device. One const table per back end (op_cpu.c, cuda/op_cuda.c), filled
 * positionally so that a missing op does not compile. The model above this line is written once.
 *
 *     device d; TRY(device_open_cpu(&d, 0, COMPUTE_AUTO, &e));
 *     d.op->linear_fwd(&d, y, x, &w, N);
 *     TRY(device_sync(&d, &e));            // device errors are sticky and read once, here
 *
 * Conventions. Device memory is an incomplete type: host code cannot index it. "ct" is the device's compute type (bf16
 * or fp32): activations and the live weights of linear layers; everything marked f32 is fp32: statistics, losses,
 * biases, LayerNorm and LayerScale vectors, master weights, gradients of parameters. Tensors are row-major and
 * contiguous. Gradients of parameters accumulate (+=); gradients of activations are assigned (=). Outputs may not alias
 * inputs unless said. B batch, T tokens, C channels, H heads, D head size, N = B*T rows, I/O in/out features, K
 * prototypes. Nothing allocates inside an op: scratch comes from the device's workspace (device_reserve, at plan time).
 */
#ifndef RADAPT_OP_H
#define RADAPT_OP_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

typedef struct dv dv; /* device memory */
typedef struct device device;
struct sample_job; /* preprocess/sampler.h */
struct sampler_norm;

typedef enum { COMPUTE_AUTO, COMPUTE_F32, COMPUTE_BF16 } compute_type;

enum { OP_SENT_BYTES = 64, OP_SENT_PLACES = 2 };

static inline dv *dv_at(const dv *p, size_t bytes)
{
    return (dv *)((char *)(uintptr_t)p + bytes);
}

/* Bytes of a row of F derivatives in 10 bits: linear_gelu_slope_fwd. */
static inline size_t op_slope_bytes(size_t F)
{
    return F + (F + 3) / 4;
}

/* A linear layer's live weight. The back end caches packed copies in packed[] while version stands still; whoever
 * changes w bumps version. frozen: never changes, so packing both directions pays. */
typedef struct linear_w {
    size_t out, in;
    dv *w;    /* (O,I) ct, as PyTorch stores it */
    dv *bias; /* (O) f32, or NULL */
    bool frozen;
    uint32_t version;
    struct linear_w *same;      /* whose w and packed copies these are: only the bias is its own; NULL: all is */
    void *packed[2];            /* [0] forward, [1] dX; owned by the back end: linear_release */
    uint32_t packed_version[2]; /* 0: none; versions start at 1 */
} linear_w;

/* A LayerNorm that follows at once: y = LN(x) * gamma + beta; mean, rstd f32 (N), NULL when nothing is to be
 * differentiated. */
typedef struct {
    dv *y, *mean, *rstd;
    const dv *gamma, *beta; /* f32 (C) */
    float eps;
} op_norm;

/* A trainable tensor: master weights, Adam state, EMA teacher, and where the model reads it. */
typedef struct param {
    char name[96];           /* DINOv2 name */
    size_t rows, cols;       /* trainable part: rows x cols; a vector is (n,1) */
    size_t full_rows;        /* rows of the whole tensor (== rows unless row_index) */
    int32_t *rows_host;      /* (rows) which rows of the whole tensor, ascending; NULL: all. Owned by the param_set */
    dv *memory;              /* all that follows but the live copies */
    dv *row_index;           /* the same on the device, int32 */
    dv *master, *grad;       /* f32 (rows, cols) */
    dv *m, *v;               /* f32 (rows, cols): Adam */
    dv *teacher;             /* f32 (rows, cols): EMA, or NULL */
    dv *live, *live_teacher; /* (full_rows, cols) in live_ct ? ct : f32; live_teacher NULL if no teacher */
    bool live_ct;
    linear_w *linear, *linear_teacher; /* whose version to bump, or NULL */
    float lr_scale;                    /* layer-wise decay, patch-embedding factor */
    bool weights_only;                 /* no grad, m, v */
    bool decay;                        /* weight decay applies (not on biases and other 1-D tensors) */
    bool head;                         /* SSL head or classifier: has its own learning rate */
    bool prototypes;                   /* last layer of the SSL head: gradients cancelled at first */
} param;

/* Groups of params that begin to train, and so their moments, at steps of their own. */
enum { ADAM_BACKBONE, ADAM_HEAD, ADAM_PROTOTYPES, ADAM_GROUPS };

static inline int adam_group(const param *p)
{
    return p->prototypes ? ADAM_PROTOTYPES : p->head ? ADAM_HEAD : ADAM_BACKBONE;
}

typedef struct {
    float beta1, beta2, eps, weight_decay, lr, head_lr;
    int64_t t[ADAM_GROUPS];              /* updates that a group's moments have had, with this one: from 1 */
    float clip;                          /* gradients are scaled down to this norm; 0: they are not */
    bool skip_prototypes, skip_backbone; /* first epochs; head warm-up */
    bool average;                        /* the teachers follow, those of skipped groups too */
    float momentum;                      /* ... by this: teacher = momentum * teacher + (1-momentum) * master */
} adamw_step;

typedef struct op_table {
    const char *name;
    /* --- the device */
    void (*close)(device *d); /* device_close */
    void (*sync)(device *d);  /* waits for all that was asked of it */
    /* Between record(d, true) and record(d, false) ops may be only taken down, to run at the end as one: nothing may be
     * downloaded, allocated or waited for in between. What uploads were given may change at once. */
    void (*record)(device *d, bool on);
    /* Workspace that attention needs (device_reserve); tile: by an op inside a tile, of the thread's share. */
    size_t (*attention_bytes)(const device *d, bool tile, size_t B, size_t T, size_t H, size_t D, bool backward);
    /* --- memory
     * ------------------------------------------------------------------------------------------------------- */
    err_code (*alloc)(device *d, size_t bytes, dv **out, err *e); /* 64-byte aligned, zeroed */
    void (*free)(device *d, dv *p);
    void (*upload)(device *d, dv *dst, const void *src, size_t bytes);
    /* An upload beside the ops, not inside a recording: it waits for what was asked before the last `consumed` or
     * `alloc` alone, and what is asked after `prefetched` finds it there. */
    void (*prefetch)(device *d, dv *dst, const void *src, size_t bytes);
    void (*prefetched)(device *d);
    void (*consumed)(device *d);
    void (*download)(device *d, void *dst, const dv *src, size_t bytes);
    /* A download that nothing waits for: up to OP_SENT_BYTES of src, as they are when all that was asked before is
     * done, on their way to one of OP_SENT_PLACES; not inside a recording. And what the last send to a place brought:
     * waits for that alone. What was uploaded before a send has arrived when it is taken. */
    void (*send)(device *d, int place, const dv *src, size_t bytes);
    void (*take)(device *d, int place, void *dst, size_t bytes);
    void (*zero)(device *d, dv *p, size_t bytes);
    void (*copy)(device *d, dv *dst, const dv *src, size_t bytes);
    void (*to_ct)(device *d, dv *dst, const dv *src_f32, size_t n);
    void (*to_f32)(device *d, dv *dst_f32, const dv *src, size_t n);
    void (*add)(device *d, dv *dst, const dv *src, size_t n); /* ct: dst += src */
    void (*scale)(device *d, dv *x, float by, size_t n);      /* ct: x *= by */

    /* Runs fn(ctx, tile, slot) for every tile below n: independent pieces of a pass, several at once where the device
     * has several units that compute on their own. slot < slots(d): no two tiles at work share one, so scratch is a
     * slot's. Ops inside use that unit alone. n == 1: here, with all units. Result and order of sums do not depend on
     * timing. */
    void (*tiles)(device *d, size_t n, void (*fn)(void *ctx, size_t tile, size_t slot), void *ctx);
    size_t (*slots)(const device *d);
    size_t (*tile_rows)(const device *d); /* rows of a pass that make a good tile; 0: all of them */

    /* --- matrix work (op_cpu_matmul.c)
     * ------------------------------------------------------------------------------------ */
    void (*linear_fwd)(device *d, dv *y /*(N,O)*/, const dv *x /*(N,I)*/, linear_w *w, size_t N);
    /* y = GELU(pre), pre = x W^T + b; exact (erf) GELU. pre may be NULL when nothing is to be differentiated. */
    void (*linear_gelu_fwd)(device *d, dv *y, dv *pre, const dv *x, linear_w *w, size_t N);
    /* y = GELU(x W^T + b), and GELU' there in 10 bits (within 1/1600): slope, N rows of op_slope_bytes(O) bytes, in the
     * back end's own order, for linear_dx_slope. */
    void (*linear_gelu_slope_fwd)(device *d, dv *y, dv *slope, const dv *x, linear_w *w, size_t N);
    /* out (N,O) = x + ls * (in W^T + b), ls f32 (O) or NULL (1); out may be x. branch (N,O): scratch. rest (N,O), or
     * NULL: what rounding to ct has left of x is added, and what it leaves of out put in its place, so that a stream of
     * many such sums is off by one rounding and not by all. then: the norm of out, or NULL. */
    void (*linear_residual_fwd)(device *d, dv *out, const dv *x, const dv *in /*(N,I)*/, linear_w *w, const dv *ls,
                                dv *branch, dv *rest, const op_norm *then, size_t N);
    void (*linear_dx)(device *d, dv *dx /*(N,I)*/, const dv *dy /*(N,O)*/, linear_w *w, size_t N);
    /* dx = (dy W) * GELU', slope (N) rows of I derivatives: linear_gelu_slope_fwd's of the layer below. */
    void (*linear_dx_slope)(device *d, dv *dx /*(N,I)*/, const dv *dy /*(N,O)*/, linear_w *w, const dv *slope,
                            size_t N);
    /* dw (R,I) f32 += dy[:,rows]^T x; db (R) f32 += column sums. rows int32 (R) or NULL (R == O). dw or db may be NULL.
     */
    void (*linear_dw)(device *d, dv *dw, dv *db, const dv *dy /*(N,O)*/, const dv *x /*(N,I)*/, const dv *rows,
                      size_t R, size_t N, size_t O, size_t I);
    void (*linear_release)(device *d, linear_w *w); /* frees packed copies */

    /* --- transformer (op_cpu_vit.c, op_cpu_attention.c)
     * --------------------------------------------------------------------- */
    /* Pixels (B,3,Hp,Wp) f32 -> (B*P, 3*p*p) ct in the order of a flattened conv weight (channel, row, column). */
    void (*patchify)(device *d, dv *out, const dv *pixels, size_t B, size_t height, size_t width, size_t p);
    /* x (B,T,C) = [cls + pos0 | R registers | S rows left as they are (prompts) | patch or mask token, + pos]; mask
     * (B,P) uint8 or NULL. pos f32 (1+P,C) on this grid (row 0 is the class token's); cls/reg/mask_token f32, cls NULL:
     * none. */
    void (*embed_fwd)(device *d, dv *x, const dv *patches /*(B*P,C) ct*/, const dv *cls, const dv *reg, const dv *pos,
                      const dv *mask_token, const dv *mask, size_t B, size_t P, size_t R, size_t S, size_t C);
    /* dpatches = (0 where masked), d* f32 += ; any of them NULL: not wanted. cls: whether there is a class token. */
    void (*embed_bwd)(device *d, dv *dpatches, dv *dcls, dv *dreg, dv *dpos, dv *dmask_token, const dv *dx,
                      const dv *mask, bool cls, size_t B, size_t P, size_t R, size_t S, size_t C);
    /* Prompts f32 (n,C) into rows first .. first+n of each image of x (B,T,C); and back: dprompts f32 += the sum over
     * images of these rows of dx, or NULL; then they are 0, for what was in their place has no part in the loss. */
    void (*prompt_fwd)(device *d, dv *x, const dv *prompts, size_t B, size_t T, size_t first, size_t n, size_t C);
    void (*prompt_bwd)(device *d, dv *dx, dv *dprompts, size_t B, size_t T, size_t first, size_t n, size_t C);
    /* y = LN(x) * gamma + beta; mean, rstd f32 (N), NULL when nothing is to be differentiated. */
    void (*norm_fwd)(device *d, dv *y, dv *mean, dv *rstd, const dv *x, const dv *gamma, const dv *beta, float eps,
                     size_t N, size_t C);
    /* dx = (accumulate ? dx + : ) LN'(dy); dgamma, dbeta f32 += or NULL. xhat is recomputed from x, mean, rstd. And of
     * the residual branch that ended in x: dbranch = ls * dx, as residual_bwd; or NULL. */
    void (*norm_bwd)(device *d, dv *dx, bool accumulate, dv *dgamma, dv *dbeta, const dv *dy, const dv *x,
                     const dv *mean, const dv *rstd, const dv *gamma, dv *dbranch, const dv *ls, size_t N, size_t C);
    /* The normalised input again, for a layer that needs it in backward: y = LN(x). */
    void (*norm_again)(device *d, dv *y, const dv *x, const dv *mean, const dv *rstd, const dv *gamma, const dv *beta,
                       size_t N, size_t C);
    /* out = x + ls * branch, ls f32 (C) or NULL (1); out may be x. rest: as of linear_residual_fwd. */
    void (*residual_fwd)(device *d, dv *out, const dv *x, const dv *branch, const dv *ls, dv *rest, size_t N, size_t C);
    /* dbranch = ls * dout. (dx is dout itself.) */
    void (*residual_bwd)(device *d, dv *dbranch, const dv *dout, const dv *ls, size_t N, size_t C);
    /* dls f32 (R), assigned, of out = x + ls * (W in + b), from what W's and b's gradients have come to: as dW = (ls *
     * dout)^T in, sum dout * branch = (W . dW + b * db) / ls, row by row, and the branch is not made again. w (R,I) ct,
     * dw f32; bias and db f32 (R), or NULL. 0 where ls is 0. */
    void (*scale_grad)(device *d, dv *dls, const dv *ls, const dv *w, const dv *dw, const dv *bias, const dv *db,
                       size_t R, size_t I);
    void (*gelu_fwd)(device *d, dv *y, const dv *pre, size_t n);                  /* y may be pre */
    void (*gelu_bwd)(device *d, dv *dpre, const dv *dy, const dv *pre, size_t n); /* dpre may be dy */
    /* SwiGLU (Shazeer 2020, without its matrices): y (N,F) = silu(x1) * x2, pre (N,2F) rows [x1 | x2], silu(x) = x /
     * (1 + exp -x). And back: dpre (N,2F), which may be pre, from dy (N,F). */
    void (*swiglu_fwd)(device *d, dv *y, const dv *pre, size_t N, size_t F);
    void (*swiglu_bwd)(device *d, dv *dpre, const dv *dy, const dv *pre, size_t N, size_t F);
    /* o (B,T,C) from qkv (B,T,3C), scale 1/sqrt(D); lse f32 (B,H,T) log-sum-exp of the scaled scores, or NULL. */
    void (*attention_fwd)(device *d, dv *o, dv *lse, const dv *qkv, size_t B, size_t T, size_t H, size_t D);
    void (*attention_bwd)(device *d, dv *dqkv, const dv *d_o, const dv *qkv, const dv *o, const dv *lse, size_t B,
                          size_t T, size_t H, size_t D);
    /* For models without a class token: out (B,1+T,C) = [mean of x's rows from `first` on | x], x (B,T,C); and back. */
    void (*mean_token_fwd)(device *d, dv *out, const dv *x, size_t B, size_t T, size_t first, size_t C);
    void (*mean_token_bwd)(device *d, dv *dx, const dv *dout, size_t B, size_t T, size_t first, size_t C);
    /* out[i] = x[rows[i]] and dx[rows[i]] += dout[i]; rows int32 (n), distinct; C columns ct. */
    void (*gather)(device *d, dv *out, const dv *x, const dv *rows, size_t n, size_t C);
    void (*scatter_add)(device *d, dv *dx, const dv *dout, const dv *rows, size_t n, size_t C);
    /* Row i of out (n,C) f32 = (add: +=) sum of weight[k] * in[index[k]] over first[i] <= k < first[i+1], in order.
     * first int32 (n+1), index int32, weight f32; in f32 rows of C, not out. */
    void (*mix_rows)(device *d, dv *out, bool add, const dv *in, const dv *first, const dv *index, const dv *weight,
                     size_t n, size_t C);

    /* --- objective (op_cpu_loss.c)
     * -------------------------------------------------------------------------------------------- */
    /* y = x / |x| per row (eps 1e-12 as torch), norm f32 (N) kept. */
    void (*l2_fwd)(device *d, dv *y, dv *norm, const dv *x, size_t N, size_t C);
    void (*l2_bwd)(device *d, dv *dx, const dv *dy, const dv *y, const dv *norm, size_t N, size_t C);
    /* Weight normalisation with g = 1: live ct rows of v / |v|, v f32 (K,C); and dv f32 from dw f32, in place allowed.
     */
    void (*weight_norm_fwd)(device *d, dv *w_ct, const dv *v, size_t K, size_t C);
    void (*weight_norm_bwd)(device *d, dv *dv_f32, const dv *dw, const dv *v, size_t K, size_t C);
    /* Teacher targets: q (N,K) ct = softmax((logits - center) / tau), may be logits. So that rows may come in pieces,
     * all else accumulates: sum f32 (K) += raw logits (for the centre), mean f32 (K) += q, entropy f32 (1) += that of
     * each row (nats). */
    void (*teacher_softmax)(device *d, dv *q, dv *sum, dv *mean, dv *entropy, const dv *logits, const dv *center,
                            float tau, size_t N, size_t K);
    /* out f32 (1) = entropy of mean f32 (K) / N, nats; N == 0: 0. */
    void (*mean_entropy)(device *d, dv *out, const dv *mean, size_t N, size_t K);
    /* Sinkhorn-Knopp (Cuturi 2013; SwAV, DINOv2), in logarithms, every exponential below its maximum. The rows and
     * columns of exp(logits / tau) are scaled in turn until prototypes share the rows evenly; a prototype's scale acts
     * as a centre, so that the targets are teacher_softmax of it. One iteration: _prototypes over all rows (first: the
     * first piece of them), then _rows before the next.
     *   _prototypes: center f32 (K) = tau log sum_i exp(logits_i / tau + scale_i), scale f32 (N), or NULL: zeros
     *   _rows:       scale_i = -log sum_k exp((logits_ik - center_k) / tau) */
    void (*sinkhorn_prototypes)(device *d, dv *center, const dv *logits, const dv *scale, bool first, float tau,
                                size_t N, size_t K);
    void (*sinkhorn_rows)(device *d, dv *scale, const dv *logits, const dv *center, float tau, size_t N, size_t K);
    /* center f32 (K) = m * center + (1-m) * sum / N; square: as adamw has it, or NULL. */
    void (*center_update)(device *d, dv *center, const dv *sum, float m, size_t N, size_t K, const dv *square);
    /* Soft cross-entropy. Row i of logits (N,K) has up to P targets q[pair[i*P+j]] (-1: none) with weights
     * weight[i*P+j] f32: loss f32 (1) += sum_i sum_j weight * H(q_j, softmax(logits_i / tau)); dlogits (N,K) ct =
     * gradient, may be logits. */
    void (*soft_ce)(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *q, const dv *pair, const dv *weight,
                    size_t P, float tau, size_t N, size_t K);
    /* KoLeo on x (N,C) ct, not yet normalised: loss f32 (1) += w * mean_i -log(|u_i - u_nn(i)| + 1e-8), u = x/|x| in
     * fp32; dx (N,C) ct = gradient. N == 1: nothing (dx = 0). */
    void (*koleo)(device *d, dv *loss, dv *dx, const dv *x, float w, size_t N, size_t C);
    /* The classifier's losses: logits, targets and gradient f32 (N,K); targets may be soft and need not sum to 1.
     * Softmax cross-entropy: loss f32 (1) += w * sum_i sum_k target_ik (log sum exp z_i - z_ik). */
    void (*softmax_ce)(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *target, float w, size_t N,
                       size_t K);
    /* Binary cross-entropy of every logit on its own: loss += w * sum weight_ik (log(1 + exp z_ik) - target_ik z_ik);
     * weight f32 (N,K), 0 where the target is not known. */
    void (*sigmoid_ce)(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *target, const dv *weight, float w,
                       size_t N, size_t K);

    /* --- optimiser (op_cpu_optim.c)
     * ------------------------------------------------------------------------------------------- */
    /* out f32 (1) = sum of squares of all gradients (skipped groups excluded as in s). */
    void (*grad_square)(device *d, dv *out, const param *p, size_t n, const adamw_step *s);
    /* In one pass over all params: decoupled AdamW on masters, the EMA of teachers where s->average, live =
     * cast(master) and live_teacher = cast(teacher) (row-scattered), versions bumped. square f32 (1): grad_square's, by
     * which gradients are clipped as torch's clip_grad_norm_ does; where it is not finite nothing changes. */
    void (*adamw)(device *d, param *p, size_t n, const adamw_step *s, const dv *square);
    void (*refresh)(device *d, param *p, size_t n); /* live and live_teacher from master and teacher, after a load */

    /* --- data path */
    /* out (n,3,size,size) f32: the jobs' crops, as sampler_run makes them, one after the other; of one size, and what
     * jobs say of `out` is not read. Their pixels may change after the next sync. */
    void (*sample)(device *d, dv *out, const struct sampler_norm *norm, const struct sample_job *jobs, size_t n);
} op_table;

/* Whether a device computes, or only counts (op_count.h): with the CPU back end's packed weights, or bare. */
typedef enum { COUNTS_NOT, COUNTS_PACKED, COUNTS_BARE } device_counts;
enum { FLOP_FORWARD, FLOP_DX, FLOP_DW, FLOP_KINDS };

struct device {
    const op_table *op;
    compute_type ct; /* COMPUTE_F32 or COMPUTE_BF16, never AUTO */
    size_t ct_bytes; /* 4 or 2 */
    int threads;
    dv *work; /* scratch of ops */
    size_t work_bytes;
    size_t bytes, bytes_most,
        bytes_packed; /* of its memory that are in use, and were at most; packed weights of them */
    device_counts counts;
    double flop[FLOP_KINDS]; /* of a device that counts */
    void *impl;              /* the back end's own */
    err sticky;
};

/* threads 0: one per processor. COMPUTE_AUTO: bf16 where the processor multiplies it or has vectors to widen it with
 * (AVX2: then products are fp32's, and bf16 is what lies in memory), else fp32; there bf16 is ERR_UNSUPPORTED. */
err_code device_open_cpu(device *d, int threads, compute_type ct, err *e);
void device_close(device *d);
/* The workspace is at least bytes large. Ops document what they need; device_needs_* in op_cpu.h sum it up. */
err_code device_reserve(device *d, size_t bytes, err *e);
err_code device_sync(device *d, err *e);

#endif
