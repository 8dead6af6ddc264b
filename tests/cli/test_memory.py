#!/usr/bin/python3
"""A stage takes what `radapt plan` says to 5 %, and at most a stated constant more (adapt/plan.h); it is refused, in one line, where
   there is less.
   test_memory.py RADAPT SOURCE_DIR"""
import json, os, re, shutil, subprocess, sys, tempfile

radapt, source = os.path.realpath(sys.argv[1]), sys.argv[2]
constant = int(re.search(r"PLAN_CONSTANT = (\d+) << 20", open(f"{source}/adapt/plan.h").read()).group(1))
SMALL = """--backbone dim=64,depth=2,heads=2,patch=16,grid=4 --size 64 --global-size 64 --local-size 32 --locals 2 --hidden 64
           --bottleneck 32 --prototypes 64 --batch 8""".split()
MODERATE = "--backbone vit-s/14 --batch 2 --locals 2".split()
TUNE = "--epochs 0.1 --split-test 0.1 --split-validation 0.45".split()  # enough to fill the batches of an evaluation
RUN = "--epochs 0.05 --head-warmup-epochs 0 --warmup-epochs 0".split()
work = tempfile.mkdtemp(prefix="radapt-memory-")


def run(*command, limit_kib=None):
    if limit_kib:
        command = ["bash", "-c", f'ulimit -v {limit_kib}; exec "$@"', "limited", *command]
    child = subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, log = child.stdout.read(), child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    return os.waitstatus_to_exitcode(status), out, log, usage.ru_maxrss / 1024


def stage(name, folder, *options, **limits):
    return run(radapt, name, "-w", folder, "--threads", "2", "--json", "-q", *options, **limits)


def adapt(*options, **limits):
    shutil.rmtree(os.path.join(work, "work", "runs"), ignore_errors=True)
    return stage("adapt", "work", *options, *RUN, **limits)


def check(name, options, peak):
    code, out, log, _ = run(radapt, "plan", "--stage", name, "--json", "--threads", "2", "--gflops", "1", *options)
    assert code == 0, log
    planned = json.loads(out)["total_bytes"] / 2**20
    print(f"{name} {' '.join(options)}: planned {planned:.1f} MiB, took {peak:.1f} MiB, {peak - planned:+.1f}", flush=True)
    assert peak <= 1.05 * planned + constant, "more than planned"
    assert peak >= 0.95 * planned, "less than planned"


def adapt_as_planned(*options):
    code, out, log, peak = adapt(*options)
    assert code == 0, log
    check("adapt", [*options, "--frames", str(json.loads(out)["training_frames"])], peak)


def finetune_and_predict_as_planned(*options):
    code, out, log, peak = stage("finetune", "labelled", "--labels", "more.labels.csv", "--adapter", "none", *options, *TUNE)
    assert code == 0, log
    check("finetune", [*options, "--classes", "3"], peak)
    code, out, log, peak = stage("predict", "labelled")
    assert code == 0, log
    check("predict", [o for o in options if o not in ("--batch", "8")], peak)


def refused():
    for mib in (150, 250, 350, 450, 600, 800, 1000):
        code, _, log, _ = adapt(*SMALL, limit_kib=mib << 10)
        complaints = [line for line in log.splitlines() if line.startswith("radapt: ")]
        print(f"ulimit -v of {mib} MiB: exit code {code} {''.join(complaints)}", flush=True)
        assert code == 0 and not complaints or code == 1 and len(complaints) == 1 and "address space" in complaints[0]
    assert code == 0, "1000 MiB are enough"
    code, _, log, _ = adapt(*SMALL, "--hidden", "8192", "--prototypes", "65536", limit_kib=1000 << 10)
    assert code == 1 and "adapt needs" in log, log


try:
    asan = run(radapt, "adapt", "-w", "nowhere", limit_kib=4 << 20)[2]
    if "AddressSanitizer" in asan or "ReserveShadow" in asan:
        print("skipped: a sanitizer has its own memory")
        sys.exit(77)
    for command in (["phantom", "export", "--patients", "8"], ["scan", "export", "-w", "work"], ["prepare", "-w", "work"],
                    ["phantom", "more", "--patients", "24"], ["scan", "more", "-w", "labelled"], ["prepare", "-w", "labelled"]):
        code, _, log, _ = run(radapt, *command, "-q")
        assert code in (0, 3), log
    adapt_as_planned(*SMALL)
    for more in (["--recompute", "block", "--separate-heads"], ["--no-data-init", "--method", "full"]):
        adapt_as_planned(*MODERATE, *more)
    finetune_and_predict_as_planned(*"--backbone vit-ti/16 --size 112 --batch 8 --method full".split())
    refused()
finally:
    shutil.rmtree(work)
