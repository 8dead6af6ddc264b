/* err.h: the one error record.
 *
 *     err e = {0};
 *     if (catalogue_open(&c, work, &e)) fprintf(stderr, "radapt: %s\n", e.msg);
 *
 * Caller-owned, last argument, nothing allocates, the first failure wins, nobody frees. Messages hold tags, sizes,
 * offsets and codes: never a patient's data, a path or a library's exception text. The caller that knows the path says
 * it to the user only where the user typed it. */
#ifndef RADAPT_ERR_H
#define RADAPT_ERR_H

#define ERR_CODES(X)                                                                                                   \
    X(OK, "ok")                                                                                                        \
    X(USAGE, "usage")             /* the command line or configuration is wrong */                                     \
    X(NOTFOUND, "not-found")      /* a named thing is not there */                                                     \
    X(IO, "io")                   /* the operating system refused a read or a write */                                 \
    X(NOSPACE, "no-space")        /* disk full, quota or file size limit */                                            \
    X(FORMAT, "format")           /* the bytes are not what they claim to be */                                        \
    X(TRUNCATED, "truncated")     /* fewer bytes than the header promises */                                           \
    X(UNSUPPORTED, "unsupported") /* well formed, but not something we handle */                                       \
    X(LIMIT, "limit")             /* larger than a limit we set against hostile input */                               \
    X(NOMEM, "no-memory")                                                                                              \
    X(DAMAGED, "damaged")         /* what we stored ourselves is not what it was: it is to be made again */            \
    X(CONFLICT, "conflict")       /* two things that must agree do not */                                              \
    X(SHAPE, "shape")             /* a tensor of the wrong shape */                                                    \
    X(NUMERIC, "numeric")         /* NaN, infinity or collapse in training */                                          \
    X(CRASHED, "crashed")         /* a worker process died or ran out of its limits */                                 \
    X(INTERRUPTED, "interrupted") /* SIGINT or SIGTERM; resumable */                                                   \
    X(EMPTY, "empty")             /* nothing usable found */                                                           \
    X(INTERNAL, "internal")       /* our bug, or a library's */

typedef enum {
#define X(id, text) ERR_##id,
    ERR_CODES(X)
#undef X
        ERR_COUNT
} err_code;

typedef struct {
    err_code code;
    const char *file;
    int line;
    char msg[192];
} err;

#ifdef __cplusplus
extern "C" {
#endif

/* Records the failure in e unless e already holds one (e may be NULL); returns code always. */
err_code err_set(err *e, err_code code, const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* The same for a failed system call: errno chooses between IO, NOSPACE, NOTFOUND and NOMEM; " (strerror)" is appended.
 */
err_code err_errno(err *e, int errnum, const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* "truncated", "no-space", ...: stable, used as reason codes in quarantine.csv. */
const char *err_name(err_code code);

#ifdef __cplusplus
}
#endif

/* A failure is never ERR_OK: said to the compiler, so that static analysis does not follow paths that cannot be. */
static inline err_code err_failed(err_code code)
{
    if (code == ERR_OK) __builtin_unreachable();
    return code;
}

#define FAIL(e, id, ...) return err_failed(err_set((e), ERR_##id, __FILE__, __LINE__, __VA_ARGS__))
#define FAIL_ERRNO(e, ...) return err_failed(err_errno((e), errno, __FILE__, __LINE__, __VA_ARGS__))
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        err_code try_ = (call);                                                                                        \
        if (try_) return try_;                                                                                         \
    } while (0)
/* For functions that own something: sets rc and jumps to their one label done:. */
#define TRY_DONE(rc, call)                                                                                             \
    do {                                                                                                               \
        (rc) = (call);                                                                                                 \
        if (rc) goto done;                                                                                             \
    } while (0)
#define FAIL_DONE(rc, e, id, ...)                                                                                      \
    do {                                                                                                               \
        (rc) = err_failed(err_set((e), ERR_##id, __FILE__, __LINE__, __VA_ARGS__));                                    \
        goto done;                                                                                                     \
    } while (0)

#endif
