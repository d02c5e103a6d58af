"""One run in one process and in two: the same steps and scores, the same predictions, any of them killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from compress import TECHNIQUES
from conftest import OTHER_TASKS, ROOT, read_csv, run_words, write_notes
from files import read_json, write_json
from run import checkpoint, processes

CHAIN = "distillation+lowrank+pruning+quantization"
EXACT = ["--precision", "fp32", "--cache", "none", "--device", "cpu"]


def torchrun(*words, **keywords):
    """Two processes of one thread each."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launch, *map(str, words)],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **keywords,
    )  # fmt: skip


def finished(process):
    """(exit code, output, errors) of a process; one that hangs is killed."""
    try:
        printed, errors = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, printed, errors


def calls(arguments, demos, out):
    """{name: command line} of every technique, a chain, and every task."""
    usual = [*arguments, *EXACT, "--out", str(out / "symptoms")]
    each = {name: [*usual, "--technique", name] for name in (*TECHNIQUES, CHAIN)}
    deep = ["--technique", "distillation", "--hidden-weight", "1", "--augment", "0.2"]
    each["deep"] = [*usual, *deep, "--accumulate", "2", "--name", "deep"]
    for task in OTHER_TASKS:
        technique = "lora" if task == "mlm" else "base"
        each[task] = [*run_words(demos, task, out / task, "--technique", technique), *EXACT]
    each["ner"] += ["--crf"]
    each["trials"] += ["--class-weights"]
    return each


@pytest.fixture(scope="session")
def twice(arguments, demos, tmp_path_factory):
    """{name: (run directory made by one process, by two)}."""
    places = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    made = [calls(arguments, demos, place) for place in places]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours = {name: train.run_all(train.parse_arguments(words)) for name, words in made[0].items()}
    finally:
        torch.set_num_threads(threads)
    write_json(places[1] / "calls.json", list(made[1].values()))
    code, printed, errors = finished(torchrun(ROOT / "tests" / "several.py", places[1] / "calls.json"))
    assert code == 0, errors
    assert printed.count("base: epoch 1/2") == 1 + len(OTHER_TASKS) - 1  # one process prints
    return {name: (path, places[1] / path.relative_to(places[0])) for name, path in ours.items()}


@pytest.mark.parametrize("name", (*TECHNIQUES, CHAIN, "deep", *OTHER_TASKS))
def test_two_processes_make_the_same_run_as_one(twice, name):
    one, two = (read_json(path / "run.json") for path in twice[name])
    assert [row["Epoch"] for row in one["history"]] == [row["Epoch"] for row in two["history"]]
    for ours, theirs in zip(one["history"], two["history"], strict=True):
        assert ours["TrainingLoss"] == pytest.approx(theirs["TrainingLoss"], rel=1e-5)
        assert ours["Loss"] == pytest.approx(theirs["Loss"], rel=1e-5)
    rounds = "quantization" in name or name == "bf16"  # turns a last digit into another number
    scores = ("Loss",) if rounds else one["test"]["overall"]
    for score in scores:
        assert one["test"]["overall"][score] == pytest.approx(two["test"]["overall"][score], abs=2e-3), score
    first, second = (checkpoint.load(path).model.state_dict() for path in twice[name])
    dense = [key for key in first if torch.is_tensor(first[key]) and first[key].is_floating_point()]
    assert dense
    for key in dense:  # what differs in fp32 may be rounded to the next bf16 number, up to 2^-7 of it away
        step = first[key].abs().float() * (2**-7 if first[key].dtype == torch.bfloat16 else 0)
        assert ((first[key].float() - second[key].float()).abs() < 2e-4 + step).all(), key


@pytest.fixture(scope="session")
def many(small, tmp_path_factory):
    """A file of 6,000 notes: three chunks of predict.py."""
    texts = [row["TEXT"] for row in read_csv(small[0])]
    rows = [(f"r{i}", i, f"{texts[i % len(texts)]} {i}") for i in range(6_000)]
    return write_notes(tmp_path_factory.mktemp("many") / "notes.csv", rows)


@pytest.fixture(scope="session")
def alone(runs, many, tmp_path_factory):
    """The bytes that one process writes for them."""
    out = tmp_path_factory.mktemp("alone") / "p.csv"
    # without the flag each process times which library multiplies sooner
    words = [sys.executable, ROOT / "predict.py", runs / "base", many, "--deterministic", "--out", out]
    subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    return out.read_bytes()


def test_two_processes_predict_the_same_bytes_as_one(runs, many, alone, tmp_path):
    words = [ROOT / "predict.py", runs / "base", many, "--deterministic", "--out", tmp_path / "p.csv"]
    code, printed, errors = finished(torchrun(*words))
    assert code == 0 and printed.count("6000 predicted") == 1, errors
    assert (tmp_path / "p.csv").read_bytes() == alone and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_a_prediction_whose_worker_was_killed_goes_on(runs, many, alone, tmp_path):
    words = [ROOT / "predict.py", runs / "base", many, "--deterministic", "--out", tmp_path / "p.csv"]
    both = torchrun(*words)
    kill_one(both, lambda: list(tmp_path.glob(".p.csv.*.parts/*.part")))
    code, _, errors = finished(both)
    assert code != 0 and said(errors) == [f"error: {processes.Ended()}"] and not (tmp_path / "p.csv").exists()
    assert finished(torchrun(*words))[0] == 0
    assert (tmp_path / "p.csv").read_bytes() == alone and len(list(tmp_path.iterdir())) == 1


def said(errors):
    """Our own lines among what torchrun printed."""
    return [line for line in errors.splitlines() if line.startswith("error: ")]


def worker_of(launcher):
    """The number of one of the two workers, drawn at random; None if there is none yet."""
    found = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return int(random.choice(found)) if found else None


def kill_one(launcher, when):
    """Kill a worker, drawn at random, once when() is true."""
    while not when():
        time.sleep(0.05)
        assert launcher.poll() is None
    os.kill(worker_of(launcher), signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_a_killed_worker_ends_the_run_and_the_next_one_goes_on(arguments, twice, tmp_path):
    words = [*arguments, *EXACT, "--save-minutes", "0", "--out", tmp_path]
    both = torchrun(ROOT / "train.py", *words)
    kill_one(both, (tmp_path / ".base.progress.safetensors").exists)
    code, _, errors = finished(both)
    assert code != 0 and not (tmp_path / "base").exists()
    assert said(errors) == [f"error: {processes.Ended()}"]

    code, printed, errors = finished(torchrun(ROOT / "train.py", *words))
    assert code == 0 and "resuming at epoch" in printed, errors
    ours, theirs = (path / "model.safetensors" for path in (twice["base"][1], tmp_path / "base"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_torchrun_starts_a_killed_worker_again_and_the_run_goes_on(arguments, twice, tmp_path):
    words = [*arguments, *EXACT, "--save-minutes", "0", "--out", tmp_path]
    both = torchrun("--max-restarts=1", ROOT / "train.py", *words)
    kill_one(both, (tmp_path / ".base.progress.safetensors").exists)
    code, printed, errors = finished(both)
    assert code == 0 and "resuming at epoch" in printed, errors
    ours, theirs = (path / "model.safetensors" for path in (twice["base"][1], tmp_path / "base"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_fault_of_all_processes_is_said_once(arguments, tmp_path):
    words = [ROOT / "train.py", *arguments, "--data", tmp_path / "none.csv", "--out", tmp_path]
    code, _, errors = finished(torchrun(*words))
    assert code != 0 and said(errors) == [f"error: {tmp_path}/none.csv: no such file"]


def test_the_recipe_is_refused_in_several_processes(arguments, tmp_path, refuses, monkeypatch):
    monkeypatch.setattr(processes, "world", lambda: (0, 2))
    words = [*arguments[:4], "--recipe", "paper", "--epochs", "1", "--out", tmp_path / "out"]
    line = refuses(train.main, words)
    assert line == "error: --recipe paper: runs in one process; start it without torchrun"
    assert not (tmp_path / "out").exists()
