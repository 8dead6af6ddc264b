/* ssl_init.c: the heads' initialisation on the frozen backbone's tokens of training crops. */
#include <stdlib.h>
#include <string.h>

#include "adapt/ssl_run.h"
#include "base/log.h"
#include "base/stop.h"

enum { TOKENS = 4096, TOKENS_MOST = 8192, TOKENS_A_PROTOTYPE = 2, CROPS = 512 };

/* How many batches are looked at, and how many tokens are taken of a crop. */
static void counts(const ssl_step *s, size_t crops, size_t *batches, size_t *each)
{
    size_t tokens = TOKENS_A_PROTOTYPE * s->config.head.prototypes;
    if (tokens < TOKENS) tokens = TOKENS;
    if (tokens > TOKENS_MOST) tokens = TOKENS_MOST;
    *batches = (CROPS + crops - 1) / crops;
    *each = (tokens + *batches * crops - 1) / (*batches * crops);
    if (*each < 2) *each = 2;
}

size_t ssl_init_bytes(const ssl_data *data, const ssl_step *s)
{
    size_t crops = 2 * data->batch, C = s->config.head.in, batches, each;
    counts(s, crops, &batches, &each);
    size_t rows = batches * crops * each;
    return (ssl_data_floats(data) + crops * s->T * C + rows * C) * sizeof(float) +
           dino_head_init_bytes(&s->config.head, rows);
}

/* CLS and a few patch tokens of training crops through the frozen backbone, for the head's initialisation. */
err_code ssl_init_head(ssl_run *r, err *e)
{
    size_t crops = 2 * r->data.batch, T = r->step.T, C = r->step.config.head.in, n = 0, batches, each;
    counts(&r->step, crops, &batches, &each);
    size_t capacity = batches * crops * each;
    float *pixels = malloc(ssl_data_floats(&r->data) * sizeof *pixels),
          *tokens = malloc(crops * T * C * sizeof *tokens);
    float *x = malloc(capacity * C * sizeof *x);
    err_code rc = ERR_OK;
    if (!pixels || !tokens || !x) FAIL_DONE(rc, e, NOMEM, "adapt: no memory to initialise the head");
    for (size_t b = 0; b < batches; b++) {
        TRY_DONE(rc, stop_check(e));
        TRY_DONE(rc, ssl_data_crops(&r->data, b, pixels, e));
        TRY_DONE(rc, ssl_step_tokens(&r->step, pixels, tokens, e));
        rng g = rng_at(r->o->seed, RNG_HEAD, 2, (uint32_t)b);
        for (size_t i = 0; i < crops; i++)
            for (size_t k = 0; k < each; k++) { /* the class token, then random patches */
                size_t t = k == 0 ? 0 : T - r->step.P + rng_below(&g, (uint32_t)r->step.P);
                memcpy(x + n++ * C, tokens + (i * T + t) * C, C * sizeof *x);
            }
    }
    log_event(LOG_INFO, "adapt.head", "tokens", LOG_INT(n), "prototypes", LOG_INT(r->step.config.head.prototypes),
              "from", LOG_STR(dino_head_clusters(&r->step.config.head, n) ? "clusters" : "samples"), NULL);
    for (int i = 0; i < 1 + r->step.config.separate_heads && !rc; i++)
        rc = dino_head_init(&r->step.head[i], x, n, 0.1f, r->o->seed, e);
done:
    free(pixels);
    free(tokens);
    free(x);
    return rc;
}
