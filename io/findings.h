/* findings.h: what the model found, as JSON lines: predict writes it, report reads it. Pseudonyms only.
 *
 * Line 1 is the model:
 *   {"format":"radapt-findings/2","task":"multiclass","model":{...},"labels":[{"name","value","scheme","meaning"},...]}
 * Every other line is a study:
 *   {"study":"<key>","found":[{"label":"pneumonia","evidence":[{"instance","frame","weight"},...]}],
 *    "probability":{"normal":0.03,...},"frames":24}
 * The last says that this is all:  {"studies":12,"sha256":"<of every byte before this line>"}
 */
#ifndef RADAPT_FINDINGS_H
#define RADAPT_FINDINGS_H
#include <stdbool.h>

#include "base/hash.h"

/* What the labels of a study are: one of several classes; one of several grades in their order; any set of them. */
typedef enum { TASK_MULTICLASS, TASK_ORDINAL, TASK_MULTILABEL } label_task;

/* A label and its code (PS3.16 8.1). Without a code of the user's: scheme "99RADAPT", value derived from the name. */
typedef struct {
    char name[65];
    char value[17], scheme[17], meaning[65];
} label_code;

typedef struct {
    char instance_key[KEY_HEX];
    int frame;     /* from 1 */
    double weight; /* share of the finding's probability that this frame speaks for; largest first */
} finding_evidence;

typedef struct {
    int label;
    finding_evidence *evidence;
    int n_evidence; /* at most 8 */
} finding;

typedef struct {
    char study_key[KEY_HEX];
    double *probability; /* (n_labels); sums to 1, but for TASK_MULTILABEL: each of its own */
    int frames;          /* frames that were looked at */
    /* The most probable class; the median grade; or every label of probability 0.5 and more (perhaps none), the most
     * probable first. */
    finding *found;
    int n_found;
} study_finding;

typedef struct {
    char algorithm[65], version[65], model_hash[HASH_HEX], parameters[256];
    label_task task;
    label_code *labels;
    int n_labels;
    study_finding *studies;
    size_t n_studies;
} findings;

err_code findings_write(const char *path, const findings *f, err *e);
err_code findings_read(const char *path, findings *f, err *e);
void findings_fini(findings *f);
void findings_study_fini(study_finding *s);
/* "multiclass", "ordinal", "multilabel"; and back: false for another name. */
const char *findings_task_name(label_task task);
bool findings_task(const char *name, label_task *out);
/* Checked label table: label,code_value,coding_scheme,code_meaning; labels that are not in the file (or path NULL) get
 * private codes. */
err_code findings_codes(const char *path, label_code *labels, int n_labels, err *e);

#endif
