/* cmd_scan.c: `radapt scan EXPORT...`: folders -> catalogue. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/cmd.h"
#include "cli/stage.h"

err_code cmd_scan_stage(stage *s, scan_result *out, err *e)
{
    const options *o = s->o;
    scan_options how = {.threads = (int)options_int(o, "threads"),
                        .keep_burned_in = options_flag(o, "scan.keep-burned-in"),
                        .dry_run = options_flag(o, "dry-run")};
    *out = (scan_result){0};
    if (!o->n_arguments) FAIL(e, USAGE, "%s wants the export folder: radapt %s EXPORT -w WORK", o->command, o->command);
    for (size_t i = 0; i < o->n_arguments; i++) { /* all of them, before hours are spent on the first */
        err why = {0};
        if (access(o->arguments[i], R_OK | X_OK)) {
            err_errno(&why, errno, __FILE__, __LINE__, "cannot be read");
            return stage_blame("the export folder", o->arguments[i], &why, e);
        }
    }
    for (size_t i = 0; i < o->n_arguments; i++) {
        scan_result one;
        err why = {0};
        if (scan_folder(s->cat, o->arguments[i], &how, &one, &why)) {
            if (why.code == ERR_INTERRUPTED) return err_set(e, why.code, why.file, why.line, "%s", why.msg);
            return stage_blame("the export folder", o->arguments[i], &why, e);
        }
        out->seen += one.seen;
        out->known += one.known;
        out->taken += one.taken;
        out->aside += one.aside;
    }
    if (how.dry_run) return ERR_OK;
    TRY(catalogue_write_quarantine(s->cat, e));
    catalogue_counts c;
    TRY(catalogue_count(s->cat, &c, e));
    if (!out->seen) FAIL(e, EMPTY, "the export holds no files");
    if (!c.found && !c.stored)
        FAIL(e, EMPTY, "none of the %llu files can be used; quarantine.csv in the work directory says why",
             (unsigned long long)c.files);
    return ERR_OK;
}

err_code cmd_scan(const options *o, int *status, err *e)
{
    stage s;
    scan_result r;
    catalogue_counts c = {0};
    TRY(stage_open(&s, o, STAGE_MAKE, e));
    err_code rc = cmd_scan_stage(&s, &r, e);
    if (!rc) rc = catalogue_count(s.cat, &c, e);
    bool dry = options_flag(o, "dry-run");
    if (!rc && options_flag(o, "json"))
        printf("{\"seen\":%llu,\"known\":%llu,\"taken\":%llu,\"set_aside\":%llu,\"patients\":%llu,\"studies\":%llu,"
               "\"series\":%llu}\n",
               (unsigned long long)r.seen, (unsigned long long)r.known, (unsigned long long)r.taken,
               (unsigned long long)r.aside, (unsigned long long)c.patients, (unsigned long long)c.studies,
               (unsigned long long)c.series);
    else if (!rc) {
        printf("%llu files seen: %llu %s, %llu set aside, %llu known already\n", (unsigned long long)r.seen,
               (unsigned long long)r.taken, dry ? "would be taken" : "taken", (unsigned long long)r.aside,
               (unsigned long long)r.known);
        if (!dry && r.seen == r.known) puts("nothing to do: every file is known");
        if (!dry)
            printf("The catalogue holds %llu patients, %llu studies, %llu series.\n", (unsigned long long)c.patients,
                   (unsigned long long)c.studies, (unsigned long long)c.series);
        if (c.aside) printf("Set aside, with reasons: %s/quarantine.csv\n", s.work);
    }
    *status = stage_status(c.aside + r.aside); /* r: of a dry run, which the catalogue does not know */
    stage_close(&s);
    return rc;
}
