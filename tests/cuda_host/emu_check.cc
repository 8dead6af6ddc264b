/* emu_check.cc: device memory, and the judge of every access to it and to shared memory.
 *
 * Plain and race builds: addresses come from one reserved arena and are never used twice, so that what is freed stays
 * invalid; all is NaN at first; device memory is unreadable while no kernel runs, so that host code that follows a
 * device pointer crashes as it would beside a GPU. ASan build: each buffer is an allocation of its own, with red zones.
 *
 * Race build: kernels are compiled with -fsanitize=thread but linked without its library: the hooks at the end are what
 * they call. Of each byte the last write, the last atomic and two readers are kept. Two accesses, one of them a write,
 * are in order if they come from two launches, from one thread, or lie on two sides of a barrier of their block, or of
 * a __syncwarp that named both lanes; nothing else orders them, whatever order the fibres happened to run in. */
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <map>

#include "tests/cuda_host/emu.h"
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#endif

extern "C" char __executable_start[], _end[];

namespace emu
{
struct record {
    uint32_t tid, at, pc; /* linear thread of the grid, the clock's time, where in the program */
};
struct cell { /* of a byte */
    record write, atomic, read[2];
};
enum byte_state : uint8_t { NOBODYS, UNSET, SET };

constexpr uint32_t IN_FLIGHT = 1u << 31; /* in cell.write.tid: a cp.async not yet waited for */
constexpr size_t PAGE = 4096, ALIGN = 256, DEVICE_BYTES = 32ull << 30, ARENA_BYTES = 40ull << 30;

static bool checked; /* some object file calls the hooks */
static char *arena;  /* DEVICE_BYTES of device memory, then pinned host memory */
static uint8_t *states;
static cell *cells, *shared_cells; /* shared memory's: static, then dynamic */
static size_t device_top = PAGE, host_top = DEVICE_BYTES, used;
static std::map<uintptr_t, allocation> &allocations = *new std::map<uintptr_t, allocation>;
static int open_depth;

/* +1: device memory becomes accessible; -1: the reverse. */
void guard(int by)
{
    bool was = open_depth > 0, now = (open_depth += by) > 0;
    if (!ASAN && arena && was != now) mprotect(arena, device_top, now ? PROT_READ | PROT_WRITE : PROT_NONE);
}

static void *take_from_arena(size_t bytes, bool host)
{
    if (!arena) {
        arena = (char *)reserve(ARENA_BYTES);
        if (checked) {
            states = (uint8_t *)reserve(ARENA_BYTES);
            cells = (cell *)reserve(ARENA_BYTES * sizeof(cell));
        }
    }
    size_t &top = host ? host_top : device_top;
    if (bytes > ARENA_BYTES || top + bytes + 2 * ALIGN > (host ? ARENA_BYTES : DEVICE_BYTES)) return nullptr;
    char *p = arena + top;
    if (checked) memset(states + top, host ? SET : UNSET, bytes);
    top = (top + bytes + 2 * ALIGN - 1) & ~(ALIGN - 1); /* at least ALIGN bytes that are nobody's follow */
    if (!host) mprotect(arena, device_top, PROT_READ | PROT_WRITE);
    return p;
}

void *memory_take(size_t bytes, bool host)
{
    void *p;
    Guard open;
    if (!ASAN)
        p = take_from_arena(bytes, host);
    else if (posix_memalign(&p, ALIGN, bytes ? bytes : 1))
        p = nullptr;
    if (!p) return nullptr;
    memset(p, 0xff, bytes); /* NaN in every format */
    allocations[(uintptr_t)p] = {bytes, host};
    if (!host) used += bytes;
    live[LIVE_MEMORY]++;
    return p;
}

cudaError_t memory_give(void *p)
{
    if (!p) return cudaSuccess;
    auto it = allocations.find((uintptr_t)p);
    if (it == allocations.end()) {
        report("cudaFree of %p, which is no live allocation", p);
        return cudaErrorInvalidValue;
    }
    size_t bytes = it->second.bytes;
    if (!it->second.host) used -= bytes;
    if (ASAN) {
        free(p);
    } else {
        size_t at = (char *)p - arena, from = (at + PAGE - 1) & ~(PAGE - 1), to = (at + bytes) & ~(PAGE - 1);
        if (checked) memset(states + at, NOBODYS, bytes);
        if (to > from) {
            madvise(arena + from, to - from, MADV_DONTNEED);
            if (checked) madvise(cells + from, (to - from) * sizeof(cell), MADV_DONTNEED);
            if (checked) madvise(states + from, to - from, MADV_DONTNEED);
        }
    }
    allocations.erase(it);
    live[LIVE_MEMORY]--;
    return cudaSuccess;
}

size_t memory_used()
{
    return used;
}

bool memory_find(const void *p, uintptr_t *start, allocation *a)
{
    auto it = allocations.upper_bound((uintptr_t)p);
    if (it == allocations.begin()) return false;
    --it;
    if ((uintptr_t)p >= it->first + it->second.bytes + !it->second.bytes) return false;
    *start = it->first;
    *a = it->second;
    return true;
}

bool check_range(const void *p, size_t n, Kind kind, const char *who)
{
    uintptr_t start;
    allocation a;
    if (!n) return true;
    if (!memory_find(p, &start, &a) || (uintptr_t)p + n > start + a.bytes) {
        report("%s: [%p,+%zu) is not inside a live device allocation", who, p, n);
        return false;
    }
    if (!checked) return true;
    size_t at = (const char *)p - arena;
    if (kind == WRITE) memset(states + at, SET, n);
    if (kind == WRITE) return true;
    const void *unset = memchr(states + at, UNSET, n);
    if (!unset) return true;
    report("%s reads uninitialised device memory (byte %zu of %zu)", who,
           (size_t)((const uint8_t *)unset - states - at), n);
    return false;
}

void check_open(size_t fixed_bytes)
{
    shared_cells = (cell *)reserve((fixed_bytes + SHARED_MOST) * sizeof(cell));
}

/* File and line of a program counter, by binutils. */
static std::string where(uint32_t pc)
{
    char command[128], line[512] = "?";
    snprintf(command, sizeof command, "addr2line -s -e /proc/%d/exe 0x%x 2>/dev/null", getpid(), pc - 1);
    FILE *f = popen(command, "r");
    if (!f) return line;
    if (fgets(line, sizeof line, f)) line[strcspn(line, "\n")] = 0;
    pclose(f);
    return line;
}

/* Whether a record from `since` on comes before the running thread's access in any order of the threads. */
static bool ordered(const record &r, uint32_t me, uint32_t since)
{
    const thread *cur = running.cur;
    if (r.at < since || r.tid == me) return true;
    if (r.tid / running.threads != running.block) return false;
    if (r.at < cur->barrier_at) return true;
    unsigned other = r.tid % running.threads;
    return other / LANES == cur->linear / LANES && r.at < cur->warp_at && (cur->warp_with >> (other & 31) & 1);
}

/* What is wrong with an access to a byte, or NULL; `who` is the other party. */
static const char *conflict(const cell &c, Kind kind, uint32_t me, uint32_t since, const record **who)
{
    *who = &c.write;
    if (!ordered(c.write, me, since)) return "write";
    *who = &c.atomic;
    if (kind != ATOMIC && !ordered(c.atomic, me, since)) return "atomic";
    for (const record &r : c.read) {
        *who = &r;
        if (kind != READ && !ordered(r, me, since)) return "read";
    }
    return nullptr;
}

static void remember(cell *c, Kind kind, record r, uint32_t since)
{
    if (kind == WRITE) {
        c->write = r;
    } else if (kind == ATOMIC) {
        c->atomic = r;
    } else if (c->read[0].tid == r.tid || c->read[0].at < since) {
        c->read[0] = r;
    } else {
        if (c->read[1].tid != r.tid && c->read[1].at >= since) c->read[0] = c->read[1];
        c->read[1] = r;
    }
}

static const char *const verbs[] = {"read", "write", "atomic"};

/* Bounds and initialisation of global memory; false if reported. */
static bool check_global(const char *p, size_t n, Kind kind, uint32_t pc)
{
    uint8_t *s = states + (p - arena);
    for (size_t i = 0; i < n; i++) {
        if (s[i] == NOBODYS) {
            auto it = allocations.upper_bound((uintptr_t)p);
            if (it != allocations.begin()) --it;
            report("out of bounds: %s of %zu bytes at %s, %td bytes into a buffer of %zu", verbs[kind], n,
                   where(pc).c_str(), p - (const char *)it->first, it->second.bytes);
            return false;
        }
        if (s[i] == UNSET && kind != WRITE) {
            report("uninitialised global memory: %s of %zu bytes at %s", verbs[kind], n, where(pc).c_str());
            return false;
        }
        s[i] = SET;
    }
    return true;
}

/* The thread's own stack, the program's constants and globals, the kernel's parameters. */
static bool is_private(const char *p, Kind kind)
{
    const char *body = (const char *)running.body;
    return (p >= running.on->stack && p < running.on->stack + running.on->bytes) ||
           (p >= __executable_start && p < _end) || (kind == READ && p >= body && p < body + running.body->size);
}

void check_access(const void *at, size_t n, Kind kind, uint32_t pc, bool in_flight)
{
    const char *p = (const char *)at;
    if (!running.cur || !n) return;
#ifdef EMU_ASAN
    if (__asan_region_is_poisoned((void *)at, n)) report("out of bounds: %zu bytes at %p", n, at);
#endif
    if (!checked) return;
    cell *c;
    const char *space = "shared";
    uint32_t since = running.block_at, me = running.block * running.threads + running.cur->linear;
    if (arena && (size_t)(p - arena) < ARENA_BYTES) {
        if (!check_global(p, n, kind, pc)) return;
        c = cells + (p - arena);
        space = "global";
        since = running.launch_at;
    } else if ((size_t)(p - running.dynamic) < SHARED_MOST) {
        size_t offset = p - running.dynamic;
        if (offset + n > running.dynamic_bytes)
            return report("out of bounds: %s of %zu bytes at %s, offset %zu of %zu bytes of dynamic shared memory",
                          verbs[kind], n, where(pc).c_str(), offset, running.dynamic_bytes);
        c = shared_cells + running.fixed_bytes + offset;
    } else if ((size_t)(p - running.fixed) < running.fixed_bytes) {
        c = shared_cells + (p - running.fixed);
    } else if (is_private(p, kind)) {
        return;
    } else {
        return report("%s of %zu bytes at %s: address %p is not device memory (host pointer passed to a kernel?)",
                      verbs[kind], n, where(pc).c_str(), at);
    }
    for (size_t i = 0; i < n; i++) {
        const record *who;
        if ((c[i].write.tid & IN_FLIGHT) && c[i].write.at >= since)
            return report("%s memory: %s at %s of a cp.async destination that was not waited for, issued at %s", space,
                          verbs[kind], where(pc).c_str(), where(c[i].write.pc).c_str());
        if (const char *what = conflict(c[i], kind, me, since, &who))
            return report("race on %s memory: %s at %s, not ordered after the %s by block %u thread %u at %s", space,
                          verbs[kind], where(pc).c_str(), what, who->tid / running.threads, who->tid % running.threads,
                          where(who->pc).c_str());
        if (*space == 's' && kind != WRITE && c[i].write.at < since && c[i].atomic.at < since)
            return report("uninitialised shared memory: %s of %zu bytes at %s", verbs[kind], n, where(pc).c_str());
        remember(&c[i], kind, {me, running.clock, pc}, since);
        if (in_flight) c[i].write.tid |= IN_FLIGHT;
    }
    preempt_access();
}

void check_landed(const void *p, size_t n)
{
    size_t offset = (const char *)p - running.dynamic;
    if (offset >= SHARED_MOST) return;
    cell *c = shared_cells + running.fixed_bytes + offset;
    for (size_t i = 0; i < n; i++) {
        c[i].write.tid &= ~IN_FLIGHT;
        c[i].write.at = running.clock;
    }
}

#define PC (uint32_t)(uintptr_t) __builtin_return_address(0)

void access(const void *p, size_t n, Kind kind)
{
    check_access(p, n, kind, PC, false);
}

static void aligned_access(const void *p, size_t n, Kind kind, uint32_t pc)
{
    if (running.cur && (uintptr_t)p % n) report("misaligned access of %zu bytes at %s", n, where(pc).c_str());
    check_access(p, n, kind, pc, false);
}
} // namespace emu
using namespace emu;

/* --- what g++ -fsanitize=thread calls */

#define HOOKS(n)                                                                                                       \
    void __tsan_read##n(void *p)                                                                                       \
    {                                                                                                                  \
        aligned_access(p, n, READ, PC);                                                                                \
    }                                                                                                                  \
    void __tsan_write##n(void *p)                                                                                      \
    {                                                                                                                  \
        aligned_access(p, n, WRITE, PC);                                                                               \
    }                                                                                                                  \
    void __tsan_unaligned_read##n(void *p)                                                                             \
    {                                                                                                                  \
        check_access(p, n, READ, PC, false);                                                                           \
    }                                                                                                                  \
    void __tsan_unaligned_write##n(void *p)                                                                            \
    {                                                                                                                  \
        check_access(p, n, WRITE, PC, false);                                                                          \
    }                                                                                                                  \
    void __tsan_volatile_read##n(void *p)                                                                              \
    {                                                                                                                  \
        check_access(p, n, READ, PC, false);                                                                           \
    }                                                                                                                  \
    void __tsan_volatile_write##n(void *p)                                                                             \
    {                                                                                                                  \
        check_access(p, n, WRITE, PC, false);                                                                          \
    }
extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void *p, size_t n)
{
    check_access(p, n, READ, PC, false);
}
void __tsan_write_range(void *p, size_t n)
{
    check_access(p, n, WRITE, PC, false);
}
void __tsan_vptr_update(void **, void *) {}
void __tsan_init()
{
    checked = true;
}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
}
