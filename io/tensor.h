/* tensor.h: a named tensor as a file has it: type, shape, and where its values are. */
#ifndef RADAPT_TENSOR_H
#define RADAPT_TENSOR_H
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

typedef enum {
    TENSOR_F32,
    TENSOR_F16,
    TENSOR_BF16,
    TENSOR_F64,
    TENSOR_U8,
    TENSOR_I8,
    TENSOR_I16,
    TENSOR_U16,
    TENSOR_I32,
    TENSOR_I64,
    TENSOR_BOOL
} tensor_type;
enum { TENSOR_DIMS = 8 };

typedef struct {
    const char *name;
    tensor_type type;
    int dims;
    size_t shape[TENSOR_DIMS];
    size_t count;     /* elements */
    const void *data; /* may be unaligned when read from a file: use tensor_to_f32 or memcpy */
} tensor;

/* out[count] = t as fp32. ERR_UNSUPPORTED for bool. */
err_code tensor_to_f32(const tensor *t, float *out, err *e);
size_t tensor_type_bytes(tensor_type t);

#endif
