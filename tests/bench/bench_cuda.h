/* bench_cuda.h: what bench_cuda.c and its cases share: shapes, the two devices, the tensors of the case at hand. A case
 * makes its tensors on both sides and runs on either; its bytes are operands read once and results written once, its
 * operations those of the tensor cores. */
#ifndef RADAPT_BENCH_CUDA_H
#define RADAPT_BENCH_CUDA_H
#define TWIN_ANY_DEVICE
#include "tests/cuda_host/twin.h"

enum { TENSORS = 10, BOTTLENECK = 256, ROWS_OF_LOGITS = 256, CLASSES = 14, MASKED = 7, SIDE = 512 /* of a frame */ };
enum { LOCAL_T = 50, PROMPTS = 10 };
enum { GRID = 37, TAPS = 16, MIXED_MOST = 256 };
#define BIT(i) (1u << (i))

static size_t B, T = 257, C, H, D = 64, F, N, prototypes = 65536;
static twin pair;
static tensor t[TENSORS];
static linear_w w[TWINS];

/* An op at its shape. in, out: bits of the tensors that it needs and that are compared. */
typedef struct {
    const char *name;
    void (*make)(void);
    void (*run)(device *d, int side);
    unsigned out;
    double most; /* NMSE */
    double (*bytes)(void), (*flop)(void);
} bench_case;

static double ct(size_t n)
{
    return 2.0 * (double)n;
}

static void weight(size_t out, size_t in)
{
    tensor x = tensor_ct(&pair, out * in, 7, 0.05f), bias = tensor_f32(&pair, out, 8, 0.1f);
    BOTH(pair, i) w[i] = (linear_w){.out = out, .in = in, .w = x.p[i], .bias = bias.p[i], .frozen = true, .version = 1};
}

#endif
