/* labelled_batch.h: the batches of fine-tuning: which cases, which frame of each, cropped and augmented, perhaps mixed
 * in pairs, with what the loss needs. A function of (seed, step) alone.
 *
 *     labelled_batch s; TRY(labelled_batch_init(&s, j, &e));
 *     TRY(loader_open(&l, labelled_batch_fill, &s, labelled_batch_floats(&s), first, last, e));
 *     TRY(loader_take(l, step, &taken, e));  labelled_batch_view(&s, taken).pixels ...
 */
#ifndef RADAPT_LABELLED_BATCH_H
#define RADAPT_LABELLED_BATCH_H
#include "adapt/crop_load.h"
#include "adapt/draw.h"
#include "adapt/finetune_train.h"
#include "base/pool.h"

typedef struct {
    const finetune_job *j;
    size_t batch, image_floats, outputs;
    draw draw;
    sampler_norm norm;
    sample_job *jobs;  /* (batch) */
    float *unmixed;    /* a batch as it is drawn, before mixup; NULL: there is none */
    uint32_t *partner; /* (batch) */
    pool *threads;
    frame_cache cache; /* frames of training cases that stay on the device */
    crop_load load;    /* what of a batch the device makes: no crops where pictures are mixed, or made here */
} labelled_batch;

/* One batch as the loader carries it. */
typedef struct {
    float *pixels; /* (batch, 3, size, size); or the block of load */
    /* (batch, outputs): for softmax_ce (the weight is in the target) or for sigmoid_ce */
    float *target, *weight;
    float *scale; /* (1) of the loss: 1 over the number of known targets, of a softmax over the batch */
} labelled_batch_parts;

/* Free with labelled_batch_fini, after failure too. */
err_code labelled_batch_init(labelled_batch *s, const finetune_job *j, err *e);
void labelled_batch_fini(labelled_batch *s);
/* Who makes the pictures, by j and batch alone: part of _init, and for who measures without a batch. */
void labelled_batch_place(labelled_batch *s);
size_t labelled_batch_floats(const labelled_batch *s);
labelled_batch_parts labelled_batch_view(const labelled_batch *s, const float *at);
err_code labelled_batch_fill(void *ctx, uint64_t step, float *out, err *e); /* a loader_fill; ctx: the labelled_batch */

#endif
