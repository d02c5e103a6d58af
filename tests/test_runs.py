"""Whole runs: train, save, rebuild, predict, report; interruption; determinism; every refused input."""

import contextlib
import gzip
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

import benchmark
import files
import predict
import train
from compress.quantization import Int8Embedding, is_int8
from conftest import ROOT, read_csv, write_notes
from data import SPLITS, fingerprint
from fast import cpu, dropout
from metrics import OVERALL
from run import arguments, checkpoint, inference, machine, origin, schedule
from tasks import demo
from tasks.symptoms import SYMPTOMS, Symptoms

CHAIN = "distillation+lowrank+pruning+quantization"
TECHNIQUES = ("base", "pruning", "lowrank", "distillation", "quantization", CHAIN)


def scored_again(run, small):
    """(row ids, probabilities) of a rebuilt run on the test split, batched as train.py did."""
    facts = run.facts["arguments"]
    splits, _ = run.task.load(
        str(small[0]), facts["fraction"], facts["validation"], facts["test"], facts["split_seed"]
    )
    assert fingerprint(splits) == run.facts["data"]["split"]
    return [note.row_id for note in splits["test"]], np.stack(inference.predict_examples(run, splits["test"]))


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_rebuilt_run_scores_as_it_did_in_training(runs, small, technique):
    run = checkpoint.load(runs / technique)
    rows, probabilities = scored_again(run, small)
    stored = read_csv(runs / technique / "predictions.csv")
    assert [row["row_id"] for row in stored] == rows
    assert np.allclose([[float(row[f"p_{s}"]) for s in SYMPTOMS] for row in stored], probabilities, atol=1e-6)
    right = np.mean([row["label"] == row["predicted"] for row in stored])
    assert right == pytest.approx(run.facts["test"]["overall"]["Accuracy"])


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_run_directory_is_safetensors_and_json_and_holds_no_text(runs, small, technique):
    names = {path.name for path in (runs / technique).iterdir()}
    weights = checkpoint.weights_path(runs / technique)
    assert {
        "config.json",
        "compression.json",
        "run.json",
        "predictions.csv",
        "tokenizer.json",
        "eval_metrics.json",
        "README.md",
        "train_keys.safetensors",
        weights.name,
    } <= names
    assert not [n for n in names if not n.endswith((".json", ".safetensors", ".csv", ".txt", ".md"))]
    texts = [row["TEXT"] for row in read_csv(small[0]) if row["TEXT"]]
    for name in names - {weights.name, "tokenizer.json", "vocab.txt"}:
        content = (runs / technique / name).read_text(errors="replace").lower()
        assert not any(
            line in content for text in texts[:50] for line in text.lower().splitlines() if len(line) > 25
        )
    facts = files.read_json(runs / technique / "run.json")
    with safe_open(weights, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    int8 = sum(tensor.dtype == torch.int8 for tensor in tensors.values())
    layers = [
        m
        for m in checkpoint.load(runs / technique).model.modules()
        if is_int8(m) or isinstance(m, Int8Embedding)
    ]
    assert int8 == len(layers) and bool(int8) == ("quant" in technique)
    assert facts["sizes"]["bytes"] == weights.stat().st_size
    assert facts["machine"]["cpu"] and facts["machine"]["threads"] and facts["arguments"]["seed"] == 42


def test_every_technique_but_pruning_and_base_is_smaller(runs):
    sizes = {technique: checkpoint.sizes(runs / technique) for technique in TECHNIQUES}
    assert (
        sizes["pruning"]["parameters"] == sizes["base"]["parameters"]
        and sizes["pruning"]["nonzero"] < sizes["base"]["nonzero"]
    )
    for technique in ("lowrank", "distillation"):
        assert (
            sizes[technique]["bytes"] < sizes["base"]["bytes"]
            and sizes[technique]["parameters"] < sizes["base"]["parameters"]
        )
    assert sizes["quantization"]["parameters"] == sizes["base"]["parameters"]
    assert sizes["quantization"]["bytes"] < sizes["base"]["bytes"]


@pytest.mark.parametrize("technique", ("lowrank", "quantization", CHAIN))
def test_plain_transformers_refuses_what_it_cannot_build_and_says_why(runs, technique):
    for load in (
        AutoModelForSequenceClassification.from_pretrained,
        BertForSequenceClassification.from_pretrained,
    ):
        with pytest.raises((ValueError, OSError), match="which transformers cannot build: load it with"):
            load(runs / technique)
    config = files.read_json(runs / technique / "config.json")
    assert config["transformers_weights"] and not (runs / technique / "model.safetensors").exists()


@pytest.mark.parametrize("technique", ("base", "pruning", "distillation"))
def test_plain_transformers_loads_what_has_a_plain_structure(runs, technique):
    ours = checkpoint.load(runs / technique).model
    theirs = AutoModelForSequenceClassification.from_pretrained(runs / technique).eval()
    ids = torch.arange(5, 25).view(2, 10)
    assert theirs(ids).logits.equal(ours(ids).logits)
    assert theirs.config.id2label == dict(enumerate(SYMPTOMS))


def test_score_files_have_the_reference_columns_and_name_the_split(runs):
    for technique in TECHNIQUES:
        rows = read_csv(runs / f"multiclass_{technique}_metrics.csv")
        assert list(rows[0])[:6] == ["Epoch", *OVERALL]
        trained = technique != "quantization"
        assert [row["Split"] for row in rows] == ["validation"] * (2 if trained else 1) + ["test"]
        assert [row["Epoch"] for row in rows][:2] == (["1", "2"] if trained else ["0", "0"])
        per_symptom = read_csv(runs / f"per_symptom_{technique}_metrics.csv")
        assert list(per_symptom[0])[:6] == ["Epoch", "Symptom", "Precision", "Recall", "F1", "AUROC"]
        assert [row["Symptom"] for row in per_symptom] == list(SYMPTOMS)
        kept = [row for row in rows if row["Split"] == "validation"]
        best = max(kept, key=lambda row: float(row["F1"]))
        assert rows[-1]["Epoch"] == best["Epoch"]


def test_predict_keeps_order_and_ids_and_writes_no_text(runs, small, tmp_path, capsys):
    notes = read_csv(small[0])
    for technique in ("lowrank", CHAIN):
        out = tmp_path / f"{technique}.csv"
        predict.main([str(runs / technique), str(small[0]), "--out", str(out)])
        rows = read_csv(out)
        assert [row["row_id"] for row in rows] == [note["ROW_ID"] for note in notes if note["TEXT"].strip()]
        assert list(rows[0]) == ["row_id", "predicted", *(f"p_{s}" for s in SYMPTOMS)]
        printed = capsys.readouterr().out
        assert all(
            part in printed
            for part in (
                f"{len(notes)} rows",
                f"{len(rows)} predicted",
                f"{len(notes) - len(rows)} without text",
            )
        )
        assert list(tmp_path.glob(".*.parts")) == []
    direct = {row["row_id"]: row for row in rows}
    stored = read_csv(runs / CHAIN / "predictions.csv")
    differ = [abs(float(direct[row["row_id"]]["p_pain"]) - float(row["p_pain"])) for row in stored]
    assert max(differ) < 0.02  # int8: a batch of other neighbours, another activation scale


def test_predict_gives_the_logits_of_training_for_fp32_whatever_the_batch(runs, small, tmp_path):
    for technique in ("base", "pruning", "lowrank", "distillation"):
        predict.main(
            [str(runs / technique), str(small[0]), "--out", str(tmp_path / "p.csv"), "--batch-tokens", "700"]
        )
        direct = {row["row_id"]: row for row in read_csv(tmp_path / "p.csv")}
        for row in read_csv(runs / technique / "predictions.csv"):
            assert direct[row["row_id"]]["predicted"] == row["predicted"]
            assert abs(float(direct[row["row_id"]]["p_pain"]) - float(row["p_pain"])) < 2e-5


def test_compiled_training_and_prediction_answer_the_same_by_few_graphs(
    runs, arguments, small, tmp_path, monkeypatch
):
    graphs, compiler = [], torch.compile
    monkeypatch.setattr(inference, "COMPILES", ("cuda", "cpu"))
    monkeypatch.setattr(cpu, "onednn_pays", lambda model: False)  # whose layers are not to be compiled
    monkeypatch.setattr(dropout, "cheap_dropout", contextlib.nullcontext)  # of a CPU; compiling is for CUDA

    def traced(model, **keywords):
        return compiler(
            model, backend=lambda graph, example: graphs.append(graph) or graph.forward, **keywords
        )

    monkeypatch.setattr(torch, "compile", traced)
    words = [
        *arguments,
        "--epochs",
        "1",
        "--technique",
        "distillation",
        "--augment",
        "0.3",
        "--teacher",
        str(runs / "base"),
    ]
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        train.main([*words, "--out", str(tmp_path), "--name", name, *more])
    plain, compiled = (read_csv(tmp_path / name / "predictions.csv") for name in ("plain", "compiled"))
    assert max(abs(float(a["p_pain"]) - float(b["p_pain"])) for a, b in zip(plain, compiled)) < 1e-3
    assert 1 <= len(graphs) <= 2  # batches of several notes, a batch of one
    predict.main(
        [
            str(tmp_path / "compiled"),
            str(small[0]),
            "--out",
            str(tmp_path / "p.csv"),
            "--compile",
            "--batch-tokens",
            "700",
        ]
    )
    assert 2 <= len(graphs) <= 5
    direct = {row["row_id"]: row for row in read_csv(tmp_path / "p.csv")}
    assert max(abs(float(direct[row["row_id"]]["p_pain"]) - float(row["p_pain"])) for row in compiled) < 2e-5


def test_predict_resumes_where_it_was_cut_off(runs, small, tmp_path, monkeypatch):
    run, out = checkpoint.load(runs / "base"), tmp_path / "p.csv"
    predict.predict_file(run, small[0], out, chunk=64)
    whole = out.read_bytes()
    calls = []

    def breaks(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*args)

    original = inference.predict_examples
    monkeypatch.setattr(predict, "predict_examples", breaks)
    with pytest.raises(KeyboardInterrupt):
        predict.predict_file(run, small[0], tmp_path / "q.csv", chunk=64)
    assert not (tmp_path / "q.csv").exists()
    parts = sorted(tmp_path.glob(".q.csv.*.parts/*"))
    assert len(parts) == 3 and all(path.stat().st_mode & 0o077 == 0 for path in [*parts, parts[0].parent])
    with open(parts[2], "ab") as file:
        file.write(b"99,half a li")
    predict.predict_file(run, small[0], tmp_path / "q.csv", chunk=64)
    assert (tmp_path / "q.csv").read_bytes() == whole
    assert len(calls) == 4 + (whole.count(b"\n") - 1 - 2 * 64 + 63) // 64


def test_predict_reads_one_note_from_standard_input(runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Patient complains of COUGH and pain.")))
    predict.main([str(runs / "quantization"), "-"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["predicted"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert list(answer["probabilities"]) == list(SYMPTOMS) and sum(
        answer["probabilities"].values()
    ) == pytest.approx(1, abs=1e-4)


def test_an_interrupted_run_resumes_to_the_same_weights(runs, arguments, tmp_path, monkeypatch, capsys):
    train.main(
        [*arguments, "--technique", "pruning", "--schedule", "cubic", "--out", str(tmp_path / "cubic")]
    )
    for technique, options, whole in (
        ("lowrank", [], runs),
        ("pruning", [], runs),
        ("pruning", ["--schedule", "cubic"], tmp_path / "cubic"),
    ):
        calls = []
        original = train.collate

        def breaks(*args, calls=calls, original=original):
            calls.append(args)
            if len(calls) == 22:  # in the middle of the second epoch
                raise KeyboardInterrupt
            return original(*args)

        monkeypatch.setattr(train, "collate", breaks)
        out = tmp_path / ("resumed" + "".join(options))
        call = [*arguments, "--technique", technique, *options, "--out", str(out), "--save-minutes", "0"]
        with pytest.raises(KeyboardInterrupt):
            train.main(call)
        assert not (out / technique).exists()
        monkeypatch.setattr(train, "collate", original)
        train.main(call)
        assert "resuming at epoch 2, step" in capsys.readouterr().out
        resumed, uninterrupted = (
            checkpoint.load(path / technique).model.state_dict() for path in (out, whole)
        )
        assert all(resumed[name].equal(uninterrupted[name]) for name in uninterrupted)
        assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_validation_in_training_and_at_the_end_read_alike(runs):
    facts = files.read_json(runs / "base" / "run.json")
    best = next(row for row in facts["history"] if row["Epoch"] == facts["best_epoch"])
    for name, value in facts["validation"]["overall"].items():
        assert best[name] == pytest.approx(value, abs=1e-6), name
    assert best["TrainingLoss"] > 0 and best["Loss"] != best["TrainingLoss"]


def test_a_start_run_is_refused_only_if_it_saw_test_notes(runs, small, arguments, refuses, tmp_path, capsys):
    foreign = few(tmp_path / "foreign.csv", dict.fromkeys(SYMPTOMS, 4))
    call = [*arguments, "--epochs", "1", "--start", str(runs / "base"), "--out", str(tmp_path / "out")]
    train.main([*call, "--test", str(foreign), "--name", "other"])
    assert files.read_json(tmp_path / "out/other/run.json")["data"]["sizes"]["test"] == 20
    seen = {row["row_id"] for row in read_csv(runs / "base/predictions.csv")}
    rows = [row for row in read_csv(small[0]) if row["TEXT"] and row["ROW_ID"] not in seen]
    notes = [(row["ROW_ID"], row["SUBJECT_ID"], row["TEXT"]) for row in rows[:60]]
    line = refuses(train.main, [*call, "--test", write_notes(tmp_path / "seen.csv", notes), "--name", "seen"])
    assert re.search(r"another split of these notes, so it saw \d+ of this run's \d+ test notes", line)


def test_a_finished_run_is_kept_and_another_one_is_not_mixed_with_it(runs, arguments, capsys, refuses):
    before = (runs / "lowrank" / "run.json").stat().st_mtime_ns
    train.main([*arguments, "--technique", "lowrank", "--out", str(runs)])
    assert (
        "finished already" in capsys.readouterr().out
        and (runs / "lowrank" / "run.json").stat().st_mtime_ns == before
    )
    line = refuses(train.main, [*arguments, "--technique", "lowrank", "--out", runs, "--rank", "3"])
    assert "finished with other rank" in line and "--overwrite" in line
    line = refuses(train.main, [*arguments, "--technique", "base", "--out", runs, "--name", "lowrank"])
    assert "finished with other technique;" in line


def test_start_continues_a_compressed_run(runs, arguments, tmp_path, refuses):
    train.main(
        [*arguments, "--technique", "quantization", "--start", str(runs / "lowrank"), "--out", str(tmp_path)]
    )
    run = checkpoint.load(tmp_path / "quantization")
    assert [facts["technique"] for facts in run.compression] == ["lowrank", "quantization"]
    assert sum(map(is_int8, run.model.modules())) > 20
    line = refuses(
        train.main,
        [*arguments, "--technique", "lowrank", "--start", runs / "quantization", "--out", tmp_path],
    )
    assert "is int8 already" in line
    line = refuses(train.main, [*arguments, "--start", runs / "base", "--out", tmp_path, "--split-seed", "7"])
    assert "another split of these notes" in line


def test_lora_on_symptoms_merges_into_a_plain_model(arguments, tmp_path, capsys):
    train.main([*arguments, "--technique", "lora", "--epochs", "1", "--out", str(tmp_path)])
    assert "trainable" in capsys.readouterr().out
    ours = checkpoint.load(tmp_path / "lora")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "lora").eval()
    ids = torch.arange(5, 25).view(2, 10)
    assert ours.compression == [] and theirs(ids).logits.equal(ours.model(ids).logits)
    assert (tmp_path / "lora/adapter/adapter_model.safetensors").stat().st_size < (
        tmp_path / "lora/model.safetensors"
    ).stat().st_size / 10


def test_the_demonstration_teaches_something(tmp_path):
    train.main(["--epochs", "3", "--fraction", "0.5", "--out", str(tmp_path)])
    run = files.read_json(tmp_path / "base" / "run.json")
    counts = run["data"]["splits"]["test"].values()
    majority = max(counts) / sum(counts)
    assert run["test"]["overall"]["Accuracy"] > majority + 0.3 and run["test"]["overall"]["F1"] > 0.5


def test_demonstration_says_so_first_and_data_flow_is_printed(tmp_path, monkeypatch, capsys):
    make = demo.make
    monkeypatch.setattr(
        demo, "make", lambda directory, task: make(directory, task, notes=300, hidden=32, layers=2)
    )
    train.main(["--epochs", "1", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == demo.BANNER and "not comparable" in lines[0]
    assert re.match(r"data: \d+ rows, .* without label.* exact duplicates -> \d+ notes", lines[1])
    assert all(re.match(rf"  {split}: \d+ notes, \d+ edema", line) for split, line in zip(SPLITS, lines[2:]))
    facts = files.read_json(tmp_path / "base" / "run.json")
    assert (
        facts["learning_rate"] == demo.LEARNING_RATE
        and facts["demonstration"]
        and set(facts["data"]["splits"]) == set(SPLITS)
    )


def test_a_student_of_its_own_is_no_demonstration(runs, small):
    words = ["--technique", "distillation", "--teacher", str(runs / "base"), "--data", str(small[0])]
    for student, is_demo in (("demo", True), (str(small[1]), False)):
        args = arguments.parse_arguments([*words, "--student", student])
        assert origin.Planned(args, teacher=str(runs / "base")).demo_model == is_demo


def test_distillation_may_have_its_own_optimisation_but_not_other_notes(runs, arguments, refuses, capsys):
    call = [*arguments, "--out", str(runs), "--technique", "distillation+lowrank"]
    line = refuses(train.main, [*call, "--split-seed", "3"])
    assert "base: finished with other split_seed" in line
    train.main(
        [
            *call,
            "--epochs",
            "1",
            "--batch-size",
            "32",
            "--hidden-weight",
            "0.1",
            "--accumulate",
            "2",
            "--precision",
            "bf16",
        ]
    )
    assert "from the base run in" in capsys.readouterr().out
    assert checkpoint.load(runs / "distillation+lowrank").facts["arguments"]["accumulate"] == 2
    shutil.rmtree(runs / "distillation+lowrank")


def test_accumulated_batches_make_the_same_step_as_one(arguments, tmp_path, monkeypatch):
    # every note of the same length, no dropout: two batches of 8 are one of 16, up to rounding
    weights = []
    for batch, accumulate in ((16, 1), (8, 2)):
        out = tmp_path / str(batch)
        monkeypatch.setattr(
            schedule,
            "make_batches",
            lambda lengths, size, seed: [np.arange(i, i + size) for i in range(0, 64, size)],
        )
        notes = few(tmp_path / "same.csv", dict.fromkeys(SYMPTOMS, 32))
        call = [
            *arguments,
            "--epochs",
            "1",
            "--out",
            str(out),
            "--batch-size",
            str(batch),
            "--accumulate",
            str(accumulate),
        ]
        call[call.index("--data") + 1] = str(notes)
        with monkeypatch.context() as patch:
            patch.setattr(schedule.Schedule, "steps", 4)
            for kind in (torch.nn.Dropout, dropout.CheapDropout):
                patch.setattr(kind, "forward", lambda self, x: x)
            patch.setattr(torch.nn.functional, "dropout", lambda x, *_, **__: x)
            patch.setattr(
                train, "LazyAdamW", lambda weights, lr, **_: torch.optim.SGD(weights, lr=lr)
            )  # Adam magnifies rounding
            train.main(call)
        weights.append(checkpoint.load(out / "base").model.bert.pooler.dense.weight)
    untrained = AutoModelForSequenceClassification.from_pretrained(arguments[3]).bert.pooler.dense.weight
    assert torch.allclose(*weights, atol=1e-6) and not torch.allclose(weights[0], untrained, atol=1e-6)


def test_learning_rate_rises_then_falls_as_a_cosine():
    rates = [schedule.learning_rate(t, 1.0, 0.2) for t in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert np.allclose(rates, [0, 0.5, 1, 0.5, 0]) and schedule.learning_rate(0.0, 3e-5, 0.0) == 3e-5


def test_class_weights_reach_the_loss(small):
    task = Symptoms(class_weights=True)
    task.load(str(small[0]), 1.0, 0.2, 0.2, 42)
    logits, labels = torch.randn(9, 5), torch.arange(9) % 5
    loss = task.loss(None, {"labels": labels}, SimpleNamespace(logits=logits))
    assert loss.equal(torch.nn.functional.cross_entropy(logits, labels, weight=task.weights))
    assert not torch.allclose(loss, torch.nn.functional.cross_entropy(logits, labels))


# --- refused input: one line, exit code 2, nothing left behind


def few(path, counts):
    return write_notes(
        path, [(f"{w}{i}", f"{w}{i}", f"{w} {i}") for w, n in counts.items() for i in range(n)]
    )


@pytest.mark.parametrize(
    "words, message",
    [
        ("--data none.csv", "none.csv: no such file"),
        ("--data .", "is a directory"),
        ("--data fake.csv.gz", "not gzip"),
        ("--data empty.csv", "the file is empty"),
        ("--data header.csv", "a header and no rows"),
        ("--data nocolumn.csv", "no column 'TEXT'; found ROW_ID, NOTE; name the column with --text-column"),
        ("--data quote.csv", "quote.csv, line 3: a quote"),
        ("--data nul.csv", "nul.csv, line 2: a NUL byte"),
        ("--data one.csv", "only one class, 'pain'"),
        ("--data small.csv", "class 'cough' has notes of 2 patients, too small"),
        ("--data nolabel.csv", "no class at all"),
        ("--model none", "--model none: is no directory and cannot be reached"),
        ("--revision 0123", "--revision: --model"),
        ("--model someone/no-such-model", "someone/no-such-model: is no directory and cannot be reached"),
        ("--model notokens", "notokens: a tokenizer of "),
        ("--seed -1", "--seed: -1 is outside [0,"),
        ("--subject-column PATIENT", "no column 'PATIENT'"),
        ("--epo 3", "unrecognized arguments: --epo 3"),
        ("--start QUANTIZATION", "is int8 already, which can be neither trained nor compressed further"),
        ("--data headless.csv", "none of its 2 columns has a usual name; is the first row a header?"),
        ("--model /no/where", "--model /no/where: no such directory"),
        ("--model emptydir", "emptydir: is no checkpoint that transformers can load"),
        ("--model LOWRANK", "is a finished run; continue it with --start"),
        ("--out file/under", "cannot be written"),
        ("--technique shrink", "no technique 'shrink'; there are base, distillation"),
        ("--task sentiment", "no such task; there are symptoms"),
        ("--technique lowrank --rank 0", "--rank: 0 is outside [1, 1000000]"),
        ("--technique lowrank --rank 30", "the largest rank at which one does is 21"),
        ("--technique lowrank --energy 1.5", "--energy: 1.5 is outside (0, 1]"),
        ("--technique pruning --sparsity 1", "--sparsity: 1 is outside [0, 1)"),
        ("--technique pruning --sparsity nan", "--sparsity: nan is outside"),
        ("--technique pruning --sparsity lots", "'lots' is not a number"),
        ("--technique distillation --temperature 0", "--temperature: 0 is outside (0,"),
        ("--technique distillation --alpha -1", "--alpha: -1 is outside [0, 1]"),
        ("--technique distillation --student-layers 9", "--student-layers 9: the model to shrink has 2"),
        ("--technique distillation --teacher none", "is none a finished run directory?"),
        ("--technique distillation --teacher LOWRANK", "is lowrank, its layers make no plain student"),
        ("--start emptydir", "run.json: no such file"),
        ("--symptoms pain", "needs at least two"),
        ("--max-length 9999", "reads at most 256 tokens"),
        ("--lr 1e9x", "is not a number"),
        ("--device cuda", "--device cuda: this machine"),
        ("--device cpu --compile", "--compile: is for CUDA, not cpu"),
        (
            "--technique pruning --keep-heads 1",
            "--keep-heads: takes heads and neurons out, so it goes with --structured",
        ),
        ("--technique pruning --target-macs 0.5", "--target-macs: takes heads and neurons out"),
        ("--technique quantization --epochs 0", "--epochs 0: nothing would be learnt"),
        ("--nonsense", "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    words, message, arguments, small, runs, refuses, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    files = {
        "fake.csv.gz": "ROW_ID,TEXT\n", "empty.csv": "", "header.csv": "ROW_ID,TEXT\n",
        "nocolumn.csv": "ROW_ID,NOTE\n1,pain\n",
        "quote.csv": 'ROW_ID,TEXT\n1,pain\n2,"cough\n3,secret\n',
        "nul.csv": "ROW_ID,TEXT\n1,pa\0in\n", "file": "",
        "nolabel.csv": "ROW_ID,TEXT\n1,well\n",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    few(tmp_path / "one.csv", {"pain": 9})
    few(tmp_path / "small.csv", {"pain": 9, "cough": 2, "edema": 9, "fever": 9, "bleeding": 9})
    (tmp_path / "emptydir").mkdir()
    (tmp_path / "headless.csv").write_text("1,John denies pain\n2,fever\n")
    (tmp_path / "notokens").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(small[1] / name, tmp_path / "notokens")
    call = [*arguments, "--out", "out"]
    for word in words.split():
        call.append(
            word.replace("LOWRANK", str(runs / "lowrank")).replace("QUANTIZATION", str(runs / "quantization"))
        )
    if "distillation" in words and "--teacher" not in words:
        call += ["--teacher", str(runs / "base")]
    line = refuses(train.main, call)
    assert message in line and not any(word in line for word in ("secret", "John"))
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_exploding_loss_names_the_step(arguments, refuses, tmp_path):
    import compress.technique

    class Broken(compress.technique.Technique):
        calls = 0

        def loss(self, model, batch, outputs):
            return super().loss(model, batch, outputs) * (float("nan") if self.count() == 3 else 1)

        def count(self):
            self.calls += 1
            return self.calls

    compress.TECHNIQUES["broken"] = Broken
    try:
        line = refuses(train.main, [*arguments, "--technique", "broken", "--out", tmp_path])
    finally:
        del compress.TECHNIQUES["broken"]
    assert "the loss is nan at epoch 1, step 3" in line


@pytest.mark.parametrize(
    "main, words, message",
    [
        (predict.main, "none notes.csv", "none: no such run directory"),
        (predict.main, "BASE none.csv", "none.csv: no such file"),
        (predict.main, "BASE quote.csv --device cpu --compile", "--compile: is for CUDA, not cpu"),
        (predict.main, "BASE quote.csv --out p.csv", "quote.csv, line 3"),
        (predict.main, "BASE nocolumn.csv", "no column 'TEXT'"),
        (predict.main, "BASE quote.csv --out quote.csv", "is the file of notes itself"),
        (benchmark.main, "none", "none: no such directory"),
    ],
)
def test_other_scripts_refuse_in_one_line_too(main, words, message, runs, refuses, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quote.csv").write_text('ROW_ID,TEXT\n1,pain\n2,"cough\n3,secret\n')
    (tmp_path / "nocolumn.csv").write_text("ROW_ID,NOTE\n1,pain\n")
    line = refuses(main, [word.replace("BASE", str(runs / "base")) for word in words.split()])
    assert message in line and "secret" not in line
    assert {path.name for path in tmp_path.iterdir()} == {"quote.csv", "nocolumn.csv"}


def test_a_damaged_run_directory_is_refused(runs, tmp_path, refuses):
    shutil.copytree(runs / "lowrank", tmp_path / "run")
    (tmp_path / "run" / "compression.json").write_text("[]")
    assert "its files do not fit together: a tensor" in refuses(predict.main, [tmp_path / "run", "-"])
    (tmp_path / "run" / "compression.json").write_text("{")
    assert "compression.json: cannot be read as JSON" in refuses(predict.main, [tmp_path / "run", "-"])


# --- the commands of the README


def test_commands_exist_as_the_readme_and_docs_write_them():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "experiments").glob("*.md")]
    blocks = "\n".join("\n".join(re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)) for page in pages)
    for name, lines in re.findall(r"^cat > (\S+) <<'END'\n(.*?)^END$", blocks, re.M | re.S):
        blocks = blocks.replace(f"@{name}", " ".join(lines.splitlines()))
    scripts = re.findall(r'^(?:\w+=(?:"[^"]*"|\S+) )*(python|bash) ([\w./]+)(.*)$', blocks, re.M)
    named = {script for _, script, _ in scripts}
    every = {
        "train.py",
        "predict.py",
        "sweep.py",
        "benchmark.py",
        "report.py",
        "export.py",
        "docs/results.py",
    }
    assert every | {"run_all.sh", "run_trials.sh", "run_tests.sh"} <= named, every - named
    for _, script, rest in scripts:
        assert (ROOT / script).exists(), script
        if script in ("train.py", "run_all.sh", "run_trials.sh"):
            rest = re.sub(r"--seeds \S+" if script == "run_all.sh" else "^$", "", rest)  # its own
            arguments.parse_arguments(shlex.split(re.sub(r"[|<>#].*", "", rest)))


def test_gzipped_notes_train_the_same(small, arguments, runs, tmp_path):
    zipped = tmp_path / "notes.csv.gz"
    zipped.write_bytes(gzip.compress(small[0].read_bytes()))
    call = [*arguments, "--out", str(tmp_path / "out")]
    call[call.index("--data") + 1] = str(zipped)
    train.main(call)
    assert (tmp_path / "out/base/predictions.csv").read_bytes() == (
        runs / "base/predictions.csv"
    ).read_bytes()


def test_the_revision_of_a_hub_model_is_read_and_recorded(small, arguments, tmp_path, monkeypatch):
    folder = tmp_path / "models--clinic--bert"  # a hub cache, which is all that is read without a network
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(small[1], folder / "snapshots" / commit)
    weights = folder / "snapshots" / commit / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    out = tmp_path / "out"
    for name, more in (("main", []), ("pinned", ["--revision", commit])):
        train.main([*arguments, "--model", "clinic/bert", "--epochs", "1", "--lr", "1e-9", "--out", str(out),
                    "--name", name, *more])  # fmt: skip
    name = "bert.encoder.layer.0.attention.self.query.weight"
    main, pinned = (load_file(out / run / "model.safetensors")[name] for run in ("main", "pinned"))
    torch.testing.assert_close(pinned, main + 1)
    assert files.read_json(out / "pinned/run.json")["arguments"]["revision"] == commit


def test_code_in_a_model_directory_is_not_run(small, runs, arguments, tmp_path, refuses, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what transformers asks the user
    for name, source in (("model", small[1]), ("run", runs / "base")):
        shutil.copytree(source, tmp_path / name)
        config = {"model_type": "strange", "auto_map": {"AutoConfig": "strange.Strange"}}
        files.write_json(tmp_path / name / "config.json", config)
        (tmp_path / name / "strange.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    refuses(train.main, [*arguments, "--model", tmp_path / "model", "--out", tmp_path / "out"])
    refuses(predict.main, [tmp_path / "run", small[0], "--out", tmp_path / "p.csv"])
    assert not (tmp_path / "ran").exists()


def test_two_processes_give_equal_bits_with_deterministic(arguments, tmp_path):
    call = [*arguments, "--epochs", "1", "--technique", "distillation+quantization", "--deterministic"]
    found = []
    for hash_seed, out in (("1", tmp_path / "one"), ("2", tmp_path / "two")):
        words = [sys.executable, ROOT / "train.py", *call, "--out", out, "--cache", "none"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        subprocess.run(list(map(str, words)), check=True, capture_output=True, env=environment)
        found.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*.*")})
    names = {path for path in found[0] if found[0][path] != found[1][path]}
    assert {path.name for path in names} == {"run.json"}  # times
    assert {"model.safetensors", "compressed.safetensors", "predictions.csv"} <= {p.name for p in found[0]}
    one, two = (files.read_json(tmp_path / out / "base/run.json") for out in ("one", "two"))
    assert all(one[part] == two[part] for part in ("history", "validation", "test", "arguments"))
    assert one["machine"]["deterministic"] and "deterministic" not in one["arguments"]


def test_with_deterministic_no_clock_chooses(runs, monkeypatch):
    def asked(dtype):
        raise AssertionError("timed")

    monkeypatch.setattr(cpu, "onednn_is_faster", asked)
    model = checkpoint.load(runs / "base").model
    machine.same_bits(True)
    with cpu.faster_products(model):
        assert not [layer for layer in model.modules() if isinstance(layer, cpu.OneDNNLinear)]
    torch.use_deterministic_algorithms(False)
    with pytest.raises(AssertionError, match="timed"), cpu.faster_products(model):
        pass
