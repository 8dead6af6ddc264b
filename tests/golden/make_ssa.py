#!/usr/bin/python3
"""Makes ssa.safetensors (a tiny ViT), ssa_<method>.safetensors and ssa_variants.safetensors: whole steps of
self-supervised adaptation as PyTorch computes them in float64, for tests/adapt/test_ssl_step.c.

DINO + iBOT + KoLeo (DINOv2's losses), targets by EMA-softmax centring or Sinkhorn-Knopp, one head for class and patch
tokens or one each, weight-normalised prototypes with g = 1; then clipping over all gradients jointly, AdamW, centres,
EMA teacher. Two global and two local crops of three images; teacher and student start from different weights; one
global crop is unmasked. AdamW's eps is large, so that gradients which are zero but for rounding (those of key biases)
do not decide the update.

Results of a case: the first step's loss terms, gradients, weights, teacher and centres after it, and the loss terms of
ten steps on the same inputs, with some weights at their end. ssa_<method> has the inputs and whole tensors of softmax
centring with one head; ssa_variants has the second head's weights, and of every case in CASES at most KEPT values a
tensor, evenly spaced, under "case/". "hyper" are HYPER's values in its order.
Needs PyTorch and safetensors. Run it in this folder; the output is committed.
"""
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from make_peft import METHODS as LAYERS, added, trains
from make_vit import BASE, F64, forward, init, rounded

CFG = dict(BASE)
B, L, HIDDEN, BOTTLENECK, K = 3, 2, 28, 12, 33
GLOBAL, LOCAL = 20, 12
HYPER = dict(student_temp=0.1, teacher_temp=0.05, center_momentum=0.9, dino=1.0, ibot=0.7, koleo=0.1, clip=0.5,
             beta1=0.9, beta2=0.999, eps=1e-4, weight_decay=0.04, lr=2e-3, head_lr=4e-3, momentum=0.97)
STEPS = 10
KEPT = 24
# What vit_train draws for 5 rows from seed 1: the test says when it draws others.
ROWS = ([4, 6, 7, 18, 20], [2, 7, 13, 19, 23])


METHODS = ("apla", "full", "lora", "bitfit", "vpt", "vpt_deep", "linear")
CASES = [(m, c, h) for m in ("apla", "apla5", "full") for c in ("softmax", "sinkhorn") for h in ("shared", "separate")]
CASES += [(m, "sinkhorn", h) for m in METHODS[2:] for h in ("shared", "separate")]


def init_head(g, name):
    d, w = CFG["dim"], {}
    for i, (o, k) in enumerate(((HIDDEN, d), (HIDDEN, HIDDEN), (BOTTLENECK, HIDDEN))):
        w[f"{name}.mlp.{2 * i}.weight"] = rounded(torch.randn(o, k, generator=g, dtype=F64) * (1.5 / k**0.5))
        w[f"{name}.mlp.{2 * i}.bias"] = rounded(torch.randn(o, generator=g, dtype=F64) * 0.2)
    w[f"{name}.last_layer.weight_v"] = rounded(torch.randn(K, BOTTLENECK, generator=g, dtype=F64) * 0.5)
    return w


def head(w, x, name):
    for i in (0, 2, 4):
        x = F.linear(x, w[f"{name}.mlp.{i}.weight"], w[f"{name}.mlp.{i}.bias"])
        if i < 4:
            x = F.gelu(x)
    v = w[f"{name}.last_layer.weight_v"]
    return F.linear(F.normalize(x, dim=-1), v / v.norm(dim=1, keepdim=True))


def sinkhorn(raw):
    """Rows of Q are prototypes, columns samples; three times each is made to share its mass evenly."""
    q = ((raw - raw.max()) / HYPER["teacher_temp"]).exp().T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def cross_entropy(target, logits):
    """H(t, s) of each row."""
    return -(target * F.log_softmax(logits / HYPER["student_temp"], -1)).sum(-1)


def koleo(x):
    x = F.normalize(x, dim=-1)
    with torch.no_grad():
        nearest = (x @ x.T).fill_diagonal_(-1).argmax(1)
    return -torch.log((x - x[nearest]).norm(dim=1) + 1e-8).mean()


def losses(student, teacher, centers, data, centering, ibot_head):
    """(dino, ibot, koleo), the teacher's raw logits of class tokens and of masked patches, and its targets."""
    mask, P = data["mask"], data["mask"].shape[1]
    with torch.no_grad():
        tokens = forward(teacher, CFG, data["globals"])
        raw = [head(teacher, tokens[:, 0], "dino_head"), head(teacher, tokens[:, -P:][mask], ibot_head)]
        if centering == "sinkhorn":
            q = [sinkhorn(r) for r in raw]
        else:
            q = [((r - c) / HYPER["teacher_temp"]).softmax(-1) for r, c in zip(raw, centers)]
    tokens = forward(student, CFG, data["globals"], mask)
    local = forward(student, CFG, data["locals"])
    cls = tokens[:, 0]
    s_global = head(student, cls, "dino_head").reshape(2, B, K)
    s_local = head(student, local[:, 0], "dino_head").reshape(L, B, K)
    target = q[0].reshape(2, B, K)
    dino = sum(cross_entropy(target[g], s_local[l]).mean() for g in range(2) for l in range(L))
    dino = dino + cross_entropy(target[0], s_global[1]).mean() + cross_entropy(target[1], s_global[0]).mean()
    dino = dino / (2 * L + 2)
    each = cross_entropy(q[1], head(student, tokens[:, -P:][mask], ibot_head))
    share = (mask / mask.sum(1, keepdim=True).clamp(min=1))[mask]
    ibot = (each * share).sum() / (2 * B)
    return (dino, ibot, koleo(cls[:B]) + koleo(cls[B:])), raw, q


def decays(name):
    return not (name.endswith(".bias") or "norm" in name or "gamma" in name)


def entropy(p):
    return -(p * p.clamp(min=1e-300).log()).sum(-1)


def trained(method, name):
    """Whether a tensor of the backbone trains, or of what the method added to it."""
    return "_head." not in name and trains(method.removesuffix("5"), name)


def run(method, centering, heads, student, teacher, data):
    """Results of a case, in float64."""
    rows = ROWS if method == "apla5" else None
    ibot_head = "ibot_head" if heads == "separate" else "dino_head"
    names = [n for n in student if n.startswith(("dino_head.", ibot_head)) or trained(method, n)]

    def part(name, t):
        """The trained rows of a tensor."""
        return t[rows[int(name.split(".")[1])]] if rows and "_head." not in name else t

    def put(name, whole, t):
        if not rows or "_head." in name:
            return t
        whole = whole.clone()
        whole[rows[int(name.split(".")[1])]] = t
        return whole

    student = {n: v.clone() for n, v in student.items()}
    teacher = {n: put(n, student[n], part(n, teacher[n])) if n in names else student[n].clone() for n in student}
    centers = [data["center.class"].clone(), data["center.patch"].clone()]
    out, history, h = {}, [], HYPER
    state = {n: [torch.zeros_like(part(n, student[n])), torch.zeros_like(part(n, student[n]))] for n in names}
    for t in range(1, STEPS + 1):
        for n in names:
            student[n] = student[n].detach().requires_grad_()
        terms, raw, q = losses(student, teacher, centers, data, centering, ibot_head)
        loss = sum(h[k] * v for k, v in zip(("dino", "ibot", "koleo"), terms))
        whole = torch.autograd.grad(loss, [student[n] for n in names])
        grads = {n: part(n, g) for n, g in zip(names, whole)}
        norm = sum((g * g).sum() for g in grads.values()).sqrt()
        history.append(torch.stack([loss, *terms, norm]).detach())
        scale = min(1.0, h["clip"] / (float(norm) + 1e-6))
        with torch.no_grad():
            for n in names:
                m, v = state[n]
                g = grads[n] * scale
                lr = h["head_lr"] if "_head." in n else h["lr"]
                m.mul_(h["beta1"]).add_(g, alpha=1 - h["beta1"])
                v.mul_(h["beta2"]).addcmul_(g, g, value=1 - h["beta2"])
                w = part(n, student[n].detach()) * (1 - (lr * h["weight_decay"] if decays(n) else 0))
                step = (m / (1 - h["beta1"] ** t)) / ((v / (1 - h["beta2"] ** t)).sqrt() + h["eps"])
                w = w - lr * step
                teacher[n] = put(n, teacher[n], h["momentum"] * part(n, teacher[n]) + (1 - h["momentum"]) * w)
                student[n] = put(n, student[n].detach(), w)
            c = h["center_momentum"]
            if centering == "softmax":
                centers = [c * a + (1 - c) * r.mean(0) for a, r in zip(centers, raw)]
        if t == 1:
            for n in names:
                out["grad." + n] = grads[n]
                out["student1." + n] = part(n, student[n].detach())
                out["teacher1." + n] = part(n, teacher[n])
            if centering == "softmax":
                out["center1.class"], out["center1.patch"] = centers
            out["entropy"] = torch.stack([e for p in q for e in (entropy(p).mean(), entropy(p.mean(0)))])
    for n in ("dino_head.last_layer.weight_v", ibot_head + ".last_layer.weight_v"):
        out["student10." + n], out["teacher10." + n] = student[n], teacher[n]
    for n in ("blocks.0.attn.proj.weight", "blocks.1.attn.proj.bias"):
        if n in names:
            out["student10." + n] = part(n, student[n])
    out["history"] = torch.stack(history)  # (steps, 5): loss, dino, ibot, koleo, gradient norm
    print(method, centering, heads, "loss, dino, ibot, koleo, norm:")
    print(out["history"][[0, 1, -1]])
    return out


def inputs(method, student, teacher, data):
    """What a case starts from, as ssa_<method> holds it."""
    out = {k: v for k, v in data.items() if k != "mask"}
    out["mask"] = data["mask"].to(torch.uint8)
    for n in student:
        if n.startswith("dino_head.") or trained(method, n):
            out["teacher." + n] = teacher[n].to(torch.bfloat16)
        if n.startswith("dino_head.") or "lora_" in n or n.endswith(".prompts"):
            out["student." + n] = student[n].to(torch.bfloat16)
    return out


def thinned(t):
    t = t.flatten()
    kept = min(len(t), KEPT)
    return t[torch.arange(kept) * len(t) // kept]


def save(out, path):
    out = {k: (v.to(torch.float32) if v.dtype == F64 else v).detach().contiguous() for k, v in out.items()}
    out["hyper"] = torch.tensor(list(HYPER.values()))
    save_file(out, path)


def starts(weights, g):
    """The teacher's: near the student's."""
    return {n: rounded(v + 0.1 * v.std() * torch.randn(v.shape, generator=g, dtype=F64)) for n, v in weights.items()}


def main():
    g = torch.Generator().manual_seed(20241124)
    student = init(CFG, g)
    save_file({k: v.to(torch.bfloat16) for k, v in student.items()}, "ssa.safetensors")
    student.update(init_head(g, "dino_head"))
    teacher = starts(student, g)
    P = (GLOBAL // CFG["patch"]) ** 2
    mask = torch.rand(2 * B, P, generator=g) < torch.linspace(0.1, 0.5, 2 * B)[:, None]
    mask[2] = False
    data = {"globals": torch.randn(2 * B, 3, GLOBAL, GLOBAL, generator=g).to(F64),
            "locals": torch.randn(L * B, 3, LOCAL, LOCAL, generator=g).to(F64), "mask": mask,
            "center.class": (0.1 * torch.randn(K, generator=g)).to(F64),
            "center.patch": (0.1 * torch.randn(K, generator=g)).to(F64)}
    second_g = torch.Generator().set_state(g.get_state())
    second = init_head(second_g, "ibot_head")
    second_teacher = starts(second, second_g)
    begin = {}
    for method in METHODS:
        more = added(method, LAYERS.get(method, ()), CFG, g)
        begin[method] = {**student, **more}, {**teacher, **starts(more, g)}
        save({**inputs(method, *begin[method], data), **run(method, "softmax", "shared", *begin[method], data)},
             f"ssa_{method}.safetensors")
    begin["apla5"] = begin["apla"]
    variants = {"student." + n: v.to(torch.bfloat16) for n, v in second.items()}
    variants.update({"teacher." + n: v.to(torch.bfloat16) for n, v in second_teacher.items()})
    for case in CASES:
        first, first_teacher = begin[case[0]]
        two = case[2] == "separate"
        out = run(*case, {**first, **(second if two else {})}, {**first_teacher, **(second_teacher if two else {})},
                  data)
        for n, t in out.items():
            variants["-".join(case) + "/" + n] = t if n in ("history", "entropy") else thinned(t)
    save(variants, "ssa_variants.safetensors")


if __name__ == "__main__":
    main()
