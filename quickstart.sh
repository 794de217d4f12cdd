#!/bin/sh
# From a fresh machine to trained models: makes .venv, draws the demo data, runs every stage of CC4S and evaluates them.
# Any flag of train.py may follow and goes to every stage: OUT_ROOT=runs/quickstart1 sh quickstart.sh --train.seed 1
set -eu
cd "$(dirname "$0")"
OUT_ROOT=${OUT_ROOT:-runs/quickstart}
# The stage scripts take their paths from the environment: the demo data, whatever is exported for other work.
unset TRAIN_SPLIT SCRIBBLES SUPERPIXELS PSEUDO_LABELS THRESHOLD PRESET LABELS_FROM MASKS INIT SAVE LAUNCH
export DATA_ROOT=data/demo

sh tools/setup_venv.sh
. .venv/bin/activate

stage() { # SCRIPT NAME [flags]: trains OUT_ROOT/NAME and evaluates it
    local script=$1 name=$2
    shift 2
    echo "== $name"
    OUT=$OUT_ROOT/$name sh "$script" --config configs/cc4s/demo.yaml "$@"
    CHECKPOINT=$OUT_ROOT/$name/best.pt OUT=$OUT_ROOT/$name/evaluation sh evaluate.sh
}

stage train_seg_baseline.sh baseline "$@"
stage train_seg_UR.sh ur "$@"
INIT=$OUT_ROOT/ur/best.pt stage train_seg_SS.sh ss "$@"
# After so few steps the network is seldom sure of an object: at the usual 0.9, most pseudo-labels would be background.
export LABELS_FROM="$OUT_ROOT/ss/best.pt" THRESHOLD=0.5 PRESET=multi_scale
stage train_seg_UR_stage2.sh ur_stage2 "$@"
INIT=$OUT_ROOT/ur_stage2/best.pt stage train_seg_SS_stage2.sh ss_stage2 "$@"

python -m tools.compare "$OUT_ROOT"
