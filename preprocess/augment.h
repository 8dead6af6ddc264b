/* augment.h: draws crop_params: the DINOv2 multi-crop augmentation with defaults safe for grey medical images, and the
 * supervised stage's. Every draw is a function of (seed, step, index), so that a resumed run repeats it.
 *
 * Saturation, hue and grey are for RGB frames only, and solarize unless the published recipe is asked for: it turns air
 * into bone. CT and MR frames have their window moved instead. */
#ifndef RADAPT_AUGMENT_H
#define RADAPT_AUGMENT_H
#include "base/rng.h"
#include "preprocess/sampler.h"

typedef enum { CROP_GLOBAL1, CROP_GLOBAL2, CROP_LOCAL } crop_role;

typedef struct {
    float global_scale[2],
        local_scale[2]; /* share of the area: [0.5,1], [0.2,0.5]; as published [0.32,1], [0.05,0.32] */
    float ratio[2];     /* aspect, log-uniform: [3/4,4/3] */
    float flip;         /* probability; 0.5 */
    float jitter;       /* probability of brightness/contrast(/saturation/hue): 0.8 */
    float brightness, contrast, saturation, hue; /* each U(-x, x) */
    float gray;                                  /* probability; RGB only */
    float blur[3];                               /* probability by role: 1.0, 0.1, 0.5 */
    float blur_sigma[2];                         /* U(0.1, 2.0), output pixels */
    float solarize;                              /* probability on global2, threshold 1/2: of RGB frames, and */
    float solarize_grey;                         /* ... of grey ones times this: 0; 1 as published */
    float window; /* CT, MR, NIfTI: centre moves by U(-x, x) of the width, width changes by U(-x, x) */
} augment_options;

void augment_defaults(augment_options *o); /* grey-safe, and of larger parts of the frame */
void augment_essa(augment_options *o);     /* the published recipe, whose window is fixed */
crop_params augment_ssl(const augment_options *o, const frame_info *f, crop_role role, rng *r);
/* Supervised training: area scale, flip, brightness and contrast of U(-jitter, jitter). scale e.g. {0.8,1.2}: above 1
 * shows the outside. */
crop_params augment_supervised(const frame_info *f, const float scale[2], float flip, float jitter, rng *r);

#endif
