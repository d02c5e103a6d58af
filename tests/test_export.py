"""export.py: the file answers as PyTorch does, or is not written."""

import csv
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import export
import train
from conftest import run_words, write_notes
from fast.attention import multiplies_bf16
from layers import has_int8, is_int8
from run import checkpoint, engine, forms
from run.onnx_file import open_onnx
from run.openvino_file import open_openvino, to_openvino


def answers_alike(run, *calls):
    """Raises AssertionError unless calls answer as a run's model does, for any batch, length and mask."""
    for batch, length in ((1, 5), (7, 40)):
        ids = torch.randint(5, 100, (batch, length))
        mask = torch.ones_like(ids)
        mask[0, 3:] = 0
        with torch.no_grad():
            ours = forms.in_fp32(run.model)(input_ids=ids, attention_mask=mask).logits.numpy()
        assert all(np.allclose(call(ids, mask), ours, atol=1e-4) for call in calls)


@pytest.mark.parametrize("technique", ["base", "lowrank", "distillation"])
def test_onnx_answers_as_pytorch_does(technique, onnx, runs, tmp_path, capsys):
    out = tmp_path / "model.onnx"
    export.main([str(runs / technique), "--to", "onnx", "--out", str(out)])
    assert "same answer 100.00%" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert out.stat().st_mode & 0o077 == 0
    run = checkpoint.load(runs / technique)
    answers_alike(run, open_onnx(out))
    if not (forms.installed("openvino") and forms.converts()):
        pytest.skip("OpenVINO is not installed (requirements-engines.lock)")
    to_openvino(out, tmp_path / "model.xml")
    answers_alike(run, open_openvino(tmp_path / "model.xml"))


def test_a_bf16_run_is_exported_in_fp32(onnx, runs, tmp_path, arguments, capsys):
    train.main([*arguments, "--technique", "bf16", "--start", str(runs / "base"), "--out", str(tmp_path)])
    out = tmp_path / "model.onnx"
    export.main([str(tmp_path / "bf16"), "--to", "onnx", "--out", str(out)])
    assert "same answer 100.00%" in capsys.readouterr().out
    run = checkpoint.load(tmp_path / "bf16")
    answers_alike(run, open_onnx(out))
    names = engine.possible("auto", forms.Files(run, tmp_path / "bf16"))
    assert "onnxruntime" in names and "torch bf16" not in names


def test_openvino_in_every_precision(openvino, made_once, runs, tmp_path, capsys):
    if not find_spec("nncf"):
        pytest.skip("NNCF is not installed (requirements-engines.lock)")
    sizes = {}
    for flag in ("", "--bf16", "--int8"):
        out = tmp_path / f"a{flag}.xml"
        export.main(
            [str(runs / "base"), "--to", "openvino", "--out", str(out), "--count", "8", *flag.split()]
        )
        said = capsys.readouterr().out
        assert f"openvino{flag.replace('--', ' ')}: 8 notes of " in said and "Statistics" not in said
        sizes[flag] = out.with_suffix(".bin").stat().st_size
        assert all(part.stat().st_mode & 0o077 == 0 for part in forms.parts_of_file(out))
    assert len(list(tmp_path.iterdir())) == 6
    assert sizes["--int8"] < sizes["--bf16"] < sizes[""]
    ids = torch.randint(5, 100, (3, 12))
    exact, half = (
        open_openvino(tmp_path / f"a{flag}.xml")(ids, torch.ones_like(ids)) for flag in ("", "--bf16")
    )
    assert np.allclose(exact, half, atol=0.1) and not (
        multiplies_bf16() and np.allclose(exact, half, atol=1e-6)
    )


def test_a_logistic_head_answers_for_the_note(onnx, demos, tmp_path, capsys):
    train.main(run_words(demos, "readmission", tmp_path, "--head logistic --epochs 0"))
    export.main([str(tmp_path / "base"), "--to", "onnx", "--out", str(tmp_path / "a.onnx"), "--count", "8"])
    assert "same answer 100.00%" in capsys.readouterr().out
    ids = torch.randint(5, 100, (3, 12))
    assert open_onnx(tmp_path / "a.onnx")(ids, torch.ones_like(ids)).shape == (3, 2)


def test_a_run_of_int8_layers_is_written_with_their_values(onnx, runs, tmp_path, capsys):
    directory, path = runs / "distillation+lowrank+pruning+quantization", tmp_path / "a.onnx"
    export.main([str(directory), "--to", "onnx", "--out", str(path), "--count", "8"])
    assert "onnxruntime: 8 notes of " in capsys.readouterr().out
    run = checkpoint.load(directory)
    layers = [name for name, module in run.model.named_modules() if is_int8(module)]
    values = {name: run.model.get_submodule(name).weight().dequantize() for name in layers}
    copy = forms.in_fp32(run.model)
    assert len(layers) > 5 and not has_int8(copy) and has_int8(run.model)
    assert all(torch.equal(copy.get_submodule(name).weight, values[name]) for name in layers)
    ids = torch.randint(5, 100, (3, 12))
    embedded = [model.get_input_embeddings()(ids) for model in (run.model, copy)]
    assert torch.equal(*embedded)
    found = torch.from_numpy(open_onnx(path)(ids, torch.ones_like(ids)))
    with torch.inference_mode():
        expected, rounded = (model(input_ids=ids).logits for model in (copy, run.model))
    assert torch.allclose(found, expected, atol=1e-4)
    assert (found - rounded).norm() < 0.1 * rounded.norm()
    export.main([str(directory), "--to", "onnx", "--int8", "--out", str(tmp_path / "b.onnx"), "--count", "8"])
    assert (tmp_path / "b.onnx").stat().st_size < 0.8 * path.stat().st_size


def test_int8_and_what_is_refused(onnx, made_once, runs, tmp_path, refuses, capsys, monkeypatch):
    base, dense, small = str(runs / "base"), tmp_path / "a.onnx", tmp_path / "b.onnx"
    export.main([base, "--to", "onnx", "--out", str(dense), "--count", "8"])
    assert "warning" not in capsys.readouterr().out
    monkeypatch.setitem(engine.LEAST, "int8", 1.01)
    export.main([base, "--to", "onnx", "--out", str(small), "--int8", "--count", "8"])
    assert small.stat().st_size < 0.8 * dense.stat().st_size
    said = capsys.readouterr().out
    assert "onnxruntime int8: 8 notes of " in said and "warning: that is less than the 101%" in said

    to = ["--to", "onnx", "--out", tmp_path / "c.onnx"]
    assert "multiplies no bf16" in refuses(export.main, [base, *to, "--bf16"])
    assert "ends in .onnx" in refuses(export.main, [base, "--to", "onnx", "--out", tmp_path / "c.xml"])
    monkeypatch.setattr(engine, "ROUNDING", -1.0)
    assert "nothing was written" in refuses(export.main, [base, *to])
    nan = np.full((99, 5), np.nan)
    monkeypatch.setattr(export, "open_file", lambda form, path: lambda ids, mask: nan[: len(ids)])
    assert "differ by nan; nothing was written" in refuses(export.main, [base, *to, "--int8"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_answers_are_compared_by_logit_and_by_label():
    ours = engine.Said([np.zeros(2), np.ones(2)], ["a", "b"])
    theirs = engine.Said([np.full(2, 0.25), np.ones(2)], ["a", "c"])
    assert engine.compare(ours, theirs)[:2] == (0.25, 0.5)
    assert np.isnan(engine.compare(ours, engine.Said([np.full(2, np.nan), np.ones(2)], ["a", "b"])).largest)


def test_notes_to_calibrate_with_are_training_notes(runs, small, tmp_path, refuses):
    run, args = checkpoint.load(runs / "base"), export.build_export_parser().parse_args
    given = args(
        [str(runs / "base"), "--to", "openvino", "--int8", "--calibration-notes", "5", "--count", "7"]
    )
    checking, calibrating, _ = export.notes_to_use(run, given)
    splits = export.own_notes(run, runs / "base")[0]
    assert {note.row_id for note in calibrating} <= {note.row_id for note in splits["train"]}
    assert [note.row_id for note in checking] == [note.row_id for note in splits["validation"][:7]]
    batches = export.calibration_batches(run, calibrating)
    assert sum(len(batch["input_ids"]) for batch in batches) == len(calibrating) == 5

    given.notes = str(small[0])
    checking, calibrating, _ = export.notes_to_use(checkpoint.load(runs / "base"), given)
    assert (len(checking), len(calibrating)) == (7, 5) and not set(map(id, checking)) & set(
        map(id, calibrating)
    )
    given.count = 10**6
    with pytest.raises(export.BadInput, match="none left to calibrate with"):
        export.notes_to_use(checkpoint.load(runs / "base"), given)


def test_notes_may_stand_in_a_column_of_another_name(runs, small, tmp_path, onnx, capsys, refuses):
    with open(small[0], newline="", encoding="utf-8") as table:
        header, *rows = csv.reader(table)
    other = ["note" if name == "TEXT" else name for name in header]
    notes = write_notes(tmp_path / "other.csv", rows[:4], other)
    call = [str(runs / "base"), "--to", "onnx", "--out", str(tmp_path / "a.onnx")]
    assert "no column 'TEXT'" in refuses(export.main, [*call, "--notes", str(notes)])
    assert "names a column of --notes" in refuses(export.main, [*call, "--text-columns", "note"])
    export.main([*call, "--notes", str(notes), "--text-columns", "note"])
    assert "onnxruntime: 4 notes of " in capsys.readouterr().out


def test_a_validation_file_of_the_runs_own_is_named(small, arguments, tmp_path, capsys, refuses):
    with open(small[0], newline="", encoding="utf-8") as table:
        header, *rows = csv.reader(table)
    own = write_notes(tmp_path / "own.csv", rows[300:], header)
    notes = write_notes(tmp_path / "notes.csv", rows[:300], header)
    call = ["--data", str(notes), "--validation", str(own), "--epochs", "1", "--out", str(tmp_path / "out")]
    train.main([*arguments, *call])
    run = checkpoint.load(tmp_path / "out" / "base")
    splits, file = export.own_notes(run, tmp_path / "out" / "base")
    assert file == str(own)
    assert {example.row_id for example in splits["validation"]} <= {row[0] for row in rows[300:]}

    if not (forms.installed("onnxruntime") and forms.converts()):
        pytest.skip("ONNX Runtime is not installed (requirements-engines.lock)")
    export.main([str(tmp_path / "out" / "base"), "--to", "onnx", "--count", "8"])
    assert f"8 notes of {own}," in capsys.readouterr().out
    assert (tmp_path / "out" / "base" / "engines" / "fp32.onnx").exists()
    own.unlink()
    line = refuses(export.main, [tmp_path / "out" / "base", "--to", "onnx"])
    assert f"{own}: the run's own notes are not there" in line


def test_notes_to_check_with_may_have_long_rows(runs, tmp_path, refuses, monkeypatch):
    notes = write_notes(tmp_path / "notes.csv", [("1", "1", "fever " * 250_000)])
    for name in ("onnx_library", "onnx_runtime"):
        monkeypatch.setattr(export, name, lambda: None)
    monkeypatch.setattr(forms, "to_onnx", lambda model, path, first: Path(path).touch())
    monkeypatch.setattr(
        export, "open_file", lambda form, path: forms.torch_call(checkpoint.load(runs / "base").model, True)
    )
    call = [str(runs / "base"), "--to", "onnx", "--out", str(tmp_path / "a.onnx"), "--notes", str(notes)]
    assert "more than 1 MB in one row" in refuses(export.main, [*call, "--max-row-mb", "1"])
    export.main([*call, "--max-row-mb", "2"])
