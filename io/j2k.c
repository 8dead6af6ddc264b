/* j2k.c: the size is read from the codestream's header and compared with the limit before anything is decoded. */
#include "io/j2k.h"

#include <openjpeg.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const unsigned char *bytes;
    size_t n, at;
} source;

static OPJ_SIZE_T on_read(void *buffer, OPJ_SIZE_T bytes, void *ctx)
{
    source *s = ctx;
    size_t left = s->n - s->at;
    if (!left) return (OPJ_SIZE_T)-1;
    if (bytes > left) bytes = left;
    memcpy(buffer, s->bytes + s->at, bytes);
    s->at += bytes;
    return bytes;
}

static OPJ_OFF_T on_skip(OPJ_OFF_T bytes, void *ctx)
{
    source *s = ctx;
    if (bytes < 0 || (size_t)bytes > s->n - s->at) return -1;
    s->at += (size_t)bytes;
    return bytes;
}

static OPJ_BOOL on_seek(OPJ_OFF_T to, void *ctx)
{
    source *s = ctx;
    if (to < 0 || (size_t)to > s->n) return OPJ_FALSE;
    s->at = (size_t)to;
    return OPJ_TRUE;
}

/* OpenJPEG tells a damaged codestream from want of memory only in words. */
static void on_error(const char *text, void *ctx)
{
    if (strcasestr(text, "memory")) *(bool *)ctx = true;
}

static err_code check(const opj_image_t *im, size_t limit_values, err *e)
{
    if (im->numcomps != 1 && im->numcomps != 3)
        FAIL(e, UNSUPPORTED, "JPEG 2000: %u components", (unsigned)im->numcomps);
    for (OPJ_UINT32 c = 0; c < im->numcomps; c++) {
        const opj_image_comp_t *k = &im->comps[c];
        if (k->w != im->comps[0].w || k->h != im->comps[0].h || k->prec != im->comps[0].prec)
            FAIL(e, UNSUPPORTED, "JPEG 2000: components of different size");
        if (k->w == 0 || k->h == 0 || k->w > 65535 || k->h > 65535 || k->prec > 31)
            FAIL(e, FORMAT, "JPEG 2000: a component of %ux%u, %u bits", k->w, k->h, k->prec);
    }
    size_t values = (size_t)im->comps[0].w * im->comps[0].h * im->numcomps;
    if (values > limit_values)
        FAIL(e, CONFLICT, "JPEG 2000: codestream is %ux%u, more than the header says", im->comps[0].w, im->comps[0].h);
    return ERR_OK;
}

err_code j2k_decode(const unsigned char *bytes, size_t n, size_t limit_values, j2k_image *out, err *e)
{
    static const unsigned char jp2_magic[] = {0, 0, 0, 12, 'j', 'P', ' ', ' '};
    source s = {bytes, n, 0};
    opj_stream_t *stream = NULL;
    opj_codec_t *codec = NULL;
    opj_image_t *im = NULL;
    bool starved = false;
    err_code rc = ERR_OK;
    *out = (j2k_image){0};
    if (n < 12) FAIL(e, TRUNCATED, "JPEG 2000: codestream of %zu bytes", n);
    codec = opj_create_decompress(memcmp(bytes, jp2_magic, sizeof jp2_magic) ? OPJ_CODEC_J2K : OPJ_CODEC_JP2);
    stream = opj_stream_create(1 << 20, OPJ_TRUE);
    if (!codec || !stream) FAIL_DONE(rc, e, NOMEM, "JPEG 2000: no memory");
    opj_stream_set_user_data(stream, &s, NULL);
    opj_stream_set_user_data_length(stream, n);
    opj_stream_set_read_function(stream, on_read);
    opj_stream_set_skip_function(stream, on_skip);
    opj_stream_set_seek_function(stream, on_seek);
    opj_set_error_handler(codec, on_error, &starved);
    opj_dparameters_t p;
    opj_set_default_decoder_parameters(&p);
    if (!opj_setup_decoder(codec, &p) || !opj_read_header(stream, codec, &im)) {
        if (starved) FAIL_DONE(rc, e, NOMEM, "JPEG 2000: no memory for the codestream's header");
        FAIL_DONE(rc, e, FORMAT, "JPEG 2000: the codestream's header cannot be read");
    }
    TRY_DONE(rc, check(im, limit_values, e));
    if (!opj_decode(codec, stream, im)) {
        if (starved)
            FAIL_DONE(rc, e, NOMEM, "JPEG 2000: no memory to decode %ux%u pixels", im->comps[0].w, im->comps[0].h);
        FAIL_DONE(rc, e, FORMAT, "JPEG 2000: the codestream is damaged");
    }
    TRY_DONE(rc, check(im, limit_values, e));
    const opj_image_comp_t *k = im->comps;
    size_t pixels = (size_t)k->w * k->h, samples = im->numcomps;
    out->values = malloc(pixels * samples * sizeof *out->values);
    if (!out->values) FAIL_DONE(rc, e, NOMEM, "JPEG 2000: no memory for %zu pixels", pixels);
    for (size_t c = 0; c < samples; c++) {
        if (!k[c].data) FAIL_DONE(rc, e, FORMAT, "JPEG 2000: component %zu has no data", c);
        for (size_t i = 0; i < pixels; i++) out->values[i * samples + c] = k[c].data[i];
    }
    out->rows = (int)k->h;
    out->columns = (int)k->w;
    out->samples = (int)samples;
    out->bits = (int)k->prec;
    out->is_signed = k->sgnd;
done:
    if (rc) {
        free(out->values);
        out->values = NULL;
    }
    opj_image_destroy(im);
    opj_destroy_codec(codec);
    opj_stream_destroy(stream);
    return rc;
}
