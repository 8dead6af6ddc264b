/* ssl.h: self-supervised adaptation: DINO + iBOT + KoLeo on unlabelled frames, student and EMA teacher (facts: DINOv2,
 * ESSA). */
#ifndef RADAPT_SSL_H
#define RADAPT_SSL_H
#include "adapt/cohort.h"
#include "adapt/features.h"
#include "preprocess/augment.h"

typedef struct ssl_options {
    peft_spec peft;
    double epochs, warmup_epochs, head_warmup_epochs; /* epochs 0: ssl_data_epochs; head_warmup: backbone frozen */
    int batch, accumulate;                            /* frames a micro-batch; micro-batches an update (ssl_step.h) */
    int global_size, local_size, locals; /* sizes 0: global the view's, local the multiple of the patch that is nearest
                                            to 98 of 224 of that, three patches at least */
    int crop_from; /* crops are cut from the frame resized to a square of that side, in 8 bits; 0: from the frame itself
                    */
    float lr, head_lr, lr_last, weight_decay, weight_decay_last, clip;
    float layer_decay;             /* of the learning rate, from block to block downwards; 1: none */
    float patch_lr;                /* the patch embedding's learning rate times this */
    float drop_path;               /* stochastic depth of the student: probability at the last block; 0: none */
    float momentum, momentum_last; /* below 0: by the run's length (ssl.c) */
    float teacher_temp, teacher_temp_last, teacher_temp_epochs, student_temp, center_momentum;
    float dino, ibot, koleo; /* weights */
    float mask_probability, mask_ratio[2];
    int hidden, bottleneck, prototypes; /* prototypes 0: scaled to the cohort */
    size_t recompute;                   /* of so many blocks the input alone is kept for backward: vit_pass.again */
    size_t frame_room;                  /* bytes of a GPU's memory in which frames may stay (frame_cache.h); no result
                                         * depends on it */
    bool separate_heads, sinkhorn;      /* iBOT's own head; Sinkhorn-Knopp instead of softmax centring */
    bool data_init;                     /* heads initialised on the frozen features */
    double freeze_prototypes_epochs;
    augment_options augment;
    view_options view;
    double
        evaluate_epochs; /* kNN, linear classifier and effective rank every so often; 0: 0.5, 40 times a run at most */
    int knn;             /* neighbours; 20 */
    float knn_temp;      /* weight of one: exp(cosine / temp); 0.07 */
    float knn_share;     /* of kNN in what chooses the best teacher, the linear classifier has the rest; 0.5 */
    double checkpoint_minutes;
    double collapse_rank; /* roll back when the effective rank falls below this share of the start's; 0.25 */
    uint64_t seed;
} ssl_options;

void ssl_defaults(ssl_options *o);
/* "default" or "essa" with a method's learning rate; ERR_USAGE for others. */
err_code ssl_recipe(const char *name, peft_method method, ssl_options *o, err *e);

typedef struct {
    uint64_t steps, images;
    uint64_t best_step; /* after which the kept teacher was as it is kept */
    double seconds, images_per_s;
    double waited_seconds; /* of these: steps stood still for their crops; what crops take of the processors meanwhile
                            * is not in it */
    double loss_first, loss_last, knn_start, knn_best, linear_start, linear_best, rank_start, rank_best;
    size_t trainable;
    double peak_bytes; /* of device memory, at most at once, beside frames that stay there (frame_room) */
    bool resumed, already_done, rolled_back;
} ssl_result;

/* Trains into run_dir (made): config is the caller's; here metrics.jsonl, checkpoint.safetensors (resume),
 * best-<step>.safetensors (the best teacher's state), and at the end adapter.safetensors (its trainable weights: the
 * stage's product) and result.json, written last: where it exists nothing is done (already_done). Frames of test and
 * validation patients are left out. stop.h: checkpoints and returns ERR_INTERRUPTED.
 *
 * An update whose gradient is not finite changes nothing. Three in a row, or a teacher whose rank has fallen
 * (collapse_rank), bring the best state back (weights, teacher, moments with their counts, centres) and halve the
 * rates; what is drawn goes on. After two such returns a third fall ends the run with the best so far, and gradients
 * that are still not finite with ERR_NUMERIC: its checkpoint stays, to go on from. A GPU is read one update late
 * (ssl_step.h): what it is asked next does not know yet of such an update, so that only there a run which had some
 * and was stopped may end with other bits. */
err_code ssl_adapt(vit *m, const cohort *c, const ssl_options *o, const char *run_dir, ssl_result *out, err *e);

#endif
