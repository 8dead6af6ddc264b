/* Patches, tokens, prompts, mean tokens and rows by index on the CUDA back end against the CPU's. */
#include "tests/cuda_host/twin.h"

static const compute_type types[] = {COMPUTE_F32, COMPUTE_BF16};

static const char *name_of(compute_type ct)
{
    return ct == COMPUTE_F32 ? "fp32" : "bf16";
}

/* Where there is one value, its rounding may be the worst. */
static double rounding(const twin *t)
{
    return 2 * twin_rounding(t);
}

static dv *at(const twin *t, const tensor *x, int i, size_t skip)
{
    return dv_at(x->p[i], skip * tensor_value_bytes(&t->d[i], x->kind));
}

static void patchify(void **state)
{
    (void)state;
    static const struct {
        size_t B, height, width, p;
    } cases[] = {{0, 8, 8, 4}, {1, 3, 3, 3}, {2, 33, 47, 16}, {3, 28, 45, 14}, {2, 11, 6, 2}};
    for (size_t c = 0; c < 2; c++) {
        twin t = twin_open(types[c]);
        for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
            size_t B = cases[k].B, h = cases[k].height, w = cases[k].width, p = cases[k].p;
            printf("%s, %zu images of %zu x %zu, patches of %zu\n", name_of(types[c]), B, h, w, p);
            tensor pixels = tensor_f32(&t, B * 3 * h * w, 1, 1);
            tensor out = tensor_ct(&t, B * (h / p) * (w / p) * 3 * p * p, 2, 1);
            BOTH(t, i) t.d[i].op->patchify(&t.d[i], out.p[i], pixels.p[i], B, h, w, p);
            twin_compare(&t, "patchify", &out, types[c] == COMPUTE_F32 ? 0 : rounding(&t));
        }
        twin_close(&t);
    }
}

typedef struct {
    size_t B, P, R, S, C, skip; /* skip: values in front, by which 16-byte alignment is lost */
    bool cls, masked;
} tokens;

static void embeds(twin *t, const tokens *s)
{
    size_t B = s->B, P = s->P, R = s->R, S = s->S, C = s->C, skip = s->skip, T = (s->cls ? 1 : 0) + R + S + P;
    tensor x = tensor_ct(t, skip + B * T * C, 1, 1), patches = tensor_ct(t, skip + B * P * C, 2, 1);
    tensor cls = tensor_f32(t, skip + C, 3, 1), reg = tensor_f32(t, skip + R * C, 4, 1);
    tensor pos = tensor_f32(t, skip + (1 + P) * C, 5, 1), token = tensor_f32(t, skip + C, 6, 1);
    tensor dx = tensor_ct(t, skip + B * T * C, 11, 1), dpatches = tensor_ct(t, skip + B * P * C, 12, 1);
    tensor dcls = tensor_f32(t, skip + C, 13, 1), dreg = tensor_f32(t, skip + R * C, 14, 1);
    tensor dpos = tensor_f32(t, skip + (1 + P) * C, 15, 1), dtoken = tensor_f32(t, skip + C, 16, 1);
    uint8_t *bytes = malloc(B * P + 1);
    assert_non_null(bytes);
    for (size_t i = 0; i < B * P; i++) bytes[i] = i * 7 % 11 < 4;
    tensor mask = tensor_of(t, TENSOR_BYTES, bytes, B * P);
    free(bytes);
    BOTH(t, i)
    {
        device *d = &t->d[i];
        d->op->embed_fwd(d, at(t, &x, i, skip), at(t, &patches, i, skip), s->cls ? at(t, &cls, i, skip) : NULL,
                         at(t, &reg, i, skip), at(t, &pos, i, skip), at(t, &token, i, skip),
                         s->masked ? mask.p[i] : NULL, B, P, R, S, C);
    }
    twin_compare(t, "embed_fwd", &x, rounding(t));
    for (int k = 0; k < 4; k++) {
        static const bool wants[][5] = {{true, true, true, true, true},
                                        {true, false, true, false, false},
                                        {false, true, false, true, true},
                                        {false, false, false, false, false}};
        const bool *want = wants[k];
        BOTH(t, i)
        {
            device *d = &t->d[i];
            d->op->embed_bwd(d, want[0] ? at(t, &dpatches, i, skip) : NULL, want[1] ? at(t, &dcls, i, skip) : NULL,
                             want[2] ? at(t, &dreg, i, skip) : NULL, want[3] ? at(t, &dpos, i, skip) : NULL,
                             want[4] ? at(t, &dtoken, i, skip) : NULL, at(t, &dx, i, skip),
                             s->masked ? mask.p[i] : NULL, s->cls, B, P, R, S, C);
        }
        twin_compare(t, "embed_bwd dpatches", &dpatches, 0);
        twin_compare(t, "embed_bwd dcls", &dcls, 1e-11);
        twin_compare(t, "embed_bwd dreg", &dreg, 1e-11);
        twin_compare(t, "embed_bwd dpos", &dpos, 1e-11);
        twin_compare(t, "embed_bwd dmask_token", &dtoken, 1e-11);
    }
}

static void embed(void **state)
{
    (void)state;
    static const tokens cases[] = {
        {0, 4, 1, 0, 8, 0, true, true},   {1, 1, 0, 0, 1, 0, true, false},   {2, 5, 3, 2, 33, 0, true, true},
        {3, 7, 0, 1, 24, 0, false, true}, {5, 50, 4, 0, 16, 0, true, true},  {2, 6, 1, 1, 264, 0, true, true},
        {5, 9, 2, 0, 16, 1, true, true},  {2, 5, 2, 0, 32, 0, false, false},
    };
    for (size_t c = 0; c < 2; c++) {
        twin t = twin_open(types[c]);
        for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
            const tokens *s = &cases[k];
            printf("%s, B %zu, P %zu, R %zu, S %zu, C %zu, from %zu on%s%s\n", name_of(types[c]), s->B, s->P, s->R,
                   s->S, s->C, s->skip, s->cls ? ", class token" : "", s->masked ? ", masks" : "");
            embeds(&t, s);
        }
        twin_close(&t);
    }
}

static void prompt(void **state)
{
    (void)state;
    static const struct {
        size_t B, T, first, n, C;
    } cases[] = {{0, 4, 1, 1, 8}, {1, 1, 0, 1, 1}, {3, 9, 1, 4, 33}, {2, 20, 5, 11, 264}, {3, 4, 1, 0, 8}};
    for (size_t c = 0; c < 2; c++) {
        twin t = twin_open(types[c]);
        for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
            size_t B = cases[k].B, T = cases[k].T, first = cases[k].first, n = cases[k].n, C = cases[k].C;
            tensor x = tensor_ct(&t, B * T * C, 1, 1), prompts = tensor_f32(&t, n * C, 2, 1);
            tensor dx = tensor_ct(&t, B * T * C, 3, 1), dx_too = tensor_ct(&t, B * T * C, 3, 1);
            tensor dprompts = tensor_f32(&t, n * C, 4, 1);
            printf("%s, B %zu, T %zu, prompts %zu from %zu on, C %zu\n", name_of(types[c]), B, T, n, first, C);
            BOTH(t, i)
            {
                device *d = &t.d[i];
                d->op->prompt_fwd(d, x.p[i], prompts.p[i], B, T, first, n, C);
                d->op->prompt_bwd(d, dx.p[i], dprompts.p[i], B, T, first, n, C);
                d->op->prompt_bwd(d, dx_too.p[i], NULL, B, T, first, n, C);
            }
            twin_compare(&t, "prompt_fwd", &x, rounding(&t));
            twin_compare(&t, "prompt_bwd dx", &dx, 0);
            twin_compare(&t, "prompt_bwd dx alone", &dx_too, 0);
            twin_compare(&t, "prompt_bwd dprompts", &dprompts, 1e-11);
        }
        twin_close(&t);
    }
}

static void mean_token(void **state)
{
    (void)state;
    static const struct {
        size_t B, T, first, C;
    } cases[] = {{0, 4, 1, 8}, {1, 1, 0, 1}, {3, 9, 2, 33}, {2, 37, 5, 264}, {5, 17, 0, 16}};
    for (size_t c = 0; c < 2; c++) {
        twin t = twin_open(types[c]);
        for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
            size_t B = cases[k].B, T = cases[k].T, first = cases[k].first, C = cases[k].C;
            tensor x = tensor_ct(&t, B * T * C, 1, 1), out = tensor_ct(&t, B * (T + 1) * C, 2, 1);
            tensor dout = tensor_ct(&t, B * (T + 1) * C, 3, 1), dx = tensor_ct(&t, B * T * C, 4, 1);
            printf("%s, B %zu, T %zu, mean from %zu on, C %zu\n", name_of(types[c]), B, T, first, C);
            BOTH(t, i)
            {
                device *d = &t.d[i];
                d->op->mean_token_fwd(d, out.p[i], x.p[i], B, T, first, C);
                d->op->mean_token_bwd(d, dx.p[i], dout.p[i], B, T, first, C);
            }
            twin_compare(&t, "mean_token_fwd", &out, rounding(&t));
            twin_compare(&t, "mean_token_bwd", &dx, rounding(&t));
        }
        twin_close(&t);
    }
}

static void rows_by_index(void **state)
{
    (void)state;
    static const struct {
        size_t N, n, C;
    } cases[] = {{4, 0, 8}, {1, 1, 1}, {11, 5, 33}, {40, 27, 264}, {30, 30, 16}};
    for (size_t c = 0; c < 2; c++) {
        twin t = twin_open(types[c]);
        for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
            size_t N = cases[k].N, n = cases[k].n, C = cases[k].C;
            int32_t index[64];
            for (size_t j = 0; j < n; j++) index[j] = (int32_t)((j * N / n + 7) % N); /* distinct, not ascending */
            tensor which = tensor_of(&t, TENSOR_F32, index, n), x = tensor_ct(&t, N * C, 1, 1);
            tensor out = tensor_ct(&t, n * C, 2, 1), dout = tensor_ct(&t, n * C, 3, 1);
            printf("%s, %zu of %zu rows, C %zu\n", name_of(types[c]), n, N, C);
            BOTH(t, i)
            {
                device *d = &t.d[i];
                d->op->gather(d, out.p[i], x.p[i], which.p[i], n, C);
                d->op->scatter_add(d, x.p[i], dout.p[i], which.p[i], n, C);
            }
            int32_t first[64] = {0}, mixed[192] = {0};
            for (size_t j = 0; j < n; j++) {
                first[j + 1] = first[j] + (int32_t)(j % 4);
                for (int32_t m = first[j]; m < first[j + 1]; m++) mixed[m] = (int32_t)((7 * j + 3 * (size_t)m) % N);
            }
            size_t all = (size_t)first[n];
            tensor from = tensor_of(&t, TENSOR_F32, first, n + 1), of = tensor_of(&t, TENSOR_F32, mixed, all + 1);
            tensor weight = tensor_f32(&t, all + 1, 4, 1), in = tensor_f32(&t, N * C, 5, 1);
            tensor sum = tensor_f32(&t, n * C, 6, 1), added = tensor_f32(&t, n * C, 7, 1);
            BOTH(t, i)
            {
                device *d = &t.d[i];
                d->op->mix_rows(d, sum.p[i], false, in.p[i], from.p[i], of.p[i], weight.p[i], n, C);
                d->op->mix_rows(d, added.p[i], true, in.p[i], from.p[i], of.p[i], weight.p[i], n, C);
            }
            if (n > 1) twin_compare(&t, "mix_rows", &sum, 1e-12); /* else zeros */
            twin_compare(&t, "mix_rows, added", &added, 1e-12);
            twin_compare(&t, "gather", &out, 0);
            twin_compare(&t, "scatter_add", &x, rounding(&t));
        }
        twin_close(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(patchify), cmocka_unit_test(embed), cmocka_unit_test(prompt),
                                       cmocka_unit_test(mean_token), cmocka_unit_test(rows_by_index)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
