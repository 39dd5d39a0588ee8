#!/usr/bin/env bash
# The runs that the result pages still lack, most valuable first, for a GPU rented for minutes.
#
#     gpu_queue.sh prepare            on a CPU: make the catalogues, 43 MB, which travel in $out
#     gpu_queue.sh [--minutes 14]     work the list off; call it again to go on where it was cut off
#     gpu_queue.sh merge              copy the finished tables to results/
#
# Options: --out DIR (gpu_queue), --tiny (the same list, small, on a CPU), --dry-run (print the
# commands). $CRS_FAST_DATA is the folder with redial/ and inspired/.
#
# A run is one method of an experiment, under 4 minutes on an H100: three epochs of ReDial train in 84
# s there. One that takes longer is stopped and goes on from its checkpoint at once, at most three
# times. The rates are compared on validation first; the rest of ReDial is trained at the best rate
# that is known by then. SmolLM2 is unpacked once per machine: its GGUF file takes 18 CPU seconds to
# read, the unpacked one half a second. A run tokenises its dialogues itself, in 4 CPU seconds.
set -euo pipefail
cd "$(dirname "$0")/../.."
what=work minutes=14 out=gpu_queue tiny="" dry="" limit=240 most_tries=4
while [ $# -gt 0 ]; do
  case "$1" in
    prepare | merge) what="$1" ;;
    --minutes) minutes="${2:?gpu_queue: --minutes must be a number}"; shift ;;
    --out) out="${2:?gpu_queue: --out must be a path}"; shift ;;
    --tiny) tiny=1 ;;
    --dry-run) dry=1 ;;
    *) echo "gpu_queue: unknown argument $1" >&2; exit 2 ;;
  esac
  shift
done
[[ "$minutes" =~ ^[0-9]+$ ]] || { echo "gpu_queue: --minutes must be a whole number (got $minutes)" >&2; exit 2; }
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

unpacked="$out/prepared/smollm2"
model=(--model "$unpacked" --bf16-answers --compile-layers --tokens-per-batch 24576 --save-steps 150)
redial_tokens=10200000 inspired_tokens=2200000
if [ -n "$tiny" ]; then
  model=(--model tiny --limit 3 --tokens-per-batch 1024 --save-steps 10)
  redial_tokens=4000 inspired_tokens=4000
fi

# The learning rate with the best R@10 on validation; 1e-3 until one is measured.
best_rate() {
  python3 - "$out" <<'PY'
import json, pathlib, sys
tried = {}
for file in pathlib.Path(sys.argv[1]).glob("redial_valid_*/results.json"):
    figures = json.loads(file.read_text())["recommendation"]["paper"].get("gcrs")
    if figures:
        tried[file.parent.name.rpartition("_")[2]] = figures["recall@10"]
print(max(tried, key=tried.get, default="1e-3"))
PY
}

redial="--data redial --tokens $redial_tokens" quiet=--no-replies

# A list has one line per run: the experiment's folder, then the arguments. Runs of one folder may
# differ in methods and seeds only. Arguments that begin with a module's name, ".reply_decoding", go
# to that module, which reads the folder.
list_rates() {
  for one in 1e-3 5e-4 2e-3; do
    echo "redial_valid_$one $redial --lr $one --split valid $quiet --methods gcrs"
  done
}

# What is trained at the best rate.
list_rest() {
  local rate="$1" inspired="--data inspired --tokens $inspired_tokens --lr 5e-4"
  echo "redial_$rate $redial --lr $rate --methods popularity,copy,copy-popularity,gcrs"
  echo "redial_$rate $redial --lr $rate --methods co-mention+mentions+copy-odds"
  echo "redial_$rate $redial --lr $rate --methods resp"
  echo "redial_$rate $redial --lr $rate --methods retrieval"
  echo "redial_$rate $redial --lr $rate --methods titles"
  echo "redial_$rate $redial --lr $rate --methods mode-resp"
  for seeds in 2 3; do
    for method in gcrs resp retrieval; do
      echo "redial_$rate $redial --lr $rate --seeds $seeds --methods $method"
    done
  done
  echo "redial_$rate $redial --lr $rate --methods all-rows"
  for method in sid-smoothing sid-weight; do
    echo "redial_valid_$rate $redial --lr $rate --split valid $quiet --methods $method"
  done
  echo "redial_replies $redial --lr $rate --split valid --keep-models --methods gcrs"
  echo "redial_replies .reply_decoding --decoding greedy+chosen sample:0.5+chosen consensus:5:0.5+chosen"
  echo "inspired $inspired --methods popularity,copy,copy-popularity,gcrs"
  for method in mentions titles+mentions retrieval+mentions resp; do
    echo "inspired $inspired --methods $method"
  done
}

command_of() { # folder, arguments
  local folder="$1"
  shift
  case "$1" in
    .*) echo "python3 -m benchmarks.recommendation$* --out $out/$folder" ;;
    *) echo "python3 -m benchmarks.recommendation $* ${model[*]} --out $out/$folder" ;;
  esac
}

if [ "$what" = merge ]; then
  compgen -G "$out/*/results.md" >/dev/null || { echo "gpu_queue: $out holds no results.md" >&2; exit 1; }
  for file in "$out"/*/results.md "$out"/*/decodings.md; do
    [ -f "$file" ] || continue
    name="$(basename "$(dirname "$file")")"
    [ "${file##*/}" = results.md ] || name="${name}_decodings"
    target="benchmarks/recommendation/results/${name}_queue.md"
    cp "$file" "$target"
    echo "$target"
  done
  exit
fi

if [ "$what" = prepare ]; then
  [ -n "$dry" ] && { (list_rates; list_rest 1e-3) | cut -d " " -f 1 | sort -u; exit; }
  python3 - "$out" <<'PY'
"""The catalogues that the list needs, which every experiment finds under its own catalogue/."""
import pathlib, sys
from benchmarks.recommendation.reproduce import Plan, make_setting
from crs_fast.crs.data import load_dataset

for data in ("redial", "inspired"):
    plan = Plan(data=data, model="tiny", arms=("popularity",), tokens=0)
    setting = make_setting(plan, load_dataset(data), out=pathlib.Path(sys.argv[1], "prepared", data))
    for signals in (("text",), ("text", "co-mention")):
        print(data, "+".join(signals), len(setting.catalogue(signals, None).sids), "items", flush=True)
PY
  exit
fi

deadline=$((SECONDS + 60 * minutes))
started="" failed=0
if [ -z "$tiny$dry" ] && [ ! -d "$unpacked" ]; then
  python3 - "$unpacked" <<'PY'
import pathlib, sys
from crs_fast._files import replacing_folder
from crs_fast.crs.backbones import load_backbone

parts, target = load_backbone("smollm2"), pathlib.Path(sys.argv[1])
target.parent.mkdir(parents=True, exist_ok=True)
with replacing_folder(target, lambda name: False) as folder:
    for part in parts:
        part.save_pretrained(folder)
PY
fi
# Run what is not done yet of the list on file descriptor 3.
work_off() {
  while read -r folder arguments <&3; do
    line="$(command_of "$folder" $arguments)"
    if [ -n "$dry" ]; then
      echo "$line"
      continue
    fi
    mark="$out/done/$(echo "$folder $arguments" | tr -c 'a-zA-Z0-9.\n' _)"
    [ -f "$mark" ] && continue
    data="${folder%%_*}"
    mkdir -p "$out/$folder" "$out/done"
    if [ -d "$out/prepared/$data/catalogue" ] && [ ! -d "$out/$folder/catalogue" ]; then
      cp -r "$out/prepared/$data/catalogue" "$out/$folder/"
    fi
    tries=0
    while [ ! -f "$mark" ]; do
      left=$((deadline - SECONDS))
      [ "$left" -gt 20 ] || { echo "gpu_queue: time is up; next: $folder $arguments"; exit 0; }
      if [ "$tries" = "$most_tries" ]; then
        echo "gpu_queue: cut off $tries times: $folder $arguments" >&2
        failed=1
        break
      fi
      started="$SECONDS" status=0 tries=$((tries + 1))
      timeout --kill-after=10 "$((left < limit ? left : limit))" $line >>"$out/$folder/log.txt" 2>&1 ||
        status=$?
      echo "$((SECONDS - started)) s, status $status: $folder $arguments"
      case "$status" in
        0) touch "$mark" ;;
        124 | 137) ;; # cut off; it goes on from its checkpoint
        *) tail -3 "$out/$folder/log.txt" >&2; failed=1; break ;;
      esac
    done
  done
}

work_off 3< <(list_rates)
rate=1e-3
[ -n "$dry" ] || rate="$(best_rate)"
work_off 3< <(list_rest "$rate")
[ -n "$dry" ] || echo "gpu_queue: the list is done"
exit "$failed"
