/* optim.h: schedules, clipping and the optimiser step shared by both stages. */
#ifndef RADAPT_OPTIM_H
#define RADAPT_OPTIM_H
#include "model/vit.h"

/* Linear warm-up from 0 over warm steps, then half a cosine from base to last over the rest; step from 0. */
float schedule_warm_cosine(float base, float last, uint64_t step, uint64_t warm, uint64_t total);
float schedule_cosine(float first, float last, uint64_t step, uint64_t total);
float schedule_linear(float first, float last, uint64_t step, uint64_t over);

/* The layer of a DINOv2 name in a backbone of `depth` blocks: 0 for what is before the blocks (patch embedding,
 * positions, tokens, prompts), i + 1 for block i, depth + 1 for the final norm and for all that is no backbone's. */
int optim_layer(const char *name, int depth);
/* Layer-wise learning-rate decay (Clark et al., ELECTRA, 2020; BEiT): lr_scale *= decay^(depth + 1 - layer). 1: none.
 */
void optim_layer_decay(param_set *ps, int depth, float decay);

typedef struct optim {
    device *d;
    param_set *ps;
    float clip; /* global norm; 0: none */
    dv *scalar; /* f32 (1): the gradients' sum of squares, of optim_ask */
    float norm; /* of the last step, before clipping */
} optim;
err_code optim_init(optim *o, device *d, param_set *ps, float clip, err *e);
void optim_fini(optim *o);
void optim_zero(optim *o);
/* Clips (clip is set here) and steps. ERR_NUMERIC if the norm is not finite: nothing was changed. */
err_code optim_step(optim *o, adamw_step *s, err *e);
/* Its two halves, for whoever downloads more at once: what is asked of the device, and what follows from the sum of
 * squares. */
void optim_ask(optim *o, adamw_step *s);
err_code optim_judge(optim *o, float square, err *e);

#endif
