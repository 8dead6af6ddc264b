/* plan.c: see plan.h. A class's bytes are what the device holds more after the call that makes them. */
#include "adapt/plan.h"

#include <stdlib.h>
#include <string.h>

#include "adapt/ssl_run.h"
#include "base/headroom.h"
#include "model/device_cuda.h"
#include "model/op_count.h"

const char *const plan_class_name[PLAN_CLASSES] = {
    "weights",     "packed weights", "trainable", "gradients",  "optimizer", "teacher", "head",
    "activations", "workspace",      "batch",     "evaluation", "pinned",    "host"};
const char *const plan_flop_name[PLAN_FLOPS] = {"forward", "dX", "dW", "teacher", "head", "recomputed"};

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t masters_bytes(const param_set *ps, size_t from, size_t to)
{
    size_t n = 0;
    for (size_t i = from; i < to; i++) n += ps->p[i].rows * ps->p[i].cols * sizeof(float);
    return n;
}

/* The backbone's part of what trains; `before` and now: bytes on the device. */
static void count_trained(plan *p, const device *d, const param_set *ps, bool teacher, size_t before)
{
    size_t masters = masters_bytes(ps, 0, ps->n), all = d->bytes - before;
    p->trainable = masters / sizeof(float);
    p->bytes[PLAN_TRAINABLE] = p->bytes[PLAN_GRADIENT] = masters;
    p->bytes[PLAN_MOMENTS] = 2 * masters;
    if (teacher)
        p->bytes[PLAN_TEACHER] = all - 4 * masters;
    else
        p->bytes[PLAN_TRAINABLE] += all - 4 * masters; /* rows' indices */
}

/* FLOP of a kind since the last call with that device. */
static double flop_of(device *d, int kind)
{
    double f = d->flop[kind];
    d->flop[kind] = 0;
    return f;
}

static void no_flop(device *d)
{
    memset(d->flop, 0, sizeof d->flop);
}

/* Bytes of a pass as the step plans it. */
static err_code pass_bytes(size_t *sum, const vit *m, const vit_pass *a, err *e)
{
    if (!a->B) return ERR_OK;
    vit_pass again = {.exact = a->exact, .again = a->again, .wanted_most = a->wanted_most, .lender = a->lender};
    arena dry = {0};
    err_code rc = vit_pass_plan(&again, &dry, m, a->B, a->height, a->width, a->keep, e);
    vit_pass_fini(&again);
    *sum += dry.used;
    return rc;
}

/* Operations of a step; the backbone's passes once more on their own tell its part. */
static err_code count_step(plan *p, ssl_step *s, const ssl_data *data, const uint8_t *mask, err *e)
{
    device *d = s->d;
    ssl_step_out out;
    ssl_step_update_in u = {.momentum = 1};
    no_flop(d);
    TRY(ssl_step_want(s, mask, e));
    if (s->patch_trained) vit_patches(s->m, VIT_TEACHER, &s->teacher, s->globals);
    vit_fwd(s->m, VIT_TEACHER, &s->teacher, s->teacher.patches, NULL);
    p->flop[PLAN_TEACHER_FORWARD] = flop_of(d, FLOP_FORWARD);
    vit_pass *student[] = {&s->student, &s->local};
    for (int i = 0; i < 2; i++) {
        if (!student[i]->B) continue;
        vit_patches(s->m, VIT_STUDENT, student[i], s->globals);
        vit_fwd(s->m, VIT_STUDENT, student[i], student[i]->patches, NULL);
    }
    p->flop[PLAN_FORWARD] = flop_of(d, FLOP_FORWARD);
    for (int i = 0; i < 2; i++)
        if (student[i]->B) vit_bwd(s->m, student[i], s->globals, NULL);
    p->flop[PLAN_DX] = flop_of(d, FLOP_DX);
    p->flop[PLAN_DW] = flop_of(d, FLOP_DW);
    p->flop[PLAN_AGAIN] = flop_of(d, FLOP_FORWARD);
    no_flop(d);
    size_t packed = d->bytes_packed;
    const crop_frame all = {.bytes = s->config.frame_bytes};
    const ssl_step_crops crops = {{data->jobs, data->load.crops, &all, 1, NULL, all.bytes, NULL}, &data->norm};
    const ssl_step_in in = {.mask = mask, .teacher_temp = 1, .crops = data->later ? &crops : NULL};
    for (int late = 0; late <= SSL_STEP_LATE; late++) { /* as many as there may be at once: what is pinned */
        for (size_t i = 0; i < data->accumulate; i++) {
            no_flop(d);
            TRY(ssl_step_gradients(s, &in, NULL, e));
        }
        TRY(ssl_step_ask(s, &u, e));
    }
    while (ssl_step_unread(s)) TRY(ssl_step_read(s, &out, e));
    p->flop[PLAN_HEAD_ALL] = d->flop[FLOP_FORWARD] + d->flop[FLOP_DX] + d->flop[FLOP_DW] - p->flop[PLAN_FORWARD] -
                             p->flop[PLAN_DX] - p->flop[PLAN_DW] - p->flop[PLAN_TEACHER_FORWARD] - p->flop[PLAN_AGAIN];
    p->bytes[PLAN_HEAD] += d->bytes_packed - packed;
    p->bytes[PLAN_PACKED] = packed;
    return ERR_OK;
}

static err_code open_step(plan *p, vit *m, param_set *ps, const ssl_options *o, const ssl_data *data, err *e)
{
    device *d = vit_device(m);
    ssl_mask mask;
    ssl_step_config k = ssl_data_step_config(data, m, o, &mask);
    ssl_step s;
    size_t before = d->bytes, patches = mask.rows * mask.columns, host = 0;
    size_t looked = data->n < SSL_EVAL_FRAMES ? data->n : SSL_EVAL_FRAMES; /* frames of a part in an evaluation */
    uint8_t *bits = calloc(mask.crops, patches);                           /* the most that can be masked */
    float *tokens = malloc(mask.crops * (patches + 128) * k.head.in * sizeof *tokens); /* never touched */
    err_code rc;
    if (!bits || !tokens) {
        rc = err_set(e, ERR_NOMEM, __FILE__, __LINE__, "plan: no memory");
    } else {
        memset(bits, 1, k.masked_most);
        rc = ssl_step_open(&s, m, ps, &k, e);
        vit_pass *passes[] = {&s.student, &s.teacher, &s.local};
        for (int i = 0; i < 3 && !rc; i++) rc = pass_bytes(&p->bytes[PLAN_ACTIVATIONS], m, passes[i], e);
        p->bytes[PLAN_WORK] = d->work_bytes;
        p->bytes[PLAN_BATCH] = ssl_data_floats(data) * sizeof(float) + mask.crops * patches + k.frame_bytes;
        p->bytes[PLAN_HEAD] =
            d->bytes - before - p->bytes[PLAN_ACTIVATIONS] - p->bytes[PLAN_WORK] - p->bytes[PLAN_BATCH];
        if (!rc) rc = count_step(p, &s, data, k.masked_most ? bits : NULL, e);
        size_t held = d->bytes;
        if (!rc) rc = features_measure(m, looked, &o->view, &host, e);
        if (!rc && o->data_init) rc = ssl_step_tokens(&s, NULL, tokens, e);
        p->bytes[PLAN_EVALUATION] = d->bytes_most - held;
        host += 2 * ssl_data_carried(data) * sizeof(float); /* the loader's, while training waits for an evaluation */
        if (!rc && o->data_init) host = larger(host, ssl_init_bytes(data, &s)); /* before the first step */
        p->bytes[PLAN_HOST] = host + ssl_data_bytes(data) + ssl_eval_bytes(m, looked);
        ssl_step_close(&s);
    }
    free(bits);
    free(tokens);
    return rc;
}

/* device: the most at once; the sum of the classes is that and the host's. What the device took for itself was there
 * before the weights. */
static void add_up(plan *p, const device *d)
{
    p->bytes[PLAN_WEIGHTS] -= op_count_fixed(d);
    p->bytes[PLAN_WORK] += op_count_fixed(d);
    p->bytes[PLAN_PINNED] = op_count_pinned(d);
    p->device = d->bytes_most;
    p->host = p->bytes[PLAN_HOST] + p->bytes[PLAN_PINNED];
    p->total = p->device + p->host;
}

err_code plan_adapt(plan *p, vit *m, const ssl_options *o, size_t frames, err *e)
{
    device *d = vit_device(m);
    split_part *part = malloc((frames + 1) * sizeof *part);
    cohort c = {.n_frames = frames, .part = part};
    param_set ps = {0};
    ssl_data data = {0};
    peft_spec peft = o->peft;
    err_code rc;
    *p = (plan){.bytes[PLAN_WEIGHTS] = d->bytes};
    peft.teacher = true;
    if (!part) FAIL(e, NOMEM, "plan: no memory for %zu frames", frames);
    for (size_t i = 0; i < frames; i++) part[i] = SPLIT_TRAIN;
    TRY_DONE(rc, ssl_data_open(&data, m, &c, o, e));
    TRY_DONE(rc, vit_train(m, &peft, &ps, e));
    count_trained(p, d, &ps, true, p->bytes[PLAN_WEIGHTS]);
    p->images = data.batch;
    p->locals = data.locals;
    p->global_size = data.global_size;
    p->local_size = data.local_size;
    rc = open_step(p, m, &ps, o, &data, e);
    add_up(p, d);
done:
    vit_untrain(m);
    param_set_free(d, &ps);
    ssl_data_close(&data);
    free(part);
    return rc;
}

err_code plan_finetune(plan *p, vit *m, const peft_spec *peft, const finetune_options *o, int classes, err *e)
{
    device *d = vit_device(m);
    param_set ps = {0};
    size_t host = 0;
    *p = (plan){.bytes[PLAN_WEIGHTS] = d->bytes, .images = (size_t)o->batch};
    err_code rc;
    TRY_DONE(rc, vit_train(m, peft, &ps, e));
    count_trained(p, d, &ps, false, p->bytes[PLAN_WEIGHTS]);
    no_flop(d);
    size_t trained = d->bytes;
    if (o->method != METHOD_LINEAR) {
        finetune_measured f;
        TRY_DONE(rc, finetune_measure(m, &ps, o, classes, &f, e));
        p->bytes[PLAN_TRAINABLE] += f.best;
        p->bytes[PLAN_HEAD] = f.head;
        p->bytes[PLAN_BATCH] = f.batch;
        p->bytes[PLAN_PACKED] = f.packed;
        p->bytes[PLAN_WORK] = d->work_bytes;
        host = f.host;
        p->bytes[PLAN_ACTIVATIONS] = f.held - trained - f.best - f.head - f.batch - f.packed - p->bytes[PLAN_WORK];
        for (int i = 0; i < FLOP_KINDS; i++) p->flop[PLAN_FORWARD + i] = flop_of(d, i);
        p->flop[PLAN_FORWARD] -= p->flop[PLAN_AGAIN] = f.again;
        p->bytes[PLAN_EVALUATION] = d->bytes_most - f.held;
    }
    if (o->method == METHOD_LINEAR) {
        TRY_DONE(rc, features_measure(m, FEATURES_BATCH, &o->view, &host, e));
        p->flop[PLAN_FORWARD] = flop_of(d, FLOP_FORWARD);
        p->bytes[PLAN_EVALUATION] = d->bytes_most - trained;
    }
    p->bytes[PLAN_HOST] = host;
    add_up(p, d);
done:
    vit_untrain(m);
    param_set_free(d, &ps);
    return rc;
}

err_code plan_predict(plan *p, vit *m, const peft_spec *peft, const view_options *v, err *e)
{
    device *d = vit_device(m);
    param_set ps = {.weights_only = true};
    *p = (plan){.bytes[PLAN_WEIGHTS] = d->bytes, .images = v->batch > 0 ? (size_t)v->batch : FEATURES_BATCH};
    err_code rc;
    TRY_DONE(rc, vit_train(m, peft, &ps, e)); /* as bundle_open does */
    p->trainable = masters_bytes(&ps, 0, ps.n) / sizeof(float);
    TRY_DONE(rc, vit_merge(m, false, e));
    param_set_free(d, &ps);
    size_t held = p->bytes[PLAN_WEIGHTS] = d->bytes;
    no_flop(d);
    TRY_DONE(rc, features_measure(m, p->images, v, &p->bytes[PLAN_HOST], e));
    p->flop[PLAN_FORWARD] = flop_of(d, FLOP_FORWARD);
    p->bytes[PLAN_PACKED] = d->bytes_packed;
    p->bytes[PLAN_ACTIVATIONS] = d->bytes_most - held - d->bytes_packed;
    add_up(p, d);
done:
    vit_untrain(m);
    param_set_free(d, &ps);
    return rc;
}

err_code plan_shape(vit **m, device *d, const vit *of, err *e)
{
    const device *real = vit_device(of);
    vit_source source = {.random = *vit_get_config(of)};
    op_count_kind kind = device_is_cuda(real) ? OP_COUNT_CUDA : OP_COUNT_CPU;
    TRY(op_count_open(d, real->threads, real->ct, kind, e));
    err_code rc = vit_open(m, d, &source, e);
    if (rc) device_close(d);
    return rc;
}

/* The largest batch whose plan a GPU's room holds, where all that is not an image's stays as it is. */
static size_t fitting(const plan *p, size_t room)
{
    size_t each = (p->bytes[PLAN_ACTIVATIONS] + p->bytes[PLAN_BATCH]) / (p->images ? p->images : 1);
    size_t rest = p->device - each * p->images;
    return each && room > rest ? (room - rest) / each : 0;
}

static err_code fits_gpu(const plan *p, const device *d, const char *stage, err *e)
{
    size_t room = device_cuda_room(d), images = fitting(p, room);
    if (p->device <= room) return ERR_OK;
    if (images)
        FAIL(e, NOMEM,
             "%s needs %zu MiB of the GPU's memory, %zu are left (radapt plan): about %zu images at once would fit",
             stage, p->device >> 20, room >> 20, images);
    FAIL(e, NOMEM,
         "%s needs %zu MiB of the GPU's memory, %zu are left (radapt plan): --recompute block, a smaller model", stage,
         p->device >> 20, room >> 20);
}

err_code plan_fits(const plan *p, const device *d, const char *stage, err *e)
{
    bool gpu = device_is_cuda(d);
    size_t all = gpu ? p->host : p->total, held = gpu ? 0 : d->bytes;
    if (gpu) TRY(fits_gpu(p, d, stage, e));
    return plan_room(all - (held < all ? held : all), d->threads, stage, PLAN_ADVICE, e);
}

err_code plan_room(size_t bytes, int threads, const char *what, const char *advice, err *e)
{
    /* Of a limited address space threads take more than memory: a stack and a heap each. */
    enum { SPACE = 256 << 20, SPACE_THREAD = 16 << 20 };
    size_t need = bytes + PLAN_CONSTANT;
    size_t space = headroom_address_space(), apart = SPACE + (size_t)threads * SPACE_THREAD;
    headroom h = headroom_get();
    if (space != SIZE_MAX && need + apart > space) {
        need += apart;
        h = (headroom){space, "the address space (ulimit -v)"};
    }
    if (need > h.bytes)
        FAIL(e, NOMEM, "%s needs %zu MiB more, %zu MiB are left of %s%s", what, need >> 20, h.bytes >> 20, h.of,
             advice);
    return ERR_OK;
}

size_t plan_left(const plan *p, const device *d)
{
    size_t room = device_is_cuda(d) ? device_cuda_room(d) : 0;
    return room > p->device + PLAN_CUDA_SPARE ? room - p->device - PLAN_CUDA_SPARE : 0;
}
