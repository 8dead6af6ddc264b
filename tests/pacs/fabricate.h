/* fabricate.h: study identities and findings as predict would give them, made up, for the tests of pacs/. */
#ifndef RADAPT_TESTS_FABRICATE_H
#define RADAPT_TESTS_FABRICATE_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/catalogue.h"
#include "io/findings.h"

typedef struct {
    const char *name; /* of the case */
    const char *patient_name, *modality, *sop_class;
    int series, instances, frames; /* instances of each series; frames of each instance */
    const char *label_meaning;
} fabricated;

#define CR_IMAGE "1.2.840.10008.5.1.4.1.1.1"
#define CT_IMAGE "1.2.840.10008.5.1.4.1.1.2"
#define US_MULTIFRAME "1.2.840.10008.5.1.4.1.1.3.1"
#define STUDY_UID "1.2.826.0.1.3680043.8.498.1"
#define MR_IMAGE "1.2.840.10008.5.1.4.1.1.4"

static inline const fabricated *fabricated_cases(size_t *n)
{
    static const fabricated cases[] = {
        {"one CR", "Adams^John Robert Quincy^^Rev.^B.A. M.Div.", "CR", CR_IMAGE, 1, 1, 1, "Pneumonia"},
        {"CT of 200 slices in two series", "Buc^J\xC3\xA9r\xC3\xB4me", "CT", CT_IMAGE, 2, 100, 1, "Nodule"},
        {"multi-frame US, Japanese",
         "Yamada^Tarou=\xE5\xB1\xB1\xE7\x94\xB0^\xE5\xA4\xAA\xE9\x83\x8E=\xE3\x82\x84\xE3\x81\xBE\xE3\x81\xA0^"
         "\xE3\x81\x9F\xE3\x82\x8D\xE3\x81\x86",
         "US", US_MULTIFRAME, 1, 2, 30, "\xE8\x85\xAB\xE7\x98\xA4"},
        {"MR, Korean", "Hong^Gildong=\xE6\xB4\xAA^\xE5\x90\x89\xE6\xB4\x9E=\xED\x99\x8D^\xEA\xB8\xB8\xEB\x8F\x99", "MR",
         MR_IMAGE, 1, 3, 1, "Infarct"},
        {"unknown modality, Greek", "\xCE\x94\xCE\xB9\xCE\xBF\xCE\xBD\xCF\x85\xCF\x83\xCE\xB9\xCE\xBF\xCF\x82", "ZZ",
         CR_IMAGE, 1, 1, 1, "normal"},
    };
    *n = sizeof cases / sizeof *cases;
    return cases;
}

/* Free with fabricate_fini. */
static inline void fabricate(const fabricated *c, study_identity *t, findings *f)
{
    memset(t, 0, sizeof *t);
    memset(f, 0, sizeof *f);
    image_header *h = &t->header;
    h->format = IMAGE_DICOM;
    snprintf(h->patient_id, sizeof h->patient_id, "PAT-0042");
    snprintf(h->patient_id_issuer, sizeof h->patient_id_issuer, "HOSPITAL");
    snprintf(h->patient_name, sizeof h->patient_name, "%s", c->patient_name);
    snprintf(h->patient_birth_date, sizeof h->patient_birth_date, "19640229");
    snprintf(h->patient_sex, sizeof h->patient_sex, "F");
    snprintf(h->study_uid, sizeof h->study_uid, STUDY_UID);
    snprintf(h->study_date, sizeof h->study_date, "20230405");
    snprintf(h->study_time, sizeof h->study_time, "101112.5");
    snprintf(h->study_id, sizeof h->study_id, "S7");
    snprintf(h->accession, sizeof h->accession, "ACC123");
    snprintf(h->referring_physician, sizeof h->referring_physician, "House^Gregory");
    snprintf(h->study_description, sizeof h->study_description, "Routine");
    snprintf(h->modality, sizeof h->modality, "%s", c->modality);
    t->n_instances = (size_t)c->series * (size_t)c->instances;
    t->instances = calloc(t->n_instances, sizeof *t->instances);
    for (size_t i = 0; i < t->n_instances; i++) {
        study_instance *x = &t->instances[i];
        const int series = (int)i / c->instances + 1, number = (int)i % c->instances + 1;
        snprintf(x->instance_key, sizeof x->instance_key, "%032zx", i + 1);
        snprintf(x->series_uid, sizeof x->series_uid, STUDY_UID ".%d", series);
        snprintf(x->sop_uid, sizeof x->sop_uid, STUDY_UID ".%d.%d", series, number);
        snprintf(x->sop_class, sizeof x->sop_class, "%s", c->sop_class);
        snprintf(x->modality, sizeof x->modality, "%s", c->modality);
        x->frames = c->frames;
    }

    snprintf(f->algorithm, sizeof f->algorithm, "radapt classifier");
    snprintf(f->version, sizeof f->version, "0.1.0");
    for (int i = 0; i < HASH_HEX - 1; i++) f->model_hash[i] = "0123456789abcdef"[i * 7 % 16];
    snprintf(f->parameters, sizeof f->parameters, "ViT-Ti/16 224, APLA");
    f->n_labels = 3;
    f->labels = calloc(3, sizeof *f->labels);
    const char *meanings[] = {"No finding", c->label_meaning, "Effusion"};
    for (int i = 0; i < 3; i++) {
        label_code *l = &f->labels[i];
        snprintf(l->name, sizeof l->name, "%s", meanings[i]);
        snprintf(l->value, sizeof l->value, "CLASS-%c", "012"[i]);
        snprintf(l->scheme, sizeof l->scheme, "99RADAPT");
        snprintf(l->meaning, sizeof l->meaning, "%s", meanings[i]);
    }
    f->n_studies = 1;
    f->studies = calloc(1, sizeof *f->studies);
    study_finding *s = f->studies;
    s->found = calloc(3, sizeof *s->found);
    s->n_found = 1;
    finding *one = s->found;
    one->label = 1;
    s->probability = calloc(3, sizeof *s->probability);
    s->probability[0] = 0.125, s->probability[1] = 0.84375, s->probability[2] = 0.03125;
    s->frames = (int)t->n_instances * c->frames;
    one->n_evidence = s->frames < 3 ? s->frames : 3;
    one->evidence = calloc((size_t)one->n_evidence, sizeof *one->evidence);
    for (int i = 0; i < one->n_evidence; i++) {
        const int frame = s->frames - 1 - i * (s->frames / 3);
        const size_t at = (size_t)(frame / c->frames);
        memcpy(one->evidence[i].instance_key, t->instances[at].instance_key, KEY_HEX);
        one->evidence[i].frame = frame % c->frames + 1;
        one->evidence[i].weight = 0.5 / (i + 1);
    }
}

/* The study's labels as a set: probabilities p (3); each of 0.5 and more has the evidence of the first finding. */
static inline void fabricate_set(findings *f, const double p[3])
{
    study_finding *s = f->studies;
    finding first = s->found[0];
    f->task = TASK_MULTILABEL;
    s->n_found = 0;
    for (int k = 0; k < 3; k++) {
        s->probability[k] = p[k];
        if (p[k] < 0.5) continue;
        finding *one = &s->found[s->n_found++];
        *one = (finding){.label = k, .n_evidence = first.n_evidence};
        one->evidence = calloc((size_t)first.n_evidence, sizeof *one->evidence);
        memcpy(one->evidence, first.evidence, (size_t)first.n_evidence * sizeof *one->evidence);
    }
    free(first.evidence);
}

static inline void fabricate_fini(study_identity *t, findings *f)
{
    free(t->instances);
    findings_fini(f);
}

#endif
