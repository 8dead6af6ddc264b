/* draw.c: see draw.h. */
#include "adapt/draw.h"

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

err_code draw_init(draw *w, const cohort *c, bool balanced, uint64_t seed, err *e)
{
    size_t groups = balanced ? (size_t)c->n_strata : 1;
    *w = (draw){.seed = seed};
    w->k = calloc(groups, sizeof *w->k);
    if (!w->k) FAIL(e, NOMEM, "draw: no memory");
    for (size_t g = 0; g < groups; g++) {
        draw_stratum *k = &w->k[w->n];
        k->cases = malloc((c->n_cases + 1) * sizeof *k->cases);
        k->order = malloc((c->n_cases + 1) * sizeof *k->order);
        k->n = 0;
        k->round = UINT64_MAX;
        if (!k->cases || !k->order) {
            w->n++;
            FAIL(e, NOMEM, "draw: no memory for %zu cases", c->n_cases);
        }
        for (size_t i = 0; i < c->n_cases; i++)
            if (c->cases[i].part == SPLIT_TRAIN && (!balanced || c->cases[i].stratum == (int)g))
                k->cases[k->n++] = (uint32_t)i;
        w->cases += k->n;
        if (k->n) {
            w->n++;
        } else {
            free(k->cases);
            free(k->order);
            *k = (draw_stratum){0};
        }
    }
    return ERR_OK;
}

void draw_fini(draw *w)
{
    for (size_t g = 0; g < w->n; g++) {
        free(w->k[g].cases);
        free(w->k[g].order);
    }
    free(w->k);
    *w = (draw){0};
}

uint32_t draw_case(draw *w, uint64_t sample)
{
    size_t g = (size_t)(sample % w->n);
    draw_stratum *k = &w->k[g];
    uint64_t turn = sample / w->n, round = turn / k->n;
    if (round != k->round) {
        rng r = rng_at(w->seed, RNG_ORDER, round, (uint32_t)g);
        memcpy(k->order, k->cases, k->n * sizeof *k->order);
        rng_shuffle(&r, k->order, k->n);
        k->round = round;
    }
    return k->order[turn % k->n];
}
