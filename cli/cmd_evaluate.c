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

typedef struct {
    metrics all;
    size_t *confusion; /* (labels, labels): true, predicted */
    double *auc;       /* (labels), one against the rest */
    int n_labels;
} evaluation;

static void evaluation_fini(evaluation *v)
{
    free(v->confusion);
    free(v->auc);
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

static err_code measure(evaluation *out, const chosen *c, const findings *f, const int *to, err *e)
{
    int K = f->n_labels;
    double *p = calloc(c->n * (size_t)K, sizeof *p), *column = calloc(c->n, sizeof *column);
    int *label = calloc(c->n, sizeof *label);
    unsigned char *positive = calloc(c->n, 1);
    err_code rc = ERR_OK;
    *out = (evaluation){.n_labels = K};
    out->confusion = calloc((size_t)K * (size_t)K, sizeof *out->confusion);
    out->auc = calloc((size_t)K, sizeof *out->auc);
    if (!p || !column || !label || !positive || !out->confusion || !out->auc)
        FAIL_DONE(rc, e, NOMEM, "evaluate: no memory");
    for (size_t i = 0; i < c->n; i++) {
        const study_finding *s = NULL;
        for (size_t k = 0; k < f->n_studies && !s; k++)
            if (!strcmp(f->studies[k].study_key, c->cases[i]->key)) s = &f->studies[k];
        if (!s) FAIL_DONE(rc, e, INTERNAL, "evaluate: case %zu was not predicted", i);
        memcpy(p + i * (size_t)K, s->probability, (size_t)K * sizeof *p);
        label[i] = to[c->cases[i]->label];
        out->confusion[(size_t)label[i] * (size_t)K + (size_t)s->label]++;
    }
    metrics_compute(&out->all, p, label, c->n, K);
    for (int k = 0; k < K; k++) {
        for (size_t i = 0; i < c->n; i++) {
            column[i] = p[i * (size_t)K + (size_t)k];
            positive[i] = label[i] == k;
        }
        out->auc[k] = metrics_auc(column, positive, c->n);
    }
done:
    free(p);
    free(column);
    free(label);
    free(positive);
    return rc;
}

static void print_table(const evaluation *v, const bundle_info *info)
{
    printf("\n%-24s %10s", "label", "ROC-AUC");
    for (int k = 0; k < v->n_labels; k++) printf(" %12.12s", info->labels[k].name);
    puts("   (columns: what the model said)");
    for (int i = 0; i < v->n_labels; i++) {
        printf("%-24.24s %10.3f", info->labels[i].name, v->auc[i]);
        for (int k = 0; k < v->n_labels; k++) printf(" %12zu", v->confusion[i * v->n_labels + k]);
        putchar('\n');
    }
}

static void print_json(const evaluation *v, const bundle_info *info, const char *part)
{
    json_t *labels = json_array();
    for (int i = 0; i < v->n_labels; i++) {
        json_t *row = json_array();
        for (int k = 0; k < v->n_labels; k++)
            json_array_append_new(row, json_integer((json_int_t)v->confusion[i * v->n_labels + k]));
        json_array_append_new(labels, json_pack("{s:s,s:o,s:o}", "label", info->labels[i].name, "auc",
                                                stage_real(v->auc[i]), "predicted", row));
    }
    stage_json(json_pack("{s:s,s:o,s:o}", "part", part, "metrics", cmd_finetune_metrics(&v->all), "labels", labels));
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
    TRY(stage_cohort(s, true, e));
    TRY_DONE(rc, cmd_predict_model(s, &b, NULL, e));
    const bundle_info *info = bundle_get_info(b);
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
    TRY_DONE(rc, bundle_predict(b, &c.view, &f, e));
    TRY_DONE(rc, measure(&v, &c, &f, to, e));
    if (options_flag(o, "json"))
        print_json(&v, info, part);
    else {
        char what[64];
        snprintf(what, sizeof what, "%s patients", part);
        cmd_finetune_print(what, &v.all);
        print_table(&v, info);
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
    *status = STATUS_DONE;
    stage_close(&s);
    return rc;
}
