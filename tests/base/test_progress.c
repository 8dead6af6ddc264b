/* What is shown where stderr is no terminal, what a resumed run counts, quiet. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <pthread.h>
#include <time.h>

#include "base/log.h"
#include "base/progress.h"

static void *adds(void *ctx)
{
    for (int i = 0; i < 10000; i++) progress_add(ctx, 1);
    return NULL;
}

static void counts(void **state)
{
    (void)state;
    progress p;
    pthread_t t[3];
    progress_quiet(1);
    progress_start(&p, "prepare", "files", 30010);
    progress_skip(&p, 10);
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_create(&t[i], NULL, adds, &p), 0);
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    assert_int_equal(p.done, 30010);
    assert_int_equal(p.first, 10);
    progress_note(&p, "%s", "a note that is much longer than the room there is for it, and so it has to be cut short");
    assert_int_equal(strlen(p.note), sizeof p.note - 1);
    progress_end(&p);
    progress_quiet(0);
}

/* A stage that began 20 s ago: the line that is due, with rate and time left. */
static void line(void **state)
{
    (void)state;
    FILE *out = tmpfile();
    assert_non_null(out);
    log_open(out, LOG_JSON, LOG_INFO);
    progress p;
    progress_start(&p, "scan", "files", 300);
    progress_skip(&p, 100);
    progress_add(&p, 50); /* nothing is due yet */
    fflush(out);
    assert_int_equal(ftell(out), 0);
    p.started -= 20;
    p.shown -= 20;
    progress_note(&p, "loss 3.21");
    progress_quiet(1);
    progress_add(&p, 0);
    assert_int_equal(ftell(out), 0);
    progress_quiet(0);
    progress_add(&p, 50);
    progress_add(&p, 1); /* just shown */
    char text[1024];
    rewind(out);
    text[fread(text, 1, sizeof text - 1, out)] = 0;
    log_open(NULL, LOG_JSON, LOG_INFO);
    fclose(out);
    double rate = 0, left = 0;
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    assert_non_null(strstr(text, "\"stage\":\"scan\",\"done\":200,\"total\":300,\"unit\":\"files\""));
    assert_non_null(strstr(text, "\"note\":\"loss 3.21\"}"));
    assert_int_equal(sscanf(strstr(text, "\"per_s\":"), "\"per_s\":%lf", &rate), 1);
    assert_int_equal(sscanf(strstr(text, "\"left_s\":"), "\"left_s\":%lf", &left), 1);
    assert_true(rate > 4 && rate <= 5.001);  /* 100 in 20 s: what was skipped is not in the rate */
    assert_true(left >= 19.99 && left < 25); /* 100 to go */
}

static void clock_goes_on(void **state)
{
    (void)state;
    double a = progress_clock();
    nanosleep(&(struct timespec){0, 2000000}, NULL);
    double b = progress_clock();
    assert_true(b - a >= 0.002 && b - a < 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(counts), cmocka_unit_test(line),
                                       cmocka_unit_test(clock_goes_on)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
