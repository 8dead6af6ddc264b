/* cohort.c: frames from the catalogue, their pixels from the frame store, then labels and split. */
#include "adapt/cohort.h"

#include <stdlib.h>
#include <string.h>

#include "adapt/labels.h"
#include "adapt/split.h"

/* Everything a result depends on besides the pixels themselves, whose keys are those of their SOP Instance UIDs. */
static void hash_data(cohort *c)
{
    hash *h = hash_new();
    for (size_t i = 0; i < c->n_frames; i++) {
        const frame_info *f = &c->frames[i];
        const int32_t number[] = {f->frame, f->rows, f->columns, f->channels};
        hash_str(h, f->instance_key);
        hash_add(h, number, sizeof number);
    }
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
    if (!c->n_frames) FAIL_DONE(rc, e, EMPTY, "no prepared images: nothing in the export was usable");
    if (c->n_frames > UINT32_MAX) FAIL_DONE(rc, e, LIMIT, "%zu frames are more than a cohort can hold", c->n_frames);
    c->part = calloc(c->n_frames, sizeof *c->part);
    c->pixels = calloc(c->n_frames, sizeof *c->pixels);
    if (!c->part || !c->pixels) FAIL_DONE(rc, e, NOMEM, "no memory for %zu frames", c->n_frames);
    TRY_DONE(rc, frame_store_open(&c->store, work, e));
    for (size_t i = 0; i < c->n_frames; i++)
        TRY_DONE(rc, frame_store_pixels(c->store, &c->frames[i], &c->pixels[i], e));
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
