"""nvcc_gates.py FOLDER [ARCHITECTURE...|--write]: what ptxas said of each kernel, in FOLDER/*.ptxas, against registers.txt
beside this file: no spills, and as many registers as the table says, for all of these architectures. --write makes the
table anew.

Rows: file, kernel, and for each architecture registers and bytes of static shared memory. Another version of nvcc may
allot a few registers more: SLACK. What spills does not compile at all (-warn-spills -Werror)."""
import glob
import os
import re
import subprocess
import sys

SLACK = 8
TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "registers.txt")


def short(symbols):
    """Readable names without parameters; instances of a template keep their arguments."""
    names = subprocess.run(["c++filt"] + symbols, capture_output=True, text=True, check=True).stdout.splitlines()
    names = [re.sub(r"\(anonymous namespace\)::|^void |\(\w+\)(?=\d)", "", n).split("(")[0] for n in names]
    return [n.replace(" ", "") for n in names]


def rows(path):
    found, symbol = [], None
    for line in open(path, encoding="utf-8"):
        if m := re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", line):
            symbol = m.groups()
        elif (m := re.search(r"(\d+) bytes spill stores", line)) and int(m[1]):
            print(f"{path}: {symbol} spills {m[1]} bytes")
            sys.exit(1)
        elif symbol and (m := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            found.append((*symbol, int(m[1]), int(shared[1]) if shared else 0))
            symbol = None
    names = short([f[0] for f in found]) if found else []
    stem = os.path.basename(path).removesuffix(".ptxas")
    named = {(stem, name, arch): (registers, shared) for name, (_, arch, registers, shared) in zip(names, found)}
    if len(named) != len(found):
        print(f"{path}: kernels that have the same name here")
        sys.exit(1)
    return named


now = {}
for path in sorted(glob.glob(os.path.join(sys.argv[1], "*.ptxas"))):
    now.update(rows(path))
if not now:
    print("skipped: nothing was compiled by nvcc")
    sys.exit(77)
table = {}
if "--write" in sys.argv:
    archs = sorted({int(k[2]) for k in now})
    lines = {}
    for (stem, name, arch), (registers, shared) in now.items():
        lines.setdefault((stem, name), {})[int(arch)] = f"{registers}+{shared}"
    with open(TABLE, "w", encoding="utf-8") as f:
        f.write("# nvcc_gates.py --write: registers a thread + bytes of static shared memory\n")
        f.write(" ".join(["file", "kernel", *map(str, archs)]) + "\n")
        for key, cells in sorted(lines.items()):
            f.write(" ".join([*key, *(cells[a] for a in archs)]) + "\n")
    sys.exit(0)
archs = None
for line in open(TABLE, encoding="utf-8"):
    if line.startswith("#"):
        continue
    stem, name, *cells = line.split()
    if archs is None:
        archs = cells
        continue
    for arch, cell in zip(archs, cells, strict=True):
        table[stem, name, arch] = tuple(map(int, cell.split("+")))
wrong = 0
for key, (registers, shared) in sorted(now.items()):
    if key not in table:
        print(f"{' '.join(key)}: not in the table ({registers} registers)")
        wrong += 1
    elif registers > table[key][0] + SLACK or shared != table[key][1]:
        print(f"{' '.join(key)}: {registers} registers, {shared} bytes shared; the table has {table[key]}")
        wrong += 1
compiled = {k[2] for k in now}
for arch in set(sys.argv[2:]) - compiled:
    print(f"nothing was compiled for sm_{arch}")
    wrong += 1
for key in table:
    if key[2] in compiled and key not in now:
        print(f"{' '.join(key)}: in the table, but not compiled")
        wrong += 1
print(f"{len(now)} kernels times architectures ({' '.join(sorted(compiled, key=int))}), {wrong} not as the table has them")
sys.exit(wrong > 0)
