/* findings.h: what the model found, as JSON lines: predict writes it, report reads it. Pseudonyms only.
 *
 * Line 1 is the model:  {"format":"radapt-findings/1","model":{...},"labels":[{"name","value","scheme","meaning"},...]}
 * Every other line is a study:
 *   {"study":"<key>","label":"pneumonia","probability":{"normal":0.03,...},"frames":24,"evidence":[{"instance","frame","weight"}]}
 */
#ifndef RADAPT_FINDINGS_H
#define RADAPT_FINDINGS_H
#include "base/hash.h"

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
    char study_key[KEY_HEX];
    int label;           /* index of the most probable label */
    double *probability; /* (n_labels), sums to 1 */
    int frames;          /* frames that were looked at */
    finding_evidence *evidence;
    int n_evidence; /* at most 8 */
} study_finding;

typedef struct {
    char algorithm[65], version[65], model_hash[HASH_HEX], parameters[256];
    label_code *labels;
    int n_labels;
    study_finding *studies;
    size_t n_studies;
} findings;

err_code findings_write(const char *path, const findings *f, err *e);
err_code findings_read(const char *path, findings *f, err *e);
void findings_fini(findings *f);
/* Checked label table: label,code_value,coding_scheme,code_meaning; labels that are not in the file (or path NULL) get
 * private codes. */
err_code findings_codes(const char *path, label_code *labels, int n_labels, err *e);

#endif
