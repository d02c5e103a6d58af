"""The rule for negated mentions, what --negation makes of it, and the script that scores the rule."""

import pytest

from cli import BadInput
from conftest import read_csv, write_notes
from experiments import negex
from tasks.negation import REACH, WINDOW_AFTER, WINDOW_BEFORE, negated
from tasks.symptoms import Symptoms


@pytest.mark.parametrize(
    "text, expected",
    [
        ("denies any fever or *cough*.", True),
        ("no fever, chills,\n  nausea, or *cough*", True),
        ("negative for *cough*", True),
        ("*cough* was ruled out", True),
        ("cough: denies. *fever*: none", True),
        ("non-*bleeding* hemorrhoids", True),
        ("no fever. has *cough*", False),
        ("no fever but some *cough*", False),
        ("denies fever; *cough* since monday", False),
        ("no fever\n\nplan: treat *cough*", False),
        ("not only fever but *cough*", False),
        ("risks include but are not limited to *bleeding*", False),
        ("no change in *cough*", False),
        ("notes *cough*, knows nothing else", False),
        ("*cough*. no fever", False),
        ("*cough* is better, but fever is absent", False),
        ("no " + "word " * WINDOW_BEFORE + "*cough*", True),
        ("no " + "word " * (WINDOW_BEFORE + 1) + "*cough*", False),
        ("*cough* " + "word " * WINDOW_AFTER + "is absent", False),
        ("no " + "x" * REACH + " *cough*", False),
    ],
)
def test_what_counts_as_negated(text, expected):
    start, stop = text.index("*"), text.rindex("*") - 1
    assert negated(text.replace("*", ""), start, stop) == expected


TEXTS = {
    "has cough {}": "cough",
    "denies cough {}": "no cough",
    "denies cough {}. later a cough": "cough",
    "no cough but pain {}": "no cough",
    "pain {}": "pain",
    "without pain {}": "no pain",
}


@pytest.mark.parametrize("mode", ("keep", "drop", "label"))
def test_negated_symptoms_count_or_are_left_out_or_are_labels(tmp_path, mode):
    rows = [(f"{text}{i}", f"{text}{i}", text.format(i)) for text in TEXTS for i in range(12)]
    path = str(write_notes(tmp_path / "notes.csv", rows))
    task = Symptoms(symptoms="cough,pain", negation=mode)
    splits, facts = task.load(path, 1.0, 0.2, 0.2, 42)
    said = {note.row_id.rstrip("0123456789"): task.labels[note.label] for note in sum(splits.values(), [])}
    expected = TEXTS
    if mode == "keep":
        expected = {text: label.removeprefix("no ") for text, label in TEXTS.items()}
    if mode == "drop":
        expected = {text: label for text, label in TEXTS.items() if not label.startswith("no ")}
        expected["no cough but pain {}"] = "pain"
    assert said == expected
    assert facts["rows"]["without label"] == 12 * (len(TEXTS) - len(expected))
    assert task.labels == ["cough", "pain", *["no cough", "no pain"] * (mode == "label")]
    assert task.as_published == (mode == "keep")


def test_in_a_set_both_what_is_affirmed_and_what_is_negated(tmp_path):
    rows = [(f"{text}{i}", f"{text}{i}", text.format(i)) for text in TEXTS for i in range(12)]
    path = str(write_notes(tmp_path / "notes.csv", rows))
    task = Symptoms(symptoms="cough,pain", negation="label", multi_label=True)
    notes = sum(task.load(path, 1.0, 0.2, 0.2, 42)[0].values(), [])
    names = {task.truth(note) for note in notes if note.text.startswith("no cough but pain")}
    assert names == {"pain;no cough"}
    with pytest.raises(BadInput, match="such a label of its own"):
        Symptoms(symptoms="cough,no cough", negation="label")


def test_the_rule_is_scored_on_each_half_of_the_reports(tmp_path, capsys):
    lines = ["Report No.\tConcept\tSentence\tNegation"]
    for report in range(1, 9):
        lines += [
            f'{report}\tchest  pain\t"Denies CHEST   PAIN \xe9."\tNegated',
            f"{report}\tcough\tHas a COUGH.\tAffirmed",
            f"{report}\tfever\t{'No' if report % 2 else 'Has'} FEVER.\tNegated",
            f"{report}\tchills\tnot in the sentence\tAffirmed",
        ]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="latin-1")
    negex.main([str(tmp_path / "a.txt"), str(tmp_path / "a.csv")])
    assert "24 mentions; 8 rows left out" in capsys.readouterr().out
    odd, even, published = read_csv(tmp_path / "a.csv")
    assert (odd["reports"], odd["mentions"], odd["negated"], odd["F1"]) == ("4", "12", "8", "1.000000")
    assert (even["precision"], even["recall"], even["specificity"]) == ("1.000000", "0.500000", "1.000000")
    assert float(even["F1"]) == pytest.approx(2 / 3, abs=1e-6) and published["recall"] == "0.778000"
    (tmp_path / "a.txt").write_text("head\n1\tsecret\n")
    with pytest.raises(BadInput, match="line 2: not report") as error:
        negex.main([str(tmp_path / "a.txt")])
    assert "secret" not in str(error.value)
