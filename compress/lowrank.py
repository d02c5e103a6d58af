"""Low-rank layers: replace W (out, in) by B A with A (rank, in) and B (out, rank).

The truncated SVD W ~ U_r S_r V_r^T minimises ||W - BA||_F, and the error is the norm of the discarded
singular values (Eckart & Young, 1936). A = S_r^1/2 V_r^T, B = U_r S_r^1/2, so that both factors start with
the same scale. Multiply-adds fall from out*in to rank*(out + in): a layer gains only below the break-even
rank out*in/(out + in), 384 for 768x768 and 614 for 768x3072. Layers at or above it stay dense, and are
named.

--activation-aware minimises the error of the layer's output instead, E||WX - BAX||^2 over calibration
notes: with the second moment of the inputs E[x x^T] = L L^T, it truncates the SVD of W L and multiplies the
right factor by L^-1 (Yuan et al., 2023, ASVD; Wang et al., 2024, SVD-LLM).

--target-macs shares a budget of multiply-adds out over the layers, which get different ranks: the squared
singular values with the most worth per multiply-add are kept first. A value's worth is its share of its
layer's energy; activation-aware, the value times E[g^2], g the gradient of the loss at the layer's outputs,
so that it counts by what it costs the loss.

What it does not save: embeddings (21% of BERT-base), attention scores, layer norms. A low rank without
training after it costs much accuracy.
"""

import functools
import math

import torch
from torch import nn
from tqdm import tqdm

from cli import BadInput, number
from compress.technique import CALIBRATION_NOTES, TARGET_MACS, Technique
from fast import speedups
from layers import encoder_linears, millions, parameter_count, replace_module


def break_even_rank(linear):
    """The rank at which two thin layers cost as many multiply-adds as the dense one, a float."""
    return linear.in_features * linear.out_features / (linear.in_features + linear.out_features)


def as_double(x):
    """x in float64, on the CPU if its device has none (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


# --- the factors of one matrix


def whitened_svd(weight, moment, damping=1e-4):
    """(U, S, V^T L^-1) of W L: the factors that minimise the error of the output.

    weight W (out, in); moment E[x x^T] (in, in); L L^T = moment + damping * its mean diagonal.
    """
    moment = as_double(moment)
    identity = torch.eye(len(moment), device=moment.device, dtype=torch.double)
    lower = torch.linalg.cholesky(moment + damping * moment.diagonal().mean() * identity)
    u, s, vh = torch.linalg.svd(as_double(weight) @ lower, full_matrices=False)
    return u.float(), s.float(), torch.linalg.solve_triangular(lower, vh, upper=False, left=False).float()


class LowRankLinear(nn.Module):
    """Two thin layers in place of a dense one: (..., in) -> (..., rank) -> (..., out)."""

    def __init__(self, in_features, out_features, rank, bias=True):
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)  # A
        self.up = nn.Linear(rank, out_features, bias=bias)  # B

    def forward(self, x):
        """x (..., in) -> (..., out)."""
        return self.up(self.down(x))

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear, rank, svd=None):
        """The best approximation of a dense layer at this rank. svd: (U, S, Vh) of its weight if known."""
        u, s, vh = svd or torch.linalg.svd(linear.weight.float(), full_matrices=False)
        layer = cls(linear.in_features, linear.out_features, rank, bias=linear.bias is not None).to(
            linear.weight
        )
        root = s[:rank].sqrt()
        layer.down.weight.copy_(root[:, None] * vh[:rank])
        layer.up.weight.copy_(u[:, :rank] * root)
        if linear.bias is not None:
            layer.up.bias.copy_(linear.bias)
        return layer


# --- the rank of each matrix


def energy_rank(singular, energy):
    """The smallest rank whose singular values (n,), descending, hold this share of the sum of squares."""
    share = as_double(singular).square().cumsum(0)
    return int(torch.searchsorted(share, energy * share[-1]).clamp(max=len(share) - 1)) + 1


def shared_ranks(spectra, shapes, target, weights=None, shares=None):
    """{name: rank} so that all layers together take `target` of their dense multiply-adds.

    spectra {name: S}; shapes {name: (out, in)}; weights {name: worth of a squared singular value}, by default
    1 / the layer's energy; shares {name: share of the tokens that the layer sees}, by default all. A rank at
    or above break-even means that the layer stays dense; it then costs what the dense layer costs.
    """
    shares = shares or dict.fromkeys(shapes, 1.0)
    steps = []  # (-worth per multiply-add, name) of every rank after the first, which each layer has
    for name, singular in spectra.items():
        energy = as_double(singular).square()
        weight = weights[name] if weights else 1 / energy.sum()
        gains = energy[1:] * weight / (shares[name] * sum(shapes[name]))
        steps += [(-float(gain), name) for gain in gains]

    budget = target * sum(shares[name] * out * into for name, (out, into) in shapes.items())
    spent = sum(shares[name] * sum(shape) for name, shape in shapes.items())
    ranks = dict.fromkeys(spectra, 1)
    for _, name in sorted(steps):
        out, into = shapes[name]
        if ranks[name] * (out + into) >= out * into:
            continue  # dense already, nothing more to pay
        if spent + shares[name] * (out + into) > budget:
            break
        ranks[name] += 1
        spent += shares[name] * min(out + into, max(0, out * into - (ranks[name] - 1) * (out + into)))
    return ranks


# --- what calibration notes tell of each matrix


def second_moments(model, names, forward, batches, products=True):
    """Statistics of the inputs of Linear layers over the real tokens that they see in calibration batches.

    Returns ({name: E[x x^T] (in, in)}, {name: share of all real tokens that the layer sees}). products=False:
    the shares alone, and no moments.
    """
    sums, counts, mask, tokens = {}, {}, None, 0

    def watch(name):
        def hook(_, inputs):
            x = inputs[0].detach()
            x = x[mask] if x.dim() == 3 and x.shape[:2] == mask.shape else x.flatten(0, -2)  # (tokens, in)
            counts[name] = counts.get(name, 0) + len(x)
            if products:
                sums[name] = sums.get(name, 0) + as_double(x.T @ x)

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        with torch.no_grad():
            for batch in batches:
                mask = batch["attention_mask"].bool()
                tokens += int(mask.sum())
                forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    shares = {name: counts.get(name, tokens) / tokens for name in names}
    return {name: sums[name] / counts[name] for name in sums}, shares


def sensitivities(model, names, loss, batches):
    """{name: E[g^2]}, g the gradients of a note's loss at the outputs of Linear layers.

    The mean is over the real tokens that a layer sees and over its outputs. loss(batch) -> mean over notes.
    """
    sums, counts, handles = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0), []

    def watch(name):
        def hook(_, inputs, output):
            output.register_hook(lambda gradient: add(name, gradient))

        return hook

    def add(name, gradient):
        sums[name] += float(gradient.float().square().sum())
        everywhere = gradient.dim() == 3 and gradient.shape[:2] == mask.shape
        seen = int(mask.sum()) if everywhere else gradient[..., 0].numel()
        counts[name] += seen * gradient.shape[-1]

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        for batch in batches:
            mask = batch["attention_mask"]
            (len(batch["input_ids"]) * loss(batch)).backward()
            model.zero_grad()
    finally:
        for handle in handles:
            handle.remove()
    return {name: sums[name] / max(1, counts[name]) for name in names}


# --- the technique


class LowRank(Technique):
    """Factors every encoder Linear that gains from it, then lets the loop train the factors."""

    NEEDS = ("calibration",)
    learning_rate = 5e-5
    OPTIONS = {
        "--rank": {"type": number(int, 1, 10**6), "default": 32, "help": "rank of every factored layer (32)"},
        "--energy": {"type": number(float, 0, 1, low_open=True), "default": None,
            "help": "instead of --rank: give each layer the smallest rank that keeps this share of its "
                    "squared singular values, above 0 and up to 1 (none)"},
        "--activation-aware": {"action": "store_true",
            "help": "choose factors that keep the layers' outputs on calibration notes, not their weights "
                    "(off)"},
        **TARGET_MACS, **CALIBRATION_NOTES,
    }  # fmt: skip

    def __init__(self, rank=32, energy=None, activation_aware=False, target_macs=None,
                 calibration_notes=256, calibration=None):  # fmt: skip
        """calibration(notes) -> batches of that many training notes."""
        self.rank, self.energy, self.aware, self.target = rank, energy, activation_aware, target_macs
        self.notes, self.calibration = calibration_notes, calibration
        self.ranks = {}  # of the factored layers, by name

    @classmethod
    def starts_from_base(cls, options):
        """If the loss decides what is kept: that of a model which has learnt nothing tells nothing."""
        return bool(options.activation_aware and options.target_macs)

    def prepare(self, model):
        """Replace what gains, name what does not."""
        linears, skipped = encoder_linears(model)
        before, total = parameter_count(model), len(linears) + len(skipped)
        moments, shares = self._calibrate(model, linears)

        @functools.cache  # spectra choose the ranks, then the factors are taken
        def factors(name):
            weight = linears[name].weight.detach().float()
            if name in moments:
                return whitened_svd(weight, moments[name])
            return torch.linalg.svd(weight, full_matrices=False)

        ranks = self._choose_ranks(model, linears, factors, shares)
        for name, linear in tqdm(linears.items(), desc="SVD", unit="layer", leave=False, disable=None):
            break_even = break_even_rank(linear)
            if ranks[name] >= break_even:
                skipped.append(f"{name} (dense: rank {ranks[name]} >= break-even {math.floor(break_even)})")
                continue
            replace_module(model, name, LowRankLinear.from_linear(linear, ranks[name], factors(name)))
            self.ranks[name] = ranks[name]

        if not self.ranks:
            most = math.ceil(max(map(break_even_rank, linears.values()))) - 1
            raise BadInput(
                f"{self.name}: no layer gains from this rank or energy; "
                f"the largest rank at which one does is {most}"
            )
        print(self._claim(total, before, parameter_count(model), skipped))
        return model

    def _calibrate(self, model, linears):
        """({name: second moment}, {} if not activation-aware; {name: share of the tokens}, None if all)."""
        if not (self.aware or (self.target and self.task.reads_first)):
            return {}, None
        batches = self.calibration(self.notes)
        with speedups(model.eval(), self.task.reads_first):
            return second_moments(model, linears, lambda b: self.task.forward(model, b), batches, self.aware)

    def _choose_ranks(self, model, linears, factors, shares):
        """{name: rank} of all encoder Linear layers; factors(name) -> (U, S, Vh)."""
        if not self.target and self.energy is None:
            return dict.fromkeys(linears, self.rank)
        bar = tqdm(linears, desc="spectra", unit="layer", leave=False, disable=None)
        spectra = {name: factors(name)[1] for name in bar}
        if not self.target:
            return {name: energy_rank(singular, self.energy) for name, singular in spectra.items()}

        weights = None
        if self.aware:
            batches = self.calibration(self.notes)
            with speedups(model, self.task.reads_first):
                costs = sensitivities(model, linears, lambda b: self._task_loss(model, b), batches)
            weights = {name: cost * shares[name] for name, cost in costs.items()}  # per token of the note
        shapes = {name: tuple(linear.weight.shape) for name, linear in linears.items()}
        return shared_ranks(spectra, shapes, self.target, weights, shares)

    def _task_loss(self, model, batch):
        return self.task.loss(model, batch, self.task.forward(model, batch))

    def _claim(self, total, before, after, skipped):
        how = "activation-aware, " if self.aware else ""
        if self.target:
            low, high = min(self.ranks.values()), max(self.ranks.values())
            how += f"{self.target:.0%} of the multiply-adds, ranks {low} to {high}, "
        return (
            f"{self.name}: {how}replaced {len(self.ranks)}/{total} Linear, "
            f"{millions(before)} -> {millions(after)} parameters, skipped {', '.join(skipped) or 'none'}"
        )

    def describe(self):
        """The rank of every factored layer."""
        return {"ranks": self.ranks}

    @staticmethod
    def is_plain(facts):
        """Its layers are its own."""
        return False

    @staticmethod
    def rebuild(model, facts):
        """Thin layers of the recorded ranks, untrained."""
        for name, rank in facts["ranks"].items():
            dense = model.get_submodule(name)
            thin = LowRankLinear(dense.in_features, dense.out_features, rank, dense.bias is not None)
            replace_module(model, name, thin)
        return model
