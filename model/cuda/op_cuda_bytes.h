/* op_cuda_bytes.h: how much memory the CUDA back end takes for what it is asked, for itself and for what counts in its
 * place where no GPU and no CUDA is (model/op_count.c): plain arithmetic, no CUDA header. */
#ifndef RADAPT_OP_CUDA_BYTES_H
#define RADAPT_OP_CUDA_BYTES_H
#include <stdbool.h>
#include <stddef.h>

/* Taken when the device is opened: scratch that ops share (op_cuda_scratch), and cuBLASLt's own. */
enum { OP_CUDA_SCRATCH_BYTES = 32 << 20, OP_CUDA_BLAS_BYTES = 32 << 20 };
/* What CUDA's context, the loaded kernels and cuBLASLt's take of a GPU beside all that: stated, not measured. */
enum { OP_CUDA_CONTEXT_BYTES = 600 << 20 };
enum { OP_CUDA_ALIGN = 512 /* of what cudaMalloc gives */ };

static inline size_t op_cuda_alloc_bytes(size_t bytes)
{
    if (!bytes) bytes = 1;
    return (bytes + OP_CUDA_ALIGN - 1) & ~(size_t)(OP_CUDA_ALIGN - 1);
}

/* Attention's workspace: backward keeps a sum for each row of scores, f32 (B,H,T). */
static inline size_t op_cuda_attention_work(size_t B, size_t T, size_t H, bool backward)
{
    return backward ? B * H * T * sizeof(float) : 0;
}

/* Uploads wait in pinned blocks of this size, filled one after the other, which are free again when the stream was
 * waited for. Outside a recording never more than so many: then it is waited for at once. */
enum { OP_CUDA_PINNED_BYTES = 4 << 20, OP_CUDA_PINNED_MOST = 16 };

typedef struct {
    size_t waiting; /* bytes since the stream was waited for */
    size_t blocks;  /* there are */
} op_cuda_pinned;

/* Whether the next piece has to wait first. */
static inline bool op_cuda_pinned_full(const op_cuda_pinned *p, bool recording)
{
    return !recording && p->waiting >= (size_t)OP_CUDA_PINNED_MOST * OP_CUDA_PINNED_BYTES;
}

/* The next piece's place: block, offset in it, and how many of `bytes` go there. One block more than `blocks`: it is to
 * be made. */
static inline size_t op_cuda_pinned_next(const op_cuda_pinned *p, size_t bytes, size_t *block, size_t *at)
{
    *block = p->waiting / OP_CUDA_PINNED_BYTES;
    *at = p->waiting % OP_CUDA_PINNED_BYTES;
    size_t left = OP_CUDA_PINNED_BYTES - *at;
    return bytes < left ? bytes : left;
}

#endif
