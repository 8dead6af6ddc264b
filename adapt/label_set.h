/* label_set.h: the labels in a table: in which columns they are, what they are called, what a row says of them.
 *
 *     TRY(label_set_open(&s, &table, rules, e));         // the header
 *     for every row: TRY(label_set_row(&s, &table, row, &value, e));
 *     TRY(label_set_names(&s, values of the rows in use, n, e));  // now s.names, s.n; values' label and marks are by
 * them label_set_close(&s);
 */
#ifndef RADAPT_LABEL_SET_H
#define RADAPT_LABEL_SET_H
#include "adapt/cohort.h"
#include "base/csv.h"

enum { LABEL_SET_BYTES = 64, LABEL_SET_MAX = 1000 };

typedef struct {
    label_task task;
    int *column; /* (n) TASK_MULTILABEL: labels that are columns; NULL: all is in column `label` */
    int label;   /* column; -1: none */
    char (*names)[LABEL_SET_BYTES + 1]; /* (n) */
    int n;
    bool ordered; /* names were given in their order */
} label_set;

/* What one row says. */
typedef struct {
    char text[LABEL_SET_BYTES + 1]; /* class or grade */
    signed char *marks;             /* (n) TASK_MULTILABEL, owned: 1 there, 0 not, -1 not known */
    bool empty;                     /* it says nothing */
    int label;                      /* index of the class or grade, after label_set_names */
} label_value;

/* ERR_USAGE where columns are missing or rules do not go together. With TASK_MULTILABEL in one column all of the
 * table's names are collected. */
err_code label_set_open(label_set *s, const csv *t, const label_rules *rules, err *e);
void label_set_close(label_set *s);
bool label_set_uses(const label_set *s, int column); /* is that column a label's? */
/* row from 1. *out is the caller's, after failure too: free its marks. */
err_code label_set_row(const label_set *s, const csv *t, size_t row, label_value *out, err *e);
bool label_set_same(const label_set *s, const label_value *a, const label_value *b);
/* Names that no value has go (grades that were given in their order stay), the rest is sorted; values' label and marks
 * are by the new names. ERR_USAGE where less is left than can be learnt from, ERR_LIMIT. */
err_code label_set_names(label_set *s, label_value *const *values, size_t n, err *e);
/* out[size] = cell without surrounding blanks; false if too long. */
bool label_set_trim(const char *cell, char *out, size_t size);

#endif
