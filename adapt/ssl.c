/* ssl.c: the loop of self-supervised adaptation: schedules, evaluation, guards. A step is ssl_step.c's, its crops are
 * ssl_data.c's, what is kept on disk is ssl_state.c's. Everything that decides is a function of the step and of what
 * the checkpoint holds, so that a resumed run equals an uninterrupted one. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapt/ssl_run.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/stop.h"
#include "model/device_cuda.h"
#include "preprocess/loader.h"

enum { LOG_STEPS = 10, ROLL_BACKS = 2, NAN_ROW = 3, EVALUATIONS = 40 };

static bool is_better(const ssl_run *r, const ssl_score *s)
{
    if (r->best_step == SSL_RUN_NEVER || !isfinite(s->knn_auc)) return true;
    const ssl_score best = {.knn_auc = r->out->knn_best, .linear_auc = r->out->linear_best};
    return ssl_score_choice(s, r->o->knn_share) >= ssl_score_choice(&best, r->o->knn_share);
}

/* The teacher's rank fell below the limit: back to the best with half the rate, and after too many times no further. */
static err_code collapsed(ssl_run *r, bool *over, err *e)
{
    log_event(LOG_WARN, "adapt.collapse", "step", LOG_INT(r->at), "roll_backs", LOG_INT(r->roll_backs), NULL);
    r->out->rolled_back = true;
    *over = r->best_step == SSL_RUN_NEVER || r->roll_backs++ >= ROLL_BACKS;
    if (*over) return ERR_OK; /* what is best stays */
    r->lr_factor *= 0.5;
    TRY(ssl_state_restore_best(r, e));
    return ssl_state_save(r, e);
}

/* Evaluates the teacher and keeps it if it is the best so far: with labels the best by kNN and linear classifier
 * (knn_share) wins, ties go to the later; without, the latest that has not collapsed. */
static err_code evaluate(ssl_run *r, bool *over, err *e)
{
    ssl_score s;
    TRY(ssl_eval_run(&r->eval, r->m, VIT_TEACHER, r->c, r->o, &s, e));
    if (r->at == 0) {
        if (!(s.rank > 0)) FAIL(e, NUMERIC, "adapt: the backbone's features are not finite");
        r->out->rank_start = s.rank;
        r->out->knn_start = s.knn_auc;
        r->out->linear_start = s.linear_auc;
    }
    TRY(ssl_record_line(r,
                        json_pack("{s:I,s:f,s:o,s:o,s:o,s:o,s:o}", "step", (json_int_t)r->at, "epoch",
                                  (double)r->at / (double)r->data.steps_per_epoch, "knn_auc",
                                  ssl_record_real(s.knn_auc), "knn_accuracy", ssl_record_real(s.knn_accuracy),
                                  "linear_auc", ssl_record_real(s.linear_auc), "linear_accuracy",
                                  ssl_record_real(s.linear_accuracy), "rank", ssl_record_real(s.rank)),
                        e));
    log_event(LOG_INFO, "adapt.evaluate", "step", LOG_INT(r->at), "knn_auc", LOG_REAL(s.knn_auc), "linear_auc",
              LOG_REAL(s.linear_auc), "rank", LOG_REAL(s.rank), NULL);
    r->evaluated = r->at;
    if (!(s.rank > 0) || s.rank < r->o->collapse_rank * r->out->rank_start) return collapsed(r, over, e);
    if (!is_better(r, &s)) return ERR_OK;
    r->out->knn_best = s.knn_auc;
    r->out->linear_best = s.linear_auc;
    r->out->rank_best = s.rank;
    return ssl_state_keep_best(r, e);
}

/* Frames that n updates take. */
static uint64_t images_of(const ssl_run *r, uint64_t n)
{
    return n * r->data.accumulate * r->data.batch;
}

static uint64_t steps_of(const ssl_run *r, double epochs)
{
    return (uint64_t)llround(epochs * (double)r->data.steps_per_epoch);
}

/* Of the teacher's moving average at one step. Where nobody says, what it remembers is a share of the run: it begins
 * with a tenth of all updates and ends with six times that. */
static float momentum_at(const ssl_run *r, uint64_t t, uint64_t total)
{
    const ssl_options *o = r->o;
    float start = o->momentum, last = o->momentum_last;
    if (start < 0) start = fminf(fmaxf(1 - 10.f / (float)total, 0.9f), 0.996f);
    if (last < 0) last = 1 - (1 - start) / 6;
    return schedule_cosine(start, last, t, total);
}

/* The schedules at one step. The head warms up first, with the backbone frozen; the backbone's own schedule begins
 * behind that. */
static void schedule(const ssl_run *r, uint64_t total, ssl_step_update_in *u, ssl_step_in *in)
{
    const ssl_options *o = r->o;
    uint64_t head_only = steps_of(r, o->head_warmup_epochs), warm = steps_of(r, o->warmup_epochs), t = r->at;
    bool frozen = t < head_only || o->peft.method == METHOD_LINEAR;
    uint64_t back = t < head_only ? 0 : t - head_only, length = total - head_only;
    if (warm > length / 4) warm = length / 4;
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
                           .skip_prototypes = t < steps_of(r, o->freeze_prototypes_epochs),
                           .skip_backbone = frozen};
    for (int g = 0; g < ADAM_GROUPS; g++) u->adam.t[g] = r->adam_t[g] + 1;
    u->momentum = momentum_at(r, t, total);
    in->teacher_temp = schedule_linear(o->teacher_temp, o->teacher_temp_last, t, steps_of(r, o->teacher_temp_epochs));
    in->head_only = frozen;
}

/* Counts the seconds since it was asked last; returns the time. */
static double count_seconds(ssl_run *r)
{
    double now = progress_clock();
    r->out->seconds += now - r->clock;
    return r->clock = now;
}

/* done: steps taken with this one. What the clock says comes last. */
static err_code log_step(ssl_run *r, uint64_t done, const ssl_step_out *s, const ssl_step_update_in *u, err *e)
{
    count_seconds(r);
    const ssl_result *t = r->out;
    double images_per_s = t->seconds > 0 ? (double)images_of(r, done) / t->seconds : NAN;
    return ssl_record_line(
        r,
        json_pack("{s:I,s:f,s:o,s:o,s:o,s:o,s:[o,o],s:[o,o],s:o,s:f,s:o,s:f,s:o}", "step", (json_int_t)done, "epoch",
                  (double)done / (double)r->data.steps_per_epoch, "loss", ssl_record_real(s->loss), "dino",
                  ssl_record_real(s->dino), "ibot", ssl_record_real(s->ibot), "koleo", ssl_record_real(s->koleo),
                  "target_entropy", ssl_record_real(s->target_entropy[0]), ssl_record_real(s->target_entropy[1]),
                  "marginal_entropy", ssl_record_real(s->marginal_entropy[0]), ssl_record_real(s->marginal_entropy[1]),
                  "grad_norm", ssl_record_real(s->grad_norm), "lr", (double)(u->adam.skip_backbone ? 0 : u->adam.lr),
                  "images_per_s", ssl_record_real(images_per_s), "waited_seconds", t->waited_seconds, "waited_share",
                  ssl_record_real(ssl_record_waited(t))),
        e);
}

/* A gradient that is not finite: the step is left out; three in a row, and the last good state comes back with half the
 * rate. */
static err_code bad_step(ssl_run *r, uint64_t at, err *why, err *e)
{
    ssl_step_out of_what_is_lost;
    log_event(LOG_WARN, "adapt.not_finite", "step", LOG_INT(at), NULL);
    if (++r->bad_steps < NAN_ROW) return ERR_OK;
    if (r->roll_backs >= ROLL_BACKS || r->best_step == SSL_RUN_NEVER) {
        *e = *why;
        return why->code;
    }
    r->roll_backs++;
    r->lr_factor *= 0.5;
    r->bad_steps = 0;
    r->out->rolled_back = true;
    while (ssl_step_unread(&r->step)) ssl_step_read(&r->step, &of_what_is_lost, &(err){0});
    return ssl_state_restore_best(r, e);
}

/* One micro-batch: its crops and masks are a function of its number, its gradients add to the update's. */
static err_code micro_step(ssl_run *r, loader *l, uint64_t micro, ssl_step_in *in, err *e)
{
    const float *batch;
    ssl_step_crops crops;
    rng g = rng_at(r->o->seed, RNG_MASK, micro, 0);
    double asked = progress_clock();
    TRY(loader_take(l, micro, &batch, e));
    r->out->waited_seconds += progress_clock() - asked;
    size_t masked = r->o->ibot > 0 ? ssl_mask_draw(&r->mask, &g, r->mask_bits) : 0;
    in->number = micro;
    ssl_data_view(&r->data, batch, in, &crops);
    in->mask = masked ? r->mask_bits : NULL;
    err_code rc = ssl_step_gradients(&r->step, in, NULL, e);
    in->crops = NULL;
    return rc;
}

/* An update more, or one less, of the groups that train in it. */
static void count_update(ssl_run *r, const adamw_step *s, int by)
{
    r->adam_t[ADAM_BACKBONE] += s->skip_backbone ? 0 : by;
    r->adam_t[ADAM_HEAD] += by;
    r->adam_t[ADAM_PROTOTYPES] += s->skip_prototypes ? 0 : by;
}

/* Reads the oldest update that is not read: its line in metrics.jsonl, and what is to be done where it was no number.
 */
static err_code read_step(ssl_run *r, uint64_t total, progress *bar, err *e)
{
    ssl_late of = r->late[0];
    ssl_step_out s = {0};
    err why = {0};
    memmove(r->late, r->late + 1, sizeof r->late - sizeof *r->late);
    err_code rc = ssl_step_read(&r->step, &s, &why);
    if (rc && rc != ERR_NUMERIC) {
        *e = why;
        return rc;
    }
    if (rc) { /* its moments were left as they were */
        count_update(r, &of.u.adam, -1);
        TRY(bad_step(r, of.at, &why, e));
    } else
        r->bad_steps = 0;
    uint64_t done = of.at + 1;
    if (of.at == 0) r->out->loss_first = s.loss;
    r->out->loss_last = s.loss;
    progress_note(bar, "loss %.3f", (double)s.loss);
    if (done % LOG_STEPS && done != total) return ERR_OK;
    return log_step(r, done, &s, &of.u, e);
}

/* No more than `left` updates are unread; 0: the state is whole. */
static err_code read_steps(ssl_run *r, size_t left, uint64_t total, progress *bar, err *e)
{
    while (ssl_step_unread(&r->step) > left) TRY(read_step(r, total, bar, e));
    return ERR_OK;
}

static err_code ask_step(ssl_run *r, loader *l, uint64_t total, err *e)
{
    ssl_step_in in = {0};
    ssl_late *late = &r->late[ssl_step_unread(&r->step)];
    late->at = r->at;
    schedule(r, total, &late->u, &in);
    for (uint64_t i = 0; i < r->data.accumulate; i++) {
        TRY(stop_check(e)); /* an update that was begun is drawn again */
        TRY(micro_step(r, l, r->at * r->data.accumulate + i, &in, e));
    }
    TRY(ssl_step_ask(&r->step, &late->u, e));
    count_update(r, &late->u.adam, 1);
    r->at++;
    return ERR_OK;
}

/* One step, and a checkpoint when it is time. A GPU has the next step before it is asked what came of this one: it
 * never waits for the host. */
static err_code advance(ssl_run *r, loader *l, uint64_t total, progress *bar, double *saved, err *e)
{
    TRY(ask_step(r, l, total, e));
    TRY(read_steps(r, device_is_cuda(vit_device(r->m)) ? SSL_STEP_LATE : 0, total, bar, e));
    progress_add(bar, images_of(r, 1));
    double now = count_seconds(r);
    if ((now - *saved) / 60 < r->o->checkpoint_minutes) return ERR_OK;
    *saved = now;
    TRY(read_steps(r, 0, total, bar, e));
    return ssl_state_save(r, e);
}

/* From one evaluation to the next. */
static uint64_t evaluation_steps(const ssl_run *r, uint64_t total)
{
    double epochs = r->o->evaluate_epochs;
    uint64_t steps = steps_of(r, epochs > 0 ? epochs : 0.5),
             least = epochs > 0 ? 1 : (total + EVALUATIONS - 1) / EVALUATIONS;
    return steps > least ? steps : least ? least : 1;
}

/* seconds: of steps and evaluations, over all sittings. Between the lines of this loop the state is whole: whoever asks
 * it to stop, in a step or in an evaluation, finds a checkpoint of just that. */
static err_code loop(ssl_run *r, uint64_t total, err *e)
{
    loader *l = NULL;
    progress bar;
    bool over = false;
    uint64_t every = evaluation_steps(r, total);
    err_code rc = ERR_OK;
    double saved = r->clock = progress_clock();
    progress_start(&bar, "adapt", "images", images_of(r, total));
    progress_skip(&bar, images_of(r, r->at));
    while (!rc && !over) {
        bool due = r->at % every == 0 || r->at == total;
        if (due && ssl_step_unread(&r->step))
            rc = read_steps(r, 0, total, &bar, e);
        else if (due && r->evaluated != r->at)
            rc = evaluate(r, &over, e);
        else if (r->at == total)
            break;
        else if (!l && (rc = loader_open(&l, ssl_data_fill, &r->data, ssl_data_carried(&r->data),
                                         r->at * r->data.accumulate, total * r->data.accumulate - 1, e)))
            break;
        else
            rc = advance(r, l, total, &bar, &saved, e);
        count_seconds(r);
        if (!rc) rc = stop_check(e);
    }
    if (rc == ERR_INTERRUPTED) {
        err second = {0};
        if (read_steps(r, 0, total, &bar, &second) || ssl_state_save(r, &second))
            log_event(LOG_WARN, "adapt.not_saved", "reason", LOG_STR(second.msg), NULL);
    }
    r->out->images_per_s = r->out->seconds > 0 ? (double)images_of(r, r->at) / r->out->seconds : 0;
    progress_end(&bar);
    loader_close(l);
    return rc;
}

/* Of the backbone's params: the heads are not there yet. */
static void layer_rates(ssl_run *r)
{
    optim_layer_decay(&r->ps, vit_get_config(r->m)->depth, r->o->layer_decay);
    for (size_t i = 0; i < r->ps.n; i++)
        if (!strncmp(r->ps.p[i].name, "patch_embed.", 12)) r->ps.p[i].lr_scale *= r->o->patch_lr;
}

static err_code open_all(ssl_run *r, err *e)
{
    const ssl_options *o = r->o;
    char path[FILE_PATH_MAX];
    TRY(file_mkdirs(r->dir, e));
    TRY(ssl_run_path(r, "metrics.jsonl", path, e));
    r->metrics = fopen(path, file_exists(path) ? "r+" : "w+");
    if (!r->metrics) FAIL(e, IO, "adapt: metrics.jsonl cannot be opened");
    TRY(ssl_data_open(&r->data, r->m, r->c, o, e));
    TRY(ssl_eval_open(&r->eval, r->m, r->c, SSL_EVAL_FRAMES, e));
    ssl_step_config k = ssl_data_step_config(&r->data, r->m, o, &r->mask);
    r->mask_bits = calloc(r->mask.crops, r->mask.rows * r->mask.columns);
    if (!r->mask_bits) FAIL(e, NOMEM, "adapt: no memory for masks");
    peft_spec peft = o->peft;
    peft.teacher = true;
    TRY(vit_train(r->m, &peft, &r->ps, e));
    r->n_backbone = r->ps.n;
    layer_rates(r);
    for (size_t i = 0; i < r->n_backbone; i++) r->out->trainable += r->ps.p[i].rows * r->ps.p[i].cols;
    TRY(ssl_step_open(&r->step, r->m, &r->ps, &k, e));
    device *d = vit_device(r->m);
    TRY(ssl_data_keep(&r->data, d, r->eval.validation, r->eval.n_validation, o->frame_room, e));
    size_t taken = r->data.cache.taken, left = taken < o->frame_room ? o->frame_room - taken : 0;
    TRY(ssl_eval_keep(&r->eval, d, r->c, r->data.squares ? NULL : r->data.load.cache, left, e));
    log_event(LOG_INFO, "adapt.start", "frames", LOG_INT(r->data.n), "batch", LOG_INT(r->data.batch), "accumulate",
              LOG_INT(r->data.accumulate), "prototypes", LOG_INT(k.head.prototypes), "trainable",
              LOG_INT(r->out->trainable), "planned_mib", LOG_INT(r->step.bytes >> 20), "frames_kept",
              LOG_INT(r->data.cache.kept + r->eval.own.kept), NULL);
    return ERR_OK;
}

err_code ssl_adapt(vit *m, const cohort *c, const ssl_options *o, const char *run_dir, ssl_result *out, err *e)
{
    ssl_run r = {.m = m,
                 .c = c,
                 .o = o,
                 .dir = run_dir,
                 .out = out,
                 .lr_factor = 1,
                 .evaluated = SSL_RUN_NEVER,
                 .best_step = SSL_RUN_NEVER};
    char path[FILE_PATH_MAX];
    *out = (ssl_result){.knn_start = NAN,
                        .knn_best = NAN,
                        .linear_start = NAN,
                        .linear_best = NAN,
                        .rank_start = NAN,
                        .rank_best = NAN};
    TRY(ssl_run_path(&r, "result.json", path, e));
    if (file_exists(path)) return ssl_record_read(path, out, e);
    ssl_state_hash(&r);
    err_code rc;
    TRY_DONE(rc, open_all(&r, e));
    TRY_DONE(rc, ssl_state_load(&r, e));
    if (!out->resumed) {
        if (ftruncate(fileno(r.metrics), 0)) FAIL_DONE(rc, e, IO, "adapt: metrics.jsonl cannot be written");
        if (o->data_init) TRY_DONE(rc, ssl_init_head(&r, e));
    }
    double epochs = o->epochs > 0 ? o->epochs : ssl_data_epochs(&r.data);
    uint64_t total = steps_of(&r, epochs + o->head_warmup_epochs);
    TRY_DONE(rc, loop(&r, total ? total : 1, e));
    out->steps = r.at;
    out->images = images_of(&r, r.at);
    out->best_step = r.best_step;
    out->peak_bytes = (double)(vit_device(m)->bytes_most - r.data.cache.taken - r.eval.own.taken);
    rc = ssl_state_finish(&r, e);
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
