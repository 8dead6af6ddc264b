/* frame_cache.c: see frame_cache.h. Places are aligned as an arena's. */
#include "adapt/frame_cache.h"

#include <stdlib.h>

#include "base/arena.h"
#include "model/device_cuda.h"

size_t frame_cache_bytes(const frame_info *f)
{
    return (size_t)f->rows * (size_t)f->columns * (size_t)f->channels * pixel_bytes(f->type);
}

err_code frame_cache_open(frame_cache *k, device *d, const frame_info *frames, size_t n, const uint32_t *which,
                          size_t n_which, size_t each, size_t room, err *e)
{
    *k = (frame_cache){.d = d, .n = n};
    if (!room || !device_samples(d)) return ERR_OK;
    k->at = malloc((n + 1) * sizeof *k->at);
    k->there = calloc(n + 1, sizeof *k->there);
    if (!k->at || !k->there) FAIL(e, NOMEM, "no memory for %zu frames", n);
    for (size_t i = 0; i < n; i++) k->at[i] = SIZE_MAX;
    for (size_t i = 0; i < n_which; i++) {
        size_t bytes = arena_round(each ? each : frame_cache_bytes(&frames[which[i]]));
        if (k->at[which[i]] != SIZE_MAX || bytes > room - k->bytes) continue;
        k->at[which[i]] = k->bytes;
        k->bytes += bytes;
        k->kept++;
    }
    if (!k->kept) return ERR_OK;
    size_t before = d->bytes;
    err why = {0};
    if (d->op->alloc(d, k->bytes, &k->memory, &why)) k->kept = 0; /* somebody else has taken it: it goes without */
    k->taken = d->bytes - before;
    return ERR_OK;
}

void frame_cache_close(frame_cache *k)
{
    if (k->memory) k->d->op->free(k->d, k->memory);
    free(k->at);
    free(k->there);
    *k = (frame_cache){0};
}

dv *frame_cache_place(const frame_cache *k, size_t i)
{
    return k->memory && k->at[i] != SIZE_MAX ? dv_at(k->memory, k->at[i]) : NULL;
}

bool frame_cache_has(const frame_cache *k, size_t i)
{
    return k->memory && atomic_load(&k->there[i]);
}

void frame_cache_took(frame_cache *k, size_t i)
{
    if (k->memory) atomic_store(&k->there[i], 1);
}
