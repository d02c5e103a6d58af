"""The benchmark and the sweep, on small shapes: that they count and say what they should."""

import functools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import BertConfig

import benchmark
import files
import sweep
from bench import gpu, shape, training, volume
from cli import BadInput
from conftest import ROOT, read_csv
from fast import speedups
from layers import parameter_count
from run.results import shown
from tasks.ner import Ner

SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 512}
CONFIG = BertConfig(vocab_size=500, num_labels=5, **SHAPE)
FEW = (
    "base, plain torch",
    "base",
    "lowrank --rank 32",
    "quantization",
    "distillation+pruning+quantization, 4 of 312, half",
)


def test_benchmark_runs_without_matplotlib():
    code = "import sys; sys.modules['matplotlib'] = None; import benchmark"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_training_is_measured_once_for_each_call():
    words = ["--task", "trials"]
    assert benchmark.planned_calls(["shape", "training"], [words, []]) == [
        ("shape", "shape", []),
        ("training", "training", words),
        ("training-2", "training", []),
    ]


def test_multiply_adds_are_those_of_the_layers():
    model = shape.bert_base(CONFIG)
    dense = 6 * (4 * 384 * 384 + 2 * 384 * 512) * 16
    dense += 384 * 384 + 384 * 5  # the pooler and the head read one token
    attention = 6 * 2 * 16 * 16 * 384
    assert shape.multiply_adds(model, 16) == dense + attention
    assert shape.multiply_adds(shape.compressed("quantization", {}, CONFIG), 16) == dense + attention


def test_rows_of_the_shape_part_are_what_their_names_say():
    half = shape.compressed("pruning", shape.HALF, CONFIG)
    base = shape.bert_base(CONFIG)
    assert 0.4 < shape.multiply_adds(half, 64) / shape.multiply_adds(base, 64) < 0.55
    student = shape.compressed("distillation", shape.STUDENT, CONFIG)
    assert (student.config.num_hidden_layers, student.config.hidden_size) == (4, 312)
    assert parameter_count(student) < parameter_count(base)
    assert shape.stored_bytes(base) == pytest.approx(4 * parameter_count(base), rel=0.01)
    table = shape.shape_rows(16, 2, 2, {name: shape.ROWS[name] for name in FEW}, CONFIG)
    assert [row["row"] for row in table][: len(FEW)] == list(FEW)
    assert all(row["notes_per_s"] > 0 for row in table)
    sizes = [row["bytes"] for row in table[: len(FEW)]]
    assert sizes[0] == sizes[1] > sizes[3] > sizes[4] and sizes[2] < sizes[0]
    header, cells = shape.shape_table(table)
    assert all(len(row) == len(header) for row in cells) and float(cells[2][4]) == pytest.approx(
        table[2]["notes_per_s"] / table[0]["notes_per_s"], abs=0.01
    )


def test_the_parts_write_their_tables(tmp_path, refuses, runs, monkeypatch):
    monkeypatch.setattr(shape, "shape_rows", lambda *_: [{"row": "x"}])
    monkeypatch.setattr(shape, "shape_table", lambda table: (["row"], [["x"]]))
    monkeypatch.setattr(volume, "volume_rows", functools.partial(volume.volume_rows, sizes=(30, 60)))
    call = ["--parts", "shape,volume", "--rounds", "2"]
    benchmark.main([*call, "--out", str(tmp_path), "--run", str(runs / "quantization")])
    text = (tmp_path / "benchmark.md").read_text()
    assert "## shape" in text and "## volume" in text
    assert [row["notes"] for row in read_csv(tmp_path / "volume.csv")] == ["30", "60"]
    stored = files.read_json(tmp_path / "benchmark.json")
    assert list(stored["conditions"]) == ["shape", "volume"] and stored["machine"]["cpu"]
    assert all(told in text for told in stored["conditions"].values())
    assert {"--parts=shape,volume", "--rounds=2"} <= set(stored["arguments"])
    assert str(tmp_path.parent) not in str(stored)
    assert "no finished run" in refuses(benchmark.main, ["--parts", "shape", "--run", str(tmp_path)])
    assert "reads at most 512" in refuses(benchmark.main, ["--parts", "shape", "--length", "600"])
    assert "no such task" in refuses(benchmark.main, ["--parts", "shape", "--training", "--task x"])
    assert "No closing quotation" in refuses(benchmark.main, ["--training", "--data 'x"])
    assert "no part 'speed'" in refuses(benchmark.main, ["--parts", "speed"])
    if not torch.cuda.is_available():
        assert "no GPU" in refuses(benchmark.main, ["--parts", "gpu"])


def test_the_gpu_part_counts_on_any_device():
    table = gpu.gpu_rows("cpu", 16, 2, 4, steps=2, config=CONFIG, backend="eager")
    steps = ("training", "prediction")
    assert [(row["row"], row["compiled"]) for row in table] == [
        (name, on) for on in (False, True) for name in steps
    ]
    with speedups(shape.bert_base(CONFIG), reads_first=True) as model:
        macs = shape.multiply_adds(model, 16)
    for row, passes in zip(table, (3, 1, 3, 1), strict=True):  # forward, and twice as much backward
        assert row["peak_share"] == pytest.approx(passes * macs * row["notes_per_s"] / row["peak_macs_per_s"])


def test_training_is_compared_with_the_trainer(arguments):
    pytest.importorskip("accelerate")
    table = training.training_rows(arguments[:4], tokens=4000, padded=1, rounds=1)
    assert len(table) == 6 and all(row["notes_per_s"] > 0 for row in table)
    header, cells = training.training_table(table)
    assert len(header) == len(cells[0]) == 9 and float(cells[-1][6]) == pytest.approx(
        table[-1]["notes_per_s"] / table[1]["notes_per_s"], abs=0.01
    )
    assert table[0]["notes"] == 16 < table[1]["notes"] < 80 and len({row["notes"] for row in table[1:]}) == 1


def test_masked_language_models_are_swept_too(tmp_path):
    grid = tmp_path / "grid.json"
    grid.write_text(json.dumps({"base": "--technique base", "int8": "--technique quantization"}))
    call = [
        "--task",
        "mlm",
        "--fraction",
        "0.2",
        "--epochs",
        "1",
        "--block-size",
        "32",
        "--seeds",
        "1",
        "--rounds",
        "1",
    ]
    sweep.main([*call, "--grid", str(grid), "--out", str(tmp_path / "out")])
    rows = read_csv(tmp_path / "out" / "sweep.csv")
    assert all(float(row["validation"]) >= 0 and float(row["p50_ms"]) > 0 for row in rows)


def test_reports_show_no_absolute_path():
    assert (
        shown("--data=/home/someone/notes/a.csv") == "--data=notes/a.csv"
        and shown("--lr") == "--lr"
        and shown("results/x") == "results/x"
    )


def test_the_front_is_what_nothing_beats():
    rows = [dict(run=name, validation=score, bytes=size) for name, score, size in
            (("a", 0.9, 100), ("b", 0.9, 50), ("c", 0.8, 60), ("d", 0.7, 10), ("e", 0.7, 10), ("f", 0.95, 200))]  # fmt: skip
    assert sweep.pareto(rows, "bytes") == ["b", "d", "e", "f"]


def test_the_demonstrations_sweep_has_a_student_that_fits(refuses):
    _, _, seeds, grid, _, planned = sweep.parse(["--seeds", "1,2"])
    student = planned["student 2x64"]
    assert (
        len(student) == len(seeds) == 2
        and student[0].student_width == 64 < 128
        and "student-2x64" in grid["student 2x64 + int8"]
    )
    assert list(sweep.parse(["--model", "x"])[3]) == list(sweep.GRID)
    assert "must differ from each other" in refuses(sweep.parse, ["--seeds", "1,1"])


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
        files.write_json(tmp_path / name / "run.json", {**facts, "test": test})
        made[name] = [tmp_path / name]
    rows = sweep.collect(made, {"base": (1, 1), "thin": (2, 1)}, Ner())
    assert [row["F1_from_base"] for row in rows] == [0, 0] and not any("Precision" in row for row in rows)


def test_a_sweep_trains_what_is_missing_and_reports_every_seed(arguments, tmp_path, refuses, capsys):
    grid = tmp_path / "grid.json"
    grid.write_text(
        json.dumps(
            {
                "base": "--technique base",
                "thin": "--technique lowrank --rank 4 --start {base} --epochs {1x}",
                "int8": "--technique quantization",
            }
        )
    )
    call = [
        *arguments,
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "out"),
        "--grid",
        str(grid),
        "--seeds",
        "1,2",
        "--rounds",
        "1",
    ]
    sweep.main(call)
    rows = {row["run"]: row for row in read_csv(tmp_path / "out" / "sweep.csv")}
    assert list(rows) == ["base", "thin", "int8"] and {row["seeds"] for row in rows.values()} == {"2"}
    scores = [
        files.read_json(tmp_path / "out" / f"seed{seed}" / "thin" / "run.json")["test"]["overall"]["Accuracy"]
        for seed in (1, 2)
    ]
    assert float(rows["thin"]["Accuracy"]) == pytest.approx(np.mean(scores), abs=1e-6)
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 10_000 and "Pareto front" in (
        tmp_path / "out" / "sweep.md"
    ).read_text()
    capsys.readouterr()
    shutil.rmtree(tmp_path / "out" / "seed2" / "int8")
    sweep.main(call)
    assert capsys.readouterr().out.count("finished already") == 5
    assert "no such task" in refuses(sweep.main, ["--task", "x"])
    assert "the grid and --seeds say that" in refuses(sweep.main, [*call, "--technique", "base"])
    assert "give whole numbers" in refuses(sweep.main, [*call, "--seeds", "a"])
    assert "--only: tall is missing" in refuses(sweep.main, [*call, "--only", "base,tall"])
    grid.write_text('{"base": "--technique base", "x": "--start {nowhere}"}')
    assert "none of base" in refuses(sweep.main, call)
    grid.write_text('{"base": "--technique base", "x": "--technique base --max-length 64"}')
    assert "x has another max_length than the rest" in refuses(sweep.main, call)
    grid.write_text('{"base": "--technique base", "a b": "--technique base", "a-b": "--technique base"}')
    assert "must differ from each other" in refuses(sweep.main, call)
    grid.write_text("[1]")
    assert "give a JSON object" in refuses(sweep.main, call)
    with pytest.raises(BadInput, match="no such file"):
        sweep.read_grid(tmp_path / "none.json")
