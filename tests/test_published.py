"""The figures of the other published systems: entered rightly, and beside ours where labels are the same."""

import pytest

from conftest import ROOT
from run import tables
from run.published import label_cells, published_facts, table_of
from run.results import read_rows
from tasks import TASKS

REFERENCE = ROOT / "reference"
ROWS = read_rows(REFERENCE / "trials.csv", ("table", "encoder", "label"))
PARTS = [(table, encoder) for table in ("stop reasons", "gender") for encoder in ("plain", "adapted")]


def facts_of(name, labels):
    """published_facts of a task with these labels."""
    task = TASKS[name]()
    task.labels = labels
    return published_facts(task, REFERENCE)


@pytest.mark.parametrize("table, encoder", PARTS)
def test_the_averages_follow_from_the_rows_of_the_labels(table, encoder):
    rows = {r["label"]: r for r in ROWS if (r["table"], r["encoder"]) == (table, encoder)}
    averages = {name.removesuffix(" avg"): rows.pop(name) for name in list(rows) if name.endswith(" avg")}
    assert list(averages) == ["micro", "macro", "weighted", "samples"]
    total = sum(row["support"] for row in rows.values())
    assert {row["support"] for row in averages.values()} == {total}
    for score in ("precision", "recall", "f1"):
        assert sum(r[score] for r in rows.values()) / len(rows) == pytest.approx(
            averages["macro"][score], abs=1e-4
        )
        weighted = sum(r[score] * r["support"] for r in rows.values()) / total
        assert weighted == pytest.approx(averages["weighted"][score], abs=1e-4)
    for row in [*rows.values(), averages["micro"]]:
        both = row["precision"] + row["recall"]
        assert row["f1"] == pytest.approx(
            2 * row["precision"] * row["recall"] / both if both else 0, abs=1e-4
        )


def cells_beside(labels):
    """The published cells that a run with these labels gets."""
    return label_cells(table_of(ROWS, labels)[1], labels)


def test_a_table_stands_beside_a_run_that_has_its_labels():
    reasons = list(dict.fromkeys(row["label"] for row in ROWS if row["table"] == "stop reasons"))
    classes = [label for label in reasons if not label.endswith(" avg")]
    found = cells_beside([label.replace("_", " ").lower() for label in classes])
    assert len(classes) == 17 and len(found) == 21 and found["another study"]["plain"]["f1"] == 0.9158
    assert found["micro avg"]["adapted"]["f1"] == 0.9585
    gender = cells_beside(["All", "Female", "Male"])  # without its fourth, so without its averages
    assert list(gender) == ["All", "Male", "Female"] and gender["Male"]["adapted"]["support"] == 1646
    assert cells_beside(["All", "Other"]) == cells_beside([]) == label_cells([], ["a", "b"]) == {}
    assert "micro-F1 0.8709" in facts_of("trials", classes)["published"]
    for labels in (["All", "Female", "Male"], ["asthma", "copd"]):  # the line is of the other table
        assert facts_of("trials", labels)["published"] is None
    assert facts_of("symptoms", ["pain", "cough"])["published_labels"] == {}  # they have columns of their own

    facts = {
        **facts_of("trials", ["All", "Female", "Male"]),
        "runs": ["base"],
        "support": "support",
        "per_label": {label: {"Support": 5, "F1": {"base": 0.5}} for label in ("All", "Female", "micro avg")},
    }
    header, _, *body = tables.label_table(facts)
    assert header == "| label | support | base | as published, plain | as published, adapted |"
    assert body[1] == "| Female | 5 | 0.500 | 0.958 (0.964 / 0.952), 3,986 | 0.966 (0.972 / 0.960), 3,986 |"
    assert body[2] == "| micro avg | 5 | 0.500 |  |  |"


def test_overall_scores_are_a_row_and_adaptation_is_told_by_epoch():
    assert facts_of("readmission", ["no", "yes"])["published_scores"] == {"Accuracy": 0.67}
    ner = facts_of("ner", ["O", "B-x", "I-x"])
    assert ner["published_scores"] == {"Precision": 0.72, "Recall": 0.68, "F1": 0.7}
    facts = {**ner, "seeds": [1], "scores": {"F1": "F1", "Other": "other"}}
    rows = [{"technique": "base", "f1": 0.5}]
    assert tables.score_table(rows, facts)[-2:] == [
        "| base | 0.5000 |  |  |",
        "| as published | 0.7000 |  |  |",
    ]
    line = facts_of("mlm", [])["published"]
    assert "by epochs of training: 5: 0.8049, 10: 0.8238" in line and line.endswith("50: 0.8491.")
