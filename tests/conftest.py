import csv
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["XDG_CACHE_HOME"] = (
    tempfile.mkdtemp()
)  # before train is imported; token ids of these tests go there
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once

import benchmark  # noqa: E402
import report  # noqa: E402
import train  # noqa: E402
from browser import MISSING, browser
from cli import run_script
from run import checkpoint, forms
from tasks import TASKS, demo


@pytest.fixture(autouse=True)
def clocks_may_choose():
    """What --deterministic set in this process ends with its test."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A small set of demo notes and a 2-layer model of width 32: (path, path)."""
    return demo.make(tmp_path_factory.mktemp("small"), notes=420, hidden=32, layers=2)


@pytest.fixture(scope="session")
def arguments(small):
    """The command line of a run of seconds on them."""
    return [
        "--data",
        str(small[0]),
        "--model",
        str(small[1]),
        "--lr",
        "2e-3",
        "--epochs",
        "2",
        "--max-length",
        "128",
        "--rank",
        "4",
    ]


@pytest.fixture(scope="module")
def chromium():
    """A window of headless Chromium."""
    if MISSING:
        pytest.skip(f"{' and '.join(MISSING)}: not installed; Debian has chromium and chromium-driver")
    with browser() as window:
        yield window


@pytest.fixture(scope="session")
def runs(tmp_path_factory, arguments):
    """A results directory with every technique and one chain, trained once for all tests."""
    out = tmp_path_factory.mktemp("runs")
    for technique in (
        "base",
        "pruning",
        "lowrank",
        "distillation",
        "quantization",
        "distillation+lowrank+pruning+quantization",
    ):
        train.main([*arguments, "--technique", technique, "--out", str(out)])
    return out


@pytest.fixture(scope="session")
def reported(runs):
    """The results directory of all techniques, timed and reported."""
    benchmark.main([str(runs), "--rounds", "2", "--length", "32", "--batch-size", "4"])
    report.main([str(runs)])
    return runs


@pytest.fixture
def batch():
    mask = torch.ones(6, 9, dtype=torch.long)
    mask[3:, 5:] = 0
    ids = torch.randint(0, 50, (6, 9), generator=torch.Generator().manual_seed(0))
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.tensor([0, 1, 2, 0, 1, 2]),
        "rows": np.arange(6),
    }


@pytest.fixture
def refuses(capsys):
    """refuses(main, argv): the one line of standard error with which a script ends in exit code 2."""

    def call(main, argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_script(lambda: main([str(word) for word in argv]))
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning:")]
        assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), (
            stop.value.code,
            lines,
        )
        return lines[0]

    return call


# --- other engines


@pytest.fixture(scope="session")
def onnx():
    if not (forms.installed("onnxruntime") and forms.converts()):
        pytest.skip("ONNX Runtime is not installed (requirements-engines.lock)")


@pytest.fixture(scope="session")
def openvino():
    if not (forms.installed("openvino") and forms.converts()):
        pytest.skip("OpenVINO is not installed (requirements-engines.lock)")


@pytest.fixture(scope="session")
def dense(onnx, runs, tmp_path_factory):
    """The ONNX file of the base run; making one takes seconds."""
    run, path = checkpoint.load(runs / "base"), tmp_path_factory.mktemp("dense") / "fp32.onnx"
    forms.to_onnx(run.model, path, True)
    return path


@pytest.fixture
def made_once(dense, monkeypatch):
    """Every conversion to ONNX gives the base run's file."""
    monkeypatch.setattr(forms, "to_onnx", lambda model, path, first: shutil.copy(dense, path))


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_notes(path, rows, header=("ROW_ID", "SUBJECT_ID", "TEXT")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


# --- the other tasks

OTHER_TASKS = tuple(task for task in TASKS if task != "symptoms")  # whose runs are `runs`
TASK_TECHNIQUES = dict.fromkeys(OTHER_TASKS, ("base",)) | {
    "ner": ("base", "lora", "pruning", "distillation+quantization"),
    "readmission": ("base", "lowrank", "distillation+lora", "quantization"),
    "mlm": ("base", "lora", "lowrank", "distillation", "quantization"),
    "trials": ("base", "lora+quantization", "distillation+lowrank"),
}


def run_words(demos, task, out, *words):
    """The command line of a run of seconds on a task's demonstration; words may be "--flag value", too."""
    data, model = demos[task]
    length = f"--{TASKS[task].length_flag.replace('_', '-')}"
    usual = {"--lr": "2e-3", "--epochs": 2, length: 32 if task == "mlm" else 64, "--rank": 4}
    places = {"--task": task, "--data": data, "--model": model, "--out": out}
    settings = [word for pair in (places | usual).items() for word in pair]
    return [piece for word in (*settings, *words) for piece in str(word).split()]


def splits_of(run, path):
    """The splits that a rebuilt run was trained on."""
    given = run.facts["arguments"]
    shares = given["fraction"], given["validation"], given["test"]
    return run.task.load(str(path), *shares, given["split_seed"])[0]


@pytest.fixture(scope="session")
def demos(tmp_path_factory):
    """{task: (data, model)} of small demonstrations."""
    return {
        task: demo.make(tmp_path_factory.mktemp(task), task, notes=400, hidden=32, layers=2)
        for task in OTHER_TASKS
    }


@pytest.fixture(scope="session")
def trained(tmp_path_factory, demos):
    """{task: results directory} with several techniques each."""
    outs = {task: tmp_path_factory.mktemp(f"{task}-runs") for task in OTHER_TASKS}
    for task, out in outs.items():
        longer = ["--epochs", 8] if task == "ner" else []
        for technique in TASK_TECHNIQUES[task]:
            train.main(run_words(demos, task, out, "--technique", technique, *longer))
    return outs
