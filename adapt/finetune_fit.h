/* finetune_fit.h: features of cases and the linear classifier fitted on them: METHOD_LINEAR, and what the others start
 * from. */
#ifndef RADAPT_FINETUNE_FIT_H
#define RADAPT_FINETUNE_FIT_H
#include "adapt/finetune_train.h"

typedef struct {
    case_set set;
    float *x;        /* (frames, dim) */
    double *of_case; /* (cases, classes): finetune_fit_predict */
} finetune_seen;

/* Features of the cases of some parts (case_set_init). Free with finetune_fit_fini, after failure too. */
err_code finetune_fit_look(finetune_job *j, finetune_seen *s, const bool parts[3], size_t cap, const char *stage,
                           err *e);
void finetune_fit_fini(finetune_seen *s);
/* of_case from the head as it is. */
err_code finetune_fit_predict(finetune_job *j, finetune_seen *s, err *e);
/* The head becomes the logistic regression on s's training cases, at most cap frames of each; its penalty is chosen on
 * s's validation cases. */
err_code finetune_fit_head(finetune_job *j, finetune_seen *s, size_t cap, err *e);

#endif
