/* ssl_step.c: see ssl_step.h. The patch embedding of the globals is computed once and serves teacher and student
 * (unless it is trained). */
#include "adapt/ssl_step.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "preprocess/sampler.h"

enum { DINO, IBOT, KOLEO, ENTROPY, MARGINAL = ENTROPY + 2, SQUARE = MARGINAL + 2, SCALARS };
enum { CLASSES, PATCHES, GROUPS };
enum { SINKHORN_ITERATIONS = 3, PIECE_BYTES = 32 << 20, PIECE_LEAST = 64 };

static dv *scalar(const ssl_step *s, int i)
{
    return dv_at(s->scalars, (size_t)i * sizeof(float));
}

/* Element offset of row r in a ct matrix of C columns. */
static dv *row(const ssl_step *s, const dv *x, size_t r, size_t C)
{
    return dv_at(x, r * C * s->d->ct_bytes);
}

static void copy_rows(const ssl_step *s, dv *to, const dv *from, size_t n)
{
    if (n) s->d->op->copy(s->d, to, from, n * s->config.head.in * s->d->ct_bytes);
}

static size_t micro_batches(const ssl_step_config *k)
{
    return k->accumulate ? k->accumulate : 1;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static void plan_group(ssl_group *g, const ssl_step *s, arena *m)
{
    const dino_head_config *k = &s->config.head;
    size_t ct = s->d->ct_bytes;
    dino_head_plan(&g->acts, m, k, ct, g->most);
    g->x = arena_take(m, g->most * k->in, ct);
    g->dx = arena_take(m, g->most * k->in, ct);
    g->unit = arena_take(m, g->teacher_most * k->bottleneck, ct);
    g->center = arena_take(m, k->prototypes, sizeof(float));
    g->sum = arena_take(m, k->prototypes, sizeof(float));
    g->mean = arena_take(m, k->prototypes, sizeof(float));
    g->row_scale = arena_take(m, g->teacher_most, sizeof(float));
    g->pair = arena_take(m, g->most * g->P, sizeof(int32_t));
    g->weight = arena_take(m, g->most * g->P, sizeof(float));
}

/* How many rows of logits are made at once. The class tokens' targets are all held: each serves several rows. */
static void choose_pieces(ssl_step *s)
{
    const ssl_step_config *k = &s->config;
    size_t most = larger(s->group[CLASSES].most, s->group[PATCHES].most);
    size_t fit = larger(PIECE_BYTES / (k->head.prototypes * s->d->ct_bytes), PIECE_LEAST);
    s->piece = smaller(most, k->rows_at_once ? k->rows_at_once : fit);
    s->q_rows = larger(2 * k->batch, smaller(s->piece, k->masked_most));
}

/* Everything whose size depends on the batch, from one block. */
static err_code plan(ssl_step *s, arena *m, err *e)
{
    const ssl_step_config *k = &s->config;
    size_t B = k->batch, L = k->locals, K = k->head.prototypes, ct = s->d->ct_bytes, M = k->masked_most;
    size_t S = k->global_size, z = k->local_size;
    s->student.again = s->local.again = k->recompute;
    s->student.wanted_most = s->teacher.wanted_most = 2 * B + M; /* class tokens, masked patches */
    s->local.wanted_most = L * B;
    s->teacher.lender = s->local.lender = &s->student; /* one after the other, forward and backward */
    TRY(vit_pass_plan(&s->student, m, s->m, 2 * B, S, S, VIT_GRAD, e));
    TRY(vit_pass_plan(&s->teacher, m, s->m, 2 * B, S, S, VIT_INFER, e));
    if (L) TRY(vit_pass_plan(&s->local, m, s->m, L * B, z, z, VIT_GRAD, e));
    s->P = s->student.P;
    s->T = s->student.T;
    s->local_T = s->local.T;
    s->group[CLASSES].most = s->group[CLASSES].n = 2 * B + L * B;
    s->group[CLASSES].teacher_most = s->group[CLASSES].teacher_n = 2 * B;
    s->group[CLASSES].P = 2;
    s->group[PATCHES].most = s->group[PATCHES].teacher_most = M;
    s->group[PATCHES].P = 1;
    for (int g = 0; g < GROUPS; g++) plan_group(&s->group[g], s, m);
    choose_pieces(s);
    s->globals = arena_take(m, 2 * B * 3 * S * S, sizeof(float));
    s->locals = arena_take(m, L * B * 3 * z * z, sizeof(float));
    s->mask = arena_take(m, 2 * B * s->P, 1);
    s->frames = arena_take(m, k->frame_bytes, 1);
    s->logits = arena_take(m, s->piece * K, ct);
    s->q = arena_take(m, s->q_rows * K, ct);
    s->koleo_dx = arena_take(m, 2 * B * k->head.in, ct);
    s->scalars = arena_take(m, SCALARS, sizeof(float));
    if (arena_failed(m)) FAIL(e, NOMEM, "the step does not fit the memory planned for it");
    return ERR_OK;
}

static void fini_passes(ssl_step *s)
{
    vit_pass_fini(&s->student);
    vit_pass_fini(&s->teacher);
    vit_pass_fini(&s->local);
}

/* What ops need beside the block: of the passes, and of the head's weight gradients. */
static size_t work_bytes(const ssl_step *s)
{
    const ssl_step_config *k = &s->config;
    size_t a = vit_pass_work_bytes(s->m, 2 * k->batch, k->global_size, k->global_size, VIT_GRAD);
    size_t b = k->locals ? vit_pass_work_bytes(s->m, k->locals * k->batch, k->local_size, k->local_size, VIT_GRAD) : 0;
    return a > b ? a : b;
}

static size_t heads(const ssl_step_config *k)
{
    return k->separate_heads ? 2 : 1;
}

err_code ssl_step_bytes(vit *m, const ssl_step_config *k, size_t *bytes, err *e)
{
    ssl_step s = {.m = m, .d = vit_device(m), .config = *k};
    arena dry = {0};
    err_code rc = plan(&s, &dry, e);
    fini_passes(&s);
    if (!rc) *bytes = dry.used + heads(k) * dino_head_bytes(&k->head, s.d->ct_bytes) + work_bytes(&s);
    return rc;
}

/* Targets of the class tokens. Teacher rows: global 0 of image b is q row b, global 1 is q row B+b. A local crop is
 * matched with both globals, a global with the other; each pair weighs 1/B of its term, and there are 2L+2 terms
 * (facts: DINO). */
static void fill_pairs(ssl_step *s)
{
    size_t B = s->config.batch, L = s->config.locals, rows = 2 * B + L * B;
    int32_t *pair = s->host_pair;
    float *weight = s->host_weight, w = s->config.dino / (float)(B * (2 * L + 2) * micro_batches(&s->config));
    int32_t b = 0, other = (int32_t)B;
    for (size_t i = 0; i < rows; i++, b = b + 1 == other ? 0 : b + 1) {
        bool global = i < 2 * B;
        pair[2 * i] = !global ? b : i < B ? b + other : b;
        pair[2 * i + 1] = global ? -1 : b + other;
        weight[2 * i] = w;
        weight[2 * i + 1] = global ? 0 : w;
    }
    s->d->op->upload(s->d, s->group[CLASSES].pair, pair, 2 * rows * sizeof *pair);
    s->d->op->upload(s->d, s->group[CLASSES].weight, weight, 2 * rows * sizeof *weight);
    for (size_t i = 0; i < s->config.masked_most; i++) pair[i] = (int32_t)i; /* a patch's target is its own */
    s->d->op->upload(s->d, s->group[PATCHES].pair, pair, s->config.masked_most * sizeof *pair);
    for (size_t i = 0; i < 2 * B; i++) s->host_rows[i] = (int32_t)(i * s->T);
    if (L) vit_want_classes(s->m, &s->local);
}

static err_code open_drop(ssl_step *s, err *e)
{
    const ssl_step_config *k = &s->config;
    size_t branches = 2 * (size_t)vit_get_config(s->m)->depth;
    if (!(k->drop_path >= 0 && k->drop_path < 1)) FAIL(e, USAGE, "a drop path of %g", (double)k->drop_path);
    if (k->drop_path == 0) return ERR_OK;
    s->drop = calloc(branches * (2 + k->locals) * k->batch, sizeof *s->drop);
    if (!s->drop) FAIL(e, NOMEM, "no memory for a step");
    s->student.drop = s->drop;
    s->local.drop = s->drop + branches * 2 * k->batch;
    return ERR_OK;
}

/* The step's crops are its images: global ones, then local ones. */
static void draw_drop(ssl_step *s, uint64_t number)
{
    const ssl_step_config *k = &s->config;
    size_t globals = 2 * k->batch, branches = 2 * (size_t)vit_get_config(s->m)->depth;
    if (!s->drop) return;
    vit_drop_draw(s->m, k->drop_path, k->seed, number, 0, globals, s->drop);
    vit_drop_draw(s->m, k->drop_path, k->seed, number, globals, k->locals * k->batch, s->drop + branches * globals);
}

err_code ssl_step_open(ssl_step *s, vit *m, param_set *ps, const ssl_step_config *k, err *e)
{
    *s = (ssl_step){.m = m, .d = vit_device(m), .ps = ps, .config = *k};
    arena dry = {0}, real;
    size_t most = k->masked_most;
    if (k->batch < 1 || most > 2 * k->batch * 65536) FAIL(e, USAGE, "a step needs at least one image");
    TRY(plan(s, &dry, e));
    for (size_t i = 0; i < heads(k); i++)
        TRY(dino_head_open(&s->head[i], s->d, ps, (dino_head_which)i, &k->head, k->seed, e));
    TRY(s->d->op->alloc(s->d, dry.used, &s->block, e));
    arena_init(&real, s->block, dry.used);
    TRY(plan(s, &real, e));
    TRY(open_drop(s, e));
    TRY(device_reserve(s->d, work_bytes(s), e));
    TRY(optim_init(&s->optim, s->d, ps, k->clip, e));
    for (int g = 0; g < GROUPS; g++) s->group[g].head = &s->head[g == PATCHES && k->separate_heads];
    size_t rows = 2 * s->group[CLASSES].most + s->group[PATCHES].most + 2;
    s->host_rows = malloc(rows * sizeof *s->host_rows);
    s->host_pair = malloc(rows * sizeof *s->host_pair);
    s->host_weight = malloc(rows * sizeof *s->host_weight);
    s->jobs = malloc((2 + k->locals) * k->batch * sizeof *s->jobs);
    if (!s->host_rows || !s->host_pair || !s->host_weight || !s->jobs) FAIL(e, NOMEM, "no memory for a step");
    s->patch_trained = param_find(ps, "patch_embed.proj.weight") || param_find(ps, "patch_embed.proj.bias");
    s->bytes = dry.used + heads(k) * dino_head_bytes(&k->head, s->d->ct_bytes) + s->d->work_bytes;
    fill_pairs(s);
    return device_sync(s->d, e);
}

void ssl_step_close(ssl_step *s)
{
    if (!s->d) return;
    for (size_t i = 0; i < heads(&s->config); i++) dino_head_close(&s->head[i]);
    optim_fini(&s->optim);
    fini_passes(s);
    if (s->block) s->d->op->free(s->d, s->block);
    free(s->drop);
    free(s->jobs);
    free(s->host_rows);
    free(s->host_pair);
    free(s->host_weight);
    *s = (ssl_step){0};
}

static void refresh_heads(ssl_step *s)
{
    for (size_t i = 0; i < heads(&s->config); i++) dino_head_refresh(&s->head[i]);
}

void ssl_step_refresh(ssl_step *s)
{
    s->d->op->refresh(s->d, s->ps->p, s->ps->n);
    refresh_heads(s);
}

/* Rows and targets of the masked patches: 1/(2B) sum over crops of 1/|M_i| sum over masked (facts: iBOT). */
err_code ssl_step_want(ssl_step *s, const uint8_t *mask, err *e)
{
    size_t crops = 2 * s->config.batch, n = 0, lead = s->T - s->P;
    int32_t *rows = s->host_rows + crops;
    for (size_t i = 0; mask && i < crops; i++) {
        size_t count = 0;
        for (size_t p = 0; p < s->P; p++) count += mask[i * s->P + p] != 0;
        for (size_t p = 0; p < s->P; p++) {
            if (!mask[i * s->P + p]) continue;
            if (n == s->config.masked_most) FAIL(e, INTERNAL, "more than %zu masked patches", n);
            rows[n] = (int32_t)(i * s->T + lead + p);
            s->host_weight[n] = s->config.ibot / (float)(crops * count * micro_batches(&s->config));
            n++;
        }
    }
    s->group[PATCHES].n = s->group[PATCHES].teacher_n = n;
    vit_want(s->m, &s->student, s->host_rows, crops + n);
    vit_want(s->m, &s->teacher, s->host_rows, crops + n);
    s->d->op->upload(s->d, s->group[PATCHES].weight, s->host_weight, n * sizeof *s->host_weight);
    return ERR_OK;
}

/* --- the teacher: embeddings, centres, targets */

static void teacher_forward(ssl_step *s)
{
    ssl_group *c = &s->group[CLASSES], *p = &s->group[PATCHES];
    size_t C = s->config.head.in;
    if (s->patch_trained) vit_patches(s->m, VIT_TEACHER, &s->teacher, s->globals);
    vit_fwd(s->m, VIT_TEACHER, &s->teacher, s->patch_trained ? s->teacher.patches : s->student.patches, NULL);
    copy_rows(s, c->x, s->teacher.out, c->teacher_n);
    copy_rows(s, p->x, row(s, s->teacher.out, c->teacher_n, C), p->teacher_n);
    for (ssl_group *g = s->group; g < s->group + GROUPS; g++) {
        dino_head_embed(g->head, VIT_TEACHER, &g->acts, g->unit, g->x, g->teacher_n);
        g->targets += g->teacher_n;
    }
}

/* Whether q has room for all of the group's targets; else they are made a piece at a time, each time anew. */
static bool held(const ssl_step *s, const ssl_group *g)
{
    return g->teacher_n <= s->q_rows;
}

static void teacher_logits(ssl_step *s, ssl_group *g, size_t first, dv *to, size_t n)
{
    dino_head_logits(g->head, VIT_TEACHER, row(s, g->unit, first, s->config.head.bottleneck), to, n);
}

static void softmax_targets(ssl_step *s, ssl_group *g, dv *q, float tau, size_t n)
{
    s->d->op->teacher_softmax(s->d, q, g->sum, g->mean, scalar(s, ENTROPY + (int)(g - s->group)), q, g->center, tau, n,
                              s->config.head.prototypes);
}

/* Leaves Sinkhorn-Knopp's scale of the prototypes in g->center. */
static void sinkhorn(ssl_step *s, ssl_group *g, float tau)
{
    const op_table *op = s->d->op;
    size_t K = s->config.head.prototypes, at_once = held(s, g) ? g->teacher_n : s->piece;
    const dv *from = NULL;
    dv *to = g->center;
    for (int t = 0; t < SINKHORN_ITERATIONS; t++) {
        for (size_t first = 0; first < g->teacher_n; first += at_once) {
            size_t n = smaller(at_once, g->teacher_n - first);
            dv *scale = dv_at(g->row_scale, first * sizeof(float));
            if (t == 0 || !held(s, g)) teacher_logits(s, g, first, s->q, n);
            if (from) op->sinkhorn_rows(s->d, scale, s->q, from, tau, n, K);
            op->sinkhorn_prototypes(s->d, to, s->q, from ? scale : NULL, first == 0, tau, n, K);
        }
        from = to;
        to = to == g->center ? g->sum : g->center;
    }
    op->zero(s->d, g->sum, K * sizeof(float));
}

static void teacher_targets(ssl_step *s, ssl_group *g, float tau)
{
    bool balance = s->config.centering == SSL_SINKHORN && g->teacher_n;
    if (balance) sinkhorn(s, g, tau);
    if (!held(s, g)) return;
    if (!balance) teacher_logits(s, g, 0, s->q, g->teacher_n);
    softmax_targets(s, g, s->q, tau, g->teacher_n);
}

/* --- the student */

static void student_forward(ssl_step *s, const dv *mask)
{
    ssl_group *c = &s->group[CLASSES], *p = &s->group[PATCHES];
    size_t B = s->config.batch, LB = s->config.locals * B, C = s->config.head.in;
    vit_fwd(s->m, VIT_STUDENT, &s->student, s->student.patches, mask);
    copy_rows(s, c->x, s->student.out, 2 * B);
    if (LB) {
        vit_patches(s->m, VIT_STUDENT, &s->local, s->locals);
        vit_fwd(s->m, VIT_STUDENT, &s->local, s->local.patches, NULL);
        copy_rows(s, row(s, c->x, 2 * B, C), s->local.out, LB);
    }
    copy_rows(s, p->x, row(s, s->student.out, 2 * B, C), p->n);
    for (ssl_group *g = s->group; g < s->group + GROUPS; g++)
        dino_head_embed(g->head, VIT_STUDENT, &g->acts, g->acts.unit, g->x, g->n);
}

/* A group's cross-entropy and its gradient down to the head's input, a piece of rows after the other. */
static void group_loss(ssl_step *s, ssl_group *g, float teacher_temp)
{
    const op_table *op = s->d->op;
    size_t K = s->config.head.prototypes, Z = s->config.head.bottleneck;
    bool own = g == &s->group[PATCHES]; /* row i's target is the teacher's row i */
    teacher_targets(s, g, teacher_temp);
    for (size_t first = 0; first < g->n; first += s->piece) {
        size_t n = smaller(s->piece, g->n - first), at = first * g->P;
        const dv *q = own && held(s, g) ? row(s, s->q, first, K) : s->q;
        if (!held(s, g)) {
            teacher_logits(s, g, first, s->q, n);
            softmax_targets(s, g, s->q, teacher_temp, n);
        }
        dino_head_logits(g->head, VIT_STUDENT, row(s, g->acts.unit, first, Z), s->logits, n);
        op->soft_ce(s->d, scalar(s, own ? IBOT : DINO), s->logits, s->logits, q,
                    own ? g->pair : dv_at(g->pair, at * sizeof(int32_t)), dv_at(g->weight, at * sizeof(float)), g->P,
                    s->config.student_temp, n, K);
        dino_head_logits_bwd(g->head, &g->acts, first, s->logits, n);
    }
    dino_head_embed_bwd(g->head, &g->acts, g->dx, g->x, g->n);
}

static void koleo(ssl_step *s)
{
    size_t B = s->config.batch, C = s->config.head.in;
    float w = s->config.koleo / (float)micro_batches(&s->config);
    for (size_t g = 0; g < 2; g++)
        s->d->op->koleo(s->d, scalar(s, KOLEO), row(s, s->koleo_dx, g * B, C), row(s, s->group[CLASSES].x, g * B, C), w,
                        B, C);
}

static void backward(ssl_step *s, const dv *mask)
{
    const op_table *op = s->d->op;
    const ssl_group *c = &s->group[CLASSES], *p = &s->group[PATCHES];
    size_t B = s->config.batch, LB = s->config.locals * B, C = s->config.head.in;
    op->add(s->d, c->dx, s->koleo_dx, 2 * B * C); /* the first rows are the global class tokens */
    copy_rows(s, s->student.dout, c->dx, 2 * B);
    copy_rows(s, row(s, s->student.dout, 2 * B, C), p->dx, p->n);
    vit_bwd(s->m, &s->student, s->globals, mask);
    if (!LB) return;
    copy_rows(s, s->local.dout, row(s, c->dx, 2 * B, C), LB);
    vit_bwd(s->m, &s->local, s->locals, NULL);
}

/* --- a step */

/* What adds up over an update's micro-batches begins at zero. */
static void begin(ssl_step *s)
{
    size_t K = s->config.head.prototypes;
    optim_zero(&s->optim);
    s->d->op->zero(s->d, s->scalars, SCALARS * sizeof(float));
    for (ssl_group *g = s->group; g < s->group + GROUPS; g++) {
        s->d->op->zero(s->d, g->sum, K * sizeof(float));
        s->d->op->zero(s->d, g->mean, K * sizeof(float));
        g->targets = 0;
    }
}

static void mean_entropies(ssl_step *s)
{
    for (int g = 0; g < GROUPS; g++)
        s->d->op->mean_entropy(s->d, scalar(s, MARGINAL + g), s->group[g].mean, s->group[g].targets,
                               s->config.head.prototypes);
}

static ssl_step_asked now(const ssl_step *s)
{
    return (ssl_step_asked){{s->group[CLASSES].targets, s->group[PATCHES].targets}, s->group[PATCHES].n};
}

/* v: the device's scalars. */
static ssl_step_out losses(const ssl_step *s, const ssl_step_asked *of, const float v[SCALARS])
{
    const ssl_step_config *k = &s->config;
    ssl_step_out out = {.loss = v[DINO] + v[IBOT] + v[KOLEO],
                        .dino = k->dino > 0 ? v[DINO] / k->dino : 0,
                        .ibot = k->ibot > 0 ? v[IBOT] / k->ibot : 0,
                        .koleo = k->koleo > 0 ? v[KOLEO] / k->koleo : 0,
                        .masked = of->masked};
    for (int g = 0; g < GROUPS; g++) {
        out.target_entropy[g] = of->targets[g] ? v[ENTROPY + g] / (float)of->targets[g] : 0;
        out.marginal_entropy[g] = v[MARGINAL + g];
    }
    return out;
}

static err_code read_now(ssl_step *s, ssl_step_out *out, err *e)
{
    float v[SCALARS];
    ssl_step_asked of = now(s);
    s->d->op->download(s->d, v, s->scalars, sizeof v);
    TRY(device_sync(s->d, e));
    *out = losses(s, &of, v);
    return ERR_OK;
}

/* Frames go up, crops are made of them. */
static err_code sample(ssl_step *s, const ssl_step_crops *c, err *e)
{
    const op_table *op = s->d->op;
    size_t globals = 2 * s->config.batch, locals = s->config.locals * s->config.batch;
    if (c->block.n != globals + locals || c->block.bytes > s->config.frame_bytes)
        FAIL(e, INTERNAL, "%zu crops of %zu bytes of frames", c->block.n, c->block.bytes);
    crop_load_up(s->d, s->frames, s->jobs, &c->block);
    op->sample(s->d, s->globals, c->norm, s->jobs, globals);
    if (locals) op->sample(s->d, s->locals, c->norm, s->jobs + globals, locals);
    op->consumed(s->d);
    return ERR_OK;
}

static err_code upload_batch(ssl_step *s, const ssl_step_in *in, err *e)
{
    const op_table *op = s->d->op;
    const ssl_step_config *k = &s->config;
    size_t B = k->batch;
    TRY(ssl_step_want(s, in->mask, e));
    if (in->mask) op->upload(s->d, s->mask, in->mask, 2 * B * s->P);
    if (in->crops) return sample(s, in->crops, e);
    if (!in->globals) return ERR_OK;
    op->upload(s->d, s->globals, in->globals, 2 * B * 3 * k->global_size * k->global_size * sizeof(float));
    if (k->locals)
        op->upload(s->d, s->locals, in->locals, k->locals * B * 3 * k->local_size * k->local_size * sizeof(float));
    return ERR_OK;
}

err_code ssl_step_gradients(ssl_step *s, const ssl_step_in *in, ssl_step_out *out, err *e)
{
    const ssl_step_config *k = &s->config;
    const dv *mask = in->mask ? s->mask : NULL;
    TRY(upload_batch(s, in, e));
    draw_drop(s, in->number);
    s->d->op->record(s->d, true);
    if (s->micro == 0) begin(s);
    vit_patches(s->m, VIT_STUDENT, &s->student, s->globals);
    teacher_forward(s);
    student_forward(s, mask);
    for (int g = 0; g < GROUPS; g++) group_loss(s, &s->group[g], in->teacher_temp);
    koleo(s);
    if (!in->head_only) backward(s, mask);
    if (++s->micro == micro_batches(k))
        for (size_t i = 0; i < heads(k); i++) dino_head_bwd_end(&s->head[i]);
    if (out) mean_entropies(s);
    s->d->op->record(s->d, false);
    return out ? read_now(s, out, e) : ERR_OK;
}

err_code ssl_step_ask(ssl_step *s, const ssl_step_update_in *u, err *e)
{
    const op_table *op = s->d->op;
    const dv *square = scalar(s, SQUARE);
    adamw_step adam = u->adam;
    adam.average = true;
    adam.momentum = u->momentum;
    int place = (int)(s->asked % OP_SENT_PLACES);
    static_assert(SCALARS * sizeof(float) <= OP_SENT_BYTES, "a step's scalars are sent in one");
    if (s->micro != micro_batches(&s->config)) FAIL(e, INTERNAL, "an update after %zu micro-batches", s->micro);
    if (ssl_step_unread(s) > SSL_STEP_LATE) FAIL(e, INTERNAL, "an update while %zu are unread", ssl_step_unread(s));
    s->micro = 0;
    op->record(s->d, true);
    optim_ask(&s->optim, &adam);
    op->copy(s->d, scalar(s, SQUARE), s->optim.scalar, sizeof(float));
    mean_entropies(s);
    for (ssl_group *g = s->group; s->config.centering == SSL_SOFTMAX && g < s->group + GROUPS; g++)
        op->center_update(s->d, g->center, g->sum, s->config.center_momentum, g->targets, s->config.head.prototypes,
                          square);
    refresh_heads(s);
    op->record(s->d, false);
    op->send(s->d, place, s->scalars, SCALARS * sizeof(float));
    s->unread[place] = now(s);
    s->asked++;
    return ERR_OK;
}

size_t ssl_step_unread(const ssl_step *s)
{
    return s->asked - s->read;
}

err_code ssl_step_read(ssl_step *s, ssl_step_out *out, err *e)
{
    float v[SCALARS];
    int place = (int)(s->read % OP_SENT_PLACES);
    if (!ssl_step_unread(s)) FAIL(e, INTERNAL, "no update is unread");
    s->read++;
    s->d->op->take(s->d, place, v, sizeof v);
    if (s->d->sticky.code) return device_sync(s->d, e);
    *out = losses(s, &s->unread[place], v);
    err_code rc = optim_judge(&s->optim, v[SQUARE], e);
    out->grad_norm = s->optim.norm;
    return rc;
}

err_code ssl_step_update(ssl_step *s, const ssl_step_update_in *u, ssl_step_out *out, err *e)
{
    if (ssl_step_unread(s)) FAIL(e, INTERNAL, "an update while %zu are unread", ssl_step_unread(s));
    TRY(ssl_step_ask(s, u, e));
    return ssl_step_read(s, out, e);
}

err_code ssl_step_tokens(ssl_step *s, const float *globals, float *tokens, err *e)
{
    const op_table *op = s->d->op;
    size_t crops = 2 * s->config.batch, S = s->config.global_size, C = s->config.head.in, n = crops * s->T * C;
    op->upload(s->d, s->globals, globals, crops * 3 * S * S * sizeof(float));
    vit_want(s->m, &s->teacher, NULL, 0);
    vit_patches(s->m, VIT_TEACHER, &s->teacher, s->globals);
    vit_fwd(s->m, VIT_TEACHER, &s->teacher, s->teacher.patches, NULL);
    dv *f32;
    TRY(op->alloc(s->d, n * sizeof(float), &f32, e));
    op->to_f32(s->d, f32, s->teacher.out, n);
    op->download(s->d, tokens, f32, n * sizeof(float));
    op->free(s->d, f32);
    return device_sync(s->d, e);
}
