# cuda.sh FOLDER: on a machine with a GPU: every op of the CUDA back end against the CPU's and its time (bench_cuda), then
# whole SSA steps, ours (bench_ssa ... cuda) and PyTorch's, in turns, each in its own process: images a second and memory.
# A table of each to stderr; one JSON document to stdout and FOLDER/bench_cuda.json. RADAPT_TORCH_PYTHON names a Python with
# PyTorch for CUDA; without it ours alone is timed, and that is said. Without a GPU: exit 77. Within SECONDS_MOST (450), rows
# that would begin later are left out and named.
set -euo pipefail
folder=$1 python=${RADAPT_TORCH_PYTHON:-} most=${SECONDS_MOST:-450}
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

[ ! -d "$folder/lib" ] || export LD_LIBRARY_PATH=$folder/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} # ./dev bench pack
status=0
timeout $((most / 2)) "$folder/bench_cuda" "${IMAGES:-32}" >"$work/ops.json" || status=$?
[ $status != 77 ] || exit 77
case $status in
0) ;;
124) status=0 && echo "cuda: ops left out for want of time" >&2 ;;
*) echo "cuda: an op is wrong, or the bench failed: exit $status" >&2 ;;
esac
[ -n "$python" ] || echo "cuda: no PyTorch to compare with (RADAPT_TORCH_PYTHON): ours alone" >&2

while read -r ours theirs method batch; do
    if [ $SECONDS -gt "$most" ]; then
        echo "cuda: left out for want of time: $ours $method $batch" >&2
        continue
    fi
    row=$(timeout $((most + 20 - SECONDS)) "$folder/bench_ssa" "$ours" "$method" "$batch" 65536 8 20 cuda) || { echo "cuda: failed: $ours $method $batch" >&2; continue; }
    echo "{\"side\": \"ours\", \"step\": $row}" >>"$work/rows"
    for how in ${python:+eager compile}; do
        [ $SECONDS -le "$most" ] || { echo "cuda: left out for want of time: PyTorch $how $ours $method $batch" >&2; continue; }
        option=$([ "$how" = compile ] && echo --compile || true)
        # shellcheck disable=SC2086 # no option is no word
        row=$(timeout $((most + 20 - SECONDS)) "$python" "$here/peer_ssa_cuda.py" --model "$theirs" --method "$method" --batch "$batch" $option 2>"$work/why") || {
            echo "cuda: PyTorch $how failed: $(tail -n 1 "$work/why")" >&2
            continue
        }
        echo "{\"side\": \"$how\", \"step\": $row}" >>"$work/rows"
    done
done <<<"${ROWS:-vit-b/14 b14 apla 32
vit-b/14 b14 full 32
vit-l/14 l14 apla 32
vit-l/14 l14 full 16
vit-g/14 g14 apla 16}"

touch "$work/rows"
awk -F '[{},:" ]+' '{
    side = model = method = batch = rate = mib = ""
    for (i = 1; i < NF; i++) {
        if ($i == "side") side = $(i + 1)
        if ($i == "model") model = $(i + 1)
        if ($i == "method") method = $(i + 1)
        if ($i == "batch") batch = $(i + 1)
        if ($i == "img_per_s") rate = $(i + 1)
        if ($i == "device_mib" || $i == "peak_mib") mib = $(i + 1)
    }
    gsub(/vit-|\//, "", model)
    if (NR == 1) printf "%-8s %-6s %6s %-8s %12s %12s\n", "model", "method", "batch", "", "images/s", "GPU MiB"
    printf "%-8s %-6s %6s %-8s %12.1f %12d\n", model, method, batch, side, rate, mib
}' "$work/rows" >&2
tail -c 8 "$work/ops.json" | grep -q ']' || echo '[]' >"$work/ops.json" # it stopped in the middle: its rows are on stderr
echo "{\"ops\": $(cat "$work/ops.json"), \"steps\": [$(paste -sd, "$work/rows")]}" >"$work/all.json"
cat "$work/all.json"
cp "$work/all.json" "$folder/bench_cuda.json" || true # a folder that is not ours to write
exit $status
