"""engine_table.py FILE BATCH: what engine.sh measured (FILE: lines of who ran and its JSON), row by row, then beside targets.

Of several turns the best counts: most images a second, least memory. A peer that was not run is named.
"""
import json
import sys

RATE, MEMORY, SHARE = "img_per_s", "peak_rss_mib", "onednn_share"
STEP, PASS, OWN = ("eager", "compile"), ("eager", "compile", "onnx"), ("ours",)

# Figure; whose value, of what; over the best of these peers', of what (none: the value itself); target: memory at most
FIGURES = (
    ("ViT-S/14 apla step, batch {}: images/s against PyTorch's", "s14 apla", RATE, STEP, "s14 apla", 2.5),
    ("ViT-S/14 full step, batch {}: images/s against PyTorch's", "s14 full", RATE, STEP, "s14 full", 2.0),
    ("ViT-B/14 apla step, batch {}: images/s against our full", "b14 apla", RATE, OWN, "b14 full", 1.3),
    ("ViT-B/14 apla step, batch {}: memory against PyTorch's full", "b14 apla", MEMORY, STEP, "b14 full", 0.4),
    ("ViT-B/14 apla step, batch {}: memory against our full", "b14 apla", MEMORY, OWN, "b14 full", 0.6),
    ("ViT-S/14 apla step, batch {}: share of oneDNN's product rate", "s14 apla", SHARE, (), "", 0.75),
    ("ViT-B/14 apla step, batch {}: share of oneDNN's product rate", "b14 apla", SHARE, (), "", 0.75),
    ("ViT-B/14 inference, batch 1: images/s against the peers'", "b14 inference1", RATE, PASS, "b14 inference1", 1.2),
    ("ViT-B/14 inference, batch 32: images/s against the peers'", "b14 inference32", RATE, PASS, "b14 inference32", 1.2),
    ("10 crops of a stored frame: images/s against torchvision's", "crops", RATE, ("torchvision",), "crops", 5.0),
)


def read(path):
    """{(who, key): its rows}; key: a model and what it did, or "crops"."""
    runs = {}
    for line in open(path):
        who, _, text = line.partition(" ")
        if not text.startswith("{"):
            continue  # it failed, and engine.sh said so
        row = json.loads(text)
        key = "crops"
        if "model" in row:
            key = f"{row['model'].replace('vit-', '').replace('/', '')} {row['method']}"
        else:
            row[RATE] = 1000 / row["rgb_ms"]
        runs.setdefault((who, key), []).append(row)
    return runs


def best(runs, peers, key, field):
    """The best of those peers that were run (None: of none), and who was not."""
    found = {who: [row[field] for row in runs.get((who, key), ()) if field in row] for who in peers}
    values = [v for who in peers for v in found[who]]
    pick = min if field == MEMORY else max
    return (pick(values) if values else None), [who for who in peers if not found[who]]


def over(a, b):
    return a / b if a and b else None


def verdict(measured, target, field, missing):
    if measured is None:
        return "not run"
    if measured > target if field == MEMORY else measured < target:
        return "not met"
    return "met" + (f" without {', '.join(missing)}" if missing else "")


def print_rows(runs):
    number = lambda v, form: format(v, form) if v else "-"
    print(f"{'':16} {'ours images/s':>14} {'best peer':>14} {'ratio':>8} {'ours MiB':>14} {'peer MiB':>14} {'ratio':>8}")
    for key in dict.fromkeys(key for _, key in runs if key != "crops"):
        columns = [f"{key:16}"]
        for field, form in (RATE, ".2f"), (MEMORY, "d"):
            own, peer = best(runs, OWN, key, field)[0], best(runs, PASS, key, field)[0]
            columns += [f"{number(own, form):>14}", f"{number(peer, form):>14}", f"{number(over(own, peer), '.2f'):>8}"]
        print(*columns)


def print_figures(runs, batch):
    print(f"\n{'figure':62} {'target':>9} {'measured':>9}  met")
    for name, key, field, peers, of, target in FIGURES:
        own, (peer, missing) = best(runs, OWN, key, field)[0], best(runs, peers, of, field)
        measured = over(own, peer) if peers else own
        shown = (lambda v: f"{v:.2f} x") if field == RATE else lambda v: f"{100 * v:.1f} %"
        sign = "<=" if field == MEMORY else ">="
        print(f"{name.format(batch):62} {sign} {shown(target):>6} {'-' if measured is None else shown(measured):>9}  "
              f"{verdict(measured, target, field, missing)}")


runs = read(sys.argv[1])
print_rows(runs)
print_figures(runs, sys.argv[2])
