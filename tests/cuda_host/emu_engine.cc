/* emu_engine.cc: runs a grid on one processor thread: blocks one after another, each CUDA thread a fibre. A thread that
 * never waits needs no switch: a worker runs one after another. At a barrier or a warp collective a thread's fibre
 * waits and the next goes on; the last lane to arrive at a collective resolves it for all.
 *
 * CUDA_EMU_ORDER=0|1|2: threads and blocks ascending, descending, at random (CUDA_EMU_SEED). CUDA_EMU_PREEMPT=n: a
 * switch at one in n accesses. CUDA_EMU_HALT=0: go on after a report. */
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <random>

#include "tests/cuda_host/emu.h"
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

extern "C" void emu_switch(void **save_sp, void *new_sp);
#ifndef __x86_64__
#error "add a context switch for this processor"
#endif
asm(R"(.text
.globl emu_switch
.type emu_switch,@function
emu_switch: push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
    mov %rsp,(%rdi); mov %rsi,%rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret
.size emu_switch,.-emu_switch
)");

namespace emu
{
enum { ORDER_UP, ORDER_DOWN, ORDER_RANDOM };
constexpr unsigned FULL = ~0u, REPORTS_MOST = 20, PREEMPT_ATOMICS = 256;
constexpr size_t PAGE = 4096, STACK_BYTES = (ASAN ? 512 : 128) << 10;

kernel_run running = {};
int live[LIVE_KINDS];
emu_counts counted;

long env(const char *name, long otherwise)
{
    const char *v = getenv(name);
    return v ? atol(v) : otherwise;
}

static const long order_mode = env("CUDA_EMU_ORDER", ORDER_UP);
static const long halt = env("CUDA_EMU_HALT", 1);
static const long preempt_rate = env("CUDA_EMU_PREEMPT", 0);
static const long leaks = env("CUDA_EMU_LEAKS", 1);
static unsigned reports;

static thread threads[THREADS_MOST];
static unsigned order[THREADS_MOST], arrived[THREADS_MOST / LANES]; /* arrived: lanes that wait, of each warp */
static unsigned ended, waiting, agreeing, started;                  /* threads of the block */
static std::vector<unsigned> ready;                                 /* from ready_head on */
static size_t ready_head;
static fibre host_fibre, *current = &host_fibre;
static std::deque<fibre> &fibres = *new std::deque<fibre>;
static std::vector<fibre *> idle;
static std::vector<std::pair<size_t, size_t>> fixed_arrays; /* offset and bytes of each static shared array */

unsigned chance()
{
    static std::mt19937 generator((unsigned)env("CUDA_EMU_SEED", 1));
    return generator();
}

void *reserve(size_t bytes)
{
    void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p != MAP_FAILED) return p;
    perror("CUDA_EMU: reserve");
    _exit(SETUP_EXIT);
}

void report(const char *fmt, ...)
{
    va_list ap;
    reports++;
    fflush(stdout);
    fprintf(stderr, "CUDA_EMU: ");
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    if (running.cur)
        fprintf(stderr, "\n    kernel %s, block (%u,%u,%u), thread (%u,%u,%u)", running.name, blockIdx.x, blockIdx.y,
                blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    fprintf(stderr, "\n");
    if (halt || reports > REPORTS_MOST) _exit(REPORT_EXIT);
}

__attribute__((destructor)) static void at_end()
{
    static const char *const names[LIVE_KINDS] = {"allocations", "streams", "events", "graphs"};
    for (int i = 0; leaks && i < LIVE_KINDS; i++)
        if (live[i]) report("%d %s left at the end", live[i], names[i]);
    if (reports) _exit(REPORT_EXIT);
}

/* --- fibres */

static void switch_to(fibre *f, [[maybe_unused]] bool dying)
{
    fibre *me = current;
    current = f;
    running.on = f;
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(dying ? nullptr : &me->fake, f->stack, f->bytes);
#endif
    emu_switch(&me->sp, f->sp);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(me->fake, nullptr, nullptr);
#endif
}

static void resume(thread *t)
{
    running.cur = t;
    threadIdx = t->at;
}

static void make_ready(thread *t)
{
    t->state = READY;
    ready.push_back(t->linear);
}

static bool some_ready()
{
    return ready_head < ready.size();
}

static bool start_another()
{
    return started < running.threads && (!some_ready() || (order_mode == ORDER_RANDOM && chance() % 2));
}

static thread *next_ready()
{
    if (order_mode == ORDER_RANDOM)
        std::swap(ready[ready_head], ready[ready_head + chance() % (ready.size() - ready_head)]);
    thread *t = &threads[ready[ready_head++]];
    if (!some_ready()) {
        ready.clear();
        ready_head = 0;
    }
    return t;
}

static void thread_end(thread *t)
{
    t->state = DONE;
    ended++;
    if (waiting) report("divergent barrier: this thread has ended while %u threads wait in a block barrier", waiting);
    for (unsigned l = 0; l < LANES; l++) {
        const thread *o = &threads[(t->linear & ~31u) + l];
        if ((arrived[t->linear / LANES] >> l & 1) && (o->warp_mask >> (t->linear & 31) & 1))
            report("this lane has ended, but lane %u waits for it in %s at %s:%d", l, o->op, o->file, o->line);
    }
    if (t->copies.empty()) return;
    cp_wait(0);
    t->copies.clear();
}

static void dispatch(bool dying);

/* A fibre's body: threads one after another, as long as none of them waits. */
static void worker()
{
#ifdef EMU_ASAN
    const void *from;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &from, &bytes);
    if (!host_fibre.stack) host_fibre.stack = (const char *)from, host_fibre.bytes = bytes;
#endif
    for (;;) {
        while (start_another()) {
            thread *t = &threads[order[started++]];
            t->on = current;
            resume(t);
            running.body->run();
            thread_end(t);
        }
        dispatch(true);
    }
}

static fibre *fresh_fibre()
{
    fibre *f;
    if (idle.empty()) {
        char *m = (char *)reserve(STACK_BYTES + PAGE);
        mprotect(m, PAGE, PROT_NONE);
        fibres.push_back({m + PAGE, STACK_BYTES, nullptr, nullptr});
        f = &fibres.back();
    } else {
        f = idle.back();
        idle.pop_back();
    }
    void **top = (void **)(f->stack + f->bytes) - 1; /* rsp is 8 mod 16 at entry, as after a call */
    *--top = (void *)worker;
    f->sp = top - 6; /* six registers that emu_switch restores */
    return f;
}

static void deadlock()
{
    std::string where;
    int shown = 0;
    for (unsigned i = 0; i < running.threads && shown < 4; i++) {
        const thread &t = threads[i];
        if (t.state != AT_BARRIER && t.state != AT_WARP) continue;
        if (i && t.line == threads[i - 1].line && t.state == threads[i - 1].state) continue;
        where +=
            "\n    thread " + std::to_string(i) + " waits in " + t.op + " at " + t.file + ":" + std::to_string(t.line);
        shown++;
    }
    report("deadlock: no thread can run%s", where.c_str());
    _exit(REPORT_EXIT);
}

/* The processor to the next thread that can run; back to the host when the block has ended. */
static void dispatch(bool dying)
{
    if (!dying && start_another()) {
        switch_to(fresh_fibre(), false);
    } else if (some_ready()) {
        thread *t = next_ready();
        resume(t);
        if (dying) idle.push_back(current);
        if (t->on != current) switch_to(t->on, dying);
    } else if (ended == running.threads) {
        idle.push_back(current);
        switch_to(&host_fibre, true);
    } else {
        deadlock();
    }
}

/* --- grids */

/* Where thread-local memory of the calling thread is: below the thread pointer, on x86-64. */
static char *thread_local_block(size_t bytes, size_t align)
{
    char *end;
    asm("mov %%fs:0,%0" : "=r"(end));
    return end - (bytes + align - 1) / align * align;
}

static size_t fixed_align = 1;

/* Static shared arrays are function-local thread_locals (symbols _ZZ..., type TLS) of the program itself; other
 * thread-locals, of host code, are left alone. */
static void find_fixed_arrays()
{
    dl_iterate_phdr(
        [](dl_phdr_info *info, size_t, void *) {
            for (int i = 0; i < info->dlpi_phnum; i++)
                if (info->dlpi_phdr[i].p_type == PT_TLS) {
                    running.fixed_bytes = info->dlpi_phdr[i].p_memsz;
                    fixed_align = info->dlpi_phdr[i].p_align;
                }
            return 1; /* the first entry is the program */
        },
        nullptr);
    struct stat st;
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    if (running.fixed_bytes && !fstat(fd, &st)) {
        const char *file = (const char *)mmap(nullptr, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        const Elf64_Ehdr *elf = (const Elf64_Ehdr *)file;
        const Elf64_Shdr *sections = (const Elf64_Shdr *)(file + elf->e_shoff);
        for (int i = 0; i < elf->e_shnum; i++) {
            if (sections[i].sh_type != SHT_SYMTAB) continue;
            const char *strings = file + sections[sections[i].sh_link].sh_offset;
            const Elf64_Sym *symbols = (const Elf64_Sym *)(file + sections[i].sh_offset);
            for (size_t k = 0; k < sections[i].sh_size / sizeof *symbols; k++)
                if (ELF64_ST_TYPE(symbols[k].st_info) == STT_TLS && !strncmp(strings + symbols[k].st_name, "_ZZ", 3))
                    fixed_arrays.push_back({symbols[k].st_value, symbols[k].st_size});
        }
        munmap((void *)file, st.st_size);
    }
    close(fd);
}

static void run_block(unsigned block, dim3 grid, dim3 dim)
{
    running.block = block;
    running.block_at = ++running.clock;
    blockIdx = {block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
    ended = waiting = agreeing = started = 0;
    ready.clear();
    ready_head = 0;
    memset(arrived, 0, sizeof arrived);
    for (unsigned i = 0; i < running.threads; i++) {
        thread &t = threads[i];
        t.at = {i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y};
        t.linear = i;
        t.state = FRESH;
        t.barrier_at = running.block_at;
        t.warp_at = t.warp_with = 0;
        t.line = 0;
        order[i] = order_mode == ORDER_DOWN ? running.threads - 1 - i : i;
    }
    if (order_mode == ORDER_RANDOM)
        for (unsigned i = running.threads; i > 1; i--) std::swap(order[i - 1], order[chance() % i]);
    for (auto &a : fixed_arrays) memset(running.fixed + a.first, 0xff, a.second); /* NaN in every format */
    if (running.dynamic_bytes) memset(running.dynamic, 0xff, running.dynamic_bytes);
    dispatch(false);
    running.cur = nullptr;
}

void run_grid(const char *name, dim3 grid, dim3 dim, size_t shared, const Body *body)
{
    if (!running.dynamic) {
        find_fixed_arrays();
        running.dynamic = (char *)reserve(SHARED_MOST);
        check_open(running.fixed_bytes);
    }
    running.fixed = thread_local_block(running.fixed_bytes, fixed_align);
    running.dynamic_bytes = shared;
#ifdef EMU_ASAN
    __asan_unpoison_memory_region(running.dynamic, shared);
    __asan_poison_memory_region(running.dynamic + shared, SHARED_MOST - shared);
#endif
    gridDim = grid;
    blockDim = dim;
    running.body = body;
    running.name = name;
    running.threads = dim.x * dim.y * dim.z;
    running.launch_at = ++running.clock;
    unsigned n = grid.x * grid.y * grid.z;
    std::vector<unsigned> blocks(n);
    for (unsigned i = 0; i < n; i++) blocks[i] = order_mode == ORDER_DOWN ? n - 1 - i : i;
    if (order_mode == ORDER_RANDOM)
        for (unsigned i = n; i > 1; i--) std::swap(blocks[i - 1], blocks[chance() % i]);
    for (unsigned block : blocks) run_block(block, grid, dim);
}

/* --- barriers and warp collectives */

void block_sync(const char *op, int agrees, int *count, const char *file, int line)
{
    thread *t = running.cur;
    if (!t) return report("%s outside a kernel", op);
    if (ended)
        report("divergent barrier: %s at %s:%d, but %u threads of the block have already ended", op, file, line, ended);
    for (unsigned i = 0; waiting && i < running.threads; i++) {
        const thread &o = threads[i];
        if (o.state != AT_BARRIER) continue;
        if (o.line != line || strcmp(o.file, file))
            report("divergent barrier: %s at %s:%d, but thread %u waits at %s:%d", op, file, line, i, o.file, o.line);
        break;
    }
    t->state = AT_BARRIER;
    t->op = op;
    t->file = file;
    t->line = line;
    waiting++;
    agreeing += agrees;
    if (waiting == running.threads - ended) {
        ++running.clock;
        for (unsigned i = 0; i < running.threads; i++) {
            if (threads[i].state != AT_BARRIER) continue;
            threads[i].barrier_at = running.clock;
            threads[i].count = agreeing;
            make_ready(&threads[i]);
        }
        waiting = agreeing = 0;
    }
    dispatch(false);
    if (count) *count = t->count;
}

void warp_sync(unsigned mask, void *arg, Resolver fn, bool orders_memory, const char *op, const char *file, int line)
{
    thread *t = running.cur;
    if (!t) return report("%s outside a kernel", op);
    unsigned first = t->linear & ~31u, me = t->linear & 31, warp = t->linear / LANES;
    if (!(mask >> me & 1)) return report("%s at %s:%d: calling lane %u is not in mask %08x", op, file, line, me, mask);
    t->state = AT_WARP;
    t->warp_mask = mask;
    t->warp_arg = arg;
    t->warp_fn = fn;
    t->op = op;
    t->file = file;
    t->line = line;
    arrived[warp] |= 1u << me;
    bool all = (arrived[warp] & mask) == mask;
    void *args[LANES] = {};
    for (unsigned l = 0; l < LANES; l++) {
        if (!(mask >> l & 1)) continue;
        const thread *o = &threads[first + l];
        if (first + l >= running.threads || o->state == DONE) {
            report("%s at %s:%d: lane %u of mask %08x %s", op, file, line, l, mask,
                   first + l >= running.threads ? "does not exist" : "has ended");
            mask &= ~(1u << l);
        } else if (all && (o->warp_mask != mask || o->warp_fn != fn)) {
            all = false;
        } else {
            args[l] = o->warp_arg;
        }
    }
    if (all) {
        if (fn) fn(args, mask);
        ++running.clock;
        for (unsigned l = 0; l < LANES; l++) {
            if (!(mask >> l & 1)) continue;
            thread *o = &threads[first + l];
            if (orders_memory) {
                o->warp_at = running.clock;
                o->warp_with = mask;
            }
            make_ready(o);
        }
        arrived[warp] &= ~mask;
    }
    dispatch(false);
}

/* After every atomic, so that a spin lock comes to its end; after any access if asked for. */
void preempt()
{
    static unsigned atomics;
    if (!running.cur) return;
    if (preempt_rate ? chance() % preempt_rate : ++atomics % PREEMPT_ATOMICS) return;
    make_ready(running.cur);
    dispatch(false);
}

void preempt_access()
{
    if (preempt_rate) preempt();
}

void *dyn_smem()
{
    return running.dynamic;
}

unsigned lane_id()
{
    return running.cur->linear & 31;
}

/* --- tensor cores: fragments as PTX ISA 9.7.14.5.8 (mma.m16n8k16), 9.7.14.5.15 (ldmatrix) lay them out */

static float bf16_of(unsigned pair, int high)
{
    return bits<float>(high ? pair & 0xffff0000u : pair << 16);
}

void mma_resolve_16816(void *const arg[32], unsigned mask)
{
    if (mask != FULL) report("mma.sync needs all 32 lanes");
    if (capability() < 80) report("mma.m16n8k16 of bf16 needs sm_80");
    float a[16][16], b[16][8];
    for (int l = 0; l < LANES; l++) {
        const Mma *m = (const Mma *)arg[l];
        int g = l / 4, t = l % 4;
        for (int r = 0; r < 4; r++)
            for (int h = 0; h < 2; h++) a[g + 8 * (r & 1)][2 * t + 8 * (r / 2) + h] = bf16_of(m->a[r], h);
        for (int r = 0; r < 2; r++)
            for (int h = 0; h < 2; h++) b[2 * t + 8 * r + h][g] = bf16_of(m->b[r], h);
    }
    for (int l = 0; l < LANES; l++) {
        const Mma *m = (const Mma *)arg[l];
        int g = l / 4, t = l % 4;
        for (int i = 0; i < 4; i++) {
            float s = m->c[i];
            for (int k = 0; k < 16; k++) s += a[g + 8 * (i / 2)][k] * b[k][2 * t + (i & 1)];
            m->d[i] = s;
        }
    }
}

void ldmatrix_resolve(void *const arg[32], unsigned)
{
    for (int l = 0; l < LANES; l++) {
        const Ldm *m = (const Ldm *)arg[l];
        for (int j = 0; j < m->n; j++) {
            auto row = [&](int r) { return (const uint16_t *)((const Ldm *)arg[8 * j + r])->row; };
            uint16_t low = m->trans ? row(2 * (l % 4))[l / 4] : row(l / 4)[2 * (l % 4)];
            uint16_t high = m->trans ? row(2 * (l % 4) + 1)[l / 4] : row(l / 4)[2 * (l % 4) + 1];
            m->out[j] = low | (unsigned)high << 16;
        }
    }
}

/* --- cp.async: copies as late as it may, at the wait that covers it; until then its destination is in flight */

void cp_async(void *dst, const void *src, int bytes, int src_bytes)
{
    uint32_t pc = (uint32_t)(uintptr_t)__builtin_return_address(0);
    if ((uintptr_t)dst % bytes || (uintptr_t)src % bytes) report("misaligned cp.async");
    check_access(src, src_bytes, READ, pc, false);
    check_access(dst, bytes, WRITE, pc, true);
    auto &groups = running.cur->copies;
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back({dst, src, bytes, src_bytes});
}

void cp_commit()
{
    running.cur->copies.emplace_back();
}

void cp_wait(int pending)
{
    auto &groups = running.cur->copies;
    while ((int)groups.size() > pending + 1 || (running.cur->state == DONE && !groups.empty())) {
        for (const async_copy &c : groups.front()) {
            check_landed(c.dst, c.bytes);
            memcpy(c.dst, c.src, c.src_bytes);
            memset((char *)c.dst + c.src_bytes, 0, c.bytes - c.src_bytes);
        }
        groups.erase(groups.begin());
    }
}
} // namespace emu
