/* cmd_predict.c: `radapt predict`: a model bundle looks at every study of the catalogue -> findings.jsonl. */
#include <string.h>

#include "adapt/bundle.h"
#include "base/log.h"
#include "cli/cmd.h"
#include "cli/stage.h"

static err_code predict(stage *s, bundle *b, predict_outcome *out, err *e)
{
    findings f = {.n_labels = 0};
    char note[256];
    TRY(stage_run_id(s, out->id, e, "predict", IN_PREDICT, bundle_hash(b), s->cohort.data_hash, NULL));
    TRY(stage_run_path(s, out->findings, out->id, "findings.jsonl", e));
    out->already_done = file_exists(out->findings);
    if (options_flag(s->o, "dry-run")) return ERR_OK;
    if (out->already_done && findings_read(out->findings, &f, NULL)) out->already_done = false; /* cut off: again */
    if (out->already_done) {
        out->studies = f.n_studies;
        findings_fini(&f);
        return ERR_OK;
    }
    TRY(stage_check(s, e));
    snprintf(note, sizeof note, "# model %s\n# frames %s\n", bundle_hash(b), s->cohort.data_hash);
    TRY(stage_run_begin(s, out->id, IN_PREDICT, note, e));
    TRY(bundle_predict(b, &s->cohort, &f, e));
    out->studies = f.n_studies;
    err_code rc = findings_write(out->findings, &f, e);
    findings_fini(&f);
    return rc;
}

err_code cmd_predict_model(stage *s, bundle **out, const char *model, err *e)
{
    const options *o = s->o;
    char newest[FILE_PATH_MAX];
    const char *backbone = o->in & (IN_PREDICT | IN_EVALUATE) && options_has(o, "model-backbone")
                               ? options_text(o, "model-backbone")
                               : NULL;
    err why = {0};
    if (!model) model = options_text(o, "model");
    if (!*model) {
        TRY(stage_newest(s, "finetune", "model.safetensors", NULL, NULL, newest, e));
        model = newest;
    }
    TRY(stage_device(s, e));
    if (bundle_open(out, &s->device, model, backbone, &why))
        return stage_blame(model == newest ? "the newest model" : "--model", model, &why, e);
    return ERR_OK;
}

err_code cmd_predict_stage(stage *s, const char *model, predict_outcome *out, err *e)
{
    bundle *b = NULL;
    *out = (predict_outcome){.studies = 0};
    TRY(stage_cohort(s, false, e));
    TRY(cmd_predict_model(s, &b, model, e));
    err_code rc = predict(s, b, out, e);
    bundle_close(b);
    return rc;
}

err_code cmd_predict(const options *o, int *status, err *e)
{
    stage s;
    predict_outcome r = {.studies = 0};
    TRY(stage_open(&s, o, STAGE_NEEDS_CATALOGUE, e));
    err_code rc = cmd_predict_stage(&s, NULL, &r, e);
    if (!rc && options_flag(o, "json"))
        stage_json(json_pack("{s:s,s:b,s:I,s:s}", "run", r.id, "already_done", r.already_done, "studies",
                             (json_int_t)r.studies, "findings", r.findings));
    else if (!rc && options_flag(o, "dry-run"))
        printf("would write %s%s\n", r.findings, r.already_done ? ": that is done already" : "");
    else if (!rc) {
        printf("%s%zu studies looked at\n", r.already_done ? "nothing to do: " : "", r.studies);
        printf("Findings: %s\n", r.findings);
    }
    *status = STATUS_DONE;
    stage_close(&s);
    return rc;
}
