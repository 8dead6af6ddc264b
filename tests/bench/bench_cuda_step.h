/* bench_cuda_step.h: cases of bench_cuda.c: what a step is beside the transformer: the head, the objective, the
 * optimiser, crops. */
#ifndef RADAPT_BENCH_CUDA_STEP_H
#define RADAPT_BENCH_CUDA_STEP_H
#include "preprocess/augment.h"
#include "tests/bench/bench_cuda.h"

/* --- objective: a piece of logits */

static void make_logits(void)
{
    enum { R = ROWS_OF_LOGITS };
    size_t K = prototypes;
    int32_t pairs[2 * R];
    t[0] = tensor_ct(&pair, R * K, 1, 0.1f);
    t[1] = tensor_ct(&pair, R * K, 2, 0.1f);
    t[2] = tensor_ct(&pair, R * K, 3, 0);
    t[3] = tensor_f32(&pair, K, 4, 0);
    t[4] = tensor_f32(&pair, K, 5, 0);
    t[5] = tensor_f32(&pair, K, 6, 0.01f);
    t[6] = tensor_f32(&pair, 1, 7, 0);
    t[7] = tensor_f32(&pair, 2 * R, 8, 0.01f);
    for (int i = 0; i < 2 * R; i++) pairs[i] = i % 5 ? i / 2 : -1;
    t[8] = tensor_of(&pair, TENSOR_F32, pairs, 2 * R);
    BOTH(pair, i)
    pair.d[i].op->teacher_softmax(&pair.d[i], t[1].p[i], t[3].p[i], t[4].p[i], t[6].p[i], t[1].p[i], t[5].p[i], 0.04f,
                                  R, K);
}
static void run_soft_ce(device *d, int i)
{
    d->op->zero(d, t[6].p[i], 4);
    d->op->soft_ce(d, t[6].p[i], t[2].p[i], t[0].p[i], t[1].p[i], t[8].p[i], t[7].p[i], 2, 0.1f, ROWS_OF_LOGITS,
                   prototypes);
}
static double bytes_soft_ce(void)
{
    return ct(4 * ROWS_OF_LOGITS * prototypes);
}
static void run_teacher(device *d, int i)
{
    d->op->zero(d, t[3].p[i], prototypes * 4);
    d->op->zero(d, t[4].p[i], prototypes * 4);
    d->op->zero(d, t[6].p[i], 4);
    d->op->teacher_softmax(d, t[2].p[i], t[3].p[i], t[4].p[i], t[6].p[i], t[0].p[i], t[5].p[i], 0.04f, ROWS_OF_LOGITS,
                           prototypes);
}
static double bytes_teacher(void)
{
    return ct(2 * ROWS_OF_LOGITS * prototypes);
}

/* Sinkhorn-Knopp over the same rows. */
static void make_sinkhorn(void)
{
    enum { R = ROWS_OF_LOGITS };
    t[0] = tensor_ct(&pair, R * prototypes, 1, 0.1f);
    t[1] = tensor_f32(&pair, prototypes, 2, 0.01f);
    t[2] = tensor_f32(&pair, R, 3, 1);
}
static void run_sinkhorn_prototypes(device *d, int i)
{
    d->op->sinkhorn_prototypes(d, t[1].p[i], t[0].p[i], t[2].p[i], true, 0.06f, ROWS_OF_LOGITS, prototypes);
}
static void run_sinkhorn_rows(device *d, int i)
{
    d->op->sinkhorn_rows(d, t[2].p[i], t[0].p[i], t[1].p[i], 0.06f, ROWS_OF_LOGITS, prototypes);
}
static double bytes_sinkhorn(void)
{
    return ct(ROWS_OF_LOGITS * prototypes) + 4.0 * (double)(prototypes + ROWS_OF_LOGITS);
}

static void make_center(void)
{
    t[0] = tensor_f32(&pair, prototypes, 1, 0.1f);
    t[1] = tensor_f32(&pair, prototypes, 2, 1);
    t[2] = tensor_f32(&pair, 1, 3, 1);
}
static void run_center(device *d, int i)
{
    d->op->center_update(d, t[0].p[i], t[1].p[i], 0.9f, ROWS_OF_LOGITS, prototypes, t[2].p[i]);
}
static double bytes_center(void)
{
    return 12.0 * (double)prototypes;
}

/* --- the head's bottleneck, its prototypes, class tokens, the classifier */

static void make_l2(void)
{
    enum { R = ROWS_OF_LOGITS };
    t[0] = tensor_ct(&pair, R * BOTTLENECK, 1, 1);
    t[1] = tensor_ct(&pair, R * BOTTLENECK, 2, 0);
    t[2] = tensor_f32(&pair, R, 3, 0);
    t[3] = tensor_ct(&pair, R * BOTTLENECK, 4, 1);
    t[4] = tensor_ct(&pair, R * BOTTLENECK, 5, 0);
    BOTH(pair, i) pair.d[i].op->l2_fwd(&pair.d[i], t[1].p[i], t[2].p[i], t[0].p[i], R, BOTTLENECK);
}
static void run_l2(device *d, int i)
{
    d->op->l2_fwd(d, t[1].p[i], t[2].p[i], t[0].p[i], ROWS_OF_LOGITS, BOTTLENECK);
}
static double bytes_l2(void)
{
    return ct(2 * ROWS_OF_LOGITS * BOTTLENECK) + 4.0 * ROWS_OF_LOGITS;
}
static void run_l2_bwd(device *d, int i)
{
    d->op->l2_bwd(d, t[4].p[i], t[3].p[i], t[1].p[i], t[2].p[i], ROWS_OF_LOGITS, BOTTLENECK);
}
static double bytes_l2_bwd(void)
{
    return ct(3 * ROWS_OF_LOGITS * BOTTLENECK) + 4.0 * ROWS_OF_LOGITS;
}

static void make_weight_norm(void)
{
    t[0] = tensor_ct(&pair, prototypes * BOTTLENECK, 1, 0);
    t[1] = tensor_f32(&pair, prototypes * BOTTLENECK, 2, 0.05f);
    t[2] = tensor_f32(&pair, prototypes * BOTTLENECK, 3, 0.01f);
    t[3] = tensor_f32(&pair, prototypes * BOTTLENECK, 4, 0);
}
static void run_weight_norm(device *d, int i)
{
    d->op->weight_norm_fwd(d, t[0].p[i], t[1].p[i], prototypes, BOTTLENECK);
}
static double bytes_weight_norm(void)
{
    return 6.0 * (double)(prototypes * BOTTLENECK);
}
static void run_weight_norm_bwd(device *d, int i)
{
    d->op->weight_norm_bwd(d, t[3].p[i], t[2].p[i], t[1].p[i], prototypes, BOTTLENECK);
}
static double bytes_weight_norm_bwd(void)
{
    return 12.0 * (double)(prototypes * BOTTLENECK);
}

/* Class tokens of one global crop an image. Distances are fp32: none of the tensor cores' products. */
static void make_koleo(void)
{
    t[0] = tensor_ct(&pair, B / 2 * C, 1, 1);
    t[1] = tensor_ct(&pair, B / 2 * C, 2, 0);
    t[2] = tensor_f32(&pair, 1, 3, 0);
}
static void run_koleo(device *d, int i)
{
    d->op->zero(d, t[2].p[i], 4);
    d->op->koleo(d, t[2].p[i], t[1].p[i], t[0].p[i], 0.1f, B / 2, C);
}
static double bytes_koleo(void)
{
    return ct(B * C);
}

static void make_classes(void)
{
    t[0] = tensor_f32(&pair, B * CLASSES, 1, 2);
    t[1] = tensor_f32(&pair, B * CLASSES, 2, 1);
    t[2] = tensor_f32(&pair, B * CLASSES, 3, 0);
    t[3] = tensor_f32(&pair, 1, 4, 0);
}
static void run_softmax_ce(device *d, int i)
{
    d->op->zero(d, t[3].p[i], 4);
    d->op->softmax_ce(d, t[3].p[i], t[2].p[i], t[0].p[i], t[1].p[i], 1 / (float)B, B, CLASSES);
}
static double bytes_softmax_ce(void)
{
    return 12.0 * (double)(B * CLASSES);
}
static void make_sets(void)
{
    make_classes();
    t[4] = tensor_f32(&pair, B * CLASSES, 5, 1);
}
static void run_sigmoid_ce(device *d, int i)
{
    d->op->zero(d, t[3].p[i], 4);
    d->op->sigmoid_ce(d, t[3].p[i], t[2].p[i], t[0].p[i], t[1].p[i], t[4].p[i], 1 / (float)B, B, CLASSES);
}
static double bytes_sigmoid_ce(void)
{
    return 16.0 * (double)(B * CLASSES);
}

/* How evenly a teacher's targets are spread: of sums that are positive. */
static void make_entropy(void)
{
    t[0] = tensor_f32(&pair, prototypes, 1, 0);
    t[1] = tensor_f32(&pair, 1, 2, 0);
    t[2] = tensor_f32(&pair, 1, 3, 0);
    t[3] = tensor_ct(&pair, ROWS_OF_LOGITS * prototypes, 4, 1);
    t[4] = tensor_f32(&pair, prototypes, 5, 0);
    t[5] = tensor_f32(&pair, prototypes, 6, 0);
    BOTH(pair, i)
    pair.d[i].op->teacher_softmax(&pair.d[i], t[3].p[i], t[4].p[i], t[0].p[i], t[2].p[i], t[3].p[i], t[5].p[i], 0.5f,
                                  ROWS_OF_LOGITS, prototypes);
}
static void run_entropy(device *d, int i)
{
    d->op->mean_entropy(d, t[1].p[i], t[0].p[i], ROWS_OF_LOGITS, prototypes);
}
static double bytes_entropy(void)
{
    return 4.0 * (double)prototypes;
}

/* --- optimiser: prototypes of 65536 by 256 */

static param one[TWINS];
static void make_optimiser(void)
{
    size_t n = prototypes * BOTTLENECK;
    t[0] = tensor_f32(&pair, n, 1, 0.05f);
    t[1] = tensor_f32(&pair, n, 2, 0.01f);
    t[2] = tensor_f32(&pair, n, 3, 0);
    t[3] = tensor_f32(&pair, n, 4, 0);
    t[4] = tensor_f32(&pair, n, 5, 0.05f);
    t[5] = tensor_ct(&pair, n, 6, 0);
    t[6] = tensor_ct(&pair, n, 7, 0);
    t[7] = tensor_f32(&pair, 1, 8, 0);
    BOTH(pair, i)
    one[i] = (param){.rows = prototypes,
                     .cols = BOTTLENECK,
                     .full_rows = prototypes,
                     .master = t[0].p[i],
                     .grad = t[1].p[i],
                     .m = t[2].p[i],
                     .v = t[3].p[i],
                     .teacher = t[4].p[i],
                     .live = t[5].p[i],
                     .live_teacher = t[6].p[i],
                     .live_ct = true,
                     .lr_scale = 1,
                     .decay = true};
}
static void run_adamw(device *d, int i)
{
    adamw_step s = {
        .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.01f, .lr = 1e-3f, .t = {1, 1, 1}, .clip = 1};
    s.average = true, s.momentum = 0.99f;
    d->op->grad_square(d, t[7].p[i], &one[i], 1, &s);
    d->op->adamw(d, &one[i], 1, &s, t[7].p[i]);
}
static double bytes_adamw(void)
{
    return (10 * 4 + 2 * 2.0) * (double)(prototypes * BOTTLENECK);
}

/* The live copies, of weights and of their teacher. */
static void run_refresh(device *d, int i)
{
    d->op->refresh(d, &one[i], 1);
}
static double bytes_refresh(void)
{
    return 12.0 * (double)(prototypes * BOTTLENECK);
}

/* --- the global crops of a step, with all that happens to them, from frames that are on the device */

static frame_info frame;
static sample_job *jobs[TWINS];
static void make_sample(void)
{
    size_t images = B / 2, each = (size_t)SIDE * SIDE;
    int16_t *pixels = malloc(images * each * sizeof *pixels);
    augment_options o;
    rng r = rng_at(1, RNG_TEST, 0, 0);
    assert_non_null(pixels);
    augment_defaults(&o);
    frame = (frame_info){
        .modality = "CR", .rows = SIDE, .columns = SIDE, .channels = 1, .type = PIXEL_I16, .slope = 1, .low = -900};
    frame.high = 900;
    for (size_t i = 0; i < images * each; i++) pixels[i] = (int16_t)(rng_u32(&r) % 2000 - 1000);
    t[0] = tensor_f32(&pair, B * 3 * 224 * 224, 1, 0);
    t[1] = tensor_of(&pair, TENSOR_BYTES, pixels, images * each * sizeof *pixels);
    free(pixels);
    BOTH(pair, i)
    {
        assert_non_null(jobs[i] = calloc(B, sizeof **jobs));
        for (size_t k = 0; k < B; k++) {
            rng a = rng_at(1, RNG_AUGMENT, k, 0);
            dv *at = dv_at(t[1].p[i], k / 2 * each * sizeof *pixels);
            jobs[i][k] = (sample_job){.frame = &frame, .pixels = at, .size = 224};
            jobs[i][k].resident = i == CUDA ? at : NULL;
            jobs[i][k].crop = augment_ssl(&o, &frame, k % 2 ? CROP_GLOBAL2 : CROP_GLOBAL1, &a);
        }
    }
}
static void run_sample(device *d, int i)
{
    static const sampler_norm norm = {.mean = {.5f, .5f, .5f}, .std = {.5f, .5f, .5f}};
    d->op->sample(d, t[0].p[i], &norm, jobs[i], B);
}
static double bytes_sample(void)
{
    return 2.0 * (double)(B / 2 * SIDE * SIDE) + 12.0 * (double)(B * 224 * 224);
}

static const bench_case step_cases[] = {
    {"soft_ce", make_logits, run_soft_ce, BIT(2) | BIT(6), 2e-5, bytes_soft_ce, NULL},
    {"teacher_softmax", make_logits, run_teacher, BIT(2) | BIT(3) | BIT(4) | BIT(6), 2e-5, bytes_teacher, NULL},
    {"sinkhorn_prototypes", make_sinkhorn, run_sinkhorn_prototypes, BIT(1), 1e-7, bytes_sinkhorn, NULL},
    {"sinkhorn_rows", make_sinkhorn, run_sinkhorn_rows, BIT(2), 1e-7, bytes_sinkhorn, NULL},
    {"center_update", make_center, run_center, BIT(0), 1e-9, bytes_center, NULL},
    {"l2_fwd", make_l2, run_l2, BIT(1) | BIT(2), 1e-5, bytes_l2, NULL},
    {"l2_bwd", make_l2, run_l2_bwd, BIT(4), 2e-5, bytes_l2_bwd, NULL},
    {"weight_norm_fwd", make_weight_norm, run_weight_norm, BIT(0), 1e-5, bytes_weight_norm, NULL},
    {"weight_norm_bwd", make_weight_norm, run_weight_norm_bwd, BIT(3), 1e-8, bytes_weight_norm_bwd, NULL},
    {"koleo", make_koleo, run_koleo, BIT(1) | BIT(2), 2e-5, bytes_koleo, NULL},
    {"softmax_ce", make_classes, run_softmax_ce, BIT(2) | BIT(3), 1e-8, bytes_softmax_ce, NULL},
    {"sigmoid_ce", make_sets, run_sigmoid_ce, BIT(2) | BIT(3), 1e-8, bytes_sigmoid_ce, NULL},
    {"mean_entropy", make_entropy, run_entropy, BIT(1), 1e-5, bytes_entropy, NULL},
    {"grad_square, adamw", make_optimiser, run_adamw, BIT(0) | BIT(4) | BIT(5) | BIT(6), 1e-5, bytes_adamw, NULL},
    {"refresh, teacher", make_optimiser, run_refresh, BIT(5) | BIT(6), 1e-5, bytes_refresh, NULL},
    {"sample", make_sample, run_sample, BIT(0), 1e-5, bytes_sample, NULL},
};

#endif
