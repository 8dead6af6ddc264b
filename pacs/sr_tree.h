/* sr_tree.h: a C data set <-> a DICOM file, the only thing of pacs/ that knows DCMTK (sr_tree_dcmtk.cc).
 *
 * Files are written in Explicit VR Little Endian with explicit lengths: the same data set gives the same bytes. */
#ifndef RADAPT_SR_TREE_H
#define RADAPT_SR_TREE_H
#include "base/err.h"
#include "pacs/attributes.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    SR_TREE_BYTES_MAX = 256 << 20, /* of a file that is read */
    SR_TREE_DEPTH_MAX = 32,        /* of nested sequences */
};

/* The Part 10 file as malloc'ed bytes (caller frees). */
err_code sr_tree_encode(const attributes *d, unsigned char **bytes, size_t *n, err *e);
/* Reads a Part 10 file with text values only (what is not text or a sequence is left out). Caller: attributes_free. */
err_code sr_tree_read(const char *path, attributes **d, err *e);

#ifdef __cplusplus
}
#endif
#endif
