"""Magnitude pruning: the smallest weights of the encoder's Linear layers become zero and stay zero.

Of n weights the round(sparsity * n) smallest in magnitude are masked, per layer or over all layers at once
(Han et al., 2015). With the cubic schedule the sparsity grows until half of the training, t_end (Zhu &
Gupta, 2017):
    s(t) = s * (1 - (1 - t / t_end)^3)
After every optimizer step the masked weights are set to zero again.

--nm 2:4 keeps the two largest of every four weights in a row instead. --structured and --keep-layers do not
set zeros: they take heads, neurons (compress/structured.py) and layers out of a fine-tuned model, so that
it is really smaller.

What zeros do not save: bytes and milliseconds. A zero is stored in four bytes and multiplied like any other
weight, and no maintained CPU runtime skips scattered zeros. The pattern 2:4 is made for NVIDIA GPUs from
Ampere on, in half precision, through libraries that pack it; that was not tried here, and it gains nothing
in this project. What zeros give is a count of the weights that were not needed.
"""

import argparse
import re

import torch

from cli import BadInput, number
from compress import structured
from compress.student import best_layers, keep_layers, spaced_layers
from compress.technique import CALIBRATION_NOTES, LAYER_CHOICE, TARGET_MACS, Technique
from fast.attention import like_bert
from layers import encoder_linears, find_layers, millions, parameter_count

CUBIC_END = 0.5  # share of the training after which the sparsity is reached


# --- which weights to zero


def magnitude_mask(weight, fraction):
    """Boolean mask, False at the round(fraction * n) entries of smallest magnitude. Same shape as weight."""
    drop = round(fraction * weight.numel())
    mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[torch.topk(weight.abs().flatten(), drop, largest=False).indices] = False
    return mask.view_as(weight)


def global_masks(weights, fraction):
    """The same over all weights together: some layers lose more than others. Returns a list of masks."""
    together = magnitude_mask(torch.cat([weight.flatten() for weight in weights]), fraction)
    parts = together.split([weight.numel() for weight in weights])
    return [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]


def nm_mask(weight, keep, group):
    """Boolean mask (out, in), True at the `keep` largest of every `group` neighbouring weights of a row."""
    blocks = weight.abs().unflatten(1, (-1, group))  # (out, in / group, group)
    kept = blocks.topk(keep, dim=2).indices
    return torch.zeros_like(blocks, dtype=torch.bool).scatter_(2, kept, True).flatten(1)


def n_of_m(text):
    """An argparse type: '2:4' -> [2, 4]."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 0 < int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 2:4")
    return [int(match[1]), int(match[2])]


def cubic(sparsity, progress, end=CUBIC_END):
    """Sparsity due at progress in [0, 1] under the cubic schedule."""
    return sparsity * (1 - (1 - min(progress / end, 1)) ** 3)


# --- the technique


class Pruning(Technique):
    """Masks weights before training and leaves zeros behind; or takes heads, neurons and layers out."""

    NEEDS = ("calibration",)
    learning_rate = 2e-5
    OPTIONS = {
        "--sparsity": {"type": number(float, 0, 1, high_open=True), "default": 0.3,
            "help": "share of weights set to zero, from 0 to below 1 (0.3)"},
        "--global": {"action": "store_true",
            "help": "rank all encoder weights together instead of layer by layer (off)"},
        "--schedule": {"choices": ("constant", "cubic"), "default": "constant",
            "help": "mask at once, or let the sparsity grow over the first half of the training (constant)"},
        "--nm": {"type": n_of_m, "default": None,
            "help": "instead of --sparsity, zeros in a pattern: 2:4 keeps 2 of every 4 weights in a row "
                    "(none)"},
        "--structured": {"action": "store_true",
            "help": "take heads and neurons out instead of setting zeros, from the base run (off)"},
        "--keep-heads": {"type": number(int, 0, 10**4), "default": 0,
            "help": "heads to keep in each layer, instead of --target-macs (0 = all)"},
        "--keep-neurons": {"type": number(int, 0, 10**6), "default": 0,
            "help": "neurons to keep in each layer, instead of --target-macs (0 = all)"},
        "--importance": {"choices": ("fisher", "magnitude"), "default": "fisher",
            "help": "worth of a head or a neuron: fisher = what the loss would rise by without it, "
                    "magnitude = the size of its weights (fisher)"},
        "--keep-layers": {"type": number(int, 0, 10**4), "default": 0,
            "help": "also drop layers: how many to keep, from the base run (0 = all)"},
        **LAYER_CHOICE, **TARGET_MACS, **CALIBRATION_NOTES,
    }  # fmt: skip

    def __init__(self, sparsity=0.3, global_=False, schedule="constant", nm=None,
                 structured=False, target_macs=None, keep_heads=0, keep_neurons=0,
                 importance="fisher", calibration_notes=256, keep_layers=0,
                 layer_choice="spaced", calibration=None):  # fmt: skip
        """calibration(notes) -> batches of that many training notes, for Fisher scores and --layer-choice."""
        self.sparsity, self.all_layers, self.schedule, self.nm = sparsity, global_, schedule, nm
        self.structured, self.target, self.heads, self.neurons = (
            structured,
            target_macs or 0.5,
            keep_heads,
            keep_neurons,
        )
        self.importance, self.layers, self.choice = importance, keep_layers, layer_choice
        self.notes, self.calibration = calibration_notes, calibration
        self.pruned, self.skipped = [], []  # names of Linear layers: in the encoder, and not
        self.masked_at, self.facts = None, None

    @classmethod
    def starts_from_base(cls, options):
        """If it takes heads, neurons or layers out: which ones, a model that has learnt the task tells."""
        return bool(options.structured or options.keep_layers)

    @classmethod
    def check(cls, options, chain):
        """Raises BadInput for flags of --structured without it; --target-macs may be another technique's."""
        shared = any("--target-macs" in other.OPTIONS for other in chain if other is not cls)
        given = {
            "keep-heads": options.keep_heads,
            "keep-neurons": options.keep_neurons,
            "target-macs": options.target_macs and not shared,
        }
        idle = [flag for flag, value in given.items() if value]
        if idle and not options.structured:
            raise BadInput(f"--{idle[0]}: takes heads and neurons out, so it goes with --structured")

    def prepare(self, model):
        """Take layers, heads and neurons out, or mask weights; the cubic schedule starts with none masked."""
        if self.layers:
            model = self._drop_layers(model)
        if self.structured:
            return self._shrink(model)
        linears, self.skipped = encoder_linears(model)
        self.pruned = list(linears)
        self._mask(model, self.sparsity if self.schedule == "constant" else 0.0)
        self._apply(model)
        return model

    # --- zeros

    def _linears(self, model):
        """The pruned layers, by name: a later technique may have put another kind of layer there (--qat)."""
        return [model.get_submodule(name) for name in self.pruned]

    def _masks_for(self, weights, sparsity):
        if not self.nm:
            return (
                global_masks(weights, sparsity)
                if self.all_layers
                else [magnitude_mask(w, sparsity) for w in weights]
            )
        fits = [sparsity and weight.shape[1] % self.nm[1] == 0 for weight in weights]
        return [
            nm_mask(weight, *self.nm) if fit else torch.ones_like(weight, dtype=torch.bool)
            for weight, fit in zip(weights, fits, strict=True)
        ]

    def _mask(self, model, sparsity):
        linears = self._linears(model)
        masks = self._masks_for([linear.weight.detach() for linear in linears], sparsity)
        for linear, mask in zip(linears, masks, strict=True):
            linear.register_buffer(
                "pruning_mask", mask
            )  # in the state_dict, so an interrupted run resumes with it

    def _masked(self, model, sparsity):
        """Whether the masks have this sparsity."""
        masks = [linear.pruning_mask for linear in self._linears(model)]
        sizes = [mask.numel() for mask in masks]
        sizes = [sum(sizes)] if self.all_layers else sizes
        return sum(int((~mask).sum()) for mask in masks) == sum(round(sparsity * size) for size in sizes)

    @torch.no_grad()
    def _apply(self, model):
        for linear in self._linears(model):
            linear.weight.mul_(linear.pruning_mask)

    # --- layers, heads and neurons taken out

    def _task_loss(self, model, batch):
        return self.task.loss(model, batch, self.task.forward(model, batch))

    def _drop_layers(self, model):
        depth = len(find_layers(model)[1])
        if self.layers >= depth:
            raise BadInput(f"--keep-layers {self.layers}: the model has {depth}; keep fewer")
        kept = spaced_layers(depth, self.layers)
        if self.choice == "best":
            model.eval()
            batches = self.calibration(self.notes)
            kept = best_layers(model, self.layers, lambda b: self._task_loss(model, b), batches)
        model = keep_layers(model, kept)
        left = millions(parameter_count(model))
        print(f"{self.name}: layers {', '.join(map(str, kept))} of {depth} kept, {left} parameters left")
        return model

    def _shrink(self, model):
        model.eval()
        first = self.task.reads_first and like_bert(model)
        layers, hidden, before = (
            structured.find_units(model, first),
            model.config.hidden_size,
            parameter_count(model),
        )
        batches = self.calibration(self.notes)
        notes, tokens = (
            sum(of(b["attention_mask"]) for b in batches) for of in (len, lambda mask: int(mask.sum()))
        )
        length = tokens / notes

        if self.importance == "fisher":
            scores = structured.fisher(model, layers, lambda b: self._task_loss(model, b), batches)
        else:
            scores = structured.magnitude(model, layers)
        if self.heads or self.neurons:
            kept = self._by_number(layers, scores)
        else:
            kept = structured.choose(layers, scores, hidden, length, self.target)
        model = structured.remove(model, layers, kept)

        self.facts = {
            "heads": [len(heads) for heads, _ in kept],
            "neurons": [len(neurons) for _, neurons in kept],
        }
        print(self._shrink_claim(layers, hidden, length, before, parameter_count(model)))
        return model

    def _by_number(self, layers, scores):
        """[(heads kept, neurons kept)] by --keep-heads and --keep-neurons."""
        for flag, wanted, most in (
            ("heads", self.heads, layers[0].heads),
            ("neurons", self.neurons, layers[0].neurons),
        ):
            if wanted > most:
                raise BadInput(f"--keep-{flag} {wanted}: a layer has {most}")
        return [
            (
                structured.top(heads, self.heads or len(heads)),
                structured.top(neurons, self.neurons or len(neurons)),
            )
            for heads, neurons in scores
        ]

    def _shrink_claim(self, layers, hidden, length, before, after):
        heads, neurons = self.facts["heads"], self.facts["neurons"]
        left = structured.total_cost(layers, list(zip(heads, neurons, strict=True)), hidden, length)
        full = structured.total_cost(
            layers, [(layer.heads, layer.neurons) for layer in layers], hidden, length
        )
        return (
            f"{self.name}: by {self.importance}, heads {'/'.join(map(str, heads))} of {layers[0].heads}, "
            f"neurons {'/'.join(map(str, neurons))} of {layers[0].neurons}; "
            f"{left / full:.1%} of the encoder's multiply-adds at {length:.0f} tokens per note, "
            f"{millions(before)} -> {millions(after)} parameters"
        )

    # --- in the loop and after it

    def after_step(self, model, progress):
        """Zero what the optimizer moved; under the cubic schedule mask anew at each hundredth of the run."""
        if self.structured:
            return
        hundredth = int(100 * min(progress, CUBIC_END))
        if self.schedule == "cubic" and hundredth != self.masked_at:
            due = cubic(self.sparsity, hundredth / 100)
            if not self._masked(model, due):  # a resumed run has its masks already
                self._mask(model, due)
            self.masked_at = hundredth
        self._apply(model)

    def settled(self, progress):
        """Under the cubic schedule, an epoch counts only once the sparsity is reached."""
        return self.structured or self.schedule == "constant" or progress >= CUBIC_END

    def finish(self, model):
        """Take the masks away; the zeros stay in the weights."""
        if self.structured:
            return model
        self._apply(model)
        linears = self._linears(model)
        for linear in linears:
            del linear.pruning_mask
        self.facts = {
            "sparsity": self.sparsity,
            "nm": self.nm,
            "scope": "global" if self.all_layers else "layer",
            "schedule": self.schedule,
            "zeros": sum(int((linear.weight == 0).sum()) for linear in linears),
            "weights": sum(linear.weight.numel() for linear in linears),
        }
        print(self._zeros_claim())
        return model

    def _zeros_claim(self):
        zeros, weights, total = (
            self.facts["zeros"],
            self.facts["weights"],
            len(self.pruned) + len(self.skipped),
        )
        return (
            f"{self.name}: zeroed {millions(zeros)} of {millions(weights)} weights ({zeros / weights:.1%}) "
            f"in {len(self.pruned)}/{total} Linear, skipped {', '.join(self.skipped) or 'none'}; "
            "bytes and milliseconds do not change"
        )

    def describe(self):
        """How much was zeroed, for the record; or the heads and neurons of each layer."""
        return self.facts

    @staticmethod
    def is_plain(facts):
        """Zeros change no shape."""
        return "heads" not in facts

    @staticmethod
    def rebuild(model, facts):
        """Untrained matrices of the recorded widths."""
        if "heads" in facts:
            kept = [
                (list(range(h)), list(range(n)))
                for h, n in zip(facts["heads"], facts["neurons"], strict=True)
            ]
            structured.remove(model, structured.find_units(model), kept)
        return model
