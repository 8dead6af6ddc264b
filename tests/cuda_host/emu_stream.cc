/* emu_stream.cc: launches, streams, events, graphs. A stream is a queue whose work runs as late as it may: when the
 * host waits. Then any stream whose first item can run may go first, at random (CUDA_EMU_SEED), as on a GPU: what no
 * event orders, no order can be relied on. CUDA_EMU_ASYNC=0: work runs when it is asked for.
 *
 * A capture takes items down instead. What CUDA forbids meanwhile is an error, and the capture is lost: to wait for the
 * stream, to copy from or to pageable memory, in other than relaxed mode to allocate or free. Streams that join the
 * capture by an event are taken down in the order of the calls, which is one of the orders that the graph allows. */
#include <deque>
#include <memory>

#include "tests/cuda_host/emu.h"

using operation = std::function<void()>;

struct capture {
    CUstream_st *origin;
    CUgraph_st *graph;
    cudaStreamCaptureMode mode;
    bool lost;
};
/* Of an event recorded in a capture: after how many of which stream's items. */
struct CUevent_st {
    uint64_t recorded, done;
    bool timing;
    capture *in;
    CUstream_st *of;
    size_t after;
};
struct item {
    std::string name;
    operation fn;
    CUevent_st *event; /* waits until event->done >= target */
    uint64_t target;
};
struct CUgraph_st {
    std::vector<item> items;
};
struct CUgraphExec_st {
    std::vector<item> items;
};
struct CUstream_st {
    bool blocking; /* waits for the default stream, and it for this one */
    std::deque<item> queue;
    capture *in;
    size_t taken, joined; /* items in the capture; those that it has waited for */
};

namespace emu
{
static const long late = env("CUDA_EMU_ASYNC", 1);
static CUstream_st default_stream = {true, {}, nullptr, 0, 0};
static std::vector<CUstream_st *> &streams = *new std::vector<CUstream_st *>{&default_stream};
static std::vector<CUevent_st *> &events = *new std::vector<CUevent_st *>;

static bool is_default(cudaStream_t s)
{
    return !s || s == cudaStreamLegacy;
}

static bool can_run(const CUstream_st *s)
{
    if (s->queue.empty()) return false;
    if (is_broken()) return true;
    const item &first = s->queue.front();
    return !first.event || first.event->done >= first.target;
}

static void step(CUstream_st *s)
{
    item it = std::move(s->queue.front());
    s->queue.pop_front();
    if (it.fn && !is_broken()) it.fn(); /* a GPU of no more use does nothing: what it would copy to may be gone */
}

template <class F> static void run_until(F done)
{
    if (done()) return;
    Guard open; /* device memory is opened once for all of it */
    while (!done()) {
        std::vector<CUstream_st *> some;
        for (CUstream_st *s : streams)
            if (can_run(s)) some.push_back(s);
        if (some.empty()) return report("streams are stuck: an event that is waited for was never recorded");
        step(some[chance() % some.size()]);
    }
}

static void run_streams(bool blocking_alone)
{
    run_until([=] {
        for (const CUstream_st *s : streams)
            if (!s->queue.empty() && (s->blocking || !blocking_alone)) return false;
        return true;
    });
}

void sync_all()
{
    run_streams(false);
}

static cudaError_t lose(capture *c, cudaError_t code)
{
    c->lost = true;
    return fail(code);
}

cudaError_t forbidden_in_capture()
{
    for (CUstream_st *s : streams)
        if (s->in && s->in->mode != cudaStreamCaptureModeRelaxed) return lose(s->in, cudaErrorStreamCaptureUnsupported);
    return cudaSuccess;
}

/* Waiting for all, or for the default stream: not while a stream that this concerns is captured. */
static cudaError_t forbidden_wait(bool all)
{
    for (CUstream_st *s : streams)
        if (s->in && (all || s->blocking))
            return lose(s->in, all ? cudaErrorStreamCaptureUnsupported : cudaErrorStreamCaptureImplicit);
    return cudaSuccess;
}

static cudaError_t push(cudaStream_t s, item it)
{
    if (is_default(s)) {
        if (cudaError_t rc = forbidden_wait(false)) return rc;
        run_streams(true);
        run_until([&] { return !it.event || it.event->done >= it.target; });
        if (it.fn) it.fn();
        return cudaSuccess;
    }
    if (s->in) {
        if (s->in->lost) return fail(cudaErrorStreamCaptureInvalidated);
        s->in->graph->items.push_back(std::move(it));
        s->taken++;
        return cudaSuccess;
    }
    s->queue.push_back(std::move(it));
    if (!late) sync_all();
    return cudaSuccess;
}

cudaError_t push_op(cudaStream_t s, const char *name, operation fn)
{
    return push(s, {name, std::move(fn), nullptr, 0});
}

cudaError_t enqueue(const char *name, const void *fn, dim3 grid, dim3 block, size_t shared, cudaStream_t s, Body *owned)
{
    std::shared_ptr<Body> kernel(owned);
    ENTER();
    uint64_t threads = (uint64_t)block.x * block.y * block.z, blocks = (uint64_t)grid.x * grid.y * grid.z;
    if (!threads || threads > THREADS_MOST || block.z > 64) return fail(cudaErrorInvalidConfiguration);
    if (!blocks || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) return fail(cudaErrorInvalidConfiguration);
    if (shared > shared_limit(fn)) return fail(cudaErrorInvalidValue);
    if (blocks * threads >= 1ull << 31) report("%s: more threads than the executor counts", name);
    return push_op(s, "kernel", [=] {
        Guard open;
        run_grid(name, grid, block, shared, kernel.get());
    });
}
} // namespace emu
using namespace emu;

extern "C" {
/* --- streams */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    ENTER();
    streams.push_back(*s = new CUstream_st{!(flags & cudaStreamNonBlocking), {}, nullptr, 0, 0});
    live[LIVE_STREAMS]++;
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *s)
{
    return cudaStreamCreateWithFlags(s, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int)
{
    return cudaStreamCreateWithFlags(s, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    if (s->in) report("cudaStreamDestroy while the stream is captured");
    sync_all();
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == s) {
            streams.erase(streams.begin() + i);
            delete s;
            live[LIVE_STREAMS]--;
            return cudaSuccess;
        }
    report("cudaStreamDestroy of no stream");
    return fail(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    ENTER();
    counted.waits++;
    if (is_default(s)) {
        if (cudaError_t rc = forbidden_wait(false)) return rc;
        run_streams(true);
        return cudaSuccess;
    }
    if (s->in) return lose(s->in, cudaErrorStreamCaptureUnsupported);
    run_until([=] { return s->queue.empty(); });
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize()
{
    ENTER();
    counted.waits++;
    if (cudaError_t rc = forbidden_wait(true)) return rc;
    sync_all();
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t s)
{
    ENTER();
    if (is_default(s)) return cudaSuccess;
    if (s->in) return lose(s->in, cudaErrorStreamCaptureUnsupported);
    if (can_run(s)) {
        Guard open;
        step(s);
    }
    return s->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void *arg)
{
    ENTER();
    return push_op(s, "host function", [=] {
        host_function(true);
        fn(arg);
        host_function(false);
    });
}

/* --- events */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    ENTER();
    events.push_back(*e = new CUevent_st{0, 0, !(flags & cudaEventDisableTiming), nullptr, nullptr, 0});
    live[LIVE_EVENTS]++;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *e)
{
    return cudaEventCreateWithFlags(e, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    sync_all();
    for (size_t i = 0; i < events.size(); i++)
        if (events[i] == e) events.erase(events.begin() + i--);
    delete e;
    live[LIVE_EVENTS]--;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    ENTER();
    if (!is_default(s) && s->in) {
        if (s->in->lost) return fail(cudaErrorStreamCaptureInvalidated);
        e->in = s->in;
        e->of = s;
        e->after = s->taken;
        return cudaSuccess;
    }
    e->in = nullptr;
    uint64_t n = ++e->recorded;
    return push_op(s, "event", [=] {
        if (e->done < n) e->done = n;
    });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
    ENTER();
    if (!e->in) {
        if (!is_default(s) && s->in) return lose(s->in, cudaErrorStreamCaptureIsolation);
        return push(s, {"wait", nullptr, e, e->recorded});
    }
    if (e->in->lost) return fail(cudaErrorStreamCaptureInvalidated);
    if (is_default(s)) return lose(e->in, cudaErrorStreamCaptureImplicit);
    if (s->in && s->in != e->in) return lose(s->in, cudaErrorStreamCaptureMerge);
    if (!s->in) {
        s->in = e->in;
        s->taken = s->joined = 0;
    }
    if (e->of != s && e->of->joined < e->after) e->of->joined = e->after;
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    ENTER();
    counted.waits++;
    if (e->in) return lose(e->in, cudaErrorCapturedEvent);
    run_until([=, n = e->recorded] { return e->done >= n; });
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t e)
{
    ENTER();
    if (e->in) return lose(e->in, cudaErrorCapturedEvent);
    return e->done >= e->recorded ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b)
{
    ENTER();
    if (!a->timing || !b->timing || !a->recorded || !b->recorded) return fail(cudaErrorInvalidResourceHandle);
    if (a->done < a->recorded || b->done < b->recorded) return cudaErrorNotReady;
    *ms = 0.001f;
    return cudaSuccess;
}

/* --- captures */

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode)
{
    ENTER();
    if (is_default(s)) return fail(cudaErrorStreamCaptureUnsupported);
    if (s->in) return fail(cudaErrorIllegalState);
    s->in = new capture{s, new CUgraph_st, mode, false};
    s->taken = s->joined = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph)
{
    *graph = nullptr;
    cudaError_t entered = enter();
    if (is_default(s) || !s->in) return fail(cudaErrorIllegalState);
    if (s->in->origin != s) return lose(s->in, cudaErrorStreamCaptureUnmatched);
    capture *c = s->in;
    cudaError_t rc = entered ? entered : c->lost ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
    for (CUstream_st *x : streams) {
        if (x->in != c) continue;
        if (x != s && x->taken > x->joined && !rc) rc = cudaErrorStreamCaptureUnjoined;
        x->in = nullptr;
    }
    for (CUevent_st *e : events)
        if (e->in == c) e->in = nullptr;
    if (rc) {
        delete c->graph;
    } else {
        *graph = c->graph;
        live[LIVE_GRAPHS]++;
    }
    delete c;
    return fail(rc);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *status)
{
    ENTER();
    *status = is_default(s) || !s->in ? cudaStreamCaptureStatusNone
              : s->in->lost           ? cudaStreamCaptureStatusInvalidated
                                      : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

/* --- graphs */

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n)
{
    ENTER();
    if (nodes) return fail(cudaErrorNotSupported);
    *n = graph->items.size();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    *exec = nullptr;
    ENTER();
    *exec = new CUgraphExec_st{graph->items};
    live[LIVE_GRAPHS]++;
    return cudaSuccess;
}

/* As many nodes, each of its kind and, if a kernel, of that kernel: kernels may be exchanged only within limits. */
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph, cudaGraphExecUpdateResultInfo *result)
{
    *result = {};
    ENTER();
    result->result = cudaGraphExecUpdateSuccess;
    if (exec->items.size() != graph->items.size()) result->result = cudaGraphExecUpdateErrorTopologyChanged;
    for (size_t i = 0; !result->result && i < exec->items.size(); i++)
        if (exec->items[i].name != graph->items[i].name) result->result = cudaGraphExecUpdateErrorNodeTypeChanged;
    if (result->result) return fail(cudaErrorGraphExecUpdateFailure);
    exec->items = graph->items;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s)
{
    ENTER();
    if (!is_default(s) && s->in)
        return lose(s->in, cudaErrorStreamCaptureUnsupported); /* a child graph: not modelled */
    for (const item &i : exec->items)
        if (cudaError_t rc = push(s, i)) return rc;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    live[LIVE_GRAPHS]--;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec; /* what was launched holds copies */
    live[LIVE_GRAPHS]--;
    return cudaSuccess;
}
}
