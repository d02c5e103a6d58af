"""A large file read by all cores gives what one process gives, faults included."""

import gzip
import os
import random
import re
import signal
from collections import Counter

import pytest
import torch

import parts
from cli import BadInput
from tasks import TASKS
from tests.test_data import awkward_csv


@pytest.fixture
def two_cores(monkeypatch):
    """All files are large, and there are two cores."""
    monkeypatch.setattr(parts, "SMALL", 0)
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


def read_symptoms(path, most_text, monkeypatch):
    """(notes, counts, by_subject) of a file, or what is said of its fault."""
    monkeypatch.setattr("tasks.task.MAX_TEXT", most_text)
    counts, task = Counter(), TASKS["symptoms"]()
    try:
        notes = task.read(path, lambda row_id: row_id != "5", counts)
        return [(n, n.key, n.path, n.line) for n in notes], counts, task.by_subject
    except BadInput as error:
        return re.sub(r"near line \d+", "near line ...", str(error))  # which is not exact


@pytest.mark.parametrize("seed", range(4))
def test_parts_give_the_notes_and_the_faults_of_one_process(tmp_path, monkeypatch, two_cores, seed):
    rng, faults = random.Random(seed), 0
    for _ in range(12):
        path = tmp_path / rng.choice(("a.csv", "a.csv.gz"))
        notes_file(path, rng)
        monkeypatch.setattr(parts, "SIZE", rng.choice((300, 700, 2000, 10**5)))
        monkeypatch.setattr("data.BLOCK", rng.choice((64, 200)))
        most_text = rng.choice((0, 10**8))
        with monkeypatch.context() as alone:
            alone.setattr(torch, "get_num_threads", lambda: 1)
            expected = read_symptoms(path, most_text, monkeypatch)
        assert read_symptoms(path, most_text, monkeypatch) == expected
        faults += isinstance(expected, str)
    assert 0 < faults < 12


def test_a_part_ends_where_a_row_ends():
    assert parts.last_row_end(b'1,"a\nb"\n2,"c\nd') == 8
    assert parts.last_row_end(b'1,"a\nb') is None and parts.last_row_end(b"1,a") is None
    assert parts.last_row_end(b"1,a\n2,b\n") == 8


def test_a_file_is_cut_into_parts_and_a_killed_reader_is_replaced(tmp_path, monkeypatch, two_cores):
    path = tmp_path / "a.csv"
    path.write_text("ROW_ID,TEXT\n" + "".join(f"{i},pain\n" for i in range(200)))
    monkeypatch.setattr(parts, "SIZE", 100)
    monkeypatch.setattr("data.BLOCK", 50)
    whole, sizes, answer = TASKS["symptoms"](), [], parts.Reader.answer

    def counted(reader):
        sizes.append(reader.size)
        if len(sizes) == 5:
            os.kill(reader.process.pid, signal.SIGSTOP)  # not yet: its answer may be there already
            while reader.pipe.poll(0.1):
                reader.pipe.recv()
            reader.process.kill()
        return answer(reader)

    monkeypatch.setattr(parts.Reader, "answer", counted)
    notes = whole.read(str(path), lambda row_id: True, Counter())
    assert [n.row_id for n in notes] == [str(i) for i in range(200)] and len(sizes) == 5
