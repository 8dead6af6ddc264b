/* options_file.h: between the YAML reader (options_file.c) and the table (options.c). */
#ifndef RADAPT_OPTIONS_FILE_H
#define RADAPT_OPTIONS_FILE_H
#include "cli/options.h"

/* One "key: value" of a file, section "" at the top. ERR_USAGE names the line. */
err_code options_assign_file(options *o, const char *section, const char *key, const char *text, int line, bool printed,
                             err *e);
/* Reads a file; what the command line set stays. */
err_code options_file_read(options *o, const char *path, err *e);

#endif
