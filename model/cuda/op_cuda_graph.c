/* op_cuda_graph.c: recording: what is asked of the device between record(d, true) and record(d, false) becomes a CUDA
 * graph, launched at the end in one call.
 *
 * The stream is captured anew each time, for scalars, sizes and places differ from step to step, and the executable
 * graph of the last recording of that kind is updated to it: one with as many nodes. Where that cannot be, a new one is
 * made. The first recordings run as they are asked, without a graph: then kernels are loaded and shapes looked up. What
 * may not be in a graph, a download or a wait, ends it there, and the rest becomes another.
 *
 * RADAPT_CUDA_GRAPH=0: no graphs. So it is, too, where captures cannot begin, and where the steps differ so much that
 * most updates fail (stochastic depth): making a graph costs more than asking. */
#include <stdlib.h>
#include <string.h>

#include "model/cuda/op_cuda.h"

enum { PLAIN = 3, KEPT = 8, TRIED = 32 };

typedef struct {
    cudaGraphExec_t exec;
    size_t nodes, used; /* used: number of the recording that ran it last */
} executable;

struct op_cuda_graph {
    bool off;                /* no graphs, or no more */
    bool recording, capture; /* between record's two calls; ... into a graph */
    size_t recordings, made;
    executable kept[KEPT];
};

err_code op_cuda_graph_open(device *d, err *e)
{
    const char *wish = getenv("RADAPT_CUDA_GRAPH");
    op_cuda_graph *g = op_cuda_of(d)->graph = calloc(1, sizeof *g);
    if (!g) FAIL(e, NOMEM, "no memory for the compute device");
    g->off = wish && !strcmp(wish, "0");
    return ERR_OK;
}

void op_cuda_graph_close(device *d)
{
    op_cuda_graph *g = op_cuda_of(d)->graph;
    if (!g) return;
    for (int i = 0; i < KEPT; i++)
        if (g->kept[i].exec) cudaGraphExecDestroy(g->kept[i].exec);
    free(g);
    op_cuda_of(d)->graph = NULL;
}

bool op_cuda_graph_recording(const device *d)
{
    return op_cuda_of(d)->graph->recording;
}

size_t op_cuda_graph_made(const device *d)
{
    return op_cuda_of(d)->graph->made;
}

static void begin(device *d)
{
    op_cuda_graph *g = op_cuda_of(d)->graph;
    g->recording = true;
    g->capture = !g->off && g->recordings++ >= PLAIN;
    if (!g->capture) return;
    if (cudaStreamBeginCapture(op_cuda_of(d)->stream, cudaStreamCaptureModeRelaxed)) {
        cudaGetLastError();
        g->off = true;
        g->capture = false;
    }
}

/* Of as many nodes, or else the one that was used longest ago. */
static executable *choose(op_cuda_graph *g, size_t nodes)
{
    executable *oldest = g->kept;
    for (executable *x = g->kept; x < g->kept + KEPT; x++) {
        if (x->exec && x->nodes == nodes) return x;
        if (!x->exec || (oldest->exec && x->used < oldest->used)) oldest = x;
    }
    return oldest;
}

/* An executable graph of what was captured. */
static cudaError_t prepare(op_cuda_graph *g, cudaGraph_t graph, executable **out)
{
    size_t nodes = 0;
    cudaGraphExecUpdateResultInfo why;
    cudaError_t rc = cudaGraphGetNodes(graph, NULL, &nodes);
    if (rc) return rc;
    executable *x = *out = choose(g, nodes);
    x->used = g->recordings;
    if (x->exec && x->nodes == nodes && !cudaGraphExecUpdate(x->exec, graph, &why)) return cudaSuccess;
    if (x->exec) {
        cudaGetLastError();
        cudaGraphExecDestroy(x->exec);
        *x = (executable){.used = x->used};
    }
    g->made++;
    if (g->made > TRIED && 2 * g->made > g->recordings) g->off = true; /* after this one */
    x->nodes = nodes;
    return cudaGraphInstantiate(&x->exec, graph, 0);
}

static void end(device *d)
{
    op_cuda_graph *g = op_cuda_of(d)->graph;
    cudaGraph_t graph = NULL;
    executable *x = NULL;
    g->recording = false;
    if (!g->capture) return;
    g->capture = false;
    cudaError_t rc = cudaStreamEndCapture(op_cuda_of(d)->stream, &graph);
    if (!rc) rc = prepare(g, graph, &x);
    if (!rc) rc = cudaGraphLaunch(x->exec, op_cuda_of(d)->stream);
    if (graph) cudaGraphDestroy(graph);
    op_cuda_check(d, rc, "a recorded step (RADAPT_CUDA_GRAPH=0 goes without)");
}

void op_cuda_record(device *d, bool on)
{
    if (on)
        begin(d);
    else
        end(d);
}
