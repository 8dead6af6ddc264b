/* The label table: which rows become which cases, which are set aside, and what the messages say (and do not say). */
#include "adapt/cohort.h"
#include "adapt/labels.h"
#include "tests/adapt/synthetic.h"

/* P0: one study, two series of two images; P1: two studies, one image each; P2: one image with three frames. */
static int make(void **state)
{
    synthetic *s = malloc(sizeof *s);
    synthetic_open(s);
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < 2; i++) synthetic_image(s, 0, 0, k, i, 1, 4, 4, false);
    synthetic_image(s, 1, 0, 0, 0, 1, 4, 4, false);
    synthetic_image(s, 1, 1, 0, 0, 1, 4, 4, false);
    synthetic_image(s, 2, 0, 0, 0, 3, 4, 4, false);
    synthetic_seal(s);
    *state = s;
    return 0;
}

static int unmake(void **state)
{
    synthetic_close(*state);
    free(*state);
    return 0;
}

typedef struct {
    const char *name, *text;
    size_t cases, frames[4];
    int label[4];
    const char *labels; /* joined by | */
    size_t rows, absent, conflicting, empty;
} good_table;

static const good_table good[] = {
    {"patients", "patient_id,label\nP0,b\nP1,a\nP2,b\n", 3, {4, 2, 3}, {1, 0, 1}, "a|b", 3, 0, 0, 0},
    {"studies", "study_uid,label\n1.2.1.1,a\n1.2.1.0,b\n", 2, {1, 1}, {0, 1}, "a|b", 2, 0, 0, 0},
    {"paths and CRLF",
     "\xEF\xBB\xBFpath,label\r\n/x/0/0/0/1.dcm,a\r\n\"2/0/0/0.dcm\",b\r\n",
     2,
     {1, 3},
     {0, 1},
     "a|b",
     2,
     0,
     0,
     0},
    {"header in capitals, blanks, order",
     " Label , STUDY_UID\n b ,1.2.1.1 \na,1.2.1.0\n",
     2,
     {1, 1},
     {1, 0},
     "a|b",
     2,
     0,
     0,
     0},
    {"finest key given in each row",
     "patient_id,series_uid,label\nP0,1.2.0.0.1,a\nP2,,b\n",
     2,
     {2, 3},
     {0, 1},
     "a|b",
     2,
     0,
     0,
     0},
    {"the finer label wins",
     "patient_id,sop_uid,label\nP0,,a\nP0,1.2.0.0.1.0,b\n",
     2,
     {3, 1},
     {0, 1},
     "a|b",
     2,
     0,
     0,
     0},
    {"no such image", "patient_id,label\nP0,a\nP1,b\nP7,b\n", 2, {4, 2}, {0, 1}, "a|b", 3, 1, 0, 0},
    {"keys of two patients",
     "patient_id,sop_uid,label\nP0,1.2.0.0.0.0,a\nP1,1.2.0.0.0.1,a\nP2,,b\n",
     2,
     {1, 3},
     {0, 1},
     "a|b",
     3,
     0,
     1,
     0},
    {"keys of two images",
     "sop_uid,path,label\n1.2.0.0.0.0,/x/0/0/0/1.dcm,a\n1.2.1.0.0.0,,a\n1.2.2.0.0.0,,b\n",
     2,
     {1, 3},
     {0, 1},
     "a|b",
     3,
     0,
     1,
     0},
    {"a coarser key nobody knows",
     "patient_id,sop_uid,label\nXY,1.2.0.0.0.0,a\nP1,,b\n",
     2,
     {1, 2},
     {0, 1},
     "a|b",
     2,
     0,
     0,
     0},
    {"twice the same", "patient_id,label\nP0,a\nP1,b\nP0,a\n", 2, {4, 2}, {0, 1}, "a|b", 3, 0, 0, 0},
    {"twice different", "patient_id,label\nP0,a\nP1,b\nP0,b\nP2,a\n", 2, {2, 3}, {1, 0}, "a|b", 4, 0, 2, 0},
    {"empty cells, short rows", "patient_id,label\nP0,\nP1,b\n,a\nP2,a\nP0\n", 2, {2, 3}, {1, 0}, "a|b", 5, 0, 0, 3},
    {"numbers by value", "patient_id,label\nP0,10\nP1,9\nP2,10\n", 3, {4, 2, 3}, {1, 0, 1}, "9|10", 3, 0, 0, 0},
    {"other columns are ignored", "age,patient_id,label\n70,P0,a\n71,P1,b\n", 2, {4, 2}, {0, 1}, "a|b", 2, 0, 0, 0},
};

static void test_good(void **state)
{
    synthetic *s = *state;
    for (size_t t = 0; t < sizeof good / sizeof *good; t++) {
        const good_table *g = &good[t];
        char path[FILE_PATH_MAX], labels[256] = "";
        cohort c;
        err e = {0};
        synthetic_write(s, "labels.csv", g->text, path);
        err_code rc = cohort_open(&c, s->catalogue, s->work, path, &(split_options){0.15f, 0.2f, 1}, &e);
        if (rc) fail_msg("%s: %s", g->name, e.msg);
        print_message("%s\n", g->name);
        assert_int_equal(c.n_frames, 9);
        assert_int_equal(c.n_cases, g->cases);
        for (size_t i = 0; i < g->cases; i++) {
            assert_int_equal(c.cases[i].n_frames, g->frames[i]);
            assert_int_equal(c.cases[i].label, g->label[i]);
            for (size_t j = 0; j < c.cases[i].n_frames; j++)
                assert_string_equal(c.frames[c.cases[i].frames[j]].patient_key, c.cases[i].patient_key);
        }
        for (int k = 0; k < c.n_labels; k++)
            snprintf(labels + strlen(labels), sizeof labels - strlen(labels), "%s%s", k ? "|" : "", c.labels[k]);
        assert_string_equal(labels, g->labels);
        assert_int_equal(c.rows, g->rows);
        assert_int_equal(c.rows_without_image, g->absent);
        assert_int_equal(c.rows_conflicting, g->conflicting);
        assert_int_equal(c.rows_empty, g->empty);
        cohort_close(&c);
    }
}

static void test_bad(void **state)
{
    synthetic *s = *state;
    static const struct {
        const char *name, *text;
        err_code code;
        const char *says;
    } bad[] = {
        {"label misspelt", "patient_id,labels\nP0,a\n", ERR_USAGE, "did you mean it by column 2"},
        {"key misspelt", "PatientID,label\nP0,a\n", ERR_USAGE, "did you mean 'patient_id'"},
        {"key misspelt otherwise", "pateint_id,label\nP0,a\n", ERR_USAGE, "did you mean 'patient_id'"},
        {"no label", "patient_id,diagnosis\nP0,a\n", ERR_USAGE, "no column 'label'"},
        {"no key", "name,label\nSECRET^NAME,a\n", ERR_USAGE, "no column says which image"},
        {"no header", "P0,a\nP1,b\n", ERR_USAGE, "no column 'label'"},
        {"semicolons", "patient_id;label\nP0;a\n", ERR_USAGE, "separated by commas"},
        {"two label columns", "patient_id,label,Label\nP0,a,b\n", ERR_USAGE, "two columns are called 'label'"},
        {"nothing matches", "patient_id,label\nSECRET,a\nX,b\n", ERR_EMPTY, "none of its 2 rows"},
        {"only conflicts", "patient_id,label\nP0,a\nP0,b\n", ERR_EMPTY, "2 conflict"},
        {"one label", "patient_id,label\nP0,a\nP1,a\n", ERR_USAGE, "two are needed"},
        {"empty file", "", ERR_EMPTY, "no header row"},
        {"header only", "patient_id,label\n", ERR_EMPTY, "none of its 0 rows"},
        {"not UTF-8", "patient_id,label\nP0,a\xff\n", ERR_USAGE, "row 2 is not plain UTF-8"},
        {"backslash", "patient_id,label\nP0,a\\b\n", ERR_USAGE, "row 2 is not plain"},
        {"overlong UTF-8", "patient_id,label\nP0,a\xc0\x80\n", ERR_USAGE, "row 2 is not plain"},
        {"long label", "patient_id,label\nP0,0123456789012345678901234567890123456789012345678901234567890123456\n",
         ERR_USAGE, "more than 64"},
    };
    for (size_t t = 0; t < sizeof bad / sizeof *bad; t++) {
        char path[FILE_PATH_MAX];
        cohort c;
        err e = {0};
        synthetic_write(s, "labels.csv", bad[t].text, path);
        err_code rc = cohort_open(&c, s->catalogue, s->work, path, &(split_options){0.15f, 0.2f, 1}, &e);
        print_message("%s: %s\n", bad[t].name, e.msg);
        assert_int_equal(rc, bad[t].code);
        assert_int_equal(e.code, rc);
        assert_non_null(strstr(e.msg, bad[t].says));
        assert_null(strstr(e.msg, "SECRET"));
        assert_null(c.frames);
    }
    cohort c;
    err e = {0};
    assert_int_equal(cohort_open(&c, s->catalogue, s->work, "/nowhere/labels.csv", &(split_options){0}, &e),
                     ERR_NOTFOUND);
    assert_null(strstr(e.msg, "/nowhere"));
}

/* Without labels everything is for training; a study of two patients is on no side. */
static void test_unlabelled(void **state)
{
    (void)state;
    synthetic s;
    cohort c;
    err e = {0};
    char path[FILE_PATH_MAX];
    synthetic_open(&s);
    assert_int_equal(cohort_open(&c, s.catalogue, s.work, NULL, &(split_options){0.15f, 0.2f, 1}, &e), ERR_EMPTY);
    synthetic_image(&s, 0, 0, 0, 0, 1, 4, 4, false);
    synthetic_image(&s, 1, 0, 0, 0, 1, 4, 4, false);
    image_header h = {.format = IMAGE_DICOM, .rows = 4, .columns = 4, .frames = 1, .samples = 1};
    snprintf(h.patient_id, sizeof h.patient_id, "P9"); /* in P0's study */
    snprintf(h.study_uid, sizeof h.study_uid, "1.2.0.0");
    snprintf(h.series_uid, sizeof h.series_uid, "1.2.0.0.9");
    snprintf(h.sop_uid, sizeof h.sop_uid, "1.2.0.0.9.9");
    e = (err){0};
    ASSERT_OK(catalogue_add(s.catalogue, "/x/odd.dcm", 1, 1, &h, NULL, NULL, &e));
    char key[KEY_HEX];
    synthetic_key(&s, ID_SOP, "1.2.0.0.9.9", key);
    frame_info f = {.frame = 1, .rows = 4, .columns = 4, .channels = 1, .type = PIXEL_U16, .slope = 1};
    uint16_t pixels[16] = {0};
    memcpy(f.instance_key, key, KEY_HEX);
    ASSERT_OK(frame_store_put(s.store, &f, pixels, &e));
    ASSERT_OK(frame_store_seal(s.store, &f, 1, &e));
    ASSERT_OK(catalogue_store(s.catalogue, key, &f, 1, &e));
    synthetic_seal(&s);
    ASSERT_OK(cohort_open(&c, s.catalogue, s.work, NULL, &(split_options){0.15f, 0.2f, 1}, &e));
    assert_int_equal(c.n_frames, 3);
    assert_int_equal(c.n_cases, 0);
    assert_string_equal(c.split_hash, "");
    for (size_t i = 0; i < c.n_frames; i++) {
        assert_int_equal(c.part[i], SPLIT_TRAIN);
        assert_non_null(cohort_pixels(&c, i));
    }
    cohort_close(&c);
    synthetic_write(&s, "labels.csv", "study_uid,patient_id,label\n1.2.0.0,,a\n1.2.1.0,,b\n,P9,c\n", path);
    ASSERT_OK(cohort_open(&c, s.catalogue, s.work, path, &(split_options){0.15f, 0.2f, 1}, &e));
    assert_int_equal(c.rows_conflicting, 1);
    assert_int_equal(c.n_cases, 2);
    cohort_close(&c);
    synthetic_close(&s);
}

/* Sets and grades: what is read of them (one character a label: 1, 0, ? not known), and what is refused. */
static void test_tasks(void **state)
{
    static const struct {
        const char *name, *text;
        label_rules rules;
        const char *says; /* of the message; NULL: it is good */
        size_t cases;
        const char *labels, *marks[4];
        int label[4], stratum[4];
        size_t conflicting, empty;
    } table[] = {
        {"sets in a column",
         "patient_id,label\nP0, mass ;effusion\nP1,\nP2,effusion\n",
         {TASK_MULTILABEL, NULL, NULL},
         NULL,
         3,
         "effusion|mass",
         {"11", "00", "10"},
         {-1, -1, -1},
         {1, 2, 0},
         0,
         0},
        {"columns of their own",
         "patient_id,B,a,age\nP0,1,0,70\nP1,,1,\nP2,-1.0,,\nP2,,,\n",
         {TASK_MULTILABEL, "a,b", ""},
         NULL,
         2,
         "a|b",
         {"01", "1?"},
         {-1, -1},
         {1, 0},
         0,
         2},
        {"a label without a case goes",
         "patient_id,a,b,c\nP0,1,0,0\nP1,0,0,1\n",
         {TASK_MULTILABEL, "a,b,c", NULL},
         NULL,
         2,
         "a|c",
         {"10", "01"},
         {-1, -1},
         {0, 1},
         0,
         0},
        {"one label alone",
         "patient_id,a\nP0,1\nP1,0\n",
         {TASK_MULTILABEL, "a", NULL},
         NULL,
         2,
         "a",
         {"1", "0"},
         {-1, -1},
         {0, 1},
         0,
         0},
        {"the same set in another order, and another set",
         "patient_id,label\nP0,a;b\nP0,b;a\nP1,a\nP1,a;b\nP2,b\n",
         {TASK_MULTILABEL, NULL, NULL},
         NULL,
         2,
         "a|b",
         {"11", "01"},
         {-1, -1},
         {0, 1},
         2,
         0},
        {"grades are numbers",
         "patient_id,label\nP0,10\nP1,2\nP2,2\n",
         {TASK_ORDINAL, NULL, NULL},
         NULL,
         3,
         "2|10",
         {NULL},
         {1, 0, 0},
         {1, 0, 0},
         0,
         0},
        {"grades in their order",
         "patient_id,label\nP0,severe\nP1,none\n",
         {TASK_ORDINAL, NULL, "none,mild, severe"},
         NULL,
         2,
         "none|mild|severe",
         {NULL},
         {2, 0},
         {2, 0},
         0,
         0},
        {.name = "no order",
         .text = "patient_id,label\nP0,SECRET\nP1,1\n",
         .rules = {TASK_ORDINAL, NULL, NULL},
         .says = "row 2 is no whole number"},
        {.name = "not in the order",
         .text = "patient_id,label\nP0,1\nP1,SECRET\n",
         .rules = {TASK_ORDINAL, NULL, "1,2"},
         .says = "row 3 is not in --label-order"},
        {.name = "twice in the order",
         .text = "patient_id,label\nP0,1\nP1,2\n",
         .rules = {TASK_ORDINAL, NULL, "1,2,1"},
         .says = "--label-order: name 3"},
        {.name = "one grade",
         .text = "patient_id,label\nP0,1\nP1,1\n",
         .rules = {TASK_ORDINAL, NULL, "1,2"},
         .says = "the same label"},
        {.name = "order of classes",
         .text = "patient_id,label\nP0,1\nP1,2\n",
         .rules = {TASK_MULTICLASS, NULL, "1,2"},
         .says = "--label-order is for"},
        {.name = "columns of classes",
         .text = "patient_id,label\nP0,1\nP1,2\n",
         .rules = {TASK_MULTICLASS, "label", NULL},
         .says = "--label-columns is for"},
        {.name = "no such column",
         .text = "patient_id,a\nP0,1\nP1,0\n",
         .rules = {TASK_MULTILABEL, "a,b", NULL},
         .says = "no column 'b'"},
        {.name = "an empty name",
         .text = "patient_id,a\nP0,1\nP1,0\n",
         .rules = {TASK_MULTILABEL, "a,", NULL},
         .says = "--label-columns: name 2"},
        {.name = "neither 1 nor 0",
         .text = "patient_id,a\nP0,1\nP1,SECRET\n",
         .rules = {TASK_MULTILABEL, "a", NULL},
         .says = "row 3, column 'a': neither"},
        {.name = "a column twice",
         .text = "patient_id,a,A\nP0,1,1\nP1,0,0\n",
         .rules = {TASK_MULTILABEL, "a", NULL},
         .says = "two columns are called 'a'"},
        {.name = "nobody has anything",
         .text = "patient_id,a\nP0,0\nP1,0\n",
         .rules = {TASK_MULTILABEL, "a", NULL},
         .says = "no usable row has any label"},
        {.name = "a name that is too long",
         .text =
             "patient_id,label\nP0,SECRETSECRETSECRETSECRETSECRETSECRETSECRETSECRETSECRETSECRETSECRETSECRET\nP1,a\n",
         .rules = {TASK_MULTILABEL, NULL, NULL},
         .says = "row 2 has a label of more than 64 bytes"},
    };
    synthetic *s = *state;
    char hashes[8][HASH_HEX];
    size_t good_ones = 0;
    for (size_t t = 0; t < sizeof table / sizeof *table; t++) {
        char path[FILE_PATH_MAX], labels[256] = "";
        cohort c;
        err e = {0};
        synthetic_write(s, "labels.csv", table[t].text, path);
        err_code rc =
            cohort_open_by(&c, s->catalogue, s->work, path, &table[t].rules, &(split_options){0.15f, 0.2f, 1}, &e);
        print_message("%s: %s\n", table[t].name, e.msg);
        assert_int_equal(rc, table[t].says ? ERR_USAGE : ERR_OK);
        if (rc) {
            assert_non_null(strstr(e.msg, table[t].says));
            assert_null(strstr(e.msg, "SECRET"));
            continue;
        }
        assert_int_equal(c.task, table[t].rules.task);
        assert_int_equal(c.n_cases, table[t].cases);
        assert_int_equal(c.n_strata, c.n_labels + (c.task == TASK_MULTILABEL));
        for (int k = 0; k < c.n_labels; k++)
            snprintf(labels + strlen(labels), sizeof labels - strlen(labels), "%s%s", k ? "|" : "", c.labels[k]);
        assert_string_equal(labels, table[t].labels);
        for (size_t i = 0; i < c.n_cases; i++) {
            assert_int_equal(c.cases[i].label, table[t].label[i]);
            assert_int_equal(c.cases[i].stratum, table[t].stratum[i]);
            for (int k = 0; k < c.n_labels && c.cases[i].marks; k++)
                assert_int_equal("?01"[c.cases[i].marks[k] + 1], table[t].marks[i][k]);
            assert_int_equal(c.cases[i].marks != NULL, c.task == TASK_MULTILABEL);
        }
        assert_int_equal(c.rows_conflicting, table[t].conflicting);
        assert_int_equal(c.rows_empty, table[t].empty);
        memcpy(hashes[good_ones], c.data_hash, HASH_HEX);
        for (size_t i = 0; i < good_ones; i++) assert_string_not_equal(hashes[i], c.data_hash);
        good_ones++;
        cohort_close(&c);
    }
    assert_int_equal(good_ones, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(test_good, make, unmake),
                                       cmocka_unit_test_setup_teardown(test_bad, make, unmake),
                                       cmocka_unit_test_setup_teardown(test_tasks, make, unmake),
                                       cmocka_unit_test(test_unlabelled)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
