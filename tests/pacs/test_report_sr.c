/* Reports: four independent judges accept them, the same in gives the same out, and
 * hostile input gives a legal report or a clear refusal. */
#include "report_case.h"

/* --- independent judges --------------------------------------------------------------------------------------------
 */

/* Exit code of a command; its words go to the test's output. */
static int run(const char *command)
{
    fflush(stdout);
    const int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* false: not installed. */
static bool judge(const char *tool, const char *name)
{
    char command[512];
    snprintf(command, sizeof command, "bash '%s/pacs/validate.sh' %s '%s'", TESTS_DIR, tool, path);
    const int rc = run(command);
    if (rc == 77) return false;
    if (rc) {
        print_error("%s does not accept: %s\n", tool, name);
        fail();
    }
    return true;
}

static bool pydicom_reads(const fabricated *c, const study_identity *t, const findings *f)
{
    static int missing = -1;
    const study_finding *s = f->studies;
    char command[2048], meanings[256] = "", numbers[64] = "";
    if (missing < 0) missing = run("/usr/bin/python3 -c 'import pydicom' 2>/dev/null");
    if (missing) return false;
    int n = snprintf(command, sizeof command, "/usr/bin/python3 '%s/pacs/read_report.py' '%s' '%s' '", TESTS_DIR, path,
                     c->patient_name);
    const finding *first = s->found;
    for (int i = 0; s->n_found && i < first->n_evidence; i++)
        for (size_t k = 0; k < t->n_instances; k++)
            if (!strcmp(t->instances[k].instance_key, first->evidence[i].instance_key))
                n += snprintf(command + n, sizeof command - (size_t)n, "%s%s:%d", i ? "," : "", t->instances[k].sop_uid,
                              c->frames > 1 ? first->evidence[i].frame : 0);
    if (!s->n_found) strcpy(meanings, "All algorithms succeeded; without findings");
    for (int i = 0; i < s->n_found; i++) {
        size_t m = strlen(meanings), k = strlen(numbers);
        snprintf(meanings + m, sizeof meanings - m, "%s%s", i ? "|" : "", f->labels[s->found[i].label].meaning);
        snprintf(numbers + k, sizeof numbers - k, "%s%.4f", i ? "|" : "", s->probability[s->found[i].label]);
    }
    snprintf(command + n, sizeof command - (size_t)n, "' '%s' '%s'", meanings, numbers);
    assert_int_equal(run(command), 0);
    return true;
}

static void test_judges(void **state)
{
    static const char *const tools[] = {"dciodvfy", "dsrdump"};
    bool skipped[2] = {0}, no_pydicom = false;
    size_t n;
    const fabricated *cases = fabricated_cases(&n);
    (void)state;
    for (size_t i = 0; i < n; i++)
        for (sr_class class = SR_COMPREHENSIVE_3D; class <= SR_ENHANCED; class ++) {
            study_identity t;
            findings f;
            err e = {0};
            char uid[65];
            sr_options o = at_a_time;
            o.sr_class = class;
            fabricate(&cases[i], &t, &f);
            if (report_sr_write(path, &t, &f, f.studies, &o, uid, &e) || report_sr_lint(path, &e)) {
                print_error("%s: %s\n", cases[i].name, e.msg);
                fail();
            }
            assert_true(uid_valid(uid));
            for (int k = 0; k < 2; k++) skipped[k] |= !judge(tools[k], cases[i].name);
            if (class == SR_COMPREHENSIVE_3D) no_pydicom |= !pydicom_reads(&cases[i], &t, &f);
            fabricate_fini(&t, &f);
        }
    for (int k = 0; k < 2; k++)
        if (skipped[k]) print_message("skipped: %s is not installed\n", tools[k]);
    if (no_pydicom) print_message("skipped: pydicom is not installed\n");
}

/* Ten seconds a report, so one: the multi-frame one with a name in three scripts. */
static void test_pixelmed(void **state)
{
    study_identity t;
    findings f;
    err e = {0};
    char uid[65];
    (void)state;
    fabricate(a_case(2), &t, &f);
    assert_int_equal(report_sr_write(path, &t, &f, f.studies, &at_a_time, uid, &e), ERR_OK);
    if (!judge("pixelmed", "multi-frame")) print_message("skipped: PixelMed is not installed\n");
    fabricate_fini(&t, &f);
}

/* --- the same in, the same out -------------------------------------------------------------------------------------
 */

static void test_deterministic(void **state)
{
    study_identity t;
    findings f;
    err e = {0};
    char uid[65], again[65];
    (void)state;
    fabricate(a_case(1), &t, &f);
    assert_int_equal(report_sr_write(path, &t, &f, f.studies, &at_a_time, uid, &e), ERR_OK);
    for (size_t i = 0; i < t.n_instances / 2; i++) { /* the catalogue's order does not matter */
        study_instance swap = t.instances[i];
        t.instances[i] = t.instances[t.n_instances - 1 - i];
        t.instances[t.n_instances - 1 - i] = swap;
    }
    assert_int_equal(report_sr_write(other, &t, &f, f.studies, &at_a_time, again, &e), ERR_OK);
    assert_string_equal(uid, again);
    same_bytes(path, other, true);
    /* Another time: the same object. */
    sr_options later = {.content_datetime = "20240102030406"};
    assert_int_equal(report_sr_write(other, &t, &f, f.studies, &later, again, &e), ERR_OK);
    assert_string_equal(uid, again);
    same_bytes(path, other, false);
    assert_int_equal(report_sr_write(other, &t, &f, f.studies, NULL, again, &e), ERR_OK);
    assert_string_equal(uid, again);
    unlink(other);
    assert_int_equal(files_in_folder(), 1);
    fabricate_fini(&t, &f);
}

static void change_model(study_identity *t, findings *f)
{
    (void)t;
    f->model_hash[63] ^= 1;
}
static void change_probability(study_identity *t, findings *f)
{
    (void)t;
    f->studies[0].probability[1] = 0.85;
}
static void change_frame(study_identity *t, findings *f)
{
    (void)t;
    f->studies[0].found[0].evidence[0].frame = 1;
}
static void change_study(study_identity *t, findings *f)
{
    (void)f;
    strcat(t->header.study_uid, ".1");
}
static void change_name(study_identity *t, findings *f)
{
    (void)f;
    strcat(t->header.patient_name, "x");
}
static void change_instances(study_identity *t, findings *f)
{
    (void)f;
    strcat(t->instances[0].sop_uid, "1");
}

static char *device_uid_of(const char *file)
{
    attributes *d;
    err e = {0};
    assert_int_equal(sr_tree_read(file, &d, &e), ERR_OK);
    char *uid = strdup(attributes_text(attributes_at(d, TAG_ContributingEquipmentSequence, 0), TAG_DeviceUID));
    attributes_free(d);
    return uid;
}

/* Any change is a new object; the device is a new one when, and only when, the model is. */
static void test_changes(void **state)
{
    static const struct {
        const char *name;
        void (*change)(study_identity *, findings *);
        bool new_device;
    } cases[] = {{"model", change_model, true},          {"probability", change_probability, false},
                 {"frame", change_frame, false},         {"study", change_study, false},
                 {"patient's name", change_name, false}, {"instances", change_instances, false}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        study_identity t;
        findings f;
        err e = {0};
        char uid[65], changed[65];
        fabricate(a_case(2), &t, &f);
        assert_int_equal(report_sr_write(path, &t, &f, f.studies, &at_a_time, uid, &e), ERR_OK);
        cases[i].change(&t, &f);
        assert_int_equal(report_sr_write(other, &t, &f, f.studies, &at_a_time, changed, &e), ERR_OK);
        char *device = device_uid_of(path), *changed_device = device_uid_of(other);
        if (!strcmp(uid, changed) || (strcmp(device, changed_device) != 0) != cases[i].new_device) {
            print_error("row %zu: %s\n", i, cases[i].name);
            fail();
        }
        free(device);
        free(changed_device);
        fabricate_fini(&t, &f);
    }
}

/* --- hostile input -------------------------------------------------------------------------------------------------
 */

static void bad_study_uid(study_identity *t, findings *f)
{
    (void)f;
    strcpy(t->header.study_uid, "1.02");
}
static void no_study_uid(study_identity *t, findings *f)
{
    (void)f;
    t->header.study_uid[0] = 0;
}
static void bad_patient_id(study_identity *t, findings *f)
{
    (void)f;
    strcpy(t->header.patient_id, "A\\B");
}
static void nifti(study_identity *t, findings *f)
{
    (void)f;
    t->header.format = IMAGE_NIFTI;
}
static void no_instances(study_identity *t, findings *f)
{
    (void)f;
    t->n_instances = 0;
}
static void bad_instances(study_identity *t, findings *f)
{
    (void)f;
    for (size_t i = 0; i < t->n_instances; i++) t->instances[i].sop_uid[0] = 'x';
}
static void bad_evidence_instance(study_identity *t, findings *f)
{
    (void)t;
    f->studies[0].found[0].evidence[0].instance_key[0] = 'f';
}
static void bad_frame(study_identity *t, findings *f)
{
    (void)t;
    f->studies[0].found[0].evidence[0].frame = 31;
}
static void frame_zero(study_identity *t, findings *f)
{
    (void)t;
    f->studies[0].found[0].evidence[0].frame = 0;
}
static void no_evidence(study_identity *t, findings *f)
{
    (void)t;
    f->studies[0].found[0].n_evidence = 0;
}
static void bad_label(study_identity *t, findings *f)
{
    (void)t;
    f->studies[0].found[0].label = 3;
}
static void nan_probability(study_identity *t, findings *f)
{
    (void)t;
    f->studies[0].probability[2] = NAN;
}
static void not_the_most_probable(study_identity *t, findings *f)
{
    (void)t;
    f->studies[0].found[0].label = 2;
}
static void no_code(study_identity *t, findings *f)
{
    (void)t;
    f->labels[1].value[0] = 0;
}
static void no_model(study_identity *t, findings *f)
{
    (void)t;
    f->model_hash[0] = 0;
}

static void not_the_median(study_identity *t, findings *f)
{
    (void)t;
    f->task = TASK_ORDINAL;
    f->studies[0].found[0].label = 2;
}
static void two_of_one(study_identity *t, findings *f)
{
    (void)t;
    f->task = TASK_MULTILABEL;
    f->studies[0].found[1] = f->studies[0].found[0];
    f->studies[0].found[1].evidence = calloc(1, sizeof *f->studies[0].found[1].evidence);
    f->studies[0].n_found = 2;
}
static void two_classes(study_identity *t, findings *f)
{
    two_of_one(t, f);
    f->task = TASK_MULTICLASS;
}
static void below_a_half(study_identity *t, findings *f)
{
    (void)t;
    f->task = TASK_MULTILABEL;
    f->studies[0].probability[1] = 0.49;
}
static void not_named(study_identity *t, findings *f)
{
    (void)t;
    f->task = TASK_MULTILABEL;
    f->studies[0].probability[2] = 0.5;
}

static void test_refusals(void **state)
{
    static const struct {
        void (*break_it)(study_identity *, findings *);
        err_code code;
        const char *says;
    } cases[] = {
        {bad_study_uid, ERR_FORMAT, "StudyInstanceUID"},
        {no_study_uid, ERR_FORMAT, "StudyInstanceUID"},
        {bad_patient_id, ERR_FORMAT, "PatientID"},
        {nifti, ERR_UNSUPPORTED, "not DICOM"},
        {no_instances, ERR_FORMAT, "none of its 0 instances"},
        {bad_instances, ERR_FORMAT, "none of its 2 instances"},
        {bad_evidence_instance, ERR_CONFLICT, "evidence 1"},
        {bad_frame, ERR_CONFLICT, "frame 31 of 30"},
        {frame_zero, ERR_CONFLICT, "frame 0 of 30"},
        {no_evidence, ERR_CONFLICT, "no frame"},
        {bad_label, ERR_FORMAT, "label 3 of 3"},
        {nan_probability, ERR_NUMERIC, "not in [0,1]"},
        {not_the_most_probable, ERR_CONFLICT, "more probable"},
        {no_code, ERR_FORMAT, "no code"},
        {not_the_median, ERR_CONFLICT, "not the median"},
        {two_of_one, ERR_CONFLICT, "there twice"},
        {two_classes, ERR_FORMAT, "2 of them"},
        {below_a_half, ERR_CONFLICT, "below 0.5"},
        {not_named, ERR_CONFLICT, "not named"},
        {no_model, ERR_FORMAT, "no name, version or hash"},
    };
    (void)state;
    unlink(path);
    unlink(other);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        study_identity t;
        findings f;
        err e = {0};
        char uid[65] = "untouched";
        fabricate(a_case(2), &t, &f);
        cases[i].break_it(&t, &f);
        const err_code rc = report_sr_write(path, &t, &f, f.studies, &at_a_time, uid, &e);
        if (rc != cases[i].code || !strstr(e.msg, cases[i].says)) {
            print_error("row %zu: %d '%s'\n", i, rc, e.msg);
            fail();
        }
        assert_string_equal(uid, "untouched");
        assert_int_equal(files_in_folder(), 0);
        fabricate_fini(&t, &f);
    }
}

/* Everything that is not an identifier, filled to the brim with what its VR does not allow. */
static void test_hostile_text(void **state)
{
    study_identity t;
    findings f;
    err e = {0};
    char uid[65];
    (void)state;
    fabricate(a_case(1), &t, &f);
    image_header *h = &t.header;
    memset(h->patient_name, '^', sizeof h->patient_name - 1);
    memset(h->referring_physician, '\\', sizeof h->referring_physician - 1);
    memset(h->study_description, '\xFF', sizeof h->study_description - 1);
    memset(h->study_id, '\xC3', sizeof h->study_id - 1);
    memset(h->accession, '\x1B', sizeof h->accession - 1);
    strcpy(h->patient_sex, "female");
    strcpy(h->patient_birth_date, "1964.2.1");
    strcpy(h->study_date, "99999999");
    strcpy(h->study_time, "25:00");
    strcpy(h->procedure_code, "A\\B");
    strcpy(h->procedure_scheme, "99\nX");
    memset(h->procedure_meaning, '\xE5', sizeof h->procedure_meaning - 1);
    strcpy(f.labels[1].value, "a\\b");
    memset(f.labels[1].meaning, '\\', sizeof f.labels[1].meaning - 1);
    memset(f.labels[0].meaning, '\xF0', sizeof f.labels[0].meaning - 1);
    strcpy(f.algorithm, "a\\b\tc");
    memset(f.parameters, '\\', sizeof f.parameters - 1);
    t.instances[0].series_uid[0] = 0;
    strcpy(t.instances[1].sop_class, "..");
    assert_int_equal(report_sr_write(path, &t, &f, f.studies, &at_a_time, uid, &e), ERR_OK);
    judge("dciodvfy", "hostile text");
    judge("dsrdump", "hostile text");
    attributes *d, *parent;
    size_t at;
    assert_int_equal(sr_tree_read(path, &d, &e), ERR_OK);
    assert_string_equal(attributes_text(d, TAG_PatientSex), "");
    assert_string_equal(attributes_text(d, TAG_StudyTime), "");
    const attributes *comment = follow(d, "126010/125007/121106", &parent, &at);
    assert_non_null(strstr(attributes_text(comment, TAG_TextValue), "2 instances of the study cannot be referenced"));
    attributes_free(d);
    fabricate_fini(&t, &f);
}

/* Sets of labels: none, one, several of them, of public and private codes; grades. */
static void test_tasks(void **state)
{
    static const struct {
        const char *name;
        label_task task;
        double p[3];
        bool slow; /* also PixelMed */
        const char *says;
    } cases[] = {
        {"none", TASK_MULTILABEL, {0.1, 0.2, 0.3}, true, "Each of 3 labels"},
        {"one", TASK_MULTILABEL, {0.1, 0.5, 0.3}, false, "Each of 3 labels"},
        {"all", TASK_MULTILABEL, {0.9, 1, 0.75}, false, "Nodule 1.0000; No finding 0.9000; Effusion 0.7500"},
        {"a median that is not the most probable grade",
         TASK_ORDINAL,
         {0.4, 0.11, 0.49},
         false,
         "the median of 3 grades"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        study_identity t;
        findings f;
        err e = {0};
        char uid[65];
        const fabricated *c = a_case(1);
        fabricate(c, &t, &f);
        strcpy(f.labels[0].scheme, "SCT");
        strcpy(f.labels[0].value, "17621005");
        if (cases[i].task == TASK_MULTILABEL)
            fabricate_set(&f, cases[i].p);
        else
            memcpy(f.studies[0].probability, cases[i].p, sizeof cases[i].p);
        f.task = cases[i].task;
        if (report_sr_write(path, &t, &f, f.studies, &at_a_time, uid, &e) || report_sr_lint(path, &e))
            fail_msg("%s: %s", cases[i].name, e.msg);
        judge("dciodvfy", cases[i].name);
        judge("dsrdump", cases[i].name);
        if (cases[i].slow) judge("pixelmed", cases[i].name);
        pydicom_reads(c, &t, &f);
        attributes *d, *parent;
        size_t at;
        assert_int_equal(sr_tree_read(path, &d, &e), ERR_OK);
        const char *text = attributes_text(follow(d, "126010/125007/121106", &parent, &at), TAG_TextValue);
        if (!strstr(text, cases[i].says)) fail_msg("%s: %s", cases[i].name, text);
        attributes_free(d);
        fabricate_fini(&t, &f);
    }
}

/* A thousand classes: the comment lists the first ones, the tree holds one. */
static void test_many_classes(void **state)
{
    enum { N = 1000 };
    study_identity t;
    findings f;
    err e = {0};
    char uid[65];
    (void)state;
    fabricate(a_case(0), &t, &f);
    f.labels = realloc(f.labels, N * sizeof *f.labels);
    f.studies[0].probability = realloc(f.studies[0].probability, N * sizeof(double));
    f.n_labels = N;
    f.studies[0].found[0].label = 500;
    for (int i = 0; i < N; i++) {
        f.labels[i] = (label_code){.scheme = "99RADAPT"};
        snprintf(f.labels[i].value, sizeof f.labels[i].value, "C%d", i);
        snprintf(f.labels[i].meaning, sizeof f.labels[i].meaning, "class %d", i);
        f.studies[0].probability[i] = i == 500 ? 0.5 : 0.5 / (N - 1);
    }
    assert_int_equal(report_sr_write(path, &t, &f, f.studies, &at_a_time, uid, &e), ERR_OK);
    attributes *d, *parent;
    size_t at;
    assert_int_equal(sr_tree_read(path, &d, &e), ERR_OK);
    const char *text = attributes_text(follow(d, "126010/125007/121106", &parent, &at), TAG_TextValue);
    assert_non_null(strstr(text, "Probabilities: class 500 0.5000; class 0 0.0005; "));
    assert_non_null(strstr(text, "; 980 more, together 0.4905."));
    attributes_free(d);
    fabricate_fini(&t, &f);
}

static void test_procedure_code(void **state)
{
    static const struct {
        const char *code, *scheme, *meaning, *modality, *wanted;
    } cases[] = {
        {"77477000", "SCT", "CT", "CT", "77477000"},
        {"", "SCT", "CT", "CT", "25045-6"},
        {"X", "", "CT", "MR", "25056-3"},
        {"X", "SCT", "", "CR", "363679005"},
        {"", "", "", "", "363679005"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        study_identity t;
        findings f;
        err e = {0};
        char uid[65];
        attributes *d, *parent;
        size_t at;
        fabricate(a_case(0), &t, &f);
        strcpy(t.header.procedure_code, cases[i].code);
        strcpy(t.header.procedure_scheme, cases[i].scheme);
        strcpy(t.header.procedure_meaning, cases[i].meaning);
        strcpy(t.header.modality, cases[i].modality);
        assert_int_equal(report_sr_write(path, &t, &f, f.studies, &at_a_time, uid, &e), ERR_OK);
        assert_int_equal(sr_tree_read(path, &d, &e), ERR_OK);
        const attributes *item = follow(d, "121058", &parent, &at);
        assert_string_equal(attributes_text(attributes_at(item, TAG_ConceptCodeSequence, 0), TAG_CodeValue),
                            cases[i].wanted);
        attributes_free(d);
        fabricate_fini(&t, &f);
    }
}

/* What was there stays when the new one cannot be written; options that make no sense are refused. */
static void test_failed_write(void **state)
{
    study_identity t;
    findings f;
    err e = {0}, none = {0}, root = {0}, when = {0};
    char uid[65], unreachable[96];
    (void)state;
    fabricate(a_case(0), &t, &f);
    snprintf(unreachable, sizeof unreachable, "%s/not/there.dcm", folder);
    assert_int_equal(report_sr_write(unreachable, &t, &f, f.studies, &at_a_time, uid, &none), ERR_NOTFOUND);
    assert_null(strstr(none.msg, folder));
    assert_int_equal(file_write(path, "kept", 4, &e), ERR_OK);
    assert_int_equal(file_write(other, "kept", 4, &e), ERR_OK);
    sr_options bad_root = {.organisation_root = "1.02", .content_datetime = "20240102030405"};
    assert_int_equal(report_sr_write(path, &t, &f, f.studies, &bad_root, uid, &root), ERR_USAGE);
    sr_options bad_time = {.content_datetime = "20241302030405"};
    assert_int_not_equal(report_sr_write(path, &t, &f, f.studies, &bad_time, uid, &when), ERR_OK);
    same_bytes(path, other, true);
    fabricate_fini(&t, &f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_judges),         cmocka_unit_test(test_pixelmed),
        cmocka_unit_test(test_tasks),          cmocka_unit_test(test_deterministic),
        cmocka_unit_test(test_changes),        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_hostile_text),   cmocka_unit_test(test_many_classes),
        cmocka_unit_test(test_procedure_code), cmocka_unit_test(test_failed_write),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
