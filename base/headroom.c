/* headroom.c: see headroom.h. What cannot be read does not limit. */
#include "base/headroom.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { PATH = 512 };

/* The number behind `key` at the start of a line of the file; key "": the file's first. */
static bool number(const char *path, const char *key, size_t *out)
{
    char line[256];
    size_t n = strlen(key);
    bool found = false;
    FILE *f = fopen(path, "re");
    while (f && !found && fgets(line, sizeof line, f))
        found = !strncmp(line, key, n) && sscanf(line + n, "%zu", out) == 1;
    if (f) fclose(f);
    return found;
}

/* folder: of the group; names of version 1 or 2; prefix: of the keys that count the group's children too. Pages of
 * files can be dropped, active ones as well. */
static size_t group_room(const char *folder, const char *limit, const char *used, const char *prefix)
{
    static const char *const cache[] = {"inactive_file ", "active_file "};
    char path[PATH], key[64];
    size_t most, now, files;
    snprintf(path, sizeof path, "%s/%s", folder, limit);
    if (!number(path, "", &most)) return SIZE_MAX; /* also where it says "max" */
    snprintf(path, sizeof path, "%s/%s", folder, used);
    if (!number(path, "", &now)) return SIZE_MAX;
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    for (int i = 0; i < 2; i++) {
        snprintf(key, sizeof key, "%s%s", prefix, cache[i]);
        if (number(path, key, &files)) now -= files < now ? files : now;
    }
    return most > now ? most - now : 0;
}

static size_t control_group(void)
{
    char line[256], folder[PATH];
    size_t least = SIZE_MAX;
    FILE *f = fopen("/proc/self/cgroup", "re");
    while (f && fgets(line, sizeof line, f)) {
        size_t room = SIZE_MAX;
        char *name = strchr(line, ':'), *path = name ? strchr(name + 1, ':') : NULL;
        if (!path) continue;
        line[strcspn(line, "\n")] = 0;
        *path++ = 0;
        if (!name[1]) {
            snprintf(folder, sizeof folder, "/sys/fs/cgroup%s", path);
            if (access(folder, X_OK)) snprintf(folder, sizeof folder, "/sys/fs/cgroup"); /* a container's own root */
            room = group_room(folder, "memory.max", "memory.current", "");
        } else if (!strcmp(name + 1, "memory")) {
            snprintf(folder, sizeof folder, "/sys/fs/cgroup/memory%s", path);
            if (access(folder, X_OK)) snprintf(folder, sizeof folder, "/sys/fs/cgroup/memory");
            room = group_room(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_");
        }
        if (room < least) least = room;
    }
    if (f) fclose(f);
    return least;
}

size_t headroom_address_space(void)
{
    struct rlimit r;
    size_t used_kib = 0;
    if (getrlimit(RLIMIT_AS, &r) || r.rlim_cur == RLIM_INFINITY) return SIZE_MAX;
    number("/proc/self/status", "VmSize:", &used_kib);
    return r.rlim_cur > used_kib << 10 ? (size_t)r.rlim_cur - (used_kib << 10) : 0;
}

headroom headroom_get(void)
{
    size_t free_kib;
    headroom least = {SIZE_MAX, "the machine's memory"};
    if (number("/proc/meminfo", "MemAvailable:", &free_kib)) least.bytes = free_kib << 10;
    const headroom others[] = {{control_group(), "the control group's limit"},
                               {headroom_address_space(), "the address space (ulimit -v)"}};
    for (int i = 0; i < 2; i++)
        if (others[i].bytes < least.bytes) least = others[i];
    return least;
}
