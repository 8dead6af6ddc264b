"""peer_inference.py ENGINE MODEL BATCH [SECONDS [DTYPE]]: the peers of bench_inference, on the same shapes.

ENGINE: eager, compile (PyTorch; weights and activations of DTYPE, bf16 or fp32), onnx (onnxruntime, fp32: its CPU kernels
have no bf16).
MODEL: s14, b14 (timm's DINOv2 shapes at 224 pixels). Prints one JSON line.
"""
import io
import json
import resource
import sys
import time

import timm
import torch

engine, name, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
seconds = float(sys.argv[4]) if len(sys.argv) > 4 else 10
dtype = "fp32" if engine == "onnx" else sys.argv[5] if len(sys.argv) > 5 else "bf16"
timm_name = {"s14": "vit_small_patch14_dinov2", "b14": "vit_base_patch14_dinov2"}[name]
model = timm.create_model(timm_name, pretrained=False, img_size=224, num_classes=0, global_pool="").eval()
images = torch.randn(batch, 3, 224, 224)
if engine == "onnx":
    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(model, images, file, dynamo=False, opset_version=17, input_names=["x"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    array = images.numpy()
    forward = lambda: session.run(None, {"x": array})
else:
    if dtype == "bf16":
        model, images = model.bfloat16(), images.bfloat16()
    if engine == "compile":
        model = torch.compile(model)
    forward = lambda: model(images)
took = []
with torch.inference_mode():
    for _ in range(2):
        forward()
    begun = time.perf_counter()
    while len(took) < 3 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        forward()
        took.append(time.perf_counter() - start)
took.sort()
print(json.dumps({
    "engine": engine, "model": name, "method": f"inference{batch}", "threads": torch.get_num_threads(),
    "dtype": dtype, "img_per_s": round(batch / took[0], 3),
    "median_img_per_s": round(batch / took[len(took) // 2], 3),
    "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
}))
