#!/bin/sh
# The robustness study of CC4S: how much scribble does a method need? It trains baseline and UR on all scribbles, on the middle
# half and the middle pixel of every stroke, and with each stroke dropped with probability 0.3 and 0.5. It ends with a table and
# a plot. If the script is started again, it resumes, and it evaluates finished runs again.
#
#     DATA_ROOT=/data/acdc OUT_ROOT=runs/robustness sh benchmarks/robustness.sh --config configs/cc4s/acdc.yaml --train.seed 0
set -eu
cd "$(dirname "$0")/.."
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi
: "${DATA_ROOT:?the data set}" "${OUT_ROOT:?the folder for the runs}"
export DATA_ROOT SUPERPIXELS=${SUPERPIXELS:-$OUT_ROOT/superpixels}
scribbles=${SCRIBBLES:-$DATA_ROOT/scribbles}

for ratio in 0.5 0; do
    python -m tools.scribbles shrink --scribbles "$scribbles" --ratio "$ratio" --out "$OUT_ROOT/labels/shrink_$ratio"
done
for probability in 0.3 0.5; do
    python -m tools.scribbles drop --scribbles "$scribbles" --probability "$probability" --out "$OUT_ROOT/labels/drop_$probability"
done

for labels in all shrink_0.5 shrink_0 drop_0.3 drop_0.5; do
    if [ "$labels" = all ]; then folder=$scribbles; else folder=$OUT_ROOT/labels/$labels; fi
    for stage in baseline UR; do
        if [ "$stage" = UR ]; then run=$OUT_ROOT/ur_$labels; else run=$OUT_ROOT/baseline_$labels; fi
        SCRIBBLES=$folder OUT=$run sh "train_seg_$stage.sh" "$@"
        CHECKPOINT=$run/best.pt OUT=$run/evaluation sh evaluate.sh
    done
done
python -m benchmarks.plot_robustness "$OUT_ROOT"
