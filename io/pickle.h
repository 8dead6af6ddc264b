/* pickle.h: the subset of Python's pickle that PyTorch state dicts are made of, as a tree of values. Nothing is ever
 * executed: of the things that a pickle may name, an allow-list becomes values here; anything else (argparse.Namespace,
 * numpy.dtype, os.system) stays its name, whatever the file wants to have called or built of it.
 *
 *     pickle p;
 *     TRY(pickle_read(&p, data, bytes, &e));     // data stays the caller's, and must outlive p: texts point into it
 *     const pickle_value *root = pickle_at(&p, p.root);
 *     for (uint32_t c = root->first; c; c = p.cells[c].next) ... p.cells[c].value ...
 *     pickle_fini(&p);
 *
 * Source: pickletools.py of Python 3 describes the instructions, torch/_utils.py and torch/serialization.py what
 * PyTorch lets them make. The tree may share values and may even hold itself: whoever walks it counts his steps. */
#ifndef RADAPT_PICKLE_H
#define RADAPT_PICKLE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "io/tensor.h"

typedef enum {
    PICKLE_OTHER,   /* None, numbers with a fraction, bytes: nothing that a state dict's tensors need */
    PICKLE_INT,     /* number; also True and False */
    PICKLE_TEXT,    /* text, bytes: not NUL-terminated */
    PICKLE_TUPLE,   /* cells */
    PICKLE_LIST,    /* cells */
    PICKLE_DICT,    /* cells: key, value, key, value, ...; also OrderedDict */
    PICKLE_GLOBAL,  /* number: which of the allow-list */
    PICKLE_OPAQUE,  /* text: module of something else; number: the value that is its name. What it holds is dropped */
    PICKLE_STORAGE, /* cells: 'storage', PICKLE_GLOBAL with a type, key, location, number of elements */
    PICKLE_TENSOR /* cells: PICKLE_STORAGE, offset, size, stride (in elements), ...: arguments of _rebuild_tensor_v2 */
} pickle_kind;

typedef struct {
    pickle_kind kind;
    uint32_t first, last, count; /* cells, 0: none */
    int64_t number;
    const char *text;
    size_t bytes;
} pickle_value;

typedef struct {
    uint32_t value, next;
} pickle_cell;

typedef struct {
    pickle_value *values; /* [0] stands for None */
    pickle_cell *cells;   /* [0] is no cell */
    size_t n_values, n_cells, values_room, cells_room;
    uint32_t root;
} pickle;

enum { PICKLE_BYTES_MAX = 16 << 20 };

/* More than PICKLE_BYTES_MAX bytes is ERR_LIMIT. Memory is a constant times bytes. */
err_code pickle_read(pickle *p, const unsigned char *data, size_t bytes, err *e);
void pickle_fini(pickle *p);
/* The value itself. */
static inline const pickle_value *pickle_at(const pickle *p, uint32_t value)
{
    return &p->values[value];
}
/* The index-th item of a value with cells; NULL: it has fewer. */
const pickle_value *pickle_item(const pickle *p, const pickle_value *of, uint32_t index);
/* Element type of a storage class (torch.HalfStorage, ...); false: v names something else. */
bool pickle_storage_type(const pickle_value *v, tensor_type *type);
/* "module.name" of something opaque, cut, without what a terminal would obey; false: v (or NULL) is not. */
enum { PICKLE_NAME = 100 };
bool pickle_opaque(const pickle *p, const pickle_value *v, char out[PICKLE_NAME]);

#endif
