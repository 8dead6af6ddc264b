/* cohort.c: frames from the catalogue, their pixels from the frame store, then labels and split. */
#include "adapt/cohort.h"

#include <stdlib.h>
#include <string.h>

#include "adapt/labels.h"
#include "adapt/split.h"
#include "base/log.h"
#include "base/pool.h"
#include "base/progress.h"
#include "base/stop.h"

/* A frame: which one it is, its pixels, and how they are to be seen. */
static void hash_frame(hash *h, const frame_info *f)
{
    const int32_t number[] = {f->frame,         f->rows,   f->columns,        f->channels,
                              (int32_t)f->type, f->invert, f->window.present, (int32_t)f->window.function,
                              f->has_padding};
    const double value[] = {f->slope,         f->intercept,    f->low,         f->high,
                            f->window.center, f->window.width, f->padding_low, f->padding_high};
    hash_str(h, f->instance_key);
    hash_str(h, f->modality);
    hash_add(h, number, sizeof number);
    hash_add(h, value, sizeof value);
    hash_add(h, &f->checksum, sizeof f->checksum);
}

/* Everything that a result depends on beside the options. */
static void hash_data(cohort *c)
{
    hash *h = hash_new();
    for (size_t i = 0; i < c->n_frames; i++) hash_frame(h, &c->frames[i]);
    for (size_t i = 0; i < c->n_cases; i++) {
        hash_str(h, c->cases[i].key);
        if (c->task == TASK_MULTILABEL)
            hash_add(h, c->cases[i].marks, (size_t)c->n_labels);
        else
            hash_str(h, c->labels[c->cases[i].label]);
    }
    if (c->task != TASK_MULTICLASS) { /* the grades' order and the labels' names are not in what came before */
        hash_str(h, findings_task_name(c->task));
        for (int i = 0; i < c->n_labels; i++) hash_str(h, c->labels[i]);
    }
    hash_hex(h, c->data_hash);
}

/* Instances with a bad frame are to be prepared again. */
static err_code give_back(const cohort *c, catalogue *cat, const unsigned char *bad, err *e)
{
    size_t n = 0;
    TRY(catalogue_begin(cat, e));
    for (size_t i = 0; i < c->n_frames; i++) {
        if (!bad[i]) continue;
        n++;
        TRY(catalogue_unstore(cat, c->frames[i].instance_key, e));
    }
    TRY(catalogue_commit(cat, e));
    FAIL(e, DAMAGED, "%zu stored frames are damaged or lost: radapt prepare makes them again from their files", n);
}

/* The mapped pixels of all frames. */
static err_code map_pixels(cohort *c, catalogue *cat, err *e)
{
    unsigned char *bad = NULL; /* (n_frames), once there is one */
    for (size_t i = 0; i < c->n_frames; i++) {
        err why = {0};
        err_code rc = frame_store_pixels(c->store, &c->frames[i], &c->pixels[i], &why);
        bool lost = rc == ERR_NOTFOUND || rc == ERR_TRUNCATED || rc == ERR_FORMAT || rc == ERR_CONFLICT;
        if (rc && lost && !bad) bad = calloc(c->n_frames, 1);
        if (rc && (!lost || !bad)) {
            free(bad);
            return err_set(e, why.code, why.file, why.line, "%s", why.msg);
        }
        if (rc) bad[i] = 1;
    }
    err_code rc = bad ? give_back(c, cat, bad, e) : ERR_OK;
    free(bad);
    return rc;
}

enum { CHECK_BLOCK = 256 };

typedef struct {
    const cohort *c;
    unsigned char *bad; /* (n_frames) */
    progress bar;
} checking;

static void check_block(void *ctx, size_t block)
{
    checking *k = ctx;
    size_t from = block * CHECK_BLOCK, to = from + CHECK_BLOCK;
    if (to > k->c->n_frames) to = k->c->n_frames;
    for (size_t i = from; i < to && !stop_requested(); i++)
        k->bad[i] = !frame_store_intact(&k->c->frames[i], k->c->pixels[i]);
    progress_add(&k->bar, to - from);
}

err_code cohort_check(const cohort *c, catalogue *cat, int threads, err *e)
{
    checking k = {.c = c, .bad = calloc(c->n_frames + 1, 1)};
    pool *p = pool_new(threads);
    size_t unknown = 0, bad = 0;
    err_code rc = ERR_OK;
    if (!k.bad || !p) FAIL_DONE(rc, e, NOMEM, "no memory to check %zu frames", c->n_frames);
    progress_start(&k.bar, "check", "frames", c->n_frames);
    pool_for(p, (c->n_frames + CHECK_BLOCK - 1) / CHECK_BLOCK, check_block, &k);
    progress_end(&k.bar);
    TRY_DONE(rc, stop_check(e));
    for (size_t i = 0; i < c->n_frames; i++) {
        unknown += c->frames[i].checksum < 0;
        bad += k.bad[i];
    }
    if (unknown)
        log_event(LOG_WARN, "store.unchecked", "frames", LOG_INT(unknown), "meaning",
                  LOG_STR("stored by an earlier radapt, without checksums: used as they are"), NULL);
    if (bad) rc = give_back(c, cat, k.bad, e);
done:
    pool_free(p);
    free(k.bad);
    return rc;
}

err_code cohort_open(cohort *c, catalogue *cat, const char *work, const char *labels_path, const split_options *o,
                     err *e)
{
    return cohort_open_by(c, cat, work, labels_path, &(label_rules){.task = TASK_MULTICLASS}, o, e);
}

err_code cohort_open_by(cohort *c, catalogue *cat, const char *work, const char *labels_path, const label_rules *rules,
                        const split_options *o, err *e)
{
    *c = (cohort){0};
    err_code rc = catalogue_frames(cat, &c->frames, &c->n_frames, e);
    if (rc) goto done;
    if (!c->n_frames)
        FAIL_DONE(rc, e, EMPTY,
                  "no prepared images in the work directory: `radapt scan` and `radapt prepare` come first, or found "
                  "nothing usable");
    if (c->n_frames > UINT32_MAX) FAIL_DONE(rc, e, LIMIT, "%zu frames are more than a cohort can hold", c->n_frames);
    c->part = calloc(c->n_frames, sizeof *c->part);
    c->pixels = calloc(c->n_frames, sizeof *c->pixels);
    if (!c->part || !c->pixels) FAIL_DONE(rc, e, NOMEM, "no memory for %zu frames", c->n_frames);
    TRY_DONE(rc, frame_store_open(&c->store, work, e));
    TRY_DONE(rc, map_pixels(c, cat, e));
    if (labels_path) TRY_DONE(rc, labels_read(c, cat, labels_path, rules, e));
    TRY_DONE(rc, split_apply(c, work, o, e));
    hash_data(c);
done:
    if (rc) cohort_close(c);
    return rc;
}

void cohort_close(cohort *c)
{
    for (size_t i = 0; i < c->n_cases; i++) {
        free(c->cases[i].frames);
        free(c->cases[i].marks);
    }
    free(c->cases);
    free(c->labels);
    free(c->frames);
    free(c->part);
    free(c->pixels);
    frame_store_close(c->store);
    *c = (cohort){0};
}

const void *cohort_pixels(const cohort *c, size_t frame)
{
    return c->pixels[frame];
}
