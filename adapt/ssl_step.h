/* ssl_step.h: one step of self-supervised adaptation: teacher, student, DINO + iBOT + KoLeo, gradients, update.
 *
 *     param_set ps = {0};
 *     vit_train(m, &(peft_spec){.method = METHOD_APLA, .teacher = true}, &ps, &e);
 *     ssl_step s; ssl_step_open(&s, m, &ps, &config, &e);            // appends the heads' params to ps
 *     ... upload other weights into ps.p[i].master and .teacher, then ssl_step_refresh(&s) ...
 *     ssl_step_gradients(&s, &in, NULL, &e);                         // config.accumulate times: ps.p[i].grad
 *     ssl_step_update(&s, &update, &out, &e);                        // clip, AdamW, centres, EMA; out.loss
 *     ssl_step_close(&s); param_set_free(d, &ps);
 *
 * Order of crops: global crop g of image b is row g*B+b of the globals, local crop l of image b is row l*B+b of the
 * locals. Rows of the heads come in two groups: class tokens, of the 2B global crops and then of the L*B local ones;
 * and masked patches in the order of crop and patch. Logits of a group are made, used and overwritten a piece of rows
 * at a time. All device memory that depends on the batch is one planned block; nothing allocates in a step.
 *
 * Gradient accumulation: an update's gradient is the mean of `accumulate` micro-batches of B images each. What is a
 * mean over images, crops or rows (DINO, iBOT, the centres that follow) is then that of the large batch; KoLeo's
 * neighbours and Sinkhorn's shares are those within a micro-batch. */
#ifndef RADAPT_SSL_STEP_H
#define RADAPT_SSL_STEP_H
#include "adapt/crop_load.h"
#include "adapt/dino_head.h"
#include "adapt/optim.h"

typedef enum { SSL_SOFTMAX, SSL_SINKHORN } ssl_centering;

typedef struct {
    size_t batch, locals; /* B, L: images and local crops of each; L may be 0 */
    size_t global_size, local_size;
    size_t recompute;        /* of so many blocks the student keeps the input alone: vit_pass.again */
    size_t masked_most;      /* M: most masked patches in a step, over all 2B global crops */
    size_t accumulate;       /* micro-batches an update; 0 is 1 */
    size_t frame_bytes;      /* device memory for the frames that ssl_step_crops brings; 0: crops come from the host */
    size_t rows_at_once;     /* of logits; 0: what 32 MiB hold, at least 64 */
    dino_head_config head;   /* in: the backbone's dim */
    bool separate_heads;     /* iBOT has a head of its own, of the same shape */
    ssl_centering centering; /* softmax: (t - c) with a moving centre; Sinkhorn-Knopp, 3 iterations (facts) */
    float dino, ibot, koleo; /* weights of the losses */
    float student_temp, center_momentum, clip;
    float drop_path; /* of the student's last block: vit_drop_draw; 0: none */
    uint64_t seed;   /* of the heads' random weights, and of what is dropped */
} ssl_step_config;

/* Crops that the device makes (op.h: sample) from frames of the host. What a job's pixels point to within frames goes
 * up once for all of its jobs, and once and for all where it has a place on the device (crop_block.cache); what lies
 * elsewhere each time it is asked for. */
typedef struct {
    crop_block block; /* 2B + L*B jobs in the order of crops; at most config.frame_bytes; may change when
                         ssl_step_gradients returns */
    const sampler_norm *norm;
} ssl_step_crops;

typedef struct {
    const ssl_step_crops *crops; /* NULL: they are */
    const float *globals;        /* (2B,3,S,S) host; NULL: the crops of the step before, which the device still has */
    const float *locals;         /* (L*B,3,s,s) host */
    const uint8_t *mask;         /* (2B,P) host, 1: masked; NULL: none */
    float teacher_temp;
    uint64_t number; /* of the micro-batch, over all updates: what is dropped goes by it */
    bool head_only;  /* the backbone gets no gradients (head warm-up); the adamw_step must say skip_backbone too */
} ssl_step_in;

typedef struct {
    adamw_step adam; /* clip, average and momentum are set by it */
    float momentum;  /* of the teacher */
} ssl_step_update_in;

/* Losses as facts define them, before their weights; loss is the weighted sum. Entropies in nats of the teacher's
 * targets: mean over rows, and of the mean row; [0] class tokens, [1] masked patches (0 where there are none). All are
 * means over the micro-batches, and whole after the last of an update. */
typedef struct {
    float loss, dino, ibot, koleo;
    float target_entropy[2], marginal_entropy[2];
    size_t masked;   /* of this micro-batch */
    float grad_norm; /* before clipping; of ssl_step_update */
} ssl_step_out;

/* What an update leaves to be read. */
typedef struct {
    size_t targets[2], masked;
} ssl_step_asked;

/* Rows that go through a head together: class tokens, or masked patches. */
typedef struct {
    dino_head *head;
    dino_head_acts acts;
    size_t most, teacher_most; /* rows at most */
    size_t n, teacher_n;       /* rows of this micro-batch */
    size_t targets;            /* the teacher's since the last update */
    size_t P;                  /* targets a row */
    dv *x, *dx;                /* (most, C) ct: the head's input */
    dv *unit;                  /* (teacher_most, bottleneck) ct: the teacher's embeddings */
    dv *center, *sum, *mean;   /* f32 (K): of logits, and the sum of targets. Sinkhorn: sum is its other centre */
    dv *row_scale;             /* f32 (teacher_most): Sinkhorn's */
    dv *pair, *weight;         /* int32, f32 (most, P): rows of q, of patches counted from a piece's first */
} ssl_group;

typedef struct ssl_step {
    vit *m;
    device *d;
    param_set *ps;
    ssl_step_config config;
    dino_head head[2]; /* [1] if separate_heads */
    optim optim;
    bool patch_trained; /* the patch embedding is trained, so the teacher has its own */
    size_t P, T, local_T;
    size_t piece;       /* rows of logits at once */
    size_t q_rows;      /* rows of targets at once: all of the class tokens, or a piece */
    size_t micro;       /* micro-batches since the last update */
    size_t asked, read; /* updates; of the one more than `read`: */
    ssl_step_asked unread[OP_SENT_PLACES];
    size_t bytes;       /* planned: block, heads, params with their state */
    dv *block;          /* all below */
    ssl_group group[2]; /* class tokens, masked patches */
    vit_pass student, teacher, local;
    dv *globals, *locals, *mask;    /* f32 pixels, u8 */
    dv *frames;                     /* (frame_bytes) */
    struct sample_job *jobs;        /* host (2B + L*B) */
    dv *logits;                     /* (piece, K) ct: the student's; then their gradient */
    dv *q;                          /* (q_rows, K) ct: the teacher's logits, then its targets */
    dv *koleo_dx;                   /* (2B, C) ct */
    dv *scalars;                    /* f32 (8): dino, ibot, koleo, entropies of targets (2), of their means (2), the
                                     * gradients' sum of squares */
    float *drop;                    /* host (depth, 2, 2B), (depth, 2, L*B); NULL: nothing is dropped */
    int32_t *host_rows, *host_pair; /* (2B+M): rows wanted of the global passes, class tokens first; (M) */
    float *host_weight;             /* (M) */
} ssl_step;

/* Device bytes that ssl_step_open will allocate beside ps as it is. */
err_code ssl_step_bytes(vit *m, const ssl_step_config *k, size_t *bytes, err *e);
err_code ssl_step_open(ssl_step *s, vit *m, param_set *ps, const ssl_step_config *k, err *e);
void ssl_step_close(ssl_step *s);

/* After masters or teachers were written from outside: live copies, normalised prototypes. */
void ssl_step_refresh(ssl_step *s);
/* Which rows of the globals' passes the losses read under this mask (2B,P) or NULL: ssl_step_gradients begins with it.
 */
err_code ssl_step_want(ssl_step *s, const uint8_t *mask, err *e);
/* Forward and backward of a micro-batch. The first after an update zeroes the gradients; after the last they are those
 * of the weighted sum, before clipping. out NULL: nothing is read, so that the device need not be waited for. */
err_code ssl_step_gradients(ssl_step *s, const ssl_step_in *in, ssl_step_out *out, err *e);
/* AdamW, centres, teacher: asked, and nothing is waited for. ssl_step_read then tells of the oldest update that it has
 * not told of, and waits for that one alone: SSL_STEP_LATE may be unread when another is asked. ERR_NUMERIC: its
 * gradient norm was not finite, and nothing was changed by it. */
enum { SSL_STEP_LATE = OP_SENT_PLACES - 1 };
err_code ssl_step_ask(ssl_step *s, const ssl_step_update_in *u, err *e);
err_code ssl_step_read(ssl_step *s, ssl_step_out *out, err *e);
size_t ssl_step_unread(const ssl_step *s);
/* Both. */
err_code ssl_step_update(ssl_step *s, const ssl_step_update_in *u, ssl_step_out *out, err *e);
/* The teacher's view of globals (2B,3,S,S) host: tokens (2B,T,C) f32 host, after the final norm. */
err_code ssl_step_tokens(ssl_step *s, const float *globals, float *tokens, err *e);

#endif
