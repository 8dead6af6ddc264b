/* fuzz_weights.c: a file of weights of unknown format, as a libFuzzer target. ctest replays corpus/weights and the
 * golden state dicts (replay.c). To search with clang:
 *
 *     clang -fsanitize=fuzzer,address,undefined -D_GNU_SOURCE -I. tests/fuzz/fuzz_weights.c io/weights.c io/pth.c \
 *         io/pickle.c io/safetensors.c io/tensor.c base/file.c base/err.c base/arena.c -ljansson -lminizip -lz -lm
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/file.h"
#include "io/weights.h"

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
    char path[64];
    err e = {0};
    weights_file w;
    snprintf(path, sizeof path, "/tmp/radapt_fuzz_weights_%ld", (long)getpid());
    FILE *f = fopen(path, "wb");
    if (!f) return 0;
    size_t written = size ? fwrite(data, 1, size, f) : 0;
    if (fclose(f) || written != size) abort();
    if (!weights_open(&w, path, &e)) {
        for (size_t i = 0; i < w.n; i++) {
            float *v = malloc((w.tensors[i].count + 1) * sizeof *v);
            if (v) (void)tensor_to_f32(&w.tensors[i], v, NULL);
            free(v);
        }
        weights_close(&w);
    } else if (e.code == ERR_OK || e.code == ERR_INTERNAL) {
        abort(); /* a failure without its reason */
    }
    unlink(path);
    return 0;
}
