/* Headers and pixels of files made here, byte by byte: layouts of stored bits, colour, promises that a file does not
 * keep, damage. Values against other readers: test_decode_values.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/rng.h"
#include "io/decode_worker.h"
#include "io/image.h"

#define SAMPLES "/usr/lib/python3/dist-packages/pydicom/data/test_files/"

/* --- a small DICOM writer: explicit VR little endian */
typedef struct {
    unsigned char bytes[16384];
    size_t n;
} buffer;

static void u16(buffer *b, unsigned v)
{
    b->bytes[b->n++] = (unsigned char)v;
    b->bytes[b->n++] = (unsigned char)(v >> 8);
}

static void u32(buffer *b, uint32_t v)
{
    u16(b, v & 0xffff);
    u16(b, v >> 16);
}

static void element(buffer *b, unsigned group, unsigned tag, const char *vr, const void *value, size_t bytes)
{
    u16(b, group);
    u16(b, tag);
    memcpy(b->bytes + b->n, vr, 2);
    b->n += 2;
    size_t padded = (bytes + 1) & ~(size_t)1;
    if (vr[0] == 'O' || !strcmp(vr, "SQ") || !strcmp(vr, "UN")) {
        u16(b, 0);
        u32(b, (uint32_t)padded);
    } else
        u16(b, (unsigned)padded);
    memset(b->bytes + b->n, vr[0] == 'U' || vr[0] == 'O' ? 0 : ' ', padded);
    memcpy(b->bytes + b->n, value, bytes);
    b->n += padded;
}

static void string(buffer *b, unsigned group, unsigned tag, const char *vr, const char *value)
{
    element(b, group, tag, vr, value, strlen(value));
}

static void us(buffer *b, unsigned group, unsigned tag, const char *vr, unsigned v)
{
    unsigned char two[2] = {(unsigned char)v, (unsigned char)(v >> 8)};
    element(b, group, tag, vr, two, 2);
}

typedef struct {
    unsigned rows, columns, samples, allocated, stored, high, is_signed, planar;
    const char *photometric, *frames;
    const void *pixels;
    size_t bytes;
    const char *extra_window; /* centre\width pairs: "40|400" */
    bool no_preamble;
    bool unknown; /* patient, UIDs and shape with VR UN, as a gateway without a dictionary writes them */
} recipe;

static void make(buffer *b, const recipe *r)
{
#define VR(name) (r->unknown ? "UN" : (name))
    b->n = 0;
    if (!r->no_preamble) {
        memset(b->bytes, 0, 128);
        memcpy(b->bytes + 128, "DICM", 4);
        b->n = 132;
        buffer meta = {.n = 0};
        string(&meta, 2, 0x10, "UI", "1.2.840.10008.1.2.1");
        unsigned char length[4] = {(unsigned char)meta.n};
        element(b, 2, 0, "UL", length, 4);
        memcpy(b->bytes + b->n, meta.bytes, meta.n);
        b->n += meta.n;
    }
    string(b, 8, 0x05, "CS", "ISO_IR 100");
    string(b, 8, 0x16, "UI", "1.2.840.10008.5.1.4.1.1.2");
    string(b, 8, 0x18, VR("UI"), "1.2.3.4");
    string(b, 8, 0x60, "CS", "CT");
    string(b, 0x10, 0x10, VR("PN"), "M\xfcller^J\xf6rg"); /* Latin-1 */
    string(b, 0x10, 0x20, VR("LO"), " 7 ");
    string(b, 0x20, 0x0d, VR("UI"), "1.2.3");
    string(b, 0x20, 0x0e, VR("UI"), "1.2.3.1");
    us(b, 0x28, 2, VR("US"), r->samples ? r->samples : 1);
    string(b, 0x28, 4, VR("CS"), r->photometric ? r->photometric : "MONOCHROME2");
    if (r->samples == 3) us(b, 0x28, 6, VR("US"), r->planar);
    if (r->frames) string(b, 0x28, 8, VR("IS"), r->frames);
    us(b, 0x28, 0x10, VR("US"), r->rows);
    us(b, 0x28, 0x11, VR("US"), r->columns);
    us(b, 0x28, 0x100, VR("US"), r->allocated);
    us(b, 0x28, 0x101, VR("US"), r->stored);
    us(b, 0x28, 0x102, VR("US"), r->high);
    us(b, 0x28, 0x103, VR("US"), r->is_signed);
    if (r->extra_window) {
        char center[64];
        snprintf(center, sizeof center, "%.*s", (int)strcspn(r->extra_window, "|"), r->extra_window);
        string(b, 0x28, 0x1050, VR("DS"), center);
        string(b, 0x28, 0x1051, VR("DS"), r->extra_window + strlen(center) + 1);
    }
    if (r->pixels) element(b, 0x7fe0, 0x10, r->allocated > 8 ? "OW" : "OB", r->pixels, r->bytes);
#undef VR
}

static char path[64];

static int set_up(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/radapt-image-XXXXXX");
    int fd = mkstemp(path);
    if (fd >= 0) close(fd);
    return fd < 0;
}

static int tear_down(void **state)
{
    (void)state;
    return unlink(path);
}

static void put(const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

static int64_t value(const raw_frame *f, size_t i)
{
    switch (f->type) {
    case PIXEL_U8:
        return ((const uint8_t *)f->pixels)[i];
    case PIXEL_I16:
        return ((const int16_t *)f->pixels)[i];
    case PIXEL_U16:
        return ((const uint16_t *)f->pixels)[i];
    case PIXEL_I32:
        return ((const int32_t *)f->pixels)[i];
    case PIXEL_F32:
        return (int64_t)((const float *)f->pixels)[i];
    }
    return 0;
}

/* Shape, then whatever else is set by name. */
#define R(rows_, columns_, samples_, allocated_, stored_, ...)                                                         \
    {                                                                                                                  \
        .rows = rows_, .columns = columns_, .samples = samples_, .allocated = allocated_, .stored = stored_,           \
        .high = __VA_ARGS__                                                                                            \
    }

/* Stored bits below HighBit, sign, overlay bits above, planes, YBR (PS3.5 8.1.1, PS3.3 C.7.6.3.1.2). */
static void test_layouts(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        recipe r;
        unsigned char pixels[12];
        pixel_type type;
        int samples;
        int64_t want[6];
        uint32_t quirks;
    } rows[] = {
        {"u8", R(1, 2, 1, 8, 8, 7), {0, 255}, PIXEL_U8, 1, {0, 255}, 0},
        {"i8", R(1, 2, 1, 8, 8, 7, .is_signed = 1), {0x80, 0x7f}, PIXEL_I16, 1, {-128, 127}, 0},
        {"u10", R(1, 2, 1, 16, 10, 9), {0xff, 3, 0, 0}, PIXEL_U16, 1, {1023, 0}, 0},
        {"u12, overlay bits", R(1, 2, 1, 16, 12, 11), {0xff, 0xff, 1, 0x80}, PIXEL_U16, 1, {4095, 1}, 0},
        {"i12", R(1, 2, 1, 16, 12, 11, .is_signed = 1), {0, 8, 0xff, 7}, PIXEL_I16, 1, {-2048, 2047}, 0},
        {"i12, overlay bits", R(1, 2, 1, 16, 12, 11, .is_signed = 1), {0, 0xf0, 0xff, 0x0f}, PIXEL_I16, 1, {0, -1}, 0},
        {"u12 at the top", R(1, 2, 1, 16, 12, 15), {0xf0, 0xff, 0x1f, 0}, PIXEL_U16, 1, {4095, 1}, QUIRK_HIGH_BIT},
        {"i13", R(1, 2, 1, 16, 13, 12, .is_signed = 1), {0, 0x10, 0xff, 0x0f}, PIXEL_I16, 1, {-4096, 4095}, 0},
        {"u16", R(1, 2, 1, 16, 16, 15), {0xff, 0xff, 0, 0x80}, PIXEL_U16, 1, {65535, 32768}, 0},
        {"i16", R(1, 2, 1, 16, 16, 15, .is_signed = 1), {0xff, 0xff, 0, 0x80}, PIXEL_I16, 1, {-1, -32768}, 0},
        {"u7 in 16", R(1, 2, 1, 16, 7, 6), {0xff, 0, 1, 0}, PIXEL_U8, 1, {127, 1}, 0},
        {"i32", R(1, 2, 1, 32, 32, 31, .is_signed = 1), {0, 0, 0, 0x80, 1, 0, 0, 0}, PIXEL_I32, 1, {INT32_MIN, 1}, 0},
        {"constant", R(1, 2, 1, 8, 8, 7), {9, 9}, PIXEL_U8, 1, {9, 9}, QUIRK_CONSTANT},
        {"rgb", R(1, 2, 3, 8, 8, 7, .photometric = "RGB"), {1, 2, 3, 4, 5, 6}, PIXEL_U8, 3, {1, 2, 3, 4, 5, 6}, 0},
        {"rgb planes",
         R(1, 2, 3, 8, 8, 7, .planar = 1, .photometric = "RGB"),
         {1, 4, 2, 5, 3, 6},
         PIXEL_U8,
         3,
         {1, 2, 3, 4, 5, 6},
         0},
        {"rgb of 16",
         R(1, 2, 3, 16, 16, 15, .photometric = "RGB"),
         {9, 1, 9, 2, 9, 3, 9, 4, 9, 5, 9, 6},
         PIXEL_U8,
         3,
         {1, 2, 3, 4, 5, 6},
         0},
        {"ybr grey",
         R(1, 2, 3, 8, 8, 7, .photometric = "YBR_FULL"),
         {77, 128, 128, 5, 128, 128},
         PIXEL_U8,
         3,
         {77, 77, 77, 5, 5, 5},
         0},
        {"ybr red",
         R(1, 2, 3, 8, 8, 7, .photometric = "YBR_FULL"),
         {76, 85, 255, 150, 44, 21},
         PIXEL_U8,
         3,
         {254, 0, 0, 0, 255, 1},
         0},
        {"ybr 422",
         R(1, 2, 3, 8, 8, 7, .photometric = "YBR_FULL_422"),
         {10, 20, 128, 128},
         PIXEL_U8,
         3,
         {10, 10, 10, 20, 20, 20},
         0},
    };
    static buffer b;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        recipe r = rows[i].r;
        size_t cells = 2 * r.samples;
        r.pixels = rows[i].pixels;
        r.bytes = r.photometric && !strcmp(r.photometric, "YBR_FULL_422") ? 4 : cells * r.allocated / 8;
        for (int form = 0; form < 3; form++) {
            bool headless = form == 1;
            r.no_preamble = headless;
            r.unknown = form == 2;
            make(&b, &r);
            put(b.bytes, b.n);
            image_header h;
            image *im;
            raw_frame f;
            err e = {0};
            if (image_read_header(path, &h, &e) || image_open(&im, path, &h, &e) || image_frame(im, 0, &f, &e))
                fail_msg("%s: %s", rows[i].name, e.msg);
            if (f.type != rows[i].type || f.samples != rows[i].samples)
                fail_msg("%s: type %d", rows[i].name, (int)f.type);
            for (size_t k = 0; k < cells; k++)
                if (value(&f, k) != rows[i].want[k])
                    fail_msg("%s: value %zu is %d", rows[i].name, k, (int)value(&f, k));
            uint32_t quirks = (h.quirks | f.quirks) & ~(uint32_t)QUIRK_NO_PREAMBLE;
            if (quirks != rows[i].quirks) fail_msg("%s: quirks %x", rows[i].name, quirks);
            assert_int_equal((h.quirks & QUIRK_NO_PREAMBLE) != 0, headless);
            assert_string_equal(h.patient_name, "M\xc3\xbcller^J\xc3\xb6rg"); /* UTF-8 */
            assert_string_equal(h.patient_id, "7");
            assert_string_equal(h.study_uid, "1.2.3");
            assert_string_equal(h.sop_uid, "1.2.3.4");
            image_close(im);
            image_header_fini(&h);
        }
    }
}

/* A header's promise is checked against the bytes that are there. */
static void test_promises(void **state)
{
    (void)state;
    static const unsigned char pixels[64] = {1, 2, 3};
#define P .pixels = pixels, .bytes = 64
    static const struct {
        const char *name;
        recipe r;
        err_code code;
        int frames;
        uint32_t quirk;
    } rows[] = {
        {"right", R(8, 8, 1, 8, 8, 7, P), ERR_OK, 1, 0},
        {"more bytes than frames", R(4, 8, 1, 8, 8, 7, P), ERR_OK, 1, QUIRK_LONG_PIXEL_DATA},
        {"two frames", R(4, 8, 1, 8, 8, 7, P, .frames = "2"), ERR_OK, 2, 0},
        {"three frames in two", R(4, 8, 1, 8, 8, 7, P, .frames = "3"), ERR_OK, 2, QUIRK_FRAME_COUNT},
        {"2^31-1 frames", R(4, 8, 1, 8, 8, 7, P, .frames = "2147483647"), ERR_OK, 2, QUIRK_FRAME_COUNT},
        {"no number of frames", R(8, 8, 1, 8, 8, 7, P, .frames = "x"), ERR_OK, 1, 0},
        {"minus frames", R(8, 8, 1, 8, 8, 7, P, .frames = "-5"), ERR_OK, 1, 0},
        {"a row too much", R(9, 8, 1, 8, 8, 7, P), ERR_TRUNCATED, 0, 0},
        {"65535 squared", R(65535, 65535, 1, 16, 16, 15, P), ERR_TRUNCATED, 0, 0},
        {"colour of 65535 squared", R(65535, 65535, 3, 16, 16, 15, P, .photometric = "RGB"), ERR_TRUNCATED, 0, 0},
        {"no rows", R(0, 8, 1, 8, 8, 7, P), ERR_FORMAT, 0, 0},
        {"no columns", R(8, 0, 1, 8, 8, 7, P), ERR_FORMAT, 0, 0},
        {"no bits", R(8, 8, 1, 8, 0, 7, P), ERR_FORMAT, 0, 0},
        {"more bits than cells", R(8, 8, 1, 8, 12, 11, P), ERR_FORMAT, 0, 0},
        {"high bit below", R(4, 8, 1, 16, 12, 5, P), ERR_FORMAT, 0, 0},
        {"high bit above", R(4, 8, 1, 16, 12, 16, P), ERR_FORMAT, 0, 0},
        {"one bit", R(8, 8, 1, 1, 1, 0, P), ERR_UNSUPPORTED, 0, 0},
        {"64 bits", R(2, 4, 1, 64, 64, 63, P), ERR_UNSUPPORTED, 0, 0},
        {"four samples", R(4, 4, 4, 8, 8, 7, P, .photometric = "RGB"), ERR_UNSUPPORTED, 0, 0},
        {"grey with three samples", R(4, 4, 3, 8, 8, 7, P), ERR_CONFLICT, 0, 0},
        {"RGB with one", R(8, 8, 1, 8, 8, 7, P, .photometric = "RGB"), ERR_CONFLICT, 0, 0},
        {"CMYK", R(8, 8, 1, 8, 8, 7, P, .photometric = "CMYK"), ERR_UNSUPPORTED, 0, 0},
    };
#undef P
    static buffer b;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        image_header h;
        err e = {0};
        make(&b, &rows[i].r);
        put(b.bytes, b.n);
        err_code code = image_read_header(path, &h, &e);
        if (code != rows[i].code) fail_msg("%s: %s (%s)", rows[i].name, err_name(code), e.msg);
        assert_int_equal(e.code, code);
        if (!code && (h.frames != rows[i].frames || (h.quirks & rows[i].quirk) != rows[i].quirk))
            fail_msg("%s: %d frames, quirks %x", rows[i].name, h.frames, h.quirks);
        assert_null(strstr(e.msg, "ller"));
        image_header_fini(&h);
    }
}

static void test_windows(void **state)
{
    (void)state;
    static const unsigned char pixels[4] = {1, 2, 3, 4};
    static const struct {
        const char *text;
        bool present;
        double center, width;
        uint32_t quirk;
    } rows[] = {{"40|400", true, 40, 400, 0},
                {"40\\-600|400\\1500", true, 40, 400, 0},
                {"40\\-600|0\\1500", true, -600, 1500, QUIRK_ZERO_WINDOW},
                {"40|0", false, 0, 0, QUIRK_ZERO_WINDOW},
                {"40|-5", false, 0, 0, QUIRK_ZERO_WINDOW},
                {"40|1", true, 40, 1, 0},
                {"x|y", false, 0, 0, 0},
                {"1e300|1e300", false, 0, 0, QUIRK_ZERO_WINDOW}};
    static buffer b;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        recipe r = R(2, 2, 1, 8, 8, 7, .pixels = pixels, .bytes = 4, .extra_window = rows[i].text);
        image_header h;
        err e = {0};
        make(&b, &r);
        put(b.bytes, b.n);
        assert_int_equal(image_read_header(path, &h, &e), ERR_OK);
        if (h.window.present != rows[i].present ||
            (h.window.present && (h.window.center != rows[i].center || h.window.width != rows[i].width)) ||
            (h.quirks & QUIRK_ZERO_WINDOW) != rows[i].quirk)
            fail_msg("%s: %d %g %g, quirks %x", rows[i].text, h.window.present, h.window.center, h.window.width,
                     h.quirks);
        image_header_fini(&h);
    }
}

/* Cut anywhere: an error or, behind the pixels, none; never a crash, never a frame from bytes that are not there. */
static void test_every_cut(void **state)
{
    (void)state;
    static unsigned char pixels[128];
    static buffer b;
    recipe r = R(8, 8, 1, 16, 12, 11, .pixels = pixels, .bytes = sizeof pixels, .extra_window = "40|400");
    make(&b, &r);
    for (size_t n = 0; n < b.n; n++) {
        image_header h;
        err e = {0};
        put(b.bytes, n);
        if (!image_read_header(path, &h, &e) && h.has_pixels)
            fail_msg("%zu of %zu bytes were taken for an image", n, b.n);
        image_header_fini(&h);
    }
}

/* --- NIfTI-1 */
typedef struct {
    int32_t sizeof_hdr;
    char unused1[36];
    int16_t dim[8];
    char unused2[14];
    int16_t datatype, bitpix, slice_start;
    float pixdim[8], vox_offset, scl_slope, scl_inter;
    char unused3[132];
    int16_t qform_code, sform_code;
    float quatern[3], offset[3], srow[3][4];
    char intent_name[16], magic[4], extension[4];
} nifti;
_Static_assert(sizeof(nifti) == 352, "nifti1.h");

static nifti nifti_of(int x, int y, int z, int t)
{
    nifti n = {.sizeof_hdr = 348, .datatype = 4, .bitpix = 16, .vox_offset = 352, .magic = "n+1"};
    n.dim[0] = t > 1 ? 4 : 3;
    n.dim[1] = (int16_t)x;
    n.dim[2] = (int16_t)y;
    n.dim[3] = (int16_t)z;
    n.dim[4] = (int16_t)t;
    for (int i = 5; i < 8; i++) n.dim[i] = 1;
    for (int i = 0; i < 8; i++) n.pixdim[i] = 1;
    n.pixdim[1] = 2;
    n.pixdim[2] = 3;
    n.sform_code = 1;
    n.srow[0][0] = -2; /* columns to the left, rows to the back: DICOM's habit */
    n.srow[1][1] = -3;
    n.srow[2][2] = 1;
    return n;
}

static char nifti_path[80];

static void put_nifti(const nifti *n, const int16_t *values, size_t count)
{
    snprintf(nifti_path, sizeof nifti_path, "%s.nii", path);
    FILE *f = fopen(nifti_path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(n, sizeof *n, 1, f), 1);
    assert_int_equal(fwrite(values, sizeof *values, count, f), count);
    fclose(f);
}

static void test_nifti(void **state)
{
    (void)state;
    int16_t v[2 * 3 * 4 * 2];
    for (int i = 0; i < 48; i++) v[i] = (int16_t)(i - 10);
    for (int flips = 0; flips < 4; flips++)
        for (int t = 1; t <= 2; t++) {
            nifti n = nifti_of(2, 3, 4, t);
            if (flips & 1) n.srow[0][0] = 2;
            if (flips & 2) n.srow[1][1] = 3;
            n.scl_slope = 0.5f;
            n.scl_inter = 100;
            put_nifti(&n, v, (size_t)(24 * t));
            image_header h;
            image *im;
            raw_frame f;
            err e = {0};
            if (image_read_header(nifti_path, &h, &e) || image_open(&im, nifti_path, &h, &e)) fail_msg("%s", e.msg);
            assert_int_equal(h.rows, 3);
            assert_int_equal(h.columns, 2);
            assert_int_equal(h.frames, 4);
            assert_int_equal((h.quirks & QUIRK_FOUR_D) != 0, t == 2);
            assert_true(h.spacing_mm[0] == 3 && h.spacing_mm[1] == 2);
            for (int z = 0; z < 4; z++) {
                assert_int_equal(image_frame(im, z, &f, &e), ERR_OK);
                assert_int_equal(f.type, PIXEL_F32);
                for (int y = 0; y < 3; y++)
                    for (int x = 0; x < 2; x++) {
                        int at = z * 6 + (flips & 2 ? 2 - y : y) * 2 + (flips & 1 ? 1 - x : x);
                        assert_true(((const float *)f.pixels)[y * 2 + x] == 0.5f * v[at] + 100);
                    }
            }
            image_close(im);
            image_header_fini(&h);
        }
    unlink(nifti_path);
}

/* A small file that asks for gigabytes, and other promises. */
static void test_nifti_promises(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int16_t dim[5], datatype;
        float offset;
    } rows[] = {
        {"18 GB", {3, 2047, 2047, 2047, 1}, 16, 352}, {"all dimensions", {4, 32767, 32767, 32767, 32767}, 64, 352},
        {"negative", {3, -5, 5, 5, 1}, 4, 352},       {"no dimensions", {0, 5, 5, 5, 1}, 4, 352},
        {"nine dimensions", {9, 5, 5, 5, 1}, 4, 352}, {"offset behind the end", {3, 2, 2, 2, 1}, 4, 1e30f},
        {"unknown type", {3, 2, 2, 2, 1}, 999, 352},  {"complex", {3, 2, 2, 2, 1}, 32, 352},
        {"half the data", {3, 3, 2, 2, 1}, 4, 352}};
    int16_t v[12] = {1, 2, 3};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        nifti n = nifti_of(2, 2, 2, 1);
        memcpy(n.dim, rows[i].dim, sizeof rows[i].dim);
        n.datatype = rows[i].datatype;
        n.vox_offset = rows[i].offset;
        put_nifti(&n, v, !strcmp(rows[i].name, "half the data") ? 6 : 12);
        image_header h;
        image *im = NULL;
        raw_frame f;
        err e = {0};
        err_code code = image_read_header(nifti_path, &h, &e);
        if (!code) code = image_open(&im, nifti_path, &h, &e);
        for (int k = 0; !code && k < h.frames; k++) code = image_frame(im, k, &f, &e);
        image_close(im);
        image_header_fini(&h);
        if (!code) fail_msg("%s: taken", rows[i].name);
        assert_null(strstr(e.msg, "/tmp"));
    }
    unlink(nifti_path);
}

/* --- damage: bytes of real files changed at random; a decoder may refuse, and may not crash, hang or take gigabytes */
enum { MUTANTS = 60 };
static const char *const seeds[] = {SAMPLES "CT_small.dcm",
                                    SAMPLES "MR_small_RLE.dcm",
                                    SAMPLES "MR_small_jp2klossless.dcm",
                                    SAMPLES "MR_small_jpeg_ls_lossless.dcm",
                                    SAMPLES "JPGExtended.dcm",
                                    SAMPLES "SC_rgb_jpeg_dcmtk.dcm",
                                    SAMPLES "SC_rgb_rle_2frame.dcm",
                                    SAMPLES "image_dfl.dcm",
                                    SAMPLES "ExplVR_BigEnd.dcm"};
enum { SEEDS = sizeof seeds / sizeof *seeds };

static err_code decode_mutant(void *ctx, size_t job, decode_reply *reply, err *e)
{
    (void)reply;
    char mutant[128], *text;
    size_t bytes;
    snprintf(mutant, sizeof mutant, "%s.%zu", (const char *)ctx, job);
    TRY(file_read(seeds[job % SEEDS], 1 << 22, &text, &bytes, e));
    rng r = rng_at(1, RNG_TEST, job, 0);
    size_t head = job & 1 ? bytes : bytes < 2000 ? bytes : 2000; /* every second one is hit in its header */
    for (uint32_t k = 1 + rng_below(&r, 12); k > 0; k--) {
        size_t at = rng_below(&r, (uint32_t)head);
        text[at] = (char)(k & 1 ? rng_u32(&r) : (uint32_t)text[at] ^ 1u << rng_below(&r, 8));
    }
    if (job % 5 == 0) bytes = 1 + rng_below(&r, (uint32_t)bytes);
    FILE *f = fopen(mutant, "wb");
    if (f) {
        fwrite(text, 1, bytes, f);
        fclose(f);
    }
    free(text);
    image_header h;
    image *im = NULL;
    raw_frame frame;
    err_code rc = image_read_header(mutant, &h, e);
    if (!rc && h.has_pixels) rc = image_open(&im, mutant, &h, e);
    for (int i = 0; !rc && im && i < h.frames && i < 4; i++) rc = image_frame(im, i, &frame, e);
    image_close(im);
    image_header_fini(&h);
    unlink(mutant);
    return rc;
}

static err_code count_crashes(void *ctx, size_t job, err_code code, const err *why, const unsigned char *data,
                              size_t bytes, err *e)
{
    (void)ctx;
    (void)data;
    (void)bytes;
    (void)e;
    if (code == ERR_CRASHED) fail_msg("mutant %zu of %s: %s", job, seeds[job % SEEDS], why->msg);
    if (code && (strstr(why->msg, "/tmp") || strstr(why->msg, "CompressedSamples")))
        fail_msg("mutant %zu: %s", job, why->msg);
    return ERR_OK;
}

static void test_mutants(void **state)
{
    (void)state;
    for (int i = 0; i < SEEDS; i++)
        if (!file_exists(seeds[i])) skip();
    decode_limits l = {.workers = 2, .memory_bytes = (size_t)2 << 30, .timeout_s = 20};
    err e = {0};
    assert_int_equal(decode_run(&l, (size_t)SEEDS * MUTANTS, decode_mutant, count_crashes, path, &e), ERR_OK);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {T(test_layouts), T(test_promises), T(test_windows),       T(test_every_cut),
                                       T(test_nifti),   T(test_mutants),  T(test_nifti_promises)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
