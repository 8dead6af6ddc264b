/* binding.c: see binding.h. Numbers are printed so that they read back to the same value. */
#include "cli/binding.h"

#include <stdlib.h>
#include <string.h>

static void print_float(char *out, size_t size, float x)
{
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(out, size, "%.*g", digits, (double)x);
        if (strtof(out, NULL) == x) return;
    }
}

static void print_double(char *out, size_t size, double x)
{
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(out, size, "%.*g", digits, x);
        if (strtod(out, NULL) == x) return;
    }
}

err_code binding_show(options *o, const binding *b, size_t n, const void *from, err *e)
{
    for (size_t i = 0; i < n; i++) {
        const void *p = (const char *)from + b[i].offset;
        char text[128] = "";
        size_t used = 0;
        switch (b[i].kind) {
        case BINDING_INT:
            snprintf(text, sizeof text, "%d", *(const int *)p);
            break;
        case BINDING_FLOAT:
            print_float(text, sizeof text, *(const float *)p);
            break;
        case BINDING_DOUBLE:
            print_double(text, sizeof text, *(const double *)p);
            break;
        case BINDING_FLAG:
            snprintf(text, sizeof text, "%s", *(const bool *)p ? "yes" : "no");
            break;
        case BINDING_FLOATS:
            for (int k = 0; k < b[i].count && used + 20 < sizeof text; k++) {
                if (k) text[used++] = ',';
                print_float(text + used, sizeof text - used, ((const float *)p)[k]);
                used = strlen(text);
            }
            break;
        }
        TRY(options_fallback(o, b[i].name, text, e));
    }
    return ERR_OK;
}

void binding_take(const options *o, const binding *b, size_t n, void *to)
{
    for (size_t i = 0; i < n; i++) {
        void *p = (char *)to + b[i].offset;
        switch (b[i].kind) {
        case BINDING_INT:
            *(int *)p = (int)options_int(o, b[i].name);
            break;
        case BINDING_FLOAT:
            *(float *)p = (float)options_real(o, b[i].name);
            break;
        case BINDING_DOUBLE:
            *(double *)p = options_real(o, b[i].name);
            break;
        case BINDING_FLAG:
            *(bool *)p = options_flag(o, b[i].name);
            break;
        case BINDING_FLOATS:
            options_reals(o, b[i].name, p, b[i].count);
            break;
        }
    }
}
