/* ssl_eval.c: see ssl_eval.h. k = 20, T = 0.07 as DINO evaluates small sets. */
#include "adapt/ssl_eval.h"

#include <math.h>
#include <stdlib.h>

#include "adapt/metrics.h"

enum { NEIGHBOURS = 20, RANK_FRAMES = 512 };

static void take(const labelled_case *k, size_t each, uint32_t *frames, int *labels, size_t *n, size_t most)
{
    size_t want = k->n_frames < each ? k->n_frames : each;
    for (size_t i = 0; i < want && *n < most; i++) {
        frames[*n] = k->frames[(2 * i + 1) * k->n_frames / (2 * want)]; /* the middles of `want` equal stretches */
        labels[(*n)++] = k->label;
    }
}

err_code ssl_eval_open(ssl_eval *s, const vit *m, const cohort *c, size_t most, err *e)
{
    size_t C = (size_t)vit_get_config(m)->dim, cases[2] = {0, 0};
    *s = (ssl_eval){0};
    s->train = malloc((most + 1) * sizeof *s->train);
    s->validation = malloc((most + 1) * sizeof *s->validation);
    s->train_label = malloc((most + 1) * sizeof *s->train_label);
    s->validation_label = malloc((most + 1) * sizeof *s->validation_label);
    s->features = malloc((2 * most + 1) * C * sizeof *s->features);
    if (!s->train || !s->validation || !s->train_label || !s->validation_label || !s->features)
        FAIL(e, NOMEM, "adapt: no memory for evaluation");
    for (size_t i = 0; i < c->n_cases; i++)
        if (c->cases[i].part <= SPLIT_VALIDATION) cases[c->cases[i].part]++;
    for (size_t i = 0; i < c->n_cases; i++) {
        const labelled_case *k = &c->cases[i];
        if (k->part == SPLIT_TRAIN) take(k, 1 + most / (cases[0] + 1) / 2, s->train, s->train_label, &s->n_train, most);
        if (k->part == SPLIT_VALIDATION)
            take(k, 1 + most / (cases[1] + 1) / 2, s->validation, s->validation_label, &s->n_validation, most);
    }
    if (s->n_train && s->n_validation) return ERR_OK;
    s->n_train = s->n_validation = 0; /* no kNN: the rank of frames spread over all that may be seen */
    size_t may = 0, seen = 0, want;
    for (size_t i = 0; i < c->n_frames; i++) may += c->part[i] == SPLIT_TRAIN || c->part[i] == SPLIT_NONE;
    want = may < RANK_FRAMES ? may : RANK_FRAMES;
    if (want > most) want = most;
    for (size_t i = 0; i < c->n_frames && want; i++) {
        if (c->part[i] != SPLIT_TRAIN && c->part[i] != SPLIT_NONE) continue;
        if (seen++ * want / may == s->n_train && s->n_train < want) {
            s->train_label[s->n_train] = -1;
            s->train[s->n_train++] = (uint32_t)i;
        }
    }
    return ERR_OK;
}

void ssl_eval_close(ssl_eval *s)
{
    free(s->train);
    free(s->validation);
    free(s->train_label);
    free(s->validation_label);
    free(s->features);
    *s = (ssl_eval){0};
}

err_code ssl_eval_run(ssl_eval *s, vit *m, vit_who who, const cohort *c, const view_options *v, ssl_score *out, err *e)
{
    size_t C = (size_t)vit_get_config(m)->dim;
    float *query = s->features + s->n_train * C;
    *out = (ssl_score){NAN, NAN, NAN};
    TRY(features_extract(m, who, c, s->train, s->n_train, v, s->features, e));
    if (s->n_validation) TRY(features_extract(m, who, c, s->validation, s->n_validation, v, query, e));
    out->rank = effective_rank(s->features, s->n_train < RANK_FRAMES ? s->n_train : RANK_FRAMES, C);
    for (size_t i = 0; i < s->n_train * C; i++)
        if (!isfinite(s->features[i])) FAIL(e, NUMERIC, "adapt: a feature is not finite");
    if (!s->n_validation) return ERR_OK;
    double *p = malloc(s->n_validation * (size_t)c->n_labels * sizeof *p);
    if (!p) FAIL(e, NOMEM, "adapt: no memory for evaluation");
    metrics r;
    knn_predict(p, s->features, s->train_label, s->n_train, query, s->n_validation, C, c->n_labels, NEIGHBOURS, 0.07);
    metrics_compute(&r, p, s->validation_label, s->n_validation, c->n_labels);
    out->knn_auc = r.auc;
    out->knn_accuracy = r.accuracy;
    free(p);
    return ERR_OK;
}
