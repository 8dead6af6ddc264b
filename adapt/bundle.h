/* bundle.h: the model bundle: one safetensors file with the adapter and head tensors under DINOv2 names; its metadata
 * holds backbone hash, labels with codes, preprocessing, split hash and metrics. */
#ifndef RADAPT_BUNDLE_H
#define RADAPT_BUNDLE_H
#include "adapt/features.h"
#include "io/findings.h"
#include "io/safetensors.h"

/* Who fills it for finetune_run: the caller backbone_path or backbone_random, normalisation, peft, window and labels;
 * the rest is filled in there. */
typedef struct bundle_info {
    char backbone[HASH_HEX];                    /* vit_hash */
    char backbone_path[FILE_PATH_MAX];          /* where it was; a hint */
    char backbone_random[128];                  /* "vit-ti/16 seed=7" when it was a random init */
    char normalisation[VIT_NORMALISATION_TEXT]; /* vit_source.normalisation; "": auto */
    int heads;                                  /* of the backbone */
    peft_spec peft; /* what vit_train was called with: its tensors are in the bundle. METHOD_LINEAR: none */
    peft_spec base; /* an adapter of another method that was merged before that; METHOD_LINEAR: none */
    const param_set *base_params; /* its tensors, for bundle_write; not read back */
    char window[64];              /* window_parse text; "": auto */
    int size;
    float share;
    char split_hash[HASH_HEX], version[65];
    char metrics_json[1024];
    label_task task;
    label_code *labels;
    int n_labels;
} bundle_info;

/* Every tensor of a bundle: base_params' behind "base.", then ps's. Shallow: free both->p alone. */
err_code bundle_params(const bundle_info *info, const param_set *ps, param_set *both, err *e);
/* Writes the masters of ps (backbone's trained tensors, head.weight, head.bias) and of base_params. Atomic. */
err_code bundle_write(const char *path, device *d, const param_set *ps, const bundle_info *info, err *e);
/* The metadata alone; free with bundle_info_fini. */
err_code bundle_read_info(const char *path, bundle_info *info, err *e);
void bundle_info_fini(bundle_info *info);

typedef struct bundle bundle; /* an opened bundle on its backbone, ready to predict */
/* backbone_path NULL: the hint. ERR_CONFLICT when the backbone's hash differs. */
err_code bundle_open(bundle **b, device *d, const char *path, const char *backbone_path, err *e);
void bundle_close(bundle *b);
const bundle_info *bundle_get_info(const bundle *b);
const vit *bundle_vit(const bundle *b); /* with what was trained in its weights */
/* The classifier on its class token: weight (outputs, dim), bias (outputs); task.h says what they mean. The bundle's.
 */
void bundle_head(const bundle *b, const float **weight, const float **bias, size_t *outputs);
const char *bundle_hash(const bundle *b); /* SHA-256 of the file */

/* Every study of the cohort (frames grouped by study): mean probability over frames, what that says (findings.h), and
 * the frames that speak for each finding. out is whole or empty; free with findings_fini. */
err_code bundle_predict(bundle *b, const cohort *c, findings *out, err *e);

#endif
