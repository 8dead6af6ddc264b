/* vit.h: Vision Transformer of any size: forward, backward, weights. vit.c is the forward pass, vit_grad.c mirrors it
 * line for line, vit_load.c maps DINOv2, timm and Hugging Face names (vit_name.h) onto DINOv2's.
 *
 *     vit *m; TRY(vit_open(&m, &dev, &(vit_source){.path = "vits14.safetensors"}, &e));
 *     vit_pass a = {0}; arena dry = {0}; vit_pass_plan(&a, &dry, m, B, 224, 224, VIT_INFER);   // dry.used bytes
 *     ... allocate, arena_init, plan again ...
 *     vit_patches(m, &a, pixels_f32); vit_fwd(m, VIT_STUDENT, &a, a.patches, NULL);
 *     // a.out: (B,T,C) ct after the final norm; row b*T is the class token (the mean of patches where the model has
 * none) vit_close(m);
 *
 * Pre-norm blocks (DINOv2, eq. as in facts: x += ls1*proj(attn(norm1 x)); x += ls2*mlp(norm2 x)); exact GELU, or SwiGLU
 * as DINOv2's ViT-g has it; eps 1e-6 (timm, DINOv2) or 1e-12 (Hugging Face ViTModel). */
#ifndef RADAPT_VIT_H
#define RADAPT_VIT_H
#include <limits.h>

#include "base/arena.h"
#include "base/hash.h"
#include "model/op.h"
#include "model/peft.h"

typedef enum {
    POS_DINOV2 /* scale (grid+0.1)/G, bicubic, no antialias */,
    POS_SIZE_ANTIALIAS /* timm; DINOv2 with registers, Hugging Face's too */,
    POS_SIZE /* Hugging Face Dinov2Model and ViTModel: by size, bicubic, no antialias */
} pos_interpolation;

typedef struct vit_config {
    int dim, depth, heads, patch, hidden; /* hidden: of the MLP, usually 4*dim; of a SwiGLU MLP behind its gates */
    int grid;                             /* pos_embed is for grid x grid patches */
    int registers;
    bool class_token, layer_scale;
    bool qkv_bias;
    bool swiglu; /* the MLP is w3(silu(x1) * x2), [x1|x2] = w12(x) (Shazeer 2020), not fc2(GELU(fc1(x))) */
    float eps;
    pos_interpolation pos;
    float mean[3], std[3]; /* pixel normalisation that the weights were trained with */
} vit_config;

typedef struct vit vit;

/* path: a state dict (io/weights.h: safetensors, its index, or torch.save's); the shape is read from the tensors; heads
 * = dim/64 unless set. What radapt exported says heads, epsilon and normalisation itself (vit_export.h). NULL: seeded
 * random init of `random`. normalisation: "auto" (the file's; else a guess: 0.5 without LayerScale and DINOv2's
 * positions, else ImageNet's), "imagenet", "half", or numbers: "0.485,0.456,0.406/0.229,0.224,0.225". */
typedef struct vit_source {
    const char *path;
    vit_config random;
    uint64_t seed;
    int heads; /* 0: the file's, or dim/64 */
    const char *normalisation;
} vit_source;

/* Allocates the frozen weights on the device. ERR_SHAPE/ERR_FORMAT name the tensor that does not fit. */
err_code vit_open(vit **m, device *d, const vit_source *s, err *e);
void vit_close(vit *m);
const vit_config *vit_get_config(const vit *m);
device *vit_device(const vit *m);
/* The pixel normalisation as numbers, as vit_source takes them; and another from now on. ERR_USAGE: not such numbers.
 */
enum { VIT_NORMALISATION_TEXT = 128 };
void vit_normalisation_text(const vit *m, char out[VIT_NORMALISATION_TEXT]);
err_code vit_normalise(vit *m, const char *numbers, err *e);
/* Who says so. Weights without LayerScale and DINOv2's positions are of timm's AugReg or Google's (0.5), or of DeiT or
 * DINO v1 (ImageNet's), and do not say which: VIT_NORMALISATION_DOUBTED. */
typedef enum {
    VIT_NORMALISATION_GIVEN, /* the caller; or weights are random */
    VIT_NORMALISATION_FILE,
    VIT_NORMALISATION_GUESSED,
    VIT_NORMALISATION_DOUBTED
} vit_normalisation_source;
vit_normalisation_source vit_normalisation_from(const vit *m);
/* The shortest text that is read as x again: "0.485". */
enum { VIT_NUMBER_TEXT = 24 };
void vit_number_text(float x, char out[VIT_NUMBER_TEXT]);
const char *
vit_hash(const vit *m); /* SHA-256 over the tensors as loaded (names, shapes, fp32 values), heads,
                         * an epsilon that is not usual; its tensors' names do not matter: identifies the backbone */
/* A config for random init: "vit-ti/16", "vit-s/14", "vit-b/14", "vit-l/14", "vit-g/14" (SwiGLU), or
 * "dim=64,depth=2,heads=2,patch=16,grid=14". */
err_code vit_named_config(const char *name, vit_config *out, err *e);

/* --- what is trained
 * ------------------------------------------------------------------------------------------------------- */
typedef struct param_set {
    param *p;
    size_t n, capacity;
    bool weights_only; /* set before the first is added: no gradients, no moments: for what is loaded and merged */
} param_set;
/* Room for one more; zeroed, lr_scale 1. NULL when out of memory. The pointer is valid until the next add. */
param *param_add(param_set *ps, const char *name, size_t rows, size_t cols);
/* Allocates master/grad/m/v/teacher of p on the device (teacher if wanted, grad/m/v unless weights_only), master from
 * host values (rows, cols) f32, the teacher equal. */
err_code param_alloc(device *d, param *p, const float *values, bool teacher, err *e);
param *param_find(const param_set *ps, const char *name);
void param_set_free(device *d, param_set *ps);

/* Turns the model's weights trainable as the spec says and appends them to ps, in a fixed order. Once per vit. The
 * teacher's slices are allocated here. ps must live until vit_untrain or vit_close. */
err_code vit_train(vit *m, const peft_spec *spec, param_set *ps, err *e);
/* The params are about to be freed: the model keeps their latest live values, and nothing of it trains any more. */
void vit_untrain(vit *m);
/* What was trained (the masters) becomes part of the backbone: low-rank updates are added to their weights, so that a
 * pass costs what it did before; prompts stay. The teacher is gone, the params belong to the model no longer. again:
 * fp32 values are kept on the host, so that vit_train may follow with another method. */
err_code vit_merge(vit *m, bool again, err *e);
size_t vit_backbone_params(const vit *m);

/* --- passes
 * --------------------------------------------------------------------------------------------------------------------
 */
typedef enum { VIT_STUDENT, VIT_TEACHER } vit_who;
/* What a pass keeps: nothing; what backward needs. */
typedef enum { VIT_INFER, VIT_GRAD } vit_keep;
enum { VIT_AGAIN_ALL = INT_MAX };

typedef struct vit_block_acts vit_block_acts;
typedef struct vit_pass {
    /* P patches; T = 1 + registers + prompts + P: the class token's row is always there, and the first, and the
     * patches' are the last P. */
    size_t B, height, width, P, T;
    vit_keep keep;
    bool exact;   /* set before the first plan: GELU's input is kept whole in bf16 too, not its derivative in 10 bits */
    size_t again; /* set before the first plan: of so many blocks, the first ones, the input alone is kept, from
                   * which backward makes the rest again, to the same bits. At most all but the last */
    size_t wanted_most; /* set before the first plan: the last block is finished, and out made, for at most so many
                         * rows, those that vit_want names, which must then precede each pass; 0: for all */
    const struct vit_pass *lender; /* set before each plan, or NULL: a pass planned before in the same memory, which is
                                    * never under way together with this one: its scratch serves both */
    const float *drop; /* host (depth, 2, B): what an image's attention and MLP branch of a block count (vit_drop_draw);
                        * NULL: 1. Set after planning, there until vit_bwd */
    dv *patches;       /* (B*P, C) ct: patch embedding, before positions and mask */
    dv *out;           /* (B,T,C) ct: after the final norm; where rows are wanted those alone, (n,C) in their order */
    dv *x_last;        /* the same rows before it; not of an inference of wanted rows */
    dv *dout;          /* the same rows: fill (zero first) and call vit_bwd; not in VIT_INFER */
    void *impl;        /* the rest: vit.c */
} vit_pass;

/* Two-pass planning (arena.h). The host part (impl) is allocated in the first call and freed by vit_pass_fini. height,
 * width: multiples of patch (others are ERR_SHAPE). Also reserves nothing: op scratch is vit_pass_work_bytes. */
err_code vit_pass_plan(vit_pass *a, arena *m, const vit *v, size_t B, size_t height, size_t width, vit_keep keep,
                       err *e);
size_t vit_pass_work_bytes(const vit *v, size_t B, size_t height, size_t width, vit_keep keep);
void vit_pass_fini(vit_pass *a);

/* Stochastic depth: scale (depth, 2, B), of images first .. first+B of a step: 0 with probability rate * block /
 * (depth - 1), else 1 / (1 - that). A function of seed, step and image. rate < 1. */
void vit_drop_draw(const vit *m, float rate, uint64_t seed, uint64_t step, size_t first, size_t B, float *scale);

/* pixels (B,3,height,width) f32 on the device, normalised -> a->patches. The patch weights are shared by student and
 * teacher unless trained. */
void vit_patches(vit *m, vit_who who, vit_pass *a, const dv *pixels);
/* Of the next passes the rows image * T + token, host (n), distinct, n <= a->wanted_most. n == 0: all, which only a
 * VIT_INFER pass can do. What nobody wants of the last block (all but the keys and values of most tokens) is neither
 * computed nor kept; the result is the same. */
void vit_want(vit *m, vit_pass *a, const int32_t *rows, size_t n);
/* Every image's class token: wanted_most must be B. */
void vit_want_classes(vit *m, vit_pass *a);
/* patches: a->patches, or another pass's of the same shape (teacher and student share them). mask (B,P) uint8 on the
 * device or NULL. */
void vit_fwd(vit *m, vit_who who, vit_pass *a, const dv *patches, const dv *mask);
/* From a->dout; accumulates into the grads of the params that vit_train made. pixels: needed when the patch embedding
 * trains (else NULL). */
void vit_bwd(vit *m, vit_pass *a, const dv *pixels, const dv *mask);

#endif
