"""Each technique against a reference implementation, and each printed claim against the model."""

import copy
import json
import re

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

import compress
from cli import BadInput
from compress.distillation import Distillation, hidden_loss, kd_loss
from compress.lora import LoRA
from compress.lowrank import LowRank, LowRankLinear, break_even_rank, energy_rank
from compress.pruning import Pruning, cubic, global_masks, magnitude_mask
from compress.quantization import (
    Int8Embedding,
    Quantization,
    RoundedLinear,
    fastest_engine,
    is_int8,
    load_plain_state,
    plain_state,
    quantize_linears,
    rounded_product,
)
from compress.student import keep_layers, spaced_layers
from layers import encoder_linears, trainable_copy
from run.arguments import build_parser
from tasks.task import Task

CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=64,
    num_labels=3,
)


SIZE = {"vocab_size": 50, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 64, "num_labels": 3, "pad_token_id": 0}  # fmt: skip
FAMILIES = {  # model type: what its config needs besides
    "bert": {},
    "roberta": {},
    "electra": {"embedding_size": 16},
    "distilbert": {"dim": 48, "n_layers": 4, "n_heads": 4, "hidden_dim": 64},
    "mpnet": {},
    "albert": {"embedding_size": 16},
    "modernbert": {"eos_token_id": 1, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 1},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "gpt2": {"n_embd": 48, "n_layer": 4, "n_head": 4},
}


def tiny(kind):
    """A model of a family, of random weights, with three labels."""
    torch.manual_seed(6)
    config = AutoConfig.for_model(kind, **{**SIZE, **FAMILIES[kind]})
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BertForSequenceClassification(CONFIG).eval()


def logits(model, batch):
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def steps(technique, model, batch, count=6):
    """A few optimizer steps as train.py takes them."""
    technique.task = Task()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(count):
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        technique.loss(model, batch, outputs).backward()
        optimizer.step()
        optimizer.zero_grad()
        technique.after_step(model, (step + 1) / count)
    return model


# --- pruning


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.77, 0.999])
def test_masks_equal_torch_prune(fraction):
    torch.manual_seed(1)
    layers = [nn.Linear(40, 30), nn.Linear(30, 70)]
    ours = [magnitude_mask(layer.weight, fraction) for layer in layers]
    together = global_masks([layer.weight for layer in layers], fraction)
    for layer, mask in zip(copy.deepcopy(layers), ours, strict=True):
        assert mask.equal(prune.l1_unstructured(layer, "weight", fraction).weight_mask.bool())
    theirs = copy.deepcopy(layers)
    prune.global_unstructured([(layer, "weight") for layer in theirs], prune.L1Unstructured, amount=fraction)
    for layer, mask in zip(theirs, together, strict=True):
        assert mask.equal(layer.weight_mask.bool())


@pytest.mark.parametrize("options", [{}, {"global_": True}, {"schedule": "cubic"}])
def test_pruned_weights_stay_zero_and_no_mask_is_left(model, batch, options, capsys):
    technique = Pruning(sparsity=0.4, **options)
    model = technique.prepare(model)
    zeros = {n: m.weight == 0 for n, m in encoder_linears(model)[0].items()}
    model = steps(technique, model.train(), batch)
    if "schedule" not in options:
        assert all((m.weight[zeros[n]] == 0).all() for n, m in encoder_linears(model)[0].items())
    before = logits(model.eval(), batch)
    model = technique.finish(model)
    assert logits(model, batch).equal(before)
    assert model.state_dict().keys() == BertForSequenceClassification(CONFIG).state_dict().keys()
    linears, skipped = encoder_linears(model)
    assert skipped == ["classifier"] and (model.classifier.weight != 0).all()
    zeros, total = (
        sum(int(x) for x in values)
        for values in zip(*(((m.weight == 0).sum(), m.weight.numel()) for m in linears.values()), strict=True)
    )
    assert abs(zeros / total - 0.4) < 1e-3 and technique.describe()["zeros"] == zeros
    claim = (
        f"zeroed {zeros / 1e3:.1f}k of {total / 1e3:.1f}k weights (40.0%) in 25/26 Linear, skipped classifier"
    )
    assert claim in capsys.readouterr().out


def test_cubic_schedule_rises_to_the_target_at_half_time():
    assert [round(cubic(0.8, t), 4) for t in (0, 0.25, 0.5, 0.9)] == [0, 0.7, 0.8, 0.8]
    technique = Pruning(schedule="cubic")
    assert not technique.settled(0.4) and technique.settled(0.5) and Pruning().settled(0.1)


# --- low rank


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (25, 25)])
def test_lowrank_layer_is_the_best_approximation(shape):
    torch.manual_seed(2)
    dense, x = nn.Linear(*shape), torch.randn(7, shape[0])
    singular = torch.linalg.svdvals(dense.weight)
    for rank in (1, 5, min(shape)):
        thin = LowRankLinear.from_linear(dense, rank)
        product = thin.up.weight @ thin.down.weight
        assert torch.allclose(
            torch.linalg.norm(dense.weight - product), singular[rank:].square().sum().sqrt(), atol=1e-5
        )
        assert sum(p.numel() for p in thin.parameters()) == rank * sum(shape) + shape[1]
    assert torch.allclose(thin(x), dense(x), atol=1e-5)  # full rank equals dense


def test_energy_rank_is_the_smallest_that_holds_the_energy():
    singular = torch.tensor([3.0, 2.0, 1.0, 0.5])
    shares = singular.square().cumsum(0) / singular.square().sum()
    for energy in (0.1, 0.63, 0.64, 0.95, 0.999, 1.0):
        rank = energy_rank(singular, energy)
        assert shares[rank - 1] >= energy - 1e-6 and (rank == 1 or shares[rank - 2] < energy)


def test_lowrank_replaces_what_gains_and_names_the_rest(model, batch, capsys):
    before = sum(p.numel() for p in model.parameters())
    dense = copy.deepcopy(model)
    technique = LowRank(rank=18)  # break-even: 16 for 32x32, 21.3 for 32x64
    model = technique.prepare(model)
    printed = capsys.readouterr().out
    after = sum(p.numel() for p in model.parameters())
    assert (
        sum(isinstance(m, LowRankLinear) for m in model.modules()) == 8 == len(technique.describe()["ranks"])
    )
    assert (
        f"replaced 8/26 Linear, {before / 1e3:.1f}k -> {after / 1e3:.1f}k parameters" in printed
        and after < before
    )
    assert "classifier" in printed and "bert.pooler.dense (dense: rank 18 >= break-even 16)" in printed
    assert all(break_even_rank(dense.get_submodule(name)) > 18 for name in technique.describe()["ranks"])
    skeleton = LowRank.rebuild(BertForSequenceClassification(CONFIG), technique.describe()).eval()
    skeleton.load_state_dict(model.state_dict())
    assert logits(skeleton, batch).equal(logits(model, batch))


def test_lowrank_by_energy_gives_each_layer_its_rank(model):
    dense = copy.deepcopy(model)
    technique = LowRank(energy=0.5)
    technique.prepare(model)
    assert technique.ranks
    for name, rank in technique.ranks.items():
        assert rank == energy_rank(torch.linalg.svdvals(dense.get_submodule(name).weight.detach()), 0.5)


# --- distillation


def test_kd_loss_is_its_closed_form():
    torch.manual_seed(3)
    student, teacher = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    for t in (1.0, 4.0):
        p, q = (teacher / t).softmax(-1), (student / t).softmax(-1)
        expected = t**2 * (p * (p.log() - q.log())).sum(-1).mean()
        loss = kd_loss(student, teacher, t)
        assert torch.allclose(loss, expected, atol=1e-6)
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.allclose(gradient, t * (q - p).detach() / 5, atol=1e-6)  # d/dz = T (q - p) / B
    assert kd_loss(teacher, teacher, 4.0).abs() < 1e-6
    halves = [logits.detach().bfloat16() for logits in (student, teacher)]  # as under autocast
    assert torch.allclose(kd_loss(*halves, 4.0), kd_loss(*(logits.float() for logits in halves), 4.0))
    assert kd_loss(teacher[:0], teacher[:0], 4.0) == 0


def test_layers_are_spaced_as_distilbert_spaces_them():
    assert spaced_layers(12, 6) == [0, 2, 4, 7, 9, 11]
    assert (
        spaced_layers(6, 3) == [0, 2, 5]
        and spaced_layers(12, 1) == [11]
        and spaced_layers(4, 4) == [0, 1, 2, 3]
    )


def test_student_is_smaller_and_its_loss_is_the_weighted_sum(model, batch, capsys):
    technique = Distillation(teacher=model, alpha=0.3, temperature=2.0)
    technique.task = Task()
    student = technique.prepare(trainable_copy(model)).eval()
    assert (
        student.config.num_hidden_layers == len(student.bert.encoder.layer) == 2
        and len(model.bert.encoder.layer) == 4
    )
    assert student.bert.encoder.layer[1].output.dense.weight.equal(
        model.bert.encoder.layer[3].output.dense.weight
    )
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, student)]
    claim = "student of 2 layers from teacher layers 0, 3; {:.1f}k -> {:.1f}k parameters".format(
        *(c / 1e3 for c in counts)
    )
    assert claim in capsys.readouterr().out and counts[1] < counts[0]
    outputs = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    expected = 0.3 * nn.functional.cross_entropy(outputs.logits, batch["labels"]) + 0.7 * kd_loss(
        outputs.logits, logits(model, batch), 2.0
    )
    assert torch.allclose(technique.loss(student, batch, outputs), expected)
    assert not any(p.requires_grad for p in model.parameters()) and all(
        p.requires_grad for p in student.parameters()
    )


@pytest.mark.parametrize("width", [32, 16])
def test_hidden_term_ignores_padding_and_leaves_nothing_behind(model, batch, width):
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=50,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        num_labels=3,
    )
    technique = Distillation(teacher=model, student="narrow", hidden_weight=1.0)
    student = technique.prepare(BertForSequenceClassification(config))
    steps(technique, student, batch, 2)
    student = technique.finish(student)
    assert student.state_dict().keys() == BertForSequenceClassification(config).state_dict().keys()
    a, b = torch.randn(2, 6, 9, 8)
    noise = torch.where(batch["attention_mask"].bool()[..., None], b, torch.randn(6, 9, 8))
    real = batch["attention_mask"].bool()
    assert torch.allclose(hidden_loss(a, b, batch["attention_mask"]), (a[real] - b[real]).square().mean())
    assert hidden_loss(a, b, batch["attention_mask"]).equal(hidden_loss(a, noise, batch["attention_mask"]))


def test_other_encoders_shrink_too_or_are_named():
    config = DistilBertConfig(vocab_size=50, dim=32, n_layers=4, n_heads=2, hidden_dim=64, num_labels=3)
    teacher = DistilBertForSequenceClassification(config)
    assert len(encoder_linears(teacher)[0]) == 24 and encoder_linears(teacher)[1] == [
        "pre_classifier",
        "classifier",
    ]
    technique = Distillation(teacher=teacher, student_layers=1)
    technique.task = Task()
    student = technique.prepare(trainable_copy(teacher))
    assert student.config.n_layers == 1 and len(student.distilbert.transformer.layer) == 1
    shared = tiny("albert")
    with pytest.raises(BadInput, match="Albert.*--student"):
        Distillation(teacher=shared).prepare(trainable_copy(shared))


# --- quantization


def test_int8_layer_is_the_rounded_weight_times_the_input():
    torch.manual_seed(5)
    dense = nn.Sequential(nn.Linear(64, 48))
    x = torch.randn(10, 64)
    scale = dense[0].weight.detach().abs().amax(1, keepdim=True) / 127.5
    rounded = (dense[0].weight.detach() / scale).round().clamp(-128, 127)
    expected = x @ (rounded * scale).T + dense[0].bias
    with torch.no_grad():
        model = compress.quantization.quantize_linears(copy.deepcopy(dense))
        state = plain_state(model)
        assert state["0.weight"].dtype == torch.int8 and (state["0.weight"] - rounded).abs().max() <= 1
        assert torch.allclose(state["0.weight_scale"], scale[:, 0])
        assert (model(x) - expected).norm() / expected.norm() < 0.02  # what the 8-bit activations cost


def test_quantized_model_claims_and_plain_state(model, batch, capsys):
    dense = logits(model, batch)
    before = 4 * sum(p.numel() for p in model.parameters())
    technique = Quantization()
    model = technique.finish(copy.deepcopy(model))
    claim = re.search(
        r"(\d+)/26 Linear and 3 embedding tables to int8 \(engine (\w+)\).* ([\d.]+) MB -> ([\d.]+) MB",
        capsys.readouterr().out,
    )
    assert int(claim[1]) == 26 == sum(map(is_int8, model.modules()))
    assert claim[2] == fastest_engine() == technique.describe()["engine"] == torch.backends.quantized.engine
    state = plain_state(model)
    stored = sum(t.numel() * t.element_size() for name, t in state.items() if not name.endswith("scale"))
    assert (
        float(claim[3]) == round(before / 1e6, 1)
        and float(claim[4]) == round(stored / 1e6, 1)
        and stored < before
    )
    table = Int8Embedding.from_embedding(embedding := nn.Embedding(20, 8))
    assert (
        table(torch.arange(20)) - embedding.weight
    ).abs().max() <= embedding.weight.abs().max() / 254 + 1e-6
    assert 0 < (logits(model, batch) - dense).norm() / dense.norm() < 0.05
    again = Quantization.rebuild(BertForSequenceClassification(CONFIG), technique.describe())
    load_plain_state(again, state)
    assert logits(again, batch).equal(logits(model, batch))
    del state["classifier.weight_scale"]
    with pytest.raises(RuntimeError, match="classifier.weight_scale"):
        load_plain_state(again, state)


# --- chains


def test_chain_runs_left_to_right_and_rebuilds(model, batch):
    parts = compress.parse_chain("distillation+lowrank+pruning+quantization")
    options = {"student_layers": 3, "rank": 6, "sparsity": 0.5}
    chain = compress.build(parts, options, teacher=model)
    chain.task = Task()
    student = steps(chain, chain.prepare(trainable_copy(model)), batch)
    student = chain.finish(student).eval()
    assert [facts["technique"] for facts in chain.describe()] == ["lowrank", "pruning", "quantization"]
    config = copy.deepcopy(student.config)
    again = compress.rebuild(BertForSequenceClassification(config), chain.describe()).eval()
    load_plain_state(again, plain_state(student))
    assert logits(again, batch).equal(logits(student, batch))


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra", "deberta-v2", "mpnet", "modernbert"])
def test_other_encoders_go_through_the_whole_chain(kind, batch):
    model = tiny(kind)
    chain = compress.build(
        compress.parse_chain("distillation+lowrank+pruning+quantization"), {"rank": 4}, teacher=model
    )
    chain.task = Task()
    small = chain.finish(steps(chain, chain.prepare(trainable_copy(model)), batch, 2)).eval()
    config = type(small.config).from_dict(small.config.to_dict())
    again = compress.rebuild(AutoModelForSequenceClassification.from_config(config), chain.describe()).eval()
    load_plain_state(again, plain_state(small))
    assert small.config.num_hidden_layers == 2 and logits(again, batch).equal(logits(small, batch))


@pytest.mark.parametrize(
    "names, message",
    [
        ("shrink", f"no technique 'shrink'; there are {', '.join(compress.TECHNIQUES)}"),
        ("base+pruning", "base is no technique"),
        ("quantization+pruning", f"in this order: {' < '.join(list(compress.TECHNIQUES)[1:])}"),
        ("pruning+pruning", "each technique once"),
    ],
)
def test_nonsense_is_refused(names, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        compress.parse_chain(names)


def test_a_model_without_linear_layers_is_named():
    with pytest.raises(BadInput, match="GPT2ForSequenceClassification has no nn.Linear"):
        Pruning().prepare(tiny("gpt2"))


def test_training_rounds_as_int8_does_and_gradients_pass(model, batch, capsys):
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 5), torch.randn(3, 4, 64, requires_grad=True)
    expected = quantize_linears(nn.Sequential(copy.deepcopy(linear)))(x.detach())
    ours = rounded_product(x, linear.weight, linear.bias)
    assert ours.equal(RoundedLinear(linear)(x))
    assert torch.allclose(ours, expected, atol=5e-3) and not torch.allclose(linear(x), ours, atol=5e-3)
    ours.sum().backward()
    assert torch.allclose(x.grad, linear.weight.sum(0).expand_as(x), atol=0.05)
    technique = Quantization(qat=True)
    technique.task = Task()
    before = {name: p.clone() for name, p in model.named_parameters()}
    model = technique.prepare(model)
    assert "training with int8's rounding in 26 Linear" in capsys.readouterr().out
    steps(technique, model, batch, 2)
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    model = technique.finish(model)
    assert sum(is_int8(module) for module in model.modules()) == 26
    assert not any("forward" in m.__dict__ or isinstance(m, RoundedLinear) for m in model.modules())


# --- what scripts ask of techniques


def flags(*words):
    """Parsed arguments."""
    return build_parser().parse_args([str(word) for word in words])


def test_a_technique_of_ones_own_goes_by_its_key(model, batch, monkeypatch, capsys):
    class Softer(Distillation):
        def soft_loss(self, student, teacher):
            return (student - teacher).square().mean()

    class Thin(LowRank):
        pass

    monkeypatch.setitem(compress.TECHNIQUES, "softer", Softer)
    monkeypatch.setitem(compress.TECHNIQUES, "thin", Thin)
    assert compress.needs(["softer"]) == {"teacher", "calibration"}
    assert not compress.starts_from_base(["softer"], flags())
    chain = compress.build(["softer"], vars(flags("--alpha", 0)), teacher=model)
    chain.task = Task()
    student = chain.prepare(trainable_copy(model)).eval()
    assert chain.name == "softer" and "softer: student of 2 layers" in capsys.readouterr().out
    outputs = chain.task.forward(student, batch)
    assert chain.loss(student, batch, outputs).equal((outputs.logits - logits(model, batch)).square().mean())
    with pytest.raises(BadInput, match="distillation and softer each have a loss of their own"):
        compress.check_order(["distillation", "softer"])

    chain = compress.build(["thin"], {"rank": 4})
    small = chain.prepare(model)
    assert (
        [facts["technique"] for facts in chain.describe()] == ["thin"] == compress.changed(chain.describe())
    )
    again = compress.rebuild(BertForSequenceClassification(CONFIG), chain.describe())
    assert again.state_dict().keys() == small.state_dict().keys()
    with pytest.raises(BadInput, match="lora freezes the weights that thin would change"):
        compress.check_order(["lora", "thin"])


@pytest.mark.parametrize(
    "names, words, base, trains",
    [
        ("base", "", False, True),
        ("pruning", "", False, True),
        ("pruning", "--structured", True, True),
        ("pruning", "--keep-layers 1", True, True),
        ("lowrank", "--activation-aware", False, True),
        ("lowrank", "--activation-aware --target-macs 0.5", True, True),
        ("quantization", "", True, False),
        ("quantization", "--qat", True, True),
        ("lowrank+quantization", "", False, True),
        ("lora+quantization", "--qat", True, True),
        ("distillation+quantization", "--qat", False, True),
        ("distillation+pruning", "--structured", False, True),
    ],
)
def test_techniques_say_what_they_start_from(names, words, base, trains):
    parts, options = compress.parse_chain(names), flags(*words.split())
    assert compress.starts_from_base(parts, options) == base and compress.trains(parts, options) == trains
    assert compress.starts_from(parts, options) is None


def test_only_distillation_starts_from_another_checkpoint():
    options = flags("--student", "small")
    found = {name: compress.starts_from([name], options) for name in compress.TECHNIQUES}
    assert {name for name, source in found.items() if source} == {"distillation"}
    assert compress.starts_from(["distillation", "quantization"], options) == "small"


def test_int8_is_for_the_cpu_and_int8_and_bf16_are_for_the_end():
    for name in compress.TECHNIQUES:
        facts = [{"technique": "pruning"}, {"technique": name}]
        assert compress.cpu_only(facts) == (name == "quantization")
        assert compress.final(facts) == (name in ("bf16", "quantization"))
    assert not compress.cpu_only([]) and not compress.final([])


@pytest.mark.parametrize(
    "names, words, message",
    [
        (
            "pruning",
            "--keep-heads 1",
            "--keep-heads: takes heads and neurons out, so it goes with --structured",
        ),
        ("pruning", "--keep-neurons 16", "--keep-neurons: takes heads"),
        ("pruning", "--target-macs 0.5", "--target-macs: takes heads"),
        ("distillation+pruning", "--target-macs 0.5", "--target-macs: takes heads"),
        ("distillation", "--student x --student-width 16", "--student: its head has learnt nothing yet"),
        ("distillation", "--student x --layer-choice best", "leave --student-width and --layer-choice out"),
        ("lowrank+pruning", "--target-macs 0.5", None),
        ("pruning", "--target-macs 0.5 --structured --keep-heads 0", None),
        ("lowrank", "--keep-heads 1", None),
        ("distillation", "--student x", None),
        *((name, "", None) for name in compress.TECHNIQUES),
    ],
)
def test_flags_that_do_not_go_together_are_refused(names, words, message):
    parts, options = compress.parse_chain(names), flags(*words.split())
    if message is None:
        compress.check(parts, options)
    else:
        with pytest.raises(BadInput, match=re.escape(message)):
            compress.check(parts, options)


@pytest.mark.parametrize("name", compress.TECHNIQUES)
def test_every_flag_says_its_default(name):
    for flag, words in compress.TECHNIQUES[name].OPTIONS.items():
        default = words.get("default")
        named = (
            "off"
            if default is None or default is False
            else f"{default:g}"
            if words.get("type")
            else str(default)
        )
        said = words["help"][words["help"].rindex("(") :] if "(" in words["help"] else ""
        assert said.endswith(")") and (default is None or named in said), (flag, words["help"])


# --- encoders of other families

WAYS = (  # each technique and its different ways, as on the command line
    "base",
    "bf16",
    "distillation",
    "distillation --layer-choice best",
    "distillation --student-width 24",
    "distillation --hidden-weight 1",
    "distillation --attention-weight 1",
    "distillation --student x --hidden-weight 1",
    "lora",
    "lora --lora-keep",
    "lowrank --rank 4",
    "lowrank --energy 0.5",
    "lowrank --activation-aware --target-macs 0.5",
    "pruning",
    "pruning --nm 2:4",
    "pruning --structured",
    "pruning --keep-layers 2",
    "quantization",
    "quantization --qat",
)
REFUSED = (  # (families, ways, why)
    (
        ("albert",),
        ("pruning --structured", "pruning --keep-layers 2"),
        "Albert.* has no list of 4 .*; quantization, lowrank, lora and pruning by --sparsity work on it",
    ),
    (
        ("albert",),
        [way for way in WAYS if way.startswith("distillation") and "--student x" not in way],
        "Albert.* has no list of 4 .*; to distil it, give a smaller checkpoint with --student",
    ),
    (
        ("mpnet", "modernbert", "deberta-v2", "gpt2"),
        ("pruning --structured", "distillation --student-width 24"),
        "does not know the layers of .*; give a model with the layers of BERT or DistilBERT",
    ),
    (
        ("mpnet", "modernbert", "deberta-v2", "gpt2"),
        ("distillation --attention-weight 1",),
        "does not know the layers of .*; use --hidden-weight instead",
    ),
    (
        ("gpt2",),
        [
            way
            for way in WAYS
            if way.startswith(("bf16", "lora", "lowrank", "pruning")) and "structured" not in way
        ],
        "GPT2.* has no nn.Linear in its encoder, so there is nothing to compress; choose a BERT-like model",
    ),
)


def through(way, kind, batch):
    """Two steps of a technique on a tiny model of a family, in bf16; what is saved loads again."""
    name, *words = way.split()
    options, model = flags(*words), tiny(kind)
    parts = compress.parse_chain(name)
    taught = "teacher" in compress.needs(parts)
    supplied = {"teacher": model, "calibration": lambda notes: [batch], "fresh": []}
    chain = compress.build(parts, vars(options), **supplied)
    chain.task = Task()
    copied = taught and not compress.starts_from(parts, options)
    small = chain.prepare(trainable_copy(model) if copied else tiny(kind))

    optimizer = torch.optim.AdamW([p for p in small.parameters() if p.requires_grad], lr=0.01)
    for step in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = chain.task.forward(small, batch)
            loss = chain.loss(small, batch, outputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        chain.after_step(small, (step + 1) / 2)

    small = chain.finish(small).eval()
    config = type(small.config).from_dict(small.config.to_dict())
    again = compress.rebuild(AutoModelForSequenceClassification.from_config(config), chain.describe()).eval()
    load_plain_state(again, plain_state(small))
    assert torch.allclose(logits(again, batch), logits(small, batch), atol=1e-6)


def without_padding_ids(batch):
    """The batch with token 0 where it is padded, and nowhere else."""
    return {**batch, "input_ids": batch["input_ids"].clamp(min=3) * batch["attention_mask"]}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_every_technique_works_on_every_family_or_says_why_not(kind, way, batch):
    reasons = [why for kinds, ways, why in REFUSED if kind in kinds and way in ways]
    if reasons:
        with pytest.raises(BadInput, match=reasons[0]):
            through(way, kind, without_padding_ids(batch))
    else:
        through(way, kind, without_padding_ids(batch))


def test_no_technique_is_left_out():
    assert {way.split()[0] for way in WAYS} == set(compress.TECHNIQUES)


def test_layers_that_cannot_stand_alone_are_named():
    with pytest.raises(BadInput, match="ModernBert.* cannot be built of layers 1, 2 alone; .*--layer-choice"):
        keep_layers(tiny("modernbert"), [1, 2])


def test_a_decoder_without_its_other_layers_is_the_model_of_its_config(batch):
    teacher = tiny("gpt2")
    student = Distillation(teacher=teacher, student_layers=2)
    student.task = Task()
    small = student.prepare(trainable_copy(teacher)).eval()
    assert [block.attn.layer_idx for block in small.transformer.h] == [0, 1]
    again = type(teacher)(type(teacher.config).from_dict(small.config.to_dict())).eval()
    again.load_state_dict(small.state_dict())
    inputs = without_padding_ids(batch)
    assert logits(again, inputs).equal(logits(small, inputs))


LORA_TARGETS = {
    "bert": ["query", "value"],
    "albert": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "mpnet": ["q", "v"],
    "modernbert": ["Wqkv"],
    "deberta-v2": ["query_proj", "value_proj"],
}


@pytest.mark.parametrize("kind", LORA_TARGETS)
def test_lora_finds_queries_and_values_and_peft_loads_the_adapter(kind, batch, tmp_path, capsys):
    inputs = without_padding_ids(batch)
    original = tiny(kind)
    original.save_pretrained(tmp_path / "model")
    technique = LoRA(source=str(tmp_path / "model"), lora_rank=2)
    ours = technique.prepare(original)
    assert f"Linear ({', '.join(LORA_TARGETS[kind])}), trainable" in capsys.readouterr().out
    assert technique.names and {name.rpartition(".")[2] for name in technique.names} == set(
        LORA_TARGETS[kind]
    )
    ours = technique.finish(steps(technique, ours, inputs, 2)).eval()

    folder = tmp_path / "adapter"
    folder.mkdir()
    for path, content in technique.files().items():
        if path.endswith(".json"):
            (tmp_path / path).write_text(json.dumps(content))
        else:
            save_file({name: tensor.contiguous() for name, tensor in content.items()}, tmp_path / path)
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert not torch.allclose(logits(base.eval(), inputs), logits(ours, inputs), atol=1e-3)
    theirs = PeftModel.from_pretrained(base, folder).eval()
    assert torch.allclose(logits(theirs, inputs), logits(ours, inputs), atol=1e-5)


def test_lora_takes_an_explicit_list_and_names_what_it_does_not_find():
    technique = LoRA(lora_targets="Wo, Wi")
    technique.prepare(tiny("modernbert"))
    assert {name.rpartition(".")[2] for name in technique.names} == {"Wo", "Wi"}
    odd = tiny("bert")
    for layer in odd.bert.encoder.layer:
        del layer.attention.self.key
    with pytest.raises(BadInput, match="--lora-targets: does not know .* BertForSequenceClassification"):
        LoRA().prepare(odd)


def test_rounding_in_training_keeps_names_and_masks(model, batch):
    before = model.state_dict().keys()
    chain = compress.build(["pruning", "quantization"], {"qat": True, "sparsity": 0.5})
    chain.task = Task()
    rounded = chain.prepare(model)
    assert sum(isinstance(m, RoundedLinear) for m in rounded.modules()) == 26
    assert {name for name in rounded.state_dict() if "pruning_mask" not in name} == before
    assert sum("pruning_mask" in name for name in rounded.state_dict()) == 25
    rounded = steps(chain, rounded, batch, 2)
    weight = rounded.bert.encoder.layer[0].output.dense.weight
    assert (weight == 0).float().mean() == 0.5
    chain.finish(rounded)
    assert chain.describe()[0]["zeros"] == round(chain.describe()[0]["weights"] / 2)
