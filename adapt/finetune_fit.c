/* finetune_fit.c: see finetune_fit.h. */
#include "adapt/finetune_fit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapt/probe.h"
#include "adapt/task.h"
#include "base/log.h"

/* From the largest on: where two are level the simpler classifier wins. */
static const double penalties[] = {3, 1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001};
enum { PENALTIES = sizeof penalties / sizeof *penalties, PENALTY_BLIND = 4 /* without validation cases */ };
/* Where training goes on from it, down to 0.01 alone: through weights that are large because features hardly differ,
 * every step of the backbone moves the logits by tens. */
enum { PENALTIES_TO_START = 6 };

void finetune_fit_fini(finetune_seen *s)
{
    case_set_fini(&s->set);
    free(s->x);
    free(s->of_case);
    *s = (finetune_seen){0};
}

err_code finetune_fit_look(finetune_job *j, finetune_seen *s, const bool parts[3], size_t cap, const char *stage,
                           err *e)
{
    TRY(case_set_init(&s->set, j->c, parts, cap, e));
    size_t n = case_set_frames(&s->set), cells;
    progress p;
    if (!size_mul(n + 1, j->dim, &cells)) FAIL(e, LIMIT, "finetune: %zu labelled frames", n);
    s->x = malloc(cells * sizeof *s->x);
    s->of_case = malloc((s->set.n + 1) * (size_t)j->classes * sizeof *s->of_case);
    if (!s->x || !s->of_case) FAIL(e, NOMEM, "finetune: no memory for the features of %zu frames", n);
    view_options v = j->o->view;
    progress_start(&p, stage, "images", n);
    v.shown = &p;
    err_code rc = features_extract(j->m, VIT_STUDENT, j->c, s->set.frames, n, &v, NULL, s->x, e);
    progress_end(&p);
    return rc;
}

err_code finetune_fit_predict(finetune_job *j, finetune_seen *s, err *e)
{
    size_t n = case_set_frames(&s->set);
    double *frame = malloc((n + 1) * (size_t)j->classes * sizeof *frame);
    if (!frame) FAIL(e, NOMEM, "finetune: no memory for %zu predictions", n);
    err_code rc = finetune_train_predict(j, s->x, n, frame, e);
    if (!rc) case_set_mean(&s->set, frame, j->classes, s->of_case);
    free(frame);
    return rc;
}

static void head_set(finetune_job *j, const probe *p)
{
    param *W = &j->params.p[j->params.n - 2], *b = W + 1;
    j->d->op->upload(j->d, W->master, p->weight, (size_t)p->outputs * p->dim * sizeof(float));
    j->d->op->upload(j->d, b->master, p->bias, (size_t)p->outputs * sizeof(float));
    j->d->op->refresh(j->d, W, 2);
}

typedef struct {
    float *x, *weight;     /* (n, dim), (n) */
    int *label;            /* (n) TASK_MULTICLASS */
    float *target, *known; /* (n, outputs) the others */
    size_t n;
} fit_rows;

static void fit_rows_fini(fit_rows *r)
{
    free(r->x);
    free(r->weight);
    free(r->label);
    free(r->target);
    free(r->known);
}

/* A row for every frame of the training cases, at most cap a case. A case counts once, and with balanced strata they
 * count alike. */
static err_code gather_rows(const finetune_job *j, const finetune_seen *s, size_t cap, fit_rows *r, err *e)
{
    const cohort *c = j->c;
    size_t frames = case_set_frames(&s->set), C = j->dim, O = (size_t)j->outputs;
    bool classes = c->task == TASK_MULTICLASS;
    size_t *of_stratum = calloc((size_t)c->n_strata, sizeof *of_stratum), cells = classes ? O : frames * O;
    r->x = malloc((frames * C + 1) * sizeof *r->x);
    r->weight = malloc((frames + 1) * sizeof *r->weight);
    r->label = malloc((frames + 1) * sizeof *r->label);
    r->target = malloc((cells + 1) * sizeof *r->target);
    r->known = malloc((cells + 1) * sizeof *r->known);
    if (!of_stratum || !r->x || !r->weight || !r->label || !r->target || !r->known) {
        free(of_stratum);
        FAIL(e, NOMEM, "finetune: no memory for %zu rows", frames);
    }
    for (size_t i = 0; i < s->set.n; i++) {
        const labelled_case *k = &c->cases[s->set.cases[i]];
        if (k->part == SPLIT_TRAIN) of_stratum[k->stratum]++;
    }
    for (size_t i = 0; i < s->set.n; i++) {
        const labelled_case *k = &c->cases[s->set.cases[i]];
        size_t first = s->set.start[i], n = s->set.start[i + 1] - first, take = n < cap ? n : cap;
        if (k->part != SPLIT_TRAIN) continue;
        for (size_t f = 0; f < take; f++, r->n++) {
            size_t at = classes ? 0 : r->n * O;
            memcpy(r->x + r->n * C, s->x + (first + f * n / take) * C, C * sizeof *r->x);
            task_targets(c->task, c->n_labels, k, j->class_weight, r->target + at, r->known + at);
            r->label[r->n] = k->label;
            r->weight[r->n] = 1 / ((float)take * (j->balanced ? (float)of_stratum[k->stratum] : 1));
            if (classes) r->weight[r->n] *= r->known[k->label];
        }
    }
    free(of_stratum);
    return ERR_OK;
}

err_code finetune_fit_head(finetune_job *j, finetune_seen *s, size_t cap, err *e)
{
    probe fit[PENALTIES] = {{0}};
    fit_rows r = {0};
    metrics best = {0};
    size_t chosen = PENALTY_BLIND, validation = 0,
           tried = j->o->method == METHOD_LINEAR ? PENALTIES : PENALTIES_TO_START;
    err_code rc;
    for (size_t i = 0; i < s->set.n; i++) validation += j->c->cases[s->set.cases[i]].part == SPLIT_VALIDATION;
    TRY_DONE(rc, gather_rows(j, s, cap, &r, e));
    const probe_rows rows = {.x = r.x,
                             .label = j->c->task == TASK_MULTICLASS ? r.label : NULL,
                             .target = r.target,
                             .known = r.known,
                             .weight = r.weight,
                             .n = r.n,
                             .dim = j->dim,
                             .outputs = j->outputs};
    TRY_DONE(rc, probe_fit(fit, &rows, penalties, tried, e));
    for (size_t t = 0; validation && t < tried; t++) {
        metrics m;
        head_set(j, &fit[t]);
        TRY_DONE(rc, finetune_fit_predict(j, s, e));
        TRY_DONE(rc, case_set_metrics(&s->set, s->of_case, SPLIT_VALIDATION, &m, e));
        if (t && !metrics_better(j->c->task, &m, &best)) continue;
        best = m;
        chosen = t;
    }
    head_set(j, &fit[chosen]);
    log_event(LOG_INFO, "finetune.linear", "rows", LOG_INT(r.n), "l2", LOG_REAL(penalties[chosen]), "validation_auc",
              LOG_REAL(validation ? best.auc : NAN), "validation_kappa",
              LOG_REAL(validation ? best.kappa_quadratic : NAN), NULL);
    rc = device_sync(j->d, e);
done:
    for (size_t t = 0; t < PENALTIES; t++) probe_fini(&fit[t]);
    fit_rows_fini(&r);
    return rc;
}
