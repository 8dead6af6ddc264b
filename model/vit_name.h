/* vit_name.h: what other programs call the tensors of a Vision Transformer. This program's own names are DINOv2's:
 *
 *     DINOv2               timm                  Hugging Face Dinov2Model        ViTModel
 *     blocks.N.attn.qkv.   blocks.N.attn.qkv.    encoder.layer.N.attention.attention.{query,key,value}.
 *     blocks.N.mlp.fc1.    blocks.N.mlp.fc1.     encoder.layer.N.mlp.fc1.        encoder.layer.N.intermediate.dense.
 *     blocks.N.mlp.w12.    blocks.N.mlp.fc1.     encoder.layer.N.mlp.weights_in.
 *     register_tokens      reg_token             embeddings.register_tokens
 *
 * Hugging Face's are those of the files that it publishes and saves; transformers 5 has others in memory
 * (attention.q_proj, mlp.gate_proj, ...), which a bare state dict shows. */
#ifndef RADAPT_VIT_NAME_H
#define RADAPT_VIT_NAME_H

typedef enum {
    VIT_NAMES_DINOV2,
    VIT_NAMES_TIMM,
    VIT_NAMES_HF_DINOV2,
    VIT_NAMES_HF_VIT,
    VIT_NAMES_HF5_DINOV2, /* transformers 5, in memory */
    VIT_NAMES_HF5_VIT,
    VIT_NAMES
} vit_names;

enum { VIT_NAME_BYTES = 128, VIT_NAME_PARTS = 3 };

/* The names by which a dialect keeps the tensor of a DINOv2 name: one, or those of the parts that follow each other in
 * it (query, key, value; the two halves of a SwiGLU layer). Returns how many; 0: it has no such tensor. */
int vit_name_parts(vit_names names, const char *dinov2, char out[VIT_NAME_PARTS][VIT_NAME_BYTES]);
/* "blocks.", "encoder.layer.", "layers.": what the blocks' number stands behind. */
const char *vit_name_blocks(vit_names names);

#endif
