"""The benchmark and the sweep, on small shapes: that they count and say what they should."""

import contextlib
import functools
import subprocess
import sys

import pytest
import torch
from transformers import BertConfig

import benchmark
import files
from bench import gpu, memory, processes, shape, training, volume
from cli import BadInput
from conftest import ROOT, read_csv
from fast import cpu, speedups
from layers import parameter_count
from test_results import script

SHAPE = {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 512}
CONFIG = BertConfig(vocab_size=500, num_labels=5, **SHAPE)
TINY = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
FEW = ("base, plain torch", "base", "lowrank --rank 32", "quantization", "pruning+quantization")


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


def test_one_process_and_two_are_measured_on_the_same_training(arguments, monkeypatch):
    one, two = processes.process_rows(arguments, rounds=1)
    assert (one["processes"], two["processes"]) == (1, 2) and one["tokens_per_s"] > 0 < two["tokens_per_s"]
    assert one["test_loss"] == pytest.approx(two["test_loss"], abs=2e-3)
    header, cells = processes.process_table([one, two])
    assert all(len(row) == len(header) for row in cells)
    said = "error: nowhere.csv: no such file\n==== a report of torchrun ===="
    failed = subprocess.CompletedProcess([], 1, stderr=said)
    monkeypatch.setattr(processes.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(BadInput, match="in 2 processes: nowhere.csv"):
        processes.trained(2, ["--data", "nowhere.csv"])


def test_multiply_adds_are_those_of_the_layers():
    model = shape.bert_base(CONFIG)
    dense = 4 * (4 * 384 * 384 + 2 * 384 * 512) * 16
    dense += 384 * 384 + 384 * 5  # the pooler and the head read one token
    attention = 4 * 2 * 16 * 16 * 384
    assert shape.multiply_adds(model, 16) == dense + attention
    assert shape.multiply_adds(shape.compressed("quantization", {}, CONFIG), 16) == dense + attention


def test_rows_of_the_shape_part_are_what_their_names_say(monkeypatch):
    same, few = FEW[-1], BertConfig(vocab_size=500, num_labels=5, **SHAPE | {"num_hidden_layers": 2})
    monkeypatch.setattr(shape, "SAME_WEIGHTS", (same,))
    monkeypatch.setattr(shape, "matrix_rate", lambda: 1e12)
    half = shape.compressed("pruning", shape.HALF, CONFIG)
    base = shape.bert_base(CONFIG)
    with shape.answering_first(half), shape.answering_first(base):
        assert 0.4 < shape.multiply_adds(half, 64) / shape.multiply_adds(base, 64) < 0.55
    student = shape.compressed("distillation", shape.STUDENT, CONFIG)
    assert (student.config.num_hidden_layers, student.config.hidden_size) == (4, 312)
    assert parameter_count(student) < parameter_count(base)
    assert shape.stored_bytes(base) == pytest.approx(4 * parameter_count(base), rel=0.01)
    table = shape.shape_rows(16, 2, 2, {name: shape.ROWS[name] for name in FEW}, few)
    assert [row["row"] for row in table][: len(FEW)] == list(FEW)
    assert all(row["notes_per_s"] > 0 for row in table)
    sizes = [row["bytes"] for row in table[: len(FEW)]]
    assert sizes[0] == sizes[1] > sizes[3] > sizes[4] and sizes[2] < sizes[0]
    named = {row["row"]: row for row in table}
    if "OpenVINO, int8" in named:
        ours, theirs = named[same], named[f"OpenVINO, int8 of {same}"]
        assert ours["macs"] == theirs["macs"] < named["OpenVINO, int8"]["macs"]
    header, cells = shape.shape_table(table)
    assert all(len(row) == len(header) for row in cells) and float(cells[2][4]) == pytest.approx(
        table[2]["notes_per_s"] / table[0]["notes_per_s"], abs=0.01
    )


def test_without_bf16_products_a_bf16_model_is_timed_in_fp32(monkeypatch):
    monkeypatch.setattr(shape, "computes_bf16", lambda: False)
    rows = {name: shape.ROWS[name] for name in ("base", "bf16")}
    with contextlib.ExitStack() as opened:
        found = shape.contenders(rows, 16, CONFIG, opened)
    model, size, _ = found["bf16"]
    assert {p.dtype for p in model.parameters()} == {torch.float32} and size < 0.51 * found["base"][1]


def test_what_was_told_is_shown_for_all_parts_with_and_without_a_chain():
    for words, chains in (([], []), (["--chain", "results/private/lora"], ["--chain=results/private/lora"])):
        told = benchmark.shown_arguments(benchmark.benchmark_arguments(words), list(benchmark.PARTS))
        assert [word for word in told if word.startswith("--chain")] == chains


def test_the_parts_write_their_tables(tmp_path, refuses, runs, monkeypatch):
    monkeypatch.setattr(shape, "shape_rows", lambda *_: [{"row": "x"}])
    monkeypatch.setattr(shape, "shape_table", lambda table: (["row"], [["x"]]))
    call = ["--parts", "shape,volume", "--rounds", "2", "--notes", "30"]
    benchmark.main([*call, "--out", str(tmp_path), "--run", str(runs / "quantization")])
    text = (tmp_path / "benchmark.md").read_text()
    assert "## shape" in text and "## volume" in text
    assert [row["notes"] for row in read_csv(tmp_path / "volume.csv")] == ["30"]
    stored = files.read_json(tmp_path / "benchmark.json")
    assert list(stored["conditions"]) == ["shape", "volume"] and stored["machine"]["cpu"]
    assert all(told in text for told in stored["conditions"].values())
    assert {"--parts=shape,volume", "--rounds=2", "--notes=30"} <= set(stored["arguments"])
    assert str(tmp_path.parent) not in str(stored)
    assert "no finished run" in refuses(benchmark.main, ["--parts", "shape", "--run", str(tmp_path)])
    assert "reads at most 512" in refuses(benchmark.main, ["--parts", "shape", "--length", "600"])
    assert "no such task" in refuses(benchmark.main, ["--parts", "shape", "--training", "--task x"])
    assert "No closing quotation" in refuses(benchmark.main, ["--training", "--data 'x"])
    assert "no part 'speed'" in refuses(benchmark.main, ["--parts", "speed"])
    if not torch.cuda.is_available():
        assert "no GPU" in refuses(benchmark.main, ["--parts", "gpu"])


def test_lora_is_measured_beside_training_all_weights(monkeypatch):
    words = ["--max-length", "16", "--fraction", "0.1"]

    def in_this_process(code, name, tokens, depth, *words):
        return [*memory.train_epoch(name, tokens, depth, words)], 10**9

    monkeypatch.setattr(memory, "run_child", in_this_process)
    table = memory.memory_rows(words, tokens=64, rounds=1, depth=1)
    everything, eight, one = table
    assert everything["trained"] == everything["parameters"]
    per_rank = 2 * (768 + 768)  # queries and values of one layer
    assert eight["parameters"] - everything["parameters"] == 8 * per_rank
    assert eight["trained"] - one["trained"] == 7 * per_rank
    header, cells = memory.memory_table(table)
    assert all(len(row) == len(header) for row in cells) and cells[0][3] == "1.00"


def test_reading_is_measured_as_it_is_done(tmp_path, runs, monkeypatch):
    monkeypatch.setattr(volume, "find_spec", lambda name: None)
    call = ["--parts", "reading", "--notes", "400", "--rounds", "2", "--run", str(runs / "base")]
    benchmark.main([*call, "--out", str(tmp_path)])
    table = read_csv(tmp_path / "reading.csv")
    assert [(row["row"], row["notes"]) for row in table] == [("labels", "400"), ("first batch", "400")]
    for row in table:
        assert 0.7 < int(row["labelled"]) / int(row["notes"]) < 0.95 and int(row["peak_bytes"]) > 10**8
        assert (row["tokens"] == "") == (row["row"] == "labels")
    assert "--notes=400" in files.read_json(tmp_path / "benchmark.json")["arguments"]


def test_the_gpu_part_counts_what_the_layers_do():
    model, head = shape.bert_base(CONFIG), 384 * 384 + 384 * 5
    for first in (False, True):
        with speedups(model, reads_first=first):
            macs = shape.multiply_adds(model, 16) - head
        assert gpu.flops_per_token(CONFIG, 16, first) * 16 == pytest.approx(2 * macs)
    linears = 4 * (4 * 384 * 384 + 2 * 384 * 512)
    assert gpu.flops_per_token(CONFIG, 16, False) == 2 * linears + 4 * 4 * 384 * 16


def test_the_gpu_part_measures_on_any_device(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "onednn_pays", lambda model: False)  # whose layers multiply no bf16
    few = {"training": (2,), "prediction": (4,)}
    config = BertConfig(vocab_size=500, num_labels=5, **TINY)
    tiny = functools.partial(gpu.gpu_rows, "cpu", batches=few, config=config, backend="eager")
    monkeypatch.setattr(gpu, "gpu_rows", tiny)
    monkeypatch.setattr(benchmark, "chosen_parts", lambda args: ["gpu"])
    benchmark.main(["--length", "16", "--rounds", "2", "--out", str(tmp_path)])
    table = read_csv(tmp_path / "gpu.csv")
    names = ["training", "prediction"]
    names += [f"{name}, plain" for name in names]
    assert [row["row"] for row in table] == 2 * names
    assert [row["compiled"] for row in table] == ["False"] * 4 + ["True"] * 4
    for row in table:
        seconds, tokens = float(row["ms"]) / 1e3, 16 * int(row["batch"])
        passes = 3 if "training" in row["row"] else 1  # forward, and twice as much backward
        flops = passes * gpu.flops_per_token(config, 16, "plain" not in row["row"])
        assert float(row["flops_per_s"]) == pytest.approx(flops * tokens / seconds, rel=1e-4)
        share = float(row["flops_per_s"]) / float(row["peak_flops_per_s"])
        assert float(row["peak_share"]) == pytest.approx(share, abs=1e-5)
    assert "TFLOP/s" in files.read_json(tmp_path / "benchmark.json")["conditions"]["gpu"]
    assert "| training | no | 2 |" in "\n".join(script().speed_section(ROOT, tmp_path)).replace("  ", " ")


def test_training_is_compared_with_the_trainer(arguments):
    pytest.importorskip("accelerate")
    table = training.training_rows(arguments[:4], tokens=4000, padded=1, rounds=1)
    assert len(table) == 6 and all(row["notes_per_s"] > 0 for row in table)
    header, cells = training.training_table(table)
    assert len(header) == len(cells[0]) == 9 and float(cells[-1][6]) == pytest.approx(
        table[-1]["notes_per_s"] / table[1]["notes_per_s"], abs=0.01
    )
    assert table[0]["notes"] == 16 < table[1]["notes"] < 80 and len({row["notes"] for row in table[1:]}) == 1
