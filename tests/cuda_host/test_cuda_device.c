/* The CUDA device itself: what stands in its way in one line each, its account of memory, uploads whose source changes
 * at once, recordings, and any one call of the runtime failing. */
#include <sys/wait.h>
#include <unistd.h>

#include "model/device_cuda.h"
#include "tests/cuda_host/twin.h"

enum { FIRST = 5 << 20, FAILED = 42 }; /* bytes: two pinned blocks; a child's exit status */

/* What a run does with a device, in small. */
static err_code everything(err *e)
{
    device d;
    dv *x, *y;
    float one[64], got[64] = {0};
    for (int i = 0; i < 64; i++) one[i] = 1;
    TRY(op_cuda_open(&d, 0, COMPUTE_F32, e));
    err_code rc = d.op->alloc(&d, sizeof one, &x, e);
    if (!rc) rc = d.op->alloc(&d, sizeof one, &y, e);
    for (int i = 0; i < 3; i++) { /* the first are no graphs: here, nothing */
        d.op->record(&d, true);
        d.op->record(&d, false);
    }
    if (!rc) {
        d.op->record(&d, true);
        d.op->upload(&d, x, one, sizeof one);
        d.op->add(&d, y, x, 64);
        d.op->record(&d, false);
        d.op->send(&d, 1, y, sizeof *got);
        d.op->take(&d, 1, got, sizeof *got);
        if (!d.sticky.code && got[0] != 1) rc = err_set(e, ERR_FORMAT, __FILE__, __LINE__, "a wrong sum sent");
        d.op->download(&d, got, y, sizeof got);
        if (!rc) rc = device_sync(&d, e);
        if (!rc && got[63] != 1) rc = err_set(e, ERR_FORMAT, __FILE__, __LINE__, "a wrong sum");
    }
    device_close(&d);
    return rc;
}

/* In a process of its own, with a variable of the executor's set: the exit status. */
static int child(const char *variable, int value, char *said, size_t size)
{
    char text[16];
    int fd[2], status;
    assert_int_equal(pipe(fd), 0);
    fflush(stdout);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        snprintf(text, sizeof text, "%d", value);
        setenv(variable, text, 1);
        dup2(fd[1], 2);
        close(fd[0]);
        execl("/proc/self/exe", "test", "everything", (char *)NULL);
        _exit(127);
    }
    close(fd[1]);
    size_t n = 0;
    for (ssize_t k; n + 1 < size && (k = read(fd[0], said + n, size - 1 - n)) > 0;) n += (size_t)k;
    said[n] = 0;
    close(fd[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int only_everything(void)
{
    err e = {0};
    err_code rc = everything(&e);
    if (!rc) return 0;
    fprintf(stderr, "%s\n", e.msg);
    return rc != ERR_FORMAT && e.code == rc && e.msg[0] && !strchr(e.msg, '\n') ? FAILED : 1;
}

static void each_call_failing(void **state)
{
    (void)state;
    char said[1024];
    for (int n = 1, clean = 0; clean < 3; n++) { /* beyond the last call, or one that can be done without */
        int status = child("CUDA_EMU_FAIL_NTH", n, said, sizeof said);
        clean = status ? 0 : clean + 1;
        printf("    call %d: %s", n, status ? said : "no harm\n");
        if (status && status != FAILED) fail_msg("call %d: exit status %d: %s", n, status, said);
    }
}

static void old_gpus(void **state)
{
    (void)state;
    static const struct {
        int sm, status;
        const char *says;
    } cases[] = {{61, FAILED, "too old"}, {75, 0, ""}, {90, 0, ""}};
    char said[1024];
    for (size_t i = 0; i < 3; i++) {
        int status = child("CUDA_EMU_SM", cases[i].sm, said, sizeof said);
        printf("    sm_%d: %s\n", cases[i].sm, said);
        assert_int_equal(status, cases[i].status);
        assert_non_null(strstr(said, cases[i].says));
    }
}

static void refusals(void **state)
{
    (void)state;
    device d;
    err e = {0};
    assert_int_equal(op_cuda_open(&d, 3, COMPUTE_AUTO, &e), ERR_UNSUPPORTED);
    assert_non_null(strstr(e.msg, "no GPU 3"));
    device_cuda_build other = DEVICE_CUDA_BUILD;
    device_cuda_room_of *room;
    other.param++;
    e = (err){0};
    assert_int_equal(radapt_cuda_open(&other, &room, &d, 0, COMPUTE_AUTO, &e), ERR_CONFLICT);
    other.param--;
    ASSERT_OK(radapt_cuda_open(&other, &room, &d, 0, COMPUTE_AUTO, &e));
    assert_true(room(&d) > d.bytes);
    dv *p;
    assert_int_equal(d.op->alloc(&d, (size_t)1 << 45, &p, &e), ERR_NOMEM);
    assert_non_null(strstr(e.msg, "are free"));
    printf("    %s\n", e.msg);
    assert_int_equal(d.op->alloc(&d, SIZE_MAX - 3, &p, &e), ERR_NOMEM);
    ASSERT_OK(device_sync(&d, &e)); /* it goes on */
    device_close(&d);
}

static void account(void **state)
{
    (void)state;
    static const size_t bytes[] = {0, 1, 511, 512, 513, 100000};
    twin t = twin_open(COMPUTE_F32);
    device *d = &t.d[CUDA];
    size_t at_first = d->bytes, sum = 0;
    dv *p[6];
    err e;
    assert_int_equal(at_first, op_cuda_alloc_bytes(OP_CUDA_SCRATCH_BYTES) + op_cuda_alloc_bytes(OP_CUDA_BLAS_BYTES));
    for (int i = 0; i < 6; i++) {
        ASSERT_OK(d->op->alloc(d, bytes[i], &p[i], &e));
        sum += op_cuda_alloc_bytes(bytes[i]);
        assert_int_equal(d->bytes, at_first + sum);
    }
    d->op->free(d, p[2]);
    d->op->free(d, NULL);
    assert_int_equal(d->bytes, at_first + sum - 512);
    for (int i = 0; i < 6; i++)
        if (i != 2) d->op->free(d, p[i]);
    assert_int_equal(d->bytes, at_first);
    assert_int_equal(d->bytes_most, at_first + sum);
    twin_close(&t);
}

/* The source is overwritten at once, and what was sent is more than a pinned block. */
static void uploads(void **state)
{
    (void)state;
    twin t = twin_open(COMPUTE_F32);
    device *d = &t.d[CUDA];
    uint8_t *sent = malloc(FIRST), *got = malloc(FIRST);
    dv *p[2];
    err e;
    assert_true(sent && got);
    for (int k = 0; k < 2; k++) {
        ASSERT_OK(d->op->alloc(d, FIRST, &p[k], &e));
        for (size_t i = 0; i < FIRST; i++) sent[i] = (uint8_t)(i * 7 + i / 4096 + (size_t)k);
        d->op->upload(d, p[k], sent, FIRST);
    }
    memset(sent, 0, FIRST);
    for (int k = 0; k < 2; k++) {
        size_t wrong = 0;
        d->op->download(d, got, p[k], FIRST);
        for (size_t i = 0; i < FIRST; i++) wrong += got[i] != (uint8_t)(i * 7 + i / 4096 + (size_t)k);
        assert_int_equal(wrong, 0);
        d->op->free(d, p[k]);
    }
    ASSERT_OK(device_sync(d, &e));
    assert_int_equal(op_cuda_memory_pinned(d), 3 * (size_t)OP_CUDA_PINNED_BYTES + OP_CUDA_SENT_BYTES);
    free(sent);
    free(got);
    twin_close(&t);
}

/* More than may wait outside a recording goes up in turns. */
static void many_uploads(void **state)
{
    (void)state;
    enum { TURNS = 20 };
    twin t = twin_open(COMPUTE_F32);
    device *d = &t.d[CUDA];
    uint8_t *block = calloc(1, OP_CUDA_PINNED_BYTES);
    dv *p;
    err e;
    assert_non_null(block);
    ASSERT_OK(d->op->alloc(d, OP_CUDA_PINNED_BYTES, &p, &e));
    for (int i = 0; i < TURNS; i++) d->op->upload(d, p, block, OP_CUDA_PINNED_BYTES);
    ASSERT_OK(device_sync(d, &e));
    assert_int_equal(op_cuda_memory_pinned(d), (size_t)OP_CUDA_PINNED_MOST * OP_CUDA_PINNED_BYTES + OP_CUDA_SENT_BYTES);
    d->op->free(d, p);
    free(block);
    twin_close(&t);
}

/* What is sent is as it was then, whatever comes after it; and what was uploaded before has its place until then: two
 * turns' worth of pinned memory, however many there are. */
static void sends(void **state)
{
    (void)state;
    enum { TURNS = 9, EACH = 3 << 20 };
    twin t = twin_open(COMPUTE_F32);
    device *d = &t.d[CUDA];
    float *block = malloc(EACH), got[2];
    dv *p;
    err e;
    assert_non_null(block);
    ASSERT_OK(d->op->alloc(d, EACH, &p, &e));
    for (int i = 0; i < TURNS; i++) {
        for (size_t k = 0; k < EACH / sizeof *block; k++) block[k] = (float)i;
        d->op->upload(d, p, block, EACH);
        d->op->send(d, i % 2, dv_at(p, EACH - sizeof got), sizeof got);
        if (!i) continue;
        d->op->take(d, !(i % 2), got, sizeof got);
        assert_true(got[0] == (float)(i - 1) && got[1] == (float)(i - 1));
    }
    d->op->take(d, (TURNS - 1) % 2, got, sizeof got);
    assert_true(got[1] == TURNS - 1);
    ASSERT_OK(device_sync(d, &e));
    assert_int_equal(op_cuda_memory_pinned(d), 2 * (size_t)OP_CUDA_PINNED_BYTES + OP_CUDA_SENT_BYTES);
    d->op->free(d, p);
    free(block);
    twin_close(&t);
}

/* The same steps with other numbers: one graph; what was uploaded in a recording is what was there then; a download in
 * the middle of one sees all before it. */
static void recordings(void **state)
{
    (void)state;
    enum { N = 1000, STEPS = 9 };
    twin t = twin_open(COMPUTE_F32);
    tensor x = tensor_f32(&t, N, 1, 1), y = tensor_f32(&t, N, 2, 1), z = tensor_f32(&t, N, 3, 1);
    float host[N], mid[TWINS];
    for (int s = 0; s < STEPS; s++) {
        BOTH(&t, i)
        {
            device *d = &t.d[i];
            d->op->record(d, true);
            for (int k = 0; k < N; k++) host[k] = (float)(s * k);
            d->op->upload(d, x.p[i], host, sizeof host);
            for (int k = 0; k < N; k++) host[k] = -1;
            d->op->add(d, y.p[i], x.p[i], N);
            d->op->upload(d, x.p[i], host, (size_t)(s + 1) * sizeof *host);
            if (s == STEPS - 1) d->op->download(d, &mid[i], dv_at(y.p[i], 8 * sizeof(float)), sizeof(float));
            d->op->scale(d, y.p[i], 1.0f / (float)(s + 1), N);
            d->op->add(d, z.p[i], y.p[i], N);
            d->op->record(d, false);
        }
        twin_compare(&t, "recorded", &z, 1e-13);
    }
    assert_float_equal(mid[CPU], mid[CUDA], 1e-4);
    printf("    executable graphs made: %zu\n", op_cuda_graph_made(&t.d[CUDA]));
    assert_true(op_cuda_graph_made(&t.d[CUDA]) <= 3); /* of a whole step, and of the two halves that a download made */
    twin_close(&t);
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "everything")) return only_everything();
    const struct CMUnitTest tests[] = {cmocka_unit_test(refusals), cmocka_unit_test(account),
                                       cmocka_unit_test(uploads),  cmocka_unit_test(many_uploads),
                                       cmocka_unit_test(sends),    cmocka_unit_test(recordings),
                                       cmocka_unit_test(old_gpus), cmocka_unit_test(each_call_failing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
