/* op_cpu.h: the CPU's ops, one function per entry of op.h's table, and what their files share. Nothing above model/
 * includes it.
 *
 * op_cpu.c: device, memory, the table. op_cpu_matmul.c: oneDNN, and which products go to op_cpu_linear_amx.c and
 * op_cpu_dw_amx.c instead.
 * op_cpu_attention.c (and _amx.c), op_cpu_vit.c,
 * op_cpu_gelu.c: the transformer. op_cpu_loss.c: the objective. op_cpu_optim.c: the optimiser. Rows are loaded into
 * fp32, computed in fp32 and stored as ct. */
#ifndef RADAPT_OP_CPU_H
#define RADAPT_OP_CPU_H
#include <string.h>

#include "base/wide.h"
#include "model/op.h"

/* GELU' in 10 bits (op_cpu_gelu.c): steps in one unit of it, and the code of 0. */
#define OP_SLOPE_STEPS 811.0f
#define OP_SLOPE_ZERO 105.0f

enum { OP_CPU_DW_BYTES = 2 << 20, OP_CPU_ROW_MAX = 16384 }; /* longest row of channels, floats */

/* oneDNN's part of device.impl (op_cpu_matmul.c). */
typedef struct matmul_cache matmul_cache;
typedef struct {
    matmul_cache **matmul; /* (threads): each thread's own primitives */
    char sent[OP_SENT_PLACES][OP_SENT_BYTES];
    float *row; /* (threads, 4, OP_CPU_ROW_MAX): scratch rows of each thread */
    void *dw;   /* OP_CPU_DW_BYTES: of op_cpu_dw_amx.c, all threads' */
    float *fma; /* (threads, OP_CPU_FMA_FLOATS): op_cpu_fma.h; or NULL */
} op_cpu;
matmul_cache *op_cpu_matmul_open(void);
void op_cpu_matmul_close(matmul_cache *c);
/* What oneDNN may use of this processor (its DNNL_MAX_CPU_ISA can lower that): bf16 products, and on AMX tiles. */
bool op_cpu_matmul_has_bf16(void);
bool op_cpu_matmul_has_amx(void);
bool op_cpu_matmul_has_avx512(void); /* and fused multiply-adds with vectors of 16, or of 8 */
bool op_cpu_matmul_has_avx2(void);
/* Whether an op runs inside a tile: on its thread alone. */
bool op_cpu_in_tile(void);
/* Which of the device's threads this is, inside a tile or a parallel loop of its own. */
int op_cpu_thread(void);
/* Scratch row i (0..3) of the calling thread. */
float *op_cpu_row(const device *d, int i);
/* The workspace: all of it, or inside a tile the thread's share. NULL, and the error is sticky, if it is smaller. */
void *op_cpu_work(device *d, size_t bytes);
void op_cpu_fail(device *d, err_code code, const char *what);

/* Bytes of device memory taken and given back; from any thread. */
void op_cpu_account(device *d, size_t taken, size_t given);
/* What op_cpu_alloc takes for that many. */
size_t op_cpu_alloc_bytes(size_t bytes);
/* What a weight (in, out) takes packed, in one direction. */
size_t op_cpu_linear_packed_bytes(device *d, size_t in, size_t out);

/* A plain product for the other files: c (batch, M, N) = a b with element strides; see op_cpu_matmul.c. */
typedef struct {
    size_t batch, m, n, k;
    size_t a[3], b[3], c[3];  /* element strides: batch, row, column */
    bool a_f32, b_f32, c_f32; /* else ct */
    bool accumulate;
} op_cpu_gemm;
size_t op_cpu_attention_bytes(const device *d, bool tile, size_t B, size_t T, size_t H, size_t D, bool backward);
/* op_cpu_attention_amx.c: attention on AMX tiles, where they are and the head's size suits them; bytes: a thread's. */
bool op_cpu_attention_amx_fits(const device *d, size_t D);
size_t op_cpu_attention_amx_bytes(size_t T, size_t H, size_t D, bool backward);
void op_cpu_attention_amx_fwd(device *d, dv *o, dv *lse, const dv *qkv, size_t B, size_t T, size_t H, size_t D);
void op_cpu_attention_amx_bwd(device *d, dv *dqkv, const dv *d_o, const dv *qkv, const dv *o, const dv *lse, size_t B,
                              size_t T, size_t H, size_t D);
void op_cpu_gemm_run(device *d, const op_cpu_gemm *g, const void *a, const void *b, void *c);

/* op_cpu_dw_amx.c: dw (R,I) f32 += dy (N,R)^T x (N,I) on AMX tiles, where they fit; not inside a tile of a pass. */
bool op_cpu_dw_amx_fits(const device *d, size_t R, size_t I);
void op_cpu_dw_amx_run(device *d, dv *dw, const dv *dy, const dv *x, size_t R, size_t N, size_t I);

/* op_cpu_rows_bf16.c: op_cpu_vit.c's ops on whole rows of bf16, without gradients of parameters, where they fit. */
bool op_cpu_rows_bf16_fit(const device *d, size_t C);
void op_cpu_rows_bf16_norm_fwd(dv *y, dv *mean, dv *rstd, const dv *x, const dv *gamma, const dv *beta, float eps,
                               size_t N, size_t C);
void op_cpu_rows_bf16_norm_again(dv *y, const dv *x, const dv *mean, const dv *rstd, const dv *gamma, const dv *beta,
                                 size_t N, size_t C);
void op_cpu_rows_bf16_norm_bwd(dv *dx, bool accumulate, const dv *dy, const dv *x, const dv *mean, const dv *rstd,
                               const dv *gamma, size_t N, size_t C);
void op_cpu_rows_bf16_residual(dv *y, const dv *x, const dv *z, const dv *ls, size_t N, size_t C); /* x NULL: 0 */

/* A linear layer in either direction, and what follows it done on its sums: y (N,out) = after(in_rows (N,in) times the
 * packed weight, + bias). */
typedef enum {
    AFTER_NOTHING,
    AFTER_GELU,        /* pre: (N,out), what GELU was taken of, or NULL */
    AFTER_GELU_SLOPE,  /* slope: GELU' there in 10 bits (op_cpu_gelu.c) is written */
    AFTER_TIMES_SLOPE, /* slope is read */
    AFTER_RESIDUAL     /* y = x + rest + ls * it; ls f32 (out) or NULL: 1; y may be x; rest: op.h, or NULL */
} op_cpu_after;
typedef struct {
    size_t N, in, out;
    const void *packed; /* by whoever runs the call */
    const dv *in_rows, *bias;
    op_cpu_after after;
    dv *y, *pre, *slope, *rest;
    const dv *x, *ls;
} op_cpu_linear_call;
/* op_cpu_linear_amx.c: on AMX tiles. */
bool op_cpu_linear_amx_fits(const device *d, size_t in, size_t out);
/* weight (out,in) as it is stored; back: for y = dy W. */
void op_cpu_linear_amx_pack(dv *packed, const dv *weight, size_t out, size_t in, bool back);
void op_cpu_linear_amx_run(device *d, const op_cpu_linear_call *p);

static inline float op_bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Round to nearest even; NaN stays NaN. */
static inline uint16_t op_f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    uint32_t rounded = (u + 0x7fffu + (u >> 16 & 1)) >> 16;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16 | 64) : rounded);
}

/* n values from element `at` of a ct tensor, as fp32; and back. */
void op_cpu_load(const device *d, float *out, const dv *x, size_t at, size_t n);
void op_cpu_store(const device *d, dv *y, size_t at, const float *in, size_t n);
/* Sum of a[i] * b[i]; the order of the sum depends on the vectors' width alone. */
float op_cpu_dot(const float *a, const float *b, size_t n);

/* exp and erf that compilers vectorise: relative error below 2e-7 (exp), absolute below 5e-7 (erf); tested against
 * libm. */
static inline float op_exp(float x)
{
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f; /* the nearest integer n in its last bits; any bits for NaN */
    float n = shifted - 12582912.0f;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    float scale;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4b400000u + 127) << 23;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

static inline float op_erf(float x)
{
    x = x < -4.0f ? -4.0f : x > 4.0f ? 4.0f : x;
    float t = x * x;
    float a = -2.72614225801306e-10f;
    a = a * t + 2.77068142495902e-08f;
    a = a * t - 2.10102402082508e-06f;
    a = a * t - 5.69250639462346e-05f;
    a = a * t - 7.34990630326855e-04f;
    a = a * t - 2.95459980854025e-03f;
    a = a * t - 1.60960333262415e-02f;
    float b = -1.45660718464996e-05f;
    b = b * t - 2.13374055278905e-04f;
    b = b * t - 1.68282697438203e-03f;
    b = b * t - 7.37332916720468e-03f;
    b = b * t - 1.42647390514189e-02f;
    return x * a / b;
}

void op_cpu_close(device *d);
void op_cpu_sync(device *d);
void op_cpu_record(device *d, bool on);
err_code op_cpu_alloc(device *d, size_t bytes, dv **out, err *e);
void op_cpu_free(device *d, dv *p);
void op_cpu_upload(device *d, dv *dst, const void *src, size_t bytes);
void op_cpu_prefetch(device *d, dv *dst, const void *src, size_t bytes);
void op_cpu_prefetched(device *d);
void op_cpu_consumed(device *d);
void op_cpu_download(device *d, void *dst, const dv *src, size_t bytes);
void op_cpu_send(device *d, int place, const dv *src, size_t bytes);
void op_cpu_take(device *d, int place, void *dst, size_t bytes);
void op_cpu_zero(device *d, dv *p, size_t bytes);
void op_cpu_copy(device *d, dv *dst, const dv *src, size_t bytes);
void op_cpu_to_ct(device *d, dv *dst, const dv *src_f32, size_t n);
void op_cpu_to_f32(device *d, dv *dst_f32, const dv *src, size_t n);
void op_cpu_add(device *d, dv *dst, const dv *src, size_t n);
void op_cpu_scale(device *d, dv *x, float by, size_t n);
void op_cpu_tiles(device *d, size_t n, void (*fn)(void *ctx, size_t tile, size_t slot), void *ctx);
size_t op_cpu_slots(const device *d);
size_t op_cpu_tile_rows(const device *d);
void op_cpu_linear_fwd(device *d, dv *y, const dv *x, linear_w *w, size_t N);
void op_cpu_linear_gelu_fwd(device *d, dv *y, dv *pre, const dv *x, linear_w *w, size_t N);
void op_cpu_linear_gelu_slope_fwd(device *d, dv *y, dv *slope, const dv *x, linear_w *w, size_t N);
void op_cpu_linear_residual_fwd(device *d, dv *out, const dv *x, const dv *in, linear_w *w, const dv *ls, dv *branch,
                                dv *rest, const op_norm *then, size_t N);
void op_cpu_linear_dx(device *d, dv *dx, const dv *dy, linear_w *w, size_t N);
void op_cpu_linear_dx_slope(device *d, dv *dx, const dv *dy, linear_w *w, const dv *slope, size_t N);
void op_cpu_linear_dw(device *d, dv *dw, dv *db, const dv *dy, const dv *x, const dv *rows, size_t R, size_t N,
                      size_t O, size_t I);
void op_cpu_linear_release(device *d, linear_w *w);
void op_cpu_patchify(device *d, dv *out, const dv *pixels, size_t B, size_t height, size_t width, size_t p);
void op_cpu_embed_fwd(device *d, dv *x, const dv *patches, const dv *cls, const dv *reg, const dv *pos,
                      const dv *mask_token, const dv *mask, size_t B, size_t P, size_t R, size_t S, size_t C);
void op_cpu_embed_bwd(device *d, dv *dpatches, dv *dcls, dv *dreg, dv *dpos, dv *dmask_token, const dv *dx,
                      const dv *mask, bool cls, size_t B, size_t P, size_t R, size_t S, size_t C);
void op_cpu_prompt_fwd(device *d, dv *x, const dv *prompts, size_t B, size_t T, size_t first, size_t n, size_t C);
void op_cpu_prompt_bwd(device *d, dv *dx, dv *dprompts, size_t B, size_t T, size_t first, size_t n, size_t C);
void op_cpu_norm_fwd(device *d, dv *y, dv *mean, dv *rstd, const dv *x, const dv *gamma, const dv *beta, float eps,
                     size_t N, size_t C);
void op_cpu_norm_bwd(device *d, dv *dx, bool accumulate, dv *dgamma, dv *dbeta, const dv *dy, const dv *x,
                     const dv *mean, const dv *rstd, const dv *gamma, dv *dbranch, const dv *ls, size_t N, size_t C);
void op_cpu_norm_again(device *d, dv *y, const dv *x, const dv *mean, const dv *rstd, const dv *gamma, const dv *beta,
                       size_t N, size_t C);
void op_cpu_residual_fwd(device *d, dv *out, const dv *x, const dv *branch, const dv *ls, dv *rest, size_t N, size_t C);
void op_cpu_residual_bwd(device *d, dv *dbranch, const dv *dout, const dv *ls, size_t N, size_t C);
void op_cpu_scale_grad(device *d, dv *dls, const dv *ls, const dv *w, const dv *dw, const dv *bias, const dv *db,
                       size_t R, size_t I);
void op_cpu_gelu_fwd(device *d, dv *y, const dv *pre, size_t n);
void op_cpu_gelu_bwd(device *d, dv *dpre, const dv *dy, const dv *pre, size_t n);
void op_cpu_gelu_open(void); /* makes its table: before the first run; may be repeated */
/* y (N,F) becomes GELU(y), slope its derivative in 10 bits; and dpre = dy times that. */
void op_cpu_gelu_slope_fwd(device *d, dv *y, dv *slope, size_t N, size_t F);
void op_cpu_gelu_slope_bwd(device *d, dv *dpre, const dv *dy, const dv *slope, size_t N, size_t F);
void op_cpu_swiglu_fwd(device *d, dv *y, const dv *pre, size_t N, size_t F);
void op_cpu_swiglu_bwd(device *d, dv *dpre, const dv *dy, const dv *pre, size_t N, size_t F);
void op_cpu_attention_fwd(device *d, dv *o, dv *lse, const dv *qkv, size_t B, size_t T, size_t H, size_t D);
void op_cpu_attention_bwd(device *d, dv *dqkv, const dv *d_o, const dv *qkv, const dv *o, const dv *lse, size_t B,
                          size_t T, size_t H, size_t D);
void op_cpu_mean_token_fwd(device *d, dv *out, const dv *x, size_t B, size_t T, size_t first, size_t C);
void op_cpu_mean_token_bwd(device *d, dv *dx, const dv *dout, size_t B, size_t T, size_t first, size_t C);
void op_cpu_gather(device *d, dv *out, const dv *x, const dv *rows, size_t n, size_t C);
void op_cpu_scatter_add(device *d, dv *dx, const dv *dout, const dv *rows, size_t n, size_t C);
void op_cpu_mix_rows(device *d, dv *out, bool add, const dv *in, const dv *first, const dv *index, const dv *weight,
                     size_t n, size_t C);
void op_cpu_l2_fwd(device *d, dv *y, dv *norm, const dv *x, size_t N, size_t C);
void op_cpu_l2_bwd(device *d, dv *dx, const dv *dy, const dv *y, const dv *norm, size_t N, size_t C);
void op_cpu_weight_norm_fwd(device *d, dv *w_ct, const dv *v, size_t K, size_t C);
void op_cpu_weight_norm_bwd(device *d, dv *dv_f32, const dv *dw, const dv *v, size_t K, size_t C);
void op_cpu_teacher_softmax(device *d, dv *q, dv *sum, dv *mean, dv *entropy, const dv *logits, const dv *center,
                            float tau, size_t N, size_t K);
void op_cpu_mean_entropy(device *d, dv *out, const dv *mean, size_t N, size_t K);
void op_cpu_sinkhorn_prototypes(device *d, dv *center, const dv *logits, const dv *scale, bool first, float tau,
                                size_t N, size_t K);
void op_cpu_sinkhorn_rows(device *d, dv *scale, const dv *logits, const dv *center, float tau, size_t N, size_t K);
void op_cpu_center_update(device *d, dv *center, const dv *sum, float m, size_t N, size_t K, const dv *square);
void op_cpu_soft_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *q, const dv *pair, const dv *weight,
                    size_t P, float tau, size_t N, size_t K);
void op_cpu_koleo(device *d, dv *loss, dv *dx, const dv *x, float w, size_t N, size_t C);
void op_cpu_softmax_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *target, float w, size_t N,
                       size_t K);
void op_cpu_sigmoid_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *target, const dv *weight, float w,
                       size_t N, size_t K);
void op_cpu_grad_square(device *d, dv *out, const param *p, size_t n, const adamw_step *s);
void op_cpu_adamw(device *d, param *p, size_t n, const adamw_step *s, const dv *square);
void op_cpu_refresh(device *d, param *p, size_t n);
void op_cpu_sample(device *d, dv *out, const struct sampler_norm *norm, const struct sample_job *jobs, size_t n);

#endif
