#!/usr/bin/python3
"""Makes ssa.safetensors (a tiny ViT) and ssa_<method>.safetensors of every method: whole steps of self-supervised
adaptation as PyTorch computes them in float64, for tests/adapt/test_ssl_golden.c.

DINO + iBOT + KoLeo with EMA-softmax centring (DINOv2's losses), one head for class and patch tokens, weight-normalised
prototypes with g = 1; then clipping over all gradients jointly, AdamW, centres, EMA teacher. Two global and two local
crops of three images; teacher and student start from different weights; one global crop is unmasked. AdamW's eps is
large, so that gradients which are zero but for rounding (those of key biases) do not decide the update.

Each file has the inputs, the first step's loss terms, gradients, weights, teacher and centres after it, and the loss
terms of ten steps on the same inputs, with the prototypes at their end. "hyper" are HYPER's values in its order.
Needs Debian's python3-torch (1.13) and python3-safetensors. Run it in this folder; the output is committed.
"""
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from make_peft import added, trains
from make_vit import BASE, F64, forward, init, rounded

CFG = dict(BASE)
B, L, HIDDEN, BOTTLENECK, K = 3, 2, 28, 12, 33
GLOBAL, LOCAL = 20, 12
HYPER = dict(student_temp=0.1, teacher_temp=0.05, center_momentum=0.9, dino=1.0, ibot=0.7, koleo=0.1, clip=0.5,
             beta1=0.9, beta2=0.999, eps=1e-4, weight_decay=0.04, lr=2e-3, head_lr=4e-3, momentum=0.97)
STEPS = 10


def init_head(g):
    d, w = CFG["dim"], {}
    for i, (o, k) in enumerate(((HIDDEN, d), (HIDDEN, HIDDEN), (BOTTLENECK, HIDDEN))):
        w[f"dino_head.mlp.{2 * i}.weight"] = rounded(torch.randn(o, k, generator=g, dtype=F64) * (1.5 / k**0.5))
        w[f"dino_head.mlp.{2 * i}.bias"] = rounded(torch.randn(o, generator=g, dtype=F64) * 0.2)
    w["dino_head.last_layer.weight_v"] = rounded(torch.randn(K, BOTTLENECK, generator=g, dtype=F64) * 0.5)
    return w


def head(w, x):
    for i in (0, 2, 4):
        x = F.linear(x, w[f"dino_head.mlp.{i}.weight"], w[f"dino_head.mlp.{i}.bias"])
        if i < 4:
            x = F.gelu(x)
    v = w["dino_head.last_layer.weight_v"]
    return F.linear(F.normalize(x, dim=-1), v / v.norm(dim=1, keepdim=True))


def cross_entropy(target, logits):
    """H(t, s) of each row."""
    return -(target * F.log_softmax(logits / HYPER["student_temp"], -1)).sum(-1)


def koleo(x):
    x = F.normalize(x, dim=-1)
    with torch.no_grad():
        nearest = (x @ x.T).fill_diagonal_(-1).argmax(1)
    return -torch.log((x - x[nearest]).norm(dim=1) + 1e-8).mean()


def losses(student, teacher, centers, data):
    """(dino, ibot, koleo), the teacher's raw logits of class tokens and of masked patches, and its targets."""
    mask = data["mask"]
    with torch.no_grad():
        tokens = forward(teacher, CFG, data["globals"])
        raw = [head(teacher, tokens[:, 0]), head(teacher, tokens[:, -mask.shape[1] :][mask])]
        q = [((r - c) / HYPER["teacher_temp"]).softmax(-1) for r, c in zip(raw, centers)]
    tokens = forward(student, CFG, data["globals"], mask)
    local = forward(student, CFG, data["locals"])
    cls = tokens[:, 0]
    s_global = head(student, cls).reshape(2, B, K)
    s_local = head(student, local[:, 0]).reshape(L, B, K)
    target = q[0].reshape(2, B, K)
    dino = sum(cross_entropy(target[g], s_local[l]).mean() for g in range(2) for l in range(L))
    dino = dino + cross_entropy(target[0], s_global[1]).mean() + cross_entropy(target[1], s_global[0]).mean()
    dino = dino / (2 * L + 2)
    each = cross_entropy(q[1], head(student, tokens[:, -mask.shape[1] :][mask]))
    share = (mask / mask.sum(1, keepdim=True).clamp(min=1))[mask]
    ibot = (each * share).sum() / (2 * B)
    return (dino, ibot, koleo(cls[:B]) + koleo(cls[B:])), raw, q


def decays(name):
    return not (name.endswith(".bias") or "norm" in name or "gamma" in name)


def entropy(p):
    return -(p * p.clamp(min=1e-300).log()).sum(-1)


def run(method, student, teacher, data):
    names = [n for n in student if trains(method, n) or n.startswith("dino_head.")]
    student = {n: v.clone() for n, v in student.items()}
    teacher = {n: (teacher if n in names else student)[n].clone() for n in student}
    centers = [data["center.class"].clone(), data["center.patch"].clone()]
    out = {k: v.to(torch.float32) for k, v in data.items() if k != "mask"}
    out["mask"] = data["mask"].to(torch.uint8)
    for n in names:
        out["teacher." + n] = teacher[n].to(torch.bfloat16)
        if n.startswith("dino_head.") or "lora_" in n or n.endswith(".prompts"):
            out["student." + n] = student[n].to(torch.bfloat16)
    h, state, history = HYPER, {n: [torch.zeros_like(student[n]), torch.zeros_like(student[n])] for n in names}, []
    for t in range(1, STEPS + 1):
        for n in names:
            student[n] = student[n].detach().requires_grad_()
        terms, raw, q = losses(student, teacher, centers, data)
        loss = sum(h[k] * v for k, v in zip(("dino", "ibot", "koleo"), terms))
        grads = dict(zip(names, torch.autograd.grad(loss, [student[n] for n in names])))
        norm = sum((g * g).sum() for g in grads.values()).sqrt()
        history.append(torch.stack([loss, *terms, norm]).detach())
        scale = min(1.0, h["clip"] / (float(norm) + 1e-6))
        with torch.no_grad():
            for n in names:
                m, v = state[n]
                g = grads[n] * scale
                lr = h["head_lr"] if n.startswith("dino_head.") else h["lr"]
                m.mul_(h["beta1"]).add_(g, alpha=1 - h["beta1"])
                v.mul_(h["beta2"]).addcmul_(g, g, value=1 - h["beta2"])
                w = student[n].detach() * (1 - (lr * h["weight_decay"] if decays(n) else 0))
                step = (m / (1 - h["beta1"] ** t)) / ((v / (1 - h["beta2"] ** t)).sqrt() + h["eps"])
                student[n] = w - lr * step
                teacher[n] = h["momentum"] * teacher[n] + (1 - h["momentum"]) * student[n]
            c = h["center_momentum"]
            centers = [c * a + (1 - c) * r.mean(0) for a, r in zip(centers, raw)]
        if t == 1:
            for n in names:
                out["grad." + n] = grads[n]
                out["student1." + n] = student[n].detach()
                out["teacher1." + n] = teacher[n]
            out["center1.class"], out["center1.patch"] = centers
            out["entropy"] = torch.stack([e for p in q for e in (entropy(p).mean(), entropy(p.mean(0)))])
    last = "dino_head.last_layer.weight_v"
    out["student10." + last], out["teacher10." + last] = student[last], teacher[last]
    for n in ("blocks.0.attn.proj.weight", "blocks.1.attn.proj.bias"):
        if n in names:
            out["student10." + n] = student[n]
    out["history"] = torch.stack(history)  # (steps, 5): loss, dino, ibot, koleo, gradient norm
    out = {k: (v.to(torch.float32) if v.dtype == F64 else v).detach().contiguous() for k, v in out.items()}
    out["hyper"] = torch.tensor(list(HYPER.values()))
    save_file(out, f"ssa_{method}.safetensors")
    print(method, "loss, dino, ibot, koleo, norm:")
    print(out["history"][[0, 1, -1]])


def main():
    g = torch.Generator().manual_seed(20241124)
    student = init(CFG, g)
    save_file({k: v.to(torch.bfloat16) for k, v in student.items()}, "ssa.safetensors")
    student.update(init_head(g))
    teacher = {n: rounded(v + 0.1 * v.std() * torch.randn(v.shape, generator=g, dtype=F64)) for n, v in student.items()}
    P = (GLOBAL // CFG["patch"]) ** 2
    mask = torch.rand(2 * B, P, generator=g) < torch.linspace(0.1, 0.5, 2 * B)[:, None]
    mask[2] = False
    data = {"globals": torch.randn(2 * B, 3, GLOBAL, GLOBAL, generator=g).to(F64),
            "locals": torch.randn(L * B, 3, LOCAL, LOCAL, generator=g).to(F64), "mask": mask,
            "center.class": (0.1 * torch.randn(K, generator=g)).to(F64),
            "center.patch": (0.1 * torch.randn(K, generator=g)).to(F64)}
    for method in ("apla", "full"):
        run(method, student, teacher, data)
    for method in ("lora", "bitfit", "vpt", "vpt_deep", "linear"):
        more = added(method, CFG, g)
        moved = {n: rounded(v + 0.1 * v.std() * torch.randn(v.shape, generator=g, dtype=F64)) for n, v in more.items()}
        run(method, dict(student, **more), dict(teacher, **moved), data)


if __name__ == "__main__":
    main()
