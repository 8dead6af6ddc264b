/* finetune_train.h: the loop of finetune.c: classifier and backbone trained together. */
#ifndef RADAPT_FINETUNE_TRAIN_H
#define RADAPT_FINETUNE_TRAIN_H
#include "adapt/case_set.h"
#include "adapt/finetune.h"

/* What the files of the stage work on. params: the adapter's params and, last, head.weight and head.bias: shallow
 * copies, the owners outlive the job. */
typedef struct {
    vit *m;
    device *d;
    const cohort *c;
    const finetune_options *o;
    const char *run_dir, *identity;
    param_set params;
    linear_w head; /* (outputs, dim) */
    size_t dim;
    int classes, outputs; /* labels; logits: task.h */
    bool balanced;        /* strata are drawn equally often */
    float *class_weight;  /* (classes, 2), task_weights; NULL: none */
    finetune_result *out;
    uint64_t best_step;
} finetune_job;

/* out (frames of the set, classes) with the head's masters as they are. */
err_code finetune_train_predict(finetune_job *j, const float *features, size_t n, double *out, err *e);
/* Is there a checkpoint to go on from? */
bool finetune_train_started(const finetune_job *j);
/* finetune_measure's part; j's head is there. */
err_code finetune_train_measure(finetune_job *j, finetune_measured *out, err *e);
/* From the params as they are, or from the checkpoint; the best ones are in the params afterwards. */
err_code finetune_train(finetune_job *j, err *e);

#endif
