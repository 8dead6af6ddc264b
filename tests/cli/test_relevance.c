/* --method and its numbers, and whatever else would do nothing beside what was asked for: refused, wherever it was
 * written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "cli/method.h"
#include "cli/relevance.h"

#define FILE_NAME "test_relevance.yaml"

static err_code spec_of(const char *words, bool in_file, peft_spec *out, err *e)
{
    char text[256], *argv[8];
    int argc = 0;
    options o;
    *e = (err){0};
    snprintf(text, sizeof text, "%s", in_file ? "-c " FILE_NAME : words);
    for (char *p = strtok(text, " "); p; p = strtok(NULL, " ")) argv[argc++] = p;
    if (in_file) assert_int_equal(file_write(FILE_NAME, words, strlen(words), e), ERR_OK);
    assert_int_equal(options_init(&o, "adapt", IN_ADAPT, e), ERR_OK);
    if (options_parse(&o, argc, argv, e)) fail_msg("%s: %s", words, e->msg);
    err_code rc = relevance_check(&o, e);
    if (!rc) rc = method_spec(&o, "adapt", out, e);
    options_fini(&o);
    if (in_file) unlink(FILE_NAME);
    return rc;
}

static void numbers(void **state)
{
    (void)state;
    static const struct {
        const char *words;
        bool in_file, good;
    } rows[] = {
        {"--method apla --rows 16", false, true},
        {"--method full --rows 16", false, false},
        {"--method linear --rows 16", false, false},
        {"--method lora --rows 16", false, false},
        {"--method full --rows 0", false, false}, /* its default, but asked for */
        {"--method apla --lora-rank 4", false, false},
        {"--method apla --lora-rank 8", false, false},
        {"--lora-rank 4", false, false},
        {"--method vpt --lora-targets qkv", false, false},
        {"--method lora --lora-rank 4", false, true},
        {"--method lora --prompts 5", false, false},
        {"--method bitfit --vpt shallow", false, false},
        {"--method vpt --vpt shallow", false, true},
        {"--method linear --lr 1e-4", false, false},
        {"--method linear --head-lr 1e-4", false, true},
        {"--patch-lr-factor 0.2", false, false},
        {"--method full --patch-lr-factor 0.2", false, true},
        {"--centering sinkhorn --center-momentum 0.9", false, false},
        {"--ibot 0 --mask-ratio 0.1,0.2", false, false},
        {"--ibot 0.0 --separate-heads", false, false},
        {"--blur 0,0,0 --blur-sigma 1,2", false, false},
        {"--blur 0,0,1 --blur-sigma 1,2", false, true},
        {"--split-test 0.3", false, false},
        {"--split-test 0.3 --labels x.csv", false, true},
        {"--labels x.csv --label-order a,b", false, false},
        {"split-test: 0.3\n", true, true},
        {"adapt:\n  method: full\n  rows: 16\n", true, false},
        {"adapt:\n  method: apla\n  rows: 16\n  lora-rank: 8  # default. LoRA: rank\n  vpt: deep  # default. VPT\n",
         true, true}, /* as --print-config writes it */
        {"adapt:\n  method: apla\n  lora-alpha: 32\n", true, false}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        err e;
        peft_spec s;
        err_code rc = spec_of(rows[i].words, rows[i].in_file, &s, &e);
        if (rc != (rows[i].good ? ERR_OK : ERR_USAGE)) fail_msg("%s: %s (%s)", rows[i].words, err_name(rc), e.msg);
        if (rc) assert_non_null(strstr(e.msg, " means nothing with"));
    }
}

/* The command line's method over a file's numbers: they are for another day. */
static void over_a_file(void **state)
{
    static const struct {
        const char *words;
        bool good;
    } rows[] = {{"--method full -c " FILE_NAME, true},
                {"-c " FILE_NAME, true},
                {"--method full --rows 4 -c " FILE_NAME, false}};
    static const char text[] = "adapt:\n  method: apla\n  rows: 16\n";
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        err e = {0};
        peft_spec s;
        assert_int_equal(file_write(FILE_NAME, text, strlen(text), &e), ERR_OK);
        err_code rc = spec_of(rows[i].words, false, &s, &e);
        if (rc != (rows[i].good ? ERR_OK : ERR_USAGE)) fail_msg("%s: %s (%s)", rows[i].words, err_name(rc), e.msg);
        unlink(FILE_NAME);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(numbers), cmocka_unit_test(over_a_file)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
