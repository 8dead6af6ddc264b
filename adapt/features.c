/* features.c: batches are sampled in the loader's thread while the device computes the batch before, or by the device,
 * of frames that the loader has read. Every batch has the same size, so that one plan serves all: in the last one the
 * places left over hold the batch's first frame again.
 */
#include "adapt/features.h"

#include <stdlib.h>
#include <string.h>

#include "adapt/crop_load.h"
#include "base/log.h"
#include "base/stop.h"
#include "model/device_cuda.h"
#include "preprocess/loader.h"

typedef struct {
    const cohort *c;
    const uint32_t *index;
    size_t n, batch, image_floats;
    int size;
    float fraction;
    sampler_norm norm;
    sample_job *jobs; /* (batch) */
    pool *threads;
    const crop_load *load; /* NULL: the images are made here */
} source;

static err_code fill(void *ctx, uint64_t step, float *out, err *e)
{
    source *s = ctx;
    size_t first = (size_t)step * s->batch;
    sample_job *jobs = s->load ? crop_load_begin(s->load, out) : s->jobs;
    for (size_t i = 0; i < s->batch; i++) {
        uint32_t frame = s->index[first + i < s->n ? first + i : first];
        const frame_info *f = &s->c->frames[frame];
        bool again = s->load && i && first + i >= s->n; /* a place left over: the first image once more */
        const void *pixels = again ? jobs[0].pixels : cohort_pixels(s->c, frame);
        jobs[i] = (sample_job){.frame = f,
                               .pixels = pixels,
                               .resident = again ? jobs[0].resident : NULL,
                               .crop = sampler_whole(f, true, s->fraction),
                               .size = s->size,
                               .out = s->load ? NULL : out + i * s->image_floats};
        if (s->load && !again) crop_load_frame(s->load, out, f, frame, pixels, &jobs[i]);
    }
    if (!s->load && sampler_run(s->threads, &s->norm, jobs, s->batch))
        FAIL(e, NOMEM, "features: no memory for a batch");
    return ERR_OK;
}

sampler_norm features_norm(const vit *m, const view_options *v)
{
    const vit_config *k = vit_get_config(m);
    sampler_norm norm = {.window = v->window};
    memcpy(norm.mean, k->mean, sizeof norm.mean);
    memcpy(norm.std, k->std, sizeof norm.std);
    return norm;
}

/* What one extraction holds on the device. */
typedef struct {
    vit_pass pass;
    dv *arena_block, *pixels, *token_f32;
    crop_load load; /* no crops: the images come from the host */
    dv *frames;
    sample_job *jobs; /* (load.crops) */
} buffers;

static err_code buffers_open(buffers *b, vit *m, size_t batch, int size, err *e)
{
    device *d = vit_device(m);
    size_t C = (size_t)vit_get_config(m)->dim, S = (size_t)size;
    arena dry = {0};
    b->pass.wanted_most = batch;
    TRY(vit_pass_plan(&b->pass, &dry, m, batch, S, S, VIT_INFER, e));
    if (arena_failed(&dry)) FAIL(e, LIMIT, "features: a batch of %zu images of %d pixels is too large", batch, size);
    TRY(d->op->alloc(d, dry.used, &b->arena_block, e));
    arena real;
    arena_init(&real, b->arena_block, dry.used);
    TRY(vit_pass_plan(&b->pass, &real, m, batch, S, S, VIT_INFER, e));
    TRY(device_reserve(d, vit_pass_work_bytes(m, batch, S, S, VIT_INFER), e));
    TRY(d->op->alloc(d, batch * 3 * S * S * sizeof(float), &b->pixels, e));
    TRY(d->op->alloc(d, batch * C * sizeof(float), &b->token_f32, e));
    if (device_samples(d)) {
        b->load = (crop_load){batch, batch * (CROP_LOAD_FRAME / 2), NULL}; /* larger ones go up by themselves */
        b->jobs = malloc(batch * sizeof *b->jobs);
        if (!b->jobs) FAIL(e, NOMEM, "features: no memory for %zu images", batch);
        TRY(d->op->alloc(d, b->load.frame_bytes, &b->frames, e));
    }
    vit_want_classes(m, &b->pass);
    return device_sync(d, e);
}

static void buffers_close(buffers *b, device *d)
{
    enum { BUFFERS = 4 };
    dv *all[BUFFERS] = {b->arena_block, b->pixels, b->token_f32, b->frames};
    for (size_t i = 0; i < BUFFERS; i++)
        if (all[i]) d->op->free(d, all[i]);
    vit_pass_fini(&b->pass);
    free(b->jobs);
}

/* Of as many of *batch images as the device has memory for: but for rounding, what comes of an image does not depend on
 * how many there are. */
static err_code buffers_fitting(buffers *b, vit *m, size_t *batch, int size, err *e)
{
    for (;;) {
        err why = {0};
        err_code rc = buffers_open(b, m, *batch, size, &why);
        if (rc && (rc != ERR_NOMEM || *batch == 1 || vit_device(m)->sticky.code))
            return err_set(e, rc, why.file, why.line, "%s", why.msg);
        if (!rc) return ERR_OK;
        buffers_close(b, vit_device(m));
        *b = (buffers){0};
        *batch = (*batch + 1) / 2;
        log_event(LOG_INFO, "features.batch", "images", LOG_INT(*batch), "reason", LOG_STR(why.msg), NULL);
    }
}

static size_t batch_of(const view_options *v, size_t n)
{
    size_t batch = v->batch > 0 ? (size_t)v->batch : FEATURES_BATCH;
    return batch > n ? n : batch;
}

/* Floats that the loader brings for a batch. */
static size_t carried(const buffers *b)
{
    return b->load.crops ? crop_load_floats(&b->load) : b->pass.B * 3 * b->pass.height * b->pass.width;
}

static void run_batch(vit *m, vit_who who, buffers *b, const sampler_norm *norm, const float *batch)
{
    device *d = vit_device(m);
    size_t C = (size_t)vit_get_config(m)->dim, B = b->pass.B;
    crop_load_images(d, &b->load, batch, carried(b), b->frames, b->jobs, norm, b->pixels);
    vit_patches(m, who, &b->pass, b->pixels);
    vit_fwd(m, who, &b->pass, b->pass.patches, NULL);
    d->op->to_f32(d, b->token_f32, b->pass.out, B * C);
}

err_code features_measure(vit *m, size_t n, const view_options *v, size_t *host, err *e)
{
    buffers b = {0};
    size_t batch = batch_of(v, n);
    err_code rc = buffers_open(&b, m, batch, v->size, e);
    float *nothing = !rc && b.load.crops ? crop_load_full(&b.load) : NULL;
    if (!rc && b.load.crops && !nothing)
        rc = err_set(e, ERR_NOMEM, __FILE__, __LINE__, "features: no memory for %zu images", batch);
    if (!rc) run_batch(m, VIT_STUDENT, &b, &(sampler_norm){0}, nothing);
    if (!rc) *host = 2 * carried(&b) * sizeof(float); /* loader.c's two */
    free(nothing);
    buffers_close(&b, vit_device(m));
    return rc;
}

err_code features_extract(vit *m, vit_who who, const cohort *c, const uint32_t *index, size_t n, const view_options *v,
                          frame_cache *kept, float *out, err *e)
{
    device *d = vit_device(m);
    size_t C = (size_t)vit_get_config(m)->dim, batch = batch_of(v, n), images;
    if (!n) return ERR_OK;
    if (v->size < 1 || v->size > 4096 || !(v->share > 0 && v->share <= 4))
        FAIL(e, USAGE, "features: images of %d pixels that show %g of each side", v->size, (double)v->share);
    source s = {.c = c, .index = index, .n = n, .batch = batch, .size = v->size};
    s.image_floats = 3 * (size_t)v->size * (size_t)v->size;
    s.fraction = v->share;
    s.norm = features_norm(m, v);
    if (!size_mul(batch, s.image_floats, &images)) FAIL(e, LIMIT, "features: a batch of %zu images", batch);
    buffers b = {0};
    loader *l = NULL;
    uint64_t steps;
    err_code rc = ERR_OK;
    TRY_DONE(rc, buffers_fitting(&b, m, &batch, v->size, e));
    s.batch = batch;
    s.jobs = malloc(batch * sizeof *s.jobs);
    s.threads = pool_new(0);
    if (!s.jobs || !s.threads) FAIL_DONE(rc, e, NOMEM, "features: no memory or threads");
    steps = (n + batch - 1) / batch;
    b.load.cache = kept;
    if (b.load.crops) s.load = &b.load;
    TRY_DONE(rc, loader_open(&l, fill, &s, carried(&b), 0, steps - 1, e));
    for (uint64_t step = 0; step < steps; step++) {
        const float *pixels;
        size_t first = (size_t)step * batch, here = n - first < batch ? n - first : batch;
        TRY_DONE(rc, stop_check(e));
        TRY_DONE(rc, loader_take(l, step, &pixels, e));
        run_batch(m, who, &b, &s.norm, pixels);
        d->op->download(d, out + first * C, b.token_f32, here * C * sizeof(float));
        TRY_DONE(rc, device_sync(d, e));
        if (v->shown) progress_add(v->shown, here);
    }
done:
    loader_close(l);
    buffers_close(&b, d);
    pool_free(s.threads);
    free(s.jobs);
    return rc;
}
