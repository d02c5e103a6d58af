"""What a forker does, in a copy of the project: one new file, and its line, with the import, in the dict."""

import json
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

from conftest import ROOT, read_csv
from files import read_json

PAGE = (ROOT / "docs" / "forking.md").read_text()
SKIP_LAST, MSE, LENGTHS = map(textwrap.dedent, re.findall(r"( *```python\n.*?)```", PAGE, re.S))

SMOOTH = '''"""A penalty on the distance of neighbouring tokens in the last hidden states."""

from compress.technique import Technique


class Smooth(Technique):
    """The task's loss and the penalty."""

    def loss(self, model, batch, outputs):
        """hidden_states[-1] is (B, T, H) for all tokens, whatever the speed-ups do."""
        states = self.task.forward(model, batch, output_hidden_states=True).hidden_states
        assert len(states) == model.config.num_hidden_layers + 1
        assert all(state.shape[:2] == batch["input_ids"].shape for state in states)
        return super().loss(model, batch, outputs) + 0.01 * states[-1].diff(dim=1).square().mean()
'''


RUN = """
import importlib, json, sys
for script, *words in json.loads(sys.argv[1]):
    importlib.import_module(script).main(words)
"""


@pytest.fixture
def fork(tmp_path):
    """(add(room, name, code, class, dict), run([script, *words], ...), its path) of a copy of the project."""
    copy = tmp_path / "fork"
    copy.mkdir()
    for part in (
        *ROOT.glob("*.py"),
        *(ROOT / room for room in ("bench", "compress", "fast", "run", "tasks", "reference")),
    ):
        (shutil.copytree if part.is_dir() else shutil.copy)(part, copy / part.name)

    def add(room, name, code, cls, table):
        (copy / room / f"{name}.py").write_text(code.removeprefix("```python"))
        path = copy / room / "__init__.py"
        text = path.read_text()
        first = next(line for line in text.splitlines(keepends=True) if line.startswith(f"from {room}."))
        text = text.replace(first, f"from {room}.{name} import {cls}\n{first}", 1)
        after_first = text.index(",", text.index(f"{table} = {{")) + 1
        path.write_text(f'{text[:after_first]} "{name}": {cls},{text[after_first:]}')

    def run(*calls):
        words = [sys.executable, "-c", RUN, json.dumps(calls, default=str)]
        done = subprocess.run(words, cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return add, run, copy


def test_a_technique_from_scratch(fork, arguments, small):
    add, run, copy = fork
    add("compress", "skiplast", SKIP_LAST, "SkipLast", "TECHNIQUES")
    train = ["train", *arguments, "--epochs", "1", "--out", "out", "--technique"]
    predict = ["predict", "out/skiplast", small[0], "--out", "p.csv"]
    said = run([*train, "skiplast"], [*train, "skiplast+quantization"], predict)
    assert "skiplast: 1/2 layers" in said
    sizes, small_sizes = (
        read_json(copy / f"out/{name}/run.json")["sizes"] for name in ("skiplast", "skiplast+quantization")
    )
    assert small_sizes["bytes"] < sizes["bytes"]
    stored = {row["row_id"]: row["predicted"] for row in read_csv(copy / "out/skiplast/predictions.csv")}
    again = {row["row_id"]: row["predicted"] for row in read_csv(copy / "p.csv")}
    assert all(again[row] == label for row, label in stored.items())


def test_a_second_distillation_by_subclassing(fork, arguments):
    add, run, copy = fork
    add("compress", "mse", MSE, "Mse", "TECHNIQUES")
    said = run(["train", *arguments, "--epochs", "1", "--technique", "mse", "--out", "out"])
    assert "mse: student of 1 layers" in said and (copy / "out/base").is_dir()  # which it learnt from
    assert read_json(copy / "out/mse/run.json")["teacher"] == "out/base"


def test_a_loss_on_hidden_states(fork, arguments):
    add, run, copy = fork
    add("compress", "smooth", SMOOTH, "Smooth", "TECHNIQUES")
    run(["train", *arguments, "--epochs", "1", "--technique", "smooth", "--out", "out"])
    assert read_json(copy / "out/smooth/run.json")["technique"] == "smooth"


def test_a_task_with_its_own_demonstration(fork):
    add, run, copy = fork
    add("tasks", "lengths", LENGTHS, "Lengths", "TASKS")
    short = ["--epochs", "1", "--lr", "2e-3", "--fraction", "0.2", "--out", "out", "--technique"]
    train, benchmark = ["train", "--task", "lengths", *short], ["benchmark", "out", "--rounds", "2"]
    said = run([*train, "base"], [*train, "quantization"], [*benchmark, "--length", "16"])
    assert said.startswith("DEMONSTRATION") and "4000 rows" in said
    assert (copy / "out/benchmark.csv").exists()
