/* Weights under every dialect's names give the same model; what cannot be computed is refused with the tensor's name.
 */
#include "tests/model/state_dict.h"

static const dict_spec whole = {.names = NAMES_DINOV2,
                                .dim = 24,
                                .depth = 2,
                                .hidden = 40,
                                .patch = 4,
                                .grid = 3,
                                .class_token = true,
                                .layer_scale = true,
                                .mask_token = true,
                                .pos_front = 1};

static device *the_device(void)
{
    static device d;
    err e = {0};
    if (!d.op) ASSERT_OK(device_open_cpu(&d, 1, COMPUTE_F32, &e));
    return &d;
}

static err_code open_spec(vit **m, const dict_spec *s, int heads, err *e)
{
    dict_write(s, dict_path());
    err_code rc = vit_open(m, the_device(), &(vit_source){.path = dict_path(), .heads = heads}, e);
    unlink(dict_path());
    return rc;
}

static void same_hash_by_any_name(void **state)
{
    (void)state;
    static const struct {
        dict_names names;
        const char *prefix;
        bool layer_scale, mask_token; /* ViTModel has neither */
        bool chunked;
    } rows[] = {{NAMES_DINOV2, NULL, true, true, false},
                {NAMES_DINOV2, "teacher.backbone.", true, true, true},
                {NAMES_DINOV2, "backbone.", true, true, false},
                {NAMES_DINOV2, "teacher.backbone.", true, true, false},
                {NAMES_DINOV2, "module.model.", true, true, false},
                {NAMES_HF_DINOV2, NULL, true, true, false},
                {NAMES_HF_DINOV2, "dinov2.", true, true, false},
                {NAMES_HF5_DINOV2, NULL, true, true, false},
                {NAMES_HF5_DINOV2, "dinov2.", true, true, false},
                {NAMES_TIMM, NULL, false, false, false},
                {NAMES_HF_VIT, "vit.", false, false, false},
                {NAMES_HF_VIT, NULL, false, false, false},
                {NAMES_HF5_VIT, NULL, false, false, false},
                {NAMES_HF5_VIT, "vit.", false, false, false}};
    char first[2][HASH_HEX] = {"", ""};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        dict_spec s = whole;
        vit *m;
        err e = {0};
        s.names = rows[i].names;
        s.prefix = rows[i].prefix;
        s.chunked = rows[i].chunked;
        s.layer_scale = rows[i].layer_scale;
        s.mask_token = rows[i].mask_token;
        ASSERT_OK(open_spec(&m, &s, 3, &e));
        const vit_config *c = vit_get_config(m);
        char *seen = first[s.layer_scale];
        if (!*seen) memcpy(seen, vit_hash(m), HASH_HEX);
        assert_string_equal(vit_hash(m), seen);
        assert_true(c->dim == 24 && c->depth == 2 && c->heads == 3 && c->patch == 4 && c->hidden == 40 &&
                    c->grid == 3 && c->registers == 0 && c->class_token && c->qkv_bias);
        assert_int_equal(c->layer_scale, s.layer_scale);
        assert_int_equal(c->pos, s.names >= NAMES_HF_DINOV2 ? POS_SIZE
                                 : s.mask_token             ? POS_DINOV2
                                                            : POS_SIZE_ANTIALIAS);
        assert_true(c->eps == (s.names == NAMES_HF_VIT || s.names == NAMES_HF5_VIT ? 1e-12f : 1e-6f));
        assert_true(c->mean[0] == (s.layer_scale ? 0.485f : 0.5f));
        vit_close(m);
    }
    assert_string_not_equal(first[0], first[1]);
}

/* A gated MLP in one piece, by timm's names of the plain one, and in halves. */
static void swiglu_by_any_name(void **state)
{
    (void)state;
    static const struct {
        dict_names names;
        bool mask_token, chunked;
        pos_interpolation pos;
    } rows[] = {{NAMES_DINOV2, true, false, POS_DINOV2},        {NAMES_DINOV2, true, true, POS_DINOV2},
                {NAMES_HF_DINOV2, true, false, POS_SIZE},       {NAMES_HF5_DINOV2, true, false, POS_SIZE},
                {NAMES_TIMM, false, false, POS_SIZE_ANTIALIAS}, {NAMES_DINOV2, false, false, POS_SIZE_ANTIALIAS}};
    char first[2][HASH_HEX] = {"", ""};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        dict_spec s = whole;
        vit *m;
        err e = {0};
        s.names = rows[i].names;
        s.mask_token = rows[i].mask_token;
        s.chunked = rows[i].chunked;
        s.swiglu = true;
        s.hidden = 35;
        ASSERT_OK(open_spec(&m, &s, 3, &e));
        const vit_config *c = vit_get_config(m);
        char *seen = first[s.mask_token];
        if (!*seen) memcpy(seen, vit_hash(m), HASH_HEX);
        assert_string_equal(vit_hash(m), seen);
        assert_true(c->swiglu && c->hidden == 35 && c->pos == rows[i].pos);
        vit_close(m);
    }
}

/* Half-width numbers are read as what they are. */
static void half_width(void **state)
{
    (void)state;
    dict_spec s = whole;
    vit *m[2];
    err e = {0};
    s.type = TENSOR_BF16;
    ASSERT_OK(open_spec(&m[0], &s, 3, &e));
    s.type = TENSOR_F32;
    ASSERT_OK(open_spec(&m[1], &s, 3, &e));
    assert_string_not_equal(vit_hash(m[0]), vit_hash(m[1]));
    param_set ps[2] = {{0}};
    for (int i = 0; i < 2; i++) ASSERT_OK(vit_train(m[i], &(peft_spec){.method = METHOD_FULL}, &ps[i], &e));
    const float *a = (const float *)param_find(&ps[0], "blocks.1.mlp.fc2.weight")->master,
                *b = (const float *)param_find(&ps[1], "blocks.1.mlp.fc2.weight")->master;
    for (size_t i = 0; i < 24 * 40; i++) assert_true(fabsf(a[i] - b[i]) <= fabsf(b[i]) / 128);
    for (int i = 0; i < 2; i++) {
        param_set_free(the_device(), &ps[i]);
        vit_close(m[i]);
    }
}

/* Where the class token's and the registers' positions are kept differs: pos has 1 + G*G rows always. */
static void positions(void **state)
{
    (void)state;
    static const struct {
        dict_names names;
        bool class_token;
        int registers, front;
        int own; /* rows of the file's table before the patches' that are the class token's: 1, or 0: zeros */
    } rows[] = {
        {NAMES_DINOV2, true, 0, 1, 1}, /* DINOv2 */
        {NAMES_DINOV2, true, 4, 1, 1}, /* DINOv2 with registers */
        {NAMES_TIMM, true, 4, 0, 0},   /* folded into the class token */
        {NAMES_TIMM, true, 4, 5, 1},   /* registers have positions, too */
        {NAMES_TIMM, false, 0, 0, 0},  /* no class token */
        {NAMES_TIMM, false, 4, 4, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        dict_spec s = whole;
        vit *m;
        err e = {0};
        param_set ps = {0};
        s.names = rows[i].names;
        s.class_token = rows[i].class_token;
        s.registers = rows[i].registers;
        s.pos_front = rows[i].front;
        ASSERT_OK(open_spec(&m, &s, 3, &e));
        ASSERT_OK(vit_train(m, &(peft_spec){.method = METHOD_FULL}, &ps, &e));
        assert_int_equal(vit_get_config(m)->grid, 3);
        assert_int_equal(vit_get_config(m)->registers, rows[i].registers);
        const param *pos = param_find(&ps, "pos_embed"), *reg = param_find(&ps, "register_tokens");
        const float *p = (const float *)pos->master;
        assert_int_equal(pos->rows, 10);
        for (size_t k = 0; k < 24; k++) {
            assert_true(p[k] == (rows[i].own ? 0.5f * dict_value("pos_embed", k) : 0));
            size_t file = (size_t)rows[i].front * 24 + k;
            assert_true(p[24 + k] == 0.5f * dict_value("pos_embed", file));
            assert_true(p[9 * 24 + k] == 0.5f * dict_value("pos_embed", file + 8 * 24));
        }
        assert_int_equal(reg != NULL, rows[i].registers > 0);
        if (reg) {
            bool added = rows[i].front >= rows[i].registers;
            size_t at = 24 + 5, from = at + (rows[i].class_token ? 24 : 0); /* second register */
            float expected = 0.5f * dict_value("register_tokens", at);
            if (added) expected += 0.5f * dict_value("pos_embed", from);
            assert_true(((const float *)reg->master)[at] == expected);
        }
        param_set_free(the_device(), &ps);
        vit_close(m);
    }
}

static void refused(void **state)
{
    (void)state;
    static const struct {
        const char *drop, *reshape;
        size_t rows, cols;
        const char *spoil, *extra;
        int heads;
        err_code code;
        const char *message;
    } table[] = {
        {.code = ERR_OK},
        {.extra = "head.weight", .code = ERR_OK},
        {.extra = "linear.bias", .code = ERR_OK},
        {.drop = "mask_token", .code = ERR_OK},
        {.drop = "patch_embed.proj.weight", .code = ERR_FORMAT, .message = "no Vision Transformer"},
        {.drop = "pos_embed", .code = ERR_UNSUPPORTED, .message = "positional"},
        {.drop = "norm.bias", .code = ERR_FORMAT, .message = "norm.bias is not there"},
        {.drop = "blocks.1.attn.qkv.bias", .code = ERR_FORMAT, .message = "blocks.1.attn.qkv.bias is not there"},
        {.drop = "blocks.1.norm1.weight", .code = ERR_UNSUPPORTED, .message = "blocks.1."},
        {.drop = "blocks.0.norm1.weight", .code = ERR_FORMAT, .message = "0 blocks"},
        {.drop = "blocks.0.mlp.fc1.weight", .code = ERR_FORMAT, .message = "blocks.0.mlp.fc1.weight"},
        {.drop = "blocks.1.ls2.gamma", .code = ERR_FORMAT, .message = "blocks.1.ls2.gamma"},
        {.reshape = "blocks.1.attn.qkv.weight",
         .rows = 48,
         .cols = 24,
         .code = ERR_SHAPE,
         .message = "blocks.1.attn.qkv.weight is 48x24, expected 72x24"},
        {.reshape = "blocks.1.mlp.fc2.weight", /* transposed: as many values */
         .rows = 40,
         .cols = 24,
         .code = ERR_SHAPE,
         .message = "blocks.1.mlp.fc2.weight is 40x24, expected 24x40"},
        {.reshape = "blocks.0.norm2.bias", .rows = 23, .code = ERR_SHAPE, .message = "is 23, expected 24"},
        {.reshape = "cls_token", .rows = 25, .code = ERR_SHAPE, .message = "cls_token is 25, expected 24"},
        {.reshape = "patch_embed.proj.weight", .rows = 24, .cols = 48, .code = ERR_SHAPE, .message = "24x48"},
        {.reshape = "pos_embed", .rows = 9, .cols = 25, .code = ERR_SHAPE, .message = "pos_embed is 9x25"},
        {.reshape = "pos_embed", .rows = 12, .cols = 24, .code = ERR_SHAPE, .message = "square grid"},
        {.reshape = "blocks.0.mlp.fc1.weight", /* as wide as gates would be: then all of the MLP must be so */
         .rows = 80,
         .cols = 24,
         .code = ERR_SHAPE,
         .message = "blocks.0.mlp.w12.bias is 40, expected 80"},
        {.reshape = "blocks.0.mlp.fc1.weight", .rows = 41, .cols = 24, .code = ERR_SHAPE, .message = "expected"},
        {.spoil = "blocks.1.mlp.fc1.bias", .code = ERR_NUMERIC, .message = "blocks.1.mlp.fc1.bias"},
        {.spoil = "pos_embed", .code = ERR_NUMERIC, .message = "pos_embed"},
        {.extra = "blocks.0.mlp.w12.weight", .code = ERR_UNSUPPORTED, .message = "blocks.0.mlp.w12.weight"},
        {.extra = "dist_token", .code = ERR_UNSUPPORTED, .message = "distilled DeiT"},
        {.extra = "blocks.0.attn.q_norm.weight", .code = ERR_UNSUPPORTED, .message = "blocks.0.attn.q_norm.weight"},
        {.extra = "norm_pre.weight", .code = ERR_UNSUPPORTED, .message = "norm_pre.weight"},
        {.extra = "register_tokens", .code = ERR_SHAPE, .message = "register_tokens is 7"},
        {.heads = 5, .code = ERR_SHAPE, .message = "heads"},
        {.heads = -1, .code = ERR_SHAPE, .message = "heads"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        dict_spec s = whole;
        vit *m = NULL;
        err e = {0};
        s.drop = table[i].drop;
        s.reshape = table[i].reshape;
        s.rows = table[i].rows;
        s.cols = table[i].cols;
        s.spoil = table[i].spoil;
        s.extra[0] = table[i].extra;
        err_code rc = open_spec(&m, &s, table[i].heads ? table[i].heads : 3, &e);
        if (rc != table[i].code) fail_msg("row %zu: %s (%s)", i, err_name(rc), e.msg);
        if (table[i].message && !strstr(e.msg, table[i].message)) fail_msg("row %zu says: %s", i, e.msg);
        assert_int_equal(m == NULL, rc != ERR_OK);
        vit_close(m);
    }
}

/* Of what is kept in parts each is looked for. */
static void lost_parts(void **state)
{
    (void)state;
    static const struct {
        dict_names names;
        const char *drop, *message;
    } rows[] = {{NAMES_HF_DINOV2, "encoder.layer.1.attention.attention.value.weight", "part 3 of 3"},
                {NAMES_HF5_DINOV2, "encoder.layer.0.attention.k_proj.bias", "part 2 of 3"},
                {NAMES_HF5_DINOV2, "encoder.layer.1.mlp.up_proj.weight", "part 2 of 2"},
                {NAMES_HF5_DINOV2, "encoder.layer.1.mlp.gate_proj.bias", "w12.bias is not there"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        dict_spec s = whole;
        vit *m;
        err e = {0};
        s.names = rows[i].names;
        s.swiglu = true;
        s.drop = rows[i].drop;
        assert_int_equal(open_spec(&m, &s, 3, &e), ERR_FORMAT);
        if (!strstr(e.msg, rows[i].message)) fail_msg("row %zu says: %s", i, e.msg);
    }
}

static void heads_are_guessed(void **state)
{
    (void)state;
    dict_spec s = whole;
    vit *m;
    err e = {0};
    assert_int_equal(open_spec(&m, &s, 0, &e), ERR_SHAPE); /* 24 wide */
    assert_non_null(strstr(e.msg, "heads"));
    s.dim = 128;
    e = (err){0};
    ASSERT_OK(open_spec(&m, &s, 0, &e));
    assert_int_equal(vit_get_config(m)->heads, 2);
    vit_close(m);
}

/* Two models in a file: the teacher's is meant; without one nobody knows. */
static void two_models(void **state)
{
    (void)state;
    dict_spec s = whole;
    vit *m;
    err e = {0};
    ASSERT_OK(open_spec(&m, &s, 3, &e));
    char plain[HASH_HEX];
    memcpy(plain, vit_hash(m), HASH_HEX);
    vit_close(m);
    s.prefix = "teacher.backbone.";
    s.extra[0] = "x";
    dict_write(&s, dict_path());
    /* The extra tensor's name gets the prefix: "teacher.backbone.x". Put the other model's in by hand. */
    safetensors f;
    ASSERT_OK(safetensors_open(&f, dict_path(), &e));
    tensor *t = malloc((f.n + 1) * sizeof *t);
    assert_non_null(t);
    memcpy(t, f.tensors, f.n * sizeof *t);
    float other[24 * 48] = {0};
    t[f.n] =
        (tensor){.name = "student.backbone.patch_embed.proj.weight", .dims = 4, .shape = {24, 3, 4, 4}, .data = other};
    char both[80];
    snprintf(both, sizeof both, "%s.both", dict_path());
    ASSERT_OK(safetensors_write(both, t, f.n + 1, NULL, NULL, 0, &e));
    ASSERT_OK(vit_open(&m, the_device(), &(vit_source){.path = both, .heads = 3}, &e));
    assert_string_equal(vit_hash(m), plain);
    vit_close(m);
    for (size_t i = 0; i < f.n; i++)
        if (!strcmp(t[i].name, "teacher.backbone.patch_embed.proj.weight")) t[i].name = "ema.patch_embed.proj.weight";
    ASSERT_OK(safetensors_write(both, t, f.n + 1, NULL, NULL, 0, &e));
    assert_int_equal(vit_open(&m, the_device(), &(vit_source){.path = both, .heads = 3}, &e), ERR_CONFLICT);
    safetensors_close(&f);
    free(t);
    unlink(both);
    unlink(dict_path());
}

static void named_shapes(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        err_code code;
        int dim, depth, heads, patch, grid, hidden;
    } rows[] = {{"vit-ti/16", ERR_OK, 192, 12, 3, 16, 14, 768},
                {"vit-s/14", ERR_OK, 384, 12, 6, 14, 16, 1536},
                {"vit-b/16", ERR_OK, 768, 12, 12, 16, 14, 3072},
                {"vit-l/14", ERR_OK, 1024, 24, 16, 14, 16, 4096},
                {"vit-g/14", ERR_OK, 1536, 40, 24, 14, 16, 4096},
                {"dim=24,depth=2,heads=3,patch=4,grid=5,swiglu=1", ERR_OK, 24, 2, 3, 4, 5, 64},
                {"dim=100,depth=2,heads=2,patch=4,grid=5,swiglu=1", ERR_OK, 100, 2, 2, 4, 5, 272},
                {"dim=64,depth=2,heads=2,patch=16,grid=14", ERR_OK, 64, 2, 2, 16, 14, 256},
                {"dim=64,depth=2,heads=2,patch=16,grid=14,hidden=100", ERR_OK, 64, 2, 2, 16, 14, 100},
                {"vit-s/15", ERR_NOTFOUND, 0, 0, 0, 0, 0, 0},
                {"vit-s/14x", ERR_NOTFOUND, 0, 0, 0, 0, 0, 0},
                {"vit-x/14", ERR_NOTFOUND, 0, 0, 0, 0, 0, 0},
                {"backbone.safetensors", ERR_NOTFOUND, 0, 0, 0, 0, 0, 0},
                {"", ERR_USAGE, 0, 0, 0, 0, 0, 0},
                {"dim=64,depth=2,heads=3,patch=16,grid=14", ERR_USAGE, 0, 0, 0, 0, 0, 0},
                {"dim=64,depth=2,heads=2,patch=16", ERR_USAGE, 0, 0, 0, 0, 0, 0},
                {"dim=64,depth=two", ERR_USAGE, 0, 0, 0, 0, 0, 0},
                {"dim=64,width=2", ERR_USAGE, 0, 0, 0, 0, 0, 0},
                {"dim=99999999999,depth=2,heads=1,patch=16,grid=14", ERR_USAGE, 0, 0, 0, 0, 0, 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        vit_config c = {0};
        err e = {0};
        err_code rc = vit_named_config(rows[i].name, &c, &e);
        if (rc != rows[i].code) fail_msg("%s: %s", rows[i].name, err_name(rc));
        if (rc) continue;
        assert_true(c.dim == rows[i].dim && c.depth == rows[i].depth && c.heads == rows[i].heads &&
                    c.patch == rows[i].patch && c.grid == rows[i].grid && c.hidden == rows[i].hidden && c.eps > 0);
        assert_int_equal(c.swiglu, strstr(rows[i].name, "swiglu") || strstr(rows[i].name, "-g/"));
    }
}

/* What the caller says, then what radapt's own files say, then a guess that knows when it may be wrong. */
static void normalisation(void **state)
{
    (void)state;
    static const struct {
        const char *what, *told, *mean, *std;
        bool layer_scale, mask_token;
        vit_normalisation_source from;
        float first;
    } rows[] = {
        {"DINOv2", NULL, NULL, NULL, true, true, VIT_NORMALISATION_GUESSED, 0.485f},
        {"timm's of DINOv2", "auto", NULL, NULL, true, false, VIT_NORMALISATION_GUESSED, 0.485f},
        {"AugReg or DeiT", "auto", NULL, NULL, false, false, VIT_NORMALISATION_DOUBTED, 0.5f},
        {"told", "imagenet", NULL, NULL, false, false, VIT_NORMALISATION_GIVEN, 0.485f},
        {"told by numbers", "0.1,0.1,0.1/1,1,1", "0.25,0,0", "1,1,1", false, false, VIT_NORMALISATION_GIVEN, 0.1f},
        {"its own", "auto", "0.25,0,0", "1,1,1", false, false, VIT_NORMALISATION_FILE, 0.25f},
        {"its own, and told", "imagenet", "0.25,0,0", "1,1,1", false, false, VIT_NORMALISATION_GIVEN, 0.485f},
        {"no deviation", "auto", "0.25,0,0", NULL, false, false, VIT_NORMALISATION_DOUBTED, 0.5f},
        {"a deviation of 0", "auto", "0.25,0,0", "1,0,1", false, false, VIT_NORMALISATION_DOUBTED, 0.5f},
        {"no numbers", "auto", "[0.25, 0, 0]", "[1, 1, 1]", true, true, VIT_NORMALISATION_GUESSED, 0.485f},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        dict_spec s = whole;
        safetensors f;
        vit *m;
        err e = {0};
        const char *keys[] = {"image_mean", "image_std", "heads"}, *values[] = {rows[i].mean, rows[i].std, "none"};
        size_t n = !rows[i].mean ? 0 : rows[i].std ? 3 : 1;
        s.layer_scale = rows[i].layer_scale;
        s.mask_token = rows[i].mask_token;
        if (!s.mask_token) s.names = NAMES_TIMM;
        dict_write(&s, dict_path());
        ASSERT_OK(safetensors_open(&f, dict_path(), &e));
        ASSERT_OK(safetensors_write(dict_path(), f.tensors, f.n, keys, values, n, &e));
        safetensors_close(&f);
        vit_source source = {.path = dict_path(), .heads = 3, .normalisation = rows[i].told};
        ASSERT_OK(vit_open(&m, the_device(), &source, &e));
        if (vit_normalisation_from(m) != rows[i].from || vit_get_config(m)->mean[0] != rows[i].first)
            fail_msg("%s: %d, %g", rows[i].what, vit_normalisation_from(m), (double)vit_get_config(m)->mean[0]);
        vit_close(m);
        unlink(dict_path());
    }
}

/* Heads and epsilon that radapt's own files say; what cannot be is as if it were not there. */
static void own_numbers(void **state)
{
    (void)state;
    static const struct {
        const char *heads, *eps;
        int want_heads;
        float want_eps;
    } rows[] = {{"4", "1e-05", 4, 1e-5f},  {"0", "0", 2, 1e-6f},     {"-1", "-1", 2, 1e-6f},
                {"7", "1", 2, 1e-6f},      {"1e9", "nan", 2, 1e-6f}, {"99999999999999999999", "inf", 2, 1e-6f},
                {"2x", "1e-5x", 2, 1e-6f}, {"", "", 2, 1e-6f}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        dict_spec s = whole;
        s.dim = 128;
        safetensors f;
        vit *m;
        err e = {0};
        const char *keys[] = {"heads", "eps"}, *values[] = {rows[i].heads, rows[i].eps};
        dict_write(&s, dict_path());
        ASSERT_OK(safetensors_open(&f, dict_path(), &e));
        ASSERT_OK(safetensors_write(dict_path(), f.tensors, f.n, keys, values, 2, &e));
        safetensors_close(&f);
        vit_source source = {.path = dict_path()};
        err_code rc = vit_open(&m, the_device(), &source, &e);
        print_message("%s %s: %s\n", rows[i].heads, rows[i].eps, rc ? e.msg : "opened");
        ASSERT_OK(rc);
        assert_int_equal(vit_get_config(m)->heads, rows[i].want_heads);
        assert_true(vit_get_config(m)->eps == rows[i].want_eps);
        vit_close(m);
        unlink(dict_path());
    }
}

static void random_weights(void **state)
{
    (void)state;
    vit *m[3];
    vit_source s = {0};
    err e = {0};
    ASSERT_OK(vit_named_config("dim=32,depth=2,heads=2,patch=8,grid=4,layer_scale=1", &s.random, &e));
    for (int i = 0; i < 3; i++) {
        s.seed = i == 2 ? 2 : 1;
        ASSERT_OK(vit_open(&m[i], the_device(), &s, &e));
    }
    assert_string_equal(vit_hash(m[0]), vit_hash(m[1]));
    assert_string_not_equal(vit_hash(m[0]), vit_hash(m[2]));
    size_t C = 32, F = 128, block = 4 * C + 2 * C + 3 * C * C + 3 * C + C * C + C + F * C + F + C * F + C;
    assert_int_equal(vit_backbone_params(m[0]), C + C + 17 * C + 192 * C + C + 2 * block + 2 * C);
    param_set ps = {0};
    ASSERT_OK(vit_train(m[0], &(peft_spec){.method = METHOD_FULL}, &ps, &e));
    const float *w = (const float *)param_find(&ps, "blocks.0.mlp.fc1.weight")->master;
    double sum = 0, square = 0;
    for (size_t i = 0; i < F * C; i++) {
        sum += w[i];
        square += (double)w[i] * w[i];
    }
    assert_true(fabs(sum / (double)(F * C)) < 0.002 && fabs(sqrt(square / (double)(F * C)) - 0.0176) < 0.001);
    assert_true(((const float *)param_find(&ps, "blocks.1.ls1.gamma")->master)[3] == 1);
    assert_true(((const float *)param_find(&ps, "norm.weight")->master)[3] == 1);
    assert_true(((const float *)param_find(&ps, "norm.bias")->master)[3] == 0);
    assert_true(((const float *)param_find(&ps, "mask_token")->master)[3] == 0);
    param_set_free(the_device(), &ps);
    for (int i = 0; i < 3; i++) vit_close(m[i]);
    s.random.heads = 5;
    assert_int_equal(vit_open(&m[0], the_device(), &s, &e), ERR_USAGE);
    assert_null(m[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_hash_by_any_name),
        cmocka_unit_test(swiglu_by_any_name),
        cmocka_unit_test(half_width),
        cmocka_unit_test(positions),
        cmocka_unit_test(refused),
        cmocka_unit_test(lost_parts),
        cmocka_unit_test(two_models),
        cmocka_unit_test(heads_are_guessed),
        cmocka_unit_test(named_shapes),
        cmocka_unit_test(normalisation),
        cmocka_unit_test(own_numbers),
        cmocka_unit_test(random_weights),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_close(the_device());
    return failed;
}
