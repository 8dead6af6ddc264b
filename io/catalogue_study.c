/* catalogue_study.c: from real identifiers to pseudonyms (labels) and back (reports). PHI passes through here; none is
 * logged. */
#include <stdlib.h>
#include <string.h>

#include "io/catalogue_db.h"

/* The one key that sql yields for value; false if none or more than one. */
static bool only_key(catalogue *c, const char *sql, const char *value, char out[KEY_HEX])
{
    sqlite3_stmt *s;
    char first[KEY_HEX] = "";
    bool one = false;
    if (catalogue_query(c, &s, NULL, sql, value, NULL)) return false;
    while (sqlite3_step(s) == SQLITE_ROW) {
        const char *key = (const char *)sqlite3_column_text(s, 0);
        one = !*first;
        if (!one) break;
        snprintf(first, sizeof first, "%s", key ? key : "");
    }
    sqlite3_finalize(s);
    if (one) memcpy(out, first, KEY_HEX);
    return one;
}

/* By the last parts of the path; the file's name, which is indexed, first. */
static bool find_relative(catalogue *c, const char *value, char out[KEY_HEX])
{
    char first[KEY_HEX] = "";
    const char *slash = strrchr(value, '/');
    sqlite3_stmt *s;
    bool one = false;
    if (catalogue_query(c, &s, NULL,
                        "SELECT DISTINCT instance FROM ident.file WHERE name=?1 AND instance<>'' AND reason<>'conflict'"
                        " AND substr(path,-length(?2)-1)='/'||?2 LIMIT 2",
                        slash ? slash + 1 : value, value, NULL))
        return false;
    if (sqlite3_step(s) == SQLITE_ROW) {
        snprintf(first, sizeof first, "%s", (const char *)sqlite3_column_text(s, 0));
        one = sqlite3_step(s) == SQLITE_DONE;
    }
    sqlite3_finalize(s);
    if (one) memcpy(out, first, KEY_HEX);
    return one;
}

bool catalogue_find(catalogue *c, id_kind kind, const char *value, char out[KEY_HEX])
{
    if (!*value) return false;
    switch (kind) {
    case ID_PATIENT:
        return only_key(c, "SELECT DISTINCT patient_key FROM ident.identity WHERE patient_id=? LIMIT 2", value, out);
    case ID_STUDY:
        return only_key(c, "SELECT DISTINCT study_key FROM ident.identity WHERE study_uid=? LIMIT 2", value, out);
    case ID_SERIES:
        return only_key(c, "SELECT DISTINCT series_key FROM ident.identity WHERE series_uid=? LIMIT 2", value, out);
    case ID_SOP:
        return only_key(c, "SELECT DISTINCT key FROM ident.identity WHERE sop_uid=? LIMIT 2", value, out);
    case ID_PATH:
        return only_key(c, "SELECT instance FROM ident.file WHERE path=? AND instance<>'' AND reason<>'conflict'",
                        value, out) ||
               find_relative(c, value[0] == '.' && value[1] == '/' ? value + 2 : value, out);
    }
    return false;
}

bool catalogue_parents(catalogue *c, const char *instance_key, char series[KEY_HEX], char study[KEY_HEX],
                       char patient[KEY_HEX])
{
    sqlite3_stmt *s;
    if (catalogue_query(c, &s, NULL, "SELECT series,study,patient FROM instance WHERE key=?", instance_key, NULL))
        return false;
    bool found = sqlite3_step(s) == SQLITE_ROW;
    char *out[] = {series, study, patient};
    for (int i = 0; found && i < 3; i++) snprintf(out[i], KEY_HEX, "%s", (const char *)sqlite3_column_text(s, i));
    sqlite3_finalize(s);
    return found;
}

static err_code read_instances(catalogue *c, const char *study_key, study_identity *out, err *e)
{
    sqlite3_stmt *s;
    size_t capacity = 0;
    int code;
    TRY(catalogue_query(c, &s, e,
                        "SELECT d.key,d.series_uid,d.sop_class,d.sop_uid,d.modality,i.frames FROM ident.identity d"
                        " JOIN instance i ON i.key=d.key WHERE d.study_key=? AND i.state='stored' AND i.format=1"
                        " ORDER BY d.series_uid,d.sop_uid",
                        study_key, NULL));
    while ((code = sqlite3_step(s)) == SQLITE_ROW) {
        if (out->n_instances == capacity) {
            capacity = capacity ? 2 * capacity : 64;
            study_instance *p = realloc(out->instances, capacity * sizeof *p);
            if (!p) break;
            out->instances = p;
        }
        study_instance *i = &out->instances[out->n_instances++];
        catalogue_text(i->instance_key, sizeof i->instance_key, s, 0);
        catalogue_text(i->series_uid, sizeof i->series_uid, s, 1);
        catalogue_text(i->sop_class, sizeof i->sop_class, s, 2);
        catalogue_text(i->sop_uid, sizeof i->sop_uid, s, 3);
        catalogue_text(i->modality, sizeof i->modality, s, 4);
        i->frames = sqlite3_column_int(s, 5);
    }
    sqlite3_finalize(s);
    if (code == SQLITE_ROW) FAIL(e, NOMEM, "catalogue: no memory for a study's instances");
    if (code != SQLITE_DONE) return catalogue_fail(c->db, "reading a study", e);
    return ERR_OK;
}

err_code catalogue_study(catalogue *c, const char *study_key, study_identity *out, err *e)
{
    sqlite3_stmt *s = NULL;
    *out = (study_identity){0};
    err_code rc = read_instances(c, study_key, out, e);
    if (!rc && !out->n_instances) {
        rc = catalogue_query(c, &s, e, "SELECT 1 FROM instance WHERE study=?", study_key, NULL);
        bool there = !rc && sqlite3_step(s) == SQLITE_ROW;
        sqlite3_finalize(s);
        s = NULL;
        if (!rc && there)
            rc = err_set(e, ERR_UNSUPPORTED, __FILE__, __LINE__, "the study has no DICOM images to report on");
        else if (!rc)
            rc = err_set(e, ERR_NOTFOUND, __FILE__, __LINE__, "no such study in the catalogue");
    }
    if (!rc)
        rc = catalogue_query(c, &s, e,
                             "SELECT 0"
#define X(name) "," #name
                             IDENTITY_FIELDS(X)
#undef X
                                 " FROM ident.identity WHERE key=?",
                             out->instances[0].instance_key, NULL);
    if (!rc && sqlite3_step(s) != SQLITE_ROW) rc = catalogue_fail(c->db, "reading an identity", e);
    if (!rc) {
        int k = 1;
        image_header *h = &out->header;
        h->format = IMAGE_DICOM;
#define X(name)                                                                                                        \
    snprintf(h->name, sizeof h->name, "%s", (const char *)sqlite3_column_text(s, k));                                  \
    k++;
        IDENTITY_FIELDS(X)
#undef X
    }
    sqlite3_finalize(s);
    if (rc) catalogue_study_fini(out);
    return rc;
}

void catalogue_study_fini(study_identity *s)
{
    free(s->instances);
    explicit_bzero(s, sizeof *s);
}
