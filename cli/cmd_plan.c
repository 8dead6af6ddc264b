/* cmd_plan.c: `radapt plan`: what a stage would take of memory and arithmetic, without starting it: nothing but a
 * file's header is read, and no model is made (adapt/plan.h). */
#include <math.h>
#include <string.h>

#include "adapt/plan.h"
#include "base/progress.h"
#include "cli/cmd.h"
#include "cli/method.h"
#include "cli/recompute.h"
#include "cli/stage.h"
#include "model/op_count.h"

typedef struct {
    const options *o;
    const char *model, *stage, *method, *device, *compute;
    vit_config shape;
    int threads;
    size_t recompute; /* blocks */
    plan p;
    double gflops; /* 0: not known */
    bool given;
} planned;

static compute_type compute_of(const options *o)
{
    const char *name = options_text(o, "compute");
    return !strcmp(name, "f32") ? COMPUTE_F32 : !strcmp(name, "bf16") ? COMPUTE_BF16 : COMPUTE_AUTO;
}

/* What the user wants instead of the stage's own: any number but `own`. */
static void take_int(const options *o, const char *name, int own, int *to)
{
    int value = (int)options_int(o, name);
    if (value != own) *to = value;
}

static err_code plan_of_adapt(planned *k, vit *m, err *e)
{
    const options *o = k->o;
    ssl_options so;
    peft_spec peft;
    TRY(method_spec(o, "plan", &peft, e));
    TRY(ssl_recipe(options_text(o, "plan.recipe"), peft.method, &so, e));
    so.peft = peft;
    so.recompute = k->recompute;
    take_int(o, "plan.batch", 0, &so.batch);
    take_int(o, "plan.locals", -1, &so.locals);
    take_int(o, "plan.global-size", 0, &so.global_size);
    take_int(o, "plan.local-size", 0, &so.local_size);
    take_int(o, "plan.prototypes", 0, &so.prototypes);
    take_int(o, "plan.hidden", 0, &so.hidden);
    take_int(o, "plan.bottleneck", 0, &so.bottleneck);
    so.view.size = (int)options_int(o, "size");
    return plan_adapt(&k->p, m, &so, (size_t)options_int(o, "plan.frames"), e);
}

static err_code plan_of_stage(planned *k, vit *m, err *e)
{
    const options *o = k->o;
    peft_spec peft;
    finetune_options fo;
    if (!strcmp(k->stage, "adapt")) return plan_of_adapt(k, m, e);
    TRY(method_spec(o, "plan", &peft, e));
    finetune_defaults(&fo);
    fo.method = peft.method;
    fo.recompute = k->recompute;
    fo.view.size = (int)options_int(o, "size");
    if (!strcmp(k->stage, "finetune")) {
        take_int(o, "plan.batch", 0, &fo.batch);
        return plan_finetune(&k->p, m, &peft, &fo, (int)options_int(o, "plan.classes"), e);
    }
    take_int(o, "plan.batch", 0, &fo.view.batch);
    return plan_predict(&k->p, m, &peft, &fo.view, e);
}

static err_code make_plan(planned *k, err *e)
{
    const options *o = k->o;
    device d;
    vit *m;
    err why = {0};
    bool cuda = !strcmp(k->device, "cuda"), automatic; /* none: of which machine's memory is not known */
    vit_source source = {.heads = (int)options_int(o, "backbone-heads")};
    TRY(recompute_read(o, &k->recompute, &automatic, e));
    if (file_exists(k->model))
        source.path = k->model;
    else if (vit_named_config(k->model, &source.random, &why))
        FAIL(e, NOTFOUND, "--backbone %.100s: there is no such file, and no model of that name", k->model);
    TRY(op_count_open(&d, (int)options_int(o, "threads"), compute_of(o), cuda ? OP_COUNT_CUDA : OP_COUNT_CPU, e));
    err_code rc = vit_open(&m, &d, &source, &why);
    if (rc) {
        device_close(&d);
        return stage_blame("--backbone", k->model, &why, e);
    }
    k->shape = *vit_get_config(m);
    k->threads = d.threads;
    k->compute = d.ct == COMPUTE_BF16 ? "bf16" : "f32";
    rc = plan_of_stage(k, m, e);
    vit_close(m);
    device_close(&d);
    return rc;
}

/* Rate of a frozen MLP layer of this model on this machine, now: best of what a third of a second holds. */
static err_code measure_rate(planned *k, err *e)
{
    enum { ROWS = 1024 };
    device d;
    dv *x = NULL, *y = NULL;
    linear_w w = {.in = (size_t)k->shape.dim, .out = (size_t)k->shape.hidden, .frozen = true, .version = 1};
    TRY(stage_address_space(e));
    TRY(device_open_cpu(&d, (int)options_int(k->o, "threads"), compute_of(k->o), e));
    err_code rc = d.op->alloc(&d, ROWS * w.in * d.ct_bytes, &x, e);
    if (!rc) rc = d.op->alloc(&d, ROWS * w.out * d.ct_bytes, &y, e);
    if (!rc) rc = d.op->alloc(&d, w.in * w.out * d.ct_bytes, &w.w, e);
    double start = progress_clock(), best = INFINITY, now = start;
    for (int i = 0; !rc && (i < 3 || now - start < 0.33); i++) {
        double from = now;
        d.op->linear_fwd(&d, y, x, &w, ROWS);
        now = progress_clock();
        if (i) best = fmin(best, now - from); /* the first makes the primitive */
    }
    if (!rc) rc = device_sync(&d, e);
    k->gflops = rc ? 0 : 2e-9 * ROWS * (double)w.in * (double)w.out / best;
    d.op->linear_release(&d, &w);
    dv *all[] = {x, y, w.w};
    for (int i = 0; i < 3; i++)
        if (all[i]) d.op->free(&d, all[i]);
    device_close(&d);
    return rc;
}

static double flop_sum(const plan *p)
{
    double sum = 0;
    for (int i = 0; i < PLAN_FLOPS; i++) sum += p->flop[i];
    return sum;
}

static void print_json(const planned *k)
{
    const plan *p = &k->p;
    json_t *bytes = json_object(), *flop = json_object();
    for (int i = 0; i < PLAN_CLASSES; i++)
        json_object_set_new(bytes, plan_class_name[i], json_integer((json_int_t)p->bytes[i]));
    for (int i = 0; i < PLAN_FLOPS; i++) json_object_set_new(flop, plan_flop_name[i], json_real(p->flop[i]));
    stage_json(json_pack("{s:s,s:s,s:s,s:s,s:s,s:i,s:I,s:I,s:o,s:I,s:I,s:I,s:o,s:o,s:o,s:o}", "model", k->model,
                         "stage", k->stage, "method", k->method, "device", k->device, "compute", k->compute, "threads",
                         k->threads, "images", (json_int_t)p->images, "trainable", (json_int_t)p->trainable, "bytes",
                         bytes, "device_bytes", (json_int_t)p->device, "host_bytes", (json_int_t)p->host, "total_bytes",
                         (json_int_t)p->total, "flop", flop, "gflops", stage_real(k->gflops > 0 ? k->gflops : NAN),
                         "gflops_given", json_boolean(k->given), "seconds_at_least",
                         stage_real(k->gflops > 0 ? flop_sum(p) / k->gflops * 1e-9 : NAN)));
}

static void print_table(const planned *k)
{
    const plan *p = &k->p;
    bool cuda = !strcmp(k->device, "cuda");
    printf("%s, %s, %s: %zu images a step, %s, %s", k->model, k->stage, k->method, p->images, k->device, k->compute);
    if (!cuda) printf(", %d threads", k->threads);
    if (p->global_size)
        printf("\n2 crops of %zu pixels and %zu of %zu an image", p->global_size, p->locals, p->local_size);
    printf("\n%zu trained values in the backbone\n\n%-16s %10s\n", p->trainable, "memory", "MiB");
    for (int i = 0; i < PLAN_CLASSES; i++)
        if (p->bytes[i]) printf("  %-14s %10.1f\n", plan_class_name[i], (double)p->bytes[i] / 1048576);
    printf("  %-14s %10.1f\n\n", "in all", (double)p->total / 1048576);
    printf("%-16s %10s\n", "a step", "GFLOP");
    for (int i = 0; i < PLAN_FLOPS; i++)
        if (p->flop[i] > 0) printf("  %-14s %10.1f\n", plan_flop_name[i], p->flop[i] * 1e-9);
    printf("  %-14s %10.1f\n\n", "in all", flop_sum(p) * 1e-9);
    if (k->gflops > 0)
        printf("At %.0f GFLOP/s (%s) its matrix products take %.3g s; the step takes longer: an estimate from below.\n",
               k->gflops, k->given ? "given" : "measured now, on this machine", flop_sum(p) / k->gflops * 1e-9);
    if (cuda)
        printf("Pinned and host are this machine's memory, all else the GPU's. Not counted: CUDA's context and kernels "
               "(%d "
               "MiB of\nthe GPU, about), the program and its libraries.\n",
               PLAN_CUDA_CONSTANT >> 20);
    else
        printf("Not counted: the program, its libraries and oneDNN's compiled kernels (%d MiB at most), and mapped "
               "files.\n",
               PLAN_CONSTANT >> 20);
}

err_code cmd_plan(const options *o, int *status, err *e)
{
    planned k = {.o = o,
                 .model = options_has(o, "backbone") ? options_text(o, "backbone") : "vit-ti/16",
                 .stage = options_text(o, "plan.stage"),
                 .method = options_text(o, "plan.method"),
                 .device = options_text(o, "plan.device"),
                 .gflops = options_real(o, "plan.gflops")};
    k.given = k.gflops > 0;
    *status = STATUS_DONE;
    if (o->n_arguments) FAIL(e, USAGE, "plan wants no arguments: radapt plan --backbone FILE|NAME");
    TRY(make_plan(&k, e));
    if (!k.given && strcmp(k.device, "cuda") && !options_flag(o, "dry-run")) TRY(measure_rate(&k, e));
    if (options_flag(o, "json"))
        print_json(&k);
    else
        print_table(&k);
    return ERR_OK;
}
