/* ssl.c: the loop of self-supervised adaptation: schedules, metrics, evaluation, checkpoints, guards. A step is
 * ssl_step.c's, its crops are ssl_data.c's. Everything that decides is a function of the step and of what the
 * checkpoint holds, so that a resumed run equals an uninterrupted one. */
#include "adapt/ssl.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapt/adapter.h"
#include "adapt/plan.h"
#include "adapt/ssl_data.h"
#include "adapt/ssl_eval.h"
#include "adapt/ssl_mask.h"
#include "adapt/ssl_step.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/stop.h"
#include "preprocess/loader.h"

#define NEVER UINT64_MAX
enum { LOG_STEPS = 10, INIT_TOKENS = 4096, INIT_CROPS = 512, ROLL_BACKS = 2, NAN_ROW = 3 };

typedef struct {
    vit *m;
    const cohort *c;
    const ssl_options *o;
    const char *dir;
    ssl_result *out;
    param_set ps;
    size_t n_backbone; /* params before the head's */
    ssl_data data;
    ssl_eval eval;
    ssl_step step;
    ssl_mask mask;
    uint8_t *mask_bits;
    FILE *metrics;
    char hash[HASH_HEX]; /* of what a checkpoint must agree with */
    /* state that a checkpoint holds, beside out's */
    uint64_t at;        /* next step */
    uint64_t evaluated; /* step of the last evaluation; NEVER: none */
    uint64_t best_step; /* of the best teacher, whose state is in best-<step>.safetensors; NEVER: none */
    double lr_factor;
    uint64_t roll_backs, bad_steps;
} run;

static err_code in_dir(const run *r, const char *name, char out[FILE_PATH_MAX], err *e)
{
    return file_path(out, e, "%s/%s", r->dir, name);
}

/* --- metrics.jsonl and result.json
 * ------------------------------------------------------------------------------------ */

static json_t *real_or_null(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static err_code write_line(run *r, json_t *j, err *e)
{
    int bad = json_dumpf(j, r->metrics, JSON_COMPACT | JSON_PRESERVE_ORDER);
    json_decref(j);
    fputc('\n', r->metrics);
    if (bad || fflush(r->metrics)) FAIL(e, NOSPACE, "adapt: metrics.jsonl cannot be written");
    return ERR_OK;
}

static err_code read_result(const char *path, ssl_result *out, err *e)
{
    json_t *j = json_load_file(path, 0, NULL);
    if (!json_is_object(j)) {
        json_decref(j);
        FAIL(e, FORMAT, "adapt: result.json of this run is damaged; remove the run's folder");
    }
    const struct {
        const char *key;
        double *to;
    } reals[] = {
        {"seconds", &out->seconds},       {"images_per_s", &out->images_per_s}, {"loss_first", &out->loss_first},
        {"loss_last", &out->loss_last},   {"knn_start", &out->knn_start},       {"knn_best", &out->knn_best},
        {"rank_start", &out->rank_start}, {"rank_best", &out->rank_best},       {"peak_bytes", &out->peak_bytes}};
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
        const json_t *v = json_object_get(j, reals[i].key);
        *reals[i].to = json_is_number(v) ? json_number_value(v) : NAN;
    }
    out->steps = (uint64_t)json_integer_value(json_object_get(j, "steps"));
    out->images = (uint64_t)json_integer_value(json_object_get(j, "images"));
    out->trainable = (size_t)json_integer_value(json_object_get(j, "trainable"));
    out->rolled_back = json_is_true(json_object_get(j, "rolled_back"));
    out->already_done = true;
    json_decref(j);
    return ERR_OK;
}

static err_code write_result(run *r, err *e)
{
    const ssl_result *t = r->out;
    char path[FILE_PATH_MAX];
    TRY(in_dir(r, "result.json", path, e));
    json_t *j =
        json_pack("{s:I,s:I,s:I,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:b}", "steps", (json_int_t)t->steps, "images",
                  (json_int_t)t->images, "trainable", (json_int_t)t->trainable, "seconds", real_or_null(t->seconds),
                  "images_per_s", real_or_null(t->images_per_s), "loss_first", real_or_null(t->loss_first), "loss_last",
                  real_or_null(t->loss_last), "knn_start", real_or_null(t->knn_start), "knn_best",
                  real_or_null(t->knn_best), "rank_start", real_or_null(t->rank_start), "rank_best",
                  real_or_null(t->rank_best), "peak_bytes", real_or_null(t->peak_bytes), "rolled_back", t->rolled_back);
    char *text = j ? json_dumps(j, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : NULL;
    json_decref(j);
    if (!text) FAIL(e, NOMEM, "adapt: no memory for the result");
    err_code rc = file_write(path, text, strlen(text), e);
    free(text);
    return rc;
}

/* --- checkpoints
 * ------------------------------------------------------------------------------------------------------- */

static void config_hash(run *r)
{
    hash *h = hash_new();
    ssl_options o = *r->o;
    hash_str(h, "radapt-ssl/2");
    hash_str(h, vit_hash(r->m));
    hash_str(h, r->c->data_hash);
    hash_str(h, r->c->split_hash);
    /* Field by field: padding between them is not the configuration's. */
    const double v[] = {(double)o.peft.method,
                        o.peft.rows,
                        (double)o.peft.seed,
                        o.epochs,
                        o.warmup_epochs,
                        o.head_warmup_epochs,
                        o.batch,
                        o.accumulate,
                        o.layer_decay,
                        o.patch_lr,
                        o.separate_heads,
                        o.sinkhorn,
                        o.knn,
                        o.knn_temp,
                        o.global_size,
                        o.local_size,
                        o.locals,
                        o.lr,
                        o.head_lr,
                        o.lr_last,
                        o.weight_decay,
                        o.weight_decay_last,
                        o.clip,
                        o.momentum,
                        o.momentum_last,
                        o.teacher_temp,
                        o.teacher_temp_last,
                        o.teacher_temp_epochs,
                        o.student_temp,
                        o.center_momentum,
                        o.dino,
                        o.ibot,
                        o.koleo,
                        o.mask_probability,
                        o.mask_ratio[0],
                        o.mask_ratio[1],
                        o.hidden,
                        o.bottleneck,
                        o.prototypes,
                        o.data_init,
                        o.freeze_prototypes_epochs,
                        o.evaluate_epochs,
                        o.collapse_rank,
                        (double)o.seed,
                        o.view.size,
                        o.view.share,
                        (double)o.view.window.mode,
                        (double)vit_device(r->m)->ct,
                        o.peft.rank,
                        (double)o.peft.alpha,
                        o.peft.targets,
                        o.peft.prompts,
                        o.peft.deep};
    hash_add(h, v, sizeof v);
    for (int i = 0; i < 3; i++) {
        const voi_window *w = &o.view.window.fixed[i];
        hash_add(h, (const double[]){w->center, w->width, (double)w->function}, 3 * sizeof(double));
    }
    hash_add(h, &o.augment, sizeof o.augment); /* floats only */
    hash_hex(h, r->hash);
}

enum { CENTERS = 2 };

/* What a checkpoint holds beside the params. */
static void centers(const run *r, checkpoint_extra out[CENTERS])
{
    static const char *const names[CENTERS] = {"center.class", "center.patch"};
    for (int i = 0; i < CENTERS; i++)
        out[i] = (checkpoint_extra){names[i], r->step.group[i].center, r->step.config.head.prototypes};
}

/* The whole state: weights, teacher, Adam's moments, centres, and the loop's numbers in one text, exact in both
 * directions. */
static err_code save_state(run *r, const char *path, err *e)
{
    char state[640];
    const ssl_result *t = r->out;
    long metrics_bytes = ftell(r->metrics);
    snprintf(state, sizeof state,
             "%" PRIu64 " %" PRIu64 " %" PRIu64 " %a %" PRIu64 " %" PRIu64 " %d %a %a %a %a %a %a %a %ld", r->at,
             r->evaluated, r->best_step, r->lr_factor, r->roll_backs, r->bad_steps, t->rolled_back, t->seconds,
             t->loss_first, t->loss_last, t->knn_start, t->knn_best, t->rank_start, t->rank_best, metrics_bytes);
    const checkpoint_meta meta[] = {{"format", "radapt-checkpoint/2"}, {"config", r->hash}, {"state", state}};
    checkpoint_extra extra[CENTERS];
    centers(r, extra);
    if (metrics_bytes < 0 || fflush(r->metrics) || fdatasync(fileno(r->metrics)))
        FAIL_ERRNO(e, "adapt: metrics.jsonl cannot be written");
    return checkpoint_write(path, r->step.d, &r->ps, true, false, extra, CENTERS, meta, sizeof meta / sizeof *meta, e);
}

static err_code best_path(const run *r, uint64_t step, char out[FILE_PATH_MAX], err *e)
{
    return file_path(out, e, "%s/best-%" PRIu64 ".safetensors", r->dir, step);
}

static err_code save_checkpoint(run *r, err *e)
{
    char path[FILE_PATH_MAX];
    TRY(in_dir(r, "checkpoint.safetensors", path, e));
    return save_state(r, path, e);
}

/* This evaluation's teacher is the best: its whole state is kept beside the checkpoint, which names it. Killed between
 * two of these lines, the checkpoint still names a state that is there. */
static err_code keep_best(run *r, err *e)
{
    char path[FILE_PATH_MAX], old[FILE_PATH_MAX];
    uint64_t before = r->best_step;
    r->best_step = r->at;
    TRY(best_path(r, r->at, path, e));
    TRY(save_state(r, path, e));
    TRY(save_checkpoint(r, e));
    if (before == NEVER || before == r->at) return ERR_OK;
    TRY(best_path(r, before, old, e));
    unlink(old);
    return ERR_OK;
}

static err_code load_tensors(run *r, const safetensors *s, err *e)
{
    checkpoint_extra extra[CENTERS];
    centers(r, extra);
    TRY(checkpoint_load(s, r->step.d, &r->ps, true, extra, CENTERS, e));
    ssl_step_refresh(&r->step);
    return ERR_OK;
}

/* A checkpoint, if there is one; metrics.jsonl is cut back to it. */
static err_code load_checkpoint(run *r, err *e)
{
    char path[FILE_PATH_MAX];
    safetensors s;
    ssl_result *t = r->out;
    long metrics_bytes;
    int rolled_back;
    err_code rc = ERR_OK;
    TRY(in_dir(r, "checkpoint.safetensors", path, e));
    if (!file_exists(path)) return ERR_OK;
    TRY(safetensors_open(&s, path, e));
    const char *config = safetensors_meta(&s, "config"), *state = safetensors_meta(&s, "state");
    if (!config || !state || strcmp(config, r->hash) != 0)
        FAIL_DONE(rc, e, CONFLICT, "adapt: the checkpoint in this run's folder is of another configuration");
    if (sscanf(state,
               "%" SCNu64 " %" SCNu64 " %" SCNu64 " %la %" SCNu64 " %" SCNu64 " %d %la %la %la %la %la %la %la %ld",
               &r->at, &r->evaluated, &r->best_step, &r->lr_factor, &r->roll_backs, &r->bad_steps, &rolled_back,
               &t->seconds, &t->loss_first, &t->loss_last, &t->knn_start, &t->knn_best, &t->rank_start, &t->rank_best,
               &metrics_bytes) != 15)
        FAIL_DONE(rc, e, FORMAT, "adapt: the checkpoint is damaged; remove the run's folder");
    TRY_DONE(rc, load_tensors(r, &s, e));
    t->rolled_back = rolled_back;
    t->resumed = true;
    if (ftruncate(fileno(r->metrics), metrics_bytes) || fseek(r->metrics, metrics_bytes, SEEK_SET))
        FAIL_DONE(rc, e, IO, "adapt: metrics.jsonl cannot be cut back to the checkpoint");
    log_event(LOG_INFO, "adapt.resumed", "step", LOG_INT(r->at), NULL);
done:
    safetensors_close(&s);
    return rc;
}

/* Back to the best teacher's state: weights, head, moments, centres. What is drawn goes on from here. */
static err_code restore_best(run *r, err *e)
{
    char path[FILE_PATH_MAX];
    safetensors s;
    TRY(best_path(r, r->best_step, path, e));
    TRY(safetensors_open(&s, path, e));
    err_code rc = load_tensors(r, &s, e);
    safetensors_close(&s);
    return rc;
}

/* The stage's product: the teacher's trainable backbone weights. */
static err_code save_adapter(run *r, err *e)
{
    char path[FILE_PATH_MAX];
    TRY(in_dir(r, "adapter.safetensors", path, e));
    param_set backbone = {.p = r->ps.p, .n = r->n_backbone};
    return adapter_write(path, r->m, &backbone, &r->o->peft, e);
}

/* The end: the best teacher's adapter, then result.json, which says that it is all there; what only a run under way
 * needs goes. */
static err_code finish(run *r, err *e)
{
    char path[FILE_PATH_MAX];
    TRY(restore_best(r, e));
    TRY(save_adapter(r, e));
    TRY(write_result(r, e));
    TRY(in_dir(r, "checkpoint.safetensors", path, e));
    unlink(path);
    TRY(best_path(r, r->best_step, path, e));
    unlink(path);
    return ERR_OK;
}

/* --- the loop
 * -------------------------------------------------------------------------------------------------------------- */

static bool is_better(const run *r, const ssl_score *s)
{
    if (r->best_step == NEVER || !isfinite(s->knn_auc)) return true;
    return s->knn_auc >= r->out->knn_best;
}

/* The teacher's rank fell below the limit: back to the best with half the rate, and after too many times no further. */
static err_code collapsed(run *r, bool *over, err *e)
{
    log_event(LOG_WARN, "adapt.collapse", "step", LOG_INT(r->at), "roll_backs", LOG_INT(r->roll_backs), NULL);
    r->out->rolled_back = true;
    *over = r->best_step == NEVER || r->roll_backs++ >= ROLL_BACKS;
    if (*over) return ERR_OK; /* what is best stays */
    r->lr_factor *= 0.5;
    TRY(restore_best(r, e));
    return save_checkpoint(r, e);
}

/* Evaluates the teacher and keeps it if it is the best so far: with labels the best kNN wins, ties go to the later;
 * without, the latest that has not collapsed. */
static err_code evaluate(run *r, bool *over, err *e)
{
    ssl_score s;
    TRY(ssl_eval_run(&r->eval, r->m, VIT_TEACHER, r->c, r->o, &s, e));
    if (r->at == 0) {
        if (!(s.rank > 0)) FAIL(e, NUMERIC, "adapt: the backbone's features are not finite");
        r->out->rank_start = s.rank;
        r->out->knn_start = s.knn_auc;
    }
    TRY(write_line(r,
                   json_pack("{s:I,s:f,s:o,s:o,s:o,s:o,s:o}", "step", (json_int_t)r->at, "epoch",
                             (double)r->at / (double)r->data.steps_per_epoch, "knn_auc", real_or_null(s.knn_auc),
                             "knn_accuracy", real_or_null(s.knn_accuracy), "linear_auc", real_or_null(s.linear_auc),
                             "linear_accuracy", real_or_null(s.linear_accuracy), "rank", real_or_null(s.rank)),
                   e));
    log_event(LOG_INFO, "adapt.evaluate", "step", LOG_INT(r->at), "knn_auc", LOG_REAL(s.knn_auc), "linear_auc",
              LOG_REAL(s.linear_auc), "rank", LOG_REAL(s.rank), NULL);
    r->evaluated = r->at;
    if (s.rank < r->o->collapse_rank * r->out->rank_start) return collapsed(r, over, e);
    if (!is_better(r, &s)) return ERR_OK;
    r->out->knn_best = s.knn_auc;
    r->out->rank_best = s.rank;
    return keep_best(r, e);
}

/* CLS and a few patch tokens of training crops through the frozen backbone, for the head's initialisation. */
static err_code init_head(run *r, err *e)
{
    size_t crops = 2 * r->data.batch, T = r->step.T, C = r->step.config.head.in, n = 0;
    size_t batches = (INIT_CROPS + crops - 1) / crops, each = INIT_TOKENS / (batches * crops);
    if (each < 2) each = 2;
    size_t capacity = batches * crops * each;
    float *pixels = malloc(ssl_data_floats(&r->data) * sizeof *pixels),
          *tokens = malloc(crops * T * C * sizeof *tokens);
    float *x = malloc(capacity * C * sizeof *x);
    err_code rc = ERR_OK;
    if (!pixels || !tokens || !x) FAIL_DONE(rc, e, NOMEM, "adapt: no memory to initialise the head");
    for (size_t b = 0; b < batches; b++) {
        TRY_DONE(rc, stop_check(e));
        TRY_DONE(rc, ssl_data_fill(&r->data, b, pixels, e));
        TRY_DONE(rc, ssl_step_tokens(&r->step, pixels, tokens, e));
        rng g = rng_at(r->o->seed, RNG_HEAD, 2, (uint32_t)b);
        for (size_t i = 0; i < crops; i++)
            for (size_t k = 0; k < each; k++) { /* the class token, then random patches */
                size_t t = k == 0 ? 0 : T - r->step.P + rng_below(&g, (uint32_t)r->step.P);
                memcpy(x + n++ * C, tokens + (i * T + t) * C, C * sizeof *x);
            }
    }
    for (int i = 0; i < 1 + r->step.config.separate_heads && !rc; i++)
        rc = dino_head_init(&r->step.head[i], x, n, 0.1f, r->o->seed, e);
done:
    free(pixels);
    free(tokens);
    free(x);
    return rc;
}

/* Frames that n updates take. */
static uint64_t images_of(const run *r, uint64_t n)
{
    return n * r->data.accumulate * r->data.batch;
}

static uint64_t steps_of(const run *r, double epochs)
{
    return (uint64_t)llround(epochs * (double)r->data.steps_per_epoch);
}

/* The schedules at one step. The head warms up first, with the backbone frozen; the backbone's own schedule begins
 * behind that. */
static void schedule(const run *r, uint64_t total, ssl_step_update_in *u, ssl_step_in *in)
{
    const ssl_options *o = r->o;
    uint64_t head_only = steps_of(r, o->head_warmup_epochs), warm = steps_of(r, o->warmup_epochs), t = r->at;
    bool frozen = t < head_only || o->peft.method == METHOD_LINEAR;
    uint64_t back = t < head_only ? 0 : t - head_only, length = total - head_only;
    float lr = schedule_warm_cosine(o->lr, o->lr_last, back + 1, warm, length + 1), head_lr;
    if (t < head_only)
        head_lr = o->head_lr * (float)(t + 1) / (float)head_only;
    else if (head_only)
        head_lr = schedule_cosine(o->head_lr, o->lr_last, back, length);
    else /* no warm-up of its own: it rises with the backbone's */
        head_lr = schedule_warm_cosine(o->head_lr, o->lr_last, back + 1, warm, length + 1);
    u->adam = (adamw_step){.beta1 = 0.9f,
                           .beta2 = 0.999f,
                           .eps = 1e-8f,
                           .weight_decay = schedule_cosine(o->weight_decay, o->weight_decay_last, t, total),
                           .lr = (float)r->lr_factor * lr,
                           .head_lr = (float)r->lr_factor * head_lr,
                           .t = (int64_t)back + 1,
                           .head_t = (int64_t)t + 1,
                           .skip_prototypes = t < steps_of(r, o->freeze_prototypes_epochs),
                           .skip_backbone = frozen};
    u->momentum = schedule_cosine(o->momentum, o->momentum_last, t, total);
    in->teacher_temp = schedule_linear(o->teacher_temp, o->teacher_temp_last, t, steps_of(r, o->teacher_temp_epochs));
    in->head_only = frozen;
}

static err_code log_step(run *r, const ssl_step_out *s, const ssl_step_update_in *u, double images_per_s, err *e)
{
    return write_line(r,
                      json_pack("{s:I,s:f,s:o,s:o,s:o,s:o,s:[o,o],s:[o,o],s:o,s:f,s:o}", "step", (json_int_t)r->at,
                                "epoch", (double)r->at / (double)r->data.steps_per_epoch, "loss", real_or_null(s->loss),
                                "dino", real_or_null(s->dino), "ibot", real_or_null(s->ibot), "koleo",
                                real_or_null(s->koleo), "target_entropy", real_or_null(s->target_entropy[0]),
                                real_or_null(s->target_entropy[1]), "marginal_entropy",
                                real_or_null(s->marginal_entropy[0]), real_or_null(s->marginal_entropy[1]), "grad_norm",
                                real_or_null(s->grad_norm), "lr", (double)(u->adam.skip_backbone ? 0 : u->adam.lr),
                                "images_per_s", real_or_null(images_per_s)),
                      e);
}

/* A gradient that is not finite: the step is left out; three in a row, and the last good state comes back with half the
 * rate. */
static err_code bad_step(run *r, err *why, err *e)
{
    log_event(LOG_WARN, "adapt.not_finite", "step", LOG_INT(r->at), NULL);
    if (++r->bad_steps < NAN_ROW) return ERR_OK;
    if (r->roll_backs >= ROLL_BACKS || r->best_step == NEVER) {
        *e = *why;
        return why->code;
    }
    r->roll_backs++;
    r->lr_factor *= 0.5;
    r->bad_steps = 0;
    r->out->rolled_back = true;
    return restore_best(r, e);
}

/* One micro-batch: its crops and masks are a function of its number, its gradients add to the update's. */
static err_code micro_step(run *r, loader *l, uint64_t micro, ssl_step_in *in, ssl_step_out *s, err *e)
{
    const float *batch;
    size_t S = r->data.global_size;
    rng g = rng_at(r->o->seed, RNG_MASK, micro, 0);
    TRY(loader_take(l, micro, &batch, e));
    size_t masked = r->o->ibot > 0 ? ssl_mask_draw(&r->mask, &g, r->mask_bits) : 0;
    in->globals = batch;
    in->locals = batch + 2 * r->data.batch * 3 * S * S;
    in->mask = masked ? r->mask_bits : NULL;
    return ssl_step_gradients(&r->step, in, s, e);
}

static err_code one_step(run *r, loader *l, uint64_t total, ssl_step_out *s, ssl_step_update_in *u, err *e)
{
    ssl_step_in in = {0};
    schedule(r, total, u, &in);
    for (uint64_t i = 0; i < r->data.accumulate; i++) TRY(micro_step(r, l, r->at * r->data.accumulate + i, &in, s, e));
    err why = {0};
    err_code rc = ssl_step_update(&r->step, u, s, &why);
    if (rc == ERR_NUMERIC) return bad_step(r, &why, e);
    if (rc) {
        *e = why;
        return rc;
    }
    r->bad_steps = 0;
    return ERR_OK;
}

/* One step, its line in metrics.jsonl, and a checkpoint when it is time. */
static err_code advance(run *r, loader *l, uint64_t total, progress *bar, double *saved, err *e)
{
    ssl_step_out s = {0};
    ssl_step_update_in u;
    TRY(one_step(r, l, total, &s, &u, e));
    if (r->at == 0) r->out->loss_first = s.loss;
    r->out->loss_last = s.loss;
    r->at++;
    progress_note(bar, "loss %.3f", (double)s.loss);
    progress_add(bar, images_of(r, 1));
    if (r->at % LOG_STEPS == 0 || r->at == total) {
        double took = r->out->seconds;
        TRY(log_step(r, &s, &u, took > 0 ? (double)images_of(r, r->at) / took : NAN, e));
    }
    double now = progress_clock();
    if ((now - *saved) / 60 < r->o->checkpoint_minutes) return ERR_OK;
    *saved = now;
    return save_checkpoint(r, e);
}

/* seconds: of steps and evaluations, over all sittings. Between the lines of this loop the state is whole: whoever asks
 * it to stop, in a step or in an evaluation, finds a checkpoint of just that. */
static err_code loop(run *r, uint64_t total, err *e)
{
    loader *l = NULL;
    progress bar;
    bool over = false;
    uint64_t every = steps_of(r, r->o->evaluate_epochs);
    err_code rc = ERR_OK;
    double clock = progress_clock(), saved = clock;
    if (!every) every = 1;
    progress_start(&bar, "adapt", "images", images_of(r, total));
    progress_skip(&bar, images_of(r, r->at));
    while (!rc && !over) {
        bool due = r->at % every == 0 || r->at == total;
        if (due && r->evaluated != r->at)
            rc = evaluate(r, &over, e);
        else if (r->at == total)
            break;
        else if (!l && (rc = loader_open(&l, ssl_data_fill, &r->data, ssl_data_floats(&r->data),
                                         r->at * r->data.accumulate, total * r->data.accumulate - 1, e)))
            break;
        else
            rc = advance(r, l, total, &bar, &saved, e);
        double now = progress_clock();
        r->out->seconds += now - clock;
        clock = now;
        if (!rc) rc = stop_check(e);
    }
    if (rc == ERR_INTERRUPTED) {
        err second = {0};
        if (save_checkpoint(r, &second)) log_event(LOG_WARN, "adapt.not_saved", "reason", LOG_STR(second.msg), NULL);
    }
    r->out->images_per_s = r->out->seconds > 0 ? (double)images_of(r, r->at) / r->out->seconds : 0;
    progress_end(&bar);
    loader_close(l);
    return rc;
}

/* Memory that the run will take beside what is allocated already: the step, and batches waiting on the host. The
 * params' pages may not have been touched yet: they are counted too. */
static err_code fits(const run *r, const ssl_step_config *k, err *e)
{
    enum { COPIES = 5, BATCHES = 3 }; /* master, gradient, two moments, teacher; as the loader holds them */
    size_t bytes, available = 0;
    TRY(ssl_step_bytes(r->m, k, &bytes, e));
    bytes += BATCHES * ssl_data_floats(&r->data) * sizeof(float) + COPIES * r->out->trainable * sizeof(float);
    FILE *f = fopen("/proc/meminfo", "r");
    char line[128];
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %zu", &available) == 1) break;
    if (f) fclose(f);
    if (available && bytes / 1024 > available)
        FAIL(e, NOMEM,
             "adapt: needs %zu MiB, %zu MiB are free; use a smaller batch or model, fewer crops (radapt plan)",
             bytes >> 20, available >> 10);
    return ERR_OK;
}

/* Of the backbone's params: the heads are not there yet. */
static void layer_rates(run *r)
{
    optim_layer_decay(&r->ps, vit_get_config(r->m)->depth, r->o->layer_decay);
    for (size_t i = 0; i < r->ps.n; i++)
        if (!strncmp(r->ps.p[i].name, "patch_embed.", 12)) r->ps.p[i].lr_scale *= r->o->patch_lr;
}

static err_code open_all(run *r, err *e)
{
    const ssl_options *o = r->o;
    char path[FILE_PATH_MAX];
    TRY(file_mkdirs(r->dir, e));
    TRY(in_dir(r, "metrics.jsonl", path, e));
    r->metrics = fopen(path, file_exists(path) ? "r+" : "w+");
    if (!r->metrics) FAIL(e, IO, "adapt: metrics.jsonl cannot be opened");
    TRY(ssl_data_open(&r->data, r->m, r->c, o, e));
    TRY(ssl_eval_open(&r->eval, r->m, r->c, SSL_EVAL_FRAMES, e));
    ssl_step_config k = plan_step_config(&r->data, r->m, o, &r->mask);
    r->mask_bits = calloc(r->mask.crops, r->mask.rows * r->mask.columns);
    if (!r->mask_bits) FAIL(e, NOMEM, "adapt: no memory for masks");
    peft_spec peft = o->peft;
    peft.teacher = true;
    TRY(vit_train(r->m, &peft, &r->ps, e));
    r->n_backbone = r->ps.n;
    layer_rates(r);
    for (size_t i = 0; i < r->n_backbone; i++) r->out->trainable += r->ps.p[i].rows * r->ps.p[i].cols;
    TRY(fits(r, &k, e));
    TRY(ssl_step_open(&r->step, r->m, &r->ps, &k, e));
    log_event(LOG_INFO, "adapt.start", "frames", LOG_INT(r->data.n), "batch", LOG_INT(r->data.batch), "accumulate",
              LOG_INT(r->data.accumulate), "prototypes", LOG_INT(k.head.prototypes), "trainable",
              LOG_INT(r->out->trainable), "planned_mib", LOG_INT(r->step.bytes >> 20), NULL);
    return ERR_OK;
}

err_code ssl_adapt(vit *m, const cohort *c, const ssl_options *o, const char *run_dir, ssl_result *out, err *e)
{
    run r = {
        .m = m, .c = c, .o = o, .dir = run_dir, .out = out, .lr_factor = 1, .evaluated = NEVER, .best_step = NEVER};
    char path[FILE_PATH_MAX];
    *out = (ssl_result){.knn_start = NAN, .knn_best = NAN, .rank_start = NAN, .rank_best = NAN};
    TRY(in_dir(&r, "result.json", path, e));
    if (file_exists(path)) return read_result(path, out, e);
    config_hash(&r);
    err_code rc;
    TRY_DONE(rc, open_all(&r, e));
    TRY_DONE(rc, load_checkpoint(&r, e));
    if (!out->resumed) {
        if (ftruncate(fileno(r.metrics), 0)) FAIL_DONE(rc, e, IO, "adapt: metrics.jsonl cannot be written");
        if (o->data_init) TRY_DONE(rc, init_head(&r, e));
    }
    uint64_t total = steps_of(&r, o->epochs + o->head_warmup_epochs);
    TRY_DONE(rc, loop(&r, total ? total : 1, e));
    out->steps = r.at;
    out->images = images_of(&r, r.at);
    out->peak_bytes = (double)vit_device(m)->bytes_most;
    rc = finish(&r, e);
done:
    ssl_step_close(&r.step);
    vit_untrain(m);
    param_set_free(vit_device(m), &r.ps);
    ssl_eval_close(&r.eval);
    ssl_data_close(&r.data);
    free(r.mask_bits);
    if (r.metrics) fclose(r.metrics);
    return rc;
}
