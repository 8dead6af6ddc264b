/* optim.cu: the optimiser's ops, each over a whole list of params: a launch takes the descriptors of up to LIST_MOST
 * tensors as its parameter, so that nothing is uploaded, and hundreds of vectors cost little more than one. A block has
 * CHUNK values of one tensor, its threads four at a time. All are limited by bytes: of fp32 values, adamw reads four
 * and writes three, and one each where a teacher follows; refresh and grad_square read one; live copies are written
 * once. */
#include <math.h>

#include "model/cuda/total.cuh"

constexpr int THREADS = 256;
constexpr size_t CHUNK = 4096;
constexpr unsigned LIST_MOST = 36;

/* One tensor (rows,cols) of n values. */
struct piece {
    float *w, *m, *v, *teacher; /* what is written: master, Adam's state, its average or NULL */
    const float *from;          /* what is read: gradient, or what becomes live */
    void *live, *live_teacher;  /* the casts, or NULL; row r of them is row rows[r] there, if rows */
    const int32_t *rows;
    size_t n, cols;
    float step, decay, root2; /* AdamW: lr / (1 - beta1^t), 1 - lr * weight_decay, sqrt(1 - beta2^t) */
    bool trains;              /* AdamW: else its teacher alone follows */
    bool live_ct;             /* live copies are ct, else f32 */
    bool wide, live_wide;     /* four values may be read and written at once; and to the live copies */
};

struct list {
    unsigned n, first[LIST_MOST + 1]; /* block at which a piece begins; first[n]: blocks in all */
    piece p[LIST_MOST];
};

struct adam {
    float beta1, beta2, eps, clip, momentum;
};
static_assert(sizeof(list) + sizeof(adam) + 2 * sizeof(void *) <= 4096, "a kernel's parameters");

/* --- on the device */

/* A block's values: n of piece p, from `first` on. */
struct chunk {
    const piece *p;
    size_t first, row; /* row, column: of the first value, so that within the chunk 32 bits do */
    unsigned n, column;
};

static __device__ __forceinline__ chunk chunk_of(const list &l)
{
    unsigned i = 0;
    while (blockIdx.x >= l.first[i + 1]) i++;
    const piece *p = &l.p[i];
    size_t first = (blockIdx.x - l.first[i]) * CHUNK;
    unsigned n = (unsigned)(p->n - first < CHUNK ? p->n - first : CHUNK);
    return chunk{p, first, first / p->cols, n, (unsigned)(first % p->cols)};
}

/* f.run<4>(i) for every fourth value of the chunk where the piece allows it, f.run<1>(i) for what is left. */
template <typename F> static __device__ __forceinline__ void each(const chunk &c, F &f)
{
    unsigned whole = c.p->wide ? c.n / 4 * 4 : 0;
    for (unsigned i = threadIdx.x * 4; i < whole; i += THREADS * 4) f.template run<4>(i);
    for (unsigned i = whole + threadIdx.x; i < c.n; i += THREADS) f.template run<1>(i);
}

static __device__ __forceinline__ size_t live_at(const chunk &c, unsigned i)
{
    size_t at = c.first + i;
    if (c.p->rows) {
        unsigned cols = (unsigned)c.p->cols, down = (c.column + i) / cols;
        at = (size_t)c.p->rows[c.row + down] * cols + (c.column + i - down * cols);
    }
    return at;
}

template <typename T, int V>
static __device__ __forceinline__ void write_live(const chunk &c, void *live, unsigned i, const float (&w)[V])
{
    if (!live) return;
    if (V == 4 && c.p->live_wide) {
        if (c.p->live_ct)
            gpu_store_n<V>((T *)live + live_at(c, i), w);
        else
            gpu_store_n<V>((float *)live + live_at(c, i), w);
        return;
    }
#pragma unroll
    for (int j = 0; j < V; j++)
        if (c.p->live_ct)
            gpu_store((T *)live, live_at(c, i + j), w[j]);
        else
            gpu_store((float *)live, live_at(c, i + j), w[j]);
}

struct square_values {
    const chunk &c;
    float sum;
    template <int V> __device__ __forceinline__ void run(unsigned i)
    {
        float g[V];
        gpu_load_n<V>(g, c.p->from + c.first + i);
#pragma unroll
        for (int j = 0; j < V; j++) sum += g[j] * g[j];
    }
};

/* part[block] = the sum of a chunk's squares: a thread's own, then by shuffles and, in shared memory, by warps. */
static __global__ void __launch_bounds__(THREADS) square_kernel(float *part, const list l)
{
    __shared__ float warps[THREADS / 32];
    chunk c = chunk_of(l);
    square_values f = {c, 0};
    each(c, f);
    float sum = warp_sum(f.sum);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    for (int k = 1; k < THREADS / 32; k++) sum += warps[k];
    part[blockIdx.x] = sum;
}

template <typename T> struct adamw_values {
    const chunk &c;
    const adam &a;
    float grad_scale;
    template <int V> __device__ __forceinline__ void run(unsigned i)
    {
        float w[V];
        gpu_load_n<V>(w, c.p->w + c.first + i);
        if (c.p->trains) step<V>(i, w);
        if (c.p->teacher) average<V>(i, w);
    }
    template <int V> __device__ __forceinline__ void step(unsigned i, float (&w)[V])
    {
        const piece &p = *c.p;
        size_t at = c.first + i;
        float g[V], m[V], v[V];
        gpu_load_n<V>(g, p.from + at);
        gpu_load_n<V>(m, p.m + at);
        gpu_load_n<V>(v, p.v + at);
#pragma unroll
        for (int j = 0; j < V; j++) {
            float grad = g[j] * grad_scale;
            m[j] = a.beta1 * m[j] + (1 - a.beta1) * grad;
            v[j] = a.beta2 * v[j] + (1 - a.beta2) * grad * grad;
            w[j] = w[j] * p.decay - p.step * m[j] / (sqrtf(v[j]) / p.root2 + a.eps);
        }
        gpu_store_n<V>(p.w + at, w);
        gpu_store_n<V>(p.m + at, m);
        gpu_store_n<V>(p.v + at, v);
        write_live<T, V>(c, p.live, i, w);
    }
    template <int V> __device__ __forceinline__ void average(unsigned i, const float (&w)[V])
    {
        float t[V];
        gpu_load_n<V>(t, c.p->teacher + c.first + i);
#pragma unroll
        for (int j = 0; j < V; j++) t[j] = a.momentum * t[j] + (1 - a.momentum) * w[j];
        gpu_store_n<V>(c.p->teacher + c.first + i, t);
        write_live<T, V>(c, c.p->live_teacher, i, t);
    }
};

/* Nothing where the gradients' square sum is not finite; else they are scaled down to the norm a.clip. */
template <typename T>
static __global__ void __launch_bounds__(THREADS) adamw_kernel(const float *square, adam a, const list l)
{
    float norm = sqrtf(square[0]);
    if (!(norm < INFINITY)) return;
    chunk c = chunk_of(l);
    adamw_values<T> f = {c, a, a.clip > 0 && norm > a.clip ? a.clip / (norm + 1e-6f) : 1};
    each(c, f);
}

template <typename T> struct refresh_values {
    const chunk &c;
    template <int V> __device__ __forceinline__ void run(unsigned i)
    {
        float w[V];
        gpu_load_n<V>(w, c.p->from + c.first + i);
        write_live<T, V>(c, c.p->live, i, w);
    }
};

template <typename T> static __global__ void __launch_bounds__(THREADS) refresh_kernel(const list l)
{
    chunk c = chunk_of(l);
    refresh_values<T> f = {c};
    each(c, f);
}

/* --- on the host */

static bool skipped(const param *p, const adamw_step *s)
{
    return (p->prototypes && s->skip_prototypes) || (!p->head && s->skip_backbone);
}

static bool aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

static piece piece_of(const param *p, dv *w, const dv *from, dv *live)
{
    piece x = {};
    x.w = (float *)w;
    x.from = (const float *)from;
    x.live = live;
    x.rows = (const int32_t *)p->row_index;
    x.n = p->rows * p->cols;
    x.cols = p->cols;
    x.live_ct = p->live_ct;
    x.wide = aligned(w) && aligned(from);
    x.live_wide = aligned(live) && (!p->row_index || p->cols % 4 == 0);
    return x;
}

/* Adds a piece to the list; whether it is full then. */
static bool list_add(list *l, const piece &p)
{
    if (!p.n) return false;
    l->p[l->n] = p;
    l->first[l->n + 1] = l->first[l->n] + gpu_blocks(p.n, CHUNK);
    return ++l->n == LIST_MOST;
}

/* launch(list) if there is anything in it; the list is empty then. */
template <typename F> static void list_flush(device *d, list *l, const char *name, F launch)
{
    if (l->n) op_cuda_check(d, launch(*l), name);
    l->n = 0;
}

static void train(piece *x, const param *p, const adamw_step *s)
{
    float lr = (p->head ? s->head_lr : s->lr) * p->lr_scale;
    double t = (double)s->t[adam_group(p)];
    x->m = (float *)p->m;
    x->v = (float *)p->v;
    x->wide = x->wide && aligned(x->m) && aligned(x->v);
    x->decay = p->decay ? 1 - lr * s->weight_decay : 1;
    x->step = (float)(lr / (1 - pow(s->beta1, t)));
    x->root2 = (float)sqrt(1 - pow(s->beta2, t));
}

static void follow(piece *x, const param *p)
{
    x->teacher = (float *)p->teacher;
    x->live_teacher = p->live_teacher;
    x->wide = x->wide && aligned(x->teacher);
    x->live_wide = x->live_wide && aligned(x->live_teacher);
}

template <typename T> static void adamw(device *d, param *p, size_t n, const adamw_step *s, const dv *square)
{
    adam a = {s->beta1, s->beta2, s->eps, s->clip, s->momentum};
    list l = {};
    auto launch = [&](const list &x) {
        auto kernel = adamw_kernel<T>;
        return LAUNCH(kernel, x.first[x.n], THREADS, 0, op_cuda_of(d)->stream, (const float *)square, a, x);
    };
    for (size_t i = 0; i < n; i++) {
        bool follows = s->average && p[i].teacher;
        piece x = piece_of(&p[i], p[i].master, p[i].grad, p[i].live);
        x.trains = !skipped(&p[i], s);
        if (x.trains) train(&x, &p[i], s);
        if (follows) follow(&x, &p[i]);
        if ((x.trains || follows) && list_add(&l, x)) list_flush(d, &l, "adamw", launch);
        if (x.trains && p[i].linear) p[i].linear->version++;
        if (follows && p[i].linear_teacher) p[i].linear_teacher->version++;
    }
    list_flush(d, &l, "adamw", launch);
}

template <typename T> static void refresh(device *d, param *p, size_t n)
{
    list l = {};
    auto launch = [&](const list &x) {
        auto kernel = refresh_kernel<T>;
        return LAUNCH(kernel, x.first[x.n], THREADS, 0, op_cuda_of(d)->stream, x);
    };
    for (size_t i = 0; i < n; i++) {
        if (p[i].live && list_add(&l, piece_of(&p[i], NULL, p[i].master, p[i].live)))
            list_flush(d, &l, "refresh", launch);
        if (p[i].linear) p[i].linear->version++;
        if (!p[i].teacher) continue;
        if (p[i].live_teacher && list_add(&l, piece_of(&p[i], NULL, p[i].teacher, p[i].live_teacher)))
            list_flush(d, &l, "refresh", launch);
        if (p[i].linear_teacher) p[i].linear_teacher->version++;
    }
    list_flush(d, &l, "refresh", launch);
}

extern "C" {
void op_cuda_grad_square(device *d, dv *out, const param *p, size_t n, const adamw_step *s)
{
    size_t blocks = 0, done = 0;
    for (size_t i = 0; i < n; i++)
        if (!skipped(&p[i], s)) blocks += gpu_blocks(p[i].rows * p[i].cols, CHUNK);
    float *part = (float *)op_cuda_scratch(d, blocks * sizeof(float));
    if (!part) return;
    list l = {};
    auto launch = [&](const list &x) {
        cudaError_t rc = LAUNCH(square_kernel, x.first[x.n], THREADS, 0, op_cuda_of(d)->stream, part + done, x);
        done += x.first[x.n];
        return rc;
    };
    for (size_t i = 0; i < n; i++) {
        if (skipped(&p[i], s)) continue;
        if (list_add(&l, piece_of(&p[i], NULL, p[i].grad, NULL))) list_flush(d, &l, "grad_square", launch);
    }
    list_flush(d, &l, "grad_square", launch);
    op_cuda_check(d, total(d, out, part, blocks, 1, false), "grad_square");
}

void op_cuda_adamw(device *d, param *p, size_t n, const adamw_step *s, const dv *square)
{
    GPU_CT(d, adamw, d, p, n, s, square);
}

void op_cuda_refresh(device *d, param *p, size_t n)
{
    GPU_CT(d, refresh, d, p, n);
}
}
