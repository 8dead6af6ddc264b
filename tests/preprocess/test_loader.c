/* test_loader.c: order, what a batch holds while it is used, failures, and closing at any moment; and the picture
 * writer. */
#include <png.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/stop.h"
#include "preprocess/loader.h"
#include "preprocess/png_write.h"

enum { FLOATS = 1000 };

typedef struct {
    atomic_int fills;
    uint64_t fail_at, highest;
    unsigned delay_us;
    bool silent; /* fails without filling in the record */
} source;

static err_code fill(void *ctx, uint64_t step, float *out, err *e)
{
    source *s = ctx;
    atomic_fetch_add(&s->fills, 1);
    if (step > s->highest) s->highest = step;
    if (s->delay_us) usleep(s->delay_us);
    if (step == s->fail_at) {
        if (s->silent) return ERR_NOMEM;
        FAIL(e, TRUNCATED, "frame %d is short", (int)step);
    }
    for (size_t i = 0; i < FLOATS; i++) out[i] = (float)(step * 7 + i);
    return ERR_OK;
}

static void in_order(void **state)
{
    (void)state;
    for (unsigned slow = 0; slow < 3; slow++) {
        source s = {.fail_at = UINT64_MAX, .delay_us = slow == 1 ? 300 : 0};
        loader *l;
        assert_int_equal(loader_open(&l, fill, &s, FLOATS, 5, 104, NULL), ERR_OK);
        for (uint64_t step = 5; step <= 104; step++) {
            const float *batch;
            assert_int_equal(loader_take(l, step, &batch, NULL), ERR_OK);
            if (slow == 2) usleep(200); /* a slow consumer: nobody may write into what it holds */
            for (size_t i = 0; i < FLOATS; i++) assert_true(batch[i] == (float)(step * 7 + i));
            assert_true((uintptr_t)batch % 64 == 0);
        }
        const float *none;
        err e = {0};
        assert_int_equal(loader_take(l, 105, &none, &e), ERR_INTERNAL);
        loader_close(l);
        assert_true(s.highest == 104 && atomic_load(&s.fills) == 100);
    }
}

static void out_of_turn(void **state)
{
    (void)state;
    source s = {.fail_at = UINT64_MAX};
    loader *l;
    const float *batch;
    assert_int_equal(loader_open(&l, fill, &s, FLOATS, 0, 9, NULL), ERR_OK);
    assert_int_equal(loader_take(l, 1, &batch, NULL), ERR_INTERNAL);
    assert_int_equal(loader_take(l, 0, &batch, NULL), ERR_OK);
    assert_int_equal(loader_take(l, 0, &batch, NULL), ERR_INTERNAL);
    assert_int_equal(loader_take(l, 1, &batch, NULL), ERR_OK);
    loader_close(l);
}

static void failure(void **state)
{
    (void)state;
    for (int silent = 0; silent < 2; silent++) {
        source s = {.fail_at = 3, .silent = silent};
        loader *l;
        const float *batch;
        assert_int_equal(loader_open(&l, fill, &s, FLOATS, 0, 99, NULL), ERR_OK);
        for (uint64_t step = 0; step < 3; step++) assert_int_equal(loader_take(l, step, &batch, NULL), ERR_OK);
        for (int again = 0; again < 2; again++) {
            err e = {0};
            assert_int_equal(loader_take(l, 3, &batch, &e), silent ? ERR_NOMEM : ERR_TRUNCATED);
            assert_true(e.code && e.msg[0]);
            if (!silent) assert_string_equal(e.msg, "frame 3 is short");
        }
        loader_close(l);
        assert_true(s.highest == 3);
    }
}

static void close_any_time(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 60; i++) {
        source s = {.fail_at = i % 7 ? UINT64_MAX : 2, .delay_us = 200};
        loader *l;
        const float *batch;
        assert_int_equal(loader_open(&l, fill, &s, FLOATS, 0, UINT64_MAX, NULL), ERR_OK);
        for (uint64_t step = 0; step < i % 4; step++) loader_take(l, step, &batch, NULL);
        if (i % 3) usleep(37 * i);
        loader_close(l);
    }
    loader_close(NULL);
    loader *l = (loader *)state;
    err e = {0};
    assert_int_equal(loader_open(&l, fill, NULL, SIZE_MAX / 2, 0, 1, &e), ERR_LIMIT);
    assert_null(l);
}

static void picture(void **state)
{
    (void)state;
    char path[] = "test_loader_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    for (int channels = 1; channels <= 3; channels += 2) {
        unsigned char in[5 * 7 * 3], out[5 * 7 * 3];
        for (int i = 0; i < 5 * 7 * 3; i++) in[i] = (unsigned char)(i * 5);
        err e = {0};
        assert_int_equal(png_write(path, in, 7, 5, channels, &e), ERR_OK);
        png_image im = {.version = PNG_IMAGE_VERSION};
        assert_true(png_image_begin_read_from_file(&im, path));
        assert_true(im.width == 7 && im.height == 5);
        im.format = channels == 3 ? PNG_FORMAT_RGB : PNG_FORMAT_GRAY;
        assert_true(png_image_finish_read(&im, NULL, out, 0, NULL));
        assert_memory_equal(in, out, 35 * (size_t)channels);
    }
    err e = {0};
    assert_int_equal(png_write(path, (unsigned char *)"", 0, 5, 1, &e), ERR_INTERNAL);
    e = (err){0};
    assert_int_equal(png_write("no/such/folder/x.png", (unsigned char *)"a", 1, 1, 1, &e), ERR_NOTFOUND);
    /* a full disk: what was there before stays, nothing else does */
    static unsigned char noise[300 * 300];
    for (size_t i = 0; i < sizeof noise; i++) noise[i] = (unsigned char)(i * i * 2654435761u >> 13);
    struct rlimit old, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = 20000;
    stop_install(); /* SIGXFSZ is ignored */
    char *before, *after;
    size_t n, m;
    assert_int_equal(file_read(path, 1 << 20, &before, &n, NULL), ERR_OK);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    e = (err){0};
    err_code rc = png_write(path, noise, 300, 300, 1, &e);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(rc, ERR_NOSPACE);
    assert_int_equal(file_read(path, 1 << 20, &after, &m, NULL), ERR_OK);
    assert_true(n == m && !memcmp(before, after, n));
    free(before);
    free(after);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(in_order), cmocka_unit_test(out_of_turn),
                                       cmocka_unit_test(failure), cmocka_unit_test(close_any_time),
                                       cmocka_unit_test(picture)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
