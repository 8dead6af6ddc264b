/* decode_worker.c: the parent hands out job numbers over a socket pair and reads length-prefixed replies, polling all
 * workers at once. A worker is a plain fork: it sees the parent's memory as it was, runs fn for one job at a time and
 * never touches the parent's files or databases. Call it while no other thread of the process runs: a lock held by
 * another thread at fork would stay locked in the child. */
#include "io/decode_worker.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/pool.h"
#include "base/progress.h"
#include "base/stop.h"

enum { WORKERS_MAX = 256 };
#define REPLY_MAX ((size_t)4 << 30)

typedef struct {
    uint64_t bytes;
    err why; /* file pointers are the same in parent and child: one image, forked */
} reply_head;

typedef struct {
    pid_t pid;
    int fd;
    size_t job;
    double deadline;
    bool busy;
} worker;

void *decode_reply_take(decode_reply *r, size_t bytes)
{
    if (bytes > REPLY_MAX - r->bytes) return NULL;
    if (r->bytes + bytes > r->capacity) {
        size_t want = r->bytes + bytes;
        if (want < 2 * r->capacity) want = 2 * r->capacity;
        void *p = realloc(r->data, want);
        if (!p) return NULL;
        r->data = p;
        r->capacity = want;
    }
    void *at = r->data + r->bytes;
    r->bytes += bytes;
    return at;
}

static bool write_all(int fd, const void *data, size_t bytes)
{
    while (bytes) {
        ssize_t n = send(fd, data, bytes, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        data = (const char *)data + n;
        bytes -= (size_t)n;
    }
    return true;
}

/* Waits until the deadline (monotonic seconds; 0: for ever). */
static bool read_all(int fd, void *data, size_t bytes, double deadline)
{
    while (bytes) {
        if (deadline > 0) {
            double left = deadline - progress_clock();
            struct pollfd p = {fd, POLLIN, 0};
            int ready = left > 0 ? poll(&p, 1, (int)(left * 1000) + 1) : 0;
            if (ready < 0 && errno == EINTR) continue;
            if (ready <= 0) return false;
        }
        ssize_t n = recv(fd, data, bytes, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        data = (char *)data + n;
        bytes -= (size_t)n;
    }
    return true;
}

static _Noreturn void worker_main(int fd, pid_t parent, const decode_limits *l, decode_fn fn, void *ctx)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);  /* the parent's death ends us */
    if (getppid() != parent) _exit(1); /* it died before we asked */
    signal(SIGINT, SIG_IGN);           /* the parent decides when to stop */
    signal(SIGTERM, SIG_IGN);          /* ... also where a scheduler tells all of its group */
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none); /* a core dump would hold patients' pixels */
#if !defined(__SANITIZE_ADDRESS__)
    size_t memory = l->memory_bytes ? l->memory_bytes : (size_t)4 << 30;
    struct rlimit as = {memory, memory};
    setrlimit(RLIMIT_AS, &as);
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC); /* libraries print values and paths: PHI */
    if (null < 0 || dup2(null, STDOUT_FILENO) < 0 || dup2(null, STDERR_FILENO) < 0) _exit(1);
#else
    (void)l;
#endif
    decode_reply reply = {0};
    uint64_t job;
    while (read_all(fd, &job, sizeof job, 0)) {
        reply_head head;
        memset(&head, 0, sizeof head);
        reply.bytes = 0;
        if (fn(ctx, job, &reply, &head.why)) reply.bytes = 0;
        head.bytes = reply.bytes;
        if (!write_all(fd, &head, sizeof head) || !write_all(fd, reply.data, reply.bytes)) break;
    }
    _exit(0); /* no atexit handlers of the parent's */
}

static err_code start(worker *w, worker *all, int n, const decode_limits *l, decode_fn fn, void *ctx, err *e)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) FAIL_ERRNO(e, "cannot make a worker's socket");
    pid_t parent = getpid(), pid = fork();
    if (pid < 0) {
        int failed = errno;
        close(pair[0]);
        close(pair[1]);
        errno = failed;
        FAIL_ERRNO(e, "cannot start a decode worker");
    }
    if (pid == 0) {
        close(pair[0]);
        for (int i = 0; i < n; i++)
            if (all[i].pid > 0) close(all[i].fd);
        worker_main(pair[1], parent, l, fn, ctx);
    }
    close(pair[1]);
    *w = (worker){.pid = pid, .fd = pair[0]};
    return ERR_OK;
}

/* Kills (or only reaps) a worker; says how it ended: the signal, or 0. */
static int end(worker *w, bool kill_it)
{
    int status = 0;
    if (w->pid <= 0) return 0;
    close(w->fd);
    if (kill_it) kill(w->pid, SIGKILL);
    while (waitpid(w->pid, &status, 0) < 0 && errno == EINTR) {}
    *w = (worker){0};
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

typedef struct {
    worker *w;
    int n;
    const decode_limits *limits;
    decode_fn fn;
    decode_done_fn done;
    void *ctx;
    unsigned char *data;
    size_t capacity;
} crew;

/* Reads w's reply and passes it on; a broken worker is replaced and its job reported as crashed. */
static err_code collect(crew *c, worker *w, bool timed_out, err *e)
{
    reply_head head;
    err why = {0};
    bool answered = !timed_out && read_all(w->fd, &head, sizeof head, w->deadline);
    bool good = answered && head.bytes <= REPLY_MAX;
    if (good && head.bytes > c->capacity) {
        void *p = realloc(c->data, head.bytes);
        if (!p) FAIL(e, NOMEM, "no memory for a decoded file of %llu bytes", (unsigned long long)head.bytes);
        c->data = p;
        c->capacity = head.bytes;
    }
    good = good && read_all(w->fd, c->data, head.bytes, w->deadline);
    size_t job = w->job;
    w->busy = false;
    if (!good) {
        bool late = timed_out || progress_clock() >= w->deadline;
        int sig = end(w, true);
        TRY(stop_check(e)); /* whoever stops the program may have stopped the decoder: no fault of the file's */
        err_code reason =
            !late && !answered && sig == SIGKILL ? ERR_IO : ERR_CRASHED; /* killed by others: no fault of the file's */
        if (late)
            err_set(&why, ERR_CRASHED, __FILE__, __LINE__, "decoding took too long");
        else
            err_set(&why, reason, __FILE__, __LINE__, "the decoder died (signal %d)", sig);
        TRY(start(w, c->w, c->n, c->limits, c->fn, c->ctx, e));
        return c->done(c->ctx, job, reason, &why, NULL, 0, e);
    }
    return c->done(c->ctx, job, head.why.code, &head.why, head.why.code ? NULL : c->data, head.bytes, e);
}

err_code decode_run(const decode_limits *l, size_t jobs, decode_fn fn, decode_done_fn done, void *ctx, err *e)
{
    worker w[WORKERS_MAX] = {{0}};
    struct pollfd polled[WORKERS_MAX];
    int n = l->workers > 0 ? l->workers : pool_processors(), timeout_s = l->timeout_s > 0 ? l->timeout_s : 120;
    if (n > WORKERS_MAX) n = WORKERS_MAX;
    if ((size_t)n > jobs) n = (int)jobs;
    crew c = {.w = w, .n = n, .limits = l, .fn = fn, .done = done, .ctx = ctx};
    err_code rc = ERR_OK;
    size_t next = 0, finished = 0;
    for (int i = 0; i < n; i++) TRY_DONE(rc, start(&w[i], w, n, l, fn, ctx, e));
    while (finished < jobs) {
        TRY_DONE(rc, stop_check(e));
        double now = progress_clock(), soonest = now + 1;
        for (int i = 0; i < n; i++) {
            if (!w[i].busy && next < jobs) {
                uint64_t job = next++;
                w[i].job = job;
                w[i].busy = true;
                w[i].deadline = now + timeout_s;
                write_all(w[i].fd, &job, sizeof job); /* a dead worker shows when its reply is read */
            }
            if (w[i].busy && w[i].deadline < soonest) soonest = w[i].deadline;
            polled[i] = (struct pollfd){w[i].busy ? w[i].fd : -1, POLLIN, 0};
        }
        int wait_ms = soonest > now ? (int)((soonest - now) * 1000) + 1 : 0;
        if (poll(polled, (nfds_t)n, wait_ms) < 0 && errno != EINTR)
            FAIL_DONE(rc, e, IO, "cannot wait for the decode workers");
        now = progress_clock();
        for (int i = 0; i < n; i++) {
            bool late = w[i].busy && now >= w[i].deadline;
            if (!w[i].busy || (!(polled[i].revents & (POLLIN | POLLHUP | POLLERR)) && !late)) continue;
            TRY_DONE(rc, collect(&c, &w[i], late && !polled[i].revents, e));
            finished++;
        }
    }
done:
    for (int i = 0; i < n; i++) end(&w[i], rc != ERR_OK);
    free(c.data);
    return rc;
}
