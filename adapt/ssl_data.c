/* ssl_data.c: see ssl_data.h. */
#include "adapt/ssl_data.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "model/device_cuda.h"

static size_t to_patches(int size, int patch)
{
    int n = (size + patch / 2) / patch;
    return (size_t)(n < 1 ? 1 : n) * (size_t)patch;
}

/* Sides of the crops: as given, else as the model will see frames, and DINOv2's 98 of 224 of that: three patches at
 * least, where the global crops have more, since two tell little of a picture. */
static void crop_sizes(ssl_data *s, const ssl_options *o, int patch)
{
    int global = o->global_size ? o->global_size : o->view.size;
    s->global_size = to_patches(global, patch);
    s->local_size = to_patches(o->local_size ? o->local_size : (global * 98 + 112) / 224, patch);
    size_t three = 3 * (size_t)patch;
    if (!o->local_size && s->local_size < three && s->global_size > three) s->local_size = three;
}

enum { AT_ONCE = 8 }; /* squares made at once */

static size_t square_bytes(const ssl_data *s)
{
    return 3 * s->crop_from * s->crop_from;
}

/* With what a block's alignment takes. */
static size_t square_place(const ssl_data *s)
{
    return arena_round(square_bytes(s));
}

static err_code open_squares(ssl_data *s, int side, err *e)
{
    size_t N = (size_t)side;
    if (!side) return ERR_OK;
    if (side < 16 || side > 4096) FAIL(e, USAGE, "adapt: crops from squares of %d pixels", side);
    s->crop_from = N;
    s->a_square = (frame_info){.rows = side, .columns = side, .channels = 3, .type = PIXEL_U8};
    s->wide = malloc(AT_ONCE * 3 * N * N * sizeof *s->wide);
    s->squares = malloc(s->batch * 3 * N * N); /* later: of crops for the head's initialisation */
    s->which = malloc(s->batch * sizeof *s->which);
    s->to = malloc(s->batch * sizeof *s->to);
    if (!s->squares || !s->wide || !s->which || !s->to)
        FAIL(e, NOMEM, "adapt: no memory for %zu squares of %d pixels", s->batch, side);
    return ERR_OK;
}

err_code ssl_data_open(ssl_data *s, const vit *m, const cohort *c, const ssl_options *o, err *e)
{
    const vit_config *k = vit_get_config(m);
    *s = (ssl_data){.c = c, .o = o, .order_epoch = UINT64_MAX};
    if (o->accumulate < 1) FAIL(e, USAGE, "adapt: %d micro-batches an update", o->accumulate);
    int side = o->global_size ? o->global_size : o->view.size;
    if (o->batch < 1 || o->locals < 0 || side < k->patch)
        FAIL(e, USAGE, "adapt: batch %d, %d local crops, %d pixels", o->batch, o->locals, side);
    if (o->mask_ratio[0] > o->mask_ratio[1])
        FAIL(e, USAGE, "adapt: mask ratios from %g to %g", (double)o->mask_ratio[0], (double)o->mask_ratio[1]);
    if (o->batch > SSL_MASK_CROPS / 2) FAIL(e, LIMIT, "adapt: a batch of %d; at most %d", o->batch, SSL_MASK_CROPS / 2);
    s->frames = malloc((c->n_frames + 1) * sizeof *s->frames);
    s->order = malloc((c->n_frames + 1) * sizeof *s->order);
    if (!s->frames || !s->order) FAIL(e, NOMEM, "adapt: no memory for %zu frames", c->n_frames);
    for (size_t i = 0; i < c->n_frames; i++)
        if (c->part[i] == SPLIT_TRAIN || c->part[i] == SPLIT_NONE) s->frames[s->n++] = (uint32_t)i;
    if (s->n < 2) FAIL(e, EMPTY, "adapt: %zu frames of training patients; at least 2 are needed", s->n);
    s->batch = (size_t)o->batch < s->n ? (size_t)o->batch : s->n;
    s->locals = (size_t)o->locals;
    crop_sizes(s, o, k->patch);
    s->accumulate = (size_t)o->accumulate < s->n / s->batch ? (size_t)o->accumulate : s->n / s->batch;
    s->steps_per_epoch = s->n / (s->batch * s->accumulate);
    s->norm.window = o->view.window;
    memcpy(s->norm.mean, k->mean, sizeof s->norm.mean);
    memcpy(s->norm.std, k->std, sizeof s->norm.std);
    TRY(open_squares(s, o->crop_from, e));
    s->later = device_samples(vit_device(m));
    s->load =
        (crop_load){s->batch * (2 + s->locals), s->batch * (s->squares ? square_place(s) : CROP_LOAD_FRAME), NULL};
    int threads = pool_processors();
    if (threads > 4) { /* beside the compute threads: a share of the processors prepares the next step */
        s->threads = pool_new(threads / 4);
        if (!s->threads) FAIL(e, NOMEM, "adapt: no threads for the data");
    }
    s->jobs = calloc(s->batch * (2 + s->locals), sizeof *s->jobs);
    if (!s->jobs) FAIL(e, NOMEM, "adapt: no memory for a batch");
    return ERR_OK;
}

void ssl_data_close(ssl_data *s)
{
    pool_free(s->threads);
    free(s->frames);
    free(s->order);
    free(s->jobs);
    free(s->squares);
    free(s->wide);
    free(s->which);
    free(s->to);
    frame_cache_close(&s->cache);
    *s = (ssl_data){0};
}

double ssl_data_epochs(const ssl_data *s)
{
    enum { EPOCHS = 8, UPDATES = 350 };
    uint64_t n = (UPDATES + s->steps_per_epoch - 1) / s->steps_per_epoch;
    return n < EPOCHS ? EPOCHS : (double)n;
}

size_t ssl_data_floats(const ssl_data *s)
{
    return s->batch * 3 * (2 * s->global_size * s->global_size + s->locals * s->local_size * s->local_size);
}

size_t ssl_data_carried(const ssl_data *s)
{
    return s->later ? crop_load_floats(&s->load) : ssl_data_floats(s);
}

void ssl_data_view(const ssl_data *s, const float *carried, ssl_step_in *in, ssl_step_crops *crops)
{
    in->globals = carried;
    in->locals = carried + 2 * s->batch * 3 * s->global_size * s->global_size;
    in->crops = NULL;
    if (!s->later) return;
    *crops = (ssl_step_crops){crop_load_of(&s->load, carried), &s->norm};
    in->crops = crops;
}

size_t ssl_data_bytes(const ssl_data *s)
{
    return 3 * s->crop_from * s->crop_from * (s->batch + AT_ONCE * sizeof *s->wide);
}

/* planar (3, n) of 0..1 -> (n, 3) */
static void to_bytes(uint8_t *out, const float *in, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < 3; k++) out[3 * i + k] = (uint8_t)(in[k * n + i] * 255 + 0.5f);
}

/* Frames which[i], windowed and squeezed into squares to[i], as an 8-bit pipeline has them. */
static err_code make_squares(ssl_data *s, size_t count, err *e)
{
    size_t n = s->crop_from * s->crop_from;
    const sampler_norm plain = {.window = s->norm.window, .std = {1, 1, 1}};
    sample_job jobs[AT_ONCE];
    for (size_t b = 0; b < count; b += AT_ONCE) {
        size_t m = count - b < AT_ONCE ? count - b : AT_ONCE;
        for (size_t i = 0; i < m; i++) {
            size_t index = s->which[b + i];
            jobs[i] = (sample_job){.frame = &s->c->frames[index],
                                   .pixels = cohort_pixels(s->c, index),
                                   .crop = sampler_whole(&s->c->frames[index], false, 1),
                                   .size = (int)s->crop_from,
                                   .out = s->wide + 3 * n * i};
        }
        if (sampler_run(s->threads, &plain, jobs, m)) FAIL(e, NOMEM, "adapt: no memory to prepare a batch");
        for (size_t i = 0; i < m; i++) to_bytes(s->to[b + i], s->wide + 3 * n * i, n);
    }
    return ERR_OK;
}

/* The frames of the micro-batch begin here in the epoch's order: a permutation; what does not fill a batch waits for
 * another. */
static size_t first_of(ssl_data *s, uint64_t micro)
{
    uint64_t an_epoch = s->steps_per_epoch * s->accumulate, epoch = micro / an_epoch;
    if (epoch != s->order_epoch) {
        rng r = rng_at(s->o->seed, RNG_ORDER, epoch, 0);
        memcpy(s->order, s->frames, s->n * sizeof *s->order);
        rng_shuffle(&r, s->order, s->n);
        s->order_epoch = epoch;
    }
    return (size_t)(micro % an_epoch) * s->batch;
}

/* Crop k of image b of the micro-batch: of frame `index`, or of a square of it, whose pixels lie as in `source`. */
static sample_job crop_of(const ssl_data *s, uint64_t micro, size_t b, size_t k, size_t index, const sample_job *source)
{
    const frame_info *f = &s->c->frames[index], *from = s->squares ? &s->a_square : f;
    frame_info shape = *f; /* what is done to a frame goes by its modality and colours */
    shape.rows = from->rows;
    shape.columns = from->columns;
    rng r = rng_at(s->o->seed, RNG_AUGMENT, micro, (uint32_t)(b * (2 + s->locals) + k));
    crop_role role = k == 0 ? CROP_GLOBAL1 : k == 1 ? CROP_GLOBAL2 : CROP_LOCAL;
    return (sample_job){.frame = from,
                        .pixels = source->pixels,
                        .resident = source->resident,
                        .crop = augment_ssl(&s->o->augment, &shape, role, &r),
                        .size = (int)(k < 2 ? s->global_size : s->local_size)};
}

err_code ssl_data_crops(ssl_data *s, uint64_t micro, float *out, err *e)
{
    size_t first = first_of(s, micro), global = 3 * s->global_size * s->global_size;
    size_t local = 3 * s->local_size * s->local_size, n = 0;
    for (size_t b = 0; s->squares && b < s->batch; b++) {
        s->which[b] = s->order[first + b];
        s->to[b] = s->squares + square_bytes(s) * b;
    }
    if (s->squares) TRY(make_squares(s, s->batch, e));
    for (size_t b = 0; b < s->batch; b++) {
        size_t index = s->order[first + b];
        const sample_job source = {.pixels = s->squares ? s->to[b] : cohort_pixels(s->c, index)};
        for (size_t k = 0; k < 2 + s->locals; k++) {
            s->jobs[n] = crop_of(s, micro, b, k, index, &source);
            s->jobs[n++].out = k < 2 ? out + (k * s->batch + b) * global
                                     : out + 2 * s->batch * global + ((k - 2) * s->batch + b) * local;
        }
    }
    if (sampler_run(s->threads, &s->norm, s->jobs, n)) FAIL(e, NOMEM, "adapt: no memory to prepare a batch");
    return ERR_OK;
}

/* What the device makes the crops of. */
static err_code carry(ssl_data *s, uint64_t micro, float *out, err *e)
{
    size_t first = first_of(s, micro), made = 0;
    sample_job *jobs = crop_load_begin(&s->load, out);
    for (size_t b = 0; b < s->batch; b++) {
        size_t index = s->order[first + b];
        sample_job source = {0};
        if (s->squares) { /* there is room for all of them */
            uint8_t *room = crop_load_room(&s->load, out, index, square_bytes(s), &source);
            if (room) s->which[made] = (uint32_t)index, s->to[made++] = room;
        } else {
            crop_load_frame(&s->load, out, &s->c->frames[index], index, cohort_pixels(s->c, index), &source);
        }
        for (size_t k = 0; k < 2 + s->locals; k++) jobs[k * s->batch + b] = crop_of(s, micro, b, k, index, &source);
    }
    return s->squares ? make_squares(s, made, e) : ERR_OK;
}

err_code ssl_data_keep(ssl_data *s, device *d, const uint32_t *more, size_t n_more, size_t room, err *e)
{
    size_t each = s->squares ? square_bytes(s) : 0, n = s->n;
    uint32_t *all = malloc((n + n_more) * sizeof *all);
    if (!all) FAIL(e, NOMEM, "adapt: no memory for %zu frames", n);
    memcpy(all, s->frames, n * sizeof *all);
    for (size_t i = 0; i < n_more && !each; i++) all[n++] = more[i];
    err_code rc = frame_cache_open(&s->cache, d, s->c->frames, s->c->n_frames, all, n, each, room, e);
    free(all);
    TRY(rc);
    if (s->cache.memory) s->load.cache = &s->cache;
    return ERR_OK;
}

err_code ssl_data_fill(void *ssl_data_, uint64_t micro, float *out, err *e)
{
    ssl_data *s = ssl_data_;
    return s->later ? carry(s, micro, out, e) : ssl_data_crops(s, micro, out, e);
}

/* Prototypes for n training frames: a power of two, no more than frames but at least 256, at most 8192. */
static size_t prototypes_for(size_t n)
{
    size_t k = 256;
    while (k < 8192 && 2 * k <= n) k *= 2;
    return k;
}

ssl_step_config ssl_data_step_config(const ssl_data *data, const vit *m, const ssl_options *o, ssl_mask *mask)
{
    size_t grid = data->global_size / (size_t)vit_get_config(m)->patch;
    *mask = (ssl_mask){2 * data->batch, grid, grid, o->mask_probability, o->mask_ratio[0], o->mask_ratio[1]};
    return (ssl_step_config){.batch = data->batch,
                             .locals = data->locals,
                             .global_size = data->global_size,
                             .local_size = data->local_size,
                             .recompute = o->recompute,
                             .frame_bytes = data->later ? data->load.frame_bytes : 0,
                             .masked_most = o->ibot > 0 ? ssl_mask_most(mask) : 0,
                             .accumulate = data->accumulate,
                             .head = {(size_t)vit_get_config(m)->dim, (size_t)o->hidden, (size_t)o->bottleneck,
                                      o->prototypes ? (size_t)o->prototypes : prototypes_for(data->n)},
                             .separate_heads = o->separate_heads,
                             .centering = o->sinkhorn ? SSL_SINKHORN : SSL_SOFTMAX,
                             .dino = o->dino,
                             .ibot = o->ibot,
                             .koleo = o->koleo,
                             .student_temp = o->student_temp,
                             .center_momentum = o->center_momentum,
                             .clip = o->clip,
                             .drop_path = o->drop_path,
                             .seed = o->seed};
}
