/* frame_store.h: decoded frames in safetensors shards of about 256 MiB under work/frames/, mapped for reading.
 *
 * Written in batches: frame_store_put collects, frame_store_seal writes a shard atomically and gives every frame in it
 * its place; only then may the catalogue say "stored". Tensor names are "<instance key>.<frame>"; shapes (rows,
 * columns) int16 or uint16, or (rows, columns, 3) uint8. */
#ifndef RADAPT_FRAME_STORE_H
#define RADAPT_FRAME_STORE_H
#include "io/catalogue.h"

typedef struct frame_store frame_store;

/* Opens work/frames (made if needed); new shards are numbered after the largest there. */
err_code frame_store_open(frame_store **s, const char *work, err *e);
void frame_store_close(frame_store *s);

/* Copies the pixels and sums them; info->instance_key, frame, rows, columns, channels and type say what they are. */
err_code frame_store_put(frame_store *s, const frame_info *info, const void *pixels, err *e);
size_t frame_store_pending_bytes(const frame_store *s);
/* Writes what was put since the last seal as one shard (nothing: no shard). placed[i] (i in order of put, n of them)
 * gets shard, offset and checksum. */
err_code frame_store_seal(frame_store *s, frame_info *placed, size_t n, err *e);
/* Pixels of a stored frame (mapped, valid until close). ERR_TRUNCATED, ERR_FORMAT, ERR_NOTFOUND or ERR_CONFLICT if
 * the shard does not hold it as the catalogue says. Thread-safe. */
err_code frame_store_pixels(frame_store *s, const frame_info *f, const void **pixels, err *e);

/* Are the pixels those that were stored? All of them are read. true where the checksum is not known. */
bool frame_store_intact(const frame_info *f, const void *pixels);

#endif
