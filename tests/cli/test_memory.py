#!/usr/bin/python3
"""A stage takes what `radapt plan` says and a stated constant (adapt/plan.h), and is refused, in one line, where there is less.
   test_memory.py RADAPT SOURCE_DIR"""
import json, os, re, shutil, subprocess, sys, tempfile

radapt, source = os.path.realpath(sys.argv[1]), sys.argv[2]
constant = int(re.search(r"PLAN_CONSTANT = (\d+) << 20", open(f"{source}/adapt/plan.h").read()).group(1))
SMALL = """--backbone dim=64,depth=2,heads=2,patch=16,grid=4 --size 64 --global-size 64 --local-size 32 --locals 2 --hidden 64
           --bottleneck 32 --prototypes 64 --batch 8""".split()
MODERATE = "--backbone vit-s/14 --batch 2 --locals 2".split()
RUN = "--epochs 0.05 --head-warmup-epochs 0 --warmup-epochs 0".split()
work = tempfile.mkdtemp(prefix="radapt-memory-")


def run(*command, limit_kib=None):
    if limit_kib:
        command = ["bash", "-c", f'ulimit -v {limit_kib}; exec "$@"', "limited", *command]
    child = subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, log = child.stdout.read(), child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    return os.waitstatus_to_exitcode(status), out, log, usage.ru_maxrss / 1024


def stage(*options, **limits):
    shutil.rmtree(os.path.join(work, "work", "runs"), ignore_errors=True)
    return run(radapt, "adapt", "-w", "work", "--threads", "2", "--json", "-q", *options, **limits)


def as_planned(options, run_only):
    code, out, log, peak = stage(*options, *RUN, *run_only)
    assert code == 0, log
    frames = json.loads(out)["training_frames"]
    code, out, log, _ = run(radapt, "plan", "--json", "--threads", "2", "--gflops", "1", "--frames", str(frames), *options)
    assert code == 0, log
    planned = json.loads(out)["total_bytes"] / 2**20
    print(f"{' '.join(options)}: planned {planned:.1f} MiB, took {peak:.1f} MiB", flush=True)
    assert peak <= 1.05 * planned + constant, "more than planned"
    assert peak >= 0.6 * planned, "much less than planned"


def refused():
    for mib in (150, 250, 350, 450, 600, 800, 1000):
        code, _, log, _ = stage(*SMALL, *RUN, limit_kib=mib << 10)
        complaints = [line for line in log.splitlines() if line.startswith("radapt: ")]
        print(f"ulimit -v of {mib} MiB: exit code {code} {''.join(complaints)}", flush=True)
        assert code == 0 and not complaints or code == 1 and len(complaints) == 1 and "address space" in complaints[0]
    assert code == 0, "1000 MiB are enough"
    code, _, log, _ = stage(*SMALL, *RUN, "--hidden", "8192", "--prototypes", "65536", limit_kib=1000 << 10)
    assert code == 1 and "adapt needs" in log, log


try:
    asan = run(radapt, "adapt", "-w", "nowhere", limit_kib=4 << 20)[2]
    if "AddressSanitizer" in asan or "ReserveShadow" in asan:
        print("skipped: a sanitizer has its own memory")
        sys.exit(77)
    for command in (["phantom", "export", "--patients", "8"], ["scan", "export", "-w", "work"], ["prepare", "-w", "work"]):
        code, _, log, _ = run(radapt, *command, "-q")
        assert code in (0, 3), log
    as_planned(SMALL, [])
    as_planned(MODERATE, ["--no-data-init"])
    as_planned(MODERATE + ["--method", "full"], ["--no-data-init"])
    refused()
finally:
    shutil.rmtree(work)
