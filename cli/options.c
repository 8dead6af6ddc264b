/* options.c: parsing, checking and printing by the table of options_table.c. Every value is kept as checked text, so
 * that what is printed, hashed and used cannot differ. */
#include "cli/options_file.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_MAX_BYTES = 96, TEXT_MAX = 4096 };

/* Where a value came from: line 0 is the command line. */
typedef struct {
    int line;
    bool printed; /* the line is marked as a default (options_print) */
} origin;

static void full_name(const option_def *d, char separator, char out[NAME_MAX_BYTES])
{
    if (*d->section)
        snprintf(out, NAME_MAX_BYTES, "%s%c%s", d->section, separator, d->name);
    else
        snprintf(out, NAME_MAX_BYTES, "%s", d->name);
}

/* As it is written on the command line of o's command. */
static void shown_name(const options *o, const option_def *d, char out[NAME_MAX_BYTES])
{
    bool prefix = *d->section && o->in == IN_RUN;
    snprintf(out, NAME_MAX_BYTES, "--%s%s%s", prefix ? d->section : "", prefix ? "-" : "", d->name);
}

static size_t find(const char *name)
{
    for (size_t i = 0; i < options_count; i++) {
        char full[NAME_MAX_BYTES];
        full_name(&options_table[i], '.', full);
        if (!strcmp(full, name)) return i;
    }
    assert(!"no such option");
    return 0;
}

static err_code set_text(options *o, size_t i, const char *text, option_source source, int line, err *e)
{
    char *copy = strdup(text);
    if (!copy) FAIL(e, NOMEM, "options: no memory");
    free(o->values[i].text);
    o->values[i] = (struct option_value){copy, source, line};
    return ERR_OK;
}

err_code options_init(options *o, const char *command, unsigned in, err *e)
{
    *o = (options){.command = command, .in = in};
    o->values = calloc(options_count, sizeof *o->values);
    if (!o->values) FAIL(e, NOMEM, "options: no memory");
    for (size_t i = 0; i < options_count; i++)
        if (options_table[i].fallback) TRY(set_text(o, i, options_table[i].fallback, FROM_DEFAULT, 0, e));
    return ERR_OK;
}

void options_fini(options *o)
{
    for (size_t i = 0; o->values && i < options_count; i++) free(o->values[i].text);
    free(o->values);
    free(o->arguments);
    *o = (options){0};
}

err_code options_fallback(options *o, const char *name, const char *text, err *e)
{
    size_t i = find(name);
    struct option_value *v = &o->values[i];
    if (v->source == FROM_PRINTED && strcmp(v->text, text))
        v->source = FROM_FILE; /* it was edited, or is from before */
    if (v->source > FROM_DEFAULT) return ERR_OK;
    return set_text(o, i, text, FROM_DEFAULT, 0, e);
}

/* --- checking ---------------------------------------------------------------------------------------------------- */

static bool parse_real(const char *text, double *out, const char **end)
{
    char *stop;
    errno = 0;
    double x = strtod(text, &stop);
    if (stop == text || errno == ERANGE || !isfinite(x) || isspace((unsigned char)*text)) return false;
    *out = x;
    *end = stop;
    return true;
}

static bool in_range(const option_def *d, double x)
{
    return d->low == d->high || (x >= d->low && x <= d->high);
}

static bool is_choice(const char *choices, const char *text)
{
    size_t n = strlen(text);
    for (const char *p = choices; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL)
        if (n && !strncmp(p, text, n) && (p[n] == '|' || !p[n])) return true;
    return false;
}

/* "yes" and "no" however they are written. NULL: neither. */
static const char *flag_text(const char *text)
{
    static const char *const words[] = {"yes", "true", "on", "1", "no", "false", "off", "0"};
    for (size_t i = 0; i < 8; i++)
        if (!strcasecmp(text, words[i])) return i < 4 ? "yes" : "no";
    return NULL;
}

/* NULL: fine; else what is wrong, to stand behind the value. */
static const char *complaint(const option_def *d, const char *text, char out[128])
{
    double x = 0;
    const char *end;
    switch (d->kind) {
    case OPTION_FLAG:
        return flag_text(text) ? NULL : "is neither yes nor no";
    case OPTION_TEXT:
        return strlen(text) < TEXT_MAX ? NULL : "is too long";
    case OPTION_CHOICE:
        if (is_choice(d->what, text)) return NULL;
        snprintf(out, 128, "is not one of %s", d->what);
        return out;
    case OPTION_INT:
        if (!parse_real(text, &x, &end) || *end || x != floor(x)) return "is not a whole number";
        break;
    case OPTION_REAL:
        if (!parse_real(text, &x, &end) || *end) return "is not a number";
        break;
    case OPTION_REALS:
        for (int i = 0; i < d->count; i++, text = end + 1) {
            snprintf(out, 128, "is not %d numbers with commas between", d->count);
            if (!parse_real(text, &x, &end) || *end != (i + 1 < d->count ? ',' : 0)) return out;
            if (!in_range(d, x)) break;
        }
        break;
    }
    if (in_range(d, x)) return NULL;
    snprintf(out, 128, "is not between %.10g and %.10g", d->low, d->high);
    return out;
}

static err_code assign(options *o, size_t i, const char *text, origin at, err *e)
{
    const option_def *d = &options_table[i];
    char room[128], name[NAME_MAX_BYTES];
    const char *wrong = complaint(d, text, room);
    if (wrong && at.line) {
        full_name(d, '.', name);
        FAIL(e, USAGE, "configuration, line %d: %s: '%.40s' %s", at.line, name, text, wrong);
    }
    if (wrong) {
        shown_name(o, d, name);
        FAIL(e, USAGE, "%s: '%.40s' %s", name, text, wrong);
    }
    if (d->kind == OPTION_FLAG) text = flag_text(text);
    bool printed = at.printed && (!d->fallback || !strcmp(text, d->fallback));
    return set_text(o, i, text, printed ? FROM_PRINTED : at.line ? FROM_FILE : FROM_COMMAND_LINE, at.line, e);
}

/* --- did you mean ------------------------------------------------------------------------------------------------ */

/* Optimal string alignment distance: insert, drop, change, swap neighbours; words over 63 characters are far. */
static int distance(const char *a, const char *b)
{
    int n = (int)strlen(a), m = (int)strlen(b), row[3][64];
    if (n > 63 || m > 63) return 1000;
    for (int j = 0; j <= m; j++) row[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *now = row[i % 3], *before = row[(i + 2) % 3], *earlier = row[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = before[j - 1] + (a[i - 1] != b[j - 1]);
            if (before[j] + 1 < best) best = before[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && earlier[j - 2] + 1 < best)
                best = earlier[j - 2] + 1;
            now[j] = best;
        }
    }
    return row[n % 3][m];
}

const char *options_nearest(const char *word, const char *const *names, size_t n)
{
    const char *best = NULL;
    int least = (int)strlen(word) / 3 + 1;
    if (least > 3) least = 3;
    for (size_t i = 0; i < n; i++) {
        int d = distance(word, names[i]);
        if (d <= least && (d < least || !best)) {
            least = d;
            best = names[i];
        }
    }
    return best;
}

/* ", did you mean '...'?" or "" for a word among the options that ask() admits. */
typedef bool (*option_filter)(const options *o, const option_def *d, const char *section);
static void suggest(const options *o, const char *word, const char *section, option_filter admits, char out[128])
{
    const char *names[512];
    char text[2 * 256][NAME_MAX_BYTES];
    size_t n = 0;
    for (size_t i = 0; i < options_count && n + 2 <= 512; i++) {
        const option_def *d = &options_table[i];
        if (!admits(o, d, section)) continue;
        snprintf(text[n], NAME_MAX_BYTES, "%s", d->name);
        names[n] = text[n];
        n++;
        if (section || !*d->section) continue;
        full_name(d, '-', text[n]);
        names[n] = text[n];
        n++;
    }
    const char *near = options_nearest(word, names, n);
    if (near)
        snprintf(out, 128, "; did you mean %s%s?", section ? "" : "--", near);
    else
        snprintf(out, 128, "%s", section ? "" : " (--help lists them)");
}

/* --- command line ------------------------------------------------------------------------------------------------ */

static bool is_mine(const options *o, const option_def *d, const char *section)
{
    (void)section;
    return d->commands & o->in;
}

/* The option that a word on the command line means. */
static err_code resolve(const options *o, const char *word, size_t *out, err *e)
{
    if (!strcmp(word, "output")) word = "work";
    size_t bare[2], n_bare = 0;
    for (size_t i = 0; i < options_count; i++) {
        const option_def *d = &options_table[i];
        char full[NAME_MAX_BYTES];
        if (!(d->commands & o->in)) continue;
        full_name(d, '-', full);
        if (!strcmp(full, word)) {
            *out = i;
            return ERR_OK;
        }
        if (!strcmp(d->name, word) && n_bare < 2) bare[n_bare++] = i;
    }
    if (n_bare == 1) {
        *out = bare[0];
        return ERR_OK;
    }
    if (n_bare == 2)
        FAIL(e, USAGE, "--%s: say --%s-%s or --%s-%s", word, options_table[bare[0]].section, word,
             options_table[bare[1]].section, word);
    char hint[128];
    suggest(o, word, NULL, is_mine, hint);
    FAIL(e, USAGE, "%s has no option --%.40s%s", o->command, word, hint);
}

static err_code resolve_letter(const options *o, char letter, size_t *out, err *e)
{
    if (letter == 'o') letter = 'w';
    for (size_t i = 0; i < options_count; i++)
        if (options_table[i].letter == letter && (options_table[i].commands & o->in)) {
            *out = i;
            return ERR_OK;
        }
    FAIL(e, USAGE, "%s has no option -%c (--help lists them)", o->command, letter);
}

static err_code parse_long(options *o, int argc, char **argv, int *at, err *e)
{
    const char *word = argv[*at] + 2, *equals = strchr(word, '=');
    char name[NAME_MAX_BYTES];
    size_t i, n = equals ? (size_t)(equals - word) : strlen(word);
    if (n >= sizeof name) FAIL(e, USAGE, "%s has no option of that length", o->command);
    memcpy(name, word, n);
    name[n] = 0;
    if (!strncmp(name, "no-", 3) && !equals && !resolve(o, name + 3, &i, NULL) && options_table[i].kind == OPTION_FLAG)
        return assign(o, i, "no", (origin){0}, e);
    TRY(resolve(o, name, &i, e));
    if (equals) return assign(o, i, equals + 1, (origin){0}, e);
    if (options_table[i].kind == OPTION_FLAG) return assign(o, i, "yes", (origin){0}, e);
    if (++*at >= argc) FAIL(e, USAGE, "--%s needs a value: %s", name, options_table[i].what);
    return assign(o, i, argv[*at], (origin){0}, e);
}

static err_code parse_short(options *o, int argc, char **argv, int *at, err *e)
{
    for (const char *p = argv[*at] + 1; *p; p++) {
        size_t i;
        TRY(resolve_letter(o, *p, &i, e));
        if (options_table[i].kind == OPTION_FLAG) {
            TRY(assign(o, i, "yes", (origin){0}, e));
            continue;
        }
        if (p[1]) return assign(o, i, p + 1, (origin){0}, e);
        if (++*at >= argc) FAIL(e, USAGE, "-%c needs a value: %s", *p, options_table[i].what);
        return assign(o, i, argv[*at], (origin){0}, e);
    }
    return ERR_OK;
}

err_code options_parse(options *o, int argc, char **argv, err *e)
{
    bool only_arguments = false;
    free(o->arguments);
    o->n_arguments = 0;
    o->arguments = calloc((size_t)argc + 1, sizeof *o->arguments);
    if (!o->arguments) FAIL(e, NOMEM, "options: no memory");
    for (int at = 0; at < argc; at++) {
        const char *a = argv[at];
        if (only_arguments || a[0] != '-' || !a[1])
            o->arguments[o->n_arguments++] = a;
        else if (!strcmp(a, "--"))
            only_arguments = true;
        else if (a[1] == '-')
            TRY(parse_long(o, argc, argv, &at, e));
        else
            TRY(parse_short(o, argc, argv, &at, e));
    }
    if (options_has(o, "config") && !options_flag(o, "help")) TRY(options_file_read(o, options_text(o, "config"), e));
    return ERR_OK;
}

/* --- file (the parser is in options_file.c) ---------------------------------------------------------------------- */

static bool in_section(const options *o, const option_def *d, const char *section)
{
    (void)o;
    return !strcmp(d->section, section);
}

/* One "key: value" of a file. */
err_code options_assign_file(options *o, const char *section, const char *key, const char *text, int line, bool printed,
                             err *e)
{
    char name[NAME_MAX_BYTES], hint[128];
    snprintf(name, sizeof name, "%s", key);
    for (char *p = name; *p; p++)
        if (*p == '_') *p = '-';
    size_t i = 0;
    while (i < options_count && (strcmp(options_table[i].section, section) || strcmp(options_table[i].name, name))) i++;
    if (i == options_count) {
        *hint = 0;
        for (size_t k = 0; k < options_count && !*hint && !*section; k++)
            if (!strcmp(options_table[k].name, name))
                snprintf(hint, sizeof hint, "; it belongs under %s:", options_table[k].section);
        if (!*hint) suggest(o, name, section, in_section, hint);
        FAIL(e, USAGE, "configuration, line %d: no option '%.40s'%s%s%s", line, key, *section ? " in " : "", section,
             hint);
    }
    if (!strcmp(options_table[i].group, "General") && strcmp(name, "log") && strcmp(name, "verbose") &&
        strcmp(name, "quiet"))
        FAIL(e, USAGE, "configuration, line %d: '%s' is for the command line only", line, name);
    struct option_value *v = &o->values[i];
    if ((v->source == FROM_FILE || v->source == FROM_PRINTED) && v->line != line)
        FAIL(e, USAGE, "configuration, line %d: '%.40s' is set on line %d already", line, key, v->line);
    struct option_value kept = *v;
    if (kept.source == FROM_COMMAND_LINE || !(options_table[i].commands & o->in)) { /* checked, then left alone */
        v->text = NULL;
        err_code rc = assign(o, i, text, (origin){line, printed}, e);
        free(v->text);
        *v = kept;
        return rc;
    }
    return assign(o, i, text, (origin){line, printed}, e);
}

/* --- values ------------------------------------------------------------------------------------------------------ */

const char *options_text(const options *o, const char *name)
{
    const char *text = o->values[find(name)].text;
    return text ? text : "";
}
bool options_has(const options *o, const char *name)
{
    return *options_text(o, name);
}
bool options_given(const options *o, const char *name)
{
    return options_source(o, name) >= FROM_FILE;
}
option_source options_source(const options *o, const char *name)
{
    return o->values[find(name)].source;
}
bool options_flag(const options *o, const char *name)
{
    return !strcmp(options_text(o, name), "yes");
}
long long options_int(const options *o, const char *name)
{
    return (long long)strtod(options_text(o, name), NULL);
}
double options_real(const options *o, const char *name)
{
    return strtod(options_text(o, name), NULL);
}
void options_reals(const options *o, const char *name, float *out, int count)
{
    const char *p = options_text(o, name);
    for (int i = 0; i < count; i++) {
        char *end;
        out[i] = strtof(p, &end);
        p = *end ? end + 1 : end;
    }
}

/* --- printing ---------------------------------------------------------------------------------------------------- */

static const char *placeholder(const option_def *d)
{
    return d->kind == OPTION_FLAG ? "" : d->what ? d->what : "X";
}

static void help_line(const options *o, size_t i, FILE *f)
{
    const option_def *d = &options_table[i];
    const char *value = o->values[i].text ? o->values[i].text : "";
    char name[NAME_MAX_BYTES], left[2 * NAME_MAX_BYTES];
    shown_name(o, d, name);
    int n = snprintf(left, sizeof left, "  %c%c%s%s%s%s", d->letter ? '-' : ' ', d->letter ? d->letter : ' ',
                     d->letter ? ", " : "  ", name, *placeholder(d) ? " " : "", placeholder(d));
    if (n > 36)
        fprintf(f, "%s\n%38s", left, "");
    else
        fprintf(f, "%-38s", left);
    fputs(d->help, f);
    if (*value && strcmp(value, "no") && strcmp(d->name, "help")) fprintf(f, " [%s]", value);
    fputc('\n', f);
}

void options_help(const options *o, FILE *f)
{
    const char *done[32];
    size_t n = 0;
    for (size_t i = 0; i < options_count; i++) {
        const char *group = options_table[i].group;
        bool known = !(options_table[i].commands & o->in);
        for (size_t k = 0; k < n && !known; k++) known = !strcmp(done[k], group);
        if (known || n == 32) continue;
        done[n++] = group;
        fprintf(f, "\n%s\n", group);
        for (size_t k = i; k < options_count; k++)
            if (!strcmp(options_table[k].group, group) && (options_table[k].commands & o->in)) help_line(o, k, f);
    }
}

static void print_yaml_text(const char *text, FILE *f)
{
    bool plain = isalnum((unsigned char)*text) || *text == '.' || *text == '/';
    for (const char *p = text; *p && plain; p++)
        plain = isalnum((unsigned char)*p) || strchr("._/+-=", *p) || (*p == ',' && p[1]);
    if (plain) {
        fputs(text, f);
        return;
    }
    fputc('"', f);
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == '"' || *p == '\\')
            fprintf(f, "\\%c", *p);
        else if (*p < 0x20)
            fprintf(f, "\\x%02x", *p);
        else
            fputc(*p, f);
    }
    fputc('"', f);
}

static bool is_printed(const option_def *d, unsigned in, bool run_only)
{
    if (!(d->commands & in)) return false;
    if (!strcmp(d->group, "General")) return !run_only && (!strcmp(d->name, "log") || !strcmp(d->name, "verbose"));
    return !run_only || !d->outside || !strcmp(d->group, "Model");
}

static void print_section(const options *o, const char *section, unsigned in, bool run_only, FILE *f)
{
    bool begun = !*section;
    for (size_t i = 0; i < options_count; i++) {
        const option_def *d = &options_table[i];
        const char *text = o->values[i].text ? o->values[i].text : "";
        if (strcmp(d->section, section) || !is_printed(d, in, run_only)) continue;
        if (!begun) fprintf(f, "%s:\n", section);
        begun = true;
        fprintf(f, "%s%s: ", *section ? "  " : "", d->name);
        if (d->kind == OPTION_REALS)
            fprintf(f, "[%s]", text);
        else
            print_yaml_text(text, f);
        fprintf(f, "  %s%s\n", o->values[i].source < FROM_FILE ? OPTIONS_DEFAULT_MARK ". " : "# ", d->help);
    }
}

void options_print(const options *o, FILE *f, unsigned in, bool run_only)
{
    print_section(o, "", in, run_only, f);
    for (size_t i = 0; i < options_count; i++) {
        const char *section = options_table[i].section;
        bool first = *section;
        for (size_t k = 0; k < i && first; k++) first = strcmp(options_table[k].section, section);
        if (first) print_section(o, section, in, run_only, f);
    }
}

/* Numbers as they are, not as they were written. */
static void print_canonical(const option_def *d, const char *text, FILE *f)
{
    bool number = d->kind == OPTION_INT || d->kind == OPTION_REAL || d->kind == OPTION_REALS;
    for (const char *p = text; number && *p;) {
        char *end;
        double x = strtod(p, &end);
        assert(end != p);                                       /* checked when it was given */
        fprintf(f, "%.17g%s", x == 0 ? 0 : x, *end ? "," : ""); /* no -0 */
        p = *end ? end + 1 : end;
    }
    if (!number) fputs(text, f);
}

char *options_canonical(const options *o, unsigned in)
{
    char *text = NULL, name[NAME_MAX_BYTES];
    size_t size;
    FILE *f = open_memstream(&text, &size);
    if (!f) return NULL;
    for (size_t i = 0; i < options_count; i++) {
        const option_def *d = &options_table[i];
        if (!(d->commands & in) || d->outside) continue;
        full_name(d, '.', name);
        fprintf(f, "%s=", name);
        print_canonical(d, o->values[i].text ? o->values[i].text : "", f);
        fputc('\n', f);
    }
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}
