/* bench_inference MODEL BATCH [THREADS [SECONDS]]: forward passes of a ViT on 224-pixel images, random weights. One
 * JSON line: images a second (the best pass and the median), resident memory. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "base/arena.h"
#include "base/progress.h"
#include "base/rng.h"
#include "model/vit.h"

enum { SIDE = 224, PASSES_MAX = 4096 };

static err e;

static void check(err_code rc)
{
    if (!rc) return;
    fprintf(stderr, "bench_inference: %s\n", e.msg);
    exit(1);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "bench_inference MODEL BATCH [THREADS [SECONDS]]\n");
        return 64;
    }
    size_t B = strtoul(argv[2], NULL, 10), n = 0;
    double seconds = argc > 4 ? strtod(argv[4], NULL) : 10, took[PASSES_MAX];
    device d;
    vit *m;
    vit_pass a = {.wanted_most = B}; /* class tokens: what a prediction is made of */
    arena dry = {0}, real;
    vit_source source = {.seed = 1};
    check(device_open_cpu(&d, argc > 3 ? atoi(argv[3]) : 0, COMPUTE_AUTO, &e));
    check(vit_named_config(argv[1], &source.random, &e));
    check(vit_open(&m, &d, &source, &e));
    check(vit_pass_plan(&a, &dry, m, B, SIDE, SIDE, VIT_INFER, &e));
    size_t count = B * 3 * SIDE * SIDE;
    dv *memory, *pixels;
    float *x = malloc(count * sizeof *x);
    if (!x) return 1;
    check(d.op->alloc(&d, dry.used, &memory, &e));
    check(d.op->alloc(&d, count * sizeof *x, &pixels, &e));
    arena_init(&real, memory, dry.used);
    check(vit_pass_plan(&a, &real, m, B, SIDE, SIDE, VIT_INFER, &e));
    check(device_reserve(&d, vit_pass_work_bytes(m, B, SIDE, SIDE, VIT_INFER), &e));
    vit_want_classes(m, &a);
    rng r = rng_at(1, 0, 0, 0);
    for (size_t i = 0; i < count; i++) x[i] = rng_normal(&r);
    d.op->upload(&d, pixels, x, count * sizeof *x);
    for (double begun = progress_clock(); n < PASSES_MAX && (n < 3 || progress_clock() - begun < seconds); n++) {
        double from = progress_clock();
        vit_patches(m, VIT_STUDENT, &a, pixels);
        vit_fwd(m, VIT_STUDENT, &a, a.patches, NULL);
        took[n] = progress_clock() - from;
    }
    check(device_sync(&d, &e));
    qsort(took, n, sizeof *took, compare);
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    printf("{\"model\": \"%s\", \"method\": \"inference%zu\", \"threads\": %d, \"dtype\": \"%s\", \"img_per_s\": %.3f, "
           "\"median_img_per_s\": %.3f, \"peak_rss_mib\": %ld}\n",
           argv[1], B, d.threads, d.ct == COMPUTE_BF16 ? "bf16" : "fp32", (double)B / took[0], (double)B / took[n / 2],
           use.ru_maxrss / 1024);
    free(x);
    d.op->free(&d, pixels);
    d.op->free(&d, memory);
    vit_pass_fini(&a);
    vit_close(m);
    device_close(&d);
    return 0;
}
