/* csv.h: CSV as spreadsheets write it (RFC 4180, via libcsv): quoted fields, CRLF, a UTF-8 byte order mark.
 *
 *     csv t;
 *     TRY(csv_read(&t, path, &e));         // row 0 is the header
 *     int c = csv_column(&t, "label");     // -1: not there
 *     const char *v = csv_at(&t, row, c);  // rows 1..t.rows-1; "" where a row is short
 *     csv_close(&t); */
#ifndef RADAPT_CSV_H
#define RADAPT_CSV_H
#include <stddef.h>
#include <stdio.h>

#include "err.h"

typedef struct {
    size_t rows, columns; /* columns of the widest row */
    char **cells;         /* (rows, columns), owned; NULL = short row */
} csv;

err_code csv_read(csv *t, const char *path, err *e);
void csv_close(csv *t);
int csv_column(const csv *t, const char *name); /* case-insensitive, surrounding blanks ignored */
const char *csv_at(const csv *t, size_t row, int column);
/* Writes one field, quoted if needed. */
void csv_field(FILE *f, const char *text);

#endif
