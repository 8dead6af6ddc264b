/* Options: command line, file, precedence, messages, and that what is printed reads back to the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "cli/options.h"

enum { WORDS_MAX = 8 };

/* Splits words at blanks; parses them as the arguments of a command. */
static err_code parse(options *o, unsigned in, const char *words, err *e)
{
    static char text[512];
    char *argv[WORDS_MAX + 1];
    int argc = 0;
    *e = (err){0};
    snprintf(text, sizeof text, "%s", words);
    for (char *p = strtok(text, " "); p && argc < WORDS_MAX; p = strtok(NULL, " ")) argv[argc++] = p;
    argv[argc] = NULL;
    err_code rc = options_init(o, "this", in, e);
    return rc ? rc : options_parse(o, argc, argv, e);
}

static void test_command_line(void **state)
{
    static const struct {
        unsigned in;
        const char *words, *name, *value; /* value NULL: refused, with name in the message */
    } rows[] = {
        {IN_RUN, "x -o w", "work", "w"},
        {IN_RUN, "x -w w", "work", "w"},
        {IN_RUN, "-ww", "work", "w"},
        {IN_RUN, "--work=w", "work", "w"},
        {IN_RUN, "--output w", "work", "w"},
        {IN_RUN, "", "work", "work"},
        {IN_RUN, "--adapt-epochs 3", "adapt.epochs", "3"},
        {IN_ADAPT, "--adapt-epochs 3", "adapt.epochs", "3"},
        {IN_ADAPT, "--epochs 3", "adapt.epochs", "3"},
        {IN_ADAPT, "--epochs=3", "adapt.epochs", "3"},
        {IN_RUN, "--finetune-epochs 0.5", "finetune.epochs", "0.5"},
        {IN_RUN, "--recipe essa", "adapt.recipe", "essa"}, /* in one section only: the prefix may be left out */
        {IN_RUN, "--epochs 3", "say --adapt-epochs or --finetune-epochs", NULL},
        {IN_ADAPT, "--mask-ratio 0.1,0.5", "adapt.mask-ratio", "0.1,0.5"},
        {IN_ADAPT, "--mask-ratio 0.1", "2 numbers", NULL},
        {IN_ADAPT, "--mask-ratio 0.1,0.5,0.6", "2 numbers", NULL},
        {IN_ADAPT, "--mask-ratio 0.1,1.5", "not between 0 and 1", NULL},
        {IN_ADAPT, "--data-init", "adapt.data-init", "yes"},
        {IN_ADAPT, "--no-data-init", "adapt.data-init", "no"},
        {IN_ADAPT, "--data-init=off", "adapt.data-init", "no"},
        {IN_ADAPT, "--data-init=maybe", "neither yes nor no", NULL},
        {IN_ADAPT, "--batch 12.5", "not a whole number", NULL},
        {IN_ADAPT, "--batch 0", "not between", NULL},
        {IN_ADAPT, "--batch 1e9", "not between", NULL},
        {IN_ADAPT, "--batch twelve", "not a whole number", NULL},
        {IN_ADAPT, "--batch", "needs a value", NULL},
        {IN_ADAPT, "--lr nan", "not a number", NULL},
        {IN_ADAPT, "--lr inf", "not a number", NULL},
        {IN_ADAPT, "--lr 1e-3x", "not a number", NULL},
        {IN_ADAPT, "--method half", "apla|full", NULL},
        {IN_ADAPT, "--method apl", "apla|full", NULL},
        {IN_ADAPT, "--epohcs 3", "did you mean --epochs?", NULL},
        {IN_RUN, "--adpat-epochs 3", "did you mean --adapt-epochs?", NULL},
        {IN_ADAPT, "--zzzzzzzz", "--help", NULL},
        {IN_ADAPT, "-Z", "no option -Z", NULL},
        {IN_SCAN, "--epochs 3", "no option --epochs", NULL},
        {IN_SCAN, "-vn a -- --b", "verbose", "yes"},
        {IN_SCAN, "-vn a -- --b", "dry-run", "yes"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        options o;
        err e;
        print_message("%s\n", rows[i].words);
        err_code rc = parse(&o, rows[i].in, rows[i].words, &e);
        if (rows[i].value) {
            assert_int_equal(rc, ERR_OK);
            assert_string_equal(options_text(&o, rows[i].name), rows[i].value);
        } else {
            assert_int_equal(rc, ERR_USAGE);
            if (!strstr(e.msg, rows[i].name)) fail_msg("'%s' is not in: %s", rows[i].name, e.msg);
        }
        options_fini(&o);
    }
}

static void test_arguments(void **state)
{
    options o;
    err e;
    (void)state;
    assert_int_equal(parse(&o, IN_SCAN, "a -v b - -- --c", &e), ERR_OK);
    assert_int_equal(o.n_arguments, 4);
    assert_string_equal(o.arguments[2], "-");
    assert_string_equal(o.arguments[3], "--c");
    options_fini(&o);
}

static char file[] = "/tmp/radapt-options-XXXXXX";

static void write_file(const char *text)
{
    assert_int_equal(file_write(file, text, strlen(text), NULL), ERR_OK);
}

static void test_file(void **state)
{
    static const struct {
        const char *text, *name, *value; /* value NULL: refused, with name in the message */
    } rows[] = {
        {"adapt:\n  epochs: 3\n", "adapt.epochs", "3"},
        {"# nothing\n", "work", "work"},
        {"", "work", "work"},
        {"seed: 7\nadapt:\n  mask_ratio: [0.1, 0.4]\n", "adapt.mask-ratio", "0.1,0.4"},
        {"seed: 7\nadapt:\n  mask_ratio: [0.1, 0.4]\n", "seed", "7"},
        {"adapt: {epochs: 3, data-init: false}\n", "adapt.data-init", "no"},
        {"adapt:\n  recipe: essa\nreport:\n  sr-class: enhanced\n", "adapt.recipe", "essa"}, /* another command's */
        {"\n\nepohcs: 3\n", "line 3: no option 'epohcs'", NULL},
        {"adapt:\n  epohcs: 3\n", "line 2: no option 'epohcs' in adapt; did you mean epochs?", NULL},
        {"recipe: essa\n", "line 1: no option 'recipe'; it belongs under adapt:", NULL},
        {"adept:\n  epochs: 3\n", "no section 'adept'", NULL},
        {"adapt:\n  epochs: many\n", "line 2: adapt.epochs: 'many' is not a number", NULL},
        {"report:\n  sr-class: other\n", "line 2: report.sr-class: 'other'", NULL}, /* checked though not ours */
        {"seed: 1\nseed: 2\n", "line 2: 'seed' is set on line 1", NULL},
        {"help: yes\n", "command line only", NULL},
        {"config: other.yaml\n", "command line only", NULL},
        {"- seed\n", "line 1", NULL},
        {"just text\n", "line 1", NULL},
        {"adapt: {epochs: [[1]]}\n", "a list in a list", NULL},
        {"adapt:\n  epochs: {a: b}\n", "cannot hold a mapping", NULL},
        {"a: &x 1\nb: *x\n", "line 1", NULL},
        {"adapt: [\n", "not YAML", NULL},
        {"adapt: [1]\n", "no option 'adapt'", NULL},
        {"seed: 1\n\tx: 2\n", "not YAML", NULL},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        options o;
        err e;
        char words[64];
        print_message("%s\n", rows[i].text);
        write_file(rows[i].text);
        snprintf(words, sizeof words, "-c %s", file);
        err_code rc = parse(&o, IN_ADAPT, words, &e);
        if (rows[i].value) {
            if (rc) fail_msg("%s", e.msg);
            assert_string_equal(options_text(&o, rows[i].name), rows[i].value);
        } else {
            assert_int_equal(rc, ERR_USAGE);
            if (!strstr(e.msg, rows[i].name)) fail_msg("'%s' is not in: %s", rows[i].name, e.msg);
        }
        options_fini(&o);
    }
    options o;
    err e;
    assert_int_equal(parse(&o, IN_ADAPT, "--config /nonexistent/x.yaml", &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "/nonexistent/x.yaml"));
    options_fini(&o);
}

static void test_command_line_wins(void **state)
{
    options o;
    err e;
    char words[64];
    (void)state;
    write_file("seed: 7\nadapt:\n  epochs: 3\n");
    snprintf(words, sizeof words, "-c %s --epochs 4", file);
    assert_int_equal(parse(&o, IN_ADAPT, words, &e), ERR_OK);
    assert_int_equal(options_int(&o, "adapt.epochs"), 4);
    assert_int_equal(options_int(&o, "seed"), 7);
    assert_int_equal(options_fallback(&o, "adapt.epochs", "9", &e),
                     ERR_OK); /* a default moves nothing that was given */
    assert_int_equal(options_int(&o, "adapt.epochs"), 4);
    assert_int_equal(options_fallback(&o, "adapt.batch", "9", &e), ERR_OK);
    assert_int_equal(options_int(&o, "adapt.batch"), 9);
    options_fini(&o);
}

static void test_printed_reads_back(void **state)
{
    options a, b;
    err e;
    char words[64], *text = NULL;
    size_t n;
    (void)state;
    assert_int_equal(
        parse(&a, IN_RUN, "--adapt-epochs 2.5 --adapt-mask-ratio 0.1,0.25 --window -600/1500,40/400,5/20", &e), ERR_OK);
    for (size_t i = 0; i < options_count; i++) { /* what the commands would fill in */
        const option_def *d = &options_table[i];
        char name[96];
        snprintf(name, sizeof name, "%s%s%s", d->section, *d->section ? "." : "", d->name);
        char value[64], *at = value;
        if (d->fallback) continue;
        for (int k = 0; k < (d->kind == OPTION_REALS ? d->count : 1); k++)
            at += sprintf(at, "%s%.10g", k ? "," : "", d->high);
        assert_int_equal(options_fallback(&a, name, d->kind == OPTION_FLAG ? "yes" : value, &e), ERR_OK);
    }
    FILE *f = open_memstream(&text, &n);
    options_print(&a, f, IN_RUN, false);
    fclose(f);
    write_file(text);
    free(text);
    snprintf(words, sizeof words, "-c %s", file);
    err_code rc = parse(&b, IN_RUN, words, &e);
    if (rc) fail_msg("%s", e.msg);
    char *one = options_canonical(&a, IN_RUN), *two = options_canonical(&b, IN_RUN);
    assert_string_equal(one, two);
    assert_non_null(strstr(one, "adapt.epochs=2.5\n"));
    assert_null(strstr(one, "threads")); /* how to work is no part of what comes out */
    assert_true(options_given(&b, "adapt.epochs") && options_given(&b, "window")); /* they were on a's command line */
    for (size_t i = 0; i < options_count; i++) {                                   /* ... and nothing else was */
        char name[96];
        snprintf(name, sizeof name, "%s%s%s", options_table[i].section, *options_table[i].section ? "." : "",
                 options_table[i].name);
        if (!options_table[i].fallback) /* as the command that reads the file has it */
            assert_int_equal(options_fallback(&b, name, options_text(&a, name), &e), ERR_OK);
        if (strcmp(name, "config") && options_given(&b, name) != options_given(&a, name))
            fail_msg("%s: given %d, printed and read %d", name, options_given(&a, name), options_given(&b, name));
    }
    free(one);
    free(two);
    options_fini(&a);
    options_fini(&b);
}

/* What is given counts as given, its default too; what was printed as a default does not until it is edited. */
static void test_given(void **state)
{
    static const struct {
        const char *text;
        bool seed, normalisation, rows;
    } rows[] = {{"{}", false, false, false},
                {"seed: 0\nnormalisation: auto\nadapt:\n  rows: 0\n", true, true, true},
                {"seed: 0  # default. of all\nnormalisation: auto  # default\nadapt:\n  rows: 0  # default. APLA\n",
                 false, false, false},
                {"seed: 1  # default. of all\nnormalisation: half  # default\nadapt:\n  rows: 16  # default. APLA\n",
                 true, true, true},
                {"# default\nseed: 0\nnormalisation: auto # as the default\n", true, true, false}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        options o;
        err e;
        char words[64];
        write_file(rows[i].text);
        snprintf(words, sizeof words, "-c %s", file);
        assert_int_equal(parse(&o, IN_ADAPT, words, &e), ERR_OK);
        assert_int_equal(options_fallback(&o, "adapt.rows", "0", &e), ERR_OK);
        print_message("%s", rows[i].text);
        assert_int_equal(options_given(&o, "seed"), rows[i].seed);
        assert_int_equal(options_given(&o, "normalisation"), rows[i].normalisation);
        assert_int_equal(options_given(&o, "adapt.rows"), rows[i].rows);
        options_fini(&o);
    }
    options o;
    err e;
    assert_int_equal(parse(&o, IN_ADAPT, "--normalisation auto", &e), ERR_OK);
    assert_true(options_given(&o, "normalisation"));
    options_fini(&o);
}

/* The same numbers make the same run, however they are written. */
static void test_canonical(void **state)
{
    static const char *const words[] = {"--lr 1e-4 --epochs 8 --mask-ratio 0.1,0.5",
                                        "--lr 0.0001 --epochs 8.0 --mask-ratio .1,5e-1",
                                        "--lr 1E-04 --epochs +8 --mask-ratio 0.10,0.50"};
    char *first = NULL;
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        options o;
        err e;
        assert_int_equal(parse(&o, IN_ADAPT, words[i], &e), ERR_OK);
        char *text = options_canonical(&o, IN_ADAPT);
        options_fini(&o);
        if (first) {
            assert_string_equal(text, first);
            free(text);
        } else
            first = text;
    }
    free(first);
}

/* Every option: a name of its own in every command that has it, a group and a help text; defaults that pass their own
 * check. */
static void test_table(void **state)
{
    (void)state;
    for (size_t i = 0; i < options_count; i++) {
        const option_def *d = &options_table[i];
        print_message("%s %s\n", d->section, d->name);
        assert_true(d->commands && *d->group && *d->help);
        for (size_t k = 0; k < i; k++)
            assert_false(!strcmp(d->section, options_table[k].section) && !strcmp(d->name, options_table[k].name));
        if (!d->fallback || d->kind == OPTION_FLAG || !*d->fallback) continue;
        options o;
        err e;
        char words[160];
        unsigned one = d->commands & (~d->commands + 1);
        snprintf(words, sizeof words, "--%s%s%s=%s", d->section, *d->section ? "-" : "", d->name, d->fallback);
        if (!strcmp(d->name, "config")) continue;
        err_code rc = parse(&o, one, words, &e);
        if (rc) fail_msg("%s", e.msg);
        options_fini(&o);
    }
}

static void test_nearest(void **state)
{
    static const char *const names[] = {"scan", "prepare", "adapt", "report"};
    (void)state;
    assert_string_equal(options_nearest("sacn", names, 4), "scan");
    assert_string_equal(options_nearest("adpat", names, 4), "adapt");
    assert_string_equal(options_nearest("reports", names, 4), "report");
    assert_null(options_nearest("xyzzy", names, 4));
    assert_null(options_nearest("", names, 4));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_command_line),
        cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_command_line_wins),
        cmocka_unit_test(test_printed_reads_back),
        cmocka_unit_test(test_given),
        cmocka_unit_test(test_canonical),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_nearest),
    };
    int fd = mkstemp(file);
    if (fd < 0) return 1;
    close(fd);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(file);
    return failed;
}
