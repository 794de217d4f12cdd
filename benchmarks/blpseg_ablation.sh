#!/bin/sh
# Ablation of BLPSeg on any data set: cross-entropy alone, + the balanced loss, + local aggregation, + self-training.
# The script evaluates every run and prints a table at the end. If the script is started again, it resumes.
#
#     DATA_ROOT=/data/acdc OUT_ROOT=runs/blpseg_acdc sh benchmarks/blpseg_ablation.sh --config configs/blpseg/acdc.yaml --train.seed 0
set -eu
cd "$(dirname "$0")/.."
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi
: "${DATA_ROOT:?the data set}" "${OUT_ROOT:?the folder for the runs}"
export DATA_ROOT

row() { # NAME [flags]
    local run=$OUT_ROOT/$1
    shift
    OUT=$run sh train_blpseg.sh "$@"
    CHECKPOINT=$run/best.pt OUT=$run/evaluation sh evaluate.sh
}

row cross_entropy "$@" --method.gamma 0 --method.sigma 0 --method.self_training_from null
row balanced "$@" --method.sigma 0 --method.self_training_from null
row aggregated "$@" --method.self_training_from null
row self_trained "$@"
python -m tools.compare "$OUT_ROOT" --data.root "$DATA_ROOT"
