/* sampler.h: stored frame -> one crop of a batch, in one fused pass: window + crop + antialiased bicubic resize + flip
 * + intensity changes + normalise. Output (3, size, size) fp32.
 *
 * Resampling is separable Keys cubic (a = -0.5) with the kernel widened by the scale when shrinking: what PIL's BICUBIC
 * and torch's antialias=True compute. MONOCHROME1 is inverted after windowing; padding pixels and whatever a crop shows
 * outside the frame are 0, black, in either. */
#ifndef RADAPT_SAMPLER_H
#define RADAPT_SAMPLER_H
#include "base/err.h"
#include "base/pool.h"
#include "io/catalogue.h"
#include "preprocess/window.h"

/* A crop and what happens to it. A zeroed one with the crop set is "no change". */
typedef struct {
    float x, y, width, height;        /* in stored pixels; may reach outside: the outside is the minimum */
    bool flip;                        /* left-right, after the resize */
    float window_shift, window_scale; /* augmentation of the window: centre += shift*width, width *= 1+scale */
    float brightness, contrast;       /* y = ((x-mean)*(1+contrast) + mean) * (1+brightness), on [0,1], clipped */
    float saturation, hue;            /* RGB frames only: x = luma + (x-luma)*(1+saturation); hue in turns */
    bool gray;                        /* RGB frames only: luma in all three */
    float gamma;                      /* exponent-1 on [0,1] values: y = x^(1+gamma) */
    float blur_sigma;                 /* in output pixels; 0 none, at most 16 */
    float solarize;                   /* values from this on become 1-x; 0 none */
} crop_params;

typedef struct sample_job {
    const frame_info *frame;
    const void *pixels;
    const struct dv *resident; /* the pixels in the memory of the device that samples (model/op.h), or NULL */
    crop_params crop;
    int size;
    float *out; /* (3, size, size) */
} sample_job;

typedef struct sampler_norm {
    float mean[3], std[3];
    window_choice window;
} sampler_norm;

/* Runs the jobs on the pool (NULL: here). Scratch is per thread and kept. The result is free of NaN for any input;
 * ERR_NOMEM is the only failure, and what could not be sampled is black then. */
err_code sampler_run(pool *p, const sampler_norm *norm, const sample_job *jobs, size_t n);
/* The whole frame, made square by padding (keep_aspect) or by squeezing, then a centre crop of `fraction` of each side.
 */
crop_params sampler_whole(const frame_info *f, bool keep_aspect, float fraction);

#endif
