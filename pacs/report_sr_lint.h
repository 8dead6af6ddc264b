/* report_sr_lint.h: the lint of report_sr.h on a data set in memory: report_sr_write asks it before it writes. */
#ifndef RADAPT_REPORT_SR_LINT_H
#define RADAPT_REPORT_SR_LINT_H
#include "base/err.h"
#include "pacs/attributes.h"

err_code report_sr_lint_attributes(const attributes *d, err *e);

#endif
