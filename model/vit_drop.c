/* vit_drop.c: stochastic depth (Huang et al. 2016), per image and residual branch as DINOv2 and timm have it: a branch
 * is left out with a probability that rises from block to block, else it counts 1 / (1 - p). */
#include "base/rng.h"
#include "model/vit_impl.h"

void vit_drop_draw(const vit *m, float rate, uint64_t seed, uint64_t step, size_t first, size_t B, float *scale)
{
    size_t L = (size_t)m->c.depth, last = L > 1 ? L - 1 : 1;
    for (size_t i = 0; i < B; i++) {
        rng r = rng_at(seed, RNG_DROP, step, (uint32_t)(first + i));
        for (size_t k = 0; k < 2 * L; k++) { /* block by block: attention, MLP */
            const size_t block = k / 2;
            float p = rate * (float)block / (float)last;
            scale[k * B + i] = rng_uniform(&r) < p ? 0 : 1 / (1 - p);
        }
    }
}

/* x (rows,C) times `by`: not by a product where it is 0, for it may hold an infinity. */
static void weigh(vit *m, const vit_tile *t, dv *x, size_t row, size_t rows, float by)
{
    size_t C = (size_t)m->c.dim;
    dv *at = dv_at(x, row * C * t->ct);
    if (by == 0)
        m->d->op->zero(m->d, at, rows * C * t->ct);
    else if (by != 1)
        m->d->op->scale(m->d, at, by, rows * C);
}

void vit_drop_apply(vit *m, const vit_pass *a, size_t l, vit_branch branch, const vit_tile *t, dv *x)
{
    const vit_pass_impl *k = a->impl;
    size_t first = t->first / k->Ti;
    if (!a->drop) return;
    const float *by = a->drop + (2 * l + branch) * a->B;
    for (size_t i = 0; i < t->images; i++) weigh(m, t, x, i * k->Ti, k->Ti, by[first + i]);
    for (size_t i = 0, n; !t->images && i < t->rows; i += n) { /* wanted rows: runs of one image's */
        size_t image = (size_t)k->want_host[t->first + i] / k->Ti;
        for (n = 1; i + n < t->rows && (size_t)k->want_host[t->first + i + n] / k->Ti == image;) n++;
        weigh(m, t, x, i, n, by[image]);
    }
}
