#!/usr/bin/python3
"""The structure that the source tree keeps: folders include only folders to their left, file names are unique, C++ only
in adapters, no printing or exiting outside cli/, symbols start with their file's stem, heads and guards are there.

usage: test_layers.py RADAPT SOURCE_DIR
"""
import collections
import os
import re
import subprocess
import sys

ROOMS = {  # what each may include; pacs stands beside model and adapt: it knows findings, not models
    "base": {"base"},
    "io": {"base", "io"},
    "preprocess": {"base", "io", "preprocess"},
    "model": {"base", "io", "preprocess", "model"},
    "adapt": {"base", "io", "preprocess", "model", "adapt"},
    "pacs": {"base", "io", "pacs"},
    "cli": {"base", "io", "preprocess", "model", "adapt", "pacs", "cli"},
}
ONLY_IN_CLI = r"(?<![\w>.])(printf|vprintf|puts|putchar|perror|exit|abort|quick_exit)\s*\("
NEVER = r"(?<![\w>.])(system|popen|gets|strcat|sprintf|vsprintf|tmpnam|mktemp)\s*\("
LIBRARIES = {  # header pattern -> files that may include it
    r"dcmtk/": r"_dcmtk\.(cc|h)$",
    r"itk[A-Z]": r"_itk\.(cc|h)$",
    r"(oneapi/dnnl/)?dnnl": r"^model/op_cpu_matmul\.c$",
    r"openjpeg": r"^(io|cli)/\w*j2k\.c$",
    r"sqlite3": r"^(io|pacs)/",
}
LONG = 700

findings, warnings = [], []


def bare(text):
    """Comments and string contents blanked, line breaks kept."""
    def blank(m):
        s = m.group(0)
        return re.sub(r"[^\n]", " ", s) if s[0] == "/" else '""' if s[0] == '"' else "' '"
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text, flags=re.S)


def check_file(path):
    room = path.split("/")[0]
    text = open(path, encoding="utf-8").read()
    code = bare(text)

    def found(pattern, where, why):
        for m in re.finditer(pattern, where, re.M):
            findings.append(f"{path}:{where.count(chr(10), 0, m.start()) + 1}: {why}: {m.group(0).strip()}")

    for m in re.finditer(r'^\s*#\s*include\s*(["<])([^">]+)[">]', text, re.M):
        name = m.group(2)
        if m.group(1) == '"' and os.path.exists(name):
            to = name.split("/")[0]
            if to in ROOMS and to not in ROOMS[room]:
                findings.append(f"{path} includes {name}: {room} must not know {to}")
        for pattern, files in LIBRARIES.items():
            if re.match(pattern, name) and not re.search(files, path):
                findings.append(f"{path} includes {name}")
    if path.endswith(".cc") and not re.search(r"_(dcmtk|itk)\.cc$", path):
        findings.append(f"{path}: C++ is for *_dcmtk.cc and *_itk.cc")
    if path.endswith(".cu") and not path.startswith("model/cuda/"):
        findings.append(f"{path}: CUDA is for model/cuda/")
    if room != "cli":
        found(ONLY_IN_CLI, code, "only in cli/")
    found(NEVER, code, "never")
    found(r"\b(TODO|FIXME|XXX)\b", text, "says what is not done")
    if not re.match(r"/\*|//", text):
        findings.append(f"{path}: no words at its head")
    if path.endswith(".h") and not re.search(r"^#ifndef RADAPT_\w+_H\n#define RADAPT_", text, re.M):
        findings.append(f"{path}: no include guard")
    if text.count("\n") > LONG:
        warnings.append(f"{path} has {text.count(chr(10))} lines")


def check_symbols(build):
    """Global symbols of C files start with the stem's first word or are declared in the header of that name (op.h for
    op_cpu.c)."""
    for room in ROOMS:
        library = os.path.join(build, f"libradapt_{room}.a")
        if not os.path.exists(library):
            continue
        out = subprocess.run(["nm", "-A", "-g", "--defined-only", library], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, text=True).stdout
        for line in out.splitlines():
            m = re.match(r".*?:(\w+)\.c\.o:[0-9a-f]* [TDBR] (\w+)$", line)
            if not m:
                continue
            stem, symbol = m.groups()
            words = stem.split("_")
            headers = [f"{room}/{'_'.join(words[:n])}.h" for n in range(1, len(words) + 1)]
            declared = any(re.search(rf"\b{symbol}\b", open(h, encoding="utf-8").read())
                           for h in headers if os.path.exists(h))
            if not symbol.startswith(stem.split("_")[0]) and not declared and not symbol.startswith("__"):
                findings.append(f"{room}/{stem}.c: {symbol} does not start with the file's stem")


def main():
    radapt, source = sys.argv[1:3]
    radapt = os.path.abspath(radapt)
    os.chdir(source)
    files = []
    for room in ROOMS:
        for folder, _, names in os.walk(room):
            files += [os.path.join(folder, n) for n in sorted(names) if re.search(r"\.(c|h|cc|cu|cuh)$", n)]
    for path in files:
        check_file(path)
    for name, n in collections.Counter(os.path.basename(f) for f in files).items():
        if n > 1:
            findings.append(f"{n} files are named {name}")
    check_symbols(os.path.dirname(radapt))
    for w in warnings:
        print("warning:", w)
    for f in findings:
        print(f)
    print(f"{len(files)} files, {len(findings)} findings")
    return 1 if findings or len(files) < 20 else 0


if __name__ == "__main__":
    sys.exit(main())
