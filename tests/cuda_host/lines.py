"""lines.py OBJECT...: every line of the kernels (model/cuda/*.cu, *.cuh) was run by the plain build's tests.

Reads what gcov says of the objects' counters; a line counts as run if any of its instances was."""
import collections
import json
import os
import subprocess
import sys

objects = [o for o in sys.argv[1:] if o.endswith(".cu.o")]
if not any(os.path.exists(o[:-2] + ".gcda") for o in objects):
    print("no test has left counters")
    sys.exit(1)
runs = collections.defaultdict(lambda: collections.defaultdict(int))
for o in objects:
    told = subprocess.run(["gcov", "--json-format", "--stdout", o], capture_output=True, text=True, check=True,
                          cwd=os.path.dirname(o))
    for report in told.stdout.splitlines():
        for source in json.loads(report)["files"] if report.strip() else []:
            if "model/cuda/" not in source["file"]:
                continue
            for line in source["lines"]:
                key = os.path.basename(source["file"])
                runs[key][line["line_number"]] = max(runs[key][line["line_number"]], line["count"])
missing = 0
for name, lines in sorted(runs.items()):
    never = [n for n, count in sorted(lines.items()) if not count]
    missing += len(never)
    print(f"{name}: {len(lines) - len(never)} of {len(lines)} lines run" + (f"; not {never}" if never else ""))
sys.exit(missing > 0)
