/* checkpoint.h: the trainable state as one safetensors file, atomic; and what a resumed run must agree with.
 *
 * Tensors: "<name>" (student master), "<name>.teacher", "<name>.adam_m", "<name>.adam_v", "<name>.rows" (int32), plus
 * extra tensors (centres). Metadata: format, backbone hash, configuration hash, step, and whatever the caller adds. */
#ifndef RADAPT_CHECKPOINT_H
#define RADAPT_CHECKPOINT_H
#include "io/safetensors.h"
#include "model/vit.h"

typedef struct {
    const char *key, *value;
} checkpoint_meta;
typedef struct {
    const char *name;
    dv *data; /* f32 on the device */
    size_t count;
} checkpoint_extra;

/* full: with Adam state and teacher (resume); else only the weights: the teacher's if use_teacher, else the student's.
 */
err_code checkpoint_write(const char *path, device *d, const param_set *ps, bool full, bool use_teacher,
                          const checkpoint_extra *extra, size_t n_extra, const checkpoint_meta *meta, size_t n_meta,
                          err *e);
/* Every param of ps must be there with its shape and rows (ERR_SHAPE/ERR_CONFLICT name it) unless optional. full as
 * above: without it only master and teacher := weights. Refreshes the live copies. */
err_code checkpoint_load(const safetensors *s, device *d, param_set *ps, bool full, const checkpoint_extra *extra,
                         size_t n_extra, err *e);

#endif
