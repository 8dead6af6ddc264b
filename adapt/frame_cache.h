/* frame_cache.h: frames of a cohort that stay on the device: what went up once serves all later crops of it. Which of
 * them do is settled when it is opened: the first of a list that there is room for.
 *
 *     frame_cache k; TRY(frame_cache_open(&k, d, frames, which, n, 0, bytes, &e));
 *     dv *at = frame_cache_place(&k, i);         // NULL: frame i has none
 *     if (!frame_cache_has(&k, i)) ... send it up there, frame_cache_took(&k, i) ...
 *     frame_cache_close(&k);
 *
 * One thread sends and says _took; any may ask. */
#ifndef RADAPT_FRAME_CACHE_H
#define RADAPT_FRAME_CACHE_H
#include <stdatomic.h>

#include "io/catalogue.h"
#include "model/op.h"

typedef struct {
    device *d;
    dv *memory;                   /* NULL: no frame stays */
    size_t bytes, kept, taken;    /* of frames with a place; taken: of the device's memory */
    size_t n;                     /* frames of the cohort */
    size_t *at;                   /* (n) bytes into memory; SIZE_MAX: no place */
    _Atomic unsigned char *there; /* (n) */
} frame_cache;

/* Bytes of a frame's stored pixels. */
size_t frame_cache_bytes(const frame_info *f);
/* frames (n): the cohort's; which (n_which): those that are wanted, the first first. each: bytes of every one of them,
 * or 0: as they are stored. room: bytes at most; with none, or where the device does not make crops or has no memory
 * left, it is empty. */
err_code frame_cache_open(frame_cache *k, device *d, const frame_info *frames, size_t n, const uint32_t *which,
                          size_t n_which, size_t each, size_t room, err *e);
void frame_cache_close(frame_cache *k);
dv *frame_cache_place(const frame_cache *k, size_t i);
bool frame_cache_has(const frame_cache *k, size_t i);
void frame_cache_took(frame_cache *k, size_t i);

#endif
