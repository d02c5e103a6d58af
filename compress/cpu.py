"""The same weights, faster on a CPU: freed memory is kept, fp32 products go to the faster library, attention to bf16.

keep_memory   glibc gives blocks of some MB back to the system as soon as they are freed, so every activation is new pages,
              zeroed by the kernel: 3 of 4 milliseconds of a GELU. With mallopt(3) they stay with the process.
OneDNNLinear  PyTorch multiplies fp32 by MKL, which on AMD leaves half of the CPU idle; oneDNN does not. Chosen by timing.
products      attention as two bf16 products and a softmax, where the CPU multiplies bf16: for models that are int8
              already and for training in bf16. Fused CPU kernels multiply in fp32 inside.

What it does not save: bytes. It changes no weight; answers move by rounding, 1e-6 in fp32, 1e-2 of a logit where attention is bf16.
"""

import ctypes
import functools
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

LONGEST = 512  # tokens for which attention probabilities are held whole, (B, heads, T, T)


def keep_memory():
    """Let malloc keep what is freed, and never ask the system for single blocks; glibc only, elsewhere nothing happens."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never trim


def multiplies_bf16():
    """Whether this CPU has bf16 products of its own (AVX-512 BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported()


def products(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **keywords):
    """Attention of query, key, value (B, heads, T, d) by bf16 products -> (B, T, heads, d), None; attention_mask of `added_mask`."""
    if key.shape[2] > LONGEST or key.shape[1] != query.shape[1] or getattr(module, "is_causal", False):
        attention_mask = attention_mask if attention_mask is None else attention_mask.to(query.dtype)
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **keywords)
    scaling = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    scores = (query * scaling).bfloat16() @ key.bfloat16().transpose(-1, -2)  # (B, heads, T, T)
    if attention_mask is not None:
        scores += attention_mask
    shares = F.dropout(scores.softmax(-1), dropout, training=bool(dropout))
    return (shares @ value.bfloat16()).transpose(1, 2).to(value.dtype).contiguous(), None


def added_mask(*arguments, **keywords):
    """What is added to the scores, once for all layers: 0 where a token is read, the least bf16 number where not, (B, 1, T, T)."""
    mask = sdpa_mask(*arguments, **keywords)
    return mask if mask is None else torch.zeros_like(mask, dtype=torch.bfloat16).masked_fill_(~mask, torch.finfo(torch.bfloat16).min)


AttentionInterface.register("bf16_products", products)
AttentionMaskInterface.register("bf16_products", added_mask)


def bf16_attention(model, on=True):
    """Set a model's attention to `products`, in place, if it and the CPU allow it; on=False sets it back."""
    if multiplies_bf16() and getattr(model, "_supports_attention_backend", False):
        model.set_attn_implementation("bf16_products" if on else "sdpa")
    return model


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


def for_inference(model):
    """Ready a model on the CPU for prediction, in place: fp32 Linear layers by the faster library. Returns it."""
    if next((p.device.type for p in model.parameters()), "cpu") == "cpu" and onednn_pays():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = OneDNNLinear  # the same weights, another forward
    return model.eval()
