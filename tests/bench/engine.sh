# engine.sh FOLDER [BATCH]: whole SSA steps and inference, ours (FOLDER/bench_*) and the peers', in turns, each in its own
# process; a set of crops, ours and torchvision's; then what ops and whole passes reach of oneDNN's product rate. The SSA
# peer is a script of the developers' shared folder, the others lie here; all are run by the Python named in
# RADAPT_TORCH_PYTHON (with torch, torchvision, timm, onnx, onnxruntime). Without it ours alone is timed, and that is said.
# ROWS (name of ours, of the peer, method; one a line), INFERENCE (the same, with a batch) choose the rows, PEERS (of eager
# and compile) what PyTorch runs, DTYPE in what (default: bf16 where the processor multiplies it, else fp32, as PyTorch's bf16 is
# emulated there), TURNS how often each side runs.
set -euo pipefail
folder=$1 batch=${2:-8}
script=$(dirname "$0")/../../../shared/measure/peer_ssa.py
here=$(dirname "$0")
python=${RADAPT_TORCH_PYTHON:-}
read -ra peers <<<"${PEERS:-eager compile}"
dtype=${DTYPE:-$(grep -qwm1 'avx512_bf16\|amx_bf16' /proc/cpuinfo && echo bf16 || echo fp32)}
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=3000 # as radapt itself waits
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT

rows=${ROWS:-"vit-s/14 s14 apla
vit-s/14 s14 full
vit-b/14 b14 apla
vit-b/14 b14 full"}
inference=${INFERENCE:-"vit-b/14 b14 1
vit-b/14 b14 32"}
# As PyTorch and onnxruntime run by themselves: the way radapt waits is not theirs.
peer() { env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT "$python" "$@" 2>/dev/null | sed 's/^/peer /' || echo "engine: failed: $*" >&2; }
if [ -z "$python" ] || [ ! -f "$script" ]; then
    echo "engine: no PyTorch to compare with (RADAPT_TORCH_PYTHON, shared/measure/peer_ssa.py): ours alone" >&2
    python=
fi
for turn in $(seq "${TURNS:-2}"); do
    while read -r ours theirs method; do
        echo "ours $("$folder/bench_ssa" "$ours" "$method" "$batch")"
        for how in ${python:+"${peers[@]}"}; do
            option=$([ "$how" = compile ] && echo --compile || true)
            # shellcheck disable=SC2086 # no option is no word
            peer "$script" --model "$theirs" --method "$method" --batch "$batch" --dtype "$dtype" --steps 3 $option
        done
    done <<<"$rows" | tee -a "$lines" >&2
    while read -r ours theirs images; do
        echo "ours $("$folder/bench_inference" "$ours" "$images")"
        for how in ${python:+"${peers[@]}" onnx}; do peer "$here/peer_inference.py" "$how" "$theirs" "$images" 10 "$dtype"; done
    done <<<"$inference" | tee -a "$lines" >&2
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
    printf "%-12s %14s %14s %8s %12s %12s %8s\n", "", "ours images/s", "best peer", "ratio", "ours MiB", "peer MiB", "ratio"
    for (i = 1; i <= n; i++) {
        k = order[i]; o = best["ours", k]; p = best["peer", k]; a = memory["ours", k]; b = memory["peer", k]
        printf "%-12s %14.2f %14s %8s %12d %12s %8s\n", k, o, p ? p : "-", p ? sprintf("%.2f", o / p) : "-", a, b ? b : "-", b ? sprintf("%.2f", a / b) : "-"
    }
}' "$lines"
"$folder/bench_sampler" | tail -1
[ -z "$python" ] || peer "$here/peer_augment.py"
for dim in 384 768; do "$folder/bench_ops" "$dim"; done
"$folder/bench_engine" "$batch"
