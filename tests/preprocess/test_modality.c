/* test_modality.c: coding, padding, reduction and statistics, against a plain double-precision computation of each. */
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
#include "preprocess/modality.h"

static raw_frame raw_of(int rows, int columns, pixel_type type, const void *pixels)
{
    return (raw_frame){
        .rows = rows, .columns = columns, .samples = type == PIXEL_U8 ? 1 : 1, .type = type, .pixels = pixels};
}

static image_header header_of(const char *modality)
{
    image_header h = {.format = IMAGE_DICOM, .photometric = PHOTOMETRIC_MONOCHROME2, .samples = 1};
    snprintf(h.modality, sizeof h.modality, "%s", modality);
    return h;
}

/* Value of stored pixel i in modality units. */
static double value(const modality_frame *m, size_t i)
{
    double code = m->info.type == PIXEL_I16 ? ((int16_t *)m->pixels)[i] : ((uint16_t *)m->pixels)[i];
    return m->info.slope * code + m->info.intercept;
}

static bool is_padding(const modality_frame *m, size_t i)
{
    double v = value(m, i);
    return m->info.has_padding && v >= m->info.padding_low && v <= m->info.padding_high;
}

static modality_frame apply(const image_header *h, raw_frame raw, int store_size)
{
    modality_frame m;
    err e = {0};
    err_code rc = modality_apply(h, &raw, 1, store_size, &m, &e);
    if (rc) fail_msg("%s", e.msg);
    return m;
}

/* Two stored values through every kind of rescale: type, slope and the values that come out. */
static void codings(void **state)
{
    (void)state;
    static const struct {
        pixel_type in;
        double low, high, slope, intercept;
        pixel_type type;
        bool exact; /* slope 1, intercept 0 */
    } rows[] = {
        {PIXEL_U16, 0, 4095, 1, -1024, PIXEL_I16, true},
        {PIXEL_U16, 0, 65535, 1, 0, PIXEL_U16, true},
        {PIXEL_U16, 0, 65535, 1, -1024, PIXEL_U16, false}, /* integral, but neither type holds it */
        {PIXEL_I16, -32768, 32767, 1, 0, PIXEL_I16, true},
        {PIXEL_I16, -5, 32767, 1, 1, PIXEL_U16, false},
        {PIXEL_U8, 0, 255, 1, 0, PIXEL_I16, true},
        {PIXEL_I16, 0, 1000, -1, 0, PIXEL_I16, true},
        {PIXEL_U16, 0, 30000, 0.00123, 7, PIXEL_U16, false},
        {PIXEL_U16, 10, 1000, 2, 1, PIXEL_I16, true},
        {PIXEL_I32, -1000000, 1000000, 1, 0, PIXEL_U16, false},
        {PIXEL_I32, 0, 100001, 1e-3, 0, PIXEL_U16, false},
        {PIXEL_F32, -1.5, 1e-6, 1, 0, PIXEL_U16, false},
        {PIXEL_F32, -3, 400, 1, 0, PIXEL_I16, true},
        {PIXEL_F32, 0, 3e38, 1, 0, PIXEL_U16, false},
        {PIXEL_U16, 5, 60000, 1e9, -1e9, PIXEL_U16, false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        double stored[4] = {rows[i].low, rows[i].high, rows[i].low, rows[i].high};
        union {
            uint8_t u8[4];
            int16_t i16[4];
            uint16_t u16[4];
            int32_t i32[4];
            float f32[4];
        } p;
        for (int k = 0; k < 4; k++) switch (rows[i].in) {
            case PIXEL_U8:
                p.u8[k] = (uint8_t)stored[k];
                break;
            case PIXEL_I16:
                p.i16[k] = (int16_t)stored[k];
                break;
            case PIXEL_U16:
                p.u16[k] = (uint16_t)stored[k];
                break;
            case PIXEL_I32:
                p.i32[k] = (int32_t)stored[k];
                break;
            case PIXEL_F32:
                p.f32[k] = (float)stored[k];
                break;
            }
        image_header h = header_of("CT");
        h.has_rescale = true;
        h.rescale_slope = rows[i].slope;
        h.rescale_intercept = rows[i].intercept;
        modality_frame m = apply(&h, raw_of(2, 2, rows[i].in, &p), 0);
        print_message("row %zu: type %d slope %g intercept %g\n", i, m.info.type, m.info.slope, m.info.intercept);
        assert_int_equal(m.info.type, rows[i].type);
        assert_int_equal(m.info.slope == 1 && m.info.intercept == 0, rows[i].exact);
        double range = fabs(rows[i].slope * (rows[i].high - rows[i].low));
        for (size_t k = 0; k < 4; k++) {
            double want = rows[i].slope * stored[k] + rows[i].intercept;
            assert_true(fabs(value(&m, k) - want) <= (rows[i].exact ? 0 : range / 60000));
        }
        assert_true(!m.info.has_padding && m.bytes == 8 && m.info.channels == 1 && !(m.info.quirks & QUIRK_CONSTANT));
        modality_frame_fini(&m);
    }
}

static void lookup(void **state)
{
    (void)state;
    uint16_t table[4] = {100, 200, 50, 65535};
    int16_t stored[6] = {-3, -2, -1, 0, 1, 30};
    image_header h = header_of("CR");
    h.modality_lut = (lookup_table){true, -2, 4, 16, table};
    h.has_rescale = true; /* the table wins */
    h.rescale_slope = 5;
    modality_frame m = apply(&h, raw_of(2, 3, PIXEL_I16, stored), 0);
    static const double want[6] = {100, 100, 200, 50, 65535, 65535};
    for (size_t i = 0; i < 6; i++) assert_true(value(&m, i) == want[i]);
    assert_int_equal(m.info.type, PIXEL_U16);
    modality_frame_fini(&m);
    /* padding that the table would map onto a pixel's value is kept apart */
    table[3] = 60;
    h.has_padding = true;
    h.padding_low = h.padding_high = -3;
    m = apply(&h, raw_of(2, 3, PIXEL_I16, stored), 0);
    assert_true(is_padding(&m, 0) && !is_padding(&m, 1) && value(&m, 1) == 100);
    for (size_t i = 1; i < 6; i++) assert_false(is_padding(&m, i));
    modality_frame_fini(&m);
    /* VOI LUT without a window: where it rises */
    uint16_t voi[8] = {0, 0, 0, 50, 100, 200, 255, 255};
    h.voi_lut = (lookup_table){true, 1000, 8, 8, voi};
    m = apply(&h, raw_of(2, 3, PIXEL_I16, stored), 0);
    assert_true(m.info.window.present && m.info.window.center == 1004 && m.info.window.width == 4);
    modality_frame_fini(&m);
    h.window = (voi_window){true, VOI_SIGMOID, 1, 2};
    m = apply(&h, raw_of(2, 3, PIXEL_I16, stored), 0);
    assert_true(m.info.window.function == VOI_SIGMOID && m.info.window.width == 2);
    modality_frame_fini(&m);
}

static void padding(void **state)
{
    (void)state;
    static const struct {
        double slope, intercept;
        int low, high; /* padding, stored */
        bool natural;  /* kept as its own modality value */
    } rows[] = {
        {1, -1024, -2000, -2000, true},   {1, -1024, -2000, -1500, true},
        {1, 0, 32767, 32767, true},       {1, 0, 3, 3, false},
        {-1, 0, -2000, -2000, true},      {1.5, 0.25, -2000, -2000, false},
        {1, 30000, -30000, -30000, true},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int16_t stored[64];
        for (int k = 0; k < 64; k++)
            stored[k] = (int16_t)(k % 8 < 3 ? rows[i].low : k % 8 == 3 ? rows[i].high : 2 * k - 40);
        for (int k = 0; k < 64; k++)
            if (k % 8 > 3 && stored[k] == 3) stored[k] = 4;
        image_header h = header_of("CT");
        h.has_rescale = h.has_padding = true;
        h.rescale_slope = rows[i].slope;
        h.rescale_intercept = rows[i].intercept;
        h.padding_low = rows[i].low;
        h.padding_high = rows[i].high;
        for (int store = 0; store <= 4; store += 4) {
            modality_frame m = apply(&h, raw_of(8, 8, PIXEL_I16, stored), store);
            print_message("row %zu store %d: padding %g..%g\n", i, store, m.info.padding_low, m.info.padding_high);
            assert_true(m.info.has_padding);
            double natural = rows[i].slope * rows[i].low + rows[i].intercept;
            if (rows[i].natural) assert_true(natural >= m.info.padding_low && natural <= m.info.padding_high);
            int side = store ? 4 : 8;
            for (int y = 0; y < side; y++)
                for (int x = 0; x < side; x++) {
                    size_t at = (size_t)(y * side + x);
                    assert_int_equal(is_padding(&m, at), store ? x < 2 : x < 4);
                    if (is_padding(&m, at)) continue;
                    double sum = 0;
                    for (int k = 0; store && k < 4; k++) sum += stored[(2 * y + k / 2) * 8 + 2 * x + k % 2] / 4.0;
                    if (!store) sum = stored[y * 8 + x];
                    assert_true(fabs(value(&m, at) - (rows[i].slope * sum + rows[i].intercept)) < 0.51);
                }
            double least = fmin(rows[i].slope * -40, rows[i].slope * 90) + rows[i].intercept;
            double most = fmax(rows[i].slope * -40, rows[i].slope * 90) + rows[i].intercept;
            assert_true(m.info.low >= least && m.info.high <= most && m.info.low < m.info.high);
            modality_frame_fini(&m);
        }
    }
    /* a quarter of a target pixel is padding: the rest is averaged; three quarters: it is padding */
    int16_t corner[2 * 4] = {-2000, 10, -2000, -2000, 20, 30, 50, -2000};
    image_header c = header_of("CT");
    c.has_padding = true;
    c.padding_low = c.padding_high = -2000;
    modality_frame q = apply(&c, raw_of(2, 4, PIXEL_I16, corner), 1);
    assert_true(q.info.columns == 2 && value(&q, 0) == 20 && !is_padding(&q, 0) && is_padding(&q, 1));
    modality_frame_fini(&q);
    /* nothing but padding */
    int16_t all[4] = {-2000, -2000, -2000, -2000};
    image_header h = header_of("CT");
    h.has_padding = true;
    h.padding_low = h.padding_high = -2000;
    modality_frame m = apply(&h, raw_of(2, 2, PIXEL_I16, all), 0);
    for (size_t i = 0; i < 4; i++) assert_true(is_padding(&m, i));
    assert_true(m.info.quirks & QUIRK_CONSTANT && m.info.low == m.info.high);
    modality_frame_fini(&m);
}

/* Averages of areas that do not fall on pixel borders, against a sum over 12 x 12 subpixels. */
static void reduction(void **state)
{
    (void)state;
    enum { R = 9, C = 15, TO_R = 6, TO_C = 10 };
    uint16_t stored[R * C];
    uint8_t colour[R * C * 3];
    rng r = rng_at(3, RNG_TEST, 0, 0);
    for (int i = 0; i < R * C; i++) stored[i] = (uint16_t)rng_below(&r, 4000);
    for (int i = 0; i < R * C * 3; i++) colour[i] = (uint8_t)rng_below(&r, 256);
    image_header h = header_of("DX");
    h.has_spacing = true;
    h.spacing_mm[0] = 0.2;
    h.spacing_mm[1] = 0.4;
    modality_frame g = apply(&h, raw_of(R, C, PIXEL_U16, stored), TO_R);
    raw_frame rgb = {.rows = R, .columns = C, .samples = 3, .type = PIXEL_U8, .pixels = colour};
    h.photometric = PHOTOMETRIC_RGB;
    h.has_rescale = true;
    h.rescale_slope = 2;
    modality_frame m = apply(&h, rgb, TO_R);
    assert_true(g.info.rows == TO_R && g.info.columns == TO_C && m.info.rows == TO_R && m.info.columns == TO_C);
    assert_true(fabs(g.info.spacing_mm[0] - 0.3) < 1e-12 && fabs(g.info.spacing_mm[1] - 0.6) < 1e-12);
    assert_true(m.info.channels == 3 && m.info.type == PIXEL_U8 && m.bytes == 3 * TO_R * TO_C);
    assert_true(m.info.quirks & QUIRK_COLOR_RESCALE);
    for (int y = 0; y < TO_R; y++)
        for (int x = 0; x < TO_C; x++) {
            double sum[4] = {0};
            for (int v = 0; v < 12; v++)
                for (int u = 0; u < 12; u++) {
                    int sy = (int)((y + (v + 0.5) / 12) * R / TO_R), sx = (int)((x + (u + 0.5) / 12) * C / TO_C);
                    sum[3] += stored[sy * C + sx] / 144.0;
                    for (int c = 0; c < 3; c++) sum[c] += colour[3 * (sy * C + sx) + c] / 144.0;
                }
            size_t at = (size_t)(y * TO_C + x);
            assert_true(fabs(value(&g, at) - sum[3]) < 0.501);
            for (size_t c = 0; c < 3; c++) assert_true(fabs(((uint8_t *)m.pixels)[3 * at + c] - sum[c]) < 0.501);
        }
    modality_frame_fini(&g);
    modality_frame_fini(&m);
    /* the shorter side decides; smaller frames stay */
    static uint16_t tall[3000 * 2];
    g = apply(&h, raw_of(3000, 2, PIXEL_U16, tall), 512);
    assert_true(g.info.rows == 3000 && g.info.columns == 2);
    modality_frame_fini(&g);
    g = apply(&h, raw_of(3000, 2, PIXEL_U16, tall), 1);
    assert_true(g.info.rows == 1500 && g.info.columns == 1);
    modality_frame_fini(&g);
}

static void statistics(void **state)
{
    (void)state;
    static int16_t stored[100 * 100];
    for (int i = 0; i < 10000; i++) stored[i] = (int16_t)(i % 4 == 0 ? 0 : 1 + i % 1000);
    image_header h = header_of("CR");
    modality_frame m = apply(&h, raw_of(100, 100, PIXEL_I16, stored), 0);
    assert_true(m.info.low == 0); /* a quarter is zero */
    modality_frame_fini(&m);
    h = header_of(
        "MR"); /* background left out: 7500 values 2..1000 without multiples of 4 plus 1; 0.5 % of 750 is 3.745 */
    m = apply(&h, raw_of(100, 100, PIXEL_I16, stored), 0);
    assert_true(m.info.low >= 6 && m.info.low <= 8 && m.info.high >= 994 && m.info.high <= 997);
    modality_frame_fini(&m);
    for (int i = 0; i < 10000; i++) stored[i] = (int16_t)i;
    h = header_of("CR");
    m = apply(&h, raw_of(100, 100, PIXEL_I16, stored), 0);
    assert_float_equal(m.info.low, 49.995, 1e-6); /* numpy.percentile(arange(10000), [0.5, 99.5]) */
    assert_float_equal(m.info.high, 9949.005, 1e-2);
    modality_frame_fini(&m);
    for (int i = 0; i < 10000; i++) stored[i] = -7;
    m = apply(&h, raw_of(100, 100, PIXEL_I16, stored), 10);
    assert_true(m.info.low == -7 && m.info.high == -7 && m.info.quirks & QUIRK_CONSTANT);
    modality_frame_fini(&m);
}

static void not_finite(void **state)
{
    (void)state;
    float stored[6] = {NAN, INFINITY, -INFINITY, -2.5f, 4, 1e6f};
    image_header h = header_of("NIFTI");
    h.format = IMAGE_NIFTI;
    modality_frame m = apply(&h, raw_of(2, 3, PIXEL_F32, stored), 0);
    assert_true(m.info.quirks & QUIRK_NOT_FINITE && !m.info.has_padding);
    for (size_t i = 0; i < 4; i++) assert_true(fabs(value(&m, i) + 2.5) < 10);
    assert_true(fabs(value(&m, 5) - 1e6) < 10 && isfinite(m.info.low) && isfinite(m.info.high));
    modality_frame_fini(&m);
    for (int i = 0; i < 6; i++) stored[i] = i % 2 ? NAN : -INFINITY;
    m = apply(&h, raw_of(2, 3, PIXEL_F32, stored), 1);
    assert_true(m.info.low == 0 && m.info.high == 0 && m.info.quirks & QUIRK_CONSTANT);
    modality_frame_fini(&m);
    h = header_of("PT"); /* a rescale that leaves the range of float */
    uint16_t u[2] = {1, 2};
    h.has_rescale = true;
    h.rescale_slope = 1e300;
    m = apply(&h, raw_of(1, 2, PIXEL_U16, u), 0);
    assert_true(isfinite(m.info.low) && m.info.quirks & QUIRK_NOT_FINITE);
    modality_frame_fini(&m);
}

static void order_along_normal(void **state)
{
    (void)state;
    image_header h = header_of("CT");
    uint16_t p = 0;
    h.instance_number = 12;
    raw_frame raw = raw_of(1, 1, PIXEL_U16, &p);
    modality_frame m = apply(&h, raw, 0);
    assert_true(m.info.sort_mm == 12);
    modality_frame_fini(&m);
    h.has_position = h.has_orientation = true;
    memcpy(h.orientation, (double[6]){0, 1, 0, 0, 0, -1}, sizeof h.orientation); /* sagittal: normal -x */
    memcpy(h.position_mm, (double[3]){30, 5, 6}, sizeof h.position_mm);
    m = apply(&h, raw, 0);
    assert_true(m.info.sort_mm == -30);
    modality_frame_fini(&m);
    h.format = IMAGE_NIFTI;
    h.slice_spacing_mm = 2.5;
    err e = {0};
    assert_int_equal(modality_apply(&h, &raw, 3, 0, &m, &e), ERR_OK);
    assert_true(m.info.sort_mm == -25 && m.info.frame == 3);
    modality_frame_fini(&m);
    h.photometric = PHOTOMETRIC_MONOCHROME1;
    m = apply(&h, raw, 0);
    assert_true(m.info.invert && !strcmp(m.info.modality, "CT"));
    modality_frame_fini(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(codings),           cmocka_unit_test(lookup),
                                       cmocka_unit_test(padding),           cmocka_unit_test(reduction),
                                       cmocka_unit_test(statistics),        cmocka_unit_test(not_finite),
                                       cmocka_unit_test(order_along_normal)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
