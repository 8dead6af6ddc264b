/* First failure wins, nothing is needed to record one, codes have stable names. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "base/err.h"

static err_code fails(err *e, int which)
{
    if (which == 1) FAIL(e, SHAPE, "tensor of %d rows", 3);
    if (which == 2) {
        errno = ENOSPC;
        FAIL_ERRNO(e, "cannot write %d bytes", 10);
    }
    return ERR_OK;
}

static err_code tries(err *e, int which, int *reached)
{
    TRY(fails(e, which));
    *reached = 1;
    return ERR_OK;
}

static err_code owns(err *e, int which, int *freed)
{
    err_code rc = ERR_OK;
    TRY_DONE(rc, fails(e, which));
    if (which == 3) FAIL_DONE(rc, e, CONFLICT, "two things");
done:
    *freed = 1;
    return rc;
}

static void first_wins(void **state)
{
    (void)state;
    err e = {0};
    assert_int_equal(fails(&e, 0), ERR_OK);
    assert_int_equal(e.code, ERR_OK);
    assert_int_equal(fails(&e, 1), ERR_SHAPE);
    int line = e.line;
    assert_int_equal(fails(&e, 2), ERR_NOSPACE); /* the later failure is returned, the first is kept */
    assert_int_equal(e.code, ERR_SHAPE);
    assert_int_equal(e.line, line);
    assert_string_equal(e.msg, "tensor of 3 rows");
    assert_non_null(strstr(e.file, "test_err.c"));
    assert_int_equal(fails(NULL, 1), ERR_SHAPE);
    assert_int_equal(fails(NULL, 2), ERR_NOSPACE);
}

static void macros(void **state)
{
    (void)state;
    err e = {0};
    int reached = 0, freed = 0;
    assert_int_equal(tries(&e, 1, &reached), ERR_SHAPE);
    assert_int_equal(reached, 0);
    assert_int_equal(tries(&e, 0, &reached), ERR_OK);
    assert_int_equal(reached, 1);
    e = (err){0};
    assert_int_equal(owns(&e, 3, &freed), ERR_CONFLICT);
    assert_int_equal(freed, 1);
    freed = 0;
    assert_int_equal(owns(&e, 2, &freed), ERR_NOSPACE);
    assert_int_equal(freed, 1);
    assert_int_equal(e.code, ERR_CONFLICT);
}

static void system_errors(void **state)
{
    (void)state;
    static const struct {
        int number;
        err_code code;
    } rows[] = {{ENOSPC, ERR_NOSPACE}, {EDQUOT, ERR_NOSPACE},   {EFBIG, ERR_NOSPACE}, {ENOENT, ERR_NOTFOUND},
                {ENOMEM, ERR_NOMEM},   {ENOTDIR, ERR_NOTFOUND}, {EACCES, ERR_IO},     {0, ERR_IO}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        err e = {0};
        assert_int_equal(err_errno(&e, rows[i].number, "f", 1, "cannot"), rows[i].code);
        assert_memory_equal(e.msg, "cannot: ", 8);
        assert_true(strlen(e.msg) > 8);
    }
}

static void long_messages_are_cut(void **state)
{
    (void)state;
    char text[1000];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = 0;
    err e = {0};
    err_set(&e, ERR_IO, "f", 1, "%s", text);
    assert_int_equal(strlen(e.msg), sizeof e.msg - 1);
    e = (err){0};
    err_errno(&e, EACCES, "f", 1, "%s", text);
    assert_int_equal(strlen(e.msg), sizeof e.msg - 1);
}

static void names(void **state)
{
    (void)state;
    for (int i = 0; i < ERR_COUNT; i++) {
        const char *name = err_name((err_code)i);
        assert_true(*name);
        for (const char *c = name; *c; c++) assert_true(*c == '-' || (*c >= 'a' && *c <= 'z'));
        for (int k = 0; k < i; k++) assert_string_not_equal(name, err_name((err_code)k));
    }
    assert_string_equal(err_name(ERR_TRUNCATED), "truncated");
    assert_string_equal(err_name((err_code)ERR_COUNT), "internal");
    assert_string_equal(err_name((err_code)-1), "internal");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_wins),    cmocka_unit_test(macros),
        cmocka_unit_test(system_errors), cmocka_unit_test(long_messages_are_cut),
        cmocka_unit_test(names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
