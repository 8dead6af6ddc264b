/* dino_head.c: see dino_head.h. */
#include "adapt/dino_head.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/stop.h"

typedef struct {
    size_t out, in;
} layer_shape;

static void shapes(const dino_head_config *k, layer_shape out[DINO_HEAD_LAYERS])
{
    out[0] = (layer_shape){k->hidden, k->in};
    out[1] = (layer_shape){k->hidden, k->hidden};
    out[2] = (layer_shape){k->bottleneck, k->hidden};
}

/* Live copies of student and teacher: weights ct, biases f32, prototypes ct. */
static void plan_live(dino_head *h, arena *m, const dino_head_config *k, size_t ct)
{
    layer_shape s[DINO_HEAD_LAYERS];
    shapes(k, s);
    for (int who = 0; who < 2; who++) {
        for (int i = 0; i < DINO_HEAD_LAYERS; i++)
            h->layer[who][i] = (linear_w){.out = s[i].out,
                                          .in = s[i].in,
                                          .w = arena_take(m, s[i].out * s[i].in, ct),
                                          .bias = arena_take(m, s[i].out, sizeof(float)),
                                          .version = 1};
        h->last[who] = (linear_w){.out = k->prototypes,
                                  .in = k->bottleneck,
                                  .w = arena_take(m, k->prototypes * k->bottleneck, ct),
                                  .version = 1};
    }
}

size_t dino_head_bytes(const dino_head_config *k, size_t ct_bytes)
{
    dino_head h;
    arena m = {0};
    layer_shape s[DINO_HEAD_LAYERS];
    shapes(k, s);
    plan_live(&h, &m, k, ct_bytes);
    size_t state = 5 * arena_round(k->prototypes * k->bottleneck * sizeof(float));
    for (int i = 0; i < DINO_HEAD_LAYERS; i++)
        state += 5 * (arena_round(s[i].out * s[i].in * sizeof(float)) + arena_round(s[i].out * sizeof(float)));
    return m.used + state;
}

/* As the reference's: layers are normal, std 0.02 (its truncation is at 100 of these), prototypes what a layer of
 * PyTorch's begins with, uniform within 1/sqrt(cols): the initialiser was run before they were there. Biases are 0. */
static float initial(bool prototypes, size_t cols, rng *r)
{
    return prototypes ? rng_between(r, -1 / sqrtf((float)cols), 1 / sqrtf((float)cols)) : 0.02f * rng_normal(r);
}

static err_code add(dino_head *h, const char *name, size_t rows, size_t cols, bool prototypes, rng *r, param **out,
                    err *e)
{
    param *p = param_add(h->ps, name, rows, cols);
    float *values = calloc(rows * cols, sizeof *values);
    if (!p || !values) {
        free(values);
        FAIL(e, NOMEM, "no memory for the head");
    }
    for (size_t i = 0; cols > 1 && !h->d->counts && i < rows * cols; i++) values[i] = initial(prototypes, cols, r);
    p->head = true;
    p->decay = cols > 1;
    err_code rc = param_alloc(h->d, p, values, true, e);
    free(values);
    *out = p;
    return rc;
}

static const char *const prefix[] = {[DINO_HEAD] = "dino_head", [DINO_HEAD_IBOT] = "ibot_head"};

err_code dino_head_open(dino_head *h, device *d, param_set *ps, dino_head_which which, const dino_head_config *k,
                        uint64_t seed, err *e)
{
    *h = (dino_head){.d = d, .which = which, .config = *k, .ps = ps, .first = ps->n};
    if (!k->in || !k->hidden || !k->bottleneck || k->prototypes < 2) FAIL(e, USAGE, "the head needs sizes above zero");
    if (k->bottleneck > DINO_HEAD_BOTTLENECK)
        FAIL(e, LIMIT, "a bottleneck of %zu; at most %d", k->bottleneck, DINO_HEAD_BOTTLENECK);
    arena dry = {0}, real;
    plan_live(h, &dry, k, d->ct_bytes);
    if (arena_failed(&dry)) FAIL(e, LIMIT, "the head is too large");
    TRY(d->op->alloc(d, dry.used, &h->live, e));
    arena_init(&real, h->live, dry.used);
    plan_live(h, &real, k, d->ct_bytes);
    layer_shape s[DINO_HEAD_LAYERS];
    shapes(k, s);
    rng r = rng_at(seed, RNG_HEAD, 0, (uint32_t)which);
    param *p;
    char name[48];
    for (int i = 0; i < DINO_HEAD_LAYERS; i++) {
        snprintf(name, sizeof name, "%s.mlp.%d.weight", prefix[which], 2 * i);
        TRY(add(h, name, s[i].out, s[i].in, false, &r, &p, e));
        p->live = h->layer[0][i].w;
        p->live_teacher = h->layer[1][i].w;
        p->live_ct = true;
        p->linear = &h->layer[0][i];
        p->linear_teacher = &h->layer[1][i];
        snprintf(name, sizeof name, "%s.mlp.%d.bias", prefix[which], 2 * i);
        TRY(add(h, name, s[i].out, 1, false, &r, &p, e));
        p->live = h->layer[0][i].bias;
        p->live_teacher = h->layer[1][i].bias;
    }
    snprintf(name, sizeof name, "%s.last_layer.weight_v", prefix[which]);
    TRY(add(h, name, k->prototypes, k->bottleneck, true, &r, &p, e));
    p->prototypes = true;
    d->op->refresh(d, ps->p + h->first, DINO_HEAD_PARAMS);
    dino_head_refresh(h);
    return device_sync(d, e);
}

void dino_head_close(dino_head *h)
{
    if (!h->live) return;
    for (int who = 0; who < 2; who++) {
        for (int i = 0; i < DINO_HEAD_LAYERS; i++) h->d->op->linear_release(h->d, &h->layer[who][i]);
        h->d->op->linear_release(h->d, &h->last[who]);
    }
    h->d->op->free(h->d, h->live);
    h->live = NULL;
}

void dino_head_refresh(dino_head *h)
{
    const param *v = &h->ps->p[h->first + DINO_HEAD_PARAMS - 1];
    const dv *from[] = {v->master, v->teacher};
    for (int who = 0; who < 2; who++) {
        h->d->op->weight_norm_fwd(h->d, h->last[who].w, from[who], h->config.prototypes, h->config.bottleneck);
        h->last[who].version++;
    }
}

void dino_head_plan(dino_head_acts *a, arena *m, const dino_head_config *k, size_t ct_bytes, size_t N)
{
    a->N = N;
    for (int i = 0; i < 2; i++) {
        a->pre[i] = arena_take(m, N * k->hidden, ct_bytes);
        a->act[i] = arena_take(m, N * k->hidden, ct_bytes);
    }
    a->z = arena_take(m, N * k->bottleneck, ct_bytes);
    a->unit = arena_take(m, N * k->bottleneck, ct_bytes);
    a->norm = arena_take(m, N, sizeof(float));
    a->dz = arena_take(m, N * k->bottleneck, ct_bytes);
    a->dunit = arena_take(m, N * k->bottleneck, ct_bytes);
    a->dact = arena_take(m, N * k->hidden, ct_bytes);
}

void dino_head_embed(dino_head *h, vit_who who, dino_head_acts *a, dv *unit, const dv *x, size_t n)
{
    const op_table *op = h->d->op;
    linear_w *w = h->layer[who];
    op->linear_gelu_fwd(h->d, a->act[0], a->pre[0], x, &w[0], n);
    op->linear_gelu_fwd(h->d, a->act[1], a->pre[1], a->act[0], &w[1], n);
    op->linear_fwd(h->d, a->z, a->act[1], &w[2], n);
    op->l2_fwd(h->d, unit, a->norm, a->z, n, h->config.bottleneck);
}

void dino_head_logits(dino_head *h, vit_who who, const dv *unit, dv *logits, size_t n)
{
    h->d->op->linear_fwd(h->d, logits, unit, &h->last[who], n);
}

void dino_head_logits_bwd(dino_head *h, dino_head_acts *a, size_t first, const dv *dlogits, size_t n)
{
    const op_table *op = h->d->op;
    size_t K = h->config.prototypes, Z = h->config.bottleneck, at = first * Z * h->d->ct_bytes;
    dv *grad = h->ps->p[h->first + DINO_HEAD_PARAMS - 1].grad;
    op->linear_dw(h->d, grad, NULL, dlogits, dv_at(a->unit, at), NULL, K, n, K, Z);
    op->linear_dx(h->d, dv_at(a->dunit, at), dlogits, &h->last[VIT_STUDENT], n);
}

void dino_head_embed_bwd(dino_head *h, dino_head_acts *a, dv *dx, const dv *x, size_t n)
{
    const op_table *op = h->d->op;
    device *d = h->d;
    param *p = h->ps->p + h->first;
    linear_w *w = h->layer[VIT_STUDENT];
    size_t hidden = h->config.hidden, Z = h->config.bottleneck;
    op->l2_bwd(d, a->dz, a->dunit, a->unit, a->norm, n, Z);
    op->linear_dw(d, p[4].grad, p[5].grad, a->dz, a->act[1], NULL, Z, n, Z, hidden);
    op->linear_dx(d, a->dact, a->dz, &w[2], n);
    op->gelu_bwd(d, a->dact, a->dact, a->pre[1], n * hidden);
    op->linear_dw(d, p[2].grad, p[3].grad, a->dact, a->act[0], NULL, hidden, n, hidden, hidden);
    op->linear_dx(d, a->act[1], a->dact, &w[1], n); /* act[1] is free now */
    op->gelu_bwd(d, a->act[1], a->act[1], a->pre[0], n * hidden);
    op->linear_dw(d, p[0].grad, p[1].grad, a->act[1], x, NULL, hidden, n, hidden, h->config.in);
    op->linear_dx(d, dx, a->act[1], &w[0], n);
}

void dino_head_bwd_end(dino_head *h)
{
    const param *v = &h->ps->p[h->first + DINO_HEAD_PARAMS - 1];
    h->d->op->weight_norm_bwd(h->d, v->grad, v->grad, v->master, h->config.prototypes, h->config.bottleneck);
}

/* Uploads a layer's weight and bias as master and teacher. */
static void put(dino_head *h, size_t index, const float *values)
{
    param *p = &h->ps->p[h->first + index];
    size_t bytes = p->rows * p->cols * sizeof *values;
    h->d->op->upload(h->d, p->master, values, bytes);
    h->d->op->upload(h->d, p->teacher, values, bytes);
}

static float gelu(float x)
{
    return 0.5f * x * (1 + erff(x * 0.70710678f));
}

/* y (n,out) = x (n,in) W^T + b on the host; W (out,in). */
static void host_linear(float *y, const float *x, const float *w, const float *b, size_t n, size_t out, size_t in)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i++)
        for (size_t o = 0; o < out; o++) {
            float s = 0;
            const float *xi = x + i * in, *wo = w + o * in;
#pragma omp simd reduction(+ : s)
            for (size_t k = 0; k < in; k++) s += xi[k] * wo[k];
            y[i * out + o] = s + (b ? b[o] : 0);
        }
}

/* Of its layers' inputs and outputs. */
static size_t widest_of(const dino_head_config *k)
{
    size_t most = k->in > k->hidden ? k->in : k->hidden;
    return k->bottleneck > most ? k->bottleneck : most;
}

enum { CLUSTER_ROUNDS = 10, CLUSTER_ROWS = 64 /* compared at once */ };

bool dino_head_clusters(const dino_head_config *k, size_t n)
{
    return 2 * k->prototypes <= n;
}

size_t dino_head_init_bytes(const dino_head_config *k, size_t n)
{
    size_t widest = widest_of(k), K = k->prototypes;
    size_t more = dino_head_clusters(k, n) ? K * k->bottleneck + CLUSTER_ROWS * K + K : 0;
    return (2 * n * widest + widest * widest + widest + K * k->bottleneck + more) * sizeof(float);
}

static void unit_rows(float *x, size_t n, size_t Z)
{
    for (size_t i = 0; i < n; i++, x += Z) {
        double square = 0;
        for (size_t k = 0; k < Z; k++) square += (double)x[k] * x[k];
        float inverse = (float)(1 / sqrt(square + 1e-12));
        for (size_t k = 0; k < Z; k++) x[k] *= inverse;
    }
}

static size_t largest(const float *x, size_t n)
{
    size_t at = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[at]) at = i;
    return at;
}

/* Spherical k-means: prototypes v (K,Z), from where they are, to the mean directions of the rows x (n,Z) that are
 * nearest to them. All have unit length. A prototype that no row is nearest to stays. */
static err_code cluster(float *v, const float *x, size_t n, size_t K, size_t Z, err *e)
{
    float *sum = malloc(K * Z * sizeof *sum), *scores = malloc(CLUSTER_ROWS * K * sizeof *scores);
    int32_t *count = malloc(K * sizeof *count);
    err_code rc = ERR_OK;
    if (!sum || !scores || !count) FAIL_DONE(rc, e, NOMEM, "no memory to initialise the head");
    for (int round = 0; round < CLUSTER_ROUNDS; round++) {
        TRY_DONE(rc, stop_check(e));
        memset(sum, 0, K * Z * sizeof *sum);
        memset(count, 0, K * sizeof *count);
        for (size_t i = 0; i < n; i += CLUSTER_ROWS) {
            size_t rows = n - i < CLUSTER_ROWS ? n - i : CLUSTER_ROWS;
            host_linear(scores, x + i * Z, v, NULL, rows, K, Z);
            for (size_t r = 0; r < rows; r++) {
                size_t k = largest(scores + r * K, K);
                count[k]++;
                for (size_t c = 0; c < Z; c++) sum[k * Z + c] += x[(i + r) * Z + c];
            }
        }
        unit_rows(sum, K, Z);
        for (size_t k = 0; k < K; k++)
            if (count[k]) memcpy(v + k * Z, sum + k * Z, Z * sizeof *v);
    }
done:
    free(sum);
    free(scores);
    free(count);
    return rc;
}

err_code dino_head_init(dino_head *h, const float *x, size_t n, float noise, uint64_t seed, err *e)
{
    layer_shape s[DINO_HEAD_LAYERS];
    shapes(&h->config, s);
    size_t K = h->config.prototypes, Z = h->config.bottleneck, widest = widest_of(&h->config);
    if (n < 2) FAIL(e, EMPTY, "the head cannot be initialised on %zu tokens", n);
    rng r = rng_at(seed, RNG_HEAD, 1, (uint32_t)h->which);
    float *in = malloc(n * widest * sizeof *in), *out = malloc(n * widest * sizeof *out);
    float *w = calloc(widest * widest, sizeof *w), *b = calloc(widest, sizeof *b), *v = malloc(K * Z * sizeof *v);
    err_code rc = ERR_OK;
    if (!in || !out || !w || !b || !v) FAIL_DONE(rc, e, NOMEM, "no memory to initialise the head");
    memcpy(in, x, n * h->config.in * sizeof *in);
    for (int l = 0; l < DINO_HEAD_LAYERS; l++) {
        size_t O = s[l].out, I = s[l].in;
        float std = sqrtf(2.0f / (float)I);
        for (size_t i = 0; i < O * I; i++) w[i] = std * rng_normal(&r);
        host_linear(out, in, w, NULL, n, O, I);
        for (size_t o = 0; o < O; o++) { /* each unit to zero mean, unit variance over the tokens */
            double mean = 0, square = 0;
            for (size_t i = 0; i < n; i++) mean += out[i * O + o];
            mean /= (double)n;
            for (size_t i = 0; i < n; i++) square += (out[i * O + o] - mean) * (out[i * O + o] - mean);
            float scale = (float)(1 / sqrt(square / (double)n + 1e-12));
            b[o] = (float)-mean * scale;
            for (size_t k = 0; k < I; k++) w[o * I + k] *= scale;
            for (size_t i = 0; i < n; i++) out[i * O + o] = out[i * O + o] * scale + b[o];
        }
        put(h, 2 * (size_t)l, w);
        put(h, 2 * (size_t)l + 1, b);
        for (size_t i = 0; i < n * O; i++) in[i] = l + 1 < DINO_HEAD_LAYERS ? gelu(out[i]) : out[i];
    }
    unit_rows(in, n, Z);
    for (size_t k = 0; k < K; k++) {
        const float *z = in + (size_t)rng_below(&r, (uint32_t)n) * Z;
        for (size_t i = 0; i < Z; i++) v[k * Z + i] = z[i] + noise / sqrtf((float)Z) * rng_normal(&r);
    }
    if (dino_head_clusters(&h->config, n)) {
        unit_rows(v, K, Z);
        TRY_DONE(rc, cluster(v, in, n, K, Z, e));
    }
    put(h, DINO_HEAD_PARAMS - 1, v);
    h->d->op->refresh(h->d, h->ps->p + h->first, DINO_HEAD_PARAMS);
    dino_head_refresh(h);
    rc = device_sync(h->d, e);
done:
    free(in);
    free(out);
    free(w);
    free(b);
    free(v);
    return rc;
}
