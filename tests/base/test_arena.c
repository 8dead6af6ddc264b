/* The measuring pass and the real one agree; nothing wraps, nothing overlaps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"

static void plan(arena *a, void *out[4])
{
    out[0] = arena_take(a, 3, 7);
    out[1] = arena_take(a, 0, 8);
    out[2] = arena_take(a, 64, 1);
    out[3] = arena_take(a, 1, 65);
}

static void two_passes(void **state)
{
    (void)state;
    arena dry = {0}, a;
    void *p[4];
    plan(&dry, p);
    for (int i = 0; i < 4; i++) assert_null(p[i]);
    assert_int_equal(dry.used, 64 + 0 + 64 + 128);
    char *block = aligned_alloc(ARENA_ALIGN, dry.used);
    assert_non_null(block);
    arena_init(&a, block, dry.used);
    plan(&a, p);
    assert_false(arena_failed(&a));
    assert_int_equal(a.used, dry.used);
    assert_ptr_equal(p[0], block);
    assert_ptr_equal(p[2], block + 64);
    assert_ptr_equal(p[3], block + 128);
    for (int i = 0; i < 4; i++) assert_int_equal((uintptr_t)p[i] % ARENA_ALIGN, 0);
    assert_null(arena_take(&a, 1, 1)); /* full */
    assert_true(arena_failed(&a));
    free(block);
}

static void one_byte_short(void **state)
{
    (void)state;
    static char block[256] __attribute__((aligned(64)));
    arena a;
    arena_init(&a, block, 127);
    assert_non_null(arena_take(&a, 64, 1));
    assert_null(arena_take(&a, 1, 1)); /* its padding would not fit */
    assert_true(arena_failed(&a));
    assert_null(arena_take(&a, 0, 0)); /* failure stays */
    assert_int_equal(a.used, 64);
}

static void overflow(void **state)
{
    (void)state;
    static const size_t rows[][2] = {
        {SIZE_MAX, 2}, {SIZE_MAX, 1}, {SIZE_MAX - 63, 1}, {SIZE_MAX / 2 + 1, 2}, {(size_t)1 << 32, (size_t)1 << 32}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        arena a = {0};
        arena_take(&a, 100, 1);
        assert_null(arena_take(&a, rows[i][0], rows[i][1]));
        assert_true(arena_failed(&a));
    }
    arena a = {0}; /* the sum, not the product */
    arena_take(&a, SIZE_MAX / 2, 1);
    assert_false(arena_failed(&a));
    arena_take(&a, SIZE_MAX / 2, 1);
    arena_take(&a, SIZE_MAX / 2, 1);
    assert_true(arena_failed(&a));
}

static void products(void **state)
{
    (void)state;
    size_t n = 5;
    assert_true(size_mul(0, SIZE_MAX, &n));
    assert_int_equal(n, 0);
    assert_true(size_mul(SIZE_MAX, 1, &n));
    assert_true(n == SIZE_MAX);
    assert_false(size_mul(SIZE_MAX, 2, &n));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(two_passes), cmocka_unit_test(one_byte_short),
                                       cmocka_unit_test(overflow), cmocka_unit_test(products)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
