/* vit_load.c: a Vision Transformer's shape and tensors from a file of weights, in each dialect of names (vit_name.h),
 * behind any prefix ("backbone.", "teacher.", "vit.", ...); DINOv2's training checkpoints have blocks.CHUNK.N. for
 * blocks.N. The patch weight gives width and patch size, the blocks that are there the depth, the positional table the
 * grid; then every tensor is compared with the shape that follows. A tensor of a block that we do not know means an
 * architecture that we do not compute: refused. Others (classifiers, poolers) are left out. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/rng.h"
#include "model/vit_impl.h"

enum { NAME_BYTES = 256, DEPTH_MAX = 128, DIM_MAX = 8192, HIDDEN_MAX = 16384, GRID_MAX = 512, PATCH_MAX = 64 };

typedef struct {
    vit *m;
    vit_names names; /* DINOv2's: or timm's */
    char prefix[NAME_BYTES];
    bool chunked; /* blocks.CHUNK.N. */
    int chunk[DEPTH_MAX];
    bool *used;                          /* (file.n) */
    size_t pos_rows, pos_first, pos_reg; /* rows of the file's table; row of the first patch; registers' rows */
    err *e;
} loading;

/* --- names */

static const tensor *find(const loading *l, const char *name)
{
    char full[3 * NAME_BYTES];
    snprintf(full, sizeof full, "%s%s", l->prefix, name);
    return weights_find(&l->m->file, full);
}

/* DINOv2 trains its blocks in chunks, each wrapped for itself: the file's name of a block's tensor. */
static const tensor *find_chunked(const loading *l, const char *name)
{
    char here[NAME_BYTES];
    int block, at = 0;
    if (!l->chunked || sscanf(name, "blocks.%d.%n", &block, &at) != 1 || !at) return find(l, name);
    if (block < 0 || block >= DEPTH_MAX) return NULL;
    snprintf(here, sizeof here, "blocks.%d.%d.%s", l->chunk[block], block, name + at);
    return find(l, here);
}

/* The file's tensors for a DINOv2 name: how many it should be, the first NULL if that is not there. */
static int find_parts(const loading *l, const char *name, const tensor *part[VIT_NAME_PARTS])
{
    char names[VIT_NAME_PARTS][VIT_NAME_BYTES];
    part[0] = NULL;
    int n = vit_name_parts(l->names, name, names);
    for (int i = 0; i < n; i++) part[i] = find_chunked(l, names[i]);
    if (l->names != VIT_NAMES_DINOV2 || part[0] || !vit_name_parts(VIT_NAMES_TIMM, name, names)) return n;
    part[0] = find_chunked(l, names[0]); /* in one piece, as DINOv2's */
    return 1;
}

static const tensor *find_dinov2(const loading *l, const char *name)
{
    const tensor *part[VIT_NAME_PARTS];
    find_parts(l, name, part);
    return part[0];
}

static const tensor *find_block(const loading *l, int block, const char *rest)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "blocks.%d.%s", block, rest);
    return find_dinov2(l, name);
}

/* A block keeps its own number behind its chunk's. */
static void find_chunks(loading *l)
{
    char name[NAME_BYTES];
    l->chunked = find(l, "blocks.0.0.norm1.weight") != NULL;
    for (int i = 0, chunk = 0; l->chunked && i < DEPTH_MAX; i++) {
        snprintf(name, sizeof name, "blocks.%d.%d.norm1.weight", chunk, i);
        if (!find(l, name)) chunk++;
        l->chunk[i] = chunk;
    }
}

/* Dialect and prefix from the patch weight's name. Where several models are in one file (DINOv2's training checkpoints)
 * the teacher is taken. */
static err_code find_dialect(loading *l)
{
    static const char *const ends[] = {"patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight"};
    const weights_file *f = &l->m->file;
    int found = 0;
    for (size_t i = 0; i < f->n; i++)
        for (int k = 0; k < 2; k++) {
            size_t n = strlen(f->tensors[i].name), tail = strlen(ends[k]);
            if (n < tail || n - tail >= sizeof l->prefix || strcmp(f->tensors[i].name + n - tail, ends[k])) continue;
            if (n > tail && f->tensors[i].name[n - tail - 1] != '.') continue;
            bool teacher = n > tail && strstr(f->tensors[i].name, "teacher") != NULL;
            if (found++ && !teacher) continue;
            memcpy(l->prefix, f->tensors[i].name, n - tail);
            l->prefix[n - tail] = 0;
            l->names = k ? VIT_NAMES_HF_DINOV2 : VIT_NAMES_DINOV2;
        }
    if (!found) FAIL(l->e, FORMAT, "no Vision Transformer in the file: no patch embedding by a name that is known");
    if (found > 1 && !strstr(l->prefix, "teacher"))
        FAIL(l->e, CONFLICT, "%d models in the file, and none of them is called teacher", found);
    if (l->names == VIT_NAMES_DINOV2)
        find_chunks(l);
    else if (find(l, "encoder.layer.0.layernorm_before.weight"))
        l->names = VIT_NAMES_HF_VIT;
    else if (find(l, "layers.0.layernorm_before.weight"))
        l->names = VIT_NAMES_HF5_VIT;
    else if (find(l, "encoder.layer.0.attention.q_proj.weight"))
        l->names = VIT_NAMES_HF5_DINOV2;
    return ERR_OK;
}

/* --- the shape */

static err_code wrong_shape(const loading *l, const char *name, const tensor *t, const char *expected)
{
    char text[96] = "";
    size_t n = 0;
    for (int i = 0; i < t->dims && n < sizeof text - 24; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%zu", i ? "x" : "", t->shape[i]);
    FAIL(l->e, SHAPE, "%s is %s, expected %s", name, text, expected);
}

static int exact_root(size_t n)
{
    int r = (int)lround(sqrt((double)n));
    return r > 0 && r <= GRID_MAX && (size_t)r * (size_t)r == n ? r : 0;
}

/* The table has a row for each patch, after rows for the class token and, in some timm models, the registers. */
static err_code read_positions(loading *l, const tensor *pos)
{
    vit_config *c = &l->m->c;
    size_t n = pos->dims ? pos->shape[pos->dims - 1] : 0, one = c->class_token ? 1 : 0, reg = (size_t)c->registers;
    if (pos->dims < 2 || n != (size_t)c->dim) return wrong_shape(l, "pos_embed", pos, "rows as wide as the model");
    l->pos_rows = pos->count / n;
    size_t front[] = {one, 0, one + reg};
    for (int i = 0; i < 3 && !c->grid; i++) {
        if (l->pos_rows <= front[i]) continue;
        c->grid = exact_root(l->pos_rows - front[i]);
        l->pos_first = front[i];
    }
    if (!c->grid) return wrong_shape(l, "pos_embed", pos, "a square grid of patches");
    l->pos_reg = l->pos_first > one ? reg : 0;
    return ERR_OK;
}

/* Gated (SwiGLU) by its names, or by timm's, which are the plain MLP's, where the first layer is twice as wide. */
static err_code read_mlp(loading *l)
{
    vit_config *c = &l->m->c;
    const tensor *part[VIT_NAME_PARTS], *fc1 = find_block(l, 0, "mlp.fc1.weight"),
                                        *fc2 = find_block(l, 0, "mlp.w3.weight");
    int parts = find_parts(l, "blocks.0.mlp.w12.weight", part);
    bool packed = fc1 && fc2 && fc1->dims == 2 && fc2->dims == 2 && fc1->shape[0] == 2 * fc2->shape[1];
    c->swiglu = fc1 ? part[0] == fc1 && packed : part[0] != NULL;
    if (c->swiglu) fc1 = part[0];
    if (!fc1 || fc1->dims != 2 || !fc1->shape[0]) FAIL(l->e, FORMAT, "blocks.0.mlp.fc1.weight is not there");
    if (fc1->shape[0] > HIDDEN_MAX) FAIL(l->e, LIMIT, "an MLP of %zu hidden units", fc1->shape[0]);
    c->hidden = (int)(c->swiglu && parts == 1 ? fc1->shape[0] / 2 : fc1->shape[0]);
    return ERR_OK;
}

/* What vit_export.h writes beside the tensors, where it is there and can be. */
static void read_own_numbers(const loading *l, int *heads, float *eps)
{
    enum { HEADS_MAX = 256 };
    const char *h = weights_meta(&l->m->file, "heads"), *x = weights_meta(&l->m->file, "eps");
    char *end = NULL;
    long n = h ? strtol(h, &end, 10) : 0;
    if (h && !*heads && n > 0 && n <= HEADS_MAX && !*end && l->m->c.dim % n == 0) *heads = (int)n;
    float f = x ? strtof(x, &end) : 0;
    if (x && f > 0 && f < 0.1f && !*end) *eps = f;
}

static err_code read_shape(loading *l, int heads)
{
    vit_config *c = &l->m->c;
    const tensor *patch = find_dinov2(l, "patch_embed.proj.weight"), *pos = find_dinov2(l, "pos_embed"), *reg;
    if (patch->dims != 4 || patch->shape[1] != 3 || patch->shape[2] != patch->shape[3])
        return wrong_shape(l, "patch_embed.proj.weight", patch, "(width)x3xPxP");
    if (patch->shape[0] < 1 || patch->shape[0] > DIM_MAX || patch->shape[2] < 1 || patch->shape[2] > PATCH_MAX)
        FAIL(l->e, LIMIT, "a model of width %zu and patches of %zu pixels", patch->shape[0], patch->shape[2]);
    c->dim = (int)patch->shape[0];
    c->patch = (int)patch->shape[2];
    if (!pos) FAIL(l->e, UNSUPPORTED, "the model has no positional table (rotary positions are not supported)");
    if (find(l, "dist_token") || find(l, "embeddings.distillation_token"))
        FAIL(l->e, UNSUPPORTED, "a distilled DeiT: its distillation token is not supported (the plain DeiT is)");
    c->class_token = find_dinov2(l, "cls_token") != NULL;
    if ((reg = find_dinov2(l, "register_tokens"))) {
        if (reg->count % patch->shape[0] || reg->count / patch->shape[0] > 64)
            return wrong_shape(l, "register_tokens", reg, "a few rows as wide as the model");
        c->registers = (int)(reg->count / patch->shape[0]);
    }
    TRY(read_positions(l, pos));

    while (c->depth < DEPTH_MAX && find_block(l, c->depth, "norm1.weight")) c->depth++;
    if (!c->depth || c->depth == DEPTH_MAX) FAIL(l->e, FORMAT, "%d blocks in the model", c->depth);
    TRY(read_mlp(l));
    c->layer_scale = find_block(l, 0, "ls1.gamma") != NULL;
    c->qkv_bias = find_block(l, 0, "attn.qkv.bias") != NULL;
    bool hugging_face = l->names != VIT_NAMES_DINOV2,
         vit_model = l->names == VIT_NAMES_HF_VIT || l->names == VIT_NAMES_HF5_VIT;
    c->eps = vit_model ? 1e-12f : 1e-6f;
    read_own_numbers(l, &heads, &c->eps);
    c->heads = heads ? heads : c->dim % 64 ? 0 : c->dim / 64;
    if (c->heads < 1 || c->dim % c->heads)
        FAIL(l->e, SHAPE, "a width of %d does not go into %s heads; the number of heads must be given", c->dim,
             heads ? "that many" : "64-wide");

    c->pos = c->registers                   ? POS_SIZE_ANTIALIAS
             : hugging_face                 ? POS_SIZE
             : find_dinov2(l, "mask_token") ? POS_DINOV2
                                            : POS_SIZE_ANTIALIAS;
    return ERR_OK;
}

/* --- the tensors */

typedef struct {
    vit *m;
    size_t n; /* of m->tensors; only counted while that is NULL */
} listing;

static vit_tensor *list(listing *k, const char *name, size_t rows, size_t cols)
{
    static vit_tensor counted;
    vit_tensor *t = k->m->tensors ? &k->m->tensors[k->n] : &counted;
    k->n++;
    *t = (vit_tensor){.rows = rows, .cols = cols};
    snprintf(t->name, sizeof t->name, "%.63s", name);
    return t;
}

static void list_vector(listing *k, vit_vector *v, size_t rows, size_t cols, const char *name)
{
    list(k, name, rows, cols)->vector = v;
    v->count = rows * cols;
    v->param = VIT_FROZEN;
}

static void list_linear(listing *k, vit_linear *w, size_t out, size_t in, bool bias, const char *name)
{
    char full[64];
    snprintf(full, sizeof full, "%.50s.weight", name);
    list(k, full, out, in)->linear = w;
    w->w[0] = (linear_w){.out = out, .in = in, .frozen = true, .version = 1};
    w->weight = w->bias = VIT_FROZEN;
    if (!bias) return;
    snprintf(full, sizeof full, "%.50s.bias", name);
    vit_tensor *t = list(k, full, out, 1);
    t->linear = w;
    t->is_bias = true;
}

/* Every tensor of the model in the order of hashes, seeds and params. */
static size_t list_all(vit *m)
{
    const vit_config *c = &m->c;
    size_t C = (size_t)c->dim, F = (size_t)c->hidden, p = (size_t)c->patch;
    listing k = {m, 0};
    m->cls.param = m->reg.param = VIT_FROZEN; /* also where the model has none */
    if (c->class_token) list_vector(&k, &m->cls, C, 1, "cls_token");
    if (c->registers) list_vector(&k, &m->reg, (size_t)c->registers, C, "register_tokens");
    list_vector(&k, &m->mask_token, C, 1, "mask_token");
    list_vector(&k, &m->pos, 1 + (size_t)c->grid * (size_t)c->grid, C, "pos_embed");
    list_linear(&k, &m->patch, C, 3 * p * p, true, "patch_embed.proj");
    for (int i = 0; i < c->depth; i++) {
        vit_block *b = &m->block[i];
        b->ls1.param = b->ls2.param = b->prompts.param = VIT_FROZEN;
        struct {
            vit_vector *v;
            const char *name;
        } vectors[] = {
            {&b->norm1_weight, "norm1.weight"}, {&b->norm1_bias, "norm1.bias"}, {&b->norm2_weight, "norm2.weight"},
            {&b->norm2_bias, "norm2.bias"},     {&b->ls1, "ls1.gamma"},         {&b->ls2, "ls2.gamma"}};
        struct {
            vit_linear *w;
            size_t out, in;
            bool bias;
            const char *name;
        } linears[] = {{&b->qkv, 3 * C, C, c->qkv_bias, "attn.qkv"},
                       {&b->proj, C, C, true, "attn.proj"},
                       {&b->fc1, c->swiglu ? 2 * F : F, C, true, c->swiglu ? "mlp.w12" : "mlp.fc1"},
                       {&b->fc2, C, F, true, c->swiglu ? "mlp.w3" : "mlp.fc2"}};
        char name[64];
        for (int j = 0; j < (c->layer_scale ? 6 : 4); j++) {
            snprintf(name, sizeof name, "blocks.%d.%s", i, vectors[j].name);
            list_vector(&k, vectors[j].v, C, 1, name);
        }
        for (int j = 0; j < 4; j++) {
            snprintf(name, sizeof name, "blocks.%d.%s", i, linears[j].name);
            list_linear(&k, linears[j].w, linears[j].out, linears[j].in, linears[j].bias, name);
        }
    }
    list_vector(&k, &m->norm_weight, C, 1, "norm.weight");
    list_vector(&k, &m->norm_bias, C, 1, "norm.bias");
    return k.n;
}

static err_code make_list(vit *m, err *e)
{
    m->block = calloc((size_t)m->c.depth, sizeof *m->block);
    if (!m->block) FAIL(e, NOMEM, "no memory for a model of %d blocks", m->c.depth);
    m->n_tensors = list_all(m);
    m->tensors = calloc(m->n_tensors, sizeof *m->tensors);
    if (!m->tensors) FAIL(e, NOMEM, "no memory for a model of %d blocks", m->c.depth);
    list_all(m);
    return ERR_OK;
}

/* --- the file's tensors in the list */

/* rows x cols; leading ones and trailing dimensions that multiply to cols are the same thing. */
static bool fits(const tensor *t, size_t rows, size_t cols)
{
    if (t->count != rows * cols) return false;
    int first = 0;
    while (first < t->dims - 1 && t->shape[first] == 1 && rows != 1) first++;
    return t->dims == 0 || t->shape[first] == rows || (cols == 1 && t->dims == 1);
}

static err_code place(loading *l, vit_tensor *t)
{
    const vit *m = l->m;
    int parts = find_parts(l, t->name, t->part);
    if (!t->part[0]) {
        if (t->vector == &m->mask_token) return ERR_OK; /* zeros */
        FAIL(l->e, FORMAT, "%s is not there", t->name);
    }
    size_t rows = t->rows / (size_t)parts;
    for (int i = 0; i < parts; i++) {
        if (!t->part[i]) FAIL(l->e, FORMAT, "%s: part %d of %d is not there", t->name, i + 1, parts);
        l->used[t->part[i] - m->file.tensors] = true;
    }
    size_t C = (size_t)m->c.dim, one = m->c.class_token ? 1 : 0;
    if (t->vector == &m->pos) {
        rows = l->pos_rows;
        if (!one || !l->pos_first) t->pad = C;
        t->cut_at = one * C;
        t->cut = l->pos_reg * C;
    }
    if (t->vector == &m->reg && l->pos_reg) {
        t->plus = find_dinov2(l, "pos_embed");
        t->plus_at = one * C;
    }
    char expected[48];
    if (t->cols > 1)
        snprintf(expected, sizeof expected, "%zux%zu", rows, t->cols);
    else
        snprintf(expected, sizeof expected, "%zu", rows);
    for (int i = 0; i < parts; i++)
        if (!fits(t->part[i], rows, t->cols)) return wrong_shape(l, t->name, t->part[i], expected);
    return ERR_OK;
}

/* What the file holds besides: a tensor of a block must not be overlooked. */
static err_code look_at_rest(loading *l)
{
    const weights_file *f = &l->m->file;
    const char *blocks = vit_name_blocks(l->names);
    static const char *const refused[] = {"norm_pre.", "fc_norm.", "patch_embed.norm."};
    size_t prefix = strlen(l->prefix), ignored = 0;
    for (size_t i = 0; i < f->n; i++) {
        const char *name = f->tensors[i].name;
        if (l->used[i]) continue;
        bool bad = false;
        if (!strncmp(name, l->prefix, prefix)) {
            bad = !strncmp(name + prefix, blocks, strlen(blocks));
            for (size_t k = 0; k < sizeof refused / sizeof *refused; k++)
                bad = bad || !strncmp(name + prefix, refused[k], strlen(refused[k]));
        }
        if (bad) FAIL(l->e, UNSUPPORTED, "%.100s: a part of the model that is not supported", name + prefix);
        ignored++;
    }
    if (ignored) log_event(LOG_DEBUG, "backbone.ignored", "tensors", LOG_INT(ignored), NULL);
    return ERR_OK;
}

static err_code check_random(const vit_config *c, err *e)
{
    bool in_range = c->dim > 0 && c->dim <= DIM_MAX && c->depth > 0 && c->depth < DEPTH_MAX && c->heads > 0 &&
                    c->patch > 0 && c->patch <= PATCH_MAX && c->hidden > 0 && c->hidden <= HIDDEN_MAX && c->grid > 0 &&
                    c->grid <= GRID_MAX && c->registers >= 0 && c->registers <= 64;
    if (!in_range || c->dim % c->heads) FAIL(e, USAGE, "a Vision Transformer of that shape cannot be made");
    return ERR_OK;
}

/* What radapt export wrote beside the tensors. */
static bool read_own_normalisation(vit *m)
{
    char text[2 * VIT_NORMALISATION_TEXT];
    const char *mean = weights_meta(&m->file, "image_mean"), *std = weights_meta(&m->file, "image_std");
    if (!mean || !std) return false;
    int n = snprintf(text, sizeof text, "%s/%s", mean, std);
    return n > 0 && (size_t)n < sizeof text && vit_read_normalisation(&m->c, text);
}

static err_code read_normalisation(vit *m, const char *which, err *e)
{
    static const float imagenet[2][3] = {{0.485f, 0.456f, 0.406f}, {0.229f, 0.224f, 0.225f}};
    vit_config *c = &m->c;
    bool automatic = !which || !strcmp(which, "auto"), half = which && !strcmp(which, "half");
    m->normalisation = VIT_NORMALISATION_GIVEN;
    if (which && vit_read_normalisation(c, which)) return ERR_OK;
    if (automatic && read_own_normalisation(m)) {
        m->normalisation = VIT_NORMALISATION_FILE;
        return ERR_OK;
    }
    if (automatic && !m->random) {
        half = !c->layer_scale && c->pos != POS_DINOV2;
        m->normalisation = half ? VIT_NORMALISATION_DOUBTED : VIT_NORMALISATION_GUESSED;
    }
    if (!automatic && !half && strcmp(which, "imagenet"))
        FAIL(e, USAGE, "normalisation is auto, imagenet, half or six numbers");
    for (int i = 0; i < 3; i++) {
        c->mean[i] = half ? 0.5f : imagenet[0][i];
        c->std[i] = half ? 0.5f : imagenet[1][i];
    }
    return ERR_OK;
}

static err_code load_file(loading *l, const vit_source *s)
{
    vit *m = l->m;
    l->used = calloc(m->file.n ? m->file.n : 1, sizeof *l->used);
    if (!l->used) FAIL(l->e, NOMEM, "no memory for a list of %zu tensors", m->file.n);
    TRY(find_dialect(l));
    TRY(read_shape(l, s->heads));
    TRY(make_list(m, l->e));
    for (size_t i = 0; i < m->n_tensors; i++) TRY(place(l, &m->tensors[i]));
    return look_at_rest(l);
}

err_code vit_load(vit *m, const vit_source *s, err *e)
{
    if (!s->path) {
        TRY(check_random(&s->random, e));
        m->c = s->random;
        m->random = true;
        m->seed = s->seed;
        TRY(make_list(m, e));
        return read_normalisation(m, s->normalisation, e);
    }
    loading l = {.m = m, .e = e};
    TRY(weights_open(&m->file, s->path, e));
    err_code rc = load_file(&l, s);
    free(l.used);
    TRY(rc);
    return read_normalisation(m, s->normalisation, e);
}

/* --- values */

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), k = strlen(end);
    return n >= k && !strcmp(name + n - k, end);
}

/* As PyTorch models are made: weights, tokens and positions truncated normal with deviation 0.02, biases 0, scales 1.
 */
static void draw(const vit *m, const vit_tensor *t, float *out)
{
    size_t n = t->rows * t->cols;
    bool one = ends_with(t->name, "norm1.weight") || ends_with(t->name, "norm2.weight") ||
               !strcmp(t->name, "norm.weight") || ends_with(t->name, ".gamma");
    bool zero = ends_with(t->name, ".bias") || t->vector == &m->mask_token;
    rng r = rng_at(m->seed, RNG_INIT, (uint64_t)(t - m->tensors), 0);
    for (size_t i = 0; i < n; i++) out[i] = one ? 1 : zero ? 0 : rng_trunc_normal(&r, 0.02f, 0.04f);
}

/* The file's values without those that are left out. */
static err_code read_parts(const vit_tensor *t, float *out, err *e)
{
    if (!t->cut && !t->plus) {
        for (int i = 0; i < 3 && t->part[i]; i++) {
            TRY(tensor_to_f32(t->part[i], out, e));
            out += t->part[i]->count;
        }
        return ERR_OK;
    }
    const tensor *longest = t->plus ? t->plus : t->part[0];
    float *all = malloc(longest->count * sizeof *all);
    if (!all) FAIL(e, NOMEM, "no memory for %s", t->name);
    err_code rc = tensor_to_f32(longest, all, e);
    if (!rc && t->plus) {
        rc = tensor_to_f32(t->part[0], out, e);
        for (size_t i = 0; i < t->part[0]->count; i++) out[i] += all[t->plus_at + i];
    } else if (!rc) {
        memcpy(out, all, t->cut_at * sizeof *out);
        memcpy(out + t->cut_at, all + t->cut_at + t->cut, (longest->count - t->cut_at - t->cut) * sizeof *out);
    }
    free(all);
    return rc;
}

err_code vit_load_values(const vit *m, const vit_tensor *t, float *out, err *e)
{
    size_t n = t->rows * t->cols;
    if (t->merged) {
        memcpy(out, t->merged, n * sizeof *out);
        return ERR_OK;
    }
    if (m->random) {
        draw(m, t, out);
        return ERR_OK;
    }
    if (!t->part[0]) {
        memset(out, 0, n * sizeof *out);
        return ERR_OK;
    }
    memset(out, 0, t->pad * sizeof *out);
    TRY(read_parts(t, out + t->pad, e));
    for (int i = 0; i < 3 && t->part[i]; i++) weights_forget(&m->file, t->part[i]);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(out[i])) FAIL(e, NUMERIC, "%s holds a value that is not finite", t->name);
    return ERR_OK;
}
