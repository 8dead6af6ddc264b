/* safetensors.h: the safetensors format: 8 bytes little-endian header length, a JSON header, tensor bytes.
 *
 *     safetensors s;
 *     TRY(safetensors_open(&s, path, &e));
 *     const tensor *t = safetensors_find(&s, "norm.weight");   // NULL: not there
 *     safetensors_close(&s);
 *
 * Reading maps the file and checks every offset, shape and overlap against the bytes that are there before anything is
 * used. */
#ifndef RADAPT_SAFETENSORS_H
#define RADAPT_SAFETENSORS_H
#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "io/tensor.h"

typedef struct {
    file_map map;
    tensor *tensors; /* sorted by name */
    size_t n;
    char **meta_keys, **meta_values; /* __metadata__, owned */
    size_t n_meta;
} safetensors;

err_code safetensors_open(safetensors *s, const char *path, err *e);
void safetensors_close(safetensors *s);
const tensor *safetensors_find(const safetensors *s, const char *name);
const char *safetensors_meta(const safetensors *s, const char *key); /* NULL: not there */

/* Atomic. tensors: name, type, dims, shape, data set (count ignored). The data starts at a multiple of 64 bytes;
 * tensors follow each other in the order given, without holes. */
err_code safetensors_write(const char *path, const tensor *tensors, size_t n, const char *const *meta_keys,
                           const char *const *meta_values, size_t n_meta, err *e);
/* The same of data that is elsewhere (tensors' data is not looked at): get writes `bytes` bytes of tensors[i], from
 * byte `at` on, to out. It is asked in the file's order, for SAFETENSORS_PIECE bytes at most. */
enum { SAFETENSORS_PIECE = 1 << 20 };
typedef err_code (*safetensors_get)(void *ctx, size_t i, size_t at, size_t bytes, void *out, err *e);
err_code safetensors_write_from(const char *path, const tensor *tensors, size_t n, const char *const *meta_keys,
                                const char *const *meta_values, size_t n_meta, safetensors_get get, void *ctx, err *e);

#endif
