/* finetune.h: supervised adaptation on the labelled cohort: linear classifier on the class token (+ adapter),
 * cross-entropy. */
#ifndef RADAPT_FINETUNE_H
#define RADAPT_FINETUNE_H
#include "adapt/bundle.h"
#include "adapt/features.h"
#include "adapt/metrics.h"

typedef struct finetune_options {
    peft_spec peft; /* METHOD_LINEAR: the head alone, on frozen features */
    double epochs;
    int batch;
    float lr, head_lr, lr_last, weight_decay, clip, label_smoothing;
    int warmup_steps;
    float crop_scale[2], flip, jitter;
    bool balanced; /* class-balanced sampling */
    int patience;  /* epochs without a better validation score before stopping; 0: never */
    view_options view;
    uint64_t seed;
} finetune_options;
void finetune_defaults(finetune_options *o);

typedef struct {
    uint64_t steps;
    double seconds, images_per_s;
    metrics validation, test; /* per case: mean probability over its frames */
    bool has_test, resumed, already_done;
} finetune_result;

/* Starts from the vit's weights as they are now (adapter already loaded). Writes run_dir/metrics.jsonl,
 * checkpoint.safetensors, model.safetensors (the bundle of the best validation epoch), predictions.csv (case key, part,
 * label, probabilities) and, last, result.json. */
err_code finetune_run(vit *m, param_set *adapter, const cohort *c, const finetune_options *o, const bundle_info *info,
                      const char *run_dir, finetune_result *out, err *e);

#endif
