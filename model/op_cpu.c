/* op_cpu.c: the CPU device: memory, casts, workspace, and the table, filled by position so that a missing op does not
 * compile. */
#include "model/op_cpu_fma.h"

#include <omp.h>
#include <stdlib.h>

#include "base/arena.h"
#include "base/pool.h"
#include "preprocess/sampler.h"

enum { CHUNK = 4096 }; /* elements that one thread takes of an elementwise loop */

WIDE static void widen(float *out, const uint16_t *in, size_t n)
{
    for (size_t i = 0; i < n; i++) out[i] = op_bf16_to_f32(in[i]);
}

WIDE static void narrow(uint16_t *out, const float *in, size_t n)
{
    for (size_t i = 0; i < n; i++) out[i] = op_f32_to_bf16(in[i]);
}

void op_cpu_load(const device *d, float *out, const dv *x, size_t at, size_t n)
{
    if (d->ct == COMPUTE_BF16)
        widen(out, (const uint16_t *)x + at, n);
    else
        memcpy(out, (const float *)x + at, n * sizeof *out);
}

void op_cpu_store(const device *d, dv *y, size_t at, const float *in, size_t n)
{
    if (d->ct == COMPUTE_BF16)
        narrow((uint16_t *)y + at, in, n);
    else
        memcpy((float *)y + at, in, n * sizeof *in);
}

WIDE float op_cpu_dot(const float *a, const float *b, size_t n)
{
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (size_t i = 0; i < n; i++) s += a[i] * b[i];
    return s;
}

bool op_cpu_in_tile(void)
{
    return omp_in_parallel();
}

/* Inside a tile an op's own parallel loop is a team of one, two levels down. */
int op_cpu_thread(void)
{
    return omp_get_level() ? omp_get_ancestor_thread_num(1) : 0;
}

float *op_cpu_row(const device *d, int i)
{
    const op_cpu *o = d->impl;
    return o->row + ((size_t)op_cpu_thread() * 4 + (size_t)i) * OP_CPU_ROW_MAX;
}

void op_cpu_fail(device *d, err_code code, const char *what)
{
#pragma omp critical(op_cpu_sticky)
    if (!d->sticky.code) err_set(&d->sticky, code, __FILE__, __LINE__, "%s", what);
}

void *op_cpu_work(device *d, size_t bytes)
{
    size_t share = d->work_bytes;
    if (op_cpu_in_tile()) share = share / (size_t)d->threads & ~(size_t)(ARENA_ALIGN - 1);
    if (bytes <= share) return (char *)d->work + (op_cpu_in_tile() ? (size_t)op_cpu_thread() * share : 0);
    op_cpu_fail(d, ERR_INTERNAL, "an op's workspace is smaller than it needs");
    return NULL;
}

void op_cpu_tiles(device *d, size_t n, void (*fn)(void *ctx, size_t tile, size_t slot), void *ctx)
{
    if (n == 1) {
        fn(ctx, 0, 0);
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(d->threads)
    for (size_t i = 0; i < n; i++) fn(ctx, i, (size_t)op_cpu_thread());
}

size_t op_cpu_slots(const device *d)
{
    return (size_t)d->threads;
}

void op_cpu_account(device *d, size_t taken, size_t given)
{
    size_t now = __atomic_add_fetch(&d->bytes, taken - given, __ATOMIC_RELAXED);
    size_t most = __atomic_load_n(&d->bytes_most, __ATOMIC_RELAXED);
    while (now > most &&
           !__atomic_compare_exchange_n(&d->bytes_most, &most, now, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}

/* A block's size lies in front of it. */
enum { HEADER = ARENA_ALIGN };

size_t op_cpu_alloc_bytes(size_t bytes)
{
    size_t rounded = arena_round(bytes);
    return rounded < bytes || rounded > SIZE_MAX - HEADER ? 0 : rounded + HEADER;
}

err_code op_cpu_alloc(device *d, size_t bytes, dv **out, err *e)
{
    size_t all = op_cpu_alloc_bytes(bytes), *head = all ? aligned_alloc(ARENA_ALIGN, all) : NULL;
    *out = NULL;
    if (!head) FAIL(e, NOMEM, "no memory for %zu bytes of model data", bytes);
    memset(head, 0, all);
    *head = all;
    op_cpu_account(d, all, 0);
    *out = dv_at((dv *)head, HEADER);
    return ERR_OK;
}

void op_cpu_free(device *d, dv *p)
{
    if (!p) return;
    size_t *head = (size_t *)((char *)p - HEADER);
    op_cpu_account(d, 0, *head);
    free(head);
}

void op_cpu_upload(device *d, dv *dst, const void *src, size_t bytes)
{
    (void)d;
    if (bytes) memcpy(dst, src, bytes);
}

void op_cpu_prefetch(device *d, dv *dst, const void *src, size_t bytes)
{
    op_cpu_upload(d, dst, src, bytes);
}

void op_cpu_prefetched(device *d)
{
    (void)d;
}

void op_cpu_consumed(device *d)
{
    (void)d;
}

void op_cpu_download(device *d, void *dst, const dv *src, size_t bytes)
{
    (void)d;
    if (bytes) memcpy(dst, src, bytes);
}

void op_cpu_zero(device *d, dv *p, size_t bytes)
{
    (void)d;
    if (bytes) memset(p, 0, bytes);
}

void op_cpu_copy(device *d, dv *dst, const dv *src, size_t bytes)
{
    (void)d;
    if (bytes) memcpy(dst, src, bytes);
}

void op_cpu_to_ct(device *d, dv *dst, const dv *src_f32, size_t n)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i += CHUNK)
        op_cpu_store(d, dst, i, (const float *)src_f32 + i, n - i < CHUNK ? n - i : CHUNK);
}

void op_cpu_to_f32(device *d, dv *dst_f32, const dv *src, size_t n)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i += CHUNK) op_cpu_load(d, (float *)dst_f32 + i, src, i, n - i < CHUNK ? n - i : CHUNK);
}

void op_cpu_add(device *d, dv *dst, const dv *src, size_t n)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i += CHUNK) {
        size_t m = n - i < CHUNK ? n - i : CHUNK;
        float *a = op_cpu_row(d, 0), *b = op_cpu_row(d, 1);
        op_cpu_load(d, a, dst, i, m);
        op_cpu_load(d, b, src, i, m);
        for (size_t k = 0; k < m; k++) a[k] += b[k];
        op_cpu_store(d, dst, i, a, m);
    }
}

void op_cpu_scale(device *d, dv *x, float by, size_t n)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i += CHUNK) {
        size_t m = n - i < CHUNK ? n - i : CHUNK;
        float *a = op_cpu_row(d, 0);
        op_cpu_load(d, a, x, i, m);
        for (size_t k = 0; k < m; k++) a[k] *= by;
        op_cpu_store(d, x, i, a, m);
    }
}

size_t op_cpu_tile_rows(const device *d)
{
    (void)d;
    return 192; /* a block's rows of these stay in the second cache between its ops */
}

void op_cpu_send(device *d, int place, const dv *src, size_t bytes)
{
    memcpy(((op_cpu *)d->impl)->sent[place], src, bytes);
}

void op_cpu_take(device *d, int place, void *dst, size_t bytes)
{
    memcpy(dst, ((op_cpu *)d->impl)->sent[place], bytes);
}

void op_cpu_sync(device *d)
{
    (void)d; /* every op is done when it returns */
}

void op_cpu_record(device *d, bool on)
{
    (void)d;
    (void)on;
}

void op_cpu_sample(device *d, dv *out, const sampler_norm *norm, const sample_job *jobs, size_t n)
{
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < n; i++) {
        sample_job j = jobs[i];
        j.out = (float *)out + i * 3 * (size_t)j.size * (size_t)j.size;
        if (sampler_run(NULL, norm, &j, 1)) op_cpu_fail(d, ERR_NOMEM, "crops");
    }
}

static const op_table cpu_table = {
    "cpu",
    op_cpu_close,
    op_cpu_sync,
    op_cpu_record,
    op_cpu_attention_bytes,
    op_cpu_alloc,
    op_cpu_free,
    op_cpu_upload,
    op_cpu_prefetch,
    op_cpu_prefetched,
    op_cpu_consumed,
    op_cpu_download,
    op_cpu_send,
    op_cpu_take,
    op_cpu_zero,
    op_cpu_copy,
    op_cpu_to_ct,
    op_cpu_to_f32,
    op_cpu_add,
    op_cpu_scale,
    op_cpu_tiles,
    op_cpu_slots,
    op_cpu_tile_rows,
    op_cpu_linear_fwd,
    op_cpu_linear_gelu_fwd,
    op_cpu_linear_gelu_slope_fwd,
    op_cpu_linear_residual_fwd,
    op_cpu_linear_dx,
    op_cpu_linear_dx_slope,
    op_cpu_linear_dw,
    op_cpu_linear_release,
    op_cpu_patchify,
    op_cpu_embed_fwd,
    op_cpu_embed_bwd,
    op_cpu_prompt_fwd,
    op_cpu_prompt_bwd,
    op_cpu_norm_fwd,
    op_cpu_norm_bwd,
    op_cpu_norm_again,
    op_cpu_residual_fwd,
    op_cpu_residual_bwd,
    op_cpu_scale_grad,
    op_cpu_gelu_fwd,
    op_cpu_gelu_bwd,
    op_cpu_swiglu_fwd,
    op_cpu_swiglu_bwd,
    op_cpu_attention_fwd,
    op_cpu_attention_bwd,
    op_cpu_mean_token_fwd,
    op_cpu_mean_token_bwd,
    op_cpu_gather,
    op_cpu_scatter_add,
    op_cpu_mix_rows,
    op_cpu_l2_fwd,
    op_cpu_l2_bwd,
    op_cpu_weight_norm_fwd,
    op_cpu_weight_norm_bwd,
    op_cpu_teacher_softmax,
    op_cpu_mean_entropy,
    op_cpu_sinkhorn_prototypes,
    op_cpu_sinkhorn_rows,
    op_cpu_center_update,
    op_cpu_soft_ce,
    op_cpu_koleo,
    op_cpu_softmax_ce,
    op_cpu_sigmoid_ce,
    op_cpu_grad_square,
    op_cpu_adamw,
    op_cpu_refresh,
    op_cpu_sample,
};

err_code device_open_cpu(device *d, int threads, compute_type ct, err *e)
{
    *d = (device){0};
    bool bf16 = op_cpu_fma_find() || op_cpu_matmul_has_bf16();
    if (ct == COMPUTE_BF16 && !bf16)
        FAIL(e, UNSUPPORTED, "this processor has no vectors to widen bf16 with (AVX2); use --compute f32");
    op_cpu *o = calloc(1, sizeof *o);
    if (!o) FAIL(e, NOMEM, "no memory for the compute device");
    d->op = &cpu_table;
    d->impl = o;
    d->ct = ct == COMPUTE_AUTO ? (bf16 ? COMPUTE_BF16 : COMPUTE_F32) : ct;
    d->ct_bytes = d->ct == COMPUTE_BF16 ? 2 : 4;
    d->threads = threads > 0 ? threads : pool_processors();
    op_cpu_gelu_open();
    omp_set_num_threads(d->threads);
    omp_set_dynamic(0);
    omp_set_max_active_levels(1); /* loops of ops inside a tile are its thread's alone */
    o->row = aligned_alloc(ARENA_ALIGN, (size_t)d->threads * 4 * OP_CPU_ROW_MAX * sizeof *o->row);
    o->matmul = calloc((size_t)d->threads, sizeof(matmul_cache *));
    o->dw = aligned_alloc(ARENA_ALIGN, OP_CPU_DW_BYTES);
    size_t fma = op_cpu_fma_of(d) ? (size_t)d->threads * OP_CPU_FMA_FLOATS * sizeof *o->fma : 0;
    if (fma) o->fma = aligned_alloc(ARENA_ALIGN, fma);
    bool all = o->row && o->matmul && o->dw && (o->fma || !fma);
    for (int i = 0; all && i < d->threads; i++) all = (o->matmul[i] = op_cpu_matmul_open()) != NULL;
    if (!all) {
        device_close(d);
        FAIL(e, NOMEM, "no memory for the compute device");
    }
    return ERR_OK;
}

void op_cpu_close(device *d)
{
    op_cpu *o = d->impl;
    for (int i = 0; o->matmul && i < d->threads; i++) op_cpu_matmul_close(o->matmul[i]);
    free(o->matmul);
    free(o->row);
    free(o->dw);
    free(o->fma);
    free(o);
}
