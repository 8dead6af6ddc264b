/* method.c: see method.h. */
#include "cli/method.h"

#include <stdio.h>
#include <string.h>

static const char *const numbers[] = {"lora-rank", "lora-alpha", "lora-targets", "prompts", "vpt", "rows"};
enum { NUMBERS = sizeof numbers / sizeof *numbers, NAME = 48 };

static const char *full_name(char out[NAME], const char *section, const char *name)
{
    snprintf(out, NAME, "%s.%s", section, name);
    return out;
}

bool method_given(const options *o, const char *section)
{
    char name[NAME];
    bool given = false;
    for (int i = 0; i < NUMBERS; i++) given |= options_given(o, full_name(name, section, numbers[i]));
    return given;
}

err_code method_spec(const options *o, const char *section, peft_spec *out, err *e)
{
    char name[NAME];
    peft_spec s = {.seed = (uint64_t)options_int(o, "seed")};
    peft_find(options_text(o, full_name(name, section, "method")), &s.method); /* a choice: it is one of them */
    if (s.method == METHOD_APLA) s.rows = (int)options_int(o, full_name(name, section, "rows"));
    if (s.method == METHOD_LORA) {
        s.rank = (int)options_int(o, full_name(name, section, "lora-rank"));
        s.alpha = (float)options_real(o, full_name(name, section, "lora-alpha"));
        TRY(peft_targets(options_text(o, full_name(name, section, "lora-targets")), &s.targets, e));
    }
    if (s.method == METHOD_VPT) {
        s.prompts = (int)options_int(o, full_name(name, section, "prompts"));
        s.deep = !strcmp(options_text(o, full_name(name, section, "vpt")), "deep");
    }
    TRY(peft_check(&s, e));
    *out = s;
    return ERR_OK;
}
