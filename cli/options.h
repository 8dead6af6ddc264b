/* options.h: every option of every command in one table (options_table.c): command line, YAML file, --help and
 * --print-config are all read off it.
 *
 *     options o;
 *     TRY(options_init(&o, "adapt", IN_ADAPT, e));
 *     TRY(options_parse(&o, argc, argv, e));          // command line, then --config for what it left open
 *     double lr = options_real(&o, "adapt.lr");
 *     options_fini(&o);
 *
 * An option is named "section.name", or "name" outside any section. In a file, sections are mappings; on the command
 * line of `run` a section is a prefix (--adapt-epochs), on a command of its own it falls away (--epochs). One file
 * serves all commands: what belongs to others is checked and left alone. */
#ifndef RADAPT_OPTIONS_H
#define RADAPT_OPTIONS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

enum {
    IN_RUN = 1 << 0,
    IN_SCAN = 1 << 1,
    IN_PREPARE = 1 << 2,
    IN_ADAPT = 1 << 3,
    IN_FINETUNE = 1 << 4,
    IN_EVALUATE = 1 << 5,
    IN_PREDICT = 1 << 6,
    IN_REPORT = 1 << 7,
    IN_INSPECT = 1 << 8,
    IN_PHANTOM = 1 << 9,
    IN_PLAN = 1 << 10,
    IN_EXPORT = 1 << 11,
    IN_WORK = IN_RUN | IN_SCAN | IN_PREPARE | IN_ADAPT | IN_FINETUNE | IN_EVALUATE | IN_PREDICT | IN_REPORT | IN_EXPORT,
    IN_ALL = IN_WORK | IN_INSPECT | IN_PHANTOM | IN_PLAN
};

typedef enum {
    OPTION_FLAG, /* "yes" or "no" */
    OPTION_INT,
    OPTION_REAL,
    OPTION_REALS, /* count numbers with commas between */
    OPTION_TEXT,
    OPTION_CHOICE
} option_kind;

typedef struct {
    const char *section, *name;
    char letter; /* 0: none */
    option_kind kind;
    int count;            /* OPTION_REALS: how many */
    const char *fallback; /* the default as text; NULL: set by the command (options_fallback) */
    const char *what;     /* FILE, N, ...; for OPTION_CHOICE "a|b|c" */
    double low, high;     /* numbers: allowed range, inclusive; low == high: any */
    unsigned commands;    /* IN_... */
    bool
        outside; /* says how to work, not what comes out: no part of a run's identity, not in --print-config of a run */
    const char *group, *help;
} option_def;

extern const option_def options_table[];
extern const size_t options_count;

/* FROM_PRINTED: by a file's line that ends in OPTIONS_DEFAULT_MARK, as options_print writes what nobody gave: the value
 * counts, but not as given, as long as it is the default. */
typedef enum { FROM_NOTHING, FROM_DEFAULT, FROM_PRINTED, FROM_FILE, FROM_COMMAND_LINE } option_source;
#define OPTIONS_DEFAULT_MARK "# default"

typedef struct options {
    const char *command;
    unsigned in;
    struct option_value {
        char *text; /* owned */
        option_source source;
        int line;           /* of the file */
    } * values;             /* (options_count) */
    const char **arguments; /* what is not an option; borrowed from argv */
    size_t n_arguments;
} options;

err_code options_init(options *o, const char *command, unsigned in, err *e);
void options_fini(options *o);
/* Sets the default of an option that has none in the table; what the user gave stays. */
err_code options_fallback(options *o, const char *name, const char *text, err *e);
/* Parses and checks. argv: after the command's name. ERR_USAGE names the argument, or the line of the file. */
err_code options_parse(options *o, int argc, char **argv, err *e);

/* Values. An unknown name is our bug (assert). */
bool options_has(const options *o, const char *name); /* not empty */
/* By the user, whatever the value: to give the default is to ask for it. */
bool options_given(const options *o, const char *name);
option_source options_source(const options *o, const char *name);
const char *options_text(const options *o, const char *name);
bool options_flag(const options *o, const char *name);
long long options_int(const options *o, const char *name);
double options_real(const options *o, const char *name);
void options_reals(const options *o, const char *name, float *out, int count);

/* Help: one option a line, grouped, defaults shown. */
void options_help(const options *o, FILE *f);
/* YAML that reads back to the same. in: which commands' options; run_only: without those that are `outside`. */
void options_print(const options *o, FILE *f, unsigned in, bool run_only);
/* "section.name=value\n" of the options of `in` that are not outside, in the table's order: what a run id is made
 * from, so numbers are the same however they were written. malloc'ed. */
char *options_canonical(const options *o, unsigned in);
/* The nearest of n names, or NULL if none is near: "did you mean". */
const char *options_nearest(const char *word, const char *const *names, size_t n);

#endif
