/* Philox4x32-10 by the known answers of its authors, then the distributions made from it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "base/rng.h"

/* Known answers: counter, key, output (Random123, kat_vectors). */
static void known_answers(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } rows[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        rng r = rng_at(0, 0, 0, 0);
        memcpy(r.key, rows[i].key, sizeof r.key);
        memcpy(r.counter, rows[i].counter, sizeof r.counter);
        for (int k = 0; k < 4; k++) assert_int_equal(rng_u32(&r), rows[i].out[k]);
    }
}

/* Every part of the address gives another stream, and the same address the same one. */
static void addresses(void **state)
{
    (void)state;
    static const struct {
        uint64_t seed, a;
        uint32_t stream, b;
    } rows[] = {{1, 0, 1, 0},          {2, 0, 1, 0}, {1ull << 40, 0, 1, 0}, {1, 1, 1, 0},
                {1, 1ull << 40, 1, 0}, {1, 0, 2, 0}, {1, 0, 1, 1},          {1, 0, 1, 1u << 31}};
    enum { N = sizeof rows / sizeof *rows };
    uint32_t first[N][8];
    for (size_t i = 0; i < N; i++) {
        rng r = rng_at(rows[i].seed, rows[i].stream, rows[i].a, rows[i].b);
        for (int k = 0; k < 8; k++) first[i][k] = rng_u32(&r);
        r = rng_at(rows[i].seed, rows[i].stream, rows[i].a, rows[i].b);
        for (int k = 0; k < 8; k++) assert_int_equal(first[i][k], rng_u32(&r));
        for (size_t j = 0; j < i; j++) assert_memory_not_equal(first[i], first[j], sizeof first[i]);
    }
}

enum { DRAWS = 200000 };

static void uniform(void **state)
{
    (void)state;
    rng r = rng_at(7, RNG_TEST, 0, 0);
    double sum = 0, square = 0;
    size_t bins[16] = {0};
    for (int i = 0; i < DRAWS; i++) {
        float u = rng_uniform(&r);
        assert_true(u >= 0 && u < 1);
        sum += u;
        square += (double)u * u;
        bins[(int)(u * 16)]++;
    }
    assert_true(fabs(sum / DRAWS - 0.5) < 5 * sqrt(1.0 / 12 / DRAWS));
    assert_true(fabs(square / DRAWS - 1.0 / 3) < 0.005);
    double chi = 0;
    for (int i = 0; i < 16; i++) chi += pow((double)bins[i] - DRAWS / 16.0, 2) / (DRAWS / 16.0);
    assert_true(chi < 45); /* 15 degrees of freedom: p about 1e-4 */
    for (int i = 0; i < 1000; i++) {
        float x = rng_between(&r, -2, 3);
        assert_true(x >= -2 && x <= 3);
    }
}

static void below(void **state)
{
    (void)state;
    static const uint32_t rows[] = {1, 2, 3, 7, 10, 0x80000001u, 0xffffffffu};
    rng r = rng_at(8, RNG_TEST, 0, 0);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t low = 0;
        for (int k = 0; k < 20000; k++) {
            uint32_t x = rng_below(&r, rows[i]);
            assert_true(x < rows[i]);
            low += x < rows[i] / 2;
        }
        double expected = 20000.0 * (rows[i] / 2) / rows[i];
        assert_true(fabs((double)low - expected) <= 400); /* above five sigma */
    }
}

static void normal(void **state)
{
    (void)state;
    rng r = rng_at(9, RNG_TEST, 0, 0);
    double m[5] = {0}, lag = 0, before = 0;
    size_t beyond = 0;
    for (int i = 0; i < DRAWS; i++) {
        double x = rng_normal(&r), p = 1;
        assert_true(isfinite(x));
        for (int k = 0; k < 5; k++, p *= x) m[k] += p / DRAWS;
        lag += x * before / DRAWS;
        before = x;
        beyond += fabs(x) > 1.959964;
    }
    assert_true(fabs(m[1]) < 0.012 && fabs(m[2] - 1) < 0.017 && fabs(m[3]) < 0.05 && fabs(m[4] - 3) < 0.12);
    assert_true(fabs(lag) < 0.012);
    assert_true(fabs((double)beyond / DRAWS - 0.05) < 0.0025);
    double square = 0;
    for (int i = 0; i < 20000; i++) {
        float x = rng_trunc_normal(&r, 0.02f, 0.04f);
        assert_true(fabsf(x) <= 0.04f);
        square += (double)x * x / 20000;
    }
    assert_true(fabs(sqrt(square) / 0.02 - 0.8796) < 0.02); /* of a normal cut at two sigma */
}

static void shuffle(void **state)
{
    (void)state;
    rng r = rng_at(10, RNG_TEST, 0, 0);
    size_t seen[24] = {0};
    for (int k = 0; k < 24000; k++) {
        uint32_t x[4] = {0, 1, 2, 3};
        rng_shuffle(&r, x, 4);
        size_t rank = 0, used = 0;
        for (size_t i = 0; i < 4; i++) {
            size_t smaller = 0;
            for (size_t j = 0; j < 4; j++) smaller += j < x[i] && !(used >> j & 1);
            rank = rank * (4 - i) + smaller;
            assert_false(used >> x[i] & 1);
            used |= (size_t)1 << x[i];
        }
        seen[rank]++;
    }
    for (int i = 0; i < 24; i++) assert_in_range(seen[i], 1000 - 160, 1000 + 160); /* all 24 orders, five sigma */
    rng_shuffle(&r, NULL, 0);
}

/* Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)), symmetric. */
static void beta(void **state)
{
    (void)state;
    static const float shapes[] = {0.02f, 0.2f, 0.5f, 1, 3, 40};
    enum { N = 20000 };
    for (uint32_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        double sum = 0, square = 0, cube = 0, a = shapes[i], want = 0.25 / (2 * a + 1);
        for (uint32_t k = 0; k < N; k++) {
            rng r = rng_at(3, RNG_TEST, k, i);
            double x = rng_beta(&r, shapes[i]) - 0.5;
            if (!(x >= -0.5 && x <= 0.5)) fail_msg("shape %g: %g", a, x + 0.5);
            sum += x / N;
            square += x * x / N;
            cube += x * x * x / N;
        }
        if (fabs(sum) > 0.015 || fabs(square - want) > 0.03 * want + 1e-4 || fabs(cube) > 0.01)
            fail_msg("shape %g: mean %g, variance %g, not %g, skew %g", a, sum + 0.5, square, want, cube);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(known_answers), cmocka_unit_test(addresses),
                                       cmocka_unit_test(uniform),       cmocka_unit_test(below),
                                       cmocka_unit_test(normal),        cmocka_unit_test(shuffle),
                                       cmocka_unit_test(beta)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
