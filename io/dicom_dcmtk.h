/* dicom_dcmtk.h: what image.c needs of DCMTK: the header as a record, one frame's bytes, a codestream's fragments. */
#ifndef RADAPT_DICOM_DCMTK_H
#define RADAPT_DICOM_DCMTK_H
#include "io/image.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dicom_file dicom_file;

err_code dicom_read_header(const char *path, image_header *h, err *e);
err_code dicom_open(dicom_file **f, const char *path, err *e);
void dicom_close(dicom_file *f);
/* Native bytes of a frame (from 0): little endian cells of BitsAllocated, uncompressed or decompressed by DCMTK (RLE,
 * JPEG, JPEG-LS). *decoded_rgb: colour came out of a JPEG codec as interleaved RGB. out is (bytes). */
err_code dicom_frame(dicom_file *f, const image_header *h, int frame, void *out, size_t bytes, bool *decoded_rgb,
                     err *e);
/* The codestream of a frame, its fragments joined; malloc'ed, the caller frees. */
err_code dicom_codestream(dicom_file *f, const image_header *h, int frame, unsigned char **out, size_t *bytes, err *e);
/* Palette (PS3.3 C.7.9): 8-bit entries per colour, first stored value mapped; out[c] (entries) malloc'ed, the caller
 * frees. */
typedef struct {
    int first[3], entries[3];
    unsigned char *entry[3];
} dicom_palette;
err_code dicom_read_palette(dicom_file *f, dicom_palette *out, err *e);
void dicom_palette_fini(dicom_palette *p);

#ifdef __cplusplus
}
#endif
#endif
