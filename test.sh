#!/bin/sh
# Installs what the tests need into .venv, checks style and types, and runs the tests. Any argument of pytest may follow:
# sh test.sh -m "not slow"; sh test.sh -k colour. Tests on real data and published outputs need SEG_SHARED (tests/conftest.py).
set -eu
cd "$(dirname "$0")"
sh tools/setup_venv.sh requirements-dev.txt
. .venv/bin/activate
ruff check .
ruff format --check .
mypy
# One process a core, one file at a time. The files that train come first: started last, the longest would leave a core idle.
OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder "$@"
