/* Batches: targets as the losses want them, a function of (seed, step); mixup mixes pictures and losses by one share.
 */
#include "adapt/labelled_batch.h"
#include "adapt/task.h"
#include "tests/adapt/world.h"

enum { BATCH = 6, SIZE = 16, FLOATS = 3 * SIZE * SIZE };

static void make(world *w, finetune_job *j, finetune_options *o)
{
    finetune_defaults(o, METHOD_APLA);
    o->batch = BATCH;
    o->view.size = SIZE;
    o->seed = 3;
    *j = (finetune_job){
        .m = world_vit(w), .d = &w->d, .c = &w->c, .o = o, .dim = 32, .classes = 2, .outputs = 2, .balanced = true};
}

static float *filled(labelled_batch *s, uint64_t step)
{
    err e = {0};
    float *out = calloc(labelled_batch_floats(s), sizeof *out);
    ASSERT_OK(labelled_batch_fill(s, step, out, &e));
    return out;
}

static void test_targets(void **state)
{
    world *w = *state;
    err e = {0};
    finetune_job j;
    finetune_options o;
    labelled_batch s;
    float class_weight[] = {1, 0.5f, 1, 3};
    make(w, &j, &o);
    o.label_smoothing = 0.1f;
    j.class_weight = class_weight;
    ASSERT_OK(labelled_batch_init(&s, &j, &e));
    float *a = filled(&s, 7), *b = filled(&s, 8), *again = filled(&s, 7);
    assert_memory_equal(a, again, labelled_batch_floats(&s) * sizeof *a);
    assert_memory_not_equal(a, b, FLOATS * sizeof *a);
    labelled_batch_parts v = labelled_batch_view(&s, a);
    assert_true(fabsf(*v.scale - 1.0f / BATCH) < 1e-7f);
    int of[2] = {0};
    for (int i = 0; i < BATCH; i++) { /* balanced: by turns */
        int k = v.target[2 * i + 1] > v.target[2 * i];
        float weight = class_weight[2 * k + 1];
        of[k]++;
        assert_true(fabsf(v.target[2 * i + k] - 0.95f * weight) < 1e-6f);
        assert_true(fabsf(v.target[2 * i + 1 - k] - 0.05f * weight) < 1e-6f);
    }
    assert_true(of[0] == 3 && of[1] == 3);
    free(a), free(b), free(again);
    labelled_batch_fini(&s);
    vit_close(j.m);
}

/* A mixed picture is lambda of itself and the rest of one of its batch, and its target too; the pictures are as drawn.
 */
static void test_mixup(void **state)
{
    world *w = *state;
    err e = {0};
    finetune_job j;
    finetune_options o;
    labelled_batch plain, mixed;
    make(w, &j, &o);
    ASSERT_OK(labelled_batch_init(&plain, &j, &e));
    finetune_options with = o;
    finetune_job mixing = j;
    with.mixup = 1;
    mixing.o = &with;
    ASSERT_OK(labelled_batch_init(&mixed, &mixing, &e));
    ASSERT_OK(labelled_batch_alloc(&mixed, &e));
    double shares[8];
    int moved = 0;
    for (uint64_t step = 0; step < 8; step++) {
        float *a = filled(&plain, step), *b = filled(&mixed, step);
        labelled_batch_parts p = labelled_batch_view(&plain, a), m = labelled_batch_view(&mixed, b);
        rng r = rng_at(o.seed, RNG_MIX, step, 0);
        double lambda = shares[step] = rng_beta(&r, 1);
        unsigned partners = 0;
        assert_null(p.mix_of);
        assert_memory_equal(m.pixels, p.pixels, BATCH * FLOATS * sizeof *p.pixels);
        for (int i = 0; i < BATCH; i++) {
            int partner = m.mix_of[2 * i + 1];
            assert_int_equal(m.mix_of[2 * i], i);
            assert_in_range(partner, 0, BATCH - 1);
            partners |= 1U << partner;
            moved += partner != i;
            assert_true(fabs(m.mix_share[2 * i] - lambda) < 1e-6 && fabs(m.mix_share[2 * i + 1] - 1 + lambda) < 1e-6);
            for (int k = 0; k < 2; k++)
                assert_true(fabs(m.target[2 * i + k] - lambda * p.target[2 * i + k] -
                                 (1 - lambda) * p.target[2 * partner + k]) < 1e-6);
        }
        assert_int_equal(partners, (1U << BATCH) - 1); /* each once */
        labelled_batch_images(&mixed, &m);
        const float *made = (const float *)mixed.pixels;
        for (int i = 0; i < BATCH * FLOATS; i++) {
            int of = m.mix_of[2 * (i / FLOATS) + 1] * FLOATS + i % FLOATS;
            assert_true(fabs(made[i] - lambda * p.pixels[i] - (1 - lambda) * p.pixels[of]) < 1e-5);
        }
        free(a), free(b);
    }
    assert_true(moved > 24);
    for (int i = 1; i < 8; i++) assert_true(shares[i] != shares[0]);
    labelled_batch_fini(&plain);
    labelled_batch_fini(&mixed);
    vit_close(j.m);
}

/* Of sets: what is not known has no weight, and mixing with what is known leaves that part of the loss. */
static void test_sets(void **state)
{
    world *w = *state;
    err e = {0};
    finetune_job j;
    finetune_options o;
    labelled_batch s;
    cohort c;
    char path[FILE_PATH_MAX], text[2048] = "study_uid,a,b\n";
    for (int p = 0; p < WORLD_PATIENTS; p++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "1.2.%d.0,%d,%s\n", p, p % 2, p % 3 ? "" : "1");
    synthetic_write(&w->s, "sets.csv", text, path);
    make(w, &j, &o);
    ASSERT_OK(cohort_open_by(&c, w->s.catalogue, w->s.work, path, &(label_rules){TASK_MULTILABEL, "a,b", NULL},
                             &(split_options){0.2f, 0.2f, 1}, &e));
    j.c = &c;
    j.balanced = false;
    for (int mixup = 0; mixup < 2; mixup++) {
        o.mixup = (float)mixup;
        ASSERT_OK(labelled_batch_init(&s, &j, &e));
        size_t open = 0;
        for (uint64_t step = 0; step < 6; step++) {
            float *a = filled(&s, step);
            labelled_batch_parts v = labelled_batch_view(&s, a);
            double known = 0;
            for (int i = 0; i < BATCH; i++) {
                known += 1 + (v.weight[2 * i + 1] > 0);
                open += !(v.weight[2 * i + 1] > 0);
                assert_true(fabsf(v.weight[2 * i] - 1) < 1e-6f && v.weight[2 * i + 1] <= 1 + 1e-6f);
                if (v.weight[2 * i + 1] > 0) assert_true(fabsf(v.target[2 * i + 1] - 1) < 1e-6f);
            }
            assert_true(fabs(*v.scale - 1 / known) < 1e-6);
            free(a);
        }
        assert_true(open > 5 && open < 36);
        labelled_batch_fini(&s);
    }
    cohort_close(&c);
    vit_close(j.m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_targets), cmocka_unit_test(test_mixup),
                                       cmocka_unit_test(test_sets)};
    return cmocka_run_group_tests(tests, world_make, world_unmake);
}
