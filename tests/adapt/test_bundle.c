/* A bundle written, read and damaged: each damage has its error, and none gets as far as a prediction. */
#include "adapt/bundle.h"
#include "base/progress.h"
#include "base/stop.h"
#include "tests/adapt/synthetic.h"

enum { DIM = 32, LABELS = 3, META_MAX = 64, TENSORS_MAX = 32 };

static const char *const backbone = "dim=32,depth=2,heads=2,patch=8,grid=4";

typedef struct {
    synthetic s;
    cohort c;
    device d;
    char path[FILE_PATH_MAX];
    bundle_info info;
    label_code labels[LABELS];
} world;

static int make(void **state)
{
    err e = {0};
    world *w = calloc(1, sizeof *w);
    vit *m;
    vit_source source = {.seed = 5};
    param_set ps = {0};
    float weight[LABELS * DIM], bias[LABELS] = {0.1f, 0.2f, 0.3f};
    rng r = rng_at(1, RNG_TEST, 0, 0);
    progress_quiet(1);
    synthetic_open(&w->s);
    for (int study = 0; study < 3; study++) /* studies of 1, 12 and 1 frames; of two patients */
        synthetic_image(&w->s, study / 2, study, 0, 0, study == 1 ? 12 : 1, 32, 32, study == 1);
    synthetic_seal(&w->s);
    ASSERT_OK(cohort_open(&w->c, w->s.catalogue, w->s.work, NULL, &(split_options){0.2f, 0.2f, 1}, &e));
    ASSERT_OK(device_open_cpu(&w->d, 2, COMPUTE_F32, &e));
    ASSERT_OK(vit_named_config(backbone, &source.random, &e));
    ASSERT_OK(vit_open(&m, &w->d, &source, &e));

    w->info = (bundle_info){.heads = 2,
                            .size = 32,
                            .share = 0.875f,
                            .window = "40/400",
                            .normalisation = "half",
                            .metrics_json = "{}",
                            .version = "0.0",
                            .split_hash = "ab",
                            .labels = w->labels,
                            .n_labels = LABELS};
    snprintf(w->info.backbone_random, sizeof w->info.backbone_random, "%s seed=5", backbone);
    memcpy(w->info.backbone, vit_hash(m), HASH_HEX);
    for (int i = 0; i < LABELS; i++) snprintf(w->labels[i].name, sizeof w->labels[i].name, "Größe %d", i);
    ASSERT_OK(findings_codes(NULL, w->labels, LABELS, &e));
    for (int i = 0; i < LABELS * DIM; i++) weight[i] = rng_normal(&r);
    assert_non_null(param_add(&ps, "head.weight", LABELS, DIM));
    assert_non_null(param_add(&ps, "head.bias", LABELS, 1));
    ASSERT_OK(param_alloc(&w->d, &ps.p[0], weight, false, &e));
    ASSERT_OK(param_alloc(&w->d, &ps.p[1], bias, false, &e));
    ASSERT_OK(file_path(w->path, &e, "%s/model.safetensors", w->s.work));
    ASSERT_OK(bundle_write(w->path, &w->d, &ps, &w->info, &e));
    param_set_free(&w->d, &ps);
    vit_close(m);
    *state = w;
    return 0;
}

static int unmake(void **state)
{
    world *w = *state;
    device_close(&w->d);
    cohort_close(&w->c);
    synthetic_close(&w->s);
    free(w);
    return 0;
}

static void test_round_trip(void **state)
{
    world *w = *state;
    err e = {0};
    bundle_info got;
    ASSERT_OK(bundle_read_info(w->path, &got, &e));
    assert_string_equal(got.backbone, w->info.backbone);
    assert_string_equal(got.backbone_random, w->info.backbone_random);
    assert_string_equal(got.normalisation, "half");
    assert_string_equal(got.window, "40/400");
    assert_string_equal(got.version, "0.0");
    assert_string_equal(got.split_hash, "ab");
    assert_int_equal(got.size, 32);
    assert_true(got.share == 0.875f);
    assert_int_equal(got.heads, 2);
    assert_int_equal(got.peft.method, METHOD_LINEAR);
    assert_int_equal(got.n_labels, LABELS);
    assert_memory_equal(got.labels, w->labels, sizeof w->labels);
    bundle_info_fini(&got);
}

static void test_predict(void **state)
{
    world *w = *state;
    err e = {0};
    bundle *b;
    findings f;
    char key[KEY_HEX];
    ASSERT_OK(bundle_open(&b, &w->d, w->path, NULL, &e));
    ASSERT_OK(bundle_predict(b, &w->c, &f, &e));
    assert_int_equal(f.n_studies, 3);
    synthetic_key(&w->s, ID_STUDY, "1.2.0.1", key);
    for (size_t i = 0; i < 3; i++) {
        const study_finding *s = &f.studies[i];
        bool large = !strcmp(s->study_key, key);
        double sum = 0;
        for (int k = 0; k < LABELS; k++) {
            sum += s->probability[k];
            assert_true(s->probability[k] <= s->probability[s->found[0].label]);
        }
        assert_true(fabs(sum - 1) < 1e-9);
        assert_int_equal(s->frames, large ? 12 : 1);
        assert_int_equal(s->n_found, 1);
        const finding *one = s->found;
        assert_int_equal(one->n_evidence, large ? 8 : 1);
        if (!large) assert_true(fabs(one->evidence[0].weight - 1) < 1e-12);
        for (int k = 1; k < one->n_evidence; k++) {
            assert_true(one->evidence[k].weight <= one->evidence[k - 1].weight && one->evidence[k].weight > 0);
            assert_int_not_equal(one->evidence[k].frame, one->evidence[k - 1].frame);
        }
    }
    findings_fini(&f);
    stop_request();
    assert_int_equal(bundle_predict(b, &w->c, &f, &e), ERR_INTERRUPTED);
    stop_clear();
    assert_int_equal(f.n_studies, 0);
    bundle_close(b);
}

/* The same head under another task: sigmoids of the same logits, of which a set is found. */
static void test_sets(void **state)
{
    world *w = *state;
    err e = {0};
    bundle *b;
    findings classes, sets;
    char path[FILE_PATH_MAX];
    float weight[LABELS * DIM], bias[LABELS];
    safetensors s;
    param_set ps = {0};
    bundle_info info = w->info;
    info.task = TASK_MULTILABEL;
    ASSERT_OK(safetensors_open(&s, w->path, &e));
    ASSERT_OK(tensor_to_f32(safetensors_find(&s, "head.weight"), weight, &e));
    ASSERT_OK(tensor_to_f32(safetensors_find(&s, "head.bias"), bias, &e));
    safetensors_close(&s);
    assert_non_null(param_add(&ps, "head.weight", LABELS, DIM));
    assert_non_null(param_add(&ps, "head.bias", LABELS, 1));
    ASSERT_OK(param_alloc(&w->d, &ps.p[0], weight, false, &e));
    ASSERT_OK(param_alloc(&w->d, &ps.p[1], bias, false, &e));
    ASSERT_OK(file_path(path, &e, "%s/sets.safetensors", w->s.work));
    ASSERT_OK(bundle_write(path, &w->d, &ps, &info, &e));
    param_set_free(&w->d, &ps);
    ASSERT_OK(safetensors_open(&s, path, &e)); /* a program that knows classes alone must not open it */
    assert_string_equal(safetensors_meta(&s, "bundle.format"), "radapt-bundle/2");
    safetensors_close(&s);

    ASSERT_OK(bundle_open(&b, &w->d, w->path, NULL, &e));
    ASSERT_OK(bundle_predict(b, &w->c, &classes, &e));
    bundle_close(b);
    ASSERT_OK(bundle_open(&b, &w->d, path, NULL, &e));
    assert_int_equal(bundle_get_info(b)->task, TASK_MULTILABEL);
    ASSERT_OK(bundle_predict(b, &w->c, &sets, &e));
    bundle_close(b);
    assert_int_equal(sets.task, TASK_MULTILABEL);
    int found = 0;
    for (size_t i = 0; i < 3; i++) {
        const study_finding *one = &sets.studies[i], *class = &classes.studies[i];
        int there = 0;
        found += one->n_found;
        for (int k = 0; k < LABELS; k++) there += one->probability[k] >= 0.5;
        assert_int_equal(one->n_found, there);
        for (int k = 0; k < one->n_found; k++) {
            assert_true(one->probability[one->found[k].label] >= 0.5);
            assert_true(!k || one->probability[one->found[k].label] <= one->probability[one->found[k - 1].label]);
            assert_int_equal(one->found[k].n_evidence, one->frames > 8 ? 8 : one->frames);
        }
        if (one->frames > 1) continue; /* of one frame: odds of the softmax are those of the logits */
        double z[LABELS];
        for (int k = 0; k < LABELS; k++) z[k] = log(one->probability[k] / (1 - one->probability[k]));
        for (int k = 1; k < LABELS; k++)
            assert_true(fabs(z[k] - z[0] - log(class->probability[k] / class->probability[0])) < 1e-6);
    }
    print_message("%d findings in 3 studies\n", found);
    findings_fini(&classes);
    findings_fini(&sets);
}

/* The bundle again with one metadata value or one tensor changed. */
static void damaged(const world *w, const char *key, const char *value, const char *name, const tensor *t,
                    char out[FILE_PATH_MAX])
{
    err e = {0};
    safetensors s;
    const char *keys[META_MAX], *values[META_MAX];
    tensor tensors[TENSORS_MAX];
    size_t n = 0, changed = 0;
    ASSERT_OK(safetensors_open(&s, w->path, &e));
    assert_true(s.n_meta < META_MAX && s.n < TENSORS_MAX);
    for (size_t i = 0; i < s.n_meta; i++) {
        keys[i] = s.meta_keys[i];
        values[i] = s.meta_values[i];
        if (key && !strcmp(key, keys[i])) {
            changed++;
            keys[i] = value ? keys[i] : "gone";
            values[i] = value ? value : values[i];
        }
    }
    for (size_t i = 0; i < s.n; i++) {
        if (name && !strcmp(name, s.tensors[i].name)) {
            changed++;
            if (t) {
                tensors[n] = *t;
                tensors[n++].name = s.tensors[i].name;
            }
        } else {
            tensors[n++] = s.tensors[i];
        }
    }
    assert_int_equal(changed, 1);
    ASSERT_OK(file_path(out, &e, "%s/damaged.safetensors", w->s.work));
    ASSERT_OK(safetensors_write(out, tensors, n, keys, values, s.n_meta, &e));
    safetensors_close(&s);
}

static void test_damage(void **state)
{
    world *w = *state;
    static const float zero[LABELS * DIM + 8], bad[LABELS] = {0, NAN, 0};
    static const tensor wide = {.type = TENSOR_F32, .dims = 2, .shape = {LABELS, DIM + 1}, .data = zero};
    static const tensor turned = {.type = TENSOR_F32, .dims = 2, .shape = {DIM, LABELS}, .data = zero};
    static const tensor more = {.type = TENSOR_F32, .dims = 1, .shape = {LABELS + 1}, .data = zero};
    static const tensor nan = {.type = TENSOR_F32, .dims = 1, .shape = {LABELS}, .data = bad};
    static const struct {
        const char *key, *value, *name;
        const tensor *t;
        err_code code;
    } table[] = {
        {"bundle.format", "radapt-bundle/9", NULL, NULL, ERR_FORMAT},
        {"bundle.format", NULL, NULL, NULL, ERR_FORMAT},
        {"bundle.task", "guess", NULL, NULL, ERR_FORMAT},
        {"bundle.task", "ordinal", NULL, NULL, ERR_SHAPE}, /* has a logit less */
        {"bundle.task", NULL, NULL, NULL, ERR_OK},         /* as before there were others */
        {"bundle.backbone", "0000", NULL, NULL, ERR_CONFLICT},
        {"bundle.backbone_random", "dim=32,depth=2,heads=2,patch=8,grid=4 seed=6", NULL, NULL, ERR_CONFLICT},
        {"bundle.backbone_random", "", NULL, NULL, ERR_FORMAT},
        {"bundle.backbone_path", "/nowhere/at/all.safetensors", NULL, NULL, ERR_NOTFOUND},
        {"bundle.method", "magic", NULL, NULL, ERR_FORMAT},
        {"bundle.method", "apla", NULL, NULL, ERR_COUNT}, /* its tensors are not there */
        {"bundle.heads", "0", NULL, NULL, ERR_FORMAT},
        {"bundle.heads", "two", NULL, NULL, ERR_FORMAT},
        {"bundle.size", "-32", NULL, NULL, ERR_FORMAT},
        {"bundle.size", "1e9", NULL, NULL, ERR_FORMAT},
        {"bundle.share", "nan", NULL, NULL, ERR_FORMAT},
        {"bundle.peft_seed", NULL, NULL, NULL, ERR_FORMAT},
        {"bundle.method", "lora", NULL, NULL, ERR_FORMAT}, /* of what rank? */
        {"bundle.method", "bitfit", NULL, NULL, ERR_COUNT},
        {"bundle.window", "wide open", NULL, NULL, ERR_USAGE},
        {"bundle.labels", "[]", NULL, NULL, ERR_FORMAT},
        {"bundle.labels", "{", NULL, NULL, ERR_FORMAT},
        {"bundle.labels", "[{\"name\":\"a\"},{\"name\":\"b\"}]", NULL, NULL, ERR_FORMAT},
        {"bundle.labels",
         "[{\"name\":\"a\",\"value\":\"1\",\"scheme\":\"s\",\"meaning\":\"m\"},"
         "{\"name\":\"b\",\"value\":\"2\",\"scheme\":\"s\",\"meaning\":\"m\"}]",
         NULL, NULL, ERR_SHAPE},
        {NULL, NULL, "head.weight", NULL, ERR_FORMAT},
        {NULL, NULL, "head.weight", &wide, ERR_SHAPE},
        {NULL, NULL, "head.weight", &turned, ERR_SHAPE},
        {NULL, NULL, "head.bias", &more, ERR_SHAPE},
        {NULL, NULL, "head.bias", &nan, ERR_NUMERIC},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        err e = {0};
        char path[FILE_PATH_MAX];
        bundle *b;
        damaged(w, table[i].key, table[i].value, table[i].name, table[i].t, path);
        err_code rc = bundle_open(&b, &w->d, path, NULL, &e);
        print_message("%zu: %s: %s\n", i, err_name(rc), e.msg);
        if (table[i].code == ERR_COUNT)
            assert_int_not_equal(rc, ERR_OK);
        else
            assert_int_equal(rc, table[i].code);
        if (!rc) assert_int_equal(bundle_get_info(b)->task, TASK_MULTICLASS);
        if (!rc) bundle_close(b);
        if (!rc) continue;
        assert_null(b);
        assert_null(strstr(e.msg, "nowhere"));
    }
    err e = {0};
    bundle *b;
    assert_int_equal(bundle_open(&b, &w->d, "/nowhere", NULL, &e), ERR_NOTFOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_predict),
                                       cmocka_unit_test(test_sets), cmocka_unit_test(test_damage)};
    return cmocka_run_group_tests(tests, make, unmake);
}
