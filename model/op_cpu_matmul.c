/* op_cpu_matmul.c: matrix work, and who does it: tiles of bf16 where the processor has them (op_cpu_linear_amx.c), else
 * whole vectors (op_cpu_fma.h), and oneDNN 2.6 through its C API, which no other file includes: for processors that
 * multiply bf16 without tiles, shapes that suit no tile, and processors without vectors. Every thread has its
 * primitives, made once per shape and kept, with their memory objects, whose handles are set at each call: those for
 * all threads (the first thread's), and those for one thread, inside a tile. Linear layers use oneDNN's own blocked
 * weights: made from the first shape that asks and cached in linear_w until the weight's version changes. */
#include <dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/op_cpu_fma.h"

enum { KIND_FWD, KIND_FWD_GELU, KIND_DX, KIND_DW, KIND_GEMM, ENTRIES_MAX = 4096 };

typedef struct {
    int kind;
    bool bias, bf16, accumulate, one_thread;
    size_t m, n, k;
    op_cpu_gemm g; /* zeroed unless KIND_GEMM */
} key;

typedef struct {
    key k;
    dnnl_primitive_t primitive;
    dnnl_memory_desc_t weights; /* as the primitive wants them */
    dnnl_memory_t src, wei, bias, dst;
} entry;

/* A weight in oneDNN's layout. */
typedef struct {
    dnnl_memory_desc_t desc;
    void *data;
    size_t bytes;
} packed;

struct matmul_cache {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    entry *entries;
    size_t n;
};

bool op_cpu_matmul_has_bf16(void)
{
    int isa = (int)dnnl_get_effective_cpu_isa(), bf16 = dnnl_cpu_isa_avx512_core_bf16;
    return (isa & bf16) == bf16;
}

bool op_cpu_matmul_has_amx(void) /* oneDNN has asked the kernel for the tiles, or does not say that it has AMX */
{
    int isa = (int)dnnl_get_effective_cpu_isa(), amx = dnnl_cpu_isa_avx512_core_amx;
    return (isa & amx) == amx;
}

bool op_cpu_matmul_has_avx512(void)
{
    int isa = (int)dnnl_get_effective_cpu_isa(), avx512 = dnnl_cpu_isa_avx512_core;
    return (isa & avx512) == avx512;
}

bool op_cpu_matmul_has_avx2(void)
{
    int isa = (int)dnnl_get_effective_cpu_isa(), avx2 = dnnl_cpu_isa_avx2;
    return (isa & avx2) == avx2;
}

matmul_cache *op_cpu_matmul_open(void)
{
    matmul_cache *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    c->entries = calloc(ENTRIES_MAX, sizeof *c->entries);
    if (!c->entries || dnnl_engine_create(&c->engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&c->stream, c->engine, dnnl_stream_default_flags) != dnnl_success) {
        op_cpu_matmul_close(c);
        return NULL;
    }
    return c;
}

static void drop_entry(entry *t)
{
    if (!t->primitive) return;
    dnnl_primitive_destroy(t->primitive);
    dnnl_memory_t all[] = {t->src, t->wei, t->bias, t->dst};
    for (int k = 0; k < 4; k++)
        if (all[k]) dnnl_memory_destroy(all[k]);
    *t = (entry){0};
}

static void drop_entries(matmul_cache *c)
{
    for (size_t i = 0; i < ENTRIES_MAX; i++) drop_entry(&c->entries[i]);
    c->n = 0;
}

void op_cpu_matmul_close(matmul_cache *c)
{
    if (!c) return;
    if (c->entries) drop_entries(c);
    if (c->stream) dnnl_stream_destroy(c->stream);
    if (c->engine) dnnl_engine_destroy(c->engine);
    free(c->entries);
    free(c);
}

static matmul_cache *cache(device *d)
{
    return ((op_cpu *)d->impl)->matmul[op_cpu_thread()];
}

static void fail(device *d, const char *what, dnnl_status_t s)
{
    char text[96];
    snprintf(text, sizeof text, "oneDNN: %s failed (status %d)", what, (int)s);
    op_cpu_fail(d, s == dnnl_out_of_memory ? ERR_NOMEM : ERR_INTERNAL, text);
}

static size_t slot(const matmul_cache *c, const key *k)
{
    uint64_t h = 1469598103934665603u;
    const unsigned char *b = (const unsigned char *)k;
    for (size_t i = 0; i < sizeof *k; i++) h = (h ^ b[i]) * 1099511628211u;
    size_t at = h % ENTRIES_MAX;
    while (c->entries[at].primitive && memcmp(&c->entries[at].k, k, sizeof *k)) at = (at + 1) % ENTRIES_MAX;
    return at;
}

static void describe(dnnl_memory_desc_t *m, const size_t *dims, const size_t *strides, int n, dnnl_data_type_t t)
{
    dnnl_dims_t d, s;
    for (int i = 0; i < n; i++) {
        d[i] = (dnnl_dim_t)dims[i];
        s[i] = (dnnl_dim_t)strides[i];
    }
    dnnl_memory_desc_init_by_strides(m, n, d, t, s);
}

/* oneDNN divides a product among the threads that there are when its description and its primitive are made, and looks
 * up primitives it has by that number: inside a tile, 1. Returns what to set back. */
static int one_thread(bool yes)
{
    int threads = omp_get_max_threads();
    if (yes) omp_set_num_threads(1);
    return threads;
}

/* Makes the primitive of an empty slot. */
static entry *make(device *d, const key *k, const dnnl_memory_desc_t *src, const dnnl_memory_desc_t *wei,
                   const dnnl_memory_desc_t *bias, const dnnl_memory_desc_t *dst)
{
    matmul_cache *c = cache(d);
    entry *t = &c->entries[slot(c, k)];
    dnnl_matmul_desc_t op;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t post = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t s = dnnl_matmul_desc_init(&op, src, wei, bias, dst);
    if (s == dnnl_success) s = dnnl_primitive_attr_create(&attr);
    if (s == dnnl_success) s = dnnl_post_ops_create(&post);
    if (s == dnnl_success && k->accumulate) s = dnnl_post_ops_append_sum(post, 1.0f);
    if (s == dnnl_success && k->kind == KIND_FWD_GELU)
        s = dnnl_post_ops_append_eltwise(post, 1.0f, dnnl_eltwise_gelu_erf, 0, 0);
    if (s == dnnl_success) s = dnnl_primitive_attr_set_post_ops(attr, post);
    if (s == dnnl_success) s = dnnl_primitive_desc_create(&pd, &op, attr, c->engine, NULL);
    entry made = {.k = *k};
    if (s == dnnl_success) {
        made.weights = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
        s = dnnl_primitive_create(&made.primitive, pd);
    }
    if (s == dnnl_success) s = dnnl_memory_create(&made.src, src, c->engine, DNNL_MEMORY_NONE);
    if (s == dnnl_success) s = dnnl_memory_create(&made.wei, &made.weights, c->engine, DNNL_MEMORY_NONE);
    if (s == dnnl_success && bias) s = dnnl_memory_create(&made.bias, bias, c->engine, DNNL_MEMORY_NONE);
    if (s == dnnl_success) s = dnnl_memory_create(&made.dst, dst, c->engine, DNNL_MEMORY_NONE);
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (post) dnnl_post_ops_destroy(post);
    if (attr) dnnl_primitive_attr_destroy(attr);
    if (s != dnnl_success) {
        fail(d, "making a matrix product", s);
        if (made.primitive) dnnl_primitive_destroy(made.primitive);
        dnnl_memory_t all[] = {made.src, made.wei, made.bias, made.dst};
        for (int i = 0; i < 4; i++)
            if (all[i]) dnnl_memory_destroy(all[i]);
        return NULL;
    }
    *t = made;
    c->n++;
    return t;
}

static entry *prepare(device *d, const key *k, const dnnl_memory_desc_t *src, const dnnl_memory_desc_t *wei,
                      const dnnl_memory_desc_t *bias, const dnnl_memory_desc_t *dst)
{
    matmul_cache *c = cache(d);
    entry *t = &c->entries[slot(c, k)];
    if (t->primitive) return t;
    if (c->n > ENTRIES_MAX / 2) drop_entries(c); /* shapes vary without end: start again */
    int threads = one_thread(k->one_thread);
    t = make(d, k, src, wei, bias, dst);
    omp_set_num_threads(threads);
    return t;
}

static void run(device *d, entry *t, const void *src, const void *wei, const void *bias, void *dst)
{
    dnnl_memory_set_data_handle(t->src, (void *)(uintptr_t)src);
    dnnl_memory_set_data_handle(t->wei, (void *)(uintptr_t)wei);
    dnnl_memory_set_data_handle(t->dst, dst);
    dnnl_exec_arg_t args[4] = {{DNNL_ARG_SRC, t->src}, {DNNL_ARG_WEIGHTS, t->wei}, {DNNL_ARG_DST, t->dst}};
    int n = 3;
    if (t->bias) {
        dnnl_memory_set_data_handle(t->bias, (void *)(uintptr_t)bias);
        args[n++] = (dnnl_exec_arg_t){DNNL_ARG_BIAS, t->bias};
    }
    dnnl_status_t s = dnnl_primitive_execute(t->primitive, cache(d)->stream, n, args);
    if (s != dnnl_success) fail(d, "a matrix product", s);
}

static dnnl_data_type_t ct_type(const device *d)
{
    return d->ct == COMPUTE_BF16 ? dnnl_bf16 : dnnl_f32;
}

static void release(device *d, packed *p)
{
    if (!p) return;
    op_cpu_account(d, 0, p->bytes);
    d->bytes_packed -= p->bytes;
    free(p->data);
    free(p);
}

/* The layout of a weight (in, out) that oneDNN likes best for many rows on one thread: a function of the shape alone,
 * so that every primitive of that shape can read every weight of that shape. Returns its bytes, rounded up; 0: failed.
 */
static size_t layout(device *d, size_t in, size_t out, dnnl_memory_desc_t *desc)
{
    enum { ROWS = 1024 };
    dnnl_data_type_t ct = ct_type(d);
    dnnl_memory_desc_t src, any, dst;
    dnnl_matmul_desc_t op;
    dnnl_primitive_desc_t pd = NULL;
    describe(&src, (size_t[]){ROWS, in}, (size_t[]){in, 1}, 2, ct);
    describe(&dst, (size_t[]){ROWS, out}, (size_t[]){out, 1}, 2, ct);
    dnnl_memory_desc_init_by_tag(&any, 2, (dnnl_dims_t){(dnnl_dim_t)in, (dnnl_dim_t)out}, ct, dnnl_format_tag_any);
    dnnl_status_t s = dnnl_matmul_desc_init(&op, &src, &any, NULL, &dst);
    int threads = one_thread(true);
    if (s == dnnl_success) s = dnnl_primitive_desc_create(&pd, &op, NULL, cache(d)->engine, NULL);
    omp_set_num_threads(threads);
    if (s != dnnl_success) {
        fail(d, "packing a weight", s);
        return 0;
    }
    *desc = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    dnnl_primitive_desc_destroy(pd);
    return (dnnl_memory_desc_get_size(desc) + 63) & ~(size_t)63;
}

/* The same for whoever multiplies by it; desc is oneDNN's alone. */
static size_t packed_bytes(device *d, size_t in, size_t out, dnnl_memory_desc_t *desc)
{
    const op_cpu_fma *v = op_cpu_fma_of(d);
    if (op_cpu_linear_amx_fits(d, in, out)) return in * out * d->ct_bytes;
    return v ? op_cpu_fma_packed_bytes(v, d->ct == COMPUTE_BF16, in, out) : layout(d, in, out, desc);
}

size_t op_cpu_linear_packed_bytes(device *d, size_t in, size_t out)
{
    dnnl_memory_desc_t desc;
    return packed_bytes(d, in, out, &desc);
}

/* Room for a weight (in, out). */
static packed *choose(device *d, size_t in, size_t out)
{
    dnnl_memory_desc_t desc = {0};
    size_t bytes = packed_bytes(d, in, out, &desc);
    packed *p = bytes ? calloc(1, sizeof *p) : NULL;
    if (p) p->data = aligned_alloc(64, bytes);
    if (!p || !p->data) {
        if (bytes) fail(d, "packing a weight", dnnl_out_of_memory);
        free(p);
        return NULL;
    }
    p->desc = desc;
    p->bytes = bytes;
    op_cpu_account(d, bytes, 0);
    d->bytes_packed += bytes; /* packing is one at a time */
    return p;
}

/* The weight in oneDNN's layout; plain (in, out): w as it is stored, seen in this direction. */
static void reorder_to(device *d, const packed *p, const linear_w *w, const dnnl_memory_desc_t *plain)
{
    matmul_cache *c = cache(d);
    dnnl_memory_t from = NULL, to = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t reorder = NULL;
    int threads = one_thread(op_cpu_in_tile());
    dnnl_status_t s = dnnl_memory_create(&from, plain, c->engine, (void *)w->w);
    if (s == dnnl_success) s = dnnl_memory_create(&to, &p->desc, c->engine, p->data);
    if (s == dnnl_success) s = dnnl_reorder_primitive_desc_create(&pd, plain, c->engine, &p->desc, c->engine, NULL);
    if (s == dnnl_success) s = dnnl_primitive_create(&reorder, pd);
    dnnl_exec_arg_t args[2] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
    if (s == dnnl_success) s = dnnl_primitive_execute(reorder, c->stream, 2, args);
    omp_set_num_threads(threads);
    if (reorder) dnnl_primitive_destroy(reorder);
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (from) dnnl_memory_destroy(from);
    if (to) dnnl_memory_destroy(to);
    if (s != dnnl_success) fail(d, "packing a weight", s);
}

static const packed *repack(device *d, linear_w *w, int direction, const dnnl_memory_desc_t *plain)
{
    packed *p = w->packed[direction];
    size_t in = (size_t)plain->dims[0], out = (size_t)plain->dims[1];
    if (!p) p = choose(d, in, out);
    if (!p) return NULL;
    const op_cpu_fma *v = op_cpu_fma_of(d);
    if (op_cpu_linear_amx_fits(d, in, out))
        op_cpu_linear_amx_pack(p->data, w->w, w->out, w->in, direction);
    else if (v)
        v->pack(d->ct == COMPUTE_BF16, p->data, w->w, w->out, w->in, direction);
    else
        reorder_to(d, p, w, plain);
    w->packed[direction] = p;
    __atomic_store_n(&w->packed_version[direction], w->version, __ATOMIC_RELEASE); /* the last: p is whole now */
    return p;
}

static const packed *packed_now(const linear_w *w, int direction)
{
    uint32_t version = __atomic_load_n(&w->packed_version[direction], __ATOMIC_ACQUIRE);
    return version == w->version ? w->packed[direction] : NULL;
}

/* The packed weight for a direction: made once, by whichever thread comes first, and again when the version has moved
 * on. */
static const packed *pack(device *d, linear_w *w, int direction, const dnnl_memory_desc_t *plain)
{
    const packed *p = packed_now(w, direction);
    if (p) return p;
#pragma omp critical(op_cpu_pack)
    {
        p = packed_now(w, direction);
        if (!p) p = repack(d, w, direction, plain);
    }
    return p;
}

void op_cpu_linear_release(device *d, linear_w *w)
{
    for (int i = 0; i < 2; i++) {
        release(d, w->packed[i]);
        w->packed[i] = NULL;
        w->packed_version[i] = 0;
    }
}

/* The weight (in, out) as it is stored, seen in one direction: forward it is read as its transpose. */
static void describe_weight(dnnl_memory_desc_t *plain, const linear_w *w, bool back, dnnl_data_type_t ct)
{
    if (back)
        describe(plain, (size_t[]){w->out, w->in}, (size_t[]){w->in, 1}, 2, ct);
    else
        describe(plain, (size_t[]){w->in, w->out}, (size_t[]){1, w->in}, 2, ct);
}

/* y (N, n_out) = x (N, n_in) times the weight in one direction, by oneDNN. */
static void linear(device *d, dv *y, const dv *x, linear_w *w, size_t N, int kind)
{
    bool back = kind == KIND_DX;
    size_t in = back ? w->out : w->in, out = back ? w->in : w->out;
    const dv *bias = back ? NULL : w->bias;
    dnnl_data_type_t ct = ct_type(d);
    key k;
    memset(&k, 0, sizeof k);
    k.kind = kind;
    k.one_thread = op_cpu_in_tile();
    k.bias = bias != NULL;
    k.bf16 = ct == dnnl_bf16;
    k.m = N;
    k.n = out;
    k.k = in;
    dnnl_memory_desc_t src, dst, plain, b;
    describe(&src, (size_t[]){N, in}, (size_t[]){in, 1}, 2, ct);
    describe(&dst, (size_t[]){N, out}, (size_t[]){out, 1}, 2, ct);
    describe(&b, (size_t[]){1, out}, (size_t[]){out, 1}, 2, dnnl_f32);
    describe_weight(&plain, w, back, ct);
    const packed *p = pack(d, w->same ? w->same : w, back, &plain);
    entry *t = p ? prepare(d, &k, &src, &p->desc, bias ? &b : NULL, &dst) : NULL;
    if (t) run(d, t, x, p->data, bias, y);
}

/* The same by our own kernels, where there are any for it: then true. y, and what follows the product, are in p. */
static bool by_ours(device *d, op_cpu_linear_call *p, const dv *x, linear_w *w, size_t N, bool back)
{
    const op_cpu_fma *v = op_cpu_fma_of(d);
    bool tiles = op_cpu_linear_amx_fits(d, w->in, w->out);
    if (!tiles && !v) return false;
    dnnl_memory_desc_t plain;
    describe_weight(&plain, w, back, ct_type(d));
    const packed *weight = pack(d, w->same ? w->same : w, back, &plain);
    if (!weight) return true; /* the error is sticky */
    p->N = N;
    p->in = back ? w->out : w->in;
    p->out = back ? w->in : w->out;
    p->packed = weight->data;
    p->in_rows = x;
    p->bias = back ? NULL : w->bias;
    if (tiles)
        op_cpu_linear_amx_run(d, p);
    else
        v->linear(d, p);
    return true;
}

void op_cpu_linear_fwd(device *d, dv *y, const dv *x, linear_w *w, size_t N)
{
    if (N && !by_ours(d, &(op_cpu_linear_call){.y = y}, x, w, N, false)) linear(d, y, x, w, N, KIND_FWD);
}

void op_cpu_linear_gelu_fwd(device *d, dv *y, dv *pre, const dv *x, linear_w *w, size_t N)
{
    if (!N || by_ours(d, &(op_cpu_linear_call){.y = y, .pre = pre, .after = AFTER_GELU}, x, w, N, false)) return;
    linear(d, pre ? pre : y, x, w, N, pre ? KIND_FWD : KIND_FWD_GELU);
    if (pre) op_cpu_gelu_fwd(d, y, pre, N * w->out);
}

void op_cpu_linear_gelu_slope_fwd(device *d, dv *y, dv *slope, const dv *x, linear_w *w, size_t N)
{
    if (!N || by_ours(d, &(op_cpu_linear_call){.y = y, .slope = slope, .after = AFTER_GELU_SLOPE}, x, w, N, false))
        return;
    linear(d, y, x, w, N, KIND_FWD);
    op_cpu_gelu_slope_fwd(d, y, slope, N, w->out);
}

void op_cpu_linear_residual_fwd(device *d, dv *out, const dv *x, const dv *in, linear_w *w, const dv *ls, dv *branch,
                                dv *rest, const op_norm *then, size_t N)
{
    if (!N) return;
    if (!by_ours(d, &(op_cpu_linear_call){.y = out, .x = x, .ls = ls, .rest = rest, .after = AFTER_RESIDUAL}, in, w, N,
                 false)) {
        linear(d, branch, in, w, N, KIND_FWD);
        op_cpu_residual_fwd(d, out, x, branch, ls, rest, N, w->out);
    }
    if (then) op_cpu_norm_fwd(d, then->y, then->mean, then->rstd, out, then->gamma, then->beta, then->eps, N, w->out);
}

void op_cpu_linear_dx(device *d, dv *dx, const dv *dy, linear_w *w, size_t N)
{
    if (N && !by_ours(d, &(op_cpu_linear_call){.y = dx}, dy, w, N, true)) linear(d, dx, dy, w, N, KIND_DX);
}

void op_cpu_linear_dx_slope(device *d, dv *dx, const dv *dy, linear_w *w, const dv *slope, size_t N)
{
    op_cpu_linear_call p = {.y = dx, .slope = (dv *)(uintptr_t)slope, .after = AFTER_TIMES_SLOPE};
    if (!N || by_ours(d, &p, dy, w, N, true)) return;
    linear(d, dx, dy, w, N, KIND_DX);
    op_cpu_gelu_slope_bwd(d, dx, dx, slope, N, w->in);
}

/* Column sums of dy (N,O), chosen columns: per-thread ranges of columns, rows in order, so the result does not depend
 * on timing. */
static void column_sums(device *d, float *db, const dv *dy, const int32_t *rows, size_t R, size_t N, size_t O)
{
#pragma omp parallel for schedule(static)
    for (size_t first = 0; first < R; first += 64) {
        size_t n = R - first < 64 ? R - first : 64;
        float sum[64] = {0}, row[64];
        for (size_t i = 0; i < N; i++) {
            if (rows)
                for (size_t k = 0; k < n; k++) op_cpu_load(d, &row[k], dy, i * O + (size_t)rows[first + k], 1);
            else
                op_cpu_load(d, row, dy, i * O + first, n);
            for (size_t k = 0; k < n; k++) sum[k] += row[k];
        }
        for (size_t k = 0; k < n; k++) db[first + k] += sum[k];
    }
}

void op_cpu_linear_dw(device *d, dv *dw, dv *db, const dv *dy, const dv *x, const dv *rows, size_t R, size_t N,
                      size_t O, size_t I)
{
    if (!N || !R) return;
    const op_cpu_fma *v = dw ? op_cpu_fma_of(d) : NULL;
    if (db && !v) column_sums(d, (float *)db, dy, (const int32_t *)rows, R, N, O);
    if (!dw) return;
    op_cpu_gemm g;
    memset(&g, 0, sizeof g);
    g.batch = 1;
    g.m = R;
    g.n = I;
    g.k = N;
    g.a[1] = 1; /* dy transposed */
    g.a[2] = O;
    g.b[1] = I;
    g.b[2] = 1;
    g.c[1] = I;
    g.c[2] = 1;
    g.c_f32 = g.accumulate = true;
    if (rows) { /* the chosen columns, side by side, in the workspace */
        const int32_t *r = (const int32_t *)rows;
        size_t cell = d->ct_bytes;
        char *to = op_cpu_work(d, N * R * cell);
        const char *from = (const char *)dy;
        if (!to) return;
#pragma omp parallel for schedule(static)
        for (size_t i = 0; i < N; i++)
            for (size_t k = 0; k < R; k++) memcpy(to + (i * R + k) * cell, from + (i * O + (size_t)r[k]) * cell, cell);
        dy = (const dv *)to;
        g.a[2] = R;
    }
    if (v) {
        v->dw(d, dw, db, dy, x, R, N, I);
        return;
    }
    if (op_cpu_dw_amx_fits(d, R, I)) {
        op_cpu_dw_amx_run(d, dw, dy, x, R, N, I);
        return;
    }
    op_cpu_gemm_run(d, &g, dy, x, dw);
}

void op_cpu_gemm_run(device *d, const op_cpu_gemm *g, const void *a, const void *b, void *c)
{
    dnnl_data_type_t ct = ct_type(d);
    key k;
    memset(&k, 0, sizeof k);
    k.kind = KIND_GEMM;
    k.one_thread = op_cpu_in_tile();
    k.bf16 = ct == dnnl_bf16;
    k.accumulate = g->accumulate;
    memcpy(&k.g, g, sizeof *g);
    dnnl_memory_desc_t src, wei, dst;
    int from = g->batch == 1; /* plain matrices are 2-D */
    size_t da[] = {g->batch, g->m, g->k}, db[] = {g->batch, g->k, g->n}, dc[] = {g->batch, g->m, g->n};
    describe(&src, da + from, g->a + from, 3 - from, g->a_f32 ? dnnl_f32 : ct);
    describe(&wei, db + from, g->b + from, 3 - from, g->b_f32 ? dnnl_f32 : ct);
    describe(&dst, dc + from, g->c + from, 3 - from, g->c_f32 ? dnnl_f32 : ct);
    entry *t = prepare(d, &k, &src, &wei, NULL, &dst);
    if (t) run(d, t, a, b, NULL, c);
}
