/* op_cuda_linear.c: linear layers through cuBLASLt. Our matrices are row-major, cuBLASLt's column-major, so that each
 * of ours is its transpose to it: y = x W^T is asked for as y^T = W x^T.
 *
 * Arithmetic. bf16: operands and results bf16, sums fp32. fp32: exact fp32, but where the user left the type to us on a
 * GPU without bf16 (sm_75): there forward products take fp16 copies of their operands on tensor cores, with fp32 sums.
 * Gradients never do: fp16 has no room below 6e-8, and most of theirs would be zero.
 *
 * What follows a product. cuBLASLt adds a bias of the result's type alone, so in bf16 linear_fwd gives it a rounded
 * copy of the bias: O values, against 4 N O bytes that a kernel of its own would read and write again. Its GELU is the
 * tanh form, and our models use erf: products that end in GELU or its slope are linear.cu's where they fit. Else GELU,
 * and always residual and LayerScale, are a kernel after the product, which adds the exact bias on the way. Gradients
 * of biases are op_cuda_column_sums: it reads dy's 2 N O bytes once more, but adds to what is there, gathers APLA's
 * rows in the same pass, and its order of summing is ours; BGRADB does none of it.
 *
 * Everything about a shape (descriptors, the algorithm that cuBLASLt's heuristic likes best, that it has none for the
 * bias) is made the first time and kept. An algorithm splits sums in an order of its own, the same in every call. */
#include <stdlib.h>
#include <string.h>

#include "model/cuda/op_cuda.h"

/* A step's masked patches are another number each time, a few hundred numbers in all, of some twenty shapes each. */
enum { ENTRIES = 16384, ENTRIES_MOST = 12288, ALIGN_MOST = 16 /* bytes that a thread loads at once */ };

typedef enum { FORWARD, GRADIENT } product_kind;

/* D (m,n) = op(a) op(b), + bias or + D: column-major. */
typedef struct {
    size_t m, n, k, lda, ldb, ldd;
    bool ta, tb, d_f32, accumulate, with_bias;
    product_kind kind;
    size_t align[3]; /* of a, b, d: bytes */
} product;

typedef struct {
    product p;    /* m 0: empty */
    bool refused; /* there is no algorithm for it with its bias */
    cublasLtMatmulDesc_t what;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algo;
} entry;

struct op_cuda_blas {
    cublasLtHandle_t handle;
    cublasLtMatmulPreference_t preference;
    dv *workspace; /* OP_CUDA_BLAS_BYTES */
    size_t n;
    entry entries[ENTRIES];
};

static void drop_entry(entry *t)
{
    if (t->what) cublasLtMatmulDescDestroy(t->what);
    cublasLtMatrixLayout_t all[] = {t->a, t->b, t->d};
    for (int i = 0; i < 3; i++)
        if (all[i]) cublasLtMatrixLayoutDestroy(all[i]);
    *t = (entry){0};
}

static void drop_entries(op_cuda_blas *s)
{
    for (size_t i = 0; i < ENTRIES; i++) drop_entry(&s->entries[i]);
    s->n = 0;
}

err_code op_cuda_blas_open(device *d, err *e)
{
    op_cuda *o = op_cuda_of(d);
    size_t most = OP_CUDA_BLAS_BYTES;
    op_cuda_blas *s = o->blas = calloc(1, sizeof *s);
    if (!s) FAIL(e, NOMEM, "no memory for the compute device");
    if (cublasLtCreate(&s->handle) || cublasLtMatmulPreferenceCreate(&s->preference) ||
        cublasLtMatmulPreferenceSetAttribute(s->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most,
                                             sizeof most)) {
        cudaError_t rc = cudaGetLastError();
        if (rc) return op_cuda_refused(d, rc, "starting cuBLASLt", e);
        FAIL(e, INTERNAL, "cuBLASLt cannot be started");
    }
    return op_cuda_alloc_bare(d, OP_CUDA_BLAS_BYTES, &s->workspace, e);
}

void op_cuda_blas_close(device *d)
{
    op_cuda_blas *s = op_cuda_of(d)->blas;
    if (!s) return;
    drop_entries(s);
    if (s->preference) cublasLtMatmulPreferenceDestroy(s->preference);
    if (s->handle) cublasLtDestroy(s->handle);
    op_cuda_free(d, s->workspace);
    free(s);
    op_cuda_of(d)->blas = NULL;
}

/* What a pointer is aligned to, up to what matters. */
static size_t alignment(const void *p)
{
    size_t lowest = (uintptr_t)p & -(uintptr_t)p;
    return lowest && lowest < ALIGN_MOST ? lowest : ALIGN_MOST;
}

static cublasComputeType_t arithmetic(const device *d, product_kind kind)
{
    return op_cuda_of(d)->half_forward && kind == FORWARD ? CUBLAS_COMPUTE_32F_FAST_16F : CUBLAS_COMPUTE_32F;
}

static cublasStatus_t set(cublasLtMatmulDesc_t what, cublasLtMatmulDescAttributes_t name, const void *v, size_t bytes)
{
    return cublasLtMatmulDescSetAttribute(what, name, v, bytes);
}

static cublasStatus_t describe(const device *d, entry *t, const product *p)
{
    cudaDataType_t in = d->ct == COMPUTE_BF16 ? CUDA_R_16BF : CUDA_R_32F, out = p->d_f32 ? CUDA_R_32F : in;
    cublasOperation_t ta = p->ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb = p->tb ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtEpilogue_t after = p->with_bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    int32_t bias = out;
    cublasStatus_t rc = cublasLtMatmulDescCreate(&t->what, arithmetic(d, p->kind), CUDA_R_32F);
    if (!rc) rc = set(t->what, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta);
    if (!rc) rc = set(t->what, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb);
    if (!rc) rc = set(t->what, CUBLASLT_MATMUL_DESC_EPILOGUE, &after, sizeof after);
    if (!rc && p->with_bias) rc = set(t->what, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias, sizeof bias);
    if (!rc) rc = cublasLtMatrixLayoutCreate(&t->a, in, p->ta ? p->k : p->m, p->ta ? p->m : p->k, (int64_t)p->lda);
    if (!rc) rc = cublasLtMatrixLayoutCreate(&t->b, in, p->tb ? p->n : p->k, p->tb ? p->k : p->n, (int64_t)p->ldb);
    if (!rc) rc = cublasLtMatrixLayoutCreate(&t->d, out, p->m, p->n, (int64_t)p->ldd);
    return rc;
}

/* The first algorithm that the heuristic has for operands of this alignment. bias: an address like it. */
static cublasStatus_t choose(op_cuda_blas *s, entry *t, const product *p, const void *bias)
{
    static const cublasLtMatmulPreferenceAttributes_t name[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    cublasLtMatmulHeuristicResult_t found;
    cublasStatus_t rc = CUBLAS_STATUS_SUCCESS;
    int n = 0;
    for (int i = 0; i < 4 && !rc; i++) {
        uint32_t align = (uint32_t)p->align[i < 3 ? i : 2];
        rc = cublasLtMatmulPreferenceSetAttribute(s->preference, name[i], &align, sizeof align);
    }
    if (!rc && p->with_bias) rc = set(t->what, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
    if (!rc)
        rc = cublasLtMatmulAlgoGetHeuristic(s->handle, t->what, t->a, t->b, t->d, t->d, s->preference, 1, &found, &n);
    if (!rc && !n) rc = CUBLAS_STATUS_NOT_SUPPORTED;
    if (!rc) rc = found.state;
    if (!rc) t->algo = found.algo;
    return rc;
}

static entry *slot(op_cuda_blas *s, const product *p)
{
    uint64_t h = 1469598103934665603u;
    const unsigned char *b = (const unsigned char *)p;
    for (size_t i = 0; i < sizeof *p; i++) h = (h ^ b[i]) * 1099511628211u;
    size_t at = h % ENTRIES;
    while (s->entries[at].p.m && memcmp(&s->entries[at].p, p, sizeof *p)) at = (at + 1) % ENTRIES;
    return &s->entries[at];
}

/* All about a shape that is new; that its bias is refused is no error. */
static cublasStatus_t make_entry(device *d, entry *t, const product *p, const void *bias)
{
    op_cuda_blas *s = op_cuda_of(d)->blas;
    cublasStatus_t rc = describe(d, t, p);
    if (!rc) rc = choose(s, t, p, bias);
    if (rc) drop_entry(t);
    t->refused = rc == CUBLAS_STATUS_NOT_SUPPORTED && p->with_bias;
    if (rc && !t->refused) return rc;
    t->p = *p;
    s->n++;
    return CUBLAS_STATUS_SUCCESS;
}

/* Its own codes do not tell what the runtime knows: a GPU that is of no more use. */
static void failed(device *d, const char *what)
{
    op_cuda_check(d, cudaGetLastError(), "a matrix product");
    op_cuda_fail(d, ERR_INTERNAL, what);
}

/* p: zeroed before it was filled, for its padding counts. false: there is no algorithm for it with its bias; with
 * anything else amiss the device has failed. */
static bool run(device *d, product *p, const void *a, const void *b, const void *bias, void *out)
{
    op_cuda_blas *s = op_cuda_of(d)->blas;
    const float one = 1, add = p->accumulate;
    p->align[0] = alignment(a);
    p->align[1] = alignment(b);
    p->align[2] = alignment(out);
    entry *t = slot(s, p);
    if (!t->p.m && s->n >= ENTRIES_MOST) { /* shapes vary without end: start again */
        drop_entries(s);
        t = slot(s, p);
    }
    cublasStatus_t rc = CUBLAS_STATUS_SUCCESS;
    if (!t->p.m && make_entry(d, t, p, bias)) {
        failed(d, "cuBLASLt has no algorithm for a matrix product");
        return true;
    }
    if (t->refused) return false;
    if (p->with_bias) rc = set(t->what, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
    if (!rc)
        rc = cublasLtMatmul(s->handle, t->what, &one, a, t->a, b, t->b, &add, out, t->d, out, t->d, &t->algo,
                            s->workspace, OP_CUDA_BLAS_BYTES, op_cuda_of(d)->stream);
    if (rc) failed(d, "cuBLASLt failed in a matrix product");
    return true;
}

static const dv *weight(const linear_w *w)
{
    return w->same ? w->same->w : w->w;
}

/* y (N,O) = x (N,I) W^T, + bias (O) of the compute type unless NULL: false where cuBLASLt does not add that one. */
static bool forward(device *d, dv *y, const dv *x, const linear_w *w, const dv *bias, size_t N)
{
    product p;
    memset(&p, 0, sizeof p);
    p.m = p.ldd = w->out;
    p.n = N;
    p.k = p.lda = p.ldb = w->in;
    p.ta = true;
    p.with_bias = bias;
    p.kind = FORWARD;
    return run(d, &p, weight(w), x, bias, y);
}

void op_cuda_linear_fwd(device *d, dv *y, const dv *x, linear_w *w, size_t N)
{
    if (!N) return;
    const dv *bias = w->bias;
    if (bias && d->ct == COMPUTE_BF16) {
        dv *rounded = op_cuda_scratch(d, w->out * d->ct_bytes);
        if (!rounded) return;
        op_cuda_to_ct(d, rounded, bias, w->out);
        bias = rounded;
    }
    if (forward(d, y, x, w, bias, N)) return;
    forward(d, y, x, w, NULL, N);
    op_cuda_add_bias(d, y, w->bias, N, w->out);
}

static bool ends_in_gelu(device *d, dv *y, dv *pre, dv *slope, const dv *x, const linear_w *w, size_t N)
{
    const void *all[] = {y, pre, slope, x, weight(w), w->bias};
    if (!op_cuda_product_fits(d, w->out, w->in, all, 6)) return false;
    op_cuda_product_gelu(d, y, pre, slope, x, weight(w), w->bias, N, w->out, w->in);
    return true;
}

void op_cuda_linear_gelu_fwd(device *d, dv *y, dv *pre, const dv *x, linear_w *w, size_t N)
{
    if (!N || ends_in_gelu(d, y, pre, NULL, x, w, N)) return;
    dv *sums = pre ? pre : y;
    forward(d, sums, x, w, NULL, N);
    op_cuda_gelu_bias_fwd(d, y, sums, w->bias, pre, N, w->out);
}

void op_cuda_linear_gelu_slope_fwd(device *d, dv *y, dv *slope, const dv *x, linear_w *w, size_t N)
{
    if (!N || ends_in_gelu(d, y, NULL, slope, x, w, N)) return;
    forward(d, y, x, w, NULL, N);
    op_cuda_gelu_slope_fwd(d, y, slope, w->bias, N, w->out);
}

void op_cuda_linear_residual_fwd(device *d, dv *out, const dv *x, const dv *in, linear_w *w, const dv *ls, dv *branch,
                                 dv *rest, const op_norm *then, size_t N)
{
    if (!N) return;
    forward(d, branch, in, w, NULL, N);
    op_cuda_residual_bias_fwd(d, out, x, branch, w->bias, ls, rest, then, N, w->out);
}

void op_cuda_linear_dx(device *d, dv *dx, const dv *dy, linear_w *w, size_t N)
{
    product p;
    if (!N) return;
    memset(&p, 0, sizeof p);
    p.m = p.lda = p.ldd = w->in;
    p.n = N;
    p.k = p.ldb = w->out;
    p.kind = GRADIENT;
    run(d, &p, weight(w), dy, NULL, dx);
}

void op_cuda_linear_dx_slope(device *d, dv *dx, const dv *dy, linear_w *w, const dv *slope, size_t N)
{
    const void *all[] = {dx, dy, weight(w), slope};
    if (!N) return;
    if (op_cuda_product_fits(d, w->in, w->out, all, 4)) {
        op_cuda_product_slope(d, dx, dy, weight(w), slope, N, w->in, w->out);
        return;
    }
    op_cuda_linear_dx(d, dx, dy, w, N);
    op_cuda_gelu_slope_bwd(d, dx, dx, slope, N, w->in);
}

void op_cuda_linear_dw(device *d, dv *dw, dv *db, const dv *dy, const dv *x, const dv *rows, size_t R, size_t N,
                       size_t O, size_t I)
{
    product p;
    dv *columns = NULL;
    if (!N || !R) return;
    if (dw && rows) { /* the chosen columns of dy, side by side: (N,R) */
        columns = op_cuda_work(d, N * R * d->ct_bytes);
        if (!columns) return;
    }
    if (db || columns) op_cuda_column_sums(d, db, columns, dy, rows, R, N, O);
    if (!dw) return;
    memset(&p, 0, sizeof p);
    p.m = p.lda = p.ldd = I;
    p.n = R;
    p.k = N;
    p.ldb = columns ? R : O;
    p.tb = p.d_f32 = p.accumulate = true;
    p.kind = GRADIENT;
    run(d, &p, x, columns ? columns : dy, NULL, dw);
}

void op_cuda_linear_release(device *d, linear_w *w)
{
    (void)d;
    (void)w; /* weights are read as they are stored */
}
