/* log.h: one line per event, text for people or JSON lines for machines; PHI-free by rule.
 *
 *     log_open(stderr, LOG_TEXT, LOG_INFO);
 *     log_event(LOG_INFO, "scan.done", "files", LOG_INT(n), "seconds", LOG_REAL(t), NULL);
 *
 * Text:  12:00:01 info  scan.done files=12 seconds=0.4
 * JSON:  {"time":"2026-11-24T12:00:01Z","level":"info","event":"scan.done","files":12,"seconds":0.4}
 * A number that is not one is null in JSON, and left out of text.
 * Never pass a patient's data or a path found in an export. Thread-safe; a forked worker inherits the settings. */
#ifndef RADAPT_LOG_H
#define RADAPT_LOG_H
#include <stdint.h>
#include <stdio.h>

typedef enum { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_OFF } log_level;
typedef enum { LOG_TEXT, LOG_JSON } log_format;

typedef struct {
    enum { LOG_VALUE_INT, LOG_VALUE_REAL, LOG_VALUE_STR } kind;
    int64_t i;
    double r;
    const char *s;
} log_value;

#define LOG_INT(x) ((log_value){.kind = LOG_VALUE_INT, .i = (int64_t)(x)})
#define LOG_REAL(x) ((log_value){.kind = LOG_VALUE_REAL, .r = (double)(x)})
#define LOG_STR(x) ((log_value){.kind = LOG_VALUE_STR, .s = (x)})

/* Where events go; out is borrowed. Before the first call nothing is written. */
void log_open(FILE *out, log_format format, log_level least);
/* Pairs of (const char *name, log_value value), closed by NULL. */
void log_event(log_level level, const char *event, ...) __attribute__((sentinel));
/* Held while progress redraws its line, so that the two do not mix. */
void log_lock(void);
void log_unlock(void);

#endif
