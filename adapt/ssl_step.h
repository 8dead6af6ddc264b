/* ssl_step.h: one step of self-supervised adaptation: teacher, student, DINO + iBOT + KoLeo, gradients, update.
 *
 *     param_set ps = {0};
 *     vit_train(m, &(peft_spec){.method = METHOD_APLA, .teacher = true}, &ps, &e);
 *     ssl_step s; ssl_step_open(&s, m, &ps, &config, &e);            // appends the head's params to ps
 *     ... upload other weights into ps.p[i].master and .teacher, then ssl_step_refresh(&s) ...
 *     ssl_step_gradients(&s, &in, &out, &e);                         // ps.p[i].grad, out.loss, nothing updated
 *     ssl_step_update(&s, &update, &out, &e);                        // clip, AdamW, centres, EMA
 *     ssl_step_close(&s); param_set_free(d, &ps);
 *
 * Order of crops: global crop g of image b is row g*B+b of the globals, local crop l of image b is row l*B+b of the
 * locals. Logits' rows: 2B global class tokens, L*B local ones, then the masked patches in the order of crop and patch.
 * All device memory that depends on the batch is one planned block; nothing allocates in a step. */
#ifndef RADAPT_SSL_STEP_H
#define RADAPT_SSL_STEP_H
#include "adapt/dino_head.h"
#include "adapt/optim.h"

typedef struct {
    size_t batch, locals; /* B, L: images and local crops of each; L may be 0 */
    size_t global_size, local_size;
    size_t masked_most;      /* M: most masked patches in a step, over all 2B global crops */
    dino_head_config head;   /* in: the backbone's dim */
    float dino, ibot, koleo; /* weights of the losses */
    float student_temp, center_momentum, clip;
    uint64_t seed; /* of the head's random weights */
} ssl_step_config;

typedef struct {
    const float *globals; /* (2B,3,S,S) host */
    const float *locals;  /* (L*B,3,s,s) host */
    const uint8_t *mask;  /* (2B,P) host, 1: masked; NULL: none */
    float teacher_temp;
    bool head_only; /* the backbone gets no gradients (head warm-up); the adamw_step must say skip_backbone too */
} ssl_step_in;

typedef struct {
    adamw_step adam; /* grad_scale is set here */
    float momentum;  /* of the teacher */
} ssl_step_update_in;

/* Losses as facts define them, before their weights; loss is the weighted sum. Entropies in nats of the teacher's
 * targets: mean over rows, and of the mean row; [0] class tokens, [1] masked patches (0 where there are none). */
typedef struct {
    float loss, dino, ibot, koleo;
    float target_entropy[2], marginal_entropy[2];
    size_t masked;
    float grad_norm; /* before clipping; of ssl_step_update */
} ssl_step_out;

typedef struct ssl_step {
    vit *m;
    device *d;
    param_set *ps;
    ssl_step_config config;
    dino_head head;
    optim optim;
    bool patch_trained; /* the patch embedding is trained, so the teacher has its own */
    size_t P, T, local_T, rows_most;
    size_t bytes; /* planned: block, head, params with their state */
    dv *block;    /* all below */
    vit_pass student, teacher, local;
    dino_head_acts acts;
    dv *globals, *locals, *mask;    /* f32 pixels, u8 */
    dv *x, *dx;                     /* (rows, C) ct: the head's input */
    dv *logits;                     /* (rows, K) ct; then their gradient */
    dv *q;                          /* (2B + M, K) ct: the teacher's logits, then its targets */
    dv *koleo_dx;                   /* (2B, C) ct */
    dv *center[2];                  /* f32 (K): class tokens, patches */
    dv *sum[2];                     /* f32 (K) */
    dv *scalars;                    /* f32 (7): dino, ibot, koleo, stats of class tokens (2), of patches (2) */
    dv *rows_global, *rows_local;   /* int32: rows of class tokens in the passes' outputs */
    dv *rows_patch;                 /* int32 (M): rows of masked patches in the global passes' outputs */
    dv *pair, *pair_patch;          /* int32 (2B+LB,2), (M,1): targets of every row of logits */
    dv *weight, *weight_patch;      /* f32, the same shapes */
    int32_t *host_rows, *host_pair; /* (M) */
    float *host_weight;             /* (M) */
    size_t masked;                  /* of the last gradients */
} ssl_step;

/* Device bytes that ssl_step_open will allocate beside ps as it is. */
err_code ssl_step_bytes(vit *m, const ssl_step_config *k, size_t *bytes, err *e);
err_code ssl_step_open(ssl_step *s, vit *m, param_set *ps, const ssl_step_config *k, err *e);
void ssl_step_close(ssl_step *s);

/* After masters or teachers were written from outside: live copies, normalised prototypes. */
void ssl_step_refresh(ssl_step *s);
/* Zeroes the gradients, then forward and backward. Gradients are of the weighted sum, before clipping. */
err_code ssl_step_gradients(ssl_step *s, const ssl_step_in *in, ssl_step_out *out, err *e);
/* ERR_NUMERIC: the gradient norm is not finite, and nothing was changed. */
err_code ssl_step_update(ssl_step *s, const ssl_step_update_in *u, ssl_step_out *out, err *e);
/* The teacher's view of globals (2B,3,S,S) host: tokens (2B,T,C) f32 host, after the final norm. */
err_code ssl_step_tokens(ssl_step *s, const float *globals, float *tokens, err *e);

#endif
