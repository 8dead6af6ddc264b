/* intensity.h: what happens to a crop after the resize, on values in [0,1]: gamma, contrast, brightness, saturation,
 * hue, grey, blur, solarize, in this order (crop_params says what each does). */
#ifndef RADAPT_INTENSITY_H
#define RADAPT_INTENSITY_H
#include "preprocess/sampler.h"

/* planes (n, size, size), n = 1 or 3, changed in place and left in [0,1]; colour: three planes that are R, G, B.
 * scratch: intensity_scratch(size) floats. */
void intensity_apply(const crop_params *p, float *planes, int n, int size, bool colour, float *scratch);
size_t intensity_scratch(int size);

#endif
