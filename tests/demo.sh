#!/usr/bin/env bash
# The whole job, to look at: a made-up export plus Debian's sample DICOM files -> adapted model -> structured reports, checked by
# other people's validators.   demo.sh RADAPT FOLDER
set -euo pipefail
radapt=$(realpath "$1") out=$2
samples=/usr/lib/python3/dist-packages/pydicom/data/test_files

if [ -e "$out" ] && [ ! -f "$out/export.labels.csv" ]; then # not an earlier demo's
    echo "demo: $out exists already; give a folder that does not" >&2
    exit 64
fi
rm -rf "$out"
work=$out/work
mkdir -p "$out"
echo "== 1. an export: 24 made-up patients, and the sample files of python3-pydicom"
"$radapt" phantom "$out/export" --patients 24 --seed 1
cp -rL "$samples" "$out/export/pydicom-samples"

# Random weights want a lower rate of fine-tuning than pretrained ones.
echo "== 2. the job: radapt run $out/export -o $work --labels $out/export.labels.csv"
status=0
"$radapt" run "$out/export" -o "$work" --labels "$out/export.labels.csv" \
    --backbone dim=96,depth=3,heads=3,patch=16,grid=14 --adapt-epochs 1 --adapt-locals 2 --finetune-lr 1e-4 || status=$?
[ $status = 0 ] || [ $status = 3 ] || { echo "demo: radapt run ended with $status"; exit 1; }

echo "== 3. the reports, as dciodvfy, dsrdump and pydicom see them"
reports=("$work"/reports/*.dcm)
[ -e "${reports[0]}" ] || { echo "demo: no report was written"; exit 1; }
for r in "${reports[@]}"; do
    if dciodvfy "$r" 2>&1 | grep -a '^Error'; then echo "demo: dciodvfy: $r"; exit 1; fi
    if dsrdump "$r" 2>&1 | grep -aE '^[WEF]:' | grep -av 'does not support this Specific Character Set'; then echo "demo: dsrdump: $r"; exit 1; fi
done
/usr/bin/python3 - "${reports[@]}" <<'PY'
import sys, pydicom
for path in sys.argv[1:]:
    assert pydicom.dcmread(path).ContentSequence
PY
echo "${#reports[@]} reports, no error from any of them. To read one:  dsrdump ${reports[0]}"
echo "Reports: $work/reports   Set aside, with reasons: $work/quarantine.csv   Model: $work/runs"
[ $status = 0 ] || echo "The job ended with 3, as it should here: some of the export's files are set aside, as some of every export are."
