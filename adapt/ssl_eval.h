/* ssl_eval.h: is the teacher getting better? kNN of validation frames among training frames, a linear classifier
 * fitted on the training frames, and the effective rank of the features. */
#ifndef RADAPT_SSL_EVAL_H
#define RADAPT_SSL_EVAL_H
#include "adapt/ssl.h"

typedef struct {
    uint32_t *train, *validation;        /* frame indices */
    int *train_label, *validation_label; /* -1: not labelled (rank only) */
    size_t n_train, n_validation;        /* n_validation 0: no kNN */
    float *features;                     /* (n_train + n_validation, C) */
    frame_cache *kept, own;              /* where these frames stay on the device (ssl_eval_keep); kept: or NULL */
} ssl_eval;

typedef struct {
    double knn_auc, knn_accuracy;       /* NaN without labelled validation frames */
    double linear_auc, linear_accuracy; /* of logistic regression (probe.h), L2 0.01; NaN likewise */
    double rank;                        /* 0: a feature is not finite */
} ssl_score;

/* What chooses the best: share of kNN's ROC-AUC and the rest of the linear classifier's; without that, kNN's alone. */
double ssl_score_choice(const ssl_score *s, float share);

/* At most `most` frames a part, spread evenly over the cases (over the frames where there are no labels). */
enum { SSL_EVAL_FRAMES = 2000 };
err_code ssl_eval_open(ssl_eval *s, const vit *m, const cohort *c, size_t most, err *e);
/* That it holds on the host with `most` frames a part, and takes in a run: the linear classifier's copy. */
size_t ssl_eval_bytes(const vit *m, size_t most);
void ssl_eval_close(ssl_eval *s);
/* From here on its frames stay on a device that makes the images: with those of others, in `shared`, or, where that is
 * NULL, as many as fit into room bytes. */
err_code ssl_eval_keep(ssl_eval *s, device *d, const cohort *c, frame_cache *shared, size_t room, err *e);
err_code ssl_eval_run(ssl_eval *s, vit *m, vit_who who, const cohort *c, const ssl_options *o, ssl_score *out, err *e);

#endif
