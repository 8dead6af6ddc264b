/* checkpoint.c: see checkpoint.h. Everything goes through host memory, tensor by tensor names; the file is written
 * whole or not at all. */
#include "adapt/checkpoint.h"

#include <stdlib.h>
#include <string.h>

enum { PER_PARAM = 5, NAME = 128 };

typedef struct {
    tensor *t;
    char (*names)[NAME];
    void **owned;
    size_t n;
} builder;

static err_code add(builder *b, device *d, const char *name, const char *suffix, const dv *data, tensor_type type,
                    size_t rows, size_t cols, err *e)
{
    size_t bytes = rows * cols * 4; /* f32 and int32 */
    void *host = malloc(bytes ? bytes : 1);
    if (!host) FAIL(e, NOMEM, "checkpoint: no memory for %zu bytes", bytes);
    d->op->download(d, host, data, bytes);
    snprintf(b->names[b->n], NAME, "%s%s", name, suffix);
    b->owned[b->n] = host;
    b->t[b->n] =
        (tensor){.name = b->names[b->n], .type = type, .dims = cols > 1 ? 2 : 1, .shape = {rows, cols}, .data = host};
    b->n++;
    return ERR_OK;
}

err_code checkpoint_write(const char *path, device *d, const param_set *ps, bool full, bool use_teacher,
                          const checkpoint_extra *extra, size_t n_extra, const checkpoint_meta *meta, size_t n_meta,
                          err *e)
{
    size_t most = ps->n * PER_PARAM + n_extra + 1;
    builder b = {calloc(most, sizeof *b.t), calloc(most, sizeof *b.names), calloc(most, sizeof *b.owned), 0};
    const char **keys = calloc(n_meta + 1, sizeof *keys), **values = calloc(n_meta + 1, sizeof *values);
    err_code rc = ERR_OK;
    if (!b.t || !b.names || !b.owned || !keys || !values) FAIL_DONE(rc, e, NOMEM, "checkpoint: no memory");
    for (size_t i = 0; i < ps->n; i++) {
        const param *p = &ps->p[i];
        const dv *weights = use_teacher && p->teacher ? p->teacher : p->master;
        TRY_DONE(rc, add(&b, d, p->name, "", weights, TENSOR_F32, p->rows, p->cols, e));
        if (p->row_index) TRY_DONE(rc, add(&b, d, p->name, ".rows", p->row_index, TENSOR_I32, p->rows, 1, e));
        if (!full) continue;
        TRY_DONE(rc, add(&b, d, p->name, ".adam_m", p->m, TENSOR_F32, p->rows, p->cols, e));
        TRY_DONE(rc, add(&b, d, p->name, ".adam_v", p->v, TENSOR_F32, p->rows, p->cols, e));
        if (p->teacher) TRY_DONE(rc, add(&b, d, p->name, ".teacher", p->teacher, TENSOR_F32, p->rows, p->cols, e));
    }
    for (size_t i = 0; i < n_extra; i++)
        TRY_DONE(rc, add(&b, d, extra[i].name, "", extra[i].data, TENSOR_F32, extra[i].count, 1, e));
    TRY_DONE(rc, device_sync(d, e));
    for (size_t i = 0; i < n_meta; i++) {
        keys[i] = meta[i].key;
        values[i] = meta[i].value;
    }
    rc = safetensors_write(path, b.t, b.n, keys, values, n_meta, e);
done:
    for (size_t i = 0; i < b.n; i++) free(b.owned[i]);
    free(b.t);
    free(b.names);
    free(b.owned);
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
    float *host = malloc(count * sizeof *host + 1);
    if (!host) FAIL(e, NOMEM, "checkpoint: no memory for %zu values", count);
    err_code rc = tensor_to_f32(t, host, e);
    if (!rc) d->op->upload(d, to, host, count * sizeof *host);
    free(host);
    return rc;
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
