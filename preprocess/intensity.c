/* intensity.c: see intensity.h. Every clip turns NaN into 0, so that no parameter, however wild, reaches the model as
 * NaN.
 *
 * The blur is a Gaussian cut at three sigma, edges repeated; separable, with the loop over pixels inside the loop over
 * taps, so that it vectorises both ways. */
#include "preprocess/intensity.h"

#include <math.h>
#include <string.h>

#include "base/wide.h"

enum { RADIUS_MAX = 48 };
#define SIGMA_MAX 16.0f

size_t intensity_scratch(int size)
{
    size_t s = (size_t)size;
    return s * s + s + 2 * RADIUS_MAX;
}

static float clip(float x)
{
    x = x > 0 ? x : 0;
    return x < 1 ? x : 1;
}

static float luma(float r, float g, float b)
{
    return 0.299f * r + 0.587f * g + 0.114f * b;
}

WIDE static double mean_of(const float *x, size_t n)
{
    double sum[8] = {0}, all = 0; /* in turns, so that they are added at once */
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t k = 0; k < 8; k++) sum[k] += x[i + k];
    for (; i < n; i++) all += x[i];
    for (size_t k = 0; k < 8; k++) all += sum[k];
    return all / (double)n;
}

/* x = x * factor + offset, clipped to [0,1]. */
WIDE static void straight(float *x, float factor, float offset, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] = clip(x[i] * factor + offset);
}

/* Contrast around the mean (of a colour picture's luma), then brightness as a factor: black stays black. */
static void jitter(float *planes, int n, size_t pixels, bool colour, float contrast, float brightness)
{
    double luma_mean = 0;
    if (colour)
        luma_mean = luma((float)mean_of(planes, pixels), (float)mean_of(planes + pixels, pixels),
                         (float)mean_of(planes + 2 * pixels, pixels));
    for (int c = 0; c < n; c++) {
        float *x = planes + (size_t)c * pixels;
        float mean = (float)(colour ? luma_mean : mean_of(x, pixels));
        float factor = (1 + contrast) * (1 + brightness), offset = -contrast * mean * (1 + brightness);
        straight(x, factor, offset, pixels);
    }
}

/* Turns the hue by `turn` of a circle at the same saturation and value. Without branches: it is one of a loop's. */
static inline __attribute__((always_inline)) void turn_hue(float *r, float *g, float *b, float turn)
{
    float high = *r > *g ? *r : *g, low = *r < *g ? *r : *g;
    high = high > *b ? high : *b;
    low = low < *b ? low : *b;
    float chroma = high - low, inverse = 1 / (chroma > 0 ? chroma : 1); /* grey: chroma 0 below */
    float hue = high == *r ? (*g - *b) * inverse : high == *g ? (*b - *r) * inverse + 2 : (*r - *g) * inverse + 4;
    hue += 6 * turn;
    float *rgb[3] = {r, g, b};
    for (int c = 0; c < 3; c++) {
        float away = hue + (c == 0 ? 5.0f : c == 1 ? 3.0f : 1.0f); /* the usual closed form of HSV -> RGB */
        away -= 6 * floorf(away * (1 / 6.0f));
        float part = away < 4 - away ? away : 4 - away;
        part = part < 1 ? part : 1;
        *rgb[c] = high - chroma * (part > 0 ? part : 0);
    }
}

WIDE static void saturate(float *restrict r, float *restrict g, float *restrict b, float by, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float grey = luma(r[i], g[i], b[i]);
        r[i] = clip(grey + (r[i] - grey) * by);
        g[i] = clip(grey + (g[i] - grey) * by);
        b[i] = clip(grey + (b[i] - grey) * by);
    }
}

WIDE static void turn_hues(float *restrict r, float *restrict g, float *restrict b, float turn, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float x = r[i], y = g[i], z = b[i];
        turn_hue(&x, &y, &z, turn);
        r[i] = clip(x);
        g[i] = clip(y);
        b[i] = clip(z);
    }
}

WIDE static void to_grey(float *restrict r, float *restrict g, float *restrict b, size_t n)
{
    for (size_t i = 0; i < n; i++) r[i] = g[i] = b[i] = clip(luma(r[i], g[i], b[i]));
}

static void colours(float *planes, size_t pixels, const crop_params *p)
{
    float turn = isfinite(p->hue) ? p->hue - rintf(p->hue) : 0, *g = planes + pixels, *b = g + pixels;
    if (p->saturation != 0) saturate(planes, g, b, 1 + p->saturation, pixels);
    if (turn != 0) turn_hues(planes, g, b, turn, pixels);
    if (p->gray) to_grey(planes, g, b, pixels);
}

/* out += w * in */
WIDE static void add_scaled(float *restrict out, const float *restrict in, float w, size_t n)
{
    for (size_t i = 0; i < n; i++) out[i] += w * in[i];
}

/* scratch: a plane (size, size) and a row with RADIUS_MAX more on either side. */
static void blur(float *x, int size, float sigma, float *scratch)
{
    int radius = 3 * sigma < RADIUS_MAX ? (int)ceilf(3 * sigma) : RADIUS_MAX;
    float weight[2 * RADIUS_MAX + 1] = {0}, sum = 0;
    size_t s = (size_t)size;
    float *plane = scratch, *row = scratch + s * s;
    for (int k = -radius; k <= radius; k++) sum += weight[k + radius] = expf(-0.5f * (float)(k * k) / (sigma * sigma));
    for (int k = 0; k <= 2 * radius; k++) weight[k] /= sum;
    for (int y = 0; y < size; y++) { /* down the columns */
        float *out = plane + (size_t)y * s;
        memset(out, 0, s * sizeof *out);
        for (int k = -radius; k <= radius; k++) {
            int from = y + k < 0 ? 0 : y + k >= size ? size - 1 : y + k;
            const float *in = x + (size_t)from * s;
            add_scaled(out, in, weight[k + radius], s);
        }
    }
    for (int y = 0; y < size; y++) { /* along the rows */
        const float *in = plane + (size_t)y * s;
        float *out = x + (size_t)y * s;
        for (int i = 0; i < radius; i++) {
            row[i] = in[0];
            row[(size_t)radius + s + (size_t)i] = in[s - 1];
        }
        memcpy(row + radius, in, s * sizeof *in);
        memset(out, 0, s * sizeof *out);
        for (int k = 0; k <= 2 * radius; k++) add_scaled(out, row + k, weight[k], s);
    }
}

void intensity_apply(const crop_params *p, float *planes, int n, int size, bool colour, float *scratch)
{
    size_t pixels = (size_t)size * (size_t)size, all = (size_t)n * pixels;
    if (p->gamma != 0) {
        float exponent = 1 + p->gamma > 0 ? 1 + p->gamma : 0;
        for (size_t i = 0; i < all; i++) planes[i] = clip(powf(planes[i], exponent));
    }
    if (p->contrast != 0 || p->brightness != 0) jitter(planes, n, pixels, colour, p->contrast, p->brightness);
    if (colour && (p->saturation != 0 || p->hue != 0 || p->gray)) colours(planes, pixels, p);
    if (p->blur_sigma > 0.01f)
        for (int c = 0; c < n; c++)
            blur(planes + (size_t)c * pixels, size, p->blur_sigma < SIGMA_MAX ? p->blur_sigma : SIGMA_MAX, scratch);
    if (p->solarize > 0)
        for (size_t i = 0; i < all; i++) planes[i] = planes[i] >= p->solarize ? 1 - planes[i] : planes[i];
    straight(planes, 1, 0, all);
}
