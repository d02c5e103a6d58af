#!/usr/bin/env bash
# The tests: bash run_tests.sh [arguments of pytest]
# A file at a time on each core, on four at most; -n 0 runs all in one process.
set -euo pipefail
source "$(dirname "$0")/env.sh" ranges plots tests
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # a thread each
exec "$python" -P -m pytest -q --disable-warnings -n auto --maxprocesses 4 --dist loadfile \
  --no-loadscope-reorder "$here/tests" "$@"
