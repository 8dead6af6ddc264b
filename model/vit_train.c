/* vit_train.c: parameter-efficient fine-tuning as data: which weights become params, and what the teacher has of its
 * own. APLA: the attention's output projection of every block, all of it or r output features with their biases, drawn
 * once a block and the same in student and teacher. BitFit: the biases. Everything frozen exists once. vit_lora.c and
 * vit_prompt.c add what the backbone has not. */
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "model/vit_impl.h"

static int compare_rows(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* r of n rows, ascending; the caller frees. */
static int32_t *draw_rows(uint64_t seed, int block, size_t n, size_t r)
{
    uint32_t *all = malloc(n * sizeof *all);
    int32_t *rows = malloc(r * sizeof *rows);
    if (all && rows) {
        rng g = rng_at(seed, RNG_ROWS, (uint64_t)block, 0);
        for (size_t i = 0; i < n; i++) all[i] = (uint32_t)i;
        rng_shuffle(&g, all, n);
        for (size_t i = 0; i < r; i++) rows[i] = (int32_t)all[i];
        qsort(rows, r, sizeof *rows, compare_rows);
        free(all);
        return rows;
    }
    free(all);
    free(rows);
    return NULL;
}

err_code vit_clone(device *d, dv **out, const dv *src, size_t bytes, err *e)
{
    TRY(d->op->alloc(d, bytes, out, e));
    d->op->copy(d, *out, src, bytes);
    return ERR_OK;
}

/* The teacher's own linear layer, equal to the student's. Where the bias alone trains, the weight is the student's. */
static err_code split_linear(device *d, vit_linear *l, bool bias_only, err *e)
{
    linear_w *own = &l->w[1], *s = &l->w[0];
    bool first = l->live[1] == l->live[0];
    if (first) *own = (linear_w){.out = s->out, .in = s->in, .w = s->w, .version = 1, .same = s};
    l->live[1] = own;
    if (first && s->bias) TRY(vit_clone(d, &own->bias, s->bias, s->out * sizeof(float), e));
    if (bias_only || !own->same) return ERR_OK;
    own->w = NULL;
    own->same = NULL;
    return vit_clone(d, &own->w, s->w, s->out * s->in * d->ct_bytes, e);
}

/* Norms, biases and LayerScale are not decayed. */
static bool decays(const vit_tensor *t)
{
    return !t->is_bias && !strstr(t->name, "norm") && !strstr(t->name, "gamma");
}

/* A LayerScale of exactly 0 has no gradient that its layer's could tell (op.h, scale_grad): it gets a value that moves
 * nothing. */
static void wake(float *scale, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (scale[i] == 0) scale[i] = 1e-20f;
}

/* Appends the param of a tensor (rows of it, if given) and points its live copies at the model's. values: room for the
 * whole tensor. */
static err_code train_tensor(vit *m, vit_tensor *t, const int32_t *rows, size_t n_rows, bool teacher, param_set *ps,
                             float *values, err *e)
{
    device *d = m->d;
    param *p = param_add(ps, t->name, rows ? n_rows : t->rows, t->cols);
    if (!p) FAIL(e, NOMEM, "no memory for %s", t->name);
    p->full_rows = t->rows;
    p->decay = decays(t);
    if (!d->counts) TRY(vit_load_values(m, t, values, e));
    bool scale = !d->counts && strstr(t->name, "gamma");
    if (scale) wake(values, t->rows * t->cols);
    if (rows) {
        p->rows_host = malloc(n_rows * sizeof *rows);
        if (!p->rows_host) FAIL(e, NOMEM, "no memory for %s", t->name);
        memcpy(p->rows_host, rows, n_rows * sizeof *rows);
        for (size_t i = 0; !d->counts && i < n_rows; i++) /* ascending: never over a row still to be read */
            memmove(values + i * t->cols, values + (size_t)rows[i] * t->cols, t->cols * sizeof *values);
    }
    TRY(param_alloc(d, p, values, teacher, e));
    int index = (int)(ps->n - 1);
    if (t->vector) {
        vit_vector *v = t->vector;
        if (scale) d->op->upload(d, v->live[0], values, v->count * sizeof *values);
        if (teacher) TRY(vit_clone(d, &v->live[1], v->live[0], v->count * sizeof *values, e));
        v->param = index;
        p->live = v->live[0];
        p->live_teacher = teacher ? v->live[1] : NULL;
        return ERR_OK;
    }
    vit_linear *l = t->linear;
    if (teacher) TRY(split_linear(d, l, t->is_bias, e));
    linear_w *s = l->live[0], *own = teacher ? l->live[1] : NULL;
    if (t->is_bias) {
        l->bias = index;
        p->live = s->bias;
        p->live_teacher = own ? own->bias : NULL;
    } else {
        l->weight = index;
        s->frozen = false;
        p->live_ct = true;
        p->live = s->w;
        p->live_teacher = own ? own->w : NULL;
        p->linear = s;
        p->linear_teacher = own;
    }
    return ERR_OK;
}

static err_code train_apla(vit *m, const peft_spec *spec, param_set *ps, float *values, err *e)
{
    size_t C = (size_t)m->c.dim, r = spec->rows > 0 && (size_t)spec->rows < C ? (size_t)spec->rows : 0;
    for (int i = 0; i < m->c.depth; i++) {
        int32_t *rows = r ? draw_rows(spec->seed, i, C, r) : NULL;
        if (r && !rows) FAIL(e, NOMEM, "no memory for %zu rows", r);
        err_code rc = ERR_OK;
        for (size_t k = 0; k < m->n_tensors && !rc; k++)
            if (m->tensors[k].linear == &m->block[i].proj)
                rc = train_tensor(m, &m->tensors[k], rows, r, spec->teacher, ps, values, e);
        free(rows);
        TRY(rc);
    }
    return ERR_OK;
}

static err_code train_full(vit *m, const peft_spec *spec, param_set *ps, float *values, err *e)
{
    for (size_t i = 0; i < m->n_tensors; i++)
        TRY(train_tensor(m, &m->tensors[i], NULL, 0, spec->teacher, ps, values, e));
    m->bottom = VIT_TO_EMBEDDING;
    return ERR_OK;
}

/* Every bias, and of LayerNorm the shift. */
static err_code train_bitfit(vit *m, const peft_spec *spec, param_set *ps, float *values, err *e)
{
    for (size_t i = 0; i < m->n_tensors; i++) {
        vit_tensor *t = &m->tensors[i];
        if (!strcmp(t->name + strlen(t->name) - 5, ".bias"))
            TRY(train_tensor(m, t, NULL, 0, spec->teacher, ps, values, e));
    }
    m->bottom = VIT_TO_EMBEDDING;
    return ERR_OK;
}

err_code vit_train(vit *m, const peft_spec *spec, param_set *ps, err *e)
{
    if (m->trained) FAIL(e, CONFLICT, "the model's weights are trainable already");
    TRY(peft_check(spec, e));
    size_t most = vit_largest_tensor(m);
    float *values = malloc(most * sizeof *values);
    if (!values) FAIL(e, NOMEM, "no memory for a tensor of %zu values", most);
    m->trained = spec->method != METHOD_LINEAR;
    m->ps = ps;
    m->bottom = VIT_TO_PROJECTION;
    err_code rc = ERR_OK;
    if (spec->method == METHOD_APLA) rc = train_apla(m, spec, ps, values, e);
    if (spec->method == METHOD_FULL) rc = train_full(m, spec, ps, values, e);
    if (spec->method == METHOD_BITFIT) rc = train_bitfit(m, spec, ps, values, e);
    if (spec->method == METHOD_VPT) rc = vit_prompt_train(m, spec, ps, e);
    if (spec->method == METHOD_LORA) rc = vit_lora_train(m, spec, ps, e);
    free(values);
    if (!rc) rc = device_sync(m->d, e);
    return rc;
}

void vit_untrain(vit *m)
{
    for (size_t i = 0; i < m->n_tensors; i++) {
        const vit_tensor *t = &m->tensors[i];
        int *index = t->vector ? &t->vector->param : t->is_bias ? &t->linear->bias : &t->linear->weight;
        *index = VIT_FROZEN;
        for (int k = 0; t->linear && k < t->linear->n_lora; k++)
            t->linear->lora[k].a_param = t->linear->lora[k].b_param = VIT_FROZEN;
    }
    for (int i = 0; i < m->c.depth; i++) m->block[i].prompts.param = VIT_FROZEN;
    m->ps = NULL;
}
