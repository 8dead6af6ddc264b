/* labels.h: the label table (cohort.h says what it may hold) -> cases of a cohort whose frames are there already. */
#ifndef RADAPT_LABELS_H
#define RADAPT_LABELS_H
#include "adapt/cohort.h"

/* Fills task, cases (part SPLIT_NONE), labels and the counts of rows. What it made is the cohort's, after failure too.
 */
err_code labels_read(cohort *c, catalogue *cat, const char *path, const label_rules *rules, err *e);

#endif
