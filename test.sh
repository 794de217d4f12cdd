#!/bin/sh
# Installs what the tests need into .venv and runs them all. Any argument of pytest may follow: sh test.sh -k colour
# A process a core, a file at a time, those that train first. Tests on real data and published outputs need SEG_SHARED (see
# tests/conftest.py) and skip without.
set -eu
cd "$(dirname "$0")"
sh tools/setup_venv.sh requirements-dev.txt
. .venv/bin/activate
OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder "$@"
ruff check .
ruff format --check .
