/* png_write.h: an 8-bit picture to look at (libpng). */
#ifndef RADAPT_PNG_WRITE_H
#define RADAPT_PNG_WRITE_H
#include "base/err.h"
/* pixels (height, width, channels) with channels 1 or 3. Atomic. */
err_code png_write(const char *path, const unsigned char *pixels, int width, int height, int channels, err *e);
#endif
