#!/bin/sh
# What the scripts train_*.sh and evaluate.sh share. They read this file with `.`; set these variables as any other.
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi

LAUNCH=${LAUNCH:-python}                                     # several GPUs: LAUNCH="torchrun --nproc_per_node 4"

# --help shows the flags of train.py and does nothing else.
case " $* " in *" --help "* | *" -h "*)
    name=$(basename "$0" .sh)
    case $name in
        train_seg_*) exec $LAUNCH train.py --method.name cc4s --help ;;
        train_*) exec $LAUNCH train.py --method.name "${name#train_}" --help ;;
    esac ;;
esac

SUPERPIXELS=${SUPERPIXELS:-$DATA_ROOT/superpixels}           # made where missing

# Prints the folder for what a checkpoint makes: its run folder, a shared model's own folder, or runs/USER/NAME for hf:USER/NAME.
folder_of() {
    case $1 in
        hf:*) echo "runs/${1#hf:}" ;;
        *) if [ -d "$1" ]; then echo "$1"; else dirname "$1"; fi ;;
    esac
}

# Ends with an error if a checkpoint is missing: require_checkpoint FILE SCRIPT VARIABLE. A shared model is a folder, or hf:USER/NAME.
require_checkpoint() {
    case $1 in hf:*) return ;; esac
    if [ ! -e "$1" ]; then echo "error: $1 not found: run $2 first, or set $3" >&2; exit 2; fi
}

make_superpixels() {
    $LAUNCH -m tools.superpixels "$DATA_ROOT" --split "$TRAIN_SPLIT" --out "$SUPERPIXELS"
}

# Writes pseudo-labels of the training images by the checkpoint LABELS_FROM, and sets PSEUDO_LABELS, their folder. A pixel gets its most
# likely class of those scribbled in the image, if the probability is over THRESHOLD, else 255. Scribbled pixels keep their scribble.
make_pseudo_labels() {
    PSEUDO_LABELS=${PSEUDO_LABELS:-$(folder_of "$LABELS_FROM")/pseudo_labels} # made where missing
    THRESHOLD=${THRESHOLD:-0.9}                              # keeps predictions of a higher probability
    PRESET=${PRESET:-cc4s}                                   # scales: cc4s for photos, multi_scale for small images
    $LAUNCH predict.py --checkpoint "$LABELS_FROM" --images "$DATA_ROOT" --split "$TRAIN_SPLIT" --preset "$PRESET" \
        --pseudo_labels --threshold "$THRESHOLD" --scribbles "$SCRIBBLES" --out "$PSEUDO_LABELS"
}

# Deletes runs of a chain in OUT if a flag is --fresh: start_over "NAME ..." CONFIG [flags of train.py]
start_over() {
    runs=$1 config=$2
    shift 2
    case " $*" in *" --fresh"*) python -m tools.start_over "$OUT" "$runs" --config "configs/$config.yaml" "$@" ;; esac
}

# Trains a stage: train CONFIG LABELS [flags of train.py]
train() {
    config=$1 labels=$2
    shift 2
    exec $LAUNCH train.py --config "configs/$config.yaml" --data.root "$DATA_ROOT" --data.train_split "$TRAIN_SPLIT" \
        --data.labels "$labels" --data.truth "$MASKS" --out "$OUT" "$@"
}
