/* recompute.c: see recompute.h. */
#include "cli/recompute.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/vit.h"

err_code recompute_read(const options *o, size_t *blocks, bool *automatic, err *e)
{
    const char *text = options_text(o, "recompute");
    char *end;
    *automatic = !strcmp(text, "auto");
    *blocks = !strcmp(text, "block") ? VIT_AGAIN_ALL : 0;
    if (*automatic || *blocks || !strcmp(text, "none")) return ERR_OK;
    long n = strtol(text, &end, 10);
    if (!*text || *end || n < 0 || n > 4096)
        FAIL(e, USAGE, "--recompute: '%.40s' is not auto, none, block or a number of blocks", text);
    *blocks = (size_t)n;
    return ERR_OK;
}

static err_code least(size_t most, recompute_fits *fits, void *ctx, size_t *blocks, err *e)
{
    size_t low = 1, high = most; /* what is below low does not fit, high does */
    err why = {0};
    err_code rc = fits(ctx, *blocks = 0, &why);
    if (rc != ERR_NOMEM || !most) {
        if (rc) *e = why;
        return rc;
    }
    TRY(fits(ctx, *blocks = most, e));
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        why = (err){0};
        rc = fits(ctx, middle, &why);
        if (rc && rc != ERR_NOMEM) {
            *e = why;
            return rc;
        }
        if (rc)
            low = middle + 1;
        else
            high = middle;
    }
    *blocks = high;
    return ERR_OK;
}

err_code recompute_settle(bool automatic, int depth, recompute_fits *fits, void *ctx, size_t *blocks, err *e)
{
    if (!automatic) return fits(ctx, *blocks, e);
    TRY(least(depth > 1 ? (size_t)depth - 1 : 0, fits, ctx, blocks, e));
    if (*blocks) log_event(LOG_INFO, "recompute", "blocks", LOG_INT(*blocks), "of", LOG_INT(depth), NULL);
    return fits(ctx, *blocks, e); /* ctx, too, has this number now */
}
