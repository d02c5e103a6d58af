"""Distillation: a smaller student learns from the labels and from a fine-tuned teacher's softened answers.

loss = alpha * CE(labels, student) + (1 - alpha) * T^2 * KL(softmax(teacher / T) || softmax(student / T)), summed over the
classes and averaged over the notes; T^2 keeps the gradients' size as T grows (Hinton et al., 2014). The student is cut from
the teacher (compress/student.py): fewer layers, and with --student-width narrower ones. Two terms may be added:
    --hidden-weight     mean squared error of the hidden states of matching layers, over real tokens
    --attention-weight  KL between the last layers' relations, softmax(A A^T / sqrt(d)) of A = queries, keys and values, split
                        into heads of the same number whatever the widths (Wang et al., 2021, MiniLMv2)
Without them the teacher reads every note once: its answers are kept in memory for the epochs to come (a resumed run asks
again, in other batches, so it goes on as before up to rounding). With --augment P the student also learns the teacher's
answers to other notes: each one again, with a share P of its tokens replaced by tokens of its batch (the idea of TinyBERT's
augmentation, Jiao et al., 2020); these need no label, and the teacher reads each anew.

What it does not save: embeddings, unless the student is narrower (a half-depth BERT-base keeps 61% of its bytes).
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from cli import BadInput, number
from compress import structured
from compress.student import best_layers, keep_layers, narrow, norm_moments, spaced_layers
from compress.technique import CALIBRATION_NOTES, LAYER_CHOICE, Technique
from fast.attention import first_token
from layers import find_layers, millions, parameter_count

RELATION_HEADS = 12


def kd_loss(student_logits, teacher_logits, temperature):
    """T^2 * KL(teacher || student) at temperature T; logits (B, C) -> scalar, the mean over B (notes, or labelled tokens)."""
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)  # in bf16 their difference would be mostly rounding
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="sum") / max(1, len(student))


def hidden_loss(student, teacher, mask):
    """Mean squared error of hidden states (B, T, H) over the tokens that mask (B, T) marks as real."""
    mask = mask.unsqueeze(-1).float()
    return ((student.float() - teacher.float()).square() * mask).sum() / (mask.sum() * student.size(-1))


def relations(states, mask, heads):
    """log softmax(A A^T / sqrt(d)) of states A (B, T, W) in `heads` parts, padding left out: (B, heads, T, T)."""
    parts = states.unflatten(-1, (heads, -1)).transpose(1, 2).float()  # (B, heads, T, d)
    scores = parts @ parts.transpose(-1, -2) / parts.shape[-1] ** 0.5
    return scores.masked_fill(~mask[:, None, None].bool(), torch.finfo(scores.dtype).min).log_softmax(-1)


def relation_loss(student, teacher, mask, heads):
    """KL(teacher || student) of relations, the mean over real tokens and heads. states (B, T, W), W of any two sizes; mask (B, T)."""
    gap = F.kl_div(relations(student, mask, heads), relations(teacher, mask, heads), log_target=True, reduction="none").sum(-1)
    return (gap * mask[:, None]).sum() / (mask.sum() * heads)  # (B, heads, T) -> scalar


class Distillation(Technique):
    """Shrinks a copy of the teacher (or takes the model that train.py loaded for --student) and trains it with kd_loss."""

    name = "distillation"
    NEEDS = ("teacher", "calibration")
    learning_rate = 5e-5
    OPTIONS = {
        "--teacher": dict(default=None, help="finished run to learn from (the base run under --out, trained first if absent)"),
        "--student-layers": dict(type=number(int, 0, 10**4), default=0, help="layers of the student (0 = half the teacher's)"),
        "--student-width": dict(type=number(int, 0, 10**5), default=0, help="channels of the student (0 = the teacher's)"),
        "--student": dict(default=None, help="start from this smaller model instead of the teacher's layers"),
        "--temperature": dict(type=number(float, 0, 10**4, low_open=True), default=4.0, help="softening of the logits, > 0"),
        "--alpha": dict(type=number(float, 0, 1), default=0.5, help="weight of the labels; 1 - alpha weighs the teacher, [0, 1]"),
        "--hidden-weight": dict(type=number(float, 0, 10**6), default=0.0, help="weight of the hidden-state term (0 = off)"),
        "--attention-weight": dict(type=number(float, 0, 10**6), default=0.0, help="weight of the attention term (0 = off)"),
        "--augment": dict(type=number(float, 0, 1), default=0.0, help="also learn from notes with this share of tokens replaced (0 = off)"),
        **LAYER_CHOICE, **CALIBRATION_NOTES,
    }  # fmt: skip

    def __init__(self, teacher, student_layers=0, student_width=0, student=None, temperature=4.0, alpha=0.5, hidden_weight=0.0,
                 attention_weight=0.0, augment=0.0, layer_choice="spaced", calibration_notes=256, calibration=None):  # fmt: skip
        """calibration(notes) -> batches of that many training notes, by which layers, heads and directions are chosen."""
        self.teacher, self.student_layers, self.width, self.student = teacher, student_layers, student_width, student
        self.temperature, self.alpha, self.hidden_weight, self.attention_weight = temperature, alpha, hidden_weight, attention_weight
        self.augment = augment
        self.choice, self.notes, self.calibration = layer_choice, calibration_notes, calibration
        self.taught = {}  # row -> the teacher's logits, (C,) or (T, C)

    def prepare(self, model):
        """model: the --student, or a copy of the teacher. Drop layers, narrow the rest, ready the teacher."""
        self.teacher.eval().requires_grad_(False)
        model.eval()
        depth = self.depth = len(find_layers(model)[1])
        wanted = self.student_layers or (depth if self.student else max(1, depth // 2))
        if wanted > depth:
            raise BadInput(f"--student-layers {wanted}: the model to shrink has {depth}")
        before = parameter_count(self.teacher)
        kept, basis = spaced_layers(depth, wanted), None
        if self.student and (self.width or self.choice == "best"):
            raise BadInput("--student: its head has learnt nothing yet by which to choose; leave --student-width and --layer-choice out")
        if self.choice == "best" and wanted < depth:
            kept = best_layers(model, wanted, lambda b: self._task_loss(model, b), self.calibration(self.notes))
        if self.width:
            batches = self.calibration(self.notes)
            moments = norm_moments(model, lambda b: self.task.forward(model, b), batches)
            scores = structured.fisher(model, structured.find_units(model), lambda b: self._task_loss(model, b), batches)
            prefix = find_layers(model)[0]
            moments = [{renamed(name, prefix, kept): value for name, value in part.items()} for part in moments]
            moments = [{name: value for name, value in part.items() if name} for part in moments]
        if wanted < depth:
            model = keep_layers(model, kept)
        if self.width:
            model, basis = narrow(model, self.width, moments, [scores[i] for i in kept], self.task.attach_head)
        if self.hidden_weight or self.attention_weight:
            self._prepare_terms(model, kept, basis)
        elif self.task.reads_first:
            first_token(self.teacher)
        source = "its own" if self.student else "teacher"
        print(
            f"distillation: student of {wanted} layers from {source} layers {', '.join(map(str, kept))}"
            f"{f', {self.width} of {self.teacher.config.hidden_size} channels' if self.width else ''}; "
            f"{millions(before)} -> {millions(parameter_count(model))} parameters, head and embeddings {'narrowed' if self.width else 'kept'}"
        )
        return model

    def _task_loss(self, model, batch):
        return self.task.loss(model, batch, self.task.forward(model, batch))

    def _prepare_terms(self, model, kept, basis):
        depth = len(find_layers(self.teacher)[1])
        of_teacher = not self.student and depth == self.depth  # else the model came from elsewhere, as with --start
        self.matched = kept if of_teacher else spaced_layers(depth, min(depth, len(kept)))
        narrow, wide = model.config.hidden_size, self.teacher.config.hidden_size
        # Part of the model while it trains, so that the optimizer and the resume file see it; finish takes it away.
        projection = nn.Identity() if narrow == wide else nn.Linear(narrow, wide, bias=False)
        if basis is not None and of_teacher:
            projection.weight.data.copy_(basis)
        model.distillation_projection = projection.to(next(model.parameters()).device)
        model.config.output_hidden_states = True

    def loss(self, model, batch, outputs):
        """alpha * task loss + (1 - alpha) * kd_loss, plus the hidden-state and attention terms."""
        deep = bool(self.hidden_weight or self.attention_weight)
        taught = None if deep else self._remembered(batch)
        if taught is None:
            with torch.no_grad():
                teacher = self.task.forward(self.teacher, batch, output_hidden_states=deep)
            taught = teacher.logits
            self._remember(batch, taught)
        loss = self.alpha * self.task.loss(model, batch, outputs)
        student_rows, teacher_rows = (self.task.categorical(logits, batch) for logits in (outputs.logits, taught))
        loss = loss + (1 - self.alpha) * kd_loss(student_rows, teacher_rows, self.temperature)
        if self.hidden_weight:
            if len(outputs.hidden_states) != len(self.matched) + 1:
                raise BadInput(
                    f"--hidden-weight: {len(outputs.hidden_states) - 1} layers cannot be matched with {len(self.matched)} of the teacher"
                )
            pairs = zip(outputs.hidden_states[1:], (teacher.hidden_states[i + 1] for i in self.matched))
            terms = [hidden_loss(model.distillation_projection(s), t, batch["attention_mask"]) for s, t in pairs]
            loss = loss + self.hidden_weight * sum(terms) / len(terms)
        if self.attention_weight:
            ours, theirs = last_projections(model, outputs), last_projections(self.teacher, teacher)
            terms = [relation_loss(s, t, batch["attention_mask"], RELATION_HEADS) for s, t in zip(ours, theirs)]
            loss = loss + self.attention_weight * sum(terms) / len(terms)
        if self.augment:
            other = {**batch, "input_ids": replaced(batch["input_ids"], batch["attention_mask"], self.augment)}
            with torch.no_grad():
                taught = self.task.forward(self.teacher, other).logits
            student_rows, teacher_rows = (self.task.categorical(x, other) for x in (self.task.forward(model, other).logits, taught))
            loss = loss + (1 - self.alpha) * kd_loss(student_rows, teacher_rows, self.temperature)
        return loss

    def _remembered(self, batch):
        rows = batch["rows"].tolist()
        if self.task.redraws or any(row not in self.taught for row in rows):
            return None
        return nn.utils.rnn.pad_sequence([self.taught[row] for row in rows], batch_first=True)  # (B, C) or (B, T, C)

    def _remember(self, batch, logits):
        if not self.task.redraws and logits.shape[0] == len(batch["rows"]):
            lengths = batch["attention_mask"].sum(1).tolist()
            for row, length, answer in zip(batch["rows"].tolist(), lengths, logits.detach()):
                self.taught[row] = (answer[:length] if answer.dim() > 1 else answer).clone()  # not a view of the whole batch

    def finish(self, model):
        """Leave a plain, smaller model."""
        if self.hidden_weight or self.attention_weight:
            del model.distillation_projection
            model.config.output_hidden_states = False
        return model


def replaced(ids, mask, share):
    """ids (B, T) with a share of the tokens replaced by others of the batch; the first and the last of a row stay, as does padding."""
    inner = mask.bool() & mask.roll(-1, 1).bool()
    inner[:, 0] = inner[:, -1] = False
    donors = ids[inner]
    if not len(donors):
        return ids
    chosen = inner & (torch.rand(ids.shape, device=ids.device) < share)
    return torch.where(chosen, donors[torch.randint(len(donors), ids.shape, device=ids.device)], ids)


def renamed(name, prefix, kept):
    """A module's name after only the `kept` layers stay: 'encoder.layer.5.x' -> 'encoder.layer.2.x'; None if its layer goes."""
    if not name.startswith(f"{prefix}."):
        return name
    index, _, rest = name[len(prefix) + 1 :].partition(".")
    return f"{prefix}.{kept.index(int(index))}.{rest}" if int(index) in kept else None


def last_projections(model, outputs):
    """Queries, keys and values of the last layer, (B, T, W) each, from the hidden states that it reads."""
    name, layers = find_layers(model)
    modules = dict(layers[-1].named_modules())
    names = next((layout[:3] for layout in structured.LAYOUTS if layout[0] in modules), None)
    if names is None:
        raise BadInput(f"--attention-weight: does not know the layers of {type(model).__name__}")
    states = [modules[name](outputs.hidden_states[-2]) for name in names]
    if odd := [state.shape[-1] for state in states if state.shape[-1] % RELATION_HEADS]:
        raise BadInput(f"--attention-weight: {odd[0]} channels of queries, keys or values are no multiple of {RELATION_HEADS}")
    return states


def copy_of(teacher):
    """A trainable copy of the teacher, to be shrunk into the student."""
    return copy.deepcopy(teacher).requires_grad_(True).train()
