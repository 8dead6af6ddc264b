/* ssl_data.h: the frames that self-supervision sees, and a micro-batch's crops as a function of its number alone.
 *
 * The loader brings crops; or, where the device makes them (device_samples), their jobs and behind them the frames,
 * which it has read from the store or squeezed: ssl_data_view. The same numbers are drawn in either case. */
#ifndef RADAPT_SSL_DATA_H
#define RADAPT_SSL_DATA_H
#include "adapt/ssl.h"
#include "adapt/ssl_mask.h"
#include "adapt/ssl_step.h"

typedef struct {
    const cohort *c;
    const ssl_options *o;
    uint32_t *frames; /* (n) of training patients, and of patients without a part */
    size_t n;
    size_t batch, locals, global_size, local_size;
    size_t accumulate;        /* micro-batches of `batch` frames an update */
    uint64_t steps_per_epoch; /* updates */
    sampler_norm norm;
    bool later;        /* the device makes the crops */
    crop_load load;    /* ... of these */
    frame_cache cache; /* ssl_data_keep's */
    pool *threads;     /* NULL: the loader's own thread */
    uint32_t *order;   /* (n) permutation of epoch order_epoch */
    uint64_t order_epoch;
    sample_job *jobs;    /* (batch * (2 + locals)) */
    size_t crop_from;    /* N: ssl_options.crop_from */
    uint8_t *squares;    /* (batch, N, N, 3) the frames that crops are cut from, unless later; NULL: the stored ones */
    uint32_t *which;     /* (batch): of these frames */
    uint8_t **to;        /* (batch): squares go here */
    float *wide;         /* (a few, 3, N, N): before they are 8 bits */
    frame_info a_square; /* what each of them is */
} ssl_data;

/* ERR_EMPTY with fewer than two frames; batch, and micro-batches an update, shrink to what there is. */
err_code ssl_data_open(ssl_data *s, const vit *m, const cohort *c, const ssl_options *o, err *e);
void ssl_data_close(ssl_data *s);
/* How long to adapt where nobody says: 8 epochs, and more where these are less than 350 updates. */
double ssl_data_epochs(const ssl_data *s);
/* Floats of a micro-batch's crops: globals (2B,3,S,S), then locals (L*B,3,s,s). */
size_t ssl_data_floats(const ssl_data *s);
err_code ssl_data_crops(ssl_data *s, uint64_t micro, float *out, err *e);
/* Floats that the loader carries; and a step's input in them: globals and locals, or crops. */
size_t ssl_data_carried(const ssl_data *s);
void ssl_data_view(const ssl_data *s, const float *carried, ssl_step_in *in, ssl_step_crops *crops);
/* From here on frames stay on the device where it makes the crops: as many as fit into room, and after them, if they
 * are kept as they are stored, `more` (n_more) of the cohort's. */
err_code ssl_data_keep(ssl_data *s, device *d, const uint32_t *more, size_t n_more, size_t room, err *e);
/* Bytes that it holds beside that. */
size_t ssl_data_bytes(const ssl_data *s);
/* loader_fill; micro: the number of a micro-batch, from 0 over all updates. */
err_code ssl_data_fill(void *ssl_data_, uint64_t micro, float *out, err *e);
/* The step that takes these micro-batches; mask is filled in too. */
ssl_step_config ssl_data_step_config(const ssl_data *data, const vit *m, const ssl_options *o, ssl_mask *mask);

#endif
