/* bundle.c: everything needed to look at a study again, except the frozen backbone, which is named by its hash. */
#include "adapt/bundle.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapt/adapter.h"
#include "adapt/metrics.h"
#include "adapt/probe.h"
#include "adapt/task.h"

/* /2 has a task that a program which knows only classes would get wrong; classes are written as /1. */
#define FORMAT_NAME "radapt-bundle/1"
#define FORMAT_TASK "radapt-bundle/2"
enum { LABELS_MAX = 1000, EVIDENCE_MAX = 8, CHUNK_FRAMES = 4096 };

struct bundle {
    bundle_info info;
    char hash[HASH_HEX];
    device *d;
    vit *m;
    float *weight, *bias; /* (outputs, dim), (outputs): task.h */
    view_options view;
};

/* --- metadata */

static void rename_base(param *p)
{
    char name[sizeof p->name];
    memcpy(name, p->name, sizeof name);
    snprintf(p->name, sizeof p->name, "base.%.80s", name);
}

err_code bundle_params(const bundle_info *info, const param_set *ps, param_set *both, err *e)
{
    size_t base = info->base_params ? info->base_params->n : 0, n = base + ps->n;
    *both = (param_set){.p = calloc(n + 1, sizeof *both->p), .n = n, .capacity = n};
    if (!both->p) FAIL(e, NOMEM, "model bundle: no memory for a list of %zu tensors", n);
    for (size_t i = 0; i < n; i++) both->p[i] = i < base ? info->base_params->p[i] : ps->p[i - base];
    for (size_t i = 0; i < base; i++) rename_base(&both->p[i]);
    return ERR_OK;
}

err_code bundle_write(const char *path, device *d, const param_set *ps, const bundle_info *info, err *e)
{
    char heads[16], size[16], share[32];
    json_t *labels = json_array();
    int bad = !labels;
    for (int i = 0; i < info->n_labels; i++) {
        const label_code *l = &info->labels[i];
        bad |= json_array_append_new(labels, json_pack("{s:s,s:s,s:s,s:s}", "name", l->name, "value", l->value,
                                                       "scheme", l->scheme, "meaning", l->meaning));
    }
    char *text = bad ? NULL : json_dumps(labels, JSON_COMPACT);
    json_decref(labels);
    if (!text) FAIL(e, INTERNAL, "model bundle: a label is not UTF-8");
    snprintf(heads, sizeof heads, "%d", info->heads);
    snprintf(size, sizeof size, "%d", info->size);
    snprintf(share, sizeof share, "%.9g", (double)info->share);
    const checkpoint_meta own[] = {
        {"bundle.format", info->task == TASK_MULTICLASS ? FORMAT_NAME : FORMAT_TASK},
        {"bundle.task", findings_task_name(info->task)},
        {"bundle.backbone", info->backbone},
        {"bundle.backbone_path", info->backbone_path},
        {"bundle.backbone_random", info->backbone_random},
        {"bundle.normalisation", info->normalisation},
        {"bundle.heads", heads},
        {"bundle.window", info->window},
        {"bundle.size", size},
        {"bundle.share", share},
        {"bundle.split", info->split_hash},
        {"bundle.version", info->version},
        {"bundle.metrics", info->metrics_json},
        {"bundle.labels", text},
    };
    enum { OWN = sizeof own / sizeof *own };
    adapter_text methods[2];
    checkpoint_meta meta[OWN + 2 * ADAPTER_KEYS];
    size_t n = OWN;
    memcpy(meta, own, sizeof own);
    adapter_describe(&info->peft, "bundle.", &methods[0]);
    adapter_describe(&info->base, "bundle.base.", &methods[1]);
    for (int i = 0; i < (info->base.method == METHOD_LINEAR ? 1 : 2); i++)
        for (size_t k = 0; k < methods[i].n; k++) meta[n++] = methods[i].meta[k];
    param_set all;
    err_code rc = bundle_params(info, ps, &all, e);
    if (!rc) rc = checkpoint_write(path, d, &all, false, false, NULL, 0, meta, n, e);
    free(all.p);
    free(text);
    return rc;
}

/* out[size] = metadata "bundle.<key>"; false: missing or too long. */
static bool meta_text(const safetensors *s, const char *key, char *out, size_t size)
{
    char name[64];
    snprintf(name, sizeof name, "bundle.%s", key);
    const char *v = safetensors_meta(s, name);
    if (!v || strlen(v) >= size) return false;
    memcpy(out, v, strlen(v) + 1);
    return true;
}

static bool meta_number(const safetensors *s, const char *key, double least, double most, double *out)
{
    char text[64], *end;
    if (!meta_text(s, key, text, sizeof text)) return false;
    *out = strtod(text, &end);
    return end != text && !*end && *out >= least && *out <= most;
}

static bool member(const json_t *j, const char *key, char *out, size_t size)
{
    const char *v = json_string_value(json_object_get(j, key));
    if (!v || strlen(v) >= size) return false;
    memcpy(out, v, strlen(v) + 1);
    return true;
}

static bool parse_labels(const safetensors *s, bundle_info *out)
{
    const char *text = safetensors_meta(s, "bundle.labels");
    json_t *all = text ? json_loads(text, JSON_REJECT_DUPLICATES, NULL) : NULL;
    size_t n = json_array_size(all);
    bool good = n >= (out->task == TASK_MULTILABEL ? 1 : 2) && n <= LABELS_MAX &&
                (out->labels = calloc(n, sizeof *out->labels));
    for (size_t i = 0; good && i < n; i++) {
        const json_t *j = json_array_get(all, i);
        label_code *l = &out->labels[i];
        good = member(j, "name", l->name, sizeof l->name) && member(j, "value", l->value, sizeof l->value) &&
               member(j, "scheme", l->scheme, sizeof l->scheme) && member(j, "meaning", l->meaning, sizeof l->meaning);
    }
    if (good) out->n_labels = (int)n;
    json_decref(all);
    return good;
}

static err_code parse_info(const safetensors *s, bundle_info *out, err *e)
{
    double heads, size, share;
    const char *format = safetensors_meta(s, "bundle.format");
    *out = (bundle_info){0};
    if (!format) FAIL(e, FORMAT, "not a model bundle of this program");
    if (strcmp(format, FORMAT_NAME) && strcmp(format, FORMAT_TASK))
        FAIL(e, FORMAT, "model bundle: its format is none that this program knows (" FORMAT_NAME ", " FORMAT_TASK ")");
    const char *task = safetensors_meta(s, "bundle.task"); /* older ones have none */
    if (task && !findings_task(task, &out->task)) FAIL(e, FORMAT, "model bundle: its task is unknown to this program");
    bool good = meta_text(s, "backbone", out->backbone, sizeof out->backbone) &&
                meta_text(s, "backbone_path", out->backbone_path, sizeof out->backbone_path) &&
                meta_text(s, "backbone_random", out->backbone_random, sizeof out->backbone_random) &&
                meta_text(s, "normalisation", out->normalisation, sizeof out->normalisation) &&
                adapter_spec(s, "bundle.", &out->peft) &&
                (!safetensors_meta(s, "bundle.base.method") || adapter_spec(s, "bundle.base.", &out->base)) &&
                meta_text(s, "window", out->window, sizeof out->window) &&
                meta_text(s, "split", out->split_hash, sizeof out->split_hash) &&
                meta_text(s, "version", out->version, sizeof out->version) &&
                meta_text(s, "metrics", out->metrics_json, sizeof out->metrics_json) &&
                meta_number(s, "heads", 1, 1024, &heads) && meta_number(s, "size", 1, 4096, &size) &&
                meta_number(s, "share", 1e-3, 4, &share) && parse_labels(s, out);
    if (!good) {
        bundle_info_fini(out);
        FAIL(e, FORMAT, "model bundle: its metadata is damaged");
    }
    out->heads = (int)heads;
    out->size = (int)size;
    out->share = (float)share;
    return ERR_OK;
}

err_code bundle_read_info(const char *path, bundle_info *info, err *e)
{
    safetensors s;
    TRY(safetensors_open(&s, path, e));
    err_code rc = parse_info(&s, info, e);
    safetensors_close(&s);
    return rc;
}

void bundle_info_fini(bundle_info *info)
{
    free(info->labels);
    *info = (bundle_info){0};
}

/* --- the model */

static err_code open_backbone(bundle *b, const char *path, err *e)
{
    vit_source source = {.heads = b->info.heads, .normalisation = "auto"};
    if (*b->info.normalisation) source.normalisation = b->info.normalisation;
    if (path)
        source.path = path;
    else if (*b->info.backbone_path)
        source.path = b->info.backbone_path;
    else {
        char name[128];
        snprintf(name, sizeof name, "%s", b->info.backbone_random);
        char *seed = strstr(name, " seed=");
        if (!seed) FAIL(e, FORMAT, "model bundle: it does not say which backbone it belongs to");
        *seed = 0;
        source.seed = strtoull(seed + 6, NULL, 10);
        TRY(vit_named_config(name, &source.random, e));
    }
    TRY(vit_open(&b->m, b->d, &source, e));
    if (strcmp(vit_hash(b->m), b->info.backbone))
        FAIL(e, CONFLICT, "model bundle: it was trained on another backbone (SHA-256 %.12s, this one has %.12s)",
             b->info.backbone, vit_hash(b->m));
    return ERR_OK;
}

/* out[rows*cols] = a float tensor of this shape; cols 1: a vector. */
static err_code read_tensor(const safetensors *s, const char *name, size_t rows, size_t cols, float *out, err *e)
{
    const tensor *t = safetensors_find(s, name);
    if (!t) FAIL(e, FORMAT, "model bundle: no tensor %s", name);
    if (t->count != rows * cols || t->dims < 1 || t->shape[0] != rows)
        FAIL(e, SHAPE, "model bundle: %s has %zu values, (%zu, %zu) are needed", name, t->count, rows, cols);
    TRY(tensor_to_f32(t, out, e));
    for (size_t i = 0; i < t->count; i++)
        if (!isfinite(out[i])) FAIL(e, NUMERIC, "model bundle: %s holds a value that is not finite", name);
    return ERR_OK;
}

/* What was trained, into the backbone: a pass then costs what the backbone's does. */
static err_code apply(bundle *b, const safetensors *s, const peft_spec *spec, bool base, err *e)
{
    param_set ps = {.weights_only = true};
    if (spec->method == METHOD_LINEAR) return ERR_OK;
    err_code rc = vit_train(b->m, spec, &ps, e);
    for (size_t i = 0; base && i < ps.n; i++) rename_base(&ps.p[i]);
    if (!rc) rc = checkpoint_load(s, b->d, &ps, false, NULL, 0, e);
    if (!rc) rc = vit_merge(b->m, base && b->info.peft.method != METHOD_LINEAR, e);
    param_set_free(b->d, &ps);
    return rc;
}

static err_code load(bundle *b, const safetensors *s, const char *backbone_path, err *e)
{
    TRY(parse_info(s, &b->info, e));
    TRY(window_parse(*b->info.window ? b->info.window : "auto", &b->view.window, e));
    b->view.size = b->info.size;
    b->view.share = b->info.share;
    TRY(open_backbone(b, backbone_path, e));
    size_t C = (size_t)vit_get_config(b->m)->dim, O = (size_t)task_outputs(b->info.task, b->info.n_labels);
    TRY(apply(b, s, &b->info.base, true, e));
    TRY(apply(b, s, &b->info.peft, false, e));
    b->weight = malloc(O * C * sizeof *b->weight);
    b->bias = malloc(O * sizeof *b->bias);
    if (!b->weight || !b->bias) FAIL(e, NOMEM, "model bundle: no memory");
    TRY(read_tensor(s, "head.weight", O, C, b->weight, e));
    return read_tensor(s, "head.bias", O, 1, b->bias, e);
}

err_code bundle_open(bundle **out, device *d, const char *path, const char *backbone_path, err *e)
{
    safetensors s;
    *out = NULL;
    bundle *b = calloc(1, sizeof *b);
    if (!b) FAIL(e, NOMEM, "model bundle: no memory");
    b->d = d;
    err_code rc = hash_file(path, b->hash, e);
    if (!rc) rc = safetensors_open(&s, path, e);
    if (!rc) {
        rc = load(b, &s, backbone_path, e);
        safetensors_close(&s);
    }
    if (rc)
        bundle_close(b);
    else
        *out = b;
    return rc;
}

void bundle_close(bundle *b)
{
    if (!b) return;
    vit_close(b->m);
    bundle_info_fini(&b->info);
    free(b->weight);
    free(b->bias);
    free(b);
}

const bundle_info *bundle_get_info(const bundle *b)
{
    return &b->info;
}

const vit *bundle_vit(const bundle *b)
{
    return b->m;
}

void bundle_head(const bundle *b, const float **weight, const float **bias, size_t *outputs)
{
    *weight = b->weight;
    *bias = b->bias;
    *outputs = (size_t)task_outputs(b->info.task, b->info.n_labels);
}

const char *bundle_hash(const bundle *b)
{
    return b->hash;
}

/* --- prediction */

typedef struct {
    double probability;
    size_t frame;
} speaker;

static int loudest_first(const void *a, const void *b)
{
    const speaker *x = a, *y = b;
    if (x->probability != y->probability) return x->probability < y->probability ? 1 : -1;
    return (x->frame > y->frame) - (x->frame < y->frame);
}

/* The frames [first, first + n) that speak for a label, from their probabilities p (n, K). */
static err_code speak(const cohort *c, size_t first, size_t n, const double *p, size_t K, int label, finding *out,
                      err *e)
{
    size_t told = n < EVIDENCE_MAX ? n : EVIDENCE_MAX;
    double total = 0;
    speaker *s = malloc(n * sizeof *s);
    out->label = label;
    out->evidence = calloc(told, sizeof *out->evidence);
    if (!out->evidence || !s) {
        free(s);
        FAIL(e, NOMEM, "no memory for a finding");
    }
    for (size_t i = 0; i < n; i++) {
        s[i] = (speaker){p[i * K + (size_t)label], first + i};
        total += s[i].probability;
    }
    qsort(s, n, sizeof *s, loudest_first);
    for (size_t i = 0; i < told; i++) {
        finding_evidence *v = &out->evidence[out->n_evidence++];
        memcpy(v->instance_key, c->frames[s[i].frame].instance_key, KEY_HEX);
        v->frame = c->frames[s[i].frame].frame;
        v->weight = total > 0 ? s[i].probability / total : 1 / (double)n; /* a median grade may have no probability */
    }
    free(s);
    return ERR_OK;
}

static err_code found(const cohort *c, size_t first, size_t n, const double *p, int labels, int label,
                      study_finding *out, err *e)
{
    return speak(c, first, n, p, (size_t)labels, label, &out->found[out->n_found++], e);
}

/* The study of frames [first, first + n) from their probabilities p (n, K). */
static err_code study(const cohort *c, size_t first, size_t n, const double *p, label_task task, int labels,
                      study_finding *out, err *e)
{
    size_t K = (size_t)labels;
    out->probability = calloc(K, sizeof *out->probability);
    out->found = calloc(K, sizeof *out->found);
    if (!out->probability || !out->found) FAIL(e, NOMEM, "no memory for a study's findings");
    memcpy(out->study_key, c->frames[first].study_key, KEY_HEX);
    out->frames = (int)n;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < K; k++) out->probability[k] += p[i * K + k] / (double)n;
    for (size_t k = 0; k < K; k++) out->probability[k] = fmin(out->probability[k], 1); /* but for rounding */
    if (task != TASK_MULTILABEL)
        return found(c, first, n, p, labels, metrics_decide(task, out->probability, labels), out, e);
    for (;;) { /* every label of 1/2 and more, from the most probable on */
        int next = -1;
        for (int k = 0; k < labels; k++) {
            bool taken = false;
            for (int i = 0; i < out->n_found; i++) taken |= out->found[i].label == k;
            if (!taken && out->probability[k] >= 0.5 && (next < 0 || out->probability[k] > out->probability[next]))
                next = k;
        }
        if (next < 0) return ERR_OK;
        TRY(found(c, first, n, p, labels, next, out, e));
    }
}

static size_t study_end(const cohort *c, size_t first)
{
    size_t end = first + 1;
    while (end < c->n_frames && !strcmp(c->frames[end].study_key, c->frames[first].study_key)) end++;
    return end;
}

/* The studies of frames [first, end), which hold whole studies. */
static err_code chunk(bundle *b, const cohort *c, size_t first, size_t end, findings *out, err *e)
{
    const label_task task = b->info.task;
    const int labels = b->info.n_labels, outputs = task_outputs(task, labels);
    size_t n = end - first, C = (size_t)vit_get_config(b->m)->dim, K = (size_t)labels;
    uint32_t *index = malloc(n * sizeof *index);
    float *x = malloc(n * C * sizeof *x);
    double *p = malloc(n * K * sizeof *p), *z = malloc(n * (size_t)outputs * sizeof *z);
    err_code rc = ERR_OK;
    if (!index || !x || !p || !z) FAIL_DONE(rc, e, NOMEM, "no memory for the features of %zu frames", n);
    for (size_t i = 0; i < n; i++) index[i] = (uint32_t)(first + i);
    TRY_DONE(rc, features_extract(b->m, VIT_STUDENT, c, index, n, &b->view, NULL, x, e));
    probe_logits(b->weight, b->bias, x, n, C, outputs, z);
    task_probabilities(task, labels, z, n, p);
    for (size_t i = 0; i < n * K; i++)
        if (!isfinite(p[i])) FAIL_DONE(rc, e, NUMERIC, "the model gives values that are not finite");
    for (size_t i = first, next; i < end; i = next) {
        next = study_end(c, i);
        TRY_DONE(rc, study(c, i, next - i, p + (i - first) * K, task, labels, &out->studies[out->n_studies++], e));
    }
done:
    free(index);
    free(x);
    free(p);
    free(z);
    return rc;
}

static err_code describe(const bundle *b, findings *out, err *e)
{
    const bundle_info *i = &b->info;
    snprintf(out->algorithm, sizeof out->algorithm, "radapt");
    snprintf(out->version, sizeof out->version, "%s", i->version);
    memcpy(out->model_hash, b->hash, HASH_HEX);
    snprintf(out->parameters, sizeof out->parameters, "method=%s backbone=%.12s size=%d window=%s",
             peft_name(i->peft.method), i->backbone, i->size, *i->window ? i->window : "auto");
    out->task = i->task;
    out->labels = malloc((size_t)i->n_labels * sizeof *out->labels);
    if (!out->labels) FAIL(e, NOMEM, "no memory for %d labels", i->n_labels);
    memcpy(out->labels, i->labels, (size_t)i->n_labels * sizeof *out->labels);
    out->n_labels = i->n_labels;
    return ERR_OK;
}

err_code bundle_predict(bundle *b, const cohort *c, findings *out, err *e)
{
    size_t studies = 0;
    *out = (findings){0};
    err_code rc = describe(b, out, e);
    for (size_t i = 0; i < c->n_frames; i = study_end(c, i)) studies++;
    if (!rc) {
        out->studies = calloc(studies + 1, sizeof *out->studies);
        if (!out->studies) rc = err_set(e, ERR_NOMEM, __FILE__, __LINE__, "no memory for %zu studies", studies);
    }
    progress p;
    progress_start(&p, "predict", "images", c->n_frames);
    b->view.shown = &p;
    for (size_t first = 0, end; !rc && first < c->n_frames; first = end) {
        end = study_end(c, first);
        while (end < c->n_frames) {
            size_t next = study_end(c, end);
            if (next - first > CHUNK_FRAMES) break;
            end = next;
        }
        rc = chunk(b, c, first, end, out, e);
    }
    b->view.shown = NULL;
    progress_end(&p);
    if (rc) findings_fini(out);
    return rc;
}
