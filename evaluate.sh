#!/bin/sh
# Scores a checkpoint: per-class IoU and Dice, mIoU, pixel accuracy, boundary IoU. Any other flag of evaluate.py may follow, such as
# --preset paper (CC4S: seven scales, sliding windows) or --crf torch.
set -eu
cd "$(dirname "$0")"
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi

CHECKPOINT=${CHECKPOINT:-runs/ss_stage2/best.pt}
DATA_ROOT=${DATA_ROOT:-data/demo}                              # JPEGImages, ImageSets/Segmentation, classes.txt (README, "Your own data")
MASKS=${MASKS:-$DATA_ROOT/SegmentationClass}                   # dense masks
OUT=${OUT:-$(dirname "$CHECKPOINT")/evaluation}
SAVE=${SAVE:-}                                                 # folder for the predicted masks; empty: not written
LAUNCH=${LAUNCH:-python}                                       # several GPUs: LAUNCH="torchrun --nproc_per_node 4"

exec $LAUNCH evaluate.py --checkpoint "$CHECKPOINT" \
    --data.root "$DATA_ROOT" --data.labels "$MASKS" --data.split val --out "$OUT" ${SAVE:+--save_masks "$SAVE"} "$@"
