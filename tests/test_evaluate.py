"""evaluate.py: other labelled files, labels that the run does not know, its own training notes; the keys."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
import yaml

import benchmark
import evaluate
import predict
import train
from conftest import OTHER_TASKS, read_csv, run_words, write_notes
from data import SPLITS, Note
from files import read_json
from run import checkpoint
from run.card import write_latency
from run.results import snake_case
from run.seen import KEYS, learnt_from, salted_keys, training_keys
from tasks import TASKS
from tasks.symptoms import Symptoms
from tasks.trials import Trials


def score(run, data, out, capsys, *words):
    """(eval_metrics.json, what was printed) of a call of evaluate.py."""
    capsys.readouterr()
    evaluate.main([str(word) for word in (run, "--data", data, "--out", out, *words)])
    return read_json(out / "eval_metrics.json"), capsys.readouterr().out


@pytest.mark.parametrize("task", OTHER_TASKS)
def test_a_test_file_gets_the_scores_that_its_run_printed(task, demos, tmp_path, capsys):
    data = demos[task][0]
    words = run_words(demos, task, tmp_path / "run", "--epochs 1 --test", data)
    if task in ("trials", "mlm"):  # or nothing is left to train on
        table = read_csv(data)[:100]
        rows = [list(row.values()) for row in table]
        words[words.index("--test") + 1] = str(
            write_notes(tmp_path / data.name, [*rows, *rows[50:52]], table[0])
        )
    train.main(words)
    run = checkpoint.load(tmp_path / "run" / "base").facts
    found, _ = score(tmp_path / "run/base", words[words.index("--test") + 1], tmp_path / "out", capsys)
    assert found["eval_samples"] == run["data"]["sizes"]["test"]
    for name, value in run["test"]["overall"].items():
        near = 1e-3 if name.startswith("AU") else 2e-5  # rounding may exchange two neighbours' ranks
        assert found[f"eval_{snake_case(name)}"] == pytest.approx(value, abs=near), name
    mine = read_json(tmp_path / "run/base/eval_metrics.json")
    assert mine["eval_loss"] == run["test"]["overall"]["Loss"] and mine.keys() == found.keys() - {
        "without_training_notes"
    }
    cls = TASKS[task]
    ours, theirs = (
        read_csv(out / cls.overall_csv.format("base"))[-1] for out in (tmp_path / "out", tmp_path / "run")
    )
    assert ours.keys() == theirs.keys() and ours["Split"] == "all" and theirs["Split"] == "test"
    if cls.per_label:
        names = [
            read_csv(out / cls.per_label_csv.format("base")) for out in (tmp_path / "out", tmp_path / "run")
        ]
        assert [row[cls.label_column] for row in names[0]] == [row[cls.label_column] for row in names[1]]


@pytest.fixture(scope="module")
def symptoms_test(runs, small):
    """Rows (id, subject, text) of the symptom runs' test split and of its training split."""
    run = checkpoint.load(runs / "base")
    given = run.facts["arguments"]
    where = (given[key] for key in ("fraction", "validation", "test", "split_seed"))
    splits, _ = run.task.load(str(small[0]), *where)
    return {split: [(e.row_id, e.subject, e.text) for e in splits[split]] for split in SPLITS}


def test_every_row_is_scored_and_duplicates_and_training_notes_are_named(
    runs, symptoms_test, tmp_path, capsys
):
    test, learnt = symptoms_test["test"], symptoms_test["train"][:7]
    rows = [*test, *((f"again {i}", "x", test[i][2]) for i in range(3)), *learnt]
    rows += [("silent", "x", "nothing of the kind"), ("empty", "x", " ")]
    found, said = score(runs / "base", write_notes(tmp_path / "n.csv", rows), tmp_path / "out", capsys)
    total = len(test) + 10
    assert f"data: {total + 2} rows, 1 without text, 1 without label -> {total} notes" in said
    assert f"note: 3 of {total} notes have the text of an earlier one; all are scored" in said
    assert f"warning: 7 of {total} notes are notes that the run was trained or validated on" in said
    assert f"base: {total:,} notes, accuracy {found['eval_accuracy']:.4f}" in said
    new = found["without_training_notes"]
    assert found["eval_samples"] == total and new["eval_samples"] == total - 7
    answers = {row["row_id"]: row for row in read_csv(tmp_path / "out/predictions.csv")}
    assert len(answers) == total
    right = np.array([row["label"] == row["predicted"] for row in answers.values()])
    assert found["eval_accuracy"] == pytest.approx(right.mean())
    kept = np.array([name not in {row[0] for row in learnt} for name in answers])
    assert new["eval_accuracy"] == pytest.approx(right[kept].mean())
    named = {row["row_id"]: row for row in read_csv(tmp_path / "out/duplicates.csv")}
    assert {name for name, row in named.items() if row["text_of_training_note"]} == {row[0] for row in learnt}
    assert {name: row["text_of_row"] for name, row in named.items() if row["text_of_row"]} == {
        f"again {i}": test[i][0] for i in range(3)
    }
    for name in ("predictions.csv", "duplicates.csv"):
        assert (tmp_path / "out" / name).stat().st_mode & 0o077 == 0
    stored = read_json(runs / "base/run.json")["test"]["overall"]
    again, said = score(runs / "base", write_notes(tmp_path / "t.csv", test), tmp_path / "out", capsys)
    assert again["eval_accuracy"] == pytest.approx(stored["Accuracy"]) and "warning: 7" not in said
    assert again["eval_f1"] == pytest.approx(stored["F1"], abs=1e-6) and "without_training_notes" not in again
    assert read_csv(tmp_path / "out/duplicates.csv") == []  # nothing of the call before is left


def test_many_notes_are_read_again_by_the_chunk(runs, symptoms_test, tmp_path, capsys, monkeypatch):
    path = write_notes(tmp_path / "n.csv", symptoms_test["test"])
    whole, _ = score(runs / "base", path, tmp_path / "a", capsys)
    monkeypatch.setattr("tasks.task.MAX_TEXT", 500)
    monkeypatch.setattr(evaluate, "CHUNK", 7)
    again, _ = score(runs / "base", path, tmp_path / "b", capsys)
    groups = [found.pop("groups")["mention of the label"] for found in (again, whole)]
    assert groups[0].keys() == groups[1].keys()
    for value in groups[0]:
        assert groups[0][value] == pytest.approx(groups[1][value], abs=1e-3)
    assert again == pytest.approx(whole, abs=1e-3) and again["eval_samples"] > 14
    ours, theirs = (read_csv(tmp_path / out / "predictions.csv") for out in "ab")
    assert [row["row_id"] for row in ours] == [row["row_id"] for row in theirs]


def test_unknown_labels_are_left_out_counted_and_named(trained, tmp_path, capsys, refuses):
    run = trained["trials"] / "base"
    known = checkpoint.load(run).task.labels[0]
    secret = "the patient called Jane Doe was here on Monday"
    rows = [(i, f"text {i}", known) for i in range(20)] + [
        (20, "x", "Flu"),
        (21, "y", "Flu"),
        (22, "z", secret),
        (23, "q", "Jane Doe"),
    ]
    data = write_notes(tmp_path / "n.csv", rows, ("ROW_ID", "context", "label"))
    found, said = score(run, data, tmp_path / "out", capsys)
    assert "data: 24 rows, 4 with a label that the run does not know -> 20 texts" in said
    assert "note: 4 labels that the run does not know are left out: Flu (2) and 2 that look like text" in said
    assert found["eval_samples"] == 20 and secret not in said and "Jane" not in said
    header = ("ROW_ID", "context", "Reason")
    other = write_notes(tmp_path / "m.csv", [(i, f"t {i}", f"Jane {i}") for i in range(9)], header)
    line = refuses(evaluate.main, [run, "--data", other, "--label-column", "reason", "--out", tmp_path / "x"])
    assert "none of its 9 rows has a label of the run's" in line and "Jane" not in line
    assert not (tmp_path / "x/eval_metrics.json").exists()
    for out in (run, run.parent):
        assert "holds the run's own scores" in refuses(evaluate.main, [run, "--data", data, "--out", out])
    assert "holds --data, which could be" in refuses(
        evaluate.main, [run, "--data", data, "--out", data.parent]
    )
    mixed = write_notes(
        tmp_path / "o.csv", [*rows[:9], *((i, f"t {i}", f"Jane {i}") for i in range(9))], header
    )
    _, said = score(run, mixed, tmp_path / "out", capsys, "--label-column", "Reason")
    assert "9 that look like text" in said and "Jane" not in said
    for flag in ("--label-column", "--subgroups"):
        assert f"{flag}: a run of ner has no such flag" in refuses(
            evaluate.main, [trained["ner"] / "base", "--data", data, flag, "a"]
        )
    tags = tmp_path / "t.tsv"
    tags.write_text("a\tB-q\nb\tO\n", encoding="utf-8")
    call = [trained["ner"] / "base", "--data", tags, "--out", tmp_path / "none"]
    assert "none of its 1 labels is one of the run's" in refuses(evaluate.main, call)


def test_an_evaluation_takes_the_place_of_an_earlier_one(trained, runs, small, demos, tmp_path, capsys):
    out = tmp_path / "out"
    score(runs / "base", small[0], out, capsys)
    before = {path.name for path in out.iterdir()}
    score(trained["ner"] / "base", demos["ner"][0], out, capsys)
    after = {path.name for path in out.iterdir()}
    assert (
        not after & {name for name in before if name.endswith("_metrics.csv")} and "predictions.csv" in after
    )


def test_of_sets_and_tags_and_the_lexicon_what_is_known_is_scored(tmp_path):
    task = Trials(label_separator=";")
    task.labels = ["a", "b"]
    rows = [(1, "w", "a;z"), (2, "x", "z;y"), (3, "y", ""), (4, "z", "b"), (5, "z", "a")]
    notes = write_notes(tmp_path / "n.csv", rows, ("ROW_ID", "context", "label"))
    counts = evaluate.Counter({"rows": 0})
    examples, unknown = task.read_to_score(str(notes), counts)
    assert [(e.row_id, e.label) for e in examples] == [("1", (0,)), ("3", ()), ("4", (1,)), ("5", (0,))]
    assert unknown == {"z": 2, "y": 1} and counts["with a label that the run does not know"] == 1
    task = Trials(multi_label=True)
    task.labels = ["a", "b"]
    pairs = write_notes(tmp_path / "m.csv", [(1, "z", "a"), (2, "z", "b")], ("ROW_ID", "context", "label"))
    assert [e.label for e in task.read_to_score(str(pairs), counts)[0]] == [(0, 1)]  # rows that are one set

    task = Symptoms(top_k=2)
    task.labels = ["rash", "fever"]
    words = ["a rash", "cough and fever", "fever", "nothing", "vomiting"]
    notes = write_notes(tmp_path / "s.csv", [(i, i, text) for i, text in enumerate(words)])
    examples, unknown = task.read_to_score(str(notes), counts)
    assert [(e.row_id, e.label) for e in examples] == [("0", 0), ("1", 1), ("2", 1)] and unknown == {
        "vomiting": 1
    }

    task = TASKS["ner"]()
    task.labels = ["O", "B-x", "I-x"]
    (tmp_path / "t.tsv").write_text("a\tB-x\nb\tI-x\nc\tB-q\nd\tI-q\n\ne\tO\n")
    examples, unknown = task.read_to_score(str(tmp_path / "t.tsv"), counts)
    assert [e.label for e in examples] == [[1, 2, 0, 0], [0]] and unknown == {"q": 1}


def test_an_official_test_file_is_scored_row_for_row(demos, tmp_path, capsys):
    texts = [(f"text {i % 60}", "ab"[i % 2]) for i in range(66)]
    train_file = write_notes(tmp_path / "train.csv", texts, ("context", "label"))
    own = [*texts[:2], *(("test 1", "a"), ("test 1", "a"), ("test 1", "b"), ("test 2", "b"), (" ", "a"))]
    test_file = write_notes(tmp_path / "test.csv", own, ("context", "label"))
    where = {"trials": (train_file, demos["trials"][1])}
    train.main(run_words(where, "trials", tmp_path / "out", "--epochs 1 --test", test_file))
    counts = (
        "data: 73 rows, 1 without text, 2 duplicates in the test file, kept, "
        "2 also in the test or validation file, left out, 6 exact duplicates -> 64 texts"
    )
    said = capsys.readouterr().out
    assert counts in said and 64 == 73 - 1 - 6 - 2
    assert re.search(r"\n  test: 6 texts, 3 a, 3 b\n", said) and "base: test, 6 texts" in said
    assert len(read_csv(tmp_path / "out/base/predictions.csv")) == 6


# --- the keys of training notes


def test_keys_name_the_runs_own_notes_and_are_the_owners_alone(runs, symptoms_test, tmp_path):
    path = runs / "base" / KEYS
    assert path.stat().st_mode & 0o077 == 0
    notes = [Note(*row) for split in SPLITS for row in symptoms_test[split]]
    found, sizes = learnt_from(runs / "base", notes), {s: len(rows) for s, rows in symptoms_test.items()}
    assert found.sum() == sizes["train"] + sizes["validation"] and not found[-sizes["test"] :].any()
    one, again, other = (training_keys({"train": notes, "validation": []}, s, 1)[KEYS] for s in "aab")
    assert all(one[name].equal(again[name]) for name in one)
    assert len(one["keys"]) == len(notes) and not set(one["keys"].tolist()) & set(other["keys"].tolist())
    assert salted_keys([], b"12345678").shape == (0,)


def test_keys_that_are_missing_or_damaged(runs, symptoms_test, tmp_path, capsys, refuses):
    run = tmp_path / "base"
    run.mkdir()
    for path in (runs / "base").iterdir():
        os.link(path, run / path.name)
    data = write_notes(tmp_path / "n.csv", symptoms_test["train"][:9])
    (run / KEYS).unlink()
    found, said = score(run, data, tmp_path / "out", capsys)
    assert f"note: the run has no {KEYS}, so its training notes are not looked for" in said
    checkpoint.write_tensors(run / KEYS, {"keys": torch.zeros(3), "salt": torch.zeros(8)})
    line = refuses(evaluate.main, [run, "--data", data, "--out", tmp_path / "out"])
    assert f"{KEYS}: holds no keys of notes" in line


# --- what a run directory says of itself


@pytest.mark.parametrize("task", (*OTHER_TASKS, "symptoms"))
def test_every_run_has_a_card_that_is_true(task, trained, runs):
    directory = (runs if task == "symptoms" else trained[task]) / "base"
    facts, card = read_json(directory / "run.json"), (directory / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    head = yaml.safe_load(front)
    assert {"language", "license", "library_name", "tags", "pipeline_tag", "metrics"} <= head.keys()
    assert task in head["tags"] and head["library_name"] == "transformers" and "base_model" not in head
    assert f"# base: {task}\n" in body and f"{facts['sizes']['bytes']:,} bytes" in body
    for score_name, value in facts["test"]["overall"].items():
        if score_name != "Loss":
            assert f"| {value:.4f}" in body, score_name
    assert all(f"{size:,} {split}" in body for split, size in facts["data"]["sizes"].items())
    assert ("DEMONSTRATION" in body) == facts["demonstration"] and "must not be published" in body
    assert ("names none of these words still gets one" in body) == (task == "symptoms")
    assert facts["finished"] not in card and str(directory.parent) not in card
    metrics = json.loads((directory / "eval_metrics.json").read_text())
    assert ("eval_ece_scaled" in metrics) == (task != "mlm")


def test_the_card_of_a_compressed_run_says_that_transformers_cannot_load_it(runs):
    card = (runs / "quantization" / "README.md").read_text()
    assert "library_name: pytorch" in card and "transformers cannot" in card
    assert "from the run base" in card


def test_benchmark_writes_the_latency_into_the_card(runs, tmp_path):
    run = shutil.copytree(runs / "base", tmp_path / "base")
    before = (run / "README.md").read_text()
    assert "\nLatency: not measured" in before
    for _ in range(2):  # what was written is replaced
        benchmark.main([str(tmp_path), "--rounds", "2", "--length", "16", "--batch-size", "2"])
        [row], card = read_csv(tmp_path / "benchmark.csv"), (run / "README.md").read_text()
        line = next(line for line in card.splitlines() if line.startswith("Latency: "))
        assert f"16 tokens {float(row['p50_ms']):.1f} ms" in line and row["torch"] in line
        assert [a for a in card.splitlines() if a != line] == [
            b for b in before.splitlines() if not b.startswith("Latency: ")
        ]
    write_latency(run, {**row, "p50_ms": 2.0, "p95_ms": 3.0, "batch": 2, "notes_per_s": 9.0}, "words")
    assert "\nLatency: one row of 16 words 2.0 ms" in (run / "README.md").read_text()
    (run / "README.md").write_text("mine")
    benchmark.main([str(tmp_path), "--rounds", "2", "--length", "16", "--batch-size", "2"])
    assert (run / "README.md").read_text() == "mine"


# --- calibration and vectors


@pytest.mark.parametrize("task", ("symptoms", "trials", "readmission"))
def test_calibrated_probabilities_keep_the_answers(task, trained, runs, small, demos, tmp_path, refuses):
    run = (runs if task == "symptoms" else trained[task]) / "base"
    data = small[0] if task == "symptoms" else demos[task][0]
    words = [str(run), str(data), "--text-column", "context" if task == "trials" else "TEXT"]
    predict.main([*words, "--out", str(tmp_path / "plain.csv")])
    predict.main([*words, "--calibrated", "--out", str(tmp_path / "scaled.csv")])
    plain, scaled = (read_csv(tmp_path / f"{name}.csv") for name in ("plain", "scaled"))
    assert [row["predicted"] for row in plain] == [row["predicted"] for row in scaled]
    temperature = checkpoint.load(run).facts["task"]["temperature"]
    ours, theirs = (np.array([list(r.values())[2:] for r in rows], float) for rows in (plain, scaled))
    expected = ours ** (1 / temperature)
    assert np.allclose(theirs, expected / expected.sum(1, keepdims=True), atol=1e-4)
    assert abs(temperature - 1) > 1e-3 and np.abs(theirs - ours).max() > 1e-4
    line = refuses(predict.main, [trained["mlm"] / "base", small[0], "--calibrated"])
    assert "has no temperature" in line


def test_sets_are_scaled_by_the_label_and_keep_their_thresholds():
    task = Trials(multi_label=True)
    task.labels, task.temperature, task.calibrated = ["a", "b"], 2.0, True
    said = np.array([0.31, 0.05])
    names, *shown = task.record(said)
    assert names == "a"  # by the threshold of 0.3, on the probability before scaling
    odds = (said / (1 - said)) ** 0.5
    assert np.allclose(np.array(shown, float), odds / (1 + odds), atol=1e-6)


@pytest.mark.parametrize("task", ("symptoms", "readmission", "ner", "mlm"))
def test_embeddings_are_the_last_layers_first_vectors(task, trained, runs, small, tmp_path, refuses):
    run_directory = (runs if task == "symptoms" else trained[task]) / "base"
    notes = [(i, i, text) for i, text in enumerate(["low fever and cough", " ", "pain " * 150, "rash"])]
    data = write_notes(tmp_path / "notes.csv", notes)
    predict.main([str(run_directory), str(data), "--embeddings", str(tmp_path / "v.npy")])
    vectors = np.load(tmp_path / "v.npy", allow_pickle=False)
    assert [row["row_id"] for row in read_csv(tmp_path / "v.ids.csv")] == ["0", "2", "3"]
    assert vectors.shape == (3, 32) and vectors.dtype == np.float32
    for path in (tmp_path / "v.npy", tmp_path / "v.ids.csv"):
        assert path.stat().st_mode & 0o077 == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.csv", "v.ids.csv", "v.npy"]
    run = checkpoint.load(run_directory)
    ids = torch.tensor([run.tokenizer("low fever and cough")["input_ids"]])
    with torch.inference_mode():
        hidden = run.model.base_model(ids, attention_mask=torch.ones_like(ids))[0]
    assert np.allclose(vectors[0], hidden[0, 0], atol=1e-4)
    if task == "readmission":  # read in windows: the mean of theirs
        rows = run.task.encode([run.task.example("2", notes[2][2])], run.tokenizer, 64, progress=False)
        each = run.task.cls_vectors(run.model, rows, run.tokenizer.pad_token_id)
        assert len(each) > 1 and np.allclose(vectors[1], each.mean(0), atol=1e-4)
    line = refuses(predict.main, [run_directory, data, "--embeddings", tmp_path / "v.bin"])
    assert "names an .npy file" in line


def test_vectors_by_the_chunk_are_the_same_and_spare_the_notes(runs, small, tmp_path, refuses, monkeypatch):
    words = [str(runs / "base"), str(small[0]), "--embeddings"]
    predict.main([*words, str(tmp_path / "a.npy")])
    original = predict.answer_file
    monkeypatch.setattr(predict, "answer_file", lambda *given: original(*given[:3], 50, *given[4:]))
    predict.main([*words, str(tmp_path / "b.npy")])
    assert np.allclose(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"), atol=1e-5)
    assert (tmp_path / "a.ids.csv").read_bytes() == (tmp_path / "b.ids.csv").read_bytes()
    notes = write_notes(tmp_path / "n.ids.csv", [(1, 1, "fever")])
    line = refuses(predict.main, [runs / "base", notes, "--embeddings", tmp_path / "n.npy"])
    assert "is the file of notes itself" in line and "fever" in notes.read_text()
