/* augment.c: see augment.h. Crops are drawn as random resized crops are everywhere: an area and an aspect, ten tries to
 * fit the frame, then the largest centred crop of a permitted aspect; positions are not rounded to pixels. */
#include "preprocess/augment.h"

#include <math.h>
#include <string.h>

enum { TRIES = 10 };

void augment_defaults(augment_options *o)
{
    augment_essa(o);
    o->window = 0.1f;
    o->solarize_grey = 0;
    o->global_scale[0] = o->local_scale[1] = 0.5f;
    o->local_scale[0] = 0.2f;
    o->brightness = o->contrast = 0.3f;
}

void augment_essa(augment_options *o)
{
    *o = (augment_options){.global_scale = {0.32f, 1.0f},
                           .local_scale = {0.05f, 0.32f},
                           .ratio = {0.75f, 4.0f / 3.0f},
                           .flip = 0.5f,
                           .jitter = 0.8f,
                           .brightness = 0.4f,
                           .contrast = 0.4f,
                           .saturation = 0.2f,
                           .hue = 0.1f,
                           .gray = 0.2f,
                           .blur = {1.0f, 0.1f, 0.5f},
                           .blur_sigma = {0.1f, 2.0f},
                           .solarize = 0.2f,
                           .solarize_grey = 1};
}

static float aspect(const float ratio[2], rng *r)
{
    return expf(rng_between(r, logf(ratio[0]), logf(ratio[1])));
}

static bool chance(float probability, rng *r)
{
    return rng_uniform(r) < probability;
}

static float around(float x, rng *r)
{
    return rng_between(r, -x, x);
}

static void draw_box(crop_params *c, const frame_info *f, const float scale[2], const float ratio[2], rng *r)
{
    float w = (float)f->columns, h = (float)f->rows;
    for (int i = 0; i < TRIES; i++) {
        float area = w * h * rng_between(r, scale[0], scale[1]), a = aspect(ratio, r);
        c->width = sqrtf(area * a);
        c->height = sqrtf(area / a);
        if (!(c->width <= w && c->height <= h)) continue;
        c->x = rng_uniform(r) * (w - c->width);
        c->y = rng_uniform(r) * (h - c->height);
        return;
    }
    c->width = fminf(w, h * ratio[1]);
    c->height = fminf(h, w / ratio[0]);
    c->x = (w - c->width) / 2;
    c->y = (h - c->height) / 2;
}

static bool has_window(const frame_info *f)
{
    return !strcmp(f->modality, "CT") || !strcmp(f->modality, "MR") || !strcmp(f->modality, "NIFTI");
}

crop_params augment_ssl(const augment_options *o, const frame_info *f, crop_role role, rng *r)
{
    crop_params c = {0};
    bool colour = f->channels == 3;
    draw_box(&c, f, role == CROP_LOCAL ? o->local_scale : o->global_scale, o->ratio, r);
    c.flip = chance(o->flip, r);
    if (chance(o->jitter, r)) {
        c.brightness = around(o->brightness, r);
        c.contrast = around(o->contrast, r);
        if (colour) {
            c.saturation = around(o->saturation, r);
            c.hue = around(o->hue, r);
        }
    }
    if (colour)
        c.gray = chance(o->gray, r);
    else if (has_window(f)) {
        c.window_shift = around(o->window, r);
        c.window_scale = around(o->window, r);
    }
    if (chance(o->blur[role], r)) c.blur_sigma = rng_between(r, o->blur_sigma[0], o->blur_sigma[1]);
    float solarize = colour ? o->solarize : o->solarize * o->solarize_grey;
    if (role == CROP_GLOBAL2 && solarize > 0 && chance(solarize, r)) c.solarize = 0.5f;
    return c;
}

/* The box may be larger than the frame: its place is then drawn from those that hold the whole frame. */
crop_params augment_supervised(const frame_info *f, const float scale[2], float flip, float jitter, rng *r)
{
    static const float ratio[2] = {0.75f, 4.0f / 3.0f};
    float w = (float)f->columns, h = (float)f->rows, a = aspect(ratio, r);
    float area = w * h * rng_between(r, scale[0], scale[1]);
    crop_params c = {.width = sqrtf(area * a), .height = sqrtf(area / a)};
    c.x = rng_uniform(r) * (w - c.width);
    c.y = rng_uniform(r) * (h - c.height);
    c.flip = chance(flip, r);
    c.brightness = around(jitter, r);
    c.contrast = around(jitter, r);
    return c;
}
