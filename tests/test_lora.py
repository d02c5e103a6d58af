"""LoRA against peft."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

import train
from compress.lora import LoRA, LoRALinear, head_modules
from conftest import run_words
from run import checkpoint
from tasks.ner import Ner


@pytest.mark.parametrize("rank, alpha", [(1, 1.0), (4, 16.0)])
def test_lora_outputs_and_gradients_equal_peft(rank, alpha):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=3,
    )
    original = BertForSequenceClassification(config).eval()
    ids, labels = torch.randint(5, 50, (4, 9)), torch.tensor([0, 1, 2, 0])
    ours, theirs = (
        BertForSequenceClassification(config).eval(),
        BertForSequenceClassification(config).eval(),
    )
    for copy in (ours, theirs):
        copy.load_state_dict(original.state_dict())
    technique = LoRA(lora_rank=rank, lora_alpha=alpha, lora_targets="query,value", source="x")
    ours = technique.prepare(ours).eval()
    theirs = get_peft_model(
        theirs,
        LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=["query", "value"], modules_to_save=["classifier"]
        ),
    ).eval()
    assert torch.equal(ours(ids).logits, original(ids).logits)  # B = 0: training starts from the model itself
    for name, module in ours.named_modules():
        if isinstance(module, LoRALinear):
            torch.nn.init.normal_(module.lora_B.weight)
            other = theirs.base_model.model.get_submodule(name)
            other.lora_A["default"].weight.data.copy_(module.lora_A.weight)
            other.lora_B["default"].weight.data.copy_(module.lora_B.weight)
    outputs = [model(ids).logits for model in (ours, theirs)]
    assert torch.allclose(*outputs, atol=1e-5)
    for logits in outputs:
        torch.nn.functional.cross_entropy(logits, labels).backward()
    trained = {name for name, p in ours.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in ours.named_parameters() if p.grad is not None}
    assert sum(p.numel() for p in ours.parameters() if p.requires_grad) == sum(
        p.numel() for p in theirs.parameters() if p.requires_grad
    )
    for name, module in ours.named_modules():
        if isinstance(module, LoRALinear):
            other = theirs.base_model.model.get_submodule(name)
            assert torch.allclose(module.lora_A.weight.grad, other.lora_A["default"].weight.grad, atol=1e-5)
            assert torch.allclose(module.lora_B.weight.grad, other.lora_B["default"].weight.grad, atol=1e-5)
    merged = technique.finish(ours)
    assert torch.allclose(merged(ids).logits, outputs[0], atol=1e-5)
    assert merged.state_dict().keys() == original.state_dict().keys()


def test_adapters_load_in_peft_and_give_the_same_logits(trained, demos, tmp_path):
    ids = torch.arange(5, 25).view(2, 10)
    ours = checkpoint.load(trained["mlm"] / "lora")
    base = AutoModelForMaskedLM.from_pretrained(demos["mlm"][1])
    theirs = PeftModel.from_pretrained(base, trained["mlm"] / "lora" / "adapter").eval()
    assert torch.allclose(theirs(ids).logits, ours.model(ids).logits, atol=1e-5)
    assert not torch.allclose(
        AutoModelForMaskedLM.from_pretrained(demos["mlm"][1]).eval()(ids).logits,
        ours.model(ids).logits,
        atol=1e-3,
    )
    train.main(
        run_words(
            demos, "trials", tmp_path, "--technique", "lora", "--lora-keep", "--lora-rank", 2, "--epochs", 1
        )
    )
    kept = checkpoint.load(tmp_path / "lora")
    assert sum(isinstance(m, LoRALinear) for m in kept.model.modules()) == 4
    base = AutoModelForSequenceClassification.from_pretrained(
        demos["trials"][1], num_labels=len(kept.task.labels), ignore_mismatched_sizes=True
    )
    theirs = PeftModel.from_pretrained(base, tmp_path / "lora" / "adapter").eval()
    assert torch.allclose(theirs(ids).logits, kept.model(ids).logits, atol=1e-5)
    config = json.loads((tmp_path / "lora" / "adapter" / "adapter_config.json").read_text())
    assert (
        config["peft_type"] == "LORA"
        and config["r"] == 2
        and config["base_model_name_or_path"] == str(demos["trials"][1])
    )


def test_lora_claims(demos, capsys):
    task = Ner(crf=True)
    task.labels = ["O", "B-x", "I-x"]
    model, _, fresh = checkpoint.from_pretrained(demos["ner"][1], task)
    assert head_modules(model) == ["classifier", "crf"]
    total = sum(p.numel() for p in model.parameters())
    model = LoRA(fresh=fresh).prepare(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    printed = capsys.readouterr().out
    assert (
        f"rank 1 on 4/13 Linear (query, value), trainable {trainable:,} of" in printed
        and f"({100 * trainable / total:.2f}%)" in printed
    )
    assert "not inference" in printed and trainable == 4 * (32 + 32) + 3 * 32 + 3 + 3 + 9
    mlm = AutoModelForMaskedLM.from_pretrained(demos["mlm"][1])
    assert head_modules(mlm) == ["cls.predictions.transform"]  # the decoder shares the embeddings' weight
