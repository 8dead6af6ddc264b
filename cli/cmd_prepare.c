/* cmd_prepare.c: `radapt prepare`: instances found -> frames stored.
 *
 * A worker decodes one file and answers with all of its frames, each a frame_info followed by its pixels. The parent
 * collects them until a shard is full, seals the shard and only then enters its instances into the catalogue, all in
 * one transaction: a kill loses at most that shard's work. */
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/log.h"
#include "base/progress.h"
#include "base/stop.h"
#include "cli/cmd.h"
#include "cli/stage.h"
#include "io/decode_worker.h"
#include "preprocess/modality.h"

#define SHARD_BYTES ((size_t)256 << 20)
#define INSTANCE_BYTES_MAX ((size_t)1 << 30) /* of stored pixels, of one file */

typedef struct {
    size_t job, first, n; /* frames [first, first+n) of the shard being filled */
} waiting;

typedef struct {
    stage *s;
    frame_store *store;
    pending_instance *pending;
    int store_size;
    decode_effort effort; /* what a decoder may take */
    frame_info *frames;   /* (n_frames) of the shard being filled */
    size_t n_frames, frames_capacity;
    waiting *waiting; /* (n_waiting) instances of it */
    size_t n_waiting, waiting_capacity;
    prepare_result *result;
    progress bar;
} prepare;

static size_t pixels_of(const frame_info *f)
{
    return (size_t)f->rows * (size_t)f->columns * (size_t)f->channels * pixel_bytes(f->type);
}

/* --- in the worker
 * ------------------------------------------------------------------------------------------------------------- */

static err_code append_frame(const image_header *h, image *im, int frame, int store_size, decode_reply *reply, err *e)
{
    raw_frame raw;
    modality_frame m;
    TRY(image_frame(im, frame, &raw, e));
    TRY(modality_apply(h, &raw, frame + 1, store_size, &m, e));
    size_t want = sizeof m.info + m.bytes;
    err_code rc = ERR_OK;
    unsigned char *at = NULL;
    if (want > INSTANCE_BYTES_MAX || reply->bytes > INSTANCE_BYTES_MAX - want)
        rc = err_set(e, ERR_LIMIT, __FILE__, __LINE__, "more than 1 GiB of pixels in one file (frame %d of %d)",
                     frame + 1, h->frames);
    else if (!(at = decode_reply_take(reply, want)))
        rc = err_set(e, ERR_NOMEM, __FILE__, __LINE__, "no memory for frame %d of %d", frame + 1, h->frames);
    else {
        memcpy(at, &m.info, sizeof m.info);
        memcpy(at + sizeof m.info, m.pixels, m.bytes);
    }
    modality_frame_fini(&m);
    return rc;
}

static err_code in_worker(void *ctx, size_t job, decode_reply *reply, err *e)
{
    prepare *p = ctx;
    image_header h;
    image *im = NULL;
    err_code rc = image_read_header(p->pending[job].path, &h, e);
    if (!rc) rc = image_open(&im, p->pending[job].path, &h, e);
    for (int i = 0; !rc && i < h.frames; i++) rc = append_frame(&h, im, i, p->store_size, reply, e);
    if (im) image_close(im);
    image_header_fini(&h);
    return rc;
}

/* --- in the parent
 * ------------------------------------------------------------------------------------------------------------- */

static err_code flush_shard(prepare *p, err *e)
{
    if (!p->n_waiting) return ERR_OK;
    TRY(frame_store_seal(p->store, p->frames, p->n_frames, e));
    TRY(catalogue_begin(p->s->cat, e));
    for (size_t i = 0; i < p->n_waiting; i++) {
        const waiting *w = &p->waiting[i];
        TRY(catalogue_store(p->s->cat, p->pending[w->job].instance_key, p->frames + w->first, w->n, e));
    }
    TRY(catalogue_commit(p->s->cat, e));
    p->result->stored += p->n_waiting;
    p->result->frames += p->n_frames;
    p->n_waiting = p->n_frames = 0;
    return ERR_OK;
}

static err_code grow(void **items, size_t *capacity, size_t n, size_t size, err *e)
{
    if (n < *capacity) return ERR_OK;
    size_t want = *capacity ? 2 * *capacity : 256;
    void *p = realloc(*items, want * size);
    if (!p) FAIL(e, NOMEM, "prepare: no memory for %zu entries", want);
    *items = p;
    *capacity = want;
    return ERR_OK;
}

/* The frames of one answer. false: it is not what a worker writes (its decoder overwrote it). */
static bool check_answer(const unsigned char *data, size_t bytes, size_t *n)
{
    frame_info f;
    *n = 0;
    while (bytes) {
        if (bytes < sizeof f) return false;
        memcpy(&f, data, sizeof f);
        bool grey = f.channels == 1 && (f.type == PIXEL_I16 || f.type == PIXEL_U16);
        if (f.rows <= 0 || f.columns <= 0 || f.rows > 65535 || f.columns > 65535 || f.frame != (int)*n + 1 ||
            !(grey || (f.channels == 3 && f.type == PIXEL_U8)))
            return false;
        if (bytes - sizeof f < pixels_of(&f)) return false;
        data += sizeof f + pixels_of(&f);
        bytes -= sizeof f + pixels_of(&f);
        ++*n;
    }
    return *n > 0;
}

static err_code keep(prepare *p, size_t job, const unsigned char *data, size_t n, err *e)
{
    TRY(grow((void **)&p->waiting, &p->waiting_capacity, p->n_waiting, sizeof *p->waiting, e));
    size_t first = p->n_frames;
    for (size_t i = 0; i < n; i++) {
        TRY(grow((void **)&p->frames, &p->frames_capacity, p->n_frames, sizeof *p->frames, e));
        frame_info *f = &p->frames[p->n_frames];
        memcpy(f, data, sizeof *f);
        memcpy(f->instance_key, p->pending[job].instance_key, sizeof f->instance_key);
        TRY(frame_store_put(p->store, f, data + sizeof *f, e));
        p->n_frames++;
        data += sizeof *f + pixels_of(f);
    }
    p->waiting[p->n_waiting++] = (waiting){job, first, n};
    return frame_store_pending_bytes(p->store) > SHARD_BYTES ? flush_shard(p, e) : ERR_OK;
}

static err_code in_parent(void *ctx, size_t job, err_code code, const err *why, const unsigned char *data, size_t bytes,
                          err *e)
{
    prepare *p = ctx;
    size_t n = 0;
    progress_add(&p->bar, 1);
    if (!code && check_answer(data, bytes, &n)) return keep(p, job, data, n, e);
    const char *reason = code == ERR_LIMIT ? "too-large" : code ? err_name(code) : "no-frames";
    p->result->aside++;
    return catalogue_set_aside(p->s->cat, p->pending[job].instance_key, reason,
                               code ? why->msg : "the decoder gave no frames", &p->effort, e);
}

/* --memory-gib, or less where the system allows this process less. */
static decode_effort effort_of(const options *o)
{
    decode_effort d = {.memory_bytes = (uint64_t)(options_real(o, "prepare.memory-gib") * (1 << 30)),
                       .timeout_s = (int)options_int(o, "prepare.timeout")};
    struct rlimit have;
    if (!getrlimit(RLIMIT_AS, &have) && have.rlim_max != RLIM_INFINITY && have.rlim_max < d.memory_bytes)
        d.memory_bytes = have.rlim_max;
    return d;
}

err_code cmd_prepare_stage(stage *s, prepare_result *out, err *e)
{
    const options *o = s->o;
    prepare p = {
        .s = s, .store_size = (int)options_int(o, "prepare.store-size"), .effort = effort_of(o), .result = out};
    size_t n = 0;
    err_code rc;
    *out = (prepare_result){0};
    TRY_DONE(rc, catalogue_pending(s->cat, &p.effort, &p.pending, &n, e));
    out->pending = n;
    if (n && !options_flag(o, "dry-run")) {
        TRY_DONE(rc, frame_store_open(&p.store, s->work, e));
        decode_limits limits = {.workers = (int)options_int(o, "threads"),
                                .memory_bytes = p.effort.memory_bytes,
                                .timeout_s = p.effort.timeout_s};
        progress_start(&p.bar, "prepare", "files", n);
        rc = decode_run(&limits, n, in_worker, in_parent, &p, e);
        if (!rc || rc == ERR_INTERRUPTED) { /* what was decoded is kept */
            err_code sealed = flush_shard(&p, rc ? NULL : e);
            if (!rc) rc = sealed;
        }
        progress_end(&p.bar);
        if (!rc) rc = catalogue_write_quarantine(s->cat, e);
        if (!rc)
            log_event(LOG_INFO, "prepare.done", "stored", LOG_INT(out->stored), "frames", LOG_INT(out->frames), "aside",
                      LOG_INT(out->aside), NULL);
    }
done:
    frame_store_close(p.store);
    catalogue_pending_free(p.pending, n);
    free(p.frames);
    free(p.waiting);
    return rc;
}

err_code cmd_prepare(const options *o, int *status, err *e)
{
    stage s;
    prepare_result r = {0};
    catalogue_counts c = {0};
    TRY(stage_open(&s, o, STAGE_NEEDS_CATALOGUE, e));
    err_code rc = cmd_prepare_stage(&s, &r, e);
    if (!rc) rc = catalogue_count(s.cat, &c, e);
    bool dry = options_flag(o, "dry-run");
    if (!rc && !dry && !c.stored) rc = err_set(e, ERR_EMPTY, __FILE__, __LINE__, "no image could be decoded");
    if (!rc && options_flag(o, "json"))
        printf("{\"pending\":%llu,\"stored\":%llu,\"frames\":%llu,\"set_aside\":%llu,\"frames_in_store\":%llu}\n",
               (unsigned long long)r.pending, (unsigned long long)r.stored, (unsigned long long)r.frames,
               (unsigned long long)r.aside, (unsigned long long)c.frames);
    else if (!rc && dry)
        printf("%llu files would be decoded\n", (unsigned long long)r.pending);
    else if (!rc && !r.pending)
        printf("nothing to do: %llu frames are stored already\n", (unsigned long long)c.frames);
    else if (!rc) {
        printf("%llu files decoded: %llu frames stored, %llu files set aside\n", (unsigned long long)r.stored,
               (unsigned long long)r.frames, (unsigned long long)r.aside);
        if (c.aside) printf("Set aside, with reasons: %s/quarantine.csv\n", s.work);
    }
    *status = stage_status(c.aside);
    stage_close(&s);
    return rc;
}
