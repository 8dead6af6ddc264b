/* checkpoint.c: see checkpoint.h. Tensors go from the device to the file, and from the file to the device, a piece at a
 * time: a checkpoint takes no memory of its size. The file is written whole or not at all. */
#include "adapt/checkpoint.h"

#include <stdlib.h>
#include <string.h>

enum { PER_PARAM = 5, NAME = 128, PIECE = 1 << 20 };

/* What will be written: tensors, and where on the device each one is. */
typedef struct {
    device *d;
    tensor *t;
    char (*names)[NAME];
    const dv **from;
    size_t n;
} builder;

static void add(builder *b, const char *name, const char *suffix, const dv *data, tensor_type type, size_t rows,
                size_t cols)
{
    snprintf(b->names[b->n], NAME, "%s%s", name, suffix);
    b->from[b->n] = data;
    b->t[b->n] = (tensor){.name = b->names[b->n], .type = type, .dims = cols > 1 ? 2 : 1, .shape = {rows, cols}};
    b->n++;
}

/* safetensors_get */
static err_code get(void *builder_, size_t i, size_t at, size_t bytes, void *out, err *e)
{
    const builder *b = builder_;
    b->d->op->download(b->d, out, dv_at(b->from[i], at), bytes);
    return device_sync(b->d, e);
}

static void add_param(builder *b, const param *p, bool full, bool use_teacher)
{
    const dv *weights = use_teacher && p->teacher ? p->teacher : p->master;
    add(b, p->name, "", weights, TENSOR_F32, p->rows, p->cols);
    if (p->row_index) add(b, p->name, ".rows", p->row_index, TENSOR_I32, p->rows, 1);
    if (!full) return;
    add(b, p->name, ".adam_m", p->m, TENSOR_F32, p->rows, p->cols);
    add(b, p->name, ".adam_v", p->v, TENSOR_F32, p->rows, p->cols);
    if (p->teacher) add(b, p->name, ".teacher", p->teacher, TENSOR_F32, p->rows, p->cols);
}

err_code checkpoint_write(const char *path, device *d, const param_set *ps, bool full, bool use_teacher,
                          const checkpoint_extra *extra, size_t n_extra, const checkpoint_meta *meta, size_t n_meta,
                          err *e)
{
    size_t most = ps->n * PER_PARAM + n_extra + 1;
    builder b = {d, calloc(most, sizeof *b.t), calloc(most, sizeof *b.names), calloc(most, sizeof(dv *)), 0};
    const char **keys = calloc(n_meta + 1, sizeof *keys), **values = calloc(n_meta + 1, sizeof *values);
    err_code rc = ERR_OK;
    if (!b.t || !b.names || !b.from || !keys || !values) FAIL_DONE(rc, e, NOMEM, "checkpoint: no memory");
    for (size_t i = 0; i < ps->n; i++) add_param(&b, &ps->p[i], full, use_teacher);
    for (size_t i = 0; i < n_extra; i++) add(&b, extra[i].name, "", extra[i].data, TENSOR_F32, extra[i].count, 1);
    for (size_t i = 0; i < n_meta; i++) {
        keys[i] = meta[i].key;
        values[i] = meta[i].value;
    }
    rc = safetensors_write_from(path, b.t, b.n, keys, values, n_meta, get, &b, e);
done:
    free(b.t);
    free(b.names);
    free(b.from);
    free(keys);
    free(values);
    return rc;
}

/* Uploads the named tensor, which must have count values. */
static err_code load(const safetensors *s, device *d, const char *name, const char *suffix, dv *to, size_t count,
                     err *e)
{
    char full_name[NAME];
    snprintf(full_name, sizeof full_name, "%s%s", name, suffix);
    const tensor *t = safetensors_find(s, full_name);
    if (!t) FAIL(e, CONFLICT, "checkpoint: '%.80s' is not in it", full_name);
    if (t->count != count || t->type != TENSOR_F32)
        FAIL(e, SHAPE, "checkpoint: '%.80s' has %zu values, expected %zu in fp32", full_name, t->count, count);
    size_t bytes = count * sizeof(float), first = (size_t)((const unsigned char *)t->data - s->map.data);
    for (size_t at = 0; at < bytes; at += PIECE) {
        size_t n = bytes - at < PIECE ? bytes - at : PIECE;
        d->op->upload(d, dv_at(to, at), (const char *)t->data + at, n);
        TRY(device_sync(d, e)); /* before the pages go */
        file_map_forget(&s->map, first + at, n);
    }
    return ERR_OK;
}

/* Row-sliced weights belong to their rows: another choice of rows is another model. */
static err_code check_rows(const safetensors *s, const param *p, err *e)
{
    char name[NAME];
    snprintf(name, sizeof name, "%s.rows", p->name);
    const tensor *t = safetensors_find(s, name);
    if (!t && !p->rows_host) return ERR_OK;
    if (!t || !p->rows_host || t->type != TENSOR_I32 || t->count != p->rows ||
        memcmp(t->data, p->rows_host, p->rows * sizeof *p->rows_host) != 0)
        FAIL(e, CONFLICT, "checkpoint: '%.80s' was trained on other rows", p->name);
    return ERR_OK;
}

err_code checkpoint_load(const safetensors *s, device *d, param_set *ps, bool full, const checkpoint_extra *extra,
                         size_t n_extra, err *e)
{
    for (size_t i = 0; i < ps->n; i++) {
        param *p = &ps->p[i];
        size_t count = p->rows * p->cols;
        TRY(check_rows(s, p, e));
        TRY(load(s, d, p->name, "", p->master, count, e));
        if (full) {
            TRY(load(s, d, p->name, ".adam_m", p->m, count, e));
            TRY(load(s, d, p->name, ".adam_v", p->v, count, e));
            if (p->teacher) TRY(load(s, d, p->name, ".teacher", p->teacher, count, e));
        } else if (p->teacher) {
            d->op->copy(d, p->teacher, p->master, count * sizeof(float));
        }
    }
    for (size_t i = 0; i < n_extra; i++) TRY(load(s, d, extra[i].name, "", extra[i].data, extra[i].count, e));
    d->op->refresh(d, ps->p, ps->n);
    return device_sync(d, e);
}
