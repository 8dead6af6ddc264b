/* split.h: which patients are for training, validation and test: work/split.csv (patient_key,part; pseudonyms only). */
#ifndef RADAPT_SPLIT_H
#define RADAPT_SPLIT_H
#include "adapt/cohort.h"

/* Reads work/split.csv if it is there, adds the patients of c's cases that are not in it, writes it if it grew, and
 * fills part of frames and cases, and split_hash ("" without a file). Who is in the file stays where they are. */
err_code split_apply(cohort *c, const char *work, const split_options *o, err *e);
/* The hash of work/split.csv as it is; "" without one. */
err_code split_hash(const char *work, char out[HASH_HEX], err *e);
const char *split_name(split_part part);

#endif
