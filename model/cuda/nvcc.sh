#!/bin/sh
# nvcc.sh REPORT NVCC ARGUMENTS: runs it, keeps what ptxas says (registers, spills) in REPORT; shows it if that fails.
report=$1
shift
"$@" >"$report" 2>&1 && exit
status=$?
cat "$report" >&2
rm -f "$report"
exit $status
