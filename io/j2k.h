/* j2k.h: JPEG 2000 codestreams (PS3.5 A.4.4) and JP2 files through OpenJPEG. */
#ifndef RADAPT_J2K_H
#define RADAPT_J2K_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

typedef struct {
    int rows, columns, samples; /* of the codestream */
    int bits;
    bool is_signed;
    int32_t *values; /* (rows, columns, samples) interleaved, after the inverse component transform; caller frees */
} j2k_image;

/* limit_values: at most so many values are decoded (rows * columns * samples as the DICOM header says). */
err_code j2k_decode(const unsigned char *bytes, size_t n, size_t limit_values, j2k_image *out, err *e);

#endif
