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
#define MODEL_OF(task)                                                                                                 \
    "{\"format\":\"radapt-findings/2\",\"task\":\"" task                                                               \
    "\",\"model\":{\"algorithm\":\"a\",\"version\":\"1\",\"hash\":\"h\",\"parameters\":\"\"},"                         \
    "\"labels\":[{\"name\":\"x\",\"value\":\"X\",\"scheme\":\"S\",\"meaning\":\"X\"},"                                 \
    "{\"name\":\"y\",\"value\":\"Y\",\"scheme\":\"S\",\"meaning\":\"Y\"}]}\n"
#define FOUND(found) "{\"study\":\"" KEY_A "\",\"found\":" found ",\"probability\":{\"x\":1,\"y\":0},\"frames\":1}\n"
#define ONE(label) "{\"label\":\"" label "\",\"evidence\":[{\"instance\":\"" KEY_B "\",\"frame\":1,\"weight\":1}]}"
#define MODEL MODEL_OF("multiclass")
#define STUDY(key, label, probability, evidence)                                                                       \
    "{\"study\":\"" key "\",\"found\":[{\"label\":\"" label "\",\"evidence\":" evidence                                \
    "}],\"probability\":" probability ",\"frames\":1}\n"
#define END(studies, sha256) "{\"studies\":" studies ",\"sha256\":\"" sha256 "\"}\n"
#define MODEL_SHA256 "8c895aea1ff27ef0a57751f9343dd83860fa0023861e88dd7bad273c195e2e38"

static void check_round_trip(const findings *f)
{
    findings g;
    err e = {0};
    assert_int_equal(findings_write(FILE_NAME, f, &e), ERR_OK);
    if (findings_read(FILE_NAME, &g, &e)) fail_msg("%s", e.msg);
    assert_true(g.task == f->task && g.n_labels == 3 && g.n_studies == f->n_studies);
    assert_string_equal(g.parameters, f->parameters);
    assert_string_equal(g.model_hash, "abc");
    for (int i = 0; i < 3; i++) {
        assert_string_equal(g.labels[i].name, f->labels[i].name);
        assert_string_equal(g.labels[i].value, f->labels[i].value);
        assert_string_equal(g.labels[i].scheme, f->labels[i].scheme);
        assert_string_equal(g.labels[i].meaning, f->labels[i].meaning);
    }
    for (size_t s = 0; s < f->n_studies; s++) {
        const study_finding *want = &f->studies[s], *got = &g.studies[s];
        assert_string_equal(got->study_key, want->study_key);
        assert_int_equal(got->frames, want->frames);
        assert_int_equal(got->n_found, want->n_found);
        for (int k = 0; k < 3; k++) assert_true(got->probability[k] == want->probability[k]);
        for (int i = 0; i < want->n_found; i++) {
            assert_int_equal(got->found[i].label, want->found[i].label);
            assert_int_equal(got->found[i].n_evidence, want->found[i].n_evidence);
            for (int k = 0; k < want->found[i].n_evidence; k++) {
                const finding_evidence *x = &got->found[i].evidence[k], *y = &want->found[i].evidence[k];
                assert_string_equal(x->instance_key, y->instance_key);
                assert_true(x->frame == y->frame && x->weight == y->weight);
            }
        }
    }
    findings_fini(&g);
}

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
    finding one = {.label = 1, .evidence = ev, .n_evidence = 8};
    finding two[2] = {{.label = 2, .evidence = ev + 4, .n_evidence = 3}, {.label = 0}};
    study_finding studies[3] = {{.study_key = KEY_A, .probability = p[0], .frames = 24, .found = &one, .n_found = 1},
                                {.study_key = KEY_B, .probability = p[1], .frames = 1, .found = two, .n_found = 1},
                                {.study_key = KEY_B, .probability = p[1], .frames = 1}};
    findings f = {.algorithm = "radapt",
                  .version = "0.1",
                  .model_hash = "abc",
                  .parameters = "k=1\nm=2",
                  .labels = labels,
                  .n_labels = 3,
                  .studies = studies,
                  .n_studies = 2};
    for (label_task task = TASK_MULTICLASS; task <= TASK_MULTILABEL; task++) { /* of a set of labels: two, or none */
        f.task = task;
        studies[1].n_found = task == TASK_MULTILABEL ? 2 : 1;
        f.n_studies = task == TASK_MULTILABEL ? 3 : 2;
        check_round_trip(&f);
    }
    err e = {0};
    findings g;
    assert_int_equal(findings_write(FILE_NAME, &f, &e), ERR_OK);
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
        {MODEL, ERR_TRUNCATED, 0}, /* whole lines, but not the last */
        {MODEL STUDY(KEY_A, "x", "{\"x\":1,\"y\":0}", "[]"), ERR_TRUNCATED, 0},
        {MODEL STUDY(KEY_A, "x", "{\"x\":1,\"y\":0}", "[{\"instance\":\"" KEY_B "\",\"frame\":1,\"weight\":1}]"),
         ERR_TRUNCATED, 0},
        {MODEL END("0", "00"), ERR_FORMAT, 2},
        {MODEL END("0", MODEL_SHA256), ERR_OK, 0},
        {MODEL END("1", MODEL_SHA256), ERR_FORMAT, 2},
        {MODEL END("0", MODEL_SHA256) "\n", ERR_FORMAT, 2},
        {END("0", MODEL_SHA256), ERR_FORMAT, 1},
        {"", ERR_FORMAT, 0},
        {"\n", ERR_FORMAT, 1},
        {"{}\n", ERR_FORMAT, 1},
        {"[]\n", ERR_FORMAT, 1},
        {"not json\n", ERR_FORMAT, 1},
        {"{\"format\":\"radapt-findings/1\"}\n", ERR_FORMAT, 1},
        {"{\"format\":\"radapt-findings/2\"}\n", ERR_FORMAT, 1},
        {MODEL_OF("multiclass") FOUND("[" ONE("x") "]"), ERR_TRUNCATED, 0},
        {MODEL_OF("guess") FOUND("[" ONE("x") "]"), ERR_FORMAT, 1},
        {MODEL_OF("multiclass") FOUND("[" ONE("x") "," ONE("y") "]"), ERR_FORMAT, 2}, /* of classes there is one */
        {MODEL_OF("ordinal") FOUND("[]"), ERR_FORMAT, 2},
        {MODEL_OF("ordinal") FOUND("[" ONE("y") "]"), ERR_TRUNCATED, 0},
        {MODEL_OF("multilabel") FOUND("[]"), ERR_TRUNCATED, 0},
        {MODEL_OF("multilabel") FOUND("[" ONE("y") "," ONE("x") "]"), ERR_TRUNCATED, 0},
        {MODEL_OF("multilabel") FOUND("[" ONE("y") "," ONE("y") "]"), ERR_FORMAT, 2},
        {MODEL_OF("multilabel") FOUND("[" ONE("z") "]"), ERR_FORMAT, 2},
        {MODEL_OF("multilabel") FOUND("{}"), ERR_FORMAT, 2},
        {MODEL_OF("multilabel") "{\"study\":\"" KEY_A "\",\"probability\":{\"x\":1,\"y\":0}}\n", ERR_FORMAT, 2},
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

/* Cut anywhere, at a line's end too, or with a byte changed, a file is not taken for what was written. */
static void damaged(void **state)
{
    (void)state;
    double p[2] = {0.25, 0.75};
    label_code labels[2] = {{"x", "X", "S", "X"}, {"y", "Y", "S", "Y"}};
    finding one = {.label = 1};
    study_finding studies[3];
    for (int i = 0; i < 3; i++) {
        studies[i] = (study_finding){.probability = p, .frames = 1, .found = &one, .n_found = 1};
        snprintf(studies[i].study_key, KEY_HEX, "%032d", i);
    }
    findings f = {.labels = labels, .n_labels = 2, .studies = studies, .n_studies = 3}, g;
    char *text;
    size_t bytes;
    err e = {0};
    if (findings_write(FILE_NAME, &f, &e)) fail_msg("%s", e.msg);
    if (file_read(FILE_NAME, 1 << 20, &text, &bytes, &e)) fail_msg("%s", e.msg);
    for (size_t n = 0; n < bytes; n++) {
        assert_int_equal(file_write(FILE_NAME, text, n, NULL), ERR_OK);
        if (!findings_read(FILE_NAME, &g, NULL)) fail_msg("the first %zu of %zu bytes pass", n, bytes);
    }
    for (size_t n = 0; n < bytes; n++) {
        text[n] ^= 1;
        assert_int_equal(file_write(FILE_NAME, text, bytes, NULL), ERR_OK);
        if (!findings_read(FILE_NAME, &g, NULL)) fail_msg("byte %zu of %zu may be another", n, bytes);
        text[n] ^= 1;
    }
    assert_int_equal(file_write(FILE_NAME, text, bytes, NULL), ERR_OK);
    assert_int_equal(findings_read(FILE_NAME, &g, NULL), ERR_OK);
    findings_fini(&g);
    free(text);
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
                                       cmocka_unit_test(damaged), cmocka_unit_test(codes)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(FILE_NAME);
    return failed;
}
