/* report_sr.c: see report_sr.h. The data set is built as a C tree in the order of PS3.3 A.35.13 (Comprehensive 3D SR)
 * and PS3.16 TID 1500; sr_tree turns it into bytes. */
#include "pacs/report_sr.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "pacs/attributes.h"
#include "pacs/report_sr_lint.h"
#include "pacs/sr_codes.h"
#include "pacs/sr_tree.h"
#include "pacs/uid.h"

enum { CLASSES_LISTED = 20, DATETIME = 15 };
#define SERIES_NUMBER "9900" /* behind what scanners use */

/* One report being made. */
typedef struct {
    const study_identity *study;
    const findings *f;
    const study_finding *s;
    const char *root; /* organisation root or NULL */
    const char *sop_class;
    const study_instance **input; /* (n), referencable, sorted, owned */
    size_t n, left_out;
    char device_uid[UID_MAX], series_uid[UID_MAX];
} report;

/* --- content items ------------------------------------------------------------------------------------------------ */

static void put_code(attributes *a, uint32_t sequence, sr_code c)
{
    attributes *i = attributes_item(a, sequence);
    attributes_put(i, TAG_CodeValue, "SH", c.value);
    attributes_put(i, TAG_CodingSchemeDesignator, "SH", c.scheme);
    attributes_put(i, TAG_CodeMeaning, "LO", c.meaning);
}

/* concept NULL: an item without a name (TID 1601 row 1). */
static attributes *add(attributes *parent, const char *relationship, const char *type, const sr_code *concept)
{
    attributes *i = attributes_item(parent, TAG_ContentSequence);
    attributes_put(i, TAG_RelationshipType, "CS", relationship);
    attributes_put(i, TAG_ValueType, "CS", type);
    if (concept) put_code(i, TAG_ConceptNameCodeSequence, *concept);
    return i;
}

static attributes *add_container(attributes *parent, sr_code concept, const char *template_id)
{
    attributes *i = add(parent, "CONTAINS", "CONTAINER", &concept);
    attributes_put(i, TAG_ContinuityOfContent, "CS", "SEPARATE");
    if (template_id) {
        attributes *t = attributes_item(i, TAG_ContentTemplateSequence);
        attributes_put(t, TAG_MappingResource, "CS", "DCMR");
        attributes_put(t, TAG_TemplateIdentifier, "CS", template_id);
    }
    return i;
}

static void add_text(attributes *parent, const char *relationship, sr_code concept, const char *text)
{
    attributes_put(add(parent, relationship, "TEXT", &concept), TAG_TextValue, "UT", text);
}

static void add_code(attributes *parent, const char *relationship, sr_code concept, sr_code value)
{
    put_code(add(parent, relationship, "CODE", &concept), TAG_ConceptCodeSequence, value);
}

static void add_uid(attributes *parent, const char *relationship, sr_code concept, const char *uid)
{
    attributes_put(add(parent, relationship, "UIDREF", &concept), TAG_UID, "UI", uid);
}

static void add_num(attributes *parent, sr_code concept, double value, sr_code unit)
{
    char decimal[17]; /* DS */
    snprintf(decimal, sizeof decimal, "%.4f", value);
    attributes *v = attributes_item(add(parent, "CONTAINS", "NUM", &concept), TAG_MeasuredValueSequence);
    attributes_put(v, TAG_NumericValue, "DS", decimal);
    put_code(v, TAG_MeasurementUnitsCodeSequence, unit);
}

static void put_reference(attributes *a, const study_instance *i, int frame)
{
    attributes *r = attributes_item(a, TAG_ReferencedSOPSequence);
    attributes_put(r, TAG_ReferencedSOPClassUID, "UI", i->sop_class);
    attributes_put(r, TAG_ReferencedSOPInstanceUID, "UI", i->sop_uid);
    if (frame && i->frames > 1) { /* only of multi-frame images: PS3.3 10.8 */
        char number[13];
        snprintf(number, sizeof number, "%d", frame);
        attributes_put(r, TAG_ReferencedFrameNumber, "IS", number);
    }
}

/* --- codes -------------------------------------------------------------------------------------------------------- */

/* CID 33 */
static sr_code modality_code(const char *modality)
{
    static const sr_code known[] = {
        {"CR", "DCM", "Computed Radiography"},
        {"CT", "DCM", "Computed Tomography"},
        {"DX", "DCM", "Digital Radiography"},
        {"ES", "DCM", "Endoscopy"},
        {"GM", "DCM", "General Microscopy"},
        {"IO", "DCM", "Intra-oral Radiography"},
        {"IVUS", "DCM", "Intravascular Ultrasound"},
        {"MG", "DCM", "Mammography"},
        {"MR", "DCM", "Magnetic Resonance"},
        {"NM", "DCM", "Nuclear Medicine"},
        {"OCT", "DCM", "Optical Coherence Tomography"},
        {"OP", "DCM", "Ophthalmic Photography"},
        {"OPT", "DCM", "Ophthalmic Tomography"},
        {"PT", "DCM", "Positron emission tomography"},
        {"PX", "DCM", "Panoramic X-Ray"},
        {"RF", "DCM", "Radiofluoroscopy"},
        {"RG", "DCM", "Radiographic imaging"},
        {"SM", "DCM", "Slide Microscopy"},
        {"US", "DCM", "Ultrasound"},
        {"XA", "DCM", "X-Ray Angiography"},
        {"XC", "DCM", "External-camera Photography"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].value, modality)) return known[i];
    return (sr_code){"OT", "DCM", "Other"};
}

/* The code that came with the images, else the one of CID 100 that says no more than the modality does. */
static sr_code procedure_code(const image_header *h)
{
    static const struct {
        const char *modality;
        sr_code code;
    } by_modality[] = {
        {"CT", {"25045-6", "LN", "CT unspecified body region"}},
        {"MR", {"25056-3", "LN", "MRI unspecified body region"}},
        {"NM", {"49118-3", "LN", "NM unspecified body region"}},
        {"PT", {"44136-0", "LN", "PET unspecified body region"}},
    };
    if (h->procedure_code[0] && h->procedure_scheme[0] && h->procedure_meaning[0])
        return (sr_code){h->procedure_code, h->procedure_scheme, h->procedure_meaning};
    for (size_t i = 0; i < sizeof by_modality / sizeof *by_modality; i++)
        if (!strcmp(by_modality[i].modality, h->modality)) return by_modality[i].code;
    return (sr_code){"363679005", "SCT", "Imaging procedure"};
}

static sr_code label_of(const report *r, const finding *one)
{
    const label_code *l = &r->f->labels[one->label];
    return (sr_code){l->value, l->scheme, l->meaning};
}

/* --- input -------------------------------------------------------------------------------------------------------- */

static int by_series_and_uid(const void *a, const void *b)
{
    const study_instance *x = *(const study_instance *const *)a, *y = *(const study_instance *const *)b;
    int c = uid_compare(x->series_uid, y->series_uid);
    return c ? c : uid_compare(x->sop_uid, y->sop_uid);
}

static bool referencable(const study_instance *i)
{
    return uid_valid(i->series_uid) && uid_valid(i->sop_class) && uid_valid(i->sop_uid);
}

static err_code collect(report *r, err *e)
{
    const study_identity *t = r->study;
    r->input = calloc(t->n_instances + 1, sizeof(study_instance *));
    if (!r->input) FAIL(e, NOMEM, "report: no memory for %zu instances", t->n_instances);
    for (size_t i = 0; i < t->n_instances; i++)
        if (referencable(&t->instances[i])) r->input[r->n++] = &t->instances[i];
    r->left_out = t->n_instances - r->n;
    if (r->n == 0) FAIL(e, FORMAT, "study: none of its %zu instances has valid UIDs", t->n_instances);
    qsort(r->input, r->n, sizeof(study_instance *), by_series_and_uid);
    size_t kept = 1;
    for (size_t i = 1; i < r->n; i++)
        if (by_series_and_uid(&r->input[kept - 1], &r->input[i])) r->input[kept++] = r->input[i];
    r->n = kept;
    return ERR_OK;
}

static const study_instance *evidence_instance(const report *r, const finding_evidence *v)
{
    for (size_t i = 0; i < r->n; i++)
        if (!strcmp(r->input[i]->instance_key, v->instance_key)) return r->input[i];
    return NULL;
}

/* The grade at which the probabilities, added up from the lowest, reach a half. */
static int median(const double *p, int n)
{
    double below = 0;
    for (int k = 0; k + 1 < n; k++)
        if ((below += p[k]) >= 0.5) return k;
    return n - 1;
}

/* What is named must be what the probabilities say. */
static err_code check_finding(const findings *f, const study_finding *s, int i, err *e)
{
    const int label = s->found[i].label;
    if (label < 0 || label >= f->n_labels) FAIL(e, FORMAT, "finding: label %d of %d", label, f->n_labels);
    for (int k = 0; k < f->n_labels && f->task == TASK_MULTICLASS; k++)
        if (s->probability[k] > s->probability[label])
            FAIL(e, CONFLICT, "finding: label %d is more probable than the one named", k);
    if (f->task == TASK_ORDINAL && label != median(s->probability, f->n_labels))
        FAIL(e, CONFLICT, "finding: label %d is not the median grade", label);
    if (f->task == TASK_MULTILABEL && s->probability[label] < 0.5)
        FAIL(e, CONFLICT, "finding: label %d has a probability below 0.5", label);
    for (int k = 0; k < i; k++)
        if (s->found[k].label == label) FAIL(e, CONFLICT, "finding: label %d is there twice", label);
    const label_code *l = &f->labels[label];
    if (!l->value[0] || !l->scheme[0] || !l->meaning[0]) FAIL(e, FORMAT, "finding: label %d has no code", label);
    return ERR_OK;
}

static err_code check_findings(const findings *f, const study_finding *s, err *e)
{
    if (!f->algorithm[0] || !f->version[0] || !f->model_hash[0])
        FAIL(e, FORMAT, "findings: the model has no name, version or hash");
    for (int i = 0; i < f->n_labels; i++)
        if (!(s->probability[i] >= 0 && s->probability[i] <= 1))
            FAIL(e, NUMERIC, "finding: the probability of label %d is not in [0,1]", i);
    if (f->task != TASK_MULTILABEL && s->n_found != 1)
        FAIL(e, FORMAT, "finding: %d of them where there is one", s->n_found);
    for (int i = 0; i < s->n_found; i++) TRY(check_finding(f, s, i, e));
    for (int k = 0; k < f->n_labels && f->task == TASK_MULTILABEL; k++) {
        bool named = false;
        for (int i = 0; i < s->n_found; i++) named |= s->found[i].label == k;
        if (!named && s->probability[k] >= 0.5) FAIL(e, CONFLICT, "finding: label %d is there and not named", k);
    }
    return ERR_OK;
}

/* PatientID decides whose report this is: it is copied as it is or not at all. */
static err_code check_identity(const image_header *h, err *e)
{
    if (h->format != IMAGE_DICOM) FAIL(e, UNSUPPORTED, "study: not DICOM, so there is no archive to report to");
    if (!uid_valid(h->study_uid)) FAIL(e, FORMAT, "study: StudyInstanceUID (0020,000D) is not a valid UID");
    char *legal = attributes_legal("LO", h->patient_id);
    if (!legal) FAIL(e, NOMEM, "report: no memory");
    bool same = !strcmp(legal, h->patient_id);
    free(legal);
    if (!same) FAIL(e, FORMAT, "study: PatientID (0010,0020) has characters that its VR does not allow");
    return ERR_OK;
}

static err_code check_evidence(const report *r, const finding *one, err *e)
{
    if (one->n_evidence < 1) FAIL(e, CONFLICT, "finding: no frame speaks for it");
    for (int i = 0; i < one->n_evidence; i++) {
        const finding_evidence *v = &one->evidence[i];
        const study_instance *instance = evidence_instance(r, v);
        if (!instance) FAIL(e, CONFLICT, "finding: evidence %d is not a referencable instance of the study", i + 1);
        int frames = instance->frames > 1 ? instance->frames : 1;
        if (v->frame < 1 || v->frame > frames)
            FAIL(e, CONFLICT, "finding: evidence %d is frame %d of %d", i + 1, v->frame, frames);
    }
    return ERR_OK;
}

static err_code derive_uids(report *r, err *e)
{
    const char *study = r->study->header.study_uid, *model = r->f->model_hash;
    TRY(uid_derive(r->device_uid, r->root, e, "device", model, NULL));
    return uid_derive(r->series_uid, r->root, e, "series", RADAPT_VERSION, study, model, NULL);
}

/* --- content ------------------------------------------------------------------------------------------------------ */

typedef struct {
    double probability;
    int label;
} ranked;

static int by_probability(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->probability != y->probability) return x->probability > y->probability ? -1 : 1;
    return x->label - y->label;
}

/* The comment of every finding: malloc'ed, NULL out of memory. */
static char *comment(const report *r)
{
    const int n = r->f->n_labels;
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    ranked *order = calloc((size_t)n, sizeof *order);
    if (!out || !order) {
        if (out) fclose(out);
        free(text);
        free(order);
        return NULL;
    }
    for (int i = 0; i < n; i++) order[i] = (ranked){r->s->probability[i], i};
    qsort(order, (size_t)n, sizeof *order, by_probability);
    fprintf(out, "Research use only. Not for diagnosis or treatment. ");
    if (r->f->task == TASK_MULTILABEL)
        fprintf(out,
                "Each of %d %s was looked for on its own in the study as a whole; those of probability 0.5 and more "
                "are findings",
                n, n == 1 ? "label" : "labels");
    else
        fprintf(out, "The finding is the %s of %d %s for the study as a whole",
                r->f->task == TASK_ORDINAL ? "median" : "most probable", n,
                r->f->task == TASK_ORDINAL ? "grades"
                : n == 1                   ? "class"
                                           : "classes");
    fprintf(out, "; %d %s read. Probabilities: ", r->s->frames, r->s->frames == 1 ? "frame was" : "frames were");
    const int listed = n > CLASSES_LISTED ? CLASSES_LISTED : n;
    double rest = 0;
    for (int i = listed; i < n; i++) rest += order[i].probability;
    for (int i = 0; i < listed; i++)
        fprintf(out, "%s%s %.4f", i ? "; " : "", r->f->labels[order[i].label].meaning, order[i].probability);
    if (n > listed && r->f->task == TASK_MULTILABEL)
        fprintf(out, "; %d more, each %.4f at most", n - listed, order[listed].probability);
    else if (n > listed)
        fprintf(out, "; %d more, together %.4f", n - listed, rest);
    fprintf(out, r->s->n_found ? ". Source images: most influential first." : ".");
    if (r->left_out)
        fprintf(out, " %zu %s of the study cannot be referenced: not valid UIDs.", r->left_out,
                r->left_out == 1 ? "instance" : "instances");
    free(order);
    bool bad = ferror(out);
    if (fclose(out) || bad) {
        free(text);
        return NULL;
    }
    return text;
}

/* TID 1204, 1002, 1004 and TID 1500 row 4 */
static void put_context(const report *r, attributes *d)
{
    char name[128], serial[17];
    snprintf(name, sizeof name, "Research use only: %s", r->f->algorithm); /* first: viewers cut long names */
    snprintf(serial, sizeof serial, "%.16s", r->f->model_hash);
    add_code(d, "HAS CONCEPT MOD", SR_LANGUAGE, SR_ENGLISH_US);
    add_code(d, "HAS OBS CONTEXT", SR_OBSERVER_TYPE, SR_DEVICE);
    add_uid(d, "HAS OBS CONTEXT", SR_DEVICE_UID, r->device_uid);
    add_text(d, "HAS OBS CONTEXT", SR_DEVICE_NAME, name);
    add_text(d, "HAS OBS CONTEXT", SR_DEVICE_MANUFACTURER, "radapt");
    add_text(d, "HAS OBS CONTEXT", SR_DEVICE_MODEL, r->f->algorithm);
    add_text(d, "HAS OBS CONTEXT", SR_DEVICE_SERIAL, serial);
    add_code(d, "HAS CONCEPT MOD", SR_PROCEDURE_REPORTED, procedure_code(&r->study->header));
}

/* TID 1600: a group per series, for images of a series share their modality (TID 1602 row 1). */
static void put_library(const report *r, attributes *d)
{
    attributes *library = add_container(d, SR_IMAGE_LIBRARY, NULL), *group = NULL;
    for (size_t i = 0; i < r->n; i++) {
        if (i == 0 || strcmp(r->input[i - 1]->series_uid, r->input[i]->series_uid)) {
            group = add_container(library, SR_IMAGE_LIBRARY_GROUP, NULL);
            add_code(group, "HAS ACQ CONTEXT", SR_MODALITY, modality_code(r->input[i]->modality));
        }
        put_reference(add(group, "CONTAINS", "IMAGE", NULL), r->input[i], 0);
    }
}

/* TID 1501, in the order of its rows, of the finding `number` from 1; one NULL: there is none. */
static err_code put_finding(const report *r, attributes *measurements, const finding *one, int number,
                            const char *words, err *e)
{
    const sr_code what = one ? label_of(r, one) : SR_WITHOUT_FINDINGS;
    char uid[UID_MAX], name[32], parameters[sizeof r->f->parameters + HASH_HEX + 16];
    TRY(uid_derive(uid, r->root, e, "tracking", r->study->header.study_uid, r->f->model_hash, what.scheme, what.value,
                   NULL));
    snprintf(name, sizeof name, "Study finding %d", number);
    snprintf(parameters, sizeof parameters, "model %s%s%s", r->f->model_hash, r->f->parameters[0] ? "; " : "",
             r->f->parameters);
    attributes *g = add_container(measurements, SR_MEASUREMENT_GROUP, "1501");
    add_text(g, "HAS OBS CONTEXT", SR_TRACKING_ID, one ? name : "Study without findings");
    add_uid(g, "HAS OBS CONTEXT", SR_TRACKING_UID, uid);
    add_code(g, "CONTAINS", SR_FINDING, what);
    add_text(g, "HAS CONCEPT MOD", SR_ALGORITHM_NAME, r->f->algorithm); /* TID 4019 */
    add_text(g, "HAS CONCEPT MOD", SR_ALGORITHM_VERSION, r->f->version);
    add_text(g, "HAS CONCEPT MOD", SR_ALGORITHM_PARAMETERS, parameters);
    if (one) add_num(g, SR_PROBABILITY, r->s->probability[one->label], SR_NO_UNITS);
    for (int i = 0; one && i < one->n_evidence; i++) {
        const finding_evidence *v = &one->evidence[i];
        sr_code source = SR_SOURCE_OF_MEASUREMENT;
        put_reference(add(g, "CONTAINS", "IMAGE", &source), evidence_instance(r, v), v->frame);
    }
    add_text(g, "CONTAINS", SR_COMMENT, words);
    return ERR_OK;
}

static err_code put_content(const report *r, attributes *d, const char *words, err *e)
{
    attributes_put(d, TAG_ValueType, "CS", "CONTAINER");
    put_code(d, TAG_ConceptNameCodeSequence, SR_IMAGING_MEASUREMENT_REPORT);
    attributes_put(d, TAG_ContinuityOfContent, "CS", "SEPARATE");
    attributes *t = attributes_item(d, TAG_ContentTemplateSequence);
    attributes_put(t, TAG_MappingResource, "CS", "DCMR");
    attributes_put(t, TAG_TemplateIdentifier, "CS", "1500");
    put_context(r, d);
    put_library(r, d);
    attributes *measurements = add_container(d, SR_IMAGING_MEASUREMENTS, NULL);
    for (int i = 0; i < r->s->n_found; i++) TRY(put_finding(r, measurements, &r->s->found[i], i + 1, words, e));
    return r->s->n_found ? ERR_OK : put_finding(r, measurements, NULL, 1, words, e);
}

/* --- header ------------------------------------------------------------------------------------------------------- */

/* PS3.3 C.7.1.1, C.7.2.1: Type 2 attributes are there even when empty. */
static void put_patient_and_study(const image_header *h, attributes *d)
{
    const bool known_sex = !strcmp(h->patient_sex, "M") || !strcmp(h->patient_sex, "F") || !strcmp(h->patient_sex, "O");
    attributes_put(d, TAG_PatientName, "PN", h->patient_name);
    attributes_put(d, TAG_PatientID, "LO", h->patient_id);
    if (h->patient_id_issuer[0]) attributes_put(d, TAG_IssuerOfPatientID, "LO", h->patient_id_issuer);
    attributes_put(d, TAG_PatientBirthDate, "DA", h->patient_birth_date);
    attributes_put(d, TAG_PatientSex, "CS", known_sex ? h->patient_sex : "");
    attributes_put(d, TAG_StudyInstanceUID, "UI", h->study_uid);
    attributes_put(d, TAG_StudyDate, "DA", h->study_date);
    attributes_put(d, TAG_StudyTime, "TM", h->study_time);
    attributes_put(d, TAG_ReferringPhysicianName, "PN", h->referring_physician);
    attributes_put(d, TAG_StudyID, "SH", h->study_id);
    attributes_put(d, TAG_AccessionNumber, "SH", h->accession);
    if (h->study_description[0]) attributes_put(d, TAG_StudyDescription, "LO", h->study_description);
}

static void put_equipment(const report *r, attributes *a, const char *software)
{
    char serial[17];
    snprintf(serial, sizeof serial, "%.16s", r->f->model_hash);
    attributes_put(a, TAG_Manufacturer, "LO", "radapt");
    attributes_put(a, TAG_ManufacturerModelName, "LO", r->f->algorithm);
    attributes_put(a, TAG_DeviceSerialNumber, "LO", serial);
    attributes_put(a, TAG_SoftwareVersions, "LO", software);
}

/* PS3.3 C.17.1, C.7.5.2, C.17.2, C.12.1, without times and SOP Instance UID. */
static void put_document(const report *r, attributes *d)
{
    attributes_put(d, TAG_SOPClassUID, "UI", r->sop_class);
    attributes_put(d, TAG_Modality, "CS", "SR");
    attributes_put(d, TAG_SeriesInstanceUID, "UI", r->series_uid);
    attributes_put(d, TAG_SeriesNumber, "IS", SERIES_NUMBER);
    attributes_put(d, TAG_SeriesDescription, "LO", "AI findings, " SR_RESEARCH_USE_ONLY);
    attributes_sequence(d, TAG_ReferencedPerformedProcedureStepSequence);
    put_equipment(r, d, "radapt " RADAPT_VERSION);
    attributes_put(d, TAG_InstanceNumber, "IS", "1");
    attributes_put(d, TAG_CompletionFlag, "CS", "COMPLETE");
    attributes_put(d, TAG_VerificationFlag, "CS", "UNVERIFIED");
    attributes_put(d, TAG_PreliminaryFlag, "CS", "FINAL");
    attributes_sequence(d, TAG_PerformedProcedureCodeSequence);

    attributes *algorithm = attributes_item(d, TAG_ContributingEquipmentSequence);
    put_code(algorithm, TAG_PurposeOfReferenceCodeSequence, SR_PROCESSING_EQUIPMENT);
    put_equipment(r, algorithm, r->f->version);
    attributes_put(algorithm, TAG_DeviceUID, "UI", r->device_uid);
    attributes_put(algorithm, TAG_ContributionDescription, "ST", "Classification of the study, " SR_RESEARCH_USE_ONLY);

    for (int i = 0; i < r->s->n_found; i++) {
        const char *scheme = label_of(r, &r->s->found[i]).scheme;
        bool known = strncmp(scheme, "99", 2) != 0; /* private: PS3.16 8.2 */
        for (int k = 0; k < i; k++) known |= !strcmp(label_of(r, &r->s->found[k]).scheme, scheme);
        if (known) continue;
        attributes *item = attributes_item(d, TAG_CodingSchemeIdentificationSequence);
        attributes_put(item, TAG_CodingSchemeDesignator, "SH", scheme);
        attributes_put(item, TAG_CodingSchemeName, "ST", "Labels of the training table");
    }
}

/* PS3.3 C.17.2: every instance that the tree refers to, by study and series. */
static void put_evidence(const report *r, attributes *d)
{
    attributes *study = attributes_item(d, TAG_CurrentRequestedProcedureEvidenceSequence), *series = NULL;
    attributes_put(study, TAG_StudyInstanceUID, "UI", r->study->header.study_uid);
    for (size_t i = 0; i < r->n; i++) {
        if (i == 0 || strcmp(r->input[i - 1]->series_uid, r->input[i]->series_uid)) {
            series = attributes_item(study, TAG_ReferencedSeriesSequence);
            attributes_put(series, TAG_SeriesInstanceUID, "UI", r->input[i]->series_uid);
        }
        put_reference(series, r->input[i], 0);
    }
}

/* After the time is known; datetime is YYYYMMDDHHMMSS. */
static void put_times(attributes *d, const char *datetime)
{
    char date[9];
    snprintf(date, sizeof date, "%.8s", datetime);
    attributes_put(d, TAG_ContentDate, "DA", date);
    attributes_put(d, TAG_ContentTime, "TM", datetime + 8);
    attributes_put(d, TAG_InstanceCreationDate, "DA", date);
    attributes_put(d, TAG_InstanceCreationTime, "TM", datetime + 8);
    attributes_put(attributes_at(d, TAG_ContributingEquipmentSequence, 0), TAG_ContributionDateTime, "DT", datetime);
}

static err_code content_time(const char *wanted, char out[DATETIME], err *e)
{
    if (!wanted) {
        time_t now = time(NULL);
        struct tm local;
        if (!localtime_r(&now, &local) || strftime(out, DATETIME, "%Y%m%d%H%M%S", &local) != DATETIME - 1)
            FAIL(e, INTERNAL, "report: the clock cannot be read");
        return ERR_OK;
    }
    if (strlen(wanted) != DATETIME - 1) FAIL(e, USAGE, "report: content time is not YYYYMMDDHHMMSS");
    memcpy(out, wanted, DATETIME);
    return ERR_OK;
}

/* --- whole -------------------------------------------------------------------------------------------------------- */

static err_code build(report *r, const char *datetime, attributes *d, char sop_uid[UID_MAX], err *e)
{
    char *words = comment(r), digest[HASH_HEX];
    if (!words) FAIL(e, NOMEM, "report: no memory");
    put_document(r, d);
    put_patient_and_study(&r->study->header, d);
    put_evidence(r, d);
    const err_code rc = put_content(r, d, words, e);
    free(words);
    if (rc) return rc;
    /* PS3.3 C.12.1.1.2: only of data sets that need one. All text is UTF-8 here, whatever the images' set was. */
    if (!attributes_ascii(d)) attributes_put(d, TAG_SpecificCharacterSet, "CS", "ISO_IR 192");
    if (attributes_failed(d)) FAIL(e, NOMEM, "report: no memory");
    hash *h = hash_new();
    if (!h) FAIL(e, NOMEM, "report: no memory");
    attributes_digest(d, h);
    hash_hex(h, digest);
    TRY(uid_derive(sop_uid, r->root, e, "report", digest, NULL));
    attributes_put(d, TAG_SOPInstanceUID, "UI", sop_uid);
    put_times(d, datetime);
    if (attributes_failed(d)) FAIL(e, NOMEM, "report: no memory");
    return report_sr_lint_attributes(d, e);
}

err_code report_sr_write(const char *path, const study_identity *study, const findings *f, const study_finding *s,
                         const sr_options *o, char sop_uid[65], err *e)
{
    static const char *const sop_class[] = {[SR_COMPREHENSIVE_3D] = SR_SOP_CLASS_COMPREHENSIVE_3D,
                                            [SR_COMPREHENSIVE] = SR_SOP_CLASS_COMPREHENSIVE,
                                            [SR_ENHANCED] = SR_SOP_CLASS_ENHANCED};
    report r = {.study = study,
                .f = f,
                .s = s,
                .root = o ? o->organisation_root : NULL,
                .sop_class = sop_class[o ? o->sr_class : SR_COMPREHENSIVE_3D]};
    char datetime[DATETIME], uid[UID_MAX];
    unsigned char *bytes = NULL;
    size_t n;
    err_code rc;
    attributes *d = attributes_new();
    if (!d) FAIL_DONE(rc, e, NOMEM, "report: no memory");
    TRY_DONE(rc, content_time(o ? o->content_datetime : NULL, datetime, e));
    TRY_DONE(rc, check_identity(&study->header, e));
    TRY_DONE(rc, check_findings(f, s, e));
    TRY_DONE(rc, collect(&r, e));
    for (int i = 0; i < s->n_found; i++) TRY_DONE(rc, check_evidence(&r, &s->found[i], e));
    TRY_DONE(rc, derive_uids(&r, e));
    TRY_DONE(rc, build(&r, datetime, d, uid, e));
    TRY_DONE(rc, sr_tree_encode(d, &bytes, &n, e));
    TRY_DONE(rc, file_write(path, bytes, n, e));
    memcpy(sop_uid, uid, sizeof uid);
done:
    free(bytes);
    free(r.input);
    attributes_free(d);
    return rc;
}
