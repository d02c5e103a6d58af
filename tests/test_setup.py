"""Set-up: which Python the shell scripts take, and that they work from any folder."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import files
import train
from conftest import ROOT
from run.arguments import main, parse_arguments
from tasks import TASKS, demo

SCRIPTS = ("run_all.sh", "run_trials.sh", "run_tests.sh")


def pins(name="requirements.txt"):
    """{package: version} of requirements.txt."""
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def project():
    """The [project] table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def bash(*words, cwd, **environment):
    """The finished process of bash, which finds this Python as python3."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **environment}
    return subprocess.run(
        ["bash", *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("script", [*SCRIPTS, "env.sh", ".ci/run"])
def test_bash_reads_the_scripts(script):
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)


def test_every_requirement_is_pinned_and_the_pins_lie_in_the_ranges():
    assert "run_tests.sh" in (ROOT / ".ci/run").read_text()
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in lines if line and not line.startswith("#"))
    extras = project()["optional-dependencies"]
    others = {
        name: (pins(f"requirements-{name}.txt"), extras.pop(name)) for name in ("peers", "engines", "serve")
    }
    ours = [*project()["dependencies"], *(line for name in extras for line in extras[name])]
    for pinned, ranges in ((pins(), ours), *others.values()):
        ranges = [Requirement(line) for line in ranges]
        assert {package.name for package in ranges} == pinned.keys()
        assert all(package.specifier.contains(pinned[package.name]) for package in ranges)


# --- the locks

TELEMETRY = "openvino-telemetry"  # is not installed: it reports to Google Analytics


def locked_packages(name):
    """{package: (version, number of hashes)} of a lock."""
    text = re.sub(r"#.*\n", "", (ROOT / name).read_text()).replace("\\\n", "")
    lines = [line.split() for line in text.splitlines()]
    assert all(
        "==" in first and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in hashes)
        for first, *hashes in lines
    )
    return {first.split("==")[0]: (first.split("==")[1], len(hashes)) for first, *hashes in lines}


def needed(names):
    """These packages and all that they need here; not a CUDA build's packages, nor telemetry."""
    found, waiting = set(), [(name, "") for name in names]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found or name.startswith(("nvidia-", "cuda-", "triton", TELEMETRY)):
            continue
        found.add((name, extra))
        for requirement in map(Requirement, metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(requirement.name), e) for e in ("", *requirement.extras)]
    return {name for name, _ in found}


LOCKS = ("requirements", "requirements-peers", "requirements-engines", "requirements-serve")


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_has_every_package_with_hashes_and_no_other(name):
    ours, locked = pins(f"{name}.txt"), locked_packages(f"{name}.lock")
    assert all(hashes for _, hashes in locked.values())
    ours.pop("torch", None)  # its hashes depend on the machine's build
    assert ours == {package: locked[package][0] for package in ours}
    try:
        there = needed(pins(f"{name}.txt"))
    except metadata.PackageNotFoundError as error:
        pytest.skip(f"{error} is not installed")
    # torch has no hash, and on Windows tqdm needs colorama
    assert there - {"torch", "colorama"} == locked.keys() - {"colorama"}


@pytest.mark.parametrize("name, known", (("peers", "numpy"), ("engines", "numpy"), ("serve", "pydantic")))
def test_the_locks_agree(name, known):
    ours, others = locked_packages("requirements.lock"), locked_packages(f"requirements-{name}.lock")
    shared = ours.keys() & others.keys()
    assert known in shared and {n: ours[n] for n in shared} == {n: others[n] for n in shared}
    assert TELEMETRY not in others


# --- which Python


def installed(folder, versions):
    """A folder in which packages seem to be installed: at the pins, except for these versions."""
    for name, version in {**pins(), **versions}.items():
        place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        place.mkdir(parents=True)
        (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


@pytest.fixture
def checkout(tmp_path):
    """A folder with what env.sh reads."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("env.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def make_venv(checkout, **versions):
    """A .venv/bin/python that has these versions until its pip installs torch, then the pins.

    What pip was told stands in .venv/pip.txt; if there is .venv/refuse, it fails.
    """
    interpreter = checkout / ".venv/bin/python"
    site = installed(checkout / ".venv/site", versions)
    installed(checkout / ".venv/site-pinned", {})
    interpreter.parent.mkdir()
    interpreter.write_text(f"""#!/bin/sh
case "$3" in # python -m pip --version, python -m pip install ...
  --version) exit ;;
  install)
    echo "$@" >> "{checkout}/.venv/pip.txt"
    [ ! -e "{checkout}/.venv/refuse" ] || exit 1
    case "$*" in *torch==*) rm -r "{site}" && mv "{site}-pinned" "{site}" ;; esac
    exit ;;
esac
PYTHONPATH="{site}" exec "{sys.executable}" "$@"
""")
    interpreter.chmod(0o755)


@pytest.fixture
def choose(checkout, tmp_path_factory):
    """choose(*words, **versions) -> (lines, the Python taken); python3 has these versions, else the pins."""

    def call(*words, **versions):
        folder = tmp_path_factory.mktemp("elsewhere")
        command = 'set -euo pipefail; source "$0" "$@"; echo "$python"'
        site = installed(folder / "site", versions)
        done = bash("-c", command, checkout / "env.sh", *words, cwd=folder, PYTHONPATH=str(site))
        assert done.returncode == 0 and not done.stderr, done.stderr
        *lines, python = done.stdout.splitlines()
        return lines, python.removeprefix(f"{checkout}/")

    return call


def test_a_python_with_the_pins_is_taken_without_a_word(choose):
    assert choose("ranges", "plots", "tests") == ([], "python3")
    assert choose("pins", "plots", "tests", "style", torch="2.13.0+cpu") == ([], "python3")


def test_a_python_in_the_ranges_is_taken_and_named_in_one_line(choose):
    lines, python = choose("ranges", "plots", torch="2.14.0", transformers="5.20.0")
    assert python == "python3"
    assert lines == [
        "note: running with torch 2.14.0, transformers 5.20.0; "
        f"the published results used torch {pins()['torch']}, transformers {pins()['transformers']}"
    ]


def test_what_a_script_does_not_need_may_be_missing_or_any_version(choose):
    assert choose("ranges", "plots", peft="0.1", seqeval="0.1", pytest="1.0", ruff="0.1") == ([], "python3")
    assert choose("ranges", "plots", matplotlib="3.9.0") == ([], "python3")  # decides no result


def test_a_venv_with_the_pins_is_taken_before_a_python_in_the_ranges(choose, checkout):
    make_venv(checkout)
    assert choose("ranges", transformers="5.20.0") == ([], ".venv/bin/python")


@pytest.mark.parametrize(
    "words, versions",
    [
        (("ranges",), {"transformers": "4.57.6"}),
        (("ranges",), {"numpy": "3.0.0"}),
        (("ranges", "plots"), {"matplotlib": "1.0"}),
        (("ranges", "tests"), {"pytest": "1.0"}),
        (("pins",), {"numpy": "2.4.5"}),
    ],
)
def test_otherwise_the_venv_is_brought_to_the_pins(choose, checkout, words, versions):
    make_venv(checkout, torch="2.0.0")
    lines, python = choose(*words, **versions)
    assert python == ".venv/bin/python" and len(lines) == 1 and "installing requirements.lock" in lines[0]
    first, second = (checkout / ".venv/pip.txt").read_text().splitlines()
    assert first.endswith("--no-deps --require-hashes -r requirements.lock")
    assert second.endswith(f" torch=={pins()['torch']}")
    assert choose(*words, **versions) == ([], ".venv/bin/python")


def test_a_file_with_another_hash_ends_the_set_up(checkout, tmp_path):
    make_venv(checkout, torch="2.0.0")
    (checkout / ".venv/refuse").touch()
    site = installed(tmp_path / "site", {"torch": "2.0.0"})
    command = 'source "$0" pins; echo went on'  # without set -e, too
    done = bash("-c", command, checkout / "env.sh", cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 2 and "went on" not in done.stdout
    assert len((checkout / ".venv/pip.txt").read_text().splitlines()) == 1  # torch was not asked for


# --- the scripts, from another folder


def test_the_scripts_explain_themselves(tmp_path):
    for script in ("run_all.sh", "run_trials.sh"):
        done = bash(ROOT / script, "--epochs", "1", "--help", cwd=tmp_path)
        assert done.returncode == 0 and f"bash {script}" in done.stdout and "env.sh" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_shell_scripts_read_arguments_as_train_py_does(capsys, tmp_path):
    (tmp_path / "x.args").write_text("--task mlm  # adapt\n--epochs 1 --out results/x\n")
    main(["--show", "given techniques out data", "--", "--task", "mlm", "--overwrite"])
    assert capsys.readouterr().out.splitlines() == ["task overwrite", "base lora", "results/mlm", "demo"]
    main(["--show", "given out text_columns", "--task", "trials", "--"])
    assert capsys.readouterr().out.splitlines() == ["", "results/trials", ""]
    main(["--show", "given techniques out", "--", f"@{tmp_path}/x.args", "--out", "y"])
    assert capsys.readouterr().out.splitlines() == ["task out epochs", "base lora", "y"]


def test_every_task_names_techniques_that_exist():
    for name, task in TASKS.items():
        assert task.techniques[0] == "base"
        for technique in task.techniques:
            parse_arguments(["--task", name, "--technique", technique])


@pytest.mark.parametrize(
    "script, words, message",
    [
        ("run_all.sh", ["--technique", "base"], "TECHNIQUES"),
        ("run_all.sh", ["--seeds"], "--seeds"),
        ("run_trials.sh", ["--task", "ner"], "sets --task itself"),
    ],
)
def test_bad_arguments_end_in_one_line_before_anything_runs(script, words, message, tmp_path):
    refused = bash(ROOT / script, *words, cwd=tmp_path)
    assert refused.returncode == 2 and not list(tmp_path.iterdir())
    lines = [line for line in refused.stderr.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


def test_run_all_trains_reports_and_keeps_what_is_finished(arguments, small, tmp_path, monkeypatch):
    notes, model = (
        shutil.copy(small[0], tmp_path / "notes.csv"),
        shutil.copytree(small[1], tmp_path / "model"),
    )
    call = [*arguments, "--epochs", "1", "--data", notes.name, "--model", model.name]
    out = tmp_path / "results/symptoms"
    with monkeypatch.context() as there:
        there.chdir(tmp_path)
        train.main([*call, "--technique", "base"])
    done = bash(ROOT / "run_all.sh", *call, cwd=tmp_path, TECHNIQUES="base pruning")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished already") == 1 and "pruning: test, " in done.stdout
    assert (out / "results.md").exists() and (out / "accuracy_latency.png").exists(), done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"notes.csv", "model", "results"}


def test_run_all_makes_the_papers_recipe_and_its_three_columns(small, tmp_path):
    call = (
        f"--recipe paper --data {small[0]} --model {small[1]} --max-length 16 --epochs 1 --seeds 1,2".split()
    )
    done = bash(ROOT / "run_all.sh", *call, cwd=tmp_path, TECHNIQUES="base")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "results/symptoms"
    text = (out / "results.md").read_text()
    assert "| technique | score | as published | the recipe re-run | done properly |" in text
    again = [
        files.read_json(out / f"recipe/seed-{seed}/base/run.json")["test"]["overall"]["Accuracy"]
        for seed in (1, 2)
    ]
    assert f"| base | accuracy | 0.9356 | {sum(again) / 2:.4f} ± " in text and not list(out.glob("seed*"))
    assert text in done.stdout and not (out / "benchmark.csv").exists()


def test_run_trials_stands_plain_and_adapted_side_by_side(tmp_path):
    data, model = demo.make(tmp_path / "demo", "trials", notes=300, hidden=32, layers=2)
    call = ["--data", data, f"--model={model}", "--epochs", "1", "--max-length", "32", "--out", "out"]
    environment = {"TEXT": "demo/trials.csv", "MLM": "--epochs 1 --block-size 32"}
    done = bash(ROOT / "run_trials.sh", *call, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out/results.md").read_text()
    assert "| base |" in text and "| adapted |" in text
    assert "adapted was trained with another model" in text
    assert files.read_json(tmp_path / "out/mlm/lora/run.json")["arguments"]["data"] == "demo/trials.csv"


def test_run_tests_works_from_another_folder(tmp_path):
    others = [f"--ignore-glob={ROOT}/tests/test_{name}" for name in ("[!h]*", "hostile*")]
    words = ["-n", "0", *others, "-k", "rules_see", "--junitxml=report.xml"]
    done = bash(ROOT / "run_tests.sh", *words, cwd=tmp_path)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "report.xml").exists()
