/* weights.h: named tensors, however the file that has them was written. What a file is its bytes say, not its name:
 *   safetensors                              one file
 *   model.safetensors.index.json             Hugging Face's index: which of the files beside it has which tensor
 *   .pth, .pt, .bin of torch.save (>= 1.6)   see pth.h
 *
 *     weights_file w;
 *     TRY(weights_open(&w, path, &e));
 *     const tensor *t = weights_find(&w, "norm.weight");   // NULL: not there
 *     weights_close(&w);                                   // tensors are gone with it */
#ifndef RADAPT_WEIGHTS_H
#define RADAPT_WEIGHTS_H
#include <stddef.h>

#include "io/tensor.h"

typedef struct weights_part weights_part;
typedef struct {
    const tensor *tensors; /* sorted by name */
    size_t n;
    tensor *own; /* an index's: of several parts */
    weights_part *parts;
    size_t n_parts;
} weights_file;

/* Errors of safetensors_open and pth_open, and: ERR_FORMAT not a file of weights, or an index that is wrong;
 * ERR_NOTFOUND no such file, or one that the index names; ERR_UNSUPPORTED torch.save's form from before 1.6. */
err_code weights_open(weights_file *w, const char *path, err *e);
void weights_close(weights_file *w);
/* The tensor's values were read and are not needed for now: the process holds none of their pages any more. */
void weights_forget(const weights_file *w, const tensor *t);
const tensor *weights_find(const weights_file *w, const char *name);
/* __metadata__ of safetensors, of an index the first part's that has it; NULL: not there. */
const char *weights_meta(const weights_file *w, const char *key);

#endif
