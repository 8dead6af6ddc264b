#!/usr/bin/env python3
"""What `radapt export` writes of an adapted model, read by timm and Hugging Face: the pretrained ViT-Ti is adapted for
an epoch to a made-up export, once for every method whose training can be merged; the adapter's tensors are merged here,
by numpy, and features of the exported file beside those of this.

    ./dev parity merged [--scratch FOLDER]

Needs what parity.py needs. Fails where a library refuses a file (strict), where features are more than 1e-5 of the
largest apart, and where training left features as they were.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile

import torch
from parity import REAL, empty, error, features, load_exported, timm_model
from safetensors import safe_open
from safetensors.torch import load_file

LIMIT = 1e-5
METHODS = {
    "apla": ["--method", "apla"],
    "apla, 48 rows": ["--method", "apla", "--rows", "48"],
    "lora q,v": ["--method", "lora"],
    "lora of every layer": ["--method", "lora", "--lora-targets", "qkv,proj,fc1,fc2", "--lora-rank", "4", "--lora-alpha", "6"],
    "bitfit": ["--method", "bitfit"],
    "full": ["--method", "full", "--lr", "5e-5"],
}
PART = {"q": 0, "k": 1, "v": 2}  # of qkv's rows


def merged(base, adapter):
    """The backbone's tensors (timm's names) with what was trained."""
    w = {k: v.clone() for k, v in base.items()}
    with safe_open(adapter, "pt") as f:
        meta, tensors = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}
    for name, v in tensors.items():
        if name.endswith(".rows") or ".lora_B" in name or name == "mask_token":  # that one is no part of timm's model
            continue
        if ".lora_A" not in name:
            rows = tensors.get(name + ".rows")
            if rows is None:
                w[name] = v.reshape(w[name].shape)
            else:
                w[name][rows.long()] = v
            continue
        layer = name.split(".lora_A")[0]
        update = tensors[name.replace("lora_A", "lora_B")] @ v * (float(meta["alpha"]) / float(meta["rank"]))
        last = layer.split(".")[-1]
        if last in PART:
            to, n = layer[:-1] + "qkv.weight", update.shape[0]
            w[to][PART[last] * n:(PART[last] + 1) * n] += update
        else:
            w[layer + ".weight"] += update
    return w


def main():
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("--scratch", default=tempfile.gettempdir())
    a = p.parse_args()
    radapt, folder = os.path.join(a.build, "radapt"), tempfile.mkdtemp(dir=a.scratch)
    work = os.path.join(folder, "work")

    def run(*words):
        done = subprocess.run([radapt, *words, "-q"], stdout=subprocess.DEVNULL)
        assert done.returncode in (0, 3), words  # 3: the export has files that cannot be used

    run("phantom", f"{folder}/export", "--patients", "24", "--seed", "1")
    run("scan", f"{folder}/export", "-w", work)
    run("prepare", "-w", work)
    base = {k: v for k, v in load_file(REAL).items() if not k.startswith("head.")}
    pixels, bad = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)), 0
    model = empty(timm_model("vit_tiny_patch16_224")).eval()

    def of(w):
        model.load_state_dict(w, strict=True)
        return features(model, "timm", pixels)

    print("| method | moved by training | exported as: away from the merged weights |\n|---|---|---|", flush=True)
    with torch.no_grad():
        before = of(base)
        for name, options in METHODS.items():
            run("adapt", "-w", work, "--backbone", REAL, *options, "--epochs", "1", "--head-warmup-epochs", "0", "--warmup-epochs", "0",
                "--batch", "8", "--locals", "2", "--prototypes", "256", "--evaluate-epochs", "9")
            newest = max((os.path.join(work, "runs", d, "adapter.safetensors") for d in os.listdir(os.path.join(work, "runs"))),
                         key=os.path.getmtime)
            want = of(merged(base, newest))
            moved, told = error(want, before), []
            for form in ("timm", "hf", "dinov2"):
                path = f"{folder}/{len(os.listdir(folder))}.{form}" + ("" if form == "hf" else ".safetensors")
                run("export", "-w", work, "--backbone", REAL, "--adapter", newest, "--format", form, "--out", path)
                loaded = load_exported(path, form, "vit_tiny_patch16_224")
                away = error(features(loaded, "hf" if form == "hf" else "timm", pixels), want)
                bad += away > LIMIT
                told.append(f"{form} {away:.1e}")
            bad += moved < 1e-3
            print(f"| {name} | {moved:.1e} | {', '.join(told)} |", flush=True)
    shutil.rmtree(folder)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
