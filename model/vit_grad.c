/* vit_grad.c: the backward direction of vit.c, its calls reversed. dX flows through everything above the lowest trained
 * weight; dW is made only for what vit_train made trainable.
 *
 * In tiles: the attention half of the block above, then the MLP half of this one, on one tile after the other; then the
 * projection's dW from all rows. Where other weights train there is one tile, of the whole batch. */
#include <assert.h>

#include "model/vit_impl.h"

/* dW, db of a linear layer from dy (N,O) and its input x (N,I). */
static void linear_grad(vit *m, const vit_linear *w, const dv *dy, const dv *x, size_t N)
{
    dv *dw = vit_grad_of(m, w->weight), *db = vit_grad_of(m, w->bias);
    if (!dw && !db) return;
    const param *p = &m->ps->p[dw ? w->weight : w->bias];
    m->d->op->linear_dw(m->d, dw, db, dy, x, p->row_index, p->rows, N, w->w[0].out, w->w[0].in);
}

/* What the half of a block works on. g: gradient of the branch's output, the tile's rows. */
typedef struct {
    vit *m;
    vit_pass *a;
    vit_pass_impl *k;
    const op_table *op;
    device *d;
    vit_tile t;
    size_t C, F;
    const dv *all_g; /* of all rows: gradients of branches' outputs */
    dv *dx, *norm, *branch, *hidden, *gates;
} half;

/* wanted: on a piece of the wanted rows. */
static half half_of(vit *m, vit_pass *a, bool wanted, size_t tile, size_t slot)
{
    vit_pass_impl *k = a->impl;
    half h = {.m = m,
              .a = a,
              .k = k,
              .op = m->d->op,
              .d = m->d,
              .t = wanted ? vit_piece_at(m, a, &k->bwd, tile, slot) : vit_tile_at(m, a, &k->bwd, tile, slot),
              .all_g = wanted ? k->top_g : k->dbranch,
              .C = (size_t)m->c.dim,
              .F = (size_t)m->c.hidden};
    h.dx = vit_rows(&h.t, wanted ? k->top_dx : k->dx, h.C);
    h.norm = vit_scratch(&h.t, k->norm, h.C);
    h.branch = vit_scratch(&h.t, k->branch, h.C);
    h.hidden = vit_scratch(&h.t, k->hidden, h.F);
    if (k->gates) h.gates = vit_scratch(&h.t, k->gates, 2 * h.F);
    return h;
}

/* dx = the gradient of a layer's input from dy, unless NULL; and its low-rank updates' gradients. x: its input, which
 * may be dx; read where vit_needs_input. */
static void layer_dx(const half *h, const vit_linear *w, dv *dx, const dv *dy, const dv *x)
{
    const vit *m = h->m;
    if (w->n_lora)
        vit_lora_bwd(h->m, w, dx, dy, x, h->t.rows, vit_scratch(&h->t, h->k->low, VIT_UPDATES * m->lora_rank),
                     vit_scratch(&h->t, h->k->wide, m->lora_width));
    else if (dx)
        h->op->linear_dx(h->d, dx, dy, w->live[VIT_STUDENT], h->t.rows);
}

/* The same with the gradients of its own weight and bias. */
static void layer_bwd(const half *h, const vit_linear *w, dv *dx, const dv *dy, const dv *x)
{
    linear_grad(h->m, w, dy, x, h->t.rows);
    layer_dx(h, w, dx, dy, x);
}

/* A branch's g, ls * dx * what the branch counts: where it is. */
static dv *branch_g(const half *h, const vit_vector *ls)
{
    return ls->count || h->a->drop ? vit_rows(&h->t, h->all_g, h->C) : h->dx;
}

/* ls * dx is there already, where there is a LayerScale. */
static void branch_weigh(const half *h, size_t l, vit_branch which, const vit_vector *ls)
{
    dv *g = branch_g(h, ls);
    if (g != h->dx && !ls->count) h->op->copy(h->d, g, h->dx, h->t.rows * h->C * h->t.ct);
    vit_drop_apply(h->m, h->a, l, which, &h->t, g);
}

/* dx += LN'(dy) at a block's input to one of its halves; and of the branch below, whose LayerScale is ls, ls * dx. */
static void norm_grad(const half *h, const vit_vector *weight, const vit_vector *bias, const dv *dy, const dv *x,
                      const dv *mean, const dv *rstd, const vit_vector *ls)
{
    bool scaled = ls && ls->count;
    h->op->norm_bwd(h->d, h->dx, true, vit_grad_of(h->m, weight->param), vit_grad_of(h->m, bias->param), dy,
                    vit_rows(&h->t, x, h->C), vit_f32(mean, h->t.first), vit_f32(rstd, h->t.first),
                    weight->live[VIT_STUDENT], scaled ? branch_g(h, ls) : NULL, scaled ? ls->live[VIT_STUDENT] : NULL,
                    h->t.rows, h->C);
}

/* norm = LN(x) again, for a weight gradient. */
static void norm_again(const half *h, const vit_vector *weight, const vit_vector *bias, const dv *x, const dv *mean,
                       const dv *rstd)
{
    h->op->norm_again(h->d, h->norm, vit_rows(&h->t, x, h->C), vit_f32(mean, h->t.first), vit_f32(rstd, h->t.first),
                      weight->live[VIT_STUDENT], bias->live[VIT_STUDENT], h->t.rows, h->C);
}

/* The MLP's hidden units from what came before them. */
static void hidden_again(const half *h, const dv *pre)
{
    if (h->gates)
        h->op->swiglu_fwd(h->d, h->hidden, pre, h->t.rows, h->F);
    else
        h->op->gelu_fwd(h->d, h->hidden, pre, h->t.rows * h->F);
}

/* From the block's output down to between attention and MLP. ls * dx of the MLP's branch is there; at the end the
 * projection's g is. */
static void mlp_bwd(const half *h, size_t l, const vit_block_acts *b)
{
    vit_block *w = &h->m->block[l];
    size_t N = h->t.rows;
    bool last = l == 0 && h->m->bottom == VIT_TO_MLP;
    const dv *pre = b->pre ? vit_rows(&h->t, b->pre, vit_mlp_width(&h->m->c)) : NULL;
    if (vit_needs_input(&w->fc2)) hidden_again(h, pre);
    branch_weigh(h, l, VIT_MLP, &w->ls2);
    const dv *g = branch_g(h, &w->ls2);
    dv *dpre = h->gates ? h->gates : h->hidden;
    if (b->slope) { /* its weight is frozen */
        linear_grad(h->m, &w->fc2, g, NULL, N);
        h->op->linear_dx_slope(h->d, dpre, g, w->fc2.live[VIT_STUDENT],
                               dv_at(b->slope, h->t.first * op_slope_bytes(h->F)), N);
    } else {
        layer_bwd(h, &w->fc2, h->hidden, g, h->hidden);
        if (h->gates)
            h->op->swiglu_bwd(h->d, dpre, h->hidden, pre, N, h->F);
        else
            h->op->gelu_bwd(h->d, dpre, h->hidden, pre, N * h->F);
    }
    if (vit_needs_input(&w->fc1)) norm_again(h, &w->norm2_weight, &w->norm2_bias, b->mid, b->mean2, b->rstd2);
    layer_bwd(h, &w->fc1, last ? NULL : h->branch, dpre, h->norm);
    if (last) return;
    norm_grad(h, &w->norm2_weight, &w->norm2_bias, h->branch, b->mid, b->mean2, b->rstd2, &w->ls1);
    branch_weigh(h, l, VIT_ATTENTION, &w->ls1);
}

/* The projection's g, all rows: mlp_bwd left it there. */
static const dv *projection_g(const vit *m, const vit_pass *a, size_t l)
{
    const vit_pass_impl *k = a->impl;
    bool top = l + 1 == k->L && vit_finishes_wanted(k), apart = m->block[l].ls1.count || a->drop;
    return top ? (apart ? k->top_g : k->top_dx) : apart ? k->dbranch : k->dx;
}

/* From between attention and MLP down to the block's input, and to the branch below it. The projection's own gradient
 * is vit_bwd's. */
static void attention_bwd(const half *h, size_t l)
{
    vit_block *w = &h->m->block[l];
    const vit_block_acts *b = &h->k->block[l];
    size_t C = h->C, H = (size_t)h->m->c.heads;
    vit_bottom bottom = l ? VIT_TO_EMBEDDING : h->m->bottom;
    dv *dqkv = vit_scratch(&h->t, h->k->qkv, 3 * C);
    const dv *o = vit_rows(&h->t, b->o, C), *d_o = h->branch;
    if (l + 1 == h->k->L && vit_finishes_wanted(h->k))
        d_o = vit_rows(&h->t, h->k->dbranch, C); /* top_bwd's */
    else
        layer_dx(h, &w->proj, bottom > VIT_TO_PROJECTION ? h->branch : NULL,
                 vit_rows(&h->t, projection_g(h->m, h->a, l), C), o);
    if (bottom <= VIT_TO_PROJECTION) return;
    h->op->attention_bwd(h->d, dqkv, d_o, vit_rows(&h->t, b->qkv, 3 * C), o, vit_f32(b->lse, h->t.first_pair),
                         h->t.images, h->k->Ti, H, C / H);
    if (vit_needs_input(&w->qkv)) norm_again(h, &w->norm1_weight, &w->norm1_bias, b->x, b->mean1, b->rstd1);
    layer_bwd(h, &w->qkv, bottom > VIT_TO_QKV ? h->branch : NULL, dqkv, h->norm);
    if (bottom <= VIT_TO_QKV) return;
    const vit_vector *ls = l ? &h->m->block[l - 1].ls2 : NULL;
    norm_grad(h, &w->norm1_weight, &w->norm1_bias, h->branch, b->x, b->mean1, b->rstd1, w->prompts.count ? NULL : ls);
    if (!w->prompts.count) return;
    h->op->prompt_bwd(h->d, h->dx, vit_grad_of(h->m, w->prompts.param), h->t.images, h->k->Ti, h->k->prompt,
                      h->m->prompts, C);
    if (ls && ls->count) h->op->residual_bwd(h->d, branch_g(h, ls), h->dx, ls->live[VIT_STUDENT], h->t.rows, C);
}

typedef struct {
    vit *m;
    vit_pass *a;
    size_t l;
} grad_call;

static void block_bwd(void *ctx, size_t tile, size_t slot)
{
    const grad_call *c = ctx;
    half h = half_of(c->m, c->a, false, tile, slot);
    if (c->l + 1 < h.k->L) {
        attention_bwd(&h, c->l + 1);
        if (c->l + 1 < vit_sharing(c->a)) vit_block_again(c->m, c->a, c->l, &h.t); /* over what that has now used */
    }
    mlp_bwd(&h, c->l, &h.k->block[c->l]);
}

/* The last block's MLP and projection on a piece of the wanted rows; gradients of its heads' outputs go to dout, which
 * is not needed any more. */
static void top_bwd(void *ctx, size_t tile, size_t slot)
{
    const grad_call *c = ctx;
    half h = half_of(c->m, c->a, true, tile, slot);
    vit_bottom bottom = c->l ? VIT_TO_EMBEDDING : c->m->bottom;
    if (!h.t.rows) return;
    mlp_bwd(&h, c->l, &h.k->top);
    if (bottom == VIT_TO_MLP) return;
    layer_dx(&h, &c->m->block[c->l].proj, bottom > VIT_TO_PROJECTION ? vit_rows(&h.t, c->a->dout, h.C) : NULL,
             vit_rows(&h.t, projection_g(c->m, c->a, c->l), h.C), vit_rows(&h.t, h.k->top.o, h.C));
}

/* From the wanted rows' gradient at the final norm's input to those of all rows at the last block's input and of its
 * heads' outputs, in dx and dbranch. */
static void wanted_bwd(vit *m, vit_pass *a)
{
    const op_table *op = m->d->op;
    vit_pass_impl *k = a->impl;
    size_t C = (size_t)m->c.dim, l = k->L - 1, bytes = k->N * C * m->d->ct_bytes;
    op->tiles(m->d, vit_pieces(m, a, &k->bwd), top_bwd, &(grad_call){m, a, l});
    linear_grad(m, &m->block[l].proj, projection_g(m, a, l), k->top.o, k->wanted);
    op->zero(m->d, k->dx, bytes);
    op->zero(m->d, k->dbranch, bytes);
    op->scatter_add(m->d, k->dx, k->top_dx, k->want, k->wanted, C);
    op->scatter_add(m->d, k->dbranch, a->dout, k->want, k->wanted, C);
}

static void last_bwd(void *ctx, size_t tile, size_t slot)
{
    const grad_call *c = ctx;
    half h = half_of(c->m, c->a, false, tile, slot);
    attention_bwd(&h, 0);
}

/* LayerScale's, from the gradients of the layer before it, which trains wherever LayerScale does (vit_train). */
static void scale_grad(vit *m, const vit_vector *ls, const vit_linear *before)
{
    const linear_w *w = before->live[VIT_STUDENT];
    if (ls->param == VIT_FROZEN) return;
    assert(before->weight != VIT_FROZEN && (!w->bias || before->bias != VIT_FROZEN));
    m->d->op->scale_grad(m->d, vit_grad_of(m, ls->param), ls->live[VIT_STUDENT], w->w, vit_grad_of(m, before->weight),
                         w->bias, vit_grad_of(m, before->bias), w->out, w->in);
}

static void embed_grad(vit *m, vit_pass *a, const dv *pixels, const dv *mask)
{
    const op_table *op = m->d->op;
    vit_pass_impl *k = a->impl;
    size_t C = (size_t)m->c.dim, rows = 1 + a->P;
    /* k->pos[teacher's] is not in use in a training pass: it holds dpos on this grid. */
    dv *dpos = vit_grad_of(m, m->pos.param), *on_grid = k->pos[VIT_TEACHER];
    if (dpos) op->zero(m->d, on_grid, rows * C * sizeof(float));
    op->embed_bwd(m->d, a->patches, vit_grad_of(m, m->cls.param), vit_grad_of(m, m->reg.param), dpos ? on_grid : NULL,
                  vit_grad_of(m, m->mask_token.param), k->dx, mask, m->c.class_token, a->B, a->P,
                  (size_t)m->c.registers, m->prompts, C);
    if (dpos) vit_positions_bwd(m, a, dpos, on_grid);
    if (!vit_trains(&m->patch)) return;
    if (pixels && m->patch.weight != VIT_FROZEN)
        op->patchify(m->d, k->cols, pixels, a->B, a->height, a->width, (size_t)m->c.patch);
    linear_grad(m, &m->patch, a->patches, k->cols, a->B * a->P);
}

void vit_bwd(vit *m, vit_pass *a, const dv *pixels, const dv *mask)
{
    const op_table *op = m->d->op;
    device *d = m->d;
    vit_pass_impl *k = a->impl;
    size_t C = (size_t)m->c.dim;
    if (!m->trained || a->keep == VIT_INFER) return;
    bool some = vit_finishes_wanted(k);
    const dv *dout = k->dout_all;
    if (a->dout != k->dout_all) {
        op->zero(d, k->dout_all, a->B * a->T * C * d->ct_bytes);
        op->scatter_add(d, k->dout_all, a->dout, k->want, k->wanted, C);
    }
    if (!m->c.class_token) {
        op->mean_token_bwd(d, k->dtop, k->dout_all, a->B, k->Ti, (size_t)m->c.registers + m->prompts, C);
        dout = k->dtop;
    }
    const vit_vector *ls = &m->block[k->L - 1].ls2;
    op->norm_bwd(d, some ? k->top_dx : k->dx, false, vit_grad_of(m, m->norm_weight.param),
                 vit_grad_of(m, m->norm_bias.param), dout, a->x_last, k->mean, k->rstd,
                 m->norm_weight.live[VIT_STUDENT],
                 !ls->count ? NULL
                 : some     ? k->top_g
                            : k->dbranch,
                 ls->count ? ls->live[VIT_STUDENT] : NULL, some ? k->wanted : k->N, C);
    if (some) wanted_bwd(m, a);
    for (size_t l = some ? k->L - 1 : k->L; l-- > 0;) {
        op->tiles(d, k->bwd.n, block_bwd, &(grad_call){m, a, l});
        linear_grad(m, &m->block[l].proj, projection_g(m, a, l), k->block[l].o, k->N);
    }
    if (m->bottom == VIT_TO_MLP) return;
    op->tiles(d, k->bwd.n, last_bwd, &(grad_call){m, a, 0});
    if (m->bottom == VIT_TO_EMBEDDING) embed_grad(m, a, pixels, mask);
    for (size_t l = 0; l < k->L; l++) {
        scale_grad(m, &m->block[l].ls1, &m->block[l].proj);
        scale_grad(m, &m->block[l].ls2, &m->block[l].fc2);
    }
}
