#!/usr/bin/python3
"""Makes wild.safetensors, a file as the Python library writes it, for tests/io/test_safetensors.c.

Needs torch and safetensors (PyPI). Run it in this folder; the output is committed.
"""
import torch
from safetensors.torch import save_file

v = torch.tensor([0.0, -0.0, 1.0, -1.5, 65504.0, 6e-8, 1e-5, float("inf"), float("-inf"), float("nan")])
save_file(
    {
        "f32": v.clone(),
        "f16": v.to(torch.float16),
        "bf16": v.to(torch.bfloat16),
        "f64": v.to(torch.float64),
        "u8": torch.tensor([[0, 1, 255]], dtype=torch.uint8),
        "i8": torch.tensor([-128, 127], dtype=torch.int8),
        "i16": torch.tensor([-32768, 32767], dtype=torch.int16),
        "i32": torch.tensor([-2147483648, 7], dtype=torch.int32),
        "i64": torch.tensor([-3, 1 << 40], dtype=torch.int64),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(3, 0),
        "größe.ß": torch.arange(6, dtype=torch.float32).reshape(1, 2, 3),
    },
    "wild.safetensors",
    metadata={"format": "pt", "note": 'quote " and \u00fc'},
)
