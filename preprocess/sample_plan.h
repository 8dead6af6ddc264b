/* sample_plan.h: what a job comes to before a pixel of it is read: windows, planes, and which source pixels each output
 * pixel is a sum of. The processor's sampler (sampler.c) and the GPU's (model/cuda/sample.cu) both begin here. */
#ifndef RADAPT_SAMPLE_PLAN_H
#define RADAPT_SAMPLE_PLAN_H
#include "preprocess/sampler.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One axis of a crop: output pixel i is a weighted sum of source pixels. */
typedef struct {
    double begin, scale, support; /* source pixels */
    int in, out;                  /* pixels */
    int low, high;                /* where sums may reach: the image, and the crop where it is larger */
    bool flip;
    int first, last; /* source pixels [first, last) that are needed */
    int stride;      /* most weights of an output pixel */
} sample_axis;

/* code -> clip(code * factor + offset), except that codes in [pad_low, pad_high] give 0. */
typedef struct {
    bool straight; /* else the window is no straight line, or one that floats cannot hold: window_value */
    float factor, offset;
    int pad_low, pad_high;
} sample_line;

typedef struct {
    crop_params crop; /* made sane */
    sample_axis x, y;
    voi_window window[3]; /* of grey frames */
    sample_line line[3];
    bool colour;
    int planes; /* 3, or 1 where the three are the same */
    bool empty; /* all of it is outside: black */
} sample_plan;

sample_plan sample_plan_of(const sampler_norm *norm, const sample_job *job);
/* start, n (out), weight (out, stride): output pixel i, a flip done, is the sum over k < n[i] of weight[i * stride + k]
 * times source pixel start[i] + k. */
void sample_plan_weigh(const sample_axis *a, int *start, int *n, float *weight);
/* Normalised: (x - mean[c]) * factor[c], finite whatever norm says. */
void sample_plan_norm(const sampler_norm *norm, float mean[3], float factor[3]);

#ifdef __cplusplus
}
#endif
#endif
