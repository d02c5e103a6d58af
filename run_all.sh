#!/usr/bin/env bash
# The five models of the paper, then the table and the plots: bash run_all.sh [arguments of train.py]
#   bash run_all.sh                                                                        the demonstration
#   bash run_all.sh --data NOTEEVENTS.csv.gz --model emilyalsentzer/Bio_ClinicalBERT       the paper
#   TECHNIQUES="base lowrank distillation+quantization" bash run_all.sh                    other techniques
# Run it from any folder: paths are relative to where you stand. Finished techniques are kept; --overwrite
# trains them again.
set -euo pipefail
for word in "$@"; do
  case $word in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
done
source "$(dirname "$0")/env.sh" ranges plots

shown=$(show "given techniques out" -- "$@") # a bad argument ends here
{ read -r given && read -r techniques && IFS= read -r out; } <<<"$shown"
case " $given " in
  *" technique "* | *" name "*)
    echo 'error: run_all.sh: give TECHNIQUES="..." instead of --technique or --name; it runs several' >&2
    exit 2
    ;;
esac

for technique in ${TECHNIQUES:-$techniques}; do
  "$python" "$here/train.py" --technique "$technique" "$@"
done
"$python" "$here/benchmark.py" "$out"
"$python" "$here/report.py" "$out"
