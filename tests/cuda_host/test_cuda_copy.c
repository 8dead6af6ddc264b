/* Casts and elementwise ops on the CUDA back end against the CPU's. */
#include "tests/cuda_host/twin.h"

static dv *at(const twin *t, const tensor *x, int i, size_t skip)
{
    return dv_at(x->p[i], skip * tensor_value_bytes(&t->d[i], x->kind));
}

/* The values behind the first `skip`, by which 16-byte alignment is lost. */
static void copies(twin *t, size_t n, size_t skip)
{
    tensor x = tensor_f32(t, skip + n, 1, 2), y = tensor_ct(t, skip + n, 2, 1), back = tensor_f32(t, skip + n, 3, 1);
    BOTH(t, i)
    {
        device *d = &t->d[i];
        d->op->to_f32(d, at(t, &back, i, skip), at(t, &y, i, skip), n);
        d->op->add(d, at(t, &y, i, skip), at(t, &y, i, skip), n);
        d->op->scale(d, at(t, &y, i, skip), -0.25f, n);
    }
    twin_compare(t, "to_f32", &back, 0);
    twin_compare(t, "add, scale", &y, 0); /* by powers of two: exact */
    BOTH(t, i) t->d[i].op->to_ct(&t->d[i], at(t, &y, i, skip), at(t, &x, i, skip), n);
    twin_compare(t, "to_ct", &y, twin_rounding(t));
}

static void elementwise(void **state)
{
    (void)state;
    static const struct {
        size_t n, skip;
    } cases[] = {{0, 0},    {1, 0},     {7, 0}, {8, 0},    {255, 0}, {2048, 0},
                 {2049, 0}, {10000, 0}, {7, 1}, {2049, 1}, {999, 3}};
    static const compute_type types[] = {COMPUTE_F32, COMPUTE_BF16};
    for (size_t c = 0; c < 2; c++) {
        twin t = twin_open(types[c]);
        for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
            printf("%s, %zu values from %zu on\n", types[c] == COMPUTE_F32 ? "fp32" : "bf16", cases[k].n,
                   cases[k].skip);
            copies(&t, cases[k].n, cases[k].skip);
        }
        twin_close(&t);
    }
}

/* More than is pinned at once, each before the one before was looked at: what is asked after finds all of it, and
 * nothing goes where the op before still reads. */
static void prefetches(void **state)
{
    (void)state;
    enum { ROUNDS = 2, WORDS = 35 << 20 }; /* is pinned twice over */
    twin t = twin_open(COMPUTE_F32);
    device *d = &t.d[CUDA];
    err e;
    dv *there, *seen[ROUNDS];
    uint32_t *host = malloc(WORDS * sizeof *host);
    assert_non_null(host);
    ASSERT_OK(d->op->alloc(d, WORDS * sizeof *host, &there, &e));
    for (int r = 0; r < ROUNDS; r++) ASSERT_OK(d->op->alloc(d, WORDS * sizeof *host, &seen[r], &e));
    for (uint32_t r = 0; r < ROUNDS; r++) {
        for (uint32_t i = 0; i < WORDS; i++) host[i] = i * 2654435761u + r;
        d->op->prefetch(d, there, host, 100);
        d->op->prefetch(d, dv_at(there, 100), host + 25, WORDS * sizeof *host - 100);
        memset(host, 0, WORDS * sizeof *host);
        d->op->prefetched(d);
        d->op->copy(d, seen[r], there, WORDS * sizeof *host);
        d->op->consumed(d);
    }
    for (uint32_t r = 0; r < ROUNDS; r++) {
        d->op->download(d, host, seen[r], WORDS * sizeof *host);
        ASSERT_OK(device_sync(d, &e));
        for (uint32_t i = 0; i < WORDS; i++)
            if (host[i] != i * 2654435761u + r) fail_msg("round %u, word %u: %u", r, i, host[i]);
    }
    d->op->free(d, there);
    for (int r = 0; r < ROUNDS; r++) d->op->free(d, seen[r]);
    free(host);
    twin_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(elementwise), cmocka_unit_test(prefetches)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
