/* metrics.h: of predicted probabilities (n, labels) and what is true. */
#ifndef RADAPT_METRICS_H
#define RADAPT_METRICS_H
#include <stddef.h>

#include "io/findings.h"

typedef struct {
    size_t n; /* cases */
    /* Share of cases whose class was named; of TASK_MULTILABEL: share of known (case, label) pairs on the right side of
     * 0.5. */
    double accuracy;
    double macro_recall;    /* mean over labels that occur of the share of their cases that were named */
    double kappa_quadratic; /* Cohen's, weights (i-j)^2; not of TASK_MULTILABEL */
    /* ROC-AUC: of class 1 for two classes, else the mean of one-against-rest over classes that occur; of TASK_ORDINAL
     * the mean over cuts between grades of above-against-not; of TASK_MULTILABEL the mean over labels. */
    double auc;
    double average_precision; /* likewise the mean; not of TASK_ORDINAL */
    double mae;               /* TASK_ORDINAL: mean distance of the named grade from the true one, in grades */
    double loss; /* mean -log of the true label's probability; of TASK_MULTILABEL: mean binary cross-entropy of known
                    pairs */
} metrics;       /* NaN where a value is undefined (n == 0, one class only, another task) */
int metrics_argmax(const double *probability, int classes);
/* What the probabilities say: the most probable class; TASK_ORDINAL: the median grade, which is nearest to the truth on
 * average. */
int metrics_decide(label_task task, const double *probability, int labels);
/* TASK_MULTICLASS or TASK_ORDINAL; label (n). */
void metrics_compute(metrics *m, label_task task, const double *probability, const int *label, size_t n, int labels);
/* TASK_MULTILABEL; mark (n, labels): 1 there, 0 not, -1 not known. */
void metrics_compute_marks(metrics *m, const double *probability, const signed char *mark, size_t n, int labels);
/* Is a better than b? TASK_ORDINAL by quadratic kappa, the others by ROC-AUC; then by loss. A defined one is better
 * than an undefined one, anything than nothing (b->n 0). */
bool metrics_better(label_task task, const metrics *a, const metrics *b);
/* Mean over the positives of the precision at their score, as scikit-learn's average_precision_score: what shares a
 * score comes at once. NaN without a positive. */
double metrics_average_precision(const double *score, const unsigned char *positive, size_t n);
double metrics_auc(const double *score, const unsigned char *positive, size_t n); /* ties count half */

/* kNN as DINO evaluates it: features L2-normalised, weights exp(cos/T); probability (n_query, classes). k is cut to
 * n_train. */
void knn_predict(double *probability, const float *train, const int *train_label, size_t n_train, const float *query,
                 size_t n_query, size_t dim, int classes, int k, double temperature);
/* Effective rank (Roy & Vetterli 2007): exp of the entropy of the normalised singular values of the centred features
 * (n, dim). */
double effective_rank(const float *features, size_t n, size_t dim);

#endif
