/* The split: by patient, stratified, the same for the same seed whatever the pseudonyms, and frozen once written. */
#include "adapt/split.h"
#include "tests/adapt/synthetic.h"

#include "base/csv.h"

enum { PATIENTS = 60 };

static void make(synthetic *s, int patients)
{
    synthetic_open(s);
    for (int p = 0; p < patients; p++)
        for (int study = 0; study < 2; study++) synthetic_image(s, p, study, 0, 0, 1, 2, 2, false);
    synthetic_seal(s);
}

/* Two studies of every patient: class a, b or c; patient p has class p % 6 < 3 ? a : p % 6 < 5 ? b : c. */
static void label_table(const synthetic *s, int first, int end, char path[FILE_PATH_MAX])
{
    char text[16384] = "study_uid,label\n";
    for (int p = first; p < end; p++)
        for (int study = 0; study < 2; study++)
            snprintf(text + strlen(text), sizeof text - strlen(text), "1.2.%d.%d,%s\n", p, study,
                     p % 6 < 3   ? "a"
                     : p % 6 < 5 ? "b"
                                 : "c");
    synthetic_write(s, "labels.csv", text, path);
}

static split_part part_of(const synthetic *s, const cohort *c, int p)
{
    char id[16], key[KEY_HEX];
    split_part part = SPLIT_NONE;
    size_t frames = 0;
    snprintf(id, sizeof id, "P%d", p);
    synthetic_key(s, ID_PATIENT, id, key);
    for (size_t i = 0; i < c->n_frames; i++)
        if (!strcmp(c->frames[i].patient_key, key)) {
            if (frames++) assert_int_equal(c->part[i], part);
            part = c->part[i];
        }
    assert_int_equal(frames, 2);
    for (size_t i = 0; i < c->n_cases; i++)
        if (!strcmp(c->cases[i].patient_key, key)) assert_int_equal(c->cases[i].part, part);
    return part;
}

static void open_cohort(const synthetic *s, cohort *c, const char *labels, uint64_t seed)
{
    err e = {0};
    ASSERT_OK(cohort_open(c, s->catalogue, s->work, labels, &(split_options){0.15f, 0.2f, seed}, &e));
}

static void test_stratified(void **state)
{
    (void)state;
    synthetic s[2];
    cohort c;
    char path[FILE_PATH_MAX], file[FILE_PATH_MAX];
    split_part part[2][PATIENTS];
    for (int w = 0; w < 2; w++) { /* two work directories, two keys */
        make(&s[w], PATIENTS);
        label_table(&s[w], 0, PATIENTS, path);
        open_cohort(&s[w], &c, path, 1);
        size_t count[3][3] = {{0}};
        for (int p = 0; p < PATIENTS; p++) {
            part[w][p] = part_of(&s[w], &c, p);
            count[p % 6 < 3 ? 0 : p % 6 < 5 ? 1 : 2][part[w][p]]++;
        }
        static const size_t want[3][3] = {{19, 5, 6}, {13, 3, 4}, {6, 2, 2}}; /* of 30, 20, 10 */
        assert_memory_equal(count, want, sizeof want);
        cohort_close(&c);
    }
    assert_memory_equal(part[0], part[1], sizeof part[0]);
    /* another seed: another split */
    snprintf(file, sizeof file, "%s/split.csv", s[1].work);
    unlink(file);
    open_cohort(&s[1], &c, path, 2);
    size_t moved = 0;
    for (int p = 0; p < PATIENTS; p++) moved += part_of(&s[1], &c, p) != part[1][p];
    assert_true(moved > 5);
    cohort_close(&c);
    synthetic_close(&s[0]);
    synthetic_close(&s[1]);
}

static void test_frozen(void **state)
{
    (void)state;
    synthetic s;
    cohort c;
    err e = {0};
    char path[FILE_PATH_MAX], split[FILE_PATH_MAX], hash_then[HASH_HEX], data_then[HASH_HEX], *text;
    split_part then[PATIENTS];
    make(&s, PATIENTS);
    label_table(&s, 0, 30, path);
    open_cohort(&s, &c, path, 1);
    for (int p = 0; p < PATIENTS; p++) {
        then[p] = part_of(&s, &c, p);
        if (p >= 30) assert_int_equal(then[p], SPLIT_TRAIN); /* not labelled yet */
    }
    memcpy(hash_then, c.split_hash, HASH_HEX);
    memcpy(data_then, c.data_hash, HASH_HEX);
    cohort_close(&c);

    open_cohort(&s, &c, path, 99); /* the file decides, not the seed */
    assert_string_equal(c.split_hash, hash_then);
    assert_string_equal(c.data_hash, data_then);
    for (int p = 0; p < PATIENTS; p++) assert_int_equal(part_of(&s, &c, p), then[p]);
    cohort_close(&c);

    label_table(&s, 0, PATIENTS, path); /* new patients are added, nobody moves */
    open_cohort(&s, &c, path, 1);
    size_t held_out = 0;
    for (int p = 0; p < PATIENTS; p++) {
        split_part now = part_of(&s, &c, p);
        if (p < 30)
            assert_int_equal(now, then[p]);
        else
            held_out += now != SPLIT_TRAIN;
    }
    assert_true(held_out > 6);
    assert_string_not_equal(c.split_hash, hash_then);
    assert_string_not_equal(c.data_hash, data_then);
    memcpy(hash_then, c.split_hash, HASH_HEX);
    cohort_close(&c);

    open_cohort(&s, &c, NULL, 1); /* the test patients stay out of the unlabelled stage */
    size_t test = 0;
    for (size_t i = 0; i < c.n_frames; i++) test += c.part[i] == SPLIT_TEST;
    assert_int_equal(test, 2 * 12);
    assert_string_equal(c.split_hash, hash_then);
    cohort_close(&c);

    snprintf(split, sizeof split, "%s/split.csv", s.work);
    ASSERT_OK(file_read(split, 1 << 20, &text, NULL, &e));
    assert_null(strstr(text, "P1"));
    char key[KEY_HEX];
    synthetic_key(&s, ID_PATIENT, "P1", key);
    assert_non_null(strstr(text, key));
    free(text);
    synthetic_close(&s);
}

static void test_few(void **state)
{
    (void)state;
    static const struct {
        int patients;
        size_t part[3]; /* all of class a: 3 patients a class are needed to hold one out */
    } table[] = {{1, {1, 0, 0}}, {2, {2, 0, 0}}, {3, {1, 1, 1}}, {4, {2, 1, 1}}, {5, {3, 1, 1}}};
    for (size_t t = 0; t < sizeof table / sizeof *table; t++) {
        synthetic s;
        cohort c;
        char path[FILE_PATH_MAX], text[512] = "patient_id,label\n";
        make(&s, table[t].patients + 1);
        for (int p = 0; p <= table[t].patients; p++)
            snprintf(text + strlen(text), sizeof text - strlen(text), "P%d,%s\n", p, p < table[t].patients ? "a" : "b");
        synthetic_write(&s, "labels.csv", text, path);
        open_cohort(&s, &c, path, 1);
        size_t part[3] = {0};
        for (int p = 0; p < table[t].patients; p++) part[part_of(&s, &c, p)]++;
        assert_memory_equal(part, table[t].part, sizeof part);
        assert_int_equal(part_of(&s, &c, table[t].patients), SPLIT_TRAIN);
        cohort_close(&c);
        synthetic_close(&s);
    }
}

/* Shares that leave nobody to train are refused or cut. */
static void test_shares(void **state)
{
    (void)state;
    synthetic s;
    cohort c;
    char path[FILE_PATH_MAX];
    make(&s, 6);
    label_table(&s, 0, 6, path);
    static const struct {
        float validation, test;
        err_code code;
    } table[] = {{0.5f, 0.5f, ERR_USAGE}, {-0.1f, 0.2f, ERR_USAGE}, {NAN, 0.2f, ERR_USAGE}, {0.45f, 0.5f, ERR_OK}};
    for (size_t t = 0; t < sizeof table / sizeof *table; t++) {
        err e = {0};
        err_code rc =
            cohort_open(&c, s.catalogue, s.work, path, &(split_options){table[t].validation, table[t].test, 1}, &e);
        assert_int_equal(rc, table[t].code);
        if (rc) continue;
        size_t train[3] = {0};
        for (size_t i = 0; i < c.n_cases; i++) train[c.cases[i].label] += c.cases[i].part == SPLIT_TRAIN;
        assert_true(train[0] && train[1] && train[2]); /* someone trains in every class */
        cohort_close(&c);
    }
    synthetic_close(&s);
}

static void test_hostile(void **state)
{
    (void)state;
    synthetic s;
    cohort c;
    char path[FILE_PATH_MAX];
#define A "00000000000000000000000000000000"
    static const struct {
        const char *text;
        err_code code;
    } table[] = {
        {"patient_key,part\n" A ",train\n" A ",test\n", ERR_CONFLICT},
        {"patient_key,part\n" A ",train\n" A ",train\n", ERR_CONFLICT},
        {"patient_key,part\n" A ",tset\n", ERR_FORMAT},
        {"patient_key,part\n" A "\n", ERR_FORMAT},
        {"patient_key,part\n" A "0,test\n", ERR_FORMAT},
        {"patient_key,part\nP1,test\n", ERR_FORMAT},
        {"patient,part\n" A ",test\n", ERR_FORMAT},
        {"", ERR_EMPTY},
        {"patient_key,part\n" A ",test\n", ERR_OK}, /* someone who is not here */
    };
    make(&s, 3);
    for (size_t t = 0; t < sizeof table / sizeof *table; t++) {
        err e = {0};
        synthetic_write(&s, "split.csv", table[t].text, path);
        err_code rc = cohort_open(&c, s.catalogue, s.work, NULL, &(split_options){0.15f, 0.2f, 1}, &e);
        print_message("%zu: %s\n", t, e.msg);
        assert_int_equal(rc, table[t].code);
        if (!rc) cohort_close(&c);
    }
    synthetic_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stratified), cmocka_unit_test(test_frozen),
                                       cmocka_unit_test(test_few), cmocka_unit_test(test_shares),
                                       cmocka_unit_test(test_hostile)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
