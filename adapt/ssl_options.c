/* ssl_options.c: recipes. "default" is for 200 to 5,000 images on one machine; "essa" is the reference recipe (facts of
 * the method papers). */
#include <string.h>

#include "adapt/ssl.h"

void ssl_defaults(ssl_options *o)
{
    *o = (ssl_options){
        .peft = {.method = METHOD_APLA},
        .warmup_epochs = 1,
        .head_warmup_epochs = 1,
        .batch = 16,
        .accumulate = 1,
        .layer_decay = 1,
        .patch_lr = 1,
        .locals = 4,
        .lr = 5e-4f,
        .head_lr = 1e-3f,
        .lr_last = 1e-6f,
        .weight_decay = 1e-5f,
        .weight_decay_last = 1e-4f,
        .clip = 1.0f,
        .momentum = -1,
        .momentum_last = -1,
        .teacher_temp = 0.04f,
        .teacher_temp_last = 0.04f,
        .teacher_temp_epochs = 4,
        .student_temp = 0.1f,
        .center_momentum = 0.9f,
        .dino = 1,
        .ibot = 1,
        .koleo = 0.1f,
        .mask_probability = 0.5f,
        .mask_ratio = {0.1f, 0.5f},
        .hidden = 512,
        .bottleneck = 128,
        .prototypes = 0,
        .data_init = true,
        .freeze_prototypes_epochs = 0,
        .view = {.size = 224, .share = 0.875f},
        .evaluate_epochs = 0,
        .knn = 20,
        .knn_temp = 0.07f,
        .knn_share = 0.5f,
        .checkpoint_minutes = 5,
        .collapse_rank = 0.25,
        .seed = 1,
    };
    augment_defaults(&o->augment);
}

static void essa(ssl_options *o)
{
    o->epochs = 300;
    o->warmup_epochs = 10;
    o->head_warmup_epochs = 0;
    o->batch = 64; /* KoLeo's neighbours are those of one of the reference's GPUs */
    o->accumulate = 4;
    o->global_size = 224;
    o->locals = 8;
    o->lr = o->head_lr = 1e-3f;
    o->momentum = 0.994f;
    o->momentum_last = 1;
    o->teacher_temp_last = 0.07f;
    o->teacher_temp_epochs = 30;
    o->hidden = 2048;
    o->bottleneck = 256;
    o->prototypes = 65536;
    o->data_init = false;
    o->freeze_prototypes_epochs = 1;
    o->evaluate_epochs = 0.5;
    o->knn = 200;
    o->knn_temp = 0.1f;
    o->knn_share = 1;
    o->collapse_rank = 0; /* no guard */
    o->crop_from = 256;
    augment_essa(&o->augment);
}

err_code ssl_recipe(const char *name, peft_method method, ssl_options *o, err *e)
{
    ssl_defaults(o);
    bool reference = !strcmp(name, "essa");
    if (reference)
        essa(o);
    else if (strcmp(name, "default") != 0)
        FAIL(e, USAGE, "no such recipe (there are: default, essa)");
    o->peft.method = method;
    /* Everything at the rate of a few projections destroys the features (facts: continued training). */
    if (method == METHOD_FULL) o->lr *= 0.1f;
    if (reference) o->head_lr = o->lr; /* it has one rate for all */
    return ERR_OK;
}
