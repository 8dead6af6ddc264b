/* A whole adaptation on the CUDA back end, frames, crops, evaluations and checkpoints with it, in which one runtime
 * call fails, wherever that is: it ends in an error of one line, or, where it could do without the call, with the
 * losses that it has otherwise; nothing stays allocated. test_emu_fail.c tries every call of a small program. */
#define TWIN_ANY_DEVICE
#include "adapt/ssl.h"
#include "base/log.h"
#include "model/cuda/op_cuda.h"
#include "tests/adapt/world.h"
#include "tests/cuda_host/emu_fail.h"

enum { TRIED = 8, OUT_OF_MEMORY = 2, ECC = 214, ILLEGAL_ADDRESS = 700 }; /* cudaError_t */

/* The last loss of a run in which the n-th call from its start fails; n 0: none. */
static err_code adapt(world *w, long n, int with, double *loss, err *e)
{
    static int runs;
    char dir[FILE_PATH_MAX], name[32];
    ssl_result r;
    device d;
    ssl_options o = world_ssl_small(0.5);
    o.frame_room = 1 << 16;
    snprintf(name, sizeof name, "fail-%d", runs++);
    world_path(w, name, "", dir);
    emu_fail_nth(0, 0);
    if (op_cuda_open(&d, 0, COMPUTE_BF16, e)) fail_msg("%s", e->msg);
    vit *m = world_vit_on(&d, WORLD_SMALL_BACKBONE);
    *e = (err){0};
    emu_fail_nth(n, with);
    err_code rc = ssl_adapt(m, &w->c, &o, dir, &r, e);
    *loss = r.loss_last;
    vit_close(m);
    device_close(&d);
    return rc;
}

static void calls_failing(void **state, int with)
{
    world *w = *state;
    err e = {0};
    double right, loss;
    if (adapt(w, 0, 0, &right, &e)) fail_msg("%s", e.msg);
    long calls = emu_calls(), without = 0, tried = 0;
    assert_int_equal(emu_live(), 0);
    for (long n = 1; n <= calls; n += 1 + calls / TRIED, tried++) {
        err_code rc = adapt(w, n, with, &loss, &e);
        if (emu_live()) fail_msg("call %ld of %ld: %d things are left", n, calls, emu_live());
        without += !rc;
        if (!rc && loss != right)
            fail_msg("call %ld of %ld: no error, and a loss of %g, not %g", n, calls, loss, right);
        if (rc && (rc != e.code || !e.msg[0] || strchr(e.msg, '\n'))) fail_msg("call %ld: %d, %s", n, (int)rc, e.msg);
        if (rc && with == ECC && (rc != ERR_DAMAGED || !strstr(e.msg, "ECC"))) fail_msg("call %ld: %s", n, e.msg);
    }
    print_message("    error %d: %ld calls, of which %ld failed once; %ld times it went on without\n", with, calls,
                  tried, without);
    emu_fail_nth(0, 0);
}

static void memory(void **state)
{
    calls_failing(state, OUT_OF_MEMORY);
}

static void for_good(void **state)
{
#ifdef __SANITIZE_ADDRESS__
    (void)state;
    skip(); /* what is freed and what is not is memory's to see */
#else
    calls_failing(state, ECC);
    calls_failing(state, ILLEGAL_ADDRESS);
#endif
}

int main(void)
{
    log_open(stderr, LOG_TEXT, LOG_OFF);
    const struct CMUnitTest tests[] = {cmocka_unit_test(memory), cmocka_unit_test(for_good)};
    return cmocka_run_group_tests(tests, world_make, world_unmake);
}
