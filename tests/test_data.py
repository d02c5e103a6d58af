"""Reading, folding, splitting, token ids and batching."""

import csv
import gzip
import io
import random
import re
import shlex
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from transformers import AutoTokenizer

from cli import BadInput
from conftest import ROOT, write_notes
from data import (
    SPLITS,
    Note,
    Table,
    collate,
    digest,
    encode,
    fingerprint,
    fold_duplicates,
    make_batches,
    open_text,
    sampled,
    split_by_subject,
    split_fold,
    text_lines,
)
from files import write_csv
from run.cache import cached, encoding_key
from tasks.symptoms import Symptoms

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def rows_of(path):
    return [list(row) for row in Table(path, progress=False)]


def test_reader_takes_what_the_csv_module_writes(tmp_path):
    rows = [
        ["1", "line one\nline two", 'said "no"'],
        ["2", "", "a,b"],
        ["3", "x" * 300_000, "\r\n"],
        ["4", "é ☃", "end"],
    ]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["id", "a", "b"], *rows])
    plain, zipped, marked = tmp_path / "a.csv", tmp_path / "a.csv.gz", tmp_path / "bom.csv"
    plain.write_bytes(buffer.getvalue().encode())
    zipped.write_bytes(gzip.compress(buffer.getvalue().encode()))
    marked.write_bytes(b"\xef\xbb\xbf" + buffer.getvalue().encode())
    for path in (plain, zipped, marked):
        assert rows_of(path) == rows
        assert Table(path, progress=False).columns == ["id", "a", "b"]
    assert Table(plain, progress=False).column("A", "--x") == 1


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "the file is empty"),
        (b'id,text\n1,ok\n2,"open\n3,secret\n', "line 3: a quote in the row that starts here"),
        (b'id,text\n1,"a\nb"\n2,"open\n3,"secret"\n', "line 4: a quote in the row that starts here"),
        (b"id,text\n1,ok\n2,se\0cret\n", "line 3: a NUL byte"),
        (b"id,text\n1,ok\n2,secret,more\n", "line 3: 3 fields where the header has 2"),
        (b"id,text\n1,se\xffcret\n", "not UTF-8"),
    ],
)
def test_reader_names_the_line_and_never_the_text(tmp_path, content, message):
    path = tmp_path / "notes.csv"
    path.write_bytes(content)
    with pytest.raises(BadInput) as error:
        rows_of(path)
    assert message in str(error.value) and "cret" not in str(error.value)


def test_reader_refuses_what_is_no_file_or_no_gzip(tmp_path):
    (tmp_path / "a.csv.gz").write_text("id\n1\n")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"id\n" + bytes(range(33, 99)) * 999)[:-20])
    for name, message in (
        ("none.csv", "no such file"),
        (".", "directory"),
        ("a.csv.gz", "not gzip"),
        ("cut.csv.gz", "cut short"),
    ):
        with pytest.raises(BadInput, match=message):
            rows_of(tmp_path / name)


@pytest.mark.parametrize("form", ("plain", "gzip", "quoted lines", "lines"))
def test_a_row_without_end_is_refused_before_it_fills_the_memory(tmp_path, form):
    path = tmp_path / "notes.csv"
    endless = b"2," + (b'"' + b"x\n" * 3 * 10**7 if form == "quoted lines" else b"x" * 6 * 10**7)
    content = b"id,text\n1,ok\n" + endless
    path.write_bytes(gzip.compress(content, 1) if form == "gzip" else content)
    rows, begun = [], tracemalloc.start()
    with pytest.raises(BadInput, match="line 3: more than 1 MB in one row; .* --max-row-mb"):
        if form == "lines":
            rows.extend(text_lines(path, open_text(path)[1], 1))
        else:
            rows.extend(Table(path, progress=False, max_row_mb=1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == (2 if form == "lines" else 1) and begun is None and peak < 20 * 10**6


def test_a_long_row_is_read_if_it_is_allowed(tmp_path):
    path = write_notes(tmp_path / "notes.csv", [("1", "1", "a\n" * 10**6), ("2", "2", "b")])
    with pytest.raises(BadInput, match="line 2: more than 1 MB"):
        list(Table(path, progress=False, max_row_mb=1))
    assert [len(row[2]) for row in Table(path, progress=False, max_row_mb=3)] == [2 * 10**6, 1]


def test_blank_lines_between_rows_cost_nothing_and_are_counted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n" + b"1,2\n\n3,4\r\n\r\r\n" * 400_000)
    began, table = time.process_time(), Table(path, progress=False, max_row_mb=1)
    rows = [(table.line, cells) for cells in table]
    assert [(line, *cells) for line, cells in rows[:3]] == [(2, "1", "2"), (4, "3", "4"), (7, "1", "2")]
    assert len(rows) == 800_000 and rows[-1][0] == 5 * 400_000 - 1 and time.process_time() - began < 10


PIECES = [
    "a",
    "b ",
    '"',
    '""',
    ",",
    "\n",
    "\r",
    "\r\n",
    "\u2028",
    "\x1c",
    "\x85",
    "é☃",
    "",
    ' "',
    '"x"',
    "\ufeff",
]


def awkward_csv(rng, columns):
    """A CSV of cells quoted and plain, some of them wrongly, with all line ends, blank lines and a mark."""

    def cell():
        text = "".join(rng.choices(PIECES, k=rng.randint(0, 5)))
        quoted, plain = '"' + text.replace('"', '""') + '"', re.sub(r"^\"+|[,\r\n]", "", text)
        return rng.choices((quoted, plain, text), (50, 50, 3))[0]

    rows = [",".join(cell() for _ in range(columns)) for _ in range(rng.randint(1, 12))]
    text = "".join(
        row + rng.choice(("\n", "\r\n", "\r", "\n\n")) for row in ["h" + "," * (columns - 1), *rows]
    )
    return rng.choice(("", "\ufeff")) + (text.rstrip("\r\n") if rng.random() < 0.3 else text)


def read_by_csv(path):
    """((line, cells) of all rows, beginning of the fault's message or None) as Python's csv reads a file."""
    rows, line = [], 1
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            for row in reader:
                if rows and row and len(row) != len(rows[0][1]):
                    return rows, f"line {line}: {len(row)} fields"
                rows += [(line, row)] if row else []
                line = reader.line_num + 1
        except csv.Error:
            return rows, f"line {line}: a quote"
    return rows, None


@pytest.mark.parametrize("seed", range(4))
def test_reader_and_csv_module_agree_on_awkward_files(tmp_path, monkeypatch, seed):
    rng, path, faults = random.Random(seed), tmp_path / "a.csv", 0
    for _ in range(500):
        monkeypatch.setattr("data.BLOCK", rng.choice((1, 2, 3, 7, 20, 64, 10**6)))
        path.write_bytes(awkward_csv(rng, rng.randint(1, 4)).encode())
        expected, fault = read_by_csv(path)
        found, said = [], None
        try:
            table = Table(path, progress=False)
            found.append((1, table.columns))
            found.extend((table.line, list(row)) for row in table)
        except BadInput as error:
            said = str(error)
        assert found == expected and (said is None) == (fault is None) and (not fault or fault in said)
        faults += fault is not None
    assert 20 < faults < 480


def test_missing_column_names_those_found_but_no_text_of_a_file_without_header(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text('ROW_ID,"Patient denies fever\nand chills"\n')
    with pytest.raises(
        BadInput, match=r"found ROW_ID, \(not a column name\); name the column with --text-column"
    ):
        Symptoms().columns(Table(path, progress=False))
    path.write_text("730419,Melanoma,chills\n730420,Fever,none\n")
    with pytest.raises(BadInput, match="none of its 3 columns has a usual name") as error:
        Symptoms().columns(Table(path, progress=False))
    assert not re.search("730419|melanoma|chills", str(error.value), re.I)


@pytest.mark.parametrize("seed", range(5))
def test_no_subject_and_no_text_on_two_sides_and_labels_in_proportion(seed):
    generator = np.random.default_rng(seed)
    notes = []
    for i in range(1000):
        subject, text = str(generator.integers(150)), f"text {generator.integers(900)}"
        label = int(generator.choice(4, p=[0.6, 0.2, 0.15, 0.05]))
        notes.append(Note(str(i), subject, text, label))
    notes, folded = fold_duplicates(notes)
    assert folded == 1000 - len(notes) and len({note.text for note in notes}) == len(notes)
    splits = split_by_subject(notes, SHARES, seed)
    assert sum(map(len, splits.values())) == len(notes)
    for what in ("subject", "text", "row_id"):
        sides = [{getattr(note, what) for note in splits[split]} for split in SPLITS]
        assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    totals = np.bincount([note.label for note in notes])
    for split, share in zip(SPLITS, (0.7, 0.1, 0.2)):
        assert np.allclose(
            np.bincount([n.label for n in splits[split]], minlength=4) / totals, share, atol=0.06
        )
    assert (
        fingerprint(splits)
        == fingerprint(split_by_subject(notes, SHARES, seed))
        != fingerprint(split_by_subject(notes, SHARES, seed + 9))
    )


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_are_tested_once_each_grouped_and_stratified(folds):
    generator = np.random.default_rng(folds)
    drawn = zip(generator.integers(150, size=900), generator.choice(3, 900, p=[0.7, 0.2, 0.1]), strict=True)
    notes = [Note(str(i), str(subject), f"text {i}", int(label)) for i, (subject, label) in enumerate(drawn)]
    totals, tested, seen = np.bincount([note.label for note in notes]), [], set()
    for k in range(1, folds + 1):
        splits = split_fold(notes, [k, folds], 0.1, 7)
        assert list(splits) == list(SPLITS) and sum(map(len, splits.values())) == len(notes)
        sides = [{note.subject for note in splits[split]} for split in SPLITS]
        assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
        assert np.allclose(np.bincount([n.label for n in splits["test"]]) / totals, 1 / folds, atol=0.04)
        assert len(splits["validation"]) == pytest.approx(90, abs=15)
        tested += [note.row_id for note in splits["test"]]
        seen.add(fingerprint(splits))
    assert sorted(tested, key=int) == [note.row_id for note in notes] and len(seen) == folds
    assert "validation" not in split_fold(notes, [1, folds], None, 7)  # a file of its own


def test_sample_is_the_share_asked_for_and_the_same_every_time():
    kept = [row for row in map(str, range(20000)) if sampled(row, 0.1, 42)]
    assert 1800 < len(kept) < 2200 and kept == [
        row for row in map(str, range(20000)) if sampled(row, 0.1, 42)
    ]
    assert digest("a", "b") == 0xF84C4D669FE0D410  # on every machine, whatever PYTHONHASHSEED


def test_encoding_and_batches(small):
    tokenizer = AutoTokenizer.from_pretrained(small[1])
    texts = ["fever", "no pain at all", "", "edema " * 400] * 300
    encoded = encode(texts, len(texts), tokenizer, 16, progress=False)
    for i, text in enumerate(texts[:4]):
        ids = tokenizer(text, truncation=True, max_length=16)["input_ids"]
        assert encoded.ids[encoded.starts[i] : encoded.starts[i + 1]].tolist() == ids
    batches = make_batches(encoded.lengths, 16, seed=[1, 2])
    assert sorted(np.concatenate(batches)) == list(range(len(texts)))
    assert all((a == b).all() for a, b in zip(batches, make_batches(encoded.lengths, 16, seed=[1, 2])))
    assert any(
        (a != b).any()
        for a, b in zip(batches, make_batches(encoded.lengths, 16, seed=[1, 3]))
        if len(a) == len(b)
    )
    padding = sum(encoded.lengths[b].max() * len(b) for b in batches) / encoded.lengths.sum()
    assert padding < 1.1  # notes of similar length together: at random this is near 1.7
    batch = collate(encoded, np.array([0, 1]), tokenizer.pad_token_id)
    expected = tokenizer(texts[:2], padding=True, return_tensors="pt")
    assert batch["input_ids"].equal(expected["input_ids"]) and batch["attention_mask"].equal(
        expected["attention_mask"]
    )


def test_large_vocabularies_keep_their_ids():
    class Large(dict):
        def __len__(self):
            return 2**16 + 1

        def __call__(self, texts, **_):
            return {"input_ids": [[2**16, 7]] * len(texts)}

    encoded = encode(["a", "b"], 2, Large(), 4, progress=False)
    assert encoded.ids.tolist() == [2**16, 7] * 2 and encoded.starts.tolist() == [0, 2, 4]


def test_csv_leaves_undefined_scores_empty(tmp_path):
    write_csv(tmp_path / "a.csv", ["a", "b"], [[None, 0.5], ["x", 3]])
    assert (tmp_path / "a.csv").read_text() == "a,b\n,0.500000\nx,3\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_token_ids_are_kept_for_their_owner_alone(small, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(small[1])
    notes, calls = [Note("1", "a", "fever and pain", 0), Note("2", "b", "no cough", 1)], []

    def make():
        calls.append(1)
        encoded = encode([note.text for note in notes], 2, tokenizer, 16, progress=False)
        encoded.labels = np.array([0, 1])
        return encoded

    key = encoding_key(tokenizer, {"max_length": 16}, notes)
    first, again = (cached(tmp_path / "tokens", key, make) for _ in range(2))
    assert len(calls) == 1 and again.token_labels is None
    assert isinstance(first.ids, np.memmap) and isinstance(again.ids, np.memmap)
    assert all(
        np.array_equal(getattr(first, name), getattr(again, name))
        for name in ("ids", "starts", "owner", "labels")
    )
    assert (
        encoding_key(tokenizer, {"max_length": 16}, notes) == key
    )  # though the tokenizer was called in between
    others = (
        ({"max_length": 17}, notes),
        ({"max_length": 16}, [notes[0], Note("2", "b", "no cough", 0)]),
        ({"max_length": 16}, notes[:1]),
    )
    assert len({key, *(encoding_key(tokenizer, *each) for each in others)}) == 4
    places = [tmp_path / "tokens", *(tmp_path / "tokens").rglob("*")]
    assert len(places) == 7 and all(path.stat().st_mode & 0o077 == 0 for path in places)
    assert b"fever" not in b"".join(path.read_bytes() for path in places if path.is_file())
    batch = collate(again, np.array([0, 1]), tokenizer.pad_token_id)
    assert batch["labels"].tolist() == [0, 1] and batch["input_ids"].shape[0] == 2
    (tmp_path / "tokens" / key).chmod(0o755)
    cached(tmp_path / "tokens", key, make)
    assert len(calls) == 2 and "can be read by others" in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    cached(tmp_path / "file", key, make)
    assert len(calls) == 3 and "token ids are not kept" in capsys.readouterr().out


def test_a_reader_that_leaves_gets_no_traceback():
    code = "import cli; cli.run_script(lambda: [print(i) for i in range(100_000)])"
    line = f'{shlex.quote(sys.executable)} -c "{code}" | head -1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "141"] and not done.stderr
