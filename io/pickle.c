/* pickle.c: a stack machine over the instructions that pickle protocols 2 to 5 write for dicts, tuples, lists, texts
 * and numbers. No instruction makes more values or cells than it has bytes or takes from the stack, so memory is
 * bounded by the length; lengths inside are compared with the bytes that are left before anything is read. */
#include "io/pickle.h"

#include <stdlib.h>
#include <string.h>

/* As FAIL; a constant is returned, which static analysis sees however deep the call. */
#define REFUSE(e, id, ...)                                                                                             \
    do {                                                                                                               \
        (void)err_set((e), ERR_##id, __FILE__, __LINE__, __VA_ARGS__);                                                 \
        return ERR_##id;                                                                                               \
    } while (0)

enum { MARK = UINT32_MAX };

typedef enum { ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, SIZE, STORAGE } global_kind;

/* All names that mean something here. */
static const struct {
    const char *module, *name;
    global_kind kind;
    tensor_type type; /* of a storage */
} globals[] = {
    {"collections", "OrderedDict", ORDERED_DICT, 0},
    {"torch._utils", "_rebuild_tensor_v2", REBUILD_TENSOR, 0},
    {"torch._utils", "_rebuild_parameter", REBUILD_PARAMETER, 0},
    {"torch", "Size", SIZE, 0},
    {"torch", "FloatStorage", STORAGE, TENSOR_F32},
    {"torch", "DoubleStorage", STORAGE, TENSOR_F64},
    {"torch", "HalfStorage", STORAGE, TENSOR_F16},
    {"torch", "BFloat16Storage", STORAGE, TENSOR_BF16},
    {"torch", "LongStorage", STORAGE, TENSOR_I64},
    {"torch", "IntStorage", STORAGE, TENSOR_I32},
    {"torch", "ShortStorage", STORAGE, TENSOR_I16},
    {"torch", "CharStorage", STORAGE, TENSOR_I8},
    {"torch", "ByteStorage", STORAGE, TENSOR_U8},
    {"torch", "BoolStorage", STORAGE, TENSOR_BOOL},
};
enum { N_GLOBALS = sizeof globals / sizeof *globals };

typedef struct {
    pickle *p;
    const unsigned char *data;
    size_t bytes, at;
    uint32_t *stack, *memo;
    size_t depth, stack_room, n_memo, memo_room;
    err *e;
} machine;

static err_code grow(void **items, size_t *room, size_t need, size_t size, err *e)
{
    if (need <= *room) return ERR_OK;
    size_t n = *room ? *room * 2 : 256;
    void *more = realloc(*items, n * size);
    if (!more) REFUSE(e, NOMEM, "no memory for a pickle");
    *items = more;
    *room = n;
    return ERR_OK;
}

static err_code push(machine *m, uint32_t value)
{
    TRY(grow((void **)&m->stack, &m->stack_room, m->depth + 1, sizeof *m->stack, m->e));
    m->stack[m->depth++] = value;
    return ERR_OK;
}

static err_code make(machine *m, pickle_value v, uint32_t *out)
{
    pickle *p = m->p;
    TRY(grow((void **)&p->values, &p->values_room, p->n_values + 1, sizeof *p->values, m->e));
    p->values[p->n_values] = v;
    *out = (uint32_t)p->n_values++;
    return ERR_OK;
}

static err_code push_new(machine *m, pickle_value v)
{
    uint32_t made;
    TRY(make(m, v, &made));
    return push(m, made);
}

/* What is put into something opaque is dropped. */
static err_code append(machine *m, uint32_t to, uint32_t value)
{
    pickle *p = m->p;
    if (p->values[to].kind == PICKLE_OPAQUE) return ERR_OK;
    TRY(grow((void **)&p->cells, &p->cells_room, p->n_cells + 1, sizeof *p->cells, m->e));
    uint32_t cell = (uint32_t)p->n_cells++;
    p->cells[cell] = (pickle_cell){value, 0};
    pickle_value *v = &p->values[to];
    if (v->last)
        p->cells[v->last].next = cell;
    else
        v->first = cell;
    v->last = cell;
    v->count++;
    return ERR_OK;
}

static err_code pop(machine *m, uint32_t *out)
{
    if (!m->depth || m->stack[m->depth - 1] == MARK) REFUSE(m->e, FORMAT, "pickle: nothing to take at byte %zu", m->at);
    *out = m->stack[--m->depth];
    return ERR_OK;
}

/* The stack's top, of a kind or opaque. */
static err_code top(machine *m, pickle_kind kind, uint32_t *out)
{
    bool there = m->depth && m->stack[m->depth - 1] != MARK;
    pickle_kind found = there ? m->p->values[m->stack[m->depth - 1]].kind : PICKLE_OTHER;
    if (!there || (found != kind && found != PICKLE_OPAQUE))
        REFUSE(m->e, FORMAT, "pickle: not the container that is needed at byte %zu", m->at);
    *out = m->stack[m->depth - 1];
    return ERR_OK;
}

/* Where the items above the last mark begin. */
static err_code find_mark(machine *m, size_t *first)
{
    size_t i = m->depth;
    while (i && m->stack[i - 1] != MARK) i--;
    if (!i) REFUSE(m->e, FORMAT, "pickle: no mark at byte %zu", m->at);
    *first = i;
    return ERR_OK;
}

static err_code take(machine *m, size_t n, const unsigned char **out)
{
    if (n > m->bytes - m->at) REFUSE(m->e, TRUNCATED, "pickle: %zu bytes wanted, %zu are left", n, m->bytes - m->at);
    *out = m->data + m->at;
    m->at += n;
    return ERR_OK;
}

/* Little-endian number of n <= 8 bytes. */
static err_code take_number(machine *m, size_t n, uint64_t *out)
{
    const unsigned char *b;
    TRY(take(m, n, &b));
    *out = 0;
    for (size_t i = n; i-- > 0;) *out = *out << 8 | b[i];
    return ERR_OK;
}

static err_code take_line(machine *m, const char **text, size_t *bytes)
{
    const unsigned char *from = m->data + m->at, *end = memchr(from, '\n', m->bytes - m->at);
    if (!end) REFUSE(m->e, TRUNCATED, "pickle: a line without an end");
    *text = (const char *)from;
    *bytes = (size_t)(end - from);
    m->at += *bytes + 1;
    return ERR_OK;
}

/* --- instructions */

static err_code push_counted(machine *m, size_t length_bytes, pickle_kind kind)
{
    uint64_t n;
    const unsigned char *text;
    TRY(take_number(m, length_bytes, &n));
    if (n > m->bytes) REFUSE(m->e, TRUNCATED, "pickle: a text of %llu bytes", (unsigned long long)n);
    TRY(take(m, (size_t)n, &text));
    return push_new(m, (pickle_value){.kind = kind, .text = (const char *)text, .bytes = (size_t)n});
}

/* A signed number of any length; what an int64 does not hold is no size of ours. */
static err_code push_long(machine *m, size_t length_bytes)
{
    uint64_t n, low = 0;
    const unsigned char *b;
    TRY(take_number(m, length_bytes, &n));
    if (n > m->bytes) REFUSE(m->e, TRUNCATED, "pickle: a number of %llu bytes", (unsigned long long)n);
    TRY(take(m, (size_t)n, &b));
    if (n > 8) return push(m, 0);
    if (n && b[n - 1] & 0x80) low = ~(uint64_t)0;
    for (size_t i = (size_t)n; i-- > 0;) low = low << 8 | b[i];
    return push_new(m, (pickle_value){.kind = PICKLE_INT, .number = (int64_t)low});
}

static bool same(const char *name, const pickle_value *text)
{
    return strlen(name) == text->bytes && !memcmp(name, text->text, text->bytes);
}

/* module, name: texts. */
static err_code push_global(machine *m, pickle_value module, uint32_t name)
{
    for (int i = 0; i < N_GLOBALS; i++)
        if (same(globals[i].module, &module) && same(globals[i].name, &m->p->values[name]))
            return push_new(m, (pickle_value){.kind = PICKLE_GLOBAL, .number = i});
    module.kind = PICKLE_OPAQUE;
    module.number = name;
    return push_new(m, module);
}

static err_code line_global(machine *m)
{
    pickle_value module = {.kind = PICKLE_TEXT}, name = {.kind = PICKLE_TEXT};
    uint32_t made;
    TRY(take_line(m, &module.text, &module.bytes));
    TRY(take_line(m, &name.text, &name.bytes));
    TRY(make(m, name, &made));
    return push_global(m, module, made);
}

static err_code stack_global(machine *m)
{
    uint32_t module, name;
    TRY(pop(m, &name));
    TRY(pop(m, &module));
    pickle_value a = m->p->values[module];
    if (a.kind != PICKLE_TEXT || m->p->values[name].kind != PICKLE_TEXT)
        REFUSE(m->e, FORMAT, "pickle: a name that is no text");
    return push_global(m, a, name);
}

/* A tuple of the stack's items from `first` on; lower: what the stack is cut to. */
static err_code make_tuple(machine *m, size_t first, size_t lower)
{
    uint32_t tuple;
    TRY(make(m, (pickle_value){.kind = PICKLE_TUPLE}, &tuple));
    for (size_t i = first; i < m->depth; i++) TRY(append(m, tuple, m->stack[i]));
    m->depth = lower;
    return push(m, tuple);
}

/* Of the top n items, none of which may be a mark. */
static err_code short_tuple(machine *m, size_t n)
{
    bool good = m->depth >= n;
    for (size_t i = 0; good && i < n; i++) good = m->stack[m->depth - 1 - i] != MARK;
    if (!good) REFUSE(m->e, FORMAT, "pickle: nothing to take at byte %zu", m->at);
    return make_tuple(m, m->depth - n, m->depth - n);
}

/* Everything above the mark into the container below it. */
static err_code append_marked(machine *m, pickle_kind kind)
{
    size_t first;
    uint32_t to;
    TRY(find_mark(m, &first));
    size_t end = m->depth;
    m->depth = first - 1;
    TRY(top(m, kind, &to));
    if (kind == PICKLE_DICT && (end - first) % 2) REFUSE(m->e, FORMAT, "pickle: a key without a value");
    for (size_t i = first; i < end; i++) TRY(append(m, to, m->stack[i]));
    return ERR_OK;
}

static err_code append_top(machine *m, pickle_kind kind)
{
    uint32_t key = 0, value, to;
    TRY(pop(m, &value));
    if (kind == PICKLE_DICT) TRY(pop(m, &key));
    TRY(top(m, kind, &to));
    if (kind == PICKLE_DICT) TRY(append(m, to, key));
    return append(m, to, value);
}

/* What "calls" come to: an empty OrderedDict, a tensor, the tensor of a parameter, a tuple, what is opaque itself. */
static err_code reduce(machine *m)
{
    uint32_t callee, arguments;
    TRY(pop(m, &arguments));
    TRY(pop(m, &callee));
    const pickle *p = m->p;
    pickle_value f = p->values[callee], args = p->values[arguments];
    if ((f.kind != PICKLE_GLOBAL && f.kind != PICKLE_OPAQUE) || args.kind != PICKLE_TUPLE)
        REFUSE(m->e, FORMAT, "pickle: a call of something else");
    if (f.kind == PICKLE_OPAQUE) return push(m, callee);
    const pickle_value *first = pickle_item(p, &args, 0);
    switch (globals[f.number].kind) {
    case ORDERED_DICT:
        if (args.count) break;
        return push_new(m, (pickle_value){.kind = PICKLE_DICT});
    case REBUILD_TENSOR:
        if (args.count < 4) break;
        args.kind = PICKLE_TENSOR;
        return push_new(m, args);
    case REBUILD_PARAMETER:
        if (!first || (first->kind != PICKLE_TENSOR && first->kind != PICKLE_OPAQUE)) break;
        return push(m, p->cells[args.first].value);
    case SIZE:
        if (!first || first->kind != PICKLE_TUPLE) break;
        return push(m, p->cells[args.first].value);
    case STORAGE:
        break;
    }
    REFUSE(m->e, FORMAT, "pickle: %s with arguments that are not its own", globals[f.number].name);
}

/* An object of a class, which is opaque; n arguments. */
static err_code new_object(machine *m, int n)
{
    uint32_t gone, class;
    for (int i = 0; i < n; i++) TRY(pop(m, &gone));
    TRY(pop(m, &class));
    if (m->p->values[class].kind != PICKLE_OPAQUE) REFUSE(m->e, FORMAT, "pickle: an object of something else");
    return push(m, class);
}

static err_code persistent(machine *m)
{
    uint32_t id;
    TRY(pop(m, &id));
    pickle_value v = m->p->values[id];
    if (v.kind != PICKLE_TUPLE) REFUSE(m->e, FORMAT, "pickle: a storage that is described by no tuple");
    v.kind = PICKLE_STORAGE;
    return push_new(m, v);
}

/* An object's state: a dict's _metadata, or something opaque's, which tensors do not need. */
static err_code build(machine *m)
{
    uint32_t state, to;
    TRY(pop(m, &state));
    return top(m, PICKLE_DICT, &to);
}

/* Memo numbers count up from 0, as every pickler writes them. */
static err_code put(machine *m, uint64_t at)
{
    if (at > m->n_memo) REFUSE(m->e, FORMAT, "pickle: memo %llu of %zu", (unsigned long long)at, m->n_memo);
    if (!m->depth || m->stack[m->depth - 1] == MARK) REFUSE(m->e, FORMAT, "pickle: nothing to remember");
    TRY(grow((void **)&m->memo, &m->memo_room, m->n_memo + 1, sizeof *m->memo, m->e));
    m->memo[at] = m->stack[m->depth - 1];
    if (at == m->n_memo) m->n_memo++;
    return ERR_OK;
}

static err_code put_numbered(machine *m, size_t number_bytes)
{
    uint64_t at;
    TRY(take_number(m, number_bytes, &at));
    return put(m, at);
}

static err_code get(machine *m, size_t number_bytes)
{
    uint64_t at;
    TRY(take_number(m, number_bytes, &at));
    if (at >= m->n_memo) REFUSE(m->e, FORMAT, "pickle: memo %llu of %zu", (unsigned long long)at, m->n_memo);
    return push(m, m->memo[at]);
}

static err_code push_int(machine *m, size_t n, bool is_signed)
{
    uint64_t v;
    TRY(take_number(m, n, &v));
    return push_new(m, (pickle_value){.kind = PICKLE_INT, .number = is_signed ? (int32_t)(uint32_t)v : (int64_t)v});
}

static err_code skip(machine *m, size_t n)
{
    const unsigned char *b;
    return take(m, n, &b);
}

static err_code step(machine *m, unsigned char code)
{
    size_t first;
    uint32_t gone;
    switch (code) { /* comments: names in pickletools.py */
    case 0x80:      /* PROTO */
        return skip(m, 1);
    case 0x95: /* FRAME */
        return skip(m, 8);
    case '(': /* MARK */
        return push(m, MARK);
    case '0': /* POP */
        return pop(m, &gone);
    case 'N': /* NONE */
        return push(m, 0);
    case 0x88: /* NEWTRUE */
    case 0x89: /* NEWFALSE */
        return push_new(m, (pickle_value){.kind = PICKLE_INT, .number = code == 0x88});
    case 'J': /* BININT */
        return push_int(m, 4, true);
    case 'K': /* BININT1 */
        return push_int(m, 1, false);
    case 'M': /* BININT2 */
        return push_int(m, 2, false);
    case 0x8a: /* LONG1 */
        return push_long(m, 1);
    case 0x8b: /* LONG4 */
        return push_long(m, 4);
    case 'G': /* BINFLOAT */
        TRY(skip(m, 8));
        return push(m, 0);
    case 0x8c: /* SHORT_BINUNICODE */
    case 'U':  /* SHORT_BINSTRING */
        return push_counted(m, 1, PICKLE_TEXT);
    case 'X': /* BINUNICODE */
    case 'T': /* BINSTRING */
        return push_counted(m, 4, PICKLE_TEXT);
    case 0x8d: /* BINUNICODE8 */
        return push_counted(m, 8, PICKLE_TEXT);
    case 'C': /* SHORT_BINBYTES */
        return push_counted(m, 1, PICKLE_OTHER);
    case 'B': /* BINBYTES */
        return push_counted(m, 4, PICKLE_OTHER);
    case ']': /* EMPTY_LIST */
        return push_new(m, (pickle_value){.kind = PICKLE_LIST});
    case '}': /* EMPTY_DICT */
        return push_new(m, (pickle_value){.kind = PICKLE_DICT});
    case ')': /* EMPTY_TUPLE */
        return push_new(m, (pickle_value){.kind = PICKLE_TUPLE});
    case 't': /* TUPLE */
        TRY(find_mark(m, &first));
        return make_tuple(m, first, first - 1);
    case 0x85: /* TUPLE1, TUPLE2, TUPLE3 */
    case 0x86:
    case 0x87:
        return short_tuple(m, code - 0x84u);
    case 'a': /* APPEND */
        return append_top(m, PICKLE_LIST);
    case 'e': /* APPENDS */
        return append_marked(m, PICKLE_LIST);
    case 's': /* SETITEM */
        return append_top(m, PICKLE_DICT);
    case 'u': /* SETITEMS */
        return append_marked(m, PICKLE_DICT);
    case 'q': /* BINPUT */
        return put_numbered(m, 1);
    case 'r': /* LONG_BINPUT */
        return put_numbered(m, 4);
    case 0x94: /* MEMOIZE */
        return put(m, m->n_memo);
    case 'h': /* BINGET */
        return get(m, 1);
    case 'j': /* LONG_BINGET */
        return get(m, 4);
    case 'c': /* GLOBAL */
        return line_global(m);
    case 0x93: /* STACK_GLOBAL */
        return stack_global(m);
    case 'R': /* REDUCE */
        return reduce(m);
    case 0x81: /* NEWOBJ */
        return new_object(m, 1);
    case 0x92: /* NEWOBJ_EX */
        return new_object(m, 2);
    case 'b': /* BUILD */
        return build(m);
    case 'Q': /* BINPERSID */
        return persistent(m);
    default:
        REFUSE(m->e, FORMAT, "pickle: instruction 0x%02x at byte %zu, which no state dict needs", code, m->at - 1);
    }
}

static err_code run(machine *m)
{
    uint32_t none;
    pickle *p = m->p;
    TRY(make(m, (pickle_value){.kind = PICKLE_OTHER}, &none));
    TRY(grow((void **)&p->cells, &p->cells_room, 1, sizeof *p->cells, m->e));
    p->cells[0] = (pickle_cell){0, 0};
    p->n_cells = 1;
    for (;;) {
        const unsigned char *code;
        TRY(take(m, 1, &code));
        if (*code == '.') return pop(m, &p->root); /* STOP */
        TRY(step(m, *code));
    }
}

err_code pickle_read(pickle *p, const unsigned char *data, size_t bytes, err *e)
{
    *p = (pickle){0};
    if (bytes > PICKLE_BYTES_MAX) REFUSE(e, LIMIT, "pickle of %zu bytes, at most %d are read", bytes, PICKLE_BYTES_MAX);
    machine m = {.p = p, .data = data, .bytes = bytes, .e = e};
    err_code rc = run(&m);
    free(m.stack);
    free(m.memo);
    if (rc) pickle_fini(p);
    return rc;
}

void pickle_fini(pickle *p)
{
    free(p->values);
    free(p->cells);
    *p = (pickle){0};
}

const pickle_value *pickle_item(const pickle *p, const pickle_value *of, uint32_t index)
{
    uint32_t cell = of->first;
    while (cell && index--) cell = p->cells[cell].next;
    return cell ? &p->values[p->cells[cell].value] : NULL;
}

bool pickle_storage_type(const pickle_value *v, tensor_type *type)
{
    if (!v || v->kind != PICKLE_GLOBAL || globals[v->number].kind != STORAGE) return false;
    *type = globals[v->number].type;
    return true;
}

/* Appends what a terminal can show of a text. */
static size_t printable(char out[PICKLE_NAME], size_t at, const pickle_value *text)
{
    for (size_t i = 0; i < text->bytes && i < PICKLE_NAME / 2 - 2; i++)
        out[at++] = text->text[i] > 0x20 && text->text[i] < 0x7f ? text->text[i] : '?';
    return at;
}

bool pickle_opaque(const pickle *p, const pickle_value *v, char out[PICKLE_NAME])
{
    if (!v || v->kind != PICKLE_OPAQUE) return false;
    size_t n = printable(out, 0, v);
    out[n++] = '.';
    out[printable(out, n, &p->values[v->number])] = 0;
    return true;
}
