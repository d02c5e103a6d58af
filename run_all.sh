#!/usr/bin/env bash
# The five models of the paper, then the table and the plots: bash run_all.sh [arguments of train.py]
#   bash run_all.sh                                                                        the demonstration
#   bash run_all.sh @experiments/paper.args                                                the paper's run
#   bash run_all.sh --seeds 3                                              three seeds: intervals, tests
#   bash run_all.sh @experiments/paper.args --recipe paper                  what the authors' code does
#   TECHNIQUES="base lowrank distillation+quantization" bash run_all.sh                    other techniques
# Run it from any folder: paths are relative to where you stand. Finished techniques are kept; --overwrite
# trains them again.
set -euo pipefail
for word in "$@"; do
  case $word in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
done
source "$(dirname "$0")/env.sh" ranges plots

seeds="" words=() # --seeds 3, or 1,5: ours; the rest is train.py's
while (($#)); do
  case $1 in
    --seeds) seeds=${2-none} && shift $(($# > 1 ? 2 : 1)) ;;
    --seeds=*) seeds=${1#*=} && shift ;;
    *) words+=("$1") && shift ;;
  esac
done
set -- ${words[@]+"${words[@]}"} # bash 3 takes an empty array for unset

shown=$(show "given techniques recipe out" -- "$@") # a bad argument ends here
{ read -r given && read -r techniques && read -r recipe && IFS= read -r out; } <<<"$shown"
case " $given " in
  *" technique "* | *" name "*)
    echo 'error: run_all.sh: give TECHNIQUES="..." instead of --technique or --name; it runs several' >&2
    exit 2
    ;;
esac

case $seeds in
  *[!0-9,]* | ,* | 0)
    echo "error: run_all.sh: --seeds $seeds: give how many, or which, such as 3 or 1,5" >&2
    exit 2
    ;;
  *,*) seeds=${seeds//,/ } ;;
  ?*) seeds=$(seq 1 "$seeds") ;;
esac

first=$out
for seed in ${seeds:-none}; do
  place=()
  if [ "$seed" != none ] && [ -n "$recipe" ]; then
    place=(--seed "$seed") # the recipe keeps its seeds apart itself
  elif [ "$seed" != none ]; then
    place=(--seed "$seed" --out "$out/seed$seed")
    [ "$first" != "$out" ] || first=$out/seed$seed
  fi
  for technique in ${TECHNIQUES:-$techniques}; do
    "$python" "$here/train.py" --technique "$technique" "$@" ${place[@]+"${place[@]}"}
  done
done
[ -n "$recipe" ] || "$python" "$here/benchmark.py" "$first" # the recipe keeps no weights that could be timed
"$python" "$here/report.py" "$out"
