"""In which precision a model trains, and in which its scores are made.

layer norms   Under autocast PyTorch gives a layer norm's output in fp32. Every product then casts it to bf16
              anew, and what is added to it is fp32, too. Moving these bytes takes time, so the norm's output
              is bf16 here; its sums inside stay fp32.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from fast.attention import multiplies_bf16
from layers import exchanged


def training_precision(precision, device):
    """torch.bfloat16 or torch.float32 for --precision on a device."""
    fast = device.type == "cuda" or (device.type == "cpu" and multiplies_bf16())
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and fast) else torch.float32


def autocast(device, precision):
    """The context in which a model computes in a precision."""
    return contextlib.nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)


def reading_precision(device, trained_in, fitted_head=False):
    """The precision of validation, scores and predictions: bf16 on CUDA for a model trained so, else fp32.

    A head that was fitted in fp32 after training (fitted_head) is read in fp32.
    """
    bf16 = device.type == "cuda" and trained_in == torch.bfloat16 and not fitted_head
    return torch.bfloat16 if bf16 else torch.float32


class HalfNorm(nn.LayerNorm):
    """A LayerNorm with the weights of another that under autocast answers in autocast's precision."""

    def __init__(self, norm):
        super().__init__(norm.normalized_shape, norm.eps, elementwise_affine=False)
        self.weight, self.bias = norm.weight, norm.bias
        self.train(norm.training)

    def forward(self, x):
        """x (..., H) -> (..., H)."""
        kind = x.device.type
        if not torch.is_autocast_enabled(kind):
            return super().forward(x)
        half = torch.get_autocast_dtype(kind)
        scale, shift = (None if w is None else w.to(half) for w in (self.weight, self.bias))
        with torch.autocast(kind, enabled=False):
            return F.layer_norm(x.to(half), self.normalized_shape, scale, shift, self.eps)


@contextlib.contextmanager
def half_norms(model):
    """While open, the layer norms of a model are HalfNorms."""
    norms = {name: module for name, module in model.named_modules() if type(module) is nn.LayerNorm}
    with exchanged(model, {name: HalfNorm(norm) for name, norm in norms.items()}):
        yield model
