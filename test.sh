#!/usr/bin/env bash
# Installs what the tests need into .venv and runs them all. Any argument of pytest may follow: bash test.sh -k colour
# Tests on real data and published outputs need SEG_SHARED (see tests/conftest.py) and skip without.
set -euo pipefail
cd "$(dirname "$0")"
bash tools/setup_venv.sh requirements-dev.txt
source .venv/bin/activate
python -m pytest "$@"
ruff check .
ruff format --check .
