/* vit_prompt.c: visual prompt tuning (Jia et al. 2022): n learnt tokens among the others, behind the positions.
 * Shallow: they enter before block 0 and go through. Deep: each block has prompts of its own, which take the place of
 * what the block before made of the last ones. The model's own weights are frozen. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/rng.h"
#include "model/vit_impl.h"

static err_code train_block(vit *m, const peft_spec *s, int i, param_set *ps, float *values, err *e)
{
    vit_vector *v = &m->block[i].prompts;
    size_t n = (size_t)s->prompts, C = (size_t)m->c.dim, p = (size_t)m->c.patch;
    char name[64];
    snprintf(name, sizeof name, "blocks.%d.prompts", i);
    param *q = param_add(ps, name, n, C);
    if (!q) FAIL(e, NOMEM, "no memory for %s", name);
    q->decay = true;
    /* Xavier-uniform between a patch's values and the model's width, as in the paper's code. */
    rng g = rng_at(s->seed, RNG_PEFT, (uint64_t)i, 1);
    float bound = sqrtf(6 / (float)(3 * p * p + C));
    for (size_t k = 0; k < n * C; k++) values[k] = rng_between(&g, -bound, bound);
    TRY(param_alloc(m->d, q, values, s->teacher, e));
    TRY(m->d->op->alloc(m->d, n * C * sizeof *values, &v->live[0], e));
    v->live[1] = v->live[0];
    if (s->teacher) TRY(m->d->op->alloc(m->d, n * C * sizeof *values, &v->live[1], e));
    v->count = n * C;
    v->param = (int)(ps->n - 1);
    q->live = v->live[0];
    q->live_teacher = s->teacher ? v->live[1] : NULL;
    m->d->op->refresh(m->d, q, 1);
    return ERR_OK;
}

err_code vit_prompt_train(vit *m, const peft_spec *s, param_set *ps, err *e)
{
    if (m->prompts) FAIL(e, USAGE, "the model has prompts already, and others cannot be trained beside them");
    float *values = malloc((size_t)s->prompts * (size_t)m->c.dim * sizeof *values);
    if (!values) FAIL(e, NOMEM, "no memory for %d prompts", s->prompts);
    m->prompts = (size_t)s->prompts;
    m->bottom = VIT_TO_INPUT;
    err_code rc = ERR_OK;
    for (int i = 0; i < (s->deep ? m->c.depth : 1) && !rc; i++) rc = train_block(m, s, i, ps, values, e);
    free(values);
    return rc;
}

void vit_prompt_close(vit *m)
{
    for (int i = 0; m->block && i < m->c.depth; i++) {
        vit_vector *v = &m->block[i].prompts;
        if (v->live[1] != v->live[0]) m->d->op->free(m->d, v->live[1]);
        if (v->live[0]) m->d->op->free(m->d, v->live[0]);
        *v = (vit_vector){.param = VIT_FROZEN};
    }
    m->prompts = 0;
}
