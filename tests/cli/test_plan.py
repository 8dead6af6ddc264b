#!/usr/bin/python3
"""`radapt plan` with the options of `radapt adapt` says to the byte what that takes; it goes by this machine's memory where it is
   asked to, and does not time blocks that have no room here.
   test_plan.py RADAPT SOURCE_DIR"""
import glob, json, os, resource, shutil, subprocess, sys, tempfile

radapt = os.path.realpath(sys.argv[1])
SMALL = """--backbone dim=64,depth=2,heads=2,patch=16,grid=4 --size 64 --global-size 64 --local-size 32 --hidden 64 --bottleneck 32
           --prototypes 2048 --batch 8""".split()
RUN = "--epochs 0.05 --head-warmup-epochs 0 --warmup-epochs 0 --device cpu".split()
OPTIONS = ["", "--separate-heads", "--ibot 0", "--ibot 0.3 --mask-probability 1", "--mask-ratio 0.7,0.9", "--mask-probability 0",
           "--hidden 2048", "--hidden 2048 --no-data-init", "--crop-from 96", "--recipe essa --hidden 64 --prototypes 2048 --batch 8 --bottleneck 32",
           "--recompute auto", "--recompute block", "--separate-heads --mask-ratio 0.8,1 --no-data-init --locals 1 --recompute 1"]
work = tempfile.mkdtemp(prefix="radapt-plan-")


def run(*command, limit_mib=None):
    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (limit_mib << 20, limit_mib << 20))

    child = subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             preexec_fn=limited if limit_mib else None)
    out, log = child.stdout.read(), child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    return os.waitstatus_to_exitcode(status), out, log, usage.ru_maxrss / 1024


def plan(*options, **limits):
    code, out, log, peak = run(radapt, "plan", "--json", "-q", "--threads", "2", *options, **limits)
    assert code == 0, (options, log)
    return json.loads(out), peak


def as_adapted(options):
    shutil.rmtree(os.path.join(work, "work", "runs"), ignore_errors=True)
    code, out, log, _ = run(radapt, "adapt", "-w", "work", "--threads", "2", "--json", "-q", *SMALL, *RUN, *options)
    assert code == 0, log
    frames = json.loads(out)["training_frames"]
    result, = glob.glob(os.path.join(work, "work", "runs", "adapt-*", "result.json"))
    used = int(json.load(open(result))["peak_bytes"])
    p = plan(*SMALL, *options, "--gflops", "1", "--frames", str(frames))[0]
    print(f"{' '.join(options) or 'as it is'}: planned {p['device_bytes']}, used {used}; {p['host_bytes']} beside", flush=True)
    assert p["device_bytes"] == used
    return p["total_bytes"]


def recompute_by_memory():
    """With less address space more blocks are made again, until not even that is enough."""
    model = "--backbone vit-s/14 --batch 8 --gflops 1".split()
    none, all_of_it = (plan(*model, "--recompute", how)[0] for how in ("none", "block"))
    assert none["recompute_blocks"] == 0 and all_of_it["recompute_blocks"] == 12
    seen, least, most = [], all_of_it["total_bytes"] >> 20, (none["total_bytes"] >> 20) + 1024
    for mib in range(least, most, (most - least) // 16):
        p, _ = plan(*model, limit_mib=mib)
        seen.append((mib, p["recompute_blocks"], p["refused"] is not None))
    print(seen, flush=True)
    blocks = [b for _, b, _ in seen]
    assert blocks == sorted(blocks, reverse=True) and blocks[0] == 11 and blocks[-1] == 0 and len(set(blocks)) > 4
    refused = [r for _, _, r in seen]
    assert refused == sorted(refused, reverse=True) and refused[0] and not refused[-1]
    cuda, _ = plan(*model, "--device", "cuda")
    assert cuda["recompute_blocks"] == 0 and cuda["untimed"] is None and cuda["seconds_expected"] is not None


def other_words():
    """--model is --backbone, --crops the three options of the crops."""
    said = plan("--gflops", "1", "--backbone", "vit-s/14", "--global-size", "112", "--locals", "3", "--local-size", "42")[0]
    assert said == plan("--gflops", "1", "--model", "vit-s/14", "--crops", "2x112,3x42")[0]
    assert plan("--gflops", "1", "--locals", "0")[0] == plan("--gflops", "1", "--crops", "2x224")[0] != said
    for wrong in ("", "x", "2x", "3x224", "2x224,", "2x224,8", "2x224,8x98x", "2x224,-1x98", "2x0", "1x224,8x98", "2x99999999999", "2x30000000", "2x224,8x4096", "2x 224",
                  "+2x224"):
        code = run(radapt, "plan", "-q", "--gflops", "1", "--crops", wrong)[0]
        assert code == (0 if wrong == "" else 64), (wrong, code)


def no_room_to_time():
    model = "--backbone vit-g/14 --size 518 --batch 8".split()
    p, peak = plan(*model, limit_mib=900)
    print(f"{p['untimed']}: {peak:.0f} MiB", flush=True)
    assert p["untimed"].startswith("to time two of its blocks needs") and p["seconds_expected"] is None and p["total_bytes"] > 0
    assert peak < 200
    code, out, log, _ = run(radapt, "plan", "-q", "--threads", "2", *model, limit_mib=900)
    assert code == 0 and "How long a step takes is not known: to time" in out and "It would not start here: adapt needs" in out, log
    p, _ = plan(*SMALL)
    assert p["untimed"] is None and p["refused"] is None and p["seconds_expected"] > 0


try:
    for command in (["phantom", "export", "--patients", "8"], ["scan", "export", "-w", "work"], ["prepare", "-w", "work"]):
        code, _, log, _ = run(radapt, *command, "-q")
        assert code in (0, 3), log
    other_words()
    taken = [as_adapted(options.split()) for options in OPTIONS]
    # All differ but auto, which is as it is, and the two ways in which nothing is masked.
    assert len(set(taken)) == len(OPTIONS) - 2, "options that change nothing"
    limited = run(radapt, "plan", "--gflops", "1", limit_mib=4096)[2]
    if "AddressSanitizer" in limited or "ReserveShadow" in limited:
        print("a sanitizer has its own memory: no limits")
    else:
        recompute_by_memory()
        no_room_to_time()
finally:
    shutil.rmtree(work)
