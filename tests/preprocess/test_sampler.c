/* test_sampler.c: against PIL's bicubic resize of a box (tests/golden/make_sampler.py), and properties: a flip mirrors,
 * threads do not matter, nothing that is put in makes a NaN. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "io/safetensors.h"
#include "preprocess/intensity.h"
#include "preprocess/sampler.h"

enum { SIDE = 64 };

static safetensors golden;
static int16_t grey_pixels[37 * 53];
static uint8_t rgb_pixels[29 * 41 * 3];
static float out[3 * SIDE * SIDE], again[3 * SIDE * SIDE];
static frame_info grey = {.modality = "CT", .rows = 37, .columns = 53, .channels = 1, .type = PIXEL_I16, .slope = 1},
                  rgb = {.modality = "XC", .rows = 29, .columns = 41, .channels = 3, .type = PIXEL_U8, .slope = 1};

static const float *golden_f32(const char *name, size_t count)
{
    static float *kept;
    const tensor *t = safetensors_find(&golden, name);
    assert_true(t && t->count == count);
    free(kept);
    kept = malloc(count * sizeof *kept);
    assert_non_null(kept);
    assert_int_equal(tensor_to_f32(t, kept, NULL), ERR_OK);
    return kept;
}

static int setup(void **state)
{
    (void)state;
    if (safetensors_open(&golden, TESTS_DIR "/golden/sampler.safetensors", NULL)) return -1;
    memcpy(grey_pixels, safetensors_find(&golden, "grey")->data, sizeof grey_pixels);
    memcpy(rgb_pixels, safetensors_find(&golden, "rgb")->data, sizeof rgb_pixels);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    safetensors_close(&golden);
    return 0;
}

static sampler_norm norm_of(const char *window)
{
    sampler_norm n = {.std = {1, 1, 1}};
    assert_int_equal(window_parse(window, &n.window, NULL), ERR_OK);
    return n;
}

static void run(const sampler_norm *n, const frame_info *f, const void *pixels, crop_params c, int size, float *to)
{
    sample_job j = {.frame = f, .pixels = pixels, .crop = c, .size = size, .out = to};
    assert_int_equal(sampler_run(NULL, n, &j, 1), ERR_OK);
}

static crop_params crop_case(int i, int *size)
{
    float c[5];
    memcpy(c, (const char *)safetensors_find(&golden, "cases")->data + (size_t)i * sizeof c, sizeof c);
    *size = (int)c[4];
    return (crop_params){.x = c[0], .y = c[1], .width = c[2], .height = c[3]};
}

/* Largest difference of n numbers. */
static double difference(const float *a, const float *b, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - b[i]);
        if (!(d <= most)) most = d;
    }
    return most;
}

static void as_pil(void **state)
{
    (void)state;
    size_t cases = safetensors_find(&golden, "cases")->shape[0];
    /* channel 0: lung (golden "lung"), channel 1 and 2: soft tissue; and one window for all */
    sampler_norm three = norm_of("ct3"), one = norm_of("40/400");
    for (int i = 0; i < (int)cases; i++) {
        char name[32];
        int size;
        crop_params c = crop_case(i, &size);
        size_t pixels = (size_t)(size * size);
        run(&three, &grey, grey_pixels, c, size, out);
        snprintf(name, sizeof name, "lung.%d", i);
        double lung = difference(out, golden_f32(name, pixels), pixels);
        snprintf(name, sizeof name, "soft.%d", i);
        double soft = difference(out + pixels, golden_f32(name, pixels), pixels);
        run(&one, &grey, grey_pixels, c, size, out);
        double same = 0;
        for (size_t k = 0; k < 3; k++)
            same = fmax(same, difference(out + k * pixels, golden_f32(name, pixels), pixels));
        print_message("case %d: %g %g %g\n", i, lung, soft, same);
        assert_true(lung < 2e-5 && soft < 2e-5 && same < 2e-5);
    }
    run(&one, &rgb, rgb_pixels, (crop_params){.x = 2, .y = 1, .width = 36, .height = 24}, 20, out);
    assert_true(difference(out, golden_f32("rgb.out", 3 * 400), 3 * 400) < 2e-5);
    int size;
    crop_params c = crop_case(0, &size);
    c.blur_sigma = 1.25f;
    run(&three, &grey, grey_pixels, c, size, out);
    assert_true(difference(out, golden_f32("blur.1", 256), 256) < 2e-5);
}

/* The same picture, coded otherwise: unsigned with an offset, and with a slope. */
static void codings(void **state)
{
    (void)state;
    static uint16_t coded[37 * 53];
    sampler_norm n = norm_of("ct3");
    int size;
    crop_params c = crop_case(1, &size);
    run(&n, &grey, grey_pixels, c, size, out);
    for (size_t i = 0; i < 37 * 53; i++) coded[i] = (uint16_t)(2 * (grey_pixels[i] + 3000));
    frame_info f = grey;
    f.type = PIXEL_U16;
    f.slope = 0.5;
    f.intercept = -3000;
    run(&n, &f, coded, c, size, again);
    assert_true(difference(out, again, 3 * (size_t)(size * size)) < 2e-5);
    /* SIGMOID, and a window too narrow for floats: the general path */
    f = grey;
    f.window = (voi_window){true, VOI_SIGMOID, 40, 400};
    n = norm_of("header");
    crop_params whole = {.width = 53, .height = 37};
    f.rows = f.columns = 37;
    whole.width = 37;
    run(&n, &f, grey_pixels, whole, 37, out);
    for (size_t i = 0; i < 37 * 37; i++) assert_float_equal(out[i], window_value(&f.window, grey_pixels[i]), 1e-5);
    f.window = (voi_window){true, VOI_LINEAR_EXACT, 40, 1e-7};
    run(&n, &f, grey_pixels, whole, 37, out);
    for (size_t i = 0; i < 37 * 37; i++) assert_float_equal(out[i], grey_pixels[i] > 40, 1e-5);
}

static void flip_and_normalise(void **state)
{
    (void)state;
    sampler_norm n = norm_of("ct3");
    for (int i = 0; i < 4; i++) {
        int size;
        crop_params c = crop_case(i, &size);
        size_t s = (size_t)size;
        run(&n, &grey, grey_pixels, c, size, out);
        c.flip = true;
        run(&n, &grey, grey_pixels, c, size, again);
        for (size_t y = 0; y < 3 * s; y++)
            for (size_t x = 0; x < s; x++) assert_true(out[y * s + x] == again[y * s + s - 1 - x]);
        c.flip = false;
        sampler_norm scaled = n;
        for (int k = 0; k < 3; k++) {
            scaled.mean[k] = 0.25f * (float)(k + 1);
            scaled.std[k] = 0.5f / (float)(k + 1);
        }
        run(&scaled, &grey, grey_pixels, c, size, again);
        for (size_t k = 0; k < 3 * s * s; k++) {
            size_t ch = k / (s * s);
            assert_float_equal(again[k], (out[k] - 0.25f * (float)(ch + 1)) * 2 * (float)(ch + 1), 1e-5);
        }
    }
}

static void invert_and_padding(void **state)
{
    (void)state;
    sampler_norm n = norm_of("ct3");
    frame_info f = grey;
    f.invert = true;
    crop_params c = {.width = 53, .height = 37};
    c.width = c.height = 32;
    run(&n, &grey, grey_pixels, c, 32, out);
    run(&n, &f, grey_pixels, c, 32, again);
    for (size_t i = 0; i < 3 * 32 * 32; i++) assert_float_equal(again[i], 1 - out[i], 1e-5);
    /* padding is black, inverted or not; the crop is one to one */
    static int16_t padded[37 * 53];
    memcpy(padded, grey_pixels, sizeof padded);
    for (size_t i = 0; i < 37 * 53; i += 3) padded[i] = 3000;
    f.has_padding = true;
    f.padding_low = f.padding_high = 3000;
    for (int inverted = 0; inverted < 2; inverted++) {
        f.invert = inverted;
        run(&n, &f, padded, c, 32, again);
        for (size_t i = 0; i < 32 * 32; i++) {
            size_t at = i / 32 * 53 + i % 32;
            float want = at % 3 == 0 ? 0 : inverted ? 1 - out[i] : out[i];
            assert_float_equal(again[i], want, 1e-5);
        }
    }
    /* wholly outside: the minimum */
    run(&n, &grey, grey_pixels, (crop_params){.x = 100, .y = 5, .width = 20, .height = 20}, 16, out);
    for (size_t i = 0; i < 3 * 256; i++) assert_true(out[i] == 0);
}

static void intensity(void **state)
{
    (void)state;
    float scratch[4096], x[3 * 4] = {0, .25f, .5f, 1, 0, .25f, .5f, 1, 1, .75f, .5f, 0};
    assert_true(intensity_scratch(2) <= 4096);
    float grey_plane[4] = {0, .25f, .5f, 1};
    intensity_apply(&(crop_params){.contrast = 1, .brightness = -.5f}, grey_plane, 1, 2, false, scratch);
    /* mean .4375: (x - m) * 2 + m, then half of it, clipped */
    const float want[4] = {0, .03125f, .28125f, .78125f};
    for (int i = 0; i < 4; i++) assert_float_equal(grey_plane[i], want[i], 1e-6);
    float g[4] = {0, .25f, .5f, 1};
    intensity_apply(&(crop_params){.gamma = 1}, g, 1, 2, false, scratch);
    for (int i = 0; i < 4; i++) assert_float_equal(g[i], ((float[]){0, .0625f, .25f, 1}[i]), 1e-6);
    float s[4] = {0, .25f, .5f, 1};
    intensity_apply(&(crop_params){.solarize = .5f}, s, 1, 2, false, scratch);
    for (int i = 0; i < 4; i++) assert_float_equal(s[i], ((float[]){0, .25f, .5f, 0}[i]), 1e-6);
    /* colour: hue by a third of a turn moves red to green; a full turn back; grey makes the planes equal */
    float red[3 * 1] = {.8f, .2f, .1f};
    intensity_apply(&(crop_params){.hue = 1 / 3.0f}, red, 3, 1, true, scratch);
    for (int i = 0; i < 3; i++) assert_float_equal(red[i], ((float[]){.1f, .8f, .2f}[i]), 1e-5);
    float same[12];
    memcpy(same, x, sizeof x);
    intensity_apply(&(crop_params){.hue = 1, .saturation = 1e-9f}, same, 3, 2, true, scratch);
    for (int i = 0; i < 12; i++) assert_float_equal(same[i], x[i], 1e-5);
    memcpy(same, x, sizeof x);
    intensity_apply(&(crop_params){.saturation = -1}, same, 3, 2, true, scratch);
    intensity_apply(&(crop_params){.gray = true}, x, 3, 2, true, scratch);
    for (int i = 0; i < 12; i++) {
        assert_float_equal(x[i], x[i % 4], 1e-6);
        assert_float_equal(x[i], same[i], 1e-5);
    }
    /* a blur keeps a constant and the mean of something in the middle */
    static float big[SIDE * SIDE], room[SIDE * SIDE + SIDE + 200];
    assert_true(intensity_scratch(SIDE) <= sizeof room / sizeof *room);
    memset(big, 0, sizeof big);
    big[32 * SIDE + 32] = 1;
    intensity_apply(&(crop_params){.blur_sigma = 2}, big, 1, SIDE, false, room);
    double sum = 0;
    for (size_t i = 0; i < SIDE * SIDE; i++) sum += big[i];
    assert_true(fabs(sum - 1) < 1e-4 && fabs(big[32 * SIDE + 32] - 1 / (2 * 3.14159265 * 4)) < 1e-3);
}

/* Every field wild: no NaN, no infinity, in [0,1] before normalising. */
static void hostile(void **state)
{
    (void)state;
    static const float wild[] = {0, 1, -1, 1e-30f, -1e-30f, 1e30f, -1e30f, INFINITY, -INFINITY, NAN, 53, 0.5f, 1e9f};
    enum { N = sizeof wild / sizeof *wild };
    rng r = rng_at(7, RNG_TEST, 0, 0);
    for (int i = 0; i < 3000; i++) {
        float v[14];
        for (int k = 0; k < 14; k++)
            v[k] = i % 2 && rng_below(&r, 3) ? rng_between(&r, -60, 60) : wild[rng_below(&r, N)];
        crop_params c = {v[0], v[1], v[2], v[3],       i % 3 == 0, v[4],  v[5], v[6],
                         v[7], v[8], v[9], i % 5 == 0, v[10],      v[11], v[12]};
        frame_info f = i % 4 == 0 ? rgb : grey;
        if (i % 4 == 1) {
            f.has_padding = true;
            f.padding_low = v[13];
            f.padding_high = wild[rng_below(&r, N)];
            f.window = (voi_window){true, (voi_function)(i % 3), v[13], wild[rng_below(&r, N)]};
            f.slope = wild[rng_below(&r, N)];
            f.intercept = wild[rng_below(&r, N)];
            f.low = v[12];
            f.high = v[11];
        }
        sampler_norm n = norm_of(i % 4 == 1 ? "header" : "ct3");
        int size = 1 + (int)rng_below(&r, 24);
        run(&n, &f, f.channels == 3 ? (const void *)rgb_pixels : grey_pixels, c, size, out);
        for (int k = 0; k < 3 * size * size; k++)
            if (!(out[k] >= 0 && out[k] <= 1)) fail_msg("draw %d: value %g", i, (double)out[k]);
        n.std[0] = 0, n.std[1] = NAN, n.mean[2] = INFINITY;
        run(&n, &f, f.channels == 3 ? (const void *)rgb_pixels : grey_pixels, c, size, out);
        for (int k = 0; k < 3 * size * size; k++) assert_true(isfinite(out[k]));
    }
}

static void whole(void **state)
{
    (void)state;
    frame_info f = {.rows = 100, .columns = 200};
    crop_params a = sampler_whole(&f, true, 1), b = sampler_whole(&f, false, 0.5f), c = sampler_whole(&f, true, 0.875f);
    assert_true(a.x == 0 && a.y == -50 && a.width == 200 && a.height == 200);
    assert_true(b.x == 50 && b.y == 25 && b.width == 100 && b.height == 50);
    assert_true(c.width == 175 && c.height == 175 && c.x == 12.5f && c.y == -37.5f);
    /* one pixel wide and very tall, shown whole */
    static int16_t line[5000];
    for (int i = 0; i < 5000; i++) line[i] = (int16_t)(i % 100);
    f = (frame_info){.modality = "CR",
                     .rows = 5000,
                     .columns = 1,
                     .channels = 1,
                     .type = PIXEL_I16,
                     .slope = 1,
                     .low = 0,
                     .high = 99};
    sampler_norm n = norm_of("percentile");
    run(&n, &f, line, sampler_whole(&f, true, 1), 32, out);
    run(&n, &f, line, sampler_whole(&f, false, 1), 32, again);
    double sum = 0;
    for (size_t i = 0; i < 1024; i++) sum += again[i];
    assert_true(fabs(sum / 1024 - 0.5) < 0.01);
}

static void threads(void **state)
{
    (void)state;
    enum { JOBS = 37, S = 20 };
    float *a = calloc(JOBS * 3 * S * S, sizeof *a), *b = calloc(JOBS * 3 * S * S, sizeof *b);
    sample_job j[JOBS];
    sampler_norm n = norm_of("ct3");
    rng r = rng_at(1, RNG_TEST, 1, 1);
    for (int i = 0; i < JOBS; i++)
        j[i] = (sample_job){.frame = i % 2 ? &grey : &rgb,
                            .pixels = i % 2 ? (const void *)grey_pixels : rgb_pixels,
                            .crop = {.x = rng_between(&r, -5, 20),
                                     .y = 3,
                                     .width = rng_between(&r, 1, 60),
                                     .height = 20,
                                     .blur_sigma = i % 3 ? 0 : 1},
                            .size = S,
                            .out = a + i * 3 * S * S};
    assert_int_equal(sampler_run(NULL, &n, j, JOBS), ERR_OK);
    for (int i = 0; i < JOBS; i++) j[i].out = b + i * 3 * S * S;
    pool *p = pool_new(3);
    assert_non_null(p);
    assert_int_equal(sampler_run(p, &n, j, JOBS), ERR_OK);
    pool_free(p);
    assert_memory_equal(a, b, JOBS * 3 * S * S * sizeof *a);
    free(a);
    free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(as_pil),
                                       cmocka_unit_test(codings),
                                       cmocka_unit_test(flip_and_normalise),
                                       cmocka_unit_test(invert_and_padding),
                                       cmocka_unit_test(intensity),
                                       cmocka_unit_test(hostile),
                                       cmocka_unit_test(whole),
                                       cmocka_unit_test(threads)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
