"""Low-rank layers: replace W (out, in) by B A with A (rank, in) and B (out, rank).

The truncated SVD W ~ U_r S_r V_r^T minimises ||W - BA||_F, and the error is the norm of the discarded singular values
(Eckart & Young, 1936). A = S_r^1/2 V_r^T, B = U_r S_r^1/2, so that both factors start with the same scale. Multiply-adds
fall from out*in to rank*(out + in): a layer gains only below the break-even rank out*in/(out + in), 384 for 768x768 and
614 for 768x3072. Layers at or above it are left dense and named.

What it does not save: embeddings (21% of BERT-base), attention scores, layer norms. A low rank without training after it
costs much accuracy.
"""

import math

import torch
from torch import nn
from tqdm import tqdm

from compress.technique import Technique, encoder_linears, millions, parameter_count, replace_module
from data import BadInput, number


def break_even_rank(linear):
    """The rank at which two thin layers cost as many multiply-adds as the dense one, a float."""
    return linear.in_features * linear.out_features / (linear.in_features + linear.out_features)


def energy_rank(singular, energy):
    """The smallest rank whose singular values hold this share of the sum of squares. singular (n,), descending."""
    share = singular.cpu().double().square().cumsum(0)
    return int(torch.searchsorted(share, energy * share[-1]).clamp(max=len(share) - 1)) + 1


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
    learning_rate = 5e-5
    OPTIONS = {
        "--rank": dict(type=number(int, 1, 10**6), default=32, help="rank of every factored layer, >= 1"),
        "--energy": dict(type=number(float, 0, 1, low_open=True), default=None,
                         help="instead, a rank per layer that keeps this share of its squared singular values, (0, 1]"),
    }  # fmt: skip

    def __init__(self, rank=32, energy=None):
        self.rank, self.energy = rank, energy

    def prepare(self, model):
        """Replace what gains, name what does not."""
        linears, skipped = encoder_linears(model)
        before, total = parameter_count(model), len(linears) + len(skipped)
        self.ranks = {}
        for name, linear in tqdm(linears.items(), desc="SVD", unit="layer", leave=False, disable=None):
            svd = None
            if self.energy is None and self.rank >= break_even_rank(linear):
                rank = self.rank
            else:
                svd = torch.linalg.svd(linear.weight.detach().float(), full_matrices=False)
                rank = self.rank if self.energy is None else energy_rank(svd[1], self.energy)
            if rank >= break_even_rank(linear):
                skipped.append(f"{name} (dense: rank {rank} >= break-even {math.floor(break_even_rank(linear))})")
                continue
            replace_module(model, name, LowRankLinear.from_linear(linear, rank, svd))
            self.ranks[name] = rank
        if not self.ranks:
            most = math.ceil(max(map(break_even_rank, linears.values()))) - 1
            raise BadInput(f"lowrank: no layer gains from this rank or energy; the largest rank at which one does is {most}")
        print(
            f"lowrank: replaced {len(self.ranks)}/{total} Linear, {millions(before)} -> {millions(parameter_count(model))} "
            f"parameters, skipped {', '.join(skipped) or 'none'}"
        )
        return model

    def describe(self):
        """The rank of every factored layer."""
        return {"ranks": self.ranks}

    @staticmethod
    def rebuild(model, facts):
        """Thin layers of the recorded ranks, untrained."""
        for name, rank in facts["ranks"].items():
            dense = model.get_submodule(name)
            replace_module(model, name, LowRankLinear(dense.in_features, dense.out_features, rank, dense.bias is not None))
        return model
