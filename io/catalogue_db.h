/* catalogue_db.h: what catalogue.c, catalogue_study.c and catalogue_frames.c share: the connection, statements, and the
 * fields of an identity.
 *
 * One connection: catalogue.db is "main", identities.db is attached as "ident". Rollback journals (not WAL): a
 * transaction over both files is then atomic, whatever moment a kill chooses. */
#ifndef RADAPT_CATALOGUE_DB_H
#define RADAPT_CATALOGUE_DB_H
#include <sqlite3.h>

#include "base/file.h"
#include "io/catalogue.h"

struct catalogue {
    sqlite3 *db;
    int lock; /* work/.lock, held; a byte in it says that someone is, or was killed, at work */
    bool was_killed, opened;
    char work[FILE_PATH_MAX];
    bool took; /* the last file added is not set aside */
    uint64_t work_device, work_inode;
    unsigned char key[HASH_BYTES]; /* of the pseudonyms */
};

/* The text attributes of image_header that identities.db keeps (PHI) and a report needs. */
/* clang-format off */
#define IDENTITY_FIELDS(X) \
    X(patient_id) X(patient_id_issuer) X(patient_name) X(patient_birth_date) \
    X(patient_sex) X(study_uid) X(study_date) X(study_time) \
    X(study_id) X(accession) X(referring_physician) X(study_description) \
    X(series_uid) X(sop_uid) X(sop_class) X(character_set) \
    X(procedure_code) X(procedure_scheme) X(procedure_meaning) X(modality)
/* clang-format on */

/* ERR_NOSPACE, ERR_NOMEM or ERR_IO by SQLite's code; the message names what was being done, never SQLite's text. */
err_code catalogue_fail(sqlite3 *db, const char *doing, err *e);
err_code catalogue_exec(catalogue *c, const char *sql, const char *doing, err *e);
/* Compiled statement with text parameters bound in order; NULL-terminated list. */
err_code catalogue_query(catalogue *c, sqlite3_stmt **s, err *e, const char *sql, ...);
/* out = the column's text, cut at size; empty for NULL. */
void catalogue_text(char *out, size_t size, sqlite3_stmt *s, int column);

#endif
