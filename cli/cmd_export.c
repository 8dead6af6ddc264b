/* cmd_export.c: `radapt export`: the backbone with what was trained of it, or a fine-tuned model, as a state dict of
 * timm, DINOv2 or Hugging Face (model/vit_export.h).
 *
 * For Hugging Face --out may be a folder, which is made: model.safetensors, config.json and preprocessor_config.json in
 * it, for from_pretrained(FOLDER). The same where --out is FOLDER/model.safetensors; any other FILE.safetensors is the
 * state dict alone. A state dict that is there is replaced, another model's configuration is not. */
#include <stdlib.h>
#include <string.h>

#include "adapt/adapter.h"
#include "adapt/bundle.h"
#include "adapt/split.h"
#include "base/log.h"
#include "cli/cmd.h"
#include "cli/stage.h"
#include "model/vit_export_hf.h"

enum { SIDE_MAX = 1 << 16 };

typedef struct {
    const options *o;
    const char *format;
    char out[FILE_PATH_MAX];    /* the state dict */
    char folder[FILE_PATH_MAX]; /* Hugging Face's, or empty: no configuration is written */
    bool new_folder;
    vit_names names;
    const char *class; /* that the state dict is for */
    char from[FILE_PATH_MAX];
    const char *what; /* "adapter", "model"; NULL: the backbone as it is */
    bool head, left;  /* the classifier is written; there was one, and it is not */
    char method[64];
    vit_export_note note;
} exported;

static vit_names names_of(const char *format)
{
    return !strcmp(format, "timm") ? VIT_NAMES_TIMM : !strcmp(format, "hf") ? VIT_NAMES_HF_DINOV2 : VIT_NAMES_DINOV2;
}

/* Where what goes: out and folder. */
static err_code find_out(exported *x, const char *given, err *e)
{
    static const char end[] = ".safetensors", model[] = "model.safetensors";
    size_t n = strlen(given);
    const char *slash = strrchr(given, '/'), *base = slash ? slash + 1 : given;
    bool file = n > strlen(end) && !strcmp(given + n - strlen(end), end);
    if (!strcmp(x->format, "hf") && !file) {
        while (n > 1 && given[n - 1] == '/') n--;
        TRY(file_path(x->folder, e, "%.*s", (int)n, given));
        x->new_folder = true;
        return file_path(x->out, e, "%s/%s", x->folder, model);
    }
    if (!strcmp(x->format, "hf") && !strcmp(base, model))
        TRY(file_path(x->folder, e, "%.*s", slash > given ? (int)(slash - given) : 1, slash ? given : "."));
    return file_path(x->out, e, "%s", given);
}

/* Methods in the order in which they trained. */
static void note_method(exported *x, peft_method m)
{
    size_t n = strlen(x->method);
    if (m == METHOD_LINEAR) return; /* nothing in the backbone */
    snprintf(x->method + n, sizeof x->method - n, "%s%s", n ? "," : "", peft_name(m));
    x->note.method = x->method;
}

/* A file of the folder's: only looked at, or written. */
static err_code put_config(exported *x, const char *name, const char *text, bool write, err *e)
{
    char path[FILE_PATH_MAX], *there;
    size_t bytes;
    TRY(file_path(path, e, "%s/%s", x->folder, name));
    if (write) return file_write(path, text, strlen(text), e);
    if (!file_exists(path)) return ERR_OK;
    TRY(file_read(path, 1 << 20, &there, &bytes, e));
    bool same = bytes == strlen(text) && !memcmp(there, text, bytes);
    free(there);
    if (!same) FAIL(e, CONFLICT, "another %s is there: name another folder, or remove it", name);
    return ERR_OK;
}

/* Hugging Face's configuration: whether it can be written, and then, that it is. */
static err_code put_configs(exported *x, const vit *m, bool write, err *e)
{
    char text[VIT_EXPORT_HF_TEXT];
    if (!*x->folder) return ERR_OK;
    TRY(vit_export_hf_config(m, text, e));
    TRY(put_config(x, "config.json", text, write, e));
    vit_export_hf_pixels(m, x->note.trained_side, text);
    return put_config(x, "preprocessor_config.json", text, write, e);
}

static err_code write_files(exported *x, const vit *m, err *e)
{
    TRY(put_configs(x, m, false, e));
    if (options_flag(x->o, "dry-run")) return ERR_OK;
    if (x->new_folder) TRY(file_mkdirs(x->folder, e));
    TRY(vit_export(m, x->names, x->out, &x->note, e));
    return put_configs(x, m, true, e);
}

static err_code write_model(exported *x, const vit *m, err *e)
{
    err why = {0};
    TRY(vit_export_class(m, x->names, &x->class, e));
    err_code rc = write_files(x, m, &why);
    if (rc == ERR_IO || rc == ERR_NOTFOUND || rc == ERR_CONFLICT)
        return stage_blame("--out", *x->folder ? x->folder : x->out, &why, e);
    return rc ? err_set(e, rc, why.file, why.line, "%s", why.msg) : ERR_OK;
}

/* A fine-tuned model: its classifier too, where the format has a place for it. */
static err_code export_bundle(exported *x, stage *s, const char *path, err *e)
{
    bundle *b;
    err why = {0};
    const char *backbone = options_has(x->o, "backbone") ? options_text(x->o, "backbone") : NULL;
    if (options_given(x->o, "export.adapter")) FAIL(e, USAGE, "--model has what it was trained from: no --adapter");
    if (options_source(x->o, "normalisation") == FROM_COMMAND_LINE) /* a file's may be for other commands */
        FAIL(e, USAGE, "--model has a normalisation of its own: no --normalisation");
    if (bundle_open(&b, &s->device, path, backbone, &why)) return stage_blame("--model", path, &why, e);
    vit_export_head head;
    const bundle_info *info = bundle_get_info(b);
    bundle_head(b, &head.weight, &head.bias, &head.outputs);
    note_method(x, info->base.method);
    note_method(x, info->peft.method);
    x->note.trained_side = info->size;
    x->what = "model";
    x->head = x->names == VIT_NAMES_TIMM;
    x->left = !x->head;
    snprintf(x->from, sizeof x->from, "%s", path);
    if (x->head) x->note.head = &head;
    err_code rc = write_model(x, bundle_vit(b), e);
    bundle_close(b);
    return rc;
}

static bool is_dataset(const options *o)
{
    return !strcmp(options_text(o, "normalisation"), "dataset");
}

/* How pixels were when it was made; older adapters know less. */
static err_code note_adapter(exported *x, stage *s, const safetensors *f, const peft_spec *spec, err *e)
{
    const char *normalisation = safetensors_meta(f, "normalisation"), *side = safetensors_meta(f, "side");
    char *end = NULL;
    long pixels = side ? strtol(side, &end, 10) : 0;
    note_method(x, spec->method);
    if (side && pixels > 0 && pixels <= SIDE_MAX && !*end) x->note.trained_side = (int)pixels;
    if (normalisation && (is_dataset(x->o) || !options_given(x->o, "normalisation")))
        return vit_normalise(s->vit, normalisation, e);
    if (is_dataset(x->o)) FAIL(e, USAGE, "the adapter does not say what --normalisation dataset was");
    return ERR_OK;
}

static err_code merge_adapter(exported *x, stage *s, err *e)
{
    safetensors f;
    peft_spec spec;
    err why = {0};
    char split[HASH_HEX];
    TRY(split_hash(s->work, split, e));
    err_code rc = safetensors_open(&f, x->from, &why);
    if (!rc && *split && !adapter_kept_out(&f, split))
        log_event(LOG_WARN, "export.other-split", "meaning",
                  LOG_STR("the adapter does not know this split of the patients: it may have been trained on the "
                          "held-out ones"),
                  NULL);
    if (!rc) {
        rc = adapter_load(&f, s->vit, false, &s->params, &spec, &why);
        if (!rc) rc = note_adapter(x, s, &f, &spec, &why);
        safetensors_close(&f);
    }
    if (!rc) rc = vit_merge(s->vit, false, &why);
    return rc ? stage_blame("--adapter", x->from, &why, e) : ERR_OK;
}

static err_code export_adapted(exported *x, stage *s, err *e)
{
    const char *adapter = options_text(x->o, "export.adapter");
    TRY(file_path(s->work, e, "%s", options_text(x->o, "work")));
    if (!options_has(x->o, "backbone")) FAIL(e, USAGE, "--backbone FILE is missing: the weights that were adapted");
    TRY(stage_backbone(s, e));
    if (!strcmp(adapter, "auto")) {
        char split[HASH_HEX];
        TRY(split_hash(s->work, split, e));
        TRY(stage_newest_adapter(s, split, x->from, e));
    } else if (strcmp(adapter, "none")) {
        TRY(file_path(x->from, e, "%s", adapter));
    }
    if (*x->from) {
        x->what = "adapter";
        TRY(merge_adapter(x, s, e));
    } else if (is_dataset(x->o)) {
        FAIL(e, USAGE, "--normalisation dataset: only an adapter knows what that was");
    }
    stage_say_normalisation(s);
    return write_model(x, s->vit, e);
}

static void print_result(const exported *x)
{
    bool dry = options_flag(x->o, "dry-run");
    if (options_flag(x->o, "json")) {
        stage_json(json_pack("{s:s,s:s*,s:s,s:s,s:s*,s:b,s:b}", "file", x->out, "folder", *x->folder ? x->folder : NULL,
                             "format", x->format, "class", x->class, x->what ? x->what : "adapter",
                             x->what ? x->from : NULL, "classifier", x->head, "written", !dry));
        return;
    }
    printf("%s %s for %s", dry ? "would write" : "wrote", x->out, x->class);
    if (x->what) printf(", with the %s %s", x->what, x->from);
    putchar('\n');
    if (*x->folder) puts("config.json and preprocessor_config.json are beside it: from_pretrained takes the folder.");
    if (x->head) puts("Its classifier is head.weight and head.bias.");
    if (x->left) puts("Without its classifier: only timm's models have a place for it.");
}

err_code cmd_export(const options *o, int *status, err *e)
{
    stage s = {.o = o};
    exported x = {.o = o, .format = options_text(o, "export.format")};
    x.names = names_of(x.format);
    *status = STATUS_DONE;
    if (o->n_arguments)
        FAIL(e, USAGE, "export wants no arguments: radapt export --backbone FILE --format F --out FILE");
    if (!options_has(o, "export.out")) FAIL(e, USAGE, "--out FILE is missing: where to write");
    TRY(find_out(&x, options_text(o, "export.out"), e));
    TRY(device_open_cpu(&s.device, (int)options_int(o, "threads"), COMPUTE_F32, e));
    s.has_device = true;
    const char *model = options_text(o, "export.model");
    err_code rc = *model ? export_bundle(&x, &s, model, e) : export_adapted(&x, &s, e);
    if (!rc) print_result(&x);
    stage_close(&s);
    return rc;
}
