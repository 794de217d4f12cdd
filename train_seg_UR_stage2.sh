#!/usr/bin/env bash
# Stage 2 with UR's losses: pseudo-labels of the stage-1 network and the colour constraint. Any other flag of train.py may follow.
set -euo pipefail
cd "$(dirname "$0")"
if [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi

DATA_ROOT=${DATA_ROOT:-data/demo}                              # JPEGImages, ImageSets/Segmentation, classes.txt (README, "Your own data")
TRAIN_SPLIT=${TRAIN_SPLIT:-train}                              # ImageSets/Segmentation/NAME.txt
SCRIBBLES=${SCRIBBLES:-$DATA_ROOT/scribbles}                   # they win over the pseudo-labels
SUPERPIXELS=${SUPERPIXELS:-$DATA_ROOT/superpixels}             # made where missing
INIT=${INIT:-runs/ur/best.pt}                                  # train_seg_UR.sh writes it
PSEUDO_LABELS=${PSEUDO_LABELS:-$(dirname "$INIT")/pseudo_labels} # made by INIT where missing
THRESHOLD=${THRESHOLD:-0.9}                                    # probability over which a prediction is a pseudo-label
OUT=${OUT:-runs/ur_stage2}
LAUNCH=${LAUNCH:-python}                                       # several GPUs: LAUNCH="torchrun --nproc_per_node 4"

if [ ! -f "$INIT" ]; then echo "error: $INIT not found: run train_seg_UR.sh first, or set INIT" >&2; exit 2; fi
$LAUNCH -m tools.superpixels "$DATA_ROOT" --split "$TRAIN_SPLIT" --out "$SUPERPIXELS"
$LAUNCH predict.py --checkpoint "$INIT" --images "$DATA_ROOT" --split "$TRAIN_SPLIT" \
    --pseudo_labels --threshold "$THRESHOLD" --scribbles "$SCRIBBLES" --out "$PSEUDO_LABELS"
exec $LAUNCH train.py --config configs/cc4s/ur_stage2.yaml --init "$INIT" \
    --data.root "$DATA_ROOT" --data.train_split "$TRAIN_SPLIT" \
    --data.labels "$PSEUDO_LABELS" --data.superpixels "$SUPERPIXELS" --out "$OUT" "$@"
