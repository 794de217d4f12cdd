#!/bin/sh
# UniMatch: a few labelled images and many unlabelled ones, in one training. Any flag of train.py may follow, such as --method.views
# fixmatch. The default is the schedule of PASCAL VOC; the demo data need --config configs/unimatch/demo.yaml.
set -eu
cd "$(dirname "$0")"

DATA_ROOT=${DATA_ROOT:-data/demo}                            # JPEGImages, ImageSets/Segmentation, classes.txt (README, "Your own data")
LABELLED=${LABELLED:-$DATA_ROOT/splits/labelled_8.txt}       # list of labelled images; tools.splits makes both lists
TRAIN_SPLIT=${UNLABELLED:-$DATA_ROOT/splits/unlabelled_8.txt} # list of unlabelled images, which need no label
LABELS=${LABELS:-$DATA_ROOT/SegmentationClass}               # label PNGs of the labelled images: masks, or scribbles
MASKS=${MASKS:-$DATA_ROOT/SegmentationClass}                 # dense masks of the validation split
OUT=${OUT:-runs/unimatch}

. tools/stages.sh
train unimatch/voc "$LABELS" --data.labelled.split "$LABELLED" --data.labelled.labels "$LABELS" "$@"
