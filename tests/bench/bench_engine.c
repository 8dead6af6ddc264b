/* bench_engine [images] [threads]: floating-point rate of the matrix work alone (packed weights, a block's four shapes)
 * and of the whole model: inference, APLA steps, full steps; and where an APLA step's time goes. Best of several. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/progress.h"
#include "model/vit.h"

enum { REPEATS = 5 };

static device d;
static err e;

static void check(err_code rc)
{
    if (!rc) return;
    fprintf(stderr, "bench_engine: %s\n", e.msg);
    exit(1);
}

static dv *take(size_t bytes)
{
    dv *p;
    check(d.op->alloc(&d, bytes, &p, &e));
    return p;
}

static double best(void (*fn)(void *), void *ctx)
{
    double t = INFINITY;
    fn(ctx);
    for (int i = 0; i < REPEATS; i++) {
        double from = progress_clock();
        fn(ctx);
        t = fmin(t, progress_clock() - from);
    }
    check(device_sync(&d, &e));
    return t;
}

/* One block's matrix work, forward (and backward) without anything between. */
typedef struct {
    linear_w w[4];
    dv *x, *y, *dw;
    size_t N;
    bool dx, dw_proj, dw_all;
} products;

static void run_products(void *ctx)
{
    products *k = ctx;
    for (int i = 0; i < 4; i++) d.op->linear_fwd(&d, k->y, k->x, &k->w[i], k->N);
    for (int i = 0; i < 4; i++) {
        if (k->dx) d.op->linear_dx(&d, k->y, k->x, &k->w[i], k->N);
        if (k->dw_all || (k->dw_proj && i == 1))
            d.op->linear_dw(&d, k->dw, NULL, k->y, k->x, NULL, k->w[i].out, k->N, k->w[i].out, k->w[i].in);
    }
}

/* FLOP of one block's linear layers over N rows, and of attention's two products. */
static double linear_flop(const vit_config *c, double N)
{
    double C = c->dim, F = c->hidden;
    return 2 * N * (4 * C * C + (c->swiglu ? 3 : 2) * C * F);
}

static double attention_flop(const vit_config *c, double N, double T)
{
    return 4 * N * T * c->dim;
}

static double bench_products(const vit_config *c, size_t N, bool dx, bool proj, bool all)
{
    size_t C = (size_t)c->dim, F = (size_t)c->hidden, W = c->swiglu ? 2 * F : F;
    size_t shapes[4][2] = {{3 * C, C}, {C, C}, {W, C}, {C, F}};
    products k = {.N = N, .dx = dx, .dw_proj = proj, .dw_all = all};
    k.x = take(N * W * d.ct_bytes);
    k.y = take(N * W * d.ct_bytes);
    k.dw = take(C * W * sizeof(float));
    for (int i = 0; i < 4; i++)
        k.w[i] = (linear_w){
            .out = shapes[i][0], .in = shapes[i][1], .w = take(C * W * d.ct_bytes), .frozen = true, .version = 1};
    double t = best(run_products, &k), C2 = (double)(C * C);
    double flop = linear_flop(c, (double)N) * (1 + dx + all) + (proj ? 2 * (double)N * C2 : 0);
    for (int i = 0; i < 4; i++) {
        d.op->linear_release(&d, &k.w[i]);
        d.op->free(&d, k.w[i].w);
    }
    d.op->free(&d, k.x);
    d.op->free(&d, k.y);
    d.op->free(&d, k.dw);
    return flop / t * 1e-9;
}

typedef struct {
    vit *m;
    vit_pass a;
    dv *pixels;
} model;

static void run_forward(void *ctx)
{
    model *k = ctx;
    vit_patches(k->m, VIT_STUDENT, &k->a, k->pixels);
    vit_fwd(k->m, VIT_STUDENT, &k->a, k->a.patches, NULL);
}

static void run_step(void *ctx)
{
    model *k = ctx;
    run_forward(ctx);
    vit_bwd(k->m, &k->a, k->pixels, NULL);
}

static void bench_model(const char *name, size_t B, size_t side, peft_method method)
{
    static const char *const methods[] = {"inference", "apla step", "full step"};
    vit_source s = {.seed = 1};
    model k = {0};
    param_set ps = {0};
    arena dry = {0}, real;
    vit_keep keep = method == METHOD_LINEAR ? VIT_INFER : VIT_GRAD;
    check(vit_named_config(name, &s.random, &e));
    check(vit_open(&k.m, &d, &s, &e));
    check(vit_train(k.m, &(peft_spec){.method = method}, &ps, &e));
    check(vit_pass_plan(&k.a, &dry, k.m, B, side, side, keep, &e));
    dv *memory = take(dry.used);
    arena_init(&real, memory, dry.used);
    check(vit_pass_plan(&k.a, &real, k.m, B, side, side, keep, &e));
    check(device_reserve(&d, vit_pass_work_bytes(k.m, B, side, side, keep), &e));
    size_t pixels = B * 3 * side * side;
    float *x = malloc(pixels * sizeof *x);
    if (!x) exit(1);
    for (size_t i = 0; i < pixels; i++) x[i] = sinf(0.001f * (float)i);
    k.pixels = take(pixels * sizeof *x);
    d.op->upload(&d, k.pixels, x, pixels * sizeof *x);
    free(x);

    const vit_config *c = vit_get_config(k.m);
    double N = (double)(B * k.a.T), T = (double)k.a.T, C = c->dim, P = (double)(c->patch * c->patch * 3);
    double linear = linear_flop(c, N) * c->depth, patch = 2 * (double)(B * k.a.P) * C * P;
    double flop = linear + attention_flop(c, N, T) * c->depth + patch;
    if (method == METHOD_APLA) /* dX everywhere above the first projection, attention's backward (5 products for 2) */
        flop += linear * (c->depth - 1) / c->depth + 2 * (c->swiglu ? 3 : 2) * N * C * c->hidden +
                2.5 * attention_flop(c, N, T) * (c->depth - 1) + 2 * N * C * C * c->depth;
    if (method == METHOD_FULL) flop += 2 * linear + 2.5 * attention_flop(c, N, T) * c->depth + patch;
    double t = best(method == METHOD_LINEAR ? run_forward : run_step, &k);
    bool train = method != METHOD_LINEAR;
    double alone = bench_products(c, (size_t)N, train, method == METHOD_APLA, method == METHOD_FULL);
    printf("%-10s batch %-3zu %-10s %8.1f ms  %7.1f images/s  %7.1f GFLOP/s  matrix work alone %7.1f  (%3.0f %%)  "
           "%6.1f MB\n",
           name, B, methods[method], t * 1e3, (double)B / t, flop / t * 1e-9, alone, 100 * flop / t * 1e-9 / alone,
           (double)dry.used / 1e6);
    fflush(stdout);
    d.op->free(&d, memory);
    d.op->free(&d, k.pixels);
    vit_pass_fini(&k.a);
    param_set_free(&d, &ps);
    vit_close(k.m);
}

int main(int argc, char **argv)
{
    size_t B = argc > 1 ? (size_t)strtoul(argv[1], NULL, 10) : 8;
    int threads = argc > 2 ? atoi(argv[2]) : 0;
    static const struct {
        const char *name;
        size_t side;
    } models[] = {{"vit-ti/16", 224}, {"vit-s/14", 224}, {"vit-s/14", 98}};
    check(device_open_cpu(&d, threads, COMPUTE_AUTO, &e));
    printf("%s, %d threads\n", d.ct == COMPUTE_BF16 ? "bf16" : "fp32", d.threads);
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        for (int method = METHOD_LINEAR; method <= METHOD_FULL; method++)
            bench_model(models[i].name, B, models[i].side, (peft_method)method);
    device_close(&d);
    return 0;
}
