/* bench_onednn.h: what oneDNN's matrix product takes here, with weights in the layout that it likes best: the yardstick
 * of bench_ops and bench_ssa. On as many threads as OpenMP was told last (device_open_cpu does), in bf16 where the
 * processor multiplies it, else in fp32, which is faster there. */
#ifndef RADAPT_BENCH_ONEDNN_H
#define RADAPT_BENCH_ONEDNN_H
#include <dnnl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/progress.h"
#include "model/op_cpu.h"

static inline void bench_onednn_must(dnnl_status_t s)
{
    if (s == dnnl_success) return;
    fprintf(stderr, "bench: oneDNN says %d\n", (int)s);
    exit(1);
}

/* A smooth curve in bytes for `size`: an engine's tiles run faster on zeros. */
static inline dnnl_memory_t bench_onednn_values(const dnnl_memory_desc_t *md, dnnl_engine_t engine, bool half)
{
    dnnl_memory_t m;
    void *at;
    bench_onednn_must(dnnl_memory_create(&m, md, engine, DNNL_MEMORY_ALLOCATE));
    bench_onednn_must(dnnl_memory_get_data_handle(m, &at));
    for (size_t i = 0; i < dnnl_memory_desc_get_size(md) / (half ? 2 : 4); i++) {
        union {
            float f;
            uint32_t bits;
        } x = {sinf(0.37f * (float)i) * 1.5f};
        if (half) /* bf16 is the upper half */
            ((uint16_t *)at)[i] = (uint16_t)(x.bits >> 16);
        else
            ((float *)at)[i] = x.f;
    }
    return m;
}

/* Seconds of a product of N rows of `in` and a weight (in,out), with bias: the shortest of so many calls. */
static inline double bench_onednn_seconds(size_t N, size_t in, size_t out, int calls)
{
    bool half = op_cpu_matmul_has_bf16();
    dnnl_data_type_t ct = half ? dnnl_bf16 : dnnl_f32;
    dnnl_dim_t n = (dnnl_dim_t)N, i = (dnnl_dim_t)in, o = (dnnl_dim_t)out;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_memory_desc_t from, weights, bias, to;
    dnnl_matmul_desc_t op;
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t product;
    bench_onednn_must(dnnl_engine_create(&engine, dnnl_cpu, 0));
    bench_onednn_must(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
    bench_onednn_must(dnnl_memory_desc_init_by_tag(&from, 2, (dnnl_dims_t){n, i}, ct, dnnl_ab));
    bench_onednn_must(dnnl_memory_desc_init_by_tag(&weights, 2, (dnnl_dims_t){i, o}, ct, dnnl_format_tag_any));
    bench_onednn_must(dnnl_memory_desc_init_by_tag(&bias, 2, (dnnl_dims_t){1, o}, dnnl_f32, dnnl_ab));
    bench_onednn_must(dnnl_memory_desc_init_by_tag(&to, 2, (dnnl_dims_t){n, o}, ct, dnnl_ab));
    bench_onednn_must(dnnl_matmul_desc_init(&op, &from, &weights, &bias, &to));
    bench_onednn_must(dnnl_primitive_desc_create(&pd, &op, NULL, engine, NULL));
    weights = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    bench_onednn_must(dnnl_primitive_create(&product, pd));
    dnnl_memory_t m[] = {bench_onednn_values(&from, engine, half), bench_onednn_values(&weights, engine, half),
                         bench_onednn_values(&bias, engine, false), bench_onednn_values(&to, engine, half)};
    dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, m[0]}, {DNNL_ARG_WEIGHTS, m[1]}, {DNNL_ARG_BIAS, m[2]}, {DNNL_ARG_DST, m[3]}};
    double best = INFINITY;
    for (int k = 0; k < calls; k++) {
        double begun = progress_clock();
        bench_onednn_must(dnnl_primitive_execute(product, stream, 4, args));
        best = fmin(best, progress_clock() - begun);
    }
    for (int k = 0; k < 4; k++) dnnl_memory_destroy(m[k]);
    dnnl_primitive_destroy(product);
    dnnl_primitive_desc_destroy(pd);
    dnnl_stream_destroy(stream);
    dnnl_engine_destroy(engine);
    return best;
}

/* Operations a second of the products of a block's four layers: C channels, F of the MLP. */
static inline double bench_onednn_rate(size_t N, size_t C, size_t F, int calls)
{
    const size_t layers[4][2] = {{C, 3 * C}, {C, C}, {C, F}, {F, C}};
    double seconds = 0, flop = 0;
    for (int i = 0; i < 4; i++) {
        seconds += bench_onednn_seconds(N, layers[i][0], layers[i][1], calls);
        flop += 2.0 * (double)N * (double)(layers[i][0] * layers[i][1]);
    }
    return flop / seconds;
}

#endif
