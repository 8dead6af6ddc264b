/* metrics.h: of predicted probabilities (n, classes) and true labels (n). */
#ifndef RADAPT_METRICS_H
#define RADAPT_METRICS_H
#include <stddef.h>

typedef struct {
    size_t n;
    double accuracy, macro_recall, kappa_quadratic;
    double auc;  /* ROC-AUC: of class 1 for two classes, else the mean of one-against-rest over classes that occur; NaN
                    if undefined */
    double loss; /* mean -log of the true label's probability */
} metrics;       /* NaN where a value is undefined (n == 0, one class only) */
int metrics_argmax(const double *probability, int classes);
void metrics_compute(metrics *m, const double *probability, const int *label, size_t n, int classes);
double metrics_auc(const double *score, const unsigned char *positive, size_t n); /* ties count half */

/* kNN as DINO evaluates it: features L2-normalised, weights exp(cos/T); probability (n_query, classes). k is cut to
 * n_train. */
void knn_predict(double *probability, const float *train, const int *train_label, size_t n_train, const float *query,
                 size_t n_query, size_t dim, int classes, int k, double temperature);
/* Effective rank (Roy & Vetterli 2007): exp of the entropy of the normalised singular values of the centred features
 * (n, dim). */
double effective_rank(const float *features, size_t n, size_t dim);

#endif
