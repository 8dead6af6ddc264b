/* cmd_evaluate.c: `radapt evaluate`: a model bundle against the labels of patients it was not trained on.
 *
 * Cases may be patients, studies, series or instances, while a bundle predicts studies: so it is shown a cohort in
 * which every case is a study. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapt/bundle.h"
#include "adapt/metrics.h"
#include "cli/cmd.h"
#include "cli/stage.h"

static split_part part_of(const char *name)
{
    return !strcmp(name, "validation") ? SPLIT_VALIDATION : !strcmp(name, "train") ? SPLIT_TRAIN : SPLIT_TEST;
}

typedef struct {
    cohort view; /* borrows its store */
    const labelled_case **cases;
    size_t n;
} chosen;

static void chosen_fini(chosen *c)
{
    free(c->view.frames);
    free(c->view.pixels);
    free(c->view.part);
    free(c->cases);
}

static err_code choose(chosen *out, const cohort *c, split_part part, err *e)
{
    size_t frames = 0, at = 0;
    *out = (chosen){.n = 0};
    out->cases = calloc(c->n_cases + 1, sizeof *out->cases);
    if (!out->cases) FAIL(e, NOMEM, "evaluate: no memory");
    for (size_t i = 0; i < c->n_cases; i++) {
        if (c->cases[i].part != part) continue;
        out->cases[out->n++] = &c->cases[i];
        frames += c->cases[i].n_frames;
    }
    if (!out->n) FAIL(e, EMPTY, "no labelled patient is in that part of the split");
    cohort *v = &out->view;
    *v = (cohort){.store = c->store, .n_frames = frames};
    v->frames = calloc(frames, sizeof *v->frames);
    v->pixels = calloc(frames, sizeof *v->pixels);
    v->part = calloc(frames, sizeof *v->part);
    if (!v->frames || !v->pixels || !v->part) FAIL(e, NOMEM, "evaluate: no memory");
    for (size_t i = 0; i < out->n; i++)
        for (size_t k = 0; k < out->cases[i]->n_frames; k++, at++) {
            uint32_t frame = out->cases[i]->frames[k];
            v->frames[at] = c->frames[frame];
            v->pixels[at] = c->pixels[frame];
            v->part[at] = part;
            memcpy(v->frames[at].study_key, out->cases[i]->key, KEY_HEX);
        }
    return ERR_OK;
}

/* Of one of the model's labels. */
typedef struct {
    double auc, average_precision;      /* against the rest */
    size_t with, without, found, named; /* cases with it and without it; of each, those that the model said have it */
} label_score;

typedef struct {
    metrics all;
    label_task task;
    int n_labels;
    size_t *confusion; /* (labels, labels): true, said; not of TASK_MULTILABEL */
    label_score *of;   /* (labels) */
} evaluation;

static void evaluation_fini(evaluation *v)
{
    free(v->confusion);
    free(v->of);
}

/* The bundle's index of each of the cohort's labels. */
static err_code match_labels(const bundle_info *info, const cohort *c, int *to, err *e)
{
    for (int i = 0; i < c->n_labels; i++) {
        to[i] = -1;
        for (int k = 0; k < info->n_labels; k++)
            if (!strcmp(info->labels[k].name, c->labels[i])) to[i] = k;
        if (to[i] < 0) FAIL(e, CONFLICT, "--labels has a label that the model does not know: %.64s", c->labels[i]);
    }
    return ERR_OK;
}

static const study_finding *finding_of(const findings *f, const labelled_case *k)
{
    for (size_t i = 0; i < f->n_studies; i++)
        if (!strcmp(f->studies[i].study_key, k->key)) return &f->studies[i];
    return NULL;
}

/* What is true of the case by the model's labels: mark (labels) 1, 0 or -1; the result is the class, -1 of a set. */
static int truth(const cohort *c, const labelled_case *k, const int *to, signed char *mark, int labels)
{
    if (!k->marks) {
        for (int i = 0; i < labels; i++) mark[i] = i == to[k->label];
        return to[k->label];
    }
    memset(mark, -1, (size_t)labels); /* of a label that the table has not, nothing is known */
    for (int i = 0; i < c->n_labels; i++) mark[to[i]] = k->marks[i];
    return -1;
}

/* Scores of label k from p (n, labels), mark (n, labels) and what was said. */
static err_code score_label(label_score *out, const double *p, const signed char *mark, const signed char *said,
                            size_t n, int labels, int k, err *e)
{
    double *column = malloc((n + 1) * sizeof *column);
    unsigned char *positive = malloc(n + 1);
    size_t known = 0;
    err_code rc = ERR_OK;
    if (!column || !positive) FAIL_DONE(rc, e, NOMEM, "evaluate: no memory");
    for (size_t i = 0; i < n; i++) {
        size_t at = i * (size_t)labels + (size_t)k;
        if (mark[at] < 0) continue;
        column[known] = p[at];
        positive[known++] = mark[at] == 1;
        out->with += mark[at] == 1;
        out->without += mark[at] == 0;
        out->found += mark[at] == 1 && said[at];
        out->named += mark[at] == 0 && said[at];
    }
    out->auc = metrics_auc(column, positive, known);
    out->average_precision = metrics_average_precision(column, positive, known);
done:
    free(column);
    free(positive);
    return rc;
}

static err_code measure(evaluation *out, const cohort *all, const chosen *c, const findings *f, const int *to, err *e)
{
    int K = f->n_labels;
    size_t cells = c->n * (size_t)K;
    double *p = calloc(cells, sizeof *p);
    int *label = calloc(c->n, sizeof *label);
    signed char *mark = calloc(cells, 1), *said = calloc(cells, 1);
    err_code rc = ERR_OK;
    *out = (evaluation){.n_labels = K, .task = f->task};
    out->confusion = calloc((size_t)K * (size_t)K, sizeof *out->confusion);
    out->of = calloc((size_t)K, sizeof *out->of);
    if (!p || !label || !mark || !said || !out->confusion || !out->of) FAIL_DONE(rc, e, NOMEM, "evaluate: no memory");
    for (size_t i = 0; i < c->n; i++) {
        size_t row = i * (size_t)K;
        const study_finding *s = finding_of(f, c->cases[i]);
        if (!s) FAIL_DONE(rc, e, INTERNAL, "evaluate: case %zu was not predicted", i);
        memcpy(p + row, s->probability, (size_t)K * sizeof *p);
        label[i] = truth(all, c->cases[i], to, mark + row, K);
        for (int k = 0; k < s->n_found; k++) said[row + (size_t)s->found[k].label] = 1;
        if (label[i] >= 0) out->confusion[(size_t)label[i] * (size_t)K + (size_t)s->found[0].label]++;
    }
    if (f->task == TASK_MULTILABEL)
        metrics_compute_marks(&out->all, p, mark, c->n, K);
    else
        metrics_compute(&out->all, f->task, p, label, c->n, K);
    for (int k = 0; k < K; k++) TRY_DONE(rc, score_label(&out->of[k], p, mark, said, c->n, K, k, e));
done:
    free(p);
    free(label);
    free(mark);
    free(said);
    return rc;
}

static double share(size_t part, size_t of)
{
    return of ? (double)part / (double)of : NAN;
}

static void print_classes(const evaluation *v, const bundle_info *info)
{
    printf("\n%-24s %10s", "label", "ROC-AUC");
    for (int k = 0; k < v->n_labels; k++) printf(" %12.12s", info->labels[k].name);
    puts("   (columns: what the model said)");
    for (int i = 0; i < v->n_labels; i++) {
        printf("%-24.24s %10.3f", info->labels[i].name, v->of[i].auc);
        for (int k = 0; k < v->n_labels; k++) printf(" %12zu", v->confusion[i * v->n_labels + k]);
        putchar('\n');
    }
}

static void print_sets(const evaluation *v, const bundle_info *info)
{
    printf("\n%-24s %8s %8s %10s %10s %12s %12s\n", "label", "with", "without", "ROC-AUC", "avg prec", "sensitivity",
           "specificity");
    for (int i = 0; i < v->n_labels; i++) {
        const label_score *s = &v->of[i];
        printf("%-24.24s %8zu %8zu %10.3f %10.3f %12.3f %12.3f\n", info->labels[i].name, s->with, s->without, s->auc,
               s->average_precision, share(s->found, s->with), share(s->without - s->named, s->without));
    }
}

static void print_json(const evaluation *v, const bundle_info *info, const char *part)
{
    json_t *labels = json_array();
    for (int i = 0; i < v->n_labels; i++) {
        const label_score *s = &v->of[i];
        json_t *one =
            json_pack("{s:s,s:o,s:o,s:I,s:I,s:o,s:o}", "label", info->labels[i].name, "auc", stage_real(s->auc),
                      "average_precision", stage_real(s->average_precision), "with", (json_int_t)s->with, "without",
                      (json_int_t)s->without, "sensitivity", stage_real(share(s->found, s->with)), "specificity",
                      stage_real(share(s->without - s->named, s->without)));
        json_t *row = json_array();
        for (int k = 0; k < v->n_labels; k++)
            json_array_append_new(row, json_integer((json_int_t)v->confusion[i * v->n_labels + k]));
        if (v->task == TASK_MULTILABEL)
            json_decref(row);
        else
            json_object_set_new(one, "predicted", row);
        json_array_append_new(labels, one);
    }
    stage_json(json_pack("{s:s,s:s,s:o,s:o}", "part", part, "task", findings_task_name(v->task), "metrics",
                         cmd_finetune_metrics(&v->all), "labels", labels));
}

/* The labels of the table are read as the model's were: its task, the order of its grades. */
static err_code open_cohort(stage *s, const bundle_info *info, err *e)
{
    const char *given = options_text(s->o, "label-columns");
    label_rules rules = {.task = info->task, .columns = given};
    char *names = NULL;
    size_t bytes;
    FILE *list = open_memstream(&names, &bytes);
    for (int i = 0; list && i < info->n_labels; i++) fprintf(list, "%s%s", i ? "," : "", info->labels[i].name);
    if (!list || fclose(list)) {
        free(names);
        FAIL(e, NOMEM, "evaluate: no memory");
    }
    bool numbers = true;
    for (int i = 0; i < info->n_labels; i++)
        numbers &= strspn(info->labels[i].name, "0123456789") == strlen(info->labels[i].name);
    if (info->task == TASK_ORDINAL && !numbers) rules.order = names;
    err_code rc = stage_cohort_by(s, true, &rules, e);
    free(names);
    return rc;
}

static err_code evaluate(stage *s, err *e)
{
    const options *o = s->o;
    const char *part = options_text(o, "part");
    bundle *b = NULL;
    chosen c = {.n = 0};
    findings f = {.n_labels = 0};
    evaluation v = {.n_labels = 0};
    int *to = NULL;
    err_code rc;
    if (!options_has(o, "labels")) FAIL(e, USAGE, "evaluate wants --labels FILE");
    TRY(cmd_predict_model(s, &b, NULL, e));
    const bundle_info *info = bundle_get_info(b);
    TRY_DONE(rc, open_cohort(s, info, e));
    to = calloc((size_t)s->cohort.n_labels, sizeof *to);
    if (!to) FAIL_DONE(rc, e, NOMEM, "evaluate: no memory");
    TRY_DONE(rc, match_labels(info, &s->cohort, to, e));
    if (*info->split_hash && strcmp(info->split_hash, s->cohort.split_hash))
        FAIL_DONE(rc, e, CONFLICT, "the model was trained on another split of the patients: held-out ones may not be");
    TRY_DONE(rc, choose(&c, &s->cohort, part_of(part), e));
    if (options_flag(o, "dry-run")) {
        printf("would evaluate on %zu cases\n", c.n);
        goto done;
    }
    TRY_DONE(rc, stage_check(s, e));
    TRY_DONE(rc, bundle_predict(b, &c.view, &f, e));
    TRY_DONE(rc, measure(&v, &s->cohort, &c, &f, to, e));
    if (options_flag(o, "json"))
        print_json(&v, info, part);
    else {
        char what[64];
        snprintf(what, sizeof what, "%s patients", part);
        cmd_finetune_print(what, &v.all);
        if (v.task == TASK_MULTILABEL)
            print_sets(&v, info);
        else
            print_classes(&v, info);
    }
done:
    evaluation_fini(&v);
    findings_fini(&f);
    chosen_fini(&c);
    free(to);
    if (b) bundle_close(b);
    return rc;
}

err_code cmd_evaluate(const options *o, int *status, err *e)
{
    stage s;
    TRY(stage_open(&s, o, STAGE_NEEDS_CATALOGUE, e));
    err_code rc = evaluate(&s, e);
    *status = stage_status(s.cohort.rows_without_image + s.cohort.rows_conflicting + s.cohort.rows_empty);
    stage_close(&s);
    return rc;
}
