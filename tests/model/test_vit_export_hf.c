/* config.json and preprocessor_config.json as Hugging Face's classes read them; what they cannot say is refused. That
 * from_pretrained gives the same features: tests/golden/parity.py. */
#include "model/vit_export_hf.h"

#include <jansson.h>

#include "tests/model/state_dict.h"

/* A string, "true", "false" or a number as text. */
static const char *text_of(const json_t *root, const char *key)
{
    static char out[64];
    const json_t *j = json_object_get(root, key);
    if (!j) return "-";
    if (json_is_string(j)) return json_string_value(j);
    if (json_is_boolean(j)) return json_is_true(j) ? "true" : "false";
    if (json_is_integer(j))
        snprintf(out, sizeof out, "%lld", (long long)json_integer_value(j));
    else
        snprintf(out, sizeof out, "%g", json_real_value(j));
    return out;
}

static vit *open_model(device *d, const dict_spec *s)
{
    vit *m;
    err e = {0};
    dict_write(s, dict_path());
    ASSERT_OK(vit_open(&m, d, &(vit_source){.path = dict_path(), .heads = 3, .normalisation = "half"}, &e));
    unlink(dict_path());
    return m;
}

static void config(void **state)
{
    (void)state;
    static const dict_spec dinov2 = {.dim = 24, .depth = 2, .patch = 4, .grid = 3, .class_token = true, .pos_front = 1};
    static const struct {
        int hidden, registers;
        bool plain, swiglu, no_bias;
        const char *class; /* NULL: refused */
        const char *type, *ratio, *units, *registers_text;
    } rows[] = {
        {48, 0, false, false, false, "Dinov2Model", "dinov2", "2", "-", "-"},
        {96, 0, false, false, true, "Dinov2Model", "dinov2", "4", "-", "-"},
        {72, 2, false, false, false, "Dinov2WithRegistersModel", "dinov2_with_registers", "3", "-", "2"},
        {32, 0, false, true, false, "Dinov2Model", "dinov2", "2", "-", "-"},
        {64, 4, false, true, false, "Dinov2WithRegistersModel", "dinov2_with_registers", "4", "-", "4"},
        {40, 0, true, false, false, "ViTModel", "vit", "-", "40", "-"},
        {40, 0, false, false, false, NULL, NULL, NULL, NULL, NULL}, /* no ratio */
        {35, 0, false, true, false, NULL, NULL, NULL, NULL, NULL},  /* no multiple of 8 */
        {48, 2, true, false, false, NULL, NULL, NULL, NULL, NULL},  /* no such class */
    };
    device d;
    err e = {0};
    ASSERT_OK(device_open_cpu(&d, 1, COMPUTE_F32, &e));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[VIT_EXPORT_HF_TEXT];
        dict_spec s = dinov2;
        s.hidden = rows[i].hidden;
        s.registers = rows[i].registers;
        s.layer_scale = s.mask_token = !rows[i].plain;
        s.names = rows[i].plain ? NAMES_TIMM : NAMES_DINOV2;
        s.swiglu = rows[i].swiglu;
        s.no_qkv_bias = rows[i].no_bias;
        vit *m = open_model(&d, &s);
        err_code rc = vit_export_hf_config(m, text, &e);
        vit_close(m);
        if (!rows[i].class) {
            assert_int_equal(rc, ERR_UNSUPPORTED);
            e = (err){0};
            continue;
        }
        ASSERT_OK(rc);
        json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
        assert_non_null(root);
        const struct {
            const char *key, *value;
        } keys[] = {{"model_type", rows[i].type},
                    {"hidden_size", "24"},
                    {"num_hidden_layers", "2"},
                    {"num_attention_heads", "3"},
                    {"mlp_ratio", rows[i].ratio},
                    {"intermediate_size", rows[i].units},
                    {"num_register_tokens", rows[i].registers_text},
                    {"use_swiglu_ffn", rows[i].plain    ? "-"
                                       : rows[i].swiglu ? "true"
                                                        : "false"},
                    {"layerscale_value", rows[i].plain ? "-" : "1"},
                    {"qkv_bias", rows[i].no_bias ? "false" : "true"},
                    {"hidden_act", "gelu"},
                    {"layer_norm_eps", "1e-06"},
                    {"image_size", "12"},
                    {"patch_size", "4"},
                    {"num_channels", "3"}};
        assert_string_equal(json_string_value(json_array_get(json_object_get(root, "architectures"), 0)),
                            rows[i].class);
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
            if (strcmp(text_of(root, keys[k].key), keys[k].value) != 0)
                fail_msg("row %zu: %s is %s", i, keys[k].key, text_of(root, keys[k].key));
        json_decref(root);
    }
    device_close(&d);
}

static void pixels(void **state)
{
    (void)state;
    static const dict_spec s = {.names = NAMES_TIMM,
                                .dim = 24,
                                .depth = 1,
                                .hidden = 24,
                                .patch = 4,
                                .grid = 3,
                                .class_token = true,
                                .pos_front = 1};
    device d;
    err e = {0};
    ASSERT_OK(device_open_cpu(&d, 1, COMPUTE_F32, &e));
    vit *m = open_model(&d, &s);
    ASSERT_OK(vit_normalise(m, "0.1,0.2,0.3/0.4,0.5,1e-3", &e));
    for (int i = 0; i < 2; i++) {
        char text[VIT_EXPORT_HF_TEXT];
        double v[6];
        int height, width;
        vit_export_hf_pixels(m, i ? 20 : 0, text);
        json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
        assert_int_equal(json_unpack(root, "{s:{s:i,s:i},s:[f,f,f],s:[f,f,f]}", "size", "height", &height, "width",
                                     &width, "image_mean", v, v + 1, v + 2, "image_std", v + 3, v + 4, v + 5),
                         0);
        assert_true(height == (i ? 20 : 12) && width == height);
        assert_true(v[0] == 0.1 && v[1] == 0.2 && v[2] == 0.3 && v[3] == 0.4 && v[4] == 0.5 && v[5] == 1e-3);
        assert_string_equal(text_of(root, "image_processor_type"), "ViTImageProcessor");
        assert_true(fabs(json_real_value(json_object_get(root, "rescale_factor")) - 1.0 / 255) < 1e-15);
        json_decref(root);
    }
    vit_close(m);
    device_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(config), cmocka_unit_test(pixels)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
