/* emu_runtime.cc: the CUDA runtime apart from streams: devices, memory, copies, errors.
 *
 * CUDA_EMU_DEVICES=n: so many GPUs; -c: every call fails with error c (-35: no driver). CUDA_EMU_SM=75: compute
 * capability. CUDA_EMU_MEMORY=bytes: of device memory. CUDA_EMU_FAIL_NTH=n: the n-th call fails, with error
 * CUDA_EMU_FAIL_CODE (2: no memory); one after which a GPU is of no more use makes all later ones fail too. */
#include <cstdio>

#include <map>

#include "tests/cuda_host/emu.h"
#include "tests/cuda_host/emu_fail.h"

namespace emu
{
constexpr size_t MEMORY_BYTES = 8ull << 30;
constexpr int PROCESSORS = 4;

static long fail_nth = env("CUDA_EMU_FAIL_NTH", 0), calls;
static int fail_code = (int)env("CUDA_EMU_FAIL_CODE", cudaErrorMemoryAllocation);
static cudaError_t last, broken; /* broken: the sticky one */
static bool in_host_function;
static std::map<const void *, size_t> shared_asked;
static std::map<uintptr_t, size_t> registered; /* host memory pinned after it was allocated */

static const struct {
    cudaError_t code;
    bool sticky; /* the context is of no more use */
    const char *name, *text;
} errors[] = {
    {cudaSuccess, false, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, false, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, false, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, false, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorStubLibrary, false, "cudaErrorStubLibrary", "CUDA driver is a stub library"},
    {cudaErrorInsufficientDriver, false, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, false, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, false, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, false, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorECCUncorrectable, true, "cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"},
    {cudaErrorIllegalAddress, true, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchFailure, true, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotReady, false, "cudaErrorNotReady", "device not ready"},
    {cudaErrorNotPermitted, false, "cudaErrorNotPermitted", "operation not permitted"},
    {cudaErrorStreamCaptureUnsupported, false, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, false, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorGraphExecUpdateFailure, false, "cudaErrorGraphExecUpdateFailure",
     "the graph update was not performed because it included changes which violated constraints"},
};

cudaError_t fail(cudaError_t code)
{
    if (code) last = code;
    return code;
}

bool fails_now()
{
    if (++calls != fail_nth) return false;
    for (const auto &e : errors)
        if (e.code == fail_code && e.sticky) broken = last = e.code;
    return true;
}

static cudaError_t no_device()
{
    long n = env("CUDA_EMU_DEVICES", 1);
    return n > 0 ? cudaSuccess : n ? (cudaError_t)-n : cudaErrorNoDevice;
}

bool is_broken()
{
    return broken;
}

cudaError_t enter()
{
    if (in_host_function) {
        report("a CUDA call from a host function");
        return fail(cudaErrorNotPermitted);
    }
    if (broken) return fail(broken);
    if (cudaError_t rc = no_device()) return fail(rc);
    if (!fails_now()) return cudaSuccess;
    return fail((cudaError_t)fail_code);
}

void host_function(bool runs)
{
    in_host_function = runs;
    guard(runs ? -1 : 1); /* the host sees no device memory */
}

int capability()
{
    return (int)env("CUDA_EMU_SM", 86);
}

/* The most that a block may ask for: CUDA C++ programming guide, compute capabilities. */
static size_t shared_most()
{
    switch (capability()) {
    case 75:
        return 64 << 10;
    case 80:
        return 163 << 10;
    case 90:
    case 100:
        return 227 << 10;
    default:
        return 99 << 10;
    }
}

size_t shared_limit(const void *kernel)
{
    auto it = shared_asked.find(kernel);
    return it == shared_asked.end() ? 48 << 10 : it->second;
}

static size_t memory_bytes()
{
    return (size_t)env("CUDA_EMU_MEMORY", MEMORY_BYTES);
}

static cudaError_t take(void **p, size_t bytes, bool host)
{
    counted.memory++;
    ENTER();
    if (cudaError_t rc = forbidden_in_capture()) return rc;
    bool fits = host || (bytes <= memory_bytes() && memory_used() <= memory_bytes() - bytes);
    void *taken = fits ? memory_take(bytes, host) : nullptr;
    if (!taken) return fail(cudaErrorMemoryAllocation);
    *p = taken;
    return cudaSuccess;
}

static cudaError_t give(void *p)
{
    counted.memory++;
    if (cudaError_t rc = forbidden_in_capture()) return rc;
    sync_all();
    return fail(memory_give(p));
}

static bool is_device(const void *p)
{
    uintptr_t start;
    allocation a;
    return memory_find(p, &start, &a) && !a.host;
}

static bool is_pageable(const void *p)
{
    uintptr_t start;
    allocation a;
    if (memory_find(p, &start, &a)) return false;
    auto it = registered.upper_bound((uintptr_t)p);
    return it == registered.begin() || (uintptr_t)p >= (--it)->first + it->second;
}

static void copy(void *dst, const void *src, size_t n, cudaMemcpyKind kind)
{
    Guard open;
    uintptr_t start;
    allocation a;
    bool to = is_device(dst), from = is_device(src);
    if ((kind == cudaMemcpyHostToDevice && (!to || from)) || (kind == cudaMemcpyDeviceToHost && (to || !from)) ||
        (kind == cudaMemcpyDeviceToDevice && !(to && from)))
        report("cudaMemcpy: direction %d does not fit the pointers", kind);
    if (kind == cudaMemcpyHostToDevice) counted.up += n;
    if (memory_find(src, &start, &a) && !check_range(src, n, READ, "cudaMemcpy source")) return;
    if (memory_find(dst, &start, &a) && !check_range(dst, n, WRITE, "cudaMemcpy destination")) return;
    memcpy(dst, src, n);
}

/* Pageable memory is staged by the host, which then waits: no graph can hold that. */
static cudaError_t copy_later(cudaStream_t s, const void *dst, const void *src, std::function<void()> fn)
{
    cudaStreamCaptureStatus status;
    if (cudaError_t rc = cudaStreamIsCapturing(s, &status)) return rc;
    if (status != cudaStreamCaptureStatusNone && (is_pageable(dst) || is_pageable(src))) {
        cudaStreamSynchronize(s); /* refused, and the capture is lost */
        return fail(cudaErrorStreamCaptureUnsupported);
    }
    return push_op(s, "copy", std::move(fn));
}
} // namespace emu
using namespace emu;

extern "C" {
void emu_fail_nth(long n, int code)
{
    fail_nth = n;
    fail_code = code;
    calls = 0;
    last = broken = cudaSuccess;
}

long emu_calls(void)
{
    return calls;
}

emu_counts emu_counted(void)
{
    return counted;
}

int emu_live(void)
{
    int n = 0;
    for (int count : live) n += count;
    return n;
}

/* --- memory */

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    return take(p, bytes, false);
}

cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    return take(p, bytes, true);
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    return take(p, bytes, true);
}

cudaError_t cudaFree(void *p)
{
    return give(p);
}

cudaError_t cudaFreeHost(void *p)
{
    return give(p);
}

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned)
{
    ENTER();
    if (!p || !bytes || registered.count((uintptr_t)p)) return fail(cudaErrorInvalidValue);
    registered[(uintptr_t)p] = bytes;
    live[LIVE_MEMORY]++;
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *p)
{
    sync_all();
    if (!registered.erase((uintptr_t)p)) return fail(cudaErrorHostMemoryNotRegistered);
    live[LIVE_MEMORY]--;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    ENTER();
    *total = memory_bytes();
    *free_bytes = *total - memory_used();
    return cudaSuccess;
}

/* --- copies */

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n, cudaMemcpyKind kind, cudaStream_t s)
{
    ENTER();
    return copy_later(s, dst, src, [=] { copy(dst, src, n, kind); });
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t n, cudaMemcpyKind kind)
{
    ENTER();
    return push_op(nullptr, "copy", [=] { copy(dst, src, n, kind); });
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t s)
{
    ENTER();
    if (width > dst_pitch || width > src_pitch) return fail(cudaErrorInvalidPitchValue);
    return copy_later(s, dst, src, [=] {
        for (size_t i = 0; i < height; i++)
            copy((char *)dst + i * dst_pitch, (const char *)src + i * src_pitch, width, kind);
    });
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s)
{
    ENTER();
    return push_op(s, "set", [=] {
        Guard open;
        if (check_range(p, n, WRITE, "cudaMemset")) memset(p, value, n);
    });
}

cudaError_t cudaMemset(void *p, int value, size_t n)
{
    return cudaMemsetAsync(p, value, n, nullptr);
}

/* --- kernels */

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute name, int value)
{
    ENTER();
    if (name != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || (size_t)value > shared_most()) return fail(cudaErrorInvalidValue);
    shared_asked[kernel] = value;
    return cudaSuccess;
}

/* --- devices */

cudaError_t cudaGetDeviceCount(int *n)
{
    ENTER();
    *n = (int)env("CUDA_EMU_DEVICES", 1);
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *number)
{
    ENTER();
    *number = 0;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int number)
{
    ENTER();
    return number >= 0 && number < env("CUDA_EMU_DEVICES", 1) ? cudaSuccess : fail(cudaErrorInvalidDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int number)
{
    ENTER();
    if (number < 0 || number >= env("CUDA_EMU_DEVICES", 1)) return fail(cudaErrorInvalidDevice);
    *p = {};
    strcpy(p->name, "host executor");
    p->major = capability() / 10;
    p->minor = capability() % 10;
    p->multiProcessorCount = PROCESSORS;
    p->warpSize = LANES;
    p->maxThreadsPerBlock = THREADS_MOST;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = shared_most();
    p->sharedMemPerMultiprocessor = shared_most() + (1 << 10);
    p->totalGlobalMem = memory_bytes();
    p->memoryBusWidth = 128;
    p->l2CacheSize = 1 << 20;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr name, int number)
{
    cudaDeviceProp p;
    if (cudaError_t rc = cudaGetDeviceProperties(&p, number)) return rc;
    switch (name) {
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = (int)p.sharedMemPerBlock;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)p.sharedMemPerBlockOptin;
        return cudaSuccess;
    case cudaDevAttrMaxThreadsPerBlock:
        *value = p.maxThreadsPerBlock;
        return cudaSuccess;
    case cudaDevAttrL2CacheSize:
        *value = p.l2CacheSize;
        return cudaSuccess;
    case cudaDevAttrGlobalMemoryBusWidth:
        *value = p.memoryBusWidth;
        return cudaSuccess;
    case cudaDevAttrMemoryClockRate:
        *value = 1000000; /* kHz */
        return cudaSuccess;
    case cudaDevAttrClockRate:
        *value = 1000000;
        return cudaSuccess;
    default:
        report("a device attribute that the executor lacks: %d", name);
        return fail(cudaErrorInvalidValue);
    }
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

/* --- errors */

cudaError_t cudaGetLastError()
{
    cudaError_t code = last;
    last = broken;
    return code;
}

cudaError_t cudaPeekAtLastError()
{
    return last;
}

const char *cudaGetErrorString(cudaError_t code)
{
    for (const auto &e : errors)
        if (e.code == code) return e.text;
    return "an error that the executor has no words for";
}

const char *cudaGetErrorName(cudaError_t code)
{
    for (const auto &e : errors)
        if (e.code == code) return e.name;
    return "cudaErrorUnknown";
}
}
