# engine.sh FOLDER [BATCH]: whole SSA steps and inference, ours (FOLDER/bench_*) and the peers', in turns, each in its own
# process; a set of crops, ours and torchvision's; what ops and whole passes reach of oneDNN's product rate; in the end every
# figure beside its target (engine_table.py). The SSA peer is a script of the developers' shared folder, the others lie here;
# all are run by the Python named in RADAPT_TORCH_PYTHON (with torch, torchvision, timm, onnx, onnxruntime). Without it ours
# alone is timed, and that is said.
# ROWS (name of ours, of the peer, method; one a line), INFERENCE (the same, with a batch) choose the rows, PEERS (of eager
# and compile; empty: none) how PyTorch runs, DTYPE in what (default: bf16 where the processor multiplies it, else fp32, as
# PyTorch's bf16 is emulated there), TURNS how often each side runs.
set -euo pipefail
folder=$1 batch=${2:-8}
script=$(dirname "$0")/../../../shared/measure/peer_ssa.py
here=$(dirname "$0")
python=${RADAPT_TORCH_PYTHON:-}
read -ra peers <<<"${PEERS-eager compile}"
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
peer() { # peer NAME SCRIPT...
    local name=$1
    shift
    env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT "$python" "$@" 2>/dev/null | sed "s/^/$name /" || echo "engine: failed: $name $*" >&2
}
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
            peer "$how" "$script" --model "$theirs" --method "$method" --batch "$batch" --dtype "$dtype" --steps 3 $option
        done
    done <<<"$rows" | tee -a "$lines" >&2
    while read -r ours theirs images; do
        echo "ours $("$folder/bench_inference" "$ours" "$images")"
        for how in ${python:+"${peers[@]}" onnx}; do peer "$how" "$here/peer_inference.py" "$how" "$theirs" "$images" 10 "$dtype"; done
    done <<<"$inference" | tee -a "$lines" >&2
done
{
    echo "ours $("$folder/bench_sampler" | tail -1)"
    [ -z "$python" ] || peer torchvision "$here/peer_augment.py"
} | tee -a "$lines" >&2
for dim in 384 768; do "$folder/bench_ops" "$dim"; done
"$folder/bench_engine" "$batch"
/usr/bin/python3 "$here/engine_table.py" "$lines" "$batch"
