#!/bin/sh
# RecurSeed + CertainMix: image tags alone, in tags.json (python -m tools.tags, or tools.prepare). Any flag of train.py may follow. The
# default is the schedule of PASCAL VOC (train_aug); the demo data need --config configs/recurseed/demo.yaml.
set -eu
cd "$(dirname "$0")"

DATA_ROOT=${DATA_ROOT:-data/demo}                            # JPEGImages, ImageSets/Segmentation, classes.txt, tags.json
TRAIN_SPLIT=${TRAIN_SPLIT:-train}                            # ImageSets/Segmentation/NAME.txt
MASKS=${MASKS:-$DATA_ROOT/SegmentationClass}                 # dense masks of the validation split
OUT=${OUT:-runs/recurseed}

. tools/stages.sh
train recurseed/voc "$MASKS" "$@"
