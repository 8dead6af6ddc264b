/* The objective's ops against plain double-precision versions, at odd shapes, in both compute types; gradients against
 * finite differences of those versions, so that a wrong derivation shows too. */
#include "tests/model/op_values.h"

static double at(const device *d, const values *t, size_t i)
{
    float x = 0;
    if (t->f32) return ((const float *)t->p)[i];
    op_cpu_load(d, &x, t->p, i, 1);
    return x;
}

/* Root mean square error over that of what is expected. */
static double error_of(const device *d, const values *t, const double *expected)
{
    double off = 0, size = 1e-60;
    for (size_t i = 0; i < t->n; i++) {
        double x = at(d, t, i);
        if (!isfinite(x)) return INFINITY;
        off += (x - expected[i]) * (x - expected[i]);
        size += expected[i] * expected[i];
    }
    return sqrt(off / size);
}

static void near(const char *what, double got, double want, double bound)
{
    if (!(fabs(got - want) <= bound * (1 + fabs(want)))) fail_msg("%s: %.9g, expected %.9g", what, got, want);
}

static void close_to(const device *d, const char *what, size_t row, const values *t, const double *want, double bound)
{
    double off = error_of(d, t, want);
    if (!(off <= bound))
        fail_msg("%s, row %zu of the table, ct %d: error %.3g over %.3g", what, row, d->ct, off, bound);
}

static double tolerance(const device *d, bool f32)
{
    return d->ct == COMPUTE_BF16 && !f32 ? 5e-3 : 5e-6;
}

/* g[i] = d f / d x[i] by central differences. */
static void differences(double (*f)(const double *x, const void *ctx), const void *ctx, double *x, size_t n,
                        double step, double *g)
{
    for (size_t i = 0; i < n; i++) {
        double old = x[i];
        x[i] = old + step;
        double up = f(x, ctx);
        x[i] = old - step;
        g[i] = (up - f(x, ctx)) / (2 * step);
        x[i] = old;
    }
}

static double *room(size_t n)
{
    double *p = calloc(n + 1, sizeof *p);
    assert_non_null(p);
    return p;
}

/* --- normalisations */

typedef struct {
    size_t N, C;
    const double *dy;
} weighted;

/* sum dy * x/|x| over rows */
static double unit_rows(const double *x, const void *ctx)
{
    const weighted *w = ctx;
    double total = 0;
    for (size_t i = 0; i < w->N; i++) {
        double square = 0, sum = 0;
        for (size_t k = 0; k < w->C; k++) square += x[i * w->C + k] * x[i * w->C + k];
        for (size_t k = 0; k < w->C; k++) sum += w->dy[i * w->C + k] * x[i * w->C + k];
        total += sum / fmax(sqrt(square), 1e-12);
    }
    return total;
}

static void normalise(const double *x, double *y, size_t N, size_t C)
{
    for (size_t i = 0; i < N; i++) {
        double square = 0;
        for (size_t k = 0; k < C; k++) square += x[i * C + k] * x[i * C + k];
        for (size_t k = 0; k < C; k++) y[i * C + k] = x[i * C + k] / fmax(sqrt(square), 1e-12);
    }
}

static const struct {
    size_t N, C;
} shapes[] = {{1, 1}, {1, 33}, {7, 5}, {197, 3}, {3, 256}, {2, 4097}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static void l2(void **state)
{
    (void)state;
    for (size_t c = 0; c < 2; c++)
        for (size_t s = 0; s < SHAPES; s++) {
            device d = open_device(types[c]);
            size_t N = shapes[s].N, C = shapes[s].C, n = N * C;
            values x = make(&d, n, 1, 3, false), y = make(&d, n, 2, 1, false), norm = make(&d, N, 3, 1, true);
            values dy = make(&d, n, 4, 1, false), dx = make(&d, n, 5, 1, false);
            double *want = room(n);
            d.op->l2_fwd(&d, y.p, norm.p, x.p, N, C);
            normalise(x.v, want, N, C);
            close_to(&d, "l2_fwd", s, &y, want, tolerance(&d, false));
            if (C > 1 && C < 1000) { /* with one column the gradient is nothing but rounding */
                weighted w = {N, C, dy.v};
                d.op->l2_bwd(&d, dx.p, dy.p, y.p, norm.p, N, C);
                differences(unit_rows, &w, x.v, n, 1e-5, want);
                close_to(&d, "l2_bwd", s, &dx, want, 4 * tolerance(&d, false));
            }
            free(want);
            drop(&d, &x), drop(&d, &y), drop(&d, &norm), drop(&d, &dy), drop(&d, &dx);
            device_close(&d);
        }
}

/* A row of zeros has no direction: zeros out, nothing infinite. */
static void l2_of_nothing(void **state)
{
    (void)state;
    device d = open_device(COMPUTE_F32);
    values x = make(&d, 9, 1, 0, false), y = make(&d, 9, 2, 1, false), norm = make(&d, 3, 3, 1, true);
    d.op->l2_fwd(&d, y.p, norm.p, x.p, 3, 3);
    for (size_t i = 0; i < 9; i++) assert_true(at(&d, &y, i) == 0);
    values w = make(&d, 9, 4, 1, false), v = make(&d, 9, 5, 0, true), g = make(&d, 9, 6, 1, true);
    d.op->weight_norm_fwd(&d, w.p, v.p, 3, 3);
    d.op->weight_norm_bwd(&d, g.p, g.p, v.p, 3, 3);
    for (size_t i = 0; i < 9; i++) assert_true(at(&d, &w, i) == 0 && isfinite(at(&d, &g, i)));
    drop(&d, &x), drop(&d, &y), drop(&d, &norm), drop(&d, &w), drop(&d, &v), drop(&d, &g);
    device_close(&d);
}

static void weight_norm(void **state)
{
    (void)state;
    for (size_t c = 0; c < 2; c++)
        for (size_t s = 0; s < SHAPES; s++) {
            device d = open_device(types[c]);
            size_t K = shapes[s].N, C = shapes[s].C, n = K * C;
            values v = make(&d, n, 1, 0.02, true), w = make(&d, n, 2, 1, false), dw = make(&d, n, 3, 1, true);
            double *want = room(n);
            d.op->weight_norm_fwd(&d, w.p, v.p, K, C);
            normalise(v.v, want, K, C);
            close_to(&d, "weight_norm_fwd", s, &w, want, tolerance(&d, false));
            if (C > 1 && C < 1000) {
                weighted ctx = {K, C, dw.v};
                differences(unit_rows, &ctx, v.v, n, 1e-7, want);
                d.op->weight_norm_bwd(&d, dw.p, dw.p, v.p, K, C); /* in place */
                close_to(&d, "weight_norm_bwd", s, &dw, want, 2e-5);
            }
            free(want);
            drop(&d, &v), drop(&d, &w), drop(&d, &dw);
            device_close(&d);
        }
}

/* --- teacher */

/* q (K) = softmax((x - center) / tau); returns its entropy. */
static double target(const double *x, const double *center, double tau, size_t K, double *q)
{
    double most = -INFINITY, sum = 0, entropy = 0;
    for (size_t k = 0; k < K; k++) most = fmax(most, (x[k] - center[k]) / tau);
    for (size_t k = 0; k < K; k++) sum += q[k] = exp((x[k] - center[k]) / tau - most);
    for (size_t k = 0; k < K; k++) {
        q[k] /= sum;
        if (q[k] > 0) entropy -= q[k] * log(q[k]);
    }
    return entropy;
}

/* Lengths around the pieces that the rows are walked in. */
static const struct {
    size_t N, K;
    double tau, scale;
} teachers[] = {{1, 2, 1, 1},        {7, 33, 0.04, 0.3},   {3, 2047, 0.07, 1}, {2, 2048, 0.04, 1},
                {5, 2049, 0.04, 1},  {4, 5000, 0.05, 0.2}, {33, 64, 0.04, 20}, /* sharp: one-hot rows */
                {197, 16, 0.1, 1e-3}};

static void teacher_softmax(void **state)
{
    (void)state;
    for (size_t c = 0; c < 2; c++)
        for (size_t s = 0; s < sizeof teachers / sizeof *teachers; s++)
            for (int way = 0; way < 4; way++) {
                device d = open_device(types[c]);
                size_t N = teachers[s].N, K = teachers[s].K;
                bool in_place = way & 1, pieces = way & 2 && N > 1; /* rows in one call or in two */
                double tau = teachers[s].tau, entropy = 0, marginal = 0;
                values logits = make(&d, N * K, 1, teachers[s].scale, false), q = make(&d, N * K, 2, 1, false);
                values center = make(&d, K, 3, 0.1, true), sum = make(&d, K, 4, 0, true),
                       mean = make(&d, K, 4, 0, true), stats = make(&d, 2, 5, 0, true);
                double *want = room(N * K), *sums = room(K);
                for (size_t at_row = 0, n = pieces ? N / 2 : N; at_row < N; at_row += n, n = N - at_row) {
                    dv *x = dv_at(logits.p, at_row * K * d.ct_bytes);
                    d.op->teacher_softmax(&d, in_place ? x : dv_at(q.p, at_row * K * d.ct_bytes), sum.p, mean.p,
                                          stats.p, x, center.p, (float)tau, n, K);
                }
                d.op->mean_entropy(&d, dv_at(stats.p, sizeof(float)), mean.p, N, K);
                for (size_t i = 0; i < N; i++) {
                    entropy += target(logits.v + i * K, center.v, (float)tau, K, want + i * K) / (double)N;
                    for (size_t k = 0; k < K; k++) sums[k] += logits.v[i * K + k];
                }
                for (size_t k = 0; k < K; k++) {
                    double p = 0;
                    for (size_t i = 0; i < N; i++) p += want[i * K + k] / (double)N;
                    if (p > 0) marginal -= p * log(p);
                }
                close_to(&d, "targets", s, in_place ? &logits : &q, want, d.ct == COMPUTE_BF16 ? 5e-3 : 2e-4);
                close_to(&d, "sum of logits", s, &sum, sums, 1e-5);
                near("mean entropy", at(&d, &stats, 0) / (double)N, entropy, 1e-3);
                near("entropy of the mean", at(&d, &stats, 1), marginal, d.ct == COMPUTE_BF16 ? 5e-3 : 1e-3);
                /* the centre follows the mean of the raw logits */
                d.op->center_update(&d, center.p, sum.p, 0.9f, N, K, NULL);
                for (size_t k = 0; k < K; k++) want[k] = 0.9 * center.v[k] + 0.1 * sums[k] / (double)N;
                close_to(&d, "centre", s, &center, want, 1e-5);
                free(want), free(sums);
                drop(&d, &logits), drop(&d, &q), drop(&d, &center), drop(&d, &sum), drop(&d, &mean), drop(&d, &stats);
                device_close(&d);
            }
}

/* q (N,K): DINOv2's form: Q = exp(x / tau), three times rows (prototypes) to 1/K, then columns to 1/N; in double, below
 * the maximum. */
static void sinkhorn_plainly(const double *x, double tau, size_t N, size_t K, double *q)
{
    double most = -INFINITY;
    for (size_t i = 0; i < N * K; i++) most = fmax(most, x[i]);
    for (size_t i = 0; i < N * K; i++) q[i] = exp((x[i] - most) / tau);
    for (int t = 0; t < 3; t++) {
        for (size_t k = 0; k < K; k++) {
            double sum = 0;
            for (size_t i = 0; i < N; i++) sum += q[i * K + k];
            for (size_t i = 0; i < N; i++) q[i * K + k] /= sum * (double)K;
        }
        for (size_t i = 0; i < N; i++) {
            double sum = 0;
            for (size_t k = 0; k < K; k++) sum += q[i * K + k];
            for (size_t k = 0; k < K; k++) q[i * K + k] /= sum * (double)(t < 2 ? N : 1);
        }
    }
}

/* Logits (N,K) of device memory -> center, in pieces of at most `rows`. */
static void sinkhorn_run(device *d, dv *center, dv *scale, const dv *logits, float tau, size_t N, size_t K, size_t rows)
{
    for (int t = 0; t < 3; t++) {
        for (size_t i = 0; t && i < N; i += rows)
            d->op->sinkhorn_rows(d, dv_at(scale, i * sizeof(float)), dv_at(logits, i * K * d->ct_bytes), center, tau,
                                 N - i < rows ? N - i : rows, K);
        if (t == 0) d->op->zero(d, scale, N * sizeof(float));
        for (size_t i = 0; i < N; i += rows)
            d->op->sinkhorn_prototypes(d, center, dv_at(logits, i * K * d->ct_bytes), dv_at(scale, i * sizeof(float)),
                                       i == 0, tau, N - i < rows ? N - i : rows, K);
    }
}

static void sinkhorn(void **state)
{
    (void)state;
    for (size_t c = 0; c < 2; c++)
        for (size_t s = 0; s < sizeof teachers / sizeof *teachers; s++)
            for (size_t pieces = 1; pieces < 4; pieces += 2) {
                size_t N = teachers[s].N, K = teachers[s].K;
                float tau = (float)teachers[s].tau;
                if (N < pieces) continue;
                device d = open_device(types[c]);
                values x = make(&d, N * K, 1, fmin(teachers[s].scale, 1), false), center = make(&d, K, 3, 1, true);
                values scale = make(&d, N, 4, 1, true), sum = make(&d, K, 4, 0, true), one = make(&d, 1, 5, 0, true);
                double *want = room(N * K);
                sinkhorn_run(&d, center.p, scale.p, x.p, tau, N, K, (N + pieces - 1) / pieces);
                d.op->teacher_softmax(&d, x.p, sum.p, sum.p, one.p, x.p, center.p, tau, N, K);
                sinkhorn_plainly(x.v, tau, N, K, want);
                close_to(&d, "sinkhorn", s, &x, want, d.ct == COMPUTE_BF16 ? 5e-3 : 2e-4);
                free(want);
                drop(&d, &x), drop(&d, &center), drop(&d, &scale), drop(&d, &sum), drop(&d, &one);
                device_close(&d);
            }
}

/* Logits of thousands, one row and one prototype far from all others: targets stay finite and rows sum to one. Each
 * prototype has its even share but for what the last scaling of rows takes away: with one row it is exact. */
static void sinkhorn_far(void **state)
{
    (void)state;
    enum { N = 9, K = 40 };
    device d = open_device(COMPUTE_F32);
    values x = make(&d, N * K, 1, 1000, false), center = make(&d, K, 3, 1, true), scale = make(&d, N, 4, 1, true);
    values sum = make(&d, K, 4, 0, true), one = make(&d, 1, 5, 0, true);
    float *p = (float *)x.p;
    for (size_t k = 0; k < K; k++) p[3 * K + k] -= 1e5f;
    for (size_t i = 0; i < N; i++) p[i * K + 7] -= 3e5f;
    sinkhorn_run(&d, center.p, scale.p, x.p, 0.04f, N, K, N);
    d.op->teacher_softmax(&d, x.p, sum.p, sum.p, one.p, x.p, center.p, 0.04f, N, K);
    for (size_t i = 0; i < N; i++) {
        double total = 0;
        for (size_t k = 0; k < K; k++) total += p[i * K + k];
        near("a row of targets", total, 1, 1e-4);
    }
    sinkhorn_run(&d, center.p, scale.p, x.p, 0.04f, 1, K, 1);
    d.op->teacher_softmax(&d, x.p, sum.p, sum.p, one.p, x.p, center.p, 0.04f, 1, K);
    for (size_t k = 0; k < K; k++) near("one row alone", p[k], 1.0 / K, 1e-4);
    drop(&d, &x), drop(&d, &center), drop(&d, &scale), drop(&d, &sum), drop(&d, &one);
    device_close(&d);
}

/* No masked patch in a step: sums and entropies are zero and the centre stays. */
static void teacher_without_rows(void **state)
{
    (void)state;
    device d = open_device(COMPUTE_AUTO);
    values x = make(&d, 8, 1, 1, false), c = make(&d, 8, 2, 1, true), sum = make(&d, 8, 3, 0, true);
    values stats = make(&d, 2, 4, 0, true);
    d.op->teacher_softmax(&d, x.p, sum.p, sum.p, stats.p, x.p, c.p, 0.04f, 0, 8);
    d.op->mean_entropy(&d, dv_at(stats.p, sizeof(float)), sum.p, 0, 8);
    d.op->sinkhorn_rows(&d, sum.p, x.p, c.p, 0.04f, 0, 8);
    d.op->sinkhorn_prototypes(&d, c.p, x.p, sum.p, true, 0.04f, 0, 8);
    d.op->center_update(&d, c.p, sum.p, 0.9f, 0, 8, NULL);
    for (size_t k = 0; k < 8; k++) assert_true(at(&d, &c, k) == c.v[k] && at(&d, &sum, k) == 0);
    assert_true(at(&d, &stats, 0) == 0 && at(&d, &stats, 1) == 0);
    drop(&d, &x), drop(&d, &c), drop(&d, &sum), drop(&d, &stats);
    device_close(&d);
}

/* --- student */

typedef struct {
    size_t N, K, P;
    const double *q;
    const int32_t *pair;
    const float *weight;
    double tau;
} crossing;

static double cross_entropy(const double *x, const void *ctx)
{
    const crossing *s = ctx;
    double total = 0;
    for (size_t i = 0; i < s->N; i++) {
        const double *z = x + i * s->K;
        double most = -INFINITY, sum = 0;
        for (size_t k = 0; k < s->K; k++) most = fmax(most, z[k] / s->tau);
        for (size_t k = 0; k < s->K; k++) sum += exp(z[k] / s->tau - most);
        for (size_t j = 0; j < s->P; j++) {
            if (s->pair[i * s->P + j] < 0) continue;
            const double *q = s->q + (size_t)s->pair[i * s->P + j] * s->K;
            for (size_t k = 0; k < s->K; k++)
                total -= s->weight[i * s->P + j] * q[k] * (z[k] / s->tau - most - log(sum));
        }
    }
    return total;
}

static const struct {
    size_t N, K, P;
    double tau, scale;
} students[] = {{1, 2, 1, 1, 1},    {7, 33, 2, 0.1, 0.3},   {5, 2049, 1, 0.1, 0.5},
                {2, 2048, 2, 1, 1}, {3, 4100, 2, 0.1, 0.2}, {9, 16, 3, 0.1, 5}};

static void soft_ce(void **state)
{
    (void)state;
    for (size_t c = 0; c < 2; c++)
        for (size_t s = 0; s < sizeof students / sizeof *students; s++)
            for (int in_place = 0; in_place < 2; in_place++) {
                device d = open_device(types[c]);
                err e = {0};
                size_t N = students[s].N, K = students[s].K, P = students[s].P, Q = 4;
                values x = make(&d, N * K, 1, students[s].scale, false), g = make(&d, N * K, 2, 1, false);
                values q = make(&d, Q * K, 3, 1, false), center = make(&d, K, 4, 0, true),
                       sum = make(&d, K, 5, 1, true);
                values stats = make(&d, 2, 6, 1, true), loss = make(&d, 1, 7, 0, true);
                int32_t pair[32];
                float weight[32];
                dv *dpair, *dweight;
                rng r = rng_at(8, RNG_TEST, s, 0);
                d.op->teacher_softmax(&d, q.p, sum.p, sum.p, stats.p, q.p, center.p, 0.3f, Q, K);
                for (size_t i = 0; i < Q * K; i++) q.v[i] = at(&d, &q, i);
                for (size_t i = 0; i < N * P; i++) { /* the first pair of all is there, others may not be */
                    pair[i] = (int32_t)rng_below(&r, 5) - (i ? 1 : 0);
                    if (pair[i] > 3) pair[i] = 3;
                    weight[i] = rng_between(&r, 0.1f, 2);
                }
                ASSERT_OK(d.op->alloc(&d, sizeof pair, &dpair, &e));
                ASSERT_OK(d.op->alloc(&d, sizeof weight, &dweight, &e));
                d.op->upload(&d, dpair, pair, sizeof pair);
                d.op->upload(&d, dweight, weight, sizeof weight);
                crossing ctx = {N, K, P, q.v, pair, weight, (float)students[s].tau};
                double *want = room(N * K), expected = cross_entropy(x.v, &ctx);
                differences(cross_entropy, &ctx, x.v, K < 2000 ? N * K : 0, 1e-5, want);
                if (K >= 2000) { /* by the formula: sum_j w_j (p - q_j) / tau */
                    for (size_t i = 0; i < N; i++) {
                        double zero[5000] = {0}, p[5000];
                        target(x.v + i * K, zero, ctx.tau, K, p);
                        for (size_t j = 0; j < P; j++)
                            for (size_t k = 0; pair[i * P + j] >= 0 && k < K; k++)
                                want[i * K + k] +=
                                    weight[i * P + j] * (p[k] - q.v[(size_t)pair[i * P + j] * K + k]) / ctx.tau;
                    }
                }
                ((float *)loss.p)[0] = 1; /* adds */
                d.op->soft_ce(&d, loss.p, in_place ? x.p : g.p, x.p, q.p, dpair, dweight, P, (float)students[s].tau, N,
                              K);
                near("loss", at(&d, &loss, 0) - 1, expected, d.ct == COMPUTE_BF16 ? 1e-2 : 1e-5);
                close_to(&d, "dlogits", s, in_place ? &x : &g, want, d.ct == COMPUTE_BF16 ? 1e-2 : 2e-5);
                free(want);
                d.op->free(&d, dpair), d.op->free(&d, dweight);
                drop(&d, &x), drop(&d, &g), drop(&d, &q), drop(&d, &center), drop(&d, &sum), drop(&d, &stats);
                drop(&d, &loss);
                device_close(&d);
            }
}

/* --- KoLeo */

typedef struct {
    size_t N, C;
    double w;
} spread;

static double koleo_loss(const double *x, const void *ctx)
{
    const spread *s = ctx;
    double *u = room(s->N * s->C), total = 0;
    normalise(x, u, s->N, s->C);
    for (size_t i = 0; i < s->N; i++) {
        size_t nn = i;
        double best = -INFINITY, square = 0;
        for (size_t j = 0; j < s->N; j++) {
            double dot = 0;
            for (size_t k = 0; k < s->C; k++) dot += u[i * s->C + k] * u[j * s->C + k];
            if (j != i && dot > best) best = dot, nn = j;
        }
        for (size_t k = 0; k < s->C; k++) square += pow(u[i * s->C + k] - u[nn * s->C + k], 2);
        total -= log(sqrt(square) + 1e-8);
    }
    free(u);
    return s->w * total / (double)s->N;
}

static void koleo(void **state)
{
    (void)state;
    static const spread rows[] = {{2, 3, 1}, {7, 5, 0.1}, {16, 33, 0.1}, {33, 64, 2}};
    for (size_t c = 0; c < 2; c++)
        for (size_t s = 0; s < sizeof rows / sizeof *rows; s++) {
            device d = open_device(types[c]);
            size_t N = rows[s].N, C = rows[s].C;
            values x = make(&d, N * C, 20 + s, 2, false), dx = make(&d, N * C, 2, 1, false);
            values loss = make(&d, 1, 3, 0, true);
            double *want = room(N * C);
            ((float *)loss.p)[0] = 1;
            d.op->koleo(&d, loss.p, dx.p, x.p, (float)rows[s].w, N, C);
            near("koleo", at(&d, &loss, 0) - 1, koleo_loss(x.v, &rows[s]), 1e-5);
            differences(koleo_loss, &rows[s], x.v, N * C, 1e-6, want);
            close_to(&d, "koleo's gradient", s, &dx, want, d.ct == COMPUTE_BF16 ? 1e-2 : 2e-5);
            free(want);
            drop(&d, &x), drop(&d, &dx), drop(&d, &loss);
            device_close(&d);
        }
}

/* One image has no neighbour; two equal ones have no direction to part in. */
static void koleo_at_its_edges(void **state)
{
    (void)state;
    device d = open_device(COMPUTE_AUTO);
    values x = make(&d, 10, 1, 1, false), dx = make(&d, 10, 2, 1, false), loss = make(&d, 1, 3, 0, true);
    d.op->koleo(&d, loss.p, dx.p, x.p, 1, 1, 10);
    for (size_t i = 0; i < 10; i++) assert_true(at(&d, &dx, i) == 0);
    assert_true(at(&d, &loss, 0) == 0);
    d.op->copy(&d, dv_at(x.p, 5 * d.ct_bytes), x.p, 5 * d.ct_bytes);
    d.op->koleo(&d, loss.p, dx.p, x.p, 1, 2, 5);
    for (size_t i = 0; i < 10; i++) assert_true(at(&d, &dx, i) == 0);
    near("koleo of twins", at(&d, &loss, 0), -log(1e-8), 1e-4);
    drop(&d, &x), drop(&d, &dx), drop(&d, &loss);
    device_close(&d);
}

/* --- the classifier's losses */

typedef struct {
    size_t N, K;
    const double *target, *weight; /* weight NULL: softmax */
    double w;
} classes;

static double softmax_loss(const double *z, const void *ctx)
{
    const classes *s = ctx;
    double total = 0;
    for (size_t i = 0; i < s->N; i++) {
        double sum = 0;
        for (size_t k = 0; k < s->K; k++) sum += exp(z[i * s->K + k]);
        for (size_t k = 0; k < s->K; k++) total -= s->target[i * s->K + k] * log(exp(z[i * s->K + k]) / sum);
    }
    return s->w * total;
}

static double sigmoid_loss(const double *z, const void *ctx)
{
    const classes *s = ctx;
    double total = 0;
    for (size_t i = 0; i < s->N * s->K; i++) {
        double p = 1 / (1 + exp(-z[i]));
        total -= s->weight[i] * (s->target[i] * log(p) + (1 - s->target[i]) * log(1 - p));
    }
    return s->w * total;
}

/* Targets hard or soft, some of weight 0; loss and gradient against the definitions and their finite differences. */
static void label_ce(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t N, K;
        bool soft;
        double w;
        double (*loss)(const double *, const void *);
    } rows[] = {{"softmax of one", 1, 2, false, 1, softmax_loss}, {"softmax", 33, 5, false, 0.5, softmax_loss},
                {"soft targets", 7, 3, true, 2, softmax_loss},    {"sigmoid of one", 1, 1, false, 1, sigmoid_loss},
                {"sigmoid", 33, 5, false, 0.5, sigmoid_loss},     {"sigmoid, soft", 7, 3, true, 2, sigmoid_loss}};
    device d = open_device(COMPUTE_AUTO);
    for (size_t s = 0; s < sizeof rows / sizeof *rows; s++) {
        size_t N = rows[s].N, K = rows[s].K;
        bool sigmoid = rows[s].loss == sigmoid_loss;
        values x = make(&d, N * K, 1, 2, true), g = make(&d, N * K, 2, 1, true), loss = make(&d, 1, 3, 0, true);
        values target = make(&d, N * K, 4, 1, true), weight = make(&d, N * K, 5, 1, true);
        for (size_t i = 0; i < N * K; i++) {
            float t = fabsf(((float *)target.p)[i]), c = fabsf(((float *)weight.p)[i]);
            t = rows[s].soft ? fminf(t, 1) : t > 0.7f;
            target.v[i] = ((float *)target.p)[i] = t;
            weight.v[i] = ((float *)weight.p)[i] = c < 0.3f ? 0 : c;
        }
        classes ctx = {N, K, target.v, weight.v, rows[s].w};
        double *want = room(N * K), expected = rows[s].loss(x.v, &ctx);
        differences(rows[s].loss, &ctx, x.v, N * K, 1e-5, want);
        if (sigmoid)
            d.op->sigmoid_ce(&d, loss.p, g.p, x.p, target.p, weight.p, (float)rows[s].w, N, K);
        else
            d.op->softmax_ce(&d, loss.p, g.p, x.p, target.p, (float)rows[s].w, N, K);
        near(rows[s].name, at(&d, &loss, 0), expected, 1e-5);
        close_to(&d, rows[s].name, s, &g, want, 1e-5);
        free(want);
        drop(&d, &x), drop(&d, &g), drop(&d, &loss), drop(&d, &target), drop(&d, &weight);
    }
    /* Logits at which exp overflows: the loss is the distance, the gradient one or nothing. */
    values x = make(&d, 2, 1, 0, true), g = make(&d, 2, 2, 1, true), loss = make(&d, 1, 3, 0, true);
    values target = make(&d, 2, 4, 0, true), weight = make(&d, 2, 5, 0, true);
    ((float *)x.p)[0] = 1000, ((float *)x.p)[1] = -1000;
    ((float *)weight.p)[0] = ((float *)weight.p)[1] = 1;
    d.op->sigmoid_ce(&d, loss.p, g.p, x.p, target.p, weight.p, 1, 1, 2);
    near("far out", at(&d, &loss, 0), 1000, 1e-6);
    near("far out: gradient", at(&d, &g, 0), 1, 1e-6);
    near("far out: gradient", at(&d, &g, 1), 0, 1e-6);
    drop(&d, &x), drop(&d, &g), drop(&d, &loss), drop(&d, &target), drop(&d, &weight);
    device_close(&d);
}

/* Sums are added in the order of rows: the number of threads does not change a bit. */
static void threads_do_not_matter(void **state)
{
    (void)state;
    enum { N = 37, K = 6000 };
    float loss[3], stats[3][2];
    uint16_t *gradient[3];
    for (int t = 0; t < 3; t++) {
        device d;
        err e = {0};
        ASSERT_OK(device_open_cpu(&d, t + 1, COMPUTE_AUTO, &e));
        values x = make(&d, N * K, 1, 1, false), q = make(&d, N * K, 2, 1, false), c = make(&d, K, 3, 0.1, true);
        values sum = make(&d, K, 4, 1, true), two = make(&d, 2, 5, 0, true), one = make(&d, 1, 6, 0, true);
        values pair = make(&d, N, 7, 0, true), weight = make(&d, N, 8, 1, true);
        for (int32_t i = 0; i < N; i++) ((int32_t *)pair.p)[i] = N - 1 - i;
        sinkhorn_run(&d, c.p, weight.p, q.p, 0.04f, N, K, N);
        for (size_t k = 0; k < K; k++) ((float *)sum.p)[k] = 0;
        d.op->teacher_softmax(&d, q.p, sum.p, sum.p, two.p, q.p, c.p, 0.04f, N, K);
        d.op->mean_entropy(&d, dv_at(two.p, sizeof(float)), sum.p, N, K);
        d.op->soft_ce(&d, one.p, x.p, x.p, q.p, pair.p, weight.p, 1, 0.1f, N, K);
        loss[t] = *(float *)one.p;
        memcpy(stats[t], two.p, sizeof stats[t]);
        gradient[t] = malloc(N * K * d.ct_bytes);
        assert_non_null(gradient[t]);
        memcpy(gradient[t], x.p, N * K * d.ct_bytes);
        if (t && memcmp(gradient[t], gradient[0], N * K * d.ct_bytes)) fail_msg("%d threads: another gradient", t + 1);
        drop(&d, &x), drop(&d, &q), drop(&d, &c), drop(&d, &sum), drop(&d, &two), drop(&d, &one);
        drop(&d, &pair), drop(&d, &weight);
        device_close(&d);
        assert_memory_equal(&loss[t], &loss[0], sizeof *loss);
        assert_memory_equal(stats[t], stats[0], sizeof *stats);
    }
    for (int t = 0; t < 3; t++) free(gradient[t]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(l2),       cmocka_unit_test(l2_of_nothing),      cmocka_unit_test(weight_norm),
        cmocka_unit_test(soft_ce),  cmocka_unit_test(teacher_softmax),    cmocka_unit_test(teacher_without_rows),
        cmocka_unit_test(sinkhorn), cmocka_unit_test(sinkhorn_far),       cmocka_unit_test(label_ce),
        cmocka_unit_test(koleo),    cmocka_unit_test(koleo_at_its_edges), cmocka_unit_test(threads_do_not_matter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
