/* phantom_draw.h: made-up anatomy: a chest CT slice and a chest radiograph, with and without a lesion. */
#ifndef RADAPT_PHANTOM_DRAW_H
#define RADAPT_PHANTOM_DRAW_H
#include <stdbool.h>

#include "base/rng.h"

/* One patient's body: the same in all of the patient's images. Lengths are shares of the image's width. */
typedef struct {
    float width, height;           /* of the thorax */
    float lung_width, lung_height; /* of one lung */
    float heart;                   /* radius */
    bool lesion;
    float lesion_side, lesion_x, lesion_y, lesion_radius; /* side: -1 or 1 */
    float exposure;                                       /* radiographs: gain */
} phantom_body;

phantom_body phantom_draw_body(bool lesion, rng *r);
/* HU, (size, size); z in [-1,1] along the chest. Outside the scanner's circle: `outside`. */
void phantom_draw_ct(const phantom_body *b, int size, float z, float outside, rng *noise, float *hu);
/* [0,1], bright is dense, (rows, columns). */
void phantom_draw_cr(const phantom_body *b, int rows, int columns, rng *noise, float *value);

#endif
