"""Makes torch_*.pth for tests/io/test_pth.c: state dicts as PyTorch really writes them. Value i of a tensor is
(i - 3) / 4 in row-major order, which every type here holds exactly. Needs PyTorch; run it in this folder."""
import argparse
import pathlib
from collections import Counter, OrderedDict, defaultdict

import numpy
import torch


def values(*shape, type=torch.float32, offset=-3):
    n = 1
    for s in shape:
        n *= s
    v = (torch.arange(n, dtype=torch.float64) + offset).reshape(shape)
    return (v if type in (torch.int64, torch.int32) else v / 4).to(type)


def main():
    pool = torch.cat([torch.zeros(5), values(4, 3).flatten()])
    transposed = values(4, 3).t().contiguous().t()
    assert not transposed.is_contiguous()
    tensors = OrderedDict(
        f32=values(2, 3),
        f64=values(5, type=torch.float64),
        f16=values(3, 2, type=torch.float16),
        bf16=values(7, type=torch.bfloat16),
        i64=values(4, type=torch.int64),
        i32=values(4, type=torch.int32),
        scalar=values(1).reshape(()),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(values(2, 2)),
        view=pool[5:].reshape(4, 3),
        transposed=transposed,
        conv=values(2, 3, 2, 2).to(memory_format=torch.channels_last),
    )
    torch.save(tensors, "torch_flat.pth")
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(values(*p.shape))
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(values(*p.shape))
    torch.save({"epoch": 7, "loss": 0.5, "note": "text", "teacher": {"backbone": model.state_dict()},
                "optimizer": optimiser.state_dict(), "scales": [1, 2.5, None, True]}, "torch_nested.pth")
    args = argparse.Namespace(arch="vit_small", lr=5e-4, out=pathlib.PurePosixPath("runs"), crops=(0.4, 1.0), seed=numpy.int32(1))
    first = OrderedDict(list(model.state_dict().items())[:2])
    torch.save({"args": args, "epoch": numpy.int64(3), "model": first, "loss": numpy.float32(0.5), "curve": numpy.arange(3.0),
                "milestones": Counter([1, 1, 2]), "seen": {1, 2}, "state": defaultdict(list, a=[torch.zeros(1)]),
                "type": torch.float16, "device": torch.device("cpu"), "last": values(4)}, "torch_training.pth")
    torch.save(model, "torch_module.pth")                                   # a whole module: code is needed to load it
    torch.save(tensors, "torch_legacy.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
