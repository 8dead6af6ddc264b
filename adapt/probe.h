/* probe.h: the linear classifier on frozen features: logistic regression, fitted to its optimum: of classes (softmax),
 * or of every output on its own (sigmoid).
 *
 * Features are standardised first (weighted mean 0, variance 1), so that one L2 penalty suits them all; what comes out
 * is turned back: logits = weight x + bias on the features as they are. */
#ifndef RADAPT_PROBE_H
#define RADAPT_PROBE_H
#include "base/err.h"

#include <stddef.h>

typedef struct {
    const float *x;      /* (n, dim) */
    const int *label;    /* (n) classes; NULL: sigmoids */
    const float *target; /* (n, outputs) sigmoids: 0 to 1 */
    const float *known;  /* (n, outputs) sigmoids: how much that counts, 0 where the target is not known */
    const float *weight; /* (n) how much a row counts; only ratios matter */
    size_t n, dim;
    int outputs; /* classes, two at least; sigmoids: one at least */
} probe_rows;

typedef struct {
    size_t dim;
    int outputs;
    float *weight, *bias; /* (outputs, dim), (outputs) */
} probe;

/* One fit per penalty, from the largest on, each starting where the one before ended; out[i] belongs to l2[i] and the
 * caller frees it (probe_fini), after failure too. Minimises the weighted mean over rows of the cross-entropy (of the
 * sum over outputs of the binary ones) + l2/2 |W|^2. */
err_code probe_fit(probe *out, const probe_rows *rows, const double *l2, size_t n_l2, err *e);
void probe_fini(probe *p);
/* z (n, outputs) = weight x + bias; x (n, dim). */
void probe_logits(const float *weight, const float *bias, const float *x, size_t n, size_t dim, int outputs, double *z);

#endif
