/* op_cpu_fma.c: which of op_cpu_fma.h's versions runs. */
#include "model/op_cpu_fma.h"

const op_cpu_fma *op_cpu_fma_find(void)
{
#if defined(__x86_64__)
    if (op_cpu_matmul_has_avx512()) return &op_cpu_fma_avx512;
    if (op_cpu_matmul_has_avx2()) return &op_cpu_fma_avx2;
#endif
    return NULL;
}

const op_cpu_fma *op_cpu_fma_of(const device *d)
{
    return d->ct == COMPUTE_BF16 && op_cpu_matmul_has_bf16() ? NULL : op_cpu_fma_find();
}

size_t op_cpu_fma_packed_bytes(const op_cpu_fma *v, bool half, size_t in, size_t out)
{
    size_t columns = (out + v->width - 1) / v->width * v->width, bytes = columns * in * (half ? 2 : 4);
    return (bytes + 63) & ~(size_t)63;
}

float *op_cpu_fma_scratch(const device *d)
{
    const op_cpu *o = d->impl;
    return o->fma + (size_t)op_cpu_thread() * OP_CPU_FMA_FLOATS;
}
