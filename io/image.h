/* image.h: one image file as a plain record, whatever its format, and its frames decoded.
 *
 *     image_header h;
 *     TRY(image_read_header(path, &h, &e));            // DICOM (with or without preamble, any extension) or NIfTI
 *     image *im; TRY(image_open(&im, path, &h, &e));
 *     raw_frame f; TRY(image_frame(im, 0, &f, &e));    // f.pixels belongs to im until the next call
 *     image_close(im);
 *
 * Everything that touches a codec may be asked to decode hostile bytes: run image_open/image_frame in a decode worker
 * (decode_worker.h) when the file is not ours. Text is UTF-8, converted from SpecificCharacterSet; header fields hold
 * PHI and go to identities.db only. */
#ifndef RADAPT_IMAGE_H
#define RADAPT_IMAGE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { IMAGE_NONE, IMAGE_DICOM, IMAGE_NIFTI } image_format;

typedef enum {
    PHOTOMETRIC_UNKNOWN,
    PHOTOMETRIC_MONOCHROME1,
    PHOTOMETRIC_MONOCHROME2,
    PHOTOMETRIC_PALETTE,
    PHOTOMETRIC_RGB,
    PHOTOMETRIC_YBR_FULL,
    PHOTOMETRIC_YBR_FULL_422,
    PHOTOMETRIC_YBR_PARTIAL_420,
    PHOTOMETRIC_YBR_ICT,
    PHOTOMETRIC_YBR_RCT
} photometric;

typedef enum { PIXEL_U8, PIXEL_I16, PIXEL_U16, PIXEL_I32, PIXEL_F32 } pixel_type;
size_t pixel_bytes(pixel_type t);

/* PS3.3 C.11.2.1.3 VOI LUT Function */
typedef enum { VOI_LINEAR, VOI_LINEAR_EXACT, VOI_SIGMOID } voi_function;

/* A window in modality units (HU for CT). */
typedef struct {
    bool present;
    voi_function function;
    double center, width;
} voi_window;

/* PS3.3 C.11.1 / C.11.2: a lookup table; entries borrowed from the image it came with. */
typedef struct {
    bool present;
    int first, entries, bits;
    uint16_t *data; /* (entries), owned by the header: image_header_fini frees */
} lookup_table;

/* Warnings are data. */
enum {
    QUIRK_NO_PREAMBLE = 1 << 0,
    QUIRK_SIGN_MISMATCH = 1 << 1,   /* the codestream's signedness differs from PixelRepresentation */
    QUIRK_CONSTANT = 1 << 2,        /* every pixel the same */
    QUIRK_HIGH_BIT = 1 << 3,        /* HighBit is not BitsStored-1 */
    QUIRK_COLOR_RESCALE = 1 << 4,   /* rescale tags on a colour image: ignored */
    QUIRK_ZERO_WINDOW = 1 << 5,     /* WindowWidth not usable: ignored */
    QUIRK_FRAME_COUNT = 1 << 6,     /* NumberOfFrames differs from the frames that are there */
    QUIRK_FOUR_D = 1 << 7,          /* NIfTI with more than one time point: the first is used */
    QUIRK_LONG_PIXEL_DATA = 1 << 8, /* more bytes than the frames need */
    QUIRK_NOT_FINITE = 1 << 9       /* NaN or infinity among the values: taken as the least finite one */
};

typedef struct image_header {
    image_format format;
    uint32_t quirks;
    /* identity (PHI) */
    char patient_id[65], patient_id_issuer[65], patient_name[325], patient_birth_date[9], patient_sex[17];
    char study_uid[65], study_date[9], study_time[17], study_id[17], accession[17], referring_physician[325];
    char study_description[65];
    char series_uid[65], sop_uid[65], sop_class[65], transfer_syntax[65];
    char character_set[128]; /* as in the file */
    /* procedure code, for "Procedure reported" */
    char procedure_code[17], procedure_scheme[17], procedure_meaning[65];
    /* description */
    char modality[17], body_part[17], manufacturer[65], manufacturer_model[65], image_type[128];
    int series_number, instance_number;
    bool burned_in; /* BurnedInAnnotation = YES */
    /* geometry */
    bool has_position, has_orientation, has_spacing;
    double position_mm[3];   /* ImagePositionPatient, LPS */
    double orientation[6];   /* ImageOrientationPatient */
    double spacing_mm[2];    /* between rows, between columns */
    double slice_spacing_mm; /* NIfTI, or SpacingBetweenSlices; 0 unknown */
    /* pixels */
    bool has_pixels;
    int rows, columns, frames, samples; /* samples per pixel: 1 or 3 */
    int bits_allocated, bits_stored, high_bit;
    bool is_signed;
    bool planar; /* PlanarConfiguration 1 */
    photometric photometric;
    bool has_rescale;
    double rescale_slope, rescale_intercept;
    bool has_padding;
    int padding_low, padding_high; /* stored values, inclusive: PS3.3 C.7.5.1.1.2 */
    voi_window window;             /* the first usable one */
    lookup_table modality_lut, voi_lut;
} image_header;

/* Sniffs and reads headers only; nothing is decoded. ERR_FORMAT: not an image file at all; ERR_TRUNCATED;
 * ERR_UNSUPPORTED: a DICOM object without pixels is NOT an error: has_pixels is false. Call image_header_fini in every
 * case. */
err_code image_read_header(const char *path, image_header *h, err *e);
void image_header_fini(image_header *h);

/* One decoded frame, as stored (before the modality LUT), samples interleaved, (rows, columns, samples) row-major.
 * Palette colour is expanded and YBR converted: samples == 3 means RGB, uint8. Overlay bits above BitsStored are masked
 * off and the sign extended. MONOCHROME1 is not inverted here. */
typedef struct {
    int rows, columns, samples;
    pixel_type type;
    const void *pixels; /* owned by the image, valid until the next call */
    uint32_t quirks;
} raw_frame;

typedef struct image image;
err_code image_open(image **im, const char *path, const image_header *h, err *e);
err_code image_frame(image *im, int frame /* from 0 */, raw_frame *out, err *e);
void image_close(image *im);

#ifdef __cplusplus
}
#endif
#endif
