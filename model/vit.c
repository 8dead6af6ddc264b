/* vit.c: a pass over the Vision Transformer: its memory, and the forward direction. vit_grad.c mirrors vit_fwd line for
 * line.
 *
 * What a pass keeps for backward is what dX needs: each block's input, LayerNorm statistics, Q, K, V, attention output,
 * log-sum-exp and the MLP's pre-activation. Outputs of LayerNorm and GELU are made again where a weight gradient asks
 * for them. */
#include <stdlib.h>

#include "model/op_cpu.h"
#include "model/vit_impl.h"

const vit_config *vit_get_config(const vit *m)
{
    return &m->c;
}
device *vit_device(const vit *m)
{
    return m->d;
}
const char *vit_hash(const vit *m)
{
    return m->hash;
}

static size_t count_tokens(const vit *m, size_t height, size_t width)
{
    size_t p = (size_t)m->c.patch;
    return height / p * (width / p) + (size_t)m->c.registers + (m->c.class_token ? 1 : 0);
}

static err_code make_impl(vit_pass *a, const vit *m, err *e)
{
    vit_pass_impl *k = calloc(1, sizeof *k);
    if (!k) FAIL(e, NOMEM, "no memory for a pass");
    a->impl = k;
    k->L = (size_t)m->c.depth;
    k->gh = a->height / (size_t)m->c.patch;
    k->gw = a->width / (size_t)m->c.patch;
    k->Ti = count_tokens(m, a->height, a->width);
    k->N = a->B * k->Ti;
    k->block = calloc(k->L, sizeof *k->block);
    if (!k->block) FAIL(e, NOMEM, "no memory for a pass");
    return vit_position_weights(k, (size_t)m->c.grid, m->c.pos, e);
}

/* C channels, F hidden; every tensor ct unless said. */
static void plan_block(vit_block_acts *b, arena *m, const vit *v, const vit_pass *a, const vit_pass_impl *k)
{
    size_t N = k->N, C = (size_t)v->c.dim, ct = v->d->ct_bytes;
    bool grad = a->keep == VIT_GRAD;
    b->x = arena_take(m, N * C, ct);       /* (N,C)  */
    b->qkv = arena_take(m, N * 3 * C, ct); /* (N,3C) */
    b->o = arena_take(m, N * C, ct);       /* (N,C)  */
    b->mid = arena_take(m, N * C, ct);     /* (N,C)  */
    if (!grad) return;
    b->mean1 = arena_take(m, N, sizeof(float));
    b->rstd1 = arena_take(m, N, sizeof(float));
    b->lse = arena_take(m, a->B * (size_t)v->c.heads * k->Ti, sizeof(float)); /* (B,H,T) */
    b->mean2 = arena_take(m, N, sizeof(float));
    b->rstd2 = arena_take(m, N, sizeof(float));
    b->pre = arena_take(m, N * (size_t)v->c.hidden, ct); /* (N,F) */
}

err_code vit_pass_plan(vit_pass *a, arena *m, const vit *v, size_t B, size_t height, size_t width, vit_keep keep,
                       err *e)
{
    size_t p = (size_t)v->c.patch, C = (size_t)v->c.dim, F = (size_t)v->c.hidden, ct = v->d->ct_bytes;
    if (!B || !height || !width || height % p || width % p)
        FAIL(e, SHAPE, "%zu images of %zux%zu do not divide into patches of %zu", B, width, height, p);
    if (a->impl && (a->B != B || a->height != height || a->width != width || a->keep != keep)) vit_pass_fini(a);
    a->B = B;
    a->height = height;
    a->width = width;
    a->keep = keep;
    a->P = height / p * (width / p);
    a->T = 1 + (size_t)v->c.registers + a->P;
    if (!a->impl) {
        err_code rc = make_impl(a, v, e);
        if (rc) {
            vit_pass_fini(a);
            return rc;
        }
    }
    vit_pass_impl *k = a->impl;
    size_t N = k->N;
    bool grad = keep == VIT_GRAD;
    k->pos_ready[0] = k->pos_ready[1] = false;
    a->patches = arena_take(m, B * a->P, C * ct);
    k->cols = arena_take(m, B * a->P, 3 * p * p * ct);
    for (size_t l = 0; l < k->L; l++) {
        if (l == 0 || grad)
            plan_block(&k->block[l], m, v, a, k);
        else
            k->block[l] = k->block[0];
    }
    a->x_last = grad ? arena_take(m, N * C, ct) : k->block[0].x;
    k->normed = arena_take(m, N * C, ct);
    a->out = v->c.class_token ? k->normed : arena_take(m, B * a->T * C, ct);
    k->norm = arena_take(m, N * C, ct);
    k->branch = arena_take(m, N * C, ct);
    k->hidden = arena_take(m, N * F, ct);
    k->pos[0] = arena_take(m, (1 + a->P) * C, sizeof(float));
    k->pos[1] = arena_take(m, (1 + a->P) * C, sizeof(float));
    if (grad) {
        k->mean = arena_take(m, N, sizeof(float));
        k->rstd = arena_take(m, N, sizeof(float));
        a->dout = arena_take(m, B * a->T * C, ct);
        k->dx = arena_take(m, N * C, ct);
        k->dbranch = arena_take(m, N * C, ct);
        k->dqkv = arena_take(m, N * 3 * C, ct);
        k->dhidden = arena_take(m, N * F, ct);
    }
    if (arena_failed(m)) FAIL(e, NOMEM, "a pass of %zu images does not fit the memory planned for it", B);
    return ERR_OK;
}

size_t vit_pass_work_bytes(const vit *v, size_t B, size_t height, size_t width, vit_keep keep)
{
    size_t Ti = count_tokens(v, height, width), C = (size_t)v->c.dim;
    size_t attention = op_cpu_attention_bytes(B, Ti, (size_t)v->c.heads, C / (size_t)v->c.heads, keep == VIT_GRAD);
    size_t columns = keep == VIT_GRAD ? B * Ti * C * v->d->ct_bytes : 0; /* row slices of dW: at most all C */
    return attention > columns ? attention : columns;
}

void vit_pass_fini(vit_pass *a)
{
    vit_pass_impl *k = a->impl;
    if (k) {
        free(k->block);
        free(k->wy);
        free(k->wx);
        free(k);
    }
    *a = (vit_pass){0};
}

void vit_patches(vit *m, vit_who who, vit_pass *a, const dv *pixels)
{
    const op_table *op = m->d->op;
    vit_pass_impl *k = a->impl;
    op->patchify(m->d, k->cols, pixels, a->B, a->height, a->width, (size_t)m->c.patch);
    op->linear_fwd(m->d, a->patches, k->cols, m->patch.live[who], a->B * a->P);
}

void vit_fwd(vit *m, vit_who who, vit_pass *a, const dv *patches, const dv *mask)
{
    const op_table *op = m->d->op;
    device *d = m->d;
    vit_pass_impl *k = a->impl;
    size_t N = k->N, C = (size_t)m->c.dim, H = (size_t)m->c.heads, R = (size_t)m->c.registers;
    bool grad = a->keep == VIT_GRAD;
    vit_positions(m, who, a);
    bool own_pos = m->pos.live[VIT_TEACHER] != m->pos.live[VIT_STUDENT];
    op->embed_fwd(d, k->block[0].x, patches, m->cls.count ? m->cls.live[who] : NULL, R ? m->reg.live[who] : NULL,
                  k->pos[own_pos ? who : VIT_STUDENT], m->mask_token.live[who], mask, a->B, a->P, R, C);
    for (size_t l = 0; l < k->L; l++) {
        const vit_block *w = &m->block[l];
        vit_block_acts *b = &k->block[l];
        dv *next = !grad ? b->x : l + 1 < k->L ? k->block[l + 1].x : a->x_last;
        op->norm_fwd(d, k->norm, b->mean1, b->rstd1, b->x, w->norm1_weight.live[who], w->norm1_bias.live[who], m->c.eps,
                     N, C);
        op->linear_fwd(d, b->qkv, k->norm, w->qkv.live[who], N);
        op->attention_fwd(d, b->o, b->lse, b->qkv, a->B, k->Ti, H, C / H);
        op->linear_fwd(d, k->branch, b->o, w->proj.live[who], N);
        op->residual_fwd(d, b->mid, b->x, k->branch, w->ls1.live[who], N, C);
        op->norm_fwd(d, k->norm, b->mean2, b->rstd2, b->mid, w->norm2_weight.live[who], w->norm2_bias.live[who],
                     m->c.eps, N, C);
        op->linear_gelu_fwd(d, k->hidden, b->pre, k->norm, w->fc1.live[who], N);
        op->linear_fwd(d, k->branch, k->hidden, w->fc2.live[who], N);
        op->residual_fwd(d, next, b->mid, k->branch, w->ls2.live[who], N, C);
    }
    op->norm_fwd(d, k->normed, k->mean, k->rstd, a->x_last, m->norm_weight.live[who], m->norm_bias.live[who], m->c.eps,
                 N, C);
    if (!m->c.class_token) op->mean_token_fwd(d, a->out, k->normed, a->B, k->Ti, R, C);
}
