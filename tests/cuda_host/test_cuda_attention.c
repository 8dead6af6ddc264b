/* Attention on the CUDA back end against the CPU's: both kinds of kernels, head sizes with and without an instance of
 * their own, one tile of keys, several, and ragged ends. */
#include "tests/cuda_host/twin.h"

typedef struct {
    size_t B, T, H, D;
    compute_type ct;
    int sm;
    float scale; /* of q, k, v */
} attention_case;

static const attention_case cases[] = {
    {2, 37, 2, 64, COMPUTE_BF16, 86, 1},   {1, 50, 1, 64, COMPUTE_BF16, 86, 1}, {1, 197, 1, 64, COMPUTE_BF16, 86, 1},
    {1, 257, 1, 64, COMPUTE_BF16, 86, 1},  {2, 1, 2, 32, COMPUTE_BF16, 86, 1},  {1, 64, 1, 32, COMPUTE_BF16, 86, 3},
    {1, 140, 1, 80, COMPUTE_BF16, 86, 1},  {1, 65, 1, 96, COMPUTE_BF16, 86, 1}, {1, 130, 1, 128, COMPUTE_BF16, 86, 1},
    {1, 40, 1, 128, COMPUTE_BF16, 86, 1},  {1, 81, 1, 16, COMPUTE_BF16, 86, 1}, {1, 35, 1, 88, COMPUTE_BF16, 86, 1},
    {2, 35, 2, 33, COMPUTE_BF16, 86, 1},   {1, 37, 1, 64, COMPUTE_BF16, 75, 1}, {2, 70, 1, 33, COMPUTE_F32, 86, 1},
    {1, 1, 1, 1, COMPUTE_F32, 86, 1},      {1, 50, 1, 64, COMPUTE_F32, 75, 3},  {1, 65, 1, 128, COMPUTE_F32, 75, 1},
    {1, 1370, 1, 32, COMPUTE_BF16, 86, 1},
};

static void run_case(twin *t, const attention_case *c, uint64_t seed)
{
    size_t N = c->B * c->T, C = c->H * c->D;
    printf("  %zu images, %zu tokens, %zu heads of %zu, %s, sm_%d\n", c->B, c->T, c->H, c->D,
           c->ct == COMPUTE_BF16 ? "bf16" : "fp32", c->sm);
    op_cuda_of(&t->d[CUDA])->sm = c->sm;
    size_t bytes[TWINS];
    BOTH(t, i)
    {
        const device *d = &t->d[i];
        size_t forward = d->op->attention_bytes(d, false, c->B, c->T, c->H, c->D, false);
        size_t backward = d->op->attention_bytes(d, false, c->B, c->T, c->H, c->D, true);
        bytes[i] = forward > backward ? forward : backward;
    }
    twin_reserve(t, bytes[CPU], bytes[CUDA]);
    tensor qkv = tensor_ct(t, N * 3 * C, seed, c->scale), d_o = tensor_ct(t, N * C, 1, 1);
    tensor o = tensor_ct(t, N * C, 2, 1), bare = tensor_ct(t, N * C, 3, 1), lse = tensor_f32(t, N * c->H, 4, 1);
    tensor dqkv = tensor_ct(t, N * 3 * C, 5, 1);
    BOTH(t, i)
    {
        device *d = &t->d[i];
        d->op->attention_fwd(d, o.p[i], lse.p[i], qkv.p[i], c->B, c->T, c->H, c->D);
        d->op->attention_fwd(d, bare.p[i], NULL, qkv.p[i], c->B, c->T, c->H, c->D);
        d->op->attention_bwd(d, dqkv.p[i], d_o.p[i], qkv.p[i], o.p[i], lse.p[i], c->B, c->T, c->H, c->D);
    }
    twin_compare(t, "o", &o, 3 * twin_rounding(t));
    twin_compare(t, "o without log-sum-exp", &bare, 3 * twin_rounding(t));
    twin_compare(t, "log-sum-exp", &lse, 1e-11);
    twin_compare(t, "dqkv", &dqkv, 3 * twin_rounding(t));
}

static void run_cases(compute_type ct)
{
    twin t = twin_open(ct);
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++)
        if (cases[k].ct == ct) run_case(&t, &cases[k], k);
    twin_close(&t);
}

static void in_bf16(void **state)
{
    (void)state;
    run_cases(COMPUTE_BF16);
}

static void in_f32(void **state)
{
    (void)state;
    run_cases(COMPUTE_F32);
}

/* Nothing to do is nothing done; a head that no kernel holds is a sticky error. */
static void refused(void **state)
{
    (void)state;
    err e = {0};
    twin t = twin_open(COMPUTE_BF16);
    device *d = &t.d[CUDA];
    twin_reserve(&t, 0, d->op->attention_bytes(d, false, 1, 1, 1, 136, true));
    d->op->attention_fwd(d, NULL, NULL, NULL, 0, 5, 2, 64);
    d->op->attention_bwd(d, NULL, NULL, NULL, NULL, NULL, 0, 5, 2, 64);
    assert_int_equal(device_sync(d, &e), ERR_OK);
    d->op->attention_fwd(d, NULL, NULL, NULL, 1, 1, 1, 136);
    assert_int_equal(device_sync(d, &e), ERR_UNSUPPORTED);
    d->op->attention_bwd(d, NULL, NULL, NULL, NULL, NULL, 1, 1, 1, 136);
    assert_int_equal(device_sync(d, &e), ERR_UNSUPPORTED);
    twin_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(in_bf16), cmocka_unit_test(in_f32), cmocka_unit_test(refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
