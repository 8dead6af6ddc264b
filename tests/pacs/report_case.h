/* report_case.h: a folder for reports that the tests of them share, and an item of a report by its codes. */
#ifndef RADAPT_TESTS_REPORT_CASE_H
#define RADAPT_TESTS_REPORT_CASE_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "fabricate.h"
#include "pacs/attributes.h"
#include "pacs/report_sr.h"
#include "pacs/sr_codes.h"
#include "pacs/sr_tree.h"
#include "pacs/uid.h"

#define HELPER __attribute__((unused)) static

static char folder[] = "report_sr-XXXXXX";
static char path[64], other[64];
static const sr_options at_a_time = {.content_datetime = "20240102030405"};

HELPER int setup(void **state)
{
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/report.dcm", folder);
    snprintf(other, sizeof other, "%s/other.dcm", folder);
    return 0;
}

HELPER int teardown(void **state)
{
    (void)state;
    unlink(path);
    unlink(other);
    return rmdir(folder);
}

HELPER const fabricated *a_case(size_t i)
{
    size_t n;
    return fabricated_cases(&n) + i;
}

HELPER size_t files_in_folder(void)
{
    size_t n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *x; (x = readdir(d));) n += x->d_name[0] != '.';
    closedir(d);
    return n;
}

HELPER void same_bytes(const char *a, const char *b, bool wanted)
{
    char *x, *y;
    size_t n, m;
    err e = {0};
    assert_int_equal(file_read(a, 1 << 26, &x, &n, &e), ERR_OK);
    assert_int_equal(file_read(b, 1 << 26, &y, &m, &e), ERR_OK);
    assert_int_equal(n == m && !memcmp(x, y, n), wanted);
    free(x);
    free(y);
}

HELPER attributes *find_item(attributes *parent, const char *code, size_t *at)
{
    for (*at = 0; *at < attributes_items(parent, TAG_ContentSequence); ++*at) {
        attributes *i = attributes_at(parent, TAG_ContentSequence, *at);
        const char *value = attributes_text(attributes_at(i, TAG_ConceptNameCodeSequence, 0), TAG_CodeValue);
        if (value ? !strcmp(value, code) : !strcmp(code, "-")) return i;
    }
    return NULL;
}

/* "126010/125007": the path of concepts below the root; "-" is an item without a name. */
HELPER attributes *follow(attributes *d, const char *codes, attributes **parent, size_t *at)
{
    char copy[128], *rest = NULL;
    snprintf(copy, sizeof copy, "%s", codes);
    *parent = d;
    for (char *c = strtok_r(copy, "/", &rest); c; c = strtok_r(NULL, "/", &rest)) {
        *parent = d;
        d = find_item(d, c, at);
        assert_non_null(d);
    }
    return d;
}

#endif
