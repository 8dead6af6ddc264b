/* test_findings.c: write then read is identity; malformed files are refused by line; codes from a table. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "io/findings.h"

#define FILE_NAME "test_findings.tmp"
#define KEY_A "00112233445566778899aabbccddeeff"
#define KEY_B "ffeeddccbbaa99887766554433221100"
#define MODEL                                                                                                          \
    "{\"format\":\"radapt-findings/"                                                                                   \
    "1\",\"model\":{\"algorithm\":\"a\",\"version\":\"1\",\"hash\":\"h\",\"parameters\":\"\"},"                        \
    "\"labels\":[{\"name\":\"x\",\"value\":\"X\",\"scheme\":\"S\",\"meaning\":\"X\"},"                                 \
    "{\"name\":\"y\",\"value\":\"Y\",\"scheme\":\"S\",\"meaning\":\"Y\"}]}\n"
#define STUDY(key, label, probability, evidence)                                                                       \
    "{\"study\":\"" key "\",\"label\":\"" label "\",\"probability\":" probability                                      \
    ",\"frames\":1,\"evidence\":" evidence "}\n"

static void round_trip(void **state)
{
    (void)state;
    label_code labels[3] = {{"normal", "N-1", "99TEST", "Normal"},
                            {"pneumonie \"b\"", "233604007", "SCT", "Pneumonia"},
                            {"\xc3\xa4\\", "C", "DCM", "c"}};
    double p[2][3] = {{0.1, 0.7, 0.2}, {1, 0, 1e-300}};
    finding_evidence ev[8];
    for (int i = 0; i < 8; i++) {
        snprintf(ev[i].instance_key, sizeof ev[i].instance_key, "%032d", i);
        ev[i].frame = i + 1;
        ev[i].weight = 1.0 / (i + 3);
    }
    study_finding studies[2] = {
        {.study_key = KEY_A, .label = 1, .probability = p[0], .frames = 24, .evidence = ev, .n_evidence = 8},
        {.study_key = KEY_B, .label = 0, .probability = p[1], .frames = 1}};
    findings f = {.algorithm = "radapt",
                  .version = "0.1",
                  .model_hash = "abc",
                  .parameters = "k=1\nm=2",
                  .labels = labels,
                  .n_labels = 3,
                  .studies = studies,
                  .n_studies = 2};
    err e = {0};
    assert_int_equal(findings_write(FILE_NAME, &f, &e), ERR_OK);
    findings g;
    if (findings_read(FILE_NAME, &g, &e)) fail_msg("%s", e.msg);
    assert_true(g.n_labels == 3 && g.n_studies == 2);
    assert_string_equal(g.parameters, f.parameters);
    assert_string_equal(g.model_hash, "abc");
    for (int i = 0; i < 3; i++) {
        assert_string_equal(g.labels[i].name, labels[i].name);
        assert_string_equal(g.labels[i].value, labels[i].value);
        assert_string_equal(g.labels[i].scheme, labels[i].scheme);
        assert_string_equal(g.labels[i].meaning, labels[i].meaning);
    }
    for (size_t s = 0; s < 2; s++) {
        assert_string_equal(g.studies[s].study_key, studies[s].study_key);
        assert_int_equal(g.studies[s].label, studies[s].label);
        assert_int_equal(g.studies[s].frames, studies[s].frames);
        assert_int_equal(g.studies[s].n_evidence, studies[s].n_evidence);
        for (int k = 0; k < 3; k++) assert_true(g.studies[s].probability[k] == p[s][k]);
        for (int k = 0; k < g.studies[s].n_evidence; k++) {
            assert_string_equal(g.studies[s].evidence[k].instance_key, ev[k].instance_key);
            assert_true(g.studies[s].evidence[k].frame == ev[k].frame &&
                        g.studies[s].evidence[k].weight == ev[k].weight);
        }
    }
    findings_fini(&g);
    /* what JSON cannot say is not written, and the file stays */
    p[1][0] = NAN;
    assert_int_equal(findings_write(FILE_NAME, &f, NULL), ERR_INTERNAL);
    p[1][0] = 1;
    ev[3].weight = INFINITY;
    assert_int_equal(findings_write(FILE_NAME, &f, NULL), ERR_INTERNAL);
    ev[3].weight = 0;
    strcpy(labels[0].meaning, "\xff");
    assert_int_equal(findings_write(FILE_NAME, &f, NULL), ERR_INTERNAL);
    assert_int_equal(findings_read(FILE_NAME, &g, NULL), ERR_OK);
    findings_fini(&g);
}

static void malformed(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        err_code rc;
        int line; /* that the message names; 0: none */
    } rows[] = {
        {MODEL, ERR_OK, 0},
        {MODEL STUDY(KEY_A, "x", "{\"x\":1,\"y\":0}", "[]"), ERR_OK, 0},
        {MODEL STUDY(KEY_A, "x", "{\"x\":1,\"y\":0}", "[{\"instance\":\"" KEY_B "\",\"frame\":1,\"weight\":1}]"),
         ERR_OK, 0},
        {"", ERR_FORMAT, 0},
        {"\n", ERR_FORMAT, 1},
        {"{}\n", ERR_FORMAT, 1},
        {"[]\n", ERR_FORMAT, 1},
        {"not json\n", ERR_FORMAT, 1},
        {"{\"format\":\"radapt-findings/2\"}\n", ERR_FORMAT, 1},
        {MODEL "{\"study\":\"" KEY_A, ERR_FORMAT, 2}, /* cut off */
        {MODEL "{}\n", ERR_FORMAT, 2},
        {MODEL STUDY(KEY_A, "z", "{\"x\":1,\"y\":0}", "[]"), ERR_FORMAT, 2},
        {MODEL STUDY(KEY_A, "x", "{\"x\":1}", "[]"), ERR_FORMAT, 2},
        {MODEL STUDY(KEY_A, "x", "{\"x\":1.5,\"y\":0}", "[]"), ERR_FORMAT, 2},
        {MODEL STUDY(KEY_A, "x", "{\"x\":-1,\"y\":0}", "[]"), ERR_FORMAT, 2},
        {MODEL STUDY(KEY_A, "x", "{\"x\":\"1\",\"y\":0}", "[]"), ERR_FORMAT, 2},
        {MODEL STUDY(KEY_A, "x", "[]", "[]"), ERR_FORMAT, 2},
        {MODEL STUDY(KEY_A KEY_A, "x", "{\"x\":1,\"y\":0}", "[]"), ERR_FORMAT, 2},
        {MODEL STUDY("../../etc/x", "x", "{\"x\":1,\"y\":0}", "[]"), ERR_FORMAT, 2}, /* a key is hex digits */
        {MODEL STUDY("", "x", "{\"x\":1,\"y\":0}", "[]"), ERR_FORMAT, 2},
        {MODEL STUDY(KEY_A, "x", "{\"x\":1,\"y\":0}", "[1,2,3,4,5,6,7,8,9]"), ERR_FORMAT, 2},
        {MODEL STUDY(KEY_A, "x", "{\"x\":1,\"y\":0}", "[1]"), ERR_FORMAT, 2},
        {MODEL STUDY(KEY_A, "x", "{\"x\":1,\"y\":0}", "[{\"instance\":\"" KEY_B "\",\"frame\":0,\"weight\":1}]"),
         ERR_FORMAT, 2},
        {MODEL STUDY(KEY_A, "x", "{\"x\":1,\"y\":0}", "[]") "x", ERR_FORMAT, 3},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        findings f;
        err e = {0};
        assert_int_equal(file_write(FILE_NAME, rows[i].text, strlen(rows[i].text), NULL), ERR_OK);
        err_code rc = findings_read(FILE_NAME, &f, &e);
        print_message("row %zu: %s\n", i, e.msg);
        if (!rc) findings_fini(&f);
        assert_int_equal(rc, rows[i].rc);
        char want[32];
        snprintf(want, sizeof want, "line %d ", rows[i].line);
        if (rows[i].line) assert_non_null(strstr(e.msg, want));
    }
    findings f;
    static const char nul[] = MODEL "\0" STUDY(KEY_A, "x", "{\"x\":1,\"y\":0}", "[]");
    assert_int_equal(file_write(FILE_NAME, nul, sizeof nul - 1, NULL), ERR_OK);
    assert_int_equal(findings_read(FILE_NAME, &f, NULL), ERR_FORMAT);
    unlink(FILE_NAME);
    assert_int_equal(findings_read(FILE_NAME, &f, NULL), ERR_NOTFOUND);
}

static void codes(void **state)
{
    (void)state;
    label_code l[3] = {
        {.name = "pneumonia, bacterial"}, {.name = "pneumonia, viral"}, {.name = "\xe6\xad\xa3\xe5\xb8\xb8"}};
    err e = {0};
    assert_int_equal(findings_codes(NULL, l, 3, &e), ERR_OK);
    for (int i = 0; i < 3; i++) {
        assert_string_equal(l[i].scheme, "99RADAPT");
        assert_string_equal(l[i].meaning, l[i].name);
        assert_true(strlen(l[i].value) >= 5 && strlen(l[i].value) <= 16);
    }
    assert_string_not_equal(l[0].value, l[1].value); /* the same first ten letters */
    static const struct {
        const char *text;
        err_code rc;
    } rows[] = {
        {"label,code_value,coding_scheme,code_meaning\r\n\"pneumonia, viral\",75570004,SCT,Viral pneumonia\r\n",
         ERR_OK},
        {"code_meaning,label,code_value,coding_scheme\nNobody,nobody,1,SCT\n", ERR_OK},
        {"label,code_value,coding_scheme\nx,1,SCT\n", ERR_USAGE},
        {"label,code_value,coding_scheme,code_meaning\n\"pneumonia, viral\",,SCT,m\n", ERR_USAGE},
        {"label,code_value,coding_scheme,code_meaning\n\"pneumonia, viral\",12345678901234567,SCT,m\n", ERR_USAGE},
        {"label,code_value,coding_scheme,code_meaning\n\"pneumonia, viral\",1,S\\CT,m\n", ERR_USAGE},
        {"label,code_value,coding_scheme,code_meaning\n\"pneumonia, viral\",1\n", ERR_USAGE},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(file_write(FILE_NAME, rows[i].text, strlen(rows[i].text), NULL), ERR_OK);
        e = (err){0};
        err_code rc = findings_codes(FILE_NAME, l, 3, &e);
        print_message("row %zu: %s\n", i, e.msg);
        assert_int_equal(rc, rows[i].rc);
        assert_string_equal(l[0].scheme, "99RADAPT");
        if (i == 0) {
            assert_string_equal(l[1].value, "75570004");
            assert_string_equal(l[1].scheme, "SCT");
            assert_string_equal(l[1].meaning, "Viral pneumonia");
        } else if (i == 1)
            assert_string_equal(l[1].scheme, "99RADAPT");
    }
    unlink(FILE_NAME);
    assert_int_equal(findings_codes(FILE_NAME, l, 3, NULL), ERR_NOTFOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(round_trip), cmocka_unit_test(malformed),
                                       cmocka_unit_test(codes)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(FILE_NAME);
    return failed;
}
