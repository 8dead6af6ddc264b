/* vit_features: what a model computes of given pixels, for tests/golden/parity.py.
 *
 *     vit_features WEIGHTS PIXELS.safetensors OUT.safetensors f32|bf16 [HEADS]
 *
 * Of every tensor (B,3,H,W) f32, normalised, in PIXELS: one (B,T,C) f32 of the same name in OUT, after the final norm.
 * Ends with 77 where the processor has no such arithmetic, or the model has what is not supported.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/safetensors.h"
#include "model/vit.h"

/* Tokens of one tensor of pixels; the caller frees. */
static err_code features_of(vit *m, const tensor *pixels, tensor *out, err *e)
{
    device *d = vit_device(m);
    size_t B = pixels->shape[0], height = pixels->shape[2], width = pixels->shape[3],
           C = (size_t)vit_get_config(m)->dim;
    vit_pass a = {0};
    arena dry = {0}, real;
    dv *memory = NULL, *x = NULL, *f32 = NULL;
    if (pixels->dims != 4 || pixels->shape[1] != 3 || pixels->type != TENSOR_F32)
        FAIL(e, SHAPE, "%s: pixels are (B,3,H,W) f32", pixels->name);
    TRY(vit_pass_plan(&a, &dry, m, B, height, width, VIT_INFER, e));
    err_code rc = d->op->alloc(d, dry.used, &memory, e);
    if (rc) goto done;
    arena_init(&real, memory, dry.used);
    TRY_DONE(rc, vit_pass_plan(&a, &real, m, B, height, width, VIT_INFER, e));
    TRY_DONE(rc, device_reserve(d, vit_pass_work_bytes(m, B, height, width, VIT_INFER), e));
    size_t n = B * a.T * C;
    float *host = malloc((n > pixels->count ? n : pixels->count) * sizeof *host);
    if (!host) FAIL_DONE(rc, e, NOMEM, "no memory for %zu values", n);
    *out = (tensor){.name = pixels->name, .type = TENSOR_F32, .dims = 3, .shape = {B, a.T, C}, .data = host};
    TRY_DONE(rc, tensor_to_f32(pixels, host, e));
    TRY_DONE(rc, d->op->alloc(d, pixels->count * sizeof *host, &x, e));
    TRY_DONE(rc, d->op->alloc(d, n * sizeof *host, &f32, e));
    d->op->upload(d, x, host, pixels->count * sizeof *host);
    vit_patches(m, VIT_STUDENT, &a, x);
    vit_fwd(m, VIT_STUDENT, &a, a.patches, NULL);
    d->op->to_f32(d, f32, a.out, n);
    d->op->download(d, host, f32, n * sizeof *host);
    rc = device_sync(d, e);
done:
    if (memory) d->op->free(d, memory);
    if (x) d->op->free(d, x);
    if (f32) d->op->free(d, f32);
    vit_pass_fini(&a);
    return rc;
}

static err_code run(device *d, char **argv, int heads, err *e)
{
    safetensors in;
    vit *m;
    TRY(vit_open(&m, d, &(vit_source){.path = argv[1], .heads = heads}, e));
    err_code rc = safetensors_open(&in, argv[2], e);
    if (rc) {
        vit_close(m);
        return rc;
    }
    tensor *out = calloc(in.n + 1, sizeof *out);
    rc = out ? ERR_OK : err_set(e, ERR_NOMEM, __FILE__, __LINE__, "no memory for a list of %zu tensors", in.n);
    for (size_t i = 0; i < in.n && !rc; i++) rc = features_of(m, &in.tensors[i], &out[i], e);
    if (!rc) rc = safetensors_write(argv[3], out, in.n, NULL, NULL, 0, e);
    for (size_t i = 0; out && i < in.n; i++) free((void *)(uintptr_t)out[i].data);
    free(out);
    safetensors_close(&in);
    vit_close(m);
    return rc;
}

int main(int argc, char **argv)
{
    device d;
    err e = {0};
    if (argc < 5 || argc > 6) {
        fprintf(stderr, "vit_features WEIGHTS PIXELS.safetensors OUT.safetensors f32|bf16 [HEADS]\n");
        return 64;
    }
    bool bf16 = !strcmp(argv[4], "bf16");
    err_code rc = device_open_cpu(&d, 0, bf16 ? COMPUTE_BF16 : COMPUTE_F32, &e);
    if (!rc) {
        rc = run(&d, argv, argc > 5 ? atoi(argv[5]) : 0, &e);
        device_close(&d);
    }
    if (rc) fprintf(stderr, "vit_features: %s: %s\n", err_name(rc), e.msg);
    return rc == ERR_UNSUPPORTED ? 77 : rc ? 1 : 0;
}
