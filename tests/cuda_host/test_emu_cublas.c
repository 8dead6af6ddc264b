/* The stand-in for cuBLASLt: sums as a naive loop has them, and refusals where the real one refuses. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "model/op_cpu.h"

enum { M = 5, N = 7, K = 13, LD = 16, BATCH = 3, VALUES = 4096 };
enum { A, B, C, D, MATRICES };

typedef struct {
    const char *name;
    int ta, tb;
    cudaDataType in, out;
    cublasComputeType_t compute;
    uint32_t epilogue;
    float beta;
    int batch;
    cublasStatus_t heuristic; /* what is expected */
    int rows_off, cols_off;   /* added to D's shape */
} gemm_case;

typedef struct {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t layout[MATRICES];
    cublasLtMatmulPreference_t preference;
    void *p[MATRICES], *bias, *workspace;
    float *host[MATRICES], *host_bias;
    cublasLtMatmulHeuristicResult_t found;
    cublasStatus_t status;
} gemm;

static void ok(int code)
{
    assert_int_equal(code, 0);
}

static size_t bytes_of(cudaDataType t)
{
    return t == CUDA_R_32F ? 4 : 2;
}

static void *put(const float *x, cudaDataType t)
{
    void *p;
    uint16_t *half = malloc(VALUES * sizeof *half);
    assert_non_null(half);
    for (int i = 0; i < VALUES; i++) half[i] = op_f32_to_bf16(x[i]);
    ok(cudaMalloc(&p, VALUES * bytes_of(t)));
    ok(cudaMemcpy(p, t == CUDA_R_32F ? (const void *)x : half, VALUES * bytes_of(t), cudaMemcpyHostToDevice));
    free(half);
    return p;
}

static float at(const void *p, cudaDataType t, size_t i)
{
    return t == CUDA_R_32F ? ((const float *)p)[i] : op_bf16_to_f32(((const uint16_t *)p)[i]);
}

static float *values(int seed)
{
    float *x = malloc(VALUES * sizeof *x);
    assert_non_null(x);
    for (int i = 0; i < VALUES; i++) x[i] = (float)((i * 37 + seed * 11) % 17 - 8) / 8; /* exact in bf16 */
    return x;
}

static gemm gemm_open(const gemm_case *q)
{
    gemm g = {0};
    int32_t trans[2] = {q->ta, q->tb};
    const uint64_t rows[MATRICES] = {q->ta ? K : M, q->tb ? N : K, M + q->rows_off, M + q->rows_off};
    const uint64_t cols[MATRICES] = {q->ta ? M : K, q->tb ? K : N, N + q->cols_off, N + q->cols_off};
    size_t most = 1 << 20;
    ok(cublasLtCreate(&g.handle));
    ok(cublasLtMatmulDescCreate(&g.op, q->compute, CUDA_R_32F));
    ok(cublasLtMatmulDescSetAttribute(g.op, CUBLASLT_MATMUL_DESC_TRANSA, &trans[0], sizeof *trans));
    ok(cublasLtMatmulDescSetAttribute(g.op, CUBLASLT_MATMUL_DESC_TRANSB, &trans[1], sizeof *trans));
    ok(cublasLtMatmulDescSetAttribute(g.op, CUBLASLT_MATMUL_DESC_EPILOGUE, &q->epilogue, sizeof q->epilogue));
    for (int x = A; x < MATRICES; x++) {
        int32_t batch = q->batch;
        int64_t stride = LD * LD;
        cudaDataType t = x < C ? q->in : q->out;
        g.host[x] = values(x);
        g.p[x] = put(g.host[x], t);
        ok(cublasLtMatrixLayoutCreate(&g.layout[x], t, rows[x], cols[x], LD));
        ok(cublasLtMatrixLayoutSetAttribute(g.layout[x], CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch));
        ok(cublasLtMatrixLayoutSetAttribute(g.layout[x], CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                            sizeof stride));
    }
    g.host_bias = values(9);
    g.bias = put(g.host_bias, q->out);
    ok(cublasLtMatmulDescSetAttribute(g.op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g.bias, sizeof g.bias));
    ok(cublasLtMatmulPreferenceCreate(&g.preference));
    ok(cublasLtMatmulPreferenceSetAttribute(g.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most,
                                            sizeof most));
    ok(cudaMalloc(&g.workspace, most));
    int found;
    g.status = cublasLtMatmulAlgoGetHeuristic(g.handle, g.op, g.layout[A], g.layout[B], g.layout[C], g.layout[D],
                                              g.preference, 1, &g.found, &found);
    assert_int_equal(found, g.status == CUBLAS_STATUS_SUCCESS);
    return g;
}

static cublasStatus_t gemm_run(gemm *g, float beta, size_t offset, size_t workspace_offset, size_t workspace_bytes)
{
    const float one = 1;
    return cublasLtMatmul(g->handle, g->op, &one, (char *)g->p[A] + offset, g->layout[A], g->p[B], g->layout[B], &beta,
                          g->p[C], g->layout[C], g->p[D], g->layout[D], &g->found.algo,
                          (char *)g->workspace + workspace_offset, workspace_bytes, NULL);
}

static void gemm_close(gemm *g)
{
    for (int x = A; x < MATRICES; x++) {
        ok(cublasLtMatrixLayoutDestroy(g->layout[x]));
        ok(cudaFree(g->p[x]));
        free(g->host[x]);
    }
    free(g->host_bias);
    ok(cudaFree(g->bias));
    ok(cudaFree(g->workspace));
    ok(cublasLtMatmulPreferenceDestroy(g->preference));
    ok(cublasLtMatmulDescDestroy(g->op));
    ok(cublasLtDestroy(g->handle));
}

/* Element (row, k) of op(X) in batch b. */
static double element(const gemm *g, int x, int turned, int b, size_t row, size_t col)
{
    return g->host[x][b * LD * LD + (turned ? row * LD + col : col * LD + row)];
}

#define F32 CUDA_R_32F
#define BF16 CUDA_R_16BF
#define F16 CUDA_R_16F
#define FULL CUBLAS_COMPUTE_32F
#define NONE CUBLASLT_EPILOGUE_DEFAULT
#define BIAS CUBLASLT_EPILOGUE_BIAS
#define BGRADA CUBLASLT_EPILOGUE_BGRADA
#define BGRADB CUBLASLT_EPILOGUE_BGRADB

static void sums(void **state)
{
    (void)state;
    static const gemm_case cases[] = {
        {"f32", 0, 0, F32, F32, FULL, NONE, 0, 1, 0, 0, 0},
        {"f32, A turned, accumulating", 1, 0, F32, F32, FULL, NONE, 1, 1, 0, 0, 0},
        {"f32, bias", 1, 0, F32, F32, FULL, BIAS, 0, 1, 0, 0, 0},
        {"tf32, batches", 0, 1, F32, F32, CUBLAS_COMPUTE_32F_FAST_TF32, NONE, 0, BATCH, 0, 0, 0},
        {"fp16 inside", 0, 1, F32, F32, CUBLAS_COMPUTE_32F_FAST_16F, NONE, 0, 1, 0, 0, 0},
        {"bf16", 1, 1, BF16, BF16, FULL, NONE, 0, 1, 0, 0, 0},
        {"bf16, bias", 1, 0, BF16, BF16, FULL, BIAS, 0, 1, 0, 0, 0},
        {"bf16 to f32, accumulating, bias's gradient of A", 0, 1, BF16, F32, FULL, BGRADA, 1, 1, 0, 0, 0},
        {"bf16 to f32, bias's gradient of B", 0, 1, BF16, F32, FULL, BGRADB, 0, 1, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const gemm_case *q = &cases[i];
        print_message("    %s\n", q->name);
        gemm g = gemm_open(q);
        ok(g.status);
        ok(gemm_run(&g, q->beta, 0, 0, g.found.workspaceSize));
        void *out = malloc(VALUES * bytes_of(q->out)), *bias = malloc(VALUES * bytes_of(q->out));
        ok(cudaMemcpy(out, g.p[D], VALUES * bytes_of(q->out), cudaMemcpyDeviceToHost));
        ok(cudaMemcpy(bias, g.bias, VALUES * bytes_of(q->out), cudaMemcpyDeviceToHost));
        double slack = q->out == BF16 ? 0.004 : 1e-6;
        for (int b = 0; b < q->batch; b++)
            for (size_t m = 0; m < M; m++)
                for (size_t n = 0; n < N; n++) {
                    double want = 0;
                    for (size_t k = 0; k < K; k++)
                        want += element(&g, A, q->ta, b, m, k) * element(&g, B, q->tb, b, k, n);
                    if (q->beta != 0) want += q->beta * element(&g, C, 0, b, m, n);
                    if (q->epilogue == BIAS) want += g.host_bias[m];
                    double got = at(out, q->out, b * LD * LD + n * LD + m);
                    if (fabs(got - want) > slack * (1 + fabs(want)))
                        fail_msg("(%zu, %zu): %g, not %g", m, n, got, want);
                }
        for (size_t m = 0; m < M && q->epilogue == BGRADA; m++) {
            double want = 0;
            for (size_t k = 0; k < K; k++) want += element(&g, A, q->ta, 0, m, k);
            assert_float_equal(at(bias, q->out, m), want, 1e-6);
        }
        for (size_t n = 0; n < N && q->epilogue == BGRADB; n++) {
            double want = 0;
            for (size_t k = 0; k < K; k++) want += element(&g, B, q->tb, 0, k, n);
            assert_float_equal(at(bias, q->out, n), want, 1e-6);
        }
        assert_float_equal(at(out, q->out, M), g.host[D][M], 0); /* between columns nothing is written */
        free(out);
        free(bias);
        gemm_close(&g);
    }
}

static void refusals(void **state)
{
    (void)state;
    const cublasStatus_t no = CUBLAS_STATUS_NOT_SUPPORTED, bad = CUBLAS_STATUS_INVALID_VALUE;
    const gemm_case cases[] = {
        {"f32 to bf16", 0, 0, F32, BF16, FULL, NONE, 0, 1, no, 0, 0},
        {"bf16 to f16", 0, 0, BF16, F16, FULL, NONE, 0, 1, no, 0, 0},
        {"bf16 by TF32", 0, 0, BF16, BF16, CUBLAS_COMPUTE_32F_FAST_TF32, NONE, 0, 1, no, 0, 0},
        {"GELU", 0, 0, BF16, BF16, FULL, CUBLASLT_EPILOGUE_GELU, 0, 1, no, 0, 0},
        {"bias's gradient of a turned A", 1, 1, BF16, F32, FULL, BGRADA, 0, 1, no, 0, 0},
        {"bias's gradient of a B not turned", 0, 0, BF16, F32, FULL, BGRADB, 0, 1, no, 0, 0},
        {"bias with batches", 0, 0, F32, F32, FULL, BIAS, 0, BATCH, no, 0, 0},
        {"rows differ", 0, 0, F32, F32, FULL, NONE, 0, 1, bad, 1, 0},
        {"columns differ", 0, 0, F32, F32, FULL, NONE, 0, 1, bad, 0, 1},
        {"no columns", 0, 0, F32, F32, FULL, NONE, 0, 1, bad, 0, -N},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        print_message("    %s\n", cases[i].name);
        gemm g = gemm_open(&cases[i]);
        assert_int_equal(g.status, cases[i].heuristic);
        gemm_close(&g);
    }
}

static void misuse(void **state)
{
    (void)state;
    static const gemm_case plain = {"", 0, 0, BF16, BF16, FULL, NONE, 0, 1, 0, 0, 0};
    const cublasStatus_t bad = CUBLAS_STATUS_INVALID_VALUE;
    gemm g = gemm_open(&plain);
    ok(g.status);
    g.found.algo.data[1] ^= 1;
    assert_int_equal(gemm_run(&g, 0, 0, 0, 1 << 20), bad); /* not the algorithm of this shape */
    g.found.algo.data[1] ^= 1;
    assert_int_equal(gemm_run(&g, 0, 16, 0, 1 << 20), bad); /* A aligned to 16 bytes, 256 promised */
    int32_t turned = CUBLAS_OP_T;
    assert_int_equal(cublasLtMatmulDescSetAttribute(g.op, CUBLASLT_MATMUL_DESC_TRANSA, &turned, 8), bad);
    gemm_close(&g);
    static const gemm_case wide = {"", 0, 1, F32, F32, FULL, NONE, 0, 1, 0, 0, 0};
    g = gemm_open(&wide);
    const uint64_t wider = LD;
    for (int x = A; x < MATRICES; x++)
        ok(cublasLtMatrixLayoutSetAttribute(g.layout[x], CUBLASLT_MATRIX_LAYOUT_ROWS, &wider, sizeof wider));
    for (int x = C; x < MATRICES; x++)
        ok(cublasLtMatrixLayoutSetAttribute(g.layout[x], CUBLASLT_MATRIX_LAYOUT_COLS, &wider, sizeof wider));
    int found;
    ok(cublasLtMatmulAlgoGetHeuristic(g.handle, g.op, g.layout[A], g.layout[B], g.layout[C], g.layout[D], g.preference,
                                      1, &g.found, &found));
    assert_true(g.found.workspaceSize > 0);
    assert_int_equal(gemm_run(&g, 0, 0, 0, g.found.workspaceSize - 1), bad);
    assert_int_equal(gemm_run(&g, 0, 0, 16, g.found.workspaceSize), bad);
    ok(gemm_run(&g, 0, 0, 0, g.found.workspaceSize));
    gemm_close(&g);
}

static void older(void **state)
{
    (void)state;
    static const gemm_case cases[] = {
        {"bf16", 0, 0, BF16, BF16, FULL, NONE, 0, 1, CUBLAS_STATUS_NOT_SUPPORTED, 0, 0},
        {"TF32", 0, 0, F32, F32, CUBLAS_COMPUTE_32F_FAST_TF32, NONE, 0, 1, CUBLAS_STATUS_NOT_SUPPORTED, 0, 0},
        {"fp16", 0, 0, F32, F32, CUBLAS_COMPUTE_32F_FAST_16F, NONE, 0, 1, 0, 0, 0},
    };
    setenv("CUDA_EMU_SM", "75", 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        print_message("    %s\n", cases[i].name);
        gemm g = gemm_open(&cases[i]);
        assert_int_equal(g.status, cases[i].heuristic);
        gemm_close(&g);
    }
    unsetenv("CUDA_EMU_SM");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sums), cmocka_unit_test(refusals), cmocka_unit_test(misuse),
                                       cmocka_unit_test(older)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
