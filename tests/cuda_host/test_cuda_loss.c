/* The objective's ops on the CUDA back end against the CPU's: rows of one vector and of many, ragged and not, no rows
 * at all; in place where op.h allows it; scalars and statistics that accumulate start from something. */
#include "tests/cuda_host/twin.h"

static const compute_type types[] = {COMPUTE_F32, COMPUTE_BF16};

/* Rows of exponentials: a few units in fp32's last place beside the CPU's own exp. */
static double exponential(const twin *t)
{
    return t->d[CUDA].ct == COMPUTE_BF16 ? 1e-5 : 1e-9;
}

static tensor scalar(twin *t, float v)
{
    return tensor_of(t, TENSOR_F32, &v, 1);
}

/* n values |normal| * scale + least, f32. */
static tensor positive(twin *t, size_t n, uint64_t seed, float scale, float least)
{
    float *x = malloc((n + 1) * sizeof *x);
    assert_non_null(x);
    rng g = rng_at(seed, 0, 0, 0);
    for (size_t i = 0; i < n; i++) x[i] = scale * fabsf(rng_normal(&g)) + least;
    tensor r = tensor_of(t, TENSOR_F32, x, n);
    free(x);
    return r;
}

static const struct {
    size_t N, C;
    float scale; /* 0: rows without direction */
} unit_rows[] = {{0, 8, 1}, {1, 1, 1}, {1, 33, 3}, {5, 7, 0.02f}, {70, 256, 1}, {9, 264, 1}, {2, 4099, 1}, {3, 8, 0}};

static void lengths(void **state)
{
    (void)state;
    for (size_t c = 0; c < 2; c++)
        for (size_t s = 0; s < sizeof unit_rows / sizeof *unit_rows; s++) {
            size_t N = unit_rows[s].N, C = unit_rows[s].C, n = N * C;
            twin t = twin_open(types[c]);
            printf("  (%zu,%zu)\n", N, C);
            tensor x = tensor_ct(&t, n, 1, unit_rows[s].scale), y = tensor_ct(&t, n, 2, 1);
            tensor norm = tensor_f32(&t, N, 3, 1), u = tensor_ct(&t, n, 4, 1), dx = tensor_ct(&t, n, 5, 1);
            tensor length = positive(&t, N, 6, 1, 0.5f), v = tensor_f32(&t, n, 7, unit_rows[s].scale);
            tensor w = tensor_ct(&t, n, 8, 1), dw = tensor_f32(&t, n, 9, 1), dv_of = tensor_f32(&t, n, 10, 1);
            tensor dls = tensor_f32(&t, N, 11, 1), bias = tensor_f32(&t, N, 12, 1), db = tensor_f32(&t, N, 13, 1);
            BOTH(t, i)
            {
                device *d = &t.d[i];
                d->op->l2_fwd(d, y.p[i], norm.p[i], x.p[i], N, C);
                d->op->l2_bwd(d, dx.p[i], x.p[i], u.p[i], length.p[i], N, C);
                d->op->weight_norm_fwd(d, w.p[i], v.p[i], N, C);
                d->op->weight_norm_bwd(d, dv_of.p[i], dw.p[i], v.p[i], N, C);
                d->op->scale_grad(d, dls.p[i], length.p[i], u.p[i], dw.p[i], s % 2 ? bias.p[i] : NULL,
                                  s % 2 ? db.p[i] : NULL, N, C);
                d->op->weight_norm_bwd(d, dw.p[i], dw.p[i], v.p[i], N, C);
            }
            twin_compare(&t, "scale_grad", &dls, 1e-10);
            twin_compare(&t, "l2_fwd", &y, twin_rounding(&t));
            twin_compare(&t, "l2_fwd: norm", &norm, 1e-11);
            twin_compare(&t, "l2_bwd", &dx, twin_rounding(&t));
            twin_compare(&t, "weight_norm_fwd", &w, twin_rounding(&t));
            if (C > 1) { /* else it is nothing but rounding */
                twin_compare(&t, "weight_norm_bwd", &dv_of, 1e-10);
                twin_compare(&t, "weight_norm_bwd in place", &dw, 1e-10);
            }
            twin_close(&t);
        }
}

static const struct {
    size_t N, K;
    float tau, scale;
} teachers[] = {{0, 7, 0.04f, 1},       {1, 7, 1, 1},           {5, 257, 0.07f, 0.5f}, {70, 257, 0.04f, 0.3f},
                {70, 64, 0.04f, 20},    {5, 4099, 0.05f, 0.2f}, {300, 16, 0.1f, 1},    {3, 65536, 0.04f, 0.2f},
                {70, 1032, 0.1f, 1e-3f}};
enum { TEACHERS = sizeof teachers / sizeof *teachers };

/* way: in place; rows in two calls */
static void teacher_rows(compute_type type, size_t s, bool in_place, bool twice)
{
    size_t N = teachers[s].N, K = teachers[s].K;
    float tau = teachers[s].tau;
    twin t = twin_open(type);
    printf("  (%zu,%zu), tau %g%s%s\n", N, K, (double)tau, in_place ? ", in place" : "", twice ? ", in two" : "");
    tensor x = tensor_ct(&t, N * K, 1, teachers[s].scale), q = tensor_ct(&t, N * K, 2, 1);
    tensor center = tensor_f32(&t, K, 3, 0.1f), sum = tensor_f32(&t, K, 4, 1), mean = positive(&t, K, 5, 1e-3f, 0);
    tensor entropy = scalar(&t, 0.5f), of_mean = scalar(&t, 7), out = in_place ? x : q;
    BOTH(t, i)
    {
        device *d = &t.d[i];
        for (size_t row = 0, n = twice ? N / 2 : N; row < N || !N; row += n, n = N - row) {
            size_t bytes = row * K * d->ct_bytes;
            d->op->teacher_softmax(d, dv_at(out.p[i], bytes), sum.p[i], mean.p[i], entropy.p[i], dv_at(x.p[i], bytes),
                                   center.p[i], tau, n, K);
            if (!N) break;
        }
        d->op->mean_entropy(d, of_mean.p[i], mean.p[i], N, K);
        d->op->center_update(d, center.p[i], sum.p[i], 0.9f, N, K, NULL);
    }
    twin_compare(&t, "targets", &out, exponential(&t));
    twin_compare(&t, "sum", &sum, 1e-9);
    twin_compare(&t, "mean", &mean, exponential(&t));
    twin_compare(&t, "entropy", &entropy, 1e-6); /* of sharp rows: exponents of thousands, rounded */
    twin_compare(&t, "entropy of the mean", &of_mean, 1e-6);
    twin_compare(&t, "centre", &center, 1e-9);
    twin_close(&t);
}

static void teacher_softmax(void **state)
{
    (void)state;
    for (size_t c = 0; c < 2; c++)
        for (size_t s = 0; s < TEACHERS; s++) {
            teacher_rows(types[c], s, false, teachers[s].N > 1 && s % 2);
            teacher_rows(types[c], s, true, teachers[s].N > 1 && s % 2 == 0);
        }
}

/* Three iterations, the rows in pieces of at most `rows`. */
static void sinkhorn_run(device *d, dv *center, dv *scale, const dv *logits, float tau, size_t N, size_t K, size_t rows)
{
    for (int t = 0; t < 3; t++) {
        for (size_t i = 0; t && i < N; i += rows)
            d->op->sinkhorn_rows(d, dv_at(scale, i * sizeof(float)), dv_at(logits, i * K * d->ct_bytes), center, tau,
                                 N - i < rows ? N - i : rows, K);
        for (size_t i = 0; i < N; i += rows)
            d->op->sinkhorn_prototypes(d, center, dv_at(logits, i * K * d->ct_bytes),
                                       t ? dv_at(scale, i * sizeof(float)) : NULL, i == 0, tau,
                                       N - i < rows ? N - i : rows, K);
    }
}

static void sinkhorn(void **state)
{
    (void)state;
    for (size_t c = 0; c < 2; c++)
        for (size_t s = 0; s < TEACHERS; s++) {
            size_t N = teachers[s].N, K = teachers[s].K;
            twin t = twin_open(types[c]);
            printf("  (%zu,%zu)\n", N, K);
            tensor x = tensor_ct(&t, N * K, 1, fminf(teachers[s].scale, 1)), center = tensor_f32(&t, K, 2, 1);
            tensor scale = tensor_f32(&t, N, 3, 1);
            BOTH(t, i)
            sinkhorn_run(&t.d[i], center.p[i], scale.p[i], x.p[i], teachers[s].tau, N, K, s % 2 ? (N + 2) / 3 : N + 1);
            twin_compare(&t, "centre", &center, 1e-9);
            twin_compare(&t, "scale", &scale, 1e-9);
            BOTH(t, i)
            {
                t.d[i].op->sinkhorn_prototypes(&t.d[i], center.p[i], x.p[i], scale.p[i], true, 0.04f, 0, K);
                t.d[i].op->sinkhorn_rows(&t.d[i], scale.p[i], x.p[i], center.p[i], 0.04f, 0, K);
            }
            twin_compare(&t, "centre after no rows", &center, 1e-9);
            twin_close(&t);
        }
}

/* Logits of thousands, one row and one prototype far from all others: nothing overflows. */
static void sinkhorn_far(void **state)
{
    (void)state;
    enum { N = 9, K = 40 };
    float v[N * K];
    rng g = rng_at(1, 0, 0, 0);
    for (size_t i = 0; i < N * K; i++) v[i] = 1000 * rng_normal(&g) - (i / K == 3 ? 1e5f : 0) - (i % K == 7 ? 3e5f : 0);
    twin t = twin_open(COMPUTE_F32);
    tensor x = tensor_of(&t, TENSOR_CT, v, N * K), center = tensor_f32(&t, K, 2, 1), scale = tensor_f32(&t, N, 3, 1);
    BOTH(t, i) sinkhorn_run(&t.d[i], center.p[i], scale.p[i], x.p[i], 0.04f, N, K, 4);
    twin_compare(&t, "centre", &center, 1e-9);
    twin_compare(&t, "scale", &scale, 1e-9);
    twin_close(&t);
}

static const struct {
    size_t N, K, P;
    float tau, scale;
} students[] = {{0, 7, 1, 1, 1},          {1, 7, 1, 1, 1},           {5, 257, 2, 0.1f, 0.3f},
                {70, 257, 1, 0.1f, 0.5f}, {5, 4099, 2, 0.1f, 0.2f},  {70, 520, 2, 0.1f, 0.2f},
                {9, 16, 3, 0.1f, 5},      {3, 65536, 2, 0.1f, 0.2f}, {4, 24, 0, 0.1f, 1}};

static void soft_ce(void **state)
{
    (void)state;
    enum { Q = 4 };
    for (size_t c = 0; c < 2; c++)
        for (size_t s = 0; s < sizeof students / sizeof *students; s++) {
            size_t N = students[s].N, K = students[s].K, P = students[s].P;
            float tau = students[s].tau;
            int32_t pair[256];
            rng r = rng_at(8, 0, s, 0);
            for (size_t i = 0; i < N * P; i++) { /* the second row has none, the first pair of all is there */
                pair[i] = (int32_t)rng_below(&r, Q + 1) - (i ? 1 : 0);
                if (pair[i] >= Q) pair[i] = Q - 1;
                if (N > 1 && i / P == 1) pair[i] = -1;
            }
            twin t = twin_open(types[c]);
            printf("  (%zu,%zu), %zu targets, tau %g\n", N, K, P, (double)tau);
            tensor pairs = tensor_of(&t, TENSOR_BYTES, pair, N * P * sizeof *pair);
            tensor weight = positive(&t, N * P, 2, 1, 0.1f), x = tensor_ct(&t, N * K, 3, students[s].scale);
            tensor q = tensor_ct(&t, Q * K, 4, 1), dx = tensor_ct(&t, N * K, 5, 1), loss = scalar(&t, 1);
            tensor stats = tensor_f32(&t, K + 1, 6, 1);
            BOTH(t, i)
            {
                device *d = &t.d[i];
                dv *k = stats.p[i];
                d->op->zero(d, k, K * sizeof(float));
                d->op->teacher_softmax(d, q.p[i], k, k, dv_at(k, K * sizeof(float)), q.p[i], k, 1, Q, K);
            }
            float *from = tensor_values(&t, &q, CUDA); /* the same targets for both */
            tensor same = tensor_of(&t, TENSOR_CT, from, Q * K);
            free(from);
            BOTH(t, i)
            t.d[i].op->soft_ce(&t.d[i], loss.p[i], dx.p[i], x.p[i], same.p[i], pairs.p[i], weight.p[i], P, tau, N, K);
            twin_compare(&t, "loss", &loss, 1e-11);
            twin_compare(&t, "dlogits", &dx, exponential(&t));
            BOTH(t, i)
            t.d[i].op->soft_ce(&t.d[i], loss.p[i], x.p[i], x.p[i], same.p[i], pairs.p[i], weight.p[i], P, tau, N, K);
            twin_compare(&t, "loss, again", &loss, 1e-11);
            twin_compare(&t, "dlogits in place", &x, exponential(&t));
            twin_close(&t);
        }
}

static void koleo(void **state)
{
    (void)state;
    static const struct {
        size_t N, C;
        float w;
    } rows[] = {{0, 5, 1}, {1, 10, 1}, {2, 3, 1}, {5, 33, 0.1f}, {70, 64, 0.1f}, {33, 264, 2}, {40, 513, 1}};
    for (size_t c = 0; c < 2; c++)
        for (size_t s = 0; s < sizeof rows / sizeof *rows; s++) {
            size_t N = rows[s].N, C = rows[s].C;
            twin t = twin_open(types[c]);
            printf("  (%zu,%zu)\n", N, C);
            tensor x = tensor_ct(&t, N * C, 20 + s, 2), dx = tensor_ct(&t, N * C, 2, 1), loss = scalar(&t, 1);
            BOTH(t, i) t.d[i].op->koleo(&t.d[i], loss.p[i], dx.p[i], x.p[i], rows[s].w, N, C);
            twin_compare(&t, "loss", &loss, 1e-10);
            twin_compare(&t, "dx", &dx, twin_rounding(&t));
            twin_close(&t);
        }
}

/* Rows 2 and 9 are the same: no direction between them, and row 0, near to both, is pushed off the first; rows 3 and
 * 19, of one warp, likewise with row 1. */
static void koleo_of_twins(void **state)
{
    (void)state;
    enum { N = 21, C = 24 };
    float v[N][C];
    rng g = rng_at(5, 0, 0, 0);
    for (size_t i = 0; i < N; i++)
        for (size_t k = 0; k < C; k++) v[i][k] = rng_normal(&g);
    memcpy(v[9], v[2], sizeof *v);
    memcpy(v[19], v[3], sizeof *v);
    for (size_t k = 0; k < C; k++) v[0][k] = v[2][k] * (k ? 1 : 2), v[1][k] = v[3][k] * (k ? 1 : 2);
    for (size_t c = 0; c < 2; c++) {
        for (size_t i = 0; i < N; i++)
            for (size_t k = 0; k < C; k++) v[i][k] = op_bf16_to_f32(op_f32_to_bf16(v[i][k]));
        twin t = twin_open(types[c]);
        tensor x = tensor_of(&t, TENSOR_CT, v, N * C), dx = tensor_ct(&t, N * C, 2, 1), loss = scalar(&t, 0);
        BOTH(t, i) t.d[i].op->koleo(&t.d[i], loss.p[i], dx.p[i], x.p[i], 0.1f, N, C);
        twin_compare(&t, "loss", &loss, 1e-11);
        twin_compare(&t, "dx", &dx, twin_rounding(&t));
        twin_close(&t);
    }
}

/* Targets hard or soft; a third of the weights 0; logits at which exp overflows. */
static void labels(void **state)
{
    (void)state;
    static const struct {
        size_t N, K;
        float scale;
        bool soft;
    } rows[] = {{0, 3, 1, false},  {1, 1, 1, true},    {1, 2, 1, false},    {5, 7, 2, true},
                {70, 5, 2, false}, {70, 257, 3, true}, {9, 33, 1000, false}};
    for (size_t s = 0; s < sizeof rows / sizeof *rows; s++) {
        size_t N = rows[s].N, K = rows[s].K, n = N * K;
        float *target = malloc((n + 1) * sizeof *target), *weight = malloc((n + 1) * sizeof *weight);
        assert_non_null(target);
        assert_non_null(weight);
        rng g = rng_at(3, 0, s, 0);
        for (size_t i = 0; i < n; i++) {
            float v = fabsf(rng_normal(&g)), c = fabsf(rng_normal(&g));
            target[i] = rows[s].soft ? fminf(v, 1) : v > 0.7f;
            weight[i] = c < 0.4f ? 0 : c;
        }
        twin t = twin_open(COMPUTE_BF16); /* all of it is fp32 */
        printf("  (%zu,%zu)\n", N, K);
        tensor z = tensor_f32(&t, n, 1, rows[s].scale), y = tensor_of(&t, TENSOR_F32, target, n);
        tensor c = tensor_of(&t, TENSOR_F32, weight, n), soft = tensor_f32(&t, n, 2, 1), sig = tensor_f32(&t, n, 3, 1);
        tensor soft_loss = scalar(&t, 1), sig_loss = scalar(&t, 2);
        BOTH(t, i)
        {
            device *d = &t.d[i];
            d->op->softmax_ce(d, soft_loss.p[i], soft.p[i], z.p[i], y.p[i], 0.5f, N, K);
            d->op->sigmoid_ce(d, sig_loss.p[i], sig.p[i], z.p[i], y.p[i], c.p[i], 0.25f, N, K);
        }
        twin_compare(&t, "softmax_ce", &soft_loss, 1e-11);
        if (K > 1) twin_compare(&t, "softmax_ce: gradient", &soft, 1e-11); /* else it is nothing but rounding */
        twin_compare(&t, "sigmoid_ce", &sig_loss, 1e-11);
        twin_compare(&t, "sigmoid_ce: gradient", &sig, 1e-11);
        twin_close(&t);
        free(target);
        free(weight);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lengths),        cmocka_unit_test(teacher_softmax), cmocka_unit_test(sinkhorn),
        cmocka_unit_test(sinkhorn_far),   cmocka_unit_test(soft_ce),         cmocka_unit_test(koleo),
        cmocka_unit_test(koleo_of_twins), cmocka_unit_test(labels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
