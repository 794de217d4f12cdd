#!/bin/sh
# Stage 1, uncertainty reduction: random walk and soft entropy. Any other flag of train.py may follow.
set -eu
cd "$(dirname "$0")"
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi

DATA_ROOT=${DATA_ROOT:-data/demo}                              # JPEGImages, ImageSets/Segmentation, classes.txt (README, "Your own data")
TRAIN_SPLIT=${TRAIN_SPLIT:-train}                              # ImageSets/Segmentation/NAME.txt
SCRIBBLES=${SCRIBBLES:-$DATA_ROOT/scribbles}                   # label PNGs of the training split
SUPERPIXELS=${SUPERPIXELS:-$DATA_ROOT/superpixels}             # made where missing
OUT=${OUT:-runs/ur}
LAUNCH=${LAUNCH:-python}                                       # several GPUs: LAUNCH="torchrun --nproc_per_node 4"

$LAUNCH -m tools.superpixels "$DATA_ROOT" --split "$TRAIN_SPLIT" --out "$SUPERPIXELS"
exec $LAUNCH train.py --config configs/cc4s/ur.yaml \
    --data.root "$DATA_ROOT" --data.train_split "$TRAIN_SPLIT" \
    --data.labels "$SCRIBBLES" --data.superpixels "$SUPERPIXELS" --out "$OUT" "$@"
