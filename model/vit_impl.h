/* vit_impl.h: what vit.c, vit_grad.c and vit_load.c share: weights of student and teacher, and a pass's activations. */
#ifndef RADAPT_VIT_IMPL_H
#define RADAPT_VIT_IMPL_H
#include "model/vit.h"

enum { VIT_FROZEN = -1 };

/* An fp32 tensor on the device: class token, LayerNorm weight, ... */
typedef struct {
    dv *live[2];  /* [vit_who]; the teacher's is the student's while frozen */
    size_t count; /* 0: the model has none */
    int param;    /* index into vit.ps, or VIT_FROZEN */
} vit_vector;

/* A linear layer: weight (O,I) and bias (O) f32. */
typedef struct {
    linear_w w[2];     /* [0] the student's */
    linear_w *live[2]; /* [vit_who]: &w[0], or &w[1] where the teacher has its own */
    int weight, bias;  /* params, or VIT_FROZEN */
} vit_linear;

typedef struct {
    vit_vector norm1_weight, norm1_bias, norm2_weight, norm2_bias, ls1, ls2;
    vit_linear qkv, proj, fc1, fc2;
} vit_block;

/* One tensor as loaded, in the order of the file names below: name, where it lives, fp32 values on the host until
 * vit_train (masters) or close. */
typedef struct {
    char name[64];      /* DINOv2 name: "blocks.3.attn.proj.weight" */
    size_t rows, cols;  /* (O,I) of a weight; (n,1) of a vector */
    float *values;      /* (rows, cols) */
    vit_vector *vector; /* one of these two */
    vit_linear *linear;
    bool is_bias; /* of linear */
} vit_tensor;

struct vit {
    device *d;
    vit_config c;
    char hash[HASH_HEX];
    vit_linear patch;
    vit_vector cls, reg, pos, mask_token, norm_weight,
        norm_bias;    /* pos (1+G*G, C): row 0 the class token's (zeros without one) */
    vit_block *block; /* (depth) */
    vit_tensor *tensors;
    size_t n_tensors;
    param_set *ps; /* after vit_train */
    bool trained;
    bool below; /* something below block 0's attention output is trained: the backward pass goes all the way */
};

/* The fp32 gradient of a param, NULL when frozen. */
static inline dv *vit_grad_of(const vit *m, int index)
{
    return index < 0 ? NULL : m->ps->p[index].grad;
}

/* Activations of one block that backward needs. In inference every block uses block 0's. */
struct vit_block_acts {
    dv *x;             /* (N,C) input */
    dv *mean1, *rstd1; /* (N) f32 */
    dv *qkv;           /* (N,3C) */
    dv *o;             /* (N,C) attention output, before proj */
    dv *lse;           /* (B,H,T) f32 */
    dv *mid;           /* (N,C) between attention and MLP */
    dv *mean2, *rstd2;
    dv *pre; /* (N,hidden) before GELU; NULL in inference */
};

/* vit_pass.impl. */
typedef struct {
    size_t L, N, Ti;            /* Ti: tokens in the transformer: T, or T-1 without a class token; N = B*Ti */
    vit_block_acts *block;      /* (L) */
    dv *cols;                   /* (B*P, 3*p*p) patches as columns */
    dv *norm, *branch, *hidden; /* (N,C), (N,C), (N,hidden): scratch of forward and backward */
    dv *mean, *rstd;            /* (N) f32 of the final norm */
    dv *normed;                 /* (N,C): final norm where out has the extra row, else out itself */
    dv *pos[2];                 /* (1+P,C) f32 on this grid */
    bool pos_ready[2];
    float *wy, *wx; /* (gh,G), (gw,G): interpolation weights; NULL: the grid matches */
    size_t gh, gw;
    dv *dx, *dbranch, *dqkv, *dhidden; /* backward */
} vit_pass_impl;

/* Positional rows on the pass's grid from the live table: once, or each time where the table is trained. */
void vit_positions(vit *m, vit_who who, vit_pass *a);
/* The transposed: dpos (1+P,C) f32 host -> += into grad (1+G*G,C) f32 host. */
void vit_positions_bwd(const vit *m, const vit_pass *a, const float *dpos, float *grad);

/* Interpolation weights of the pass's grid into k (host; nothing where the grid matches). */
err_code vit_position_weights(vit_pass_impl *k, size_t G, pos_interpolation how, err *e);

/* vit_load.c: reads or draws every tensor into m (host values and device copies), fills m->c and m->hash. */
err_code vit_load(vit *m, const vit_source *s, err *e);

#endif
