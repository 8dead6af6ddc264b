/* ssl_step.c: see ssl_step.h. The patch embedding of the globals is computed once and serves teacher and student
 * (unless it is trained). */
#include "adapt/ssl_step.h"

#include <stdlib.h>
#include <string.h>

enum { DINO, IBOT, KOLEO, STATS_CLASS, STATS_PATCH = STATS_CLASS + 2, SCALARS = STATS_PATCH + 2 };

static dv *scalar(const ssl_step *s, int i)
{
    return dv_at(s->scalars, (size_t)i * sizeof(float));
}

/* Everything whose size depends on the batch, from one block. */
static err_code plan(ssl_step *s, arena *m, err *e)
{
    const ssl_step_config *k = &s->config;
    size_t B = k->batch, L = k->locals, C = k->head.in, K = k->head.prototypes, ct = s->d->ct_bytes;
    size_t S = k->global_size, z = k->local_size, classes = 2 * B + L * B, M = k->masked_most;
    TRY(vit_pass_plan(&s->student, m, s->m, 2 * B, S, S, VIT_GRAD, e));
    TRY(vit_pass_plan(&s->teacher, m, s->m, 2 * B, S, S, VIT_INFER, e));
    if (L) TRY(vit_pass_plan(&s->local, m, s->m, L * B, z, z, VIT_GRAD, e));
    s->P = s->student.P;
    s->T = s->student.T;
    s->local_T = s->local.T;
    s->rows_most = classes + M;
    dino_head_plan(&s->acts, m, &k->head, ct, s->rows_most);
    s->globals = arena_take(m, 2 * B * 3 * S * S, sizeof(float));
    s->locals = arena_take(m, L * B * 3 * z * z, sizeof(float));
    s->mask = arena_take(m, 2 * B * s->P, 1);
    s->x = arena_take(m, s->rows_most * C, ct);
    s->dx = arena_take(m, s->rows_most * C, ct);
    s->logits = arena_take(m, s->rows_most * K, ct);
    s->q = arena_take(m, (2 * B + M) * K, ct);
    s->koleo_dx = arena_take(m, 2 * B * C, ct);
    for (int i = 0; i < 2; i++) {
        s->center[i] = arena_take(m, K, sizeof(float));
        s->sum[i] = arena_take(m, K, sizeof(float));
    }
    s->scalars = arena_take(m, SCALARS, sizeof(float));
    s->rows_global = arena_take(m, 2 * B, sizeof(int32_t));
    s->rows_local = arena_take(m, L * B, sizeof(int32_t));
    s->rows_patch = arena_take(m, M, sizeof(int32_t));
    s->pair = arena_take(m, classes * 2, sizeof(int32_t));
    s->weight = arena_take(m, classes * 2, sizeof(float));
    s->pair_patch = arena_take(m, M, sizeof(int32_t));
    s->weight_patch = arena_take(m, M, sizeof(float));
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

err_code ssl_step_bytes(vit *m, const ssl_step_config *k, size_t *bytes, err *e)
{
    ssl_step s = {.m = m, .d = vit_device(m), .config = *k};
    arena dry = {0};
    err_code rc = plan(&s, &dry, e);
    fini_passes(&s);
    if (!rc) *bytes = dry.used + dino_head_bytes(&k->head, s.d->ct_bytes) + work_bytes(&s);
    return rc;
}

/* Targets of the class tokens. Teacher rows: global 0 of image b is q row b, global 1 is q row B+b. A local crop is
 * matched with both globals, a global with the other; each pair weighs 1/B of its term, and there are 2L+2 terms
 * (facts: DINO). */
static void fill_pairs(ssl_step *s)
{
    size_t B = s->config.batch, L = s->config.locals, rows = 2 * B + L * B;
    int32_t *pair = s->host_pair;
    float *weight = s->host_weight, w = s->config.dino / (float)(B * (2 * L + 2));
    int32_t b = 0, other = (int32_t)B;
    for (size_t i = 0; i < rows; i++, b = b + 1 == other ? 0 : b + 1) {
        bool global = i < 2 * B;
        pair[2 * i] = !global ? b : i < B ? b + other : b;
        pair[2 * i + 1] = global ? -1 : b + other;
        weight[2 * i] = w;
        weight[2 * i + 1] = global ? 0 : w;
    }
    s->d->op->upload(s->d, s->pair, pair, 2 * rows * sizeof *pair);
    s->d->op->upload(s->d, s->weight, weight, 2 * rows * sizeof *weight);
    for (size_t i = 0; i < 2 * B; i++) s->host_rows[i] = (int32_t)(i * s->T);
    s->d->op->upload(s->d, s->rows_global, s->host_rows, 2 * B * sizeof(int32_t));
    for (size_t i = 0; i < L * B; i++) s->host_rows[i] = (int32_t)(i * s->local_T);
    s->d->op->upload(s->d, s->rows_local, s->host_rows, L * B * sizeof(int32_t));
}

err_code ssl_step_open(ssl_step *s, vit *m, param_set *ps, const ssl_step_config *k, err *e)
{
    *s = (ssl_step){.m = m, .d = vit_device(m), .ps = ps, .config = *k};
    arena dry = {0}, real;
    size_t most = k->masked_most;
    if (k->batch < 1 || most > 2 * k->batch * 65536) FAIL(e, USAGE, "a step needs at least one image");
    TRY(plan(s, &dry, e));
    TRY(dino_head_open(&s->head, s->d, ps, &k->head, k->seed, e));
    TRY(s->d->op->alloc(s->d, dry.used, &s->block, e));
    arena_init(&real, s->block, dry.used);
    TRY(plan(s, &real, e));
    TRY(device_reserve(s->d, work_bytes(s), e));
    TRY(optim_init(&s->optim, s->d, ps, k->clip, e));
    size_t rows = 2 * s->rows_most + 2;
    s->host_rows = malloc(rows * sizeof *s->host_rows);
    s->host_pair = malloc(rows * sizeof *s->host_pair);
    s->host_weight = malloc(rows * sizeof *s->host_weight);
    if (!s->host_rows || !s->host_pair || !s->host_weight) FAIL(e, NOMEM, "no memory for a step");
    s->patch_trained = param_find(ps, "patch_embed.proj.weight") || param_find(ps, "patch_embed.proj.bias");
    s->bytes = dry.used + dino_head_bytes(&k->head, s->d->ct_bytes) + s->d->work_bytes;
    fill_pairs(s);
    return device_sync(s->d, e);
}

void ssl_step_close(ssl_step *s)
{
    if (!s->d) return;
    dino_head_close(&s->head);
    optim_fini(&s->optim);
    fini_passes(s);
    if (s->block) s->d->op->free(s->d, s->block);
    free(s->host_rows);
    free(s->host_pair);
    free(s->host_weight);
    *s = (ssl_step){0};
}

void ssl_step_refresh(ssl_step *s)
{
    s->d->op->refresh(s->d, s->ps->p, s->ps->n);
    dino_head_refresh(&s->head);
}

/* Rows and targets of the masked patches: 1/(2B) sum over crops of 1/|M_i| sum over masked (facts: iBOT). */
static err_code fill_masked(ssl_step *s, const uint8_t *mask, err *e)
{
    size_t crops = 2 * s->config.batch, n = 0, lead = s->T - s->P;
    for (size_t i = 0; mask && i < crops; i++) {
        size_t count = 0;
        for (size_t p = 0; p < s->P; p++) count += mask[i * s->P + p] != 0;
        for (size_t p = 0; p < s->P; p++) {
            if (!mask[i * s->P + p]) continue;
            if (n == s->config.masked_most) FAIL(e, INTERNAL, "more than %zu masked patches", n);
            s->host_rows[n] = (int32_t)(i * s->T + lead + p);
            s->host_pair[n] = (int32_t)n; /* the same row of the patch targets */
            s->host_weight[n] = s->config.ibot / (float)(crops * count);
            n++;
        }
    }
    s->masked = n;
    s->d->op->upload(s->d, s->rows_patch, s->host_rows, n * sizeof *s->host_rows);
    s->d->op->upload(s->d, s->pair_patch, s->host_pair, n * sizeof *s->host_pair);
    s->d->op->upload(s->d, s->weight_patch, s->host_weight, n * sizeof *s->host_weight);
    return ERR_OK;
}

/* Element offset of row r in a ct matrix of C columns. */
static dv *row(const ssl_step *s, const dv *x, size_t r, size_t C)
{
    return dv_at(x, r * C * s->d->ct_bytes);
}

static void teacher_targets(ssl_step *s, float tau)
{
    const op_table *op = s->d->op;
    size_t n = 2 * s->config.batch, C = s->config.head.in, K = s->config.head.prototypes;
    if (s->patch_trained) vit_patches(s->m, VIT_TEACHER, &s->teacher, s->globals);
    vit_fwd(s->m, VIT_TEACHER, &s->teacher, s->patch_trained ? s->teacher.patches : s->student.patches, NULL);
    op->gather(s->d, s->x, s->teacher.out, s->rows_global, n, C);
    op->gather(s->d, row(s, s->x, n, C), s->teacher.out, s->rows_patch, s->masked, C);
    dino_head_fwd(&s->head, VIT_TEACHER, &s->acts, s->x, s->q, n + s->masked);
    op->teacher_softmax(s->d, s->q, s->sum[0], scalar(s, STATS_CLASS), s->q, s->center[0], tau, n, K);
    dv *patches = row(s, s->q, n, K);
    op->teacher_softmax(s->d, patches, s->sum[1], scalar(s, STATS_PATCH), patches, s->center[1], tau, s->masked, K);
}

static void student_forward(ssl_step *s, const dv *mask)
{
    const op_table *op = s->d->op;
    size_t B = s->config.batch, LB = s->config.locals * B, C = s->config.head.in;
    vit_fwd(s->m, VIT_STUDENT, &s->student, s->student.patches, mask);
    op->gather(s->d, s->x, s->student.out, s->rows_global, 2 * B, C);
    if (LB) {
        vit_patches(s->m, VIT_STUDENT, &s->local, s->locals);
        vit_fwd(s->m, VIT_STUDENT, &s->local, s->local.patches, NULL);
        op->gather(s->d, row(s, s->x, 2 * B, C), s->local.out, s->rows_local, LB, C);
    }
    op->gather(s->d, row(s, s->x, 2 * B + LB, C), s->student.out, s->rows_patch, s->masked, C);
    dino_head_fwd(&s->head, VIT_STUDENT, &s->acts, s->x, s->logits, 2 * B + LB + s->masked);
}

static void losses(ssl_step *s)
{
    const op_table *op = s->d->op;
    size_t B = s->config.batch, C = s->config.head.in, K = s->config.head.prototypes;
    size_t classes = 2 * B + s->config.locals * B;
    float tau = s->config.student_temp;
    op->soft_ce(s->d, scalar(s, DINO), s->logits, s->logits, s->q, s->pair, s->weight, 2, tau, classes, K);
    dv *patches = row(s, s->logits, classes, K);
    op->soft_ce(s->d, scalar(s, IBOT), patches, patches, row(s, s->q, 2 * B, K), s->pair_patch, s->weight_patch, 1, tau,
                s->masked, K);
    for (size_t g = 0; g < 2; g++)
        op->koleo(s->d, scalar(s, KOLEO), row(s, s->koleo_dx, g * B, C), row(s, s->x, g * B, C), s->config.koleo, B, C);
}

static void backward(ssl_step *s, bool head_only, const dv *mask)
{
    const op_table *op = s->d->op;
    size_t B = s->config.batch, LB = s->config.locals * B, C = s->config.head.in, n = 2 * B + LB + s->masked;
    dino_head_bwd(&s->head, &s->acts, s->dx, s->x, s->logits, n);
    if (head_only) return;
    op->add(s->d, s->dx, s->koleo_dx, 2 * B * C); /* the first rows are the global class tokens */
    op->zero(s->d, s->student.dout, 2 * B * s->T * C * s->d->ct_bytes);
    op->scatter_add(s->d, s->student.dout, s->dx, s->rows_global, 2 * B, C);
    op->scatter_add(s->d, s->student.dout, row(s, s->dx, 2 * B + LB, C), s->rows_patch, s->masked, C);
    vit_bwd(s->m, &s->student, s->globals, mask);
    if (!LB) return;
    op->zero(s->d, s->local.dout, LB * s->local_T * C * s->d->ct_bytes);
    op->scatter_add(s->d, s->local.dout, row(s, s->dx, 2 * B, C), s->rows_local, LB, C);
    vit_bwd(s->m, &s->local, s->locals, NULL);
}

err_code ssl_step_gradients(ssl_step *s, const ssl_step_in *in, ssl_step_out *out, err *e)
{
    const op_table *op = s->d->op;
    const ssl_step_config *k = &s->config;
    size_t B = k->batch;
    float v[SCALARS];
    TRY(fill_masked(s, in->mask, e));
    const dv *mask = in->mask ? s->mask : NULL;
    if (mask) op->upload(s->d, s->mask, in->mask, 2 * B * s->P);
    op->upload(s->d, s->globals, in->globals, 2 * B * 3 * k->global_size * k->global_size * sizeof(float));
    if (k->locals)
        op->upload(s->d, s->locals, in->locals, k->locals * B * 3 * k->local_size * k->local_size * sizeof(float));
    op->zero(s->d, s->scalars, SCALARS * sizeof(float));
    optim_zero(&s->optim);
    vit_patches(s->m, VIT_STUDENT, &s->student, s->globals);
    teacher_targets(s, in->teacher_temp);
    student_forward(s, mask);
    losses(s);
    backward(s, in->head_only, mask);
    op->download(s->d, v, s->scalars, sizeof v);
    TRY(device_sync(s->d, e));
    *out = (ssl_step_out){.loss = v[DINO] + v[IBOT] + v[KOLEO],
                          .dino = k->dino > 0 ? v[DINO] / k->dino : 0,
                          .ibot = k->ibot > 0 ? v[IBOT] / k->ibot : 0,
                          .koleo = k->koleo > 0 ? v[KOLEO] / k->koleo : 0,
                          .target_entropy = {v[STATS_CLASS], v[STATS_PATCH]},
                          .marginal_entropy = {v[STATS_CLASS + 1], v[STATS_PATCH + 1]},
                          .masked = s->masked};
    return ERR_OK;
}

err_code ssl_step_update(ssl_step *s, const ssl_step_update_in *u, ssl_step_out *out, err *e)
{
    const op_table *op = s->d->op;
    adamw_step adam = u->adam;
    size_t K = s->config.head.prototypes;
    err_code rc = optim_step(&s->optim, &adam, e);
    out->grad_norm = s->optim.norm;
    TRY(rc);
    op->center_update(s->d, s->center[0], s->sum[0], s->config.center_momentum, 2 * s->config.batch, K);
    op->center_update(s->d, s->center[1], s->sum[1], s->config.center_momentum, s->masked, K);
    op->ema(s->d, s->ps->p, s->ps->n, u->momentum);
    dino_head_refresh(&s->head);
    return device_sync(s->d, e);
}

err_code ssl_step_tokens(ssl_step *s, const float *globals, float *tokens, err *e)
{
    const op_table *op = s->d->op;
    size_t crops = 2 * s->config.batch, S = s->config.global_size, C = s->config.head.in, n = crops * s->T * C;
    op->upload(s->d, s->globals, globals, crops * 3 * S * S * sizeof(float));
    vit_patches(s->m, VIT_TEACHER, &s->teacher, s->globals);
    vit_fwd(s->m, VIT_TEACHER, &s->teacher, s->teacher.patches, NULL);
    dv *f32;
    TRY(op->alloc(s->d, n * sizeof(float), &f32, e));
    op->to_f32(s->d, f32, s->teacher.out, n);
    op->download(s->d, tokens, f32, n * sizeof(float));
    op->free(s->d, f32);
    return device_sync(s->d, e);
}
