"""A large file read by all cores gives what one process gives, faults included."""

import gzip
import os
import random
import signal
from collections import Counter

import pytest
import torch

import parts
from cli import BadInput
from data import Table
from tasks import TASKS
from tests.test_data import awkward_csv


@pytest.fixture
def two_cores(monkeypatch):
    """All files are large, and there are two cores."""
    monkeypatch.setattr(parts, "LARGE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def notes_file(path, rng, rows=60):
    """Symptom notes with quotes, commas and line breaks; half of the files have an awkward or wrong row."""
    lines = ["ROW_ID,SUBJECT_ID,TEXT"]
    for row in range(rows):
        text = "".join(rng.choices(["fever ", "pain\n", 'said ""no"" ', ", ", "é☃", "\r\n", "ok "], k=12))
        lines.append(f'{row},{row // 3},"{text}"')
    if rng.random() < 0.5:
        odd = ('7,7,5" tall pain', '8,8,"pain" x', '9,9,"pain', "10,fever", "", awkward_csv(rng, 3))
        lines.insert(rng.randrange(1, rows), rng.choice(odd))
    content = ("\ufeff" * rng.randint(0, 1) + "\n".join(lines) + "\n" * rng.randint(0, 1)).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content)
        content = content[: -rng.choice((40, 1))] if rng.random() < 0.2 else content
    path.write_bytes(content)


def read_symptoms(path, threads, monkeypatch):
    """((notes, without their texts' place), counts, by_subject) of a file, or what is said of its fault."""
    counts, task = Counter({"rows": 7}), TASKS["symptoms"]()  # of another file
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        try:
            notes = task.read_by_all(path, lambda row_id: row_id != "5", counts)
            texts = list(task.texts(notes))
        except BadInput as error:
            return str(error)
    places = [(note.row_id, note.row) for note in notes if note.text is None]
    return [(n.row_id, n.subject, n.label) for n in notes], texts, places, counts, task.by_subject, task.held


@pytest.mark.parametrize("seed", range(4))
def test_parts_give_the_notes_and_the_faults_of_one_process(tmp_path, monkeypatch, two_cores, seed):
    rng, faults = random.Random(seed), 0
    for _ in range(12):
        path = tmp_path / rng.choice(("a.csv", "a.csv", "a.csv.gz"))
        notes_file(path, rng)
        monkeypatch.setattr("data.BLOCK", rng.choice((64, 200)))
        monkeypatch.setattr(parts, "CHUNK", rng.choice((7, 10**4)))
        monkeypatch.setattr("tasks.task.MAX_TEXT", rng.choice((0, 10**8)))
        expected = read_symptoms(path, 1, monkeypatch)
        assert read_symptoms(path, rng.choice((2, 3, 5)), monkeypatch) == expected
        faults += isinstance(expected, str)
    assert 0 < faults < 12


def test_a_file_is_cut_where_rows_begin_and_a_wrong_guess_is_found_out(tmp_path, two_cores, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("\ufeffROW_ID,TEXT\n" + "".join(f'{i},"pain\nagain"\n' for i in range(100)))
    found = parts.parts_of(table := Table(path, progress=False))
    content = path.read_bytes()
    assert len(found) == 2 and [stop for _, stop in found] == [found[1][0], len(content)]
    assert all(content[begin : begin + 20].split(b",")[0].isdigit() for begin, _ in found)
    rows = [list(map(row.__getitem__, (0, 1))) for part in found for row in Table(path, False, part=part)]
    assert rows == [list(map(row.__getitem__, (0, 1))) for row in table]

    # a note of lines that look like rows: the guess lies within its quotes
    path.write_text('ROW_ID,TEXT\n1,fever\n2,"' + "3,pain\n" * 200 + '"\n4,cough\n')
    begin = parts.parts_of(Table(path, progress=False))[1][0]
    assert path.read_bytes()[begin:].startswith(b"3,pain")
    notes, *_ = read_symptoms(path, 2, monkeypatch)
    assert [row_id for row_id, *_ in notes] == ["1", "2", "4"]


def test_what_cannot_be_cut_is_read_by_one_process(tmp_path, two_cores, monkeypatch):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"ROW_ID,TEXT\n" + b"1,pain\n" * 100))
    assert parts.parts_of(Table(path, progress=False)) == []
    path = tmp_path / "a.csv"
    path.write_text("ROW_ID,TEXT\n" + '1,"pain"\n' * 100)
    assert len(parts.parts_of(Table(path, progress=False))) == 2
    monkeypatch.setattr(parts, "LARGE", 10**6)
    assert parts.parts_of(Table(path, progress=False)) == []


def test_a_copy_that_is_killed_is_replaced(tmp_path, monkeypatch, two_cores):
    path, original, killed = tmp_path / "a.csv", os.getpid(), []
    path.write_text("ROW_ID,TEXT\n" + "".join(f"{i},pain\n" for i in range(200)))
    task = TASKS["symptoms"]()
    read = task.read

    def killed_in_copies(*words):
        if os.getpid() != original:
            os.kill(os.getpid(), signal.SIGKILL)
        killed.append(task.part)
        return read(*words)

    monkeypatch.setattr(task, "read", killed_in_copies)
    counts = Counter()
    notes = task.read_by_all(str(path), lambda row_id: True, counts)
    assert [note.row_id for note in notes] == [str(i) for i in range(200)] and counts["rows"] == 200
    assert len(killed) == 2 and killed[0] and killed[1] is None  # a part, then all
