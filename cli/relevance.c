/* relevance.c: see relevance.h. */
#include "cli/relevance.h"

#include <stdlib.h>
#include <string.h>

enum { NAME = 64 };
typedef enum {
    ONLY_WITH,   /* the option matters where `by` has one of `values` */
    NEVER_WITH,  /* ... where it has another than `values` */
    UNLESS_ZERO, /* ... where one of the numbers of `by` is not 0 */
    TYPED        /* ... where `by` is not empty; a file may hold it all the same */
} relevance_kind;

typedef struct {
    const char *section, *name;
    relevance_kind kind;
    const char *by, *values; /* by: of the same section, else of none */
} rule;

#define NUMBERS(section)                                                                                               \
    {section, "rows", ONLY_WITH, "method", "apla"}, {section, "lora-rank", ONLY_WITH, "method", "lora"},               \
        {section, "lora-alpha", ONLY_WITH, "method", "lora"}, {section, "lora-targets", ONLY_WITH, "method", "lora"},  \
        {section, "prompts", ONLY_WITH, "method", "vpt"},                                                              \
    {                                                                                                                  \
        section, "vpt", ONLY_WITH, "method", "vpt"                                                                     \
    }

static const rule rules[] = {
    NUMBERS("adapt"),
    NUMBERS("finetune"),
    NUMBERS("plan"),

    {"adapt", "lr", NEVER_WITH, "method", "linear"},
    {"adapt", "layer-decay", NEVER_WITH, "method", "linear"},
    {"adapt", "patch-lr-factor", ONLY_WITH, "method",
     "full|bitfit"}, /* the others leave the patch embedding as it is */
    {"adapt", "center-momentum", ONLY_WITH, "centering", "softmax"},
    {"adapt", "mask-probability", UNLESS_ZERO, "ibot", NULL},
    {"adapt", "mask-ratio", UNLESS_ZERO, "ibot", NULL},
    {"adapt", "separate-heads", UNLESS_ZERO, "ibot", NULL},
    {"adapt", "local-size", UNLESS_ZERO, "locals", NULL},
    {"adapt", "local-scale", UNLESS_ZERO, "locals", NULL},
    {"adapt", "brightness", UNLESS_ZERO, "jitter", NULL},
    {"adapt", "contrast", UNLESS_ZERO, "jitter", NULL},
    {"adapt", "saturation", UNLESS_ZERO, "jitter", NULL},
    {"adapt", "hue", UNLESS_ZERO, "jitter", NULL},
    {"adapt", "blur-sigma", UNLESS_ZERO, "blur", NULL},

    /* The classifier alone is fitted to its optimum (adapt/finetune.h): no steps, no augmentation. */
    {"finetune", "epochs", NEVER_WITH, "method", "linear"},
    {"finetune", "patience", NEVER_WITH, "method", "linear"},
    {"finetune", "batch", NEVER_WITH, "method", "linear"},
    {"finetune", "lr", NEVER_WITH, "method", "linear"},
    {"finetune", "head-lr", NEVER_WITH, "method", "linear"},
    {"finetune", "lr-last", NEVER_WITH, "method", "linear"},
    {"finetune", "warmup-steps", NEVER_WITH, "method", "linear"},
    {"finetune", "weight-decay", NEVER_WITH, "method", "linear"},
    {"finetune", "clip", NEVER_WITH, "method", "linear"},
    {"finetune", "label-smoothing", NEVER_WITH, "method", "linear"},
    {"finetune", "head-init", NEVER_WITH, "method", "linear"},
    {"finetune", "layer-decay", NEVER_WITH, "method", "linear"},
    {"finetune", "drop-path", NEVER_WITH, "method", "linear"},
    {"finetune", "mixup", NEVER_WITH, "method", "linear"},
    {"finetune", "crop-scale", NEVER_WITH, "method", "linear"},
    {"finetune", "flip", NEVER_WITH, "method", "linear"},
    {"finetune", "jitter", NEVER_WITH, "method", "linear"},

    {"plan", "recipe", ONLY_WITH, "stage", "adapt"},
    {"plan", "frames", ONLY_WITH, "stage", "adapt"},
    {"plan", "locals", ONLY_WITH, "stage", "adapt"},
    {"plan", "global-size", ONLY_WITH, "stage", "adapt"},
    {"plan", "local-size", ONLY_WITH, "stage", "adapt"},
    {"plan", "prototypes", ONLY_WITH, "stage", "adapt"},
    {"plan", "hidden", ONLY_WITH, "stage", "adapt"},
    {"plan", "bottleneck", ONLY_WITH, "stage", "adapt"},
    {"plan", "crop-from", ONLY_WITH, "stage", "adapt"},
    {"plan", "separate-heads", ONLY_WITH, "stage", "adapt"},
    {"plan", "data-init", ONLY_WITH, "stage", "adapt"},
    {"plan", "ibot", ONLY_WITH, "stage", "adapt"},
    {"plan", "mask-probability", ONLY_WITH, "stage", "adapt"},
    {"plan", "mask-ratio", ONLY_WITH, "stage", "adapt"},
    {"plan", "mask-probability", UNLESS_ZERO, "ibot", NULL},
    {"plan", "mask-ratio", UNLESS_ZERO, "ibot", NULL},
    {"plan", "separate-heads", UNLESS_ZERO, "ibot", NULL},
    {"plan", "local-size", UNLESS_ZERO, "locals", NULL},
    {"plan", "classes", ONLY_WITH, "stage", "finetune"},

    {"", "label-order", ONLY_WITH, "task", "ordinal"},
    {"", "label-columns", ONLY_WITH, "task", "multilabel"},
    {"", "task", TYPED, "labels", NULL},
    {"", "label-order", TYPED, "labels", NULL},
    {"", "label-columns", TYPED, "labels", NULL},
    {"", "split-test", TYPED, "labels", NULL},
    {"", "split-validation", TYPED, "labels", NULL},
};

static const char *full_name(char out[NAME], const char *section, const char *name)
{
    snprintf(out, NAME, "%s%s%s", section, *section ? "." : "", name);
    return out;
}

static bool has_option(const options *o, const char *section, const char *name)
{
    for (size_t i = 0; i < options_count; i++) {
        const option_def *d = &options_table[i];
        if (!strcmp(d->section, section) && !strcmp(d->name, name)) return d->commands & o->in;
    }
    return false;
}

static bool is_among(const char *values, const char *text)
{
    size_t n = strlen(text);
    for (const char *p = values; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL)
        if (!strncmp(p, text, n) && (p[n] == '|' || !p[n])) return true;
    return false;
}

static bool is_zero(const char *numbers)
{
    for (const char *p = numbers; *p;) {
        char *end;
        if (strtod(p, &end) != 0) return false;
        p = *end ? end + 1 : end;
    }
    return true;
}

static bool matters(const rule *r, const char *text)
{
    switch (r->kind) {
    case ONLY_WITH:
        return is_among(r->values, text);
    case NEVER_WITH:
        return !is_among(r->values, text);
    case UNLESS_ZERO:
        return !is_zero(text);
    default:
        return *text;
    }
}

err_code relevance_check(const options *o, err *e)
{
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        const rule *r = &rules[i];
        char name[NAME], by[NAME];
        if (!has_option(o, r->section, r->name) || !has_option(o, r->section, r->by)) continue;
        full_name(name, r->section, r->name);
        full_name(by, r->section, r->by);
        option_source least = r->kind == TYPED ? FROM_COMMAND_LINE : FROM_FILE, source = options_source(o, name);
        if (source < least || source < options_source(o, by) || matters(r, options_text(o, by))) continue;
        const char *prefix = *r->section && o->in == IN_RUN ? r->section : "", *dash = *prefix ? "-" : "";
        if (r->kind == TYPED) FAIL(e, USAGE, "--%s means nothing without --%s", r->name, r->by);
        FAIL(e, USAGE, "--%s%s%s means nothing with --%s%s%s %s", prefix, dash, r->name, prefix, dash, r->by,
             options_text(o, by));
    }
    return ERR_OK;
}
