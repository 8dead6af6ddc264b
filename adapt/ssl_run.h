/* ssl_run.h: an adaptation under way: what ssl.c (the loop), ssl_init.c (its start), ssl_state.c (what is kept on disk
 * to go on from) and ssl_record.c (metrics.jsonl, result.json) share. */
#ifndef RADAPT_SSL_RUN_H
#define RADAPT_SSL_RUN_H
#include <jansson.h>
#include <stdio.h>

#include "adapt/ssl_data.h"
#include "adapt/ssl_eval.h"
#include "base/file.h"

#define SSL_RUN_NEVER UINT64_MAX /* of a step: there is none */

/* An update whose losses are not known yet. */
typedef struct {
    uint64_t at; /* its step */
    ssl_step_update_in u;
} ssl_late;

typedef struct {
    vit *m;
    const cohort *c;
    const ssl_options *o;
    const char *dir;
    ssl_result *out;
    param_set ps;
    size_t n_backbone; /* params before the head's */
    ssl_data data;
    ssl_eval eval;
    ssl_step step;
    ssl_mask mask;
    uint8_t *mask_bits;
    FILE *metrics;
    char hash[HASH_HEX]; /* of what a checkpoint must agree with */
    /* state that a checkpoint holds, beside out's */
    uint64_t at;                 /* next step */
    uint64_t evaluated;          /* step of the last evaluation; or NEVER */
    uint64_t best_step;          /* of the best teacher, whose state is in best-<step>.safetensors; or NEVER */
    int64_t adam_t[ADAM_GROUPS]; /* updates that the moments have had: goes back with them to the best */
    double lr_factor;
    uint64_t roll_backs, bad_steps;
    ssl_late late[SSL_STEP_LATE + 1]; /* updates asked and not yet read: the first ssl_step_unread, the oldest first */
    double clock;                     /* out->seconds counts up to here */
} ssl_run;

/* DIR/name */
static inline err_code ssl_run_path(const ssl_run *r, const char *name, char out[FILE_PATH_MAX], err *e)
{
    return file_path(out, e, "%s/%s", r->dir, name);
}

/* --- ssl_init.c */

err_code ssl_init_head(ssl_run *r, err *e);
size_t ssl_init_bytes(const ssl_data *data, const ssl_step *s); /* on the host, while it is done */

/* --- ssl_state.c */

void ssl_state_hash(ssl_run *r); /* -> r->hash */
err_code ssl_state_save(ssl_run *r, err *e);
/* A checkpoint, if there is one (out->resumed); metrics.jsonl is cut back to it. ERR_CONFLICT: of other options. */
err_code ssl_state_load(ssl_run *r, err *e);
/* This evaluation's teacher is the best. Killed at any instant, the checkpoint names a state that is there. */
err_code ssl_state_keep_best(ssl_run *r, err *e);
/* Back to the best teacher's state: weights, head, moments, centres. What is drawn goes on from here. */
err_code ssl_state_restore_best(ssl_run *r, err *e);
/* The end: the best teacher's adapter, then result.json, which says that it is all there; what only a run under way
 * needs goes. */
err_code ssl_state_finish(ssl_run *r, err *e);

/* --- ssl_record.c */

json_t *ssl_record_real(double v);               /* null where it is not finite */
double ssl_record_waited(const ssl_result *out); /* the share of its seconds */
/* A line of metrics.jsonl; takes j. */
err_code ssl_record_line(ssl_run *r, json_t *j, err *e);
err_code ssl_record_read(const char *path, ssl_result *out, err *e);
err_code ssl_record_write(const ssl_run *r, err *e);

#endif
