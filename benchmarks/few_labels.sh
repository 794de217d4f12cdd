#!/bin/sh
# Every method for few labels at equal steps, one after the other: labelled images alone, CISC-R's three trainings, self-training,
# FixMatch, UniMatch, and all masks. Every step has 2 BATCH training images: BATCH labelled and BATCH unlabelled ones, or 2 BATCH
# labelled ones. The configs of DATASET for CISC-R and UniMatch must have the same encoder, crop and rate: those of acdc, camvid and
# demo do. Any flag of train.py may follow, but not --train.batch_size.
#
#   DATASET=camvid DATA_ROOT=data/camvid OUT=runs/few/0 sh benchmarks/few_labels.sh --train.seed 0
#
# Ends with a table. Finished trainings are skipped.
set -eu
cd "$(dirname "$0")/.."

DATASET=${DATASET:-demo}                                     # configs/cisc_r/DATASET.yaml and configs/unimatch/DATASET.yaml
export DATA_ROOT=${DATA_ROOT:-data/demo}
export LABELLED=${LABELLED:-$DATA_ROOT/splits/labelled_8.txt} UNLABELLED=${UNLABELLED:-$DATA_ROOT/splits/unlabelled_8.txt}
export LABELS=${LABELS:-$DATA_ROOT/SegmentationClass} MASKS=${MASKS:-$DATA_ROOT/SegmentationClass}
ALL=${ALL:-train}                                            # list of all training images, for the row "all masks"
OUT=${OUT:-runs/few_labels}
BATCH=${BATCH:-4}
STEPS=${STEPS:-500}
export PRESET=${PRESET:-cisc_r}

. tools/stages.sh
for method in cisc_r unimatch; do
    if [ ! -f "configs/$method/$DATASET.yaml" ]; then echo "error: no configs/$method/$DATASET.yaml: set DATASET" >&2; exit 2; fi
done
plain() { # NAME STAGE LIST LABELS [flags]: one training of CISC-R's network
    name=$1 stage=$2 TRAIN_SPLIT=$3 labels=$4
    shift 4
    (OUT=$OUT/$name; train cisc_r/voc "$labels" --config "configs/cisc_r/$stage.yaml" --config "configs/cisc_r/$DATASET.yaml" "$@")
}

set -- --train.steps "$STEPS" --train.val_steps "$STEPS" "$@"
both=$((2 * BATCH))                                          # where all images are labelled
plain supervised supervised "$LABELLED" "$LABELS" "$@" --train.batch_size "$both"
OUT=$OUT sh train_cisc_r.sh --config "configs/cisc_r/$DATASET.yaml" "$@" --train.batch_size "$BATCH"
$LAUNCH predict.py --checkpoint "$OUT/supervised/best.pt" --images "$DATA_ROOT" --split "$UNLABELLED" --preset "$PRESET" \
    --pseudo_labels --threshold 0 --truth "$MASKS" --out "$OUT/supervised/pseudo_labels"
plain self_training self_training "$UNLABELLED" "$OUT/supervised/pseudo_labels" --data.labelled.split "$LABELLED" \
    --data.labelled.labels "$LABELS" "$@" --train.batch_size "$BATCH"
for views in fixmatch unimatch; do
    OUT=$OUT/$views sh train_unimatch.sh --config "configs/unimatch/$DATASET.yaml" --method.views $views "$@" --train.batch_size "$BATCH"
done
plain all_masks supervised "$ALL" "$MASKS" "$@" --train.batch_size "$both"

for run in supervised pairs retrain1 retrain2 self_training fixmatch unimatch all_masks; do
    CHECKPOINT=$OUT/$run/best.pt OUT=$OUT/$run/evaluation sh evaluate.sh > /dev/null
done
python -m tools.compare "$OUT" --data.root "$DATA_ROOT"
