/* png_write.c: libpng reports errors by longjmp: everything it may jump over lives outside the function that calls it.
 */
#include "preprocess/png_write.h"

#include <errno.h>
#include <png.h>
#include <stdbool.h>

#include "base/file.h"

static void on_error(png_structp png, png_const_charp text)
{
    (void)text;
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp text)
{
    (void)png;
    (void)text;
}

/* Nothing local changes between setjmp and a jump, so no variable needs to be volatile. */
static bool encode(png_structp png, png_infop info, FILE *f, const unsigned char *pixels, png_uint_32 width,
                   png_uint_32 height, int channels)
{
    if (setjmp(png_jmpbuf(png))) return false;
    png_init_io(png, f);
    png_set_IHDR(png, info, width, height, 8, channels == 3 ? PNG_COLOR_TYPE_RGB : PNG_COLOR_TYPE_GRAY,
                 PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(png, info);
    for (png_uint_32 y = 0; y < height; y++) png_write_row(png, pixels + (size_t)y * width * (size_t)channels);
    png_write_end(png, NULL);
    return true;
}

err_code png_write(const char *path, const unsigned char *pixels, int width, int height, int channels, err *e)
{
    file_writer *w = NULL;
    err_code rc = ERR_OK;
    if (width < 1 || height < 1 || (channels != 1 && channels != 3))
        FAIL(e, INTERNAL, "png: %dx%d pixels of %d channels", width, height, channels);
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, on_error, on_warning);
    png_infop info = png ? png_create_info_struct(png) : NULL;
    if (!info) FAIL_DONE(rc, e, NOMEM, "png: no memory");
    TRY_DONE(rc, file_begin(&w, path, e));
    errno = 0;
    if (!encode(png, info, w->f, pixels, (png_uint_32)width, (png_uint_32)height, channels) && !ferror(w->f))
        FAIL_DONE(rc, e, INTERNAL, "png: cannot encode %dx%d pixels", width, height);
    rc = file_commit(&w, e); /* sees a failed write too */
done:
    file_abandon(&w);
    png_destroy_write_struct(&png, &info);
    return rc;
}
