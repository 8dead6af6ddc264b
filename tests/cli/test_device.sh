#!/usr/bin/env bash
# --device as a user meets it: without a driver, without the back end, beside a back end that has two GPUs and opens none,
# beside a GPU with little memory, and words that it does not know.   test_device.sh RADAPT SOURCE_DIR
set -uo pipefail
source_dir=$(realpath "$2")
folder=$(mktemp -d "${TMPDIR:-/tmp}/radapt-device-XXXXXX")
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/bin" "$folder/driver"
cp "$1" "$folder/bin/radapt" # alone: no plugin lies beside it
cd "$folder" || exit 1
radapt=bin/radapt

fail() {
    echo "FAILED: $*"
    [ ! -f log ] || tail -n 20 log
    exit 1
}
# expect CODE WORDS [OPTION...]: how a stage that opens a device ends, and what its log says
expect() {
    local want=$1 words=$2 got=0
    shift 2
    echo "-- adapt $*"
    "$radapt" adapt -w work -n --log json --backbone "dim=64,depth=2,heads=2,patch=16,grid=4" --size 64 "$@" >out 2>log || got=$?
    [ "$got" = "$want" ] || fail "exit code $got, not $want"
    grep -q -- "$words" log || fail "'$words' is not said"
}
on_cpu() { # on_cpu WHY [OPTION...]: the processor computes, and the log says why
    expect 0 "\"device.cpu\".*$1" "${@:2}"
}
refused() { # refused CODE WHY OPTION...: one line, which names the option
    expect "$1" "--device $4: $2" "${@:3}"
    [ "$(grep -c '"level":"error"\|^radapt: ' log)" = 1 ] || fail "not exactly one line of complaint"
}

echo "== a work directory"
"$radapt" phantom export --patients 2 --seed 3 -q >out 2>log || fail "phantom"
"$radapt" scan export -w work -q >out 2>log
[ -f work/catalogue.db ] || fail "scan"
"$radapt" prepare -w work -q >out 2>log
[ -d work/frames ] || fail "prepare"

if ldconfig -p | grep -q libcuda.so.1; then
    echo "== there is a driver here"
else
    echo "== no driver"
    on_cpu "no NVIDIA driver"
    on_cpu "no NVIDIA driver" --device auto
    refused 1 "no NVIDIA driver" --device cuda
    refused 1 "no NVIDIA driver" --device cuda:1
fi
expect 0 "" --device cpu
! grep -q '"device\.' log || fail "cpu: other devices are looked for"

echo "== a driver, and no back end"
export LD_LIBRARY_PATH=$folder/driver
echo 'int cuInit(unsigned flags) { return (int)flags; }' >driver.c
cc -shared -fPIC -o driver/libcuda.so.1 driver.c || fail "no driver was made"
on_cpu "has no CUDA back end" --device auto
refused 1 "this installation has no CUDA back end" --device cuda
echo "no library" >bin/libradapt_cuda.so
refused 1 "libradapt_cuda.so does not load" --device cuda
cc -shared -fPIC -o bin/libradapt_cuda.so driver.c || fail "no library was made"
refused 1 "libradapt_cuda.so is not this program's" --device cuda

echo "== a back end with two GPUs that cannot be opened"
cat >plugin.c <<'C'
#include "model/device_cuda.h"
__attribute__((visibility("default"))) err_code radapt_cuda_open(const device_cuda_build *b, device_cuda_room_of **room,
                                                                 device *d, int number, compute_type ct, err *e)
{
    (void)room, (void)d, (void)ct;
    if (b->device != sizeof(device)) FAIL(e, CONFLICT, "another build");
    if (number > 1) FAIL(e, UNSUPPORTED, "there is no GPU %d: the last one is 1", number);
    FAIL(e, UNSUPPORTED, "GPU %d is closed", number);
}
C
cc -shared -fPIC -I"$source_dir" -o bin/libradapt_cuda.so plugin.c "$source_dir/base/err.c" || fail "no back end was made"
on_cpu "GPU 0 is closed"
on_cpu "GPU 0 is closed" --device auto
refused 1 "GPU 0 is closed" --device cuda
refused 1 "GPU 0 is closed" --device cuda:0
refused 1 "GPU 1 is closed" --device cuda:1
refused 1 "there is no GPU 2: the last one is 1" --device cuda:2

echo "== a GPU with too little memory: no stage goes to the processor for that, with auto either"
cat >plugin.c <<'C'
#include <stdlib.h>
#include <string.h>

#include "model/device_cuda.h"

static err_code take(device *d, size_t bytes, dv **out, err *e)
{
    d->bytes += bytes;
    *out = calloc(bytes + 1, 1);
    if (!*out) FAIL(e, NOMEM, "no memory");
    return ERR_OK;
}
static void give(device *d, dv *p)
{
    (void)d;
    free(p);
}
static void upload(device *d, dv *dst, const void *src, size_t bytes)
{
    (void)d;
    memcpy(dst, src, bytes);
}
static void to_ct(device *d, dv *dst, const dv *src, size_t n)
{
    upload(d, dst, src, n * sizeof(float));
}
static void release(device *d, linear_w *w)
{
    (void)d, (void)w;
}
static void nothing(device *d)
{
    (void)d;
}
static size_t room(const device *d)
{
    (void)d;
    return strtoul(getenv("GPU_MIB"), NULL, 10) << 20;
}
__attribute__((visibility("default"))) err_code radapt_cuda_open(const device_cuda_build *b, device_cuda_room_of **of,
                                                                 device *d, int number, compute_type ct, err *e)
{
    static const op_table table = {.name = "cuda", .alloc = take, .free = give, .upload = upload, .to_ct = to_ct,
                                   .sync = nothing, .close = nothing, .linear_release = release};
    (void)b, (void)number, (void)ct, (void)e;
    *d = (device){.op = &table, .ct = COMPUTE_F32, .ct_bytes = 4, .threads = 1};
    *of = room;
    return ERR_OK;
}
C
cc -shared -fPIC -I"$source_dir" -o bin/libradapt_cuda.so plugin.c "$source_dir/base/err.c" || fail "no back end was made"
too_little() { # too_little MIB WORDS STAGE [OPTION...]
    local got=0
    echo "-- $3, $1 MiB"
    GPU_MIB=$1 "$radapt" "$3" -w work --log json --size 64 --batch 32 "${@:4}" >out 2>log || got=$?
    [ "$got" = 1 ] || fail "exit code $got, not 1"
    grep -q "$3 needs [0-9]* MiB of the GPU's memory, $1 are left.*$2" log || fail "'$2' is not said"
    grep -q '"device.cuda"' log && ! grep -q '"device.cpu"' log || fail "not the GPU"
    [ "$(grep -c '"level":"error"\|^radapt: ' log)" = 1 ] || fail "not exactly one line of complaint"
}
model=(--backbone "dim=64,depth=2,heads=2,patch=16,grid=4")
for device in "" "--device auto" "--device cuda"; do
    too_little 1 "a smaller model" adapt "${model[@]}" $device
    needs=$(sed -n 's/.* needs \([0-9]*\) MiB of.*/\1/p' log)
    too_little $((needs - 5)) "about [1-9][0-9]* images at once would fit" adapt "${model[@]}" $device
    too_little 1 "a smaller model" finetune "${model[@]}" --labels export.labels.csv --method bitfit $device
done

echo "== words that mean nothing"
for word in gpu CUDA cuda0 cuda: cuda:x cuda:-1 cuda:1x "cuda: 1" cuda:+1 cuda:1024 cuda:99999999999999999999 cpu:0 ""; do
    refused 64 "auto, cpu, cuda or cuda:N" --device "$word"
done
