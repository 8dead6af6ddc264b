/* world.h: a labelled cohort of images of two kinds, every third patient with a bright square, on a CPU device of two
 * threads in fp32: what a tiny model learns in seconds. For cmocka_run_group_tests(tests, world_make, world_unmake). */
#ifndef RADAPT_TESTS_WORLD_H
#define RADAPT_TESTS_WORLD_H
#include "adapt/cohort.h"
#include "adapt/ssl.h"
#include "base/progress.h"
#include "model/vit.h"
#include "tests/adapt/synthetic.h"

enum { WORLD_PATIENTS = 30 };
#define WORLD_BACKBONE "dim=32,depth=2,heads=2,patch=8,grid=4"
#define WORLD_SMALL_BACKBONE "dim=32,depth=1,heads=1,patch=8,grid=2"

typedef struct {
    synthetic s;
    cohort c;
    device d;
} world;

static inline int world_make(void **state)
{
    err e = {0};
    char path[FILE_PATH_MAX], text[4096] = "study_uid,label\n";
    world *w = calloc(1, sizeof *w);
    progress_quiet(1);
    synthetic_open(&w->s);
    for (int p = 0; p < WORLD_PATIENTS; p++) {
        bool bright = p % 3 == 0;
        synthetic_image(&w->s, p, 0, 0, 0, 1 + p % 2, 32, 32, bright);
        snprintf(text + strlen(text), sizeof text - strlen(text), "1.2.%d.0,%s\n", p, bright ? "square" : "plain");
    }
    synthetic_seal(&w->s);
    synthetic_write(&w->s, "labels.csv", text, path);
    ASSERT_OK(cohort_open(&w->c, w->s.catalogue, w->s.work, path, &(split_options){0.2f, 0.2f, 1}, &e));
    ASSERT_OK(device_open_cpu(&w->d, 2, COMPUTE_F32, &e));
    *state = w;
    return 0;
}

static inline int world_unmake(void **state)
{
    world *w = *state;
    device_close(&w->d);
    cohort_close(&w->c);
    synthetic_close(&w->s);
    free(w);
    return 0;
}

static inline vit *world_vit_on(device *d, const char *shape)
{
    err e = {0};
    vit *m;
    vit_source source = {.seed = 5};
    ASSERT_OK(vit_named_config(shape, &source.random, &e));
    ASSERT_OK(vit_open(&m, d, &source, &e));
    return m;
}

static inline vit *world_vit_of(world *w, const char *shape)
{
    return world_vit_on(&w->d, shape);
}

static inline vit *world_vit(world *w)
{
    return world_vit_of(w, WORLD_BACKBONE);
}

/* The default recipe at the world's size. */
static inline ssl_options world_ssl(peft_method method)
{
    ssl_options o;
    err e = {0};
    ASSERT_OK(ssl_recipe("default", method, &o, &e));
    o.head_warmup_epochs = 1;
    o.batch = 4;
    o.global_size = 32;
    o.local_size = 16;
    o.locals = 2;
    o.hidden = 32;
    o.bottleneck = 16;
    o.prototypes = 64;
    o.view = (view_options){.size = 32, .share = 1};
    return o;
}

/* As little as has all parts, for WORLD_SMALL_BACKBONE; evaluated before and after. */
static inline ssl_options world_ssl_small(double epochs)
{
    ssl_options o = world_ssl(METHOD_APLA);
    o.peft = (peft_spec){.method = METHOD_APLA};
    o.epochs = o.evaluate_epochs = epochs;
    o.head_warmup_epochs = 0;
    o.global_size = 16;
    o.local_size = 8;
    o.locals = 1;
    o.view.batch = 8;
    return o;
}

/* WORK/runs/<name>/<file>; the folder alone if file is "". */
static inline void world_path(const world *w, const char *name, const char *file, char out[FILE_PATH_MAX])
{
    err e = {0};
    ASSERT_OK(file_path(out, &e, "%s/runs/%s%s%s", w->s.work, name, *file ? "/" : "", file));
}

static inline char *world_text(const world *w, const char *name, const char *file)
{
    err e = {0};
    char path[FILE_PATH_MAX], *text;
    world_path(w, name, file, path);
    ASSERT_OK(file_read(path, 1 << 24, &text, NULL, &e));
    return text;
}

#endif
