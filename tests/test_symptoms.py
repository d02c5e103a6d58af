"""Symptom classification: the label's rule, and which notes and labels are kept."""

import re

import numpy as np

from conftest import write_notes
from data import SPLITS, Note, balance
from tasks.symptoms import LEXICON, SYMPTOMS, Symptoms, first_match

WORDS = [
    "no",
    "edema",
    "edematous",
    "pain",
    "painless",
    "cough",
    "fever",
    "bleeding",
    "non-bleeding",
    "chest",
    "pain,",
    "Fever.",
]


def test_label_is_the_first_of_the_list_that_is_a_whole_word():
    generator = np.random.default_rng(0)
    for _ in range(500):
        text = " ".join(generator.choice(WORDS, generator.integers(0, 6))).lower()
        found = [bool(re.findall(rf"(?<!\w){symptom}(?!\w)", text)) for symptom in LEXICON]
        slow = found.index(True) if any(found) else None
        assert first_match(text, LEXICON) == slow
    assert first_match("painless edematous", SYMPTOMS) is None
    assert first_match("cough and pain", SYMPTOMS) == SYMPTOMS.index("pain")
    assert len(LEXICON) == len(set(LEXICON)) == 40


def load(path, **options):
    return Symptoms(**options).load(str(path), 1.0, 0.2, 0.2, 42)


def test_counts_of_what_was_dropped(tmp_path):
    words = ("edema", "pain", "cough", "fever", "bleeding")
    rows = [(i, i, f"{words[i % 5]} number {i}") for i in range(50)]
    rows += [
        (50, 50, "nothing here"),
        (51, 51, "  "),
        (52, 52, "pain number 1"),
        (53, 53, "PAIN NUMBER 1"),
        (54, 1, "x" * 1000 + " pain"),
    ]
    splits, facts = load(write_notes(tmp_path / "notes.csv", rows))
    assert facts["rows"] == {"rows": 55, "without label": 2, "without text": 1, "exact duplicates": 2}
    assert facts["notes"] == 50 == sum(map(len, splits.values()))
    sizes = {split: len(splits[split]) for split in SPLITS}
    assert {split: sum(n.values()) for split, n in facts["splits"].items()} == sizes


def test_top_k_finds_the_most_frequent_labels_in_order(tmp_path):
    counts = {"rash": 9, "syncope": 12, "cough": 9, "burning": 3}
    rows = [
        (f"{word}{i}", f"{word}{i}", f"{word} case {i}")
        for word, count in counts.items()
        for i in range(count)
    ]
    task = Symptoms(top_k=3)
    splits, facts = task.load(str(write_notes(tmp_path / "notes.csv", rows)), 1.0, 0.2, 0.2, 42)
    assert task.labels == ["syncope", "cough", "rash"] and facts["rows"]["of a rarer label"] == 3
    assert all(note.text.startswith(task.labels[note.label]) for notes in splits.values() for note in notes)


def test_balance_keeps_as_many_of_each_class(small):
    splits, facts = load(small[0], balance=True)
    notes = sum(splits.values(), [])
    sizes = np.bincount([note.label for note in notes])
    assert len(set(sizes)) == 1 and facts["rows"]["removed by --balance"] > 0
    again = balance([Note(str(i), "", "", i % 3 // 2) for i in range(30)], seed=1)
    assert sorted(np.bincount([note.label for note in again])) == [10, 10]


def test_class_weights_are_inverse_frequencies(small):
    task = Symptoms(class_weights=True)
    _, facts = task.load(str(small[0]), 1.0, 0.2, 0.2, 42)
    counts = np.array(list(facts["splits"]["train"].values()))
    assert np.allclose(task.weights.numpy() * counts, counts.sum() / len(counts))
