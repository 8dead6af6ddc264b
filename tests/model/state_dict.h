/* state_dict.h: small Vision Transformers made by a test as safetensors files, in each dialect of names, whole or
 * spoiled. A value depends on the tensor's DINOv2 name and the index alone, so that dialects agree. */
#ifndef RADAPT_TESTS_STATE_DICT_H
#define RADAPT_TESTS_STATE_DICT_H
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/rng.h"
#include "io/safetensors.h"
#include "model/vit.h"

#define ASSERT_OK(call)                                                                                                \
    do {                                                                                                               \
        err_code code_ = (call);                                                                                       \
        if (code_) fail_msg("%s: %s", err_name(code_), e.msg);                                                         \
    } while (0)

/* HF5: as transformers 5 has them in memory. */
typedef enum { NAMES_DINOV2, NAMES_TIMM, NAMES_HF_DINOV2, NAMES_HF_VIT, NAMES_HF5_DINOV2, NAMES_HF5_VIT } dict_names;

typedef struct {
    dict_names names;
    const char *prefix; /* NULL: none */
    int dim, depth, hidden, patch, grid, registers;
    bool class_token, layer_scale, mask_token, no_qkv_bias, swiglu;
    int pos_front;        /* rows of pos_embed before the patches' */
    const char *drop;     /* tensor, under the file's name without prefix, that is left out */
    const char *reshape;  /* that gets the shape below; values are cut or padded */
    size_t rows, cols;    /* cols 0: a vector */
    const char *spoil;    /* whose last value becomes NaN */
    const char *extra[3]; /* vectors of 7 that are put beside */
    tensor_type type;     /* TENSOR_F32, TENSOR_BF16 (values cut) */
    bool chunked;         /* DINOv2's training checkpoints, a block in each chunk */
} dict_spec;

enum { DICT_MAX = 256 };

typedef struct {
    tensor t[DICT_MAX];
    char name[DICT_MAX][160];
    size_t n;
} dict;

static inline float dict_value(const char *name, size_t i)
{
    uint64_t h = 5381;
    for (const char *c = name; *c; c++) h = h * 33 + (unsigned char)*c;
    rng r = rng_at(h, RNG_TEST, i, 0);
    return rng_normal(&r);
}

/* Deviation and mean that keep activations near one. */
static inline void dict_scale(const char *name, size_t cols, float *std, float *mean)
{
    bool norm = strstr(name, "norm") && strstr(name, "weight");
    *mean = norm ? 1.0f : strstr(name, "gamma") ? 0.7f : 0.0f;
    *std = norm || strstr(name, "gamma") || strstr(name, "bias") ? 0.2f : cols > 1 ? 1.2f / sqrtf((float)cols) : 0.5f;
    if (!strcmp(name, "pos_embed") || !strcmp(name, "register_tokens")) *std = 0.5f;
}

static inline void dict_put(dict *d, const dict_spec *s, const char *name, const float *values, size_t count, int dims,
                            const size_t *shape)
{
    if (s->drop && !strcmp(s->drop, name)) return;
    tensor *t = &d->t[d->n];
    snprintf(d->name[d->n], sizeof d->name[d->n], "%s%s", s->prefix ? s->prefix : "", name);
    *t = (tensor){.name = d->name[d->n], .type = s->type, .dims = dims};
    size_t total = 1;
    for (int i = 0; i < dims; i++) total *= t->shape[i] = shape[i];
    if (s->reshape && !strcmp(s->reshape, name)) {
        t->dims = s->cols ? 2 : 1;
        t->shape[0] = s->rows;
        t->shape[1] = s->cols;
        total = s->rows * (s->cols ? s->cols : 1);
    }
    float *copy = calloc(total, sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, values, (total < count ? total : count) * sizeof *copy);
    if (s->spoil && !strcmp(s->spoil, name)) copy[total - 1] = NAN;
    if (s->type == TENSOR_BF16)
        for (size_t i = 0; i < total; i++) memcpy((uint16_t *)(void *)copy + i, (char *)&copy[i] + 2, 2);
    t->data = copy;
    d->n++;
}

/* Hugging Face's names: of Dinov2Model's files, ViTModel's, and the same in memory. */
static const char *const dict_renamed[][5] = {
    {"norm1.", "norm1.", "layernorm_before.", "norm1.", "layernorm_before."},
    {"norm2.", "norm2.", "layernorm_after.", "norm2.", "layernorm_after."},
    {"attn.proj.", "attention.output.dense.", "attention.output.dense.", "attention.o_proj.", "attention.o_proj."},
    {"mlp.fc1.", "mlp.fc1.", "intermediate.dense.", "mlp.fc1.", "mlp.fc1."},
    {"mlp.fc2.", "mlp.fc2.", "output.dense.", "mlp.fc2.", "mlp.fc2."},
    {"mlp.w12.", "mlp.weights_in.", "", "", ""},
    {"mlp.w3.", "mlp.weights_out.", "", "mlp.down_proj.", ""},
    {"ls1.gamma", "layer_scale1.lambda1", "", "layer_scale1.lambda1", ""},
    {"ls2.gamma", "layer_scale2.lambda1", "", "layer_scale2.lambda1", ""}};
static const char *const dict_renamed_top[][2] = {{"cls_token", "embeddings.cls_token"},
                                                  {"mask_token", "embeddings.mask_token"},
                                                  {"register_tokens", "embeddings.register_tokens"},
                                                  {"pos_embed", "embeddings.position_embeddings"},
                                                  {"patch_embed.proj.", "embeddings.patch_embeddings.projection."},
                                                  {"norm.", "layernorm."}};

/* Rows in n parts, by the names of parts[]; file: what stands before these. */
static inline void dict_put_parts(dict *d, const dict_spec *s, const char *file, const char *const *parts, size_t n,
                                  const char *rest, const float *v, size_t count, int dims, const size_t *shape)
{
    char name[160];
    for (size_t i = 0; i < n; i++) {
        size_t part[2] = {shape[0] / n, dims > 1 ? shape[1] : 0};
        snprintf(name, sizeof name, "%.60s%s.%.30s", file, parts[i], rest);
        dict_put(d, s, name, v + i * count / n, count / n, dims, part);
    }
}

/* A tensor of block `block`, whose name goes on with rest. */
static inline void dict_add_hf_block(dict *d, const dict_spec *s, int block, const char *rest, const float *v,
                                     size_t count, int dims, const size_t *shape)
{
    static const char *const thirds[] = {"query", "key", "value"}, *const thirds5[] = {"q_proj", "k_proj", "v_proj"};
    static const char *const halves[] = {"gate_proj", "up_proj"};
    bool five = s->names >= NAMES_HF5_DINOV2, qkv = !strncmp(rest, "attn.qkv.", 9);
    char file[160];
    int n = snprintf(file, sizeof file, s->names == NAMES_HF5_VIT ? "layers.%d." : "encoder.layer.%d.", block);
    if (qkv || (five && !strncmp(rest, "mlp.w12.", 8))) {
        snprintf(file + n, sizeof file - (size_t)n, !qkv ? "mlp." : five ? "attention." : "attention.attention.");
        dict_put_parts(d, s, file, qkv ? five ? thirds5 : thirds : halves, qkv ? 3 : 2, strrchr(rest, '.') + 1, v,
                       count, dims, shape);
        return;
    }
    for (size_t i = 0; i < sizeof dict_renamed / sizeof *dict_renamed; i++) {
        size_t own = strlen(dict_renamed[i][0]);
        if (strncmp(rest, dict_renamed[i][0], own)) continue;
        snprintf(file + n, sizeof file - (size_t)n, "%s%s", dict_renamed[i][s->names - NAMES_HF_DINOV2 + 1],
                 rest + own);
        dict_put(d, s, file, v, count, dims, shape);
        return;
    }
}

/* name is DINOv2's; shape ends with a zero. */
static inline void dict_add(dict *d, const dict_spec *s, const char *name, const size_t shape[5])
{
    size_t count = 1, cols = 1;
    int dims = 0;
    for (; shape[dims]; dims++) {
        count *= shape[dims];
        if (dims) cols *= shape[dims];
    }
    float std, mean, *v = malloc(count * sizeof *v);
    assert_non_null(v);
    dict_scale(name, cols, &std, &mean);
    for (size_t i = 0; i < count; i++) v[i] = mean + std * dict_value(name, i);
    int block = 0, at = 0;
    char file[128];
    if (sscanf(name, "blocks.%d.%n", &block, &at) != 1) at = 0;
    if (s->names == NAMES_TIMM || s->names == NAMES_DINOV2) {
        bool timm = s->names == NAMES_TIMM, w12 = !strncmp(name + at, "mlp.w12.", 8);
        snprintf(file, sizeof file, "%s", name);
        if (timm && !strcmp(name, "register_tokens")) snprintf(file, sizeof file, "reg_token");
        if (timm && (w12 || !strncmp(name + at, "mlp.w3.", 7)))
            snprintf(file, sizeof file, "blocks.%d.mlp.fc%d.%s", block, w12 ? 1 : 2, strrchr(name, '.') + 1);
        if (s->chunked && at) snprintf(file, sizeof file, "blocks.%d.%d.%s", block, block, name + at);
        dict_put(d, s, file, v, count, dims, shape);
    } else if (at) {
        dict_add_hf_block(d, s, block, name + at, v, count, dims, shape);
    } else {
        for (size_t i = 0; i < sizeof dict_renamed_top / sizeof *dict_renamed_top; i++) {
            size_t n = strlen(dict_renamed_top[i][0]);
            if (strncmp(name, dict_renamed_top[i][0], n)) continue;
            snprintf(file, sizeof file, "%s%s", dict_renamed_top[i][1], name + n);
            dict_put(d, s, file, v, count, dims, shape);
            break;
        }
    }
    free(v);
}

/* The whole model into a file. */
static inline void dict_write(const dict_spec *s, const char *path)
{
    static dict d;
    err e = {0};
    size_t C = (size_t)s->dim, F = (size_t)s->hidden, p = (size_t)s->patch, G = (size_t)s->grid;
    d.n = 0;
#define ADD(name, ...) dict_add(&d, s, name, (size_t[5]){__VA_ARGS__})
    if (s->class_token) ADD("cls_token", 1, 1, C);
    if (s->registers) ADD("register_tokens", 1, (size_t)s->registers, C);
    if (s->mask_token) ADD("mask_token", 1, C);
    ADD("pos_embed", 1, (size_t)s->pos_front + G * G, C);
    ADD("patch_embed.proj.weight", C, 3, p, p);
    ADD("patch_embed.proj.bias", C);
    for (int i = 0; i < s->depth; i++) {
        char name[64];
#define BLOCK(rest, ...)                                                                                               \
    do {                                                                                                               \
        snprintf(name, sizeof name, "blocks.%d." rest, i);                                                             \
        ADD(name, __VA_ARGS__);                                                                                        \
    } while (0)
        BLOCK("norm1.weight", C);
        BLOCK("norm1.bias", C);
        BLOCK("norm2.weight", C);
        BLOCK("norm2.bias", C);
        BLOCK("attn.qkv.weight", 3 * C, C);
        if (!s->no_qkv_bias) BLOCK("attn.qkv.bias", 3 * C);
        BLOCK("attn.proj.weight", C, C);
        BLOCK("attn.proj.bias", C);
        if (s->swiglu) {
            BLOCK("mlp.w12.weight", 2 * F, C);
            BLOCK("mlp.w12.bias", 2 * F);
            BLOCK("mlp.w3.weight", C, F);
            BLOCK("mlp.w3.bias", C);
        } else {
            BLOCK("mlp.fc1.weight", F, C);
            BLOCK("mlp.fc1.bias", F);
            BLOCK("mlp.fc2.weight", C, F);
            BLOCK("mlp.fc2.bias", C);
        }
        if (s->layer_scale) {
            BLOCK("ls1.gamma", C);
            BLOCK("ls2.gamma", C);
        }
    }
    ADD("norm.weight", C);
    ADD("norm.bias", C);
#undef BLOCK
#undef ADD
    for (int i = 0; i < 3 && s->extra[i]; i++) {
        float seven[7] = {0};
        dict_put(&d, s, s->extra[i], seven, 7, 1, (size_t[]){7});
    }
    err_code rc = safetensors_write(path, d.t, d.n, NULL, NULL, 0, &e);
    for (size_t i = 0; i < d.n; i++) free((void *)(uintptr_t)d.t[i].data);
    if (rc) fail_msg("%s", e.msg);
}

/* A file of its own for the process; the caller unlinks. */
static inline const char *dict_path(void)
{
    static char path[64];
    snprintf(path, sizeof path, "/tmp/radapt_vit_%ld.safetensors", (long)getpid());
    return path;
}

/* The largest difference over the largest of b. */
static inline double worst_ratio(const float *a, const float *b, size_t n)
{
    double worst = 0, most = 1e-30;
    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)a[i] - b[i]));
        most = fmax(most, fabs(b[i]));
    }
    return worst / most;
}

#endif
