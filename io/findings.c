/* findings.c: JSON lines with jansson; see findings.h for the format. */
#include "io/findings.h"

#include <ctype.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/csv.h"
#include "base/file.h"

enum { EVIDENCE_MAX = 8, LABELS_MAX = 1000, BYTES_MAX = 1 << 30 };
#define FORMAT_NAME "radapt-findings/2"

static const char *const tasks[] = {"multiclass", "ordinal", "multilabel"};
enum { TASKS = sizeof tasks / sizeof *tasks };

const char *findings_task_name(label_task task)
{
    return tasks[task];
}

bool findings_task(const char *name, label_task *out)
{
    for (int i = 0; i < TASKS; i++)
        if (!strcmp(name, tasks[i])) {
            *out = (label_task)i;
            return true;
        }
    return false;
}

static int dump(FILE *f, json_t *j)
{
    int bad = json_dumpf(j, f, JSON_COMPACT | JSON_PRESERVE_ORDER);
    fputc('\n', f);
    json_decref(j);
    return bad;
}

/* [{"label","evidence":[...]},...]; *bad is raised where a weight is not finite. */
static json_t *pack_found(const findings *f, const study_finding *s, int *bad)
{
    json_t *found = json_array();
    for (int i = 0; i < s->n_found; i++) {
        const finding *one = &s->found[i];
        json_t *evidence = json_array();
        for (int k = 0; k < one->n_evidence; k++)
            *bad |= json_array_append_new(evidence,
                                          json_pack("{s:s,s:i,s:f}", "instance", one->evidence[k].instance_key, "frame",
                                                    one->evidence[k].frame, "weight", one->evidence[k].weight));
        *bad |= json_array_append_new(
            found, json_pack("{s:s,s:o}", "label", f->labels[one->label].name, "evidence", evidence));
    }
    return found;
}

/* Returns whether something could not be said in JSON. */
static int dump_all(FILE *to, const findings *f)
{
    int bad = 0;
    json_t *labels = json_array();
    for (int i = 0; i < f->n_labels; i++) {
        const label_code *l = &f->labels[i];
        bad |= json_array_append_new(labels, json_pack("{s:s,s:s,s:s,s:s}", "name", l->name, "value", l->value,
                                                       "scheme", l->scheme, "meaning", l->meaning));
    }
    bad |= dump(to, json_pack("{s:s,s:s,s:{s:s,s:s,s:s,s:s},s:o}", "format", FORMAT_NAME, "task", tasks[f->task],
                              "model", "algorithm", f->algorithm, "version", f->version, "hash", f->model_hash,
                              "parameters", f->parameters, "labels", labels));
    for (size_t i = 0; i < f->n_studies && !bad; i++) {
        const study_finding *s = &f->studies[i];
        json_t *probability = json_object(), *found = pack_found(f, s, &bad);
        for (int k = 0; k < f->n_labels; k++)
            bad |= json_object_set_new(probability, f->labels[k].name, json_real(s->probability[k]));
        bad |= dump(to, json_pack("{s:s,s:o,s:o,s:i}", "study", s->study_key, "found", found, "probability",
                                  probability, "frames", s->frames));
    }
    return bad;
}

err_code findings_write(const char *path, const findings *f, err *e)
{
    file_writer *w;
    char *text = NULL, digest[HASH_HEX];
    size_t bytes = 0;
    FILE *memory = open_memstream(&text, &bytes);
    if (!memory) FAIL(e, NOMEM, "findings: no memory");
    int bad = dump_all(memory, f);
    bool lost = ferror(memory) != 0;
    lost = fclose(memory) || lost;
    err_code rc = ERR_OK;
    if (lost) FAIL_DONE(rc, e, NOMEM, "findings: no memory for %zu studies", f->n_studies);
    if (bad) FAIL_DONE(rc, e, INTERNAL, "findings: a text is not UTF-8 or a probability not finite");
    hash_buffer(text, bytes, digest);
    TRY_DONE(rc, file_begin(&w, path, e));
    fwrite(text, 1, bytes, w->f);
    fprintf(w->f, "{\"studies\":%zu,\"sha256\":\"%s\"}\n", f->n_studies, digest);
    rc = file_commit(&w, e);
done:
    free(text);
    return rc;
}

/* out[size] = string member; false if missing or too long. */
static bool text(const json_t *j, const char *key, char *out, size_t size)
{
    const char *s = json_string_value(json_object_get(j, key));
    if (!s || strlen(s) >= size) return false;
    memcpy(out, s, strlen(s) + 1);
    return true;
}

/* A pseudonym: 32 lower-case hex digits. Names of files are made of it. */
static bool parse_key(const json_t *j, const char *name, char out[KEY_HEX])
{
    return text(j, name, out, KEY_HEX) && strlen(out) == KEY_HEX - 1 && strspn(out, "0123456789abcdef") == KEY_HEX - 1;
}

static bool parse_model(findings *f, const json_t *j)
{
    const json_t *m = json_object_get(j, "model"), *labels = json_object_get(j, "labels");
    const char *format = json_string_value(json_object_get(j, "format")),
               *task = json_string_value(json_object_get(j, "task"));
    if (!format || strcmp(format, FORMAT_NAME) || !task || !findings_task(task, &f->task)) return false;
    if (!text(m, "algorithm", f->algorithm, sizeof f->algorithm) ||
        !text(m, "version", f->version, sizeof f->version) || !text(m, "hash", f->model_hash, sizeof f->model_hash) ||
        !text(m, "parameters", f->parameters, sizeof f->parameters))
        return false;
    size_t n = json_array_size(labels);
    if (n < 1 || n > LABELS_MAX || !(f->labels = calloc(n, sizeof *f->labels))) return false;
    f->n_labels = (int)n;
    for (size_t i = 0; i < n; i++) {
        const json_t *l = json_array_get(labels, i);
        label_code *c = &f->labels[i];
        if (!text(l, "name", c->name, sizeof c->name) || !text(l, "value", c->value, sizeof c->value) ||
            !text(l, "scheme", c->scheme, sizeof c->scheme) || !text(l, "meaning", c->meaning, sizeof c->meaning))
            return false;
    }
    return true;
}

static int label_named(const findings *f, const char *name)
{
    for (int k = 0; k < f->n_labels; k++)
        if (!strcmp(name, f->labels[k].name)) return k;
    return -1;
}

/* j: an object with "label" and "evidence". */
static bool parse_finding(const findings *f, finding *out, const json_t *j)
{
    char label[65];
    const json_t *evidence = json_object_get(j, "evidence");
    size_t n = json_array_size(evidence);
    if (!text(j, "label", label, sizeof label)) return false;
    out->label = label_named(f, label);
    if (out->label < 0 || n > EVIDENCE_MAX || !(out->evidence = calloc(n + 1, sizeof *out->evidence))) return false;
    for (; (size_t)out->n_evidence < n; out->n_evidence++) {
        const json_t *v = json_array_get(evidence, (size_t)out->n_evidence);
        finding_evidence *ev = &out->evidence[out->n_evidence];
        if (!parse_key(v, "instance", ev->instance_key)) return false;
        ev->frame = (int)json_integer_value(json_object_get(v, "frame"));
        ev->weight = json_number_value(json_object_get(v, "weight"));
        if (ev->frame < 1) return false;
    }
    return true;
}

static bool parse_study(const findings *f, study_finding *s, const json_t *j)
{
    const json_t *probability = json_object_get(j, "probability"), *found = json_object_get(j, "found");
    size_t n = json_array_size(found);
    if (!parse_key(j, "study", s->study_key) || !json_is_array(found)) return false;
    if (f->task == TASK_MULTILABEL ? n > (size_t)f->n_labels : n != 1) return false;
    s->frames = (int)json_integer_value(json_object_get(j, "frames"));
    s->probability = calloc((size_t)f->n_labels, sizeof *s->probability);
    s->found = calloc(n + 1, sizeof *s->found);
    if (!s->probability || !s->found) return false;
    for (int k = 0; k < f->n_labels; k++) {
        const json_t *p = json_object_get(probability, f->labels[k].name);
        s->probability[k] = json_number_value(p);
        if (!json_is_number(p) || !(s->probability[k] >= 0 && s->probability[k] <= 1)) return false;
    }
    while ((size_t)s->n_found < n) {
        const int i = s->n_found++; /* counted first: what it holds is freed with the rest */
        if (!parse_finding(f, &s->found[i], json_array_get(found, (size_t)i))) return false;
        for (int k = 0; k < i; k++)
            if (s->found[k].label == s->found[i].label) return false;
    }
    return true;
}

/* The last line: how many studies, and the hash of all before it, which starts at `all`. */
static bool parse_end(const findings *f, const json_t *j, const char *all, size_t before)
{
    char digest[HASH_HEX], said[HASH_HEX];
    const json_t *n = json_object_get(j, "studies");
    hash_buffer(all, before, digest);
    return json_is_integer(n) && (size_t)json_integer_value(n) == f->n_studies && text(j, "sha256", said, HASH_HEX) &&
           !strcmp(said, digest);
}

err_code findings_read(const char *path, findings *f, err *e)
{
    *f = (findings){0};
    char *all = NULL, *next;
    size_t bytes, line = 0, capacity = 0;
    bool ended = false;
    err_code rc = file_read(path, BYTES_MAX, &all, &bytes, e);
    if (!rc && strlen(all) != bytes) rc = err_set(e, ERR_FORMAT, __FILE__, __LINE__, "findings: the file holds a NUL");
    for (char *p = all; !rc && p && *p; p = next, line++) {
        next = strchr(p, '\n');
        size_t n = next ? (size_t)(next - p) : strlen(p);
        next = next ? next + 1 : p + n;
        json_t *j = json_loadb(p, n, JSON_REJECT_DUPLICATES, NULL);
        bool good = json_is_object(j);
        if (good && line == 0)
            good = parse_model(f, j);
        else if (good && json_object_get(j, "sha256"))
            ended = good = !*next && n && p[n] == '\n' && parse_end(f, j, all, (size_t)(p - all));
        else if (good) {
            if (f->n_studies == capacity) {
                capacity = capacity ? 2 * capacity : 64;
                study_finding *s = realloc(f->studies, capacity * sizeof *s);
                if (s)
                    f->studies = s;
                else
                    good = false;
            }
            if (good) {
                study_finding *s = &f->studies[f->n_studies++];
                *s = (study_finding){0};
                good = parse_study(f, s, j);
            }
        }
        json_decref(j);
        if (!good) rc = err_set(e, ERR_FORMAT, __FILE__, __LINE__, "findings: line %zu is malformed", line + 1);
    }
    if (!rc && line && !ended)
        rc = err_set(e, ERR_TRUNCATED, __FILE__, __LINE__, "findings: the file ends before its last line");
    if (!rc && line == 0) rc = err_set(e, ERR_FORMAT, __FILE__, __LINE__, "findings: the file is empty");
    free(all);
    if (rc) findings_fini(f);
    return rc;
}

void findings_study_fini(study_finding *s)
{
    for (int i = 0; i < s->n_found; i++) free(s->found[i].evidence);
    free(s->found);
    free(s->probability);
    *s = (study_finding){0};
}

void findings_fini(findings *f)
{
    for (size_t i = 0; i < f->n_studies; i++) findings_study_fini(&f->studies[i]);
    free(f->studies);
    free(f->labels);
    *f = (findings){0};
}

/* A private code: the name in capitals, cut to 10 characters, with 5 hex digits of its hash, so that two names never
 * share one. */
static void private_code(label_code *l)
{
    char digest[HASH_HEX];
    hash_buffer(l->name, strlen(l->name), digest);
    size_t n = 0;
    for (const char *p = l->name; *p && n < 10; p++)
        if (isalnum((unsigned char)*p)) l->value[n++] = (char)toupper((unsigned char)*p);
    snprintf(l->value + n, sizeof l->value - n, "%s%.5s", n ? "-" : "", digest);
    snprintf(l->scheme, sizeof l->scheme, "99RADAPT");
    snprintf(l->meaning, sizeof l->meaning, "%s", l->name);
}

static err_code take(const csv *t, size_t row, const char *column, char *out, size_t size, err *e)
{
    const char *v = csv_at(t, row, csv_column(t, column));
    size_t n = strlen(v);
    if (n == 0 || n >= size)
        FAIL(e, USAGE, "codes: row %zu has a %s of %zu characters, allowed are 1 to %zu", row + 1, column, n, size - 1);
    if (strchr(v, '\\')) FAIL(e, USAGE, "codes: row %zu has a backslash in %s", row + 1, column);
    memcpy(out, v, n + 1);
    return ERR_OK;
}

err_code findings_codes(const char *path, label_code *labels, int n_labels, err *e)
{
    for (int i = 0; i < n_labels; i++) private_code(&labels[i]);
    if (!path || !*path) return ERR_OK;
    static const char *const columns[] = {"label", "code_value", "coding_scheme", "code_meaning"};
    csv t;
    TRY(csv_read(&t, path, e));
    err_code rc = ERR_OK;
    for (int i = 0; i < 4; i++)
        if (csv_column(&t, columns[i]) < 0)
            FAIL_DONE(rc, e, USAGE, "codes: no column '%s' (needed: label,code_value,coding_scheme,code_meaning)",
                      columns[i]);
    for (size_t r = 1; r < t.rows; r++)
        for (int i = 0; i < n_labels; i++) {
            if (strcmp(csv_at(&t, r, csv_column(&t, "label")), labels[i].name)) continue;
            TRY_DONE(rc, take(&t, r, "code_value", labels[i].value, sizeof labels[i].value, e));
            TRY_DONE(rc, take(&t, r, "coding_scheme", labels[i].scheme, sizeof labels[i].scheme, e));
            TRY_DONE(rc, take(&t, r, "code_meaning", labels[i].meaning, sizeof labels[i].meaning, e));
        }
done:
    csv_close(&t);
    return rc;
}
