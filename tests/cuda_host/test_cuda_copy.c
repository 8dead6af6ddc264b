/* Casts and elementwise ops on the CUDA back end against the CPU's. */
#include "tests/cuda_host/twin.h"

static void elementwise(void **state)
{
    (void)state;
    static const size_t lengths[] = {1, 7, 255, 256, 257, 10000};
    static const compute_type types[] = {COMPUTE_F32, COMPUTE_BF16};
    for (size_t c = 0; c < 2; c++)
        for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
            twin t = twin_open(types[c]);
            size_t n = lengths[k];
            tensor x = tensor_f32(&t, n, 1, 2), y = tensor_ct(&t, n, 2, 1), back = tensor_f32(&t, n, 3, 1);
            BOTH(t, i)
            {
                device *d = &t.d[i];
                d->op->to_f32(d, back.p[i], y.p[i], n);
                d->op->add(d, y.p[i], y.p[i], n);
                d->op->scale(d, y.p[i], -0.5f, n);
            }
            twin_compare(&t, "to_f32", &back, 0);
            twin_compare(&t, "add, scale", &y, 0); /* by powers of two: exact */
            BOTH(t, i) t.d[i].op->to_ct(&t.d[i], y.p[i], x.p[i], n);
            twin_compare(&t, "to_ct", &y, twin_rounding(&t));
            twin_close(&t);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(elementwise)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
