/* test_augment.c: what is drawn stays within its options, repeats itself, and spares grey frames what is for colour. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "preprocess/augment.h"

enum { DRAWS = 20000 };

static const frame_info shapes[] = {
    {.modality = "CT", .rows = 512, .columns = 512, .channels = 1},
    {.modality = "CR", .rows = 512, .columns = 640, .channels = 1},
    {.modality = "XC", .rows = 300, .columns = 500, .channels = 3},
    {.modality = "MR", .rows = 2000, .columns = 3, .channels = 1},
    {.modality = "CR", .rows = 1, .columns = 1, .channels = 1},
};

static void within(void **state)
{
    (void)state;
    augment_options o;
    augment_defaults(&o);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int role = CROP_GLOBAL1; role <= CROP_LOCAL; role++) {
            const frame_info *f = &shapes[s];
            const float *scale = role == CROP_LOCAL ? o.local_scale : o.global_scale;
            int blurred = 0, flipped = 0, fallback = 0, moved = 0;
            for (uint32_t i = 0; i < 2000; i++) {
                rng r = rng_at(1, RNG_AUGMENT, i, (uint32_t)role);
                crop_params c = augment_ssl(&o, f, (crop_role)role, &r);
                assert_true(c.x >= 0 && c.y >= 0 && c.width > 0 && c.height > 0);
                assert_true(c.x + c.width <= (float)f->columns * 1.0001f && c.y + c.height <= (float)f->rows * 1.0001f);
                float area = c.width * c.height / (float)(f->rows * f->columns), aspect = c.width / c.height;
                assert_true(aspect > 0.7499f && aspect < 1.3334f);
                if (area < scale[0] * 0.999f || area > scale[1] * 1.001f) fallback++;
                assert_true(fabsf(c.brightness) <= o.brightness && fabsf(c.contrast) <= o.contrast);
                assert_true(c.blur_sigma == 0 || (c.blur_sigma >= 0.1f && c.blur_sigma <= 2));
                if (f->channels == 1) assert_true(c.hue == 0 && c.saturation == 0 && !c.gray && c.solarize == 0);
                assert_true(role == CROP_GLOBAL2 || c.solarize == 0);
                moved += c.window_shift != 0;
                assert_true(fabsf(c.window_shift) <= o.window && fabsf(c.window_scale) <= o.window);
                blurred += c.blur_sigma > 0;
                flipped += c.flip;
            }
            print_message("shape %zu role %d: blur %d flip %d fallback %d\n", s, role, blurred, flipped, fallback);
            assert_true(fabs(blurred / 2000.0 - o.blur[role]) < 0.04 && fabs(flipped / 2000.0 - 0.5) < 0.04);
            assert_int_equal(moved > 0, s == 0 || s == 3);
            assert_true(s == 3 || fallback == 0 || (s != 0 && s != 2));
        }
}

static void repeats(void **state)
{
    (void)state;
    augment_options o;
    augment_essa(&o);
    rng a = rng_at(5, RNG_AUGMENT, 9, 2), b = rng_at(5, RNG_AUGMENT, 9, 2), other = rng_at(5, RNG_AUGMENT, 9, 3);
    crop_params x = augment_ssl(&o, &shapes[2], CROP_GLOBAL2, &a), y = augment_ssl(&o, &shapes[2], CROP_GLOBAL2, &b),
                z = augment_ssl(&o, &shapes[2], CROP_GLOBAL2, &other);
    assert_true(x.x == y.x && x.width == y.width && x.hue == y.hue && x.blur_sigma == y.blur_sigma && x.flip == y.flip);
    assert_true(x.x != z.x && x.width != z.width);
}

/* The share of the area is uniform and the aspect log-uniform, where every draw fits. */
static void distribution(void **state)
{
    (void)state;
    augment_options o;
    augment_essa(&o);
    double area = 0, aspect = 0, gray = 0, solarized = 0, grey_solarized = 0;
    for (uint32_t i = 0; i < DRAWS; i++) {
        rng r = rng_at(2, RNG_AUGMENT, i, 0);
        crop_params c = augment_ssl(&o, &shapes[2], CROP_LOCAL, &r);
        area += c.width * c.height / (300.0 * 500.0);
        aspect += log(c.width / c.height);
        crop_params g = augment_ssl(&o, &shapes[2], CROP_GLOBAL2, &r);
        gray += g.gray;
        solarized += g.solarize > 0;
        grey_solarized += augment_ssl(&o, &shapes[0], CROP_GLOBAL2, &r).solarize > 0;
    }
    assert_true(fabs(area / DRAWS - 0.185) < 0.003 && fabs(aspect / DRAWS) < 0.005);
    assert_true(fabs(gray / DRAWS - 0.2) < 0.015 && fabs(solarized / DRAWS - 0.2) < 0.015);
    assert_true(fabs(grey_solarized / DRAWS - 0.2) < 0.015);
}

static void supervised(void **state)
{
    (void)state;
    const float scale[2] = {0.8f, 1.2f};
    int larger = 0;
    for (uint32_t i = 0; i < 5000; i++) {
        const frame_info *f = &shapes[i % 3];
        rng r = rng_at(2, RNG_AUGMENT, i, 0);
        crop_params c = augment_supervised(f, scale, 0.5f, 0.1f, &r);
        float w = (float)f->columns, h = (float)f->rows, area = c.width * c.height / (w * h);
        assert_true(area > 0.799f && area < 1.201f && fabsf(c.brightness) <= 0.1f && fabsf(c.contrast) <= 0.1f);
        /* inside the frame, or around it */
        assert_true(c.width <= w ? c.x >= -1e-3f && c.x + c.width <= w + 1e-3f
                                 : c.x <= 1e-3f && c.x + c.width >= w - 1e-3f);
        assert_true(c.height <= h ? c.y >= -1e-3f && c.y + c.height <= h + 1e-3f
                                  : c.y <= 1e-3f && c.y + c.height >= h - 1e-3f);
        larger += area > 1;
        assert_true(c.hue == 0 && c.solarize == 0 && c.blur_sigma == 0 && !c.gray);
    }
    assert_true(larger > 2000 && larger < 3000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(within), cmocka_unit_test(repeats),
                                       cmocka_unit_test(distribution), cmocka_unit_test(supervised)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
