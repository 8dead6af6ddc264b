# engine.sh FOLDER [BATCH]: whole SSA steps, ours (FOLDER/bench_ssa) and PyTorch's, in turns, each in its own process; then what
# ops and whole passes reach of the product rate. PyTorch's side is the peer script of the developers' shared folder, run by the
# Python named in RADAPT_TORCH_PYTHON (with PyTorch 2); without either, ours alone is timed, and that is said.
# ROWS (name of ours, of the peer, method; one a line) chooses the rows, TURNS how often each side runs.
set -euo pipefail
folder=$1 batch=${2:-8}
peer=$(dirname "$0")/../../../shared/measure/peer_ssa.py
python=${RADAPT_TORCH_PYTHON:-}
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=3000 # as radapt itself waits
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT

rows=${ROWS:-"vit-s/14 s14 apla
vit-s/14 s14 full
vit-b/14 b14 apla
vit-b/14 b14 full"}
if [ -z "$python" ] || [ ! -f "$peer" ]; then
    echo "engine: no PyTorch to compare with (RADAPT_TORCH_PYTHON, shared/measure/peer_ssa.py): ours alone" >&2
    python=
fi
for turn in $(seq "${TURNS:-2}"); do
    while read -r ours theirs method; do
        echo "ours $("$folder/bench_ssa" "$ours" "$method" "$batch")"
        [ -z "$python" ] || echo "pytorch $("$python" "$peer" --model "$theirs" --method "$method" --batch "$batch" --steps 3)"
    done <<<"$rows" | tee -a "$lines" >&2
done
# The best turn of each: name, method, seconds a step, images a second, resident memory.
awk '{
    side = $1; model = method = ""
    for (i = 2; i < NF; i++) {
        v = $(i + 1); gsub(/[",}]/, "", v)
        if ($i ~ /"model"/) model = v
        if ($i ~ /"method"/) method = v
        if ($i ~ /"img_per_s"/) rate = v
        if ($i ~ /"peak_rss_mib"/) mib = v
    }
    gsub(/vit-|\//, "", model)
    key = model " " method
    if (!(key in seen)) { seen[key] = ++n; order[n] = key }
    if (rate > best[side, key]) { best[side, key] = rate }
    if (!((side, key) in memory) || mib < memory[side, key]) memory[side, key] = mib
} END {
    printf "%-12s %14s %14s %8s %12s %12s %8s\n", "", "ours images/s", "PyTorch", "ratio", "ours MiB", "PyTorch MiB", "ratio"
    for (i = 1; i <= n; i++) {
        k = order[i]; o = best["ours", k]; p = best["pytorch", k]; a = memory["ours", k]; b = memory["pytorch", k]
        printf "%-12s %14.2f %14s %8s %12d %12s %8s\n", k, o, p ? p : "-", p ? sprintf("%.2f", o / p) : "-", a, b ? b : "-", b ? sprintf("%.2f", a / b) : "-"
    }
}' "$lines"
"$folder/bench_ops"
"$folder/bench_engine" "$batch"
