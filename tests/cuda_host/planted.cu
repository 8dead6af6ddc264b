/* planted.cu: kernels with defects, to see that the host executor finds them. test_planted.sh runs each: as it should
 * be (`planted NAME`), and with defect n (`planted NAME n`), in the three builds.
 *
 * Exit: 0 all values right, 1 wrong values or a refused call; the executor and the sanitizers have their own. */
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "model/cuda/gpu.cuh"

/* The defect that is planted in this run. Host memory: no kernel of ours reads such, but these may. */
static int planted;
#define BUG(n) (planted == (n))
#define OK(call)                                                                                                       \
    do {                                                                                                               \
        cudaError_t rc_ = (call);                                                                                      \
        if (rc_) {                                                                                                     \
            printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(rc_));                                        \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

constexpr int THREADS = 128, WARPS = THREADS / 32;

/* --- kernels */

static __device__ float block_sum(float v)
{
    __shared__ float part[WARPS];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, shift = BUG(3) ? 1 : 0;
    v = warp_sum(v);
    if (lane == 0) part[warp + shift] = v;
    if (!BUG(1)) __syncthreads();
    v = warp_sum(lane < WARPS ? part[lane + shift] : 0.0f);
    if (!BUG(2)) __syncthreads(); /* part is used again by the next call */
    return v;
}

/* A block a row. y = x / sum(x), twice over. */
static __global__ void __launch_bounds__(THREADS) share_kernel(const float *x, float *y, int columns)
{
    const float *row = x + (size_t)blockIdx.x * columns;
    if (BUG(4) && (int)threadIdx.x >= columns) return;
    float sum = 0, again = 0;
    for (int i = threadIdx.x; i < columns; i += THREADS) sum += row[i];
    if (BUG(5)) {
        if (threadIdx.x < 64)
            __syncthreads();
        else
            __syncthreads();
    }
    sum = block_sum(sum);
    if (BUG(6)) {
        float few[4];
        for (int i = 0; i <= (int)blockDim.x / 32; i++) few[i] = sum;
        sum = few[columns & 3];
    }
    for (int i = threadIdx.x; i < columns; i += THREADS) again += row[i] / sum;
    again = block_sum(again);
    for (int i = threadIdx.x; i < columns; i += THREADS) y[(size_t)blockIdx.x * columns + i] = row[i] / sum / again;
}

/* A warp a row: y = x minus its mean. */
static __global__ void __launch_bounds__(THREADS) center_kernel(const bf16 *x, bf16 *y, int rows, int columns)
{
    int row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows && !BUG(7)) return;
    float sum = 0;
    for (int i = lane; i < columns; i += 32) sum += gpu_load(x, (size_t)row * columns + i);
    if (BUG(8) && lane < 16) sum += __shfl_xor_sync(0xffffffffu, sum, 8);
    if (BUG(9)) sum += __shfl_xor_sync(0x33333333u << (lane & 2), sum, 2) * 0;
    float mean = warp_sum(sum) / columns;
    for (int i = lane; i < columns; i += 32)
        gpu_store(y, (size_t)row * columns + i, gpu_load(x, (size_t)row * columns + i) - mean);
}

/* A thread 8 values: y = 2 x. */
static __global__ void twice_kernel(const bf16 *x, bf16 *y, size_t n)
{
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i + 8 <= n) {
        uint4 p = *reinterpret_cast<const uint4 *>(x + i);
        __nv_bfloat162 *h = reinterpret_cast<__nv_bfloat162 *>(&p);
        for (int j = 0; j < 4; j++) h[j] = __floats2bfloat162_rn(2 * __low2float(h[j]), 2 * __high2float(h[j]));
        *reinterpret_cast<uint4 *>(y + i) = p;
    } else {
        for (; i < n; i++) gpu_store(y, i, 2 * gpu_load(x, i));
    }
}

static __global__ void add_kernel(const bf16 *a, const bf16 *b, bf16 *y, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n || (BUG(10) && i == n)) gpu_store(y, i, gpu_load(a, i) + gpu_load(b, i));
}

/* Column sums: blocks of 32 rows, integers so that their order is nobody's business. */
static __global__ void column_sums_kernel(const int *x, int *sums, int rows, int columns)
{
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= columns) return;
    int s = 0;
    for (int r = blockIdx.y * 32; r < min(rows, (int)(blockIdx.y + 1) * 32); r++) s += x[(size_t)r * columns + c];
    if (BUG(11) && blockIdx.y == 0) sums[c] = 0;
    if (BUG(12))
        sums[c] += s;
    else
        atomicAdd(&sums[c], s);
}

/* Counts of values below 64, by a histogram in shared memory. */
static __global__ void histogram_kernel(const int *x, int *counts, int n)
{
    DYN_SMEM(int, bins);
    if (!BUG(13))
        for (int i = threadIdx.x; i < 64; i += blockDim.x) bins[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) atomicAdd(&bins[x[i] + (BUG(14) ? 1 : 0)], 1);
    if (!BUG(15)) __syncthreads();
    for (int i = threadIdx.x; i < 64; i += blockDim.x) counts[i] = bins[i];
}

/* Tiles of 32 x 32, turned in shared memory; then each group of four lanes exchanges through it. */
constexpr int TILE = 32;
static __global__ void __launch_bounds__(THREADS) turn_kernel(const float *x, float *y, int n)
{
    __shared__ float tile[TILE][TILE + 1], row[THREADS];
    int x0 = blockIdx.x * TILE, y0 = blockIdx.y * TILE, t = threadIdx.x;
    for (int pass = 0; pass < 2; pass++) { /* the same tile twice: it is used again */
        for (int i = t; i < TILE * TILE; i += THREADS) {
            int r = i / TILE, c = i % TILE;
            tile[r][c + (BUG(16) ? 2 : 0)] = y0 + r < n && x0 + c < n ? x[(size_t)(y0 + r) * n + x0 + c] : 0.0f;
        }
        if (!BUG(17)) __syncthreads();
        for (int i = t; i < TILE * TILE; i += THREADS) {
            int r = i / TILE, c = i % TILE;
            float v = tile[c][r];
            row[t] = v;
            if (!BUG(18)) __syncwarp();
            float first = row[t & ~3];
            __syncwarp();
            if (x0 + r < n && y0 + c < n) y[(size_t)(x0 + r) * n + y0 + c] = v + first;
        }
        if (!BUG(19)) __syncthreads();
    }
}

/* y (64,8) = a (64,64) b (64,8): a warp 16 rows; a comes by cp.async in two buffers of 16 columns. */
struct product_smem {
    bf16 a[2][64][24], b[64][16];
};
static __device__ void load_columns(bf16 (*dst)[24], const bf16 *a, int k0)
{
    for (int i = threadIdx.x; i < 64 * 2; i += THREADS)
        cp_async16(&dst[i / 2][i % 2 * 8], a + i / 2 * 64 + k0 + i % 2 * 8, true);
}
static __global__ void __launch_bounds__(THREADS) product_kernel(const bf16 *a, const bf16 *b, float *y)
{
    DYN_SMEM(product_smem, s);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum[4] = {};
    for (int i = threadIdx.x; i < 64 * 16; i += THREADS)
        gpu_store(s->b[i / 16], i % 16, i % 16 < 8 ? gpu_load(b, i / 16 * 8 + i % 16) : 0.0f);
    load_columns(s->a[0], a, 0);
    cp_async_commit();
    for (int k = 0; k < 4; k++) {
        if (k < 3) load_columns(s->a[(k + 1) & 1], a, (k + 1) * 16);
        cp_async_commit();
        if (BUG(20))
            cp_async_wait<2>();
        else
            cp_async_wait<1>();
        if (!BUG(21)) __syncthreads();
        unsigned am[4], bm[4];
        ldmatrix_x4(am, &s->a[k & 1][warp * 16 + lane % 16][lane / 16 * 8]);
        ldmatrix_x4_trans(bm, &s->b[k * 16 + lane % 16][lane / 16 * 8]);
        unsigned b0[2] = {bm[BUG(22) ? 1 : 0], bm[BUG(22) ? 0 : 1]};
        mma_bf16_16816(sum, am, b0, sum);
        if (!BUG(23)) __syncthreads();
    }
    for (int i = 0; i < 4; i++) y[(warp * 16 + lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

/* --- host: values in, values out, what they should be */

static cudaStream_t stream;
static unsigned state = 1;

static int number(int below)
{
    state = state * 1664525u + 1013904223u;
    return (int)(state >> 8) % below;
}

template <class T> static T made(int v)
{
    return (T)v;
}
template <> bf16 made<bf16>(int v)
{
    return __float2bfloat16((float)v);
}

template <class T> struct buffer {
    T *p;
    std::vector<T> host;
    explicit buffer(size_t n, int below = 0) : host(n) /* below 0: never written */
    {
        OK(cudaMalloc((void **)&p, n * sizeof(T)));
        for (T &v : host) v = made<T>(below > 0 ? number(below) : 0);
        if (below) OK(cudaMemcpy(p, host.data(), n * sizeof(T), cudaMemcpyHostToDevice));
    }
    ~buffer() { cudaFree(p); }
    double operator[](size_t i) const { return (double)(float)host[i]; }
    void fetch()
    {
        OK(cudaStreamSynchronize(stream));
        OK(cudaMemcpy(host.data(), p, host.size() * sizeof(T), cudaMemcpyDeviceToHost));
    }
};
enum { ZEROS = -1 };

static int wrong;
static void expect(double got, double want, double slack)
{
    if (!(fabs(got - want) <= slack * (1 + fabs(want)))) wrong++;
}

static void share()
{
    const int rows = 5, columns = 100;
    buffer<float> x(rows * columns, 9), y(rows * columns);
    auto kernel = share_kernel;
    OK(LAUNCH(kernel, rows, THREADS, 0, stream, BUG(24) ? x.host.data() : x.p, y.p, columns));
    y.fetch();
    for (int r = 0; r < rows; r++) {
        double sum = 0;
        for (int i = 0; i < columns; i++) sum += x[r * columns + i];
        for (int i = 0; i < columns; i++) expect(y[r * columns + i], x[r * columns + i] / sum, 1e-5);
    }
}

static void center()
{
    const int rows = 37, columns = 70;
    buffer<bf16> x(rows * columns, 9), y(rows * columns);
    auto kernel = center_kernel;
    OK(LAUNCH(kernel, gpu_blocks(rows, WARPS), THREADS, 0, stream, x.p, y.p, rows, columns));
    y.fetch();
    for (int r = 0; r < rows; r++) {
        double mean = 0;
        for (int i = 0; i < columns; i++) mean += x[r * columns + i] / columns;
        for (int i = 0; i < columns; i++) expect(y[r * columns + i], x[r * columns + i] - mean, 1e-2);
    }
}

static void twice()
{
    const size_t n = 1003, from = BUG(25) ? 1 : 0;
    buffer<bf16> x(n, 9), y(n);
    auto kernel = twice_kernel;
    OK(LAUNCH(kernel, gpu_blocks(n, 2048), 256, 0, stream, x.p + from, y.p + from, n - from));
    y.fetch();
    for (size_t i = from; i < n; i++) expect(y[i], 2 * x[i], 0);
}

static void sums()
{
    const int rows = 100, columns = 150;
    buffer<int> x(rows * columns, 9), s(columns, BUG(26) ? 0 : ZEROS);
    auto kernel = column_sums_kernel;
    OK(LAUNCH(kernel, dim3(gpu_blocks(columns, THREADS), gpu_blocks(rows, 32)), THREADS, 0, stream, x.p, s.p, rows,
              columns));
    s.fetch();
    for (int c = 0; c < columns; c++) {
        int want = 0;
        for (int r = 0; r < rows; r++) want += x.host[r * columns + c];
        if (s.host[c] != want) wrong++;
    }
}

static void histogram()
{
    const int n = 1000;
    buffer<int> x(n, 64), counts(64);
    for (int i = 0; i < 64; i++) x.host[i] = 63 - i; /* each at least once */
    OK(cudaMemcpy(x.p, x.host.data(), n * sizeof(int), cudaMemcpyHostToDevice));
    auto kernel = histogram_kernel;
    OK(LAUNCH(kernel, 1, THREADS, 64 * sizeof(int), stream, x.p, counts.p, n));
    counts.fetch();
    int want[64] = {};
    for (int v : x.host) want[v]++;
    for (int i = 0; i < 64; i++)
        if (counts.host[i] != want[i]) wrong++;
}

static void turn()
{
    const int n = 70;
    buffer<float> x(n * n, 9), y(n * n);
    auto kernel = turn_kernel;
    OK(LAUNCH(kernel, dim3(gpu_blocks(n, TILE), gpu_blocks(n, TILE)), THREADS, 0, stream, x.p, y.p, n));
    y.fetch();
    for (int r = 0; r < n; r++)
        for (int c = 0; c < n; c++) expect(y[r * n + c], x[c * n + r] + x[(c & ~3) * n + r], 0);
}

static void product()
{
    buffer<bf16> a(64 * 64, 9), b(64 * 8, 9);
    buffer<float> y(64 * 8);
    auto kernel = product_kernel;
    const size_t most = BUG(27) ? 48 << 10 : 64 << 10; /* more than a kernel gets that does not ask */
    if (!BUG(27)) OK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)most));
    OK(LAUNCH(kernel, 1, THREADS, most + (BUG(27) ? 1 : 0), stream, a.p, b.p, y.p));
    y.fetch();
    for (int r = 0; r < 64; r++)
        for (int c = 0; c < 8; c++) {
            double want = 0;
            for (int k = 0; k < 64; k++) want += a[r * 64 + k] * b[k * 8 + c];
            expect(y[r * 8 + c], want, 1e-6);
        }
}

/* Copies on one stream, a kernel on another; the pinned buffer is used again. */
static void streams()
{
    const size_t n = 4096;
    cudaStream_t up;
    cudaEvent_t there;
    bf16 *pinned;
    OK(cudaStreamCreateWithFlags(&up, cudaStreamNonBlocking));
    OK(cudaEventCreateWithFlags(&there, cudaEventDisableTiming));
    OK(cudaMallocHost((void **)&pinned, n * sizeof *pinned));
    buffer<bf16> a(n), b(n), y(n);
    for (size_t i = 0; i < n; i++) pinned[i] = made<bf16>(i % 100);
    OK(cudaMemcpyAsync(a.p, pinned, n * sizeof *pinned, cudaMemcpyHostToDevice, up));
    if (!BUG(28)) OK(cudaStreamSynchronize(up));
    for (size_t i = 0; i < n; i++) pinned[i] = made<bf16>(i % 7);
    OK(cudaMemcpyAsync(b.p, pinned, n * sizeof *pinned, cudaMemcpyHostToDevice, up));
    OK(cudaEventRecord(there, up));
    if (!BUG(29)) OK(cudaStreamWaitEvent(stream, there, 0));
    auto kernel = add_kernel;
    OK(LAUNCH(kernel, gpu_blocks(n, 256), 256, 0, stream, a.p, b.p, y.p, n));
    y.fetch();
    OK(cudaStreamSynchronize(up));
    for (size_t i = 0; i < n; i++) expect(y[i], i % 100 + i % 7, 0);
    cudaFreeHost(pinned);
    cudaEventDestroy(there);
    cudaStreamDestroy(up);
}

/* Two additions as a graph, launched twice. */
static void graph()
{
    const size_t n = 1000;
    cudaGraph_t taken;
    cudaGraphExec_t exec;
    buffer<bf16> a(n, 9), b(n, 9), c(n), d(n);
    auto kernel = add_kernel;
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    OK(LAUNCH(kernel, gpu_blocks(n, 256), 256, 0, stream, a.p, b.p, c.p, n));
    if (BUG(30)) OK(cudaStreamSynchronize(stream)); /* not while it is captured */
    OK(LAUNCH(kernel, gpu_blocks(n, 256), 256, 0, stream, c.p, b.p, d.p, n));
    if (BUG(31))
        OK(cudaMemcpyAsync(d.host.data(), d.p, n * sizeof(bf16), cudaMemcpyDeviceToHost, stream)); /* pageable */
    OK(cudaStreamEndCapture(stream, &taken));
    OK(cudaGraphInstantiate(&exec, taken, 0));
    for (int i = 0; i < 2; i++) OK(cudaGraphLaunch(exec, stream));
    d.fetch();
    for (size_t i = 0; i < n; i++) expect(d[i], a[i] + 2 * b[i], 0);
    cudaGraphExecDestroy(exec);
    if (!BUG(32)) cudaGraphDestroy(taken);
}

static void memory()
{
    const size_t n = 100;
    auto kernel = add_kernel;
    buffer<bf16> y(n), x(n, 9);
    buffer<bf16> *gone = new buffer<bf16>(n, 9);
    const bf16 *p = gone->p;
    if (BUG(33)) delete gone;
    if (BUG(34)) wrong += (float)p[0] < 0; /* the host follows a device pointer */
    OK(LAUNCH(kernel, gpu_blocks(n, 256), 256, 0, stream, p, x.p, y.p, n));
    y.fetch();
    if (!BUG(33)) delete gone;
    for (size_t i = 0; i < n; i++) expect(y[i], (float)y.host[i], 0);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)();
    } tests[] = {{"share", share}, {"center", center},   {"twice", twice}, {"sums", sums},     {"histogram", histogram},
                 {"turn", turn},   {"product", product}, {"graph", graph}, {"memory", memory}, {"streams", streams}};
    planted = argc > 2 ? atoi(argv[2]) : 0;
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (const auto &t : tests)
        if (argc < 2 || !strcmp(argv[1], t.name) || !strcmp(argv[1], "all")) t.run();
    OK(cudaDeviceSynchronize());
    OK(cudaStreamDestroy(stream));
    if (wrong) printf("%d values are wrong\n", wrong);
    return wrong != 0;
}
