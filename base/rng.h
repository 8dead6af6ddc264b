/* rng.h: counter-based random numbers: the stream is a function of (seed, stream, counter) and nothing else, so that
 * sample i of step s is the same whichever thread draws it and a resumed run needs no saved state.
 *
 *     rng r = rng_at(seed, RNG_AUGMENT, step, index);
 *     float u = rng_uniform(&r);           // [0,1)
 *
 * Philox4x32-10 (Salmon et al., SC'11). */
#ifndef RADAPT_RNG_H
#define RADAPT_RNG_H
#include <stddef.h>
#include <stdint.h>

/* Streams: one per purpose, so that a draw added to one does not shift another. */
enum {
    RNG_INIT = 1,
    RNG_ORDER,
    RNG_AUGMENT,
    RNG_MASK,
    RNG_SPLIT,
    RNG_ROWS,
    RNG_HEAD,
    RNG_PHANTOM,
    RNG_TEST,
    RNG_DROP,
    RNG_PEFT,
    RNG_MIX
};

typedef struct {
    uint32_t key[2], counter[4], out[4];
    int left;
    int has_normal;
    float normal;
} rng;

rng rng_at(uint64_t seed, uint32_t stream, uint64_t a, uint32_t b);
uint32_t rng_u32(rng *r);
uint32_t rng_below(rng *r, uint32_t n); /* unbiased in [0,n), n > 0 */
float rng_uniform(rng *r);              /* [0,1), 24 bits */
float rng_between(rng *r, float low, float high);
float rng_normal(rng *r);                               /* mean 0, variance 1 */
float rng_trunc_normal(rng *r, float std, float bound); /* normal * std, redrawn outside [-bound, bound] */
float rng_beta(rng *r, float a);                        /* Beta(a, a), a > 0: Marsaglia & Tsang's gammas (2000) */
void rng_shuffle(rng *r, uint32_t *items, size_t n);    /* Fisher-Yates */

#endif
