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

/* OP_COUNT_BARE: a device without tiles, packed weights and known workspaces: what any back end must hold at least. */
typedef enum { OP_COUNT_CPU, OP_COUNT_BARE } op_count_kind;

/* As device_open_cpu; BARE has bf16 whatever this processor has. Downloads give zeros. */
err_code op_count_open(device *d, int threads, compute_type ct, op_count_kind kind, err *e);

#endif
