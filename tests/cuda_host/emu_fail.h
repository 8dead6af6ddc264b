/* emu_fail.h: how a test makes the executor's runtime calls fail, in its own process, and what it was asked for.
 *
 *     for (long n = 1;; n++) {
 *         emu_fail_nth(n, cudaErrorMemoryAllocation);   // counts from here
 *         run();                                        // must end in a clean error, or have had fewer calls
 *         assert_int_equal(emu_live(), 0);
 *         if (emu_calls() < n) break;
 *     } */
#ifndef RADAPT_EMU_FAIL_H
#define RADAPT_EMU_FAIL_H
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif
/* The n-th runtime call from now fails, with that cudaError_t; 0: none. Forgets earlier errors. */
void emu_fail_nth(long n, int code);
/* Calls since then. */
long emu_calls(void);
/* So far: memory taken and given back, waits of the host, bytes that were copied to the device; of cuBLASLt products,
 * those of them by fp16 copies of their operands, and questions to its heuristic. */
typedef struct {
    long memory, waits, products, half_products, heuristics;
    size_t up;
} emu_counts;
emu_counts emu_counted(void);
/* Allocations, streams, events and graphs that are alive. */
int emu_live(void);
#ifdef __cplusplus
}
#endif
#endif
