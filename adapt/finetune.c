/* finetune.c: the stage around the loop: identity, the linear classifier, evaluation and what is written. */
#include "adapt/finetune.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapt/finetune_fit.h"
#include "adapt/optim.h"
#include "adapt/split.h"
#include "adapt/task.h"
#include "base/csv.h"
#include "base/log.h"
#include "base/progress.h"

#define FORMAT_NAME "radapt-finetune/4"
enum { PROBE_ROWS = 32768 }; /* about so many frames of training cases are fitted; a case has one at least */

void finetune_defaults(finetune_options *o, peft_method method)
{
    *o = (finetune_options){.method = method,
                            .batch = 32,
                            .lr = method == METHOD_FULL ? 1e-4f : 1e-3f,
                            .head_lr = 1e-4f,
                            .lr_last = 1e-6f,
                            .weight_decay = 1e-5f,
                            .clip = 1,
                            .warmup_steps = 50,
                            .crop_scale = {0.8f, 1.2f},
                            .flip = 0.5f,
                            .jitter = 0.1f,
                            .layer_decay = 1,
                            .probe_first = true,
                            .patience = 8,
                            .view = {.size = 224, .share = 0.875f}};
}

/* The training patients must show a difference: two classes, or a label that some have and some have not. */
static err_code check_labels(const cohort *c, err *e)
{
    size_t K = (size_t)c->n_labels, *with = calloc(2 * K + 1, sizeof *with), *without = with + K, seen = 0, differ = 0;
    if (!with) FAIL(e, NOMEM, "finetune: no memory");
    for (size_t i = 0; i < c->n_cases; i++) {
        const labelled_case *one = &c->cases[i];
        if (one->part != SPLIT_TRAIN) continue;
        for (size_t k = 0; k < K; k++) {
            with[k] += one->marks ? one->marks[k] == 1 : one->label == (int)k;
            without[k] += one->marks && one->marks[k] == 0;
        }
    }
    for (size_t k = 0; k < K; k++) {
        seen += with[k] > 0;
        differ += with[k] && without[k];
    }
    free(with);
    if (c->task == TASK_MULTILABEL && !differ)
        FAIL(e, USAGE, "finetune: of no label are there training patients with and without it");
    if (c->task != TASK_MULTILABEL && seen < 2)
        FAIL(e, USAGE, "finetune: the training patients have %zu label; two are needed", seen);
    return ERR_OK;
}

static err_code check(const vit *m, const param_set *adapter, const cohort *c, const finetune_options *o,
                      const bundle_info *info, err *e)
{
    int patch = vit_get_config(m)->patch;
    if (!c->n_cases) FAIL(e, USAGE, "finetune: no labelled cases");
    TRY(check_labels(c, e));
    if (o->batch < 1 || o->batch > 65536) FAIL(e, USAGE, "finetune: a batch of %d", o->batch);
    if (!(o->epochs >= 0 && o->epochs <= 1e6)) FAIL(e, USAGE, "finetune: %g epochs", o->epochs);
    if (o->warmup_steps < 0) FAIL(e, USAGE, "finetune: %d warm-up steps", o->warmup_steps);
    if (!(o->crop_scale[0] > 0 && o->crop_scale[0] <= o->crop_scale[1] && o->crop_scale[1] <= 16))
        FAIL(e, USAGE, "finetune: crop scale %g to %g", (double)o->crop_scale[0], (double)o->crop_scale[1]);
    if (!(o->label_smoothing >= 0 && o->label_smoothing < 1))
        FAIL(e, USAGE, "finetune: label smoothing %g", (double)o->label_smoothing);
    if (!(o->mixup >= 0 && o->mixup <= 100)) FAIL(e, USAGE, "finetune: mixup of %g", (double)o->mixup);
    if (!(o->layer_decay > 0 && o->layer_decay <= 1))
        FAIL(e, USAGE, "finetune: layer decay of %g", (double)o->layer_decay);
    if (!(o->drop_path >= 0 && o->drop_path < 1)) FAIL(e, USAGE, "finetune: drop path of %g", (double)o->drop_path);
    if (o->view.size < patch || o->view.size % patch)
        FAIL(e, USAGE, "finetune: images of %d pixels are no multiple of the patch size %d", o->view.size, patch);
    if (info->n_labels != c->n_labels)
        FAIL(e, INTERNAL, "finetune: %d labels described, %d learnt", info->n_labels, c->n_labels);
    if (o->method != METHOD_LINEAR && !adapter->n) FAIL(e, INTERNAL, "finetune: nothing in the backbone is trainable");
    return ERR_OK;
}

err_code finetune_identity(vit *m, const param_set *adapter, const cohort *c, const finetune_options *o,
                           char out[HASH_HEX], err *e)
{
    char text[1024];
    device *d = vit_device(m);
    hash *h = hash_new();
    snprintf(text, sizeof text, "%s %d %a %d %a %a %a %a %a %a %a %a %d %a %a %a %a %a %d %d %d %d %d %a %d %llu",
             FORMAT_NAME, o->method, o->epochs, o->batch, o->lr, o->head_lr, o->lr_last, o->weight_decay, o->clip,
             o->label_smoothing, o->layer_decay, o->drop_path, o->warmup_steps, o->crop_scale[0], o->crop_scale[1],
             o->flip, o->jitter, o->mixup, o->probe_first, o->sampling, o->weights, o->patience, o->view.size,
             o->view.share, o->view.window.mode, (unsigned long long)o->seed);
    hash_str(h, text);
    for (int i = 0; i < 3 && o->view.window.mode == WINDOW_FIXED; i++) {
        const voi_window *w = &o->view.window.fixed[i];
        snprintf(text, sizeof text, "%d %a %a", w->function, w->center, w->width);
        hash_str(h, text);
    }
    const vit_config *k = vit_get_config(m);
    hash_add(h, k->mean, sizeof k->mean);
    hash_add(h, k->std, sizeof k->std);
    hash_str(h, vit_hash(m));
    hash_str(h, c->data_hash);
    hash_str(h, c->split_hash);
    err_code rc = ERR_OK;
    for (size_t i = 0; i < adapter->n && !rc; i++) {
        const param *p = &adapter->p[i];
        size_t bytes = p->rows * p->cols * sizeof(float);
        float *master = malloc(bytes + 1);
        if (!master)
            rc = err_set(e, ERR_NOMEM, __FILE__, __LINE__, "finetune: no memory for %zu bytes", bytes);
        else {
            d->op->download(d, master, p->master, bytes);
            rc = device_sync(d, e);
            hash_str(h, p->name);
            hash_add(h, master, bytes);
            if (p->rows_host) hash_add(h, p->rows_host, p->rows * sizeof *p->rows_host);
        }
        free(master);
    }
    hash_hex(h, out);
    return rc;
}

/* --- head */

typedef struct {
    param_set own; /* head.weight, head.bias */
    dv *live[2];
} head;

static err_code head_init(head *h, finetune_job *j, const param_set *adapter, err *e)
{
    device *d = j->d;
    size_t K = (size_t)j->outputs, C = j->dim;
    float *zero = calloc(K * C, sizeof *zero);
    err_code rc = ERR_OK;
    if (!zero || !param_add(&h->own, "head.weight", K, C) || !param_add(&h->own, "head.bias", K, 1))
        FAIL_DONE(rc, e, NOMEM, "finetune: no memory for the classifier");
    param *W = &h->own.p[0], *b = &h->own.p[1];
    W->decay = true;
    W->head = b->head = true;
    TRY_DONE(rc, param_alloc(d, W, zero, false, e));
    TRY_DONE(rc, param_alloc(d, b, zero, false, e));
    TRY_DONE(rc, d->op->alloc(d, K * C * d->ct_bytes, &h->live[0], e));
    TRY_DONE(rc, d->op->alloc(d, K * sizeof(float), &h->live[1], e));
    W->live = h->live[0];
    W->live_ct = true;
    W->linear = &j->head;
    b->live = h->live[1];
    j->head = (linear_w){.out = K, .in = C, .w = W->live, .bias = b->live, .version = 1};
    j->params.capacity = adapter->n + 2;
    j->params.p = malloc(j->params.capacity * sizeof *j->params.p);
    if (!j->params.p) FAIL_DONE(rc, e, NOMEM, "finetune: no memory");
    for (size_t i = 0; i < adapter->n; i++) j->params.p[j->params.n++] = adapter->p[i];
    for (size_t i = 0; i < 2; i++) j->params.p[j->params.n++] = h->own.p[i];
    optim_layer_decay(&j->params, vit_get_config(j->m)->depth, j->o->layer_decay);
done:
    free(zero);
    return rc;
}

static void head_fini(head *h, finetune_job *j)
{
    device *d = j->d;
    if (j->head.w) d->op->linear_release(d, &j->head);
    for (int i = 0; i < 2; i++)
        if (h->live[i]) d->op->free(d, h->live[i]);
    param_set_free(d, &h->own);
    free(j->params.p);
    j->params = (param_set){0};
}

/* --- what is written */

static json_t *real(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *metrics_pack(const metrics *m)
{
    return json_pack("{s:I,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "n", (json_int_t)m->n, "auc", real(m->auc), "accuracy",
                     real(m->accuracy), "macro_recall", real(m->macro_recall), "kappa_quadratic",
                     real(m->kappa_quadratic), "average_precision", real(m->average_precision), "mae", real(m->mae),
                     "loss", real(m->loss));
}

static double unreal(const json_t *j, const char *key)
{
    const json_t *x = json_object_get(j, key);
    return json_is_number(x) ? json_number_value(x) : NAN;
}

static void metrics_unpack(metrics *m, const json_t *j)
{
    *m = (metrics){.n = (size_t)json_integer_value(json_object_get(j, "n")),
                   .accuracy = unreal(j, "accuracy"),
                   .macro_recall = unreal(j, "macro_recall"),
                   .kappa_quadratic = unreal(j, "kappa_quadratic"),
                   .auc = unreal(j, "auc"),
                   .average_precision = unreal(j, "average_precision"),
                   .mae = unreal(j, "mae"),
                   .loss = unreal(j, "loss")};
}

/* What is true of a case and what was said of it: task_text. */
static err_code write_texts(FILE *f, const cohort *c, const labelled_case *k, const double *p, err *e)
{
    char *label = task_text(c, k), *said = task_text_of(c, p);
    if (label && said) {
        csv_field(f, label);
        fputc(',', f);
        csv_field(f, said);
    }
    bool bad = !label || !said;
    free(label);
    free(said);
    if (bad) FAIL(e, NOMEM, "finetune: no memory for a label");
    return ERR_OK;
}

static err_code write_predictions(const finetune_job *j, const finetune_seen *s, err *e)
{
    char path[FILE_PATH_MAX];
    file_writer *w;
    const cohort *c = j->c;
    TRY(file_path(path, e, "%s/predictions.csv", j->run_dir));
    TRY(file_begin(&w, path, e));
    fputs("case,part,label,predicted", w->f);
    for (int k = 0; k < j->classes; k++) {
        char column[80];
        snprintf(column, sizeof column, "p_%s", c->labels[k]);
        fputc(',', w->f);
        csv_field(w->f, column);
    }
    fputc('\n', w->f);
    for (size_t i = 0; i < s->set.n; i++) {
        const labelled_case *k = &c->cases[s->set.cases[i]];
        const double *p = s->of_case + i * (size_t)j->classes;
        fprintf(w->f, "%s,%s,", k->key, split_name(k->part));
        err_code rc = write_texts(w->f, c, k, p, e);
        if (rc) {
            file_abandon(&w);
            return rc;
        }
        for (int q = 0; q < j->classes; q++) fprintf(w->f, ",%.6f", p[q]);
        fputc('\n', w->f);
    }
    return file_commit(&w, e);
}

static err_code write_bundle(const finetune_job *j, const bundle_info *given, err *e)
{
    char path[FILE_PATH_MAX];
    const finetune_result *r = j->out;
    bundle_info *info = malloc(sizeof *info);
    json_t *both = json_pack("{s:o,s:o}", "validation", metrics_pack(&r->validation), "test",
                             r->has_test ? metrics_pack(&r->test) : json_null());
    char *text = both ? json_dumps(both, JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;
    err_code rc;
    json_decref(both);
    if (!info || !text) FAIL_DONE(rc, e, NOMEM, "finetune: no memory for the model's description");
    *info = *given;
    memcpy(info->backbone, vit_hash(j->m), HASH_HEX);
    info->task = j->c->task;
    info->heads = vit_get_config(j->m)->heads;
    info->size = j->o->view.size;
    info->share = j->o->view.share;
    memcpy(info->split_hash, j->c->split_hash, HASH_HEX);
    snprintf(info->version, sizeof info->version, "%s", RADAPT_VERSION);
    snprintf(info->metrics_json, sizeof info->metrics_json, "%s", text);
    TRY_DONE(rc, file_path(path, e, "%s/model.safetensors", j->run_dir));
    rc = bundle_write(path, j->d, &j->params, info, e);
done:
    free(info);
    free(text);
    return rc;
}

static err_code result_path(const finetune_job *j, char out[FILE_PATH_MAX], err *e)
{
    return file_path(out, e, "%s/result.json", j->run_dir);
}

static err_code write_result(const finetune_job *j, err *e)
{
    char path[FILE_PATH_MAX];
    const finetune_result *r = j->out;
    TRY(result_path(j, path, e));
    json_t *root = json_pack("{s:s,s:s,s:s,s:s,s:I,s:I,s:o,s:o,s:o,s:o}", "format", FORMAT_NAME, "identity",
                             j->identity, "method", peft_name(j->o->method), "task", findings_task_name(j->c->task),
                             "steps", (json_int_t)r->steps, "best_step", (json_int_t)j->best_step, "seconds",
                             real(r->seconds), "images_per_s", real(r->images_per_s), "validation",
                             metrics_pack(&r->validation), "test", r->has_test ? metrics_pack(&r->test) : json_null());
    char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(root);
    if (!text) FAIL(e, NOMEM, "finetune: no memory for the result");
    err_code rc = file_write(path, text, strlen(text), e);
    free(text);
    return rc;
}

/* *done: result.json is there and is this run's. */
static err_code read_result(finetune_job *j, bool *done, err *e)
{
    char path[FILE_PATH_MAX], *text;
    TRY(result_path(j, path, e));
    *done = file_exists(path);
    if (!*done) return ERR_OK;
    TRY(file_read(path, 1 << 20, &text, NULL, e));
    json_t *root = json_loads(text, 0, NULL);
    free(text);
    const char *identity = json_string_value(json_object_get(root, "identity"));
    const json_t *test = json_object_get(root, "test");
    finetune_result *r = j->out;
    err_code rc = ERR_OK;
    if (!identity) FAIL_DONE(rc, e, FORMAT, "finetune: result.json is damaged");
    if (strcmp(identity, j->identity))
        FAIL_DONE(rc, e, CONFLICT, "finetune: the run folder holds a run on other data or with other options");
    r->steps = (uint64_t)json_integer_value(json_object_get(root, "steps"));
    r->seconds = unreal(root, "seconds");
    r->images_per_s = unreal(root, "images_per_s");
    metrics_unpack(&r->validation, json_object_get(root, "validation"));
    r->has_test = json_is_object(test);
    metrics_unpack(&r->test, test);
    r->already_done = true;
done:
    json_decref(root);
    return rc;
}

/* --- the stage */

static err_code train(finetune_job *j, finetune_seen *all, err *e)
{
    static const bool every[3] = {true, true, true}, to_fit[3] = {true, true, false};
    size_t cases = 0;
    for (size_t i = 0; i < j->c->n_cases; i++) cases += j->c->cases[i].part == SPLIT_TRAIN;
    size_t cap = cases && PROBE_ROWS / cases ? PROBE_ROWS / cases : 1;
    double start = progress_clock();
    if (j->o->method == METHOD_LINEAR) {
        TRY(finetune_fit_look(j, all, every, 0, "features", e));
        TRY(finetune_fit_head(j, all, cap, e));
        j->out->seconds = progress_clock() - start;
        j->out->images_per_s = (double)case_set_frames(&all->set) / j->out->seconds;
        return ERR_OK;
    }
    if (j->o->probe_first && !finetune_train_started(j)) {
        finetune_seen fitted = {0};
        err_code rc = finetune_fit_look(j, &fitted, to_fit, cap, "features", e);
        if (!rc) rc = finetune_fit_head(j, &fitted, cap, e);
        finetune_fit_fini(&fitted);
        TRY(rc);
    }
    TRY(finetune_train(j, e));
    TRY(vit_merge(j->m, false, e)); /* as the bundle will be */
    return finetune_fit_look(j, all, every, 0, "evaluate", e);
}

static err_code finish(finetune_job *j, finetune_seen *all, const bundle_info *info, err *e)
{
    finetune_result *r = j->out;
    char path[FILE_PATH_MAX];
    TRY(finetune_fit_predict(j, all, e));
    TRY(case_set_metrics(&all->set, all->of_case, SPLIT_VALIDATION, &r->validation, e));
    TRY(case_set_metrics(&all->set, all->of_case, SPLIT_TEST, &r->test, e));
    r->has_test = r->test.n > 0;
    TRY(write_predictions(j, all, e));
    TRY(write_bundle(j, info, e));
    TRY(write_result(j, e));
    TRY(file_path(path, e, "%s/checkpoint.safetensors", j->run_dir));
    unlink(path); /* the result is there: nothing goes on from it any more */
    log_event(LOG_INFO, "finetune.done", "steps", LOG_INT(r->steps), "seconds", LOG_REAL(r->seconds), "validation_auc",
              LOG_REAL(r->validation.auc), "test_auc", LOG_REAL(r->test.auc), "test_kappa",
              LOG_REAL(r->test.kappa_quadratic), "test_accuracy", LOG_REAL(r->test.accuracy), NULL);
    return ERR_OK;
}

err_code finetune_run(vit *m, param_set *adapter, const cohort *c, const finetune_options *o, const bundle_info *info,
                      const char *run_dir, finetune_result *out, err *e)
{
    char identity[HASH_HEX];
    bool done = false;
    head h = {0};
    finetune_seen all = {0};
    *out = (finetune_result){0};
    TRY(check(m, adapter, c, o, info, e));
    param_set trained;
    TRY(bundle_params(info, adapter, &trained, e));
    err_code rc = finetune_identity(m, &trained, c, o, identity, e);
    free(trained.p);
    TRY(rc);
    TRY(file_mkdirs(run_dir, e));
    finetune_job j = {.m = m,
                      .d = vit_device(m),
                      .c = c,
                      .o = o,
                      .run_dir = run_dir,
                      .identity = identity,
                      .dim = (size_t)vit_get_config(m)->dim,
                      .classes = c->n_labels,
                      .outputs = task_outputs(c->task, c->n_labels),
                      .balanced =
                          o->sampling == SAMPLING_AUTO ? c->task == TASK_MULTICLASS : o->sampling == SAMPLING_BALANCED,
                      .out = out};
    TRY(read_result(&j, &done, e));
    if (done) return ERR_OK;
    if (o->weights == WEIGHTS_AUTO ? c->task == TASK_MULTILABEL : o->weights == WEIGHTS_BALANCED) {
        j.class_weight = malloc(2 * (size_t)c->n_labels * sizeof *j.class_weight);
        if (!j.class_weight) FAIL(e, NOMEM, "finetune: no memory");
        task_weights(c, j.class_weight);
    }
    TRY_DONE(rc, head_init(&h, &j, adapter, e));
    TRY_DONE(rc, train(&j, &all, e));
    rc = finish(&j, &all, info, e);
done:
    finetune_fit_fini(&all);
    head_fini(&h, &j);
    free(j.class_weight);
    return rc;
}

err_code finetune_measure(vit *m, param_set *adapter, const finetune_options *o, int classes, finetune_measured *out,
                          err *e)
{
    cohort c = {.n_labels = classes};
    finetune_job j = {.m = m,
                      .d = vit_device(m),
                      .c = &c,
                      .o = o,
                      .dim = (size_t)vit_get_config(m)->dim,
                      .classes = classes,
                      .outputs = classes};
    head h = {0};
    size_t before = j.d->bytes;
    *out = (finetune_measured){0};
    err_code rc = head_init(&h, &j, adapter, e);
    out->head = j.d->bytes - before;
    if (!rc) rc = finetune_train_measure(&j, out, e);
    head_fini(&h, &j);
    return rc;
}
