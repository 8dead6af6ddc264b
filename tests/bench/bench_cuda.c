/* bench_cuda [IMAGES|cpu|small [MODEL-WIDTH]]: the ops of the CUDA back end at the shapes of a ViT-B/14 step (2 *
 * IMAGES crops of 224 pixels), each first against the CPU's (fp32, from the same bf16 values), then timed: the median
 * of seven runs of many calls. Shares are of what this GPU reaches in the same run at copying a large array and at a
 * large product. A table to stderr, one JSON document to stdout; exit 1 where an op is wrong. `small`: on less, to see
 * that all is right; `cpu`: the same, and the CPU against itself: a trial of this program where no GPU is. */
#include <string.h>

#include "base/progress.h"
#include "model/device_cuda.h"
#include "tests/bench/bench_cuda_step.h"
#include "tests/bench/bench_cuda_vit.h"

enum { RUNS = 7, WIDE_LAYER = 4096 };
enum { VIT_CASES = sizeof vit_cases / sizeof *vit_cases, STEP_CASES = sizeof step_cases / sizeof *step_cases };

static size_t copied = (size_t)128 << 20, product_rows = 8192;
static double copy_rate, product_rate; /* bytes, operations a second */
static int wrong;

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void wait_for(device *d)
{
    err e;
    ASSERT_OK(device_sync(d, &e));
}

/* Seconds a call: the median of RUNS runs, each of as many calls as fill 20 ms. */
static double seconds(void (*run)(device *d, int side), device *d)
{
    double took[RUNS];
    size_t calls = 1;
    for (int i = 0; i < 2; i++) run(d, CUDA); /* algorithms are chosen */
    wait_for(d);
    for (int i = -1; i < RUNS; i++) {
        double from = progress_clock();
        for (size_t k = 0; k < calls; k++) run(d, CUDA);
        wait_for(d);
        double each = (progress_clock() - from) / (double)calls;
        if (i < 0)
            calls = each > 0.02 ? 1 : (size_t)(0.02 / each) + 1;
        else
            took[i] = each;
    }
    qsort(took, RUNS, sizeof *took, compare);
    return took[RUNS / 2];
}

/* NMSE of the CUDA side's values. */
static double off(const tensor *x)
{
    float *a = tensor_values(&pair, x, CPU), *b = tensor_values(&pair, x, CUDA);
    double difference = 0, size = 1e-30;
    for (size_t i = 0; i < x->n; i++) {
        difference += ((double)b[i] - a[i]) * ((double)b[i] - a[i]);
        size += (double)a[i] * a[i];
    }
    free(a);
    free(b);
    return difference / size;
}

static void forget(void)
{
    BOTH(pair, i)
    {
        wait_for(&pair.d[i]);
        for (int k = 0; k < pair.n; k++) pair.d[i].op->free(&pair.d[i], pair.all[i][k]);
        pair.d[i].op->linear_release(&pair.d[i], &w[i]);
        pair.d[i].op->linear_release(&pair.d[i], &above[i]);
        w[i] = above[i] = (linear_w){0};
        free(jobs[i]);
        jobs[i] = NULL;
    }
    pair.n = 0;
}

/* --- ceilings of this GPU */

static void make_copy(void)
{
    t[0] = tensor_f32(&pair, copied / 4, 1, 0);
    t[1] = tensor_f32(&pair, copied / 4, 1, 0);
}
static void run_copy(device *d, int i)
{
    d->op->copy(d, t[1].p[i], t[0].p[i], copied);
}
static void make_product(void)
{
    weight(WIDE_LAYER, WIDE_LAYER);
    t[0] = tensor_ct(&pair, product_rows * WIDE_LAYER, 1, 1);
    t[1] = tensor_ct(&pair, product_rows * WIDE_LAYER, 2, 0);
}
static void run_product(device *d, int i)
{
    d->op->linear_fwd(d, t[1].p[i], t[0].p[i], &w[i], product_rows);
}

static void ceilings(void)
{
    make_copy();
    copy_rate = 2 * (double)copied / seconds(run_copy, &pair.d[CUDA]);
    forget();
    make_product();
    product_rate = 2.0 * (double)product_rows * WIDE_LAYER * WIDE_LAYER / seconds(run_product, &pair.d[CUDA]);
    forget();
    fprintf(stderr, "copy %.0f GB/s, product %.1f TFLOP/s\n", copy_rate * 1e-9, product_rate * 1e-12);
}

static void one_case(const bench_case *c, bool first)
{
    double worst = 0;
    c->make();
    BOTH(pair, i)
    {
        c->run(&pair.d[i], i);
        wait_for(&pair.d[i]);
    }
    for (int k = 0; k < TENSORS; k++)
        if (c->out & BIT(k)) worst = fmax(worst, off(&t[k]));
    bool right = worst <= c->most;
    wrong += !right;
    double took = seconds(c->run, &pair.d[CUDA]), bytes = c->bytes(), flop = c->flop ? c->flop() : 0;
    double least = fmax(bytes / copy_rate, flop / product_rate);
    fprintf(stderr, "%-26s %-5s NMSE %.1e  %9.1f us  %7.0f GB/s  %6.1f TFLOP/s  %3.0f %% of the ceiling\n", c->name,
            right ? "right" : "WRONG", worst, took * 1e6, bytes / took * 1e-9, flop / took * 1e-12, 100 * least / took);
    printf("%s\n  {\"op\": \"%s\", \"right\": %s, \"nmse\": %.3e, \"us\": %.2f, \"gb_per_s\": %.1f, \"tflop_per_s\": "
           "%.2f, "
           "\"share_of_ceiling\": %.3f}",
           first ? "" : ",", c->name, right ? "true" : "false", worst, took * 1e6, bytes / took * 1e-9,
           flop / took * 1e-12, least / took);
    forget();
}

int main(int argc, char **argv)
{
    bool cpu = argc > 1 && !strcmp(argv[1], "cpu"), trial = cpu || (argc > 1 && !strcmp(argv[1], "small"));
    size_t images = argc > 1 && !trial ? strtoul(argv[1], NULL, 10) : trial ? 2 : 32;
    err e;
    C = argc > 2 ? strtoul(argv[2], NULL, 10) : 768;
    if (!images || C % 64 || !C) {
        fprintf(stderr, "bench_cuda [IMAGES|cpu|small [WIDTH]]\n");
        return 64;
    }
    if (trial) prototypes = 1024, copied = (size_t)4 << 20, product_rows = 16;
    B = 2 * images;
    H = C / D;
    F = 4 * C;
    N = B * T;
    ASSERT_OK(device_open_cpu(&pair.d[CPU], 0, COMPUTE_F32, &e));
    if (cpu)
        ASSERT_OK(device_open_cpu(&pair.d[CUDA], 0, COMPUTE_AUTO, &e));
    else if (device_open_cuda(&pair.d[CUDA], 0, COMPUTE_BF16, &e)) {
        fprintf(stderr, "bench_cuda: %s\n", e.msg);
        return 77;
    }
    ceilings();
    printf("{\"images\": %zu, \"width\": %zu, \"copy_gb_per_s\": %.1f, \"product_tflop_per_s\": %.2f, \"ops\": [", B, C,
           copy_rate * 1e-9, product_rate * 1e-12);
    for (size_t i = 0; i < VIT_CASES; i++) one_case(&vit_cases[i], i == 0);
    for (size_t i = 0; i < STEP_CASES; i++) one_case(&step_cases[i], false);
    printf("\n]}\n");
    BOTH(pair, i) device_close(&pair.d[i]);
    return wrong ? 1 : 0;
}
