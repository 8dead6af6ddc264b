/* stage.h: what the stages share: the work directory in use, the cohort, the device, the model, and runs' names.
 *
 *     stage s;
 *     TRY(stage_open(&s, o, STAGE_MAKE, e));
 *     rc = cmd_scan_stage(&s, folders, n, &result, e);
 *     stage_close(&s);
 *
 * A run lives in WORK/runs/<stage>-<8 hex>: SHA-256 over the stage's options and everything that goes in. The same
 * again is the same run and goes on; result.json (findings.jsonl for predict) says that it is done. */
#ifndef RADAPT_STAGE_H
#define RADAPT_STAGE_H
#include <jansson.h>

#include "adapt/cohort.h"
#include "adapt/features.h"
#include "adapt/finetune.h"
#include "adapt/ssl.h"
#include "cli/options.h"
#include "io/scan.h"
#include "model/vit.h"

typedef struct stage {
    const options *o;
    char work[FILE_PATH_MAX];
    bool temporary; /* a dry run without a work directory: removed at the end */
    catalogue *cat;
    cohort cohort;
    bool said_normalisation;
    bool has_cohort, checked; /* ... its pixels compared with their checksums, once in a process */
    device device;
    bool has_device;
    vit *vit;
    param_set params, base;            /* what trains; an adapter's that was merged before */
    char backbone_path[FILE_PATH_MAX]; /* absolute; empty: random */
    char backbone_random[128];
} stage;

typedef enum { STAGE_MAKE, STAGE_NEEDS_CATALOGUE } stage_mode;
/* On a dry run nothing is made: without a work directory, an empty one in TMPDIR stands in. */
err_code stage_open(stage *s, const options *o, stage_mode mode, err *e);
void stage_close(stage *s);

/* Frames, with the labels of --labels or without. Closes an earlier one. */
err_code stage_cohort(stage *s, bool labels, err *e);
/* The same with the labels read by other rules than --task, --label-columns and --label-order. */
err_code stage_cohort_by(stage *s, bool labels, const label_rules *rules, err *e);
label_rules stage_label_rules(const options *o); /* those; texts are the options' */
void stage_cohort_close(stage *s);
/* Before work begins on the frames (not where a stage is done already: reading them all takes time). */
err_code stage_check(stage *s, err *e);
err_code stage_device(stage *s, err *e);
/* Before oneDNN is called, which crashes where the address space ends: ERR_NOMEM. */
err_code stage_address_space(err *e);
/* The exit code of what went well: STATUS_ASIDE where any of a command's inputs (files, label rows, studies) are set
 * aside, by this run or by one before, so that the same command on the same inputs always ends alike; else STATUS_DONE.
 */
int stage_status(uint64_t inputs_aside);
/* A fresh backbone (--backbone). Closes an earlier one. */
err_code stage_backbone(stage *s, err *e);
void stage_backbone_close(stage *s);
/* size, center-crop, window as the options say, for the backbone that is open. */
err_code stage_view(const stage *s, view_options *out, err *e);

/* --normalisation dataset: of the cohort's training frames, from now on. Else it is said what was guessed. */
err_code stage_normalise(stage *s, const view_options *v, err *e);
/* Where the backbone's normalisation is a guess: which and why, once. */
void stage_say_normalisation(stage *s);
/* What names it in a run: --normalisation, or what "auto" found in the backbone's file, as numbers. */
void stage_normalisation_id(const stage *s, char out[VIT_NORMALISATION_TEXT]);

/* "<name>-<8 hex>" of the options of `in` and of the other texts (closed by NULL); and the run's folder. */
enum { STAGE_ID = 24 };
err_code stage_run_id(const stage *s, char id[STAGE_ID], err *e, const char *name, unsigned in, ...)
    __attribute__((sentinel));
err_code stage_run_path(const stage *s, char path[FILE_PATH_MAX], const char *id, const char *file, err *e);
/* Whether a run is done: its result.json is there, and its product. A result whose product was lost is taken away (not
 * in a dry run), with a warning: the run is made again. */
err_code stage_run_done(const stage *s, const char *id, const char *product, bool *done, err *e);
/* Makes the folder and writes config.yaml. note: comment lines at its head. */
err_code stage_run_begin(const stage *s, const char *id, unsigned in, const char *note, err *e);
/* `file` of the newest run of that stage that has it and is accepted (accepts NULL: any); ERR_NOTFOUND: none. */
typedef bool (*stage_accepts)(const char *path, const void *ctx);
err_code stage_newest(const stage *s, const char *name, const char *file, stage_accepts accepts, const void *ctx,
                      char path[FILE_PATH_MAX], err *e);

/* The newest adapter that was made on the backbone which is open and left out the patients whom this split (its hash)
 * holds out; split "": nobody is held out, any will do. ERR_NOTFOUND: none. ERR_CONFLICT: only such as may have been
 * trained on them. */
err_code stage_newest_adapter(const stage *s, const char *split, char path[FILE_PATH_MAX], err *e);

/* JSON has no NaN: null. */
json_t *stage_real(double x);
/* Prints the object and frees it. */
void stage_json(json_t *object);
/* A path of the user's in front of a message about it. */
err_code stage_blame(const char *option, const char *path, const err *why, err *e);

/* --- the stages, one a cmd_<name>.c
 * ------------------------------------------------------------------------------------------------------------- */
err_code cmd_scan_stage(stage *s, scan_result *out, err *e); /* the folders are the command's arguments */

typedef struct {
    uint64_t pending, stored, aside, frames;
} prepare_result;
err_code cmd_prepare_stage(stage *s, prepare_result *out, err *e);

typedef struct {
    char id[STAGE_ID];
    ssl_result ssl;
    size_t frames; /* that were trained on */
} adapt_outcome;
err_code cmd_adapt_stage(stage *s, adapt_outcome *out, err *e);

typedef struct {
    char id[STAGE_ID], model[FILE_PATH_MAX];
    finetune_result result;
    size_t rows, rows_aside, cases;
    bool adapted; /* started from an adapter */
} finetune_outcome;
/* adapter NULL: as --finetune-adapter says. */
err_code cmd_finetune_stage(stage *s, const char *adapter, finetune_outcome *out, err *e);
json_t *cmd_finetune_metrics(const metrics *m);
void cmd_finetune_print(const char *what, const metrics *m);

typedef struct {
    char id[STAGE_ID], findings[FILE_PATH_MAX];
    size_t studies;
    bool already_done;
} predict_outcome;
/* model NULL: --model or the newest. cmd_predict_model opens the bundle: bundle_close. */
err_code cmd_predict_model(stage *s, bundle **out, const char *model, err *e);
err_code cmd_predict_stage(stage *s, const char *model, predict_outcome *out, err *e);

typedef struct {
    char folder[FILE_PATH_MAX];
    size_t written, kept, impossible,
        failed; /* impossible: no DICOM study; failed: refused by the lint or unreportable */
} report_outcome;
/* findings NULL: --findings or the newest. */
err_code cmd_report_stage(stage *s, const char *findings, report_outcome *out, err *e);

#endif
