/* vit.c: a pass over the Vision Transformer: its memory, and the forward direction. vit_grad.c mirrors vit_fwd line for
 * line.
 *
 * What a pass keeps for backward is what dX needs: each block's input, LayerNorm statistics, Q, K, V, attention output,
 * log-sum-exp and the MLP's pre-activation, or GELU' there in 10 bits where no weight gradient asks for hidden units.
 * Outputs of LayerNorm, GELU and SwiGLU are made again where a weight gradient asks for them.
 *
 * A block goes over the batch in tiles of an image or a few: all ops from its heads' outputs to the next block's on one
 * tile, then on the next. A tile's activations and these weights stay in a core's cache, and cores meet once a block
 * instead of once an op. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

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
    return height / p * (width / p) + (size_t)m->c.registers + m->prompts + (m->c.class_token ? 1 : 0);
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
    k->prompt = k->Ti - m->prompts - a->P;
    k->most_wanted = a->wanted_most < a->B * a->T ? a->wanted_most : a->B * a->T;
    k->finish_wanted = k->most_wanted && m->c.class_token;
    k->want_host = malloc((k->most_wanted + 1) * sizeof *k->want_host);
    if (!k->want_host) FAIL(e, NOMEM, "no memory for a pass");
    k->block = calloc(k->L, sizeof *k->block);
    if (!k->block) FAIL(e, NOMEM, "no memory for a pass");
    bool backward = a->keep != VIT_INFER && m->pos.param != VIT_FROZEN;
    return vit_position_tables(k, (size_t)m->c.grid, m->c.pos, backward, e);
}

/* Tiles of about the device's rows, unless they keep too few of its units busy: then one, of the whole batch. */
static vit_tiling choose_tiling(const device *d, size_t B, size_t Ti)
{
    size_t slots = d->op->slots(d), rows = d->op->tile_rows(d), images = 1;
    if (!rows) return (vit_tiling){B, 1};
    while (images * Ti < rows && B / (images + 1) >= 2 * slots) images++;
    size_t n = (B + images - 1) / images, waves = (n + slots - 1) / slots;
    return n * 4 >= waves * slots * 3 ? (vit_tiling){images, n} : (vit_tiling){B, 1};
}

/* Backward in tiles cannot add up gradients of vectors and of other layers than the projections: they come from all
 * rows at once. */
static bool trains_beyond_projections(const vit *m)
{
    if (m->lora_rank || m->block[0].prompts.param != VIT_FROZEN) return true;
    for (size_t i = 0; i < m->n_tensors; i++) {
        const vit_tensor *t = &m->tensors[i];
        if (t->vector && t->vector->param != VIT_FROZEN) return true;
        if (!t->linear || !vit_trains(t->linear)) continue;
        bool projection = false;
        for (int l = 0; l < m->c.depth; l++) projection |= t->linear == &m->block[l].proj;
        if (!projection) return true;
    }
    return false;
}

/* Rows of scratch that a tiling needs, all slots together. */
static size_t tiling_rows(const device *d, const vit_tiling *t, size_t Ti)
{
    return t->images * Ti * (t->n == 1 ? 1 : d->op->slots(d));
}

static void plan_tiles(vit_pass_impl *k, const vit *m, const vit_pass *a)
{
    k->fwd = choose_tiling(m->d, a->B, k->Ti);
    k->bwd = trains_beyond_projections(m) ? (vit_tiling){a->B, 1} : k->fwd;
    size_t rows = tiling_rows(m->d, &k->fwd, k->Ti), back = tiling_rows(m->d, &k->bwd, k->Ti);
    k->scratch_rows = a->keep != VIT_INFER && back > rows ? back : rows;
}

/* The op that gives GELU' in 10 bits knows nothing of low-rank updates. */
static bool wants_pre(const vit_block *w)
{
    return vit_needs_input(&w->fc2) || w->fc1.n_lora;
}

size_t vit_sharing(const vit_pass *a)
{
    const vit_pass_impl *k = a->impl;
    return a->keep == VIT_INFER || a->again >= k->L ? k->L : a->again + 1;
}

/* Whether GELU's input is kept (SwiGLU's always): of block l, or of any that it shares its place with. */
static bool keeps_whole(const vit *m, const vit_pass *a, size_t l)
{
    size_t sharing = vit_sharing(a);
    if (a->exact || m->c.swiglu || m->d->ct == COMPUTE_F32) return true;
    if (l >= sharing) return wants_pre(&m->block[l]);
    for (size_t i = 0; i < sharing; i++)
        if (wants_pre(&m->block[i])) return true;
    return false;
}

/* What backward needs of an MLP over N rows. */
static void plan_mlp(vit_block_acts *b, arena *m, const vit *v, size_t N, bool whole)
{
    b->mean2 = arena_take(m, N, sizeof(float));
    b->rstd2 = arena_take(m, N, sizeof(float));
    b->pre = whole ? arena_take(m, N * vit_mlp_width(&v->c), v->d->ct_bytes) : NULL; /* (N,F), SwiGLU (N,2F) */
    b->slope = whole ? NULL : arena_take(m, N, op_slope_bytes((size_t)v->c.hidden));
}

/* The pass whose scratch serves a's, if it has as many rows of all. An inferring pass also finds its only x in what the
 * lender's backward fills, before it is. */
static const vit_pass_impl *lender_of(const vit_pass *a)
{
    const vit_pass_impl *k = a->impl, *from = a->lender ? a->lender->impl : NULL;
    if (!from || a->lender->keep == VIT_INFER) return NULL;
    bool fits = k->scratch_rows <= from->scratch_rows && k->N <= from->N && a->B * a->P <= a->lender->B * a->lender->P;
    return fits ? from : NULL;
}

/* Rows of dout. */
static size_t outs_of(const vit_pass *a)
{
    const vit_pass_impl *k = a->impl;
    return k->most_wanted ? k->most_wanted : a->B * a->T;
}

/* C channels, F hidden; every tensor ct unless said. */
static void plan_block(size_t l, arena *m, const vit *v, const vit_pass *a, const vit_pass_impl *k)
{
    vit_block_acts *b = &k->block[l];
    size_t N = k->N, C = (size_t)v->c.dim, ct = v->d->ct_bytes;
    bool shares = l && l < vit_sharing(a), top = k->finish_wanted && l + 1 == k->L && l >= vit_sharing(a);
    if (shares) *b = k->block[0];
    const vit_pass_impl *lender = lender_of(a);
    if (a->keep != VIT_INFER || (!l && !lender)) b->x = arena_take(m, N * C, ct); /* (N,C)  */
    if (a->keep == VIT_INFER && !l && lender) b->x = lender->dx;
    if (a->keep == VIT_INFER || shares) return;
    b->qkv = arena_take(m, N * 3 * C, ct);          /* (N,3C) */
    b->o = arena_take(m, N * C, ct);                /* (N,C)  */
    b->mid = top ? NULL : arena_take(m, N * C, ct); /* (N,C)  */
    b->mean1 = arena_take(m, N, sizeof(float));
    b->rstd1 = arena_take(m, N, sizeof(float));
    b->lse = arena_take(m, a->B * (size_t)v->c.heads * k->Ti, sizeof(float)); /* (B,H,T) */
    if (!top) plan_mlp(b, m, v, N, keeps_whole(v, a, l));
}

/* What the wanted rows take of their own. */
static void plan_wanted(vit_pass *a, arena *m, const vit *v, vit_pass_impl *k)
{
    size_t W = k->most_wanted, C = (size_t)v->c.dim, ct = v->d->ct_bytes;
    k->want = arena_take(m, W, sizeof(int32_t));
    if (!k->finish_wanted) return;
    k->top.o = arena_take(m, W * C, ct);
    k->top.mid = arena_take(m, W * C, ct);
    if (a->keep == VIT_INFER) return;
    plan_mlp(&k->top, m, v, W, keeps_whole(v, a, k->L - 1));
    k->top_dx = arena_take(m, W * C, ct);
    k->top_g = arena_take(m, W * C, ct);
}

err_code vit_pass_plan(vit_pass *a, arena *m, const vit *v, size_t B, size_t height, size_t width, vit_keep keep,
                       err *e)
{
    size_t p = (size_t)v->c.patch, C = (size_t)v->c.dim, F = (size_t)v->c.hidden, ct = v->d->ct_bytes;
    if (!B || !height || !width || height % p || width % p)
        FAIL(e, SHAPE, "%zu images of %zux%zu do not divide into patches of %zu", B, width, height, p);
    size_t P = height / p * (width / p), T = 1 + (size_t)v->c.registers + v->prompts + P;
    bool same = a->impl && a->B == B && a->height == height && a->width == width && a->keep == keep && a->T == T;
    if (same && keep != VIT_INFER) same = vit_position_trains(a->impl) == (v->pos.param != VIT_FROZEN);
    if (!same) {
        vit_pass set = {.exact = a->exact, .again = a->again, .wanted_most = a->wanted_most, .lender = a->lender};
        vit_pass_fini(a);
        *a = set;
        a->B = B;
        a->height = height;
        a->width = width;
        a->keep = keep;
        a->P = P;
        a->T = T;
        err_code rc = make_impl(a, v, e);
        if (rc) {
            vit_pass_fini(a);
            return rc;
        }
    }
    vit_pass_impl *k = a->impl;
    size_t N = k->N, outs = 0;
    bool grad = keep != VIT_INFER;
    if (grad && k->finish_wanted) N = k->most_wanted; /* rows of the final norm */
    if (grad) outs = outs_of(a);
    plan_tiles(k, v, a);
    size_t S = k->scratch_rows;
    k->pos_ready[0] = k->pos_ready[1] = false;
    a->patches = arena_take(m, B * a->P, C * ct);
    const vit_pass_impl *lender = lender_of(a);
    k->cols = lender ? lender->cols : arena_take(m, B * a->P, 3 * p * p * ct);
    for (size_t l = 0; l < k->L; l++) plan_block(l, m, v, a, k);
    if (k->most_wanted) plan_wanted(a, m, v, k);
    a->x_last = grad ? arena_take(m, N * C, ct) : k->block[0].x;
    k->normed = arena_take(m, N * C, ct);
    k->out_all = v->c.class_token ? k->normed : arena_take(m, B * a->T * C, ct);
    a->out = k->most_wanted && !k->finish_wanted ? arena_take(m, B * a->T * C, ct) : k->out_all;
    if (lender) {
        k->norm = lender->norm;
        k->branch = lender->branch;
        k->hidden = lender->hidden;
        k->gates = lender->gates;
        k->qkv = lender->qkv;
        k->low = lender->low;
        k->wide = lender->wide;
    } else {
        k->norm = arena_take(m, S * C, ct);
        k->branch = arena_take(m, S * C, ct);
        k->hidden = arena_take(m, S * F, ct);
        k->gates = v->c.swiglu ? arena_take(m, S * 2 * F, ct) : NULL;
        k->qkv = arena_take(m, S * 3 * C, ct);
        k->low = arena_take(m, S * VIT_UPDATES * v->lora_rank, ct);
        k->wide = arena_take(m, S * v->lora_width, ct);
    }
    k->pos[0] = arena_take(m, (1 + a->P) * C, sizeof(float));
    k->pos[1] = arena_take(m, (1 + a->P) * C, sizeof(float));
    vit_position_plan(k, m);
    if (grad) {
        k->mean = arena_take(m, N, sizeof(float));
        k->rstd = arena_take(m, N, sizeof(float));
        bool lent = lender && outs <= outs_of(a->lender);
        a->dout = lent ? a->lender->dout : arena_take(m, outs * C, ct);
        k->dx = lender ? lender->dx : arena_take(m, k->N * C, ct);
        k->dbranch = lender ? lender->dbranch : arena_take(m, k->N * C, ct);
        k->dout_all = k->most_wanted && !k->finish_wanted ? arena_take(m, B * a->T * C, ct) : a->dout;
        if (!v->c.class_token) k->dtop = lender ? lender->dtop : arena_take(m, k->N * C, ct);
    } else {
        /* Prompts that a block puts in their tokens' place have no rest. */
        bool sums = v->d->ct == COMPUTE_BF16 && !v->prompts;
        k->rest = sums ? arena_take(m, k->N * C, ct) : NULL;
        k->top_rest = sums && k->finish_wanted ? arena_take(m, k->most_wanted * C, ct) : NULL;
    }
    if (arena_failed(m)) FAIL(e, NOMEM, "a pass of %zu images does not fit the memory planned for it", B);
    return ERR_OK;
}

/* Attention's workspace under a tiling, of the whole device. */
static size_t attention_bytes(const vit *v, const vit_tiling *t, size_t Ti, bool backward)
{
    size_t H = (size_t)v->c.heads, D = (size_t)v->c.dim / H, slots = v->d->op->slots(v->d);
    if (t->n == 1) return v->d->op->attention_bytes(v->d, false, t->images, Ti, H, D, backward);
    return slots * (v->d->op->attention_bytes(v->d, true, t->images, Ti, H, D, backward) + ARENA_ALIGN);
}

size_t vit_pass_work_bytes(const vit *v, size_t B, size_t height, size_t width, vit_keep keep)
{
    size_t Ti = count_tokens(v, height, width);
    vit_tiling tiles = choose_tiling(v->d, B, Ti), whole = {B, 1};
    size_t most = attention_bytes(v, &tiles, Ti, keep != VIT_INFER);
    if (keep == VIT_INFER) return most;
    size_t other = trains_beyond_projections(v) ? attention_bytes(v, &whole, Ti, true) : 0;
    size_t columns = B * Ti * (size_t)v->c.dim * v->d->ct_bytes; /* row slices of dW: at most all C */
    if (other > most) most = other;
    return columns > most ? columns : most;
}

void vit_pass_fini(vit_pass *a)
{
    vit_pass_impl *k = a->impl;
    if (k) {
        free(k->block);
        free(k->want_host);
        vit_position_fini(k);
        free(k);
    }
    memset(a, 0, sizeof *a);
}

void vit_patches(vit *m, vit_who who, vit_pass *a, const dv *pixels)
{
    const op_table *op = m->d->op;
    vit_pass_impl *k = a->impl;
    op->patchify(m->d, k->cols, pixels, a->B, a->height, a->width, (size_t)m->c.patch);
    op->linear_fwd(m->d, a->patches, k->cols, m->patch.live[who], a->B * a->P);
}

/* Rows of a tile, and where they are in tensors of N rows and in the slot's scratch. */
vit_tile vit_tile_at(const vit *m, const vit_pass *a, const vit_tiling *t, size_t index, size_t slot)
{
    const vit_pass_impl *k = a->impl;
    size_t first = index * t->images, left = a->B - first;
    vit_tile at = {.images = left < t->images ? left : t->images, .ct = m->d->ct_bytes};
    at.rows = at.images * k->Ti;
    at.first = first * k->Ti;
    at.first_pair = first * (size_t)m->c.heads * k->Ti;
    at.scratch = slot * t->images * k->Ti;
    return at;
}

/* Pieces are no larger than a tile, for whose rows there is scratch, and keep every unit busy where tiles do. */
size_t vit_pieces(const vit *m, const vit_pass *a, const vit_tiling *t)
{
    const vit_pass_impl *k = a->impl;
    size_t most = t->images * k->Ti, n = (k->wanted + most - 1) / most, slots = m->d->op->slots(m->d);
    return t->n == 1 ? n : (n + slots - 1) / slots * slots;
}

vit_tile vit_piece_at(const vit *m, const vit_pass *a, const vit_tiling *t, size_t index, size_t slot)
{
    const vit_pass_impl *k = a->impl;
    size_t n = vit_pieces(m, a, t), first = k->wanted * index / n, next = k->wanted * (index + 1) / n;
    return (vit_tile){.rows = next - first, .first = first, .scratch = slot * t->images * k->Ti, .ct = m->d->ct_bytes};
}

static void want(vit *m, vit_pass *a, size_t n)
{
    vit_pass_impl *k = a->impl;
    k->wanted = n;
    m->d->op->upload(m->d, k->want, k->want_host, n * sizeof *k->want_host);
}

void vit_want(vit *m, vit_pass *a, const int32_t *rows, size_t n)
{
    vit_pass_impl *k = a->impl;
    assert(n <= k->most_wanted && (n || a->keep == VIT_INFER || !k->most_wanted));
    if (n) memcpy(k->want_host, rows, n * sizeof *rows);
    want(m, a, n);
}

void vit_want_classes(vit *m, vit_pass *a)
{
    vit_pass_impl *k = a->impl;
    assert(k->most_wanted == a->B);
    for (size_t i = 0; i < a->B; i++) k->want_host[i] = (int32_t)(i * a->T);
    want(m, a, a->B);
}

/* Where a block's activations of a tile are: kept, or in scratch. pre, slope: NULL where not wanted. */
typedef struct {
    dv *x, *qkv, *o, *mid, *pre, *slope, *norm, *hidden, *gates, *rest;
} block_rows;

static block_rows rows_of(const vit *m, const vit_pass *a, size_t l, const vit_tile *t)
{
    const vit_pass_impl *k = a->impl;
    const vit_block_acts *b = &k->block[l];
    size_t C = (size_t)m->c.dim, F = (size_t)m->c.hidden, width = vit_mlp_width(&m->c);
    bool grad = a->keep != VIT_INFER;
    return (block_rows){.x = vit_rows(t, b->x, C),
                        .qkv = grad ? vit_rows(t, b->qkv, 3 * C) : vit_scratch(t, k->qkv, 3 * C),
                        .o = vit_rows(t, grad ? b->o : k->normed, C),
                        .mid = vit_rows(t, grad ? b->mid : b->x, C), /* inference: in the place of x */
                        .pre = grad && b->pre ? vit_rows(t, b->pre, width) : NULL,
                        .slope = grad && b->slope ? dv_at(b->slope, t->first * op_slope_bytes(F)) : NULL,
                        .norm = vit_scratch(t, k->norm, C),
                        .hidden = vit_scratch(t, k->hidden, F),
                        .gates = k->gates ? vit_scratch(t, k->gates, width) : NULL,
                        .rest = k->rest ? vit_rows(t, k->rest, C) : NULL};
}

static void norm_fwd(device *d, const op_norm *n, const dv *x, size_t N, size_t C)
{
    d->op->norm_fwd(d, n->y, n->mean, n->rstd, x, n->gamma, n->beta, n->eps, N, C);
}

/* y = a layer of x with its low-rank updates. */
static void layer_fwd(vit *m, vit_who who, const vit_pass_impl *k, const vit_tile *t, const vit_linear *w, dv *y,
                      const dv *x)
{
    m->d->op->linear_fwd(m->d, y, x, w->live[who], t->rows);
    if (w->n_lora)
        vit_lora_fwd(m, who, w, y, x, t->rows, vit_scratch(t, k->low, VIT_UPDATES * m->lora_rank),
                     vit_scratch(t, k->wide, m->lora_width));
}

/* out = x + ls * a layer of `in` with its low-rank updates, times what the block's branch counts. */
static void branch_fwd(vit *m, vit_who who, const vit_pass *a, size_t l, vit_branch which, const vit_tile *t,
                       const vit_linear *w, const vit_vector *ls, dv *out, const dv *x, const dv *in, dv *rest,
                       const op_norm *then)
{
    const vit_pass_impl *k = a->impl;
    size_t C = (size_t)m->c.dim;
    dv *branch = vit_scratch(t, k->branch, C);
    if (!w->n_lora && !a->drop) {
        m->d->op->linear_residual_fwd(m->d, out, x, in, w->live[who], ls->live[who], branch, rest, then, t->rows);
        return;
    }
    layer_fwd(m, who, k, t, w, branch, in);
    vit_drop_apply(m, a, l, which, t, branch);
    m->d->op->residual_fwd(m->d, out, x, branch, ls->live[who], rest, t->rows, C);
    if (then) norm_fwd(m->d, then, out, t->rows, C);
}

/* Block l's first norm, of a tile's rows. */
static op_norm norm1_of(const vit *m, vit_who who, const vit_pass *a, size_t l, const vit_tile *t, const block_rows *r)
{
    const vit_pass_impl *k = a->impl;
    const vit_block *w = &m->block[l];
    const vit_block_acts *b = &k->block[l];
    return (op_norm){r->norm,
                     vit_f32(b->mean1, t->first),
                     vit_f32(b->rstd1, t->first),
                     w->norm1_weight.live[who],
                     w->norm1_bias.live[who],
                     m->c.eps};
}

/* A block up to its heads' outputs, before they are projected. normed: r->norm is made. */
static void block_to_heads(vit *m, vit_who who, const vit_pass *a, size_t l, const vit_tile *t, const block_rows *r,
                           bool normed)
{
    const op_table *op = m->d->op;
    device *d = m->d;
    const vit_pass_impl *k = a->impl;
    const vit_block *w = &m->block[l];
    const vit_block_acts *b = &k->block[l];
    size_t C = (size_t)m->c.dim, H = (size_t)m->c.heads;
    op_norm norm = norm1_of(m, who, a, l, t, r);
    if (w->prompts.count) op->prompt_fwd(d, r->x, w->prompts.live[who], t->images, k->Ti, k->prompt, m->prompts, C);
    if (!normed) norm_fwd(d, &norm, r->x, t->rows, C);
    layer_fwd(m, who, k, t, &w->qkv, r->qkv, r->norm);
    op->attention_fwd(d, r->o, vit_f32(b->lse, t->first_pair), r->qkv, t->images, k->Ti, H, C / H);
}

/* From there up to its MLP's hidden units. b: where the MLP's statistics are kept. */
static void block_to_hidden(vit *m, vit_who who, const vit_pass *a, size_t l, const vit_tile *t, const block_rows *r,
                            const vit_block_acts *b)
{
    const op_table *op = m->d->op;
    device *d = m->d;
    const vit_pass_impl *k = a->impl;
    const vit_block *w = &m->block[l];
    size_t N = t->rows;
    const op_norm norm2 = {r->norm,
                           vit_f32(b->mean2, t->first),
                           vit_f32(b->rstd2, t->first),
                           w->norm2_weight.live[who],
                           w->norm2_bias.live[who],
                           m->c.eps};
    branch_fwd(m, who, a, l, VIT_ATTENTION, t, &w->proj, &w->ls1, r->mid, r->x, r->o, r->rest, &norm2);
    if (m->c.swiglu) {
        dv *pre = r->pre ? r->pre : r->gates;
        layer_fwd(m, who, k, t, &w->fc1, pre, r->norm);
        op->swiglu_fwd(d, r->hidden, pre, N, (size_t)m->c.hidden);
    } else if (r->slope) {
        op->linear_gelu_slope_fwd(d, r->hidden, r->slope, r->norm, w->fc1.live[who], N);
    } else if (w->fc1.n_lora) {
        dv *sum = r->pre ? r->pre : r->hidden;
        layer_fwd(m, who, k, t, &w->fc1, sum, r->norm);
        op->gelu_fwd(d, r->hidden, sum, N * (size_t)m->c.hidden);
    } else {
        op->linear_gelu_fwd(d, r->hidden, r->pre, r->norm, w->fc1.live[who], N);
    }
}

void vit_block_again(vit *m, vit_pass *a, size_t l, const vit_tile *t)
{
    block_rows r = rows_of(m, a, l, t);
    const vit_pass_impl *k = a->impl;
    block_to_heads(m, VIT_STUDENT, a, l, t, &r, false);
    block_to_hidden(m, VIT_STUDENT, a, l, t, &r, &k->block[l]);
}

typedef struct {
    vit *m;
    vit_who who;
    vit_pass *a;
    size_t l;
} block_call;

/* The first block up to its heads' outputs, on one tile. */
static void first_fwd(void *ctx, size_t index, size_t slot)
{
    const block_call *c = ctx;
    const vit_pass_impl *k = c->a->impl;
    vit_tile t = vit_tile_at(c->m, c->a, &k->fwd, index, slot);
    block_rows r = rows_of(c->m, c->a, 0, &t);
    block_to_heads(c->m, c->who, c->a, 0, &t, &r, false);
}

/* From block l's heads' outputs to those of the next, on one tile. */
static void block_fwd(void *ctx, size_t index, size_t slot)
{
    const block_call *c = ctx;
    vit *m = c->m;
    const vit_pass_impl *k = c->a->impl;
    const vit_block *w = &m->block[c->l];
    vit_tile t = vit_tile_at(m, c->a, &k->fwd, index, slot);
    block_rows r = rows_of(m, c->a, c->l, &t), next = rows_of(m, c->a, c->l + 1, &t);
    bool prompts = w[1].prompts.count; /* they change what is normalised */
    const op_norm norm = norm1_of(m, c->who, c->a, c->l + 1, &t, &next);
    block_to_hidden(m, c->who, c->a, c->l, &t, &r, &k->block[c->l]);
    branch_fwd(m, c->who, c->a, c->l, VIT_MLP, &t, &w->fc2, &w->ls2, next.x, r.mid, r.hidden, r.rest,
               prompts ? NULL : &norm);
    block_to_heads(m, c->who, c->a, c->l + 1, &t, &next, !prompts);
}

/* From the last block's heads' outputs to the final norm, on one tile. */
static void last_fwd(void *ctx, size_t index, size_t slot)
{
    const block_call *c = ctx;
    vit *m = c->m;
    const vit_pass_impl *k = c->a->impl;
    const vit_block *w = &m->block[c->l];
    vit_tile t = vit_tile_at(m, c->a, &k->fwd, index, slot);
    block_rows r = rows_of(m, c->a, c->l, &t);
    size_t C = (size_t)m->c.dim;
    const op_norm norm = {vit_rows(&t, k->normed, C),  vit_f32(k->mean, t.first), vit_f32(k->rstd, t.first),
                          m->norm_weight.live[c->who], m->norm_bias.live[c->who], m->c.eps};
    block_to_hidden(m, c->who, c->a, c->l, &t, &r, &k->block[c->l]);
    branch_fwd(m, c->who, c->a, c->l, VIT_MLP, &t, &w->fc2, &w->ls2, vit_rows(&t, c->a->x_last, C), r.mid, r.hidden,
               r.rest, &norm);
}

/* The same on a piece of the wanted rows; the final norm is vit_fwd's. */
static void top_fwd(void *ctx, size_t index, size_t slot)
{
    const block_call *c = ctx;
    vit *m = c->m;
    const op_table *op = m->d->op;
    const vit_pass_impl *k = c->a->impl;
    const vit_block *w = &m->block[c->l];
    const vit_block_acts *b = &k->top;
    vit_tile t = vit_piece_at(m, c->a, &k->fwd, index, slot);
    size_t C = (size_t)m->c.dim, F = (size_t)m->c.hidden, width = vit_mlp_width(&m->c);
    dv *mid = vit_rows(&t, b->mid, C), *rows = dv_at(k->want, t.first * sizeof(int32_t));
    block_rows r = {.x = mid,
                    .o = vit_rows(&t, b->o, C),
                    .mid = mid,
                    .pre = b->pre ? vit_rows(&t, b->pre, width) : NULL,
                    .slope = b->slope ? dv_at(b->slope, t.first * op_slope_bytes(F)) : NULL,
                    .norm = vit_scratch(&t, k->norm, C),
                    .hidden = vit_scratch(&t, k->hidden, F),
                    .gates = k->gates ? vit_scratch(&t, k->gates, width) : NULL,
                    .rest = k->rest ? vit_rows(&t, k->top_rest, C) : NULL};
    if (!t.rows) return;
    op->gather(m->d, r.o, c->a->keep == VIT_INFER ? k->normed : k->block[c->l].o, rows, t.rows, C);
    op->gather(m->d, mid, k->block[c->l].x, rows, t.rows, C);
    if (r.rest) op->gather(m->d, r.rest, k->rest, rows, t.rows, C);
    block_to_hidden(m, c->who, c->a, c->l, &t, &r, b);
    dv *to = c->a->keep == VIT_INFER ? mid : vit_rows(&t, c->a->x_last, C);
    branch_fwd(m, c->who, c->a, c->l, VIT_MLP, &t, &w->fc2, &w->ls2, to, mid, r.hidden, r.rest, NULL);
}

void vit_fwd(vit *m, vit_who who, vit_pass *a, const dv *patches, const dv *mask)
{
    const op_table *op = m->d->op;
    device *d = m->d;
    vit_pass_impl *k = a->impl;
    size_t C = (size_t)m->c.dim, R = (size_t)m->c.registers;
    assert(a->keep == VIT_INFER || k->wanted || !k->most_wanted);
    vit_positions(m, who, a);
    bool own_pos = m->pos.live[VIT_TEACHER] != m->pos.live[VIT_STUDENT];
    op->embed_fwd(d, k->block[0].x, patches, m->cls.count ? m->cls.live[who] : NULL, R ? m->reg.live[who] : NULL,
                  k->pos[own_pos ? who : VIT_STUDENT], m->mask_token.live[who], mask, a->B, a->P, R, m->prompts, C);
    if (k->rest) op->zero(d, k->rest, k->N * C * d->ct_bytes);
    op->tiles(d, k->fwd.n, first_fwd, &(block_call){m, who, a, 0});
    for (size_t l = 0; l + 1 < k->L; l++) op->tiles(d, k->fwd.n, block_fwd, &(block_call){m, who, a, l});
    block_call last = {m, who, a, k->L - 1};
    if (vit_finishes_wanted(k)) {
        op->tiles(d, vit_pieces(m, a, &k->fwd), top_fwd, &last);
        op->norm_fwd(d, k->normed, k->mean, k->rstd, a->keep == VIT_INFER ? k->top.mid : a->x_last,
                     m->norm_weight.live[who], m->norm_bias.live[who], m->c.eps, k->wanted, C);
    } else {
        op->tiles(d, k->fwd.n, last_fwd, &last);
    }
    if (!m->c.class_token) op->mean_token_fwd(d, k->out_all, k->normed, a->B, k->Ti, R + m->prompts, C);
    if (a->out == k->out_all) return;
    if (k->wanted)
        op->gather(d, a->out, k->out_all, k->want, k->wanted, C);
    else
        op->copy(d, a->out, k->out_all, a->B * a->T * C * d->ct_bytes);
}
