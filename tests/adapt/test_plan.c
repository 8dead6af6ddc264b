/* Plans equal runs: what a device that counts says of a stage is, to the byte, what the stage then took; and plans of
 * models that this machine could not hold take no time. */
#include "adapt/bundle.h"
#include "adapt/plan.h"
#include "adapt/ssl_mask.h"
#include "base/log.h"
#include "base/progress.h"
#include "model/op_count.h"
#include "model/op_cpu.h"
#include "tests/adapt/world.h"

/* A device that nothing was done on. */
static void fresh_device(world *w, compute_type ct)
{
    err e = {0};
    device_close(&w->d);
    ASSERT_OK(device_open_cpu(&w->d, 2, ct, &e));
}

static vit *counted_vit(device *d, const char *shape, int threads, compute_type ct, op_count_kind kind)
{
    err e = {0};
    vit *m;
    vit_source s = {.seed = 5};
    ASSERT_OK(vit_named_config(shape, &s.random, &e));
    ASSERT_OK(op_count_open(d, threads, ct, kind, &e));
    ASSERT_OK(vit_open(&m, d, &s, &e));
    return m;
}

static size_t sum(const plan *p)
{
    size_t n = 0;
    for (int i = 0; i < PLAN_CLASSES; i++) n += p->bytes[i];
    return n;
}

static peft_spec spec_of(peft_method method, int r)
{
    return (peft_spec){.method = method,
                       .rows = method == METHOD_APLA ? r : 0,
                       .rank = 4,
                       .alpha = 8,
                       .targets = PEFT_Q | PEFT_V | PEFT_FC1,
                       .prompts = 3,
                       .deep = true};
}

static ssl_options adapt_options(peft_method method, int rows)
{
    ssl_options o;
    err e = {0};
    ASSERT_OK(ssl_recipe("default", method, &o, &e));
    o.epochs = 0.2;
    o.batch = 5;
    o.global_size = 32;
    o.local_size = 16;
    o.locals = 2;
    o.hidden = 32;
    o.bottleneck = 16;
    o.view = (view_options){.size = 32, .share = 1, .batch = 4};
    o.peft = spec_of(method, rows);
    return o;
}

static const struct {
    const char *what;
    peft_method method;
    int rows;
    compute_type ct;
    bool recompute;
} rows[] = {{"apla", METHOD_APLA, 0, COMPUTE_F32, false},
            {"apla, 16 rows", METHOD_APLA, 16, COMPUTE_AUTO, false},
            {"apla, made again", METHOD_APLA, 0, COMPUTE_AUTO, true},
            {"lora", METHOD_LORA, 0, COMPUTE_AUTO, false},
            {"lora, made again", METHOD_LORA, 0, COMPUTE_AUTO, true},
            {"bitfit", METHOD_BITFIT, 0, COMPUTE_AUTO, false},
            {"vpt", METHOD_VPT, 0, COMPUTE_AUTO, false},
            {"vpt, made again", METHOD_VPT, 0, COMPUTE_F32, true},
            {"full", METHOD_FULL, 0, COMPUTE_AUTO, false},
            {"full, made again", METHOD_FULL, 0, COMPUTE_AUTO, true},
            {"apla, swiglu", METHOD_APLA, 0, COMPUTE_AUTO, false},
            {"lora, swiglu", METHOD_LORA, 0, COMPUTE_AUTO, false},
            {"full, swiglu, made again", METHOD_FULL, 0, COMPUTE_AUTO, true}};
enum { ROWS = sizeof rows / sizeof *rows };

static const char *shape_of(int row)
{
    return strstr(rows[row].what, "swiglu") ? WORLD_BACKBONE ",swiglu=1" : WORLD_BACKBONE;
}

/* Under WORK/runs/name. */
static void check_adapt(world *w, const ssl_options *o, const char *what, const char *shape, compute_type ct,
                        const char *name)
{
    err e = {0};
    char dir[FILE_PATH_MAX];
    ssl_result r;
    plan p;
    device d;
    size_t frames = 0;
    for (size_t f = 0; f < w->c.n_frames; f++) frames += w->c.part[f] == SPLIT_TRAIN || w->c.part[f] == SPLIT_NONE;
    vit *m = counted_vit(&d, shape, 2, ct, OP_COUNT_CPU);
    ASSERT_OK(plan_adapt(&p, m, o, frames, &e));
    vit_close(m);
    device_close(&d);

    fresh_device(w, ct);
    world_path(w, name, "", dir);
    m = world_vit_of(w, shape);
    ASSERT_OK(ssl_adapt(m, &w->c, o, dir, &r, &e));
    print_message("adapt %s: planned %zu, used %zu\n", what, p.device, w->d.bytes_most);
    assert_int_equal(p.device, w->d.bytes_most);
    assert_int_equal(p.device, (size_t)r.peak_bytes);
    assert_int_equal(sum(&p), p.total);
    assert_int_equal(p.trainable, r.trainable);
    vit_close(m);
    assert_int_equal(w->d.bytes, w->d.work ? op_cpu_alloc_bytes(w->d.work_bytes) : 0); /* all else was given back */
}

static void adapt_as_planned(void **state)
{
    for (int i = 0; i < ROWS; i++) {
        char name[32];
        ssl_options o = adapt_options(rows[i].method, rows[i].rows);
        o.recompute = rows[i].recompute;
        snprintf(name, sizeof name, "plan-%d", i);
        check_adapt(*state, &o, rows[i].what, shape_of(i), rows[i].ct, name);
    }
}

/* The objective's options. */
static const struct {
    const char *what;
    float ibot, probability, ratio[2], drop_path;
    int crop_from, locals, accumulate;
    bool separate_heads, sinkhorn, data_init;
} objectives[] = {{"two heads", 1, 0.5f, {0.1f, 0.5f}, 0, 0, 2, 1, true, false, true},
                  {"two heads, Sinkhorn-Knopp", 1, 0.5f, {0.1f, 0.5f}, 0, 0, 2, 1, true, true, false},
                  {"no masks", 0, 0.5f, {0.1f, 0.5f}, 0, 0, 2, 1, false, false, true},
                  {"no masks, random head", 0, 0.5f, {0.1f, 0.5f}, 0, 0, 2, 1, false, false, false},
                  {"probability 0", 1, 0, {0.1f, 0.5f}, 0, 0, 2, 1, false, false, true},
                  {"masks of all", 1, 1, {0.9f, 1}, 0, 0, 2, 1, false, false, true},
                  {"masks of few", 1, 0.2f, {0.1f, 0.2f}, 0, 0, 2, 1, false, false, false},
                  {"from squares", 1, 0.5f, {0.1f, 0.5f}, 0, 40, 2, 1, false, false, true},
                  {"no local crops", 1, 0.5f, {0.1f, 0.5f}, 0, 0, 0, 1, false, false, true},
                  {"two batches an update", 1, 0.5f, {0.1f, 0.5f}, 0.3f, 0, 2, 2, true, false, true}};

static void objectives_as_planned(void **state)
{
    for (size_t i = 0; i < sizeof objectives / sizeof *objectives; i++) {
        char name[32];
        ssl_options o = adapt_options(METHOD_APLA, 0);
        o.ibot = objectives[i].ibot;
        o.mask_probability = objectives[i].probability;
        memcpy(o.mask_ratio, objectives[i].ratio, sizeof o.mask_ratio);
        o.drop_path = objectives[i].drop_path;
        o.crop_from = objectives[i].crop_from;
        o.locals = objectives[i].locals;
        o.accumulate = objectives[i].accumulate;
        o.separate_heads = objectives[i].separate_heads;
        o.sinkhorn = objectives[i].sinkhorn;
        o.data_init = objectives[i].data_init;
        o.prototypes = 8192; /* so that what they add is seen; too many for clusters, which would take their time */
        o.epochs = 0.4;
        snprintf(name, sizeof name, "plan-objective-%zu", i);
        check_adapt(*state, &o, objectives[i].what, WORLD_BACKBONE, COMPUTE_AUTO, name);
    }
}

static void finetune_as_planned(void **state)
{
    world *w = *state;
    for (int i = 0; i < ROWS; i++) {
        err e = {0};
        char dir[FILE_PATH_MAX], name[32];
        finetune_options o;
        finetune_defaults(&o, rows[i].method);
        o.recompute = rows[i].recompute;
        o.epochs = 1;
        o.batch = 5;
        o.view = (view_options){.size = 32, .share = 1, .batch = 4};
        peft_spec peft = spec_of(rows[i].method, rows[i].rows);
        finetune_result r;
        plan p;
        device d;
        vit *m = counted_vit(&d, shape_of(i), 2, rows[i].ct, OP_COUNT_CPU);
        ASSERT_OK(plan_finetune(&p, m, &peft, &o, w->c.n_labels, &e));
        vit_close(m);
        device_close(&d);

        fresh_device(w, rows[i].ct);
        snprintf(name, sizeof name, "plan-tune-%d", i);
        world_path(w, name, "", dir);
        m = world_vit_of(w, shape_of(i));
        param_set ps = {0};
        bundle_info info = {.peft = peft, .n_labels = w->c.n_labels};
        ASSERT_OK(vit_train(m, &peft, &ps, &e));
        info.labels = calloc((size_t)w->c.n_labels, sizeof *info.labels);
        for (int k = 0; k < w->c.n_labels; k++) memcpy(info.labels[k].name, w->c.labels[k], sizeof info.labels[k].name);
        ASSERT_OK(finetune_run(m, &ps, &w->c, &o, &info, dir, &r, &e));
        print_message("finetune %s: planned %zu, used %zu\n", rows[i].what, p.device, w->d.bytes_most);
        assert_int_equal(p.device, w->d.bytes_most);
        assert_int_equal(sum(&p), p.total);
        vit_close(m);
        param_set_free(&w->d, &ps);
        free(info.labels);
    }
}

/* A bundle on its backbone, looking at the cohort: what trains is merged and gone by then. */
static void predict_as_planned(void **state)
{
    world *w = *state;
    for (int i = 0; i < ROWS; i++) {
        if (rows[i].recompute) continue;
        err e = {0};
        char path[FILE_PATH_MAX], name[32];
        peft_spec peft = spec_of(rows[i].method, rows[i].rows);
        view_options v = {.size = 32, .share = 1};
        plan p;
        device d;
        vit *m = counted_vit(&d, WORLD_BACKBONE, 2, rows[i].ct, OP_COUNT_CPU);
        ASSERT_OK(plan_predict(&p, m, &peft, &v, &e));
        vit_close(m);
        device_close(&d);

        fresh_device(w, rows[i].ct);
        snprintf(name, sizeof name, "plan-predict-%d", i);
        world_path(w, name, "", path);
        ASSERT_OK(file_mkdirs(path, &e));
        world_path(w, name, "model.safetensors", path);
        m = world_vit(w);
        param_set ps = {0};
        bundle_info info = {.peft = peft, .n_labels = w->c.n_labels, .heads = 2, .size = 32, .share = 1};
        float head[64] = {0};
        ASSERT_OK(vit_train(m, &peft, &ps, &e));
        for (int k = 0; k < 2; k++) {
            param *q = param_add(&ps, k ? "head.bias" : "head.weight", (size_t)w->c.n_labels, k ? 1 : 32);
            ASSERT_OK(param_alloc(&w->d, q, head, false, &e));
        }
        snprintf(info.backbone, sizeof info.backbone, "%s", vit_hash(m));
        snprintf(info.backbone_random, sizeof info.backbone_random, "%s seed=5", WORLD_BACKBONE);
        info.labels = calloc((size_t)w->c.n_labels, sizeof *info.labels);
        for (int k = 0; k < w->c.n_labels; k++) memcpy(info.labels[k].name, w->c.labels[k], sizeof info.labels[k].name);
        ASSERT_OK(bundle_write(path, &w->d, &ps, &info, &e));
        vit_close(m);
        param_set_free(&w->d, &ps);
        free(info.labels);

        fresh_device(w, rows[i].ct);
        bundle *b;
        findings f;
        ASSERT_OK(bundle_open(&b, &w->d, path, NULL, &e));
        ASSERT_OK(bundle_predict(b, &w->c, &f, &e));
        print_message("predict %s: planned %zu, used %zu\n", rows[i].what, p.device, w->d.bytes_most);
        assert_int_equal(p.device, w->d.bytes_most);
        assert_int_equal(sum(&p), p.total);
        findings_fini(&f);
        bundle_close(b);
    }
}

/* Operations by hand: a block's four layers (of the last one three for wanted rows alone: class tokens, masked
 * patches), attention's two products, the patches. */
static void operations(void **state)
{
    (void)state;
    err e = {0};
    device d;
    ssl_options o = adapt_options(METHOD_FULL, 0);
    plan full, apla;
    enum { C = 64, F = 256, L = 3, P = 16, T = 17, LP = 4, LT = 5, B = 5, PATCH = 3 * 8 * 8 };
    static const char shape[] = "dim=64,depth=3,heads=2,patch=8,grid=4";
    vit *m = counted_vit(&d, shape, 1, COMPUTE_F32, OP_COUNT_CPU);
    ASSERT_OK(plan_adapt(&full, m, &o, 100, &e));
    vit_close(m);
    device_close(&d);
    o = adapt_options(METHOD_APLA, 0);
    m = counted_vit(&d, shape, 1, COMPUTE_F32, OP_COUNT_CPU);
    ASSERT_OK(plan_adapt(&apla, m, &o, 100, &e));
    vit_close(m);
    device_close(&d);
    ssl_mask mask = {2 * B, 4, 4, o.mask_probability, o.mask_ratio[0], o.mask_ratio[1]};
    double N = 2 * B * T, n = 2 * B * LT, W = 2 * B + (double)ssl_mask_most(&mask), w = 2 * B;
    double linear = 2 * (L - 1) * (4.0 * C * C + 2.0 * C * F) + 2 * 3.0 * C * C, top = 2 * (C * C + 2.0 * C * F);
    double attention = 4.0 * L * C * (N * T + n * LT), patches = 2.0 * 2 * B * (P + LP) * C * PATCH;
    double forward = linear * (N + n) + top * (W + w) + attention + patches;
    assert_true(fabs(full.flop[PLAN_FORWARD] / forward - 1) < 1e-9);
    assert_true(fabs(full.flop[PLAN_DW] / (linear * (N + n) + top * (W + w) + patches) - 1) < 1e-9);
    assert_true(fabs(full.flop[PLAN_DX] / (linear * (N + n) + top * (W + w) + 2 * attention) - 1) < 1e-9);
    double teacher = linear * N + top * W + 4.0 * L * C * N * T,
           own = 2.0 * 2 * B * P * C * PATCH; /* full: its own patches */
    assert_true(fabs(full.flop[PLAN_TEACHER_FORWARD] / (teacher + own) - 1) < 1e-9);
    assert_true(fabs(apla.flop[PLAN_TEACHER_FORWARD] / teacher - 1) < 1e-9);
    assert_true(fabs(apla.flop[PLAN_FORWARD] / forward - 1) < 1e-9);
    assert_true(fabs(apla.flop[PLAN_DW] / (2.0 * C * C * ((L - 1) * (N + n) + W + w)) - 1) < 1e-9);
    assert_true(apla.flop[PLAN_DX] < full.flop[PLAN_DX] && apla.flop[PLAN_HEAD_ALL] == full.flop[PLAN_HEAD_ALL]);
    assert_true(apla.total < full.total && apla.bytes[PLAN_MOMENTS] * 10 < full.bytes[PLAN_MOMENTS]);
    assert_int_equal(full.bytes[PLAN_MOMENTS], 2 * full.bytes[PLAN_GRADIENT]);
}

/* What recomputation does again is told apart, in fine-tuning too. */
static void again(void **state)
{
    (void)state;
    finetune_options o;
    plan p[2];
    finetune_defaults(&o, METHOD_APLA);
    o.view = (view_options){.size = 32, .share = 1};
    for (int i = 0; i < 2; i++) {
        err e = {0};
        device d;
        peft_spec peft = spec_of(METHOD_APLA, 0);
        vit *m = counted_vit(&d, WORLD_BACKBONE, 1, COMPUTE_F32, OP_COUNT_CPU);
        o.recompute = i;
        ASSERT_OK(plan_finetune(&p[i], m, &peft, &o, 3, &e));
        vit_close(m);
        device_close(&d);
    }
    /* The last block's activations are still there; of the other all but its last layer is made again. */
    enum { N = 32 * 17, T = 17, C = 32, F = 128 };
    assert_true(p[0].flop[PLAN_AGAIN] == 0);
    assert_true(p[1].flop[PLAN_AGAIN] == 2.0 * N * (4 * C * C + C * F) + 4.0 * N * T * C);
    for (int i = 0; i < PLAN_FLOPS; i++)
        if (i != PLAN_AGAIN) assert_true(p[0].flop[i] == p[1].flop[i]);
}

/* A model of a thousand million weights: planned at once, on less memory than one of its layers has. */
static void nothing_is_made(void **state)
{
    (void)state;
    err e = {0};
    device d;
    ssl_options o;
    plan p;
    ASSERT_OK(ssl_recipe("default", METHOD_FULL, &o, &e));
    double start = progress_clock();
    vit *m = counted_vit(&d, "vit-g/14", 1, COMPUTE_BF16, OP_COUNT_CUDA);
    ASSERT_OK(plan_adapt(&p, m, &o, 1000000, &e));
    vit_close(m);
    device_close(&d);
    print_message("%.1f GB planned in %.2f s\n", (double)p.total * 1e-9, progress_clock() - start);
    assert_true(p.trainable > 1100000000 && p.total > 20 * p.trainable);
    assert_int_equal(p.bytes[PLAN_PACKED], 0);
    long rss_kib = -1;
    FILE *f = fopen("/proc/self/status", "r");
    assert_non_null(f);
    for (char line[128]; fgets(line, sizeof line, f);) sscanf(line, "VmRSS: %ld", &rss_kib);
    fclose(f);
    assert_true(rss_kib > 0 && rss_kib < 512 << 10);
}

int main(void)
{
    log_open(stderr, LOG_TEXT, LOG_OFF);
    const struct CMUnitTest tests[] = {cmocka_unit_test(adapt_as_planned),    cmocka_unit_test(objectives_as_planned),
                                       cmocka_unit_test(finetune_as_planned), cmocka_unit_test(predict_as_planned),
                                       cmocka_unit_test(operations),          cmocka_unit_test(again),
                                       cmocka_unit_test(nothing_is_made)};
    return cmocka_run_group_tests(tests, world_make, world_unmake);
}
