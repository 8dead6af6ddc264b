/* metrics.c: plain O(n log n) and O(n d) code in double precision; see metrics.h for what each number means. */
#include "adapt/metrics.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"

typedef struct {
    double score;
    unsigned char positive;
} scored;

static int by_score(const void *a, const void *b)
{
    double x = ((const scored *)a)->score, y = ((const scored *)b)->score;
    return (x > y) - (x < y);
}

/* Mann-Whitney: the ranks of the positives, ties at their mean rank. */
double metrics_auc(const double *score, const unsigned char *positive, size_t n)
{
    scored *s = malloc((n + 1) * sizeof *s);
    if (!s) return NAN;
    size_t positives = 0;
    bool finite = true;
    for (size_t i = 0; i < n; i++) {
        s[i] = (scored){score[i], positive[i] != 0};
        positives += s[i].positive;
        finite &= isfinite(score[i]) != 0;
    }
    size_t negatives = n - positives;
    double rank_sum = 0;
    qsort(s, n, sizeof *s, by_score);
    for (size_t first = 0, end; finite && first < n; first = end) {
        size_t in_tie = 0;
        for (end = first; end < n && s[end].score == s[first].score; end++) in_tie += s[end].positive;
        rank_sum += (double)in_tie * ((double)(first + 1 + end) / 2);
    }
    free(s);
    if (!finite || !positives || !negatives) return NAN;
    double p = (double)positives;
    return (rank_sum - p * (p + 1) / 2) / (p * (double)negatives);
}

double metrics_average_precision(const double *score, const unsigned char *positive, size_t n)
{
    scored *s = malloc((n + 1) * sizeof *s);
    if (!s) return NAN;
    size_t positives = 0, found = 0;
    bool finite = true;
    for (size_t i = 0; i < n; i++) {
        s[i] = (scored){score[i], positive[i] != 0};
        positives += s[i].positive;
        finite &= isfinite(score[i]) != 0;
    }
    double sum = 0;
    qsort(s, n, sizeof *s, by_score);
    for (size_t end = n, first; finite && end > 0; end = first) { /* from the highest score down */
        size_t in_tie = 0;
        for (first = end; first > 0 && s[first - 1].score == s[end - 1].score; first--) in_tie += s[first - 1].positive;
        found += in_tie;
        sum += (double)in_tie * (double)found / (double)(n - first);
    }
    free(s);
    return finite && positives ? sum / (double)positives : NAN;
}

int metrics_argmax(const double *probability, int classes)
{
    int best = 0;
    for (int k = 1; k < classes; k++)
        if (probability[k] > probability[best]) best = k;
    return best;
}

int metrics_decide(label_task task, const double *probability, int labels)
{
    if (task != TASK_ORDINAL) return metrics_argmax(probability, labels);
    double below = 0;
    for (int k = 0; k + 1 < labels; k++)
        if ((below += probability[k]) >= 0.5) return k;
    return labels - 1;
}

/* Cohen's kappa with weights (i-j)^2: 1 - observed / expected disagreement. */
static double kappa(const double *confusion, int classes, size_t n)
{
    double observed = 0, expected = 0;
    for (int i = 0; i < classes; i++) {
        double truth = 0;
        for (int k = 0; k < classes; k++) truth += confusion[i * classes + k];
        for (int j = 0; j < classes; j++) {
            double predicted = 0, d = i - j;
            for (int k = 0; k < classes; k++) predicted += confusion[k * classes + j];
            observed += d * d * confusion[i * classes + j];
            expected += d * d * truth * predicted / (double)n;
        }
    }
    return expected > 0 ? 1 - observed / expected : NAN;
}

/* Room for one label's scores. */
typedef struct {
    double *score;           /* (n) */
    unsigned char *positive; /* (n) */
} column;

/* Means over the labels; NaN where none is defined. */
typedef struct {
    double auc, precision;
    int aucs, precisions;
} means;

static void add_column(means *s, const column *c, size_t n)
{
    double auc = metrics_auc(c->score, c->positive, n), precision = metrics_average_precision(c->score, c->positive, n);
    if (!isnan(auc)) {
        s->auc += auc;
        s->aucs++;
    }
    if (!isnan(precision)) {
        s->precision += precision;
        s->precisions++;
    }
}

static const metrics nothing = {.accuracy = NAN,
                                .macro_recall = NAN,
                                .kappa_quadratic = NAN,
                                .auc = NAN,
                                .average_precision = NAN,
                                .mae = NAN,
                                .loss = NAN};

/* Scores of class k against the rest, or of the grades above k against the others. */
static void fill_column(column *c, label_task task, const double *probability, const int *label, size_t n, int labels,
                        int k)
{
    for (size_t i = 0; i < n; i++) {
        const double *p = probability + i * (size_t)labels;
        c->score[i] = p[k];
        c->positive[i] = label[i] == k;
        if (task != TASK_ORDINAL) continue;
        c->score[i] = 0;
        for (int j = k + 1; j < labels; j++) c->score[i] += p[j];
        c->positive[i] = label[i] > k;
    }
}

static void sum_up(metrics *m, label_task task, const double *confusion, int labels)
{
    size_t K = (size_t)labels;
    double right = 0, recall = 0, distance = 0;
    int occurring = 0;
    for (size_t k = 0; k < K; k++) {
        double truth = 0;
        for (size_t j = 0; j < K; j++) {
            truth += confusion[k * K + j];
            distance += confusion[k * K + j] * fabs((double)k - (double)j);
        }
        right += confusion[k * K + k];
        if (!(truth > 0)) continue;
        recall += confusion[k * K + k] / truth;
        occurring++;
    }
    m->accuracy = right / (double)m->n;
    m->macro_recall = recall / occurring;
    m->kappa_quadratic = kappa(confusion, labels, m->n);
    if (task == TASK_ORDINAL) m->mae = distance / (double)m->n;
}

void metrics_compute(metrics *m, label_task task, const double *probability, const int *label, size_t n, int labels)
{
    *m = nothing;
    m->n = n;
    if (!n || labels < 1) return;
    size_t K = (size_t)labels;
    column c = {malloc(n * sizeof *c.score), malloc(n)};
    double *confusion = calloc(K * K, sizeof *confusion), loss = 0;
    means mean = {0};
    if (!confusion || !c.score || !c.positive) goto done;
    for (size_t i = 0; i < n; i++) {
        const double *p = probability + i * K;
        confusion[(size_t)label[i] * K + (size_t)metrics_decide(task, p, labels)]++;
        loss -= log(fmax(p[label[i]], 1e-12));
    }
    m->loss = loss / (double)n;
    sum_up(m, task, confusion, labels);
    for (int k = 0; k < labels; k++) {
        if (task == TASK_ORDINAL ? k + 1 == labels : labels == 2 && k == 0) continue;
        fill_column(&c, task, probability, label, n, labels, k);
        add_column(&mean, &c, n);
    }
    if (mean.aucs) m->auc = mean.auc / mean.aucs;
    if (mean.precisions && task != TASK_ORDINAL) m->average_precision = mean.precision / mean.precisions;
done:
    free(confusion);
    free(c.score);
    free(c.positive);
}

void metrics_compute_marks(metrics *m, const double *probability, const signed char *mark, size_t n, int labels)
{
    *m = nothing;
    m->n = n;
    size_t K = (size_t)labels, known = 0, right = 0;
    column c = {malloc((n + 1) * sizeof *c.score), malloc(n + 1)};
    double loss = 0, recall = 0;
    int occurring = 0;
    means mean = {0};
    for (size_t k = 0; k < K && c.score && c.positive; k++) {
        size_t here = 0, there = 0, named = 0;
        for (size_t i = 0; i < n; i++) {
            double p = probability[i * K + k];
            const signed char truth = mark[i * K + k];
            if (truth < 0) continue;
            c.score[here] = p;
            c.positive[here++] = truth > 0;
            loss -= log(fmax(truth ? p : 1 - p, 1e-12));
            right += (p >= 0.5) == (truth > 0);
            there += truth > 0;
            named += truth > 0 && p >= 0.5;
        }
        known += here;
        add_column(&mean, &c, here);
        if (!there) continue;
        recall += (double)named / (double)there;
        occurring++;
    }
    if (known) {
        m->accuracy = (double)right / (double)known;
        m->loss = loss / (double)known;
    }
    if (occurring) m->macro_recall = recall / occurring;
    if (mean.aucs) m->auc = mean.auc / mean.aucs;
    if (mean.precisions) m->average_precision = mean.precision / mean.precisions;
    free(c.score);
    free(c.positive);
}

bool metrics_better(label_task task, const metrics *a, const metrics *b)
{
    double x = task == TASK_ORDINAL ? a->kappa_quadratic : a->auc,
           y = task == TASK_ORDINAL ? b->kappa_quadratic : b->auc;
    if (!b->n) return true;
    if (isnan(x) != isnan(y)) return isnan(y);
    if (!isnan(x) && fabs(x - y) > 1e-9) return x > y;
    return a->loss < b->loss;
}

/* A dot product that vectorises without -ffast-math: sixteen independent sums. */
static double dot(const float *a, const float *b, size_t n)
{
    float part[16] = {0};
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int k = 0; k < 16; k++) part[k] += a[i + (size_t)k] * b[i + (size_t)k];
    double sum = 0;
    for (int k = 0; k < 16; k++) sum += part[k];
    for (; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

static double inverse_norm(const float *x, size_t dim)
{
    double square = dot(x, x, dim);
    return square > 0 ? 1 / sqrt(square) : 0;
}

void knn_predict(double *probability, const float *train, const int *train_label, size_t n_train, const float *query,
                 size_t n_query, size_t dim, int classes, int k, double temperature)
{
    size_t K = (size_t)classes, want = k < 1 ? 1 : (size_t)k;
    if (want > n_train) want = n_train;
    for (size_t i = 0; i < n_query * K; i++) probability[i] = 1.0 / classes;
    double *scale = malloc((n_train + 1) * sizeof *scale);
    scored *near =
        malloc((want + 1) * sizeof *near); /* the `want` nearest so far, as a heap with the farthest on top */
    int *near_label = malloc((want + 1) * sizeof *near_label);
    if (!scale || !near || !near_label || !want) goto done;
    for (size_t j = 0; j < n_train; j++) scale[j] = inverse_norm(train + j * dim, dim);
    for (size_t q = 0; q < n_query; q++) {
        const float *x = query + q * dim;
        double inverse = inverse_norm(x, dim), best = -1;
        size_t held = 0;
        for (size_t j = 0; j < n_train; j++) {
            double cosine = dot(x, train + j * dim, dim) * inverse * scale[j];
            size_t at;
            if (held < want) { /* sift up */
                for (at = held++; at && near[(at - 1) / 2].score > cosine; at = (at - 1) / 2) {
                    near[at] = near[(at - 1) / 2];
                    near_label[at] = near_label[(at - 1) / 2];
                }
            } else if (cosine > near[0].score) { /* replace the top and sift down */
                for (at = 0; 2 * at + 1 < held;) {
                    size_t child = 2 * at + 1;
                    if (child + 1 < held && near[child + 1].score < near[child].score) child++;
                    if (near[child].score >= cosine) break;
                    near[at] = near[child];
                    near_label[at] = near_label[child];
                    at = child;
                }
            } else
                continue;
            near[at].score = cosine;
            near_label[at] = train_label[j];
            if (cosine > best) best = cosine;
        }
        double *p = probability + q * K, sum = 0;
        memset(p, 0, K * sizeof *p);
        for (size_t j = 0; j < held; j++) { /* relative to the nearest: no overflow at any temperature */
            double w = exp((near[j].score - best) / temperature);
            p[near_label[j]] += w;
            sum += w;
        }
        for (size_t c = 0; c < K; c++) p[c] /= sum;
    }
done:
    free(scale);
    free(near);
    free(near_label);
}

/* Householder reduction of the symmetric a (n,n) to a tridiagonal matrix with the same eigenvalues: diagonal (n), off
 * (n), off[i] between i-1 and i. a is used up. Row i is reduced with v = row - alpha e_{i-1} (Golub & Van Loan 8.3.1).
 */
static void tridiagonalise(double *a, size_t n, double *diagonal, double *off, double *work)
{
    off[0] = 0;
    for (size_t i = n - 1; i >= 1; i--) {
        double *v = a + i * n, square = 0; /* v (i): the row left of the diagonal */
        for (size_t j = 0; j < i; j++) square += v[j] * v[j];
        double alpha = v[i - 1] > 0 ? -sqrt(square) : sqrt(square);
        off[i] = alpha;
        double half = square - alpha * v[i - 1]; /* |v - alpha e|^2 / 2 */
        if (!(half > 0)) continue;
        v[i - 1] -= alpha;
        double vp = 0;
        for (size_t j = 0; j < i; j++) work[j] = 0;
        for (size_t j = 0; j < i; j++) { /* p = A v / half; a's lower triangle only */
            const double *row = a + j * n;
            double sum = row[j] * v[j];
            for (size_t k = 0; k < j; k++) {
                sum += row[k] * v[k];
                work[k] += row[k] * v[j];
            }
            work[j] += sum;
        }
        for (size_t j = 0; j < i; j++) {
            work[j] /= half;
            vp += work[j] * v[j];
        }
        double shift = vp / (2 * half);
        for (size_t j = 0; j < i; j++) work[j] -= shift * v[j];
        for (size_t j = 0; j < i; j++) { /* A -= v q' + q v' */
            double *row = a + j * n;
            for (size_t k = 0; k <= j; k++) row[k] -= v[j] * work[k] + work[j] * v[k];
        }
    }
    for (size_t i = 0; i < n; i++) diagonal[i] = a[i * n + i];
}

/* How many eigenvalues lie below x: the negative pivots of the LDL' factorisation of T - x (Sturm). */
static size_t below(const double *diagonal, const double *off, size_t n, double x, double tiny)
{
    size_t count = 0;
    double pivot = 1;
    for (size_t i = 0; i < n; i++) {
        pivot = diagonal[i] - x - (i ? off[i] * off[i] / pivot : 0);
        if (fabs(pivot) < tiny) pivot = -tiny;
        count += pivot < 0;
    }
    return count;
}

/* All eigenvalues of the tridiagonal matrix by bisection, ascending. O(60 n^2), and it cannot fail to converge. */
static void eigenvalues(const double *diagonal, const double *off, size_t n, double *out)
{
    double low = 0, high = 0;
    for (size_t i = 0; i < n; i++) { /* Gershgorin */
        double radius = fabs(off[i]) + (i + 1 < n ? fabs(off[i + 1]) : 0);
        low = fmin(low, diagonal[i] - radius);
        high = fmax(high, diagonal[i] + radius);
    }
    double tiny = fmax(fabs(low), fabs(high)) * 1e-300 + 1e-300, precision = fmax(fabs(low), fabs(high)) * 1e-15;
    for (size_t i = 0; i < n; i++) {
        double a = i ? out[i - 1] : low, b = high;
        for (int step = 0; step < 60 && b - a > precision; step++) {
            double middle = 0.5 * (a + b);
            if (below(diagonal, off, n, middle, tiny) > i)
                b = middle;
            else
                a = middle;
        }
        out[i] = 0.5 * (a + b);
    }
}

enum { RANK_ROWS = 512 };

double effective_rank(const float *features, size_t n, size_t dim)
{
    /* More rows than this are thinned evenly: the rank is watched, not published. */
    size_t rows = n < RANK_ROWS ? n : RANK_ROWS, size = rows < dim ? rows : dim, cells, square;
    double rank = NAN;
    if (!rows || !dim || !size_mul(rows, dim, &cells) || !size_mul(size, size, &square)) return NAN;
    double *mean = calloc(dim, sizeof *mean), *gram = calloc(square, sizeof *gram);
    double *line = calloc(4 * size, sizeof *line), *value = line + 3 * size;
    float *x = malloc(cells * sizeof *x); /* (rows, dim) or, when dim is the smaller, (dim, rows) */
    if (!mean || !gram || !line || !x) goto done;
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < dim; j++) mean[j] += features[i * n / rows * dim + j];
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < dim; j++) {
            float centred = (float)(features[i * n / rows * dim + j] - mean[j] / (double)rows);
            x[size == rows ? i * dim + j : j * rows + i] = centred;
        }
    size_t length = size == rows ? dim : rows;
    for (size_t i = 0; i < size; i++)
        for (size_t j = 0; j <= i; j++) {
            double d = dot(x + i * length, x + j * length, length);
            gram[i * size + j] = gram[j * size + i] = d;
        }
    double trace = 0;
    for (size_t i = 0; i < size; i++) trace += gram[i * size + i];
    if (!isfinite(trace)) goto done;
    tridiagonalise(gram, size, line, line + size, line + 2 * size);
    eigenvalues(line, line + size, size, value);
    double sum = 0, entropy = 0;
    for (size_t i = 0; i < size; i++) {
        /* Below single precision of the largest nothing is known: centring alone leaves such a value. */
        value[i] = value[i] > value[size - 1] * 1e-10 ? sqrt(value[i]) : 0;
        sum += value[i];
    }
    if (!(sum > 0)) {
        rank = 1; /* all rows the same */
        goto done;
    }
    for (size_t i = 0; i < size; i++)
        if (value[i] > 0) entropy -= value[i] / sum * log(value[i] / sum);
    rank = exp(entropy);
done:
    free(mean);
    free(gram);
    free(line);
    free(x);
    return rank;
}
