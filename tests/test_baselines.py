"""Baselines: fitted on the split of a run, stored like one, in the same tables."""

import shutil
import stat

import numpy as np
import pytest
import yaml

import baselines
import benchmark
import evaluate
import predict
import report
import sweep
import train
from conftest import read_csv
from files import read_json
from run import baseline
from run.results import read_rows

FITTED = {
    "symptoms": ("majority", "rule", "tfidf"), "readmission": ("majority", "tfidf"),
    "trials": ("majority", "tfidf"), "ner": ("dictionary",),
}  # fmt: skip


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, demos, small):
    """{task: directory of its baselines}."""
    outs = {task: tmp_path_factory.mktemp(f"{task}-baselines") for task in FITTED}
    for task, out in outs.items():
        data = small[0] if task == "symptoms" else demos[task][0]
        baselines.main(["--task", task, "--data", str(data), "--model", str(small[1]), "--out", str(out)])
    return outs


@pytest.mark.parametrize("task", FITTED)
def test_a_baseline_is_stored_like_a_run_and_answers_the_same_again(fitted, task):
    out = fitted[task]
    assert {path.name for path in out.iterdir() if path.is_dir() and path.name != "demo"} == set(FITTED[task])
    for name in FITTED[task]:
        run, facts = out / name, read_json(out / name / "run.json")
        files = [path for path in (run / baseline.CONTENT, run / baseline.TENSORS) if path.exists()]
        assert facts["sizes"]["bytes"] == sum(path.stat().st_size for path in files) > 0
        assert stat.S_IMODE((run / baseline.CONTENT).stat().st_mode) == 0o600
        found = baseline.load_baseline(run)
        given = facts["arguments"]
        where = (given[key] for key in ("fraction", "validation", "test", "split_seed"))
        examples = found.task.load(given["data"], *where)[0]["test"]
        again = [found.task.record(answer) for answer in found.predict(examples)]
        stored = read_csv(run / "predictions.csv")
        assert [row["row_id"] for row in stored] == [example.row_id for example in examples]
        assert [row["predicted"] for row in stored] == [cells[0] for cells in again]


@pytest.mark.parametrize("task", FITTED)
def test_a_baseline_is_scored_on_another_file(fitted, task, tmp_path):
    for name in FITTED[task]:
        run, out = fitted[task] / name, tmp_path / name
        evaluate.main(
            [str(run), "--data", read_json(run / "run.json")["arguments"]["data"], "--out", str(out)]
        )
        answers = {row["row_id"]: row["predicted"] for row in read_csv(out / "predictions.csv")}
        stored = {row["row_id"]: row["predicted"] for row in read_csv(run / "predictions.csv")}
        assert len(answers) > len(stored) and stored.items() <= answers.items()
        found = read_json(out / "eval_metrics.json")
        assert found["eval_samples"] == len(answers) and "eval_loss" not in found
        assert 0 < found["without_training_notes"]["eval_samples"] < len(answers)


def test_a_baseline_has_a_card_of_its_own(fitted):
    for task, out in fitted.items():
        for name in FITTED[task]:
            card, facts = (out / name / "README.md").read_text(), read_json(out / name / "run.json")
            head = yaml.safe_load(card.split("---\n", 2)[1])
            assert {task, name} <= set(head["tags"]) and "library_name" not in head
            assert f"no neural network. {baseline.BASELINES[name].__doc__.splitlines()[0]}" in card
            assert f"{facts['sizes']['bytes']:,} bytes" in card and "\nLatency: not measured" in card
            assert "on another file; predict.py does not" in card and "must not be published" in card
            assert "tokens per row" not in card and str(out) not in card
            scores, told = read_json(out / name / "eval_metrics.json"), facts["test"]["overall"]
            assert scores["eval_samples"] == facts["data"]["sizes"]["test"]
            assert scores["eval_f1"] == told["F1"] and f"| {told['F1']:.4f}" in card


def test_what_the_baselines_score(fitted):
    runs = {name: read_json(fitted["symptoms"] / name / "run.json") for name in FITTED["symptoms"]}
    test = runs["majority"]["data"]["splits"]["test"]
    assert runs["majority"]["test"]["overall"]["Accuracy"] == pytest.approx(
        max(test.values()) / sum(test.values())
    )
    assert runs["majority"]["test"]["overall"]["AUROC"] == 0.5
    assert runs["rule"]["test"]["overall"]["Accuracy"] == 1  # by construction
    assert runs["tfidf"]["test"]["overall"]["Accuracy"] > runs["majority"]["test"]["overall"]["Accuracy"]
    assert read_json(fitted["ner"] / "dictionary" / "run.json")["test"]["overall"]["F1"] > 0.3


@pytest.mark.parametrize(
    "flags",
    ["--with-none", "--negation drop", "--negation label", "--multi-label", "--multi-label --with-none"]
    + ["--top-k 5 --with-none", "--mask-labels"],
)
def test_the_rule_is_right_whichever_labels_it_makes(tmp_path, small, flags):
    words = ["--data", str(small[0]), "--model", str(small[1]), "--only", "rule", *flags.split()]
    baselines.main([*words, "--out", str(tmp_path)])
    found = read_json(tmp_path / "rule" / "run.json")["test"]["overall"]
    assert found["MicroF1" if "--multi-label" in flags else "Accuracy"] == 1


def test_sets_have_a_regression_per_label(tmp_path, demos):
    words = ["--task", "trials", "--multi-label", "--data", str(demos["trials"][0]), "--out", str(tmp_path)]
    baselines.main([*words, "--only", "tfidf", "--threshold", "auto"])
    assert read_json(tmp_path / "tfidf" / "run.json")["test"]["overall"]["MicroF1"] > 0.5
    x, y = (
        np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]]),
        np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1]]),
    )
    weights, biases = baseline.fit_regression(x, y.astype(float), 3, 1.0, None)
    assert weights[0, 0] > 0 > weights[0, 1] and biases[1] == baseline.NEVER == -biases[2]
    weights, biases = baseline.fit_regression(x, np.array([0, 2, 0, 2]), 3, 1.0, None)
    assert biases[1] == baseline.NEVER and weights[2, 1] > 0 and not weights[:2].any()


def test_they_stand_in_reports_and_timings_beside_models(fitted, runs, arguments, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(runs / "base", out / "base")
    baselines.main([*arguments, "--out", str(out)])
    benchmark.main([str(out), "--rounds", "2", "--length", "32", "--batch-size", "4"])
    report.main([str(out)])
    rows = {row["technique"]: row for row in read_rows(out / "results.csv")}
    assert list(rows) == ["base", "majority", "rule", "tfidf"]
    assert all(row["p50_ms"] > 0 for row in rows.values()) and rows["tfidf"]["bytes"] > rows["rule"]["bytes"]
    assert rows["rule"]["told"] == "better" and "told" not in rows["base"]
    text = (out / "results.md").read_text()
    assert "TF-IDF and logistic regression, without a network, has accuracy" in text
    assert "differs from base" in text and "significant |" in text
    record = read_json(out / "results.json")
    assert record["evidence"]["notes"] == record["data"]["sizes"]["test"] and not record["differing"]


def test_a_sweep_has_them_as_rows(tmp_path, arguments):
    grid = tmp_path / "grid.json"
    grid.write_text('{"base": "--technique base"}')
    call = [*arguments, "--epochs", "1", "--out", str(tmp_path / "out"), "--grid", str(grid), "--baselines"]
    sweep.main([*call, "--seeds", "1", "--rounds", "1"])
    rows = {row["run"]: row for row in read_rows(tmp_path / "out" / "sweep.csv")}
    assert list(rows) == ["base", *FITTED["symptoms"]] and rows["tfidf"]["rows_per_s"] > 0
    assert not rows["rule"]["front_bytes"] and rows["majority"]["front_bytes"]
    text = (tmp_path / "out" / "sweep.md").read_text()
    assert "- tfidf: `baselines.py`" in text and "cost, the labelling rule aside." in text


def test_what_no_baseline_is_is_refused(fitted, refuses, tmp_path, arguments):
    assert "there are majority, rule, tfidf" in refuses(baselines.main, [*arguments, "--only", "knn"])
    assert "--technique: a baseline has none" in refuses(baselines.main, [*arguments, "--technique", "lora"])
    assert "has no baselines" in refuses(baselines.main, ["--task", "mlm", "--out", tmp_path])
    tfidf = fitted["symptoms"] / "tfidf"
    assert "holds no weights" in refuses(train.main, [*arguments, "--out", tmp_path, "--start", tfidf])
    assert "error" in refuses(predict.main, [tfidf, "notes.csv"])
    shutil.copytree(tfidf, tmp_path / "tfidf")
    (tmp_path / "tfidf" / baseline.CONTENT).write_text('{"vocabulary": ["one"]}')
    assert "do not fit together" in refuses(benchmark.main, [tmp_path / "tfidf"])
