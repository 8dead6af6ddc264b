/* vit_merge.c: trained values become the backbone's own. */
#include <stdlib.h>
#include <string.h>

#include "model/vit_impl.h"

static int index_of(const vit_tensor *t)
{
    if (t->vector) return t->vector->param;
    if (!t->linear) return VIT_FROZEN;
    return t->is_bias ? t->linear->bias : t->linear->weight;
}

/* values (rows, cols): the tensor as it was -> with what was trained. */
static err_code merged_values(const vit *m, const vit_tensor *t, float *values, err *e)
{
    int index = index_of(t);
    if (t->linear && !t->is_bias && t->linear->n_lora) return vit_lora_add(m, t->linear, values, e);
    const param *p = &m->ps->p[index];
    float *master = malloc(p->rows * p->cols * sizeof *master);
    if (!master) FAIL(e, NOMEM, "no memory to merge %s", t->name);
    m->d->op->download(m->d, master, p->master, p->rows * p->cols * sizeof *master);
    for (size_t i = 0; i < p->rows; i++) {
        size_t row = p->rows_host ? (size_t)p->rows_host[i] : i;
        memcpy(values + row * t->cols, master + i * p->cols, p->cols * sizeof *values);
    }
    free(master);
    return ERR_OK;
}

/* The student's live copy. f32: on the device, for the largest tensor. */
static void write_live(vit *m, const vit_tensor *t, const float *values, dv *f32)
{
    const op_table *op = m->d->op;
    size_t n = t->rows * t->cols;
    if (t->vector || t->is_bias) {
        op->upload(m->d, t->vector ? t->vector->live[0] : t->linear->w[0].bias, values, n * sizeof *values);
        return;
    }
    op->upload(m->d, f32, values, n * sizeof *values);
    op->to_ct(m->d, t->linear->w[0].w, f32, n);
    t->linear->w[0].version++;
    t->linear->w[0].frozen = true;
}

/* Frozen, and the teacher's is the student's. */
static void join_vector(device *d, vit_vector *v)
{
    if (v->live[1] != v->live[0]) d->op->free(d, v->live[1]);
    v->live[1] = v->live[0];
    v->param = VIT_FROZEN;
}

static void join(vit *m, vit_tensor *t)
{
    device *d = m->d;
    if (t->vector) {
        join_vector(d, t->vector);
        return;
    }
    vit_linear *l = t->linear;
    if (l->live[1] != l->live[0]) vit_close_linear(d, &l->w[1]);
    l->live[1] = l->live[0];
    l->weight = l->bias = VIT_FROZEN;
    vit_lora_close(m, l);
}

static err_code merge_tensor(vit *m, vit_tensor *t, bool again, float *values, dv *f32, err *e)
{
    bool updated = t->linear && !t->is_bias && t->linear->n_lora;
    if (index_of(t) == VIT_FROZEN && !updated) return ERR_OK;
    if (!m->d->counts) {
        TRY(vit_load_values(m, t, values, e));
        TRY(merged_values(m, t, values, e));
    }
    write_live(m, t, values, f32);
    if (!again) return ERR_OK;
    size_t bytes = t->rows * t->cols * sizeof *values;
    if (!t->merged) t->merged = malloc(bytes);
    if (!t->merged) FAIL(e, NOMEM, "no memory to merge %s", t->name);
    memcpy(t->merged, values, bytes);
    return ERR_OK;
}

err_code vit_merge(vit *m, bool again, err *e)
{
    if (!m->ps) return ERR_OK;
    size_t most = vit_largest_tensor(m);
    float *values = malloc(most * sizeof *values);
    if (!values) FAIL(e, NOMEM, "no memory for a tensor of %zu values", most);
    dv *f32 = NULL;
    err_code rc = m->d->op->alloc(m->d, most * sizeof *values, &f32, e);
    for (size_t i = 0; i < m->n_tensors && !rc; i++) rc = merge_tensor(m, &m->tensors[i], again, values, f32, e);
    free(values);
    if (f32) m->d->op->free(m->d, f32);
    TRY(rc);
    for (size_t i = 0; i < m->n_tensors; i++) join(m, &m->tensors[i]);
    for (int i = 0; i < m->c.depth; i++) join_vector(m->d, &m->block[i].prompts);
    for (size_t i = 0; i < m->ps->n; i++) {
        param *p = &m->ps->p[i];
        p->live = p->live_teacher = NULL;
        p->linear = p->linear_teacher = NULL;
    }
    m->lora_rank = m->lora_width = 0;
    m->ps = NULL;
    m->trained = !again;
    return device_sync(m->d, e);
}
