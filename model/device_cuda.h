/* device_cuda.h: the CUDA back end, which is a plugin: one package serves machines with and without CUDA, and nothing
 * of CUDA is loaded before a GPU is asked for.
 *
 *     device d; TRY(device_open_cuda(&d, 0, COMPUTE_AUTO, e));   // ERR_UNSUPPORTED: why there is none, in one line
 *
 * libradapt_cuda.so is looked for beside the program, then in ../lib/radapt of there, then where the system's loader
 * looks. It stays loaded. */
#ifndef RADAPT_DEVICE_CUDA_H
#define RADAPT_DEVICE_CUDA_H
#include "model/op.h"

#define DEVICE_CUDA_PLUGIN "libradapt_cuda.so"
#define DEVICE_CUDA_SYMBOL "radapt_cuda_open"

/* What program and plugin must have alike: they share the structs of op.h. */
typedef struct {
    char version[32];
    size_t table, device, linear, param, step;
} device_cuda_build;
#define DEVICE_CUDA_BUILD                                                                                              \
    {                                                                                                                  \
        RADAPT_VERSION, sizeof(op_table), sizeof(device), sizeof(linear_w), sizeof(param), sizeof(adamw_step)          \
    }
#define DEVICE_CUDA_OTHER DEVICE_CUDA_PLUGIN " belongs to another build: it is %.32s, the program %.32s"

/* The plugin's one symbol. room: what the GPU's memory has left, and what d holds of it. */
typedef size_t device_cuda_room_of(const device *d);
typedef err_code device_cuda_open(const device_cuda_build *b, device_cuda_room_of **room, device *d, int number,
                                  compute_type ct, err *e);
device_cuda_open radapt_cuda_open;

/* GPU `number`, from 0. COMPUTE_AUTO: bf16 where it has it, else fp32. On failure d is closed. */
err_code device_open_cuda(device *d, int number, compute_type ct, err *e);
/* By a plugin's symbol that is there already: tests are linked with it. */
err_code device_open_cuda_by(device_cuda_open *open, device *d, int number, compute_type ct, err *e);
bool device_is_cuda(const device *d);
/* Whether crops are made there (op->sample), from frames that go up once; or it counts for one that does. */
bool device_samples(const device *d);
/* Bytes of its GPU's memory that are left or d's own. */
size_t device_cuda_room(const device *d);

#endif
