/* scan.h: export folder -> catalogue. Headers only; nothing is decoded. By content, whatever the extension; symbolic
 * links are followed to files, never into folders. A file that cannot be used costs that file alone. */
#ifndef RADAPT_SCAN_H
#define RADAPT_SCAN_H
#include "io/catalogue.h"

typedef struct {
    int threads;         /* 0: one per processor */
    bool keep_burned_in; /* take secondary captures and BurnedInAnnotation=YES all the same */
    bool dry_run;        /* count, write nothing */
} scan_options;

typedef struct {
    uint64_t seen, known, taken, aside;
} scan_result;

/* ERR_NOTFOUND / ERR_IO when the folder itself cannot be read; ERR_INTERRUPTED when asked to stop (resumable). A folder
 * below that cannot be read is counted and set aside under its own name. */
err_code scan_folder(catalogue *c, const char *folder, const scan_options *o, scan_result *out, err *e);

#endif
