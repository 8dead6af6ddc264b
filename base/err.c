/* err.c: see err.h. */
#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *err_name(err_code code)
{
    static const char *const names[] = {
#define X(id, text) text,
        ERR_CODES(X)
#undef X
    };
    return (unsigned)code < ERR_COUNT ? names[code] : "internal";
}

static void record(err *e, err_code code, const char *file, int line, const char *fmt, va_list ap)
{
    e->code = code;
    e->file = file;
    e->line = line;
    vsnprintf(e->msg, sizeof e->msg, fmt, ap);
}

err_code err_set(err *e, err_code code, const char *file, int line, const char *fmt, ...)
{
    if (e && !e->code) {
        va_list ap;
        va_start(ap, fmt);
        record(e, code, file, line, fmt, ap);
        va_end(ap);
    }
    return code;
}

err_code err_errno(err *e, int errnum, const char *file, int line, const char *fmt, ...)
{
    err_code code = ERR_IO;
    if (errnum == ENOSPC || errnum == EDQUOT || errnum == EFBIG) code = ERR_NOSPACE;
    if (errnum == ENOENT || errnum == ENOTDIR) code = ERR_NOTFOUND;
    if (errnum == ENOMEM) code = ERR_NOMEM;
    if (e && !e->code) {
        va_list ap;
        va_start(ap, fmt);
        record(e, code, file, line, fmt, ap);
        va_end(ap);
        size_t n = strlen(e->msg);
        char text[96];
        snprintf(e->msg + n, sizeof e->msg - n, ": %s", strerror_r(errnum, text, sizeof text));
    }
    return code;
}
