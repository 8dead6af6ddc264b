#!/usr/bin/env python3
"""Features of Vision Transformers in their true shapes, this program's beside timm's and Hugging Face's, and what
`radapt export` writes read by these libraries (Hugging Face's by from_pretrained of the folder).

    ./dev parity [--only TEXT] [--skip TEXT] [--compute f32|bf16] [--table FILE]

Needs PyTorch, timm, transformers and safetensors (RADAPT_TORCH_PYTHON names the Python); nothing is downloaded. Weights
are random, seeded, of a size that makes every part matter; each model is made once, and run on the same pixels on its own
grid and on others, where positional tables are interpolated. DINOv2's own code is not at hand: its names are made from
timm's weights, and on other grids timm's model gets the table that DINOv2's formula gives.

Errors are the largest difference over the largest feature. Fails where fp32 is above 1e-5; where bf16 is above 1e-2 and
above what the library's own model in bfloat16 is away ("PyTorch in bf16"); and where a library refuses what was exported
(strict).
"""
import argparse
import gc
import os
import shutil
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import timm
import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from transformers import (AutoConfig, Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel, ViTConfig,
                          ViTImageProcessor, ViTModel)

F32, BF16 = 1e-5, 1e-2  # errors allowed
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "g": (1536, 40, 24)}
TIMM = {"S": "small", "B": "base", "L": "large", "g": "giant"}
REAL = os.path.join(os.path.dirname(__file__), "../../../shared/data/weights/vit_tiny_patch16_224.safetensors")
transformers.utils.logging.disable_progress_bar()


def fill(model, seed):
    """Random values; residual branches that add up to what they are added to."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(generator=g)
            if name.endswith(("gamma", "lambda1")):
                p.mul_(0.05).add_(0.2)
            elif "norm" in name and name.endswith("weight"):
                p.mul_(0.1).add_(1)
            elif name.endswith("bias"):
                p.mul_(0.1)
            elif p.dim() == 2 and p.shape[0] > 1:
                p.mul_(0.7 / p.shape[1] ** 0.5)
            elif p.dim() == 4:
                p.mul_(1 / p[0].numel() ** 0.5)
            else:
                p.mul_(0.3)  # tokens and positions


def empty(make):
    """A model without its own initialisation, which takes long."""
    with torch.device("meta"):
        model = make()
    return model.to_empty(device="cpu").eval()


def timm_model(name, size=None):
    kw = {"img_size": size} if size else {}
    return lambda: timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True, **kw)


def hf_model(size, registers):
    dim, depth, heads = SIZES[size]
    config = dict(hidden_size=dim, num_hidden_layers=depth, num_attention_heads=heads, image_size=518, patch_size=14,
                  use_swiglu_ffn=size == "g")
    if registers:
        return lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**config))
    return lambda: Dinov2Model(Dinov2Config(**config))


def hf_vit(dim, depth, heads):
    config = dict(hidden_size=dim, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * dim)
    return lambda: ViTModel(ViTConfig(**config), add_pooling_layer=False)


def cases():
    """(name, library, make, sides, formats that are exported)."""
    for size, s in TIMM.items():
        for reg in ("", "_reg4"):
            yield (f"vit_{s}_patch14{reg}_dinov2", "timm", timm_model(f"vit_{s}_patch14{reg}_dinov2"), (518, 224, 98),
                   ("timm", "hf", "dinov2"))
    for size, s in TIMM.items():
        yield f"DINOv2 {size}/14", "dinov2", timm_model(f"vit_{s}_patch14_dinov2"), (518, 224, 98), ()
    for size in SIZES:
        yield f"Dinov2Model {size}", "hf", hf_model(size, False), (518, 224, 98), ("hf",)
        yield f"Dinov2WithRegistersModel {size}", "hf", hf_model(size, True), (518, 224, 98), ("hf",)
    for family in ("vit", "deit"):
        for s in ("tiny", "small", "base"):
            yield (f"{family}_{s}_patch16_224", "timm", timm_model(f"{family}_{s}_patch16_224"), (224, 160, 288),
                   ("timm", "hf", "dinov2"))
    for s, dim, heads in (("Ti", 192, 3), ("S", 384, 6), ("B", 768, 12)):
        yield f"ViTModel {s}", "hf", hf_vit(dim, 12, heads), (224, 160, 288), ("hf",)
    yield "ViT-Ti/16 AugReg, pretrained", "real", timm_model("vit_tiny_patch16_224"), (224, 160, 288), ("timm", "hf", "dinov2")


def dinov2_names(model):
    """timm's weights under DINOv2's names, with a mask token."""
    w = {k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3") if packed(model) else k: v
         for k, v in model.state_dict().items()}
    w["mask_token"] = torch.zeros(1, model.embed_dim)
    return w


def packed(model):
    return model.blocks[0].mlp.fc1.out_features == 2 * model.blocks[0].mlp.fc2.in_features


def dinov2_table(pos, grid):
    """DINOv2's interpolate_pos_encoding: by scale factor, with its offset of 0.1."""
    side = int((pos.shape[1] - 1) ** 0.5)
    if side == grid:
        return pos
    rest = pos[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    rest = F.interpolate(rest, scale_factor=((grid + 0.1) / side,) * 2, mode="bicubic")
    return torch.cat([pos[:, :1], rest.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)], 1)


def features(model, library, pixels):
    """Tokens after the final norm."""
    if isinstance(model, ViTModel):
        return model(pixels, interpolate_pos_encoding=True).last_hidden_state
    if library == "hf":
        return model(pixels).last_hidden_state
    if library != "dinov2":
        return model.forward_features(pixels)
    old, size = model.pos_embed, model.patch_embed.grid_size
    grid = pixels.shape[-1] // 14
    model.pos_embed = torch.nn.Parameter(dinov2_table(old.data, grid))
    model.patch_embed.grid_size = (grid, grid)
    out = model.forward_features(pixels)
    model.pos_embed, model.patch_embed.grid_size = old, size
    return out


def save(model, library, folder):
    """Weights as users have them; the path that radapt gets."""
    if library == "hf":
        model.save_pretrained(folder, max_shard_size="2GB")
        index = os.path.join(folder, "model.safetensors.index.json")
        return index if os.path.exists(index) else os.path.join(folder, "model.safetensors")
    path = os.path.join(folder, "weights.safetensors")
    w = dinov2_names(model) if library == "dinov2" else model.state_dict()
    save_file({k: v.contiguous() for k, v in w.items()}, path)
    return path


def error(got, want):
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


def ours(build, weights, pixels, out, compute, heads):
    """None where this processor has no such arithmetic."""
    done = subprocess.run([f"{build}/tests/vit_features", weights, pixels, out, compute, str(heads)])
    if done.returncode == 77 and compute == "bf16":
        return None
    done.check_returncode()
    return load_file(out)


def load_exported(path, form, timm_name):
    """The library's model with the exported weights, strictly. Hugging Face's is a folder."""
    if form == "hf":
        config = AutoConfig.from_pretrained(path)
        cls = getattr(transformers, config.architectures[0])
        extra = {"add_pooling_layer": False} if cls is ViTModel else {}
        loaded, info = cls.from_pretrained(path, output_loading_info=True, **extra)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
        with safe_open(os.path.join(path, "model.safetensors"), "pt") as f:
            meta = f.metadata()
        pixels = ViTImageProcessor.from_pretrained(path)
        for key in ("image_mean", "image_std"):
            assert list(getattr(pixels, key)) == [float(v) for v in meta[key].split(",")], key
        return loaded.eval()
    w = load_file(path)
    model = empty(timm_model(timm_name))
    if form == "dinov2":
        if packed(model):
            w = {k.replace("mlp.w12", "mlp.fc1").replace("mlp.w3", "mlp.fc2"): v for k, v in w.items()}
        w = checkpoint_filter_fn(w, model)  # timm's own reading of DINOv2's names
        w.pop("mask_token", None)
    model.load_state_dict(w, strict=True)
    return model


def run(build, scratch, computes, number, name, library, make, sides, formats):
    folder = tempfile.mkdtemp(dir=scratch)
    if library == "real":
        model = make().eval()
        w = load_file(REAL)
        model.load_state_dict({k: v for k, v in w.items() if not k.startswith("head.")}, strict=True)
    else:
        model = empty(make)
        fill(model, number)
    hf = library == "hf"
    heads = model.config.num_attention_heads if hf else model.blocks[0].attn.num_heads
    pixels = {f"{s}": torch.randn(1, 3, s, s, generator=torch.Generator().manual_seed(s)) for s in sides}
    with torch.no_grad():
        want = {k: features(model, library, x) for k, x in pixels.items()}
        weights = REAL if library == "real" else save(model, library, folder)
    save_file(pixels, f"{folder}/pixels.safetensors")
    rows = {s: {} for s in pixels}
    for compute in computes:
        got = ours(build, weights, f"{folder}/pixels.safetensors", f"{folder}/out.safetensors", compute, heads)
        if not got:
            continue
        for s in pixels:
            rows[s][compute] = error(got[s], want[s])
        if compute == "bf16":
            model.bfloat16()
            with torch.no_grad():
                for s, x in pixels.items():
                    rows[s]["PyTorch"] = error(features(model, library, x.bfloat16()).float(), want[s])
    del model
    gc.collect()
    native = str(sides[0])
    exports = {}
    for form in formats:
        path = f"{folder}/exported.{form}" + ("" if form == "hf" else ".safetensors")
        subprocess.run([f"{build}/radapt", "export", "--backbone", weights, "--backbone-heads", str(heads), "--adapter", "none",
                        "--format", form, "--out", path, "-q"], check=True, capture_output=True)
        model = load_exported(path, form, "vit_tiny_patch16_224" if library == "real" else name)
        with torch.no_grad():
            exports[form] = error(features(model, "hf" if form == "hf" else "timm", pixels[native]), want[native])
        del model
        gc.collect()
    shutil.rmtree(folder)
    return rows, exports


def main():
    p = argparse.ArgumentParser()
    p.add_argument("build")
    p.add_argument("--only", default="")
    p.add_argument("--skip", action="append", default=[])
    p.add_argument("--compute", choices=("f32", "bf16"))
    p.add_argument("--table")
    p.add_argument("--scratch", default=tempfile.gettempdir())
    a = p.parse_args()
    os.makedirs(a.scratch, exist_ok=True)
    bad, lines = 0, []

    def say(line):
        lines.append(line)
        print(line, flush=True)

    say(f"PyTorch {torch.__version__}, timm {timm.__version__}, transformers {transformers.__version__}\n")
    say("| model | pixels | fp32 | bf16 | PyTorch in bf16 | exported and read back, fp32 |")
    say("|---|---|---|---|---|---|")
    for number, case in enumerate(cases()):
        if a.only not in case[0] or any(s in case[0] for s in a.skip):
            continue
        try:
            rows, exports = run(a.build, a.scratch, (a.compute,) if a.compute else ("f32", "bf16"), number, *case)
        except Exception as why:  # the others are still worth knowing
            bad += 1
            say(f"| {case[0]} | | failed: {type(why).__name__}: {str(why).splitlines()[0][:200] if str(why) else ''} |")
            continue
        for side, r in rows.items():
            told = ", ".join(f"{k} {v:.1e}" for k, v in exports.items()) if side == str(case[3][0]) else ""
            good = (r.get("f32", 0) <= F32 and r.get("bf16", 0) <= max(BF16, r.get("PyTorch", 0))
                    and all(v <= F32 for v in exports.values()))
            bad += not good
            shown = " | ".join(f"{r[k]:.1e}" if k in r else "" for k in ("f32", "bf16", "PyTorch"))
            say(f"| {case[0]} | {side} | {shown} | {told} |{'' if good else ' off'}")
    if a.table:
        with open(a.table, "w") as f:
            f.write("\n".join(lines) + "\n")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
