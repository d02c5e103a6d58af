"""The same weights, faster on a CPU: freed memory is kept, fp32 products go to the faster library.

keep_memory   glibc gives blocks of some MB back to the system as soon as they are freed, so every activation
              is new pages, zeroed by the kernel: 3 of 4 milliseconds of a GELU. With mallopt(3) they stay.
OneDNNLinear  PyTorch multiplies fp32 by MKL, which on AMD leaves half of the CPU idle; oneDNN does not.
              Chosen by timing; with --deterministic never.

What it does not save: bytes. It changes no weight; answers move by rounding, 1e-6.
"""

import contextlib
import ctypes
import functools
import sys
import time

import torch
from torch import nn

from layers import device_of, exchanged


def keep_memory():
    """Let malloc keep what is freed and never ask the system for single blocks; glibc only."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never trim


class OneDNNLinear(nn.Module):
    """An nn.Linear's fp32 product by oneDNN, with the Linear's own weights. No gradients."""

    def __init__(self, linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x):
        """x (..., in) -> (..., out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def is_fp32_linear(module):
    """Whether a module is an nn.Linear of fp32 weights."""
    return type(module) is nn.Linear and module.weight.dtype == torch.float32


def onednn_pays():
    """Whether to multiply by oneDNN: where it is faster, but with --deterministic no clock chooses."""
    return not torch.are_deterministic_algorithms_enabled() and onednn_is_faster()


@functools.cache
@torch.inference_mode()
def onednn_is_faster():
    """Whether oneDNN multiplies fp32 a tenth faster than this build's own choice; timed once, some 20 ms."""
    if not torch.backends.mkldnn.is_available():
        return False
    own, x = nn.Linear(768, 768), torch.randn(512, 768)
    other = OneDNNLinear(own)

    def fastest(layer):
        times = []
        for _ in range(6):
            began = time.perf_counter()
            layer(x)
            times.append(time.perf_counter() - began)
        return min(times)

    return 1.1 * fastest(other) < fastest(own)


@contextlib.contextmanager
def faster_products(model, onednn=None):
    """Every nn.Linear of a model on a CPU by the faster library, in place; off again at the end.

    onednn: whether that is oneDNN; None = time it.
    """
    pays = device_of(model).type == "cpu" and (onednn_pays() if onednn is None else onednn)
    linears = {name: module for name, module in model.named_modules() if pays and is_fp32_linear(module)}
    with exchanged(model, {name: OneDNNLinear(linear).eval() for name, linear in linears.items()}):
        yield model
