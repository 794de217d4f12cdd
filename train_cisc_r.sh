#!/bin/sh
# CISC-R: a few labelled images and many unlabelled ones, in six steps. Any flag of train.py may follow; every training gets it. The
# default is the schedule of PASCAL VOC; the demo data need --config configs/cisc_r/demo.yaml. The same command continues a stopped
# run and skips finished steps; --fresh starts over.
set -eu
cd "$(dirname "$0")"

DATA_ROOT=${DATA_ROOT:-data/demo}                            # JPEGImages, ImageSets/Segmentation, classes.txt (README, "Your own data")
LABELLED=${LABELLED:-$DATA_ROOT/splits/labelled_8.txt}       # list of labelled images; tools.splits makes both lists
UNLABELLED=${UNLABELLED:-$DATA_ROOT/splits/unlabelled_8.txt} # list of unlabelled images, which need no label
LABELS=${LABELS:-$DATA_ROOT/SegmentationClass}               # label PNGs of the labelled images: masks, or scribbles
MASKS=${MASKS:-$DATA_ROOT/SegmentationClass}                 # dense masks of the validation split
OUT=${OUT:-runs/cisc_r}
PRESET=${PRESET:-cisc_r}                                     # inference settings of the pseudo-labels
STEP1=${STEP1:-}                                             # flags of train.py for step 1 alone, such as "--train.epochs 160"
REDUCE=${REDUCE:-mean}                                       # rank unlabelled images by the mean over their classes, or by the sum

. tools/stages.sh
start_over "pairs retrain1 retrain2" cisc_r/voc "$@"

# A training of a step: step NAME CONFIG LIST LABELS [flags]
step() {
    name=$1 stage=$2 TRAIN_SPLIT=$3 labels=$4
    shift 4
    (OUT=$OUT/$name; train cisc_r/voc "$labels" --config "configs/cisc_r/$stage.yaml" "$@")
}

# Labels of the images in a list, by the network of a step: label NAME LIST
label() {
    $LAUNCH predict.py --checkpoint "$OUT/$1/best.pt" --images "$DATA_ROOT" --split "$2" --preset "$PRESET" \
        --pseudo_labels --threshold 0 --truth "$MASKS" --out "$OUT/$1/pseudo_labels"
}

echo "step 1 of 6: train on pairs of labelled images"
# shellcheck disable=SC2086  # several flags in one variable
step pairs pairs "$LABELLED" "$LABELS" "$@" $STEP1
echo "step 2 of 6: label the unlabelled images"
label pairs "$UNLABELLED"
echo "step 3 of 6: rank the images"
$LAUNCH -m tools.reliable "$DATA_ROOT" --checkpoint "$OUT/pairs/best.pt" --labelled "$LABELLED" --labels "$LABELS" \
    --unlabelled "$UNLABELLED" --pseudo_labels "$OUT/pairs/pseudo_labels" --reduce "$REDUCE" --out "$OUT/pairs/ranking"
set -- --data.labelled.split "$LABELLED" --data.labelled.labels "$LABELS" --data.partners.lists "$OUT/pairs/ranking/partners.json" "$@"
echo "step 4 of 6: train on the labelled and the reliable images"
step retrain1 retrain "$OUT/pairs/ranking/reliable.txt" "$OUT/pairs/pseudo_labels" --teacher "$OUT/pairs/best.pt" "$@"
echo "step 5 of 6: label the unreliable images again"
label retrain1 "$OUT/pairs/ranking/unreliable.txt"
$LAUNCH -m tools.merge_labels "$DATA_ROOT" --split "$UNLABELLED" --out "$OUT/retrain1/merged_labels" \
    --first "$OUT/retrain1/pseudo_labels" --second "$OUT/pairs/pseudo_labels"
echo "step 6 of 6: train on the labelled and all unlabelled images"
step retrain2 retrain "$UNLABELLED" "$OUT/retrain1/merged_labels" --teacher "$OUT/retrain1/best.pt" "$@"
