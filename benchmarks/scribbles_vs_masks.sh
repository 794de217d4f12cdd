#!/bin/sh
# How close do scribbles come to masks, on any data set? It trains every stage of CC4S on scribbles, and UR's network with plain
# cross-entropy on dense masks. It evaluates each run and ends with a table. A control has the same start and the same number of
# steps, but not the new part: ur_more for SS, ss_more for stage 2, ur_stage2_more for the loss of SS in stage 2.
#
#     DATA_ROOT=/data/acdc PRESET=multi_scale OUT_ROOT=runs/acdc_seed0 sh benchmarks/scribbles_vs_masks.sh --config configs/cc4s/acdc.yaml --train.seed 0
#
# PRESET: the scales for the pseudo-labels (train_seg_UR_stage2.sh). TRAIN_MASKS: masks of the training images, needed if
# SegmentationClass does not have all of them (PASCAL VOC with SBD: SegmentationClassAug).
set -eu
cd "$(dirname "$0")/.."
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi
: "${DATA_ROOT:?the data set, in VOC layout}" "${OUT_ROOT:?the folder for the runs}"
export DATA_ROOT
unset INIT PSEUDO_LABELS SAVE # they may be set for other work

stage() { # SCRIPT NAME [flags]
    local script=$1 name=$2
    shift 2
    OUT=$OUT_ROOT/$name sh "$script" "$@"
    CHECKPOINT=$OUT_ROOT/$name/best.pt OUT=$OUT_ROOT/$name/evaluation sh evaluate.sh
}

stage train_seg_baseline.sh baseline "$@"
stage train_seg_UR.sh ur "$@"
INIT=$OUT_ROOT/ur/best.pt stage train_seg_SS.sh ss "$@"
INIT=$OUT_ROOT/ur/best.pt stage train_seg_SS.sh ur_more --method.consistency 0 "$@"
INIT=$OUT_ROOT/ss/best.pt stage train_seg_SS.sh ss_more "$@"
export LABELS_FROM="$OUT_ROOT/ss/best.pt"
stage train_seg_UR_stage2.sh ur_stage2 "$@"
INIT=$OUT_ROOT/ur_stage2/best.pt stage train_seg_SS_stage2.sh ss_stage2 "$@"
INIT=$OUT_ROOT/ur_stage2/best.pt stage train_seg_SS_stage2.sh ur_stage2_more --method.consistency 0 "$@"
SCRIBBLES=${TRAIN_MASKS:-$DATA_ROOT/SegmentationClass} stage train_seg_UR.sh masks --method.soft_entropy 0 "$@"
python -m tools.compare "$OUT_ROOT" --data.root "$DATA_ROOT"
