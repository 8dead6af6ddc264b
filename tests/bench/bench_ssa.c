/* bench_ssa MODEL METHOD BATCH [PROTOTYPES [LOCALS [STEPS [THREADS|cuda]]]]: whole steps of self-supervised adaptation
 * on random weights and images: teacher, student on 2 globals of 224 and the local crops of 98 pixels, a head of
 * 2048-2048-256, half of the globals masked by 30 %, gradients, AdamW, EMA. One JSON line: median step, planned and
 * resident memory, on a GPU its own; on a CPU what share of oneDNN's product rate the whole step reaches. The same work
 * as the PyTorch peers' (engine.sh, cuda.sh run both in turns). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "adapt/ssl_step.h"
#include "base/progress.h"
#include "base/rng.h"
#include "model/device_cuda.h"
#include "model/op_count.h"
#include "tests/bench/bench_onednn.h"

enum { GLOBAL = 224, LOCAL = 98, STEPS_MAX = 100, CALLS = 20 };

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

typedef struct {
    const char *model;
    peft_spec peft;
    size_t batch, prototypes, locals;
} task;

/* Opened on a device: a real one, or one that counts. */
typedef struct {
    vit *m;
    param_set ps;
    ssl_step s;
    uint8_t *mask;
} bench;

static void bench_open(bench *b, device *d, const task *t)
{
    vit_source source = {.seed = 1};
    *b = (bench){0};
    check(vit_named_config(t->model, &source.random, &e));
    check(vit_open(&b->m, d, &source, &e));
    const vit_config *c = vit_get_config(b->m);
    size_t side = GLOBAL / (size_t)c->patch, masked;
    check(vit_train(b->m, &t->peft, &b->ps, &e));
    b->mask = masks(t->batch, side * side, &masked);
    ssl_step_config k = {.batch = t->batch,
                         .locals = t->locals,
                         .global_size = GLOBAL,
                         .local_size = (size_t)(LOCAL / c->patch * c->patch),
                         .masked_most = masked,
                         .head = {(size_t)c->dim, 2048, 256, t->prototypes},
                         .dino = 1,
                         .ibot = 1,
                         .koleo = 0.1f,
                         .student_temp = 0.1f,
                         .center_momentum = 0.9f,
                         .clip = 1,
                         .seed = 1};
    check(ssl_step_open(&b->s, b->m, &b->ps, &k, &e));
}

static void bench_close(bench *b)
{
    device *d = b->s.d;
    free(b->mask);
    ssl_step_close(&b->s);
    param_set_free(d, &b->ps);
    vit_close(b->m);
}

/* t: updates with this one. globals, locals NULL: those of the step before. */
static void ask(bench *b, const float *globals, const float *locals, long t)
{
    ssl_step_in in = {.globals = globals, .locals = locals, .mask = b->mask, .teacher_temp = 0.04f};
    ssl_step_update_in update = {.adam = {.beta1 = 0.9f,
                                          .beta2 = 0.999f,
                                          .eps = 1e-8f,
                                          .weight_decay = 1e-5f,
                                          .lr = 1e-4f,
                                          .head_lr = 1e-4f,
                                          .t = {t, t, t}},
                                 .momentum = 0.994f};
    check(ssl_step_gradients(&b->s, &in, NULL, &e));
    check(ssl_step_ask(&b->s, &update, &e));
}

/* No more than `left` updates are unread. */
static void read_steps(bench *b, size_t left, ssl_step_out *out)
{
    while (ssl_step_unread(&b->s) > left) check(ssl_step_read(&b->s, out, &e));
}

/* Useful operations of a step: the same step on a device that counts. */
static double step_flop(const task *t, const device *of)
{
    device d;
    bench b;
    ssl_step_out out;
    double sum = 0;
    check(op_count_open(&d, of->threads, of->ct, OP_COUNT_CPU, &e));
    bench_open(&b, &d, t);
    memset(d.flop, 0, sizeof d.flop);
    ask(&b, NULL, NULL, 1);
    read_steps(&b, 0, &out);
    for (int i = 0; i < FLOP_KINDS; i++) sum += d.flop[i];
    bench_close(&b);
    device_close(&d);
    return sum;
}

/* The yardstick: a block's products over an image's tokens and over those of all global crops, whichever runs faster.
 */
static double onednn_rate(const vit_config *c, size_t tokens, size_t crops)
{
    size_t C = (size_t)c->dim, F = (size_t)c->hidden;
    return fmax(bench_onednn_rate(tokens, C, F, CALLS), bench_onednn_rate(crops * tokens, C, F, CALLS));
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "bench_ssa MODEL METHOD BATCH [PROTOTYPES [LOCALS [STEPS [THREADS|cuda]]]]\n");
        return 64;
    }
    task t = {.model = argv[1],
              .peft = {.teacher = true, /* and the numbers that the command line has for other methods */
                       .rank = 8,
                       .alpha = 16,
                       .targets = PEFT_Q | PEFT_V,
                       .prompts = 10,
                       .deep = true},
              .batch = (size_t)argument(argc, argv, 3, 8),
              .prototypes = (size_t)argument(argc, argv, 4, 65536),
              .locals = (size_t)argument(argc, argv, 5, 8)};
    if (!peft_find(argv[2], &t.peft.method)) {
        fprintf(stderr, "bench_ssa: no method '%s' (linear, apla, full, lora, bitfit, vpt)\n", argv[2]);
        return 64;
    }
    long steps = argument(argc, argv, 6, 3);
    if (!t.batch || steps < 1 || steps > STEPS_MAX) return 64;
    device d;
    bench b;
    bool cuda = argc > 7 && !strcmp(argv[7], "cuda");
    if (cuda)
        check(device_open_cuda(&d, 0, COMPUTE_AUTO, &e));
    else
        check(device_open_cpu(&d, (int)argument(argc, argv, 7, 0), COMPUTE_AUTO, &e));
    bench_open(&b, &d, &t);
    size_t local = b.s.config.local_size, crops = 2 * t.batch;
    float *globals = noise(crops * 3 * GLOBAL * GLOBAL, 2), *locals = noise(t.locals * t.batch * 3 * local * local, 3);
    double took[STEPS_MAX];
    ssl_step_out out;
    /* The first warms up and brings the crops, which stay, as PyTorch's do. As in a run, a GPU has the next step before
     * it is asked what came of this one. */
    for (long i = -1; i < steps; i++) {
        double from = progress_clock();
        ask(&b, i < 0 ? globals : NULL, i < 0 ? locals : NULL, i + 2);
        read_steps(&b, cuda && i >= 0 ? SSL_STEP_LATE : 0, &out);
        if (i >= 0) took[i] = progress_clock() - from;
    }
    read_steps(&b, 0, &out);
    qsort(took, (size_t)steps, sizeof *took, compare);
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    double median = took[steps / 2];
    printf(
        "{\"model\": \"%s\", \"method\": \"%s\", \"batch\": %zu, \"protos\": %zu, \"threads\": %d, \"dtype\": \"%s\", "
        "\"step_s\": %.4f, \"best_s\": %.4f, \"img_per_s\": %.3f, \"peak_rss_mib\": %ld, \"planned_mib\": %.0f, "
        "\"device_mib\": %.0f, \"loss\": %.4f",
        t.model, argv[2], t.batch, t.prototypes, d.threads, d.ct == COMPUTE_BF16 ? "bf16" : "fp32", median, took[0],
        (double)t.batch / median, u.ru_maxrss / 1024, (double)b.s.bytes / 1048576, (double)d.bytes_most / 1048576,
        (double)out.loss);
    if (!cuda) { /* the shortest of a few steps beside the shortest of many calls */
        double rate = step_flop(&t, &d) / took[0];
        double limit = onednn_rate(vit_get_config(b.m), b.s.T, crops);
        printf(", \"gflop_per_s\": %.1f, \"onednn_gflop_per_s\": %.1f, \"onednn_share\": %.3f", rate * 1e-9,
               limit * 1e-9, rate / limit);
    }
    printf("}\n");
    free(globals);
    free(locals);
    bench_close(&b);
    device_close(&d);
    return 0;
}
