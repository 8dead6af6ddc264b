/* op_cuda.c: the CUDA device: memory, the stream, the sticky error, and the table, filled by position so that a missing
 * op does not compile, and a missing kernel does not link. */
#include "model/cuda/op_cuda.h"

#include <stdlib.h>
#include <string.h>

void op_cuda_fail(device *d, err_code code, const char *what)
{
    if (!d->sticky.code) err_set(&d->sticky, code, __FILE__, __LINE__, "%s", what);
}

void op_cuda_check(device *d, cudaError_t rc, const char *what)
{
    if (rc && !d->sticky.code)
        err_set(&d->sticky, rc == cudaErrorMemoryAllocation ? ERR_NOMEM : ERR_INTERNAL, __FILE__, __LINE__,
                "the GPU failed in %s: %s", what, cudaGetErrorString(rc));
}

void *op_cuda_scratch(device *d, size_t bytes)
{
    if (bytes <= OP_CUDA_SCRATCH_BYTES) return op_cuda_of(d)->scratch;
    op_cuda_fail(d, ERR_INTERNAL, "an op wants more scratch than there is");
    return NULL;
}

void *op_cuda_work(device *d, size_t bytes)
{
    if (bytes <= d->work_bytes) return d->work;
    op_cuda_fail(d, ERR_INTERNAL, "an op wants more workspace than was reserved");
    return NULL;
}

void op_cuda_sync(device *d)
{
    op_cuda_check(d, cudaStreamSynchronize(op_cuda_of(d)->stream), "a kernel");
}

void op_cuda_record(device *d, bool on)
{
    (void)d;
    (void)on;
}

err_code op_cuda_alloc(device *d, size_t bytes, dv **out, err *e)
{
    void *p;
    *out = NULL;
    if (cudaMalloc(&p, bytes ? bytes : 1)) FAIL(e, NOMEM, "no memory for %zu bytes on the GPU", bytes);
    cudaMemsetAsync(p, 0, bytes, op_cuda_of(d)->stream);
    *out = p;
    return ERR_OK;
}

void op_cuda_free(device *d, dv *p)
{
    (void)d;
    cudaFree(p);
}

void op_cuda_upload(device *d, dv *dst, const void *src, size_t bytes)
{
    if (!bytes) return;
    op_cuda_check(d, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, op_cuda_of(d)->stream), "upload");
    op_cuda_sync(d);
}

void op_cuda_download(device *d, void *dst, const dv *src, size_t bytes)
{
    if (!bytes) return;
    op_cuda_check(d, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, op_cuda_of(d)->stream), "download");
    op_cuda_sync(d);
}

void op_cuda_zero(device *d, dv *p, size_t bytes)
{
    op_cuda_check(d, cudaMemsetAsync(p, 0, bytes, op_cuda_of(d)->stream), "zero");
}

void op_cuda_copy(device *d, dv *dst, const dv *src, size_t bytes)
{
    op_cuda_check(d, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, op_cuda_of(d)->stream), "copy");
}

void op_cuda_tiles(device *d, size_t n, void (*fn)(void *ctx, size_t tile, size_t slot), void *ctx)
{
    (void)d;
    for (size_t i = 0; i < n; i++) fn(ctx, i, 0);
}

size_t op_cuda_slots(const device *d)
{
    (void)d;
    return 1;
}

size_t op_cuda_tile_rows(const device *d)
{
    (void)d;
    return 0; /* a kernel fills the device with all of a pass's rows */
}

static const op_table cuda_table = {
    "cuda",
    op_cuda_close,
    op_cuda_sync,
    op_cuda_record,
    op_cuda_attention_bytes,
    op_cuda_alloc,
    op_cuda_free,
    op_cuda_upload,
    op_cuda_download,
    op_cuda_zero,
    op_cuda_copy,
    op_cuda_to_ct,
    op_cuda_to_f32,
    op_cuda_add,
    op_cuda_scale,
    op_cuda_tiles,
    op_cuda_slots,
    op_cuda_tile_rows,
    op_cuda_linear_fwd,
    op_cuda_linear_gelu_fwd,
    op_cuda_linear_gelu_slope_fwd,
    op_cuda_linear_residual_fwd,
    op_cuda_linear_dx,
    op_cuda_linear_dx_slope,
    op_cuda_linear_dw,
    op_cuda_linear_release,
    op_cuda_patchify,
    op_cuda_embed_fwd,
    op_cuda_embed_bwd,
    op_cuda_prompt_fwd,
    op_cuda_prompt_bwd,
    op_cuda_norm_fwd,
    op_cuda_norm_bwd,
    op_cuda_norm_again,
    op_cuda_residual_fwd,
    op_cuda_residual_bwd,
    op_cuda_gelu_fwd,
    op_cuda_gelu_bwd,
    op_cuda_swiglu_fwd,
    op_cuda_swiglu_bwd,
    op_cuda_attention_fwd,
    op_cuda_attention_bwd,
    op_cuda_mean_token_fwd,
    op_cuda_mean_token_bwd,
    op_cuda_gather,
    op_cuda_scatter_add,
    op_cuda_l2_fwd,
    op_cuda_l2_bwd,
    op_cuda_weight_norm_fwd,
    op_cuda_weight_norm_bwd,
    op_cuda_teacher_softmax,
    op_cuda_mean_entropy,
    op_cuda_sinkhorn_prototypes,
    op_cuda_sinkhorn_rows,
    op_cuda_center_update,
    op_cuda_soft_ce,
    op_cuda_koleo,
    op_cuda_softmax_ce,
    op_cuda_sigmoid_ce,
    op_cuda_grad_square,
    op_cuda_adamw,
    op_cuda_ema,
    op_cuda_refresh,
    op_cuda_sample,
};

err_code op_cuda_open(device *d, int number, compute_type ct, err *e)
{
    struct cudaDeviceProp p;
    *d = (device){.op = &cuda_table, .ct = ct == COMPUTE_AUTO ? COMPUTE_BF16 : ct};
    d->ct_bytes = d->ct == COMPUTE_BF16 ? 2 : 4;
    op_cuda *o = calloc(1, sizeof *o);
    if (!o) FAIL(e, NOMEM, "no memory for the compute device");
    d->impl = o;
    if (cudaSetDevice(number) || cudaGetDeviceProperties(&p, number)) FAIL(e, UNSUPPORTED, "no GPU %d", number);
    o->sm = p.major * 10 + p.minor;
    o->processors = p.multiProcessorCount;
    o->shared_most = p.sharedMemPerBlockOptin;
    if (cudaStreamCreateWithFlags(&o->stream, cudaStreamNonBlocking)) FAIL(e, INTERNAL, "no stream");
    return op_cuda_alloc(d, OP_CUDA_SCRATCH_BYTES, &o->scratch, e);
}

void op_cuda_close(device *d)
{
    op_cuda *o = op_cuda_of(d);
    cudaFree(o->scratch);
    if (o->stream) cudaStreamDestroy(o->stream);
    free(o);
}
