/* Masks keep their promises: how many crops, how much of each, rectangles, and the bound that memory is planned by. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "adapt/ssl_mask.h"

static void test_shares(void **state)
{
    (void)state;
    static const ssl_mask table[] = {{32, 16, 16, 0.5f, 0.1f, 0.5f},
                                     {7, 14, 14, 0.5f, 0.1f, 0.5f},
                                     {4, 4, 4, 1, 0.3f, 0.3f},
                                     {SSL_MASK_CROPS, 3, 5, 0.5f, 0.2f, 0.6f},
                                     {6, 37, 37, 0, 0.1f, 0.5f}};
    for (size_t t = 0; t < sizeof table / sizeof *table; t++) {
        const ssl_mask *s = &table[t];
        size_t patches = s->rows * s->columns, n = (size_t)((float)s->crops * s->probability);
        uint8_t *mask = malloc(s->crops * patches);
        for (uint64_t seed = 0; seed < 20; seed++) {
            rng r = rng_at(seed, RNG_MASK, 0, 0);
            size_t told = ssl_mask_draw(s, &r, mask), total = 0, masked = 0;
            for (size_t i = 0; i < s->crops; i++) {
                size_t here = 0;
                for (size_t p = 0; p < patches; p++) {
                    assert_true(mask[i * patches + p] <= 1);
                    here += mask[i * patches + p];
                }
                masked += here > 0;
                total += here;
                assert_true((float)here <= s->high * (float)patches + 1);
            }
            assert_int_equal(told, total);
            assert_true(total <= ssl_mask_most(s));
            assert_true(masked <= n);
            /* a grid of 16 x 16 always has room for the rectangles that are asked for, or nearly */
            if (t == 0) assert_true(masked == n && total * 10 >= patches * n * 3 * 7 / 10);
        }
        free(mask);
    }
}

/* Another seed, another mask; the same seed, the same; all crops get their turn. */
static void test_draws(void **state)
{
    (void)state;
    ssl_mask s = {8, 14, 14, 0.5f, 0.1f, 0.5f};
    uint8_t a[8 * 196], b[8 * 196];
    int turns[8] = {0};
    for (uint64_t seed = 0; seed < 200; seed++) {
        rng r = rng_at(seed, RNG_MASK, 0, 0), again = r, other = rng_at(seed + 1, RNG_MASK, 0, 0);
        ssl_mask_draw(&s, &r, a);
        ssl_mask_draw(&s, &again, b);
        assert_memory_equal(a, b, sizeof a);
        ssl_mask_draw(&s, &other, b);
        assert_memory_not_equal(a, b, sizeof a);
        for (int i = 0; i < 8; i++)
            for (int p = 0; p < 196; p++)
                if (a[i * 196 + p]) {
                    turns[i]++;
                    break;
                }
    }
    for (int i = 0; i < 8; i++) assert_in_range(turns[i], 70, 130);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shares), cmocka_unit_test(test_draws)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
