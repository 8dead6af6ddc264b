/* vit_export_hf.h: what Hugging Face's from_pretrained(FOLDER) reads beside model.safetensors, as JSON:
 *
 *     char text[VIT_EXPORT_HF_TEXT];
 *     TRY(vit_export_hf_config(m, text, &e));         // config.json
 *     vit_export_hf_pixels(m, trained_side, text);    // preprocessor_config.json
 *
 * The same model gives the same bytes. The model is as wide as vit_export writes it: the class is vit_export_class's.
 */
#ifndef RADAPT_VIT_EXPORT_HF_H
#define RADAPT_VIT_EXPORT_HF_H
#include "model/vit_export.h"

enum { VIT_EXPORT_HF_TEXT = 2048 };

/* ERR_UNSUPPORTED: vit_export_class's, and an MLP that no mlp_ratio (a whole number) makes. */
err_code vit_export_hf_config(const vit *m, char out[VIT_EXPORT_HF_TEXT], err *e);
/* For a ViTImageProcessor: pixels to side x side (0: the positional table's) and normalised. ViTModel wants
 * interpolate_pos_encoding=True for another side than its table's. */
void vit_export_hf_pixels(const vit *m, int side, char out[VIT_EXPORT_HF_TEXT]);

#endif
