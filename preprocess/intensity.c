/* intensity.c: see intensity.h. Every clip turns NaN into 0, so that no parameter, however wild, reaches the model as
 * NaN.
 *
 * The blur is a Gaussian cut at three sigma, edges repeated; separable, with the loop over pixels inside the loop over
 * taps, so that it vectorises both ways. */
#include "preprocess/intensity.h"

#include <math.h>
#include <string.h>

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

static double mean_of(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    return sum / (double)n;
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
        for (size_t i = 0; i < pixels; i++) x[i] = clip(x[i] * factor + offset);
    }
}

/* Turns the hue by `turn` of a circle at the same saturation and value. */
static void turn_hue(float rgb[3], float turn)
{
    float high = fmaxf(rgb[0], fmaxf(rgb[1], rgb[2])), low = fminf(rgb[0], fminf(rgb[1], rgb[2])), chroma = high - low;
    if (!(chroma > 0)) return;
    float hue;
    if (high == rgb[0])
        hue = (rgb[1] - rgb[2]) / chroma;
    else if (high == rgb[1])
        hue = (rgb[2] - rgb[0]) / chroma + 2;
    else
        hue = (rgb[0] - rgb[1]) / chroma + 4;
    hue += 6 * turn;
    hue -= 6 * floorf(hue / 6);
    for (int c = 0; c < 3; c++) {
        float away = hue + (c == 0 ? 5 : c == 1 ? 3 : 1); /* the usual closed form of HSV -> RGB */
        away -= 6 * floorf(away / 6);
        rgb[c] = high - chroma * fmaxf(0, fminf(fminf(away, 4 - away), 1));
    }
}

static void colours(float *planes, size_t pixels, const crop_params *p)
{
    float turn = isfinite(p->hue) ? p->hue - rintf(p->hue) : 0;
    for (size_t i = 0; i < pixels; i++) {
        float rgb[3] = {planes[i], planes[pixels + i], planes[2 * pixels + i]};
        float grey = luma(rgb[0], rgb[1], rgb[2]);
        if (p->saturation != 0)
            for (int c = 0; c < 3; c++) rgb[c] = clip(grey + (rgb[c] - grey) * (1 + p->saturation));
        if (turn != 0) turn_hue(rgb, turn);
        if (p->gray) rgb[0] = rgb[1] = rgb[2] = luma(rgb[0], rgb[1], rgb[2]);
        for (int c = 0; c < 3; c++) planes[(size_t)c * pixels + i] = clip(rgb[c]);
    }
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
            float w = weight[k + radius];
            for (size_t i = 0; i < s; i++) out[i] += w * in[i];
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
        for (int k = 0; k <= 2 * radius; k++) {
            float w = weight[k];
            for (size_t i = 0; i < s; i++) out[i] += w * row[(size_t)k + i];
        }
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
    for (size_t i = 0; i < all; i++) planes[i] = clip(planes[i]);
}
