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

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/wide.h"
#include "preprocess/intensity.h"
#include "preprocess/sample_plan.h"

enum { LANES = 16 };

/* An axis with its weights: sample_plan_weigh. */
typedef struct {
    int *start, *n; /* (out) */
    float *weight;  /* (out, stride) */
} axis_taps;

/* One job's scratch. */
typedef struct {
    axis_taps x, y;
    size_t width, height; /* of the source region: x.last - x.first, y.last - y.first */
    float *region;        /* (height, width) windowed source */
    float *rows;          /* (LANES, width) */
    float *block;         /* (width, LANES) */
    float *across;        /* (size, LANES) */
    float *intensity;     /* intensity_scratch(size) */
} buffers;

static void take_taps(axis_taps *t, arena *m, const sample_axis *a)
{
    size_t size = (size_t)a->out;
    t->start = arena_take(m, size, sizeof(int));
    t->n = arena_take(m, size, sizeof(int));
    t->weight = arena_take(m, size * (size_t)a->stride, sizeof(float));
}

static void take_buffers(buffers *b, arena *m, const sample_plan *p)
{
    size_t size = (size_t)p->x.out;
    b->width = p->empty ? 0 : (size_t)(p->x.last - p->x.first);
    b->height = p->empty ? 0 : (size_t)(p->y.last - p->y.first);
    take_taps(&b->x, m, &p->x);
    take_taps(&b->y, m, &p->y);
    b->region = arena_take(m, b->height * b->width, sizeof(float));
    b->rows = arena_take(m, b->width * LANES, sizeof(float));
    b->block = arena_take(m, b->width * LANES, sizeof(float));
    b->across = arena_take(m, size * LANES, sizeof(float));
    b->intensity = arena_take(m, intensity_scratch((int)size), sizeof(float));
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

#define LINEAR_ROW(name, type)                                                                                         \
    WIDE static void name(float *restrict out, const type *restrict in, size_t n, sample_line w)                       \
    {                                                                                                                  \
        for (size_t i = 0; i < n; i++) {                                                                               \
            int code = in[i];                                                                                          \
            float y = clip((float)code * w.factor + w.offset);                                                         \
            out[i] = code >= w.pad_low && code <= w.pad_high ? 0.0f : y;                                               \
        }                                                                                                              \
    }
LINEAR_ROW(linear_row_i16, int16_t)
LINEAR_ROW(linear_row_u16, uint16_t)

/* The source region through the window of plane c. */
static void window_region(const sample_plan *p, const buffers *b, const sample_job *job, int c)
{
    const frame_info *f = job->frame;
    const voi_window *w = &p->window[c];
    sample_line line = p->line[c];
    for (size_t y = 0; y < b->height; y++) {
        size_t at = ((size_t)p->y.first + y) * (size_t)f->columns + (size_t)p->x.first;
        const int16_t *i16 = (const int16_t *)job->pixels + at;
        const uint16_t *u16 = (const uint16_t *)job->pixels + at;
        float *out = b->region + y * b->width;
        if (line.straight && f->type == PIXEL_I16)
            linear_row_i16(out, i16, b->width, line);
        else if (line.straight)
            linear_row_u16(out, u16, b->width, line);
        else
            for (size_t x = 0; x < b->width; x++) {
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

static void colour_region(const sample_plan *p, const buffers *b, const sample_job *job, int channel)
{
    for (size_t y = 0; y < b->height; y++) {
        const uint8_t *in = (const uint8_t *)job->pixels + (size_t)channel +
                            3 * (((size_t)p->y.first + y) * (size_t)job->frame->columns + (size_t)p->x.first);
        colour_row(b->region + y * b->width, in, b->width);
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
WIDE static void across_lanes(float *restrict out, const float *restrict block, const sample_axis *a,
                              const axis_taps *t)
{
    for (int x = 0; x < a->out; x++) {
        const float *in = block + (size_t)(t->start[x] - a->first) * LANES, *weight = t->weight + x * a->stride;
        float sum[LANES] = {0};
        for (int k = 0; k < t->n[x]; k++)
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

/* b->region -> out (size, size), clipped to [0,1]. */
static void resample(const sample_plan *p, const buffers *b, float *out)
{
    size_t size = (size_t)p->x.out, w = b->width;
    const axis_taps *t = &b->y;
    for (size_t y = 0; y < size; y += LANES) {
        size_t rows = size - y < LANES ? size - y : LANES;
        for (size_t r = 0; r < LANES; r++) {
            if (r < rows)
                down_row(b->rows + r * w, b->region + (size_t)(t->start[y + r] - p->y.first) * w, w,
                         t->weight + (y + r) * (size_t)p->y.stride, t->n[y + r]);
            else
                memset(b->rows + r * w, 0, w * sizeof *b->rows);
        }
        turn(b->block, b->rows, w);
        across_lanes(b->across, b->block, &p->x, &b->x);
        turn_back(out + y * size, size, b->across, size, rows);
    }
}

/* --- a job --- */
WIDE static void scaled(float *to, const float *in, float mean, float factor, size_t n) /* may be the same */
{
    for (size_t i = 0; i < n; i++) to[i] = (in[i] - mean) * factor;
}

static void normalise(const sampler_norm *norm, float *out, size_t pixels, int planes)
{
    float mean[3], factor[3];
    sample_plan_norm(norm, mean, factor);
    for (int c = 2; c >= 0; c--) /* the last first: plane 0 may be the source of all three */
        scaled(out + (size_t)c * pixels, out + (planes == 3 ? (size_t)c * pixels : 0), mean[c], factor[c], pixels);
}

static err_code sample(const sampler_norm *norm, const sample_job *job)
{
    size_t size = (size_t)job->size, pixels = size * size;
    sample_plan p = sample_plan_of(norm, job);
    buffers b;
    arena m = {0};
    take_buffers(&b, &m, &p);
    void *base = arena_failed(&m) ? NULL : scratch_take(m.used);
    if (!base || p.empty) {
        memset(job->out, 0, pixels * sizeof *job->out);
        normalise(norm, job->out, pixels, 1);
        return base ? ERR_OK : ERR_NOMEM;
    }
    arena_init(&m, base, m.used);
    take_buffers(&b, &m, &p);
    sample_plan_weigh(&p.x, b.x.start, b.x.n, b.x.weight);
    sample_plan_weigh(&p.y, b.y.start, b.y.n, b.y.weight);
    for (int i = 0; i < p.planes; i++) {
        if (p.colour)
            colour_region(&p, &b, job, i);
        else
            window_region(&p, &b, job, i);
        resample(&p, &b, job->out + (size_t)i * pixels);
    }
    intensity_apply(&p.crop, job->out, p.planes, job->size, p.colour, b.intensity);
    normalise(norm, job->out, pixels, p.planes);
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
