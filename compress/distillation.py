"""Distillation: a smaller student learns from the labels and from a fine-tuned teacher's softened answers.

loss = alpha * CE(labels, student) + (1 - alpha) * T^2 * KL(softmax(teacher / T) || softmax(student / T)),
summed over the classes and averaged over the notes. T^2 keeps the size of the gradients as T grows (Hinton
et al., 2014). The student is cut from the teacher (compress/student.py): fewer layers, and narrower ones
with --student-width. Two terms may be added:
    --hidden-weight     mean squared error of the hidden states of matching layers, over real tokens
    --attention-weight  KL between the last layers' relations, softmax(A A^T / sqrt(d)) of A = queries, keys
                        and values, in equally many heads whatever the widths (Wang et al., 2021, MiniLMv2)
Without them the teacher reads each note once, and its answers stay in memory for the epochs to come. (A
resumed run asks the teacher again, in other batches, so it goes on as before up to rounding.)

With --augment P the student also learns the teacher's answers to altered notes: each note again, with a
share P of its tokens replaced by tokens of its batch (the idea of TinyBERT's augmentation, Jiao et al.,
2020). They need no label; the teacher reads each anew.

What it does not save: embeddings, unless the student is narrower. BERT-base at half its depth keeps 61%
of its bytes.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from cli import BadInput, number
from compress import structured
from compress.student import best_layers, keep_layers, narrow_model, norm_moments, spaced_layers
from compress.technique import CALIBRATION_NOTES, LAYER_CHOICE, Technique
from layers import LAYOUTS, find_layers, layer_count, millions, parameter_count

RELATION_HEADS = 12


# --- the losses


def kd_loss(student_logits, teacher_logits, temperature):
    """T^2 * KL(teacher || student) at temperature T: logits (B, C) -> scalar, the mean over B."""
    # float: in bf16 the difference of the two would be mostly rounding
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, log_target=True, reduction="sum")
    return temperature**2 * divergence / max(1, len(student))


def hidden_loss(student, teacher, mask):
    """Mean squared error of hidden states (B, T, H) over the tokens that mask (B, T) marks as real."""
    mask = mask.unsqueeze(-1).float()
    return ((student.float() - teacher.float()).square() * mask).sum() / (mask.sum() * student.size(-1))


def relations(states, mask, heads):
    """log softmax(A A^T / sqrt(d)) of states A (B, T, W), mask (B, T), in heads: (B, heads, T, T)."""
    parts = states.unflatten(-1, (heads, -1)).transpose(1, 2).float()  # (B, heads, T, d)
    scores = parts @ parts.transpose(-1, -2) / parts.shape[-1] ** 0.5
    return scores.masked_fill(~mask[:, None, None].bool(), torch.finfo(scores.dtype).min).log_softmax(-1)


def relation_loss(student, teacher, mask, heads):
    """KL(teacher || student) of relations, the mean over real tokens and heads.

    states (B, T, W), W may differ between student and teacher; mask (B, T).
    """
    ours, theirs = relations(student, mask, heads), relations(teacher, mask, heads)
    gap = F.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1)  # (B, heads, T)
    return (gap * mask[:, None]).sum() / (mask.sum() * heads)


def last_projections(model, outputs):
    """Queries, keys and values of the last layer, (B, T, W) each, from the hidden states that it reads."""
    advice = "use --hidden-weight instead of --attention-weight"
    modules = dict(find_layers(model, advice)[1][-1].named_modules())
    names = next((layout[:3] for layout in LAYOUTS if layout[0] in modules), None)
    if names is None:
        raise BadInput(f"--attention-weight: does not know the layers of {type(model).__name__}; {advice}")
    states = [modules[name](outputs.hidden_states[-2]) for name in names]
    if odd := [state.shape[-1] for state in states if state.shape[-1] % RELATION_HEADS]:
        raise BadInput(
            f"--attention-weight: {odd[0]} channels of queries, keys or values are no multiple of "
            f"{RELATION_HEADS}; choose another --student-width, or --hidden-weight"
        )
    return states


# --- the student's notes and names


def replaced(ids, mask, share):
    """ids (B, T) with a share of the tokens replaced by others of the batch.

    The first and the last token of a row stay, as does padding.
    """
    inner = mask.bool() & mask.roll(-1, 1).bool()
    inner[:, 0] = inner[:, -1] = False
    donors = ids[inner]
    if not len(donors):
        return ids
    chosen = inner & (torch.rand(ids.shape, device=ids.device) < share)
    return torch.where(chosen, donors[torch.randint(len(donors), ids.shape, device=ids.device)], ids)


def renamed(name, prefix, kept):
    """A module's name after only the `kept` layers stay; None if its layer goes.

    'encoder.layer.5.x' -> 'encoder.layer.2.x' if 5 is the third of them.
    """
    if not name.startswith(f"{prefix}."):
        return name
    index, _, rest = name[len(prefix) + 1 :].partition(".")
    return f"{prefix}.{kept.index(int(index))}.{rest}" if int(index) in kept else None


# --- the technique


class Distillation(Technique):
    """Shrinks a copy of the teacher, or takes the checkpoint of --student, and trains it with kd_loss.

    For another loss on the logits, subclass it and override `soft_loss`; for one on more than them, `loss`.
    """

    NEEDS = ("teacher", "calibration")
    learning_rate = 5e-5
    OPTIONS = {
        "--teacher": {"default": None,
            "help": "finished run to learn from (the base run under --out, trained first if absent)"},
        "--student-layers": {"type": number(int, 0, 10**4), "default": 0,
            "help": "layers of the student (0 = half the teacher's)"},
        "--student-width": {"type": number(int, 0, 10**5), "default": 0,
            "help": "channels of the student (0 = the teacher's)"},
        "--student": {"default": None,
            "help": "smaller checkpoint to start from, a directory or a hub name (none: the teacher's "
                    "layers)"},
        "--temperature": {"type": number(float, 0, 10**4, low_open=True), "default": 4.0,
            "help": "temperature T that softens the logits, above 0 (4)"},
        "--alpha": {"type": number(float, 0, 1), "default": 0.5,
            "help": "weight of the labels, from 0 to 1; the teacher's weight is 1 - alpha (0.5)"},
        "--hidden-weight": {"type": number(float, 0, 10**6), "default": 0.0,
            "help": "weight of the loss on hidden states (0 = off)"},
        "--attention-weight": {"type": number(float, 0, 10**6), "default": 0.0,
            "help": "weight of the loss on attention relations (0 = off)"},
        "--augment": {"type": number(float, 0, 1), "default": 0.0,
            "help": "also learn the teacher's answers to notes with this share of tokens replaced (0 = off)"},
        **LAYER_CHOICE, **CALIBRATION_NOTES,
    }  # fmt: skip

    def __init__(self, teacher, student_layers=0, student_width=0, student=None,
                 temperature=4.0, alpha=0.5, hidden_weight=0.0, attention_weight=0.0,
                 augment=0.0, layer_choice="spaced", calibration_notes=256, calibration=None):  # fmt: skip
        """calibration(notes) -> batches of that many training notes, to choose layers and channels by."""
        self.teacher, self.student = teacher, student
        self.student_layers, self.width, self.choice = student_layers, student_width, layer_choice
        self.temperature, self.alpha, self.augment = temperature, alpha, augment
        self.hidden_weight, self.attention_weight = hidden_weight, attention_weight
        self.notes, self.calibration = calibration_notes, calibration
        self.deep = bool(hidden_weight or attention_weight)  # whether the loss reads hidden states
        self.taught = {}  # row -> the teacher's logits, (C,) or (T, C)

    @classmethod
    def starts_from(cls, options):
        """The checkpoint of --student; without it the student is a copy of the teacher."""
        return options.student

    @classmethod
    def check(cls, options, chain):
        """Raises BadInput for --student with flags that cut a student from the teacher."""
        if options.student and (options.student_width or options.layer_choice == "best"):
            raise BadInput(
                "--student: its head has learnt nothing yet by which to choose layers or channels; "
                "leave --student-width and --layer-choice out"
            )

    # --- before training

    def prepare(self, model):
        """Drop layers, narrow others, prepare the teacher. model: a copy of the teacher, or the --student."""
        self.teacher.eval().requires_grad_(False)
        model.eval()
        self.depth, basis = layer_count(model), None
        wanted = self._layers_wanted()
        kept = self._choose_layers(model, wanted)

        found = self._calibrate_width(model, kept) if self.width else ()
        if wanted < self.depth:
            model = keep_layers(model, kept)
        if self.width:
            model, basis = narrow_model(model, self.width, *found, self.task.attach_head)

        if self.deep:
            self._prepare_terms(model, kept, basis)
        print(self._claim(kept, parameter_count(model)))
        return model

    def readers(self):
        """The teacher."""
        return [self.teacher]

    def _layers_wanted(self):
        wanted = self.student_layers or (self.depth if self.student else max(1, self.depth // 2))
        if wanted > self.depth:
            raise BadInput(f"--student-layers {wanted}: the model to shrink has {self.depth}")
        return wanted

    def _choose_layers(self, model, wanted):
        """Indices of the layers to keep."""
        if wanted < self.depth:
            find_layers(model, advice="to distil it, give a smaller checkpoint with --student")
        if wanted < self.depth and self.choice == "best":
            batches = self.calibration(self.notes)
            return best_layers(model, wanted, lambda b: self._task_loss(model, b), batches)
        return spaced_layers(self.depth, wanted)

    def _calibrate_width(self, model, kept):
        """((means, second moments) after the layer norms, worth of heads and neurons), of the kept layers."""
        batches = self.calibration(self.notes)
        moments = norm_moments(model, lambda b: self.task.forward(model, b), batches)
        units = structured.find_units(model)
        scores = structured.fisher(model, units, lambda b: self._task_loss(model, b), batches)

        prefix = find_layers(model)[0]
        moments = [{renamed(name, prefix, kept): value for name, value in part.items()} for part in moments]
        moments = [{name: value for name, value in part.items() if name} for part in moments]
        return moments, [scores[i] for i in kept]

    def _task_loss(self, model, batch):
        return self.task.loss(model, batch, self.task.forward(model, batch))

    def _prepare_terms(self, model, kept, basis):
        """Match the student's layers with the teacher's; give the model a projection between their widths."""
        depth = layer_count(self.teacher)
        of_teacher = (
            not self.student and depth == self.depth
        )  # else the model came from elsewhere, as with --start
        self.matched = kept if of_teacher else spaced_layers(depth, min(depth, len(kept)))

        thin, wide = model.config.hidden_size, self.teacher.config.hidden_size
        projection = nn.Identity() if thin == wide else nn.Linear(thin, wide, bias=False)
        if basis is not None and of_teacher:
            projection.weight.data.copy_(basis)
        # Part of the model while it trains, so that the optimizer and the resume file see it
        model.distillation_projection = projection.to(next(model.parameters()).device)
        model.config.output_hidden_states = True

    def _claim(self, kept, after):
        source = "its own" if self.student else "teacher"
        width = f", {self.width} of {self.teacher.config.hidden_size} channels" if self.width else ""
        rest = "narrowed" if self.width else "kept"
        return (
            f"{self.name}: student of {len(kept)} layers from {source} layers {', '.join(map(str, kept))}"
            f"{width}; {millions(parameter_count(self.teacher))} -> {millions(after)} parameters, "
            f"head and embeddings {rest}"
        )

    # --- each step

    def loss(self, model, batch, outputs):
        """alpha * task loss + (1 - alpha) * soft_loss, plus the terms that have a weight."""
        answers = self._ask(batch)
        loss = self.alpha * self.task.loss(model, batch, outputs)
        loss = loss + (1 - self.alpha) * self._against_teacher(batch, outputs.logits, answers.logits)
        if self.hidden_weight:
            loss = loss + self.hidden_weight * self._hidden_term(model, batch, outputs, answers)
        if self.attention_weight:
            loss = loss + self.attention_weight * self._attention_term(model, batch, outputs, answers)
        if self.augment:
            loss = loss + (1 - self.alpha) * self._augmented_term(model, batch)
        return loss

    def soft_loss(self, student, teacher):
        """How far the student's logits (B, C) are from the teacher's, a scalar: kd_loss."""
        return kd_loss(student, teacher, self.temperature)

    def _against_teacher(self, batch, student, teacher):
        return self.soft_loss(*(self.task.categorical(logits, batch) for logits in (student, teacher)))

    def _hidden_term(self, model, batch, outputs, answers):
        """Mean over the student's layers of hidden_loss against the teacher's layers that match them."""
        layers = len(outputs.hidden_states) - 1
        if layers != len(self.matched):
            raise BadInput(
                f"--hidden-weight: {layers} layers cannot be matched with {len(self.matched)} of the teacher"
                "; give fewer --student-layers"
            )
        pairs = [
            (outputs.hidden_states[i + 1], answers.hidden_states[j + 1]) for i, j in enumerate(self.matched)
        ]
        mask = batch["attention_mask"]
        terms = [hidden_loss(model.distillation_projection(ours), theirs, mask) for ours, theirs in pairs]
        return sum(terms) / len(terms)

    def _attention_term(self, model, batch, outputs, answers):
        """Mean of relation_loss over queries, keys and values of the last layers."""
        ours, theirs = last_projections(model, outputs), last_projections(self.teacher, answers)
        mask = batch["attention_mask"]
        terms = [relation_loss(s, t, mask, RELATION_HEADS) for s, t in zip(ours, theirs, strict=True)]
        return sum(terms) / len(terms)

    def _augmented_term(self, model, batch):
        """soft_loss on the batch's notes with a share of their tokens replaced."""
        other = {**batch, "input_ids": replaced(batch["input_ids"], batch["attention_mask"], self.augment)}
        with torch.no_grad():
            answers = self.task.forward(self.teacher, other)
        return self._against_teacher(other, self.task.forward(model, other).logits, answers.logits)

    # --- the teacher's answers

    def _ask(self, batch):
        """The teacher's outputs: what is remembered of earlier epochs, logits alone, or what it says now."""
        if not self.deep and (logits := self._remembered(batch)) is not None:
            return SimpleNamespace(logits=logits)
        with torch.no_grad():
            outputs = self.task.forward(self.teacher, batch, output_hidden_states=self.deep)
        if not self.deep:
            self._remember(batch, outputs.logits)
        return outputs

    def _remembered(self, batch):
        """The teacher's logits for these rows, (B, C) or (B, T, C); None if it has not read them all."""
        rows = batch["rows"].tolist()
        if self.task.redraws or any(row not in self.taught for row in rows):
            return None
        return nn.utils.rnn.pad_sequence([self.taught[row] for row in rows], batch_first=True)

    def _remember(self, batch, logits):
        if self.task.redraws or logits.shape[0] != len(batch["rows"]):
            return
        lengths = batch["attention_mask"].sum(1).tolist()
        for row, length, answer in zip(batch["rows"].tolist(), lengths, logits.detach(), strict=True):
            answer = answer[:length] if answer.dim() > 1 else answer
            self.taught[row] = answer.clone()  # not a view of the whole batch

    # --- after training

    def finish(self, model):
        """Leave a plain, smaller model."""
        if self.deep:
            del model.distillation_projection
            model.config.output_hidden_states = False
        return model
