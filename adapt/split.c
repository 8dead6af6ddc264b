/* split.c: new patients of a class are shuffled (seeded) and fill first the test, then the validation part up to their
 * shares of all patients of that class; the rest trains. The order before the shuffle is that of the label table, so
 * that the split does not depend on the work directory's pseudonyms. */
#include "adapt/split.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/csv.h"
#include "base/file.h"
#include "base/log.h"
#include "base/rng.h"

static const char *const names[] = {"train", "validation", "test"};

typedef struct {
    char key[KEY_HEX];
    split_part part;
    int label; /* stratum of most of the patient's cases; -1: none here */
} member;

/* Everyone in split.csv, in its order, and then the new ones. */
typedef struct {
    member *m;
    size_t n, capacity;
    member **sorted; /* (n) by key */
} roll;

const char *split_name(split_part part)
{
    return part < SPLIT_NONE ? names[part] : "none";
}

static int by_key(const void *a, const void *b)
{
    const member *const *x = a, *const *y = b;
    return strcmp((*x)->key, (*y)->key);
}

static err_code add(roll *r, const char *key, split_part part, int label, err *e)
{
    if (r->n == r->capacity) {
        size_t want = r->capacity ? 2 * r->capacity : 256;
        member *m = realloc(r->m, want * sizeof *m);
        if (!m) FAIL(e, NOMEM, "split: no memory for %zu patients", want);
        r->m = m;
        r->capacity = want;
    }
    r->m[r->n] = (member){.part = part, .label = label};
    memcpy(r->m[r->n].key, key, KEY_HEX);
    r->n++;
    return ERR_OK;
}

static err_code sort(roll *r, err *e)
{
    member **s = realloc(r->sorted, (r->n + 1) * sizeof(member *));
    if (!s) FAIL(e, NOMEM, "split: no memory for %zu patients", r->n);
    r->sorted = s;
    for (size_t i = 0; i < r->n; i++) s[i] = &r->m[i];
    qsort(s, r->n, sizeof(member *), by_key);
    return ERR_OK;
}

static member *find(const roll *r, const char *key)
{
    member wanted;
    const member *w = &wanted;
    memcpy(wanted.key, key, KEY_HEX);
    member **m = r->n ? bsearch(&w, r->sorted, r->n, sizeof(member *), by_key) : NULL;
    return m ? *m : NULL;
}

static err_code load(roll *r, const char *path, err *e)
{
    csv t;
    err_code rc = ERR_OK;
    TRY(csv_read(&t, path, e));
    int key = csv_column(&t, "patient_key"), part = csv_column(&t, "part");
    if (key < 0 || part < 0) FAIL_DONE(rc, e, FORMAT, "split.csv: needs the columns patient_key and part");
    for (size_t row = 1; row < t.rows; row++) {
        const char *k = csv_at(&t, row, key), *p = csv_at(&t, row, part);
        if (strlen(k) != KEY_HEX - 1 || strspn(k, "0123456789abcdef") != KEY_HEX - 1)
            FAIL_DONE(rc, e, FORMAT, "split.csv: row %zu does not hold a patient's pseudonym", row + 1);
        int found = 0;
        while (found < 3 && strcmp(p, names[found])) found++;
        if (found == 3) FAIL_DONE(rc, e, FORMAT, "split.csv: row %zu: part is not train, validation or test", row + 1);
        TRY_DONE(rc, add(r, k, (split_part)found, -1, e));
    }
    TRY_DONE(rc, sort(r, e));
    for (size_t i = 1; i < r->n; i++)
        if (!strcmp(r->sorted[i - 1]->key, r->sorted[i]->key))
            FAIL_DONE(rc, e, CONFLICT, "split.csv: a patient is in it twice");
done:
    csv_close(&t);
    return rc;
}

static err_code save(const roll *r, const char *path, err *e)
{
    file_writer *w;
    TRY(file_begin(&w, path, e));
    fputs("patient_key,part\n", w->f);
    for (size_t i = 0; i < r->n; i++) fprintf(w->f, "%s,%s\n", r->m[i].key, names[r->m[i].part]);
    return file_commit(&w, e);
}

/* --- the patients of the cases */

typedef struct {
    const char *key;
    size_t first; /* their first case */
    int label;    /* of most of their cases, the smaller where two are level */
} patient;

typedef struct {
    const labelled_case *c;
    size_t index;
} indexed_case;

static int by_patient(const void *a, const void *b)
{
    const indexed_case *x = a, *y = b;
    int order = strcmp(x->c->patient_key, y->c->patient_key);
    if (!order) order = (x->c->stratum > y->c->stratum) - (x->c->stratum < y->c->stratum);
    return order ? order : (x->index > y->index) - (x->index < y->index);
}

static int by_first(const void *a, const void *b)
{
    const patient *x = a, *y = b;
    return (x->first > y->first) - (x->first < y->first);
}

/* (n_cases at most), *n of them, in the order of their first cases; the caller frees. */
static patient *patients_of(const cohort *c, size_t *n, err *e)
{
    indexed_case *x = malloc((c->n_cases + 1) * sizeof *x);
    patient *p = malloc((c->n_cases + 1) * sizeof *p);
    *n = 0;
    if (!x || !p) {
        free(x);
        free(p);
        err_set(e, ERR_NOMEM, __FILE__, __LINE__, "split: no memory for %zu cases", c->n_cases);
        return NULL;
    }
    for (size_t i = 0; i < c->n_cases; i++) x[i] = (indexed_case){&c->cases[i], i};
    qsort(x, c->n_cases, sizeof *x, by_patient);
    for (size_t i = 0, run = 0, most = 0; i < c->n_cases; i++) { /* run: cases of this patient in this stratum */
        bool same = i && !strcmp(x[i - 1].c->patient_key, x[i].c->patient_key);
        if (!same) {
            p[(*n)++] = (patient){x[i].c->patient_key, x[i].index, -1};
            most = 0;
        }
        run = same && x[i - 1].c->stratum == x[i].c->stratum ? run + 1 : 1;
        patient *last = &p[*n - 1];
        if (x[i].index < last->first) last->first = x[i].index;
        if (run > most) {
            most = run;
            last->label = x[i].c->stratum;
        }
    }
    free(x);
    qsort(p, *n, sizeof *p, by_first);
    return p;
}

/* --- assignment */

/* How many of n patients a share is: at least one where three are there for the three parts. */
static size_t share_of(float share, size_t n)
{
    size_t k = (size_t)llround((double)share * (double)n);
    if (n < 3 || !(share > 0)) return 0;
    return k ? k : 1;
}

/* The new patients of class k (part SPLIT_NONE) get their part. */
static err_code assign_class(roll *r, int k, const split_options *o, err *e)
{
    size_t n = 0, fresh = 0, have[3] = {0};
    uint32_t *order = malloc((r->n + 1) * sizeof *order);
    if (!order) FAIL(e, NOMEM, "split: no memory for %zu patients", r->n);
    for (size_t i = 0; i < r->n; i++) {
        if (r->m[i].label != k) continue;
        n++;
        if (r->m[i].part == SPLIT_NONE)
            order[fresh++] = (uint32_t)i;
        else
            have[r->m[i].part]++;
    }
    rng draw = rng_at(o->seed, RNG_SPLIT, (uint64_t)(n - fresh), (uint32_t)k);
    rng_shuffle(&draw, order, fresh);
    size_t test = share_of(o->test, n), validation = share_of(o->validation, n), next = 0;
    while (n >= 3 && test + validation >= n) { /* someone must train */
        if (validation > 1 || (validation && !test))
            validation--;
        else
            test--;
    }
    for (; next < fresh && have[SPLIT_TEST] < test; next++, have[SPLIT_TEST]++) r->m[order[next]].part = SPLIT_TEST;
    for (; next < fresh && have[SPLIT_VALIDATION] < validation; next++, have[SPLIT_VALIDATION]++)
        r->m[order[next]].part = SPLIT_VALIDATION;
    for (; next < fresh; next++) r->m[order[next]].part = SPLIT_TRAIN;
    free(order);
    return ERR_OK;
}

/* Patients of c that r lacks are added and assigned; *grew: there were some. */
static err_code assign(roll *r, const cohort *c, const split_options *o, bool *grew, err *e)
{
    size_t n, before = r->n;
    patient *p = patients_of(c, &n, e);
    if (!p) return err_failed(ERR_NOMEM);
    err_code rc = ERR_OK;
    for (size_t i = 0; i < n; i++) {
        member *m = find(r, p[i].key);
        if (m) {
            m->label = p[i].label;
            p[i].key = NULL;
        }
    }
    for (size_t i = 0; i < n; i++)
        if (p[i].key) TRY_DONE(rc, add(r, p[i].key, SPLIT_NONE, p[i].label, e));
    for (int k = 0; k < c->n_strata; k++) TRY_DONE(rc, assign_class(r, k, o, e));
    rc = sort(r, e);
done:
    *grew = r->n > before;
    free(p);
    return rc;
}

/* Says how many patients are where, and which parts will not tell much. */
static void tell(const roll *r, const cohort *c)
{
    size_t part[3] = {0}, missing[3] = {0};
    for (int k = 0; k < c->n_strata; k++) {
        size_t of_class[3] = {0};
        for (size_t i = 0; i < r->n; i++)
            if (r->m[i].label == k) of_class[r->m[i].part]++;
        for (int i = 0; i < 3; i++) {
            part[i] += of_class[i];
            missing[i] += !of_class[i];
        }
    }
    log_event(LOG_INFO, "split", "train", LOG_INT(part[0]), "validation", LOG_INT(part[1]), "test", LOG_INT(part[2]),
              NULL);
    for (int i = 0; i < 3; i++)
        if (missing[i])
            log_event(LOG_WARN, "split.class_missing", "part", LOG_STR(names[i]), "classes_without_a_patient",
                      LOG_INT(missing[i]), "classes", LOG_INT(c->n_strata), NULL);
}

err_code split_hash(const char *work, char out[HASH_HEX], err *e)
{
    char path[FILE_PATH_MAX];
    TRY(file_path(path, e, "%s/split.csv", work));
    *out = 0;
    return file_exists(path) ? hash_file(path, out, e) : ERR_OK;
}

err_code split_apply(cohort *c, const char *work, const split_options *o, err *e)
{
    char path[FILE_PATH_MAX];
    roll r = {0};
    bool grew = false;
    err_code rc = ERR_OK;
    c->split_hash[0] = 0;
    if (!(o->validation >= 0 && o->test >= 0 && o->validation + o->test < 1))
        FAIL(e, USAGE, "split: the shares of validation and test must be at least 0 and together below 1");
    TRY(file_path(path, e, "%s/split.csv", work));
    bool there = file_exists(path);
    if (there) TRY_DONE(rc, load(&r, path, e));
    if (c->n_cases) TRY_DONE(rc, assign(&r, c, o, &grew, e));
    if (grew) TRY_DONE(rc, save(&r, path, e));
    if (there || grew) TRY_DONE(rc, hash_file(path, c->split_hash, e));
    for (size_t i = 0; i < c->n_frames; i++) {
        bool same = i && !strcmp(c->frames[i].patient_key, c->frames[i - 1].patient_key);
        const member *m = same ? NULL : find(&r, c->frames[i].patient_key);
        c->part[i] = same ? c->part[i - 1] : m ? m->part : SPLIT_TRAIN;
    }
    for (size_t i = 0; i < c->n_cases; i++) c->cases[i].part = find(&r, c->cases[i].patient_key)->part;
    if (c->n_cases) tell(&r, c);
done:
    free(r.m);
    free(r.sorted);
    return rc;
}
