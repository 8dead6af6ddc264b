/* relevance.h: options that were given and would do nothing, by what else is asked for: refused instead of ignored. */
#ifndef RADAPT_RELEVANCE_H
#define RADAPT_RELEVANCE_H
#include "cli/options.h"

/* ERR_USAGE names the first one. An option of a file does not stand in the way of the command line: `--method linear`
 * over a file with epochs is fine, `--method linear --epochs 8` is not. */
err_code relevance_check(const options *o, err *e);

#endif
