#!/usr/bin/env bash
# The whole road on a small made-up export: run, run again, killed in every stage, no patient's data where it does not belong,
# bad input.   test_road.sh RADAPT SOURCE_DIR
set -uo pipefail
radapt=$(realpath "$1")
folder=$(mktemp -d "${TMPDIR:-/tmp}/radapt-road-XXXXXX")
trap 'chmod -R u+rwX "$folder"; rm -rf "$folder"' EXIT
cd "$folder" || exit 1

fail() {
    echo "FAILED: $*"
    [ ! -f log ] || tail -n 20 log
    exit 1
}
# expect CODE WHAT COMMAND...: standard output in out, standard error in log
expect() {
    local want=$1 what=$2 got=0
    shift 2
    echo "-- $what"
    "$@" >out 2>log || got=$?
    [ "$got" = "$want" ] || fail "$what: exit code $got, not $want"
    cat log >>all.log
}
says() { grep -q -- "$1" "$2" || fail "'$1' is not said: $(cat "$2")"; }
one_line() { [ "$(grep -c '^radapt: ' log)" = 1 ] || fail "not exactly one line of complaint: $(cat log)"; }
value() { /usr/bin/python3 -c 'import json,sys
j = json.load(open(sys.argv[1]))
for k in sys.argv[2].split("."): j = j[k]
print(j)' "$1" "$2"; }

# Small enough for seconds: what is tested is the road, not what is learnt on it.
cat >tiny.yaml <<'YAML'
backbone: "dim=64,depth=2,heads=2,patch=16,grid=4"
size: 64
threads: 2
adapt:
  epochs: 2
  warmup-epochs: 0.5
  head-warmup-epochs: 0.5
  batch: 8
  global-size: 64
  local-size: 32
  locals: 2
  hidden: 64
  bottleneck: 32
  prototypes: 64
finetune:
  epochs: 3
  batch: 8
YAML
run=("$radapt" run export --labels export.labels.csv -c tiny.yaml)

# What a run came to: findings, metrics without times, UIDs of the reports.
outcome() {
    local work=$1
    cat "$work"/runs/predict-*/findings.jsonl
    for f in "$work"/runs/*/result.json; do
        /usr/bin/python3 - "$f" <<'PY'
import json, sys
def clean(x):
    if isinstance(x, dict): return {k: clean(v) for k, v in sorted(x.items()) if not any(w in k for w in ("second", "per_s", "waited", "resumed", "peak"))}
    return x
print(json.dumps(clean(json.load(open(sys.argv[1]))), sort_keys=True))
PY
    done
    for f in "$work"/reports/*.dcm; do
        echo "$(basename "$f") $(dcmdump +P 0008,0018 "$f" | grep -o '\[.*\]')"
    done
}

echo "== an export"
expect 0 "phantom" "$radapt" phantom export --patients 8 --seed 3 --json
studies=$(value out studies)
cp -a export export.before

echo "== the whole road"
expect 3 "scan" "$radapt" scan export -w base
expect 3 "scan again" "$radapt" scan export -w base
says "^nothing to do" out
cp -a base work
expect 3 "run" "${run[@]}" -o work --json
[ "$(value out report.written)" = "$studies" ] || fail "not one report a study: $(cat out)"
reports=(work/reports/*.dcm)
[ "${#reports[@]}" = "$studies" ] || fail "${#reports[@]} reports for $studies studies"
for r in "${reports[@]}"; do
    ! dciodvfy "$r" 2>&1 | grep -a '^Error' || fail "dciodvfy: $r"
done
diff -r --no-dereference export export.before || fail "the export was changed"

echo "== again"
find work/reports work/runs -type f -printf '%p %T@\n' | sort >before
expect 3 "run again" "${run[@]}" -o work
says "^nothing to do" out
find work/reports work/runs -type f -printf '%p %T@\n' | sort >after
diff before after || fail "the second run wrote something"
rm "${reports[0]}"
expect 3 "a lost report comes back" "${run[@]}" -o work
[ -f "${reports[0]}" ] || fail "the lost report did not come back"
outcome work >wanted

echo "== single commands find what run made"
expect 0 "adapt" "$radapt" adapt -w work --labels export.labels.csv -c tiny.yaml
says "^nothing to do" out
expect 0 "finetune" "$radapt" finetune -w work --labels export.labels.csv -c tiny.yaml
says "^nothing to do" out
expect 0 "predict" "$radapt" predict -w work -c tiny.yaml
says "^nothing to do" out
expect 0 "report" "$radapt" report -w work -c tiny.yaml
says "^nothing to do" out
expect 0 "evaluate" "$radapt" evaluate -w work --labels export.labels.csv -c tiny.yaml --json
[ "$(value out metrics.auc)" = "$(value "$(echo work/runs/finetune-*/result.json)" test.auc)" ] ||
    echo "   (evaluate: $(cat out))"
expect 3 "prepare" "$radapt" prepare -w work -c tiny.yaml
says "^nothing to do" out

echo "== another model's reports are not this one's"
cp -a work other
expect 0 "another model" "$radapt" finetune -w other --labels export.labels.csv -c tiny.yaml --head-init zero
expect 0 "what it finds" "$radapt" predict -w other -c tiny.yaml
expect 0 "its reports" "$radapt" report -w other -c tiny.yaml
says "^$studies reports written" out
expect 3 "the first model again" "${run[@]}" -o other
says "^Report  *$studies written" out
expect 3 "and once more" "${run[@]}" -o other
says "^nothing to do" out
rm other/runs/finetune-*/model.safetensors other/runs/adapt-*/adapter.safetensors
expect 3 "what was lost is made again" "${run[@]}" -o other
[ "$(cat other/runs/adapt-*/adapter.safetensors | sha256sum)" = "$(cat work/runs/adapt-*/adapter.safetensors | sha256sum)" ] ||
    fail "another adapter than the lost one"
[ -f other/"$(cd work && echo runs/finetune-*/model.safetensors)" ] || fail "the lost model did not come back"
rm -r other

echo "== export"
adapted=(-w work --backbone "dim=64,depth=2,heads=2,patch=16,grid=4" -q)
names() { /usr/bin/python3 -c 'import json,struct,sys
f = open(sys.argv[1], "rb")
h = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
print(" ".join(k + str(v["shape"]) for k, v in sorted(h.items()) if k != "__metadata__"))' "$1"; }
meta() { /usr/bin/python3 -c 'import json,struct,sys
f = open(sys.argv[1], "rb")
m = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))["__metadata__"]
print(*(m.get(k, "-") for k in sys.argv[2:]))' "$@"; }
for format in timm hf dinov2; do
    expect 0 "export $format" "$radapt" export "${adapted[@]}" --format $format --out $format.safetensors
    says "adapter.safetensors" out
    [ "$(meta $format.safetensors heads method trained_side)" = "2 apla 64" ] || fail "$format: its metadata"
    expect 0 "$format again" "$radapt" export "${adapted[@]}" --format $format --out same.safetensors
    cmp $format.safetensors same.safetensors || fail "$format: not the same bytes again"
    expect 0 "$format read again" "$radapt" export --backbone $format.safetensors --adapter none --format dinov2 \
        --out "$format.again.safetensors"
    ! grep -q "backbone.normalisation" log || fail "$format: its normalisation is guessed"
done
expect 0 "as it was" "$radapt" export "${adapted[@]}" --adapter none --out plain.safetensors
! cmp -s plain.safetensors timm.safetensors || fail "the adapter is not in what was exported"
values() { /usr/bin/python3 -c 'import struct,sys
f = open(sys.argv[1], "rb")
f.seek(8 + struct.unpack("<Q", f.read(8))[0])
sys.stdout.buffer.write(f.read())' "$1"; }
[ "$(names dinov2.safetensors)" = "$(names dinov2.again.safetensors)" ] || fail "other tensors than were exported"
cmp <(values dinov2.safetensors) <(values dinov2.again.safetensors) || fail "what was exported is not what is read"
cmp timm.again.safetensors dinov2.again.safetensors || fail "timm's and DINOv2's weights differ"
[ "$(names hf.again.safetensors)" = "$(names dinov2.safetensors)" ] || fail "Hugging Face's weights have other shapes"
model=$(echo work/runs/finetune-*/model.safetensors)
expect 0 "a fine-tuned model" "$radapt" export --model "$model" --format timm --out tuned.safetensors --json
names tuned.safetensors >out
says "head.weight\[[0-9]*, 64\]" out
[ "$(meta tuned.safetensors heads trained_side)" = "2 64" ] || fail "a fine-tuned model's metadata"
expect 64 "--model and a normalisation" "$radapt" export --model "$model" --normalisation half --out x.safetensors
one_line
expect 0 "without its classifier" "$radapt" export --model "$model" --format hf --out tuned.hf.safetensors
says "Without its classifier" out
hf=(export --backbone timm.safetensors --adapter none --format hf -q)
for out in hub/deep/ hub/deep hub/deep/model.safetensors; do # made, there, there by the file's name: the same files
    expect 0 "for from_pretrained: $out" "$radapt" "${hf[@]}" --out $out
    says "from_pretrained takes the folder" out
    [ "$(cd hub/deep && echo *)" = "config.json model.safetensors preprocessor_config.json" ] || fail "in the folder: $(ls hub/deep)"
done
[ "$(value hub/deep/config.json model_type) $(value hub/deep/config.json num_attention_heads)" = "vit 2" ] || fail "config.json"
[ "$(value hub/deep/preprocessor_config.json size.height)" = 64 ] || fail "preprocessor_config.json"
echo '{"mine": 1}' >hub/deep/config.json
cp hub/deep/model.safetensors hub/before
expect 1 "somebody else's config.json" "$radapt" "${hf[@]}" --backbone dinov2.safetensors --normalisation half --out hub/deep
one_line
says "another config.json is there" log
[ "$(cat hub/deep/config.json)" = '{"mine": 1}' ] || fail "it was overwritten"
cmp hub/deep/model.safetensors hub/before || fail "the model was overwritten, its configuration was not"
expect 0 "the state dict alone" "$radapt" "${hf[@]}" --out hub/alone.safetensors
expect 0 "said alone" "$radapt" "${hf[@]}" -n --out hub/nothing
[ "$(cd hub && echo *)" = "alone.safetensors before deep" ] || fail "beside it: $(ls hub)"
rm -r hub
expect 0 "only said" "$radapt" export "${adapted[@]}" -n --out nothing.safetensors
[ ! -e nothing.safetensors ] || fail "a dry run wrote"
expect 64 "nowhere to write" "$radapt" export "${adapted[@]}"
one_line
expect 64 "no backbone" "$radapt" export -w work --out x.safetensors
one_line
expect 1 "no adapter for it" "$radapt" export -w work --backbone vit-ti/16 --out x.safetensors -q
one_line
expect 1 "no such folder" "$radapt" export "${adapted[@]}" --out nowhere/x.safetensors
one_line
expect 64 "both" "$radapt" export --model "$model" --adapter none --out x.safetensors
one_line
expect 64 "whose normalisation" "$radapt" export "${adapted[@]}" --adapter none --normalisation dataset --out x.safetensors
one_line
/usr/bin/python3 - plain.safetensors bare.safetensors <<'PY' # a stranger's file: without metadata
import json, struct, sys
f = open(sys.argv[1], "rb")
h = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
h.pop("__metadata__")
text = json.dumps(h).encode()
open(sys.argv[2], "wb").write(struct.pack("<Q", len(text)) + text + f.read())
PY
bare=(--backbone bare.safetensors --backbone-heads 2 --adapter none)
expect 0 "a guess" "$radapt" export "${bare[@]}" --out guess.safetensors
[ "$(grep -c "warn  backbone.normalisation guessed=half" log)" = 1 ] || fail "the guess is not said once: $(cat log)"
says "DeiT" log
[ "$(meta guess.safetensors image_mean method trained_side)" = "0.5,0.5,0.5 - -" ] || fail "the guess is not written"
expect 0 "no guess" "$radapt" export "${bare[@]}" --normalisation imagenet --out told.safetensors
! grep -q "backbone.normalisation" log || fail "a guess where it was told: $(cat log)"
[ "$(meta told.safetensors image_mean)" = "0.485,0.456,0.406" ] || fail "what was told is not written"
expect 64 "a seed for a file" "$radapt" export --backbone timm.safetensors --backbone-heads 2 --backbone-seed 3 --adapter none \
    --out x.safetensors
one_line

echo "== what an adapter may have seen"
cp -a work early && rm -r early/runs early/reports early/split.csv
expect 0 "adapt before there is a split" "$radapt" adapt -w early -c tiny.yaml
expect 0 "export while nobody is held out" "$radapt" export "${adapted[@]}" -w early --out early.safetensors
expect 1 "finetune on it" "$radapt" finetune -w early --labels export.labels.csv -c tiny.yaml
one_line
says "adapt again with --labels, or --adapter none" log
expect 1 "export of it now" "$radapt" export "${adapted[@]}" -w early --out early.safetensors
one_line
says "adapt again with --labels" log
old=$(echo early/runs/adapt-*/adapter.safetensors)
expect 1 "finetune on it by name" "$radapt" finetune -w early --labels export.labels.csv -c tiny.yaml --adapter "$old"
one_line
says "may have been trained on patients who are held out here" log
expect 0 "of other patients, it is said" "$radapt" finetune -w early --labels export.labels.csv -c tiny.yaml --adapter "$old" \
    --foreign-adapter
expect 0 "finetune without" "$radapt" finetune -w early --labels export.labels.csv -c tiny.yaml --adapter none
expect 0 "export of it by name" "$radapt" export "${adapted[@]}" -w early --adapter "$old" --out early.safetensors
says "it may have been trained on the held-out ones" log
expect 0 "adapt again" "$radapt" adapt -w early --labels export.labels.csv -c tiny.yaml
expect 0 "finetune on that" "$radapt" finetune -w early --labels export.labels.csv -c tiny.yaml --json
[ "$(value out adapted)" = True ] || fail "the adapter was not used: $(cat out)"
expect 0 "export of that" "$radapt" export "${adapted[@]}" -w early --out early.safetensors

echo "== a run's name"
named() { # named WANTED WHAT OPTIONS...: the run that a dry run names; WANTED: done or new
    local want=$1 what=$2
    shift 2
    expect 0 "$what" "$radapt" finetune -w early --labels export.labels.csv -n --json "$@"
    [ "$(value out already_done)" = "$want" ] || fail "$what: already done: $(value out already_done), not $want"
}
named True "again" -c tiny.yaml
named True "the same number otherwise written" -c tiny.yaml --lr 0.0010 --epochs 3.0
"$radapt" finetune -w early --labels export.labels.csv -c tiny.yaml --print-config >printed.yaml
named True "the same as printed" -c printed.yaml
named False "another number" -c tiny.yaml --lr 0.0002
expect 0 "adapt with the data set's own normalisation, on some rows" "$radapt" adapt -w early --labels export.labels.csv -c tiny.yaml \
    --normalisation dataset --rows 8
expect 0 "export of it" "$radapt" export "${adapted[@]}" -w early --out own.safetensors
floats() { /usr/bin/python3 -c 'import struct,sys
print([struct.pack("f", float(x)) for x in sys.argv[1].replace("/", ",").replace(" ", ",").split(",")])' "$1"; }
own=$(floats "$(meta own.safetensors image_mean image_std)")
[ "$own" = "$(floats "$(meta "$(ls -t early/runs/adapt-*/adapter.safetensors | head -1)" normalisation)")" ] ||
    fail "the adapter's own normalisation is not written"
[ "$own" != "$(floats "$(meta timm.safetensors image_mean image_std)")" ] || fail "the normalisation is the backbone's"
expect 0 "a classifier on what was exported, its normalisation found there" "$radapt" finetune -w early --labels export.labels.csv \
    -c tiny.yaml --backbone own.safetensors --adapter none --method linear
[ "$own" = "$(floats "$(meta "$(ls -t early/runs/finetune-*/model.safetensors | head -1)" bundle.normalisation)")" ] ||
    fail "another normalisation than the exported file's"
expect 0 "finetune with the adapter's" "$radapt" finetune -w early --labels export.labels.csv -c tiny.yaml
named True "the adapter's again" -c tiny.yaml
named False "the backbone's, asked for" -c tiny.yaml --normalisation auto
named False "all rows, asked for" -c tiny.yaml --rows 0
expect 0 "finetune with the backbone's" "$radapt" finetune -w early --labels export.labels.csv -c tiny.yaml --normalisation auto --rows 0
for pair in "--method linear --epochs 3" "--method linear --lr 1e-4" "--method lora --rows 4" "--label-order a,b"; do
    expect 64 "it would be ignored: $pair" "$radapt" finetune -w early --labels export.labels.csv -c tiny.yaml $pair
    one_line
    says "means nothing with" log
done
named False "the file's numbers are no obstacle" -c tiny.yaml --method linear
rm -rf early

echo "== sets of labels and grades"
/usr/bin/python3 - <<'PY'
import csv
rows = list(csv.DictReader(open("export.labels.csv")))
keys = [k for k in rows[0] if k != "label"]
def write(name, columns, values):
    out = csv.writer(open(name, "w"))
    out.writerow(keys + columns)
    for i, r in enumerate(rows): out.writerow([r[k] for k in keys] + values(i))
write("sets.csv", ["label"], lambda i: [["", "mass", "effusion;mass", "effusion"][i % 4]])
write("columns.own.csv", ["mass", "effusion"], lambda i: [i % 2, ["", 0, 1][i % 3]])
write("grades.csv", ["label"], lambda i: [["none", "mild", "severe"][i % 3]])
PY
cp -a work tasks
task() { # task LABELS OPTIONS...: the road behind adapt, with all that fine-tuning may do
    local labels=$1
    shift
    expect 0 "finetune $*" "$radapt" finetune -w tasks -c tiny.yaml --labels "$labels" --mixup 0.3 --layer-decay 0.8 \
        --class-weights balanced --sampling natural "$@"
    expect 0 "evaluate" "$radapt" evaluate -w tasks -c tiny.yaml --labels "$labels" --json
    expect 0 "predict" "$radapt" predict -w tasks -c tiny.yaml
    expect 0 "report" "$radapt" report -w tasks -c tiny.yaml
    for r in tasks/reports/*.dcm; do
        ! dciodvfy "$r" 2>&1 | grep -a '^Error' || fail "dciodvfy: $r"
    done
}
task sets.csv --task multilabel
task grades.csv --task ordinal --label-order none,mild,severe
expect 0 "columns of their own" "$radapt" finetune -w tasks -c tiny.yaml --labels columns.own.csv --task multilabel \
    --label-columns mass,effusion --head-init zero
expect 0 "evaluate" "$radapt" evaluate -w tasks -c tiny.yaml --labels columns.own.csv --label-columns mass,effusion
says "sensitivity" out
expect 64 "grades without an order" "$radapt" finetune -w tasks -c tiny.yaml --labels grades.csv --task ordinal
one_line
expect 64 "columns of classes" "$radapt" finetune -w tasks -c tiny.yaml --labels columns.own.csv --label-columns mass,effusion
one_line
mv tasks/frames tasks/frames.away
expect 1 "no frames" "$radapt" finetune -w tasks -c tiny.yaml --labels sets.csv --task multilabel
one_line
! grep -q -- "--labels" log || fail "the labels are blamed for what is missing elsewhere: $(cat log)"

echo "== kill -9 in every stage"
cp -a base killed
kill_in() { # WORK STAGE DELAY: leaves the run's exit status in $killed
    "${run[@]}" -o "$1" --log json >out 2>log &
    pid=$!
    for _ in $(seq 3000); do
        ! grep -q "\"name\":\"$2\"" log || break
        kill -0 $pid 2>/dev/null || break
        sleep 0.02
    done
    sleep "$3"
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    killed=$?
    cat log >>all.log
}
for stage in prepare adapt finetune predict report; do
    for delay in 0.02 0.25; do kill_in killed $stage $delay; done
done
# The last of these may have come to its end before it was killed, and sweeps nothing then: here all the work is still to do.
# Killed between two stages it holds the work directory in neither, and owes nothing: then once more.
for _ in $(seq 20); do
    rm -rf swept
    cp -a base swept
    kill_in swept prepare 0
    [ $killed != 137 ] || [ ! -s swept/.lock ] || break
done
[ $killed = 137 ] && [ -s swept/.lock ] || fail "the run was not killed in time: exit $killed"
echo left >swept/split.csv.tmp-1 # as a kill between two writes leaves it
for work in killed swept; do
    expect 3 "run after the kills" "${run[@]}" -o $work
    outcome $work >got
    diff wanted got >difference || fail "$work: after kill -9 the end is another: $(head -c 2000 difference)"
    [ -z "$(find $work -name '*.tmp-*' -o -name '*.new')" ] || fail "left over: $(find $work -name '*.tmp-*' -o -name '*.new')"
done

echo "== another work directory: other pseudonyms, the same results"
learnt() { sed 's/, *"images_per_s.*//' "$1"/runs/adapt-*/metrics.jsonl "$1"/runs/finetune-*/metrics.jsonl; }
expect 3 "run elsewhere" "${run[@]}" -o elsewhere
learnt work >wanted_learnt
[ "$(wc -l <wanted_learnt)" -gt 5 ] || fail "little was learnt: $(cat wanted_learnt)"
learnt elsewhere | diff wanted_learnt - >difference || fail "in another work directory something else is learnt: $(head -c 2000 difference)"

echo "== asked to stop"
# stop_at TEXT COMMAND...: SIGTERM when its log says that; how it ended is in code
stop_at() {
    local text=$1 pid
    shift
    "$@" >out 2>log &
    pid=$!
    for _ in $(seq 3000); do
        ! grep -q -- "$text" log || break
        sleep 0.02
    done
    kill -TERM $pid
    code=0
    wait $pid || code=$?
}
cp -a work interrupted && rm -rf interrupted/runs
stop_at '"event":"adapt.evaluate"' "$radapt" adapt -w interrupted --labels export.labels.csv --backbone "dim=64,depth=2,heads=2,patch=16,grid=4" \
    --size 64 --epochs 5000 --log json
[ $code = 130 ] || fail "adapt and SIGTERM: exit code $code, not 130"
ls interrupted/runs/*/checkpoint.safetensors >/dev/null || fail "adapt and SIGTERM: no checkpoint"

cp -a base stopped
stop_at '"name":"adapt"' "${run[@]}" -o stopped --log json
[ $code = 130 ] || [ $code = 3 ] || fail "SIGTERM: exit code $code"
expect 3 "run after SIGTERM" "${run[@]}" -o stopped
outcome stopped >got
diff wanted got >difference || fail "after SIGTERM the end is another: $(head -c 2000 difference)"

echo "== no patient's data where it does not belong"
cut -d, -f2 export.labels.csv | tail -n +2 >tokens
echo ZZPHI >>tokens
for w in work killed stopped; do
    find $w -type f ! -name 'identities.db*' ! -name quarantine.csv ! -path '*/reports/*' -print0 |
        xargs -0 grep -alF -f tokens >leaks
    [ ! -s leaks ] || fail "a leak in $(cat leaks)"
    [ -z "$(find $w -name '*ZZPHI*')" ] || fail "a leak in a name"
    [ "$(stat -c %a $w/identities.db)" = 600 ] || fail "identities.db is open to others"
    [ "$(stat -c %a $w/reports)" = 700 ] || fail "the reports are open to others"
done
! grep -aF -f tokens all.log || fail "a leak in the log"

echo "== bad input"
mkdir empty junk
echo text >junk/letter.dcm
expect 1 "missing folder" "$radapt" run nowhere -o w1
one_line
says nowhere log
expect 2 "empty folder" "$radapt" run empty -o w1
one_line
expect 2 "no image" "$radapt" run junk -o w2
one_line
expect 64 "no folder" "$radapt" run -o w1
one_line
expect 64 "unknown option" "$radapt" run export --lables x
one_line
says "did you mean --labels" log
printf 'sede: 1\n' >typo.yaml
expect 64 "unknown key" "$radapt" run export -c typo.yaml
one_line
says "line 1" log
expect 1 "no work directory" "$radapt" prepare -w nowhere
one_line
expect 1 "missing labels" "$radapt" finetune -w work -c tiny.yaml --labels nowhere.csv
one_line
printf 'patient,diagnosis\nx,y\n' >columns.csv
expect 64 "unknown column" "$radapt" finetune -w work -c tiny.yaml --labels columns.csv
one_line
printf 'study_uid,label\n1.2.3,a\n1.2.4,b\n' >strangers.csv
expect 2 "labels without any image" "$radapt" finetune -w work -c tiny.yaml --labels strangers.csv
one_line
printf 'not a model' >weights.safetensors
expect 1 "no backbone" "$radapt" adapt -w work -c tiny.yaml --backbone weights.safetensors
one_line
/usr/bin/python3 - <<'PY'
import json, struct
head = json.dumps({"cls_token": {"dtype": "F32", "shape": [1, 1, 4], "data_offsets": [0, 16]},
                   "pos_embed": {"dtype": "F32", "shape": [1, 3, 5], "data_offsets": [16, 76]}}).encode()
open("shape.safetensors", "wb").write(struct.pack("<Q", len(head)) + head + bytes(76))
PY
expect 1 "backbone of another shape" "$radapt" adapt -w work -c tiny.yaml --backbone shape.safetensors
one_line
expect 1 "no such model" "$radapt" adapt -w work -c tiny.yaml --backbone vit-q/3
one_line
expect 1 "standard output full" bash -c '"$0" inspect "$1" >/dev/full' "$radapt" "$(find export -name IM000000 | head -n 1)"
one_line
nobody=() # root reads everything: someone else looks then
[ "$(id -u)" != 0 ] || nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
chmod 755 .
mkdir -m 777 locked
cp -a export locked/
cp "$radapt" locked/radapt
shut=$(find locked/export -name IM000000 | head -n 1)
chmod 000 "$shut"
expect 3 "an unreadable file" "${nobody[@]}" locked/radapt scan locked/export -w locked/w
grep -q "$shut,.*Permission denied" locked/w/quarantine.csv || fail "the unreadable file is not listed"
chmod 644 "$shut"
expect 3 "it can be read now" "${nobody[@]}" locked/radapt scan locked/export -w locked/w
says "1 taken" out
chmod 000 locked/export
expect 1 "a folder that cannot be read" "${nobody[@]}" locked/radapt scan locked/export -w locked/w2
one_line
chmod 755 locked/export

printf 'study_uid,label\n"1.2.3,a\n1.2.4,b\n' >quote.csv
expect 1 "a quote that is not closed" "$radapt" finetune -w work -c tiny.yaml --labels quote.csv
one_line
printf 'study_uid,label\n1.2.3,a\0b\n' >nul.csv
expect 1 "a NUL among labels" "$radapt" finetune -w work -c tiny.yaml --labels nul.csv
one_line
expect 64 "no UID root" "$radapt" report -w work -c tiny.yaml --uid-root 1.2.3.
one_line
expect 64 "a size that is not of whole patches" "$radapt" adapt -w work -c tiny.yaml --size 17
one_line
for wrong in "lora --lora-targets q,x" "lora --lora-targets qkv,v" "apla --lora-rank 4" "lora --prompts 5" "vpt --prompts 0"; do
    expect 64 "numbers of no method: $wrong" "$radapt" adapt -w work -c tiny.yaml --method $wrong
    one_line
done
expect 64 "ratios in the wrong order" "$radapt" adapt -w work -c tiny.yaml --mask-ratio 0.9,0.1
one_line
expect 1 "no room for the version" bash -c '"$0" --version >/dev/full' "$radapt"
one_line

echo "== reports are what was asked for, whole"
cp -a work other
expect 0 "another class" "$radapt" report -w other -c tiny.yaml --sr-class enhanced
expect 0 "and back" "$radapt" report -w other -c tiny.yaml
dcmdump +P 0008,0016 "$(echo other/reports/*.dcm | cut -d' ' -f1)" | grep -q Comprehensive3DSR || fail "the old reports stayed"
: >"$(echo other/reports/*.dcm | cut -d' ' -f1)"
expect 0 "an emptied report comes back" "$radapt" report -w other -c tiny.yaml
[ -z "$(find other/reports -empty -name '*.dcm')" ] || fail "an empty report stayed"

echo "== the export is never written, even inside the work directory"
mkdir -p inside/export
cp "$(find export -name IM000000 | head -n 1)" inside/export/scan.tmp-20240101
(cd inside && "$radapt" scan export -w . -q) >out 2>log || fail "scan: $(cat log)"
[ -f inside/export/scan.tmp-20240101 ] || fail "a file of the export is gone"

echo "== a stop that reaches the decoders too"
for delay in 0.1 0.2 0.4 0.6; do
    rm -rf group && cp -a base group
    setsid "$radapt" prepare -w group -c tiny.yaml -q >out 2>log &
    pid=$!
    sleep $delay
    kill -TERM -- -$pid 2>/dev/null
    wait $pid
    ! grep -q "crashed" group/quarantine.csv || fail "stopped decoders count as crashed"
    expect 3 "prepare after it" "$radapt" prepare -w group -c tiny.yaml
    ! grep -q "crashed" group/quarantine.csv || fail "stopped decoders count as crashed"
done

echo "== a full disk loses nothing"
for kib in 1 40 300; do
    cp -a base full
    expect 1 "files of $kib KiB at most" bash -c 'ulimit -f "$1"; shift; exec "$@"' limit $kib "${run[@]}" -o full
    one_line
    rm -rf full.copy
    mv full full.copy
done
mv full.copy full
expect 3 "run with room again" "${run[@]}" -o full
outcome full >got
diff wanted got >difference || fail "after a full disk the end is another: $(head -c 2000 difference)"

echo "== a damaged frame store is made again, and the end is the same"
for how in flip cut gone; do
    rm -rf damaged && cp -a work damaged && rm -r damaged/runs/predict-*
    shard=$(echo damaged/frames/*.safetensors | cut -d' ' -f1)
    case $how in
    flip) printf 'damage' | dd of="$shard" bs=1 seek=$(($(stat -c %s "$shard") - 999)) conv=notrunc status=none ;;
    cut) truncate -s -999 "$shard" ;;
    gone) rm "$shard" ;;
    esac
    cp -a damaged single
    expect 1 "predict on it ($how)" "$radapt" predict -w single -c tiny.yaml
    one_line
    says "radapt prepare makes them again" log
    rm -rf single
    expect 3 "run on it ($how)" "${run[@]}" -o damaged
    outcome damaged >got
    diff wanted got >difference || fail "the end is another ($how): $(head -c 2000 difference)"
done
findings=$(echo work/runs/predict-*/findings.jsonl)
cp "$findings" findings.jsonl
head -n 2 findings.jsonl >"$findings"
expect 1 "a report of findings cut off" "$radapt" report -w work -c tiny.yaml
one_line
expect 3 "run makes them again" "${run[@]}" -o work
cmp "$findings" findings.jsonl || fail "the findings are others"

echo "== without poison and without labels"
expect 0 "phantom" "$radapt" phantom clean --patients 3 --no-poison
expect 0 "run without labels" "$radapt" run clean -o unlabelled -c tiny.yaml
says "No --labels" out
[ ! -e unlabelled/reports ] || fail "reports without a model"
(head -n 1 clean.labels.csv; sed -n 2p clean.labels.csv; sed -n 3p clean.labels.csv; echo 'ID,1.2.3.4,normal') >one.csv
expect 0 "labels for some images" "$radapt" phantom clean2 --patients 6 --no-poison
(cat clean2.labels.csv; echo 'ID,1.2.3.4,normal') >more.csv
expect 3 "a label without image" "$radapt" run clean2 -o w4 --labels more.csv -c tiny.yaml
says "1 of" out
head -n 6 clean2.labels.csv >fewer.csv
expect 0 "images without label" "$radapt" run clean2 -o w5 --labels fewer.csv -c tiny.yaml
echo "the road holds"
