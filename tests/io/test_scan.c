/* A folder with everything that a PACS export may hold: each bad file costs itself alone, says why, and a second scan
 * does no work. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/csv.h"
#include "base/file.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/stop.h"
#include "io/scan.h"

#define SAMPLES "/usr/lib/python3/dist-packages/pydicom/data/test_files/"

static char base[64], export[96], work[128];

static void sh(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void sh(const char *fmt, ...)
{
    char command[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(command, sizeof command, fmt, ap);
    va_end(ap);
    if (system(command)) fail_msg("%s", command);
}

static int set_up(void **state)
{
    (void)state;
    snprintf(base, sizeof base, "/tmp/radapt-scan-XXXXXX");
    if (!mkdtemp(base)) return -1;
    snprintf(export, sizeof export, "%s/export", base);
    snprintf(work, sizeof work, "%s/work", base);
    return mkdir(export, 0755);
}

static int tear_down(void **state)
{
    (void)state;
    sh("chmod -R u+rwX '%s' && rm -rf '%s'", base, base);
    return 0;
}

static catalogue *open_it(void)
{
    catalogue *c = NULL;
    err e = {0};
    if (catalogue_open(&c, work, &e)) fail_msg("%s", e.msg);
    return c;
}

static scan_result scan_it(scan_options o)
{
    catalogue *c = open_it();
    scan_result r;
    err e = {0};
    if (scan_folder(c, export, &o, &r, &e)) fail_msg("%s", e.msg);
    if (catalogue_write_quarantine(c, &e)) fail_msg("%s", e.msg);
    catalogue_close(c);
    assert_int_equal(r.seen, r.known + r.taken + r.aside);
    return r;
}

/* The reason in quarantine.csv for export/name; "" if it is not there. */
static const char *reason_of(const char *name)
{
    static char reason[64];
    char path[256];
    csv t;
    err e = {0};
    snprintf(path, sizeof path, "%s/quarantine.csv", work);
    if (csv_read(&t, path, &e)) fail_msg("%s", e.msg);
    snprintf(path, sizeof path, "%s/%s", export, name);
    reason[0] = 0;
    for (size_t i = 1; i < t.rows; i++)
        if (!strcmp(csv_at(&t, i, 0), path)) {
            snprintf(reason, sizeof reason, "%s", csv_at(&t, i, 1));
            assert_true(strlen(csv_at(&t, i, 2)) > 0);
            assert_null(strstr(csv_at(&t, i, 2), base)); /* the detail names no path */
        }
    csv_close(&t);
    return reason;
}

static const struct {
    const char *make, *name, *reason; /* make: a shell command run in the export folder; reason "": taken */
} poison[] = {
    {"cp " SAMPLES "CT_small.dcm ct", "ct", ""},
    {"mkdir -p a/b && cp " SAMPLES "MR_small.dcm 'a/b/DOE^JOHN, 1933.jpg'", "a/b/DOE^JOHN, 1933.jpg", ""},
    {"tail -c +133 " SAMPLES "693_J2KI.dcm > nopreamble.bin", "nopreamble.bin", ""},
    {"cp " SAMPLES "image_dfl.dcm deflated", "deflated", "burned-in"}, /* a secondary capture */
    {"cp " SAMPLES "MR_small_RLE.dcm target; ln -s target link", "link", "conflict"},
    {": > empty", "empty", "format"},
    {"echo hello > note.dcm", "note.dcm", "format"},
    {"head -c 5000 " SAMPLES "CT_small.dcm > short", "short", "truncated"},
    {"head -c 200 /dev/zero > zeros", "zeros", "format"},
    {"head -c 100000 /dev/urandom > noise", "noise", "format"},
    {"(head -c 128 /dev/zero; printf DICM; head -c 3000 /dev/urandom) > junk", "junk", "*"},
    {"(head -c 128 /dev/zero; printf DICM) > onlymagic", "onlymagic", "*"},
    {"ln -s /nonexistent broken", "broken", "broken-link"},
    {"mkdir -p d && ln -s d folderlink", "folderlink", "link-to-folder"},
    {"ln -s . loop", "loop", "link-to-folder"},
    {"mkfifo pipe", "pipe", "not-a-file"},
    {"cp " SAMPLES "rtstruct.dcm rtstruct", "rtstruct", "no-pixels"},
    {"cp " SAMPLES "test-SR.dcm sr", "sr", "no-pixels"},
    {"cp " SAMPLES "rtdose.dcm dose", "dose", "not-an-image"},
    {"cp " SAMPLES "liver_1frame.dcm seg", "seg", "*"},
    {"cp " SAMPLES "dicomdirtests/DICOMDIR DICOMDIR", "DICOMDIR", "dicomdir"},
    {"cp " SAMPLES "SC_rgb_rle.dcm sc", "sc", "burned-in"},
    {"cp ct zcopy", "zcopy", "duplicate"},
    {"cp ct zother && printf X | dd of=zother bs=1 seek=30000 conv=notrunc 2>/dev/null", "zother", "conflict"},
    {"head -c 377 " SAMPLES "CT_small.dcm > cut.nii.gz", "cut.nii.gz", "*"},
};
enum { POISON = sizeof poison / sizeof *poison };

static void make_export(void)
{
    if (!file_exists(SAMPLES "CT_small.dcm")) skip();
    for (int i = 0; i < POISON; i++) sh("cd '%s' && { %s; }", export, poison[i].make);
}

static void test_poison(void **state)
{
    (void)state;
    make_export();
    uint64_t taken = 0;
    scan_result r = scan_it((scan_options){.threads = 3});
    for (int i = 0; i < POISON; i++) {
        const char *got = reason_of(poison[i].name);
        bool good = !strcmp(poison[i].reason, "*") ? *got != 0 : !strcmp(poison[i].reason, got);
        if (!good) fail_msg("%s: '%s', not '%s'", poison[i].name, got, poison[i].reason);
        taken += !*got;
    }
    assert_int_equal(r.seen, POISON + 1); /* and the link's target */
    assert_int_equal(r.taken, taken + (*reason_of("target") == 0));
    assert_int_equal(r.known, 0);

    scan_result again = scan_it((scan_options){.threads = 3});
    assert_int_equal(again.known, r.seen);
    assert_int_equal(again.taken + again.aside, 0);

    /* What was set aside for its annotations is looked at again when they are allowed. */
    scan_result keep = scan_it((scan_options){.threads = 3, .keep_burned_in = true});
    assert_int_equal(keep.taken, 2);
    assert_string_equal(reason_of("sc"), "");

    /* A file that changed is read again, and a new one taken. */
    sh("cd '%s' && cp " SAMPLES "MR_small.dcm empty && cp " SAMPLES "waveform_ecg.dcm new", export);
    scan_result later = scan_it((scan_options){.threads = 3});
    assert_int_equal(later.known, r.seen - 1);
    assert_int_equal(later.taken, 0);
    assert_int_equal(later.aside, 2);
    assert_string_equal(reason_of("new"), "no-pixels");
    assert_string_equal(reason_of("empty"), "duplicate");
}

static void test_dry_run(void **state)
{
    (void)state;
    make_export();
    scan_result dry = scan_it((scan_options){.threads = 2, .dry_run = true});
    catalogue *c = open_it();
    catalogue_counts n;
    err e = {0};
    assert_int_equal(catalogue_count(c, &n, &e), ERR_OK);
    assert_int_equal(n.files, 0);
    catalogue_close(c);
    scan_result real = scan_it((scan_options){.threads = 2});
    assert_int_equal(dry.seen, real.seen);
}

/* Which of several files with one SOP Instance UID is kept does not depend on which worker was faster. */
static void test_order_is_fixed(void **state)
{
    (void)state;
    if (!file_exists(SAMPLES "CT_small.dcm")) skip();
    sh("cd '%s' && for i in $(seq 100 139); do cp " SAMPLES
       "CT_small.dcm f$i; printf $i | dd of=f$i bs=1 seek=30000 conv=notrunc "
       "2>/dev/null; done",
       export);
    for (int round = 0; round < 3; round++) {
        snprintf(work, sizeof work, "%s/work%d", base, round);
        scan_result r = scan_it((scan_options){.threads = 1 + 3 * round});
        assert_int_equal(r.taken, 1);
        assert_string_equal(reason_of("f100"), "");
        assert_string_equal(reason_of("f101"), "conflict");
    }
}

/* The work directory may lie inside the export: it is not scanned. */
static void test_work_inside(void **state)
{
    (void)state;
    if (!file_exists(SAMPLES "CT_small.dcm")) skip();
    snprintf(work, sizeof work, "%s/out", export);
    sh("cp " SAMPLES "CT_small.dcm '%s'", export);
    assert_int_equal(scan_it((scan_options){0}).seen, 1);
    scan_result r = scan_it((scan_options){0});
    assert_int_equal(r.seen, 1);
    assert_int_equal(r.known, 1);
}

static void test_bad_folders(void **state)
{
    (void)state;
    catalogue *c = open_it();
    scan_result r;
    scan_options o = {0};
    char path[160];
    err e = {0};
    snprintf(path, sizeof path, "%s/SECRETNAME", base);
    assert_int_equal(scan_folder(c, path, &o, &r, &e), ERR_NOTFOUND);
    assert_null(strstr(e.msg, "SECRET"));
    sh("echo > '%s'", path);
    e = (err){0};
    assert_int_not_equal(scan_folder(c, path, &o, &r, &e), ERR_OK);
    assert_null(strstr(e.msg, "SECRET"));
    e = (err){0};
    assert_int_equal(scan_folder(c, export, &o, &r, &e), ERR_OK);
    assert_int_equal(r.seen, 0);
    catalogue_close(c);
}

/* Stopped before anything or in between: what was read stays, the rest comes next time. */
static void test_stop(void **state)
{
    (void)state;
    make_export();
    catalogue *c = open_it();
    scan_result r;
    scan_options o = {.threads = 2};
    err e = {0};
    stop_request();
    assert_int_equal(scan_folder(c, export, &o, &r, &e), ERR_INTERRUPTED);
    stop_clear();
    catalogue_close(c);
    assert_int_equal(scan_it((scan_options){.threads = 2}).seen, POISON + 1);
}

/* Unreadable for a moment: retried by the next scan. (Root reads everything.) */
static void test_no_permission(void **state)
{
    (void)state;
    if (geteuid() == 0 || !file_exists(SAMPLES "CT_small.dcm")) skip();
    sh("cd '%s' && cp " SAMPLES "CT_small.dcm locked && chmod 0 locked && mkdir dir && chmod 0 dir", export);
    scan_result r = scan_it((scan_options){0});
    assert_int_equal(r.aside, 2);
    sh("cd '%s' && chmod 644 locked", export);
    assert_int_equal(scan_it((scan_options){0}).taken, 1);
}

/* NIfTI: identifiers from the path. */
static void test_nifti(void **state)
{
    (void)state;
    if (!file_exists("/usr/share/mricron/templates/JHU-WhiteMatter-labels-2mm.nii.gz")) skip();
    sh("cd '%s' && mkdir sub && cp /usr/share/mricron/templates/JHU-WhiteMatter-labels-2mm.nii.gz "
       "sub/SECRETNAME.nii.gz",
       export);
    assert_int_equal(scan_it((scan_options){0}).taken, 1);
    catalogue *c = open_it();
    char a[KEY_HEX], b[KEY_HEX];
    assert_true(catalogue_find(c, ID_SOP, "nifti:sub/SECRETNAME.nii.gz", a));
    assert_true(catalogue_find(c, ID_PATH, "sub/SECRETNAME.nii.gz", b));
    assert_true(catalogue_find(c, ID_PATIENT, "nifti:sub/SECRETNAME.nii.gz", b));
    catalogue_close(c);
}

/* Nothing of the export's names reaches the log. */
static void test_log_is_clean(void **state)
{
    (void)state;
    make_export();
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    log_open(f, LOG_JSON, LOG_DEBUG);
    scan_it((scan_options){.threads = 2});
    log_open(stderr, LOG_TEXT, LOG_OFF);
    fclose(f);
    assert_non_null(strstr(text, "scan.done"));
    assert_null(strstr(text, "DOE"));
    assert_null(strstr(text, base));
    free(text);
}

int main(void)
{
    progress_quiet(1);
#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {T(test_poison),        T(test_dry_run),     T(test_order_is_fixed),
                                       T(test_work_inside),   T(test_bad_folders), T(test_stop),
                                       T(test_no_permission), T(test_nifti),       T(test_log_is_clean)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
