/* phantom_dcmtk.h: writes a made-up DICOM image in any of the transfer syntaxes that archives hand out. */
#ifndef RADAPT_PHANTOM_DCMTK_H
#define RADAPT_PHANTOM_DCMTK_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    PHANTOM_EXPLICIT,
    PHANTOM_IMPLICIT,
    PHANTOM_BARE, /* implicit, without preamble and file meta information */
    PHANTOM_BIG_ENDIAN,
    PHANTOM_DEFLATED,
    PHANTOM_RLE,
    PHANTOM_JPEG_LOSSLESS,
    PHANTOM_JPEG_LS,
    PHANTOM_J2K,
    PHANTOM_SYNTAXES
} phantom_syntax;

typedef struct {
    uint32_t tag; /* group << 16 | element */
    const char *text;
} phantom_attribute;

typedef struct {
    int rows, columns, bits_stored;
    bool is_signed, inverted; /* inverted: MONOCHROME1 */
    const uint16_t *values;   /* (rows, columns), as stored */
} phantom_pixels;

/* pixels NULL: an object without. */
err_code phantom_dcmtk_write(const char *path, const phantom_attribute *a, size_t n, const phantom_pixels *pixels,
                             phantom_syntax syntax, err *e);
/* A lossless codestream of the pixels; malloc'ed (phantom_j2k.c). */
err_code phantom_j2k_encode(const phantom_pixels *pixels, unsigned char **out, size_t *bytes, err *e);

#ifdef __cplusplus
}
#endif
#endif
