#!/usr/bin/env bash
# Runs the whole chain and BLPSeg on real data (ACDC, human scribbles) for 24 steps per stage, with every eighth image of both
# splits. Checks that losses are finite and that every file of the contract exists. Does not measure quality.
set -euo pipefail
cd "$(dirname "$0")/.."
source .venv/bin/activate
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DATA_ROOT=$work/acdc
mkdir -p "$DATA_ROOT/ImageSets/Segmentation"
ln -s "$SEG_SHARED"/data/acdc/{JPEGImages,scribbles,SegmentationClass,classes.txt} "$DATA_ROOT"
for split in train val; do
    awk 'NR % 8 == 1' "$SEG_SHARED/data/acdc/ImageSets/Segmentation/$split.txt" > "$DATA_ROOT/ImageSets/Segmentation/$split.txt"
done
steps=(--train.steps 24 --train.log_every 4)
flags=(--config configs/cc4s/acdc.yaml "${steps[@]}")

OUT=$work/baseline sh train_seg_baseline.sh "${flags[@]}"
OUT=$work/ur sh train_seg_UR.sh "${flags[@]}"
OUT=$work/ss INIT=$work/ur/best.pt sh train_seg_SS.sh "${flags[@]}"
export LABELS_FROM=$work/ss/best.pt PRESET=fast THRESHOLD=0.5
OUT=$work/ur_stage2 sh train_seg_UR_stage2.sh "${flags[@]}"
OUT=$work/ss_stage2 INIT=$work/ur_stage2/best.pt sh train_seg_SS_stage2.sh "${flags[@]}"
CHECKPOINT=$work/ss_stage2/best.pt sh evaluate.sh --inference.flip
OUT=$work/blpseg sh train_blpseg.sh --config configs/blpseg/acdc.yaml "${steps[@]}" --method.self_training_from 12
grep -q 'labels: .*/pseudo_labels$' "$work/ss_stage2/config.yaml"
python tests/check_run.py "$work"/{baseline,ur,ss,ur_stage2,ss_stage2,blpseg}
