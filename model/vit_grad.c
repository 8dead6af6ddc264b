/* vit_grad.c: the backward direction of vit.c, its calls reversed. dX flows through everything above the lowest trained
 * weight; dW is made only for what vit_train made trainable. */
#include <stdlib.h>

#include "model/vit_impl.h"

/* dW, db of a linear layer from dy (N,O) and its input x (N,I). */
static void linear_grad(vit *m, const vit_linear *w, const dv *dy, const dv *x, size_t N)
{
    dv *dw = vit_grad_of(m, w->weight), *db = vit_grad_of(m, w->bias);
    if (!dw && !db) return;
    const param *p = &m->ps->p[dw ? w->weight : w->bias];
    m->d->op->linear_dw(m->d, dw, db, dy, x, p->row_index, p->rows, N, w->w[0].out, w->w[0].in);
}

static bool trained(const vit_linear *w)
{
    return w->weight != VIT_FROZEN || w->bias != VIT_FROZEN;
}

/* dbranch = ls * dx, and dls where wanted (branch is then the layer's output, made again). */
static const dv *branch_grad(vit *m, const vit_vector *ls, vit_pass_impl *k, vit_linear *last, const dv *input)
{
    size_t N = k->N, C = (size_t)m->c.dim;
    if (!ls->count) return k->dx;
    dv *dls = vit_grad_of(m, ls->param);
    if (dls) m->d->op->linear_fwd(m->d, k->branch, input, last->live[VIT_STUDENT], N);
    m->d->op->residual_bwd(m->d, k->dbranch, dls, k->dx, k->branch, ls->live[VIT_STUDENT], N, C);
    return k->dbranch;
}

static void embed_grad(vit *m, vit_pass *a, const dv *pixels, const dv *mask)
{
    const op_table *op = m->d->op;
    vit_pass_impl *k = a->impl;
    size_t C = (size_t)m->c.dim, G = (size_t)m->c.grid, rows = 1 + a->P;
    /* k->pos[teacher's] is not in use in a training pass: it holds dpos on this grid. */
    dv *dpos = vit_grad_of(m, m->pos.param), *on_grid = k->pos[VIT_TEACHER];
    if (dpos) op->zero(m->d, on_grid, rows * C * sizeof(float));
    op->embed_bwd(m->d, a->patches, vit_grad_of(m, m->cls.param), vit_grad_of(m, m->reg.param), dpos ? on_grid : NULL,
                  vit_grad_of(m, m->mask_token.param), k->dx, mask, a->B, a->P, (size_t)m->c.registers, C);
    if (dpos) {
        float *host = malloc(rows * C * sizeof *host), *grad = malloc((1 + G * G) * C * sizeof *grad);
        if (host && grad) {
            op->download(m->d, host, on_grid, rows * C * sizeof *host);
            op->download(m->d, grad, dpos, (1 + G * G) * C * sizeof *grad);
            vit_positions_bwd(m, a, host, grad);
            op->upload(m->d, dpos, grad, (1 + G * G) * C * sizeof *grad);
        } else {
            err_set(&m->d->sticky, ERR_NOMEM, __FILE__, __LINE__, "no memory for positional gradients");
        }
        free(host);
        free(grad);
    }
    if (!trained(&m->patch)) return;
    if (pixels) op->patchify(m->d, k->cols, pixels, a->B, a->height, a->width, (size_t)m->c.patch);
    linear_grad(m, &m->patch, a->patches, k->cols, a->B * a->P);
}

void vit_bwd(vit *m, vit_pass *a, const dv *pixels, const dv *mask)
{
    const op_table *op = m->d->op;
    device *d = m->d;
    vit_pass_impl *k = a->impl;
    size_t N = k->N, C = (size_t)m->c.dim, F = (size_t)m->c.hidden, H = (size_t)m->c.heads;
    const vit_who who = VIT_STUDENT;
    if (!m->trained || a->keep != VIT_GRAD) return;
    const dv *dout = a->dout;
    if (!m->c.class_token) {
        op->mean_token_bwd(d, k->norm, a->dout, a->B, k->Ti, (size_t)m->c.registers, C);
        dout = k->norm;
    }
    op->norm_bwd(d, k->dx, false, vit_grad_of(m, m->norm_weight.param), vit_grad_of(m, m->norm_bias.param), dout,
                 a->x_last, k->mean, k->rstd, m->norm_weight.live[who], N, C);
    for (size_t l = k->L; l-- > 0;) {
        vit_block *w = &m->block[l];
        vit_block_acts *b = &k->block[l];
        if (trained(&w->fc2) || w->ls2.param != VIT_FROZEN) op->gelu_fwd(d, k->hidden, b->pre, N * F);
        const dv *g = branch_grad(m, &w->ls2, k, &w->fc2, k->hidden);
        linear_grad(m, &w->fc2, g, k->hidden, N);
        op->linear_dx(d, k->dhidden, g, w->fc2.live[who], N);
        op->gelu_bwd(d, k->dhidden, k->dhidden, b->pre, N * F);
        if (trained(&w->fc1)) {
            op->norm_again(d, k->norm, b->mid, b->mean2, b->rstd2, w->norm2_weight.live[who], w->norm2_bias.live[who],
                           N, C);
            linear_grad(m, &w->fc1, k->dhidden, k->norm, N);
        }
        op->linear_dx(d, k->branch, k->dhidden, w->fc1.live[who], N);
        op->norm_bwd(d, k->dx, true, vit_grad_of(m, w->norm2_weight.param), vit_grad_of(m, w->norm2_bias.param),
                     k->branch, b->mid, b->mean2, b->rstd2, w->norm2_weight.live[who], N, C);
        g = branch_grad(m, &w->ls1, k, &w->proj, b->o);
        linear_grad(m, &w->proj, g, b->o, N);
        if (l == 0 && !m->below) return; /* nothing under the first projection is trained */
        op->linear_dx(d, k->branch, g, w->proj.live[who], N);
        op->attention_bwd(d, k->dqkv, k->branch, b->qkv, b->o, b->lse, a->B, k->Ti, H, C / H);
        if (trained(&w->qkv)) {
            op->norm_again(d, k->norm, b->x, b->mean1, b->rstd1, w->norm1_weight.live[who], w->norm1_bias.live[who], N,
                           C);
            linear_grad(m, &w->qkv, k->dqkv, k->norm, N);
        }
        op->linear_dx(d, k->branch, k->dqkv, w->qkv.live[who], N);
        op->norm_bwd(d, k->dx, true, vit_grad_of(m, w->norm1_weight.param), vit_grad_of(m, w->norm1_bias.param),
                     k->branch, b->x, b->mean1, b->rstd1, w->norm1_weight.live[who], N, C);
    }
    embed_grad(m, a, pixels, mask);
}
