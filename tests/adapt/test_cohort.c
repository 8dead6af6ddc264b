/* test_cohort.c: frames whose pixels are not what was stored, or are not there, are given back to prepare: theirs and
 * no others. */
#include "adapt/cohort.h"

#include "base/progress.h"
#include "tests/adapt/synthetic.h"

enum { PATIENTS = 5, FRAMES = 3, BYTES = 24 * 20 * 2 };

static int set_up(void **state)
{
    synthetic *s = calloc(1, sizeof *s);
    progress_quiet(1);
    synthetic_open(s);
    for (int p = 0; p < PATIENTS; p++) synthetic_image(s, p, 0, 0, 0, FRAMES, 24, 20, false);
    synthetic_seal(s);
    *state = s;
    return 0;
}

static int tear_down(void **state)
{
    synthetic_close(*state);
    free(*state);
    return 0;
}

static err_code open_and_check(synthetic *s, err *e)
{
    cohort c;
    split_options o = {0, 0, 0};
    TRY(cohort_open(&c, s->catalogue, s->work, NULL, &o, e));
    err_code rc = cohort_check(&c, s->catalogue, 2, e);
    cohort_close(&c);
    return rc;
}

/* Instances that prepare would take up. */
static size_t pending(synthetic *s)
{
    pending_instance *p;
    size_t n;
    decode_effort any = {1, 1};
    err e = {0};
    ASSERT_OK(catalogue_pending(s->catalogue, &any, &p, &n, &e));
    catalogue_pending_free(p, n);
    return n;
}

static void shard(const synthetic *s, int number, char path[FILE_PATH_MAX])
{
    err e = {0};
    ASSERT_OK(file_path(path, &e, "%s/frames/%06d.safetensors", s->work, number));
}

/* Flips a bit of the byte `back` before the end of the shard (one an instance; frames follow each other). */
static void flip(const synthetic *s, int number, long back)
{
    char path[FILE_PATH_MAX];
    shard(s, number, path);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, -back, SEEK_END), 0);
    int byte = fgetc(f);
    assert_int_equal(fseek(f, -back, SEEK_END), 0);
    fputc(byte ^ 4, f);
    fclose(f);
}

static void test_damage(void **state)
{
    synthetic *s = *state;
    char path[FILE_PATH_MAX];
    err e = {0};
    ASSERT_OK(open_and_check(s, &e));
    assert_int_equal(pending(s), 0);

    flip(s, 1, 1);         /* last byte of the last frame */
    flip(s, 3, 2 * BYTES); /* first byte of the second frame */
    flip(s, 3, 1);
    assert_int_equal(open_and_check(s, &e), ERR_DAMAGED);
    assert_non_null(strstr(e.msg, "3 stored frames"));
    assert_int_equal(pending(s), 2);
    e = (err){0};
    ASSERT_OK(open_and_check(s, &e)); /* the rest is good */

    shard(s, 0, path); /* cut off, and gone */
    assert_int_equal(truncate(path, 2 * BYTES), 0);
    shard(s, 2, path);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(open_and_check(s, &e), ERR_DAMAGED);
    assert_int_equal(pending(s), 4);
    e = (err){0};
    ASSERT_OK(open_and_check(s, &e));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(test_damage, set_up, tear_down)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
