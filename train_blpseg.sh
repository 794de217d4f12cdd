#!/bin/sh
# BLPSeg: a balanced loss on scribbles, local aggregation, self-training. Any other flag of train.py may follow, such as
# --config configs/blpseg/demo.yaml for the demo data (as is, it is the schedule of PASCAL VOC's train_aug).
set -eu
cd "$(dirname "$0")"
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi

DATA_ROOT=${DATA_ROOT:-data/demo}                              # JPEGImages, ImageSets/Segmentation, classes.txt (README, "Your own data")
TRAIN_SPLIT=${TRAIN_SPLIT:-train}                              # ImageSets/Segmentation/NAME.txt
SCRIBBLES=${SCRIBBLES:-$DATA_ROOT/scribbles}                   # label PNGs of the training split
OUT=${OUT:-runs/blpseg}
LAUNCH=${LAUNCH:-python}                                       # several GPUs: LAUNCH="torchrun --nproc_per_node 4"

exec $LAUNCH train.py --config configs/blpseg/voc.yaml \
    --data.root "$DATA_ROOT" --data.train_split "$TRAIN_SPLIT" \
    --data.labels "$SCRIBBLES" --out "$OUT" "$@"
