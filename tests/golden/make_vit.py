#!/usr/bin/python3
"""Makes vit_*.safetensors (tiny state dicts) and vit_*.golden.safetensors (what PyTorch computes with them), for
tests/model/test_vit_golden.c.

A Vision Transformer written from its description, in float64: pre-norm blocks, exact GELU or SwiGLU, LayerScale or
none, class token or none, registers, mask token, positional interpolation of DINOv2 (scale factor with the 0.1 offset,
no antialias), of timm (by size, antialias) and of Hugging Face's Dinov2Model (by size, no antialias). Weights are exact in bfloat16, which the state dicts use. The loss is
sum(out * weights of the golden file); gradients are of every parameter, under DINOv2's names.

Needs Debian's python3-torch (1.13) and python3-safetensors. Run it in this folder; the output is committed.
"""
import math

import torch
import torch.nn.functional as F

try:
    from safetensors.torch import save_file
except ImportError:  # only the arithmetic is wanted
    save_file = None

F64 = torch.float64
LORA_SCALE = 6 / 4  # alpha / rank


def rounded(t):
    """To values that bfloat16 holds exactly."""
    return t.to(torch.bfloat16).to(F64)


def init(cfg, g):
    """A state dict under DINOv2's names, everything far enough from zero and one to matter."""
    d, h, p, n = cfg["dim"], cfg["hidden"], cfg["patch"], cfg["grid"] ** 2

    def normal(*shape, std, mean=0.0):
        return rounded(mean + std * torch.randn(*shape, generator=g, dtype=F64))

    w = {"pos_embed": normal(1, n + cfg["cls"], d, std=0.4)}
    if cfg["cls"]:
        w["cls_token"] = normal(1, 1, d, std=0.5)
    if cfg["registers"]:
        w["register_tokens"] = normal(1, cfg["registers"], d, std=0.5)
    if cfg["mask_token"]:
        w["mask_token"] = normal(1, d, std=0.5)
    w["patch_embed.proj.weight"] = normal(d, 3, p, p, std=1.0 / math.sqrt(3 * p * p))
    w["patch_embed.proj.bias"] = normal(d, std=0.2)
    for i in range(cfg["depth"]):
        b = f"blocks.{i}."
        for name in ("norm1", "norm2"):
            w[b + name + ".weight"] = normal(d, std=0.25, mean=1.0)
            w[b + name + ".bias"] = normal(d, std=0.2)
        mlp = (("mlp.w12", 2 * h, d, 0.8), ("mlp.w3", d, h, 1.0)) if cfg.get("swiglu") else (("mlp.fc1", h, d, 1.2),
                                                                                            ("mlp.fc2", d, h, 1.0))
        for name, o, k, std in (("attn.qkv", 3 * d, d, 1.3), ("attn.proj", d, d, 1.0)) + mlp:
            w[b + name + ".weight"] = normal(o, k, std=std / math.sqrt(k))
            w[b + name + ".bias"] = normal(o, std=0.2)
        if cfg["layer_scale"]:
            for name in ("ls1", "ls2"):
                w[b + name + ".gamma"] = normal(d, std=0.2, mean=0.6)
    w["norm.weight"] = normal(d, std=0.25, mean=1.0)
    w["norm.bias"] = normal(d, std=0.2)
    return w


def positions(w, cfg, rows, cols):
    """(1, cls + rows * cols, d)."""
    pos, grid = w["pos_embed"], cfg["grid"]
    if rows == grid and cols == grid:
        return pos
    first, rest = pos[:, : cfg["cls"]], pos[:, cfg["cls"] :]
    rest = rest.reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    if cfg["pos"] == "dinov2":
        rest = F.interpolate(rest, scale_factor=((rows + 0.1) / grid, (cols + 0.1) / grid), mode="bicubic")
    else:
        rest = F.interpolate(rest, size=(rows, cols), mode="bicubic", antialias=cfg["pos"] != "size, not smoothed")
    assert rest.shape[2:] == (rows, cols)
    return torch.cat([first, rest.permute(0, 2, 3, 1).reshape(1, rows * cols, -1)], 1)


def forward(w, cfg, pixels, mask=None):
    """pixels (B,3,H,W), mask (B,P) bool or None -> tokens after the final norm (B,T,d). Without a class token the mean of
    the patch tokens stands in its place. w may hold what make_peft.py adds: low-rank updates of layers, and prompts, whose
    tokens come behind the registers."""
    d, heads, p = cfg["dim"], cfg["heads"], cfg["patch"]
    B, rows, cols = pixels.shape[0], pixels.shape[2] // p, pixels.shape[3] // p
    x = F.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=p)
    x = x.flatten(2).transpose(1, 2)
    if mask is not None:
        x = torch.where(mask[:, :, None], w["mask_token"].reshape(1, 1, d), x)
    if cfg["cls"]:
        x = torch.cat([w["cls_token"].expand(B, 1, d), x], 1)
    x = x + positions(w, cfg, rows, cols)
    if cfg["registers"]:
        x = torch.cat([x[:, :1], w["register_tokens"].expand(B, -1, d), x[:, 1:]], 1)
    lead = cfg["cls"] + cfg["registers"]
    if "blocks.0.prompts" in w:
        x = torch.cat([x[:, :lead], w["blocks.0.prompts"].expand(B, -1, d), x[:, lead:]], 1)
    T = x.shape[1]
    for i in range(cfg["depth"]):
        b = f"blocks.{i}."
        if i and b + "prompts" in w:
            own = w[b + "prompts"]
            x = torch.cat([x[:, :lead], own.expand(B, -1, d), x[:, lead + own.shape[0] :]], 1)

        def norm(t, name):
            return F.layer_norm(t, (d,), w[name + ".weight"], w[name + ".bias"], cfg["eps"])

        def linear(t, name):
            y = F.linear(t, w[b + name + ".weight"], w[b + name + ".bias"])
            for layer, first in ((name, 0),) + ((("attn.q", 0), ("attn.k", d), ("attn.v", 2 * d)) * (name == "attn.qkv")):
                if b + layer + ".lora_A.weight" in w:
                    low = F.linear(t, w[b + layer + ".lora_A.weight"]) * LORA_SCALE
                    update = F.linear(low, w[b + layer + ".lora_B.weight"])
                    y = y + F.pad(update, (first, y.shape[-1] - first - update.shape[-1]))
            return y

        def scaled(t, name):
            return t * w[b + name + ".gamma"] if cfg["layer_scale"] else t

        qkv = linear(norm(x, b + "norm1"), "attn.qkv").reshape(B, T, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        a = (q @ k.transpose(-2, -1) / math.sqrt(d // heads)).softmax(-1) @ v
        x = x + scaled(linear(a.transpose(1, 2).reshape(B, T, d), "attn.proj"), "ls1")
        if cfg.get("swiglu"):
            x1, x2 = linear(norm(x, b + "norm2"), "mlp.w12").chunk(2, -1)
            x = x + scaled(linear(F.silu(x1) * x2, "mlp.w3"), "ls2")
        else:
            x = x + scaled(linear(F.gelu(linear(norm(x, b + "norm2"), "mlp.fc1")), "mlp.fc2"), "ls2")
    x = F.layer_norm(x, (d,), w["norm.weight"], w["norm.bias"], cfg["eps"])
    return x if cfg["cls"] else torch.cat([x.mean(1, keepdim=True), x], 1)


def timm_names(w):
    def name(k):
        return k.replace("register_tokens", "reg_token").replace("mlp.w12", "mlp.fc1").replace("mlp.w3", "mlp.fc2")

    return {name(k): v for k, v in w.items() if k != "mask_token"}


def hugging_face_names(w):
    out = {}
    for k, v in w.items():
        k = k.replace("blocks.", "encoder.layer.").replace("attn.proj", "attention.output.dense")
        k = k.replace("ls1.gamma", "layer_scale1.lambda1").replace("ls2.gamma", "layer_scale2.lambda1")
        k = k.replace("mlp.w12", "mlp.weights_in").replace("mlp.w3", "mlp.weights_out")
        k = k.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        k = k.replace("pos_embed", "embeddings.position_embeddings")
        for name in ("cls_token", "mask_token", "register_tokens"):
            if k == name:
                k = "embeddings." + k
        if k.startswith("norm."):
            k = k.replace("norm.", "layernorm.")
        if "attn.qkv" in k:
            for name, part in zip(("query", "key", "value"), v.chunk(3)):
                out[k.replace("attn.qkv", "attention.attention." + name)] = part
        else:
            out[k] = v
    return out


def random_mask(g, B, P):
    """The last image unmasked, the others half masked, as DINOv2 has both in one batch."""
    mask = torch.rand(B, P, generator=g) < 0.5
    mask[-1] = False
    return mask


BASE = dict(dim=24, depth=2, heads=3, hidden=40, patch=4, grid=5, cls=1, registers=0, layer_scale=True, mask_token=True,
            pos="dinov2", eps=1e-6, names="dinov2", size=(20, 20), batch=2)
VARIANTS = {
    "dinov2": dict(BASE, dim=48, hidden=72, batch=3),
    "local": dict(BASE, size=(12, 12)),                       # DINOv2: 5x5 -> 3x3 with the 0.1 offset
    "larger": dict(BASE, size=(28, 24), names="hf", pos="size, not smoothed"),  # 5x5 -> 7x6, heads' weights in three parts
    "registers": dict(BASE, registers=4, pos="size", size=(12, 20)),  # antialias, 5x5 -> 3x5
    "timm": dict(BASE, layer_scale=False, mask_token=False, pos="size", patch=8, grid=3, size=(24, 24), names="timm"),
    "timm_larger": dict(BASE, layer_scale=False, mask_token=False, pos="size", size=(28, 16), names="timm"),
    "patches_only": dict(BASE, cls=0, layer_scale=False, mask_token=False, pos="size", grid=4, size=(16, 16), names="timm"),
    "swiglu": dict(BASE, swiglu=True, hidden=33, size=(12, 20)),  # DINOv2's ViT-g, small and odd
    "swiglu_timm": dict(BASE, swiglu=True, registers=4, mask_token=False, pos="size", names="timm", size=(12, 20)),
    "swiglu_hf": dict(BASE, swiglu=True, size=(28, 24), names="hf", pos="size, not smoothed"),
}


def main():
    for seed, (name, cfg) in enumerate(VARIANTS.items()):
        g = torch.Generator().manual_seed(20240300 + seed)
        w = init(cfg, g)
        named = {"dinov2": lambda x: x, "timm": timm_names, "hf": hugging_face_names}[cfg["names"]](w)
        save_file({k: v.to(torch.bfloat16).contiguous() for k, v in named.items()}, f"vit_{name}.safetensors")
        for v in w.values():
            v.requires_grad_()
        pixels = torch.randn(cfg["batch"], 3, *cfg["size"], generator=g).to(F64)
        P = cfg["size"][0] // cfg["patch"] * (cfg["size"][1] // cfg["patch"])
        mask = random_mask(g, cfg["batch"], P) if cfg["mask_token"] else None
        out = forward(w, cfg, pixels, mask)
        weights = torch.randn(out.shape, generator=g).to(F64)
        loss = (out * weights).sum()
        loss.backward()
        golden = {"pixels": pixels, "out": out, "weights": weights, "loss": loss.reshape(1)}
        golden = {k: v.detach().to(torch.float32).contiguous() for k, v in golden.items()}
        if mask is not None:
            golden["mask"] = mask.to(torch.uint8)
        for k, v in w.items():
            golden["grad." + k] = v.grad.to(torch.float32).contiguous()
        save_file(golden, f"vit_{name}.golden.safetensors")
        print(name, "out", tuple(out.shape), "loss", float(loss))


if __name__ == "__main__":
    main()
