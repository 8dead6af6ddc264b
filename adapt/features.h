/* features.h: frozen features of frames: final-norm class tokens. */
#ifndef RADAPT_FEATURES_H
#define RADAPT_FEATURES_H
#include "adapt/cohort.h"
#include "adapt/frame_cache.h"
#include "base/progress.h"
#include "model/vit.h"
#include "preprocess/sampler.h"

enum { FEATURES_BATCH = 32 };

typedef struct {
    int size;    /* 224 */
    float share; /* of each side of the frame, made square, that is seen: the centre; 0.875 */
    int batch;   /* 0: 32 */
    window_choice window;
    progress *shown; /* gets a unit for every image; NULL: nothing is shown */
} view_options;

/* The normalisation the backbone was trained with, and the view's window. */
sampler_norm features_norm(const vit *m, const view_options *v);
/* out (n, dim) f32, for frames[index[i]] of the cohort. kept: where frames may stay on a device that makes the images,
 * and be found; or NULL. ERR_INTERRUPTED when asked to stop. */
err_code features_extract(vit *m, vit_who who, const cohort *c, const uint32_t *index, size_t n, const view_options *v,
                          frame_cache *kept, float *out, err *e);
/* For plan.h: on a device that counts, what an extraction of n frames takes there and does; host: bytes of its batches.
 */
err_code features_measure(vit *m, size_t n, const view_options *v, size_t *host, err *e);

#endif
