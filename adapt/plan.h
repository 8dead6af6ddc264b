/* plan.h: what a stage would take, before it is started: memory by class, and the operations of a step. The stages' own
 * code runs on a device that only counts (model/op_count.h), so that plan and run cannot disagree.
 *
 *     device d; TRY(op_count_open(&d, 0, COMPUTE_AUTO, OP_COUNT_CPU, e));
 *     vit_open(&m, &d, &source, e);
 *     plan p; TRY(plan_adapt(&p, m, &options, frames, e));      // p.device + p.host bytes, p.flop[PLAN_DW]
 *     vit_close(m); device_close(&d);
 *
 * Not counted: the program and its libraries, oneDNN's compiled kernels and scratch, the catalogue: PLAN_CONSTANT
 * bytes at most. A process's peak is between 0.95 of the plan and 1.05 of it and PLAN_CONSTANT (tests/cli/
 * test_memory.py; 10 to 30 MiB above it were measured in adapt, finetune and predict, where there are frames enough to
 * fill the batches of an evaluation; with fewer, up to 41 MiB below). Nor the pages of mapped files, which the system
 * takes back when it wants them. Nor, on a GPU, what CUDA takes of it for its context and kernels:
 * PLAN_CUDA_CONSTANT, which `radapt plan` adds, and frames that stay there where it leaves room (frame_cache.h); where
 * there is a GPU what is left of it tells (plan_fits). */
#ifndef RADAPT_PLAN_H
#define RADAPT_PLAN_H
#include "adapt/finetune.h"
#include "adapt/ssl.h"
#include "model/cuda/op_cuda_bytes.h"

enum { PLAN_CONSTANT = 64 << 20, PLAN_CUDA_CONSTANT = OP_CUDA_CONTEXT_BYTES, PLAN_CUDA_SPARE = 512 << 20 };
#define PLAN_ADVICE " (radapt plan): a smaller batch, --recompute block"

typedef enum {
    PLAN_WEIGHTS,     /* live weights, in the compute type; vectors and biases f32 */
    PLAN_PACKED,      /* the CPU back end's copies of them */
    PLAN_TRAINABLE,   /* f32 masters of what trains in the backbone; of fine-tuning also the best so far */
    PLAN_GRADIENT,    /* f32 */
    PLAN_MOMENTS,     /* Adam's, f32 */
    PLAN_TEACHER,     /* its own masters and live weights */
    PLAN_HEAD,        /* head or classifier: weights with all of their state, activations, logits, targets */
    PLAN_ACTIVATIONS, /* of the passes, with their scratch */
    PLAN_WORK,        /* workspace of ops, and what the device takes for itself */
    PLAN_BATCH,       /* pixels and masks on the device */
    PLAN_EVALUATION,  /* what an evaluation takes on top, or more than all of this */
    PLAN_PINNED,      /* of the host's memory, what goes up to a GPU */
    PLAN_HOST,        /* batches that wait in the loader, features of evaluations */
    PLAN_CLASSES
} plan_class;
enum { PLAN_FORWARD, PLAN_DX, PLAN_DW, PLAN_TEACHER_FORWARD, PLAN_HEAD_ALL, PLAN_AGAIN, PLAN_FLOPS };

typedef struct plan {
    size_t bytes[PLAN_CLASSES];
    size_t device, host, total; /* device: the most at once of device memory; total: all classes */
    double flop[PLAN_FLOPS];    /* useful operations of a step: of the backbone, the teacher's, the head's, and what
                                 * recomputation does again */
    size_t images;              /* of a step */
    size_t trainable;           /* values of the backbone */
    size_t locals, global_size, local_size; /* of adaptation's crops */
} plan;
extern const char *const plan_class_name[PLAN_CLASSES], *const plan_flop_name[PLAN_FLOPS];

/* m: just opened on a device that counts; of no use for anything else afterwards but vit_close. frames: of the cohort.
 */
err_code plan_adapt(plan *p, vit *m, const ssl_options *o, size_t frames, err *e);
err_code plan_finetune(plan *p, vit *m, const peft_spec *peft, const finetune_options *o, int classes, err *e);
err_code plan_predict(plan *p, vit *m, const peft_spec *peft, const view_options *v, err *e);
/* A model of the shape of `of`, on a device that counts as its own would: for the functions above. The caller closes
 * both. */
err_code plan_shape(vit **m, device *d, const vit *of, err *e);
/* ERR_NOMEM where the stage would take more than this process may have (base/headroom.h), or more than its GPU has
 * left. d: the stage's device: what it holds is part of the plan. */
err_code plan_fits(const plan *p, const device *d, const char *stage, err *e);
/* The same of `bytes` of this machine's memory, of which this process holds nothing yet. advice: ends the message. */
err_code plan_room(size_t bytes, int threads, const char *what, const char *advice, err *e);
/* Bytes that the stage leaves of a GPU's memory, less PLAN_CUDA_SPARE for what cudaMalloc cannot use of it and for
 * other programs: frames may stay there. 0 on a CPU. */
size_t plan_left(const plan *p, const device *d);

#endif
