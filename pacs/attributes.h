/* attributes.h: a DICOM data set as a plain C tree: elements by tag, text values in UTF-8, sequences of items.
 *
 *     attributes *d = attributes_new();
 *     attributes_put(d, TAG_Modality, "CS", "SR");
 *     attributes *item = attributes_item(d, TAG_ConceptNameCodeSequence);   // appends an item
 *     attributes_put(item, TAG_CodeValue, "SH", "121071");
 *     if (attributes_failed(d)) ...                                         // out of memory, asked once at the end
 *     attributes_free(d);
 *
 * Building never fails half-way: every function accepts NULL, and running out of memory sticks to the root. Values are
 * made legal for their VR when they are put (attributes_legal). Tags are PS3.6's: group << 16 | element. */
#ifndef RADAPT_ATTRIBUTES_H
#define RADAPT_ATTRIBUTES_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct attributes attributes;

typedef struct {
    uint32_t tag;
    char vr[3];
    char *text;         /* owned; NULL for a sequence */
    attributes **items; /* (n_items), owned */
    size_t n_items;
} attribute;

struct attributes {
    attribute *elements; /* (n), owned, in the order they were put */
    size_t n, capacity;
    attributes *root;
    bool failed; /* of the root: memory ran out */
};

attributes *attributes_new(void);
void attributes_free(attributes *a);
bool attributes_failed(const attributes *a); /* also for NULL */

/* Sets one element; a second put replaces. NULL text is empty (Type 2). */
void attributes_put(attributes *a, uint32_t tag, const char *vr, const char *text);
/* The same without making it legal: what a file that is read holds. */
void attributes_put_raw(attributes *a, uint32_t tag, const char *vr, const char *text);
/* Makes the sequence if it is not there: a sequence without items is legal. */
void attributes_sequence(attributes *a, uint32_t tag);
/* Appends an item to the sequence, which is made if needed. The item is owned by the sequence. */
attributes *attributes_item(attributes *a, uint32_t tag);
void attributes_remove(attributes *a, uint32_t tag);
void attributes_remove_item(attributes *a, uint32_t tag, size_t index);

/* "" is an empty element, NULL one that is not there. */
const char *attributes_text(const attributes *a, uint32_t tag);
bool attributes_has(const attributes *a, uint32_t tag);
size_t attributes_items(const attributes *a, uint32_t tag);
attributes *attributes_at(const attributes *a, uint32_t tag, size_t index);

/* No text anywhere in a needs a character set beyond the default one. */
bool attributes_ascii(const attributes *a);
/* Everything in a, in the order it was put, goes into h. */
void attributes_digest(const attributes *a, hash *h);

/* text as VR allows it (PS3.5 6.2): a byte that is not UTF-8 becomes '?', control characters a blank, in SH, LO and PN
 * a backslash becomes '/', too long is cut at a character (SH 16, LO 64, PN 64 a component group); DA, TM, CS, IS that
 * are not well formed become empty. Never longer than text. Returns malloc'ed text, NULL out of memory. */
char *attributes_legal(const char *vr, const char *text);

#ifdef __cplusplus
}
#endif
#endif
