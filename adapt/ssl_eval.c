/* ssl_eval.c: see ssl_eval.h. */
#include "adapt/ssl_eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapt/metrics.h"
#include "adapt/probe.h"
#include "adapt/task.h"

enum { RANK_FRAMES = 512 };

/* Whether the i-th of n is among `most` of them, evenly spread. */
static bool among(size_t i, size_t n, size_t most)
{
    return n <= most || (i + 1) * most / n > i * most / n;
}

/* The middles of equal stretches of a case's frames, each_most at most. */
static void take(const labelled_case *k, size_t each_most, uint32_t *frames, int *labels, size_t *n)
{
    size_t want = k->n_frames < each_most ? k->n_frames : each_most;
    for (size_t i = 0; i < want; i++) {
        frames[*n] = k->frames[(2 * i + 1) * k->n_frames / (2 * want)];
        labels[(*n)++] = k->stratum;
    }
}

/* Frames of a part: all its cases a few frames each, or evenly spread cases one each. */
static void take_part(const cohort *c, split_part part, size_t most, uint32_t *frames, int *labels, size_t *n)
{
    size_t cases = 0, seen = 0;
    for (size_t i = 0; i < c->n_cases; i++) cases += c->cases[i].part == part;
    if (!cases) return;
    size_t each_most = most > cases ? most / cases : 1;
    for (size_t i = 0; i < c->n_cases; i++)
        if (c->cases[i].part == part && among(seen++, cases, most)) take(&c->cases[i], each_most, frames, labels, n);
}

static bool may_be_seen(const cohort *c, size_t frame)
{
    return c->part[frame] == SPLIT_TRAIN || c->part[frame] == SPLIT_NONE;
}

double ssl_score_choice(const ssl_score *s, float share)
{
    return isfinite(s->linear_auc) ? (double)share * s->knn_auc + (1 - (double)share) * s->linear_auc : s->knn_auc;
}

size_t ssl_eval_bytes(const vit *m, size_t most)
{
    return 2 * (most + 1) * (sizeof(uint32_t) + sizeof(int)) +
           (3 * most + 1) * (size_t)vit_get_config(m)->dim * sizeof(float);
}

/* No kNN: the rank of frames spread over all that may be seen. */
static void take_any(ssl_eval *s, const cohort *c, size_t most)
{
    size_t may = 0, seen = 0, want = most < RANK_FRAMES ? most : RANK_FRAMES;
    s->n_train = s->n_validation = 0;
    for (size_t i = 0; i < c->n_frames; i++) may += may_be_seen(c, i);
    for (size_t i = 0; i < c->n_frames; i++) {
        if (!may_be_seen(c, i) || !among(seen++, may, want)) continue;
        s->train_label[s->n_train] = -1;
        s->train[s->n_train++] = (uint32_t)i;
    }
}

err_code ssl_eval_open(ssl_eval *s, const vit *m, const cohort *c, size_t most, err *e)
{
    size_t C = (size_t)vit_get_config(m)->dim;
    *s = (ssl_eval){0};
    s->train = malloc((most + 1) * sizeof *s->train);
    s->validation = malloc((most + 1) * sizeof *s->validation);
    s->train_label = malloc((most + 1) * sizeof *s->train_label);
    s->validation_label = malloc((most + 1) * sizeof *s->validation_label);
    if (!s->train || !s->validation || !s->train_label || !s->validation_label)
        FAIL(e, NOMEM, "adapt: no memory for evaluation");
    take_part(c, SPLIT_TRAIN, most, s->train, s->train_label, &s->n_train);
    take_part(c, SPLIT_VALIDATION, most, s->validation, s->validation_label, &s->n_validation);
    if (!s->n_train || !s->n_validation) take_any(s, c, most);
    s->features = malloc(((s->n_train + s->n_validation) * C + 1) * sizeof *s->features);
    if (!s->features) FAIL(e, NOMEM, "adapt: no memory for evaluation");
    return ERR_OK;
}

/* The effective rank of evenly spread training rows: a sorted label table must not make it that of one class. */
static err_code spread_rank(const ssl_eval *s, size_t C, double *rank, err *e)
{
    size_t most = s->n_train < RANK_FRAMES ? s->n_train : RANK_FRAMES, n = 0;
    float *rows = malloc((most * C + 1) * sizeof *rows);
    if (!rows) FAIL(e, NOMEM, "adapt: no memory for evaluation");
    for (size_t i = 0; i < s->n_train; i++)
        if (among(i, s->n_train, most)) memcpy(rows + n++ * C, s->features + i * C, C * sizeof *rows);
    *rank = effective_rank(rows, n, C);
    free(rows);
    return ERR_OK;
}

err_code ssl_eval_keep(ssl_eval *s, device *d, const cohort *c, frame_cache *shared, size_t room, err *e)
{
    size_t n = s->n_train + s->n_validation;
    s->kept = shared;
    if (shared) return ERR_OK;
    uint32_t *all = malloc((n + 1) * sizeof *all);
    if (!all) FAIL(e, NOMEM, "adapt: no memory for evaluation");
    memcpy(all, s->train, s->n_train * sizeof *all);
    memcpy(all + s->n_train, s->validation, s->n_validation * sizeof *all);
    err_code rc = frame_cache_open(&s->own, d, c->frames, c->n_frames, all, n, 0, room, e);
    free(all);
    s->kept = &s->own;
    return rc;
}

void ssl_eval_close(ssl_eval *s)
{
    frame_cache_close(&s->own);
    free(s->train);
    free(s->validation);
    free(s->train_label);
    free(s->validation_label);
    free(s->features);
    *s = (ssl_eval){0};
}

/* Of the validation rows, from a classifier that was fitted on the training rows; p (n_validation, classes) is room. */
static err_code linear_score(const ssl_eval *s, size_t C, int classes, double *p, ssl_score *out, err *e)
{
    const double l2 = 0.01;
    probe fit = {0};
    metrics r;
    float *weight = malloc(s->n_train * sizeof *weight);
    double *z = malloc(s->n_validation * (size_t)classes * sizeof *z);
    err_code rc = ERR_OK;
    if (!weight || !z) FAIL_DONE(rc, e, NOMEM, "adapt: no memory for evaluation");
    for (size_t i = 0; i < s->n_train; i++) weight[i] = 1;
    const probe_rows rows = {
        .x = s->features, .label = s->train_label, .weight = weight, .n = s->n_train, .dim = C, .outputs = classes};
    TRY_DONE(rc, probe_fit(&fit, &rows, &l2, 1, e));
    probe_logits(fit.weight, fit.bias, s->features + s->n_train * C, s->n_validation, C, classes, z);
    task_probabilities(TASK_MULTICLASS, classes, z, s->n_validation, p);
    metrics_compute(&r, TASK_MULTICLASS, p, s->validation_label, s->n_validation, classes);
    out->linear_auc = r.auc;
    out->linear_accuracy = r.accuracy;
done:
    probe_fini(&fit);
    free(weight);
    free(z);
    return rc;
}

err_code ssl_eval_run(ssl_eval *s, vit *m, vit_who who, const cohort *c, const ssl_options *o, ssl_score *out, err *e)
{
    size_t C = (size_t)vit_get_config(m)->dim;
    float *query = s->features + s->n_train * C;
    *out = (ssl_score){NAN, NAN, NAN, NAN, NAN};
    TRY(features_extract(m, who, c, s->train, s->n_train, &o->view, s->kept, s->features, e));
    if (s->n_validation) TRY(features_extract(m, who, c, s->validation, s->n_validation, &o->view, s->kept, query, e));
    for (size_t i = 0; i < (s->n_train + s->n_validation) * C; i++)
        if (!isfinite(s->features[i])) {
            out->rank = 0;
            return ERR_OK;
        }
    TRY(spread_rank(s, C, &out->rank, e));
    if (!s->n_validation) return ERR_OK;
    double *p = malloc(s->n_validation * (size_t)c->n_strata * sizeof *p);
    if (!p) FAIL(e, NOMEM, "adapt: no memory for evaluation");
    metrics r;
    knn_predict(p, s->features, s->train_label, s->n_train, query, s->n_validation, C, c->n_strata, o->knn,
                o->knn_temp);
    metrics_compute(&r, TASK_MULTICLASS, p, s->validation_label, s->n_validation, c->n_strata);
    out->knn_auc = r.auc;
    out->knn_accuracy = r.accuracy;
    err_code rc = linear_score(s, C, c->n_strata, p, out, e);
    free(p);
    return rc;
}
