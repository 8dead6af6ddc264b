/* The Vision Transformer as a whole: a real pretrained model against PyTorch's output; memory plans; what student and
 * teacher share; gradients against finite differences in every method. */
#include "model/vit_impl.h"
#include "tests/model/state_dict.h"

#include <jansson.h>

enum { H = 12, W = 20, B = 2 }; /* 3 x 5 patches of 4: an odd count of tokens */

static const dict_spec small = {.names = NAMES_DINOV2,
                                .dim = 32,
                                .depth = 2,
                                .hidden = 72,
                                .patch = 4,
                                .grid = 4,
                                .registers = 1,
                                .class_token = true,
                                .layer_scale = true,
                                .mask_token = true,
                                .pos_front = 1};

static device open_device(compute_type ct)
{
    device d;
    err e = {0};
    ASSERT_OK(device_open_cpu(&d, 2, ct, &e));
    return d;
}

static vit *open_dict(device *d, const dict_spec *s)
{
    vit *m;
    err e = {0};
    dict_write(s, dict_path());
    err_code rc = vit_open(&m, d, &(vit_source){.path = dict_path(), .heads = 2}, &e);
    unlink(dict_path());
    ASSERT_OK(rc);
    return m;
}

/* A pass with its memory. */
typedef struct {
    vit_pass a;
    dv *memory, *pixels, *mask;
    size_t planned;
} bench;

static void bench_open_again(bench *k, vit *m, size_t images, size_t height, size_t width, vit_keep keep, size_t again)
{
    device *d = vit_device(m);
    arena dry = {0}, real;
    err e = {0};
    *k = (bench){.a.again = again};
    ASSERT_OK(vit_pass_plan(&k->a, &dry, m, images, height, width, keep, &e));
    ASSERT_OK(d->op->alloc(d, dry.used, &k->memory, &e));
    arena_init(&real, k->memory, dry.used);
    ASSERT_OK(vit_pass_plan(&k->a, &real, m, images, height, width, keep, &e));
    assert_int_equal(dry.used, real.used);
    k->planned = dry.used;
    ASSERT_OK(device_reserve(d, vit_pass_work_bytes(m, images, height, width, keep), &e));
    ASSERT_OK(d->op->alloc(d, images * 3 * height * width * sizeof(float), &k->pixels, &e));
    ASSERT_OK(d->op->alloc(d, images * k->a.P, &k->mask, &e));
}

static void bench_open(bench *k, vit *m, size_t images, size_t height, size_t width, vit_keep keep)
{
    bench_open_again(k, m, images, height, width, keep, 0);
}

static void bench_close(bench *k, vit *m)
{
    device *d = vit_device(m);
    d->op->free(d, k->memory);
    d->op->free(d, k->pixels);
    d->op->free(d, k->mask);
    vit_pass_fini(&k->a);
}

/* Noise as pixels, every third patch masked. */
static void bench_fill(bench *k, vit *m, uint64_t seed)
{
    device *d = vit_device(m);
    size_t n = k->a.B * 3 * k->a.height * k->a.width;
    float *x = malloc(n * sizeof *x);
    uint8_t *mask = calloc(k->a.B, k->a.P);
    assert_true(x && mask);
    rng r = rng_at(seed, RNG_TEST, 0, 0);
    for (size_t i = 0; i < n; i++) x[i] = rng_normal(&r);
    for (size_t i = 0; i < k->a.B * k->a.P; i += 3) mask[i] = 1;
    d->op->upload(d, k->pixels, x, n * sizeof *x);
    d->op->upload(d, k->mask, mask, k->a.B * k->a.P);
    free(x);
    free(mask);
}

/* out (B,T,C) as fp32 on the host; the caller frees. */
static float *forward(vit *m, vit_who who, bench *k, const dv *patches, bool masked)
{
    device *d = vit_device(m);
    err e = {0};
    size_t n = k->a.B * k->a.T * (size_t)vit_get_config(m)->dim;
    if (!patches) {
        vit_patches(m, who, &k->a, k->pixels);
        patches = k->a.patches;
    }
    vit_fwd(m, who, &k->a, patches, masked ? k->mask : NULL);
    dv *f32;
    ASSERT_OK(d->op->alloc(d, n * sizeof(float), &f32, &e));
    d->op->to_f32(d, f32, k->a.out, n);
    float *out = malloc(n * sizeof *out);
    assert_non_null(out);
    d->op->download(d, out, f32, n * sizeof *out);
    d->op->free(d, f32);
    ASSERT_OK(device_sync(d, &e));
    return out;
}

static double worst_ratio(const float *a, const float *b, size_t n)
{
    double worst = 0, most = 1e-30;
    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)a[i] - b[i]));
        most = fmax(most, fabs(b[i]));
    }
    return worst / most;
}

/* --- a real model: the class token after the final norm, from PyTorch */

static void real_model(void **state)
{
    (void)state;
    json_t *j = json_load_file(SHARED_DIR "/data/weights/vit_tiny_golden.json", 0, NULL), *cls;
    if (!j) {
        print_message("skipped: no pretrained model here\n");
        return;
    }
    cls = json_object_get(j, "cls_after_norm");
    assert_int_equal(json_array_size(cls), 192);
    float expected[192];
    for (size_t i = 0; i < 192; i++) expected[i] = (float)json_number_value(json_array_get(cls, i));
    json_decref(j);
    static const struct {
        compute_type ct;
        double bound;
    } rows[] = {{COMPUTE_F32, 1e-4}, {COMPUTE_AUTO, 2e-2}};
    for (size_t i = 0; i < 2; i++) {
        device d = open_device(rows[i].ct);
        err e = {0};
        vit *m;
        ASSERT_OK(
            vit_open(&m, &d, &(vit_source){.path = SHARED_DIR "/data/weights/vit_tiny_patch16_224.safetensors"}, &e));
        const vit_config *c = vit_get_config(m);
        assert_int_equal(c->dim, 192);
        assert_int_equal(c->depth, 12);
        assert_int_equal(c->heads, 3);
        assert_int_equal(c->grid, 14);
        assert_true(c->class_token && !c->layer_scale && c->qkv_bias && c->mean[0] == 0.5f);
        bench k;
        bench_open(&k, m, 1, 224, 224, VIT_INFER);
        float *x = malloc(3 * 224 * 224 * sizeof *x);
        assert_non_null(x);
        for (size_t p = 0; p < 3 * 224 * 224; p++) x[p] = (float)sin(0.001 * (double)p);
        d.op->upload(&d, k.pixels, x, 3 * 224 * 224 * sizeof *x);
        free(x);
        float *out = forward(m, VIT_STUDENT, &k, NULL, false);
        double got = worst_ratio(out, expected, 192);
        print_message("%s: class token within %.2g of PyTorch's\n", d.ct == COMPUTE_BF16 ? "bf16" : "fp32", got);
        assert_true(got < rows[i].bound);
        free(out);
        bench_close(&k, m);
        vit_close(m);
        device_close(&d);
    }
}

/* --- passes */

/* A second run and the teacher, equal at first, give the same bits; a pass that keeps for backward, on another pass's
 * patches, the same but for rounding (GELU is then a step of its own). */
static void passes_agree(void **state)
{
    (void)state;
    device d = open_device(COMPUTE_AUTO);
    vit *m = open_dict(&d, &small);
    param_set ps = {0};
    err e = {0};
    ASSERT_OK(vit_train(m, &(peft_spec){.method = METHOD_FULL, .teacher = true}, &ps, &e));
    bench infer, grad;
    bench_open(&infer, m, B, H, W, VIT_INFER);
    bench_open(&grad, m, B, H, W, VIT_GRAD);
    bench_fill(&infer, m, 1);
    bench_fill(&grad, m, 1);
    assert_int_equal(infer.a.T, 1 + 1 + 15);
    assert_true(infer.planned < grad.planned);
    size_t bytes = B * infer.a.T * 32 * sizeof(float);
    float *a = forward(m, VIT_STUDENT, &infer, NULL, true);
    float *others[] = {forward(m, VIT_STUDENT, &infer, NULL, true), forward(m, VIT_TEACHER, &infer, NULL, true)};
    for (size_t i = 0; i < 2; i++) {
        assert_memory_equal(a, others[i], bytes);
        free(others[i]);
    }
    float *kept = forward(m, VIT_STUDENT, &grad, infer.a.patches, true);
    assert_true(worst_ratio(kept, a, bytes / sizeof *a) < (d.ct == COMPUTE_BF16 ? 0.02 : 1e-5));
    free(kept);
    float *unmasked = forward(m, VIT_STUDENT, &grad, NULL, false);
    assert_true(worst_ratio(unmasked, a, bytes / sizeof *a) > 0.01);
    for (size_t i = 0; i < bytes / sizeof *a; i++) assert_true(isfinite(a[i]));
    free(unmasked);
    free(a);
    bench_close(&infer, m);
    bench_close(&grad, m);
    param_set_free(&d, &ps);
    vit_close(m);
    device_close(&d);
}

/* One image gives in a batch what it gives alone, whatever its neighbours. */
static void images_are_independent(void **state)
{
    (void)state;
    device d = open_device(COMPUTE_F32);
    vit *m = open_dict(&d, &small);
    bench one, many;
    bench_open(&one, m, 1, H, W, VIT_INFER);
    bench_open(&many, m, 5, H, W, VIT_INFER);
    bench_fill(&many, m, 2);
    size_t n = one.a.T * 32;
    float *all = forward(m, VIT_STUDENT, &many, NULL, false);
    for (size_t i = 0; i < 5; i++) {
        d.op->copy(&d, one.pixels, dv_at(many.pixels, i * 3 * H * W * sizeof(float)), 3 * H * W * sizeof(float));
        float *alone = forward(m, VIT_STUDENT, &one, NULL, false);
        assert_true(worst_ratio(all + i * n, alone, n) < 1e-5);
        free(alone);
    }
    free(all);
    bench_close(&one, m);
    bench_close(&many, m);
    vit_close(m);
    device_close(&d);
}

static void plan_refuses(void **state)
{
    (void)state;
    device d = open_device(COMPUTE_F32);
    vit *m = open_dict(&d, &small);
    static const struct {
        size_t images, height, width;
        err_code code;
    } rows[] = {{1, 13, 20, ERR_SHAPE}, {1, 12, 21, ERR_SHAPE}, {0, 12, 20, ERR_SHAPE}, {1, 0, 20, ERR_SHAPE}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        vit_pass a = {0};
        arena dry = {0};
        err e = {0};
        assert_int_equal(vit_pass_plan(&a, &dry, m, rows[i].images, rows[i].height, rows[i].width, VIT_GRAD, &e),
                         rows[i].code);
        vit_pass_fini(&a);
    }
    vit_pass a = {0};
    arena dry = {0}, tight;
    err e = {0};
    ASSERT_OK(vit_pass_plan(&a, &dry, m, 1, H, W, VIT_GRAD, &e));
    char *memory = malloc(dry.used);
    arena_init(&tight, memory, dry.used - 1);
    assert_int_equal(vit_pass_plan(&a, &tight, m, 1, H, W, VIT_GRAD, &e), ERR_NOMEM);
    free(memory);
    vit_pass_fini(&a);
    vit_close(m);
    device_close(&d);
}

/* --- what is trained */

/* Low-rank updates begin at zero, where A has no gradient: away from there. */
static void leave_zero(device *d, param_set *ps)
{
    for (size_t i = 0; i < ps->n; i++) {
        param *p = &ps->p[i];
        size_t n = p->rows * p->cols;
        if (!strstr(p->name, "lora_B")) continue;
        float *x = malloc(n * sizeof *x);
        assert_non_null(x);
        rng r = rng_at(12, RNG_TEST, i, 0);
        for (size_t k = 0; k < n; k++) x[k] = 0.2f * rng_normal(&r);
        d->op->upload(d, p->master, x, n * sizeof *x);
        if (p->teacher) d->op->upload(d, p->teacher, x, n * sizeof *x);
        free(x);
    }
    d->op->refresh(d, ps->p, ps->n);
}

#define LORA(layers)                                                                                                   \
    {                                                                                                                  \
        .method = METHOD_LORA, .seed = 1, .rank = 3, .alpha = 5, .targets = layers                                     \
    }

static void rows_are_drawn_once(void **state)
{
    (void)state;
    param_set sets[3] = {{0}};
    device d = open_device(COMPUTE_F32);
    vit *m[3];
    for (int i = 0; i < 3; i++) {
        err e = {0};
        m[i] = open_dict(&d, &small);
        ASSERT_OK(vit_train(m[i],
                            &(peft_spec){.method = METHOD_APLA, .rows = 5, .seed = i == 2 ? 8 : 7, .teacher = true},
                            &sets[i], &e));
        assert_int_equal(
            vit_train(m[i], &(peft_spec){.method = METHOD_APLA, .rows = 5, .seed = 7, .teacher = true}, &sets[i], &e),
            ERR_CONFLICT);
        assert_int_equal(sets[i].n, 4);
    }
    for (size_t i = 0; i < 4; i++) {
        const param *p = &sets[0].p[i];
        assert_int_equal(p->rows, 5);
        assert_int_equal(p->full_rows, 32);
        for (size_t k = 1; k < 5; k++) assert_true(p->rows_host[k - 1] < p->rows_host[k]);
        assert_true(p->rows_host[0] >= 0 && p->rows_host[4] < 32);
        assert_memory_equal(p->rows_host, sets[1].p[i].rows_host, 5 * sizeof(int32_t));
    }
    assert_string_equal(sets[0].p[0].name, "blocks.0.attn.proj.weight");
    assert_string_equal(sets[0].p[1].name, "blocks.0.attn.proj.bias");
    assert_memory_equal(sets[0].p[0].rows_host, sets[0].p[1].rows_host, 5 * sizeof(int32_t));
    assert_memory_not_equal(sets[0].p[0].rows_host, sets[0].p[2].rows_host, 5 * sizeof(int32_t));
    assert_memory_not_equal(sets[0].p[0].rows_host, sets[2].p[0].rows_host, 5 * sizeof(int32_t));
    for (int i = 0; i < 3; i++) {
        param_set_free(&d, &sets[i]);
        vit_close(m[i]);
    }
    device_close(&d);
}

/* Weights of linear layers, and their packed copies, exist once. */
static void shares_all(const vit *m)
{
    for (size_t i = 0; i < m->n_tensors; i++) {
        const vit_linear *l = m->tensors[i].linear;
        if (!l) continue;
        assert_ptr_equal(l->live[VIT_TEACHER]->w, l->live[VIT_STUDENT]->w);
        assert_non_null(l->w[0].packed[0]);
        assert_null(l->w[1].packed[0]);
    }
}

/* The teacher follows its own slices only: the student moves, the teacher does not; then it is moved there itself. */
static void teacher_has_its_own(void **state)
{
    (void)state;
    static const peft_spec specs[] = {
        LORA(PEFT_Q | PEFT_V | PEFT_FC1),     {.method = METHOD_BITFIT},
        {.method = METHOD_VPT, .prompts = 2}, {.method = METHOD_VPT, .prompts = 2, .deep = true},
        {.method = METHOD_APLA, .seed = 3},   {.method = METHOD_APLA, .rows = 5, .seed = 3},
        {.method = METHOD_FULL, .seed = 3}};
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        device d = open_device(COMPUTE_AUTO);
        vit *m = open_dict(&d, &small);
        param_set ps = {0};
        err e = {0};
        peft_spec spec = specs[i];
        spec.teacher = true;
        ASSERT_OK(vit_train(m, &spec, &ps, &e));
        bench k;
        bench_open(&k, m, B, H, W, VIT_INFER);
        bench_fill(&k, m, 4);
        size_t n = B * k.a.T * 32;
        float *before = forward(m, VIT_TEACHER, &k, NULL, true);
        for (size_t p = 0; p < ps.n; p++) {
            size_t count = ps.p[p].rows * ps.p[p].cols;
            float *v = malloc(count * sizeof *v);
            d.op->download(&d, v, ps.p[p].master, count * sizeof *v);
            for (size_t c = 0; c < count; c++) v[c] = v[c] * 1.5f + 0.05f;
            d.op->upload(&d, ps.p[p].master, v, count * sizeof *v);
            free(v);
        }
        d.op->refresh(&d, ps.p, ps.n);
        float *student = forward(m, VIT_STUDENT, &k, NULL, true), *teacher = forward(m, VIT_TEACHER, &k, NULL, true);
        assert_memory_equal(before, teacher, n * sizeof *before);
        assert_true(worst_ratio(student, before, n) > 0.01);
        free(teacher);
        d.op->ema(&d, ps.p, ps.n, 0, NULL);
        teacher = forward(m, VIT_TEACHER, &k, NULL, true);
        assert_memory_equal(student, teacher, n * sizeof *before);
        if (spec.method == METHOD_LORA || spec.method == METHOD_BITFIT || spec.method == METHOD_VPT) shares_all(m);
        free(before);
        free(student);
        free(teacher);
        bench_close(&k, m);
        param_set_free(&d, &ps);
        vit_close(m);
        device_close(&d);
    }
}

/* What was trained becomes the backbone's: the output stays, at the cost of a pass that had nothing trained; and
 * another method can go on from there, with the same output before its first step. */
static void merges(void **state)
{
    (void)state;
    static const struct {
        const char *what;
        peft_spec spec;
    } rows[] = {{"lora", LORA(PEFT_Q | PEFT_V | PEFT_PROJ | PEFT_FC1 | PEFT_FC2)},
                {"lora, qkv", LORA(PEFT_QKV)},
                {"bitfit", {.method = METHOD_BITFIT}},
                {"apla, rows", {.method = METHOD_APLA, .rows = 5}},
                {"full", {.method = METHOD_FULL}},
                {"vpt", {.method = METHOD_VPT, .prompts = 2}},
                {"vpt, deep", {.method = METHOD_VPT, .prompts = 2, .deep = true}},
                {"swiglu, lora", LORA(PEFT_Q | PEFT_FC1 | PEFT_FC2)},
                {"swiglu, full", {.method = METHOD_FULL}}};
    dict_spec gated = small;
    gated.swiglu = true;
    static const peft_spec next[] = {{.method = METHOD_APLA}, {.method = METHOD_FULL}, LORA(PEFT_QKV)};
    for (size_t i = 0; i < sizeof rows / sizeof *rows * 3; i++) {
        device d = open_device(COMPUTE_F32);
        vit *m = open_dict(&d, strstr(rows[i / 3].what, "swiglu") ? &gated : &small);
        param_set ps = {0}, more = {0};
        err e = {0};
        peft_spec spec = rows[i / 3].spec;
        spec.teacher = i % 2;
        ASSERT_OK(vit_train(m, &spec, &ps, &e));
        leave_zero(&d, &ps);
        for (size_t p = 0; p < ps.n; p++) { /* as if it had been trained */
            size_t count = ps.p[p].rows * ps.p[p].cols;
            float *v = malloc(count * sizeof *v);
            assert_non_null(v);
            d.op->download(&d, v, ps.p[p].master, count * sizeof *v);
            for (size_t c = 0; c < count; c++) v[c] = v[c] * 1.25f + 0.02f;
            d.op->upload(&d, ps.p[p].master, v, count * sizeof *v);
            free(v);
        }
        d.op->refresh(&d, ps.p, ps.n);
        bench k;
        bench_open(&k, m, B, H, W, VIT_INFER);
        bench_fill(&k, m, 4);
        size_t n = B * k.a.T * 32, planned = k.planned;
        float *before = forward(m, VIT_STUDENT, &k, NULL, true);
        bench_close(&k, m);
        ASSERT_OK(vit_merge(m, true, &e));
        d.op->refresh(&d, ps.p, ps.n); /* changes nothing: they are not the model's any more */
        param_set_free(&d, &ps);
        for (int stage = 0; stage < 3; stage++) {
            if (stage == 1) ASSERT_OK(vit_train(m, &next[i % 3], &more, &e));
            if (stage == 2) d.op->refresh(&d, more.p, more.n); /* its masters are what was merged */
            bench_open(&k, m, B, H, W, VIT_INFER);
            bench_fill(&k, m, 4);
            if (!stage) assert_true(spec.method == METHOD_LORA ? k.planned < planned : k.planned == planned);
            float *after = forward(m, stage == 1 ? VIT_TEACHER : VIT_STUDENT, &k, NULL, true);
            if (worst_ratio(after, before, n) > 1e-5)
                fail_msg("%s: %g away at stage %d", rows[i / 3].what, worst_ratio(after, before, n), stage);
            free(after);
            bench_close(&k, m);
        }
        free(before);
        param_set_free(&d, &more);
        vit_close(m);
        device_close(&d);
    }
}

/* --- stochastic depth */

/* What is drawn: in every block and branch as many as the rate says, the kept ones made up for; by seed, step and image
 * alone. */
static void drops_are_drawn(void **state)
{
    (void)state;
    enum { L = 4, MANY = 4000 };
    const float rate = 0.4f;
    dict_spec deep = small;
    deep.depth = L;
    device d = open_device(COMPUTE_F32);
    vit *m = open_dict(&d, &deep);
    float *s = malloc(2 * L * MANY * sizeof *s), *part = malloc(2 * L * MANY * sizeof *part);
    vit_drop_draw(m, rate, 7, 9, 0, MANY, s);
    for (size_t k = 0; k < 2 * L; k++) {
        double p = rate * (double)(k / 2) / (L - 1), dropped = 0;
        for (size_t i = 0; i < MANY; i++) {
            dropped += s[k * MANY + i] == 0;
            assert_true(s[k * MANY + i] == 0 || fabs(s[k * MANY + i] * (1 - p) - 1) < 1e-6);
        }
        if (fabs(dropped / MANY - p) > 4 * sqrt(p * (1 - p) / MANY)) fail_msg("branch %zu: %g dropped", k, dropped);
    }
    vit_drop_draw(m, rate, 7, 9, 100, 50, part); /* the same images in another pass */
    for (size_t k = 0; k < 2 * L; k++) assert_memory_equal(part + k * 50, s + k * MANY + 100, 50 * sizeof *s);
    for (int other = 0; other < 2; other++) {
        vit_drop_draw(m, rate, other ? 7 : 8, other ? 10 : 9, 0, MANY, part);
        assert_memory_not_equal(part, s, 2 * L * MANY * sizeof *s);
    }
    free(s);
    free(part);
    vit_close(m);
    device_close(&d);
}

/* A branch that counts s is one whose LayerScale is s times as large; one that is dropped leaves the image as it was,
 * whatever the others of the batch do. */
static void drops_scale_branches(void **state)
{
    (void)state;
    device d = open_device(COMPUTE_F32);
    vit *m = open_dict(&d, &small);
    bench k;
    bench_open(&k, m, B, H, W, VIT_GRAD);
    bench_fill(&k, m, 5);
    static const float by[] = {1.25f, 0.5f, 3, 2}; /* (depth, 2) */
    float drop[2 * 2 * B], *first[B];
    size_t n = k.a.T * 32;
    for (size_t image = 0; image < B; image++) { /* by for one image; the other is dropped everywhere */
        for (size_t i = 0; i < 2 * 2 * B; i++) drop[i] = i % B == image ? by[i / B] : 0;
        k.a.drop = drop;
        float *out = forward(m, VIT_STUDENT, &k, NULL, true), *in = malloc(B * n * sizeof *in),
              *last = malloc(B * n * sizeof *in);
        d.op->download(&d, in, ((vit_pass_impl *)k.a.impl)->block[0].x, B * n * sizeof *in);
        d.op->download(&d, last, k.a.x_last, B * n * sizeof *in);
        assert_memory_equal(last + (1 - image) * n, in + (1 - image) * n, n * sizeof *in);
        first[image] = malloc(n * sizeof *in);
        memcpy(first[image], out + image * n, n * sizeof *in);
        free(out);
        free(in);
        free(last);
    }
    k.a.drop = NULL;
    for (size_t l = 0; l < 2; l++) {
        vit_vector *ls[] = {&m->block[l].ls1, &m->block[l].ls2};
        for (int i = 0; i < 2; i++) {
            float gamma[32];
            d.op->download(&d, gamma, ls[i]->live[0], sizeof gamma);
            for (int c = 0; c < 32; c++) gamma[c] *= by[2 * l + (size_t)i];
            d.op->upload(&d, ls[i]->live[0], gamma, sizeof gamma);
        }
    }
    float *out = forward(m, VIT_STUDENT, &k, NULL, true);
    for (size_t image = 0; image < B; image++) {
        assert_true(worst_ratio(first[image], out + image * n, n) < 1e-5);
        free(first[image]);
    }
    free(out);
    bench_close(&k, m);
    vit_close(m);
    device_close(&d);
}

/* --- gradients: loss = sum(out * weights); along a random direction of every param against finite differences */

static double loss_of(vit *m, bench *k, const float *weights, bool masked)
{
    size_t n = k->a.B * k->a.T * (size_t)vit_get_config(m)->dim;
    float *out = forward(m, VIT_STUDENT, k, NULL, masked);
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)out[i] * weights[i];
    free(out);
    return sum;
}

static void set_master(device *d, param_set *ps, param *p, const float *values)
{
    d->op->upload(d, p->master, values, p->rows * p->cols * sizeof *values);
    d->op->refresh(d, ps->p, ps->n);
}

static void check_param(vit *m, param_set *ps, param *p, bench *k, const float *weights, bool masked)
{
    device *d = vit_device(m);
    size_t n = p->rows * p->cols;
    float *at = malloc(n * sizeof *at), *moved = malloc(n * sizeof *moved), *grad = malloc(n * sizeof *grad);
    float *way = malloc(n * sizeof *way);
    assert_true(at && moved && grad && way);
    d->op->download(d, at, p->master, n * sizeof *at);
    d->op->download(d, grad, p->grad, n * sizeof *grad);
    rng r = rng_at(9, RNG_TEST, n, 1);
    double along = 0, size = 0;
    for (size_t i = 0; i < n; i++) size += (double)grad[i] * grad[i];
    /* Half a random direction, half the gradient's own, so that the derivative is not small by chance. */
    for (size_t i = 0; i < n; i++) {
        way[i] = rng_normal(&r) / sqrtf((float)n) + (size > 0 ? grad[i] / (float)sqrt(size) : 0);
        along += (double)grad[i] * way[i];
    }
    double h = 4e-3, sides[2];
    for (int s = 0; s < 2; s++) {
        for (size_t i = 0; i < n; i++) moved[i] = at[i] + (float)(s ? h : -h) * way[i];
        set_master(d, ps, p, moved);
        sides[s] = loss_of(m, k, weights, masked);
    }
    set_master(d, ps, p, at);
    double measured = (sides[1] - sides[0]) / (2 * h), off = fabs(measured - along);
    if (off > 0.01 * fabs(along) + 0.01) fail_msg("%s: gradient %g, finite difference %g", p->name, along, measured);
    free(at);
    free(moved);
    free(grad);
    free(way);
}

static void gradients(void **state)
{
    (void)state;
    dict_spec plain = small, patches_only = small, matching = small, gated = small;
    plain.names = NAMES_TIMM; /* antialiased positions, no LayerScale, no mask token in the file, no registers */
    plain.layer_scale = plain.mask_token = false;
    plain.registers = 0;
    patches_only.class_token = false; /* mean of patches, one register, no bias in qkv */
    patches_only.pos_front = 0;
    patches_only.no_qkv_bias = true;
    matching.grid = 3;
    gated.swiglu = true;
    gated.hidden = 45;
    const struct {
        const char *what;
        const dict_spec *dict;
        peft_spec spec;
        size_t width;
        bool masked;
    } rows[] = {
        {"apla", &small, {.method = METHOD_APLA, .seed = 1}, W, true},
        {"apla, rows", &small, {.method = METHOD_APLA, .rows = 7, .seed = 1}, W, true},
        {"apla, one row", &plain, {.method = METHOD_APLA, .rows = 1, .seed = 1}, W, false},
        {"full", &small, {.method = METHOD_FULL, .seed = 1}, W, true},
        {"full, with a teacher", &small, {.method = METHOD_FULL, .seed = 1, .teacher = true}, W, true},
        {"full, timm", &plain, {.method = METHOD_FULL, .seed = 1}, W, true},
        {"full, patches only", &patches_only, {.method = METHOD_FULL, .seed = 1}, W, false},
        {"full, the grid matches", &matching, {.method = METHOD_FULL, .seed = 1}, 12, false},
        {"lora of everything", &small, LORA(PEFT_QKV | PEFT_PROJ | PEFT_FC1 | PEFT_FC2), W, true},
        {"lora of thirds", &small, LORA(PEFT_Q | PEFT_K | PEFT_V), W, true},
        {"lora as usual, timm", &plain, LORA(PEFT_Q | PEFT_V), W, false},
        {"lora of a projection", &plain, LORA(PEFT_PROJ), W, false},
        {"lora of an MLP", &patches_only, LORA(PEFT_FC1 | PEFT_FC2), W, false},
        {"bitfit", &small, {.method = METHOD_BITFIT, .teacher = true}, W, true},
        {"bitfit, patches only", &patches_only, {.method = METHOD_BITFIT}, W, false},
        {"vpt, shallow", &small, {.method = METHOD_VPT, .prompts = 3, .seed = 2}, W, true},
        {"vpt, deep", &small, {.method = METHOD_VPT, .prompts = 3, .seed = 2, .deep = true}, W, true},
        {"vpt, deep, patches only", &patches_only, {.method = METHOD_VPT, .prompts = 1, .deep = true}, W, false},
        {"apla, swiglu", &gated, {.method = METHOD_APLA, .rows = 7, .seed = 1}, W, true},
        {"full, swiglu", &gated, {.method = METHOD_FULL, .seed = 1, .teacher = true}, W, true},
        {"lora, swiglu", &gated, LORA(PEFT_QKV | PEFT_PROJ | PEFT_FC1 | PEFT_FC2), W, true},
        {"lora of a gated MLP alone", &gated, LORA(PEFT_FC1), W, false},
        {"bitfit, swiglu", &gated, {.method = METHOD_BITFIT}, W, true},
        {"vpt, swiglu", &gated, {.method = METHOD_VPT, .prompts = 3, .deep = true}, W, true}};
    static const float drop[2 * 2 * B] = {0, 2, 1.5f, 1, 1, 0.5f, 3, 0}; /* (depth, 2, B) */
    for (size_t run = 0; run < 2 * (sizeof rows / sizeof *rows); run++) {
        size_t i = run / 2;
        bool dropped = run % 2;
        device d = open_device(COMPUTE_F32);
        vit *m = open_dict(&d, rows[i].dict);
        param_set ps = {0};
        err e = {0};
        ASSERT_OK(vit_train(m, &rows[i].spec, &ps, &e));
        leave_zero(&d, &ps);
        bench k;
        bench_open(&k, m, B, H, rows[i].width, VIT_GRAD);
        bench_fill(&k, m, 5);
        if (dropped) k.a.drop = drop;
        size_t n = B * k.a.T * 32;
        float *weights = malloc(n * sizeof *weights);
        rng r = rng_at(6, RNG_TEST, 0, 0);
        for (size_t w = 0; w < n; w++) weights[w] = rng_normal(&r);
        loss_of(m, &k, weights, rows[i].masked);
        d.op->upload(&d, k.a.dout, weights, n * sizeof *weights);
        vit_bwd(m, &k.a, k.pixels, rows[i].masked ? k.mask : NULL);
        ASSERT_OK(device_sync(&d, &e));
        for (size_t p = 0; p < ps.n; p++) {
            if (!rows[i].masked && !strcmp(ps.p[p].name, "mask_token")) continue;
            check_param(m, &ps, &ps.p[p], &k, weights, rows[i].masked);
        }
        print_message("%s%s: %zu params\n", rows[i].what, dropped ? ", dropped" : "", ps.n);

        /* Gradients of parameters accumulate. */
        param *last = &ps.p[ps.n - 1];
        size_t count = last->rows * last->cols;
        float *once = malloc(count * sizeof *once), *twice = malloc(count * sizeof *twice);
        assert_true(once && twice);
        d.op->download(&d, once, last->grad, count * sizeof *once);
        loss_of(m, &k, weights, rows[i].masked);
        d.op->upload(&d, k.a.dout, weights, n * sizeof *weights);
        vit_bwd(m, &k.a, k.pixels, rows[i].masked ? k.mask : NULL);
        d.op->download(&d, twice, last->grad, count * sizeof *twice);
        for (size_t v = 0; v < count; v++) once[v] *= 2;
        assert_true(worst_ratio(twice, once, count) < 1e-4);
        free(once);
        free(twice);
        free(weights);
        bench_close(&k, m);
        param_set_free(&d, &ps);
        vit_close(m);
        device_close(&d);
    }
}

/* Output and gradients of a batch on so many threads: the tiles, and which thread takes which, are not to be seen. */
static size_t tiled(int threads, size_t images, vit_keep keep, size_t again, bool dropped, float *out, float *grad)
{
    device d;
    err e = {0};
    ASSERT_OK(device_open_cpu(&d, threads, COMPUTE_F32, &e));
    vit *m = open_dict(&d, &small);
    param_set ps = {0};
    ASSERT_OK(vit_train(m, &(peft_spec){.method = METHOD_APLA, .seed = 1}, &ps, &e));
    bench k;
    bench_open_again(&k, m, images, H, W, keep, again);
    bench_fill(&k, m, 5);
    float *drop = malloc(2 * 2 * images * sizeof *drop);
    assert_non_null(drop);
    vit_drop_draw(m, 0.5f, 3, 4, 0, images, drop);
    if (dropped) k.a.drop = drop;
    size_t n = images * k.a.T * 32;
    float *y = forward(m, VIT_STUDENT, &k, NULL, true);
    memcpy(out, y, n * sizeof *y);
    if (keep != VIT_INFER) {
        d.op->upload(&d, k.a.dout, y, n * sizeof *y);
        vit_bwd(m, &k.a, NULL, k.mask);
        for (size_t i = 0; i < ps.n; i++) {
            d.op->download(&d, grad, ps.p[i].grad, ps.p[i].rows * ps.p[i].cols * sizeof *grad);
            grad += ps.p[i].rows * ps.p[i].cols;
        }
    }
    ASSERT_OK(device_sync(&d, &e));
    free(y);
    free(drop);
    bench_close(&k, m);
    param_set_free(&d, &ps);
    vit_close(m);
    device_close(&d);
    return n;
}

static void tiles_are_not_seen(void **state)
{
    (void)state;
    enum { MOST = 53, GRADS = 2 * (32 * 32 + 32) };
    static const struct {
        int threads;
        size_t images;
    } table[] = {{1, 1}, {1, 5}, {2, 3}, {2, MOST}, {3, 7}, {4, MOST}, {4, 5}, {7, MOST}};
    size_t most = MOST * 17 * 32, n;
    float *all = malloc(most * sizeof *all), *out = malloc(most * sizeof *out);
    for (size_t run = 0; run < 2 * (sizeof table / sizeof *table); run++) {
        size_t i = run / 2;
        bool dropped = run % 2;
        float expected[GRADS], grad[GRADS];
        n = tiled(1, table[i].images, VIT_GRAD, 0, dropped, all, expected);
        assert_int_equal(tiled(table[i].threads, table[i].images, VIT_GRAD, 0, dropped, out, grad), n);
        assert_true(worst_ratio(out, all, n) < 1e-5);
        assert_true(worst_ratio(grad, expected, GRADS) < 1e-5);
        tiled(table[i].threads, table[i].images, VIT_INFER, 0, dropped, out, NULL);
        assert_true(worst_ratio(out, all, n) < 1e-5);
        tiled(1, table[i].images, VIT_GRAD, VIT_AGAIN_ALL, dropped, out, grad);
        assert_memory_equal(out, all, n * sizeof *all);
        assert_memory_equal(grad, expected, sizeof expected);
    }
    free(all);
    free(out);
}

/* In bf16 the gradients point where fp32's do. */
static void gradients_bf16(void **state)
{
    (void)state;
    float *grads[2] = {0};
    size_t total = 0;
    for (int i = 0; i < 2; i++) {
        device d = open_device(i ? COMPUTE_AUTO : COMPUTE_F32);
        if (i && d.ct != COMPUTE_BF16) {
            print_message("skipped: this processor has no bf16\n");
            device_close(&d);
            free(grads[0]);
            return;
        }
        vit *m = open_dict(&d, &small);
        param_set ps = {0};
        err e = {0};
        ASSERT_OK(vit_train(m, &(peft_spec){.method = METHOD_FULL, .seed = 1}, &ps, &e));
        bench k;
        bench_open(&k, m, B, H, W, VIT_GRAD);
        bench_fill(&k, m, 5);
        size_t n = B * k.a.T * 32;
        float *weights = malloc(n * sizeof *weights);
        dv *f32;
        rng r = rng_at(6, RNG_TEST, 0, 0);
        for (size_t w = 0; w < n; w++) weights[w] = rng_normal(&r);
        ASSERT_OK(d.op->alloc(&d, n * sizeof *weights, &f32, &e));
        d.op->upload(&d, f32, weights, n * sizeof *weights);
        free(forward(m, VIT_STUDENT, &k, NULL, true));
        d.op->to_ct(&d, k.a.dout, f32, n);
        vit_bwd(m, &k.a, k.pixels, k.mask);
        ASSERT_OK(device_sync(&d, &e));
        total = vit_backbone_params(m);
        grads[i] = malloc(total * sizeof(float));
        size_t at = 0;
        for (size_t p = 0; p < ps.n; at += ps.p[p].rows * ps.p[p].cols, p++)
            d.op->download(&d, grads[i] + at, ps.p[p].grad, ps.p[p].rows * ps.p[p].cols * sizeof(float));
        assert_int_equal(at, total);
        if (i) { /* each param: the error's length against the gradient's */
            at = 0;
            for (size_t p = 0; p < ps.n; at += ps.p[p].rows * ps.p[p].cols, p++) {
                double error = 0, size = 0;
                for (size_t v = at; v < at + ps.p[p].rows * ps.p[p].cols; v++) {
                    error += pow((double)grads[1][v] - grads[0][v], 2);
                    size += pow(grads[0][v], 2);
                }
                if (error > 0.04 * 0.04 * size)
                    fail_msg("%s: bf16 is %.3f of the gradient away", ps.p[p].name, sqrt(error / size));
            }
        }
        d.op->free(&d, f32);
        free(weights);
        bench_close(&k, m);
        param_set_free(&d, &ps);
        vit_close(m);
        device_close(&d);
    }
    free(grads[0]);
    free(grads[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_model),   cmocka_unit_test(passes_agree),        cmocka_unit_test(images_are_independent),
        cmocka_unit_test(plan_refuses), cmocka_unit_test(rows_are_drawn_once), cmocka_unit_test(teacher_has_its_own),
        cmocka_unit_test(merges),       cmocka_unit_test(drops_are_drawn),     cmocka_unit_test(drops_scale_branches),
        cmocka_unit_test(gradients),    cmocka_unit_test(gradients_bf16),      cmocka_unit_test(tiles_are_not_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
