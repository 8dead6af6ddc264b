/* vit_position.c: positional embeddings of a G x G grid resampled to the grid of a pass, as the models' own code does
 * it: a separable linear map out = Wy pos Wx^T, kept as two small matrices, so that its transpose gives the gradient.
 *
 * POS_DINOV2: bicubic, a = -0.75, scale (grid+0.1)/G, no antialias, borders repeated (torch.nn.functional.interpolate
 * with scale_factor). POS_SIZE: the same with scale grid/G. POS_SIZE_ANTIALIAS: bicubic by size, a = -0.5, kernel
 * widened when shrinking, weights normalised (antialias=True). */
#include <math.h>
#include <stdlib.h>

#include "model/vit_impl.h"

static double cubic(double x, double a)
{
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
    return 0;
}

/* w (out, in) = interpolation weights of one axis. */
static void axis_weights(float *w, size_t out, size_t in, pos_interpolation how)
{
    for (size_t i = 0; i < out * in; i++) w[i] = 0;
    for (size_t o = 0; o < out; o++) {
        float *row = w + o * in;
        if (how != POS_SIZE_ANTIALIAS) {
            double offset = how == POS_DINOV2 ? 0.1 : 0;
            double scale = (double)in / ((double)out + offset), at = ((double)o + 0.5) * scale - 0.5, base = floor(at);
            for (int k = -1; k <= 2; k++) {
                double j = base + k;
                size_t c = j < 0 ? 0 : j > (double)(in - 1) ? in - 1 : (size_t)j;
                row[c] += (float)cubic(at - j, -0.75);
            }
            continue;
        }
        double scale = (double)in / (double)out, widen = scale > 1 ? scale : 1, support = 2 * widen;
        double center = scale * ((double)o + 0.5), sum = 0;
        long first = (long)(center - support + 0.5), last = (long)(center + support + 0.5);
        first = first < 0 ? 0 : first;
        last = last > (long)in ? (long)in : last;
        for (long j = first; j < last; j++) sum += cubic(((double)j - center + 0.5) / widen, -0.5);
        for (long j = first; j < last; j++) row[j] = (float)(cubic(((double)j - center + 0.5) / widen, -0.5) / sum);
    }
}

err_code vit_position_weights(vit_pass_impl *k, size_t G, pos_interpolation how, err *e)
{
    if (k->wy || (k->gh == G && k->gw == G)) return ERR_OK; /* made already, or untouched when the grid matches */
    k->wy = malloc(k->gh * G * sizeof *k->wy);
    k->wx = malloc(k->gw * G * sizeof *k->wx);
    if (!k->wy || !k->wx) FAIL(e, NOMEM, "no memory for positional embeddings");
    axis_weights(k->wy, k->gh, G, how);
    axis_weights(k->wx, k->gw, G, how);
    return ERR_OK;
}

/* Nonzero weights of output cell (y,x) against input cells (i,j), visited in order. */
#define EACH_WEIGHT(k, G, body)                                                                                        \
    for (size_t y = 0; y < (k)->gh; y++)                                                                               \
        for (size_t x = 0; x < (k)->gw; x++)                                                                           \
            for (size_t i = 0; i < (G); i++)                                                                           \
                for (size_t j = 0; (k)->wy[y * (G) + i] != 0 && j < (G); j++) {                                        \
                    float weight = (k)->wy[y * (G) + i] * (k)->wx[x * (G) + j];                                        \
                    size_t out = 1 + y * (k)->gw + x, in = 1 + i * (G) + j;                                            \
                    if (weight != 0) body                                                                              \
                }

void vit_positions(vit *m, vit_who who, vit_pass *a)
{
    vit_pass_impl *k = a->impl;
    size_t C = (size_t)m->c.dim, G = (size_t)m->c.grid;
    bool own = m->pos.live[VIT_TEACHER] != m->pos.live[VIT_STUDENT];
    if (!own && who == VIT_TEACHER) who = VIT_STUDENT; /* one table, one copy in the pass */
    if (k->pos_ready[who] && m->pos.param == VIT_FROZEN) return;
    k->pos_ready[who] = true;
    if (!k->wy) {
        m->d->op->copy(m->d, k->pos[who], m->pos.live[who], (1 + a->P) * C * sizeof(float));
        return;
    }
    float *table = malloc((1 + G * G) * C * sizeof *table), *rows = calloc((1 + a->P) * C, sizeof *rows);
    if (table && rows) {
        m->d->op->download(m->d, table, m->pos.live[who], (1 + G * G) * C * sizeof *table);
        for (size_t c = 0; c < C; c++) rows[c] = table[c];
        EACH_WEIGHT(k, G, {
            for (size_t c = 0; c < C; c++) rows[out * C + c] += weight * table[in * C + c];
        })
        m->d->op->upload(m->d, k->pos[who], rows, (1 + a->P) * C * sizeof *rows);
    } else {
        err_set(&m->d->sticky, ERR_NOMEM, __FILE__, __LINE__, "no memory for positional embeddings");
    }
    free(table);
    free(rows);
}

void vit_positions_bwd(const vit *m, const vit_pass *a, const float *dpos, float *grad)
{
    const vit_pass_impl *k = a->impl;
    size_t C = (size_t)m->c.dim, G = (size_t)m->c.grid;
    for (size_t c = 0; c < (k->wy ? C : (1 + a->P) * C); c++) grad[c] += dpos[c];
    if (!k->wy) return;
    EACH_WEIGHT(k, G, {
        for (size_t c = 0; c < C; c++) grad[in * C + c] += weight * dpos[out * C + c];
    })
}
