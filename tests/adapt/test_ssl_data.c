/* Crops of a micro-batch, cut from the frame or from a square that it was squeezed into. */
#include "adapt/ssl_data.h"
#include "tests/adapt/world.h"

static ssl_options plain_options(void)
{
    ssl_options o;
    ssl_defaults(&o);
    o.batch = 3;
    o.global_size = 32;
    o.local_size = 16;
    o.locals = 2;
    o.view = (view_options){.size = 32, .share = 1};
    return o;
}

static float *filled(world *w, const vit *m, const ssl_options *o, uint64_t micro, size_t *n)
{
    err e = {0};
    ssl_data s;
    ASSERT_OK(ssl_data_open(&s, m, &w->c, o, &e));
    *n = ssl_data_floats(&s);
    float *out = malloc(*n * sizeof *out);
    ASSERT_OK(ssl_data_fill(&s, micro, out, &e));
    assert_true(o->crop_from ? ssl_data_bytes(&s) >= s.batch * 3 * 32 * 32 : ssl_data_bytes(&s) == 0);
    ssl_data_close(&s);
    return out;
}

static double apart(const float *a, const float *b, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) most = fmax(most, fabs((double)a[i] - b[i]));
    return most;
}

/* The frames are squares of 32 pixels: squeezed into 32, only the 8 bits are to be seen. */
static void squares_stay(void **state)
{
    world *w = *state;
    vit *m = world_vit(w);
    ssl_options o = plain_options();
    o.augment.brightness = o.augment.contrast = 0.1f;
    for (uint64_t micro = 0; micro < 3; micro++) {
        size_t n;
        o.crop_from = 0;
        float *direct = filled(w, m, &o, micro, &n);
        o.crop_from = 32;
        float *squared = filled(w, m, &o, micro, &n);
        double off = apart(direct, squared, n);
        print_message("at most %g apart\n", off);
        assert_true(off > 1e-6 && off < 0.03); /* half a step of 255, over a deviation of 0.22, a cubic's overshoot */
        free(direct);
        free(squared);
    }
    vit_close(m);
}

/* A frame of 20 rows and 40 columns: the largest crop of it is a square in the middle; of the square that it was
 * squeezed into, all. */
static void oblong(void **state)
{
    world *w = *state, other = {.d = w->d};
    err e = {0};
    synthetic_open(&other.s);
    for (int p = 0; p < 3; p++) synthetic_image(&other.s, p, 0, 0, 0, 1, 20, 40, true);
    synthetic_seal(&other.s);
    ASSERT_OK(cohort_open(&other.c, other.s.catalogue, other.s.work, NULL, &(split_options){0}, &e));
    vit *m = world_vit(w);
    ssl_options o = plain_options();
    o.locals = 0;
    o.augment = (augment_options){.global_scale = {1, 1}, .local_scale = {1, 1}, .ratio = {1, 1}};
    for (int from = 0; from < 2; from++) {
        size_t n;
        float whole[3 * 32 * 32];
        o.crop_from = from ? 32 : 0;
        float *out = filled(&other, m, &o, 0, &n);
        sampler_norm norm = features_norm(m, &o.view);
        double least = INFINITY;
        for (size_t f = 0; f < other.c.n_frames; f++) { /* one of them is the first of the batch */
            const frame_info *frame = &other.c.frames[f];
            const sample_job job = {.frame = frame,
                                    .pixels = cohort_pixels(&other.c, f),
                                    .crop = sampler_whole(frame, false, 1),
                                    .size = 32,
                                    .out = whole};
            ASSERT_OK(sampler_run(NULL, &norm, &job, 1));
            least = fmin(least, apart(whole, out, 3 * 32 * 32));
        }
        print_message("from %d: %g\n", o.crop_from, least);
        assert_true(from ? least < 0.02 : least > 0.5);
        free(out);
    }
    o.crop_from = 8;
    ssl_data s;
    assert_int_equal(ssl_data_open(&s, m, &other.c, &o, &e), ERR_USAGE);
    ssl_data_close(&s);
    vit_close(m);
    cohort_close(&other.c);
    synthetic_close(&other.s);
}

/* Small cohorts are gone through more often. */
static void epochs(void **state)
{
    static const struct {
        uint64_t steps_per_epoch;
        double want;
    } rows[] = {{1, 350}, {22, 16}, {43, 9}, {44, 8}, {1000, 8}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_true(ssl_data_epochs(&(ssl_data){.steps_per_epoch = rows[i].steps_per_epoch}) == rows[i].want);
}

/* Half of the patients' studies have no label, and a few patients none at all: a frame trains only where its patient
 * does, with a label or without, and with the label table at hand or not. */
static void held_out_without_label(void **state)
{
    enum { PATIENTS = 20, STRANGERS = 3 };
    world *w = *state;
    synthetic s;
    err e = {0};
    char path[FILE_PATH_MAX], text[4096] = "study_uid,label\n", held[PATIENTS][KEY_HEX];
    size_t n_held = 0;
    synthetic_open(&s);
    for (int p = 0; p < PATIENTS + STRANGERS; p++) {
        for (int study = 0; study < 2; study++) synthetic_image(&s, p, study, 0, 0, 2, 32, 32, p % 2);
        if (p < PATIENTS)
            snprintf(text + strlen(text), sizeof text - strlen(text), "1.2.%d.0,%s\n", p, p % 2 ? "square" : "plain");
    }
    synthetic_seal(&s);
    synthetic_write(&s, "labels.csv", text, path);
    vit *m = world_vit(w);
    ssl_options o = plain_options();
    for (int round = 0; round < 2; round++) { /* the table, and then split.csv alone */
        cohort c;
        ssl_data data;
        size_t trained = 0;
        ASSERT_OK(cohort_open(&c, s.catalogue, s.work, round ? NULL : path, &(split_options){0.2f, 0.2f, 1}, &e));
        for (size_t i = 0; i < c.n_cases; i++)
            if (c.cases[i].part != SPLIT_TRAIN) memcpy(held[n_held++], c.cases[i].patient_key, KEY_HEX);
        assert_int_equal(n_held, 8);
        ASSERT_OK(ssl_data_open(&data, m, &c, &o, &e));
        for (size_t i = 0; i < data.n; i++)
            for (size_t k = 0; k < n_held; k++) assert_string_not_equal(c.frames[data.frames[i]].patient_key, held[k]);
        trained = data.n;
        ssl_data_close(&data);
        assert_int_equal(trained, 4 * (PATIENTS + STRANGERS - n_held)); /* all the others' */
        cohort_close(&c);
    }
    vit_close(m);
    synthetic_close(&s);
}

/* Sides of the crops that nobody gave follow what the model will see. */
static void sizes(void **state)
{
    static const struct {
        int global, local, view;
        size_t want_global, want_local;
    } rows[] = {{0, 0, 224, 224, 96}, {0, 0, 112, 112, 48},  {0, 0, 64, 64, 32}, {64, 0, 224, 64, 32},
                {0, 16, 64, 64, 16},  {224, 0, 64, 224, 96}, {0, 0, 32, 32, 24}, {0, 0, 24, 24, 8}};
    world *w = *state;
    vit *m = world_vit(w);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        err e = {0};
        ssl_data s;
        ssl_options o = plain_options();
        o.global_size = rows[i].global;
        o.local_size = rows[i].local;
        o.view.size = rows[i].view;
        ASSERT_OK(ssl_data_open(&s, m, &w->c, &o, &e));
        print_message("%d %d of %d: %zu %zu\n", o.global_size, o.local_size, o.view.size, s.global_size, s.local_size);
        assert_int_equal(s.global_size, rows[i].want_global);
        assert_int_equal(s.local_size, rows[i].want_local);
        ssl_data_close(&s);
    }
    vit_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(squares_stay), cmocka_unit_test(oblong),
                                       cmocka_unit_test(sizes), cmocka_unit_test(epochs),
                                       cmocka_unit_test(held_out_without_label)};
    return cmocka_run_group_tests(tests, world_make, world_unmake);
}
