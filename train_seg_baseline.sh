#!/bin/sh
# Baseline: partial cross-entropy on scribbles, ASPP head. Any other flag of train.py may follow.
set -eu
cd "$(dirname "$0")"
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi

DATA_ROOT=${DATA_ROOT:-data/demo}                              # JPEGImages, ImageSets/Segmentation, classes.txt (README, "Your own data")
TRAIN_SPLIT=${TRAIN_SPLIT:-train}                              # ImageSets/Segmentation/NAME.txt
SCRIBBLES=${SCRIBBLES:-$DATA_ROOT/scribbles}                   # label PNGs of the training split
OUT=${OUT:-runs/baseline}
LAUNCH=${LAUNCH:-python}                                       # several GPUs: LAUNCH="torchrun --nproc_per_node 4"

exec $LAUNCH train.py --config configs/cc4s/baseline.yaml \
    --data.root "$DATA_ROOT" --data.train_split "$TRAIN_SPLIT" \
    --data.labels "$SCRIBBLES" --out "$OUT" "$@"
