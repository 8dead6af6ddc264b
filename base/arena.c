/* arena.c: see arena.h. */
#include "base/arena.h"

#include <stdint.h>

bool size_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

void arena_init(arena *a, void *base, size_t capacity)
{
    *a = (arena){.base = base, .capacity = capacity};
}

void *arena_take(arena *a, size_t count, size_t size)
{
    size_t bytes, end;
    if (a->failed || !size_mul(count, size, &bytes) || bytes > SIZE_MAX - ARENA_ALIGN) {
        a->failed = true;
        return NULL;
    }
    bytes = arena_round(bytes);
    if (__builtin_add_overflow(a->used, bytes, &end) || (a->base && end > a->capacity)) {
        a->failed = true;
        return NULL;
    }
    char *p = a->base ? a->base + a->used : NULL;
    a->used = end;
    return p;
}

bool arena_failed(const arena *a)
{
    return a->failed;
}
