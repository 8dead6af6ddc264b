/* What outputs mean: probabilities against their definitions, targets row by row, balanced weights; and draws. */
#include "adapt/draw.h"
#include "adapt/task.h"
#include "tests/adapt/synthetic.h"

static void test_probabilities(void **state)
{
    (void)state;
    double z[] = {1, -2, 0.5}, p[4], q[3] = {1 / (1 + exp(-1.0)), 1 / (1 + exp(2.0)), 1 / (1 + exp(-0.5))};
    task_probabilities(TASK_MULTILABEL, 3, (double[]){1, -2, 0.5}, 1, p);
    for (int k = 0; k < 3; k++) assert_true(fabs(p[k] - q[k]) < 1e-12);
    task_probabilities(TASK_MULTICLASS, 3, (double[]){1, -2, 0.5}, 1, p);
    for (int k = 0; k < 3; k++) assert_true(fabs(p[k] - exp(z[k]) / (exp(1.0) + exp(-2.0) + exp(0.5))) < 1e-12);
    assert_int_equal(task_outputs(TASK_ORDINAL, 4), 3);
    task_probabilities(TASK_ORDINAL, 4, z, 1, p); /* P(grade > k) is the product of the first k + 1 */
    double above[] = {1, q[0], q[0] * q[1], q[0] * q[1] * q[2], 0};
    for (int k = 0; k < 4; k++) assert_true(fabs(p[k] - (above[k] - above[k + 1])) < 1e-12);
    double far[] = {800, -800, 3, 0, 0, 0}, two[8]; /* no overflow, and rows are rows */
    task_probabilities(TASK_ORDINAL, 4, far, 2, two);
    assert_true(fabs(two[1] - 1) < 1e-12 && two[0] < 1e-12 && two[3] < 1e-12);
    assert_true(fabs(two[4] - 0.5) < 1e-12 && fabs(two[7] - 0.125) < 1e-12);
}

static void test_targets(void **state)
{
    (void)state;
    static const struct {
        label_task task;
        int label;
        signed char marks[3];
        float target[3], weight[3];
    } table[] = {
        {TASK_MULTICLASS, 1, {0}, {0, 1, 0}, {4, 4, 4}}, {TASK_MULTILABEL, -1, {1, 0, -1}, {1, 0, 0}, {2, 3, 0}},
        {TASK_ORDINAL, 0, {0}, {0, 0}, {2, 0}},          {TASK_ORDINAL, 1, {0}, {1, 0}, {4, 4}},
        {TASK_ORDINAL, 2, {0}, {1, 1}, {6, 6}},
    };
    static const float class_weight[] = {1, 2, 3, 4, 5, 6};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        signed char marks[3];
        memcpy(marks, table[i].marks, sizeof marks);
        labelled_case k = {.label = table[i].label, .marks = table[i].task == TASK_MULTILABEL ? marks : NULL};
        float target[3] = {0}, weight[3] = {0}, plain[3] = {0};
        task_targets(table[i].task, 3, &k, class_weight, target, weight);
        task_targets(table[i].task, 3, &k, NULL, target, plain);
        for (int j = 0; j < task_outputs(table[i].task, 3); j++)
            if (target[j] != table[i].target[j] || weight[j] != table[i].weight[j] || plain[j] != (weight[j] > 0))
                fail_msg("row %zu, output %d: %g, %g", i, j, (double)target[j], (double)weight[j]);
    }
}

enum { CASES = 20 };

/* 15 cases of stratum 0, 4 of 1, 1 of 2 that is not for training. */
static void make(cohort *c, labelled_case *k)
{
    *c = (cohort){.cases = k, .n_cases = CASES, .n_labels = 3, .n_strata = 3};
    for (int i = 0; i < CASES; i++) {
        k[i] = (labelled_case){.label = i < 15 ? 0 : i < 19 ? 1 : 2, .part = i < 19 ? SPLIT_TRAIN : SPLIT_TEST};
        k[i].stratum = k[i].label;
    }
}

static void test_weights(void **state)
{
    (void)state;
    cohort c;
    labelled_case k[CASES];
    float w[6];
    make(&c, k);
    task_weights(&c, w);
    assert_true(fabsf(w[1] - 19.0f / 45) < 1e-6f && fabsf(w[3] - 19.0f / 12) < 1e-6f && w[5] == 1);
    signed char marks[CASES][3];
    for (int i = 0; i < CASES; i++) {
        marks[i][0] = i < 5;                                      /* 5 with, 14 without */
        marks[i][1] = (signed char)(i == 0 ? 1 : i < 9 ? 0 : -1); /* 1 with, 8 without */
        marks[i][2] = i == 19;                                    /* nobody in training */
        k[i].marks = marks[i];
    }
    c.task = TASK_MULTILABEL;
    task_weights(&c, w);
    static const float want[] = {19.0f / 28, 19.0f / 10, 9.0f / 16, 9.0f / 2, 0.5f, 1};
    for (int i = 0; i < 6; i++)
        if (!(fabsf(w[i] - want[i]) < 1e-5f)) fail_msg("weight %d: %g", i, (double)w[i]);
    for (int i = 1; i < CASES; i++) marks[i][0] = 0;
    for (int i = 0; i < CASES; i++) marks[i][1] = 1;
    task_weights(&c, w);
    assert_true(w[1] == 9.5f && w[3] == 0.5f);
}

static void test_text(void **state)
{
    (void)state;
    char names[3][65] = {"a", "b b", "c"};
    signed char marks[] = {1, 0, -1};
    cohort c = {.labels = names, .n_labels = 3, .task = TASK_MULTILABEL};
    labelled_case k = {.marks = marks}, none = {.marks = (signed char[]){0, 0, 0}}, class = {.label = 1};
    static const double p[] = {0.5, 0.9, 0.1};
    char *all[] = {task_text(&c, &k), task_text(&c, &none), task_text(&c, &class), task_text_of(&c, p), NULL};
    c.task = TASK_MULTICLASS;
    all[4] = task_text_of(&c, p);
    static const char *const want[] = {"a;?c", "", "b b", "a;b b", "b b"};
    for (int i = 0; i < 5; i++) {
        assert_string_equal(all[i], want[i]);
        free(all[i]);
    }
}

/* Balanced: strata take turns. Natural: every case once a round. Either way by (seed, sample) alone. */
static void test_draws(void **state)
{
    (void)state;
    cohort c;
    labelled_case k[CASES];
    err e = {0};
    make(&c, k);
    for (int balanced = 0; balanced < 2; balanced++) {
        draw w, again, other;
        ASSERT_OK(draw_init(&w, &c, balanced, 5, &e));
        ASSERT_OK(draw_init(&again, &c, balanced, 5, &e));
        ASSERT_OK(draw_init(&other, &c, balanced, 6, &e));
        assert_int_equal(w.cases, 19);
        size_t of[3] = {0}, drawn[CASES] = {0}, differ = 0;
        uint32_t seen[120];
        for (uint64_t i = 0; i < 120; i++) {
            seen[i] = draw_case(&w, i);
            of[k[seen[i]].stratum]++;
            if (i < 19) drawn[seen[i]]++;
            differ += seen[i] != draw_case(&other, i);
        }
        for (uint64_t i = 120; i-- > 77;) assert_int_equal(draw_case(&again, i), seen[i]); /* from anywhere */
        assert_true(differ > 30 && of[2] == 0);
        if (balanced) assert_true(of[0] == 60 && of[1] == 60);
        for (int i = 0; i < 19 && !balanced; i++) assert_int_equal(drawn[i], 1);
        draw_fini(&w), draw_fini(&again), draw_fini(&other);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_probabilities), cmocka_unit_test(test_targets),
                                       cmocka_unit_test(test_weights), cmocka_unit_test(test_text),
                                       cmocka_unit_test(test_draws)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
