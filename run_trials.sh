#!/usr/bin/env bash
# Does adaptation to the domain help? The encoder is adapted with LoRA as a masked language model; trials are classified by the
# plain encoder and by the adapted one; one report stands both side by side. A masked language model has no pooler, so both
# start with a fresh one: what is compared is the encoder.
#   bash run_trials.sh                                                        the demonstration
#   TEXT=trials.csv MLM="--epochs 3 --lr 1e-3" bash run_trials.sh --data stop_reasons.csv --model DIRECTORY --out results/stop
# Arguments are train.py's, for the classification. TEXT is what to adapt on (the demonstration's trials, or the same --data and
# --text-columns), MLM the arguments of the adaptation.
set -euo pipefail
call=("$@")
out=results/trials model=demo data=demo columns=()
while [ $# -gt 0 ]; do
  case $1 in
    --out | --model | --data) declare "${1#--}=${2:?$1 needs a value}" && shift ;;
    --out=* | --model=* | --data=*) declare "${1#--}" ;;
    --text-column | --text-columns) columns=("$1" "${2:?$1 needs a value}") && shift ;;
    --text-column=* | --text-columns=*) columns=("$1") ;;
    --task | --task=* | --technique | --technique=* | --name | --name=*) echo "error: run_trials.sh sets ${1%%=*} itself" >&2; exit 2 ;;
  esac
  shift
done
here=$(cd "$(dirname "$0")" && pwd)
[ "$here" = "$PWD" ] || { echo "error: run it from its own folder: cd $here" >&2; exit 2; }
source ./env.sh
# shellcheck disable=SC2086  # MLM holds several words
adapt=(--task mlm --technique lora --data "${TEXT:-$data}" --model "$model" --out "$out/mlm" ${MLM:-})
[ -n "${TEXT:-}" ] || adapt+=(${columns[@]+"${columns[@]}"})
classify=(--task trials --fresh-pooler ${call[@]+"${call[@]}"})
$python train.py "${adapt[@]}"
$python train.py "${classify[@]}"
$python train.py "${classify[@]}" --model "$out/mlm/lora" --name adapted
$python benchmark.py "$out"
$python report.py "$out"
