/* op_cuda_memory.c: device memory and its account, and copies between host and device.
 *
 * What is uploaded is copied to pinned memory first, and goes up from there while the host does something else: its own
 * buffer may change at once. Inside a recording a graph reads that pinned memory whenever it runs, so each upload keeps
 * its place until the stream, or the send that ended its turn, was waited for (op_cuda_bytes.h); outside, the stream is
 * waited for when there is too much. A download waits for all before it, a send for nothing. Prefetches go up in a
 * stream of their own, and join the other before anything is waited for. */
#include <stdlib.h>
#include <string.h>

#include "model/cuda/op_cuda.h"

typedef struct {
    dv *p;
    size_t bytes;
} taken;

struct op_cuda_memory {
    taken *all; /* in the order of taking */
    size_t n, room;
    op_cuda_pinned pinned;
    char **block[2]; /* (pinned.pool[i].blocks) of OP_CUDA_PINNED_BYTES */
    char *sent;      /* OP_CUDA_SENT_BYTES, pinned: a place every OP_SENT_BYTES */
    cudaEvent_t arrived[OP_SENT_PLACES];
    cudaStream_t beside;     /* prefetches */
    cudaEvent_t read, there; /* what they wait for: consumed; what waits for them: prefetched */
    bool ahead;              /* some are under way that nothing waits for yet */
};

err_code op_cuda_memory_open(device *d, err *e)
{
    op_cuda_of(d)->memory = calloc(1, sizeof *op_cuda_of(d)->memory);
    op_cuda_memory *m = op_cuda_of(d)->memory;
    void *p = NULL;
    if (!m) FAIL(e, NOMEM, "no memory for the compute device");
    cudaError_t rc = cudaHostAlloc(&p, OP_CUDA_SENT_BYTES, cudaHostAllocDefault);
    m->sent = p;
    for (int i = 0; i < OP_SENT_PLACES && !rc; i++)
        rc = cudaEventCreateWithFlags(&m->arrived[i], cudaEventDisableTiming);
    if (!rc) rc = cudaEventCreateWithFlags(&m->read, cudaEventDisableTiming);
    if (!rc) rc = cudaEventCreateWithFlags(&m->there, cudaEventDisableTiming);
    if (!rc) rc = cudaStreamCreateWithFlags(&m->beside, cudaStreamNonBlocking);
    if (!rc) return ERR_OK;
    cudaGetLastError();
    return op_cuda_refused(d, rc, "opening its context", e);
}

void op_cuda_memory_close(device *d)
{
    op_cuda_memory *m = op_cuda_of(d)->memory;
    if (!m) return;
    if (m->beside) cudaStreamSynchronize(m->beside);
    for (size_t i = 0; i < m->n; i++) cudaFree(m->all[i].p); /* of an opening that failed midway */
    for (int k = 0; k < 2; k++) {
        for (size_t i = 0; i < m->pinned.pool[k].blocks; i++) cudaFreeHost(m->block[k][i]);
        free(m->block[k]);
    }
    for (int i = 0; i < OP_SENT_PLACES; i++)
        if (m->arrived[i]) cudaEventDestroy(m->arrived[i]);
    if (m->read) cudaEventDestroy(m->read);
    if (m->there) cudaEventDestroy(m->there);
    if (m->beside) cudaStreamDestroy(m->beside);
    if (m->sent) cudaFreeHost(m->sent);
    free(m->all);
    free(m);
    op_cuda_of(d)->memory = NULL;
}

static err_code no_room(const device *d, size_t bytes, err *e)
{
    size_t left = 0, all = 0;
    cudaMemGetInfo(&left, &all);
    FAIL(e, NOMEM,
         "no memory for %zu MiB more on the GPU: %zu of its %zu MiB are free, %zu in use here (a smaller batch, "
         "--recompute block)",
         (bytes + (1 << 20) - 1) >> 20, left >> 20, all >> 20, d->bytes >> 20);
}

err_code op_cuda_alloc_bare(device *d, size_t bytes, dv **out, err *e)
{
    op_cuda_memory *m = op_cuda_of(d)->memory;
    size_t whole = op_cuda_alloc_bytes(bytes);
    void *p = NULL;
    *out = NULL;
    if (m->n == m->room) {
        size_t room = 2 * m->room + 64;
        taken *more = realloc(m->all, room * sizeof *more);
        if (!more) FAIL(e, NOMEM, "no memory for the compute device");
        m->all = more;
        m->room = room;
    }
    cudaError_t rc = whole < bytes ? cudaErrorMemoryAllocation : cudaMalloc(&p, whole);
    if (rc) cudaGetLastError(); /* said here; the device goes on */
    if (rc == cudaErrorMemoryAllocation) return no_room(d, bytes, e);
    if (rc) return op_cuda_refused(d, rc, "taking memory", e);
    m->all[m->n++] = (taken){p, whole};
    d->bytes += whole;
    if (d->bytes > d->bytes_most) d->bytes_most = d->bytes;
    *out = p;
    return ERR_OK;
}

err_code op_cuda_alloc(device *d, size_t bytes, dv **out, err *e)
{
    TRY(op_cuda_alloc_bare(d, bytes, out, e));
    op_cuda_zero(d, *out, bytes);
    op_cuda_consumed(d); /* no prefetch comes before that */
    if (!d->sticky.code) return ERR_OK;
    op_cuda_free(d, *out); /* its content is anything */
    *out = NULL;
    return err_set(e, d->sticky.code, d->sticky.file, d->sticky.line, "%s", d->sticky.msg);
}

void op_cuda_free(device *d, dv *p)
{
    op_cuda_memory *m = op_cuda_of(d)->memory;
    size_t i = m->n;
    if (!p) return;
    while (i && m->all[i - 1].p != p) i--;
    if (i) {
        d->bytes -= m->all[i - 1].bytes;
        memmove(&m->all[i - 1], &m->all[i], (m->n-- - i) * sizeof *m->all);
    }
    cudaFree(p);
}

void op_cuda_memory_free_again(device *d)
{
    op_cuda_pinned_free(&op_cuda_of(d)->memory->pinned);
}

size_t op_cuda_memory_pinned(const device *d)
{
    return op_cuda_pinned_bytes(&op_cuda_of(d)->memory->pinned);
}

static bool add_block(device *d)
{
    op_cuda_memory *m = op_cuda_of(d)->memory;
    op_cuda_pinned_pool *now = &m->pinned.pool[m->pinned.now];
    char ***block = &m->block[m->pinned.now], **more = realloc(*block, (now->blocks + 1) * sizeof *more);
    void *p = NULL;
    if (more) *block = more;
    cudaError_t rc = more ? cudaHostAlloc(&p, OP_CUDA_PINNED_BYTES, cudaHostAllocDefault) : cudaErrorMemoryAllocation;
    if (rc) {
        cudaGetLastError();
        if (rc != cudaErrorMemoryAllocation) op_cuda_check(d, rc, "taking pinned memory");
        op_cuda_fail(d, ERR_NOMEM, "no pinned memory for what goes to the GPU");
        return false;
    }
    (*block)[now->blocks++] = p;
    return true;
}

static void go_up(device *d, dv *dst, const void *src, size_t bytes, cudaStream_t stream)
{
    op_cuda_memory *m = op_cuda_of(d)->memory;
    while (bytes) {
        size_t block, at;
        if (op_cuda_pinned_full(&m->pinned, op_cuda_graph_recording(d))) {
            op_cuda_sync(d);
            if (stream == m->beside) m->ahead = true; /* what goes up from here on was not waited for */
        }
        size_t n = op_cuda_pinned_next(&m->pinned, bytes, &block, &at);
        op_cuda_pinned_pool *now = &m->pinned.pool[m->pinned.now];
        if (block == now->blocks && !add_block(d)) return;
        char *from = m->block[m->pinned.now][block] + at;
        memcpy(from, src, n);
        op_cuda_check(d, cudaMemcpyAsync(dst, from, n, cudaMemcpyHostToDevice, stream), "an upload");
        now->waiting += n;
        dst = dv_at(dst, n);
        src = (const char *)src + n;
        bytes -= n;
    }
}

void op_cuda_upload(device *d, dv *dst, const void *src, size_t bytes)
{
    go_up(d, dst, src, bytes, op_cuda_of(d)->stream);
}

void op_cuda_prefetch(device *d, dv *dst, const void *src, size_t bytes)
{
    op_cuda_memory *m = op_cuda_of(d)->memory;
    if (!m->ahead) op_cuda_check(d, cudaStreamWaitEvent(m->beside, m->read, 0), "an upload");
    m->ahead = true;
    go_up(d, dst, src, bytes, m->beside);
}

void op_cuda_prefetched(device *d)
{
    op_cuda_memory *m = op_cuda_of(d)->memory;
    if (!m->ahead) return;
    m->ahead = false;
    cudaError_t rc = cudaEventRecord(m->there, m->beside);
    if (!rc) rc = cudaStreamWaitEvent(op_cuda_of(d)->stream, m->there, 0);
    op_cuda_check(d, rc, "an upload");
}

void op_cuda_consumed(device *d)
{
    op_cuda_memory *m = op_cuda_of(d)->memory;
    op_cuda_check(d, cudaEventRecord(m->read, op_cuda_of(d)->stream), "an operation");
}

void op_cuda_download(device *d, void *dst, const dv *src, size_t bytes)
{
    if (!bytes) return;
    bool again = op_cuda_graph_recording(d); /* what was taken down so far runs first */
    if (again) op_cuda_record(d, false);
    op_cuda_check(d, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, op_cuda_of(d)->stream), "a download");
    op_cuda_sync(d);
    if (again) op_cuda_record(d, true);
}

void op_cuda_send(device *d, int place, const dv *src, size_t bytes)
{
    op_cuda_memory *m = op_cuda_of(d)->memory;
    cudaStream_t stream = op_cuda_of(d)->stream;
    op_cuda_prefetched(d); /* a turn of pinned memory ends here */
    cudaError_t rc =
        cudaMemcpyAsync(m->sent + (size_t)place * OP_SENT_BYTES, src, bytes, cudaMemcpyDeviceToHost, stream);
    int before = op_cuda_pinned_turn(&m->pinned, place);
    if (!rc && before >= 0) rc = cudaEventSynchronize(m->arrived[before]);
    if (!rc) rc = cudaEventRecord(m->arrived[place], stream);
    op_cuda_check(d, rc, "a download");
}

void op_cuda_take(device *d, int place, void *dst, size_t bytes)
{
    op_cuda_memory *m = op_cuda_of(d)->memory;
    op_cuda_check(d, cudaEventSynchronize(m->arrived[place]), "an operation");
    op_cuda_pinned_taken(&m->pinned, place);
    memcpy(dst, m->sent + (size_t)place * OP_SENT_BYTES, bytes);
}

void op_cuda_zero(device *d, dv *p, size_t bytes)
{
    if (bytes) op_cuda_check(d, cudaMemsetAsync(p, 0, bytes, op_cuda_of(d)->stream), "zeroing");
}

void op_cuda_copy(device *d, dv *dst, const dv *src, size_t bytes)
{
    if (bytes)
        op_cuda_check(d, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, op_cuda_of(d)->stream), "a copy");
}
