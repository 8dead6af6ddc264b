/* op_cuda.c: the CUDA device: which GPU, its parts, the sticky error, and the table, filled by position so that a
 * missing op does not compile, and a missing kernel does not link. As a plugin (libradapt_cuda.so) it shows one symbol,
 * radapt_cuda_open. */
#include "model/cuda/op_cuda.h"

#include <stdlib.h>
#include <string.h>

#include "model/device_cuda.h"

void op_cuda_fail(device *d, err_code code, const char *what)
{
    if (!d->sticky.code) err_set(&d->sticky, code, __FILE__, __LINE__, "%s", what);
}

err_code op_cuda_refused(const device *d, cudaError_t rc, const char *what, err *e)
{
    switch (rc) {
    case cudaErrorMemoryAllocation:
        FAIL(e, NOMEM, "no memory for the GPU in %s: another program may hold it", what);
    case cudaErrorECCUncorrectable:
        FAIL(e, DAMAGED,
             "the GPU's memory had an error that ECC could not correct, in %s: begin again, or use another GPU", what);
    case cudaErrorNoKernelImageForDevice:
        FAIL(e, UNSUPPORTED, "this build has no kernels for this GPU (sm_%d)", op_cuda_of(d)->sm);
    case cudaErrorDevicesUnavailable:
        FAIL(e, UNSUPPORTED, "the GPU is another program's alone");
    default:
        FAIL(e, INTERNAL, "the GPU failed in %s: %.100s", what, cudaGetErrorString(rc));
    }
}

void op_cuda_check(device *d, cudaError_t rc, const char *what)
{
    if (rc && !d->sticky.code) op_cuda_refused(d, rc, what, &d->sticky);
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

/* What runs goes wrong at some time after it was asked: it is said here. */
void op_cuda_sync(device *d)
{
    bool again = op_cuda_graph_recording(d); /* what was taken down so far runs first */
    if (again) op_cuda_record(d, false);
    op_cuda_prefetched(d);
    cudaError_t rc = cudaStreamSynchronize(op_cuda_of(d)->stream);
    op_cuda_check(d, rc, "an operation");
    if (!rc) op_cuda_memory_free_again(d);
    if (again) op_cuda_record(d, true);
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
    op_cuda_prefetch,
    op_cuda_prefetched,
    op_cuda_consumed,
    op_cuda_download,
    op_cuda_send,
    op_cuda_take,
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
    op_cuda_scale_grad,
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
    op_cuda_mix_rows,
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
    op_cuda_refresh,
    op_cuda_sample,
};

/* Whether there is a GPU of that number, and what stands in its way. */
static err_code look(int number, struct cudaDeviceProp *p, err *e)
{
    int n = 0;
    cudaError_t rc = cudaGetDeviceCount(&n);
    cudaGetLastError();
    if (rc == cudaErrorInsufficientDriver)
        FAIL(e, UNSUPPORTED, "no NVIDIA driver, or one older than CUDA %d", CUDART_VERSION / 1000);
    if (rc == cudaErrorStubLibrary)
        FAIL(e, UNSUPPORTED, "libcuda.so.1 is the CUDA toolkit's stub, not a driver: check the library path");
    if (rc == cudaErrorNoDevice || (!rc && !n)) FAIL(e, UNSUPPORTED, "the NVIDIA driver shows no GPU");
    if (rc) FAIL(e, UNSUPPORTED, "the NVIDIA driver cannot be used: %.100s", cudaGetErrorString(rc));
    if (number < 0 || number >= n) FAIL(e, UNSUPPORTED, "there is no GPU %d: the last one is %d", number, n - 1);
    if ((rc = cudaSetDevice(number)) || (rc = cudaGetDeviceProperties(p, number))) {
        cudaGetLastError();
        FAIL(e, UNSUPPORTED, "GPU %d cannot be used: %.100s", number, cudaGetErrorString(rc));
    }
    if (p->major * 10 + p->minor < 75)
        FAIL(e, UNSUPPORTED, "GPU %d (%.60s) is too old: it has compute capability %d.%d, 7.5 is needed", number,
             p->name, p->major, p->minor);
    return ERR_OK;
}

static err_code open_parts(device *d, err *e)
{
    op_cuda *o = op_cuda_of(d);
    TRY(op_cuda_memory_open(d, e));
    TRY(op_cuda_graph_open(d, e));
    cudaError_t rc = cudaStreamCreateWithFlags(&o->stream, cudaStreamNonBlocking);
    if (rc) {
        cudaGetLastError();
        return op_cuda_refused(d, rc, "opening its context", e);
    }
    TRY(op_cuda_alloc_bare(d, OP_CUDA_SCRATCH_BYTES, &o->scratch, e));
    return op_cuda_blas_open(d, e);
}

err_code op_cuda_open(device *d, int number, compute_type ct, err *e)
{
    struct cudaDeviceProp p;
    *d = (device){0};
    TRY(look(number, &p, e));
    int sm = p.major * 10 + p.minor;
    if (ct == COMPUTE_BF16 && sm < 80)
        FAIL(e, UNSUPPORTED, "GPU %d (%.60s) has no bf16: --compute f32", number, p.name);
    op_cuda *o = calloc(1, sizeof *o);
    if (!o) FAIL(e, NOMEM, "no memory for the compute device");
    *o = (op_cuda){.sm = sm,
                   .processors = p.multiProcessorCount,
                   .shared_most = p.sharedMemPerBlockOptin,
                   .half_forward = ct == COMPUTE_AUTO && sm < 80};
    bool bf16 = ct == COMPUTE_BF16 || (ct == COMPUTE_AUTO && sm >= 80);
    *d = (device){
        .op = &cuda_table, .ct = bf16 ? COMPUTE_BF16 : COMPUTE_F32, .ct_bytes = bf16 ? 2 : 4, .threads = 1, .impl = o};
    err_code rc = open_parts(d, e);
    if (rc) device_close(d);
    return rc;
}

void op_cuda_close(device *d)
{
    op_cuda *o = op_cuda_of(d);
    if (o->stream) cudaStreamSynchronize(o->stream);
    op_cuda_graph_close(d);
    op_cuda_blas_close(d);
    op_cuda_memory_close(d);
    if (o->stream) cudaStreamDestroy(o->stream);
    cudaGetLastError(); /* of what is gone */
    free(o);
}

static size_t room(const device *d)
{
    size_t left = 0, all = 0;
    cudaMemGetInfo(&left, &all);
    return left + d->bytes;
}

__attribute__((visibility("default"))) err_code radapt_cuda_open(const device_cuda_build *b,
                                                                 device_cuda_room_of **room_of, device *d, int number,
                                                                 compute_type ct, err *e)
{
    static const device_cuda_build own = DEVICE_CUDA_BUILD;
    if (memcmp(b, &own, sizeof own)) FAIL(e, CONFLICT, DEVICE_CUDA_OTHER, own.version, b->version);
    *room_of = room;
    return op_cuda_open(d, number, ct, e);
}
