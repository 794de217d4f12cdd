#!/bin/sh
# Stage 2 with UR's losses, from ImageNet weights: pseudo-labels of SS and the colour constraint. Any flag of train.py may follow.
set -eu
cd "$(dirname "$0")"

DATA_ROOT=${DATA_ROOT:-data/demo}                            # JPEGImages, ImageSets/Segmentation, classes.txt (README, "Your own data")
TRAIN_SPLIT=${TRAIN_SPLIT:-train}                            # ImageSets/Segmentation/NAME.txt
SCRIBBLES=${SCRIBBLES:-$DATA_ROOT/scribbles}                 # label PNGs of the training split
MASKS=${MASKS:-$DATA_ROOT/SegmentationClass}                 # dense masks of the validation split
LABELS_FROM=${LABELS_FROM:-runs/ss/best.pt}                  # makes the pseudo-labels; train_seg_SS.sh writes it
INIT=${INIT:-}                                               # empty: ImageNet; runs/ss/best.pt: go on from SS
OUT=${OUT:-runs/ur_stage2}

. tools/stages.sh
require_checkpoint "$LABELS_FROM" train_seg_SS.sh LABELS_FROM
if [ -n "$INIT" ]; then require_checkpoint "$INIT" train_seg_SS.sh INIT; fi
make_superpixels
make_pseudo_labels
train cc4s/ur_stage2 "$PSEUDO_LABELS" --data.superpixels "$SUPERPIXELS" ${INIT:+--init "$INIT"} "$@"
