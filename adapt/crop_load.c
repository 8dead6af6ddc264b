/* crop_load.c: see crop_load.h. A block: bytes of frames so far (size_t), jobs, frames; each aligned. */
#include "adapt/crop_load.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"

static size_t aligned(size_t bytes)
{
    return (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
}

static size_t frames_at(const crop_load *k)
{
    return ARENA_ALIGN + aligned(k->crops * sizeof(sample_job));
}

size_t crop_load_floats(const crop_load *k)
{
    return (frames_at(k) + aligned(k->frame_bytes)) / sizeof(float);
}

sample_job *crop_load_begin(const crop_load *k, float *at)
{
    sample_job *jobs = (sample_job *)((char *)at + ARENA_ALIGN);
    *(size_t *)at = 0;
    memset(jobs, 0, k->crops * sizeof *jobs);
    return jobs;
}

void *crop_load_room(const crop_load *k, float *at, size_t bytes)
{
    size_t *used = (size_t *)at;
    if (bytes > k->frame_bytes || *used > k->frame_bytes - bytes) return NULL;
    void *room = (char *)at + frames_at(k) + *used;
    *used += bytes;
    return room;
}

const void *crop_load_frame(const crop_load *k, float *at, const frame_info *f, const void *pixels)
{
    size_t bytes = (size_t)f->rows * (size_t)f->columns * (f->type == PIXEL_U8 ? (size_t)f->channels : 2);
    void *room = crop_load_room(k, at, aligned(bytes));
    return room ? memcpy(room, pixels, bytes) : pixels;
}

crop_block crop_load_of(const crop_load *k, const float *at)
{
    const char *base = (const char *)at;
    return (crop_block){(const sample_job *)(base + ARENA_ALIGN), k->crops, base + frames_at(k), *(const size_t *)at};
}

void crop_load_up(device *d, dv *frames, sample_job *own, const crop_block *b)
{
    if (b->bytes) d->op->upload(d, frames, b->frames, b->bytes);
    for (size_t i = 0; i < b->n; i++) {
        size_t at = (uintptr_t)b->jobs[i].pixels - (uintptr_t)b->frames;
        own[i] = b->jobs[i];
        own[i].resident = at < b->bytes ? dv_at(frames, at) : NULL;
    }
}

void crop_load_images(device *d, const crop_load *k, const float *at, size_t floats, dv *frames, sample_job *own,
                      const sampler_norm *norm, dv *out)
{
    if (!k->crops) {
        d->op->upload(d, out, at, floats * sizeof *at);
        return;
    }
    crop_block b = crop_load_of(k, at);
    crop_load_up(d, frames, own, &b);
    d->op->sample(d, out, norm, own, b.n);
}

float *crop_load_full(const crop_load *k)
{
    float *at = calloc(crop_load_floats(k), sizeof *at);
    if (at) crop_load_room(k, at, k->frame_bytes);
    return at;
}
