#!/bin/sh
# BLPSeg: a balanced loss on scribbles, local aggregation, self-training. Any flag of train.py may follow. The default is the
# schedule of PASCAL VOC (train_aug); the demo data need --config configs/blpseg/demo.yaml.
set -eu
cd "$(dirname "$0")"

DATA_ROOT=${DATA_ROOT:-data/demo}                            # JPEGImages, ImageSets/Segmentation, classes.txt (README, "Your own data")
TRAIN_SPLIT=${TRAIN_SPLIT:-train}                            # ImageSets/Segmentation/NAME.txt
SCRIBBLES=${SCRIBBLES:-$DATA_ROOT/scribbles}                 # label PNGs of the training split
MASKS=${MASKS:-$DATA_ROOT/SegmentationClass}                 # dense masks of the validation split
OUT=${OUT:-runs/blpseg}

. tools/stages.sh
train blpseg/voc "$SCRIBBLES" "$@"
