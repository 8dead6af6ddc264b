/* cmd_inspect.c: `radapt inspect FILE`: what radapt understands of one file, and the frame as the model will see it.
 * The file is read and decoded in a worker process, as in the stages. Names are printed with --identity only. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cmd.h"
#include "cli/stage.h"
#include "io/decode_worker.h"
#include "preprocess/modality.h"
#include "preprocess/png_write.h"
#include "preprocess/sampler.h"

/* A worker's answer: this, then the pixels if there are any. */
typedef struct {
    image_header header; /* without its tables */
    bool decoded;
    frame_info frame;
    err why; /* if not decoded */
} answer;

typedef struct {
    const char *path;
    int frame, size;
    answer answer;
    unsigned char *pixels; /* owned */
    err_code code;
    err why;
} inspection;

static err_code decode(const inspection *in, const image_header *h, frame_info *info, decode_reply *reply, err *e)
{
    image *im = NULL;
    raw_frame raw;
    modality_frame m = {.pixels = NULL};
    err_code rc;
    if (in->frame > h->frames) FAIL(e, NOTFOUND, "it has %d frames", h->frames);
    TRY(image_open(&im, in->path, h, e));
    TRY_DONE(rc, image_frame(im, in->frame - 1, &raw, e));
    TRY_DONE(rc, modality_apply(h, &raw, in->frame, 0, &m, e));
    unsigned char *at = decode_reply_take(reply, m.bytes);
    if (!at) FAIL_DONE(rc, e, NOMEM, "no memory for the frame");
    memcpy(at, m.pixels, m.bytes);
    *info = m.info;
done:
    modality_frame_fini(&m);
    image_close(im);
    return rc;
}

static err_code in_worker(void *ctx, size_t job, decode_reply *reply, err *e)
{
    const inspection *in = ctx;
    answer a;
    (void)job;
    memset(&a, 0, sizeof a);
    if (!decode_reply_take(reply, sizeof a)) FAIL(e, NOMEM, "no memory");
    err_code rc = image_read_header(in->path, &a.header, e);
    if (!rc && a.header.has_pixels) a.decoded = !decode(in, &a.header, &a.frame, reply, &a.why);
    image_header_fini(&a.header);
    a.header.modality_lut.data = a.header.voi_lut.data = NULL;
    memcpy(reply->data, &a, sizeof a);
    return rc;
}

static err_code in_parent(void *ctx, size_t job, err_code code, const err *why, const unsigned char *data, size_t bytes,
                          err *e)
{
    inspection *in = ctx;
    (void)job;
    in->code = code;
    in->why = *why;
    if (code) return ERR_OK;
    if (bytes < sizeof in->answer) FAIL(e, INTERNAL, "the decoder's answer is too short");
    memcpy(&in->answer, data, sizeof in->answer);
    const frame_info *f = &in->answer.frame;
    size_t n = bytes - sizeof in->answer;
    if (!in->answer.decoded) return ERR_OK;
    if (f->rows <= 0 || f->columns <= 0 || f->rows > 65535 || f->columns > 65535 ||
        (f->channels != 1 && f->channels != 3) ||
        (size_t)f->rows * (size_t)f->columns * (size_t)f->channels * pixel_bytes(f->type) != n)
        FAIL(e, INTERNAL, "the decoder's answer is damaged");
    in->pixels = malloc(n);
    if (!in->pixels) FAIL(e, NOMEM, "no memory for the frame");
    memcpy(in->pixels, data + sizeof in->answer, n);
    return ERR_OK;
}

/* --- names
 * ------------------------------------------------------------------------------------------------------------- */

static const char *photometric_name(photometric p)
{
    static const char *const names[] = {"unknown",  "MONOCHROME1",  "MONOCHROME2",     "PALETTE COLOR", "RGB",
                                        "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT",       "YBR_RCT"};
    return (size_t)p < sizeof names / sizeof *names ? names[p] : "unknown";
}

static const struct {
    uint32_t bit;
    const char *name, *meaning;
} quirks[] = {
    {QUIRK_NO_PREAMBLE, "no-preamble", "the file has no preamble"},
    {QUIRK_SIGN_MISMATCH, "sign-mismatch", "the codestream's signedness differs from the header's"},
    {QUIRK_CONSTANT, "constant", "every pixel is the same"},
    {QUIRK_HIGH_BIT, "high-bit", "HighBit is not BitsStored - 1"},
    {QUIRK_COLOR_RESCALE, "color-rescale", "rescale tags on a colour image are ignored"},
    {QUIRK_ZERO_WINDOW, "zero-window", "the window's width cannot be used"},
    {QUIRK_FRAME_COUNT, "frame-count", "NumberOfFrames differs from the frames that are there"},
    {QUIRK_FOUR_D, "four-d", "more than one time point: the first is used"},
    {QUIRK_LONG_PIXEL_DATA, "long-pixel-data", "more bytes than the frames need"},
    {QUIRK_NOT_FINITE, "not-finite", "values that are no numbers"},
};
enum { QUIRKS = sizeof quirks / sizeof *quirks };

static const char *voi_name(const voi_window *w)
{
    return w->function == VOI_SIGMOID ? "SIGMOID" : w->function == VOI_LINEAR_EXACT ? "LINEAR_EXACT" : "LINEAR";
}

/* --- printing: one list of (name, value), as lines or as an object
 * ------------------------------------------------------------------------------------------------------------- */

typedef struct {
    json_t *object; /* NULL: lines */
} printer;

__attribute__((format(printf, 3, 4))) static void say(const printer *p, const char *name, const char *format, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    if (!*text) return;
    for (unsigned char *c = (unsigned char *)text; *c; c++)
        if (*c < 0x20 || *c == 0x7f) *c = '?'; /* no escapes for the terminal from a file */
    if (!p->object)
        printf("%-18s %s\n", name, text);
    else if (json_object_set_new(p->object, name, json_string(text)))
        json_object_set_new(p->object, name, json_null());
}

static void say_identity(const printer *p, const image_header *h)
{
    say(p, "patient", "%s", h->patient_name);
    say(p, "patient_id", "%s%s%s", h->patient_id, *h->patient_id_issuer ? " issued by " : "", h->patient_id_issuer);
    say(p, "birth_date", "%s", h->patient_birth_date);
    say(p, "study_uid", "%s", h->study_uid);
    say(p, "study_date", "%s %s", h->study_date, h->study_time);
    say(p, "accession", "%s", h->accession);
    say(p, "series_uid", "%s", h->series_uid);
    say(p, "sop_uid", "%s", h->sop_uid);
}

static void say_header(const printer *p, const image_header *h)
{
    say(p, "format", "%s", h->format == IMAGE_NIFTI ? "NIfTI" : "DICOM");
    say(p, "sop_class", "%s", h->sop_class);
    say(p, "transfer_syntax", "%s", h->transfer_syntax);
    say(p, "character_set", "%s", h->character_set);
    say(p, "modality", "%s%s%s", h->modality, *h->body_part ? ", " : "", h->body_part);
    say(p, "image_type", "%s", h->image_type);
    say(p, "device", "%s%s%s", h->manufacturer, *h->manufacturer_model ? ", " : "", h->manufacturer_model);
    const double *at = h->position_mm, *way = h->orientation; /* + 0: no negative zeros */
    if (h->has_position) say(p, "position_mm", "%g, %g, %g", at[0] + 0, at[1] + 0, at[2] + 0);
    if (h->has_orientation)
        say(p, "orientation", "%g, %g, %g; %g, %g, %g", way[0] + 0, way[1] + 0, way[2] + 0, way[3] + 0, way[4] + 0,
            way[5] + 0);
    if (h->has_spacing) say(p, "spacing_mm", "%g between rows, %g between columns", h->spacing_mm[0], h->spacing_mm[1]);
    if (h->slice_spacing_mm > 0) say(p, "slice_spacing_mm", "%g", h->slice_spacing_mm);
    if (!h->has_pixels) {
        say(p, "pixels", "none");
        return;
    }
    say(p, "pixels", "%d rows x %d columns, %d frame%s, %d sample%s", h->rows, h->columns, h->frames,
        h->frames == 1 ? "" : "s", h->samples, h->samples == 1 ? "" : "s");
    if (h->bits_allocated)
        say(p, "stored_as", "%d bits of %d, %s, %s", h->bits_stored, h->bits_allocated,
            h->is_signed ? "signed" : "unsigned", photometric_name(h->photometric));
    if (h->modality_lut.present) say(p, "modality_lut", "%d entries", h->modality_lut.entries);
    if (h->has_rescale) say(p, "rescale", "value = %g * stored + %g", h->rescale_slope, h->rescale_intercept);
    if (h->has_padding) say(p, "padding", "stored %d to %d", h->padding_low, h->padding_high);
    if (h->window.present) say(p, "window", "%g/%g %s", h->window.center, h->window.width, voi_name(&h->window));
    if (h->voi_lut.present) say(p, "voi_lut", "%d entries", h->voi_lut.entries);
}

static void say_frame(const printer *p, const frame_info *f, const window_choice *choice)
{
    voi_window w[3];
    say(p, "frame", "%d: kept as %s%s", f->frame,
        f->channels == 3       ? "8-bit RGB"
        : f->type == PIXEL_I16 ? "signed 16-bit"
                               : "unsigned 16-bit",
        f->slope != 1 || f->intercept != 0 ? ", scaled" : "");
    if (f->channels == 3) return;
    say(p, "values", "0.5 to 99.5 percent of the foreground: %g to %g", f->low, f->high);
    window_choose(choice, f, w);
    say(p, "model_sees", "channels as %g/%g, %g/%g, %g/%g%s", w[0].center, w[0].width, w[1].center, w[1].width,
        w[2].center, w[2].width, f->invert ? ", inverted" : "");
}

static void say_quirks(const printer *p, uint32_t bits)
{
    json_t *list = p->object ? json_array() : NULL;
    for (int i = 0; i < QUIRKS; i++) {
        if (!(bits & quirks[i].bit)) continue;
        if (list)
            json_array_append_new(list, json_string(quirks[i].name));
        else
            printf("%-18s %s: %s\n", "quirk", quirks[i].name, quirks[i].meaning);
    }
    if (list) json_object_set_new(p->object, "quirks", list);
}

/* --- picture
 * ------------------------------------------------------------------------------------------------------------- */

static err_code draw(const inspection *in, const window_choice *choice, const char *path, err *e)
{
    const frame_info *f = &in->answer.frame;
    size_t n = (size_t)in->size * (size_t)in->size;
    int zoom = in->size < 384 ? 2 : 1, side = in->size * zoom;
    float *seen = malloc(3 * n * sizeof *seen);
    unsigned char *picture = malloc(3 * n * (size_t)(zoom * zoom));
    err_code rc = ERR_OK;
    if (!seen || !picture)
        rc = err_set(e, ERR_NOMEM, __FILE__, __LINE__, "no memory for the picture");
    else {
        sampler_norm plain = {.std = {1, 1, 1}, .window = *choice};
        sample_job job = {
            .frame = f, .pixels = in->pixels, .crop = sampler_whole(f, true, 1), .size = in->size, .out = seen};
        sampler_run(NULL, &plain, &job, 1);
        for (int y = 0; y < side; y++)
            for (int x = 0; x < side; x++)
                for (int c = 0; c < 3; c++) {
                    float v = seen[(size_t)c * n + (size_t)(y / zoom) * (size_t)in->size + (size_t)(x / zoom)];
                    v = v < 0 ? 0 : v > 1 ? 1 : v;
                    picture[((size_t)y * (size_t)side + (size_t)x) * 3 + (size_t)c] = (unsigned char)(v * 255 + 0.5f);
                }
        rc = png_write(path, picture, side, side, 3, e);
    }
    free(seen);
    free(picture);
    return rc;
}

static err_code print(inspection *in, const options *o, err *e)
{
    answer *a = &in->answer;
    window_choice choice;
    printer p = {.object = options_flag(o, "json") ? json_object() : NULL};
    err_code rc = window_parse(options_text(o, "window"), &choice, e);
    if (rc) {
        json_decref(p.object);
        return rc;
    }
    a->frame.series_low = a->frame.low;
    a->frame.series_high = a->frame.high;
    say_header(&p, &a->header);
    if (options_flag(o, "identity")) say_identity(&p, &a->header);
    if (a->header.burned_in) say(&p, "burned_in", "BurnedInAnnotation is YES: set aside unless --keep-burned-in");
    if (a->decoded)
        say_frame(&p, &a->frame, &choice);
    else if (a->header.has_pixels)
        say(&p, "problem", "%s: %s", err_name(a->why.code), a->why.msg);
    say_quirks(&p, a->header.quirks | (a->decoded ? a->frame.quirks : 0));
    if (p.object) stage_json(p.object);
    return ERR_OK;
}

err_code cmd_inspect(const options *o, int *status, err *e)
{
    if (o->n_arguments != 1) FAIL(e, USAGE, "inspect wants one file: radapt inspect FILE");
    inspection in = {
        .path = o->arguments[0], .frame = (int)options_int(o, "frame"), .size = (int)options_int(o, "size")};
    err_code rc;
    err why = {0};
    window_choice choice;
    const char *png = options_text(o, "png");
    if (access(in.path, R_OK)) FAIL(e, NOTFOUND, "%.120s: %s", in.path, strerror(errno));
    TRY(window_parse(options_text(o, "window"), &choice, e));
    decode_limits limits = {.workers = 1};
    TRY_DONE(rc, decode_run(&limits, 1, in_worker, in_parent, &in, e));
    if (in.code) TRY_DONE(rc, stage_blame("file", in.path, &in.why, e));
    TRY_DONE(rc, print(&in, o, e));
    if (*png && in.answer.decoded && !options_flag(o, "dry-run") && draw(&in, &choice, png, &why))
        TRY_DONE(rc, stage_blame("--png", png, &why, e));
    if (in.answer.header.has_pixels && !in.answer.decoded)
        rc = err_set(e, in.answer.why.code, __FILE__, __LINE__, "frame %d cannot be decoded", in.frame);
    *status = STATUS_DONE;
done:
    free(in.pixels);
    return rc;
}
