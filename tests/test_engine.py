"""predict.py --engine: others answer as torch does; auto takes the fastest that does, and remembers it."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import export
import predict
import train
from conftest import ROOT, read_csv, run_words
from run import checkpoint, engine, forms

TIMES = {"torch": 9.0, "torch bf16": 8.0, "onnxruntime": 3.0, "openvino": 2.0, "openvino bf16": 1.0}


@pytest.fixture
def base(runs, tmp_path):
    """A copy of the base run, in which files may be left."""
    return shutil.copytree(runs / "base", tmp_path / "base")


@pytest.fixture(scope="module")
def others(demos, tmp_path_factory):
    """{task: a base run}: of spans, of notes read in several windows, and of masked words."""
    out = tmp_path_factory.mktemp("others")
    for task, epochs in (("ner", 8), ("readmission", 1), ("mlm", 1)):
        train.main(run_words(demos, task, out / task, "--epochs", epochs))
    return {task: out / task / "base" for task in ("ner", "readmission", "mlm")}


@pytest.fixture
def clock(monkeypatch):
    """{form: milliseconds} that every timing gives, of the forms that are timed; also what was timed."""
    seen = []

    def time_forms(calls, batches, rounds=3):
        seen.append(list(calls))
        return {name: TIMES.get(name, 20.0) for name in calls}

    monkeypatch.setattr(engine, "time_forms", time_forms)
    return seen


@pytest.fixture
def no_bf16(monkeypatch):
    """A CPU without bf16 products."""
    monkeypatch.setattr(engine, "multiplies_bf16", lambda: False)


def predicted(run, notes, out, *words):
    """The rows that predict.py writes."""
    predict.main([str(run), str(notes), "--out", str(out), *map(str, words)])
    return read_csv(out)


def alike(ours, theirs, within=1e-4):
    """Whether two files give every note the same label, and probabilities that differ by rounding."""
    numbers = [
        [float(value) for key, value in row.items() if key.startswith("p_")] for row in (*ours, *theirs)
    ]
    first, second = np.split(np.array(numbers), 2)
    labels = [[(row["row_id"], row["predicted"]) for row in rows] for rows in (ours, theirs)]
    return labels[0] == labels[1] and np.abs(first - second).max() < within


def test_every_engine_answers_as_torch_does(
    openvino, made_once, base, small, tmp_path, capsys, clock, no_bf16
):
    ours = predicted(base, small[0], tmp_path / "torch.csv")
    assert not (base / "engines").exists() and "engine: " not in capsys.readouterr().out
    for name, file in (("onnxruntime", "fp32.onnx"), ("openvino", "fp32.xml")):
        theirs = predicted(base, small[0], tmp_path / f"{name}.csv", "--engine", name)
        said = capsys.readouterr().out
        assert (
            f"engine: converting the model for {name} fp32" in said
            and f"engine: {name}, with the same answers as torch" in said
        )
        assert alike(ours, theirs)
        assert (base / "engines" / file).stat().st_mode & 0o077 == 0
        predicted(base, small[0], tmp_path / f"{name}.csv", "--engine", name)
        assert "converting" not in capsys.readouterr().out
    assert {path.name for path in (base / "engines").iterdir()} == {"fp32.onnx", "fp32.xml", "fp32.bin"}


def test_auto_takes_the_fastest_and_remembers_it(
    openvino, made_once, base, small, tmp_path, capsys, clock, monkeypatch
):
    monkeypatch.setattr(engine, "multiplies_bf16", lambda: True)
    monkeypatch.setitem(engine.LEAST, "bf16", 0.9)
    call = (base, small[0], tmp_path / "out.csv", "--engine", "auto")
    predicted(*call)
    said = capsys.readouterr().out
    assert "engine: openvino bf16, with " in said
    assert "openvino bf16 1.0, openvino 2.0, onnxruntime 3.0, torch bf16 8.0, torch 9.0" in said
    assert {path.name for path in (base / "engines").iterdir()} == {"bf16.xml", "bf16.bin"}  # not the others
    facts = json.loads((base / "engine.json").read_text())
    ((kind, choice),) = facts["choices"].items()
    assert kind.startswith("auto, rows of ") and choice["engine"] == "openvino bf16" and choice["notes"] > 9
    assert choice["agreement"]["openvino"]["same"] == 1.0
    assert {"cpu", "threads", "versions", "run"} <= facts["on"][kind].keys()

    predicted(*call)
    assert "as chosen before" in capsys.readouterr().out and len(clock) == 1
    predicted(*call, "--batch-tokens", 512)  # other notes are another choice
    predicted(*call)
    assert len(clock) == 2
    for change in (("cpu_name", "another CPU"), ("installed", "0.1")):
        with monkeypatch.context() as patch:
            patch.setattr(engine, change[0], lambda *_, new=change[1]: new)
            predicted(*call)
    assert len(clock) == 4
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        predicted(*call)
    finally:
        torch.set_num_threads(threads)
    assert len(clock) == 5


def test_what_is_left_of_a_choice_may_be_damaged(
    made_once, base, small, tmp_path, clock, no_bf16, monkeypatch
):
    monkeypatch.setattr(engine, "installed", lambda name: None if name == "openvino" else "1")
    call = (base, small[0], tmp_path / "out.csv", "--engine", "auto")
    predicted(*call)
    good = json.loads((base / "engine.json").read_text())
    kind = next(iter(good["choices"]))
    bad = ["", "[]", "{}", '{"on": [], "choices": 3}', '{"on": {"x": 1}, "choices": {}}', '{"on": null}']
    for name in (None, "zebra", "openvino int8", ["onnxruntime"], {}):
        bad.append(json.dumps({**good, "choices": {kind: {"engine": name}}}))
    bad.append(json.dumps({**good, "choices": {kind: None}}))
    for times, content in enumerate(bad, 2):
        (base / "engine.json").write_text(content)
        predicted(*call)
        assert len(clock) == times
        assert json.loads((base / "engine.json").read_text())["choices"][kind]["engine"] == "onnxruntime"


def test_a_form_that_answers_otherwise_is_not_taken(
    made_once, base, small, tmp_path, capsys, clock, no_bf16, monkeypatch, refuses
):
    original, wrong = forms.call_of, "negated"

    def call_of(name, *given):
        call = original(name, *given)
        how = {"negated": lambda x: -x, "NaN": lambda x: np.full_like(x, np.nan)}[wrong]
        return call if name == "torch" else lambda ids, mask: how(call(ids, mask))

    monkeypatch.setattr(engine, "call_of", call_of)
    monkeypatch.setattr(engine, "installed", lambda name: None if name == "openvino" else "1")
    call = [base, small[0], "--out", tmp_path / "out.csv", "--engine"]
    for wrong in ("negated", "NaN"):  # noqa: B007
        predict.main([*map(str, call), "auto"])
        said = capsys.readouterr().out
        assert "engine: torch, with " in said and "onnxruntime left out: " in said
        (base / "engine.json").unlink()
        assert not (base / "engines").exists()
        line = refuses(predict.main, [*call, "onnxruntime"])
        assert f"onnxruntime: {'it answers NaN' if wrong == 'NaN' else 'only '}" in line


def test_auto_stays_with_torch_unless_another_gains():
    assert engine.pick("auto", {"torch": 1.04, "onnxruntime": 1.0}) == "torch"
    assert engine.pick("auto", {"torch": 1.06, "onnxruntime": 1.0}) == "onnxruntime"
    assert engine.pick("onnxruntime", {"torch": 1.0, "onnxruntime": 9.0}) == "onnxruntime"
    assert engine.pick("openvino", {"torch": 1.0}) is None


def test_only_files_of_ours_are_opened(made_once, base, runs, small, tmp_path, clock, no_bf16, monkeypatch):
    opened, original = [], forms.open_file
    monkeypatch.setattr(forms, "open_file", lambda form, path: opened.append(path) or original(form, path))
    call = (base, small[0], tmp_path / "out.csv", "--engine", "onnxruntime")
    kept = base / "engines" / "fp32.onnx"
    kept.parent.mkdir()
    kept.write_bytes(b"from a stranger")
    predicted(*call)
    good = kept.read_bytes()
    assert good != b"from a stranger" and opened[0].parent != kept.parent and opened[-1] == kept

    other = shutil.copytree(runs / "lowrank", tmp_path / "other")  # a file of ours, but of another run
    (other / "engines").mkdir()
    shutil.copy(kept, other / "engines")
    run = checkpoint.load(other)
    assert forms.is_ours(kept, forms.run_key(checkpoint.load(base), base))
    assert not forms.is_ours(other / "engines" / "fp32.onnx", forms.run_key(run, other))
    for damage in (good[:-9], good + b"\0", b""):
        kept.write_bytes(damage)
        assert not forms.is_ours(kept, forms.run_key(checkpoint.load(base), base))
    kept.unlink()
    kept.symlink_to(small[0])
    assert not forms.is_ours(kept, forms.run_key(checkpoint.load(base), base))
    predicted(*call)
    assert not kept.is_symlink() and kept.read_bytes() == good

    marks = forms.mark_of(kept, "key").parent
    marks.chmod(0o755)  # others may have put a mark there
    try:
        assert not forms.is_ours(kept, forms.run_key(checkpoint.load(base), base))
    finally:
        marks.chmod(0o700)


def test_a_run_that_cannot_be_written_is_read(
    made_once, base, small, tmp_path, capsys, clock, no_bf16, monkeypatch
):
    monkeypatch.setattr(engine, "installed", lambda name: None if name == "openvino" else "1")

    def refuses_writing(*_, **__):
        raise engine.Unwritable("the run: cannot be written (Read-only file system)")

    monkeypatch.setattr(engine, "write_json", refuses_writing)
    (base / "engines").write_text("")  # where the folder should be
    ours = predicted(base, small[0], tmp_path / "torch.csv")
    theirs = predicted(base, small[0], tmp_path / "out.csv", "--engine", "auto")
    said = capsys.readouterr().out
    assert "the converted model is not kept: " in said and "the choice is not kept: " in said
    assert "engine: onnxruntime, with " in said and alike(ours, theirs)


def test_an_exported_int8_form_takes_part(
    made_once, base, small, tmp_path, capsys, clock, no_bf16, monkeypatch
):
    monkeypatch.setitem(TIMES, "onnxruntime int8", 0.5)
    monkeypatch.setitem(engine.LEAST, "int8", 0.5)
    call = (base, small[0], tmp_path / "out.csv", "--engine", "onnxruntime")
    predicted(*call)
    assert clock == [["torch", "onnxruntime"]]
    export.main([str(base), "--to", "onnx", "--int8", "--count", "8", "--notes", str(small[0])])
    predicted(*call)
    assert clock[1] == ["torch", "onnxruntime", "onnxruntime int8"]
    assert "engine: onnxruntime int8, with " in capsys.readouterr().out
    predicted(*call)
    assert len(clock) == 2

    onnx = pytest.importorskip("onnx")  # the same name, another file of ours: it is compared anew
    exported = base / "engines" / "int8.onnx"
    graph = onnx.load(exported)
    graph.doc_string = "another"
    onnx.save(graph, exported)
    forms.vouch(exported, forms.run_key(checkpoint.load(base), base))
    predicted(*call)
    assert len(clock) == 3


def test_spans_and_windows_are_those_of_torch(onnx, others, tmp_path, clock, no_bf16, monkeypatch):
    monkeypatch.setattr(engine, "installed", lambda name: None if name == "openvino" else "1")
    for task, ending in (("ner", "jsonl"), ("readmission", "csv")):
        run = shutil.copytree(others[task], tmp_path / task)
        notes, found = tmp_path / "notes.csv", {}
        texts = ["fever and cough, took aspirin 5 mg daily. " * times for times in (1, 2, 9)]
        notes.write_text("ROW_ID,TEXT\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(texts)))
        for name in ("torch", "onnxruntime"):
            out = tmp_path / f"{task}-{name}.{ending}"
            predict.main([str(run), str(notes), "--out", str(out), "--engine", name])
            found[name] = out.read_text()
        ours, theirs = (rounded(text) for text in found.values())
        assert ours == theirs and len(ours.splitlines()) >= 3


def rounded(text):
    """A file of answers whose numbers keep three places."""
    return re.sub(r"\d\.\d+", lambda found: f"{float(found[0]):.3f}", text)


def test_one_note_is_answered_on_standard_output_alone(made_once, base, capsys, clock, no_bf16, monkeypatch):
    monkeypatch.setattr(predict, "read_note", lambda: "fever and cough")
    predict.main([str(base), "-", "--engine", "onnxruntime"])
    said = capsys.readouterr()
    assert json.loads(said.out)["predicted"] and "engine: onnxruntime, with " in said.err
    kind = next(iter(json.loads((base / "engine.json").read_text())["choices"]))
    assert kind.endswith("one by one")


def test_where_only_torch_will_do(onnx, runs, others, small, tmp_path, capsys, refuses):
    notes, out = str(small[0]), str(tmp_path / "out.csv")
    for words in (["--embeddings", str(tmp_path / "v.npy")], ["--deterministic", "--out", out]):
        line = refuses(predict.main, [runs / "base", notes, *words, "--engine", "onnxruntime"])
        assert "--engine onnxruntime: --" in line and line.endswith("; leave it out")
    predict.main([str(runs / "base"), notes, "--embeddings", str(tmp_path / "v.npy"), "--engine", "auto"])
    assert "engine: torch; --embeddings" in capsys.readouterr().out

    words = [others["mlm"], "-", "--engine", "onnxruntime"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "read_note", lambda: "fever [MASK]")
        assert "--task mlm needs the logits of some tokens alone" in refuses(predict.main, words)


def test_an_int8_run_may_be_answered_by_another_engine(
    onnx, runs, small, tmp_path, capsys, clock, monkeypatch
):
    run = shutil.copytree(runs / "quantization", tmp_path / "run")
    monkeypatch.setattr(engine, "multiplies_bf16", lambda: True)
    ours = predicted(run, small[0], tmp_path / "torch.csv")
    theirs = predicted(run, small[0], tmp_path / "other.csv", "--engine", "auto")
    said = capsys.readouterr().out
    assert "torch bf16" in clock[0] and re.search(r"engine: (onnxruntime|openvino)( bf16)?, with ", said)
    assert np.mean([a["predicted"] == b["predicted"] for a, b in zip(ours, theirs, strict=True)]) > 0.95
    assert not alike(ours, theirs, 1e-9)  # torch rounds inputs, too
    (run / "engine.json").unlink()
    monkeypatch.setitem(engine.LEAST, "int8", 1.01)
    predicted(run, small[0], tmp_path / "third.csv", "--engine", "auto")
    said = capsys.readouterr().out
    assert "engine: torch, with " in said and "onnxruntime left out: only " in said


def test_without_engines_torch_serves(base, small, tmp_path, capsys, no_bf16, monkeypatch, refuses):
    monkeypatch.setattr(engine, "installed", lambda name: "1" if name == "torch" else None)
    call = [str(base), str(small[0]), "--out", str(tmp_path / "out.csv"), "--engine"]
    predict.main([*call, "auto"])
    assert "engine: torch; no other is installed" in capsys.readouterr().out
    assert "is not installed; pip install --no-deps" in refuses(predict.main, [*call, "openvino"])
    assert not (base / "engines").exists() and not (base / "engine.json").exists()


def test_a_file_that_is_there_needs_no_converter_and_a_foreign_one_is_named(
    base, small, tmp_path, capsys, no_bf16, onnx, monkeypatch, refuses
):
    monkeypatch.setattr(engine, "converts", lambda: False)
    monkeypatch.setattr(engine, "installed", lambda name: None if name == "openvino" else "1")
    call = [str(base), str(small[0]), "--out", str(tmp_path / "out.csv"), "--engine", "onnxruntime"]
    assert "onnx and onnxscript convert the model; pip install" in refuses(predict.main, call)
    export.main([str(base), "--to", "onnx", "--count", "4"])
    (base / "engines" / "int8.onnx").write_bytes(b"from elsewhere")
    predict.main(call)
    said = capsys.readouterr().out
    assert "engine: onnxruntime, with " in said
    assert "onnxruntime int8 left out: its file is not one that you made" in said
    shutil.rmtree(base / "engines")
    (base / "engine.json").unlink()


def test_an_answer_of_a_tie_is_no_other_answer():
    logits = [np.array([1.0, 1.0 - 1e-6])]
    found = engine.compare(engine.Said(logits, ["a"]), engine.Said([logits[0][::-1]], ["b"]))
    assert found.same == 0 and found.is_rounding()
    assert not engine.compare(
        engine.Said(logits, ["a"]), engine.Said([logits[0] + 0.01], ["b"])
    ).is_rounding()
    large = [1e4 * logits[0]]
    assert engine.compare(engine.Said(large, ["a"]), engine.Said([large[0] + 1], ["a"])).is_rounding()


def test_torch_in_bf16_is_a_form(base, small, tmp_path, capsys, clock, monkeypatch):
    monkeypatch.setattr(engine, "multiplies_bf16", lambda: True)
    monkeypatch.setattr(engine, "installed", lambda name: "1" if name == "torch" else None)
    monkeypatch.setitem(engine.LEAST, "bf16", 0.9)
    ours = predicted(base, small[0], tmp_path / "torch.csv")
    theirs = predicted(base, small[0], tmp_path / "out.csv", "--engine", "auto")
    assert "engine: torch bf16, with " in capsys.readouterr().out
    same = [a["predicted"] == b["predicted"] for a, b in zip(ours, theirs, strict=True)]
    assert sum(same) > 0.97 * len(same) and ours != theirs


def test_answers_of_two_engines_are_not_mixed(made_once, base, small, tmp_path, clock, no_bf16, monkeypatch):
    seen = []
    monkeypatch.setattr(predict, "predict_file", lambda *_, products: seen.append(products) or {})
    for name in ("torch", "onnxruntime"):
        predict.main([str(base), str(small[0]), "--out", str(tmp_path / "out.csv"), "--engine", name])
    assert seen[0].startswith("torch 2") and seen[1].startswith("onnxruntime 1")


def test_openvino_is_imported_without_its_telemetry(openvino, tmp_path):
    place = tmp_path / "openvino_telemetry"
    place.mkdir()
    (place / "__init__.py").write_text("raise SystemExit('telemetry was imported')")
    code = "from run.openvino_file import openvino_library; print(openvino_library().__version__)"
    path = ":".join([str(tmp_path), *sys.path])
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert found.returncode == 0 and found.stdout.startswith("20"), found.stderr[-500:]
    assert (ROOT / "requirements-engines.lock").read_text().count("openvino-telemetry==") == 0
