/* A folder with everything that a PACS export may hold: each bad file costs itself alone, says why, and a second scan
 * does no work. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
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
#define TEMPLATE "/usr/share/mricron/templates/JHU-WhiteMatter-labels-2mm.nii.gz"

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

/* The reason in quarantine.csv for export/name, "" if it is not there; detail_of_last: what is said beside it. */
static char detail_of_last[128];
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
            snprintf(detail_of_last, sizeof detail_of_last, "%s", csv_at(&t, i, 2));
            assert_true(*detail_of_last);
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

/* What the walk sets aside says what it is, not what it might be. */
static void test_says_why(void **state)
{
    (void)state;
    static const struct {
        const char *make, *name, *reason, *detail;
    } rows[] = {
        {"mkdir d && ln -s d folder", "folder", "link-to-folder", "a symbolic link to a folder"},
        {"ln -s nowhere broken", "broken", "broken-link", "No such file or directory"},
        {"ln -s itself itself", "itself", "broken-link", "Too many levels of symbolic links"},
        {"mkfifo pipe", "pipe", "not-a-file", "a pipe, socket or device"},
        {"mkdir -p $(printf 'x/%.0s' $(seq 66))", "", "too-deep", "a folder nested too deep"},
    };
    enum { ROWS = sizeof rows / sizeof *rows };
    char deep[160] = "";
    for (int i = 0; i < 65; i++) strcat(deep, i ? "/x" : "x");
    for (int i = 0; i < ROWS; i++) sh("cd '%s' && { %s; }", export, rows[i].make);
    assert_int_equal(scan_it((scan_options){.threads = 1}).aside, ROWS);
    for (int i = 0; i < ROWS; i++) {
        const char *reason = reason_of(*rows[i].name ? rows[i].name : deep);
        if (strcmp(reason, rows[i].reason) || strncmp(detail_of_last, rows[i].detail, strlen(rows[i].detail)))
            fail_msg("%s: %s, %s", rows[i].name, reason, detail_of_last);
    }
}

/* Short of descriptors, no file is called bad: each is taken, or set aside as unreadable and taken by the next scan. */
static void test_few_descriptors(void **state)
{
    (void)state;
    static const struct {
        const char *name, *reason; /* in the end */
    } files[] = {{"ct", ""}, {"implicit", "no-pixels"}, {"volume.nii.gz", ""}, {"zcopy", "duplicate"}};
    struct rlimit usual;
    if (!file_exists(SAMPLES "CT_small.dcm") || !file_exists(TEMPLATE)) skip();
    sh("cd '%s' && cp " SAMPLES "CT_small.dcm ct && cp ct zcopy && cp " SAMPLES "rtplan.dcm implicit && cp " TEMPLATE
       " volume.nii.gz",
       export);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &usual), 0);
    for (rlim_t n = 8; n < 16; n++) {
        struct rlimit few = {n, usual.rlim_max};
        scan_result r = {0};
        scan_options o = {.threads = 1};
        err e = {0};
        snprintf(work, sizeof work, "%s/work%d", base, (int)n);
        catalogue *c = open_it();
        setrlimit(RLIMIT_NOFILE, &few);
        err_code rc = scan_folder(c, export, &o, &r, &e);
        setrlimit(RLIMIT_NOFILE, &usual);
        if (rc && rc != ERR_IO) fail_msg("%d descriptors: %s", (int)n, e.msg);
        catalogue_close(c);
        scan_it(o); /* with enough of them */
        for (int i = 0; i < 4; i++)
            if (strcmp(reason_of(files[i].name), files[i].reason))
                fail_msg("%d descriptors, %s: %s, %s", (int)n, files[i].name, reason_of(files[i].name), detail_of_last);
    }
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

/* A NIfTI-1 volume of 2 x 2 x 1 values, all alike. */
static void put_nifti(const char *path, int value)
{
    unsigned char b[352 + 8] = {0x5c, 1};
    const int16_t dim[] = {3, 2, 2, 1, 1, 1, 1, 1}, type[] = {4, 16}, v[] = {(int16_t)value, 0, 0, 0};
    const float pixdim[] = {1, 1, 1, 1, 1, 1, 1, 1, 352};
    memcpy(b + 40, dim, sizeof dim);
    memcpy(b + 70, type, sizeof type);
    memcpy(b + 76, pixdim, sizeof pixdim);
    memcpy(b + 344, "n+1", 4);
    memcpy(b + 352, v, sizeof v);
    err e = {0};
    if (file_write(path, b, sizeof b, &e)) fail_msg("%s", e.msg);
}

/* Two exports hold volumes of one name: two volumes, unless they are the same; and they stay what they are. */
static void test_nifti_two_exports(void **state)
{
    (void)state;
    char path[256];
    catalogue *c = open_it();
    catalogue_counts n;
    err e = {0};
    scan_options o = {.threads = 1};
    for (int i = 0; i < 3; i++) {
        sh("mkdir -p '%s/%d/sub'", export, i);
        snprintf(path, sizeof path, "%s/%d/sub/t1.nii", export, i);
        put_nifti(path, i < 2 ? i : 0); /* the third is the first once more */
    }
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 3; i++) {
            scan_result r;
            snprintf(path, sizeof path, "%s/%d", export, i);
            if (scan_folder(c, path, &o, &r, &e)) fail_msg("%s", e.msg);
            assert_int_equal(r.taken, !round && i < 2);
            assert_int_equal(r.known, round);
        }
    assert_int_equal(catalogue_count(c, &n, &e), ERR_OK);
    assert_int_equal(n.patients, 2);
    assert_int_equal(n.aside, 1);
    char a[KEY_HEX], b[KEY_HEX], id[KEY_HEX];
    snprintf(path, sizeof path, "%s/0/sub/t1.nii", export);
    assert_true(catalogue_find(c, ID_PATH, path, a));
    assert_true(catalogue_find(c, ID_SOP, "nifti:sub/t1.nii", id));
    assert_string_equal(a, id);
    snprintf(path, sizeof path, "%s/1/sub/t1.nii", export);
    assert_true(catalogue_find(c, ID_PATH, path, b));
    assert_string_not_equal(a, b);
    catalogue_close(c);
}

/* NIfTI: identifiers from the path. */
static void test_nifti(void **state)
{
    (void)state;
    if (!file_exists(TEMPLATE)) skip();
    sh("cd '%s' && mkdir sub && cp " TEMPLATE " sub/SECRETNAME.nii.gz", export);
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
    const struct CMUnitTest tests[] = {
        T(test_poison),  T(test_says_why),       T(test_few_descriptors), T(test_nifti_two_exports),
        T(test_dry_run), T(test_order_is_fixed), T(test_work_inside),     T(test_bad_folders),
        T(test_stop),    T(test_no_permission),  T(test_nifti),           T(test_log_is_clean)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
