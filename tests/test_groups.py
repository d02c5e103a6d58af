"""Scores of groups of test examples."""

from collections import Counter

import pytest

import evaluate
import report
import train
from cli import BadInput
from conftest import read_csv, run_words, write_notes
from data import Note
from files import read_json
from tasks.groups import members_of, strange_names
from tasks.readmission import Readmission
from tasks.symptoms import MENTION, Symptoms
from tasks.trials import Trials


def test_small_groups_are_pooled_and_empty_cells_are_one_group():
    values = ["a"] * 12 + ["b"] * 30 + ["c"] * 9 + ["d"] + [""] * 10
    notes = [Note(str(i), "", "", 0, groups={"X": value}) for i, value in enumerate(values)]
    groups = members_of(notes)["X"]
    sizes = {value: len(numbers) for value, numbers in groups.items()}
    assert list(sizes.items()) == [("b", 30), ("a", 12), ("(empty)", 10), ("(other)", 10)]
    assert groups["a"] == list(range(12)) and groups["(other)"] == list(range(42, 52))
    assert members_of([Note("1", "", "", 0)]) == {}


@pytest.fixture(scope="module")
def grouped(small, arguments, tmp_path_factory):
    """A results directory of two runs that score their test notes by category."""
    out = tmp_path_factory.mktemp("grouped")
    for technique in ("base", "pruning"):
        words = [*arguments, "--technique", technique, "--epochs", "1", "--out", str(out)]
        train.main([*words, "--subgroups", "category"])
    return out


def test_a_run_scores_the_groups_of_its_test_notes(small, grouped):
    tmp_path = grouped
    run = read_json(tmp_path / "base" / "run.json")
    rows = {row["row_id"]: row for row in read_csv(tmp_path / "base" / "predictions.csv")}
    notes = {row["ROW_ID"]: row for row in read_csv(small[0])}
    assert list(run["groups"]) == ["category", MENTION]
    by_category = run["groups"]["category"]
    expected = Counter(notes[row]["CATEGORY"] for row in rows)
    assert sum(group["count"] for group in by_category.values()) == len(rows)
    for value in by_category.keys() - {"(other)"}:
        own = [row for key, row in rows.items() if notes[key]["CATEGORY"] == value]
        right = sum(row["label"] == row["predicted"] for row in own) / len(own)
        assert by_category[value]["count"] == expected[value] == len(own) >= 10
        assert by_category[value]["overall"]["Accuracy"] == pytest.approx(right)
        low, high = by_category[value]["intervals"]["Accuracy"]
        assert 0 <= low <= right <= high <= 1 and high - low > 0.02
    assert set(run["groups"][MENTION]) == {"affirmed", "negated"}
    report.main([str(tmp_path)])
    text = (tmp_path / "results.md").read_text()
    assert "## By category: accuracy on the test split" in text
    assert f"| affirmed | {run['groups'][MENTION]['affirmed']['count']} |" in text


def test_a_labelled_file_is_scored_by_group_as_the_test_notes_are(small, grouped, tmp_path, capsys, refuses):
    tested = {row["row_id"] for row in read_csv(grouped / "base" / "predictions.csv")}
    notes = read_csv(small[0])
    rows = [list(row.values()) for row in notes if row["ROW_ID"] in tested]
    learnt = [list(row.values()) for row in notes if row["ROW_ID"] not in tested][:40]
    assert list(notes[0])[3] == "CATEGORY"  # which more.csv lacks
    data = write_notes(tmp_path / "test.csv", rows, list(notes[0]))
    more = write_notes(
        tmp_path / "more.csv",
        [row[:3] + row[4:] for row in rows + learnt],
        [name for name in notes[0] if name != "CATEGORY"],
    )
    call = [str(grouped / "base"), "--out", str(tmp_path / "out"), "--data"]
    evaluate.main([*call, str(data), "--subgroups", "category"])
    printed, found = capsys.readouterr().out, read_json(tmp_path / "out" / "eval_metrics.json")["groups"]
    mine = read_json(grouped / "base" / "eval_metrics.json")["groups"]
    run = read_json(grouped / "base" / "run.json")["groups"]
    assert list(found) == list(mine) == list(run) == ["category", MENTION]
    for column, groups in run.items():
        assert found[column].keys() == mine[column].keys() == groups.keys()
        for value, group in groups.items():
            cells = found[column][value]
            assert cells["eval_samples"] == mine[column][value]["eval_samples"] == group["count"]
            # other notes in a batch round otherwise: one pair of a small group may change places in AUROC
            assert cells == pytest.approx(mine[column][value], abs=5e-3)
            assert cells["eval_accuracy"] == pytest.approx(group["overall"]["Accuracy"])
            low, high = group["intervals"]["Accuracy"]
            assert cells["eval_accuracy_low"] == pytest.approx(low)
            assert f"  {value}: {group['count']}, {group['overall']['Accuracy']:.4f} [{low:.3f}" in printed
    assert "notes by category, accuracy [95% interval]:" in printed

    evaluate.main([*call, str(more)])  # without the flag the groups of the task alone, also of the new notes
    found = read_json(tmp_path / "out" / "eval_metrics.json")
    new, printed = found["without_training_notes"], capsys.readouterr().out
    assert list(found["groups"]) == list(new["groups"]) == [MENTION]
    for each in (found, new):
        assert (
            sum(cells["eval_samples"] for cells in each["groups"][MENTION].values()) == each["eval_samples"]
        )
    assert f"notes without training notes by {MENTION}" in printed
    assert "no column 'NOPE'" in refuses(evaluate.main, [*call, data, "--subgroups", "NOPE"])
    assert "names a column of the text" in refuses(evaluate.main, [*call, data, "--subgroups", "TEXT"])


def test_the_mention_of_a_label_is_affirmed_if_one_is(tmp_path):
    texts = ("no pain", "no pain. pain", "cough", "denies cough", "visit")
    rows = [(f"{i % 5}-{i}", i, f"{texts[i % 5]} {i}") for i in range(200)]
    path = str(write_notes(tmp_path / "notes.csv", rows))
    task = Symptoms(symptoms="cough,pain", with_none=True)
    notes = task.load(path, 1.0, 0.2, 0.2, 42)[0]["test"]
    task.mark(notes)
    said = ("negated", "affirmed", "affirmed", "negated", "none")
    assert len(notes) > 20 and all(note.groups == {MENTION: said[int(note.row_id[0])]} for note in notes)
    task = Symptoms(symptoms="cough,pain", negation="label")
    notes = task.load(path, 1.0, 0.2, 0.2, 42)[0]["test"]
    task.mark(notes)
    assert all(note.groups is None for note in notes)


def test_groups_are_of_the_first_of_equal_texts_and_of_an_admissions_first_note(demos, tmp_path):
    rows = [(f"text {i % 60}", "ab"[i % 2], f"g{i // 60}") for i in range(120)]
    path = write_notes(tmp_path / "t.csv", rows, ("context", "label", "G"))
    splits, _ = Trials(subgroups="g").load(str(path), 1.0, 0.2, 0.2, 1)
    assert {str(note.groups) for note in sum(splits.values(), [])} == {"{'g': 'g0'}"}
    ready = [(i, f"text {i}", i % 2, f"g{i % 3}") for i in range(90)]
    path = write_notes(tmp_path / "r.csv", ready, ("SUBJECT_ID", "TEXT", "label", "G"))
    splits, _ = Readmission(subgroups="G").load(str(path), 1.0, 0.2, 0.2, 1)
    notes = sum(splits.values(), [])
    assert all(note.groups["G"] == f"g{int(note.subject) % 3}" for note in notes)
    splits, _ = Readmission(subgroups="CATEGORY").load(str(demos["readmission"][0]), 1.0, 0.1, 0.2, 1)
    assert all(note.groups == {"CATEGORY": "Discharge summary"} for note in splits["test"])


@pytest.mark.parametrize(
    "column, message",
    [
        ("TEXT", "names a column of the text"),
        ("NOPE", "no column 'NOPE'"),
        ("PLAN", "--subgroups PLAN: 1 of its 1 groups look like text"),
    ],
)
def test_columns_that_are_no_groups_are_refused_before_training(tmp_path, column, message):
    secret = "secret plan: take two of them {daily}"
    rows = [(i, i, f"{'pain' if i % 2 else 'cough'} {i}", secret) for i in range(100)]
    path = write_notes(tmp_path / "notes.csv", rows, ("ROW_ID", "SUBJECT_ID", "TEXT", "PLAN"))
    with pytest.raises(BadInput, match=message) as error:
        Symptoms(symptoms="cough,pain", subgroups=column).load(str(path), 1.0, 0.2, 0.2, 42)
    assert "secret" not in str(error.value)


def test_another_task_notes_that_it_has_no_groups(demos, tmp_path, capsys):
    train.main(run_words(demos, "ner", tmp_path, "--subgroups X --epochs 1"))
    assert "--technique base: --rank, --subgroups" in capsys.readouterr().out
    assert read_json(tmp_path / "base" / "run.json")["groups"] == {}


def test_names_of_diagnoses_are_names_and_sentences_are_not():
    names = ["LVEF <40%", "Stage 3 (GFR 30-59%)", "COPD #2", "Dementia?", "Alzheimer's", "Früh/spät"]
    assert strange_names(names) == []
    texts = ["a b c d e f g", "x" * 61, "a\nb", "[a]", "{a}", '"a"', "=a", "a|b", "a*b"]
    assert strange_names(texts) == texts
