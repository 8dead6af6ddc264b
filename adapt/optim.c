/* optim.c: see optim.h. */
#include "adapt/optim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

float schedule_warm_cosine(float base, float last, uint64_t step, uint64_t warm, uint64_t total)
{
    if (step < warm) return base * (float)step / (float)warm;
    return schedule_cosine(base, last, step - warm, total > warm ? total - warm : 0);
}

float schedule_cosine(float first, float last, uint64_t step, uint64_t total)
{
    if (!total || step >= total) return last;
    return (float)(last + 0.5 * (first - last) * (1 + cos(3.14159265358979323846 * (double)step / (double)total)));
}

float schedule_linear(float first, float last, uint64_t step, uint64_t over)
{
    if (!over || step >= over) return last;
    return first + (last - first) * (float)step / (float)over;
}

int optim_layer(const char *name, int depth)
{
    static const char *const before[] = {"patch_embed.",    "pos_embed",  "cls_token",
                                         "register_tokens", "mask_token", "prompt"};
    if (!strncmp(name, "blocks.", 7)) return atoi(name + 7) + 1;
    for (size_t i = 0; i < sizeof before / sizeof *before; i++)
        if (!strncmp(name, before[i], strlen(before[i]))) return 0;
    return depth + 1;
}

void optim_layer_decay(param_set *ps, int depth, float decay)
{
    for (size_t i = 0; i < ps->n; i++)
        ps->p[i].lr_scale *= powf(decay, (float)(depth + 1 - optim_layer(ps->p[i].name, depth)));
}

err_code optim_init(optim *o, device *d, param_set *ps, float clip, err *e)
{
    *o = (optim){.d = d, .ps = ps, .clip = clip};
    return d->op->alloc(d, sizeof(float), &o->scalar, e);
}

void optim_fini(optim *o)
{
    if (o->scalar) o->d->op->free(o->d, o->scalar);
    *o = (optim){0};
}

void optim_zero(optim *o)
{
    for (size_t i = 0; i < o->ps->n; i++) {
        const param *p = &o->ps->p[i];
        o->d->op->zero(o->d, p->grad, p->rows * p->cols * sizeof(float));
    }
}

void optim_ask(optim *o, adamw_step *s)
{
    s->clip = o->clip;
    o->d->op->grad_square(o->d, o->scalar, o->ps->p, o->ps->n, s);
    o->d->op->adamw(o->d, o->ps->p, o->ps->n, s, o->scalar);
}

err_code optim_judge(optim *o, float square, err *e)
{
    o->norm = sqrtf(square);
    if (!isfinite(o->norm)) FAIL(e, NUMERIC, "the gradient is not finite");
    return ERR_OK;
}

err_code optim_step(optim *o, adamw_step *s, err *e)
{
    float square;
    optim_ask(o, s);
    o->d->op->download(o->d, &square, o->scalar, sizeof square);
    TRY(device_sync(o->d, e));
    return optim_judge(o, square, e);
}
