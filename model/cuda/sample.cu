/* sample.cu: crops of stored frames, as preprocess/sampler.c and intensity.c make them: the same plan (sample_plan.c),
 * the same formulas in fp32, but that rows are summed before columns, and a mean by tiles.
 *
 * Jobs are taken in groups, in which all jobs of a frame follow each other: the source rows that they need go up once,
 * unless the frame is resident, and behind them lies a table of weights for each axis of each job. All of it is in
 * op_cuda_scratch; where a frame is larger than FRAME_MOST, a job is done in bands of source rows, whose sums add up in
 * its output. Then, in the output itself:
 *
 *   weigh     both axes' weights                     an output pixel of an axis a thread
 *   resample  window, both passes, clip, gamma       a tile of 32 x 32 pixels of a plane a block; its sum
 *   tint      contrast, brightness, colours          a pixel a thread
 *   blur      down the columns                       32 columns of a plane a block, from top to bottom
 *   finish    blur along rows, solarize, normalise   a row a warp, from left to right; three planes from one or three
 *
 * All of them are bound by memory, and small: a step's crops are a few hundred MB. */
#include <limits.h>

#include "model/cuda/gpu.cuh"
extern "C" {
#include "base/arena.h"
}
#include "preprocess/sample_plan.h"

constexpr int TILE = 32, ROWS = 8, THREADS = TILE * ROWS; /* blocks are of 32 x 8 threads, of 8 warps */
constexpr int RADIUS_MAX = 48, RING = TILE + 2 * RADIUS_MAX;
constexpr float SIGMA_MAX = 16;
constexpr int RESAMPLE_BLOCKS = 3; /* a multiprocessor: ptxas would spill on sm_75 for a fourth */
constexpr int JOBS = 64;           /* of a group */
constexpr size_t FRAME_MOST = 20 << 20;
static_assert((RING & (RING - 1)) == 0, "places in a ring are masked");

/* One axis' weights: output pixel i is the sum over k < n[i] of weight[k * size + i] times source pixel start[i] + k.
 */
struct table {
    int *start, *n; /* (size) */
    float *weight;  /* (stride, size) */
};

/* A job, on the device. */
struct shot {
    sample_plan plan;
    pixel_type type;
    int columns;
    bool invert;
    double slope, intercept;
    table x, y;
    float *sums;         /* (planes, tiles) */
    float *out;          /* (3, size, size) */
    const uint8_t *rows; /* source rows [row, row_end) */
    int row, row_end;
    bool first, last; /* band */
    bool tint;
};

static_assert(sizeof(shot) <= OP_CUDA_SHOT_BYTES, "a job that counts for it is as large");

struct norm_scale {
    float mean[3], factor[3];
};

static __device__ __forceinline__ float clip(float x)
{
    x = x > 0 ? x : 0; /* NaN too */
    return x < 1 ? x : 1;
}

static __device__ __forceinline__ float luma(float r, float g, float b)
{
    return 0.299f * r + 0.587f * g + 0.114f * b;
}

/* --- weights: sample_plan_weigh, in fp64 as there */

static __device__ __forceinline__ double cubic(double x)
{
    x = fabs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/* Grid: output pixels, axis, job. Writes a table's column a thread: adjacent threads to adjacent words. */
static __global__ void __launch_bounds__(THREADS) weigh_kernel(const shot *shots, int size)
{
    const shot *s = shots + blockIdx.z;
    const sample_axis *a = blockIdx.y ? &s->plan.y : &s->plan.x;
    const table t = blockIdx.y ? s->y : s->x;
    int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i >= size) return;
    double center = a->begin + (i + 0.5) * a->scale, shrink = 1 / fmax(a->scale, 1.0), sum = 0;
    double from = fmax(floor(center - a->support + 0.5), (double)a->low);
    double to = fmin(floor(center + a->support + 0.5), (double)a->high);
    int start = (int)fmin(fmax(from, 0.0), (double)a->in), end = (int)fmin(fmax(to, (double)start), (double)a->in);
    for (double k = from; k < to; k++) sum += cubic((k - center + 0.5) * shrink);
    int at = a->flip ? size - 1 - i : i;
    t.start[at] = start;
    t.n[at] = end - start;
    for (int k = start; k < end; k++)
        t.weight[(size_t)(k - start) * size + at] = sum != 0 ? (float)(cubic((k - center + 0.5) * shrink) / sum) : 0;
}

/* --- source pixel i of the rows that are there -> [0,1] */

template <typename T> struct straight_window {
    enum { UNROLL = 4 };
    const T *pixels;
    sample_line line;
    __device__ __forceinline__ float operator()(size_t i) const
    {
        int code = pixels[i];
        float y = clip((float)code * line.factor + line.offset);
        return code >= line.pad_low && code <= line.pad_high ? 0.0f : y;
    }
};

/* window_value */
static __device__ float window_of(const voi_window &w, double x)
{
    double center = w.center, width = w.width;
    if (w.function == VOI_SIGMOID) {
        if (!(width > 0)) return x < center ? 0.0f : x > center ? 1.0f : 0.5f;
        return x == x ? (float)(1 / (1 + exp(-4 * (x - center) / width))) : 0.0f;
    }
    if (w.function == VOI_LINEAR) {
        center -= 0.5;
        width -= 1;
    }
    if (!(width > 0)) width = 0;
    if (!(x > center - width / 2)) return 0.0f;
    if (x > center + width / 2) return 1.0f;
    return (float)((x - center) / width + 0.5);
}

template <typename T> struct any_window {
    enum { UNROLL = 1 }; /* fp64 */
    const T *pixels;
    const shot *s;
    int plane;
    __device__ __forceinline__ float operator()(size_t i) const
    {
        int code = pixels[i];
        const sample_line *line = &s->plan.line[plane];
        float v = clip(window_of(s->plan.window[plane], s->slope * code + s->intercept));
        return code >= line->pad_low && code <= line->pad_high ? 0.0f : s->invert ? 1 - v : v;
    }
};

struct colour_plane {
    enum { UNROLL = 4 };
    const uint8_t *pixels; /* at its channel */
    __device__ __forceinline__ float operator()(size_t i) const { return (float)pixels[3 * i] * (1 / 255.0f); }
};

/* --- resampling */

/* A thread's four pixels of its column of a tile, ROWS apart from row y on: += the band's part. Rows of the source go
 * by TILE at a time: each is summed along its columns into across, (TILE, TILE), then down. */
template <typename Source>
static __device__ __forceinline__ void tile_sums(float (&sum)[TILE / ROWS], float (*across)[TILE], const shot *s,
                                                 const Source &source, int x, int y0, int size)
{
    int lane = (int)threadIdx.x, row = (int)threadIdx.y, y_end = min(y0 + TILE, size) - 1;
    int from = max(s->y.start[y0], s->row), to = min(s->y.start[y_end] + s->y.n[y_end], s->row_end);
    int start = 0, n = 0;
    if (x < size) {
        start = s->x.start[x];
        n = s->x.n[x];
    }
    for (int base = from; base < to; base += TILE) {
        for (int r = row; r < TILE && base + r < to; r += ROWS) {
            size_t at = (size_t)(base + r - s->row) * s->columns + start;
            float v = 0;
#pragma unroll Source::UNROLL
            for (int k = 0; k < n; k++) v += s->x.weight[(size_t)k * size + x] * source(at + k);
            across[r][lane] = v;
        }
        __syncthreads();
        for (int i = 0; i < TILE / ROWS; i++) {
            int y = y0 + row + i * ROWS;
            if (y >= size) break;
            int first = s->y.start[y], last = min(first + s->y.n[y], min(base + TILE, to));
            for (int k = max(first, base); k < last; k++)
                sum[i] += s->y.weight[(size_t)(k - first) * size + y] * across[k - base][lane];
        }
        __syncthreads();
    }
}

/* Grid: tiles, plane, job; in shared memory: TILE source rows summed along their columns. Reads the source once for
 * every two output pixels or so of each axis (4 x 1.2 times where it shrinks), from the second cache. */
static __global__ void __launch_bounds__(THREADS, RESAMPLE_BLOCKS)
    resample_kernel(const shot *shots, int size, int tiles)
{
    __shared__ float across[TILE][TILE], part[ROWS];
    const shot *s = shots + blockIdx.z;
    const sample_plan *p = &s->plan;
    int plane = (int)blockIdx.y, tile = (int)blockIdx.x;
    if (plane >= p->planes) return;
    int x = tile % tiles * TILE + (int)threadIdx.x, y0 = tile / tiles * TILE;
    float sum[TILE / ROWS] = {0, 0, 0, 0};
    if (p->colour)
        tile_sums(sum, across, s, colour_plane{s->rows + plane}, x, y0, size);
    else if (s->type == PIXEL_I16 && p->line[plane].straight)
        tile_sums(sum, across, s, straight_window<int16_t>{(const int16_t *)s->rows, p->line[plane]}, x, y0, size);
    else if (p->line[plane].straight)
        tile_sums(sum, across, s, straight_window<uint16_t>{(const uint16_t *)s->rows, p->line[plane]}, x, y0, size);
    else if (s->type == PIXEL_I16)
        tile_sums(sum, across, s, any_window<int16_t>{(const int16_t *)s->rows, s, plane}, x, y0, size);
    else
        tile_sums(sum, across, s, any_window<uint16_t>{(const uint16_t *)s->rows, s, plane}, x, y0, size);

    float *out = s->out + (size_t)plane * size * size, all = 0, gamma = p->empty ? 0 : p->crop.gamma;
    for (int i = 0; i < TILE / ROWS; i++) {
        int y = y0 + (int)threadIdx.y + i * ROWS;
        if (x >= size || y >= size) break;
        size_t at = (size_t)y * size + x;
        float v = s->first ? sum[i] : out[at] + sum[i];
        if (s->last) v = clip(v);
        if (s->last && gamma != 0) v = clip(powf(v, fmaxf(1 + gamma, 0)));
        out[at] = v;
        all += v;
    }
    all = warp_sum(all);
    if (threadIdx.x == 0) part[threadIdx.y] = all;
    __syncthreads();
    if (threadIdx.x || threadIdx.y) return;
    all = 0;
    for (int i = 0; i < ROWS; i++) all += part[i];
    s->sums[(size_t)plane * tiles * tiles + tile] = all;
}

/* --- contrast, brightness, colours */

/* Of a plane, from its tiles' sums: for every thread of a block. */
static __device__ float plane_mean(const float *sums, int tiles, size_t pixels, double *part)
{
    double sum = 0;
    for (int i = (int)threadIdx.x; i < tiles; i += THREADS) sum += sums[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int i = 0; i < THREADS / 32; i++) sum += part[i];
    __syncthreads();
    return (float)(sum / (double)pixels);
}

/* Turns the hue by `turn` of a circle at the same saturation and value. */
static __device__ __forceinline__ void turn_hue(float (&rgb)[3], float turn)
{
    float r = rgb[0], g = rgb[1], b = rgb[2];
    float high = fmaxf(fmaxf(r, g), b), low = fminf(fminf(r, g), b), chroma = high - low;
    float inverse = 1 / (chroma > 0 ? chroma : 1); /* grey: chroma 0 below */
    float hue = high == r ? (g - b) * inverse : high == g ? (b - r) * inverse + 2 : (r - g) * inverse + 4;
    hue += 6 * turn;
#pragma unroll
    for (int c = 0; c < 3; c++) {
        float away = hue + (c == 0 ? 5.0f : c == 1 ? 3.0f : 1.0f);
        away -= 6 * floorf(away * (1 / 6.0f));
        float part = fminf(fminf(away, 4 - away), 1);
        rgb[c] = clip(high - chroma * (part > 0 ? part : 0));
    }
}

static __device__ __forceinline__ void colours(float (&rgb)[3], const crop_params &c)
{
    float turn = isfinite(c.hue) ? c.hue - rintf(c.hue) : 0;
    if (c.saturation != 0) {
        float grey = luma(rgb[0], rgb[1], rgb[2]);
        for (int k = 0; k < 3; k++) rgb[k] = clip(grey + (rgb[k] - grey) * (1 + c.saturation));
    }
    if (turn != 0) turn_hue(rgb, turn);
    if (c.gray) rgb[0] = rgb[1] = rgb[2] = clip(luma(rgb[0], rgb[1], rgb[2]));
}

/* Grid: pixels, job. Every block adds up the tiles' sums again. */
static __global__ void __launch_bounds__(THREADS) tint_kernel(const shot *shots, size_t pixels, int tiles)
{
    __shared__ double part[THREADS / 32];
    const shot *s = shots + blockIdx.y;
    const crop_params &c = s->plan.crop;
    int planes = s->plan.planes;
    if (!s->tint) return;
    bool jitter = c.contrast != 0 || c.brightness != 0;
    float mean[3] = {0, 0, 0};
    if (jitter)
#pragma unroll
        for (int k = 0; k < 3; k++)
            if (k < planes) mean[k] = plane_mean(s->sums + (size_t)k * tiles, tiles, pixels, part);
    if (s->plan.colour) mean[0] = mean[1] = mean[2] = luma(mean[0], mean[1], mean[2]);
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= pixels) return;
    float v[3], factor = (1 + c.contrast) * (1 + c.brightness);
#pragma unroll
    for (int k = 0; k < 3; k++) {
        v[k] = k < planes ? s->out[k * pixels + i] : 0;
        if (jitter) v[k] = clip(v[k] * factor + -c.contrast * mean[k] * (1 + c.brightness));
    }
    if (s->plan.colour) colours(v, c);
#pragma unroll
    for (int k = 0; k < 3; k++)
        if (k < planes) s->out[k * pixels + i] = v[k];
}

/* --- blur */

/* Weights of a Gaussian, for a whole block; returns the radius, 0 for none (and a weight of 1). */
static __device__ int blur_weights(float *weight, float sigma)
{
    int k = (int)(threadIdx.y * blockDim.x + threadIdx.x);
    sigma = sigma > 0.01f ? fminf(sigma, SIGMA_MAX) : 0;
    int radius = sigma > 0 ? min((int)ceilf(3 * sigma), RADIUS_MAX) : 0;
    float own = radius ? expf(-0.5f * (float)((k - radius) * (k - radius)) / (sigma * sigma)) : 1, sum = 0;
    if (k <= 2 * radius) weight[k] = own;
    __syncthreads();
    for (int i = 0; i <= 2 * radius; i++) sum += weight[i];
    __syncthreads();
    if (k <= 2 * radius) weight[k] = own / sum;
    __syncthreads();
    return radius;
}

/* Grid: columns, plane, job. In shared memory the rows that TILE output rows are sums of, as they were: row y at place
 * y % RING. They are read ahead of what is written, so the plane is changed in place. */
static __global__ void __launch_bounds__(THREADS) blur_kernel(const shot *shots, int size)
{
    __shared__ float ring[RING][TILE], weight[2 * RADIUS_MAX + 1];
    const shot *s = shots + blockIdx.z;
    if ((int)blockIdx.y >= s->plan.planes || !s->last || !(s->plan.crop.blur_sigma > 0.01f)) return;
    int radius = blur_weights(weight, s->plan.crop.blur_sigma), lane = (int)threadIdx.x, row = (int)threadIdx.y;
    int x = (int)blockIdx.x * TILE + lane;
    bool inside = x < size;
    float *plane = s->out + (size_t)blockIdx.y * size * size + x;
    int loaded = -radius; /* rows below this are in the ring */
    for (int base = 0; base < size; base += TILE) {
        for (int y = loaded + row; y < base + TILE + radius; y += ROWS)
            ring[y & (RING - 1)][lane] = inside ? plane[(size_t)min(max(y, 0), size - 1) * size] : 0;
        loaded = base + TILE + radius;
        __syncthreads();
        for (int y = base + row; y < base + TILE && y < size && inside; y += ROWS) {
            float sum = 0;
            for (int k = -radius; k <= radius; k++) sum += weight[k + radius] * ring[(y + k) & (RING - 1)][lane];
            plane[(size_t)y * size] = sum;
        }
        __syncthreads();
    }
}

/* Grid: rows, job; the same along a row, a warp each, with all that comes after it. */
static __global__ void __launch_bounds__(THREADS) finish_kernel(const shot *shots, int size, norm_scale norm)
{
    __shared__ float rings[ROWS][RING], weight[2 * RADIUS_MAX + 1];
    const shot *s = shots + blockIdx.y;
    if (!s->last) return;
    int radius = blur_weights(weight, s->plan.crop.blur_sigma), lane = (int)threadIdx.x;
    int y = (int)(blockIdx.x * ROWS + threadIdx.y), planes = s->plan.planes;
    size_t pixels = (size_t)size * size;
    float *ring = rings[threadIdx.y], solarize = s->plan.crop.solarize;
    if (y >= size) return;
    for (int c = planes - 1; c >= 0; c--) {
        float *row = s->out + c * pixels + (size_t)y * size;
        int loaded = -radius;
        for (int base = 0; base < size; base += TILE) {
            for (int x = loaded + lane; x < base + TILE + radius; x += TILE)
                ring[x & (RING - 1)] = row[min(max(x, 0), size - 1)];
            loaded = base + TILE + radius;
            __syncwarp();
            int x = base + lane;
            float v = 0;
            for (int k = -radius; k <= radius; k++) v += weight[k + radius] * ring[(x + k) & (RING - 1)];
            if (solarize > 0 && v >= solarize) v = 1 - v;
            v = clip(v);
            if (x < size && planes == 3) row[x] = (v - norm.mean[c]) * norm.factor[c];
            if (x < size && planes == 1)
                for (int k = 0; k < 3; k++) row[k * pixels + x] = (v - norm.mean[k]) * norm.factor[k];
            __syncwarp();
        }
    }
}

/* --- groups of jobs */

struct group {
    device *d;
    dv *out; /* of the call */
    norm_scale norm;
    int size, n, planes;
    bool tint, blur;
    arena room; /* the scratch */
    shot *on_device;
    shot shots[JOBS];
};

static void group_empty(group *g)
{
    void *scratch = op_cuda_scratch(g->d, OP_CUDA_SCRATCH_BYTES);
    g->n = g->planes = 0;
    g->tint = g->blur = false;
    arena_init(&g->room, scratch, OP_CUDA_SCRATCH_BYTES);
    g->on_device = (shot *)arena_take(&g->room, JOBS, sizeof(shot));
}

static void group_run(group *g)
{
    device *d = g->d;
    cudaStream_t stream = op_cuda_of(d)->stream;
    unsigned tiles = gpu_blocks(g->size, TILE), n = (unsigned)g->n, planes = (unsigned)g->planes;
    size_t pixels = (size_t)g->size * g->size;
    dim3 block(TILE, ROWS);
    if (!n) return;
    d->op->upload(d, (dv *)g->on_device, g->shots, n * sizeof *g->shots);
    cudaError_t rc =
        LAUNCH(weigh_kernel, dim3(gpu_blocks(g->size, THREADS), 2, n), THREADS, 0, stream, g->on_device, g->size);
    if (!rc)
        rc = LAUNCH(resample_kernel, dim3(tiles * tiles, planes, n), block, 0, stream, g->on_device, g->size,
                    (int)tiles);
    if (!rc && g->tint)
        rc = LAUNCH(tint_kernel, dim3(gpu_blocks(pixels, THREADS), n), THREADS, 0, stream, g->on_device, pixels,
                    (int)(tiles * tiles));
    if (!rc && g->blur) rc = LAUNCH(blur_kernel, dim3(tiles, planes, n), block, 0, stream, g->on_device, g->size);
    if (!rc)
        rc =
            LAUNCH(finish_kernel, dim3(gpu_blocks(g->size, ROWS), n), block, 0, stream, g->on_device, g->size, g->norm);
    op_cuda_check(d, rc, "sample");
    group_empty(g);
}

static table take_table(arena *m, const sample_axis *a)
{
    table t;
    t.start = (int *)arena_take(m, (size_t)a->out, sizeof(int));
    t.n = (int *)arena_take(m, (size_t)a->out, sizeof(int));
    t.weight = (float *)arena_take(m, (size_t)a->out * a->stride, sizeof(float));
    return t;
}

/* false: there is no room left. */
static bool group_add(group *g, const shot *of)
{
    arena m = g->room;
    size_t tiles = gpu_blocks(g->size, TILE);
    if (g->n == JOBS) return false;
    shot *s = &g->shots[g->n];
    *s = *of;
    s->x = take_table(&m, &s->plan.x);
    s->y = take_table(&m, &s->plan.y);
    s->sums = (float *)arena_take(&m, s->plan.planes * tiles * tiles, sizeof(float));
    if (arena_failed(&m)) return false;
    g->room = m;
    g->n++;
    g->planes = max(g->planes, s->plan.planes);
    g->tint |= s->tint;
    g->blur |= s->last && s->plan.crop.blur_sigma > 0.01f;
    return true;
}

/* Rows [row, end) of a job's frame on the device: where they are, or sent there, from a group's start where there is no
 * other room; NULL: they are none. */
static const uint8_t *put_rows(group *g, const sample_job *job, int row, int end, size_t row_bytes)
{
    arena m = g->room;
    size_t from = row * row_bytes, bytes = (end - row) * row_bytes;
    if (!bytes) return NULL;
    if (job->resident) return (const uint8_t *)job->resident + from;
    void *at = arena_take(&m, bytes, 1);
    if (arena_failed(&m)) {
        group_run(g);
        m = g->room;
        at = arena_take(&m, bytes, 1);
    }
    g->room = m;
    g->d->op->upload(g->d, (dv *)at, (const uint8_t *)job->pixels + from, bytes);
    return (const uint8_t *)at;
}

static bool same_frame(const sample_job *a, const sample_job *b)
{
    return a->pixels == b->pixels && a->resident == b->resident && a->frame == b->frame;
}

static shot shot_of(const group *g, const sampler_norm *norm, const sample_job *job, size_t index)
{
    const frame_info *f = job->frame;
    shot s = {};
    s.plan = sample_plan_of(norm, job);
    s.type = f->type;
    s.columns = f->columns;
    s.invert = f->invert;
    s.slope = f->slope;
    s.intercept = f->intercept;
    s.out = (float *)g->out + index * 3 * g->size * g->size;
    const crop_params *c = &s.plan.crop;
    s.tint = !s.plan.empty && (c->contrast != 0 || c->brightness != 0 ||
                               (s.plan.colour && (c->saturation != 0 || c->hue != 0 || c->gray)));
    return s;
}

/* All jobs of the frame of job `first`, the first of them. */
static void sample_frame(group *g, const sampler_norm *norm, const sample_job *jobs, size_t n, size_t first)
{
    const frame_info *f = jobs[first].frame;
    size_t row_bytes = (size_t)f->columns * f->channels * (f->type == PIXEL_U8 ? 1 : 2);
    int low = INT_MAX, high = 0, step = (int)(FRAME_MOST / row_bytes);
    for (size_t i = first; i < n; i++) {
        if (!same_frame(&jobs[i], &jobs[first])) continue;
        sample_plan p = sample_plan_of(norm, &jobs[i]);
        if (p.empty) continue;
        low = min(low, p.y.first);
        high = max(high, p.y.last);
    }
    if (low > high) low = high; /* all are empty */
    /* Bands begin at multiples of their height wherever the frame lies and whoever else cuts it: sums are the same. */
    for (int row = low, end; row == low || row < high; row = end) {
        end = min(high, (row / step + 1) * step);
        const uint8_t *rows = put_rows(g, &jobs[first], row, end, row_bytes);
        for (size_t i = first; i < n; i++) {
            if (!same_frame(&jobs[i], &jobs[first])) continue;
            shot s = shot_of(g, norm, &jobs[i], i);
            s.rows = rows;
            s.row = row;
            s.row_end = end;
            s.first = row == low;
            s.last = end == high;
            s.tint &= s.last;
            if (group_add(g, &s)) continue;
            group_run(g);
            s.rows = rows = put_rows(g, &jobs[first], row, end, row_bytes);
            if (!group_add(g, &s)) {
                op_cuda_fail(g->d, ERR_LIMIT, "a crop too large for the GPU's scratch");
                return;
            }
        }
        if (end < high) group_run(g); /* bands of a job follow each other */
    }
}

extern "C" void op_cuda_sample(device *d, dv *out, const sampler_norm *norm, const sample_job *jobs, size_t n)
{
    group g;
    if (!n) return;
    g.d = d;
    g.out = out;
    g.size = jobs[0].size;
    sample_plan_norm(norm, g.norm.mean, g.norm.factor);
    group_empty(&g);
    for (size_t i = 0; i < n; i++) {
        size_t k = 0;
        while (k < i && !same_frame(&jobs[k], &jobs[i])) k++;
        if (k == i) sample_frame(&g, norm, jobs, n, i);
    }
    group_run(&g);
}
