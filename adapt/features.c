/* features.c: batches are sampled in the loader's thread while the device computes the batch before. Every batch has
 * the same size, so that one plan serves all: in the last one the places left over hold the batch's first frame again.
 */
#include "adapt/features.h"

#include <stdlib.h>
#include <string.h>

#include "base/stop.h"
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
} source;

static err_code fill(void *ctx, uint64_t step, float *out, err *e)
{
    source *s = ctx;
    size_t first = (size_t)step * s->batch;
    (void)e;
    for (size_t i = 0; i < s->batch; i++) {
        uint32_t frame = s->index[first + i < s->n ? first + i : first];
        const frame_info *f = &s->c->frames[frame];
        s->jobs[i] = (sample_job){.frame = f,
                                  .pixels = cohort_pixels(s->c, frame),
                                  .crop = sampler_whole(f, true, s->fraction),
                                  .size = s->size,
                                  .out = out + i * s->image_floats};
    }
    sampler_run(s->threads, &s->norm, s->jobs, s->batch);
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
    vit_want_classes(m, &b->pass);
    return device_sync(d, e);
}

static void buffers_close(buffers *b, device *d)
{
    enum { BUFFERS = 3 };
    dv *all[BUFFERS] = {b->arena_block, b->pixels, b->token_f32};
    for (size_t i = 0; i < BUFFERS; i++)
        if (all[i]) d->op->free(d, all[i]);
    vit_pass_fini(&b->pass);
}

static size_t batch_of(const view_options *v, size_t n)
{
    size_t batch = v->batch > 0 ? (size_t)v->batch : FEATURES_BATCH;
    return batch > n ? n : batch;
}

static void run_batch(vit *m, vit_who who, buffers *b, const float *pixels)
{
    device *d = vit_device(m);
    size_t C = (size_t)vit_get_config(m)->dim, B = b->pass.B;
    d->op->upload(d, b->pixels, pixels, B * 3 * b->pass.height * b->pass.width * sizeof *pixels);
    vit_patches(m, who, &b->pass, b->pixels);
    vit_fwd(m, who, &b->pass, b->pass.patches, NULL);
    d->op->to_f32(d, b->token_f32, b->pass.out, B * C);
}

err_code features_measure(vit *m, size_t n, const view_options *v, size_t *host, err *e)
{
    buffers b = {0};
    size_t batch = batch_of(v, n);
    err_code rc = buffers_open(&b, m, batch, v->size, e);
    if (!rc) run_batch(m, VIT_STUDENT, &b, NULL);
    buffers_close(&b, vit_device(m));
    *host = 2 * batch * 3 * (size_t)v->size * (size_t)v->size * sizeof(float); /* loader.c's two */
    return rc;
}

err_code features_extract(vit *m, vit_who who, const cohort *c, const uint32_t *index, size_t n, const view_options *v,
                          float *out, err *e)
{
    device *d = vit_device(m);
    size_t C = (size_t)vit_get_config(m)->dim, batch = batch_of(v, n), floats;
    if (!n) return ERR_OK;
    if (v->size < 1 || v->size > 4096 || !(v->share > 0 && v->share <= 4))
        FAIL(e, USAGE, "features: images of %d pixels that show %g of each side", v->size, (double)v->share);
    source s = {.c = c, .index = index, .n = n, .batch = batch, .size = v->size};
    s.image_floats = 3 * (size_t)v->size * (size_t)v->size;
    s.fraction = v->share;
    s.norm = features_norm(m, v);
    if (!size_mul(batch, s.image_floats, &floats)) FAIL(e, LIMIT, "features: a batch of %zu images", batch);
    buffers b = {0};
    loader *l = NULL;
    uint64_t steps = (n + batch - 1) / batch;
    err_code rc = ERR_OK;
    s.jobs = malloc(batch * sizeof *s.jobs);
    s.threads = pool_new(0);
    if (!s.jobs || !s.threads) FAIL_DONE(rc, e, NOMEM, "features: no memory or threads");
    TRY_DONE(rc, buffers_open(&b, m, batch, v->size, e));
    TRY_DONE(rc, loader_open(&l, fill, &s, floats, 0, steps - 1, e));
    for (uint64_t step = 0; step < steps; step++) {
        const float *pixels;
        size_t first = (size_t)step * batch, here = n - first < batch ? n - first : batch;
        TRY_DONE(rc, stop_check(e));
        TRY_DONE(rc, loader_take(l, step, &pixels, e));
        run_batch(m, who, &b, pixels);
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
