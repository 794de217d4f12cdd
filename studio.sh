#!/bin/sh
# The scribble studio in the browser. Draw, train, look, correct: sh studio.sh, or sh studio.sh FOLDER. Any flag of
# `python -m studio` may follow.
set -eu
here=$PWD
cd "$(dirname "$0")"
if [ ! -f .venv/complete ] || [ requirements.txt -nt .venv/complete ] || [ requirements-extra.txt -nt .venv/complete ]; then
    sh tools/setup_venv.sh
fi
. .venv/bin/activate
case ${1:-} in
    "" | --*) set -- data/studio "$@" ;;
    /*) ;;
    *) folder=$here/$1; shift; set -- "$folder" "$@" ;;       # relative to where the person is
esac
exec python -m studio "$@"
