#!/bin/sh
# Stage 2 with UR's losses, from ImageNet weights: pseudo-labels of SS and the colour constraint. Any other flag of train.py may follow.
set -eu
cd "$(dirname "$0")"
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi

DATA_ROOT=${DATA_ROOT:-data/demo}                              # JPEGImages, ImageSets/Segmentation, classes.txt (README, "Your own data")
TRAIN_SPLIT=${TRAIN_SPLIT:-train}                              # ImageSets/Segmentation/NAME.txt
SCRIBBLES=${SCRIBBLES:-$DATA_ROOT/scribbles}                   # they win over the pseudo-labels
SUPERPIXELS=${SUPERPIXELS:-$DATA_ROOT/superpixels}             # made where missing
LABELS_FROM=${LABELS_FROM:-runs/ss/best.pt}                    # the checkpoint that makes the pseudo-labels (train_seg_SS.sh)
PSEUDO_LABELS=${PSEUDO_LABELS:-$(dirname "$LABELS_FROM")/pseudo_labels} # made where missing
THRESHOLD=${THRESHOLD:-0.9}                                    # probability over which a prediction is a pseudo-label
PRESET=${PRESET:-paper}                                        # seven scales of a 512 long side; multi_scale: of the image's own size
INIT=${INIT:-}                                                 # empty: ImageNet; runs/ss/best.pt: go on from SS
OUT=${OUT:-runs/ur_stage2}
LAUNCH=${LAUNCH:-python}                                       # several GPUs: LAUNCH="torchrun --nproc_per_node 4"

if [ ! -f "$LABELS_FROM" ]; then echo "error: $LABELS_FROM not found: run train_seg_SS.sh first, or set LABELS_FROM" >&2; exit 2; fi
if [ -n "$INIT" ] && [ ! -f "$INIT" ]; then echo "error: INIT $INIT not found" >&2; exit 2; fi
$LAUNCH -m tools.superpixels "$DATA_ROOT" --split "$TRAIN_SPLIT" --out "$SUPERPIXELS"
$LAUNCH predict.py --checkpoint "$LABELS_FROM" --images "$DATA_ROOT" --split "$TRAIN_SPLIT" --preset "$PRESET" \
    --pseudo_labels --threshold "$THRESHOLD" --scribbles "$SCRIBBLES" --out "$PSEUDO_LABELS"
exec $LAUNCH train.py --config configs/cc4s/ur_stage2.yaml ${INIT:+--init "$INIT"} \
    --data.root "$DATA_ROOT" --data.train_split "$TRAIN_SPLIT" \
    --data.labels "$PSEUDO_LABELS" --data.superpixels "$SUPERPIXELS" --out "$OUT" "$@"
