#!/bin/sh
# RecurSeed's parts at equal passes of the network, one after the other, on drawn images of one or two objects; and CISC-R's DeepLabv3+ on
# dense masks, in as many steps. Any flag of train.py that all methods have may follow.
#
#   OUT=runs/tags/0 sh benchmarks/tags.sh --train.seed 0
#
# Ends with the scores of the classifier's maps and with a table of the trainings. Finished trainings are skipped.
set -eu
cd "$(dirname "$0")/.."

export DATA_ROOT=${DATA_ROOT:-data/tags}                     # drawn if missing
MASKS=${MASKS:-$DATA_ROOT/SegmentationClass}
OUT=${OUT:-runs/tags}
TRAIN_SPLIT=${TRAIN_SPLIT:-train}
STEPS=${STEPS:-400}                                          # steps of a run with mixing, which begins halfway; other runs take half as many more
BATCH=${BATCH:-4}

. tools/stages.sh
if [ ! -d "$DATA_ROOT" ]; then python -m benchmarks.tag_data "$DATA_ROOT"; fi
if [ ! -f "$DATA_ROOT/tags.json" ]; then python -m tools.tags "$DATA_ROOT" --labels "$MASKS"; fi
set -- --train.batch_size "$BATCH" "$@"
images=$(wc -l < "$DATA_ROOT/ImageSets/Segmentation/$TRAIN_SPLIT.txt")
epochs() { awk "BEGIN {print $BATCH * $1 / $images}"; }      # steps in epochs

tags() { # NAME STEPS [flags]: one training on tags; the decoder begins after a quarter of STEPS, mixing after a half
    name=$1 steps=$2
    shift 2
    (OUT=$OUT/$name; train recurseed/voc "$MASKS" --config configs/recurseed/demo.yaml --train.steps "$steps" \
        --train.val_steps "$steps" --method.segment_from "$(epochs $((STEPS / 4)))" "$@")
}

unmixed="--method.mix_from null" mixed="--method.mix_from $(epochs $((STEPS / 2)))" more=$((STEPS * 3 / 2))
# shellcheck disable=SC2086  # several flags in one variable
{
    tags classifier $((STEPS / 2)) $unmixed "$@" --method.segment_from "$(epochs $((STEPS / 2 - 1)))" # the tags alone, but for one step
    tags cam_filter $more $unmixed --method.correlate false --method.refine 0 "$@"
    tags recurseed $more $unmixed "$@"
    tags certain_mix "$STEPS" $mixed "$@"
    tags cut_mix "$STEPS" $mixed --method.mix cut "$@"
    if [ -n "${ABLATIONS:-}" ]; then                          # ABLATIONS=1: the choices of docs/recurseed.md
        tags raw_maps "$STEPS" $mixed --method.renormalise false "$@"
        tags reconstruction "$STEPS" $mixed --method.reconstruction 1 "$@"
        tags visible_tags "$STEPS" $mixed --method.visible_tags "$@"
        tags early "$STEPS" $mixed "$@" --method.segment_from "$(epochs $((STEPS / 8)))"
        tags late "$STEPS" $mixed "$@" --method.segment_from "$(epochs $((STEPS / 2)))"
    fi
}
(OUT=$OUT/masks; train cisc_r/voc "$MASKS" --config configs/cisc_r/supervised.yaml --config configs/cisc_r/demo.yaml --data.crop 193 \
    --data.scale '[0.64, 1.0]' --train.lr 5e-4 --train.steps $more --train.val_steps $more "$@")

python -m benchmarks.seeds --checkpoint "$OUT/classifier/best.pt" --root "$DATA_ROOT" --labels "$MASKS"
for checkpoint in "$OUT"/*/best.pt; do
    run=$(dirname "$checkpoint")
    CHECKPOINT=$checkpoint OUT=$run/evaluation sh evaluate.sh > /dev/null
done
python -m tools.compare "$OUT" --data.root "$DATA_ROOT"
