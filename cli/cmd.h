/* cmd.h: what radapt.c knows of the commands: one cmd_<name>.c each. */
#ifndef RADAPT_CMD_H
#define RADAPT_CMD_H
#include "cli/options.h"

/* Exit codes. */
enum {
    STATUS_DONE = 0,
    STATUS_FAILED = 1,
    STATUS_EMPTY = 2,
    STATUS_ASIDE = 3,
    STATUS_USAGE = 64,
    STATUS_STOPPED = 130
};

/* *status: stage_status of what the command was given and could not use; an error chooses its own. Results go to
 * stdout. */
err_code cmd_run(const options *o, int *status, err *e);
err_code cmd_scan(const options *o, int *status, err *e);
err_code cmd_prepare(const options *o, int *status, err *e);
err_code cmd_plan(const options *o, int *status, err *e);
err_code cmd_adapt(const options *o, int *status, err *e);
err_code cmd_finetune(const options *o, int *status, err *e);
err_code cmd_evaluate(const options *o, int *status, err *e);
err_code cmd_predict(const options *o, int *status, err *e);
err_code cmd_export(const options *o, int *status, err *e);
err_code cmd_report(const options *o, int *status, err *e);
err_code cmd_inspect(const options *o, int *status, err *e);
err_code cmd_phantom(const options *o, int *status, err *e);

/* Defaults that the stage's own code holds (recipes), written into the options that the user left open. */
err_code cmd_plan_defaults(options *o, err *e);
err_code cmd_adapt_defaults(options *o, err *e);
err_code cmd_finetune_defaults(options *o, err *e);
err_code cmd_run_defaults(options *o, err *e);

#endif
