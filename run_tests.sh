#!/usr/bin/env bash
# The tests: bash run_tests.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")"
source ./env.sh
exec $python -m pytest -q --disable-warnings tests "$@"
