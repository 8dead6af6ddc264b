/* vit_lora.c: low-rank updates of frozen linear layers: y += alpha/r (x A^T) B^T, A Kaiming-uniform and B zero at first
 * (Hu et al. 2022). The update is never made as a matrix but when it is merged. Of the packed QKV layer a third can be
 * updated alone: B's other rows are zeros, and only those of the third are trained. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "model/vit_impl.h"

/* A trained weight (rows, cols) in rows first.. of its live copies. */
static err_code add_param(vit *m, param_set *ps, const char *name, linear_w *const live[2], size_t first, size_t rows,
                          const float *values, bool teacher, int *index, err *e)
{
    size_t cols = live[0]->in, at = first * cols * m->d->ct_bytes;
    param *p = param_add(ps, name, rows, cols);
    if (!p) FAIL(e, NOMEM, "no memory for %s", name);
    p->decay = true;
    TRY(param_alloc(m->d, p, values, teacher, e));
    p->live_ct = true;
    p->live = dv_at(live[0]->w, at);
    p->linear = live[0];
    if (teacher) {
        p->live_teacher = dv_at(live[1]->w, at);
        p->linear_teacher = live[1];
    }
    *index = (int)(ps->n - 1);
    m->d->op->refresh(m->d, p, 1);
    return ERR_OK;
}

static err_code open_pair(vit *m, linear_w w[2], linear_w *live[2], size_t out, size_t in, bool teacher, err *e)
{
    live[0] = live[1] = &w[0];
    for (int i = 0; i < (teacher ? 2 : 1); i++) {
        w[i] = (linear_w){.out = out, .in = in, .version = 1};
        TRY(m->d->op->alloc(m->d, out * in * m->d->ct_bytes, &w[i].w, e));
        live[i] = &w[i];
    }
    return ERR_OK;
}

typedef struct {
    unsigned bit;
    const char *name; /* "attn.q" */
    vit_linear *layer;
    size_t first, rows;
} target;

/* values: room for A and for zeros. */
static err_code train_target(vit *m, const peft_spec *s, const target *t, uint64_t number, param_set *ps, float *values,
                             err *e)
{
    vit_lora *l = &t->layer->lora[t->layer->n_lora++];
    size_t O = t->layer->w[0].out, I = t->layer->w[0].in, r = (size_t)s->rank;
    char name[64];
    bool all = t->rows == O;
    l->a_param = l->b_param = VIT_FROZEN;
    l->first = t->first;
    l->rows = t->rows;
    l->index = all ? NULL : dv_at(m->thirds, t->first * sizeof(int32_t));
    TRY(open_pair(m, l->a, l->live_a, r, I, s->teacher, e));
    TRY(open_pair(m, l->b, l->live_b, O, r, s->teacher, e));
    /* As torch.nn.Linear: U(-1/sqrt(I), 1/sqrt(I)), Kaiming's with a = sqrt(5). */
    rng g = rng_at(s->seed, RNG_PEFT, number, 0);
    float bound = 1 / sqrtf((float)I);
    for (size_t i = 0; i < r * I; i++) values[i] = rng_between(&g, -bound, bound);
    snprintf(name, sizeof name, "%s.lora_A.weight", t->name);
    TRY(add_param(m, ps, name, l->live_a, 0, r, values, s->teacher, &l->a_param, e));
    memset(values, 0, t->rows * r * sizeof *values);
    snprintf(name, sizeof name, "%s.lora_B.weight", t->name);
    TRY(add_param(m, ps, name, l->live_b, t->first, t->rows, values, s->teacher, &l->b_param, e));
    if (O > m->lora_width) m->lora_width = O;
    if (I > m->lora_width) m->lora_width = I;
    return ERR_OK;
}

static err_code open_thirds(vit *m, err *e)
{
    size_t n = 3 * (size_t)m->c.dim;
    int32_t *row = malloc(n * sizeof *row);
    if (!row) FAIL(e, NOMEM, "no memory for rows of Q, K and V");
    for (size_t i = 0; i < n; i++) row[i] = (int32_t)i;
    err_code rc = m->thirds ? ERR_OK : m->d->op->alloc(m->d, n * sizeof *row, &m->thirds, e);
    if (!rc) m->d->op->upload(m->d, m->thirds, row, n * sizeof *row);
    free(row);
    return rc;
}

static err_code train_block(vit *m, const peft_spec *s, int i, param_set *ps, float *values, err *e)
{
    vit_block *b = &m->block[i];
    size_t C = (size_t)m->c.dim, F = b->fc1.w[0].out;
    bool gated = m->c.swiglu;
    const target targets[] = {
        {PEFT_QKV, "attn.qkv", &b->qkv, 0, 3 * C},
        {PEFT_Q, "attn.q", &b->qkv, 0, C},
        {PEFT_K, "attn.k", &b->qkv, C, C},
        {PEFT_V, "attn.v", &b->qkv, 2 * C, C},
        {PEFT_PROJ, "attn.proj", &b->proj, 0, C},
        {PEFT_FC1, gated ? "mlp.w12" : "mlp.fc1", &b->fc1, 0, F},
        {PEFT_FC2, gated ? "mlp.w3" : "mlp.fc2", &b->fc2, 0, C},
    };
    enum { TARGETS = sizeof targets / sizeof *targets };
    for (int k = 0; k < TARGETS; k++) {
        char name[48];
        target t = targets[k];
        if (!(s->targets & t.bit)) continue;
        if (!t.layer->lora) t.layer->lora = calloc(VIT_UPDATES, sizeof *t.layer->lora);
        if (!t.layer->lora) FAIL(e, NOMEM, "no memory for low-rank updates");
        snprintf(name, sizeof name, "blocks.%d.%s", i, t.name);
        t.name = name;
        TRY(train_target(m, s, &t, (uint64_t)i * TARGETS + (uint64_t)k, ps, values, e));
    }
    return ERR_OK;
}

err_code vit_lora_train(vit *m, const peft_spec *s, param_set *ps, err *e)
{
    size_t qkv = 3 * (size_t)m->c.dim, mlp = vit_mlp_width(&m->c), widest = mlp > qkv ? mlp : qkv, n;
    if (!size_mul(2 * widest, (size_t)s->rank, &n)) FAIL(e, LIMIT, "low-rank updates of rank %d", s->rank);
    float *values = malloc(n * sizeof *values);
    if (!values) FAIL(e, NOMEM, "no memory for a low-rank update");
    m->lora_rank = (size_t)s->rank;
    m->lora_scale = s->alpha / (float)s->rank;
    m->bottom = s->targets & (PEFT_QKV | PEFT_Q | PEFT_K | PEFT_V) ? VIT_TO_QKV
                : s->targets & PEFT_PROJ                           ? VIT_TO_PROJECTION
                                                                   : VIT_TO_MLP;
    err_code rc = open_thirds(m, e);
    for (int i = 0; i < m->c.depth && !rc; i++) rc = train_block(m, s, i, ps, values, e);
    free(values);
    return rc;
}

void vit_lora_fwd(vit *m, vit_who who, const vit_linear *w, dv *y, const dv *x, size_t N, dv *low, dv *wide)
{
    const op_table *op = m->d->op;
    for (int i = 0; i < w->n_lora; i++) {
        const vit_lora *l = &w->lora[i];
        op->linear_fwd(m->d, low, x, l->live_a[who], N); /* (N,r) */
        op->scale(m->d, low, m->lora_scale, N * m->lora_rank);
        op->linear_fwd(m->d, wide, low, l->live_b[who], N); /* (N,O) */
        op->add(m->d, y, wide, N * w->w[0].out);
    }
}

void vit_lora_bwd(vit *m, const vit_linear *w, dv *dx, const dv *dy, const dv *x, size_t N, dv *low, dv *wide)
{
    const op_table *op = m->d->op;
    size_t O = w->w[0].out, I = w->w[0].in, r = m->lora_rank;
    for (int i = 0; i < w->n_lora; i++) {
        const vit_lora *l = &w->lora[i];
        dv *own = dv_at(low, (size_t)i * N * r * m->d->ct_bytes);
        op->linear_fwd(m->d, own, x, l->live_a[VIT_STUDENT], N);
        op->scale(m->d, own, m->lora_scale, N * r);
        op->linear_dw(m->d, vit_grad_of(m, l->b_param), NULL, dy, own, l->index, l->rows, N, O, r);
        op->linear_dx(m->d, own, dy, l->live_b[VIT_STUDENT], N); /* d (x A^T) */
        op->scale(m->d, own, m->lora_scale, N * r);
        op->linear_dw(m->d, vit_grad_of(m, l->a_param), NULL, own, x, NULL, r, N, r, I);
    }
    if (!dx) return;
    op->linear_dx(m->d, dx, dy, w->live[VIT_STUDENT], N); /* x is no longer read */
    for (int i = 0; i < w->n_lora; i++) {
        op->linear_dx(m->d, wide, dv_at(low, (size_t)i * N * r * m->d->ct_bytes), w->lora[i].live_a[VIT_STUDENT], N);
        op->add(m->d, dx, wide, N * I);
    }
}

err_code vit_lora_add(const vit *m, const vit_linear *w, float *weight, err *e)
{
    size_t I = w->w[0].in, r = m->lora_rank;
    for (int i = 0; i < w->n_lora; i++) {
        const vit_lora *l = &w->lora[i];
        float *a = malloc(r * I * sizeof *a), *b = malloc(l->rows * r * sizeof *b);
        if (!a || !b) {
            free(a);
            free(b);
            FAIL(e, NOMEM, "no memory to merge a low-rank update");
        }
        m->d->op->download(m->d, a, m->ps->p[l->a_param].master, r * I * sizeof *a);
        m->d->op->download(m->d, b, m->ps->p[l->b_param].master, l->rows * r * sizeof *b);
        for (size_t o = 0; o < l->rows; o++)
            for (size_t k = 0; k < r; k++) {
                float by = m->lora_scale * b[o * r + k], *row = weight + (l->first + o) * I;
                for (size_t j = 0; j < I; j++) row[j] += by * a[k * I + j];
            }
        free(a);
        free(b);
    }
    return ERR_OK;
}

static void close_pair(device *d, linear_w w[2])
{
    for (int i = 0; i < 2; i++) {
        d->op->linear_release(d, &w[i]);
        if (w[i].w) d->op->free(d, w[i].w);
    }
}

void vit_lora_close(vit *m, vit_linear *w)
{
    for (int i = 0; i < w->n_lora; i++) {
        close_pair(m->d, w->lora[i].a);
        close_pair(m->d, w->lora[i].b);
    }
    free(w->lora);
    w->lora = NULL;
    w->n_lora = 0;
}
