/* report_sr.h: findings of one study -> one structured report (TID 1500), the tree and header of IHE AI Results (AIR).
 *
 * What a reader sees. A measurement group (TID 1501) for each finding: its Finding, with its Probability and the images
 * that speak for it, most influential first. One of several classes or grades: one group, of the most probable class or
 * of the median grade. A set of labels: a group for each that is there, the most probable first; where none is, one
 * group whose Finding says so (111241, DCM), without Probability and images. What was not found is NOT a finding: no
 * item with its code is in the tree, so that neither a person nor a program takes a 3 % class for something that was
 * seen. All probabilities stand in the group's Comment (row 12), behind the words "Research use only". Those words are
 * also in the series description and in the observer's name, which viewers show first.
 *
 * Hostile or broken sources: text that its VR does not allow is made legal (attributes.h). Instances whose UIDs are not
 * valid (PS3.5 9.1) cannot be referenced: they are left out and the comment counts them. A study whose StudyInstanceUID
 * or PatientID is not legal gets no report (ERR_FORMAT): it could not be matched with its patient. */
#ifndef RADAPT_REPORT_SR_H
#define RADAPT_REPORT_SR_H
#include "io/catalogue.h"
#include "io/findings.h"

typedef enum { SR_COMPREHENSIVE_3D, SR_COMPREHENSIVE, SR_ENHANCED } sr_class;

typedef struct {
    sr_class sr_class;
    const char *organisation_root; /* UID root for ours; NULL: 2.25 (UUID-derived, PS3.5 B.2) */
    const char *content_datetime;  /* "YYYYMMDDHHMMSS"; NULL: now. Set by tests and by resumed runs */
} sr_options;

/* The SOP Instance UID is a function of everything in the report but the time: the same study, instances, model and
 * findings give the same UID, and the same content_datetime the same bytes; any change is a new object. The order of
 * study->instances does not matter. The device's UID changes with the model. Written atomically, after passing the AIR
 * lint. study is PHI and goes into the file, nowhere else. sop_uid (65) is given back for the index.
 * ERR_CONFLICT: findings that do not belong to the study. */
err_code report_sr_write(const char *path, const study_identity *study, const findings *f, const study_finding *s,
                         const sr_options *o, char sop_uid[65], err *e);
/* AIR lint (no validator covers it): ERR_FORMAT with the first rule that fails, e.g. "TID 1500: no Image Library
 * (111028)". */
err_code report_sr_lint(const char *path, err *e);

#endif
