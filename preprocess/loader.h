/* loader.h: the next step's batch is filled while this one computes: one background thread, two buffers.
 *
 *     loader *l; TRY(loader_open(&l, fill, ctx, floats, first_step, &e));
 *     const float *batch; TRY(loader_take(l, step, &batch, &e));   // valid until the next take
 *
 * fill(ctx, step, out, e) must depend on step alone. */
#ifndef RADAPT_LOADER_H
#define RADAPT_LOADER_H
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

typedef struct loader loader;
typedef err_code (*loader_fill)(void *ctx, uint64_t step, float *out, err *e);
/* last_step: the last that is filled. Steps are taken one by one, from first_step on. A failure of fill is delivered by
 * the take of its step, and again by every later one. */
err_code loader_open(loader **l, loader_fill fill, void *ctx, size_t floats, uint64_t first_step, uint64_t last_step,
                     err *e);
err_code loader_take(loader *l, uint64_t step, const float **batch, err *e);
/* Waits for a fill under way. NULL is allowed. */
void loader_close(loader *l);

#endif
