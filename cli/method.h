/* method.h: --method and its numbers, the same in adapt and in finetune. */
#ifndef RADAPT_METHOD_H
#define RADAPT_METHOD_H
#include "cli/options.h"
#include "model/peft.h"

/* The spec of a section ("adapt", "finetune"), seeded by --seed. ERR_USAGE: numbers that the method cannot have (those
 * of another method: relevance.h). */
err_code method_spec(const options *o, const char *section, peft_spec *out, err *e);
/* Whether the user gave any of the method's numbers. */
bool method_given(const options *o, const char *section);

#endif
