/* label_set.c: see label_set.h. Cells may hold a patient's data by mistake: messages name rows and columns, never text
 * of a cell; names that the user gave on the command line may stand in them. */
#include "adapt/label_set.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

typedef char label_name[LABEL_SET_BYTES + 1];

bool label_set_trim(const char *cell, char *out, size_t size)
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

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

static bool is_whole_number(const char *s)
{
    size_t n = strspn(s, "0123456789");
    return n && n < 10 && !s[n];
}

static int by_value(const void *a, const void *b)
{
    int order = atoi(a) - atoi(b);
    return order ? order : strcmp(a, b);
}

static int find(const label_set *s, const char *name)
{
    for (int k = 0; k < s->n; k++)
        if (!strcmp(s->names[k], name)) return k;
    return -1;
}

/* --- names: from the command line, from the table */

/* Next piece of a list; *rest moves behind it. False at the end, and *out is whole. */
typedef enum { PIECE_END, PIECE_OK, PIECE_BAD } piece_fate;
static piece_fate next_piece(const char **rest, char between, label_name out)
{
    char piece[4 * LABEL_SET_BYTES];
    if (!*rest) return PIECE_END;
    const char *end = strchr(*rest, between);
    size_t n = end ? (size_t)(end - *rest) : strlen(*rest);
    if (n >= sizeof piece) return PIECE_BAD;
    memcpy(piece, *rest, n);
    piece[n] = 0;
    *rest = end ? end + 1 : NULL;
    return label_set_trim(piece, out, sizeof(label_name)) && is_plain_text(out) ? PIECE_OK : PIECE_BAD;
}

/* names from a list of the user's: the option's name is for the message. */
static err_code take_list(label_set *s, const char *option, const char *list, err *e)
{
    label_name name;
    piece_fate fate;
    s->names = calloc(LABEL_SET_MAX, sizeof *s->names);
    if (!s->names) FAIL(e, NOMEM, "label table: no memory");
    for (const char *rest = list; (fate = next_piece(&rest, ',', name));) {
        if (fate == PIECE_BAD || !*name || find(s, name) >= 0 || s->n == LABEL_SET_MAX)
            FAIL(e, USAGE, "%s: name %d is empty, too long, there twice or no plain text", option, s->n + 1);
        memcpy(s->names[s->n++], name, sizeof name);
    }
    return ERR_OK;
}

static err_code take_columns(label_set *s, const csv *t, const char *list, err *e)
{
    TRY(take_list(s, "--label-columns", list, e));
    s->column = calloc((size_t)s->n, sizeof *s->column);
    if (!s->column) FAIL(e, NOMEM, "label table: no memory");
    for (int k = 0; k < s->n; k++)
        if ((s->column[k] = csv_column(t, s->names[k])) < 0)
            FAIL(e, USAGE, "label table: it has no column '%.64s' (--label-columns)", s->names[k]);
    return ERR_OK;
}

/* Every name in the label cells of a table of label sets. */
static err_code collect(label_set *s, const csv *t, err *e)
{
    label_name name;
    piece_fate fate;
    s->names = calloc(LABEL_SET_MAX, sizeof *s->names);
    if (!s->names) FAIL(e, NOMEM, "label table: no memory");
    for (size_t r = 1; r < t->rows; r++)
        for (const char *rest = csv_at(t, r, s->label); (fate = next_piece(&rest, ';', name));) {
            if (fate == PIECE_BAD)
                FAIL(e, USAGE, "label table: row %zu has a label of more than %d bytes or that is not plain UTF-8 text",
                     r + 1, LABEL_SET_BYTES);
            if (!*name || find(s, name) >= 0) continue;
            if (s->n == LABEL_SET_MAX) FAIL(e, LIMIT, "label table: more than %d different labels", LABEL_SET_MAX);
            memcpy(s->names[s->n++], name, sizeof name);
        }
    qsort(s->names, (size_t)s->n, sizeof *s->names, by_name);
    return ERR_OK;
}

err_code label_set_open(label_set *s, const csv *t, const label_rules *rules, err *e)
{
    bool columns = rules->columns && *rules->columns, order = rules->order && *rules->order;
    *s = (label_set){.task = rules->task, .label = csv_column(t, "label")};
    if (columns && s->task != TASK_MULTILABEL) FAIL(e, USAGE, "--label-columns is for --task multilabel");
    if (order && s->task != TASK_ORDINAL) FAIL(e, USAGE, "--label-order is for --task ordinal");
    if (columns) return take_columns(s, t, rules->columns, e);
    if (s->label < 0) FAIL(e, INTERNAL, "label table: no column of labels");
    if (s->task == TASK_MULTILABEL) return collect(s, t, e);
    s->ordered = order;
    return order ? take_list(s, "--label-order", rules->order, e) : ERR_OK;
}

void label_set_close(label_set *s)
{
    free(s->column);
    free(s->names);
    *s = (label_set){0};
}

bool label_set_uses(const label_set *s, int column)
{
    if (!s->column) return column == s->label;
    for (int k = 0; k < s->n; k++)
        if (s->column[k] == column) return true;
    return false;
}

/* --- rows */

/* 1, 0, -1 (not known: empty, or CheXpert's uncertain); -2: something else. */
static int mark_of(const char *cell)
{
    static const struct {
        const char *text;
        int mark;
    } known[] = {{"", -1}, {"1", 1}, {"0", 0}, {"-1", -1}, {"1.0", 1}, {"0.0", 0}, {"-1.0", -1}};
    char text[8];
    if (!label_set_trim(cell, text, sizeof text)) return -2;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(text, known[i].text)) return known[i].mark;
    return -2;
}

static err_code read_columns(const label_set *s, const csv *t, size_t row, label_value *out, err *e)
{
    out->empty = true;
    for (int k = 0; k < s->n; k++) {
        int mark = mark_of(csv_at(t, row, s->column[k]));
        if (mark < -1)
            FAIL(e, USAGE, "label table: row %zu, column '%.64s': neither 1 nor 0 nor empty", row + 1, s->names[k]);
        out->marks[k] = (signed char)mark;
        out->empty &= mark < 0;
    }
    return ERR_OK;
}

static void read_names(const label_set *s, const csv *t, size_t row, label_value *out)
{
    label_name name;
    for (const char *rest = csv_at(t, row, s->label); next_piece(&rest, ';', name) == PIECE_OK;)
        if (*name) out->marks[find(s, name)] = 1;
}

err_code label_set_row(const label_set *s, const csv *t, size_t row, label_value *out, err *e)
{
    *out = (label_value){.label = -1};
    if (s->task == TASK_MULTILABEL) {
        out->marks = calloc((size_t)s->n + 1, 1);
        if (!out->marks) FAIL(e, NOMEM, "label table: no memory");
        if (s->column) return read_columns(s, t, row, out, e);
        read_names(s, t, row, out);
        return ERR_OK;
    }
    if (!label_set_trim(csv_at(t, row, s->label), out->text, sizeof out->text))
        FAIL(e, USAGE, "label table: row %zu has a label of more than %d bytes", row + 1, LABEL_SET_BYTES);
    if (!is_plain_text(out->text)) FAIL(e, USAGE, "label table: the label in row %zu is not plain UTF-8 text", row + 1);
    out->empty = !*out->text;
    if (out->empty) return ERR_OK;
    if (s->ordered && find(s, out->text) < 0)
        FAIL(e, USAGE, "label table: the label in row %zu is not in --label-order", row + 1);
    if (s->task == TASK_ORDINAL && !s->ordered && !is_whole_number(out->text))
        FAIL(e, USAGE, "label table: the grade in row %zu is no whole number; say their order: --label-order", row + 1);
    return ERR_OK;
}

bool label_set_same(const label_set *s, const label_value *a, const label_value *b)
{
    if (s->task == TASK_MULTILABEL) return !memcmp(a->marks, b->marks, (size_t)s->n);
    return !strcmp(a->text, b->text);
}

/* --- the names that are left */

/* Labels that no value has go. */
static err_code prune(label_set *s, label_value *const *values, size_t n, err *e)
{
    int kept = 0;
    for (int k = 0; k < s->n; k++) {
        bool there = false;
        for (size_t i = 0; i < n && !there; i++) there = values[i]->marks[k] == 1;
        if (!there) continue;
        if (kept != k) memcpy(s->names[kept], s->names[k], sizeof *s->names);
        for (size_t i = 0; i < n; i++) values[i]->marks[kept] = values[i]->marks[k];
        if (s->column) s->column[kept] = s->column[k];
        kept++;
    }
    if (kept < s->n) log_event(LOG_WARN, "labels.without_a_case", "labels", LOG_INT(s->n - kept), NULL);
    s->n = kept;
    if (!kept) FAIL(e, USAGE, "label table: no usable row has any label");
    return ERR_OK;
}

/* Sorted, each once. */
static err_code sort_classes(label_set *s, label_value *const *values, size_t n, err *e)
{
    bool numbers = true;
    size_t kept = 0;
    s->names = malloc((n + 1) * sizeof *s->names);
    if (!s->names) FAIL(e, NOMEM, "label table: no memory");
    for (size_t i = 0; i < n; i++) {
        memcpy(s->names[i], values[i]->text, sizeof *s->names);
        numbers &= is_whole_number(s->names[i]);
    }
    qsort(s->names, n, sizeof *s->names, numbers ? by_value : by_name);
    for (size_t i = 0; i < n; i++)
        if (!kept || strcmp(s->names[kept - 1], s->names[i])) memmove(s->names[kept++], s->names[i], sizeof *s->names);
    s->n = (int)(kept < LABEL_SET_MAX ? kept : LABEL_SET_MAX);
    if (kept > LABEL_SET_MAX) FAIL(e, LIMIT, "label table: %zu different labels, at most %d", kept, LABEL_SET_MAX);
    return ERR_OK;
}

err_code label_set_names(label_set *s, label_value *const *values, size_t n, err *e)
{
    if (s->task == TASK_MULTILABEL) return prune(s, values, n, e);
    if (!s->ordered) TRY(sort_classes(s, values, n, e));
    bool differ = false;
    for (size_t i = 0; i < n; i++) {
        values[i]->label = find(s, values[i]->text);
        differ |= values[i]->label != values[0]->label;
    }
    if (!differ) FAIL(e, USAGE, "label table: all usable rows have the same label; two are needed to learn from");
    return ERR_OK;
}
