/* stage.c: see stage.h. */
#include "cli/stage.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "adapt/adapter.h"
#include "adapt/dataset_norm.h"
#include "base/headroom.h"
#include "base/log.h"
#include "cli/cmd.h"
#include "io/safetensors.h"
#include "model/device_cuda.h"

/* What is trained on when nothing is given: small, and it says so. */
#define RANDOM_BACKBONE "vit-ti/16"

err_code stage_blame(const char *option, const char *path, const err *why, err *e)
{
    enum { SHOWN = 80 }; /* of a long path its end: that is where the file's name is */
    const size_t n = strlen(path);
    return err_set(e, why->code, why->file, why->line, "%s %s%s: %s", option, n > SHOWN ? "..." : "",
                   n > SHOWN ? path + n - SHOWN : path, why->msg);
}

int stage_status(uint64_t inputs_aside)
{
    return inputs_aside ? STATUS_ASIDE : STATUS_DONE;
}

json_t *stage_real(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

void stage_json(json_t *object)
{
    json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(object);
}

static err_code temporary_work(stage *s, err *e)
{
    const char *base = getenv("TMPDIR");
    TRY(file_path(s->work, e, "%s/radapt-dry-XXXXXX", base && *base ? base : "/tmp"));
    if (!mkdtemp(s->work)) FAIL_ERRNO(e, "cannot make a temporary folder for the dry run");
    s->temporary = true;
    return ERR_OK;
}

/* Flat, and all of it ours. */
static void remove_temporary(const stage *s)
{
    char path[FILE_PATH_MAX];
    DIR *d = opendir(s->work);
    for (struct dirent *f; d && (f = readdir(d));)
        if (strcmp(f->d_name, ".") && strcmp(f->d_name, "..") && !file_path(path, NULL, "%s/%s", s->work, f->d_name) &&
            unlink(path))
            rmdir(path);
    if (d) closedir(d);
    rmdir(s->work);
}

/* What a killed run left of files it was writing, our own folders and files alone: the export may lie in the work
 * directory. */
static err_code sweep(const stage *s, err *e)
{
    static const char *const ours[] = {"frames", "runs", "reports"}, *const files[] = {"split.csv", "quarantine.csv"};
    char path[FILE_PATH_MAX];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        TRY(file_path(path, e, "%s/%s", s->work, files[i]));
        TRY(file_sweep_one(path, e));
    }
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++) {
        TRY(file_path(path, e, "%s/%s", s->work, ours[i]));
        if (file_exists(path)) TRY(file_sweep(path, e));
    }
    return ERR_OK;
}

err_code stage_open(stage *s, const options *o, stage_mode mode, err *e)
{
    char path[FILE_PATH_MAX];
    err why = {0};
    *s = (stage){.o = o};
    TRY(file_path(s->work, e, "%s", options_text(o, "work")));
    json_t *name = json_string(s->work);
    json_decref(name);
    if (!name && options_flag(o, "json")) FAIL(e, USAGE, "--json: the work directory's name is not UTF-8");
    TRY(file_path(path, e, "%s/catalogue.db", s->work));
    if (!file_exists(path)) {
        if (mode == STAGE_NEEDS_CATALOGUE)
            FAIL(e, NOTFOUND, "%.120s is no work directory: radapt scan makes one", s->work);
        if (options_flag(o, "dry-run")) TRY(temporary_work(s, e));
    }
    if (catalogue_open(&s->cat, s->work, &why)) {
        if (s->temporary) remove_temporary(s);
        return stage_blame("work directory", s->work, &why, e);
    }
    /* The catalogue is locked: nobody else is at work here. */
    err_code rc = catalogue_was_killed(s->cat) ? sweep(s, e) : ERR_OK;
    if (rc) stage_close(s);
    return rc;
}

void stage_close(stage *s)
{
    stage_backbone_close(s);
    if (s->has_device) device_close(&s->device);
    stage_cohort_close(s);
    catalogue_close(s->cat);
    if (s->temporary) remove_temporary(s);
    *s = (stage){0};
}

void stage_cohort_close(stage *s)
{
    if (s->has_cohort) cohort_close(&s->cohort);
    s->has_cohort = false;
}

label_rules stage_label_rules(const options *o)
{
    label_rules r = {.columns = options_text(o, "label-columns"), .order = options_text(o, "label-order")};
    findings_task(options_text(o, "task"), &r.task);
    return r;
}

err_code stage_cohort(stage *s, bool labels, err *e)
{
    label_rules rules = labels ? stage_label_rules(s->o) : (label_rules){.task = TASK_MULTICLASS};
    return stage_cohort_by(s, labels, &rules, e);
}

err_code stage_cohort_by(stage *s, bool labels, const label_rules *rules, err *e)
{
    const options *o = s->o;
    const char *path = labels && options_has(o, "labels") ? options_text(o, "labels") : NULL;
    split_options split = {0.15f, 0.2f, 0};
    if (labels)
        split = (split_options){(float)options_real(o, "split-validation"), (float)options_real(o, "split-test"),
                                (uint64_t)options_int(o, "seed")};
    if (split.validation + split.test >= 1)
        FAIL(e, USAGE, "--split-validation and --split-test leave no patients to train on");
    stage_cohort_close(s);
    err why = {0};
    if (path && access(path, R_OK)) FAIL(e, NOTFOUND, "--labels %.120s: %s", path, strerror(errno));
    if (cohort_open_by(&s->cohort, s->cat, s->work, path, rules, &split, &why)) {
        if (path && !strncmp(why.msg, COHORT_LABELS, strlen(COHORT_LABELS)) && why.code != ERR_NOMEM)
            return stage_blame("--labels", path, &why, e);
        return err_set(e, why.code, why.file, why.line, "%s", why.msg);
    }
    s->has_cohort = true;
    return ERR_OK;
}

err_code stage_check(stage *s, err *e)
{
    if (s->checked) return ERR_OK;
    TRY(cohort_check(&s->cohort, s->cat, (int)options_int(s->o, "threads"), e));
    s->checked = true;
    return ERR_OK;
}

err_code stage_address_space(err *e)
{
    enum { LEAST_MIB = 512 };
    size_t mib = headroom_address_space() >> 20;
    if (mib < LEAST_MIB)
        FAIL(e, NOMEM, "%zu MiB are left of the address space (ulimit -v): computing needs %d MiB at least", mib,
             LEAST_MIB);
    return ERR_OK;
}

/* The GPU that --device asks for: -1: none. */
static err_code gpu_of(const char *wish, int *number, err *e)
{
    char *end;
    *number = strcmp(wish, "cpu") ? 0 : -1;
    if (*number < 0 || !strcmp(wish, "auto") || !strcmp(wish, "cuda")) return ERR_OK;
    long n = !strncmp(wish, "cuda:", 5) && isdigit((unsigned char)wish[5]) ? strtol(wish + 5, &end, 10) : -1;
    if (n < 0 || n > 1023 || *end) FAIL(e, USAGE, "--device %.40s: auto, cpu, cuda or cuda:N", wish);
    *number = (int)n;
    return ERR_OK;
}

static err_code open_device(stage *s, compute_type type, err *e)
{
    const char *wish = options_text(s->o, "device");
    err why = {0};
    int gpu;
    TRY(gpu_of(wish, &gpu, e));
    if (gpu >= 0 && !device_open_cuda(&s->device, gpu, type, &why)) {
        log_event(LOG_INFO, "device.cuda", "gpu", LOG_INT(gpu), NULL);
        return ERR_OK;
    }
    if (gpu >= 0 && strcmp(wish, "auto")) return stage_blame("--device", wish, &why, e);
    if (gpu >= 0) log_event(LOG_INFO, "device.cpu", "reason", LOG_STR(why.msg), NULL);
    return device_open_cpu(&s->device, (int)options_int(s->o, "threads"), type, e);
}

err_code stage_device(stage *s, err *e)
{
    static const struct {
        const char *name;
        compute_type type;
    } types[] = {{"auto", COMPUTE_AUTO}, {"f32", COMPUTE_F32}, {"bf16", COMPUTE_BF16}};
    if (s->has_device) return ERR_OK;
    TRY(stage_address_space(e));
    const char *name = options_text(s->o, "compute");
    compute_type type = COMPUTE_AUTO;
    for (int i = 0; i < 3; i++)
        if (!strcmp(name, types[i].name)) type = types[i].type;
    TRY(open_device(s, type, e));
    s->has_device = true;
    return ERR_OK;
}

void stage_backbone_close(stage *s)
{
    if (s->has_device) param_set_free(&s->device, &s->params);
    if (s->has_device) param_set_free(&s->device, &s->base);
    if (s->vit) vit_close(s->vit);
    s->vit = NULL;
    s->params = s->base = (param_set){0};
}

err_code stage_backbone(stage *s, err *e)
{
    const options *o = s->o;
    const char *given = options_text(o, "backbone"), *normalisation = options_text(o, "normalisation");
    vit_source source = {.seed = (uint64_t)options_int(o, "backbone-seed"),
                         .heads = (int)options_int(o, "backbone-heads"),
                         .normalisation = normalisation};
    err why = {0};
    if (!strcmp(normalisation, "dataset")) source.normalisation = "auto"; /* stage_normalise */
    TRY(stage_device(s, e));
    stage_backbone_close(s);
    s->backbone_path[0] = s->backbone_random[0] = 0;
    if (*given && file_exists(given)) {
        if (options_source(o, "backbone-seed") == FROM_COMMAND_LINE)
            FAIL(e, USAGE, "--backbone-seed means nothing with weights from a file");
        if (!realpath(given, s->backbone_path)) FAIL_ERRNO(e, "--backbone: its path cannot be resolved");
        source.path = s->backbone_path;
    } else {
        const char *name = *given ? given : RANDOM_BACKBONE;
        if (vit_named_config(name, &source.random, &why))
            FAIL(e, NOTFOUND, "--backbone %.100s: there is no such file, and no model of that name", name);
        snprintf(s->backbone_random, sizeof s->backbone_random, "%.80s seed=%llu", name,
                 (unsigned long long)source.seed);
        log_event(LOG_WARN, "backbone.random", "model", LOG_STR(s->backbone_random), "meaning",
                  LOG_STR("RANDOM WEIGHTS: the model starts knowing nothing; give --backbone pretrained weights for "
                          "anything but a trial"),
                  NULL);
    }
    if (vit_open(&s->vit, &s->device, &source, &why))
        return stage_blame("--backbone", *given ? given : RANDOM_BACKBONE, &why, e);
    return ERR_OK;
}

void stage_say_normalisation(stage *s)
{
    vit_normalisation_source from = vit_normalisation_from(s->vit);
    bool doubted = from == VIT_NORMALISATION_DOUBTED;
    if (s->said_normalisation || (from != VIT_NORMALISATION_GUESSED && !doubted)) return;
    s->said_normalisation = true;
    log_event(doubted ? LOG_WARN : LOG_INFO, "backbone.normalisation", "guessed",
              LOG_STR(doubted ? "half" : "imagenet"), "meaning",
              LOG_STR(doubted
                          ? "the weights do not say which: without LayerScale and DINOv2's positions, timm's AugReg "
                            "and Google's ViTs have half, DeiT and DINO v1 ImageNet's: for these give "
                            "--normalisation imagenet"
                          : "LayerScale or DINOv2's positions: such weights have ImageNet's mean and deviation; "
                            "--normalisation says otherwise"),
              NULL);
}

void stage_normalisation_id(const stage *s, char out[VIT_NORMALISATION_TEXT])
{
    const char *given = options_text(s->o, "normalisation");
    if (!strcmp(given, "auto") && vit_normalisation_from(s->vit) == VIT_NORMALISATION_FILE)
        vit_normalisation_text(s->vit, out);
    else
        snprintf(out, VIT_NORMALISATION_TEXT, "%s", given);
}

err_code stage_normalise(stage *s, const view_options *v, err *e)
{
    float mean[3], std[3];
    char text[VIT_NORMALISATION_TEXT];
    if (strcmp(options_text(s->o, "normalisation"), "dataset")) {
        stage_say_normalisation(s);
        return ERR_OK;
    }
    TRY(dataset_norm(&s->cohort, &v->window, v->size, mean, std, e));
    snprintf(text, sizeof text, "%.9g,%.9g,%.9g/%.9g,%.9g,%.9g", (double)mean[0], (double)mean[1], (double)mean[2],
             (double)std[0], (double)std[1], (double)std[2]);
    log_event(LOG_INFO, "normalisation", "mean/deviation", LOG_STR(text), NULL);
    return vit_normalise(s->vit, text, e);
}

err_code stage_view(const stage *s, view_options *out, err *e)
{
    int size = (int)options_int(s->o, "size"), patch = vit_get_config(s->vit)->patch;
    if (size % patch) FAIL(e, USAGE, "--size %d is no multiple of the model's patches of %d pixels", size, patch);
    *out = (view_options){.size = size, .share = (float)options_real(s->o, "center-crop")};
    return window_parse(options_text(s->o, "window"), &out->window, e);
}

err_code stage_run_id(const stage *s, char id[STAGE_ID], err *e, const char *name, unsigned in, ...)
{
    char *canonical = options_canonical(s->o, in), hex[HASH_HEX];
    hash *h = canonical ? hash_new() : NULL;
    if (!h) {
        free(canonical);
        FAIL(e, NOMEM, "no memory for a run's name");
    }
    hash_str(h, name);
    hash_str(h, canonical);
    free(canonical);
    va_list ap;
    va_start(ap, in);
    for (const char *text; (text = va_arg(ap, const char *));) hash_str(h, text);
    va_end(ap);
    hash_hex(h, hex);
    snprintf(id, STAGE_ID, "%.12s-%.8s", name, hex);
    return ERR_OK;
}

err_code stage_run_path(const stage *s, char path[FILE_PATH_MAX], const char *id, const char *file, err *e)
{
    return file_path(path, e, "%s/runs/%s%s%s", s->work, id, *file ? "/" : "", file);
}

err_code stage_run_done(const stage *s, const char *id, const char *product, bool *done, err *e)
{
    char result[FILE_PATH_MAX], path[FILE_PATH_MAX];
    TRY(stage_run_path(s, result, id, "result.json", e));
    TRY(stage_run_path(s, path, id, product, e));
    *done = file_exists(result) && file_exists(path);
    if (*done || !file_exists(result) || options_flag(s->o, "dry-run")) return ERR_OK;
    log_event(LOG_WARN, "run.lost", "run", LOG_STR(id), "lost", LOG_STR(product), "meaning",
              LOG_STR("it was done, but what it made is gone: it is made again"), NULL);
    if (unlink(result)) return err_errno(e, errno, __FILE__, __LINE__, "a lost run's result.json cannot be removed");
    return ERR_OK;
}

err_code stage_run_begin(const stage *s, const char *id, unsigned in, const char *note, err *e)
{
    char path[FILE_PATH_MAX];
    file_writer *w;
    TRY(stage_run_path(s, path, id, "", e));
    TRY(file_mkdirs(path, e));
    TRY(stage_run_path(s, path, id, "config.yaml", e));
    if (file_exists(path)) return ERR_OK;
    TRY(file_begin(&w, path, e));
    fprintf(w->f, "# %s, radapt %s\n%s", id, RADAPT_VERSION, note);
    options_print(s->o, w->f, in, true);
    return file_commit(&w, e);
}

err_code stage_newest(const stage *s, const char *name, const char *file, stage_accepts accepts, const void *ctx,
                      char path[FILE_PATH_MAX], err *e)
{
    char candidate[FILE_PATH_MAX];
    size_t prefix = strlen(name);
    struct timespec best = {0};
    bool found = false;
    TRY(file_path(candidate, e, "%s/runs", s->work));
    DIR *d = opendir(candidate);
    for (struct dirent *f; d && (f = readdir(d));) {
        struct stat st;
        if (strncmp(f->d_name, name, prefix) || f->d_name[prefix] != '-') continue;
        if (stage_run_path(s, candidate, f->d_name, file, NULL) || stat(candidate, &st)) continue;
        bool newer =
            st.st_mtim.tv_sec > best.tv_sec || (st.st_mtim.tv_sec == best.tv_sec && st.st_mtim.tv_nsec > best.tv_nsec);
        if ((found && !newer) || (accepts && !accepts(candidate, ctx))) continue;
        found = true;
        best = st.st_mtim;
        memcpy(path, candidate, sizeof candidate);
    }
    if (d) closedir(d);
    if (!found) FAIL(e, NOTFOUND, "this work directory has no finished %s run", name);
    return ERR_OK;
}

typedef struct {
    const char *backbone, *split; /* split "": any */
} looked_for;

static bool is_looked_for(const char *path, const void *looked_for_)
{
    const looked_for *want = looked_for_;
    safetensors f;
    if (safetensors_open(&f, path, NULL)) return false;
    const char *backbone = safetensors_meta(&f, "backbone");
    bool same = backbone && !strcmp(backbone, want->backbone) && (!*want->split || adapter_kept_out(&f, want->split));
    safetensors_close(&f);
    return same;
}

err_code stage_newest_adapter(const stage *s, const char *split, char path[FILE_PATH_MAX], err *e)
{
    static const char file[] = "adapter.safetensors";
    looked_for want = {vit_hash(s->vit), split};
    if (!stage_newest(s, "adapt", file, is_looked_for, &want, path, NULL)) return ERR_OK;
    want.split = "";
    if (!stage_newest(s, "adapt", file, is_looked_for, &want, path, NULL))
        FAIL(e, CONFLICT,
             "the adapted weights here were made before this split of the patients, and may have been trained on those "
             "held out now: adapt again with --labels, or --adapter none");
    FAIL(e, NOTFOUND, "%.120s has no adapted weights for this backbone (--adapter none: the backbone as it is)",
         s->work);
}
