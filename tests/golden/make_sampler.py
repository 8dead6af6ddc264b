#!/usr/bin/python3
"""Makes sampler.safetensors, the golden values of tests/preprocess/test_window.c and test_sampler.c.

Needs Debian's python3-pydicom (the VOI functions), python3-pil (bicubic resize of a box, mode F), python3-numpy, and
safetensors from PyPI. Run it in this folder; the output is committed.
"""
import math

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixel_data_handlers.util import apply_windowing
from safetensors.numpy import save_file

rng = np.random.default_rng(20240229)
out = {}


def voi(x, function, center, width):
    """[0,1] as pydicom computes it, for int16 stored values."""
    ds = Dataset()
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsStored, ds.PixelRepresentation = 16, 1
    ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = center, width, function
    y = apply_windowing(x.astype(np.int16), ds)
    return ((y + 32768.0) / 65535.0).astype(np.float64)


# windows: one row each: function (0 LINEAR, 1 LINEAR_EXACT, 2 SIGMOID), centre, width
windows = [(0, 40, 400), (0, -600, 1500), (0, 0, 1), (0, 2048, 4096), (0, 10.5, 2), (1, 40, 400), (1, 0.25, 0.5), (2, 40, 400), (2, 100, 3)]
names = ["LINEAR", "LINEAR_EXACT", "SIGMOID"]
x = np.unique(np.concatenate([np.arange(-300, 301, 7), [-1350, -1349, 149, 150, -1, 0, 1, 10, 11, 2047, 2048, 4095, 4096, 240, 239, -160, -159]]))
out["voi.windows"] = np.array(windows, np.float64)
out["voi.x"] = x.astype(np.float64)
out["voi.y"] = np.stack([voi(x, names[f], c, w) for f, c, w in windows])

# a grey source with edges, ramps and noise, in HU
h, w = 37, 53
yy, xx = np.mgrid[0:h, 0:w]
grey = -1000 + 60.0 * xx * (yy > 9) + 900 * ((xx - 30) ** 2 + (yy - 20) ** 2 < 80) + rng.normal(0, 40, (h, w))
grey = np.clip(np.round(grey), -32768, 32767).astype(np.int16)
out["grey"] = grey
out["rgb"] = rng.integers(0, 256, (29, 41, 3), dtype=np.uint8)


def resize(plane, box, size):
    """Resize of a box that may reach outside: what is outside the picture is 0."""
    left, top = min(0, math.floor(box[0])), min(0, math.floor(box[1]))
    right = max(plane.shape[1], math.ceil(box[0] + box[2]))
    bottom = max(plane.shape[0], math.ceil(box[1] + box[3]))
    padded = np.zeros((bottom - top, right - left), np.float32)
    padded[-top : -top + plane.shape[0], -left : -left + plane.shape[1]] = plane
    im = Image.fromarray(padded, "F")
    edges = (box[0] - left, box[1] - top, box[0] + box[2] - left, box[1] + box[3] - top)
    return np.clip(np.asarray(im.resize((size, size), Image.BICUBIC, box=edges)), 0, 1)


def blur(plane, sigma):
    r = math.ceil(3 * sigma)
    k = np.exp(-0.5 * (np.arange(-r, r + 1) / sigma) ** 2)
    k /= k.sum()
    p = np.pad(plane.astype(np.float64), r, mode="edge")
    p = np.apply_along_axis(lambda v: np.convolve(v, k, "valid"), 0, p)
    return np.apply_along_axis(lambda v: np.convolve(v, k, "valid"), 1, p).astype(np.float32)


# boxes x, y, width, height in exact binary fractions, and output sizes
cases = [
    (0, 0, 53, 37, 16),       # shrink the whole
    (3.25, 5.5, 20.75, 18.125, 24),  # enlarge a part
    (10, 3, 33, 33, 33),      # exactly one to one
    (0, 0, 53, 37, 7),        # shrink much
    (-8, -16, 69, 69, 24),    # reaches outside on all sides
    (40.5, 20.25, 20, 30, 16),  # reaches outside right and below
    (26.5, 18.5, 0.5, 0.5, 8),  # less than a pixel
    (1.5, 0.25, 51, 36.5, 48),  # nearly the same size
]
soft = voi(grey, "LINEAR", 40, 400).astype(np.float32)
lung = voi(grey, "LINEAR", -600, 1500).astype(np.float32)
out["cases"] = np.array(cases, np.float32)
for i, c in enumerate(cases):
    out[f"soft.{i}"] = resize(soft, c[:4], c[4])
    out[f"lung.{i}"] = resize(lung, c[:4], c[4])
out["rgb.out"] = np.stack([resize(out["rgb"][..., c].astype(np.float32) / 255, (2, 1, 36, 24), 20) for c in range(3)])
out["blur.1"] = blur(resize(lung, cases[0][:4], 16), 1.25)

save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, "sampler.safetensors", metadata={"generator": "make_sampler.py", "seed": "20240229"})
