/* Whole runs on the CUDA back end against the CPU's: self-supervised adaptation with its evaluations, then fine-tuning
 * and what it predicts, on images that either makes its crops of. Losses are read late there, batches are frames and
 * jobs, the last batch of an extraction is not full: what no single step shows. And how far ahead of what it reads a
 * loop asks, and what comes of one that is stopped there. */
#define TWIN_ANY_DEVICE
#include "adapt/finetune.h"
#include "adapt/ssl.h"
#include "base/csv.h"
#include "base/hash.h"
#include "base/stop.h"
#include "model/cuda/op_cuda.h"
#include "tests/adapt/world.h"
#include "tests/cuda_host/emu_fail.h"

#define SHAPE "dim=64,depth=2,heads=2,patch=8,grid=4"
enum { CPU, CUDA, SIDES };

typedef struct {
    world *w;
    device cuda;
    device *d[SIDES];
} two;

static int open_two(void **state)
{
    err e = {0};
    two *t = calloc(1, sizeof *t);
    assert_int_equal(world_make((void **)&t->w), 0);
    ASSERT_OK(op_cuda_open(&t->cuda, 0, COMPUTE_F32, &e));
    t->d[CPU] = &t->w->d;
    t->d[CUDA] = &t->cuda;
    *state = t;
    return 0;
}

static int close_two(void **state)
{
    two *t = *state;
    device_close(&t->cuda);
    world_unmake((void **)&t->w);
    free(t);
    return 0;
}

/* The numbers of `key` in the lines of a run's log, in order; returns how many, `most` at most. */
static size_t numbers(const world *w, const char *run, const char *key, double *out, size_t most)
{
    char *text = world_text(w, run, "metrics.jsonl"), quoted[32];
    size_t n = 0;
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    for (const char *at = text; n < most && (at = strstr(at, quoted));) {
        at += strlen(quoted);
        out[n++] = strtod(at, NULL);
    }
    free(text);
    return n;
}

/* The log's numbers of one key, side by side. */
static void compare(const world *w, const char *cpu, const char *cuda, const char *key, size_t least, double bound)
{
    enum { MOST = 256 };
    double x[MOST], y[MOST], worst = 0;
    size_t n = numbers(w, cpu, key, x, MOST), m = numbers(w, cuda, key, y, MOST);
    if (n != m || n < least) fail_msg("%s: %zu numbers on the CPU, %zu on CUDA", key, n, m);
    for (size_t i = 0; i < n; i++) {
        double apart = fabs(x[i] - y[i]) / (fabs(x[i]) + 1e-3);
        if (!(apart <= bound)) fail_msg("%s %zu: %g on the CPU, %g on CUDA", key, i, x[i], y[i]);
        if (apart > worst) worst = apart;
    }
    printf("  %s: %zu numbers, at most %.1e apart\n", key, n, worst);
}

static void adapts(two *t, const char *name, bool squares, int accumulate)
{
    static const char *side[SIDES] = {"cpu", "cuda"};
    char run[SIDES][64];
    ssl_result r[SIDES];
    printf(" %s\n", name);
    for (int i = 0; i < SIDES; i++) {
        err e = {0};
        char dir[FILE_PATH_MAX];
        ssl_options o = world_ssl(METHOD_APLA);
        o.epochs = 2;
        o.accumulate = accumulate;
        o.locals = 1;
        o.crop_from = squares ? 40 : 0;
        o.view.batch = 8;
        o.peft = (peft_spec){.method = METHOD_APLA};
        snprintf(run[i], sizeof run[i], "%s-%s", name, side[i]);
        world_path(t->w, run[i], "", dir);
        vit *m = world_vit_on(t->d[i], SHAPE);
        ASSERT_OK(ssl_adapt(m, &t->w->c, &o, dir, &r[i], &e));
        assert_true(r[i].steps >= 4 && !r[i].rolled_back);
        vit_close(m);
    }
    compare(t->w, run[CPU], run[CUDA], "loss", 1, 1e-3);
    compare(t->w, run[CPU], run[CUDA], "knn_auc", 2, 0.02);
    compare(t->w, run[CPU], run[CUDA], "rank", 2, 0.02);
    if (fabs(r[CPU].loss_last - r[CUDA].loss_last) > 1e-3 * r[CPU].loss_last)
        fail_msg("the last loss is %g on the CPU, %g on CUDA", r[CPU].loss_last, r[CUDA].loss_last);
    printf("  %d updates, last loss %g and %g\n", (int)r[CPU].steps, r[CPU].loss_last, r[CUDA].loss_last);
}

static void test_adapt(void **state)
{
    adapts(*state, "adapt", false, 1);
}

static void test_adapt_squares_accumulate(void **state)
{
    adapts(*state, "adapt from squares, two micro-batches", true, 2);
}

/* Frames that stay on the GPU go up once; what comes of them is the same, whether all stay, some or none. */
static void test_frames_stay(void **state)
{
    enum { ROOMS = 3, EPOCHS = 2, MOST = 256, FRAME = 32 * 32 * 2 };
    static const size_t room[ROOMS] = {0, 9 * FRAME, 1 << 20};
    two *t = *state;
    for (int squares = 0; squares < 2; squares++) {
        double loss[ROOMS][MOST];
        size_t n[ROOMS], up[ROOMS];
        double peak[ROOMS];
        for (int i = 0; i < ROOMS; i++) {
            err e = {0};
            char dir[FILE_PATH_MAX], run[64];
            ssl_result r;
            ssl_options o = world_ssl_small(EPOCHS);
            o.crop_from = squares ? 20 : 0;
            o.frame_room = room[i];
            snprintf(run, sizeof run, "stay-%d-%d", squares, i);
            world_path(t->w, run, "", dir);
            vit *m = world_vit_on(t->d[CUDA], WORLD_SMALL_BACKBONE);
            size_t before = emu_counted().up;
            t->cuda.bytes_most = t->cuda.bytes;
            ASSERT_OK(ssl_adapt(m, &t->w->c, &o, dir, &r, &e));
            up[i] = emu_counted().up - before;
            vit_close(m);
            n[i] = numbers(t->w, run, "loss", loss[i], MOST);
            peak[i] = r.peak_bytes;
        }
        printf("  %s: %zu, %zu and %zu bytes up\n", squares ? "squares" : "frames", up[0], up[1], up[2]);
        assert_true(n[0] >= 2);
        for (int i = 1; i < ROOMS; i++) {
            assert_int_equal(n[i], n[0]);
            assert_true(peak[i] == peak[0]); /* beside them */
            assert_memory_equal(loss[i], loss[0], n[0] * sizeof *loss[0]);
        }
        assert_true(up[1] < up[0]);
        assert_true(up[2] < up[1]);
        size_t frames = 0, seen = 0, each = squares ? 3 * 20 * 20 : FRAME;
        for (size_t i = 0; i < t->w->c.n_frames; i++) {
            frames += t->w->c.part[i] == SPLIT_TRAIN;
            seen += t->w->c.part[i] == SPLIT_TRAIN || t->w->c.part[i] == SPLIT_VALIDATION;
        }
        /* No frame goes up again, but those of batches that were under way; nor for the second evaluation. */
        size_t trained = (squares ? EPOCHS - 1 : EPOCHS) * (frames - 3) * each;
        assert_true(up[0] - up[2] >= trained + seen * FRAME - 2 * 4 * each);
    }
}

/* One run of it on one side; room: for frames that stay. */
typedef struct {
    double epochs;
    float mixup;
    size_t room;
} tuning;

static err_code tune(two *t, int side, const char *run, const tuning *k, finetune_result *r, err *why)
{
    const cohort *c = &t->w->c;
    err e = {0};
    char path[FILE_PATH_MAX];
    finetune_options o;
    param_set adapter = {0};
    bundle_info info = {.peft = {.method = METHOD_APLA}, .n_labels = c->n_labels};
    finetune_defaults(&o, METHOD_APLA);
    o.epochs = k->epochs;
    o.batch = 6;
    o.lr = 1e-4f;
    o.head_lr = 1e-3f;
    o.warmup_steps = 2;
    o.patience = 0;
    o.mixup = k->mixup;
    o.frame_room = k->room;
    o.view = (view_options){.size = 32, .share = 1, .batch = 8};
    snprintf(info.backbone_random, sizeof info.backbone_random, "%s seed=5", SHAPE);
    info.labels = calloc((size_t)c->n_labels, sizeof *info.labels);
    for (int i = 0; i < c->n_labels; i++) memcpy(info.labels[i].name, c->labels[i], sizeof c->labels[i]);
    ASSERT_OK(findings_codes(NULL, info.labels, c->n_labels, &e));
    vit *m = world_vit_on(t->d[side], SHAPE);
    ASSERT_OK(vit_train(m, &info.peft, &adapter, &e));
    world_path(t->w, run, "", path);
    err_code rc = finetune_run(m, &adapter, c, &o, &info, path, r, why);
    vit_close(m);
    param_set_free(t->d[side], &adapter);
    free(info.labels);
    return rc;
}

static void finetunes(two *t, const char *name, float mixup)
{
    static const char *side[SIDES] = {"cpu", "cuda"};
    char run[SIDES][64];
    csv predicted[SIDES];
    finetune_result r;
    printf(" %s\n", name);
    for (int i = 0; i < SIDES; i++) {
        err e = {0};
        char path[FILE_PATH_MAX];
        snprintf(run[i], sizeof run[i], "%s-%s", name, side[i]);
        ASSERT_OK(tune(t, i, run[i], &(tuning){2, mixup, 1 << 20}, &r, &e));
        world_path(t->w, run[i], "predictions.csv", path);
        ASSERT_OK(csv_read(&predicted[i], path, &e));
    }
    compare(t->w, run[CPU], run[CUDA], "loss", 3, 1e-3);
    const csv *x = &predicted[CPU], *y = &predicted[CUDA];
    double worst = 0, least = 1, most = 0;
    assert_int_equal(x->rows, y->rows);
    assert_int_equal(x->rows, WORLD_PATIENTS + 1);
    for (size_t k = 1; k < x->rows; k++) {
        int at = csv_column(x, "p_square");
        assert_true(at >= 0);
        double p = atof(csv_at(x, k, at)), q = atof(csv_at(y, k, at));
        assert_string_equal(csv_at(x, k, csv_column(x, "case")), csv_at(y, k, csv_column(y, "case")));
        if (!(fabs(p - q) < 5e-3)) fail_msg("case %zu: %g on the CPU, %g on CUDA", k, p, q);
        if (fabs(p - q) > worst) worst = fabs(p - q);
        least = p < least ? p : least;
        most = p > most ? p : most;
    }
    assert_true(most > least + 0.1);
    printf("  probabilities of %g to %g: at most %.1e apart\n", least, most, worst);
    for (int i = 0; i < SIDES; i++) csv_close(&predicted[i]);
}

static void test_finetune(void **state)
{
    finetunes(*state, "apla", 0);
    finetunes(*state, "apla, mixed", 0.4f);
}

/* Frames of training and of validation go up once, and nothing else comes of it. */
static void test_tuned_frames_stay(void **state)
{
    enum { FRAME = 32 * 32 * 2, MOST = 256 };
    static const char *const run[] = {"tuned-up-each-time", "tuned-stay"}, *const keys[] = {"loss", "validation_loss"};
    two *t = *state;
    finetune_result r;
    size_t up[2], seen = 0;
    for (int i = 0; i < 2; i++) {
        size_t before = emu_counted().up;
        err e = {0};
        ASSERT_OK(tune(t, CUDA, run[i], &(tuning){2, 0.4f, i ? 1 << 20 : 0}, &r, &e));
        up[i] = emu_counted().up - before;
    }
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        double x[2][MOST];
        size_t n = numbers(t->w, run[0], keys[k], x[0], MOST);
        if (k == 0) assert_true(n >= 2);
        assert_int_equal(numbers(t->w, run[1], keys[k], x[1], MOST), n);
        assert_memory_equal(x[0], x[1], n * sizeof *x[0]);
    }
    for (size_t i = 0; i < t->w->c.n_frames; i++) seen += t->w->c.part[i] == SPLIT_VALIDATION;
    printf("  %zu and %zu bytes up; %zu validation frames\n", up[0], up[1], seen);
    /* Of three validations two bring nothing, nor does the second epoch but for batches that were under way. */
    size_t trained = 0;
    for (size_t i = 0; i < t->w->c.n_frames; i++) trained += t->w->c.part[i] == SPLIT_TRAIN;
    assert_true(seen > 0 && up[0] - up[1] >= (2 * seen + trained / 2) * FRAME);
}

/* What listens to a run's sends, one a step, and takes. */
enum { STEPS_MOST = 64 };
static struct {
    const op_table *real;
    op_table table;
    emu_counts after[STEPS_MOST]; /* a send; waits: those outside of sends and takes */
    int ahead[STEPS_MOST];        /* steps that were asked and not taken, with it, when one was taken */
    int sent, taken, stop_at;     /* the send after which the run is asked to stop; 0: none */
    long own;                     /* waits of sends and takes */
} heard;

static void on_send(device *d, int place, const dv *src, size_t bytes)
{
    long before = emu_counted().waits;
    assert_true(heard.sent < STEPS_MOST);
    heard.real->send(d, place, src, bytes);
    emu_counts now = emu_counted();
    assert_true(now.waits - before <= 1); /* for the one before */
    heard.own += now.waits - before;
    now.waits -= heard.own;
    heard.after[heard.sent++] = now;
    if (heard.sent == heard.stop_at) stop_request();
}

static void on_take(device *d, int place, void *dst, size_t bytes)
{
    long before = emu_counted().waits;
    heard.ahead[heard.taken] = heard.sent - heard.taken;
    heard.taken++;
    heard.real->take(d, place, dst, bytes);
    heard.own += emu_counted().waits - before;
}

static void listen(device *d, int stop_at)
{
    memset(&heard, 0, sizeof heard);
    heard.stop_at = stop_at;
    heard.real = d->op;
    heard.table = *d->op;
    heard.table.send = on_send;
    heard.table.take = on_take;
    d->op = &heard.table;
}

static void listen_no_more(device *d)
{
    d->op = heard.real;
    stop_clear();
}

/* Of a run of so many steps, `part` of them from one evaluation to the next: a step is read when the next has been
 * asked, but for a part's last. From step `from` on, when graphs run and pinned memory is there, none takes memory, and
 * none but sends and takes waits. */
static void waited_for_nothing(int steps, int part, int from)
{
    assert_int_equal(heard.sent, steps);
    assert_int_equal(heard.taken, steps);
    for (int i = 0; i < steps; i++) {
        if (heard.ahead[i] != ((i + 1) % part ? 2 : 1)) fail_msg("step %d: %d were not taken", i, heard.ahead[i]);
        if (i < from || i % part == 0) continue;
        long memory = heard.after[i].memory - heard.after[i - 1].memory;
        long waits = heard.after[i].waits - heard.after[i - 1].waits;
        if (memory || waits) fail_msg("step %d: memory %ld times, %ld waits", i, memory, waits);
    }
}

/* Fine-tuning's, whether frames stay or go up for each step. */
static void test_tuned_no_waits(void **state)
{
    enum { EPOCHS = 3 };
    two *t = *state;
    for (int stay = 0; stay < 2; stay++) {
        err e = {0};
        finetune_result r;
        listen(&t->cuda, 0);
        ASSERT_OK(
            tune(t, CUDA, stay ? "no-waits-stay" : "no-waits", &(tuning){EPOCHS, 0.4f, stay ? 1 << 20 : 0}, &r, &e));
        listen_no_more(&t->cuda);
        int steps = (int)r.steps, part = steps / EPOCHS;
        assert_true(part >= 3 && steps == EPOCHS * part);
        waited_for_nothing(steps, part, part);
        printf("  %d steps, frames %s\n", steps, stay ? "stay" : "go up");
    }
}

static void same_file(const world *w, const char *a, const char *b, const char *file)
{
    err e = {0};
    char path[FILE_PATH_MAX], of_a[HASH_HEX], of_b[HASH_HEX];
    world_path(w, a, file, path);
    ASSERT_OK(hash_file(path, of_a, &e));
    world_path(w, b, file, path);
    ASSERT_OK(hash_file(path, of_b, &e));
    assert_string_equal(of_a, of_b);
}

static err_code adapt_small(two *t, const char *run, int stop_at, ssl_result *r, err *e)
{
    char dir[FILE_PATH_MAX];
    ssl_options o = world_ssl_small(1);
    o.frame_room = 1 << 16;
    world_path(t->w, run, "", dir);
    vit *m = world_vit_on(&t->cuda, WORLD_SMALL_BACKBONE);
    listen(&t->cuda, stop_at);
    err_code rc = ssl_adapt(m, &t->w->c, &o, dir, r, e);
    listen_no_more(&t->cuda);
    vit_close(m);
    return rc;
}

#ifdef CUDA_RACE /* no kernel runs in them that does not in the others, and they are slow there */
#define UNLESS_RACE skip()
#else
#define UNLESS_RACE
#endif

/* A run that is stopped while a step is unread, and goes on, ends with the bits of one that was not. */
static void test_adapt_resumed(void **state)
{
    enum { STOP = 3 };
    two *t = *state;
    err e = {0};
    ssl_result r, s;
    UNLESS_RACE;
    ASSERT_OK(adapt_small(t, "whole", 0, &r, &e));
    int steps = (int)r.steps;
    assert_true(steps > STOP + 1);
    waited_for_nothing(steps, steps, STOP);
    assert_int_equal(adapt_small(t, "parts", STOP, &s, &e), ERR_INTERRUPTED);
    e = (err){0};
    assert_true(heard.sent == STOP && heard.taken == STOP);
    ASSERT_OK(adapt_small(t, "parts", 0, &s, &e));
    assert_true(s.resumed && heard.sent == steps - STOP);
    assert_true(s.steps == r.steps && s.loss_first == r.loss_first && s.loss_last == r.loss_last);
    assert_true(s.knn_best == r.knn_best && s.rank_best == r.rank_best);
    same_file(t->w, "whole", "parts", "adapter.safetensors");
}

static void test_finetune_resumed(void **state)
{
    enum { STOP = 5 };
    static const tuning k = {3, 0.4f, 1 << 16};
    two *t = *state;
    err e = {0};
    finetune_result r, s;
    UNLESS_RACE;
    ASSERT_OK(tune(t, CUDA, "tuned-whole", &k, &r, &e));
    assert_int_equal(r.steps, 9);
    listen(&t->cuda, STOP);
    assert_int_equal(tune(t, CUDA, "tuned-parts", &k, &s, &e), ERR_INTERRUPTED);
    e = (err){0};
    listen_no_more(&t->cuda);
    assert_true(heard.sent == STOP && heard.taken == STOP);
    ASSERT_OK(tune(t, CUDA, "tuned-parts", &k, &s, &e));
    assert_true(s.resumed && s.steps == r.steps);
    same_file(t->w, "tuned-whole", "tuned-parts", "model.safetensors");
    same_file(t->w, "tuned-whole", "tuned-parts", "metrics.jsonl");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_adapt),
                                       cmocka_unit_test(test_adapt_squares_accumulate),
                                       cmocka_unit_test(test_frames_stay),
                                       cmocka_unit_test(test_finetune),
                                       cmocka_unit_test(test_tuned_frames_stay),
                                       cmocka_unit_test(test_tuned_no_waits),
                                       cmocka_unit_test(test_adapt_resumed),
                                       cmocka_unit_test(test_finetune_resumed)};
    return cmocka_run_group_tests(tests, open_two, close_two);
}
