"""All tasks but symptoms: whole runs with several techniques, files of their own, refused input."""

import io
import json
import sys

import pytest

import benchmark
import compress
import files
import predict
import report
import train
from conftest import OTHER_TASKS, TASK_TECHNIQUES, read_csv, run_words, splits_of, write_notes
from data import SPLITS
from run import arguments, checkpoint, inference
from run.evidence import compare_runs
from tasks import TASKS
from tasks.trials import Trials

# --- whole runs


@pytest.mark.parametrize(
    "task, technique", [(task, technique) for task in OTHER_TASKS for technique in TASK_TECHNIQUES[task]]
)
def test_a_rebuilt_run_of_any_task_scores_as_it_did(trained, demos, task, technique):
    run = checkpoint.load(trained[task] / technique)
    splits = splits_of(run, demos[task][0])
    predictions = inference.predict_examples(run, splits["test"])
    scores = run.task.final_scores(splits["test"], predictions)
    stored = run.facts["test"]["overall"]
    assert stored.pop("Loss") > 0 and stored.keys() == scores.overall.keys()
    for name, value in stored.items():
        assert (scores.overall[name] or 0) == pytest.approx(value or 0, abs=1e-6), name
    found = compare_runs(run.task, {technique: [[trained[task] / technique]]})[technique]  # as a report does
    for name in run.task.headline:
        ends = [found.get(f"{name}_{end}") for end in ("low", "high")]
        assert run.facts["test"]["intervals"].get(name, [None, None]) == pytest.approx(ends, abs=1e-3), name
        assert ends[0] is None or ends[0] <= stored[name] <= ends[1], name
    rows = read_csv(trained[task] / technique / "predictions.csv")
    if task == "mlm":  # whose rows are blocks
        assert len(rows) == len(predictions)
    else:
        assert [row["row_id"] for row in rows] == [example.row_id for example in splits["test"]]


@pytest.mark.parametrize("task", OTHER_TASKS)
def test_no_text_of_any_task_reaches_a_file(trained, demos, task):
    texts = []
    for split in splits_of(checkpoint.load(trained[task] / "base"), demos[task][0]).values():
        texts += [" ".join(e.words) if task == "ner" else e.text for e in split][:40]
    pieces = {
        text[i : i + 25].lower()
        for text in texts
        for i in range(0, max(1, len(text) - 25), 12)
        if len(text) > 25
    }
    assert len(pieces) > 50
    for path in trained[task].rglob("*"):
        readable = path.suffix in (".json", ".csv", ".md", ".txt")
        if readable and path.name not in ("tokenizer.json", "vocab.txt"):
            content = path.read_text().lower()
            assert not [piece for piece in pieces if piece in content], path


@pytest.mark.parametrize("task", OTHER_TASKS)
def test_benchmark_and_report_of_every_task(trained, task):
    out = trained[task]
    benchmark.main([str(out), "--rounds", "2", "--length", "16", "--batch-size", "2"])
    measured = {row["technique"] for row in read_csv(out / "benchmark.csv")}
    assert measured == set(TASK_TECHNIQUES[task])
    report.main([str(out)])
    text = (out / "results.md").read_text()
    assert all(f"| {technique} |" in text for technique in TASK_TECHNIQUES[task])
    assert TASKS[task].published in text
    written = {path.name for path in out.iterdir()}
    assert {"results.csv", "accuracy_latency.png", "learning_curves.png"} <= written
    assert ("calibration.png" in written) == ("## Calibration" in text) == (task != "mlm")
    first = next(iter(checkpoint.load(out / "base").task.headline)).lower()
    for row in read_csv(out / "results.csv"):
        assert float(row[f"{first}_low"]) <= float(row[first]) <= float(row[f"{first}_high"])


def ask(run, text, monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    capsys.readouterr()
    predict.main([str(run), "-", *words])
    return json.loads(capsys.readouterr().out)


def test_predict_answers_in_each_tasks_own_form(trained, demos, tmp_path, monkeypatch, capsys):
    text = "\n  Patient reports irregular periods and low estrogen."
    answer = ask(trained["ner"] / "base", text, monkeypatch, capsys, "--show-text")
    assert answer["spans"]
    for span in answer["spans"]:
        assert span["text"] == text[span["start"] : span["end"]]
        assert 0 < span["confidence"] <= 1 and span["type"] in demo_types()
    assert "text" not in str(ask(trained["ner"] / "base", text, monkeypatch, capsys))
    assert ask(trained["ner"] / "base", "...", monkeypatch, capsys)["spans"] is not None
    text = "Left against medical advice. " * 60
    answer = ask(trained["readmission"] / "quantization", text, monkeypatch, capsys)
    assert answer["predicted"] in ("not readmitted", "readmitted") and 0 < answer["probability"] < 1
    text = "patients with [MASK] and a [MASK] of it"
    answer = ask(trained["mlm"] / "lora", text, monkeypatch, capsys)
    assert len(answer["masks"]) == 2 and all(len(places) == 5 for places in answer["masks"])
    assert ask(trained["mlm"] / "lora", "no mask", monkeypatch, capsys) == {"masks": []}
    answer = ask(trained["mlm"] / "lora", "a b " * 30 + "[MASK]", monkeypatch, capsys)
    assert answer == {"masks": [], "masks beyond the block": 1}
    answer = ask(trained["trials"] / "base", "Slow accrual", monkeypatch, capsys)
    assert answer["predicted"] == max(answer["probabilities"], key=answer["probabilities"].get)
    notes = tmp_path / "notes.csv"
    notes.write_text("ROW_ID,TEXT\n7,irregular periods and low estrogen\n8,\n9,nothing\n")
    monkeypatch.chdir(tmp_path)
    predict.main([str(trained["ner"] / "base"), "notes.csv"])
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["row_id"] for line in lines] == ["7", "9"]
    assert all(set(line) == {"row_id", "spans"} for line in lines)
    predict.main([str(trained["trials"] / "base"), str(demos["trials"][0]), "--out", "t.csv"])
    assert list(read_csv("t.csv")[0])[:2] == ["row_id", "predicted"]


def demo_types():
    return {"Symptoms", "Hormones", "Procedures", "Medications", "Ultrasound"}


def test_the_adapted_encoder_starts_another_task(trained, demos, tmp_path, refuses, capsys):
    pooler = "bert.pooler.dense.bias, bert.pooler.dense.weight, "
    expected = {
        "trials": f"{pooler}classifier.bias, classifier.weight",
        "readmission": f"{pooler}classifier.bias",
        "ner": "classifier.bias, classifier.weight",
    }
    for task, fresh in expected.items():
        flags = f"--model {trained['mlm']}/lora --name adapted-{task} --epochs 1"
        train.main(run_words(demos, task, tmp_path, flags))
        assert f"new: {fresh}" in capsys.readouterr().out
        assert (tmp_path / f"adapted-{task}" / "run.json").exists()
    assert (tmp_path / "classification_report_adapted-trials.csv").exists()
    task = Trials()
    task.labels = ["a", "b", "c"]
    plain, _, fresh = checkpoint.from_pretrained(demos["trials"][1], task)
    other, _, forgotten = checkpoint.from_pretrained(demos["trials"][1], task, fresh_pooler=True)
    assert set(forgotten) - set(fresh) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    same = {
        name: plain.state_dict()[name].equal(tensor)
        for name, tensor in other.state_dict().items()
        if name.startswith("bert.")
    }
    assert not same.pop("bert.pooler.dense.weight") and all(same.values())
    line = refuses(
        train.main, run_words(demos, "trials", tmp_path / "x", "--model", trained["mlm"] / "lowrank")
    )
    assert "its layers are those of lowrank, not plain" in line
    line = refuses(train.main, run_words(demos, "mlm", tmp_path / "x", "--model", trained["mlm"] / "lora"))
    assert "is a finished run; continue it with --start" in line


def test_evaluation_by_steps_stops_by_patience_and_resumes_to_the_same_weights(
    demos, tmp_path, monkeypatch, capsys
):
    words = ["--eval-steps", 5, "--patience", 2, "--epochs", 40, "--lr", 0.02]
    train.main(run_words(demos, "readmission", tmp_path / "a", *words))
    run = files.read_json(tmp_path / "a" / "base" / "run.json")
    history, best = run["history"], run["best_epoch"]
    assert "stopped, 2 validations without a better one" in capsys.readouterr().out
    assert [row["Step"] for row in history][:3] == [5, 10, 15] and history[-1]["Epoch"] < 40
    assert history[-3]["Epoch"] == best
    assert max(row["AUROC"] for row in history) == history[-3]["AUROC"]
    original, calls = train.collate, []

    def breaks(*args):
        calls.append(args)
        if len(calls) == 13:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(train, "collate", breaks)
    with pytest.raises(KeyboardInterrupt):
        train.main(run_words(demos, "readmission", tmp_path / "b", *words, "--save-minutes", 0))
    monkeypatch.setattr(train, "collate", original)
    train.main(run_words(demos, "readmission", tmp_path / "b", *words))
    assert "resuming at epoch 1, step 13" in capsys.readouterr().out
    ours, theirs = (checkpoint.load(tmp_path / d / "base").model.state_dict() for d in "ab")
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_another_head_starts_from_a_run_or_is_refused(trained, demos, tmp_path, refuses, capsys):
    def words(task, out, flags):
        return run_words(demos, task, tmp_path / out, flags)

    train.main(words("readmission", "", f"--start {trained['readmission']}/base --head logistic --epochs 0"))
    assert "new: classifier.bias, classifier.weight" in capsys.readouterr().out
    ours, base = (
        checkpoint.load(tmp_path / "base").model,
        checkpoint.load(trained["readmission"] / "base").model,
    )
    assert ours.bert.encoder.layer[1].output.dense.weight.equal(
        base.bert.encoder.layer[1].output.dense.weight
    )
    train.main(words("ner", "crf", f"--start {trained['ner']}/base --crf --epochs 1"))
    assert "new: crf.start, crf.transitions" in capsys.readouterr().out
    line = refuses(
        train.main, words("ner", "x", f"--teacher {trained['ner']}/base --crf --technique distillation")
    )
    assert "its head is another one" in line
    line = refuses(
        train.main, words("readmission", "x", f"--start {trained['readmission']}/lowrank --head logistic")
    )
    assert "has another head and layers of lowrank" in line
    train.main(words("trials", "kept", "--technique lora --lora-keep --epochs 1"))
    line = refuses(
        train.main, words("trials", "x", f"--technique distillation --teacher {tmp_path}/kept/lora")
    )
    assert "is lora, its layers make no plain student" in line
    train.main(words("trials", "on", f"--start {tmp_path}/kept/lora --epochs 1"))
    kept, went_on = (
        checkpoint.load(tmp_path / d).model.bert.encoder.layer[0].attention.self.query.base.weight
        for d in ("kept/lora", "on/base")
    )
    assert not kept.equal(went_on)
    train.main(words("trials", "kept", "--multi-label --epochs 1"))
    assert "different tasks or labels" in refuses(report.main, [tmp_path / "kept"])


def test_two_processes_split_alike_wherever_the_files_lie(demos, tmp_path):
    for task, (data, _) in demos.items():
        other = tmp_path / task
        other.mkdir()
        for path in data.parent.glob("*.csv"):
            (other / path.name).write_bytes(path.read_bytes())
        (other / data.name).write_bytes(data.read_bytes())
        first, second = (TASKS[task]().load(str(p), 1.0, 0.1, 0.2, 42)[0] for p in (data, other / data.name))
        assert all([e.row_id for e in first[s]] == [e.row_id for e in second[s]] for s in SPLITS)


# --- files of their own that lack a label

LABELS = {  # of each task: flags, files of two labels and of one label, the absent one
    "symptoms": ("--symptoms cough,fever", "cough", "fever"),
    "readmission": ("--label-column label", "0", "1"),
    "trials": ("", "a", "b"),
    "trials, sets": ("--multi-label", "a", "b"),
    "ner": ("", "x", "y"),
}


def labelled_file(path, task, labels, rows=40):
    """A small file in a task's form whose labels take turns."""
    if task == "ner":
        lines = (f"w{path.stem}{i}\tB-{labels[i % len(labels)]}\nv\tO\n" for i in range(rows))
        path.write_text("\n".join(lines))
        return path
    cells = [(i, labels[i % len(labels)]) for i in range(rows)]
    notes = [(i, f"{path.stem}{i}", f"{label} {path.stem} {i}", label) for i, label in cells]
    return write_notes(path, notes, ("ROW_ID", "SUBJECT_ID", "TEXT", "label"))


def words_for(case, tmp_path, demos, *words):
    task = case.split(",")[0]
    model = demos["trials" if task == "symptoms" else task][1]
    flags = LABELS[case][0] if case in LABELS else ""
    return task, run_words(demos | {task: (tmp_path / "train", model)}, task, tmp_path / "out", flags, *words)


@pytest.mark.parametrize("split", ("validation", "test"))
@pytest.mark.parametrize("case", LABELS)
def test_a_file_of_its_own_may_lack_a_label(case, split, demos, tmp_path, capsys):
    _, present, absent = LABELS[case]
    task, words = words_for(case, tmp_path, demos, f"--{split}", tmp_path / "own")
    labelled_file(tmp_path / "train", task, (present, absent), 60)
    labelled_file(tmp_path / "own", task, (present,))
    train.main(words)
    shown = {"0": "not readmitted", "1": "readmitted"}.get(absent, absent)
    line = f"note: {split} file {tmp_path / 'own'} has no {TASKS[task].unit} labelled {shown};"
    assert capsys.readouterr().out.count(line) == 1
    run = files.read_json(tmp_path / "out" / "base" / "run.json")
    assert run["best_epoch"] in (1, 2) and run["data"]["splits"][split][shown] == 0
    if split == "test":
        row = run["test"]["per_label"][shown]
        assert row["Recall"] is None and run["test"]["overall"].get("AUROC") is None
        assert run["test"]["intervals"]


@pytest.mark.parametrize("task", [task for task in TASKS if task != "mlm"])
def test_a_file_of_its_own_with_nothing_to_score_is_refused(task, demos, tmp_path, refuses):
    _, present, absent = LABELS[task]
    _, words = words_for(task, tmp_path, demos, "--test", tmp_path / "own")
    labelled_file(tmp_path / "train", task, (present, absent), 60)
    empty = "\n" if task == "ner" else "ROW_ID,SUBJECT_ID,TEXT,label\n1,1,,\n"
    (tmp_path / "own").write_text(empty)
    line = refuses(train.main, words)
    assert str(tmp_path / "own") in line and ("none left for test" in line or "no sentence" in line)


@pytest.mark.parametrize("case", ("symptoms", "readmission", "trials"))
def test_training_notes_of_one_class_are_refused(case, demos, tmp_path, refuses):
    _, present, absent = LABELS[case]
    own = [tmp_path / "validation", tmp_path / "test"]
    task, words = words_for(case, tmp_path, demos, f"--validation {own[0]} --test {own[1]}")
    for path in own:
        labelled_file(path, task, (present, absent))
    labelled_file(tmp_path / "train", task, (present,), 60)
    line = refuses(train.main, words)
    assert str(tmp_path / "train") in line and "train has " in line


@pytest.mark.parametrize("task", TASKS)
def test_where_the_score_is_undefined_the_loss_chooses_the_epoch(task):
    task = TASKS[task]()
    name, values = task.selection, sorted((1.0, 2.0), reverse=task.lower_is_better)
    worse, better = ({name: value} for value in values)
    assert task.better(better, worse) and not task.better(worse, better)
    assert task.better({name: None}, None) and task.better(worse, {name: None})
    assert not task.better({name: None, "Loss": 0.1}, {**worse, "Loss": 0.9})
    low, high = {name: None, "Loss": 0.1}, {name: None, "Loss": 0.9}
    assert task.better(low, high) and not task.better(high, low)
    assert task.better({name: None}, {name: None})  # neither: the later one


def test_what_is_fitted_after_training_and_what_plain_transformers_cannot_rebuild():
    for name, cls in TASKS.items():
        assert cls().plain_head and not cls().fits_head, name
    assert TASKS["readmission"](head="logistic").fits_head
    assert not TASKS["ner"](crf=True).plain_head


# --- refused input


@pytest.mark.parametrize(
    "task, words, message",
    [
        ("ner", "--data one.tsv", "one.tsv, line 2: 1 columns where there should be 2"),
        ("ner", "--data tag.tsv", "tag.tsv, line 2: the last column is no BIO tag"),
        ("ner", "--data o.tsv", "no entity in 2 sentences; every tag is O"),
        ("ner", "--data none.tsv", "none.tsv: no such file"),
        ("ner", "--data empty.tsv", "empty.tsv: no sentence in it"),
        ("ner", "--data lonely.tsv", "no entity in validation; give more data"),
        ("ner", "--entity-types Mood", "--entity-types Mood: no such entity"),
        ("ner", "--test none.tsv", "none.tsv: no such file"),
        ("ner", "--validation 0.7", "--validation: 0.7 is outside (0, 0.5)"),
        (
            "readmission",
            "--data ready.csv --label-column Label",
            "ready.csv, line 3: column 'Label' is neither 0 nor 1",
        ),
        ("readmission", "--data alone/notes.csv", "no column 'label' and no ADMISSIONS.csv beside it"),
        (
            "readmission",
            "--data notes.csv --admissions date.csv",
            "date.csv, line 2: column ADMITTIME is no date and time",
        ),
        (
            "readmission",
            "--data notes.csv --admissions twice.csv",
            "twice.csv, line 3: the HADM_ID of line 2 again",
        ),
        ("readmission", "--data notes.csv --admissions nocolumn.csv", "nocolumn.csv: no column 'DISCHTIME'"),
        ("readmission", "--days 0", "--days: 0 is outside (0,"),
        ("readmission", "--data negative.csv", "has no admission 'readmitted'"),
        ("readmission", "--epochs 0", "--epochs 0: nothing would be learnt"),
        ("trials", "--label-column a", "no column 'a'; found context"),
        ("trials", "--data text.csv", "labels look like text: over 60 characters"),
        ("trials", "--data sets.csv --label-column a,b", "sets.csv, line 3: column 'b' is neither 0 nor 1"),
        ("trials", "--data onelabel.csv", "1 distinct labels among"),
        ("trials", "--threshold 2", "--threshold: 2 is outside (0, 1)"),
        ("trials", "--label-column a,b --label-separator ;", "not with several 0/1 columns"),
        (
            "trials",
            "--technique lora --lora-targets nose",
            "--lora-targets nose: no such layer; the encoder has query, key, value",
        ),
        ("trials", "--technique lora+pruning", "lora freezes the weights that pruning would change"),
        ("trials", "--data free.csv", "20 distinct labels among 20 texts; is --label-column right?"),
        ("trials", "--label-column context", "--label-column names a column of the text"),
        ("ner", "--data /dev/null/x", "cannot be read"),
        ("trials", "--name a/b", "--name a/b: give a plain name"),
        ("mlm", "--max-length 64", "--max-length: --task mlm has --block-size instead"),
        ("mlm", "--data few.csv", "is too small for a masked one"),
        ("trials", "--label-column a,a", "or several, each of them once"),
        ("readmission", "--category nothing", "726 of another category, "),
        ("mlm", "--block-size 999", "--block-size 999: the model reads at most 256 tokens"),
        ("mlm", "--text-columns summary", "no column 'summary'; found nct_id"),
    ],
)
def test_bad_input_of_the_tasks_is_one_line(task, words, message, demos, refuses, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stay = "1,5,2150-01-01 10:00:00,2150-01-02 10:00:00,URGENT\n"
    admissions = f"SUBJECT_ID,HADM_ID,ADMITTIME,DISCHTIME,ADMISSION_TYPE\n{stay}"
    contents = {
        "one.tsv": "a\tO\nsecret\n",
        "tag.tsv": "a\tO\nb\tsecret\n",
        "o.tsv": "a\tO\n\nb\tO\n",
        "empty.tsv": "\n\n",
        "lonely.tsv": "a\tB-x\n\n" + "".join(f"w{i}\tO\n\n" for i in range(20)),
        "ready.csv": "TEXT,Label\nx,1\ny,secret\n",
        "notes.csv": "HADM_ID,TEXT\n5,secret\n",
        "date.csv": admissions.replace("2150-01-01 10:00:00", "secret"),
        "twice.csv": admissions + stay,
        "nocolumn.csv": "SUBJECT_ID,HADM_ID,ADMITTIME\n1,2,3\n",
        "negative.csv": "TEXT,Label\n" + "".join(f"x{i},0\n" for i in range(30)),
        "text.csv": "context,label\nx,the secret {patient} says\ny,b\n",
        "sets.csv": "context,a,b\nx,0,1\ny,1,secret\n",
        "onelabel.csv": "context,label\n" + "".join(f"x{i},b\n" for i in range(30)),
        "few.csv": "TEXT\n" + "\n".join("abcde") + "\n",
        "free.csv": "context,label\n" + "".join(f"x{i},secret {i}\n" for i in range(20)),
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "notes.csv").write_text(contents["notes.csv"])
    line = refuses(train.main, run_words(demos, task, "out", *words.split()))
    assert message in line and "secret" not in line
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_every_task_is_in_the_dict_and_its_flags_in_the_parser():
    assert list(TASKS)[:5] == ["symptoms", "readmission", "ner", "mlm", "trials"]
    parser = arguments.build_parser()
    for cls in (*TASKS.values(), *compress.TECHNIQUES.values()):
        assert all(flag in parser._option_string_actions for flag in cls.OPTIONS)
