/* sample_plan.c: see sample_plan.h. */
#include "preprocess/sample_plan.h"

#include <assert.h>
#include <math.h>

/* --- axes --- */
/* Source pixels [start, end) of the image that output pixel i sees, before flipping; center in source pixels. */
static void axis_range(const sample_axis *a, int i, double *center, double *from, double *to, int *start, int *end)
{
    *center = a->begin + (i + 0.5) * a->scale;
    *from = fmax(floor(*center - a->support + 0.5), a->low);
    *to = fmin(floor(*center + a->support + 0.5), a->high);
    *start = (int)fmin(fmax(*from, 0), a->in);
    *end = (int)fmin(fmax(*to, *start), a->in);
}

static sample_axis axis_of(double begin, double length, int in, int out, bool flip)
{
    sample_axis a = {.begin = begin, .scale = length / out, .in = in, .out = out, .flip = flip};
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

void sample_plan_weigh(const sample_axis *a, int *start, int *n, float *weight)
{
    double shrink = 1 / fmax(a->scale, 1);
    for (int i = 0; i < a->out; i++) {
        double center, from, to, sum = 0;
        int first, end, at = a->flip ? a->out - 1 - i : i;
        axis_range(a, i, &center, &from, &to, &first, &end);
        for (double k = from; k < to; k++) sum += cubic((k - center + 0.5) * shrink);
        start[at] = first;
        n[at] = end - first;
        assert(end - first <= a->stride);
        for (int k = first; k < end; k++)
            weight[(size_t)at * (size_t)a->stride + (size_t)(k - first)] =
                sum != 0 ? (float)(cubic((k - center + 0.5) * shrink) / sum) : 0;
    }
}

/* --- windows --- */
static bool straight_of(const frame_info *f, const voi_window *w, sample_line *out)
{
    double center = w->center, width = w->width;
    if (w->function == VOI_SIGMOID) return false;
    if (w->function == VOI_LINEAR) {
        center -= 0.5;
        width -= 1;
    }
    double factor = f->slope / width, offset = (f->intercept - center) / width + 0.5;
    if (!(width > 0) || !(fabs(factor) < 1e6) || !(fabs(offset) < 1e6)) return false;
    out->factor = (float)(f->invert ? -factor : factor);
    out->offset = (float)(f->invert ? 1 - offset : offset);
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

static sample_line line_of(const frame_info *f, const voi_window *w)
{
    sample_line line = {0};
    line.straight = straight_of(f, w, &line);
    padding_codes(f, &line.pad_low, &line.pad_high);
    return line;
}

static bool same_window(const voi_window *a, const voi_window *b)
{
    return a->function == b->function && a->center == b->center && a->width == b->width;
}

/* --- a job --- */
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

sample_plan sample_plan_of(const sampler_norm *norm, const sample_job *job)
{
    const frame_info *f = job->frame;
    crop_params c = sane(job);
    sample_plan p = {.crop = c,
                     .x = axis_of(c.x, c.width, f->columns, job->size, c.flip),
                     .y = axis_of(c.y, c.height, f->rows, job->size, false),
                     .colour = f->channels == 3};
    assert(job->size > 0 && (p.colour ? f->type == PIXEL_U8 : f->type == PIXEL_I16 || f->type == PIXEL_U16));
    if (!p.colour) window_choose(&norm->window, f, p.window);
    for (int i = 0; i < 3 && !p.colour; i++) {
        p.window[i].center += (double)c.window_shift * p.window[i].width;
        p.window[i].width *= 1 + (double)c.window_scale;
        p.line[i] = line_of(f, &p.window[i]);
    }
    bool same = same_window(&p.window[0], &p.window[1]) && same_window(&p.window[0], &p.window[2]);
    p.empty = p.x.last <= p.x.first || p.y.last <= p.y.first;
    p.planes = p.empty ? 1 : p.colour || !same ? 3 : 1;
    return p;
}

void sample_plan_norm(const sampler_norm *norm, float mean[3], float factor[3])
{
    for (int c = 0; c < 3; c++) {
        mean[c] = isfinite(norm->mean[c]) ? norm->mean[c] : 0;
        factor[c] = isnormal(norm->std[c]) ? 1 / norm->std[c] : 1;
    }
}
