/* op_count.h: a device that computes nothing and counts. The program's own code, run on it, says what a run would take:
 * bytes of device memory (device.bytes, device.bytes_most; weights packed by the CPU back end too) and operations
 * (device.flop). Memory has addresses and no content, so that a model of any size opens in no time and next to no
 * memory.
 *
 *     device d; TRY(op_count_open(&d, threads, COMPUTE_AUTO, OP_COUNT_CPU, e));
 *     vit_open(&m, &d, ...); vit_train(...); ssl_step_open(...); ssl_step_gradients(...);
 *     // d.bytes_most, d.flop[FLOP_DX]
 *     device_close(&d); */
#ifndef RADAPT_OP_COUNT_H
#define RADAPT_OP_COUNT_H
#include "model/op.h"

/* OP_COUNT_CUDA: the CUDA back end's memory (model/cuda/op_cuda_bytes.h), wherever this is asked. */
typedef enum { OP_COUNT_CPU, OP_COUNT_CUDA } op_count_kind;

/* As device_open_cpu; CUDA has bf16 whatever this processor has. Downloads give zeros. */
err_code op_count_open(device *d, int threads, compute_type ct, op_count_kind kind, err *e);
size_t op_count_fixed(const device *d);  /* bytes that the device takes for itself when it is opened */
size_t op_count_pinned(const device *d); /* bytes of the host's memory that uploads wait in */

#endif
