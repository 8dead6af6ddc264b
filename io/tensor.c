/* tensor.c: values of every type as fp32. Files do not align their tensors: each value is copied out before it is used.
 */
#include "io/tensor.h"

#include <string.h>

size_t tensor_type_bytes(tensor_type t)
{
    switch (t) {
    case TENSOR_F64:
    case TENSOR_I64:
        return 8;
    case TENSOR_F32:
    case TENSOR_I32:
        return 4;
    case TENSOR_F16:
    case TENSOR_BF16:
    case TENSOR_I16:
    case TENSOR_U16:
        return 2;
    case TENSOR_U8:
    case TENSOR_I8:
    case TENSOR_BOOL:
        break;
    }
    return 1;
}

static float half_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
    float f;
    if (exponent == 0) { /* zero or subnormal: fraction * 2^-24 */
        f = (float)fraction * 0x1p-24f;
        return sign ? -f : f;
    }
    uint32_t bits =
        exponent == 31 ? sign | 0x7f800000u | fraction << 13 : sign | (exponent + 112) << 23 | fraction << 13;
    memcpy(&f, &bits, sizeof f);
    return f;
}

err_code tensor_to_f32(const tensor *t, float *out, err *e)
{
    const unsigned char *p = t->data;
#define EACH(ctype, expression)                                                                                        \
    for (size_t i = 0; i < t->count; i++) {                                                                            \
        ctype v;                                                                                                       \
        memcpy(&v, p + i * sizeof v, sizeof v);                                                                        \
        out[i] = (expression);                                                                                         \
    }                                                                                                                  \
    return ERR_OK
    switch (t->type) {
    case TENSOR_F32:
        if (t->count) memcpy(out, p, t->count * sizeof *out);
        return ERR_OK;
    case TENSOR_F16:
        EACH(uint16_t, half_to_f32(v));
    case TENSOR_BF16:
        for (size_t i = 0; i < t->count; i++) {
            uint32_t bits = (uint32_t)p[2 * i] << 16 | (uint32_t)p[2 * i + 1] << 24;
            memcpy(&out[i], &bits, sizeof bits);
        }
        return ERR_OK;
    case TENSOR_F64:
        EACH(double, (float)v);
    case TENSOR_U8:
        EACH(uint8_t, v);
    case TENSOR_I8:
        EACH(int8_t, v);
    case TENSOR_I16:
        EACH(int16_t, v);
    case TENSOR_U16:
        EACH(uint16_t, v);
    case TENSOR_I32:
        EACH(int32_t, (float)v);
    case TENSOR_I64:
        EACH(int64_t, (float)v);
    case TENSOR_BOOL:
        break;
    }
#undef EACH
    FAIL(e, UNSUPPORTED, "tensor '%.60s' is boolean", t->name);
}
