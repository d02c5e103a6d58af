# Sourced by the shell scripts: source env.sh pins|ranges [EXTRA ...]
# Sets $here, the folder of the scripts, and $python, an interpreter that has the packages that pyproject.toml
# names, with these extras. It takes the first of these that there is:
#   python3, or else .venv, at the versions of requirements.txt
#   python3 at other versions in the ranges of pyproject.toml (not for "pins"); one line says what differs
#   .venv, made or updated from requirements.lock
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# fits INTERPRETER pins|ranges [EXTRA ...]: whether it has these versions; prints the line on what differs
fits() {
  "$1" - "$here" "${@:2}" <<'PYTHON'
import sys

sys.path.pop(0)  # the folder the user stands in
from importlib.metadata import version
from pathlib import Path

folder, wanted, *extras = sys.argv[1:]
lines = (Path(folder) / "requirements.txt").read_text().splitlines()
pins = dict(line.split("==") for line in lines if "==" in line)
try:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((Path(folder) / "pyproject.toml").read_text())["project"]
    core = [Requirement(line) for line in project["dependencies"]]
    more = [Requirement(line) for extra in extras for line in project["optional-dependencies"][extra]]
    found = {package.name: version(package.name) for package in core + more}
except ImportError:  # Python before 3.11, or a package is not installed
    sys.exit(1)
differ = [name for name in found if found[name].split("+")[0] != pins[name]]  # 2.13.0+cpu is 2.13.0
if wanted == "pins":
    sys.exit(bool(differ))
if not all(package.specifier.contains(found[package.name], prereleases=True) for package in core + more):
    sys.exit(1)
differ = [package.name for package in core if package.name in differ]  # the extras decide no result
if differ:
    ours, theirs = (", ".join(f"{name} {versions[name]}" for name in differ) for versions in (found, pins))
    print(f"note: running with {ours}; the published results used {theirs}")
PYTHON
}

# show "NAME ..." [OURS ...] -- [THEIRS ...]: values of train.py's arguments, one per line (run/arguments.py)
show() {
  PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" "$python" -P -m run.arguments --show "$@"
}

python=$here/.venv/bin/python
if ! command -v python3 >/dev/null; then
  echo "error: there is no python3; install Python 3.11 or newer" >&2
  exit 2
elif fits python3 pins "${@:2}"; then
  python=python3
elif [ -x "$python" ] && fits "$python" pins "${@:2}"; then
  :
elif [ "$1" = ranges ] && fits python3 ranges "${@:2}"; then
  python=python3
else
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "error: needs Python 3.11 or newer, found $(python3 --version)" >&2
      exit 2
    }
    echo "making $here/.venv"
    python3 -m venv "$here/.venv"
  fi
  echo "installing requirements.lock into $here/.venv (some minutes the first time)"
  # torch last and without a hash: its build is the machine's, and a CUDA build brings nvidia packages
  torch=$(grep ^torch== "$here/requirements.txt")
  for words in "--no-deps --require-hashes -r requirements.lock" "$torch"; do
    (cd "$here" && "$python" -m pip install --quiet --disable-pip-version-check $words) || exit 2
  done
fi
