/* Mean and deviation of a cohort's training frames, against sums in this file; and how a model keeps them. */
#include "adapt/dataset_norm.h"
#include "tests/adapt/world.h"

static void of_training_frames(void **state)
{
    world *w = *state;
    err e = {0};
    window_choice window;
    float mean[3], std[3], again[3];
    double sum = 0, square = 0;
    size_t n = 0, others = 0;
    ASSERT_OK(window_parse("auto", &window, &e));
    for (size_t i = 0; i < w->c.n_frames; i++) {
        const frame_info *f = &w->c.frames[i];
        const uint16_t *pixels = cohort_pixels(&w->c, i);
        others += w->c.part[i] != SPLIT_TRAIN;
        if (w->c.part[i] != SPLIT_TRAIN) continue;
        for (int k = 0; k < f->rows * f->columns; k++) {
            double v = (double)window_value(&f->window, pixels[k]);
            sum += v;
            square += v * v;
            n++;
        }
    }
    assert_true(others > 0);
    sum /= (double)n;
    ASSERT_OK(dataset_norm(&w->c, &window, 32, mean, std, &e)); /* as they are stored: nothing is resampled */
    print_message("%g, %g\n", (double)mean[0], (double)std[0]);
    for (int k = 0; k < 3; k++) {
        assert_true(fabs(mean[k] - sum) < 1e-4);
        assert_true(fabs(std[k] - sqrt(square / (double)n - sum * sum)) < 1e-4);
    }
    ASSERT_OK(dataset_norm(&w->c, &window, 16, again, std, &e)); /* smaller: the mean stays, the noise is averaged */
    assert_true(fabs(again[0] - mean[0]) < 2e-3 && std[0] > 1.0f / 255);

    cohort none = w->c;
    split_part *part = malloc(w->c.n_frames * sizeof *part);
    for (size_t i = 0; i < w->c.n_frames; i++) part[i] = SPLIT_TEST;
    none.part = part;
    assert_int_equal(dataset_norm(&none, &window, 32, mean, std, &e), ERR_EMPTY);
    free(part);
}

static void model_keeps_them(void **state)
{
    world *w = *state;
    err e = {0};
    char text[VIT_NORMALISATION_TEXT], other[VIT_NORMALISATION_TEXT];
    vit *m = world_vit(w), *same;
    ASSERT_OK(vit_normalise(m, "0.1,0.25,0.3/0.5,0.125,1e-2", &e));
    assert_true(vit_get_config(m)->mean[1] == 0.25f && vit_get_config(m)->std[1] == 0.125f);
    vit_normalisation_text(m, text);
    vit_source source = {.seed = 5, .normalisation = text};
    ASSERT_OK(vit_named_config(WORLD_BACKBONE, &source.random, &e));
    ASSERT_OK(vit_open(&same, &w->d, &source, &e));
    vit_normalisation_text(same, other);
    assert_string_equal(text, other);
    assert_string_equal(vit_hash(m), vit_hash(same)); /* the backbone is the same */
    static const char *const bad[] = {
        "", "0.1", "1,2,3", "1,2,3/1,2", "1,2,3/1,2,0", "1,2,3/1,2,-3", "1,2,nan/1,2,3", "1,2,3/1,2,3,4", "imagenet"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        e = (err){0};
        if (vit_normalise(m, bad[i], &e) != ERR_USAGE) fail_msg("'%s' is taken", bad[i]);
    }
    vit_normalisation_text(m, other);
    assert_string_equal(text, other);
    vit_close(same);
    vit_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(of_training_frames), cmocka_unit_test(model_keeps_them)};
    return cmocka_run_group_tests(tests, world_make, world_unmake);
}
