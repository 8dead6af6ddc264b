#!/usr/bin/env bash
# planted.sh PLAIN ASAN RACE: each kernel of planted.cu as it should be passes in the three builds, in three orders of
# threads; each planted defect is found by at least one build, in one of ten orders at most. Prints who found it: V wrong
# values or a refused call, D diagnosed, C crashed, - not found. K, killed from outside or too slow, finds nothing.
set -u
export UBSAN_OPTIONS=print_stacktrace=0 ASAN_OPTIONS=detect_leaks=1:symbolize=0
builds=("$@")
out=$(mktemp)
trap 'rm -f "$out"' EXIT
failed=0

# The kernel in which each defect is.
declare -A of=(
    [1]=share [2]=share [3]=share [4]=share [5]=share [6]=share [7]=center [8]=center [9]=center [10]=graph
    [11]=sums [12]=sums [13]=histogram [14]=histogram [15]=histogram [16]=turn [17]=turn [18]=turn [19]=turn
    [20]=product [21]=product [22]=product [23]=product [24]=share [25]=twice [26]=sums [27]=product [28]=streams
    [29]=streams [30]=graph [31]=graph [32]=graph [33]=memory [34]=memory)

verdict() { # verdict PROGRAM ARGUMENTS: one letter
    local status try
    for try in 1 2 3; do
        timeout 60 "$@" >"$out" 2>&1
        status=$?
        [ $status = 137 ] || break
    done
    if [ $status = 137 ] || [ $status = 124 ]; then
        printf K
    elif [ $status = 0 ]; then
        printf -- -
    elif grep -qE "CUDA_EMU:|AddressSanitizer: [a-z]|runtime error" "$out"; then
        printf D
    elif [ $status -ge 128 ]; then
        printf C
    else
        printf V
    fi
}

for build in "${builds[@]}"; do
    for order in 0 1 2; do
        if [ "$(CUDA_EMU_ORDER=$order verdict "$build" all)" != - ]; then
            echo "$(basename "$build"), order $order: finds fault with correct kernels"
            cat "$out"
            failed=1
        fi
    done
done
echo "defect kernel: $(printf '%s ' "${builds[@]##*/}")"
for bug in $(printf '%s\n' "${!of[@]}" | sort -n); do
    found=
    for seed in 1 2 3 4 5 6 7 8 9 10; do # as many as it takes: of streams' orders only some show it
        found=
        for build in "${builds[@]}"; do
            found+=$(CUDA_EMU_ORDER=2 CUDA_EMU_SEED=$seed verdict "$build" "${of[$bug]}" "$bug")
        done
        [ -z "${found//[-K]/}" ] || break
    done
    echo "$bug ${of[$bug]}: $found (order $seed)"
    if [ -z "${found//[-K]/}" ]; then
        echo "defect $bug is not found"
        failed=1
    fi
done
exit $failed
