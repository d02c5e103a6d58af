#!/usr/bin/env bash
# Does adaptation to the domain help? Adapt the encoder with LoRA as a masked language model, then classify
# trials with the plain and with the adapted encoder; one report shows both. A masked language model has no
# pooler, so both start with a fresh one.
#   bash run_trials.sh                                                        the demonstration
#   TEXT=trials.csv MLM="--epochs 3 --lr 1e-3" bash run_trials.sh --data stop_reasons.csv --model DIRECTORY
# Arguments are those of train.py, for the classification. TEXT is the file to adapt on (default: the same
# --data and --text-columns), MLM the arguments of the adaptation. Run it from any folder: paths are relative
# to where you stand.
set -euo pipefail
for word in "$@"; do
  case $word in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
done
source "$(dirname "$0")/env.sh" ranges plots

shown=$(show "given text_columns data model out" --task trials -- "$@") # a bad argument ends here
{
  read -r given && IFS= read -r columns && IFS= read -r data && IFS= read -r model && IFS= read -r out
} <<<"$shown"
for flag in task technique name; do
  case " $given " in
    *" $flag "*) echo "error: run_trials.sh sets --$flag itself" >&2 && exit 2 ;;
  esac
done

# shellcheck disable=SC2086  # MLM holds several words
adapt=(--task mlm --technique lora --data "${TEXT:-$data}" --model "$model" --out "$out/mlm" ${MLM:-})
[ -n "${TEXT:-}" ] || [ -z "$columns" ] || adapt+=(--text-columns "$columns")
"$python" "$here/train.py" "${adapt[@]}"
"$python" "$here/train.py" --task trials --fresh-pooler "$@"
"$python" "$here/train.py" --task trials --fresh-pooler "$@" --model "$out/mlm/lora" --name adapted
"$python" "$here/benchmark.py" "$out"
"$python" "$here/report.py" "$out"
