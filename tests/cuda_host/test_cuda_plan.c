/* Plans of the CUDA back end: what a device that counts says of adaptation and of fine-tuning is, to the byte, what
 * whole runs of them then take of the GPU; and what is said where a GPU has less. */
#define TWIN_ANY_DEVICE
#include "adapt/features.h"
#include "adapt/finetune.h"
#include "adapt/plan.h"
#include "adapt/ssl.h"
#include "base/log.h"
#include "model/cuda/op_cuda.h"
#include "model/device_cuda.h"
#include "model/op_count.h"
#include "tests/adapt/world.h"

static const struct {
    const char *what;
    peft_method method;
    compute_type ct;
    size_t again; /* blocks that backward makes again */
    float mixup;  /* of fine-tuning */
} rows[] = {{"apla", METHOD_APLA, COMPUTE_F32, 0, 0}, {"full, made again, mixed", METHOD_FULL, COMPUTE_AUTO, 2, 0.4f}};
enum { ROWS = sizeof rows / sizeof *rows };

static peft_spec spec_of(int row)
{
    return (peft_spec){.method = rows[row].method};
}

static vit *counted_vit(device *d, const char *shape, compute_type ct)
{
    err e = {0};
    ASSERT_OK(op_count_open(d, 2, ct, OP_COUNT_CUDA, &e));
    return world_vit_on(d, shape);
}

static void close_counted(vit *m, device *d)
{
    vit_close(m);
    device_close(d);
}

/* Of a run that is over: what its device took, and nothing is left. */
static void as_planned(const char *stage, int row, const plan *p, vit *m, param_set *ps, device *d)
{
    print_message("%s %s: planned %zu, used %zu; pinned %zu, %zu\n", stage, rows[row].what, p->device, d->bytes_most,
                  p->bytes[PLAN_PINNED], op_cuda_memory_pinned(d));
    assert_int_equal(p->device, d->bytes_most);
    assert_in_range(op_cuda_memory_pinned(d), 1, p->bytes[PLAN_PINNED]);
    vit_close(m);
    if (ps) param_set_free(d, ps);
    assert_int_equal(d->bytes, op_cuda_alloc_bytes(OP_CUDA_SCRATCH_BYTES) + op_cuda_alloc_bytes(OP_CUDA_BLAS_BYTES) +
                                   (d->work ? op_cuda_alloc_bytes(d->work_bytes) : 0));
    device_close(d);
}

static void adapt_as_planned(void **state)
{
    world *w = *state;
    size_t frames = 0;
    for (size_t f = 0; f < w->c.n_frames; f++) frames += w->c.part[f] == SPLIT_TRAIN || w->c.part[f] == SPLIT_NONE;
    for (int i = 0; i < ROWS; i++) {
        err e = {0};
        char dir[FILE_PATH_MAX], name[32];
        ssl_options o = world_ssl(rows[i].method);
        ssl_result r;
        plan p;
        device d;
        o.epochs = 0.2;
        o.evaluate_epochs = 1;
        o.locals = 1;
        o.view.batch = 8;
        o.peft = spec_of(i);
        o.recompute = rows[i].again;
        vit *m = counted_vit(&d, WORLD_BACKBONE, rows[i].ct);
        ASSERT_OK(plan_adapt(&p, m, &o, frames, &e));
        close_counted(m, &d);

        ASSERT_OK(op_cuda_open(&d, 0, rows[i].ct, &e));
        m = world_vit_on(&d, WORLD_BACKBONE);
        snprintf(name, sizeof name, "plan-%d", i);
        world_path(w, name, "", dir);
        ASSERT_OK(ssl_adapt(m, &w->c, &o, dir, &r, &e));
        assert_true(r.steps >= 1);
        assert_int_equal(p.trainable, r.trainable);
        as_planned("adapt", i, &p, m, NULL, &d);
    }
}

static void finetune_as_planned(void **state)
{
    world *w = *state;
    for (int i = 0; i < ROWS; i++) {
        err e = {0};
        char dir[FILE_PATH_MAX], name[32];
        finetune_options o;
        finetune_result r;
        plan p;
        device d;
        finetune_defaults(&o, rows[i].method);
        o.recompute = rows[i].again;
        o.mixup = rows[i].mixup;
        o.epochs = 1;
        o.batch = 5;
        o.view = (view_options){.size = 32, .share = 1, .batch = 8};
        bundle_info info = {.peft = spec_of(i), .n_labels = w->c.n_labels};
        vit *m = counted_vit(&d, WORLD_BACKBONE, rows[i].ct);
        ASSERT_OK(plan_finetune(&p, m, &info.peft, &o, w->c.n_labels, &e));
        close_counted(m, &d);

        ASSERT_OK(op_cuda_open(&d, 0, rows[i].ct, &e));
        m = world_vit_on(&d, WORLD_BACKBONE);
        snprintf(name, sizeof name, "plan-tune-%d", i);
        world_path(w, name, "", dir);
        param_set ps = {0};
        ASSERT_OK(vit_train(m, &info.peft, &ps, &e));
        info.labels = calloc((size_t)w->c.n_labels, sizeof *info.labels);
        for (int k = 0; k < w->c.n_labels; k++) memcpy(info.labels[k].name, w->c.labels[k], sizeof info.labels[k].name);
        ASSERT_OK(finetune_run(m, &ps, &w->c, &o, &info, dir, &r, &e));
        free(info.labels);
        as_planned("finetune", i, &p, m, &ps, &d);
    }
}

static plan plan_of(int batch)
{
    err e = {0};
    device d;
    ssl_options o;
    plan p;
    ASSERT_OK(ssl_recipe("default", METHOD_APLA, &o, &e));
    o.peft = (peft_spec){.method = METHOD_APLA};
    o.batch = batch;
    vit *m = counted_vit(&d, "vit-ti/16", COMPUTE_AUTO);
    ASSERT_OK(plan_adapt(&p, m, &o, 1000, &e));
    close_counted(m, &d);
    return p;
}

/* From now on the GPU's memory is so large. */
static void gpu_has(size_t bytes)
{
    char text[32];
    snprintf(text, sizeof text, "%zu", bytes);
    setenv("CUDA_EMU_MEMORY", text, 1);
}

static void open_gpu(device *d, size_t bytes)
{
    err e = {0};
    gpu_has(bytes);
    ASSERT_OK(device_open_cuda_by(radapt_cuda_open, d, 0, COMPUTE_AUTO, &e));
    assert_int_equal(device_cuda_room(d), bytes);
}

static void close_gpu(device *d)
{
    device_close(d);
    unsetenv("CUDA_EMU_MEMORY");
}

/* Refused for the GPU's memory, in words that name it and the stage. */
static void refused(const plan *p, const device *d, err *e)
{
    char left[64];
    snprintf(left, sizeof left, "%zu are left", device_cuda_room(d) >> 20);
    *e = (err){0};
    assert_int_equal(plan_fits(p, d, "adapt", e), ERR_NOMEM);
    print_message("%s\n", e->msg);
    assert_non_null(strstr(e->msg, "adapt needs "));
    assert_non_null(strstr(e->msg, "of the GPU's memory"));
    assert_non_null(strstr(e->msg, left));
}

/* The number of images that is named fits, and not many more do. */
static void images_that_fit(void **state)
{
    (void)state;
    enum { BATCH = 32, MIB = 512 };
    err e = {0};
    device d;
    open_gpu(&d, (size_t)MIB << 20);
    plan p = plan_of(BATCH);
    assert_true(p.device > device_cuda_room(&d));
    assert_int_equal(plan_left(&p, &d), 0);
    refused(&p, &d, &e);
    const char *about = strstr(e.msg, "about ");
    assert_non_null(about);
    int images = atoi(about + strlen("about "));
    assert_non_null(strstr(about, "images at once would fit"));
    assert_in_range(images, 2, BATCH - 1);
    p = plan_of(images);
    ASSERT_OK(plan_fits(&p, &d, "adapt", &e));
    p = plan_of(images + images / 8 + 2);
    refused(&p, &d, &e);
    close_gpu(&d);
}

/* Where not even one image fits, and where all do and frames may stay. */
static void none_and_all_fit(void **state)
{
    (void)state;
    enum { SPARE = 12345 };
    err e = {0};
    device d;
    plan p = plan_of(8);
    size_t fixed = p.bytes[PLAN_WEIGHTS] + p.bytes[PLAN_WORK] + p.bytes[PLAN_HEAD];
    open_gpu(&d, fixed);
    refused(&p, &d, &e);
    assert_null(strstr(e.msg, "would fit"));
    assert_non_null(strstr(e.msg, "a smaller model"));
    gpu_has(p.device - 1);
    refused(&p, &d, &e);
    gpu_has(p.device + PLAN_CUDA_SPARE + SPARE);
    ASSERT_OK(plan_fits(&p, &d, "adapt", &e));
    assert_int_equal(plan_left(&p, &d), SPARE);
    close_gpu(&d);
}

/* Where a GPU has not the memory for as many images at once, features are taken of fewer, and are the same. */
static void fewer_at_once(void **state)
{
    world *w = *state;
    enum { BATCH = 16, FRAMES = 20 };
    const view_options v = {.size = 32, .share = 1, .batch = BATCH};
    uint32_t index[FRAMES];
    size_t C = 0, held = 0, most = 0;
    float *x[2];
    for (uint32_t i = 0; i < FRAMES; i++) index[i] = i;
    for (int little = 0; little < 2; little++) {
        err e = {0};
        device d;
        if (little) gpu_has(held + (most - held) / 3);
        ASSERT_OK(op_cuda_open(&d, 0, COMPUTE_F32, &e));
        vit *m = world_vit_on(&d, WORLD_BACKBONE);
        C = (size_t)vit_get_config(m)->dim;
        held = d.bytes;
        x[little] = malloc(FRAMES * C * sizeof(float));
        ASSERT_OK(features_extract(m, VIT_STUDENT, &w->c, index, FRAMES, &v, NULL, x[little], &e));
        if (little) assert_true(d.bytes_most < most);
        most = d.bytes_most;
        vit_close(m);
        device_close(&d);
    }
    unsetenv("CUDA_EMU_MEMORY");
    for (size_t i = 0; i < FRAMES * C; i++) assert_true(fabsf(x[0][i] - x[1][i]) < 1e-4f);
    free(x[0]), free(x[1]);
}

int main(void)
{
    log_open(stderr, LOG_TEXT, LOG_OFF);
    const struct CMUnitTest tests[] = {cmocka_unit_test(adapt_as_planned), cmocka_unit_test(finetune_as_planned),
                                       cmocka_unit_test(images_that_fit), cmocka_unit_test(none_and_all_fit),
                                       cmocka_unit_test(fewer_at_once)};
    return cmocka_run_group_tests(tests, world_make, world_unmake);
}
