/* phantom_j2k.c: a reversible (5/3 wavelet) JPEG 2000 codestream of a grey image, through OpenJPEG. */
#include <openjpeg.h>
#include <stdlib.h>
#include <string.h>

#include "cli/phantom_dcmtk.h"

typedef struct {
    unsigned char *data;
    size_t bytes, capacity, at;
} memory;

static OPJ_SIZE_T on_write(void *buffer, OPJ_SIZE_T n, void *user)
{
    memory *m = user;
    if (m->at + n > m->capacity) {
        size_t want = 2 * (m->at + n);
        unsigned char *p = realloc(m->data, want);
        if (!p) return (OPJ_SIZE_T)-1;
        m->data = p;
        m->capacity = want;
    }
    memcpy(m->data + m->at, buffer, n);
    m->at += n;
    if (m->at > m->bytes) m->bytes = m->at;
    return n;
}

static OPJ_OFF_T on_skip(OPJ_OFF_T n, void *user)
{
    memory *m = user;
    static const unsigned char zeros[256];
    for (OPJ_OFF_T left = n; left > 0; left -= 256)
        if (on_write((void *)(uintptr_t)zeros, left < 256 ? (OPJ_SIZE_T)left : 256, m) == (OPJ_SIZE_T)-1) return -1;
    return n;
}

static OPJ_BOOL on_seek(OPJ_OFF_T to, void *user)
{
    memory *m = user;
    if (to < 0 || (size_t)to > m->bytes) return OPJ_FALSE;
    m->at = (size_t)to;
    return OPJ_TRUE;
}

static opj_image_t *make_image(const phantom_pixels *p)
{
    opj_image_cmptparm_t c;
    memset(&c, 0, sizeof c);
    c.dx = c.dy = 1;
    c.w = (OPJ_UINT32)p->columns;
    c.h = (OPJ_UINT32)p->rows;
    c.prec = (OPJ_UINT32)p->bits_stored;
    c.sgnd = p->is_signed;
    opj_image_t *im = opj_image_create(1, &c, OPJ_CLRSPC_GRAY);
    if (!im) return NULL;
    im->x1 = c.w;
    im->y1 = c.h;
    for (size_t i = 0; i < (size_t)c.w * c.h; i++)
        im->comps[0].data[i] = p->is_signed ? (int16_t)p->values[i] : p->values[i];
    return im;
}

err_code phantom_j2k_encode(const phantom_pixels *p, unsigned char **out, size_t *bytes, err *e)
{
    memory m = {0};
    opj_cparameters_t parameters;
    opj_set_default_encoder_parameters(&parameters);
    parameters.numresolution = 4;
    opj_image_t *im = make_image(p);
    opj_codec_t *codec = opj_create_compress(OPJ_CODEC_J2K);
    opj_stream_t *stream = opj_stream_default_create(OPJ_FALSE);
    bool good = im && codec && stream;
    if (good) {
        opj_stream_set_user_data(stream, &m, NULL);
        opj_stream_set_write_function(stream, on_write);
        opj_stream_set_skip_function(stream, on_skip);
        opj_stream_set_seek_function(stream, on_seek);
        good = opj_setup_encoder(codec, &parameters, im) && opj_start_compress(codec, im, stream) &&
               opj_encode(codec, stream) && opj_end_compress(codec, stream);
    }
    if (stream) opj_stream_destroy(stream);
    if (codec) opj_destroy_codec(codec);
    if (im) opj_image_destroy(im);
    if (!good) {
        free(m.data);
        FAIL(e, INTERNAL, "phantom: OpenJPEG cannot encode the image");
    }
    *out = m.data;
    *bytes = m.bytes;
    return ERR_OK;
}
