/* The transformer's row-wise ops against plain loops in double precision, gradients against finite differences of them,
 * at odd shapes, in both compute types. */
#include "tests/model/op_case.h"

static const struct {
    size_t N, C;
} shapes[] = {{1, 33}, {7, 33}, {197, 192}, {37, 1}, {3, 64}, {50, 65}, {2, 1000}, {257, 16}};

static void patchify(void **state)
{
    (void)state;
    static const struct {
        size_t B, height, width, p;
    } rows[] = {{1, 4, 4, 4}, {2, 12, 20, 4}, {3, 14, 28, 14}, {1, 6, 3, 3}, {5, 7, 7, 1}};
    device d;
    CASES(d) for (size_t r = 0; r < COUNT(rows); r++)
    {
        size_t B = rows[r].B, h = rows[r].height, w = rows[r].width, p = rows[r].p, gh = h / p, gw = w / p;
        start_case(&d, "patchify %zu %zux%zu by %zu", B, h, w, p);
        values pixels = f32_noise(&d, B * 3 * h * w, 1, 0), out = ct_full(&d, pixels.n, 9);
        double *want = doubles(out.n);
        for (size_t i = 0; i < out.n; i++) {
            size_t x = i % p, y = i / p % p, c = i / (p * p) % 3, patch = i / (3 * p * p);
            size_t px = patch % gw, py = patch / gw % gh, b = patch / (gw * gh);
            want[i] = pixels.v[((b * 3 + c) * h + py * p + y) * w + px * p + x];
        }
        d.op->patchify(&d, out.p, pixels.p, B, h, w, p);
        expect(&d, "out", &out, want);
        end_case(&d);
    }
}

static void embed(void **state)
{
    (void)state;
    static const struct {
        size_t B, P, R, S, C;
        bool cls, masked;
    } rows[] = {{1, 1, 0, 0, 33, true, false}, {3, 37, 4, 0, 48, true, true}, {2, 196, 0, 3, 64, true, true},
                {2, 9, 0, 0, 5, false, false}, {2, 9, 2, 1, 5, false, true},  {1, 6, 1, 2, 8, true, true}};
    device d;
    CASES(d) for (size_t r = 0; r < COUNT(rows); r++)
    {
        size_t B = rows[r].B, P = rows[r].P, R = rows[r].R, S = rows[r].S, C = rows[r].C, lead = rows[r].cls;
        size_t T = lead + R + S + P;
        start_case(&d, "embed B%zu P%zu R%zu S%zu C%zu%s%s", B, P, R, S, C, lead ? " cls" : "",
                   rows[r].masked ? " mask" : "");
        values patches = ct_noise(&d, B * P * C, 1), cls = f32_noise(&d, C, 1, 0), reg = f32_noise(&d, R * C, 1, 0);
        values pos = f32_noise(&d, (1 + P) * C, 1, 0), token = f32_noise(&d, C, 1, 0), x = ct_full(&d, B * T * C, 9);
        values dx = ct_noise(&d, x.n, 1), dpatches = ct_full(&d, patches.n, 9), dcls = f32_full(&d, C, 3);
        values dreg = f32_full(&d, R * C, 3), dpos = f32_full(&d, pos.n, 3), dtoken = f32_full(&d, C, 3);
        uint8_t mask[1024] = {0};
        assert_true(B * P <= sizeof mask);
        for (size_t i = 0; i < B * P; i++) mask[i] = rows[r].masked && i % 3 == 1;
        dv *m = NULL;
        err e = {0};
        ASSERT_OK(d.op->alloc(&d, sizeof mask, &m, &e));
        d.op->upload(&d, m, mask, sizeof mask);
        double *want = doubles(x.n), *w_patches = doubles(patches.n), *w_cls = doubles(C), *w_reg = doubles(R * C);
        double *w_pos = doubles(pos.n), *w_token = doubles(C);
        for (size_t c = 0; c < C; c++) w_cls[c] = w_token[c] = 3;
        for (size_t i = 0; i < R * C; i++) w_reg[i] = 3;
        for (size_t i = 0; i < pos.n; i++) w_pos[i] = 3;
        for (size_t i = 0; i < x.n; i++) {
            size_t c = i % C, t = i / C % T, b = i / (C * T), k = t - lead - R - S;
            double g = dx.v[i];
            if (t < lead) {
                want[i] = cls.v[c] + pos.v[c];
                w_cls[c] += g;
                w_pos[c] += g;
            } else if (t < lead + R) {
                want[i] = reg.v[(t - lead) * C + c];
                w_reg[(t - lead) * C + c] += g;
            } else if (t < lead + R + S) {
                want[i] = 9; /* left as it was */
            } else {
                bool hidden = mask[b * P + k];
                want[i] = (hidden ? token.v[c] : patches.v[(b * P + k) * C + c]) + pos.v[(1 + k) * C + c];
                w_pos[(1 + k) * C + c] += g;
                w_patches[(b * P + k) * C + c] = hidden ? 0 : g;
                if (hidden) w_token[c] += g;
            }
        }
        const dv *used = rows[r].masked ? m : NULL;
        d.op->embed_fwd(&d, x.p, patches.p, lead ? cls.p : NULL, R ? reg.p : NULL, pos.p, token.p, used, B, P, R, S, C);
        expect(&d, "x", &x, want);
        d.op->embed_bwd(&d, dpatches.p, lead ? dcls.p : NULL, R ? dreg.p : NULL, dpos.p, dtoken.p, dx.p, used, lead, B,
                        P, R, S, C);
        expect(&d, "dpatches", &dpatches, w_patches);
        expect(&d, "dcls", &dcls, w_cls);
        expect(&d, "dreg", &dreg, w_reg);
        expect(&d, "dpos", &dpos, w_pos);
        expect(&d, "dtoken", &dtoken, w_token);
        /* What is not wanted is left out. */
        values alone = ct_full(&d, B * P * C, 9);
        d.op->embed_bwd(&d, alone.p, NULL, NULL, NULL, NULL, dx.p, used, lead, B, P, R, S, C);
        expect(&d, "dpatches alone", &alone, w_patches);
        d.op->free(&d, m);
        end_case(&d);
    }
}

/* --- prompts */

static void prompt(void **state)
{
    (void)state;
    static const struct {
        size_t B, T, first, n, C;
    } rows[] = {{1, 3, 0, 3, 5}, {3, 9, 1, 4, 33}, {2, 40, 5, 1, 64}};
    device d;
    CASES(d) for (size_t r = 0; r < COUNT(rows); r++)
    {
        size_t B = rows[r].B, T = rows[r].T, first = rows[r].first, n = rows[r].n, C = rows[r].C;
        start_case(&d, "prompt B%zu T%zu n%zu C%zu", B, T, n, C);
        values x = ct_full(&d, B * T * C, 9), dx = ct_noise(&d, B * T * C, 1);
        values p = f32_noise(&d, n * C, 1, 0), dp = f32_full(&d, n * C, 3);
        double *want = doubles(x.n), *w_dx = doubles(x.n), *w_dp = doubles(n * C);
        for (size_t i = 0; i < n * C; i++) w_dp[i] = 3;
        for (size_t i = 0; i < x.n; i++) {
            size_t c = i % C, t = i / C % T;
            bool in = t >= first && t < first + n;
            want[i] = in ? p.v[(t - first) * C + c] : 9;
            w_dx[i] = in ? 0 : dx.v[i];
            if (in) w_dp[(t - first) * C + c] += dx.v[i];
        }
        d.op->prompt_fwd(&d, x.p, p.p, B, T, first, n, C);
        expect(&d, "x", &x, want);
        d.op->prompt_bwd(&d, dx.p, dp.p, B, T, first, n, C);
        expect(&d, "dprompts", &dp, w_dp);
        expect(&d, "dx", &dx, w_dx);
        d.op->prompt_bwd(&d, dx.p, NULL, B, T, first, n, C);
        expect(&d, "dx again", &dx, w_dx);
        end_case(&d);
    }
}

/* --- LayerNorm */

static void naive_norm(double *y, double *mean, double *rstd, const double *x, const double *gamma, const double *beta,
                       double eps, size_t C)
{
    double m = 0, v = 0;
    for (size_t c = 0; c < C; c++) m += x[c] / (double)C;
    for (size_t c = 0; c < C; c++) v += (x[c] - m) * (x[c] - m) / (double)C;
    double r = 1 / sqrt(v + eps);
    for (size_t c = 0; c < C; c++) y[c] = (x[c] - m) * r * gamma[c] + beta[c];
    *mean = m;
    *rstd = r;
}

/* d/dx of dy . norm(x), by central differences; x is left as it was. */
static void norm_differences(double *dx, const double *dy, double *x, const double *gamma, const double *beta,
                             double eps, size_t C, double *y)
{
    double mean, rstd;
    for (size_t i = 0; i < C; i++) {
        double kept = x[i], h = 1e-5, sum = 0;
        for (int side = -1; side <= 1; side += 2) {
            x[i] = kept + side * h;
            naive_norm(y, &mean, &rstd, x, gamma, beta, eps, C);
            for (size_t c = 0; c < C; c++) sum += side * dy[c] * y[c];
        }
        x[i] = kept;
        dx[i] = sum / (2 * h);
    }
}

static void norm(void **state)
{
    (void)state;
    const double eps = (double)1e-6f;
    device d;
    CASES(d) for (size_t r = 0; r < COUNT(shapes); r++)
    {
        size_t N = shapes[r].N, C = shapes[r].C;
        start_case(&d, "norm N%zu C%zu", N, C);
        values x = ct_noise(&d, N * C, 2), gamma = f32_noise(&d, C, 0.3, 1), beta = f32_noise(&d, C, 0.3, 0);
        values y = ct_full(&d, N * C, 9), mean = f32_full(&d, N, 9), rstd = f32_full(&d, N, 9);
        values dy = ct_noise(&d, N * C, 1), dx = ct_noise(&d, N * C, 1), again = ct_full(&d, N * C, 9);
        values dgamma = f32_full(&d, C, 2), dbeta = f32_full(&d, C, 2), only = ct_full(&d, N * C, 9);
        values branch = ct_full(&d, N * C, 9), apart = ct_full(&d, N * C, 8);
        double *want = doubles(N * C), *w_mean = doubles(N), *w_rstd = doubles(N), *w_dx = doubles(N * C);
        double *w_sum = doubles(N * C), *w_gamma = doubles(C), *w_beta = doubles(C), *scratch = doubles(C);
        for (size_t c = 0; c < C; c++) w_gamma[c] = w_beta[c] = 2;
        for (size_t i = 0; i < N; i++) {
            naive_norm(want + i * C, w_mean + i, w_rstd + i, x.v + i * C, gamma.v, beta.v, eps, C);
            for (size_t c = 0; c < C; c++) {
                double g = dy.v[i * C + c];
                w_beta[c] += g;
                w_gamma[c] += g * (x.v[i * C + c] - w_mean[i]) * w_rstd[i];
            }
            norm_differences(w_dx + i * C, dy.v + i * C, x.v + i * C, gamma.v, beta.v, eps, C, scratch);
            for (size_t c = 0; c < C; c++) w_sum[i * C + c] = w_dx[i * C + c] + dx.v[i * C + c];
        }
        d.op->norm_fwd(&d, y.p, mean.p, rstd.p, x.p, gamma.p, beta.p, (float)eps, N, C);
        expect(&d, "y", &y, want);
        expect(&d, "mean", &mean, w_mean);
        expect(&d, "rstd", &rstd, w_rstd);
        d.op->norm_again(&d, again.p, x.p, mean.p, rstd.p, gamma.p, beta.p, N, C);
        expect(&d, "again", &again, want);
        d.op->norm_fwd(&d, y.p, NULL, NULL, x.p, gamma.p, beta.p, (float)eps, N, C);
        expect(&d, "inference", &y, want);
        d.op->norm_bwd(&d, dx.p, true, dgamma.p, dbeta.p, dy.p, x.p, mean.p, rstd.p, gamma.p, branch.p, beta.p, N, C);
        d.op->residual_bwd(&d, apart.p, dx.p, beta.p, N, C); /* a LayerScale of these numbers */
        same_bits(&d, &apart, &branch);
        /* one channel: x - mean is rounding, and rstd is 1000 */
        expect_within(&d, "dx +=", &dx, w_sum, d.ct == COMPUTE_BF16 ? 8e-6 : C > 1 ? 1e-10 : 1e-7);
        expect_within(&d, "dgamma", &dgamma, w_gamma, 1e-10);
        expect(&d, "dbeta", &dbeta, w_beta);
        d.op->norm_bwd(&d, only.p, false, NULL, NULL, dy.p, x.p, mean.p, rstd.p, gamma.p, NULL, NULL, N, C);
        if (C > 1) expect_within(&d, "dx =", &only, w_dx, d.ct == COMPUTE_BF16 ? 8e-6 : 1e-10);
        end_case(&d);
    }
}

/* A row far from zero: the variance must not be the difference of two large numbers. */
static void norm_far_from_zero(void **state)
{
    (void)state;
    enum { C = 65 };
    device d;
    assert_true(start_device(&d, COMPUTE_F32));
    start_case(&d, "norm of 1000 +- 1");
    values x = f32_noise(&d, C, 1, 1000), gamma = f32_full(&d, C, 1), beta = f32_full(&d, C, 0), y = f32_full(&d, C, 9);
    double want[C], mean, rstd;
    naive_norm(want, &mean, &rstd, x.v, gamma.v, beta.v, (double)1e-6f, C);
    d.op->norm_fwd(&d, y.p, NULL, NULL, x.p, gamma.p, beta.p, 1e-6f, 1, C);
    expect_within(&d, "y", &y, want, 1e-7);
    end_case(&d);
    device_close(&d);
}

/* --- residuals, GELU, tokens */

static void residual(void **state)
{
    (void)state;
    device d;
    CASES(d) for (size_t r = 0; r < 2 * COUNT(shapes); r++)
    {
        size_t N = shapes[r / 2].N, C = shapes[r / 2].C;
        bool scaled = r % 2;
        start_case(&d, "residual N%zu C%zu%s", N, C, scaled ? " ls" : "");
        values x = ct_noise(&d, N * C, 1), branch = ct_noise(&d, N * C, 1), ls = f32_noise(&d, C, 0.5, 0.5);
        values out = ct_full(&d, N * C, 9), dout = ct_noise(&d, N * C, 1), dbranch = ct_full(&d, N * C, 9);
        double *want = doubles(N * C), *w_branch = doubles(N * C);
        for (size_t i = 0; i < N * C; i++) {
            double s = scaled ? ls.v[i % C] : 1;
            want[i] = x.v[i] + s * branch.v[i];
            w_branch[i] = s * dout.v[i];
        }
        d.op->residual_fwd(&d, out.p, x.p, branch.p, scaled ? ls.p : NULL, NULL, N, C);
        expect(&d, "out", &out, want);
        d.op->residual_fwd(&d, x.p, x.p, branch.p, scaled ? ls.p : NULL, NULL, N, C);
        expect(&d, "in place", &x, want);
        values sum = ct_noise(&d, N * C, 1), rest = ct_noise(&d, N * C, 2e-3);
        for (size_t i = 0; i < N * C; i++) want[i] = sum.v[i] + rest.v[i] + (scaled ? ls.v[i % C] : 1) * branch.v[i];
        d.op->residual_fwd(&d, sum.p, sum.p, branch.p, scaled ? ls.p : NULL, rest.p, N, C);
        expect(&d, "with a rest", &sum, want);
        expect_sum(&d, "and its rest", &sum, &rest, want, 1e-10);
        d.op->residual_bwd(&d, dbranch.p, dout.p, scaled ? ls.p : NULL, N, C);
        expect(&d, "dbranch", &dbranch, w_branch);
        end_case(&d);
    }
}

/* Against what it stands for, sum dout * branch with branch = W in + b, from what W and b get for it. */
static void scale_grad(void **state)
{
    (void)state;
    device d;
    CASES(d) for (size_t r = 0; r < 2 * COUNT(shapes); r++)
    {
        size_t N = 5, R = shapes[r / 2].C, I = r % 2 ? 5000 : 7;
        bool biased = r % 2;
        start_case(&d, "scale_grad R%zu I%zu%s", R, I, biased ? " bias" : "");
        values w = ct_noise(&d, R * I, 0.1), ls = f32_noise(&d, R, 0.5, 1), bias = f32_noise(&d, R, 1, 0);
        values dw = f32_noise(&d, R * I, 1, 0), db = f32_noise(&d, R, 1, 0), dls = f32_full(&d, R, 9);
        values in = f32_noise(&d, N * I, 1, 0), dout = f32_noise(&d, N * R, 1, 0);
        double *want = doubles(R);
        ls.v[R / 2] = 0;
        for (size_t j = 0; j < R; j++) db.v[j] = 0;
        for (size_t i = 0; i < R * I; i++) dw.v[i] = 0;
        for (size_t n = 0; n < N; n++)
            for (size_t j = 0; j < R; j++) {
                double branch = biased ? bias.v[j] : 0, g = dout.v[n * R + j];
                for (size_t i = 0; i < I; i++) {
                    branch += w.v[j * I + i] * in.v[n * I + i];
                    dw.v[j * I + i] += ls.v[j] * g * in.v[n * I + i];
                }
                db.v[j] += ls.v[j] * g;
                if (ls.v[j] != 0) want[j] += g * branch;
            }
        put_values(&d, &ls, ls.v);
        put_values(&d, &dw, dw.v);
        put_values(&d, &db, db.v);
        d.op->scale_grad(&d, dls.p, ls.p, w.p, dw.p, biased ? bias.p : NULL, biased ? db.p : NULL, R, I);
        expect_within(&d, "dls", &dls, want, 1e-5);
        end_case(&d);
    }
}

static double naive_gelu(double x)
{
    return 0.5 * x * erfc(-x * M_SQRT1_2);
}

/* Each value by itself: 1e4 would hide the others. dy: what the derivative is multiplied with. */
static void expect_gelu(const device *d, const char *what, const values *t, const double *want, const double *x,
                        const double *dy)
{
    for (size_t i = 0; i < t->n; i++) {
        double bound = 4e-7 * (1 + fabs(x[i])) * (dy ? fabs(dy[i]) : 1);
        if (d->ct == COMPUTE_BF16) bound += 0.004 * fabs(want[i]);
        if (!(fabs(at(d, t, i) - want[i]) <= bound))
            fail_msg("%s: %s of %g is %g, not %g", case_name, what, x[i], at(d, t, i), want[i]);
    }
}

static void gelu(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 7, 33, 4096, 4097, 20001};
    device d;
    CASES(d) for (size_t r = 0; r < COUNT(sizes); r++)
    {
        size_t n = sizes[r];
        start_case(&d, "gelu %zu", n);
        values x = ct_noise(&d, n, 2), y = ct_full(&d, n, 9), dy = ct_noise(&d, n, 1), dx = ct_full(&d, n, 9);
        double *want = doubles(n), *w_dx = doubles(n), *special = doubles(n);
        static const double far[] = {0, -0.0, 10, -10, 100, -100, 1e4, -1e4, 1e-20, -5.5};
        for (size_t i = 0; i < n; i++) special[i] = i < COUNT(far) && n > 7 ? far[i] : x.v[i];
        put_values(&d, &x, special);
        for (size_t i = 0; i < n; i++) {
            want[i] = naive_gelu(x.v[i]);
            w_dx[i] = dy.v[i] * (naive_gelu(x.v[i] + 1e-5) - naive_gelu(x.v[i] - 1e-5)) / 2e-5;
        }
        d.op->gelu_fwd(&d, y.p, x.p, n);
        expect_gelu(&d, "y", &y, want, x.v, NULL);
        d.op->gelu_bwd(&d, dx.p, dy.p, x.p, n);
        expect_gelu(&d, "dx", &dx, w_dx, x.v, dy.v);
        d.op->gelu_bwd(&d, dy.p, dy.p, x.p, n);
        expect_gelu(&d, "in place", &dy, w_dx, x.v, dy.v);
        end_case(&d);
    }
}

static double naive_swiglu(double x1, double x2)
{
    return x1 / (1 + exp(-x1)) * x2;
}

/* Rows longer than a piece of scratch too. */
static void swiglu(void **state)
{
    (void)state;
    static const struct {
        size_t N, F;
    } rows[] = {{1, 1}, {7, 33}, {197, 40}, {3, 4096}, {2, 8195}};
    const double h = 1e-5;
    device d;
    CASES(d) for (size_t r = 0; r < COUNT(rows); r++)
    {
        size_t N = rows[r].N, F = rows[r].F, n = N * F;
        start_case(&d, "swiglu %zux%zu", N, F);
        values pre = ct_noise(&d, 2 * n, 2), y = ct_full(&d, n, 9);
        values dy = ct_noise(&d, n, 1), dpre = ct_full(&d, 2 * n, 9);
        double *want = doubles(n), *w_dpre = doubles(2 * n);
        for (size_t i = 0; i < n; i++) {
            size_t at1 = 2 * (i / F) * F + i % F, at2 = at1 + F;
            double x1 = pre.v[at1], x2 = pre.v[at2];
            want[i] = naive_swiglu(x1, x2);
            w_dpre[at1] = dy.v[i] * (naive_swiglu(x1 + h, x2) - naive_swiglu(x1 - h, x2)) / (2 * h);
            w_dpre[at2] = dy.v[i] * (naive_swiglu(x1, x2 + h) - naive_swiglu(x1, x2 - h)) / (2 * h);
        }
        d.op->swiglu_fwd(&d, y.p, pre.p, N, F);
        expect(&d, "y", &y, want);
        d.op->swiglu_bwd(&d, dpre.p, dy.p, pre.p, N, F);
        expect(&d, "dpre", &dpre, w_dpre);
        d.op->swiglu_bwd(&d, pre.p, dy.p, pre.p, N, F);
        expect(&d, "in place", &pre, w_dpre);
        end_case(&d);
    }
}

/* Far from zero, where exp overflows, the gate is open or shut: x1 x2 or 0, and nothing else. */
static void swiglu_far_from_zero(void **state)
{
    (void)state;
    static const double far[] = {0, 88, 89, 1000, 1e30, -88, -200, -1e6};
    enum { F = COUNT(far) };
    device d;
    CASES(d)
    {
        start_case(&d, "swiglu of large values");
        values pre = ct_full(&d, 2 * F, 2), y = ct_full(&d, F, 9), dy = ct_full(&d, F, 3), dpre = ct_full(&d, 2 * F, 9);
        double both[2 * F];
        for (size_t i = 0; i < F; i++) {
            both[i] = far[i];
            both[F + i] = 2;
        }
        put_values(&d, &pre, both);
        d.op->swiglu_fwd(&d, y.p, pre.p, 1, F);
        d.op->swiglu_bwd(&d, dpre.p, dy.p, pre.p, 1, F);
        for (size_t i = 0; i < F; i++) {
            double x = pre.v[i], gate = x > 0 ? 1 : x < 0 ? 0 : 0.5, off = d.ct == COMPUTE_BF16 ? 0.005 : 1e-6;
            double got[] = {at(&d, &y, i), at(&d, &dpre, i), at(&d, &dpre, F + i)};
            double want[] = {2 * x * gate, 3 * 2 * gate, 3 * x * gate};
            for (size_t k = 0; k < 3; k++)
                if (!(fabs(got[k] - want[k]) <= off * fabs(want[k]) + 1e-30))
                    fail_msg("%s: at %g value %zu is %g, not %g", case_name, x, k, got[k], want[k]);
        }
        end_case(&d);
    }
}

static void mean_token(void **state)
{
    (void)state;
    static const struct {
        size_t B, T, first, C;
    } rows[] = {{1, 1, 0, 33}, {2, 9, 2, 5}, {3, 196, 4, 64}};
    device d;
    CASES(d) for (size_t r = 0; r < COUNT(rows); r++)
    {
        size_t B = rows[r].B, T = rows[r].T, first = rows[r].first, C = rows[r].C;
        start_case(&d, "mean_token B%zu T%zu from %zu C%zu", B, T, first, C);
        values x = ct_noise(&d, B * T * C, 1), out = ct_full(&d, B * (T + 1) * C, 9);
        values dout = ct_noise(&d, out.n, 1), dx = ct_full(&d, x.n, 9);
        double *want = doubles(out.n), *w_dx = doubles(x.n);
        for (size_t i = 0; i < x.n; i++) {
            size_t c = i % C, t = i / C % T, b = i / (C * T);
            want[(b * (T + 1) + 1 + t) * C + c] = x.v[i];
            w_dx[i] = dout.v[(b * (T + 1) + 1 + t) * C + c];
            if (t < first) continue;
            want[b * (T + 1) * C + c] += x.v[i] / (double)(T - first);
            w_dx[i] += dout.v[b * (T + 1) * C + c] / (double)(T - first);
        }
        d.op->mean_token_fwd(&d, out.p, x.p, B, T, first, C);
        expect(&d, "out", &out, want);
        d.op->mean_token_bwd(&d, dx.p, dout.p, B, T, first, C);
        expect(&d, "dx", &dx, w_dx);
        end_case(&d);
    }
}

static void gather_scatter(void **state)
{
    (void)state;
    device d;
    CASES(d) for (size_t r = 0; r < COUNT(shapes); r++)
    {
        size_t N = shapes[r].N, C = shapes[r].C, n = (N + 2) / 3;
        start_case(&d, "gather %zu of N%zu C%zu", n, N, C);
        int32_t rows[128];
        assert_true(n <= COUNT(rows));
        for (size_t i = 0; i < n; i++) rows[i] = (int32_t)(N - 1 - 3 * i); /* distinct, not in order of memory */
        dv *at_rows = int32_of(&d, rows, n);
        values x = ct_noise(&d, N * C, 1), out = ct_full(&d, n * C, 9), dx = ct_noise(&d, N * C, 1);
        values dout = ct_noise(&d, n * C, 1);
        double *want = doubles(n * C), *w_dx = doubles(N * C);
        memcpy(w_dx, dx.v, N * C * sizeof *w_dx);
        for (size_t i = 0; i < n * C; i++) {
            size_t to = (size_t)rows[i / C] * C + i % C;
            want[i] = x.v[to];
            w_dx[to] += dout.v[i];
        }
        d.op->gather(&d, out.p, x.p, at_rows, n, C);
        expect(&d, "out", &out, want);
        d.op->scatter_add(&d, dx.p, dout.p, at_rows, n, C);
        expect(&d, "dx", &dx, w_dx);
        d.op->gather(&d, out.p, x.p, NULL, 0, C);
        d.op->scatter_add(&d, dx.p, dout.p, NULL, 0, C);
        expect(&d, "no rows", &dx, w_dx);
        end_case(&d);
    }
}

static void mix_rows(void **state)
{
    (void)state;
    device d;
    CASES(d) for (size_t r = 0; r < COUNT(shapes); r++)
    {
        size_t N = shapes[r].N, C = shapes[r].C, n = (N + 2) / 3, all = 0;
        int32_t first[128] = {0}, index[512];
        assert_true(n < COUNT(first) && 3 * n < COUNT(index));
        start_case(&d, "mix %zu of N%zu C%zu", n, N, C);
        values in = f32_noise(&d, N * C, 1, 0), weight = f32_noise(&d, 3 * n, 1, 0), out = f32_full(&d, n * C, 9);
        double *want = doubles(n * C);
        for (size_t i = 0; i < n; i++) {
            for (size_t k = 0; k < i % 4; k++, all++) { /* none, one, two, three of them */
                index[all] = (int32_t)((5 * i + 3 * k) % N);
                for (size_t c = 0; c < C; c++) want[i * C + c] += weight.v[all] * in.v[(size_t)index[all] * C + c];
            }
            first[i + 1] = (int32_t)all;
        }
        dv *from = int32_of(&d, first, n + 1), *which = int32_of(&d, index, all + 1);
        d.op->mix_rows(&d, out.p, false, in.p, from, which, weight.p, n, C);
        expect(&d, "out", &out, want);
        d.op->mix_rows(&d, out.p, true, in.p, from, which, weight.p, n, C);
        for (size_t i = 0; i < n * C; i++) want[i] *= 2;
        expect(&d, "added", &out, want);
        end_case(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(patchify),
        cmocka_unit_test(embed),
        cmocka_unit_test(prompt),
        cmocka_unit_test(norm),
        cmocka_unit_test(residual),
        cmocka_unit_test(scale_grad),
        cmocka_unit_test(gelu),
        cmocka_unit_test(swiglu),
        cmocka_unit_test(swiglu_far_from_zero),
        cmocka_unit_test(norm_far_from_zero),
        cmocka_unit_test(mean_token),
        cmocka_unit_test(gather_scatter),
        cmocka_unit_test(mix_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
