"""The same weights, faster on a CPU: freed memory is kept, products go to the faster library.

keep_memory   glibc gives blocks of some MB back to the system as soon as they are freed, so every activation
              is new pages, zeroed by the kernel: 3 of 4 milliseconds of a GELU. With mallopt(3) they stay.
              oneDNN keeps fewer kernels: batches of all shapes took a small student from 0.5 to 1.7 GB.
OneDNNLinear  PyTorch multiplies fp32 by MKL, which on AMD leaves half of the CPU idle, and hands oneDNN its
              bf16 weights row by row. Here oneDNN gets both in the order in which it reads them, laid out
              once: for one short note, reading the weights is most of the work. Chosen by timing; with
              --deterministic never.

What it does not save: bytes, and memory: the weights are held in both orders. It changes none of them;
answers move by rounding, 1e-6 in fp32.
"""

import contextlib
import ctypes
import functools
import os
import sys
import time

import torch
from torch import nn

from layers import device_of, exchanged

KERNELS = 64  # that oneDNN keeps, one for each shape of a product; by default 1,024, hundreds of MB


def keep_memory():
    """Let malloc keep what is freed and never ask the system for single blocks; glibc only.

    Before oneDNN's first call, which reads them: its two caches of kernels get a bound.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS))
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never trim


# --- choices by the clock ---------------------------------------------------------------------------


def may_time():
    """Whether a clock may choose what processes do not agree on: alone, and not with --deterministic."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return alone and not torch.are_deterministic_algorithms_enabled()


def least_seconds(calls, turns=10):
    """[the least seconds of each call], by turns, so that a busy moment strikes all."""
    times = [[] for _ in calls]
    for _ in range(turns):
        for call, taken in zip(calls, times, strict=True):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
    return [min(taken) for taken in times]


# --- products by oneDNN -----------------------------------------------------------------------------


class OneDNNLinear(nn.Module):
    """An nn.Linear's product by oneDNN, from a copy of the weights in oneDNN's order. No gradients."""

    def __init__(self, linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = None  # at the first call: a layer that another stands in for is never packed

    def forward(self, x):
        """x (..., in) -> (..., out)."""
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def onednn_pays(model):
    """Whether to multiply by oneDNN: where it is faster, but with --deterministic no clock chooses."""
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    return not torch.are_deterministic_algorithms_enabled() and onednn_is_faster(dtype)


@functools.cache
@torch.inference_mode()
def onednn_is_faster(dtype):
    """Whether oneDNN multiplies a tenth faster than PyTorch by itself, in fp32 or bf16; timed once.

    It must be so for the rows of a short note or for those of a batch, and for the others no slower.
    """
    if not torch.backends.mkldnn.is_available() or dtype not in (torch.float32, torch.bfloat16):
        return False
    own = nn.Linear(768, 768, dtype=dtype)
    other, gains = OneDNNLinear(own), []
    for rows in (16, 512):
        x = torch.randn(rows, 768, dtype=dtype)
        ours, theirs = least_seconds([lambda f=f, x=x: f(x) for f in (own, other)])
        gains.append(ours / theirs)
    return max(gains) > 1.1 and min(gains) > 0.95


@contextlib.contextmanager
def faster_products(model, onednn=None):
    """Every nn.Linear of a model on a CPU by the faster library, in place; off again at the end.

    onednn: whether that is oneDNN; None = time it.
    """
    pays = device_of(model).type == "cpu" and (onednn_pays(model) if onednn is None else onednn)
    linears = {name: module for name, module in model.named_modules() if pays and type(module) is nn.Linear}
    with exchanged(model, {name: OneDNNLinear(linear).eval() for name, linear in linears.items()}):
        yield model
