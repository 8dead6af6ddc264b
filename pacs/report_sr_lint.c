/* report_sr_lint.c: what IHE AI Results asks of a report and no validator checks, plus what archives and viewers need
 * of its header. Rules are tried in the order of the file; the first that fails is the message. Messages name rules,
 * never values. */
#include "pacs/report_sr_lint.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "pacs/report_sr.h"
#include "pacs/sr_codes.h"
#include "pacs/sr_tree.h"
#include "pacs/uid.h"

static const char *text_of(const attributes *a, uint32_t tag)
{
    const char *t = attributes_text(a, tag);
    return t ? t : "";
}

static bool equal(const attributes *a, uint32_t tag, const char *wanted)
{
    return !strcmp(text_of(a, tag), wanted);
}

static bool valid_uid(const attributes *a, uint32_t tag)
{
    return uid_valid(text_of(a, tag));
}

static bool says_research(const char *text)
{
    const size_t n = strlen(SR_RESEARCH_USE_ONLY);
    for (; *text; text++)
        if (!strncasecmp(text, SR_RESEARCH_USE_ONLY, n)) return true;
    return false;
}

/* --- header ------------------------------------------------------------------------------------------------------- */

static err_code lint_header(const attributes *d, err *e)
{
    static const struct {
        uint32_t tag;
        enum { VALUE, THERE, UID_VALUE } need;
        const char *name;
    } rules[] = {
        {TAG_SOPInstanceUID, UID_VALUE, "SOPInstanceUID"},
        {TAG_StudyInstanceUID, UID_VALUE, "StudyInstanceUID"},
        {TAG_SeriesInstanceUID, UID_VALUE, "SeriesInstanceUID"},
        {TAG_PatientName, THERE, "PatientName"},
        {TAG_PatientID, THERE, "PatientID"},
        {TAG_PatientBirthDate, THERE, "PatientBirthDate"},
        {TAG_PatientSex, THERE, "PatientSex"},
        {TAG_StudyDate, THERE, "StudyDate"},
        {TAG_StudyTime, THERE, "StudyTime"},
        {TAG_ReferringPhysicianName, THERE, "ReferringPhysicianName"},
        {TAG_StudyID, THERE, "StudyID"},
        {TAG_AccessionNumber, THERE, "AccessionNumber"},
        {TAG_SeriesNumber, VALUE, "SeriesNumber"},
        {TAG_InstanceNumber, VALUE, "InstanceNumber"},
        {TAG_ReferencedPerformedProcedureStepSequence, THERE, "ReferencedPerformedProcedureStepSequence"},
        {TAG_PerformedProcedureCodeSequence, THERE, "PerformedProcedureCodeSequence"},
        {TAG_Manufacturer, VALUE, "Manufacturer"},
        {TAG_ManufacturerModelName, VALUE, "ManufacturerModelName"},
        {TAG_DeviceSerialNumber, VALUE, "DeviceSerialNumber"},
        {TAG_SoftwareVersions, VALUE, "SoftwareVersions"},
        {TAG_ContentDate, VALUE, "ContentDate"},
        {TAG_ContentTime, VALUE, "ContentTime"},
        {TAG_PreliminaryFlag, VALUE, "PreliminaryFlag"},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        const char *t = attributes_text(d, rules[i].tag);
        const char *fault = !attributes_has(d, rules[i].tag)                     ? "missing"
                            : rules[i].need == VALUE && !(t && *t)               ? "empty"
                            : rules[i].need == UID_VALUE && !(t && uid_valid(t)) ? "not a valid UID"
                                                                                 : NULL;
        if (fault)
            FAIL(e, FORMAT, "header: %s (%04X,%04X) is %s", rules[i].name, rules[i].tag >> 16, rules[i].tag & 0xFFFF,
                 fault);
    }
    if (!equal(d, TAG_SOPClassUID, SR_SOP_CLASS_COMPREHENSIVE_3D) &&
        !equal(d, TAG_SOPClassUID, SR_SOP_CLASS_COMPREHENSIVE) && !equal(d, TAG_SOPClassUID, SR_SOP_CLASS_ENHANCED))
        FAIL(e, FORMAT, "header: SOPClassUID is not Enhanced, Comprehensive or Comprehensive 3D SR");
    if (attributes_has(d, TAG_SpecificCharacterSet) ? !equal(d, TAG_SpecificCharacterSet, "ISO_IR 192")
                                                    : !attributes_ascii(d))
        FAIL(e, FORMAT, "header: SpecificCharacterSet is not ISO_IR 192");
    if (!equal(d, TAG_Modality, "SR")) FAIL(e, FORMAT, "header: Modality is not SR");
    if (!equal(d, TAG_CompletionFlag, "COMPLETE")) FAIL(e, FORMAT, "header: CompletionFlag is not COMPLETE");
    if (!equal(d, TAG_VerificationFlag, "UNVERIFIED")) FAIL(e, FORMAT, "header: VerificationFlag is not UNVERIFIED");
    if (attributes_has(d, TAG_TimezoneOffsetFromUTC))
        FAIL(e, FORMAT, "header: TimezoneOffsetFromUTC would change the meaning of the copied study time");
    if (!says_research(text_of(d, TAG_SeriesDescription)))
        FAIL(e, FORMAT, "header: SeriesDescription does not say " SR_RESEARCH_USE_ONLY);
    return ERR_OK;
}

/* AIR: each algorithm is a contributing equipment with its own Device UID. */
static err_code lint_equipment(const attributes *d, err *e)
{
    const size_t n = attributes_items(d, TAG_ContributingEquipmentSequence);
    if (n == 0) FAIL(e, FORMAT, "AIR: no ContributingEquipmentSequence (0018,A001)");
    for (size_t i = 0; i < n; i++) {
        const attributes *a = attributes_at(d, TAG_ContributingEquipmentSequence, i);
        if (!attributes_items(a, TAG_PurposeOfReferenceCodeSequence))
            FAIL(e, FORMAT, "AIR: contributing equipment %zu has no purpose", i + 1);
        if (!valid_uid(a, TAG_DeviceUID)) FAIL(e, FORMAT, "AIR: contributing equipment %zu has no DeviceUID", i + 1);
        if (!*text_of(a, TAG_Manufacturer) || !*text_of(a, TAG_ManufacturerModelName) ||
            !*text_of(a, TAG_SoftwareVersions))
            FAIL(e, FORMAT, "AIR: contributing equipment %zu has no manufacturer, model or version", i + 1);
    }
    return ERR_OK;
}

/* --- references ----------------------------------------------------------------------------------------------------
 */

/* A set of (SOP class, SOP instance), sorted by instance. Texts are borrowed from the data set. */
typedef struct {
    const char *sop_class, *sop_uid;
} reference;
typedef struct {
    reference *at; /* (n), owned */
    size_t n, capacity;
} references;

static int by_uid(const void *a, const void *b)
{
    return strcmp(((const reference *)a)->sop_uid, ((const reference *)b)->sop_uid);
}

static err_code add_references(references *r, const attributes *a, const char *where, err *e)
{
    const size_t n = attributes_items(a, TAG_ReferencedSOPSequence);
    if (n == 0) FAIL(e, FORMAT, "%s: no ReferencedSOPSequence (0008,1199)", where);
    for (size_t i = 0; i < n; i++) {
        const attributes *item = attributes_at(a, TAG_ReferencedSOPSequence, i);
        if (!valid_uid(item, TAG_ReferencedSOPClassUID) || !valid_uid(item, TAG_ReferencedSOPInstanceUID))
            FAIL(e, FORMAT, "%s: a reference without valid UIDs", where);
        if (r->n == r->capacity) {
            const size_t capacity = r->capacity ? 2 * r->capacity : 64;
            reference *grown = realloc(r->at, capacity * sizeof *grown);
            if (!grown) FAIL(e, NOMEM, "report: no memory for %zu references", capacity);
            r->at = grown;
            r->capacity = capacity;
        }
        r->at[r->n++] =
            (reference){text_of(item, TAG_ReferencedSOPClassUID), text_of(item, TAG_ReferencedSOPInstanceUID)};
    }
    return ERR_OK;
}

static void sort(references *r)
{
    if (r->n) qsort(r->at, r->n, sizeof *r->at, by_uid);
}

/* Every reference of inner is in outer, with the same SOP class. */
static bool within(const references *inner, const references *outer)
{
    for (size_t i = 0; i < inner->n; i++) {
        const reference *found =
            outer->n ? bsearch(&inner->at[i], outer->at, outer->n, sizeof *outer->at, by_uid) : NULL;
        if (!found || strcmp(found->sop_class, inner->at[i].sop_class)) return false;
    }
    return true;
}

static err_code evidence(const attributes *d, references *out, err *e)
{
    const size_t studies = attributes_items(d, TAG_CurrentRequestedProcedureEvidenceSequence);
    if (studies == 0) FAIL(e, FORMAT, "header: no CurrentRequestedProcedureEvidenceSequence (0040,A375)");
    for (size_t i = 0; i < studies; i++) {
        const attributes *study = attributes_at(d, TAG_CurrentRequestedProcedureEvidenceSequence, i);
        if (!equal(study, TAG_StudyInstanceUID, text_of(d, TAG_StudyInstanceUID)))
            FAIL(e, FORMAT, "header: the evidence is of another study");
        for (size_t k = 0; k < attributes_items(study, TAG_ReferencedSeriesSequence); k++) {
            const attributes *series = attributes_at(study, TAG_ReferencedSeriesSequence, k);
            if (!valid_uid(series, TAG_SeriesInstanceUID))
                FAIL(e, FORMAT, "header: evidence series %zu has no valid UID", k + 1);
            TRY(add_references(out, series, "evidence", e));
        }
    }
    sort(out);
    return ERR_OK;
}

/* --- content items -------------------------------------------------------------------------------------------------
 */

static bool complete_code(const attributes *a, uint32_t sequence)
{
    const attributes *c = attributes_at(a, sequence, 0);
    return c && *text_of(c, TAG_CodeValue) && *text_of(c, TAG_CodingSchemeDesignator) && *text_of(c, TAG_CodeMeaning);
}

static bool is_code(const attributes *a, uint32_t sequence, sr_code c)
{
    const attributes *i = attributes_at(a, sequence, 0);
    return i && equal(i, TAG_CodeValue, c.value) && equal(i, TAG_CodingSchemeDesignator, c.scheme);
}

/* The next child at or after *at with that concept; *at is moved behind it. NULL: none. */
static attributes *next_child(const attributes *parent, sr_code concept, size_t *at)
{
    const size_t n = attributes_items(parent, TAG_ContentSequence);
    while (*at < n) {
        attributes *i = attributes_at(parent, TAG_ContentSequence, (*at)++);
        if (is_code(i, TAG_ConceptNameCodeSequence, concept)) return i;
    }
    return NULL;
}

static bool probability(const attributes *item)
{
    const attributes *v = attributes_at(item, TAG_MeasuredValueSequence, 0);
    const char *t = text_of(v, TAG_NumericValue);
    char *end;
    const double p = strtod(t, &end);
    return *t && !*end && p >= 0 && p <= 1 && is_code(v, TAG_MeasurementUnitsCodeSequence, SR_NO_UNITS);
}

static bool has_value(const attributes *item, const char *type)
{
    if (!strcmp(type, "TEXT")) return *text_of(item, TAG_TextValue) != 0;
    if (!strcmp(type, "CODE")) return complete_code(item, TAG_ConceptCodeSequence);
    if (!strcmp(type, "UIDREF")) return valid_uid(item, TAG_UID);
    if (!strcmp(type, "NUM")) return probability(item);
    if (!strcmp(type, "IMAGE")) return attributes_items(item, TAG_ReferencedSOPSequence) == 1;
    if (!strcmp(type, "CONTAINER")) return *text_of(item, TAG_ContinuityOfContent) != 0;
    return true;
}

/* The item of that concept must be there, once or more, each with this relationship, type and a value. *out: the first.
 */
static err_code need(const attributes *parent, const char *rule, const char *relationship, const char *type,
                     sr_code concept, const attributes **out, err *e)
{
    size_t at = 0;
    const attributes *i = next_child(parent, concept, &at);
    if (!i) FAIL(e, FORMAT, "%s: no %s (%s)", rule, concept.meaning, concept.value);
    if (out) *out = i;
    for (; i; i = next_child(parent, concept, &at)) {
        if (!equal(i, TAG_ValueType, type))
            FAIL(e, FORMAT, "%s: %s (%s) is not a %s", rule, concept.meaning, concept.value, type);
        if (!equal(i, TAG_RelationshipType, relationship))
            FAIL(e, FORMAT, "%s: %s (%s) is not related by %s", rule, concept.meaning, concept.value, relationship);
        if (!has_value(i, type))
            FAIL(e, FORMAT, "%s: %s (%s) has no usable value", rule, concept.meaning, concept.value);
    }
    return ERR_OK;
}

static bool has_template(const attributes *container, const char *id)
{
    const attributes *t = attributes_at(container, TAG_ContentTemplateSequence, 0);
    return t && equal(t, TAG_MappingResource, "DCMR") && equal(t, TAG_TemplateIdentifier, id);
}

/* Coded names and values anywhere are complete, IMAGE items go into out. */
static err_code walk(const attributes *item, references *out, int depth, err *e)
{
    if (depth > SR_TREE_DEPTH_MAX) FAIL(e, LIMIT, "report: content nested deeper than %d", SR_TREE_DEPTH_MAX);
    const size_t n = attributes_items(item, TAG_ContentSequence);
    for (size_t k = 0; k < n; k++) {
        const attributes *child = attributes_at(item, TAG_ContentSequence, k);
        const bool is_image = equal(child, TAG_ValueType, "IMAGE");
        if (attributes_has(child, TAG_ConceptNameCodeSequence) ? !complete_code(child, TAG_ConceptNameCodeSequence)
                                                               : !is_image)
            FAIL(e, FORMAT, "content: an item has no complete concept name");
        if (is_image) TRY(add_references(out, child, "content", e));
        TRY(walk(child, out, depth + 1, e));
    }
    return ERR_OK;
}

/* --- content -------------------------------------------------------------------------------------------------------
 */

static err_code lint_context(const attributes *d, err *e)
{
    const attributes *i;
    if (!equal(d, TAG_ValueType, "CONTAINER") ||
        !is_code(d, TAG_ConceptNameCodeSequence, SR_IMAGING_MEASUREMENT_REPORT))
        FAIL(e, FORMAT, "TID 1500: the root is not an Imaging Measurement Report (126000)");
    if (!has_template(d, "1500")) FAIL(e, FORMAT, "TID 1500: the root does not name its template");
    TRY(need(d, "TID 1204", "HAS CONCEPT MOD", "CODE", SR_LANGUAGE, NULL, e));
    TRY(need(d, "TID 1002", "HAS OBS CONTEXT", "CODE", SR_OBSERVER_TYPE, &i, e));
    if (!is_code(i, TAG_ConceptCodeSequence, SR_DEVICE)) FAIL(e, FORMAT, "TID 1002: the observer is not a device");
    TRY(need(d, "TID 1004", "HAS OBS CONTEXT", "UIDREF", SR_DEVICE_UID, &i, e));
    bool known = false;
    for (size_t k = 0; k < attributes_items(d, TAG_ContributingEquipmentSequence); k++)
        known |= equal(attributes_at(d, TAG_ContributingEquipmentSequence, k), TAG_DeviceUID, text_of(i, TAG_UID));
    if (!known) FAIL(e, FORMAT, "AIR: the observer's UID is not that of a contributing equipment");
    TRY(need(d, "TID 1004", "HAS OBS CONTEXT", "TEXT", SR_DEVICE_NAME, NULL, e));
    TRY(need(d, "TID 1004", "HAS OBS CONTEXT", "TEXT", SR_DEVICE_MANUFACTURER, NULL, e));
    return need(d, "TID 1500", "HAS CONCEPT MOD", "CODE", SR_PROCEDURE_REPORTED, NULL, e);
}

static err_code lint_library(const attributes *d, references *out, err *e)
{
    const attributes *library, *group;
    size_t at = 0;
    TRY(need(d, "TID 1500", "CONTAINS", "CONTAINER", SR_IMAGE_LIBRARY, &library, e));
    TRY(need(library, "TID 1600", "CONTAINS", "CONTAINER", SR_IMAGE_LIBRARY_GROUP, NULL, e));
    while ((group = next_child(library, SR_IMAGE_LIBRARY_GROUP, &at))) {
        TRY(need(group, "TID 1602", "HAS ACQ CONTEXT", "CODE", SR_MODALITY, NULL, e));
        const size_t before = out->n;
        TRY(walk(group, out, 0, e));
        if (out->n == before) FAIL(e, FORMAT, "TID 1601: an Image Library Group (126200) without an IMAGE");
    }
    sort(out);
    return ERR_OK;
}

static err_code lint_group(const attributes *g, const references *library, err *e)
{
    const char *const rule = "TID 1501", *const algorithm = "TID 4019";
    const attributes *i;
    size_t at = 0;
    if (!has_template(g, "1501")) FAIL(e, FORMAT, "TID 1501: a Measurement Group does not name its template");
    TRY(need(g, rule, "HAS OBS CONTEXT", "TEXT", SR_TRACKING_ID, NULL, e));
    TRY(need(g, rule, "HAS OBS CONTEXT", "UIDREF", SR_TRACKING_UID, NULL, e));
    TRY(need(g, rule, "CONTAINS", "CODE", SR_FINDING, &i, e));
    const bool without = is_code(i, TAG_ConceptCodeSequence, SR_WITHOUT_FINDINGS);
    TRY(need(g, algorithm, "HAS CONCEPT MOD", "TEXT", SR_ALGORITHM_NAME, NULL, e));
    TRY(need(g, algorithm, "HAS CONCEPT MOD", "TEXT", SR_ALGORITHM_VERSION, NULL, e));
    if (!without) TRY(need(g, rule, "CONTAINS", "NUM", SR_PROBABILITY, NULL, e));
    if (!without) TRY(need(g, rule, "CONTAINS", "IMAGE", SR_SOURCE_OF_MEASUREMENT, NULL, e));
    TRY(need(g, rule, "CONTAINS", "TEXT", SR_COMMENT, &i, e));
    if (!says_research(text_of(i, TAG_TextValue)))
        FAIL(e, FORMAT, "TID 1501: the comment does not say " SR_RESEARCH_USE_ONLY);
    references source = {0};
    err_code rc = ERR_OK;
    while (!rc && (i = next_child(g, SR_SOURCE_OF_MEASUREMENT, &at))) rc = add_references(&source, i, "content", e);
    const bool listed = within(&source, library);
    free(source.at);
    if (!rc && !listed) FAIL(e, FORMAT, "TID 1501: a source image is not in the Image Library");
    return rc;
}

static err_code lint_measurements(const attributes *d, const references *library, err *e)
{
    const attributes *measurements, *group;
    size_t at = 0;
    TRY(need(d, "TID 1500", "CONTAINS", "CONTAINER", SR_IMAGING_MEASUREMENTS, &measurements, e));
    TRY(need(measurements, "TID 1500", "CONTAINS", "CONTAINER", SR_MEASUREMENT_GROUP, NULL, e));
    while ((group = next_child(measurements, SR_MEASUREMENT_GROUP, &at))) TRY(lint_group(group, library, e));
    return ERR_OK;
}

err_code report_sr_lint_attributes(const attributes *d, err *e)
{
    references listed = {0}, library = {0}, used = {0};
    err_code rc;
    TRY_DONE(rc, lint_header(d, e));
    TRY_DONE(rc, lint_equipment(d, e));
    TRY_DONE(rc, lint_context(d, e));
    TRY_DONE(rc, lint_library(d, &library, e));
    TRY_DONE(rc, lint_measurements(d, &library, e));
    TRY_DONE(rc, evidence(d, &listed, e));
    TRY_DONE(rc, walk(d, &used, 0, e));
    if (!within(&used, &listed))
        FAIL_DONE(rc, e, FORMAT, "header: an image of the content is missing from the evidence (0040,A375)");
done:
    free(listed.at);
    free(library.at);
    free(used.at);
    return rc;
}

err_code report_sr_lint(const char *path, err *e)
{
    attributes *d;
    TRY(sr_tree_read(path, &d, e));
    const err_code rc = report_sr_lint_attributes(d, e);
    attributes_free(d);
    return rc;
}
