/* vit_export.h: a model's weights as a state dict that timm, DINOv2 or Hugging Face's transformers load with
 * strict=True:
 *
 *     TRY(vit_merge(m, false, &e));                        // what was trained is in the weights
 *     TRY(vit_export(m, VIT_NAMES_TIMM, "vit.safetensors", NULL, &e));
 *
 * Values are the student's live ones, in fp32. What a dialect keeps otherwise:
 *   timm           no mask_token. With registers, or where the class token had no position in the file that was loaded,
 *                  pos_embed has the patches' rows alone and cls_token the sum (timm's no_embed_class=True)
 *   Hugging Face   Dinov2Model, Dinov2WithRegistersModel, or, without LayerScale and registers, ViTModel, which has no
 *                  mask_token, and whose pooler is not there (add_pooling_layer=False); query, key and value apart. A
 *                  SwiGLU MLP is weights_in and weights_out: as published files have it; transformers 5 splits it in
 *                  from_pretrained
 *   DINOv2         a mask_token of zeros where the model had none
 * What a state dict does not say is in the metadata, which vit_open reads again (all are texts):
 *   format          "pt", which transformers wants
 *   class           what the state dict is for: vit_export_class
 *   heads, eps      attention heads; of LayerNorm: "6", "1e-06"
 *   image_size      side in pixels that the positional table is for
 *   image_mean, image_std   that pixels from 0 to 1 are normalised with: "0.485,0.456,0.406"
 *   backbone_hash   vit_hash of the backbone that was trained on
 *   method          what was trained on it, in that order: "apla", "apla,lora"; not there: nothing
 *   trained_side    side in pixels of what training saw; not there: not known */
#ifndef RADAPT_VIT_EXPORT_H
#define RADAPT_VIT_EXPORT_H
#include "model/vit.h"
#include "model/vit_name.h"

/* A linear classifier on the class token behind the final norm: weight (outputs, dim), bias (outputs). */
typedef struct vit_export_head {
    const float *weight, *bias;
    size_t outputs;
} vit_export_head;

typedef struct vit_export_note {
    const vit_export_head *head; /* timm's head.weight and head.bias; NULL: none */
    const char *method;          /* NULL: nothing was trained */
    int trained_side;            /* 0: not known */
} vit_export_note;

/* The class that the state dict is for: "Dinov2Model", "timm VisionTransformer", ...; names: VIT_NAMES_DINOV2, _TIMM,
 * or _HF_DINOV2 for Hugging Face's, which the model's shape then decides. ERR_UNSUPPORTED: that library has none. */
err_code vit_export_class(const vit *m, vit_names names, const char **out, err *e);
/* Writes the file, atomically; the same model and note give the same bytes. note NULL: {0}. The device's compute type
 * must be fp32. ERR_UNSUPPORTED: prompts, which no other program has a place for; vit_export_class's. */
err_code vit_export(const vit *m, vit_names names, const char *path, const vit_export_note *note, err *e);

#endif
