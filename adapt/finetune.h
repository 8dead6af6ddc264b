/* finetune.h: supervised adaptation on the labelled cohort: linear classifier on the class token (+ adapter); which
 * loss the cohort's task has is in task.h.
 *
 * METHOD_LINEAR fits the classifier alone, on features taken once: logistic regression to its optimum, the L2 penalty
 * chosen on the validation cases. The other methods start from that classifier (LP-FT: Kumar et al., arXiv 2202.10054)
 * and train it together with the backbone's params, so that they can only lose to it by what they do themselves. */
#ifndef RADAPT_FINETUNE_H
#define RADAPT_FINETUNE_H
#include "adapt/bundle.h"
#include "adapt/features.h"
#include "adapt/metrics.h"

/* Which cases are drawn. Balanced: every class equally often (TASK_MULTILABEL: every stratum, cohort.h). Automatic:
 * balanced for TASK_MULTICLASS, whose scores (ROC-AUC, macro recall) count classes alike; natural for TASK_ORDINAL,
 * whose kappa counts cases, and for TASK_MULTILABEL, whose labels come in company. */
typedef enum { SAMPLING_AUTO, SAMPLING_BALANCED, SAMPLING_NATURAL } label_sampling;
/* How much a case counts in the loss: task_weights. Automatic: balanced for TASK_MULTILABEL, which sampling cannot
 * balance, else none. */
typedef enum { WEIGHTS_AUTO, WEIGHTS_NONE, WEIGHTS_BALANCED } label_weights;

typedef struct finetune_options {
    peft_method method; /* METHOD_LINEAR: the head alone; else every param of the adapter set is stepped */
    double epochs;      /* 0: 20, and more where these are less than 300 updates */
    int batch;
    float lr, head_lr, lr_last, weight_decay, clip, label_smoothing;
    float layer_decay; /* of the learning rate from one block to the one before; 1: none */
    int warmup_steps;
    float crop_scale[2], flip, jitter;
    float drop_path;   /* stochastic depth: probability at the last block; 0: none */
    size_t recompute;  /* of so many blocks the input alone is kept for backward: vit_pass.again */
    size_t frame_room; /* bytes of a GPU's memory in which frames may stay (frame_cache.h) */
    float mixup;       /* alpha of mixup's Beta(alpha, alpha); 0: none */
    bool probe_first;  /* the classifier starts as METHOD_LINEAR's; else from zero */
    label_sampling sampling;
    label_weights weights;
    int patience; /* validations without a better score before it stops, an epoch apart, 40 a run at most; 0: never */
    view_options view;
    uint64_t seed;
} finetune_options;
/* With a method's learning rate. */
void finetune_defaults(finetune_options *o, peft_method method);

typedef struct {
    uint64_t steps;
    double seconds, images_per_s;
    metrics validation, test; /* per case: mean probability over its frames */
    bool has_test, resumed, already_done;
} finetune_result;

/* Starts from the vit's weights as they are now. adapter: what vit_train(m, &info->peft) made (empty where
 * info->peft.method is METHOD_LINEAR), with the SSL stage's adapter loaded into it if there is one; without a teacher.
 * All of it goes into the bundle, stepped or not. Writes run_dir/metrics.jsonl, checkpoint.safetensors (while it runs),
 * model.safetensors (the bundle of the best validation epoch by metrics_better; of the last where no case is in
 * validation), predictions.csv (case key, part, label, probabilities) and, last, result.json: where it exists nothing
 * is done. ERR_CONFLICT: run_dir holds a run with another identity. ERR_INTERRUPTED: the same call goes on. */
err_code finetune_run(vit *m, param_set *adapter, const cohort *c, const finetune_options *o, const bundle_info *info,
                      const char *run_dir, finetune_result *out, err *e);

/* For plan.h, on a device that counts: what training takes there beside the model and the adapter's params, by what it
 * is for; held: all of the device before an evaluation; host: of the loader. */
typedef struct {
    size_t head, best, batch, packed, held, host;
    double again; /* of the forward operations, what backward does a second time */
} finetune_measured;
err_code finetune_measure(vit *m, param_set *adapter, const finetune_options *o, int classes, finetune_measured *out,
                          err *e);

/* SHA-256 of all that decides the result: backbone, adapter as it is now, options, labels, split, frames. A good name
 * for run_dir. */
err_code finetune_identity(vit *m, const param_set *adapter, const cohort *c, const finetune_options *o,
                           char out[HASH_HEX], err *e);

#endif
