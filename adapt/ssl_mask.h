/* ssl_mask.h: which patches of the global crops the student does not see (iBOT's block-wise masking, as DINOv2 draws
 * it).
 *
 * n = int(crops * probability) crops are masked. The i-th of them hides a share U(p_i, p_i+1) of its patches, p = n+1
 * even steps over [low, high]: every step has light and heavy masks. Which crop gets which is shuffled. A mask is a
 * union of rectangles of at least 4 patches with an aspect log-uniform in [0.3, 1/0.3]. */
#ifndef RADAPT_SSL_MASK_H
#define RADAPT_SSL_MASK_H
#include <stddef.h>
#include <stdint.h>

#include "base/rng.h"

enum { SSL_MASK_CROPS = 4096 }; /* crops at most */

typedef struct {
    size_t crops, rows, columns; /* rows x columns patches a crop */
    float probability, low, high;
} ssl_mask;

/* The most patches that a draw can mask, over all crops. */
size_t ssl_mask_most(const ssl_mask *s);
/* mask (crops, rows*columns): 1 masked, 0 not. Returns how many are masked. */
size_t ssl_mask_draw(const ssl_mask *s, rng *r, uint8_t *mask);

#endif
