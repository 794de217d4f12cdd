#!/bin/sh
# Stage 1, uncertainty reduction: random walk and soft entropy. Any flag of train.py may follow.
set -eu
cd "$(dirname "$0")"

DATA_ROOT=${DATA_ROOT:-data/demo}                            # JPEGImages, ImageSets/Segmentation, classes.txt (README, "Your own data")
TRAIN_SPLIT=${TRAIN_SPLIT:-train}                            # ImageSets/Segmentation/NAME.txt
SCRIBBLES=${SCRIBBLES:-$DATA_ROOT/scribbles}                 # label PNGs of the training split
MASKS=${MASKS:-$DATA_ROOT/SegmentationClass}                 # dense masks of the validation split
OUT=${OUT:-runs/ur}

. tools/stages.sh
make_superpixels
train cc4s/ur "$SCRIBBLES" --data.superpixels "$SUPERPIXELS" "$@"
