/* Names of tensors in each dialect. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "model/vit_name.h"

static void dialects(void **state)
{
    (void)state;
    static const struct {
        vit_names names;
        const char *own, *parts[3];
    } rows[] = {
        {VIT_NAMES_DINOV2, "blocks.11.attn.qkv.weight", {"blocks.11.attn.qkv.weight"}},
        {VIT_NAMES_TIMM, "blocks.0.mlp.w12.bias", {"blocks.0.mlp.fc1.bias"}},
        {VIT_NAMES_TIMM, "blocks.0.mlp.w3.weight", {"blocks.0.mlp.fc2.weight"}},
        {VIT_NAMES_TIMM, "register_tokens", {"reg_token"}},
        {VIT_NAMES_TIMM, "mask_token", {NULL}},
        {VIT_NAMES_HF_DINOV2,
         "blocks.3.attn.qkv.bias",
         {"encoder.layer.3.attention.attention.query.bias", "encoder.layer.3.attention.attention.key.bias",
          "encoder.layer.3.attention.attention.value.bias"}},
        {VIT_NAMES_HF_DINOV2, "blocks.3.ls2.gamma", {"encoder.layer.3.layer_scale2.lambda1"}},
        {VIT_NAMES_HF_DINOV2, "blocks.3.mlp.w12.weight", {"encoder.layer.3.mlp.weights_in.weight"}},
        {VIT_NAMES_HF_DINOV2, "norm.bias", {"layernorm.bias"}},
        {VIT_NAMES_HF_DINOV2, "patch_embed.proj.weight", {"embeddings.patch_embeddings.projection.weight"}},
        {VIT_NAMES_HF_VIT, "blocks.3.mlp.fc1.weight", {"encoder.layer.3.intermediate.dense.weight"}},
        {VIT_NAMES_HF_VIT, "blocks.3.mlp.fc2.weight", {"encoder.layer.3.output.dense.weight"}},
        {VIT_NAMES_HF_VIT, "blocks.3.attn.proj.weight", {"encoder.layer.3.attention.output.dense.weight"}},
        {VIT_NAMES_HF_VIT, "blocks.3.ls1.gamma", {NULL}},
        {VIT_NAMES_HF_VIT, "register_tokens", {NULL}},
        {VIT_NAMES_HF5_DINOV2,
         "blocks.3.mlp.w12.weight",
         {"encoder.layer.3.mlp.gate_proj.weight", "encoder.layer.3.mlp.up_proj.weight"}},
        {VIT_NAMES_HF5_VIT,
         "blocks.3.attn.qkv.weight",
         {"layers.3.attention.q_proj.weight", "layers.3.attention.k_proj.weight", "layers.3.attention.v_proj.weight"}},
        {VIT_NAMES_HF5_VIT, "blocks.3.norm2.weight", {"layers.3.layernorm_after.weight"}},
        {VIT_NAMES_DINOV2, "head.weight", {NULL}},
        {VIT_NAMES_DINOV2, "cls_token2", {NULL}},
        {VIT_NAMES_DINOV2, "blocks.3.ls1.gamma2", {NULL}},
        {VIT_NAMES_DINOV2, "blocks.3.attn.q_norm.weight", {NULL}},
        {VIT_NAMES_DINOV2, "blocks.x.norm1.weight", {NULL}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char got[VIT_NAME_PARTS][VIT_NAME_BYTES];
        int n = vit_name_parts(rows[i].names, rows[i].own, got), want = 0;
        while (want < 3 && rows[i].parts[want]) want++;
        if (n != want) fail_msg("row %zu: %d parts of %s, not %d", i, n, rows[i].own, want);
        for (int k = 0; k < n; k++) assert_string_equal(got[k], rows[i].parts[k]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(dialects)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
