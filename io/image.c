/* image.c: sniffs the format, checks that the header makes sense, and turns the codec's bytes into stored values: bits
 * masked and sign-extended, planes interleaved, palettes and YBR turned into RGB. */
#include "io/image.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/file.h"
#include "io/dicom_dcmtk.h"
#include "io/j2k.h"
#include "io/nifti_itk.h"

enum { SIDE_MAX = 65535, FRAMES_MAX = 100000 };
#define VALUES_MAX ((size_t)1 << 29) /* of one frame */

struct image {
    const image_header *h;
    dicom_file *dicom;
    nifti_volume *nifti;
    void *pixels, *raw; /* grown, kept between frames */
    size_t pixels_bytes, raw_bytes;
    dicom_palette palette;
    bool has_palette;
};

size_t pixel_bytes(pixel_type t)
{
    switch (t) {
    case PIXEL_U8:
        return 1;
    case PIXEL_I16:
    case PIXEL_U16:
        return 2;
    case PIXEL_I32:
    case PIXEL_F32:
        return 4;
    }
    return 0;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

/* Without a preamble: the first element is in group 0002 or 0008, in an order and with a VR or length that can be. */
static bool looks_like_dataset(const unsigned char *b, size_t n)
{
    if (n < 16) return false;
    bool little = (b[0] == 2 || b[0] == 8) && b[1] == 0 && b[3] == 0;
    bool big = b[0] == 0 && (b[1] == 2 || b[1] == 8) && b[2] == 0;
    if (!little && !big) return false;
    bool vr = b[4] >= 'A' && b[4] <= 'Z' && b[5] >= 'A' && b[5] <= 'Z';
    uint32_t length = (uint32_t)b[4] | (uint32_t)b[5] << 8 | (uint32_t)b[6] << 16 | (uint32_t)b[7] << 24;
    return vr || (little && length <= 64);
}

static image_format sniff(const char *path, const file_map *m, uint32_t *quirks)
{
    const unsigned char *b = m->data;
    size_t n = m->bytes;
    if (n >= 132 && !memcmp(b + 128, "DICM", 4)) return IMAGE_DICOM;
    if (n >= 348 && (!memcmp(b + 344, "n+1", 4) || (n >= 540 && !memcmp(b + 4, "n+2", 4)))) return IMAGE_NIFTI;
    if (n >= 18 && b[0] == 0x1f && b[1] == 0x8b && ends_with(path, ".nii.gz")) return IMAGE_NIFTI;
    if (looks_like_dataset(b, n)) {
        *quirks |= QUIRK_NO_PREAMBLE;
        return IMAGE_DICOM;
    }
    return IMAGE_NONE;
}

static err_code check_dicom(image_header *h, err *e)
{
    if (!h->has_pixels) return ERR_OK;
    if (h->rows < 1 || h->columns < 1 || h->rows > SIDE_MAX || h->columns > SIDE_MAX)
        FAIL(e, FORMAT, "DICOM: %d rows, %d columns", h->rows, h->columns);
    if (h->frames > FRAMES_MAX) FAIL(e, LIMIT, "DICOM: %d frames", h->frames);
    if (h->samples != 1 && h->samples != 3) FAIL(e, UNSUPPORTED, "DICOM: %d samples a pixel", h->samples);
    if (h->bits_allocated != 8 && h->bits_allocated != 16 && h->bits_allocated != 32)
        FAIL(e, UNSUPPORTED, "DICOM: %d bits allocated", h->bits_allocated);
    if (h->bits_stored < 1 || h->bits_stored > h->bits_allocated || h->high_bit < h->bits_stored - 1 ||
        h->high_bit >= h->bits_allocated)
        FAIL(e, FORMAT, "DICOM: %d bits stored, high bit %d, in %d", h->bits_stored, h->high_bit, h->bits_allocated);
    if (h->high_bit != h->bits_stored - 1) h->quirks |= QUIRK_HIGH_BIT;
    if (h->photometric == PHOTOMETRIC_UNKNOWN) FAIL(e, UNSUPPORTED, "DICOM: photometric interpretation not supported");
    bool one = h->photometric <= PHOTOMETRIC_PALETTE;
    if (one != (h->samples == 1))
        FAIL(e, CONFLICT, "DICOM: %d samples a pixel do not fit the photometric interpretation", h->samples);
    if (h->photometric == PHOTOMETRIC_YBR_PARTIAL_420) FAIL(e, UNSUPPORTED, "DICOM: YBR_PARTIAL_420");
    if (h->samples == 3 && h->bits_allocated == 32) FAIL(e, UNSUPPORTED, "DICOM: 32-bit colour");
    if ((size_t)h->rows * (size_t)h->columns * (size_t)h->samples > VALUES_MAX)
        FAIL(e, LIMIT, "DICOM: %dx%d pixels in a frame", h->columns, h->rows);
    return ERR_OK;
}

err_code image_read_header(const char *path, image_header *h, err *e)
{
    file_map m;
    *h = (image_header){0};
    TRY(file_map_open(&m, path, e));
    size_t bytes = m.bytes;
    h->format = bytes ? sniff(path, &m, &h->quirks) : IMAGE_NONE;
    file_map_close(&m);
    if (bytes == 0) FAIL(e, FORMAT, "the file is empty");
    switch (h->format) {
    case IMAGE_DICOM:
        TRY(dicom_read_header(path, h, e));
        return check_dicom(h, e);
    case IMAGE_NIFTI: {
        snprintf(h->modality, sizeof h->modality, "NIFTI");
        return nifti_read_header(path, bytes, h, e);
    }
    case IMAGE_NONE:
        break;
    }
    FAIL(e, FORMAT, "neither DICOM nor NIfTI");
}

void image_header_fini(image_header *h)
{
    free(h->modality_lut.data);
    free(h->voi_lut.data);
    h->modality_lut = h->voi_lut = (lookup_table){0};
}

err_code image_open(image **out, const char *path, const image_header *h, err *e)
{
    *out = NULL;
    image *im = calloc(1, sizeof *im);
    if (!im) FAIL(e, NOMEM, "no memory for an image");
    im->h = h;
    err_code rc;
    if (h->format == IMAGE_NIFTI) {
        file_map m;
        TRY_DONE(rc, file_map_open(&m, path, e));
        size_t bytes = m.bytes;
        file_map_close(&m);
        TRY_DONE(rc, nifti_open(&im->nifti, path, bytes, e));
    } else {
        if (!h->has_pixels) FAIL_DONE(rc, e, UNSUPPORTED, "DICOM: the object has no pixels");
        TRY_DONE(rc, dicom_open(&im->dicom, path, e));
        if (h->photometric == PHOTOMETRIC_PALETTE) {
            TRY_DONE(rc, dicom_read_palette(im->dicom, &im->palette, e));
            im->has_palette = true;
        }
    }
    *out = im;
    return ERR_OK;
done:
    image_close(im);
    return rc;
}

void image_close(image *im)
{
    if (!im) return;
    if (im->dicom) dicom_close(im->dicom);
    if (im->nifti) nifti_close(im->nifti);
    dicom_palette_fini(&im->palette);
    free(im->pixels);
    free(im->raw);
    free(im);
}

static err_code reserve(void **p, size_t *have, size_t want, err *e)
{
    if (want <= *have) return ERR_OK;
    void *q = realloc(*p, want);
    if (!q) FAIL(e, NOMEM, "no memory for a frame of %zu bytes", want);
    *p = q;
    *have = want;
    return ERR_OK;
}

static pixel_type grey_type(int bits, bool is_signed)
{
    if (bits > 16) return PIXEL_I32;
    if (is_signed) return PIXEL_I16;
    return bits > 8 ? PIXEL_U16 : PIXEL_U8;
}

static void store(void *out, pixel_type t, size_t i, int64_t v)
{
    switch (t) {
    case PIXEL_U8:
        ((uint8_t *)out)[i] = (uint8_t)v;
        break;
    case PIXEL_I16:
        ((int16_t *)out)[i] = (int16_t)v;
        break;
    case PIXEL_U16:
        ((uint16_t *)out)[i] = (uint16_t)v;
        break;
    case PIXEL_I32:
        ((int32_t *)out)[i] = (int32_t)(v > INT32_MAX ? INT32_MAX : v);
        break;
    case PIXEL_F32:
        ((float *)out)[i] = (float)v;
        break;
    }
}

/* Cell i of native pixel data, little endian. */
static uint32_t cell(const unsigned char *raw, int bits_allocated, size_t i)
{
    if (bits_allocated == 8) return raw[i];
    if (bits_allocated == 16) return (uint32_t)raw[2 * i] | (uint32_t)raw[2 * i + 1] << 8;
    return (uint32_t)raw[4 * i] | (uint32_t)raw[4 * i + 1] << 8 | (uint32_t)raw[4 * i + 2] << 16 |
           (uint32_t)raw[4 * i + 3] << 24;
}

/* PS3.5 8.1.1: the stored value sits below HighBit; what is above belongs to overlays of old. */
static int64_t stored_value(const image_header *h, uint32_t c)
{
    uint32_t mask = h->bits_stored == 32 ? UINT32_MAX : ((uint32_t)1 << h->bits_stored) - 1;
    uint32_t v = c >> (h->high_bit + 1 - h->bits_stored) & mask;
    if (h->is_signed && v >> (h->bits_stored - 1)) return (int64_t)v - (int64_t)mask - 1;
    return v;
}

static uint8_t to_byte(float v)
{
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : lrintf(v));
}

/* PS3.3 C.7.6.3.1.2, full range, 8 bits. */
static void ybr_to_rgb(uint8_t *rgb, size_t pixels)
{
    for (size_t i = 0; i < pixels; i++) {
        float y = rgb[3 * i], b = (float)rgb[3 * i + 1] - 128, r = (float)rgb[3 * i + 2] - 128;
        rgb[3 * i] = to_byte(y + 1.402f * r);
        rgb[3 * i + 1] = to_byte(y - 0.344136f * b - 0.714136f * r);
        rgb[3 * i + 2] = to_byte(y + 1.772f * b);
    }
}

/* Colour from native cells: interleaved 8-bit; deeper samples keep their upper 8 bits. */
static void unpack_colour(const image_header *h, const unsigned char *raw, uint8_t *out, bool interleaved)
{
    size_t pixels = (size_t)h->rows * (size_t)h->columns;
    int drop = h->bits_stored > 8 ? h->bits_stored - 8 : 0;
    for (size_t i = 0; i < pixels; i++)
        for (size_t c = 0; c < 3; c++)
            out[3 * i + c] =
                (uint8_t)(stored_value(h, cell(raw, h->bits_allocated, interleaved ? 3 * i + c : c * pixels + i)) >>
                          drop);
}

/* YBR_FULL_422, uncompressed: Y1 Y2 Cb Cr for two pixels of a row (PS3.3 C.7.6.3.1.2). */
static void unpack_422(const image_header *h, const unsigned char *raw, uint8_t *out)
{
    size_t pixels = (size_t)h->rows * (size_t)h->columns;
    for (size_t i = 0; i + 1 < pixels; i += 2) {
        const unsigned char *q = raw + 2 * i;
        for (size_t k = 0; k < 2; k++) {
            out[3 * (i + k)] = q[k];
            out[3 * (i + k) + 1] = q[2];
            out[3 * (i + k) + 2] = q[3];
        }
    }
}

static bool is_jpeg_2000(const char *syntax)
{
    static const char *const j2k[] = {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.201",
                                      "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"};
    for (size_t i = 0; i < sizeof j2k / sizeof *j2k; i++)
        if (!strcmp(syntax, j2k[i])) return true;
    return false;
}

static err_code frame_j2k(image *im, int frame, raw_frame *out, err *e)
{
    const image_header *h = im->h;
    unsigned char *bytes = NULL;
    size_t n, values = (size_t)h->rows * (size_t)h->columns * (size_t)h->samples;
    j2k_image j = {0};
    err_code rc;
    TRY_DONE(rc, dicom_codestream(im->dicom, h, frame, &bytes, &n, e));
    TRY_DONE(rc, j2k_decode(bytes, n, values, &j, e));
    if (j.rows != h->rows || j.columns != h->columns || j.samples != h->samples)
        FAIL_DONE(rc, e, CONFLICT, "JPEG 2000: codestream is %dx%dx%d, the header says %dx%dx%d", j.columns, j.rows,
                  j.samples, h->columns, h->rows, h->samples);
    /* The header wins: bits of two's complement coded as unsigned, or the reverse. */
    int64_t wrap = j.is_signed == h->is_signed ? 0 : (int64_t)1 << j.bits;
    if (j.is_signed != h->is_signed) out->quirks |= QUIRK_SIGN_MISMATCH;
    int drop = h->samples == 3 && j.bits > 8 ? j.bits - 8 : 0;
    if (h->samples == 3)
        out->type = PIXEL_U8;
    else
        out->type = grey_type(j.bits, h->is_signed);
    TRY_DONE(rc, reserve(&im->pixels, &im->pixels_bytes, values * pixel_bytes(out->type), e));
    for (size_t i = 0; i < values; i++) {
        int64_t v = j.values[i];
        if (wrap && h->is_signed && v >> (j.bits - 1)) v -= wrap;
        if (wrap && !h->is_signed && v < 0) v += wrap;
        store(im->pixels, out->type, i, v >> drop);
    }
    if (h->photometric == PHOTOMETRIC_YBR_FULL) ybr_to_rgb(im->pixels, values / 3);
done:
    free(j.values);
    free(bytes);
    return rc;
}

static err_code frame_dicom(image *im, int frame, raw_frame *out, err *e)
{
    const image_header *h = im->h;
    size_t values = (size_t)h->rows * (size_t)h->columns * (size_t)h->samples;
    size_t raw_bytes = values * (size_t)(h->bits_allocated / 8) + 8;
    bool rgb;
    TRY(reserve(&im->raw, &im->raw_bytes, raw_bytes, e));
    TRY(dicom_frame(im->dicom, h, frame, im->raw, raw_bytes, &rgb, e));
    bool jpeg = !strncmp(h->transfer_syntax, "1.2.840.10008.1.2.4.", 20);
    out->type = h->samples == 3 ? PIXEL_U8 : grey_type(h->bits_stored, h->is_signed);
    TRY(reserve(&im->pixels, &im->pixels_bytes, values * pixel_bytes(out->type), e));
    if (h->samples == 1) {
        for (size_t i = 0; i < values; i++)
            store(im->pixels, out->type, i, stored_value(h, cell(im->raw, h->bits_allocated, i)));
        return ERR_OK;
    }
    bool native = !jpeg && strcmp(h->transfer_syntax, "1.2.840.10008.1.2.5") != 0;
    if (native && h->photometric == PHOTOMETRIC_YBR_FULL_422)
        unpack_422(h, im->raw, im->pixels);
    else
        unpack_colour(h, im->raw, im->pixels, jpeg || !h->planar);
    if (!rgb && h->photometric != PHOTOMETRIC_RGB) ybr_to_rgb(im->pixels, values / 3);
    return ERR_OK;
}

/* PS3.3 C.7.6.3.1.5: values below the first entry take it, above the last take the last. */
static err_code expand_palette(image *im, raw_frame *f, err *e)
{
    size_t n = (size_t)f->rows * (size_t)f->columns;
    void *indices = im->pixels;
    pixel_type type = f->type;
    uint8_t *rgb = malloc(3 * n);
    if (!rgb) FAIL(e, NOMEM, "no memory for a colour frame");
    for (size_t i = 0; i < n; i++) {
        int v = type == PIXEL_U8    ? ((uint8_t *)indices)[i]
                : type == PIXEL_U16 ? ((uint16_t *)indices)[i]
                : type == PIXEL_I16 ? ((int16_t *)indices)[i]
                                    : ((int32_t *)indices)[i];
        for (int c = 0; c < 3; c++) {
            long k = (long)v - im->palette.first[c];
            k = k < 0 ? 0 : k >= im->palette.entries[c] ? im->palette.entries[c] - 1 : k;
            rgb[3 * i + (size_t)c] = im->palette.entry[c][k];
        }
    }
    free(im->pixels);
    im->pixels = rgb;
    im->pixels_bytes = 3 * n;
    f->type = PIXEL_U8;
    f->samples = 3;
    return ERR_OK;
}

static bool constant(const void *pixels, size_t bytes, size_t cell_bytes)
{
    return bytes <= cell_bytes || !memcmp(pixels, (const char *)pixels + cell_bytes, bytes - cell_bytes);
}

err_code image_frame(image *im, int frame, raw_frame *out, err *e)
{
    const image_header *h = im->h;
    if (frame < 0 || frame >= h->frames) FAIL(e, INTERNAL, "frame %d of %d", frame, h->frames);
    raw_frame f = {.rows = h->rows, .columns = h->columns, .samples = h->samples};
    if (h->format == IMAGE_NIFTI) {
        size_t n = (size_t)h->rows * (size_t)h->columns;
        f.type = PIXEL_F32;
        TRY(reserve(&im->pixels, &im->pixels_bytes, n * sizeof(float), e));
        TRY(nifti_frame(im->nifti, frame, im->pixels, n, e));
    } else if (is_jpeg_2000(h->transfer_syntax))
        TRY(frame_j2k(im, frame, &f, e));
    else
        TRY(frame_dicom(im, frame, &f, e));
    if (im->has_palette) TRY(expand_palette(im, &f, e));
    size_t cell_bytes = pixel_bytes(f.type) * (size_t)f.samples;
    if (constant(im->pixels, (size_t)f.rows * (size_t)f.columns * cell_bytes, cell_bytes)) f.quirks |= QUIRK_CONSTANT;
    f.pixels = im->pixels;
    *out = f;
    return ERR_OK;
}
