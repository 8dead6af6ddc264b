/* adapter.c: see adapter.h. */
#include "adapt/adapter.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void put(adapter_text *out, const char *prefix, const char *key, const char *value)
{
    size_t i = out->n++;
    snprintf(out->key[i], ADAPTER_KEY, "%s%s", prefix, key);
    snprintf(out->value[i], ADAPTER_VALUE, "%s", value);
    out->meta[i] = (checkpoint_meta){out->key[i], out->value[i]};
}

static void put_number(adapter_text *out, const char *prefix, const char *key, double value)
{
    char text[ADAPTER_VALUE];
    snprintf(text, sizeof text, "%.9g", value);
    put(out, prefix, key, text);
}

void adapter_describe(const peft_spec *s, const char *prefix, adapter_text *out)
{
    char text[PEFT_TARGETS_TEXT];
    *out = (adapter_text){.n = 0};
    put(out, prefix, "method", peft_name(s->method));
    snprintf(text, sizeof text, "%llu", (unsigned long long)s->seed);
    put(out, prefix, "peft_seed", text);
    if (s->method == METHOD_APLA) put_number(out, prefix, "rows", s->rows);
    if (s->method == METHOD_LORA) {
        peft_targets_text(s->targets, text);
        put_number(out, prefix, "rank", s->rank);
        put_number(out, prefix, "alpha", (double)s->alpha);
        put(out, prefix, "targets", text);
    }
    if (s->method == METHOD_VPT) {
        put_number(out, prefix, "prompts", s->prompts);
        put(out, prefix, "vpt", s->deep ? "deep" : "shallow");
    }
}

static const char *value(const safetensors *f, const char *prefix, const char *key)
{
    char name[ADAPTER_KEY];
    snprintf(name, sizeof name, "%s%s", prefix, key);
    return safetensors_meta(f, name);
}

static bool number(const safetensors *f, const char *prefix, const char *key, double least, double most, double *out)
{
    const char *text = value(f, prefix, key);
    char *end;
    if (!text) return false;
    *out = strtod(text, &end);
    return end != text && !*end && *out >= least && *out <= most;
}

bool adapter_spec(const safetensors *f, const char *prefix, peft_spec *out)
{
    const char *method = value(f, prefix, "method"), *seed = value(f, prefix, "peft_seed"), *text;
    double rows = 0, rank = 0, alpha = 0, prompts = 0;
    char *end;
    *out = (peft_spec){0};
    if (!method || !seed || !peft_find(method, &out->method)) return false;
    out->seed = strtoull(seed, &end, 10);
    if (end == seed || *end) return false;
    switch (out->method) {
    case METHOD_APLA:
        if (!number(f, prefix, "rows", 0, 65536, &rows)) return false;
        break;
    case METHOD_LORA:
        text = value(f, prefix, "targets");
        if (!number(f, prefix, "rank", 1, PEFT_RANK_MAX, &rank) || !number(f, prefix, "alpha", 0, 1e9, &alpha) ||
            !text || peft_targets(text, &out->targets, NULL))
            return false;
        break;
    case METHOD_VPT:
        text = value(f, prefix, "vpt");
        if (!number(f, prefix, "prompts", 1, PEFT_PROMPTS_MAX, &prompts) || !text) return false;
        out->deep = !strcmp(text, "deep");
        if (!out->deep && strcmp(text, "shallow") != 0) return false;
        break;
    default:
        break;
    }
    out->rows = (int)rows;
    out->rank = (int)rank;
    out->alpha = (float)alpha;
    out->prompts = (int)prompts;
    return !peft_check(out, NULL);
}

bool adapter_kept_out(const safetensors *f, const char *split)
{
    const char *own = safetensors_meta(f, "split"); /* older ones have none */
    return own && *own && !strcmp(own, split);
}

err_code adapter_write(const char *path, const vit *m, const param_set *ps, const peft_spec *s, size_t side,
                       const char *split, err *e)
{
    enum { OWN = 5 };
    char normalisation[VIT_NORMALISATION_TEXT], pixels[24];
    adapter_text text;
    adapter_describe(s, "", &text);
    vit_normalisation_text(m, normalisation);
    snprintf(pixels, sizeof pixels, "%zu", side);
    checkpoint_meta meta[OWN + ADAPTER_KEYS] = {{"format", "radapt-adapter/1"},
                                                {"backbone", vit_hash(m)},
                                                {"split", split},
                                                {"normalisation", normalisation},
                                                {"side", pixels}};
    for (size_t i = 0; i < text.n; i++) meta[OWN + i] = text.meta[i];
    return checkpoint_write(path, vit_device(m), ps, false, true, NULL, 0, meta, OWN + text.n, e);
}

err_code adapter_load(const safetensors *f, vit *m, bool teacher, param_set *ps, peft_spec *spec, err *e)
{
    const char *backbone = safetensors_meta(f, "backbone");
    if (!backbone || !adapter_spec(f, "", spec)) FAIL(e, FORMAT, "this is no adapter of radapt's");
    if (strcmp(backbone, vit_hash(m)) != 0) FAIL(e, CONFLICT, "the adapter was made on another backbone");
    spec->teacher = teacher;
    TRY(vit_train(m, spec, ps, e));
    return checkpoint_load(f, vit_device(m), ps, false, NULL, 0, e);
}
