"""Folds: notes tested fold by fold, so that a small set is scored whole."""

import pytest

import train
from cli import BadInput
from conftest import read_csv
from files import read_json, write_json
from run.arguments import parse_arguments
from run.untrusted import read_run


def test_a_fold_is_the_test_split_and_no_run_of_another_fold_is_a_start(small, arguments, refuses, tmp_path):
    quick = [*arguments, "--epochs", "1", "--out", str(tmp_path)]
    for fold in ("1/3", "2/3"):
        train.main([*quick, "--fold", fold, "--name", f"fold{fold[0]}"])
    first, second = (read_json(tmp_path / name / "run.json") for name in ("fold1", "fold2"))
    assert first["arguments"]["test"] == [1, 3] and first["data"]["split"] != second["data"]["split"]
    sizes = first["data"]["sizes"]
    assert sizes["test"] == pytest.approx(sum(sizes.values()) / 3, abs=5)
    rows = [{row["row_id"] for row in read_csv(tmp_path / name / "predictions.csv")} for name in
            ("fold1", "fold2")]  # fmt: skip
    assert not rows[0] & rows[1]
    train.main([*quick, "--fold", "2/3", "--name", "fold2"])  # finished already
    onward = [*quick, "--fold", "2/3", "--name", "x", "--start", tmp_path / "fold1"]
    assert "saw" in refuses(train.main, onward)


@pytest.mark.parametrize(
    "words, message",
    [
        ("--fold 2", "no fold"),
        ("--fold 6/5", "no fold"),
        ("--fold 1/1", "no fold"),
        ("--fold 1/2 --test notes.csv", "leave out --test"),
        ("--fold 1/2 --test 0.3", "leave out --test"),
        ("--fold 1/2 --validation 0.499999999", None),
    ],
)
def test_folds_that_cannot_be_are_refused(words, message, refuses):
    if message:
        assert message in refuses(parse_arguments, words.split())
    else:
        assert parse_arguments(words.split()).test == [1, 2]


def test_a_damaged_fold_in_run_json_is_refused(runs, tmp_path):
    facts = read_json(runs / "base" / "run.json")
    for test in ([2], [3, 2], [0, 2], [1, 1], ["1", 2]):
        facts["arguments"]["test"] = test
        write_json(tmp_path / "run.json", facts)
        with pytest.raises(BadInput, match="is damaged"):
            read_run(tmp_path)
