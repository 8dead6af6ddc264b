/* stop.h: SIGINT and SIGTERM ask the program to stop; long loops look here once per unit of work. */
#ifndef RADAPT_STOP_H
#define RADAPT_STOP_H
#include <stdbool.h>

#include "err.h"

/* Installs the handlers; ignores SIGPIPE and SIGXFSZ. A second signal ends the program at once. */
void stop_install(void);
bool stop_requested(void);
/* ERR_INTERRUPTED if a stop was asked for. */
err_code stop_check(err *e);
/* For tests. */
void stop_request(void);
void stop_clear(void);

#endif
