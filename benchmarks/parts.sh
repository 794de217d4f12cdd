#!/bin/sh
# What each part of CC4S adds at equal steps: soft entropy, walk with consistency (SS), pseudo-labels, colour constraint. Each part has a
# control with the same start and as many steps, without the part. Any flag of train.py may follow.
#
#   CONFIG=camvid DATA_ROOT=data/camvid OUT=runs/parts/0 sh benchmarks/parts.sh --train.seed 0
#   python -m tools.over_seeds runs/parts --against ur_ur
#
# Ends with a table. Finished trainings are skipped.
set -eu
cd "$(dirname "$0")/.."

CONFIG=${CONFIG:-demo}                                       # configs/cc4s/CONFIG.yaml
export DATA_ROOT=${DATA_ROOT:-data/demo}
TRAIN_SPLIT=${TRAIN_SPLIT:-train}
SCRIBBLES=${SCRIBBLES:-$DATA_ROOT/scribbles}
MASKS=${MASKS:-$DATA_ROOT/SegmentationClass}
OUT=${OUT:-runs/parts}
STEPS=${STEPS:-300}                                          # of UR, SS and stage 2 each
export THRESHOLD=${THRESHOLD:-0.9} PRESET=${PRESET:-multi_scale}

. tools/stages.sh
stage() { # NAME STAGE LABELS STEPS [flags]: one training
    name=$1 stage=$2 labels=$3 steps=$4
    shift 4
    (OUT=$OUT/$name; train "cc4s/$stage" "$labels" --config "configs/cc4s/$CONFIG.yaml" --data.superpixels "$SUPERPIXELS" \
        --train.steps "$steps" --train.val_steps "$steps" --train.lr_factor 1 "$@")
}

make_superpixels
# One training of 2 x STEPS: is the soft entropy worth its place?
stage cross_entropy ur "$SCRIBBLES" $((2 * STEPS)) --method.soft_entropy 0 "$@"
stage ur_long ur "$SCRIBBLES" $((2 * STEPS)) "$@"
# STEPS more, from UR: SS, and its control.
stage ur ur "$SCRIBBLES" "$STEPS" "$@"
stage ur_ur ur "$SCRIBBLES" "$STEPS" --init "$OUT/ur/best.pt" "$@"
stage ur_ss ss "$SCRIBBLES" "$STEPS" --init "$OUT/ur/best.pt" "$@"
# STEPS more, from SS: pseudo-labels with and without the colour constraint, and the control on scribbles.
LABELS_FROM=$OUT/ur_ss/best.pt PSEUDO_LABELS=
make_pseudo_labels
stage ur_ss_ss ss "$SCRIBBLES" "$STEPS" --init "$OUT/ur_ss/best.pt" "$@"
stage ur_ss_labels ss "$PSEUDO_LABELS" "$STEPS" --init "$OUT/ur_ss/best.pt" "$@"
stage ur_ss_labels_colour ss_stage2 "$PSEUDO_LABELS" "$STEPS" --init "$OUT/ur_ss/best.pt" "$@"
# As many steps as the whole chain: UR alone, and dense masks.
stage ur_longest ur "$SCRIBBLES" $((3 * STEPS)) "$@"
stage masks ur "$MASKS" $((3 * STEPS)) --method.soft_entropy 0 "$@"

for checkpoint in "$OUT"/*/best.pt; do
    run=$(dirname "$checkpoint")
    CHECKPOINT=$checkpoint OUT=$run/evaluation sh evaluate.sh > /dev/null
done
python -m tools.compare "$OUT" --data.root "$DATA_ROOT"
