/* phantom_draw.c: ellipses and Gaussians in the unit square; x to the patient's left, y to the back (CT) or feet (CR).
 */
#include "cli/phantom_draw.h"

#include <math.h>

phantom_body phantom_draw_body(bool lesion, rng *r)
{
    phantom_body b = {.width = rng_between(r, 0.40f, 0.45f),
                      .height = rng_between(r, 0.30f, 0.35f),
                      .lung_width = rng_between(r, 0.13f, 0.155f),
                      .lung_height = rng_between(r, 0.18f, 0.22f),
                      .heart = rng_between(r, 0.07f, 0.095f),
                      .lesion = lesion,
                      .exposure = rng_between(r, 0.85f, 1.15f)};
    b.lesion_side = rng_uniform(r) < 0.5f ? -1.0f : 1.0f;
    b.lesion_x = rng_between(r, 0.17f, 0.23f);
    b.lesion_y = rng_between(r, -0.06f, 0.06f);
    b.lesion_radius = rng_between(r, 0.085f, 0.115f);
    return b;
}

/* Below 1 inside the ellipse. */
static float ellipse(float x, float y, float cx, float cy, float rx, float ry)
{
    float u = (x - cx) / rx, v = (y - cy) / ry;
    return u * u + v * v;
}

static float slice_point(const phantom_body *b, float x, float y, float z)
{
    float body = ellipse(x, y, 0, 0, b->width, b->height);
    if (body > 1) return -1000;   /* air */
    if (body > 0.86f) return -90; /* fat */
    float hu = 45;                /* muscle */
    float taper = 1 - 0.25f * z * z;
    for (int side = -1; side <= 1; side += 2)
        if (ellipse(x, y, (float)side * 0.2f, -0.01f, b->lung_width * taper, b->lung_height * taper) < 1) hu = -830;
    if (ellipse(x, y, 0.05f, -0.08f, b->heart, b->heart) < 1) hu = 60;
    if (ellipse(x, y, 0, 0.19f, 0.05f, 0.055f) < 1) hu = 350; /* vertebra */
    if (ellipse(x, y, 0, 0.19f, 0.018f, 0.018f) < 1) hu = 30; /* canal */
    float ring = sqrtf(body), along = atan2f(y, x) * 9 + z * 5;
    if (ring > 0.84f && ring < 0.9f && sinf(along) > 0.55f) hu = 500; /* ribs, oblique to the slice */
    if (b->lesion) {
        float dz = 0.07f * z, r2 = ellipse(x, y, b->lesion_side * b->lesion_x, b->lesion_y, 1, 1) + dz * dz;
        float edge = 1 + 0.15f * sinf(7 * atan2f(y - b->lesion_y, x - b->lesion_side * b->lesion_x));
        if (r2 < b->lesion_radius * b->lesion_radius * edge) hu = 180; /* solid, spiculated, calcified */
    }
    return hu;
}

void phantom_draw_ct(const phantom_body *b, int size, float z, float outside, rng *noise, float *hu)
{
    for (int i = 0; i < size; i++)
        for (int j = 0; j < size; j++) {
            float x = ((float)j + 0.5f) / (float)size - 0.5f, y = ((float)i + 0.5f) / (float)size - 0.5f;
            float v = slice_point(b, x, y, z) + 18 * rng_normal(noise);
            hu[i * size + j] = x * x + y * y > 0.25f ? outside : v;
        }
}

static float gaussian(float x, float y, float cx, float cy, float s)
{
    return expf(-((x - cx) * (x - cx) + (y - cy) * (y - cy)) / (2 * s * s));
}

/* Soft step: 1 well inside the ellipse, 0 outside. */
static float inside(float x, float y, float cx, float cy, float rx, float ry)
{
    return 1 / (1 + expf(12 * (sqrtf(ellipse(x, y, cx, cy, rx, ry)) - 1)));
}

static float radiograph_point(const phantom_body *b, float x, float y)
{
    float v = 0.08f + 0.55f * inside(x, y, 0, 0.1f, b->width, 0.62f);
    for (int side = -1; side <= 1; side += 2)
        v -= 0.36f * inside(x, y, (float)side * 0.2f, -0.02f, b->lung_width, 1.6f * b->lung_height);
    v += 0.30f * inside(x, y, 0.06f, 0.1f, 1.3f * b->heart, 1.7f * b->heart);
    v += 0.16f * inside(x, y, 0, 0, 0.04f, 0.6f);              /* spine */
    v += 0.25f / (1 + expf(-40 * (y - 0.33f + 0.3f * x * x))); /* diaphragm */
    float rib = sinf(38 * (y + 0.55f * x * x));
    if (fabsf(x) > 0.06f && fabsf(x) < b->width) v += 0.05f * rib * (rib > 0);
    if (b->lesion) v += 0.55f * gaussian(x, y, b->lesion_side * b->lesion_x, b->lesion_y, 0.62f * b->lesion_radius);
    return v;
}

void phantom_draw_cr(const phantom_body *b, int rows, int columns, rng *noise, float *value)
{
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) {
            float x = ((float)j + 0.5f) / (float)columns - 0.5f;
            float y = (((float)i + 0.5f) / (float)rows - 0.5f) * (float)rows / (float)columns;
            float v = b->exposure * radiograph_point(b, x, y) + 0.012f * rng_normal(noise);
            value[i * columns + j] = v < 0 ? 0 : v > 1 ? 1 : v;
        }
}
