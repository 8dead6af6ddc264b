/* csv.c: libcsv's parser into one table. */
#include "base/csv.h"

#include <csv.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/arena.h"
#include "base/file.h"

enum { CSV_BYTES_MAX = 1 << 30 };

typedef struct {
    char **field; /* all fields, row after row */
    size_t n, capacity;
    size_t *row_start; /* (rows) */
    size_t rows, row_capacity, first_of_row, widest;
    int no_memory;
} builder;

static int grow(void *array, size_t *capacity, size_t n, size_t size)
{
    void **a = array;
    if (n < *capacity) return 1;
    size_t want = *capacity ? 2 * *capacity : 256, bytes;
    void *p = size_mul(want, size, &bytes) ? realloc(*a, bytes) : NULL;
    if (!p) return 0;
    *a = p;
    *capacity = want;
    return 1;
}

static void on_field(void *text, size_t bytes, void *ctx)
{
    builder *b = ctx;
    if (b->no_memory) return;
    char *copy = malloc(bytes + 1);
    if (!copy || !grow(&b->field, &b->capacity, b->n, sizeof *b->field)) {
        free(copy);
        b->no_memory = 1;
        return;
    }
    if (bytes) memcpy(copy, text, bytes);
    copy[bytes] = 0;
    b->field[b->n++] = copy;
}

static void on_row(int end, void *ctx)
{
    builder *b = ctx;
    (void)end;
    if (b->no_memory || !grow(&b->row_start, &b->row_capacity, b->rows, sizeof *b->row_start)) {
        b->no_memory = 1;
        return;
    }
    b->row_start[b->rows++] = b->first_of_row;
    if (b->n - b->first_of_row > b->widest) b->widest = b->n - b->first_of_row;
    b->first_of_row = b->n;
}

err_code csv_read(csv *t, const char *path, err *e)
{
    *t = (csv){0};
    builder b = {0};
    char *text = NULL;
    size_t bytes = 0, cells;
    err_code rc;
    struct csv_parser parser;
    TRY(file_read(path, CSV_BYTES_MAX, &text, &bytes, e));
    if (csv_init(&parser, CSV_APPEND_NULL | CSV_STRICT | CSV_STRICT_FINI)) {
        free(text);
        FAIL(e, NOMEM, "no memory for the CSV parser");
    }
    if (memchr(text, 0, bytes)) FAIL_DONE(rc, e, FORMAT, "CSV holds NUL bytes: is it UTF-16?");
    size_t skip = bytes >= 3 && !memcmp(text, "\xEF\xBB\xBF", 3) ? 3 : 0;
    size_t parsed = csv_parse(&parser, text + skip, bytes - skip, on_field, on_row, &b);
    if (parsed != bytes - skip || csv_fini(&parser, on_field, on_row, &b))
        FAIL_DONE(rc, e, FORMAT,
                  "CSV is malformed behind row %zu: a quote that is not closed, or in the middle of a field", b.rows);
    if (b.no_memory || !size_mul(b.rows, b.widest, &cells))
        FAIL_DONE(rc, e, NOMEM, "no memory for %zu CSV rows", b.rows);
    if (b.rows == 0) FAIL_DONE(rc, e, EMPTY, "CSV file has no header row");
    t->cells = calloc(cells, sizeof *t->cells);
    if (!t->cells) FAIL_DONE(rc, e, NOMEM, "no memory for %zu CSV rows", b.rows);
    t->rows = b.rows;
    t->columns = b.widest;
    for (size_t r = 0; r < b.rows; r++) {
        size_t end = r + 1 < b.rows ? b.row_start[r + 1] : b.n;
        for (size_t i = b.row_start[r]; i < end; i++) {
            t->cells[r * b.widest + (i - b.row_start[r])] = b.field[i];
            b.field[i] = NULL;
        }
    }
    rc = ERR_OK;
done:
    csv_free(&parser);
    if (rc) csv_close(t);
    for (size_t i = 0; i < b.n; i++) free(b.field[i]);
    free(b.field);
    free(b.row_start);
    free(text);
    return rc;
}

void csv_close(csv *t)
{
    for (size_t i = 0; t->cells && i < t->rows * t->columns; i++) free(t->cells[i]);
    free(t->cells);
    *t = (csv){0};
}

/* Is cell, without surrounding blanks, the same as name? */
static int same_name(const char *cell, const char *name)
{
    size_t n = strlen(name);
    while (*cell == ' ' || *cell == '\t') cell++;
    if (strncasecmp(cell, name, n)) return 0;
    cell += n;
    while (*cell == ' ' || *cell == '\t') cell++;
    return !*cell;
}

int csv_column(const csv *t, const char *name)
{
    for (size_t i = 0; t->rows && i < t->columns; i++)
        if (t->cells[i] && same_name(t->cells[i], name)) return (int)i;
    return -1;
}

const char *csv_at(const csv *t, size_t row, int column)
{
    if (row >= t->rows || column < 0 || (size_t)column >= t->columns) return "";
    const char *cell = t->cells[row * t->columns + (size_t)column];
    return cell ? cell : "";
}

void csv_field(FILE *f, const char *text)
{
    size_t n = strlen(text); /* readers strip blanks around a field that is not quoted */
    if (!strpbrk(text, ",\"\r\n\t") && *text != ' ' && (!n || text[n - 1] != ' ')) {
        fputs(text, f);
        return;
    }
    fputc('"', f);
    for (; *text; text++) {
        if (*text == '"') fputc('"', f);
        fputc(*text, f);
    }
    fputc('"', f);
}
