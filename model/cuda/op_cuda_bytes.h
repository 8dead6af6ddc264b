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
/* What cudaMalloc takes: pages of 2 MiB, which small pieces share (as frameworks' allocators take it to be; not
 * measured). */
enum { OP_CUDA_ALIGN = 512, OP_CUDA_PAGE = 2 << 20 };

static inline size_t op_cuda_alloc_bytes(size_t bytes)
{
    size_t to = bytes > OP_CUDA_PAGE / 2 ? OP_CUDA_PAGE : OP_CUDA_ALIGN;
    if (!bytes) bytes = 1;
    return (bytes + to - 1) & ~(to - 1);
}

/* Attention's workspace: backward keeps a sum for each row of scores, f32 (B,H,T). */
static inline size_t op_cuda_attention_work(size_t B, size_t T, size_t H, bool backward)
{
    return backward ? B * H * T * sizeof(float) : 0;
}

/* Uploads wait in pinned blocks of this size, filled one after the other, of two pools. A send (op.h) ends a pool's
 * turn: the other one's begins, which is free when what the send before brought is there. All are free when the stream
 * was waited for. Outside a recording a pool never holds more than so many blocks: then it is waited for at once. */
enum { OP_CUDA_PINNED_BYTES = 4 << 20, OP_CUDA_PINNED_MOST = 16, OP_CUDA_SENT_BYTES = 4096 };

typedef struct {
    size_t waiting; /* bytes since it was free */
    size_t blocks;  /* there are */
    int sent;       /* place of the send that ended its turn, from 1; 0: none is under way */
} op_cuda_pinned_pool;

typedef struct {
    op_cuda_pinned_pool pool[2];
    int now;
} op_cuda_pinned;

/* Whether the next piece has to wait first. */
static inline bool op_cuda_pinned_full(const op_cuda_pinned *p, bool recording)
{
    return !recording && p->pool[p->now].waiting >= (size_t)OP_CUDA_PINNED_MOST * OP_CUDA_PINNED_BYTES;
}

/* The next piece's place: block of the pool whose turn it is, offset in it, and how many of `bytes` go there. One block
 * more than `blocks`: it is to be made. */
static inline size_t op_cuda_pinned_next(const op_cuda_pinned *p, size_t bytes, size_t *block, size_t *at)
{
    const op_cuda_pinned_pool *now = &p->pool[p->now];
    *block = now->waiting / OP_CUDA_PINNED_BYTES;
    *at = now->waiting % OP_CUDA_PINNED_BYTES;
    size_t left = OP_CUDA_PINNED_BYTES - *at;
    return bytes < left ? bytes : left;
}

static inline void op_cuda_pinned_free(op_cuda_pinned *p)
{
    for (int i = 0; i < 2; i++) {
        p->pool[i].waiting = 0;
        p->pool[i].sent = 0;
    }
}

/* What a send to `place` brings is there. */
static inline void op_cuda_pinned_taken(op_cuda_pinned *p, int place)
{
    for (int i = 0; i < 2; i++) {
        if (p->pool[i].sent != place + 1) continue;
        p->pool[i].waiting = 0;
        p->pool[i].sent = 0;
    }
}

/* A send to `place` ends a turn. Returns the place whose send is to be waited for first, or -1. */
static inline int op_cuda_pinned_turn(op_cuda_pinned *p, int place)
{
    p->pool[p->now].sent = place + 1;
    p->now = !p->now;
    int other = p->pool[p->now].sent - 1;
    p->pool[p->now].waiting = 0;
    p->pool[p->now].sent = 0;
    return other;
}

/* What a job of `sample` sends beside its frame. */
enum { OP_CUDA_SHOT_BYTES = 560 };

static inline size_t op_cuda_pinned_bytes(const op_cuda_pinned *p)
{
    return (p->pool[0].blocks + p->pool[1].blocks) * OP_CUDA_PINNED_BYTES + OP_CUDA_SENT_BYTES;
}

#endif
