/* weights.c: one or several files as one list of tensors. An index names its files; only plain names are followed, so
 * that nothing outside the index's own folder is opened. */
#include "io/weights.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "io/pth.h"
#include "io/safetensors.h"

enum { INDEX_BYTES_MAX = 64 << 20, PARTS_MAX = 1000, SHARD_NAME_MAX = 200 };

typedef enum { KIND_SAFETENSORS, KIND_PTH, KIND_INDEX } kind;

struct weights_part {
    kind kind;
    safetensors safetensors;
    pth pth;
    const tensor *tensors; /* of one of these */
    size_t n;
    char name[SHARD_NAME_MAX]; /* as the index has it */
};

/* What a file is. A safetensors header's length has zeros in its upper bytes; JSON has none. */
static err_code recognise(const char *path, kind *out, err *e)
{
    static const char pointer[] = "version https://git-lfs";
    file_map m;
    TRY(file_map_open(&m, path, e));
    unsigned char head[32] = {0};
    size_t n = m.bytes < sizeof head ? m.bytes : sizeof head;
    if (n) memcpy(head, m.data, n);
    size_t blank = n ? strspn((const char *)head, " \t\r\n") : 0;
    bool json = blank < 8 && head[blank] == '{' && !memchr(head, 0, n < 8 ? n : 8);
    size_t bytes = m.bytes;
    file_map_close(&m);
    if (n >= 4 && !memcmp(head, "PK\3\4", 4))
        *out = KIND_PTH;
    else if (json)
        *out = KIND_INDEX;
    else if (n >= 9 && head[8] == '{' && !head[7] && !head[6])
        *out = KIND_SAFETENSORS;
    else if (n >= 2 && head[0] == 0x80 && head[1] >= 2 && head[1] <= 5)
        FAIL(e, UNSUPPORTED,
             "a PyTorch file in the form from before 1.6: load it in PyTorch, then torch.save it again");
    else if (n >= sizeof pointer - 1 && !memcmp(head, pointer, sizeof pointer - 1))
        FAIL(e, FORMAT, "a Git LFS pointer, not the weights themselves: git lfs pull");
    else
        FAIL(e, FORMAT, "%zu bytes that are neither safetensors, nor an index of them, nor a PyTorch file", bytes);
    return ERR_OK;
}

static err_code open_part(weights_part *p, kind k, const char *path, err *e)
{
    p->kind = k;
    if (k == KIND_PTH) {
        TRY(pth_open(&p->pth, path, e));
        p->tensors = p->pth.tensors;
        p->n = p->pth.n;
    } else {
        TRY(safetensors_open(&p->safetensors, path, e));
        p->tensors = p->safetensors.tensors;
        p->n = p->safetensors.n;
    }
    return ERR_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const tensor *)a)->name, ((const tensor *)b)->name);
}

static const tensor *find(const tensor *tensors, size_t n, const char *name)
{
    tensor key = {.name = name};
    return n ? bsearch(&key, tensors, n, sizeof key, by_name) : NULL;
}

/* A file name and nothing more: no folder, no parent, nothing that a terminal would obey. */
static bool plain_name(const char *s)
{
    size_t n = strlen(s);
    if (!n || n >= SHARD_NAME_MAX || !strcmp(s, ".") || !strcmp(s, "..")) return false;
    for (size_t i = 0; i < n; i++)
        if (s[i] == '/' || s[i] == '\\' || (unsigned char)s[i] < 0x20 || s[i] == 0x7f) return false;
    return true;
}

/* The part of that name, opened where it is the first time. */
static err_code find_part(weights_file *w, const char *index_path, const char *name, const weights_part **out, err *e)
{
    for (size_t i = w->n_parts; i-- > 0;)
        if (!strcmp(w->parts[i].name, name)) {
            *out = &w->parts[i];
            return ERR_OK;
        }
    if (!plain_name(name)) FAIL(e, FORMAT, "the index names a file that is no plain name of one beside it");
    if (w->n_parts == PARTS_MAX) FAIL(e, LIMIT, "the index names more than %d files", PARTS_MAX);
    weights_part *more = realloc(w->parts, (w->n_parts + 1) * sizeof *more);
    if (!more) FAIL(e, NOMEM, "no memory for %zu files", w->n_parts + 1);
    w->parts = more;
    weights_part *p = &w->parts[w->n_parts];
    *p = (weights_part){0};
    snprintf(p->name, sizeof p->name, "%s", name);
    char path[FILE_PATH_MAX];
    const char *slash = strrchr(index_path, '/');
    TRY(file_path(path, e, "%.*s%s", slash ? (int)(slash + 1 - index_path) : 0, index_path, name));
    err why = {0};
    kind k = KIND_INDEX;
    err_code rc = recognise(path, &k, &why);
    if (!rc && k == KIND_INDEX) rc = err_set(&why, ERR_FORMAT, __FILE__, __LINE__, "an index, too");
    if (!rc) rc = open_part(p, k, path, &why);
    if (rc) return err_failed(err_set(e, rc, why.file, why.line, "'%.60s', which the index names: %s", name, why.msg));
    w->n_parts++;
    *out = p;
    return ERR_OK;
}

static err_code read_map(weights_file *w, const json_t *map, const char *path, err *e)
{
    const char *name;
    json_t *file;
    if (!json_is_object(map)) FAIL(e, FORMAT, "the index has no weight_map");
    w->own = calloc(json_object_size(map) + 1, sizeof *w->own);
    if (!w->own) FAIL(e, NOMEM, "no memory for a list of tensors");
    w->tensors = w->own;
    json_object_foreach((json_t *)(uintptr_t)map, name, file)
    {
        const weights_part *p;
        if (!json_is_string(file)) FAIL(e, FORMAT, "the index: '%.60s' is in no file", name);
        TRY(find_part(w, path, json_string_value(file), &p, e));
        const tensor *t = find(p->tensors, p->n, name);
        if (!t) FAIL(e, FORMAT, "'%.60s' is not in '%.60s', where the index has it", name, p->name);
        w->own[w->n++] = *t;
    }
    if (w->n) qsort(w->own, w->n, sizeof *w->own, by_name);
    return ERR_OK;
}

static err_code open_index(weights_file *w, const char *path, err *e)
{
    char *text;
    size_t bytes;
    json_error_t je;
    TRY(file_read(path, INDEX_BYTES_MAX, &text, &bytes, e));
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &je);
    free(text);
    if (!root) FAIL(e, FORMAT, "the index is no JSON (byte %d)", je.position);
    err_code rc = read_map(w, json_object_get(root, "weight_map"), path, e);
    json_decref(root);
    return rc;
}

static err_code open_single(weights_file *w, kind k, const char *path, err *e)
{
    w->parts = calloc(1, sizeof *w->parts);
    if (!w->parts) FAIL(e, NOMEM, "no memory for a file");
    TRY(open_part(w->parts, k, path, e));
    w->n_parts = 1;
    w->tensors = w->parts->tensors;
    w->n = w->parts->n;
    return ERR_OK;
}

err_code weights_open(weights_file *w, const char *path, err *e)
{
    *w = (weights_file){0};
    kind k = KIND_INDEX;
    TRY(recognise(path, &k, e));
    err_code rc = k == KIND_INDEX ? open_index(w, path, e) : open_single(w, k, path, e);
    if (rc) weights_close(w);
    return rc;
}

void weights_close(weights_file *w)
{
    for (size_t i = 0; i < w->n_parts; i++) {
        if (w->parts[i].kind == KIND_PTH)
            pth_close(&w->parts[i].pth);
        else
            safetensors_close(&w->parts[i].safetensors);
    }
    free(w->parts);
    free(w->own);
    *w = (weights_file){0};
}

void weights_forget(const weights_file *w, const tensor *t)
{
    const unsigned char *data = t->data;
    for (size_t i = 0; i < w->n_parts; i++) {
        const weights_part *p = &w->parts[i];
        const file_map *m = p->kind == KIND_PTH ? &p->pth.map : &p->safetensors.map;
        if (data >= m->data && data < m->data + m->bytes) /* not a copy */
            file_map_forget(m, (size_t)(data - m->data), t->count * tensor_type_bytes(t->type));
    }
}

const tensor *weights_find(const weights_file *w, const char *name)
{
    return find(w->tensors, w->n, name);
}

const char *weights_meta(const weights_file *w, const char *key)
{
    const char *found = NULL;
    for (size_t i = 0; i < w->n_parts && !found; i++)
        if (w->parts[i].kind == KIND_SAFETENSORS) found = safetensors_meta(&w->parts[i].safetensors, key);
    return found;
}
