/* op_cpu_optim.c: the optimiser's ops over a list of params: one pass a tensor reads the gradient, updates master and
 * Adam state and writes the live copy. Decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2). */
#include <math.h>

#include "model/op_cpu.h"

enum { PIECE = 4096 };

static bool skipped(const param *p, const adamw_step *s)
{
    return (p->prototypes && s->skip_prototypes) || (!p->head && s->skip_backbone);
}

WIDE static double square_sum(const float *g, size_t n)
{
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (size_t i = 0; i < n; i++) s += (double)g[i] * g[i];
    return s;
}

void op_cpu_grad_square(device *d, dv *out, const param *p, size_t n, const adamw_step *s)
{
    (void)d;
    double total = 0;
    for (size_t i = 0; i < n; i++) {
        if (skipped(&p[i], s)) continue;
        size_t count = p[i].rows * p[i].cols;
        const float *g = (const float *)p[i].grad;
        double sum = 0;
#pragma omp parallel for schedule(static, 1) ordered
        for (size_t k = 0; k < count; k += PIECE) {
            double part = square_sum(g + k, count - k < PIECE ? count - k : PIECE);
#pragma omp ordered
            sum += part;
        }
        total += sum;
    }
    *(float *)out = (float)total;
}

/* live = cast(values), rows scattered where only some are trained. */
static void write_live(device *d, const param *p, dv *live, linear_w *linear, const float *values)
{
    if (live && p->rows_host) {
#pragma omp parallel for schedule(static)
        for (size_t r = 0; r < p->rows; r++) {
            size_t at = (size_t)p->rows_host[r] * p->cols;
            if (p->live_ct)
                op_cpu_store(d, live, at, values + r * p->cols, p->cols);
            else
                memcpy((float *)live + at, values + r * p->cols, p->cols * sizeof *values);
        }
    } else if (live) {
        size_t count = p->rows * p->cols;
#pragma omp parallel for schedule(static)
        for (size_t k = 0; k < count; k += PIECE) {
            size_t m = count - k < PIECE ? count - k : PIECE;
            if (p->live_ct)
                op_cpu_store(d, live, k, values + k, m);
            else
                memcpy((float *)live + k, values + k, m * sizeof *values);
        }
    }
    if (linear) linear->version++;
}

typedef struct {
    float beta1, beta2, eps, grad_scale, decay, step, root2; /* step = lr / (1-b1^t), root2 = sqrt(1-b2^t) */
} adam;

WIDE static void adam_piece(float *w, const float *g, float *m, float *v, size_t n, const adam *a)
{
    for (size_t i = 0; i < n; i++) {
        float grad = g[i] * a->grad_scale;
        m[i] = a->beta1 * m[i] + (1 - a->beta1) * grad;
        v[i] = a->beta2 * v[i] + (1 - a->beta2) * grad * grad;
        w[i] = w[i] * a->decay - a->step * m[i] / (sqrtf(v[i]) / a->root2 + a->eps);
    }
}

WIDE static void average_piece(float *t, const float *w, float m, size_t n)
{
    for (size_t i = 0; i < n; i++) t[i] = m * t[i] + (1 - m) * w[i];
}

static adam adam_of(const param *p, const adamw_step *s, float grad_scale)
{
    float lr = (p->head ? s->head_lr : s->lr) * p->lr_scale;
    double t = (double)s->t[adam_group(p)];
    return (adam){s->beta1,
                  s->beta2,
                  s->eps,
                  grad_scale,
                  p->decay ? 1 - lr * s->weight_decay : 1,
                  (float)(lr / (1 - pow(s->beta1, t))),
                  (float)sqrt(1 - pow(s->beta2, t))};
}

void op_cpu_adamw(device *d, param *p, size_t n, const adamw_step *s, const dv *square)
{
    float norm = sqrtf(*(const float *)square), grad_scale = 1;
    if (!isfinite(norm)) return;
    if (s->clip > 0 && norm > s->clip) grad_scale = s->clip / (norm + 1e-6f);
    for (size_t i = 0; i < n; i++) {
        bool trains = !skipped(&p[i], s), follows = s->average && p[i].teacher;
        adam a = adam_of(&p[i], s, grad_scale);
        size_t count = p[i].rows * p[i].cols;
        float *w = (float *)p[i].master, *m = (float *)p[i].m, *v = (float *)p[i].v, *t = (float *)p[i].teacher;
        const float *g = (const float *)p[i].grad;
#pragma omp parallel for schedule(static)
        for (size_t k = 0; k < count; k += PIECE) {
            size_t some = count - k < PIECE ? count - k : PIECE;
            if (trains) adam_piece(w + k, g + k, m + k, v + k, some, &a);
            if (follows) average_piece(t + k, w + k, s->momentum, some);
        }
        if (trains) write_live(d, &p[i], p[i].live, p[i].linear, w);
        if (follows) write_live(d, &p[i], p[i].live_teacher, p[i].linear_teacher, t);
    }
}

void op_cpu_refresh(device *d, param *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        write_live(d, &p[i], p[i].live, p[i].linear, (const float *)p[i].master);
        if (p[i].teacher) write_live(d, &p[i], p[i].live_teacher, p[i].linear_teacher, (const float *)p[i].teacher);
    }
}
