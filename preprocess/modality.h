/* modality.h: raw decoded frame -> frame store pixels in modality units (PS3.3 C.11.1), and their statistics.
 *
 * Grey: slope * stored + intercept (or the modality LUT), kept as int16 or uint16 where every value is integral and
 * fits, else quantised over the frame's range with info->slope, intercept undoing it. Colour: uint8 RGB, rescale
 * ignored. The shorter side is reduced to store_size (area-correct, antialiased) if it is larger.
 *
 * Padding is recognised in stored values and left out of the averages, so it does not bleed into its neighbours. All of
 * it is stored as one value: its own where no pixel can be taken for it, else one just outside the pixels' range.
 * info->has_padding says that there is some in this frame. */
#ifndef RADAPT_MODALITY_H
#define RADAPT_MODALITY_H
#include "io/catalogue.h"

typedef struct {
    frame_info info;
    void *pixels; /* owned: modality_frame_fini */
    size_t bytes;
} modality_frame;

/* store_size 0: as it is. frame from 1. Fills every field of info except keys, shard, offset and series_*. */
err_code modality_apply(const image_header *h, const raw_frame *raw, int frame, int store_size, modality_frame *out,
                        err *e);
void modality_frame_fini(modality_frame *f);

#endif
