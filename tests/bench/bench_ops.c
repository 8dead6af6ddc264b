/* bench_ops [dim] [tokens] [images]: every op of a transformer block on one thread, on data that stays in cache: the
 * shortest of many calls, and what one block spends on it in an APLA step. The limit is oneDNN: the same layers'
 * products, forward, with weights in the layout that it likes best, in the same run. The share of its rate that the
 * block's useful operations reach is the last line. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/progress.h"
#include "model/op_cpu.h"
#include "tests/bench/bench_onednn.h"

enum { TRIES = 400 };

static device d;
static err e;
static size_t C, F, H, D, T, B, N;

static void check(err_code rc)
{
    if (!rc) return;
    fprintf(stderr, "bench_ops: %s\n", e.msg);
    exit(1);
}

/* n values of ct, a smooth curve. */
static dv *values(size_t n)
{
    float *x = malloc(n * sizeof *x);
    dv *f32, *out;
    if (!x) exit(1);
    for (size_t i = 0; i < n; i++) x[i] = sinf(0.37f * (float)i) * 1.5f;
    check(d.op->alloc(&d, n * sizeof *x, &f32, &e));
    check(d.op->alloc(&d, n * d.ct_bytes, &out, &e));
    d.op->upload(&d, f32, x, n * sizeof *x);
    d.op->to_ct(&d, out, f32, n);
    d.op->free(&d, f32);
    free(x);
    return out;
}

static dv *floats(size_t n)
{
    dv *out;
    check(d.op->alloc(&d, n * sizeof(float), &out, &e));
    return out;
}

static linear_w weight(size_t out, size_t in)
{
    return (linear_w){.out = out, .in = in, .w = values(out * in), .bias = floats(out), .frozen = true, .version = 1};
}

static dv *x, *y, *z, *wide, *wide2, *qkv, *dqkv, *mean, *rstd, *gamma_, *beta_, *lse, *slope;
static linear_w w[4];

static void fwd(int i)
{
    if (i == 0)
        d.op->linear_fwd(&d, qkv, x, &w[i], N);
    else if (i == 2)
        d.op->linear_gelu_slope_fwd(&d, wide, slope, x, &w[i], N);
    else
        d.op->linear_residual_fwd(&d, y, z, i == 3 ? wide2 : x, &w[i], gamma_, x, NULL, NULL, N);
}
static void dx(int i)
{
    if (i == 3)
        d.op->linear_dx_slope(&d, wide, x, &w[i], slope, N);
    else
        d.op->linear_dx(&d, y, i == 2 ? wide2 : i == 0 ? dqkv : x, &w[i], N);
}
static void dw(int i)
{
    (void)i;
    d.op->linear_dw(&d, lse, NULL, x, z, NULL, C, N, C, C);
}
static void norm(int i)
{
    if (i)
        d.op->norm_bwd(&d, y, true, NULL, NULL, z, x, mean, rstd, gamma_, NULL, NULL, N, C);
    else
        d.op->norm_fwd(&d, y, mean, rstd, x, gamma_, beta_, 1e-6f, N, C);
}
static void residual(int i)
{
    (void)i;
    d.op->residual_bwd(&d, y, x, gamma_, N, C);
}
static void attention(int i)
{
    if (i)
        d.op->attention_bwd(&d, dqkv, x, qkv, z, lse, B, T, H, D);
    else
        d.op->attention_fwd(&d, z, lse, qkv, B, T, H, D);
}

int main(int argc, char **argv)
{
    C = argc > 1 ? strtoul(argv[1], NULL, 10) : 384;
    T = argc > 2 ? strtoul(argv[2], NULL, 10) : 257;
    B = argc > 3 ? strtoul(argv[3], NULL, 10) : 1;
    F = 4 * C;
    D = 64;
    H = C / D;
    N = B * T;
    check(device_open_cpu(&d, 1, COMPUTE_AUTO, &e));
    x = values(N * C), y = values(N * C), z = values(N * C), wide = values(N * F), wide2 = values(N * F);
    qkv = values(N * 3 * C), dqkv = values(N * 3 * C), mean = floats(N), rstd = floats(N);
    gamma_ = floats(C), beta_ = floats(C), slope = floats(N * F), lse = floats(N * H > C * C ? N * H : C * C);
    w[0] = weight(3 * C, C), w[1] = weight(C, C), w[2] = weight(F, C), w[3] = weight(C, F);
    check(device_reserve(&d, op_cpu_attention_bytes(&d, false, B, T, H, D, true), &e));
    double c2 = 2.0 * (double)(N * C * C), pairs = 2.0 * (double)(N * T * C);
    const struct {
        const char *name;
        void (*fn)(int);
        int arg;
        double flop, times; /* times: of calls in an APLA step's block (forward, and recomputation in backward) */
    } rows[] = {
        {"qkv", fwd, 0, 3 * c2, 1},
        {"projection, residual", fwd, 1, c2, 1},
        {"fc1, GELU", fwd, 2, 4 * c2, 1},
        {"fc2, residual", fwd, 3, 4 * c2, 1},
        {"qkv dX", dx, 0, 3 * c2, 1},
        {"projection dX", dx, 1, c2, 1},
        {"fc1 dX", dx, 2, 4 * c2, 1},
        {"fc2 dX, GELU'", dx, 3, 4 * c2, 1},
        {"projection dW", dw, 0, c2, 1},
        {"attention", attention, 0, 2 * pairs, 1},
        {"attention dX", attention, 1, 5 * pairs, 1},
        {"LayerNorm", norm, 0, 0, 2},
        {"LayerNorm dX", norm, 1, 0, 2},
        {"residual dX", residual, 1, 0, 2},
    };
    double all = 0, useful = 0;
    printf("%s, one thread, %zu images of %zu tokens, %zu channels\n", d.ct == COMPUTE_BF16 ? "bf16" : "fp32", B, T, C);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        double best = INFINITY;
        for (int k = 0; k < TRIES; k++) {
            double from = progress_clock();
            rows[i].fn(rows[i].arg);
            best = fmin(best, progress_clock() - from);
        }
        printf("%-22s %8.1f us", rows[i].name, best * 1e6);
        if (rows[i].flop > 0) printf("  %7.1f GFLOP/s", rows[i].flop / best * 1e-9);
        printf("\n");
        all += best * rows[i].times;
        useful += rows[i].flop * rows[i].times;
    }
    check(device_sync(&d, &e));
    double limit = bench_onednn_rate(N, C, F, TRIES);
    printf("a block's APLA step %8.1f us %7.1f GFLOP/s; oneDNN's products %7.1f GFLOP/s: %.0f %%\n", all * 1e6,
           useful / all * 1e-9, limit * 1e-9, 100 * useful / all / limit);
    return 0;
}
