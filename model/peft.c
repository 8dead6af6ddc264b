/* peft.c: see peft.h. */
#include "model/peft.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const names[] = {"linear", "apla", "full", "lora", "bitfit", "vpt"};
enum { METHODS = sizeof names / sizeof *names };

static const struct {
    const char *name;
    unsigned bit;
} layers[] = {{"qkv", PEFT_QKV},   {"q", PEFT_Q},     {"k", PEFT_K},    {"v", PEFT_V},
              {"proj", PEFT_PROJ}, {"fc1", PEFT_FC1}, {"fc2", PEFT_FC2}};
enum { LAYERS = sizeof layers / sizeof *layers };

const char *peft_name(peft_method m)
{
    return names[m];
}

bool peft_find(const char *name, peft_method *out)
{
    for (int i = 0; i < METHODS; i++) {
        if (strcmp(name, names[i])) continue;
        *out = (peft_method)i;
        return true;
    }
    return false;
}

err_code peft_targets(const char *text, unsigned *out, err *e)
{
    unsigned found = 0;
    for (const char *at = text;; at++) {
        size_t n = strcspn(at, ","), i = 0;
        while (i < LAYERS && (strlen(layers[i].name) != n || strncmp(layers[i].name, at, n))) i++;
        if (i == LAYERS)
            FAIL(e, USAGE, "LoRA updates layers of qkv, q, k, v, proj, fc1, fc2; '%.*s' is none of them",
                 (int)(n < 16 ? n : 16), at);
        found |= layers[i].bit;
        at += n;
        if (!*at) break;
    }
    if (found & PEFT_QKV && found & (PEFT_Q | PEFT_K | PEFT_V))
        FAIL(e, USAGE, "LoRA updates qkv as one, or q, k, v: not both");
    *out = found;
    return ERR_OK;
}

void peft_targets_text(unsigned targets, char out[PEFT_TARGETS_TEXT])
{
    size_t n = 0;
    out[0] = 0;
    for (int i = 0; i < LAYERS; i++)
        if (targets & layers[i].bit)
            n += (size_t)snprintf(out + n, PEFT_TARGETS_TEXT - n, "%s%s", n ? "," : "", layers[i].name);
}

err_code peft_check(const peft_spec *s, err *e)
{
    if (s->rows < 0) FAIL(e, USAGE, "%d trainable rows", s->rows);
    if (s->method == METHOD_LORA) {
        if (s->rank < 1 || s->rank > PEFT_RANK_MAX)
            FAIL(e, USAGE, "LoRA of rank %d: from 1 to %d", s->rank, PEFT_RANK_MAX);
        if (!(s->alpha > 0 && isfinite(s->alpha))) FAIL(e, USAGE, "LoRA with alpha %g", (double)s->alpha);
        char text[PEFT_TARGETS_TEXT];
        unsigned same;
        peft_targets_text(s->targets, text);
        TRY(peft_targets(text, &same, e));
    }
    if (s->method == METHOD_VPT && (s->prompts < 1 || s->prompts > PEFT_PROMPTS_MAX))
        FAIL(e, USAGE, "%d prompts: from 1 to %d", s->prompts, PEFT_PROMPTS_MAX);
    return ERR_OK;
}

bool peft_same(const peft_spec *a, const peft_spec *b)
{
    if (a->method != b->method) return false;
    switch (a->method) {
    case METHOD_APLA:
        return a->rows == b->rows && (!a->rows || a->seed == b->seed);
    case METHOD_LORA:
        return a->rank == b->rank && a->alpha == b->alpha && a->targets == b->targets;
    case METHOD_VPT:
        return a->prompts == b->prompts && a->deep == b->deep;
    default:
        return true;
    }
}
