/* op_cpu_fma.h: linear layers, their weights' gradients and attention on fused multiply-adds of whole vectors, for
 * processors without tiles of bf16: AVX-512 and AVX2. Written once (op_cpu_fma_tile.h, _linear.h, _attention.h),
 * compiled for each (op_cpu_fma_avx512.c, op_cpu_fma_avx2.c), chosen when it runs (op_cpu_fma.c).
 *
 * Arithmetic is fp32 whatever the compute type: bf16 is what lies in memory. Values are widened when a block of them
 * is packed, once for all the products that it takes part in, so bf16 costs no time and half the bytes. The order of an
 * element's sum depends on the inner size alone: results do not change with the rows that are computed together.
 *
 *     const op_cpu_fma *v = op_cpu_fma_of(d);     // NULL: this processor has neither
 *     v->pack(half, packed, weight, out, in, back);
 *     v->linear(d, &call);                        // op_cpu_linear_call, packed by this v
 */
#ifndef RADAPT_OP_CPU_FMA_H
#define RADAPT_OP_CPU_FMA_H
#include "model/op_cpu.h"

typedef struct op_cpu_fma {
    size_t width; /* columns of a packed weight's panels */
    /* weight (out,in) as it is stored, ct (half: bf16), into panels; back: for y = dy W. packed: _packed_bytes. */
    void (*pack)(bool half, void *packed, const dv *weight, size_t out, size_t in, bool back);
    void (*linear)(device *d, const op_cpu_linear_call *p);
    /* dw (R,I) f32 += dy (N,R)^T x (N,I); db (R) f32 or NULL += dy's column sums */
    void (*dw)(device *d, dv *dw, dv *db, const dv *dy, const dv *x, size_t R, size_t N, size_t I);
    size_t (*attention_bytes)(size_t T, size_t D, bool backward); /* a thread's */
    void (*attention_fwd)(device *d, dv *o, dv *lse, const dv *qkv, size_t B, size_t T, size_t H, size_t D);
    void (*attention_bwd)(device *d, dv *dqkv, const dv *d_o, const dv *qkv, const dv *o, const dv *lse, size_t B,
                          size_t T, size_t H, size_t D);
} op_cpu_fma;

extern const op_cpu_fma op_cpu_fma_avx512, op_cpu_fma_avx2;

/* What this processor has (of what DNNL_MAX_CPU_ISA leaves), or NULL. */
const op_cpu_fma *op_cpu_fma_find(void);
/* The same where linear layers of this device go there: not where the processor multiplies bf16 by itself. */
const op_cpu_fma *op_cpu_fma_of(const device *d);
size_t op_cpu_fma_packed_bytes(const op_cpu_fma *v, bool half, size_t in, size_t out);
/* The calling thread's scratch for linear layers: OP_CPU_FMA_FLOATS. */
float *op_cpu_fma_scratch(const device *d);

enum {
    OP_CPU_FMA_INNER = 384, /* of the inner index at once */
    OP_CPU_FMA_ROW = 400,   /* floats from a row of a packed left operand to the next: not a power of two */
    OP_CPU_FMA_LEFT = 400 * OP_CPU_FMA_ROW,   /* floats of a left operand: 640 kB, in the second cache */
    OP_CPU_FMA_PANEL = OP_CPU_FMA_INNER * 32, /* a panel's chunk, widened */
    OP_CPU_FMA_SUMS = 288 * 1024,             /* of rows whose inner index comes in chunks */
    OP_CPU_FMA_FLOATS = OP_CPU_FMA_LEFT + OP_CPU_FMA_PANEL + OP_CPU_FMA_SUMS
};

#endif
