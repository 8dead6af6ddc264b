/* LayerNorm, residuals, biases and column sums on the CUDA back end against the CPU's. */
#include "tests/cuda_host/twin.h"

typedef struct {
    size_t N, C, skip; /* skip: values in front of all matrices, by which 16-byte alignment is lost */
} shape;

/* Where there is one value, its rounding may be the worst. */
static double rounding(const twin *t)
{
    return 2 * twin_rounding(t);
}

static dv *at(const twin *t, const tensor *x, int i, size_t skip)
{
    return dv_at(x->p[i], skip * tensor_value_bytes(&t->d[i], x->kind));
}

static void each_shape(const shape *s, size_t n, void (*run)(twin *t, const shape *s))
{
    static const compute_type types[] = {COMPUTE_F32, COMPUTE_BF16};
    for (size_t c = 0; c < 2; c++) {
        twin t = twin_open(types[c]);
        for (size_t k = 0; k < n; k++) {
            printf("%s, N %zu, C %zu, from %zu on\n", types[c] == COMPUTE_F32 ? "fp32" : "bf16", s[k].N, s[k].C,
                   s[k].skip);
            run(&t, &s[k]);
        }
        twin_close(&t);
    }
}

/* ct, of mean 8 and deviation 1: a variance from sums of squares would not pass. */
static tensor off_centre(twin *t, size_t n)
{
    tensor r;
    float *x = malloc((n + 1) * sizeof *x);
    assert_non_null(x);
    rng g = rng_at(11, 0, 0, 0);
    for (size_t i = 0; i < n; i++) x[i] = op_bf16_to_f32(op_f32_to_bf16(8 + rng_normal(&g)));
    r = tensor_of(t, TENSOR_CT, x, n);
    free(x);
    return r;
}

static void same_bits(twin *t, const tensor *a, const tensor *b, size_t skip)
{
    float *x = tensor_values(t, a, CUDA), *y = tensor_values(t, b, CUDA);
    assert_memory_equal(x + skip, y + skip, (a->n - skip) * sizeof *x);
    free(x);
    free(y);
}

static void norms(twin *t, const shape *s)
{
    size_t N = s->N, C = s->C, skip = s->skip, n = skip + N * C;
    double most = rounding(t);
    tensor x = off_centre(t, n), y = tensor_ct(t, n, 2, 1), again = tensor_ct(t, n, 3, 1);
    tensor mean = tensor_f32(t, N, 4, 1), rstd = tensor_f32(t, N, 5, 1);
    tensor gamma = tensor_f32(t, skip + C, 6, 1), beta = tensor_f32(t, skip + C, 7, 1);
    tensor dy = tensor_ct(t, n, 8, 1), dx = tensor_ct(t, n, 9, 1);
    tensor dgamma = tensor_f32(t, skip + C, 10, 1), dbeta = tensor_f32(t, skip + C, 11, 1);
    tensor ls = tensor_f32(t, skip + C, 12, 1), branch = tensor_ct(t, n, 13, 1), apart = tensor_ct(t, n, 14, 1);
    for (int stats = 1; stats >= 0; stats--) { /* not wanted: they stay */
        BOTH(t, i)
        {
            device *d = &t->d[i];
            d->op->norm_fwd(d, at(t, &y, i, skip), stats ? mean.p[i] : NULL, stats ? rstd.p[i] : NULL,
                            at(t, &x, i, skip), at(t, &gamma, i, skip), at(t, &beta, i, skip), 1e-6f, N, C);
        }
        twin_compare(t, "norm_fwd y", &y, most);
        twin_compare(t, "norm_fwd mean", &mean, 1e-12);
        twin_compare(t, "norm_fwd rstd", &rstd, 1e-10);
    }
    BOTH(t, i)
    {
        device *d = &t->d[i];
        d->op->norm_again(d, at(t, &again, i, skip), at(t, &x, i, skip), mean.p[i], rstd.p[i], at(t, &gamma, i, skip),
                          at(t, &beta, i, skip), N, C);
    }
    twin_compare(t, "norm_again", &again, most);
    for (int k = 0; k < 5; k++) {
        static const struct {
            bool accumulate, dgamma, dbeta, branch, scaled;
        } with[] = {{false, false, false, false, false},
                    {true, false, false, true, true},
                    {true, true, true, true, true},
                    {false, true, false, true, false},
                    {false, false, true, false, false}};
        BOTH(t, i)
        {
            device *d = &t->d[i];
            d->op->norm_bwd(d, at(t, &dx, i, skip), with[k].accumulate, with[k].dgamma ? at(t, &dgamma, i, skip) : NULL,
                            with[k].dbeta ? at(t, &dbeta, i, skip) : NULL, at(t, &dy, i, skip), at(t, &x, i, skip),
                            mean.p[i], rstd.p[i], at(t, &gamma, i, skip),
                            with[k].branch ? at(t, &branch, i, skip) : NULL,
                            with[k].scaled ? at(t, &ls, i, skip) : NULL, N, C);
        }
        printf("  %s%s%s%s\n", with[k].accumulate ? "accumulate" : "assign", with[k].dgamma ? ", dgamma" : "",
               with[k].dbeta ? ", dbeta" : "", with[k].branch ? ", branch" : "");
        twin_compare(t, "norm_bwd dx", &dx, most);
        if (!with[k].branch) continue;
        twin_compare(t, "norm_bwd dbranch", &branch, most);
        /* Of dx as it is stored, bit for bit what residual_bwd makes of it. */
        device *d = &t->d[CUDA];
        d->op->residual_bwd(d, at(t, &apart, CUDA, skip), at(t, &dx, CUDA, skip),
                            with[k].scaled ? at(t, &ls, CUDA, skip) : NULL, N, C);
        same_bits(t, &apart, &branch, skip);
    }
    twin_compare(t, "norm_bwd dgamma", &dgamma, 1e-10);
    twin_compare(t, "norm_bwd dbeta", &dbeta, 1e-11);
}

/* Teams of one warp, of a block, single values; ragged ends in each; chunks of rows. */
static void norm(void **state)
{
    (void)state;
    static const shape shapes[] = {{0, 8, 0},    {1, 3, 0},    {3, 33, 0},   {9, 200, 0},  {13, 384, 0}, {5, 776, 0},
                                   {3, 1024, 0}, {5, 1536, 0}, {2, 8192, 0}, {100, 16, 0}, {21, 24, 1},  {3, 2056, 0}};
    each_shape(shapes, sizeof shapes / sizeof *shapes, norms);
}

static void no_row_is_too_long(void **state)
{
    (void)state;
    twin t = twin_open(COMPUTE_BF16);
    device *d = &t.d[CUDA];
    tensor x = tensor_ct(&t, 8200, 1, 1), v = tensor_f32(&t, 8200, 2, 1);
    op_cuda_norm_fwd(d, x.p[CUDA], NULL, NULL, x.p[CUDA], v.p[CUDA], v.p[CUDA], 1e-6f, 1, 8200);
    err e = {0};
    assert_int_equal(device_sync(d, &e), ERR_INTERNAL);
    printf("%s\n", e.msg);
    d->sticky = (err){0};
    twin_close(&t);
}

/* What the CPU adds up in its fp32: rows of x += bias. */
static void add_rows(dv *x, const dv *bias, size_t N, size_t C)
{
    for (size_t i = 0; i < N * C; i++) ((float *)x)[i] += ((const float *)bias)[i % C];
}

/* A sum and what rounding leaves of it, together against the CPU's sum, which is fp32 and leaves nothing. */
static void rests(twin *t, const shape *s, const tensor *x, const tensor *branch, const tensor *ls)
{
    size_t N = s->N, C = s->C, skip = s->skip, n = skip + N * C;
    tensor out = tensor_ct(t, n, 30, 1), rest = tensor_ct(t, n, 31, 2e-3f);
    BOTH(t, i)
    t->d[i].op->residual_fwd(&t->d[i], at(t, &out, i, skip), at(t, x, i, skip), at(t, branch, i, skip),
                             ls ? at(t, ls, i, skip) : NULL, at(t, &rest, i, skip), N, C);
    float *a[TWINS], *b[TWINS];
    BOTH(t, i)
    {
        a[i] = tensor_values(t, &out, i);
        b[i] = tensor_values(t, &rest, i);
    }
    for (size_t i = 0; i < n; i++) {
        double cpu = (double)a[CPU][i] + b[CPU][i], cuda = (double)a[CUDA][i] + b[CUDA][i];
        if (!(fabs(cpu - cuda) <= 2e-5 * (1 + fabs(cpu)))) fail_msg("sum and rest, value %zu: %g and %g", i, cpu, cuda);
        if (!(fabs(cpu - a[CUDA][i]) <= 0.004 * (1 + fabs(cpu)))) fail_msg("sum, value %zu", i);
    }
    BOTH(t, i)
    {
        free(a[i]);
        free(b[i]);
    }
}

/* With what rounding leaves, too: the sum bit for bit, its norm, whose terms are added up by other teams, nearly. */
static void rest_then_norm(twin *t, const shape *s, const tensor *branch, const dv *bias, const dv *ls,
                           const op_norm *norm)
{
    device *d = &t->d[CUDA];
    size_t N = s->N, C = s->C, skip = s->skip, n = skip + N * C;
    tensor sum[2], rest[2], y[2];
    for (int k = 0; k < 2; k++) {
        sum[k] = tensor_ct(t, n, 40, 1), rest[k] = tensor_ct(t, n, 41, 2e-3f), y[k] = tensor_ct(t, n, 42, 1);
        op_norm then = *norm;
        then.y = at(t, &y[k], CUDA, skip);
        op_cuda_residual_bias_fwd(d, at(t, &sum[k], CUDA, skip), at(t, &sum[k], CUDA, skip), at(t, branch, CUDA, skip),
                                  bias, ls, at(t, &rest[k], CUDA, skip), k ? &then : NULL, N, C);
        if (!k)
            d->op->norm_fwd(d, then.y, NULL, NULL, at(t, &sum[k], CUDA, skip), then.gamma, then.beta, then.eps, N, C);
    }
    same_bits(t, &sum[0], &sum[1], skip);
    same_bits(t, &rest[0], &rest[1], skip);
    float *two_passes = tensor_values(t, &y[0], CUDA);
    memcpy(y[1].p[CPU], two_passes, n * sizeof *two_passes);
    free(two_passes);
    twin_compare(t, "residual_norm_fwd y with a rest", &y[1], rounding(t));
}

static void residuals(twin *t, const shape *s)
{
    size_t N = s->N, C = s->C, skip = s->skip, n = skip + N * C;
    double most = rounding(t);
    tensor x = tensor_ct(t, n, 1, 1), dout = tensor_ct(t, n, 3, 1);
    tensor gamma = tensor_f32(t, skip + C, 4, 1), beta = tensor_f32(t, skip + C, 5, 1);
    tensor ls = tensor_f32(t, skip + C, 6, 1), bias = tensor_f32(t, skip + C, 7, 1);
    tensor mean = tensor_f32(t, N, 8, 1), rstd = tensor_f32(t, N, 9, 1);
    for (int k = 0; k < 4; k++) {
        bool scaled = k & 1, biased = k & 2;
        tensor branch = tensor_ct(t, n, 20, 1), out = tensor_ct(t, n, 21, 1), plain = tensor_ct(t, n, 22, 1);
        tensor place = tensor_ct(t, n, 1, 1), y = tensor_ct(t, n, 23, 1);
        printf("  %s%s\n", scaled ? "ls " : "", biased ? "bias" : "");
        if (!biased) BOTH(t, i)
            {
                device *d = &t->d[i];
                d->op->residual_fwd(d, at(t, &plain, i, skip), at(t, &x, i, skip), at(t, &branch, i, skip),
                                    scaled ? at(t, &ls, i, skip) : NULL, NULL, N, C);
                d->op->residual_bwd(d, at(t, &out, i, skip), at(t, &dout, i, skip), scaled ? at(t, &ls, i, skip) : NULL,
                                    N, C);
            }
        if (!biased) twin_compare(t, "residual_fwd", &plain, most);
        if (!biased) rests(t, s, &x, &branch, scaled ? &ls : NULL);
        if (!biased) twin_compare(t, "residual_bwd dbranch", &out, most);

        device *cpu = &t->d[CPU], *d = &t->d[CUDA];
        dv *scale[TWINS], *add = biased ? at(t, &bias, CUDA, skip) : NULL;
        BOTH(t, i) scale[i] = scaled ? at(t, &ls, i, skip) : NULL;
        dv *place_at = at(t, &place, CUDA, skip), *out_at = at(t, &out, CUDA, skip), *y_at = at(t, &y, CUDA, skip);
        if (biased) add_rows(at(t, &branch, CPU, skip), at(t, &bias, CPU, skip), N, C);
        cpu->op->residual_fwd(cpu, at(t, &place, CPU, skip), at(t, &x, CPU, skip), at(t, &branch, CPU, skip),
                              scale[CPU], NULL, N, C);
        op_cuda_residual_bias_fwd(d, place_at, place_at, at(t, &branch, CUDA, skip), add, scale[CUDA], NULL, NULL, N,
                                  C);
        twin_compare(t, "residual_bias_fwd in place", &place, most);

        /* In one pass: of the sum as it is stored, bit for bit what two ops make of it. */
        cpu->op->copy(cpu, out.p[CPU], place.p[CPU], n * sizeof(float));
        d->op->copy(d, out.p[CUDA], x.p[CUDA], n * d->ct_bytes);
        cpu->op->norm_fwd(cpu, at(t, &y, CPU, skip), mean.p[CPU], rstd.p[CPU], at(t, &out, CPU, skip),
                          at(t, &gamma, CPU, skip), at(t, &beta, CPU, skip), 1e-6f, N, C);
        const op_norm then = {y_at, mean.p[CUDA], rstd.p[CUDA], at(t, &gamma, CUDA, skip), at(t, &beta, CUDA, skip),
                              1e-6f};
        op_cuda_residual_bias_fwd(d, out_at, out_at, at(t, &branch, CUDA, skip), add, scale[CUDA], NULL, &then, N, C);
        twin_compare(t, "residual_norm_fwd out", &out, most);
        twin_compare(t, "residual_norm_fwd y", &y, 2 * most);
        twin_compare(t, "residual_norm_fwd rstd", &rstd, most);
        op_cuda_norm_fwd(d, at(t, &plain, CUDA, skip), NULL, NULL, place_at, at(t, &gamma, CUDA, skip),
                         at(t, &beta, CUDA, skip), 1e-6f, N, C);
        same_bits(t, &plain, &y, skip);
        rest_then_norm(t, s, &branch, add, scale[CUDA], &then);
    }
}

static void residual(void **state)
{
    (void)state;
    static const shape shapes[] = {{0, 8, 0},   {1, 1, 0},    {5, 33, 0},  {27, 264, 0},
                                   {3, 776, 0}, {2, 2056, 0}, {200, 8, 0}, {11, 24, 1}};
    each_shape(shapes, sizeof shapes / sizeof *shapes, residuals);
}

static void columns(twin *t, const shape *s)
{
    size_t N = s->N, O = s->C, skip = s->skip;
    tensor dy = tensor_ct(t, skip + N * O, 1, 1), bias = tensor_f32(t, skip + O, 2, 1);
    for (int k = 0; k < 6; k++) {
        bool picked = k & 1, gathered = k >= 2, summed = k < 4;
        size_t R = picked ? O / 3 + 1 : O;
        int32_t *index = malloc(R * sizeof *index);
        assert_non_null(index);
        for (size_t r = 0; r < R; r++) index[r] = (int32_t)(r * O / R);
        tensor which = tensor_of(t, TENSOR_F32, index, R);
        tensor db = tensor_f32(t, skip + R, 3, 1), to = tensor_ct(t, N * R, 4, 1);
        printf("  %s%s%s\n", picked ? "rows" : "all", gathered ? ", gathered" : "", summed ? ", summed" : "");
        t->d[CPU].op->linear_dw(&t->d[CPU], NULL, summed ? at(t, &db, CPU, skip) : NULL, at(t, &dy, CPU, skip), NULL,
                                picked ? which.p[CPU] : NULL, R, N, O, 1);
        op_cuda_column_sums(&t->d[CUDA], summed ? at(t, &db, CUDA, skip) : NULL, gathered ? to.p[CUDA] : NULL,
                            at(t, &dy, CUDA, skip), picked ? which.p[CUDA] : NULL, R, N, O);
        if (gathered)
            for (size_t i = 0; i < N * R; i++)
                ((float *)to.p[CPU])[i] = ((float *)at(t, &dy, CPU, skip))[i / R * O + (size_t)index[i % R]];
        twin_compare(t, "column_sums db", &db, 1e-11);
        twin_compare(t, "column_sums columns", &to, 0);
        free(index);
    }
    add_rows(at(t, &dy, CPU, skip), at(t, &bias, CPU, skip), N, O);
    op_cuda_add_bias(&t->d[CUDA], at(t, &dy, CUDA, skip), at(t, &bias, CUDA, skip), N, O);
    twin_compare(t, "add_bias", &dy, rounding(t));
}

static void column_sums(void **state)
{
    (void)state;
    static const shape shapes[] = {{0, 8, 0}, {1, 1, 0}, {7, 33, 0}, {200, 23, 0}, {70, 528, 0}, {9, 24, 1}};
    each_shape(shapes, sizeof shapes / sizeof *shapes, columns);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(norm), cmocka_unit_test(no_row_is_too_long),
                                       cmocka_unit_test(residual), cmocka_unit_test(column_sums)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
