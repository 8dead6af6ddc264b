/* vit_export_hf.c: see vit_export_hf.h. Keys are those of ViTConfig, Dinov2Config and Dinov2WithRegistersConfig; what
 * they default to is written too where the model depends on it. */
#include "model/vit_export_hf.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "model/vit_impl.h"

enum { RATIO_MAX = 64 };

/* Hidden units of an MLP as transformers counts them (Dinov2MLP, Dinov2SwiGLUFFN). */
static int hidden_units(const vit_config *c, int ratio)
{
    int n = c->dim * ratio;
    return c->swiglu ? (n * 2 / 3 + 7) / 8 * 8 : n;
}

static void add(char out[VIT_EXPORT_HF_TEXT], const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(char out[VIT_EXPORT_HF_TEXT], const char *fmt, ...)
{
    size_t n = strlen(out);
    va_list args;
    va_start(args, fmt);
    vsnprintf(out + n, VIT_EXPORT_HF_TEXT - n, fmt, args);
    va_end(args);
}

static const char *truth(bool x)
{
    return x ? "true" : "false";
}

static err_code add_dinov2(const vit_config *c, char out[VIT_EXPORT_HF_TEXT], err *e)
{
    int ratio = 1;
    while (ratio < RATIO_MAX && hidden_units(c, ratio) != c->hidden) ratio++;
    if (ratio == RATIO_MAX)
        FAIL(e, UNSUPPORTED, "Hugging Face has no MLP of %d hidden units at a width of %d", c->hidden, c->dim);
    add(out, "  \"mlp_ratio\": %d,\n  \"use_swiglu_ffn\": %s,\n  \"layerscale_value\": 1.0,\n", ratio,
        truth(c->swiglu));
    add(out, "  \"drop_path_rate\": 0.0,\n");
    if (c->registers) add(out, "  \"num_register_tokens\": %d,\n", c->registers);
    return ERR_OK;
}

err_code vit_export_hf_config(const vit *m, char out[VIT_EXPORT_HF_TEXT], err *e)
{
    const vit_config *c = &m->c;
    const char *class;
    char eps[VIT_NUMBER_TEXT];
    TRY(vit_export_class(m, VIT_NAMES_HF_DINOV2, &class, e));
    bool vit_model = !strcmp(class, "ViTModel");
    vit_number_text(c->eps, eps);
    snprintf(out, VIT_EXPORT_HF_TEXT, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n", class,
             vit_model      ? "vit"
             : c->registers ? "dinov2_with_registers"
                            : "dinov2");
    add(out, "  \"hidden_size\": %d,\n  \"num_hidden_layers\": %d,\n  \"num_attention_heads\": %d,\n", c->dim, c->depth,
        c->heads);
    if (vit_model)
        add(out, "  \"intermediate_size\": %d,\n  \"encoder_stride\": %d,\n", c->hidden, c->patch);
    else
        TRY(add_dinov2(c, out, e));
    add(out,
        "  \"hidden_act\": \"gelu\",\n  \"hidden_dropout_prob\": 0.0,\n  \"attention_probs_dropout_prob\": 0.0,\n");
    add(out, "  \"layer_norm_eps\": %s,\n  \"qkv_bias\": %s,\n  \"num_channels\": 3,\n", eps, truth(c->qkv_bias));
    add(out, "  \"image_size\": %d,\n  \"patch_size\": %d,\n  \"torch_dtype\": \"float32\"\n}\n", c->grid * c->patch,
        c->patch);
    return ERR_OK;
}

void vit_export_hf_pixels(const vit *m, int side, char out[VIT_EXPORT_HF_TEXT])
{
    const vit_config *c = &m->c;
    const float *rows[] = {c->mean, c->std};
    if (!side) side = c->grid * c->patch;
    snprintf(out, VIT_EXPORT_HF_TEXT, "{\n  \"image_processor_type\": \"ViTImageProcessor\",\n");
    add(out, "  \"do_resize\": true,\n  \"size\": {\"height\": %d, \"width\": %d},\n  \"resample\": 2,\n", side, side);
    add(out, "  \"do_rescale\": true,\n  \"rescale_factor\": 0.00392156862745098,\n  \"do_normalize\": true,\n");
    for (int i = 0; i < 2; i++) {
        char v[3][VIT_NUMBER_TEXT];
        for (int k = 0; k < 3; k++) vit_number_text(rows[i][k], v[k]);
        add(out, "  \"image_%s\": [%s, %s, %s]%s\n", i ? "std" : "mean", v[0], v[1], v[2], i ? "" : ",");
    }
    add(out, "}\n");
}
