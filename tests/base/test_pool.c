/* Every index once, whatever the count of threads; loops from several threads take turns. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>

#include "base/pool.h"

enum { MOST = 10007 };

typedef struct {
    atomic_int count[MOST];
    atomic_int running;
} seen;

static void mark(void *ctx, size_t i)
{
    atomic_fetch_add(&((seen *)ctx)->count[i], 1);
}

static void every_index_once(void **state)
{
    (void)state;
    static const int threads[] = {0, 1, 2, 7};
    static const size_t sizes[] = {0, 1, 2, 3, 100, MOST};
    static seen s;
    for (size_t t = 0; t <= sizeof threads / sizeof *threads; t++) {
        pool *p = t < sizeof threads / sizeof *threads ? pool_new(threads[t]) : NULL;
        if (t < sizeof threads / sizeof *threads) assert_non_null(p);
        assert_true(pool_threads(p) >= 1);
        if (p && threads[t]) assert_int_equal(pool_threads(p), threads[t]);
        for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
            for (int again = 0; again < 20; again++) {
                memset(&s, 0, sizeof s);
                pool_for(p, sizes[k], mark, &s);
                for (size_t i = 0; i < MOST; i++) assert_int_equal(atomic_load(&s.count[i]), i < sizes[k]);
            }
        pool_free(p);
    }
}

static pool *shared;

static void count_running(void *ctx, size_t i)
{
    seen *s = ctx;
    (void)i;
    atomic_fetch_add(&s->running, 1);
}

static void *caller(void *ctx)
{
    for (int k = 0; k < 200; k++) {
        seen *s = ctx;
        atomic_store(&s->running, 0);
        pool_for(shared, 50, count_running, s);
        if (atomic_load(&s->running) != 50) return ctx;
    }
    return NULL;
}

static void loops_take_turns(void **state)
{
    (void)state;
    static seen s[3];
    pthread_t t[3];
    shared = pool_new(3);
    assert_non_null(shared);
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_create(&t[i], NULL, caller, &s[i]), 0);
    for (int i = 0; i < 3; i++) {
        void *wrong;
        pthread_join(t[i], &wrong);
        assert_null(wrong);
    }
    pool_free(shared);
    pool_free(NULL);
    assert_true(pool_processors() >= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_index_once), cmocka_unit_test(loops_take_turns)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
