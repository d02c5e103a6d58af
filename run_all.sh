#!/usr/bin/env bash
# The five models of the paper, then the table and the plots: bash run_all.sh [arguments of train.py]
#   bash run_all.sh                                                                        the demonstration
#   bash run_all.sh --data NOTEEVENTS.csv.gz --model emilyalsentzer/Bio_ClinicalBERT       the paper
# A finished technique is not trained again unless --overwrite. TECHNIQUES="base lowrank distillation+quantization" in the
# environment runs those instead.
set -euo pipefail
call=("$@")
task=symptoms out= data=
while [ $# -gt 0 ]; do # the results directory is needed here, too
  case $1 in
    --out) out=${2:?--out needs a directory} && shift ;;
    --out=*) out=${1#--out=} ;;
    --task) task=${2:?--task needs a name} && shift ;;
    --task=*) task=${1#--task=} ;;
    --data | --data=*) data=given ;;
    --technique | --technique=*) echo 'error: run_all.sh runs several techniques; name them in TECHNIQUES="..." instead' >&2; exit 2 ;;
  esac
  shift
done
out=${out:-results/$task}
here=$(cd "$(dirname "$0")" && pwd)
[ "$here" = "$PWD" ] || { echo "error: run it from its own folder: cd $here" >&2; exit 2; }
[ -n "$data" ] || echo "DEMONSTRATION: no --data, so synthetic notes; scores are not comparable to the paper's."
source ./env.sh
usual="base pruning lowrank distillation quantization"
[ "$task" != mlm ] || usual="base lora"
for technique in ${TECHNIQUES:-$usual}; do
  $python train.py --technique "$technique" ${call[@]+"${call[@]}"}
done
$python benchmark.py "$out"
$python report.py "$out"
