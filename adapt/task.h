/* task.h: what a classifier's outputs mean, by the kind of labels.
 *
 * TASK_MULTICLASS  one logit a class; softmax; cross-entropy.
 * TASK_MULTILABEL  one logit a label; sigmoid of each; binary cross-entropy of the labels that are known.
 * TASK_ORDINAL     one logit a cut between neighbouring grades: CORN (Shi, Cao, Raschka, "Deep neural networks for
 *                  rank-consistent ordinal regression based on conditional probabilities", arXiv 2111.08851). Logit k
 * is that of P(grade > k | grade >= k), learnt on cases of grade k and above; products of them are P(grade > k), which
 * cannot cross, so that every grade's probability is at least 0. */
#ifndef RADAPT_TASK_H
#define RADAPT_TASK_H
#include "adapt/cohort.h"

/* Logits of a classifier for so many labels: labels, TASK_ORDINAL one less. */
int task_outputs(label_task task, int labels);
/* p (n, labels) from z (n, outputs); z is used up. */
void task_probabilities(label_task task, int labels, double *z, size_t n, double *p);
/* What a case says of each output: target (outputs) 0 or 1, weight (outputs) how much that counts: 0 where it says
 * nothing. class_weight (labels, 2) from task_weights, or NULL: all 1. */
void task_targets(label_task task, int labels, const labelled_case *k, const float *class_weight, float *target,
                  float *weight);
/* Weights that give every label's cases the same sum, as scikit-learn's "balanced": cases / (labels * cases of it), of
 * the training cases; of TASK_MULTILABEL: known cases / (2 * cases with, or without it). Cut to [0.1, 10]; 1 for a
 * label without a case. weight (labels, 2): [2k + 1] of cases with label k, [2k] of those without (TASK_MULTILABEL
 * only). */
void task_weights(const cohort *c, float *weight);
/* TASK_MULTILABEL's sets and classes as text: names with semicolons between, "?" before one that is not known.
 * malloc'ed; NULL: no memory. */
char *task_text(const cohort *c, const labelled_case *k);
/* The same of what the probabilities (labels) say. */
char *task_text_of(const cohort *c, const double *probability);

#endif
