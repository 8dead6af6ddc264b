/* labels.c: row by row: the finest key given names the thing; coarser keys must agree where the catalogue knows them.
 *
 * Cells hold a hospital's identifiers: none of them gets into a message, only row and column numbers. */
#include "adapt/labels.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "adapt/label_set.h"
#include "base/file.h"
#include "base/log.h"

enum { LEVELS = 4, KINDS = 5 };

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
    label_value value;
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

/* Columns of the keys, and whether there is one of labels unless labels have columns of their own. */
static err_code columns(const csv *t, int column[KINDS], bool own_columns, err *e)
{
    const char *first = csv_at(t, 0, 0);
    size_t keys = 0, near;
    for (int k = 0; k < KINDS; k++) keys += (column[k] = csv_column(t, kinds[k].name)) >= 0;
    if (t->columns == 1 && (strchr(first, ';') || strchr(first, '\t')))
        FAIL(e, USAGE, "label table: columns must be separated by commas");
    if (csv_column(t, "label") < 0 && !own_columns) {
        if ((near = misspelt(t, "label")))
            FAIL(e, USAGE, "label table: no column 'label'; did you mean it by column %zu?", near);
        FAIL(e, USAGE, "label table: no column 'label' (needed: " ACCEPTED ")");
    }
    for (int k = 0; k < KINDS && !keys; k++)
        if ((near = misspelt(t, kinds[k].name)))
            FAIL(e, USAGE, "label table: unknown column %zu; did you mean '%s'? (needed: " ACCEPTED ")", near,
                 kinds[k].name);
    if (!keys) FAIL(e, USAGE, "label table: no column says which image is meant (needed: " ACCEPTED ")");
    return ERR_OK;
}

/* No two columns in use have one name; how many are not in use is said. */
static err_code check_columns(const csv *t, const label_set *s, err *e)
{
    size_t known = 0;
    for (size_t j = 0; j < t->columns; j++) { /* csv_column finds the first of a name */
        const char *cell = csv_at(t, 0, (int)j);
        csv one = {.rows = 1, .columns = 1, .cells = (char *[]){(char *)(uintptr_t)cell}};
        const char *name = NULL;
        for (int k = 0; k < KINDS && !name; k++)
            if (!csv_column(&one, kinds[k].name)) name = kinds[k].name;
        if (!name && !s->column && !csv_column(&one, "label")) name = "label";
        for (int k = 0; k < s->n && s->column && !name; k++)
            if (!csv_column(&one, s->names[k])) name = s->names[k];
        if (!name) continue;
        known++;
        if (csv_column(t, name) != (int)j) FAIL(e, USAGE, "label table: two columns are called '%s'", name);
    }
    if (known < t->columns) log_event(LOG_WARN, "labels.ignored_columns", "columns", LOG_INT(t->columns - known), NULL);
    return ERR_OK;
}

/* --- rows */

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
        if (!label_set_trim(csv_at(t, row, column[k]), text, sizeof text)) return ROW_ABSENT;
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

/* things (room for every row), *n of them, by row; after failure too. */
static err_code read_rows(cohort *c, const frame_index *x, catalogue *cat, const csv *t, const int column[KINDS],
                          const label_set *s, thing *things, size_t *n, err *e)
{
    for (size_t r = 1; r < t->rows; r++) {
        thing *out = &things[(*n)++];
        *out = (thing){.row = r, .rows = 1};
        TRY(label_set_row(s, t, r, &out->value, e));
        c->rows++;
        row_fate fate = out->value.empty ? ROW_EMPTY : resolve(x, cat, t, r, column, out);
        c->rows_empty += fate == ROW_EMPTY;
        c->rows_without_image += fate == ROW_ABSENT;
        c->rows_conflicting += fate == ROW_CONFLICT;
        if (fate == ROW_OK) continue;
        free(out->value.marks);
        (*n)--;
    }
    return ERR_OK;
}

/* Rows that name the same thing become one; where they disagree it is marked. Finest things first afterwards. */
static size_t merge(thing *things, size_t n, const label_set *s)
{
    size_t kept = 0;
    qsort(things, n, sizeof *things, by_thing);
    for (size_t i = 0; i < n; i++) {
        thing *last = kept ? &things[kept - 1] : NULL;
        if (last && last->level == things[i].level && !strcmp(last->key, things[i].key)) {
            last->rows++;
            last->conflict |= !label_set_same(s, &last->value, &things[i].value);
            free(things[i].value.marks);
        } else
            things[kept++] = things[i];
    }
    return kept;
}

/* --- labels and cases */

static err_code make_labels(cohort *c, label_set *s, thing *things, size_t n, err *e)
{
    label_value **values = malloc((n + 1) * sizeof *values);
    if (!values) FAIL(e, NOMEM, "label table: no memory");
    for (size_t i = 0; i < n; i++) values[i] = &things[i].value;
    err_code rc = label_set_names(s, values, n, e);
    free(values);
    TRY(rc);
    c->task = s->task;
    c->labels = s->names;
    s->names = NULL;
    c->n_labels = s->n;
    c->n_strata = c->task == TASK_MULTILABEL ? c->n_labels + 1 : c->n_labels;
    return ERR_OK;
}

/* stratum of every case: its label; of a set of labels the one with the fewest cases. */
static err_code stratify(cohort *c, err *e)
{
    size_t K = (size_t)c->n_labels, *cases = calloc(K, sizeof *cases);
    if (!cases) FAIL(e, NOMEM, "label table: no memory");
    for (size_t i = 0; i < c->n_cases; i++)
        for (size_t k = 0; k < K && c->cases[i].marks; k++) cases[k] += c->cases[i].marks[k] == 1;
    for (size_t i = 0; i < c->n_cases; i++) {
        labelled_case *one = &c->cases[i];
        one->stratum = one->marks ? c->n_labels : one->label;
        for (size_t k = 0; k < K && one->marks; k++)
            if (one->marks[k] == 1 && (one->stratum == c->n_labels || cases[k] < cases[one->stratum]))
                one->stratum = (int)k;
    }
    free(cases);
    return ERR_OK;
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
        k->label = things[i].value.label;
        k->marks = things[i].value.marks;
        things[i].value.marks = NULL;
        k->part = SPLIT_NONE;
    }
done:
    free(taken);
    return rc;
}

/* Things whose rows disagree go; the rest stays in order. */
static size_t drop_conflicts(cohort *c, thing *things, size_t n)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (!things[i].conflict) {
            things[kept++] = things[i];
            continue;
        }
        c->rows_conflicting += things[i].rows;
        free(things[i].value.marks);
    }
    return kept;
}

static err_code make_cases(cohort *c, const frame_index *x, label_set *s, thing *things, size_t kept, size_t rows,
                           err *e)
{
    if (!kept)
        FAIL(e, EMPTY,
             "label table: none of its %zu rows is usable (%zu name no stored image, %zu conflict, %zu empty)", c->rows,
             c->rows_without_image, c->rows_conflicting, c->rows_empty);
    TRY(make_labels(c, s, things, kept, e));
    labelled_case *made = calloc(rows + 1, sizeof *made); /* by row, so that the order is that of the table */
    if (!made) FAIL(e, NOMEM, "label table: no memory for %zu rows", rows);
    c->cases = made;
    c->n_cases = rows;
    TRY(take_frames(c, x, things, kept, made, e));
    c->n_cases = 0;
    for (size_t i = 0; i < rows; i++) {
        if (made[i].n_frames)
            made[c->n_cases++] = made[i];
        else {
            free(made[i].frames);
            free(made[i].marks);
        }
    }
    return stratify(c, e);
}

err_code labels_read(cohort *c, catalogue *cat, const char *path, const label_rules *rules, err *e)
{
    csv t = {0};
    frame_index x = {0};
    label_set s = {0};
    thing *things = NULL;
    int column[KINDS];
    size_t n = 0;
    err why = {0};
    err_code rc = csv_read(&t, path, &why);
    if (rc) return err_set(e, rc, __FILE__, __LINE__, "label table: %s", why.msg);
    TRY_DONE(rc, columns(&t, column, rules->columns && *rules->columns, e));
    TRY_DONE(rc, label_set_open(&s, &t, rules, e));
    TRY_DONE(rc, check_columns(&t, &s, e));
    TRY_DONE(rc, index_frames(&x, c, e));
    things = malloc((t.rows + 1) * sizeof *things);
    if (!things) FAIL_DONE(rc, e, NOMEM, "label table: no memory for %zu rows", t.rows);
    TRY_DONE(rc, read_rows(c, &x, cat, &t, column, &s, things, &n, e));
    n = merge(things, n, &s);
    n = drop_conflicts(c, things, n);
    TRY_DONE(rc, make_cases(c, &x, &s, things, n, t.rows, e));
    bool aside = c->rows_without_image || c->rows_conflicting || c->rows_empty;
    log_event(aside ? LOG_WARN : LOG_INFO, "labels.read", "rows", LOG_INT(c->rows), "cases", LOG_INT(c->n_cases),
              "labels", LOG_INT(c->n_labels), "without_image", LOG_INT(c->rows_without_image), "conflicting",
              LOG_INT(c->rows_conflicting), "empty", LOG_INT(c->rows_empty), NULL);
done:
    for (size_t i = 0; i < n; i++) free(things[i].value.marks);
    for (int l = 0; l < LEVELS; l++) free(x.level[l]);
    label_set_close(&s);
    free(things);
    csv_close(&t);
    return rc;
}
