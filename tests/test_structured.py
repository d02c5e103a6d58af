"""Heads and neurons taken out: against zeroed ones, against autograd by hand, and through whole runs."""

import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

import compress
import train
from bench.shape import multiply_adds
from cli import BadInput
from compress.lowrank import LowRankLinear, second_moments, sensitivities, shared_ranks, whitened_svd
from compress.pruning import Pruning, nm_mask
from compress.structured import choose, costs, find_units, fisher, magnitude, remove, top
from fast import speedups
from layers import parameter_count
from run import checkpoint
from tasks.task import Task

CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    num_labels=3,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BertForSequenceClassification(CONFIG).eval()


def silence(model, layer, heads, neurons):
    """Zero the columns through which all but the kept units speak."""
    out, down = model.get_submodule(layer.names[3]).weight, model.get_submodule(layer.names[5]).weight
    with torch.no_grad():
        for head in set(range(layer.heads)) - set(heads):
            out[:, head * layer.head_size : (head + 1) * layer.head_size] = 0
        for neuron in set(range(layer.neurons)) - set(neurons):
            down[:, neuron] = 0


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_taking_units_out_equals_silencing_them(model, batch, kind):
    if kind == "distilbert":
        config = DistilBertConfig(vocab_size=50, dim=32, n_layers=3, n_heads=4, hidden_dim=64, num_labels=3)
        model = DistilBertForSequenceClassification(config).eval()
    layers = find_units(model)
    assert [(layer.heads, layer.head_size, layer.neurons) for layer in layers] == [(4, 8, 64)] * 3
    kept = [([0, 2], list(range(0, 64, 2))), ([3], [1, 5]), ([0, 1, 2, 3], list(range(64)))]
    silent = copy.deepcopy(model)
    for layer, (heads, neurons) in zip(layers, kept, strict=True):
        silence(silent, layer, heads, neurons)
    before = parameter_count(model)
    narrow = remove(model, layers, kept)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert torch.allclose(narrow(**inputs).logits, silent(**inputs).logits, atol=1e-6)
    gone_heads, gone_neurons = 2 + 3, 32 + 62
    assert before - parameter_count(narrow) == gone_heads * (8 * 32 * 4 + 8 * 3) + gone_neurons * (2 * 32 + 1)
    assert [(layer.heads, layer.neurons) for layer in find_units(narrow)] == [(2, 32), (1, 2), (4, 64)]


def test_fisher_scores_are_squared_gradients_of_each_note(model, batch):
    task, layers = Task(), find_units(model)
    scores = fisher(model, layers, lambda b: task.loss(model, b, task.forward(model, b)), [batch, batch])
    step, expected = 1e-3, torch.zeros(4)
    out = model.get_submodule(layers[1].names[3])
    for note in range(6):
        one = {name: tensor[note : note + 1] for name, tensor in batch.items()}
        for head in range(4):
            columns, losses = slice(head * 8, head * 8 + 8), []
            for sign in (1, -1):
                original = out.weight.detach().clone()
                with torch.no_grad():
                    out.weight[:, columns] *= 1 + sign * step
                    losses.append(task.loss(model, one, task.forward(model, one)).double())
                    out.weight.copy_(original)
            expected[head] += ((losses[0] - losses[1]) / (2 * step)) ** 2
    assert torch.allclose(scores[1][0], 2 * expected, rtol=0.05, atol=1e-6)
    assert all(heads.shape == (4,) and neurons.shape == (64,) for heads, neurons in scores)
    assert not model.get_submodule(layers[0].names[3])._forward_pre_hooks


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
def test_choice_meets_the_target_and_keeps_what_is_worth_most(model, target):
    layers = find_units(model)
    kept = choose(layers, magnitude(model, layers), 32, 100, target)
    full = sum(
        layer.heads * costs(layer, 32, 100)[0] + layer.neurons * costs(layer, 32, 100)[1] for layer in layers
    )
    left = sum(
        len(h) * costs(layer, 32, 100)[0] + len(n) * costs(layer, 32, 100)[1]
        for layer, (h, n) in zip(layers, kept, strict=True)
    )
    assert abs(left / full - target) < 0.12
    assert all(len(heads) >= 1 and len(neurons) % 16 == 0 and len(neurons) for heads, neurons in kept)
    scores = magnitude(model, layers)
    scores[0][0][:] = torch.tensor([1e6, 1.0, 2e6, 1.0])
    assert {0, 2} <= set(choose(layers, scores, 32, 100, 0.5)[0][0])
    assert top(torch.tensor([3.0, 1.0, 2.0]), 2) == [0, 2]


def test_what_the_last_layer_answers_for_one_token_costs_next_to_nothing(model):
    layers = find_units(model, first=True)
    assert [layer.first for layer in layers] == [False, False, True]
    head, neuron = costs(layers[2], 32, 100)
    assert head == pytest.approx((2 * 32 + 2 * 32 / 100 + 2) * 8) and neuron == pytest.approx(2 * 32 / 100)
    kept = choose(layers, magnitude(model, layers), 32, 100, 0.25)
    assert len(kept[2][1]) == 64 > min(len(kept[0][1]), len(kept[1][1]))  # its neurons stay, others go


def test_ranks_are_not_taken_from_layers_that_see_one_token(model, batch):
    chain = compress.build(["lowrank"], {"target_macs": 0.5}, calibration=lambda notes: [batch])
    chain.task = Task()
    small = chain.prepare(copy.deepcopy(model))
    last = small.bert.encoder.layer[-1]
    assert isinstance(last.intermediate.dense, nn.Linear) and isinstance(last.attention.self.query, nn.Linear)
    assert isinstance(last.attention.self.key, LowRankLinear) and isinstance(
        small.bert.encoder.layer[0].output.dense, LowRankLinear
    )
    macs = []
    for each in (model, small):
        with speedups(each, reads_first=True):
            macs.append(multiply_adds(each, 40))
    assert (
        0.45 < macs[1] / macs[0] < 0.75
    )  # attention's own products and the embeddings' are not the budget's


def test_nm_keeps_the_largest_of_each_group():
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5, 0.0, 1.0, -2.0, 3.0]])
    assert nm_mask(weight, 2, 4).tolist() == [[False, True, True, False, False, False, True, True]]
    weight = torch.randn(30, 40)
    mask = nm_mask(weight, 2, 4)
    assert (mask.view(30, 10, 4).sum(2) == 2).all() and mask.float().mean() == 0.5


def test_layers_of_an_unknown_layout_are_named(model, batch):
    compress.LowRank(rank=4).prepare(model)
    with pytest.raises(BadInput, match="does not know the layers of BertForSequenceClassification"):
        find_units(model)


@pytest.mark.parametrize(
    "words",
    [["--target-macs", "0.4"], ["--keep-heads", "1", "--keep-neurons", "16", "--importance", "magnitude"]],
)
def test_a_structured_run_is_smaller_and_is_rebuilt(runs, arguments, tmp_path, words, capsys, refuses):
    call = [
        *arguments,
        "--epochs",
        "1",
        "--technique",
        "pruning+quantization",
        "--structured",
        *words,
        "--start",
        str(runs / "base"),
    ]
    train.main([*call, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    run = checkpoint.load(tmp_path / "pruning+quantization")
    facts = run.compression[0]
    heads, neurons = ("/".join(map(str, facts[kind])) for kind in ("heads", "neurons"))
    assert f"heads {heads} of 2, neurons {neurons} of 64" in printed
    base, ours = (
        checkpoint.sizes(path) for path in (runs / "quantization", tmp_path / "pruning+quantization")
    )
    assert ours["bytes"] < base["bytes"] and ours["parameters"] < base["parameters"]
    tensors = load_file(tmp_path / "pruning+quantization" / "compressed.safetensors")
    assert [tensors[f"bert.encoder.layer.{i}.intermediate.dense.weight"].shape[0] for i in range(2)] == facts[
        "neurons"
    ]
    if "--target-macs" in words:
        train.main(
            [
                *arguments,
                "--technique",
                "pruning",
                "--structured",
                "--epochs",
                "1",
                "--start",
                str(runs / "base"),
                "--out",
                str(tmp_path),
            ]
        )
        line = refuses(
            train.main,
            [*arguments, "--technique", "distillation", "--teacher", tmp_path / "pruning", "--out", tmp_path],
        )
        assert "is pruning, its layers make no plain student" in line
        again = [
            *arguments,
            "--start",
            str(tmp_path / "pruning"),
            "--epochs",
            "1",
            "--out",
            str(tmp_path),
            "--name",
            "again",
        ]
        train.main(again)
        assert (
            checkpoint.load(tmp_path / "again").compression
            == checkpoint.load(tmp_path / "pruning").compression
        )


def test_structured_pruning_starts_from_the_base_run_and_layers_can_go(runs, arguments, tmp_path, capsys):
    train.main(
        [
            *arguments,
            "--epochs",
            "1",
            "--technique",
            "pruning",
            "--keep-layers",
            "1",
            "--out",
            str(runs),
            "--name",
            "shallow",
        ]
    )
    assert "shallow: from the base run in" in capsys.readouterr().out
    run = checkpoint.load(runs / "shallow")
    assert len(run.model.bert.encoder.layer) == 1 and run.compression[0]["zeros"]
    shutil.rmtree(runs / "shallow")


def test_options_reach_the_masks(model):
    technique = Pruning(nm=[2, 4])
    technique.prepare(model)
    linears = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("bert")]
    assert all((m.weight == 0).float().mean() == 0.5 for m in linears)


# --- low rank by what comes out


def test_whitened_factors_minimise_the_error_of_the_outputs():
    torch.manual_seed(0)
    x = torch.randn(4000, 24) @ torch.diag(torch.logspace(0, -2, 24)) @ torch.randn(24, 24)
    linear = nn.Linear(24, 16)
    moment = (x.T @ x / len(x)).double()
    errors = []
    for svd in (None, whitened_svd(linear.weight.detach(), moment, damping=1e-12)):
        layer = LowRankLinear.from_linear(linear, 4, svd)
        errors.append(float((linear(x) - layer(x)).detach().double().square().sum(1).mean()))
    root = torch.linalg.cholesky(moment + 1e-12 * torch.eye(24))
    singular = torch.linalg.svdvals(linear.weight.detach().double() @ root)
    assert errors[1] == pytest.approx(float(singular[4:].square().sum()), rel=1e-3)  # Eckart-Young, for W L
    assert errors[1] < 0.7 * errors[0]


def test_moments_are_of_real_tokens(model, batch):
    names = ["bert.encoder.layer.0.attention.self.query", "bert.pooler.dense"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    moments, shares = second_moments(model, names, lambda b: model(**inputs), [batch, batch])
    rows, tokens = inputs["attention_mask"].shape[0], int(inputs["attention_mask"].sum())
    assert {share for name, share in shares.items() if "pooler" not in name} == {1.0}
    assert shares["bert.pooler.dense"] == pytest.approx(rows / tokens)
    hidden = model.bert.embeddings(batch["input_ids"])[batch["attention_mask"].bool()]
    assert torch.allclose(moments[names[0]].float(), hidden.T @ hidden / len(hidden), atol=1e-5)
    assert moments[names[1]].shape == (32, 32) and not model.get_submodule(names[0])._forward_pre_hooks


def test_sensitivities_are_mean_squared_gradients_over_real_tokens(model, batch):
    task, names = Task(), ["bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.2.output.dense"]
    ours = sensitivities(model, names, lambda b: task.loss(model, b, task.forward(model, b)), [batch, batch])
    for name in names:
        seen, squares = {}, 0.0
        handle = model.get_submodule(name).register_forward_hook(lambda _, __, y, seen=seen: seen.update(y=y))
        for note in range(6):
            one = {key: value[note : note + 1] for key, value in batch.items()}
            loss = task.loss(model, one, task.forward(model, one))
            squares += float(torch.autograd.grad(loss, seen["y"])[0].square().sum())
        handle.remove()
        assert ours[name] == pytest.approx(squares / (int(batch["attention_mask"].sum()) * 32), rel=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_layer_that_matters_more_keeps_more_ranks():
    spectra = {name: torch.linspace(1, 0.1, 8) for name in "ab"}
    shapes = dict.fromkeys("ab", (32, 8))
    even, tilted = (
        shared_ranks(spectra, shapes, 0.5, weights)
        for weights in ({"a": 1.0, "b": 1.0}, {"a": 9.0, "b": 1.0})
    )
    assert abs(even["a"] - even["b"]) <= 1 and tilted["a"] > even["a"] and tilted["b"] < even["b"]


@pytest.mark.parametrize("target", [0.2, 0.5, 0.7])
def test_shared_ranks_meet_the_budget_and_favour_flat_spectra(target):
    shapes = {"steep": (64, 64), "flat": (64, 64), "wide": (128, 64)}
    spectra = {"steep": torch.logspace(0, -6, 64), "flat": torch.ones(64), "wide": torch.logspace(0, -1, 64)}
    ranks = shared_ranks(spectra, shapes, target)
    cost = sum(min(ranks[name] * sum(shape), shape[0] * shape[1]) for name, shape in shapes.items())
    assert target - 0.02 <= cost / sum(a * b for a, b in shapes.values()) <= target
    assert target < 0.5 or ranks["steep"] < ranks["flat"]


def test_an_activation_aware_run_within_a_budget(runs, arguments, tmp_path, capsys):
    call = [
        *arguments,
        "--technique",
        "lowrank",
        "--activation-aware",
        "--target-macs",
        "0.5",
        "--start",
        str(runs / "base"),
        "--epochs",
        "1",
    ]
    train.main([*call, "--out", str(tmp_path)])
    assert "lowrank: activation-aware, 50% of the multiply-adds, ranks" in capsys.readouterr().out
    run = checkpoint.load(tmp_path / "lowrank")
    assert len(set(run.compression[0]["ranks"].values())) > 1
