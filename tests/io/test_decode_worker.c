/* Workers that crash, hang, starve, answer much, or fail: one job pays, the run goes on. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/progress.h"
#include "base/stop.h"
#include "io/decode_worker.h"

enum { JOBS = 60, BIG = 16 << 20 };

typedef enum { GOOD, EMPTY, BIG_REPLY, FAILS, SEGFAULT, ABORT, EXIT, HANG, STARVE, KILLED, PRINTS } kind;

typedef struct {
    kind kinds[JOBS];
    size_t jobs;
    int seen[JOBS];
    err_code codes[JOBS];
    size_t bytes[JOBS];
    size_t stop_at; /* done fails here; jobs: never */
} run_state;

static err_code work(void *ctx, size_t job, decode_reply *reply, err *e)
{
    run_state *r = ctx;
    size_t want = r->kinds[job] == BIG_REPLY ? BIG : 64 + job;
    unsigned char *p;
    switch (r->kinds[job]) {
    case EMPTY:
        return ERR_OK;
    case FAILS:
        (void)decode_reply_take(reply, 100);
        FAIL(e, FORMAT, "job %zu is bad", job);
    case SEGFAULT:
        raise(SIGSEGV);
        break;
    case ABORT:
        signal(SIGABRT, SIG_DFL);
        abort();
    case EXIT:
        syscall(SYS_exit_group, 0); /* not _exit, where the leak sanitizer would report */
        break;
    case KILLED:
        raise(SIGKILL);
        break;
    case HANG:
        for (;;) pause();
    case STARVE:
        p = malloc((size_t)8 << 30);
        if (!p) FAIL(e, NOMEM, "as it should be");
        free(p);
        return ERR_OK;
    case PRINTS:
        fprintf(stderr, "PATIENT^NAME\n");
        fflush(stderr);
        break;
    case GOOD:
    case BIG_REPLY:
        break;
    }
    p = decode_reply_take(reply, want);
    if (!p) FAIL(e, NOMEM, "no reply");
    for (size_t i = 0; i < want; i++) p[i] = (unsigned char)(job * 31 + i);
    return ERR_OK;
}

static err_code done(void *ctx, size_t job, err_code code, const err *why, const unsigned char *data, size_t bytes,
                     err *e)
{
    run_state *r = ctx;
    assert_in_range(job, 0, r->jobs - 1);
    r->seen[job]++;
    r->codes[job] = code;
    r->bytes[job] = bytes;
    if (code) {
        assert_int_equal(why->code, code);
        assert_true(strlen(why->msg) > 0);
        assert_null(data);
    }
    for (size_t i = 0; i < (code ? 0 : bytes); i++)
        if (data[i] != (unsigned char)(job * 31 + i)) fail_msg("job %zu: byte %zu", job, i);
    if (job == r->stop_at) FAIL(e, NOSPACE, "no more");
    return ERR_OK;
}

static void no_child_is_left(void)
{
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(errno, ECHILD);
}

static void test_every_ending(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        kind kind;
        err_code code;
    } rows[] = {
        {"good", GOOD, ERR_OK},
        {"empty", EMPTY, ERR_OK},
        {"big", BIG_REPLY, ERR_OK},
        {"fails", FAILS, ERR_FORMAT},
        {"segv", SEGFAULT, ERR_CRASHED},
        {"abort", ABORT, ERR_CRASHED},
        {"exits", EXIT, ERR_CRASHED},
        {"hangs", HANG, ERR_CRASHED},
        {"killed", KILLED, ERR_IO},
#if !defined(__SANITIZE_ADDRESS__)
        {"starves", STARVE, ERR_NOMEM},
#endif
    };
    enum { ROWS = sizeof rows / sizeof *rows };
    for (int workers = 1; workers <= 3; workers += 2) {
        run_state r = {.jobs = 30, .stop_at = JOBS};
        for (size_t i = 0; i < r.jobs; i++) r.kinds[i] = i < ROWS ? rows[i].kind : i % 7 == 0 ? SEGFAULT : GOOD;
        decode_limits l = {.workers = workers, .memory_bytes = (size_t)2 << 30, .timeout_s = 3};
        err e = {0};
        double start = progress_clock();
        assert_int_equal(decode_run(&l, r.jobs, work, done, &r, &e), ERR_OK);
        assert_true(progress_clock() - start < 20);
        for (size_t i = 0; i < r.jobs; i++) {
            err_code want = i < ROWS ? rows[i].code : i % 7 == 0 ? ERR_CRASHED : ERR_OK;
            if (r.seen[i] != 1 || r.codes[i] != want)
                fail_msg("%d workers, job %zu (%s): seen %d times, code %s", workers, i, i < ROWS ? rows[i].name : "",
                         r.seen[i], err_name(r.codes[i]));
        }
        assert_int_equal(r.bytes[2], BIG);
        no_child_is_left();
    }
}

static void test_no_jobs(void **state)
{
    (void)state;
    run_state r = {.stop_at = JOBS};
    err e = {0};
    assert_int_equal(decode_run(&(decode_limits){0}, 0, work, done, &r, &e), ERR_OK);
}

/* An error from the parent's side ends the run at once, and every worker with it. */
static void test_done_can_end_the_run(void **state)
{
    (void)state;
    run_state r = {.jobs = JOBS, .stop_at = 3};
    for (int i = 10; i < JOBS; i++) r.kinds[i] = HANG;
    err e = {0};
    assert_int_equal(decode_run(&(decode_limits){.workers = 2, .timeout_s = 30}, r.jobs, work, done, &r, &e),
                     ERR_NOSPACE);
    assert_int_equal(e.code, ERR_NOSPACE);
    no_child_is_left();
}

static void test_stop(void **state)
{
    (void)state;
    run_state r = {.jobs = JOBS, .stop_at = JOBS};
    err e = {0};
    stop_request();
    assert_int_equal(decode_run(&(decode_limits){.workers = 2}, r.jobs, work, done, &r, &e), ERR_INTERRUPTED);
    stop_clear();
    no_child_is_left();
}

/* Libraries print what they read; nothing of it may reach the user's terminal or log. */
static void test_workers_are_mute(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* there the sanitizer needs standard error */
#endif
    run_state r = {.jobs = 2, .stop_at = JOBS, .kinds = {PRINTS, PRINTS}};
    int file = memfd_create("stderr", 0), kept = dup(STDERR_FILENO);
    err e = {0};
    assert_true(file >= 0 && kept >= 0);
    dup2(file, STDERR_FILENO);
    err_code rc = decode_run(&(decode_limits){.workers = 1}, r.jobs, work, done, &r, &e);
    dup2(kept, STDERR_FILENO);
    close(kept);
    assert_int_equal(rc, ERR_OK);
    assert_int_equal(lseek(file, 0, SEEK_END), 0);
    close(file);
}

/* The parent is killed: its workers end too, also one that hangs. */
static void test_orphans_end(void **state)
{
    (void)state;
    int pipes[2];
    assert_int_equal(pipe(pipes), 0);
    pid_t parent = fork();
    if (parent == 0) {
        run_state r = {.jobs = 2, .stop_at = JOBS, .kinds = {HANG, HANG}};
        close(pipes[0]); /* the workers inherit the writing end, and only their end closes it */
        decode_run(&(decode_limits){.workers = 2, .timeout_s = 600}, r.jobs, work, done, &r, NULL);
        _exit(0);
    }
    close(pipes[1]);
    usleep(300000);
    kill(parent, SIGKILL);
    waitpid(parent, NULL, 0);
    char byte;
    alarm(20);
    assert_int_equal(read(pipes[0], &byte, 1), 0);
    alarm(0);
    close(pipes[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_ending),         cmocka_unit_test(test_no_jobs),
                                       cmocka_unit_test(test_done_can_end_the_run), cmocka_unit_test(test_stop),
                                       cmocka_unit_test(test_workers_are_mute),     cmocka_unit_test(test_orphans_end)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
