/* vit_impl.h: what vit.c, vit_grad.c and vit_load.c share: weights of student and teacher, and a pass's activations. */
#ifndef RADAPT_VIT_IMPL_H
#define RADAPT_VIT_IMPL_H
#include "io/weights.h"
#include "model/vit.h"
#include "model/vit_name.h"

enum { VIT_FROZEN = -1, VIT_UPDATES = 3 /* low-rank updates of a layer at most */ };

/* An fp32 tensor on the device: class token, LayerNorm weight, ... */
typedef struct {
    dv *live[2];  /* [vit_who]; the teacher's is the student's while frozen */
    size_t count; /* 0: the model has none */
    int param;    /* index into vit.ps, or VIT_FROZEN */
} vit_vector;

/* A low-rank update of a layer: y[:, first .. first+rows) += alpha/r (x A^T) B^T (Hu et al. 2022, eq. 3). */
typedef struct {
    linear_w a[2], b[2];             /* (r,I), (O,r): B's other rows are zeros */
    linear_w *live_a[2], *live_b[2]; /* [vit_who], as in vit_linear */
    size_t first, rows;
    const dv *index;      /* int32 (rows): first, first+1, ...; NULL: all rows */
    int a_param, b_param; /* or VIT_FROZEN */
} vit_lora;

/* A linear layer: weight (O,I) and bias (O) f32. */
typedef struct {
    linear_w w[2];     /* [0] the student's */
    linear_w *live[2]; /* [vit_who]: &w[0], or &w[1] where the teacher has its own */
    int weight, bias;  /* params, or VIT_FROZEN */
    vit_lora *lora;    /* (n_lora): updates that are not merged */
    int n_lora;
} vit_linear;

typedef struct {
    vit_vector norm1_weight, norm1_bias, norm2_weight, norm2_bias, ls1, ls2;
    vit_linear qkv, proj, fc1, fc2; /* fc1, fc2: w12, w3 of a SwiGLU MLP */
    vit_vector prompts; /* (n,C): in the place of the prompts' tokens at this block's input; count 0: none */
} vit_block;

/* One tensor of the model, in the fixed order of vit_load.c. Its fp32 values are read again (or drawn again) where
 * masters are made, so that no second copy of the backbone stays on the host. */
typedef struct {
    char name[64];                      /* DINOv2 name: "blocks.3.attn.proj.weight" */
    size_t rows, cols;                  /* (O,I) of a weight; (n,1) of a vector; (n,C) of positions and registers */
    const tensor *part[VIT_NAME_PARTS]; /* in the file, one after the other; all NULL: drawn, or zeros */
    size_t pad;                         /* zeros in front: the class token's row of a table that has none */
    size_t cut_at, cut;                 /* values of the file's tensor that are left out: positions of registers */
    const tensor *plus;                 /* added to it: registers' positions, from value plus_at on */
    size_t plus_at;
    vit_vector *vector; /* one of these two */
    vit_linear *linear;
    bool is_bias;  /* of linear */
    float *merged; /* (rows, cols): what vit_merge made of it; NULL: the file's */
} vit_tensor;

/* How far down the backward pass goes: nothing below the lowest trained weight is differentiated. In block 0, but for
 * the last. */
typedef enum { VIT_TO_MLP, VIT_TO_PROJECTION, VIT_TO_QKV, VIT_TO_INPUT, VIT_TO_EMBEDDING } vit_bottom;

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
    weights_file file; /* open as long as the model: masters are read from it */
    bool random;       /* no file: drawn from seed */
    vit_normalisation_source normalisation;
    uint64_t seed;
    param_set *ps; /* after vit_train */
    bool trained;
    vit_bottom bottom;
    size_t prompts;               /* tokens, between registers and patches */
    size_t lora_rank, lora_width; /* 0: none; the widest input or output of an updated layer */
    float lora_scale;             /* alpha/r */
    dv *thirds;                   /* int32 (3C): 0, 1, ...: rows of Q, K and V */
};

/* Values of the largest tensor. */
static inline size_t vit_largest_tensor(const vit *m)
{
    size_t most = 0;
    for (size_t i = 0; i < m->n_tensors; i++) {
        size_t n = m->tensors[i].rows * m->tensors[i].cols;
        if (n > most) most = n;
    }
    return most;
}

/* The fp32 gradient of a param, NULL when frozen. */
static inline dv *vit_grad_of(const vit *m, int index)
{
    return index < 0 ? NULL : m->ps->p[index].grad;
}

/* Whether a weight's gradient asks for the layer's input. */
static inline bool vit_needs_input(const vit_linear *w)
{
    return w->weight != VIT_FROZEN || w->n_lora;
}

static inline bool vit_trains(const vit_linear *w)
{
    return vit_needs_input(w) || w->bias != VIT_FROZEN;
}

/* Units of the MLP's first layer. */
static inline size_t vit_mlp_width(const vit_config *c)
{
    return (size_t)c->hidden * (c->swiglu ? 2 : 1);
}

/* Activations of one block that backward needs. In inference there is x alone, one for all blocks: heads' outputs are
 * in vit_pass_impl.normed, the rest is scratch of a tile. The first vit_sharing blocks share all but x: after a forward
 * pass it is the last one's. */
struct vit_block_acts {
    dv *x;             /* (N,C) input */
    dv *mean1, *rstd1; /* (N) f32 */
    dv *qkv;           /* (N,3C) */
    dv *o;             /* (N,C) attention output, before proj */
    dv *lse;           /* (B,H,T) f32 */
    dv *mid;           /* (N,C) between attention and MLP */
    dv *mean2, *rstd2;
    dv *pre;   /* (N,hidden) before GELU, (N,2*hidden) before SwiGLU; or, where nothing but dX asks for it, NULL and */
    dv *slope; /* (N) rows of op_slope_bytes(hidden): GELU' there in 10 bits */
};

/* A pass in pieces: `images` of them in each of n tiles (the last may have fewer). One tile: the whole batch at once,
 * each op on all of the device. */
typedef struct {
    size_t images, n;
} vit_tiling;

/* Rows of weighted sums of rows (op.h, mix_rows), on the host and on the device. */
typedef struct {
    size_t rows, n;
    int32_t *first, *index; /* (rows+1), (n); first NULL: there is none */
    float *weight;          /* (n) */
    dv *first_there, *index_there, *weight_there;
} vit_mix;

/* vit_pass.impl. */
typedef struct {
    size_t L, N, Ti;       /* Ti: tokens in the transformer: T, or T-1 without a class token; N = B*Ti */
    size_t prompt;         /* row of the first prompt in an image */
    vit_block_acts *block; /* (L) */
    dv *cols;              /* (B*P, 3*p*p) patches as columns */
    vit_tiling fwd, bwd;
    size_t scratch_rows;        /* S: rows of scratch, over all slots */
    dv *norm, *branch, *hidden; /* (S,C), (S,C), (S,hidden): scratch of forward and backward */
    dv *gates;                  /* (S,2*hidden): SwiGLU's input in inference, its gradient in backward */
    dv *qkv;                    /* (S,3C): inference's; dqkv in backward */
    dv *rest, *top_rest;        /* (N,C), (W,C): inference in bf16: what rounding leaves of x, of top (op.h); or NULL */
    dv *low, *wide;             /* (S,VIT_UPDATES*r), (S,lora_width): of low-rank updates */
    dv *mean, *rstd;            /* (N) f32 of the final norm */
    dv *normed;                 /* (N,C): final norm where out has the extra row, else out itself; until then
                                 * inference's heads' outputs */
    dv *pos[2];                 /* (1+P,C) f32 on this grid */
    bool pos_ready[2];
    size_t gh, gw;
    vit_mix mix[2];   /* the table's rows in the grid's; and transposed, where the table is trained */
    bool mix_there;   /* on the device */
    dv *dx, *dbranch; /* (N,C): backward */
    /* Where rows are wanted: W of them, at most most_wanted. */
    size_t most_wanted, wanted;
    bool finish_wanted; /* the last block is finished for them alone; else (no class token: its row is a mean of all)
                         * they are taken from whole tensors, out_all and dout_all (B,T,C) */
    int32_t *want_host; /* (most_wanted) */
    dv *want;           /* the same on the device */
    vit_block_acts top; /* the last block's o, mid, ... of them: (W,.) */
    dv *top_dx, *top_g; /* (W,C) */
    dv *out_all, *dout_all;
    dv *dtop; /* (N,C): gradient at the final norm where there is no class token */
} vit_pass_impl;

/* A tile: its rows in tensors of all N rows, and in the scratch of its slot. images 0: a piece of the wanted rows, and
 * tensors of W rows. */
typedef struct {
    size_t images, rows, first, first_pair, scratch, ct;
} vit_tile;
/* The wanted rows in pieces: how many under a tiling, and one of them. */
size_t vit_pieces(const vit *m, const vit_pass *a, const vit_tiling *t);
vit_tile vit_piece_at(const vit *m, const vit_pass *a, const vit_tiling *t, size_t index, size_t slot);
vit_tile vit_tile_at(const vit *m, const vit_pass *a, const vit_tiling *t, size_t index, size_t slot);
/* The tile's rows of a ct tensor (N, columns), and of the scratch (S, columns). */
static inline dv *vit_rows(const vit_tile *t, const dv *x, size_t columns)
{
    return dv_at(x, t->first * columns * t->ct);
}
static inline dv *vit_scratch(const vit_tile *t, const dv *x, size_t columns)
{
    return dv_at(x, t->scratch * columns * t->ct);
}
/* Whether this pass finishes its last block for wanted rows alone. */
static inline bool vit_finishes_wanted(const vit_pass_impl *k)
{
    return k->finish_wanted && k->wanted;
}
/* Element `at` of an f32 tensor; NULL stays NULL. */
static inline dv *vit_f32(const dv *x, size_t at)
{
    return x ? dv_at(x, at * sizeof(float)) : NULL;
}

/* vit_drop.c. The tile's rows of a branch, or of its gradient, times what each image's counts; nothing without
 * a->drop. */
typedef enum { VIT_ATTENTION, VIT_MLP } vit_branch;
void vit_drop_apply(vit *m, const vit_pass *a, size_t l, vit_branch branch, const vit_tile *t, dv *x);
/* vit_open.c. "m,m,m/s,s,s"; false: something else, and c is as it was. */
bool vit_read_normalisation(vit_config *c, const char *numbers);
/* vit_lora.c. Appends A and B of the spec's targets to ps. */
err_code vit_lora_train(vit *m, const peft_spec *spec, param_set *ps, err *e);
/* y (N,O) += the layer's updates of x (N,I); low and wide are scratch. */
void vit_lora_fwd(vit *m, vit_who who, const vit_linear *w, dv *y, const dv *x, size_t N, dv *low, dv *wide);
/* dA, dB from dy (N,O) and x; dx (N,I) = the layer's and theirs, or NULL; dx may be x. low (VIT_UPDATES,N,r). */
void vit_lora_bwd(vit *m, const vit_linear *w, dv *dx, const dv *dy, const dv *x, size_t N, dv *low, dv *wide);
/* weight (O,I) host += alpha/r B A of the masters. */
err_code vit_lora_add(const vit *m, const vit_linear *w, float *weight, err *e);
void vit_lora_close(vit *m, vit_linear *w);
/* vit_prompt.c. Appends the prompts to ps. */
err_code vit_prompt_train(vit *m, const peft_spec *spec, param_set *ps, err *e);
void vit_prompt_close(vit *m);
/* vit_open.c. Frees what the layer holds; the weight of another's is left alone. */
void vit_close_linear(device *d, linear_w *w);
/* vit_train.c. A copy of device memory. */
err_code vit_clone(device *d, dv **out, const dv *src, size_t bytes, err *e);
/* vit.c. Blocks that share one place: those that backward makes again, and the one behind them. At least 1. */
size_t vit_sharing(const vit_pass *a);
/* What backward needs of block l's rows of a tile, from the block's input. */
void vit_block_again(vit *m, vit_pass *a, size_t l, const vit_tile *t);

/* Positional rows on the pass's grid from the live table: once, or each time where the table is trained. */
void vit_positions(vit *m, vit_who who, vit_pass *a);
/* The transposed: grad (1+G*G,C) f32 += of dpos (1+P,C) f32. */
void vit_positions_bwd(const vit *m, const vit_pass *a, dv *grad, const dv *dpos);
/* k->mix of the pass's grid on the host, to be freed by _fini; and its places on the device, filled at the first use.
 */
err_code vit_position_tables(vit_pass_impl *k, size_t G, pos_interpolation how, bool backward, err *e);
void vit_position_plan(vit_pass_impl *k, arena *m);
static inline bool vit_position_trains(const vit_pass_impl *k)
{
    return k->mix[1].first;
}
void vit_position_fini(vit_pass_impl *k);

/* vit_load.c: the shape from the file (or s->random), m->tensors with where each is found, m->c. Nothing on the device.
 */
err_code vit_load(vit *m, const vit_source *s, err *e);
/* Values of tensor t, (rows, cols) fp32. ERR_NUMERIC if one is not finite. */
err_code vit_load_values(const vit *m, const vit_tensor *t, float *out, err *e);

#endif
