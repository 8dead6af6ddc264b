/* test_window.c: values computed by hand from PS3.3 C.11.2.1.2, pydicom's values (tests/golden/make_sampler.py), and
 * the choice of windows. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "io/safetensors.h"
#include "preprocess/window.h"

static void by_hand(void **state)
{
    (void)state;
    static const struct {
        voi_window w;
        double x, y;
    } rows[] = {
        /* LINEAR, c 2048, w 4096: 0 up to 0, 1 above 4095 (PS3.3 C.11.2.1.2.1 note 3) */
        {{true, VOI_LINEAR, 2048, 4096}, 0, 0},
        {{true, VOI_LINEAR, 2048, 4096}, 4095, 1},
        {{true, VOI_LINEAR, 2048, 4096}, 2047.5, 0.5},
        {{true, VOI_LINEAR, 2048, 4096}, 1, 1 / 4095.0},
        /* c 0, w 100: from -50 to 49; c 0, w 1: a step just above -0.5 */
        {{true, VOI_LINEAR, 0, 100}, -50, 0},
        {{true, VOI_LINEAR, 0, 100}, 49, 1},
        {{true, VOI_LINEAR, 0, 100}, 0, 50 / 99.0},
        {{true, VOI_LINEAR, 0, 1}, -1, 0},
        {{true, VOI_LINEAR, 0, 1}, -0.5, 0},
        {{true, VOI_LINEAR, 0, 1}, 0, 1},
        {{true, VOI_LINEAR, 10, 0}, 9, 0},
        {{true, VOI_LINEAR, 10, 0}, 10, 1},
        {{true, VOI_LINEAR_EXACT, 0, 100}, -50, 0},
        {{true, VOI_LINEAR_EXACT, 0, 100}, 0, 0.5},
        {{true, VOI_LINEAR_EXACT, 0, 100}, 50, 1},
        {{true, VOI_LINEAR_EXACT, 7, 0}, 7, 0},
        {{true, VOI_LINEAR_EXACT, 7, 0}, 7.001, 1},
        {{true, VOI_SIGMOID, 40, 400}, 40, 0.5},
        {{true, VOI_SIGMOID, 40, 400}, 140, 0.7310585786300049},
        {{true, VOI_SIGMOID, 40, 0}, 41, 1},
        {{true, VOI_SIGMOID, 40, 400}, -1e300, 0},
        {{true, VOI_LINEAR, 40, 400}, NAN, 0},
        {{true, VOI_LINEAR_EXACT, 40, NAN}, 41, 1},
        {{true, VOI_SIGMOID, 40, 400}, NAN, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        float y = window_value(&rows[i].w, rows[i].x);
        if (!(fabs(y - rows[i].y) < 1e-6)) fail_msg("row %zu: %g, not %g", i, (double)y, rows[i].y);
    }
}

static void as_pydicom(void **state)
{
    (void)state;
    safetensors s;
    err e = {0};
    assert_int_equal(safetensors_open(&s, TESTS_DIR "/golden/sampler.safetensors", &e), ERR_OK);
    const tensor *w = safetensors_find(&s, "voi.windows"), *x = safetensors_find(&s, "voi.x"),
                 *y = safetensors_find(&s, "voi.y");
    assert_true(w && x && y && w->type == TENSOR_F64 && y->count == w->shape[0] * x->count);
    for (size_t r = 0; r < w->shape[0]; r++)
        for (size_t i = 0; i < x->count; i++) {
            double row[3], in, want;
            memcpy(row, (const char *)w->data + r * sizeof row, sizeof row);
            memcpy(&in, (const char *)x->data + i * sizeof in, sizeof in);
            memcpy(&want, (const char *)y->data + (r * x->count + i) * sizeof want, sizeof want);
            voi_window v = {true, (voi_function)(int)row[0], row[1], row[2]};
            float got = window_value(&v, in);
            if (!(fabs(got - want) < 1e-6)) fail_msg("window %zu at %g: %g, not %g", r, in, (double)got, want);
        }
    safetensors_close(&s);
}

static void parse(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int mode; /* -1: refused */
        double center, width;
    } rows[] = {
        {"auto", WINDOW_AUTO, 0, 0},
        {"header", WINDOW_HEADER, 0, 0},
        {"percentile", WINDOW_PERCENTILE, 0, 0},
        {"ct3", WINDOW_CT3, 0, 0},
        {"40/400", WINDOW_FIXED, 40, 400},
        {"-600/1500,40/400,500/2000", WINDOW_FIXED, -600, 1500},
        {"0.5/0.25", WINDOW_FIXED, .5, .25},
        {"", -1, 0, 0},
        {"40", -1, 0, 0},
        {"40/", -1, 0, 0},
        {"/400", -1, 0, 0},
        {"40/0", -1, 0, 0},
        {"40/-1", -1, 0, 0},
        {"40/nan", -1, 0, 0},
        {"inf/400", -1, 0, 0},
        {"40/400,", -1, 0, 0},
        {"40/400,1/2", -1, 0, 0},
        {"1/2,1/2,1/2,1/2", -1, 0, 0},
        {"40/400x", -1, 0, 0},
        {"AUTO", -1, 0, 0},
        {"1/2,,1/2", -1, 0, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        window_choice c = {.mode = WINDOW_CT3};
        err e = {0};
        err_code rc = window_parse(rows[i].text, &c, &e);
        print_message("'%s'\n", rows[i].text);
        if (rows[i].mode < 0) {
            assert_int_equal(rc, ERR_USAGE);
            assert_int_equal(c.mode, WINDOW_CT3); /* outputs are written on success only */
            continue;
        }
        assert_int_equal(rc, ERR_OK);
        assert_int_equal(c.mode, rows[i].mode);
        assert_true(c.fixed[0].center == rows[i].center && c.fixed[0].width == rows[i].width);
    }
    window_choice c;
    assert_int_equal(window_parse("-600/1500,40/400,500/2000", &c, NULL), ERR_OK);
    assert_true(c.fixed[2].center == 500 && c.fixed[1].width == 400);
}

/* Black at low, white at high. */
static void covers(const voi_window *w, double low, double high)
{
    assert_float_equal(window_value(w, low), 0, 1e-6);
    assert_float_equal(window_value(w, high), 1, 1e-6);
    assert_float_equal(window_value(w, (low + high) / 2), 0.5, 1e-6);
}

static void choose(void **state)
{
    (void)state;
    voi_window w[3];
    window_choice automatic = {.mode = WINDOW_AUTO}, header = {.mode = WINDOW_HEADER},
                  range = {.mode = WINDOW_PERCENTILE};
    frame_info f = {.modality = "CT", .low = 10, .high = 20, .series_low = 5, .series_high = 25};
    window_choose(&automatic, &f, w);
    assert_true(w[0].center == -600 && w[1].center == 40 && w[2].width == 2000);
    strcpy(f.modality, "MR");
    f.window = (voi_window){true, VOI_LINEAR, 50, 100};
    window_choose(&automatic, &f, w);
    covers(&w[1], 5, 25);
    window_choose(&header, &f, w);
    assert_true(w[2].center == 50 && w[2].width == 100);
    f.series_low = f.series_high = 0; /* not known: one file looked at alone */
    window_choose(&automatic, &f, w);
    covers(&w[0], 10, 20);
    strcpy(f.modality, "CR");
    f.series_low = 5, f.series_high = 25;
    window_choose(&automatic, &f, w);
    assert_true(w[0].center == 50 && w[0].function == VOI_LINEAR);
    window_choose(&range, &f, w);
    covers(&w[0], 10, 20); /* a radiograph is not a slice of its series */
    f.window.present = false;
    window_choose(&header, &f, w);
    covers(&w[0], 10, 20);
    f.high = f.low; /* constant */
    window_choose(&automatic, &f, w);
    assert_true(window_value(&w[0], f.low) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(by_hand), cmocka_unit_test(as_pydicom), cmocka_unit_test(parse),
                                       cmocka_unit_test(choose)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
