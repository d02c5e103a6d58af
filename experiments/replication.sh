#!/usr/bin/env bash
# Every run behind docs/replication.md: bash experiments/replication.sh [PART ...]
#   PART: recipe, rate, labels, proper, start, lowrank (all: 218 runs)    SEEDS=10 EPOCHS=5 by default
#   SIDE_BY_SIDE=...: runs at a time (as many as there are pairs of cores); WORDS="...": more arguments for every
#   run, after its own, such as --device cpu, or of other notes and encoders
#   --data NOTEEVENTS.csv.gz --model emilyalsentzer/Bio_ClinicalBERT (and --lr 2e-5, but for the recipe)
# Runs stand under results/replication; finished ones are kept, so an interrupted call goes on. Then:
#   python docs/replication.py --collect results/replication
set -euo pipefail
cd "$(dirname "$0")/.."
source env.sh ranges
out=results/replication seeds=$(seq 1 "${SEEDS:-10}") epochs=${EPOCHS:-5}
five="base pruning lowrank distillation quantization"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} TOKENIZERS_PARALLELISM=false
cores=$(getconf _NPROCESSORS_ONLN)
proper="--lr 2e-4 --warmup 0.1 --class-weights"

recipe() { # as the authors train
  for seed in $seeds; do for technique in $five; do
    echo "--recipe paper --seed $seed --technique $technique --epochs $epochs --out $out"
  done; done
}
rate() { # the same at one rate at which a small encoder learns
  for seed in $seeds; do for technique in $five; do
    echo "--recipe paper --seed $seed --technique $technique --epochs $epochs --lr 2e-4 --out $out/rate"
  done; done
}
labels() { # other orders of the 40 symptoms
  for seed in $seeds; do
    echo "--recipe paper --label-seed $seed --epochs $epochs --lr 2e-4 --out $out/labels-$seed"
  done
}
proper() { # $1: the techniques; those that start from base or learn from it come after it
  for seed in $seeds; do for technique in $1; do
    echo "$proper --seed $seed --technique $technique --epochs $epochs --out $out/proper-$seed"
  done; done
}
start() { # low rank from the fine-tuned base run, which proper makes
  for seed in $seeds; do
    echo "$proper --seed $seed --technique lowrank --epochs $epochs --out $out/proper-$seed" \
      "--start $out/proper-$seed/base --name lowrank-from-base"
  done
}
lowrank() { # real low rank, and base, by epochs
  for seed in $(echo $seeds | cut -d ' ' -f 1-3); do for factor in 1 2 4 8; do
    longer=$((factor * epochs)) place="--seed $seed --out $out/lowrank-$seed"
    echo "$proper $place --epochs $longer --name base-$longer"
    for rank in ${RANKS:-8 32 128}; do
      echo "$proper $place --epochs $longer --technique lowrank --rank $rank --name lowrank-$rank-$longer"
    done
  done; done
}
make() { # every line is the end of a command; a blank at its end would join it to the next
  sed "s|\$|${WORDS:+ $WORDS}|" |
    xargs -P "${SIDE_BY_SIDE:-$((cores > 3 ? cores / 2 : 1))}" -L 1 "$python" train.py @experiments/replication.args
}

for part in ${@:-recipe rate labels proper start lowrank}; do
  if [ "$part" = proper ]; then
    proper base | make
    proper "${five#base }" | make
  else
    "$part" | make
  fi
done
