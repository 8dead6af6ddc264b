/* The order of all frames: SQLite's window functions give the same, an object's frames stay together, and in another
 * work directory nothing changes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "io/catalogue.h"

static char work[64];

static int set_up(void **state)
{
    (void)state;
    snprintf(work, sizeof work, "/tmp/radapt-frames-XXXXXX");
    return mkdtemp(work) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    char command[96];
    snprintf(command, sizeof command, "rm -rf '%s'", work);
    return system(command);
}

static catalogue *open_it(void)
{
    catalogue *c = NULL;
    err e = {0};
    if (catalogue_open(&c, work, &e)) fail_msg("%s", e.msg);
    return c;
}

/* SQLite's own word for it, of what is stored under work. */
static const char order_by_pixels[] =
    "SELECT f.offset FROM frame f JOIN instance i ON i.key=f.instance WHERE i.state='stored'"
    " ORDER BY min(f.checksum) OVER (PARTITION BY i.patient),i.patient,min(f.checksum) OVER (PARTITION BY i.study),"
    "i.study,min(f.checksum) OVER (PARTITION BY i.series),i.series,f.sort_mm,"
    "min(f.checksum) OVER (PARTITION BY i.key),i.key,f.frame";

enum { MANY = 4000 };

/* Instance n of p's series s of study d with its frames; their offsets count on from *at, and are their names below. */
static void store_frames(catalogue *c, int p, int d, int s, int n, const frame_info *f, int frames, uint64_t *at)
{
    char path[64], key[KEY_HEX];
    err e = {0};
    frame_info with[64];
    image_header h = {
        .format = IMAGE_DICOM, .has_pixels = true, .frames = frames, .rows = 1, .columns = 1, .samples = 1};
    snprintf(h.patient_id, sizeof h.patient_id, "%d", p);
    snprintf(h.study_uid, sizeof h.study_uid, "1.2.%d.%d", p, d);
    snprintf(h.series_uid, sizeof h.series_uid, "1.2.%d.%d.%d", p, d, s);
    snprintf(h.sop_uid, sizeof h.sop_uid, "1.2.%d.%d.%d.%d", p, d, s, n);
    snprintf(path, sizeof path, "/x/%d-%d-%d-%d.dcm", p, d, s, n);
    if (catalogue_add(c, path, 100, 5, &h, NULL, NULL, &e)) fail_msg("%s", e.msg);
    assert_true(catalogue_find(c, ID_SOP, h.sop_uid, key));
    for (int k = 0; k < frames; k++) {
        with[k] = f[k];
        with[k].frame = k + 1;
        with[k].rows = with[k].columns = with[k].channels = 1;
        with[k].type = PIXEL_U16;
        with[k].offset = (*at)++;
    }
    if (catalogue_store(c, key, with, (size_t)frames, &e)) fail_msg("%s", e.msg);
}

/* A number of 32 bits, another for each i. */
static int64_t any(uint64_t i)
{
    return (uint32_t)(i * 2654435761u);
}

/* Patients with studies, series, slices and multi-frame objects; some checksums are not known, but one of each instance
 * is, and no two are the same: SQLite does not look further than the lowest. */
static uint64_t store_many(catalogue *c, unsigned seed)
{
    uint64_t at = 0;
    err e = {0};
    srand(seed);
    assert_int_equal(catalogue_begin(c, &e), ERR_OK);
    for (int p = 0; at < MANY; p++)
        for (int d = 0; d < 1 + rand() % 3; d++)
            for (int s = 0; s < 1 + rand() % 3; s++)
                for (int n = 0; n < 1 + rand() % 6; n++) {
                    frame_info f[64];
                    int frames = rand() % 4 ? 1 : 2 + rand() % 62;
                    bool one_place = rand() % 2;
                    for (int k = 0; k < frames; k++)
                        f[k] = (frame_info){.sort_mm = one_place ? 5 : rand() % 8 - 4,
                                            .checksum = k && rand() % 4 == 0 ? -1 : any(at + (uint64_t)k)};
                    store_frames(c, p, d, s, n, f, frames, &at);
                }
    assert_int_equal(catalogue_commit(c, &e), ERR_OK);
    return at;
}

static void test_order(void **state)
{
    (void)state;
    char path[256];
    frame_info *f;
    sqlite3 *db;
    sqlite3_stmt *q;
    size_t n, i = 0;
    err e = {0};
    catalogue *c = open_it();
    assert_int_equal(catalogue_frames(c, &f, &n, &e), ERR_OK); /* of nothing */
    assert_int_equal(n, 0);
    free(f);
    uint64_t stored = store_many(c, 3);
    assert_int_equal(catalogue_frames(c, &f, &n, &e), ERR_OK);
    assert_int_equal(n, stored);
    catalogue_close(c);
    snprintf(path, sizeof path, "%s/catalogue.db", work);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db, order_by_pixels, -1, &q, NULL), SQLITE_OK);
    for (; sqlite3_step(q) == SQLITE_ROW; i++)
        if ((uint64_t)sqlite3_column_int64(q, 0) != f[i].offset)
            fail_msg("frame %zu of %zu is %llu", i, n, (unsigned long long)f[i].offset);
    assert_int_equal(i, n);
    sqlite3_finalize(q);
    sqlite3_close(db);
    free(f);
}

/* A multi-frame object at one place, its frames' checksums falling, among slices: they stay together and in order. */
static void test_order_of_frames(void **state)
{
    (void)state;
    catalogue *c = open_it();
    frame_info object[5], slice = {.sort_mm = 2}, *f;
    uint64_t at = 0;
    size_t n;
    err e = {0};
    for (int k = 0; k < 5; k++) object[k] = (frame_info){.sort_mm = 2, .checksum = 50 - 10 * k};
    slice.checksum = 25; /* between theirs */
    store_frames(c, 1, 1, 1, 1, &slice, 1, &at);
    store_frames(c, 1, 1, 1, 2, object, 5, &at);
    slice.checksum = 5; /* below */
    store_frames(c, 1, 1, 1, 3, &slice, 1, &at);
    slice.sort_mm = -3;
    slice.checksum = 99;
    store_frames(c, 1, 1, 1, 4, &slice, 1, &at);
    assert_int_equal(catalogue_frames(c, &f, &n, &e), ERR_OK);
    static const uint64_t order[] = {7, 6, 1, 2, 3, 4, 5, 0};
    assert_int_equal(n, 8);
    for (size_t i = 0; i < n; i++) assert_int_equal(f[i].offset, order[i]);
    free(f);
    catalogue_close(c);
}

/* The frames' names in their order, of an export that many patients share images in: blank ones, whole slices. */
static void order_in_new_folder(uint64_t *out, size_t most, size_t *n)
{
    enum { PATIENTS = 12, SLICES = 6 };
    frame_info *f;
    uint64_t at = 0;
    err e = {0};
    assert_int_equal(set_up(NULL), 0);
    catalogue *c = open_it();
    for (int p = 0; p < PATIENTS; p++) {
        for (int n_slice = 0; n_slice < SLICES; n_slice++) {
            frame_info slice = {.sort_mm = n_slice / 2, .checksum = 100 + 10 * p + n_slice};
            if (n_slice == 0) slice.checksum = 1; /* blank: everybody's lowest */
            if (n_slice == 5 && p % 2) slice.checksum = 2;
            store_frames(c, p, n_slice % 2, n_slice / 3, n_slice, &slice, 1, &at);
        }
        frame_info object[3] = {{.sort_mm = 9, .checksum = 1}, {.sort_mm = 9, .checksum = 3}, {.sort_mm = 9}};
        object[2].checksum = 1000 + p;
        store_frames(c, p, 0, 0, 100, object, 3, &at);
    }
    assert_int_equal(catalogue_frames(c, &f, n, &e), ERR_OK);
    assert_true(*n == at && *n <= most);
    for (size_t i = 0; i < *n; i++) out[i] = f[i].offset;
    free(f);
    catalogue_close(c);
    assert_int_equal(tear_down(NULL), 0);
}

static void test_order_in_any_folder(void **state)
{
    (void)state;
    enum { FOLDERS = 6, MOST = 256 };
    static uint64_t order[MOST], other[MOST];
    size_t n, m;
    order_in_new_folder(order, MOST, &n);
    for (int k = 1; k < FOLDERS; k++) {
        order_in_new_folder(other, MOST, &m);
        assert_int_equal(m, n);
        for (size_t i = 0; i < n; i++)
            if (other[i] != order[i]) fail_msg("folder %d: frame %zu of %zu is another", k, i, n);
    }
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {T(test_order), T(test_order_of_frames),
                                       cmocka_unit_test(test_order_in_any_folder)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
