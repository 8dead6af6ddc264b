/* Written whole or not at all, also where the disk is full; maps and limits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/stop.h"

#define FOLDER "test_file.tmp"
#define NAME FOLDER "/data"

static int open_folder(void **state)
{
    (void)state;
    err e = {0};
    return file_mkdirs(FOLDER, &e);
}

/* Files in the folder; all are removed. */
static int clear_folder(void)
{
    int n = 0;
    DIR *d = opendir(FOLDER);
    if (!d) return 0;
    for (struct dirent *f; (f = readdir(d));) {
        char path[512];
        if (f->d_name[0] == '.') continue;
        n++;
        snprintf(path, sizeof path, "%s/%.200s", FOLDER, f->d_name);
        if (unlink(path)) rmdir(path);
    }
    closedir(d);
    return n;
}

static int close_folder(void **state)
{
    (void)state;
    clear_folder();
    return rmdir(FOLDER);
}

static void assert_content(const char *text)
{
    char *got;
    size_t n;
    err e = {0};
    assert_int_equal(file_read(NAME, 1 << 20, &got, &n, &e), ERR_OK);
    assert_int_equal(n, strlen(text));
    assert_string_equal(got, text);
    free(got);
}

static void whole_or_not(void **state)
{
    (void)state;
    err e = {0};
    file_writer *w;
    assert_int_equal(file_write(NAME, "old", 3, &e), ERR_OK);
    assert_int_equal(file_begin(&w, NAME, &e), ERR_OK);
    fputs("new and longer", w->f);
    fflush(w->f);
    assert_content("old"); /* until it is committed */
    file_abandon(&w);
    assert_null(w);
    file_abandon(&w);
    assert_content("old");
    assert_int_equal(file_begin(&w, NAME, &e), ERR_OK);
    fputs("new", w->f);
    assert_int_equal(file_commit(&w, &e), ERR_OK);
    assert_null(w);
    assert_content("new");
    assert_int_equal(file_write(NAME, NULL, 0, &e), ERR_OK);
    assert_content("");
    assert_int_equal(clear_folder(), 1);
    assert_int_equal(file_begin(&w, FOLDER "/no/such/folder", &e), ERR_NOTFOUND);
    assert_null(w);
}

static void limit_file_size(rlim_t bytes)
{
    struct rlimit r;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &r), 0);
    r.rlim_cur = bytes == RLIM_INFINITY ? r.rlim_max : bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &r), 0);
}

static void full_disk(void **state)
{
    (void)state;
    static char big[100000];
    err e = {0};
    file_writer *w;
    stop_install(); /* ignores SIGXFSZ */
    assert_int_equal(file_write(NAME, "old", 3, &e), ERR_OK);
    limit_file_size(8192);
    err_code whole = file_write(NAME, big, sizeof big, &e);
    err_code first = e.code;
    e = (err){0};
    err_code begun = file_begin(&w, NAME, &e), committed = ERR_OK;
    if (!begun) {
        for (int i = 0; i < 1000; i++) fputs("many small pieces of text ", w->f);
        committed = file_commit(&w, &e);
    }
    limit_file_size(RLIM_INFINITY);
    assert_int_equal(whole, ERR_NOSPACE);
    assert_int_equal(first, ERR_NOSPACE);
    assert_int_equal(begun, ERR_OK);
    assert_int_equal(committed, ERR_NOSPACE);
    assert_null(w);
    assert_content("old");
    assert_int_equal(clear_folder(), 1); /* no temporary file is left */
}

static void folders(void **state)
{
    (void)state;
    err e = {0};
    assert_int_equal(file_mkdirs(FOLDER "/a//b/", &e), ERR_OK);
    assert_int_equal(file_mkdirs(FOLDER "/a/b", &e), ERR_OK);
    assert_true(file_exists(FOLDER "/a/b"));
    assert_false(file_exists(FOLDER "/a/c"));
    assert_int_equal(file_write(NAME, "x", 1, &e), ERR_OK);
    assert_int_equal(file_mkdirs(NAME, &e), ERR_NOTFOUND);
    e = (err){0};
    assert_int_equal(file_mkdirs(NAME "/under", &e), ERR_NOTFOUND);
    e = (err){0};
    assert_int_equal(file_mkdirs("", &e), ERR_LIMIT);
    assert_int_equal(rmdir(FOLDER "/a/b"), 0);
    clear_folder();
}

static void maps(void **state)
{
    (void)state;
    err e = {0};
    file_map m;
    char *text;
    assert_int_equal(file_write(NAME, "0123456789", 10, &e), ERR_OK);
    assert_int_equal(file_map_open(&m, NAME, &e), ERR_OK);
    assert_int_equal(m.bytes, 10);
    assert_memory_equal(m.data, "0123456789", 10);
    for (size_t at = 0; at < 12; at++)
        for (size_t n = 0; n < 12; n++) file_map_forget(&m, at, n); /* also beyond its end */
    assert_memory_equal(m.data, "0123456789", 10);
    file_map_close(&m);
    assert_null(m.data);
    file_map_forget(&m, 0, 1);
    assert_int_equal(file_read(NAME, 9, &text, NULL, &e), ERR_LIMIT);
    e = (err){0};
    assert_int_equal(file_read(NAME, 10, &text, NULL, &e), ERR_OK);
    assert_string_equal(text, "0123456789");
    free(text);
    assert_int_equal(file_write(NAME, "", 0, &e), ERR_OK);
    assert_int_equal(file_map_open(&m, NAME, &e), ERR_OK);
    assert_true(!m.data && !m.bytes);
    file_map_close(&m);
    assert_int_equal(file_map_open(&m, FOLDER, &e), ERR_FORMAT);
    e = (err){0};
    assert_int_equal(mkfifo(FOLDER "/pipe", 0600), 0);
    assert_int_equal(file_map_open(&m, FOLDER "/pipe", &e), ERR_FORMAT); /* and does not wait for a writer */
    e = (err){0};
    assert_int_equal(file_map_open(&m, FOLDER "/none", &e), ERR_NOTFOUND);
    clear_folder();
}

/* What a killed process left goes; all else stays, however it is called. */
static void sweep(void **state)
{
    (void)state;
    static const char *const names[] = {NAME, NAME ".tmp-1234", NAME ".tmp-", NAME ".tmp-12x", FOLDER "/.tmp-77"};
    static const bool stays[] = {true, false, true, true, false};
    err e = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_int_equal(file_write(names[i], "x", 1, &e), ERR_OK);
    assert_int_equal(file_mkdirs(FOLDER "/below.tmp-1/deep", &e), ERR_OK);
    assert_int_equal(file_write(FOLDER "/below.tmp-1/deep/a.tmp-9", "x", 1, &e), ERR_OK);
    assert_int_equal(file_sweep(FOLDER, &e), ERR_OK);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) assert_int_equal(file_exists(names[i]), stays[i]);
    assert_int_equal(rmdir(FOLDER "/below.tmp-1/deep"), 0); /* it is empty now */
    assert_int_equal(file_sweep(FOLDER "/nowhere", &e), ERR_NOTFOUND);
    clear_folder();
}

/* Of one file only. */
static void sweep_one(void **state)
{
    (void)state;
    static const char *const names[] = {NAME, NAME ".tmp-1234", NAME "b.tmp-1", NAME ".tmp-12x", FOLDER "/a.tmp-7"};
    static const bool stays[] = {true, false, true, true, true};
    err e = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_int_equal(file_write(names[i], "x", 1, &e), ERR_OK);
    assert_int_equal(file_sweep_one(NAME, &e), ERR_OK);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) assert_int_equal(file_exists(names[i]), stays[i]);
    assert_int_equal(file_sweep_one(FOLDER "/nowhere/a", &e), ERR_NOTFOUND);
    clear_folder();
}

static void long_paths(void **state)
{
    (void)state;
    char out[FILE_PATH_MAX], text[FILE_PATH_MAX + 1];
    err e = {0};
    file_writer *w;
    memset(text, 'p', sizeof text);
    text[FILE_PATH_MAX - 1] = 0;
    assert_int_equal(file_path(out, &e, "%s", text), ERR_OK);
    assert_int_equal(file_path(out, &e, "%s/", text), ERR_LIMIT);
    e = (err){0};
    assert_int_equal(file_begin(&w, text, &e), ERR_LIMIT); /* no room for the temporary name */
    assert_null(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_or_not), cmocka_unit_test(full_disk), cmocka_unit_test(folders),  cmocka_unit_test(maps),
        cmocka_unit_test(long_paths),   cmocka_unit_test(sweep),     cmocka_unit_test(sweep_one)};
    return cmocka_run_group_tests(tests, open_folder, close_folder);
}
