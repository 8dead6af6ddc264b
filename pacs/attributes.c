/* attributes.c: see attributes.h. Sets are small (a report's largest is one content item), so look-up is a scan. */
#include "pacs/attributes.h"

#include <stdlib.h>
#include <string.h>

attributes *attributes_new(void)
{
    attributes *a = calloc(1, sizeof *a);
    if (a) a->root = a;
    return a;
}

static void element_fini(attribute *e)
{
    free(e->text);
    for (size_t i = 0; i < e->n_items; i++) attributes_free(e->items[i]);
    free(e->items);
}

void attributes_free(attributes *a)
{
    if (!a) return;
    for (size_t i = 0; i < a->n; i++) element_fini(&a->elements[i]);
    free(a->elements);
    free(a);
}

bool attributes_failed(const attributes *a)
{
    return !a || a->root->failed;
}

static attribute *find(const attributes *a, uint32_t tag)
{
    for (size_t i = 0; a && i < a->n; i++)
        if (a->elements[i].tag == tag) return &a->elements[i];
    return NULL;
}

static attribute *find_or_add(attributes *a, uint32_t tag, const char *vr)
{
    if (!a) return NULL;
    attribute *e = find(a, tag);
    if (e) return e;
    if (a->n == a->capacity) {
        size_t capacity = a->capacity ? 2 * a->capacity : 8;
        attribute *grown = realloc(a->elements, capacity * sizeof *grown);
        if (!grown) {
            a->root->failed = true;
            return NULL;
        }
        a->elements = grown;
        a->capacity = capacity;
    }
    e = &a->elements[a->n++];
    *e = (attribute){.tag = tag, .vr = {vr[0], vr[1], 0}};
    return e;
}

/* text is malloc'ed or NULL (out of memory); a takes it. */
static void take(attributes *a, uint32_t tag, const char *vr, char *text)
{
    attribute *e = text ? find_or_add(a, tag, vr) : NULL;
    if (e) {
        free(e->text);
        e->text = text;
        return;
    }
    free(text);
    if (a) a->root->failed = true;
}

void attributes_put(attributes *a, uint32_t tag, const char *vr, const char *text)
{
    take(a, tag, vr, attributes_legal(vr, text ? text : ""));
}

void attributes_put_raw(attributes *a, uint32_t tag, const char *vr, const char *text)
{
    take(a, tag, vr, strdup(text));
}

void attributes_sequence(attributes *a, uint32_t tag)
{
    find_or_add(a, tag, "SQ");
}

attributes *attributes_item(attributes *a, uint32_t tag)
{
    attribute *e = find_or_add(a, tag, "SQ");
    if (!e) return NULL;
    attributes *item = attributes_new();
    bool full = (e->n_items & (e->n_items - 1)) == 0; /* capacity is the next power of two */
    attributes **grown = e->items;
    if (item && full) grown = realloc(e->items, (e->n_items ? 2 * e->n_items : 1) * sizeof(attributes *));
    if (!item || !grown) {
        attributes_free(item);
        a->root->failed = true;
        return NULL;
    }
    item->root = a->root;
    e->items = grown;
    e->items[e->n_items++] = item;
    return item;
}

void attributes_remove(attributes *a, uint32_t tag)
{
    attribute *e = find(a, tag);
    if (!e) return;
    element_fini(e);
    size_t behind = (size_t)(a->elements + a->n - e) - 1;
    memmove(e, e + 1, behind * sizeof *e);
    a->n--;
}

void attributes_remove_item(attributes *a, uint32_t tag, size_t index)
{
    attribute *e = find(a, tag);
    if (!e || index >= e->n_items) return;
    attributes_free(e->items[index]);
    memmove(e->items + index, e->items + index + 1, (e->n_items - index - 1) * sizeof(attributes *));
    e->n_items--;
}

const char *attributes_text(const attributes *a, uint32_t tag)
{
    const attribute *e = find(a, tag);
    return e ? e->text : NULL;
}

bool attributes_has(const attributes *a, uint32_t tag)
{
    return find(a, tag) != NULL;
}

size_t attributes_items(const attributes *a, uint32_t tag)
{
    const attribute *e = find(a, tag);
    return e ? e->n_items : 0;
}

attributes *attributes_at(const attributes *a, uint32_t tag, size_t index)
{
    const attribute *e = find(a, tag);
    return e && index < e->n_items ? e->items[index] : NULL;
}

bool attributes_ascii(const attributes *a)
{
    for (size_t i = 0; i < a->n; i++) {
        const attribute *e = &a->elements[i];
        for (const char *p = e->text; p && *p; p++)
            if ((unsigned char)*p >= 0x80) return false;
        for (size_t k = 0; k < e->n_items; k++)
            if (!attributes_ascii(e->items[k])) return false;
    }
    return true;
}

void attributes_digest(const attributes *a, hash *h)
{
    for (size_t i = 0; i < a->n; i++) {
        const attribute *e = &a->elements[i];
        hash_add(h, &e->tag, sizeof e->tag);
        if (e->text) hash_str(h, e->text);
        hash_add(h, &e->n_items, sizeof e->n_items);
        for (size_t k = 0; k < e->n_items; k++) {
            hash_add(h, &e->items[k]->n, sizeof e->items[k]->n);
            attributes_digest(e->items[k], h);
        }
    }
}

/* --- legal values ------------------------------------------------------------------------------------------------ */

/* Bytes of the well-formed UTF-8 character at p (RFC 3629), 0 if it is none. */
static size_t utf8_character(const unsigned char *p)
{
    size_t n = p[0] < 0x80                   ? 1
               : p[0] >= 0xC2 && p[0] < 0xE0 ? 2
               : (p[0] & 0xF0) == 0xE0       ? 3
               : p[0] >= 0xF0 && p[0] < 0xF5 ? 4
                                             : 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xC0) != 0x80) return 0;
    if ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] >= 0xA0)) return 0; /* overlong, surrogates */
    if ((p[0] == 0xF0 && p[1] < 0x90) || (p[0] == 0xF4 && p[1] >= 0x90)) return 0; /* overlong, above U+10FFFF */
    return n;
}

/* DEL and the C1 controls (U+0080 to U+009F) count as controls too. */
static bool is_control(const unsigned char *p)
{
    return p[0] < 0x20 || p[0] == 0x7F || (p[0] == 0xC2 && p[1] < 0xA0);
}

static bool digits(const char *s, size_t n)
{
    return strspn(s, "0123456789") >= n;
}

static int two(const char *s)
{
    return (s[0] - '0') * 10 + s[1] - '0';
}

static bool is_date(const char *s) /* YYYYMMDD */
{
    static const int days[] = {31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (strlen(s) != 8 || !digits(s, 8)) return false;
    int month = two(s + 4), day = two(s + 6);
    return month >= 1 && month <= 12 && day >= 1 && day <= days[month - 1];
}

static bool is_time(const char *s) /* HH[MM[SS[.F{1,6}]]] */
{
    size_t n = strspn(s, "0123456789");
    if ((n != 2 && n != 4 && n != 6) || two(s) > 23) return false;
    if (n >= 4 && two(s + 2) > 59) return false;
    if (n == 6 && two(s + 4) > 60) return false;
    if (!s[n]) return true;
    size_t fraction = strspn(s + n + 1, "0123456789");
    return n == 6 && s[6] == '.' && fraction >= 1 && fraction <= 6 && !s[7 + fraction];
}

static bool is_code_string(const char *s)
{
    size_t n = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_ ");
    return n <= 16 && !s[n];
}

static bool is_integer(const char *s)
{
    size_t sign = *s == '-' || *s == '+', n = strspn(s + sign, "0123456789");
    return n >= 1 && sign + n <= 12 && !s[sign + n];
}

static bool is_vr(const char *vr, const char *name)
{
    return vr[0] == name[0] && vr[1] == name[1];
}

char *attributes_legal(const char *vr, const char *text)
{
    size_t length = strlen(text);
    bool name = is_vr(vr, "PN"), free_text = is_vr(vr, "UT");
    size_t limit = is_vr(vr, "SH") ? 16 : is_vr(vr, "LO") || name ? 64 : SIZE_MAX; /* characters */
    char *out = calloc(length + 1, 1);
    if (!out) return NULL;
    size_t n = 0, characters = 0, carets = 0, groups = 0;
    for (const unsigned char *p = (const unsigned char *)text; *p;) {
        size_t k = utf8_character(p);
        const char *from = (const char *)p;
        p += k ? k : 1;
        if (!k)
            from = "?", k = 1;
        else if (is_control((const unsigned char *)from) && !(free_text && (*from == '\n' || *from == '\r')))
            from = " ", k = 1;
        else if (*from == '\\' && !free_text)
            from = "/";
        if (name && *from == '=') {
            if (++groups > 2) break;
            characters = carets = 0;
        } else if (++characters > limit) {
            if (!name) break;
            continue; /* the next component group may still fit */
        } else if (name && *from == '^' && ++carets > 4) {
            from = " ";
        }
        memcpy(out + n, from, k);
        n += k;
    }
    out[n] = 0;
    if ((is_vr(vr, "DA") && !is_date(out)) || (is_vr(vr, "TM") && !is_time(out)) ||
        (is_vr(vr, "CS") && !is_code_string(out)) || (is_vr(vr, "IS") && !is_integer(out)))
        out[0] = 0;
    return out;
}
