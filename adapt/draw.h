/* draw.h: which training case is the n-th sample: a function of (seed, n). Strata take turns (balanced), or there is
 * one of all; each goes through its cases in an order that is shuffled anew whenever it has been gone through. */
#ifndef RADAPT_DRAW_H
#define RADAPT_DRAW_H
#include "adapt/cohort.h"

typedef struct {
    uint32_t *cases, *order; /* (n) indices into the cohort's cases; order: of the round at hand */
    size_t n;
    uint64_t round; /* UINT64_MAX: none yet */
} draw_stratum;

typedef struct {
    draw_stratum *k;
    size_t n; /* strata that occur */
    size_t cases;
    uint64_t seed;
} draw;

/* Free with draw_fini, after failure too. */
err_code draw_init(draw *w, const cohort *c, bool balanced, uint64_t seed, err *e);
void draw_fini(draw *w);
uint32_t draw_case(draw *w, uint64_t sample);

#endif
