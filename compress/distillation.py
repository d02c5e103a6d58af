"""Distillation: a smaller student learns from the labels and from a fine-tuned teacher's softened answers.

loss = alpha * CE(labels, student) + (1 - alpha) * T^2 * KL(softmax(teacher / T) || softmax(student / T)), summed over the
classes and averaged over the notes; T^2 keeps the gradients' size as T grows (Hinton et al., 2014). The student starts
from evenly spaced layers of the teacher (as DistilBERT does: 0, 2, 4, 7, 9, 11 of 12). An optional term pulls the
student's hidden states towards those of the matching teacher layers, by mean squared error over real tokens.

What it does not save: embeddings (a half-depth BERT-base keeps 61% of its bytes), and training time, since the teacher
reads every batch as well.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from compress.technique import Technique, millions, parameter_count
from data import BadInput, number


def kd_loss(student_logits, teacher_logits, temperature):
    """T^2 * KL(teacher || student) at temperature T; logits (B, C) -> scalar, the mean over B (notes, or labelled tokens)."""
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="sum") / max(1, len(student))


def hidden_loss(student, teacher, mask):
    """Mean squared error of hidden states (B, T, H) over the tokens that mask (B, T) marks as real."""
    mask = mask.unsqueeze(-1).to(student.dtype)
    return ((student - teacher).square() * mask).sum() / (mask.sum() * student.size(-1))


def spaced_layers(teacher_layers, student_layers):
    """Indices of evenly spaced teacher layers, the first and the last among them (the last alone for one)."""
    if student_layers == 1:
        return [teacher_layers - 1]
    return [round(i * (teacher_layers - 1) / (student_layers - 1)) for i in range(student_layers)]


def find_layers(model):
    """(name, nn.ModuleList) of the encoder's stack of layers. Raises BadInput if the model has no such list."""
    depth = getattr(model.config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise BadInput(f"distillation cannot find the layers of {type(model).__name__}; give a smaller model with --student")


def keep_layers(model, kept):
    """Drop, in place, all layers but those of the given indices. Raises BadInput if the architecture does not allow it."""
    name, layers = find_layers(model)
    parent, _, child = name.rpartition(".")
    for key, value in model.config.to_dict().items():
        if isinstance(value, list) and len(value) == len(layers):  # settings given layer by layer
            setattr(model.config, key, [value[i] for i in kept])
    setattr(model.get_submodule(parent), child, nn.ModuleList(layers[i] for i in kept))
    model.config.num_hidden_layers = len(kept)
    try:
        config = type(model.config).from_dict(model.config.to_dict())
        with torch.device("meta"):
            expected = {key: value.shape for key, value in type(model)(config).base_model.state_dict().items()}
    except (ValueError, TypeError, AssertionError, LookupError, AttributeError):
        expected = None
    if expected != {key: value.shape for key, value in model.base_model.state_dict().items()}:
        raise BadInput(f"distillation cannot drop layers of {type(model).__name__}; give a smaller model with --student")
    return model


class Distillation(Technique):
    """Shrinks a copy of the teacher (or takes the model that train.py loaded for --student) and trains it with kd_loss."""

    name = "distillation"
    NEEDS = ("teacher",)
    learning_rate = 5e-5
    OPTIONS = {
        "--teacher": dict(default=None, help="finished run to learn from (the base run under --out, trained first if absent)"),
        "--student-layers": dict(type=number(int, 0, 10**4), default=0, help="layers of the student (0 = half the teacher's)"),
        "--student": dict(default=None, help="start from this smaller model instead of the teacher's layers"),
        "--temperature": dict(type=number(float, 0, 10**4, low_open=True), default=4.0, help="softening of the logits, > 0"),
        "--alpha": dict(type=number(float, 0, 1), default=0.5, help="weight of the labels; 1 - alpha weighs the teacher, [0, 1]"),
        "--hidden-weight": dict(type=number(float, 0, 10**6), default=0.0, help="weight of the hidden-state term (0 = off)"),
    }  # fmt: skip

    def __init__(self, teacher, student_layers=0, student=None, temperature=4.0, alpha=0.5, hidden_weight=0.0):
        self.teacher, self.student_layers, self.student = teacher, student_layers, student
        self.temperature, self.alpha, self.hidden_weight = temperature, alpha, hidden_weight

    def prepare(self, model):
        """model: the --student, or a copy of the teacher. Drop layers, ready the teacher."""
        self.teacher.eval().requires_grad_(False)
        depth = len(find_layers(model)[1])
        wanted = self.student_layers or (depth if self.student else max(1, depth // 2))
        if wanted > depth:
            raise BadInput(f"--student-layers {wanted}: the model to shrink has {depth}")
        before = parameter_count(self.teacher)
        kept = spaced_layers(depth, wanted)
        if wanted < depth:
            model = keep_layers(model, kept)
        if self.hidden_weight:
            self._prepare_hidden(model, wanted)
        source = "its own" if self.student else "teacher"
        print(
            f"distillation: student of {wanted} layers from {source} layers {', '.join(map(str, kept))}; "
            f"{millions(before)} -> {millions(parameter_count(model))} parameters, head and embeddings kept"
        )
        return model

    def _prepare_hidden(self, model, student_layers):
        self.matched = spaced_layers(len(find_layers(self.teacher)[1]), student_layers)
        narrow, wide = model.config.hidden_size, self.teacher.config.hidden_size
        # Part of the model while it trains, so that the optimizer and the resume file see it; finish takes it away.
        model.distillation_projection = nn.Identity() if narrow == wide else nn.Linear(narrow, wide, bias=False)
        model.config.output_hidden_states = True

    def loss(self, model, batch, outputs):
        """alpha * task loss + (1 - alpha) * kd_loss, plus the hidden-state term."""
        with torch.no_grad():
            taught = self.task.forward(self.teacher, batch, output_hidden_states=bool(self.hidden_weight))
        student_rows, teacher_rows = (self.task.categorical(o.logits, batch) for o in (outputs, taught))
        loss = self.alpha * self.task.loss(model, batch, outputs)
        loss = loss + (1 - self.alpha) * kd_loss(student_rows, teacher_rows, self.temperature)
        if self.hidden_weight:
            pairs = zip(outputs.hidden_states[1:], (taught.hidden_states[i + 1] for i in self.matched))
            terms = [hidden_loss(model.distillation_projection(s), t, batch["attention_mask"]) for s, t in pairs]
            loss = loss + self.hidden_weight * sum(terms) / len(terms)
        return loss

    def finish(self, model):
        """Leave a plain, shallower model."""
        if self.hidden_weight:
            del model.distillation_projection
            model.config.output_hidden_states = False
        return model


def copy_of(teacher):
    """A trainable copy of the teacher, to be shrunk into the student."""
    return copy.deepcopy(teacher).requires_grad_(True).train()
