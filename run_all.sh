#!/usr/bin/env bash
# The five models of the paper, then the table and the plots: bash run_all.sh [arguments of train.py]
#   bash run_all.sh                                                                        the demonstration
#   bash run_all.sh @experiments/paper.args                                                the paper's run
#   bash run_all.sh @experiments/paper.args --recipe paper                  what the authors' code does
#   TECHNIQUES="base lowrank distillation+quantization" bash run_all.sh                    other techniques
# Run it from any folder: paths are relative to where you stand. Finished techniques are kept; --overwrite
# trains them again.
set -euo pipefail
for word in "$@"; do
  case $word in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
done
source "$(dirname "$0")/env.sh" ranges plots

shown=$(show "given techniques out recipe" -- "$@") # a bad argument ends here
{ read -r given && read -r techniques && IFS= read -r out && read -r recipe; } <<<"$shown"
case " $given " in
  *" technique "* | *" name "*)
    echo 'error: run_all.sh: give TECHNIQUES="..." instead of --technique or --name; it runs several' >&2
    exit 2
    ;;
esac

for technique in ${TECHNIQUES:-$techniques}; do
  "$python" "$here/train.py" --technique "$technique" "$@"
done
[ -n "$recipe" ] || "$python" "$here/benchmark.py" "$out" # the recipe keeps no weights that could be timed
"$python" "$here/report.py" "$out"
