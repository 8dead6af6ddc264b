/* bench_cuda_vit.h: cases of bench_cuda.c: the transformer's ops, at the shapes of a block. */
#ifndef RADAPT_BENCH_CUDA_VIT_H
#define RADAPT_BENCH_CUDA_VIT_H
#include "tests/bench/bench_cuda.h"

/* --- linear layers: qkv, projection with residual and norm, fc1 with GELU and slope, fc2's dX by the slope, dW */

static void make_qkv(void)
{
    weight(3 * C, C);
    t[0] = tensor_ct(&pair, N * C, 1, 1);
    t[1] = tensor_ct(&pair, N * 3 * C, 2, 0);
}
static void run_qkv(device *d, int i)
{
    d->op->linear_fwd(d, t[1].p[i], t[0].p[i], &w[i], N);
}
static double bytes_qkv(void)
{
    return ct(N * C * 4 + 3 * C * C);
}
static double flop_qkv(void)
{
    return 6.0 * (double)N * (double)C * (double)C;
}

static void make_projection(void)
{
    weight(C, C);
    t[0] = tensor_ct(&pair, N * C, 1, 1);
    t[1] = tensor_ct(&pair, N * C, 2, 1);
    t[2] = tensor_f32(&pair, C, 3, 1);
    t[3] = tensor_ct(&pair, N * C, 4, 0);
    t[4] = tensor_ct(&pair, N * C, 4, 0);
}
static void run_projection(device *d, int i)
{
    d->op->linear_residual_fwd(d, t[3].p[i], t[0].p[i], t[1].p[i], &w[i], t[2].p[i], t[4].p[i], NULL, NULL, N);
}
static double bytes_projection(void)
{
    return ct(N * C * 5 + C * C);
}
static void make_projection_norm(void)
{
    make_projection();
    t[5] = tensor_ct(&pair, N * C, 5, 0);
    t[6] = tensor_f32(&pair, N, 6, 0);
    t[7] = tensor_f32(&pair, N, 7, 0);
    t[8] = tensor_f32(&pair, C, 8, 1);
    t[9] = tensor_f32(&pair, C, 9, 1);
}
static void run_projection_norm(device *d, int i)
{
    const op_norm then = {t[5].p[i], t[6].p[i], t[7].p[i], t[8].p[i], t[9].p[i], 1e-6f};
    d->op->linear_residual_fwd(d, t[3].p[i], t[0].p[i], t[1].p[i], &w[i], t[2].p[i], t[4].p[i], NULL, &then, N);
}
static double bytes_projection_norm(void)
{
    return bytes_projection() + ct(N * C) + 8.0 * (double)N;
}
/* As inference has it: what rounding leaves goes along. */
static void make_projection_rest(void)
{
    make_projection_norm();
    t[6] = tensor_ct(&pair, N * C, 6, 2e-3f);
}
static void run_projection_rest(device *d, int i)
{
    const op_norm then = {t[5].p[i], NULL, NULL, t[8].p[i], t[9].p[i], 1e-6f};
    d->op->linear_residual_fwd(d, t[3].p[i], t[0].p[i], t[1].p[i], &w[i], t[2].p[i], NULL, t[6].p[i], &then, N);
}
static double bytes_projection_rest(void)
{
    return ct(N * C * 6 + C * C);
}
static double flop_square(void)
{
    return 2.0 * (double)N * (double)C * (double)C;
}

static void make_fc1(void)
{
    weight(F, C);
    t[0] = tensor_ct(&pair, N * C, 1, 1);
    t[1] = tensor_ct(&pair, N * F, 2, 0);
    uint8_t *none = calloc(N, op_slope_bytes(F));
    assert_non_null(none);
    t[2] = tensor_of(&pair, TENSOR_BYTES, none, N * op_slope_bytes(F));
    free(none);
}
static void run_fc1(device *d, int i)
{
    d->op->linear_gelu_slope_fwd(d, t[1].p[i], t[2].p[i], t[0].p[i], &w[i], N);
}
static double bytes_fc1(void)
{
    return ct(N * C + N * F + F * C) + (double)(N * op_slope_bytes(F));
}
static double flop_mlp(void)
{
    return 2.0 * (double)N * (double)C * (double)F;
}

static void make_fc1_kept(void)
{
    weight(F, C);
    t[0] = tensor_ct(&pair, N * C, 1, 1);
    t[1] = tensor_ct(&pair, N * F, 2, 0);
    t[2] = tensor_ct(&pair, N * F, 3, 0);
}
static void run_fc1_kept(device *d, int i)
{
    d->op->linear_gelu_fwd(d, t[1].p[i], t[2].p[i], t[0].p[i], &w[i], N);
}
static double bytes_fc1_kept(void)
{
    return ct(N * C + 2 * N * F + F * C);
}
static void run_fc1_plain(device *d, int i)
{
    d->op->linear_gelu_fwd(d, t[1].p[i], NULL, t[0].p[i], &w[i], N);
}
static double bytes_fc1_plain(void)
{
    return ct(N * C + N * F + F * C);
}

/* The slopes are made by fc1 on each side: their order is the back end's own. */
static linear_w above[TWINS];
static void make_fc2_dx(void)
{
    weight(C, F);
    BOTH(pair, i) above[i] = w[i];
    make_fc1();
    BOTH(pair, i) run_fc1(&pair.d[i], i);
    t[3] = tensor_ct(&pair, N * C, 5, 1);
}
static void run_fc2_dx(device *d, int i)
{
    d->op->linear_dx_slope(d, t[1].p[i], t[3].p[i], &above[i], t[2].p[i], N);
}

/* The way back through fc1. */
static void make_dx(void)
{
    weight(F, C);
    t[0] = tensor_ct(&pair, N * F, 1, 1);
    t[1] = tensor_ct(&pair, N * C, 2, 0);
}
static void run_dx(device *d, int i)
{
    d->op->linear_dx(d, t[1].p[i], t[0].p[i], &w[i], N);
}

static void make_dw(void)
{
    t[0] = tensor_ct(&pair, N * C, 1, 1);
    t[1] = tensor_ct(&pair, N * C, 2, 1);
    t[2] = tensor_f32(&pair, C * C, 3, 0);
    t[3] = tensor_f32(&pair, C, 3, 0);
}
static void run_dw(device *d, int i)
{
    d->op->zero(d, t[2].p[i], C * C * 4);
    d->op->zero(d, t[3].p[i], C * 4);
    d->op->linear_dw(d, t[2].p[i], t[3].p[i], t[0].p[i], t[1].p[i], NULL, C, N, C, C);
}
static double bytes_dw(void)
{
    return ct(3 * N * C) + 12.0 * (double)(C * C);
}

/* LayerScale's gradient from the weight's: the CPU's fp32 sums are of the same values. */
static void make_scale_grad(void)
{
    t[0] = tensor_f32(&pair, C, 1, 0);
    t[1] = tensor_f32(&pair, C, 2, 0.5f);
    t[2] = tensor_ct(&pair, C * C, 3, 0.05f);
    t[3] = tensor_f32(&pair, C * C, 4, 1);
    t[4] = tensor_f32(&pair, C, 5, 0.1f);
    t[5] = tensor_f32(&pair, C, 6, 1);
}
static void run_scale_grad(device *d, int i)
{
    d->op->scale_grad(d, t[0].p[i], t[1].p[i], t[2].p[i], t[3].p[i], t[4].p[i], t[5].p[i], C, C);
}
static double bytes_scale_grad(void)
{
    return 6.0 * (double)(C * C) + 16.0 * (double)C;
}

/* --- attention */

/* Images, tokens, heads and their size. */
static size_t at_B, at_T, at_H, at_D;
static void attention_of(size_t images, size_t tokens, size_t head)
{
    at_B = images, at_T = tokens, at_H = C / head, at_D = head;
    size_t wide = at_B * at_T * at_H * at_D;
    t[0] = tensor_ct(&pair, 3 * wide, 1, 1);
    t[1] = tensor_ct(&pair, wide, 2, 0);
    t[2] = tensor_f32(&pair, at_B * at_H * at_T, 3, 0);
    t[3] = tensor_ct(&pair, wide, 4, 1);
    t[4] = tensor_ct(&pair, 3 * wide, 5, 0);
    BOTH(pair, i)
    {
        err e;
        device *d = &pair.d[i];
        ASSERT_OK(device_reserve(d, d->op->attention_bytes(d, false, at_B, at_T, at_H, at_D, true), &e));
        d->op->attention_fwd(d, t[1].p[i], t[2].p[i], t[0].p[i], at_B, at_T, at_H, at_D);
    }
}
static void make_attention(void)
{
    attention_of(B, T, D);
}
static void make_attention_local(void)
{
    attention_of(4 * B, LOCAL_T, D);
}
/* The other sizes that heads have. */
static void make_attention_32(void)
{
    attention_of(B / 2, T, 32);
}
static void make_attention_80(void)
{
    attention_of(B / 2, T, 80);
}
static void make_attention_96(void)
{
    attention_of(B / 2, T, 96);
}
static void make_attention_128(void)
{
    attention_of(B / 2, T, 128);
}
static void run_attention(device *d, int i)
{
    d->op->attention_fwd(d, t[1].p[i], t[2].p[i], t[0].p[i], at_B, at_T, at_H, at_D);
}
static double bytes_attention(void)
{
    size_t rows = at_B * at_T;
    return ct(4 * rows * at_H * at_D) + 4.0 * (double)(rows * at_H);
}
static double flop_attention(void)
{
    return 4.0 * (double)(at_B * at_T) * (double)at_T * (double)(at_H * at_D);
}
static void run_attention_bwd(device *d, int i)
{
    d->op->attention_bwd(d, t[4].p[i], t[3].p[i], t[0].p[i], t[1].p[i], t[2].p[i], at_B, at_T, at_H, at_D);
}
static double bytes_attention_bwd(void)
{
    return 2 * bytes_attention() - 4.0 * (double)(at_B * at_T * at_H);
}
static double flop_attention_bwd(void)
{
    return 2.5 * flop_attention();
}

/* --- rows */

static void make_norm(void)
{
    t[0] = tensor_ct(&pair, N * C, 1, 1);
    t[1] = tensor_ct(&pair, N * C, 2, 0);
    t[2] = tensor_f32(&pair, N, 3, 0);
    t[3] = tensor_f32(&pair, N, 4, 0);
    t[4] = tensor_f32(&pair, C, 5, 1);
    t[5] = tensor_f32(&pair, C, 6, 1);
    t[6] = tensor_ct(&pair, N * C, 7, 1);
    t[7] = tensor_ct(&pair, N * C, 8, 0);
    t[8] = tensor_f32(&pair, C, 5, 0);
    t[9] = tensor_f32(&pair, C, 5, 0);
    BOTH(pair, i)
    pair.d[i].op->norm_fwd(&pair.d[i], t[1].p[i], t[2].p[i], t[3].p[i], t[0].p[i], t[4].p[i], t[5].p[i], 1e-6f, N, C);
}
static void run_norm(device *d, int i)
{
    d->op->norm_fwd(d, t[1].p[i], t[2].p[i], t[3].p[i], t[0].p[i], t[4].p[i], t[5].p[i], 1e-6f, N, C);
}
static double bytes_norm(void)
{
    return ct(2 * N * C) + 8.0 * (double)N;
}
static void run_norm_bwd(device *d, int i)
{
    d->op->norm_bwd(d, t[7].p[i], false, NULL, NULL, t[6].p[i], t[0].p[i], t[2].p[i], t[3].p[i], t[4].p[i], NULL, NULL,
                    N, C);
}
static double bytes_norm_bwd(void)
{
    return ct(3 * N * C) + 8.0 * (double)N;
}
static void run_norm_params(device *d, int i)
{
    d->op->zero(d, t[8].p[i], C * 4);
    d->op->zero(d, t[9].p[i], C * 4);
    d->op->norm_bwd(d, t[7].p[i], false, t[8].p[i], t[9].p[i], t[6].p[i], t[0].p[i], t[2].p[i], t[3].p[i], t[4].p[i],
                    NULL, NULL, N, C);
}
static double bytes_norm_params(void)
{
    return ct(5 * N * C) + 16.0 * (double)N;
}
/* ... adding to dx, and the gradient of the branch below in the same pass. */
static void run_norm_branch(device *d, int i)
{
    d->op->norm_bwd(d, t[7].p[i], true, NULL, NULL, t[6].p[i], t[0].p[i], t[2].p[i], t[3].p[i], t[4].p[i], t[1].p[i],
                    t[5].p[i], N, C);
}
static double bytes_norm_branch(void)
{
    return ct(5 * N * C) + 8.0 * (double)N;
}
static void run_norm_again(device *d, int i)
{
    d->op->norm_again(d, t[7].p[i], t[0].p[i], t[2].p[i], t[3].p[i], t[4].p[i], t[5].p[i], N, C);
}
static void make_residual(void)
{
    t[0] = tensor_ct(&pair, N * C, 1, 1);
    t[1] = tensor_ct(&pair, N * C, 2, 1);
    t[2] = tensor_f32(&pair, C, 3, 0.5f);
    t[3] = tensor_ct(&pair, N * C, 4, 0);
    t[4] = tensor_ct(&pair, N * C, 5, 0);
}
static void run_residual(device *d, int i)
{
    d->op->residual_fwd(d, t[3].p[i], t[0].p[i], t[1].p[i], t[2].p[i], NULL, N, C);
}
static double bytes_three(void)
{
    return ct(3 * N * C);
}
static void run_residual_rest(device *d, int i)
{
    d->op->residual_fwd(d, t[3].p[i], t[0].p[i], t[1].p[i], t[2].p[i], t[4].p[i], N, C);
}
static double bytes_five(void)
{
    return ct(5 * N * C);
}
static void run_residual_bwd(device *d, int i)
{
    d->op->residual_bwd(d, t[7].p[i], t[6].p[i], t[4].p[i], N, C);
}
static double bytes_two(void)
{
    return ct(2 * N * C);
}

static void make_gelu(void)
{
    t[0] = tensor_ct(&pair, N * F, 1, 1.5f);
    t[1] = tensor_ct(&pair, N * F, 2, 1);
    t[2] = tensor_ct(&pair, N * F, 3, 0);
}
static void run_gelu(device *d, int i)
{
    d->op->gelu_fwd(d, t[2].p[i], t[0].p[i], N * F);
}
static void run_gelu_bwd(device *d, int i)
{
    d->op->gelu_bwd(d, t[2].p[i], t[1].p[i], t[0].p[i], N * F);
}
static double bytes_gelu(void)
{
    return ct(2 * N * F);
}
static double bytes_gelu_bwd(void)
{
    return ct(3 * N * F);
}

/* As wide as DINOv2 has it: two thirds of a GELU's width, a multiple of 8. */
static size_t gated(void)
{
    return (2 * F / 3 + 7) / 8 * 8;
}
static void make_swiglu(void)
{
    t[0] = tensor_ct(&pair, N * 2 * gated(), 1, 1.5f);
    t[1] = tensor_ct(&pair, N * gated(), 2, 1);
    t[2] = tensor_ct(&pair, N * gated(), 3, 0);
    t[3] = tensor_ct(&pair, N * 2 * gated(), 4, 0);
}
static void run_swiglu(device *d, int i)
{
    d->op->swiglu_fwd(d, t[2].p[i], t[0].p[i], N, gated());
}
static double bytes_swiglu(void)
{
    return ct(3 * N * gated());
}
static void run_swiglu_bwd(device *d, int i)
{
    d->op->swiglu_bwd(d, t[3].p[i], t[1].p[i], t[0].p[i], N, gated());
}
static double bytes_swiglu_bwd(void)
{
    return ct(5 * N * gated());
}

/* --- images and positions; every MASKED-th patch is masked, and its row is gathered for the head */

static void make_patchify(void)
{
    t[0] = tensor_f32(&pair, B * 3 * 224 * 224, 1, 1);
    t[1] = tensor_ct(&pair, B * 3 * 224 * 224, 2, 0);
}
static void run_patchify(device *d, int i)
{
    d->op->patchify(d, t[1].p[i], t[0].p[i], B, 224, 224, 14);
}
static double bytes_patchify(void)
{
    return 6.0 * (double)(B * 3 * 224 * 224);
}

static size_t masked(void)
{
    return (B * (T - 1) + MASKED - 1) / MASKED;
}
static void make_embed(void)
{
    size_t P = T - 1;
    uint8_t *mask = calloc(B, P);
    assert_non_null(mask);
    for (size_t i = 0; i < B * P; i += MASKED) mask[i] = 1;
    t[0] = tensor_ct(&pair, N * C, 1, 1);
    t[1] = tensor_ct(&pair, B * P * C, 2, 1);
    t[2] = tensor_f32(&pair, C, 3, 1);
    t[3] = tensor_f32(&pair, T * C, 4, 1);
    t[4] = tensor_f32(&pair, C, 5, 1);
    t[5] = tensor_of(&pair, TENSOR_BYTES, mask, B * P);
    free(mask);
}
static void run_embed(device *d, int i)
{
    d->op->embed_fwd(d, t[0].p[i], t[1].p[i], t[2].p[i], NULL, t[3].p[i], t[4].p[i], t[5].p[i], B, T - 1, 0, 0, C);
}
static double bytes_embed(void)
{
    return ct((B * (T - 1) - masked() + N) * C) + 4.0 * (double)((T + 2) * C) + (double)(B * (T - 1));
}
static void run_embed_bwd(device *d, int i)
{
    d->op->zero(d, t[2].p[i], C * 4);
    d->op->zero(d, t[3].p[i], T * C * 4);
    d->op->zero(d, t[4].p[i], C * 4);
    d->op->embed_bwd(d, t[1].p[i], t[2].p[i], NULL, t[3].p[i], t[4].p[i], t[0].p[i], t[5].p[i], true, B, T - 1, 0, 0,
                     C);
}
static double bytes_embed_bwd(void)
{
    return ct((B * (T - 1) + N) * C) + 12.0 * (double)((T + 2) * C) + (double)(B * (T - 1));
}

static void make_gather(void)
{
    size_t n = masked();
    int32_t *rows = malloc(n * sizeof *rows);
    assert_non_null(rows);
    for (size_t i = 0; i < n; i++) rows[i] = (int32_t)(MASKED * i);
    t[0] = tensor_ct(&pair, N * C, 1, 1);
    t[1] = tensor_ct(&pair, n * C, 2, 1);
    t[2] = tensor_of(&pair, TENSOR_F32, rows, n);
    free(rows);
}
static void run_gather(device *d, int i)
{
    d->op->gather(d, t[1].p[i], t[0].p[i], t[2].p[i], masked(), C);
}
static double bytes_gather(void)
{
    return ct(2 * masked() * C) + 4.0 * (double)masked();
}
static void run_scatter(device *d, int i)
{
    d->op->scatter_add(d, t[0].p[i], t[1].p[i], t[2].p[i], masked(), C);
}
static double bytes_scatter(void)
{
    return ct(3 * masked() * C) + 4.0 * (double)masked();
}

/* Positional embeddings of 37 x 37 patches on the grid of these: 16 weights a row. */
static void make_mix(void)
{
    size_t n = T - 1;
    int32_t first[MIXED_MOST + 1], index[TAPS * MIXED_MOST];
    float weights[TAPS * MIXED_MOST];
    assert_true(n <= MIXED_MOST);
    for (size_t i = 0; i <= n; i++) first[i] = (int32_t)(TAPS * i);
    for (size_t i = 0; i < TAPS * n; i++) {
        size_t row = i / TAPS / 16 * 33 / 15 + i % TAPS / 4, column = i / TAPS % 16 * 33 / 15 + i % 4;
        index[i] = (int32_t)(row * GRID + column);
        weights[i] = (float)(i % TAPS) / 120;
    }
    t[0] = tensor_f32(&pair, n * C, 1, 0);
    t[1] = tensor_f32(&pair, GRID * GRID * C, 2, 1);
    t[2] = tensor_of(&pair, TENSOR_F32, first, n + 1);
    t[3] = tensor_of(&pair, TENSOR_F32, index, TAPS * n);
    t[4] = tensor_of(&pair, TENSOR_F32, weights, TAPS * n);
}
static void run_mix(device *d, int i)
{
    d->op->mix_rows(d, t[0].p[i], false, t[1].p[i], t[2].p[i], t[3].p[i], t[4].p[i], T - 1, C);
}
static double bytes_mix(void)
{
    return 4.0 * (double)((GRID * GRID + T - 1) * C) + 8.0 * TAPS * (double)(T - 1) + 4.0 * (double)T;
}

/* Prompts of VPT in every image, and the mean of all patches in front of them, for models without a class token. */
static void make_prompts(void)
{
    t[0] = tensor_ct(&pair, N * C, 1, 1);
    t[1] = tensor_f32(&pair, PROMPTS * C, 2, 1);
    t[2] = tensor_f32(&pair, PROMPTS * C, 3, 0);
    t[3] = tensor_ct(&pair, B * (T + 1) * C, 4, 1);
    t[4] = tensor_ct(&pair, N * C, 5, 0);
}
static void run_prompts(device *d, int i)
{
    d->op->prompt_fwd(d, t[0].p[i], t[1].p[i], B, T, 1, PROMPTS, C);
}
static double bytes_prompts(void)
{
    return ct(B * PROMPTS * C) + 4.0 * (double)(PROMPTS * C);
}
static void run_prompts_bwd(device *d, int i)
{
    d->op->zero(d, t[2].p[i], PROMPTS * C * sizeof(float));
    d->op->prompt_bwd(d, t[0].p[i], t[2].p[i], B, T, 1, PROMPTS, C);
}
static double bytes_prompts_bwd(void)
{
    return ct(2 * B * PROMPTS * C) + 8.0 * (double)(PROMPTS * C);
}
static void run_mean_token(device *d, int i)
{
    d->op->mean_token_fwd(d, t[3].p[i], t[0].p[i], B, T, 1, C);
}
static double bytes_mean_token(void)
{
    return ct(2 * N * C + B * C);
}
static void run_mean_token_bwd(device *d, int i)
{
    d->op->mean_token_bwd(d, t[4].p[i], t[3].p[i], B, T, 1, C);
}

/* Between the types, and sums of two. */
static void make_plain(void)
{
    t[0] = tensor_ct(&pair, N * C, 1, 1);
    t[1] = tensor_f32(&pair, N * C, 2, 1);
    t[2] = tensor_f32(&pair, N * C, 3, 0);
    t[3] = tensor_ct(&pair, N * C, 4, 0);
}
static void run_to_f32(device *d, int i)
{
    d->op->to_f32(d, t[2].p[i], t[0].p[i], N * C);
}
static void run_to_ct(device *d, int i)
{
    d->op->to_ct(d, t[3].p[i], t[1].p[i], N * C);
}
static double bytes_types(void)
{
    return 6.0 * (double)(N * C);
}
/* The same again: added up without end the values would overflow. */
static void run_add(device *d, int i)
{
    d->op->copy(d, t[3].p[i], t[0].p[i], N * C * d->ct_bytes);
    d->op->add(d, t[3].p[i], t[0].p[i], N * C);
}
/* By -1: however often, the values stay as large. */
static void run_scale(device *d, int i)
{
    d->op->scale(d, t[0].p[i], -1, N * C);
}

static const bench_case vit_cases[] = {
    {"linear_fwd (qkv)", make_qkv, run_qkv, BIT(1), 1e-5, bytes_qkv, flop_qkv},
    {"linear_residual_fwd", make_projection, run_projection, BIT(3), 1e-5, bytes_projection, flop_square},
    {"linear_residual_fwd, norm", make_projection_norm, run_projection_norm, BIT(3) | BIT(5) | BIT(6) | BIT(7), 2e-5,
     bytes_projection_norm, flop_square},
    {"linear_residual_fwd, rest", make_projection_rest, run_projection_rest, BIT(3) | BIT(5), 2e-5,
     bytes_projection_rest, flop_square},
    {"linear_gelu_fwd", make_fc1_kept, run_fc1_plain, BIT(1), 3e-5, bytes_fc1_plain, flop_mlp},
    {"linear_gelu_fwd, pre kept", make_fc1_kept, run_fc1_kept, BIT(1) | BIT(2), 3e-5, bytes_fc1_kept, flop_mlp},
    {"linear_gelu_slope_fwd", make_fc1, run_fc1, BIT(1), 3e-5, bytes_fc1, flop_mlp},
    {"linear_dx_slope", make_fc2_dx, run_fc2_dx, BIT(1), 3e-5, bytes_fc1, flop_mlp},
    {"linear_dx (fc1)", make_dx, run_dx, BIT(1), 1e-5, bytes_fc1_plain, flop_mlp},
    {"linear_dw", make_dw, run_dw, BIT(2) | BIT(3), 1e-5, bytes_dw, flop_square},
    {"scale_grad", make_scale_grad, run_scale_grad, BIT(0), 1e-8, bytes_scale_grad, NULL},
    {"attention_fwd", make_attention, run_attention, BIT(1) | BIT(2), 5e-5, bytes_attention, flop_attention},
    {"attention_bwd", make_attention, run_attention_bwd, BIT(4), 2e-4, bytes_attention_bwd, flop_attention_bwd},
    {"attention_fwd, local", make_attention_local, run_attention, BIT(1) | BIT(2), 5e-5, bytes_attention,
     flop_attention},
    {"attention_bwd, local", make_attention_local, run_attention_bwd, BIT(4), 2e-4, bytes_attention_bwd,
     flop_attention_bwd},
    {"attention_fwd, 32", make_attention_32, run_attention, BIT(1) | BIT(2), 5e-5, bytes_attention, flop_attention},
    {"attention_bwd, 32", make_attention_32, run_attention_bwd, BIT(4), 2e-4, bytes_attention_bwd, flop_attention_bwd},
    {"attention_fwd, 80", make_attention_80, run_attention, BIT(1) | BIT(2), 5e-5, bytes_attention, flop_attention},
    {"attention_bwd, 80", make_attention_80, run_attention_bwd, BIT(4), 2e-4, bytes_attention_bwd, flop_attention_bwd},
    {"attention_fwd, 96", make_attention_96, run_attention, BIT(1) | BIT(2), 5e-5, bytes_attention, flop_attention},
    {"attention_bwd, 96", make_attention_96, run_attention_bwd, BIT(4), 2e-4, bytes_attention_bwd, flop_attention_bwd},
    {"attention_fwd, 128", make_attention_128, run_attention, BIT(1) | BIT(2), 5e-5, bytes_attention, flop_attention},
    {"attention_bwd, 128", make_attention_128, run_attention_bwd, BIT(4), 2e-4, bytes_attention_bwd,
     flop_attention_bwd},
    {"norm_fwd", make_norm, run_norm, BIT(1) | BIT(2) | BIT(3), 1e-5, bytes_norm, NULL},
    {"norm_again", make_norm, run_norm_again, BIT(7), 1e-5, bytes_norm, NULL},
    {"norm_bwd", make_norm, run_norm_bwd, BIT(7), 2e-5, bytes_norm_bwd, NULL},
    {"norm_bwd, dgamma, dbeta", make_norm, run_norm_params, BIT(7) | BIT(8) | BIT(9), 2e-5, bytes_norm_params, NULL},
    {"norm_bwd, adding, branch", make_norm, run_norm_branch, BIT(1) | BIT(7), 2e-5, bytes_norm_branch, NULL},
    {"residual_fwd", make_residual, run_residual, BIT(3), 1e-5, bytes_three, NULL},
    {"residual_fwd, rest", make_residual, run_residual_rest, BIT(3), 1e-5, bytes_five, NULL},
    {"residual_bwd", make_norm, run_residual_bwd, BIT(7), 1e-5, bytes_two, NULL},
    {"gelu_fwd", make_gelu, run_gelu, BIT(2), 1e-5, bytes_gelu, NULL},
    {"gelu_bwd", make_gelu, run_gelu_bwd, BIT(2), 1e-5, bytes_gelu_bwd, NULL},
    {"swiglu_fwd", make_swiglu, run_swiglu, BIT(2), 1e-5, bytes_swiglu, NULL},
    {"swiglu_bwd", make_swiglu, run_swiglu_bwd, BIT(3), 2e-5, bytes_swiglu_bwd, NULL},
    {"patchify", make_patchify, run_patchify, BIT(1), 1e-5, bytes_patchify, NULL},
    {"embed_fwd", make_embed, run_embed, BIT(0), 1e-5, bytes_embed, NULL},
    {"embed_bwd", make_embed, run_embed_bwd, BIT(1) | BIT(2) | BIT(3) | BIT(4), 1e-5, bytes_embed_bwd, NULL},
    {"gather", make_gather, run_gather, BIT(1), 0, bytes_gather, NULL},
    {"scatter_add", make_gather, run_scatter, BIT(0), 1e-5, bytes_scatter, NULL},
    {"prompt_fwd", make_prompts, run_prompts, BIT(0), 1e-5, bytes_prompts, NULL},
    {"prompt_bwd", make_prompts, run_prompts_bwd, BIT(0) | BIT(2), 1e-5, bytes_prompts_bwd, NULL},
    {"mean_token_fwd", make_prompts, run_mean_token, BIT(3), 1e-5, bytes_mean_token, NULL},
    {"mean_token_bwd", make_prompts, run_mean_token_bwd, BIT(4), 1e-5, bytes_mean_token, NULL},
    {"to_f32", make_plain, run_to_f32, BIT(2), 1e-12, bytes_types, NULL},
    {"to_ct", make_plain, run_to_ct, BIT(3), 1e-5, bytes_types, NULL},
    {"copy, add", make_plain, run_add, BIT(3), 1e-5, bytes_five, NULL},
    {"scale", make_plain, run_scale, BIT(0), 1e-5, bytes_two, NULL},
    {"mix_rows", make_mix, run_mix, BIT(0), 1e-9, bytes_mix, NULL},
};

#endif
