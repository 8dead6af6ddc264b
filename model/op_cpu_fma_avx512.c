/* op_cpu_fma_avx512.c: op_cpu_fma.h for vectors of 16 floats. */
#include <math.h>
#include <string.h>

#include "model/op_cpu_gelu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,avx2,prefer-vector-width=512")
#endif
#define LANES 16
enum { ROWS = 14 }; /* times two sums, two vectors of the right operand, one of the left: what registers there are */
#include "model/op_cpu_fma_tile.h"

#include "model/op_cpu_fma_linear.h"

#include "model/op_cpu_fma_attention.h"

const op_cpu_fma op_cpu_fma_avx512 = {WIDTH, pack, linear, dw, attention_bytes, attention_fwd, attention_bwd};
#endif
