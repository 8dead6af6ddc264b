/* emu.h: what the host executor's own files share. Kernels see cuda_emu.h alone.
 *
 * emu_engine.cc runs grids: a fibre per thread, barriers, warp collectives. emu_check.cc holds device memory and judges
 * each access: bounds, initialised, races. emu_runtime.cc is the CUDA runtime: memory, streams, events, graphs,
 * devices. emu_cublas.cc is cuBLASLt. None of them is ever compiled with a sanitizer. */
#ifndef RADAPT_EMU_H
#define RADAPT_EMU_H
#include <functional>
#include <string>

#include "tests/cuda_host/cuda_emu.h"

namespace emu
{
long env(const char *name, long otherwise);

/* Whole range in one live allocation, and initialised if it is read; else reports and is false. */
bool check_range(const void *p, size_t n, Kind kind, const char *who);
/* To be run on the stream when its turn comes, or recorded if it is being captured. */
cudaError_t push_op(cudaStream_t s, std::function<void()> fn);
/* Whether this runtime call is the one that CUDA_EMU_FAIL_NTH names; counts it. */
bool fails_now();
/* Compute capability, 86 unless CUDA_EMU_SM says otherwise. */
int capability();
} // namespace emu
#endif
