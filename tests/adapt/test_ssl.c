/* Self-supervised adaptation of a tiny random model: a run that was stopped anywhere ends with the bits of one that was
 * not, a collapse rolls back to the best state, and what comes out is that state. */
#include "adapt/adapter.h"
#include "adapt/ssl.h"
#include "adapt/ssl_eval.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/stop.h"
#include "io/safetensors.h"
#include "tests/adapt/world.h"

#include <pthread.h>

static ssl_options tiny(peft_method method)
{
    ssl_options o = world_ssl(method);
    o.epochs = 3;
    o.checkpoint_minutes = 0; /* after every step */
    o.peft = (peft_spec){.method = method,
                         .rows = method == METHOD_APLA ? 16 : 0,
                         .rank = 4,
                         .alpha = 8,
                         .targets = PEFT_Q | PEFT_V,
                         .prompts = 3,
                         .deep = true};
    return o;
}

/* The other choices. */
static ssl_options varied(peft_method method)
{
    ssl_options o = tiny(method);
    o.sinkhorn = o.separate_heads = true;
    o.accumulate = 2;
    o.layer_decay = 0.8f;
    o.patch_lr = 0.2f;
    o.drop_path = 0.3f;
    return o;
}

static err_code adapt(world *w, const ssl_options *o, const char *name, ssl_result *r, err *e)
{
    char dir[FILE_PATH_MAX];
    vit *m = world_vit(w);
    world_path(w, name, "", dir);
    err_code rc = ssl_adapt(m, &w->c, o, dir, r, e);
    vit_close(m);
    return rc;
}

static void hash_of(const world *w, const char *name, const char *file, char out[HASH_HEX])
{
    err e = {0};
    char path[FILE_PATH_MAX];
    world_path(w, name, file, path);
    ASSERT_OK(hash_file(path, out, &e));
}

static bool is_there(const world *w, const char *name, const char *file)
{
    char path[FILE_PATH_MAX];
    world_path(w, name, file, path);
    return file_exists(path);
}

/* metrics.jsonl without its clock: the last values of a line of steps. */
static char *untimed(const world *w, const char *name)
{
    char *text = world_text(w, name, "metrics.jsonl"), *to = text;
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
        char *clock = memmem(line, (size_t)(end - line), "\"images_per_s\"", 14);
        size_t n = (size_t)((clock ? clock : end) - line);
        memmove(to, line, n);
        to += n;
        *to++ = '\n';
    }
    *to = 0;
    return text;
}

/* What listens to the log: at the n-th evaluation it asks the run to stop, at once or from a thread a moment later,
 * which is in the middle of the steps or of the next evaluation. */
static struct {
    int evaluations, stop_at, delay_us;
    pthread_t thread;
    bool started;
} listener;

static void *stop_soon(void *unused)
{
    usleep((useconds_t)listener.delay_us);
    stop_request();
    return unused;
}

static ssize_t on_log(void *unused, const char *text, size_t n)
{
    (void)unused;
    if (!memmem(text, n, "adapt.evaluate", 14) || ++listener.evaluations != listener.stop_at) return (ssize_t)n;
    if (!listener.delay_us) stop_request();
    if (listener.delay_us) listener.started = !pthread_create(&listener.thread, NULL, stop_soon, NULL);
    return (ssize_t)n;
}

static err_code adapt_until(world *w, const ssl_options *o, const char *name, int stop_at, int delay_us, ssl_result *r)
{
    err e = {0};
    FILE *log = fopencookie(NULL, "w", (cookie_io_functions_t){.write = on_log});
    assert_non_null(log);
    setvbuf(log, NULL, _IOLBF, BUFSIZ);
    listener.evaluations = 0;
    listener.stop_at = stop_at;
    listener.delay_us = delay_us;
    log_open(log, LOG_TEXT, LOG_INFO);
    err_code rc = adapt(w, o, name, r, &e);
    log_open(stderr, LOG_TEXT, LOG_OFF);
    fclose(log);
    if (listener.started) pthread_join(listener.thread, NULL);
    listener.started = false;
    stop_clear();
    if (rc && rc != ERR_INTERRUPTED) fail_msg("%s: %s", err_name(rc), e.msg);
    return rc;
}

/* The adapter knows whom it left out: the held-out patients of this split, and of no other. */
static void check_adapter(const world *w, const char *name)
{
    err e = {0};
    char path[FILE_PATH_MAX], other[HASH_HEX];
    safetensors s;
    world_path(w, name, "adapter.safetensors", path);
    ASSERT_OK(safetensors_open(&s, path, &e));
    memcpy(other, w->c.split_hash, HASH_HEX);
    other[0] = other[0] == 'a' ? 'b' : 'a';
    assert_true(strlen(w->c.split_hash) > 0 && adapter_kept_out(&s, w->c.split_hash));
    assert_false(adapter_kept_out(&s, other) || adapter_kept_out(&s, ""));
    safetensors_close(&s);
}

/* Of all evaluations the kept one has the best mean of kNN and linear classifier, and is the last of those. */
static void check_choice(const world *w, const char *name, const ssl_options *o, const ssl_result *r)
{
    char *text = world_text(w, name, "metrics.jsonl");
    double best = -1, knn = NAN, linear = NAN;
    int n = 0;
    for (char *at = text; (at = strstr(at, "\"knn_auc\":")); n++) {
        double k = strtod(at + 10, &at), l = strtod(strstr(at, "\"linear_auc\":") + 13, NULL);
        double both = (double)o->knn_share * k + (1 - (double)o->knn_share) * l;
        if (both < best) continue;
        best = both, knn = k, linear = l;
    }
    free(text);
    assert_true(n >= 3);
    assert_true(fabs(r->knn_best - knn) < 1e-12 && fabs(r->linear_best - linear) < 1e-12);
}

/* Every line of steps and the result say how long was waited for crops: no longer than there was time, and in a run
 * of several sittings over all of them. */
static void check_waited(const world *w, const char *name, const ssl_result *r)
{
    static const char seconds[] = "\"waited_seconds\":", share[] = "\"waited_share\":";
    char *text = world_text(w, name, "metrics.jsonl"), *result = world_text(w, name, "result.json"), *at = text;
    double before = 0;
    int lines = 0;
    for (; (at = strstr(at, "\"images_per_s\":")); lines++) {
        assert_non_null(at = strstr(at, seconds));
        double waited = strtod(at + strlen(seconds), &at);
        assert_true(waited > before || (lines && waited == before));
        before = waited;
        assert_memory_equal(at, ",\"waited_share\":", strlen(share) + 1);
        double part = strtod(at + 1 + strlen(share), &at);
        assert_true(part > 0 && part <= 1 && *at == '}');
    }
    print_message("waited %.4f of %.3f s\n", r->waited_seconds, r->seconds);
    assert_true(lines > 0 && r->waited_seconds >= before && r->waited_seconds <= r->seconds);
    assert_non_null(at = strstr(result, seconds));
    assert_true(strtod(at + strlen(seconds), NULL) == r->waited_seconds);
    assert_non_null(at = strstr(result, share));
    assert_true(fabs(strtod(at + strlen(share), NULL) - r->waited_seconds / r->seconds) < 1e-9);
    free(text);
    free(result);
}

static void check_joint(world *w, ssl_options o, const char *whole, const char *parts)
{
    err e = {0};
    ssl_result r, s;
    ASSERT_OK(adapt(w, &o, whole, &r, &e));
    /* 18 training patients, 27 frames; one epoch of warm-up and three */
    assert_int_equal(r.steps, 4 * (27 / (4 * o.accumulate)));
    assert_int_equal(r.images, r.steps * 4 * (uint64_t)o.accumulate);
    assert_false(r.resumed || r.already_done || r.rolled_back);
    assert_true(isfinite(r.loss_first) && isfinite(r.loss_last) && r.rank_start > 1);
    assert_true(r.knn_best + r.linear_best >= r.knn_start + r.linear_start && r.knn_start > 0.4);
    check_choice(w, whole, &o, &r);
    check_waited(w, whole, &r);
    assert_false(is_there(w, whole, "checkpoint.safetensors"));
    check_adapter(w, whole);
    char stray[FILE_PATH_MAX + 32], dir[FILE_PATH_MAX];
    world_path(w, whole, "", dir);
    snprintf(stray, sizeof stray, "ls '%s' | grep -q best-", dir);
    assert_int_not_equal(system(stray), 0);

    stop_request(); /* before anything was done */
    assert_int_equal(adapt(w, &o, parts, &s, &e), ERR_INTERRUPTED);
    stop_clear();
    int stops = 0;
    stops += adapt_until(w, &o, parts, 1, 0, &s) != ERR_OK;
    assert_int_equal(s.steps, 0); /* only a finished run says how many */
    for (int delay = 500; delay < 40000 && !is_there(w, parts, "result.json"); delay *= 2)
        stops += adapt_until(w, &o, parts, 1, delay, &s) != ERR_OK;
    stops += adapt_until(w, &o, parts, 2, 0, &s) != ERR_OK;
    print_message("stopped %d times\n", stops);
    assert_true(stops >= 2);
    e = (err){0};
    ASSERT_OK(adapt(w, &o, parts, &s, &e));
    assert_int_equal(s.steps, r.steps);
    assert_true(s.knn_best == r.knn_best && s.rank_best == r.rank_best && s.knn_start == r.knn_start);
    assert_true(s.loss_first == r.loss_first && s.loss_last == r.loss_last);
    char a[HASH_HEX], b[HASH_HEX], *log_a = untimed(w, whole), *log_b = untimed(w, parts);
    hash_of(w, whole, "adapter.safetensors", a);
    hash_of(w, parts, "adapter.safetensors", b);
    assert_string_equal(log_a, log_b);
    assert_string_equal(a, b);
    free(log_a);
    free(log_b);
    check_waited(w, parts, &s);

    ASSERT_OK(adapt(w, &o, whole, &s, &e)); /* again: nothing is done */
    assert_true(s.already_done && s.steps == r.steps && fabs(s.knn_best - r.knn_best) < 1e-9);
    assert_true(s.waited_seconds == r.waited_seconds);
}

static void test_apla(void **state)
{
    check_joint(*state, tiny(METHOD_APLA), "ssl-apla", "ssl-apla-parts");
}

static void test_full(void **state)
{
    check_joint(*state, varied(METHOD_FULL), "ssl-full", "ssl-full-parts");
}

/* The patch embedding's own factor: with 0 it stays where it was while all else moves. */
static void test_patch_rate(void **state)
{
    world *w = *state;
    static const char *const run[] = {"ssl-patch-0", "ssl-patch-1"}, name[] = "patch_embed.proj.weight";
    err e = {0};
    vit *m = world_vit(w);
    param_set ps = {0};
    ASSERT_OK(vit_train(m, &(peft_spec){.method = METHOD_FULL}, &ps, &e));
    const param *before = NULL;
    for (size_t i = 0; i < ps.n; i++)
        if (!strcmp(ps.p[i].name, name)) before = &ps.p[i];
    assert_non_null(before);
    for (int k = 0; k < 2; k++) {
        char path[FILE_PATH_MAX];
        ssl_result r;
        safetensors f;
        ssl_options o = tiny(METHOD_FULL);
        o.epochs = 1;
        o.checkpoint_minutes = 60;
        o.patch_lr = (float)k;
        ASSERT_OK(adapt(w, &o, run[k], &r, &e));
        world_path(w, run[k], "adapter.safetensors", path);
        ASSERT_OK(safetensors_open(&f, path, &e));
        const tensor *t = safetensors_find(&f, name);
        assert_non_null(t);
        assert_int_equal(t->count, before->rows * before->cols);
        double moved = 0;
        for (size_t i = 0; i < t->count; i++) {
            float x;
            memcpy(&x, (const char *)t->data + i * sizeof x, sizeof x);
            moved = fmax(moved, fabs((double)x - ((const float *)before->master)[i]));
        }
        safetensors_close(&f);
        print_message("    times %d: moved by %g at most\n", k, moved);
        if (k) assert_true(moved > 1e-6);
        if (!k) assert_true(moved < 1e-7); /* a moving average of the same is rounded */
    }
    param_set_free(&w->d, &ps);
    vit_close(m);
}

/* A device that asks to stop in the n-th of KoLeo's calls, of which a micro-batch has two. */
static struct {
    const op_table *own;
    op_table table;
    int calls, stop_at;
} between;

static void koleo_and_stop(device *d, dv *loss, dv *dx, const dv *x, float w, size_t N, size_t C)
{
    between.own->koleo(d, loss, dx, x, w, N, C);
    if (++between.calls == between.stop_at) stop_request();
}

/* Asked to stop in the first of an update's two micro-batches, a run does not begin the second; it goes on to the bits
 * of one that was not stopped. */
static void test_between_micro_batches(void **state)
{
    world *w = *state;
    err e = {0};
    ssl_result r;
    char a[HASH_HEX], b[HASH_HEX];
    ssl_options o = tiny(METHOD_APLA);
    o.accumulate = 2;
    ASSERT_OK(adapt(w, &o, "ssl-micro", &r, &e));
    between.own = w->d.op;
    between.table = *w->d.op;
    between.table.koleo = koleo_and_stop;
    between.stop_at = 4 * 4 + 1; /* in the fifth update */
    w->d.op = &between.table;
    err_code rc = adapt(w, &o, "ssl-micro-parts", &r, &e);
    w->d.op = between.own;
    stop_clear();
    assert_int_equal(rc, ERR_INTERRUPTED);
    assert_int_equal(between.calls, between.stop_at + 1);
    e = (err){0};
    ASSERT_OK(adapt(w, &o, "ssl-micro-parts", &r, &e));
    assert_true(r.resumed);
    hash_of(w, "ssl-micro", "adapter.safetensors", a);
    hash_of(w, "ssl-micro-parts", "adapter.safetensors", b);
    assert_string_equal(a, b);
}

/* The other methods: a run that was stopped gives the bits of one that was not, and the adapter holds the trained
 * tensors alone, with the method's numbers; it can be loaded onto its backbone. */
static void test_methods(void **state)
{
    world *w = *state;
    static const struct {
        peft_method method;
        size_t trainable; /* of dim 32, depth 2, patches of 8 */
    } rows[] = {{METHOD_LORA, 2 * 2 * 2 * 4 * 32},
                {METHOD_BITFIT, 2 * (3 + 1 + 4 + 1 + 2) * 32 + 2 * 32},
                {METHOD_VPT, 2 * 3 * 32},
                {METHOD_LINEAR, 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        err e = {0};
        ssl_result r, s;
        ssl_options o = tiny(rows[i].method);
        o.epochs = 1;
        char whole[32], parts[48], a[HASH_HEX], b[HASH_HEX], path[FILE_PATH_MAX];
        snprintf(whole, sizeof whole, "ssl-%s", peft_name(rows[i].method));
        snprintf(parts, sizeof parts, "%s-parts", whole);
        ASSERT_OK(adapt(w, &o, whole, &r, &e));
        assert_int_equal(r.trainable, rows[i].trainable);
        assert_int_equal(adapt_until(w, &o, parts, 2, 0, &s), ERR_INTERRUPTED);
        ASSERT_OK(adapt(w, &o, parts, &s, &e));
        assert_true(s.resumed && s.loss_last == r.loss_last);
        hash_of(w, whole, "adapter.safetensors", a);
        hash_of(w, parts, "adapter.safetensors", b);
        assert_string_equal(a, b);

        safetensors f;
        param_set ps = {0};
        peft_spec spec;
        size_t values = 0;
        vit *m = world_vit(w);
        world_path(w, whole, "adapter.safetensors", path);
        ASSERT_OK(safetensors_open(&f, path, &e));
        for (size_t k = 0; k < f.n; k++) values += f.tensors[k].count;
        assert_int_equal(values, rows[i].trainable);
        assert_string_equal(safetensors_meta(&f, "method"), peft_name(rows[i].method));
        assert_non_null(safetensors_meta(&f, "side"));
        ASSERT_OK(adapter_load(&f, m, false, &ps, &spec, &e));
        assert_true(peft_same(&spec, &o.peft));
        ASSERT_OK(vit_merge(m, false, &e));
        safetensors_close(&f);
        param_set_free(&w->d, &ps);
        vit_close(m);
    }
}

/* A rate that destroys the features: rolled back, twice at most, and what comes out is finite and the best. */
static void test_collapse(void **state)
{
    world *w = *state;
    static const float rates[] = {1e2f, 1e30f, 1e2f, 1e30f};
    static const char *const names[] = {"ssl-far", "ssl-overflow", "ssl-far-varied", "ssl-overflow-varied"};
    for (int i = 0; i < 4; i++) {
        err e = {0};
        ssl_result r;
        safetensors s;
        char path[FILE_PATH_MAX];
        ssl_options o = i < 2 ? tiny(METHOD_APLA) : varied(METHOD_APLA);
        o.lr = rates[i];
        o.momentum = o.momentum_last = 0; /* the teacher follows at once */
        o.warmup_epochs = 0;
        o.collapse_rank = 0.9;
        err_code rc = adapt(w, &o, names[i], &r, &e);
        if (rc) { /* gradients that stay infinite end the run, and say so */
            print_message("%s: %s\n", names[i], e.msg);
            assert_int_equal(rc, ERR_NUMERIC);
            continue;
        }
        assert_true(r.rolled_back && isfinite(r.rank_best) && r.rank_best >= 0.9 * r.rank_start);
        world_path(w, names[i], "adapter.safetensors", path);
        ASSERT_OK(safetensors_open(&s, path, &e));
        for (size_t t = 0; t < s.n; t++) {
            float *v = malloc(s.tensors[t].count * sizeof *v);
            if (s.tensors[t].type == TENSOR_F32) {
                ASSERT_OK(tensor_to_f32(&s.tensors[t], v, &e));
                for (size_t k = 0; k < s.tensors[t].count; k++) assert_true(isfinite(v[k]));
            }
            free(v);
        }
        safetensors_close(&s);
    }
}

/* Rolled back to a teacher before whose step the backbone had not trained: Adam corrects its moments, which are zero
 * again, as at the start; its count is behind the run's step from then on, also in what a stopped run keeps. */
static void test_moments_go_back(void **state)
{
    world *w = *state;
    ssl_result r;
    err e = {0};
    safetensors s;
    char path[FILE_PATH_MAX];
    long long t[ADAM_GROUPS], at = 0;
    ssl_options o = tiny(METHOD_APLA);
    o.lr = 1e2f;
    o.momentum = o.momentum_last = 0;
    o.warmup_epochs = 0;
    o.collapse_rank = 0.9;
    o.freeze_prototypes_epochs = 0.5;
    assert_int_equal(adapt_until(w, &o, "ssl-moments", 4, 0, &r), ERR_INTERRUPTED);
    world_path(w, "ssl-moments", "checkpoint.safetensors", path);
    ASSERT_OK(safetensors_open(&s, path, &e));
    const char *text = safetensors_meta(&s, "state");
    assert_int_equal(sscanf(text, "%lld %lld %lld %lld", t, t + 1, t + 2, &at), 4);
    print_message("step %lld: updates of the backbone %lld, the head %lld, prototypes %lld\n", at, t[ADAM_BACKBONE],
                  t[ADAM_HEAD], t[ADAM_PROTOTYPES]);
    assert_true(r.rolled_back);
    assert_true(t[ADAM_BACKBONE] < t[ADAM_HEAD] && t[ADAM_HEAD] < at && t[ADAM_PROTOTYPES] < t[ADAM_HEAD]);
    safetensors_close(&s);
}

/* A checkpoint of other options is another run's. */
static void test_conflict(void **state)
{
    world *w = *state;
    ssl_result r;
    err e = {0};
    ssl_options o = tiny(METHOD_APLA);
    assert_int_equal(adapt_until(w, &o, "ssl-conflict", 2, 0, &r), ERR_INTERRUPTED);
    o.view.share = 0.9f;
    assert_int_equal(adapt(w, &o, "ssl-conflict", &r, &e), ERR_CONFLICT);
    o = tiny(METHOD_APLA);
    o.view.window.fixed[1].width = 7;
    assert_int_equal(adapt(w, &o, "ssl-conflict", &r, &e), ERR_CONFLICT);
    o = tiny(METHOD_APLA);
    e = (err){0};
    ASSERT_OK(adapt(w, &o, "ssl-conflict", &r, &e));
    assert_true(r.resumed);
}

static void test_options(void **state)
{
    world *w = *state;
    struct {
        const char *name;
        int batch, locals, size, bottleneck, accumulate;
        err_code code;
    } table[] = {{"no batch", 0, 2, 32, 16, 1, ERR_USAGE},      {"batch", 4096, 2, 32, 16, 1, ERR_LIMIT},
                 {"locals", 4, -1, 32, 16, 1, ERR_USAGE},       {"size", 4, 2, 4, 16, 1, ERR_USAGE},
                 {"bottleneck", 4, 2, 32, 20000, 1, ERR_LIMIT}, {"accumulate", 4, 2, 32, 16, 0, ERR_USAGE}};
    for (size_t t = 0; t < sizeof table / sizeof *table; t++) {
        err e = {0};
        ssl_result r;
        ssl_options o = tiny(METHOD_APLA);
        o.batch = table[t].batch;
        o.locals = table[t].locals;
        o.global_size = table[t].size;
        o.bottleneck = table[t].bottleneck;
        o.accumulate = table[t].accumulate;
        err_code rc = adapt(w, &o, "ssl-options", &r, &e);
        print_message("%s: %s\n", table[t].name, e.msg);
        assert_int_equal(rc, table[t].code);
    }
    ssl_options o;
    err e = {0};
    assert_int_equal(ssl_recipe("nothing", METHOD_APLA, &o, &e), ERR_USAGE);
    ssl_options apla = tiny(METHOD_APLA), full = tiny(METHOD_FULL);
    assert_true(full.lr < 0.11f * apla.lr); /* facts: everything at APLA's rate destroys the features */
}

/* facts/training.md, "Reference SSA recipe", row by row. */
static void test_essa(void **state)
{
    (void)state;
    ssl_options o;
    err e = {0};
    ASSERT_OK(ssl_recipe("essa", METHOD_APLA, &o, &e));
    const struct {
        const char *what;
        double got, want;
    } rows[] = {{"DINO", o.dino, 1},
                {"iBOT", o.ibot, 1},
                {"KoLeo", o.koleo, 0.1f},
                {"Sinkhorn", o.sinkhorn, 0},
                {"separate heads", o.separate_heads, 0},
                {"hidden", o.hidden, 2048},
                {"bottleneck", o.bottleneck, 256},
                {"prototypes", o.prototypes, 65536},
                {"head on data", o.data_init, 0},
                {"mask probability", o.mask_probability, 0.5},
                {"mask ratio", o.mask_ratio[0], 0.1f},
                {"mask ratio", o.mask_ratio[1], 0.5},
                {"global size", o.global_size, 224},
                {"crops from a square", o.crop_from, 256},
                {"local crops", o.locals, 8},
                {"local size (the multiple of the patch nearest to 98)", o.local_size, 0},
                {"global scale", o.augment.global_scale[0], 0.32f},
                {"global scale", o.augment.global_scale[1], 1},
                {"local scale", o.augment.local_scale[0], 0.05f},
                {"local scale", o.augment.local_scale[1], 0.32f},
                {"flip", o.augment.flip, 0.5},
                {"jitter", o.augment.jitter, 0.8f},
                {"brightness", o.augment.brightness, 0.4f},
                {"contrast", o.augment.contrast, 0.4f},
                {"saturation", o.augment.saturation, 0.2f},
                {"hue", o.augment.hue, 0.1f},
                {"grey", o.augment.gray, 0.2f},
                {"blur of global 1", o.augment.blur[0], 1},
                {"blur of global 2", o.augment.blur[1], 0.1f},
                {"blur of locals", o.augment.blur[2], 0.5},
                {"blur radius", o.augment.blur_sigma[0], 0.1f},
                {"blur radius", o.augment.blur_sigma[1], 2},
                {"solarize", o.augment.solarize, 0.2f},
                {"window", o.augment.window, 0},
                {"batch", o.batch, 64},
                {"accumulate", o.accumulate, 4},
                {"solarize of grey frames", o.augment.solarize_grey, 1},
                {"lr", o.lr, 1e-3f},
                {"lr of the head", o.head_lr, 1e-3f},
                {"layer decay", o.layer_decay, 1},
                {"drop path", o.drop_path, 0},
                {"patch lr", o.patch_lr, 1},
                {"share of kNN", o.knn_share, 1},
                {"epochs", o.epochs, 300},
                {"warm-up", o.warmup_epochs, 10},
                {"head warm-up", o.head_warmup_epochs, 0},
                {"last lr", o.lr_last, 1e-6f},
                {"weight decay", o.weight_decay, 1e-5f},
                {"last weight decay", o.weight_decay_last, 1e-4f},
                {"momentum", o.momentum, 0.994f},
                {"last momentum", o.momentum_last, 1},
                {"teacher temperature", o.teacher_temp, 0.04f},
                {"last teacher temperature", o.teacher_temp_last, 0.07f},
                {"its epochs", o.teacher_temp_epochs, 30},
                {"student temperature", o.student_temp, 0.1f},
                {"centre", o.center_momentum, 0.9f},
                {"clip", o.clip, 1},
                {"frozen prototypes", o.freeze_prototypes_epochs, 1},
                {"evaluation", o.evaluate_epochs, 0.5},
                {"guard against collapse", o.collapse_rank, 0},
                {"kNN", o.knn, 200},
                {"its temperature", o.knn_temp, 0.1f}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].got != rows[i].want) fail_msg("%s: %g, not %g", rows[i].what, rows[i].got, rows[i].want);
    ASSERT_OK(ssl_recipe("essa", METHOD_FULL, &o, &e)); /* 1e-4, one rate for all */
    assert_true(fabs(o.lr - 1e-4) < 1e-9 && o.head_lr == o.lr);
}

/* Labels sorted by class, more cases than may be taken: every class is among them, in its share. */
static void test_evaluation_is_spread(void **state)
{
    world *w = *state;
    err e = {0};
    ssl_eval v;
    vit *m = world_vit(w);
    cohort c = w->c;
    enum { CASES = 300, MOST = 50 };
    labelled_case *cases = calloc(CASES, sizeof *cases);
    uint32_t frames[CASES];
    for (int i = 0; i < CASES; i++) {
        frames[i] = (uint32_t)i;
        cases[i] = (labelled_case){.stratum = i / 100, .part = i % 3 ? SPLIT_TRAIN : SPLIT_VALIDATION, .n_frames = 1};
        cases[i].frames = &frames[i];
    }
    c.cases = cases;
    c.n_cases = CASES;
    ASSERT_OK(ssl_eval_open(&v, m, &c, MOST, &e));
    int train[3] = {0}, validation[3] = {0};
    for (size_t i = 0; i < v.n_train; i++) train[v.train_label[i]]++;
    for (size_t i = 0; i < v.n_validation; i++) validation[v.validation_label[i]]++;
    assert_int_equal(v.n_train, MOST);
    assert_int_equal(v.n_validation, MOST);
    for (int k = 0; k < 3; k++) assert_true(train[k] >= 16 && train[k] <= 18 && validation[k] >= 16);
    ssl_eval_close(&v);
    vit_close(m);
    free(cases);
}

static void test_choice(void **state)
{
    (void)state;
    const ssl_score a = {.knn_auc = 0.875, .linear_auc = 0.75}, b = {.knn_auc = 0.75, .linear_auc = 0.9375};
    const ssl_score c = {.knn_auc = 0.8125, .linear_auc = NAN};
    assert_true(ssl_score_choice(&a, 1) == 0.875 && ssl_score_choice(&b, 1) == 0.75); /* kNN alone: a */
    assert_true(ssl_score_choice(&a, 0) == 0.75 && ssl_score_choice(&b, 0) == 0.9375);
    assert_true(ssl_score_choice(&a, 0.5f) == 0.8125 && ssl_score_choice(&b, 0.5f) == 0.84375); /* both: b */
    assert_true(ssl_score_choice(&c, 0.5f) == 0.8125);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_apla),
                                       cmocka_unit_test(test_full),
                                       cmocka_unit_test(test_patch_rate),
                                       cmocka_unit_test(test_choice),
                                       cmocka_unit_test(test_between_micro_batches),
                                       cmocka_unit_test(test_methods),
                                       cmocka_unit_test(test_collapse),
                                       cmocka_unit_test(test_moments_go_back),
                                       cmocka_unit_test(test_conflict),
                                       cmocka_unit_test(test_options),
                                       cmocka_unit_test(test_essa),
                                       cmocka_unit_test(test_evaluation_is_spread)};
    return cmocka_run_group_tests(tests, world_make, world_unmake);
}
