#!/usr/bin/env bash
# no_gpu.sh CUDA_OPEN: the plugin beside that program, on machines without a driver, with the toolkit's stub for one, with
# a driver that shows no device: one clear line each. Where a GPU can be opened there is nothing to see.
set -euo pipefail
open=$1
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT

if "$open" >"$temp/first"; then
    echo "skipped: there is a GPU here"
    exit 77
fi
expect() { # expect WORDS [LIBRARY FOLDER]: what the program says, in one line
    local said status=0
    said=$(LD_LIBRARY_PATH=${2:-} "$open" 2>&1) || status=$?
    echo "$said"
    [ $status = 69 ] || { echo "exit code $status, not 69"; exit 1; }
    [ "$(wc -l <<<"$said")" = 1 ] || { echo "more than a line"; exit 1; }
    grep -q "$1" <<<"$said" || { echo "nothing of: $1"; exit 1; }
}

if ! ldconfig -p | grep -q libcuda.so.1; then expect "no NVIDIA driver"; fi

# A driver whose every entry says that there is no device (CUDA_ERROR_NO_DEVICE, 100).
cat >"$temp/driver.c" <<'C'
#include <stdint.h>
#include <string.h>
typedef int result;
static result no_device(void) { return 100; }
result cuInit(unsigned flags) { (void)flags; return 100; }
result cuDriverGetVersion(int *version) { *version = 13000; return 0; }
result cuGetProcAddress_v2(const char *name, void **entry, int version, uint64_t flags, int *status)
{
    (void)version, (void)flags;
    *entry = !strcmp(name, "cuInit") ? (void *)cuInit : !strcmp(name, "cuDriverGetVersion") ? (void *)cuDriverGetVersion
           : !strcmp(name, "cuGetProcAddress") ? (void *)cuGetProcAddress_v2 : (void *)no_device;
    if (status) *status = 0;
    return 0;
}
result cuGetProcAddress(const char *name, void **entry, int version, uint64_t flags)
{
    return cuGetProcAddress_v2(name, entry, version, flags, 0);
}
C
mkdir "$temp/none" "$temp/stub"
cc -shared -fPIC -o "$temp/none/libcuda.so.1" "$temp/driver.c"
expect "shows no GPU" "$temp/none"

nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
stub=$(dirname "$(dirname "$nvcc")")/lib64/stubs/libcuda.so
if [ -e "$stub" ]; then
    cp "$stub" "$temp/stub/libcuda.so.1"
    expect "stub" "$temp/stub"
else
    echo "left out: there is no $stub"
fi
