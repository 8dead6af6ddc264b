/* Fine-tuning a tiny random model on images of two kinds: it learns, a run that was stopped ends with the same bits,
 * and what the bundle predicts is what the run predicted. */
#include "adapt/finetune.h"
#include "base/csv.h"
#include "base/log.h"
#include "base/stop.h"
#include "tests/adapt/world.h"

#include <pthread.h>

enum { PATIENTS = WORLD_PATIENTS };

typedef struct {
    vit *m;
    param_set adapter;
    bundle_info info;
} model;

static void model_open(world *w, model *k, peft_method method, const cohort *c)
{
    err e = {0};
    *k = (model){.info = {.peft = {.method = method,
                                   .rows = method == METHOD_APLA ? 16 : 0,
                                   .seed = 9,
                                   .rank = 4,
                                   .alpha = 8,
                                   .targets = PEFT_Q | PEFT_V | PEFT_FC1,
                                   .prompts = 3,
                                   .deep = true}}};
    snprintf(k->info.backbone_random, sizeof k->info.backbone_random, "%s seed=5", WORLD_BACKBONE);
    k->m = world_vit(w);
    if (method != METHOD_LINEAR) ASSERT_OK(vit_train(k->m, &k->info.peft, &k->adapter, &e));
    k->info.n_labels = c->n_labels;
    k->info.labels = calloc((size_t)c->n_labels, sizeof *k->info.labels);
    for (int i = 0; i < c->n_labels; i++) memcpy(k->info.labels[i].name, c->labels[i], sizeof c->labels[i]);
    ASSERT_OK(findings_codes(NULL, k->info.labels, c->n_labels, &e));
}

static void model_close(world *w, model *k)
{
    vit_close(k->m);
    param_set_free(&w->d, &k->adapter);
    free(k->info.labels);
}

static finetune_options tiny(peft_method method)
{
    finetune_options o;
    finetune_defaults(&o, method);
    o.epochs = 4;
    o.batch = 8;
    o.lr = o.head_lr = 3e-3f;
    o.warmup_steps = 2;
    o.patience = 0;
    o.view.size = 32;
    o.view.share = 1;
    return o;
}

static err_code run(world *w, peft_method trainable, const finetune_options *o, const cohort *c, const char *name,
                    finetune_result *r, err *e)
{
    model k;
    char dir[FILE_PATH_MAX];
    world_path(w, name, "", dir);
    model_open(w, &k, trainable, c);
    err_code rc = finetune_run(k.m, &k.adapter, c, o, &k.info, dir, r, e);
    model_close(w, &k);
    return rc;
}

static void check_learnt(const finetune_result *r)
{
    assert_int_equal(r->validation.n, 6);
    assert_int_equal(r->test.n, 6);
    assert_true(r->has_test);
    assert_true(r->validation.auc > 0.99 && r->test.auc > 0.99);
    assert_false(r->already_done);
}

/* The bundle, opened anew, gives every study the probability that the run wrote down for it. */
static void check_bundle(world *w, const char *name)
{
    err e = {0};
    char dir[FILE_PATH_MAX], path[FILE_PATH_MAX];
    bundle *b;
    findings f;
    csv t;
    world_path(w, name, "", dir);
    ASSERT_OK(file_path(path, &e, "%s/model.safetensors", dir));
    ASSERT_OK(bundle_open(&b, &w->d, path, NULL, &e));
    assert_string_equal(bundle_get_info(b)->labels[1].name, "square");
    assert_string_equal(bundle_get_info(b)->split_hash, w->c.split_hash);
    assert_non_null(strstr(bundle_get_info(b)->metrics_json, "\"test\""));
    ASSERT_OK(bundle_predict(b, &w->c, &f, &e));
    assert_string_equal(f.model_hash, bundle_hash(b));
    ASSERT_OK(file_path(path, &e, "%s/predictions.csv", dir));
    ASSERT_OK(csv_read(&t, path, &e));
    assert_int_equal(t.rows, PATIENTS + 1);
    assert_int_equal(f.n_studies, PATIENTS);
    for (size_t i = 0; i < f.n_studies; i++) {
        size_t row = 1;
        while (row < t.rows && strcmp(csv_at(&t, row, csv_column(&t, "case")), f.studies[i].study_key)) row++;
        assert_true(row < t.rows);
        double p = atof(csv_at(&t, row, csv_column(&t, "p_square"))), weight = 0;
        const study_finding *s = &f.studies[i];
        if (fabs(p - s->probability[1]) > 1e-4) fail_msg("%f in the run, %f from the bundle", p, s->probability[1]);
        assert_true(fabs(s->probability[0] + s->probability[1] - 1) < 1e-9);
        const finding *one = s->found;
        assert_int_equal(s->n_found, 1);
        assert_int_equal(one->label, s->probability[1] > s->probability[0]);
        assert_int_equal(one->n_evidence, s->frames);
        for (int k = 0; k < one->n_evidence; k++) {
            weight += one->evidence[k].weight;
            if (k) assert_true(one->evidence[k].weight <= one->evidence[k - 1].weight);
        }
        assert_true(fabs(weight - 1) < 1e-9);
        assert_string_equal(csv_at(&t, row, csv_column(&t, "predicted")), f.labels[one->label].name);
    }
    csv_close(&t);
    findings_fini(&f);
    bundle_close(b);
}

static void test_linear(void **state)
{
    world *w = *state;
    err e = {0};
    finetune_result r, again;
    finetune_options o = tiny(METHOD_LINEAR);
    ASSERT_OK(run(w, METHOD_LINEAR, &o, &w->c, "linear", &r, &e));
    check_learnt(&r);
    check_bundle(w, "linear");
    char *csv_text = world_text(w, "linear", "predictions.csv");
    assert_null(strstr(csv_text, "P1"));
    assert_null(strstr(csv_text, "1.2."));
    free(csv_text);

    ASSERT_OK(run(w, METHOD_LINEAR, &o, &w->c, "linear", &again, &e));
    assert_true(again.already_done && again.has_test);
    assert_true(fabs(again.test.auc - r.test.auc) < 1e-6 && again.test.n == r.test.n);
    o.seed++;
    assert_int_equal(run(w, METHOD_LINEAR, &o, &w->c, "linear", &again, &e), ERR_CONFLICT);

    /* on an adapted backbone: its params are in the bundle, though none is stepped */
    e = (err){0};
    ASSERT_OK(run(w, METHOD_APLA, &o, &w->c, "linear-adapted", &r, &e));
    check_learnt(&r);
    check_bundle(w, "linear-adapted");
}

static size_t lines(const char *text)
{
    size_t n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

/* Where log events go: after the second validation a thread asks the run to stop, in the middle of an epoch as a rule;
 * after the fourth of five it is asked in any case, so that it never gets to its end. */
static int validations;
static pthread_t stopper;

static void *stop_soon(void *unused)
{
    usleep(3000);
    stop_request();
    return unused;
}

static ssize_t on_log(void *unused, const char *text, size_t n)
{
    (void)unused;
    if (memmem(text, n, "finetune.epoch", 14)) {
        validations++;
        if (validations == 2) pthread_create(&stopper, NULL, stop_soon, NULL);
        if (validations == 4) stop_request();
    }
    return (ssize_t)n;
}

/* A run and one that is stopped in the middle end with the same bits. */
static void check_resumed(world *w, peft_method method, const finetune_options *o, const cohort *c, const char *whole,
                          const char *parts, finetune_result *r)
{
    err e = {0};
    char dir[FILE_PATH_MAX], path[FILE_PATH_MAX], a[HASH_HEX], b[HASH_HEX];
    finetune_result s;
    ASSERT_OK(run(w, method, o, c, whole, r, &e));
    assert_int_equal(r->steps, 12); /* 18 training cases, 3 batches of 8 an epoch */
    world_path(w, whole, "", dir);
    ASSERT_OK(file_path(path, &e, "%s/checkpoint.safetensors", dir));
    assert_false(file_exists(path));
    ASSERT_OK(file_path(path, &e, "%s/model.safetensors", dir));
    ASSERT_OK(hash_file(path, a, &e));

    FILE *log = fopencookie(NULL, "w", (cookie_io_functions_t){.write = on_log});
    assert_non_null(log);
    setvbuf(log, NULL, _IOLBF, BUFSIZ);
    validations = 0;
    log_open(log, LOG_TEXT, LOG_INFO);
    err_code rc = run(w, method, o, c, parts, &s, &e);
    log_open(stderr, LOG_TEXT, LOG_OFF);
    fclose(log);
    pthread_join(stopper, NULL);
    stop_clear();
    assert_int_equal(rc, ERR_INTERRUPTED);
    assert_true(s.steps < 12);
    print_message("stopped after step %d\n", (int)s.steps);
    e = (err){0};
    stop_request(); /* once more, before anything was done */
    assert_int_equal(run(w, method, o, c, parts, &s, &e), ERR_INTERRUPTED);
    stop_clear();
    e = (err){0};
    ASSERT_OK(run(w, method, o, c, parts, &s, &e));
    assert_true(s.resumed);
    assert_int_equal(s.steps, 12);
    world_path(w, parts, "", dir);
    ASSERT_OK(file_path(path, &e, "%s/model.safetensors", dir));
    ASSERT_OK(hash_file(path, b, &e));
    assert_string_equal(a, b);
    char *log_a = world_text(w, whole, "metrics.jsonl"), *log_b = world_text(w, parts, "metrics.jsonl");
    assert_int_equal(lines(log_a), 5);
    assert_string_equal(log_a, log_b);
    free(log_a);
    free(log_b);
}

static void check_joint(world *w, peft_method method, const char *whole, const char *parts)
{
    finetune_result r;
    finetune_options o = tiny(method);
    check_resumed(w, method, &o, &w->c, whole, parts, &r);
    check_learnt(&r);
    check_bundle(w, whole);
}

static void test_apla(void **state)
{
    check_joint(*state, METHOD_APLA, "apla", "apla-parts");
}

static void test_full(void **state)
{
    check_joint(*state, METHOD_FULL, "full", "full-parts");
}

static void test_lora(void **state)
{
    check_joint(*state, METHOD_LORA, "lora", "lora-parts");
}

static void test_bitfit(void **state)
{
    check_joint(*state, METHOD_BITFIT, "bitfit", "bitfit-parts");
}

static void test_vpt(void **state)
{
    check_joint(*state, METHOD_VPT, "vpt", "vpt-parts");
}

/* An adapter of one method becomes part of the backbone, and another method trains on top: the bundle holds both. */
static void test_on_top(void **state)
{
    world *w = *state;
    static const peft_method rows[][2] = {
        {METHOD_LORA, METHOD_APLA}, {METHOD_VPT, METHOD_LORA}, {METHOD_APLA, METHOD_BITFIT}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        err e = {0};
        model k;
        param_set base;
        finetune_result r;
        finetune_options o = tiny(rows[i][1]);
        bundle_info got;
        char dir[FILE_PATH_MAX], path[FILE_PATH_MAX], name[16];
        o.epochs = 1;
        model_open(w, &k, rows[i][0], &w->c);
        for (size_t p = 0; p < k.adapter.n; p++) { /* as if it had been trained */
            size_t n = k.adapter.p[p].rows * k.adapter.p[p].cols;
            float *v = malloc(n * sizeof *v);
            assert_non_null(v);
            w->d.op->download(&w->d, v, k.adapter.p[p].master, n * sizeof *v);
            rng g = rng_at(7, RNG_TEST, i, (uint32_t)p);
            for (size_t c = 0; c < n; c++) v[c] += 0.1f * rng_normal(&g);
            w->d.op->upload(&w->d, k.adapter.p[p].master, v, n * sizeof *v);
            free(v);
        }
        w->d.op->refresh(&w->d, k.adapter.p, k.adapter.n);
        ASSERT_OK(vit_merge(k.m, true, &e));
        base = k.adapter;
        k.adapter = (param_set){0};
        k.info.base = k.info.peft;
        k.info.base_params = &base;
        k.info.peft.method = rows[i][1];
        ASSERT_OK(vit_train(k.m, &k.info.peft, &k.adapter, &e));
        snprintf(name, sizeof name, "top-%zu", i);
        world_path(w, name, "", dir);
        ASSERT_OK(finetune_run(k.m, &k.adapter, &w->c, &o, &k.info, dir, &r, &e));
        check_bundle(w, name);
        ASSERT_OK(file_path(path, &e, "%s/model.safetensors", dir));
        ASSERT_OK(bundle_read_info(path, &got, &e));
        assert_true(peft_same(&got.base, &k.info.base) && peft_same(&got.peft, &k.info.peft));
        bundle_info_fini(&got);
        model_close(w, &k);
        param_set_free(&w->d, &base);
    }
}

/* Number behind "name": in a line of metrics.jsonl. */
static double __attribute__((noinline)) logged(const char *line, const char *name)
{
    char key[64];
    snprintf(key, sizeof key, "\"%s\":", name);
    const char *at = strstr(line, key);
    assert_non_null(at);
    return strncmp(at + strlen(key), "null", 4) ? strtod(at + strlen(key), NULL) : NAN;
}

/* The steps themselves learn, the head's as well as the backbone's: with either alone the training loss comes out lower
 * than with neither on the same images. */
static void test_steps_learn(void **state)
{
    world *w = *state;
    static const struct {
        const char *name;
        float lr, head_lr;
    } table[] = {{"neither", 0, 0}, {"head", 0, 0.1f}, {"backbone", 0.003f, 0}};
    double sum[3] = {0};
    for (size_t t = 0; t < 3; t++) {
        err e = {0};
        finetune_result r;
        finetune_options o = tiny(METHOD_APLA);
        o.epochs = 8;
        o.lr = table[t].lr;
        o.head_lr = table[t].head_lr;
        o.lr_last = 0;
        o.crop_scale[0] = 0.3f;
        o.label_smoothing = 0.3f; /* what it starts from is too sure of itself */
        ASSERT_OK(run(w, METHOD_APLA, &o, &w->c, table[t].name, &r, &e));
        char *text = world_text(w, table[t].name, "metrics.jsonl");
        for (char *line = text; *line; line = strchr(line, '\n') + 1) {
            double loss = logged(line, "loss");
            if (logged(line, "epoch") > 4) sum[t] += loss / 4;
        }
        print_message("%s: training loss %g\n", table[t].name, sum[t]);
        free(text);
    }
    assert_true(sum[1] < 0.9 * sum[0] && sum[2] < 0.9 * sum[0]);
}

/* What comes out is the best validation, not the last. */
static void test_best_is_kept(void **state)
{
    world *w = *state;
    err e = {0};
    finetune_result r;
    finetune_options o = tiny(METHOD_APLA);
    o.lr = o.head_lr = o.lr_last = 0.3f; /* far too large */
    ASSERT_OK(run(w, METHOD_APLA, &o, &w->c, "best", &r, &e));
    char *text = world_text(w, "best", "metrics.jsonl");
    double best_auc = -1, best_loss = INFINITY, last_loss = NAN;
    for (char *line = text; *line; line = strchr(line, '\n') + 1) {
        double auc = logged(line, "validation_auc"), loss = logged(line, "validation_loss");
        if (auc > best_auc || (auc == best_auc && loss < best_loss)) {
            best_auc = auc;
            best_loss = loss;
        }
        last_loss = loss;
    }
    print_message("validation loss %g at best, %g at last\n", best_loss, last_loss);
    assert_true(fabs(best_loss - last_loss) > 1e-3);
    assert_true(fabs(r.validation.auc - best_auc) < 1e-6 && fabs(r.validation.loss - best_loss) < 1e-4);
    free(text);
    check_bundle(w, "best");
}

/* A cohort of the same images with other labels. */
static void other_labels(world *w, const char *name, const label_rules *rules, const char *header,
                         const char *(*of)(int p, bool bright), cohort *c)
{
    err e = {0};
    char path[FILE_PATH_MAX], text[4096];
    snprintf(text, sizeof text, "study_uid,%s\n", header);
    for (int p = 0; p < PATIENTS; p++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "1.2.%d.0,%s\n", p, of(p, p % 3 == 0));
    synthetic_write(&w->s, name, text, path);
    ASSERT_OK(cohort_open_by(c, w->s.catalogue, w->s.work, path, rules, &(split_options){0.2f, 0.2f, 1}, &e));
}

/* "bright" can be seen, "odd" cannot; of some nothing is known. */
static const char *set_of(int p, bool bright)
{
    if (p % 5 == 4) return bright ? "1," : "0,";
    return bright ? p % 2 ? "1,1" : "1,0" : p % 2 ? "0,1" : "0,0";
}

/* Every option that changes what a step does, in one run that is stopped and goes on. */
static void test_sets(void **state)
{
    world *w = *state;
    err e = {0};
    cohort c;
    finetune_result r;
    finetune_options o = tiny(METHOD_APLA);
    o.mixup = 0.4f;
    o.layer_decay = 0.7f;
    o.drop_path = 0.3f;
    o.label_smoothing = 0.05f;
    other_labels(w, "sets.csv", &(label_rules){TASK_MULTILABEL, "bright,odd", NULL}, "bright,odd", set_of, &c);
    check_resumed(w, METHOD_APLA, &o, &c, "sets", "sets-parts", &r);
    assert_true(r.validation.n == 6 && isnan(r.validation.kappa_quadratic));
    char path[FILE_PATH_MAX], *text = world_text(w, "sets", "predictions.csv");
    assert_non_null(strstr(text, "case,part,label,predicted,p_bright,p_odd\n"));
    assert_non_null(strstr(text, "?odd"));
    free(text);
    bundle *b;
    findings f;
    world_path(w, "sets", "model.safetensors", path);
    ASSERT_OK(bundle_open(&b, &w->d, path, NULL, &e));
    ASSERT_OK(bundle_predict(b, &c, &f, &e));
    size_t right = 0;
    for (size_t i = 0; i < c.n_cases; i++)
        for (size_t k = 0; k < f.n_studies; k++) {
            const study_finding *s = &f.studies[k];
            if (strcmp(s->study_key, c.cases[i].key)) continue;
            bool said = false;
            for (int j = 0; j < s->n_found; j++) said |= !strcmp(f.labels[s->found[j].label].name, "bright");
            right += said == (c.cases[i].marks[0] == 1);
        }
    assert_true(right >= 29);
    findings_fini(&f);
    bundle_close(b);
    cohort_close(&c);
}

static const char *grade_of(int p, bool bright)
{
    return bright ? "3" : p % 2 ? "1" : "2";
}

/* Grades 1 and 2 look alike, 3 does not. */
static void test_grades(void **state)
{
    world *w = *state;
    cohort c;
    finetune_result r, linear;
    err e = {0};
    finetune_options o = tiny(METHOD_APLA);
    other_labels(w, "grades.csv", &(label_rules){.task = TASK_ORDINAL}, "label", grade_of, &c);
    check_resumed(w, METHOD_APLA, &o, &c, "grades", "grades-parts", &r);
    assert_true(r.validation.kappa_quadratic > 0.4 && r.validation.mae <= 0.7);
    o.sampling = SAMPLING_BALANCED;
    o.weights = WEIGHTS_BALANCED;
    ASSERT_OK(run(w, METHOD_APLA, &o, &c, "grades-balanced", &linear, &e));
    assert_int_equal(run(w, METHOD_APLA, &o, &c, "grades", &linear, &e), ERR_CONFLICT); /* another run */
    char *text = world_text(w, "grades", "metrics.jsonl"), *other = world_text(w, "grades-balanced", "metrics.jsonl");
    assert_string_not_equal(text, other);
    free(text);
    free(other);
    cohort_close(&c);
}

/* From a classifier of zeros all classes are alike at first; from the probe they are not. */
static void test_head_init(void **state)
{
    world *w = *state;
    err e = {0};
    finetune_result r;
    finetune_options o = tiny(METHOD_APLA);
    double first[2];
    for (int zero = 0; zero < 2; zero++) {
        o.probe_first = !zero;
        const char *name = zero ? "from-zero" : "from-probe";
        ASSERT_OK(run(w, METHOD_APLA, &o, &w->c, name, &r, &e));
        char *lines_of = world_text(w, name, "metrics.jsonl");
        first[zero] = logged(lines_of, "validation_loss");
        free(lines_of);
    }
    assert_true(fabs(first[1] - log(2)) < 1e-6 && first[0] < 0.5);
}

/* Two validations without a better one, and it stops. */
static void test_patience(void **state)
{
    world *w = *state;
    err e = {0};
    finetune_result r;
    finetune_options o = tiny(METHOD_APLA);
    o.lr = o.head_lr = o.lr_last = 0; /* nothing ever changes */
    o.patience = 2;
    ASSERT_OK(run(w, METHOD_APLA, &o, &w->c, "patience", &r, &e));
    assert_int_equal(r.steps, 6);
}

static void test_few(void **state)
{
    world *w = *state;
    err e = {0};
    char path[FILE_PATH_MAX];
    finetune_result r;
    cohort c;
    finetune_options o = tiny(METHOD_APLA);
    o.epochs = 1;
    remove((file_path(path, &e, "%s/split.csv", w->s.work), path));
    synthetic_write(&w->s, "few.csv", "patient_id,label\nP0,a\nP1,b\n", path);
    ASSERT_OK(cohort_open(&c, w->s.catalogue, w->s.work, path, &(split_options){0.2f, 0.2f, 1}, &e));
    ASSERT_OK(run(w, METHOD_APLA, &o, &c, "few", &r, &e)); /* nobody to validate on: the last step */
    assert_int_equal(r.validation.n, 0);
    assert_false(r.has_test);
    ASSERT_OK(run(w, METHOD_LINEAR,
                  &(finetune_options){.method = METHOD_LINEAR,
                                      .epochs = 1,
                                      .batch = 1,
                                      .crop_scale = {1, 1},
                                      .layer_decay = 1,
                                      .view = {.size = 32, .share = 1}},
                  &c, "few-linear", &r, &e));
    c.cases[1].label = c.cases[1].stratum = c.cases[0].label;
    assert_int_equal(run(w, METHOD_APLA, &o, &c, "few-one", &r, &e), ERR_USAGE);
    cohort_close(&c);
}

/* Where nobody says how long: of 18 cases 300 updates of 8 of them; 100 epochs: validated every third, at the
 * start and at the end. */
static void test_length(void **state)
{
    world *w = *state;
    err e = {0};
    finetune_result r;
    finetune_options o = tiny(METHOD_BITFIT);
    o.epochs = 0;
    ASSERT_OK(run(w, METHOD_BITFIT, &o, &w->c, "length", &r, &e));
    assert_int_equal(r.steps, 300);
    char *log = world_text(w, "length", "metrics.jsonl");
    int lines = 0;
    for (const char *at = log; (at = strchr(at, '\n')); at++) lines++;
    free(log);
    assert_int_equal(lines, 35);
}

static void test_options(void **state)
{
    world *w = *state;
    static const struct {
        const char *name;
        int batch, warmup, size;
        double epochs;
        float scale, smoothing, mixup, decay;
    } table[] = {{"batch", 0, 1, 32, 1, 1, 0, 0, 1},        {"epochs", 8, 1, 32, -1, 1, 0, 0, 1},
                 {"NaN epochs", 8, 1, 32, NAN, 1, 0, 0, 1}, {"warm-up", 8, -1, 32, 1, 1, 0, 0, 1},
                 {"size", 8, 1, 33, 1, 1, 0, 0, 1},         {"size 0", 8, 1, 0, 1, 1, 0, 0, 1},
                 {"crop scale", 8, 1, 32, 1, 0, 0, 0, 1},   {"smoothing", 8, 1, 32, 1, 1, 1, 0, 1},
                 {"mixup", 8, 1, 32, 1, 1, 0, -1, 1},       {"layer decay", 8, 1, 32, 1, 1, 0, 0, 0},
                 {"layer decay", 8, 1, 32, 1, 1, 0, 0, 2}};
    for (size_t t = 0; t < sizeof table / sizeof *table; t++) {
        err e = {0};
        finetune_result r;
        finetune_options o = tiny(METHOD_APLA);
        o.batch = table[t].batch;
        o.warmup_steps = table[t].warmup;
        o.view.size = table[t].size;
        o.epochs = table[t].epochs;
        o.crop_scale[0] = table[t].scale;
        o.label_smoothing = table[t].smoothing;
        o.mixup = table[t].mixup;
        o.layer_decay = table[t].decay;
        assert_int_equal(run(w, METHOD_APLA, &o, &w->c, "options", &r, &e), ERR_USAGE);
        print_message("%s: %s\n", table[t].name, e.msg);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),    cmocka_unit_test(test_apla),        cmocka_unit_test(test_full),
        cmocka_unit_test(test_lora),      cmocka_unit_test(test_bitfit),      cmocka_unit_test(test_vpt),
        cmocka_unit_test(test_on_top),    cmocka_unit_test(test_steps_learn), cmocka_unit_test(test_best_is_kept),
        cmocka_unit_test(test_patience),  cmocka_unit_test(test_sets),        cmocka_unit_test(test_grades),
        cmocka_unit_test(test_head_init), cmocka_unit_test(test_length),      cmocka_unit_test(test_options),
        cmocka_unit_test(test_few)};
    return cmocka_run_group_tests(tests, world_make, world_unmake);
}
