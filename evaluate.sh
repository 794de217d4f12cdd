#!/bin/sh
# Scores a checkpoint: IoU and Dice of each class, mIoU, pixel accuracy, boundary IoU. Any flag of evaluate.py may follow, such as
# --preset cc4s (seven scales, sliding windows) or --crf torch.
set -eu
cd "$(dirname "$0")"

CHECKPOINT=${CHECKPOINT:-runs/ss_stage2/best.pt}
DATA_ROOT=${DATA_ROOT:-data/demo}                            # JPEGImages, ImageSets/Segmentation, classes.txt (README, "Your own data")
MASKS=${MASKS:-$DATA_ROOT/SegmentationClass}                 # dense masks
OUT=${OUT:-}                                                 # folder of the scores; empty: evaluation/ beside the checkpoint
SAVE=${SAVE:-}                                               # folder for the predicted masks; empty: not written

. tools/stages.sh
exec $LAUNCH evaluate.py --checkpoint "$CHECKPOINT" \
    --data.root "$DATA_ROOT" --data.labels "$MASKS" --data.split val --out "${OUT:-$(folder_of "$CHECKPOINT")/evaluation}" ${SAVE:+--save_masks "$SAVE"} "$@"
