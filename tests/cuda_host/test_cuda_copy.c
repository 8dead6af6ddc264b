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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(elementwise)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
