#!/bin/sh
# Stage 1, self-supervision on the neural eigenspace, from UR's best. Any other flag of train.py may follow,
# such as --method.view flip or --method.consistency_on z.
set -eu
cd "$(dirname "$0")"
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi

DATA_ROOT=${DATA_ROOT:-data/demo}                              # JPEGImages, ImageSets/Segmentation, classes.txt (README, "Your own data")
TRAIN_SPLIT=${TRAIN_SPLIT:-train}                              # ImageSets/Segmentation/NAME.txt
SCRIBBLES=${SCRIBBLES:-$DATA_ROOT/scribbles}                   # label PNGs of the training split
SUPERPIXELS=${SUPERPIXELS:-$DATA_ROOT/superpixels}             # made where missing
INIT=${INIT:-runs/ur/best.pt}                                  # train_seg_UR.sh writes it
OUT=${OUT:-runs/ss}
LAUNCH=${LAUNCH:-python}                                       # several GPUs: LAUNCH="torchrun --nproc_per_node 4"

if [ ! -f "$INIT" ]; then echo "error: $INIT not found: run train_seg_UR.sh first, or set INIT" >&2; exit 2; fi
$LAUNCH -m tools.superpixels "$DATA_ROOT" --split "$TRAIN_SPLIT" --out "$SUPERPIXELS"
exec $LAUNCH train.py --config configs/cc4s/ss.yaml --init "$INIT" \
    --data.root "$DATA_ROOT" --data.train_split "$TRAIN_SPLIT" \
    --data.labels "$SCRIBBLES" --data.superpixels "$SUPERPIXELS" --out "$OUT" "$@"
