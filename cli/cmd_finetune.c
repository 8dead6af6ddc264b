/* cmd_finetune.c: `radapt finetune`: classifier (and adapter) trained on the labelled cohort -> a model bundle. */
#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapt/adapter.h"
#include "adapt/plan.h"
#include "base/log.h"
#include "cli/binding.h"
#include "cli/cmd.h"
#include "cli/method.h"
#include "cli/recompute.h"
#include "cli/stage.h"

#define AT(field) offsetof(finetune_options, field)
static const binding fields[] = {
    {"finetune.epochs", BINDING_DOUBLE, AT(epochs), 1},
    {"finetune.patience", BINDING_INT, AT(patience), 1},
    {"finetune.batch", BINDING_INT, AT(batch), 1},
    {"finetune.lr", BINDING_FLOAT, AT(lr), 1},
    {"finetune.head-lr", BINDING_FLOAT, AT(head_lr), 1},
    {"finetune.lr-last", BINDING_FLOAT, AT(lr_last), 1},
    {"finetune.warmup-steps", BINDING_INT, AT(warmup_steps), 1},
    {"finetune.weight-decay", BINDING_FLOAT, AT(weight_decay), 1},
    {"finetune.clip", BINDING_FLOAT, AT(clip), 1},
    {"finetune.label-smoothing", BINDING_FLOAT, AT(label_smoothing), 1},
    {"finetune.layer-decay", BINDING_FLOAT, AT(layer_decay), 1},
    {"finetune.drop-path", BINDING_FLOAT, AT(drop_path), 1},
    {"finetune.mixup", BINDING_FLOAT, AT(mixup), 1},
    {"finetune.crop-scale", BINDING_FLOATS, AT(crop_scale), 2},
    {"finetune.flip", BINDING_FLOAT, AT(flip), 1},
    {"finetune.jitter", BINDING_FLOAT, AT(jitter), 1},
};
#undef AT
enum { FIELDS = sizeof fields / sizeof *fields };

static void defaults(const options *o, finetune_options *out)
{
    peft_method method = METHOD_APLA;
    peft_find(options_text(o, "finetune.method"), &method);
    finetune_defaults(out, method);
}

err_code cmd_finetune_defaults(options *o, err *e)
{
    finetune_options fo;
    defaults(o, &fo);
    TRY(binding_show(o, fields, FIELDS, &fo, e));
    return options_fallback(o, "finetune.rows", "0", e);
}

json_t *cmd_finetune_metrics(const metrics *m)
{
    return json_pack("{s:I,s:o,s:o,s:o,s:o,s:o,s:o}", "cases", (json_int_t)m->n, "auc", stage_real(m->auc), "accuracy",
                     stage_real(m->accuracy), "macro_recall", stage_real(m->macro_recall), "kappa_quadratic",
                     stage_real(m->kappa_quadratic), "average_precision", stage_real(m->average_precision), "mae",
                     stage_real(m->mae));
}

/* What is not defined for the labels is not printed. */
void cmd_finetune_print(const char *what, const metrics *m)
{
    const struct {
        const char *name;
        double value;
    } all[] = {{"ROC-AUC", m->auc},
               {"average precision", m->average_precision},
               {"accuracy", m->accuracy},
               {"macro recall", m->macro_recall},
               {"quadratic kappa", m->kappa_quadratic},
               {"mean error", m->mae}};
    printf("%s: %zu cases", what, m->n);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!isnan(all[i].value)) printf(", %s %.3f", all[i].name, all[i].value);
    putchar('\n');
}

static void take_choices(const options *o, finetune_options *out)
{
    const char *sampling = options_text(o, "finetune.sampling"), *weights = options_text(o, "finetune.class-weights");
    out->sampling = !strcmp(sampling, "balanced")  ? SAMPLING_BALANCED
                    : !strcmp(sampling, "natural") ? SAMPLING_NATURAL
                                                   : SAMPLING_AUTO;
    out->weights = !strcmp(weights, "balanced") ? WEIGHTS_BALANCED
                   : !strcmp(weights, "none")   ? WEIGHTS_NONE
                                                : WEIGHTS_AUTO;
    out->probe_first = !strcmp(options_text(o, "finetune.head-init"), "probe");
}

/* --- the adapter that it starts from
 * ------------------------------------------------------------------------------------------------------------- */

/* The newest adapter for this backbone that left out the patients who are held out now. *found false: there is none at
 * all; that only others are there is an error. */
static err_code find_adapter(const stage *s, char path[FILE_PATH_MAX], bool *found, err *e)
{
    err why = {0};
    err_code rc = stage_newest_adapter(s, s->cohort.split_hash, path, &why);
    *found = !rc;
    if (rc != ERR_NOTFOUND) return rc ? err_set(e, rc, why.file, why.line, "%s", why.msg) : ERR_OK;
    log_event(LOG_WARN, "finetune.no-adapter", "meaning",
              LOG_STR("no adapted weights for this backbone here: starting from the backbone as it is"), NULL);
    return ERR_OK;
}

/* A file that the user named: was it trained without those who are held out now? */
static err_code check_adapter(const stage *s, const safetensors *f, err *e)
{
    if (adapter_kept_out(f, s->cohort.split_hash)) return ERR_OK;
    if (!options_flag(s->o, "finetune.foreign-adapter"))
        FAIL(e, CONFLICT,
             "--adapter may have been trained on patients who are held out here: adapt again with --labels; or, if it "
             "was made of other patients, say --foreign-adapter");
    log_event(LOG_WARN, "finetune.other-split", "meaning",
              LOG_STR("the adapter does not know this split of the patients: had it seen the held-out ones, what is "
                      "measured on them would be too good"),
              NULL);
    return ERR_OK;
}

/* What fine-tuning starts from: the adapter's own tensors go on where the method is the same (and its numbers, or none
 * were given); else they become part of the backbone, and the wanted method's come on top. */
static err_code load_adapter(stage *s, const safetensors *f, const peft_spec *wanted, peft_spec *spec, peft_spec *base,
                             err *e)
{
    peft_spec found = {0};
    bool known = adapter_spec(f, "", &found), linear = wanted->method == METHOD_LINEAR;
    bool same =
        known && wanted->method == found.method && (!method_given(s->o, "finetune") || peft_same(wanted, &found));
    s->params.weights_only = !linear && !same; /* merged and set aside: nothing of it trains */
    TRY(adapter_load(f, s->vit, false, &s->params, &found, e));
    if (linear || same) *spec = found;
    if (linear) return vit_merge(s->vit, false, e);
    if (same) return ERR_OK;
    TRY(vit_merge(s->vit, true, e));
    s->base = s->params;
    s->params = (param_set){0};
    *base = found;
    *spec = *wanted;
    return vit_train(s->vit, wanted, &s->params, e);
}

/* Pixels are normalised as the adapter's were, unless the user says how ("auto": as the backbone was trained). f NULL:
 * there is none. */
static err_code normalise(stage *s, const safetensors *f, const view_options *v, err *e)
{
    const char *adapters = f ? safetensors_meta(f, "normalisation") : NULL;
    if (!adapters || options_given(s->o, "normalisation")) return stage_normalise(s, v, e);
    return vit_normalise(s->vit, adapters, e);
}

/* Chooses and loads what fine-tuning starts from. from: hash of the adapter's file, or "none". */
static err_code prepare_params(stage *s, const char *adapter, const view_options *v, peft_spec *spec, peft_spec *base,
                               char from[HASH_HEX], bool *adapted, err *e)
{
    const options *o = s->o;
    char found[FILE_PATH_MAX];
    err why = {0};
    peft_spec wanted;
    *spec = *base = (peft_spec){0};
    TRY(method_spec(o, "finetune", &wanted, e));
    if (!adapter) adapter = options_text(o, "finetune.adapter");
    *adapted = strcmp(adapter, "none");
    if (!strcmp(adapter, "auto")) {
        TRY(find_adapter(s, found, adapted, e));
        adapter = found;
    }
    snprintf(from, HASH_HEX, "none");
    if (!*adapted) {
        *spec = wanted;
        TRY(normalise(s, NULL, v, e));
        return wanted.method == METHOD_LINEAR ? ERR_OK : vit_train(s->vit, spec, &s->params, e);
    }
    safetensors f;
    if (hash_file(adapter, from, &why)) return stage_blame("--adapter", adapter, &why, e);
    if (safetensors_open(&f, adapter, &why)) return stage_blame("--adapter", adapter, &why, e);
    err_code rc = check_adapter(s, &f, e);
    if (rc) {
        safetensors_close(&f);
        return rc;
    }
    rc = load_adapter(s, &f, &wanted, spec, base, &why);
    if (!rc) rc = normalise(s, &f, v, &why);
    safetensors_close(&f);
    if (rc) return stage_blame("--adapter", adapter, &why, e);
    return ERR_OK;
}

/* --- the stage
 * ------------------------------------------------------------------------------------------------------------- */

static err_code describe(stage *s, bundle_info *info, const peft_spec *spec, const peft_spec *base, err *e)
{
    const options *o = s->o;
    const cohort *c = &s->cohort;
    const char *window = options_text(o, "window"), *codes = options_text(o, "finetune.codes");
    memcpy(info->backbone, vit_hash(s->vit), HASH_HEX);
    memcpy(info->backbone_path, s->backbone_path, sizeof info->backbone_path);
    memcpy(info->backbone_random, s->backbone_random, sizeof info->backbone_random);
    vit_normalisation_text(s->vit, info->normalisation);
    info->heads = (int)options_int(o, "backbone-heads");
    info->peft = *spec;
    info->base = *base;
    info->base_params = &s->base;
    if (strlen(window) >= sizeof info->window) FAIL(e, USAGE, "--window is too long");
    snprintf(info->window, sizeof info->window, "%s", window);
    info->size = (int)options_int(o, "size");
    info->share = (float)options_real(o, "center-crop");
    snprintf(info->version, sizeof info->version, "%s", RADAPT_VERSION);
    memcpy(info->split_hash, c->split_hash, HASH_HEX);
    info->labels = calloc((size_t)c->n_labels, sizeof *info->labels);
    if (!info->labels) FAIL(e, NOMEM, "no memory for the labels");
    info->n_labels = c->n_labels;
    for (int i = 0; i < c->n_labels; i++) memcpy(info->labels[i].name, c->labels[i], sizeof info->labels[i].name);
    err why = {0};
    if (findings_codes(*codes ? codes : NULL, info->labels, info->n_labels, &why))
        return *codes ? stage_blame("--codes", codes, &why, e)
                      : err_set(e, why.code, why.file, why.line, "%s", why.msg);
    return ERR_OK;
}

/* What the options come to where that depends on whether they were given: pixels are normalised as the adapter's were,
 * and its own numbers hold, unless the user says otherwise. */
enum { PARAMS_TEXT = 2 * ADAPTER_KEYS * (ADAPTER_KEY + ADAPTER_VALUE) + VIT_NORMALISATION_TEXT };
static void describe_params(const bundle_info *info, char out[PARAMS_TEXT])
{
    size_t n = (size_t)snprintf(out, PARAMS_TEXT, "%s", info->normalisation);
    for (int i = 0; i < 2; i++) {
        adapter_text text;
        adapter_describe(i ? &info->base : &info->peft, i ? " base." : " ", &text);
        for (size_t k = 0; k < text.n; k++)
            n += (size_t)snprintf(out + n, PARAMS_TEXT - n, "%s=%s", text.meta[k].key, text.meta[k].value);
    }
}

typedef struct {
    const stage *s;
    finetune_options *fo;
    const peft_spec *spec;
} memory_check;

static err_code fits(void *ctx, size_t blocks, err *e)
{
    const memory_check *k = ctx;
    device d;
    vit *shape;
    plan p;
    k->fo->recompute = blocks;
    TRY(plan_shape(&shape, &d, k->s->vit, e));
    err_code rc = plan_finetune(&p, shape, k->spec, k->fo, k->s->cohort.n_labels, e);
    vit_close(shape);
    device_close(&d);
    if (!rc) rc = plan_fits(&p, &k->s->device, "finetune", e);
    if (!rc) k->fo->frame_room = plan_left(&p, &k->s->device);
    return rc;
}

static err_code finetune(stage *s, const char *adapter, bundle_info *info, finetune_outcome *out, err *e)
{
    const options *o = s->o;
    peft_spec spec, base;
    finetune_options fo;
    bool automatic;
    char from[HASH_HEX], codes[HASH_HEX], params[PARAMS_TEXT], folder[FILE_PATH_MAX], note[640];
    defaults(o, &fo);
    TRY(stage_view(s, &fo.view, e));
    TRY(prepare_params(s, adapter, &fo.view, &spec, &base, from, &out->adapted, e));
    TRY(describe(s, info, &spec, &base, e));
    hash_buffer(info->labels, (size_t)info->n_labels * sizeof *info->labels, codes);
    binding_take(o, fields, FIELDS, &fo);
    take_choices(o, &fo);
    TRY(recompute_read(o, &fo.recompute, &automatic, e));
    fo.seed = (uint64_t)options_int(o, "seed");
    const char *data = s->cohort.data_hash, *split = s->cohort.split_hash;
    describe_params(info, params);
    TRY(stage_run_id(s, out->id, e, "finetune", IN_FINETUNE, info->backbone, from, data, split, codes, params, NULL));
    TRY(stage_run_path(s, folder, out->id, "", e));
    TRY(stage_run_path(s, out->model, out->id, "model.safetensors", e));
    bool done;
    TRY(stage_run_done(s, out->id, "model.safetensors", &done, e));
    if (options_flag(o, "dry-run")) {
        out->result.already_done = done;
        return ERR_OK;
    }
    if (!done) {
        memory_check k = {s, &fo, &spec};
        TRY(recompute_settle(automatic, vit_get_config(s->vit)->depth, fits, &k, &fo.recompute, e));
        TRY(stage_check(s, e));
    }
    snprintf(note, sizeof note, "# backbone %s\n# adapter %s\n# frames and labels %s\n# split %s\n", info->backbone,
             from, data, split);
    TRY(stage_run_begin(s, out->id, IN_FINETUNE, note, e));
    return finetune_run(s->vit, &s->params, &s->cohort, &fo, info, folder, &out->result, e);
}

err_code cmd_finetune_stage(stage *s, const char *adapter, finetune_outcome *out, err *e)
{
    *out = (finetune_outcome){.rows = 0};
    if (!options_has(s->o, "labels")) FAIL(e, USAGE, "finetune wants --labels FILE");
    TRY(stage_cohort(s, true, e));
    const cohort *c = &s->cohort;
    out->rows = c->rows;
    out->rows_aside = c->rows_without_image + c->rows_conflicting + c->rows_empty;
    out->cases = c->n_cases;
    if (out->rows_aside)
        log_event(LOG_WARN, "labels.aside", "rows", LOG_INT(c->rows), "without_image", LOG_INT(c->rows_without_image),
                  "conflicting", LOG_INT(c->rows_conflicting), "empty", LOG_INT(c->rows_empty), NULL);
    TRY(stage_backbone(s, e));
    bundle_info *info = calloc(1, sizeof *info);
    if (!info) FAIL(e, NOMEM, "no memory for the model's description");
    err_code rc = finetune(s, adapter, info, out, e);
    free(info->labels);
    free(info);
    stage_backbone_close(s);
    return rc;
}

err_code cmd_finetune(const options *o, int *status, err *e)
{
    stage s;
    finetune_outcome r = {.rows = 0};
    TRY(stage_open(&s, o, STAGE_NEEDS_CATALOGUE, e));
    err_code rc = cmd_finetune_stage(&s, NULL, &r, e);
    const finetune_result *t = &r.result;
    if (!rc && options_flag(o, "json"))
        stage_json(json_pack("{s:s,s:b,s:b,s:I,s:I,s:I,s:s,s:o,s:o}", "run", r.id, "already_done", t->already_done,
                             "adapted", r.adapted, "cases", (json_int_t)r.cases, "label_rows", (json_int_t)r.rows,
                             "label_rows_set_aside", (json_int_t)r.rows_aside, "model", r.model, "validation",
                             cmd_finetune_metrics(&t->validation), "test",
                             t->has_test ? cmd_finetune_metrics(&t->test) : json_null()));
    else if (!rc && options_flag(o, "dry-run"))
        printf("would train on %zu labelled cases in %s/runs/%s%s\n", r.cases, s.work, r.id,
               t->already_done ? ": that is done already" : "");
    else if (!rc) {
        if (t->already_done) puts("nothing to do: this model is there already");
        printf("%zu labelled cases; %zu of %zu label rows set aside\n", r.cases, r.rows_aside, r.rows);
        cmd_finetune_print("Validation patients", &t->validation);
        if (t->has_test) cmd_finetune_print("Held-out test patients", &t->test);
        printf("Model: %s\n", r.model);
    }
    *status = stage_status(r.rows_aside);
    stage_close(&s);
    return rc;
}
