/* file.h: files as the rest of radapt wants them: written whole or not at all, read through a map.
 *
 * Atomic write: a temporary file in the same folder, fsync, rename, fsync of the folder. A full disk (ENOSPC, EDQUOT,
 * EFBIG under RLIMIT_FSIZE; the program ignores SIGXFSZ) gives ERR_NOSPACE and leaves what was there before. */
#ifndef RADAPT_FILE_H
#define RADAPT_FILE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "err.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { FILE_PATH_MAX = 4096 };

/* Joins with '/', checks the length (ERR_LIMIT). */
err_code file_path(char out[FILE_PATH_MAX], err *e, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* mkdir -p, mode 0777 & ~umask. */
err_code file_mkdirs(const char *path, err *e);
bool file_exists(const char *path);
/* Can it be opened now? A library that only says "cannot be read" leaves open whether the file is at fault or the want
 * of a permission, a descriptor or a disk (ERR_IO, ERR_NOTFOUND, ERR_NOMEM). */
err_code file_readable(const char *path, err *e);

/* One atomic write: file_begin, write to f (stdio), file_commit or file_abandon. Both free w and set *w = NULL. */
typedef struct file_writer {
    FILE *f;
    char path[FILE_PATH_MAX], temporary[FILE_PATH_MAX];
} file_writer;
err_code file_begin(file_writer **w, const char *path, err *e);
err_code file_commit(file_writer **w, err *e);
void file_abandon(file_writer **w);
/* Removes what processes that were killed left of their atomic writes, in the folder and all below it. The caller makes
 * sure that nobody else writes there. */
err_code file_sweep(const char *folder, err *e);
/* The same for one file, whose folder may hold other people's. */
err_code file_sweep_one(const char *path, err *e);
/* The whole of it in one call. */
err_code file_write(const char *path, const void *data, size_t bytes, err *e);

/* Read-only map of a file. A zero-byte file gives data == NULL, bytes == 0. */
typedef struct {
    const unsigned char *data;
    size_t bytes;
} file_map;
err_code file_map_open(file_map *m, const char *path, err *e);
void file_map_close(file_map *m);
/* Of a map's bytes [at, at + bytes) the process holds no more pages than of the edges, until it reads them again. */
void file_map_forget(const file_map *m, size_t at, size_t bytes);
/* Whole small file into malloc'ed, NUL-terminated memory; more than limit bytes is ERR_LIMIT. Caller frees *text. */
err_code file_read(const char *path, size_t limit, char **text, size_t *bytes, err *e);

#ifdef __cplusplus
}
#endif
#endif
