"""Magnitude pruning: the smallest weights of the encoder's Linear layers become zero and stay zero.

Of n weights the round(sparsity * n) smallest in magnitude are masked, per layer or over all layers at once (Han et al.,
2015). With the cubic schedule the sparsity grows through training: s(t) = s * (1 - (1 - t / t_end)^3), t_end half of the
training (Zhu & Gupta, 2017). After every optimizer step the masked weights are set to zero again.

--nm 2:4 keeps the two largest of every four weights in a row instead. --structured and --keep-layers are another matter:
they take heads, neurons (compress/structured.py) and layers out of a fine-tuned model, so that it is really smaller.

What zeros do not save: bytes and milliseconds. A zero is stored in four bytes and multiplied like any other weight, and no
maintained CPU runtime skips scattered zeros; 2:4 is made for NVIDIA GPUs from Ampere on, in half precision, through libraries
that pack it, which was not tried here, and pays nowhere in this project. What zeros give is a count of weights that were not needed.
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

CUBIC_END = 0.5  # share of the training after which the sparsity stands


def magnitude_mask(weight, fraction):
    """Boolean mask, False at the round(fraction * n) entries of smallest magnitude. Same shape as weight."""
    drop = round(fraction * weight.numel())
    mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[torch.topk(weight.abs().flatten(), drop, largest=False).indices] = False
    return mask.view_as(weight)


def global_masks(weights, fraction):
    """The same over all weights together: some layers lose more than others. Returns a list of masks."""
    together = magnitude_mask(torch.cat([weight.flatten() for weight in weights]), fraction)
    return [part.view_as(weight) for part, weight in zip(together.split([w.numel() for w in weights]), weights)]


def nm_mask(weight, keep, group):
    """Boolean mask, True at the `keep` largest of every `group` neighbouring weights of a row. weight (out, in)."""
    blocks = weight.abs().unflatten(1, (-1, group))  # (out, in / group, group)
    return torch.zeros_like(blocks, dtype=torch.bool).scatter_(2, blocks.topk(keep, dim=2).indices, True).flatten(1)


def n_of_m(text):
    """An argparse type: '2:4' -> (2, 4)."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 0 < int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 2:4")
    return [int(match[1]), int(match[2])]


def cubic(sparsity, progress, end=CUBIC_END):
    """Sparsity due at progress in [0, 1] under the cubic schedule."""
    return sparsity * (1 - (1 - min(progress / end, 1)) ** 3)


class Pruning(Technique):
    """Masks before training, keeps them through it, leaves plain zeros behind."""

    name = "pruning"
    NEEDS = ("calibration",)
    learning_rate = 2e-5
    OPTIONS = {
        "--sparsity": dict(type=number(float, 0, 1, high_open=True), default=0.3, help="share of weights set to zero, [0, 1)"),
        "--global": dict(action="store_true", help="rank all encoder weights together instead of layer by layer"),
        "--schedule": dict(choices=("constant", "cubic"), default="constant",
                           help="mask at once, or let the sparsity grow over the first half of the training"),
        "--nm": dict(type=n_of_m, default=None, help="instead, zeros in a pattern: keep 2 of every 4 weights in a row with 2:4"),
        "--structured": dict(action="store_true", help="take heads and neurons out instead of setting zeros, from the base run"),
        "--keep-heads": dict(type=number(int, 0, 10**4), default=0, help="instead, heads to keep in each layer (0 = by --target-macs)"),
        "--keep-neurons": dict(type=number(int, 0, 10**6), default=0, help="instead, neurons to keep in each layer (0 = by --target-macs)"),
        "--importance": dict(choices=("fisher", "magnitude"), default="fisher", help="what a head or a neuron is worth (fisher)"),
        "--keep-layers": dict(type=number(int, 0, 10**4), default=0, help="also, layers to keep (0 = all)"),
        **LAYER_CHOICE, **TARGET_MACS, **CALIBRATION_NOTES,
    }  # fmt: skip

    def __init__(self, sparsity=0.3, global_=False, schedule="constant", nm=None, structured=False, target_macs=None, keep_heads=0,
                 keep_neurons=0, importance="fisher", calibration_notes=256, keep_layers=0, layer_choice="spaced", calibration=None):  # fmt: skip
        """calibration(notes) -> batches of that many training notes, for the Fisher scores."""
        self.sparsity, self.all_layers, self.schedule, self.nm = sparsity, global_, schedule, nm
        self.structured, self.target, self.heads, self.neurons = structured, target_macs or 0.5, keep_heads, keep_neurons
        self.importance, self.notes, self.layers, self.calibration = importance, calibration_notes, keep_layers, calibration
        self.choice, self.masked_at, self.facts = layer_choice, None, None

    def _mask(self, model, sparsity):
        linears = list(encoder_linears(model)[0].values())
        weights = [linear.weight.detach() for linear in linears]
        if self.nm:
            masks = [
                nm_mask(w, *self.nm) if sparsity and w.shape[1] % self.nm[1] == 0 else torch.ones_like(w, dtype=torch.bool) for w in weights
            ]
        else:
            masks = global_masks(weights, sparsity) if self.all_layers else [magnitude_mask(w, sparsity) for w in weights]
        for linear, mask in zip(linears, masks):
            linear.register_buffer("pruning_mask", mask)  # in the state_dict, so an interrupted run resumes with it

    def _masked(self, model, sparsity):
        masks = [linear.pruning_mask for linear in encoder_linears(model)[0].values()]
        sizes = [sum(mask.numel() for mask in masks)] if self.all_layers else [mask.numel() for mask in masks]
        return sum(int((~mask).sum()) for mask in masks) == sum(round(sparsity * size) for size in sizes)

    @torch.no_grad()
    def _apply(self, model):
        for linear in encoder_linears(model)[0].values():
            linear.weight.mul_(linear.pruning_mask)

    def prepare(self, model):
        """Take layers, heads and neurons out; or mask, at once, or with nothing yet under the cubic schedule."""
        if self.layers:
            depth = len(find_layers(model)[1])
            if self.layers >= depth:
                raise BadInput(f"--keep-layers {self.layers}: the model has {depth}; keep fewer")
            kept = spaced_layers(depth, self.layers)
            if self.choice == "best":
                model.eval()
                loss = lambda batch: self.task.loss(model, batch, self.task.forward(model, batch))  # noqa: E731
                kept = best_layers(model, self.layers, loss, self.calibration(self.notes))
            model = keep_layers(model, kept)
            print(f"pruning: layers {', '.join(map(str, kept))} of {depth} kept, {millions(parameter_count(model))} parameters left")
        if self.structured:
            return self._shrink(model)
        self._mask(model, self.sparsity if self.schedule == "constant" else 0.0)
        self._apply(model)
        return model

    def _shrink(self, model):
        model.eval()
        layers, hidden = structured.find_units(model, self.task.reads_first and like_bert(model)), model.config.hidden_size
        before, batches = parameter_count(model), self.calibration(self.notes)
        length = sum(int(b["attention_mask"].sum()) for b in batches) / sum(len(b["attention_mask"]) for b in batches)
        if self.importance == "fisher":
            scores = structured.fisher(model, layers, lambda b: self.task.loss(model, b, self.task.forward(model, b)), batches)
        else:
            scores = structured.magnitude(model, layers)
        if self.heads or self.neurons:
            for flag, wanted, most in (("heads", self.heads, layers[0].heads), ("neurons", self.neurons, layers[0].neurons)):
                if wanted > most:
                    raise BadInput(f"--keep-{flag} {wanted}: a layer has {most}")
            kept = [(structured.top(h, self.heads or len(h)), structured.top(n, self.neurons or len(n))) for h, n in scores]
        else:
            kept = structured.choose(layers, scores, hidden, length, self.target)
        model = structured.remove(model, layers, kept)
        self.facts = {"heads": [len(heads) for heads, _ in kept], "neurons": [len(neurons) for _, neurons in kept]}
        each = [structured.costs(layer, hidden, length) for layer in layers]
        macs = [sum(h * a + n * b for (h, n), (a, b) in zip(counts, each)) for counts in
                (zip(self.facts["heads"], self.facts["neurons"]), ((layer.heads, layer.neurons) for layer in layers))]  # fmt: skip
        print(
            f"pruning: by {self.importance}, heads {'/'.join(map(str, self.facts['heads']))} of {layers[0].heads}, neurons "
            f"{'/'.join(map(str, self.facts['neurons']))} of {layers[0].neurons}; {macs[0] / macs[1]:.1%} of the encoder's multiply-adds at "
            f"{length:.0f} tokens, {millions(before)} -> {millions(parameter_count(model))} parameters"
        )
        return model

    def after_step(self, model, progress):
        """Zero what the optimizer moved; under the cubic schedule mask anew at every hundredth of the training."""
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
        """Under the cubic schedule, an epoch counts only once the sparsity stands."""
        return self.structured or self.schedule == "constant" or progress >= CUBIC_END

    def finish(self, model):
        """Take the masks away; the zeros stay in the weights."""
        if self.structured:
            return model
        self._apply(model)
        linears, skipped = encoder_linears(model)
        for linear in linears.values():
            del linear.pruning_mask
        zeros = sum(int((linear.weight == 0).sum()) for linear in linears.values())
        total = sum(linear.weight.numel() for linear in linears.values())
        self.facts = {"sparsity": self.sparsity, "nm": self.nm, "scope": "global" if self.all_layers else "layer",
                      "schedule": self.schedule, "zeros": zeros, "weights": total}  # fmt: skip
        print(
            f"pruning: zeroed {millions(zeros)} of {millions(total)} weights ({zeros / total:.1%}) in {len(linears)}/"
            f"{len(linears) + len(skipped)} Linear, skipped {', '.join(skipped) or 'none'}; bytes and milliseconds do not change"
        )
        return model

    def describe(self):
        """What was zeroed, which is in the weights, so nothing is needed to rebuild; or the heads and neurons of each layer."""
        return self.facts

    @staticmethod
    def is_plain(facts):
        """Zeros change no shape."""
        return "heads" not in facts

    @staticmethod
    def rebuild(model, facts):
        """Untrained matrices of the recorded widths."""
        if "heads" in facts:
            kept = [(range(heads), range(neurons)) for heads, neurons in zip(facts["heads"], facts["neurons"])]
            structured.remove(model, structured.find_units(model), [(list(h), list(n)) for h, n in kept])
        return model
