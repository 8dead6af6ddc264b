/* pth.h: what torch.save writes since PyTorch 1.6 (.pth, .pt, .bin): a zip archive with a pickle (pickle.h) and each
 * storage's bytes as an entry that is not compressed. Nested dicts give joined names: {'teacher': {'norm.weight': t}}
 * is "teacher.norm.weight". What is no tensor (epochs, optimisers' numbers) is left out.
 *
 *     pth p;
 *     TRY(pth_open(&p, path, &e));
 *     ... p.tensors[i], sorted by name ...
 *     pth_close(&p);
 *
 * Values lie in the mapped file; tensors whose strides are not those of a row-major array are copied in order, all
 * together no more bytes than the file has. Checksums are verified. Source: torch/serialization.py; APPNOTE.TXT (zip).
 */
#ifndef RADAPT_PTH_H
#define RADAPT_PTH_H
#include <stddef.h>

#include "base/file.h"
#include "io/tensor.h"

typedef struct {
    file_map map;
    tensor *tensors; /* sorted by name; names owned */
    size_t n;
    void **copies; /* tensors that were put in order */
    size_t n_copies;
} pth;

/* ERR_FORMAT: no such archive, or something else where tensors are needed; ERR_UNSUPPORTED: compressed entries, another
 * byte order, an element type that we have not; ERR_TRUNCATED: a tensor reaches beyond its storage. */
err_code pth_open(pth *p, const char *path, err *e);
void pth_close(pth *p);

#endif
