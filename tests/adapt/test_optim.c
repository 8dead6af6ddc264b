/* Schedules at their corners, and which layer a weight belongs to. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "adapt/optim.h"

static void test_schedules(void **state)
{
    (void)state;
    static const struct {
        uint64_t step, warm, total;
        float want;
    } table[] = {{0, 10, 110, 0},      {5, 10, 110, 0.5f},   {10, 10, 110, 1}, {60, 10, 110, 0.6f},
                 {110, 10, 110, 0.2f}, {500, 10, 110, 0.2f}, {0, 0, 100, 1},   {50, 0, 100, 0.6f},
                 {3, 10, 5, 0.3f},     {0, 0, 0, 0.2f}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        float got = schedule_warm_cosine(1, 0.2f, table[i].step, table[i].warm, table[i].total);
        if (!(fabsf(got - table[i].want) < 1e-6f)) fail_msg("row %zu: %g", i, (double)got);
    }
    assert_true(fabsf(schedule_linear(1, 3, 5, 10) - 2) < 1e-6f && fabsf(schedule_linear(1, 3, 10, 10) - 3) < 1e-6f);
}

static void test_layers(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int layer;
    } table[] = {{"patch_embed.proj.weight", 0},
                 {"pos_embed", 0},
                 {"cls_token", 0},
                 {"register_tokens", 0},
                 {"mask_token", 0},
                 {"blocks.0.norm1.weight", 1},
                 {"blocks.0.attn.proj.weight", 1},
                 {"blocks.1.mlp.fc1.bias", 2},
                 {"blocks.11.attn.proj.bias", 12},
                 {"norm.weight", 13},
                 {"head.weight", 13}};
    enum { NAMES = sizeof table / sizeof *table };
    param_set ps = {0};
    for (size_t i = 0; i < NAMES; i++) {
        if (optim_layer(table[i].name, 12) != table[i].layer)
            fail_msg("%s: layer %d", table[i].name, optim_layer(table[i].name, 12));
        assert_non_null(param_add(&ps, table[i].name, 1, 1));
    }
    ps.p[1].lr_scale = 0.5f; /* what is there already is kept */
    optim_layer_decay(&ps, 12, 0.9f);
    for (size_t i = 0; i < NAMES; i++) {
        double want = (i == 1 ? 0.5 : 1) * pow(0.9, 13 - table[i].layer);
        if (!(fabs(ps.p[i].lr_scale - want) < 1e-6)) fail_msg("%s: %g", table[i].name, (double)ps.p[i].lr_scale);
    }
    free(ps.p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_schedules), cmocka_unit_test(test_layers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
