/* The catalogue: states, duplicates, pseudonyms, labels' keys, what a kill or a full disk leaves. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "base/csv.h"
#include "base/file.h"
#include "io/catalogue.h"

static char folder[64], work[128];

static int set_up(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/radapt-catalogue-XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(work, sizeof work, "%s/work", folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    char command[96];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

static const decode_effort usual = {(uint64_t)4 << 30, 120};

static catalogue *open_it(void)
{
    catalogue *c = NULL;
    err e = {0};
    if (catalogue_open(&c, work, &e)) fail_msg("%s", e.msg);
    return c;
}

/* Instance number n of series s of study d of patient p; every text field carries a token that must not leak. */
static image_header header(const char *p, int d, int s, int n)
{
    image_header h = {.format = IMAGE_DICOM, .has_pixels = true, .frames = 1, .rows = 8, .columns = 8, .samples = 1};
    snprintf(h.patient_id, sizeof h.patient_id, "%s", p);
    snprintf(h.patient_name, sizeof h.patient_name, "SECRETNAME^%s", p);
    snprintf(h.patient_birth_date, sizeof h.patient_birth_date, "19330712");
    snprintf(h.accession, sizeof h.accession, "SECRETACC%d", d);
    snprintf(h.referring_physician, sizeof h.referring_physician, "SECRETDOC^X");
    snprintf(h.study_description, sizeof h.study_description, "SECRETSTUDY");
    snprintf(h.study_uid, sizeof h.study_uid, "1.2.777.%s.%d", p, d);
    snprintf(h.series_uid, sizeof h.series_uid, "1.2.777.%s.%d.%d", p, d, s);
    snprintf(h.sop_uid, sizeof h.sop_uid, "1.2.777.%s.%d.%d.%d", p, d, s, n);
    snprintf(h.sop_class, sizeof h.sop_class, "1.2.840.10008.5.1.4.1.1.2");
    snprintf(h.modality, sizeof h.modality, "CT");
    return h;
}

static void put_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void add(catalogue *c, const char *name, const image_header *h, const char *reason)
{
    char path[256];
    err e = {0};
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (catalogue_add(c, path, 100, 5, h, reason, reason ? "detail" : NULL, &e)) fail_msg("%s: %s", name, e.msg);
}

static catalogue_counts count(catalogue *c)
{
    catalogue_counts n = {0};
    err e = {0};
    if (catalogue_count(c, &n, &e)) fail_msg("%s", e.msg);
    return n;
}

static void key_of(catalogue *c, id_kind kind, const char *value, char out[KEY_HEX])
{
    if (!catalogue_find(c, kind, value, out)) fail_msg("kind %d: %s not found", (int)kind, value);
}

static void test_states(void **state)
{
    (void)state;
    catalogue *c = open_it();
    err e = {0};
    image_header h[6];
    for (int i = 0; i < 6; i++) {
        char name[16];
        h[i] = header(i < 4 ? "7" : "8", i < 4 ? 1 : 2, i < 2 ? 1 : 2, i);
        snprintf(name, sizeof name, "f%d.dcm", i);
        add(c, name, &h[i], NULL);
    }
    add(c, "report.dcm", NULL, "no-pixels");
    catalogue_counts n = count(c);
    assert_int_equal(n.files, 7);
    assert_int_equal(n.found, 6);
    assert_int_equal(n.aside, 1);
    assert_int_equal(n.patients, 2);
    assert_int_equal(n.studies, 2);
    assert_int_equal(n.series, 3);

    pending_instance *p;
    size_t pending;
    assert_int_equal(catalogue_pending(c, &usual, &p, &pending, &e), ERR_OK);
    assert_int_equal(pending, 6);
    for (size_t i = 0; i < pending; i++) {
        frame_info f = {.frame = 1,
                        .rows = 7,
                        .columns = 9,
                        .channels = 1,
                        .type = PIXEL_U16,
                        .shard = 3,
                        .offset = (uint64_t)5 << 32,
                        .slope = 0.25,
                        .intercept = -1024,
                        .invert = true,
                        .has_padding = true,
                        .padding_low = -2000,
                        .padding_high = -1999,
                        .window = {true, VOI_SIGMOID, 40, 400},
                        .low = (double)i,
                        .high = 100,
                        .spacing_mm = {0.5, 0.75},
                        .sort_mm = -(double)i,
                        .quirks = QUIRK_CONSTANT,
                        .checksum = i ? (int64_t)0xfedcba98 : -1};
        snprintf(f.body_part, sizeof f.body_part, "CHEST");
        if (i == 5)
            assert_int_equal(catalogue_set_aside(c, p[i].instance_key, "truncated", "too, \"short\"", &usual, &e),
                             ERR_OK);
        else
            assert_int_equal(catalogue_store(c, p[i].instance_key, &f, 1, &e), ERR_OK);
    }
    catalogue_pending_free(p, pending);
    n = count(c);
    assert_int_equal(n.found, 0);
    assert_int_equal(n.stored, 5);
    assert_int_equal(n.aside, 2);
    assert_int_equal(n.frames, 5);
    catalogue_close(c);

    c = open_it(); /* and all of it is there again */
    frame_info *f;
    size_t frames, patients = 1, series = 1;
    assert_int_equal(catalogue_frames(c, &f, &frames, &e), ERR_OK);
    assert_int_equal(frames, 5);
    for (size_t i = 0; i < frames; i++) {
        assert_int_equal(f[i].offset, (uint64_t)5 << 32);
        assert_int_equal(f[i].rows, 7);
        assert_int_equal(f[i].columns, 9);
        assert_int_equal(f[i].type, PIXEL_U16);
        assert_int_equal(f[i].window.function, VOI_SIGMOID);
        assert_true(f[i].window.present && f[i].invert && f[i].has_padding);
        assert_true(f[i].slope == 0.25 && f[i].intercept == -1024 && f[i].padding_low == -2000 &&
                    f[i].padding_high == -1999);
        assert_true(f[i].window.center == 40 && f[i].window.width == 400 && f[i].spacing_mm[0] == 0.5 &&
                    f[i].spacing_mm[1] == 0.75);
        assert_int_equal(f[i].quirks, QUIRK_CONSTANT);
        assert_int_equal(f[i].checksum, f[i].sort_mm == 0 ? -1 : (int64_t)0xfedcba98);
        assert_string_equal(f[i].body_part, "CHEST");
        assert_string_equal(f[i].modality, "CT");
        if (i == 0) continue;
        patients += strcmp(f[i - 1].patient_key, f[i].patient_key) != 0;
        series += strcmp(f[i - 1].series_key, f[i].series_key) != 0;
        if (strcmp(f[i - 1].series_key, f[i].series_key)) continue;
        assert_true(f[i - 1].sort_mm <= f[i].sort_mm);
        assert_true(f[i - 1].series_low == f[i].series_low && f[i].series_low == (f[i - 1].low + f[i].low) / 2);
    }
    assert_int_equal(patients, 2); /* what is one's is together */
    assert_int_equal(series, 3);
    free(f);
    catalogue_close(c);
}

/* What was set aside for want of memory, time or a disk that answers is tried again when there is more of it; what is
 * wrong with the file itself is not. */
static void test_tried_again(void **state)
{
    (void)state;
    static const struct {
        const char *reason;
        decode_effort under, now;
        size_t pending;
    } rows[] = {
        {"no-memory", {1000, 60}, {1000, 60}, 0}, {"no-memory", {1000, 60}, {1001, 60}, 1},
        {"no-memory", {1000, 60}, {999, 60}, 0},  {"crashed", {1000, 60}, {1000, 60}, 0},
        {"crashed", {1000, 60}, {1000, 61}, 1},   {"io", {1000, 60}, {1000, 60}, 1},
        {"not-found", {1000, 60}, {1, 1}, 1},     {"no-space", {1000, 60}, {1, 1}, 1},
        {"format", {1000, 60}, {2000, 90}, 0},    {"truncated", {1000, 60}, {2000, 90}, 0},
        {"too-large", {1000, 60}, {2000, 90}, 0},
    };
    catalogue *c = open_it();
    image_header h = header("7", 1, 1, 1);
    pending_instance *p;
    size_t n;
    err e = {0};
    char key[KEY_HEX];
    add(c, "file", &h, NULL);
    key_of(c, ID_SOP, h.sop_uid, key);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(catalogue_set_aside(c, key, rows[i].reason, "why", &rows[i].under, &e), ERR_OK);
        assert_int_equal(catalogue_pending(c, &rows[i].now, &p, &n, &e), ERR_OK);
        if (n != rows[i].pending) fail_msg("row %zu (%s): %zu pending", i, rows[i].reason, n);
        catalogue_pending_free(p, n);
    }
    frame_info f = {.frame = 1, .rows = 1, .columns = 1, .channels = 1, .type = PIXEL_U16};
    assert_int_equal(catalogue_store(c, key, &f, 1, &e), ERR_OK);
    assert_int_equal(count(c).aside, 0);
    assert_int_equal(count(c).stored, 1);
    catalogue_close(c);
}

/* Whoever was killed at work is told from whoever ended: only then are there leftovers to look for. */
static void test_was_killed(void **state)
{
    (void)state;
    catalogue *c = open_it(), *second;
    err e = {0};
    assert_false(catalogue_was_killed(c));
    assert_int_equal(catalogue_open(&second, work, &e), ERR_CONFLICT); /* leaves no mark */
    catalogue_close(c);
    c = open_it();
    assert_false(catalogue_was_killed(c));
    catalogue_close(c);
    pid_t child = fork();
    if (child == 0) {
        open_it();
        raise(SIGKILL);
    }
    assert_int_equal(waitpid(child, NULL, 0), child);
    c = open_it();
    assert_true(catalogue_was_killed(c));
    catalogue_close(c);
    c = open_it();
    assert_false(catalogue_was_killed(c));
    catalogue_close(c);
}

/* A work directory of a radapt that made no checksums; and frames that are given back. */
static void test_upgrade_and_unstore(void **state)
{
    (void)state;
    char path[256], key[KEY_HEX];
    frame_info f = {.frame = 1, .rows = 1, .columns = 1, .channels = 1, .type = PIXEL_U16, .checksum = 7}, *frames;
    pending_instance *p;
    sqlite3 *db;
    size_t n;
    err e = {0};
    catalogue *c = open_it();
    image_header h = header("7", 1, 1, 1);
    add(c, "file", &h, NULL);
    key_of(c, ID_SOP, h.sop_uid, key);
    assert_int_equal(catalogue_store(c, key, &f, 1, &e), ERR_OK);
    catalogue_close(c);
    snprintf(path, sizeof path, "%s/catalogue.db", work);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "ALTER TABLE frame DROP COLUMN checksum", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    c = open_it();
    assert_int_equal(catalogue_frames(c, &frames, &n, &e), ERR_OK);
    assert_int_equal(n, 1);
    assert_int_equal(frames[0].checksum, -1);
    free(frames);
    assert_int_equal(catalogue_unstore(c, key, &e), ERR_OK);
    assert_int_equal(count(c).frames, 0);
    assert_int_equal(catalogue_pending(c, &usual, &p, &n, &e), ERR_OK);
    assert_int_equal(n, 1);
    catalogue_pending_free(p, n);
    assert_int_equal(catalogue_store(c, key, &f, 1, &e), ERR_OK);
    assert_int_equal(catalogue_frames(c, &frames, &n, &e), ERR_OK);
    assert_int_equal(frames[0].checksum, 7);
    free(frames);
    catalogue_close(c);
}

static bool contains(const char *path, const char *token)
{
    file_map m;
    err e = {0};
    if (file_map_open(&m, path, &e)) return false;
    bool found = m.bytes && memmem(m.data, m.bytes, token, strlen(token));
    file_map_close(&m);
    return found;
}

static void test_private(void **state)
{
    (void)state;
    umask(0);
    catalogue *c = open_it(), *second = NULL;
    err e = {0};
    assert_int_equal(catalogue_open(&second, work, &e), ERR_CONFLICT);
    assert_null(second);
    image_header h = header("SECRETPID", 1, 1, 1);
    add(c, "SECRETPATH.dcm", &h, NULL);
    add(c, "SECRETASIDE,\"x\"\n.dcm", NULL, "truncated");
    e = (err){0};
    assert_int_equal(catalogue_write_quarantine(c, &e), ERR_OK);
    char key[KEY_HEX], path[256];
    key_of(c, ID_PATIENT, "SECRETPID", key);
    catalogue_close(c);
    struct stat st;
    const char *const private[] = {"identities.db", "quarantine.csv"};
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", work, private[i]);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
        assert_true(contains(path, "SECRET"));
    }
    csv t;
    snprintf(path, sizeof path, "%s/quarantine.csv", work);
    assert_int_equal(csv_read(&t, path, &e), ERR_OK);
    assert_int_equal(t.rows, 2);
    assert_non_null(strstr(csv_at(&t, 1, csv_column(&t, "path")), "SECRETASIDE,\"x\"\n.dcm"));
    assert_string_equal(csv_at(&t, 1, csv_column(&t, "reason")), "truncated");
    csv_close(&t);
    snprintf(path, sizeof path, "%s/catalogue.db", work);
    const char *const tokens[] = {"SECRET", "1.2.777", "19330712"};
    for (int i = 0; i < 3; i++) assert_false(contains(path, tokens[i]));
    assert_true(contains(path, key));

    snprintf(work, sizeof work, "%s/other", folder); /* another work directory, another key */
    char other[KEY_HEX];
    c = open_it();
    add(c, "SECRETPATH.dcm", &h, NULL);
    key_of(c, ID_PATIENT, "SECRETPID", other);
    assert_string_not_equal(key, other);
    catalogue_close(c);
}

static void test_duplicates(void **state)
{
    (void)state;
    catalogue *c = open_it();
    char path[256];
    const struct {
        const char *name, *text;
    } files[] = {{"a", "one"}, {"b", "one"}, {"c", "two"}};
    image_header h = header("7", 1, 1, 1);
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i].name);
        put_file(path, files[i].text);
        add(c, files[i].name, &h, NULL);
    }
    catalogue_counts n = count(c);
    assert_int_equal(n.found, 1);
    assert_int_equal(n.aside, 2);
    err e = {0};
    assert_int_equal(catalogue_write_quarantine(c, &e), ERR_OK);
    csv t;
    snprintf(path, sizeof path, "%s/quarantine.csv", work);
    assert_int_equal(csv_read(&t, path, &e), ERR_OK);
    assert_int_equal(t.rows, 3);
    assert_string_equal(csv_at(&t, 1, 1), "duplicate");
    assert_string_equal(csv_at(&t, 2, 1), "conflict");
    csv_close(&t);
    char a[KEY_HEX], b[KEY_HEX];
    key_of(c, ID_PATH, "a", a); /* a label may name either copy, but not the file that says otherwise */
    key_of(c, ID_PATH, "b", b);
    assert_string_equal(a, b);
    assert_false(catalogue_find(c, ID_PATH, "c", a));

    snprintf(path, sizeof path, "%s/a", folder); /* moved: known under its new name, still one instance */
    assert_int_equal(unlink(path), 0);
    add(c, "moved", &h, NULL);
    pending_instance *p;
    size_t pending;
    assert_int_equal(catalogue_pending(c, &usual, &p, &pending, &e), ERR_OK);
    assert_int_equal(pending, 1);
    assert_non_null(strstr(p[0].path, "/moved"));
    catalogue_pending_free(p, pending);
    catalogue_close(c);
}

/* A copy takes the place of the file that was kept, once that is gone; a file that moved and is not the same any more
 * is read anew; and where catalogue.db was lost, nothing is taken for known. */
static void test_second_choice(void **state)
{
    (void)state;
    catalogue *c = open_it();
    err e = {0};
    char path[FILE_PATH_MAX], b[FILE_PATH_MAX];
    image_header h = header("7", 1, 1, 1);
    snprintf(path, sizeof path, "%s/first", folder);
    put_file(path, "one");
    add(c, "first", &h, NULL);
    snprintf(b, sizeof b, "%s/second", folder);
    put_file(b, "one");
    add(c, "second", &h, NULL);
    assert_true(catalogue_knows(c, b, 100, 5)); /* a duplicate stays one ... */
    assert_int_equal(unlink(path), 0);
    assert_false(catalogue_knows(c, b, 100, 5)); /* ... as long as there is the other */
    add(c, "second", &h, NULL);
    catalogue_counts n = count(c);
    assert_int_equal(n.found, 1);
    assert_int_equal(n.aside, 0);

    snprintf(h.modality, sizeof h.modality, "MR"); /* moved and changed: another size */
    assert_int_equal(unlink(b), 0);
    snprintf(path, sizeof path, "%s/third", folder);
    assert_int_equal(catalogue_begin(c, &e), ERR_OK);
    assert_int_equal(catalogue_add(c, path, 77, 1, &h, NULL, NULL, &e), ERR_OK);
    assert_int_equal(catalogue_commit(c, &e), ERR_OK);
    sqlite3 *db;
    sqlite3_stmt *q;
    catalogue_close(c);
    snprintf(path, sizeof path, "%s/catalogue.db", work);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db, "SELECT modality FROM instance", -1, &q, 0), SQLITE_OK);
    assert_int_equal(sqlite3_step(q), SQLITE_ROW);
    assert_string_equal((const char *)sqlite3_column_text(q, 0), "MR");
    sqlite3_finalize(q);
    sqlite3_close(db);

    assert_int_equal(unlink(path), 0); /* catalogue.db is lost */
    c = open_it();
    snprintf(path, sizeof path, "%s/third", folder);
    assert_false(catalogue_knows(c, path, 77, 1));
    catalogue_close(c);
}

static void test_changed_files(void **state)
{
    (void)state;
    catalogue *c = open_it();
    err e = {0};
    char path[256], key[KEY_HEX];
    image_header h = header("7", 1, 1, 1), other = header("7", 1, 1, 2);
    snprintf(path, sizeof path, "%s/a", folder);
    add(c, "a", &h, NULL);
    assert_true(catalogue_knows(c, path, 100, 5));
    assert_false(catalogue_knows(c, path, 101, 5));
    assert_false(catalogue_knows(c, path, 100, 6));
    key_of(c, ID_SOP, h.sop_uid, key);
    frame_info f = {.frame = 1, .rows = 1, .columns = 1, .channels = 1};
    assert_int_equal(catalogue_store(c, key, &f, 1, &e), ERR_OK);
    add(c, "a", &h, NULL); /* the same instance, new content: to be decoded again */
    assert_int_equal(count(c).found, 1);
    assert_int_equal(count(c).frames, 0);
    assert_int_equal(catalogue_store(c, key, &f, 1, &e), ERR_OK);
    add(c, "a", &other, NULL); /* another instance in the same place: the old one goes */
    catalogue_counts n = count(c);
    assert_int_equal(n.found, 1);
    assert_int_equal(n.stored + n.frames, 0);
    assert_false(catalogue_find(c, ID_SOP, h.sop_uid, key));
    add(c, "a", NULL, "truncated"); /* and no instance at all */
    n = count(c);
    assert_int_equal(n.found + n.stored, 0);
    assert_int_equal(n.aside, 1);
    assert_true(catalogue_knows(c, path, 100, 5));
    add(c, "a", NULL, "unreadable"); /* may be readable next time */
    assert_false(catalogue_knows(c, path, 100, 5));
    add(c, "b", NULL, "burned-in");
    assert_int_equal(catalogue_forget(c, "burned-in", &e), ERR_OK);
    assert_int_equal(count(c).aside, 1);
    catalogue_close(c);
}

static void test_labels(void **state)
{
    (void)state;
    catalogue *c = open_it();
    char path[300], first[KEY_HEX], again[KEY_HEX], series[KEY_HEX], study[KEY_HEX], patient[KEY_HEX];
    image_header h = header("7", 1, 1, 1), twin = header("7", 3, 1, 1), nameless = header("", 4, 1, 1),
                 nameless2 = header("", 5, 1, 1), quote = header("O'Neil; DROP TABLE frame", 6, 1, 1);
    add(c, "x/one.dcm", &h, NULL);
    add(c, "y/two.dcm", &nameless, NULL);
    add(c, "z/two.dcm", &nameless2, NULL);
    add(c, "q/100%_off.dcm", &quote, NULL);
    key_of(c, ID_PATIENT, "7", patient);
    key_of(c, ID_STUDY, h.study_uid, study);
    key_of(c, ID_SERIES, h.series_uid, series);
    key_of(c, ID_SOP, h.sop_uid, first);
    char up[3][KEY_HEX];
    assert_true(catalogue_parents(c, first, up[0], up[1], up[2]));
    assert_string_equal(up[0], series);
    assert_string_equal(up[1], study);
    assert_string_equal(up[2], patient);
    snprintf(path, sizeof path, "%s/x/one.dcm", folder);
    const char *const names[] = {path, "x/one.dcm", "./x/one.dcm", "one.dcm"};
    for (int i = 0; i < 4; i++) {
        key_of(c, ID_PATH, names[i], again);
        assert_string_equal(first, again);
    }
    const char *const no[] = {"ne.dcm", "two.dcm", "", "/one.dcm/", "%.dcm", "x/one.dc_"};
    for (int i = 0; i < 6; i++)
        if (catalogue_find(c, ID_PATH, no[i], again)) fail_msg("'%s' was found", no[i]);
    key_of(c, ID_PATH, "y/two.dcm", again);
    key_of(c, ID_PATH, "100%_off.dcm", again);
    key_of(c, ID_PATIENT, "O'Neil; DROP TABLE frame", again);
    assert_false(catalogue_find(c, ID_PATIENT, "", again));
    assert_false(catalogue_find(c, ID_STUDY, "1.2.3", again));
    /* Two patients without an id are two patients. */
    char p1[KEY_HEX], p2[KEY_HEX];
    key_of(c, ID_PATH, "y/two.dcm", again);
    assert_true(catalogue_parents(c, again, series, study, p1));
    key_of(c, ID_PATH, "z/two.dcm", again);
    assert_true(catalogue_parents(c, again, series, study, p2));
    assert_string_not_equal(p1, p2);
    /* The same id from another issuer is another patient, and the bare id no longer says which. */
    snprintf(twin.patient_id_issuer, sizeof twin.patient_id_issuer, "ELSEWHERE");
    add(c, "t.dcm", &twin, NULL);
    assert_false(catalogue_find(c, ID_PATIENT, "7", again));
    catalogue_close(c);
}

static void test_study(void **state)
{
    (void)state;
    catalogue *c = open_it();
    err e = {0};
    char key[KEY_HEX], instance[KEY_HEX];
    study_identity s;
    image_header h[3] = {header("7", 1, 1, 1), header("7", 1, 1, 2), header("8", 2, 1, 1)};
    h[2].format = IMAGE_NIFTI;
    frame_info f = {.frame = 1, .rows = 1, .columns = 1, .channels = 1};
    for (int i = 0; i < 3; i++) {
        char name[8];
        snprintf(name, sizeof name, "%d", i);
        add(c, name, &h[i], NULL);
        key_of(c, ID_SOP, h[i].sop_uid, instance);
        if (i != 1) assert_int_equal(catalogue_store(c, instance, &f, 1, &e), ERR_OK);
    }
    key_of(c, ID_STUDY, h[0].study_uid, key);
    assert_int_equal(catalogue_study(c, key, &s, &e), ERR_OK);
    assert_int_equal(s.n_instances, 1); /* the second is not stored */
    assert_string_equal(s.instances[0].sop_uid, h[0].sop_uid);
    assert_string_equal(s.instances[0].series_uid, h[0].series_uid);
    assert_string_equal(s.instances[0].sop_class, h[0].sop_class);
    assert_int_equal(s.instances[0].frames, 1);
    assert_string_equal(s.header.patient_name, "SECRETNAME^7");
    assert_string_equal(s.header.patient_birth_date, "19330712");
    assert_string_equal(s.header.accession, "SECRETACC1");
    assert_string_equal(s.header.study_uid, h[0].study_uid);
    catalogue_study_fini(&s);
    key_of(c, ID_STUDY, h[2].study_uid, key);
    assert_int_equal(catalogue_study(c, key, &s, &e), ERR_UNSUPPORTED);
    catalogue_study_fini(&s);
    e = (err){0};
    assert_int_equal(catalogue_study(c, "0123", &s, &e), ERR_NOTFOUND);
    catalogue_study_fini(&s);
    catalogue_close(c);
}

static void add_many(catalogue *c, int from, int to, err *e)
{
    for (int i = from; i < to; i++) {
        image_header h = header("7", 1, 1, i);
        char path[128];
        snprintf(path, sizeof path, "/nowhere/%d", i);
        if (catalogue_add(c, path, 1, 1, &h, NULL, NULL, e)) return;
    }
}

/* kill -9 between begin and commit: the transaction is gone from both databases, what was committed is there. */
static void test_kill(void **state)
{
    (void)state;
    for (int round = 0; round < 4; round++) {
        pid_t child = fork();
        if (child == 0) {
            catalogue *c = NULL;
            err e = {0};
            if (catalogue_open(&c, work, &e)) _exit(1);
            catalogue_begin(c, &e);
            add_many(c, round * 100, round * 100 + 50, &e);
            catalogue_commit(c, &e);
            catalogue_begin(c, &e);
            add_many(c, round * 100 + 50, round * 100 + 50 + (round + 1) * 10, &e);
            raise(SIGKILL);
        }
        int status;
        waitpid(child, &status, 0);
        assert_true(WIFSIGNALED(status));
        catalogue *c = open_it();
        catalogue_counts n = count(c);
        assert_int_equal(n.files, 50 * (round + 1));
        assert_int_equal(n.found, 50 * (round + 1));
        catalogue_close(c);
    }
}

static void test_full_disk(void **state)
{
    (void)state;
    catalogue_close(open_it());
    pid_t child = fork();
    if (child == 0) {
        catalogue *c = NULL;
        err e = {0};
        signal(SIGXFSZ, SIG_IGN);
        struct rlimit limit = {300 << 10, 300 << 10};
        setrlimit(RLIMIT_FSIZE, &limit);
        if (catalogue_open(&c, work, &e)) _exit(1);
        for (int i = 0; i < 200 && !e.code; i++) {
            if (catalogue_begin(c, &e)) break;
            add_many(c, i * 50, i * 50 + 50, &e);
            catalogue_commit(c, &e);
        }
        int code = (int)e.code;
        catalogue_close(c);
        _exit(code == ERR_NOSPACE ? 0 : 10 + code);
    }
    int status;
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    catalogue *c = open_it();
    catalogue_counts n = count(c);
    assert_true(n.files > 0);
    assert_int_equal(n.files, n.found);
    err e = {0};
    add_many(c, 20000, 20010, &e); /* and with room again it goes on */
    assert_int_equal(e.code, ERR_OK);
    assert_int_equal(count(c).found, n.found + 10);
    catalogue_close(c);
}

/* Damaged or foreign databases end in one clear error. */
static void test_damage(void **state)
{
    (void)state;
    const char *const names[] = {"catalogue.db", "identities.db"};
    for (int i = 0; i < 2; i++) {
        char path[256];
        snprintf(work, sizeof work, "%s/damaged%d", folder, i);
        catalogue_close(open_it());
        snprintf(path, sizeof path, "%s/%s", work, names[i]);
        put_file(path, "this is no database, whatever its name says, and long enough to be looked at twice: "
                       "this is no database, whatever its name says");
        catalogue *c = NULL;
        err e = {0};
        assert_int_equal(catalogue_open(&c, work, &e), ERR_FORMAT);
        assert_null(c);
    }
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {T(test_states),        T(test_tried_again),   T(test_upgrade_and_unstore),
                                       T(test_was_killed),    T(test_private),       T(test_duplicates),
                                       T(test_second_choice), T(test_changed_files), T(test_labels),
                                       T(test_study),         T(test_kill),          T(test_full_disk),
                                       T(test_damage)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
