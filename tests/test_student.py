"""A student cut from its teacher: which layers, which directions, and what it is taught."""

import copy
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

import files
import train
from cli import BadInput
from compress.distillation import Distillation, kd_loss, relation_loss, relations, renamed, replaced
from compress.structured import find_units, fisher
from compress.student import best_layers, keep_layers, narrow_model, norm_moments, strongest
from data import collate
from layers import trainable_copy
from run import checkpoint
from tasks.task import Task

CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=64,
    num_labels=3,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BertForSequenceClassification(CONFIG).eval()


def task_loss(model, batch):
    return Task().loss(model, batch, Task().forward(model, batch))


def teach(model, batch, **options):
    technique = Distillation(teacher=model, calibration=lambda notes: [batch], **options)
    technique.task = Task()
    return technique


def test_the_layer_that_does_nothing_goes_first(model, batch):
    quiet = model.bert.encoder.layer[2]
    with torch.no_grad():
        for linear in (quiet.attention.output.dense, quiet.output.dense):
            linear.weight.zero_()
            linear.bias.zero_()
    layers = list(model.bert.encoder.layer)
    answers = Task().forward(model, batch).logits.detach()

    def gap(model, batch):
        return (Task().forward(model, batch).logits - answers).square().mean()

    assert best_layers(model, 3, lambda b: gap(model, b), [batch]) == [0, 1, 3]
    assert list(model.bert.encoder.layer) == layers
    kept = best_layers(model, 2, lambda b: gap(model, b), [batch])
    costs = {}
    for gone in (0, 1, 3):
        other = keep_layers(copy.deepcopy(model), [i for i in (0, 1, 3) if i != gone])
        costs[gone] = float(gap(other, batch).detach())
    assert kept == [i for i in (0, 1, 3) if i != min(costs, key=costs.get)]


def test_the_basis_is_that_of_principal_components(model, batch):
    means, moments = norm_moments(model, lambda b: Task().forward(model, b), [batch])
    assert len(means) == 9  # two a layer, one of the embeddings
    hidden = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
    ).hidden_states
    real = hidden[2][batch["attention_mask"].bool()].detach().double()
    assert torch.allclose(means["bert.encoder.layer.1.output.LayerNorm"], real.mean(0), atol=1e-6)
    assert torch.allclose(
        moments["bert.encoder.layer.1.output.LayerNorm"], real.T @ real / len(real), atol=1e-6
    )
    scores = fisher(model, find_units(model), lambda b: task_loss(model, b), [batch])
    student, basis = narrow_model(model, 16, (means, moments), scores, lambda m: m)
    _, _, directions = torch.linalg.svd(torch.linalg.cholesky(sum(moments.values()) + 1e-9 * torch.eye(32)).T)
    agreement = directions[:16].float() @ basis  # an orthogonal matrix if both span the same space
    assert torch.allclose(agreement @ agreement.T, torch.eye(16), atol=1e-4)
    assert torch.allclose(
        student.bert.embeddings.word_embeddings.weight,
        model.bert.embeddings.word_embeddings.weight @ basis,
        atol=1e-6,
    )
    norm = student.bert.encoder.layer[1].output.LayerNorm
    seen = real.float() @ basis
    assert torch.allclose(norm.bias, seen.mean(0), atol=1e-5) and torch.allclose(
        norm.weight, seen.std(0, correction=0), atol=1e-4
    )


@pytest.mark.parametrize("width, heads, size", [(16, 2, 8), (24, 3, 8), (20, 4, 5)])
def test_a_narrow_student_is_a_plain_model(model, batch, capsys, width, heads, size):
    technique = teach(model, batch, student_layers=4, student_width=width)
    student = technique.prepare(trainable_copy(model)).eval()
    assert f"{width} of 32 channels" in capsys.readouterr().out
    neurons = {16: 32, 24: 48, 20: 32}[width]
    assert [(x.heads, x.head_size, x.neurons) for x in find_units(student)] == [(heads, size, neurons)] * 4
    again = BertForSequenceClassification(BertConfig.from_dict(student.config.to_dict()))
    again.load_state_dict(student.state_dict())


def test_a_narrow_student_starts_nearer_to_its_teacher_than_a_fresh_model(runs, small):
    run = checkpoint.load(runs / "base")
    splits, _ = run.task.load(str(small[0]), 1.0, 0.1, 0.2, 42)
    encoded = run.task.encode(splits["validation"], run.tokenizer, 128)
    notes = collate(encoded, np.arange(len(splits["validation"])), run.tokenizer.pad_token_id)
    technique = teach(run.model, notes, student_layers=2, student_width=24)
    student = technique.prepare(trainable_copy(run.model)).eval()
    torch.manual_seed(1)
    fresh = type(run.model)(student.config).eval()
    wanted = run.task.forward(run.model, notes).logits
    near, far = (kd_loss(run.task.forward(m, notes).logits, wanted, 1.0).item() for m in (student, fresh))
    assert near < 0.7 * far, (near, far)


def test_no_width_is_taken_that_the_heads_do_not_make_up(model, batch):
    for width in (32, 33, 18):
        with pytest.raises(BadInput, match=f"--student-width {width}: give less than 32, a multiple of 8"):
            teach(model, batch, student_width=width).prepare(trainable_copy(model))


def test_distilbert_is_narrowed_too(batch):
    torch.manual_seed(0)
    teacher = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=50, dim=32, n_layers=3, n_heads=4, hidden_dim=64, num_labels=3)
    )
    student = teach(teacher, batch, student_layers=2, student_width=16).prepare(trainable_copy(teacher))
    assert (
        student.config.dim,
        student.config.n_heads,
        student.config.n_layers,
        student.config.hidden_dim,
    ) == (16, 2, 2, 32)
    assert Task().forward(student, batch).logits.shape == (6, 3)


def test_strongest_channels_stay_in_their_heads():
    first, second = torch.ones(6, 4), torch.ones(6, 4)
    first[[1, 2, 5]] = 3.0
    second[[0, 3]] = 2.0
    assert strongest(first, second, 2, 2) == [1, 2, 3, 5] and strongest(first, second, 2, 1) == [1, 5]


def test_names_follow_the_kept_layers():
    assert (
        renamed("encoder.layer.5.output.LayerNorm", "encoder.layer", [0, 5])
        == "encoder.layer.1.output.LayerNorm"
    )
    assert renamed("encoder.layer.3.output.LayerNorm", "encoder.layer", [0, 5]) is None
    assert renamed("embeddings.LayerNorm", "encoder.layer", [0, 5]) == "embeddings.LayerNorm"


def test_relations_compare_models_of_any_width_and_ignore_padding(batch):
    torch.manual_seed(0)
    mask = batch["attention_mask"]
    teacher, student = torch.randn(6, 9, 24), torch.randn(6, 9, 12)
    loss, total = relation_loss(student, teacher, mask, 4), 0.0
    for note in range(6):
        length = int(mask[note].sum())
        for head in range(4):
            t, s = (
                teacher[note, :length, 6 * head : 6 * head + 6],
                student[note, :length, 3 * head : 3 * head + 3],
            )
            p, q = (torch.softmax(x @ x.T / x.shape[1] ** 0.5, -1) for x in (t, s))
            total += float((p * (p / q).log()).sum())
    assert float(loss) == pytest.approx(total / (int(mask.sum()) * 4), rel=1e-4)
    assert relation_loss(teacher, teacher, mask, 4) == 0 and relations(teacher, mask, 4).shape == (6, 4, 9, 9)
    noise = torch.where(mask.bool()[..., None], student, torch.randn(6, 9, 12))
    assert relation_loss(noise, teacher, mask, 4).allclose(loss)


def test_attention_term_reaches_the_last_projections(model, batch):
    technique = teach(model, batch, attention_weight=1.0, alpha=1.0, student_layers=2, student_width=24)
    student = technique.prepare(trainable_copy(model)).eval()
    with pytest.raises(BadInput, match="are no multiple of 12"):
        technique.loss(student, batch, technique.task.forward(student, batch))
    config = BertConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=3,
    )
    torch.manual_seed(0)
    teacher = BertForSequenceClassification(config).eval()
    technique = teach(teacher, batch, attention_weight=1.0, alpha=1.0, student_layers=2, student_width=24)
    student = technique.prepare(trainable_copy(teacher)).eval()
    outputs = technique.task.forward(student, batch)
    extra = technique.loss(student, batch, outputs) - technique.task.loss(student, batch, outputs)
    assert extra > 0
    last = student.bert.encoder.layer[-1].attention.self
    gradients = torch.autograd.grad(extra, [last.query.weight, last.key.weight, last.value.weight])
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert "distillation_projection" not in dict(technique.finish(student).named_modules())


@pytest.mark.parametrize("kind", ["note", "token"])
def test_the_teacher_reads_each_note_once(model, batch, kind, monkeypatch):
    technique = teach(model, batch)
    if kind == "token":
        monkeypatch.setattr(Task, "loss", lambda self, model, batch, outputs: outputs.logits.sum() * 0)
        monkeypatch.setattr(
            Task,
            "forward",
            lambda self, model, batch, **_: model(batch["input_ids"], batch["attention_mask"]),
        )
        monkeypatch.setattr(
            Task, "categorical", lambda self, logits, batch: logits[batch["attention_mask"].bool()]
        )
        technique.teacher = Tokens(50, 3).eval()
        student = Tokens(50, 3)
    else:
        student = technique.prepare(trainable_copy(model)).eval()
    calls = []
    technique.teacher.register_forward_hook(lambda *_: calls.append(1))
    outputs = technique.task.forward(student, batch)
    first = technique.loss(student, batch, outputs)
    second = technique.loss(student, batch, outputs)
    assert len(calls) == 1 and torch.allclose(first, second)
    rows = torch.tensor([5, 0])  # another batch, padded to another width
    part = {name: value[rows] for name, value in batch.items() if name != "rows"} | {"rows": rows.numpy()}
    width = int(part["attention_mask"].sum(1).max())
    part.update({name: part[name][:, :width] for name in ("input_ids", "attention_mask")})
    again = technique.loss(student, part, technique.task.forward(student, part))
    assert len(calls) == 1
    technique.taught = {}
    assert (
        torch.allclose(again, technique.loss(student, part, technique.task.forward(student, part)), atol=1e-6)
        and len(calls) == 2
    )
    technique.task.redraws = True
    technique.loss(student, batch, outputs)
    technique.loss(student, batch, outputs)
    assert len(calls) == 4


def test_replaced_tokens_are_inner_ones_and_come_from_the_batch(model, batch):
    ids, mask = batch["input_ids"].clone(), batch["attention_mask"]
    ids[:, 0], ids[mask == 0] = 48, 49
    torch.manual_seed(0)
    other = replaced(ids, mask, 0.5)
    inner = torch.zeros_like(ids, dtype=torch.bool)
    for row, length in enumerate(mask.sum(1)):
        inner[row, 1 : length - 1] = True
    assert other[~inner].equal(ids[~inner]) and set(other[inner].tolist()) <= set(ids[inner].tolist())
    share = (other[inner] != ids[inner]).float().mean()
    assert 0.25 < share < 0.6
    assert replaced(ids[:, :2], mask[:, :2], 0.5).equal(ids[:, :2])
    technique = teach(model, batch, augment=0.5, alpha=0.5)
    student = technique.prepare(trainable_copy(model)).eval()
    outputs = technique.task.forward(student, batch)
    torch.manual_seed(3)
    loss = technique.loss(student, batch, outputs)
    technique.augment = 0.0
    torch.manual_seed(3)
    other = {**batch, "input_ids": replaced(batch["input_ids"], mask, 0.5)}
    extra = kd_loss(
        technique.task.forward(student, other).logits, technique.task.forward(model, other).logits, 4.0
    )
    assert torch.allclose(loss, technique.loss(student, batch, outputs) + 0.5 * extra, atol=1e-6)


class Tokens(nn.Module):
    """Logits for every token."""

    def __init__(self, words, labels):
        super().__init__()
        self.table = nn.Embedding(words, labels)

    def forward(self, ids, mask):
        return type("Outputs", (), {"logits": self.table(ids)})()


def test_a_narrow_student_trains_saves_and_loads(runs, arguments, tmp_path, capsys):
    shutil.copytree(runs / "base", tmp_path / "base")
    call = [
        *arguments,
        "--out",
        str(tmp_path),
        "--technique",
        "distillation+quantization",
        "--student-layers",
        "1",
        "--student-width",
        "16",
    ]
    train.main(
        [
            *call,
            "--layer-choice",
            "best",
            "--hidden-weight",
            "1",
            "--calibration-notes",
            "32",
            "--name",
            "narrow",
        ]
    )
    assert "16 of 32 channels" in capsys.readouterr().out
    run = checkpoint.load(tmp_path / "narrow")
    assert run.model.config.hidden_size == 16 and np.isfinite(run.facts["test"]["overall"]["F1"])
    assert (
        run.facts["sizes"]["bytes"]
        < 0.5 * files.read_json(runs / "distillation" / "run.json")["sizes"]["bytes"]
    )
