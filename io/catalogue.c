/* catalogue.c: see catalogue.h and catalogue_db.h. Keys are pseudonyms; a frame's row is a frame_info. */
#include "io/catalogue.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/csv.h"
#include "io/catalogue_db.h"

err_code catalogue_fail(sqlite3 *db, const char *doing, err *e)
{
    int code = db ? sqlite3_errcode(db) & 0xff : SQLITE_NOMEM;
    int system_error = db ? sqlite3_system_errno(db) : 0;
    int extended = db ? sqlite3_extended_errcode(db) : 0; /* a write refused: SQLite does not always keep the errno */
    if (code == SQLITE_FULL || extended == SQLITE_IOERR_WRITE || system_error == EFBIG || system_error == ENOSPC ||
        system_error == EDQUOT)
        FAIL(e, NOSPACE, "catalogue: no space left while %s", doing);
    if (code == SQLITE_NOMEM) FAIL(e, NOMEM, "catalogue: no memory while %s", doing);
    if (code == SQLITE_CORRUPT || code == SQLITE_NOTADB)
        FAIL(e, FORMAT, "catalogue: the database is damaged (found while %s)", doing);
    FAIL(e, IO, "catalogue: SQLite error %d while %s", code, doing);
}

err_code catalogue_exec(catalogue *c, const char *sql, const char *doing, err *e)
{
    if (sqlite3_exec(c->db, sql, NULL, NULL, NULL) != SQLITE_OK) return catalogue_fail(c->db, doing, e);
    return ERR_OK;
}

err_code catalogue_query(catalogue *c, sqlite3_stmt **s, err *e, const char *sql, ...)
{
    va_list ap;
    int bad = sqlite3_prepare_v2(c->db, sql, -1, s, NULL) != SQLITE_OK;
    va_start(ap, sql);
    const char *value;
    for (int i = 1; !bad && (value = va_arg(ap, const char *)); i++)
        bad = sqlite3_bind_text(*s, i, value, -1, SQLITE_TRANSIENT) != SQLITE_OK;
    va_end(ap);
    if (bad) {
        err_code rc = catalogue_fail(c->db, "preparing a statement", e);
        sqlite3_finalize(*s);
        *s = NULL;
        return rc;
    }
    return ERR_OK;
}

void catalogue_text(char *out, size_t size, sqlite3_stmt *s, int column)
{
    const unsigned char *t = sqlite3_column_text(s, column);
    snprintf(out, size, "%s", t ? (const char *)t : "");
}

/* Runs a statement that returns no rows and finalizes it. */
static err_code run(catalogue *c, sqlite3_stmt *s, const char *doing, err *e)
{
    int code = sqlite3_step(s);
    err_code rc = code == SQLITE_DONE || code == SQLITE_ROW ? ERR_OK : catalogue_fail(c->db, doing, e);
    sqlite3_finalize(s);
    return rc;
}

static const char schema[] =
    "CREATE TABLE IF NOT EXISTS instance(key TEXT PRIMARY KEY, series TEXT NOT NULL, study TEXT NOT NULL,"
    " patient TEXT NOT NULL, format INTEGER NOT NULL, modality TEXT, state TEXT NOT NULL, reason TEXT, detail TEXT,"
    " frames INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE INDEX IF NOT EXISTS instance_state ON instance(state);"
    "CREATE INDEX IF NOT EXISTS instance_study ON instance(study);"
    "CREATE TABLE IF NOT EXISTS frame(instance TEXT NOT NULL, frame INTEGER NOT NULL, body_part TEXT, rows INTEGER,"
    " columns INTEGER, channels INTEGER, type INTEGER, shard INTEGER, offset INTEGER, slope REAL, intercept REAL,"
    " invert INTEGER, has_padding INTEGER, padding_low REAL, padding_high REAL, voi INTEGER, voi_function INTEGER,"
    " voi_center REAL, voi_width REAL, low REAL, high REAL, spacing_row REAL, spacing_column REAL, sort_mm REAL,"
    " quirks INTEGER, checksum INTEGER, PRIMARY KEY(instance, frame)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS effort(instance TEXT PRIMARY KEY, memory INTEGER NOT NULL, timeout INTEGER NOT NULL)"
    " WITHOUT ROWID;" /* what instances that are aside were given in vain */
    "CREATE TABLE IF NOT EXISTS ident.secret(key BLOB NOT NULL);"
    "CREATE TABLE IF NOT EXISTS ident.file(path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime INTEGER NOT NULL,"
    " name TEXT NOT NULL, instance TEXT, reason TEXT, detail TEXT) WITHOUT ROWID;"
    "CREATE INDEX IF NOT EXISTS ident.file_instance ON file(instance);"
    "CREATE INDEX IF NOT EXISTS ident.file_name ON file(name);" /* labels by path: catalogue_find */
    "CREATE TABLE IF NOT EXISTS ident.identity(key TEXT PRIMARY KEY, series_key TEXT, study_key TEXT, patient_key TEXT"
#define X(name) ", " #name " TEXT"
    IDENTITY_FIELDS(X)
#undef X
        ") WITHOUT ROWID;"
        "CREATE INDEX IF NOT EXISTS ident.identity_patient ON identity(patient_id);"
        "CREATE INDEX IF NOT EXISTS ident.identity_study ON identity(study_uid);"
        "CREATE INDEX IF NOT EXISTS ident.identity_series ON identity(series_uid);"
        "CREATE INDEX IF NOT EXISTS ident.identity_sop ON identity(sop_uid);";

/* A file that must never be readable by others, not even for a moment. */
static err_code touch_private(const char *path, err *e)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) FAIL_ERRNO(e, "cannot create identities.db in the work directory");
    fchmod(fd, 0600);
    close(fd);
    return ERR_OK;
}

static err_code load_secret(catalogue *c, err *e)
{
    sqlite3_stmt *s;
    TRY(catalogue_query(c, &s, e, "SELECT key FROM ident.secret", NULL));
    int code = sqlite3_step(s);
    bool have = code == SQLITE_ROW && sqlite3_column_bytes(s, 0) == HASH_BYTES;
    if (have) memcpy(c->key, sqlite3_column_blob(s, 0), HASH_BYTES);
    sqlite3_finalize(s);
    if (have) return ERR_OK;
    if (code != SQLITE_DONE) return catalogue_fail(c->db, "reading the pseudonyms' key", e);
    TRY(hash_random(c->key, sizeof c->key, e));
    TRY(catalogue_query(c, &s, e, "INSERT INTO ident.secret(key) VALUES(?)", NULL));
    sqlite3_bind_blob(s, 1, c->key, sizeof c->key, SQLITE_TRANSIENT);
    return run(c, s, "storing the pseudonyms' key", e);
}

/* Where catalogue.db was lost, files are not known any more. A catalogue.db that is not new has been matched before
 * (user_version 1): all rows would be read at every start. */
static err_code match(catalogue *c, err *e)
{
    sqlite3_stmt *s;
    TRY(catalogue_query(c, &s, e, "PRAGMA main.user_version", NULL));
    bool matched = sqlite3_step(s) == SQLITE_ROW && sqlite3_column_int(s, 0) == 1;
    sqlite3_finalize(s);
    if (matched) return ERR_OK;
    return catalogue_exec(c,
                          "DELETE FROM ident.file WHERE reason='' AND instance NOT IN (SELECT key FROM instance);"
                          "PRAGMA main.user_version=1",
                          "matching the databases", e);
}

/* Tables of an earlier radapt. */
static err_code upgrade(catalogue *c, err *e)
{
    sqlite3_stmt *s;
    if (!catalogue_query(c, &s, NULL, "SELECT checksum FROM frame LIMIT 0", NULL)) {
        sqlite3_finalize(s);
        return ERR_OK;
    }
    return catalogue_exec(c, "ALTER TABLE frame ADD COLUMN checksum INTEGER", "adding checksums", e);
}

err_code catalogue_open(catalogue **out, const char *work, err *e)
{
    char path[FILE_PATH_MAX];
    *out = NULL;
    catalogue *c = calloc(1, sizeof *c);
    if (!c) FAIL(e, NOMEM, "catalogue: no memory");
    c->lock = -1;
    err_code rc;
    sqlite3_stmt *attach = NULL;
    TRY_DONE(rc, file_mkdirs(work, e));
    TRY_DONE(rc, file_path(c->work, e, "%s", work));
    struct stat st;
    if (stat(work, &st)) {
        rc = err_errno(e, errno, __FILE__, __LINE__, "cannot open the work directory");
        goto done;
    }
    c->work_device = (uint64_t)st.st_dev;
    c->work_inode = (uint64_t)st.st_ino;
    TRY_DONE(rc, file_path(path, e, "%s/.lock", work));
    c->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (c->lock < 0) {
        rc = err_errno(e, errno, __FILE__, __LINE__, "cannot write in the work directory");
        goto done;
    }
    if (flock(c->lock, LOCK_EX | LOCK_NB))
        FAIL_DONE(rc, e, CONFLICT, "another radapt is working in this work directory");
    c->was_killed = !fstat(c->lock, &st) && st.st_size > 0;
    if (pwrite(c->lock, "!", 1, 0) != 1) {
        rc = err_errno(e, errno, __FILE__, __LINE__, "cannot write in the work directory");
        goto done;
    }
    TRY_DONE(rc, file_path(path, e, "%s/catalogue.db", work));
    if (sqlite3_open_v2(path, &c->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL) != SQLITE_OK) {
        rc = catalogue_fail(c->db, "opening catalogue.db", e);
        goto done;
    }
    TRY_DONE(rc, file_path(path, e, "%s/identities.db", work));
    TRY_DONE(rc, touch_private(path, e));
    TRY_DONE(rc, catalogue_query(c, &attach, e, "ATTACH DATABASE ? AS ident", path, NULL));
    TRY_DONE(rc, run(c, attach, "opening identities.db", e));
    TRY_DONE(rc, catalogue_exec(c,
                                "PRAGMA main.journal_mode=TRUNCATE; PRAGMA ident.journal_mode=TRUNCATE;"
                                "PRAGMA main.synchronous=FULL; PRAGMA ident.synchronous=FULL; PRAGMA temp_store=MEMORY",
                                "setting up the databases", e));
    TRY_DONE(rc, catalogue_begin(c, e)); /* tables and key at once, or neither */
    TRY_DONE(rc, catalogue_exec(c, schema, "creating tables", e));
    TRY_DONE(rc, upgrade(c, e));
    TRY_DONE(rc, load_secret(c, e));
    TRY_DONE(rc, match(c, e));
    TRY_DONE(rc, catalogue_commit(c, e));
    c->opened = true;
    *out = c;
    return ERR_OK;
done:
    catalogue_close(c);
    return rc;
}

bool catalogue_was_killed(const catalogue *c)
{
    return c->was_killed;
}

void catalogue_close(catalogue *c)
{
    if (!c) return;
    sqlite3_close(c->db);
    if (c->lock >= 0 && c->opened && ftruncate(c->lock, 0)) {} /* then the next one looks for what is left: no harm */
    if (c->lock >= 0) close(c->lock);
    explicit_bzero(c->key, sizeof c->key);
    free(c);
}

err_code catalogue_begin(catalogue *c, err *e)
{
    return catalogue_exec(c, "BEGIN IMMEDIATE", "starting a transaction", e);
}

err_code catalogue_commit(catalogue *c, err *e)
{
    err_code rc = catalogue_exec(c, "COMMIT", "committing", e);
    if (rc) sqlite3_exec(c->db, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

/* The path under which an instance was first seen; empty if none. */
static err_code path_of(catalogue *c, const char *instance, char out[FILE_PATH_MAX], err *e)
{
    sqlite3_stmt *s;
    out[0] = 0;
    TRY(catalogue_query(c, &s, e, "SELECT path FROM ident.file WHERE instance=? AND reason='' ORDER BY path LIMIT 1",
                        instance, NULL));
    if (sqlite3_step(s) == SQLITE_ROW) catalogue_text(out, FILE_PATH_MAX, s, 0);
    sqlite3_finalize(s);
    return ERR_OK;
}

bool catalogue_knows(catalogue *c, const char *path, uint64_t size_bytes, int64_t mtime_ns)
{
    sqlite3_stmt *s;
    if (catalogue_query(c, &s, NULL,
                        "SELECT size, mtime, reason, instance FROM ident.file WHERE path=? AND"
                        " reason NOT IN ('io','no-memory','no-space','unreadable')", /* may go better next time */
                        path, NULL))
        return false;
    bool known = sqlite3_step(s) == SQLITE_ROW && (uint64_t)sqlite3_column_int64(s, 0) == size_bytes &&
                 sqlite3_column_int64(s, 1) == mtime_ns;
    char kept[FILE_PATH_MAX], key[KEY_HEX] = "";
    const char *reason = known ? (const char *)sqlite3_column_text(s, 2) : "";
    if (!strcmp(reason, "duplicate") || !strcmp(reason, "conflict")) catalogue_text(key, sizeof key, s, 3);
    sqlite3_finalize(s);
    if (*key) known = !path_of(c, key, kept, NULL) && *kept && file_exists(kept); /* else it is this file's turn */
    return known;
}

/* Patients without an id are kept apart by study: two of them are never taken for one. */
static void patient_key(const catalogue *c, const image_header *h, char out[KEY_HEX])
{
    char who[2 * 65 + 16];
    if (*h->patient_id)
        snprintf(who, sizeof who, "%s\x1f%s", h->patient_id, h->patient_id_issuer);
    else
        snprintf(who, sizeof who, "\x1fstudy\x1f%s", h->study_uid);
    hash_pseudonym(c->key, sizeof c->key, "patient", who, out);
}

/* An instance that no usable file stands for any more goes, with its frames. */
static err_code drop_orphan(catalogue *c, const char *key, err *e)
{
    static const char *const sql[] = {
        "DELETE FROM frame WHERE instance=?1 AND NOT EXISTS(SELECT 1 FROM ident.file WHERE instance=?1 AND reason='')",
        "DELETE FROM instance WHERE key=?1 AND NOT EXISTS(SELECT 1 FROM ident.file WHERE instance=?1 AND reason='')",
        ("DELETE FROM ident.identity WHERE key=?1 AND NOT EXISTS"
         "(SELECT 1 FROM ident.file WHERE instance=?1 AND reason='')")};
    for (int i = 0; i < 3; i++) {
        sqlite3_stmt *s;
        TRY(catalogue_query(c, &s, e, sql[i], key, NULL));
        TRY(run(c, s, "dropping an instance whose file changed", e));
    }
    return ERR_OK;
}

static err_code record_file(catalogue *c, const char *path, uint64_t size_bytes, int64_t mtime_ns, const char *instance,
                            const char *reason, const char *detail, err *e)
{
    sqlite3_stmt *s;
    char before[KEY_HEX] = "";
    const char *slash = strrchr(path, '/');
    c->took = !reason || !*reason;
    TRY(catalogue_query(c, &s, e, "SELECT instance FROM ident.file WHERE path=? AND reason=''", path, NULL));
    if (sqlite3_step(s) == SQLITE_ROW) catalogue_text(before, sizeof before, s, 0);
    sqlite3_finalize(s);
    TRY(catalogue_query(c, &s, e,
                        "INSERT OR REPLACE INTO ident.file(path,name,instance,reason,detail,size,mtime)"
                        " VALUES(?,?,?,?,?,?,?)",
                        path, slash ? slash + 1 : path, instance ? instance : "", reason ? reason : "",
                        detail ? detail : "", NULL));
    sqlite3_bind_int64(s, 6, (sqlite3_int64)size_bytes);
    sqlite3_bind_int64(s, 7, mtime_ns);
    TRY(run(c, s, "recording a file", e));
    return *before && (!instance || strcmp(before, instance) != 0) ? drop_orphan(c, before, e) : ERR_OK;
}

static err_code insert_instance(catalogue *c, const char *key, const image_header *h, err *e)
{
    char series[KEY_HEX], study[KEY_HEX], patient[KEY_HEX];
    sqlite3_stmt *s;
    hash_pseudonym(c->key, sizeof c->key, "series", h->series_uid, series);
    hash_pseudonym(c->key, sizeof c->key, "study", h->study_uid, study);
    patient_key(c, h, patient);
    TRY(catalogue_query(c, &s, e, "DELETE FROM frame WHERE instance=?", key, NULL));
    TRY(run(c, s, "dropping old frames", e));
    TRY(catalogue_query(c, &s, e,
                        "INSERT OR REPLACE INTO instance(key,series,study,patient,modality,state,format,frames)"
                        " VALUES(?,?,?,?,?,'found',?,?)",
                        key, series, study, patient, h->modality, NULL));
    sqlite3_bind_int(s, 6, (int)h->format);
    sqlite3_bind_int(s, 7, h->frames);
    TRY(run(c, s, "adding an instance", e));
    err_code rc = catalogue_query(c, &s, e,
                                  "INSERT OR REPLACE INTO ident.identity(key,series_key,study_key,patient_key"
#define X(name) "," #name
                                  IDENTITY_FIELDS(X)
#undef X
                                      ") VALUES(?,?,?,?"
#define X(name) ",?"
                                  IDENTITY_FIELDS(X)
#undef X
                                      ")",
                                  key, series, study, patient,
#define X(name) h->name,
                                  IDENTITY_FIELDS(X)
#undef X
                                      NULL);
    if (rc) return rc;
    return run(c, s, "adding an identity", e);
}

static err_code same_content(const char *a, const char *b, bool *same, err *e)
{
    char x[HASH_HEX], y[HASH_HEX];
    TRY(hash_file(a, x, e));
    TRY(hash_file(b, y, e));
    *same = !strcmp(x, y);
    return ERR_OK;
}

bool catalogue_rivals(catalogue *c, const char *path, const char *sop_uid)
{
    char key[KEY_HEX], other[FILE_PATH_MAX];
    bool same;
    hash_pseudonym(c->key, sizeof c->key, "instance", sop_uid, key);
    return !path_of(c, key, other, NULL) && *other && strcmp(other, path) && file_exists(other) &&
           !same_content(path, other, &same, NULL) && !same;
}

err_code catalogue_add(catalogue *c, const char *path, uint64_t size_bytes, int64_t mtime_ns, const image_header *h,
                       const char *reason, const char *detail, err *e)
{
    char key[KEY_HEX] = "", other[FILE_PATH_MAX];
    if (reason || !h) return record_file(c, path, size_bytes, mtime_ns, NULL, reason ? reason : "format", detail, e);
    hash_pseudonym(c->key, sizeof c->key, "instance", h->sop_uid, key);
    TRY(path_of(c, key, other, e));
    if (*other && strcmp(other, path) && file_exists(other)) {
        bool same;
        err why = {0};
        if (same_content(path, other, &same, &why)) /* not known this time */
            return record_file(c, path, size_bytes, mtime_ns, NULL, "unreadable", why.msg, e);
        return record_file(c, path, size_bytes, mtime_ns, key, same ? "duplicate" : "conflict",
                           same ? "the same file is there under another name"
                                : "another file with this SOP Instance UID has different content; the first is kept",
                           e);
    }
    if (*other && strcmp(other, path)) { /* moved: what was recorded under the old path goes */
        sqlite3_stmt *s;
        bool same = catalogue_knows(c, other, size_bytes, mtime_ns);
        TRY(catalogue_query(c, &s, e, "DELETE FROM ident.file WHERE path=?", other, NULL));
        TRY(run(c, s, "forgetting a moved file", e));
        if (same) return record_file(c, path, size_bytes, mtime_ns, key, NULL, NULL, e);
        TRY(drop_orphan(c, key, e)); /* it is not the same file any more: nothing of it stays */
    }
    TRY(record_file(c, path, size_bytes, mtime_ns, key, NULL, NULL, e));
    return insert_instance(c, key, h, e);
}

bool catalogue_took(const catalogue *c)
{
    return c->took;
}

err_code catalogue_forget(catalogue *c, const char *reason, err *e)
{
    sqlite3_stmt *s;
    TRY(catalogue_query(c, &s, e, "DELETE FROM ident.file WHERE reason=?", reason, NULL));
    return run(c, s, "forgetting what was set aside", e);
}

bool catalogue_is_work(const catalogue *c, uint64_t device, uint64_t inode)
{
    return c->work_device == device && c->work_inode == inode;
}

err_code catalogue_count(catalogue *c, catalogue_counts *out, err *e)
{
    static const char *const sql[] = {"SELECT count(*) FROM ident.file",
                                      "SELECT count(*) FROM instance WHERE state='found'",
                                      "SELECT count(*) FROM instance WHERE state='stored'",
                                      ("SELECT (SELECT count(*) FROM ident.file WHERE reason<>'') +"
                                       " (SELECT count(*) FROM instance WHERE state='aside')"),
                                      "SELECT count(DISTINCT patient) FROM instance WHERE state<>'aside'",
                                      "SELECT count(DISTINCT study) FROM instance WHERE state<>'aside'",
                                      "SELECT count(DISTINCT series) FROM instance WHERE state<>'aside'",
                                      "SELECT count(*) FROM frame"};
    uint64_t *field[] = {&out->files,    &out->found,   &out->stored, &out->aside,
                         &out->patients, &out->studies, &out->series, &out->frames};
    for (int i = 0; i < 8; i++) {
        sqlite3_stmt *s;
        TRY(catalogue_query(c, &s, e, sql[i], NULL));
        int code = sqlite3_step(s);
        *field[i] = code == SQLITE_ROW ? (uint64_t)sqlite3_column_int64(s, 0) : 0;
        sqlite3_finalize(s);
        if (code != SQLITE_ROW) return catalogue_fail(c->db, "counting", e);
    }
    return ERR_OK;
}

err_code catalogue_pending(catalogue *c, const decode_effort *now, pending_instance **out, size_t *n, err *e)
{
    sqlite3_stmt *s;
    size_t capacity = 0;
    int code;
    *out = NULL;
    *n = 0;
    TRY(catalogue_query(
        c, &s, e,
        "SELECT i.key, min(f.path) FROM instance i JOIN ident.file f ON f.instance=i.key AND f.reason=''"
        " WHERE i.state='found' OR (i.state='aside' AND (i.reason IN ('io','not-found','no-space') OR"
        " (i.reason IN ('no-memory','crashed') AND NOT EXISTS(SELECT 1 FROM effort a WHERE a.instance=i.key"
        " AND a.memory>=?1 AND a.timeout>=?2)))) GROUP BY i.key ORDER BY i.patient, i.study, i.series, i.key",
        NULL));
    sqlite3_bind_int64(s, 1, (sqlite3_int64)now->memory_bytes);
    sqlite3_bind_int(s, 2, now->timeout_s);
    while ((code = sqlite3_step(s)) == SQLITE_ROW) {
        if (*n == capacity) {
            capacity = capacity ? 2 * capacity : 1024;
            pending_instance *p = realloc(*out, capacity * sizeof *p);
            if (!p) break;
            *out = p;
        }
        pending_instance *p = &(*out)[*n];
        snprintf(p->instance_key, sizeof p->instance_key, "%s", (const char *)sqlite3_column_text(s, 0));
        p->path = strdup((const char *)sqlite3_column_text(s, 1));
        if (!p->path) break;
        ++*n;
    }
    sqlite3_finalize(s);
    if (code == SQLITE_DONE) return ERR_OK;
    catalogue_pending_free(*out, *n);
    *out = NULL;
    *n = 0;
    if (code == SQLITE_ROW) FAIL(e, NOMEM, "catalogue: no memory for the list of files");
    return catalogue_fail(c->db, "listing what is to be decoded", e);
}

void catalogue_pending_free(pending_instance *p, size_t n)
{
    for (size_t i = 0; i < n; i++) free(p[i].path);
    free(p);
}

static err_code insert_frame(catalogue *c, const char *instance_key, const frame_info *f, err *e)
{
    sqlite3_stmt *s;
    TRY(catalogue_query(c, &s, e,
                        "INSERT OR REPLACE INTO frame(instance,body_part,frame,rows,columns,channels,type,shard,offset,"
                        "slope,intercept,invert,has_padding,padding_low,padding_high,voi,voi_function,voi_center,"
                        "voi_width,low,high,spacing_row,spacing_column,sort_mm,quirks,checksum)"
                        " VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                        instance_key, f->body_part, NULL));
    const sqlite3_int64 whole[] = {
        f->frame, f->rows, f->columns, f->channels, (int)f->type, f->shard, (sqlite3_int64)f->offset};
    for (int i = 0; i < 7; i++) sqlite3_bind_int64(s, 3 + i, whole[i]);
    const double real[] = {f->slope,         f->intercept,      f->invert,          f->has_padding,   f->padding_low,
                           f->padding_high,  f->window.present, f->window.function, f->window.center, f->window.width,
                           f->low,           f->high,           f->spacing_mm[0],   f->spacing_mm[1], f->sort_mm,
                           (double)f->quirks};
    for (int i = 0; i < 16; i++) sqlite3_bind_double(s, 10 + i, real[i]);
    if (f->checksum >= 0) sqlite3_bind_int64(s, 26, f->checksum);
    return run(c, s, "adding a frame", e);
}

static err_code set_state(catalogue *c, const char *instance_key, const char *state, const char *reason,
                          const char *detail, err *e)
{
    sqlite3_stmt *s;
    TRY(catalogue_query(c, &s, e, "UPDATE instance SET state=?, reason=?, detail=? WHERE key=?", state, reason, detail,
                        instance_key, NULL));
    return run(c, s, "changing an instance's state", e);
}

/* Inside the caller's transaction, or one of its own. */
static err_code in_transaction(catalogue *c, bool *own, err *e)
{
    *own = sqlite3_get_autocommit(c->db) != 0;
    return *own ? catalogue_begin(c, e) : ERR_OK;
}

err_code catalogue_store(catalogue *c, const char *instance_key, const frame_info *frames, size_t n, err *e)
{
    bool own;
    TRY(in_transaction(c, &own, e));
    err_code rc = ERR_OK;
    for (size_t i = 0; i < n && !rc; i++) rc = insert_frame(c, instance_key, &frames[i], e);
    if (!rc) rc = set_state(c, instance_key, "stored", "", "", e);
    if (!own) return rc;
    if (!rc) return catalogue_commit(c, e);
    sqlite3_exec(c->db, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

err_code catalogue_unstore(catalogue *c, const char *instance_key, err *e)
{
    sqlite3_stmt *s;
    bool own;
    TRY(in_transaction(c, &own, e));
    err_code rc = catalogue_query(c, &s, e, "DELETE FROM frame WHERE instance=?", instance_key, NULL);
    if (!rc) rc = run(c, s, "dropping damaged frames", e);
    if (!rc) rc = set_state(c, instance_key, "found", "", "", e);
    if (!own) return rc;
    if (!rc) return catalogue_commit(c, e);
    sqlite3_exec(c->db, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

err_code catalogue_set_aside(catalogue *c, const char *instance_key, const char *reason, const char *detail,
                             const decode_effort *under, err *e)
{
    sqlite3_stmt *s;
    TRY(catalogue_query(c, &s, e, "INSERT OR REPLACE INTO effort(instance,memory,timeout) VALUES(?,?,?)", instance_key,
                        NULL));
    sqlite3_bind_int64(s, 2, (sqlite3_int64)under->memory_bytes);
    sqlite3_bind_int(s, 3, under->timeout_s);
    TRY(run(c, s, "recording what a decoder was given", e));
    return set_state(c, instance_key, "aside", reason, detail, e);
}

err_code catalogue_write_quarantine(catalogue *c, err *e)
{
    char path[FILE_PATH_MAX];
    sqlite3_stmt *s = NULL;
    file_writer *w = NULL;
    int code;
    TRY(file_path(path, e, "%s/quarantine.csv", c->work));
    TRY(file_begin(&w, path, e));
    fchmod(fileno(w->f), 0600);
    err_code rc =
        catalogue_query(c, &s, e,
                        "SELECT path,reason,detail FROM ident.file WHERE reason<>'' UNION ALL "
                        "SELECT f.path,i.reason,i.detail FROM instance i JOIN ident.file f ON f.instance=i.key"
                        " AND f.reason='' WHERE i.state='aside' ORDER BY 1",
                        NULL);
    if (rc) {
        file_abandon(&w);
        return rc;
    }
    fputs("path,reason,detail\n", w->f);
    while ((code = sqlite3_step(s)) == SQLITE_ROW)
        for (int i = 0; i < 3; i++) {
            const unsigned char *t = sqlite3_column_text(s, i);
            csv_field(w->f, t ? (const char *)t : "");
            fputc(i < 2 ? ',' : '\n', w->f);
        }
    sqlite3_finalize(s);
    if (code != SQLITE_DONE) {
        file_abandon(&w);
        return catalogue_fail(c->db, "listing what was set aside", e);
    }
    return file_commit(&w, e);
}
