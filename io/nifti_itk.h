/* nifti_itk.h: NIfTI-1/2 volumes (.nii, .nii.gz) through ITK, one slice along the third axis a frame. */
#ifndef RADAPT_NIFTI_ITK_H
#define RADAPT_NIFTI_ITK_H
#include "io/image.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct nifti_volume nifti_volume;
/* Fills geometry and pixels of h (format, rows, columns, frames, spacing); scl_slope and scl_inter are applied when
 * reading. */
err_code nifti_read_header(const char *path, size_t file_bytes, image_header *h, err *e);
/* Reads the first time point. */
err_code nifti_open(nifti_volume **v, const char *path, size_t file_bytes, err *e);
void nifti_close(nifti_volume *v);
/* Slice from 0 as fp32 (rows, columns), turned so that columns run to the patient's left and rows to the back or the
 * feet, as in DICOM. */
err_code nifti_frame(const nifti_volume *v, int frame, float *out, size_t count, err *e);

#ifdef __cplusplus
}
#endif
#endif
