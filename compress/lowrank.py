"""Low-rank layers: replace W (out, in) by B A with A (rank, in) and B (out, rank).

The truncated SVD W ~ U_r S_r V_r^T minimises ||W - BA||_F, and the error is the norm of the discarded singular values
(Eckart & Young, 1936). A = S_r^1/2 V_r^T, B = U_r S_r^1/2, so that both factors start with the same scale. Multiply-adds
fall from out*in to rank*(out + in): a layer gains only below the break-even rank out*in/(out + in), 384 for 768x768 and
614 for 768x3072. Layers at or above it are left dense and named.

--activation-aware minimises the error of what the layer puts out instead, E||WX - BAX||^2 over calibration notes: with the
inputs' second moment E[x x^T] = L L^T, it truncates the SVD of W L and takes L away from the right factor again (Yuan et
al., 2023, ASVD; Wang et al., 2024, SVD-LLM). --target-macs shares a budget out over layers, which get
different ranks: squared singular values per multiply-add are kept from the largest down, as shares of their layer's energy,
or, activation-aware, times E[g^2], g the loss's gradient at the layer's outputs, so that each counts by what it costs the loss.

What it does not save: embeddings (21% of BERT-base), attention scores, layer norms. A low rank without training after it
costs much accuracy.
"""

import functools
import math

import torch
from torch import nn
from tqdm import tqdm

from cli import BadInput, number
from compress.technique import CALIBRATION_NOTES, TARGET_MACS, Technique
from fast.attention import first_token
from layers import encoder_linears, millions, parameter_count, replace_module


def break_even_rank(linear):
    """The rank at which two thin layers cost as many multiply-adds as the dense one, a float."""
    return linear.in_features * linear.out_features / (linear.in_features + linear.out_features)


def as_double(x):
    """x in float64, on the CPU if its device has none (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def energy_rank(singular, energy):
    """The smallest rank whose singular values hold this share of the sum of squares. singular (n,), descending."""
    share = as_double(singular).square().cumsum(0)
    return int(torch.searchsorted(share, energy * share[-1]).clamp(max=len(share) - 1)) + 1


def second_moments(model, names, forward, batches, products=True):
    """({name: E[x x^T] (in, in)} of the inputs of Linear layers over the real tokens that they see in calibration batches,
    {name: the share that those are of all real tokens}). products=False: the shares alone."""  # fmt: skip
    sums, counts, handles, mask, tokens = {}, {}, [], None, 0

    def watch(name):
        def hook(_, inputs):
            x = inputs[0].detach()
            x = x[mask] if x.dim() == 3 and x.shape[:2] == mask.shape else x.flatten(0, -2)
            sums[name] = sums.get(name, 0) + (as_double(x.T @ x) if products else 0)
            counts[name] = counts.get(name, 0) + len(x)

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
    return {name: sums[name] / counts[name] for name in sums}, {name: counts.get(name, tokens) / tokens for name in names}


def sensitivities(model, names, loss, batches):
    """{name: E[g^2]} over the tokens that they see, and outputs, of the gradients g of a note's loss at what Linear layers put out;
    loss(batch) -> mean."""  # fmt: skip
    sums, counts, handles = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0), []

    def watch(name):
        def hook(_, inputs, output):
            output.register_hook(lambda gradient: add(name, gradient))

        return hook

    def add(name, gradient):
        sums[name] += float(gradient.float().square().sum())
        seen = int(mask.sum()) if gradient.dim() == 3 and gradient.shape[:2] == mask.shape else gradient[..., 0].numel()
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


def whitened_svd(weight, moment, damping=1e-4):
    """(U, S, V^T L^-1) of W L, L L^T = moment + damping * its mean diagonal: the factors that minimise the output's error."""
    moment = as_double(moment)
    moment = moment + damping * moment.diagonal().mean() * torch.eye(len(moment), device=moment.device, dtype=torch.double)
    lower = torch.linalg.cholesky(moment)
    u, s, vh = torch.linalg.svd(as_double(weight) @ lower, full_matrices=False)
    return u.float(), s.float(), torch.linalg.solve_triangular(lower, vh, upper=False, left=False).float()


def shared_ranks(spectra, shapes, target, weights=None, shares=None):
    """{name: rank} so that all layers together take `target` of their dense multiply-adds. spectra {name: S}, shapes {name: (out, in)}.

    shares: {name: share of the tokens that the layer sees}, if not all. Squared singular values times their layer's weight (by
    default 1 / its energy) are kept from the largest per multiply-add down. A rank at or above break-even means that the layer
    stays dense; its cost is then the dense one.
    """
    shares, steps = shares or dict.fromkeys(shapes, 1.0), []
    for name, singular in spectra.items():
        energy = as_double(singular).square()
        weight = weights[name] if weights else 1 / energy.sum()
        gains = energy[1:] * weight / (shares[name] * sum(shapes[name]))  # of the ranks after the first, which every layer has
        steps += [(-float(gain), name) for gain in gains]
    budget = target * sum(shares[name] * out * into for name, (out, into) in shapes.items())
    ranks, spent = {name: 1 for name in spectra}, sum(shares[name] * sum(shape) for name, shape in shapes.items())
    for _, name in sorted(steps):
        out, into = shapes[name]
        if ranks[name] * (out + into) >= out * into:
            continue  # dense already, nothing more to pay
        if spent + shares[name] * (out + into) > budget:
            break
        ranks[name] += 1
        spent += shares[name] * min(out + into, max(0, out * into - (ranks[name] - 1) * (out + into)))
    return ranks


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
        """The best approximation of a dense layer at this rank. svd: (U, S, Vh) of its weight if already known."""
        u, s, vh = svd or torch.linalg.svd(linear.weight.float(), full_matrices=False)
        layer = cls(linear.in_features, linear.out_features, rank, bias=linear.bias is not None).to(linear.weight)
        root = s[:rank].sqrt()
        layer.down.weight.copy_(root[:, None] * vh[:rank])
        layer.up.weight.copy_(u[:, :rank] * root)
        if linear.bias is not None:
            layer.up.bias.copy_(linear.bias)
        return layer


class LowRank(Technique):
    """Factors every encoder Linear that gains from it, then lets the loop train the factors."""

    name = "lowrank"
    NEEDS = ("calibration",)
    learning_rate = 5e-5
    OPTIONS = {
        "--rank": dict(type=number(int, 1, 10**6), default=32, help="rank of every factored layer, >= 1"),
        "--energy": dict(type=number(float, 0, 1, low_open=True), default=None,
                         help="instead, a rank per layer that keeps this share of its squared singular values, (0, 1]"),
        "--activation-aware": dict(action="store_true", help="factor for the least error of the outputs on calibration notes, not of the weights"),
        **TARGET_MACS, **CALIBRATION_NOTES,
    }  # fmt: skip

    def __init__(self, rank=32, energy=None, activation_aware=False, target_macs=None, calibration_notes=256, calibration=None):
        """calibration(notes) -> batches of that many training notes."""
        self.rank, self.energy, self.aware, self.target = rank, energy, activation_aware, target_macs
        self.notes, self.calibration = calibration_notes, calibration

    def prepare(self, model):
        """Replace what gains, name what does not."""
        linears, skipped = encoder_linears(model)
        before, total = parameter_count(model), len(linears) + len(skipped)
        self.ranks, moments, shares = {}, {}, None
        if self.aware or (self.target and self.task.reads_first):
            model = first_token(model.eval()) if self.task.reads_first else model.eval()
            forward, batches = lambda b: self.task.forward(model, b), self.calibration(self.notes)
            moments, shares = second_moments(model, linears, forward, batches, products=self.aware)

        @functools.cache  # spectra choose the ranks, then the factors are taken
        def factors(name):
            weight = linears[name].weight.detach().float()
            return whitened_svd(weight, moments[name]) if self.aware and name in moments else torch.linalg.svd(weight, full_matrices=False)

        ranks = dict.fromkeys(linears, self.rank)
        if self.target or self.energy is not None:
            spectra = {name: factors(name)[1] for name in tqdm(linears, desc="spectra", unit="layer", leave=False, disable=None)}
            if self.target:
                weights = None
                if self.aware:
                    loss = lambda b: self.task.loss(model, b, self.task.forward(model, b))  # noqa: E731
                    weights = sensitivities(model, linears, loss, self.calibration(self.notes))
                    weights = {name: weight * shares[name] for name, weight in weights.items()}  # a token of the note
                shapes = {name: tuple(linear.weight.shape) for name, linear in linears.items()}
                ranks = shared_ranks(spectra, shapes, self.target, weights, shares)
            else:
                ranks = {name: energy_rank(singular, self.energy) for name, singular in spectra.items()}
        for name, linear in tqdm(linears.items(), desc="SVD", unit="layer", leave=False, disable=None):
            if (rank := ranks[name]) >= break_even_rank(linear):
                skipped.append(f"{name} (dense: rank {rank} >= break-even {math.floor(break_even_rank(linear))})")
                continue
            replace_module(model, name, LowRankLinear.from_linear(linear, rank, factors(name)))
            self.ranks[name] = rank
        if not self.ranks:
            most = math.ceil(max(map(break_even_rank, linears.values()))) - 1
            raise BadInput(f"lowrank: no layer gains from this rank or energy; the largest rank at which one does is {most}")
        how = "activation-aware, " * self.aware + (
            f"{self.target:.0%} of the multiply-adds, ranks {min(self.ranks.values())} to {max(self.ranks.values())}, "
            if self.target
            else ""
        )
        print(
            f"lowrank: {how}replaced {len(self.ranks)}/{total} Linear, {millions(before)} -> {millions(parameter_count(model))} "
            f"parameters, skipped {', '.join(skipped) or 'none'}"
        )
        return model

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
            replace_module(model, name, LowRankLinear(dense.in_features, dense.out_features, rank, dense.bias is not None))
        return model
