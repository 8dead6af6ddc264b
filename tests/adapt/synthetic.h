/* synthetic.h: a work directory made by a test: a catalogue and a frame store of small grey images, no files behind
 * them.
 *
 * Patient p has id "P<p>"; study s of it "1.2.<p>.<s>", series "1.2.<p>.<s>.<k>", instance "1.2.<p>.<s>.<k>.<i>", path
 * "/x/<p>/<s>/<k>/<i>.dcm". */
#ifndef RADAPT_TESTS_SYNTHETIC_H
#define RADAPT_TESTS_SYNTHETIC_H
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/rng.h"
#include "io/catalogue.h"
#include "io/frame_store.h"

typedef struct {
    char work[256];
    catalogue *catalogue;
    frame_store *store;
    uint64_t images;
} synthetic;

#define ASSERT_OK(call)                                                                                                \
    do {                                                                                                               \
        err_code code_ = (call);                                                                                       \
        if (code_) fail_msg("%s: %s", err_name(code_), e.msg);                                                         \
    } while (0)

static inline void synthetic_open(synthetic *s)
{
    err e = {0};
    *s = (synthetic){0};
    snprintf(s->work, sizeof s->work, "%s/radapt-test-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    assert_non_null(mkdtemp(s->work));
    ASSERT_OK(catalogue_open(&s->catalogue, s->work, &e));
    ASSERT_OK(frame_store_open(&s->store, s->work, &e));
    ASSERT_OK(catalogue_begin(s->catalogue, &e));
}

/* After the last image. */
static inline void synthetic_seal(synthetic *s)
{
    err e = {0};
    ASSERT_OK(catalogue_commit(s->catalogue, &e));
    frame_store_close(s->store);
    s->store = NULL;
}

static inline void synthetic_close(synthetic *s)
{
    char command[FILE_PATH_MAX + 16];
    catalogue_close(s->catalogue);
    frame_store_close(s->store);
    snprintf(command, sizeof command, "rm -rf '%s'", s->work);
    assert_int_equal(system(command), 0);
}

static inline void synthetic_key(const synthetic *s, id_kind kind, const char *value, char out[KEY_HEX])
{
    if (!catalogue_find(s->catalogue, kind, value, out)) fail_msg("not in the catalogue: %s", value);
}

/* One instance with `frames` frames of rows x columns pixels, stored. bright: a square at a random place is added to
 * a noisy background: the class that a model can see. */
static inline void synthetic_image(synthetic *s, int p, int study, int series, int i, int frames, int rows, int columns,
                                   bool bright)
{
    err e = {0};
    image_header h = {.format = IMAGE_DICOM, .rows = rows, .columns = columns, .frames = frames, .samples = 1};
    char path[64], key[KEY_HEX];
    snprintf(h.patient_id, sizeof h.patient_id, "P%d", p);
    snprintf(h.study_uid, sizeof h.study_uid, "1.2.%d.%d", p, study);
    snprintf(h.series_uid, sizeof h.series_uid, "1.2.%d.%d.%d", p, study, series);
    snprintf(h.sop_uid, sizeof h.sop_uid, "1.2.%d.%d.%d.%d", p, study, series, i);
    snprintf(h.modality, sizeof h.modality, "CR");
    snprintf(path, sizeof path, "/x/%d/%d/%d/%d.dcm", p, study, series, i);
    ASSERT_OK(catalogue_add(s->catalogue, path, 1, 1, &h, NULL, NULL, &e));
    synthetic_key(s, ID_SOP, h.sop_uid, key);

    frame_info *f = calloc((size_t)frames, sizeof *f);
    uint16_t *pixels = malloc((size_t)rows * (size_t)columns * sizeof *pixels);
    for (int k = 0; k < frames; k++) {
        rng r = rng_at(11, RNG_TEST, s->images++, 0);
        for (int j = 0; j < rows * columns; j++) pixels[j] = (uint16_t)(200 + rng_below(&r, 200));
        int side = (rows < columns ? rows : columns) / 2, top = (int)rng_below(&r, (uint32_t)(rows - side + 1));
        int left = (int)rng_below(&r, (uint32_t)(columns - side + 1));
        for (int y = 0; bright && y < side; y++)
            for (int x = 0; x < side; x++)
                pixels[(top + y) * columns + left + x] = (uint16_t)(700 + rng_below(&r, 200));
        f[k] = (frame_info){.frame = k + 1,
                            .rows = rows,
                            .columns = columns,
                            .channels = 1,
                            .type = PIXEL_U16,
                            .slope = 1,
                            .low = 200,
                            .high = 900,
                            .window = {true, VOI_LINEAR, 500, 1000},
                            .sort_mm = i};
        snprintf(f[k].modality, sizeof f[k].modality, "CR");
        memcpy(f[k].instance_key, key, KEY_HEX);
        ASSERT_OK(frame_store_put(s->store, &f[k], pixels, &e));
    }
    ASSERT_OK(frame_store_seal(s->store, f, (size_t)frames, &e));
    ASSERT_OK(catalogue_store(s->catalogue, key, f, (size_t)frames, &e));
    free(pixels);
    free(f);
}

static inline void synthetic_write(const synthetic *s, const char *name, const char *text, char path[FILE_PATH_MAX])
{
    err e = {0};
    ASSERT_OK(file_path(path, &e, "%s/%s", s->work, name));
    ASSERT_OK(file_write(path, text, strlen(text), &e));
}

#endif
