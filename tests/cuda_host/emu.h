/* emu.h: what the host executor's own files share. Kernels see cuda_emu.h and emu_core.h.
 *
 * emu_engine.cc runs grids: a fibre per thread, barriers, warp collectives, tensor cores, cp.async.
 * emu_check.cc holds memory and judges each access: bounds, initialised, races.
 * emu_stream.cc is the runtime's streams, events, graphs, launches; emu_runtime.cc the rest of it; emu_cublas.cc is
 * cuBLASLt. None of them is ever compiled with a sanitizer. One host thread at a time may use them. */
#ifndef RADAPT_EMU_H
#define RADAPT_EMU_H
#include <functional>
#include <string>
#include <vector>

#include "tests/cuda_host/emu_core.h"
#include "tests/cuda_host/emu_fail.h"

namespace emu
{
#ifdef EMU_ASAN /* the program's other files are compiled with -fsanitize=address */
constexpr bool ASAN = true;
#else
constexpr bool ASAN = false;
#endif
enum { REPORT_EXIT = 97, SETUP_EXIT = 98, LANES = 32, THREADS_MOST = 1024, SHARED_MOST = 256 << 10 };

struct async_copy {
    void *dst;
    const void *src;
    int bytes, src_bytes; /* what the source lacks is zeros */
};

struct fibre {
    const char *stack;
    size_t bytes;
    void *sp, *fake; /* fake: ASan's own stack */
};

enum thread_state : uint8_t { FRESH, READY, AT_BARRIER, AT_WARP, DONE };

/* A CUDA thread of the block that runs. */
struct thread {
    uint3 at;
    unsigned linear;
    thread_state state;
    fibre *on;
    const char *op, *file; /* where it waits */
    int line;
    int count; /* what __syncthreads_count returned */
    unsigned warp_mask;
    void *warp_arg;
    Resolver warp_fn;
    /* When, and with whom, it last synchronised: what the checker orders accesses by. */
    uint32_t barrier_at, warp_at;
    unsigned warp_with;
    std::vector<std::vector<async_copy>> copies; /* groups in flight; the last is still being filled */
};

/* The kernel that runs. The clock ticks at each launch, block, barrier and warp collective. */
struct kernel_run {
    const char *name;
    const Body *body;
    thread *cur;      /* NULL while host code runs */
    const fibre *on;  /* the stack that runs */
    unsigned threads; /* of a block */
    unsigned block;   /* linear */
    uint32_t clock, launch_at, block_at;
    char *fixed; /* static shared memory: the program's thread-local block */
    size_t fixed_bytes;
    char *dynamic; /* SHARED_MOST bytes of addresses, of which the launch owns the first dynamic_bytes */
    size_t dynamic_bytes;
};
extern kernel_run running;

struct allocation {
    size_t bytes;
    bool host; /* pinned */
};

/* What is alive, so that nothing is left at the end. */
enum live_kind { LIVE_MEMORY, LIVE_STREAMS, LIVE_EVENTS, LIVE_GRAPHS, LIVE_KINDS };
extern int live[LIVE_KINDS];
extern emu_counts counted;

/* --- emu_engine.cc */

long env(const char *name, long otherwise);
/* What CUDA_EMU_SEED starts. */
unsigned chance();
void *reserve(size_t bytes);
/* Another thread may run here, where CUDA_EMU_PREEMPT asks for it. */
void preempt_access();
void run_grid(const char *name, dim3 grid, dim3 block, size_t shared, const Body *body);

/* --- emu_check.cc */

void *memory_take(size_t bytes, bool host);
cudaError_t memory_give(void *p);
/* The allocation that p lies in, and where it begins; false: pageable, or nothing. */
bool memory_find(const void *p, uintptr_t *start, allocation *a);
/* Device bytes allocated now. */
size_t memory_used();
/* Whole range in one live allocation, and initialised if it is read; else reports and is false. */
bool check_range(const void *p, size_t n, Kind kind, const char *who);
void check_access(const void *p, size_t n, Kind kind, uint32_t pc, bool in_flight);
/* A cp.async into p has been waited for. */
void check_landed(const void *p, size_t n);
/* Shared memory's records, for a program with fixed_bytes of static arrays. */
void check_open(size_t fixed_bytes);

/* --- emu_stream.cc */

/* To be run on the stream when its turn comes, or recorded while it is being captured. */
cudaError_t push_op(cudaStream_t s, const char *name, std::function<void()> fn);
/* Runs all that is queued, in every stream. */
void sync_all();
/* Errors if a stream is being captured, whose capture is then lost: for calls that a capture forbids. */
cudaError_t forbidden_in_capture();

/* --- emu_runtime.cc */

/* At each call's entry: no device, a sticky error, a call from a host function, the call that is to fail. */
cudaError_t enter();
/* Whether a call has failed after which a GPU is of no more use. */
bool is_broken();
/* Remembers an error for cudaGetLastError(). */
cudaError_t fail(cudaError_t code);
/* Whether this call is the one that CUDA_EMU_FAIL_NTH names; counts it. */
bool fails_now();
void host_function(bool runs);
/* Compute capability, 86 unless CUDA_EMU_SM says otherwise. */
int capability();
/* Bytes of dynamic shared memory that a block of this kernel may have. */
size_t shared_limit(const void *kernel);

#define ENTER()                                                                                                        \
    do {                                                                                                               \
        if (cudaError_t entered_ = emu::enter()) return entered_;                                                      \
    } while (0)
} // namespace emu
#endif
