/* catalogue_frames.c: the list of all stored frames, in an order that goes by the pixels. It is sorted here and not by
 * SQLite, whose window functions keep every row several times. */
#include <stdlib.h>
#include <string.h>

#include "io/catalogue_db.h"

static void read_frame(sqlite3_stmt *s, frame_info *f)
{
    *f = (frame_info){0};
    catalogue_text(f->patient_key, KEY_HEX, s, 0);
    catalogue_text(f->study_key, KEY_HEX, s, 1);
    catalogue_text(f->series_key, KEY_HEX, s, 2);
    catalogue_text(f->instance_key, KEY_HEX, s, 3);
    catalogue_text(f->modality, sizeof f->modality, s, 4);
    catalogue_text(f->body_part, sizeof f->body_part, s, 5);
    int *whole[] = {&f->frame, &f->rows, &f->columns, &f->channels};
    for (int i = 0; i < 4; i++) *whole[i] = sqlite3_column_int(s, 6 + i);
    f->type = (pixel_type)sqlite3_column_int(s, 10);
    f->shard = sqlite3_column_int(s, 11);
    f->offset = (uint64_t)sqlite3_column_int64(s, 12);
    f->slope = sqlite3_column_double(s, 13);
    f->intercept = sqlite3_column_double(s, 14);
    f->invert = sqlite3_column_int(s, 15) != 0;
    f->has_padding = sqlite3_column_int(s, 16) != 0;
    f->padding_low = sqlite3_column_double(s, 17);
    f->padding_high = sqlite3_column_double(s, 18);
    f->window.present = sqlite3_column_int(s, 19) != 0;
    f->window.function = (voi_function)sqlite3_column_int(s, 20);
    double *real[] = {&f->window.center, &f->window.width,  &f->low,    &f->high,
                      &f->spacing_mm[0], &f->spacing_mm[1], &f->sort_mm};
    for (int i = 0; i < 7; i++) *real[i] = sqlite3_column_double(s, 21 + i);
    f->quirks = (uint32_t)sqlite3_column_int64(s, 28);
    f->checksum = sqlite3_column_type(s, 29) == SQLITE_NULL ? -1 : sqlite3_column_int64(s, 29);
}

/* Frames of a series follow each other in the result, so its range is a mean over one run. */
static void fill_series_range(frame_info *f, size_t n)
{
    for (size_t first = 0, i; first < n; first = i) {
        double low = 0, high = 0;
        for (i = first; i < n && !strcmp(f[i].series_key, f[first].series_key); i++) {
            low += f[i].low;
            high += f[i].high;
        }
        for (size_t k = first; k < i; k++) {
            f[k].series_low = low / (double)(i - first);
            f[k].series_high = high / (double)(i - first);
        }
    }
}

static err_code read_all(catalogue *c, frame_info **out, size_t *n, err *e)
{
    sqlite3_stmt *s;
    size_t capacity = 0;
    int code;
    TRY(catalogue_query(
        c, &s, e,
        "SELECT i.patient,i.study,i.series,i.key,i.modality,f.body_part,f.frame,f.rows,f.columns,"
        "f.channels,f.type,f.shard,f.offset,f.slope,f.intercept,f.invert,f.has_padding,f.padding_low,"
        "f.padding_high,f.voi,f.voi_function,f.voi_center,f.voi_width,f.low,f.high,f.spacing_row,"
        "f.spacing_column,f.sort_mm,f.quirks,f.checksum FROM frame f JOIN instance i ON i.key=f.instance"
        " WHERE i.state='stored'",
        NULL));
    while ((code = sqlite3_step(s)) == SQLITE_ROW) {
        if (*n == capacity) {
            capacity = capacity ? 2 * capacity : 1024;
            frame_info *p = realloc(*out, capacity * sizeof *p);
            if (!p) break;
            *out = p;
        }
        read_frame(s, &(*out)[(*n)++]);
    }
    sqlite3_finalize(s);
    if (code == SQLITE_ROW) FAIL(e, NOMEM, "catalogue: no memory for the frames");
    return code == SQLITE_DONE ? ERR_OK : catalogue_fail(c->db, "listing frames", e);
}

/* What a frame is sorted by: at each level its group's lowest checksum (-1: none is known), a sum that tells groups of
 * other frames apart, and last the pseudonym. */
enum { PATIENT, STUDY, SERIES, INSTANCE, LEVELS };
typedef struct {
    const frame_info *f;
    int64_t lowest[LEVELS];
    uint64_t sum[LEVELS];
} place;

static const char *key_at(const frame_info *f, int level)
{
    const char *const keys[LEVELS] = {f->patient_key, f->study_key, f->series_key, f->instance_key};
    return keys[level];
}

/* By pseudonyms alone, down to that level: groups follow each other. */
static int by_keys(const frame_info *a, const frame_info *b, int level)
{
    int order = 0;
    for (int l = 0; l <= level && !order; l++) order = strcmp(key_at(a, l), key_at(b, l));
    return order;
}

static int by_instance(const void *a, const void *b)
{
    return by_keys(((const place *)a)->f, ((const place *)b)->f, INSTANCE);
}

static int compare_group(const place *a, const place *b, int level)
{
    int order = (a->lowest[level] > b->lowest[level]) - (a->lowest[level] < b->lowest[level]);
    if (!order) order = (a->sum[level] > b->sum[level]) - (a->sum[level] < b->sum[level]);
    return order ? order : strcmp(key_at(a->f, level), key_at(b->f, level));
}

static int by_place(const void *pa, const void *pb)
{
    const place *a = pa, *b = pb;
    int order = 0;
    for (int l = PATIENT; l <= SERIES && !order; l++) order = compare_group(a, b, l);
    if (!order) order = (a->f->sort_mm > b->f->sort_mm) - (a->f->sort_mm < b->f->sort_mm);
    if (!order) order = compare_group(a, b, INSTANCE);
    return order ? order : (a->f->frame > b->f->frame) - (a->f->frame < b->f->frame);
}

/* Sums of such numbers do not depend on the order of the terms, and hardly ever agree by chance (splitmix64). */
static uint64_t mixed(int64_t checksum)
{
    uint64_t x = (uint64_t)checksum + 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

/* p: by_instance. */
static void fill_groups(place *p, size_t n, int level)
{
    for (size_t first = 0, i; first < n; first = i) {
        int64_t lowest = -1;
        uint64_t sum = 0;
        for (i = first; i < n && !by_keys(p[i].f, p[first].f, level); i++) {
            int64_t c = p[i].f->checksum;
            if (c >= 0 && (lowest < 0 || c < lowest)) lowest = c;
            sum += mixed(c);
        }
        for (size_t k = first; k < i; k++) {
            p[k].lowest[level] = lowest;
            p[k].sum[level] = sum;
        }
    }
}

/* f[i] = what p[i] points to within f, cycle by cycle; p is used up. */
static void permute(frame_info *f, place *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (!p[i].f) continue;
        frame_info first = f[i];
        for (size_t to = i, from;; to = from) {
            from = (size_t)(p[to].f - f);
            p[to].f = NULL;
            f[to] = from == i ? first : f[from];
            if (from == i) break;
        }
    }
}

static err_code sort_frames(frame_info *f, size_t n, err *e)
{
    place *p = malloc((n + 1) * sizeof *p);
    if (!p) FAIL(e, NOMEM, "catalogue: no memory to sort %zu frames", n);
    for (size_t i = 0; i < n; i++) p[i].f = &f[i];
    qsort(p, n, sizeof *p, by_instance);
    for (int l = 0; l < LEVELS; l++) fill_groups(p, n, l);
    qsort(p, n, sizeof *p, by_place);
    permute(f, p, n);
    free(p);
    return ERR_OK;
}

err_code catalogue_frames(catalogue *c, frame_info **out, size_t *n, err *e)
{
    *out = NULL;
    *n = 0;
    err_code rc = read_all(c, out, n, e);
    if (!rc) rc = sort_frames(*out, *n, e);
    if (!rc) {
        fill_series_range(*out, *n);
        return ERR_OK;
    }
    free(*out);
    *out = NULL;
    *n = 0;
    return rc;
}
