/* labelled_batch.h: the batches of fine-tuning: which cases, which frame of each, cropped and augmented, which of them
 * are to be mixed in pairs, with what the loss needs. A function of (seed, step) alone.
 *
 *     labelled_batch s; TRY(labelled_batch_init(&s, j, &e));
 *     TRY(loader_open(&l, labelled_batch_fill, &s, labelled_batch_floats(&s), first, last, e));
 *     TRY(loader_take(l, step, &taken, e));  v = labelled_batch_view(&s, taken);
 *     labelled_batch_images(&s, &v);            // s.pixels on the device
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
    float *unmixed;    /* (2, batch, outputs) targets and weights before mixup; NULL without */
    uint32_t *partner; /* (batch) */
    pool *threads;
    frame_cache cache; /* frames of training cases, then of validation, that stay on the device */
    crop_load load;    /* what of a batch the device makes: no crops where pictures are made here */
    /* on the device (labelled_batch_alloc) */
    dv *pixels;                                 /* f32 (batch, 3, size, size) */
    dv *frames;                                 /* what pictures are made of; or NULL */
    dv *drawn, *mix_first, *mix_of, *mix_share; /* with mixup: pictures before it, and mix_rows' table; or NULL */
} labelled_batch;

/* One batch as the loader carries it. */
typedef struct {
    float *pixels; /* (batch, 3, size, size); or the block of load */
    /* (batch, outputs): for softmax_ce (the weight is in the target) or for sigmoid_ce */
    float *target, *weight;
    float *scale; /* (1) of the loss: 1 over the number of known targets, of a softmax over the batch */
    /* Mixup: picture i is to be the sum of mix_share[k] * pixels[mix_of[k]] over k of 2i and 2i + 1 (op.h, mix_rows);
     * (2 batch) each, NULL without. */
    int32_t *mix_of;
    float *mix_share;
} labelled_batch_parts;

/* Free with labelled_batch_fini, after failure too. */
err_code labelled_batch_init(labelled_batch *s, const finetune_job *j, err *e);
void labelled_batch_fini(labelled_batch *s);
/* Who makes the pictures, by j and batch alone: part of _init, and for who measures without a batch. */
void labelled_batch_place(labelled_batch *s);
/* Memory of a batch's pictures on j's device, after _place; and its bytes. */
err_code labelled_batch_alloc(labelled_batch *s, err *e);
size_t labelled_batch_bytes(labelled_batch *s);
/* The batch's pictures, brought or made there, and mixed: s->pixels. */
void labelled_batch_images(labelled_batch *s, const labelled_batch_parts *v);
size_t labelled_batch_floats(const labelled_batch *s);
labelled_batch_parts labelled_batch_view(const labelled_batch *s, const float *at);
err_code labelled_batch_fill(void *ctx, uint64_t step, float *out, err *e); /* a loader_fill; ctx: the labelled_batch */

#endif
