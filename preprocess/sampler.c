/* sampler.c: the fused pass. Windowing is done on the stored pixels, before the resampling, because it clips: what a
 * viewer or an 8-bit pipeline would do too. The resampling itself is linear and separable, in two passes:
 *
 *   down:   sixteen output rows at a time are summed over the source columns that the crop touches, and laid down
 *           transposed, (columns, 16);
 *   across: each output column is a sum of such 16-vectors; a flip is the same columns in reverse order.
 *
 * So both passes run over contiguous floats, with one weight per step. Only the crop's source rows and columns are ever
 * touched, and one plane is computed where the three windows are the same. */
#include "preprocess/sampler.h"

#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/wide.h"
#include "preprocess/intensity.h"

enum { LANES = 16 };

/* One axis of a crop: output pixel i is a weighted sum of source pixels. */
typedef struct {
    double begin, scale, support; /* source pixels */
    int in, out;                  /* pixels */
    int low, high;                /* where sums may reach: the image, and the crop where it is larger */
    bool flip;
    int first, last; /* source pixels [first, last) that are needed */
    int stride;      /* most weights of an output pixel */
    int *start, *n;  /* (out) */
    float *weight;   /* (out, stride) */
} axis;

/* Source pixels [start, end) of the image that output pixel i sees, before flipping; center in source pixels. */
static void axis_range(const axis *a, int i, double *center, double *from, double *to, int *start, int *end)
{
    *center = a->begin + (i + 0.5) * a->scale;
    *from = fmax(floor(*center - a->support + 0.5), a->low);
    *to = fmin(floor(*center + a->support + 0.5), a->high);
    *start = (int)fmin(fmax(*from, 0), a->in);
    *end = (int)fmin(fmax(*to, *start), a->in);
}

static axis axis_of(double begin, double length, int in, int out, bool flip)
{
    axis a = {.begin = begin, .scale = length / out, .in = in, .out = out, .flip = flip};
    double center, from, to;
    int ignored;
    a.support = 2 * fmax(a.scale, 1);
    a.low = (int)fmin(0, floor(begin));
    a.high = (int)fmax(in, ceil(begin + length));
    axis_range(&a, 0, &center, &from, &to, &a.first, &ignored);
    axis_range(&a, out - 1, &center, &from, &to, &ignored, &a.last);
    a.stride = (int)fmin(in, ceil(2 * a.support) + 2);
    return a;
}

/* Keys' cubic, a = -1/2 (Keys 1981, eq. 4 and 15). */
static double cubic(double x)
{
    x = fabs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

static void axis_weigh(axis *a)
{
    double shrink = 1 / fmax(a->scale, 1);
    for (int i = 0; i < a->out; i++) {
        double center, from, to, sum = 0;
        int start, end, at = a->flip ? a->out - 1 - i : i;
        axis_range(a, i, &center, &from, &to, &start, &end);
        for (double k = from; k < to; k++) sum += cubic((k - center + 0.5) * shrink);
        a->start[at] = start;
        a->n[at] = end - start;
        assert(end - start <= a->stride);
        for (int k = start; k < end; k++)
            a->weight[(size_t)at * (size_t)a->stride + (size_t)(k - start)] =
                sum != 0 ? (float)(cubic((k - center + 0.5) * shrink) / sum) : 0;
    }
}

/* One job's scratch. */
typedef struct {
    axis x, y;
    size_t width, height; /* of the source region: x.last - x.first, y.last - y.first */
    float *region;        /* (height, width) windowed source */
    float *rows;          /* (LANES, width) */
    float *block;         /* (width, LANES) */
    float *across;        /* (size, LANES) */
    float *intensity;     /* intensity_scratch(size) */
} plan;

static void plan_take(plan *p, arena *m, size_t size)
{
    axis *both[2] = {&p->x, &p->y};
    for (int i = 0; i < 2; i++) {
        both[i]->start = arena_take(m, size, sizeof(int));
        both[i]->n = arena_take(m, size, sizeof(int));
        both[i]->weight = arena_take(m, size * (size_t)both[i]->stride, sizeof(float));
    }
    p->region = arena_take(m, p->height * p->width, sizeof(float));
    p->rows = arena_take(m, p->width * LANES, sizeof(float));
    p->block = arena_take(m, p->width * LANES, sizeof(float));
    p->across = arena_take(m, size * LANES, sizeof(float));
    p->intensity = arena_take(m, intensity_scratch((int)size), sizeof(float));
}

/* --- scratch of a thread, kept between jobs and freed when the thread ends --- */
typedef struct {
    size_t bytes;
    void *base;
} scratch;

static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;
static bool scratch_ready;

static void scratch_free(void *p)
{
    scratch *s = p;
    free(s->base);
    free(s);
}

static void scratch_init(void)
{
    scratch_ready = pthread_key_create(&scratch_key, scratch_free) == 0;
}

static void *scratch_take(size_t bytes)
{
    pthread_once(&scratch_once, scratch_init);
    scratch *s = scratch_ready ? pthread_getspecific(scratch_key) : NULL;
    if (!s && scratch_ready && (s = calloc(1, sizeof *s)) && pthread_setspecific(scratch_key, s)) {
        free(s);
        s = NULL;
    }
    if (!s) return NULL;
    if (s->bytes < bytes) {
        free(s->base);
        s->bytes = (bytes + bytes / 4 + ARENA_ALIGN) / ARENA_ALIGN * ARENA_ALIGN;
        s->base = aligned_alloc(ARENA_ALIGN, s->bytes);
        if (!s->base) s->bytes = 0;
    }
    return s->base;
}

/* --- source -> [0,1] --- */
static float clip(float x)
{
    x = x > 0 ? x : 0; /* NaN too */
    return x < 1 ? x : 1;
}

/* code -> clip(code * factor + offset), except that codes in [pad_low, pad_high] give 0. */
typedef struct {
    float factor, offset;
    int pad_low, pad_high;
} linear_window;

#define LINEAR_ROW(name, type)                                                                                         \
    WIDE static void name(float *restrict out, const type *restrict in, size_t n, linear_window w)                     \
    {                                                                                                                  \
        for (size_t i = 0; i < n; i++) {                                                                               \
            int code = in[i];                                                                                          \
            float y = clip((float)code * w.factor + w.offset);                                                         \
            out[i] = code >= w.pad_low && code <= w.pad_high ? 0.0f : y;                                               \
        }                                                                                                              \
    }
LINEAR_ROW(linear_row_i16, int16_t)
LINEAR_ROW(linear_row_u16, uint16_t)

/* false: the window is not a straight line, or one that floats cannot hold. */
static bool linear_of(const frame_info *f, const voi_window *w, linear_window *out)
{
    double center = w->center, width = w->width;
    if (w->function == VOI_SIGMOID) return false;
    if (w->function == VOI_LINEAR) {
        center -= 0.5;
        width -= 1;
    }
    double factor = f->slope / width, offset = (f->intercept - center) / width + 0.5;
    if (!(width > 0) || !(fabs(factor) < 1e6) || !(fabs(offset) < 1e6)) return false;
    *out = (linear_window){(float)(f->invert ? -factor : factor), (float)(f->invert ? 1 - offset : offset), 1, 0};
    return true;
}

/* Codes of padding, [*low, *high]; none: low > high. */
static void padding_codes(const frame_info *f, int *low, int *high)
{
    *low = 1;
    *high = 0;
    if (!f->has_padding || f->slope == 0) return;
    double a = (f->padding_low - f->intercept) / f->slope, b = (f->padding_high - f->intercept) / f->slope;
    double least = ceil(fmin(a, b) - 1e-3), most = floor(fmax(a, b) + 1e-3);
    if (!(least <= most)) return;
    *low = (int)fmin(fmax(least, -100000), 100000);
    *high = (int)fmin(fmax(most, -100000), 100000);
}

/* The source region through one window. */
static void window_region(const plan *p, const sample_job *job, const voi_window *w)
{
    const frame_info *f = job->frame;
    linear_window line = {0};
    bool straight = linear_of(f, w, &line);
    padding_codes(f, &line.pad_low, &line.pad_high);
    for (size_t y = 0; y < p->height; y++) {
        size_t at = ((size_t)p->y.first + y) * (size_t)f->columns + (size_t)p->x.first;
        const int16_t *i16 = (const int16_t *)job->pixels + at;
        const uint16_t *u16 = (const uint16_t *)job->pixels + at;
        float *out = p->region + y * p->width;
        if (straight && f->type == PIXEL_I16)
            linear_row_i16(out, i16, p->width, line);
        else if (straight)
            linear_row_u16(out, u16, p->width, line);
        else
            for (size_t x = 0; x < p->width; x++) {
                int code = f->type == PIXEL_I16 ? i16[x] : u16[x];
                float v = clip(window_value(w, f->slope * code + f->intercept));
                out[x] = code >= line.pad_low && code <= line.pad_high ? 0.0f : f->invert ? 1 - v : v;
            }
    }
}

WIDE static void colour_row(float *restrict out, const uint8_t *restrict in, size_t n)
{
    for (size_t x = 0; x < n; x++) out[x] = (float)in[3 * x] * (1 / 255.0f);
}

static void colour_region(const plan *p, const sample_job *job, int channel)
{
    for (size_t y = 0; y < p->height; y++) {
        const uint8_t *in = (const uint8_t *)job->pixels + (size_t)channel +
                            3 * (((size_t)p->y.first + y) * (size_t)job->frame->columns + (size_t)p->x.first);
        colour_row(p->region + y * p->width, in, p->width);
    }
}

/* --- resampling --- */
/* row[n] = sum over k of weight[k] * in[k * n .. ] */
WIDE static void down_row(float *restrict row, const float *restrict in, size_t n, const float *restrict weight,
                          int taps)
{
    memset(row, 0, n * sizeof *row);
    int k = 0;
    for (; k + 4 <= taps; k += 4, in += 4 * n) {
        float a = weight[k], b = weight[k + 1], c = weight[k + 2], d = weight[k + 3];
        for (size_t i = 0; i < n; i++) row[i] += a * in[i] + b * in[n + i] + (c * in[2 * n + i] + d * in[3 * n + i]);
    }
    for (; k < taps; k++, in += n)
        for (size_t i = 0; i < n; i++) row[i] += weight[k] * in[i];
}

/* out (size, LANES): column x is the sum of block's columns from start[x] on. */
WIDE static void across_lanes(float *restrict out, const float *restrict block, const axis *a)
{
    for (int x = 0; x < a->out; x++) {
        const float *in = block + (size_t)(a->start[x] - a->first) * LANES, *weight = a->weight + x * a->stride;
        float sum[LANES] = {0};
        for (int k = 0; k < a->n[x]; k++)
            for (int i = 0; i < LANES; i++) sum[i] += weight[k] * in[k * LANES + i];
        for (int i = 0; i < LANES; i++) out[x * LANES + i] = clip(sum[i]);
    }
}

/* out (n, LANES) = the transpose of in (LANES, n), and back: rows of it to out, `row` apart. */
WIDE static void turn(float *restrict out, const float *restrict in, size_t n)
{
    for (size_t x = 0; x < n; x++)
        for (size_t r = 0; r < LANES; r++) out[x * LANES + r] = in[r * n + x];
}
WIDE static void turn_back(float *restrict out, size_t row, const float *restrict in, size_t n, size_t rows)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t x = 0; x < n; x++) out[r * row + x] = in[x * LANES + r];
}

/* p->region -> out (size, size), clipped to [0,1]. */
static void resample(const plan *p, float *out)
{
    size_t size = (size_t)p->x.out, w = p->width;
    for (size_t y = 0; y < size; y += LANES) {
        size_t rows = size - y < LANES ? size - y : LANES;
        for (size_t r = 0; r < LANES; r++) {
            const axis *a = &p->y;
            if (r < rows)
                down_row(p->rows + r * w, p->region + (size_t)(a->start[y + r] - a->first) * w, w,
                         a->weight + (y + r) * (size_t)a->stride, a->n[y + r]);
            else
                memset(p->rows + r * w, 0, w * sizeof *p->rows);
        }
        turn(p->block, p->rows, w);
        across_lanes(p->across, p->block, &p->x);
        turn_back(out + y * size, size, p->across, size, rows);
    }
}

/* --- a job --- */
static bool same_window(const voi_window *a, const voi_window *b)
{
    return a->function == b->function && a->center == b->center && a->width == b->width;
}

/* A crop that can be computed with: finite, not empty, not much larger than the frame. */
static crop_params sane(const sample_job *job)
{
    crop_params c = job->crop;
    const frame_info *f = job->frame;
    float most = 4.0f * (float)(f->rows > f->columns ? f->rows : f->columns);
    if (!isfinite(c.x) || !isfinite(c.y) || !(c.width > 0) || !(c.height > 0)) {
        c.x = c.y = 0;
        c.width = (float)f->columns;
        c.height = (float)f->rows;
    }
    c.width = fminf(fmaxf(c.width, 1e-3f), most);
    c.height = fminf(fmaxf(c.height, 1e-3f), most);
    c.x = fminf(fmaxf(c.x, -most), most);
    c.y = fminf(fmaxf(c.y, -most), most);
    return c;
}

WIDE static void scaled(float *to, const float *in, float mean, float factor, size_t n) /* may be the same */
{
    for (size_t i = 0; i < n; i++) to[i] = (in[i] - mean) * factor;
}

static void normalise(const sampler_norm *norm, float *out, size_t pixels, int planes)
{
    for (int c = 2; c >= 0; c--) { /* the last first: plane 0 may be the source of all three */
        const float *in = out + (planes == 3 ? (size_t)c * pixels : 0);
        float *to = out + (size_t)c * pixels;
        float mean = isfinite(norm->mean[c]) ? norm->mean[c] : 0;
        float factor = isnormal(norm->std[c]) ? 1 / norm->std[c] : 1;
        scaled(to, in, mean, factor, pixels);
    }
}

static err_code sample(const sampler_norm *norm, const sample_job *job)
{
    const frame_info *f = job->frame;
    size_t size = (size_t)job->size, pixels = size * size;
    crop_params c = sane(job);
    bool colour = f->channels == 3;
    assert(job->size > 0 && (colour ? f->type == PIXEL_U8 : f->type == PIXEL_I16 || f->type == PIXEL_U16));

    voi_window window[3] = {0};
    if (!colour) window_choose(&norm->window, f, window);
    for (int i = 0; i < 3; i++) {
        window[i].center += (double)c.window_shift * window[i].width;
        window[i].width *= 1 + (double)c.window_scale;
    }
    int planes = colour || !same_window(&window[0], &window[1]) || !same_window(&window[0], &window[2]) ? 3 : 1;

    plan p = {.x = axis_of(c.x, c.width, f->columns, job->size, c.flip),
              .y = axis_of(c.y, c.height, f->rows, job->size, false)};
    bool empty = p.x.last <= p.x.first || p.y.last <= p.y.first; /* all outside */
    p.width = empty ? 0 : (size_t)(p.x.last - p.x.first);
    p.height = empty ? 0 : (size_t)(p.y.last - p.y.first);
    arena m = {0};
    plan_take(&p, &m, size);
    void *base = arena_failed(&m) ? NULL : scratch_take(m.used);
    if (!base || empty) {
        memset(job->out, 0, pixels * sizeof *job->out);
        normalise(norm, job->out, pixels, 1);
        return base ? ERR_OK : ERR_NOMEM;
    }
    arena_init(&m, base, m.used);
    plan_take(&p, &m, size);
    axis_weigh(&p.x);
    axis_weigh(&p.y);
    for (int i = 0; i < planes; i++) {
        if (colour)
            colour_region(&p, job, i);
        else
            window_region(&p, job, &window[i]);
        resample(&p, job->out + (size_t)i * pixels);
    }
    intensity_apply(&c, job->out, planes, job->size, colour, p.intensity);
    normalise(norm, job->out, pixels, planes);
    return ERR_OK;
}

typedef struct {
    const sampler_norm *norm;
    const sample_job *jobs;
    atomic_int failed;
} batch;

static void one(void *ctx, size_t i)
{
    batch *b = ctx;
    if (sample(b->norm, &b->jobs[i])) atomic_store(&b->failed, 1);
}

err_code sampler_run(pool *p, const sampler_norm *norm, const sample_job *jobs, size_t n)
{
    batch b = {.norm = norm, .jobs = jobs};
    pool_for(p, n, one, &b);
    return atomic_load(&b.failed) ? ERR_NOMEM : ERR_OK;
}

crop_params sampler_whole(const frame_info *f, bool keep_aspect, float fraction)
{
    float w = (float)f->columns, h = (float)f->rows, longer = w > h ? w : h;
    crop_params c = {.width = (keep_aspect ? longer : w) * fraction, .height = (keep_aspect ? longer : h) * fraction};
    c.x = (w - c.width) / 2;
    c.y = (h - c.height) / 2;
    return c;
}
