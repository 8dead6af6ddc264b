/* recompute.h: --recompute auto|none|block|N: of how many blocks a stage's backward makes the activations again.
 * Results have the same bits with any number, so it is a matter of this machine's memory alone. */
#ifndef RADAPT_RECOMPUTE_H
#define RADAPT_RECOMPUTE_H
#include "cli/options.h"

/* automatic: blocks is 0, and recompute_least has the last word. ERR_USAGE: none of these. */
err_code recompute_read(const options *o, size_t *blocks, bool *automatic, err *e);

/* ERR_NOMEM where a stage with so many blocks made again does not fit. */
typedef err_code recompute_fits(void *ctx, size_t blocks, err *e);
/* Before a stage of a model of that depth begins: that it fits with *blocks or, if automatic, the least number that
 * does, in *blocks and in the log. If none does, the ERR_NOMEM of the most. */
err_code recompute_settle(bool automatic, int depth, recompute_fits *fits, void *ctx, size_t *blocks, err *e);

#endif
