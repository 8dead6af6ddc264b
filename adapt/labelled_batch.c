/* labelled_batch.c: see labelled_batch.h. */
#include "adapt/labelled_batch.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "adapt/task.h"
#include "base/rng.h"
#include "model/device_cuda.h"
#include "preprocess/augment.h"

static bool mixes(const labelled_batch *t)
{
    return t->j->o->mixup > 0;
}

static size_t pixel_floats(const labelled_batch *t)
{
    return t->load.crops ? crop_load_floats(&t->load) : t->batch * t->image_floats;
}

size_t labelled_batch_floats(const labelled_batch *t)
{
    return pixel_floats(t) + 2 * t->batch * t->outputs + 1 + (mixes(t) ? 4 * t->batch : 0);
}

labelled_batch_parts labelled_batch_view(const labelled_batch *t, const float *at)
{
    labelled_batch_parts v = {.pixels = (float *)(uintptr_t)at};
    v.target = v.pixels + pixel_floats(t);
    v.weight = v.target + t->batch * t->outputs;
    v.scale = v.weight + t->batch * t->outputs;
    if (!mixes(t)) return v;
    static_assert(sizeof(int32_t) == sizeof(float), "numbers of pictures lie among floats");
    v.mix_share = v.scale + 1;
    v.mix_of = (int32_t *)(v.mix_share + 2 * t->batch);
    return v;
}

static err_code draw_batch(labelled_batch *t, uint64_t step, const labelled_batch_parts *v, err *e)
{
    const finetune_options *o = t->j->o;
    const cohort *c = t->j->c;
    bool later = t->load.crops;
    sample_job *jobs = later ? crop_load_begin(&t->load, v->pixels) : t->jobs;
    for (size_t i = 0; i < t->batch; i++) {
        uint64_t sample = step * t->batch + i;
        const labelled_case *k = &c->cases[draw_case(&t->draw, sample)];
        rng r = rng_at(o->seed, RNG_AUGMENT, sample, 0);
        uint32_t frame = k->frames[rng_below(&r, (uint32_t)k->n_frames)];
        const frame_info *f = &c->frames[frame];
        const void *pixels = cohort_pixels(c, frame);
        jobs[i] = (sample_job){.frame = f,
                               .pixels = pixels,
                               .crop = augment_supervised(f, o->crop_scale, o->flip, o->jitter, &r),
                               .size = o->view.size,
                               .out = later ? NULL : v->pixels + i * t->image_floats};
        if (later) crop_load_frame(&t->load, v->pixels, f, frame, pixels, &jobs[i]);
        task_targets(c->task, c->n_labels, k, t->j->class_weight, v->target + i * t->outputs,
                     v->weight + i * t->outputs);
    }
    if (!later && sampler_run(t->threads, &t->norm, jobs, t->batch)) FAIL(e, NOMEM, "finetune: no memory for a batch");
    return ERR_OK;
}

/* The loss of a mixed picture, lambda a + (1 - lambda) b, is the mean of its two pictures' losses, which of binary
 * cross-entropies is that of the mean target with the sum of the weights. */
static void mix_targets(const labelled_batch *t, const labelled_batch_parts *v, size_t a, size_t b, float lambda)
{
    size_t n = t->outputs;
    const float *target = t->unmixed, *weight = target + t->batch * n;
    for (size_t k = 0; k < n; k++) {
        float p = lambda * weight[a * n + k], q = (1 - lambda) * weight[b * n + k];
        v->weight[a * n + k] = p + q;
        v->target[a * n + k] = p + q > 0 ? (p * target[a * n + k] + q * target[b * n + k]) / (p + q) : 0;
    }
}

/* Mixup (Zhang et al., arXiv 1710.09412): each picture with another of its batch, one share for all of them. */
static void mix_batch(labelled_batch *t, uint64_t step, const labelled_batch_parts *v)
{
    size_t n = t->batch * t->outputs;
    rng r = rng_at(t->j->o->seed, RNG_MIX, step, 0);
    float lambda = rng_beta(&r, t->j->o->mixup);
    for (size_t i = 0; i < t->batch; i++) t->partner[i] = (uint32_t)i;
    rng_shuffle(&r, t->partner, t->batch);
    memcpy(t->unmixed, v->target, n * sizeof(float));
    memcpy(t->unmixed + n, v->weight, n * sizeof(float));
    for (size_t i = 0; i < t->batch; i++) {
        v->mix_of[2 * i] = (int32_t)i;
        v->mix_of[2 * i + 1] = (int32_t)t->partner[i];
        v->mix_share[2 * i] = lambda;
        v->mix_share[2 * i + 1] = 1 - lambda;
        mix_targets(t, v, i, t->partner[i], lambda);
    }
}

/* Smoothing and, of a softmax, the weight go into the targets. */
static void finish_targets(const labelled_batch *t, const labelled_batch_parts *v)
{
    bool softmax = t->j->c->task == TASK_MULTICLASS;
    float smooth = t->j->o->label_smoothing;
    double known = 0;
    for (size_t i = 0; i < t->batch * t->outputs; i++) {
        v->target[i] = (1 - smooth) * v->target[i] + smooth / (softmax ? (float)t->outputs : 2);
        if (softmax) v->target[i] *= v->weight[i];
        known += v->weight[i] > 0;
    }
    if (softmax) known = (double)t->batch;
    *v->scale = known > 0 ? (float)(1 / known) : 0;
}

err_code labelled_batch_fill(void *ctx, uint64_t step, float *out, err *e)
{
    labelled_batch *t = ctx;
    labelled_batch_parts v = labelled_batch_view(t, out);
    TRY(draw_batch(t, step, &v, e));
    if (v.mix_of) mix_batch(t, step, &v);
    finish_targets(t, &v);
    return ERR_OK;
}

static size_t frames_of(const cohort *c, split_part part, uint32_t *frames)
{
    size_t n = 0;
    for (size_t i = 0; i < c->n_cases; i++)
        for (size_t k = 0; c->cases[i].part == part && k < c->cases[i].n_frames && n < c->n_frames; k++)
            frames[n++] = c->cases[i].frames[k];
    return n;
}

/* Frames may stay on the device, where it makes the pictures. */
static err_code open_cache(labelled_batch *t, err *e)
{
    const cohort *c = t->j->c;
    uint32_t *frames = malloc((2 * c->n_frames + 1) * sizeof *frames);
    if (!frames) FAIL(e, NOMEM, "finetune: no memory for %zu frames", c->n_frames);
    size_t n = frames_of(c, SPLIT_TRAIN, frames);
    n += frames_of(c, SPLIT_VALIDATION, frames + n);
    err_code rc = frame_cache_open(&t->cache, t->j->d, c->frames, c->n_frames, frames, n, 0, t->j->o->frame_room, e);
    free(frames);
    return rc;
}

void labelled_batch_place(labelled_batch *t)
{
    if (device_samples(t->j->d))
        t->load = (crop_load){t->batch, t->batch * CROP_LOAD_FRAME, t->cache.memory ? &t->cache : NULL};
}

err_code labelled_batch_init(labelled_batch *t, const finetune_job *j, err *e)
{
    const finetune_options *o = j->o;
    *t = (labelled_batch){.j = j, .outputs = (size_t)j->outputs, .norm = features_norm(j->m, &o->view)};
    TRY(draw_init(&t->draw, j->c, j->balanced, o->seed, e));
    if (!t->draw.cases || o->batch < 1) FAIL(e, INTERNAL, "finetune: an empty batch");
    t->batch = (size_t)o->batch < t->draw.cases ? (size_t)o->batch : t->draw.cases;
    t->image_floats = 3 * (size_t)o->view.size * (size_t)o->view.size;
    TRY(open_cache(t, e));
    labelled_batch_place(t);
    t->jobs = malloc(t->batch * sizeof *t->jobs);
    t->partner = malloc(t->batch * sizeof *t->partner);
    t->unmixed = mixes(t) ? malloc(2 * t->batch * t->outputs * sizeof *t->unmixed) : NULL;
    t->threads = pool_new(0);
    if (!t->jobs || !t->partner || (mixes(t) && !t->unmixed) || !t->threads)
        FAIL(e, NOMEM, "finetune: no memory for a batch");
    return ERR_OK;
}

enum { PARTS = 6 };
typedef struct {
    dv **at;
    size_t bytes;
} part;

/* What it has on the device. */
static void parts_of(labelled_batch *t, part out[PARTS])
{
    size_t B = t->batch, mixed = mixes(t) ? B : 0, picture = t->image_floats * sizeof(float);
    const part all[PARTS] = {{&t->pixels, B * picture},
                             {&t->frames, t->load.frame_bytes},
                             {&t->drawn, mixed * picture},
                             {&t->mix_first, mixed ? (mixed + 1) * sizeof(int32_t) : 0},
                             {&t->mix_of, 2 * mixed * sizeof(int32_t)},
                             {&t->mix_share, 2 * mixed * sizeof(float)}};
    memcpy(out, all, sizeof all);
}

size_t labelled_batch_bytes(labelled_batch *t)
{
    size_t bytes = 0;
    part all[PARTS];
    parts_of(t, all);
    for (int i = 0; i < PARTS; i++) bytes += all[i].bytes;
    return bytes;
}

err_code labelled_batch_alloc(labelled_batch *t, err *e)
{
    device *d = t->j->d;
    size_t B = t->batch;
    part all[PARTS];
    parts_of(t, all);
    for (int i = 0; i < PARTS; i++)
        if (all[i].bytes) TRY(d->op->alloc(d, all[i].bytes, all[i].at, e));
    if (!mixes(t)) return ERR_OK;
    int32_t *first = malloc((B + 1) * sizeof *first);
    if (!first) FAIL(e, NOMEM, "finetune: no memory for a batch");
    for (size_t i = 0; i <= B; i++) first[i] = (int32_t)(2 * i);
    d->op->upload(d, t->mix_first, first, (B + 1) * sizeof *first);
    err_code rc = device_sync(d, e);
    free(first);
    return rc;
}

void labelled_batch_images(labelled_batch *t, const labelled_batch_parts *v)
{
    device *d = t->j->d;
    size_t B = t->batch, floats = t->image_floats;
    crop_load_images(d, &t->load, v->pixels, B * floats, t->frames, t->jobs, &t->norm, t->drawn ? t->drawn : t->pixels);
    if (!t->drawn) return;
    d->op->upload(d, t->mix_of, v->mix_of, 2 * B * sizeof *v->mix_of);
    d->op->upload(d, t->mix_share, v->mix_share, 2 * B * sizeof *v->mix_share);
    d->op->mix_rows(d, t->pixels, false, t->drawn, t->mix_first, t->mix_of, t->mix_share, B, floats);
}

void labelled_batch_fini(labelled_batch *t)
{
    part all[PARTS] = {0};
    if (t->j) parts_of(t, all);
    for (int i = 0; i < PARTS; i++)
        if (all[i].at && *all[i].at) t->j->d->op->free(t->j->d, *all[i].at);
    pool_free(t->threads);
    frame_cache_close(&t->cache);
    draw_fini(&t->draw);
    free(t->jobs);
    free(t->partner);
    free(t->unmixed);
    *t = (labelled_batch){0};
}
