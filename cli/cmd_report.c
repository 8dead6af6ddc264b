/* cmd_report.c: `radapt report`: findings -> one structured report a study, WORK/reports/<study>.dcm.
 *
 * A report is written beside its place first: where the one that is there has the same SOP Instance UID (a function of
 * study, model and findings), it stays untouched. WORK/runs/reports-<8 hex>.json says of which findings, and by which
 * options, the folder's reports are: there is one at most. */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/progress.h"
#include "base/stop.h"
#include "cli/cmd.h"
#include "cli/stage.h"
#include "io/image.h"
#include "pacs/report_sr.h"
#include "pacs/uid.h"

static sr_class class_of(const char *name)
{
    return !strcmp(name, "enhanced")        ? SR_ENHANCED
           : !strcmp(name, "comprehensive") ? SR_COMPREHENSIVE
                                            : SR_COMPREHENSIVE_3D;
}

static bool has_uid(const char *path, const char *sop_uid)
{
    image_header h;
    bool same = file_exists(path) && !image_read_header(path, &h, NULL);
    if (!same) return false;
    same = !strcmp(h.sop_uid, sop_uid);
    image_header_fini(&h);
    return same;
}

static err_code write_one(const report_outcome *out, const study_identity *study, const findings *f,
                          const study_finding *one, const sr_options *how, bool *written, err *e)
{
    char path[FILE_PATH_MAX], beside[FILE_PATH_MAX], sop_uid[65];
    TRY(file_path(path, e, "%s/%s.dcm", out->folder, one->study_key));
    TRY(file_path(beside, e, "%s/%s.new", out->folder, one->study_key));
    err_code rc = report_sr_write(beside, study, f, one, how, sop_uid, e);
    if (!rc) rc = report_sr_lint(beside, e);
    *written = !rc && !has_uid(path, sop_uid);
    if (*written && rename(beside, path))
        rc = err_set(e, ERR_IO, __FILE__, __LINE__, "a report cannot be put in place");
    if (rc || !*written) unlink(beside);
    return rc;
}

static err_code write_all(stage *s, const findings *f, const sr_options *how, report_outcome *out, err *e)
{
    progress bar;
    err_code rc = ERR_OK;
    progress_start(&bar, "report", "studies", f->n_studies);
    for (size_t i = 0; i < f->n_studies && !rc; i++) {
        study_identity study;
        err why = {0};
        bool written = false;
        progress_add(&bar, 1);
        TRY_DONE(rc, stop_check(e));
        err_code found = catalogue_study(s->cat, f->studies[i].study_key, &study, &why);
        if (found == ERR_UNSUPPORTED || found == ERR_NOTFOUND) {
            out->impossible++;
            continue;
        }
        if (found) FAIL_DONE(rc, e, IO, "%s", why.msg);
        err_code done = write_one(out, &study, f, &f->studies[i], how, &written, &why);
        catalogue_study_fini(&study);
        if (done == ERR_NOSPACE || done == ERR_IO || done == ERR_NOMEM)
            TRY_DONE(rc, err_set(e, done, why.file, why.line, "reports: %s", why.msg));
        if (done) { /* this study's identity cannot stand in a report: the others still get theirs */
            log_event(LOG_WARN, "report.refused", "study", LOG_STR(f->studies[i].study_key), "reason", LOG_STR(why.msg),
                      NULL);
            out->failed++;
        } else if (written)
            out->written++;
        else
            out->kept++;
    }
done:
    progress_end(&bar);
    return rc;
}

/* What was written by an earlier call with the same options: true if all of it is still there. */
static bool is_done(const char *marker, const findings *f, report_outcome *out)
{
    char path[FILE_PATH_MAX];
    struct stat st;
    json_t *j = file_exists(marker) ? json_load_file(marker, 0, NULL) : NULL;
    size_t reports = (size_t)json_integer_value(json_object_get(j, "reports")), there = 0;
    size_t impossible = (size_t)json_integer_value(json_object_get(j, "no_report_possible")),
           failed = (size_t)json_integer_value(json_object_get(j, "refused"));
    bool done = j != NULL;
    json_decref(j);
    for (size_t i = 0; i < f->n_studies && done; i++)
        there += !file_path(path, NULL, "%s/%s.dcm", out->folder, f->studies[i].study_key) && !stat(path, &st) &&
                 st.st_size > 0;
    if (!done || there != reports) return false;
    out->kept = reports;
    out->impossible = impossible;
    out->failed = failed;
    return true;
}

/* Markers of other findings or options say nothing true any more once reports are about to be replaced. */
static void unmark(const stage *s)
{
    char folder[FILE_PATH_MAX], path[FILE_PATH_MAX];
    DIR *d = file_path(folder, NULL, "%s/runs", s->work) ? NULL : opendir(folder);
    for (struct dirent *f; d && (f = readdir(d));)
        if (!strncmp(f->d_name, "reports-", 8) && !file_path(path, NULL, "%s/%s", folder, f->d_name)) unlink(path);
    if (d) closedir(d);
}

static err_code mark(const stage *s, const char *marker, const report_outcome *out, err *e)
{
    char text[160], folder[FILE_PATH_MAX];
    TRY(file_path(folder, e, "%s/runs", s->work));
    TRY(file_mkdirs(folder, e)); /* findings may come from elsewhere */
    int n = snprintf(text, sizeof text, "{\"reports\":%zu,\"no_report_possible\":%zu,\"refused\":%zu}\n",
                     out->written + out->kept, out->impossible, out->failed);
    return file_write(marker, text, (size_t)n, e);
}

/* WORK/runs/reports-<8 hex of all that decides what the reports are>.json. */
static err_code marker_path(const stage *s, const char *from, char out[FILE_PATH_MAX], err *e)
{
    char digest[HASH_HEX], id[STAGE_ID];
    TRY(hash_file(from, digest, e));
    TRY(stage_run_id(s, id, e, "reports", IN_REPORT, digest, NULL));
    return file_path(out, e, "%s/runs/%s.json", s->work, id);
}

err_code cmd_report_stage(stage *s, const char *from, report_outcome *out, err *e)
{
    const options *o = s->o;
    char newest[FILE_PATH_MAX], marker[FILE_PATH_MAX];
    sr_options how = {.sr_class = class_of(options_text(o, "report.sr-class")),
                      .organisation_root =
                          options_has(o, "report.uid-root") ? options_text(o, "report.uid-root") : NULL};
    findings f;
    err why = {0};
    *out = (report_outcome){.written = 0};
    char uid[UID_MAX];
    if (how.organisation_root && uid_derive(uid, how.organisation_root, &why, "try", NULL))
        return stage_blame("--uid-root", how.organisation_root, &why, e);
    if (!from) from = options_text(o, "report.findings");
    if (!*from) {
        TRY(stage_newest(s, "predict", "findings.jsonl", NULL, NULL, newest, e));
        from = newest;
    }
    TRY(file_path(out->folder, e, "%s/reports", s->work));
    if (findings_read(from, &f, &why)) return stage_blame("findings", from, &why, e);
    err_code rc = marker_path(s, from, marker, e);
    if (!rc && !is_done(marker, &f, out)) {
        if (options_flag(o, "dry-run"))
            out->written = f.n_studies;
        else {
            rc = file_mkdirs(out->folder, e);
            if (!rc && chmod(out->folder, 0700)) /* reports name patients */
                rc = err_errno(e, errno, __FILE__, __LINE__, "cannot keep the reports' folder to its owner");
            unmark(s);
            if (!rc) rc = write_all(s, &f, &how, out, e);
            if (!rc) rc = mark(s, marker, out, e);
        }
    }
    findings_fini(&f);
    return rc;
}

err_code cmd_report(const options *o, int *status, err *e)
{
    stage s;
    report_outcome r = {.written = 0};
    TRY(stage_open(&s, o, STAGE_NEEDS_CATALOGUE, e));
    err_code rc = cmd_report_stage(&s, NULL, &r, e);
    if (!rc && options_flag(o, "json"))
        stage_json(json_pack("{s:s,s:I,s:I,s:I,s:I}", "folder", r.folder, "written", (json_int_t)r.written, "unchanged",
                             (json_int_t)r.kept, "no_report_possible", (json_int_t)r.impossible, "refused",
                             (json_int_t)r.failed));
    else if (!rc && options_flag(o, "dry-run"))
        printf("%zu reports would be written, %zu are there\n", r.written, r.kept);
    else if (!rc) {
        if (!r.written && r.kept)
            printf("nothing to do: %zu reports are there already\n", r.kept);
        else
            printf("%zu reports written, %zu were there already\n", r.written, r.kept);
        if (r.impossible)
            printf("%zu studies are not DICOM: there is nothing to send a report back to\n", r.impossible);
        if (r.failed) printf("%zu studies have identities that no report can carry (see the log)\n", r.failed);
        printf("Reports: %s\n", r.folder);
    }
    *status = stage_status(r.failed);
    stage_close(&s);
    return rc;
}
