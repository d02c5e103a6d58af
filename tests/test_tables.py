"""Tables that are no CSV, and cells that hold lists."""

import csv
import gzip
import io
import json

import pytest

import predict
import train
from cli import BadInput
from conftest import read_csv, run_words, write_notes
from data import Table, fingerprint
from tables import JsonLines, Tsv, open_table
from tasks import TASKS
from tasks.symptoms import Symptoms
from tasks.trials import Trials, listed_names

ROWS = [["1", "line one\nline two", 'said "no"'], ["2", "", "a\tb,c"], ["3", "x" * 70_000, "é ☃"]]


def contents(ending, header=("id", "a", "b"), rows=ROWS):
    """The rows as the bytes of a file of that name."""
    buffer = io.StringIO(newline="")
    if ending.startswith(".jsonl"):
        lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
        buffer.write("\n\n".join(lines))
    else:
        delimiter = "\t" if ending.startswith(".tsv") else ","
        csv.writer(buffer, delimiter=delimiter).writerows([header, *rows])
    content = buffer.getvalue().encode()
    return gzip.compress(content) if ending.endswith(".gz") else content


@pytest.mark.parametrize("ending", (".csv", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".TSV"))
def test_every_format_gives_the_same_columns_and_cells(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(contents(ending.lower()))
    table = open_table(path, progress=False)
    kind = {".csv": Table, ".tsv": Tsv, ".jso": JsonLines}[ending.lower()[:4]]
    assert type(table) is kind and table.columns == ["id", "a", "b"] and table.column("A", "--x") == 1
    lines, rows = zip(*((table.line, list(cells)) for cells in table), strict=True)
    assert list(rows) == ROWS and lines == ((1, 3, 5) if kind is JsonLines else (2, 4, 5))
    if kind is not Table:
        path.write_bytes((gzip.compress if ending.endswith("gz") else bytes)(b"\xef\xbb\xbf" + b"\n"))
        with pytest.raises(BadInput, match="the file is empty"):
            open_table(path, progress=False)


def test_json_values_become_cells(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"a": 7, "b": 0.5, "c": true, "d": null, "e": ["x", "\\u00e9"]}\n'
        '{"e": {"k": 1}, "c": false, "b": NaN}\n'
    )
    rows = list(open_table(tmp_path / "a.jsonl", progress=False))
    assert rows == [["7", "0.5", "1", "", '["x", "é"]'], ["", "", "0", "", '{"k": 1}']]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.tsv", 'a\tb\n1\t2\n"1\tsecret\n', "line 3: a quote in the row that starts here"),
        ("a.tsv", 'a\tb\n1\t2\n1\t"sec"ret\n', "line 3: a quote in the row that starts here"),
        ("a.tsv", "a\tb\n\n1\tsecret\t3\n", "line 3: 3 fields where the header has 2"),
        ("a.tsv", "a\tb\n1\tse\0cret\n", "line 2: a NUL byte"),
        ("a.tsv", "a\tb\n1\t" + '"secret\n' * 10**5, "a quote"),
        ("a.tsv", 'a\tb\n1\t"' + "secret\n" * 10**6, "more than 1 MB in one row"),
        ("a.tsv", "a\tb\n", "a header and no rows"),
        ("a.jsonl", '{"a": 1}\nsecret\n', "line 2: no JSON object"),
        ("a.jsonl", '{"a": 1}\n["secret"]\n', "line 2: no JSON object"),
        ("a.jsonl", '{"a": 1}\n' + "[" * 10**5, "line 2: no JSON object"),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "secret": 2}\n', "line 2: a key that the first line lacks"),
        ("a.jsonl", '{"a": "secret\\u0000"}\n', "line 1: a NUL byte"),
        ("a.jsonl", '{"a": "secret\\ud800"}\n', "line 1: half of a surrogate pair"),
        ("a.jsonl", '{"a": "' + "secret" * 10**6 + '"}\n', "line 1: more than 1 MB"),
        ("a.jsonl", '{"a": "\xff"}\n', "not UTF-8"),
    ],
)
def test_faults_name_the_line_and_never_the_text(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(BadInput, match=message) as error:
        for _ in open_table(tmp_path / name, False, 1):
            pass
    assert "cret" not in str(error.value)


@pytest.mark.parametrize("ending", (".tsv", ".jsonl.gz"))
def test_notes_are_the_same_in_every_format_also_when_read_again(small, tmp_path, monkeypatch, ending):
    rows = read_csv(small[0])
    path = tmp_path / f"notes{ending}"
    path.write_bytes(contents(ending, list(rows[0]), [list(row.values()) for row in rows]))
    expected, facts = Symptoms().load(str(small[0]), 1.0, 0.1, 0.2, 42)
    texts = [note.text for note in expected["test"]]
    monkeypatch.setattr("tasks.task.MAX_TEXT", 1000)
    task = Symptoms()
    splits, found = task.load(str(path), 1.0, 0.1, 0.2, 42)
    assert fingerprint(splits) == fingerprint(expected) and facts == found
    assert splits["test"][-1].text is None and list(task.texts(splits["test"])) == texts


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("symptoms", "ner")])
def test_every_task_with_tables_trains_and_predicts_on_json_lines(demos, tmp_path, task):
    rows = read_csv(demos[task][0])
    notes, out = tmp_path / "notes.jsonl", tmp_path / "out"
    notes.write_bytes(contents(".jsonl", list(rows[0]), [list(row.values()) for row in rows]))
    for path in demos[task][0].parent.glob("*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    train.main(run_words(demos | {task: (notes, demos[task][1])}, task, out, "--epochs 1"))
    for name, path in (("a", demos[task][0]), ("b", notes)):
        predict.main([str(out / "base"), str(path), "--out", str(tmp_path / name)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != b""


# --- lists of labels


@pytest.mark.parametrize(
    "cell, names",
    [
        ("['A', 'B c']", ["A", "B c"]),
        (' ["A",\n"it\'s"] ', ["A", "it's"]),
        ("['it\\'s', \"\\u00e9\",]", ["it's", "é"]),
        ("[]", []),
        ("['A' 'B']", None),
        ("[A, B]", None),
        ("['A', None]", None),
        ("['A', ['B']]", None),
        ("['A'] + ['B']", None),
        ("[__import__('os')]", None),
        ("['A\\x']", None),
        ("['" + "a" * 10**6, None),
        ("['a'" + ",'a'" * 10**5 + "x]", None),
    ],
)
def test_lists_are_read_and_never_run(cell, names):
    assert listed_names(cell) == names


@pytest.mark.parametrize("ending", (".csv", ".jsonl"))
@pytest.mark.parametrize("flags", ({"multi_label": True}, {"label_separator": ";"}))
def test_label_lists_give_sets(tmp_path, ending, flags):
    sets = [["a"], ["a", "b"], [], ["c", "a"]]
    rows = [(f"text {i}", sets[i % 4] if ending == ".jsonl" else str(sets[i % 4])) for i in range(60)]
    path = tmp_path / f"notes{ending}"
    path.write_bytes(contents(ending, ("context", "label"), rows))
    task = Trials(**flags)
    splits, facts = task.load(str(path), 1.0, 0.2, 0.2, 1)
    assert task.labels == ["a", "b", "c"] and facts["rows"]["with an empty set of labels"] == 15
    for note in sum(splits.values(), []):
        assert [task.labels[i] for i in note.label] == sorted(sets[int(note.text.split()[1]) % 4])


@pytest.mark.parametrize(
    "flags, cell, message",
    [
        ({}, "['secret', 'b']", "line 2: column 'label' has a list of labels; give one"),
        ({"multi_label": True}, "[secret, b]", r"line 2: column 'label' has no list such as \['A', 'B'\]"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path, flags, cell, message):
    path = write_notes(tmp_path / "notes.csv", [("text", cell)], ("context", "label"))
    with pytest.raises(BadInput, match=message) as error:
        Trials(**flags).load(str(path), 1.0, 0.2, 0.2, 1)
    assert "secret" not in str(error.value)
