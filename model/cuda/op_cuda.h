/* op_cuda.h: the CUDA back end's ops, one function per entry of op.h's table, and what its files share. C and CUDA both
 * include it; nothing outside model/cuda and its tests does.
 *
 * op_cuda.c: the device, the table. op_cuda_memory.c: allocation, copies. op_cuda_graph.c: recording. op_cuda_linear.c:
 * cuBLASLt. *.cu: kernels and their launchers, which have the table's own signatures. Every launch goes to op_cuda's
 * stream, in order, prefetches to another; nothing waits, nothing allocates. Sums run in an order that depends on
 * shapes alone: no float is ever added by an atomic, so that a run repeats bit for bit. */
#ifndef RADAPT_OP_CUDA_H
#define RADAPT_OP_CUDA_H
#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "model/cuda/op_cuda_bytes.h"
#include "model/op.h"

typedef struct op_cuda_memory op_cuda_memory;
typedef struct op_cuda_graph op_cuda_graph;
typedef struct op_cuda_blas op_cuda_blas;

/* device.impl */
typedef struct {
    cudaStream_t stream;
    int sm;                 /* compute capability, 75 to 120 */
    int processors;         /* multiprocessors */
    size_t shared_most;     /* bytes of dynamic shared memory that a block may ask for */
    bool half_forward;      /* op_cuda_linear.c */
    dv *scratch;            /* OP_CUDA_SCRATCH_BYTES */
    op_cuda_memory *memory; /* op_cuda_memory.c */
    op_cuda_blas *blas;     /* op_cuda_linear.c */
    op_cuda_graph *graph;   /* op_cuda_graph.c */
} op_cuda;

#ifdef __cplusplus
extern "C" {
#endif

static inline op_cuda *op_cuda_of(const device *d)
{
    return (op_cuda *)d->impl;
}

/* GPU `number` of this machine, from 0. COMPUTE_AUTO: bf16 from sm_80 on, else fp32. */
err_code op_cuda_open(device *d, int number, compute_type ct, err *e);
/* The parts of the device; each close takes one that was not opened, or not wholly. */
err_code op_cuda_memory_open(device *d, err *e);
void op_cuda_memory_close(device *d);
void op_cuda_memory_free_again(device *d); /* the stream was waited for: pinned memory may be written */
err_code op_cuda_alloc_bare(device *d, size_t bytes, dv **out, err *e); /* op_cuda_alloc without its zeroes */
size_t op_cuda_memory_pinned(const device *d);                          /* bytes */
err_code op_cuda_graph_open(device *d, err *e);
void op_cuda_graph_close(device *d);
bool op_cuda_graph_recording(const device *d);
size_t op_cuda_graph_made(const device *d); /* executable graphs: few where steps are alike */
err_code op_cuda_blas_open(device *d, err *e);
void op_cuda_blas_close(device *d);
/* Why the runtime said rc to `what`: one line, and a code. */
err_code op_cuda_refused(const device *d, cudaError_t rc, const char *what, err *e);
/* The first failure stays in d->sticky (device_sync). */
void op_cuda_fail(device *d, err_code code, const char *what);
void op_cuda_check(device *d, cudaError_t rc, const char *what);
/* OP_CUDA_SCRATCH_BYTES that any op may use from its first launch to its last; NULL, and sticky, if it wants more. */
void *op_cuda_scratch(device *d, size_t bytes);
/* The workspace (device_reserve); NULL, and sticky, if it is smaller. */
void *op_cuda_work(device *d, size_t bytes);

size_t op_cuda_attention_bytes(const device *d, bool tile, size_t B, size_t T, size_t H, size_t D, bool backward);
void op_cuda_close(device *d);
void op_cuda_sync(device *d);
void op_cuda_record(device *d, bool on);
err_code op_cuda_alloc(device *d, size_t bytes, dv **out, err *e);
void op_cuda_free(device *d, dv *p);
void op_cuda_upload(device *d, dv *dst, const void *src, size_t bytes);
void op_cuda_prefetch(device *d, dv *dst, const void *src, size_t bytes);
void op_cuda_prefetched(device *d);
void op_cuda_consumed(device *d);
void op_cuda_download(device *d, void *dst, const dv *src, size_t bytes);
void op_cuda_send(device *d, int place, const dv *src, size_t bytes);
void op_cuda_take(device *d, int place, void *dst, size_t bytes);
void op_cuda_zero(device *d, dv *p, size_t bytes);
void op_cuda_copy(device *d, dv *dst, const dv *src, size_t bytes);
void op_cuda_to_ct(device *d, dv *dst, const dv *src_f32, size_t n);
void op_cuda_to_f32(device *d, dv *dst_f32, const dv *src, size_t n);
void op_cuda_add(device *d, dv *dst, const dv *src, size_t n);
void op_cuda_scale(device *d, dv *x, float by, size_t n);
void op_cuda_tiles(device *d, size_t n, void (*fn)(void *ctx, size_t tile, size_t slot), void *ctx);
size_t op_cuda_slots(const device *d);
size_t op_cuda_tile_rows(const device *d);
void op_cuda_linear_fwd(device *d, dv *y, const dv *x, linear_w *w, size_t N);
void op_cuda_linear_gelu_fwd(device *d, dv *y, dv *pre, const dv *x, linear_w *w, size_t N);
void op_cuda_linear_gelu_slope_fwd(device *d, dv *y, dv *slope, const dv *x, linear_w *w, size_t N);
void op_cuda_linear_residual_fwd(device *d, dv *out, const dv *x, const dv *in, linear_w *w, const dv *ls, dv *branch,
                                 dv *rest, const op_norm *then, size_t N);
void op_cuda_linear_dx(device *d, dv *dx, const dv *dy, linear_w *w, size_t N);
void op_cuda_linear_dx_slope(device *d, dv *dx, const dv *dy, linear_w *w, const dv *slope, size_t N);
void op_cuda_linear_dw(device *d, dv *dw, dv *db, const dv *dy, const dv *x, const dv *rows, size_t R, size_t N,
                       size_t O, size_t I);
void op_cuda_linear_release(device *d, linear_w *w);
void op_cuda_patchify(device *d, dv *out, const dv *pixels, size_t B, size_t height, size_t width, size_t p);
void op_cuda_embed_fwd(device *d, dv *x, const dv *patches, const dv *cls, const dv *reg, const dv *pos,
                       const dv *mask_token, const dv *mask, size_t B, size_t P, size_t R, size_t S, size_t C);
void op_cuda_embed_bwd(device *d, dv *dpatches, dv *dcls, dv *dreg, dv *dpos, dv *dmask_token, const dv *dx,
                       const dv *mask, bool cls, size_t B, size_t P, size_t R, size_t S, size_t C);
void op_cuda_prompt_fwd(device *d, dv *x, const dv *prompts, size_t B, size_t T, size_t first, size_t n, size_t C);
void op_cuda_prompt_bwd(device *d, dv *dx, dv *dprompts, size_t B, size_t T, size_t first, size_t n, size_t C);
void op_cuda_norm_fwd(device *d, dv *y, dv *mean, dv *rstd, const dv *x, const dv *gamma, const dv *beta, float eps,
                      size_t N, size_t C);
void op_cuda_norm_bwd(device *d, dv *dx, bool accumulate, dv *dgamma, dv *dbeta, const dv *dy, const dv *x,
                      const dv *mean, const dv *rstd, const dv *gamma, dv *dbranch, const dv *ls, size_t N, size_t C);
void op_cuda_norm_again(device *d, dv *y, const dv *x, const dv *mean, const dv *rstd, const dv *gamma, const dv *beta,
                        size_t N, size_t C);
void op_cuda_residual_fwd(device *d, dv *out, const dv *x, const dv *branch, const dv *ls, dv *rest, size_t N,
                          size_t C);
void op_cuda_residual_bwd(device *d, dv *dbranch, const dv *dout, const dv *ls, size_t N, size_t C);
void op_cuda_scale_grad(device *d, dv *dls, const dv *ls, const dv *w, const dv *dw, const dv *bias, const dv *db,
                        size_t R, size_t I);
void op_cuda_gelu_fwd(device *d, dv *y, const dv *pre, size_t n);
void op_cuda_gelu_bwd(device *d, dv *dpre, const dv *dy, const dv *pre, size_t n);
/* y (N,F) = GELU(x), slope its derivative in 10 bits, x = y + bias, bias f32 (F) or NULL; and dpre = dy times that. */
void op_cuda_gelu_slope_fwd(device *d, dv *y, dv *slope, const dv *bias, size_t N, size_t F);
void op_cuda_gelu_slope_bwd(device *d, dv *dpre, const dv *dy, const dv *slope, size_t N, size_t F);
void op_cuda_swiglu_fwd(device *d, dv *y, const dv *pre, size_t N, size_t F);
void op_cuda_swiglu_bwd(device *d, dv *dpre, const dv *dy, const dv *pre, size_t N, size_t F);
void op_cuda_attention_fwd(device *d, dv *o, dv *lse, const dv *qkv, size_t B, size_t T, size_t H, size_t D);
void op_cuda_attention_bwd(device *d, dv *dqkv, const dv *d_o, const dv *qkv, const dv *o, const dv *lse, size_t B,
                           size_t T, size_t H, size_t D);
void op_cuda_mean_token_fwd(device *d, dv *out, const dv *x, size_t B, size_t T, size_t first, size_t C);
void op_cuda_mean_token_bwd(device *d, dv *dx, const dv *dout, size_t B, size_t T, size_t first, size_t C);
void op_cuda_gather(device *d, dv *out, const dv *x, const dv *rows, size_t n, size_t C);
void op_cuda_scatter_add(device *d, dv *dx, const dv *dout, const dv *rows, size_t n, size_t C);
void op_cuda_mix_rows(device *d, dv *out, bool add, const dv *in, const dv *first, const dv *index, const dv *weight,
                      size_t n, size_t C);
void op_cuda_l2_fwd(device *d, dv *y, dv *norm, const dv *x, size_t N, size_t C);
void op_cuda_l2_bwd(device *d, dv *dx, const dv *dy, const dv *y, const dv *norm, size_t N, size_t C);
void op_cuda_weight_norm_fwd(device *d, dv *w_ct, const dv *v, size_t K, size_t C);
void op_cuda_weight_norm_bwd(device *d, dv *dv_f32, const dv *dw, const dv *v, size_t K, size_t C);
void op_cuda_teacher_softmax(device *d, dv *q, dv *sum, dv *mean, dv *entropy, const dv *logits, const dv *center,
                             float tau, size_t N, size_t K);
void op_cuda_mean_entropy(device *d, dv *out, const dv *mean, size_t N, size_t K);
void op_cuda_sinkhorn_prototypes(device *d, dv *center, const dv *logits, const dv *scale, bool first, float tau,
                                 size_t N, size_t K);
void op_cuda_sinkhorn_rows(device *d, dv *scale, const dv *logits, const dv *center, float tau, size_t N, size_t K);
void op_cuda_center_update(device *d, dv *center, const dv *sum, float m, size_t N, size_t K, const dv *square);
void op_cuda_soft_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *q, const dv *pair, const dv *weight,
                     size_t P, float tau, size_t N, size_t K);
void op_cuda_koleo(device *d, dv *loss, dv *dx, const dv *x, float w, size_t N, size_t C);
void op_cuda_softmax_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *target, float w, size_t N,
                        size_t K);
void op_cuda_sigmoid_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *target, const dv *weight, float w,
                        size_t N, size_t K);
void op_cuda_grad_square(device *d, dv *out, const param *p, size_t n, const adamw_step *s);
void op_cuda_adamw(device *d, param *p, size_t n, const adamw_step *s, const dv *square);
void op_cuda_refresh(device *d, param *p, size_t n);
void op_cuda_sample(device *d, dv *out, const struct sampler_norm *norm, const struct sample_job *jobs, size_t n);
/* For op_cuda_linear.c, linear.cu: whether products of this shape and these n tensors may end in GELU or its derivative
 * there. y (N,F) = GELU(x (N,K) w^T + bias), w (F,K), with pre (N,F) or slope kept, or neither; and
 * dx (N,F) = (dy (N,K) w) * slope, w (K,F). */
bool op_cuda_product_fits(const device *d, size_t F, size_t K, const void *const *p, size_t n);
void op_cuda_product_gelu(device *d, dv *y, dv *pre, dv *slope, const dv *x, const dv *w, const dv *bias, size_t N,
                          size_t F, size_t K);
void op_cuda_product_slope(device *d, dv *dx, const dv *dy, const dv *w, const dv *slope, size_t N, size_t F, size_t K);
/* For op_cuda_linear.c: x (N,F) ct += bias f32 (F); and y (N,F) = GELU(x + bias), x + bias kept in x where keep. */
void op_cuda_add_bias(device *d, dv *x, const dv *bias, size_t N, size_t F);
void op_cuda_gelu_bias_fwd(device *d, dv *y, dv *x, const dv *bias, bool keep, size_t N, size_t F);
/* out = x + ls * (branch + bias), ls and bias f32 (C) or NULL; rest and then as of linear_residual_fwd, or NULL: all of
 * it in one pass. */
void op_cuda_residual_bias_fwd(device *d, dv *out, const dv *x, const dv *branch, const dv *bias, const dv *ls,
                               dv *rest, const op_norm *then, size_t N, size_t C);
/* db f32 (R) += column sums of dy (N,O), of the columns rows int32 (R), or all (R == O); columns: gathers them too, to
 * (N,R) ct, unless NULL. */
void op_cuda_column_sums(device *d, dv *db, dv *columns, const dv *dy, const dv *rows, size_t R, size_t N, size_t O);

#ifdef __cplusplus
}
#endif
#endif
