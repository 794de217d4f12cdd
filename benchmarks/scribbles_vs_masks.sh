#!/usr/bin/env bash
# How near scribbles come to masks, on any data set: baseline, UR, SS and SS stage 2 on scribbles, and UR's network with plain
# cross-entropy on the dense masks, each evaluated. Ends with the table. TRAIN_MASKS: masks of the training images, where
# SegmentationClass does not have them all (PASCAL VOC with SBD: SegmentationClassAug).
#
#     DATA_ROOT=/data/acdc OUT_ROOT=runs/acdc_seed0 bash benchmarks/scribbles_vs_masks.sh --config configs/acdc.yaml --train.seed 0
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi
: "${DATA_ROOT:?the data set, in VOC layout}" "${OUT_ROOT:?the folder for the runs}"
export DATA_ROOT

stage() { # SCRIPT NAME [flags]
    local script=$1 name=$2
    shift 2
    OUT=$OUT_ROOT/$name bash "$script" "$@"
    CHECKPOINT=$OUT_ROOT/$name/best.pt OUT=$OUT_ROOT/$name/evaluation bash evaluate.sh
}

stage train_seg_baseline.sh baseline "$@"
stage train_seg_UR.sh ur "$@"
INIT=$OUT_ROOT/ur/best.pt stage train_seg_SS.sh ss "$@"
INIT=$OUT_ROOT/ss/best.pt stage train_seg_SS_stage2.sh ss_stage2 "$@"
SCRIBBLES=${TRAIN_MASKS:-$DATA_ROOT/SegmentationClass} stage train_seg_UR.sh masks --method.soft_entropy 0 "$@"
python -m tools.compare "$OUT_ROOT" --data.root "$DATA_ROOT"
