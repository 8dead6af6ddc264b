/* pth.c: minizip reads the archive's directory; entries are then used where they lie in the map, after their place and
 * size were compared with the bytes that are there. */
#include "io/pth.h"

#include <minizip/unzip.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/arena.h"
#include "base/log.h"
#include "io/pickle.h"

enum { NAME_BYTES = 512, ENTRIES_MAX = 1000 * 1000, DEPTH_MAX = 8 };

typedef struct {
    char *name;
    size_t at, bytes; /* in the map */
    unsigned long crc;
    bool checked;
} entry;

typedef struct {
    pth *p;
    entry *entries; /* sorted by name */
    size_t n, room;
    char root[NAME_BYTES]; /* "archive/": in front of data.pkl and data/N */
    pickle pk;
    size_t steps, copied, tensors_room;
    const pickle_value *opaque; /* the first under a dict */
    err *e;
} reading;

/* --- the archive */

static int entry_by_name(const void *a, const void *b)
{
    return strcmp(((const entry *)a)->name, ((const entry *)b)->name);
}

static err_code add_entry(reading *r, unzFile zip)
{
    char name[NAME_BYTES];
    unz_file_info64 info;
    if (unzGetCurrentFileInfo64(zip, &info, name, sizeof name, NULL, 0, NULL, 0) != UNZ_OK)
        FAIL(r->e, FORMAT, "zip: entry %zu cannot be read", r->n);
    if (info.size_filename >= sizeof name) FAIL(r->e, LIMIT, "zip: a name of %lu bytes", info.size_filename);
    name[info.size_filename] = 0;
    if (r->n == ENTRIES_MAX) FAIL(r->e, LIMIT, "zip: more than %d entries", ENTRIES_MAX);
    if (info.compression_method || info.flag & 1)
        FAIL(r->e, UNSUPPORTED, "zip: a compressed or encrypted entry, which torch.save does not write");
    int method, level;
    if (unzOpenCurrentFile2(zip, &method, &level, 1) != UNZ_OK)
        FAIL(r->e, FORMAT, "zip: entry %zu disagrees with the directory", r->n);
    ZPOS64_T at = unzGetCurrentFileZStreamPos64(zip);
    unzCloseCurrentFile(zip);
    size_t all = r->p->map.bytes;
    if (at > all || info.uncompressed_size > all - at || info.uncompressed_size != info.compressed_size)
        FAIL(r->e, TRUNCATED, "zip: entry %zu of %llu bytes reaches beyond the file", r->n,
             (unsigned long long)info.uncompressed_size);
    if (r->n == r->room) {
        size_t room = r->room ? 2 * r->room : 64;
        entry *more = realloc(r->entries, room * sizeof *more);
        if (!more) FAIL(r->e, NOMEM, "no memory for a list of %zu entries", room);
        r->entries = more;
        r->room = room;
    }
    r->entries[r->n] = (entry){strdup(name), (size_t)at, (size_t)info.uncompressed_size, info.crc, false};
    if (!r->entries[r->n].name) FAIL(r->e, NOMEM, "no memory for a list of entries");
    r->n++;
    return ERR_OK;
}

static err_code read_directory(reading *r, const char *path)
{
    unzFile zip = unzOpen64(path);
    if (!zip) FAIL(r->e, FORMAT, "zip: no directory at the file's end (is the download complete?)");
    err_code rc = ERR_OK;
    int state = unzGoToFirstFile(zip);
    while (state == UNZ_OK && !rc) {
        rc = add_entry(r, zip);
        if (!rc) state = unzGoToNextFile(zip);
    }
    unzClose(zip);
    if (!rc && state != UNZ_END_OF_LIST_OF_FILE)
        rc = err_set(r->e, ERR_FORMAT, __FILE__, __LINE__, "zip: bad directory");
    TRY(rc);
    if (r->n) qsort(r->entries, r->n, sizeof *r->entries, entry_by_name);
    for (size_t i = 1; i < r->n; i++)
        if (!strcmp(r->entries[i].name, r->entries[i - 1].name)) FAIL(r->e, FORMAT, "zip: two entries of one name");
    return ERR_OK;
}

/* Entry root + name, its checksum verified once; NULL: not there. */
static err_code find_entry(reading *r, const char *name, const entry **out)
{
    char full[2 * NAME_BYTES];
    snprintf(full, sizeof full, "%s%s", r->root, name);
    entry key = {.name = full}, *found = r->n ? bsearch(&key, r->entries, r->n, sizeof key, entry_by_name) : NULL;
    *out = found;
    if (!found || found->checked) return ERR_OK;
    if (crc32_z(crc32_z(0, NULL, 0), r->p->map.data + found->at, found->bytes) != found->crc)
        FAIL(r->e, FORMAT, "zip: an entry's bytes are not those that were written (checksum)");
    found->checked = true;
    return ERR_OK;
}

static err_code find_root(reading *r)
{
    static const char *const pickle_name = "data.pkl";
    int found = 0;
    for (size_t i = 0; i < r->n; i++) {
        const char *slash = strrchr(r->entries[i].name, '/'), *base = slash ? slash + 1 : r->entries[i].name;
        if (strcmp(base, pickle_name)) continue;
        size_t n = (size_t)(base - r->entries[i].name);
        memcpy(r->root, r->entries[i].name, n);
        r->root[n] = 0;
        found++;
    }
    if (found != 1) FAIL(r->e, FORMAT, "zip: %d data.pkl in the archive: not one file of torch.save", found);
    const entry *order;
    TRY(find_entry(r, "byteorder", &order));
    if (order && (order->bytes != 6 || memcmp(r->p->map.data + order->at, "little", 6)))
        FAIL(r->e, UNSUPPORTED, "a file of a machine with another byte order");
    return ERR_OK;
}

/* --- tensors */

/* Where a tensor is needed: ERR_FORMAT if v (or NULL) is something opaque. */
static err_code refuse_opaque(reading *r, const pickle_value *v)
{
    char name[PICKLE_NAME];
    if (!pickle_opaque(&r->pk, v, name)) return ERR_OK;
    FAIL(r->e, FORMAT, "the file needs %s, which no state dict is made of; save the model's state_dict() alone", name);
}

/* The storage's bytes in the map. elements: how many it has. */
static err_code read_storage(reading *r, const pickle_value *v, const char *name, tensor_type *type,
                             const unsigned char **data, size_t *elements)
{
    char file[NAME_BYTES];
    TRY(refuse_opaque(r, v));
    if (!v || v->kind != PICKLE_STORAGE) FAIL(r->e, FORMAT, "'%.60s' has no storage", name);
    TRY(refuse_opaque(r, pickle_item(&r->pk, v, 1)));
    const pickle_value *key = pickle_item(&r->pk, v, 2), *count = pickle_item(&r->pk, v, 4);
    if (!pickle_storage_type(pickle_item(&r->pk, v, 1), type) || !key || key->kind != PICKLE_TEXT || !count ||
        count->kind != PICKLE_INT || key->bytes > 64 || memchr(key->text, 0, key->bytes))
        FAIL(r->e, FORMAT, "'%.60s' has a storage that is not described as PyTorch's are", name);
    snprintf(file, sizeof file, "data/%.*s", (int)key->bytes, key->text);
    const entry *found;
    TRY(find_entry(r, file, &found));
    if (!found) FAIL(r->e, FORMAT, "'%.60s': its bytes are not in the archive", name);
    if (count->number < 0 || (uint64_t)count->number > found->bytes / tensor_type_bytes(*type))
        FAIL(r->e, TRUNCATED, "'%.60s' has %lld values, and %zu bytes are there", name, (long long)count->number,
             found->bytes);
    *data = r->p->map.data + found->at;
    *elements = (size_t)count->number;
    return ERR_OK;
}

/* Shape and strides (in elements). row_major: they are those of an array without gaps. last: index of the last element.
 */
static err_code read_shape(reading *r, const pickle_value *size, const pickle_value *stride, tensor *t,
                           size_t strides[TENSOR_DIMS], bool *row_major, size_t *last)
{
    if (!size || !stride || size->kind != PICKLE_TUPLE || stride->kind != PICKLE_TUPLE || size->count != stride->count)
        FAIL(r->e, FORMAT, "'%.60s' has no shape", t->name);
    if (size->count > TENSOR_DIMS)
        FAIL(r->e, UNSUPPORTED, "'%.60s' has %u dimensions, at most %d are read", t->name, size->count, TENSOR_DIMS);
    t->dims = (int)size->count;
    t->count = 1;
    *last = 0;
    *row_major = true;
    for (int i = 0; i < t->dims; i++) {
        const pickle_value *n = pickle_item(&r->pk, size, (uint32_t)i), *s = pickle_item(&r->pk, stride, (uint32_t)i);
        if (n->kind != PICKLE_INT || s->kind != PICKLE_INT || n->number < 0 || s->number < 0)
            FAIL(r->e, FORMAT, "'%.60s' has a shape that is no number", t->name);
        t->shape[i] = (size_t)n->number;
        strides[i] = (size_t)s->number;
        if (!size_mul(t->count, t->shape[i], &t->count)) FAIL(r->e, FORMAT, "'%.60s' is impossibly large", t->name);
    }
    size_t inner = 1, reach;
    for (int i = t->dims - 1; i >= 0 && t->count; i--) {
        if (t->shape[i] > 1 && strides[i] != inner) *row_major = false;
        inner *= t->shape[i]; /* at most count */
        if (!size_mul(t->shape[i] - 1, strides[i], &reach) || reach > SIZE_MAX - *last)
            FAIL(r->e, FORMAT, "'%.60s' has impossible strides", t->name);
        *last += reach;
    }
    return ERR_OK;
}

/* The elements in row-major order, in memory of their own. */
static err_code put_in_order(reading *r, tensor *t, const size_t strides[TENSOR_DIMS], size_t type_bytes)
{
    pth *p = r->p;
    size_t bytes = t->count * type_bytes; /* count values are in the storage: no overflow */
    if (bytes > p->map.bytes - r->copied)
        FAIL(r->e, LIMIT, "'%.60s' and others want more than the file holds", t->name);
    void **more = realloc(p->copies, (p->n_copies + 1) * sizeof *more);
    if (!more) FAIL(r->e, NOMEM, "no memory for '%.60s'", t->name);
    p->copies = more;
    unsigned char *out = malloc(bytes);
    if (!out) FAIL(r->e, NOMEM, "no memory for '%.60s' of %zu bytes", t->name, bytes);
    p->copies[p->n_copies++] = out;
    r->copied += bytes;
    size_t index[TENSOR_DIMS] = {0}, from = 0;
    for (size_t i = 0; i < t->count; i++) {
        memcpy(out + i * type_bytes, (const unsigned char *)t->data + from * type_bytes, type_bytes);
        for (int k = t->dims - 1; k >= 0; k--) {
            from += strides[k];
            if (++index[k] < t->shape[k]) break;
            from -= strides[k] * t->shape[k];
            index[k] = 0;
        }
    }
    t->data = out;
    return ERR_OK;
}

/* name: becomes the tensor's where this succeeds. */
static err_code read_tensor(reading *r, const pickle_value *v, char *name, tensor *t)
{
    const unsigned char *data;
    size_t elements, last, strides[TENSOR_DIMS];
    bool row_major;
    const pickle_value *offset = pickle_item(&r->pk, v, 1);
    *t = (tensor){.name = name};
    TRY(read_storage(r, pickle_item(&r->pk, v, 0), name, &t->type, &data, &elements));
    TRY(read_shape(r, pickle_item(&r->pk, v, 2), pickle_item(&r->pk, v, 3), t, strides, &row_major, &last));
    if (offset->kind != PICKLE_INT || offset->number < 0) FAIL(r->e, FORMAT, "'%.60s' begins nowhere", name);
    size_t at = (size_t)offset->number;
    if (at > elements || (t->count && last >= elements - at))
        FAIL(r->e, TRUNCATED, "'%.60s' reaches value %zu + %zu of a storage of %zu", name, at, last, elements);
    if (t->count > elements) FAIL(r->e, UNSUPPORTED, "'%.60s' has more values than its storage (expanded)", name);
    t->data = data + at * tensor_type_bytes(t->type);
    return t->count && !row_major ? put_in_order(r, t, strides, tensor_type_bytes(t->type)) : ERR_OK;
}

static err_code add_tensor(reading *r, const pickle_value *v, const char *name)
{
    pth *p = r->p;
    if (p->n == r->tensors_room) {
        size_t room = r->tensors_room ? 2 * r->tensors_room : 256;
        tensor *more = realloc(p->tensors, room * sizeof *more);
        if (!more) FAIL(r->e, NOMEM, "no memory for a list of %zu tensors", room);
        p->tensors = more;
        r->tensors_room = room;
    }
    char *own = strdup(name);
    if (!own) FAIL(r->e, NOMEM, "no memory for a name");
    err_code rc = read_tensor(r, v, own, &p->tensors[p->n]);
    if (rc)
        free(own);
    else
        p->n++;
    return rc;
}

/* Something opaque under a dict is passed over, unless it is a tensor of a kind that is not read (torch._utils'
 * _rebuild_sparse_tensor, ...). */
static err_code pass_over(reading *r, const pickle_value *v)
{
    const pickle_value *name = v->kind == PICKLE_OPAQUE ? pickle_at(&r->pk, (uint32_t)v->number) : NULL;
    static const char rebuild[] = "_rebuild";
    if (!name) return ERR_OK;
    if (!r->opaque) r->opaque = v;
    bool rebuilt = name->bytes >= sizeof rebuild - 1 && !memcmp(name->text, rebuild, sizeof rebuild - 1);
    return rebuilt ? refuse_opaque(r, v) : ERR_OK;
}

static void log_passed_over(const reading *r)
{
    char name[PICKLE_NAME];
    if (pickle_opaque(&r->pk, r->opaque, name))
        log_event(LOG_INFO, "weights.passed_over", "what", LOG_STR("not a tensor, nor a dict of them"), "first",
                  LOG_STR(name), NULL);
}

/* Every tensor under a dict. The same dict may be there many times, or in itself: no more steps than a few per cell. */
static err_code add_all(reading *r, const pickle_value *dict, const char *prefix, int depth)
{
    for (uint32_t c = dict->first; c; c = r->pk.cells[r->pk.cells[c].next].next) {
        const pickle_value *key = pickle_at(&r->pk, r->pk.cells[c].value);
        const pickle_value *v = pickle_at(&r->pk, r->pk.cells[r->pk.cells[c].next].value);
        if (++r->steps > 4 * r->pk.n_cells) FAIL(r->e, LIMIT, "pickle: dicts that hold each other again and again");
        TRY(pass_over(r, v));
        if ((v->kind != PICKLE_TENSOR && v->kind != PICKLE_DICT) || key->kind != PICKLE_TEXT) continue;
        char name[NAME_BYTES];
        int n = snprintf(name, sizeof name, "%s%.*s", prefix, (int)(key->bytes < NAME_BYTES ? key->bytes : NAME_BYTES),
                         key->text);
        if (n < 0 || (size_t)n + 2 > sizeof name || (size_t)n != strlen(prefix) + key->bytes)
            FAIL(r->e, LIMIT, "pickle: a tensor's name is too long or no text");
        if (v->kind == PICKLE_TENSOR) {
            TRY(add_tensor(r, v, name));
            continue;
        }
        if (depth == DEPTH_MAX) FAIL(r->e, LIMIT, "pickle: more than %d dicts in each other", DEPTH_MAX);
        name[n] = '.';
        name[n + 1] = 0;
        TRY(add_all(r, v, name, depth + 1));
    }
    return ERR_OK;
}

static int tensor_by_name(const void *a, const void *b)
{
    return strcmp(((const tensor *)a)->name, ((const tensor *)b)->name);
}

static err_code read_all(reading *r, const char *path)
{
    pth *p = r->p;
    const entry *found;
    TRY(file_map_open(&p->map, path, r->e));
    TRY(read_directory(r, path));
    TRY(find_root(r));
    TRY(find_entry(r, "data.pkl", &found));
    if (!found) FAIL(r->e, FORMAT, "zip: no data.pkl in the archive");
    TRY(pickle_read(&r->pk, p->map.data + found->at, found->bytes, r->e));
    const pickle_value *root = pickle_at(&r->pk, r->pk.root);
    TRY(refuse_opaque(r, root));
    if (root->kind != PICKLE_DICT)
        FAIL(r->e, FORMAT, "the file holds no dict of tensors: save the model's state_dict()");
    TRY(add_all(r, root, "", 0));
    if (!p->n) TRY(refuse_opaque(r, r->opaque));
    if (r->opaque) log_passed_over(r);
    if (p->n) qsort(p->tensors, p->n, sizeof *p->tensors, tensor_by_name);
    for (size_t i = 1; i < p->n; i++)
        if (!strcmp(p->tensors[i].name, p->tensors[i - 1].name))
            FAIL(r->e, CONFLICT, "two tensors are called '%.60s'", p->tensors[i].name);
    return ERR_OK;
}

err_code pth_open(pth *p, const char *path, err *e)
{
    *p = (pth){0};
    reading r = {.p = p, .e = e};
    err_code rc = read_all(&r, path);
    for (size_t i = 0; i < r.n; i++) free(r.entries[i].name);
    free(r.entries);
    pickle_fini(&r.pk);
    if (rc) pth_close(p);
    return rc;
}

void pth_close(pth *p)
{
    for (size_t i = 0; i < p->n; i++) free((char *)(uintptr_t)p->tensors[i].name);
    for (size_t i = 0; i < p->n_copies; i++) free(p->copies[i]);
    free(p->tensors);
    free(p->copies);
    file_map_close(&p->map);
    *p = (pth){0};
}
