/* bench_cuda [IMAGES [MODEL-WIDTH]]: the ops of the CUDA back end at the shapes of a ViT-B/14 step (2 * IMAGES crops of
 * 224 pixels), each first against the CPU's (fp32, from the same bf16 values), then timed: the median of seven runs of
 * many calls. Shares are of what this GPU reaches in the same run at copying a large array and at a large product. A
 * table to stderr, one JSON document to stdout; exit 1 where an op is wrong. `cpu` as the first argument runs the CPU
 * against itself, on less: a trial of this program where no GPU is. */
#include <string.h>

#include "base/progress.h"
#include "model/device_cuda.h"
#define TWIN_ANY_DEVICE
#include "tests/cuda_host/twin.h"

enum { RUNS = 7, TENSORS = 10, BOTTLENECK = 256, ROWS_OF_LOGITS = 256, WIDE_LAYER = 4096 };

static size_t B, T = 257, C, H, D = 64, F, N, prototypes = 65536, copied = (size_t)128 << 20, product_rows = 8192;
static double copy_rate, product_rate; /* bytes, operations a second */
static twin pair;
static tensor t[TENSORS];
static linear_w w[TWINS];
static int wrong;

/* An op at its shape. in, out: bits of the tensors that it needs and that are compared. */
typedef struct {
    const char *name;
    void (*make)(void);
    void (*run)(device *d, int side);
    unsigned out;
    double most; /* NMSE */
    double (*bytes)(void), (*flop)(void);
} bench_case;

static double ct(size_t n)
{
    return 2.0 * (double)n;
}

static void weight(size_t out, size_t in)
{
    tensor x = tensor_ct(&pair, out * in, 7, 0.05f), bias = tensor_f32(&pair, out, 8, 0.1f);
    BOTH(pair, i) w[i] = (linear_w){.out = out, .in = in, .w = x.p[i], .bias = bias.p[i], .frozen = true, .version = 1};
}

/* --- linear layers: qkv, projection with residual, fc1 with GELU and slope, fc2's dX by the slope, dW */

static void make_qkv(void)
{
    weight(3 * C, C);
    t[0] = tensor_ct(&pair, N * C, 1, 1);
    t[1] = tensor_ct(&pair, N * 3 * C, 2, 0);
}
static void run_qkv(device *d, int i)
{
    d->op->linear_fwd(d, t[1].p[i], t[0].p[i], &w[i], N);
}
static double bytes_qkv(void)
{
    return ct(N * C * 4 + 3 * C * C);
}
static double flop_qkv(void)
{
    return 6.0 * (double)N * (double)C * (double)C;
}

static void make_projection(void)
{
    weight(C, C);
    t[0] = tensor_ct(&pair, N * C, 1, 1);
    t[1] = tensor_ct(&pair, N * C, 2, 1);
    t[2] = tensor_f32(&pair, C, 3, 1);
    t[3] = tensor_ct(&pair, N * C, 4, 0);
    t[4] = tensor_ct(&pair, N * C, 4, 0);
}
static void run_projection(device *d, int i)
{
    d->op->linear_residual_fwd(d, t[3].p[i], t[0].p[i], t[1].p[i], &w[i], t[2].p[i], t[4].p[i], NULL, NULL, N);
}
static double bytes_projection(void)
{
    return ct(N * C * 5 + C * C);
}
static double flop_square(void)
{
    return 2.0 * (double)N * (double)C * (double)C;
}

static void make_fc1(void)
{
    weight(F, C);
    t[0] = tensor_ct(&pair, N * C, 1, 1);
    t[1] = tensor_ct(&pair, N * F, 2, 0);
    uint8_t *none = calloc(N, op_slope_bytes(F));
    assert_non_null(none);
    t[2] = tensor_of(&pair, TENSOR_BYTES, none, N * op_slope_bytes(F));
    free(none);
}
static void run_fc1(device *d, int i)
{
    d->op->linear_gelu_slope_fwd(d, t[1].p[i], t[2].p[i], t[0].p[i], &w[i], N);
}
static double bytes_fc1(void)
{
    return ct(N * C + 3 * N * F + F * C) + (double)(N * op_slope_bytes(F));
}
static double flop_mlp(void)
{
    return 2.0 * (double)N * (double)C * (double)F;
}

/* The slopes are made by fc1 on each side: their order is the back end's own. */
static linear_w above[TWINS];
static void make_fc2_dx(void)
{
    weight(C, F);
    BOTH(pair, i) above[i] = w[i];
    make_fc1();
    BOTH(pair, i) run_fc1(&pair.d[i], i);
    t[3] = tensor_ct(&pair, N * C, 5, 1);
}
static void run_fc2_dx(device *d, int i)
{
    d->op->linear_dx_slope(d, t[1].p[i], t[3].p[i], &above[i], t[2].p[i], N);
}

static void make_dw(void)
{
    t[0] = tensor_ct(&pair, N * C, 1, 1);
    t[1] = tensor_ct(&pair, N * C, 2, 1);
    t[2] = tensor_f32(&pair, C * C, 3, 0);
    t[3] = tensor_f32(&pair, C, 3, 0);
}
static void run_dw(device *d, int i)
{
    d->op->zero(d, t[2].p[i], C * C * 4);
    d->op->zero(d, t[3].p[i], C * 4);
    d->op->linear_dw(d, t[2].p[i], t[3].p[i], t[0].p[i], t[1].p[i], NULL, C, N, C, C);
}
static double bytes_dw(void)
{
    return ct(3 * N * C) + 12.0 * (double)(C * C);
}

/* --- attention */

static void make_attention(void)
{
    t[0] = tensor_ct(&pair, N * 3 * C, 1, 1);
    t[1] = tensor_ct(&pair, N * C, 2, 0);
    t[2] = tensor_f32(&pair, B * H * T, 3, 0);
    t[3] = tensor_ct(&pair, N * C, 4, 1);
    t[4] = tensor_ct(&pair, N * 3 * C, 5, 0);
    BOTH(pair, i)
    {
        err e;
        device *d = &pair.d[i];
        ASSERT_OK(device_reserve(d, d->op->attention_bytes(d, false, B, T, H, D, true), &e));
        d->op->attention_fwd(d, t[1].p[i], t[2].p[i], t[0].p[i], B, T, H, D);
    }
}
static void run_attention(device *d, int i)
{
    d->op->attention_fwd(d, t[1].p[i], t[2].p[i], t[0].p[i], B, T, H, D);
}
static double bytes_attention(void)
{
    return ct(4 * N * C) + 4.0 * (double)(B * H * T);
}
static double flop_attention(void)
{
    return 4.0 * (double)N * (double)T * (double)C;
}
static void run_attention_bwd(device *d, int i)
{
    d->op->attention_bwd(d, t[4].p[i], t[3].p[i], t[0].p[i], t[1].p[i], t[2].p[i], B, T, H, D);
}
static double bytes_attention_bwd(void)
{
    return ct(8 * N * C) + 4.0 * (double)(B * H * T);
}
static double flop_attention_bwd(void)
{
    return 2.5 * flop_attention();
}

/* --- rows */

static void make_norm(void)
{
    t[0] = tensor_ct(&pair, N * C, 1, 1);
    t[1] = tensor_ct(&pair, N * C, 2, 0);
    t[2] = tensor_f32(&pair, N, 3, 0);
    t[3] = tensor_f32(&pair, N, 4, 0);
    t[4] = tensor_f32(&pair, C, 5, 1);
    t[5] = tensor_f32(&pair, C, 6, 1);
    t[6] = tensor_ct(&pair, N * C, 7, 1);
    t[7] = tensor_ct(&pair, N * C, 8, 0);
    t[8] = tensor_f32(&pair, C, 5, 0);
    t[9] = tensor_f32(&pair, C, 5, 0);
    BOTH(pair, i)
    pair.d[i].op->norm_fwd(&pair.d[i], t[1].p[i], t[2].p[i], t[3].p[i], t[0].p[i], t[4].p[i], t[5].p[i], 1e-6f, N, C);
}
static void run_norm(device *d, int i)
{
    d->op->norm_fwd(d, t[1].p[i], t[2].p[i], t[3].p[i], t[0].p[i], t[4].p[i], t[5].p[i], 1e-6f, N, C);
}
static double bytes_norm(void)
{
    return ct(2 * N * C) + 8.0 * (double)N;
}
static void run_norm_bwd(device *d, int i)
{
    d->op->norm_bwd(d, t[7].p[i], false, NULL, NULL, t[6].p[i], t[0].p[i], t[2].p[i], t[3].p[i], t[4].p[i], NULL, NULL,
                    N, C);
}
static double bytes_norm_bwd(void)
{
    return ct(3 * N * C) + 8.0 * (double)N;
}
static void run_norm_params(device *d, int i)
{
    d->op->zero(d, t[8].p[i], C * 4);
    d->op->zero(d, t[9].p[i], C * 4);
    d->op->norm_bwd(d, t[7].p[i], false, t[8].p[i], t[9].p[i], t[6].p[i], t[0].p[i], t[2].p[i], t[3].p[i], t[4].p[i],
                    NULL, NULL, N, C);
}
static double bytes_norm_params(void)
{
    return ct(5 * N * C) + 16.0 * (double)N;
}
static void run_residual_bwd(device *d, int i)
{
    d->op->residual_bwd(d, t[7].p[i], t[6].p[i], t[4].p[i], N, C);
}
static double bytes_two(void)
{
    return ct(2 * N * C);
}

static void make_gelu(void)
{
    t[0] = tensor_ct(&pair, N * F, 1, 1.5f);
    t[1] = tensor_ct(&pair, N * F, 2, 1);
    t[2] = tensor_ct(&pair, N * F, 3, 0);
}
static void run_gelu(device *d, int i)
{
    d->op->gelu_fwd(d, t[2].p[i], t[0].p[i], N * F);
}
static void run_gelu_bwd(device *d, int i)
{
    d->op->gelu_bwd(d, t[2].p[i], t[1].p[i], t[0].p[i], N * F);
}
static double bytes_gelu(void)
{
    return ct(2 * N * F);
}
static double bytes_gelu_bwd(void)
{
    return ct(3 * N * F);
}

static void make_patchify(void)
{
    t[0] = tensor_f32(&pair, B * 3 * 224 * 224, 1, 1);
    t[1] = tensor_ct(&pair, B * 3 * 224 * 224, 2, 0);
}
static void run_patchify(device *d, int i)
{
    d->op->patchify(d, t[1].p[i], t[0].p[i], B, 224, 224, 14);
}
static double bytes_patchify(void)
{
    return 6.0 * (double)(B * 3 * 224 * 224);
}

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

#define BIT(i) (1u << (i))
static const bench_case cases[] = {
    {"linear_fwd (qkv)", make_qkv, run_qkv, BIT(1), 1e-5, bytes_qkv, flop_qkv},
    {"linear_residual_fwd", make_projection, run_projection, BIT(3), 1e-5, bytes_projection, flop_square},
    {"linear_gelu_slope_fwd", make_fc1, run_fc1, BIT(1), 3e-5, bytes_fc1, flop_mlp},
    {"linear_dx_slope", make_fc2_dx, run_fc2_dx, BIT(1), 3e-5, bytes_fc1, flop_mlp},
    {"linear_dw", make_dw, run_dw, BIT(2) | BIT(3), 1e-5, bytes_dw, flop_square},
    {"attention_fwd", make_attention, run_attention, BIT(1) | BIT(2), 5e-5, bytes_attention, flop_attention},
    {"attention_bwd", make_attention, run_attention_bwd, BIT(4), 2e-4, bytes_attention_bwd, flop_attention_bwd},
    {"norm_fwd", make_norm, run_norm, BIT(1) | BIT(2) | BIT(3), 1e-5, bytes_norm, NULL},
    {"norm_bwd", make_norm, run_norm_bwd, BIT(7), 2e-5, bytes_norm_bwd, NULL},
    {"norm_bwd, dgamma, dbeta", make_norm, run_norm_params, BIT(7) | BIT(8) | BIT(9), 2e-5, bytes_norm_params, NULL},
    {"residual_bwd", make_norm, run_residual_bwd, BIT(7), 1e-5, bytes_two, NULL},
    {"gelu_fwd", make_gelu, run_gelu, BIT(2), 1e-5, bytes_gelu, NULL},
    {"gelu_bwd", make_gelu, run_gelu_bwd, BIT(2), 1e-5, bytes_gelu_bwd, NULL},
    {"patchify", make_patchify, run_patchify, BIT(1), 1e-5, bytes_patchify, NULL},
    {"soft_ce", make_logits, run_soft_ce, BIT(2) | BIT(6), 2e-5, bytes_soft_ce, NULL},
    {"teacher_softmax", make_logits, run_teacher, BIT(2) | BIT(3) | BIT(4) | BIT(6), 2e-5, bytes_teacher, NULL},
    {"grad_square, adamw", make_optimiser, run_adamw, BIT(0) | BIT(4) | BIT(5) | BIT(6), 1e-5, bytes_adamw, NULL},
};

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
    bool trial = argc > 1 && !strcmp(argv[1], "cpu");
    size_t images = argc > 1 && !trial ? strtoul(argv[1], NULL, 10) : trial ? 1 : 32;
    err e;
    C = argc > 2 ? strtoul(argv[2], NULL, 10) : 768;
    if (!images || C % 64 || !C) {
        fprintf(stderr, "bench_cuda [IMAGES|cpu [WIDTH]]\n");
        return 64;
    }
    if (trial) prototypes = 1024, copied = (size_t)4 << 20, product_rows = 16;
    B = 2 * images;
    H = C / D;
    F = 4 * C;
    N = B * T;
    ASSERT_OK(device_open_cpu(&pair.d[CPU], 0, COMPUTE_F32, &e));
    if (trial)
        ASSERT_OK(device_open_cpu(&pair.d[CUDA], 0, COMPUTE_AUTO, &e));
    else if (device_open_cuda(&pair.d[CUDA], 0, COMPUTE_BF16, &e)) {
        fprintf(stderr, "bench_cuda: %s\n", e.msg);
        return 77;
    }
    ceilings();
    printf("{\"images\": %zu, \"width\": %zu, \"copy_gb_per_s\": %.1f, \"product_tflop_per_s\": %.2f, \"ops\": [", B, C,
           copy_rate * 1e-9, product_rate * 1e-12);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) one_case(&cases[i], i == 0);
    printf("\n]}\n");
    BOTH(pair, i) device_close(&pair.d[i]);
    return wrong ? 1 : 0;
}
