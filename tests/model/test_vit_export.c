/* A model written for each library is, read again, the model that it was: same output, with what was trained in its
 * weights; names and shapes are that library's; what has no place there is refused. */
#include "model/vit_export.h"

#include "tests/model/state_dict.h"

enum { B = 2, C = 24 };
#define OWN "0.485,0.25,0.3/0.1,0.123456789,1.5"

static const dict_spec dinov2 = {.names = NAMES_DINOV2,
                                 .dim = C,
                                 .depth = 2,
                                 .hidden = 40,
                                 .patch = 4,
                                 .grid = 3,
                                 .class_token = true,
                                 .layer_scale = true,
                                 .mask_token = true,
                                 .pos_front = 1};

static dict_spec spec_of(const char *what)
{
    dict_spec s = dinov2;
    s.swiglu = strstr(what, "swiglu") != NULL;
    if (strstr(what, "registers")) s.registers = 2;
    if (strstr(what, "plain")) s.layer_scale = s.mask_token = false;
    if (strstr(what, "plain")) s.names = NAMES_TIMM;
    if (strstr(what, "no class position")) s.pos_front = 0;
    if (strstr(what, "patches only")) s.class_token = false;
    if (strstr(what, "patches only")) s.pos_front = 0;
    if (strstr(what, "no bias")) s.no_qkv_bias = true;
    return s;
}

static const char *export_path(void)
{
    static char path[80];
    snprintf(path, sizeof path, "%s.export", dict_path());
    return path;
}

/* out (B,T,C) of one pass over noise, a third of the patches masked if wanted; the caller frees. */
static float *forward(vit *m, bool masked, size_t *n)
{
    device *d = vit_device(m);
    size_t side = (size_t)vit_get_config(m)->grid * 4, pixels = B * 3 * side * side;
    vit_pass a = {0};
    arena dry = {0}, real;
    err e = {0};
    dv *memory, *x, *mask;
    ASSERT_OK(vit_pass_plan(&a, &dry, m, B, side, side, VIT_INFER, &e));
    ASSERT_OK(d->op->alloc(d, dry.used, &memory, &e));
    arena_init(&real, memory, dry.used);
    ASSERT_OK(vit_pass_plan(&a, &real, m, B, side, side, VIT_INFER, &e));
    ASSERT_OK(device_reserve(d, vit_pass_work_bytes(m, B, side, side, VIT_INFER), &e));
    ASSERT_OK(d->op->alloc(d, pixels * sizeof(float), &x, &e));
    ASSERT_OK(d->op->alloc(d, B * a.P, &mask, &e));
    *n = B * a.T * C;
    float *out = malloc(*n * sizeof *out), *noise = malloc(pixels * sizeof *noise);
    uint8_t hidden[64] = {0};
    assert_true(out && noise && B * a.P <= sizeof hidden);
    rng r = rng_at(4, RNG_TEST, 0, 0);
    for (size_t i = 0; i < pixels; i++) noise[i] = rng_normal(&r);
    for (size_t i = 0; i < B * a.P; i += 3) hidden[i] = 1;
    d->op->upload(d, x, noise, pixels * sizeof *noise);
    d->op->upload(d, mask, hidden, B * a.P);
    vit_patches(m, VIT_STUDENT, &a, x);
    vit_fwd(m, VIT_STUDENT, &a, a.patches, masked ? mask : NULL);
    d->op->download(d, out, a.out, *n * sizeof *out);
    ASSERT_OK(device_sync(d, &e));
    dv *all[] = {memory, x, mask};
    for (size_t i = 0; i < 3; i++) d->op->free(d, all[i]);
    vit_pass_fini(&a);
    free(noise);
    return out;
}

/* The model of a spec with everything in it moved, by a method or by low-rank updates, and merged. */
static vit *trained(device *d, const char *what, bool lora)
{
    dict_spec s = spec_of(what);
    vit *m;
    err e = {0};
    param_set ps = {0};
    peft_spec spec = {.method = METHOD_FULL};
    if (lora) spec = (peft_spec){.method = METHOD_LORA, .rank = 2, .alpha = 4, .targets = PEFT_K | PEFT_FC1 | PEFT_FC2};
    dict_write(&s, dict_path());
    ASSERT_OK(vit_open(&m, d, &(vit_source){.path = dict_path(), .heads = 3, .normalisation = OWN}, &e));
    unlink(dict_path());
    ASSERT_OK(vit_train(m, &spec, &ps, &e));
    for (size_t p = 0; p < ps.n; p++) {
        size_t n = ps.p[p].rows * ps.p[p].cols;
        float *v = malloc(n * sizeof *v);
        assert_non_null(v);
        d->op->download(d, v, ps.p[p].master, n * sizeof *v);
        for (size_t i = 0; i < n; i++) v[i] = v[i] * 0.9f + 0.01f * (float)(i % 7);
        d->op->upload(d, ps.p[p].master, v, n * sizeof *v);
        free(v);
    }
    d->op->refresh(d, ps.p, ps.n);
    ASSERT_OK(vit_merge(m, false, &e));
    param_set_free(d, &ps);
    return m;
}

static const vit_names formats[] = {VIT_NAMES_DINOV2, VIT_NAMES_TIMM, VIT_NAMES_HF_DINOV2};

static void read_again(void **state)
{
    (void)state;
    static const struct {
        const char *what, *class[3]; /* NULL: refused */
    } rows[] = {
        {"dinov2", {"DinoVisionTransformer", "timm VisionTransformer", "Dinov2Model"}},
        {"dinov2, no bias", {"DinoVisionTransformer", "timm VisionTransformer", "Dinov2Model"}},
        {"swiglu", {"DinoVisionTransformer", "timm VisionTransformer", "Dinov2Model"}},
        {"swiglu, registers", {"DinoVisionTransformer", "timm VisionTransformer", "Dinov2WithRegistersModel"}},
        {"registers", {"DinoVisionTransformer", "timm VisionTransformer", "Dinov2WithRegistersModel"}},
        {"plain", {"DinoVisionTransformer", "timm VisionTransformer", "ViTModel"}},
        {"plain, no class position", {"DinoVisionTransformer", "timm VisionTransformer", "ViTModel"}},
        {"plain, registers", {"DinoVisionTransformer", "timm VisionTransformer", NULL}},
        {"plain, swiglu", {"DinoVisionTransformer", "timm VisionTransformer", NULL}},
        {"plain, patches only", {NULL, "timm VisionTransformer", NULL}},
    };
    device d;
    err e = {0};
    ASSERT_OK(device_open_cpu(&d, 1, COMPUTE_F32, &e));
    for (size_t i = 0; i < sizeof rows / sizeof *rows * 6; i++) {
        size_t row = i / 6, format = i / 2 % 3, n, again_n;
        vit *m = trained(&d, rows[row].what, i % 2), *again;
        bool vit_model = rows[row].class[format] && !strcmp(rows[row].class[format], "ViTModel");
        char numbers[2][VIT_NORMALISATION_TEXT];
        bool masked = !vit_model && formats[format] != VIT_NAMES_TIMM; /* there is no mask token */
        err_code rc = vit_export(m, formats[format], export_path(), NULL, &e);
        if (!rows[row].class[format]) {
            assert_int_equal(rc, ERR_UNSUPPORTED);
            assert_int_not_equal(access(export_path(), F_OK), 0);
            e = (err){0};
            vit_close(m);
            continue;
        }
        ASSERT_OK(rc);
        float *before = forward(m, masked, &n);
        ASSERT_OK(vit_open(&again, &d, &(vit_source){.path = export_path()}, &e));
        assert_int_equal(vit_get_config(again)->heads, 3); /* width 24: by no guess */
        assert_int_equal(vit_normalisation_from(again), VIT_NORMALISATION_FILE);
        vit_normalisation_text(m, numbers[0]);
        vit_normalisation_text(again, numbers[1]);
        assert_string_equal(numbers[0], numbers[1]);
        float *after = forward(again, masked, &again_n);
        assert_int_equal(n, again_n);
        double worst = 0;
        for (size_t k = 0; k < n; k++) worst = fmax(worst, fabs((double)before[k] - after[k]));
        if (worst > 0) fail_msg("%s as %zu: %g away", rows[row].what, format, worst);
        safetensors f;
        ASSERT_OK(safetensors_open(&f, export_path(), &e));
        assert_string_equal(safetensors_meta(&f, "class"), rows[row].class[format]);
        assert_string_equal(safetensors_meta(&f, "format"), "pt");
        assert_string_equal(safetensors_meta(&f, "image_size"), "12");
        safetensors_close(&f);
        free(before);
        free(after);
        vit_close(m);
        vit_close(again);
        unlink(export_path());
    }
    device_close(&d);
}

/* What the metadata says, byte for byte the same each time; and what is told on loading comes first. */
static void metadata(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value[2];
    } rows[] = {{"format", {"pt", "pt"}},
                {"class", {"Dinov2Model", "Dinov2Model"}},
                {"heads", {"3", "3"}},
                {"eps", {"1e-06", "1e-06"}},
                {"image_size", {"12", "12"}},
                {"image_mean", {"0.485,0.25,0.3", "0.485,0.25,0.3"}},
                {"image_std", {"0.1,0.12345679,1.5", "0.1,0.12345679,1.5"}},
                {"method", {NULL, "apla,lora"}},
                {"trained_side", {NULL, "8"}}};
    static const vit_export_note notes[] = {{0}, {.method = "apla,lora", .trained_side = 8}};
    device d;
    err e = {0};
    char first[HASH_HEX], second[HASH_HEX];
    ASSERT_OK(device_open_cpu(&d, 1, COMPUTE_F32, &e));
    vit *m = trained(&d, "dinov2", false), *told;
    for (int i = 0; i < 2; i++) {
        safetensors f;
        for (int k = 0; k < 2; k++) {
            ASSERT_OK(vit_export(m, VIT_NAMES_HF_DINOV2, export_path(), &notes[i], &e));
            ASSERT_OK(hash_file(export_path(), k ? second : first, &e));
        }
        assert_string_equal(first, second);
        ASSERT_OK(safetensors_open(&f, export_path(), &e));
        for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
            const char *found = safetensors_meta(&f, rows[k].key), *want = rows[k].value[i];
            if (!found != !want || (want && strcmp(found, want) != 0)) fail_msg("%s: %s", rows[k].key, found);
        }
        assert_string_equal(safetensors_meta(&f, "backbone_hash"), vit_hash(m));
        safetensors_close(&f);
    }
    ASSERT_OK(vit_open(&told, &d, &(vit_source){.path = export_path(), .heads = 2, .normalisation = "half"}, &e));
    assert_true(vit_get_config(told)->heads == 2 && vit_get_config(told)->mean[0] == 0.5f);
    assert_int_equal(vit_normalisation_from(told), VIT_NORMALISATION_GIVEN);
    unlink(export_path());
    vit_close(told);
    vit_close(m);
    device_close(&d);
}

static void names_and_shapes(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        vit_names format;
        size_t n;
        const char *name;
        int dims;
        size_t shape[4];
    } rows[] = {
        {"dinov2", VIT_NAMES_DINOV2, 35, "cls_token", 3, {1, 1, 24}},
        {"dinov2", VIT_NAMES_DINOV2, 35, "mask_token", 2, {1, 24}},
        {"dinov2", VIT_NAMES_DINOV2, 35, "pos_embed", 3, {1, 10, 24}},
        {"dinov2", VIT_NAMES_DINOV2, 35, "patch_embed.proj.weight", 4, {24, 3, 4, 4}},
        {"dinov2", VIT_NAMES_DINOV2, 35, "blocks.1.attn.qkv.weight", 2, {72, 24}},
        {"dinov2", VIT_NAMES_TIMM, 34, "blocks.1.ls2.gamma", 1, {24}},
        {"registers", VIT_NAMES_TIMM, 35, "pos_embed", 3, {1, 9, 24}},
        {"registers", VIT_NAMES_TIMM, 35, "reg_token", 3, {1, 2, 24}},
        {"registers", VIT_NAMES_DINOV2, 36, "register_tokens", 3, {1, 2, 24}},
        {"registers", VIT_NAMES_HF_DINOV2, 44, "embeddings.position_embeddings", 3, {1, 10, 24}},
        {"registers", VIT_NAMES_HF_DINOV2, 44, "embeddings.register_tokens", 3, {1, 2, 24}},
        {"dinov2", VIT_NAMES_HF_DINOV2, 43, "embeddings.mask_token", 2, {1, 24}},
        {"dinov2", VIT_NAMES_HF_DINOV2, 43, "encoder.layer.0.attention.attention.key.weight", 2, {24, 24}},
        {"dinov2", VIT_NAMES_HF_DINOV2, 43, "encoder.layer.0.attention.attention.value.bias", 1, {24}},
        {"swiglu", VIT_NAMES_HF_DINOV2, 43, "encoder.layer.1.mlp.weights_in.weight", 2, {80, 24}},
        {"swiglu", VIT_NAMES_DINOV2, 35, "blocks.1.mlp.w3.weight", 2, {24, 40}},
        {"swiglu", VIT_NAMES_TIMM, 34, "blocks.1.mlp.fc1.bias", 1, {80}},
        {"plain", VIT_NAMES_HF_DINOV2, 38, "encoder.layer.1.intermediate.dense.weight", 2, {40, 24}},
        {"plain, no class position", VIT_NAMES_TIMM, 30, "pos_embed", 3, {1, 9, 24}},
        {"plain, no class position", VIT_NAMES_HF_DINOV2, 38, "embeddings.position_embeddings", 3, {1, 10, 24}},
        {"plain, patches only", VIT_NAMES_TIMM, 29, "pos_embed", 3, {1, 9, 24}},
        {"plain, head", VIT_NAMES_TIMM, 32, "head.weight", 2, {5, 24}},
        {"plain, head", VIT_NAMES_TIMM, 32, "head.bias", 1, {5}},
        {"plain, head", VIT_NAMES_DINOV2, 31, "norm.weight", 1, {24}},
    };
    device d;
    err e = {0};
    static float weight[5 * C], bias[5];
    for (size_t i = 0; i < 5 * C; i++) weight[i] = (float)i;
    ASSERT_OK(device_open_cpu(&d, 1, COMPUTE_F32, &e));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        vit *m = trained(&d, rows[i].what, false);
        vit_export_head head = {weight, bias, 5};
        vit_export_note note = {.head = strstr(rows[i].what, "head") ? &head : NULL};
        safetensors f;
        ASSERT_OK(vit_export(m, rows[i].format, export_path(), &note, &e));
        ASSERT_OK(safetensors_open(&f, export_path(), &e));
        const tensor *t = safetensors_find(&f, rows[i].name);
        if (!t || f.n != rows[i].n) fail_msg("row %zu: %zu tensors, %s", i, f.n, t ? "and it" : "without it");
        assert_int_equal(t->type, TENSOR_F32);
        assert_int_equal(t->dims, rows[i].dims);
        for (int k = 0; k < t->dims; k++) assert_int_equal(t->shape[k], rows[i].shape[k]);
        if (!strcmp(rows[i].name, "head.weight")) assert_memory_equal(t->data, weight, sizeof weight);
        safetensors_close(&f);
        vit_close(m);
        unlink(export_path());
    }
    device_close(&d);
}

static void prompts_are_refused(void **state)
{
    (void)state;
    device d;
    err e = {0};
    vit *m;
    param_set ps = {0};
    dict_spec s = dinov2;
    ASSERT_OK(device_open_cpu(&d, 1, COMPUTE_F32, &e));
    dict_write(&s, dict_path());
    ASSERT_OK(vit_open(&m, &d, &(vit_source){.path = dict_path(), .heads = 3}, &e));
    unlink(dict_path());
    ASSERT_OK(vit_train(m, &(peft_spec){.method = METHOD_VPT, .prompts = 2}, &ps, &e));
    ASSERT_OK(vit_merge(m, false, &e));
    assert_int_equal(vit_export(m, VIT_NAMES_TIMM, export_path(), NULL, &e), ERR_UNSUPPORTED);
    assert_non_null(strstr(e.msg, "prompts"));
    assert_int_not_equal(access(export_path(), F_OK), 0);
    param_set_free(&d, &ps);
    vit_close(m);
    device_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(read_again), cmocka_unit_test(metadata),
                                       cmocka_unit_test(names_and_shapes), cmocka_unit_test(prompts_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
