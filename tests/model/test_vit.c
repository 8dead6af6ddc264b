/* The Vision Transformer as a whole: a real pretrained model against PyTorch's output; memory plans; what student and
 * teacher share; stochastic depth. */
#include "tests/model/vit_bench.h"

#include <jansson.h>

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
        adamw_step follow = {.skip_backbone = true, .average = true};
        dv *none;
        ASSERT_OK(d.op->alloc(&d, sizeof(float), &none, &e));
        d.op->adamw(&d, ps.p, ps.n, &follow, none);
        d.op->free(&d, none);
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
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_model),   cmocka_unit_test(passes_agree),        cmocka_unit_test(images_are_independent),
        cmocka_unit_test(plan_refuses), cmocka_unit_test(rows_are_drawn_once), cmocka_unit_test(teacher_has_its_own),
        cmocka_unit_test(merges),       cmocka_unit_test(drops_are_drawn),     cmocka_unit_test(drops_scale_branches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
