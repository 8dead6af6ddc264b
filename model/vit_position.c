/* vit_position.c: positional embeddings of a G x G grid resampled to the grid of a pass, as the models' own code does
 * it: a linear map, kept as each row's few weights, and its transpose the same way for the gradient.
 *
 * POS_DINOV2: bicubic, a = -0.75, scale (grid+0.1)/G, no antialias, borders repeated (torch.nn.functional.interpolate
 * with scale_factor). POS_SIZE: the same with scale grid/G. POS_SIZE_ANTIALIAS: bicubic by size, a = -0.5, kernel
 * widened when shrinking, weights normalised (antialias=True). */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

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

/* Cell (y,x) of the pass's grid and (i,j) of the table's that counts in it, in order. */
#define EACH_WEIGHT(gh, gw, G, wy, wx, body)                                                                           \
    for (size_t y = 0; y < (gh); y++)                                                                                  \
        for (size_t x = 0; x < (gw); x++)                                                                              \
            for (size_t i = 0; i < (G); i++)                                                                           \
                for (size_t j = 0; (wy)[y * (G) + i] != 0 && j < (G); j++) {                                           \
                    float weight = (wy)[y * (G) + i] * (wx)[x * (G) + j];                                              \
                    size_t out = 1 + y * (gw) + x, in = 1 + i * (G) + j;                                               \
                    if (weight != 0) body                                                                              \
                }

/* Rows of sums of n weighted rows in all, `first` counted and then moved to where each begins. */
static bool mix_room(vit_mix *t, size_t rows, size_t n)
{
    t->rows = rows;
    t->n = n;
    t->index = malloc((n + 1) * sizeof *t->index);
    t->weight = malloc((n + 1) * sizeof *t->weight);
    for (size_t i = 0, at = 0; i <= rows; i++) {
        size_t here = i < rows ? (size_t)t->first[i] : 0;
        t->first[i] = (int32_t)at;
        at += here;
    }
    return t->index && t->weight;
}

err_code vit_position_tables(vit_pass_impl *k, size_t G, pos_interpolation how, bool backward, err *e)
{
    size_t P = k->gh * k->gw, n = 1, rows[2] = {1 + P, 1 + G * G};
    bool same = k->gh == G && k->gw == G; /* untouched */
    float *wy = calloc(k->gh * G, sizeof *wy), *wx = calloc(k->gw * G, sizeof *wx);
    int32_t *at[2] = {calloc(rows[0] + 1, sizeof **at), calloc(rows[1] + 1, sizeof **at)};
    err_code rc = ERR_OK;
    for (int w = 0; w < 1 + backward; w++) k->mix[w].first = calloc(rows[w] + 1, sizeof *k->mix[w].first);
    if (!wy || !wx || !at[0] || !at[1] || !k->mix[0].first || (backward && !k->mix[1].first))
        FAIL_DONE(rc, e, NOMEM, "no memory for positional embeddings");
    for (size_t i = 0; same && i < G; i++) wy[i * G + i] = wx[i * G + i] = 1;
    if (!same) axis_weights(wy, k->gh, G, how);
    if (!same) axis_weights(wx, k->gw, G, how);
    for (int w = 0; w < 1 + backward; w++) k->mix[w].first[0] = 1; /* the class token's row is itself */
    EACH_WEIGHT(k->gh, k->gw, G, wy, wx, {
        k->mix[0].first[out]++;
        if (backward) k->mix[1].first[in]++;
        n++;
    })
    for (int w = 0; w < 1 + backward; w++) {
        vit_mix *t = &k->mix[w];
        if (!mix_room(t, rows[w], n)) FAIL_DONE(rc, e, NOMEM, "no memory for positional embeddings");
        memcpy(at[w], t->first, rows[w] * sizeof *at[w]);
        t->index[0] = 0;
        t->weight[0] = 1;
    }
    EACH_WEIGHT(k->gh, k->gw, G, wy, wx, {
        for (int w = 0; w < 1 + backward; w++) {
            int32_t to = at[w][w ? in : out]++;
            k->mix[w].index[to] = (int32_t)(w ? out : in);
            k->mix[w].weight[to] = weight;
        }
    })
done:
    free(wy);
    free(wx);
    free(at[0]);
    free(at[1]);
    return rc;
}

void vit_position_plan(vit_pass_impl *k, arena *m)
{
    k->mix_there = false;
    for (int w = 0; w < 2; w++) {
        vit_mix *t = &k->mix[w];
        if (!t->first) continue;
        t->first_there = arena_take(m, t->rows + 1, sizeof *t->first);
        t->index_there = arena_take(m, t->n, sizeof *t->index);
        t->weight_there = arena_take(m, t->n, sizeof *t->weight);
    }
}

void vit_position_fini(vit_pass_impl *k)
{
    for (int w = 0; w < 2; w++) {
        free(k->mix[w].first);
        free(k->mix[w].index);
        free(k->mix[w].weight);
    }
}

static void mix_up(device *d, vit_pass_impl *k)
{
    for (int w = 0; w < 2; w++) {
        const vit_mix *t = &k->mix[w];
        if (!t->first) continue;
        d->op->upload(d, t->first_there, t->first, (t->rows + 1) * sizeof *t->first);
        d->op->upload(d, t->index_there, t->index, t->n * sizeof *t->index);
        d->op->upload(d, t->weight_there, t->weight, t->n * sizeof *t->weight);
    }
    k->mix_there = true;
}

static void mix_rows(device *d, const vit_mix *t, dv *out, bool add, const dv *in, size_t C)
{
    d->op->mix_rows(d, out, add, in, t->first_there, t->index_there, t->weight_there, t->rows, C);
}

void vit_positions(vit *m, vit_who who, vit_pass *a)
{
    vit_pass_impl *k = a->impl;
    bool own = m->pos.live[VIT_TEACHER] != m->pos.live[VIT_STUDENT];
    if (!own && who == VIT_TEACHER) who = VIT_STUDENT; /* one table, one copy in the pass */
    if (k->pos_ready[who] && m->pos.param == VIT_FROZEN) return;
    if (!k->mix_there) mix_up(m->d, k);
    k->pos_ready[who] = true;
    mix_rows(m->d, &k->mix[0], k->pos[who], false, m->pos.live[who], (size_t)m->c.dim);
}

void vit_positions_bwd(const vit *m, const vit_pass *a, dv *grad, const dv *dpos)
{
    const vit_pass_impl *k = a->impl;
    assert(vit_position_trains(k));
    mix_rows(m->d, &k->mix[1], grad, true, dpos, (size_t)m->c.dim);
}
