/* test_frame_store.c: put, seal, read back; damaged, replaced and lost shards; kill -9 in the middle of writing. */
#include <dirent.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/rng.h"
#include "io/frame_store.h"
#include "io/safetensors.h"

#define WORK "test_frame_store.work"

static void wipe(void)
{
    DIR *d = opendir(WORK "/frames");
    for (struct dirent *f; d && (f = readdir(d));) {
        char path[FILE_PATH_MAX];
        snprintf(path, sizeof path, WORK "/frames/%s", f->d_name);
        unlink(path);
    }
    if (d) closedir(d);
    rmdir(WORK "/frames");
    rmdir(WORK);
}

static int fresh(void **state)
{
    (void)state;
    wipe();
    return 0;
}

/* Frame i of a batch: kinds and odd sizes in turn. */
static frame_info info_of(int i)
{
    frame_info f = {
        .frame = 1 + i % 3, .rows = 3 + i % 5, .columns = 5 + i % 2, .channels = i % 3 == 1 ? 3 : 1, .slope = 1};
    f.type = i % 3 == 0 ? PIXEL_I16 : i % 3 == 1 ? PIXEL_U8 : PIXEL_U16;
    snprintf(f.instance_key, sizeof f.instance_key, "%032x", i);
    return f;
}

static size_t pixels_of(int i, uint32_t seed, unsigned char out[256])
{
    frame_info f = info_of(i);
    size_t n = (size_t)(f.rows * f.columns * f.channels) * (f.type == PIXEL_U8 ? 1 : 2);
    rng r = rng_at(seed, RNG_TEST, (uint64_t)i, 0);
    for (size_t k = 0; k < n; k++) out[k] = (unsigned char)rng_u32(&r);
    return n;
}

static void put_and_seal(frame_store *s, int first, int n, uint32_t seed, frame_info *placed)
{
    unsigned char p[256];
    size_t bytes = 0;
    for (int i = 0; i < n; i++) {
        placed[i] = info_of(first + i);
        bytes += pixels_of(first + i, seed, p);
        assert_int_equal(frame_store_put(s, &placed[i], p, NULL), ERR_OK);
        assert_int_equal(frame_store_pending_bytes(s), bytes);
    }
    err e = {0};
    if (frame_store_seal(s, placed, (size_t)n, &e)) fail_msg("%s", e.msg);
    assert_int_equal(frame_store_pending_bytes(s), 0);
}

static void check(frame_store *s, const frame_info *f, int i, uint32_t seed)
{
    unsigned char want[256];
    size_t n = pixels_of(i, seed, want);
    const void *got;
    err e = {0};
    if (frame_store_pixels(s, f, &got, &e)) fail_msg("frame %d: %s", i, e.msg);
    assert_memory_equal(got, want, n);
    assert_true(f->checksum >= 0 && frame_store_intact(f, got));
    for (size_t k = 0; k < n; k++) { /* any byte that changed is seen */
        want[k] ^= 0x40;
        assert_false(frame_store_intact(f, want));
        want[k] ^= 0x40;
    }
    frame_info unknown = *f; /* of an earlier radapt */
    unknown.checksum = -1;
    want[0] ^= 1;
    assert_true(frame_store_intact(&unknown, want));
    assert_int_equal((uintptr_t)got % (f->type == PIXEL_U8 ? 1 : 2), 0);
}

static void round_trip(void **state)
{
    (void)state;
    enum { N = 50 };
    frame_store *s;
    frame_info placed[3][N];
    err e = {0};
    assert_int_equal(frame_store_open(&s, WORK, &e), ERR_OK);
    assert_int_equal(frame_store_seal(s, NULL, 0, &e), ERR_OK); /* nothing: no shard */
    assert_false(file_exists(WORK "/frames/000000.safetensors"));
    for (int b = 0; b < 2; b++) put_and_seal(s, b * N, N, 1, placed[b]);
    assert_true(placed[0][0].shard == 0 && placed[1][0].shard == 1);
    for (int b = 0; b < 2; b++)
        for (int i = 0; i < N; i++) check(s, &placed[b][i], b * N + i, 1);
    frame_store_close(s);
    assert_int_equal(frame_store_open(&s, WORK, &e), ERR_OK);
    put_and_seal(s, 2 * N, N, 1, placed[2]);
    assert_int_equal(placed[2][0].shard, 2);
    for (int b = 2; b >= 0; b--)
        for (int i = 0; i < N; i++) check(s, &placed[b][i], b * N + i, 1);
    frame_store_close(s);
    /* put but not sealed: gone, and nothing of it on disk */
    assert_int_equal(frame_store_open(&s, WORK, &e), ERR_OK);
    unsigned char p[256];
    pixels_of(0, 1, p);
    assert_int_equal(frame_store_put(s, &placed[0][0], p, &e), ERR_OK);
    frame_store_close(s);
    assert_false(file_exists(WORK "/frames/000003.safetensors"));
    frame_store_close(NULL);
}

static void refusals(void **state)
{
    (void)state;
    frame_store *s;
    frame_info placed[4];
    const void *p;
    unsigned char bytes[256] = {0};
    err e = {0};
    assert_int_equal(frame_store_open(&s, WORK, &e), ERR_OK);
    put_and_seal(s, 0, 4, 1, placed);
    static const frame_info impossible[] = {
        {.rows = 0, .columns = 5, .channels = 1, .type = PIXEL_I16},
        {.rows = 5, .columns = 70000, .channels = 1, .type = PIXEL_I16},
        {.rows = 5, .columns = 5, .channels = 1, .type = PIXEL_F32},
        {.rows = 5, .columns = 5, .channels = 1, .type = PIXEL_U8},
        {.rows = 5, .columns = 5, .channels = 3, .type = PIXEL_I16},
        {.rows = 5, .columns = 5, .channels = 2, .type = PIXEL_U8},
        {.rows = -5, .columns = -5, .channels = 1, .type = PIXEL_I16},
    };
    for (size_t i = 0; i < sizeof impossible / sizeof *impossible; i++) {
        assert_int_equal(frame_store_put(s, &impossible[i], bytes, NULL), ERR_INTERNAL);
        assert_int_equal(frame_store_pixels(s, &impossible[i], &p, NULL), ERR_FORMAT);
    }
    struct {
        frame_info f;
        err_code rc;
    } rows[8];
    for (int i = 0; i < 8; i++) rows[i].f = placed[0];
    rows[0].f.shard = -1, rows[0].rc = ERR_FORMAT;
    rows[1].f.shard = 2000000, rows[1].rc = ERR_FORMAT;
    rows[2].f.shard = 7, rows[2].rc = ERR_NOTFOUND;
    rows[3].f.offset += 2, rows[3].rc = ERR_CONFLICT;
    rows[4].f.offset = UINT64_MAX, rows[4].rc = ERR_CONFLICT;
    rows[5].f.frame = 9, rows[5].rc = ERR_NOTFOUND;
    rows[6].f.rows++, rows[6].rc = ERR_CONFLICT;
    rows[7].f.type = PIXEL_U16, rows[7].rc = ERR_CONFLICT;
    for (int i = 0; i < 8; i++) {
        print_message("row %d\n", i);
        assert_int_equal(frame_store_pixels(s, &rows[i].f, &p, NULL), rows[i].rc);
    }
    assert_int_equal(frame_store_seal(s, placed, 2, NULL), ERR_INTERNAL); /* more to place than was put */
    check(s, &placed[0], 0, 1);
    frame_store_close(s);
}

static void damaged_shards(void **state)
{
    (void)state;
    frame_store *s;
    frame_info placed[9], other[9];
    const void *p;
    char *text;
    size_t n;
    assert_int_equal(frame_store_open(&s, WORK, NULL), ERR_OK);
    put_and_seal(s, 0, 9, 1, placed);
    frame_store_close(s);
    assert_int_equal(file_read(WORK "/frames/000000.safetensors", 1 << 20, &text, &n, NULL), ERR_OK);
    for (size_t cut = 0; cut < n; cut += 1 + cut / 3) { /* cut off anywhere, empty too */
        assert_int_equal(file_write(WORK "/frames/000000.safetensors", text, cut, NULL), ERR_OK);
        assert_int_equal(frame_store_open(&s, WORK, NULL), ERR_OK);
        for (int i = 0; i < 9; i++) {
            err e = {0};
            assert_int_not_equal(frame_store_pixels(s, &placed[i], &p, &e), ERR_OK);
            assert_true(e.msg[0] && !strstr(e.msg, WORK));
        }
        frame_store_close(s);
    }
    free(text);
    /* lost, and its number taken by other frames of the same shapes: not found, never other pixels */
    assert_int_equal(unlink(WORK "/frames/000000.safetensors"), 0);
    assert_int_equal(frame_store_open(&s, WORK, NULL), ERR_OK);
    assert_int_equal(frame_store_pixels(s, &placed[0], &p, NULL), ERR_NOTFOUND);
    put_and_seal(s, 30, 9, 2, other);
    assert_int_equal(other[0].shard, 0);
    for (int i = 0; i < 9; i++) {
        assert_int_equal(frame_store_pixels(s, &placed[i], &p, NULL), ERR_NOTFOUND);
        check(s, &other[i], 30 + i, 2);
    }
    frame_store_close(s);
}

/* A child seals shards and tells us each that it has; it is killed at some instant. What it told is there, whole. */
static void killed(void **state)
{
    (void)state;
    enum { N = 30, ROUNDS = 12 };
    static frame_info told[4096];
    int n_told = 0;
    for (int round = 0; round < ROUNDS; round++) {
        int channel[2];
        assert_int_equal(pipe(channel), 0);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            frame_store *s;
            frame_info placed[N];
            unsigned char p[256];
            if (frame_store_open(&s, WORK, NULL)) _exit(1);
            for (int first = round * 10000;; first += N) {
                for (int i = 0; i < N; i++) {
                    placed[i] = info_of(first + i);
                    pixels_of(first + i, 3, p);
                    if (frame_store_put(s, &placed[i], p, NULL)) _exit(1);
                }
                if (frame_store_seal(s, placed, N, NULL)) _exit(1);
                if (write(channel[1], &placed[first / N % N], sizeof *placed) != sizeof *placed) _exit(1);
            }
        }
        close(channel[1]);
        usleep(2000 + 3700 * (unsigned)round);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        while (n_told < 4096 && read(channel[0], &told[n_told], sizeof *told) == sizeof *told) n_told++;
        close(channel[0]);
    }
    print_message("%d shards told of\n", n_told);
    assert_true(n_told > 0);
    frame_store *s;
    assert_int_equal(frame_store_open(&s, WORK, NULL), ERR_OK);
    for (int i = 0; i < n_told; i++) {
        check(s, &told[i], (int)strtol(told[i].instance_key, NULL, 16), 3);
        for (int k = 0; k < i; k++) assert_true(told[k].shard != told[i].shard);
    }
    DIR *d = opendir(WORK "/frames");
    for (struct dirent *f; (f = readdir(d));) {
        if (f->d_name[0] == '.') continue;
        assert_null(strstr(f->d_name, "tmp")); /* opening has cleared the remains */
        char path[FILE_PATH_MAX];
        snprintf(path, sizeof path, WORK "/frames/%s", f->d_name);
        safetensors shard;
        assert_int_equal(safetensors_open(&shard, path, NULL), ERR_OK);
        safetensors_close(&shard);
    }
    closedir(d);
    frame_store_close(s);
}

typedef struct {
    frame_store *s;
    const frame_info *f;
    int n, bad;
} reader;

static void *read_all(void *arg)
{
    reader *r = arg;
    unsigned char want[256];
    for (int i = 0; i < 4 * r->n; i++) {
        int k = i * 7 % r->n;
        const void *p;
        size_t n = pixels_of(k, 1, want);
        if (frame_store_pixels(r->s, &r->f[k], &p, NULL) || memcmp(p, want, n)) r->bad++;
    }
    return NULL;
}

static void threads(void **state)
{
    (void)state;
    enum { SHARDS = 12, N = 5 };
    static frame_info placed[SHARDS * N];
    frame_store *s;
    assert_int_equal(frame_store_open(&s, WORK, NULL), ERR_OK);
    for (int b = 0; b < SHARDS; b++) put_and_seal(s, b * N, N, 1, placed + b * N);
    reader r[4];
    pthread_t t[4];
    for (int i = 0; i < 4; i++) {
        r[i] = (reader){s, placed, SHARDS * N, 0};
        assert_int_equal(pthread_create(&t[i], NULL, read_all, &r[i]), 0);
    }
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    for (int i = 0; i < 4; i++) assert_int_equal(r[i].bad, 0);
    frame_store_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup(round_trip, fresh),
                                       cmocka_unit_test_setup(refusals, fresh),
                                       cmocka_unit_test_setup(damaged_shards, fresh),
                                       cmocka_unit_test_setup(killed, fresh), cmocka_unit_test_setup(threads, fresh)};
    return cmocka_run_group_tests(tests, NULL, fresh);
}
