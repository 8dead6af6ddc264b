/* Gradients that are not finite, put into updates of our choice: such an update changes nothing; three in a row bring
 * the best state back and halve the rates; the third time the run ends and says so. Stopped in between or not, the bits
 * are the same; but for those of a device that is read late, as GPUs are: the update after a bad one is asked before
 * that is known. */
#include "adapt/ssl.h"
#include "adapt/ssl_step.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/stop.h"
#include "io/safetensors.h"
#include "tests/adapt/world.h"

enum { WARM_UP = 6, UPDATES = 24, NEVER = 1000 }; /* 27 training frames in batches of 4, four epochs */

/* The device's op before clipping, with a value put into a param's gradient in updates [from, to). */
static struct {
    op_table table;
    const op_table *real;
    const char *name;
    float value;
    int update, from, to, stop_at; /* the run is asked to stop in this one */
    bool late;
} sick;

static void sick_square(device *d, dv *out, const param *p, size_t n, const adamw_step *s)
{
    bool found = false;
    for (size_t i = 0; i < n && sick.update >= sick.from && sick.update < sick.to; i++) {
        if (strcmp(p[i].name, sick.name)) continue;
        d->op->upload(d, dv_at(p[i].grad, (p[i].rows * p[i].cols / 2) * sizeof(float)), &sick.value, sizeof sick.value);
        found = true;
    }
    assert_true(found || sick.update < sick.from || sick.update >= sick.to);
    sick.real->grad_square(d, out, p, n, s);
    if (sick.update++ == sick.stop_at) stop_request();
}

static int make(void **state)
{
    world_make(state);
    world *w = *state;
    sick.real = w->d.op;
    sick.table = *w->d.op;
    sick.table.grad_square = sick_square;
    w->d.op = &sick.table;
    return 0;
}

/* Evaluated once an epoch, so that there is something to lose between the best state and a bad update. Late: by the
 * name of its device, and without checkpoints, before which all is read. */
static ssl_options options_here(void)
{
    ssl_options o = world_ssl(METHOD_APLA);
    o.epochs = 3;
    o.evaluate_epochs = 1;
    o.checkpoint_minutes = sick.late ? 1000 : 0;
    o.collapse_rank = 0; /* the other guard */
    sick.table.name = sick.late ? "cuda" : sick.real->name;
    return o;
}

/* From where the run stands; first: its first update. */
static err_code adapt(world *w, const char *name, int first, int stop_at, ssl_result *r, err *e)
{
    char dir[FILE_PATH_MAX];
    ssl_options o = options_here();
    vit *m = world_vit(w);
    sick.update = first;
    sick.stop_at = stop_at;
    world_path(w, name, "", dir);
    err_code rc = ssl_adapt(m, &w->c, &o, dir, r, e);
    vit_close(m);
    stop_clear();
    return rc;
}

static void adapt_to(world *w, const char *name, int first, int stop_at)
{
    err e = {0};
    ssl_result r;
    assert_int_equal(adapt(w, name, first, stop_at, &r, &e), ERR_INTERRUPTED);
    assert_int_equal(sick.update, stop_at + 1);
}

/* A checkpoint's numbers, as ssl_state.c writes them. */
typedef struct {
    long long t[ADAM_GROUPS];
    unsigned long long at, evaluated, best, roll_backs, bad_steps;
    double lr_factor;
    int rolled_back;
} numbers;

static numbers numbers_of(const safetensors *s)
{
    numbers k;
    const char *text = safetensors_meta(s, "state");
    assert_non_null(text);
    assert_int_equal(sscanf(text, "%lld %lld %lld %llu %llu %llu %la %llu %llu %d", k.t, k.t + 1, k.t + 2, &k.at,
                            &k.evaluated, &k.best, &k.lr_factor, &k.roll_backs, &k.bad_steps, &k.rolled_back),
                     10);
    return k;
}

static void open_state(const world *w, const char *name, const char *file, safetensors *s, char copy[FILE_PATH_MAX])
{
    err e = {0};
    char command[2 * FILE_PATH_MAX + 16], path[FILE_PATH_MAX];
    world_path(w, name, file, path);
    if (copy) { /* the run goes on, and writes another in its place */
        world_path(w, name, "copy", copy);
        snprintf(command, sizeof command, "cp '%s' '%s'", path, copy);
        assert_int_equal(system(command), 0);
    }
    ASSERT_OK(safetensors_open(s, copy ? copy : path, &e));
}

/* Weights, teacher, moments and centres. */
static bool same_state(const safetensors *a, const safetensors *b)
{
    assert_true(a->n > 20 && a->n == b->n);
    for (size_t i = 0; i < a->n; i++) {
        const tensor *t = safetensors_find(b, a->tensors[i].name);
        assert_non_null(t);
        assert_int_equal(t->count, a->tensors[i].count);
        assert_true(t->type == TENSOR_F32 || t->type == TENSOR_I32);
        if (memcmp(t->data, a->tensors[i].data, t->count * 4)) return false;
    }
    return true;
}

/* Two runs' results, and their products. */
static void check_same(const world *w, const char *a, const ssl_result *ra, const char *b, const ssl_result *rb)
{
    err e = {0};
    assert_true(ra->loss_last == rb->loss_last && ra->rank_best == rb->rank_best && ra->steps == rb->steps);
    char path[FILE_PATH_MAX], x[HASH_HEX], y[HASH_HEX];
    world_path(w, a, "adapter.safetensors", path);
    ASSERT_OK(hash_file(path, x, &e));
    world_path(w, b, "adapter.safetensors", path);
    ASSERT_OK(hash_file(path, y, &e));
    assert_string_equal(x, y);
}

/* "lr" of the line of that step. */
static double rate_at(const world *w, const char *name, int step)
{
    double lr = -1;
    char start[32], *text = world_text(w, name, "metrics.jsonl");
    snprintf(start, sizeof start, "{\"step\":%d,", step);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        const char *at = strstr(line, "\"lr\":");
        if (!strncmp(line, start, strlen(start)) && at) lr = strtod(at + 5, NULL);
    }
    free(text);
    assert_true(lr > 0);
    return lr;
}

static void sicken(const char *name, float value, int from, int to)
{
    sick.name = name;
    sick.value = value;
    sick.from = from;
    sick.to = to;
}

static const struct {
    const char *run, *name;
    float value;
} rows[] = {{"nan-head", "dino_head.mlp.0.weight", NAN}, {"inf-backbone", "blocks.1.attn.proj.weight", INFINITY}};
enum { ROWS = sizeof rows / sizeof *rows };

static void two_are_left_out(void **state)
{
    world *w = *state;
    for (int i = 0; i < 2 * ROWS; i++) {
        err e = {0};
        ssl_result r, parts;
        safetensors before, after;
        char name[48], whole[64], copy[FILE_PATH_MAX];
        snprintf(name, sizeof name, "two-%s%s", rows[i % ROWS].run, i < ROWS ? "" : "-late");
        sick.late = i >= ROWS;
        snprintf(whole, sizeof whole, "%s-whole", name);
        sicken(rows[i % ROWS].name, rows[i % ROWS].value, 14, 16);
        adapt_to(w, name, 0, 13);
        open_state(w, name, "checkpoint.safetensors", &before, copy);
        adapt_to(w, name, 14, 15);
        open_state(w, name, "checkpoint.safetensors", &after, NULL);
        numbers a = numbers_of(&before), b = numbers_of(&after);
        assert_true(same_state(&before, &after));
        assert_int_equal(a.at, 14);
        assert_int_equal(b.at, 16);
        assert_int_equal(a.t[ADAM_HEAD], 14);
        assert_int_equal(a.t[ADAM_BACKBONE], 14 - WARM_UP);
        assert_memory_equal(a.t, b.t, sizeof a.t);
        assert_int_equal(b.bad_steps, 2);
        assert_true(b.roll_backs == 0 && !b.rolled_back && b.lr_factor == 1);
        safetensors_close(&before);
        safetensors_close(&after);
        ASSERT_OK(adapt(w, name, 16, NEVER, &parts, &e));
        assert_true(parts.resumed && !parts.rolled_back);
        ASSERT_OK(adapt(w, whole, 0, NEVER, &r, &e));
        assert_int_equal(r.steps, UPDATES);
        assert_false(r.rolled_back);
        if (!sick.late) check_same(w, name, &parts, whole, &r);
    }
}

static void three_bring_the_best_back(void **state)
{
    world *w = *state;
    err e = {0};
    ssl_result r, parts;
    sick.late = false;
    sicken("", 0, NEVER, NEVER);
    ASSERT_OK(adapt(w, "healthy", 0, NEVER, &r, &e));
    assert_false(r.rolled_back);
    for (int i = 0; i < 2 * ROWS; i++) {
        safetensors before, after, best;
        char name[48], whole[64], file[48], copy[FILE_PATH_MAX];
        snprintf(name, sizeof name, "three-%s%s", rows[i % ROWS].run, i < ROWS ? "" : "-late");
        sick.late = i >= ROWS;
        snprintf(whole, sizeof whole, "%s-whole", name);
        sicken(rows[i % ROWS].name, rows[i % ROWS].value, 14, 17);
        adapt_to(w, name, 0, 13);
        open_state(w, name, "checkpoint.safetensors", &before, copy);
        adapt_to(w, name, 14, 16);
        open_state(w, name, "checkpoint.safetensors", &after, NULL);
        numbers a = numbers_of(&before), b = numbers_of(&after);
        snprintf(file, sizeof file, "best-%llu.safetensors", b.best);
        open_state(w, name, file, &best, NULL);
        numbers c = numbers_of(&best);
        print_message("%s: from step %llu back to that of %llu\n", name, b.at, b.best);
        assert_true(b.best == a.best && b.best <= 12);
        assert_true(same_state(&best, &after));
        assert_false(same_state(&before, &after));
        assert_memory_equal(b.t, c.t, sizeof b.t);
        assert_true(b.t[ADAM_HEAD] < a.t[ADAM_HEAD]);
        assert_int_equal(b.at, 17); /* what is drawn goes on */
        assert_true(b.lr_factor == 0.5 && b.roll_backs == 1 && b.bad_steps == 0 && b.rolled_back);
        safetensors_close(&before);
        safetensors_close(&after);
        safetensors_close(&best);
        ASSERT_OK(adapt(w, name, 17, NEVER, &parts, &e));
        assert_true(parts.resumed && parts.rolled_back && isfinite(parts.loss_last) && isfinite(parts.rank_best));
        assert_int_equal(parts.steps, UPDATES);
        assert_true(rate_at(w, name, 10) == rate_at(w, "healthy", 10));
        assert_true(fabs(rate_at(w, name, 20) / rate_at(w, "healthy", 20) - 0.5) < 1e-6);
        ASSERT_OK(adapt(w, whole, 0, NEVER, &r, &e));
        assert_true(r.rolled_back && r.steps == UPDATES && isfinite(r.loss_last));
        assert_true(fabs(rate_at(w, whole, 20) / rate_at(w, "healthy", 20) - 0.5) < 1e-6);
        if (!sick.late) check_same(w, name, &parts, whole, &r);
    }
}

/* Read late, one more is asked each time. */
static void late_to_its_end(void **state)
{
    err e = {0};
    ssl_result r;
    sick.late = true;
    sicken(rows[0].name, rows[0].value, 8, NEVER);
    assert_int_equal(adapt(*state, "ever-late", 0, NEVER, &r, &e), ERR_NUMERIC);
    assert_int_equal(sick.update, 8 + 9 + 3 * SSL_STEP_LATE);
    sick.late = false;
}

/* Twice back, then no further: nine bad updates. What is on disk can be gone on from once the cause is away. */
static void the_third_time_ends(void **state)
{
    world *w = *state;
    err e = {0};
    ssl_result r;
    safetensors s;
    char path[FILE_PATH_MAX];
    sick.late = false;
    sicken(rows[0].name, rows[0].value, 8, NEVER);
    assert_int_equal(adapt(w, "ever", 0, NEVER, &r, &e), ERR_NUMERIC);
    assert_string_equal(e.msg, "the gradient is not finite");
    assert_int_equal(sick.update, 8 + 9);
    world_path(w, "ever", "adapter.safetensors", path);
    assert_false(file_exists(path));
    world_path(w, "ever", "result.json", path);
    assert_false(file_exists(path));
    open_state(w, "ever", "checkpoint.safetensors", &s, NULL);
    numbers k = numbers_of(&s);
    assert_true(k.roll_backs == 2 && k.lr_factor == 0.25 && k.rolled_back);
    safetensors_close(&s);
    sicken("", 0, NEVER, NEVER);
    e = (err){0};
    ASSERT_OK(adapt(w, "ever", (int)k.at, NEVER, &r, &e));
    assert_true(r.resumed && r.rolled_back && isfinite(r.loss_last));
    assert_int_equal(r.steps, UPDATES);
}

int main(void)
{
    log_open(stderr, LOG_TEXT, LOG_OFF);
    const struct CMUnitTest tests[] = {cmocka_unit_test(two_are_left_out), cmocka_unit_test(three_bring_the_best_back),
                                       cmocka_unit_test(the_third_time_ends), cmocka_unit_test(late_to_its_end)};
    return cmocka_run_group_tests(tests, make, world_unmake);
}
