"""What a forker does, in a copy of the project: one new file, and its line, with the import, in the dict."""

import os
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT, read_csv
from files import read_json

SKIP_LAST = '''"""The last feed-forward goes. What it does not save: embeddings, attention."""

from torch import nn

from compress.technique import Technique
from layers import find_layers, millions, parameter_count


class Skip(nn.Module):
    """In the place of a feed-forward's output: the residual alone."""

    def forward(self, hidden, residual):
        """hidden (B, T, 4H), residual (B, T, H) -> (B, T, H)."""
        return residual


def skip_feed_forward(layer):
    """Take the feed-forward out of a layer of BERT, in place."""
    layer.intermediate, layer.output = nn.Identity(), Skip()


class SkipLast(Technique):
    """Takes out the feed-forward of the last layers, then trains the rest."""

    OPTIONS = {"--skipped": {"type": int, "default": 1, "help": "layers that lose their feed-forward (1)"}}

    def __init__(self, skipped=1):
        self.skipped = skipped

    def prepare(self, model):
        """Before training."""
        before, layers = parameter_count(model), find_layers(model)[1]
        for layer in layers[-self.skipped :]:
            skip_feed_forward(layer)
        after = millions(parameter_count(model))
        said = f"{self.name}: took out {self.skipped}/{len(layers)} feed-forwards"
        print(f"{said}, {millions(before)} -> {after} parameters")
        return model

    def describe(self):
        """What rebuild needs."""
        return {"skipped": self.skipped}

    @staticmethod
    def is_plain(facts):
        """Its layers are its own."""
        return False

    @staticmethod
    def rebuild(model, facts):
        """The same structure, untrained."""
        for layer in find_layers(model)[1][-facts["skipped"] :]:
            skip_feed_forward(layer)
        return model
'''

MARGIN = '''"""Distillation by the squared error of the logits."""

from compress.distillation import Distillation


def logit_loss(student, teacher):
    """Mean squared error of logits (B, C) -> scalar."""
    return (student.float() - teacher.float()).square().mean()


class Margin(Distillation):
    """Distillation with another loss."""

    def soft_loss(self, student, teacher):
        """In the place of T^2 * KL."""
        return logit_loss(student, teacher)
'''

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

LENGTHS = '''"""Is a note long or short? A task to copy."""

import random

from data import Note, Table
from files import write_csv
from tasks.task import COLUMNS, Task


class Lengths(Task):
    """One label per note, from its number of words."""

    name = "lengths"
    OPTIONS = {**COLUMNS, "--short": {"type": int, "default": 8, "help": "most words of a short note (8)"}}
    demo_files = ("notes.csv",)

    def __init__(self, **options):
        super().__init__(**options)
        self.labels = ["short", "long"]

    @classmethod
    def write_demonstration(cls, directory, rows):
        """Notes of 2 to 15 words."""
        generator = random.Random(0)
        words = "pain cough fever denies reports left right stable".split()
        sizes = [generator.randint(2, 15) for _ in range(min(rows, 300))]
        texts = [" ".join(generator.choices(words, k=size)) for size in sizes]
        write_csv(directory / "notes.csv", ("ROW_ID", "TEXT"), enumerate(texts))
        return texts

    def read(self, path, keep, counts):
        """Every note, labelled."""
        rows = self.rows(Table(path), counts, keep)
        return [
            Note(row_id, subject or row_id, text, int(len(text.split()) > self.options.short))
            for _, row_id, subject, text, _ in rows
        ]
'''


@pytest.fixture
def fork(tmp_path):
    """(add(room, name, code, class, dict), run(script, *words), its path) of a copy of the project."""
    copy = tmp_path / "fork"
    copy.mkdir()
    for part in (
        *ROOT.glob("*.py"),
        *(ROOT / room for room in ("bench", "compress", "fast", "run", "tasks", "reference")),
    ):
        (shutil.copytree if part.is_dir() else shutil.copy)(part, copy / part.name)

    def add(room, name, code, cls, table):
        (copy / room / f"{name}.py").write_text(code)
        path = copy / room / "__init__.py"
        text = path.read_text()
        first = next(line for line in text.splitlines(keepends=True) if line.startswith(f"from {room}."))
        text = text.replace(first, f"from {room}.{name} import {cls}\n{first}", 1)
        after_first = text.index(",", text.index(f"{table} = {{")) + 1
        path.write_text(f'{text[:after_first]} "{name}": {cls},{text[after_first:]}')

    def run(*words, ok=True):
        done = subprocess.run(
            [sys.executable, *map(str, words)], cwd=copy, capture_output=True, text=True, env={**os.environ}
        )
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout

    return add, run, copy


def test_a_technique_from_scratch(fork, arguments, small):
    add, run, copy = fork
    add("compress", "skiplast", SKIP_LAST, "SkipLast", "TECHNIQUES")
    said = run("train.py", *arguments, "--epochs", "1", "--technique", "skiplast", "--out", "out")
    assert "skiplast: took out 1/2 feed-forwards" in said
    sizes = read_json(copy / "out/skiplast/run.json")["sizes"]
    run("train.py", *arguments, "--epochs", "1", "--technique", "skiplast+quantization", "--out", "out")
    assert read_json(copy / "out/skiplast+quantization/run.json")["sizes"]["bytes"] < sizes["bytes"]
    run("predict.py", "out/skiplast", small[0], "--out", "p.csv")
    stored = {row["row_id"]: row["predicted"] for row in read_csv(copy / "out/skiplast/predictions.csv")}
    again = {row["row_id"]: row["predicted"] for row in read_csv(copy / "p.csv")}
    assert all(again[row] == label for row, label in stored.items())


def test_a_second_distillation_by_subclassing(fork, arguments):
    add, run, copy = fork
    add("compress", "margin", MARGIN, "Margin", "TECHNIQUES")
    said = run("train.py", *arguments, "--epochs", "1", "--technique", "margin", "--out", "out")
    assert "margin: student of 1 layers" in said and (copy / "out/base").is_dir()  # which it learnt from
    assert read_json(copy / "out/margin/run.json")["teacher"] == "out/base"


def test_a_loss_on_hidden_states(fork, arguments):
    add, run, copy = fork
    add("compress", "smooth", SMOOTH, "Smooth", "TECHNIQUES")
    run("train.py", *arguments, "--epochs", "1", "--technique", "smooth", "--out", "out")
    assert read_json(copy / "out/smooth/run.json")["technique"] == "smooth"


def test_a_task_with_its_own_demonstration(fork):
    add, run, copy = fork
    add("tasks", "lengths", LENGTHS, "Lengths", "TASKS")
    said = run("train.py", "--task", "lengths", "--epochs", "1", "--lr", "2e-3", "--out", "out")
    assert said.startswith("DEMONSTRATION") and "300 rows" in said
    run(
        "train.py",
        "--task",
        "lengths",
        "--technique",
        "quantization",
        "--epochs",
        "1",
        "--lr",
        "2e-3",
        "--out",
        "out",
    )
    run("benchmark.py", "out", "--rounds", "2", "--length", "16")
    assert (copy / "out/benchmark.csv").exists()
