/* bench_sampler.c: milliseconds of one thread for each kind of crop; then for a whole set of them, 2 globals of 224 and
 * 8 locals of 98 from a stored frame of 512 x 512 (RGB, and 16-bit grey), which peer_augment.py makes with torchvision.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/progress.h"
#include "preprocess/augment.h"

enum { SIDE = 512, JOBS = 64, SETS = 16, SET = 10, TRIES = 8 };

/* Milliseconds of a set, over draws that are each taken at their shortest. */
static double set_of_crops(const frame_info *f, const void *pixels, const augment_options *o, const sampler_norm *norm)
{
    static float out[SET][3 * 224 * 224];
    double total = 0;
    for (size_t k = 0; k < SETS; k++) {
        double best = 1e9;
        for (int n = 0; n < TRIES; n++) {
            double start = progress_clock();
            sample_job jobs[SET];
            for (size_t i = 0; i < SET; i++) {
                rng a = rng_at(1, RNG_AUGMENT, k, (uint32_t)i);
                crop_role role = i == 0 ? CROP_GLOBAL1 : i == 1 ? CROP_GLOBAL2 : CROP_LOCAL;
                jobs[i] = (sample_job){.frame = f,
                                       .pixels = pixels,
                                       .size = i < 2 ? 224 : 98,
                                       .out = out[i],
                                       .crop = augment_ssl(o, f, role, &a)};
            }
            sampler_run(NULL, norm, jobs, SET);
            double t = progress_clock() - start;
            if (t < best) best = t;
        }
        total += best;
    }
    return total / SETS * 1000;
}

int main(void)
{
    static int16_t grey[SIDE * SIDE];
    static uint8_t rgb[SIDE * SIDE * 3];
    rng r = rng_at(1, RNG_TEST, 0, 0);
    for (size_t i = 0; i < SIDE * SIDE; i++) grey[i] = (int16_t)(rng_u32(&r) % 2000 - 1000);
    for (size_t i = 0; i < sizeof rgb; i++) rgb[i] = (uint8_t)rng_u32(&r);
    frame_info ct = {.modality = "CT", .rows = SIDE, .columns = SIDE, .channels = 1, .type = PIXEL_I16, .slope = 1},
               cr = ct, xc = ct;
    snprintf(cr.modality, sizeof cr.modality, "CR");
    cr.low = -900;
    cr.high = 900;
    xc.channels = 3;
    xc.type = PIXEL_U8;
    static const struct {
        const char *name;
        int frame, size;
        bool augment;
    } rows[] = {{"one window, whole frame, 224", 1, 224, false},   {"one window, global crop, 224", 1, 224, true},
                {"one window, local crop, 98", 1, 98, true},       {"three windows, whole frame, 224", 0, 224, false},
                {"three windows, global crop, 224", 0, 224, true}, {"RGB, global crop, 224", 2, 224, true}};
    sampler_norm norm = {.mean = {.5f, .5f, .5f}, .std = {.5f, .5f, .5f}};
    augment_options o;
    augment_defaults(&o);
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        const frame_info *f = rows[k].frame == 0 ? &ct : rows[k].frame == 1 ? &cr : &xc;
        size_t pixels = (size_t)(rows[k].size * rows[k].size);
        float *out = malloc(JOBS * 3 * pixels * sizeof *out);
        sample_job jobs[JOBS];
        if (!out) return 1;
        for (size_t i = 0; i < JOBS; i++) {
            jobs[i] = (sample_job){.frame = f,
                                   .pixels = f->channels == 3 ? (const void *)rgb : grey,
                                   .size = rows[k].size,
                                   .out = out + i * 3 * pixels};
            rng a = rng_at(1, RNG_AUGMENT, i, 0);
            jobs[i].crop = rows[k].augment ? augment_ssl(&o, f, rows[k].size == 98 ? CROP_LOCAL : CROP_GLOBAL1, &a)
                                           : sampler_whole(f, true, 1);
        }
        sampler_run(NULL, &norm, jobs, JOBS);
        double best = 1e9;
        for (int n = 0; n < 5; n++) {
            double start = progress_clock();
            sampler_run(NULL, &norm, jobs, JOBS);
            double t = progress_clock() - start;
            if (t < best) best = t;
        }
        printf("%-34s %7.3f ms a crop\n", rows[k].name, 1000 * best / JOBS);
        free(out);
    }
    printf("{\"set\": \"2 x 224, 8 x 98\", \"rgb_ms\": %.3f, \"grey_ms\": %.3f}\n", set_of_crops(&xc, rgb, &o, &norm),
           set_of_crops(&cr, grey, &o, &norm));
    return 0;
}
