/* Crops on the GPU against the CPU's, through the op table: every pixel type and window, frames of odd sizes, crops
 * that reach outside, shrink and enlarge, each intensity change alone and all of them, groups and bands. */
#include "preprocess/sampler.h"
#include "tests/cuda_host/twin.h"

enum { JOBS_MOST = 160 };
#define MOST 2e-5       /* largest difference of values in [0,1] */
#define NMSE_MOST 1e-11 /* of all of them */

static uint8_t pixels[1 << 22];

static void noise(void)
{
    rng r = rng_at(7, 0, 0, 0);
    for (size_t i = 0; i < sizeof pixels / 4; i++) { /* 16-bit codes below 4096, smooth enough to have grey in them */
        uint16_t v = (uint16_t)(1500 + rng_below(&r, 2000) + (i / 7) % 500);
        memcpy(pixels + 2 * i, &v, 2);
    }
}

static frame_info frame_of(int rows, int columns, pixel_type type)
{
    frame_info f = {.rows = rows,
                    .columns = columns,
                    .type = type,
                    .channels = type == PIXEL_U8 ? 3 : 1,
                    .slope = 1,
                    .intercept = type == PIXEL_U16 ? -1024 : 0,
                    .window = {true, VOI_LINEAR, 2000, 3000}};
    if (type == PIXEL_U16) f.window.center = 1000;
    return f;
}

static sample_job job_of(const frame_info *f, const void *from, crop_params c, int size)
{
    return (sample_job){.frame = f, .pixels = from, .crop = c, .size = size};
}

static sampler_norm plain(const char *window)
{
    sampler_norm n = {.std = {1, 1, 1}};
    assert_int_equal(window_parse(window, &n.window, NULL), ERR_OK);
    return n;
}

static twin both;

/* n jobs of a size on both sides. */
static void compare(const char *name, const sampler_norm *norm, const sample_job *jobs, size_t n)
{
    size_t size = (size_t)jobs[0].size, all = n * 3 * size * size;
    tensor out = tensor_f32(&both, all, 1, 100);
    double largest = 0, apart = 0, square = 1e-30;
    BOTH(both, i) both.d[i].op->sample(&both.d[i], out.p[i], norm, jobs, n);
    float *a = tensor_values(&both, &out, CPU), *b = tensor_values(&both, &out, CUDA);
    for (size_t i = 0; i < all; i++) {
        double off = fabs((double)a[i] - b[i]);
        if (!(off <= MOST)) fail_msg("%s: value %zu of job %zu is %g and %g", name, i, i / (all / n), a[i], b[i]);
        largest = fmax(largest, off);
        apart += off * off;
        square += (double)a[i] * a[i];
    }
    printf("    %-28s %3zu jobs of %2zu pixels, NMSE %.2e (at most %.0e), largest difference %.2e (at most %.0e)\n",
           name, n, size, apart / square, NMSE_MOST, largest, MOST);
    if (!(apart / square <= NMSE_MOST)) fail_msg("%s: NMSE %g, at most %g", name, apart / square, NMSE_MOST);
    free(a);
    free(b);
}

/* Several crops of a frame: whole, inside, reaching outside each side, all outside, a part of a pixel, four times too
 * large, and none that can be meant. */
static void crops(void **state)
{
    (void)state;
    static const int sides[][2] = {{1, 1}, {1, 9}, {37, 53}, {128, 65}};
    static const int sizes[] = {14, 33, 98};
    static const pixel_type types[] = {PIXEL_I16, PIXEL_U16, PIXEL_U8};
    sampler_norm norm = plain("header");
    for (size_t s = 0; s < sizeof sides / sizeof *sides; s++)
        for (size_t k = 0; k < 3; k++) {
            frame_info f = frame_of(sides[s][0], sides[s][1], types[k]);
            float h = (float)f.rows, w = (float)f.columns;
            const crop_params c[] = {{.width = w, .height = h},
                                     {.x = w / 5, .y = h / 3, .width = w / 2, .height = h / 3, .flip = true},
                                     {.x = -w, .y = h / 2, .width = 2 * w, .height = h, .flip = true},
                                     {.x = w / 2, .y = -h / 2, .width = w, .height = h},
                                     {.x = 2 * w + 9, .y = 0, .width = 1, .height = h, .contrast = 1, .gamma = -1},
                                     {.x = w / 3, .y = h / 3, .width = 0.01f, .height = 0.3f},
                                     {.x = -h, .y = -w, .width = 9 * (w + h), .height = 9 * (w + h)},
                                     {.x = NAN, .width = -1}};
            sample_job jobs[8];
            for (int i = 0; i < 8; i++) jobs[i] = job_of(&f, pixels, c[i], sizes[(s + k) % 3]);
            compare(k == 0 ? "int16" : k == 1 ? "uint16" : "RGB", &norm, jobs, 8);
        }
}

static void windows(void **state)
{
    (void)state;
    static const struct {
        const char *name, *choice;
        voi_window w;
        bool invert, padding;
        double slope, intercept;
    } rows[] = {
        {"LINEAR", "header", {true, VOI_LINEAR, 2000, 900}, false, false, 1, 0},
        {"LINEAR, inverted, padding", "header", {true, VOI_LINEAR, 2000, 900}, true, true, 1, 0},
        {"LINEAR of width 1", "header", {true, VOI_LINEAR, 2200, 1}, false, true, 1, 0},
        {"LINEAR_EXACT", "header", {true, VOI_LINEAR_EXACT, 2300, 2000}, false, true, 0.5, 0},
        {"LINEAR_EXACT, a step", "header", {true, VOI_LINEAR_EXACT, 0, 1e-7}, true, true, 1, 0},
        {"SIGMOID", "header", {true, VOI_SIGMOID, 2000, 700}, false, false, 1, 0},
        {"SIGMOID, inverted, padding", "header", {true, VOI_SIGMOID, 2000, 700}, true, true, 1, 0},
        {"SIGMOID without width", "header", {true, VOI_SIGMOID, 2000, 0}, false, true, 1, 0},
        {"percentiles", "percentile", {false}, false, true, 1, 0},
        {"three of CT", "ct3", {false}, true, true, 1, -2600},
        {"slope 0", "header", {true, VOI_LINEAR, 2000, 900}, false, true, 0, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        frame_info f[2] = {frame_of(37, 53, PIXEL_I16), frame_of(37, 53, PIXEL_U16)};
        sampler_norm norm = plain(rows[i].choice);
        sample_job jobs[2];
        crop_params c = {.x = -3, .y = 2.5f, .width = 41, .height = 38, .window_shift = 0.1f, .window_scale = -0.2f};
        for (int k = 0; k < 2; k++) {
            f[k].window = rows[i].w;
            if (rows[i].w.center == 0)
                f[k].window.center = ((const uint16_t *)pixels)[20 * 53 + 20]; /* between black and white */
            f[k].invert = rows[i].invert;
            f[k].slope = rows[i].slope;
            f[k].intercept = rows[i].intercept;
            f[k].low = 1600;
            f[k].high = 3000;
            f[k].has_padding = rows[i].padding;
            f[k].padding_low = 1700 * f[k].slope + f[k].intercept;
            f[k].padding_high = 1999 * f[k].slope + f[k].intercept;
            jobs[k] = job_of(&f[k], pixels, c, 35);
        }
        compare(rows[i].name, &norm, jobs, 2);
    }
}

static void intensities(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        crop_params c;
    } rows[] = {
        {"brightness", {.brightness = 0.3f}},
        {"contrast", {.contrast = -0.4f}},
        {"contrast of infinity", {.contrast = INFINITY}},
        {"saturation", {.saturation = 0.5f}},
        {"hue", {.hue = 0.13f}},
        {"a wild hue", {.hue = -INFINITY, .gray = true}},
        {"grey", {.gray = true}},
        {"gamma", {.gamma = -0.4f}},
        {"gamma below all", {.gamma = -3}},
        {"blur", {.blur_sigma = 0.7f}},
        {"a wide blur", {.blur_sigma = 40}},
        {"solarize", {.solarize = 0.5f}},
        {"all",
         {.flip = true,
          .brightness = 0.2f,
          .contrast = 0.3f,
          .saturation = -0.2f,
          .hue = -0.1f,
          .gamma = 0.3f,
          .blur_sigma = 1.9f,
          .solarize = 0.6f}},
        {"all, grey",
         {.brightness = -0.2f,
          .contrast = 0.3f,
          .saturation = 0.2f,
          .hue = 0.4f,
          .gray = true,
          .blur_sigma = 0.3f,
          .solarize = 0.1f}},
        {"all of them NaN",
         {.brightness = NAN,
          .contrast = NAN,
          .saturation = NAN,
          .hue = NAN,
          .gamma = NAN,
          .blur_sigma = NAN,
          .solarize = NAN,
          .window_shift = NAN,
          .window_scale = NAN}},
    };
    frame_info f[3] = {frame_of(40, 51, PIXEL_I16), frame_of(40, 51, PIXEL_U16), frame_of(40, 51, PIXEL_U8)};
    sampler_norm norm = plain("auto");
    memcpy(f[1].modality, "CT", 3); /* three planes */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        sample_job jobs[3];
        for (int k = 0; k < 3; k++) {
            jobs[k] = job_of(&f[k], pixels, rows[i].c, 43);
            jobs[k].crop.width = 51;
            jobs[k].crop.height = 40;
        }
        compare(rows[i].name, &norm, jobs, 3);
    }
}

/* Normalised by mean and deviation, one plane and three; wild ones count as 0 and 1. */
static void normalised(void **state)
{
    (void)state;
    frame_info grey = frame_of(20, 31, PIXEL_I16), colour = frame_of(20, 31, PIXEL_U8);
    crop_params c = {.width = 31, .height = 20, .flip = true};
    sampler_norm norm = plain("header");
    memcpy(norm.mean, (float[]){0.1f, NAN, 0.3f}, sizeof norm.mean);
    memcpy(norm.std, (float[]){0.5f, 0.6f, 0}, sizeof norm.std);
    const sample_job jobs[] = {job_of(&grey, pixels, c, 21), job_of(&colour, pixels, c, 21)};
    compare("normalised", &norm, jobs, 2);
}

/* More jobs than a group holds, of frames in turn; then none. */
static void groups(void **state)
{
    (void)state;
    sample_job jobs[JOBS_MOST];
    frame_info f[3] = {frame_of(19, 23, PIXEL_I16), frame_of(30, 8, PIXEL_U8), frame_of(16, 16, PIXEL_U16)};
    sampler_norm norm = plain("header");
    rng r = rng_at(3, 0, 0, 0);
    for (int i = 0; i < JOBS_MOST; i++) {
        float w = (float)f[i % 3].columns, h = (float)f[i % 3].rows;
        crop_params c = {.x = rng_between(&r, -3, w / 2),
                         .y = rng_between(&r, -3, h / 2),
                         .width = rng_between(&r, 1, w),
                         .height = rng_between(&r, 1, h)};
        if (i % 4 == 0) c.blur_sigma = rng_between(&r, 0, 2);
        if (i % 5 == 0) c.contrast = rng_between(&r, -1, 1);
        jobs[i] = job_of(&f[i % 3], pixels + 1000 * (i % 3), c, 14);
    }
    compare("groups", &norm, jobs, JOBS_MOST);
    BOTH(both, i) both.d[i].op->sample(&both.d[i], NULL, &norm, jobs, 0);
}

/* Frames that are on the device already. */
static void resident(void **state)
{
    (void)state;
    frame_info f[2] = {frame_of(19, 23, PIXEL_I16), frame_of(19, 23, PIXEL_U8)};
    sampler_norm norm = plain("header");
    sample_job jobs[4];
    tensor there = tensor_of(&both, TENSOR_BYTES, pixels, 2 * 19 * 23 * 3);
    for (int i = 0; i < 4; i++) {
        crop_params c = {.x = (float)i, .y = -1, .width = 9 + 5 * (float)i, .height = 20, .contrast = 0.3f};
        jobs[i] = job_of(&f[i % 2], pixels + 19 * 23 * 3 * (i % 2), c, 17);
        jobs[i].resident = dv_at(there.p[CUDA], 19 * 23 * 3 * (size_t)(i % 2));
    }
    compare("resident", &norm, jobs, 4);
}

static float *crops_of(const sampler_norm *norm, const sample_job *jobs, size_t n)
{
    tensor out = tensor_f32(&both, n * 3 * (size_t)jobs[0].size * (size_t)jobs[0].size, 1, 1);
    both.d[CUDA].op->sample(&both.d[CUDA], out.p[CUDA], norm, jobs, n);
    return tensor_values(&both, &out, CUDA);
}

/* A crop has the same bits whether its frame comes up for it or is there, and whoever else cuts the frame. */
static void same_bands(const sampler_norm *norm, const void *pixels_of, size_t bytes, sample_job a, sample_job b)
{
    size_t each = 3 * (size_t)a.size * (size_t)a.size;
    tensor there = tensor_of(&both, TENSOR_BYTES, pixels_of, bytes);
    const sample_job sent[] = {a, b};
    float *of_sent = crops_of(norm, sent, 2), *alone = crops_of(norm, &b, 1);
    a.resident = b.resident = there.p[CUDA];
    const sample_job kept[] = {a, b};
    float *of_kept = crops_of(norm, kept, 2);
    assert_memory_equal(of_sent, of_kept, 2 * each * sizeof *of_sent);
    assert_memory_equal(of_sent + each, alone, each * sizeof *alone);
    free(of_sent);
    free(alone);
    free(of_kept);
}

/* A frame that does not fit what the GPU holds of frames, and several that do not fit together. */
static void large(void **state)
{
    (void)state;
    enum { ROWS = 3600, COLUMNS = 3001 };
    uint16_t *big = malloc(ROWS * COLUMNS * sizeof *big);
    assert_non_null(big);
    for (size_t i = 0; i < (size_t)ROWS * COLUMNS; i++) big[i] = (uint16_t)(1000 + i * 7919 % 3000);
    frame_info f = frame_of(ROWS, COLUMNS, PIXEL_U16), half = frame_of(ROWS / 2, COLUMNS, PIXEL_U16), other = half;
    frame_info third = half, fourth = half;
    const crop_params whole = {.x = 7, .width = 20, .height = ROWS, .contrast = 0.5f, .gamma = 0.1f, .blur_sigma = 1};
    const crop_params part = {.x = 700, .y = 1700, .width = 20, .height = 100, .flip = true};
    const crop_params top = {.x = 5, .y = -50, .width = 30, .height = 100};
    const sample_job jobs[] = {job_of(&f, big, whole, 14),         job_of(&half, big + 9, part, 14),
                               job_of(&f, big, part, 14),          job_of(&other, big + 7, whole, 14),
                               job_of(&half, big + 9, whole, 14),  job_of(&f, big, top, 14),
                               job_of(&third, big + 8, whole, 14), job_of(&fourth, big + 6, whole, 14)};
    sampler_norm norm = plain("header");
    compare("bands", &norm, jobs, sizeof jobs / sizeof *jobs);
    same_bands(&norm, big, (size_t)ROWS * COLUMNS * sizeof *big, job_of(&f, big, whole, 14), job_of(&f, big, part, 14));
    free(big);
}

/* One row of millions of pixels, whose weights alone are more than the scratch holds: refused. */
static void refused(void **state)
{
    (void)state;
    enum { COLUMNS = 4 << 20, SIZE = 14 };
    uint16_t *row = calloc(COLUMNS, sizeof *row);
    assert_non_null(row);
    frame_info f = frame_of(1, COLUMNS, PIXEL_U16);
    sampler_norm norm = plain("header");
    const sample_job job = job_of(&f, row, (crop_params){.width = COLUMNS, .height = 1}, SIZE);
    tensor out = tensor_f32(&both, 3 * SIZE * SIZE, 1, 1);
    device *d = &both.d[CUDA];
    err e = {0};
    d->op->sample(d, out.p[CUDA], &norm, &job, 1);
    assert_int_equal(device_sync(d, &e), ERR_LIMIT);
    free(row);
}

static int setup(void **state)
{
    (void)state;
    noise();
    both = twin_open(COMPUTE_F32);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    twin_close(&both);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(crops),       cmocka_unit_test(windows),
                                       cmocka_unit_test(intensities), cmocka_unit_test(normalised),
                                       cmocka_unit_test(groups),      cmocka_unit_test(resident),
                                       cmocka_unit_test(large),       cmocka_unit_test(refused)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
