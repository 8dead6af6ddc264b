/* Every frame value against other readers: tests/golden/pixels.tsv, made by pixels.py with pydicom and numpy. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/hash.h"
#include "io/image.h"

enum { COLUMNS = 8 };
static const struct {
    const char *name, *folder;
} roots[] = {{"pydicom", "/usr/lib/python3/dist-packages/pydicom/data/test_files"},
             {"mricron", "/usr/share/mricron/templates"},
             {"shared", SHARED_DIR "/data"}};

static double value(const raw_frame *f, size_t i)
{
    switch (f->type) {
    case PIXEL_U8:
        return ((const uint8_t *)f->pixels)[i];
    case PIXEL_I16:
        return ((const int16_t *)f->pixels)[i];
    case PIXEL_U16:
        return ((const uint16_t *)f->pixels)[i];
    case PIXEL_I32:
        return ((const int32_t *)f->pixels)[i];
    case PIXEL_F32:
        return ((const float *)f->pixels)[i];
    }
    return NAN;
}

/* The frame as pixels.py writes it agrees with what pixels.tsv expects: a digest, or a mean. */
static bool agrees(const raw_frame *f, const char *expected)
{
    size_t n = (size_t)f->rows * (size_t)f->columns * (size_t)f->samples;
    if (strlen(expected) != HASH_HEX - 1) {
        double sum = 0, mean = strtod(expected, NULL);
        for (size_t i = 0; i < n; i++) sum += value(f, i);
        return fabs(sum / (double)n - mean) <= 0.25 + 1e-5 * fabs(mean);
    }
    char digest[HASH_HEX];
    hash *h = hash_new();
    for (size_t i = 0; i < n; i++) {
        float real = (float)value(f, i);
        int32_t whole = (int32_t)value(f, i);
        hash_add(h, f->type == PIXEL_F32 ? (void *)&real : (void *)&whole, 4);
    }
    hash_hex(h, digest);
    return !strcmp(digest, expected);
}

/* NULL: right; else what is wrong. */
static const char *check(const char *path, char **column)
{
    static char wrong[256];
    image_header h;
    image *im = NULL;
    raw_frame f;
    err e = {0};
    wrong[0] = 0;
    if (image_read_header(path, &h, &e) || image_open(&im, path, &h, &e))
        snprintf(wrong, sizeof wrong, "%s", e.msg);
    else if (h.frames != atoi(column[2]))
        snprintf(wrong, sizeof wrong, "%d frames, not %s", h.frames, column[2]);
    for (int k = 0; k < 2 && !*wrong; k++) {
        int at = k == 0 ? 0 : h.format == IMAGE_NIFTI ? h.frames / 2 : h.frames - 1;
        if (image_frame(im, at, &f, &e))
            snprintf(wrong, sizeof wrong, "frame %d: %s", at, e.msg);
        else if (f.rows != atoi(column[3]) || f.columns != atoi(column[4]) || (column[5][0] == '3' && f.samples != 3))
            snprintf(wrong, sizeof wrong, "frame %d: %dx%dx%d", at, f.rows, f.columns, f.samples);
        else if (!agrees(&f, column[6 + k]))
            snprintf(wrong, sizeof wrong, "frame %d: the values differ", at);
    }
    image_close(im);
    image_header_fini(&h);
    return *wrong ? wrong : NULL;
}

static void test_against_other_readers(void **state)
{
    (void)state;
    char *text;
    size_t bytes;
    int compared = 0, absent = 0, bad = 0;
    err e = {0};
    assert_int_equal(file_read(TESTS_DIR "/golden/pixels.tsv", 1 << 20, &text, &bytes, &e), ERR_OK);
    char *rest = text;
    for (char *line; (line = strsep(&rest, "\n")) && *line;) {
        char *column[COLUMNS], path[FILE_PATH_MAX] = "";
        for (int i = 0; i < COLUMNS; i++) {
            column[i] = strsep(&line, "\t");
            assert_non_null(column[i]);
        }
        for (size_t i = 0; i < sizeof roots / sizeof *roots; i++)
            if (!strcmp(roots[i].name, column[0])) snprintf(path, sizeof path, "%s/%s", roots[i].folder, column[1]);
        if (!file_exists(path)) {
            absent++;
            continue;
        }
        compared++;
        const char *wrong = check(path, column);
        if (wrong) print_error("%s/%s: %s\n", column[0], column[1], wrong);
        bad += wrong != NULL;
    }
    free(text);
    print_message("%d files compared, %d not there\n", compared, absent);
    assert_int_equal(bad, 0);
    if (!compared) skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_other_readers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
