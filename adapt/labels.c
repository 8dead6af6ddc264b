/* labels.c: row by row: the finest key given names the thing; coarser keys must agree where the catalogue knows them.
 *
 * Cells hold a hospital's identifiers: none of them gets into a message, only row and column numbers. */
#include "adapt/labels.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/csv.h"
#include "base/file.h"
#include "base/log.h"

enum { LEVELS = 4, KINDS = 5, CLASSES_MAX = 1000, LABEL_BYTES = 64 };

/* From coarse to fine; the level of a kind's key. */
static const struct {
    const char *name;
    id_kind kind;
    int level;
} kinds[KINDS] = {{"patient_id", ID_PATIENT, 0},
                  {"study_uid", ID_STUDY, 1},
                  {"series_uid", ID_SERIES, 2},
                  {"sop_uid", ID_SOP, 3},
                  {"path", ID_PATH, 3}};
#define ACCEPTED "label and at least one of patient_id, study_uid, series_uid, sop_uid, path"

typedef struct {
    char key[KEY_HEX];
    int level;
    size_t row; /* where it was first named */
    char label[LABEL_BYTES + 1];
    bool conflict;
    size_t rows; /* that name it */
} thing;

typedef struct {
    const char *key;
    uint32_t frame;
} keyed_frame;

static const char *frame_key(const frame_info *f, int level)
{
    return level == 0 ? f->patient_key : level == 1 ? f->study_key : level == 2 ? f->series_key : f->instance_key;
}

static int by_key_and_frame(const void *a, const void *b)
{
    const keyed_frame *x = a, *y = b;
    int order = strcmp(x->key, y->key);
    return order ? order : (x->frame > y->frame) - (x->frame < y->frame);
}

static int by_row(const void *a, const void *b)
{
    const thing *x = a, *y = b;
    return (x->row > y->row) - (x->row < y->row);
}

/* Same thing together, in the order of the rows. */
static int by_thing(const void *a, const void *b)
{
    const thing *x = a, *y = b;
    if (x->level != y->level) return x->level < y->level ? 1 : -1; /* finest first */
    int order = strcmp(x->key, y->key);
    return order ? order : by_row(a, b);
}

/* --- the header */

/* Edits (insert, delete, replace) between two short words, case and punctuation aside; words too long are far apart. */
static int distance(const char *a, const char *b)
{
    char x[24], y[24];
    size_t n = 0, m = 0;
    for (; *a; a++)
        if (isalnum((unsigned char)*a)) {
            if (n == sizeof x) return 99;
            x[n++] = (char)tolower((unsigned char)*a);
        }
    for (; *b; b++)
        if (isalnum((unsigned char)*b)) y[m++] = (char)tolower((unsigned char)*b);
    int row[25];
    for (size_t j = 0; j <= m; j++) row[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int corner = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int best = corner + (x[i - 1] != y[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            corner = row[j];
            row[j] = best;
        }
    }
    return row[m];
}

/* Number (from 1) of the column that looks like a misspelling of name; 0: none. A file without a header has data in its
 * first row, so the column's own text is not shown. */
static size_t misspelt(const csv *t, const char *name)
{
    for (size_t j = 0; j < t->columns; j++) {
        const char *cell = csv_at(t, 0, (int)j);
        if (*cell && distance(cell, name) <= 2) return j + 1;
    }
    return 0;
}

static err_code columns(const csv *t, int column[KINDS], int *label, err *e)
{
    const char *first = csv_at(t, 0, 0);
    *label = csv_column(t, "label");
    size_t keys = 0, known = 0, near;
    for (int k = 0; k < KINDS; k++) keys += (column[k] = csv_column(t, kinds[k].name)) >= 0;
    if (t->columns == 1 && (strchr(first, ';') || strchr(first, '\t')))
        FAIL(e, USAGE, "label table: columns must be separated by commas");
    if (*label < 0) {
        if ((near = misspelt(t, "label")))
            FAIL(e, USAGE, "label table: no column 'label'; did you mean it by column %zu?", near);
        FAIL(e, USAGE, "label table: no column 'label' (needed: " ACCEPTED ")");
    }
    for (int k = 0; k < KINDS && !keys; k++)
        if ((near = misspelt(t, kinds[k].name)))
            FAIL(e, USAGE, "label table: unknown column %zu; did you mean '%s'? (needed: " ACCEPTED ")", near,
                 kinds[k].name);
    if (!keys) FAIL(e, USAGE, "label table: no column says which image is meant (needed: " ACCEPTED ")");
    for (size_t j = 0; j < t->columns; j++) { /* csv_column finds the first of a name */
        const char *cell = csv_at(t, 0, (int)j);
        csv one = {.rows = 1, .columns = 1, .cells = (char *[]){(char *)(uintptr_t)cell}};
        for (int k = -1; k < KINDS; k++) {
            const char *name = k < 0 ? "label" : kinds[k].name;
            if (csv_column(&one, name)) continue;
            known++;
            if (csv_column(t, name) != (int)j) FAIL(e, USAGE, "label table: two columns are called '%s'", name);
        }
    }
    if (known < t->columns) log_event(LOG_WARN, "labels.ignored_columns", "columns", LOG_INT(t->columns - known), NULL);
    return ERR_OK;
}

/* --- rows */

/* out[size] = cell without surrounding blanks; false if too long. */
static bool trimmed(const char *cell, char *out, size_t size)
{
    while (isspace((unsigned char)*cell)) cell++;
    size_t n = strlen(cell);
    while (n && isspace((unsigned char)cell[n - 1])) n--;
    if (n >= size) return false;
    memcpy(out, cell, n);
    out[n] = 0;
    return true;
}

/* Text that JSON, DICOM and a terminal take: UTF-8 (RFC 3629) without control characters and backslash. */
static bool is_plain_text(const char *s)
{
    const unsigned char *p = (const unsigned char *)s;
    while (*p) {
        static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
        int bytes = *p < 0x80 ? 1 : *p >> 5 == 6 ? 2 : *p >> 4 == 14 ? 3 : *p >> 3 == 30 ? 4 : 0;
        if (!bytes || *p < 0x20 || *p == 0x7f || *p == '\\') return false;
        uint32_t c = bytes == 1 ? *p : *p & (0xffu >> (bytes + 1));
        for (int i = 1; i < bytes; i++) {
            if (p[i] >> 6 != 2) return false;
            c = c << 6 | (p[i] & 63u);
        }
        if (c < least[bytes] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return false;
        p += bytes;
    }
    return true;
}

typedef struct {
    const cohort *c;
    keyed_frame *level[LEVELS]; /* (n_frames) sorted by key, then frame */
} frame_index;

static err_code index_frames(frame_index *x, const cohort *c, err *e)
{
    x->c = c;
    for (int l = 0; l < LEVELS; l++) {
        x->level[l] = malloc((c->n_frames + 1) * sizeof *x->level[l]);
        if (!x->level[l]) FAIL(e, NOMEM, "label table: no memory for %zu frames", c->n_frames);
        for (size_t i = 0; i < c->n_frames; i++)
            x->level[l][i] = (keyed_frame){frame_key(&c->frames[i], l), (uint32_t)i};
        qsort(x->level[l], c->n_frames, sizeof *x->level[l], by_key_and_frame);
    }
    return ERR_OK;
}

/* The frames of a key: *n of them from the result on. */
static const keyed_frame *frames_of(const frame_index *x, int level, const char *key, size_t *n)
{
    const keyed_frame *all = x->level[level];
    size_t low = 0, high = x->c->n_frames, end;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(all[middle].key, key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    for (end = low; end < x->c->n_frames && !strcmp(all[end].key, key); end++)
        ;
    *n = end - low;
    return all + low;
}

typedef enum { ROW_OK, ROW_EMPTY, ROW_ABSENT, ROW_CONFLICT } row_fate;

/* The keys of the row: the finest given is the thing; every other that the catalogue knows must contain it, and what
 * belongs to two patients (one Study Instance UID under two patient ids) cannot be on one side of the split. */
static row_fate resolve(const frame_index *x, catalogue *cat, const csv *t, size_t row, const int column[KINDS],
                        thing *out)
{
    char text[FILE_PATH_MAX], key[KEY_HEX];
    const frame_info *of = NULL;
    for (int k = KINDS - 1; k >= 0; k--) {
        if (!trimmed(csv_at(t, row, column[k]), text, sizeof text)) return ROW_ABSENT;
        if (!*text) continue;
        bool known = catalogue_find(cat, kinds[k].kind, text, key);
        if (of) { /* unknown here: another system's patient number, say */
            if (known && strcmp(frame_key(of, kinds[k].level), key)) return ROW_CONFLICT;
            continue;
        }
        size_t n = 0;
        const keyed_frame *f = known ? frames_of(x, kinds[k].level, key, &n) : NULL;
        if (!f || !n) return ROW_ABSENT;
        of = &x->c->frames[f[0].frame];
        for (size_t i = 1; i < n; i++)
            if (strcmp(frame_key(&x->c->frames[f[i].frame], 0), of->patient_key)) return ROW_CONFLICT;
        out->level = kinds[k].level;
        memcpy(out->key, key, KEY_HEX);
    }
    return of ? ROW_OK : ROW_EMPTY;
}

/* things (room for every row), *n of them, by row. */
static err_code read_rows(cohort *c, const frame_index *x, catalogue *cat, const csv *t, const int column[KINDS],
                          int label, thing *things, size_t *n, err *e)
{
    *n = 0;
    for (size_t r = 1; r < t->rows; r++) {
        thing *out = &things[*n];
        *out = (thing){.row = r, .rows = 1};
        if (!trimmed(csv_at(t, r, label), out->label, sizeof out->label))
            FAIL(e, USAGE, "label table: row %zu has a label of more than %d bytes", r + 1, LABEL_BYTES);
        if (!is_plain_text(out->label))
            FAIL(e, USAGE, "label table: the label in row %zu is not plain UTF-8 text", r + 1);
        c->rows++;
        row_fate fate = *out->label ? resolve(x, cat, t, r, column, out) : ROW_EMPTY;
        c->rows_empty += fate == ROW_EMPTY;
        c->rows_without_image += fate == ROW_ABSENT;
        c->rows_conflicting += fate == ROW_CONFLICT;
        *n += fate == ROW_OK;
    }
    return ERR_OK;
}

/* Rows that name the same thing become one; where they disagree it is marked. Finest things first afterwards. */
static size_t merge(thing *things, size_t n)
{
    size_t kept = 0;
    qsort(things, n, sizeof *things, by_thing);
    for (size_t i = 0; i < n; i++) {
        thing *last = kept ? &things[kept - 1] : NULL;
        if (last && last->level == things[i].level && !strcmp(last->key, things[i].key)) {
            last->rows++;
            last->conflict |= strcmp(last->label, things[i].label) != 0;
        } else
            things[kept++] = things[i];
    }
    return kept;
}

/* --- classes and cases */

static bool is_whole_number(const char *s)
{
    size_t n = strspn(s, "0123456789");
    return n && n < 10 && !s[n];
}

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

static int by_value(const void *a, const void *b)
{
    int order = atoi(a) - atoi(b);
    return order ? order : strcmp(a, b);
}

static err_code make_classes(cohort *c, const thing *things, size_t n, err *e)
{
    char(*names)[LABEL_BYTES + 1] = malloc((n + 1) * sizeof *names);
    if (!names) FAIL(e, NOMEM, "label table: no memory");
    bool numbers = true;
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        memcpy(names[i], things[i].label, sizeof names[i]);
        numbers &= is_whole_number(names[i]);
    }
    qsort(names, n, sizeof *names, numbers ? by_value : by_name);
    for (size_t i = 0; i < n; i++)
        if (!kept || strcmp(names[kept - 1], names[i])) memmove(names[kept++], names[i], sizeof *names);
    c->labels = names;
    c->n_labels = (int)(kept < CLASSES_MAX ? kept : CLASSES_MAX);
    if (kept > CLASSES_MAX) FAIL(e, LIMIT, "label table: %zu different labels, at most %d", kept, CLASSES_MAX);
    if (kept < 2) FAIL(e, USAGE, "label table: all usable rows have the same label; two are needed to learn from");
    return ERR_OK;
}

static int class_of(const cohort *c, const char *name)
{
    for (int k = 0; k < c->n_labels; k++)
        if (!strcmp(c->labels[k], name)) return k;
    return -1;
}

/* things (finest first) take their frames; a frame once taken stays. Things left without any go. Then by row. */
static err_code take_frames(cohort *c, const frame_index *x, thing *things, size_t n, labelled_case *made, err *e)
{
    bool *taken = calloc(c->n_frames + 1, sizeof *taken);
    if (!taken) FAIL(e, NOMEM, "label table: no memory");
    err_code rc = ERR_OK;
    for (size_t i = 0; i < n; i++) {
        size_t count, free_frames = 0;
        const keyed_frame *f = frames_of(x, things[i].level, things[i].key, &count);
        labelled_case *k = &made[things[i].row];
        k->frames = malloc((count + 1) * sizeof *k->frames);
        if (!k->frames) FAIL_DONE(rc, e, NOMEM, "label table: no memory");
        for (size_t j = 0; j < count; j++) {
            if (taken[f[j].frame]) continue;
            taken[f[j].frame] = true;
            k->frames[free_frames++] = f[j].frame;
        }
        k->n_frames = free_frames;
        memcpy(k->key, things[i].key, KEY_HEX);
        memcpy(k->patient_key, c->frames[f[0].frame].patient_key, KEY_HEX);
        k->label = class_of(c, things[i].label);
        k->part = SPLIT_NONE;
    }
done:
    free(taken);
    return rc;
}

static err_code make_cases(cohort *c, const frame_index *x, thing *things, size_t n, size_t rows, err *e)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (things[i].conflict)
            c->rows_conflicting += things[i].rows;
        else
            things[kept++] = things[i];
    }
    if (!kept)
        FAIL(e, EMPTY,
             "label table: none of its %zu rows is usable (%zu name no stored image, %zu conflict, %zu empty)", c->rows,
             c->rows_without_image, c->rows_conflicting, c->rows_empty);
    TRY(make_classes(c, things, kept, e));
    labelled_case *made = calloc(rows + 1, sizeof *made); /* by row, so that the order is that of the table */
    if (!made) FAIL(e, NOMEM, "label table: no memory for %zu rows", rows);
    c->cases = made;
    c->n_cases = rows;
    TRY(take_frames(c, x, things, kept, made, e));
    c->n_cases = 0;
    for (size_t i = 0; i < rows; i++) {
        if (made[i].n_frames)
            made[c->n_cases++] = made[i];
        else
            free(made[i].frames);
    }
    return ERR_OK;
}

err_code labels_read(cohort *c, catalogue *cat, const char *path, err *e)
{
    csv t = {0};
    frame_index x = {0};
    thing *things = NULL;
    int column[KINDS], label;
    size_t n;
    err why = {0};
    err_code rc = csv_read(&t, path, &why);
    if (rc) return err_set(e, rc, __FILE__, __LINE__, "label table: %s", why.msg);
    TRY_DONE(rc, columns(&t, column, &label, e));
    TRY_DONE(rc, index_frames(&x, c, e));
    things = malloc((t.rows + 1) * sizeof *things);
    if (!things) FAIL_DONE(rc, e, NOMEM, "label table: no memory for %zu rows", t.rows);
    TRY_DONE(rc, read_rows(c, &x, cat, &t, column, label, things, &n, e));
    n = merge(things, n);
    TRY_DONE(rc, make_cases(c, &x, things, n, t.rows, e));
    bool aside = c->rows_without_image || c->rows_conflicting || c->rows_empty;
    log_event(aside ? LOG_WARN : LOG_INFO, "labels.read", "rows", LOG_INT(c->rows), "cases", LOG_INT(c->n_cases),
              "classes", LOG_INT(c->n_labels), "without_image", LOG_INT(c->rows_without_image), "conflicting",
              LOG_INT(c->rows_conflicting), "empty", LOG_INT(c->rows_empty), NULL);
done:
    for (int l = 0; l < LEVELS; l++) free(x.level[l]);
    free(things);
    csv_close(&t);
    return rc;
}
