/* probe.c: L-BFGS (Nocedal & Wright, algorithm 7.5) with backtracking. The sums over rows are cut into a fixed number
 * of parts, so that the result does not depend on how many threads there are. */
#include "adapt/probe.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/pool.h"
#include "base/stop.h"

enum { PARTS = 16, MEMORY = 10, STEPS = 300, OUTPUTS_MAX = 1000 };

/* Vectorises without -ffast-math: sixteen independent sums. */
static float dot_f32(const float *a, const float *b, size_t n)
{
    float part[16] = {0}, sum = 0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int k = 0; k < 16; k++) part[k] += a[i + (size_t)k] * b[i + (size_t)k];
    for (int k = 0; k < 16; k++) sum += part[k];
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static double dot(const double *a, const double *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* z (K) logits -> probabilities; the result is log sum exp. */
static double softmax(double *z, size_t K)
{
    double most = -INFINITY, sum = 0;
    for (size_t k = 0; k < K; k++) most = fmax(most, z[k]);
    for (size_t k = 0; k < K; k++) sum += z[k] = exp(z[k] - most);
    for (size_t k = 0; k < K; k++) z[k] /= sum;
    return most + log(sum);
}

void probe_logits(const float *weight, const float *bias, const float *x, size_t n, size_t dim, int outputs, double *z)
{
    size_t K = (size_t)outputs;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < K; k++) z[i * K + k] = (double)dot_f32(weight + k * dim, x + i * dim, dim) + bias[k];
}

void probe_fini(probe *p)
{
    free(p->weight);
    free(p->bias);
    *p = (probe){0};
}

/* --- the objective. Parameters and gradients: (K, C) weights, then (K) biases. */

typedef struct {
    const probe_rows *rows;
    size_t C, K, params;
    double total;         /* of the rows' weights */
    double *mean, *scale; /* (C): standardised = (x - mean) * scale */
    float *x;             /* (n, C) standardised */
    float *w;             /* (K, C) the point asked for */
    const double *point;
    double *gradient, *loss; /* (PARTS, params), (PARTS) */
    pool *threads;
} problem;

/* z (K) logits -> their gradients, the row's weight aside; the result is the loss. */
static double softmax_loss(const probe_rows *r, size_t i, double *z, size_t K)
{
    double logit = z[r->label[i]], loss = softmax(z, K) - logit;
    z[r->label[i]] -= 1;
    return loss;
}

static double sigmoid_loss(const probe_rows *r, size_t i, double *z, size_t K)
{
    double loss = 0;
    for (size_t k = 0; k < K; k++) {
        double t = r->target[i * K + k], c = r->known[i * K + k], tail = exp(-fabs(z[k]));
        loss += c * (fmax(z[k], 0) + log1p(tail) - t * z[k]);
        z[k] = c * ((z[k] >= 0 ? 1 : tail) / (1 + tail) - t);
    }
    return loss;
}

static void part_sum(void *ctx, size_t part)
{
    problem *p = ctx;
    const probe_rows *r = p->rows;
    double *g = p->gradient + part * p->params, loss = 0, z[OUTPUTS_MAX];
    memset(g, 0, p->params * sizeof *g);
    for (size_t i = r->n * part / PARTS; i < r->n * (part + 1) / PARTS; i++) {
        const float *x = p->x + i * p->C;
        for (size_t k = 0; k < p->K; k++) z[k] = (double)dot_f32(p->w + k * p->C, x, p->C) + p->point[p->K * p->C + k];
        loss += r->weight[i] * (r->label ? softmax_loss(r, i, z, p->K) : sigmoid_loss(r, i, z, p->K));
        for (size_t k = 0; k < p->K; k++) {
            double d = r->weight[i] * z[k], *row = g + k * p->C;
            if (d == 0) continue; /* not known */
            for (size_t j = 0; j < p->C; j++) row[j] += d * x[j];
            g[p->K * p->C + k] += d;
        }
    }
    p->loss[part] = loss;
}

static double evaluate(problem *p, const double *point, double l2, double *gradient)
{
    size_t weights = p->K * p->C;
    for (size_t j = 0; j < weights; j++) p->w[j] = (float)point[j];
    p->point = point;
    pool_for(p->threads, PARTS, part_sum, p);
    double loss = 0;
    memset(gradient, 0, p->params * sizeof *gradient);
    for (size_t part = 0; part < PARTS; part++) {
        loss += p->loss[part];
        for (size_t j = 0; j < p->params; j++) gradient[j] += p->gradient[part * p->params + j];
    }
    for (size_t j = 0; j < p->params; j++) gradient[j] = gradient[j] / p->total + (j < weights ? l2 * point[j] : 0);
    return loss / p->total + 0.5 * l2 * dot(point, point, weights);
}

typedef struct {
    double *point, *trial, *gradient, *trial_gradient, *direction; /* (params) each */
    double *s, *y;                                                 /* (MEMORY, params) */
    double rho[MEMORY];
    size_t held, newest;
} search;

/* direction = -H gradient by the two-loop recursion. */
static void choose_direction(search *q, size_t n)
{
    double a[MEMORY], scale = 1;
    for (size_t j = 0; j < n; j++) q->direction[j] = -q->gradient[j];
    for (size_t t = 0; t < q->held; t++) {
        size_t i = (q->newest + MEMORY - t) % MEMORY;
        a[i] = q->rho[i] * dot(q->s + i * n, q->direction, n);
        for (size_t j = 0; j < n; j++) q->direction[j] -= a[i] * q->y[i * n + j];
    }
    if (q->held) {
        const double *y = q->y + q->newest * n;
        scale = 1 / (q->rho[q->newest] * dot(y, y, n));
    }
    for (size_t j = 0; j < n; j++) q->direction[j] *= scale;
    for (size_t t = q->held; t-- > 0;) {
        size_t i = (q->newest + MEMORY - t) % MEMORY;
        double b = q->rho[i] * dot(q->y + i * n, q->direction, n);
        for (size_t j = 0; j < n; j++) q->direction[j] += (a[i] - b) * q->s[i * n + j];
    }
}

static void remember(search *q, size_t n)
{
    size_t at = q->held ? (q->newest + 1) % MEMORY : 0;
    double *s = q->s + at * n, *y = q->y + at * n;
    for (size_t j = 0; j < n; j++) {
        s[j] = q->trial[j] - q->point[j];
        y[j] = q->trial_gradient[j] - q->gradient[j];
    }
    double sy = dot(s, y, n);
    if (!(sy > 1e-14 * dot(y, y, n))) return; /* no curvature to be learnt from rounding */
    q->rho[at] = 1 / sy;
    q->newest = at;
    if (q->held < MEMORY) q->held++;
}

static void swap(double **a, double **b)
{
    double *t = *a;
    *a = *b;
    *b = t;
}

static err_code minimise(problem *p, search *q, double l2, err *e)
{
    size_t n = p->params;
    q->held = 0;
    double value = evaluate(p, q->point, l2, q->gradient);
    for (int step = 0; step < STEPS; step++) {
        double largest = 0, slope, length = 1;
        for (size_t j = 0; j < n; j++) largest = fmax(largest, fabs(q->gradient[j]));
        if (!isfinite(value) || !isfinite(largest)) FAIL(e, NUMERIC, "linear classifier: the features are not finite");
        if (largest < 1e-6) break;
        TRY(stop_check(e));
        choose_direction(q, n);
        slope = dot(q->direction, q->gradient, n);
        if (!(slope < 0)) break;
        if (!q->held) length = fmin(1, 1 / sqrt(dot(q->gradient, q->gradient, n)));
        double next = INFINITY;
        for (int cut = 0; cut < 30; cut++, length *= 0.5) {
            for (size_t j = 0; j < n; j++) q->trial[j] = q->point[j] + length * q->direction[j];
            next = evaluate(p, q->trial, l2, q->trial_gradient);
            if (next <= value + 1e-4 * length * slope) break;
            next = INFINITY;
        }
        if (!isfinite(next)) break; /* as far as rounding lets it */
        remember(q, n);
        double gained = value - next;
        value = next;
        swap(&q->point, &q->trial);
        swap(&q->gradient, &q->trial_gradient);
        if (gained < 1e-9 * (1 + fabs(value))) break;
    }
    return ERR_OK;
}

/* Back to features as they are: W' = W * scale, b' = b - W' mean. */
static err_code unstandardise(probe *out, const problem *p, const double *point, err *e)
{
    *out = (probe){.dim = p->C, .outputs = (int)p->K};
    out->weight = malloc(p->K * p->C * sizeof *out->weight);
    out->bias = malloc(p->K * sizeof *out->bias);
    if (!out->weight || !out->bias) FAIL(e, NOMEM, "linear classifier: no memory");
    for (size_t k = 0; k < p->K; k++) {
        double b = point[p->K * p->C + k];
        for (size_t j = 0; j < p->C; j++) {
            double w = point[k * p->C + j] * p->scale[j];
            out->weight[k * p->C + j] = (float)w;
            b -= w * p->mean[j];
        }
        out->bias[k] = (float)b;
    }
    return ERR_OK;
}

static void standardise(problem *p)
{
    const probe_rows *r = p->rows;
    double largest = 0;
    for (size_t i = 0; i < r->n; i++) {
        p->total += r->weight[i];
        for (size_t j = 0; j < p->C; j++) p->mean[j] += (double)r->weight[i] * r->x[i * p->C + j];
    }
    for (size_t j = 0; j < p->C; j++) p->mean[j] /= p->total;
    for (size_t i = 0; i < r->n; i++)
        for (size_t j = 0; j < p->C; j++) {
            double d = r->x[i * p->C + j] - p->mean[j];
            p->scale[j] += r->weight[i] * d * d;
        }
    for (size_t j = 0; j < p->C; j++) largest = fmax(largest, p->scale[j] = sqrt(p->scale[j] / p->total));
    /* A feature that stands still says nothing: it is left out rather than blown up. */
    for (size_t j = 0; j < p->C; j++) p->scale[j] = p->scale[j] > 1e-6 * largest ? 1 / p->scale[j] : 0;
    for (size_t i = 0; i < r->n; i++)
        for (size_t j = 0; j < p->C; j++) p->x[i * p->C + j] = (float)((r->x[i * p->C + j] - p->mean[j]) * p->scale[j]);
}

err_code probe_fit(probe *out, const probe_rows *rows, const double *l2, size_t n_l2, err *e)
{
    memset(out, 0, n_l2 * sizeof *out);
    if (!rows->n || rows->outputs < (rows->label ? 2 : 1) || rows->outputs > OUTPUTS_MAX)
        FAIL(e, INTERNAL, "linear classifier: %zu rows, %d outputs", rows->n, rows->outputs);
    problem p = {.rows = rows, .C = rows->dim, .K = (size_t)rows->outputs};
    search q = {0};
    err_code rc = ERR_OK;
    size_t cells, n = p.params = p.K * (p.C + 1);
    double *block = calloc((PARTS + 5 + 2 * MEMORY) * n + 2 * p.C + PARTS, sizeof *block), *at = block;
    p.x = size_mul(rows->n, rows->dim, &cells) ? calloc(cells + 1, sizeof *p.x) : NULL;
    p.w = malloc(p.K * p.C * sizeof *p.w);
    p.threads = pool_new(0);
    if (!block || !p.x || !p.w || !p.threads)
        FAIL_DONE(rc, e, NOMEM, "linear classifier: no memory for %zu rows", rows->n);
    double **piece[] = {&q.point, &q.trial, &q.gradient, &q.trial_gradient, &q.direction};
    for (size_t i = 0; i < 5; i++, at += n) *piece[i] = at;
    q.s = at;
    q.y = q.s + MEMORY * n;
    p.gradient = q.y + MEMORY * n;
    p.loss = p.gradient + PARTS * n;
    p.mean = p.loss + PARTS;
    p.scale = p.mean + p.C;
    standardise(&p);
    bool *fitted = NULL;
    fitted = calloc(n_l2 + 1, sizeof *fitted);
    if (!fitted) FAIL_DONE(rc, e, NOMEM, "linear classifier: no memory");
    for (size_t t = 0; t < n_l2 && !rc; t++) {
        size_t next = n_l2;
        for (size_t i = 0; i < n_l2; i++)
            if (!fitted[i] && (next == n_l2 || l2[i] > l2[next])) next = i;
        fitted[next] = true;
        rc = minimise(&p, &q, l2[next], e);
        if (!rc) rc = unstandardise(&out[next], &p, q.point, e);
    }
    free(fitted);
done:
    pool_free(p.threads);
    free(p.x);
    free(p.w);
    free(block);
    return rc;
}
