/* cohort.h: frames, labels and the patient-level split, as both stages see them. labels.c and split.c fill it.
 *
 * labels.csv: any of patient_id, study_uid, series_uid, sop_uid, path (the finest given level is what is labelled) and
 * label. One labelled thing is a case: a set of frames of one patient. A frame belongs to one case at most: where a
 * study and one of its images are both labelled, the image's label is the image's and the study's is the rest's.
 *
 * label holds one class; with TASK_ORDINAL one grade; with TASK_MULTILABEL any names with semicolons between, an empty
 * cell meaning none of them. Or (TASK_MULTILABEL) every label has a column of its own: 1 there, 0 not, empty or -1 (the
 * "uncertain" of CheXpert's tables) not known. */
#ifndef RADAPT_COHORT_H
#define RADAPT_COHORT_H
#include "io/catalogue.h"
#include "io/findings.h"
#include "io/frame_store.h"

typedef enum { SPLIT_TRAIN, SPLIT_VALIDATION, SPLIT_TEST, SPLIT_NONE } split_part;

typedef struct {
    char key[KEY_HEX]; /* pseudonym of the labelled patient, study, series or instance */
    char patient_key[KEY_HEX];
    int label;          /* index into labels; TASK_MULTILABEL: -1 */
    signed char *marks; /* (n_labels) TASK_MULTILABEL: 1 there, 0 not, -1 not known; else NULL */
    int stratum;        /* below n_strata: the label; TASK_MULTILABEL: its rarest one, n_labels for none */
    split_part part;
    uint32_t *frames; /* (n_frames) indices into cohort.frames */
    size_t n_frames;
} labelled_case;

typedef struct cohort {
    frame_info *frames; /* all stored frames */
    size_t n_frames;
    const void **pixels; /* (n_frames) mapped: cohort_pixels */
    split_part *part;    /* (n_frames), of the frame's patient */
    frame_store *store;
    labelled_case *cases; /* in the order of the label table, so that nothing depends on the pseudonyms' key */
    size_t n_cases;
    label_task task;
    char (
        *labels)[65]; /* sorted by name; by value where all are whole numbers; grades and columns as they were given */
    int n_labels, n_strata;
    char split_hash[HASH_HEX], data_hash[HASH_HEX]; /* of split.csv; of frames (keys, pixels, windows) and labels */
    /* rows of the label table, and those set aside: their image is not in the frame store; their keys name two
     * different things, or the thing is labelled twice differently; no label or no key */
    size_t rows, rows_without_image, rows_conflicting, rows_empty;
} cohort;

/* How the label table is to be read. Texts NULL or "": not given. */
typedef struct {
    label_task task;
    const char *columns; /* TASK_MULTILABEL: the columns that are labels, commas between */
    const char *order;   /* TASK_ORDINAL: the grades from the lowest on, commas between; not given: whole numbers */
} label_rules;

typedef struct {
    float validation, test; /* shares of the patients: 0.15, 0.2 */
    uint64_t seed;
} split_options;

/* labels_path NULL: no cases; every patient not in an existing work/split.csv is in training. With labels: the split is
 * read from work/split.csv, labelled patients that are not there yet are added (stratified by label, at least one
 * patient a class in each part where there are three), and the file is written if it changed. Labels of a case that
 * disagree: the case is dropped and counted. Errors: no frames (ERR_EMPTY), frames that the store does not hold as the
 * catalogue says (ERR_DAMAGED, as cohort_check has it), a missing column (ERR_USAGE), no label matches an image
 * (ERR_EMPTY), fewer than two labels (ERR_USAGE), a damaged split.csv (ERR_FORMAT, ERR_CONFLICT); those of the label
 * table begin with COHORT_LABELS. */
#define COHORT_LABELS "label table: "
err_code cohort_open(cohort *c, catalogue *cat, const char *work, const char *labels_path, const split_options *o,
                     err *e);
/* The same by other rules than TASK_MULTICLASS's. */
err_code cohort_open_by(cohort *c, catalogue *cat, const char *work, const char *labels_path, const label_rules *rules,
                        const split_options *o, err *e);
/* Reads every frame's pixels and compares them with their checksums, in `threads` threads (0: one per processor).
 * ERR_DAMAGED: some are not what was stored; their instances are given back to prepare (catalogue_unstore). */
err_code cohort_check(const cohort *c, catalogue *cat, int threads, err *e);
void cohort_close(cohort *c);
const void *cohort_pixels(const cohort *c, size_t frame); /* mapped; there, and of the right size, since open */

#endif
