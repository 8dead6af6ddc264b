/* cmd_phantom.c: `radapt phantom FOLDER`: a made-up PACS export to try everything on, with the faults that real exports
 * have. Everything is a function of the seed; names, numbers and folders carry the token ZZPHI, so that a search for it
 * finds any leak. DIR.labels.csv lies beside the folder: the export holds only what an archive would hand over. */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/csv.h"
#include "base/file.h"
#include "base/stop.h"
#include "cli/cmd.h"
#include "cli/phantom_dcmtk.h"
#include "cli/phantom_draw.h"
#include "pacs/uid.h"

#define CT_IMAGE "1.2.840.10008.5.1.4.1.1.2"
#define CR_IMAGE "1.2.840.10008.5.1.4.1.1.1"
#define SC_IMAGE "1.2.840.10008.5.1.4.1.1.7"
#define BASIC_SR "1.2.840.10008.5.1.4.1.1.88.11"
#define DIRECTORY "1.2.840.10008.1.3.10"

enum { CT_SIZE = 96, CT_SLICES = 5, CR_ROWS = 144, CR_COLUMNS = 128, ATTRIBUTES_MAX = 48, VALUE_MAX = 72 };

typedef struct {
    const char *folder;
    uint64_t seed;
    err *e;
    FILE *labels;
    size_t patients, studies, images, poisoned;
} phantom;

/* A data set being filled in: values live as long as it does. */
typedef struct {
    phantom_attribute a[ATTRIBUTES_MAX];
    char text[ATTRIBUTES_MAX][VALUE_MAX];
    size_t n;
} record;

__attribute__((format(printf, 3, 4))) static void put(record *r, uint32_t tag, const char *format, ...)
{
    size_t i = 0;
    while (i < r->n && r->a[i].tag != tag) i++;
    if (i == ATTRIBUTES_MAX) return;
    va_list ap;
    va_start(ap, format);
    vsnprintf(r->text[i], VALUE_MAX, format, ap);
    va_end(ap);
    r->a[i] = (phantom_attribute){tag, r->text[i]};
    if (i == r->n) r->n++;
}

static const char *value_of(const record *r, uint32_t tag)
{
    for (size_t i = 0; i < r->n; i++)
        if (r->a[i].tag == tag) return r->text[i];
    return "";
}

/* UID of study s, series e, image i of patient p; levels not meant are -1. */
static err_code put_uid(phantom *x, record *r, uint32_t tag, int p, int s, int e, int i)
{
    char text[96], uid[UID_MAX];
    snprintf(text, sizeof text, "%llu/%d/%d/%d/%d", (unsigned long long)x->seed, p, s, e, i);
    TRY(uid_derive(uid, NULL, x->e, "phantom", text, NULL));
    put(r, tag, "%s", uid);
    return ERR_OK;
}

static err_code put_patient(phantom *x, record *r, int p, int study)
{
    static const char *const names[] = {"Archer", "Baker", "Carter", "Dyer", "Fisher", "Glover", "Hooper", "Mason"};
    put(r, 0x00100010, "ZZPHI%s^%c%d", names[p % 8], 'A' + p % 26, p);
    put(r, 0x00100020, "ZZPHI-ID%04d", p);
    put(r, 0x00100021, "ZZPHI ISSUER");
    put(r, 0x00100030, "19%02d0%d1%d", 30 + p % 60, 1 + p % 9, p % 10);
    put(r, 0x00100040, "%s", p % 2 ? "F" : "M");
    put(r, 0x00101040, "ZZPHI Street %d", p);
    put(r, 0x00080080, "ZZPHI Hospital");
    put(r, 0x00080090, "ZZPHIDoctor^D%d", p % 5);
    put(r, 0x00080050, "ZZPHIA%05d", 10 * p + study);
    put(r, 0x00081030, "ZZPHI chest study");
    put(r, 0x00080020, "2023%02d%02d", 1 + p % 12, 1 + (p + study) % 28);
    put(r, 0x00080030, "%02d%02d00", 8 + p % 10, 7 * p % 60);
    put(r, 0x00200010, "ZZPHIS%d", study);
    return put_uid(x, r, 0x0020000D, p, study, -1, -1);
}

static err_code put_image(phantom *x, record *r, const char *sop_class, const char *modality, int p, int study,
                          int image)
{
    put(r, 0x00080016, "%s", sop_class);
    TRY(put_uid(x, r, 0x00080018, p, study, 1, image));
    TRY(put_uid(x, r, 0x0020000E, p, study, 1, -1));
    put(r, 0x00080060, "%s", modality);
    put(r, 0x00080008, "ORIGINAL\\PRIMARY%s", !strcmp(modality, "CT") ? "\\AXIAL" : "");
    put(r, 0x00080070, "Phantom Works %d", p % 3);
    put(r, 0x00180015, "CHEST");
    put(r, 0x00200011, "1");
    put(r, 0x00200013, "%d", image + 1);
    return ERR_OK;
}

/* Folders and names as archives make them: with names in them, deep, with and without extension. */
static err_code image_path(phantom *x, char path[FILE_PATH_MAX], const record *r, int p, int study, int image)
{
    char folder[FILE_PATH_MAX];
    switch (p % 3) {
    case 0:
        TRY(file_path(folder, x->e, "%s/%s_%s/%s", x->folder, value_of(r, 0x00100010), value_of(r, 0x00100020),
                      value_of(r, 0x00200010)));
        TRY(file_path(path, x->e, "%s/IM%06d", folder, image));
        break;
    case 1:
        TRY(file_path(folder, x->e, "%s/%s/Study %d/%s", x->folder, value_of(r, 0x00100020), study,
                      value_of(r, 0x00080060)));
        TRY(file_path(path, x->e, "%s/%s.dcm", folder, value_of(r, 0x00080018)));
        break;
    default:
        TRY(file_path(folder, x->e, "%s/%08X/%08X", x->folder, 0xA5000u + (unsigned)p, 0xB000u + (unsigned)study));
        TRY(file_path(path, x->e, "%s/%08X", folder, 0xC0000u + (unsigned)image));
    }
    return file_mkdirs(folder, x->e);
}

static err_code write_ct(phantom *x, const phantom_body *body, int p, int study, phantom_syntax syntax)
{
    static float hu[CT_SIZE * CT_SIZE];
    static uint16_t stored[CT_SIZE * CT_SIZE];
    bool is_signed = p % 4 == 1; /* as some scanners do: signed HU, -2000 outside the circle */
    for (int i = 0; i < CT_SLICES; i++) {
        record r = {.n = 0};
        char path[FILE_PATH_MAX];
        float z = 2 * ((float)i + 0.5f) / CT_SLICES - 1;
        rng noise = rng_at(x->seed, RNG_PHANTOM, 1000 + (uint64_t)p, (uint32_t)(100 * study + i));
        phantom_draw_ct(body, CT_SIZE, z, is_signed ? -2000 : -1024, &noise, hu);
        for (size_t k = 0; k < CT_SIZE * CT_SIZE; k++) {
            float v = hu[k] < -1024 && !is_signed ? -1024 : hu[k] > 3000 ? 3000 : hu[k];
            stored[k] = (uint16_t)(int16_t)lrintf(is_signed ? v : v + 1024);
        }
        TRY(put_patient(x, &r, p, study));
        TRY(put_image(x, &r, CT_IMAGE, "CT", p, study, i));
        put(&r, 0x00280030, "3.5\\3.5");
        put(&r, 0x00180050, "5");
        put(&r, 0x00180060, "120");
        put(&r, 0x00185100, "HFS");
        put(&r, 0x00200012, "1");
        put(&r, 0x00201040, "%s", "");
        put(&r, 0x00200032, "-168\\-168\\%g", -900.0 + 24 * i);
        put(&r, 0x00200037, "1\\0\\0\\0\\1\\0");
        TRY(put_uid(x, &r, 0x00200052, p, study, 2, -1));
        put(&r, 0x00281052, "%d", is_signed ? 0 : -1024);
        put(&r, 0x00281053, "1");
        put(&r, 0x00281050, "40\\-600");
        put(&r, 0x00281051, "400\\1500");
        TRY(image_path(x, path, &r, p, study, i));
        phantom_pixels pixels = {CT_SIZE, CT_SIZE, is_signed ? 16 : 12, is_signed, false, stored};
        TRY(phantom_dcmtk_write(path, r.a, r.n, &pixels, syntax, x->e));
        x->images++;
    }
    return ERR_OK;
}

static err_code write_cr(phantom *x, const phantom_body *body, int p, int study, phantom_syntax syntax)
{
    static float value[CR_ROWS * CR_COLUMNS];
    static uint16_t stored[CR_ROWS * CR_COLUMNS];
    record r = {.n = 0};
    char path[FILE_PATH_MAX];
    bool inverted = p % 3 == 2;
    int bits = p % 2 ? 12 : 10, top = (1 << bits) - 1;
    rng noise = rng_at(x->seed, RNG_PHANTOM, 1000 + (uint64_t)p, (uint32_t)(100 * study + 99));
    phantom_draw_cr(body, CR_ROWS, CR_COLUMNS, &noise, value);
    for (size_t k = 0; k < CR_ROWS * CR_COLUMNS; k++) {
        int v = (int)lrintf(value[k] * (float)top);
        stored[k] = (uint16_t)(inverted ? top - v : v);
    }
    TRY(put_patient(x, &r, p, study));
    TRY(put_image(x, &r, CR_IMAGE, "CR", p, study, 0));
    put(&r, 0x00181164, "3\\3");
    put(&r, 0x00185101, "PA");
    put(&r, 0x00200020, "L\\F");
    if (p % 4 != 3) {
        put(&r, 0x00281050, "%d", (top + 1) / 2);
        put(&r, 0x00281051, "%d", top + 1);
    }
    TRY(image_path(x, path, &r, p, study, 0));
    phantom_pixels pixels = {CR_ROWS, CR_COLUMNS, bits, false, inverted, stored};
    TRY(phantom_dcmtk_write(path, r.a, r.n, &pixels, syntax, x->e));
    x->images++;
    return ERR_OK;
}

static err_code write_patient(phantom *x, int p)
{
    rng r = rng_at(x->seed, RNG_PHANTOM, (uint64_t)p, 0), pair = rng_at(x->seed, RNG_PHANTOM, (uint64_t)p / 2, 1);
    bool lesion = (rng_u32(&pair) & 1) ^ (p & 1); /* one of two; in step with nothing else */
    phantom_body body = phantom_draw_body(lesion, &r);
    for (int study = 0; study < (p % 3 ? 1 : 2); study++) {
        TRY(stop_check(x->e));
        phantom_syntax syntax =
            (phantom_syntax)((p * 2 + study + (int)(x->seed % PHANTOM_SYNTAXES)) % PHANTOM_SYNTAXES);
        bool ct = study ? true : p % 3 == 1;
        if (ct && syntax == PHANTOM_JPEG_LOSSLESS && p % 4 == 1) syntax = PHANTOM_JPEG_LS; /* signed */
        TRY(ct ? write_ct(x, &body, p, study, syntax) : write_cr(x, &body, p, study, syntax));
        record key = {.n = 0};
        TRY(put_patient(x, &key, p, study));
        csv_field(x->labels, value_of(&key, 0x00100020));
        fputc(',', x->labels);
        csv_field(x->labels, value_of(&key, 0x0020000D));
        fprintf(x->labels, ",%s\n", lesion ? "lesion" : "normal");
        x->studies++;
    }
    x->patients++;
    return ERR_OK;
}

/* --- what real exports have besides images
 * ------------------------------------------------------------------------------------------------------------- */

static err_code poison_path(phantom *x, const char *name, char path[FILE_PATH_MAX])
{
    x->poisoned++;
    return file_path(path, x->e, "%s/zz ZZPHI unsorted/%s", x->folder, name);
}

/* A small radiograph of patient 0, in a study of its own unless changed. */
static err_code poison_record(phantom *x, record *r, int number)
{
    TRY(put_patient(x, r, 0, 900 + number));
    return put_image(x, r, CR_IMAGE, "CR", 0, 900 + number, number);
}

static err_code write_poison_image(phantom *x, const char *name, const record *r, phantom_syntax syntax)
{
    static uint16_t stored[64 * 64];
    char path[FILE_PATH_MAX];
    for (unsigned k = 0; k < 64 * 64; k++) stored[k] = (uint16_t)((k * 7 + k / 64 * 13) & 0x3ff);
    phantom_pixels pixels = {64, 64, 10, false, false, stored};
    TRY(poison_path(x, name, path));
    return phantom_dcmtk_write(path, r->a, r->n, &pixels, syntax, x->e);
}

/* Reads a file back, so that it can be written damaged. */
static err_code reread(phantom *x, const char *name, char **bytes, size_t *n, char path[FILE_PATH_MAX])
{
    TRY(file_path(path, x->e, "%s/zz ZZPHI unsorted/%s", x->folder, name));
    return file_read(path, 1 << 20, bytes, n, x->e);
}

static err_code write_damaged(phantom *x)
{
    record r = {.n = 0};
    char path[FILE_PATH_MAX], *bytes;
    size_t n;
    TRY(poison_record(x, &r, 1));
    TRY(write_poison_image(x, "truncated.dcm", &r, PHANTOM_EXPLICIT));
    TRY(reread(x, "truncated.dcm", &bytes, &n, path));
    err_code rc = file_write(path, bytes, n - 5000, x->e);
    free(bytes);
    TRY(rc);
    TRY(poison_record(x, &r, 2));
    TRY(write_poison_image(x, "corrupt", &r, PHANTOM_JPEG_LOSSLESS));
    TRY(reread(x, "corrupt", &bytes, &n, path));
    for (size_t i = 4; i + 4 < n; i++) /* the frame header: an impossible size and precision */
        if ((unsigned char)bytes[i] == 0xff && (unsigned char)bytes[i + 1] == 0xc3) memset(bytes + i + 4, 0xee, 9);
    rc = file_write(path, bytes, n, x->e);
    free(bytes);
    return rc;
}

static err_code write_not_images(phantom *x)
{
    static const char letter[] = "Dear colleague, ZZPHIArcher^A0 will come back on Monday.\n";
    char path[FILE_PATH_MAX], noise[512];
    TRY(poison_path(x, "empty.dcm", path));
    TRY(file_write(path, "", 0, x->e));
    TRY(poison_path(x, "letter.dcm", path));
    TRY(file_write(path, letter, sizeof letter - 1, x->e));
    TRY(poison_path(x, "noise.bin", path));
    rng r = rng_at(x->seed, RNG_PHANTOM, 7, 7);
    for (size_t i = 0; i < sizeof noise; i++) noise[i] = (char)rng_u32(&r);
    TRY(file_write(path, noise, sizeof noise, x->e));
    TRY(poison_path(x, "gone", path));
    if (symlink("/nonexistent/ZZPHI", path) && errno != EEXIST) {
        err *e = x->e;
        FAIL_ERRNO(e, "phantom: cannot make a link");
    }
    record sr = {.n = 0};
    TRY(poison_record(x, &sr, 3));
    put(&sr, 0x00080016, BASIC_SR);
    put(&sr, 0x00080060, "SR");
    TRY(poison_path(x, "report", path));
    TRY(phantom_dcmtk_write(path, sr.a, sr.n, NULL, PHANTOM_EXPLICIT, x->e));
    record directory = {.n = 0};
    put(&directory, 0x00080016, DIRECTORY);
    TRY(put_uid(x, &directory, 0x00080018, 0, 904, 1, 1));
    put(&directory, 0x00041130, "ZZPHISET");
    TRY(poison_path(x, "DICOMDIR", path));
    return phantom_dcmtk_write(path, directory.a, directory.n, NULL, PHANTOM_EXPLICIT, x->e);
}

static err_code write_twins(phantom *x)
{
    record first = {.n = 0}, capture = {.n = 0};
    char path[FILE_PATH_MAX], *bytes;
    size_t n;
    TRY(put_patient(x, &first, 0, 0)); /* the radiograph of patient 0 (IM000000) again, and once more but different */
    TRY(put_image(x, &first, CR_IMAGE, "CR", 0, 0, 0));
    TRY(image_path(x, path, &first, 0, 0, 0));
    TRY(file_read(path, 1 << 20, &bytes, &n, x->e));
    err_code rc = poison_path(x, "copy of IM000000", path);
    if (!rc) rc = file_write(path, bytes, n, x->e);
    free(bytes);
    TRY(rc);
    TRY(write_poison_image(x, "other IM000000", &first, PHANTOM_EXPLICIT));
    TRY(poison_record(x, &capture, 5));
    put(&capture, 0x00080016, SC_IMAGE);
    put(&capture, 0x00080064, "WSD");
    put(&capture, 0x00280301, "YES");
    return write_poison_image(x, "screen.dcm", &capture, PHANTOM_EXPLICIT);
}

static err_code write_poison(phantom *x)
{
    char folder[FILE_PATH_MAX];
    TRY(file_path(folder, x->e, "%s/zz ZZPHI unsorted", x->folder));
    TRY(file_mkdirs(folder, x->e));
    TRY(write_not_images(x));
    TRY(write_damaged(x));
    return write_twins(x);
}

err_code cmd_phantom(const options *o, int *status, err *e)
{
    if (o->n_arguments != 1) FAIL(e, USAGE, "phantom wants one folder: radapt phantom DIR");
    phantom x = {.folder = o->arguments[0], .seed = (uint64_t)options_int(o, "seed"), .e = e};
    int patients = (int)options_int(o, "patients");
    char path[FILE_PATH_MAX];
    size_t n = strlen(x.folder);
    while (n > 1 && x.folder[n - 1] == '/') n--;
    TRY(file_path(path, e, "%.*s.labels.csv", (int)n, x.folder));
    *status = STATUS_DONE;
    if (options_flag(o, "dry-run")) {
        printf("would write an export of %d patients into %s and its labels into %s\n", patients, x.folder, path);
        return ERR_OK;
    }
    if (file_exists(x.folder) && rmdir(x.folder)) /* an empty folder may be taken over */
        FAIL(e, USAGE, "%.120s is there already and not empty", x.folder);
    TRY(file_mkdirs(x.folder, e));
    file_writer *w;
    TRY(file_begin(&w, path, e));
    x.labels = w->f;
    fputs("patient_id,study_uid,label\n", w->f);
    err_code rc = ERR_OK;
    for (int p = 0; p < patients && !rc; p++) rc = write_patient(&x, p);
    if (!rc && options_flag(o, "poison")) rc = write_poison(&x);
    if (rc) {
        file_abandon(&w);
        return rc;
    }
    TRY(file_commit(&w, e));
    if (options_flag(o, "json"))
        printf("{\"patients\":%zu,\"studies\":%zu,\"images\":%zu,\"unusable_files\":%zu}\n", x.patients, x.studies,
               x.images, x.poisoned);
    else
        printf("%zu patients, %zu studies, %zu images and %zu files that cannot be used are in %s\n"
               "Their labels: %s\n",
               x.patients, x.studies, x.images, x.poisoned, x.folder, path);
    return ERR_OK;
}
