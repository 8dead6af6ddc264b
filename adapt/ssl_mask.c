/* ssl_mask.c: see ssl_mask.h. */
#include "adapt/ssl_mask.h"

#include <math.h>
#include <string.h>

enum { LEAST = 4, TRIES = 10 };

static size_t masked_crops(const ssl_mask *s)
{
    return (size_t)((float)s->crops * s->probability);
}

size_t ssl_mask_most(const ssl_mask *s)
{
    size_t n = masked_crops(s), patches = s->rows * s->columns, most = 0;
    for (size_t i = 0; i < n; i++) {
        float upper = s->low + (s->high - s->low) * (float)(i + 1) / (float)n;
        most += (size_t)((float)patches * upper) + 1;
    }
    return most < s->crops * patches ? most : s->crops * patches;
}

/* Masks one rectangle of at most `room` new patches; how many became masked, 0 if no try fitted. */
static size_t add_rectangle(const ssl_mask *s, rng *r, uint8_t *mask, size_t room)
{
    for (int attempt = 0; attempt < TRIES; attempt++) {
        float area = rng_between(r, LEAST, (float)(room > LEAST ? room : LEAST));
        float aspect = expf(rng_between(r, logf(0.3f), logf(1 / 0.3f)));
        size_t h = (size_t)lrintf(sqrtf(area * aspect)), w = (size_t)lrintf(sqrtf(area / aspect));
        if (!h || !w || h >= s->rows || w >= s->columns) continue;
        size_t top = rng_below(r, (uint32_t)(s->rows - h + 1)), left = rng_below(r, (uint32_t)(s->columns - w + 1));
        size_t fresh = 0;
        for (size_t y = top; y < top + h; y++)
            for (size_t x = left; x < left + w; x++) fresh += !mask[y * s->columns + x];
        if (!fresh || fresh > room) continue;
        for (size_t y = top; y < top + h; y++) memset(mask + y * s->columns + left, 1, w);
        return fresh;
    }
    return 0;
}

size_t ssl_mask_draw(const ssl_mask *s, rng *r, uint8_t *mask)
{
    size_t patches = s->rows * s->columns, n = masked_crops(s), total = 0;
    uint32_t order[SSL_MASK_CROPS];
    memset(mask, 0, s->crops * patches);
    for (size_t i = 0; i < s->crops; i++) order[i] = (uint32_t)i;
    rng_shuffle(r, order, s->crops);
    for (size_t i = 0; i < n; i++) {
        float lower = s->low + (s->high - s->low) * (float)i / (float)n;
        float upper = s->low + (s->high - s->low) * (float)(i + 1) / (float)n;
        size_t want = (size_t)((float)patches * rng_between(r, lower, upper)), have = 0;
        uint8_t *one = mask + order[i] * patches;
        while (have < want) {
            size_t fresh = add_rectangle(s, r, one, want - have);
            if (!fresh) break;
            have += fresh;
        }
        total += have;
    }
    return total;
}
