"""Early readmission: the label's rule, the tables, chunks, the logistic head."""

import random
import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForSequenceClassification

import train
from conftest import read_csv, run_words, splits_of, write_notes
from data import SPLITS, Table, collate
from files import read_json, write_json
from run import checkpoint, inference
from tasks import demo
from tasks.admissions import read_admissions, readmitted
from tasks.readmission import Readmission, combine_chunks


def stay(number, begin, days, kind="EMERGENCY", died=False):
    start = datetime(2150, 1, 1) + timedelta(days=begin)
    return {
        "id": str(number),
        "begin": start,
        "end": start + timedelta(days=days),
        "kind": kind,
        "died": died,
    }


def test_readmission_labels_follow_the_literature():
    stays = [stay(1, 0, 5), stay(2, 7, 2, "ELECTIVE"), stay(3, 12, 1), stay(4, 14.5, 3, died=True)]
    labels, counts = readmitted(stays, 3)
    assert (
        labels == {"1": 0, "2": 1, "3": 1}
        and counts["planned readmissions looked past"] == 1
        and counts["died in hospital"] == 1
    )
    assert readmitted(stays, 30)[0] == {
        "1": 1,
        "2": 1,
        "3": 1,
    }  # past the planned stay, the unplanned one counts
    labels, counts = readmitted([stay(1, 0, 5, "NEWBORN"), stay(2, 6, 4), stay(3, 8, 9), stay(4, 20, 1)], 3)
    assert (
        labels == {"2": 0, "3": 1, "4": 0}
        and counts["newborn"] == 1
        and counts["overlapping next stays looked past"] == 1
    )
    assert readmitted([stay(1, 0, 1), stay(2, 4, 1)], 3)[0]["1"] == 1  # exactly three days count
    assert readmitted([stay(1, 0, 1), stay(2, 4.01, 1)], 3)[0]["1"] == 0


def readmitted_slowly(stays, days):
    """The rule of `readmitted`, written out stay by stay."""
    labels, counts = {}, Counter()
    for i, this in enumerate(stays):
        if this["kind"] == "NEWBORN" or this["died"]:
            counts["newborn" if this["kind"] == "NEWBORN" else "died in hospital"] += 1
            continue
        later = [other for other in stays[i + 1 :] if other["kind"] != "NEWBORN"]
        after = [other for other in later if other["begin"] >= this["end"]]
        soon = [other for other in after if other["begin"] - this["end"] <= timedelta(days=days)]
        planned = sum(other["kind"] == "ELECTIVE" for other in soon)
        counts["overlapping next stays looked past"] += len(later) - len(after)
        counts["planned readmissions looked past"] += planned
        labels[this["id"]] = int(len(soon) > planned)
    return labels, counts


@pytest.mark.parametrize("seed", range(5))
def test_readmission_labels_are_those_of_the_rule_written_out(seed):
    rng = random.Random(seed)
    for _ in range(100):
        begins = sorted(
            rng.choice((rng.randint(0, 40), 30 * rng.random())) for _ in range(rng.randint(0, 20))
        )
        kinds = ("EMERGENCY", "ELECTIVE", "NEWBORN", "URGENT")
        stays = [
            stay(i, begin, rng.choice((0, 1, 2.5, 30)), rng.choice(kinds), rng.random() < 0.1)
            for i, begin in enumerate(begins)
        ]
        days = rng.choice((0.5, 3, 30, 36500))
        assert readmitted(stays, days) == readmitted_slowly(stays, days)


def test_a_subject_with_very_many_stays_takes_no_time():
    began = time.process_time()
    assert sum(readmitted([stay(i, i, 0.5) for i in range(20_000)], 3)[0].values()) == 19_999
    assert time.process_time() - began < 5  # comparing each with each took minutes


def test_odd_cells_of_the_tables_are_read(tmp_path):
    ready = write_notes(tmp_path / "r.csv", [("a", "\x1c1"), ("b", "0\u2028")], ("TEXT", "Label"))
    assert [note.label for note in Readmission().read(str(ready), lambda row: True, Counter())] == [1, 0]
    rows = [(7, 1, "9999-12-30", "9999-12-31", "URGENT"), (7, 2, "9999-12-31", "9999-12-31", "URGENT")]
    header = ("SUBJECT_ID", "HADM_ID", "ADMITTIME", "DISCHTIME", "ADMISSION_TYPE")
    table = Table(write_notes(tmp_path / "ADMISSIONS.csv", rows, header), progress=False)
    assert read_admissions(table, 3)[0] == {"1": 1, "2": 0}


def test_mimic_tables_are_joined_and_every_row_is_accounted_for(tmp_path):
    rows = [
        f"{i},{10 + i // 3},{100 + i},2150-0{1 + i % 3}-0{1 + i % 7} 10:00:00,"
        f"2150-0{1 + i % 3}-0{2 + i % 7} 10:00:00,,EMERGENCY,0"
        for i in range(60)
    ]
    rows[1] = rows[1].replace("2150-02-0", "2150-01-0")  # back soon after the first
    header = "row_id,subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,hospital_expire_flag\n"
    (tmp_path / "ADMISSIONS.csv").write_text(header + "\n".join(rows) + "\n")
    notes = ["ROW_ID,SUBJECT_ID,HADM_ID,CATEGORY,TEXT"] + [
        f"{i},{10 + i // 3},{100 + i},Discharge summary,note {i}" for i in range(59)
    ]
    notes += [
        "90,10,100.0,discharge summary,ADDENDUM",
        "91,10,100,Nursing,x",
        "92,10,,Discharge summary,y",
        "93,10,100,Discharge summary,  ",
    ]
    (tmp_path / "NOTEEVENTS.csv").write_text("\n".join(notes) + "\n")
    task, counts = Readmission(), Counter()
    found = task.read(str(tmp_path / "NOTEEVENTS.csv"), lambda row: True, counts)
    assert len(found) == 59 and found[0].text == "note 0 ADDENDUM" and found[0].subject == "10"
    assert (
        counts["rows"]
        == 63
        == 60
        + counts["of another category"]
        + counts["of no admission in the table"]
        + counts["without text"]
    )
    assert counts["addenda joined"] == 1 and counts["admissions without a note"] == 1


def test_chunk_probabilities_combine_as_huang_wrote():
    p = np.array([0.1, 0.2, 0.9])
    assert combine_chunks(p, "mean", 2.0) == pytest.approx(0.4) and combine_chunks(p, "max", 2.0) == 0.9
    assert combine_chunks(p, "huang", 2.0) == pytest.approx((0.9 + 0.4 * 3 / 2) / (1 + 3 / 2))
    assert combine_chunks(p[:1], "huang", 2.0) == pytest.approx(0.1)


def test_logistic_head_is_scikit_learns_and_patients_stay_together(demos, tmp_path, capsys):
    train.main(run_words(demos, "readmission", tmp_path, "--head", "logistic", "--epochs", "0"))
    assert "[CLS] vectors of" in capsys.readouterr().out
    run = checkpoint.load(tmp_path / "base")
    splits = splits_of(run, demos["readmission"][0])
    subjects = [{note.subject for note in splits[split]} for split in SPLITS]
    assert not (subjects[0] & subjects[1] or subjects[0] & subjects[2] or subjects[1] & subjects[2])
    encoded = {s: run.task.encode(splits[s], run.tokenizer, 64, progress=False) for s in ("train", "test")}
    assert len(encoded["test"].lengths) > len(splits["test"])  # chunks
    x = {s: run.task.cls_vectors(run.model, e, run.tokenizer.pad_token_id) for s, e in encoded.items()}
    mean, scale = x["train"].mean(0), x["train"].std(0)
    c = float(run.facts["head"]["C"])
    fit = LogisticRegression(C=c, max_iter=1000).fit((x["train"] - mean) / scale, encoded["train"].labels)
    theirs = fit.predict_proba((x["test"] - mean) / scale)[:, 1]
    ours = np.array(inference.predict_rows(run.model, run.task, encoded["test"], run.tokenizer.pad_token_id))
    assert np.allclose(ours, theirs, atol=2e-3)  # float32 sums of standardised against raw vectors
    assert np.ptp(ours) > 0.01  # the last layer differs from note to note
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    batch = collate(encoded["test"], np.arange(4), run.tokenizer.pad_token_id)
    layer0 = plain.base_model(
        batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
    ).hidden_states[0][:, 0]
    assert layer0.std(0).max() < 1e-6  # what the reference took is the same for every note


@pytest.mark.parametrize("technique", ["quantization", "bf16"])
def test_a_logistic_head_is_fitted_on_the_compressed_models_vectors(demos, tmp_path, capsys, technique):
    words = ["--head", "logistic", "--epochs", "0"]
    for name in ("base", technique):
        train.main(run_words(demos, "readmission", tmp_path, *words, "--technique", name))
    assert capsys.readouterr().out.count("[CLS] vectors of") == 2
    run, before = checkpoint.load(tmp_path / technique), checkpoint.load(tmp_path / "base")
    head = run.model.classifier
    assert isinstance(head, torch.nn.Linear) and head.weight.dtype == torch.float32
    assert not head.weight.equal(before.model.classifier.weight)
    encoded = run.task.encode(
        splits_of(run, demos["readmission"][0])["train"], run.tokenizer, 64, progress=False
    )
    with inference.reading(run.model, run.task):
        x = run.task.cls_vectors(run.model, encoded, run.tokenizer.pad_token_id)
        ours = np.array(inference.predict_rows(run.model, run.task, encoded, run.tokenizer.pad_token_id))
    mean, scale = x.mean(0), np.maximum(x.std(0), 1e-6)
    fit = LogisticRegression(C=float(run.facts["head"]["C"]), max_iter=1000)
    theirs = fit.fit((x - mean) / scale, encoded.labels).predict_proba((x - mean) / scale)[:, 1]
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9  # the scales of int8 depend on the batch


def test_ready_files_without_patients_split_by_text(tmp_path, capsys):
    rows = [(f"text {i % 50}", i % 50 % 2) for i in range(150)]
    splits, _ = Readmission().load(
        str(write_notes(tmp_path / "ready.csv", rows, ("TEXT", "Label"))), 1.0, 0.2, 0.2, 1
    )
    texts = [{note.text for note in splits[split]} for split in SPLITS]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    assert "the split is by text, not by patient" in capsys.readouterr().out


def test_layer_0_says_the_same_of_every_note(tmp_path):
    _, model = demo.make(tmp_path / "demo", "readmission", notes=400, hidden=32, layers=2)
    path = Path(model) / "config.json"
    write_json(path, {**read_json(path), "num_hidden_layers": 0})
    call = ["--task", "readmission", "--head", "logistic", "--epochs", "0", "--fraction", "0.3"]
    train.main([*call, "--max-length", "48", "--model", str(model), "--out", str(tmp_path / "out")])
    rows = read_csv(tmp_path / "out/base/predictions.csv")
    assert len({row["p_readmitted"] for row in rows}) == 1 < len(rows)
