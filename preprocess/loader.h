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
/* last_step: nothing is filled beyond it. */
err_code loader_open(loader **l, loader_fill fill, void *ctx, size_t floats, uint64_t first_step, uint64_t last_step,
                     err *e);
err_code loader_take(loader *l, uint64_t step, const float **batch, err *e);
void loader_close(loader *l);

#endif
