"""The report of finished runs: its tables, its data, its plots, what it refuses."""

import json
import shutil

import pytest
from PIL import Image

import report
from compress import TECHNIQUES
from conftest import read_csv
from files import read_json, write_json
from metrics import OVERALL
from run import plots, results, tables
from run.results import shown

CHAIN = "distillation+lowrank+pruning+quantization"
TRAINED = ("base", "pruning", "lowrank", "distillation", "quantization", CHAIN)


def test_benchmark_and_report(reported):
    runs = reported
    rows = {row["technique"]: row for row in read_csv(runs / "benchmark.csv")}
    assert set(rows) == set(TRAINED)
    base, hidden, inner, length, layers = rows["base"], 32, 64, 32, 2
    per_token = (
        4 * hidden**2 + 2 * hidden * inner + 2 * length * hidden
    )  # projections, feed-forward, attention
    last = (
        length * 2 * hidden**2 + per_token - 2 * hidden**2
    )  # keys and values of all tokens, the rest of the first
    assert int(base["macs"]) == (layers - 1) * length * per_token + last + hidden**2 + hidden * 5
    assert base["macs"] == rows["pruning"]["macs"] == rows["quantization"]["macs"]
    assert int(rows["lowrank"]["macs"]) < int(base["macs"]) and int(rows["distillation"]["macs"]) < int(
        base["macs"]
    )
    for row in rows.values():
        assert 0 < float(row["p50_ms"]) <= float(row["p95_ms"]) and float(row["notes_per_s"]) > 0
        assert row["cpu"] and row["threads"]
    written = {path.name for path in runs.iterdir()}
    plain = {"results.csv", "results.json", "results.md", "report.html"}
    plain |= {"accuracy_latency.png", "learning_curves.png", "calibration.png"}
    assert plain | {f"confusion_{technique}.png" for technique in TRAINED} <= written
    found = {row["technique"]: row for row in read_csv(runs / "results.csv")}
    for technique, row in found.items():
        scores = read_csv(runs / f"multiclass_{technique}_metrics.csv")[-1]
        assert all(row[score.lower()] == scores[score] for score in OVERALL)
        assert float(row["accuracy_low"]) <= float(row["accuracy"]) <= float(row["accuracy_high"])
    text = (runs / "results.md").read_text()
    assert all(f"| {technique} |" in text for technique in TRAINED)
    assert "| base | accuracy | 0.9356 |" in text  # the paper's figures stand once, in the three columns
    assert "paper:" not in text and "In brackets: the manuscript" not in text
    assert not any("paper" in column for column in found["base"])
    assert (runs / "accuracy_latency.png").read_bytes()[:4] == b"\x89PNG"


def test_base_comes_first_and_the_text_follows_from_the_data_alone(reported):
    names = [row["technique"] for row in read_csv(reported / "results.csv")]
    assert names == ["base", *(name for name in TECHNIQUES if name in TRAINED and name != "base"), CHAIN]
    rows, facts = results.read_rows(reported / "results.csv"), read_json(reported / "results.json")
    assert tables.report_page(rows, facts) == (reported / "results.md").read_text()
    assert facts["task"] == "symptoms" and facts["machine"]["cpu"] and "commit" in facts["machine"]
    assert (
        facts["settings"]["batch_size"] == "16"
        and sum(facts["data"]["sizes"].values()) == facts["data"]["notes"]
    )
    assert {row["technique"]: row["techniques"] for row in rows} == {name: name for name in TRAINED}


def test_what_was_trained_again_or_with_other_arguments_is_said(reported, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(reported, out)
    record = read_json(out / "pruning" / "run.json")
    write_json(out / "pruning" / "run.json", {**record, "finished": "2031-01-01T00:00:00+0000"})
    record = read_json(out / "lowrank" / "run.json")
    record["arguments"]["batch_size"] = 99
    record["data"]["split"] = "another"
    record["machine"] |= {"cpu": "Another CPU", "threads": 5}
    write_json(out / "lowrank" / "run.json", record)
    capsys.readouterr()
    report.main([str(out)])
    assert "note: pruning was trained again after it was timed" in capsys.readouterr().out
    rows, text = (
        {row["technique"]: row for row in read_csv(out / "results.csv")},
        (out / "results.md").read_text(),
    )
    assert rows["pruning"]["p50_ms"] == "" and rows["base"]["p50_ms"] and rows["lowrank"]["mcnemar_p"] == ""
    assert (
        "lowrank was trained with another batch_size 99" in text
        and "Not all runs were tested on the same" in text
        and "; lowrank on 5 threads of Another CPU, torch" in text
    )


def test_report_refuses_in_one_line(runs, refuses, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "is a single run" in refuses(report.main, [runs / "base"])
    assert "no finished run in there" in refuses(report.main, ["."])
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_one_line_says_so(runs, refuses, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    plots.pyplot.cache_clear()
    assert "matplotlib is not installed" in refuses(report.main, [runs])
    plots.pyplot.cache_clear()


def test_reports_show_no_absolute_path():
    assert shown("--data=/home/someone/notes/a.csv") == "--data=notes/a.csv"
    assert shown("--lr") == "--lr" and shown("results/x") == "results/x"


def test_the_front_is_what_nothing_beats():
    scores = {
        "a": (0.9, 100),
        "b": (0.9, 50),
        "c": (0.8, 60),
        "d": (0.7, 10),
        "e": (0.7, 10),
        "f": (0.95, 200),
    }
    rows = [{"run": name, "validation": score, "bytes": size} for name, (score, size) in scores.items()]
    assert results.pareto(rows, "bytes") == ["b", "d", "e", "f"]


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [{"run": "7", "count": 3, "share": 0.25, "on": True}, {"run": "b", "off": False, "text": "a, b"}]
    results.write_rows(tmp_path / "a.csv", rows)
    assert results.read_rows(tmp_path / "a.csv") == rows and results.read_rows(tmp_path / "none.csv") == []


def test_what_made_a_run_counts_the_runs_it_starts_from(tmp_path):
    starts = {"base": ("base", None), "thin": ("lowrank", "base"), "both": ("quantization", "elsewhere/thin")}
    for name, (technique, start) in starts.items():
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "run.json", {"technique": technique, "start": start})
    assert results.techniques_of(tmp_path / "both") == "lowrank+quantization"
    assert results.techniques_of(tmp_path / "base") == "base"


def test_score_files_tell_the_losses_apart(tmp_path, runs):
    record = read_json(runs / "base" / "run.json")
    for row in record["history"]:
        row |= {"Loss": 0.5, "TrainingLoss": 0.25}
    record["test"]["overall"]["Loss"] = 0.75
    task = report.common_task(runs, {"base": record})
    results.write_score_files(tmp_path, task, record)
    *validation, test = read_csv(tmp_path / "multiclass_base_metrics.csv")
    assert list(test) == ["Epoch", *OVERALL, "Split", "Loss", "TrainingLoss", "Step"]
    assert {(row["Loss"], row["TrainingLoss"]) for row in validation} == {("0.500000", "0.250000")}
    assert (test["Split"], test["Loss"], test["TrainingLoss"]) == ("test", "0.750000", "")


def test_a_technique_has_one_colour_and_chains_that_of_their_first_part():
    assert (
        plots.colour_of("lowrank")
        == plots.colour_of("lowrank+quantization")
        != plots.colour_of("quantization")
    )
    assert len({plots.colour_of(name) for name in TECHNIQUES}) == len(TECHNIQUES)


def test_labels_overlap_neither_each_other_nor_points():
    plt = plots.pyplot()
    figure, axes = plt.subplots(figsize=(9, 5))
    points = [
        plots.Point(f"run {i}", "base", 10 + i % 4, 0.9 + 0.001 * i, 0.9, 0.91, 10**6, i < 2)
        for i in range(9)
    ]
    plots.draw_points(axes, points, "bars")
    boxes = [text.get_bbox_patch() or text for text in axes.texts]
    boxes = [plt.matplotlib.text.Text.get_window_extent(text) for text in boxes]
    labelled = {text.get_text() for text in axes.texts}
    listed = {text.get_text() for text in axes.get_legend().get_texts()}
    assert labelled | listed >= {point.name for point in points} and not labelled & listed
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    plt.close(figure)


def test_the_pictures_are_wide_enough_to_read(reported):
    with Image.open(reported / "accuracy_latency.png") as picture:
        assert picture.width > 1000
    assert json.loads((reported / "results.json").read_text())["timing"]["rounds"] == 2


def test_a_report_over_seeds_has_means_and_marks(runs, tmp_path, capsys):
    out = tmp_path / "out"
    for seed, names in (
        (1, ("base", "quantization", CHAIN)),
        (2, ("base", "quantization", CHAIN, "pruning")),
    ):
        for name in names:
            shutil.copytree(runs / name, out / f"seed{seed}" / name)
            record = read_json(out / f"seed{seed}" / name / "run.json")
            record["arguments"]["seed"] = seed
            record["test"]["overall"]["Accuracy"] += 0.01 * (seed - 1)
            write_json(out / f"seed{seed}" / name / "run.json", record)
    report.main([str(out)])
    assert "left out, as not every seed has it: pruning" in capsys.readouterr().out
    rows = {row["technique"]: row for row in results.read_rows(out / "results.csv")}
    base = read_json(runs / "base" / "run.json")["test"]["overall"]
    assert list(rows) == ["base", "quantization", CHAIN] and "mcnemar_p" not in rows["quantization"]
    assert rows["base"]["accuracy"] == pytest.approx(base["Accuracy"] + 0.005, abs=1e-6)
    assert rows["base"]["accuracy_sd"] == pytest.approx(0.01 / 2**0.5, abs=1e-6)
    assert rows["base"]["f1"] == pytest.approx(base["F1"], abs=1e-6)
    assert rows["quantization"]["told"] in ("no", "better", "worse") and rows["quantization"]["p_holm"] <= 1
    text = (out / "results.md").read_text()
    assert "over the 2 seeds and" in text and "seeds 1, 2, split seed" in text and "mean of 2 seeds" in text
    assert "differs from base" not in text and "significant |" in text
