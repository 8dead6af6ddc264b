#!/usr/bin/python3
"""Makes peft_*.safetensors: what PyTorch computes with the model of vit_registers.safetensors (make_vit.py), or of
vit_swiglu_timm.safetensors (peft_swiglu_*), under each parameter-efficient method, in float64, for tests/model/test_peft_golden.c: output, loss and the gradient of everything
that the method trains, away from its beginning ("value.": low-rank factors, biases, prompts; exact in bfloat16).

Run it in this folder; the output is committed.
"""
import torch
from safetensors.torch import save_file

from make_vit import F64, VARIANTS, forward, init, random_mask, rounded

RANK, PROMPTS = 4, 3
METHODS = {  # LoRA's layers
    "lora": ["attn.q", "attn.v"],
    "lora_all": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"],
    "bitfit": [],
    "vpt": [],
    "vpt_deep": [],
    "linear": [],
}
GATED = {"swiglu_lora": ["attn.v", "mlp.w12", "mlp.w3"], "swiglu_bitfit": []}


def added(method, layers, cfg, g):
    """What the method adds to the model: low-rank factors of layers, or prompts."""
    d, h, out = cfg["dim"], cfg["hidden"], {}
    shapes = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (h, d), "mlp.fc2": (d, h), "mlp.w12": (2 * h, d),
              "mlp.w3": (d, h)}
    for i in range(cfg["depth"]):
        for layer in layers:
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


def make(model, methods, seed):
    cfg = VARIANTS[model]
    backbone = init(cfg, torch.Generator().manual_seed(20240300 + list(VARIANTS).index(model)))
    if not cfg["mask_token"]:
        backbone["mask_token"] = torch.zeros(1, cfg["dim"], dtype=F64)  # as our loader has it
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randn(cfg["batch"], 3, *cfg["size"], generator=g).to(F64)
    mask = random_mask(g, cfg["batch"], cfg["size"][0] // cfg["patch"] * (cfg["size"][1] // cfg["patch"]))
    for name, layers in methods.items():
        method = name.removeprefix("swiglu_")
        w = dict(backbone, **added(method, layers, cfg, g))
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
        save_file(golden, f"peft_{name}.safetensors")
        print(name, "out", tuple(out.shape), "loss", float(loss), "trained", len(names))


def main():
    make("registers", METHODS, 20261124)
    make("swiglu_timm", GATED, 20261125)


if __name__ == "__main__":
    main()
