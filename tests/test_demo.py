"""The demonstrations: which files they make, whose they are, that they repeat to the byte."""

import subprocess
import sys
from collections import Counter

import pytest
from transformers import AutoTokenizer

import files
from cli import BadInput
from conftest import ROOT
from tasks import TASKS, demo
from tasks.demo_symptoms import SHARES
from tasks.symptoms import SYMPTOMS
from tasks.task import Task


@pytest.mark.parametrize("task", TASKS)
def test_the_same_arguments_write_the_same_bytes(task, tmp_path):
    first, second = (demo.make(tmp_path / name, task, notes=120, hidden=32, layers=1) for name in ("a", "b"))
    assert first[0].name == TASKS[task].demo_files[0]
    for name in (*TASKS[task].demo_files, "model/vocab.txt", "model/model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    splits, facts = TASKS[task]().load(str(second[0]), 1.0, 0.2, 0.2, 42)
    assert facts["notes"] > 40 and all(splits.values())


def test_a_demonstration_is_made_once_and_kept_from_other_tasks(tmp_path):
    data, model = demo.make(tmp_path, "trials", notes=60, hidden=32, layers=1)
    before = (data.stat().st_mtime_ns, (model / "vocab.txt").stat().st_mtime_ns)
    assert demo.make(tmp_path, "trials", notes=80) == (data, model)
    assert before == (data.stat().st_mtime_ns, (model / "vocab.txt").stat().st_mtime_ns)
    # mlm has the same files and the same model
    assert demo.make(tmp_path, "mlm") == (tmp_path / "trials.csv", model)
    for task in ("symptoms", "readmission", "ner"):
        with pytest.raises(BadInput, match="demonstration of another task than"):
            demo.make(tmp_path, task)
    with pytest.raises(BadInput, match="choose one of symptoms, readmission, ner, mlm, trials"):
        demo.make(tmp_path, "sentiment")


def test_a_task_brings_its_own_demonstration(tmp_path, monkeypatch):
    class Mood(Task):
        name, demo_files = "mood", ("moods.csv",)

        @classmethod
        def write_demonstration(cls, directory, rows):
            texts = [f"{word} today" for word in ("happy", "sad") * (rows // 2)]
            files.write_csv(directory / "moods.csv", ("TEXT",), [(text,) for text in texts])
            return texts

    class Silent(Task):
        name = "silent"

    monkeypatch.setitem(TASKS, "mood", Mood)
    monkeypatch.setitem(TASKS, "silent", Silent)
    data, model = demo.make(tmp_path / "mood", "mood", notes=10, hidden=32, layers=1)
    assert data.read_text().splitlines() == ["TEXT", *("happy today", "sad today") * 5]
    assert AutoTokenizer.from_pretrained(model).tokenize("sad today") == ["sad", "today"]
    with pytest.raises(BadInput, match="silent: .* brings no demonstration"):
        demo.make(tmp_path / "silent", "silent")


def test_every_symptom_has_notes_enough_to_be_learnt(tmp_path):
    data, _ = demo.make(tmp_path, hidden=32, layers=1)
    _, facts = TASKS["symptoms"]().load(str(data), 1.0, 0.1, 0.2, 42)
    assert set(SHARES) == set(SYMPTOMS)
    per_class = Counter(facts["splits"]["train"])
    assert min(per_class.values()) > 0.1 * per_class.total()


def test_the_command_prints_the_two_paths_and_nothing_else(tmp_path):
    command = [sys.executable, "-m", "tasks.demo", str(tmp_path / "demo"), "sentiment"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: sentiment: ") and len(done.stderr.splitlines()) == 1
