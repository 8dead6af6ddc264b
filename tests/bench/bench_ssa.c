/* bench_ssa MODEL METHOD BATCH [PROTOTYPES [LOCALS [STEPS [THREADS|cuda]]]]: whole steps of self-supervised adaptation
 * on random weights and images: teacher, student on 2 globals of 224 and the local crops of 98 pixels, a head of
 * 2048-2048-256, half of the globals masked by 30 %, gradients, AdamW, EMA. One JSON line: median step, planned and
 * resident memory, on a GPU its own. The same work as the PyTorch peers' (engine.sh, cuda.sh run both in turns). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "adapt/ssl_step.h"
#include "base/progress.h"
#include "base/rng.h"
#include "model/device_cuda.h"

enum { GLOBAL = 224, LOCAL = 98, STEPS_MAX = 100 };

static err e;

static void check(err_code rc)
{
    if (!rc) return;
    fprintf(stderr, "bench_ssa: %s\n", e.msg);
    exit(1);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static float *noise(size_t n, uint64_t seed)
{
    float *x = malloc(n * sizeof *x);
    rng g = rng_at(seed, 0, 0, 0);
    if (!x) exit(1);
    for (size_t i = 0; i < n; i++) x[i] = rng_normal(&g);
    return x;
}

/* The first half of the globals: 30 % of their patches. */
static uint8_t *masks(size_t B, size_t P, size_t *masked)
{
    uint8_t *m = calloc(2 * B, P);
    uint32_t *order = malloc(P * sizeof *order);
    if (!m || !order) exit(1);
    size_t each = P * 3 / 10;
    for (size_t i = 0; i < B; i++) {
        rng g = rng_at(7, 0, i, 0);
        for (size_t k = 0; k < P; k++) order[k] = (uint32_t)k;
        rng_shuffle(&g, order, P);
        for (size_t k = 0; k < each; k++) m[i * P + order[k]] = 1;
    }
    free(order);
    *masked = B * each;
    return m;
}

static long argument(int argc, char **argv, int i, long otherwise)
{
    return argc > i ? strtol(argv[i], NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "bench_ssa MODEL METHOD BATCH [PROTOTYPES [LOCALS [STEPS [THREADS|cuda]]]]\n");
        return 64;
    }
    /* The command line's numbers where nobody says. */
    peft_spec peft = {.teacher = true, .rank = 8, .alpha = 16, .targets = PEFT_Q | PEFT_V, .prompts = 10, .deep = true};
    if (!peft_find(argv[2], &peft.method)) {
        fprintf(stderr, "bench_ssa: no method '%s' (linear, apla, full, lora, bitfit, vpt)\n", argv[2]);
        return 64;
    }
    size_t B = (size_t)argument(argc, argv, 3, 8), K = (size_t)argument(argc, argv, 4, 65536);
    size_t L = (size_t)argument(argc, argv, 5, 8);
    long steps = argument(argc, argv, 6, 3);
    if (!B || steps < 1 || steps > STEPS_MAX) return 64;
    device d;
    vit *m;
    param_set ps = {0};
    ssl_step s;
    vit_source source = {.seed = 1};
    bool cuda = argc > 7 && !strcmp(argv[7], "cuda");
    if (cuda)
        check(device_open_cuda(&d, 0, COMPUTE_AUTO, &e));
    else
        check(device_open_cpu(&d, (int)argument(argc, argv, 7, 0), COMPUTE_AUTO, &e));
    check(vit_named_config(argv[1], &source.random, &e));
    check(vit_open(&m, &d, &source, &e));
    const vit_config *c = vit_get_config(m);
    size_t side = GLOBAL / (size_t)c->patch, P = side * side, masked;
    size_t local = (size_t)(LOCAL / c->patch * c->patch);
    check(vit_train(m, &peft, &ps, &e));
    uint8_t *mask = masks(B, P, &masked);
    ssl_step_config k = {.batch = B,
                         .locals = L,
                         .global_size = GLOBAL,
                         .local_size = local,
                         .masked_most = masked,
                         .head = {(size_t)c->dim, 2048, 256, K},
                         .dino = 1,
                         .ibot = 1,
                         .koleo = 0.1f,
                         .student_temp = 0.1f,
                         .center_momentum = 0.9f,
                         .clip = 1,
                         .seed = 1};
    check(ssl_step_open(&s, m, &ps, &k, &e));
    float *globals = noise(2 * B * 3 * GLOBAL * GLOBAL, 2), *locals = noise(L * B * 3 * local * local, 3);
    double took[STEPS_MAX];
    ssl_step_out out;
    /* The first warms up and brings the crops, which stay, as PyTorch's do. As in a run, a GPU has the next step before
     * it is asked what came of this one. */
    for (long i = -1; i < steps; i++) {
        ssl_step_in in = {
            .globals = i < 0 ? globals : NULL, .locals = i < 0 ? locals : NULL, .mask = mask, .teacher_temp = 0.04f};
        ssl_step_update_in update = {.adam = {.beta1 = 0.9f,
                                              .beta2 = 0.999f,
                                              .eps = 1e-8f,
                                              .weight_decay = 1e-5f,
                                              .lr = 1e-4f,
                                              .head_lr = 1e-4f,
                                              .t = {i + 2, i + 2, i + 2}},
                                     .momentum = 0.994f};
        double from = progress_clock();
        check(ssl_step_gradients(&s, &in, NULL, &e));
        check(ssl_step_ask(&s, &update, &e));
        while (ssl_step_unread(&s) > (cuda && i >= 0 ? SSL_STEP_LATE : 0)) check(ssl_step_read(&s, &out, &e));
        if (i >= 0) took[i] = progress_clock() - from;
    }
    while (ssl_step_unread(&s)) check(ssl_step_read(&s, &out, &e));
    qsort(took, (size_t)steps, sizeof *took, compare);
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    double median = took[steps / 2];
    printf(
        "{\"model\": \"%s\", \"method\": \"%s\", \"batch\": %zu, \"protos\": %zu, \"threads\": %d, \"dtype\": \"%s\", "
        "\"step_s\": %.4f, \"best_s\": %.4f, \"img_per_s\": %.3f, \"peak_rss_mib\": %ld, \"planned_mib\": %.0f, "
        "\"device_mib\": %.0f, "
        "\"loss\": %.4f}\n",
        argv[1], argv[2], B, K, d.threads, d.ct == COMPUTE_BF16 ? "bf16" : "fp32", median, took[0], (double)B / median,
        u.ru_maxrss / 1024, (double)s.bytes / 1048576, (double)d.bytes_most / 1048576, (double)out.loss);
    free(globals);
    free(locals);
    free(mask);
    ssl_step_close(&s);
    param_set_free(&d, &ps);
    vit_close(m);
    device_close(&d);
    return 0;
}
