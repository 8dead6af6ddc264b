/* cmd_adapt.c: `radapt adapt`: the backbone adapted to the unlabelled frames. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "adapt/plan.h"
#include "cli/binding.h"
#include "cli/cmd.h"
#include "cli/method.h"
#include "cli/recompute.h"
#include "cli/stage.h"

#define AT(field) offsetof(ssl_options, field)
static const binding fields[] = {
    {"adapt.rows", BINDING_INT, AT(peft.rows), 1},
    {"adapt.epochs", BINDING_DOUBLE, AT(epochs), 1},
    {"adapt.warmup-epochs", BINDING_DOUBLE, AT(warmup_epochs), 1},
    {"adapt.head-warmup-epochs", BINDING_DOUBLE, AT(head_warmup_epochs), 1},
    {"adapt.batch", BINDING_INT, AT(batch), 1},
    {"adapt.accumulate", BINDING_INT, AT(accumulate), 1},
    {"adapt.lr", BINDING_FLOAT, AT(lr), 1},
    {"adapt.head-lr", BINDING_FLOAT, AT(head_lr), 1},
    {"adapt.lr-last", BINDING_FLOAT, AT(lr_last), 1},
    {"adapt.layer-decay", BINDING_FLOAT, AT(layer_decay), 1},
    {"adapt.patch-lr-factor", BINDING_FLOAT, AT(patch_lr), 1},
    {"adapt.drop-path", BINDING_FLOAT, AT(drop_path), 1},
    {"adapt.weight-decay", BINDING_FLOAT, AT(weight_decay), 1},
    {"adapt.weight-decay-last", BINDING_FLOAT, AT(weight_decay_last), 1},
    {"adapt.clip", BINDING_FLOAT, AT(clip), 1},
    {"adapt.momentum", BINDING_FLOAT, AT(momentum), 1},
    {"adapt.momentum-last", BINDING_FLOAT, AT(momentum_last), 1},
    {"adapt.evaluate-epochs", BINDING_DOUBLE, AT(evaluate_epochs), 1},
    {"adapt.knn", BINDING_INT, AT(knn), 1},
    {"adapt.knn-temp", BINDING_FLOAT, AT(knn_temp), 1},
    {"adapt.knn-share", BINDING_FLOAT, AT(knn_share), 1},
    {"adapt.checkpoint-minutes", BINDING_DOUBLE, AT(checkpoint_minutes), 1},
    {"adapt.collapse-rank", BINDING_DOUBLE, AT(collapse_rank), 1},
    {"adapt.hidden", BINDING_INT, AT(hidden), 1},
    {"adapt.bottleneck", BINDING_INT, AT(bottleneck), 1},
    {"adapt.prototypes", BINDING_INT, AT(prototypes), 1},
    {"adapt.separate-heads", BINDING_FLAG, AT(separate_heads), 1},
    {"adapt.data-init", BINDING_FLAG, AT(data_init), 1},
    {"adapt.freeze-prototypes-epochs", BINDING_DOUBLE, AT(freeze_prototypes_epochs), 1},
    {"adapt.dino", BINDING_FLOAT, AT(dino), 1},
    {"adapt.ibot", BINDING_FLOAT, AT(ibot), 1},
    {"adapt.koleo", BINDING_FLOAT, AT(koleo), 1},
    {"adapt.teacher-temp", BINDING_FLOAT, AT(teacher_temp), 1},
    {"adapt.teacher-temp-last", BINDING_FLOAT, AT(teacher_temp_last), 1},
    {"adapt.teacher-temp-epochs", BINDING_FLOAT, AT(teacher_temp_epochs), 1},
    {"adapt.student-temp", BINDING_FLOAT, AT(student_temp), 1},
    {"adapt.center-momentum", BINDING_FLOAT, AT(center_momentum), 1},
    {"adapt.mask-probability", BINDING_FLOAT, AT(mask_probability), 1},
    {"adapt.mask-ratio", BINDING_FLOATS, AT(mask_ratio), 2},
    {"adapt.global-size", BINDING_INT, AT(global_size), 1},
    {"adapt.local-size", BINDING_INT, AT(local_size), 1},
    {"adapt.locals", BINDING_INT, AT(locals), 1},
    {"adapt.crop-from", BINDING_INT, AT(crop_from), 1},
    {"adapt.global-scale", BINDING_FLOATS, AT(augment.global_scale), 2},
    {"adapt.local-scale", BINDING_FLOATS, AT(augment.local_scale), 2},
    {"adapt.ratio", BINDING_FLOATS, AT(augment.ratio), 2},
    {"adapt.flip", BINDING_FLOAT, AT(augment.flip), 1},
    {"adapt.jitter", BINDING_FLOAT, AT(augment.jitter), 1},
    {"adapt.brightness", BINDING_FLOAT, AT(augment.brightness), 1},
    {"adapt.contrast", BINDING_FLOAT, AT(augment.contrast), 1},
    {"adapt.saturation", BINDING_FLOAT, AT(augment.saturation), 1},
    {"adapt.hue", BINDING_FLOAT, AT(augment.hue), 1},
    {"adapt.gray", BINDING_FLOAT, AT(augment.gray), 1},
    {"adapt.blur", BINDING_FLOATS, AT(augment.blur), 3},
    {"adapt.blur-sigma", BINDING_FLOATS, AT(augment.blur_sigma), 2},
    {"adapt.solarize", BINDING_FLOAT, AT(augment.solarize), 1},
    {"adapt.window-jitter", BINDING_FLOAT, AT(augment.window), 1},
};
#undef AT
enum { FIELDS = sizeof fields / sizeof *fields };

static err_code recipe(const options *o, ssl_options *out, err *e)
{
    peft_method method = METHOD_APLA;
    peft_find(options_text(o, "adapt.method"), &method);
    return ssl_recipe(options_text(o, "adapt.recipe"), method, out, e);
}

err_code cmd_adapt_defaults(options *o, err *e)
{
    ssl_options so;
    TRY(recipe(o, &so, e));
    if (!strcmp(options_text(o, "adapt.recipe"), "essa")) TRY(options_fallback(o, "normalisation", "dataset", e));
    return binding_show(o, fields, FIELDS, &so, e);
}

static size_t count_training(const cohort *c)
{
    size_t n = 0;
    for (size_t i = 0; i < c->n_frames; i++) n += c->part[i] == SPLIT_TRAIN || c->part[i] == SPLIT_NONE;
    return n;
}

typedef struct {
    const stage *s;
    ssl_options *so;
    size_t frames;
} memory_check;

static err_code fits(void *ctx, size_t blocks, err *e)
{
    const memory_check *k = ctx;
    device d;
    vit *shape;
    plan p;
    k->so->recompute = blocks;
    TRY(plan_shape(&shape, &d, k->s->vit, e));
    err_code rc = plan_adapt(&p, shape, k->so, k->frames, e);
    vit_close(shape);
    device_close(&d);
    if (!rc) rc = plan_fits(&p, &k->s->device, "adapt", e);
    if (!rc) k->so->frame_room = plan_left(&p, &k->s->device);
    return rc;
}

err_code cmd_adapt_stage(stage *s, adapt_outcome *out, err *e)
{
    const options *o = s->o;
    ssl_options so;
    char folder[FILE_PATH_MAX], note[512], normalisation[VIT_NORMALISATION_TEXT];
    bool automatic;
    *out = (adapt_outcome){.frames = 0};
    TRY(stage_cohort(s, true, e));
    TRY(stage_backbone(s, e));
    TRY(recipe(o, &so, e));
    binding_take(o, fields, FIELDS, &so);
    TRY(method_spec(o, "adapt", &so.peft, e));
    so.seed = so.peft.seed;
    so.sinkhorn = !strcmp(options_text(o, "adapt.centering"), "sinkhorn");
    TRY(recompute_read(o, &so.recompute, &automatic, e));
    TRY(stage_view(s, &so.view, e));
    out->frames = count_training(&s->cohort);
    const char *backbone = vit_hash(s->vit), *data = s->cohort.data_hash, *split = s->cohort.split_hash;
    stage_normalisation_id(s, normalisation);
    TRY(stage_run_id(s, out->id, e, "adapt", IN_ADAPT, backbone, data, split, normalisation, NULL));
    TRY(stage_run_path(s, folder, out->id, "", e));
    bool done;
    TRY(stage_run_done(s, out->id, "adapter.safetensors", &done, e));
    if (options_flag(o, "dry-run")) {
        out->ssl.already_done = done;
        return ERR_OK;
    }
    if (!done) {
        memory_check k = {s, &so, out->frames};
        TRY(recompute_settle(automatic, vit_get_config(s->vit)->depth, fits, &k, &so.recompute, e));
        TRY(stage_normalise(s, &so.view, e));
        TRY(stage_check(s, e));
    }
    snprintf(note, sizeof note, "# backbone %s\n# frames and labels %s\n# split %s\n", backbone, data, split);
    TRY(stage_run_begin(s, out->id, IN_ADAPT, note, e));
    return ssl_adapt(s->vit, &s->cohort, &so, folder, &out->ssl, e);
}

static void tell(const ssl_result *t, size_t frames)
{
    if (t->already_done) printf("nothing to do: this adaptation is there already\n");
    printf("adapted on %zu frames: %llu steps, loss %.3f to %.3f; kept: the teacher after step %llu\n", frames,
           (unsigned long long)t->steps, t->loss_first, t->loss_last, (unsigned long long)t->best_step);
    if (t->rolled_back) printf("It was rolled back on the way: see the log, and try a lower --lr.\n");
    if (isfinite(t->knn_start))
        printf("ROC-AUC of validation frames: kNN %.3f to %.3f, linear classifier %.3f to %.3f\n", t->knn_start,
               t->knn_best, t->linear_start, t->linear_best);
    printf("Effective rank of their features: %.1f to %.1f\n", t->rank_start, t->rank_best);
}

err_code cmd_adapt(const options *o, int *status, err *e)
{
    stage s;
    adapt_outcome r = {.frames = 0};
    TRY(stage_open(&s, o, STAGE_NEEDS_CATALOGUE, e));
    err_code rc = cmd_adapt_stage(&s, &r, e);
    const ssl_result *t = &r.ssl;
    bool dry = options_flag(o, "dry-run");
    if (!rc && options_flag(o, "json"))
        stage_json(json_pack("{s:s,s:b,s:b,s:I,s:I,s:I,s:I,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "run", r.id,
                             "already_done", t->already_done, "rolled_back", t->rolled_back, "training_frames",
                             (json_int_t)r.frames, "steps", (json_int_t)t->steps, "best_step", (json_int_t)t->best_step,
                             "trainable", (json_int_t)t->trainable, "seconds", stage_real(t->seconds), "images_per_s",
                             stage_real(t->images_per_s), "waited_seconds", stage_real(t->waited_seconds), "loss_first",
                             stage_real(t->loss_first), "loss_last", stage_real(t->loss_last), "knn_start",
                             stage_real(t->knn_start), "knn_best", stage_real(t->knn_best), "linear_start",
                             stage_real(t->linear_start), "linear_best", stage_real(t->linear_best), "rank_start",
                             stage_real(t->rank_start), "rank_best", stage_real(t->rank_best)));
    else if (!rc && dry)
        printf("would adapt on %zu frames in %s/runs/%s%s\n", r.frames, s.work, r.id,
               t->already_done ? ": that is done already" : "");
    else if (!rc) {
        tell(t, r.frames);
        printf("Adapter: %s/runs/%s/adapter.safetensors\n", s.work, r.id);
    }
    *status = STATUS_DONE;
    stage_close(&s);
    return rc;
}
