/* radapt.c: which command, its options, its exit code. */
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/progress.h"
#include "base/stop.h"
#include "cli/cmd.h"
#include "cli/relevance.h"

typedef struct {
    const char *name, *arguments, *summary, *text;
    unsigned in;
    err_code (*run)(const options *o, int *status, err *e);
    err_code (*defaults)(options *o, err *e);
} command;

static const command commands[] = {
    {"run", "EXPORT...", "the whole road: scan, prepare, adapt, finetune, predict, report",
     "Takes one or more export folders through every stage and writes one structured report a study.\n"
     "Without --labels it stops after adapt: there is nothing to report yet.\n"
     "Stop it anywhere: the same command goes on from there, and does nothing when all is done.\n"
     "Example: radapt run /pacs/export -o work --labels labels.csv --backbone vits14.safetensors",
     IN_RUN, cmd_run, cmd_run_defaults},
    {"scan", "EXPORT...", "find the images in export folders and enter them into the catalogue",
     "Reads headers only, by content, whatever the file names. What cannot be used is set aside with a reason\n"
     "in WORK/quarantine.csv.",
     IN_SCAN, cmd_scan, NULL},
    {"prepare", "", "decode what was found into the frame store",
     "Decodes in separate processes: a file that crashes its decoder costs that file alone.", IN_PREPARE, cmd_prepare,
     NULL},
    {"plan", "", "what a stage would take of memory and arithmetic",
     "Bytes by class and operations of a step, for any model and batch; nothing is started or loaded.\n"
     "Example: radapt plan --backbone vit-b/14 --method apla --batch 8",
     IN_PLAN, cmd_plan, cmd_plan_defaults},
    {"adapt", "", "adapt the backbone to the unlabelled frames (self-supervised)",
     "Frames of test and validation patients are left out. Writes WORK/runs/adapt-<id>/adapter.safetensors.", IN_ADAPT,
     cmd_adapt, cmd_adapt_defaults},
    {"finetune", "", "train the classifier (and the adapter) on the labelled cohort",
     "The split is by patient and kept in WORK/split.csv. Writes WORK/runs/finetune-<id>/model.safetensors.",
     IN_FINETUNE, cmd_finetune, cmd_finetune_defaults},
    {"evaluate", "", "measure a model on labelled patients it was not trained on", "", IN_EVALUATE, cmd_evaluate, NULL},
    {"predict", "", "look at every study with a model", "Writes WORK/runs/predict-<id>/findings.jsonl.", IN_PREDICT,
     cmd_predict, NULL},
    {"report", "", "write one DICOM structured report a study", "Writes WORK/reports/<study>.dcm, each checked.",
     IN_REPORT, cmd_report, NULL},
    {"export", "", "write the adapted backbone for timm, Hugging Face or DINOv2",
     "What was trained is merged into the weights; fp32. A model bundle's classifier goes along for timm.\n"
     "Example: radapt export -w work --backbone vits14.safetensors --format hf --out adapted.safetensors",
     IN_EXPORT, cmd_export, NULL},
    {"inspect", "FILE", "what radapt understands of one file", "", IN_INSPECT, cmd_inspect, NULL},
    {"phantom", "FOLDER", "make up an export to try things on, with labels beside it", "", IN_PHANTOM, cmd_phantom,
     NULL},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static void overview(FILE *f)
{
    fputs("radapt turns a folder of a hospital's own images into a vision model adapted to that hospital,\n"
          "and writes what the model finds as DICOM structured reports. Research use only.\n\n"
          "Everything at once:\n"
          "  radapt run /pacs/export -o work --labels labels.csv --backbone weights.safetensors\n\n"
          "Commands\n",
          f);
    for (int i = 0; i < COMMANDS; i++) fprintf(f, "  %-10s %s\n", commands[i].name, commands[i].summary);
    fputs("\nradapt COMMAND --help tells all about one. To try it on a made-up export:\n"
          "  radapt phantom export && radapt run export -o work --labels export.labels.csv\n\n"
          "Exit codes: 0 all done, 1 failed, 2 nothing usable found, 3 done but some inputs are set aside\n"
          "(now or by an earlier run; quarantine.csv names the files), 64 wrong usage, 130 stopped (the same command "
          "goes on).\n",
          f);
}

static void help(const command *c, const options *o)
{
    printf("radapt %s%s%s [options]: %s\n", c->name, *c->arguments ? " " : "", c->arguments, c->summary);
    if (*c->text) printf("\n%s\n", c->text);
    options_help(o, stdout);
}

static int exit_code(err_code rc, int status)
{
    switch (rc) {
    case ERR_OK:
        return status;
    case ERR_USAGE:
        return STATUS_USAGE;
    case ERR_EMPTY:
        return STATUS_EMPTY;
    case ERR_INTERRUPTED:
        return STATUS_STOPPED;
    default:
        return STATUS_FAILED;
    }
}

static int run_command(const command *c, int argc, char **argv)
{
    options o;
    err e = {0};
    int status = STATUS_DONE;
    err_code rc = options_init(&o, c->name, c->in, &e);
    if (!rc) rc = options_parse(&o, argc, argv, &e);
    if (!rc && c->defaults) rc = c->defaults(&o, &e);
    if (!rc && options_flag(&o, "help"))
        help(c, &o);
    else if (!rc && options_flag(&o, "print-config"))
        options_print(&o, stdout, c->in, false);
    else if (!rc) {
        bool json = !strcmp(options_text(&o, "log"), "json");
        log_open(stderr, json ? LOG_JSON : LOG_TEXT,
                 options_flag(&o, "quiet")     ? LOG_WARN
                 : options_flag(&o, "verbose") ? LOG_DEBUG
                                               : LOG_INFO);
        progress_quiet(options_flag(&o, "quiet"));
        rc = relevance_check(&o, &e);
        if (!rc) rc = c->run(&o, &status, &e);
    }
    if (!rc && (fflush(stdout) || ferror(stdout)))
        rc = err_set(&e, ERR_IO, __FILE__, __LINE__, "standard output cannot be written");
    if (rc) {
        fflush(stdout);
        fprintf(stderr, "radapt: %s\n", *e.msg ? e.msg : err_name(rc));
    }
    options_fini(&o);
    return exit_code(rc, status);
}

/* Waiting compute threads sleep instead of spinning: decoders, sampling and whatever else the machine does need the
 * processors. OpenMP reads this before main, so the program starts itself anew once. */
static void quiet_openmp(char **argv)
{
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    setenv("OMP_WAIT_POLICY", "passive", 1);
    setenv("GOMP_SPINCOUNT", "3000", 1); /* a few microseconds, then sleep */
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) return;
    self[n] = 0;
    execv(self, argv); /* where that cannot be done, nothing is lost but speed */
}

static int printed(void)
{
    if (!fflush(stdout) && !ferror(stdout)) return STATUS_DONE;
    fputs("radapt: standard output cannot be written\n", stderr);
    return STATUS_FAILED;
}

int main(int argc, char **argv)
{
    quiet_openmp(argv);
    mallopt(M_TRIM_THRESHOLD, 1 << 30); /* small blocks that come and go need not be given back and cleared each time */
    const char *name = argc > 1 ? argv[1] : "help", *names[COMMANDS];
    stop_install();
    if (!strcmp(name, "help") && argc > 2) { /* help COMMAND */
        static char flag[] = "--help";
        char *swapped[] = {argv[0], argv[2], flag, NULL};
        return main(3, swapped);
    }
    if (!strcmp(name, "help") || !strcmp(name, "--help") || !strcmp(name, "-h")) {
        overview(stdout);
        return printed();
    }
    if (!strcmp(name, "--version") || !strcmp(name, "version")) {
        puts("radapt " RADAPT_VERSION);
        return printed();
    }
    for (int i = 0; i < COMMANDS; i++) {
        names[i] = commands[i].name;
        if (!strcmp(name, commands[i].name)) return run_command(&commands[i], argc - 2, argv + 2);
    }
    const char *near = options_nearest(name, names, COMMANDS);
    fprintf(stderr, "radapt: there is no command %.40s%s%s%s\n", name, near ? "; did you mean " : "", near ? near : "",
            near ? "?" : " (radapt help lists them)");
    return STATUS_USAGE;
}
