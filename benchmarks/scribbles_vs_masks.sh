#!/bin/sh
# How near scribbles come to masks, on any data set: the whole chain of CC4S on scribbles, SS's control, and UR's network with
# plain cross-entropy on the dense masks, each evaluated. Ends with the table. Each of the two stages of the second round has
# its control at equal steps in the first: UR stage 2 in UR, SS stage 2 in SS. TRAIN_MASKS: masks of the training images, where
# SegmentationClass does not have them all (PASCAL VOC with SBD: SegmentationClassAug).
#
#     DATA_ROOT=/data/acdc OUT_ROOT=runs/acdc_seed0 sh benchmarks/scribbles_vs_masks.sh --config configs/acdc.yaml --train.seed 0
set -eu
cd "$(dirname "$0")/.."
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi
: "${DATA_ROOT:?the data set, in VOC layout}" "${OUT_ROOT:?the folder for the runs}"
export DATA_ROOT

stage() { # SCRIPT NAME [flags]
    local script=$1 name=$2
    shift 2
    OUT=$OUT_ROOT/$name sh "$script" "$@"
    CHECKPOINT=$OUT_ROOT/$name/best.pt OUT=$OUT_ROOT/$name/evaluation sh evaluate.sh
}

stage train_seg_baseline.sh baseline "$@"
stage train_seg_UR.sh ur "$@"
INIT=$OUT_ROOT/ur/best.pt stage train_seg_SS.sh ss "$@"
INIT=$OUT_ROOT/ur/best.pt stage train_seg_SS.sh ur_more --method.consistency 0 "$@" # SS's control: as many further steps
export LABELS_FROM="$OUT_ROOT/ss/best.pt"
stage train_seg_UR_stage2.sh ur_stage2 "$@"
INIT=$OUT_ROOT/ur_stage2/best.pt stage train_seg_SS_stage2.sh ss_stage2 "$@"
SCRIBBLES=${TRAIN_MASKS:-$DATA_ROOT/SegmentationClass} stage train_seg_UR.sh masks --method.soft_entropy 0 "$@"
python -m tools.compare "$OUT_ROOT" --data.root "$DATA_ROOT"
