/* arena.h: memory from one block, sized by a dry pass.
 *
 *     arena a = {0};                       // no base: only measures
 *     plan_model(&acts, &a, dims);         // takes sum up in a.used
 *     arena_init(&a, block, a.used);       // the same function again now hands out pointers
 *     plan_model(&acts, &a, dims);
 *
 * Every take is aligned to ARENA_ALIGN bytes. Sizes are overflow-checked: an overflow or a full arena makes the arena
 * fail (arena_failed), never wrap. Device memory works too: pointers are never dereferenced here. */
#ifndef RADAPT_ARENA_H
#define RADAPT_ARENA_H
#include <stdbool.h>
#include <stddef.h>

enum { ARENA_ALIGN = 64 };

/* What a take of so many bytes uses up; less than bytes where that wraps. */
static inline size_t arena_round(size_t bytes)
{
    return (bytes + ARENA_ALIGN - 1) & ~(size_t)(ARENA_ALIGN - 1);
}

typedef struct {
    char *base;      /* NULL: measuring pass */
    size_t capacity; /* bytes at base */
    size_t used;     /* bytes taken so far, with alignment */
    bool failed;
} arena;

void arena_init(arena *a, void *base, size_t capacity);
/* count * size bytes; NULL in a measuring pass or after failure. */
void *arena_take(arena *a, size_t count, size_t size);
bool arena_failed(const arena *a);
/* true and *out = a*b, or false on overflow. */
bool size_mul(size_t a, size_t b, size_t *out);

#endif
