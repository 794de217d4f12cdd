#!/bin/sh
# The scribble studio in the browser. Draw, train, look, correct: sh studio.sh, or sh studio.sh FOLDER. Any flag of
# `python -m studio` may follow.
set -eu
cd "$(dirname "$0")"
if [ ! -f .venv/bin/activate ]; then sh tools/setup_venv.sh; fi
. .venv/bin/activate
case ${1:-} in
    "" | --*) set -- data/studio "$@" ;;
esac
exec python -m studio "$@"
