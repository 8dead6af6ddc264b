/* headroom.h: how much more memory this process may take.
 *
 *     headroom h = headroom_get();
 *     if (need > h.bytes) FAIL(e, NOMEM, "%zu MiB are needed, %zu MiB are left of %s", need >> 20, h.bytes >> 20,
 * h.of);
 */
#ifndef RADAPT_HEADROOM_H
#define RADAPT_HEADROOM_H
#include <stddef.h>

typedef struct {
    size_t bytes;   /* SIZE_MAX: not known */
    const char *of; /* of what that is the rest: "the machine's memory", "the control group's limit", "the address
                     * space (ulimit -v)" */
} headroom;

/* The least of: MemAvailable (/proc/meminfo); the limit of the process's control group (v1 or v2; the group's own, not
 * its parents') less what it uses that is no file cache; RLIMIT_AS less the address space in use. */
headroom headroom_get(void);
/* Of the address space alone; SIZE_MAX: no limit. Libraries that cannot tell when it ends are not called near it. */
size_t headroom_address_space(void);

#endif
