/* ssl_state.c: the whole state of an adaptation on disk: checkpoint.safetensors, best-<step>.safetensors beside it
 * while it runs, adapter.safetensors in the end. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapt/adapter.h"
#include "adapt/ssl_run.h"
#include "base/log.h"

void ssl_state_hash(ssl_run *r)
{
    hash *h = hash_new();
    ssl_options o = *r->o;
    const vit_config *k = vit_get_config(r->m);
    hash_str(h, "radapt-ssl/7");
    hash_add(h, k->mean, sizeof k->mean);
    hash_add(h, k->std, sizeof k->std);
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
                        o.drop_path,
                        o.crop_from,
                        o.separate_heads,
                        o.sinkhorn,
                        o.knn,
                        o.knn_temp,
                        o.knn_share,
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
static void centers(const ssl_run *r, checkpoint_extra out[CENTERS])
{
    static const char *const names[CENTERS] = {"center.class", "center.patch"};
    for (int i = 0; i < CENTERS; i++)
        out[i] = (checkpoint_extra){names[i], r->step.group[i].center, r->step.config.head.prototypes};
}

/* The whole state: weights, teacher, Adam's moments, centres, and the loop's numbers in one text, exact in both
 * directions. */
static err_code save_state(ssl_run *r, const char *path, err *e)
{
    char state[640];
    const ssl_result *t = r->out;
    long metrics_bytes = ftell(r->metrics);
    snprintf(state, sizeof state,
             "%" PRId64 " %" PRId64 " %" PRId64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %a %" PRIu64 " %" PRIu64
             " %d %a %a %a %a %a %a %a %a %a %ld %a",
             r->adam_t[ADAM_BACKBONE], r->adam_t[ADAM_HEAD], r->adam_t[ADAM_PROTOTYPES], r->at, r->evaluated,
             r->best_step, r->lr_factor, r->roll_backs, r->bad_steps, t->rolled_back, t->seconds, t->loss_first,
             t->loss_last, t->knn_start, t->knn_best, t->linear_start, t->linear_best, t->rank_start, t->rank_best,
             metrics_bytes, t->waited_seconds);
    const checkpoint_meta meta[] = {{"format", "radapt-checkpoint/2"}, {"config", r->hash}, {"state", state}};
    checkpoint_extra extra[CENTERS];
    centers(r, extra);
    if (metrics_bytes < 0 || fflush(r->metrics) || fdatasync(fileno(r->metrics)))
        FAIL_ERRNO(e, "adapt: metrics.jsonl cannot be written");
    return checkpoint_write(path, r->step.d, &r->ps, true, false, extra, CENTERS, meta, sizeof meta / sizeof *meta, e);
}

static err_code best_path(const ssl_run *r, uint64_t step, char out[FILE_PATH_MAX], err *e)
{
    return file_path(out, e, "%s/best-%" PRIu64 ".safetensors", r->dir, step);
}

err_code ssl_state_save(ssl_run *r, err *e)
{
    char path[FILE_PATH_MAX];
    TRY(ssl_run_path(r, "checkpoint.safetensors", path, e));
    return save_state(r, path, e);
}

err_code ssl_state_keep_best(ssl_run *r, err *e)
{
    char path[FILE_PATH_MAX], old[FILE_PATH_MAX];
    uint64_t before = r->best_step;
    r->best_step = r->at;
    TRY(best_path(r, r->at, path, e));
    TRY(save_state(r, path, e));
    TRY(ssl_state_save(r, e));
    if (before == SSL_RUN_NEVER || before == r->at) return ERR_OK;
    TRY(best_path(r, before, old, e));
    unlink(old);
    return ERR_OK;
}

static const char damaged[] = "adapt: the checkpoint is damaged; remove the run's folder";

/* What training changes, and how many updates the moments have had. */
static err_code load_trained(ssl_run *r, const safetensors *s, err *e)
{
    checkpoint_extra extra[CENTERS];
    const char *state = safetensors_meta(s, "state");
    int64_t *t = r->adam_t;
    if (!state || sscanf(state, "%" SCNd64 " %" SCNd64 " %" SCNd64, t, t + 1, t + 2) != ADAM_GROUPS)
        FAIL(e, FORMAT, "%s", damaged);
    centers(r, extra);
    TRY(checkpoint_load(s, r->step.d, &r->ps, true, extra, CENTERS, e));
    ssl_step_refresh(&r->step);
    return ERR_OK;
}

err_code ssl_state_load(ssl_run *r, err *e)
{
    char path[FILE_PATH_MAX];
    safetensors s;
    ssl_result *t = r->out;
    long metrics_bytes;
    int rolled_back;
    err_code rc = ERR_OK;
    TRY(ssl_run_path(r, "checkpoint.safetensors", path, e));
    if (!file_exists(path)) return ERR_OK;
    TRY(safetensors_open(&s, path, e));
    const char *config = safetensors_meta(&s, "config"), *state = safetensors_meta(&s, "state");
    if (!config || !state || strcmp(config, r->hash) != 0)
        FAIL_DONE(rc, e, CONFLICT, "adapt: the checkpoint in this run's folder is of another configuration");
    if (sscanf(state,
               "%*d %*d %*d %" SCNu64 " %" SCNu64 " %" SCNu64 " %la %" SCNu64 " %" SCNu64
               " %d %la %la %la %la %la %la %la %la %la %ld %la",
               &r->at, &r->evaluated, &r->best_step, &r->lr_factor, &r->roll_backs, &r->bad_steps, &rolled_back,
               &t->seconds, &t->loss_first, &t->loss_last, &t->knn_start, &t->knn_best, &t->linear_start,
               &t->linear_best, &t->rank_start, &t->rank_best, &metrics_bytes, &t->waited_seconds) != 18)
        FAIL_DONE(rc, e, FORMAT, "%s", damaged);
    TRY_DONE(rc, load_trained(r, &s, e));
    t->rolled_back = rolled_back;
    t->resumed = true;
    if (ftruncate(fileno(r->metrics), metrics_bytes) || fseek(r->metrics, metrics_bytes, SEEK_SET))
        FAIL_DONE(rc, e, IO, "adapt: metrics.jsonl cannot be cut back to the checkpoint");
    log_event(LOG_INFO, "adapt.resumed", "step", LOG_INT(r->at), NULL);
done:
    safetensors_close(&s);
    return rc;
}

err_code ssl_state_restore_best(ssl_run *r, err *e)
{
    char path[FILE_PATH_MAX];
    safetensors s;
    TRY(best_path(r, r->best_step, path, e));
    TRY(safetensors_open(&s, path, e));
    err_code rc = load_trained(r, &s, e);
    safetensors_close(&s);
    return rc;
}

/* The stage's product: the teacher's trainable backbone weights. */
static err_code save_adapter(ssl_run *r, err *e)
{
    char path[FILE_PATH_MAX];
    TRY(ssl_run_path(r, "adapter.safetensors", path, e));
    param_set backbone = {.p = r->ps.p, .n = r->n_backbone};
    return adapter_write(path, r->m, &backbone, &r->o->peft, r->data.global_size, r->c->split_hash, e);
}

err_code ssl_state_finish(ssl_run *r, err *e)
{
    char path[FILE_PATH_MAX];
    TRY(ssl_state_restore_best(r, e));
    TRY(save_adapter(r, e));
    TRY(ssl_record_write(r, e));
    TRY(ssl_run_path(r, "checkpoint.safetensors", path, e));
    unlink(path);
    TRY(best_path(r, r->best_step, path, e));
    unlink(path);
    return ERR_OK;
}
