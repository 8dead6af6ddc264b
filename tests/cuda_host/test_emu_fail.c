/* Each runtime call of a small program fails once: it ends in an error with a code and a message, or, where it could do
 * without the call, with the right values; nothing stays allocated. The same after an error that leaves the GPU
 * unusable, without memory enough, without a GPU, with one too old. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/cuda/op_cuda.h"
#include "tests/cuda_host/emu_fail.h"

enum { LOOKS = 3 /* calls by which a GPU is found: one that fails is none */ };
enum { N = 10, C = 32, HEADS = 1, STEPS = 5, TENSORS = 12, BYTES = N * C * 3 * 4 };

/* What the program came to: bytes that it downloaded. */
typedef struct {
    unsigned char out[N * C * 2];
} outcome;

typedef struct {
    device d;
    dv *t[TENSORS];
    linear_w w;
} program;

/* One op of each kind: memory, kernels, products, attention, sums over blocks, the optimizer. */
static void step(program *p, adamw_step *s)
{
    device *d = &p->d;
    const op_table *op = d->op;
    dv **t = p->t;
    param weights = {.rows = C,
                     .cols = C,
                     .full_rows = C,
                     .master = t[6],
                     .grad = t[7],
                     .m = t[8],
                     .v = t[9],
                     .live = p->w.w,
                     .live_ct = true,
                     .linear = &p->w,
                     .lr_scale = 1};
    op->norm_fwd(d, t[1], t[4], t[5], t[0], t[10], t[10], 1e-6f, N, C);
    op->linear_fwd(d, t[2], t[1], &p->w, N);
    op->linear_gelu_fwd(d, t[2], t[3], t[1], &p->w, N);
    op->attention_fwd(d, t[3], t[4], t[0], 1, N / 3, HEADS, C);
    op->linear_dw(d, t[7], NULL, t[2], t[1], NULL, C, N, C, C);
    op->grad_square(d, t[11], &weights, 1, s);
    op->adamw(d, &weights, 1, s, t[11]);
    op->refresh(d, &weights, 1);
    op->add(d, t[2], t[3], N / 3 * C);
}

static err_code run(outcome *o, err *e)
{
    program p = {.w = {.out = C, .in = C, .version = 1}};
    float values[N * C];
    adamw_step s = {.beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .lr = 0.01f, .head_lr = 0.01f, .clip = 1};
    err_code code = op_cuda_open(&p.d, 0, COMPUTE_BF16, e);
    if (code) return code;
    for (int i = 0; i < TENSORS && !code; i++) code = p.d.op->alloc(&p.d, BYTES, &p.t[i], e);
    if (!code) code = p.d.op->alloc(&p.d, C * C * 2, &p.w.w, e);
    if (!code) code = device_reserve(&p.d, p.d.op->attention_bytes(&p.d, false, 1, N, HEADS, C, false) + BYTES, e);
    for (int i = 0; i < N * C; i++) values[i] = (float)(i % 13) / 8 - 0.5f;
    if (!code) {
        p.d.op->upload(&p.d, p.t[11], values, sizeof values);
        p.d.op->to_ct(&p.d, p.t[0], p.t[11], N * C);
        p.d.op->upload(&p.d, p.t[6], values, sizeof values);
        p.d.op->upload(&p.d, p.t[10], values, C * sizeof *values);
        for (int i = 0; i < STEPS; i++) {
            for (int g = 0; g < ADAM_GROUPS; g++) s.t[g] = i + 1;
            p.d.op->prefetch(&p.d, p.t[11], values, C * sizeof *values); /* once more what is there */
            p.d.op->prefetched(&p.d);
            p.d.op->record(&p.d, true);
            step(&p, &s);
            p.d.op->record(&p.d, false);
            p.d.op->consumed(&p.d);
        }
        p.d.op->download(&p.d, o->out, p.t[2], sizeof o->out);
        code = device_sync(&p.d, e);
    }
    p.d.op->linear_release(&p.d, &p.w);
    p.d.op->free(&p.d, p.w.w);
    for (int i = 0; i < TENSORS; i++) p.d.op->free(&p.d, p.t[i]);
    device_close(&p.d);
    return code;
}

static void each_call(int with)
{
    outcome right = {0}, o;
    err e = {0};
    emu_fail_nth(0, 0);
    if (run(&right, &e)) fail_msg("%s", e.msg);
    long calls = emu_calls(), did_without = 0;
    assert_int_equal(emu_live(), 0);
    for (long n = 1; n <= calls; n++) {
        e = (err){0};
        memset(&o, 0, sizeof o);
        emu_fail_nth(n, with);
        err_code code = run(&o, &e);
        if (emu_live()) fail_msg("call %ld of %ld: %d things are left", n, calls, emu_live());
        if (code) {
            assert_int_equal(code, e.code);
            assert_true(e.msg[0] && !strchr(e.msg, '\n'));
            if (with == cudaErrorECCUncorrectable) { /* whoever meets it says so */
                if (!strstr(e.msg, "ECC")) fail_msg("call %ld: %s", n, e.msg);
                assert_true(code == ERR_DAMAGED || n <= LOOKS);
            }
        } else {
            did_without++;
            if (memcmp(&o, &right, sizeof o)) fail_msg("call %ld of %ld: no error, and other values", n, calls);
        }
    }
    print_message("    error %d: %ld calls, each failed once; %ld times it went on without\n", with, calls,
                  did_without);
    emu_fail_nth(0, 0);
}

static void once(void **state)
{
    (void)state;
    each_call(cudaErrorMemoryAllocation);
}

static void for_good(void **state)
{
    (void)state;
#ifdef __SANITIZE_ADDRESS__
    skip(); /* what is freed and what is not is once's to see */
#endif
    each_call(cudaErrorECCUncorrectable);
    each_call(cudaErrorIllegalAddress);
}

/* The environment, and what opening says of it. */
static void no_gpu(void **state)
{
    (void)state;
    static const struct {
        const char *name, *value, *says;
        err_code code;
    } cases[] = {
        {"CUDA_EMU_DEVICES", "0", "no GPU", ERR_UNSUPPORTED},   {"CUDA_EMU_DEVICES", "-35", "driver", ERR_UNSUPPORTED},
        {"CUDA_EMU_DEVICES", "-34", "stub", ERR_UNSUPPORTED},   {"CUDA_EMU_SM", "61", "too old", ERR_UNSUPPORTED},
        {"CUDA_EMU_MEMORY", "1000000", "no memory", ERR_NOMEM},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        outcome o;
        err e = {0};
        setenv(cases[i].name, cases[i].value, 1);
        emu_fail_nth(0, 0);
        err_code code = run(&o, &e);
        print_message("    %s=%s: %s\n", cases[i].name, cases[i].value, e.msg);
        assert_int_equal(code, cases[i].code);
        assert_non_null(strstr(e.msg, cases[i].says));
        assert_int_equal(emu_live(), 0);
        unsetenv(cases[i].name);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(once), cmocka_unit_test(for_good), cmocka_unit_test(no_gpu)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
