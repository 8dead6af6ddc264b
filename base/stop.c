/* stop.c: see stop.h. */
#include "base/stop.h"

#include <signal.h>
#include <string.h>

static volatile sig_atomic_t asked;

static void on_signal(int number)
{
    asked = 1;
    signal(number, SIG_DFL); /* the second one is final */
}

void stop_install(void)
{
    struct sigaction a;
    memset(&a, 0, sizeof a);
    a.sa_handler = on_signal;
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
}

bool stop_requested(void)
{
    return asked;
}
void stop_request(void)
{
    asked = 1;
}
void stop_clear(void)
{
    asked = 0;
}

err_code stop_check(err *e)
{
    if (asked) FAIL(e, INTERRUPTED, "stopped on request; the same command goes on from here");
    return ERR_OK;
}
