#!/bin/sh
# Makes .venv if missing and installs requirements.txt, requirements-extra.txt and the files named: sh tools/setup_venv.sh [FILE ...]
# Only pydensecrf may fail (it needs a C++ compiler): without it, everything works except --crf pydensecrf.
set -eu
cd "$(dirname "$0")/.."
.venv/bin/python -m pip --version > /dev/null 2>&1 || "${PYTHON:-python3}" -m venv .venv # completes one that was cut short, too
pip_install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }
cat requirements.txt requirements-extra.txt "$@" > .venv/all_requirements.txt # apart, so that a missing file ends the script
grep -v "^pydensecrf" .venv/all_requirements.txt > .venv/requirements.txt
pip_install -r .venv/requirements.txt
if ! pip_install "$(grep "^pydensecrf" requirements-extra.txt)"; then
    echo "note: going on without pydensecrf, which did not build: --crf pydensecrf will not work"
fi
touch .venv/complete
