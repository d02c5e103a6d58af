"""Symptom classification: the label's rule, and which notes and labels are kept."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from transformers import AutoTokenizer

import predict
import report
import train
from cli import BadInput
from conftest import read_csv, write_notes
from data import SPLITS, Note, balance, fingerprint
from run.results import print_data
from tasks.symptoms import LEXICON, SYMPTOMS, Symptoms, first_match, hide

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


def labels_and_ids(path, tokenizer, reverse=False, **options):
    """(facts, fingerprint, {split: token ids of its notes}, examples) as a run reads them."""
    task = Symptoms(**options)
    splits, facts = task.load(str(path), 1.0, 0.2, 0.2, 42)
    ids = {}
    for split, notes in splits.items():
        encoded = task.encode(notes[::-1] if reverse else notes, tokenizer, 32, progress=False)
        rows = np.split(encoded.ids, encoded.starts[1:-1])
        ids[split] = [row.tolist() for row in (rows[::-1] if reverse else rows)]
    return facts, fingerprint(splits), ids, splits


@pytest.mark.parametrize("reverse", (False, True))
@pytest.mark.parametrize("held", (0, 9000))
def test_notes_read_again_are_the_same_notes(small, monkeypatch, held, reverse):
    tokenizer = AutoTokenizer.from_pretrained(small[1])
    before = labels_and_ids(small[0], tokenizer)
    monkeypatch.setattr("tasks.task.MAX_TEXT", held)
    after = labels_and_ids(small[0], tokenizer, reverse)
    assert before[:3] == after[:3]
    kept = [note.text is not None for split in SPLITS for note in after[3][split]]
    assert any(kept) == (held > 0) and not all(kept)


def test_a_file_that_changes_between_label_and_text_is_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.task.MAX_TEXT", 0)
    path, task = tmp_path / "notes.csv", Symptoms()
    content = small[0].read_bytes()
    for changed in (content.replace(b"e", b"a"), content[: len(content) // 2]):
        path.write_bytes(content)
        splits, _ = task.load(str(path), 1.0, 0.2, 0.2, 42)
        path.write_bytes(changed[: changed.rindex(b"\n1") + 1])
        with pytest.raises(BadInput, match="changed while it was read"):
            list(task.texts(splits["train"]))


def test_lower_case_of_the_first_characters_is_that_of_the_whole_text():
    for text in ("PAIN " * 300, "İ" * 2000, "Σ" * 1500, "a" * 999 + "ΣΣ", "a" * 999 + "É no"):
        assert Symptoms().prepare_text(text) == text.lower()[:1000]


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


# --- hidden labels


def test_every_symptom_is_hidden_as_one_mask_whatever_its_length():
    every = (*LEXICON, "asthma attack")
    text = "fever, back pain and shortness of breath; painful, no asthma attack, pyrexia, feverish"
    assert hide(text, every, "[MASK]") == ("[MASK], [MASK] and [MASK]; painful, no [MASK], pyrexia, feverish")
    for symptom in every:
        assert hide(f"a {symptom}. b", every, "#") == "a #. b"


@pytest.mark.parametrize("held", (10**8, 0))
def test_hidden_symptoms_do_not_reach_the_model_and_change_no_split(small, monkeypatch, held):
    monkeypatch.setattr("tasks.task.MAX_TEXT", held)
    tokenizer = AutoTokenizer.from_pretrained(small[1])
    plain, hidden = (labels_and_ids(small[0], tokenizer, mask_labels=hidden) for hidden in (False, True))
    assert plain[:2] == hidden[:2]
    words = {tokenizer.convert_tokens_to_ids(word) for word in SYMPTOMS} - {tokenizer.unk_token_id}
    seen = [{id for row in rows for id in row} for _, _, ids, _ in (plain, hidden) for rows in ids.values()]
    assert len(words) == 5 and all(words <= ids for ids in seen[:3])
    # the demonstration's vocabulary has no "painless": its first piece is still "pain"
    assert all(tokenizer.mask_token_id in ids and tokenizer.mask_token_id not in seen[0] for ids in seen[3:])
    task = Symptoms(symptoms="asthma attack,pain", mask_labels=True)
    again = Symptoms.from_facts(json.loads(json.dumps(task.describe())))
    example = again.example("1", "Asthma attack with PAIN and nausea.")
    ids = again.encode([example], tokenizer, 32, progress=False).ids
    masked = tokenizer("[MASK] with [MASK] and [MASK].")["input_ids"]
    assert ids.tolist() == masked and tokenizer.mask_token_id in masked
    tokenizer.mask_token = None
    ids = again.encode([example], tokenizer, 32, progress=False).ids
    assert ids.tolist() == tokenizer("symptom with symptom and symptom.")["input_ids"]


def test_a_file_of_its_own_is_neither_balanced_nor_sampled(tmp_path, capsys):
    named = [(i, i, f"{'pain' if i % 3 else 'cough'} number {i}") for i in range(90)]
    data = write_notes(tmp_path / "notes.csv", [*named, *((i, i, f"visit {i}") for i in range(90, 160))])
    official = [(i, i, f"{'pain' if i % 10 else 'cough'} case {i}") for i in range(40)]
    official += [(i, i, f"call {i}") for i in range(40, 55)]
    test = str(write_notes(tmp_path / "test.csv", official))
    ward = [(i, i, f"{'cough' if i % 5 else 'pain'} ward {i}") for i in range(25)]
    for none in (False, True):
        for validation in (0.2, str(write_notes(tmp_path / "v.csv", ward))):
            task = Symptoms(symptoms="cough,pain", balance=True, with_none=none)
            splits, facts = task.load(str(data), 1.0, validation, test, 42)
            scored = official if none else official[:40]
            assert [note.row_id for note in splits["test"]] == [str(row[0]) for row in scored]
            dealt = splits["train"] + ([] if validation != 0.2 else splits["validation"])
            assert Counter(note.label for note in dealt) == dict.fromkeys(range(3 if none else 2), 30)
            assert facts["rows"]["removed by --balance"] == (45 - 30 + 30 if none else 30)
            assert facts["notes"] == sum(map(len, splits.values()))
            own = len(scored) + (0 if validation == 0.2 else len(splits["validation"]))
            assert facts["rows"]["of a test or validation file, none removed"] == own
    print_data(task, facts)
    assert f"{own} of a test or validation file, none removed" in capsys.readouterr().out


# --- a class for notes that name none


def test_none_is_sampled_to_the_mean_of_the_other_classes(tmp_path):
    named = [(i, i, f"{'pain' if i % 3 else 'cough'} number {i}") for i in range(60)]
    path = write_notes(tmp_path / "notes.csv", [*named, *((i, i, f"visit {i}") for i in range(60, 160))])
    task = Symptoms(symptoms="cough,pain", with_none=True)
    splits, facts = task.load(str(path), 1.0, 0.2, 0.2, 42)
    notes = sum(splits.values(), [])
    assert task.labels == ["cough", "pain", "none"]
    assert np.bincount([note.label for note in notes]).tolist() == [20, 40, 30]
    assert all((note.label == 2) == note.text.startswith("visit") for note in notes)
    assert facts["rows"]["that name no symptom, left out"] == 70 and not facts["rows"]["without label"]
    plain = load(path, symptoms="cough,pain")[0]
    assert {note.row_id for note in sum(plain.values(), [])} < {note.row_id for note in notes}
    again = Symptoms.from_facts(json.loads(json.dumps(task.describe())))
    assert fingerprint(again.load(str(path), 1.0, 0.2, 0.2, 42)[0]) == fingerprint(splits)
    other = Symptoms(symptoms="cough,pain", with_none=True).load(str(path), 1.0, 0.2, 0.2, 43)[0]
    assert {n.row_id for n in sum(other.values(), [])} != {n.row_id for n in notes}
    with pytest.raises(BadInput, match="--with-none has a class none of its own"):
        Symptoms(symptoms="none,pain", with_none=True)


def test_with_top_k_none_names_none_of_those_k(tmp_path):
    texts = {"headache and rash": 3, "rash": 18, "cough": 12, "pain": 12, "visit": 9}
    rows = [(f"{text}{i}", f"{text}{i}", f"{text} {i}") for text, n in texts.items() for i in range(n)]
    task, path = Symptoms(top_k=2, with_none=True), write_notes(tmp_path / "notes.csv", rows)
    splits, facts = task.load(str(path), 1.0, 0.2, 0.2, 42)
    assert task.labels == ["rash", "cough", "none"]
    assert facts["rows"]["of a rarer label"] == 3  # they name rash, but a rarer symptom first
    none = [note.text for note in sum(splits.values(), []) if note.label == 2]
    assert len(none) == 15 and {text.split()[0] for text in none} == {"pain", "visit"}
    assert facts["rows"]["that name no symptom, left out"] == 6


# --- label sets


def test_sets_hold_all_symptoms_of_a_note(tmp_path):
    texts = ("cough", "cough and pain", "pain", "fever, pain, cough", "a visit", "nausea")
    rows = [(i, i, f"{texts[i % 6]} {i}") for i in range(240)]
    path = str(write_notes(tmp_path / "notes.csv", rows))
    expected = {"cough": (0,), "cough and pain": (0, 1), "pain": (1,), "fever, pain, cough": (0, 1, 2)}
    for none in (False, True):
        task = Symptoms(symptoms="cough,pain,fever", multi_label=True, with_none=none)
        splits, facts = task.load(path, 1.0, 0.2, 0.2, 42)
        notes = sum(splits.values(), [])
        for note in notes:
            assert note.label == expected.get(note.text.rstrip("0123456789 "), ())
        counts = [sum(split[name] for split in facts["splits"].values()) for name in task.labels]
        assert task.labels == ["cough", "pain", "fever"] and counts == [120, 120, 40]
        assert len(notes) - 160 == (80 if none else 0)  # 93 would be the mean of the labels
        assert task.targets(splits["test"]).shape == (len(splits["test"]), 3)
    task = Symptoms(top_k=2, multi_label=True)
    _, facts = task.load(path, 1.0, 0.2, 0.2, 42)
    assert task.labels == ["cough", "pain"] and facts["rows"]["of a rarer label"] == 40
    with pytest.raises(BadInput, match="not with --multi-label"):
        Symptoms(multi_label=True, balance=True)


def test_a_run_with_everything_predicts_what_it_was_scored_on(small, arguments, tmp_path, capsys):
    flags = "--multi-label --with-none --threshold auto --mask-labels --epochs 1"
    train.main([*arguments, *flags.split(), "--out", str(tmp_path)])
    assert "micro avg" in capsys.readouterr().out
    rows = {row["row_id"]: row for row in read_csv(tmp_path / "base" / "predictions.csv")}
    predict.main([str(tmp_path / "base"), str(small[0]), "--out", str(tmp_path / "p.csv")])
    again = {row["row_id"]: row for row in read_csv(tmp_path / "p.csv")}
    assert len(rows) > 50
    for row_id, row in rows.items():
        assert again[row_id]["predicted"] == row["predicted"]
        assert float(again[row_id]["p_pain"]) == pytest.approx(float(row["p_pain"]), abs=2e-6)
    report.main([str(tmp_path)])
    text = (tmp_path / "results.md").read_text()
    assert "micro-F1" in text and "paper" not in text


@pytest.mark.parametrize(
    "options, said, unsaid",
    [
        ({}, ("the first of the words above", "a negated word does", "still gets one"), ("hidden",)),
        ({"with_none": True}, ("the first of the words above",), ("still gets one",)),
        ({"top_k": 5}, ("the first of 40 words that a note names, where",), ("of the words above",)),
        ({"multi_label": True}, ("silver: the words above",), ("the first of", "still gets one")),
        ({"negation": "drop"}, ("by a rule that misses some",), ("a negated word does",)),
        ({"mask_labels": True}, ("hidden from the model",), ("it finds words",)),
    ],
)
def test_the_limits_are_those_of_its_own_rule(options, said, unsaid):
    limits = " ".join(Symptoms(**options).limits())
    assert all(words in limits for words in said) and not any(words in limits for words in unsaid)
