/* dataset_norm.h: mean and deviation of a cohort's own pixels, to normalise them by. */
#ifndef RADAPT_DATASET_NORM_H
#define RADAPT_DATASET_NORM_H
#include "adapt/cohort.h"
#include "preprocess/window.h"

enum { DATASET_NORM_FRAMES = 2000 };

/* Per channel, over whole training frames (and of patients without a part), DATASET_NORM_FRAMES of them at most, evenly
 * spread: as the model sees them before normalisation, windowed to 0..1 and resized to size x size pixels. Each frame
 * counts alike. A deviation is at least 1/255. ERR_EMPTY without such a frame; ERR_INTERRUPTED. */
err_code dataset_norm(const cohort *c, const window_choice *window, int size, float mean[3], float std[3], err *e);

#endif
