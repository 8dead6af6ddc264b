/* crop_load.h: crops on their way to a device that makes them itself (device_samples): their jobs, and the frames that
 * the jobs cut, as one block of the loader's. The loader's thread has read the frames from the store then, and each
 * goes up once, however many crops it gives; where it may stay there (frame_cache.h), once and for all.
 *
 *     crop_load k = {.crops = B, .frame_bytes = ...};          // loader_open(..., crop_load_floats(&k), ...)
 *     jobs = crop_load_begin(&k, at);                          // the loader's fill; at: its block
 *     crop_load_frame(&k, at, frame, index, pixels, &jobs[i]);
 *     crop_load_images(d, &k, at, 0, frames, own, &norm, pixels); // the step: its device memory, B jobs of its own
 */
#ifndef RADAPT_CROP_LOAD_H
#define RADAPT_CROP_LOAD_H
#include "adapt/frame_cache.h"
#include "preprocess/sampler.h"

enum { CROP_LOAD_FRAME = 1 << 20 }; /* bytes of a stored frame that usually suffice */

typedef struct {
    size_t crops;
    size_t frame_bytes; /* of frames at most; what does not fit stays in the store, and the device reads it there */
    frame_cache *cache; /* where frames stay, or NULL */
} crop_load;

/* A frame that a block carries. */
typedef struct {
    const void *from; /* its pixels, where they are not in the block; NULL: */
    size_t at, bytes; /* in the block's frames */
    dv *to;           /* where it stays; NULL: at the same place in memory of the step's */
    size_t index;     /* of the cohort's frames, where it stays */
} crop_frame;

/* What a block holds. */
typedef struct {
    const sample_job *jobs; /* (n) */
    size_t n;
    const crop_frame *carried; /* (n_carried) */
    size_t n_carried;
    const void *frames; /* (bytes) what jobs' pixels point into, or not; NULL: of who counts */
    size_t bytes;
    frame_cache *cache;
} crop_block;

size_t crop_load_floats(const crop_load *k);
/* An empty block; returns its jobs, to be filled in. */
sample_job *crop_load_begin(const crop_load *k, float *at);
/* Of frame `index` of the cohort, `bytes` large: room for its pixels, which the caller writes, and job->pixels points
 * to. NULL: they need not come, for they are on the device (job->resident), or there is no room. */
void *crop_load_room(const crop_load *k, float *at, size_t index, size_t bytes, sample_job *job);
/* The same with the pixels given; if there is no room they stay where they are, and go up from there. */
void crop_load_frame(const crop_load *k, float *at, const frame_info *f, size_t index, const void *pixels,
                     sample_job *job);
crop_block crop_load_of(const crop_load *k, const float *at);
/* Sends the block's frames up beside what the device is doing, those that do not stay into `frames` (frame_bytes);
 * own: the jobs, pointed there. The block may change after. */
void crop_load_up(device *d, dv *frames, sample_job *own, const crop_block *b);
/* out (crops,3,size,size) f32 on the device: made there of a block's frames, by jobs of one size; or, of a load without
 * crops, the loader's `floats` as they are. */
void crop_load_images(device *d, const crop_load *k, const float *at, size_t floats, dv *frames, sample_job *own,
                      const sampler_norm *norm, dv *out);
/* A block as full as it gets, of nothing: for who counts what a batch takes. The caller frees; NULL: no memory. */
float *crop_load_full(const crop_load *k);

#endif
