/* case_set.c: see case_set.h. */
#include "adapt/case_set.h"

#include <stdlib.h>
#include <string.h>

err_code case_set_init(case_set *s, const cohort *c, const bool parts[3], size_t cap, err *e)
{
    size_t frames = 0;
    *s = (case_set){.c = c};
    for (size_t i = 0; i < c->n_cases; i++) frames += c->cases[i].n_frames;
    s->cases = malloc((c->n_cases + 1) * sizeof *s->cases);
    s->start = malloc((c->n_cases + 1) * sizeof *s->start);
    s->frames = malloc((frames + 1) * sizeof *s->frames);
    if (!s->cases || !s->start || !s->frames) {
        case_set_fini(s);
        FAIL(e, NOMEM, "no memory for %zu labelled frames", frames);
    }
    s->start[0] = 0;
    for (size_t i = 0; i < c->n_cases; i++) {
        const labelled_case *k = &c->cases[i];
        if (k->part >= SPLIT_NONE || !parts[k->part]) continue;
        size_t take = cap && k->part == SPLIT_TRAIN && k->n_frames > cap ? cap : k->n_frames, at = s->start[s->n];
        for (size_t j = 0; j < take; j++) s->frames[at + j] = k->frames[j * k->n_frames / take];
        s->cases[s->n++] = (uint32_t)i;
        s->start[s->n] = at + take;
    }
    return ERR_OK;
}

void case_set_fini(case_set *s)
{
    free(s->cases);
    free(s->start);
    free(s->frames);
    *s = (case_set){0};
}

size_t case_set_frames(const case_set *s)
{
    return s->start ? s->start[s->n] : 0;
}

void case_set_mean(const case_set *s, const double *frame, int classes, double *out)
{
    size_t K = (size_t)classes;
    for (size_t i = 0; i < s->n; i++) {
        double *p = out + i * K, count = (double)(s->start[i + 1] - s->start[i]);
        memset(p, 0, K * sizeof *p);
        for (size_t f = s->start[i]; f < s->start[i + 1]; f++)
            for (size_t k = 0; k < K; k++) p[k] += frame[f * K + k] / count;
    }
}

err_code case_set_metrics(const case_set *s, const double *probability, split_part part, metrics *out, err *e)
{
    const cohort *c = s->c;
    size_t K = (size_t)c->n_labels, n = 0;
    int *label = malloc((s->n + 1) * sizeof *label);
    signed char *marks = malloc(s->n * K + 1);
    double *p = malloc((s->n * K + 1) * sizeof *p);
    err_code rc = ERR_OK;
    if (!label || !marks || !p) FAIL_DONE(rc, e, NOMEM, "no memory for %zu cases", s->n);
    for (size_t i = 0; i < s->n; i++) {
        const labelled_case *k = &c->cases[s->cases[i]];
        if (k->part != part) continue;
        memcpy(p + n * K, probability + i * K, K * sizeof *p);
        if (k->marks) memcpy(marks + n * K, k->marks, K);
        label[n++] = k->label;
    }
    if (c->task == TASK_MULTILABEL)
        metrics_compute_marks(out, p, marks, n, (int)K);
    else
        metrics_compute(out, c->task, p, label, n, (int)K);
done:
    free(label);
    free(marks);
    free(p);
    return rc;
}
