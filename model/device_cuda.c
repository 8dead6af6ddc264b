/* device_cuda.c: see device_cuda.h. */
#include "model/device_cuda.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A plugin brings libraries that take seconds to load: without a driver none is. */
static err_code has_driver(err *e)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!driver) FAIL(e, UNSUPPORTED, "no NVIDIA driver on this machine (libcuda.so.1)");
    dlclose(driver);
    return ERR_OK;
}

/* The plugin in a folder relative to the program's; found is whether there is such a file. */
static void *load_near(const char *folder, bool *found)
{
    char path[PATH_MAX + 64], *slash;
    ssize_t n = readlink("/proc/self/exe", path, PATH_MAX);
    if (n <= 0 || n >= PATH_MAX) return NULL;
    path[n] = 0;
    if (!(slash = strrchr(path, '/'))) return NULL;
    snprintf(slash + 1, sizeof path - (size_t)(slash + 1 - path), "%s%s", folder, DEVICE_CUDA_PLUGIN);
    if (access(path, R_OK)) return NULL;
    *found = true;
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

/* What the linker says of a plugin that is there; its paths are this installation's. */
static err_code load(void **out, err *e)
{
    bool found = false;
    *out = load_near("", &found);
    if (!found) *out = load_near("../lib/radapt/", &found);
    if (!found) *out = dlopen(DEVICE_CUDA_PLUGIN, RTLD_NOW | RTLD_LOCAL);
    if (*out) return ERR_OK;
    const char *why = dlerror();
    if (found) FAIL(e, UNSUPPORTED, "%s does not load: %s", DEVICE_CUDA_PLUGIN, why ? why : "for no reason given");
    FAIL(e, UNSUPPORTED, "this installation has no CUDA back end (%s)", DEVICE_CUDA_PLUGIN);
}

static device_cuda_room_of *room_of; /* the plugin's, which stays loaded */

err_code device_open_cuda_by(device_cuda_open *open, device *d, int number, compute_type ct, err *e)
{
    static const device_cuda_build own = DEVICE_CUDA_BUILD;
    return open(&own, &room_of, d, number, ct, e);
}

err_code device_open_cuda(device *d, int number, compute_type ct, err *e)
{
    void *plugin, *symbol;
    device_cuda_open *open;
    *d = (device){0};
    TRY(has_driver(e));
    TRY(load(&plugin, e));
    if (!(symbol = dlsym(plugin, DEVICE_CUDA_SYMBOL)))
        FAIL(e, CONFLICT, "%s is not this program's: it has no %s", DEVICE_CUDA_PLUGIN, DEVICE_CUDA_SYMBOL);
    memcpy(&open, &symbol, sizeof open);
    return device_open_cuda_by(open, d, number, ct, e);
}

bool device_is_cuda(const device *d)
{
    return !strcmp(d->op->name, "cuda");
}

bool device_samples(const device *d)
{
    return device_is_cuda(d) || d->counts == COUNTS_BARE;
}

size_t device_cuda_room(const device *d)
{
    return room_of ? room_of(d) : SIZE_MAX;
}
