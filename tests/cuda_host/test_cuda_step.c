/* Whole steps of both stages on the CUDA back end against the CPU's: a ViT of two blocks, its self-supervised step (by
 * several methods) and a step of fine-tuning, and the bytes they take against those that a counting device foretold.
 * The first step runs plainly, later ones as graphs. */
#include "adapt/ssl_step.h"
#include "model/op_count.h"
#include "preprocess/sampler.h"
#include "tests/cuda_host/emu_fail.h"
#include "tests/cuda_host/twin.h"

enum { SIDES = TWINS + 1, COUNT = TWINS }; /* CPU, CUDA, the device that counts for it */
enum { BATCH = 2, LOCALS = 2, GLOBAL = 16, LOCAL = 8, PATCH = 8, PATCHES = (GLOBAL / PATCH) * (GLOBAL / PATCH) };
enum { PROTOTYPES = 24, STEPS = 3, CLASSES = 3, NOT_FINITE = 99 };
enum { FRAME = 24, CROPS = (2 + LOCALS) * BATCH, FRAMES_THERE = (BATCH - 1) * FRAME * FRAME * 2 };

typedef struct {
    const char *what, *shape;
    peft_method method;
    compute_type ct;
    ssl_centering centering;
    bool recompute;
    size_t accumulate;
    bool crops; /* made on the device */
    bool old;   /* a GPU without bf16 (sm_75): fp32 in memory, forward products by fp16 */
} step_case;

#define SHAPE "dim=64,depth=2,heads=2,patch=8,grid=2"
static const step_case cases[] = {
    {"apla", SHAPE, METHOD_APLA, COMPUTE_F32, SSL_SOFTMAX, false, 1, false, false},
    {"apla, bf16, made again", SHAPE, METHOD_APLA, COMPUTE_BF16, SSL_SOFTMAX, true, 1, false, false},
    {"full", SHAPE, METHOD_FULL, COMPUTE_F32, SSL_SINKHORN, false, 1, false, false},
    {"lora, two micro-batches", SHAPE, METHOD_LORA, COMPUTE_F32, SSL_SOFTMAX, false, 2, false, false},
    {"apla, crops made there", SHAPE, METHOD_APLA, COMPUTE_F32, SSL_SOFTMAX, false, 1, true, false},
    {"full, bf16, crops made there", SHAPE, METHOD_FULL, COMPUTE_BF16, SSL_SINKHORN, false, 1, true, false},
    {"apla, sm_75", SHAPE, METHOD_APLA, COMPUTE_AUTO, SSL_SOFTMAX, false, 1, false, true},
};
enum { CASES = sizeof cases / sizeof *cases };

/* One side's model, with what trains in it. */
typedef struct {
    device d;
    vit *m;
    param_set ps;
    ssl_step s;
    const void *cpu; /* d.impl, if it is the CPU */
} side;

static void open_side(side *x, int which, const step_case *c, bool teacher)
{
    err e = {0};
    vit_source source = {.seed = 5};
    *x = (side){0};
    if (which == CPU) ASSERT_OK(device_open_cpu(&x->d, 1, COMPUTE_F32, &e));
    if (which == CUDA) ASSERT_OK(op_cuda_open(&x->d, 0, c->ct, &e));
    if (which == COUNT) ASSERT_OK(op_count_open(&x->d, 1, c->old ? COMPUTE_F32 : c->ct, OP_COUNT_CUDA, &e));
    x->cpu = which == CPU ? x->d.impl : NULL;
    ASSERT_OK(vit_named_config(c->shape, &source.random, &e));
    ASSERT_OK(vit_open(&x->m, &x->d, &source, &e));
    peft_spec spec = {.method = c->method,
                      .rows = c->method == METHOD_APLA ? 24 : 0,
                      .rank = 4,
                      .alpha = 8,
                      .targets = PEFT_Q | PEFT_V | PEFT_FC1,
                      .seed = 3,
                      .teacher = teacher};
    ASSERT_OK(vit_train(x->m, &spec, &x->ps, &e));
}

static void close_side(side *x)
{
    vit_untrain(x->m);
    param_set_free(&x->d, &x->ps);
    vit_close(x->m);
    device_close(&x->d);
}

static void open_step(side *x, const step_case *c)
{
    err e = {0};
    ssl_step_config k = {.batch = BATCH,
                         .locals = LOCALS,
                         .global_size = GLOBAL,
                         .local_size = LOCAL,
                         .recompute = c->recompute,
                         .masked_most = 6,
                         .frame_bytes = c->crops ? FRAMES_THERE : 0,
                         .accumulate = c->accumulate,
                         .rows_at_once = 5,
                         .head = {(size_t)vit_get_config(x->m)->dim, 32, 16, PROTOTYPES},
                         .centering = c->centering,
                         .dino = 1,
                         .ibot = 1,
                         .koleo = 0.1f,
                         .student_temp = 0.1f,
                         .center_momentum = 0.9f,
                         .clip = 0.5f,
                         .seed = 7};
    ASSERT_OK(ssl_step_open(&x->s, x->m, &x->ps, &k, &e));
}

static void fill(float *x, size_t n, uint64_t seed)
{
    rng g = rng_at(seed, 0, 0, 0);
    for (size_t i = 0; i < n; i++) x[i] = rng_normal(&g);
}

/* Frames of a micro-batch, of which the last does not go up with the others, and its crops: what the CPU makes of them
 * at once, a GPU makes in the step. */
static void draw_crops(int number, const sampler_norm *norm, sample_job *jobs, float *globals, float *locals)
{
    static int16_t pixels[BATCH * FRAME * FRAME];
    static const frame_info frame = {.rows = FRAME, .columns = FRAME, .channels = 1, .type = PIXEL_I16, .slope = 1};
    rng r = rng_at((uint64_t)number, RNG_TEST, 0, 0);
    for (size_t i = 0; i < BATCH * FRAME * FRAME; i++) pixels[i] = (int16_t)rng_below(&r, 1000);
    for (size_t k = 0; k < CROPS; k++) {
        bool global = k < 2 * BATCH;
        size_t size = global ? GLOBAL : LOCAL, first = global ? k : k - 2 * BATCH;
        jobs[k] = (sample_job){.frame = &frame,
                               .pixels = pixels + k % BATCH * FRAME * FRAME,
                               .crop = {.x = rng_between(&r, 0, 5),
                                        .y = rng_between(&r, 0, 5),
                                        .width = rng_between(&r, 7, 20),
                                        .height = rng_between(&r, 7, 20),
                                        .flip = k % 3 == 0,
                                        .contrast = rng_between(&r, -0.4f, 0.4f),
                                        .blur_sigma = k % 2 ? 0.8f : 0},
                               .size = (int)size,
                               .out = (global ? globals : locals) + first * 3 * size * size};
    }
    assert_int_equal(sampler_run(NULL, norm, jobs, CROPS), ERR_OK);
}

static void gradients(side *x, const step_case *c, int number)
{
    static float globals[2 * BATCH * 3 * GLOBAL * GLOBAL], locals[LOCALS * BATCH * 3 * LOCAL * LOCAL];
    static uint8_t mask[2 * BATCH * PATCHES];
    static sampler_norm norm = {.mean = {0.4f, 0.5f, 0.6f}, .std = {0.2f, 0.3f, 0.4f}};
    sample_job jobs[CROPS];
    err e = {0};
    assert_int_equal(window_parse("0/1000", &norm.window, NULL), ERR_OK);
    for (size_t i = 0; i < c->accumulate; i++) {
        ssl_step_in in = {.globals = globals, .locals = locals, .mask = mask, .teacher_temp = 0.05f};
        const crop_frame there = {.bytes = FRAMES_THERE};
        ssl_step_crops crops = {{jobs, CROPS, &there, 1, NULL, FRAMES_THERE, NULL}, &norm};
        fill(globals, sizeof globals / sizeof *globals, (uint64_t)number * 10 + 2 * i + 1);
        fill(locals, sizeof locals / sizeof *locals, (uint64_t)number * 10 + 2 * i + 2);
        if (number == NOT_FINITE) globals[7] = NAN;
        if (c->crops) {
            draw_crops(number, &norm, jobs, globals, locals);
            crops.block.frames = jobs[0].pixels;
            if (x->d.impl != x->cpu) in.crops = &crops;
        }
        memset(mask, 0, sizeof mask);
        for (size_t k = 0; k < 5; k++) mask[(k * 3 + (size_t)number) % sizeof mask] = 1;
        ASSERT_OK(ssl_step_gradients(&x->s, &in, NULL, &e));
    }
}

static ssl_step_update_in update_of(int number)
{
    return (ssl_step_update_in){.adam = {.beta1 = 0.9f,
                                         .beta2 = 0.99f,
                                         .eps = 1e-4f, /* a gradient's sign alone moves no weight */
                                         .weight_decay = 0.04f,
                                         .lr = 1e-3f,
                                         .head_lr = 2e-3f,
                                         .t = {number + 1, number + 1, number + 1}},
                                .momentum = 0.9f};
}

static void step(side *x, const step_case *c, int number, ssl_step_out *out)
{
    ssl_step_update_in u = update_of(number);
    err e = {0};
    gradients(x, c, number);
    ASSERT_OK(ssl_step_update(&x->s, &u, out, &e));
}

/* The difference's square over the reference's, of n fp32 values on the two devices. */
static double apart(side *x, dv *cpu, dv *cuda, size_t n)
{
    float *a = malloc((n + 1) * sizeof *a), *b = malloc((n + 1) * sizeof *b);
    double off = 0, size = 1e-20;
    err e;
    assert_true(a && b);
    x[CPU].d.op->download(&x[CPU].d, a, cpu, n * sizeof *a);
    x[CUDA].d.op->download(&x[CUDA].d, b, cuda, n * sizeof *b);
    ASSERT_OK(device_sync(&x[CUDA].d, &e));
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(b[i])) fail_msg("value %zu is %g, not %g", i, (double)b[i], (double)a[i]);
        off += ((double)b[i] - a[i]) * ((double)b[i] - a[i]);
        size += (double)a[i] * a[i];
    }
    free(a);
    free(b);
    return off / size;
}

static void at_most(const char *what, const char *name, double got, double most)
{
    if (!(got <= most)) fail_msg("%s %s: NMSE %g, at most %g", what, name, got, most);
}

/* All params of the two sides: the worst of each kind is printed. A bias that began at zero is its first update alone,
 * whose direction is anybody's where bf16's gradient is all rounding: weights have a wider bound than gradients. */
static void compare_params(side *x, double gradients, double weights)
{
    double worst[3] = {0};
    assert_int_equal(x[CPU].ps.n, x[CUDA].ps.n);
    for (size_t i = 0; i < x[CPU].ps.n; i++) {
        const param *a = &x[CPU].ps.p[i], *b = &x[CUDA].ps.p[i];
        size_t n = a->rows * a->cols;
        assert_string_equal(a->name, b->name);
        double got[3] = {apart(x, a->grad, b->grad, n), apart(x, a->master, b->master, n),
                         a->teacher ? apart(x, a->teacher, b->teacher, n) : 0};
        at_most("gradient", a->name, got[0], gradients);
        at_most("weight", a->name, got[1], weights);
        at_most("teacher", a->name, got[2], weights);
        for (int k = 0; k < 3; k++) worst[k] = fmax(worst[k], got[k]);
    }
    printf("    gradients %.1e, weights %.1e, teacher %.1e of %zu params\n", worst[0], worst[1], worst[2], x[CPU].ps.n);
}

static void compare_out(const ssl_step_out *a, const ssl_step_out *b, double most)
{
    const float want[] = {a->loss,
                          a->dino,
                          a->ibot,
                          a->koleo,
                          a->target_entropy[0],
                          a->target_entropy[1],
                          a->marginal_entropy[0],
                          a->marginal_entropy[1],
                          a->grad_norm};
    const float got[] = {b->loss,
                         b->dino,
                         b->ibot,
                         b->koleo,
                         b->target_entropy[0],
                         b->target_entropy[1],
                         b->marginal_entropy[0],
                         b->marginal_entropy[1],
                         b->grad_norm};
    double worst = 0;
    for (int i = 0; i < 9; i++) worst = fmax(worst, fabs(got[i] - want[i]) / (1 + fabs(want[i])));
    printf("    loss %.6f and %.6f, all terms within %.1e\n", (double)a->loss, (double)b->loss, worst);
    if (!(worst <= most)) fail_msg("a term is %g apart, at most %g", worst, most);
}

static void ssl_steps(void **state)
{
    (void)state;
    for (int i = 0; i < CASES; i++) {
        const step_case *c = &cases[i];
        bool bf16 = c->ct == COMPUTE_BF16 || c->old;
        if (c->old) setenv("CUDA_EMU_SM", "75", 1);
        side x[SIDES];
        ssl_step_out out[SIDES];
        printf("  %s\n", c->what);
        for (int k = 0; k < SIDES; k++) {
            open_side(&x[k], k, c, true);
            open_step(&x[k], c);
        }
        for (int n = 0; n < STEPS; n++) {
            for (int k = 0; k < SIDES; k++) step(&x[k], c, n, &out[k]);
            /* behind the first update weights in bf16 are others */
            compare_out(&out[CPU], &out[CUDA], c->old ? 4e-3 : bf16 ? (n ? 0.06 : 0.02) : 1e-4);
            if (n == 0) compare_params(x, c->old ? 2e-5 : bf16 ? 2e-3 : 1e-6, c->old ? 2e-4 : bf16 ? 4e-2 : 1e-8);
        }
        for (int g = 0; g < 2 && c->centering == SSL_SOFTMAX; g++)
            at_most("centre", "", apart(x, x[CPU].s.group[g].center, x[CUDA].s.group[g].center, PROTOTYPES),
                    bf16 ? 1e-2 : 1e-6);
        printf("    planned %zu bytes, used %zu, and %zu pinned\n", x[COUNT].d.bytes_most, x[CUDA].d.bytes_most,
               op_cuda_memory_pinned(&x[CUDA].d));
        assert_int_equal(x[COUNT].d.bytes, x[CUDA].d.bytes);
        assert_int_equal(x[COUNT].d.bytes_most, x[CUDA].d.bytes_most);
        assert_int_equal(op_count_pinned(&x[COUNT].d), op_cuda_memory_pinned(&x[CUDA].d));
        for (int k = 0; k < SIDES; k++) {
            ssl_step_close(&x[k].s);
            close_side(&x[k]);
        }
        unsetenv("CUDA_EMU_SM");
    }
}

static float *values_of(side *x, dv *from, size_t n)
{
    err e;
    float *v = malloc((n + 1) * sizeof *v);
    assert_non_null(v);
    x->d.op->download(&x->d, v, from, n * sizeof *v);
    ASSERT_OK(device_sync(&x->d, &e));
    return v;
}

/* The next step is asked before the one before is read, and no further ahead; what comes of each is what it was. A step
 * that is not finite changes nothing: not weights, nor moments, teacher and centres. */
static void read_late(void **state)
{
    (void)state;
    const step_case *c = &cases[0];
    side x[TWINS];
    ssl_step_out want = {0}, got, next;
    err e = {0};
    BOTH(, k)
    {
        open_side(&x[k], k, c, true);
        open_step(&x[k], c);
    }
    side *gpu = &x[CUDA];
    for (int n = 0; n < STEPS + 2; n++) { /* plainly, then as graphs */
        ssl_step_update_in u = update_of(n);
        step(&x[CPU], c, n, &next);
        gradients(gpu, c, n);
        ASSERT_OK(ssl_step_ask(&gpu->s, &u, &e));
        assert_int_equal(ssl_step_unread(&gpu->s), n ? 2 : 1);
        if (n) {
            ASSERT_OK(ssl_step_read(&gpu->s, &got, &e));
            compare_out(&want, &got, 1e-4);
        }
        want = next;
    }
    ssl_step_update_in u = update_of(NOT_FINITE);
    const param *p = &gpu->ps.p[0];
    size_t n = p->rows * p->cols;
    struct {
        dv *at;
        size_t n;
    } all[] = {{p->master, n},
               {p->m, n},
               {p->v, n},
               {p->teacher, n},
               {gpu->s.group[0].center, PROTOTYPES},
               {gpu->s.group[1].center, PROTOTYPES}};
    float *before[6];
    for (int i = 0; i < 6; i++) before[i] = values_of(gpu, all[i].at, all[i].n);
    gradients(gpu, c, NOT_FINITE);
    ASSERT_OK(ssl_step_ask(&gpu->s, &u, &e));
    assert_int_equal(ssl_step_unread(&gpu->s), 2);
    for (size_t i = 0; i < c->accumulate; i++) gradients(gpu, c, 1);
    assert_int_equal(ssl_step_ask(&gpu->s, &u, &e), ERR_INTERNAL); /* no further ahead */
    e = (err){0};
    ASSERT_OK(ssl_step_read(&gpu->s, &got, &e));
    compare_out(&want, &got, 1e-4);
    assert_int_equal(ssl_step_read(&gpu->s, &got, &e), ERR_NUMERIC);
    e = (err){0};
    assert_int_equal(ssl_step_read(&gpu->s, &got, &e), ERR_INTERNAL); /* there is no other */
    for (int i = 0; i < 6; i++) {
        float *after = values_of(gpu, all[i].at, all[i].n);
        assert_memory_equal(before[i], after, all[i].n * sizeof *after);
        free(before[i]);
        free(after);
    }
    BOTH(, k)
    {
        ssl_step_close(&x[k].s);
        close_side(&x[k]);
    }
}

/* Once it runs as graphs, a step takes no memory and waits for nothing, its update neither. */
static void no_waits(void **state)
{
    (void)state;
    for (int i = 0; i < CASES; i++) {
        const step_case *c = &cases[i];
        side x;
        ssl_step_out out;
        err e = {0};
        if (c->old) setenv("CUDA_EMU_SM", "75", 1);
        open_side(&x, CUDA, c, true);
        open_step(&x, c);
        for (int n = 0; n < 2 * STEPS + 2; n++) {
            ssl_step_update_in u = update_of(n);
            emu_counts before = emu_counted();
            gradients(&x, c, n);
            emu_counts asked = emu_counted();
            ASSERT_OK(ssl_step_ask(&x.s, &u, &e));
            emu_counts after = emu_counted();
            if (n >= 2 * STEPS) {
                assert_int_equal(asked.memory, before.memory);
                assert_int_equal(asked.waits, before.waits);
                assert_int_equal(after.memory, asked.memory);
                assert_true(after.waits - asked.waits <= 1); /* a send's, for the one before */
            }
            if (n) ASSERT_OK(ssl_step_read(&x.s, &out, &e));
        }
        ASSERT_OK(ssl_step_read(&x.s, &out, &e));
        printf("  %s: graphs made %zu\n", c->what, op_cuda_graph_made(&x.d));
        ssl_step_close(&x.s);
        close_side(&x);
        unsetenv("CUDA_EMU_SM");
    }
}

/* A classifier on the class token, trained with the backbone. */
typedef struct {
    vit_pass pass;
    dv *block, *pixels, *target, *rows, *token, *d_token, *logits, *d_logits, *f32, *d_f32, *loss;
    linear_w head;
    optim optim;
} tuning;

static dv *taken(device *d, size_t bytes)
{
    err e;
    dv *p;
    ASSERT_OK(d->op->alloc(d, bytes, &p, &e));
    return p;
}

static void open_tuning(side *x, tuning *t)
{
    err e = {0};
    device *d = &x->d;
    size_t B = BATCH, C = (size_t)vit_get_config(x->m)->dim, O = CLASSES, ct = d->ct_bytes;
    arena dry = {0}, real;
    float weight[CLASSES * 64], bias[CLASSES] = {0};
    int32_t row[BATCH];
    *t = (tuning){0};
    ASSERT_OK(vit_pass_plan(&t->pass, &dry, x->m, B, GLOBAL, GLOBAL, VIT_GRAD, &e));
    t->block = taken(d, dry.used);
    arena_init(&real, t->block, dry.used);
    ASSERT_OK(vit_pass_plan(&t->pass, &real, x->m, B, GLOBAL, GLOBAL, VIT_GRAD, &e));
    ASSERT_OK(device_reserve(d, vit_pass_work_bytes(x->m, B, GLOBAL, GLOBAL, VIT_GRAD), &e));
    dv **all[] = {&t->pixels, &t->target,   &t->rows, &t->token, &t->d_token,
                  &t->logits, &t->d_logits, &t->f32,  &t->d_f32, &t->loss};
    size_t bytes[] = {B * 3 * GLOBAL * GLOBAL * 4,
                      B * O * 4,
                      B * 4,
                      B * C * ct,
                      B * C * ct,
                      B * O * ct,
                      B * O * ct,
                      B * O * 4,
                      B * O * 4,
                      4};
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++) *all[i] = taken(d, bytes[i]);
    for (size_t i = 0; i < B; i++) row[i] = (int32_t)(i * t->pass.T);
    d->op->upload(d, t->rows, row, sizeof row);
    fill(weight, sizeof weight / sizeof *weight, 77);
    param *W = param_add(&x->ps, "head.weight", O, C), *b;
    ASSERT_OK(param_alloc(d, W, weight, false, &e));
    b = param_add(&x->ps, "head.bias", O, 1);
    ASSERT_OK(param_alloc(d, b, bias, false, &e));
    W = b - 1;
    W->head = b->head = W->live_ct = true;
    t->head = (linear_w){.out = O, .in = C, .w = taken(d, O * C * ct), .bias = taken(d, O * 4), .version = 1};
    W->live = t->head.w;
    W->linear = &t->head;
    b->live = t->head.bias;
    d->op->refresh(d, x->ps.p, x->ps.n);
    ASSERT_OK(optim_init(&t->optim, d, &x->ps, 1, &e));
}

static float tune(side *x, tuning *t, int number)
{
    device *d = &x->d;
    const op_table *op = d->op;
    size_t B = BATCH, C = t->head.in, O = CLASSES;
    float pixels[BATCH * 3 * GLOBAL * GLOBAL], target[BATCH * CLASSES] = {0}, loss;
    param *W = &x->ps.p[x->ps.n - 2], *b = W + 1;
    adamw_step a = {
        .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-4f, .lr = 1e-3f, .head_lr = 1e-2f, .t = {number + 1, number + 1}};
    err e;
    fill(pixels, sizeof pixels / sizeof *pixels, (uint64_t)number + 100);
    for (size_t i = 0; i < B; i++) target[i * O + (i + (size_t)number) % O] = 1;
    op->upload(d, t->pixels, pixels, sizeof pixels);
    op->upload(d, t->target, target, sizeof target);
    op->record(d, true);
    op->zero(d, t->loss, sizeof loss);
    optim_zero(&t->optim);
    vit_patches(x->m, VIT_STUDENT, &t->pass, t->pixels);
    vit_fwd(x->m, VIT_STUDENT, &t->pass, t->pass.patches, NULL);
    op->gather(d, t->token, t->pass.out, t->rows, B, C);
    op->linear_fwd(d, t->logits, t->token, &t->head, B);
    op->to_f32(d, t->f32, t->logits, B * O);
    op->softmax_ce(d, t->loss, t->d_f32, t->f32, t->target, 1.0f / BATCH, B, O);
    op->to_ct(d, t->d_logits, t->d_f32, B * O);
    op->linear_dw(d, W->grad, b->grad, t->d_logits, t->token, NULL, O, B, O, C);
    op->linear_dx(d, t->d_token, t->d_logits, &t->head, B);
    op->zero(d, t->pass.dout, B * t->pass.T * C * d->ct_bytes);
    op->scatter_add(d, t->pass.dout, t->d_token, t->rows, B, C);
    vit_bwd(x->m, &t->pass, t->pixels, NULL);
    optim_ask(&t->optim, &a);
    op->record(d, false);
    op->download(d, &loss, t->loss, sizeof loss);
    ASSERT_OK(device_sync(d, &e));
    return loss;
}

static void close_tuning(side *x, tuning *t)
{
    dv *all[] = {t->block,    t->pixels, t->target, t->rows, t->token,  t->d_token,  t->logits,
                 t->d_logits, t->f32,    t->d_f32,  t->loss, t->head.w, t->head.bias};
    optim_fini(&t->optim);
    x->d.op->linear_release(&x->d, &t->head);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) x->d.op->free(&x->d, all[i]);
    vit_pass_fini(&t->pass);
}

static void tuning_steps(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        step_case c = {"full", SHAPE, METHOD_FULL, bf16 ? COMPUTE_BF16 : COMPUTE_F32, SSL_SOFTMAX, false,
                       1,      false, false};
        side x[TWINS];
        tuning t[TWINS];
        BOTH(, k)
        {
            open_side(&x[k], k, &c, false);
            open_tuning(&x[k], &t[k]);
        }
        for (int n = 0; n < STEPS + 2; n++) {
            float loss[TWINS];
            BOTH(, k) loss[k] = tune(&x[k], &t[k], n);
            printf("  %s, fine-tuning, step %d: loss %.6f and %.6f\n", bf16 ? "bf16" : "f32", n, (double)loss[CPU],
                   (double)loss[CUDA]);
            assert_true(fabs(loss[CPU] - loss[CUDA]) <= (bf16 ? 0.05 : 1e-4) * (1 + fabs(loss[CPU])));
            if (n == 0) compare_params(x, bf16 ? 1e-3 : 1e-6, bf16 ? 5e-3 : 1e-8);
        }
        BOTH(, k)
        {
            close_tuning(&x[k], &t[k]);
            close_side(&x[k]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(ssl_steps), cmocka_unit_test(read_late),
                                       cmocka_unit_test(no_waits), cmocka_unit_test(tuning_steps)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
