/* pool.h: threads for I/O and sampling (the compute back end uses OpenMP's own).
 *
 *     pool *p = pool_new(4);
 *     pool_for(p, n, fn, ctx);             // fn(ctx, i) for i in [0,n), any order; returns when all are done
 *     pool_free(p);
 *
 * pool_for may be called from several threads, one runs at a time; not from inside fn. */
#ifndef RADAPT_POOL_H
#define RADAPT_POOL_H
#include <stddef.h>

typedef struct pool pool;

/* threads <= 0: one per available processor. NULL only when out of memory or threads. */
pool *pool_new(int threads);
void pool_free(pool *p);
int pool_threads(const pool *p);
/* p == NULL: runs in the calling thread. */
void pool_for(pool *p, size_t n, void (*fn)(void *ctx, size_t i), void *ctx);
/* Processors this process may use (affinity and cgroup quota respected); at least 1. */
int pool_processors(void);

#endif
