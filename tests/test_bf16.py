"""bf16 weights: half the bytes, answers that hardly move, and what other machines make of them."""

import copy
import re

import pytest
import torch
from transformers import BertForMaskedLM, BertForSequenceClassification

import compress
import predict
import train
from cli import BadInput
from compress import bf16
from compress.quantization import load_plain_state, plain_state
from fast import cpu
from fast.attention import multiplies_bf16
from files import read_json
from run import checkpoint
from tests.conftest import read_csv, run_words
from tests.test_compress import CONFIG, logits, tiny


def rounded(model):
    """(a bf16 copy of a model, its technique)."""
    technique = compress.build(["bf16"], {})
    return technique.finish(copy.deepcopy(model)).eval(), technique


def test_weights_are_rounded_and_the_claim_is_true(batch, capsys):
    torch.manual_seed(0)
    model = BertForSequenceClassification(CONFIG).eval()
    small, technique = rounded(model)
    stored, before = plain_state(small), plain_state(model)
    kept = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
    assert kept == {"classifier.weight", "classifier.bias"}
    assert all(stored[name].equal(before[name].bfloat16()) for name in before.keys() - kept)
    claim = re.search(
        r"bf16: (\S+) of (\S+) parameters to bf16, ([\d.]+) MB -> ([\d.]+) MB", capsys.readouterr().out
    )
    numbers = sum(tensor.numel() for tensor in stored.values())
    small_bytes = sum(tensor.nbytes for tensor in stored.values())
    assert claim.groups()[1:] == (
        f"{numbers / 1e3:.1f}k",
        f"{4e-6 * numbers:.1f}",
        f"{1e-6 * small_bytes:.1f}",
    )
    moved = (logits(small, batch).float() - logits(model, batch)).norm() / logits(model, batch).norm()
    assert 0 < moved < 0.03

    again = compress.rebuild(BertForSequenceClassification(CONFIG), technique.describe()).eval()
    load_plain_state(again, stored)
    assert logits(again, batch).equal(logits(small, batch))


def test_a_machine_without_bf16_reads_the_same_weights_into_fp32(batch, monkeypatch):
    small, technique = rounded(tiny("bert"))
    monkeypatch.setattr(bf16, "computes_bf16", lambda: False)
    again = compress.rebuild(tiny("bert"), technique.describe()).eval()
    load_plain_state(again, plain_state(small))
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert all(
        ours.equal(theirs.float())
        for ours, theirs in zip(again.parameters(), small.parameters(), strict=True)
    )
    assert torch.allclose(logits(again, batch), logits(small, batch).float(), atol=0.02)


def test_shared_weights_stay_shared():
    torch.manual_seed(0)
    small, _ = rounded(BertForMaskedLM(CONFIG))
    assert small.get_output_embeddings().weight is small.get_input_embeddings().weight


@pytest.mark.skipif(not multiplies_bf16(), reason="this CPU multiplies no bf16")
@torch.inference_mode()
def test_weights_in_onednn_s_order_are_the_same_weights(batch):
    small, _ = rounded(tiny("bert"))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = small(**inputs).logits
    with cpu.faster_products(small, onednn=True):
        there = [module for module in small.modules() if isinstance(module, cpu.OneDNNLinear)]
        found = small(**inputs).logits
    assert {layer.packed.dtype for layer in there} == {torch.bfloat16}  # every one was asked, and packed
    assert found.dtype == expected.dtype and torch.allclose(found.float(), expected.float(), atol=0.02)
    assert not any(isinstance(module, cpu.OneDNNLinear) for module in small.modules())


@pytest.mark.parametrize("chain", ("bf16+quantization", "quantization+bf16", "bf16+lowrank"))
def test_a_chain_ends_in_bf16_or_in_int8(chain):
    with pytest.raises(BadInput):
        compress.parse_chain(chain)
    assert compress.parse_chain("distillation+lowrank+pruning+bf16")


def test_a_run_is_half_as_large_answers_alike_and_is_not_trained_further(
    runs, arguments, small, tmp_path, refuses
):
    train.main([*arguments, "--technique", "bf16", "--start", str(runs / "lowrank"), "--out", str(tmp_path)])
    before, after = (read_json(run / "run.json") for run in (runs / "lowrank", tmp_path / "bf16"))
    assert after["sizes"]["parameters"] == before["sizes"]["parameters"]
    assert after["sizes"]["bytes"] < 0.55 * before["sizes"]["bytes"]
    scored = read_csv(tmp_path / "bf16" / "predictions.csv")
    old = {row["row_id"]: row for row in read_csv(runs / "lowrank" / "predictions.csv")}
    assert max(abs(float(row["p_fever"]) - float(old[row["row_id"]]["p_fever"])) for row in scored) < 0.05

    predict.main([str(tmp_path / "bf16"), str(small[0]), "--out", str(tmp_path / "p.csv")])
    answers = {row["row_id"]: row for row in read_csv(tmp_path / "p.csv")}
    assert all(abs(float(row["p_fever"]) - float(answers[row["row_id"]]["p_fever"])) < 0.02 for row in scored)
    line = refuses(
        train.main, [*arguments, "--start", tmp_path / "bf16", "--technique", "pruning", "--out", tmp_path]
    )
    assert "is bf16 already" in line


@pytest.mark.parametrize("task, words", [("ner", "--crf"), ("readmission", "--head logistic"), ("mlm", "")])
def test_heads_of_other_tasks_keep_what_is_theirs(demos, tmp_path, task, words):
    for technique in ("base", "bf16"):
        train.main(run_words(demos, task, tmp_path, "--epochs 1", "--technique", technique, words))
    before, model = (checkpoint.load(tmp_path / technique).model for technique in ("base", "bf16"))
    if task == "readmission":  # fitted again, on the rounded model's vectors
        assert model.classifier.weight.dtype == torch.float32
        assert not model.classifier.weight.equal(before.classifier.weight)
        return
    runs = [read_json(tmp_path / technique / "run.json") for technique in ("base", "bf16")]
    name = "Perplexity" if task == "mlm" else "F1"
    base, rounded_run = (run["test"]["overall"][name] for run in runs)
    assert abs(base - rounded_run) <= 0.05 * max(1.0, abs(base))
    kinds = {parameter.dtype for parameter in model.parameters()}
    assert kinds == ({torch.bfloat16, torch.float32} if words == "--crf" else {torch.bfloat16})
