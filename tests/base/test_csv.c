/* Files as spreadsheets write them, damaged ones, and writing then reading. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <unistd.h>

#include "base/csv.h"
#include "base/file.h"

#define FILE_NAME "test_csv.tmp"

static err_code read_text(csv *t, const char *text, size_t bytes)
{
    err e = {0};
    assert_int_equal(file_write(FILE_NAME, text, bytes, &e), ERR_OK);
    err_code rc = csv_read(t, FILE_NAME, &e);
    unlink(FILE_NAME);
    assert_int_equal(rc, e.code);
    return rc;
}

static void tables(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t rows, columns;
        const char *cell; /* at row 1, column 1 */
    } rows[] = {
        {"a,b\n1,2\n", 2, 2, "2"},
        {"a,b\r\n1,2\r\n", 2, 2, "2"},
        {"a,b\n1,2", 2, 2, "2"},
        {"\xEF\xBB\xBF"
         "a,b\n1,2\n",
         2, 2, "2"},
        {"a,b\n1,\"x, \"\"y\"\"\nz\"\n", 2, 2, "x, \"y\"\nz"},
        {"a,b\n1\n", 2, 2, ""},
        {"a\n1,2,3\n", 2, 3, "2"},
        {"a,b\n1,\n", 2, 2, ""},
        {"a,b\n\n\n1,2\n", 2, 2, "2"},
        {"a,b\n1,\xC3\xA9\n", 2, 2, "\xC3\xA9"},
        {"a,b\n1, 2 \n", 2, 2, "2"},
        {"a,b", 1, 2, ""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        csv t;
        print_message("%zu\n", i);
        assert_int_equal(read_text(&t, rows[i].text, strlen(rows[i].text)), ERR_OK);
        assert_int_equal(t.rows, rows[i].rows);
        assert_int_equal(t.columns, rows[i].columns);
        assert_string_equal(csv_at(&t, 1, 1), rows[i].cell);
        assert_string_equal(csv_at(&t, 0, 0), "a");
        assert_string_equal(csv_at(&t, 99, 0), "");
        assert_string_equal(csv_at(&t, 0, -1), "");
        assert_string_equal(csv_at(&t, 0, 99), "");
        csv_close(&t);
    }
}

static void columns_by_name(void **state)
{
    (void)state;
    csv t;
    const char *text = "Patient_ID , label,LABELS,\n1,2,3,4\n";
    assert_int_equal(read_text(&t, text, strlen(text)), ERR_OK);
    assert_int_equal(csv_column(&t, "patient_id"), 0);
    assert_int_equal(csv_column(&t, "Label"), 1);
    assert_int_equal(csv_column(&t, "labels"), 2);
    assert_int_equal(csv_column(&t, "lab"), -1);
    assert_int_equal(csv_column(&t, "labelss"), -1);
    csv_close(&t);
    assert_int_equal(csv_column(&t, "label"), -1); /* closed: empty */
}

static void unusable(void **state)
{
    (void)state;
    csv t;
    err e = {0};
    assert_int_equal(read_text(&t, "", 0), ERR_EMPTY);
    assert_int_equal(read_text(&t, "\n\n", 2), ERR_EMPTY);
    assert_int_equal(csv_read(&t, "no-such-file.csv", &e), ERR_NOTFOUND);
    assert_null(t.cells);
    csv_close(&t);
    static const char nul[] = "a,b\n1\0002,3\n", utf16[] = "a\0,\0b\0", open_quote[] = "a,b\n1,\"2\n3,4\n";
    assert_int_equal(read_text(&t, nul, sizeof nul - 1), ERR_FORMAT); /* it would end a cell's text, unseen */
    assert_int_equal(read_text(&t, utf16, sizeof utf16 - 1), ERR_FORMAT);
    assert_int_equal(read_text(&t, open_quote, sizeof open_quote - 1), ERR_FORMAT); /* all rows behind it would go */
}

static void written_is_read(void **state)
{
    (void)state;
    static const char *const fields[] = {"plain", "",       "a,b",   "say \"no\"", "two\nlines", "cr\rlf\r\n",
                                         " lead", "trail ", "\ttab", "\"",         "\xC3\xA9 ,", "-1.5"};
    enum { N = sizeof fields / sizeof *fields };
    FILE *f = fopen(FILE_NAME, "wb");
    assert_non_null(f);
    for (size_t i = 0; i < N; i++) fprintf(f, "h%zu%s", i, i + 1 < N ? "," : "\n");
    for (size_t i = 0; i < N; i++) {
        csv_field(f, fields[i]);
        fputs(i + 1 < N ? "," : "\n", f);
    }
    fclose(f);
    csv t;
    err e = {0};
    assert_int_equal(csv_read(&t, FILE_NAME, &e), ERR_OK);
    unlink(FILE_NAME);
    assert_int_equal(t.rows, 2);
    for (size_t i = 0; i < N; i++) assert_string_equal(csv_at(&t, 1, (int)i), fields[i]);
    csv_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(tables), cmocka_unit_test(columns_by_name),
                                       cmocka_unit_test(unusable), cmocka_unit_test(written_is_read)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
