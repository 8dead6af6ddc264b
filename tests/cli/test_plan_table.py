#!/usr/bin/python3
"""What `radapt plan` prints: classes add up to the total, for a GPU with CUDA's own part, which is stated, in table and JSON
alike.   test_plan_table.py RADAPT SOURCE_DIR"""
import json, re, subprocess, sys

radapt, source = sys.argv[1:3]
MIB = 1 << 20
context = int(re.search(r"OP_CUDA_CONTEXT_BYTES = (\d+) << 20", open(f"{source}/model/cuda/op_cuda_bytes.h").read()).group(1)) * MIB


def plan(*options):
    return subprocess.run([radapt, "plan", "--backbone", "vit-ti/16", "--gflops", "100", *options], check=True, text=True,
                          stdout=subprocess.PIPE).stdout


def memory_lines(table):
    lines = re.search(r"\nmemory +MiB\n(.*?)\n\n", table, re.S).group(1).split("\n")
    return {m[1].strip(): (float(m[2]), m[3]) for m in (re.match(r"  (.{14}) +([\d.]+)(.*)$", l) for l in lines)}


for device in "cpu", "cuda":
    for stage in "adapt", "finetune", "predict":
        options = ["--device", device, "--stage", stage]
        p = json.loads(plan(*options, "--json"))
        print(f"{device}, {stage}: {p['total_bytes'] / MIB:.1f} MiB", flush=True)
        assert p["bytes"]["context"] == (context if device == "cuda" else 0), p["bytes"]
        assert p["context_stated"] == (device == "cuda")
        assert sum(p["bytes"].values()) == p["total_bytes"] == p["device_bytes"] + p["host_bytes"], p
        assert p["bytes"]["pinned"] + p["bytes"]["host"] == p["host_bytes"], p
        lines = memory_lines(plan(*options))
        for name, (mib, words) in lines.items():
            of = p["total_bytes"] if name == "in all" else p["bytes"][name]
            assert abs(mib - of / MIB) < 0.06, (name, mib, of)
            assert ("stated, not measured" in words) == (name == "context"), (name, words)
        assert sorted(lines) == sorted([n for n, b in p["bytes"].items() if b] + ["in all"]), lines
