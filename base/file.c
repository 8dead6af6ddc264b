/* file.c: see file.h. */
#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TEMPORARY ".tmp-" /* and the process's number */

err_code file_path(char out[FILE_PATH_MAX], err *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(out, FILE_PATH_MAX, fmt, ap);
    va_end(ap);
    if (n < 0 || n >= FILE_PATH_MAX) FAIL(e, LIMIT, "path longer than %d bytes", FILE_PATH_MAX - 1);
    return ERR_OK;
}

err_code file_mkdirs(const char *path, err *e)
{
    char part[FILE_PATH_MAX];
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof part) FAIL(e, LIMIT, "folder name of %zu bytes", n);
    memcpy(part, path, n + 1);
    for (char *p = part + 1;; p++) {
        if (*p && *p != '/') continue;
        char kept = *p;
        *p = 0;
        struct stat st;
        if (mkdir(part, 0777) && (errno != EEXIST || stat(part, &st) || !S_ISDIR(st.st_mode))) {
            if (errno == EEXIST) errno = ENOTDIR;
            FAIL_ERRNO(e, "cannot make a folder");
        }
        if (!kept) return ERR_OK;
        *p = kept;
    }
}

bool file_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

err_code file_readable(const char *path, err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) FAIL_ERRNO(e, "cannot open a file");
    close(fd);
    return ERR_OK;
}

err_code file_begin(file_writer **out, const char *path, err *e)
{
    file_writer *w = calloc(1, sizeof *w);
    *out = NULL;
    if (!w) FAIL(e, NOMEM, "no memory for a file writer");
    err_code rc = file_path(w->path, e, "%s", path);
    if (!rc) rc = file_path(w->temporary, e, "%s" TEMPORARY "%ld", path, (long)getpid());
    if (!rc) {
        w->f = fopen(w->temporary, "wb");
        if (!w->f) rc = err_errno(e, errno, __FILE__, __LINE__, "cannot create a file");
    }
    if (rc) {
        free(w);
        return rc;
    }
    *out = w;
    return ERR_OK;
}

void file_abandon(file_writer **w)
{
    if (!*w) return;
    if ((*w)->f) fclose((*w)->f);
    unlink((*w)->temporary);
    free(*w);
    *w = NULL;
}

static bool is_temporary(const char *name)
{
    const char *mark = strstr(name, TEMPORARY), *digits = mark ? mark + strlen(TEMPORARY) : "";
    return *digits && strspn(digits, "0123456789") == strlen(digits);
}

static int sweep_entry(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st;
    if (type == FTW_F && is_temporary(path + at->base) && unlink(path) && errno != ENOENT) return -1;
    return 0;
}

err_code file_sweep(const char *folder, err *e)
{
    if (nftw(folder, sweep_entry, 16, FTW_PHYS)) FAIL_ERRNO(e, "cannot clear a folder of unfinished files");
    return ERR_OK;
}

err_code file_sweep_one(const char *path, err *e)
{
    char folder[FILE_PATH_MAX], left[FILE_PATH_MAX];
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t n = strlen(name);
    TRY(file_path(folder, e, "%.*s", slash ? (int)(slash - path) + 1 : 2, slash ? path : "./"));
    DIR *d = opendir(folder);
    if (!d) FAIL_ERRNO(e, "cannot look for unfinished files");
    err_code rc = ERR_OK;
    for (struct dirent *f; !rc && (f = readdir(d));) {
        if (strncmp(f->d_name, name, n) || strncmp(f->d_name + n, TEMPORARY, strlen(TEMPORARY)) ||
            !is_temporary(f->d_name))
            continue;
        rc = file_path(left, e, "%s%s", folder, f->d_name);
        if (!rc && unlink(left) && errno != ENOENT)
            rc = err_errno(e, errno, __FILE__, __LINE__, "cannot remove an unfinished file");
    }
    closedir(d);
    return rc;
}

/* A rename is durable once its folder is on disk. Some file systems refuse fsync on folders: not an error of ours. */
static void sync_folder(const char *path)
{
    char folder[FILE_PATH_MAX];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash) slash[slash == folder] = 0;
    int fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

err_code file_commit(file_writer **out, err *e)
{
    file_writer *w = *out;
    int failed = 0, before = errno; /* of the caller's last write, if that is what failed */
    errno = 0;
    if (ferror(w->f))
        failed = before ? before : EIO;
    else if (fflush(w->f) || fsync(fileno(w->f)))
        failed = errno ? errno : EIO;
    if (fclose(w->f) && !failed) failed = errno;
    w->f = NULL;
    if (!failed && rename(w->temporary, w->path)) failed = errno;
    if (failed) {
        file_abandon(out);
        errno = failed;
        FAIL_ERRNO(e, "cannot write a file");
    }
    sync_folder(w->path);
    free(w);
    *out = NULL;
    return ERR_OK;
}

err_code file_write(const char *path, const void *data, size_t bytes, err *e)
{
    file_writer *w;
    TRY(file_begin(&w, path, e));
    if (bytes && fwrite(data, 1, bytes, w->f) != bytes) {
        int failed = errno;
        file_abandon(&w);
        errno = failed;
        FAIL_ERRNO(e, "cannot write a file");
    }
    return file_commit(&w, e);
}

err_code file_map_open(file_map *m, const char *path, err *e)
{
    *m = (file_map){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) FAIL_ERRNO(e, "cannot open a file");
    struct stat st;
    err_code rc = ERR_OK;
    if (fstat(fd, &st)) {
        rc = err_errno(e, errno, __FILE__, __LINE__, "cannot read a file's size");
    } else if (!S_ISREG(st.st_mode)) {
        rc = err_set(e, ERR_FORMAT, __FILE__, __LINE__, "not a regular file");
    } else if (st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            rc = err_errno(e, errno, __FILE__, __LINE__, "cannot map a file");
        else
            *m = (file_map){p, (size_t)st.st_size};
    }
    close(fd);
    return rc;
}

void file_map_close(file_map *m)
{
    if (m->data) munmap((void *)(uintptr_t)m->data, m->bytes);
    *m = (file_map){0};
}

void file_map_forget(const file_map *m, size_t at, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), first = at / page * page, end = at + bytes;
    if (!m->data || at > m->bytes || bytes > m->bytes - at) return;
    end = end == m->bytes ? end : end / page * page; /* a page may hold the start of what follows */
    if (end > first) madvise((void *)(uintptr_t)(m->data + first), end - first, MADV_DONTNEED);
}

err_code file_read(const char *path, size_t limit, char **text, size_t *bytes, err *e)
{
    file_map m;
    TRY(file_map_open(&m, path, e));
    err_code rc = ERR_OK;
    char *copy = NULL;
    if (m.bytes > limit) FAIL_DONE(rc, e, LIMIT, "file of %zu bytes, at most %zu are read", m.bytes, limit);
    copy = malloc(m.bytes + 1);
    if (!copy) FAIL_DONE(rc, e, NOMEM, "no memory for %zu bytes", m.bytes);
    if (m.bytes) memcpy(copy, m.data, m.bytes);
    copy[m.bytes] = 0;
    *text = copy;
    if (bytes) *bytes = m.bytes;
done:
    file_map_close(&m);
    return rc;
}
