# Sourced by run_all.sh and run_tests.sh: sets $python to an interpreter that has exactly requirements.txt, and makes
# .venv for it unless the running python3 already has.
satisfied() {
  "$1" - requirements.txt <<'PYTHON' 2>/dev/null
import sys
from importlib.metadata import version
pins = [line.split("==") for line in open(sys.argv[1]).read().split() if "==" in line]
sys.exit(any(version(name).split("+")[0] != wanted for name, wanted in pins))
PYTHON
}
if satisfied python3; then
  python=python3
else
  python=.venv/bin/python
  if ! [ -x $python ]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: needs Python 3.11 or newer, found $(python3 --version)" >&2; exit 2; }
    echo "making .venv"
    python3 -m venv .venv
  fi
  if ! satisfied $python; then
    echo "installing requirements.txt into .venv (some minutes the first time)"
    $python -m pip install --quiet --disable-pip-version-check -r requirements.txt
  fi
fi
