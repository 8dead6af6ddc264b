/* frame_store.c: shard files are named frames/000000.safetensors and only ever appear whole (atomic write). A shard
 * that was sealed but never entered into the catalogue (kill between the two) is not referenced by anything: its number
 * is skipped, and prepare writes the same frames again under a new number. */
#include "io/frame_store.h"

#include <dirent.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "io/safetensors.h"

enum { SHARDS_MAX = 1000000 };

typedef struct {
    tensor t;
    int64_t checksum;
    char name[KEY_HEX + 16];
} pending_frame;

struct frame_store {
    char folder[FILE_PATH_MAX];
    pending_frame *pending;
    size_t n, capacity, bytes;
    int next; /* number of the next shard */
    pthread_mutex_t lock;
    safetensors *shards; /* (n_shards): mapped shards; map.data NULL: not yet */
    int n_shards;
};

static err_code shard_path(const frame_store *s, int shard, char out[FILE_PATH_MAX], err *e)
{
    return file_path(out, e, "%s/%06d.safetensors", s->folder, shard);
}

err_code frame_store_open(frame_store **out, const char *work, err *e)
{
    *out = NULL;
    frame_store *s = calloc(1, sizeof *s);
    if (!s) FAIL(e, NOMEM, "frame store: no memory");
    pthread_mutex_init(&s->lock, NULL);
    err_code rc = file_path(s->folder, e, "%s/frames", work);
    if (!rc) rc = file_mkdirs(s->folder, e);
    DIR *d = rc ? NULL : opendir(s->folder);
    if (!rc && !d) rc = err_set(e, ERR_IO, __FILE__, __LINE__, "frame store: cannot list its folder");
    for (struct dirent *f; d && (f = readdir(d));) {
        int number = -1, end = 0;
        if (strstr(f->d_name, ".safetensors.tmp-")) { /* a kill in the middle of a write */
            char path[FILE_PATH_MAX];
            if (!file_path(path, NULL, "%s/%s", s->folder, f->d_name)) unlink(path);
        } else if (sscanf(f->d_name, "%6d.safetensors%n", &number, &end) == 1 && end && !f->d_name[end] &&
                   number >= s->next) {
            s->next = number + 1;
        }
    }
    if (d) closedir(d);
    if (rc) {
        frame_store_close(s);
        return rc;
    }
    *out = s;
    return ERR_OK;
}

static void drop_pending(frame_store *s)
{
    for (size_t i = 0; i < s->n; i++) free((void *)(uintptr_t)s->pending[i].t.data);
    s->n = s->bytes = 0;
}

void frame_store_close(frame_store *s)
{
    if (!s) return;
    drop_pending(s);
    free(s->pending);
    for (int i = 0; i < s->n_shards; i++) safetensors_close(&s->shards[i]);
    free(s->shards);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static tensor_type stored_type(pixel_type t)
{
    return t == PIXEL_I16 ? TENSOR_I16 : t == PIXEL_U16 ? TENSOR_U16 : TENSOR_U8;
}

/* Bytes of the pixels of f, 0 if it cannot be one of ours. */
static size_t frame_bytes(const frame_info *f)
{
    if (f->rows <= 0 || f->columns <= 0 || f->rows > 65535 || f->columns > 65535) return 0;
    size_t n = (size_t)f->rows * (size_t)f->columns;
    if (f->channels == 1 && (f->type == PIXEL_I16 || f->type == PIXEL_U16)) return 2 * n;
    return f->channels == 3 && f->type == PIXEL_U8 ? 3 * n : 0;
}

static int64_t checksum_of(const void *pixels, size_t bytes)
{
    return (int64_t)crc32_z(0, pixels, bytes);
}

bool frame_store_intact(const frame_info *f, const void *pixels)
{
    return f->checksum < 0 || checksum_of(pixels, frame_bytes(f)) == f->checksum;
}

err_code frame_store_put(frame_store *s, const frame_info *info, const void *pixels, err *e)
{
    size_t bytes = frame_bytes(info);
    if (!bytes) FAIL(e, INTERNAL, "frame store: a frame of an impossible shape");
    if (s->n == s->capacity) {
        size_t want = s->capacity ? 2 * s->capacity : 64;
        pending_frame *p = realloc(s->pending, want * sizeof *p);
        if (!p) FAIL(e, NOMEM, "frame store: no memory");
        s->pending = p;
        s->capacity = want;
    }
    void *copy = malloc(bytes);
    if (!copy) FAIL(e, NOMEM, "frame store: no memory for %zu bytes", bytes);
    memcpy(copy, pixels, bytes);
    pending_frame *f = &s->pending[s->n++];
    *f = (pending_frame){.t = {.type = stored_type(info->type), .dims = info->channels == 3 ? 3 : 2, .data = copy}};
    f->checksum = checksum_of(copy, bytes);
    f->t.shape[0] = (size_t)info->rows;
    f->t.shape[1] = (size_t)info->columns;
    f->t.shape[2] = 3;
    snprintf(f->name, sizeof f->name, "%s.%d", info->instance_key, info->frame);
    s->bytes += bytes;
    return ERR_OK;
}

size_t frame_store_pending_bytes(const frame_store *s)
{
    return s->bytes;
}

err_code frame_store_seal(frame_store *s, frame_info *placed, size_t n, err *e)
{
    if (n != s->n) FAIL(e, INTERNAL, "frame store: %zu frames to place, %zu were put", n, s->n);
    if (!n) return ERR_OK;
    if (s->next >= SHARDS_MAX) FAIL(e, LIMIT, "frame store: %d shards", s->next);
    char path[FILE_PATH_MAX];
    TRY(shard_path(s, s->next, path, e));
    tensor *t = malloc(n * sizeof *t);
    if (!t) FAIL(e, NOMEM, "frame store: no memory");
    size_t k = 0;
    for (int narrow = 0; narrow < 2; narrow++) /* 16-bit frames first: they stay aligned */
        for (size_t i = 0; i < n; i++) {
            if ((s->pending[i].t.type == TENSOR_U8) != narrow) continue;
            t[k] = s->pending[i].t;
            t[k++].name = s->pending[i].name;
        }
    err_code rc = safetensors_write(path, t, n, NULL, NULL, 0, e);
    free(t);
    TRY(rc);
    safetensors written; /* read back: the places are those of the file, not of a guess about the header's length */
    TRY(safetensors_open(&written, path, e));
    for (size_t i = 0; i < n && !rc; i++) {
        const tensor *w = safetensors_find(&written, s->pending[i].name);
        if (!w)
            rc = err_set(e, ERR_INTERNAL, __FILE__, __LINE__, "frame store: frame %zu is not in its shard", i);
        else {
            placed[i].checksum = s->pending[i].checksum;
            placed[i].shard = s->next;
            placed[i].offset = (uint64_t)((const unsigned char *)w->data - written.map.data);
        }
    }
    safetensors_close(&written);
    TRY(rc);
    s->next++;
    drop_pending(s);
    return ERR_OK;
}

/* The shard's tensor of this frame, if it is what and where the catalogue says: a shard that was cut off, replaced, or
 * took the number of one that got lost is an error, not other pixels. */
static err_code find(const safetensors *shard, const frame_info *f, size_t bytes, const void **pixels, err *e)
{
    char name[KEY_HEX + 16];
    snprintf(name, sizeof name, "%.*s.%d", KEY_HEX - 1, f->instance_key, f->frame);
    const tensor *t = safetensors_find(shard, name);
    if (!t) FAIL(e, NOTFOUND, "frame store: shard %d does not hold a frame that the catalogue places there", f->shard);
    if (t->type != stored_type(f->type) || t->dims != (f->channels == 3 ? 3 : 2) || t->shape[0] != (size_t)f->rows ||
        t->shape[1] != (size_t)f->columns || t->count * tensor_type_bytes(t->type) != bytes ||
        (uint64_t)((const unsigned char *)t->data - shard->map.data) != f->offset)
        FAIL(e, CONFLICT, "frame store: shard %d holds a frame otherwise than the catalogue says", f->shard);
    if (f->offset % (f->type == PIXEL_U8 ? 1 : 2)) FAIL(e, FORMAT, "frame store: shard %d is not aligned", f->shard);
    *pixels = t->data;
    return ERR_OK;
}

err_code frame_store_pixels(frame_store *s, const frame_info *f, const void **pixels, err *e)
{
    size_t bytes = frame_bytes(f);
    if (!bytes || f->shard < 0 || f->shard >= SHARDS_MAX) FAIL(e, FORMAT, "frame store: a catalogue entry is damaged");
    err_code rc = ERR_OK;
    pthread_mutex_lock(&s->lock);
    if (f->shard >= s->n_shards) {
        safetensors *m = realloc(s->shards, ((size_t)f->shard + 1) * sizeof *m);
        if (!m) FAIL_DONE(rc, e, NOMEM, "frame store: no memory");
        memset(m + s->n_shards, 0, (size_t)(f->shard + 1 - s->n_shards) * sizeof *m);
        s->shards = m;
        s->n_shards = f->shard + 1;
    }
    safetensors *shard = &s->shards[f->shard];
    if (!shard->map.data) {
        char path[FILE_PATH_MAX];
        TRY_DONE(rc, shard_path(s, f->shard, path, e));
        TRY_DONE(rc, safetensors_open(shard, path, e));
    }
    rc = find(shard, f, bytes, pixels, e);
done:
    pthread_mutex_unlock(&s->lock);
    return rc;
}
