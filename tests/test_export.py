"""export.py: the ONNX file answers as PyTorch does, or is not written."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

import export
import train
from conftest import write_notes
from run import checkpoint, onnx_file


@pytest.mark.parametrize("technique", ["base", "lowrank", "distillation"])
def test_onnx_answers_as_pytorch_does(technique, runs, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    export.main([str(runs / technique), "--onnx", str(out)])
    assert "same answer 100.00%" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    run, call = checkpoint.load(runs / technique), onnx_file.session(out)
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
    call = ["--task", "readmission", "--head", "logistic", "--epochs", "0", "--fraction", "0.3"]
    call += ["--max-length", "48", "--out", str(tmp_path)]
    train.main(call)
    export.main([str(tmp_path / "base"), "--onnx", str(tmp_path / "a.onnx"), "--count", "8"])
    assert "same answer 100.00%" in capsys.readouterr().out
    ids = torch.randint(5, 100, (3, 12))
    assert onnx_file.session(tmp_path / "a.onnx")(ids, torch.ones_like(ids)).shape == (3, 2)


def test_onnx_int8_and_what_has_no_onnx_form(runs, tmp_path, refuses, capsys, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    dense, small = tmp_path / "a.onnx", tmp_path / "b.onnx"
    export.main([str(runs / "base"), "--onnx", str(dense), "--count", "8"])
    export.main([str(runs / "base"), "--onnx", str(small), "--int8", "--count", "8"])
    assert small.stat().st_size < 0.8 * dense.stat().st_size
    assert "int8: largest logit difference" in capsys.readouterr().out
    line = refuses(export.main, [runs / "quantization", "--onnx", tmp_path / "c.onnx"])
    assert "holds torch's int8 layers" in line
    run = checkpoint.load(runs / "base")
    encoded = run.task.encode([run.task.example("1", "fever")], run.tokenizer, 16, progress=False)
    ours = onnx_file.Logits(run.model, True)
    largest, _ = export.compare(ours, lambda ids, mask: np.full((len(ids), 5), np.nan), encoded, 0)
    assert np.isnan(largest)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    assert "nothing was written" in refuses(export.main, [runs / "base", "--onnx", tmp_path / "c.onnx"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_a_validation_file_of_the_runs_own_is_named(small, arguments, tmp_path, capsys, refuses):
    with open(small[0], newline="", encoding="utf-8") as table:
        header, *rows = csv.reader(table)
    own = write_notes(tmp_path / "own.csv", rows[300:], header)
    notes = write_notes(tmp_path / "notes.csv", rows[:300], header)
    call = ["--data", str(notes), "--validation", str(own), "--epochs", "1", "--out", str(tmp_path / "out")]
    train.main([*arguments, *call])
    run = checkpoint.load(tmp_path / "out" / "base")
    examples, file = export.validation_notes(run, tmp_path / "out" / "base", 8)
    assert file == str(own) and {example.row_id for example in examples} <= {row[0] for row in rows[300:]}

    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    export.main([str(tmp_path / "out" / "base"), "--onnx", str(tmp_path / "a.onnx"), "--count", "8"])
    assert f"8 rows of {own}," in capsys.readouterr().out
    own.unlink()
    line = refuses(export.main, [tmp_path / "out" / "base", "--onnx", tmp_path / "b.onnx"])
    assert f"{own}: the run's own notes are not there" in line


def test_notes_to_check_with_may_have_long_rows(runs, tmp_path, refuses, monkeypatch):
    notes = write_notes(tmp_path / "notes.csv", [("1", "1", "fever " * 250_000)])
    monkeypatch.setattr(export, "libraries", lambda: None)
    monkeypatch.setattr(export, "write_checked", lambda run, args, *_: Path(args.onnx).touch())
    call = [str(runs / "base"), "--onnx", str(tmp_path / "a.onnx"), "--notes", str(notes), "--max-row-mb"]
    assert "more than 1 MB in one row" in refuses(export.main, [*call, "1"])
    export.main([*call, "2"])
