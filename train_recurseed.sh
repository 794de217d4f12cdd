#!/bin/sh
# RecurSeed + CertainMix: image tags alone, in tags.json (python -m tools.tags, or tools.prepare), in four steps. Any flag of train.py may
# follow for step 2. The same command continues a stopped run and skips finished steps; --fresh starts over.
set -eu
cd "$(dirname "$0")"

DATASET=${DATASET:-demo}                                     # configs/recurseed/DATASET.yaml, and configs/cisc_r/DATASET.yaml for step 4
DATA_ROOT=${DATA_ROOT:-data/demo}                            # JPEGImages, ImageSets/Segmentation, classes.txt, tags.json
TRAIN_SPLIT=${TRAIN_SPLIT:-train}                            # ImageSets/Segmentation/NAME.txt
VAL_SPLIT=${VAL_SPLIT:-val}
MASKS=${MASKS:-$DATA_ROOT/SegmentationClass}                 # dense masks of the validation split
OUT=${OUT:-runs/recurseed}
PRESET=${PRESET:-recurseed}                                  # inference settings of the pseudo-labels
STEP4=${STEP4:-}                                             # flags of train.py for step 4, such as "--train.epochs 40"

. tools/stages.sh
start_over "single_stage multi_stage" recurseed/voc "$@"

echo "step 1 of 4: check the tags"
python -m tools.check_dataset "$DATA_ROOT" --labels tags.json --truth "$MASKS" --train_split "$TRAIN_SPLIT" \
    --val_split "$VAL_SPLIT" --sheet "$OUT/tags.png"
echo "step 2 of 4: train on the tags"
(OUT=$OUT/single_stage; train recurseed/voc "$MASKS" --config "configs/recurseed/$DATASET.yaml" --data.val_split "$VAL_SPLIT" "$@")
echo "step 3 of 4: label the training images"
$LAUNCH predict.py --checkpoint "$OUT/single_stage/best.pt" --images "$DATA_ROOT" --split "$TRAIN_SPLIT" --preset "$PRESET" \
    --pseudo_labels --classes tags --threshold 0 --truth "$MASKS" --out "$OUT/single_stage/pseudo_labels"
echo "step 4 of 4: train a DeepLabv3+ on these labels"
# shellcheck disable=SC2086  # several flags in one variable
(labels=$OUT/single_stage/pseudo_labels OUT=$OUT/multi_stage; train cisc_r/voc "$labels" --config configs/cisc_r/supervised.yaml \
    --config "configs/cisc_r/$DATASET.yaml" --data.val_split "$VAL_SPLIT" $STEP4)
