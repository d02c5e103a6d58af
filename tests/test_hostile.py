"""Directories from strangers: no code runs, nothing hangs or fills the memory, every fault is one line."""

import io
import json
import os
import shutil
import subprocess
import sys

import huggingface_hub
import pytest

import fuzz
import predict
import report
import train
from cli import BadInput, run_script
from conftest import ROOT
from files import checksum_of, read_json, write_json
from run import checkpoint, plots, untrusted

EVIL = """
import pathlib
pathlib.Path({marker!r}).write_text("ran")
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast
class EvilConfig(BertConfig):
    model_type = "evil"
class EvilModel(BertForSequenceClassification):
    config_class = EvilConfig
class EvilTokenizer(BertTokenizerFast):
    pass
"""
OWN_CODE = {"AutoConfig": "evil.EvilConfig", "AutoModelForSequenceClassification": "evil.EvilModel"}
CODE = {
    "a model of its own": ("config.json", {"model_type": "evil", "auto_map": OWN_CODE}),
    "code for a known model": ("config.json", {"auto_map": OWN_CODE}),
    "a tokenizer of its own": (
        "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": ["evil.EvilTokenizer"] * 2}, "tokenizer_class": "EvilTokenizer"},
    ),
}
FETCHED = {
    "a kernel": ("config.json", {"attn_implementation": "someone/kernel"}),
    "a kernel by its inner name": ("config.json", {"_attn_implementation_internal": "someone/kernel@v1:f"}),
    "a kernel of experts": ("config.json", {"_experts_implementation": "someone/kernel"}),
    "a kernel of a part": ("config.json", {"text_config": {"attn_implementation": {"": "someone/kernel"}}}),
    "a kernel that stands in": ("config.json", {"_attn_implementation": "flash_attention_2"}),
    "quantized weights": ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
}


def edit(path, changes):
    """Change entries of a JSON file; a dotted name goes inward."""
    whole = read_json(path)
    for name, value in changes.items():
        *parents, last = name.split(".")
        inner = whole
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    write_json(path, whole)


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the base run."""
    return shutil.copytree(runs / "base", tmp_path / "runs" / "run")


@pytest.fixture
def model(small, tmp_path):
    """A copy of a model directory."""
    return shutil.copytree(small[1], tmp_path / "model")


@pytest.fixture
def call(arguments, model, tmp_path):
    """train.py's arguments for that model."""
    words = [*arguments, "--out", str(tmp_path / "out"), "--cache", "none"]
    words[words.index("--model") + 1] = str(model)
    return words


# --- code


def test_a_piped_note_does_not_answer_whether_code_may_run(run, tmp_path):
    marker = tmp_path / "marker"
    (run / "evil.py").write_text(EVIL.format(marker=str(marker)))
    edit(run / "config.json", CODE["a model of its own"][1])
    done = subprocess.run(
        [sys.executable, str(ROOT / "predict.py"), str(run), "-"], input="y\nfever\n", capture_output=True,
        text=True, env={**os.environ, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert not marker.exists()
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is never run" in done.stderr


@pytest.mark.parametrize("what", CODE | FETCHED)
@pytest.mark.parametrize("which", ("a run", "a model"))
def test_code_and_kernels_are_refused(which, what, run, model, call, refuses, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    directory, marker = (run if which == "a run" else model), tmp_path / "marker"
    (directory / "evil.py").write_text(EVIL.format(marker=str(marker)))
    name, changes = (CODE | FETCHED)[what]
    edit(directory / name, changes)
    line = refuses(predict.main, [run, "-"]) if which == "a run" else refuses(train.main, call)
    assert name in line and not marker.exists() and sys.stdin.tell() == 0


@pytest.mark.parametrize("what", ("a kernel", "quantized weights"))
@pytest.mark.parametrize("which", ("a run", "a model"))
def test_a_config_that_stands_in_for_another_is_checked_too(which, what, run, model, call, refuses):
    directory = run if which == "a run" else model
    shutil.copy(directory / "config.json", directory / "config.4.0.0.json")
    edit(directory / "config.4.0.0.json", FETCHED[what][1])
    edit(directory / "config.json", {"configuration_files": ["config.4.0.0.json"]})  # transformers takes that
    line = refuses(predict.main, [run, "-"]) if which == "a run" else refuses(train.main, call)
    assert f"{directory}/config.json: names" in line or "has quantized weights" in line


def test_an_adapter_does_not_lead_to_another_model(model, call, refuses):
    write_json(model / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "/no/where"})
    assert "is an adapter to another model" in refuses(train.main, call)


# --- sizes


BIG = {
    "layers": ("config.json", {"num_hidden_layers": 10**9}),
    "a million layers": ("config.json", {"num_hidden_layers": 10**6}),
    "width": ("config.json", {"hidden_size": 10**6, "num_attention_heads": 1}),
    "words": ("config.json", {"vocab_size": 10**6}),
    "positions": ("config.json", {"max_position_embeddings": 900_000}),
}


@pytest.mark.parametrize("what", BIG)
@pytest.mark.parametrize("which", ("a run", "a model"))
def test_a_config_that_describes_a_giant_is_refused(which, what, run, model, call, refuses, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(checkpoint, "load_plain_state", never)
    edit((run if which == "a run" else model) / BIG[what][0], BIG[what][1])
    line = refuses(predict.main, [run, "-"]) if which == "a run" else refuses(train.main, call)
    assert "weights" in line or "tokenizer" in line


@pytest.mark.parametrize(
    "facts",
    (
        [{"technique": "pruning", "heads": [10**8, 1], "neurons": [10**8, 1]}],
        [{"technique": "lowrank", "ranks": {"bert.pooler.dense": 10**12}}],
        [{"technique": "lowrank", "ranks": {"bert.pooler.dense": 300}}],
        [{"technique": "lora", "names": ["bert.pooler.dense"], "rank": 10**9, "alpha": 1}],
        [{"technique": "quantization"}] * 10_000,
        [{"technique": "evil"}],
        [{}], [3], {}, 3, None,
    ),
)  # fmt: skip
def test_compression_that_cannot_be_is_refused(run, refuses, facts):
    write_json(run / "compression.json", facts)
    line = refuses(predict.main, [run, "-"])
    assert str(run) in line or "quantization" in line


# --- files


@pytest.mark.parametrize("name", ("model.safetensors", "run.json", "config.json", "tokenizer.json", "other"))
@pytest.mark.parametrize("kind", ("pipe", "device", "outside"))
def test_only_regular_files_within_the_directory_are_read(run, refuses, tmp_path, name, kind):
    path = run / name
    if path.exists():
        path.rename(tmp_path / name)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        (tmp_path / name).touch()
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / name)
    line = refuses(predict.main, [run, "-"])
    assert f"{path}: is " in line and ("regular" in line or "link out of its directory" in line)
    if name == "run.json":
        assert f"{path}: is " in refuses(report.main, [run.parent])


def test_a_model_in_the_hubs_cache_is_read_through_its_links(model, call, tmp_path):
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "1234", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(model, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    checkpoint.from_pretrained(str(snapshot), train.TASKS["symptoms"]())


def test_a_hub_model_is_measured_before_it_is_loaded(model, call, refuses, tmp_path, monkeypatch):
    edit(model / "config.json", {"vocab_size": 900_000})
    commit = "0" * 40
    home = tmp_path / "models--someone--giant"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    shutil.copytree(model, home / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    call[call.index("--model") + 1] = "someone/giant"
    assert "describe a model far larger" in refuses(train.main, call)
    edit(home / "snapshots" / commit / "config.json", {"vocab_size": 10**7})
    assert "larger than anything in the weights" in refuses(train.main, call)


def test_weights_larger_than_the_free_memory_are_not_loaded(run, refuses, monkeypatch):
    assert untrusted.free_memory() > 10**8
    monkeypatch.setattr(untrusted, "free_memory", lambda: 10**4)
    assert "GB of memory are free" in refuses(predict.main, [run, "-"])


def test_huge_files_are_not_read(run, refuses, tmp_path):
    for name in ("tokenizer.json", "vocab.txt", "run.json"):
        other = shutil.copytree(run, tmp_path / name)
        with open(other / name, "ab") as file:
            file.truncate(10**11)
        assert name in refuses(predict.main, [other, "-"])
    with open(run / "model.safetensors", "ab") as file:
        file.truncate(10**11)
    assert "no whole safetensors file" in refuses(predict.main, [run, "-"])


@pytest.mark.parametrize(
    "content", (b"", b"{}", b"[]", b"null", b"[" * 10**6, b"\xff\xfe", b'{"model": {"type": "WordPiece"}}')
)
@pytest.mark.parametrize("name", ("tokenizer.json", "tokenizer_config.json"))
def test_damaged_tokenizers_are_one_line(run, refuses, name, content, monkeypatch):
    (run / name).write_bytes(content)
    if name == "tokenizer_config.json" and content == b"{}":  # nothing is wrong with that
        checkpoint.load(run)
        return
    assert str(run) in refuses(predict.main, [run, "-"])


def test_what_the_tokenizers_rust_prints_is_not_seen(run, runs, capfd):
    edit(run / "tokenizer.json", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}})
    with pytest.raises(BadInput, match="do not fit together"):  # a panic, with a backtrace
        checkpoint.load(run)
    shutil.copy(runs / "base" / "tokenizer.json", run)
    word = {"__type": "AddedToken", "content": "[UNK]", "lstrip": False, "special": True, "evil": 1}
    edit(run / "tokenizer_config.json", {"unk_token": word})  # it names the unknown key
    checkpoint.load(run)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("names", ({"a": "../../other.safetensors"}, {"a": 3}, [], None))
def test_shards_stand_beside_their_index(model, call, refuses, names):
    (model / "model.safetensors").unlink()
    write_json(model / "model.safetensors.index.json", {"metadata": {}, "weight_map": names})
    assert "must name files beside it" in refuses(train.main, call)


def test_weights_elsewhere_are_not_read(model, call, refuses):
    edit(model / "config.json", {"transformers_weights": "../small/model.safetensors"})
    assert "names weights of its own" in refuses(train.main, call)


# --- weights


def test_a_model_that_fits_its_weights_and_computes_nothing_is_refused(run, refuses):
    edit(run / "config.json", {"chunk_size_feed_forward": 3})
    assert "its files do not fit together (ValueError)" in refuses(predict.main, [run, "-"])


def test_changed_weights_are_told_by_their_checksum(run, refuses):
    path = run / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "its checksum differs" in refuses(predict.main, [run, "-"])
    facts = read_json(run / "run.json")
    assert facts.pop("checksum") != checksum_of(path)
    write_json(run / "run.json", facts)  # as runs were written before
    assert checkpoint.load(run).facts == facts


# --- run.json and predictions.csv


@pytest.mark.parametrize(
    "changes",
    (
        {"task": None}, {"task.task": "evil"}, {"task.options": {"evil": 1}}, {"task.labels": [1, 2]},
        {"task.options.top_k": "3"}, {"task.labels": ["a", "b"]}, {"arguments": 3},
        {"arguments.max_length": "64"}, {"arguments.max_length": 10**9}, {"technique": []},
        {"precision": 16}, {"precision": "load"}, {"head": []},
    ),
)  # fmt: skip
def test_a_damaged_run_json_is_one_line(run, refuses, changes):
    edit(run / "run.json", changes)
    assert str(run) in refuses(predict.main, [run, "-"])


@pytest.mark.parametrize("content", ("{", "[]", "3", '{"task": {"task": "symptoms"}}', "[" * 10**5))
def test_whoever_reads_a_damaged_run_json_says_so_in_one_line(run, call, refuses, content):
    (run / "run.json").write_text(content)
    out, technique = ["--out", str(run.parent), "--name", "run"], ["--technique", "distillation"]
    for words in (["--start", run], [*technique, "--teacher", run], ["--model", run], out):
        line = refuses(train.main, [*call, *words])
        assert "run.json" in line or ("is a finished run" in line and "symptoms" in content)
    assert "run.json" in refuses(report.main, [run.parent])


@pytest.mark.parametrize(
    "content", (b"", b"row_id\n1\n", b"row_id,label,predicted\n1,2\n", b"\xff\xfe\0", b'a,b\n"1,2\n', b"\0")
)
def test_damaged_predictions_are_one_line(run, runs, refuses, content):
    shutil.copytree(runs / "base", run.parent / "base")
    (run / "predictions.csv").write_bytes(content)
    assert str(run) in refuses(report.main, [run.parent])
    assert not (run.parent / "results.json").exists()


def test_endless_predictions_are_not_read(run, runs, refuses):
    shutil.copytree(runs / "base", run.parent / "base")
    with open(run / "predictions.csv", "ab") as file:
        file.truncate(10**12)
    assert "predictions.csv: cannot be read as CSV" in refuses(report.main, [run.parent])


def test_a_tokenizer_without_a_word_for_unknown_ones_is_refused(run, refuses):
    words = read_json(run / "tokenizer.json")
    words["model"]["unk_token"] = "none"
    write_json(run / "tokenizer.json", words)
    edit(run / "tokenizer_config.json", {"unk_token": None, "tokenizer_class": "TokenizersBackend"})
    assert str(run) in refuses(predict.main, [run, "-"])


def test_runs_that_start_from_each_other_come_to_an_end(run, runs):
    edit(run / "run.json", {"start": "other"})
    other = shutil.copytree(run, run.with_name("other"))
    edit(other / "run.json", {"start": str(run)})
    rows = report.report_data(run.parent)[1]
    assert [row["techniques"] for row in rows] == ["base", "base"]


@pytest.mark.parametrize(
    "changes",
    (
        {"history": [{"Epoch": "x"}]}, {"history": [{"Epoch": 1.0, "F1": "x"}]}, {"history": [3]},
        {"test.confusion": [3]}, {"test.confusion": [[1, 2], [3, 4]]}, {"test.confusion": [["a"] * 5] * 5},
        {"sizes": {"bytes": 1, "parameters": 1}},
    ),
)  # fmt: skip
def test_what_cannot_be_drawn_is_one_line(run, refuses, changes):
    edit(run / "run.json", changes)
    assert str(run.parent) in refuses(report.main, [run.parent])
    assert not (run.parent / "results.json").exists()


def test_half_a_character_is_spelled_out(run):
    edit(run / "run.json", {"arguments.data": "a\ud800"})
    report.main([str(run.parent)])
    assert "a\\ud800" in (run.parent / "results.md").read_text()


def test_times_that_are_none_are_one_line(run, refuses):
    (run.parent / "benchmark.csv").write_text("technique,p50_ms\nrun,fast\n")
    assert "benchmark.csv: is damaged" in refuses(report.main, [run.parent])


def test_an_error_of_our_own_in_a_plot_stays_one(run, monkeypatch):
    def fails(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(plots, "plot_curves", fails)
    with pytest.raises(ZeroDivisionError):
        report.main([str(run.parent)])


# --- command lines


@pytest.mark.parametrize("content", (b"--data \xff", b"--data a\0b", b"@words", b"--data 'a"))
def test_a_damaged_file_of_arguments_is_one_line(refuses, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words").write_bytes(content)
    assert "@ file" in refuses(train.main, ["@words"])


def test_two_dashes_are_no_value(refuses):  # argparse makes an empty list of them
    for flag in ("--max-row-mb", "--data", "--lr"):
        assert f"argument {flag}: expected one argument" in refuses(train.main, [f"{flag}=--"])


def test_any_file_name_can_be_shown(refuses, monkeypatch, tmp_path):
    assert "--name \\udcff: give a plain name" in refuses(train.main, ["--name", "\udcff"])
    call = ["--model", ROOT, "--out", tmp_path, "--data", "a\nb\x1b[2J"]  # not results/, which may be there
    assert "a\\nb\\x1b[2J: no such file" in refuses(train.main, call)
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    run_script(lambda: print("\udcff"))
    assert out.buffer.getvalue() == b"\\udcff\n"


# --- any input


@pytest.mark.parametrize(
    ("part", "count", "accepted", "refused"),
    (
        ("runs", 250, 20, 120),
        ("readers", 250, 50, 80),
        ("caches", 100, 100, 0),
        ("progress", 150, 130, 0),
        ("flags", 250, 60, 80),
    ),
)
def test_no_input_ends_in_a_traceback(runs, part, count, accepted, refused):
    sources = [runs / "base", *sorted(path for path in runs.iterdir() if checkpoint.is_finished(path))]
    row, failures = fuzz.fuzz(part, sources, count, seed=0)
    assert not failures, "\n".join(failures)
    assert row["accepted"] >= accepted and row["refused"] >= refused, json.dumps(row)
