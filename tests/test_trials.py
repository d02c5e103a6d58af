"""Classification of trials: classes, label sets, thresholds."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from conftest import write_notes
from tasks.label_sets import best_thresholds
from tasks.trials import Trials


def test_label_sets_come_from_columns_separators_or_folded_texts(tmp_path):
    sets = [("a",), ("a", "b"), (), ("c",)]
    columns = str(
        write_notes(
            tmp_path / "columns.csv",
            [(f"text {i}", *(int(n in sets[i % 4]) for n in "abc")) for i in range(40)],
            ("context", "a", "b", "c"),
        )
    )
    separated = str(
        write_notes(
            tmp_path / "separated.csv",
            [(f"text {i}", ";".join(sets[i % 4])) for i in range(40)],
            ("context", "label"),
        )
    )
    for path, task in ((columns, Trials(label_column="a,b,c")), (separated, Trials(label_separator=";"))):
        splits, facts = task.load(path, 1.0, 0.2, 0.2, 1)
        assert (
            task.labels == ["a", "b", "c"]
            and facts["rows"]["with an empty set of labels"] == 10
            and facts["notes"] == 40
        )
        for note in sum(splits.values(), []):
            assert tuple(task.labels[i] for i in note.label) == sets[int(note.text.split()[1]) % 4]
        targets = task.targets(splits["test"])
        assert targets.shape == (len(splits["test"]), 3) and targets.dtype == np.float32
    folded = str(
        write_notes(
            tmp_path / "folded.csv",
            [(f"text {i // 2}", "ab"[i % 2] if i % 4 < 2 else "c") for i in range(80)],
            ("context", "label"),
        )
    )
    task = Trials(multi_label=True)
    splits, facts = task.load(folded, 1.0, 0.2, 0.2, 1)
    assert facts["notes"] == 40 and facts["rows"]["duplicates with other labels, united"] == 20
    assert {(int(n.text.split()[1]) % 2, n.label) for n in sum(splits.values(), [])} == {
        (0, (0, 1)),
        (1, (2,)),
    }
    splits, facts = Trials().load(folded, 1.0, 0.2, 0.2, 1)
    assert facts["rows"]["contradicting duplicates"] == 20


def test_a_class_too_rare_for_validation_does_not_decide_the_epoch(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(60)] + [("rare", "c")]
    task = Trials()
    splits, _ = task.load(
        str(write_notes(tmp_path / "rare.csv", rows, ("context", "label"))), 1.0, 0.2, 0.2, 1
    )
    examples = [note for note in splits["validation"] if note.label < 2]
    right = np.eye(3)[[note.label for note in examples]]
    assert task.score(examples, list(right)).overall["F1"] == pytest.approx(2 / 3)
    good, bad = (
        task.score(examples, list(right)).overall,
        task.score(examples, list(np.roll(right, 1, 1))).overall,
    )
    assert good["F1"] == pytest.approx(2 / 3) and task.better(good, bad) and not task.better(bad, good)


def test_thresholds_are_the_best_of_all_on_validation_and_never_see_the_test():
    generator = np.random.default_rng(0)
    truth = generator.random((80, 3)) < [0.5, 0.2, 0.0]
    said = np.clip(generator.normal(0.3 + 0.3 * truth, 0.2), 0, 1)
    chosen = best_thresholds(truth, said)
    for i in (0, 1):
        best = max(sk.f1_score(truth[:, i], said[:, i] >= t) for t in np.unique(said[:, i]))
        assert sk.f1_score(truth[:, i], said[:, i] >= chosen[i]) == pytest.approx(best)
    assert chosen[2] == 0.5


def test_multi_label_logits_distil_as_softmaxes_of_two():
    task = Trials(multi_label=True)
    logits = torch.randn(4, 3)
    rows = task.categorical(logits, {})
    assert rows.shape == (12, 2) and torch.allclose(rows.softmax(-1)[:, 1].view(4, 3), logits.sigmoid())


def test_separate_files_and_texts_on_both_sides(demos, tmp_path):
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(30)]
    parts = {"train": rows[:20] + rows[24:26], "validation": rows[20:24], "test": rows[24:]}
    paths = [
        str(write_notes(tmp_path / f"{split}.csv", part, ("context", "label")))
        for split, part in parts.items()
    ]
    splits, facts = Trials().load(paths[0], 1.0, paths[1], paths[2], 42)
    assert (
        facts["sizes"] == {"train": 20, "validation": 4, "test": 6}
        and facts["rows"]["also in the test or validation file, left out"] == 2
    )
    splits, facts = Trials().load(paths[0], 1.0, 0.25, paths[2], 42)
    assert facts["sizes"]["test"] == 6 and facts["sizes"]["validation"] in (5, 6)
