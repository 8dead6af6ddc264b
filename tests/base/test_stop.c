/* The first signal asks, the second one ends; a write beyond limits is an error, not a signal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/stop.h"

static void asks(void **state)
{
    (void)state;
    err e = {0};
    static const int signals[] = {SIGINT, SIGTERM};
    for (int i = 0; i < 2; i++) {
        stop_install();
        stop_clear();
        assert_false(stop_requested());
        assert_int_equal(stop_check(&e), ERR_OK);
        raise(signals[i]);
        assert_true(stop_requested());
        assert_int_equal(stop_check(&e), ERR_INTERRUPTED);
        e = (err){0};
    }
    stop_clear();
    stop_request();
    assert_int_equal(stop_check(NULL), ERR_INTERRUPTED);
    stop_clear();
    raise(SIGPIPE);
    raise(SIGXFSZ);
    assert_false(stop_requested());
}

static void second_is_final(void **state)
{
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        stop_install();
        raise(SIGTERM);
        if (!stop_requested()) _exit(3);
        raise(SIGTERM);
        _exit(4);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(asks), cmocka_unit_test(second_is_final)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
