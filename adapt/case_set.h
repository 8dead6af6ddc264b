/* case_set.h: labelled cases of some parts of the split with their frames in one list, and what is known of them. */
#ifndef RADAPT_CASE_SET_H
#define RADAPT_CASE_SET_H
#include "adapt/cohort.h"
#include "adapt/metrics.h"

typedef struct {
    const cohort *c;
    size_t n;         /* cases */
    uint32_t *cases;  /* (n) indices into c->cases */
    size_t *start;    /* (n+1): case i has frames[start[i]..start[i+1]) */
    uint32_t *frames; /* (start[n]) indices into c->frames */
} case_set;

/* parts[p]: cases of part p are wanted. cap > 0: at most so many frames of a training case, evenly spread. */
err_code case_set_init(case_set *s, const cohort *c, const bool parts[3], size_t cap, err *e);
void case_set_fini(case_set *s);
size_t case_set_frames(const case_set *s);
/* out (n, classes) = mean over the case's frames of frame (frames, classes). */
void case_set_mean(const case_set *s, const double *frame, int classes, double *out);
/* Of the cases of one part; probability as from case_set_mean. */
err_code case_set_metrics(const case_set *s, const double *probability, split_part part, metrics *out, err *e);

#endif
