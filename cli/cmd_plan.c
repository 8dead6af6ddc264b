/* cmd_plan.c: `radapt plan`: what a stage would take of memory and arithmetic, without starting it: nothing but a
 * file's header is read, and no model is made (adapt/plan.h); two random blocks of its shape tell this machine's rate.
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "adapt/plan.h"
#include "base/progress.h"
#include "cli/binding.h"
#include "cli/cmd.h"
#include "cli/method.h"
#include "cli/recompute.h"
#include "cli/stage.h"
#include "model/op_count.h"

typedef struct {
    const options *o;
    const char *model, *named, *stage, *method, *device, *compute; /* named: the option that said which model */
    vit_config shape;
    int threads;
    size_t recompute; /* blocks */
    bool unsettled;   /* as if none: which GPU's memory it should go by is not known */
    plan p;
    size_t context; /* bytes of the GPU's memory that CUDA takes beside the plan: stated, not counted */
    err refused;    /* why the stage would not start on this machine; no code: it would */
    err untimed;    /* why the rate was not measured */
    double gflops;  /* 0: not known */
    bool given;
} planned;

/* What cmd_adapt.c's options of the same names say. */
#define AT(field) offsetof(ssl_options, field)
static const binding fields[] = {
    {"plan.crop-from", BINDING_INT, AT(crop_from), 1},
    {"plan.separate-heads", BINDING_FLAG, AT(separate_heads), 1},
    {"plan.data-init", BINDING_FLAG, AT(data_init), 1},
    {"plan.ibot", BINDING_FLOAT, AT(ibot), 1},
    {"plan.mask-probability", BINDING_FLOAT, AT(mask_probability), 1},
    {"plan.mask-ratio", BINDING_FLOATS, AT(mask_ratio), 2},
};
#undef AT
enum { FIELDS = sizeof fields / sizeof *fields };

err_code cmd_plan_defaults(options *o, err *e)
{
    ssl_options so;
    TRY(ssl_recipe(options_text(o, "plan.recipe"), METHOD_APLA, &so, e));
    return binding_show(o, fields, FIELDS, &so, e);
}

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

/* --crops 2xG,NxL, or 2xG alone. */
static err_code take_crops(const options *o, ssl_options *so, err *e)
{
    enum { SIDE_MOST = 2048, LOCALS_MOST = 64 }; /* as of the options that it stands for */
    const char *text = options_text(o, "plan.crops");
    int globals, side, locals = 0, local_side = 0, all = 0, two = 0;
    if (!*text) return ERR_OK;
    bool figures = strspn(text, "0123456789x,") == strlen(text);
    if (figures) sscanf(text, "%4dx%4d%n,%4dx%4d%n", &globals, &side, &two, &locals, &local_side, &all);
    bool read = (all && !text[all]) || (two && !text[two]);
    if (!read || globals != 2 || side < 1 || side > SIDE_MOST || locals > LOCALS_MOST || local_side > SIDE_MOST ||
        (locals && local_side < 1))
        FAIL(e, USAGE, "--crops %.40s: two global crops and their side, then local ones: 2x224,8x98", text);
    so->global_size = side;
    so->locals = locals;
    so->local_size = local_side;
    return ERR_OK;
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
    binding_take(o, fields, FIELDS, &so);
    take_int(o, "plan.batch", 0, &so.batch);
    TRY(take_crops(o, &so, e));
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
    finetune_defaults(&fo, peft.method);
    fo.recompute = k->recompute;
    fo.view.size = (int)options_int(o, "size");
    if (!strcmp(k->stage, "finetune")) {
        take_int(o, "plan.batch", 0, &fo.batch);
        return plan_finetune(&k->p, m, &peft, &fo, (int)options_int(o, "plan.classes"), e);
    }
    take_int(o, "plan.batch", 0, &fo.view.batch);
    return plan_predict(&k->p, m, &peft, &fo.view, e);
}

static bool on_cuda(const planned *k)
{
    return !strcmp(k->device, "cuda");
}

static err_code plan_once(planned *k, err *e)
{
    const options *o = k->o;
    device d;
    vit *m;
    err why = {0};
    vit_source source = {.heads = (int)options_int(o, "backbone-heads")};
    if (file_exists(k->model))
        source.path = k->model;
    else if (vit_named_config(k->model, &source.random, &why))
        FAIL(e, NOTFOUND, "%s %.100s: there is no such file, and no model of that name", k->named, k->model);
    TRY(op_count_open(&d, (int)options_int(o, "threads"), compute_of(o), on_cuda(k) ? OP_COUNT_CUDA : OP_COUNT_CPU, e));
    err_code rc = vit_open(&m, &d, &source, &why);
    if (rc) {
        device_close(&d);
        return stage_blame(k->named, k->model, &why, e);
    }
    k->shape = *vit_get_config(m);
    k->threads = d.threads;
    k->compute = d.ct == COMPUTE_BF16 ? "bf16" : "f32";
    rc = plan_of_stage(k, m, e);
    vit_close(m);
    device_close(&d);
    return rc;
}

/* recompute_fits: of this machine's memory. */
static err_code fits_here(void *ctx, size_t blocks, err *e)
{
    planned *k = ctx;
    k->recompute = blocks;
    TRY(plan_once(k, e));
    return plan_room(on_cuda(k) ? k->p.host : k->p.total, k->threads, k->stage, PLAN_ADVICE, e);
}

/* As the stage itself would settle --recompute auto. What does not fit is planned all the same. */
static err_code make_plan(planned *k, err *e)
{
    bool automatic;
    TRY(recompute_read(k->o, &k->recompute, &automatic, e));
    TRY(plan_once(k, e));
    k->unsettled = automatic && on_cuda(k);
    bool settles = automatic && !on_cuda(k) && strcmp(k->stage, "predict");
    err_code rc = recompute_settle(settles, k->shape.depth, fits_here, k, &k->recompute, &k->refused);
    if (rc && rc != ERR_NOMEM) *e = k->refused;
    return rc == ERR_NOMEM ? ERR_OK : rc;
}

/* Two blocks of this model with what trains in them, and a pass over a few images of its size: on the counting device
 * its operations, on the processor how long it takes. */
typedef struct {
    device *d;
    vit *m;
    vit_pass a;
    dv *memory, *pixels;
    param_set ps;
} trial;

static err_code trial_open(trial *t, device *d, const planned *k, err *e)
{
    bool predicts = !strcmp(k->stage, "predict");
    size_t B = k->p.images < 2 * (size_t)d->threads ? k->p.images : 2 * (size_t)d->threads,
           patch = (size_t)k->shape.patch;
    size_t side = (k->p.global_size ? k->p.global_size : (size_t)options_int(k->o, "size")) / patch * patch;
    vit_source source = {.random = k->shape, .seed = 1};
    vit_keep keep = predicts ? VIT_INFER : VIT_GRAD;
    peft_spec peft;
    arena dry = {0}, real;
    source.random.depth = 2;
    *t = (trial){.d = d};
    if (side > (size_t)source.random.grid * patch) source.random.grid = (int)(side / patch);
    TRY(method_spec(k->o, "plan", &peft, e));
    TRY(vit_open(&t->m, d, &source, e));
    TRY(vit_train(t->m, &peft, &t->ps, e));
    TRY(vit_pass_plan(&t->a, &dry, t->m, B, side, side, keep, e));
    TRY(d->op->alloc(d, dry.used, &t->memory, e));
    arena_init(&real, t->memory, dry.used);
    TRY(vit_pass_plan(&t->a, &real, t->m, B, side, side, keep, e));
    TRY(device_reserve(d, vit_pass_work_bytes(t->m, B, side, side, keep), e));
    TRY(d->op->alloc(d, B * 3 * side * side * sizeof(float), &t->pixels, e));
    d->op->zero(d, t->memory, dry.used);
    d->op->zero(d, t->pixels, B * 3 * side * side * sizeof(float));
    return ERR_OK;
}

static void trial_run(trial *t)
{
    vit_patches(t->m, VIT_STUDENT, &t->a, t->pixels);
    vit_fwd(t->m, VIT_STUDENT, &t->a, t->a.patches, NULL);
    if (t->a.keep != VIT_INFER) vit_bwd(t->m, &t->a, t->pixels, NULL);
}

static void trial_close(trial *t)
{
    device *d = t->d;
    if (t->pixels) d->op->free(d, t->pixels);
    if (t->memory) d->op->free(d, t->memory);
    vit_pass_fini(&t->a);
    param_set_free(d, &t->ps);
    if (t->m) vit_close(t->m);
    device_close(d);
}

/* The rate that blocks of this model reach in this stage on this machine, now: what is between matrix products is in
 * it. Best of what half a second holds. */
static err_code measure_rate(planned *k, err *e)
{
    device d;
    trial t;
    int threads = (int)options_int(k->o, "threads");
    double flop = 0, best = INFINITY;
    size_t bytes = 0;
    TRY(op_count_open(&d, threads, compute_of(k->o), OP_COUNT_CPU, e));
    err_code rc = trial_open(&t, &d, k, e);
    if (!rc) {
        memset(d.flop, 0, sizeof d.flop);
        trial_run(&t);
        for (int i = 0; i < FLOP_KINDS; i++) flop += d.flop[i];
        bytes = d.bytes_most;
    }
    trial_close(&t);
    TRY(rc);
    TRY(stage_address_space(e));
    TRY(plan_room(bytes, k->threads, "to time two of its blocks", "", e));
    TRY(device_open_cpu(&d, threads, compute_of(k->o), e));
    rc = trial_open(&t, &d, k, e);
    double start = progress_clock(), now = start;
    for (int i = 0; !rc && (i < 3 || now - start < 0.5); i++) {
        double from = now;
        trial_run(&t);
        now = progress_clock();
        if (i) best = fmin(best, now - from); /* the first packs weights */
    }
    if (!rc) rc = device_sync(&d, e);
    trial_close(&t);
    k->gflops = rc ? 0 : 1e-9 * flop / best;
    return rc;
}

static double flop_sum(const plan *p)
{
    double sum = 0;
    for (int i = 0; i < PLAN_FLOPS; i++) sum += p->flop[i];
    return sum;
}

static json_t *reason(const err *why)
{
    return why->code ? json_string(why->msg) : json_null();
}

static size_t made_again(const planned *k)
{
    size_t depth = (size_t)k->shape.depth, blocks = strcmp(k->stage, "predict") ? k->recompute : 0;
    return blocks < depth ? blocks : depth;
}

static void print_json(const planned *k)
{
    const plan *p = &k->p;
    json_t *bytes = json_object(), *flop = json_object();
    for (int i = 0; i < PLAN_CLASSES; i++)
        json_object_set_new(bytes, plan_class_name[i], json_integer((json_int_t)p->bytes[i]));
    json_object_set_new(bytes, "context", json_integer((json_int_t)k->context));
    for (int i = 0; i < PLAN_FLOPS; i++) json_object_set_new(flop, plan_flop_name[i], json_real(p->flop[i]));
    stage_json(json_pack(
        "{s:s,s:s,s:s,s:s,s:s,s:i,s:I,s:I,s:o,s:b,s:I,s:I,s:I,s:o,s:o,s:o,s:o,s:I,s:o,s:o}", "model", k->model, "stage",
        k->stage, "method", k->method, "device", k->device, "compute", k->compute, "threads", k->threads, "images",
        (json_int_t)p->images, "trainable", (json_int_t)p->trainable, "bytes", bytes, "context_stated", k->context > 0,
        "device_bytes", (json_int_t)(p->device + k->context), "host_bytes", (json_int_t)p->host, "total_bytes",
        (json_int_t)(p->total + k->context), "flop", flop, "gflops", stage_real(k->gflops > 0 ? k->gflops : NAN),
        "gflops_given", json_boolean(k->given), "seconds_expected",
        stage_real(k->gflops > 0 ? flop_sum(p) / k->gflops * 1e-9 : NAN), "recompute_blocks", (json_int_t)made_again(k),
        "refused", reason(&k->refused), "untimed", reason(&k->untimed)));
}

static void print_table(const planned *k)
{
    const plan *p = &k->p;
    bool cuda = on_cuda(k);
    printf("%s, %s, %s: %zu images a step, %s, %s", k->model, k->stage, k->method, p->images, k->device, k->compute);
    if (!cuda) printf(", %d threads", k->threads);
    if (p->global_size)
        printf("\n2 crops of %zu pixels and %zu of %zu an image", p->global_size, p->locals, p->local_size);
    if (made_again(k)) printf("\n%zu of %d blocks made again in backward", made_again(k), k->shape.depth);
    printf("\n%zu trained values in the backbone\n\n%-16s %10s\n", p->trainable, "memory", "MiB");
    for (int i = 0; i < PLAN_CLASSES; i++)
        if (p->bytes[i]) printf("  %-14s %10.1f\n", plan_class_name[i], (double)p->bytes[i] / 1048576);
    if (k->context)
        printf("  %-14s %10.1f  CUDA's own and its kernels: stated, not measured\n", "context",
               (double)k->context / 1048576);
    printf("  %-14s %10.1f\n\n", "in all", (double)(p->total + k->context) / 1048576);
    printf("%-16s %10s\n", "a step", "GFLOP");
    for (int i = 0; i < PLAN_FLOPS; i++)
        if (p->flop[i] > 0) printf("  %-14s %10.1f\n", plan_flop_name[i], p->flop[i] * 1e-9);
    printf("  %-14s %10.1f\n\n", "in all", flop_sum(p) * 1e-9);
    if (k->gflops > 0) {
        double seconds = flop_sum(p) / k->gflops * 1e-9;
        printf("At %.0f GFLOP/s (%s) a step takes about %.3g s: %.3g images/s.\n", k->gflops,
               k->given ? "given" : "of two of its blocks, measured now, on this machine", seconds,
               (double)p->images / seconds);
    }
    if (k->untimed.code) printf("How long a step takes is not known: %s.\n", k->untimed.msg);
    if (k->unsettled) printf("--recompute auto goes by the GPU's memory, which is not known here: planned as none.\n");
    if (k->refused.code) printf("It would not start here: %s.\n", k->refused.msg);
    if (cuda)
        printf("Pinned and host are this machine's memory, all else the GPU's. Not counted: the program and its "
               "libraries.\n");
    else
        printf("Not counted: the program, its libraries and oneDNN's compiled kernels (%d MiB at most), and mapped "
               "files.\n",
               PLAN_CONSTANT >> 20);
}

err_code cmd_plan(const options *o, int *status, err *e)
{
    planned k = {.o = o,
                 .model = options_text(o, "plan.model"),
                 .stage = options_text(o, "plan.stage"),
                 .method = options_text(o, "plan.method"),
                 .device = options_text(o, "plan.device"),
                 .gflops = options_real(o, "plan.gflops")};
    k.given = k.gflops > 0;
    k.context = on_cuda(&k) ? PLAN_CUDA_CONSTANT : 0;
    *status = STATUS_DONE;
    if (o->n_arguments) FAIL(e, USAGE, "plan wants no arguments: radapt plan --backbone FILE|NAME");
    k.named = *k.model ? "--model" : "--backbone";
    if (*k.model && options_source(o, "backbone") == FROM_COMMAND_LINE)
        FAIL(e, USAGE, "plan: --model and --backbone are the same: give one");
    if (!*k.model) k.model = options_has(o, "backbone") ? options_text(o, "backbone") : "vit-ti/16";
    TRY(make_plan(&k, e));
    bool measured = !k.given && !on_cuda(&k) && !options_flag(o, "dry-run");
    err_code rc = measured ? measure_rate(&k, &k.untimed) : ERR_OK;
    if (rc && rc != ERR_NOMEM) { /* without room for the trial the plan is worth as much */
        *e = k.untimed;
        return rc;
    }
    if (options_flag(o, "json"))
        print_json(&k);
    else
        print_table(&k);
    return ERR_OK;
}
