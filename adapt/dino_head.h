/* dino_head.h: the projection head of DINO and of iBOT, one for both or one each: Linear GELU Linear GELU Linear,
 * L2-normalise, weight-normalised prototypes (g = 1, no bias). Student and teacher, forward and backward,
 * initialisation.
 *
 *     dino_head_open(&h, d, &ps, DINO_HEAD, &config, seed, &e);    // appends its params to ps, random weights
 *     dino_head_acts a = {0}; dino_head_plan(&a, &arena, &config, ct_bytes, N);   // as vit_pass_plan
 *     dino_head_embed(&h, VIT_STUDENT, &a, a.unit, x, n);          // x (n,C) ct -> (n, bottleneck) ct, n <= N
 *     for (pieces of rows) {                                       // so that no more logits are held than wanted
 *         dino_head_logits(&h, VIT_STUDENT, unit rows, logits, rows);  // (rows,K) ct
 *         ... logits := dlogits ...
 *         dino_head_logits_bwd(&h, &a, first, logits, rows);
 *     }
 *     dino_head_embed_bwd(&h, &a, dx, x, n);
 *     dino_head_bwd_end(&h);                                       // once, after all rows of all batches
 *
 * Params: {dino,ibot}_head.mlp.{0,2,4}.{weight,bias}, ..._head.last_layer.weight_v. The last one's live copy is v/|v|,
 * made by dino_head_refresh: call it whenever masters or teachers changed. */
#ifndef RADAPT_DINO_HEAD_H
#define RADAPT_DINO_HEAD_H
#include "model/vit.h"

enum { DINO_HEAD_LAYERS = 3, DINO_HEAD_PARAMS = 7, DINO_HEAD_BOTTLENECK = 8192 /* at most */ };

typedef enum { DINO_HEAD, DINO_HEAD_IBOT } dino_head_which; /* names and random numbers differ */

typedef struct {
    size_t in, hidden, bottleneck, prototypes;
} dino_head_config;

typedef struct {
    device *d;
    dino_head_which which;
    dino_head_config config;
    param_set *ps;
    size_t first;                        /* its params are ps->p[first .. first+6] */
    linear_w layer[2][DINO_HEAD_LAYERS]; /* [vit_who] */
    linear_w last[2];                    /* (K, bottleneck), rows of length 1 */
    dv *live;                            /* the block that holds them all */
} dino_head;

/* For at most N rows. Backward reuses what forward no longer needs. */
typedef struct {
    size_t N;
    dv *pre[2], *act[2]; /* (N, hidden) ct */
    dv *z, *unit;        /* (N, bottleneck) ct: before and after the normalisation */
    dv *norm;            /* (N) f32 */
    dv *dz, *dunit;      /* (N, bottleneck) ct */
    dv *dact;            /* (N, hidden) ct */
} dino_head_acts;

/* Weights from a truncated normal of 0.02, biases 0. The struct must stay where it is until dino_head_close. */
err_code dino_head_open(dino_head *h, device *d, param_set *ps, dino_head_which which, const dino_head_config *k,
                        uint64_t seed, err *e);
void dino_head_close(dino_head *h); /* the params belong to ps */
/* Device bytes of a head beside activations: live copies, and params with gradient, moments and teacher. */
size_t dino_head_bytes(const dino_head_config *k, size_t ct_bytes);
void dino_head_plan(dino_head_acts *a, arena *m, const dino_head_config *k, size_t ct_bytes, size_t N);

/* unit (n, bottleneck) ct: embeddings of length 1; a->unit, or where a teacher's shall stay. */
void dino_head_embed(dino_head *h, vit_who who, dino_head_acts *a, dv *unit, const dv *x, size_t n);
void dino_head_logits(dino_head *h, vit_who who, const dv *unit, dv *logits, size_t n);
/* Rows [first, first + n) of the student's last embed: gradients into the prototypes' and a->dunit. */
void dino_head_logits_bwd(dino_head *h, dino_head_acts *a, size_t first, const dv *dlogits, size_t n);
/* From a->dunit of n rows down: gradients of the layers (+=), dx (n, in) ct. */
void dino_head_embed_bwd(dino_head *h, dino_head_acts *a, dv *dx, const dv *x, size_t n);
/* Until here the prototypes' gradient is that of v/|v|; now it is v's. */
void dino_head_bwd_end(dino_head *h);
void dino_head_refresh(dino_head *h);

/* Initialisation on data: x (n, in) f32 on the host, class and patch tokens of the frozen backbone. Kaiming-normal
 * weights, each unit then rescaled to zero mean and unit variance over the rows; prototypes = embeddings of random rows
 * plus noise of that length, then, where there are two rows for each, the centres of clusters (spherical k-means from
 * there). Student and teacher alike. */
err_code dino_head_init(dino_head *h, const float *x, size_t n, float noise, uint64_t seed, err *e);
/* Whether n rows are enough for that. */
bool dino_head_clusters(const dino_head_config *k, size_t n);
size_t dino_head_init_bytes(const dino_head_config *k, size_t n); /* that it takes on the host, x aside */

#endif
