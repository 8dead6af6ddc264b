/* binding.h: a stage's own options struct, field by field, against the options of the table: the struct's defaults are
 * shown as the options' defaults, and what the options say is put into the struct. */
#ifndef RADAPT_BINDING_H
#define RADAPT_BINDING_H
#include "cli/options.h"

typedef enum { BINDING_INT, BINDING_FLOAT, BINDING_DOUBLE, BINDING_FLAG, BINDING_FLOATS } binding_kind;
typedef struct {
    const char *name; /* "adapt.lr" */
    binding_kind kind;
    size_t offset;
    int count; /* BINDING_FLOATS */
} binding;

/* Struct -> defaults of the options that the user left open. */
err_code binding_show(options *o, const binding *b, size_t n, const void *from, err *e);
/* Options -> struct. */
void binding_take(const options *o, const binding *b, size_t n, void *to);

#endif
