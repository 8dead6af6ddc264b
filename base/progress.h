/* progress.h: what is going on, with rate and time left, on stderr.
 *
 *     progress p;
 *     progress_start(&p, "prepare", "files", total);   // total 0: unknown
 *     progress_add(&p, 1);                             // thread-safe
 *     progress_note(&p, "loss 3.21");                  // shown behind the rate
 *     progress_end(&p);
 *
 * On a terminal one line is redrawn at most 5 times a second; elsewhere a line (log event "progress") every 10 s. */
#ifndef RADAPT_PROGRESS_H
#define RADAPT_PROGRESS_H
#include <stdint.h>

typedef struct {
    const char *stage, *unit; /* borrowed, literals */
    uint64_t total, done, first;
    double started, shown;
    char note[64];
} progress;

void progress_start(progress *p, const char *stage, const char *unit, uint64_t total);
/* Work that was there already (a resumed run): counts as done but not in the rate. */
void progress_skip(progress *p, uint64_t n);
void progress_add(progress *p, uint64_t n);
void progress_note(progress *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void progress_end(progress *p);
/* quiet != 0: nothing is shown (tests, --quiet). */
void progress_quiet(int quiet);
/* Seconds of the monotonic clock. */
double progress_clock(void);

#endif
