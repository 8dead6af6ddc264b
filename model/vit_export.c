/* vit_export.c: see vit_export.h. Every tensor goes from the device to the file a piece at a time. */
#include "model/vit_export.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/safetensors.h"
#include "model/vit_impl.h"

/* Where a tensor's values are: on the device, or here. */
typedef struct {
    const dv *device;
    const float *host;
} source;

typedef struct {
    const vit *m;
    vit_names names;
    tensor *t;
    source *from;
    char (*name)[VIT_NAME_BYTES];
    size_t n;
    bool folded; /* the class token has its position in it */
    float *cls;  /* (C) then */
} exporting;

static bool is_vit_model(const vit_config *c)
{
    return !c->layer_scale && !c->registers && !c->swiglu;
}

err_code vit_export_class(const vit *m, vit_names names, const char **out, err *e)
{
    const vit_config *c = &m->c;
    *out = "timm VisionTransformer";
    if (names == VIT_NAMES_TIMM) return ERR_OK;
    if (!c->class_token) FAIL(e, UNSUPPORTED, "the model has no class token: only timm has such models");
    *out = "DinoVisionTransformer";
    if (names == VIT_NAMES_DINOV2) return ERR_OK;
    if (!c->layer_scale && !is_vit_model(c))
        FAIL(e, UNSUPPORTED, "Hugging Face has no model with %s and without LayerScale",
             c->registers ? "registers" : "a SwiGLU MLP");
    *out = is_vit_model(c) ? "ViTModel" : c->registers ? "Dinov2WithRegistersModel" : "Dinov2Model";
    return ERR_OK;
}

static void put(exporting *x, const char *name, source from, int dims, const size_t *shape)
{
    x->t[x->n] = (tensor){.name = x->name[x->n], .type = TENSOR_F32, .dims = dims};
    for (int i = 0; i < dims; i++) x->t[x->n].shape[i] = shape[i];
    snprintf(x->name[x->n], VIT_NAME_BYTES, "%s", name);
    x->from[x->n] = from;
    x->n++;
}

static const dv *values_of(const vit_tensor *t)
{
    if (t->vector) return t->vector->live[VIT_STUDENT];
    return t->is_bias ? t->linear->w[0].bias : t->linear->w[0].w;
}

/* The tensors that have other shapes elsewhere. false: t is none of them. */
static bool put_embedding(exporting *x, const vit_tensor *t, const char *name)
{
    const vit *m = x->m;
    size_t C = (size_t)m->c.dim, p = (size_t)m->c.patch, rows = t->rows;
    source from = {.device = values_of(t)};
    if (t->vector == &m->cls) {
        if (x->folded) from = (source){.host = x->cls};
        put(x, name, from, 3, (size_t[]){1, 1, C});
    } else if (t->vector == &m->reg) {
        put(x, name, from, 3, (size_t[]){1, rows, C});
    } else if (t->vector == &m->mask_token) {
        put(x, name, from, 2, (size_t[]){1, C});
    } else if (t->vector == &m->pos) {
        bool first = m->c.class_token && !x->folded; /* the class token's row */
        if (!first) from.device = vit_f32(from.device, C);
        put(x, name, from, 3, (size_t[]){1, first ? rows : rows - 1, C});
    } else if (t->linear == &m->patch && !t->is_bias) {
        put(x, name, from, 4, (size_t[]){C, 3, p, p});
    } else {
        return false;
    }
    return true;
}

static err_code put_tensor(exporting *x, const vit_tensor *t, err *e)
{
    char names[VIT_NAME_PARTS][VIT_NAME_BYTES];
    bool mask = t->vector == &x->m->mask_token;
    if (mask && (x->names == VIT_NAMES_TIMM || x->names == VIT_NAMES_HF_VIT)) return ERR_OK;
    int parts = vit_name_parts(x->names, t->name, names);
    if (!parts) FAIL(e, UNSUPPORTED, "%s: there is no place for it in that format", t->name);
    if (put_embedding(x, t, names[0])) return ERR_OK;
    size_t rows = t->rows / (size_t)parts;
    for (int i = 0; i < parts; i++) {
        const dv *from = vit_f32(values_of(t), (size_t)i * rows * t->cols);
        put(x, names[i], (source){.device = from}, t->cols > 1 ? 2 : 1, (size_t[]){rows, t->cols});
    }
    return ERR_OK;
}

/* cls_token + pos_embed[0], as embed_fwd adds them. */
static err_code fold_class(exporting *x, err *e)
{
    const vit *m = x->m;
    size_t C = (size_t)m->c.dim, bytes = C * sizeof *x->cls;
    float *pos = malloc(bytes);
    x->cls = malloc(bytes);
    if (!pos || !x->cls) {
        free(pos);
        FAIL(e, NOMEM, "no memory for a class token");
    }
    m->d->op->download(m->d, x->cls, m->cls.live[VIT_STUDENT], bytes);
    m->d->op->download(m->d, pos, m->pos.live[VIT_STUDENT], bytes);
    for (size_t i = 0; i < C; i++) x->cls[i] += pos[i];
    free(pos);
    return device_sync(m->d, e);
}

/* Whether timm keeps the class token's position in the token. */
static bool folds(const vit *m)
{
    bool had_none = false;
    for (size_t i = 0; i < m->n_tensors; i++) had_none |= m->tensors[i].vector == &m->pos && m->tensors[i].pad;
    return m->c.class_token && (m->c.registers || had_none);
}

/* safetensors_get */
static err_code get(void *exporting_, size_t i, size_t at, size_t bytes, void *out, err *e)
{
    const exporting *x = exporting_;
    device *d = x->m->d;
    if (x->from[i].host)
        memcpy(out, (const char *)x->from[i].host + at, bytes);
    else
        d->op->download(d, out, dv_at(x->from[i].device, at), bytes);
    return device_sync(d, e);
}

static void three(const float v[3], char out[3 * VIT_NUMBER_TEXT])
{
    char text[3][VIT_NUMBER_TEXT];
    for (int i = 0; i < 3; i++) vit_number_text(v[i], text[i]);
    snprintf(out, 3 * VIT_NUMBER_TEXT, "%s,%s,%s", text[0], text[1], text[2]);
}

static err_code write_file(exporting *x, const char *path, const char *class, const vit_export_note *note, err *e)
{
    const vit_config *c = &x->m->c;
    char heads[16], eps[VIT_NUMBER_TEXT], size[16], mean[3 * VIT_NUMBER_TEXT], std[3 * VIT_NUMBER_TEXT], side[16];
    snprintf(heads, sizeof heads, "%d", c->heads);
    vit_number_text(c->eps, eps);
    snprintf(size, sizeof size, "%d", c->grid * c->patch);
    three(c->mean, mean);
    three(c->std, std);
    snprintf(side, sizeof side, "%d", note->trained_side);
    const char *keys[10] = {"format",     "class",      "heads",     "eps",
                            "image_size", "image_mean", "image_std", "backbone_hash"},
               *values[10] = {"pt", class, heads, eps, size, mean, std, x->m->hash};
    size_t n = 8;
    if (note->method) {
        keys[n] = "method";
        values[n++] = note->method;
    }
    if (note->trained_side) {
        keys[n] = "trained_side";
        values[n++] = side;
    }
    return safetensors_write_from(path, x->t, x->n, keys, values, n, get, x, e);
}

err_code vit_export(const vit *m, vit_names names, const char *path, const vit_export_note *note, err *e)
{
    const char *class;
    static const vit_export_note none = {0};
    if (!note) note = &none;
    const vit_export_head *head = note->head;
    if (m->prompts) FAIL(e, UNSUPPORTED, "the model has prompts, and no other program has a place for them");
    if (m->d->ct != COMPUTE_F32) FAIL(e, INTERNAL, "only weights in fp32 are exported");
    TRY(vit_export_class(m, names, &class, e));
    if (names == VIT_NAMES_HF_DINOV2 && is_vit_model(&m->c)) names = VIT_NAMES_HF_VIT;
    size_t most = m->n_tensors * VIT_NAME_PARTS + 2;
    exporting x = {
        m,     names, calloc(most, sizeof *x.t), calloc(most, sizeof *x.from), calloc(most, sizeof *x.name), 0,
        false, NULL};
    err_code rc = ERR_OK;
    if (!x.t || !x.from || !x.name) FAIL_DONE(rc, e, NOMEM, "no memory for a list of %zu tensors", most);
    x.folded = names == VIT_NAMES_TIMM && folds(m);
    if (x.folded) TRY_DONE(rc, fold_class(&x, e));
    for (size_t i = 0; i < m->n_tensors; i++) TRY_DONE(rc, put_tensor(&x, &m->tensors[i], e));
    if (head && names == VIT_NAMES_TIMM) {
        put(&x, "head.weight", (source){.host = head->weight}, 2, (size_t[]){head->outputs, (size_t)m->c.dim});
        put(&x, "head.bias", (source){.host = head->bias}, 1, &head->outputs);
    }
    rc = write_file(&x, path, class, note, e);
done:
    free(x.t);
    free(x.from);
    free(x.name);
    free(x.cls);
    return rc;
}
