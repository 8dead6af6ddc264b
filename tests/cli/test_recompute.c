/* --recompute: what it may be, and the least number of blocks that fits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "cli/recompute.h"
#include "model/vit.h"

static void read_it(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        err_code rc;
        size_t blocks;
        bool automatic;
    } rows[] = {{"auto", ERR_OK, 0, true},   {"none", ERR_OK, 0, false},    {"block", ERR_OK, VIT_AGAIN_ALL, false},
                {"0", ERR_OK, 0, false},     {"7", ERR_OK, 7, false},       {"-1", ERR_USAGE, 0, false},
                {"3x", ERR_USAGE, 0, false}, {"some", ERR_USAGE, 0, false}, {"5000", ERR_USAGE, 0, false}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        err e = {0};
        options o;
        size_t blocks;
        bool automatic;
        char *argv[] = {"--recompute", (char *)(uintptr_t)rows[i].text, NULL};
        print_message("%s\n", rows[i].text);
        assert_int_equal(options_init(&o, "adapt", IN_ADAPT, &e), ERR_OK);
        assert_int_equal(options_parse(&o, 2, argv, &e), ERR_OK);
        assert_int_equal(recompute_read(&o, &blocks, &automatic, &e), rows[i].rc);
        options_fini(&o);
        if (rows[i].rc) continue;
        assert_int_equal(blocks, rows[i].blocks);
        assert_int_equal(automatic, rows[i].automatic);
    }
}

typedef struct {
    size_t from, calls, last; /* fits from so many blocks on */
    err_code otherwise;
} machine;

static err_code fits(void *ctx, size_t blocks, err *e)
{
    machine *m = ctx;
    m->calls++;
    m->last = blocks;
    if (blocks >= m->from) return ERR_OK;
    return err_set(e, m->otherwise, __FILE__, __LINE__, "%zu blocks", blocks);
}

static void least(void **state)
{
    (void)state;
    enum { MOST = 39 };
    for (size_t from = 0; from <= MOST; from++) {
        err e = {0};
        machine m = {.from = from, .otherwise = ERR_NOMEM};
        size_t blocks = 1000;
        assert_int_equal(recompute_settle(true, MOST + 1, fits, &m, &blocks, &e), ERR_OK);
        assert_int_equal(blocks, from);
        assert_int_equal(m.last, from);
        assert_true(m.calls <= 9);
    }
    err e = {0};
    size_t blocks;
    machine none = {MOST + 1, 0, 0, ERR_NOMEM}, one = {1, 0, 0, ERR_NOMEM}, wrong = {1, 0, 0, ERR_SHAPE};
    assert_int_equal(recompute_settle(true, MOST + 1, fits, &none, &blocks, &e), ERR_NOMEM);
    assert_string_equal(e.msg, "39 blocks");
    e = (err){0};
    assert_int_equal(recompute_settle(true, 1, fits, &one, &blocks, &e), ERR_NOMEM);
    e = (err){0};
    assert_int_equal(recompute_settle(true, MOST + 1, fits, &wrong, &blocks, &e), ERR_SHAPE);
    assert_int_equal(wrong.calls, 1);
    e = (err){0};
    machine asked = {1, 0, 0, ERR_NOMEM};
    assert_int_equal(recompute_settle(false, MOST + 1, fits, &asked, &(size_t){0}, &e), ERR_NOMEM);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(read_it), cmocka_unit_test(least)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
