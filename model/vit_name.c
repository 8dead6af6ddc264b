/* vit_name.c: see vit_name.h. Two tables: the names of whole tensors, and what stands behind a block's number. */
#include "model/vit_name.h"

#include <stdio.h>
#include <string.h>

#define QKV "attention.attention.query.|attention.attention.key.|attention.attention.value."
#define QKV5 "attention.q_proj.|attention.k_proj.|attention.v_proj."

/* In the order of vit_names; parts are separated by |; NULL: there is none. */
static const char *const top_names[][VIT_NAMES] = {
    {"cls_token", "cls_token", "embeddings.cls_token", "embeddings.cls_token", "embeddings.cls_token",
     "embeddings.cls_token"},
    {"register_tokens", "reg_token", "embeddings.register_tokens", NULL, "embeddings.register_tokens", NULL},
    {"mask_token", NULL, "embeddings.mask_token", "embeddings.mask_token", "embeddings.mask_token",
     "embeddings.mask_token"},
    {"pos_embed", "pos_embed", "embeddings.position_embeddings", "embeddings.position_embeddings",
     "embeddings.position_embeddings", "embeddings.position_embeddings"},
    {"patch_embed.proj.", "patch_embed.proj.", "embeddings.patch_embeddings.projection.",
     "embeddings.patch_embeddings.projection.", "embeddings.patch_embeddings.projection.",
     "embeddings.patch_embeddings.projection."},
    {"norm.", "norm.", "layernorm.", "layernorm.", "layernorm.", "layernorm."},
};
static const char *const block_names[][VIT_NAMES] = {
    {"norm1.", "norm1.", "norm1.", "layernorm_before.", "norm1.", "layernorm_before."},
    {"attn.qkv.", "attn.qkv.", QKV, QKV, QKV5, QKV5},
    {"attn.proj.", "attn.proj.", "attention.output.dense.", "attention.output.dense.", "attention.o_proj.",
     "attention.o_proj."},
    {"ls1.gamma", "ls1.gamma", "layer_scale1.lambda1", NULL, "layer_scale1.lambda1", NULL},
    {"norm2.", "norm2.", "norm2.", "layernorm_after.", "norm2.", "layernorm_after."},
    {"mlp.fc1.", "mlp.fc1.", "mlp.fc1.", "intermediate.dense.", "mlp.fc1.", "mlp.fc1."},
    {"mlp.fc2.", "mlp.fc2.", "mlp.fc2.", "output.dense.", "mlp.fc2.", "mlp.fc2."},
    {"mlp.w12.", "mlp.fc1.", "mlp.weights_in.", NULL, "mlp.gate_proj.|mlp.up_proj.", NULL},
    {"mlp.w3.", "mlp.fc2.", "mlp.weights_out.", NULL, "mlp.down_proj.", NULL},
    {"ls2.gamma", "ls2.gamma", "layer_scale2.lambda1", NULL, "layer_scale2.lambda1", NULL},
};

const char *vit_name_blocks(vit_names names)
{
    static const char *const blocks[VIT_NAMES] = {"blocks.",        "blocks.",        "encoder.layer.",
                                                  "encoder.layer.", "encoder.layer.", "layers."};
    return blocks[names];
}

/* front, each part of `parts`, rest. */
static int join(const char *front, const char *parts, const char *rest, char out[VIT_NAME_PARTS][VIT_NAME_BYTES])
{
    int n = 0;
    for (const char *at = parts; at && n < VIT_NAME_PARTS; n++) {
        const char *end = strchr(at, '|');
        snprintf(out[n], VIT_NAME_BYTES, "%s%.*s%s", front, (int)(end ? end - at : (long)strlen(at)), at, rest);
        at = end ? end + 1 : NULL;
    }
    return n;
}

/* The row whose own name `name` begins with; its end is where `*rest` points. A whole name must match to its end. */
static const char *find(const char *const (*table)[VIT_NAMES], size_t n, vit_names names, const char *name,
                        const char **rest)
{
    for (size_t i = 0; i < n; i++) {
        const char *own = table[i][VIT_NAMES_DINOV2];
        size_t length = strlen(own);
        if (strncmp(name, own, length) || (own[length - 1] != '.' && name[length])) continue;
        *rest = name + length;
        return table[i][names];
    }
    return NULL;
}

int vit_name_parts(vit_names names, const char *dinov2, char out[VIT_NAME_PARTS][VIT_NAME_BYTES])
{
    int block, at = 0;
    const char *rest = "", *parts;
    if (sscanf(dinov2, "blocks.%d.%n", &block, &at) != 1 || !at) {
        parts = find(top_names, sizeof top_names / sizeof *top_names, names, dinov2, &rest);
        return join("", parts, rest, out);
    }
    char front[48];
    snprintf(front, sizeof front, "%s%d.", vit_name_blocks(names), block);
    parts = find(block_names, sizeof block_names / sizeof *block_names, names, dinov2 + at, &rest);
    return join(front, parts, rest, out);
}
