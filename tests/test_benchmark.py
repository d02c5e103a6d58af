"""The comparison and the exporter: on small shapes, that they count and say what they should."""

import functools

import numpy as np
import pytest
import torch
from transformers import BertConfig

import benchmark
import export
import train
from bench import gpu, shape, training, volume
from conftest import read_csv
from fast.attention import first_token
from layers import parameter_count
from run import checkpoint

CONFIG = BertConfig(vocab_size=500, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=512, num_labels=5)
FEW = (
    "base, plain torch",
    "base",
    "lowrank --rank 32",
    "quantization",
    "distillation+pruning+quantization, 4 of 312, half",
)


def test_multiply_adds_are_those_of_the_layers():
    model = shape.bert_base(CONFIG)
    dense = 6 * (4 * 384 * 384 + 2 * 384 * 512) * 16 + 384 * 384 + 384 * 5  # the pooler and the head read one token
    attention = 6 * 2 * 16 * 16 * 384
    assert shape.multiply_adds(model, 16) == dense + attention
    assert shape.multiply_adds(shape.compressed("quantization", {}, CONFIG), 16) == dense + attention


def test_rows_of_the_shape_part_are_what_their_names_say():
    half = shape.compressed("pruning", shape.HALF, CONFIG)
    base = shape.bert_base(CONFIG)
    assert 0.4 < shape.multiply_adds(half, 64) / shape.multiply_adds(base, 64) < 0.55
    student = shape.compressed("distillation", shape.STUDENT, CONFIG)
    assert (student.config.num_hidden_layers, student.config.hidden_size) == (4, 312) and parameter_count(student) < parameter_count(base)
    assert shape.stored_bytes(base) == pytest.approx(4 * parameter_count(base), rel=0.01)
    table = shape.run(16, 2, 2, {name: shape.ROWS[name] for name in FEW}, CONFIG)
    assert [row["row"] for row in table][: len(FEW)] == list(FEW) and all(row["notes_per_s"] > 0 for row in table)
    sizes = [row["bytes"] for row in table[: len(FEW)]]
    assert sizes[0] == sizes[1] > sizes[3] > sizes[4] and sizes[2] < sizes[0]
    header, cells = shape.as_markdown(table)
    assert all(len(row) == len(header) for row in cells) and float(cells[2][4]) == pytest.approx(
        table[2]["notes_per_s"] / table[0]["notes_per_s"], abs=0.01
    )


def test_the_parts_write_their_tables(tmp_path, refuses, runs, monkeypatch):
    monkeypatch.setattr(shape, "run", lambda *_: [{"row": "x"}])
    monkeypatch.setattr(shape, "as_markdown", lambda table: (["row"], [["x"]]))
    monkeypatch.setattr(volume, "measure", functools.partial(volume.measure, sizes=(30, 60)))
    benchmark.main(["--parts", "shape,volume", "--out", str(tmp_path), "--run", str(runs / "quantization"), "--rounds", "2"])
    text = (tmp_path / "benchmark.md").read_text()
    assert "## shape" in text and "## volume" in text and [row["notes"] for row in read_csv(tmp_path / "volume.csv")] == ["30", "60"]
    assert "no finished run" in refuses(benchmark.main, ["--parts", "shape", "--run", str(tmp_path)])
    assert "reads at most 512" in refuses(benchmark.main, ["--parts", "shape", "--length", "600"])
    assert "no such task" in refuses(benchmark.main, ["--parts", "shape", "--training", "--task x"])
    assert "no part 'speed'" in refuses(benchmark.main, ["--parts", "speed"])
    if not torch.cuda.is_available():
        assert "no GPU" in refuses(benchmark.main, ["--parts", "gpu"])


def test_the_gpu_part_counts_on_any_device():
    table = gpu.run("cpu", 16, 2, 4, steps=2, config=CONFIG, backend="eager")
    assert [(row["row"], row["compiled"]) for row in table] == [(name, on) for on in (False, True) for name in ("training", "prediction")]
    macs = shape.multiply_adds(first_token(shape.bert_base(CONFIG)), 16)
    for row, passes in zip(table, (3, 1, 3, 1)):  # forward, and twice as much backward
        assert row["peak_share"] == pytest.approx(passes * macs * row["notes_per_s"] / row["peak_macs_per_s"])


def test_training_is_compared_with_the_trainer(arguments):
    pytest.importorskip("accelerate")
    table = training.run(arguments[:4], tokens=4000, padded=1, rounds=1)
    assert len(table) == 6 and all(row["notes_per_s"] > 0 for row in table)
    header, cells = training.as_markdown(table)
    assert len(header) == len(cells[0]) == 9 and float(cells[-1][6]) == pytest.approx(
        table[-1]["notes_per_s"] / table[1]["notes_per_s"], abs=0.01
    )
    assert table[0]["notes"] == 16 < table[1]["notes"] < 80 and len({row["notes"] for row in table[1:]}) == 1


@pytest.mark.parametrize("technique", ["base", "lowrank", "distillation"])
def test_onnx_answers_as_pytorch_does(technique, runs, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    export.main([str(runs / technique), "--onnx", str(out)])
    assert "same answer 100.00%" in capsys.readouterr().out and [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    run, call = checkpoint.load(runs / technique), export.session(out)
    for batch, length in ((1, 5), (7, 40)):
        ids = torch.randint(5, 100, (batch, length))
        mask = torch.ones_like(ids)
        mask[0, 3:] = 0
        with torch.no_grad():
            ours = run.model(input_ids=ids, attention_mask=mask).logits.numpy()
        assert np.allclose(call(ids, mask), ours, atol=1e-4)


def test_onnx_of_a_logistic_head_answers_for_the_note(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    call = [
        "--task",
        "readmission",
        "--head",
        "logistic",
        "--epochs",
        "0",
        "--fraction",
        "0.3",
        "--max-length",
        "48",
        "--out",
        str(tmp_path),
    ]
    train.main(call)
    export.main([str(tmp_path / "base"), "--onnx", str(tmp_path / "a.onnx"), "--count", "8"])
    assert "same answer 100.00%" in capsys.readouterr().out
    ids = torch.randint(5, 100, (3, 12))
    assert export.session(tmp_path / "a.onnx")(ids, torch.ones_like(ids)).shape == (3, 2)


def test_onnx_int8_and_what_has_no_onnx_form(runs, tmp_path, refuses, capsys, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    dense, small = tmp_path / "a.onnx", tmp_path / "b.onnx"
    export.main([str(runs / "base"), "--onnx", str(dense), "--count", "8"])
    export.main([str(runs / "base"), "--onnx", str(small), "--int8", "--count", "8"])
    assert small.stat().st_size < 0.8 * dense.stat().st_size and "int8: largest logit difference" in capsys.readouterr().out
    assert "holds torch's int8 layers" in refuses(export.main, [runs / "quantization", "--onnx", tmp_path / "c.onnx"])
    run = checkpoint.load(runs / "base")
    encoded = run.task.encode([run.task.example("1", "fever")], run.tokenizer, 16, progress=False)
    assert np.isnan(export.compare(export.Logits(run.model, True), lambda ids, mask: np.full((len(ids), 5), np.nan), encoded, 0)[0])
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    assert "nothing was written" in refuses(export.main, [runs / "base", "--onnx", tmp_path / "c.onnx"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]
