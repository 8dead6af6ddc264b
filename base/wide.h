/* wide.h: WIDE marks loops that are worth several versions, chosen at load time by what the processor has (levels, not
 * names: arch=haswell would match that very processor only). Not under sanitizers, whose instrumented resolvers crash.
 */
#ifndef RADAPT_WIDE_H
#define RADAPT_WIDE_H

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__)
#define WIDE __attribute__((noinline, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDE __attribute__((noinline))
#endif

#endif
