/* floor_cuda MODEL METHOD BATCH [PROTOTYPES [LOCALS [ops]]]: computed, not measured: the bytes that one step of
 * self-supervised adaptation must move and the operations it must do on a GPU, op by op, hence the time that it cannot
 * go below. The step runs on the counting device (model/op_count.h), each op counted on its way: operands read once,
 * results written once, as the kernels of model/cuda do it; an op takes the longer of its bytes at the memory's rate
 * and its products at the tensor cores'. One line for each card, with the time that is supposed where kernels reach
 * stated shares of these rates; with `ops` a table of them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapt/ssl_step.h"
#include "model/op_count.h"

enum { GLOBAL = 224, LOCAL = 98, OPS_MOST = 64, CARDS = 2 };

/* Data sheets: H100 SXM; RTX A5000, for a workstation's card of 24 GB. Dense bf16 with fp32 sums. */
static const struct {
    const char *name;
    double bytes, flop; /* a second */
} cards[CARDS] = {{"H100 SXM (3.35 TB/s, 990 TFLOP/s)", 3.35e12, 990e12},
                  {"RTX A5000 24 GB (0.768 TB/s, 111 TFLOP/s)", 0.768e12, 111e12}};

/* What kernels are supposed to reach of these rates, so that a whole step can be told beside its floor: cuBLASLt's
 * products, our own by mma.sync (which of an H100's tensor cores reaches no more), attention's, and memory's; and what
 * a launch in a graph costs. Assumed, not measured. */
enum { OF_CUBLAS, OF_OURS, OF_ATTENTION, OF_MEMORY, OF_KINDS };
static const double share[CARDS][OF_KINDS] = {{0.75, 0.60, 0.50, 0.88}, {0.85, 0.80, 0.70, 0.88}};
static const double LAUNCH_SECONDS = 1.5e-6;

static struct {
    const char *name;
    double calls, bytes, flop, time[CARDS], expected[CARDS];
} ops[OPS_MOST];
static int n_ops;
static err e;

static void check(err_code rc)
{
    if (!rc) return;
    fprintf(stderr, "floor_cuda: %s\n", e.msg);
    exit(1);
}

static int kind_of(const char *name)
{
    return !strncmp(name, "linear", 6) ? OF_CUBLAS : !strncmp(name, "product", 7) ? OF_OURS : OF_ATTENTION;
}

static void count(const char *name, double bytes, double flop)
{
    int i = 0;
    while (i < n_ops && strcmp(ops[i].name, name)) i++;
    if (i == OPS_MOST) exit(1);
    if (i == n_ops) ops[n_ops++].name = name;
    ops[i].calls++;
    ops[i].bytes += bytes;
    ops[i].flop += flop;
    for (int c = 0; c < CARDS; c++) {
        double memory = bytes / cards[c].bytes, products = flop / cards[c].flop;
        ops[i].time[c] += memory > products ? memory : products;
        memory /= share[c][OF_MEMORY];
        products /= share[c][kind_of(name)];
        ops[i].expected[c] += (memory > products ? memory : products) + LAUNCH_SECONDS;
    }
}

#pragma GCC diagnostic ignored "-Wunused-parameter"

/* Bytes of n values of the compute type, and of fp32. */
static double ct(const device *d, size_t n)
{
    return (double)n * (double)d->ct_bytes;
}
static double f32(size_t n)
{
    return (double)n * 4;
}

static void upload(device *d, dv *dst, const void *src, size_t bytes)
{
    count("upload", (double)bytes, 0);
}
static void zero(device *d, dv *p, size_t bytes)
{
    count("zero", (double)bytes, 0);
}
static void copy(device *d, dv *dst, const dv *src, size_t bytes)
{
    count("copy", 2 * (double)bytes, 0);
}
static void add(device *d, dv *dst, const dv *src, size_t n)
{
    count("add", 3 * ct(d, n), 0);
}
static double product(const device *d, const linear_w *w, size_t N)
{
    return ct(d, N * w->in + N * w->out + w->in * w->out) + (w->bias ? f32(w->out) : 0);
}
static double operations(const linear_w *w, size_t N)
{
    return 2.0 * (double)N * (double)w->in * (double)w->out;
}
static void linear_fwd(device *d, dv *y, const dv *x, linear_w *w, size_t N)
{
    count("linear_fwd", product(d, w, N), operations(w, N));
}
/* GELU and slopes are the product's own end (linear.cu). */
static void linear_gelu_fwd(device *d, dv *y, dv *pre, const dv *x, linear_w *w, size_t N)
{
    count("product_gelu", product(d, w, N) + (pre ? ct(d, N * w->out) : 0), operations(w, N));
}
static void linear_gelu_slope_fwd(device *d, dv *y, dv *slope, const dv *x, linear_w *w, size_t N)
{
    count("product_gelu_slope", product(d, w, N) + (double)(N * op_slope_bytes(w->out)), operations(w, N));
}
static void linear_residual_fwd(device *d, dv *out, const dv *x, const dv *in, linear_w *w, const dv *ls, dv *branch,
                                dv *rest, const op_norm *then, size_t N)
{
    count("linear_fwd", product(d, w, N), operations(w, N));
    count(then ? "residual_norm" : "residual_bias_fwd", (3 + !!then + 2 * !!rest) * ct(d, N * w->out), 0);
}
static void linear_dx(device *d, dv *dx, const dv *dy, linear_w *w, size_t N)
{
    count("linear_dx", product(d, w, N), operations(w, N));
}
static void linear_dx_slope(device *d, dv *dx, const dv *dy, linear_w *w, const dv *slope, size_t N)
{
    count("product_slope", product(d, w, N) + (double)(N * op_slope_bytes(w->in)), operations(w, N));
}
static void linear_dw(device *d, dv *dw, dv *db, const dv *dy, const dv *x, const dv *rows, size_t R, size_t N,
                      size_t O, size_t I)
{
    if (dw) count("linear_dw", ct(d, N * R + N * I) + 2 * f32(R * I), 2.0 * (double)N * (double)R * (double)I);
    if (db) count("column_sums", ct(d, N * R), 0);
}
static void patchify(device *d, dv *out, const dv *pixels, size_t B, size_t height, size_t width, size_t p)
{
    count("patchify", f32(B * 3 * height * width) + ct(d, B * 3 * height * width), 0);
}
static void embed_fwd(device *d, dv *x, const dv *patches, const dv *cls, const dv *reg, const dv *pos,
                      const dv *mask_token, const dv *mask, size_t B, size_t P, size_t R, size_t S, size_t C)
{
    count("embed_fwd", 2 * ct(d, B * P * C) + f32((P + 1) * C), 0);
}
static void embed_bwd(device *d, dv *dpatches, dv *dcls, dv *dreg, dv *dpos, dv *dmask_token, const dv *dx,
                      const dv *mask, bool cls, size_t B, size_t P, size_t R, size_t S, size_t C)
{
    count("embed_bwd", ct(d, B * P * C) * (dpatches ? 2 : 1) + f32((P + 1) * C), 0);
}
static void norm_fwd(device *d, dv *y, dv *mean, dv *rstd, const dv *x, const dv *gamma, const dv *beta, float eps,
                     size_t N, size_t C)
{
    count("norm_fwd", 2 * ct(d, N * C) + (mean ? f32(2 * N) : 0), 0);
}
static void norm_bwd(device *d, dv *dx, bool accumulate, dv *dgamma, dv *dbeta, const dv *dy, const dv *x,
                     const dv *mean, const dv *rstd, const dv *gamma, dv *dbranch, const dv *ls, size_t N, size_t C)
{
    count("norm_bwd", ((accumulate ? 4 : 3) + (dbranch ? 1 : 0)) * ct(d, N * C) + f32(2 * N), 0);
    if (dgamma || dbeta) count("norm_params", 2 * ct(d, N * C), 0);
}
static void norm_again(device *d, dv *y, const dv *x, const dv *mean, const dv *rstd, const dv *gamma, const dv *beta,
                       size_t N, size_t C)
{
    count("norm_again", 2 * ct(d, N * C) + f32(2 * N), 0);
}
static void residual_fwd(device *d, dv *out, const dv *x, const dv *branch, const dv *ls, dv *rest, size_t N, size_t C)
{
    count("residual_fwd", (rest ? 5 : 3) * ct(d, N * C), 0);
}
static void residual_bwd(device *d, dv *dbranch, const dv *dout, const dv *ls, size_t N, size_t C)
{
    count("residual_bwd", 2 * ct(d, N * C), 0);
}
static void scale_grad(device *d, dv *dls, const dv *ls, const dv *w, const dv *dw, const dv *bias, const dv *db,
                       size_t R, size_t I)
{
    count("scale_grad", f32(R * I) + ct(d, R * I), 0);
}
static void gelu_fwd(device *d, dv *y, const dv *pre, size_t n)
{
    count("gelu_fwd", 2 * ct(d, n), 0);
}
static void gelu_bwd(device *d, dv *dpre, const dv *dy, const dv *pre, size_t n)
{
    count("gelu_bwd", 3 * ct(d, n), 0);
}
static void swiglu_fwd(device *d, dv *y, const dv *pre, size_t N, size_t F)
{
    count("swiglu_fwd", 3 * ct(d, N * F), 0);
}
static void swiglu_bwd(device *d, dv *dpre, const dv *dy, const dv *pre, size_t N, size_t F)
{
    count("swiglu_bwd", 5 * ct(d, N * F), 0);
}
static void attention_fwd(device *d, dv *o, dv *lse, const dv *qkv, size_t B, size_t T, size_t H, size_t D)
{
    count("attention_fwd", 4 * ct(d, B * T * H * D) + (lse ? f32(B * H * T) : 0),
          4.0 * (double)(B * T) * (double)T * (double)(H * D));
}
/* Five products: the scores are made again. */
static void attention_bwd(device *d, dv *dqkv, const dv *d_o, const dv *qkv, const dv *o, const dv *lse, size_t B,
                          size_t T, size_t H, size_t D)
{
    count("attention_bwd", 8 * ct(d, B * T * H * D) + f32(B * H * T),
          10.0 * (double)(B * T) * (double)T * (double)(H * D));
}
static void mean_token(device *d, dv *out, const dv *x, size_t B, size_t T, size_t first, size_t C)
{
    count("mean_token", 2 * ct(d, B * T * C), 0);
}
static void gather(device *d, dv *out, const dv *x, const dv *rows, size_t n, size_t C)
{
    count("gather", 2 * ct(d, n * C), 0);
}
static void mix_rows(device *d, dv *out, bool add, const dv *in, const dv *first, const dv *index, const dv *weight,
                     size_t n, size_t C)
{
    count("mix_rows", (2 + add) * f32(n * C), 0);
}
static void scatter_add(device *d, dv *dx, const dv *dout, const dv *rows, size_t n, size_t C)
{
    count("scatter_add", 3 * ct(d, n * C), 0);
}
static void l2_fwd(device *d, dv *y, dv *norm, const dv *x, size_t N, size_t C)
{
    count("l2_fwd", 2 * ct(d, N * C), 0);
}
static void l2_bwd(device *d, dv *dx, const dv *dy, const dv *y, const dv *norm, size_t N, size_t C)
{
    count("l2_bwd", 3 * ct(d, N * C), 0);
}
static void weight_norm_fwd(device *d, dv *w_ct, const dv *v, size_t K, size_t C)
{
    count("weight_norm_fwd", f32(K * C) + ct(d, K * C), 0);
}
static void weight_norm_bwd(device *d, dv *dv_f32, const dv *dw, const dv *v, size_t K, size_t C)
{
    count("weight_norm_bwd", 3 * f32(K * C), 0);
}
/* A row of 65,536 bf16 logits is 128 KiB: read once, its second reading comes from the cache. */
static void teacher_softmax(device *d, dv *q, dv *sum, dv *mean, dv *entropy, const dv *logits, const dv *center,
                            float tau, size_t N, size_t K)
{
    count("teacher_softmax", 2 * ct(d, N * K), 0);
}
static void mean_entropy(device *d, dv *out, const dv *mean, size_t N, size_t K)
{
    count("mean_entropy", f32(K), 0);
}
static void center_update(device *d, dv *center, const dv *sum, float m, size_t N, size_t K, const dv *square)
{
    count("center_update", 3 * f32(K), 0);
}
static void soft_ce(device *d, dv *loss, dv *dlogits, const dv *logits, const dv *q, const dv *pair, const dv *weight,
                    size_t P, float tau, size_t N, size_t K)
{
    count("soft_ce", (2 + (double)P) * ct(d, N * K), 0);
}
static void koleo(device *d, dv *loss, dv *dx, const dv *x, float w, size_t N, size_t C)
{
    count("koleo", 2 * ct(d, N * C), 0);
}
static double values_of(const param *p, size_t n, bool followed)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        if (!followed || p[i].teacher) sum += (double)(p[i].rows * p[i].cols);
    return sum;
}
static void grad_square(device *d, dv *out, const param *p, size_t n, const adamw_step *s)
{
    count("grad_square", 4 * values_of(p, n, false), 0);
}
/* Gradient, master, two moments read; master, moments and the live copy written; a teacher read and written, and its
 * live copy. */
static void adamw(device *d, param *p, size_t n, const adamw_step *s, const dv *square)
{
    double all = values_of(p, n, false), follow = s->average ? values_of(p, n, true) : 0;
    count("adamw", (7 * 4 + (double)d->ct_bytes) * all + (2 * 4 + (double)d->ct_bytes) * follow, 0);
}

static op_table counting(const op_table *bare)
{
    op_table t = *bare;
    t.upload = upload, t.zero = zero, t.copy = copy, t.add = add;
    t.linear_fwd = linear_fwd, t.linear_gelu_fwd = linear_gelu_fwd, t.linear_gelu_slope_fwd = linear_gelu_slope_fwd;
    t.linear_residual_fwd = linear_residual_fwd, t.linear_dx = linear_dx, t.linear_dx_slope = linear_dx_slope;
    t.linear_dw = linear_dw, t.patchify = patchify, t.embed_fwd = embed_fwd, t.embed_bwd = embed_bwd;
    t.norm_fwd = norm_fwd, t.norm_bwd = norm_bwd, t.norm_again = norm_again;
    t.residual_fwd = residual_fwd, t.residual_bwd = residual_bwd, t.scale_grad = scale_grad;
    t.gelu_fwd = gelu_fwd, t.gelu_bwd = gelu_bwd;
    t.swiglu_fwd = swiglu_fwd, t.swiglu_bwd = swiglu_bwd, t.attention_fwd = attention_fwd;
    t.attention_bwd = attention_bwd, t.mean_token_fwd = mean_token, t.mean_token_bwd = mean_token;
    t.gather = gather, t.scatter_add = scatter_add, t.mix_rows = mix_rows, t.l2_fwd = l2_fwd, t.l2_bwd = l2_bwd;
    t.weight_norm_fwd = weight_norm_fwd, t.weight_norm_bwd = weight_norm_bwd, t.teacher_softmax = teacher_softmax;
    t.mean_entropy = mean_entropy, t.center_update = center_update, t.soft_ce = soft_ce, t.koleo = koleo;
    t.grad_square = grad_square, t.adamw = adamw;
    return t;
}

static int by_time(const void *a, const void *b)
{
    size_t at = offsetof(__typeof__(ops[0]), time);
    double x = *(const double *)((const char *)a + at), y = *(const double *)((const char *)b + at);
    return (x < y) - (x > y);
}

static long argument(int argc, char **argv, int i, long otherwise)
{
    return argc > i ? strtol(argv[i], NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
    static const peft_method methods[] = {METHOD_FULL, METHOD_APLA, METHOD_LORA, METHOD_BITFIT};
    static const char *const names[] = {"full", "apla", "lora", "bitfit"};
    size_t B = (size_t)argument(argc, argv, 3, 32), K = (size_t)argument(argc, argv, 4, 65536);
    size_t L = (size_t)argument(argc, argv, 5, 8), which = 0;
    while (argc > 2 && which < 4 && strcmp(argv[2], names[which])) which++;
    if (argc < 3 || which == 4 || !B) {
        fprintf(stderr, "floor_cuda MODEL full|apla|lora|bitfit BATCH [PROTOTYPES [LOCALS [ops]]]\n");
        return 64;
    }
    device d;
    vit *m;
    param_set ps = {0};
    ssl_step s;
    vit_source source = {0};
    check(op_count_open(&d, 1, COMPUTE_BF16, OP_COUNT_CUDA, &e));
    op_table table = counting(d.op);
    d.op = &table;
    check(vit_named_config(argv[1], &source.random, &e));
    check(vit_open(&m, &d, &source, &e));
    const vit_config *c = vit_get_config(m);
    size_t side = GLOBAL / (size_t)c->patch, P = side * side, each = P * 3 / 10;
    peft_spec spec = {.method = methods[which], .teacher = true, .rank = 8};
    check(vit_train(m, &spec, &ps, &e));
    ssl_step_config k = {.batch = B,
                         .locals = L,
                         .global_size = GLOBAL,
                         .local_size = (size_t)(LOCAL / c->patch * c->patch),
                         .masked_most = B * each,
                         .head = {(size_t)c->dim, 2048, 256, K},
                         .dino = 1,
                         .ibot = 1,
                         .koleo = 0.1f,
                         .student_temp = 0.1f,
                         .center_momentum = 0.9f,
                         .clip = 1};
    check(ssl_step_open(&s, m, &ps, &k, &e));
    uint8_t *mask = calloc(2 * B, P);
    if (!mask) return 1;
    for (size_t i = 0; i < B; i++) memset(mask + i * P, 1, each); /* of the first half of the globals */
    float *globals = calloc(2 * B * 3, GLOBAL * GLOBAL * sizeof *globals);
    float *locals = calloc((L * B + 1) * 3, LOCAL * LOCAL * sizeof *locals);
    if (!globals || !locals) return 1;
    ssl_step_out out;
    ssl_step_in in = {.globals = globals, .locals = locals, .mask = mask, .teacher_temp = 0.04f};
    ssl_step_update_in update = {.adam = {.beta1 = 0.9f, .beta2 = 0.999f, .t = {1, 1, 1}}, .momentum = 0.994f};
    for (int i = 0; i < 2; i++) { /* what opening and the first step alone ask does not count */
        n_ops = 0;
        memset(ops, 0, sizeof ops);
        check(ssl_step_gradients(&s, &in, &out, &e));
        check(ssl_step_update(&s, &update, &out, &e));
    }
    double bytes = 0, flop = 0, time[CARDS] = {0}, expected[CARDS] = {0};
    for (int i = 0; i < n_ops; i++) {
        bytes += ops[i].bytes;
        flop += ops[i].flop;
        for (int j = 0; j < CARDS; j++) time[j] += ops[i].time[j], expected[j] += ops[i].expected[j];
    }
    printf("%s %s batch %zu: %.2f TFLOP, %.2f GB moved, %.0f MiB of GPU memory\n", argv[1], argv[2], B, flop * 1e-12,
           bytes * 1e-9, (double)d.bytes_most / 1048576);
    for (int j = 0; j < CARDS; j++)
        printf("    %-44s %8.2f ms at least, %8.1f images/s at most; supposed %8.2f ms, %.2f times that\n",
               cards[j].name, time[j] * 1e3, (double)B / time[j], expected[j] * 1e3, expected[j] / time[j]);
    if (argc > 6) {
        qsort(ops, (size_t)n_ops, sizeof ops[0], by_time);
        printf("\n%-20s %7s %10s %10s %10s %10s\n", "op", "calls", "GB", "GFLOP", "H100 ms", "A5000 ms");
        for (int i = 0; i < n_ops; i++)
            printf("%-20s %7.0f %10.3f %10.1f %10.3f %10.3f\n", ops[i].name, ops[i].calls, ops[i].bytes * 1e-9,
                   ops[i].flop * 1e-9, ops[i].time[0] * 1e3, ops[i].time[1] * 1e3);
    }
    free(mask);
    free(globals);
    free(locals);
    ssl_step_close(&s);
    param_set_free(&d, &ps);
    vit_close(m);
    device_close(&d);
    return 0;
}
