#!/usr/bin/env bash
# Makes .venv where it is missing and installs a requirements file: bash tools/setup_venv.sh requirements.txt
# pydensecrf alone may fail (it needs a C++ compiler): everything but --crf pydensecrf works without it.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1"; then
    echo "note: pip failed, going on without pydensecrf (evaluate.py --crf pydensecrf will not work)"
    grep -hv -e pydensecrf -e '^-r' requirements.txt "$1" | sort -u > .venv/requirements.txt
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r .venv/requirements.txt
fi
