"""The sweep: what it plans, trains, times and writes, what it refuses."""

import json
import shutil
import threading
import time

import numpy as np
import pytest

import report
import sweep
from cli import BadInput
from conftest import ROOT, read_csv, write_notes
from files import locked, read_json, write_json
from metrics import calibration_scores
from run import results, tables
from run.evidence import Answered, only_rows
from tasks import demo
from tasks.ner import Ner
from tasks.symptoms import MENTION, Symptoms

GRID = {
    "base": "--technique base",
    "thin": "--technique lowrank --rank 4 --start {base} --epochs {1x}",
    "int8": "--technique quantization",
    "thin + int8": "--technique quantization --start {runs}/thin",
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory, arguments):
    """(directory, command line) of a small sweep, two seeds."""
    home = tmp_path_factory.mktemp("sweep")
    (home / "grid.json").write_text(json.dumps(GRID))
    call = [*arguments, "--epochs", "1", "--out", str(home / "out"), "--grid", str(home / "grid.json")]
    call += ["--seeds", "1,2", "--rounds", "1"]
    sweep.main(call)
    return home / "out", call


def test_a_sweep_trains_what_is_missing_and_reports_every_seed(swept, capsys):
    out, call = swept
    rows = {row["run"]: row for row in read_csv(out / "sweep.csv")}
    assert list(rows) == list(GRID) and {row["seeds"] for row in rows.values()} == {"2"}
    scores = [
        read_json(out / f"seed{seed}" / "thin" / "run.json")["test"]["overall"]["Accuracy"] for seed in (1, 2)
    ]
    assert float(rows["thin"]["Accuracy"]) == pytest.approx(np.mean(scores), abs=1e-6)
    assert (out / "sweep.png").stat().st_size > 10_000 and "Pareto front" in (out / "sweep.md").read_text()
    assert [row["techniques"] for row in rows.values()] == [
        "base",
        "lowrank",
        "quantization",
        "lowrank+quantization",
    ]
    shutil.rmtree(out / "seed2" / "int8")
    capsys.readouterr()
    sweep.main(call)
    assert capsys.readouterr().out.count("finished already") == 7


def test_the_text_of_a_sweep_follows_from_its_data_alone(swept):
    out, _ = swept
    rows, facts = results.read_rows(out / "sweep.csv"), read_json(out / "sweep.json")
    assert tables.sweep_page(rows, facts) == (out / "sweep.md").read_text()
    assert (facts["grid"], facts["seeds"], facts["task"]) == (GRID, [1, 2], "symptoms")
    assert facts["machine"]["cpu"] and facts["machine"]["torch"] and facts["machine"]["commit"]
    assert set(facts["trained_at"]) == set(GRID) and facts["data"]["mean_tokens"] > 3
    assert facts["timing"]["rows"] == facts["data"]["sizes"][
        "validation"
    ] and "mean of 2 seeds" in tables.sweep_conditions(facts)
    assert not any("/tmp" in word or str(out.parent.parent) in word for word in facts["arguments"])


def test_a_finished_sweep_is_only_timed_again(swept, capsys):
    out, call = swept
    sweep.main(call)
    assert capsys.readouterr().out.count("finished already") == 8
    assert "Pareto front" in (out / "sweep.md").read_text()
    assert "no such task" in refused_by(call)


def refused_by(call):
    """The message with which the sweep of another task is refused."""
    with pytest.raises(BadInput) as refused:
        sweep.main([*call, "--task", "x"])
    return str(refused.value)


@pytest.mark.parametrize(
    "words, message",
    [
        ("--technique base", "the grid, --seeds and --folds say that"),
        ("--seeds a", "or whole numbers"),
        ("--seeds 1,1", "differ from each other"),
        ("--seeds 0", "how many seeds"),
        ("--seeds 12345678901234567890", "more than 1000 seeds"),
        ("--fold 1/2", "the grid, --seeds and --folds say that"),
        ("--folds 1", "outside"),
        ("--only base,tall", "--only: tall is missing"),
        ("--only thin", "--only: base is missing"),
    ],
)
def test_flags_that_make_no_sweep_are_refused(words, message, swept, refuses):
    assert message in refuses(sweep.main, [*swept[1], *words.split()])


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"base": "--technique base", "x": "--start {nowhere}"}', "none of base"),
        (
            '{"base": "--technique base", "x": "--technique base --max-length 64"}',
            "x has another max_length than the rest",
        ),
        ('{"base": "", "a b": "--technique base", "a-b": "--technique base"}', "must differ from each other"),
        ("[1]", "give a JSON object"),
    ],
)
def test_grids_that_make_no_sweep_are_refused(text, message, swept, refuses, tmp_path):
    (tmp_path / "grid.json").write_text(text)
    assert message in refuses(sweep.main, [*swept[1], "--grid", tmp_path / "grid.json"])
    with pytest.raises(BadInput, match="no such file"):
        sweep.read_grid(tmp_path / "none.json")


def test_masked_language_models_are_swept_too(tmp_path):
    grid = tmp_path / "grid.json"
    grid.write_text(json.dumps({"base": "--technique base", "thin": "--technique lowrank --rank 4"}))
    data, model = demo.make(tmp_path / "demo", "mlm", notes=200, hidden=32, layers=2)
    flags = f"--task mlm --data {data} --model {model} --lr 2e-3 --epochs 2 --block-size 32 --seeds 1,2"
    call = [*flags.split(), "--rounds", "1"]
    sweep.main([*call, "--grid", str(grid), "--out", str(tmp_path / "out")])
    base, thin = results.read_rows(tmp_path / "out" / "sweep.csv")
    assert all(row["validation"] >= 0 and row["p50_ms"] > 0 and row["seeds"] == 2 for row in (base, thin))
    assert 0 < base["Accuracy_low"] < base["Accuracy"] < base["Accuracy_high"] < 1
    assert 1 < base["Perplexity_low"] < base["Perplexity"] < base["Perplexity_high"]
    low, apart, high = (thin[f"Perplexity_from_base{end}"] for end in ("_low", "", "_high"))
    assert low < apart < high
    assert thin["told"] in ("better", "worse", "no") and 0 < thin["p_holm"] <= 1
    facts, page = read_json(tmp_path / "out" / "sweep.json"), (tmp_path / "out" / "sweep.md").read_text()
    answers = read_csv(tmp_path / "out" / "seed1" / "base" / "predictions.csv")
    assert list(answers[0]) == ["row_id", "cluster", "right", "masked", "surprise"]
    assert facts["evidence"]["notes"] == len(answers) and facts["evidence"]["unit"] == "blocks"
    assert f"over seeds and {len(answers):,} test blocks" in page and "| blocks/s |" in page
    report.main([str(tmp_path / "out")])  # of seed1 and seed2
    text = (tmp_path / "out" / "results.md").read_text()
    assert f"| {base['Perplexity']:.4f} [{base['Perplexity_low']:.3f}, {base['Perplexity_high']:.3f}]" in text


def test_the_demonstrations_sweep_has_a_student_that_fits(refuses):
    plan = sweep.plan_sweep(["--seeds", "1,2"])
    student = [job.args for job in plan.jobs if job.row == "student 2x64"]
    assert len(student) == len(plan.seeds) == 2 and student[0].student_width == 64 < 128
    assert "student-2x64" in plan.grid["student 2x64 + int8"]
    assert list(sweep.plan_sweep(["--model", "x"]).grid) == list(
        read_json(ROOT / "experiments" / "grid.json")
    )
    assert "differ from each other" in refuses(sweep.plan_sweep, ["--seeds", "1,1"])


def test_a_score_that_base_does_not_have_is_left_out(tmp_path):
    facts = {
        "validation": {"overall": {"F1": 0.1}},
        "sizes": {"bytes": 1, "parameters": 1},
        "train_seconds": 1,
    }
    made = {}
    for name, precision in (("base", None), ("thin", 0.5)):
        test = {"overall": {"F1": 0.1, "Precision": precision, "Recall": 0.1}, "intervals": {}}
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "run.json", {**facts, "technique": "base", "start": None, "test": test})
        made[name] = [[tmp_path / name]]
    rows = sweep.sweep_rows(Ner(), made, {"base": (1, 1), "thin": (2, 1)})
    assert [row["F1_from_base"] for row in rows] == [0, 0] and "Precision" not in rows[0]
    assert tables.sweep_scores(rows, {"headline": Ner().headline}) == ["F1", "Recall"]


def test_folds_are_joined_and_processes_share_the_training(tmp_path, arguments, capsys):
    grid = {"base": "--technique base", "int8": "--technique quantization"}
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    call = [
        *arguments,
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "out"),
        "--grid",
        str(tmp_path / "grid.json"),
    ]
    call += ["--seeds", "2", "--folds", "2", "--rounds", "1"]
    others = tmp_path / "out" / "seed1" / "fold1" / "base"
    with locked(others):  # as if another process trained it
        swept = threading.Thread(target=sweep.main, args=([*call, "--train-only"],))
        swept.start()
        last = tmp_path / "out" / "seed2" / "fold2" / "int8" / "run.json"
        while swept.is_alive() and not last.exists():
            time.sleep(0.1)
        assert last.exists() and not others.exists() and swept.is_alive()  # it waits for that one
    swept.join()
    assert others.exists() and not (tmp_path / "out" / "sweep.csv").exists()
    capsys.readouterr()
    sweep.main(call)
    assert capsys.readouterr().out.count("finished already") == 8

    rows, facts = (
        results.read_rows(tmp_path / "out" / "sweep.csv"),
        read_json(tmp_path / "out" / "sweep.json"),
    )
    tested = read_csv(others / "predictions.csv")
    tested += read_csv(others.parents[1] / "fold2" / "base" / "predictions.csv")
    assert len({row["row_id"] for row in tested}) == len(tested) == facts["evidence"]["notes"]
    assert facts["evidence"]["folds"] == 2 and facts["data"]["notes"] == len(tested)
    first = np.mean([row["label"] == row["predicted"] for row in tested])
    assert any(abs(first - rows[0][f"Accuracy_{end}"]) < 1e-6 for end in ("least", "most"))
    assert rows[0]["Accuracy_low"] < rows[0]["Accuracy"] < rows[0]["Accuracy_high"]
    assert rows[1]["told"] in ("no", "better", "worse") and "told" not in rows[0]
    text = (tmp_path / "out" / "sweep.md").read_text()
    assert f"{len(tested)} notes in 2 folds" in text and "significant |" in text
    assert "## Calibration on the test split" in text and "| Brier score, scaled |" in text
    said = [[float(cell) for name, cell in row.items() if name.startswith("p_")] for row in tested]
    labels = read_json(others / "run.json")["task"]["labels"]
    truth = np.array([labels.index(row["label"]) for row in tested])
    plain = calibration_scores(truth, np.array(said))["plain"]
    assert rows[0]["ECE_from_base"] == 0 and rows[1]["Brier_told"] in ("no", "better", "worse")
    if facts["seeds"] == [1]:
        assert rows[0]["ECE"] == pytest.approx(plain["ECE"], abs=1e-6)


def test_a_sweep_scores_groups_over_folds_and_the_negated_mentions(tmp_path, arguments):
    (tmp_path / "grid.json").write_text(json.dumps({"base": GRID["base"], "int8": GRID["int8"]}))
    call = [*arguments, "--epochs", "1", "--out", str(tmp_path / "out"), "--rounds", "1", "--seeds", "1,"]
    call += ["--grid", str(tmp_path / "grid.json"), "--folds", "2"]
    sweep.main(call)
    groups = read_json(tmp_path / "out" / "sweep.json")["groups"]
    assert {row["column"] for row in groups} == {MENTION}
    sweep.main([*call, "--subgroups", "category"])
    rows, facts = (
        results.read_rows(tmp_path / "out" / "sweep.csv"),
        read_json(tmp_path / "out" / "sweep.json"),
    )
    groups = facts["groups"]
    assert facts["subgroups"] == "category" and {row["column"] for row in groups} == {"category", MENTION}

    tested = [
        row for fold in (1, 2) for row in read_csv(tmp_path / f"out/seed1/fold{fold}/int8/predictions.csv")
    ]
    data = arguments[arguments.index("--data") + 1]
    category = {row["ROW_ID"]: row["CATEGORY"] for row in read_csv(data)}
    for own in (row for row in groups if row["column"] == "category" and row["run"] == "int8"):
        members = [row for row in tested if category[row["row_id"]] == own["value"]]
        if own["value"] != "(other)":
            right = np.mean([row["label"] == row["predicted"] for row in members])
            assert own["notes"] == len(members) and own["Accuracy"] == pytest.approx(right, abs=1e-6)
    by_category = [row for row in groups if row["column"] == "category" and row["run"] == "base"]
    assert sum(row["notes"] for row in by_category) == len(tested) == facts["evidence"]["notes"]
    text = (tmp_path / "out" / "sweep.md").read_text()
    assert "## By category" in text and f"## By {MENTION}" in text and "bold where the difference" in text
    assert text == tables.sweep_page(rows, facts)
    few = [row for row in groups if row["notes"] < 10]  # too few to say what chance does
    assert all("told" not in row and "Accuracy_low" not in row for row in few)
    assert any("told" in row for row in groups)


def test_values_that_are_text_are_no_groups_of_a_sweep_either(tmp_path, small, arguments, refuses):
    rows = read_csv(small[0])
    for number, row in enumerate(rows):  # few of them in each fold
        row["CATEGORY"] = "the patient lives with her sister and has two dogs" if number % 12 == 0 else "ward"
    data = write_notes(tmp_path / "notes.csv", [list(row.values()) for row in rows], list(rows[0]))
    call = [*arguments, "--data", str(data), "--out", str(tmp_path / "out"), "--folds", "5", "--seeds", "1,"]
    line = refuses(sweep.main, [*call, "--subgroups", "CATEGORY"])
    assert "look like text" in line and "sister" not in line and not (tmp_path / "out" / "seed1").exists()
    task = Symptoms()
    answered = Answered([{"row_id": "1"}], [0], [None], (), {}, "RUN")
    with pytest.raises(BadInput, match="are not those of --data any more"):
        only_rows(answered, {"1", "2"})
    assert only_rows(answered, {"1"}).rows == answered.rows and task.marks


def test_tuning_gives_every_row_as_many_trials_and_keeps_the_best_on_validation(tmp_path, arguments, refuses):
    grid = {
        "base": "--technique base",
        "thin": "--technique lowrank --start {base}",
        "fixed": "--technique lowrank --start {base} --rank 3 --lr 1e-3",
        "int8": "--technique quantization",
    }
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    out = tmp_path / "out"
    call = [*arguments, "--epochs", "1", "--out", str(out), "--grid", str(tmp_path / "grid.json")]
    call += ["--seeds", "1", "--rounds", "1", "--search", "lr=1e-4,2e-3", "rank=2,4"]
    plan = sweep.plan_sweep(call)
    trials = {job.row: [args.name for args in job.trials] for job in plan.jobs}
    assert trials["base"] == ["base@lr=1e-4", "base@lr=2e-3"] and not trials["fixed"] and not trials["int8"]
    assert len(trials["thin"]) == 2 and all("lr=" in name and "rank=" in name for name in trials["thin"])
    sweep.main(call)
    for row in ("base", "thin"):
        runs = [read_json(out / "seed1" / name / "run.json") for name in (row, *trials[row])]
        scores = [run["validation"]["overall"]["F1"] for run in runs]
        assert scores[0] == max(scores[1:]) and runs[0]["checksum"] in [run["checksum"] for run in runs[1:]]
    facts = read_json(out / "sweep.json")
    assert facts["search"]["trials"] == 2 and set(facts["search"]["chosen"]) == {"base", "thin"}
    text = (out / "sweep.md").read_text()
    assert "tried 2 settings of lr 1e-4, 2e-3, rank 2, 4" in text and "; chosen: lr=" in text
    chosen = next(iter(facts["search"]["chosen"]["thin"]))
    assert "lr=" in chosen and "rank=" in chosen  # also where all trials of a row have the same of one
    shutil.rmtree(out / "seed1" / "int8")
    sweep.main(call)  # goes on
    assert "other settings than --search has" in refuses(sweep.main, [*call, "--search", "lr=3e-4,5e-4"])
    assert "has only 2 combinations" in refuses(sweep.plan_sweep, [*call, "--trials", "3"])
    assert "no row is tuned in sparsity" in refuses(sweep.plan_sweep, [*call, "--search", "sparsity=0.1,0.2"])
    for shared in ("split-seed", "seed", "fraction"):
        line = refuses(sweep.plan_sweep, [*call, "--search", f"{shared}=1,0.5"])
        assert f"--search {shared}: is the same for all runs" in line
    assert "such as lr=1e-5,3e-5" in refuses(sweep.plan_sweep, [*call, "--search", "lr=1"])
