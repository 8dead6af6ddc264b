/* labelled_batch.c: see labelled_batch.h. */
#include "adapt/labelled_batch.h"

#include <stdlib.h>

#include "adapt/task.h"
#include "base/rng.h"
#include "model/device_cuda.h"
#include "preprocess/augment.h"

static size_t pixel_floats(const labelled_batch *t)
{
    return t->load.crops ? crop_load_floats(&t->load) : t->batch * t->image_floats;
}

size_t labelled_batch_floats(const labelled_batch *t)
{
    return pixel_floats(t) + 2 * t->batch * t->outputs + 1;
}

labelled_batch_parts labelled_batch_view(const labelled_batch *t, const float *at)
{
    labelled_batch_parts v = {.pixels = (float *)(uintptr_t)at};
    v.target = v.pixels + pixel_floats(t);
    v.weight = v.target + t->batch * t->outputs;
    v.scale = v.weight + t->batch * t->outputs;
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

/* out = lambda a + (1 - lambda) b of pictures and of losses: the loss of a mixed picture is the mean of its two
 * pictures' losses, which of binary cross-entropies is that of the mean target with the sum of the weights. */
static void mix(const labelled_batch *t, const labelled_batch_parts *from, size_t a, size_t b, float lambda,
                const labelled_batch_parts *out)
{
    size_t floats = t->image_floats, n = t->outputs;
    const float *x = from->pixels + a * floats, *y = from->pixels + b * floats;
    float *z = out->pixels + a * floats;
    for (size_t i = 0; i < floats; i++) z[i] = lambda * x[i] + (1 - lambda) * y[i];
    for (size_t k = 0; k < n; k++) {
        float p = lambda * from->weight[a * n + k], q = (1 - lambda) * from->weight[b * n + k];
        out->weight[a * n + k] = p + q;
        out->target[a * n + k] = p + q > 0 ? (p * from->target[a * n + k] + q * from->target[b * n + k]) / (p + q) : 0;
    }
}

/* Mixup (Zhang et al., arXiv 1710.09412): each picture with another of its batch, one share for all of them. */
static void mix_batch(labelled_batch *t, uint64_t step, const labelled_batch_parts *from,
                      const labelled_batch_parts *out)
{
    rng r = rng_at(t->j->o->seed, RNG_MIX, step, 0);
    float lambda = rng_beta(&r, t->j->o->mixup);
    for (size_t i = 0; i < t->batch; i++) t->partner[i] = (uint32_t)i;
    rng_shuffle(&r, t->partner, t->batch);
    for (size_t i = 0; i < t->batch; i++) mix(t, from, i, t->partner[i], lambda, out);
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
    if (t->unmixed) {
        labelled_batch_parts drawn = labelled_batch_view(t, t->unmixed);
        TRY(draw_batch(t, step, &drawn, e));
        mix_batch(t, step, &drawn, &v);
    } else {
        TRY(draw_batch(t, step, &v, e));
    }
    finish_targets(t, &v);
    return ERR_OK;
}

/* Frames of training cases may stay on the device, where it makes the pictures. */
static err_code open_cache(labelled_batch *t, err *e)
{
    const cohort *c = t->j->c;
    size_t n = 0;
    uint32_t *frames = malloc((c->n_frames + 1) * sizeof *frames);
    if (!frames) FAIL(e, NOMEM, "finetune: no memory for %zu frames", c->n_frames);
    for (size_t i = 0; i < c->n_cases; i++)
        for (size_t k = 0; c->cases[i].part == SPLIT_TRAIN && k < c->cases[i].n_frames && n < c->n_frames; k++)
            frames[n++] = c->cases[i].frames[k];
    size_t room = t->j->o->mixup == 0 ? t->j->o->frame_room : 0;
    err_code rc = frame_cache_open(&t->cache, t->j->d, c->frames, c->n_frames, frames, n, 0, room, e);
    free(frames);
    return rc;
}

void labelled_batch_place(labelled_batch *t)
{
    if (device_samples(t->j->d) && t->j->o->mixup == 0)
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
    t->unmixed = o->mixup > 0 ? malloc(labelled_batch_floats(t) * sizeof *t->unmixed) : NULL;
    t->threads = pool_new(0);
    if (!t->jobs || !t->partner || (o->mixup > 0 && !t->unmixed) || !t->threads)
        FAIL(e, NOMEM, "finetune: no memory for a batch");
    return ERR_OK;
}

void labelled_batch_fini(labelled_batch *t)
{
    pool_free(t->threads);
    frame_cache_close(&t->cache);
    draw_fini(&t->draw);
    free(t->jobs);
    free(t->partner);
    free(t->unmixed);
    *t = (labelled_batch){0};
}
