"""One step of DINOv2-style self-supervised adaptation in PyTorch on a GPU: the peer of `bench_ssa ... cuda`.

The same work as bench_ssa: student on 2 global crops of 224 and L of 98 pixels, teacher on the globals, DINO + iBOT + KoLeo,
a head of 2048-2048-256 and its prototypes, clipping, AdamW, EMA; bf16 autocast, fused AdamW, scaled_dot_product_attention.

    peer_ssa_cuda.py --model b14 --method full|apla --batch 32 [--compile]   # needs a GPU: one JSON line
    peer_ssa_cuda.py --model b14 --method full --batch 32 --fake             # needs none: bytes that it holds

--fake runs the step on tensors without data and counts weights, teacher, gradients, Adam's moments and every tensor that
autograd saves, each storage once. Not counted: PyTorch's context, workspaces, fragmentation, what lives for an op only.
"""
import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import nn

MODELS = {  # width, depth, heads, hidden width of the MLP, SwiGLU
    "s14": (384, 12, 6, 1536, False),
    "b14": (768, 12, 12, 3072, False),
    "l14": (1024, 24, 16, 4096, False),
    "g14": (1536, 40, 24, 4096, True),
}
PATCH, GLOBAL, LOCAL = 14, 224, 98


class Block(nn.Module):
    def __init__(self, dim, heads, hidden, swiglu):
        super().__init__()
        self.heads, self.swiglu = heads, swiglu
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.scale1, self.scale2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))
        self.fc1, self.fc2 = nn.Linear(dim, 2 * hidden if swiglu else hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, C)
        x = x + self.scale1 * self.proj(o)
        h = self.fc1(self.norm2(x))
        if self.swiglu:
            gate, value = h.chunk(2, dim=-1)
            h = F.silu(gate) * value
        else:
            h = F.gelu(h)
        return x + self.scale2 * self.fc2(h)


class Backbone(nn.Module):
    def __init__(self, dim, depth, heads, hidden, swiglu):
        super().__init__()
        self.grid = GLOBAL // PATCH
        self.patch = nn.Conv2d(3, dim, PATCH, PATCH)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask = nn.Parameter(torch.zeros(dim))
        self.pos = nn.Parameter(torch.randn(1, 1 + self.grid**2, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, swiglu) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, 1e-6)

    def positions(self, side):
        if side == self.grid:
            return self.pos
        grid = self.pos[:, 1:].reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(side, side), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cat([self.pos[:, :1], grid], 1)

    def forward(self, images, mask=None):
        x = self.patch(images).flatten(2).transpose(1, 2)
        if mask is not None:
            x = torch.where(mask[..., None], self.mask.to(x.dtype), x)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions(images.shape[-1] // PATCH)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Head(nn.Module):
    def __init__(self, dim, prototypes):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 256))
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(256, prototypes, bias=False))
        self.last.parametrizations.weight.original0.data.fill_(1)
        self.last.parametrizations.weight.original0.requires_grad_(False)

    def forward(self, x):
        return self.last(F.normalize(self.mlp(x), dim=-1))


class Step:
    def __init__(self, a, device):
        self.a, self.device = a, device
        width = MODELS[a.model][0]
        make = lambda: nn.ModuleDict({"backbone": Backbone(*MODELS[a.model]), "head": Head(width, a.prototypes)})
        with torch.device(device):
            self.student, self.teacher = make(), make()
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        if a.method == "apla":
            for name, p in self.student["backbone"].named_parameters():
                p.requires_grad_("proj." in name)
        trained = {n for n, p in self.student.named_parameters() if p.requires_grad}
        if a.method == "apla":  # what is frozen exists once
            own = dict(self.student.named_parameters())
            for name, p in self.teacher.named_parameters():
                if name not in trained:
                    p.data = own[name].data
        self.pairs = [(p, q) for (n, p), q in zip(self.student.named_parameters(), self.teacher.parameters()) if n in trained]
        self.params = [p for p, _ in self.pairs]
        if a.compile:
            self.student["backbone"].compile()
            self.teacher["backbone"].compile()
        B = a.batch
        self.patches = (GLOBAL // PATCH) ** 2
        with torch.device(device):
            self.center = [torch.zeros(a.prototypes), torch.zeros(a.prototypes)]
            self.globals = torch.randn(2 * B, 3, GLOBAL, GLOBAL)
            self.locals = torch.randn(a.locals * B, 3, LOCAL, LOCAL)
        masked = self.patches * 3 // 10
        rows = torch.cat([i * self.patches + torch.randperm(self.patches)[:masked].sort().values for i in range(B)])
        mask = torch.zeros(2 * B * self.patches, dtype=torch.bool).index_fill(0, rows, True).view(2 * B, self.patches)
        self.mask, self.rows = mask.to(device), rows.to(device)

    def targets(self, logits, which):
        q = ((logits - self.center[which]) / 0.04).softmax(-1)
        self.center[which].mul_(0.9).add_(logits.mean(0), alpha=0.1)
        return q

    def loss(self):
        a, B = self.a, self.a.batch
        cast = torch.autocast(self.device, dtype=torch.bfloat16)
        with torch.no_grad(), cast:
            tokens = self.teacher["backbone"](self.globals)
            head = self.teacher["head"]
            q_class = self.targets(head(tokens[:, 0]).float(), 0)
            q_patch = self.targets(head(tokens[:, 1:].flatten(0, 1)[self.rows]).float(), 1)
        with cast:
            tokens = self.student["backbone"](self.globals, self.mask)
            small = self.student["backbone"](self.locals)
            head = self.student["head"]
            p_class, p_local = head(tokens[:, 0]), head(small[:, 0])
            p_patch = head(tokens[:, 1:].flatten(0, 1)[self.rows])
        first, second = q_class[:B], q_class[B:]
        log = lambda z: (z.float() / 0.1).log_softmax(-1)
        local = log(p_local).view(a.locals, B, -1)
        both = log(p_class)
        dino = -((first + second) * local).sum(-1).mean(-1).sum()
        dino = dino - (second * both[:B]).sum(-1).mean() - (first * both[B:]).sum(-1).mean()
        ibot = -(q_patch * log(p_patch)).sum(-1).mean()
        koleo = 0
        for x in F.normalize(tokens[:, 0].float(), dim=-1).view(2, B, -1):
            near = (x @ x.t() - 2 * torch.eye(B, device=x.device)).argmax(1)
            koleo = koleo - ((x - x[near]).norm(dim=-1) + 1e-8).log().mean()
        return dino / (2 * a.locals + 2) + ibot + 0.1 * koleo

    def run(self, optimiser):
        loss = self.loss()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, 1.0)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_mul_([q.data for _, q in self.pairs], 0.994)
            torch._foreach_add_([q.data for _, q in self.pairs], [p.data for p, _ in self.pairs], alpha=0.006)
        return loss


def timed(a):
    torch.backends.cuda.matmul.allow_tf32 = True
    step = Step(a, "cuda")
    optimiser = torch.optim.AdamW(step.params, 1e-4, fused=True)
    for _ in range(3):
        loss = step.run(optimiser)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    took = []
    for _ in range(a.steps):
        start = time.perf_counter()
        loss = step.run(optimiser)
        torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    median = sorted(took)[len(took) // 2]
    return {"step_s": round(median, 4), "img_per_s": round(a.batch / median, 2), "device": torch.cuda.get_device_name(),
            "peak_mib": torch.cuda.max_memory_allocated() >> 20, "loss": round(float(loss), 4)}


def counted(a):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        # Tensors of the CPU: its autocast and attention save no more than CUDA's (whose LayerNorm saves fp32).
        step = Step(a, "cpu")
        key = lambda t: t.untyped_storage()._cdata
        weights = {key(p): p.untyped_storage().nbytes() for p in list(step.student.parameters()) + list(step.teacher.parameters())}
        saved, kept = {}, []

        def pack(t):
            if key(t) not in weights:
                saved[key(t)] = t.untyped_storage().nbytes()
                kept.append(t)  # a storage's address is not used again meanwhile
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            step.loss()
        trained = sum(p.numel() * 4 for p in step.params)
    mib = lambda n: round(n / 2**20)
    parts = {"weights_mib": mib(sum(weights.values())), "gradients_mib": mib(trained), "adam_mib": mib(2 * trained),
             "saved_mib": mib(sum(saved.values()))}
    return parts | {"held_mib": sum(parts.values())}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", choices=MODELS, default="b14")
    p.add_argument("--method", choices=("full", "apla"), default="full")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--locals", type=int, default=8)
    p.add_argument("--prototypes", type=int, default=65536)
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--compile", action="store_true")
    p.add_argument("--fake", action="store_true")
    a = p.parse_args()
    torch.manual_seed(0)
    result = counted(a) if a.fake else timed(a)
    print(json.dumps({"torch": torch.__version__, "model": a.model, "method": a.method, "batch": a.batch} | result))


main()
