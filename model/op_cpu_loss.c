/* op_cpu_loss.c: the objective's ops. Logits may be 65,536 wide, so their rows are walked in pieces: nothing of the
 * size of a logit matrix is ever made in fp32. Sums over rows run in a fixed order. Equations: DINO (Caron et al.
 * 2021), iBOT (Zhou et al. 2022), KoLeo (Sablayrolles et al. 2019), as DINOv2 combines them. */
#include <float.h>
#include <math.h>

#include "model/op_cpu.h"

enum { PIECE = 2048 };

static size_t piece(size_t n, size_t at)
{
    return n - at < PIECE ? n - at : PIECE;
}

WIDE static void scale(float *x, float by, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] *= by;
}

/* y += by * x */
WIDE static void add_scaled(float *y, const float *x, float by, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] += by * x[i];
}

void op_cpu_l2_fwd(device *d, dv *y, dv *norm, const dv *x, size_t N, size_t C)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < N; i++) {
        float *row = op_cpu_row(d, 0);
        op_cpu_load(d, row, x, i * C, C);
        float n = sqrtf(op_cpu_dot(row, row, C));
        n = n > 1e-12f ? n : 1e-12f;
        scale(row, 1.0f / n, C);
        ((float *)norm)[i] = n;
        op_cpu_store(d, y, i * C, row, C);
    }
}

/* dx = (dy - y (y.dy)) / |x| */
void op_cpu_l2_bwd(device *d, dv *dx, const dv *dy, const dv *y, const dv *norm, size_t N, size_t C)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < N; i++) {
        float *g = op_cpu_row(d, 0), *u = op_cpu_row(d, 1);
        op_cpu_load(d, g, dy, i * C, C);
        op_cpu_load(d, u, y, i * C, C);
        float along = op_cpu_dot(g, u, C), inverse = 1.0f / ((const float *)norm)[i];
        for (size_t k = 0; k < C; k++) g[k] = (g[k] - u[k] * along) * inverse;
        op_cpu_store(d, dx, i * C, g, C);
    }
}

void op_cpu_weight_norm_fwd(device *d, dv *w_ct, const dv *v, size_t K, size_t C)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < K; i++) {
        const float *in = (const float *)v + i * C;
        float *row = op_cpu_row(d, 0), n = sqrtf(op_cpu_dot(in, in, C));
        memcpy(row, in, C * sizeof *row);
        scale(row, 1.0f / (n > 1e-12f ? n : 1e-12f), C);
        op_cpu_store(d, w_ct, i * C, row, C);
    }
}

void op_cpu_weight_norm_bwd(device *d, dv *dv_f32, const dv *dw, const dv *v, size_t K, size_t C)
{
    (void)d;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < K; i++) {
        const float *g = (const float *)dw + i * C, *x = (const float *)v + i * C;
        float *out = (float *)dv_f32 + i * C, n = sqrtf(op_cpu_dot(x, x, C));
        n = n > 1e-12f ? n : 1e-12f;
        float along = op_cpu_dot(g, x, C) / (n * n), inverse = 1.0f / n;
        for (size_t k = 0; k < C; k++) out[k] = (g[k] - x[k] * along) * inverse;
    }
}

WIDE static float biggest(const float *x, float inverse, size_t n, float most)
{
#pragma omp simd reduction(max : most)
    for (size_t i = 0; i < n; i++) {
        float v = x[i] * inverse;
        most = v > most ? v : most;
    }
    return most;
}

/* x = exp(x * inverse - most); returns the sum. */
WIDE static float exponentials(float *x, float inverse, float most, size_t n)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) {
        x[i] = op_exp(x[i] * inverse - most);
        sum += x[i];
    }
    return sum;
}

WIDE static void subtract(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] -= y[i];
}

/* sum += exp(x * inverse + shift - most) */
WIDE static void add_exponentials(float *sum, const float *x, const float *most, float inverse, float shift, size_t n)
{
    for (size_t i = 0; i < n; i++) sum[i] += op_exp(x[i] * inverse + shift - most[i]);
}

/* Maximum and sum of exponentials of one row of ct logits. */
static void row_statistics(const device *d, const dv *logits, size_t at, size_t K, const float *shift, float inverse,
                           float *most, double *sum)
{
    float *x = op_cpu_row(d, 0), m = -FLT_MAX;
    for (size_t k = 0; k < K; k += PIECE) {
        size_t n = piece(K, k);
        op_cpu_load(d, x, logits, at + k, n);
        if (shift) subtract(x, shift + k, n);
        m = biggest(x, inverse, n, m);
    }
    double s = 0;
    for (size_t k = 0; k < K; k += PIECE) {
        size_t n = piece(K, k);
        op_cpu_load(d, x, logits, at + k, n);
        if (shift) subtract(x, shift + k, n);
        s += exponentials(x, inverse, m, n);
    }
    *most = m;
    *sum = s;
}

/* sum of q * (z * inverse - most) */
WIDE static float expected(const float *q, const float *z, float inverse, float most, size_t n)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) sum += q[i] * (z[i] * inverse - most);
    return sum;
}

/* Cross-entropy's gradient: z = exp(z) becomes (z * norm - target) * inverse. */
WIDE static void soft_gradient(float *z, const float *target, float norm, float inverse, size_t n)
{
    for (size_t i = 0; i < n; i++) z[i] = (z[i] * norm - target[i]) * inverse;
}

/* most = max(most, z * inverse + shift) */
WIDE static void raise_to(float *most, const float *z, float inverse, float shift, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float x = z[i] * inverse + shift;
        most[i] = x > most[i] ? x : most[i];
    }
}

/* sums (K) += the columns of rows (N,K). */
static void add_columns(const device *d, float *sums, const dv *rows, size_t N, size_t K)
{
#pragma omp parallel for schedule(static)
    for (size_t k = 0; k < K; k += PIECE) {
        size_t n = piece(K, k);
        float *x = op_cpu_row(d, 0), *s = sums + k;
        for (size_t i = 0; i < N; i++) {
            op_cpu_load(d, x, rows, i * K + k, n);
            add_scaled(s, x, 1, n);
        }
    }
}

void op_cpu_teacher_softmax(device *d, dv *q, dv *sum, dv *mean, dv *entropy, const dv *logits, const dv *center,
                            float tau, size_t N, size_t K)
{
    const float *c = (const float *)center;
    double all = 0;
    float inverse = 1.0f / tau;
    add_columns(d, (float *)sum, logits, N, K); /* first: q may be logits */
    /* Ordered: each row's entropy is added in the order of rows. */
#pragma omp parallel for schedule(static, 1) ordered
    for (size_t i = 0; i < N; i++) {
        float most, *x = op_cpu_row(d, 0);
        double total, h = 0;
        row_statistics(d, logits, i * K, K, c, inverse, &most, &total);
        float norm = (float)(1.0 / total);
        for (size_t k = 0; k < K; k += PIECE) {
            size_t n = piece(K, k);
            float *y = op_cpu_row(d, 1);
            op_cpu_load(d, x, logits, i * K + k, n);
            subtract(x, c + k, n);
            memcpy(y, x, n * sizeof *y);
            exponentials(x, inverse, most, n);
            scale(x, norm, n);
            h -= expected(x, y, inverse, most, n);
            op_cpu_store(d, q, i * K + k, x, n);
        }
        h += log(total);
#pragma omp ordered
        all += h;
    }
    add_columns(d, (float *)mean, q, N, K);
    *(float *)entropy += (float)all;
}

void op_cpu_mean_entropy(device *d, dv *out, const dv *mean, size_t N, size_t K)
{
    (void)d;
    double h = 0;
    for (size_t k = 0; N && k < K; k++) {
        double p = ((const float *)mean)[k] / (double)N;
        if (p > 0) h -= p * log(p);
    }
    *(float *)out = (float)h;
}

/* A piece of columns at a time: the largest exponent of each column first, then the sum below it. What earlier rows
 * gave is one more exponent. */
void op_cpu_sinkhorn_prototypes(device *d, dv *center, const dv *logits, const dv *scale_, bool first, float tau,
                                size_t N, size_t K)
{
    const float *row_scale = (const float *)scale_;
    float inverse = 1.0f / tau;
    if (!N) return;
#pragma omp parallel for schedule(static)
    for (size_t k = 0; k < K; k += PIECE) {
        size_t n = piece(K, k);
        float *x = op_cpu_row(d, 0), *most = op_cpu_row(d, 1), *sum = op_cpu_row(d, 2), *c = (float *)center + k;
        for (size_t j = 0; j < n; j++) most[j] = first ? -FLT_MAX : c[j] * inverse;
        for (size_t i = 0; i < N; i++) {
            float shift = row_scale ? row_scale[i] : 0;
            op_cpu_load(d, x, logits, i * K + k, n);
            raise_to(most, x, inverse, shift, n);
        }
        for (size_t j = 0; j < n; j++) sum[j] = first ? 0 : expf(c[j] * inverse - most[j]);
        for (size_t i = 0; i < N; i++) {
            float shift = row_scale ? row_scale[i] : 0;
            op_cpu_load(d, x, logits, i * K + k, n);
            add_exponentials(sum, x, most, inverse, shift, n);
        }
        for (size_t j = 0; j < n; j++) c[j] = tau * (most[j] + logf(sum[j]));
    }
}

void op_cpu_sinkhorn_rows(device *d, dv *scale_, const dv *logits, const dv *center, float tau, size_t N, size_t K)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < N; i++) {
        float most;
        double sum;
        row_statistics(d, logits, i * K, K, (const float *)center, 1.0f / tau, &most, &sum);
        ((float *)scale_)[i] = (float)(-most - log(sum));
    }
}

void op_cpu_center_update(device *d, dv *center, const dv *sum, float m, size_t N, size_t K, const dv *square)
{
    (void)d;
    if (!N || (square && !isfinite(*(const float *)square))) return;
    float *c = (float *)center;
    for (size_t k = 0; k < K; k++) c[k] = m * c[k] + (1 - m) * ((const float *)sum)[k] / (float)N;
}

void op_cpu_soft_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *q, const dv *pair, const dv *weight,
                    size_t P, float tau, size_t N, size_t K)
{
    const int32_t *pairs = (const int32_t *)pair;
    const float *weights = (const float *)weight;
    float inverse = 1.0f / tau;
    double total = 0;
#pragma omp parallel for schedule(static, 1) ordered
    for (size_t i = 0; i < N; i++) {
        float most, *x = op_cpu_row(d, 0), *t = op_cpu_row(d, 1), *target = op_cpu_row(d, 2), sum_w = 0;
        double sum, cross = 0;
        for (size_t j = 0; j < P; j++)
            if (pairs[i * P + j] >= 0) sum_w += weights[i * P + j];
        row_statistics(d, logits, i * K, K, NULL, inverse, &most, &sum);
        float norm = (float)(sum_w / sum);
        for (size_t k = 0; k < K; k += PIECE) {
            size_t n = piece(K, k);
            op_cpu_load(d, x, logits, i * K + k, n);
            memset(target, 0, n * sizeof *target);
            for (size_t j = 0; j < P; j++) {
                if (pairs[i * P + j] < 0) continue;
                op_cpu_load(d, t, q, (size_t)pairs[i * P + j] * K + k, n);
                add_scaled(target, t, weights[i * P + j], n);
            }
            cross -= expected(target, x, inverse, most, n);
            exponentials(x, inverse, most, n);
            soft_gradient(x, target, norm, inverse, n);
            op_cpu_store(d, dlogits, i * K + k, x, n);
        }
        /* sum_c target_c = sum_w only as far as ct rounds q; the exact sum goes with log Z. */
        cross += sum_w * log(sum);
#pragma omp ordered
        total += cross;
    }
    *(float *)loss += (float)total;
}

void op_cpu_koleo(device *d, dv *loss, dv *dx, const dv *x, float w, size_t N, size_t C)
{
    op_cpu_zero(d, dx, N * C * d->ct_bytes);
    if (N < 2) return;
    /* N is the batch: the O(N^2 C) search is small beside the step. g (C) of rows i and nn(i) are added in order of i.
     */
    float *a = op_cpu_row(d, 0), *b = op_cpu_row(d, 1), *g = op_cpu_row(d, 2), *old = op_cpu_row(d, 3);
    double total = 0;
    for (size_t i = 0; i < N; i++) {
        op_cpu_load(d, a, x, i * C, C);
        float na = sqrtf(op_cpu_dot(a, a, C)), best = -FLT_MAX, nb = 1;
        na = na > 1e-8f ? na : 1e-8f;
        size_t nn = i;
        for (size_t j = 0; j < N; j++) {
            if (j == i) continue;
            op_cpu_load(d, b, x, j * C, C);
            float n = sqrtf(op_cpu_dot(b, b, C));
            n = n > 1e-8f ? n : 1e-8f;
            float c = op_cpu_dot(a, b, C) / (na * n);
            if (c > best) {
                best = c;
                nn = j;
                nb = n;
            }
        }
        op_cpu_load(d, b, x, nn * C, C);
        scale(a, 1 / na, C);
        scale(b, 1 / nb, C);
        float square = 0; /* torch's PairwiseDistance adds 1e-8 to each difference: below fp32's resolution here */
        for (size_t k = 0; k < C; k++) square += (a[k] - b[k]) * (a[k] - b[k]);
        float distance = sqrtf(square);
        total -= log((double)distance + 1e-8);
        if (distance == 0) continue; /* no direction to push in */
        float f = -w / (float)N / (distance + 1e-8f) / distance;
        for (int side = 0; side < 2;
             side++) { /* d/du_i = f (u_i - u_nn), d/du_nn its opposite; then through the normalisation */
            const float *u = side ? b : a, *v = side ? a : b;
            float n = side ? nb : na, along = 0;
            size_t row = side ? nn : i;
            for (size_t k = 0; k < C; k++) g[k] = f * (u[k] - v[k]);
            along = op_cpu_dot(g, u, C);
            op_cpu_load(d, old, dx, row * C, C);
            for (size_t k = 0; k < C; k++) old[k] += (g[k] - u[k] * along) / n;
            op_cpu_store(d, dx, row * C, old, C);
        }
    }
    *(float *)loss += (float)(w * total / (double)N);
}

void op_cpu_softmax_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *target, float w, size_t N,
                       size_t K)
{
    (void)d;
    double total = 0;
    for (size_t i = 0; i < N; i++) {
        const float *z = (const float *)logits + i * K, *t = (const float *)target + i * K;
        float *g = (float *)dlogits + i * K, most = -FLT_MAX;
        double sum = 0, all = 0;
        for (size_t k = 0; k < K; k++) most = z[k] > most ? z[k] : most;
        for (size_t k = 0; k < K; k++) sum += exp((double)z[k] - most);
        double log_sum = log(sum) + most;
        for (size_t k = 0; k < K; k++) {
            all += t[k];
            total += t[k] * (log_sum - z[k]);
        }
        for (size_t k = 0; k < K; k++) g[k] = (float)(w * (all * exp((double)z[k] - log_sum) - t[k]));
    }
    *(float *)loss += (float)(w * total);
}

void op_cpu_sigmoid_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *target, const dv *weight, float w,
                       size_t N, size_t K)
{
    (void)d;
    double total = 0;
    for (size_t i = 0; i < N * K; i++) {
        double z = ((const float *)logits)[i], t = ((const float *)target)[i], c = ((const float *)weight)[i];
        double tail = exp(-fabs(z)); /* log(1 + exp z) = max(z, 0) + log(1 + exp -|z|) */
        total += c * (fmax(z, 0) + log1p(tail) - t * z);
        ((float *)dlogits)[i] = (float)(w * c * ((z >= 0 ? 1 : tail) / (1 + tail) - t));
    }
    *(float *)loss += (float)(w * total);
}
