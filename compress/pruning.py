"""Magnitude pruning: the smallest weights of the encoder's Linear layers become zero and stay zero.

Of n weights the round(sparsity * n) smallest in magnitude are masked, per layer or over all layers at once (Han et al.,
2015). With the cubic schedule the sparsity grows through training: s(t) = s * (1 - (1 - t / t_end)^3), t_end half of the
training (Zhu & Gupta, 2017). After every optimizer step the masked weights are set to zero again.

What it does not save: bytes and milliseconds. A zero is stored in four bytes and multiplied like any other weight, and no
maintained CPU runtime skips scattered zeros. What it gives is a count of weights that were not needed.
"""

import torch

from compress.technique import Technique, encoder_linears, millions
from data import number

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


def cubic(sparsity, progress, end=CUBIC_END):
    """Sparsity due at progress in [0, 1] under the cubic schedule."""
    return sparsity * (1 - (1 - min(progress / end, 1)) ** 3)


class Pruning(Technique):
    """Masks before training, keeps them through it, leaves plain zeros behind."""

    name = "pruning"
    learning_rate = 2e-5
    OPTIONS = {
        "--sparsity": dict(type=number(float, 0, 1, high_open=True), default=0.3, help="share of weights set to zero, [0, 1)"),
        "--global": dict(action="store_true", help="rank all encoder weights together instead of layer by layer"),
        "--schedule": dict(choices=("constant", "cubic"), default="constant",
                           help="mask at once, or let the sparsity grow over the first half of the training"),
    }  # fmt: skip

    def __init__(self, sparsity=0.3, global_=False, schedule="constant"):
        self.sparsity, self.all_layers, self.schedule = sparsity, global_, schedule
        self.masked_at = None

    def _mask(self, model, sparsity):
        linears = list(encoder_linears(model)[0].values())
        weights = [linear.weight.detach() for linear in linears]
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
        """Mask at once, or with nothing yet under the cubic schedule."""
        self._mask(model, self.sparsity if self.schedule == "constant" else 0.0)
        self._apply(model)
        return model

    def after_step(self, model, progress):
        """Zero what the optimizer moved; under the cubic schedule mask anew at every hundredth of the training."""
        hundredth = int(100 * min(progress, CUBIC_END))
        if self.schedule == "cubic" and hundredth != self.masked_at:
            due = cubic(self.sparsity, hundredth / 100)
            if not self._masked(model, due):  # a resumed run has its masks already
                self._mask(model, due)
            self.masked_at = hundredth
        self._apply(model)

    def settled(self, progress):
        """Under the cubic schedule, an epoch counts only once the sparsity stands."""
        return self.schedule == "constant" or progress >= CUBIC_END

    def finish(self, model):
        """Take the masks away; the zeros stay in the weights."""
        self._apply(model)
        linears, skipped = encoder_linears(model)
        for linear in linears.values():
            del linear.pruning_mask
        zeros = sum(int((linear.weight == 0).sum()) for linear in linears.values())
        total = sum(linear.weight.numel() for linear in linears.values())
        self.facts = {"sparsity": self.sparsity, "scope": "global" if self.all_layers else "layer",
                      "schedule": self.schedule, "zeros": zeros, "weights": total}  # fmt: skip
        print(
            f"pruning: zeroed {millions(zeros)} of {millions(total)} weights ({zeros / total:.1%}) in {len(linears)}/"
            f"{len(linears) + len(skipped)} Linear, skipped {', '.join(skipped) or 'none'}; bytes and milliseconds do not change"
        )
        return model

    def describe(self):
        """What was zeroed. The weights hold the zeros, so nothing is needed to rebuild."""
        return self.facts
