/* The lint of reports: each removal from a good one is refused, with the place. */
#include "report_case.h"

static const struct {
    const char *item; /* whose content item is removed, or, with a tag, which of its attributes; NULL: of the header */
    uint32_t tag;
    const char *vr, *text; /* vr: the attribute is set to text instead of removed */
    const char *says;      /* part of the message */
} removals[] = {
    {"121049", 0, 0, 0, "TID 1204: no Language"},
    {"121005", 0, 0, 0, "TID 1002: no Observer Type"},
    {"121012", 0, 0, 0, "TID 1004: no Device Observer UID"},
    {"121013", 0, 0, 0, "TID 1004: no Device Observer Name"},
    {"121014", 0, 0, 0, "TID 1004: no Device Observer Manufacturer"},
    {"121058", 0, 0, 0, "TID 1500: no Procedure reported"},
    {"111028", 0, 0, 0, "TID 1500: no Image Library"},
    {"111028/126200", 0, 0, 0, "TID 1600: no Image Library Group"},
    {"111028/126200/121139", 0, 0, 0, "TID 1602: no Modality"},
    {"111028/126200/-", 0, 0, 0, "TID 1601: an Image Library Group (126200) without an IMAGE"},
    {"126010", 0, 0, 0, "TID 1500: no Imaging Measurements"},
    {"126010/125007", 0, 0, 0, "TID 1500: no Measurement Group"},
    {"126010/125007/112039", 0, 0, 0, "TID 1501: no Tracking Identifier"},
    {"126010/125007/112040", 0, 0, 0, "TID 1501: no Tracking Unique Identifier"},
    {"126010/125007/121071", 0, 0, 0, "TID 1501: no Finding"},
    {"126010/125007/111001", 0, 0, 0, "TID 4019: no Algorithm Name"},
    {"126010/125007/111003", 0, 0, 0, "TID 4019: no Algorithm Version"},
    {"126010/125007/122157", 0, 0, 0, "TID 1501: no Probability"},
    {"126010/125007/121112", 0, 0, 0, "TID 1501: no Source of Measurement"},
    {"126010/125007/121106", 0, 0, 0, "TID 1501: no Comment"},
    {"", TAG_ContentTemplateSequence, 0, 0, "TID 1500: the root does not name its template"},
    {"126010/125007", TAG_ContentTemplateSequence, 0, 0, "TID 1501: a Measurement Group does not name its template"},
    {"", TAG_ConceptNameCodeSequence, 0, 0, "TID 1500: the root is not"},
    {"121049", TAG_RelationshipType, "CS", "CONTAINS", "is not related by HAS CONCEPT MOD"},
    {"121012", TAG_UID, "UI", "1.02", "no usable value"},
    {"121012", TAG_UID, "UI", "1.2", "AIR: the observer's UID"},
    {"126010/125007/112040", TAG_ValueType, "CS", "TEXT", "is not a UIDREF"},
    {"126010/125007/121071", TAG_ConceptCodeSequence, 0, 0, "no usable value"},
    {"126010/125007/122157", TAG_MeasuredValueSequence, 0, 0, "no usable value"},
    {"126010/125007/121106", TAG_TextValue, "UT", "Findings.", "the comment does not say"},
    {"126010/125007/121112", TAG_ReferencedSOPSequence, 0, 0, "no usable value"},
    {"", TAG_PatientName, 0, 0, "PatientName (0010,0010) is missing"},
    {"", TAG_PatientID, 0, 0, "PatientID"},
    {"", TAG_PatientBirthDate, 0, 0, "PatientBirthDate"},
    {"", TAG_PatientSex, 0, 0, "PatientSex"},
    {"", TAG_StudyInstanceUID, 0, 0, "StudyInstanceUID"},
    {"", TAG_StudyInstanceUID, "UI", "1.2.3", "evidence is of another study"},
    {"", TAG_SeriesInstanceUID, "UI", "1.a", "SeriesInstanceUID (0020,000E) is not a valid UID"},
    {"", TAG_SOPInstanceUID, 0, 0, "SOPInstanceUID"},
    {"", TAG_SOPClassUID, "UI", "1.2.840.10008.5.1.4.1.1.88.11", "SOPClassUID"},
    {"", TAG_StudyDate, 0, 0, "StudyDate"},
    {"", TAG_StudyTime, 0, 0, "StudyTime"},
    {"", TAG_StudyID, 0, 0, "StudyID"},
    {"", TAG_AccessionNumber, 0, 0, "AccessionNumber"},
    {"", TAG_ReferringPhysicianName, 0, 0, "ReferringPhysicianName"},
    {"", TAG_Modality, "CS", "CT", "Modality is not SR"},
    {"", TAG_SeriesNumber, 0, 0, "SeriesNumber"},
    {"", TAG_InstanceNumber, "IS", "", "InstanceNumber (0020,0013) is empty"},
    {"", TAG_ReferencedPerformedProcedureStepSequence, 0, 0, "ReferencedPerformedProcedureStepSequence"},
    {"", TAG_PerformedProcedureCodeSequence, 0, 0, "PerformedProcedureCodeSequence"},
    {"", TAG_Manufacturer, 0, 0, "Manufacturer"},
    {"", TAG_ManufacturerModelName, 0, 0, "ManufacturerModelName"},
    {"", TAG_DeviceSerialNumber, 0, 0, "DeviceSerialNumber"},
    {"", TAG_SoftwareVersions, 0, 0, "SoftwareVersions"},
    {"", TAG_ContentDate, 0, 0, "ContentDate"},
    {"", TAG_ContentTime, 0, 0, "ContentTime"},
    {"", TAG_PreliminaryFlag, 0, 0, "PreliminaryFlag"},
    {"", TAG_CompletionFlag, "CS", "PARTIAL", "CompletionFlag"},
    {"", TAG_VerificationFlag, "CS", "VERIFIED", "VerificationFlag"},
    {"", TAG_SeriesDescription, "LO", "Findings", "SeriesDescription does not say"},
    {"", TAG_SpecificCharacterSet, 0, 0, "SpecificCharacterSet"},
    {"", TAG_SpecificCharacterSet, "CS", "ISO_IR 100", "SpecificCharacterSet"},
    {"", TAG_TimezoneOffsetFromUTC, "SH", "+0100", "TimezoneOffsetFromUTC"},
    {"", TAG_ContributingEquipmentSequence, 0, 0, "AIR: no ContributingEquipmentSequence"},
    {"", TAG_CurrentRequestedProcedureEvidenceSequence, 0, 0, "no CurrentRequestedProcedureEvidenceSequence"},
};

/* Not file_write, whose fsync would make hundreds of them slow. */
static void put_file(const char *name, const void *bytes, size_t n)
{
    FILE *f = fopen(name, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void rewrite(const attributes *d)
{
    unsigned char *bytes;
    size_t n;
    err e = {0};
    assert_int_equal(sr_tree_encode(d, &bytes, &n, &e), ERR_OK);
    put_file(other, bytes, n);
    free(bytes);
}

static void refused(const char *says)
{
    err e = {0};
    if (report_sr_lint(other, &e) == ERR_FORMAT && strstr(e.msg, says)) return;
    print_error("expected '%s', got '%s'\n", says, e.msg);
    fail();
}

static void test_lint(void **state)
{
    study_identity t;
    findings f;
    err e = {0};
    char uid[65];
    (void)state;
    fabricate(a_case(2), &t, &f);
    assert_int_equal(report_sr_write(path, &t, &f, f.studies, &at_a_time, uid, &e), ERR_OK);
    for (size_t i = 0; i < sizeof removals / sizeof *removals; i++) {
        attributes *d, *parent;
        size_t at = 0;
        assert_int_equal(sr_tree_read(path, &d, &e), ERR_OK);
        rewrite(d);
        assert_int_equal(report_sr_lint(other, &e), ERR_OK); /* only the removal makes the difference */
        attributes *item = follow(d, removals[i].item, &parent, &at);
        if (removals[i].vr)
            attributes_put_raw(item, removals[i].tag, removals[i].vr, removals[i].text);
        else if (removals[i].tag)
            attributes_remove(item, removals[i].tag);
        else
            while (find_item(
                parent, strrchr(removals[i].item, '/') ? strrchr(removals[i].item, '/') + 1 : removals[i].item, &at))
                attributes_remove_item(parent, TAG_ContentSequence, at);
        rewrite(d);
        refused(removals[i].says);
        attributes_free(d);
    }
    fabricate_fini(&t, &f);
}

/* One reference of many taken from the evidence, from the library, or changed in class. */
static void test_lint_references(void **state)
{
    study_identity t;
    findings f;
    err e = {0};
    char uid[65];
    attributes *d, *parent;
    size_t at;
    (void)state;
    fabricate(a_case(1), &t, &f);
    assert_int_equal(report_sr_write(path, &t, &f, f.studies, &at_a_time, uid, &e), ERR_OK);

    assert_int_equal(sr_tree_read(path, &d, &e), ERR_OK);
    attributes *study = attributes_at(d, TAG_CurrentRequestedProcedureEvidenceSequence, 0);
    attributes *series = attributes_at(study, TAG_ReferencedSeriesSequence, 1);
    assert_int_equal(attributes_items(series, TAG_ReferencedSOPSequence), 100);
    attributes_remove_item(series, TAG_ReferencedSOPSequence, 37);
    rewrite(d);
    refused("missing from the evidence");
    attributes_put_raw(attributes_at(d, TAG_ContributingEquipmentSequence, 0), TAG_DeviceUID, "UI", "");
    rewrite(d);
    refused("AIR: contributing equipment 1 has no DeviceUID");
    attributes_free(d);

    assert_int_equal(sr_tree_read(path, &d, &e), ERR_OK);
    attributes *source = follow(d, "126010/125007/121112", &parent, &at);
    attributes_put(attributes_at(source, TAG_ReferencedSOPSequence, 0), TAG_ReferencedSOPInstanceUID, "UI", "1.2.3");
    rewrite(d);
    refused("a source image is not in the Image Library");
    attributes_free(d);

    assert_int_equal(sr_tree_read(path, &d, &e), ERR_OK);
    attributes *entry = follow(d, "111028/126200/-", &parent, &at);
    attributes_put(attributes_at(entry, TAG_ReferencedSOPSequence, 0), TAG_ReferencedSOPClassUID, "UI", "1.2.3");
    rewrite(d);
    refused("missing from the evidence");
    attributes_free(d);
    fabricate_fini(&t, &f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lint),
        cmocka_unit_test(test_lint_references),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
