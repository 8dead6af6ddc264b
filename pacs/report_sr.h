/* report_sr.h: findings of one study -> one Comprehensive 3D SR (TID 1500), the tree and header of IHE AI Results. */
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

/* UIDs are functions of (study, instances, model hash, findings): the same again gives the same object. Written
 * atomically. study is PHI and goes into the file, nowhere else. sop_uid (65) is given back for the index. */
err_code report_sr_write(const char *path, const study_identity *study, const findings *f, const study_finding *s,
                         const sr_options *o, char sop_uid[65], err *e);
/* AIR lint (no validator covers it): ERR_FORMAT with the first rule that fails, e.g. "TID 1500: no Image Library
 * (111028)". */
err_code report_sr_lint(const char *path, err *e);

#endif
