/* options_file.c: the configuration file: YAML, one mapping of options, one level of sections, lists of numbers. */
#include "cli/options_file.h"

#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/file.h"

enum { VALUE_MAX = 4096, KEY_MAX = 64, FILE_MAX_BYTES = 1 << 20 };

typedef struct {
    yaml_parser_t parser;
    yaml_event_t event;
    bool has_event;
    const char *text;
    err *e;
} reader;

/* Whether a line ends in the mark of what nobody gave: the parser knows no comments. */
static bool is_marked(const reader *r, int line)
{
    const char *p = r->text;
    for (int i = 1; i < line && p; i++) p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL;
    const char *mark = p ? strstr(p, OPTIONS_DEFAULT_MARK) : NULL;
    return mark && !memchr(p, '\n', (size_t)(mark - p));
}

static int line_of(const reader *r)
{
    return (int)r->event.start_mark.line + 1;
}

static err_code next(reader *r)
{
    if (r->has_event) yaml_event_delete(&r->event);
    r->has_event = yaml_parser_parse(&r->parser, &r->event);
    if (!r->has_event)
        FAIL(r->e, USAGE, "configuration, line %zu: not YAML: %s", r->parser.problem_mark.line + 1,
             r->parser.problem ? r->parser.problem : "unreadable");
    return ERR_OK;
}

static const char *scalar(const reader *r)
{
    return (const char *)r->event.data.scalar.value;
}

/* A list of scalars, joined with commas. The event is its start. */
static err_code read_list(reader *r, char out[VALUE_MAX])
{
    int line = line_of(r);
    size_t n = 0;
    *out = 0;
    for (;;) {
        TRY(next(r));
        if (r->event.type == YAML_SEQUENCE_END_EVENT) return ERR_OK;
        if (r->event.type != YAML_SCALAR_EVENT) FAIL(r->e, USAGE, "configuration, line %d: a list in a list", line);
        n += (size_t)snprintf(out + n, VALUE_MAX - n, "%s%s", n ? "," : "", scalar(r));
        if (n >= VALUE_MAX) FAIL(r->e, USAGE, "configuration, line %d: the list is too long", line);
    }
}

static err_code read_mapping(reader *r, options *o, const char *section)
{
    char key[KEY_MAX], value[VALUE_MAX];
    for (;;) {
        TRY(next(r));
        if (r->event.type == YAML_MAPPING_END_EVENT) return ERR_OK;
        int line = line_of(r);
        if (r->event.type != YAML_SCALAR_EVENT || r->event.data.scalar.length >= KEY_MAX)
            FAIL(r->e, USAGE, "configuration, line %d: this is no option's name", line);
        snprintf(key, sizeof key, "%s", scalar(r));
        TRY(next(r));
        switch (r->event.type) {
        case YAML_SCALAR_EVENT:
            if (r->event.data.scalar.length >= VALUE_MAX)
                FAIL(r->e, USAGE, "configuration, line %d: the value is too long", line);
            snprintf(value, sizeof value, "%s", scalar(r));
            break;
        case YAML_SEQUENCE_START_EVENT:
            TRY(read_list(r, value));
            break;
        case YAML_MAPPING_START_EVENT:
            if (*section) FAIL(r->e, USAGE, "configuration, line %d: '%s' cannot hold a mapping", line, key);
            bool known = false;
            for (size_t i = 0; i < options_count && !known; i++)
                known = *options_table[i].section && !strcmp(options_table[i].section, key);
            if (!known) FAIL(r->e, USAGE, "configuration, line %d: there is no section '%s'", line, key);
            TRY(read_mapping(r, o, key));
            continue;
        default:
            FAIL(r->e, USAGE, "configuration, line %d: aliases are not read", line);
        }
        TRY(options_assign_file(o, section, key, value, line, is_marked(r, line), r->e));
    }
}

static err_code read_document(reader *r, options *o)
{
    for (;;) {
        TRY(next(r));
        switch (r->event.type) {
        case YAML_STREAM_START_EVENT:
        case YAML_DOCUMENT_START_EVENT:
        case YAML_DOCUMENT_END_EVENT:
            break;
        case YAML_STREAM_END_EVENT:
            return ERR_OK;
        case YAML_SCALAR_EVENT:
            if (!r->event.data.scalar.length) break; /* an empty file */
            /* fall through */
        default:
            if (r->event.type != YAML_MAPPING_START_EVENT)
                FAIL(r->e, USAGE, "configuration, line %d: 'option: value' lines are wanted", line_of(r));
            TRY(read_mapping(r, o, ""));
        }
    }
}

err_code options_file_read(options *o, const char *path, err *e)
{
    char *text;
    size_t bytes;
    err why = {0};
    if (file_read(path, FILE_MAX_BYTES, &text, &bytes, &why)) FAIL(e, USAGE, "--config %.80s: %.60s", path, why.msg);
    reader r = {.text = text, .e = e};
    if (!yaml_parser_initialize(&r.parser)) {
        free(text);
        FAIL(e, NOMEM, "options: no memory");
    }
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, bytes);
    err_code rc = read_document(&r, o);
    if (r.has_event) yaml_event_delete(&r.event);
    yaml_parser_delete(&r.parser);
    free(text);
    return rc;
}
