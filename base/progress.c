/* progress.c: the rate is that of the whole stage so far, without what a resumed run found done. */
#include "base/progress.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"

static int quiet;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

double progress_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void progress_quiet(int on)
{
    quiet = on;
}

void progress_start(progress *p, const char *stage, const char *unit, uint64_t total)
{
    double now = progress_clock();
    *p = (progress){.stage = stage, .unit = unit, .total = total, .started = now, .shown = now};
}

static void time_text(char *out, size_t size, double s)
{
    long t = (long)(s + 0.5);
    if (t >= 3600)
        snprintf(out, size, "%ld:%02ld:%02ld", t / 3600, t / 60 % 60, t % 60);
    else
        snprintf(out, size, "%ld:%02ld", t / 60, t % 60);
}

static void show(progress *p, double now, int last)
{
    if (quiet) return;
    double rate = now > p->started ? (double)(p->done - p->first) / (now - p->started) : 0;
    double left = rate > 0 && p->total > p->done ? (double)(p->total - p->done) / rate : 0;
    if (isatty(STDERR_FILENO)) {
        char eta[24] = "";
        if (p->total && left > 0) time_text(eta, sizeof eta, left);
        log_lock();
        if (p->total)
            fprintf(stderr, "\r\033[K%s %llu/%llu %s (%.0f %%) %.3g/s%s%s%s%s", p->stage, (unsigned long long)p->done,
                    (unsigned long long)p->total, p->unit, 100.0 * (double)p->done / (double)p->total, rate,
                    *eta ? " left " : "", eta, *p->note ? " " : "", p->note);
        else
            fprintf(stderr, "\r\033[K%s %llu %s %.3g/s %s", p->stage, (unsigned long long)p->done, p->unit, rate,
                    p->note);
        if (last) fputc('\n', stderr);
        fflush(stderr);
        log_unlock();
    } else {
        log_event(LOG_INFO, "progress", "stage", LOG_STR(p->stage), "done", LOG_INT(p->done), "total",
                  LOG_INT(p->total), "unit", LOG_STR(p->unit), "per_s", LOG_REAL(rate), "left_s", LOG_REAL(left),
                  "note", LOG_STR(p->note), NULL);
    }
    p->shown = now;
}

void progress_skip(progress *p, uint64_t n)
{
    pthread_mutex_lock(&lock);
    p->done += n;
    p->first += n;
    pthread_mutex_unlock(&lock);
}

void progress_add(progress *p, uint64_t n)
{
    pthread_mutex_lock(&lock);
    p->done += n;
    double now = progress_clock();
    if (now - p->shown >= (isatty(STDERR_FILENO) ? 0.2 : 10.0)) show(p, now, 0);
    pthread_mutex_unlock(&lock);
}

void progress_note(progress *p, const char *fmt, ...)
{
    pthread_mutex_lock(&lock);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(p->note, sizeof p->note, fmt, ap);
    va_end(ap);
    pthread_mutex_unlock(&lock);
}

void progress_end(progress *p)
{
    pthread_mutex_lock(&lock);
    if (isatty(STDERR_FILENO) || progress_clock() - p->started >= 10.0) show(p, progress_clock(), 1);
    pthread_mutex_unlock(&lock);
}
