#!/usr/bin/env bash
# Stage 1, self-supervision on the neural eigenspace, from UR's best. Any flag of train.py may follow,
# such as --method.view crop or --method.consistency_on z.
set -euo pipefail
cd "$(dirname "$0")"
if [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi

DATA_ROOT=${DATA_ROOT:-data/demo}                # JPEGImages, ImageSets/Segmentation, classes.txt (README, "Your own data")
SCRIBBLES=${SCRIBBLES:-$DATA_ROOT/scribbles}     # label PNGs of the training split
SUPERPIXELS=${SUPERPIXELS:-$DATA_ROOT/superpixels}   # made where missing
INIT=${INIT:-runs/ur/best.pt}                    # train_seg_UR.sh writes it
OUT=${OUT:-runs/ss}
LAUNCH=${LAUNCH:-python}                          # several GPUs: LAUNCH="torchrun --nproc_per_node 4"

python -m tools.superpixels "$DATA_ROOT" --out "$SUPERPIXELS"
$LAUNCH train.py --config configs/cc4s/ss.yaml --init "$INIT" \
    --data.root "$DATA_ROOT" --data.labels "$SCRIBBLES" --data.superpixels "$SUPERPIXELS" --out "$OUT" "$@"
