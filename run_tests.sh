#!/usr/bin/env bash
# The tests: bash run_tests.sh [arguments of pytest]
set -euo pipefail
source "$(dirname "$0")/env.sh" ranges plots tests
exec "$python" -P -m pytest -q --disable-warnings "$here/tests" "$@"
