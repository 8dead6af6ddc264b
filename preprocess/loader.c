/* loader.c: step s lives in buffer (s - first) % 2. The thread fills step s once step s-2 has been given back, which
 * the take of s-1 does. One mutex, one condition for both directions. */
#include "preprocess/loader.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/arena.h"

struct loader {
    loader_fill fill;
    void *ctx;
    float *buffer[2]; /* (floats) */
    uint64_t first, last;
    uint64_t filled; /* steps below this are done */
    uint64_t next;   /* step of the next take; next - 1 is held by the caller */
    bool quit, running;
    err failure; /* of step `filled`; the thread has ended */
    pthread_mutex_t lock;
    pthread_cond_t change;
    pthread_t thread;
};

static void *run(void *arg)
{
    loader *l = arg;
    pthread_mutex_lock(&l->lock);
    for (uint64_t step = l->first; step <= l->last; step++) {
        /* The buffer is free when the caller holds neither this step's predecessor in it nor has it still to come. */
        while (!l->quit && step - l->first >= 2 && l->next < step) pthread_cond_wait(&l->change, &l->lock);
        if (l->quit) break;
        pthread_mutex_unlock(&l->lock);
        err e = {0};
        err_code rc = l->fill(l->ctx, step, l->buffer[(step - l->first) % 2], &e);
        pthread_mutex_lock(&l->lock);
        if (rc) {
            if (!e.code) err_set(&e, rc, __FILE__, __LINE__, "loader: step %llu failed", (unsigned long long)step);
            l->failure = e;
        } else
            l->filled = step + 1;
        pthread_cond_broadcast(&l->change);
        if (rc || step == UINT64_MAX) break;
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

err_code loader_open(loader **out, loader_fill fill, void *ctx, size_t floats, uint64_t first_step, uint64_t last_step,
                     err *e)
{
    *out = NULL;
    size_t bytes;
    if (!size_mul(floats, sizeof(float), &bytes) || bytes > SIZE_MAX - ARENA_ALIGN)
        FAIL(e, LIMIT, "loader: batch of %zu numbers", floats);
    bytes = (bytes + ARENA_ALIGN) / ARENA_ALIGN * ARENA_ALIGN;
    loader *l = calloc(1, sizeof *l);
    if (!l) FAIL(e, NOMEM, "loader: no memory");
    l->fill = fill;
    l->ctx = ctx;
    l->first = l->filled = l->next = first_step;
    l->last = last_step;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->change, NULL);
    for (int i = 0; i < 2; i++) l->buffer[i] = aligned_alloc(ARENA_ALIGN, bytes);
    if (!l->buffer[0] || !l->buffer[1]) {
        loader_close(l);
        FAIL(e, NOMEM, "loader: no memory for two batches of %zu bytes", bytes);
    }
    if (pthread_create(&l->thread, NULL, run, l)) {
        loader_close(l);
        FAIL(e, NOMEM, "loader: no thread");
    }
    l->running = true;
    *out = l;
    return ERR_OK;
}

err_code loader_take(loader *l, uint64_t step, const float **batch, err *e)
{
    pthread_mutex_lock(&l->lock);
    if (step != l->next || step < l->first || step > l->last) {
        uint64_t expected = l->next;
        pthread_mutex_unlock(&l->lock);
        FAIL(e, INTERNAL, "loader: step %llu asked for, %llu is next", (unsigned long long)step,
             (unsigned long long)expected);
    }
    l->next = step + 1; /* gives the batch before this one back */
    pthread_cond_broadcast(&l->change);
    while (l->filled <= step && !l->failure.code) pthread_cond_wait(&l->change, &l->lock);
    bool good = l->filled > step;
    if (!good) l->next = step; /* the failure stays where it is */
    err failure = l->failure;
    pthread_mutex_unlock(&l->lock);
    if (!good) {
        if (e && !e->code) *e = failure;
        return err_failed(failure.code);
    }
    *batch = l->buffer[(step - l->first) % 2];
    return ERR_OK;
}

void loader_close(loader *l)
{
    if (!l) return;
    if (l->running) {
        pthread_mutex_lock(&l->lock);
        l->quit = true;
        pthread_cond_broadcast(&l->change);
        pthread_mutex_unlock(&l->lock);
        pthread_join(l->thread, NULL);
    }
    for (int i = 0; i < 2; i++) free(l->buffer[i]);
    pthread_cond_destroy(&l->change);
    pthread_mutex_destroy(&l->lock);
    free(l);
}
