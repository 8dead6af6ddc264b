/* decode_worker.h: decoding in processes of their own, so that a codec's crash, hang or hunger costs one file.
 *
 * Forks `workers` processes with RLIMIT_AS and a time limit per file. fn runs in the worker: it decodes the job and
 * appends its answer to the reply; done runs in the parent, in completion order, with the bytes that fn wrote or with
 * the error. A worker that dies or overruns is replaced and its job reported as ERR_CRASHED; as ERR_IO
 * where it was killed from outside (by the kernel, out of memory). */
#ifndef RADAPT_DECODE_WORKER_H
#define RADAPT_DECODE_WORKER_H
#include <stddef.h>

#include "base/err.h"

typedef struct {
    unsigned char *data; /* grown by decode_reply_take; owned by the worker loop */
    size_t bytes, capacity;
} decode_reply;
/* Room for bytes more at the end of the reply, or NULL. */
void *decode_reply_take(decode_reply *r, size_t bytes);

typedef struct {
    int workers;         /* 0: one per processor */
    size_t memory_bytes; /* RLIMIT_AS of each, 0: 4 GiB */
    int timeout_s;       /* per job, 0: 120 */
} decode_limits;

typedef err_code (*decode_fn)(void *ctx, size_t job, decode_reply *reply, err *e);
/* code != 0: the job failed; data is empty and e says why. Returns an error to end the whole run. */
typedef err_code (*decode_done_fn)(void *ctx, size_t job, err_code code, const err *why, const unsigned char *data,
                                   size_t bytes, err *e);
err_code decode_run(const decode_limits *l, size_t jobs, decode_fn fn, decode_done_fn done, void *ctx, err *e);

#endif
