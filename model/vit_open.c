/* vit_open.c: a model on the device: its weights in the compute type, vectors in fp32, and the hash that names the
 * backbone. Shapes of random models by name. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/vit_impl.h"

static err_code open_vector(device *d, vit_vector *v, const float *values, err *e)
{
    TRY(d->op->alloc(d, v->count * sizeof *values, &v->live[0], e));
    v->live[1] = v->live[0];
    d->op->upload(d, v->live[0], values, v->count * sizeof *values);
    return ERR_OK;
}

static err_code open_linear(device *d, vit_linear *l, bool is_bias, const float *values, dv *f32, err *e)
{
    linear_w *w = &l->w[0];
    l->live[0] = l->live[1] = w;
    if (is_bias) {
        TRY(d->op->alloc(d, w->out * sizeof *values, &w->bias, e));
        d->op->upload(d, w->bias, values, w->out * sizeof *values);
        return ERR_OK;
    }
    size_t n = w->out * w->in;
    TRY(d->op->alloc(d, n * d->ct_bytes, &w->w, e));
    d->op->upload(d, f32, values, n * sizeof *values);
    d->op->to_ct(d, w->w, f32, n);
    return ERR_OK;
}

/* values: host, f32: device, both for the largest tensor. */
static err_code open_tensors(vit *m, float *values, dv *f32, err *e)
{
    hash *h = hash_new();
    if (!h) FAIL(e, NOMEM, "no memory for a hash");
    err_code rc = ERR_OK;
    for (size_t i = 0; i < m->n_tensors && !rc; i++) {
        const vit_tensor *t = &m->tensors[i];
        uint64_t shape[2] = {t->rows, t->cols};
        hash_str(h, t->name);
        hash_add(h, shape, sizeof shape);
        if (!m->d->counts) {
            rc = vit_load_values(m, t, values, e);
            if (rc) break;
            hash_add(h, values, t->rows * t->cols * sizeof *values);
        }
        rc = t->vector ? open_vector(m->d, t->vector, values, e)
                       : open_linear(m->d, t->linear, t->is_bias, values, f32, e);
    }
    hash_add(h, (const int32_t[]){m->c.heads}, sizeof(int32_t));
    /* One model under other names has another of these two: no difference that matters. */
    bool usual = m->c.eps == 1e-6f || m->c.eps == 1e-12f;
    if (!usual) hash_add(h, &m->c.eps, sizeof m->c.eps);
    hash_hex(h, m->hash);
    return rc;
}

static err_code open_device(vit *m, err *e)
{
    size_t most = vit_largest_tensor(m);
    float *values = malloc(most * sizeof *values);
    if (!values) FAIL(e, NOMEM, "no memory for a tensor of %zu values", most);
    dv *f32 = NULL;
    err_code rc = m->d->op->alloc(m->d, most * sizeof *values, &f32, e);
    if (!rc) rc = open_tensors(m, values, f32, e);
    if (!rc) rc = device_sync(m->d, e);
    if (f32) m->d->op->free(m->d, f32);
    free(values);
    return rc;
}

err_code vit_open(vit **out, device *d, const vit_source *s, err *e)
{
    *out = NULL;
    vit *m = calloc(1, sizeof *m);
    if (!m) FAIL(e, NOMEM, "no memory for a model");
    m->d = d;
    err_code rc = vit_load(m, s, e);
    if (!rc) rc = open_device(m, e);
    if (rc)
        vit_close(m);
    else
        *out = m;
    return rc;
}

bool vit_read_normalisation(vit_config *c, const char *numbers)
{
    float v[6];
    int end = 0;
    if (sscanf(numbers, "%f,%f,%f/%f,%f,%f%n", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &end) != 6 || numbers[end])
        return false;
    for (int i = 0; i < 6; i++)
        if (!isfinite(v[i]) || (i > 2 && !(v[i] > 0))) return false;
    memcpy(c->mean, v, sizeof c->mean);
    memcpy(c->std, v + 3, sizeof c->std);
    return true;
}

err_code vit_normalise(vit *m, const char *numbers, err *e)
{
    if (!vit_read_normalisation(&m->c, numbers)) FAIL(e, USAGE, "a normalisation is six numbers: m,m,m/s,s,s");
    m->normalisation = VIT_NORMALISATION_GIVEN;
    return ERR_OK;
}

vit_normalisation_source vit_normalisation_from(const vit *m)
{
    return m->normalisation;
}

void vit_number_text(float x, char out[VIT_NUMBER_TEXT])
{
    char text[VIT_NUMBER_TEXT] = "";
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if (strtof(text, NULL) == x) break;
    }
    memcpy(out, text, sizeof text);
}

void vit_normalisation_text(const vit *m, char out[VIT_NORMALISATION_TEXT])
{
    const float *a = m->c.mean, *s = m->c.std;
    snprintf(out, VIT_NORMALISATION_TEXT, "%.9g,%.9g,%.9g/%.9g,%.9g,%.9g", (double)a[0], (double)a[1], (double)a[2],
             (double)s[0], (double)s[1], (double)s[2]);
}

void vit_close_linear(device *d, linear_w *w)
{
    d->op->linear_release(d, w);
    if (w->w && !w->same) d->op->free(d, w->w);
    if (w->bias) d->op->free(d, w->bias);
    w->w = w->bias = NULL;
}

void vit_close(vit *m)
{
    if (!m) return;
    device *d = m->d;
    for (size_t i = 0; m->tensors && i < m->n_tensors; i++) {
        vit_tensor *t = &m->tensors[i];
        free(t->merged);
        if (t->vector) {
            if (t->vector->live[1] && t->vector->live[1] != t->vector->live[0]) d->op->free(d, t->vector->live[1]);
            if (t->vector->live[0]) d->op->free(d, t->vector->live[0]);
        } else if (!t->is_bias) {
            vit_close_linear(d, &t->linear->w[1]);
            vit_close_linear(d, &t->linear->w[0]);
            vit_lora_close(m, t->linear);
        }
    }
    if (m->thirds) d->op->free(d, m->thirds);
    vit_prompt_close(m);
    free(m->tensors);
    free(m->block);
    weights_close(&m->file);
    free(m);
}

size_t vit_backbone_params(const vit *m)
{
    size_t n = 0;
    for (size_t i = 0; i < m->n_tensors; i++) n += m->tensors[i].rows * m->tensors[i].cols;
    return n;
}

/* --- shapes by name */

static err_code set_field(vit_config *c, const char *key, size_t key_n, long value, err *e)
{
    int flag = value != 0;
    struct {
        const char *name;
        int *number;
        bool *flag;
    } fields[] = {{"dim", &c->dim, NULL},
                  {"depth", &c->depth, NULL},
                  {"heads", &c->heads, NULL},
                  {"patch", &c->patch, NULL},
                  {"hidden", &c->hidden, NULL},
                  {"grid", &c->grid, NULL},
                  {"registers", &c->registers, NULL},
                  {"class_token", NULL, &c->class_token},
                  {"layer_scale", NULL, &c->layer_scale},
                  {"qkv_bias", NULL, &c->qkv_bias},
                  {"swiglu", NULL, &c->swiglu}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (strlen(fields[i].name) != key_n || strncmp(fields[i].name, key, key_n)) continue;
        if (fields[i].flag)
            *fields[i].flag = flag;
        else
            *fields[i].number = (int)value;
        return ERR_OK;
    }
    FAIL(e, USAGE, "a model's shape has no %.*s", (int)(key_n < 32 ? key_n : 32), key);
}

static err_code read_fields(const char *text, vit_config *c, err *e)
{
    while (*text) {
        const char *equals = strchr(text, '=');
        if (!equals) FAIL(e, NOTFOUND, "no model of that name");
        char *end;
        long value = strtol(equals + 1, &end, 10);
        if (end == equals + 1 || (*end && *end != ',') || value < 0 || value > INT_MAX)
            FAIL(e, USAGE, "a model's shape is written dim=64,depth=2,heads=2,patch=16,grid=14");
        TRY(set_field(c, text, (size_t)(equals - text), value, e));
        text = *end ? end + 1 : end;
    }
    return ERR_OK;
}

err_code vit_named_config(const char *name, vit_config *out, err *e)
{
    static const struct {
        const char *name;
        int dim, depth, heads;
    } sizes[] = {{"ti", 192, 12, 3}, {"s", 384, 12, 6}, {"b", 768, 12, 12}, {"l", 1024, 24, 16}, {"g", 1536, 40, 24}};
    vit_config c = {.class_token = true, .qkv_bias = true, .eps = 1e-6f, .pos = POS_SIZE_ANTIALIAS};
    char size[3];
    int patch, end = 0;
    if (sscanf(name, "vit-%2[a-z]/%d%n", size, &patch, &end) == 2 && end && !name[end]) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            if (strcmp(sizes[i].name, size)) continue;
            c.dim = sizes[i].dim;
            c.depth = sizes[i].depth;
            c.heads = sizes[i].heads;
        }
        if (!c.dim || (patch != 8 && patch != 14 && patch != 16)) FAIL(e, NOTFOUND, "no model of that name");
        c.patch = patch;
        c.grid = 224 / patch;
        c.layer_scale = patch == 14; /* as DINOv2's */
        c.swiglu = !strcmp(size, "g");
    } else {
        TRY(read_fields(name, &c, e));
        if (c.dim < 1 || c.depth < 1 || c.heads < 1 || c.patch < 1 || c.grid < 1 || c.dim % c.heads)
            FAIL(e, USAGE, "a model's shape needs dim, depth, heads (a divisor of dim), patch and grid");
    }
    if (!c.hidden) {
        if (c.dim > INT_MAX / 8) FAIL(e, USAGE, "a model of width %d", c.dim);
        /* Gated, two thirds of it by eights, as DINOv2's: about as many weights. */
        c.hidden = c.swiglu ? (8 * c.dim / 3 + 7) / 8 * 8 : 4 * c.dim;
    }
    *out = c;
    return ERR_OK;
}
