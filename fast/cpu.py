"""The same weights, faster on a CPU: freed memory is kept, fp32 products go to the faster library.

keep_memory   glibc gives blocks of some MB back to the system as soon as they are freed, so every activation is new pages,
              zeroed by the kernel: 3 of 4 milliseconds of a GELU. With mallopt(3) they stay with the process.
OneDNNLinear  PyTorch multiplies fp32 by MKL, which on AMD leaves half of the CPU idle; oneDNN does not. Chosen by timing.

What it does not save: bytes. It changes no weight; answers move by rounding, 1e-6. compress/attention.py has what attention gains.
"""

import ctypes
import functools
import sys
import time

import torch
from torch import nn

from fast.attention import first_token, stack
from layers import device_of


def keep_memory():
    """Let malloc keep what is freed, and never ask the system for single blocks; glibc only, elsewhere nothing happens."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never trim


class OneDNNLinear(nn.Linear):
    """nn.Linear for inference in fp32, by oneDNN whatever the build prefers."""

    def forward(self, x):
        """x (..., in) -> (..., out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


@functools.cache
@torch.inference_mode()
def onednn_pays():
    """Whether oneDNN multiplies fp32 at least a tenth faster than this build's own choice; timed once, some 20 ms."""
    if not torch.backends.mkldnn.is_available():
        return False
    own, x = nn.Linear(768, 768), torch.randn(512, 768)
    other = OneDNNLinear(768, 768)

    def fastest(layer):
        times = []
        for _ in range(6):
            began = time.perf_counter()
            layer(x)
            times.append(time.perf_counter() - began)
        return min(times)

    return 1.1 * fastest(other) < fastest(own)


def for_inference(model, task):
    """Ready a model of a task for prediction, in place: attention with less work, on a CPU fp32 by the faster library. Returns it.

    It answers as `predict_rows` would without this, up to rounding, but cannot be saved, trained or compressed any more.
    """
    stack(first_token(model) if task.reads_first else model)
    if device_of(model).type == "cpu" and onednn_pays():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = OneDNNLinear  # the same weights, another forward
    return model.eval()
