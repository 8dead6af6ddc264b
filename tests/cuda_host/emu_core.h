/* emu_core.h: what kernels (cuda_emu.h) and the host executor (emu.h) share. */
#ifndef RADAPT_EMU_CORE_H
#define RADAPT_EMU_CORE_H
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>

extern uint3 threadIdx, blockIdx; /* set at every switch of fibres */
extern dim3 blockDim, gridDim;

namespace emu
{
enum Kind { READ, WRITE, ATOMIC };
/* What a warp collective does, once, when the last lane has arrived. */
using Resolver = void (*)(void *const arg[32], unsigned mask);
void block_sync(const char *op, int pred, int *count, const char *file, int line);
void warp_sync(unsigned mask, void *arg, Resolver fn, bool orders_memory, const char *op, const char *file, int line);
/* Bounds, initialised, races (race build). */
void access(const void *p, size_t n, Kind k);
/* Another thread may run here. */
void preempt();
/* A defect of the program under test. Ends the process unless CUDA_EMU_HALT=0. */
void report(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void *dyn_smem();
unsigned lane_id();

/* A kernel with its arguments, which are copied at launch. */
struct Body {
    size_t size;
    virtual void run() const = 0;
    virtual ~Body() {}
};

/* The body is freed by it. */
cudaError_t enqueue(const char *name, const void *fn, dim3 g, dim3 b, size_t smem, cudaStream_t s, Body *body);

/* While one lives the host may read and write device memory. */
void guard(int by);
struct Guard {
    Guard() { guard(1); }
    ~Guard() { guard(-1); }
};

void cp_async(void *dst, const void *src, int n, int src_n);
void cp_commit();
void cp_wait(int pending);

template <class To, class From> To bits(From f)
{
    static_assert(sizeof(To) == sizeof(From), "");
    To t;
    memcpy(&t, &f, sizeof t);
    return t;
}

void mma_resolve_16816(void *const arg[32], unsigned mask);
void ldmatrix_resolve(void *const arg[32], unsigned mask);
struct Mma {
    float *d;
    const unsigned *a, *b;
    const float *c;
};
struct Ldm {
    const void *row;
    unsigned *out;
    int n;
    bool trans;
};
} // namespace emu
#endif
