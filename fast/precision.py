"""In which precision a model trains, and in which its scores are made."""

from contextlib import nullcontext

import torch

from fast.attention import multiplies_bf16


def training_precision(precision, device):
    """torch.bfloat16 or torch.float32 for --precision on a device."""
    fast = device.type == "cuda" or (device.type == "cpu" and multiplies_bf16())
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and fast) else torch.float32


def autocast(device, precision):
    """The context in which a model computes in a precision."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)


def reading_precision(device, trained_in, fitted_head=False):
    """The precision of validation, scores and predictions: bf16 on CUDA for a model trained so, else fp32.

    A head that was fitted in fp32 after training (fitted_head) is read in fp32.
    """
    bf16 = device.type == "cuda" and trained_in == torch.bfloat16 and not fitted_head
    return torch.bfloat16 if bf16 else torch.float32
