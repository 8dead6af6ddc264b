/* param.c: trainable tensors: their fp32 masters, gradients, Adam state and EMA teacher on the device. The live copies,
 * which the model reads, belong to whoever owns the weights. */
#include <stdlib.h>
#include <string.h>

#include "model/vit.h"

param *param_add(param_set *ps, const char *name, size_t rows, size_t cols)
{
    if (ps->n == ps->capacity) {
        size_t capacity = ps->capacity ? ps->capacity * 2 : 16;
        param *grown = realloc(ps->p, capacity * sizeof *grown);
        if (!grown) return NULL;
        ps->p = grown;
        ps->capacity = capacity;
    }
    param *p = &ps->p[ps->n++];
    *p = (param){.rows = rows, .cols = cols, .full_rows = rows, .lr_scale = 1, .weights_only = ps->weights_only};
    strncpy(p->name, name, sizeof p->name - 1);
    return p;
}

/* One block for all of a tensor: a GPU gives memory in pages of 2 MiB. */
static void place(param *p, arena *m, bool teacher)
{
    size_t n = p->rows * p->cols;
    p->master = arena_take(m, n, sizeof(float));
    if (!p->weights_only) {
        p->grad = arena_take(m, n, sizeof(float));
        p->m = arena_take(m, n, sizeof(float));
        p->v = arena_take(m, n, sizeof(float));
    }
    if (teacher) p->teacher = arena_take(m, n, sizeof(float));
    if (p->rows_host) p->row_index = arena_take(m, p->rows, sizeof *p->rows_host);
}

err_code param_alloc(device *d, param *p, const float *values, bool teacher, err *e)
{
    size_t bytes;
    arena dry = {0}, real;
    if (!size_mul(p->rows, p->cols, &bytes) || !size_mul(bytes, sizeof(float), &bytes))
        FAIL(e, LIMIT, "%s is too large", p->name);
    place(p, &dry, teacher);
    if (arena_failed(&dry)) FAIL(e, LIMIT, "%s is too large", p->name);
    TRY(d->op->alloc(d, dry.used, &p->memory, e));
    arena_init(&real, p->memory, dry.used);
    place(p, &real, teacher);
    d->op->upload(d, p->master, values, bytes);
    if (teacher) d->op->upload(d, p->teacher, values, bytes);
    if (p->rows_host) d->op->upload(d, p->row_index, p->rows_host, p->rows * sizeof *p->rows_host);
    return ERR_OK;
}

param *param_find(const param_set *ps, const char *name)
{
    for (size_t i = 0; i < ps->n; i++)
        if (!strcmp(ps->p[i].name, name)) return &ps->p[i];
    return NULL;
}

void param_set_free(device *d, param_set *ps)
{
    for (size_t i = 0; i < ps->n; i++) {
        param *p = &ps->p[i];
        if (p->memory) d->op->free(d, p->memory);
        free(p->rows_host);
    }
    free(ps->p);
    *ps = (param_set){0};
}
