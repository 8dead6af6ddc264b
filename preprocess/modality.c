/* modality.c: a raw grey frame becomes floats in modality units, in which NaN stands for "padding"; then it is reduced,
 * and only then coded in 16 bits, so that padding has a code of its own and never mixes with what lies beside it.
 *
 * Foreground, for the percentiles: every pixel that is not padding; for MR and NIfTI (arbitrary units, background at or
 * near the bottom) also only those above the frame's minimum, unless there are none. */
#include "preprocess/modality.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CODES = 65536 };

/* What the values look like before they are reduced. */
typedef struct {
    double low, high; /* of the values that are not padding */
    size_t valid, padding;
    bool integral;
} value_range;

static double stored_at(const raw_frame *raw, size_t i)
{
    switch (raw->type) {
    case PIXEL_U8:
        return ((const uint8_t *)raw->pixels)[i];
    case PIXEL_I16:
        return ((const int16_t *)raw->pixels)[i];
    case PIXEL_U16:
        return ((const uint16_t *)raw->pixels)[i];
    case PIXEL_I32:
        return ((const int32_t *)raw->pixels)[i];
    case PIXEL_F32:
        return ((const float *)raw->pixels)[i];
    }
    return 0;
}

/* PS3.3 C.11.1: the lookup table if there is one, else the rescale. Outside the table its ends count. */
static double to_modality(const image_header *h, double stored)
{
    const lookup_table *t = &h->modality_lut;
    if (t->present && t->entries > 0) {
        double k = stored - t->first;
        return t->data[!(k > 0) ? 0 : k >= t->entries ? t->entries - 1 : (int)k];
    }
    return h->has_rescale ? h->rescale_slope * stored + h->rescale_intercept : stored;
}

/* v[n] in modality units, NaN where padding; infinities and NaN of the file become the least finite value. */
static void read_values(const image_header *h, const raw_frame *raw, float *v, size_t n, uint32_t *quirks)
{
    float least = INFINITY;
    bool wild = false;
    for (size_t i = 0; i < n; i++) {
        double s = stored_at(raw, i);
        if (h->has_padding && s >= h->padding_low && s <= h->padding_high) {
            v[i] = NAN;
            continue;
        }
        v[i] = (float)to_modality(h, s);
        if (!isfinite(v[i])) {
            v[i] = INFINITY;
            wild = true;
        } else if (v[i] < least)
            least = v[i];
    }
    if (!wild) return;
    *quirks |= QUIRK_NOT_FINITE;
    if (!isfinite(least)) least = 0;
    for (size_t i = 0; i < n; i++)
        if (isinf(v[i])) v[i] = least;
}

static value_range look(const float *v, size_t n)
{
    value_range r = {.low = INFINITY, .high = -INFINITY, .integral = true};
    for (size_t i = 0; i < n; i++) {
        if (isnan(v[i])) {
            r.padding++;
            continue;
        }
        r.valid++;
        if (v[i] < r.low) r.low = v[i];
        if (v[i] > r.high) r.high = v[i];
        if (v[i] != rintf(v[i])) r.integral = false;
    }
    return r;
}

/* Share of the source's cell i that falls into the target's cells, when a side of `in` cells becomes one of `out` <=
 * in: cell i covers at most two of them, first and first + 1. */
typedef struct {
    int first;
    float share[2];
} area_share;

static void area_shares(area_share *s, int in, int out)
{
    double scale = (double)out / in;
    for (int i = 0; i < in; i++) {
        double begin = i * scale, end = (i + 1) * scale;
        int first = (int)begin;
        if (first > out - 1) first = out - 1;
        double inside = fmin(end, first + 1) - begin;
        s[i].first = first;
        s[i].share[0] = (float)inside;
        s[i].share[1] = first + 1 < out ? (float)fmax(end - begin - inside, 0) : 0;
    }
}

/* Area averages of v (rows, columns, channels) -> out (to_rows, to_columns, channels). NaN is left out of the averages;
 * where it covers more than half of a target pixel the result is NaN. */
static err_code reduce(const float *v, int rows, int columns, int channels, float *out, int to_rows, int to_columns,
                       err *e)
{
    size_t row = (size_t)to_columns * (size_t)channels, n = (size_t)to_rows * row;
    err_code rc = ERR_OK;
    area_share *sy = malloc((size_t)rows * sizeof *sy), *sx = malloc((size_t)columns * sizeof *sx);
    float *line = malloc(2 * row * sizeof *line), *weight = calloc(n, sizeof *weight);
    if (!sy || !sx || !line || !weight) FAIL_DONE(rc, e, NOMEM, "no memory to reduce a frame");
    area_shares(sy, rows, to_rows);
    area_shares(sx, columns, to_columns);
    memset(out, 0, n * sizeof *out);
    for (int y = 0; y < rows; y++) {
        const float *in = v + (size_t)y * (size_t)columns * (size_t)channels;
        float *line_weight = line + row;
        memset(line, 0, 2 * row * sizeof *line);
        for (int x = 0; x < columns; x++)
            for (int k = 0; k < 2; k++) {
                if (!(sx[x].share[k] > 0)) continue;
                for (int c = 0; c < channels; c++) {
                    float value = in[(size_t)x * (size_t)channels + (size_t)c];
                    if (isnan(value)) continue;
                    size_t to = (size_t)(sx[x].first + k) * (size_t)channels + (size_t)c;
                    line[to] += sx[x].share[k] * value;
                    line_weight[to] += sx[x].share[k];
                }
            }
        for (int k = 0; k < 2; k++) {
            float share = sy[y].share[k];
            if (!(share > 0)) continue;
            size_t to = (size_t)(sy[y].first + k) * row;
            for (size_t i = 0; i < row; i++) {
                out[to + i] += share * line[i];
                weight[to + i] += share * line_weight[i];
            }
        }
    }
    for (size_t i = 0; i < n; i++) out[i] = weight[i] > 0.4999f ? out[i] / weight[i] : NAN;
done:
    free(sy);
    free(sx);
    free(line);
    free(weight);
    return rc;
}

/* The coding of a frame: code = (value - intercept) / slope as `type`, and what padding is coded as. */
static void choose_code(const image_header *h, const value_range *r, frame_info *f)
{
    double p0 = to_modality(h, h->padding_low), p1 = to_modality(h, h->padding_high);
    f->slope = 1;
    f->intercept = 0;
    f->has_padding = r->padding > 0;
    f->padding_low = fmin(p0, p1);
    f->padding_high = fmax(p0, p1);
    double low = r->valid ? r->low : f->padding_low, high = r->valid ? r->high : f->padding_low;
    bool is_signed = low >= -32768 && high <= 32767, is_unsigned = low >= 0 && high <= 65535;
    if ((r->integral || !r->valid) && low == rint(low) && (is_signed || is_unsigned)) {
        double least = is_signed ? -32768 : 0, most = is_signed ? 32767 : 65535;
        f->type = is_signed ? PIXEL_I16 : PIXEL_U16;
        if (!f->has_padding) return;
        /* Kept where it is only if no value, nor an average of values, can be taken for it. */
        bool apart = f->padding_high < low || f->padding_low > high || !r->valid;
        if (apart && f->padding_low == rint(f->padding_low) && f->padding_low >= least && f->padding_low <= most)
            return;
        double own = low - 1 >= least ? low - 1 : high + 1;
        f->padding_low = f->padding_high = own;
        if (own <= most) return;
    }
    /* Codes 1 to 65535 span the values; code 0 is padding. */
    f->type = PIXEL_U16;
    f->slope = high > low ? (high - low) / 65534 : 1;
    f->intercept = low - f->slope;
    f->padding_low = f->padding_high = f->intercept;
}

static int to_code(const frame_info *f, float v)
{
    double code = rint((isnan(v) ? f->padding_low - f->intercept : v - f->intercept) / f->slope);
    double least = f->type == PIXEL_I16 ? -32768 : 0, most = f->type == PIXEL_I16 ? 32767 : 65535;
    return (int)(code < least ? least : code > most ? most : code);
}

/* numpy's default percentile (linear between ranks) of a histogram of `n` codes, which starts at code `first`. */
static double percentile(const uint32_t *histogram, int first, uint64_t n, double share)
{
    double rank = share * (double)(n - 1), below = 0, found[2] = {0, 0};
    double at[2] = {floor(rank), ceil(rank)};
    for (int k = 0; k < 2; k++) {
        uint64_t seen = 0;
        for (int i = 0; i < CODES; i++) {
            seen += histogram[i];
            if ((double)seen > at[k]) {
                found[k] = first + i;
                break;
            }
        }
    }
    below = rank - at[0];
    return found[0] + below * (found[1] - found[0]);
}

/* Codes v into out->pixels and fills low and high. v: NaN where padding. */
static err_code encode(const float *v, size_t n, modality_frame *out, err *e)
{
    frame_info *f = &out->info;
    int first = f->type == PIXEL_I16 ? -32768 : 0, least = CODES;
    uint64_t counted = 0;
    uint32_t *histogram = calloc(CODES, sizeof *histogram);
    if (!histogram) FAIL(e, NOMEM, "no memory for a histogram");
    for (size_t i = 0; i < n; i++) {
        int code = to_code(f, v[i]);
        if (f->type == PIXEL_I16)
            ((int16_t *)out->pixels)[i] = (int16_t)code;
        else
            ((uint16_t *)out->pixels)[i] = (uint16_t)code;
        if (isnan(v[i])) continue;
        histogram[code - first]++;
        counted++;
        if (code < least) least = code;
    }
    bool arbitrary = !strcmp(f->modality, "MR") || !strcmp(f->modality, "NIFTI");
    if (arbitrary && counted > histogram[least - first]) {
        counted -= histogram[least - first];
        histogram[least - first] = 0;
    }
    double low = counted ? percentile(histogram, first, counted, 0.005) : to_code(f, NAN);
    double high = counted ? percentile(histogram, first, counted, 0.995) : low;
    f->low = f->slope * low + f->intercept;
    f->high = f->slope * high + f->intercept;
    free(histogram);
    return ERR_OK;
}

/* A VOI LUT without a window beside it: the window from the last input that still gives the table's first value to the
 * first that gives its last, which is where the table does its work (PS3.3 C.11.2.1.1). */
static voi_window window_of_lut(const lookup_table *t)
{
    if (!t->present || t->entries < 2) return (voi_window){0};
    int begin = 0, end = t->entries - 1;
    while (begin + 1 < t->entries && t->data[begin + 1] == t->data[0]) begin++;
    while (end > 0 && t->data[end - 1] == t->data[t->entries - 1]) end--;
    if (end <= begin) return (voi_window){0};
    double low = (double)t->first + begin, high = (double)t->first + end;
    return (voi_window){true, VOI_LINEAR_EXACT, (low + high) / 2, high - low};
}

static void target_size(int rows, int columns, int store_size, int *to_rows, int *to_columns)
{
    int shorter = rows < columns ? rows : columns;
    *to_rows = rows;
    *to_columns = columns;
    if (store_size <= 0 || shorter <= store_size) return;
    *to_rows = (int)lrint((double)rows * store_size / shorter);
    *to_columns = (int)lrint((double)columns * store_size / shorter);
}

static err_code grey(const image_header *h, const raw_frame *raw, modality_frame *out, err *e)
{
    frame_info *f = &out->info;
    size_t from = (size_t)raw->rows * (size_t)raw->columns, to = (size_t)f->rows * (size_t)f->columns;
    err_code rc = ERR_OK;
    float *small = NULL, *v = malloc(from * sizeof *v);
    if (!v) FAIL_DONE(rc, e, NOMEM, "no memory for a frame of %zu pixels", from);
    read_values(h, raw, v, from, &f->quirks);
    value_range r = look(v, from);
    if (!r.valid || r.low == r.high) f->quirks |= QUIRK_CONSTANT;
    f->channels = 1;
    f->invert = h->photometric == PHOTOMETRIC_MONOCHROME1;
    f->window = h->window.present ? h->window : window_of_lut(&h->voi_lut);
    choose_code(h, &r, f);
    if (to != from) {
        small = malloc(to * sizeof *small);
        if (!small) FAIL_DONE(rc, e, NOMEM, "no memory for a frame of %zu pixels", to);
        TRY_DONE(rc, reduce(v, raw->rows, raw->columns, 1, small, f->rows, f->columns, e));
    }
    out->bytes = to * 2;
    out->pixels = malloc(out->bytes);
    if (!out->pixels) FAIL_DONE(rc, e, NOMEM, "no memory for a frame of %zu pixels", to);
    rc = encode(small ? small : v, to, out, e);
done:
    free(v);
    free(small);
    return rc;
}

static err_code colour(const image_header *h, const raw_frame *raw, modality_frame *out, err *e)
{
    frame_info *f = &out->info;
    size_t from = 3 * (size_t)raw->rows * (size_t)raw->columns, to = 3 * (size_t)f->rows * (size_t)f->columns;
    err_code rc = ERR_OK;
    float *v = NULL, *small = NULL;
    if (raw->type != PIXEL_U8) FAIL(e, INTERNAL, "a colour frame that is not 8-bit");
    if (h->has_rescale && (h->rescale_slope != 1 || h->rescale_intercept != 0)) f->quirks |= QUIRK_COLOR_RESCALE;
    f->channels = 3;
    f->type = PIXEL_U8;
    f->slope = 1;
    f->high = 255;
    out->bytes = to;
    out->pixels = malloc(to);
    if (!out->pixels) FAIL_DONE(rc, e, NOMEM, "no memory for a frame of %zu bytes", to);
    if (to == from)
        memcpy(out->pixels, raw->pixels, to);
    else {
        v = malloc(from * sizeof *v);
        small = malloc(to * sizeof *small);
        if (!v || !small) FAIL_DONE(rc, e, NOMEM, "no memory for a frame of %zu bytes", from);
        for (size_t i = 0; i < from; i++) v[i] = ((const uint8_t *)raw->pixels)[i];
        TRY_DONE(rc, reduce(v, raw->rows, raw->columns, 3, small, f->rows, f->columns, e));
        for (size_t i = 0; i < to; i++) ((uint8_t *)out->pixels)[i] = (uint8_t)lrintf(small[i]);
    }
done:
    free(v);
    free(small);
    return rc;
}

/* Position of the first row and column along the slice normal; the slices of a NIfTI file follow each other. */
static double position(const image_header *h, int frame)
{
    const double *o = h->orientation, *p = h->position_mm;
    if (!h->has_position || !h->has_orientation) return h->instance_number;
    double along =
        (o[1] * o[5] - o[2] * o[4]) * p[0] + (o[2] * o[3] - o[0] * o[5]) * p[1] + (o[0] * o[4] - o[1] * o[3]) * p[2];
    if (h->format == IMAGE_NIFTI) along += (frame - 1) * (h->slice_spacing_mm > 0 ? h->slice_spacing_mm : 1);
    return isfinite(along) ? along : h->instance_number;
}

err_code modality_apply(const image_header *h, const raw_frame *raw, int frame, int store_size, modality_frame *out,
                        err *e)
{
    *out = (modality_frame){0};
    assert(raw->rows > 0 && raw->columns > 0 && raw->pixels);
    if (raw->samples != 1 && raw->samples != 3) FAIL(e, UNSUPPORTED, "a frame of %d samples a pixel", raw->samples);
    frame_info *f = &out->info;
    target_size(raw->rows, raw->columns, store_size, &f->rows, &f->columns);
    if (f->rows > 65535 || f->columns > 65535) FAIL(e, LIMIT, "a frame of %dx%d pixels", f->columns, f->rows);
    f->frame = frame;
    f->quirks = h->quirks | raw->quirks;
    memcpy(f->modality, h->modality, sizeof f->modality);
    memcpy(f->body_part, h->body_part, sizeof f->body_part);
    f->sort_mm = position(h, frame);
    if (h->has_spacing) {
        f->spacing_mm[0] = h->spacing_mm[0] * raw->rows / f->rows;
        f->spacing_mm[1] = h->spacing_mm[1] * raw->columns / f->columns;
    }
    err_code rc = raw->samples == 1 ? grey(h, raw, out, e) : colour(h, raw, out, e);
    if (rc) modality_frame_fini(out);
    return rc;
}

void modality_frame_fini(modality_frame *f)
{
    free(f->pixels);
    *f = (modality_frame){0};
}
