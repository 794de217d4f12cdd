#!/bin/sh
# Stage 1, self-supervision on the neural eigenspace, from UR. Any flag of train.py may follow, such as --method.view flip.
set -eu
cd "$(dirname "$0")"

DATA_ROOT=${DATA_ROOT:-data/demo}                            # JPEGImages, ImageSets/Segmentation, classes.txt (README, "Your own data")
TRAIN_SPLIT=${TRAIN_SPLIT:-train}                            # ImageSets/Segmentation/NAME.txt
SCRIBBLES=${SCRIBBLES:-$DATA_ROOT/scribbles}                 # label PNGs of the training split
MASKS=${MASKS:-$DATA_ROOT/SegmentationClass}                 # dense masks of the validation split
INIT=${INIT:-runs/ur/best.pt}                                # train_seg_UR.sh writes it
OUT=${OUT:-runs/ss}

. tools/stages.sh
require_checkpoint "$INIT" train_seg_UR.sh INIT
make_superpixels
train cc4s/ss "$SCRIBBLES" --data.superpixels "$SUPERPIXELS" --init "$INIT" "$@"
