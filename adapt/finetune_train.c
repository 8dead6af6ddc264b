/* finetune_train.c: draws, steps, validation, checkpoints.
 *
 * Everything that is drawn depends on (seed, number of the sample since the start) alone, and the checkpoint holds all
 * else, so that a run which was stopped anywhere gives the bits of one that was not. Step 0 is validated too: the
 * classifier that training starts from takes part in the choice of the best. */
#include "adapt/finetune_train.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapt/checkpoint.h"
#include "adapt/labelled_batch.h"
#include "adapt/optim.h"
#include "adapt/probe.h"
#include "adapt/task.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/stop.h"
#include "model/device_cuda.h"
#include "preprocess/loader.h"

/* --- the loop's state */

typedef struct {
    finetune_job *j;
    size_t batch, outputs;
    uint64_t step, steps, per_epoch, apart; /* apart: validations, in steps */
    uint64_t known;                         /* steps whose loss was read: all but the last, or all */
    uint64_t evaluated;                     /* step of the last validation; UINT64_MAX: none */
    metrics best;
    uint64_t best_step;
    int bad; /* validations since the best */
    double loss_sum;
    uint64_t loss_n;
    double seconds, train_seconds; /* all of it; without validation */
    char *log;                     /* metrics.jsonl so far */
    size_t log_bytes;
    /* device */
    vit_pass pass;
    dv *arena_block, *target, *weight, *logits, *logits_f32, *d_logits_f32, *d_logits;
    dv *loss;                /* f32 (2): the batch's loss, its gradients' sum of squares */
    dv **best_master;        /* (params.n) */
    checkpoint_extra *extra; /* (params.n) the same with names */
    char (*extra_name)[128];
    optim optim;
    /* host */
    labelled_batch source;
    loader *l;
    case_set validation;
    float *features;     /* (validation frames, dim) */
    float *drop;         /* (depth, 2, batch): what is dropped in a step; NULL: nothing */
    double *probability; /* (validation frames, classes), (validation cases, classes) */
} loop;

static param *head_weight(finetune_job *j)
{
    return &j->params.p[j->params.n - 2];
}

static param *head_bias(finetune_job *j)
{
    return &j->params.p[j->params.n - 1];
}

err_code finetune_train_predict(finetune_job *j, const float *features, size_t n, double *out, err *e)
{
    size_t O = (size_t)j->outputs, C = j->dim, cells = n * (size_t)j->classes;
    float *head = malloc((O * C + O) * sizeof *head);
    double *z = malloc((n * O + 1) * sizeof *z);
    err_code rc = ERR_OK;
    if (!head || !z) FAIL_DONE(rc, e, NOMEM, "finetune: no memory");
    j->d->op->download(j->d, head, head_weight(j)->master, O * C * sizeof *head);
    j->d->op->download(j->d, head + O * C, head_bias(j)->master, O * sizeof *head);
    TRY_DONE(rc, device_sync(j->d, e));
    probe_logits(head, head + O * C, features, n, C, j->outputs, z);
    task_probabilities(j->c->task, j->classes, z, n, out);
    for (size_t i = 0; i < cells; i++)
        if (!isfinite(out[i])) FAIL_DONE(rc, e, NUMERIC, "finetune: predictions are not finite");
done:
    free(head);
    free(z);
    return rc;
}

/* --- checkpoint */

static err_code checkpoint_path(const finetune_job *j, char out[FILE_PATH_MAX], err *e)
{
    return file_path(out, e, "%s/checkpoint.safetensors", j->run_dir);
}

bool finetune_train_started(const finetune_job *j)
{
    char path[FILE_PATH_MAX];
    return !checkpoint_path(j, path, NULL) && file_exists(path);
}

/* The numbers of the loop that a checkpoint carries, as text: exact in both directions. */
static err_code save(loop *t, err *e)
{
    char path[FILE_PATH_MAX], state[512], best[512];
    const metrics *m = &t->best;
    snprintf(state, sizeof state, "%" PRIu64 " %" PRIu64 " %" PRIu64 " %d %a %" PRIu64 " %a %a", t->step, t->evaluated,
             t->best_step, t->bad, t->loss_sum, t->loss_n, t->seconds, t->train_seconds);
    snprintf(best, sizeof best, "%zu %a %a %a %a %a %a %a", m->n, m->accuracy, m->macro_recall, m->kappa_quadratic,
             m->auc, m->average_precision, m->mae, m->loss);
    const checkpoint_meta meta[] = {
        {"finetune.identity", t->j->identity}, {"finetune.state", state}, {"finetune.best", best}};
    TRY(file_path(path, e, "%s/metrics.jsonl", t->j->run_dir));
    TRY(file_write(path, t->log ? t->log : "", t->log_bytes, e));
    TRY(checkpoint_path(t->j, path, e));
    return checkpoint_write(path, t->j->d, &t->j->params, true, false, t->extra, t->j->params.n, meta, 3, e);
}

static err_code resume(loop *t, err *e)
{
    char path[FILE_PATH_MAX];
    safetensors s;
    metrics *m = &t->best;
    err_code rc = ERR_OK;
    TRY(checkpoint_path(t->j, path, e));
    TRY(safetensors_open(&s, path, e));
    const char *identity = safetensors_meta(&s, "finetune.identity"), *state = safetensors_meta(&s, "finetune.state"),
               *best = safetensors_meta(&s, "finetune.best");
    if (!identity || !state || !best) FAIL_DONE(rc, e, FORMAT, "finetune: the checkpoint is not one of this stage");
    if (strcmp(identity, t->j->identity))
        FAIL_DONE(rc, e, CONFLICT, "finetune: the checkpoint belongs to other data or options");
    if (sscanf(state, "%" SCNu64 " %" SCNu64 " %" SCNu64 " %d %la %" SCNu64 " %la %la", &t->step, &t->evaluated,
               &t->best_step, &t->bad, &t->loss_sum, &t->loss_n, &t->seconds, &t->train_seconds) != 8 ||
        sscanf(best, "%zu %la %la %la %la %la %la %la", &m->n, &m->accuracy, &m->macro_recall, &m->kappa_quadratic,
               &m->auc, &m->average_precision, &m->mae, &m->loss) != 8 ||
        t->step > t->steps)
        FAIL_DONE(rc, e, FORMAT, "finetune: the checkpoint is damaged");
    TRY_DONE(rc, checkpoint_load(&s, t->j->d, &t->j->params, true, t->extra, t->j->params.n, e));
    t->j->out->resumed = true;
    log_event(LOG_INFO, "finetune.resumed", "step", LOG_INT(t->step), "of", LOG_INT(t->steps), NULL);
done:
    safetensors_close(&s);
    return rc;
}

/* metrics.jsonl as it was when the checkpoint was written: what came later is done again. */
static err_code resume_log(loop *t, err *e)
{
    char path[FILE_PATH_MAX], *text;
    TRY(file_path(path, e, "%s/metrics.jsonl", t->j->run_dir));
    if (!file_exists(path)) return ERR_OK;
    TRY(file_read(path, 1 << 28, &text, NULL, e));
    size_t kept = 0;
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
        uint64_t step;
        if (sscanf(line, "{\"step\":%" SCNu64, &step) != 1 || t->evaluated == UINT64_MAX || step > t->evaluated) break;
        kept = (size_t)(end + 1 - text);
    }
    text[kept] = 0;
    t->log = text;
    t->log_bytes = kept;
    return ERR_OK;
}

static int json_number(char *out, size_t size, const char *name, double x)
{
    return isfinite(x) ? snprintf(out, size, ",\"%s\":%.6g", name, x) : snprintf(out, size, ",\"%s\":null", name);
}

static err_code log_line(loop *t, const metrics *m, float lr, err *e)
{
    char line[512];
    int n = snprintf(line, sizeof line, "{\"step\":%" PRIu64 ",\"epoch\":%.4g", t->step,
                     (double)t->step / (double)t->per_epoch);
    n += json_number(line + n, sizeof line - (size_t)n, "loss", t->loss_n ? t->loss_sum / (double)t->loss_n : NAN);
    n += json_number(line + n, sizeof line - (size_t)n, "lr", lr);
    n += json_number(line + n, sizeof line - (size_t)n, "validation_auc", m->auc);
    n += json_number(line + n, sizeof line - (size_t)n, "validation_loss", m->loss);
    n += json_number(line + n, sizeof line - (size_t)n, "validation_accuracy", m->accuracy);
    n += json_number(line + n, sizeof line - (size_t)n, "validation_macro_recall", m->macro_recall);
    n += json_number(line + n, sizeof line - (size_t)n, "validation_kappa_quadratic", m->kappa_quadratic);
    n += json_number(line + n, sizeof line - (size_t)n, "validation_average_precision", m->average_precision);
    n += json_number(line + n, sizeof line - (size_t)n, "validation_mae", m->mae);
    n += snprintf(line + n, sizeof line - (size_t)n, "}\n");
    char *grown = realloc(t->log, t->log_bytes + (size_t)n + 1);
    if (!grown) FAIL(e, NOMEM, "finetune: no memory for the log");
    memcpy(grown + t->log_bytes, line, (size_t)n + 1);
    t->log = grown;
    t->log_bytes += (size_t)n;
    return ERR_OK;
}

/* --- set-up */

static err_code alloc_device(loop *t, err *e)
{
    finetune_job *j = t->j;
    device *d = j->d;
    size_t B = t->batch, S = (size_t)j->o->view.size, O = t->outputs;
    arena dry = {0}, real;
    t->pass.again = j->o->recompute;
    t->pass.wanted_most = B;
    TRY(vit_pass_plan(&t->pass, &dry, j->m, B, S, S, VIT_GRAD, e));
    if (arena_failed(&dry)) FAIL(e, LIMIT, "finetune: a batch of %zu images of %zu pixels is too large", B, S);
    TRY(d->op->alloc(d, dry.used, &t->arena_block, e));
    arena_init(&real, t->arena_block, dry.used);
    TRY(vit_pass_plan(&t->pass, &real, j->m, B, S, S, VIT_GRAD, e));
    TRY(device_reserve(d, vit_pass_work_bytes(j->m, B, S, S, VIT_GRAD), e));
    struct {
        dv **to;
        size_t bytes;
    } all[] = {{&t->target, B * O * sizeof(float)},
               {&t->weight, B * O * sizeof(float)},
               {&t->logits, B * O * d->ct_bytes},
               {&t->d_logits, B * O * d->ct_bytes},
               {&t->logits_f32, B * O * sizeof(float)},
               {&t->d_logits_f32, B * O * sizeof(float)},
               {&t->loss, 2 * sizeof(float)}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) TRY(d->op->alloc(d, all[i].bytes, all[i].to, e));
    TRY(labelled_batch_alloc(&t->source, e));
    vit_want_classes(j->m, &t->pass);
    for (size_t i = 0; i < j->params.n; i++) {
        size_t count = j->params.p[i].rows * j->params.p[i].cols;
        TRY(d->op->alloc(d, count * sizeof(float), &t->best_master[i], e));
        snprintf(t->extra_name[i], sizeof t->extra_name[i], "best.%s", j->params.p[i].name);
        t->extra[i] = (checkpoint_extra){t->extra_name[i], t->best_master[i], count};
    }
    return device_sync(d, e);
}

static err_code alloc_host(loop *t, err *e)
{
    finetune_job *j = t->j;
    TRY(case_set_init(&t->validation, j->c, (bool[]){false, true, false}, 0, e));
    size_t frames = case_set_frames(&t->validation), K = (size_t)j->classes, P = j->params.n;
    t->features = malloc((frames * j->dim + 1) * sizeof *t->features);
    t->probability = malloc(((frames + t->validation.n) * K + 1) * sizeof *t->probability);
    t->best_master = calloc(P, sizeof(dv *));
    t->extra = calloc(P, sizeof *t->extra);
    t->extra_name = calloc(P, sizeof *t->extra_name);
    if (!t->features || !t->probability || !t->best_master || !t->extra || !t->extra_name)
        FAIL(e, NOMEM, "finetune: no memory for %zu validation frames", frames);
    return ERR_OK;
}

/* After alloc_device, which plans the pass. */
static err_code alloc_drop(loop *t, err *e)
{
    if (t->j->o->drop_path == 0) return ERR_OK;
    t->drop = calloc(2 * (size_t)vit_get_config(t->j->m)->depth * t->batch, sizeof *t->drop);
    if (!t->drop) FAIL(e, NOMEM, "finetune: no memory");
    t->pass.drop = t->drop;
    return ERR_OK;
}

static void fini(loop *t)
{
    device *d = t->j->d;
    loader_close(t->l);
    enum { BUFFERS = 8 };
    dv *all[BUFFERS] = {t->arena_block, t->target,     t->weight,       t->logits,
                        t->d_logits,    t->logits_f32, t->d_logits_f32, t->loss};
    for (size_t i = 0; i < BUFFERS; i++)
        if (all[i]) d->op->free(d, all[i]);
    for (size_t i = 0; t->best_master && i < t->j->params.n; i++)
        if (t->best_master[i]) d->op->free(d, t->best_master[i]);
    vit_pass_fini(&t->pass);
    optim_fini(&t->optim);
    labelled_batch_fini(&t->source);
    case_set_fini(&t->validation);
    free(t->drop);
    free(t->features);
    free(t->probability);
    free(t->best_master);
    free(t->extra);
    free(t->extra_name);
    free(t->log);
}

/* --- the work */

static void copy_masters(loop *t, bool to_best)
{
    device *d = t->j->d;
    for (size_t i = 0; i < t->j->params.n; i++) {
        dv *master = t->j->params.p[i].master, *best = t->best_master[i];
        size_t bytes = t->extra[i].count * sizeof(float);
        d->op->copy(d, to_best ? best : master, to_best ? master : best, bytes);
    }
    if (!to_best) d->op->refresh(d, t->j->params.p, t->j->params.n);
}

static float lr_at(const loop *t, float base, uint64_t step)
{
    uint64_t warm = (uint64_t)t->j->o->warmup_steps;
    if (warm > t->steps / 4) warm = t->steps / 4;
    return schedule_warm_cosine(base, t->j->o->lr_last, step, warm, t->steps);
}

static err_code evaluate(loop *t, err *e)
{
    finetune_job *j = t->j;
    metrics m = {0};
    size_t frames = case_set_frames(&t->validation);
    if (t->validation.n) {
        double *of_case = t->probability + frames * (size_t)j->classes;
        TRY(features_extract(j->m, VIT_STUDENT, j->c, t->validation.frames, frames, &j->o->view, &t->source.cache,
                             t->features, e));
        TRY(finetune_train_predict(j, t->features, frames, t->probability, e));
        case_set_mean(&t->validation, t->probability, j->classes, of_case);
        TRY(case_set_metrics(&t->validation, of_case, SPLIT_VALIDATION, &m, e));
    }
    bool better = !t->validation.n || t->evaluated == UINT64_MAX || metrics_better(j->c->task, &m, &t->best);
    t->evaluated = t->step;
    if (better) {
        t->best = m;
        t->best_step = t->step;
        t->bad = 0;
        copy_masters(t, true);
    } else {
        t->bad++;
    }
    TRY(log_line(t, &m, lr_at(t, j->o->lr, t->step), e));
    log_event(LOG_INFO, "finetune.epoch", "step", LOG_INT(t->step), "loss",
              LOG_REAL(t->loss_n ? t->loss_sum / (double)t->loss_n : NAN), "validation_auc", LOG_REAL(m.auc),
              "validation_kappa", LOG_REAL(m.kappa_quadratic), "validation_loss", LOG_REAL(m.loss), "best",
              LOG_STR(better ? "yes" : "no"), NULL);
    t->loss_sum = 0;
    t->loss_n = 0;
    return save(t, e);
}

/* Loss and gradients of the batch on the device; scale: of the loss. */
static void gradients(loop *t, float scale)
{
    finetune_job *j = t->j;
    device *d = j->d;
    const op_table *op = d->op;
    size_t B = t->batch, C = j->dim, O = t->outputs;
    param *W = head_weight(j), *b = head_bias(j);
    op->zero(d, t->loss, sizeof(float));
    optim_zero(&t->optim);

    vit_patches(j->m, VIT_STUDENT, &t->pass, t->source.pixels);
    vit_fwd(j->m, VIT_STUDENT, &t->pass, t->pass.patches, NULL);
    op->linear_fwd(d, t->logits, t->pass.out, &j->head, B); /* (B,C) -> (B,O) */
    op->to_f32(d, t->logits_f32, t->logits, B * O);
    if (j->c->task == TASK_MULTICLASS)
        op->softmax_ce(d, t->loss, t->d_logits_f32, t->logits_f32, t->target, scale, B, O);
    else
        op->sigmoid_ce(d, t->loss, t->d_logits_f32, t->logits_f32, t->target, t->weight, scale, B, O);

    op->to_ct(d, t->d_logits, t->d_logits_f32, B * O);
    op->linear_dw(d, W->grad, b->grad, t->d_logits, t->pass.out, NULL, O, B, O, C);
    op->linear_dx(d, t->pass.dout, t->d_logits, &j->head, B);
    vit_bwd(j->m, &t->pass, t->source.pixels, NULL);
}

static bool at_validation(const loop *t)
{
    return t->step % t->apart == 0 || t->step == t->steps;
}

/* What came of the oldest steps that nobody has looked at, until `left` of them are left. */
static err_code read_losses(loop *t, uint64_t left, err *e)
{
    device *d = t->j->d;
    for (; t->step - t->known > left; t->known++) {
        float read[2];
        d->op->take(d, (int)(t->known % OP_SENT_PLACES), read, sizeof read);
        if (d->sticky.code) return device_sync(d, e);
        if (!isfinite(read[0]))
            FAIL(e, NUMERIC, "finetune: the loss is not finite at step %" PRIu64 "; a smaller learning rate may help",
                 t->known);
        TRY(optim_judge(&t->optim, read[1], e));
        t->loss_sum += read[0];
        t->loss_n++;
    }
    return ERR_OK;
}

/* A GPU is asked for the next step before this one's loss is read: it does not wait for the host between
 * validations, * unless a batch's frames are more than is pinned. */
static err_code train_step(loop *t, err *e)
{
    finetune_job *j = t->j;
    const finetune_options *o = j->o;
    device *d = j->d;
    const op_table *op = d->op;
    size_t B = t->batch, targets = B * t->outputs * sizeof(float);
    const float *taken;
    TRY(loader_take(t->l, t->step, &taken, e));
    const labelled_batch_parts v = labelled_batch_view(&t->source, taken);
    labelled_batch_images(&t->source, &v);
    op->upload(d, t->target, v.target, targets);
    op->upload(d, t->weight, v.weight, targets);
    if (t->drop) vit_drop_draw(j->m, o->drop_path, o->seed, t->step, 0, B, t->drop);
    adamw_step a = {.beta1 = 0.9f,
                    .beta2 = 0.999f,
                    .eps = 1e-8f,
                    .weight_decay = o->weight_decay,
                    .lr = lr_at(t, o->lr, t->step),
                    .head_lr = lr_at(t, o->head_lr, t->step),
                    .t = {(int64_t)t->step + 1, (int64_t)t->step + 1}};
    op->record(d, true);
    gradients(t, *v.scale);
    optim_ask(&t->optim, &a);
    op->copy(d, dv_at(t->loss, sizeof(float)), t->optim.scalar, sizeof(float));
    op->record(d, false);
    op->send(d, (int)(t->step % OP_SENT_PLACES), t->loss, 2 * sizeof(float));
    t->step++;
    return read_losses(t, device_is_cuda(d) && !at_validation(t) ? OP_SENT_PLACES - 1 : 0, e);
}

static err_code run(loop *t, progress *p, err *e)
{
    const finetune_options *o = t->j->o;
    t->known = t->step;
    for (;;) {
        double start = progress_clock();
        if (at_validation(t) && t->evaluated != t->step) {
            TRY(evaluate(t, e));
            t->seconds += progress_clock() - start;
        }
        if (t->step == t->steps) return ERR_OK;
        if (at_validation(t) && o->patience > 0 && t->bad >= o->patience) {
            log_event(LOG_INFO, "finetune.early_stop", "step", LOG_INT(t->step), "best_step", LOG_INT(t->best_step),
                      NULL);
            return ERR_OK;
        }
        TRY(stop_check(e));
        if (!t->l)
            TRY(loader_open(&t->l, labelled_batch_fill, &t->source, labelled_batch_floats(&t->source), t->step,
                            t->steps - 1, e));
        start = progress_clock();
        TRY(train_step(t, e));
        t->train_seconds += progress_clock() - start;
        t->seconds += progress_clock() - start;
        bool ordinal = t->j->c->task == TASK_ORDINAL;
        if (t->loss_n)
            progress_note(p, "loss %.3f  best %s %.3f", t->loss_sum / (double)t->loss_n, ordinal ? "kappa" : "AUC",
                          ordinal ? t->best.kappa_quadratic : t->best.auc);
        progress_add(p, 1);
    }
}

/* Where nobody says how long. An epoch of few labels is a few updates, and twenty of them learn little (README.md). */
static void set_length(loop *t)
{
    enum { EPOCHS = 20, UPDATES = 300, VALIDATIONS = 40 };
    double n = t->j->o->epochs, least = ceil(UPDATES / (double)t->per_epoch);
    if (n == 0) n = least > EPOCHS ? least : EPOCHS;
    t->steps = (uint64_t)llround(n * (double)t->per_epoch);
    if (t->steps < 1) t->steps = 1;
    t->apart = t->per_epoch * (n > VALIDATIONS ? (uint64_t)ceil(n / VALIDATIONS) : 1);
}

static err_code init(loop *t, err *e)
{
    finetune_job *j = t->j;
    const finetune_options *o = j->o;
    TRY(labelled_batch_init(&t->source, j, e));
    t->batch = t->source.batch;
    t->outputs = t->source.outputs;
    t->per_epoch = (t->source.draw.cases + t->batch - 1) / t->batch;
    set_length(t);
    t->evaluated = UINT64_MAX;
    TRY(alloc_host(t, e));
    TRY(alloc_device(t, e));
    TRY(alloc_drop(t, e));
    return optim_init(&t->optim, j->d, &j->params, o->clip, e);
}

err_code finetune_train(finetune_job *j, err *e)
{
    progress p;
    loop *t = calloc(1, sizeof *t);
    if (!t) FAIL(e, NOMEM, "finetune: no memory");
    t->j = j;
    err_code rc = init(t, e);
    if (!rc && finetune_train_started(j)) {
        rc = resume(t, e);
        if (!rc) rc = resume_log(t, e);
    }
    if (!rc) {
        if (!t->validation.n)
            log_event(LOG_WARN, "finetune.no_validation", "meaning",
                      LOG_STR("no case to choose by: the last step is taken"), NULL);
        progress_start(&p, "finetune", "steps", t->steps);
        progress_skip(&p, t->step);
        rc = run(t, &p, e);
        progress_end(&p);
        if (rc == ERR_INTERRUPTED) {
            err second = {0};
            if (read_losses(t, 0, &second) || save(t, &second))
                log_event(LOG_WARN, "finetune.not_saved", "reason", LOG_STR(second.msg), NULL);
        }
    }
    if (!rc) {
        copy_masters(t, false);
        rc = device_sync(j->d, e);
    }
    j->best_step = t->best_step;
    j->out->steps = t->step;
    j->out->seconds = t->seconds;
    j->out->images_per_s = t->train_seconds > 0 ? (double)(t->step * t->batch) / t->train_seconds : 0;
    fini(t);
    free(t);
    return rc;
}

err_code finetune_train_measure(finetune_job *j, finetune_measured *out, err *e)
{
    size_t looked = 0;
    loop *t = calloc(1, sizeof *t);
    if (!t) FAIL(e, NOMEM, "finetune: no memory");
    t->j = j;
    t->batch = t->source.batch = (size_t)j->o->batch;
    t->outputs = t->source.outputs = (size_t)j->outputs;
    t->source.image_floats = 3 * (size_t)j->o->view.size * (size_t)j->o->view.size;
    t->source.j = j;
    labelled_batch_place(&t->source);
    t->source.jobs = malloc(t->batch * sizeof *t->source.jobs);
    const crop_load *load = &t->source.load;
    float *nothing = load->crops ? crop_load_full(load) : NULL;
    err_code rc = ERR_OK;
    if ((load->crops && !nothing) || !t->source.jobs)
        rc = err_set(e, ERR_NOMEM, __FILE__, __LINE__, "finetune: no memory for a batch");
    if (!rc) rc = alloc_host(t, e);
    if (!rc) rc = alloc_device(t, e);
    if (!rc) rc = optim_init(&t->optim, j->d, &j->params, j->o->clip, e);
    if (!rc) {
        for (size_t i = 0; i < j->params.n; i++) out->best += t->extra[i].count * sizeof(float);
        const labelled_batch_parts v = {.pixels = nothing};
        out->batch = labelled_batch_bytes(&t->source);
        labelled_batch_images(&t->source, &v);
        j->d->op->send(j->d, 0, t->loss, 2 * sizeof(float));
        labelled_batch_images(&t->source, &v); /* while the step before goes on: what is pinned */
        gradients(t, 1);
        double *forward = &j->d->flop[FLOP_FORWARD], counted = *forward, kept[FLOP_KINDS];
        memcpy(kept, j->d->flop, sizeof kept);
        vit_bwd(j->m, &t->pass, t->source.pixels, NULL);
        out->again = *forward - counted;
        memcpy(j->d->flop, kept, sizeof kept);
        out->packed = j->d->bytes_packed;
        out->held = j->d->bytes;
        out->host = 2 * labelled_batch_floats(&t->source) * sizeof(float);
        rc = features_measure(j->m, FEATURES_BATCH, &j->o->view, &looked, e); /* validation, while training waits */
        out->host += looked;
    }
    free(nothing);
    fini(t);
    free(t);
    return rc;
}
