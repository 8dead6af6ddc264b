/* cmd_run.c: `radapt run EXPORT...`: every stage in turn. Each finds out for itself what is left to do, so that the
 * same command again goes on where the last one was stopped, and does nothing when all is done. */
#include <string.h>

#include "base/log.h"
#include "cli/cmd.h"
#include "cli/stage.h"

typedef struct {
    scan_result scan;
    prepare_result prepare;
    catalogue_counts counts;
    adapt_outcome adapt;
    finetune_outcome finetune;
    predict_outcome predict;
    report_outcome report;
    bool labelled;
} summary;

err_code cmd_run_defaults(options *o, err *e)
{
    TRY(cmd_adapt_defaults(o, e));
    return cmd_finetune_defaults(o, e);
}

static void begin(const char *name)
{
    log_event(LOG_INFO, "stage", "name", LOG_STR(name), NULL);
}

static err_code after_scan(stage *s, summary *r, err *e)
{
    char adapter[FILE_PATH_MAX];
    prepare_result one;
    begin("prepare");
    TRY(cmd_prepare_stage(s, &one, e));
    r->prepare.pending += one.pending;
    r->prepare.stored += one.stored;
    r->prepare.frames += one.frames;
    r->prepare.aside += one.aside;
    TRY(catalogue_count(s->cat, &r->counts, e));
    if (!r->counts.stored) FAIL(e, EMPTY, "no image could be decoded; quarantine.csv in the work directory says why");
    begin("adapt");
    TRY(cmd_adapt_stage(s, &r->adapt, e));
    if (!r->labelled) return ERR_OK;
    begin("finetune");
    TRY(stage_run_path(s, adapter, r->adapt.id, "adapter.safetensors", e));
    const char *given = options_given(s->o, "finetune.adapter") ? NULL : adapter; /* the one just made */
    TRY(cmd_finetune_stage(s, given, &r->finetune, e));
    begin("predict");
    TRY(cmd_predict_stage(s, r->finetune.model, &r->predict, e));
    begin("report");
    return cmd_report_stage(s, r->predict.findings, &r->report, e);
}

/* Frames that turn out to be damaged are prepared again, and the stages go on from where they were. */
static err_code stages(stage *s, summary *r, err *e)
{
    enum { TRIES = 3 };
    begin("scan");
    TRY(cmd_scan_stage(s, &r->scan, e));
    if (options_flag(s->o, "dry-run")) return ERR_OK;
    for (int i = 1;; i++) {
        err why = {0};
        err_code rc = after_scan(s, r, &why);
        if (rc != ERR_DAMAGED || i == TRIES) return rc ? err_set(e, rc, why.file, why.line, "%s", why.msg) : ERR_OK;
        log_event(LOG_WARN, "run.damaged", "meaning", LOG_STR(why.msg), NULL);
        stage_cohort_close(s);
        stage_backbone_close(s);
    }
}

/* Nothing was left to do in any stage. */
static bool is_idle(const summary *r)
{
    if (r->scan.known != r->scan.seen || r->prepare.pending || !r->adapt.ssl.already_done) return false;
    return !r->labelled || (r->finetune.result.already_done && r->predict.already_done && !r->report.written);
}

static void print_dry(const summary *r)
{
    printf("%llu files seen: %llu would be taken, %llu set aside, %llu are known already.\n"
           "Then: prepare, adapt%s. Nothing was done.\n",
           (unsigned long long)r->scan.seen, (unsigned long long)r->scan.taken, (unsigned long long)r->scan.aside,
           (unsigned long long)r->scan.known, r->labelled ? ", finetune, predict, report" : "");
}

static void print_text(const stage *s, const summary *r)
{
    const catalogue_counts *c = &r->counts;
    const ssl_result *t = &r->adapt.ssl;
    if (is_idle(r)) puts("nothing to do: all of this is done already");
    printf("Scan      %llu files, of which %llu new\n", (unsigned long long)c->files,
           (unsigned long long)(r->scan.seen - r->scan.known));
    printf("Catalogue %llu patients, %llu studies, %llu series\n", (unsigned long long)c->patients,
           (unsigned long long)c->studies, (unsigned long long)c->series);
    printf("Prepare   %llu frames of %llu files stored, of which %llu frames new\n", (unsigned long long)c->frames,
           (unsigned long long)c->stored, (unsigned long long)r->prepare.frames);
    if (t->already_done)
        printf("Adapt     done before, on %zu frames\n", r->adapt.frames);
    else
        printf("Adapt     %llu steps on %zu frames, loss %.3f to %.3f\n", (unsigned long long)t->steps, r->adapt.frames,
               t->loss_first, t->loss_last);
    if (r->labelled) {
        const finetune_outcome *f = &r->finetune;
        printf("Finetune  %zu labelled cases%s; %zu of %zu label rows set aside\n", f->cases,
               f->result.already_done ? ", done before" : "", f->rows_aside, f->rows);
        if (f->result.validation.n) cmd_finetune_print("          validation patients", &f->result.validation);
        if (f->result.has_test) cmd_finetune_print("          held-out test patients", &f->result.test);
        printf("Predict   %zu studies\n", r->predict.studies);
        printf("Report    %zu written, %zu there already", r->report.written, r->report.kept);
        if (r->report.impossible) printf(", %zu studies are not DICOM", r->report.impossible);
        if (r->report.failed) printf(", %zu refused (see the log)", r->report.failed);
        printf("\n\nModel     %s\nReports   %s\n", f->model, r->report.folder);
    } else {
        printf("\nAdapter   %s/runs/%s/adapter.safetensors\n"
               "No --labels: there is no model of findings, and so no reports.\n",
               s->work, r->adapt.id);
    }
    if (c->aside)
        printf("Set aside %llu files, with reasons: %s/quarantine.csv\n", (unsigned long long)c->aside, s->work);
}

static json_t *json_outcome(const summary *r)
{
    const finetune_outcome *f = &r->finetune;
    return json_pack(
        "{s:{s:s,s:I,s:I,s:I,s:s,s:o,s:o},s:{s:s,s:I,s:s},s:{s:s,s:I,s:I,s:I,s:I}}", "finetune", "run", f->id, "cases",
        (json_int_t)f->cases, "label_rows", (json_int_t)f->rows, "label_rows_set_aside", (json_int_t)f->rows_aside,
        "model", f->model, "validation", cmd_finetune_metrics(&f->result.validation), "test",
        f->result.has_test ? cmd_finetune_metrics(&f->result.test) : json_null(), "predict", "run", r->predict.id,
        "studies", (json_int_t)r->predict.studies, "findings", r->predict.findings, "report", "folder",
        r->report.folder, "written", (json_int_t)r->report.written, "unchanged", (json_int_t)r->report.kept,
        "no_report_possible", (json_int_t)r->report.impossible, "refused", (json_int_t)r->report.failed);
}

static void print_json(const summary *r, int status)
{
    const catalogue_counts *c = &r->counts;
    json_t *j = json_pack("{s:i,s:b,s:{s:I,s:I,s:I,s:I},s:{s:I,s:I,s:I,s:I,s:I},s:{s:s,s:I,s:b}}", "status", status,
                          "nothing_to_do", is_idle(r), "scan", "files", (json_int_t)c->files, "seen",
                          (json_int_t)r->scan.seen, "known", (json_int_t)r->scan.known, "set_aside",
                          (json_int_t)c->aside, "catalogue", "patients", (json_int_t)c->patients, "studies",
                          (json_int_t)c->studies, "series", (json_int_t)c->series, "instances_stored",
                          (json_int_t)c->stored, "frames", (json_int_t)c->frames, "adapt", "run", r->adapt.id,
                          "training_frames", (json_int_t)r->adapt.frames, "already_done", r->adapt.ssl.already_done);
    if (r->labelled) {
        json_t *more = json_outcome(r);
        json_object_update(j, more);
        json_decref(more);
    }
    stage_json(j);
}

err_code cmd_run(const options *o, int *status, err *e)
{
    stage s;
    summary r = {.labelled = options_has(o, "labels")};
    TRY(stage_open(&s, o, STAGE_MAKE, e));
    err_code rc = stages(&s, &r, e);
    *status = stage_status(r.counts.aside + r.scan.aside + r.finetune.rows_aside + r.report.failed);
    if (!rc && options_flag(o, "dry-run"))
        print_dry(&r);
    else if (!rc && options_flag(o, "json"))
        print_json(&r, *status);
    else if (!rc)
        print_text(&s, &r);
    stage_close(&s);
    return rc;
}
