/* scan.c: the tree is walked first (names only), then headers are read in decode workers, since parsing hostile headers
 * can crash too; the parent writes the catalogue in batches. */
#include "io/scan.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/stop.h"
#include "io/decode_worker.h"

enum { BATCH = 512, DEPTH_MAX = 64 };

typedef struct {
    char *path;
    uint64_t size_bytes;
    int64_t mtime_ns;
    const char *reason; /* already known to be unusable: why_unusable */
    int error;          /* errno behind it, or 0 */
} candidate;

typedef struct {
    bool failed;
    err why;
    image_header h;
} answer;

typedef struct {
    catalogue *c;
    const scan_options *o;
    scan_result *result;
    const char *root;
    candidate *files;
    size_t n, capacity;
    size_t in_batch;
    answer **held; /* by file: answers that came before their turn */
    size_t turn;
    progress bar;
} scan;

/* What the walk itself sets aside, in words; where there is an errno its text says more. */
static const char *why_unusable(const char *reason)
{
    static const struct {
        const char *reason, *detail;
    } unusable[] = {{"too-deep", "a folder nested too deep: not entered"},
                    {"link-to-folder", "a symbolic link to a folder: not followed"},
                    {"not-a-file", "a pipe, socket or device"},
                    {"path-too-long", "holds a path of more than 4095 bytes"}};
    for (size_t i = 0; i < sizeof unusable / sizeof *unusable; i++)
        if (!strcmp(reason, unusable[i].reason)) return unusable[i].detail;
    return reason;
}

static err_code add(scan *s, const char *path, const struct stat *st, const char *reason, int error, err *e)
{
    if (s->n == s->capacity) {
        size_t want = s->capacity ? 2 * s->capacity : 1024;
        candidate *p = realloc(s->files, want * sizeof *p);
        if (!p) FAIL(e, NOMEM, "scan: no memory for %zu files", want);
        s->files = p;
        s->capacity = want;
    }
    candidate *f = &s->files[s->n];
    *f = (candidate){.path = strdup(path), .reason = reason, .error = error};
    if (!f->path) FAIL(e, NOMEM, "scan: no memory");
    if (st) {
        f->size_bytes = (uint64_t)st->st_size;
        f->mtime_ns = (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
    }
    s->n++;
    return ERR_OK;
}

static err_code walk(scan *s, const char *folder, int depth, err *e)
{
    TRY(stop_check(e));
    if (depth > DEPTH_MAX) return add(s, folder, NULL, "too-deep", 0, e);
    struct dirent **names = NULL;
    int n =
        scandir(folder, &names, NULL, alphasort); /* sorted: the order of a run does not depend on the file system */
    if (n < 0) {
        if (depth == 0) FAIL_ERRNO(e, "the folder cannot be read");
        return add(s, folder, NULL, "unreadable", errno, e);
    }
    err_code rc = ERR_OK;
    for (int i = 0; i < n; i++) {
        char path[FILE_PATH_MAX];
        struct stat st;
        const char *name = names[i]->d_name;
        if (rc || !strcmp(name, ".") || !strcmp(name, "..")) continue;
        if (file_path(path, NULL, "%s/%s", folder, name))
            rc = add(s, folder, NULL, "path-too-long", 0, e);
        else if (lstat(path, &st))
            rc = add(s, path, NULL, "unreadable", errno, e);
        else if (S_ISDIR(st.st_mode) && catalogue_is_work(s->c, (uint64_t)st.st_dev, (uint64_t)st.st_ino))
            continue;
        else if (S_ISDIR(st.st_mode))
            rc = walk(s, path, depth + 1, e);
        else if (S_ISLNK(st.st_mode) && stat(path, &st))
            rc = add(s, path, NULL, "broken-link", errno, e);
        else if (S_ISDIR(st.st_mode))
            rc = add(s, path, NULL, "link-to-folder", 0, e);
        else if (!S_ISREG(st.st_mode))
            rc = add(s, path, NULL, "not-a-file", 0, e);
        else
            rc = add(s, path, &st, NULL, 0, e);
    }
    for (int i = 0; i < n; i++) free(names[i]);
    free(names);
    return rc;
}

static err_code in_worker(void *ctx, size_t job, decode_reply *reply, err *e)
{
    scan *s = ctx;
    image_header *h = decode_reply_take(reply, sizeof *h);
    if (!h) FAIL(e, NOMEM, "scan: no memory for a header");
    err_code rc = image_read_header(s->files[job].path, h, e);
    image_header_fini(h); /* lookup tables are read again when the file is decoded */
    return rc;
}

/* Objects with pixels that are no pictures of a patient. */
static bool is_not_picture(const char *sop_class)
{
    static const char *const classes[] = {
        "1.2.840.10008.5.1.4.1.1.66.4",  /* Segmentation */
        "1.2.840.10008.5.1.4.1.1.481.2", /* RT Dose */
        "1.2.840.10008.5.1.4.1.1.30",    /* Parametric Map */
        "1.2.840.10008.5.1.4.1.1.66.1",  /* Spatial Registration */
    };
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        if (!strcmp(sop_class, classes[i])) return true;
    return false;
}

/* Why a file whose header was read is not used; NULL: it is. */
static const char *why_not(const scan *s, const image_header *h, const char **detail)
{
    if (h->format == IMAGE_NIFTI) return NULL;
    if (!strcmp(h->sop_class, "1.2.840.10008.1.3.10")) {
        *detail = "a directory of other files, not an image";
        return "dicomdir";
    }
    if (!h->has_pixels) {
        *detail = "an object without pixels (report, presentation state, structure set, ...)";
        return "no-pixels";
    }
    if (is_not_picture(h->sop_class)) {
        *detail = "segmentation, dose or parametric map";
        return "not-an-image";
    }
    if (!*h->study_uid || !*h->series_uid || !*h->sop_uid) {
        *detail = "Study, Series or SOP Instance UID is missing";
        return "no-uid";
    }
    if (s->o->keep_burned_in) return NULL;
    if (h->burned_in || !strncmp(h->sop_class, "1.2.840.10008.5.1.4.1.1.7", 25)) {
        char next = h->sop_class[25];
        if (h->burned_in || next == 0 || next == '.') {
            *detail = h->burned_in ? "BurnedInAnnotation is YES"
                                   : "secondary capture: may show names (--keep-burned-in takes it)";
            return "burned-in";
        }
    }
    return NULL;
}

static void take_id(image_header *h, const char *name, bool digest)
{
    char id[65], hex[HASH_HEX];
    hash_buffer(name, strlen(name), hex);
    snprintf(id, sizeof id, "nifti:%.58s", digest ? hex : name);
    char *to[] = {h->patient_id, h->study_uid, h->series_uid, h->sop_uid};
    for (int i = 0; i < 4; i++) memcpy(to[i], id, sizeof id);
}

/* A NIfTI file has no identifiers: they are made from its path below the scanned folder, so that an export may move.
 * Where another image, of another export, is already there under that path, the whole path tells them apart. */
static void derive_ids(const scan *s, const char *path, image_header *h)
{
    const char *relative = path + strlen(s->root);
    while (*relative == '/') relative++;
    take_id(h, relative, strlen(relative) + 6 >= sizeof h->sop_uid);
    if (catalogue_rivals(s->c, path, h->sop_uid)) take_id(h, path, true);
}

static err_code record(scan *s, const candidate *f, const image_header *h, const char *reason, const char *detail,
                       err *e)
{
    bool took = !reason;
    progress_add(&s->bar, 1);
    if (!s->o->dry_run) {
        if (s->in_batch == 0) TRY(catalogue_begin(s->c, e));
        s->in_batch++;
        TRY(catalogue_add(s->c, f->path, f->size_bytes, f->mtime_ns, h, reason, detail, e));
        took = catalogue_took(s->c);
    }
    if (took)
        s->result->taken++;
    else
        s->result->aside++;
    if (s->in_batch < BATCH) return ERR_OK;
    s->in_batch = 0;
    return catalogue_commit(s->c, e);
}

static err_code take(scan *s, const candidate *f, answer *a, err *e)
{
    if (a->failed) return record(s, f, NULL, err_name(a->why.code), a->why.msg, e);
    if (a->h.format == IMAGE_NIFTI) derive_ids(s, f->path, &a->h);
    const char *detail = "", *reason = why_not(s, &a->h, &detail);
    return record(s, f, &a->h, reason, detail, e);
}

/* Answers are recorded in the files' order, not in that of the workers: which of two files with one UID counts as the
 * first must not depend on timing. */
static err_code in_parent(void *ctx, size_t job, err_code code, const err *why, const unsigned char *data, size_t bytes,
                          err *e)
{
    scan *s = ctx;
    answer *a = calloc(1, sizeof *a);
    if (!a) FAIL(e, NOMEM, "scan: no memory");
    a->failed = code || bytes != sizeof a->h;
    if (a->failed) {
        a->why = *why;
        if (!a->why.code) a->why.code = ERR_INTERNAL;
    } else
        memcpy(&a->h, data, sizeof a->h);
    s->held[job] = a;
    while (s->turn < s->n && s->held[s->turn]) {
        a = s->held[s->turn];
        s->held[s->turn] = NULL;
        err_code rc = take(s, &s->files[s->turn++], a, e);
        free(a);
        TRY(rc);
    }
    return ERR_OK;
}

err_code scan_folder(catalogue *c, const char *folder, const scan_options *o, scan_result *out, err *e)
{
    *out = (scan_result){0};
    char root[FILE_PATH_MAX];
    if (!realpath(folder, root)) FAIL_ERRNO(e, "the export folder cannot be opened");
    scan s = {.c = c, .o = o, .result = out, .root = root};
    size_t keep = 0;
    err_code rc;
    if (o->keep_burned_in && !o->dry_run) TRY_DONE(rc, catalogue_forget(c, "burned-in", e));
    TRY_DONE(rc, walk(&s, root, 0, e));
    s.held = calloc(s.n + 1, sizeof(answer *));
    if (!s.held) FAIL_DONE(rc, e, NOMEM, "scan: no memory for %zu files", s.n);
    out->seen = s.n;
    progress_start(&s.bar, "scan", "files", s.n);
    for (size_t i = 0; i < s.n; i++) { /* the known and the hopeless leave the list; the order of the rest stays */
        candidate *f = &s.files[i];
        if (catalogue_knows(c, f->path, f->size_bytes, f->mtime_ns)) {
            out->known++;
            progress_skip(&s.bar, 1);
        } else if (f->reason) {
            char detail[96];
            snprintf(detail, sizeof detail, "%s", f->error ? strerror(f->error) : why_unusable(f->reason));
            TRY_DONE(rc, record(&s, f, NULL, f->reason, detail, e));
        } else {
            candidate t = s.files[keep];
            s.files[keep++] = *f;
            *f = t;
        }
    }
    decode_limits limits = {.workers = o->threads, .timeout_s = 60};
    rc = decode_run(&limits, keep, in_worker, in_parent, &s, e);
done:
    if (s.in_batch) {
        err_code committed = catalogue_commit(c, rc ? NULL : e); /* what was read so far stays */
        if (!rc) rc = committed;
    }
    progress_end(&s.bar);
    for (size_t i = 0; i < s.n; i++) {
        free(s.files[i].path);
        if (s.held) free(s.held[i]);
    }
    free(s.held);
    free(s.files);
    if (!rc)
        log_event(LOG_INFO, "scan.done", "seen", LOG_INT(out->seen), "taken", LOG_INT(out->taken), "aside",
                  LOG_INT(out->aside), "known", LOG_INT(out->known), NULL);
    return rc;
}
