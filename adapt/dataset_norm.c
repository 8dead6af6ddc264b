/* dataset_norm.c: see dataset_norm.h. Sums in the order of the frames: the same on any number of threads. */
#include "adapt/dataset_norm.h"

#include <math.h>
#include <stdlib.h>

#include "base/stop.h"
#include "preprocess/sampler.h"

/* Adds a frame's pixels (3, n) to the sums. */
static void add(const float *pixels, size_t n, double sum[3], double square[3])
{
    for (int k = 0; k < 3; k++)
        for (size_t i = 0; i < n; i++) {
            double v = pixels[(size_t)k * n + i];
            sum[k] += v;
            square[k] += v * v;
        }
}

static bool is_training(const cohort *c, size_t frame)
{
    return c->part[frame] == SPLIT_TRAIN || c->part[frame] == SPLIT_NONE;
}

err_code dataset_norm(const cohort *c, const window_choice *window, int size, float mean[3], float std[3], err *e)
{
    size_t n = (size_t)size * (size_t)size, may = 0, seen = 0, used = 0;
    double sum[3] = {0}, square[3] = {0};
    const sampler_norm norm = {.window = *window, .std = {1, 1, 1}};
    float *pixels = malloc(3 * n * sizeof *pixels);
    err_code rc = ERR_OK;
    if (!pixels) FAIL(e, NOMEM, "no memory for a frame");
    for (size_t i = 0; i < c->n_frames; i++) may += is_training(c, i);
    if (!may) FAIL_DONE(rc, e, EMPTY, "no training frame to take a mean of");
    size_t most = may < DATASET_NORM_FRAMES ? may : DATASET_NORM_FRAMES;
    for (size_t i = 0; i < c->n_frames; i++) {
        if (!is_training(c, i)) continue;
        size_t at = seen++;
        if ((at + 1) * most / may == at * most / may) continue;
        const sample_job job = {.frame = &c->frames[i],
                                .pixels = cohort_pixels(c, i),
                                .crop = sampler_whole(&c->frames[i], false, 1),
                                .size = size,
                                .out = pixels};
        TRY_DONE(rc, stop_check(e));
        if (sampler_run(NULL, &norm, &job, 1)) FAIL_DONE(rc, e, NOMEM, "no memory for a frame");
        add(pixels, n, sum, square);
        used++;
    }
    for (int k = 0; k < 3; k++) {
        double m = sum[k] / (double)(used * n), variance = square[k] / (double)(used * n) - m * m;
        mean[k] = (float)m;
        std[k] = (float)fmax(sqrt(fmax(variance, 0)), 1.0 / 255);
    }
done:
    free(pixels);
    return rc;
}
