/* safetensors.c: the header is parsed with jansson, then every tensor is checked: known dtype, shape product and
 * offsets agree, offsets lie inside the file and cover it without overlap or hole. Data may be unaligned in files of
 * other writers; ours start the data at a multiple of 64 bytes. */
#include "io/safetensors.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"

enum { HEADER_MAX = 100 * 1000 * 1000, TENSORS_MAX = 1000 * 1000 };

static const struct {
    const char *name;
    tensor_type type;
} types[] = {{"F32", TENSOR_F32}, {"F16", TENSOR_F16}, {"BF16", TENSOR_BF16}, {"F64", TENSOR_F64},
             {"U8", TENSOR_U8},   {"I8", TENSOR_I8},   {"I16", TENSOR_I16},   {"U16", TENSOR_U16},
             {"I32", TENSOR_I32}, {"I64", TENSOR_I64}, {"BOOL", TENSOR_BOOL}};
enum { N_TYPES = sizeof types / sizeof *types };

static const char *type_name(tensor_type t)
{
    for (int i = 0; i < N_TYPES; i++)
        if (types[i].type == t) return types[i].name;
    return "";
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const tensor *)a)->name, ((const tensor *)b)->name);
}
static int by_data(const void *a, const void *b)
{
    const char *x = ((const tensor *)a)->data, *y = ((const tensor *)b)->data;
    if (x != y) return x < y ? -1 : 1;
    size_t m = ((const tensor *)a)->count, n = ((const tensor *)b)->count;
    return m < n ? -1 : m > n;
}

/* One entry of the header. data_bytes: bytes behind the header, data: where they start. */
static err_code parse_tensor(tensor *t, const char *name, const json_t *j, const unsigned char *data, size_t data_bytes,
                             err *e)
{
    const json_t *dtype = json_object_get(j, "dtype"), *shape = json_object_get(j, "shape"),
                 *offsets = json_object_get(j, "data_offsets");
    if (!json_is_string(dtype) || !json_is_array(shape) || !json_is_array(offsets) || json_array_size(offsets) != 2)
        FAIL(e, FORMAT, "safetensors: '%.60s' lacks dtype, shape or data_offsets", name);
    int k = 0;
    while (k < N_TYPES && strcmp(types[k].name, json_string_value(dtype))) k++;
    if (k == N_TYPES) FAIL(e, UNSUPPORTED, "safetensors: '%.60s' has an unknown dtype", name);
    if (json_array_size(shape) > TENSOR_DIMS)
        FAIL(e, UNSUPPORTED, "safetensors: '%.60s' has more than %d dimensions", name, TENSOR_DIMS);
    t->type = types[k].type;
    t->dims = (int)json_array_size(shape);
    t->count = 1;
    for (int i = 0; i < t->dims; i++) {
        const json_t *n = json_array_get(shape, (size_t)i);
        if (!json_is_integer(n) || json_integer_value(n) < 0)
            FAIL(e, FORMAT, "safetensors: '%.60s' has a shape that is no number", name);
        t->shape[i] = (size_t)json_integer_value(n);
        if (!size_mul(t->count, t->shape[i], &t->count))
            FAIL(e, FORMAT, "safetensors: '%.60s' has an impossible shape", name);
    }
    size_t bytes;
    const json_t *b = json_array_get(offsets, 0), *f = json_array_get(offsets, 1);
    if (!json_is_integer(b) || !json_is_integer(f) || json_integer_value(b) < 0 ||
        json_integer_value(f) < json_integer_value(b) ||
        !size_mul(t->count, tensor_type_bytes(types[k].type), &bytes) ||
        bytes != (size_t)(json_integer_value(f) - json_integer_value(b)))
        FAIL(e, FORMAT, "safetensors: '%.60s' has offsets that disagree with its shape", name);
    if ((size_t)json_integer_value(f) > data_bytes)
        FAIL(e, TRUNCATED, "safetensors: '%.60s' ends at byte %lld of %zu", name, (long long)json_integer_value(f),
             data_bytes);
    t->data = data + json_integer_value(b);
    t->name = strdup(name);
    if (!t->name) FAIL(e, NOMEM, "safetensors: no memory");
    return ERR_OK;
}

static err_code parse_meta(safetensors *s, const json_t *meta, err *e)
{
    const char *key;
    json_t *value;
    if (!json_is_object(meta)) FAIL(e, FORMAT, "safetensors: __metadata__ is no object");
    size_t n = json_object_size(meta);
    s->meta_keys = calloc(n + 1, sizeof *s->meta_keys);
    s->meta_values = calloc(n + 1, sizeof *s->meta_values);
    if (!s->meta_keys || !s->meta_values) FAIL(e, NOMEM, "safetensors: no memory");
    json_object_foreach((json_t *)(uintptr_t)meta, key, value)
    {
        if (!json_is_string(value)) FAIL(e, FORMAT, "safetensors: __metadata__ holds something that is no string");
        s->meta_keys[s->n_meta] = strdup(key);
        s->meta_values[s->n_meta] = strdup(json_string_value(value));
        if (!s->meta_keys[s->n_meta] || !s->meta_values[s->n_meta]) {
            s->n_meta++;
            FAIL(e, NOMEM, "safetensors: no memory");
        }
        s->n_meta++;
    }
    return ERR_OK;
}

err_code safetensors_open(safetensors *s, const char *path, err *e)
{
    *s = (safetensors){0};
    json_t *root = NULL;
    err_code rc;
    TRY_DONE(rc, file_map_open(&s->map, path, e));
    if (s->map.bytes < 8) FAIL_DONE(rc, e, TRUNCATED, "safetensors: file of %zu bytes", s->map.bytes);
    uint64_t header = 0;
    for (int i = 7; i >= 0; i--) header = header << 8 | s->map.data[i];
    if (header > HEADER_MAX) FAIL_DONE(rc, e, FORMAT, "safetensors: header length is not one of a safetensors file");
    if (header > s->map.bytes - 8)
        FAIL_DONE(rc, e, TRUNCATED, "safetensors: header of %llu bytes in a file of %zu", (unsigned long long)header,
                  s->map.bytes);
    json_error_t je;
    root = json_loadb((const char *)s->map.data + 8, header, JSON_REJECT_DUPLICATES, &je);
    if (!json_is_object(root)) FAIL_DONE(rc, e, FORMAT, "safetensors: header is no JSON object (byte %d)", je.position);
    size_t n = json_object_size(root);
    if (n > TENSORS_MAX) FAIL_DONE(rc, e, LIMIT, "safetensors: %zu tensors", n);
    s->tensors = calloc(n + 1, sizeof *s->tensors);
    if (!s->tensors) FAIL_DONE(rc, e, NOMEM, "safetensors: no memory for %zu tensors", n);
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value)
    {
        if (!strcmp(key, "__metadata__"))
            TRY_DONE(rc, parse_meta(s, value, e));
        else {
            TRY_DONE(rc, parse_tensor(&s->tensors[s->n], key, value, s->map.data + 8 + header,
                                      s->map.bytes - 8 - header, e));
            s->n++;
        }
    }
    qsort(s->tensors, s->n, sizeof *s->tensors, by_data);
    size_t end = 0; /* of the tensor before, from the start of the data */
    for (size_t i = 0; i < s->n; i++) {
        const tensor *t = &s->tensors[i];
        size_t begin = (size_t)((const unsigned char *)t->data - (s->map.data + 8 + header));
        if (begin != end)
            FAIL_DONE(rc, e, FORMAT, "safetensors: '%.60s' %s", t->name,
                      begin < end ? "overlaps another tensor" : "follows a hole");
        end = begin + t->count * tensor_type_bytes(t->type);
    }
    if (end != s->map.bytes - 8 - header)
        FAIL_DONE(rc, e, FORMAT, "safetensors: %zu bytes behind the last tensor", s->map.bytes - 8 - header - end);
    qsort(s->tensors, s->n, sizeof *s->tensors, by_name);
    rc = ERR_OK;
done:
    json_decref(root);
    if (rc) safetensors_close(s);
    return rc;
}

void safetensors_close(safetensors *s)
{
    for (size_t i = 0; i < s->n; i++) free((char *)(uintptr_t)s->tensors[i].name);
    for (size_t i = 0; i < s->n_meta; i++) {
        free(s->meta_keys[i]);
        free(s->meta_values[i]);
    }
    free(s->tensors);
    free(s->meta_keys);
    free(s->meta_values);
    file_map_close(&s->map);
    *s = (safetensors){0};
}

const tensor *safetensors_find(const safetensors *s, const char *name)
{
    tensor key = {.name = name};
    return s->n ? bsearch(&key, s->tensors, s->n, sizeof key, by_name) : NULL;
}

const char *safetensors_meta(const safetensors *s, const char *key)
{
    for (size_t i = 0; i < s->n_meta; i++)
        if (!strcmp(s->meta_keys[i], key)) return s->meta_values[i];
    return NULL;
}

static size_t bytes_of(const tensor *t)
{
    size_t bytes = tensor_type_bytes(t->type);
    for (int k = 0; k < t->dims; k++) bytes *= t->shape[k];
    return bytes;
}

static size_t round64(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

/* The header as JSON text; the caller frees. */
static err_code describe(const tensor *tensors, size_t n, const char *const *meta_keys, const char *const *meta_values,
                         size_t n_meta, char **text, err *e)
{
    err_code rc = ERR_OK;
    json_t *root = json_object();
    size_t offset = 0;
    if (n_meta) {
        json_t *meta = json_object();
        for (size_t i = 0; i < n_meta; i++)
            if (json_object_set_new(meta, meta_keys[i], json_string(meta_values[i]))) {
                json_decref(meta);
                FAIL_DONE(rc, e, INTERNAL, "safetensors: metadata '%.60s' is not UTF-8", meta_keys[i]);
            }
        json_object_set_new(root, "__metadata__", meta);
    }
    for (size_t i = 0; i < n; i++) {
        const tensor *t = &tensors[i];
        size_t bytes = bytes_of(t);
        json_t *shape = json_array();
        for (int k = 0; k < t->dims; k++) json_array_append_new(shape, json_integer((json_int_t)t->shape[k]));
        if (json_object_set_new(root, t->name,
                                json_pack("{s:s,s:o,s:[I,I]}", "dtype", type_name(t->type), "shape", shape,
                                          "data_offsets", (json_int_t)offset, (json_int_t)(offset + bytes))))
            FAIL_DONE(rc, e, INTERNAL, "safetensors: cannot describe tensor %zu", i);
        offset += bytes;
    }
    if (json_object_size(root) != n + (n_meta > 0)) FAIL_DONE(rc, e, INTERNAL, "safetensors: two tensors of one name");
    *text = json_dumps(root, JSON_COMPACT);
    if (!*text) FAIL_DONE(rc, e, NOMEM, "safetensors: no memory for the header");
done:
    json_decref(root);
    return rc;
}

static void write_header(FILE *f, const char *text)
{
    size_t used = strlen(text), padded = round64(8 + used) - 8;
    unsigned char length[8];
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)((uint64_t)padded >> (8 * i));
    fwrite(length, 1, sizeof length, f);
    fwrite(text, 1, used, f);
    for (size_t i = used; i < padded; i++) fputc(' ', f);
}

err_code safetensors_write_from(const char *path, const tensor *tensors, size_t n, const char *const *meta_keys,
                                const char *const *meta_values, size_t n_meta, safetensors_get get, void *ctx, err *e)
{
    err_code rc;
    char *text = NULL;
    file_writer *w = NULL;
    unsigned char *piece = malloc(SAFETENSORS_PIECE);
    if (!piece) FAIL(e, NOMEM, "safetensors: no memory for %d bytes", SAFETENSORS_PIECE);
    TRY_DONE(rc, describe(tensors, n, meta_keys, meta_values, n_meta, &text, e));
    TRY_DONE(rc, file_begin(&w, path, e));
    write_header(w->f, text);
    for (size_t i = 0; i < n && !ferror(w->f); i++)
        for (size_t at = 0, all = bytes_of(&tensors[i]); at < all && !ferror(w->f); at += SAFETENSORS_PIECE) {
            size_t bytes = all - at < SAFETENSORS_PIECE ? all - at : SAFETENSORS_PIECE;
            TRY_DONE(rc, get(ctx, i, at, bytes, piece, e));
            fwrite(piece, 1, bytes, w->f);
        }
    rc = file_commit(&w, e); /* sees any error of the writes above */
done:
    file_abandon(&w);
    free(text);
    free(piece);
    return rc;
}

static err_code get_data(void *tensors, size_t i, size_t at, size_t bytes, void *out, err *e)
{
    (void)e;
    memcpy(out, (const char *)((const tensor *)tensors)[i].data + at, bytes);
    return ERR_OK;
}

err_code safetensors_write(const char *path, const tensor *tensors, size_t n, const char *const *meta_keys,
                           const char *const *meta_values, size_t n_meta, err *e)
{
    return safetensors_write_from(path, tensors, n, meta_keys, meta_values, n_meta, get_data,
                                  (void *)(uintptr_t)tensors, e);
}
