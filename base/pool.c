/* pool.c: workers wait on one condition; a parallel loop is a shared counter that everyone, the caller too, draws from.
 */
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

struct pool {
    pthread_mutex_t lock, turn; /* turn: one loop at a time */
    pthread_cond_t work, idle;
    pthread_t *thread;
    int threads, busy, quit;
    unsigned long loop; /* number of the current loop */
    atomic_size_t next;
    size_t n;
    void (*fn)(void *, size_t);
    void *ctx;
};

static void drain(pool *p)
{
    size_t i;
    while ((i = atomic_fetch_add(&p->next, 1)) < p->n) p->fn(p->ctx, i);
}

static void *worker(void *arg)
{
    pool *p = arg;
    unsigned long seen = 0;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->quit && p->loop == seen) pthread_cond_wait(&p->work, &p->lock);
        if (p->quit) break;
        seen = p->loop;
        pthread_mutex_unlock(&p->lock);
        drain(p);
        pthread_mutex_lock(&p->lock);
        if (--p->busy == 0) pthread_cond_signal(&p->idle);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* cgroup v2 cpu.max: "quota period" in microseconds, or "max". */
static int quota(void)
{
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    long q = 0, period = 0;
    if (!f) return 0;
    int got = fscanf(f, "%ld %ld", &q, &period);
    fclose(f);
    return got == 2 && q > 0 && period > 0 ? (int)((q + period - 1) / period) : 0;
}

int pool_processors(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    int q = quota();
    if (q > 0 && q < n) n = q;
    return n > 0 ? n : 1;
}

pool *pool_new(int threads)
{
    pool *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    int want = threads > 0 ? threads : pool_processors();
    pthread_mutex_init(&p->lock, NULL);
    pthread_mutex_init(&p->turn, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->idle, NULL);
    p->thread = calloc((size_t)want, sizeof *p->thread);
    if (!p->thread) {
        pool_free(p);
        return NULL;
    }
    for (; p->threads < want - 1; p->threads++) /* the caller is one of them */
        if (pthread_create(&p->thread[p->threads], NULL, worker, p)) {
            pool_free(p);
            return NULL;
        }
    return p;
}

void pool_free(pool *p)
{
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->quit = 1;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->threads; i++) pthread_join(p->thread[i], NULL);
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->idle);
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_destroy(&p->turn);
    free(p->thread);
    free(p);
}

int pool_threads(const pool *p)
{
    return p ? p->threads + 1 : 1;
}

void pool_for(pool *p, size_t n, void (*fn)(void *ctx, size_t i), void *ctx)
{
    if (!p || p->threads == 0 || n < 2) {
        for (size_t i = 0; i < n; i++) fn(ctx, i);
        return;
    }
    pthread_mutex_lock(&p->turn);
    pthread_mutex_lock(&p->lock);
    p->fn = fn;
    p->ctx = ctx;
    p->n = n;
    atomic_store(&p->next, 0);
    p->busy = p->threads;
    p->loop++;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    drain(p);
    pthread_mutex_lock(&p->lock);
    while (p->busy) pthread_cond_wait(&p->idle, &p->lock);
    pthread_mutex_unlock(&p->lock);
    pthread_mutex_unlock(&p->turn);
}
