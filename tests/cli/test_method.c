/* --method and its numbers: what belongs to another method is refused, wherever it was written, unless it is what it
 * would be anyway. */
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

#define FILE_NAME "test_method.yaml"

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
    err_code rc = method_spec(&o, "adapt", out, e);
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
    } rows[] = {{"--method apla --rows 16", false, true},
                {"--method full --rows 16", false, false},
                {"--method linear --rows 16", false, false},
                {"--method lora --rows 16", false, false},
                {"--method full --rows 0", false, true},
                {"--method apla --lora-rank 4", false, false},
                {"--method apla --lora-rank 8", false, true}, /* its default */
                {"--method vpt --lora-targets qkv", false, false},
                {"--method lora --lora-rank 4", false, true},
                {"--method lora --prompts 5", false, false},
                {"--method bitfit --vpt shallow", false, false},
                {"--method vpt --vpt shallow", false, true},
                {"adapt:\n  method: full\n  rows: 16\n", true, false},
                {"adapt:\n  method: apla\n  rows: 16\n  lora-rank: 8\n  lora-alpha: 16\n  prompts: 10\n  vpt: deep\n",
                 true, true}, /* as --print-config writes it */
                {"adapt:\n  method: apla\n  lora-alpha: 32\n", true, false}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        err e;
        peft_spec s;
        err_code rc = spec_of(rows[i].words, rows[i].in_file, &s, &e);
        if (rc != (rows[i].good ? ERR_OK : ERR_USAGE)) fail_msg("%s: %s (%s)", rows[i].words, err_name(rc), e.msg);
        if (rc) assert_non_null(strstr(e.msg, " belongs to --method "));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(numbers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
