/* crop_load.c: see crop_load.h. A block: how full it is, jobs, frames carried, their pixels; each aligned. */
#include "adapt/crop_load.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"

typedef struct {
    size_t bytes, carried;
} head;

static sample_job *jobs_of(const float *at)
{
    static_assert(sizeof(head) <= ARENA_ALIGN, "a block's head");
    return (sample_job *)((char *)(uintptr_t)at + ARENA_ALIGN);
}

/* No more frames than crops: each is carried for one of them. */
static crop_frame *carried_of(const crop_load *k, const float *at)
{
    return (crop_frame *)((char *)jobs_of(at) + arena_round(k->crops * sizeof(sample_job)));
}

static char *pixels_of(const crop_load *k, const float *at)
{
    return (char *)carried_of(k, at) + arena_round(k->crops * sizeof(crop_frame));
}

size_t crop_load_floats(const crop_load *k)
{
    size_t lists = arena_round(k->crops * sizeof(sample_job)) + arena_round(k->crops * sizeof(crop_frame));
    return (ARENA_ALIGN + lists + arena_round(k->frame_bytes)) / sizeof(float);
}

sample_job *crop_load_begin(const crop_load *k, float *at)
{
    *(head *)at = (head){0};
    memset(jobs_of(at), 0, k->crops * sizeof(sample_job));
    return jobs_of(at);
}

void *crop_load_room(const crop_load *k, float *at, size_t index, size_t bytes, sample_job *job)
{
    head *h = (head *)at;
    dv *to = k->cache ? frame_cache_place(k->cache, index) : NULL;
    bool there = to && frame_cache_has(k->cache, index);
    job->resident = there ? to : NULL;
    if (there || arena_round(bytes) > k->frame_bytes || h->bytes > k->frame_bytes - arena_round(bytes)) return NULL;
    job->resident = to;
    carried_of(k, at)[h->carried++] = (crop_frame){.at = h->bytes, .bytes = bytes, .to = to, .index = index};
    void *room = pixels_of(k, at) + h->bytes;
    h->bytes += arena_round(bytes);
    job->pixels = room;
    return room;
}

void crop_load_frame(const crop_load *k, float *at, const frame_info *f, size_t index, const void *pixels,
                     sample_job *job)
{
    size_t bytes = frame_cache_bytes(f);
    job->pixels = pixels;
    void *room = crop_load_room(k, at, index, bytes, job);
    if (room) memcpy(room, pixels, bytes);
    if (room || job->resident || !k->cache) return;
    job->resident = frame_cache_place(k->cache, index);
    if (!job->resident) return;
    head *h = (head *)at;
    carried_of(k, at)[h->carried++] =
        (crop_frame){.from = pixels, .bytes = bytes, .to = (dv *)(uintptr_t)job->resident, .index = index};
}

crop_block crop_load_of(const crop_load *k, const float *at)
{
    const head *h = (const head *)at;
    return (crop_block){jobs_of(at), k->crops, carried_of(k, at), h->carried, pixels_of(k, at), h->bytes, k->cache};
}

void crop_load_up(device *d, dv *frames, sample_job *own, const crop_block *b)
{
    for (size_t i = 0; i < b->n_carried; i++) {
        const crop_frame *f = &b->carried[i];
        if (f->to && frame_cache_has(b->cache, f->index)) continue; /* another block has brought it since */
        const void *from = f->from ? f->from : (const char *)b->frames + f->at;
        d->op->prefetch(d, f->to ? f->to : dv_at(frames, f->at), from, f->bytes);
        if (f->to) frame_cache_took(b->cache, f->index);
    }
    d->op->prefetched(d);
    for (size_t i = 0; i < b->n; i++) {
        size_t at = (uintptr_t)b->jobs[i].pixels - (uintptr_t)b->frames;
        own[i] = b->jobs[i];
        if (!own[i].resident && at < b->bytes) own[i].resident = dv_at(frames, at);
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
    d->op->consumed(d);
}

float *crop_load_full(const crop_load *k)
{
    float *at = calloc(crop_load_floats(k), sizeof *at);
    sample_job none = {0};
    if (at) crop_load_room(k, at, 0, k->frame_bytes, &none);
    return at;
}
