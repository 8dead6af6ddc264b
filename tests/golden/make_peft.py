#!/usr/bin/python3
"""Makes peft_*.safetensors: what PyTorch computes with the model of vit_registers.safetensors (make_vit.py) under each
parameter-efficient method, in float64, for tests/model/test_peft_golden.c: output, loss and the gradient of everything
that the method trains, away from its beginning ("value.": low-rank factors, biases, prompts; exact in bfloat16).

Run it in this folder; the output is committed.
"""
import torch
from safetensors.torch import save_file

from make_vit import F64, VARIANTS, forward, init, random_mask, rounded

RANK, PROMPTS = 4, 3
METHODS = {
    "lora": ["attn.q", "attn.v"],
    "lora_all": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"],
    "bitfit": [],
    "vpt": [],
    "vpt_deep": [],
    "linear": [],
}


def added(method, cfg, g):
    """What the method adds to the model: low-rank factors of layers, or prompts."""
    d, h, out = cfg["dim"], cfg["hidden"], {}
    shapes = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (h, d), "mlp.fc2": (d, h)}
    for i in range(cfg["depth"]):
        for layer in METHODS[method]:
            o, k = shapes.get(layer, (d, d))
            a, b = torch.randn(RANK, k, generator=g, dtype=F64), torch.randn(o, RANK, generator=g, dtype=F64)
            out[f"blocks.{i}.{layer}.lora_A.weight"] = rounded(a / k**0.5)
            out[f"blocks.{i}.{layer}.lora_B.weight"] = rounded(0.5 * b / RANK**0.5)
        if method == "vpt_deep" or (method == "vpt" and i == 0):
            out[f"blocks.{i}.prompts"] = rounded(0.5 * torch.randn(PROMPTS, d, generator=g, dtype=F64))
    return out


def trains(method, name):
    """Whether the method trains a tensor of the backbone or of what it added."""
    if method in ("full", "apla"):
        return method == "full" or ".attn.proj." in name
    return name.endswith(".bias") if method == "bitfit" else "lora_" in name or name.endswith(".prompts")


def main():
    seeds = list(VARIANTS)
    cfg = VARIANTS["registers"]
    backbone = init(cfg, torch.Generator().manual_seed(20240300 + seeds.index("registers")))
    g = torch.Generator().manual_seed(20261124)
    pixels = torch.randn(cfg["batch"], 3, *cfg["size"], generator=g).to(F64)
    mask = random_mask(g, cfg["batch"], cfg["size"][0] // cfg["patch"] * (cfg["size"][1] // cfg["patch"]))
    for method in METHODS:
        w = dict(backbone, **added(method, cfg, g))
        names = [n for n in w if trains(method, n)]
        if method == "bitfit":
            w.update({n: rounded(w[n] + 0.1 * torch.randn(w[n].shape, generator=g, dtype=F64)) for n in names})
        for n in names:
            w[n] = w[n].detach().requires_grad_()
        out = forward(w, cfg, pixels, mask)
        weights = torch.randn(out.shape, generator=g).to(F64)
        loss = (out * weights).sum()
        golden = {"pixels": pixels, "out": out, "weights": weights, "loss": loss.reshape(1)}
        if names:
            for n, grad in zip(names, torch.autograd.grad(loss, [w[n] for n in names])):
                golden["value." + n], golden["grad." + n] = w[n], grad
        golden = {k: v.detach().to(torch.float32).contiguous() for k, v in golden.items()}
        golden["mask"] = mask.to(torch.uint8)
        save_file(golden, f"peft_{method}.safetensors")
        print(method, "out", tuple(out.shape), "loss", float(loss), "trained", len(names))


if __name__ == "__main__":
    main()
